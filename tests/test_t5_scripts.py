"""T5's tasks, vocabulary, mixtures, published weights, and its scripts.

Usage: torchrun --nproc-per-node 2 tests/test_t5_scripts.py FOLDER [--fsdp] trains the same way
there.
"""

import io
import json
import math
import sys
from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import torchrun
from helpers import BOTH, modes, weights
from safetensors.torch import load_file

from t5 import claims, data, published, recipes, sample, tasks, train
from t5.corruption import give_back
from t5.data import Gaps, Mixture, mixing_rates
from t5.model import END, PAD, START
from t5.tasks import judge, judged, sets_in
from t5.vocabulary import Vocabulary, make_vocabulary

SMALL = ["--num-layers", "1", "--d-model", "16", "--num-heads", "2", "--d-kv", "8", "--d-ff", "32"]
QUIET = ["--quiet", "--seed", "3"]
TEXT = "".join(f"The {w} of the {w} is a {w} . It is not a {w}ling !\n"
               for w in ("dog", "cat", "bird", "fish", "mouse") * 40)  # fmt: skip
WORDS = [f"a {w} thing" for w in ("good", "fine", "nice", "bad", "poor", "dull")]


@pytest.fixture(autouse=True)
def few_generated(monkeypatch):
    """Of each generated task a few."""
    monkeypatch.setattr(tasks, "TRAINED", 40)
    monkeypatch.setattr(tasks, "TESTED", 4)


@pytest.fixture
def files():
    """Sets of tasks, and a text."""
    Path("text.txt").write_text(TEXT)
    for name, rows in (("train", 60), ("dev", 9), ("test", 12)):
        Path("SST2").mkdir(exist_ok=True)
        lines = [f"{WORDS[i % 6]} {i}\t{int(i % 6 < 3)}\n" for i in range(rows)]
        Path("SST2", f"{name}.tsv").write_text("".join(lines))
    Path("multi30k").mkdir()
    for name, rows in (("train", 30), ("val", 5), ("test_2016_flickr", 6)):
        for language, word in (("en", "dog"), ("de", "Hund")):
            text = "".join(f"{word} {i} .\n" for i in range(rows))
            Path("multi30k", f"{name}.{language}").write_text(text)
    Path("glue/CoLA").mkdir(parents=True)
    for name, rows in (("train", 40), ("dev", 8)):
        lines = [f"x\t{i % 2}\tsentence {name} {i}\n" for i in range(rows)]
        Path(f"glue/CoLA/{name}.tsv").write_text("source\tlabel\tsentence\n" + "".join(lines))
    lines = [f"shout:\tword{i}\tWORD{i}\nlong\tword{i}\t{'yes' if i % 2 else 'no'}\n"
             for i in range(20)]  # fmt: skip
    Path("mix.tsv").write_text("".join(lines))


def loaded(*argv):
    """The parts of --data, with the flags of a small network."""
    args = train.parse_args([*QUIET, *argv, "--data-dir", "."])
    return args, data.load(args, train.Device(args))


# ---------------------------------------------------------------------- tasks


def right_answer(kind, text):
    """By other means than the generator's."""
    words = text.split()
    if kind == "add":
        return str(eval(text))
    if kind == "sort":
        return " ".join(sorted(words, key=int))
    if kind == "reverse":
        return "".join(reversed(text))
    if kind == "count":
        return str(sum(letter == "a" for letter in words[0]))
    a, b = map(int, words)
    return "=><"[(a > b) - (a < b)]


@pytest.mark.parametrize("kind", tasks.KINDS)
def test_generated_answers_are_right(kind):
    parts = {part: tasks.made(kind, part, 300, 0) for part in ("train", "val", "test")}
    for some in parts.values():
        for text, answer in zip(some.inputs, some.targets, strict=True):
            assert text.startswith(f"{kind}: ")
            assert answer == right_answer(kind, text.removeprefix(f"{kind}: "))
    inputs = {part: set(some.inputs) for part, some in parts.items()}
    assert not inputs["train"] & inputs["test"]
    assert not inputs["val"] & (inputs["train"] | inputs["test"])
    if kind == "add":  # nor the other way round
        turned = {" + ".join(reversed(text[5:].split(" + "))) for text in inputs["test"]}
        assert not {f"add: {text}" for text in turned} & inputs["train"]
    assert len({*parts["train"].targets}) >= 3
    again = tasks.made(kind, "train", 300, 1).inputs
    assert again != parts["train"].inputs


def test_the_mixture_of_generated_tasks():
    _, (train_part, val, test) = loaded("--val", "12")
    assert Counter(train_part.examples.tasks) == dict.fromkeys(
        ["date", "add", "sort", "reverse", "count", "compare"], 40
    )
    assert len(val) == 12
    assert len(test) == 24
    assert {fact["metric"] for fact in train_part.facts["tasks"].values()} == {"exact"}
    alike = loaded("--val", "12", "--seed", "4")[1]
    assert alike[2].examples == test.examples
    assert alike[0].examples != train_part.examples


def test_tasks_of_files(files):
    _, (some, val, test) = loaded("--data", "sst2+cola+multi30k+mix:mix.tsv")
    seen = {task: i for i, task in enumerate(some.examples.tasks)}
    texts = {task: (some.examples.inputs[i], some.examples.targets[i]) for task, i in seen.items()}
    assert texts["sst2"] == ("sst2 sentence: a dull thing 59", "negative")
    assert texts["cola"][0].startswith("cola sentence: sentence train")
    assert texts["cola"][1] in ("acceptable", "unacceptable")
    assert texts["multi30k"] == ("translate English to German: dog 29 .", "Hund 29 .")
    assert texts["shout"][0].startswith("shout: word")
    assert texts["shout"][1].startswith("WORD")
    metrics = {task: fact["metric"] for task, fact in some.facts["tasks"].items()}
    assert metrics == dict(sst2="accuracy", cola="matthews", multi30k="bleu", shout="exact",
                           long="accuracy")  # fmt: skip
    assert some.facts["tasks"]["sst2"]["labels"] == ["negative", "positive"]
    counts = Counter(test.examples.tasks)
    assert counts["sst2"] == 12
    assert counts["cola"] == 8  # of GLUE's the test set has no labels
    assert counts["multi30k"] == 6
    assert counts["shout"] + counts["long"] == 8
    assert Counter(val.examples.tasks)["sst2"] == 9


def test_the_other_direction(files):
    _, (some, _, _) = loaded("--data", "multi30k", "--direction", "de-en")
    assert some.examples.inputs[0] == "translate German to English: Hund 0 ."
    assert some.examples.targets[0] == "dog 0 ."


def test_a_prefix_gets_a_name_of_its_own():
    rows = [(prefix, "", "") for prefix in ("x", "x 3", "x!", "X?", "x")]
    assert list(tasks.names_of(rows).values()) == ["x", "x_3", "x_2", "x_4"]


def test_a_cell_keeps_the_quotation_marks_that_are_its_own():
    Path("q.tsv").write_text('p\t"Yes", he said, "no"\t"A" and "B"\np\t"whole"\t"x"\n')
    Path("q.csv").write_text('p,"""Yes"", he said, ""no""","""A"" and ""B"""\np,"whole","x"\n')
    for name in ("q.tsv", "q.csv"):
        found = tasks.rows_of(Path(name))
        assert found == [("p", '"Yes", he said, "no"', '"A" and "B"'), ("p", "whole", "x")]


