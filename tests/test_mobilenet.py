"""MobileNets: sizes, parity, depthwise gradients, folded norms, recipes, samples and claims."""

import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import torchvision
from helpers import check_mean_loss, check_published, compare, count, perturb, weights
from torch import nn
from torchvision.models._utils import _make_divisible

from common.claims import multiply_adds
from common.weights import from_hub
from mobilenet import claims, layers, sample, train
from mobilenet.layers import Depthwise, DepthwiseConv2d, divisible, folded
from mobilenet.model import MODELS
from mobilenet.v1 import FullConv, SeparableConv, mobilenet_v1, mobilenet_v1_cifar
from mobilenet.v2 import InvertedResidual, mobilenet_v2, mobilenet_v2_cifar
from mobilenet.v3 import SqueezeExcitation, mobilenet_v3_cifar, mobilenet_v3_large

PARAMETERS = {
    "mobilenet_v1": 4_231_976,
    "mobilenet_v1_075": 2_585_560,
    "mobilenet_v1_050": 1_331_592,
    "mobilenet_v1_025": 470_072,
    "mobilenet_v2": 3_504_872,
    "mobilenet_v2_140": 6_108_776,
    "mobilenet_v2_075": 2_636_424,
    "mobilenet_v2_050": 1_968_680,
    "mobilenet_v2_035": 1_677_128,
    "mobilenet_v3_large": 5_483_032,
    "mobilenet_v3_small": 2_542_856,
    "mobilenet_v1_cifar": 823_722,
    "mobilenet_v2_cifar": 408_938,
    "mobilenet_v3_cifar": 1_077_290,
}
TORCHVISIONS = ("mobilenet_v2", "mobilenet_v3_large", "mobilenet_v3_small")
FLAGS = ["--data", "digits", "--limit", "96", "--val", "0", "--batch-size", "32", "--quiet"]
TINY = [*FLAGS, "--width", "0.1", "--size", "16"]  # the narrowest there is


def test_parameters():
    with torch.device("meta"):
        assert {name: count(make()) for name, make in MODELS.items()} == PARAMETERS
        assert count(mobilenet_v1(separable=False)) == 29_294_088  # v1, Table 4: 29.3 million


@pytest.mark.parametrize(
    ("make", "millions"),
    [
        (mobilenet_v1, 569),  # v1, Tables 4 and 6 (4866 there)
        (lambda: mobilenet_v1(separable=False), 4867),
        (MODELS["mobilenet_v1_075"], 325),
        (MODELS["mobilenet_v1_050"], 149),
        (MODELS["mobilenet_v1_025"], 41),
        (mobilenet_v2, 301),  # v2, Table 4: 300 and 585
        (MODELS["mobilenet_v2_140"], 582),
        (mobilenet_v3_large, 217),  # v3, Table 3: 219
    ],
)
def test_multiply_adds_are_the_papers(make, millions):
    with torch.device("meta"):
        assert round(multiply_adds(make(), torch.empty(1, 3, 224, 224)) / 1e6) == millions


def test_a_separable_convolution_costs_eq_5():
    """1/N + 1/K^2 of a full one, for N output channels."""
    costs = []
    with torch.device("meta"):
        for layer in (SeparableConv(512, 512), FullConv(512, 512)):
            costs.append(multiply_adds(layer, torch.empty(1, 512, 14, 14)))
    assert costs[0] / costs[1] == pytest.approx(1 / 512 + 1 / 9)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", TORCHVISIONS)
