"""GoogLeNet: sizes, Table 1, parity with torchvision, the paper's parts, and that it learns."""

import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from helpers import check_published, count, make_tree, perturb, weights
from PIL import Image
from torch import nn
from torchvision.models import GoogLeNet_Weights
from torchvision.models import googlenet as reference

from googlenet import claims, sample, train
from googlenet.model import (
    INCEPTIONS,
    MODELS,
    AuxiliaryHead,
    Inception,
    ResponseNorm,
    googlenet,
    googlenet_bn,
)

FIRST = ["googlenet", "googlenet_bn", "googlenet_small", "googlenet_bn_small"]
# Table 1: output size of each part, and the depth it adds
TABLE_1 = {
    "conv1": (64, 112, 112), "maxpool1": (64, 56, 56), "conv3": (192, 56, 56),
    "maxpool2": (192, 28, 28), "inception3a": (256, 28, 28), "inception3b": (480, 28, 28),
    "maxpool3": (480, 14, 14), "inception4a": (512, 14, 14), "inception4b": (512, 14, 14),
    "inception4c": (512, 14, 14), "inception4d": (528, 14, 14), "inception4e": (832, 14, 14),
    "maxpool4": (832, 7, 7), "inception5a": (832, 7, 7), "inception5b": (1024, 7, 7),
    "fc": (1000,),
}  # fmt: skip


def shapes_of(model, images):
    """The output shape of every child, without the batch."""
    shapes = {}
    for name, layer in model.named_children():
        layer.register_forward_hook(lambda _, __, out, n=name: shapes.update({n: out.shape[1:]}))
    model(images)
    return {name: tuple(shape) for name, shape in shapes.items()}


# ------------------------------------------------------------------------------ sizes


@pytest.mark.parametrize(
    ("name", "without", "with_heads"),
    [("googlenet", 6_998_552, 13_378_280), ("googlenet_bn", 6_624_904, 13_004_888)],
)
def test_parameters(name, without, with_heads):
    assert count(MODELS[name](aux_logits=False)) == without
    assert count(MODELS[name]()) == with_heads


def test_models_and_their_docstrings():
    assert set(MODELS) == {*FIRST, *train.V3_MODELS}  # see test_googlenet_v3.py
    for factory in MODELS.values():
        for aux_logits in (True, False):
            with torch.device("meta"):
                size = count(factory(aux_logits=aux_logits))
            assert f"{size:,}" in factory.__doc__


def test_depth_is_22():
    """Layers with weights on the way from the pixels to the class (Sec. 5)."""
    model = googlenet(aux_logits=False)
    stem = [model.conv1, model.conv2, model.conv3]
    branch = [len(list(model.inception3a.branch3))] * len(INCEPTIONS)
    assert len(stem) + sum(branch) + 1 == 22


@pytest.mark.parametrize("name", ["googlenet", "googlenet_bn"])
def test_shapes_are_those_of_table_1(name):
    shapes = shapes_of(MODELS[name](aux_logits=False).eval(), torch.zeros(1, 3, 224, 224))
    assert {part: shapes[part] for part in TABLE_1} == TABLE_1
    for part, widths in INCEPTIONS.items():
        ones, _, threes, _, fives, pooled = widths
        assert ones + threes + fives + pooled == TABLE_1[f"inception{part}"][0]


@pytest.mark.parametrize("name", ["googlenet_small", "googlenet_bn_small"])
def test_shapes_of_the_small_ones(name):
    shapes = shapes_of(MODELS[name](), torch.zeros(2, 3, 32, 32))
    sides = {"conv1": 32, "conv3": 16, "inception3b": 16, "inception4e": 8, "inception5b": 4}
    assert {part: shapes[part][1] for part in sides} == sides
    whole = shapes_of(MODELS[name.removesuffix("_small")]().eval(), torch.zeros(1, 3, 64, 64))
    for part in ("conv1", "conv3", *(f"inception{name}" for name in INCEPTIONS)):
        assert shapes[part][0] / whole[part][0] == shapes["conv1"][0] / 64


