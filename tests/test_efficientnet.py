"""EfficientNets: sizes, parity with torchvision and timm, scaling, and that they learn."""

import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import torchvision
from helpers import check_mean_loss, check_published, compare, count, make_tree, perturb, weights
from PIL import Image
from torch import nn

from common.claims import multiply_adds
from common.data.batches import Draw
from efficientnet import augment, claims, sample, train
from efficientnet.depthwise import Depthwise
from efficientnet.model import (
    MODELS,
    SIZES,
    STAGES,
    ConvNorm,
    Convolution,
    EfficientNet,
    MBConv,
    SqueezeExcitation,
    compound,
    current_name,
    efficientnet_b0,
    efficientnet_small,
    round_channels,
)

PARAMETERS = {
    "efficientnet_small": 663_530,
    "efficientnet_b0": 5_288_548,
    "efficientnet_b1": 7_794_184,
    "efficientnet_b2": 9_109_994,
    "efficientnet_b3": 12_233_232,
    "efficientnet_b4": 19_341_616,
    "efficientnet_b5": 30_389_784,
    "efficientnet_b6": 43_040_704,
    "efficientnet_b7": 66_347_960,
}
BILLIONS = (0.39, 0.70, 1.0, 1.8, 4.2, 9.9, 19, 37)  # of multiply-adds, Table 2
FLAGS = ["--data", "digits", "--limit", "96", "--val", "0", "--batch-size", "32", "--quiet"]
TINY = ["--width", "0.25", "--depth", "0.25", "--size", "16"]


def tiny(**options):
    """A network for tests, with strides of B0 unless told otherwise."""
    return EfficientNet(0.25, 0.5, 7, **dict(dropout=0.0, drop_path=0.0) | options)


def test_parameters():
    with torch.device("meta"):
        assert {name: count(make()) for name, make in MODELS.items()} == PARAMETERS


@pytest.mark.parametrize("name", SIZES)
def test_networks_are_torchvisions(name):
    """Names and shapes, eps and momentum, the shares that are left out, kernels and strides."""
    with torch.device("meta"):
        ours, theirs = MODELS[name](), getattr(torchvision.models, name)()
    shapes = [{k: v.shape for k, v in model.state_dict().items()} for model in (ours, theirs)]
    assert shapes[0] == shapes[1]
    for kind, attributes in (
        (nn.BatchNorm2d, ("eps", "momentum")),
        (nn.Conv2d, ("kernel_size", "stride", "padding", "groups")),
        (nn.Dropout, ("p",)),
    ):
        found = [
            [[getattr(m, a) for a in attributes] for m in model.modules() if isinstance(m, kind)]
            for model in (ours, theirs)
        ]
        assert found[0] == found[1] != [], kind
    blocks = [m for m in ours.modules() if isinstance(m, MBConv)]
    depths = [m for m in theirs.modules() if isinstance(m, torchvision.ops.StochasticDepth)]
    assert [m.drop_path for m in blocks] == pytest.approx([m.p for m in depths])
    assert blocks[0].drop_path == 0
    assert 0.18 < blocks[-1].drop_path < 0.2


@pytest.mark.parametrize(
    ("name", "training"),
    [("efficientnet_b0", True), ("efficientnet_b0", False), ("efficientnet_b5", True)],
)
def test_parity_with_torchvision(name, training):
    options = dict(num_classes=7, dropout=0.0)
    theirs = getattr(torchvision.models, name)(**options, stochastic_depth_prob=0.0)
    theirs = perturb(theirs.double())
    with torch.device("meta"):
        ours = MODELS[name](**options, drop_path=0.0).double()
    ours.to_empty(device="cpu").load_state_dict(theirs.state_dict())
    compare_both(ours, theirs, training, sizes=(64, 72) if name == "efficientnet_b0" else (40, 33))


def compare_both(ours, theirs, training, sizes):
    """As they are, and where no gradients are wanted: there norms are folded into weights."""
    images = torch.randn(2, 3, *sizes, dtype=torch.float64)
    compare(ours, theirs, images, training, name=current_name)
    with torch.inference_mode():
        torch.testing.assert_close(ours.eval()(images), theirs.eval()(images), rtol=1e-8, atol=0)


@pytest.mark.parametrize("size", [64, 65], ids=["even", "odd"])
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_parity_with_the_released_tensorflow_networks(training, size):
    """timm's port: padding that depends on the size, eps 0.001, and other names."""
    timm = pytest.importorskip("timm")
    theirs = timm.create_model("tf_efficientnet_b0", num_classes=7, drop_rate=0, drop_path_rate=0)
    theirs = perturb(theirs.double())
    ours = efficientnet_b0(7, dropout=0.0, drop_path=0.0, padding="same").double()
    state = theirs.state_dict()
    ours.load_state_dict(state)  # renamed as they are loaded
    assert "conv_stem.weight" in state  # the caller's are kept
    norms = {(m.eps, m.momentum) for m in ours.modules() if isinstance(m, nn.BatchNorm2d)}
    assert norms == {(m.eps, m.momentum) for m in theirs.modules() if isinstance(m, nn.BatchNorm2d)}
    compare_both(ours, theirs, training, sizes=(size, size - 16))
    symmetric = efficientnet_b0(7, eps=1e-3).double().eval()
    symmetric.load_state_dict(state)
    images = torch.randn(1, 3, size, size, dtype=torch.float64)
    equal = torch.allclose(symmetric(images), ours.eval()(images))
    assert equal == (size == 65)  # 65, 33, 17, 9, 5 are odd: nothing to choose there


