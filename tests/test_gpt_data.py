"""Corpora, vocabularies, windows of tokens: what language models read."""

import argparse
import gzip
import itertools
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from common.data import corpora
from common.data.corpora import (
    CORPORA,
    END,
    Mapped,
    Text,
    Tokens,
    Vocabulary,
    blocks_of,
    load_corpus,
    make_vocabulary,
    parts_of,
    pieces_of,
    with_ends,
)

STORY = "Once upon a time there was a dog.\nIt ran, and ran  home!\n\n  The end.\n"


def device(world=1, rank=0, accumulate=1, seed=0, quiet=True):
    return SimpleNamespace(
        world=world, rank=rank, accumulate=accumulate, seed=seed, quiet=quiet, main=True,
        device=torch.device("cpu"), gather=lambda value: [value], say=print,
    )  # fmt: skip


def flags(data, **changes):
    defaults = dict(data=data, data_dir="data", val=0, limit=None, seed=0, tokens="chars",
                    vocab_size=300, stored={}, typed=[], chosen=["val"])  # fmt: skip
    return argparse.Namespace(**defaults | changes)


def text_of(corpus, part="all"):
    return str(corpus.parts[part])


# ---------------------------------------------------------------------- files


def test_pydocs_are_documents():
    corpus = CORPORA["pydocs"](flags("pydocs"))
    text = text_of(corpus)
    assert len(text) > 400_000
    assert len(corpus.parts["all"].documents) == text.count(END) + 1 > 50
    assert "Python 3" in corpus.note


def test_the_users_file(refused):
    Path("a.txt").write_bytes("\ufeffone\r\ntwo\rthree\n<|endoftext|>\nfour\n".encode())
    assert text_of(CORPORA["text"](flags("text:a.txt"))) == f"one\ntwo\nthree{END}four\n"
    Path("empty.txt").write_text(" \n")
    Path("latin.txt").write_bytes("gut\nsch\u00f6n\n".encode("latin-1"))
    Path("wide.txt").write_bytes("text".encode("utf-16"))
    for name, words in (("empty", "is empty"), ("latin", "line 2 is not UTF-8"),
                        ("wide", "UTF-16"), ("none", "no such file")):  # fmt: skip
        assert words in refused(CORPORA["text"], flags(f"text:{name}.txt"))


def test_a_folder_of_files(refused):
    Path("books/b").mkdir(parents=True)
    assert "holds no text files" in refused(CORPORA["text"], flags("text:books"))
    Path("books/b/deep.txt").write_text("deep\n")
    assert text_of(CORPORA["text"](flags("text:books"))) == "deep\n"
    Path("books/one.txt").write_text("one\n")
    Path("books/two.txt.gz").write_bytes(gzip.compress(b"two\n"))
    assert text_of(CORPORA["text"](flags("text:books"))) == f"one\n{END}two\n"
    Path("books/one.txt").rename("books/ptb.train.txt")
    Path("books/two.txt.gz").rename("books/ptb.valid.txt.gz")
    found = CORPORA["text"](flags("text:books"))
    whole = {name: str(text) for name, text in found.parts.items()}
    assert whole == {"train": "one\n", "test": "two\n"}
    assert found.note == "there is no test set, so the validation set is it"
    Path("books/ptb.train-2.txt").write_text("more\n")
    Path("books/ptb.test.txt").write_text("last\n")
    Path("books/notes.txt").write_text("notes\n")
    found = CORPORA["text"](flags("text:books"))
    whole = {name: str(text) for name, text in found.parts.items()}
    assert whole == {"train": f"more\n{END}one\n", "val": "two\n", "test": "last\n"}
    assert found.note == "1 file of no part left out"