@pytest.mark.parametrize("name", FIRST)
def test_heads_are_there_in_training_only(name):
    images = torch.rand(2, 3, 40, 40)
    for aux_logits in (True, False):
        model = MODELS[name](num_classes=7, aux_logits=aux_logits)
        assert model.eval()(images).shape == (2, 7)
        found = model.train()(images)
        assert isinstance(found, tuple) == aux_logits
        assert [f.shape for f in found] == [(2, 7)] * 3 if aux_logits else found.shape == (2, 7)


@pytest.mark.parametrize("name", FIRST)
@pytest.mark.parametrize("size", [(31, 31), (33, 50)])
def test_other_sizes_work(name, size):
    found = MODELS[name](num_classes=3)(torch.rand(4, 3, *size))
    assert all(logits.shape == (4, 3) and logits.isfinite().all() for logits in found)


# ------------------------------------------------------------------------------ torchvision


@pytest.mark.parametrize("aux_logits", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_parity_with_torchvision(aux_logits, training):
    torch.manual_seed(0)
    theirs = reference(aux_logits=aux_logits, init_weights=False, num_classes=12)
    theirs = perturb(theirs.double()).train(training)
    ours = googlenet_bn(12, aux_logits).double().train(training)
    ours.load_state_dict(theirs.state_dict())
    images = torch.randn(2, 3, 96, 80, dtype=torch.float64)
    found = []
    for model in (ours, theirs):
        torch.manual_seed(1)  # the same dropout
        logits = model(images)
        outputs = list(logits) if isinstance(logits, tuple) else [logits]
        sum(
            (i + 1) * F.cross_entropy(o, torch.tensor([3, 7])) for i, o in enumerate(outputs)
        ).backward()
        found.append(outputs)
    assert len(found[0]) == len(found[1]) == (3 if training and aux_logits else 1)
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-11)
    grads = [dict(m.named_parameters()) for m in (ours, theirs)]
    grads = [{n: p.grad for n, p in g.items() if p.grad is not None} for g in grads]
    assert len(grads[0]) == len(list(ours.parameters())) - 14 * (aux_logits and not training)
    torch.testing.assert_close(*grads, rtol=1e-7, atol=1e-11)
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict())  # the running statistics


def test_the_other_dropouts_are_torchvisions():
    theirs, ours = reference(init_weights=False), googlenet_bn()
    for name in ("dropout", "aux1.dropout", "aux2.dropout"):
        assert ours.get_submodule(name).p == theirs.get_submodule(name).p
    assert googlenet().dropout.p == 0.4  # the paper's, Sec. 5
    assert googlenet().aux1.dropout.p == googlenet().aux2.dropout.p == 0.7


# ------------------------------------------------------------------------------ the paper's parts


def test_response_norm_is_the_papers_formula():
    x = torch.randn(2, 9, 3, 4, dtype=torch.float64) * 30
    y = ResponseNorm()(x)
    for i in range(9):
        near = range(max(0, i - 2), min(8, i + 2) + 1)
        wanted = x[:, i] / (2 + 1e-4 * sum(x[:, j] ** 2 for j in near)) ** 0.75
        torch.testing.assert_close(y[:, i], wanted)
    torch.testing.assert_close(y, nn.LocalResponseNorm(5, 5e-4, 0.75, 2.0)(x))


def test_inception_is_four_branches():
    torch.manual_seed(0)
    widths, x = (2, 3, 4, 5, 6, 7), torch.randn(2, 8, 6, 6, dtype=torch.float64)
    module = perturb(Inception(8, widths).double())
    weights = iter(module.parameters())

    def conv(x, padding=0):
        return F.relu(F.conv2d(x, next(weights), next(weights), padding=padding))

    pooled = F.pad(x, [1] * 4, value=-math.inf).unfold(2, 3, 1).unfold(3, 3, 1).amax((4, 5))
    branches = [conv(x), conv(conv(x), 1), conv(conv(x), 2), conv(pooled)]
    assert [branch.shape[1] for branch in branches] == [2, 4, 6, 7]
    torch.testing.assert_close(module(x), torch.cat(branches, 1))
    assert module.branch3[1].conv.kernel_size == (5, 5)
    assert Inception(8, widths, bn=True).branch3[1].conv.kernel_size == (3, 3)


