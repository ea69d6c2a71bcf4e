"""Multilayer perceptrons: sizes, the paper's equations, its two worlds, and that they learn.

Usage: torchrun --nproc-per-node 2 tests/test_mlp.py FOLDER trains the same way there.
"""

import json
import math
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import torchrun
from helpers import BOTH, count, make_tree, modes, weights
from PIL import Image
from torch import nn

from mlp import claims, sample, tables, train
from mlp.backprop import Descent, backpropagate
from mlp.model import (
    MLP,
    MODELS,
    Dropout,
    family_trees,
    limit_norms,
    mlp,
    mlp_deep,
    mlp_dropout,
    mlp_table,
    squared_error,
    symmetry,
)
from mlp.worlds import PEOPLE, RELATIONS, family_facts, patterns, relatives


@pytest.fixture(scope="module")
def symmetrical(tmp_path_factory):
    """A run that has learned symmetry."""
    folder = tmp_path_factory.mktemp("symmetry") / "run"
    argv = ["--data", "symmetry", "--seed", "3", "--quiet", "--run-dir", str(folder)]
    assert train.main(argv)["test_accuracy"] == 1
    return folder


# ---------------------------------------------------------------------- the networks


def test_parameters():
    wanted = {
        "symmetry": 6 * 2 + 2 + 2 + 1,
        "family_trees": 150 + 78 + 156 + 78 + 168,
        "mlp": 238_510,
        "mlp_deep": 469_160,
        "mlp_dropout": 803_840 + 2 * 1_049_600 + 10_250,
        "mlp_table": 640 + 8_256 + 195,
    }
    assert {name: count(make()) for name, make in MODELS.items()} == wanted


def test_shapes_and_sizes():
    images, rows = torch.rand(5, 1, 28, 28), torch.rand(5, 7)
    for make in (mlp, mlp_deep, mlp_dropout):
        assert make()(images).shape == (5, 10)
        assert make(num_classes=26)(images).shape == (5, 26)
    assert mlp_table(7, 1, hidden=(8, 4))(rows).shape == (5, 1)
    assert symmetry()(torch.rand(5, 6)).shape == (5, 1)
    assert family_trees()(torch.rand(5, 36)).shape == (5, 24)


@pytest.mark.parametrize("training", [True, False])
def test_parity_with_a_plain_sequential(training):
    """Outputs and gradients, with the same weights and the same dropout."""
    torch.manual_seed(0)
    ours = MLP(12, 3, (8, 6), "tanh", input_dropout=0.2, dropout=0.5, norm=True).double()
    layers = [nn.Flatten(), Dropout(0.2)]
    for sizes in ((12, 8), (8, 6)):
        layers += [nn.Linear(*sizes), nn.BatchNorm1d(sizes[1]), nn.Tanh(), Dropout(0.5)]
    theirs = nn.Sequential(*layers, nn.Linear(6, 3)).double()
    theirs.load_state_dict({k.removeprefix("layers."): v for k, v in ours.state_dict().items()})
    x, found = torch.rand(9, 3, 2, 2).double(), []
    for model in (ours, theirs):
        model.train(training)
        torch.manual_seed(1)
        out = model(x)
        out.square().sum().backward()
        found.append((out, *(p.grad for p in model.parameters())))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("share", [0.2, 0.5])
def test_dropout_does_what_torch_s_does(share):
    x = torch.full((300, 1000), 2.0, requires_grad=True)
    for dropout in (Dropout(share), nn.Dropout(share)):
        y = dropout(x)
        assert y.unique().tolist() == pytest.approx([0, 2 / (1 - share)])
        assert float((y == 0).float().mean()) == pytest.approx(share, abs=0.005)
        assert torch.equal(torch.autograd.grad(y.sum(), x)[0] * 2, y)
        assert torch.equal(dropout.eval()(x), x)
    assert Dropout(share)(x.bfloat16()).dtype == torch.bfloat16
    assert not torch.equal(Dropout(share)(x), Dropout(share)(x))


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_signals_keep_their_size_through_layers_that_were_just_made(activation):
    torch.manual_seed(0)
    model = MLP(200, 10, (400,) * 12, activation)
    x = torch.randn(300, 200)
    sizes = []
    for layer in model.layers:
        x = layer(x)
        if isinstance(layer, nn.Linear):
            sizes.append(float(x[:, :10].detach().square().mean()))
    assert 0.05 < sizes[-2] / sizes[0] < 4


