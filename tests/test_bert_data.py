"""What bert reads: sentences, vocabularies, examples by seed and step, corpora, tasks, metrics."""

import itertools
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from bert import data, tasks
from bert.data import Documents, Vocabulary, guesses, make_vocabulary, sentences_of, split_long
from bert.model import FAMILIES
from common import cli
from common.data import corpora

TEXT = ["the dog sees the cat.", "the cat runs from the dog!", "why does a cat run?",
        "a dog is a dog, and a cat is a cat.", "they were born in 1961."]  # fmt: skip


def device(**changes):
    plain = dict(world=1, rank=0, accumulate=1, seed=0, quiet=True, main=True, say=print)
    plain |= dict(device=torch.device("cpu"), gather=lambda value: [value])
    return SimpleNamespace(**plain | changes)


def vocabulary(family="bert", size=80, **more):
    size = 300 if family == "roberta" else size
    return make_vocabulary(TEXT, family, size, True) | more


def documents(family="bert", count=6, **place):
    facts = vocabulary(family)
    coded = Vocabulary(facts).encode(TEXT)
    texts = [list(itertools.islice(itertools.cycle(coded), i, i + 5)) for i in range(count)]
    return Documents("train", texts, facts, device(**place))


# ---------------------------------------------------------------------- sentences


def test_lines_that_were_broken_to_fit_are_joined():
    text = 'One line\nbroken here. "Two." He said e.g. this (a. b.) so.\n\nNew part. Last'
    wanted = [
        "One line broken here.",
        '"Two."',
        "He said e.g. this (a. b.) so.",
        "New part.",
        "Last",
    ]
    assert sentences_of(text) == wanted


def test_lines_that_are_sentences_stay_apart():
    assert sentences_of("a b .\nc d !\n\ne f ?\n") == ["a b .", "c d !", "e f ?"]
    assert sentences_of("One. Two.\nThree.") == ["One.", "Two.", "Three."]
    assert sentences_of(" \n\n") == []
    assert sentences_of("+---+\n| a |\n+===+") == ["| a |"]


# ---------------------------------------------------------------------- vocabularies


@pytest.mark.parametrize("family", FAMILIES)
def test_a_vocabulary_reads_and_writes_its_text(family):
    facts = vocabulary(family)
    coder = Vocabulary(facts)
    names = FAMILIES[family].specials
    assert [coder.tokenizer.token_to_id(name) for name in names] == list(range(len(names)))
    ids = coder.encode(["The dog runs."])[0]
    assert coder.decode(ids) == "the dog runs."
    assert not set(ids) & coder.special.all
    assert coder.encode(["dog"])[0] == coder.encode(["the dog"])[0][-1:]  # as in the middle
    begins = [coder.special.begins[token] for token in ids]
    assert begins[0]
    marked = coder.encode(["dogs"])[0]
    assert [coder.special.begins[token] for token in marked] == [True] + [False] * (len(marked) - 1)


@pytest.mark.parametrize("family", FAMILIES)
def test_special_tokens_in_a_text_are_text(family):
    coder = Vocabulary(vocabulary(family))
    role = FAMILIES[family].roles["mask"]
    assert coder.special.mask not in coder.encode([f"the {role} cat"])[0]
    ids = coder.encode_with_masks(f"the {role} sees the {role}.")
    assert ids.count(coder.special.mask) == 2
    dot = coder.encode(["cat."])[0][-1]
    assert ids[-1] == dot  # what follows a mask is no new word
    assert coder.decode(ids) == f"the {role} sees the {role}."


@pytest.mark.parametrize("family", ["bert", "roberta", "albert", "xlnet"])
def test_a_vocabulary_is_the_same_each_time(family):
    """The library's own choice among equal pairs is not, nor its numbers of Unigram's pieces."""
    found = {make_vocabulary(TEXT, family, 300, True)["tokenizer"] for _ in range(3)}
    assert len(found) == 1