def test_names_of_timm_are_understood():
    """Written out, for trees without timm: the first stage's blocks have no widening layer."""
    assert current_name("conv_stem.weight") == "features.0.0.weight"
    assert current_name("bn1.running_var") == "features.0.1.running_var"
    assert current_name("blocks.0.0.conv_dw.weight") == "features.1.0.block.0.0.weight"
    assert current_name("blocks.0.1.bn2.bias") == "features.1.1.block.2.1.bias"
    assert current_name("blocks.0.0.se.conv_expand.bias") == "features.1.0.block.1.fc2.bias"
    assert current_name("blocks.3.2.conv_dw.weight") == "features.4.2.block.1.0.weight"
    assert current_name("blocks.3.2.se.conv_reduce.bias") == "features.4.2.block.2.fc1.bias"
    assert current_name("blocks.6.0.conv_pwl.weight") == "features.7.0.block.3.0.weight"
    assert current_name("blocks.6.0.bn3.weight") == "features.7.0.block.3.1.weight"
    assert current_name("conv_head.weight") == "features.8.0.weight"
    assert current_name("bn2.num_batches_tracked") == "features.8.1.num_batches_tracked"
    assert current_name("classifier.bias") == "classifier.1.bias"
    with torch.device("meta"):
        state = MODELS["efficientnet_b7"]().state_dict()
    assert all(current_name(key) == key for key in state)
    names = {key: n for n, key in enumerate(as_timm(efficientnet_small().state_dict()))}
    assert {current_name(key) for key in names} == set(efficientnet_small().state_dict())


def as_timm(state):
    """A state_dict with timm's names."""
    ends = {"0.0": "conv_stem", "0.1": "bn1", "8.0": "conv_head", "8.1": "bn2"}
    first = {"0.0": "conv_dw", "0.1": "bn1", "2.0": "conv_pw", "2.1": "bn2"}
    other = {"0.0": "conv_pw", "0.1": "bn1", "1.0": "conv_dw", "1.1": "bn2", "3.0": "conv_pwl"}
    other["3.1"] = "bn3"
    for squeeze, table in (("1", first), ("2", other)):
        table |= {f"{squeeze}.fc1": "se.conv_reduce", f"{squeeze}.fc2": "se.conv_expand"}
    found = {}
    for key, value in state.items():
        top, *rest, kind = key.split(".")
        if top == "classifier":
            name = top
        elif rest[0] in ("0", "8"):
            name = ends[".".join(rest)]
        else:
            stage, block, _, *layer = rest
            table = first if stage == "1" else other
            name = f"blocks.{int(stage) - 1}.{block}.{table['.'.join(layer)]}"
        found[f"{name}.{kind}"] = value
    return found


def test_weights_load_under_timms_names_inside_of_something_else():
    ours = perturb(efficientnet_small())
    whole = nn.Sequential(efficientnet_small())
    whole.load_state_dict({f"0.{key}": v for key, v in as_timm(ours.state_dict()).items()})
    loaded = whole[0].state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in ours.state_dict().items())


# ---------------------------------------------------------------------- the architecture


def test_stages_are_table_1():
    with torch.device("meta"):
        model, shapes = efficientnet_b0(), []
        for stage in model.features:
            stage.register_forward_hook(lambda _, __, out: shapes.append(tuple(out.shape[1:])))
        assert model.eval()(torch.zeros(1, 3, 224, 224)).shape == (1, 1000)
    assert shapes == [
        (32, 112, 112), (16, 112, 112), (24, 56, 56), (40, 28, 28), (80, 14, 14), (112, 14, 14),
        (192, 7, 7), (320, 7, 7), (1280, 7, 7),
    ]  # fmt: skip
    assert [len(stage) for stage in model.features[1:8]] == [1, 2, 2, 3, 3, 4, 1]


def test_the_small_network_is_for_32_pixels():
    with torch.device("meta"):
        model, shapes = efficientnet_small(), []
        for stage in model.features:
            stage.register_forward_hook(lambda _, __, out: shapes.append(tuple(out.shape[1:])))
        assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    assert shapes == [
        (16, 32, 32), (8, 32, 32), (16, 16, 16), (24, 8, 8), (40, 4, 4), (56, 4, 4), (96, 4, 4),
        (160, 4, 4), (640, 4, 4),
    ]  # fmt: skip