def test_parity_with_torchvision(name, training):
    theirs = perturb(getattr(torchvision.models, name)(num_classes=7, dropout=0.0).double())
    with torch.device("meta"):
        ours = MODELS[name](num_classes=7, dropout=0.0).double()
    ours.to_empty(device="cpu").load_state_dict(theirs.state_dict())  # the names are the same
    compare(ours, theirs, torch.randn(2, 3, 64, 72, dtype=torch.float64), training)
    for a, b in zip(norms(ours), norms(theirs), strict=True):
        assert (a.eps, a.momentum) == (b.eps, b.momentum)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_parity_with_timm(training):
    timm = pytest.importorskip("timm")
    theirs = perturb(timm.create_model("mobilenetv1_100", num_classes=7).double())
    ours = mobilenet_v1(num_classes=7, dropout=0.0).double()
    ours.load_state_dict(theirs.state_dict())
    compare(ours, theirs, torch.randn(2, 3, 64, 72, dtype=torch.float64), training)
    for a, b in zip(norms(ours), norms(theirs), strict=True):
        assert (a.eps, a.momentum) == (b.eps, b.momentum)


def norms(model):
    return [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]


@pytest.mark.parametrize("width", [0.1, 0.35, 0.5, 0.75, 1.4])
def test_widths_are_torchvisions(width):
    with torch.device("meta"):
        for name in TORCHVISIONS:
            theirs = getattr(torchvision.models, name)(width_mult=width)
            ours = MODELS[name](width=width)
            shapes = [{k: v.shape for k, v in m.state_dict().items()} for m in (ours, theirs)]
            assert shapes[0] == shapes[1]
    for channels in range(1, 2000, 7):
        assert divisible(channels * width) == _make_divisible(channels * width, 8)


def shapes_of(model, layers, size):
    found = []
    for layer in layers:
        layer.register_forward_hook(lambda _, __, out: found.append(tuple(out.shape[1:3])))
    model.eval()(torch.zeros(1, 3, size, size, device="meta"))
    return found