def test_corpora_of_the_data_folder(refused):
    for name, file in (("shakespeare", "input.txt"), ("tinystories", "v2_train.txt"),
                       ("brown", "news.txt"), ("wikitext2", "wiki.train.tokens")):  # fmt: skip
        line = refused(CORPORA[name], flags(name))
        assert file in line
        assert "--data pydocs" in line
    for folder in ("tinyshakespeare", "tinystories", "brown", "wikitext-2"):
        Path("data", folder).mkdir(parents=True)
    Path("data/tinyshakespeare/input.txt").write_text("A:\nbe\n")
    Path("data/tinystories/v1.txt").write_text("one\n<|endoftext|>\ntwo\n")
    Path("data/tinystories/v2.txt").write_text("three\n")
    Path("data/brown/news.txt").write_text("one.\ntwo.\n\nthree.\n")
    Path("data/brown/README_source.txt").write_text("no")
    wiki = " \n = Dogs = \n\n are .\n\n = = Food = = \n\n meat\n\n = Cats = \n\n are\n"
    for part in ("train", "valid", "test"):
        Path(f"data/wikitext-2/wiki.{part}.tokens").write_text(wiki)
    assert text_of(CORPORA["shakespeare"](flags("shakespeare"))) == "A:\nbe\n"
    stories = CORPORA["tinystories"](flags("tinystories")).parts["all"]
    assert [d.strip() for d in stories.documents] == ["one", "two", "three"]
    Path("data/tinystories/v1.txt").rename("data/tinystories/V2-train.txt")
    Path("data/tinystories/v2.txt").rename("data/tinystories/V2-valid.txt")
    assert set(CORPORA["tinystories"](flags("tinystories")).parts) == {"train", "test"}
    assert text_of(CORPORA["brown"](flags("brown"))) == f"one.\ntwo.{END}three."
    articles = CORPORA["wikitext2"](flags("wikitext2")).parts
    assert list(articles) == ["train", "val", "test"]
    assert [d.splitlines()[0].strip() for d in articles["test"].documents] == [
        "= Dogs =",
        "= Cats =",
    ]


@pytest.mark.parametrize("size", [1, 3, 7, 16, 1000])
def test_marks_between_documents_in_blocks_of_any_size(size):
    text = "one\n<|endoftext|>\ntwo<|endoftext|>three\n\n<|endoftext|><|end of<|endoftext|>\n"
    blocks = [text[i : i + size] for i in range(0, len(text), size)]
    wanted = f"one{END}two{END}three\n{END}<|end of{END}"
    assert "".join(with_ends(blocks)) == wanted


def test_large_files_are_read_in_blocks(monkeypatch, refused):
    text = "".join(f"line {i} of a lärge file\n" for i in range(400)) + "<|endoftext|>\nend"
    Path("a.txt").write_bytes(text.encode())
    Path("a.txt.gz").write_bytes(gzip.compress(text.encode()))
    whole = text_of(CORPORA["text"](flags("text:a.txt")))
    monkeypatch.setattr(corpora, "LARGE", 100)
    monkeypatch.setattr(corpora, "BLOCK", 97)
    for name in ("a.txt", "a.txt.gz"):
        corpus = CORPORA["text"](flags(f"text:{name}"))
        blocks = list(corpus.parts["all"].blocks()) if name == "a.txt" else [text_of(corpus)]
        assert "".join(blocks) == whole
        assert name != "a.txt" or max(map(len, blocks)) < 400
        assert corpus.parts["all"].documents == [Path(name)]
    Path("many").mkdir()
    for number in range(9):  # none of them is large
        Path(f"many/{number}.txt").write_text(text[number * 90 :][:90])
    many = CORPORA["text"](flags("text:many")).parts["all"]
    assert many.documents == sorted(Path("many").iterdir())
    assert str(many) == END.join(text[n * 90 :][:90] for n in range(9))
    part = corpus.parts["all"].part(1234, 2345)
    assert (str(part), len(part)) == (whole[1234:2345], 1111)
    Path("bad.txt").write_bytes(text[:2000].encode() + b"\xff" + text.encode())
    Path("zero.txt").write_bytes(text[:2000].encode() + b"\0" + text.encode())
    Path("wide.txt").write_bytes(text.encode("utf-16"))
    Path("cut.gz").write_bytes(gzip.compress(text.encode())[:-50])
    for name, words in (("bad.txt", "not UTF-8 text (byte 0xff)"), ("zero.txt", "zero bytes"),
                        ("wide.txt", "is UTF-16"), ("cut.gz", "damaged")):  # fmt: skip
        line = refused(lambda name=name: list(blocks_of(Path(name))))
        assert words in line
        assert name in line


def test_parts_are_the_last_tenths(refused):
    text = "".join(chr(33 + i % 90) for i in range(1000))
    corpus = corpora.Corpus({"all": Text([text])})
    parts = parts_of(flags("x"), corpus)
    assert (str(parts["train"]), str(parts["test"])) == (text[:900], text[900:])
    parts = parts_of(flags("x", val=10**6, chosen=[]), corpus)
    assert list(parts) == ["train", "val", "test"]
    assert [str(part) for part in parts.values()] == [text[:810], text[810:900], text[900:]]
    parts = parts_of(flags("x", val=50, limit=100), corpus)
    assert str(parts["val"]) == text[850:900]
    assert str(parts["train"]) in text[:850]
    assert len(parts["train"]) == 100
    begins = {parts_of(flags("x", limit=9, seed=seed), corpus)["train"].begin for seed in range(5)}
    assert len(begins) > 2  # the seed draws the place
    assert "leaves nothing" in refused(parts_of, flags("x", val=899), corpus)
    line = refused(parts_of, flags("x"), corpora.Corpus({"all": Text(["a" * 10])}))
    assert "the test set of x has 1 character" in line