def test_a_path_with_a_plus(files):
    Path("mix.tsv").rename("a+b.tsv")
    _, (part, _, _) = loaded("--data", "sst2+mix:a+b.tsv")
    assert set(part.by_task) == {"sst2", "shout", "long"}


def test_what_to_take_where_files_are_missing(files, refused):
    Path("multi30k/train.en").unlink()
    line = refused(loaded, "--data", "multi30k")
    assert line.endswith("take --data tasks, which needs no files")
    line = refused(loaded, "--data", "text:text.txt", "--words", "multi30k")
    assert line.endswith("take --data text:text.txt with --words no")
    loaded("--data", "text:text.txt", "--words", "no", "--vocab-size", "120")


def test_val_and_limit_of_several_sets(files):
    """Those that have a validation set of their own keep it; the limit is of all together."""
    data = ["--data", "sst2+multi30k+mix:mix.tsv"]
    _, (part, val, _) = loaded(*data, "--val", "4", "--limit", "50")
    counts = Counter(val.examples.tasks)
    assert (counts["sst2"], counts["multi30k"], counts["shout"] + counts["long"]) == (9, 5, 4)
    assert len(part) == 50
    assert set(part.by_task) >= {"sst2", "multi30k"}
    assert loaded(*data, "--val", "0")[1][1] is None


def test_a_prefix_that_is_never_trained_is_said(files, capsys):
    Path("few.tsv").write_text("".join(f"{p}\tx{i}\ty{i}\n" for i in range(8) for p in "AB"))
    argv = ["--data", "mix:few.tsv", "--limit", "1", "--val", "0", "--tokens", "chars"]
    args = train.parse_args(argv)
    part, _, _ = data.load(args, train.Device(args))
    lost = "AB".replace(part.examples.inputs[0][0], "")
    said = capsys.readouterr().out
    assert f"no row is left to train on of the prefix '{lost}'" in said


def test_names_joined_by_a_plus():
    assert sets_in("sst2") == ["sst2"]
    assert sets_in("sst2+mix:a+b.tsv+cola") == ["sst2", "mix:a+b.tsv", "cola"]
    assert sets_in("mix:a+colander.tsv") == ["mix:a+colander.tsv"]


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ("a\tb\tc\na\tb\n", "line 2 has 2 cells"),
        ("a\tb\n", "line 1 has 2 cells: each line needs three"),
        ("a\tb\tc\td\n", "line 1 has 4 cells"),
        ("a\t\tc\na\tb\tc\n", "line 1 has no input"),
        (":\tx\tc\na\tb\tc\n", "line 1 has no prefix"),
        ("a\tb\tc\nprefix\tinput\t \n", "line 2 has no target"),
        ("prefix\tinput\ttarget\n", "a header and no rows"),
        ("", "empty"),
        ("a\tb\tc\n", "one different"),
    ],
)
def test_malformed_mixtures(lines, words, refused):
    Path("mix.tsv").write_text(lines)
    line = refused(train.main, ["--data", "mix:mix.tsv", *QUIET])
    assert words.replace("one different", "1 different example") in line
    assert "mix.tsv" in line
    assert not Path("runs").exists()


def test_a_folder_of_the_users_own(refused):
    Path("own").mkdir()
    for name in ("train", "dev", "test"):
        Path("own", f"{name}.tsv").write_text(
            f"prefix\tinput\ttarget\nup\t{name}\tA\nup:\tb{name}\tB\nup\tc\tA\n"
        )
    _, (some, val, _) = loaded("--data", "mix:own")
    assert some.examples.inputs == ["up: train", "up: btrain", "up: c"]
    assert val.examples.inputs == ["up: dev", "up: bdev", "up: c"]
    Path("own/test.tsv").write_text("down\tx\ty\n")
    assert "has the prefix 'down', which training has not" in refused(
        train.main, ["--data", "mix:own", *QUIET]
    )
    Path("own/train.tsv").unlink()
    assert "no train.tsv" in refused(train.main, ["--data", "mix:own", *QUIET])
    assert "no such file" in refused(train.main, ["--data", "mix:nowhere", *QUIET])


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--data", "sst2+sst2"], "twice"),
        (["--data", "sst2+nothing"], "unknown data set"),
        (["--data", "sst2+pydocs"], "pydocs"),
        (["--data", "pydocs+sst2"], "pydocs"),
        (["--data", "names"], "mix:FILE"),
        (["--data", "sst2", "--noise", "0.3"], "--noise has no meaning"),
        (["--data", "pydocs", "--beam", "4"], "--beam has no meaning"),
        (["--data", "pydocs", "--objective", "prefix", "--span", "2"], "--span has no meaning"),
        (["--length-penalty", "1"], "add --beam"),
        (["--vocab-size", "99"], "as many characters"),
        (["--direction", "de-en"], "it is of multi30k"),
        (["--data", "multi30k"], "train.en"),
        (["--data", "pydocs", "--words", "sts2"], "unknown data set 'sts2'"),
        (["--weights", "nothing.pt"], "no such file"),
        (["--optimizer", "adafactor", "--fsdp"], "adafactor"),
        (["--schedule", "constant", "--warmup", "0.5"], "--warmup has no meaning"),
        (["--optimizer", "adafactor", "--bias-rate", "5"], "--bias-rate has no meaning"),
    ],
)
def test_bad_flags(argv, words, refused):
    assert words in refused(train.main, [*argv, *QUIET])
    assert not Path("runs").exists()


def test_more_gaps_than_sentinels(files, refused):
    argv = ["--data", "text:text.txt", "--noise", "0.9", "--span", "1", "--length", "512"]
    line = refused(train.main, [*argv, *QUIET])
    assert "the vocabulary has 100 sentinels: lower --length or --noise, or raise --span" in line
    line = refused(train.main, ["--data", "text:text.txt", "--vocab-size", "4", *QUIET])
    assert "special tokens" in line


# ---------------------------------------------------------------------- scores


def facts(**metrics):
    return {task: dict(prefix=task, metric=metric, labels=labels)
            for task, (metric, labels) in metrics.items()}  # fmt: skip


def test_an_answer_that_is_no_label_is_wrong_and_counted():
    known = facts(sst2=("accuracy", ["negative", "positive"]))
    answers, wanted = ["positive", "posit", "negative", ""], ["positive"] * 2 + ["negative"] * 2
    found, notes = judge(known, ["sst2"] * 4, answers, wanted)
    assert found == dict(accuracy=0.5, no_label=0.5, score=0.5)
    assert notes == ["sst2: 2 answers of 4 no label, counted as wrong"]


def test_matthews_correlation():
    known = facts(cola=("matthews", ["unacceptable", "acceptable"]))
    wanted = ["acceptable"] * 3 + ["unacceptable"]
    perfect, _ = judge(known, ["cola"] * 4, wanted, wanted)
    assert perfect["score"] == perfect["matthews"] == perfect["accuracy"] == 1
    lazy, _ = judge(known, ["cola"] * 4, ["acceptable"] * 4, wanted)
    assert lazy["matthews"] == 0
    assert lazy["accuracy"] == 0.75
    strange, _ = judge(known, ["cola"] * 4, ["x"] * 4, wanted)
    assert strange["matthews"] == -1
    assert strange["no_label"] == 1


