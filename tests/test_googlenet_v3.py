"""Inception-v3: sizes, Table 1, parity with torchvision, what factorising saves, training it."""

import json
import math
import warnings
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from helpers import check_published, count, make_tree, perturb, weights
from torchvision.models import Inception_V3_Weights
from torchvision.models import inception_v3 as reference

from googlenet import claims, sample, train
from googlenet.inception_v3 import (
    MODULES,
    REPEATED,
    Inception3,
    inception_v3,
    inception_v3_small,
    unfactorised,
)

TABLE_1 = {  # of 299 pixels; the paper's table counts an input, not an output, in each line
    "Conv2d_1a_3x3": (32, 149), "Conv2d_2a_3x3": (32, 147), "Conv2d_2b_3x3": (64, 147),
    "maxpool1": (64, 73), "Conv2d_3b_1x1": (80, 73), "Conv2d_4a_3x3": (192, 71),
    "maxpool2": (192, 35), "Mixed_5d": (288, 35), "Mixed_6a": (768, 17), "Mixed_6e": (768, 17),
    "Mixed_7a": (1280, 8), "Mixed_7c": (2048, 8),
}  # fmt: skip


def shapes_of(model, images):
    """The output's channels and side, by part."""
    shapes = {}
    for name, layer in model.named_children():
        layer.register_forward_hook(lambda _, __, out, n=name: shapes.update({n: out.shape}))
    with torch.no_grad():
        model(images)
    return {name: (shape[1], shape[-1]) for name, shape in shapes.items()}


def theirs_of(classes, **settings):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return reference(weights=None, init_weights=False, num_classes=classes, **settings)


def test_parameters():
    with torch.device("meta"):
        assert count(inception_v3()) == 27_161_264
        assert count(inception_v3(aux_logits=False)) == 23_834_568


def test_shapes():
    shapes = shapes_of(inception_v3(aux_logits=False).eval(), torch.zeros(1, 3, 299, 299))
    assert {part: shapes[part] for part in TABLE_1} == TABLE_1


def test_the_small_one_keeps_one_module_for_a_size():
    little = shapes_of(inception_v3_small(), torch.rand(2, 3, 32, 32))
    sides = {"Conv2d_4a_3x3": 32, "Mixed_5b": 16, "Mixed_6b": 7, "Mixed_7b": 3}
    assert {part: little[part][1] for part in sides} == sides
    for part, wide in (("Conv2d_1a_3x3", "Conv2d_1a_3x3"), ("Mixed_6b", "Mixed_6e"),
                       ("Mixed_7a", "Mixed_7a"), ("Mixed_7b", "Mixed_7c")):  # fmt: skip
        assert little[part][0] * 4 == TABLE_1[wide][0]
    kept = [name for name in MODULES if name not in REPEATED]
    assert [name[:-1] for name in kept] == ["Mixed_5", *["Mixed_6"] * 2, *["Mixed_7"] * 2]
    model = inception_v3_small(aux_logits=False)
    assert all(isinstance(model.get_submodule(name), torch.nn.Identity) for name in REPEATED)
    longest = {"Mixed_5b": 3, "Mixed_6a": 3, "Mixed_6b": 5, "Mixed_7a": 4, "Mixed_7b": 3}
    for name, layers in longest.items():
        assert max(sum(step not in ("average", "maximum") for step in branch)
                   for branch in MODULES[name]) == layers  # fmt: skip
    assert 5 + sum(longest.values()) + 1 == 24  # the stem, the modules, the linear layer


def test_the_head_trains_what_lies_below_it():
    model = inception_v3_small()
    logits, aux = model(torch.rand(2, 3, 32, 32))
    order = ["Conv2d_1a_3x3", "Mixed_6b", "Mixed_7a", "fc"]
    for output, reached in ((aux, 2), (logits, 4)):
        model.zero_grad()
        output.sum().backward(retain_graph=True)
        grads = [next(model.get_submodule(part).parameters()).grad for part in order]
        assert [grad is not None for grad in grads] == [i < reached for i in range(4)]


