"""Text files, vocabularies, batches of tokens, and sentence pairs."""

import argparse
import datetime
import gzip
import unicodedata
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from common.data import pairs
from common.data.pairs import NOTATIONS, date_pairs, load_pairs, part_of, read_pairs, write_date
from common.data.text import (
    END,
    PAD,
    SPECIAL,
    START,
    UNKNOWN,
    TokenBatches,
    decode,
    encode,
    losses,
    read_lines,
    read_tokenizer,
    train_bpe,
)

LINES = ["Ein Mann, der läuft.", "Zwei Männer laufen (schnell)!", "Der Mann ist 25 Jahre alt."] * 3


def device(world=1, rank=0, accumulate=1, seed=0):
    return SimpleNamespace(
        world=world,
        rank=rank,
        accumulate=accumulate,
        seed=seed,
        device=torch.device("cpu"),
        main=True,
        quiet=True,
        said=[],
        gather=lambda value: [value],
        say=print,
    )


def flags(**changes):
    defaults = dict(data="dates", data_dir="data", val=0, limit=None, seed=0, direction="en-de")
    defaults |= dict(vocab_size=100, max_length=64, typed=[], chosen=["val"], stored={})
    return argparse.Namespace(**defaults | changes)


# ---------------------------------------------------------------------- files


def test_lines_plain_and_gzipped():
    text = "\ufeffein \u2028 Wort\r\n\n zwei\n"
    Path("a.txt").write_bytes(text.encode())
    Path("a.txt.gz").write_bytes(gzip.compress(text.encode()))
    for name in ("a.txt", "a.txt.gz"):
        assert read_lines(name) == ["ein \u2028 Wort", "", "zwei"]  # only \n ends a line


def test_lines_of_macs_before_2001():
    Path("a.txt").write_bytes(b"ein\rzwei\r")
    assert read_lines("a.txt") == ["ein", "zwei"]


def test_lines_are_in_normal_form():
    """As the vocabulary writes them: BLEU compares translations with lines of a file."""
    text = unicodedata.normalize("NFD", "über\nschön\n")
    Path("a.txt").write_text(text, "utf-8")
    assert read_lines("a.txt") == ["über", "schön"] != text.split()


def test_a_byte_order_mark_is_no_text():
    """Files that were joined have one in the middle."""
    Path("a.txt").write_bytes("\ufeffein\n\ufeffzwei\n".encode())
    assert read_lines("a.txt") == ["ein", "zwei"]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "latin-1"])
def test_other_encodings_are_named(encoding, refused):
    Path("a.txt").write_bytes("gut\nschön\n".encode(encoding))
    line = refused(read_lines, "a.txt")
    assert "a.txt" in line
    assert "UTF-8" in line
    words = {"utf-16": "is UTF-16,", "utf-32": "is UTF-32,", "latin-1": "line 2 is not UTF-8"}
    assert words.get(encoding, "as UTF-16 and files that are no text do") in line
    assert encoding != "latin-1" or "ö in Latin-1" in line