@pytest.mark.parametrize("small", [False, True])
def test_stages_are_those_of_the_tables(small):
    """v1, Table 1; v2, Table 2; v3, Table 1: channels, pixels; for 32 pixels two strides less."""
    scale = (lambda p: p * 4 // 7) if small else (lambda p: p)
    size = 32 if small else 224
    with torch.device("meta"):
        v1 = mobilenet_v1_cifar(width=1.0) if small else mobilenet_v1()
        v2 = mobilenet_v2_cifar(width=1.0) if small else mobilenet_v2()
        v3 = mobilenet_v3_cifar() if small else mobilenet_v3_large()
    wanted = [(64, 112), (128, 56), (256, 28), (512, 14), (1024, 7)]
    wanted = [(c, min(scale(p), size)) for c, p in wanted]
    assert shapes_of(v1, v1.blocks, size) == wanted
    wanted = [(32, 112), (16, 112), (24, 56), (32, 28), (64, 14), (96, 14), (160, 7), (320, 7)]
    wanted = [(c, min(scale(p), size)) for c, p in [*wanted, (1280, 7)]]
    places = [v2.features[i] for i in (0, 1, 3, 6, 10, 13, 16, 17, 18)]
    assert shapes_of(v2, places, size) == wanted
    wanted = [(16, 112), (16, 112), (24, 56), (40, 28), (80, 14), (112, 14), (160, 7), (960, 7)]
    places = [0, 1, 3, 6, 10, 12, 15, 16]
    if small:  # the small table
        wanted = [(16, 32), (16, 32), (24, 16), (40, 8), (48, 8), (96, 4), (576, 4)]
        places = [0, 1, 3, 6, 8, 11, 12]
    places = [v3.features[i] for i in places]
    assert shapes_of(v3, places, size) == wanted


# ---------------------------------------------------------------------- depthwise convolutions


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [3, 5])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_depthwise_gradients_are_torchs(size, stride, dtype):
    for high, wide in ((9, 12), (4, 5), (2, 2), (2, 1), (1, 1)):
        x = torch.randn(3, 6, high, wide).to(dtype).to(memory_format=torch.channels_last)
        weight = torch.randn(6, 1, size, size).to(dtype)
        results = []
        for ours in (True, False):
            a, w = (t.clone().requires_grad_() for t in (x, weight))
            if ours:
                y = Depthwise.apply(a, w, stride)
            else:  # in float64: bf16 sums are rounded
                y = F.conv2d(a.double(), w.double(), None, stride, size // 2, 1, 6)
            grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
            y.backward(grad.to(y.dtype))
            results.append([y.double(), a.grad.double(), w.grad.double()])
        tolerance = dict(rtol=0.02, atol=0.05) if dtype == torch.bfloat16 else {}
        torch.testing.assert_close(*results, **tolerance)


def test_only_slow_gradients_are_replaced(monkeypatch):
    called, real = [], Depthwise.apply
    monkeypatch.setattr(layers.Depthwise, "apply", lambda *a: called.append(a[0].dtype) or real(*a))
    x = torch.randn(2, 4, 8, 8)
    for size, stride in ((3, 1), (3, 2), (5, 1)):
        layer = DepthwiseConv2d(4, size, stride)
        y = layer(x)
        wanted = F.conv2d(x, layer.weight, None, stride, size // 2, 1, 4)
        torch.testing.assert_close(y, wanted)
        with torch.no_grad():
            layer(x)
    assert called == [torch.float32]  # of 5x5
    with torch.autocast("cpu", torch.bfloat16):
        y = DepthwiseConv2d(4, 3, 2)(x)
    assert (y.dtype, called[-1]) == (torch.bfloat16, torch.bfloat16)
    layer = DepthwiseConv2d(4, 5, 2).requires_grad_(False)
    layer(x.requires_grad_()).sum().backward()  # frozen: the input's gradient alone
    assert x.grad is not None and layer.weight.grad is None


def test_a_step_in_low_precision_is_near_the_exact_one():
    """All of the network's gradients under bf16 autocast point where float32's do."""
    torch.manual_seed(0)
    model, images = mobilenet_v3_cifar(dropout=0.0), torch.randn(16, 3, 32, 32)
    labels, found = torch.arange(16) % 10, []
    for precision in (torch.float32, torch.bfloat16):
        model.zero_grad()
        with torch.autocast("cpu", precision, enabled=precision != torch.float32):
            loss = F.cross_entropy(model(images), labels)
        loss.backward()
        found.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert F.cosine_similarity(*found, dim=0) > 0.9


# ---------------------------------------------------------------------- what the papers bring


def test_bottlenecks_are_linear_unless_told():
    x = torch.randn(4, 8, 6, 6)
    torch.manual_seed(0)
    linear = InvertedResidual(8, 8, 1, 6)
    torch.manual_seed(0)
    bent = InvertedResidual(8, 8, 1, 6, linear=False)
    added = linear(x) - x
    assert (added < -0.1).any()
    torch.testing.assert_close(bent(x) - x, added.clamp(0, 6), atol=1e-5, rtol=1e-5)
    assert not InvertedResidual(8, 8, 2, 6).shortcut and not InvertedResidual(8, 9, 1, 6).shortcut
    assert isinstance(mobilenet_v2_cifar(linear=False).features[3].conv[-1], nn.ReLU6)
    assert isinstance(mobilenet_v2_cifar().features[3].conv[-1], nn.BatchNorm2d)


def test_squeeze_and_excitation_written_out():
    layer = perturb(SqueezeExcitation(32).double())
    x = torch.randn(2, 32, 5, 4, dtype=torch.float64)
    means = x.mean((2, 3))
    hidden = (means @ layer.fc1.weight.flatten(1).T + layer.fc1.bias).clamp(min=0)
    assert hidden.shape == (2, 8)
    gate = hidden @ layer.fc2.weight.flatten(1).T + layer.fc2.bias
    wanted = x * ((gate + 3).clamp(0, 6) / 6)[:, :, None, None]
    torch.testing.assert_close(layer(x), wanted)


def test_initial_weights():
    torch.manual_seed(0)
    for model in (mobilenet_v1(), mobilenet_v2()):
        for name, m in model.named_modules():
            if isinstance(m, (nn.Conv2d, nn.Linear)):
                assert m.weight.std().item() == pytest.approx(0.08, rel=0.15), name
                assert m.weight.abs().max() <= 0.18
    assert not model.classifier[1].bias.any()


@pytest.mark.parametrize("name", [name for name in MODELS if name.endswith("cifar")])
def test_folded_networks_say_the_same(name):
    model = perturb(MODELS[name](width=0.25).double())
    before = {key: value.clone() for key, value in model.state_dict().items()}
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    fast = folded(model.train())
    assert model.training and not norms(fast) and norms(model)
    torch.testing.assert_close(fast(images), model.eval()(images), rtol=1e-8, atol=1e-8)
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key
    low = folded(model.float(), torch.bfloat16)
    layers = [m for m in low.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    assert {p.dtype for layer in layers for p in layer.parameters()} == {torch.bfloat16}
    with torch.autocast("cpu", torch.bfloat16):
        found = low(images.float())
    torch.testing.assert_close(found.double(), model(images.float()).double(), rtol=0.1, atol=0.3)


@pytest.mark.parametrize("make", [mobilenet_v1_cifar, mobilenet_v2_cifar, mobilenet_v3_cifar])
def test_it_overfits_a_batch(make):
    torch.manual_seed(0)
    model, images = make(width=0.35, dropout=0.0), torch.randn(16, 3, 32, 32)
    labels = torch.arange(16) % 10
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for _ in range(60):
        loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if loss < 0.05:
            break
    assert loss < 0.05


# ---------------------------------------------------------------------- the scripts


def test_recipes():
    args = train.parse_args([])
    assert (args.model, args.data, args.size, args.width, args.optimizer, args.dropout) == (
        "mobilenet_v2_cifar", "shapes", 32, 0.35, "sgd", 0.0,
    )  # fmt: skip
    args = train.parse_args(["--paper"])
    assert (args.model, args.data, args.size, args.batch_size, args.lr, args.val) == (
        "mobilenet_v1", "folder:data/imagenet", 224, 96, 0.045, 0,
    )  # fmt: skip
    assert (args.optimizer, args.schedule, args.decay, args.average, args.dropout) == (
        "rmsprop", "stairs", 4e-5, 0.0, 0.001,
    )  # fmt: skip
    args = train.parse_args(["--paper", "--model", "mobilenet_v3_small"])
    assert (args.batch_size, args.lr, args.decay, args.average, args.dropout) == (
        4096, 0.1, 1e-5, 0.9999, 0.2,
    )  # fmt: skip
    assert train.parse_args(["--paper", "--model", "mobilenet_v2"]).batch_size == 96
    args = train.parse_args(["--paper", "--model", "mobilenet_v1_cifar"])
    assert (args.data, args.size, args.width) == ("cifar10", 32, 0.5)
    args = train.parse_args(["--data", "shapes:20000"])
    assert (args.dropout, args.augment) == (0.0, False)
    args = train.parse_args(["--data", "cifar10"])
    assert (args.dropout, args.augment) == (0.2, True)  # scenes alone do without
    assert train.parse_args(["--model", "mobilenet_v2_140"]).width == 1.4
    assert train.parse_args(["--model", "mobilenet_v2"]).size == 64
    model = train.build(train.parse_args(["--no-linear", "--width", "0.35"]), 4)
    assert count(model) == count(mobilenet_v2_cifar(4, width=0.35))
    assert isinstance(model.features[2].conv[-1], nn.ReLU6)
    model = train.build(train.parse_args(["--model", "mobilenet_v1_cifar", "--no-separable"]), 4)
    assert not any(isinstance(m, DepthwiseConv2d) for m in model.modules())


def test_step_sizes():
    for name, wanted in (("mobilenet_v2", 0.98), ("mobilenet_v3_large", 0.99 ** (1 / 3))):
        args = train.parse_args(["--paper", "--model", name])
        shares = [train.step_size(args, 7, epoch * 7) for epoch in range(0, 30, 3)]
        assert shares == pytest.approx([wanted**epoch for epoch in range(0, 30, 3)])
        assert train.step_size(args, 7, 6) == 1
    args = train.parse_args(["--epochs", "10"])
    shares = [train.step_size(args, 10, step) for step in range(100)]
    assert max(shares) == pytest.approx(1, abs=0.02) and shares.index(max(shares)) in (9, 10)
    assert 0 < shares[-1] < 0.01 and shares[0] < 0.11


@pytest.mark.parametrize(
    ("name", "kind", "eps"),
    [
        ("mobilenet_v1", "rmsprop", 1),
        ("mobilenet_v3_small", "rmsprop", 0.001**0.5),
        ("mobilenet_v2", "sgd", None),
    ],
)
def test_depthwise_filters_do_not_decay(name, kind, eps):
    argv = ["--model", name, "--optimizer", kind, "--decay", "0.5"]
    args = train.parse_args(argv)
    model = train.build(args, 10)
    whole, thin = train.make_optimizer(args, model).param_groups
    assert (whole["weight_decay"], thin["weight_decay"]) == (0.5, 0.0)
    names = {id(p): n for n, p in model.named_parameters()}
    kept = {names[id(p)] for p in thin["params"]}
    depthwise = {f"{n}.weight" for n, m in model.named_modules() if isinstance(m, DepthwiseConv2d)}
    assert depthwise and depthwise < kept
    assert all(p.dim() == 1 for n, p in model.named_parameters() if n in kept - depthwise)
    assert len(kept) + len(whole["params"]) == len(names)
    assert whole.get("eps") == eps
    if kind == "rmsprop":
        assert (whole["alpha"], whole["momentum"]) == (0.9, 0.9)


def test_flags_that_are_refused(refused):
    assert set(train.PUBLISHED) == {"mobilenet_v1", *TORCHVISIONS}
    line = refused(train.main, ["--weights", "imagenet"])
    assert "none for mobilenet_v2_cifar, but for mobilenet_v2" in line
    assert "the first MobileNet" in refused(train.main, ["--separable"])
    line = refused(train.main, ["--model", "mobilenet_v1", "--linear"])
    assert "it is for MobileNetV2" in line
    line = refused(train.main, ["--model", "mobilenet_v1_050", "--width", "0.5"])
    assert "mobilenet_v1_050 is of width 0.5" in line
    assert "leave --fsdp away" in refused(train.main, ["--average", "0.9", "--fsdp"])
    for width in ("0", "1000"):  # which would fill the memory
        assert "above zero, at most 10" in refused(train.main, ["--width", width])


def test_what_a_checkpoint_has_settled_is_not_changed(refused):
    """With a ReLU6 in its bottlenecks the network has the same weights, and is another one."""
    train.main([*TINY, "--max-steps", "1", "--run-dir", "run"])
    for argv in (["--evaluate", "run/last.pt"], ["--resume", "--run-dir", "run"]):
        line = refused(train.main, [*argv, "--no-linear"])
        assert "run holds linear True, not False" in line.replace("/last.pt", "")
    train.main(["--evaluate", "run/last.pt", "--linear", "--quiet"])


def test_fine_tuning_from_torchvisions_file(capsys):
    theirs = perturb(torchvision.models.mobilenet_v3_small())
    torch.save(theirs.state_dict(), "tv.pth")
    argv = ["--model", "mobilenet_v3_small", "--limit", "32", "--size", "32", "--freeze"]
    argv += ["--weights", "tv.pth", "--data", "digits", "--val", "0", "--batch-size", "16"]
    train.main([*argv, "--max-steps", "2", "--run-dir", "run"])
    line = "weights of tv.pth; classifier.3 new, for digits's classes; mean and std are those"
    assert f"{line} of the data" in capsys.readouterr().out
    state = weights("run")
    for key, value in theirs.state_dict().items():
        assert torch.equal(state[key], value) == (not key.startswith("classifier.3")), key
    Path("tv.pth").unlink()  # evaluating doesn't need it
    metrics = train.main(["--evaluate", "run/last.pt", "--quiet"])
    assert set(metrics) == {"test_loss", "test_accuracy"}


def test_the_first_ones_weights_come_from_the_hub(monkeypatch, refused, capsys):
    from safetensors.torch import save_file

    asked, theirs = [], perturb(mobilenet_v1())
    save_file(theirs.state_dict(), "model.safetensors")

    def fetch(repository, file):
        asked.append((repository, file))
        return str(Path(file).resolve())

    monkeypatch.setattr("huggingface_hub.hf_hub_download", fetch)
    argv = ["--model", "mobilenet_v1", "--weights", "imagenet", "--freeze", *FLAGS[:-1]]
    train.main([*argv, "--size", "32", "--max-steps", "1", "--run-dir", "run"])
    assert asked == [("timm/mobilenetv1_100.ra4_e3600_r224_in1k", "model.safetensors")]
    assert "mean and std are those they were trained with" in capsys.readouterr().out
    content = torch.load("run/last.pt")
    assert content["dataset"]["mean"] == [0.5] * 3
    assert torch.equal(content["model"]["conv_stem.weight"], theirs.conv_stem.weight)

    def gone(*_):
        raise FileNotFoundError("no network here")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", gone)
    assert "(no network here): get it elsewhere" in refused(from_hub, "some/thing")


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("version", ["v1", "v2", "v3"])
def test_paths_of_the_loop(version, precision, few):
    argv = [*TINY, "--model", f"mobilenet_{version}_cifar", "--max-steps", "2"]
    argv += ["--accumulate", "2", "--precision", precision]
    metrics = train.main([*argv, "--average", "0.5", "--run-dir", "run"])
    assert all(map(math.isfinite, metrics.values()))
    assert all(t.isfinite().all() for t in weights("run").values())
    assert Path("run/confusion.png").exists()


def test_papers_recipe_averages_and_goes_on_exactly(few):
    """RMSProp, stairs and averaged weights, in one go and interrupted within an epoch."""
    argv = [
        "--paper",
        "--model",
        "mobilenet_v3_cifar",
        *TINY,
        "--average",
        "0.8",
        "--lr",
        "0.01",
        "--epochs",
        "2",
    ]
    whole = train.main([*argv, "--run-dir", "whole"])
    train.main([*argv, "--run-dir", "parts", "--max-steps", "2"])
    parts = train.main([*argv, "--run-dir", "parts", "--resume"])
    assert whole == parts
    one, two = (torch.load(f"{folder}/last.pt") for folder in ("whole", "parts"))
    for key in one["model"]:
        assert torch.equal(one["model"][key], two["model"][key]), key
    averaged = one["ema"]
    assert averaged.keys() == {k for k, v in one["model"].items() if v.is_floating_point()}
    assert any(not torch.equal(averaged[key], one["model"][key]) for key in averaged)
    assert all(torch.equal(averaged[key], two["ema"][key]) for key in averaged)
    found = train.main(["--evaluate", "whole/last.pt", "--quiet"])  # of the averaged weights
    assert found["test_loss"] == pytest.approx(whole["test_loss"])


def test_the_average_is_the_one_that_is_measured(few):
    argv = [*TINY, "--run-dir", "run", "--average", "0.9", "--epochs", "1"]
    metrics = train.main(argv)
    content = torch.load("run/last.pt")
    args = train.parse_args(TINY)
    model = train.build(args, 10)
    losses = []
    for state in (content["model"] | content["ema"], content["model"]):
        model.load_state_dict(state)
        dev = train.Device(args)
        _, _, test = train.load_images(args, dev, args.size)
        losses.append(train.evaluate(model, test, dev, {})["test_loss"])
    assert metrics["test_loss"] == pytest.approx(losses[0], rel=1e-4)
    assert metrics["test_loss"] != pytest.approx(losses[1], rel=1e-4)


def test_averaging_begins_and_ends_on_resuming(few):
    argv = [*TINY, "--epochs", "1", "--lr", "1e-30"]
    more = ["--resume", "--run-dir", "run", "--quiet", "--epochs"]
    train.main([*argv, "--run-dir", "run"])
    train.main([*more, "2", "--average", "0.5"])
    content = torch.load("run/last.pt")
    for key in ("features.0.0.weight", "classifier.1.bias"):
        torch.testing.assert_close(content["ema"][key], content["model"][key])
    train.main([*more, "3", "--average", "0"])
    assert torch.load("run/last.pt")["ema"] == {}


def test_the_loss_is_a_mean_over_the_images():
    check_mean_loss(train, {})


def test_samples(capsys, monkeypatch):
    monkeypatch.setattr("common.data.shapes.NUM_SCENES", {"train": 64, "test": 30})
    argv = ["--val", "0", "--epochs", "1", "--lr", "0.02", "--quiet", "--width", "0.1"]
    metrics = train.main(argv)
    assert sample.main([])["right"] == round(30 * metrics["test_accuracy"])
    from PIL import Image

    Image.new("RGB", (50, 40), "red").save("red.png")
    Image.new("L", (20, 90)).save("grey.png")
    found = sample.main(["red.png", "grey.png", "--out", "out"])
    assert len(found["red.png"]) == 5
    assert Path("out/predictions.jpg").exists()
    assert "grey.png (grey: made RGB)" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["mobilenet_v2", "mobilenet_v3_small"])
def test_samples_of_published_weights(name):
    theirs = perturb(getattr(torchvision.models, name)())
    entry = torchvision.models.get_model_weights(name).IMAGENET1K_V1
    check_published(sample, theirs, entry, ["--model", name] if name != "mobilenet_v2" else [])


def test_samples_of_the_first_ones_weights():
    """timm's, of pixels from -1 to 1; ImageNet's classes are torchvision's."""
    entry = torchvision.models.ResNet18_Weights.IMAGENET1K_V1
    inputs = ([0.5] * 3, [0.5] * 3)
    check_published(sample, perturb(mobilenet_v1()), entry, ["--model", "mobilenet_v1"], inputs)


# ---------------------------------------------------------------------- the claims


@pytest.mark.parametrize("claim", list(claims.CLAIMS))
def test_claims(monkeypatch, capsys, claim, few):
    runs = []

    def short(argv):
        runs.append(argv)
        return train.main([*argv, "--limit", "96", "--val", "40", "--quiet"])

    monkeypatch.setattr(claims, "train", short)
    argv = [claim, "--data", "digits", "--epochs", "1", "--max-steps", "1", "--size", "16"]
    summary = claims.main([*argv, "--seeds", "0", "--out", "out"])
    assert summary == json.loads(Path(f"out/claim_{claim}.json").read_text())
    assert len(runs) == len(claims.CLAIMS[claim])
    assert Path(f"out/claim_{claim}.png").exists()
    assert "million multiply-adds, test error" in capsys.readouterr().out
    costs = [row["multiply_adds"]["mean"] for row in summary.values()]
    if claim == "separable":
        assert costs[1] > 7 * costs[0] and costs[2] == pytest.approx(costs[0], rel=0.2)
    elif claim == "width":
        assert costs == sorted(costs, reverse=True)
    else:
        assert costs[0] == costs[1]
    claims.main([*argv, "--seeds", "0", "--out", "out"])
    assert len(runs) == len(claims.CLAIMS[claim])  # done is done


@pytest.mark.slow
def test_quick_reaches_the_readmes_number():
    assert train.main(["--quiet"])["test_accuracy"] > 0.85