@pytest.mark.parametrize("aux_logits", [True, False])
def test_parity_with_torchvision(aux_logits):
    theirs = perturb(theirs_of(5, aux_logits=True).double())
    if not aux_logits:
        theirs.AuxLogits, theirs.aux_logits = None, False
    ours = inception_v3(5, aux_logits).double()
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict())
    images, labels = torch.randn(2, 3, 96, 96, dtype=torch.float64), torch.tensor([3, 1])
    for model in (ours, theirs) if aux_logits else ():
        # Heads that see 17x17 maps, as of 299 pixels: torchvision's needs them.
        model.AuxLogits.register_forward_pre_hook(lambda _, x: F.interpolate(x[0], size=17))
    for training in (False, True):
        found = []
        for model in (ours.train(training), theirs.train(training)):
            model.zero_grad()
            torch.manual_seed(1)  # the same dropout
            outputs = model(images)
            outputs = list(outputs) if isinstance(outputs, tuple) else [outputs]
            sum((i + 1) * F.cross_entropy(o, labels) for i, o in enumerate(outputs)).backward()
            found.append(outputs)
        assert len(found[0]) == 1 + (training and aux_logits)
        torch.testing.assert_close(*found, rtol=1e-9, atol=1e-11)
        grads = [{n: p.grad for n, p in m.named_parameters() if p.grad is not None}
                 for m in (ours, theirs)]  # fmt: skip
        assert len(grads[0]) == len(list(ours.parameters())) - 8 * (aux_logits and not training)
        torch.testing.assert_close(*grads, rtol=1e-7, atol=1e-11)
        torch.testing.assert_close(ours.state_dict(), theirs.state_dict())  # running statistics


def test_initial_weights():
    for name, p in Inception3(50, width=0.5).named_parameters():
        if p.dim() > 1:
            wanted = {"AuxLogits.conv1.conv": 0.01, "AuxLogits.fc": 0.001}
            std = wanted.get(name.removesuffix(".weight"), 0.1)
            assert p.abs().max() <= 2 * std
            assert p.std().item() == pytest.approx(0.88 * std, rel=0.1), name  # cut at 2


def test_whole_filters_see_the_same():
    """The network before factorising: as many channels and pixels come out of each module."""
    whole, ours = (Inception3(7, width=0.25, factorised=f).eval() for f in (False, True))
    images = torch.zeros(1, 3, 107, 107)
    assert shapes_of(whole, images) == shapes_of(ours, images)
    sizes = {m.kernel_size for m in whole.modules() if isinstance(m, torch.nn.Conv2d)}
    assert sizes == {(1, 1), (3, 3), (5, 5), (7, 7), (1, 3), (3, 1)}
    assert unfactorised([("a", 8, 1), ("b", 8, 3), ("c", 9, 3, 2)]) == [("a", 8, 1), ("c", 9, 5, 2)]
    assert unfactorised([("a", 4, (1, 7)), ("b", 5, (7, 1))]) == [("b", 5, 7)]
    assert unfactorised(["maximum"]) == ["maximum"]


def test_what_factorising_saves():
    rows = claims.main(["factors", "--out", "out"])
    assert rows == json.loads(Path("out/claim_factors.json").read_text())
    assert Path("out/claim_factors.png").stat().st_size > 1000
    assert rows["all"]["factorised"] == pytest.approx(5.71e9, rel=0.01)
    dearer = [name for name, row in rows.items() if row["factorised"] >= row["whole"]]
    assert dearer == ["6a", "7b", "7c"]  # 6a splits at full size; 7b and 7c have nothing to split
    assert rows["6e"]["whole"] > 2 * rows["6e"]["factorised"]


def test_overfits_one_batch():
    model, x, labels = inception_v3_small(), torch.randn(10, 3, 32, 32), torch.arange(10)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.002)
    for _ in range(100):
        outputs = model(x)
        if (outputs[0].argmax(1) == labels).all():
            break
        loss = sum(F.cross_entropy(logits, labels) for logits in outputs)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    else:
        raise AssertionError("it hasn't learned ten images in a hundred steps")


def test_the_papers_recipe():
    args = train.parse_args(["--paper", "--model", "inception_v3"])
    assert (args.size, args.batch_size, args.epochs, args.lr) == (299, 1600, 100, 0.045)
    assert (args.optimizer, args.smoothing, args.clip, args.average) == ("rmsprop", 0.1, 2, 0.9999)
    assert train.parse_args(["--model", "inception_v3"]).smoothing == 0.1
    small = train.parse_args(["--model", "inception_v3_small"])
    assert (small.size, small.smoothing, small.lr) == (32, 0.1, 0.1)
    assert train.parse_args([]).smoothing == 0


def test_optimisers():
    weight = torch.nn.Parameter(torch.zeros(2))
    for argv, wanted in (
        (["--paper", "--model", "inception_v3"],  # Sec. 8
         {"alpha": 0.9, "eps": 1.0, "momentum": 0.9, "weight_decay": 4e-5, "lr": 0.045}),
        ([], {"momentum": 0.9, "weight_decay": 2e-4, "nesterov": False, "lr": 0.1}),
    ):  # fmt: skip
        optimizer = train.make_optimizer(train.parse_args(argv), [weight])
        assert wanted.items() <= optimizer.param_groups[0].items()


class Equal(torch.nn.Module):
    """The same logits for all classes, from the network and from the head."""

    def __init__(self, num_classes, **_):
        super().__init__()
        self.logits = torch.nn.Parameter(torch.zeros(num_classes))

    def forward(self, x):
        logits = self.logits.expand(len(x), -1)
        return (logits, logits) if self.training else logits


