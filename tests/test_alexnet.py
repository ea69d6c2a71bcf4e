"""AlexNet: sizes, stages, the paper's equations, equality with torchvision, and that it learns."""

import json
import math
from functools import partial
from pathlib import Path

import numpy as np
import processes
import pytest
import torch
import torch.nn.functional as F
import torchvision
from helpers import check_published, count, make_tree, weights
from PIL import Image
from torch import nn

from alexnet import claims, sample, train
from alexnet.model import MODELS, LocalResponseNorm, alexnet, alexnet_owt, convnet4
from common import classify, cli
from common.data.augment import cut_windows, random_colour
from common.data.batches import Draw
from common.data.images import Held, ImageSet, colour_covariance
from common.device import Device

# ---------------------------------------------------------------------- model.py


def layers(model):
    return [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]


def test_parameters_of_every_layer():
    with torch.device("meta"):
        sizes = {name: [count(layer) for layer in layers(f())] for name, f in MODELS.items()}
    assert sizes["alexnet"] == [
        (11 * 11 * 3 + 1) * 96,  # the kernels of Sec. 3.5, and a bias for each map
        (5 * 5 * 48 + 1) * 256,
        (3 * 3 * 256 + 1) * 384,
        (3 * 3 * 192 + 1) * 384,
        (3 * 3 * 192 + 1) * 256,
        (6 * 6 * 256 + 1) * 4096,
        (4096 + 1) * 4096,
        (4096 + 1) * 1000,
    ]
    totals = {name: sum(values) for name, values in sizes.items()}
    assert totals == {"alexnet": 60_965_224, "alexnet_owt": 61_100_840, "convnet4": 89_578}
    assert sizes["convnet4"] == [2432, 25_632, 51_264, 10_250]


def stages(model, size):
    """The shapes behind every layer of `features`, without repetitions."""
    shapes, x = [], torch.zeros(1, 3, size, size, device=next(model.parameters()).device)
    for layer in model.features:
        x = layer(x)
        if not shapes or shapes[-1] != tuple(x.shape[1:]):
            shapes.append(tuple(x.shape[1:]))
    return shapes


def test_shapes_of_every_stage():
    with torch.device("meta"):
        paper = stages(alexnet(), 227)
        owt = stages(alexnet_owt(), 224)
    wanted = [(96, 55), (96, 27), (256, 27), (256, 13), (384, 13), (256, 13), (256, 6)]
    assert paper == [(maps, side, side) for maps, side in wanted]
    neurons = [maps * side * side for maps, side in [(96, 55), (256, 27), (384, 13), (256, 13)]]
    assert neurons == [290_400, 186_624, 64_896, 43_264]  # Fig. 2, but for its 253,440 of conv1
    wanted = [(64, 55), (64, 27), (192, 27), (192, 13), (384, 13), (256, 13), (256, 6)]
    assert owt == [(maps, side, side) for maps, side in wanted]
    wanted = [(32, 32), (32, 16), (32, 8), (64, 8), (64, 4)]
    assert stages(convnet4(), 32) == [(maps, side, side) for maps, side in wanted]


def test_groups_are_those_of_the_two_cards():
    convolutions = [m.groups for m in layers(alexnet_on_meta()) if isinstance(m, nn.Conv2d)]
    assert convolutions == [1, 2, 1, 2, 2]


def alexnet_on_meta():
    with torch.device("meta"):
        return alexnet()


@pytest.mark.parametrize(("name", "size"), [("alexnet", 227), ("convnet4", 32)])
def test_the_last_pooling_is_the_identity_at_the_size_of_the_paper(name, size):
    model = MODELS[name]() if name == "convnet4" else alexnet_on_meta()
    side = model.avgpool.output_size
    assert stages(model, size)[-1][1:] == (side, side)
    x = torch.randn(2, 64, side, side)
    assert torch.equal(model.avgpool(x), x)


@pytest.mark.parametrize(
    ("name", "sizes"),
    [("alexnet", (67, 160, 256)), ("alexnet_owt", (63, 160, 256)), ("convnet4", (8, 24, 64, 97))],
)
def test_other_sizes_and_numbers_of_classes(name, sizes):
    with torch.device("meta"):
        model = MODELS[name](num_classes=7)
        for size in sizes:
            assert model(torch.zeros(2, 3, size, size)).shape == (2, 7)