@pytest.mark.parametrize("side", [14, 9])
def test_heads_pool_5x5_with_stride_3_at_14_pixels(side):
    torch.manual_seed(0)
    head, x = AuxiliaryHead(6, 5).double(), torch.randn(2, 6, side, side, dtype=torch.float64)
    pooled = x.unfold(2, 5, 3).unfold(3, 5, 3).mean((4, 5))
    pooled = pooled if side == 14 else F.adaptive_avg_pool2d(x, 4)
    hidden = F.relu(F.conv2d(pooled, head.conv.conv.weight, head.conv.conv.bias)).flatten(1)
    hidden = F.relu(hidden @ head.fc1.weight.T + head.fc1.bias)
    assert hidden.shape == (2, 1024)
    wanted = hidden @ head.fc2.weight.T + head.fc2.bias
    torch.testing.assert_close(head.eval()(x), wanted)
    adaptive = AuxiliaryHead(6, 5, bn=True).double().eval()
    seen = []
    adaptive.conv.register_forward_hook(lambda _, args, __: seen.append(args[0]))
    adaptive(x)
    torch.testing.assert_close(seen[0], F.adaptive_avg_pool2d(x, 4))


def test_googlenet_is_fig_3_written_out():
    """The whole of the paper's network at 224 pixels, in functions, with torch's own norm."""
    torch.manual_seed(0)
    model = perturb(googlenet(num_classes=9).double())
    for head in (model, model.aux1, model.aux2):
        head.dropout.p = 0.0
    x = images = torch.randn(1, 3, 224, 224, dtype=torch.float64)

    def conv(x, layer, **kwargs):
        return F.relu(F.conv2d(x, layer.conv.weight, layer.conv.bias, **kwargs))

    def pool(x):
        return F.max_pool2d(x, 3, 2, ceil_mode=True)

    def inception(x, module):
        b1, b2, b3, b4 = module.branch1, module.branch2, module.branch3, module.branch4
        fives = conv(conv(x, b3[0]), b3[1], padding=2)
        pooled = conv(F.max_pool2d(x, 3, 1, 1), b4[1])
        return torch.cat([conv(x, b1), conv(conv(x, b2[0]), b2[1], padding=1), fives, pooled], 1)

    def head(x, head):
        x = conv(F.avg_pool2d(x, 5, 3), head.conv).flatten(1)
        return head.fc2(F.relu(head.fc1(x)))

    norm = nn.LocalResponseNorm(5, 5e-4, 0.75, 2.0)
    x = norm(pool(conv(x, model.conv1, stride=2, padding=3)))
    x = pool(norm(conv(conv(x, model.conv2), model.conv3, padding=1)))
    outputs = []
    for part in INCEPTIONS:
        x = inception(pool(x) if part in ("4a", "5a") else x, getattr(model, f"inception{part}"))
        if part in ("4a", "4d"):
            outputs.insert(0, head(x, model.aux1 if part == "4a" else model.aux2))
    outputs.insert(0, model.fc(F.avg_pool2d(x, 7).flatten(1)))
    torch.testing.assert_close(model(images), tuple(outputs))


@pytest.mark.parametrize("name", ["googlenet_small", "googlenet_bn_small"])
def test_each_head_trains_what_lies_below_it(name):
    model = MODELS[name]()
    logits, aux2, aux1 = model(torch.rand(2, 3, 32, 32))
    order = ["conv1", "inception4a", "inception4d", "fc"]
    for output, reached in ((aux1, 2), (aux2, 3), (logits, 4)):
        model.zero_grad()
        output.sum().backward(retain_graph=True)
        grads = [next(model.get_submodule(part).parameters()).grad for part in order]
        assert [grad is not None for grad in grads] == [i < reached for i in range(4)]