def test_widths_are_rounded_to_eights():
    assert [round_channels(c) for c in (1, 11, 12, 20, 32, 35.2, 18, 19.9)] == [
        8, 16, 16, 24, 32, 32, 24, 24,
    ]  # fmt: skip
    for channels in range(8, 400):
        rounded = round_channels(channels)
        assert rounded % 8 == 0
        assert 0.9 * channels <= rounded < channels + 8


def test_sizes_follow_the_compound_rule():
    """Eq. 3: alpha beta^2 gamma^2 is about 2, and B1 to B7 are about its powers (Sec. 4)."""
    width, depth, resolution = compound(1)
    assert (width, depth, resolution) == (1.1, 1.2, 1.15)
    assert depth * width**2 * resolution**2 == pytest.approx(2, abs=0.1)
    assert compound(0) == (1, 1, 1)
    steps = (0, 0.5, 1, 2, 3.5, 5, 6, 7)
    for phi, (width, depth, pixels, _) in zip(steps, SIZES.values(), strict=True):
        times = compound(phi)
        assert width == pytest.approx(times[0], rel=0.05)
        assert pixels == pytest.approx(224 * times[2], rel=0.05)
        assert 0.86 < depth / times[1] < 1.01  # the authors' deep ones are shallower than the rule


def test_multiply_adds_are_the_papers():
    """Table 2."""
    with torch.device("meta"):
        for (name, (_, _, size, _)), billions in zip(SIZES.items(), BILLIONS, strict=True):
            found = multiply_adds(MODELS[name](), torch.empty(1, 3, size, size))
            assert found / 1e9 == pytest.approx(billions, rel=0.06), name


def test_squeeze_is_a_quarter_of_the_blocks_input():
    with torch.device("meta"):
        blocks = [m for m in efficientnet_b0().modules() if isinstance(m, MBConv)]
    channels = 32
    for block in blocks:
        squeeze = next(m for m in block.block if isinstance(m, SqueezeExcitation))
        assert squeeze.fc1.out_channels == squeeze.fc2.in_channels == channels // 4
        channels = block.block[-1][0].out_channels
    assert channels == 320


def test_blocks_written_out():
    """Widen, filter each channel, scale each by what all say, narrow, add: in functions."""
    block = perturb(MBConv(8, 8, 6, 5, 1).double()).eval()
    x = torch.randn(3, 8, 9, 7, dtype=torch.float64)

    def norm(x, layer):
        mean, var = layer.running_mean, layer.running_var
        x = (x - mean.view(-1, 1, 1)) / (var.view(-1, 1, 1) + layer.eps).sqrt()
        return x * layer.weight.view(-1, 1, 1) + layer.bias.view(-1, 1, 1)

    def swish(x):
        return x / (1 + (-x).exp())

    wide, filters, squeeze, narrow = block.block
    y = swish(norm(torch.einsum("bchw,dc->bdhw", x, wide[0].weight.flatten(1)), wide[1]))
    maps = [F.conv2d(y[:, i : i + 1], filters[0].weight[i : i + 1], padding=2) for i in range(48)]
    y = swish(norm(torch.cat(maps, 1), filters[1]))
    means = y.mean((2, 3))
    hidden = swish(means @ squeeze.fc1.weight.flatten(1).T + squeeze.fc1.bias)
    scale = 1 / (1 + (-(hidden @ squeeze.fc2.weight.flatten(1).T + squeeze.fc2.bias)).exp())
    assert squeeze.fc1.out_channels == 2
    y = y * scale[:, :, None, None]
    y = norm(torch.einsum("bchw,dc->bdhw", y, narrow[0].weight.flatten(1)), narrow[1])
    torch.testing.assert_close(block(x), x + y)
    for sizes in ((8, 16, 6, 3, 1), (8, 8, 6, 3, 2)):  # another shape: nothing is added
        other = perturb(MBConv(*sizes).double()).eval()
        assert torch.equal(other(x), other.block(x))


def test_without_excitation():
    plain = tiny(excitation=False)
    assert not [m for m in plain.modules() if isinstance(m, SqueezeExcitation)]
    blocks = [m for m in tiny().modules() if isinstance(m, SqueezeExcitation)]
    assert count(tiny()) - count(plain) == sum(map(count, blocks)) > 0
    assert plain(torch.randn(2, 3, 64, 64)).shape == (2, 7)