def test_capitals_stay_or_go():
    kept = Vocabulary(make_vocabulary(["The dog", "the Dog"], "bert", 60, False))
    assert kept.encode(["The"]) != kept.encode(["the"])
    assert Vocabulary(vocabulary()).encode(["THE D\u00f3g"]) == Vocabulary(vocabulary()).encode(
        ["the dog"]
    )


@pytest.mark.parametrize(("family", "size"), [("bert", 6), ("roberta", 200), ("xlnet", 8)])
def test_a_vocabulary_that_is_too_small(family, size, refused):
    line = refused(make_vocabulary, TEXT, family, size, True)
    assert f"--vocab-size {size}" in line
    assert "needs more than" in line


def test_the_tokenizer_of_another_model(refused):
    line = refused(Vocabulary, vocabulary("bert") | {"family": "roberta"})
    assert "of another model than roberta: it has no <pad>" in line


# ---------------------------------------------------------------------- examples


def test_steps_are_of_seed_and_step():
    def steps(epoch=0, first=0, **place):
        found = documents(**place).steps(4, 24, 5)
        found.seek(epoch, first)
        return list(found)

    plain = steps()
    assert len(plain) == 5
    everything = [inputs["tokens"] for inputs, _ in plain + steps(1)]
    assert all(len(tokens) == 4 for tokens in everything)
    assert len({str(tokens.tolist()) for tokens in everything}) == 10
    for (inputs, answers), (wanted, targets) in zip(steps(0, 3), plain[3:], strict=True):
        assert torch.equal(inputs["tokens"], wanted["tokens"])
        assert torch.equal(answers["targets"], targets["targets"])
    assert not torch.equal(steps(seed=1)[0][0]["tokens"], everything[0])
    ranks = [steps(world=2, rank=rank, accumulate=2) for rank in (0, 1)]
    for number, (inputs, answers) in enumerate(plain):
        parts = [ranks[rank][2 * number + k] for k in (0, 1) for rank in (0, 1)]
        assert sum(len(part["places"]) for part, _ in parts) == len(inputs["places"])
        rows = [row[row > 0].tolist() for part, _ in parts for row in part["tokens"]]
        assert rows == [row[row > 0].tolist() for row in inputs["tokens"]]
        assert torch.equal(torch.cat([told["counts"] for _, told in parts]), answers["counts"])


def test_examples_that_can_not_be_shared(refused):
    assert "can't share" in refused(documents(world=2).steps, 3, 24, 1)


@pytest.mark.parametrize("copies", [1, 2, None])
def test_masks_come_again_or_not(copies):
    text = documents(count=2)
    text.copies = copies
    steps = text.steps(1, 24, 1)
    passes = []
    for number in range(4):
        examples, order, key = steps.reading(number)
        masked = [text.masked(examples[place], key, place) for place in range(len(examples))]
        passes.append(str(masked))
        assert sorted(order.tolist()) == list(range(len(examples)))
        assert list(steps.made) == [key]  # the others' would fill the memory
    assert len(set(passes)) == (copies or 4)
    assert copies != 2 or passes[0] == passes[2] != passes[1] == passes[3]


def test_the_whole_text_is_read_in_each_pass():
    text = documents("roberta")
    steps = text.steps(1, 24, 1)
    count = len(text.examples(24, 0))
    rows = list(itertools.islice(steps.from_row(0), 2 * count))
    again = list(itertools.islice(text.steps(1, 24, 1).from_row(count + 1), count - 1))
    assert again == rows[count + 1 :]  # as if it had been read from the beginning
    tokens = [sum(len(row.targets) for row in half) for half in (rows[:count], rows[count:])]
    whole = sum(len(example.tokens) for example in text.examples(24, 0))
    assert all(0.1 < some / whole < 0.2 for some in tokens)
    for number, half in enumerate((rows[:count], rows[count:])):
        shown = []
        for row in half:
            there = list(row.tokens)
            for place, target in zip(row.places, row.targets, strict=True):
                there[place] = target
            shown.append(there)
        assert sorted(shown) == sorted(e.tokens for e in text.examples(24, number))