def test_max_norm_shortens_only_what_is_too_long():
    model = mlp_dropout(hidden=(6, 5))
    *hidden, last = (m for m in model.modules() if isinstance(m, nn.Linear))
    last.weight.data *= 100  # is not a hidden unit's
    hidden[0].weight.data[0] *= 100 / hidden[0].weight[0].norm().item()
    hidden[1].weight.data[0] *= 0.1 / hidden[1].weight[0].norm().item()
    before = {name: p.clone() for name, p in model.named_parameters()}
    limit_norms(model, 2.0)
    for layer in hidden:
        assert (layer.weight.norm(dim=1) <= 2.0 + 1e-5).all()
    after = dict(model.named_parameters())
    first = "layers.2.weight"
    torch.testing.assert_close(after[first][0] * 50, before[first][0])  # its direction stays
    for name, p in before.items():
        if (name != first and "bias" in name) or name.startswith("layers.8"):
            assert torch.equal(p, after[name]), name
    assert torch.equal(before["layers.5.weight"][0], after["layers.5.weight"][0])


# ---------------------------------------------------------------------- Eq. 1 to 9


def test_one_unit_by_the_paper_s_equations():
    model = symmetry().double().requires_grad_(False)
    y = torch.tensor([[1.0, 0, 1, 1, 0, 1]]).double()
    first, last = (layer.groups[0] for layer in model.layers)
    x = [sum(y[0, i] * first.weight[j, i] for i in range(6)) + first.bias[j] for j in range(2)]
    hidden = [1 / (1 + math.exp(-value)) for value in x]  # Eq. 2
    x = sum(hidden[j] * last.weight[0, j] for j in range(2)) + last.bias[0]
    assert float(model(y)) == pytest.approx(float(x))
    out = 1 / (1 + math.exp(-x))
    error = float(squared_error(model(y), torch.ones(1, 1).double()))
    assert error == pytest.approx((out - 1) ** 2 / 2)  # Eq. 3


def test_errors_within_the_tolerance_are_none():
    logits = torch.tensor([[0.9, 0.7, 0.1, 0.3]]).logit()
    d = torch.tensor([[1.0, 1.0, 0.0, 0.0]])
    assert float(squared_error(logits, d, 0.2)) == pytest.approx((0.3**2 + 0.3**2) / 2)


@pytest.mark.parametrize("tolerance", [0.0, 0.2])
@pytest.mark.parametrize("name", ["symmetry", "family_trees"])
def test_backpropagation_by_hand_equals_autograd(name, tolerance):
    torch.manual_seed(0)
    model = MODELS[name]().double()
    inputs, d = patterns() if name == "symmetry" else family_facts()[1:]
    for p in model.parameters():
        p.data *= 5  # so that some errors are within the tolerance
    inputs, d = inputs.double(), d.double()
    squared_error(model(inputs), d, tolerance).backward()
    found = backpropagate(model, inputs, d, tolerance)
    assert found.keys() == dict(model.named_parameters()).keys()
    for key, p in model.named_parameters():
        assert p.grad.abs().max() > 0
        torch.testing.assert_close(found[key], p.grad, rtol=1e-10, atol=1e-12)


