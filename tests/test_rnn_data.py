"""The recurrent networks' data: labelled sentences, recordings, time series, and bad input."""

import datetime
import struct
import warnings
import wave
from pathlib import Path

import numpy as np
import pytest
import torch
from processes import device_args

from common.cli import Flags
from common.data.classes import split_by
from common.data.tables import read_table
from common.device import Device
from rnn import sample, sentences, series, sound, speech, train
from rnn.batches import LikeLengths, Sequences
from rnn.times import read_series


def flags(data, **changes):
    known = dict(data_dir="data", val=0, limit=None, seed=0)
    known |= dict(units="words", vocab_size=1000, max_length=400)
    known |= dict(text_column=None, label_column=None)
    known |= dict(sample_rate=None, mels=20, max_seconds=10.0, freq_mask=8, time_mask=10)
    known |= dict(target=None, inputs="target", window=8, horizon=4, time_column=None)
    known |= dict(season=None, relative=True, segment=1)
    names = [name for name in changes if name != "stored"]
    values = {**known, "stored": {}, "data": data, **changes}
    return Flags(**values, typed=names, chosen=["window", "horizon", *names])


def load(module, data, loud=False, **changes):
    """The three parts; of series with their validation set, as a recipe would ask for it."""
    if module is series:
        wanted = flags(data, **changes)
        wanted = wanted if "val" in changes else wanted.but(val=100)
        return module.load(wanted, Device(device_args(quiet=not loud)))
    return module.load(flags(data, **changes), Device(device_args(quiet=not loud)))