@pytest.mark.parametrize("size", [4, 5, 7, 8, 11, 12])
@pytest.mark.parametrize(("kernel", "stride"), [(3, 2), (5, 2), (3, 1), (5, 3)])
def test_same_padding_is_tensorflows(size, kernel, stride):
    """ceil(H/s) places; missing pixels half before and half after, the odd one after."""
    conv = Convolution(2, 4, kernel, stride=stride, padding="same").double()
    x = torch.randn(1, 2, size, size + 1, dtype=torch.float64)
    out = conv(x)
    assert out.shape[2:] == (-(-size // stride), -(-(size + 1) // stride))
    wide = F.pad(x, [20] * 4)
    for i in range(out.shape[2]):
        for j in range(out.shape[3]):
            begins = []
            for place, places, n in ((i, out.shape[2], size), (j, out.shape[3], size + 1)):
                missing = max((places - 1) * stride + kernel - n, 0)
                begins.append(20 + place * stride - missing // 2)
            y, z = begins
            patch = wide[0, :, y : y + kernel, z : z + kernel]
            wanted = (conv.weight * patch).sum((1, 2, 3))
            torch.testing.assert_close(out[0, :, i, j], wanted)


def test_stochastic_depth_leaves_blocks_out():
    torch.manual_seed(0)
    block = perturb(MBConv(8, 8, 6, 3, 1, drop_path=0.3)).train()
    x = torch.randn(400, 8, 4, 4)
    out, added = block(x), block.block(x)  # in training both see the same batch
    dropped = (out == x).flatten(1).all(1)
    assert dropped.float().mean().item() == pytest.approx(0.3, abs=0.07)
    torch.testing.assert_close(out[~dropped], (x + added / 0.7)[~dropped])
    block.eval()
    torch.testing.assert_close(block(x), x + block.block(x))
    torch.manual_seed(0)
    stride = MBConv(8, 8, 6, 3, 2, drop_path=0.9).train()  # no way around it: never left out
    assert (stride(x) != 0).flatten(1).any(1).all()


def test_shares_rise_from_nothing():
    model = tiny(drop_path=0.2)
    shares = [m.drop_path for m in model.modules() if isinstance(m, MBConv)]
    total = sum(math.ceil(blocks / 2) for *_, blocks in STAGES)
    assert shares == pytest.approx([0.2 * i / total for i in range(total)])


def test_initial_weights():
    torch.manual_seed(0)
    model = efficientnet_b0()
    for name, m in model.named_modules():
        if isinstance(m, nn.Conv2d) and m.weight.numel() > 1000:
            fan_out = m.out_channels // m.groups * m.kernel_size[0] ** 2
            assert m.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.1), name
        if isinstance(m, nn.Conv2d) and m.bias is not None:
            assert not m.bias.any()
    assert model.classifier[1].weight.abs().max().item() == pytest.approx(1280**-0.5, rel=1e-3)
    assert not model.classifier[1].bias.any()


def test_it_overfits_a_batch():
    torch.manual_seed(0)
    model = efficientnet_small(width=0.25, depth=0.25, dropout=0.0)
    images, labels = torch.randn(16, 3, 16, 16), torch.arange(16) % 10
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, nesterov=True)
    for _ in range(100):
        loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if loss < 0.05:
            break
    assert loss < 0.05


@pytest.mark.parametrize("kind", [torch.float64, torch.bfloat16], ids=["float64", "bf16"])
@pytest.mark.parametrize("size", [5, 8, 9])
@pytest.mark.parametrize(
    ("kernel", "stride", "padding"),
    [(3, 1, 1), (3, 2, 1), (5, 1, 2), (5, 2, 2), (3, 2, 0), (5, 2, 0), (5, 1, 0)],
)
def test_quick_gradients_are_torchs(kernel, stride, padding, size, kind):
    x = torch.randn(2, 6, size, size + 3, dtype=kind)
    weight = torch.randn(6, 1, kernel, kernel, dtype=kind)
    ours, theirs = ([t.clone().requires_grad_() for t in (x, weight)] for _ in range(2))
    out = Depthwise.apply(*ours, stride, padding)
    wanted = F.conv2d(*theirs, None, stride, padding, groups=6)
    assert torch.equal(out, wanted)
    grad = torch.randn(out.shape).to(kind)
    out.backward(grad)
    wanted.backward(grad)
    close = {} if kind == torch.float64 else dict(rtol=0.02, atol=0.1)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.grad, b.grad, **close)


@pytest.mark.parametrize("shape", [(1, 1), (2, 2), (3, 1)])
def test_gradients_of_features_smaller_than_the_filter(shape):
    """There torch's own weight gradients hold in bf16 what memory happened to hold."""
    for _ in range(50):
        x = torch.randn(3, 6, *shape).bfloat16().to(memory_format=torch.channels_last)
        weight = torch.randn(6, 1, 3, 3).bfloat16().requires_grad_()
        exact = weight.detach().double().requires_grad_()
        out = Depthwise.apply(x, weight, 2, 1)
        grad = torch.randn_like(out)
        out.backward(grad)
        F.conv2d(x.double(), exact, None, 2, 1, groups=6).backward(grad.double())
        torch.testing.assert_close(weight.grad.double(), exact.grad, rtol=0.02, atol=0.1)