def test_initial_weights():
    torch.manual_seed(0)
    for name, layer in googlenet(aux_logits=False).named_modules():
        if isinstance(layer, nn.Conv2d):
            fan_in = layer.weight[0].numel()
            assert layer.weight.std().item() == pytest.approx((2 / fan_in) ** 0.5, rel=0.1), name
            assert not layer.bias.any()


def test_signals_keep_their_size_through_all_layers():
    """Differences between images neither fade nor blow up on the way to the last maps."""
    torch.manual_seed(0)
    model, spread = googlenet(aux_logits=False).eval(), {}
    for part in ("conv1", "inception5b"):
        layer = model.get_submodule(part)
        layer.register_forward_hook(lambda _, __, o, p=part: spread.update({p: o.std(0).mean()}))
    model(torch.randn(4, 3, 64, 64))
    assert 0.05 < spread["inception5b"] / spread["conv1"] < 1


@pytest.mark.parametrize("name", ["googlenet_small", "googlenet_bn_small"])
def test_overfits_one_batch(name):
    torch.manual_seed(0)
    model, x, labels = MODELS[name](), torch.randn(10, 3, 32, 32), torch.arange(10)
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


# ------------------------------------------------------------------------------ train.py


@pytest.fixture
def tree():
    """Flags for one epoch, of two steps, on a folder with six images of each of six classes."""
    make_tree(classes="abcdef", sizes=[(40, 49, 3)])
    return ["--quiet", "--data", "folder:tree", "--epochs", "1", "--val", "0", "--batch-size", "14"]


def test_stairs_and_cosine():
    steps = [0, 8 * 5 - 1, 8 * 5, 16 * 5]  # 5 steps an epoch
    assert [train.stairs("googlenet", 5, step) for step in steps] == [1, 1, 0.96, 0.96**2]
    assert [train.stairs("inception_v3", 5, step) for step in (9, 10, 20)] == [1, 0.94, 0.94**2]
    rates = [train.up_and_down(99, step) for step in range(99)]
    assert rates.index(max(rates)) == 9
    assert max(rates) == pytest.approx(1)
    assert rates[0] == pytest.approx(0.1)
    assert 0 < rates[-1] < 0.001
    args = train.parse_args(["--paper"])
    assert (args.model, args.schedule, args.average) == ("googlenet", "stairs", 0.9999)
    assert (args.size, args.lr, args.val) == (224, 0.01, 0)
    assert train.parse_args([]).size == 32
    assert train.parse_args(["--model", "googlenet"]).size == 64


@pytest.mark.parametrize(
    "flags",
    [
        ["--precision", "bf16"],
        ["--precision", "fp16", "--batch-size", "28"],
        ["--no-aux"],
        ["--no-augment"],
    ],
)
def test_paths_of_the_loop(tree, flags):
    metrics = train.main([*tree, "--run-dir", "run", *flags])
    assert all(math.isfinite(value) for value in metrics.values())
    assert {"train_loss", "train_accuracy", "test_loss", "test_accuracy"} == metrics.keys()
    state = weights("run")
    assert all(t.isfinite().all() for t in state.values())
    assert any(key.startswith("aux") for key in state) == ("--no-aux" not in flags)


class Undecided(nn.Module):
    """The same logits for all classes, from the network and from both heads."""

    def __init__(self, num_classes):
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(num_classes))

    def forward(self, x):
        logits = self.logits.expand(len(x), -1)
        return (logits, logits, logits) if self.training else logits


def test_heads_count_three_tenths(tree, monkeypatch):
    monkeypatch.setitem(train.MODELS, "googlenet", Undecided)
    seen, step = [], train.Device.step
    monkeypatch.setattr(
        train.Device, "step", lambda dev, loss, *rest: seen.append(loss) or step(dev, loss, *rest)
    )
    flags = [*tree, "--model", "googlenet", "--size", "16", "--max-steps", "1"]
    metrics = train.main([*flags, "--precision", "fp32"])
    assert seen[0].item() == pytest.approx(1.6 * math.log(6))  # Sec. 5
    assert metrics["train_loss"] == pytest.approx(math.log(6))  # of the network's own answers