def test_means_over_tasks():
    known = facts(a=("exact", []), b=("exact", []), t=("bleu", []))
    names = ["a"] * 3 + ["b"] + ["t"] * 2
    wanted = ["1", "2", "3", "4", "ein Hund läuft schnell .", "zwei Frauen reden viel ."]
    found, notes = judge(known, names, ["1", "x", "x", "4", *wanted[4:]], wanted)
    assert found["a_exact"] == pytest.approx(1 / 3)
    assert found["b_exact"] == 1
    assert found["exact"] == pytest.approx(2 / 3)
    assert found["bleu"] == found["t_bleu"] == pytest.approx(1)
    assert found["score"] == pytest.approx((1 / 3 + 1 + 1) / 3)
    assert notes[0].startswith("t: BLEU 100.00")


def test_how_answers_are_judged():
    assert judged("x", ["yes", "no"] * 5).metric == "accuracy"
    assert judged("x", ["yes", "no"] * 5).labels == ["no", "yes"]
    assert judged("x", [f"{i}" for i in range(50)]).metric == "exact"
    assert judged("x", [f"the {i} of all of them" for i in range(50)]).metric == "bleu"


# ---------------------------------------------------------------------- vocabulary


@pytest.mark.parametrize("kind", ["pieces", "chars"])
def test_a_vocabulary(kind):
    made = make_vocabulary([TEXT], kind, 120, 10)
    known = Vocabulary(made)
    assert known.known == made["vocab_size"]
    assert kind == "chars" or made["vocab_size"] <= 120
    names = [known.tokenizer.id_to_token(i) for i in range(known.known)]
    assert names[:3] == ["<pad>", "</s>", "<unk>"]
    assert names[-10:] == [f"<extra_id_{i}>" for i in reversed(range(10))]
    assert known.sentinels == list(range(known.known - 1, known.known - 11, -1))
    texts = ["The dog is a bird .", "It is not a fishling !"]
    found = known.encode(texts, 100)
    assert known.decode(found.tokens) == texts
    assert all(row[-1] == END for row in found.tokens)
    assert found.cut == 0
    assert make_vocabulary([TEXT], kind, 120, 10) == made
    if kind == "pieces":
        assert len(found.tokens[0]) < len(texts[0]) - 4


def test_special_tokens_in_a_text_are_text():
    known = Vocabulary(make_vocabulary([TEXT, "</s><pad>extra_id_0"], "chars", 0, 3))
    (row,) = known.encode(["a</s><pad><extra_id_0>"], 90).tokens
    assert len(row) == len("a</s><pad><extra_id_0>") + 1
    assert not {PAD, END, *known.sentinels} & set(row[:-1].tolist())
    (row,) = Vocabulary(make_vocabulary([TEXT], "pieces", 120, 3)).encode(["a </s>"], 9).tokens
    assert not {PAD, END} & set(row[:-1].tolist())
    (row,) = known.encode_prompt("a<extra_id_0>b </s>", 90).tokens
    assert known.sentinels[0] in row
    assert END not in row[:-1]
    with pytest.raises(ValueError, match="no <extra_id_7>"):
        known.encode_prompt("a<extra_id_7>", 90)


def test_sentinels_that_are_pieces_of_the_model():
    """As in the released tokenizer.json: only where they are asked for are they sentinels."""
    whole = json.loads(make_vocabulary([TEXT], "pieces", 120, 2)["tokenizer"])
    whole["model"]["vocab"] += [["<extra_id_1>", 0.0], ["<extra_id_0>", 0.0]]
    known = Vocabulary(published.facts_of(json.dumps(whole), 120))
    (row,) = known.encode(["The <extra_id_0> dog"], 30).tokens
    assert not set(known.sentinels) & set(row.tolist())
    (row,) = known.encode_prompt("The <extra_id_0> dog", 30).tokens
    assert row.tolist().count(known.sentinels[0]) == 1


def test_a_prefix_is_a_token_of_characters():
    known = Vocabulary(make_vocabulary([], "chars", 0, 2, ["sort: 3 1", "13"], ["sort", "a b"]))
    (row,) = known.encode(["sort: 3 1"], 90).tokens
    assert [known.tokenizer.id_to_token(i) for i in row[:-1].tolist()] == [
        "sort:",
        "▁",
        "3",
        "▁",
        "1",
    ]
    assert known.decode([row.tolist()]) == ["sort: 3 1"]
    assert known.sentinels == [known.known - 1, known.known - 2]


def test_cut_texts_and_strange_characters():
    known = Vocabulary(make_vocabulary([TEXT], "chars", 0, 3))
    found = known.encode(["The dog", "the ü dog", "a"], 5)
    assert [len(row) for row in found.tokens] == [5, 5, 2]
    assert found.cut == 2
    assert found.unknown == ["ü"]
    assert found.tokens[0][-1] == END


def test_more_characters_than_the_vocabulary_has_room_for(files):
    """The rarest become <unk>."""
    signs = [chr(0x4E00 + i) for i in range(2000)]
    chinese = "\n".join("".join(signs[:i]) for i in range(10, 2000, 40))
    for text, size, kept, lost in ((chinese, 600, signs[0], signs[1990]), (TEXT, 19, "i", "m")):
        made = make_vocabulary([text], "pieces", size, 10)
        assert made["vocab_size"] <= size
        known = Vocabulary(made)
        assert known.encode([kept], 9).unknown == []
        assert known.encode([lost], 9).unknown == [lost]
        assert made == make_vocabulary([text], "pieces", size, 10)
    part = loaded("--data", "pydocs", "--limit", "20000", "--vocab-size", "60", "--val", "0")[1][0]
    assert part.facts["vocab_size"] <= 60


def test_unknown_characters_of_a_text_are_said(capsys):
    Path("text.txt").write_text(TEXT + "\u4e00\u4e01 \n" * 100)
    args = train.parse_args(["--data", "text:text.txt", "--val", "0", "--vocab-size", "120"])
    _, _, test = data.load(args, train.Device(args))
    count = int((test.tokens.values == 2).sum())
    assert count > 50
    assert f"{count:,} of {len(test):,} tokens of the test set are <unk>" in capsys.readouterr().out


def test_a_part_of_white_space_alone(refused):
    Path("white.txt").write_text(TEXT + " \n" * 4000)
    line = refused(loaded, "--data", "text:white.txt", "--vocab-size", "120", "--val", "0")
    assert "the test set of text:white.txt is 0 tokens" in line


def test_characters_keep_the_ends_of_lines_and_spaces(files):
    _, (part, _, _) = loaded("--data", "text:text.txt", "--tokens", "chars", "--length", "64")
    text = Vocabulary(part.facts).decode([part.tokens.take(torch.zeros(1).long(), 60)[0].tolist()])
    assert text == [TEXT[:60].replace("\n", " ").strip()]
    assert "! The" in Vocabulary(part.facts).decode([part.tokens.values.tolist()])[0]
    known = Vocabulary(part.facts)
    for text in ("The <extra_id_0> is", "Th<extra_id_0>og <extra_id_1> <extra_id_2>a"):
        (row,) = known.encode_prompt(f" {text} ", 90).tokens
        assert known.decode([row.tolist()]) == [text]