@pytest.mark.parametrize("world", [1, 2, 3])
def test_every_example_is_measured_once(world):
    lengths, counted = set(), 0
    for rank in range(world):
        text = documents(world=world, rank=rank)
        batches = list(text.in_order(2, 24))
        lengths.add(len(batches))
        counted += sum(len(inputs["tokens"]) for inputs, _, count in batches if count)
    assert len(lengths) == 1
    assert counted == len(documents().examples(24, 0))


def test_what_is_measured_is_the_same_for_all_seeds():
    for part, same in (("test", True), ("train", False)):
        texts = [documents(seed=seed) for seed in (0, 1)]
        for text in texts:
            text.part = part
        first, second = ([str(b) for b in text.in_order(2, 24)] for text in texts)
        assert (first == second) == same


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("texts", [[[[9, 8, 7, 10]]], [[[9]]], [[[9, 8], [7, 11]]]])
def test_a_document_alone_is_halved(family, texts, refused):
    text = Documents("train", texts, vocabulary(family), device())
    assert len(text.documents) == 2
    if family == "albert" and texts == [[[9]]]:  # has no order
        assert "too few words" in refused(text.examples, 16, 0)
    else:
        assert text.examples(16, 0)


def test_sentences_longer_than_an_example_are_cut_in_pieces(capsys):
    long = list(range(5, 45))
    text = Documents("train", [[long, [7, 8]], [long[:13]]], vocabulary(), device())
    split_long((text, None), 16, device())
    first, second = text.documents
    assert [token for piece in first for token in piece] == [*long, 7, 8]
    assert [len(piece) for piece in first] == [13, 13, 13, 1, 2]
    assert second == [long[:13]]
    assert "note: 1 sentence of more than 13 tokens cut in pieces" in capsys.readouterr().out


def test_simple_models_by_hand():
    """Of a text in which b always follows a: the bigram model tells each b, and else the usual."""
    facts = vocabulary()
    a, b, c = 10, 11, 12
    train = Documents("train", [[[a, b, c, c, a, b, c]], [[c, a, b]]], facts, device())
    part = Documents("test", [[[a, b, a, b]], [[c, c, c]]], facts, device())
    found = guesses(train, part, 16)
    right, total = [0, 0], 0
    for place, example in enumerate(part.examples(16, 0)):
        masked = part.masked(example, 0, place)
        for where, target in zip(masked.places, masked.targets, strict=True):
            before = example.tokens[where - 1]
            right[0] += target == c
            # after c comes c once, a twice: of two kinds the more frequent
            right[1] += target == {a: b, b: c, c: a}.get(before, c)
            total += 1
    assert total > 3
    assert found == {"test_unigram_accuracy": right[0] / total,
                     "test_bigram_accuracy": right[1] / total}  # fmt: skip


def test_pairs_of_a_large_vocabulary_beside_a_document_of_one_token():
    """A pair is counted as one number, up to 900 million here: more digits than float32 has."""
    facts = vocabulary() | {"vocab_size": 30_000}
    chain = list(range(20_000, 20_100))
    train = Documents("train", [[chain], [[chain[0]]]], facts, device())
    part = Documents("test", [[chain[:50]], [chain[50:]]], facts, device())
    assert guesses(train, part, 16)["test_bigram_accuracy"] > 0.7  # but what follows [CLS], a mask


# ---------------------------------------------------------------------- corpora


def flags(data_set, **values):
    plain = dict(data=data_set, data_dir="data", val=0, typed=[], chosen=[], limit=None, seed=0)
    plain |= dict(stored={}, vocab_size=60, lowercase=True, copies=None)
    return cli.Flags(**plain | values)