def test_heads_leave_the_first_weights_of_the_rest_as_they_are(tree):
    for folder, more in (("with", []), ("without", ["--no-aux"])):
        train.main([*tree, "--max-steps", "1", "--lr", "1e-30", "--run-dir", folder, *more])
    states = [weights(folder) for folder in ("with", "without")]
    for key in ("conv1.conv.weight", "inception5b.branch1.conv.weight", "fc.weight"):
        assert torch.equal(*(state[key] for state in states))


def test_averaged_weights_are_measured_and_resumed(tree):
    """The average of two steps, bit for bit also when the run was cut between them."""
    flags = [*tree, "--average", "0.75"]
    found = train.main([*flags, "--run-dir", "whole"])
    train.main([*flags, "--run-dir", "cut", "--max-steps", "1"])
    first = torch.load("cut/last.pt")
    assert train.main(["--quiet", "--resume", "--run-dir", "cut"]) == found
    whole, cut = (torch.load(f"{folder}/last.pt") for folder in ("whole", "cut"))
    assert all(torch.equal(whole["ema"][key], cut["ema"][key]) for key in whole["ema"])
    torch.manual_seed(0)
    start = MODELS["googlenet_bn_small"](num_classes=6).state_dict()
    for key in ("conv1.conv.weight", "fc.bias", "conv1.bn.running_mean"):
        once = start[key] * 0.75 + first["model"][key] * 0.25
        torch.testing.assert_close(first["ema"][key], once)
        twice = once * 0.75 + whole["model"][key] * 0.25
        torch.testing.assert_close(whole["ema"][key], twice)
    torch.save({**whole, "model": {k: v * 0 for k, v in whole["model"].items()}}, "zero.pt")
    evaluated = train.main(["--quiet", "--evaluate", "zero.pt"])  # of the average alone
    assert evaluated["test_loss"] == pytest.approx(found["test_loss"])
    # turned off, and on again: what is measured are the weights of then
    more = ["--quiet", "--resume", "--run-dir", "cut", "--lr", "1e-30", "--epochs"]
    train.main([*more, "2", "--average", "0"])
    assert torch.load("cut/last.pt")["ema"] == {}
    train.main([*more, "3", "--average", "0.75"])
    content = torch.load("cut/last.pt")
    for key in ("conv1.conv.weight", "fc.bias"):
        torch.testing.assert_close(content["ema"][key], content["model"][key])


def test_bad_flags(tree, refused):
    for value in ("1", "-0.1", "nan", "x"):
        assert "from 0 to below 1" in refused(train.main, ["--average", value])
    assert "--fsdp" in refused(train.main, ["--average", "0.9", "--fsdp"])
    assert "did you mean cosine" in refused(train.main, ["--schedule", "cosin"])
    assert "--weights" in refused(train.main, ["--freeze"])
    line = refused(train.main, [*tree, "--model", "googlenet", "--size", "30"])
    assert "too small" in line
    assert not Path("runs").exists()
    train.main([*tree, "--no-aux", "--run-dir", "run"])
    checkpoint = torch.load("run/last.pt")
    checkpoint["config"]["flags"]["aux"] = True
    torch.save(checkpoint, "other.pt")
    assert "aux1" in refused(train.main, ["--evaluate", "other.pt"])


def test_torchvisions_weights_load_and_only_the_last_layers_train(tree):
    theirs = perturb(reference(init_weights=False))
    torch.save(theirs.state_dict(), "theirs.pt")
    flags = [*tree, "--model", "googlenet_bn", "--size", "48", "--weights", "theirs.pt"]
    train.main([*flags, "--freeze", "--run-dir", "run"])
    state, heads = weights("run"), ("fc.", "aux1.fc2.", "aux2.fc2.")
    for key, value in theirs.state_dict().items():
        assert torch.equal(state[key], value) == (not key.startswith(heads)), key
    assert state["fc.weight"].shape == (6, 1024)
    train.main([*tree, "--size", "48", "--max-steps", "1", "--run-dir", "plain"])
    facts = [torch.load(f"{run}/last.pt")["dataset"] for run in ("run", "plain")]
    assert facts[0] == facts[1]  # those of the data: the file names no others
    train.main([*flags, "--no-aux", "--max-steps", "1", "--run-dir", "without"])
    assert not any(key.startswith("aux") for key in weights("without"))