def test_quick_gradients_are_taken_where_they_are_wanted(monkeypatch):
    """Under autocast in its precision; not without gradients, nor of frozen inputs or weights."""
    found, real = [], Depthwise.apply
    monkeypatch.setattr(Depthwise, "apply", lambda *a: found.append(a[0].dtype) or real(*a))
    block = MBConv(8, 16, 6, 5, 2)
    x = torch.randn(2, 8, 9, 9)
    with torch.autocast("cpu", torch.bfloat16):
        block(x).float().sum().backward()
    assert found == [torch.bfloat16]
    assert block.block[1][0].weight.grad.dtype == torch.float32
    with torch.no_grad():
        block(x)
    for stride in (1, 2):
        MBConv(8, 16, 6, 3, stride)(x)  # torch is quick there
    assert len(found) == 1
    block.block[1][0].weight.requires_grad_(False)
    block(x).sum().backward()
    assert found[1:] == [torch.float32]


# ---------------------------------------------------------------------- augmentation


def draw_of(size, rows=slice(None)):
    return Draw([("step", 0, 0, 0)], size, rows, torch.device("cpu"))


@pytest.mark.parametrize("policy", ["imagenet", "cifar10"])
def test_autoaugment_draws_for_each_image(policy):
    images = torch.randint(0, 256, (12, 3, 16, 16), dtype=torch.uint8)
    state = torch.get_rng_state()
    whole = augment.auto_augment(images, draw_of(12), policy)
    assert torch.equal(torch.get_rng_state(), state)  # dropout's numbers stay where they were
    assert whole.shape == images.shape
    changed = (whole != images).flatten(1).any(1)
    assert changed.sum() > 3
    cut = [
        augment.auto_augment(images[rows], draw_of(12, rows), policy)
        for rows in (slice(0, 5), slice(5, 12))
    ]
    assert torch.equal(torch.cat(cut), whole)  # parts and processes change nothing
    floats = augment.auto_augment(images.float() + 0.2, draw_of(12), policy)
    assert torch.equal(floats, whole)


def test_small_images_are_shifted_and_mirrored():
    images = torch.randint(1, 256, (64, 3, 16, 16), dtype=torch.uint8)
    plain = augment.small_images(images, draw_of(64), auto=False)
    assert plain.shape == images.shape
    assert (plain != images).any()
    assert (augment.small_images(images, draw_of(64), auto=True) != plain).any()


# ---------------------------------------------------------------------- the scripts


def test_recipes():
    args = train.parse_args([])
    assert (args.model, args.data, args.size) == ("efficientnet_small", "shapes", 32)
    assert (args.optimizer, args.schedule, args.average) == ("rmsprop", "cosine", 0.0)
    assert args.lr / args.batch_size == 0.016 / 256  # the authors' rate
    args = train.parse_args(["--paper"])
    assert (args.model, args.data, args.epochs, args.batch_size, args.lr, args.size) == (
        "efficientnet_b0", "folder:data/imagenet", 350, 4096, 0.256, 224,
    )  # fmt: skip
    assert (args.val, args.patience, args.smoothing, args.average) == (25000, 350, 0.1, 0.9999)
    assert (args.optimizer, args.schedule, args.autoaugment) == ("rmsprop", "stairs", True)
    assert (args.dropout, args.drop_path) == (0.2, 0.2)
    for name, size, dropout in (("efficientnet_b2", 260, 0.3), ("efficientnet_b7", 600, 0.5)):
        args = train.parse_args(["--paper", "--model", name])
        assert (args.size, args.dropout) == (size, dropout)
        assert train.parse_args(["--model", name, "--data", "folder:x"]).size == size
        assert train.parse_args(["--model", name]).size == 64
    args = train.parse_args(["--paper", "--model", "efficientnet_small"])
    assert (args.data, args.batch_size, args.lr, args.size) == ("cifar10", 256, 0.016, 32)
    flags = ["--dropout", "0.3", "--drop-path", "0.1", "--no-excitation", "--padding", "same"]
    model = train.build(train.parse_args([*flags, "--width", "0.25", "--depth", "1"]), 4)
    assert (model.classifier[0].p, model.classifier[1].out_features) == (0.3, 4)
    assert not [m for m in model.modules() if isinstance(m, SqueezeExcitation)]
    blocks = [m for m in model.modules() if isinstance(m, MBConv)]
    assert len(blocks) == 16
    assert blocks[-1].drop_path == pytest.approx(0.1 * 15 / 16)
    assert any(m.same for m in model.modules() if isinstance(m, Convolution))
    assert model.features[0][0].out_channels == 8


def test_step_sizes_are_the_papers():
    per_epoch = 10
    shares = [train.stairs(per_epoch, step) for step in range(100 * per_epoch)]
    assert shares[:2] == [1 / 50, 2 / 50]
    assert shares[49] == 1
    assert shares[50] == 0.97**2  # stairs are counted from the beginning
    assert [shares[s] for s in (71, 72, 95, 96)] == pytest.approx(
        [0.97**2, 0.97**3, 0.97**3, 0.97**4]
    )
    rises = [train.up_and_down(100, step) for step in range(100)]
    assert max(rises) == pytest.approx(rises[9], rel=0.02)
    assert rises[-1] < 0.001