def test_response_normalisation_is_the_equation_of_the_paper():
    """A loop over images, maps and places, with the limits of the sum as printed in Sec. 3.3."""
    n, k, alpha, beta = 5, 2, 1e-4, 0.75
    a = torch.randn(2, 11, 3, 2, dtype=torch.float64) * 100  # the sums matter beside k
    wanted, N = torch.empty_like(a), a.shape[1]
    for b in range(2):
        for i in range(N):
            for y in range(3):
                for x in range(2):
                    near = range(max(0, i - n // 2), min(N - 1, i + n // 2) + 1)
                    total = sum(a[b, j, y, x] ** 2 for j in near)
                    wanted[b, i, y, x] = a[b, i, y, x] / (k + alpha * total) ** beta
    torch.testing.assert_close(LocalResponseNorm()(a), wanted)


def test_response_normalisation_equals_torch_with_alpha_times_n():
    a = torch.randn(2, 96, 5, 5, dtype=torch.float64).mul(50).requires_grad_()
    b = a.detach().clone().requires_grad_()
    ours, theirs = LocalResponseNorm()(a), F.local_response_norm(b, 5, alpha=5e-4, k=2)
    torch.testing.assert_close(ours, theirs)
    weights = torch.randn_like(ours)
    (ours * weights).sum().backward()
    (theirs * weights).sum().backward()
    torch.testing.assert_close(a.grad, b.grad)
    x = torch.rand(2, 96, 9, 9) * 30
    with torch.autocast("cpu", torch.bfloat16):
        low = LocalResponseNorm()(x.bfloat16())
    torch.testing.assert_close(low.float(), LocalResponseNorm()(x), rtol=0.02, atol=0.02)


def test_initial_weights_of_the_paper():
    torch.manual_seed(0)
    for number, layer in enumerate(layers(alexnet(num_classes=10)), 1):
        assert layer.weight.mean().item() == pytest.approx(0, abs=4e-4)
        assert layer.weight.std().item() == pytest.approx(0.01, rel=0.02)
        bias = 1 if number in (2, 4, 5, 6, 7) else 0
        assert (layer.bias == bias).all(), number


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_initial_weights_of_convnet4_keep_the_signal(activation):
    torch.manual_seed(0)
    model, x, sizes = convnet4(activation=activation), torch.randn(64, 3, 32, 32), []
    for layer in model.features:
        x = layer(x)
        if isinstance(layer, (nn.ReLU, nn.Tanh)):
            sizes.append(x.square().mean().sqrt().item())
    assert all(0.3 < size < 3 for size in sizes), sizes


def test_activation_swaps_every_non_linearity():
    relu, tanh = convnet4(), convnet4(activation="tanh")
    kinds = [type(m) for m in relu.modules()]
    wanted = [nn.Tanh if kind is nn.ReLU else kind for kind in kinds]
    assert kinds.count(nn.ReLU) == 3
    assert [type(m) for m in tanh.modules()] == wanted
    assert {k: v.shape for k, v in relu.state_dict().items()} == {
        k: v.shape for k, v in tanh.state_dict().items()
    }


def test_dropout_follows_the_hidden_layers():
    model = alexnet_on_meta()
    kinds = [type(m).__name__ for m in model.classifier]
    assert kinds == ["Linear", "ReLU", "Dropout", "Linear", "ReLU", "Dropout", "Linear"]
    assert {m.p for m in model.modules() if isinstance(m, nn.Dropout)} == {0.5}


def test_alexnet_equals_its_layers_written_out():
    """Both cards side by side: conv2, conv4 and conv5 see the maps of their own card only."""
    torch.manual_seed(0)
    model = alexnet(num_classes=5).double().eval()
    for p in model.parameters():
        p.data += 0.02 * torch.randn_like(p)
    x = torch.randn(2, 3, 99, 99, dtype=torch.float64)
    w = layers(model)

    def norm(a):
        return F.local_response_norm(a, 5, alpha=5e-4, beta=0.75, k=2)

    def cards(a, layer, padding):
        halves = zip(a.chunk(2, 1), layer.weight.chunk(2), layer.bias.chunk(2), strict=True)
        return torch.cat([F.conv2d(*half, padding=padding) for half in halves], 1).relu()

    a = F.conv2d(x, w[0].weight, w[0].bias, stride=4).relu()
    a = F.max_pool2d(norm(a), 3, 2)
    a = F.max_pool2d(norm(cards(a, w[1], 2)), 3, 2)
    a = F.conv2d(a, w[2].weight, w[2].bias, padding=1).relu()
    a = cards(cards(a, w[3], 1), w[4], 1)
    a = F.adaptive_avg_pool2d(F.max_pool2d(a, 3, 2), 6).flatten(1)
    for layer in w[5:7]:
        a = F.linear(a, layer.weight, layer.bias).relu()
    torch.testing.assert_close(model(x), F.linear(a, w[7].weight, w[7].bias))


@pytest.fixture(scope="module")
def pair():
    """Ours and torchvision's with the same perturbed weights, in float64."""
    torch.manual_seed(0)
    theirs = torchvision.models.alexnet(num_classes=9)
    for name, p in theirs.named_parameters():
        if name.endswith("bias"):
            p.data += 0.1 * torch.randn_like(p)
    ours = alexnet_owt(num_classes=9)
    ours.load_state_dict(theirs.state_dict())
    return ours.double(), theirs.double()


@pytest.mark.parametrize("training", [False, True])
def test_alexnet_owt_equals_torchvision(pair, training):
    x, outputs = torch.randn(2, 3, 127, 127, dtype=torch.float64), []
    for model in pair:
        model.train(training).zero_grad()
        torch.manual_seed(1)  # the same units drop out
        outputs.append(model(x))
        (outputs[-1] * torch.arange(9)).sum().backward()
    torch.testing.assert_close(*outputs)
    ours, theirs = (dict(m.named_parameters()) for m in pair)
    assert ours.keys() == theirs.keys()
    for name in ours:
        difference = ours[name].grad - theirs[name].grad
        assert difference.norm() < 1e-9 * theirs[name].grad.norm(), name


@pytest.mark.parametrize(("activation", "lr"), [("relu", 0.002), ("tanh", 0.01)])
def test_convnet4_overfits_one_batch(activation, lr):
    torch.manual_seed(0)
    model, x = convnet4(activation=activation), torch.randn(16, 3, 32, 32)
    labels = torch.arange(16) % 10
    optimizer = torch.optim.SGD(model.parameters(), lr, momentum=0.9)
    for _ in range(80):
        loss = F.cross_entropy(model(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (model(x).argmax(1) == labels).all()


@pytest.mark.parametrize("name", ["alexnet", "alexnet_owt"])
def test_large_networks_overfit_one_batch(name):
    """With the paper's classifier cut to 64 units, so that the test is fast."""
    torch.manual_seed(0)
    model, x, labels = MODELS[name](num_classes=3), torch.randn(3, 3, 67, 67), torch.arange(3)
    model.classifier = nn.Sequential(nn.Linear(256 * 36, 64), nn.ReLU(), nn.Linear(64, 3))
    optimizer = torch.optim.Adam(model.parameters(), 4e-4)
    for _ in range(70):
        loss = F.cross_entropy(model(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (model(x).argmax(1) == labels).all()


# ---------------------------------------------------------------------- train.py

SHORT = ["--quiet", "--epochs", "1", "--val", "2", "--precision", "fp32"]


@pytest.fixture
def tree():
    """Ten dark and ten light photographs in colour, of several shapes."""
    make_tree(
        classes=("dark", "light"), count=10, sizes=[(40 + i, 60 - 2 * i, 3) for i in range(10)]
    )
    return ["--data", "folder:tree"]


def narrowed(name, num_classes=1000, **choice):
    """A network with 16 hidden units where the large ones have 4,096."""
    with torch.device("meta"):
        model = MODELS[name](num_classes=num_classes, **choice)
    if name != "convnet4":
        sizes = iter([(256 * 36, 16), (16, 16), (16, num_classes)])
        for i, layer in enumerate(model.classifier):
            if isinstance(layer, nn.Linear):
                model.classifier[i] = nn.Linear(*next(sizes))
    model = model.to_empty(device="cpu")
    for p in model.parameters():
        nn.init.normal_(p, std=0.02)
    return model


@pytest.fixture
def narrow(monkeypatch):
    for module in (train, sample):
        monkeypatch.setattr(module, "MODELS", {n: partial(narrowed, n) for n in MODELS})


def test_bad_flags(refused):
    assert "convnet4" in refused(train.main, ["--model", "alexnet", "--activation", "tanh"])
    assert "add --regularise" in refused(train.main, ["--no-regularise", "--colour-pca"])
    assert "did you mean tanh" in refused(train.main, ["--activation", "tan"])
    small = ["--data", "digits", "--model", "alexnet", "--size", "48"]
    assert "--size" in refused(train.main, small)
    assert "alexnet_owt" in refused(train.main, [*small, "--weights", "imagenet"])
    assert "--weights" in refused(train.main, ["--freeze"])
    assert not list(Path().iterdir())


def test_recipes_and_sizes():
    paper = train.parse_args(["--paper"])
    assert (paper.model, paper.batch_size, paper.lr, paper.epochs) == ("alexnet", 128, 0.01, 90)
    assert (paper.size, paper.colour_pca, paper.ten_crop) == (227, True, True)
    assert not train.parse_args(["--paper", "--no-colour-pca"]).colour_pca
    usual = train.parse_args(["--model", "alexnet_owt"])  # the paper's way to train it
    assert (usual.optimizer, usual.lr, usual.regularise) == ("sgd", 0.01, True)
    assert train.parse_args(["--model", "alexnet", "--lr", "0.5"]).lr == 0.5
    sizes = {(m, d): train.parse_args(["--model", m, "--data", d]).size for m in MODELS
             for d in ("shapes", "folder:x")}  # fmt: skip
    assert list(sizes.values()) == [99, 227, 99, 224, 32, 32]
    assert train.parse_args(["--size", "64"]).size == 64


def test_learning_rates():
    stairs = [train.step_size("stairs", 100, step) for step in (0, 24, 25, 50, 75, 99)]
    assert stairs == pytest.approx([1, 1, 0.1, 0.01, 0.001, 0.001])
    cosine = [train.step_size("cosine", 100, step) for step in (0, 5, 10, 50, 100)]
    assert cosine == pytest.approx([0, 0.497, 0.976, 0.5, 0], abs=1e-3)
    assert {train.step_size("constant", 100, step) for step in range(100)} == {1.0}


def test_windows_are_seven_eighths_of_the_middle_square():
    torch.manual_seed(0)
    numbers = torch.rand(500, 5)
    height, width = torch.full((500,), 320), torch.full((500,), 480)
    left, top, across, down, mirrored = train.square_window(numbers, height, width, 224).unbind(1)
    assert (across == 280).all() and (down == 280).all()
    assert (left.min(), left.max()) == (80, 120)  # the middle square begins at 80
    assert (top.min(), top.max()) == (0, 40)
    assert 0.4 < mirrored.mean() < 0.6


def test_windows_of_stored_squares_are_plain_slices():
    images = torch.randint(0, 256, (50, 3, 64, 64)).byte()
    side = torch.full((50,), 64)
    windows = train.square_window(torch.rand(50, 5), side, side, 56)
    cut = cut_windows(images, windows, 56)
    for image, window, ours in zip(images, windows.long().tolist(), cut, strict=True):
        left, top, _, _, mirrored = window
        wanted = image[:, top : top + 56, left : left + 56].float()
        torch.testing.assert_close(ours, wanted.flip(2) if mirrored else wanted, atol=0.01, rtol=0)


def test_ten_crops_are_the_corners_the_middle_and_their_mirror_images():
    images = torch.randint(0, 256, (3, 3, 32, 32)).byte()
    crops = train.ten_crops(images, 28)
    assert crops.shape == (30, 3, 28, 28)
    for i, image in enumerate(images):
        five = [image[:, :28, :28], image[:, :28, 4:], image[:, 4:, :28], image[:, 4:, 4:]]
        five.append(image[:, 2:30, 2:30])
        wanted = torch.stack([*five, *(crop.flip(2) for crop in five)])
        assert torch.equal(crops[10 * i : 10 * i + 10], wanted)
    padded = train.ten_crops(images, 32)  # no margin: four black pixels on each side
    assert torch.equal(padded[4], images[0])
    assert torch.equal(padded[0, :, 4:, 4:], images[0, :, :28, :28])
    assert padded[0, :, :4].max() == 0


@pytest.mark.parametrize("side", [18, 16])
def test_ten_crop_evaluation_averages_the_softmax(side):
    torch.manual_seed(0)
    dev = Device(processes.device_args())
    facts = {"classes": list("abcdefghijkl"), "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4]}
    pixels, labels = torch.randint(0, 256, (7, 3, side, side)).byte(), torch.arange(7)
    images = ImageSet("test", Held(pixels, dev), labels, facts, dev, size=16)
    model = convnet4(num_classes=12)
    nn.init.normal_(model.classifier.weight, std=0.1)
    ours = train.evaluate(model, images, dev, None, ten_crop=True)
    loss, right, top5 = 0.0, 0, 0
    for image, label in zip(pixels, labels.tolist(), strict=True):
        views = train.ten_crops(image[None], 16)
        shares = [model(images.normalise(v[None])).softmax(1)[0] for v in views]
        mean = torch.stack(shares).mean(0)
        loss -= mean[label].log().item() / 7
        right += int(mean.argmax() == label)
        top5 += int(label in mean.topk(5).indices)
    assert ours["test_loss"] == pytest.approx(loss, rel=1e-4)
    assert ours["test_accuracy"] == pytest.approx(right / 7)
    assert ours["test_top5_accuracy"] == pytest.approx(top5 / 7)
    plain = train.evaluate(model, images, dev, None)
    centre = images.normalise(images.middle(pixels))
    wanted = F.cross_entropy(model(centre), labels).item()
    assert plain["test_loss"] == pytest.approx(wanted, rel=1e-4)


COVARIANCE = torch.tensor([[0.06, 0.05, 0.04], [0.05, 0.07, 0.05], [0.04, 0.05, 0.08]])


def test_colour_shifts_equal_a_loop_of_the_papers_formula():
    """[p1, p2, p3] [alpha1 lambda1, ...]^T added to every pixel of an image (Sec. 4.1)."""
    images = torch.randint(0, 256, (6, 3, 4, 5)).byte()
    draw = partial(Draw, [("step", 0, 0, 0)], 6, slice(0, 6), torch.device("cpu"))
    shifted = random_colour(images, draw(), COVARIANCE)
    uniform = draw().uniform(0, 1, 2, 3).double()
    values, vectors = np.linalg.eigh(COVARIANCE.double().numpy())
    signs = np.sign((vectors * torch.linalg.eigh(COVARIANCE.double())[1].numpy()).sum(0))
    for image, ours, (u, v) in zip(images, shifted, uniform.tolist(), strict=True):
        added = np.zeros(3)
        for i in range(3):
            normal = math.sqrt(-2 * math.log(1 - u[i])) * math.cos(2 * math.pi * v[i])
            added += signs[i] * vectors[:, i] * (0.1 * normal) * values[i]
        wanted = image.float() + 255 * torch.tensor(added).float()[:, None, None]
        torch.testing.assert_close(ours, wanted, atol=1e-3, rtol=0)


def test_colour_shifts_have_the_covariance_of_the_formula():
    """sum of p p^T (0.1 lambda)^2, so 0.01 times the squared covariance; alpha is normal."""
    count = 40_000
    draw = Draw([("step", 0, 0, 0)], count, slice(0, count), torch.device("cpu"))
    added = random_colour(torch.zeros(count, 3, 1, 1), draw, COVARIANCE)[:, :, 0, 0].double() / 255
    wanted = 0.01 * COVARIANCE.double() @ COVARIANCE.double()
    torch.testing.assert_close(added.T.cov(), wanted, rtol=0.05, atol=0)
    assert added.mean(0).abs().max() < 4 * wanted.diag().sqrt().max() / math.sqrt(count)
    alpha = added @ torch.linalg.eigh(COVARIANCE.double())[1]
    alpha = alpha / alpha.std(0)
    assert alpha.pow(4).mean(0).sub(3).abs().max() < 0.15
    assert alpha.pow(3).mean(0).abs().max() < 0.1


def test_the_components_are_those_of_the_training_pixels():
    dev = Device(processes.device_args())
    pixels = torch.randint(0, 256, (9, 3, 5, 4)).byte()
    pixels[:, 1] = pixels[:, 0] // 2
    images = ImageSet("train", Held(pixels, dev), torch.zeros(9), {"classes": ["a"]}, dev)
    wanted = np.cov(pixels.movedim(1, 0).flatten(1).numpy() / 255, bias=True)
    torch.testing.assert_close(colour_covariance(images), torch.tensor(wanted), rtol=1e-4, atol=0)


def test_each_image_is_shifted_once_and_anew_in_each_epoch():
    """Of grey pictures without a pattern, only what the colour shift adds is left to see."""
    dev = Device(processes.device_args())
    pixels = (torch.rand(64, 3, 1, 1) * 255).byte().expand(-1, -1, 8, 8).contiguous()
    facts = {"classes": ["a"], "mean": [0.0] * 3, "std": [1 / 255] * 3}
    images = ImageSet("train", Held(pixels, dev), torch.arange(64), facts, dev, 8)
    shift = partial(train.augment, shift=False, covariance=colour_covariance(images))
    batches, seen = images.batches(64, augment=shift), []
    for epoch in (0, 1):
        batches.seek(epoch, 0)
        x, labels = next(iter(batches))
        added = x - pixels[labels].float()
        assert added.std((2, 3)).max() < 1e-3  # the same at every pixel
        assert added[:, :, 0, 0].abs().min() > 0
        seen.append(added[labels.argsort(), :, 0, 0])
    assert (seen[0] - seen[1]).abs().amax(1).min() > 0


@pytest.mark.parametrize("on", [True, False])
def test_regularisation_is_all_or_nothing(monkeypatch, narrow, on):
    decays, changes, dropouts, sgd = [], [], [], torch.optim.SGD

    def optimizer(parameters, lr, momentum, weight_decay, fused):
        decays.append(weight_decay)
        return sgd(parameters, lr, momentum, weight_decay=weight_decay, fused=fused)

    def build(args, num_classes, built=train.build):
        model = built(args, num_classes)
        dropouts.append({m.p for m in model.modules() if isinstance(m, nn.Dropout)})
        return model

    monkeypatch.setattr(torch.optim, "SGD", optimizer)
    monkeypatch.setattr(train, "build", build)
    monkeypatch.setattr(train, "augment", lambda images, *_, **__: changes.append(1) or images)
    flags = ["--quiet", "--data", "digits", "--limit", "8", "--val", "0", "--batch-size", "4"]
    flags += ["--model", "alexnet", "--size", "67", "--epochs", "1"]
    flags += ["--regularise" if on else "--no-regularise"]
    train.main([*flags, "--schedule", "constant", "--run-dir", "run"])
    assert (decays, len(changes), dropouts) == ([5e-4 * on], 2 * on, [{0.5 * on}])
    assert read_rates("run") == [0.01]


def read_rates(folder):
    rows = map(json.loads, Path(folder, "metrics.jsonl").read_text().splitlines())
    return [row["lr"] for row in rows if "lr" in row]


def test_activation_is_kept_by_a_run(tree):
    flags = [*tree, *SHORT, "--epochs", "2", "--batch-size", "4", "--activation", "tanh"]
    flags += ["--regularise", "--optimizer", "sgd"]
    whole = train.main([*flags, "--run-dir", "whole"])
    train.main([*flags, "--run-dir", "cut", "--max-steps", "5"])  # inside the second epoch
    assert train.main(["--quiet", "--resume", "--run-dir", "cut"]) == whole
    assert train.main(["--quiet", "--evaluate", "whole/last.pt"])["test_loss"] == pytest.approx(
        whole["test_loss"]
    )
    args = cli.sample_parser("alexnet", "").parse_args(["--checkpoint", "whole/last.pt"])
    model, *_ = classify.open_model(args, "alexnet", MODELS, train.build)
    assert sum(isinstance(m, nn.Tanh) for m in model.modules()) == 3


@pytest.mark.parametrize("flags", [[], ["--stream"], ["--colour-pca", "--ten-crop"]])
def test_alexnet_trains_on_the_users_photographs(tree, narrow, flags):
    flags = [*tree, *SHORT, "--model", "alexnet", "--size", "67", *flags, "--batch-size", "4"]
    metrics = train.main([*flags, "--run-dir", "run"])
    assert all(math.isfinite(value) for value in metrics.values())
    content = torch.load("run/last.pt")
    assert content["optimizer"]["kind"] == "SGD"
    assert content["dataset"]["std"] == [1 / 255] * 3  # raw pixels, as in the paper
    rates = read_rates("run")
    assert rates == pytest.approx([1e-5])
    again = train.main(["--quiet", "--evaluate", "run/last.pt", "--run-dir", "again"])
    assert again["test_loss"] == pytest.approx(metrics["test_loss"], rel=1e-5)
    assert Path("again/confusion.png").exists()


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_low_precision_stays_finite(tree, narrow, precision):
    flags = [*tree, "--quiet", "--model", "alexnet", "--size", "67", "--max-steps", "1"]
    flags += ["--precision", precision, "--val", "0", "--limit", "8", "--batch-size", "4"]
    metrics = train.main([*flags, "--run-dir", "run"])
    assert all(math.isfinite(value) for value in metrics.values())
    assert all(t.isfinite().all() for t in weights("run").values())


def test_weights_start_a_run_on_other_classes(tree, narrow, refused):
    theirs = narrowed("alexnet_owt").state_dict()
    assert list(theirs) == list(torchvision_names())
    torch.save(theirs, "alexnet.pth")
    flags = [*tree, *SHORT, "--model", "alexnet_owt", "--size", "63", "--batch-size", "4"]
    train.main([*flags, "--weights", "alexnet.pth", "--freeze", "--run-dir", "run"])
    content = torch.load("run/last.pt")
    ours, head = content["model"], ("classifier.6.weight", "classifier.6.bias")
    assert all(torch.equal(ours[k], theirs[k]) for k in ours if k not in head)
    assert [list(ours[k].shape) for k in head] == [[2, 16], [2]]
    assert set(content["optimizer"]["state"]) == set(head)
    train.main([*tree, *SHORT, "--size", "63", "--regularise", "--run-dir", "plain"])
    means = [torch.load(f"{run}/last.pt")["dataset"]["mean"] for run in ("run", "plain")]
    assert means[0] == means[1]  # those of the data: the file names no others
    for name in ("alexnet", "convnet4"):
        flags = [*tree, *SHORT, "--model", name, "--size", "67", "--weights", "alexnet.pth"]
        assert "alexnet.pth" in refused(train.main, flags)


def torchvision_names():
    with torch.device("meta"):
        return torchvision.models.alexnet().state_dict()


# ---------------------------------------------------------------------- sample.py, claims.py


def test_samples_of_published_weights(narrow):
    theirs = narrowed("alexnet_owt")
    check_published(sample, theirs, torchvision.models.AlexNet_Weights.IMAGENET1K_V1)


def test_last_hidden_is_what_the_last_layer_sees():
    torch.manual_seed(0)
    dev = Device(processes.device_args())
    facts = {"classes": ["a"], "mean": [0.5] * 3, "std": [0.2] * 3}
    pixels = torch.randint(0, 256, (5, 3, 67, 67)).byte()
    images = ImageSet("test", Held(pixels, dev), torch.zeros(5), facts, dev)
    order = torch.tensor([3, 0])
    x = images.normalise(pixels[order])
    for name in MODELS:
        model = narrowed(name).eval()
        hidden = model.avgpool(model.features(x)).flatten(1)
        wanted = hidden if name == "convnet4" else model.classifier[:-1](hidden)
        seen = sample.last_hidden(model, images, order, dev)
        torch.testing.assert_close(seen, wanted.detach())


def test_neighbours_are_the_nearest_in_euclidean_distance():
    queries, candidates = torch.randn(4, 7), torch.randn(30, 7)
    found = sample.nearest(queries, candidates, 3)
    for query, places in zip(queries, found.tolist(), strict=True):
        distances = [math.dist(query.tolist(), c.tolist()) for c in candidates]
        assert places == sorted(range(30), key=lambda i: distances[i])[:3]


def test_sample(tree, capsys, refused):
    assert "train.py" in refused(sample.main, [])
    metrics = train.main([*tree, *SHORT, "--run-dir", "run"])
    checkpoint = ["--checkpoint", "run/last.pt"]
    Image.new("L", (30, 50), 9).save("grey.png")
    found = sample.main([*checkpoint, "tree/dark", "grey.png", "--out", "out"])
    assert len(found) == 11
    for answers in found.values():
        assert {label for label, _ in answers} == {"dark", "light"}
        assert sum(share for _, share in answers) == pytest.approx(1, abs=1e-3)
    assert "grey" in capsys.readouterr().out
    assert Path("out/predictions.jpg").exists()
    shown = sample.main([*checkpoint, "--out", "grid"])
    assert shown["right"] == round(4 * metrics["test_accuracy"])
    assert shown["same_class"] > 0.7  # by chance 0.5: the dark ones lie together
    made = {path.stem for path in Path("grid").glob("*.*")}
    assert made == {"predictions", "filters", "neighbours"}
    Path("grid/predictions.jpg").unlink()
    line = refused(sample.main, [*checkpoint, "--out", "grid"])
    assert "grid/filters.png is there already" in line
    assert "nothing.png" in refused(sample.main, [*checkpoint, "nothing.png"])
    sample.show_filters(narrowed("alexnet"), Path("out"))
    assert "96 filters of 11x11" in capsys.readouterr().out


@pytest.mark.parametrize("names", [("Training", "Testing"), ("Train", "valid")])
def test_folders_as_people_have_them(names, capsys):
    """Parts by other names, hidden folders, other suffixes, links: alike in both scripts."""
    make_tree("photos", names=names, count=4)
    first = Path("photos", names[0])
    for hidden in (first / ".ipynb_checkpoints", Path("photos/.ipynb_checkpoints/cat")):
        hidden.mkdir(parents=True)
        (hidden / "0.png").write_bytes((first / "cat/0.png").read_bytes())
    image = Image.open(first / "cat/0.png")
    image.save(first / "cat/moving.gif")
    image.save(first / "cat/camera.jfif", "JPEG")
    (first / "dog").rename("elsewhere")
    (first / "dog").symlink_to(Path("elsewhere").absolute())
    flags = ["--data", "folder:photos", "--epochs", "1", "--val", "0", "--run-dir", "run"]
    train.main(flags)
    printed = capsys.readouterr().out
    assert "folder:photos: 10 train, 8 test images, 2 classes (cat, dog), in memory" in printed
    found = sample.main(["--checkpoint", "run/last.pt", "--out", "out", "photos"])
    assert len(found) == 18  # nothing hidden
    some = ("cat/moving.gif", "cat/camera.jfif", "dog/0.png")
    assert found.keys() >= {str(first / name) for name in some}
    shown = sample.main(["--checkpoint", "run/last.pt", "--out", "grid"])
    assert "of 8 test images recognised" in capsys.readouterr().out
    assert 0 < shown["same_class"] <= 1


def test_a_class_may_be_called_train_and_may_be_alone(capsys, refused):
    make_tree(classes=("bus", "train"), count=5)
    flags = ["--epochs", "1", "--val", "0", "--run-dir"]
    train.main(["--data", "folder:tree", *flags, "vehicles"])
    assert "8 train, 2 test images, 2 classes (bus, train)" in capsys.readouterr().out
    found = sample.main(["--checkpoint", "vehicles/last.pt", "--out", "out", "tree/train/0.png"])
    assert {name for name, _ in found["tree/train/0.png"]} == {"bus", "train"}
    make_tree("one", classes=("only",), count=2)
    train.main(["--data", "folder:one", *flags, "alone"])
    printed = capsys.readouterr().out
    assert "1 class (only)" in printed
    assert "every answer is right" in printed
    sample.main(["--checkpoint", "alone/last.pt", "--out", "grid"])
    assert "1 of 1 test image recognised" in capsys.readouterr().out
    Path("one/only/0.png").unlink()
    assert "holds one image" in refused(train.main, ["--data", "folder:one"])


def test_epochs_until_an_error():
    assert claims.epochs_until({1: 0.5, 2: 0.25, 3: 0.1}, 0.25) == 2
    assert claims.epochs_until({1: 0.5, 2: 0.26}, 0.25) is None


def test_claims_run_resume_and_summarise(tree, monkeypatch):
    monkeypatch.setattr(claims, "TARGET", 0.9)  # what two epochs can reach
    argv = ["relu", *tree, "--seeds", "0", "1", "--epochs", "2", "--out", "out"]
    summary = claims.main(argv)
    assert list(summary) == ["relu", "tanh"]
    written = json.loads(Path("out/claim_relu.json").read_text())
    assert written == summary
    for arm in summary:
        values = summary[arm]["epochs_to_25%"]["values"]
        assert len(values) == 2
        assert set(values) <= {1, 2, None}
        command = written[arm]["command"]
        assert command.startswith("python alexnet/train.py --data folder:tree")
        args = train.parse_args(command.replace("SEED", "0").split()[2:])
        assert (args.activation, args.regularise, args.schedule) == (arm, False, "constant")
    assert Path("out/claim_relu.png").exists()
    before = {p: p.stat().st_mtime_ns for p in Path("runs").rglob("*")}
    assert claims.main(argv) == summary  # skipped, as all is done
    assert before == {p: p.stat().st_mtime_ns for p in Path("runs").rglob("*")}


@pytest.mark.slow
def test_quick_reaches_the_number_of_the_readme():
    assert train.main(["--quiet"])["test_accuracy"] >= 0.85