def put(path, content):
    """Writes a file, text or bytes, and the folders above it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def table(path, rows, delimiter=","):
    return put(path, "".join(delimiter.join(map(str, row)) + "\n" for row in rows))


# ---------------------------------------------------------------------- batches


def sequences(sizes, features=0, dev=None, augment=None):
    """Sequences that hold their own number, at each step."""
    shape = (features,) if features else ()
    values = [torch.full((size, *shape), i + 1) for i, size in enumerate(sizes)]
    dev = dev or Device(device_args())
    return Sequences("train", values, torch.arange(len(sizes)), [], {}, dev, augment)


def test_padding():
    made = sequences([3, 1, 2], features=2)
    inputs, lengths, targets = made.examples(torch.tensor([2, 0]))
    assert lengths.tolist() == [2, 3]
    assert targets.tolist() == [2, 0]
    assert inputs[:, :, 1].tolist() == [[3, 3, 0], [1, 1, 1]]


def test_only_training_is_augmented():
    made = sequences([3, 1, 2], augment=lambda inputs, _lengths, _draw: inputs + 10)
    for train_it in (True, False):
        values = torch.cat([x.flatten() for x, _, _ in made.batches(1, train=train_it)])
        assert (values.max() > 10) == train_it


def test_batches_are_a_function_of_seed_and_epoch():
    sizes = [1 + i * 7 % 40 for i in range(203)]
    made = sequences(sizes)
    batches = made.batches(8, train=True)
    assert len(batches) == 25  # a short last step is dropped
    batches.seek(3, 0)
    first = [targets.tolist() for _, _, targets in batches]
    assert len({i for some in first for i in some}) == 200
    batches.seek(3, 20)
    assert [targets.tolist() for _, _, targets in batches] == first[20:]
    batches.seek(4, 0)
    assert [targets.tolist() for _, _, targets in batches] != first
    spread = [max(sizes[i] for i in some) - min(sizes[i] for i in some) for some in first]
    assert max(spread) < 10  # of like length
    assert sorted(first) != first  # steps are shuffled
    whole = [targets.tolist() for _, _, targets in made.batches(8)]
    assert sorted(i for some in whole for i in some) == list(range(203))


def test_processes_and_micro_batches_share_a_step():
    sizes = [1 + i * 7 % 40 for i in range(100)]

    def parts(rank, world, accumulate, train=True):
        dev = Device(device_args(accumulate=accumulate))
        dev.rank, dev.world = rank, world
        made = sequences(sizes, dev=dev, augment=lambda x, _, draw: x + draw.uniform(0, 1, 1))
        return [(inputs[:, 0], targets) for inputs, _, targets in made.batches(12, train)]

    one = parts(0, 1, 1)
    many = [parts(rank, 2, 3) for rank in (0, 1)]
    assert len(one) == 8
    for step, (inputs, targets) in enumerate(one):
        cut = [many[number % 2][3 * step + number // 2] for number in range(6)]
        assert torch.equal(torch.cat([t for _, t in cut]), targets)
        assert torch.equal(torch.cat([x for x, _ in cut]), inputs)  # random numbers, too
    shares = [parts(rank, 2, 1, train=False) for rank in (0, 1)]
    assert len(shares[0]) == len(shares[1])
    seen = [i for share in shares for _, targets in share for i in targets.tolist()]
    assert sorted(seen) == list(range(100))


def test_batch_sizes_that_do_not_fit(refused):
    dev = Device(device_args(accumulate=4))
    lengths = torch.ones(9, dtype=torch.long)
    line = refused(LikeLengths, lengths, 6, dev, True, None)
    assert "--batch-size 6 can't be cut into 1 process x 4 micro-batches" in line
    assert len(LikeLengths(lengths, 400, dev, True, None)) == 1


def test_what_has_one_key_is_in_one_part():
    keys = [i % 10 for i in range(100)]
    rest, held = split_by(keys)
    assert len(held) == 20
    assert not {keys[i] for i in rest.tolist()} & {keys[i] for i in held.tolist()}
    assert sorted([*rest.tolist(), *held.tolist()]) == list(range(100))


# ---------------------------------------------------------------------- sentences

REVIEWS = [
    ("good film", "yes"),
    ("bad film", "no"),
    ("good and very good", "yes"),
    ("so bad", "no"),
]


def some(count=40):
    return [(f"{REVIEWS[i % 4][0]} {i}", REVIEWS[i % 4][1]) for i in range(count)]


def test_names(capsys):
    put("data/names/female.txt", "".join(f"Anna{c}\n" for c in "abcdefghij") + "Kim\nÉva\n")
    put("data/names/male.txt", "".join(f"Otto{c}\n" for c in "abcdefghij") + "Kim\n")
    train, val, test = load(sentences, "names", units="characters", loud=True)
    assert train.facts["classes"] == ["female", "male"]
    assert val is None
    assert len(train) + len(test) == 23
    assert not set(train.names) & set(test.names)  # Kim stands in both files
    assert train.lengths.max() == 5
    assert "2 classes (female, male)" in capsys.readouterr().out
    tokens, lengths, words = sentences.encode(["ANNA", "anna"], train.facts)
    assert torch.equal(tokens[0], tokens[1])
    assert lengths.tolist() == [4, 4]
    assert words[0] == list("ANNA")


def write_sst2(folder="data/SST2"):
    for part, count in (("train", 40), ("dev", 8), ("test", 12)):
        rows = [(text, int(label == "yes")) for text, label in some(60)[-count:]]
        table(f"{folder}/{part}.tsv", rows, "\t")


def test_sst2(refused):
    write_sst2()
    train, val, test = load(sentences, "sst2", val=8)
    assert [len(part) for part in (train, val, test)] == [40, 8, 12]
    assert train.facts["classes"] == ["negative", "positive"]
    assert load(sentences, "sst2")[1] is None
    assert len(load(sentences, "sst2", data_dir="data/SST2")[0]) == 40  # the folder itself
    Path("data/SST2/dev.tsv").unlink()
    line = refused(lambda: load(sentences, "sst2"))
    assert "dev.tsv is not in data/SST2" in line
    assert "--data-dir" in line
    assert "--data pydocs" in line


def test_ag_news(capsys, refused):
    rows = [f'"{i % 4 + 1}","Title {i}","It #39;s a\\line &lt;b&gt; no {i}"' for i in range(40)]
    put("data/ag_news/test.csv", "\n".join(rows))
    train, _, test = load(sentences, "ag-news", loud=True)
    assert (len(train), len(test)) == (32, 8)
    assert "the official test set alone is there" in capsys.readouterr().out
    assert train.names[0].startswith("Title 0 It's a line")
    assert train.facts["classes"] == ["Business", "Sci/Tech", "Sports", "World"]
    put("data/ag_news/train.csv", "\n".join(rows * 2))
    train, _, test = load(sentences, "ag-news")
    assert (len(train), len(test)) == (80, 40)
    put("data/ag_news/train.csv", '"5","Title","Text"\n')
    assert "train.csv: line 1: wanted are class (1 to 4)" in refused(
        lambda: load(sentences, "ag-news")
    )


def test_equal_messages_are_in_one_part(refused):
    lines = [f'{"spam" if i % 3 else "ham"}\tmessage "{i % 25} of' for i in range(200)]
    put("data/sms_spam/SMSSpamCollection", "\n".join(lines))
    train, val, test = load(sentences, "sms-spam", val=10)
    texts = [set(part.names) for part in (train, val, test) if part]
    assert len(train) + len(val) + len(test) == 190 + len(val)
    assert not texts[0] & texts[2]
    assert len(test.names) > len(texts[2])
    put("data/sms_spam/SMSSpamCollection", "ham\tone\nother\ttwo\n")
    assert "line 2 begins with neither ham nor spam" in refused(lambda: load(sentences, "sms-spam"))
    Path("data/sms_spam/SMSSpamCollection").unlink()
    assert "SMSSpamCollection.tsv is not in data/sms_spam" in refused(
        lambda: load(sentences, "sms-spam")
    )


def test_validation_holds_no_sentence_of_training(capsys):
    table("mine.csv", [("text", "label"), *some(60), *some(20)])
    train, val, test = load(sentences, "sentences:mine.csv", val=20, loud=True)
    texts = [set(part.names) for part in (train, val, test)]
    assert not (texts[0] & texts[1] or texts[0] & texts[2])
    assert 10 < len(val) < 20
    gone = f"{20 - len(val)} sentences that training holds, too, left out of validation"
    assert gone in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "header", "delimiter", "turned", "how"),
    [
        ("a.csv", ("text", "label"), ",", False, {}),
        ("a.csv", ("Label", "Sentence"), ",", True, {}),
        ("a.csv", None, ";", False, {}),
        ("a.csv", None, "|", True, {}),
        ("a.tsv", ("sentence", "label"), "\t", False, {}),
        ("a.tsv", None, "\t", True, {}),
        ("a.csv", ("words", "mood"), ",", False, {}),
        ("a.csv", ("words", "mood"), ",", False, dict(text_column="Words", label_column="mood")),
        ("a.csv", None, ",", True, dict(text_column="2", label_column="1")),
    ],
)
def test_tables_of_ones_own(name, header, delimiter, turned, how, capsys):
    rows = [(label, text) if turned else (text, label) for text, label in some(40)]
    rows = [tuple(cell.replace(",", "") for cell in row) for row in rows]
    table(name, [header, *rows] if header else rows, delimiter)
    train, _, test = load(sentences, f"sentences:{name}", loud=True, **how)
    assert train.facts["classes"] == ["no", "yes"]
    assert (len(train), len(test)) == (32, 8)
    taken = "the first line of a.csv is taken for a header" in capsys.readouterr().out
    assert taken == (header == ("words", "mood") and not how)
    both = dict(zip([*train.names, *test.names], [*train.targets, *test.targets], strict=True))
    assert both["good film 0"] == 1
    assert both["bad film 1"] == 0


def test_csv_as_programs_write_it(capsys):
    """A mark of byte order, quoted texts with commas, quotes and line ends, empty cells."""
    rows = [f'{i},"Good, ""very"" good {i},\nand long",yes' for i in range(9)]
    rows += [f"{i},it\u2019s bad {i},no" for i in range(9)] + ["77,,no", "78,none,"]
    put("mine.csv", b"\xef\xbb\xbf" + ("id,review,sentiment\r\n" + "\r\n".join(rows)).encode())
    train, _, test = load(sentences, "sentences:mine.csv", loud=True)
    assert len(train) + len(test) == 18
    assert "2 rows of mine.csv without text or label left out" in capsys.readouterr().out
    everything = [*train.names, *test.names]
    assert 'Good, "very" good 0,\nand long' in everything


def test_folders_of_ones_own(capsys, refused):
    for part in ("train", "test"):
        for label in ("neg", "pos"):
            for i in range(5):
                put(f"films/{part}/{label}/{i}.txt", f"{label} {part}\n\nfilm {i}\n")
    train, _, test = load(sentences, "sentences:films")
    assert (len(train), len(test)) == (10, 10)
    assert train.names[0] == "neg train film 0"
    train, _, test = load(sentences, "sentences:films/train", loud=True)
    assert (len(train), len(test)) == (8, 2)
    assert "a seeded fifth is it" in capsys.readouterr().out
    put("names/a.txt", "anna\nada\neva\n")
    put("names/b.txt", "otto\ntim\n")
    train, _, test = load(sentences, "sentences:names", units="characters")
    assert len(train) + len(test) == 5
    assert train.facts["classes"] == ["a", "b"]
    write_sst2("tables")
    train, val, test = load(sentences, "sentences:tables", val=8)
    assert [len(part) for part in (train, val, test)] == [40, 8, 12]
    Path("tables/test.tsv").unlink()
    assert len(load(sentences, "sentences:tables", loud=True)[2]) == 8
    assert "there is no test set, so the validation set is it" in capsys.readouterr().out
    put("films/test/new/0.txt", "what")
    line = refused(lambda: load(sentences, "sentences:films"))
    assert "the test set has the class 'new', which the training set has not" in line
    Path("films/test/new/0.txt").unlink()
    put("films/train/neg/9.txt", " \n")
    assert len(load(sentences, "sentences:films", loud=True)[0]) == 10
    told = "1 empty file left out, the first films/train/neg/9.txt"
    assert told in capsys.readouterr().out
    put("names/b.txt", "")
    assert load(sentences, "sentences:names")[0].facts["classes"] == ["a"]
    put("names/a.txt", "")
    assert "holds no table" in refused(lambda: load(sentences, "sentences:names"))


@pytest.mark.parametrize("word", ["message", "question", "y"])
def test_a_class_called_as_a_header_is_none(word, capsys):
    """Without a header, the first row's class may be a word that headers have."""
    rows = [(f"say {i}", word if i % 2 == 0 else "other") for i in range(20)]
    table("mine.tsv", rows, "\t")
    train, _, test = load(sentences, "sentences:mine.tsv", loud=True)
    assert sorted([word, "other"]) == train.facts["classes"]
    assert sorted([*train.names, *test.names]) == sorted(text for text, _ in rows)
    table("mine.tsv", [("review", "label"), *rows, ("review", "other")], "\t")
    assert len(load(sentences, "sentences:mine.tsv")[0]) == 17  # of 21: that is a header
    table("mine.tsv", [(label, text) for text, label in rows], "\t")
    train = load(sentences, "sentences:mine.tsv")[0]
    assert sorted([word, "other"]) == train.facts["classes"]


def test_tabs_at_the_ends_of_lines(refused):
    put("a.tsv", "text\tlabel\n\tx\nb\t\nc\tx\n")
    assert read_table(Path("a.tsv")).rows[1:] == [["", "x"], ["b", ""], ["c", "x"]]
    put("b.tsv", "text\tlabel\na\tx\t\t\nb\ty\t\n")
    assert read_table(Path("b.tsv")).rows == [["text", "label"], ["a", "x"], ["b", "y"]]
    put("c.tsv", "text\tlabel\nb\n")
    assert "line 2 has 1 cell, not the 2 of line 1" in refused(read_table, Path("c.tsv"))
    for empty in ("", "\t\t\n", ",,\n"):
        line = refused(read_table, put("d.csv", empty))
        assert "d.csv is empty: it needs rows of cells" in line