# ---------------------------------------------------------------------- vocabulary


@pytest.mark.parametrize("tokens", ["chars", "bpe"])
def test_vocabularies_know_the_ends_of_documents(tokens):
    text = f"{STORY}{END}{STORY} \u00e4\u00f6 {END}"
    facts = json.loads(json.dumps(make_vocabulary(text, tokens, 300, ends=True)))
    vocabulary = Vocabulary(facts)
    ids = vocabulary.encode(text)
    assert vocabulary.decode(ids.tolist()) == text
    assert (ids == vocabulary.end).sum() == 2
    assert ids.max() < facts["vocab_size"]
    alone = Vocabulary(make_vocabulary(STORY, tokens, 300))
    assert alone.end is None


def test_words_are_the_same_at_the_beginning_of_a_line():
    text = "the dog ran home\ndog and cat\n\n  dog\n \n\ndog" + END + "\n dog\u2028dog\n"
    vocabulary = Vocabulary(make_vocabulary(text * 9, "bpe", 400, ends=True))
    ids = vocabulary.encode(text)
    assert vocabulary.decode(ids.tolist()) == text
    dog = vocabulary.tokenizer.token_to_id("\u0120dog")
    assert (ids == dog).sum() == 5
    for cut in (place for place in range(1, len(text)) if text[place - 1] == "\n"):
        parts = vocabulary.encode(text[:cut]), vocabulary.encode(text[cut:], text[cut - 1])
        assert torch.equal(torch.cat(parts), ids)


def test_a_vocabulary_smaller_than_its_bytes(refused):
    line = refused(make_vocabulary, STORY, "bpe", 256, True)
    assert "--vocab-size 256" in line
    assert make_vocabulary(STORY, "bpe", 257, True)["vocab_size"] == 257


def published():
    """A tokenizer as GPT-2's, made of other text."""
    text = (STORY + "the dog's tail, isn't it?  12 34\n\n\n") * 3
    facts = make_vocabulary(text, "bpe", 320, True)
    return facts | {"published": True, "spaced": False}


@pytest.mark.parametrize("size", [5, 40, 10_000])
def test_pieces_of_a_text_are_encoded_as_the_whole(size):
    text = (STORY + "x" * 60 + "\n\n\n\n  a  'd the\tdog's end.\n") * 4
    pieces = pieces_of(text, size)
    assert "".join(pieces) == text
    assert size > 100 or len(pieces) > 3
    tokenizer = Vocabulary(published()).tokenizer
    apart = [i for piece in pieces for i in tokenizer.encode(piece).ids]
    assert apart == tokenizer.encode(text).ids


def test_a_published_tokenizer_reads_lines_together():
    vocabulary = Vocabulary(published())
    text = f"one\n\n\ntwo{END}three"
    parts = [vocabulary.tokenizer.encode(part).ids for part in text.split(END)]
    assert vocabulary.encode(text).tolist() == [*parts[0], vocabulary.end, *parts[1]]
    assert vocabulary.decode(vocabulary.encode(text).tolist()) == text


# ---------------------------------------------------------------------- tokens


def part_of(text, tokens="chars", dev=None, facts=None):
    return Tokens("train", Text([text]), facts or make_vocabulary(text, tokens, 300, True),
                  dev or device())  # fmt: skip


@pytest.mark.parametrize("tokens", ["chars", "bpe", "published"])
def test_tokens_in_a_file_are_those_in_memory(tokens, monkeypatch):
    text = (STORY + "\u00e4\u00f6\U0001f642 x  y\n" + END) * 30
    facts = published() if tokens == "published" else make_vocabulary(text, tokens, 300, True)
    whole = part_of(text, facts=facts)
    monkeypatch.setattr(corpora, "LARGE", 100)
    monkeypatch.setattr(corpora, "BLOCK", 61)
    for _ in range(2):  # made, and found again
        mapped = part_of(text, facts=facts)
        assert isinstance(mapped.values, Mapped)
        assert len(mapped) == len(whole)
        everything = mapped.take(torch.tensor([0]), len(mapped))
        assert torch.equal(everything, whole.take(torch.tensor([0]), len(whole)))
        assert (mapped.characters, mapped.bytes) == (whole.characters, whole.bytes)
        monkeypatch.setattr(Tokens, "encoded", None)
    assert len(list(Path("data/cache").iterdir())) == 2
    kinds = {"chars": ".uint8", "bpe": ".uint16", "published": ".uint16"}
    assert any(file.suffix == kinds[tokens] for file in Path("data/cache").iterdir())