def test_backpropagation_equals_small_changes_of_each_weight():
    model = family_trees().double()
    _, inputs, d = family_facts()
    inputs, d = inputs[:7].double(), d[:7].double()
    found = backpropagate(model, inputs, d)
    for name, p in model.named_parameters():
        values = p.data.view(-1)
        for place in (0, len(values) // 2, len(values) - 1):
            with torch.no_grad():
                changes = []
                for step in (1e-5, -2e-5):
                    values[place] += step
                    changes.append(float(squared_error(model(inputs), d)))
                values[place] += 1e-5
            slope = (changes[0] - changes[1]) / 2e-5
            assert float(found[name].view(-1)[place]) == pytest.approx(slope, abs=1e-7)


def test_descent_is_eq_9():
    """A weight of 1 with the gradients 2, 3 and 5; the rate rises, momentum too."""
    weight = nn.Parameter(torch.tensor([1.0], dtype=torch.float64))
    optimizer = Descent([weight], lr=0.05, momentum=0.9, gentle=1, decay=0.1)
    change, wanted = 0.0, 1.0
    for rate, momentum, gradient in ((0.05, 0.5, 2.0), (0.1, 0.9, 3.0), (0.1, 0.9, 5.0)):
        optimizer.param_groups[0]["lr"] = rate
        weight.grad = torch.tensor([gradient], dtype=torch.float64)
        optimizer.step()
        change = -rate * gradient + momentum * change
        wanted = (wanted + change) * (1 - 0.1)
        assert weight.item() == pytest.approx(wanted)


def test_training_by_hand_is_training():
    """Five sweeps with the gradients of backpropagate, and five of the script."""
    argv = ["--data", "symmetry", "--quiet", "--max-steps", "5"]
    train.main([*argv, "--run-dir", "run"])
    torch.manual_seed(0)
    model = symmetry()
    optimizer = Descent(model.parameters(), 0.1, 0.9)
    for _ in range(5):
        for name, gradient in backpropagate(model, *patterns()).items():
            model.get_parameter(name).grad = gradient
        optimizer.step()
    for key, value in weights("run").items():
        torch.testing.assert_close(value, model.state_dict()[key], msg=key)


# ---------------------------------------------------------------------- the two worlds


def test_patterns():
    inputs, d = patterns()
    assert len({tuple(row) for row in inputs.tolist()}) == 64
    assert {tuple(row.tolist()) for row in inputs[d[:, 0] == 1]} == {
        (a, b, c, c, b, a) for a in (0, 1) for b in (0, 1) for c in (0, 1)
    }


def test_the_facts_are_104_and_two_equal_trees():
    asked, inputs, answers = family_facts()
    assert len(asked) == len(set(asked)) == 104
    assert answers.sum() == 112
    assert (inputs.sum(1) == 2).all()
    half = {
        (p, r): set(a.nonzero()[:, 0].tolist()) for (p, r), a in zip(asked, answers, strict=True)
    }
    for (person, relation), found in half.items():
        if person < 12:
            assert half[person + 12, relation] == {p + 12 for p in found}


@pytest.mark.parametrize(
    ("question", "wanted"),
    [
        ("Colin aunt", "Jennifer Margaret"),  # Fig. 3
        ("Colin uncle", "Arthur Charles"),
        ("Charlotte brother", "Colin"),
        ("Arthur niece", "Charlotte"),
        ("Charles nephew", "Colin"),
        ("Victoria father", "Christopher"),
        ("Victoria son", "Colin"),
        ("Andrew daughter", "Jennifer"),
        ("Lucia husband", "Marco"),
        ("Sophia aunt", "Angela Gina"),
        ("Christopher nephew", ""),
        ("Margaret brother", ""),
    ],
)
def test_relatives(question, wanted):
    person, relation = question.split()
    place = PEOPLE.index(person)
    found = relatives(place % 12, relation)
    assert sorted(PEOPLE[p + place // 12 * 12] for p in found) == wanted.split()


def test_relations_are_the_paper_s():
    assert len(RELATIONS) == 12
    asked, _, answers = family_facts()
    back = {"husband": "wife", "wife": "husband"}
    facts = {
        (p, RELATIONS[r], q)
        for (p, r), row in zip(asked, answers, strict=True)
        for q in row.nonzero()[:, 0].tolist()
    }
    for p, relation, q in facts:
        if relation in back:
            assert (q, back[relation], p) in facts
        if relation in ("father", "mother"):
            assert {(q, "son", p), (q, "daughter", p)} & facts
        if relation in ("uncle", "aunt"):
            assert {(q, "nephew", p), (q, "niece", p)} & facts


def test_symmetry_is_learned_with_opposite_weights(symmetrical):
    w = weights(symmetrical)["layers.0.groups.0.weight"]
    torch.testing.assert_close(w[:, :3], -w[:, 3:].flip(1), rtol=0.02, atol=0.02)
    sizes = w[0, :3].abs().sort().values
    torch.testing.assert_close(sizes / sizes[0], torch.tensor([1.0, 2.0, 4.0]), rtol=0.1, atol=0)


def test_families_train_and_four_facts_are_kept_for_the_test(capsys):
    train.main(["--model", "family_trees", "--epochs", "20", "--run-dir", "run"])
    out = capsys.readouterr().out
    assert "families: 100 train, 4 test cases" in out
    rows = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert rows[-2]["train_loss"] < 0.8 * rows[0]["train_loss"]
    assert rows[0]["lr"] == rows[-2]["lr"] == 0.03
    assert rows[-2]["step"] == 500
    assert rows[-1]["test_accuracy"] in (0, 0.25, 0.5, 0.75, 1)


@pytest.mark.slow
def test_the_paper_recipe_learns_the_families():
    train.main(["--paper", "--quiet", "--run-dir", "run"])
    rows = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert rows[-2]["train_accuracy"] >= 0.95


# ---------------------------------------------------------------------- train.py


@pytest.mark.parametrize("data", ["symmetry", "families", "digits", "iris"])
def test_resumed_equals_uninterrupted(data):
    flags = ["--data", data, "--quiet", "--epochs", "3", "--limit", "96"]
    train.main([*flags, "--run-dir", "a"])
    train.main(
        [*flags, "--run-dir", "b", "--max-steps", "30" if data in ("symmetry", "families") else "5"]
    )
    train.main(["--quiet", "--resume", "--run-dir", "b"])
    a, b = weights("a"), weights("b")
    assert all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("optimizer", [*train.OPTIMIZERS, "momentum"])
def test_optimisers_train(optimizer):
    flags = ["--quiet", "--limit", "64", "--epochs", "2", "--val", "0", "--run-dir", "run"]
    train.main([*flags, "--optimizer", optimizer, "--max-steps", "3"])
    train.main(["--quiet", "--resume", "--run-dir", "run"])
    assert all(value.isfinite().all() for value in weights("run").values())
    kind = torch.load("run/last.pt")["optimizer"]["kind"]
    assert kind.lower() == {"momentum": "descent"}.get(optimizer, optimizer)


def test_accumulation_equals_the_large_batch():
    flags = ["--quiet", "--limit", "64", "--val", "0", "--max-steps", "3", "--optimizer", "sgd"]
    train.main([*flags, "--run-dir", "one", "--l1", "1e-4", "--l2", "1e-3"])
    train.main([*flags, "--run-dir", "two", "--l1", "1e-4", "--l2", "1e-3", "--accumulate", "4"])
    one, two = weights("one"), weights("two")
    for key in one:
        torch.testing.assert_close(one[key], two[key], rtol=1e-4, atol=1e-6)


SMALL = ["--quiet", "--max-steps", "6", "--dropout", "0"]
KINDS = {
    "images": [*SMALL, "--data", "digits", "--limit", "96"],
    "classes": [*SMALL, "--data", "iris"],
    "numbers": [*SMALL, "--data", "diabetes"],
}  # the two worlds are one batch, in one process


def train_each(name, *flags):
    """Trains all kinds; classes once more with the flags. Keeps the numbers that are drawn."""
    tables.draw_numbers = lambda targets, answers, _: torch.save([targets, answers], name)
    for kind, own in KINDS.items():
        train.main([*own, "--run-dir", f"{name}-{kind}"])
    train.main([*KINDS["classes"], *flags, "--run-dir", f"{name}-shards"])


def test_two_processes_equal_one(monkeypatch):
    monkeypatch.setattr(tables, "draw_numbers", None)  # to be put back
    train_each("one", "--l2", "0")  # which --fsdp takes of itself
    done = torchrun(__file__, Path.cwd())
    assert done.returncode == 0, done.stderr
    for kind in [*KINDS, "shards"]:
        one, two = weights(f"one-{kind}"), weights(f"two-{kind}")
        for key in one:
            torch.testing.assert_close(one[key], two[key], rtol=0, atol=5e-5)
        rows = [json.loads(Path(f"{name}-{kind}/metrics.jsonl").read_text().splitlines()[-1])
                for name in ("one", "two")]  # fmt: skip
        assert rows[0] == pytest.approx(rows[1], rel=1e-3)
    one, two = (sorted(zip(*map(list, torch.load(name)), strict=True)) for name in ("one", "two"))
    assert len(one) == 88  # the picture shows the whole test set
    for pair, other in zip(one, two, strict=True):
        assert list(map(float, pair)) == pytest.approx(list(map(float, other)), rel=1e-3)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_precisions(precision):
    flags = ["--model", "mlp_dropout", "--hidden", "64", "--limit", "64", "--epochs", "1"]
    metrics = train.main(["--quiet", *flags, "--precision", precision, "--run-dir", "run"])
    assert all(math.isfinite(value) for value in metrics.values())


def test_penalties_are_of_the_weights_alone():
    model = mlp(hidden=(5,))
    expected = sum(
        0.1 * w.abs().sum() + 0.15 * w.square().sum() for w in model.parameters() if w.dim() > 1
    )
    torch.testing.assert_close(train.penalty(model, 0.1, 0.3), expected)
    assert train.penalty(model, 0.0, 0.0) == 0


@pytest.mark.parametrize("flag", ["--l1", "--l2"])
def test_penalties_move_the_weights_and_no_bias(flag):
    argv = ["--quiet", "--limit", "64", "--val", "0", "--max-steps", "2", "--optimizer", "sgd"]
    for share in ("0", "0.1"):
        train.main([*argv, flag, share, "--run-dir", share])  # the first rate is zero
    plain, less = weights("0"), weights("0.1")
    for name, value in plain.items():
        assert torch.equal(value, less[name]) == (value.dim() < 2), name


@pytest.mark.parametrize(("data", "rate"), [("families", 0.015), ("symmetry", 0.1)])
def test_the_first_sweeps_over_the_families_are_gentle(data, rate):
    argv = ["--data", data, "--quiet", "--run-dir", "run"]
    train.main([*argv, "--max-steps", "10"])
    assert json.loads(Path("run/metrics.jsonl").read_text().splitlines()[0])["lr"] == rate
    optimizer = train.build_optimizer(train.parse_args(argv[:3]), symmetry())
    assert optimizer.defaults["gentle"] == (20 if data == "families" else 0)


def test_it_trains_in_training_and_is_measured_without_dropout(monkeypatch):
    seen = modes(train, monkeypatch)
    train.main(["--quiet", "--limit", "64", "--epochs", "2"])
    assert seen == BOTH


def test_flags_reach_the_network_and_max_norm_the_weights():
    flags = ["--hidden", "20", "10", "--activation", "tanh", "--norm", "--dropout", "0.3"]
    flags += ["--max-norm", "0.5", "--input-dropout", "0.1"]
    train.main([*flags, "--quiet", "--limit", "64", "--epochs", "1", "--run-dir", "run"])
    state = weights("run")
    assert state["layers.2.weight"].shape == (20, 784)
    assert "layers.3.running_mean" in state
    for key in ("layers.2.weight", "layers.6.weight"):
        assert (state[key].norm(dim=1) <= 0.5 + 1e-5).all()


def test_the_network_follows_the_data():
    for data, model in (
        ("symmetry", "symmetry"), ("families", "family_trees"), ("iris", "mlp_table"),
        ("mnist", "mlp"), ("csv:x.csv", "mlp_table"),
    ):  # fmt: skip
        assert train.parse_args(["--data", data]).model == model
        assert train.parse_args(["--data", data, "--paper"]).model == model
    for model, data in (("symmetry", "symmetry"), ("mlp_table", "iris"), ("mlp_deep", "digits")):
        assert train.parse_args(["--model", model]).data == data
    dropout = ["--paper", "--model", "mlp_dropout"]
    args = train.parse_args(dropout)
    assert (args.data, args.val, args.max_norm, args.dropout) == ("mnist", 0, 1.0, 0.5)
    assert (args.optimizer, args.lr, args.momentum) == ("momentum", 0.025, 0.95)
    args = train.parse_args([*dropout, "--optimizer", "adam"])
    assert (args.optimizer, args.lr) == ("adam", 1e-3)  # its rate is another
    assert train.parse_args(["--paper"]).model == "family_trees"


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ("--model mlp --data iris", "take --model mlp_table"),
        ("--model symmetry --data families", "take --model family_trees"),
        ("--model family_trees --data digits", "take --model mlp"),
        ("--data families --batch-size 10", "adds up the gradient"),
        ("--data families --accumulate 2", "adds up the gradient"),
        ("--data symmetry --hidden 3", "the network is the paper's"),
        ("--data symmetry --val 4", "all cases are trained on"),
        ("--data symmetry --l2 1 --optimizer sgd --decay 0.1", "--optimizer momentum"),
        ("--decay 0.1", "--optimizer momentum"),
        ("--spread 1", "networks of 1986"),
        ("--target x", "it is for tables"),
        ("--data iris --target x", "it is for tables"),
        ("--data iris --workers 2", "image files"),
        ("--dropout 1", "--dropout"),
        ("--hidden 0", "--hidden"),
        ("--norm --batch-size 1 --limit 64", "--norm can't train on one example at a time"),
        ("--norm --batch-size 4 --accumulate 4 --limit 64", "lower --accumulate"),
        ("--activation sine", "unknown activation 'sine'"),
    ],
)
def test_flags_without_meaning(argv, words, refused):
    assert words in refused(train.main, argv.split())
    assert not list(Path().iterdir())


def test_shards_have_no_penalties_unless_they_are_asked_for(monkeypatch, refused):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert train.parse_args(["--data", "iris"]).l2 == 0.03
    for flags in (["--data", "iris"], ["--model", "mlp_dropout"]):
        args = train.parse_args([*flags, "--fsdp"])
        assert (args.l2, args.max_norm) == (0, None)
        assert "leave --fsdp away" in refused(train.parse_args, [*flags, "--fsdp", "--l2", "0.1"])


def test_a_checkpoint_keeps_its_sizes(refused):
    train.main(
        ["--quiet", "--limit", "64", "--hidden", "7", "--max-steps", "1", "--run-dir", "run"]
    )
    line = refused(train.main, ["--evaluate", "run/last.pt", "--hidden", "8"])
    assert "holds hidden [7], not [8]" in line
    assert train.main(["--evaluate", "run/last.pt", "--quiet"])["test_accuracy"] >= 0


def test_folders_of_images():
    make_tree(count=8, sizes=[(20, 14, 3), (30, 30)])
    metrics = train.main(["--quiet", "--data", "folder:tree", "--epochs", "2"])
    assert 0 <= metrics["test_accuracy"] <= 1


@pytest.mark.parametrize("name", ["mlp", "mlp_deep", "mlp_dropout"])
def test_overfits_one_batch(name):
    torch.manual_seed(0)
    model, x, labels = MODELS[name](), torch.rand(16, 1, 28, 28), torch.arange(16) % 10
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.001)
    for _ in range(60):
        loss = F.cross_entropy(model(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (model.eval()(x).argmax(1) == labels).all()


@pytest.mark.slow
def test_quick_reaches_the_number_of_the_readme():
    assert train.main(["--quiet"])["test_accuracy"] >= 0.97


# ---------------------------------------------------------------------- sample.py, claims.py


def test_sample_of_the_worlds(symmetrical, capsys, refused):
    train.main(["--data", "families", "--epochs", "4", "--quiet", "--run-dir", "fam"])
    capsys.readouterr()
    found = sample.main(["--checkpoint", f"{symmetrical}/last.pt", "011110", "011011", "000000"])
    assert found == {"011110": True, "011011": False, "000000": True}
    assert "011011: not symmetrical" in capsys.readouterr().out
    assert sample.main(["--checkpoint", f"{symmetrical}/last.pt", "--out", "out"])["pictures"]
    assert Path("out/symmetry.png").stat().st_size > 5000
    found = sample.main(["--checkpoint", "fam/last.pt", "colin", "aunt", "Sophia", "father"])
    assert list(found) == ["colin aunt", "Sophia father"]
    assert "truth: Margaret, Jennifer" in capsys.readouterr().out
    sample.main(["--checkpoint", "fam/last.pt", "--out", "out"])
    assert {p.name for p in Path("out").iterdir()} == {
        "symmetry.png", "people.png", "relations.png"
    }  # fmt: skip
    fam, sym = (["--checkpoint", f"{name}/last.pt"] for name in ("fam", symmetrical))
    assert "did you mean Colin?" in refused(sample.main, [*fam, "Collin", "aunt"])
    assert "did you mean aunt?" in refused(sample.main, [*fam, "Colin", "ant"])
    assert "'Sophia' is alone" in refused(sample.main, [*fam, "Colin", "aunt", "Sophia"])
    assert "six zeros and ones" in refused(sample.main, [*sym, "0110"])


def test_sample_of_images(capsys, refused):
    train.main(["--quiet", "--epochs", "8", "--run-dir", "run"])
    from sklearn.datasets import load_digits

    raw = load_digits()
    for number in range(10):
        small = Image.fromarray((raw.images[number] * 255 / 16).astype(np.uint8))
        page = Image.new("L", (200, 150))
        page.paste(small.resize((100, 100)), (80, 20))
        page.save(f"{number}.png")
    names = [f"{number}.png" for number in range(10)]
    found = sample.main(["--checkpoint", "run/last.pt", *names, "--out", "out"])
    assert sum(found[f"{number}.png"][0] == str(number) for number in range(10)) >= 7
    assert Path("out/predictions.png").exists()
    assert sample.main(["--checkpoint", "run/last.pt", "--out", "out"])["mistakes"] >= 0
    assert Path("out/mistakes.png").exists()
    assert "nothing.png" in refused(sample.main, ["--checkpoint", "run/last.pt", "nothing.png"])


@pytest.mark.parametrize("claim", ["symmetry", "families", "depth", "regularisation"])
def test_claims_run_resume_and_summarise(claim, monkeypatch):
    monkeypatch.setattr(claims, "DEPTHS", (2, 3))
    few = {"none": [[]], "L2": [["--l2", "1e-3"], ["--l2", "1e-2"]]}
    monkeypatch.setattr(claims, "STRENGTHS", few)
    monkeypatch.setattr(claims, "FEW_IMAGES", ["--limit", "64", "--epochs", "1"])
    seeds = ["0"] if claim in ("depth", "regularisation") else ["0", "1"]
    argv = [claim, "--seeds", *seeds, "--epochs", "1", "--data", "digits", "--out", "out"]
    summary = claims.main(argv)
    written = json.loads(Path(f"out/claim_{claim}.json").read_text())
    assert written == summary
    assert all(len(arm["test_accuracy"]["values"]) == len(seeds) for arm in summary.values())
    assert Path(f"out/claim_{claim}.png").stat().st_size > 2000
    before = {p: p.stat().st_mtime_ns for p in Path("runs").rglob("*") if "claims" in str(p)}
    assert claims.main(argv) == summary  # skipped, as all is done
    assert before == {
        p: p.stat().st_mtime_ns for p in Path("runs").rglob("*") if "claims" in str(p)
    }


def test_strengths_are_chosen_on_validation(monkeypatch, capsys):
    grid = {"sgd": ("1e-9", "0.1"), "adam": ("0.003",)}
    monkeypatch.setattr(claims, "GRIDS", grid)
    argv = ["optimisers", "--seeds", "0", "--epochs", "1", "--data", "digits", "--out", "out"]
    summary = claims.main(argv)
    assert list(summary) == ["sgd 0.1", "adam 0.003"]
    assert "sgd 0.1 is the best by val_accuracy (sgd 1e-9 " in capsys.readouterr().out


if __name__ == "__main__":  # what torchrun starts
    os.chdir(sys.argv[1])
    train_each("two", "--fsdp")