def test_the_head_counts_four_tenths(monkeypatch):
    """As in the authors' code; of smoothed labels the loss of equal logits is the same."""
    monkeypatch.setitem(train.MODELS, "inception_v3_small", Equal)
    seen, step = [], train.Device.step
    monkeypatch.setattr(
        train.Device, "step", lambda dev, loss, *rest: seen.append(loss) or step(dev, loss, *rest)
    )
    flags = ["--data", "digits", "--limit", "32", "--val", "0", "--batch-size", "16", "--quiet"]
    train.main([*flags, "--model", "inception_v3_small", "--max-steps", "1"])
    assert seen[0].item() == pytest.approx(1.4 * math.log(10), rel=1e-3)


def test_labels_are_smoothed_in_training_alone(monkeypatch):
    """Of all outputs, the head's too, by Eq. 10's share; what is measured is the plain loss."""
    found, real = [], F.cross_entropy

    def note(logits, labels, label_smoothing=0.0, **rest):
        loss = real(logits, labels, label_smoothing=label_smoothing, **rest)
        if torch.is_grad_enabled() and label_smoothing:  # Sec. 7, written out
            log, share = logits.log_softmax(1), label_smoothing
            plain = (1 - share) * F.nll_loss(log, labels) - share * log.mean(1).mean()
            torch.testing.assert_close(loss, plain)
        found.append((torch.is_grad_enabled(), label_smoothing))
        return loss

    monkeypatch.setattr(F, "cross_entropy", note)
    flags = ["--data", "digits", "--limit", "32", "--val", "0", "--batch-size", "16", "--quiet"]
    train.main([*flags, "--model", "inception_v3_small", "--max-steps", "1"])
    assert found[:2] == [(True, 0.1)] * 2  # logits and the auxiliary head's
    assert set(found[2:]) == {(False, 0.0)}


@pytest.mark.parametrize(
    ("model", "flags"),
    [
        ("inception_v3", ["--size", "75"]),
        ("inception_v3_small", ["--no-aux"]),
        ("inception_v3_small", ["--whole-filters", "--optimizer", "rmsprop", "--size", "40"]),
    ],
)
def test_it_trains_evaluates_and_answers(model, flags, capsys):
    make_tree(classes="abc", sizes=[(80, 89, 3)], count=3)
    argv = ["--model", model, "--data", "folder:tree", "--epochs", "1", "--val", "0"]
    argv += ["--batch-size", "7", "--quiet", "--run-dir", "run"]
    metrics = train.main([*argv, *flags])
    sides = {
        w.shape[2:] for key, w in weights("run").items() if "branch7x7" in key and w.dim() == 4
    }
    assert ((7, 7) in sides) == ("--whole-filters" in flags)
    assert any(key.startswith("AuxLogits") for key in weights("run")) == ("--no-aux" not in flags)
    assert Path("run/confusion.png").exists()
    again = train.main(["--evaluate", "run/last.pt", "--quiet"])
    assert again["test_loss"] == pytest.approx(metrics["test_loss"])
    sample.main(["--checkpoint", "run/last.pt", "tree/a/0.png"])
    assert "tree/a/0.png: " in capsys.readouterr().out


def test_published_weights_with_other_classes(monkeypatch):
    """They were trained on pixels from -1 to 1."""
    theirs = theirs_of(4)
    monkeypatch.setattr("common.weights.download", lambda name, _: theirs.state_dict())
    make_tree(classes="abc", sizes=[(80, 80, 3)])
    argv = ["--model", "inception_v3", "--data", "folder:tree", "--size", "75", "--val", "0"]
    argv += ["--weights", "imagenet", "--freeze", "--max-steps", "1", "--batch-size", "2"]
    train.main([*argv, "--quiet", "--run-dir", "run"])
    found = weights("run")
    same = [k for k, v in theirs.state_dict().items() if torch.equal(v, found[k])]
    assert len(same) == len(found) - 4  # the two last layers are new
    facts = torch.load("run/last.pt")["dataset"]
    assert (facts["mean"], facts["std"]) == ([0.5] * 3, [0.5] * 3)


def test_samples_of_published_weights():
    """299 pixels, from -1 to 1: what torchvision's network makes of its usual inputs itself."""
    theirs = perturb(theirs_of(1000, transform_input=True))
    entry = Inception_V3_Weights.IMAGENET1K_V1
    check_published(sample, theirs, entry, ["--model", "inception_v3"])


def test_what_is_refused(refused):
    assert "inception_v3" in refused(train.main, ["--whole-filters"])
    argv = ["--model", "inception_v3", "--size", "40", "--max-steps", "1", "--data", "digits"]
    assert "40" in refused(train.main, argv)


@pytest.mark.slow
def test_the_recipe_reaches_the_number_of_the_readme():
    assert train.main(["--model", "inception_v3_small", "--quiet"])["test_accuracy"] >= 0.95