def test_a_file_of_tokens_is_of_its_vocabulary(monkeypatch):
    monkeypatch.setattr(corpora, "LARGE", 100)
    sizes = [len(part_of(STORY * 9, facts=make_vocabulary(STORY * 9, "bpe", size, True)))
             for size in (260, 300)]  # fmt: skip
    assert sizes[0] > sizes[1]


def test_what_is_counted():
    text = "\u00e4\u00e4b c\n" * 10
    part = part_of(text)
    assert (part.characters, part.bytes) == (len(text) - 1, len(text.encode()) - 2)


def test_windows_are_of_seed_and_step():
    part = part_of("".join(chr(0x4E00 + i) for i in range(500)))

    def steps(epoch=0, first=0, seed=0, **place):
        part.dev = device(seed=seed, **place)
        windows = part.windows(40, 10, 7)
        windows.seek(epoch, first)
        assert len(windows) == 7
        return list(windows)

    plain = steps()
    assert len(plain) == 7
    for tokens, following in plain:
        assert tokens.shape == following.shape == (4, 10)
        assert torch.equal(tokens + 1, following)
    begins = [tokens[:, 0].tolist() for tokens, _ in plain + steps(1)]
    assert len({tuple(b) for b in begins}) == 14
    assert all(torch.equal(a[0], b[0]) for a, b in zip(steps(0, 3), plain[3:], strict=True))
    assert not torch.equal(steps(seed=1)[0][0], plain[0][0])
    ranks = [steps(world=2, rank=rank, accumulate=2) for rank in (0, 1)]
    for number, (tokens, _) in enumerate(plain):
        cut = [ranks[rank][2 * number + k][0] for k in (0, 1) for rank in (0, 1)]
        assert torch.equal(torch.cat(cut), tokens)
    everywhere = {int(t) for epoch in range(60) for tokens, _ in steps(epoch) for t in tokens[:, 0]}
    assert min(everywhere) == 1
    assert max(everywhere) == 490


def test_windows_that_do_not_fit(refused):
    part = part_of("abcdefgh")
    windows = part.windows(64, 1000, 1)
    assert windows.window == 7
    assert next(iter(windows))[0].shape == (1, 7)  # there is no other
    assert next(iter(part.windows(64, 4, 1)))[0].shape == (4, 4)
    part.dev = device(world=2)
    assert "can't share" in refused(part.windows, 9, 3, 1)


@pytest.mark.parametrize("size", [2, 3, 11, 12, 21, 22, 100])
@pytest.mark.parametrize("world", [1, 2])
def test_every_token_is_told_once(size, world):
    text = "".join(chr(0x4E00 + i) for i in range(size))
    told, lengths = [], set()
    for rank in range(world):
        batches = part_of(text, dev=device(world, rank, accumulate=2)).in_order(80, 10)
        lengths.add(len(batches))
        for tokens, following in batches:
            assert len(tokens) <= 80 // 10 // world // 2
            real = following != -100
            assert torch.equal(tokens[real] + 1, following[real])
            told += following[real].tolist()
    assert len(lengths) == 1
    assert sorted(told) == list(range(2, size + 1))


def test_loading(capsys, refused):
    Path("a.txt").write_text(STORY * 50 + "\u03a9" * 3 + "\n")
    train, val, test = load_corpus(flags("text:a.txt", val=100), device())
    assert val.part == "val"
    assert train.facts is test.facts
    out = capsys.readouterr().out
    assert "the test set has 1 character that training has not: \u03a9" in out
    again = load_corpus(flags("text:a.txt", stored={"dataset": train.facts}), device())[0]
    assert again.facts["characters"] == train.facts["characters"]
    facts = published()
    train = load_corpus(flags("text:a.txt"), device(), facts)[0]
    assert train.facts["tokenizer"] == facts["tokenizer"]
    Path("tiny.txt").write_text("abc")
    assert "take more text" in refused(load_corpus, flags("text:tiny.txt"), device())


def test_memory_is_bounded_where_the_text_is_large(monkeypatch):
    """The most that is held at once is a few blocks, however many there are."""
    monkeypatch.setattr(corpora, "LARGE", 1000)
    monkeypatch.setattr(corpora, "BLOCK", 1000)
    Path("a.txt").write_text(STORY * 400)
    held, encode = [], Vocabulary.encode
    monkeypatch.setattr(
        Vocabulary, "encode", lambda s, t, a: held.append(len(t)) or encode(s, t, a)
    )
    train, _, _ = load_corpus(flags("text:a.txt", tokens="bpe"), device())
    assert isinstance(train.values, Mapped)
    assert len(held) > 20
    assert max(held) < 3000
    for tokens, _ in itertools.islice(train.windows(64, 16, 3), 3):
        assert tokens.shape == (4, 16)