def test_weights_of_another_network(tree, refused):
    torch.save(googlenet_bn(aux_logits=False).state_dict(), "without.pt")
    torch.save(nn.Linear(2, 2).state_dict(), "linear.pt")
    flags = [*tree, "--size", "48", "--model"]
    assert "conv1" in refused(train.main, [*flags, "googlenet_bn", "--weights", "linear.pt"])
    line = refused(train.main, [*flags, "googlenet", "--weights", "without.pt"])
    assert "another network than googlenet" in line
    assert "googlenet_bn" in refused(train.main, [*flags, "googlenet", "--weights", "imagenet"])


# ------------------------------------------------------------------------------ other scripts


def test_sample_names_five_classes_of_any_image(tree, capsys, refused):
    flags = [*tree, "--model", "googlenet_bn_small", "--size", "16", "--average", "0.5"]
    metrics = train.main([*flags, "--no-aux", "--run-dir", "run"])
    Image.new("L", (30, 50)).save("grey.png")
    argv = ["--checkpoint", "run/last.pt", "--out", "out"]
    found = sample.main([*argv, "grey.png", "tree/a"])
    assert len(found) == 7
    assert all(len(answers) == 5 for answers in found.values())
    assert "grey: made RGB" in capsys.readouterr().out
    assert Path("out/predictions.jpg").exists()
    grid = ["--checkpoint", "run/last.pt", "--out", "grid"]
    assert sample.main(grid)["right"] == round(7 * metrics["test_accuracy"])
    for twice in ([*argv, "grey.png"], grid):
        assert "predictions.jpg is there already" in refused(sample.main, twice)
    # what answers is the average, not the last weights
    content = torch.load("run/last.pt")
    torch.save({**content, "model": {k: v * 0 for k, v in content["model"].items()}}, "zero.pt")
    again = sample.main(["--checkpoint", "zero.pt", "--out", "zero", "grey.png"])
    assert dict(again["grey.png"]) == pytest.approx(dict(found["grey.png"]), abs=1e-5)


@pytest.mark.parametrize("aux_logits", [True, False])
def test_samples_of_published_weights(aux_logits):
    """Pixels from -1 to 1: what torchvision's network makes of its usual inputs itself."""
    theirs = reference(init_weights=False, aux_logits=aux_logits, transform_input=True)
    check_published(sample, perturb(theirs), GoogLeNet_Weights.IMAGENET1K_V1)


def test_sample_errors(tree, refused):
    assert "train.py" in refused(sample.main, [])
    train.main([*tree, "--size", "16", "--run-dir", "run"])
    Path("bad.png").write_bytes(b"no image")
    for path in ("bad.png", "nothing.png"):
        assert path in refused(sample.main, ["--checkpoint", "run/last.pt", path])


def test_claim_runs_resumes_and_summarises(tree, monkeypatch):
    monkeypatch.setattr(claims, "train", lambda argv: train.main([*argv, "--quiet"]))
    argv = ["aux", "--data", "folder:tree", "--seeds", "0", "--epochs", "1", "--out", "out"]
    summary = claims.main(argv)
    assert len(summary) == 4
    written = json.loads(Path("out/claim_aux.json").read_text())
    for arm, metrics in written.items():
        assert len(metrics["test_accuracy"]["values"]) == 1
        assert ("--no-aux" in metrics["command"]) == ("no heads" in arm)
        assert metrics["command"].startswith("python googlenet/train.py")
    assert Path("out/claim_aux.png").exists()
    before = {p: p.stat().st_mtime_ns for p in Path("runs").rglob("*")}
    assert claims.main(argv) == summary  # skipped, as all is done
    assert before == {p: p.stat().st_mtime_ns for p in Path("runs").rglob("*")}


@pytest.mark.slow
def test_quick_reaches_the_number_of_the_readme():
    assert train.main(["--quiet"])["test_accuracy"] >= 0.85