def four_texts():
    for folder in ("movie_reviews/pos", "movie_reviews/neg", "brown", "gutenberg", "tinystories",
                   "SST2"):  # fmt: skip
        Path("data", folder).mkdir(parents=True)
    Path("data/movie_reviews/pos/1.txt").write_text("a fine film .\nit  was , well , good !\n")
    Path("data/movie_reviews/neg/2.txt").write_text("a dull one .\n")
    Path("data/brown/news.txt").write_text("The Jury said.\nIt did.\n\nAnother text.\n")
    chapter = "CHAPTER I. Down\n\n" + "Alice was\nbeginning to sit. " * 100
    Path("data/gutenberg/alice_in_wonderland.txt").write_text(
        f"ALICE\n\n\n\n{chapter}\n\n\n\n{chapter}"
    )
    Path("data/tinystories/v2_train.txt").write_text("Once.\n<|endoftext|>\nTwice.\n")
    for part in ("train", "dev", "test"):
        Path(f"data/SST2/{part}.tsv").write_text("It was well, good\t1\nno one\t0\n")


def test_english_is_four_texts_without_the_sentences_of_sst2():
    four_texts()
    corpus = corpora.CORPORA["english"](flags("english"))
    texts = [str(document) for document in corpus.parts["all"].documents]
    assert len(texts) == 2 + 2 + 2 + 2
    assert "a fine film ." in texts
    assert not any("well" in text for text in texts)
    assert "1 line" in corpus.note
    assert texts != sorted(texts)
    assert [
        str(d) for d in corpora.CORPORA["english"](flags("english")).parts["all"].documents
    ] == texts
    Path("data/SST2/train.tsv").unlink()
    Path("data/SST2/dev.tsv").unlink()
    Path("data/SST2/test.tsv").unlink()
    corpus = corpora.CORPORA["movie-reviews"](flags("movie-reviews"))
    assert corpus.note == ""
    assert any("well" in document for document in corpus.parts["all"].documents)


def test_chapters_stand_after_two_empty_lines():
    long = "word " * 500
    novel = f"A NOVEL\n\n\nby me\n\n\n\nI\n\n{long}\n\n\n\nII\n\n{long}\n\n\n\nThe end"
    first, second, end = corpora.chapters_of(novel)
    assert first.startswith("A NOVEL")
    assert second.startswith("II")
    assert end == "The end"


@pytest.mark.parametrize("name", ["movie-reviews", "gutenberg", "english"])
def test_a_corpus_that_is_not_there(name, refused):
    line = refused(corpora.CORPORA[name], flags(name))
    assert "--data-dir" in line
    assert "pydocs" in line


def test_loading(capsys, refused):
    Path("a.txt").write_text("\n".join(TEXT * 20))
    train, _, test = data.load_text(flags("text:a.txt"), device(), "bert")
    said = capsys.readouterr().out
    assert "(WordPiece)" in said
    assert "the train set is one document" in said
    assert train.facts is test.facts
    again = flags("text:a.txt", stored={"dataset": train.facts})
    assert data.load_text(again, device(), "bert")[0].facts["tokenizer"] == train.facts["tokenizer"]
    Path("b.txt").write_text("a" + "\n" * 50)
    assert "has no words" in refused(data.load_text, flags("text:b.txt"), device(), "bert")


# ---------------------------------------------------------------------- tasks


def rows(path, lines):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text("\n".join(lines) + "\n")


def task_flags(name, **values):
    columns = dict(text_column=None, second_column=None, label_column=None, regression=False)
    return flags(name, **columns | values)


def test_glue():
    head = "source\tlabel\tsentence"
    rows(
        "data/glue/CoLA/train.tsv", [head, 'x\t1\tHe "sings.', "x\t0\tSings he the.", "x\t1\tYes."]
    )
    rows("data/glue/CoLA/dev.tsv", [head, "x\t0\tNo the."])
    source = tasks.SETS["cola"](task_flags("cola"))
    assert source.classes == ["grammatical", "not grammatical"]
    assert source.parts["train"].first == ['He "sings.', "Sings he the.", "Yes."]
    assert source.parts["test"].answers.tolist() == [1]
    rows("data/glue/CoLA/dev.tsv", [head, "x\t0\tNo the.", "x\t1\tYes."])
    assert "1 sentence of the val set stand in" in tasks.SETS["cola"](task_flags("cola")).note
    head = "label\tid1\tid2\tsentence1\tsentence2"
    for part in ("train", "test"):
        rows(f"data/glue/MRPC/{part}.tsv", [head, f"1\t2\t3\ta {part}\tb", "0\t2\t3\tc\td"])
    source = tasks.SETS["mrpc"](task_flags("mrpc"))
    assert source.classes == ["different", "the same"]
    assert source.parts["test"].first == ["a test", "c"]
    assert source.parts["test"].second == ["b", "d"]
    assert source.parts["test"].answers.tolist() == [1, 0]
    for part in ("train", "dev", "test"):
        rows(f"data/glue/STS-B/{part}.tsv",
             ["genre\tscore\tsentence1\tsentence2", "m\t4.750\ta\tb", "m\t0.5\tc\td"])  # fmt: skip
    source = tasks.SETS["sts-b"](task_flags("sts-b"))
    assert source.classes == []
    assert source.parts["val"].answers.tolist() == [4.75, 0.5]