BAD_TABLES = {
    "empty": (b"", "mine.csv is empty"),
    "blank": (b"\n \n", "mine.csv is empty"),
    "latin": ("text,label\ngood,yes\ncafé,no\n".encode("latin-1"), "line 3 is not UTF-8 text"),
    "utf-16": ("text,label\ngood,yes\n".encode("utf-16"), "is UTF-16, not UTF-8"),
    "zero bytes": (b"text,label\ngo\0od,yes\n", "zero bytes"),
    "wide": (b"text,label\ngood,yes\nso, so,no\n", "line 3 has 3 cells, not the 2 of line 1"),
    "quote": (b'text,label\n"good,yes\nbad,no\n', "mine.csv: line 3 is not CSV"),
    "narrow": (b"text\ngood\nbad\n", "has 1 column"),
    "unnamed": (b"a,b,c\ngood,1,yes\nbad,2,no\n", "--text-column and --label-column"),
    "header": (b"text,label\n", "has no row with text and label"),
    "one": (b"text,label\ngood,yes\n", "holds 1 different example: that can't be split"),
    "same": (b"text,label\ngood,yes\nGood,yes\n", "holds 1 different example: that can't be split"),
    "numbers": (
        b"text,label\n" + b"".join(b"t%d,%d\n" % (i, i) for i in range(9)),
        "9 different labels of 9 sentences are no classes",
    ),
}


@pytest.mark.parametrize("name", BAD_TABLES)
def test_bad_tables(name, refused):
    content, reason = BAD_TABLES[name]
    put("mine.csv", content)
    assert reason in refused(lambda: load(sentences, "sentences:mine.csv"))


def test_what_else_is_refused_of_sentences(refused):
    table("mine.csv", [("review", "mood", "label"), *((f"a {i}", i % 2, i % 3) for i in range(9))])
    line = refused(lambda: load(sentences, "sentences:mine.csv", label_column="mod"))
    assert "--label-column mod: mine.csv has no such column; did you mean mood?" in line
    line = refused(lambda: load(sentences, "sentences:mine.csv", text_column="4"))
    assert "--text-column 4: mine.csv has no such column; there are review, mood, label" in line
    assert "no such file or folder" in refused(lambda: load(sentences, "sentences:nowhere"))
    Path("void/train/x").mkdir(parents=True)
    assert "holds no table" in refused(lambda: load(sentences, "sentences:void"))
    table("two/one.csv", some())
    table("two/other.csv", some())
    assert "none is train.tsv or train.csv" in refused(lambda: load(sentences, "sentences:two"))
    table("two/train.csv", some())
    table("two/training.tsv", some(), "\t")
    assert "are both the train set" in refused(lambda: load(sentences, "sentences:two"))


def test_the_vocabulary_is_of_training_alone():
    rows = [(f"word{i % 6} common.", i % 2) for i in range(60)]
    table("set/train.csv", rows)
    table("set/test.csv", [("strange strange common", 0), ("<pad> <unk>", 1)])
    train, _, test = load(sentences, "sentences:set")
    assert train.facts["vocab_size"] == 2 + 8  # word0 to word5, common and the full stop
    assert len(test) == 2
    inputs, lengths, _ = test.examples(torch.tensor([0, 1]))
    assert (inputs[0][:2] == sentences.UNKNOWN).all()
    assert inputs[0, 2] > sentences.UNKNOWN
    assert lengths.tolist() == [3, 6]  # "<", "pad", ">": text as any other
    assert (inputs[1] != sentences.PAD).all()
    few = load(sentences, "sentences:set", vocab_size=4)[0]
    assert few.facts["vocab_size"] == 4
    cut = load(sentences, "sentences:set", max_length=2)[1:]
    assert cut[1].lengths.tolist() == [2, 2]


def test_a_checkpoint_keeps_vocabulary_and_classes(refused):
    table("mine.csv", [("text", "label"), *some(40)])
    facts = load(sentences, "sentences:mine.csv")[0].facts
    table("other.csv", [("text", "label"), *((f"new {i}", "yes") for i in range(20))])
    other = load(sentences, "sentences:other.csv", stored={"dataset": facts})[0]
    assert other.facts["tokenizer"] == facts["tokenizer"]
    assert other.facts["classes"] == ["no", "yes"]
    assert set(other.targets.tolist()) == {1}
    table("third.csv", [("text", "label"), *((f"new {i}", "maybe") for i in range(20))])
    line = refused(lambda: load(sentences, "sentences:third.csv", stored={"dataset": facts}))
    assert "has the class 'maybe', which the checkpoint's network doesn't know" in line


def test_what_a_network_does_not_see_of_a_sentence():
    texts = ["it is a good film", "it is a bad film"] * 3
    facts = {"tokenizer": sentences.train_vocabulary(texts, "words", 100), "max_length": 4}
    facts["units"] = "words"
    assert sentences.remarks(["A good film", "it is bad"], facts) == []
    assert sentences.remarks(["a fine fine film", "it is a bad dreadful film"], facts) == [
        "sentence 1: not in the vocabulary: fine",
        "sentence 2: cut at 4 of 6 words",
    ]


def test_sentences_of_ones_own(refused):
    texts = ["i did n't like it", "it 's good", "it was bad ."] * 3
    facts = {"tokenizer": sentences.train_vocabulary(texts, "words", 100), "max_length": 6}
    tokens, lengths, words = sentences.encode(["I didn\u2019t like it.", "It's GOOD"], facts)
    assert words == [["I", "did", "n\u2019t", "like", "it", "."], ["It", "'s", "GOOD"]]
    assert lengths.tolist() == [6, 3]
    assert tokens[1, 3:].tolist() == [sentences.PAD] * 3
    assert (tokens[0] > sentences.UNKNOWN).all()
    assert sentences.encode(["it " * 50], facts)[1].tolist() == [6]
    assert "sentence 2 is empty" in refused(sentences.encode, ["a", "  "], facts)
    assert "sentence 1 is not UTF-8" in refused(sentences.encode, ["caf\udce9"], facts)


# ---------------------------------------------------------------------- recordings


def tone(rate=8000, seconds=0.3, pitch=440.0):
    return 0.5 * torch.sin(2 * torch.pi * pitch * torch.arange(int(rate * seconds)) / rate)