def test_a_vocabulary_knows_more_words(files):
    made = loaded("--data", "text:text.txt", "--words", "multi30k", "--vocab-size", "150")[1][0]
    bare = loaded("--data", "text:text.txt", "--vocab-size", "150")[1][0]
    known = [Vocabulary(part.facts).encode(["Hund"], 9).unknown for part in (made, bare)]
    assert known[0] == []
    assert known[1] != []


def spm(pieces, charsmap=b""):
    """A model of SentencePiece as bytes, written by hand."""
    import struct

    def field(number, raw):
        size, head = len(raw), b""
        while size > 127:
            head, size = head + bytes([size & 127 | 128]), size >> 7
        return bytes([number << 3 | 2]) + head + bytes([size]) + raw

    raw = b""
    for text, score in pieces:
        score = bytes([2 << 3 | 5]) + struct.pack("<f", score)
        raw += field(1, field(1, text.encode()) + score + bytes([3 << 3, 1]))
    return raw + field(2, bytes([3 << 3, 0x90, 3])) + field(3, field(2, charsmap))


def test_a_model_of_sentencepiece():
    pieces = [("<pad>", 0), ("</s>", 0), ("<unk>", 0), ("▁", -2), ("▁the", -1), ("d", -3),
              ("o", -3), ("g", -3), ("▁dog", -1.5)]  # fmt: skip
    text = published.from_sentencepiece(spm(pieces))
    known = Vocabulary(published.facts_of(text, 128))
    assert known.known == 109
    (row,) = known.encode(["the  dog do"], 20).tokens
    assert row.tolist() == [4, 8, 3, 5, 6, END]
    assert known.decode([row.tolist()]) == ["the dog do"]
    assert known.sentinels == list(range(108, 8, -1))
    for broken in (spm(pieces[1:]), spm(pieces)[:-3], b"\xff\xff", b"\x0f"):
        with pytest.raises((ValueError, IndexError, KeyError)):
            published.from_sentencepiece(broken)


# ---------------------------------------------------------------------- data


def test_gaps_of_a_text(files):
    _, (part, val, test) = loaded("--data", "text:text.txt", "--length", "32", "--vocab-size",
                                     "120", "--val", "1000")  # fmt: skip
    assert isinstance(part, Gaps)
    assert part.raw == 34
    known = Vocabulary(part.facts)
    batches = part.steps(4, 3)
    steps = list(batches)
    assert len(steps) == len(batches) == 3
    source, target, count = steps[0]
    assert source.shape == (4, 32)
    assert (target[:, 0] == START).all()
    assert count == target[:, 1:].numel()
    whole = part.tokens.take(torch.zeros(1).long(), len(part.tokens))[0].tolist()
    for a, b in zip(source.tolist(), target.tolist(), strict=True):
        text = give_back(a[:-1], b[1:-1], known.sentinels)
        assert len(text) == 34
        assert any(whole[i : i + 34] == text for i in range(len(whole)))
    assert not torch.equal(steps[0][0], steps[1][0])
    batches.seek(0, 2)
    assert torch.equal(next(iter(batches))[0], steps[2][0])
    seen = list(test.in_order(2))
    assert sum(len(batch.source) for batch in seen) == len(test) // 34
    assert torch.equal(next(iter(test.in_order(2))).source, seen[0].source)
    assert len(val) > 34


def test_texts_cut_in_two(files):
    _, (part, _, _) = loaded("--data", "text:text.txt", "--length", "32", "--objective", "prefix",
                             "--vocab-size", "120")  # fmt: skip
    source, target, count = next(iter(part.steps(8, 3)))
    assert count == (target[:, 1:] != PAD).sum()
    sizes = (source != PAD).sum(1) + (target[:, 1:] != PAD).sum(1)
    assert (sizes == 32 + 2).all()  # no part is longer than --length: the text is no longer itself
    assert source.shape[1] <= 32
    assert len(set((source != PAD).sum(1).tolist())) > 2


def test_mixing_rates():
    sizes = dict(a=100, b=900, c=5000)
    assert mixing_rates(sizes) == pytest.approx(dict(a=1 / 60, b=0.15, c=5 / 6))
    assert mixing_rates(sizes, most=900) == pytest.approx(dict(a=1 / 19, b=9 / 19, c=9 / 19))
    assert mixing_rates(sizes, 2.0) == pytest.approx(
        dict(zip("abc", (w / (10 + 30 + 5000**0.5) for w in (10, 30, 5000**0.5)), strict=True))
    )
    assert mixing_rates(sizes, 1e9) == pytest.approx(dict.fromkeys("abc", 1 / 3), rel=1e-3)
    assert mixing_rates(sizes, 0.001) == pytest.approx(dict(a=0, b=0, c=1))


def test_perfect_answers_are_right(files):
    """White space in targets is as answers are written."""
    lines = [f'p,in{i},"out  {i}\nof"\nq,in{i},"{"yes" if i % 2 else "not  so"}"\n'
             for i in range(30)]  # fmt: skip
    Path("mix.csv").write_text("".join(lines))
    for tokens in ("chars", "pieces"):
        _, (_, _, test) = loaded("--data", "mix:mix.csv", "--tokens", tokens, "--val", "0")
        assert test.facts["tasks"]["q"]["labels"] == ["not so", "yes"]
        answers = test.vocabulary.decode([row.tolist() for row in test.targets.tokens])
        found = test.score(answers)
        assert found["test_p_exact"] == found["test_q_accuracy"] == 1
        assert found["test_no_label"] == 0


def test_a_mixture_by_its_rates(files):
    _, (part, _, _) = loaded("--data", "sst2+multi30k")  # 60 and 30
    assert isinstance(part, Mixture)
    batches = part.steps(10, 160)
    marks = {tuple(tokens.tolist()): (task, i) for i, (task, tokens) in
             enumerate(zip(part.examples.tasks, part.sources.tokens, strict=True))}  # fmt: skip
    seen = [marks[tuple(t for t in row.tolist() if t != PAD)] for source, _, _ in batches
            for row in source]  # fmt: skip
    counts = Counter(task for task, _ in seen)
    assert len(seen) == 1600
    assert counts["sst2"] / 1600 == pytest.approx(2 / 3, abs=0.05)
    times = Counter(seen)
    for task, size in (("sst2", 60), ("multi30k", 30)):  # none again before all have come
        own = [times[key] for key in times if key[0] == task]
        assert len(own) == size
        assert max(own) - min(own) <= 1
    few = Counter(
        marks[tuple(t for t in row.tolist() if t != PAD)][0]
        for source, _, _ in part.steps(10, 80, 1e9)
        for row in source
    )
    assert few["sst2"] / 800 == pytest.approx(1 / 2, abs=0.06)