@pytest.mark.parametrize("name", ["cola", "mrpc", "sts-b", "sst2", "ag-news"])
def test_a_task_that_is_not_there(name, refused):
    line = refused(tasks.SETS[name], task_flags(name, data_dir="nowhere"))
    assert "is not in nowhere" in line
    assert "pairs:PATH" in line


def test_own_pairs(refused):
    lines = [f"a{i}\tb{i}\t{('no', 'yes')[i % 2]}" for i in range(10)]
    rows("bare.tsv", lines)
    source = tasks.SETS["pairs"](task_flags("pairs:bare.tsv"))
    assert source.classes == ["no", "yes"]
    assert sorted(source.parts["train"].first + source.parts["test"].first) == sorted(
        f"a{i}" for i in range(10))  # fmt: skip
    assert "a seeded fifth" in source.note
    rows("named.csv", ["id,answer,premise,label", *(f"{i},x{i},y{i},{i / 4}" for i in range(8))])
    read = task_flags("pairs:named.csv", regression=True)
    source = tasks.SETS["pairs"](read)
    assert source.parts["train"].answers.dtype == torch.float32
    assert source.parts["train"].first[0].startswith("y")
    assert "no classes" in refused(tasks.SETS["pairs"], task_flags("pairs:named.csv"))
    bad = task_flags("pairs:bare.tsv", regression=True)
    assert "'no' is no number" in refused(tasks.SETS["pairs"], bad)
    line = refused(tasks.SETS["pairs"], task_flags("pairs:named.csv", second_column="premiss"))
    assert "--second-column premiss" in line
    assert "did you mean premise" in line
    rows("four.tsv", ["p\tq\tr\ts", "1\t2\t3\t4"])
    line = refused(tasks.SETS["pairs"], task_flags("pairs:four.tsv"))
    assert "name that of the first text with --text-column" in line
    read = task_flags("pairs:four.tsv", text_column="q", second_column="3", label_column="s")
    table = tasks.read_table(Path("four.tsv"))
    assert tasks.pairs_of(table, read) == ([("2", "3", "4")], [])
    rows("hole.tsv", ["\tb\tyes", "\tb\tno"])
    assert "no row with two texts" in refused(tasks.SETS["pairs"], task_flags("pairs:hole.tsv"))
    rows("parts/train.tsv", lines)
    rows("parts/dev.tsv", ["a\tb\tperhaps"])
    line = refused(tasks.SETS["pairs"], task_flags("pairs:parts"))
    assert "the val set has the class 'perhaps', which the training set has not" in line
    assert "no such file" in refused(tasks.SETS["pairs"], task_flags("pairs:nowhere"))


