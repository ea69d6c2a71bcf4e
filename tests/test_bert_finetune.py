"""bert/finetune.py: classes, pairs, numbers; and the claims that fine-tune.

Usage: torchrun --nproc-per-node 2 tests/test_bert_finetune.py FOLDER trains the same way there.
"""

import json
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import torchrun
from helpers import BOTH, modes, weights

from bert import claims, finetune, names, sample, train
from bert.layers import Dropout
from bert.model import FAMILIES
from common.data import corpora
from common.data.sentences import PACKAGES, docstrings

WORDS = {"positive": ["good", "fine", "warm"], "negative": ["bad", "dull", "cold"]}
TINY = ["--num-layers", "1", "--d-model", "32", "--num-heads", "2", "--d-ff", "64", "--context",
        "16", "--vocab-size", "120"]  # fmt: skip


@pytest.fixture(autouse=True)
def corpus(monkeypatch):
    lines = [f"a {word} film of {i}." for i in range(9) for some in WORDS.values() for word in some]
    text = corpora.Text(["\n".join(lines[i : i + 6]) for i in range(0, 54, 6)])
    monkeypatch.setitem(corpora.CORPORA, "pydocs", lambda args: corpora.Corpus({"all": text}))


def sentences(path="films.tsv", count=120):
    rows = [f"a {word} film of {i}\t{label}" for i in range(count // 6)
            for label, words in WORDS.items() for word in words]  # fmt: skip
    Path(path).write_text("text\tlabel\n" + "\n".join(rows) + "\n")
    return ["--data", f"sentences:{path}", "--quiet", "--val", "0", "--batch-size", "8"]


def pairs(regression=False, count=60):
    """Pairs of which the second text tells the label."""
    several = [w for some in WORDS.values() for w in some]
    rows = []
    for i in range(count):
        a, b = several[i % 6], several[(i * 7 // 5) % 6]
        praised = several.index(b) < 3
        label = str(float(praised) * 4 + 1) if regression else ("no", "yes")[praised]
        rows.append(f"a {a} film {i}\tthe {b} one\t{label}")
    Path("pairs.tsv").write_text("sentence1\tsentence2\tlabel\n" + "\n".join(rows) + "\n")
    more = ["--regression"] if regression else []
    return ["--data", "pairs:pairs.tsv", "--quiet", "--val", "0", "--batch-size", "8", *more]


def uneven():
    rows = [f"{'so ' * (7 * i % 12)}{word}{i}\t{label}" for i in range(20)
            for label, words in WORDS.items() for word in words[:2]]  # fmt: skip
    Path("uneven.tsv").write_text("text\tlabel\n" + "\n".join(rows) + "\n")


def tune_small(folder, *more):
    """A few steps on texts of very different lengths."""
    argv = ["--data", "sentences:uneven.tsv", "--quiet", "--val", "0", "--batch-size", "8", *TINY]
    argv += ["--from-scratch", "--dropout", "0", "--precision", "fp32", "--max-steps", "4"]
    return finetune.main([*argv, "--run-dir", folder, *more])


def pretrain(folder="runs/bert/pre", family="bert", steps="2"):
    size = "300" if family == "roberta" else "120"
    argv = ["--model", f"{family}_tiny", *TINY[:-1], size, "--steps", "500", "--max-steps", steps,
            "--batch-size", "128", "--val", "0", "--quiet", "--run-dir", folder]  # fmt: skip
    return train.main(argv)


def test_it_learns_classes_and_answers(capsys, refused, monkeypatch):
    argv = sentences()
    found = finetune.main([*argv, *TINY, "--from-scratch", "--epochs", "6", "--lr", "3e-3",
                           "--run-dir", "run"])  # fmt: skip
    assert found["test_accuracy"] > 0.9
    capsys.readouterr()
    how = ["--checkpoint", "run/last.pt", "--out"]
    answers = sample.main([*how, "a", "a good film of 9", "a bad film of 9"])
    assert list(answers.values()) == ["positive", "negative"]
    assert "a good film of 9: positive" in capsys.readouterr().out
    assert Path("a/attention.png").exists()
    sample.main([*how, "b", "good " * 40])
    assert "1 text cut at 16 tokens" in capsys.readouterr().err
    assert len(sample.main([*how, "c"])) == 8  # of the test set
    assert len(sample.main([*how, "d", "--near", "good", "--file", "films.tsv"])) == 5
    assert "is of finetune.py" in refused(train.main, ["--weights", "run/last.pt", "--quiet"])
    drawn = []
    monkeypatch.setattr("common.plot.confusion_matrix", lambda *given: drawn.append(given))
    again = finetune.main(["--evaluate", "run/last.pt", "--quiet"])
    assert again["test_accuracy"] == found["test_accuracy"]
    ((counts, classes, _),) = drawn
    assert classes == ["negative", "positive"]
    assert counts.trace() / counts.sum() == pytest.approx(found["test_accuracy"])
    assert counts.sum(1).min() > 3  # rows are the true ones


@pytest.mark.parametrize("regression", [False, True])
def test_it_learns_pairs(regression, capsys, refused, monkeypatch):
    argv = [*pairs(regression, 120), *TINY, "--from-scratch", "--epochs", "12", "--lr", "3e-3"]
    found = finetune.main([*argv, "--run-dir", "run"])
    assert found["test_spearman" if regression else "test_accuracy"] > 0.8
    capsys.readouterr()
    how = ["--checkpoint", "run/last.pt", "--out"]
    texts = ["a good film 1", "the fine one", "a good film 1", "the dull one"]
    drawn = []
    draw = sample.draw_attention
    monkeypatch.setattr(
        sample, "draw_attention", lambda *given: (drawn.append(given[:2]), draw(*given))
    )
    answers = sample.main([*how, "a", *texts])
    ((tokens, segments),) = drawn
    assert set(segments.tolist()) == {0, 1}  # of both texts, as the network had them
    assert len(tokens) == len(segments) > 5
    same, other = answers.values()
    if regression:
        assert same - other > 2
        assert 3 < same < 7
    else:
        assert (same, other) == ("yes", "no")
    assert "a good film 1 | the fine one: " in capsys.readouterr().out
    assert "two by two" in refused(sample.main, [*how, "b", *texts[:3]])
    line = refused(finetune.main, ["--evaluate", "run/last.pt", *sentences()[:2], "--quiet"])
    assert ("numbers" if regression else "class 'negative'") in line


def test_docstrings_need_no_files():
    found = finetune.main(["--from-scratch", *TINY, "--quiet", "--max-steps", "2", "--run-dir",
                           "run"])  # fmt: skip
    assert 0 <= found["test_accuracy"] < 0.6
    flags = finetune.parse_args(["--from-scratch"])
    source = docstrings(flags)
    assert source.classes == PACKAGES
    parts = {name: {text.lower() for text in part.texts} for name, part in source.parts.items()}
    assert not parts["train"] & parts["test"]
    assert sum(map(len, parts.values())) == sum(map(len, source.parts.values())) > 1000
    assert all(len(text.split()) > 3 for text in parts["test"])


def test_numbers_are_measured_in_deviations():
    facts = {"classes": [], "center": 3.0, "scale": 2.0}
    loss = finetune.loss_of(torch.tensor([[0.5], [1.0]]), torch.tensor([3.0, 4.0]), facts)
    assert loss == pytest.approx(((0.5 - 0) ** 2 + (1 - 0.5) ** 2) / 2)
    answers, wanted = torch.randn(3, 2), torch.tensor([0, 1, 1])
    loss = finetune.loss_of(answers, wanted, {"classes": ["a", "b"]}, "sum")
    torch.testing.assert_close(loss, F.cross_entropy(answers, wanted, reduction="sum"))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_pre_trained_run_is_gone_on_with(family, capsys):
    pretrain(family=family)
    argv = [word for word in sentences() if word != "--quiet"]
    finetune.main([*argv, "--lr", "1e-12", "--max-steps", "1", "--run-dir", "on"])
    before, after = weights("runs/bert/pre"), weights("on")
    heads = ("cls.", "lm_head.", "predictions.", "sop_", "discriminator_", "generator", "lm_loss.")
    shared = before.keys() & after.keys()
    assert all(name in shared or name.startswith((*heads, "mask")) or "mask_emb" in name
               for name in before), before.keys() - shared  # fmt: skip
    for name in shared:
        torch.testing.assert_close(after[name], before[name], rtol=0, atol=1e-6)
    assert "new at random: " in capsys.readouterr().out
    facts = torch.load("on/last.pt")["dataset"]
    assert facts["tokenizer"] == torch.load("runs/bert/pre/last.pt")["dataset"]["tokenizer"]


@pytest.mark.parametrize("family", FAMILIES)
def test_dropout_is_in_all_layers_but_albert_s(family):
    """ALBERT's Table 14: 0 in the encoder, 0.1 in the classifier."""
    made = train.MODELS[f"{family}_tiny"](vocab_size=50)
    facts = {"family": family, "network": names.describe(made), "classes": ["a", "b"]}
    model = finetune.build(facts, 0.1)
    shares = {name: m.share for name, m in model.named_modules() if isinstance(m, Dropout)}
    last = {name: share for name, share in shares.items() if name.startswith(("drop", "classif"))}
    inner = [share for name, share in shares.items() if name not in last]
    assert set(last.values()) == {0.1}
    assert set(inner) == {0.0 if family == "albert" else 0.1}


def test_from_scratch_is_the_same_network_without_its_weights():
    pretrain()
    argv = [*sentences(), "--weights", "runs/bert/pre", "--lr", "1e-12", "--max-steps", "1"]
    finetune.main([*argv, "--from-scratch", "--run-dir", "new", "--seed", "1"])
    before, after = weights("runs/bert/pre"), weights("new")
    name = "bert.encoder.layer.0.output.dense.weight"
    assert before[name].shape == after[name].shape
    assert (before[name] - after[name]).abs().max() > 0.01
    kept = [
        torch.load(f"{run}/last.pt")["dataset"]["tokenizer"] for run in ("runs/bert/pre", "new")
    ]
    assert kept[0] == kept[1]


def test_the_stages_are_the_forward_pass(capsys):
    """Tokens, embeddings and Transformer, pooling, class: as `classify` has them."""
    argv = sentences()
    finetune.main([*argv, *TINY, "--from-scratch", "--max-steps", "2", "--run-dir", "run"])
    stored = torch.load("run/last.pt")
    model, facts = finetune.build(stored["dataset"]).eval(), stored["dataset"]
    model.load_state_dict(stored["model"])
    inputs, _ = finetune.encode(["a fine film of 3"], None, facts)
    dev = train.Device(train.parse_args(["--quiet"]))
    odds = model(*finetune.padded(inputs, facts, dev)).softmax(1)[0].max().item()
    capsys.readouterr()
    finetune.classify(model, facts, ["a fine film of 3"], None, dev)
    assert f"{odds:.1%}" in capsys.readouterr().out


def test_resumed_is_uninterrupted():
    argv = [*sentences(), *TINY, "--from-scratch", "--epochs", "2"]
    whole = finetune.main([*argv, "--run-dir", "whole"])
    finetune.main([*argv, "--run-dir", "cut", "--max-steps", "5"])
    assert finetune.main([*argv, "--run-dir", "cut", "--resume"]) == whole


def test_accumulation_is_the_large_batch():
    """Though the parts have unequally many tokens."""
    uneven()
    tune_small("whole")
    tune_small("parts", "--accumulate", "4")
    for name, value in weights("whole").items():
        torch.testing.assert_close(weights("parts")[name], value, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("how", [(), ("--fsdp",)], ids=["ddp", "fsdp"])
def test_two_processes_are_one(how):
    uneven()
    found = tune_small("one")
    done = torchrun(__file__, "two", *how)
    assert not done.returncode, done.stderr
    for name, value in weights("one").items():
        torch.testing.assert_close(weights("two")[name], value, rtol=1e-3, atol=1e-5)
    rows = [json.loads(line) for line in Path("two/metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["test_accuracy"] == found["test_accuracy"]
    assert rows[-1]["test_loss"] == pytest.approx(found["test_loss"], rel=1e-3)


def test_it_trains_in_training_and_is_measured_without_dropout(monkeypatch):
    uneven()
    seen = modes(finetune, monkeypatch, "make")
    tune_small("run")
    assert seen == BOTH


def test_matrices_decay_and_nothing_else():
    uneven()
    for decay in ("0", "50"):
        tune_small(decay, "--max-steps", "1", "--weight-decay", decay)
    for name, value in weights("0").items():
        assert torch.equal(weights("50")[name], value) == (value.dim() < 2), name


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_precisions(precision):
    uneven()
    found = tune_small("run", "--precision", precision)
    assert 0 <= found["test_accuracy"] <= 1


def test_a_stopped_run_names_its_script(capsys, monkeypatch):
    uneven()
    monkeypatch.setattr(finetune.Run, "between_steps", lambda run: run.leave(2))
    with pytest.raises(SystemExit) as stop:
        tune_small("cut")
    assert stop.value.code == 130
    assert "python bert/finetune.py --resume --run-dir cut\n" in capsys.readouterr().out


def test_what_can_not_be(refused):
    parse = finetune.parse_args
    assert "use bert/train.py" in refused(parse, ["--data", "pydocs"])
    assert "sizes and a vocabulary" in refused(parse, ["--weights", "x", "--d-model", "8"])
    assert "no meaning here" in refused(parse, ["--data", "mrpc", "--regression"])
    assert "columns that are known" in refused(parse, ["--data", "cola", "--label-column", "x"])
    assert "unknown data set 'sst3'" in refused(parse, ["--data", "sst3"])
    sst2 = ["--data", "sst2", "--data-dir", "nowhere"]
    line = refused(finetune.main, [*sst2, "--from-scratch"])
    assert "train.tsv is not in nowhere/SST2" in line
    assert "no run of train.py" in refused(finetune.main, sentences())
    assert "3 heads can't share" in refused(
        finetune.main, [*sentences(), *TINY, "--from-scratch", "--num-heads", "3"])  # fmt: skip
    line = refused(finetune.main, [*sentences(), *TINY, "--from-scratch", "--length", "17"])
    assert "--length 17: the network's context is 16" in line
    line = refused(finetune.main, [*sentences(), "--from-scratch", "--vocab-size", "9"])
    assert "--vocab-size 9" in line
    assert "no such file" in refused(finetune.main, [*sentences(), "--weights", "nowhere/x"])


def test_recipes():
    args = finetune.parse_args(["--paper"])
    assert (args.model, args.epochs, args.batch_size, args.lr) == ("bert_base", 3, 32, 2e-5)
    args = finetune.parse_args(["--weights", "roberta-base"])
    assert (args.model, args.epochs, args.lr, args.weight_decay) == ("roberta_base", 10, 1e-5, 0.1)
    args = finetune.parse_args(["--weights", "electra-small-discriminator"])
    assert (args.model, args.lr) == ("electra_small", 3e-4)
    assert finetune.parse_args([]).model == "bert_tiny"
    pretrain("runs/bert/pre")
    assert finetune.parse_args(["--weights", "runs/bert/pre"]).lr == 3e-4


def test_the_newest_run_says_which_recipe(refused):
    pretrain("runs/bert/pre", "electra")
    assert finetune.parse_args([]).model == "electra_tiny"
    pretrain("runs/bert/more")
    assert finetune.parse_args([]).model == "bert_tiny"
    config = Path("runs/bert/more/config.json")
    config.write_text(config.read_text().replace("bert_tiny", "albert_base"))
    args = finetune.parse_args([])
    assert (args.model, args.lr, args.epochs) == ("albert_base", 1e-5, 10)
    for more in ([], ["--weights", "runs/bert/more"]):
        line = refused(finetune.main, [*sentences(), *more, "--model", "bert_mini"])
        assert "are bert_tiny's, not bert_mini's: leave --model out" in line


# ---------------------------------------------------------------------- claims


def small_files():
    for folder in ("movie_reviews/pos", "movie_reviews/neg", "brown", "gutenberg", "tinystories",
                   "SST2", "glue/MRPC"):  # fmt: skip
        Path("data", folder).mkdir(parents=True)
    line = "a {} film is a {} one , and a tree .\n"
    for kind, word in (("pos", "good"), ("neg", "bad")):
        Path(f"data/movie_reviews/{kind}/1.txt").write_text(line.format(word, word) * 9)
    Path("data/brown/news.txt").write_text("The Jury said so.\n" * 9 + "\nAnother text.\n" * 9)
    Path("data/gutenberg/alice_in_wonderland.txt").write_text("Alice sat. " * 300)
    Path("data/tinystories/v2_train.txt").write_text("Once upon a time.\n<|endoftext|>\nThe end.\n")
    for part in ("train", "dev", "test"):
        rows = [f"a {word} {part}\t{number}" for number, word in enumerate(("dull", "fine"))]
        Path(f"data/SST2/{part}.tsv").write_text("\n".join(rows * 3) + "\n")
    for part in ("train", "test"):
        rows = [f"{i % 2}\t1\t2\ta {part}\tb {i}" for i in range(9)]
        head = "label\tid1\tid2\tsentence1\tsentence2"
        Path(f"data/glue/MRPC/{part}.tsv").write_text("\n".join([head, *rows]) + "\n")


@pytest.mark.parametrize("claim", ["table", "pretraining", "pairs", "all_tokens", "permutation"])
def test_claims_on_files(claim, monkeypatch, capsys):
    small_files()
    less = {"8192": "300", "100000": "300", "2048": "64"}
    monkeypatch.setattr(claims, "ENGLISH", [
        *(less.get(word, word) for word in claims.ENGLISH), "--context", "32"])  # fmt: skip
    small = ["--num-layers", "1", "--d-model", "32", "--num-heads", "2", "--d-ff", "32"]
    tiny = {arm: [*flags, *small] for arm, flags in claims.TINY.items()}
    monkeypatch.setattr(claims, "TINY", tiny)
    table = {"bert_tiny": ("3", "1e-3"), "electra_tiny": ("2", "1e-3")}
    monkeypatch.setattr(
        claims, "TABLE", {"bert_mini": ("3", "1e-3")} if claim != "table" else table
    )
    monkeypatch.setitem(claims.CLAIMS, "table", [*table, *claims.LSTM])
    of_model = claims.of_model
    monkeypatch.setattr(claims, "of_model", lambda model: [*of_model(model), *small])
    monkeypatch.setattr(claims, "EXAMPLES", {4: "2", 6: "1"})
    scripts = []

    def lstm(argv):  # in place of rnn/train.py
        scripts.append(argv[2:6])
        cut = argv.index("--model")
        own = ["--from-scratch", *TINY, "--val", "0", *argv[:cut], *argv[cut + 2 :]]
        return finetune.main(own)

    monkeypatch.setattr(claims, "train_lstm", lstm)
    argv = [claim, "--seeds", "0", "--max-steps", "1", "--out", "out", "--data-dir", "data"]
    summary = claims.main(argv)
    assert scripts == ([[*claims.LSTM["bilstm"][:4]]] if claim == "table" else [])
    assert capsys.readouterr().out.count(" steps in ") == {
        "table": 2, "pretraining": 0}.get(claim, len(summary))  # fmt: skip
    assert {p.name for p in Path("out").iterdir()} == {
        f"claim_{claim}.{e}" for e in ("json", "png")
    }
    key = claims.key_of(claim)
    assert all(0 <= arm[key]["mean"] <= 1 for arm in summary.values())
    own = summary.get("bilstm", {}).get("command")
    assert own is None or own.startswith("python rnn/train.py --max-steps 1 --model bilstm")
    for arm in (arm for name, arm in summary.items() if name != "bilstm"):  # can be repeated
        first, *later = arm["command"].split(" && ")
        assert first.startswith("python bert/train.py")
        assert "--data english" in first
        folder = first.split("--run-dir ")[1]
        assert later
        for command in later:
            assert command.startswith("python bert/finetune.py")
            assert f"--weights {folder}/last.pt" in command
    if claim == "table":
        both = (name + more for name in table for more in ("", ", from scratch"))
        assert list(summary) == [*both, "bilstm"]
        assert summary["bilstm"]["parameters"]["mean"] > 1000
        one = summary["bert_tiny"]
        assert one["pretraining_steps"]["mean"] == 1
        assert one["pretraining_seconds"]["mean"] > 0
        assert "pretraining_test_masked_accuracy" in one
        assert summary["electra_tiny"]["parameters"]["mean"] < 1e6
        assert "--from-scratch" in summary["bert_tiny, from scratch"]["command"]
    monkeypatch.setattr(claims, "train", None)
    monkeypatch.setattr(claims, "finetune", None)
    monkeypatch.setattr(claims, "train_lstm", None)
    assert claims.main(argv) == summary
    path = Path(f"out/claim_{claim}.json")
    path.unlink()
    for arm in reversed(claims.CLAIMS[claim]):  # one after another
        claims.main([*argv, "--arms", arm])
    assert json.loads(path.read_text()) == summary
    assert list(json.loads(path.read_text())) == list(summary)


if __name__ == "__main__":
    tune_small(sys.argv[1], *sys.argv[2:])