def test_optimisers():
    model = tiny()
    args = train.parse_args(["--paper", "--model", "efficientnet_small"])
    optimizer = train.make_optimizer(args, model)
    assert isinstance(optimizer, torch.optim.RMSprop)
    decayed, plain = optimizer.param_groups
    assert (decayed["alpha"], decayed["momentum"], decayed["weight_decay"]) == (0.9, 0.9, 1e-5)
    assert plain["weight_decay"] == 0
    norms = {p for m in model.modules() if isinstance(m, nn.BatchNorm2d) for p in m.parameters()}
    assert set(plain["params"]) == norms
    assert set(decayed["params"]) | norms == set(model.parameters())
    optimizer = train.make_optimizer(train.parse_args(["--optimizer", "sgd"]), model)
    assert isinstance(optimizer, torch.optim.SGD)
    assert optimizer.param_groups[0]["nesterov"]


def test_average_of_weights():
    """Of the first steps 1/10, 2/11, ... of the old is kept (TensorFlow's num_updates)."""
    argv = [*FLAGS, *TINY]
    for steps in ("1", "2"):
        train.main([*argv, "--max-steps", steps, "--run-dir", steps, "--average", "0.9999"])
    first, second = (torch.load(f"{n}/last.pt") for n in (1, 2))
    start = train.build(train.parse_args([*argv]), 10)
    key = "features.0.0.weight"
    assert not torch.equal(first["ema"][key], first["model"][key])
    wanted = first["ema"][key].lerp(second["model"][key], 1 - 2 / 11)
    torch.testing.assert_close(second["ema"][key], wanted)
    assert second["ema"].keys() == {
        k for k, v in start.state_dict().items() if v.dtype.is_floating_point
    }
    metrics = train.main(["--evaluate", "2/last.pt", "--quiet"])
    last = train.main([*argv, "--max-steps", "2", "--run-dir", "3"])
    assert metrics["test_loss"] != last["test_loss"]
    torch.testing.assert_close(torch.load("3/last.pt")["model"][key], second["model"][key])


def test_a_resumed_average_is_the_same_average():
    argv = [*FLAGS, *TINY, "--epochs", "2", "--average", "0.99", "--drop-path", "0.1"]
    argv += ["--smoothing", "0.1", "--autoaugment", "--limit", "64"]
    train.main([*argv, "--run-dir", "whole"])
    train.main([*argv, "--run-dir", "cut", "--max-steps", "3"])
    train.main(["--resume", "--run-dir", "cut", "--quiet"])
    whole, cut = (torch.load(f"{name}/last.pt") for name in ("whole", "cut"))
    for part in ("model", "ema"):
        assert all(torch.equal(v, cut[part][k]) for k, v in whole[part].items()), part


def test_labels_are_smoothed_in_training_alone(monkeypatch):
    found, real = [], F.cross_entropy

    def note(logits, labels, label_smoothing=0.0, **rest):
        found.append((torch.is_grad_enabled(), label_smoothing))
        return real(logits, labels, label_smoothing=label_smoothing, **rest)

    monkeypatch.setattr(F, "cross_entropy", note)
    train.main([*FLAGS, *TINY, "--smoothing", "0.1", "--max-steps", "1"])
    assert found[0] == (True, 0.1)
    assert set(found[1:]) == {(False, 0.0)}


def test_flags_that_are_refused(refused):
    line = refused(
        train.main, ["--model", "efficientnet_b0", "--weights", "imagenet", "--padding", "same"]
    )
    assert "torchvision's weights were trained with symmetric padding" in line
    line = refused(train.main, ["--weights", "imagenet"])
    assert "none for efficientnet_small, but for efficientnet_b0" in line
    line = refused(train.main, ["--model", "efficientnet_b1", "--width", "2"])
    assert "--width has no meaning here: efficientnet_b1 has the paper's" in line
    assert "--autoaugment" in refused(train.main, ["--autoaugment", "--no-augment"])
    assert "--average" in refused(train.main, ["--average", "0.9", "--fsdp"])
    assert "from 0 to below 1" in refused(train.main, ["--drop-path", "1"])
    for flag in ("--width", "--depth"):
        assert "above zero, at most 10" in refused(train.main, [flag, "1e9"])
    assert "at most 10" in refused(claims.main, ["scaling", "--phi", "1e9"])