def test_a_step_has_its_share_of_each_task(files):
    """Steps of examples of like length would be of one task after another."""
    _, (part, _, _) = loaded("--data", "sst2+multi30k")
    marks = {tuple(tokens.tolist()): task for task, tokens in
             zip(part.examples.tasks, part.sources.tokens, strict=True)}  # fmt: skip
    steps = [[marks[tuple(t for t in row.tolist() if t != PAD)] for row in source]
             for source, _, _ in part.steps(30, 40)]  # fmt: skip
    for names in steps:
        assert 8 <= names.count("sst2") <= 29  # 20 in the mean, within four standard deviations
    first = Counter(names[0] for names in steps)  # and in no order: micro-batches are mixed, too
    assert min(first["sst2"], first["multi30k"]) >= 5


def test_a_mixture_begun_anywhere_is_the_same(files):
    _, (part, _, _) = loaded("--data", "sst2+multi30k")
    steps = list(part.steps(4, 40))
    for first in (1, 7, 8, 23, 39):
        batches = part.steps(4, 40)
        batches.seek(0, first)
        for one, other in zip(batches, steps[first:], strict=True):
            assert torch.equal(one[0], other[0])
            assert torch.equal(one[1], other[1])
    second = part.steps(4, 20)
    second.seek(1, 0)
    assert torch.equal(next(iter(second))[0], steps[20][0])


def test_long_targets_are_cut_and_that_is_said(files, capsys):
    Path("mix.tsv").write_text("".join(f"p\tin{i}\t{'y' * (i + 1)}\n" for i in range(40)))
    argv = ["--data", "mix:mix.tsv", *SMALL, "--target-length", "9", "--tokens", "chars"]
    train.main([*argv, "--max-steps", "1", "--length", "6"])
    said = capsys.readouterr().out
    assert "32 targets cut at 9 tokens (--target-length)" in said
    assert "30 sources cut at 6 tokens (--length)" in said


# ---------------------------------------------------------------------- published weights


def folder_of(kind="v1.0", safe=True, tokenizer=True, **settings):
    """A folder as transformers writes it."""
    from transformers import T5Config, T5ForConditionalGeneration

    made = make_vocabulary([TEXT], "pieces", 100, 10)
    sizes = dict(vocab_size=104, d_model=16, d_kv=6, d_ff=32, num_layers=2, num_heads=3)
    sizes |= dict(decoder_start_token_id=0) | settings
    if kind == "v1.1":
        sizes |= dict(feed_forward_proj="gated-gelu", tie_word_embeddings=False)
    theirs = T5ForConditionalGeneration(T5Config(**sizes))
    generator = torch.Generator().manual_seed(0)
    for p in theirs.parameters():
        p.data += 0.1 * torch.randn(p.shape, generator=generator)
    if kind == "v1.1":
        theirs.config.tie_word_embeddings = False
        theirs.lm_head.weight = torch.nn.Parameter(torch.randn(104, 16, generator=generator))
    theirs.save_pretrained("theirs")
    if not safe:
        state = dict(theirs.state_dict())
        state[published.UNREAD] = torch.zeros(32, 3)  # as in the oldest file of t5-small
        torch.save(state, "theirs/pytorch_model.bin")
        Path("theirs/model.safetensors").unlink()
    if tokenizer:
        Path("theirs/tokenizer.json").write_text(made["tokenizer"])
    return theirs.eval()


@pytest.mark.parametrize("kind", ["v1.0", "v1.1"])
@pytest.mark.parametrize("safe", [True, False])
def test_weights_as_transformers_writes_them(kind, safe):
    theirs = folder_of(kind, safe)
    found = published.read_published("theirs")
    ours = found.build().eval()
    assert found.network["tied"] == (kind == "v1.0")
    assert found.vocabulary["vocab_size"] == 104
    source, target = torch.randint(3, 100, (2, 9)), torch.randint(3, 100, (2, 5))
    with torch.no_grad():
        wanted = theirs(input_ids=source, decoder_input_ids=target).logits
        torch.testing.assert_close(ours(source, target), wanted, rtol=1e-4, atol=1e-4)


def test_weights_that_do_not_fit(refused):
    folder_of()
    read, config = published.read_published, json.loads(Path("theirs/config.json").read_text())
    for change, words in (({"model_type": "bart"}, "config.json says bart"),
                          ({"layer_norm_epsilon": 1e-5}, "layer_norm_epsilon is 1e-05"),
                          ({"feed_forward_proj": "gated-silu"}, "gated-silu"),
                          ({"feed_forward_proj": "gated-gelu"}, "gated-gelu"),
                          ({"tie_word_embeddings": False}, "lm_head.weight")):  # fmt: skip
        Path("theirs/config.json").write_text(json.dumps(config | change))
        assert words in refused(read, "theirs")
    Path("theirs/config.json").write_text(json.dumps(config))
    Path("theirs/tokenizer.json").write_text("{")
    assert "tokenizer is damaged" in refused(read, "theirs")
    large = make_vocabulary([TEXT], "chars", 0, 90)["tokenizer"]
    Path("theirs/tokenizer.json").write_text(large)
    assert "they have 104" in refused(read, "theirs")
    Path("theirs/tokenizer.json").unlink()
    line = refused(train.main, ["--weights", "theirs", "--data", "tasks", *QUIET])
    assert "no tokenizer.json or spiece.model" in line
    state = load_file("theirs/model.safetensors")
    torch.save({k: v for k, v in state.items() if "shared" not in k}, "part.pt")
    assert "holds the weights of no T5" in refused(read, "part.pt")
    torch.save({**state, "encoder.embed_tokens.weight": torch.zeros(104, 16)}, "apart.pt")
    assert "table of embeddings of its own" in refused(read, "apart.pt", lambda *_: None)
    short = {k: v for k, v in state.items() if "decoder.block.1" not in k}
    torch.save(short, "short.pt")
    assert "2 layers in the encoder and 1" in refused(read, "short.pt", lambda *_: None)
    Path("bare").mkdir()
    assert "holds no model.safetensors" in refused(read, "bare")


def test_names_of_the_hub():
    assert published.model_of("t5-base") == "t5_base"
    folder_of("v1.1")
    assert published.model_of("theirs") == "t5_v1_1_small"  # the nearest in width
    assert published.model_of("theirs/model.safetensors") == "t5_v1_1_small"
    for name in published.SIZES:
        row = published.SIZES[name]
        assert published.nearest_model(row, "v1_1" in name) == f"t5_{name}"
    assert published.model_of("nowhere") is None
    assert {kind for _, kind in published.PUBLISHED.values()} <= set(train.MODELS)


# ---------------------------------------------------------------------- train.py


def run(*argv, folder="run"):
    return train.main([*argv, *QUIET, "--run-dir", folder, "--data-dir", "."])


STEPS = ["--steps", "6", "--every", "3", "--batch-size", "6", "--val", "6"]