def test_pairs_are_read_as_carefully_as_sentences(refused):
    lines = [f"a{i}\tb{i}\t{('no', 'yes')[i % 2]}" for i in range(10)]
    by_number = dict(text_column="1", second_column="2", label_column="3")

    def read(name, **more):
        source = tasks.SETS["pairs"](task_flags(f"pairs:{name}", **more))
        return sum(len(part) for part in source.parts.values()), source

    for head in ("sentence1\tsentence2\tlabel", "one\tother\tverdict"):
        rows("headed.tsv", [head, *lines])
        for more in ({}, by_number):  # a known name, or a label that stands there once
            count, source = read("headed.tsv", **more)
            assert (count, source.classes) == (10, ["no", "yes"]), (head, more)
    rows("headed.tsv", ["one\tother\tverdict", *(f"a{i}\tb{i}\t{i / 4}" for i in range(8))])
    assert read("headed.tsv", regression=True, **by_number)[0] == 8
    line = refused(lambda: read("headed.tsv", **by_number | {"second_column": "1"}))
    assert "--text-column and --second-column name the same column" in line
    rows("hole.tsv", [*lines, "\tb\tno"])
    count, source = read("hole.tsv")
    assert count == 10
    assert "1 row of hole.tsv without a text or label left out, the first in line 11" in source.note
    rows("one.tsv", [line.replace("yes", "no") for line in lines])
    assert "with one class" in read("one.tsv")[1].note
    rows("two/train.tsv", lines)
    rows("two/train.csv", [line.replace("\t", ",") for line in lines])
    assert "are both the train set" in refused(read, "two")
    rows("parts/train.tsv", lines)
    rows("parts/test.tsv", [lines[0].upper().replace("NO", "no"), "x\ty\tyes"])
    assert "1 pair of the test set stand in training, too" in read("parts")[1].note
    rows("large.tsv", ["a\tb\t1e300", "c\td\t1"])
    line = refused(lambda: read("large.tsv", regression=True))
    assert "'1e300' is larger than 3.4e+38" in line


def test_labels_that_are_new_in_the_test_part(refused):
    rows("own/train.tsv", ["text\tlabel", "a\tgood", "b\tbad"])
    rows("own/test.tsv", ["text\tlabel", "c\tfair"])
    line = refused(tasks.SETS["sentences"], task_flags("sentences:own"))
    assert "the test set has the class 'fair'" in line


def facts_of(family, length=12):
    facts = vocabulary(family)
    return facts | {"length": length, "network": {"pad": Vocabulary(facts).special.pad}}


@pytest.mark.parametrize("family", FAMILIES)
def test_texts_become_inputs(family):
    facts = facts_of(family)
    coder = Vocabulary(facts)
    (one, long), cut = tasks.encode(["the cat", "the dog " * 20], None, facts)
    assert cut == 1
    assert len(long[0]) == 12
    ids = coder.encode(["the cat"])[0]
    assert [t for t in one[0].tolist() if t not in coder.special.all] == ids
    (pair,), cut = tasks.encode(["the cat"], ["a dog"], facts)
    assert not cut
    second = coder.encode(["a dog"])[0]
    assert [t for t in pair[0].tolist() if t not in coder.special.all] == [*ids, *second]
    tokens, segments = tasks.padded([one, long], facts, device())
    assert tokens.shape == segments.shape == (2, 12)
    assert (tokens[0] == facts["network"]["pad"]).sum() == 12 - len(one[0])


def test_metrics_by_hand():
    found, wanted = torch.tensor([1, 1, 0, 0, 1]), torch.tensor([1, 0, 0, 1, 1])
    hits, wrong, missed, other = 2, 1, 1, 1
    f1 = 2 * hits / (2 * hits + wrong + missed)
    down = math.sqrt((hits + wrong) * (hits + missed) * (other + wrong) * (other + missed))
    measured = tasks.measure(["accuracy", "f1", "matthews"], found, wanted)
    matthews = (hits * other - wrong * missed) / down
    assert measured == pytest.approx({"accuracy": 3 / 5, "f1": f1, "matthews": matthews})
    x, y = torch.tensor([1.0, 2.0, 3.0, 10.0]), torch.tensor([2.0, 1.0, 3.0, 4.0])
    correlated = torch.corrcoef(torch.stack([x, y]))[0, 1].item()
    measured = tasks.measure(["pearson", "spearman"], x, y)
    assert measured == pytest.approx({"pearson": correlated, "spearman": 0.8}, abs=1e-6)
    assert tasks.measure(["pearson", "spearman"], torch.ones(4), y) == {"pearson": 0, "spearman": 0}