def test_what_a_checkpoint_has_settled_is_not_changed(refused):
    """With other padding the network has the same weights, and is another one."""
    train.main([*FLAGS, *TINY, "--max-steps", "1", "--run-dir", "run"])
    for argv in (["--evaluate", "run/last.pt"], ["--resume", "--run-dir", "run"]):
        line = refused(train.main, [*argv, "--padding", "same"])
        assert "run holds padding 'symmetric', not 'same'" in line.replace("/last.pt", "")
        for other in (["--no-excitation"], ["--width", "1"], ["--depth", "1"]):
            line = refused(train.main, [*argv, *other])
            assert f"holds {other[0][2:].removeprefix('no-')} " in line


@pytest.mark.parametrize("kind", ["torchvision", "timm"])
def test_fine_tuning_from_a_published_file(kind, capsys):
    theirs = perturb(torchvision.models.efficientnet_b0()).state_dict()
    torch.save(as_timm(theirs) if kind == "timm" else theirs, "b0.pth")
    argv = ["--model", "efficientnet_b0", "--limit", "32", "--size", "32", "--weights", "b0.pth"]
    argv += ["--freeze", "--data", "digits", "--val", "0"]
    argv += ["--padding", "same"] if kind == "timm" else []
    train.main([*argv, "--max-steps", "2", "--batch-size", "16", "--run-dir", "run"])
    line = "weights of b0.pth; classifier.1 new, for digits's classes; mean and std are those"
    assert f"{line} of the data" in capsys.readouterr().out
    state = weights("run")
    for key, value in theirs.items():
        assert torch.equal(state[key], value) == (not key.startswith("classifier.")), key
    assert state["classifier.1.weight"].shape == (10, 1280)
    Path("b0.pth").unlink()  # evaluating doesn't need it
    metrics = train.main(["--evaluate", "run/last.pt", "--quiet"])
    assert set(metrics) == {"test_loss", "test_accuracy"}


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_paths_of_the_loop(precision, few):
    argv = [*FLAGS, *TINY, "--max-steps", "2", "--accumulate", "2", "--precision", precision]
    argv += ["--drop-path", "0.2", "--average", "0.9", "--optimizer", "sgd", "--lr", "0.01"]
    metrics = train.main([*argv, "--schedule", "stairs", "--run-dir", "run"])
    assert all(map(math.isfinite, metrics.values()))
    assert all(t.isfinite().all() for t in weights("run").values())
    assert Path("run/confusion.png").exists()


def test_the_papers_recipe_runs_on_a_tree():
    make_tree(count=20, sizes=((40, 30, 3),))
    argv = ["--paper", "--data", "folder:tree", "--size", "32", "--batch-size", "8", "--val", "4"]
    metrics = train.main([*argv, "--max-steps", "2", "--workers", "0", "--quiet"])
    assert all(map(math.isfinite, metrics.values()))


def test_the_loss_is_a_mean_over_the_images():
    check_mean_loss(train, {})


def test_samples(capsys, monkeypatch):
    monkeypatch.setattr("common.data.shapes.NUM_SCENES", {"train": 64, "test": 30})
    argv = [*TINY, "--val", "0", "--epochs", "2", "--average", "0.9", "--quiet"]
    metrics = train.main(argv)
    assert sample.main([])["right"] == round(30 * metrics["test_accuracy"])
    Image.new("RGB", (50, 40), "red").save("red.png")
    Image.new("L", (20, 90)).save("grey.png")
    found = sample.main(["red.png", "grey.png", "--out", "out"])
    assert len(found["red.png"]) == 5
    assert Path("out/predictions.jpg").exists()
    assert "grey.png (grey: made RGB)" in capsys.readouterr().out


def test_samples_of_published_weights(refused):
    theirs = perturb(torchvision.models.efficientnet_b0())
    entry = torchvision.models.EfficientNet_B0_Weights.IMAGENET1K_V1
    check_published(sample, theirs, entry)
    assert "--padding goes with --weights" in refused(sample.main, ["--padding", "same"])


def test_samples_of_the_weights_trained_in_tensorflow():
    """timm's names, padding and eps."""
    theirs = perturb(efficientnet_b0(padding="same"))
    theirs.register_state_dict_post_hook(lambda _, state, *__: rename_as_timm(state))
    entry = torchvision.models.EfficientNet_B0_Weights.IMAGENET1K_V1
    check_published(sample, theirs, entry, ["--padding", "same"])
    assert "blocks.0.0.conv_dw.weight" in torch.load("theirs.pth")


def rename_as_timm(state):
    renamed = as_timm(dict(state))
    state.clear()
    state.update(renamed)


def test_samples_see_images_of_the_weights_own_size(capsys):
    """B2's were trained with 260 pixels, and are best with 288."""
    Image.new("RGB", (300, 280), "orange").save("orange.png")
    torch.save(MODELS["efficientnet_b2"]().state_dict(), "b2.pth")
    sample.main(["--weights", "b2.pth", "--model", "efficientnet_b2", "orange.png"])
    line = "efficientnet_b2 with the weights b2.pth, 288 pixels"
    assert line in capsys.readouterr().out


# ---------------------------------------------------------------------- the claims