def write_wav(path, samples, rate=8000, bits=16, channels=1):
    """A file of whole numbers, by the standard library."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    numbers = (samples.double() * 2 ** (bits - 1)).round().long()
    numbers = numbers.clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    numbers = numbers + 128 if bits == 8 else numbers
    raw = b"".join(int(n).to_bytes(bits // 8, "little", signed=bits > 8) for n in numbers)
    with wave.open(str(path), "wb") as file:
        file.setparams((channels, bits // 8, rate, 0, "NONE", ""))
        file.writeframes(raw)
    return Path(path)


def write_float(path, samples, rate=8000, kind="<f4", extensible=False):
    """A file of floats; or what an extended header says to be floats."""
    data = samples.numpy().astype(kind).tobytes()
    size = int(kind[-1])
    head = struct.pack("<HHIIHH", 3, 1, rate, rate * size, size, 8 * size)
    if extensible:
        guid = struct.pack("<H", 3) + bytes.fromhex("000000001000800000aa00389b71")
        head = struct.pack("<H", 0xFFFE) + head[2:] + struct.pack("<HHI", 22, 8 * size, 4) + guid
    chunks = b"fmt " + struct.pack("<I", len(head)) + head
    chunks += b"LIST" + struct.pack("<I", 4) + b"INFO"  # a chunk that nobody needs
    chunks += b"data" + struct.pack("<I", len(data)) + data
    return put(path, b"RIFF" + struct.pack("<I", len(chunks) + 4) + b"WAVE" + chunks)


@pytest.mark.parametrize("bits", [8, 16, 24, 32])
def test_whole_numbers(bits):
    samples, rate = sound.read_wav(write_wav("a.wav", tone(), bits=bits))
    assert rate == 8000
    torch.testing.assert_close(samples, tone(), rtol=0, atol=2.0 ** (1 - min(bits, 24)))
    assert samples.dtype == torch.float32


def test_floats_and_stereo():
    for kind, extended in (("<f4", False), ("<f8", False), ("<f4", True)):
        samples, _ = sound.read_wav(write_float("a.wav", tone(), kind=kind, extensible=extended))
        torch.testing.assert_close(samples, tone())
    sides = torch.stack([tone(), -tone() / 2], 1).flatten()
    samples, _ = sound.read_wav(write_wav("b.wav", sides, channels=2, bits=24))
    torch.testing.assert_close(samples, tone() / 4, rtol=0, atol=1e-6)
    raw = bytearray(write_wav("c.wav", tone()).read_bytes())
    raw[4:8] = raw[40:44] = b"\xff" * 4  # written into a pipe, where nobody knew the length
    assert len(sound.read_wav(put("d.wav", bytes(raw)))[0]) == len(tone())


def test_loud_floats_are_brought_to_one():
    plain = sound.log_mel(tone(), 8000, FACTS)
    for peak, kind in ((1e30, "<f4"), (1e300, "<f8")):
        samples, _ = sound.read_wav(write_float("a.wav", tone().double() * peak, kind=kind))
        assert samples.abs().max() == 1
        torch.testing.assert_close(sound.log_mel(samples, 8000, FACTS), plain, rtol=0, atol=0.01)


def test_what_a_network_does_not_hear_of_a_recording():
    write_wav("silent.wav", torch.zeros(800))
    assert speech.read_recording("silent.wav", FACTS)[1] == ["silent.wav is silent"]
    long = FACTS | {"max_seconds": 0.2}
    notes = speech.read_recording(write_wav("a.wav", tone()), long)[1]
    assert notes == ["a.wav: cut at 0.2 of 0.3 seconds"]
    assert speech.read_recording("a.wav", FACTS)[1] == []


def bad_wav(name):
    good = write_wav("good.wav", tone()).read_bytes()
    return {
        "text": (b"this is a text and not a recording", "not a WAV file that can be read"),
        "nothing": (b"", "not a WAV file that can be read"),
        "a head": (good[:30], "not a WAV file that can be read"),
        "short": (good[:1001], "is cut short: it has 1001 of 4844 bytes"),
        "no frames": (
            good[:4] + struct.pack("<I", 36) + good[8:40] + bytes(4),
            "holds no sound: 0 samples",
        ),
        "mu-law": (good[:20] + b"\7\0" + good[22:], "MULAW"),
        "no rate": (good[:24] + bytes(8) + good[32:], "holds no sound"),
        "no channel": (good[:22] + bytes(2) + good[24:], "not a WAV file that can be read"),
        "no size": (good[:4] + bytes(4) + good[8:], "not a WAV file that can be read"),
        "nan": (
            write_float("n.wav", torch.tensor([0.0, torch.nan])).read_bytes(),
            "holds samples that are not finite numbers",
        ),
    }[name]


@pytest.mark.parametrize(
    "name",
    [
        "text",
        "nothing",
        "a head",
        "short",
        "no frames",
        "mu-law",
        "no rate",
        "no channel",
        "nan",
        "no size",
    ],
)
def test_bad_recordings(name, refused):
    content, reason = bad_wav(name)
    line = refused(sound.read_wav, put("bad.wav", content))
    assert reason in line
    assert "bad.wav" in line
    assert not any(leak in line for leak in ("variable", "modulo", "buffer", "b'"))


def test_a_missing_recording(refused):
    assert "can't read none.wav: No such file" in refused(sound.read_wav, Path("none.wav"))


FACTS = dict(sample_rate=8000, mels=20, max_seconds=10.0, mean=[0.0] * 20, std=[1.0] * 20)


def test_features():
    features = sound.log_mel(tone(), 8000, FACTS)
    assert features.shape == (31, 20)  # every 10 ms
    peaks = [
        sound.log_mel(tone(pitch=pitch), 8000, FACTS).mean(0).argmax().item()
        for pitch in (200, 440, 1000, 3000)
    ]
    assert peaks == sorted(set(peaks))  # a higher tone is in a higher band
    softer = sound.log_mel(tone() / 50, 8000, FACTS)
    torch.testing.assert_close(softer, features, rtol=0, atol=0.01)  # loudness doesn't matter
    assert not sound.log_mel(torch.zeros(800), 8000, FACTS).any()  # silence
    for count in (1, 2, 100):  # shorter than a window
        short = sound.log_mel(torch.ones(count), 8000, FACTS)
        assert short.isfinite().all()
        assert len(short) >= 1
    assert len(sound.log_mel(torch.rand(80_000 * 3), 8000, FACTS)) == 1001  # of 30 s the first 10


@pytest.mark.parametrize("rate", [4000, 11025, 16000, 44100, 44101, 48000])
def test_rates(rate):
    features = sound.log_mel(tone(rate), rate, FACTS)
    wanted = sound.log_mel(tone(8000), 8000, FACTS)
    assert abs(len(features) - len(wanted)) <= 1
    assert features.mean(0).argmax() == wanted.mean(0).argmax()


def write_fsdd(folder="data/fsdd/recordings", digits=10, rate=8000):
    for digit in range(digits):
        for speaker in ("anna", "otto"):
            for index in range(3, 8):
                sound = tone(rate, 0.1 + 0.01 * index, 200 + 100 * digit)
                write_wav(f"{folder}/{digit}_{speaker}_{index}.wav", sound, rate)


def test_fsdd(capsys, refused):
    write_fsdd()
    train, val, test = load(speech, "fsdd", val=10, loud=True)
    assert [len(part) for part in (train, val, test)] == [50, 10, 40]
    assert all(Path(name).stem[-1] in "34" for name in test.names)
    assert train.facts["sample_rate"] == 8000
    out = capsys.readouterr().out
    assert "2 speakers, who are in both parts" in out
    inputs, lengths, targets = train.examples(torch.arange(50))
    assert inputs.shape[2] == 20
    flat = torch.cat([x[:n] for x, n in zip(inputs, lengths, strict=True)])
    torch.testing.assert_close(flat.mean(0), torch.zeros(20), rtol=0, atol=1e-4)
    assert [int(Path(train.names[i]).name[0]) for i in range(50)] == targets.tolist()
    place = 7
    torch.testing.assert_close(
        speech.read_recording(test.names[place], test.facts)[0],
        test.examples(torch.tensor([place]))[0][0],
    )
    again = load(speech, "fsdd", stored={"dataset": train.facts}, mels=30)[0]
    assert again.facts == train.facts
    line = refused(lambda: load(speech, "fsdd", data_dir="nowhere"))
    assert "fsdd/recordings is not in nowhere" in line
    assert "--data pydocs" in line
    Path("empty/fsdd/recordings").mkdir(parents=True)
    assert "holds no recordings" in refused(lambda: load(speech, "fsdd", data_dir="empty"))


def test_speech_commands_by_speaker(capsys, refused):
    root = Path("data/speech_commands_part")
    for word in ("yes", "no"):
        for speaker in range(20):
            write_wav(root / word / f"{speaker:08x}_nohash_0.wav", tone(16000, 0.1), 16000)
    write_wav(root / "_background_noise_" / "rain.wav", tone())
    train, val, test = load(speech, "speech-commands", val=8, loud=True)
    assert [len(part) for part in (train, val, test)] == [24, 8, 8]
    people = [{Path(name).name for name in part.names} for part in (train, val, test)]
    assert not (people[0] & people[1] or people[0] & people[2] or people[1] & people[2])
    assert train.facts["classes"] == ["no", "yes"]
    assert "20 speakers, each of them in one part" in capsys.readouterr().out
    put(root / "validation_list.txt", "yes/00000001_nohash_0.wav\n")
    put(root / "testing_list.txt", "yes/00000002_nohash_0.wav\nno/00000002_nohash_0.wav\n")
    train, val, test = load(speech, "speech-commands", val=1)
    assert [len(part) for part in (train, val, test)] == [37, 1, 2]
    put(root / "testing_list.txt", "")
    assert "no recordings of the test set" in refused(lambda: load(speech, "speech-commands"))


def test_wav_folders(capsys, refused):
    for word, pitch in (("high", 2000), ("low", 300)):
        for i in range(6):
            write_wav(f"mine/{word}/{i}.WAV", tone(pitch=pitch))
    put("mine/low/other.mp3", b"ID3")
    write_wav("mine/low/silent.wav", torch.zeros(2000))
    write_wav("mine/low/fast.wav", tone(44100), 44100)
    train, _, test = load(speech, "wav:mine", loud=True)
    assert len(train) + len(test) == 14
    out = capsys.readouterr().out
    assert "1 file of other sound left out" in out
    assert "recordings brought to 8,000 Hz: 1 of 44,100 Hz" in out
    assert "1 recording silent, the first mine/low/silent.wav" in out
    for part in (train, test):
        for inputs, _, _ in part.batches(4, train=part is train):
            assert inputs.isfinite().all()
    assert load(speech, "wav:mine", sample_rate=16000)[0].facts["sample_rate"] == 16000
    write_wav("parts/train/a/0.wav", tone())
    write_wav("parts/test/b/0.wav", tone())
    line = refused(lambda: load(speech, "wav:parts"))
    assert "test/ has the class 'b', which train/ has not" in line
    assert "there is no such folder" in refused(lambda: load(speech, "wav:nowhere"))
    put("other/a/0.mp3", b"ID3")
    line = refused(lambda: load(speech, "wav:other"))
    assert "holds no folder of WAV files for each class (1 file of other sound" in line
    Path("mine/none").mkdir()
    assert "mine/none holds no WAV files" in refused(lambda: load(speech, "wav:mine"))
    put("mine/none/0.wav", b"no sound")
    assert "mine/none/0.wav is not a WAV file" in refused(lambda: load(speech, "wav:mine"))
    line = refused(lambda: load(speech, "wav:parts/train", mels=500))
    assert "that can't be split" in line


def test_silence_alone_is_no_nan():
    for word in ("a", "b"):
        for i in range(5):
            write_wav(f"mine/{word}/{i}.wav", torch.zeros(900))
    train = load(speech, "wav:mine")[0]
    assert all(inputs.isfinite().all() for inputs, _, _ in train.batches(4, train=True))


def test_too_many_bands(refused):
    line = refused(lambda: sound.log_mel(tone(), 8000, FACTS | {"mels": 500}))
    assert "--mels 500: at 8,000 samples a second there are 64 at most" in line


def test_masks():
    """Of training alone, in bands and moments of the recording, by (seed, epoch, step)."""
    write_fsdd()
    train = load(speech, "fsdd", freq_mask=4, time_mask=5)[0]
    lengths = train.lengths
    whole = {int(t): x for x, _, t in (train.examples(torch.tensor([i])) for i in range(60))}
    assert all((x != 0).float().mean() > 0.99 for x in whole.values())
    batches = train.batches(12, train=True)
    seen = [inputs for inputs, _, _ in batches]
    assert all(torch.equal(a, b) for a, (b, _, _) in zip(seen, batches, strict=True))
    batches.seek(1, 0)
    assert any(not torch.equal(a, b) for a, (b, _, _) in zip(seen, batches, strict=False))
    batches.seek(0, 2)
    assert torch.equal(next(iter(batches))[0], seen[2])  # a resumed run
    bands, moments = set(), set()
    for epoch in range(6):
        batches.seek(epoch, 0)
        for inputs, sizes, _ in batches:
            for x, n in zip(inputs, sizes.tolist(), strict=True):
                covered = x[:n] == 0
                bands.add(int(covered.all(0).sum()))
                moments.add(int(covered.all(1).sum()))
                assert int(covered.all(1).sum()) <= 2 * int(0.2 * n + 1e-6)
    assert max(bands) > 4  # two masks of up to 4 each
    assert max(bands) <= 8
    assert 0 in bands and 0 in moments
    assert max(moments) > 3
    none = load(speech, "fsdd", freq_mask=0, time_mask=0)[0]
    inputs, sizes, _ = next(iter(none.batches(60, train=True)))
    assert len(lengths) == 60
    assert all((x[:n] != 0).float().mean() > 0.99 for x, n in zip(inputs, sizes, strict=True))


# ---------------------------------------------------------------------- series


def hours(count, begin="2020-01-01 00:00"):
    first = datetime.datetime.fromisoformat(begin)
    return [str(first + datetime.timedelta(hours=i)) for i in range(count)]


def daily_wave(count=600):
    return [round(float(10 + 5 * np.sin(2 * np.pi * i / 24) + 0.01 * i), 4) for i in range(count)]


def write_hours(path="a.csv", count=600, values=None):
    return table(
        path, [("date", "load"), *zip(hours(count), values or daily_wave(count), strict=True)]
    )


def test_windows(capsys, refused):
    values = daily_wave(100)
    write_hours(count=100, values=values)
    train, val, test = load(series, "series:a.csv", loud=True)
    assert "100 steps of 1 hour, season 24" in capsys.readouterr().out
    assert [len(part) for part in (train, val, test)] == [70 - 12 + 1, 10 - 4 + 1, 20 - 4 + 1]
    assert train.starts.tolist() == list(range(8, 67))
    assert val.starts[0] == 70  # its window reaches back, what is ahead of it doesn't
    assert int(val.starts[-1]) + 4 == 80 == int(test.starts[0])
    assert int(test.starts[-1]) + 4 == 100
    mean, std = np.mean(values[:70]), np.std(values[:70])
    assert train.facts["mean"] == pytest.approx([mean])
    assert train.facts["std"] == pytest.approx([std])
    past, lengths, ahead = test.examples(torch.tensor([0, 3]))
    assert past.shape == (2, 8, 1)
    assert ahead.shape == (2, 4, 1)
    assert lengths.tolist() == [8, 8]
    scaled = (torch.tensor(values) - mean) / std
    torch.testing.assert_close(past[1, :, 0], (scaled[75:83] - scaled[82]).float())
    torch.testing.assert_close(ahead[1, :, 0], (scaled[83:87] - scaled[82]).float())
    times, before, truth = test.in_units(3)
    assert times == [t[:16] for t in hours(100)[75:87]]
    torch.testing.assert_close(series.to_units(ahead[1], before[-1:], test.facts), truth)
    torch.testing.assert_close(truth[:, 0], torch.tensor(values[83:87]))
    plain = load(series, "series:a.csv", relative=False)[2]
    past, _, ahead = plain.examples(torch.tensor([3]))
    torch.testing.assert_close(past[0, :, 0], scaled[75:83].float())
    torch.testing.assert_close(series.to_units(ahead[0], before[-1:], plain.facts), truth)
    assert load(series, "series:a.csv", val=0)[1] is None
    assert "--val 7 takes it" in refused(lambda: load(series, "series:a.csv", val=5))


def test_segments(refused):
    """A network may see some steps at a time; what is forecast, and the simple rules, stay."""
    write_hours(count=200)
    one = load(series, "series:a.csv", window=48)
    few = load(series, "series:a.csv", window=48, segment=12)
    past, lengths, ahead = few[2].examples(torch.tensor([0, 3]))
    assert past.shape == (2, 4, 12)
    assert lengths.tolist() == [4, 4]
    plain = one[2].examples(torch.tensor([0, 3]))
    assert torch.equal(past.flatten(1), plain[0].flatten(1))
    assert torch.equal(ahead, plain[2])
    assert series.baselines(*few) == series.baselines(*one)
    inputs = series.last_window("a.csv", few[0].facts).inputs
    assert torch.equal(inputs.flatten(), series.last_window("a.csv", one[0].facts).inputs.flatten())
    told = flags("series:a.csv", window=60, segment=None)
    for chosen, sizes in ([["horizon"], (48, 24)], [["window"], (60, 1)]):
        facts = series.load(told.but(chosen=chosen), Device(device_args()))[0].facts
        assert (facts["window"], facts["segment"]) == sizes  # whole days, or what was typed
    line = refused(lambda: load(series, "series:a.csv", window=30, segment=12))
    assert "--window 30 is no multiple of --segment 12: take 36" in line


def test_etth1_is_cut_as_in_the_literature():
    names = ["HUFL", "HULL", "MUFL", "MULL", "LUFL", "LULL", "OT"]
    rows = [(time, *(round(np.sin(i * (k + 1) / 9), 3) for k in range(7)))
            for i, time in enumerate(hours(17420))]  # fmt: skip
    table("data/timeseries/ETTh1.csv", [("date", *names), *rows])
    train, val, test = load(series, "etth1", window=96, horizon=24, target="OT")
    counts = [len(part) for part in (train, val, test)]
    assert counts == [8640 - 96 - 24 + 1, 2880 - 24 + 1, 2880 - 24 + 1]
    assert train.facts["columns"] == ["OT"]
    assert train.facts["season"] == 24
    both = load(series, "etth1", target="OT", inputs="all")[0]
    past, _, ahead = both.examples(torch.arange(2))
    assert (past.shape[2], ahead.shape[2]) == (7, 1)
    all_of_them = load(series, "etth1", target="all")[0]
    assert all_of_them.examples(torch.arange(2))[2].shape == (2, 4, 7)


def test_missing_series(refused):
    line = refused(lambda: load(series, "sunspots"))
    assert "monthly-sunspots.csv is not in data/timeseries" in line
    assert "--data pydocs" in line


def test_simple_forecasts():
    write_hours(count=600, values=[round(10 + 5 * np.sin(np.pi * i / 12), 6) for i in range(600)])
    train, val, test = load(series, "series:a.csv", window=30, horizon=30)
    rows = series.baselines(train, val, test)
    last, season, ridge = rows.values()
    assert list(rows) == ["the last value", "one season ago (24)", "ridge regression"]
    assert season["mse"] < 1e-9  # what repeats is forecast, 30 hours ahead too
    assert ridge["mse"] < 1e-3
    assert last["mse"] > 1
    std = train.facts["std"][0]
    assert last["mse_units"] == pytest.approx(last["mse"] * std**2, rel=1e-6)
    assert last["mae_units"] == pytest.approx(last["mae"] * std, rel=1e-6)
    truth = torch.stack([test.in_units(i)[2] for i in range(len(test))])
    known = torch.stack([test.in_units(i)[1][-1:] for i in range(len(test))])
    assert last["mae_units"] == pytest.approx(float((truth - known).abs().mean()), rel=1e-4)
    lines = series.as_table({"LSTM": last} | rows, train.facts).splitlines()
    assert len(lines) == 5
    assert len(set(map(len, lines))) == 1
    plain = load(series, "series:a.csv", window=30, horizon=30, relative=False)
    assert series.baselines(*plain)["one season ago (24)"]["mse"] < 1e-9
    long = load(series, "series:a.csv", season=590)
    assert list(series.baselines(*long)) == ["the last value", "ridge regression"]


def test_sums_are_of_all_parts_and_columns():
    facts = {"columns": ["a", "b"], "targets": ["b"], "std": [3.0, 2.0]}
    sums = series.error_sums(torch.zeros(2, 3, 1), torch.full((2, 3, 1), 0.5), facts)
    assert series.as_metrics(sums + sums) == dict(mse=0.25, mae=0.5, mse_units=1.0, mae_units=1.0)


@pytest.mark.parametrize(
    ("times", "step", "season", "following"),
    [
        (["2020-01", "2020-02", "2020-03"], "1 month", 12, "2020-04"),
        (["31.01.2020", "29.02.2020", "31.03.2020"], "1 month", 12, "2020-04"),
        (["2020-01-01", "2020-04-01", "2020-07-01"], "3 months", 4, "2020-10"),
        (["1949", "1950", "1951"], "12 months", 1, "1952-01"),
        ([f"{1 + i % 12:02}/01/{20 + i // 12}" for i in range(14)], "1 month", 12, "2021-03"),
        ([f"{i:02}.02.2020" for i in range(1, 29)], "1 day", 7, "2020-02-29"),
        (["2020-01-03", "2020-01-10", "2020-01-17"], "1 week", 52, "2020-01-24"),
        (["2020-01-01T00:00Z", "2020-01-01T00:15Z", "2020-01-01T00:30Z"], "15 minutes", 96,
         "2020-01-01 00:45"),
        (["1577836800", "1577840400", "1577844000"], "1 hour", 24, "2020-01-01 03:00"),
        (["20200101", "20200102", "20200103"], "1 day", 7, "2020-01-04"),
        (["0", "5", "10"], "5 rows", 1, "15"),
        ([f"2020-01-{d:02}" for d in (1, 2, 3, 6, 7, 8, 9, 10)], "1 weekday", 5, "2020-01-13"),
        (["Jan 2020", "Feb 2020", "Mar 2020"], "1 month", 12, "2020-04"),
        (["Nov-99", "Dec-99", "Jan-00"], "1 month", 12, "2000-02"),
        (["2020-03-01T22:00+02:00", "2020-03-01T23:00+02:00", "2020-03-02T00:00+02:00"], "1 hour",
         24, "2020-03-02 01:00+02:00"),
        (["2020-03-01 00:00:00-0530", "2020-03-02 00:00:00-0530", "2020-03-03 00:00:00-0530"],
         "1 day", 7, "2020-03-04"),
        (["2020-10-25T01:00+02:00", "2020-10-25T02:00+02:00", "2020-10-25T02:00+01:00"], "1 hour",
         24, "2020-10-25 02:00+00:00"),
        (["2020-10-24T00:00+02:00", "2020-10-25T00:00+02:00", "2020-10-26T00:00+01:00"], "1 day",
         7, "2020-10-27"),
    ],
)  # fmt: skip
def test_times(times, step, season, following):
    rows = [(time, i) for i, time in enumerate(times)]
    made = read_series(table("a.csv", [("when", "x"), *rows]), "when")
    assert made.step_name == step
    assert made.season == season
    assert made.label([len(times)]) == [following]
    assert made.values[:, 0].tolist() == list(range(len(times)))


@pytest.mark.parametrize(
    ("cells", "delimiter", "numbers"),
    [
        (["963", "1.037", "1.234.567"], ";", [963, 1037, 1234567]),
        (["800,5", "1.000,50", "-2.000,25"], ";", [800.5, 1000.5, -2000.25]),
        (["963", "1.037", "1.250"], ";", [963, 1.037, 1.25]),  # which is said
        (["1.5", "1.037", "1.250"], ";", [1.5, 1.037, 1.25]),
        (["0.125", "1.037", "1.250"], ";", [0.125, 1.037, 1.25]),
        (["2,003.8", "311.7", "1,002,003"], ",", [2003.8, 311.7, 1002003]),
        (["2003.8", "1e3", "-0.5"], ",", [2003.8, 1000, -0.5]),
    ],
)
def test_marks_between_thousands(cells, delimiter, numbers, refused):
    rows = [(i, f'"{cell}"') for i, cell in enumerate(cells)]
    made = read_series(table("a.csv", [("step", "x"), *rows], delimiter))
    assert made.values[:, 0].tolist() == numbers
    told = ["x: 1.037 (line 3) is read as a fraction: if points part thousands, take them out"]
    assert made.notes == (told if numbers[0] == 963 and numbers[1] < 2 else [])
    rows = [(i, f'"{i}0,038"') for i in range(1, 9)]  # a fraction, or thousands?
    table("b.csv", [("step", "x"), *rows])
    assert "'10,038' is no number" in refused(read_series, Path("b.csv"))
    rows = [(i, f"{i}.250", f"{i},5") for i in range(1, 9)]  # the other column tells
    made = read_series(table("c.csv", [("step", "x", "y"), *rows], ";"))
    assert made.values[0].tolist() == [1250, 1.5]


@pytest.mark.parametrize("name", ["ts", "t", "step"])
def test_columns_that_count(name):
    rows = [(5 * i, i % 7) for i in range(30)]
    made = read_series(table("a.csv", [(name, "x"), *rows]))
    assert made.columns == ["x"]
    assert made.step_name == "5 rows"
    rows = [(i % 5, i % 7) for i in range(30)]  # a temperature
    if name != "ts":
        assert read_series(table("a.csv", [(name, "x"), *rows])).columns == [name, "x"]


def test_found_columns(capsys):
    rows = [(i, time, "x", 3, i * 2) for i, time in enumerate(hours(99))]
    table("a.csv", [("id", "moment", "note", "flat", "load"), *rows])
    train, _, _ = load(series, "series:a.csv", loud=True, inputs="all")
    assert train.facts["targets"] == ["load"]
    assert train.facts["columns"] == ["id", "load"]
    out = capsys.readouterr().out
    assert "--target is not given: load" in out
    assert "flat is constant in the training set: left out" in out
    assert "no columns of numbers: note" in out
    table("b.csv", [(f"{i / 2}".replace(".", ","), i % 7) for i in range(60)], ";")
    made = read_series(Path("b.csv"))
    assert made.columns == ["column 1", "column 2"]  # no header, no times
    assert made.values[3, 0] == 1.5  # a decimal comma
    assert "the rows count as steps" in made.notes[0]
    put("c.csv", "value\n" + "\n".join(map(str, range(30))))
    assert read_series(Path("c.csv")).values.shape == (30, 1)


def test_what_is_mended_is_said(capsys):
    rows = [*zip(hours(200), daily_wave(200), strict=True)]
    for gone in (150, 51, 50):
        del rows[gone]
    rows[20] = (rows[20][0], "NA")
    rows[30], rows[31] = rows[31], rows[30]
    put("a.csv", b"\xef\xbb\xbf")
    with open("a.csv", "a") as file:
        file.write("date;load\n" + "\n".join(f"{time};{value}" for time, value in rows))
    train, _, _ = load(series, "series:a.csv", loud=True)
    out = capsys.readouterr().out
    assert "the rows are not in order (line 33 is earlier than the one above): sorted" in out
    assert "3 steps of 200 missing, the first after 2020-01-03 01:00:00 (line 51)" in out
    assert "load: 1 number missing, the first in line 22: filled with the last before" in out
    values = train.series.values[:, 0]
    assert len(values) == 200
    np.testing.assert_allclose(
        values[[0, 30, 31, 199]], np.array(daily_wave(200))[[0, 30, 31, 199]]
    )
    assert values[49] == values[50] == values[51] != values[52]
    assert values[19] == values[20]
    assert train.series.filled[:, 0].nonzero()[0].tolist() == [20, 50, 51, 150]


def test_what_is_filled_is_no_right_answer(refused):
    """A hole shows nothing of what comes after it, and no forecast is measured in it."""
    values = daily_wave(100)
    rows = [*zip(hours(100), values, strict=True)]
    table("whole.csv", [("date", "load"), *rows])
    holes = [(time, "" if i in (30, 85, 86) else value) for i, (time, value) in enumerate(rows)]
    del holes[92]
    table("holes.csv", [("date", "load"), *holes])
    train, val, test = load(series, "series:holes.csv")
    whole = load(series, "series:whole.csv", stored={"dataset": train.facts})
    assert [len(part) for part in (train, val, test)] == [len(part) for part in whole]
    gone = {85, 86, 92}
    for i, start in enumerate(test.starts.tolist()):
        past, _, ahead = test.examples(torch.tensor([i]))
        hidden = ahead.isnan()[0, :, 0].tolist()
        assert hidden == [start + k in gone for k in range(4)]
        assert past.isfinite().all()
        assert test.in_units(i)[2].isnan()[:, 0].tolist() == hidden
    outputs = torch.zeros(len(test), 4, 1)
    ahead = test.examples(torch.arange(len(test)))[2]
    found = series.as_metrics(series.error_sums(outputs, ahead, test.facts))
    known = ahead[~ahead.isnan()].double()
    assert found["mse"] == pytest.approx(known.square().mean().item())
    assert all(np.isfinite([*row.values()]).all() for row in
               series.baselines(train, val, test).values())  # fmt: skip
    assert all(x.isfinite().all() for x in train.examples(torch.arange(len(train)))[::2])
    short = load(series, "series:holes.csv", horizon=1)
    places = set(short[2].starts.tolist())
    assert places == set(range(80, 100)) - gone  # windows without any number ahead are left out
    late = [(time, "" if 70 <= i < 80 else value) for i, (time, value) in enumerate(rows)]
    table("late.csv", [("date", "load"), *late])
    line = refused(lambda: load(series, "series:late.csv"))
    assert "late.csv: the val set has no number of load" in line


HEAD = b"date,load\n"
ROWS = [f"{time},{value}".encode() for time, value in zip(hours(60), daily_wave(60), strict=True)]


def changed(*changes):
    """The good file with some rows replaced (None: gone), by their place."""
    rows = dict(enumerate(ROWS)) | dict(changes)
    return HEAD + b"\n".join(row for row in rows.values() if row is not None)


BAD_SERIES = {
    "empty": (b"", "a.csv is empty: it needs rows of cells"),
    "header": (HEAD, "a.csv has one row"),
    "two rows": (HEAD + b"\n".join(ROWS[:2]), "a.csv has 2 rows: that is no series"),
    "latin": (changed((3, b"2020-01-01 03:00:00,\xe4")), "line 5 is not UTF-8 text (byte 0xe4"),
    "utf-16": ("date,load\n".encode("utf-16"), "is UTF-16, not UTF-8"),
    "word": (changed((3, b"2020-01-01 03:00:00,much")), "line 5: 'much' is no number"),
    "infinite": (changed((3, b"2020-01-01 03:00:00,inf")), "line 5: 'inf' is no number"),
    "time": (changed((3, b"yesterday,1")), "line 5: date is 'yesterday', which is no time"),
    "no time": (changed((3, b",1")), "line 5: date is '', which is no time"),
    "twice": (changed((9, ROWS[3])), "the lines 5 and 11 have the same time, 2020-01-01 03:00:00"),
    "between": (changed((3, b"2020-01-01 03:30:00,1")), "from line 4 to 5 the time goes on by 1.5"),
    "gaps": (
        changed(*((i, None) for i in range(20, 30))),
        "10 steps of 60 missing, the first after 2020-01-01 19:00:00 (line 21): more than a tenth",
    ),
    "holes": (
        changed(*((i, ROWS[i].split(b",")[0] + b",") for i in range(20, 30))),
        "10 numbers missing, the first in line 22: more than a tenth is not filled",
    ),
    "wide": (changed((3, b"2020-01-01 03:00:00,1,2")), "line 5 has 3 cells, not the 2 of line 1"),
    "constant": (
        HEAD + b"\n".join(row.split(b",")[0] + b",7" for row in ROWS),
        "load is 7 in the whole training set: there is nothing to forecast",
    ),
    "names": (b"a,a\n1,2\n3,4\n5,6\n", "line 1 names the column a twice"),
    "three rows": (HEAD + b"\n".join(ROWS[:3]), "3 rows: too few for a training, a validation"),
    "autumn": (changed((3, ROWS[2])), "same time, 2020-01-01 02:00:00: a series has one row for "
               "each; where clocks went back an hour, write the times in UTC"),
    "constant, one of two": (
        b"date,a,load\n" + b"\n".join(row + b",7" for row in ROWS),
        "load is 7 in the whole training set: there is nothing to forecast: try --target a",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_SERIES)
def test_bad_series(name, refused):
    content, reason = BAD_SERIES[name]
    put("a.csv", content)
    line = refused(lambda: load(series, "series:a.csv"))
    assert reason in line
    assert "a.csv" in line


def test_what_else_is_refused_of_series(refused):
    write_hours(count=60)
    line = refused(lambda: load(series, "series:a.csv", window=50))
    assert "--window 50 and --horizon 4 are too long for a.csv" in line
    assert "42, 6, 12 rows; take --window 38 at most" in line
    line = refused(lambda: load(series, "series:a.csv", horizon=9))
    assert "take --horizon 3 at most" in line
    assert load(series, "series:a.csv", window=38)[0].starts.tolist() == [38]
    line = refused(lambda: load(series, "series:a.csv", target="laod"))
    assert "--target laod: a.csv has no such column; did you mean load?" in line
    line = refused(lambda: load(series, "series:a.csv", target="LOAD"))
    assert "--target LOAD: a.csv has no such column; did you mean load?" in line
    line = refused(lambda: load(series, "series:a.csv", target="date"))
    assert "--target date: a.csv: that is where the times stand; there are load" in line
    line = refused(lambda: load(series, "series:a.csv", time_column="dat"))
    assert "--time-column dat: a.csv has no such column; did you mean date?" in line
    line = refused(lambda: load(series, "series:nowhere.csv"))
    assert "can't read nowhere.csv: No such file" in line
    table("text.csv", [("date", "note"), *((time, "x") for time in hours(9))])
    assert "text.csv has no column of numbers; note: line 2" in refused(
        lambda: load(series, "series:text.csv")
    )


def test_a_short_series_has_room_for_less(capsys):
    write_hours(count=60)
    wanted = flags("series:a.csv", window=96, horizon=24).but(chosen=[], val=100)
    train, val, test = series.load(wanted, Device(device_args(quiet=False)))
    assert (train.facts["window"], train.facts["horizon"]) == (19, 3)
    assert [len(part) for part in (train, val, test)] == [42 - 22 + 1, 6 - 2, 12 - 2]
    out = capsys.readouterr().out
    assert "so short a series has room for --horizon 3" in out
    assert "19 seen, 3 forecast" in out
    write_hours("b.csv", count=600)
    again = series.load(wanted.but(data="series:b.csv", stored={"dataset": train.facts}),
                        Device(device_args()))[2]  # fmt: skip
    assert again.examples(torch.arange(2))[0].shape == (2, 19, 1)
    assert again.facts["horizon"] == 3


def test_a_training_of_few_steps_is_said(capsys):
    write_hours(count=60)
    load(series, "series:a.csv", loud=True, epochs=10, batch_size=16)
    wanted = "31 windows make 10 steps of training: --epochs 300 would be 300"
    assert wanted in capsys.readouterr().out
    load(series, "series:a.csv", loud=True, epochs=10, batch_size=16, window=38)
    assert "1 window makes 10 steps of training" in capsys.readouterr().out
    load(series, "series:a.csv", loud=True, epochs=300, batch_size=16)
    assert "steps of training" not in capsys.readouterr().out


def test_the_last_window(refused):
    write_hours(count=100)
    facts = load(series, "series:a.csv")[0].facts
    ahead = series.last_window("a.csv", facts)
    assert ahead.inputs.shape == (1, 8, 1)
    assert ahead.lengths.tolist() == [8]
    assert ahead.times == [time[:16] for time in hours(104)[-12:]]
    torch.testing.assert_close(ahead.past[:, 0], torch.tensor(daily_wave(100)[-8:]))
    units = series.to_units(torch.zeros(4, 1), ahead.past[-1:], facts)
    assert units.tolist() == [[ahead.past[-1].item()]] * 4
    write_hours("short.csv", count=7)
    line = refused(series.last_window, "short.csv", facts)
    assert "short.csv has 7 rows: the network sees a window of 8" in line
    table("other.csv", [("date", "loads"), *zip(hours(20), daily_wave(20), strict=True)])
    line = refused(series.last_window, "other.csv", facts)
    assert "the checkpoint's column load: other.csv has no such column; did you mean loads?" in line
    again = load(series, "series:a.csv", stored={"dataset": facts})[0]
    assert again.facts == facts


def test_a_network_of_hours_takes_no_days(refused, capsys):
    write_hours(count=100)
    facts = load(series, "series:a.csv")[0].facts
    days = [(f"2020-{1 + i // 28:02}-{1 + i % 28:02}", i % 9) for i in range(28)]
    table("days.csv", [("date", "load"), *days])
    told = "days.csv has steps of 1 day: the network was trained on steps of 1 hour"
    assert told in refused(series.last_window, "days.csv", facts)
    stored = {"dataset": facts}
    assert told in refused(lambda: load(series, "series:days.csv", stored=stored))
    table("rows.csv", [("load",), *((i % 9,) for i in range(60))])
    told = "the network was trained on steps of 1 hour; here they are of 1 row"
    assert told in series.last_window("rows.csv", facts).notes
    load(series, "series:rows.csv", stored=stored, loud=True)
    assert told in capsys.readouterr().out


def test_a_forecast_needs_the_newest_value(refused):
    rows = [*zip(hours(60), daily_wave(60), strict=True)]
    write_hours(count=100)
    facts = load(series, "series:a.csv")[0].facts
    rows[57] = (rows[57][0], "")
    table("b.csv", [("date", "load"), *rows])
    ahead = series.last_window("b.csv", facts)
    assert ahead.past[5] == ahead.past[4]
    assert any("load: 1 number missing, the first in line 59" in note for note in ahead.notes)
    rows[59] = (rows[59][0], "")
    table("b.csv", [("date", "load"), *rows])
    line = refused(series.last_window, "b.csv", facts)
    assert "b.csv: the newest load, of 2020-01-03 11:00, is missing" in line


# ---------------------------------------------------------------------- what sample.py says

TINY = ["--quiet", "--device", "cpu", "--epochs", "1", "--max-steps", "1", "--hidden-size", "8"]


def test_nothing_of_ones_own_is_overwritten(refused):
    write_hours("mine/forecast.csv", count=200)
    before = Path("mine/forecast.csv").read_bytes()
    flags = ["--data", "series:mine/forecast.csv", "--window", "8", "--horizon", "4"]
    train.main([*flags, *TINY, "--run-dir", "run"])
    argv = ["--checkpoint", "run/last.pt", "mine/forecast.csv"]
    line = refused(sample.main, [*argv, "--out", "mine"])
    assert "mine/forecast.csv is there already: name another folder with --out" in line
    assert Path("mine/forecast.csv").read_bytes() == before
    assert not Path("mine/forecasts.png").exists()
    sample.main(argv)  # to a new folder


def test_a_forecast_says_what_is_filled(capsys):
    rows = [*zip(hours(200), daily_wave(200), strict=True)]
    table("whole.csv", [("date", "load"), *rows])
    del rows[150]
    table("mine.csv", [("date", "load"), *rows])
    flags = ["--data", "series:whole.csv", "--window", "8", "--horizon", "4"]
    train.main([*flags, *TINY, "--run-dir", "run"])
    capsys.readouterr()
    sample.main(["--checkpoint", "run/last.pt", "mine.csv"])
    assert "note: 1 step of 200 missing" in capsys.readouterr().err


def test_sample_says_what_is_not_seen(capsys, refused):
    """Words that no font has are drawn without a word of it, too."""
    table("mine.csv", [("text", "label"), *((text, f"{label}日" * 40) for text, label in some(40))])
    flags = ["--model", "bilstm", "--data", "sentences:mine.csv", "--max-length", "3"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train.main([*flags, *TINY, "--run-dir", "run"])
        capsys.readouterr()
        sample.main(["--checkpoint", "run/last.pt", "good 映画", "a good bad film"])
    err = capsys.readouterr().err
    assert "note: sentence 1: not in the vocabulary: 映画" in err
    assert "note: sentence 2: cut at 3 of 4 words" in err
    table("few.csv", [("text", "label"), ("good", "yes"), ("bad", "no")])
    argv = ["--model", "bilstm", "--data", "sentences:few.csv", *TINY, "--patience", "2"]
    line = refused(train.main, argv)
    assert "--patience needs a validation set to watch: sentences:few.csv is too small" in line
    for word, pitch in (("high", 2000), ("low", 300)):
        for i in range(6):
            write_wav(f"mine/{word}/{i}.wav", tone(pitch=pitch))
    train.main(["--model", "gru", "--data", "wav:mine", *TINY, "--run-dir", "wav"])
    write_wav("silent.wav", torch.zeros(900))
    sample.main(["--checkpoint", "wav/last.pt", "silent.wav"])
    assert "note: silent.wav is silent" in capsys.readouterr().err
    write_wav("one.wav", torch.full((1,), 0.5))
    sample.main(["--checkpoint", "wav/last.pt", "one.wav"])
    assert "note: one.wav holds 1 sample, under 0.025 seconds" in capsys.readouterr().err


def test_tables_that_are_quoted():
    put("a.tsv", '"text"\t"label"\n"a ""b"\t"x"\n')
    made = read_table(Path("a.tsv"))
    assert made.rows == [["text", "label"], ['a ""b', "x"]]
    assert made.lines == [1, 2]