@pytest.mark.parametrize("architecture", ["encoder-decoder", "prefix-lm"])
def test_a_run_on_tasks(architecture, monkeypatch):
    seen = modes(train, monkeypatch, "make")
    found = run(*SMALL, *STEPS, "--architecture", architecture)
    assert seen >= BOTH
    kinds = ["date", "add", "sort", "reverse", "count", "compare"]
    assert {f"test_{kind}_exact" for kind in kinds} | {"test_exact", "test_loss"} <= set(found)
    assert all(0 <= v <= 1 for k, v in found.items() if "exact" in k)
    answers = Path("run/answers.txt").read_text().splitlines()
    assert len(answers) == 24
    rows = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [3, 6, 6]
    assert "val_score" in rows[0]
    args = train.parse_args(STEPS)
    rates = [args.lr * train.step_size(args, step) for step in (3, 6)]  # not the tables' tenfold
    assert [row["lr"] for row in rows[:2]] == pytest.approx(rates)
    again = run("--evaluate", "run/last.pt", folder="again")
    assert again["test_loss"] == pytest.approx(found["test_loss"])
    assert again["test_exact"] == found["test_exact"]


def test_a_run_on_a_text_then_on_tasks(files):
    found = run("--data", "text:text.txt", "--words", "sst2", *SMALL, "--steps", "4",
                "--every", "2", "--batch-size", "64", "--length", "32", "--vocab-size", "120",
                "--val", "1000")  # fmt: skip
    assert set(found) >= {"test_loss", "test_token_accuracy", "train_loss"}
    tuned = run("--weights", "run", "--data", "sst2+multi30k", *STEPS[:-2], "--beam", "2",
                folder="tuned")  # fmt: skip
    assert set(tuned) >= {"test_sst2_accuracy", "test_sst2_no_label", "test_multi30k_bleu"}
    kept = torch.load("tuned/last.pt")["dataset"]
    assert kept["tokenizer"] == torch.load("run/last.pt")["dataset"]["tokenizer"]
    assert set(kept["tasks"]) == {"sst2", "multi30k"}
    Path("alone").mkdir()
    Path("run/last.pt").rename("alone/copy.pt")
    assert published.model_of("alone/copy.pt") == "t5_tiny"
    resumed = run("--resume", "--steps", "8", folder="tuned")
    assert set(resumed) == set(tuned)


def test_evaluated_on_other_data(files, refused):
    run(*SMALL, "--max-steps", "1", "--val", "0", folder="tasks")
    found = run("--evaluate", "tasks/last.pt", "--data", "mix:mix.tsv", folder="other")
    assert set(found) >= {"test_shout_exact", "test_long_accuracy", "test_no_label"}
    assert "test_date_exact" not in found
    again = run("--evaluate", "tasks/last.pt", folder="again")
    assert "test_date_exact" in again
    for flag, name in (("--evaluate", "tasks/last.pt"), ("--weights", "tasks")):
        line = refused(run, flag, name, "--data", "text:text.txt")
        assert "it can't mark gaps" in line
    text = ["--data", "text:text.txt", "--length", "32", "--max-steps", "1", "--val", "0"]
    run("--weights", "tasks", *text, "--objective", "prefix", folder="prefix")
    run(*text, *SMALL, "--vocab-size", "120", folder="text")
    found = run("--evaluate", "text/last.pt", "--data", "sst2", folder="third")
    assert set(found) >= {"test_accuracy", "test_no_label"}


WINDOWS = ["--data", "text:text.txt", "--length", "32", "--vocab-size", "120"]


@pytest.mark.parametrize(
    ("argv", "wanted"),
    [
        ([], 128),
        (["--accumulate", "4"], 32),
        (["--batch-size", "8"], 32),
        (["--batch-size", "512"], 256),
        (["--beam", "300"], 1),
        (["--beam", "4"], 32),
        ([*WINDOWS], 128),
        ([*WINDOWS, "--accumulate", "8"], 16),
    ],
)
def test_examples_measured_together(argv, wanted, files, monkeypatch):
    """So many as there is memory for, where a step fits into it."""
    args = train.parse_args([*QUIET, *SMALL, *argv, "--val", "0"])
    dev = train.Device(args)
    part = data.load(args, dev)[2]
    seen = []
    monkeypatch.setattr(part, "in_order", lambda rows: seen.append(rows) or iter(()))
    with pytest.raises(ZeroDivisionError):  # of no examples there is no mean
        train.evaluate(train.make(args, part.facts, None), part, dev, args, args.beam)
    assert seen == [wanted]


def test_a_text_is_measured_with_the_same_gaps_whatever_the_batch(files):
    _, (_, _, test) = loaded("--data", "text:text.txt", "--length", "32", "--vocab-size", "120")
    for objective in ("spans", "prefix"):
        test.objective = objective
        one, other = list(test.in_order(2)), list(test.in_order(5))
        for k, name in enumerate(("source", "target")):
            rows = [[[t for t in row if t] for batch in some for row in batch[k].tolist()]
                    for some in (one, other)]  # fmt: skip
            assert rows[0] == rows[1], name


def test_sums_have_a_type_that_the_device_has(monkeypatch):
    """Apple's has no float64."""
    kinds, zeros = [], torch.zeros

    def made(*shape, dtype, device):
        kinds.append(dtype)
        return zeros(*shape, dtype=dtype)

    monkeypatch.setattr(torch, "zeros", made)

    class Flat(torch.nn.Module):
        def forward(self, *_):
            return torch.ones(2, 3, 5)

    some = torch.ones(2, 4, dtype=torch.int64)
    part = SimpleNamespace(part="val", in_order=lambda _rows: [(some, some, 6, some[:, 0])])
    args = SimpleNamespace(batch_size=8)
    for name in ("mps", "cpu"):
        how = dict(world=1, accumulate=1, sum=lambda x: x, gather=lambda x: [x])
        dev = SimpleNamespace(device=SimpleNamespace(type=name), autocast=nullcontext, **how)
        found, _ = train.evaluate(Flat(), part, dev, args)
        assert found["val_loss"] == pytest.approx(math.log(5))
    assert kinds == [torch.float32, torch.float64]


def test_best_weights_are_tested_with_patience():
    argv = [*SMALL, "--steps", "8", "--every", "2", "--batch-size", "6", "--val", "12"]
    found = run(*argv, "--lr", "1e-9", "--patience", "2")
    rows = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if not row.get("final")] == [2, 4, 6]
    kept = run("--evaluate", "run/best.pt", folder="again")
    assert kept["test_loss"] == pytest.approx(found["test_loss"], rel=1e-6)


def test_compiled_training_is_the_same(files, monkeypatch):
    """Traced; what a compiler makes of it, tests of `common` see."""
    own = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda net: own(net, backend="eager"))
    argv = [*SMALL, *WINDOWS, "--batch-size", "128", "--max-steps", "2", "--val", "0"]
    run(*argv, folder="plain")
    run(*argv, "--compile", folder="compiled")
    one, other = weights("plain"), weights("compiled")
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=1e-3, atol=2e-5)


def test_a_rate_that_a_run_has_settled(refused):
    run(*SMALL, "--max-steps", "1", "--val", "0")
    assert "holds bias_rate 10.0" in refused(run, "--resume", "--bias-rate", "1")


def test_published_weights_go_on(files):
    folder_of()
    run("--weights", "theirs", "--data", "sst2", *STEPS[:-2], "--optimizer", "adafactor")
    state = torch.load("run/last.pt")
    assert state["dataset"]["network"]["d_model"] == 16
    assert state["dataset"]["published"]
    found = run("--evaluate", "run/last.pt", folder="again")
    assert "test_accuracy" in found