def test_bad_files(refused):
    Path("empty.txt").touch()
    Path("blank.txt").write_text("\n \n")
    Path("spaces.txt").write_text("\u00a0\n\u3000\n\ufeff\n", "utf-8")
    for name in ("empty.txt", "blank.txt", "spaces.txt"):
        assert f"{name} is empty" in refused(read_lines, name)
    assert "nowhere.txt" in refused(read_lines, "nowhere.txt")
    Path("folder").mkdir()
    assert "folder" in refused(read_lines, "folder")
    whole = gzip.compress(b"text\n" * 100)
    Path("cut.gz").write_bytes(whole[: len(whole) // 2])
    assert "cut.gz is damaged" in refused(read_lines, "cut.gz")


def test_pairs_of_unequal_length(refused):
    Path("a").write_text("x\n" * 1200)
    Path("b").write_text("x\n" * 7)
    line = refused(read_pairs, "a", "b")
    assert "1,200" in line
    assert " 7" in line


def test_pairs_without_a_side(refused):
    Path("a").write_text("one\n\nthree\n")
    Path("b").write_text("eins\nzwei\n\n")
    found, note = read_pairs("a", "b")
    assert (found.source, found.target) == (["one"], ["eins"])
    assert note.startswith("2 pairs with an empty line")
    Path("b").write_text("\nzwei\n\n")
    assert "both sides" in refused(read_pairs, "a", "b")


# ---------------------------------------------------------------------- vocabulary


def test_text_comes_back():
    tokenizer = train_bpe(LINES, 60)
    assert [tokenizer.id_to_token(i) for i in range(4)] == SPECIAL
    encoded = encode(tokenizer, LINES, 100)
    assert decode(tokenizer, [tokens.tolist() for tokens in encoded.tokens]) == LINES
    assert all(int(tokens[-1]) == END for tokens in encoded.tokens)
    assert encoded.cut == 0
    assert not encoded.unknown
    again = read_tokenizer(tokenizer.to_str())
    assert again.encode(LINES[0]).ids == tokenizer.encode(LINES[0]).ids
    assert train_bpe(LINES, 60).to_str() == tokenizer.to_str()


def test_digits_and_punctuation_stand_alone():
    tokens = train_bpe(LINES * 5, 400).encode("Mann, 25!").tokens
    assert tokens == ["▁Mann", ",", "▁", "2", "5", "!"]


def test_truncation_and_unknown_characters_are_told():
    tokenizer = train_bpe(LINES, 60)
    encoded = encode(tokenizer, ["Mann Ω Ж", LINES[0] * 9], 12)
    assert encoded.unknown == ["Ω", "Ж"]
    assert UNKNOWN in encoded.tokens[0].tolist()
    assert encoded.cut == 1
    assert len(encoded.tokens[1]) == 12
    assert int(encoded.tokens[1][-1]) == END
    note = losses([encoded], 12)
    assert "1 sentence cut at 12 tokens" in note
    assert "Ω Ж" in note
    exact = encode(tokenizer, ["Mann"], len(tokenizer.encode("Mann").ids) + 1)
    assert exact.cut == 0


def test_the_vocabulary_is_no_larger_than_asked_for():
    for size in (8, 20, 60):
        assert train_bpe(LINES, size).get_vocab_size() == size
    for _ in range(9):  # ties are not decided by chance
        few = train_bpe(LINES, 8)
        assert [few.id_to_token(i) for i in range(4, 8)] == ["a", "e", "n", "▁"]  # most frequent
    assert train_bpe(LINES, 10**12).to_str() == train_bpe(LINES, 1000).to_str()


def test_special_tokens_in_a_line_are_text():
    line = "ein <pad> zwei </s><s>"
    tokenizer = train_bpe([line, "<unk>"] * 2, 60)
    tokens = encode(tokenizer, [line], 100).tokens[0].tolist()
    assert tokens.index(END) == len(tokens) - 1
    assert min(tokens[:-1]) > UNKNOWN
    assert decode(tokenizer, [tokens]) == [line]


def test_unknown_spaces_are_told():
    encoded = encode(train_bpe(LINES, 60), ["Mann\u00a0ist", "Mann\tist"], 20)
    note = losses([encoded], 20)
    assert "2 characters never seen" in note
    assert "U+00A0" in note
    assert "U+0009" in note


def test_a_damaged_vocabulary(refused):
    assert "vocabulary" in refused(read_tokenizer, "{")


# ---------------------------------------------------------------------- batches


def batches(dev=None, batch_size=40, shuffle=True, count=200):
    lengths = torch.randint(1, 15, (count, 2), generator=torch.Generator().manual_seed(0))
    found = TokenBatches(
        lambda epoch: lengths, batch_size, dev or device(), shuffle, lambda epoch, part: part
    )
    return found, lengths


def test_steps_hold_about_n_tokens_and_every_example_once():
    for shuffle in (True, False):
        found, lengths = batches(shuffle=shuffle)
        steps = list(found)
        assert sorted(torch.cat(steps).tolist()) == list(range(200))
        sizes = [int(lengths[step, 0].sum()) for step in steps]
        assert max(sizes) <= 40
        assert sum(sizes) / len(sizes) > 30
        padded = sum(len(step) * int(lengths[step, 0].max()) for step in steps)
        assert padded < 1.05 * int(lengths[:, 0].sum())  # of like length
        source = sum(len(step) * int(lengths[step, 1].max()) for step in steps)
        assert source < 1.5 * int(lengths[:, 1].sum())


def test_a_long_sentence_is_a_step_of_its_own():
    lengths = torch.tensor([[3, 1], [90, 1], [4, 1]])
    found = TokenBatches(lambda e: lengths, 10, device(), False, lambda e, part: part.tolist())
    assert list(found) == [[0, 2], [1]]


def test_order_is_a_function_of_seed_and_epoch():
    def steps(seed, epoch, first=0):
        found, _ = batches(device(seed=seed))
        found.seek(epoch, first)
        return [step.tolist() for step in found]

    assert steps(0, 0) == steps(0, 0)
    assert steps(0, 0) != steps(0, 1)
    assert steps(0, 0) != steps(1, 0)
    assert len(steps(0, 0)) == len(steps(0, 1)) == len(steps(3, 5))
    assert steps(2, 1, 7) == steps(2, 1)[7:]
    assert sorted(map(sorted, steps(0, 0))) != sorted(map(sorted, steps(0, 1)))  # mixed anew


@pytest.mark.parametrize(("world", "accumulate"), [(1, 3), (2, 1), (2, 2), (8, 1)])
def test_parts_make_up_the_step(world, accumulate):
    plain = [sorted(step.tolist()) for step in batches()[0]]
    ranks = [list(batches(device(world, rank, accumulate))[0]) for rank in range(world)]
    assert {len(parts) for parts in ranks} == {len(plain) * accumulate}
    for number, step in enumerate(plain):
        rows = range(number * accumulate, (number + 1) * accumulate)
        parts = torch.cat([parts[row] for parts in ranks for row in rows])
        assert sorted(parts.tolist()) == step


# ---------------------------------------------------------------------- pairs


def test_dates_are_what_they_say():
    day = datetime.date(2015, 3, 7)
    written = {write_date(day, notation) for notation in NOTATIONS}
    assert {"7 March 2015", "Mar 7th, 2015", "3/7/2015", "07.03.2015"} <= written
    assert {"Saturday, March 7th, 2015", "7 III 2015", "20150307", "7 Mar '15"} <= written
    assert len(written) == len(NOTATIONS)
    for number, th in (
        (1, "1st"),
        (2, "2nd"),
        (3, "3rd"),
        (11, "11th"),
        (13, "13th"),
        (22, "22nd"),
    ):
        assert write_date(datetime.date(2015, 1, number), "{d}{th}") == th


def test_test_days_are_never_trained_on():
    parts = {part: date_pairs(part, 3000, 0).target for part in ("train", "val", "test")}
    for part, targets in parts.items():
        assert {part_of(datetime.date.fromisoformat(t).toordinal()) for t in targets} == {part}
    assert date_pairs("train", 50, 0, 1) == date_pairs("train", 50, 0, 1)
    assert date_pairs("train", 50, 0, 1) != date_pairs("train", 50, 0, 2)


def test_dates_are_new_in_each_epoch_and_resume(monkeypatch):
    monkeypatch.setattr(pairs, "DATES_PER_EPOCH", 300)
    train, val, test = load_pairs(flags(val=10), device())
    assert (len(train), len(val), len(test)) == (300, 10, 500)

    def texts(epoch, first=0):
        found = train.batches(240)
        found.seek(epoch, first)
        return [decode(train.tokenizer, batch.target.tolist()) for batch in found]

    zero, one = texts(0), texts(1)
    assert zero != one
    assert len(zero) == len(one) == len(train.batches(240))
    assert texts(0) == zero  # also after having looked at another epoch
    assert texts(1, 2) == one[2:]
    limited = load_pairs(flags(limit=50), device())[0]
    first = [b.target.tolist() for b in limited.batches(10_000)]
    found = limited.batches(10_000)
    found.seek(3, 0)
    assert sorted(first[0]) == sorted(next(iter(found)).target.tolist())


def test_batches_of_pairs():
    train, _, test = load_pairs(flags(limit=60), device())
    for batch in train.batches(100):
        assert (batch.target[:, 0] == START).all()
        for tokens in (batch.source, batch.target):
            real = tokens != PAD
            assert (real.int().diff(dim=1) <= 0).all()  # padding comes last
            ends = real.sum(1) - 1
            assert (tokens.gather(1, ends[:, None]) == END).all()
        assert batch.count == int((batch.target[:, 1:] != PAD).sum())
        assert batch.count <= 100
    order = torch.cat([batch.indices for batch in test.batches(200)])
    assert sorted(order.tolist()) == list(range(500))


def test_a_process_without_work():
    train = load_pairs(flags(limit=9), device(world=4, rank=3))[0]
    batch = next(b for b in train.batches(12) if not len(b.indices))
    assert batch.count == 0
    assert (batch.target[:, 1:] == PAD).all()


def write_multi30k(folder):
    Path(folder).mkdir(parents=True)
    for name, count in (("train", 30), ("val", 5), ("test_2016_flickr", 6)):
        for language, word in (("en", "dog"), ("de", "Hund")):
            text = "".join(f"{word} {i}\n" for i in range(count))
            path = Path(folder, f"{name}.{language}")
            if language == "de":
                Path(f"{path}.gz").write_bytes(gzip.compress(text.encode()))
            else:
                path.write_text(text)


@pytest.mark.parametrize("folder", ["data/multi30k", "data"])
def test_multi30k(folder, refused):
    line = refused(load_pairs, flags(data="multi30k"), device())
    assert "train.en" in line
    assert "--data dates" in line
    write_multi30k(folder)
    train, val, test = load_pairs(flags(data="multi30k", val=1000, chosen=[]), device())
    assert (len(train), len(val), len(test)) == (30, 5, 6)
    assert train.lines.source[3] == "dog 3"
    train, val, _ = load_pairs(flags(data="multi30k", direction="de-en"), device())
    assert train.lines.source[3] == "Hund 3"
    assert val is None
    assert "has a validation set of its own, of 5" in refused(
        load_pairs, flags(data="multi30k", val=3, typed=["val"]), device()
    )
    assert len(load_pairs(flags(data="multi30k", val=5, typed=["val"]), device())[1]) == 5


def test_what_each_part_of_multi30k_loses_is_said(capsys):
    write_multi30k("data")
    for name, count in (("val", 2), ("test_2016_flickr", 3)):
        with open(f"data/{name}.en", "a") as file:
            file.write("\n" * count)
        text = gzip.decompress(Path(f"data/{name}.de.gz").read_bytes()) + b"x\n" * count
        Path(f"data/{name}.de.gz").write_bytes(gzip.compress(text))
    load_pairs(flags(data="multi30k"), device())
    out = capsys.readouterr().out
    assert "2 pairs with an empty line in data/val.en" in out
    assert "3 pairs with an empty line in data/test_2016_flickr.en" in out


def test_the_users_pairs(capsys, refused, monkeypatch):
    Path("a.en").write_text("".join(f"word {i}\n" for i in range(100)))
    Path("b.de").write_text("".join(f"Wort {i}\n" for i in range(100)))
    args = flags(data="pairs:a.en,b.de", val=1000, chosen=[])
    train, val, test = load_pairs(args, device())
    assert (len(train), len(val), len(test)) == (81, 9, 10)
    assert train.facts["languages"] == ["en", "de"]
    for part in (train, val, test):
        pairs = zip(part.lines.source, part.lines.target, strict=True)
        assert all(a.split()[1] == b.split()[1] for a, b in pairs)
    seen = [line for part in (train, val, test) for line in part.lines.source]
    assert len(set(seen)) == 100
    assert "two text files" in refused(load_pairs, flags(data="pairs:a.en"), device())
    line = refused(load_pairs, flags(data="pairs:a.en,c.de"), device())
    assert "no file c.de" in line
    assert "--data dates" in line
    assert "--val 90 leaves nothing" in refused(
        load_pairs, flags(data="pairs:a.en,b.de", val=90), device()
    )
    line = refused(load_pairs, flags(data="pairs:a.en,b.de", max_length=10**9), device())
    assert "--max-length 1000000000: a sentence has at most 10,000" in line
    monkeypatch.setattr("common.data.pairs.MOST_TEST", 4)
    assert len(load_pairs(flags(data="pairs:a.en,b.de"), device())[2]) == 4
    Path("one").write_text("x\n")
    assert "can't be split" in refused(load_pairs, flags(data="pairs:one,one"), device())


def test_what_is_lost_is_said(capsys):
    lines = [f"word {'x ' * (40 if i == 3 else 1)}" for i in range(50)]
    Path("a").write_text("\n".join(lines) + "\n\n")
    Path("b").write_text("\n".join(lines) + "\nq\n")
    load_pairs(flags(data="pairs:a,b", max_length=20), device())
    out = capsys.readouterr().out
    assert "2 sentences cut at 20 tokens" in out
    assert "1 pair with an empty line" in out
    assert "a seeded 10% of all pairs" in out
    load_pairs(flags(data="pairs:a,b", max_length=80, limit=1), device())
    assert ": 1 train, 5 test pairs" in capsys.readouterr().out