def test_scales_cost_the_same():
    """Multiply-adds, counted on the networks, of the compound one and of three that it beats."""
    scales = claims.scales(2)
    goal = claims.costs(*scales["compound"])[0]
    base = claims.costs(*claims.BASE)[0]
    assert 3 < goal / base < 5
    for name, scale in scales.items():
        with torch.device("meta"):
            model = efficientnet_small(width=scale[0], depth=scale[1])
            found = multiply_adds(model, torch.empty(1, 3, scale[2], scale[2]))
        assert found == pytest.approx(goal, rel=0.06), name
        changed = [a != b for a, b in zip(scale, claims.BASE, strict=True)]
        assert changed == [name in (own, "compound") for own in ("width", "depth", "resolution")]


def test_activation_maps_add_up_to_the_logits():
    model = perturb(efficientnet_small(width=0.25, depth=0.25)).eval()
    images, classes = torch.randn(3, 3, 32, 32), torch.tensor([0, 4, 9])
    maps = claims.activation_maps(model, images, classes)
    assert maps.shape == (3, 32, 32)
    assert (maps.amin((1, 2)) == 0).all()
    assert (maps.amax((1, 2)) == 1).all()
    features = model.features(images)
    places = torch.einsum("bchw,bc->bhw", features, model.classifier[1].weight[classes])
    logits = places.mean((1, 2)) + model.classifier[1].bias[classes]
    torch.testing.assert_close(logits, model(images)[torch.arange(3), classes])
    assert maps[0].flatten().argmax() // 32 // 8 == places[0].flatten().argmax() // 4


def test_claim_of_scaling(monkeypatch, capsys):
    runs = []

    def short(argv):
        runs.append(argv)
        return train.main([*argv, "--quiet"])

    monkeypatch.setattr(claims, "train", short)
    scales = {"width": (0.5, 0.25, 8), "depth": (0.25, 1.0, 8), "resolution": (0.25, 0.25, 16)}
    scales["compound"] = (0.3, 0.34, 11)
    monkeypatch.setattr(claims, "BASE", (0.25, 0.25, 8))
    monkeypatch.setattr(claims, "scales", lambda phi: scales)
    argv = ["scaling", "--data", "digits", "--epochs", "1", "--max-steps", "1"]
    summary = claims.main([*argv, "--seeds", "0", "--out", "out"])
    assert len(runs) == 5
    assert summary == json.loads(Path("out/claim_scaling.json").read_text())
    arms = ["base", *(f"{name}, phi 2" for name in ("width", "depth", "resolution", "compound"))]
    assert list(summary) == arms
    assert summary["base"]["multiply_adds"]["mean"] == claims.costs(0.25, 0.25, 8)[0]
    assert Path("out/claim_scaling.png").exists()
    assert Path("out/claim_scaling_maps.png").exists()
    assert "million multiply-adds" in capsys.readouterr().out
    claims.main([*argv, "--seeds", "0", "--out", "out"])
    assert len(runs) == 5  # done is done


def test_claim_of_excitation(monkeypatch, capsys):
    small = lambda argv: train.main([*argv, *TINY, "--quiet"])  # noqa: E731
    monkeypatch.setattr(claims, "train", small)
    argv = ["excitation", "--data", "digits", "--epochs", "1", "--max-steps", "1"]
    summary = claims.main([*argv, "--seeds", "0", "--out", "out"])
    assert list(summary) == ["with excitation", "without"]
    assert "--no-excitation" in summary["without"]["command"]
    assert Path("out/claim_excitation.png").exists()
    assert "training error" in capsys.readouterr().out


@pytest.mark.parametrize("padding", ["symmetric", "same"])
@pytest.mark.parametrize("activation", [True, False])
def test_norms_are_folded_where_no_gradients_are_wanted(padding, activation):
    layer = ConvNorm(4, 8, 3, stride=2, padding=padding, activation=activation).double()
    perturb(layer).eval()
    x = torch.randn(2, 4, 8, 9, dtype=torch.float64)
    calls = []
    layer[1].register_forward_hook(lambda *_: calls.append(1))
    wanted = layer(x)
    assert wanted.requires_grad
    assert calls == [1]
    with torch.inference_mode():
        torch.testing.assert_close(layer(x), wanted.detach())
        assert calls == [1]  # it was not asked
        layer.train()
        layer(x)
    assert calls == [1, 1]
    assert layer[1].num_batches_tracked == 1


def test_inference_leaves_its_input_alone():
    """What is done in place is done to the network's own features."""
    model = perturb(tiny()).eval()
    images = torch.randn(2, 3, 32, 32)
    kept = images.clone()
    with torch.inference_mode():
        first, second = model(images), model(images)
    assert torch.equal(images, kept)
    assert torch.equal(first, second)


@pytest.mark.slow
def test_quick_reaches_the_readmes_number():
    assert train.main(["--quiet"])["test_accuracy"] > 0.85