def test_weights_of_another_model(refused):
    folder_of()
    line = refused(train.main, ["--weights", "theirs", "--model", "t5_v1_1_small", *QUIET])
    assert "leave --model out" in line
    Path("other.pt").write_bytes(b"x" * 300)
    assert "other.pt" in refused(train.main, ["--weights", "other.pt", *QUIET])


@pytest.mark.parametrize("source", ["tasks", "text:text.txt"])
def test_resumed_is_uninterrupted(source, files):
    own = [] if source == "tasks" else ["--length", "32", "--vocab-size", "120", "--val", "500"]
    argv = ["--data", source, *SMALL, "--steps", "6", "--every", "4", "--dropout", "0.1", *own]
    argv += ["--batch-size", "6" if source == "tasks" else "96"]
    run(*argv, folder="whole")
    run(*argv, "--max-steps", "3", folder="parts")
    run("--resume", folder="parts")
    one, other = weights("whole"), weights("parts")
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("source", ["tasks", "text:text.txt"])
def test_accumulated_parts_are_the_whole_step(source, files):
    own = [] if source == "tasks" else ["--length", "32", "--vocab-size", "120", "--val", "500"]
    argv = ["--data", source, *SMALL, "--steps", "3", "--every", "3", *own]
    argv += ["--batch-size", "8" if source == "tasks" else "128"]
    run(*argv, folder="whole")
    run(*argv, "--accumulate", "4", folder="parts")
    one, other = weights("whole"), weights("parts")
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=1e-3, atol=2e-5)


def test_parts_have_examples_of_like_length(files):
    """The same examples in a step as ever, less padding in its parts."""
    (_, (whole, *_)), (_, (cut, *_)) = loaded(), loaded("--accumulate", "4")
    one, four = list(whole.steps(32, 3)), list(cut.steps(32, 3))
    assert len(four) == 4 * len(one)
    for step, (source, target, count) in enumerate(one):
        some = four[4 * step : 4 * step + 4]
        assert sum(part[2] for part in some) == count
        rows = Counter(tuple(row[row != PAD].tolist()) for row in source)
        assert rows == Counter(tuple(row[row != PAD].tolist()) for part in some for row in part[0])
        padded = sum(part[0].numel() + part[1].numel() for part in some)
        assert padded < 0.8 * (source.numel() + target.numel())


def test_a_batch_that_can_not_be_shared(refused):
    argv = [*SMALL, "--batch-size", "7", "--accumulate", "2", *QUIET]
    assert "can't share: choose a multiple" in refused(train.main, argv)


TWO = ["--steps", "3", "--every", "3", "--batch-size", "8", "--val", "0"]


@pytest.mark.parametrize("how", [(), ("--fsdp",)], ids=["ddp", "fsdp"])
def test_two_processes_train_as_one(how):
    process = torchrun(__file__, "two", *how)
    assert process.returncode == 0, process.stdout + process.stderr
    found = run(*SMALL, *TWO, folder="one")
    one, two = weights("one"), weights("two")
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=1e-3, atol=2e-5)
    last = json.loads(Path("two/metrics.jsonl").read_text().splitlines()[-1])
    assert last["test_loss"] == pytest.approx(found["test_loss"], rel=1e-3)
    assert len(Path("two/answers.txt").read_text().splitlines()) == 24


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision_trains(precision):
    argv = [*SMALL, "--max-steps", "2", "--val", "0"]
    found = run(*argv, "--precision", precision)
    wanted = run(*argv, "--precision", "fp32", folder="whole")
    assert found["test_loss"] == pytest.approx(wanted["test_loss"], rel=0.02)


def test_adafactors_rate_is_the_papers():
    """Its own rule, the lesser of the rate and 1/sqrt(step), and ours are the same."""
    args = train.parse_args(["--paper"])
    shares = [args.lr * train.step_size(args, step) for step in (0, 99, 9_999, 39_999, 524_287)]
    wanted = [max(step, 10_000) ** -0.5 for step in (1, 100, 10_000, 40_000, 524_288)]
    assert shares == pytest.approx(wanted, rel=1e-3)
    assert args.optimizer == "adafactor"
    assert args.batch_size == 128 * 512


def test_papers_recipes():
    tune = train.parse_args(["--paper", "--weights", "t5-small", "--data", "sst2"])
    assert (tune.model, tune.steps, tune.lr, tune.schedule) == ("t5_small", 2**18, 1e-3, "constant")
    assert tune.dropout == 0.1
    assert tune.objective is None
    assert tune.patience > tune.steps // tune.every  # the best by validation, at the end
    assert train.parse_args(["--paper", "--weights", "t5-small", "--data", "sst2", "--val", "0"]
                            ).patience is None  # fmt: skip
    assert train.parse_args(["--paper", "--model", "t5_v1_1_base"]).dropout == 0
    assert train.step_size(tune, 5) == 1
    assert recipes.recipe("t5_tiny", "english", False)[0]["words"] == "multi30k"


# ---------------------------------------------------------------------- sample.py


@pytest.fixture
def trained(files):
    """A run on tasks; and in `gaps` one on a text."""
    run(*SMALL, "--max-steps", "2", "--val", "0")


def test_answers(trained, capsys):
    found = sample.main(["--checkpoint", "run/last.pt", "add: 1 + 2", "reverse: abc"])
    assert list(found) == ["add: 1 + 2", "reverse: abc"]
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 2
    assert "no prefix" not in err
    folder = Path("run/samples")
    assert {p.name for p in folder.iterdir()} == set(sample.MADE)
    assert folder.joinpath("answers.txt").read_text().splitlines() == list(found.values())
    again = sample.main(["--checkpoint", "run/last.pt", "reverse: abc", "--beam", "1"])
    assert again["reverse: abc"] == found["reverse: abc"]


def test_a_prefix_never_seen_is_said(trained, capsys):
    sample.main(["--checkpoint", "run/last.pt", "subtract: 1 - 2", "hello"])
    err = capsys.readouterr().err
    assert '"subtract" is no prefix the network was trained with; known are "date:"' in err
    assert '"hello" is no prefix' in err


def test_drawn_answers(trained):
    argv = ["--checkpoint", "run/last.pt", "sort: 3 1 2", "--temperature", "3", "--top-k", "20"]
    drawn = [sample.main([*argv, "--seed", seed]) for seed in ("0", "0", "1")]
    assert drawn[0] == drawn[1] != drawn[2]


def test_examples_of_the_test_part(trained, capsys):
    found = sample.main(["--checkpoint", "run/last.pt"])
    assert len(found) == 10
    assert "(wanted: " in capsys.readouterr().out


def test_gaps_are_filled(files, capsys):
    run("--data", "text:text.txt", *SMALL, "--max-steps", "1", "--length", "32", "--vocab-size",
        "120", "--val", "0")  # fmt: skip
    argv = ["--checkpoint", "run/last.pt"]
    (found,) = sample.main([*argv, "The <extra_id_0> is a <extra_id_1> bird ."]).values()
    assert found.startswith("The")
    assert "<extra_id" not in found
    assert "no prefix" not in capsys.readouterr().err
    assert len(sample.main(argv)) == 10
    capsys.readouterr()
    sample.main([*argv, "plain: text", "other: text"])
    assert capsys.readouterr().err.count("trained to fill gaps alone") == 1


def test_a_network_that_goes_on_with_texts(files, capsys):
    run("--data", "text:text.txt", *SMALL, "--max-steps", "1", "--length", "32", "--vocab-size",
        "120", "--val", "0", "--objective", "prefix")  # fmt: skip
    assert len(sample.main(["--checkpoint", "run/last.pt"])) == 10
    assert "note:" not in capsys.readouterr().err
    sample.main(["--weights", "run", "The dog", "A <extra_id_0>", "--out", "out"])
    assert "to go on with texts, not to fill gaps" in capsys.readouterr().err


@pytest.mark.parametrize("hub", [True, False])
@pytest.mark.parametrize("kind", ["v1.0", "v1.1"])
def test_prefixes_of_published_weights(hub, kind, monkeypatch, capsys):
    """Version 1.0 has learned the paper's tasks, version 1.1 has seen plain text alone."""
    folder_of(kind)
    if hub:
        files_of = published.files_of
        monkeypatch.setattr(published, "files_of", lambda _name, *more: files_of("theirs", *more))
    name = ("t5-small" if kind == "v1.0" else "t5-v1_1-small") if hub else "theirs"
    argv = ["--weights", name, "--length", "2", "--out"]
    sample.main([*argv, "a", "translate English to German: The dog"])
    err = capsys.readouterr().err
    assert "no prefix the network" not in err
    assert ("fill gaps alone" in err) == (kind == "v1.1")
    sample.main([*argv, "b", "sort: 2 1"])
    err = capsys.readouterr().err
    assert ('"sort" is no prefix the network was trained with' in err) == (kind == "v1.0")


def test_positions_of_a_network_on_another_device(monkeypatch):
    made = []

    def bias(self, length, so_far, device=None):
        made.append(device.type)
        return torch.zeros(2, length, so_far, device="cpu")

    monkeypatch.setattr("t5.layers.Stack.bias", bias)
    with torch.device("meta"):
        model = train.MODELS["t5_tiny"]()
    sample.draw_positions(model, Path("positions.png"))
    assert made == ["meta", "meta"]
    assert Path("positions.png").exists()


def test_typed_and_read_texts(trained, monkeypatch, capsys):
    Path("in.txt").write_text("add: 1 + 1\n\ncount: aba\n")
    found = sample.main(["--checkpoint", "run/last.pt", "--file", "in.txt"])
    assert list(found) == ["add: 1 + 1", "", "count: aba"]
    assert found[""] == ""
    typed = SimpleNamespace(buffer=io.BytesIO(b"add: 1 + 1\n"))
    monkeypatch.setattr(sys, "stdin", typed)
    capsys.readouterr()
    sample.main(["--checkpoint", "run/last.pt", "--interactive"])
    assert capsys.readouterr().out.strip() == found["add: 1 + 1"]
    typed.buffer = io.BytesIO(b"a <extra_id_99> b\nadd: 1 + 1\n")
    sample.main(["--checkpoint", "run/last.pt", "--interactive"])
    out, err = capsys.readouterr()
    assert "note: the vocabulary has 0 sentinels, and no <extra_id_99>" in err
    assert out.strip() == found["add: 1 + 1"]


def test_published_weights_answer():
    folder_of()
    found = sample.main(["--weights", "theirs", "The dog", "--length", "5", "--beam", "2",
                         "--out", "out"])  # fmt: skip
    assert list(found) == ["The dog"]
    assert Path("out/positions.png").exists()


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["a: b", "--file", "x.txt"], "one of them"),
        (["--interactive", "--out", "x"], "--out"),
        (["--weights", "x", "--checkpoint", "y", "a: b"], "one of them"),
        (["--weights", "t5-small"], "no test set"),
        (["a: b", "--temperature", "1", "--beam", "2"], "one or the other"),
        (["a: b", "--top-k", "2"], "add --temperature"),
        (["a: b", "--seed", "2"], "add --temperature"),
        (["a: b", "--length-penalty", "2"], "add --beam"),
        ([""], "empty"),
        (["a: b"], "no run is in runs/t5"),
        (["--file", "nowhere.txt"], "nowhere.txt"),
        (["--weights", "", "a: b"], "--weights is empty"),
    ],
)
def test_bad_flags_of_sample(argv, words, refused):
    assert words in refused(sample.main, argv)


def test_a_sentinel_that_is_not_there(trained, refused):
    argv = ["--checkpoint", "run/last.pt", "a <extra_id_99> b"]
    assert "no <extra_id_99>" in refused(sample.main, argv)


# ---------------------------------------------------------------------- claims.py


@pytest.mark.parametrize("claim", ["objective", "multitask"])
def test_claims_run(claim, files, monkeypatch):
    Path("movie_reviews/pos").mkdir(parents=True)
    Path("movie_reviews/neg").mkdir(parents=True)
    for number in range(4):
        for kind in ("pos", "neg"):
            Path("movie_reviews", kind, f"cv00{number}.txt").write_text(TEXT[:3000])
    monkeypatch.setattr(claims, "SIZE", ["--model", "t5_tiny", *SMALL, "--vocab-size", "200"])
    argv = [claim, "--seeds", "0", "--data-dir", ".", "--max-steps", "1", "--out", "out"]
    found = claims.main(argv)
    assert Path(f"out/claim_{claim}.json").exists()
    assert Path(f"out/claim_{claim}.png").exists()
    for arm in found.values():
        assert "python t5/train.py" in arm["command"]
    runs = {p for p in Path("runs").rglob("last.pt")}
    claims.main(argv)  # all are done
    assert {p for p in Path("runs").rglob("last.pt")} == runs
    Path(f"out/claim_{claim}.json").unlink()
    for arm in claims.CLAIMS[claim]:
        both = claims.main([*argv, "--arms", arm])
    assert both == found


@pytest.mark.parametrize("claim", claims.CLAIMS)
def test_commands_of_claims_parse(claim, monkeypatch):
    """Every arm, as it would be trained."""
    monkeypatch.setattr(claims, "train", lambda argv: {"argv": argv})
    monkeypatch.setattr(claims, "finished", lambda _folder: None)
    args = claims.parse_args([claim, "--seeds", "0"])
    for arm, (before, tuning) in claims.CLAIMS[claim].items():
        (found,), command = claims.run_arm(arm, before, tuning, args)
        Path(found["argv"][1]).parent.mkdir(parents=True, exist_ok=True)
        assert train.parse_args(found["argv"]).lr == 1e-3
        assert command.count("python t5/train.py") == 2
        assert "--seed SEED" in command
        for part in command.split(" && "):
            words = part.removeprefix("python t5/train.py ").replace("SEED", "0").split()
            train.parse_args(words)


@pytest.mark.slow
def test_quick_reaches_its_number(monkeypatch):
    monkeypatch.setattr(tasks, "TRAINED", 20_000)
    monkeypatch.setattr(tasks, "TESTED", 150)
    assert train.main(["--quiet"])["test_exact"] >= 0.9


if __name__ == "__main__":
    tasks.TRAINED, tasks.TESTED = 40, 4
    train.main([*SMALL, *TWO, *QUIET, "--run-dir", *sys.argv[1:]])
