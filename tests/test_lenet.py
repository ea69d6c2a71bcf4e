"""LeNet-5: sizes, connections, the paper's equations, and that it learns."""

import json
import math
from pathlib import Path

import numpy as np
import processes
import pytest
import torch
import torch.nn.functional as F
from helpers import count, make_tree, weights
from PIL import Image
from torch import nn

from common.data.batches import Draw
from common.data.images import Held, ImageSet
from common.data.ink import fit
from common.device import Device
from lenet import claims, sample, train
from lenet.model import (
    C3_INPUTS,
    MODELS,
    RBF,
    LeNet5,
    SparseConv2d,
    Subsampling,
    digit_bitmaps,
    eq9_loss,
    lenet5,
    lenet5_modern,
    squash,
)
from lenet.sdlm import SDLM, output_sample


def test_parameters_of_every_layer():
    model = lenet5()
    sizes = [count(layer) for layer in model.children()]
    assert sizes == [156, 12, 1516, 32, 48120, 10164, 0]  # C1 S2 C3 S4 C5 F6 RBF, Sec. II-B
    assert count(model) == 60_000
    assert count(lenet5_modern()) == 61_706
    assert set(MODELS) == {"lenet5", "lenet5_modern"}


def test_connections_are_those_of_the_paper():
    """Every product and every bias at every place: 340,908 (Sec. II-B)."""
    model, places = lenet5(), {}
    for name, layer in model.named_children():
        layer.register_forward_hook(lambda _, __, out, n=name: places.update({n: out[0].numel()}))
    model(torch.zeros(1, 1, 32, 32))
    kernels = sum(len(inputs) for inputs in C3_INPUTS)
    c3_maps = len(C3_INPUTS)
    connections = {
        "c1": places["c1"] * (25 + 1),
        "s2": places["s2"] * (4 + 1),
        "c3": places["c3"] // c3_maps * (kernels * 25 + c3_maps),
        "s4": places["s4"] * (4 + 1),
        "c5": places["c5"] * (400 + 1),
        "f6": places["f6"] * (120 + 1),
        "output": places["output"] * 84,
    }
    wanted = [122_304, 5_880, 151_600, 2_000, 48_120, 10_164, 840]
    assert list(connections.values()) == wanted
    assert sum(connections.values()) == 340_908


@pytest.mark.parametrize("name", MODELS)
def test_shapes_of_every_stage(name):
    model, shapes = MODELS[name](), []
    for layer in model.children():
        layer.register_forward_hook(lambda _, __, out: shapes.append(tuple(out.shape[1:])))
    assert model(torch.zeros(2, 1, 32, 32)).shape == (2, 10)
    fig2 = [(6, 28, 28), (6, 14, 14), (16, 10, 10), (16, 5, 5), (120, 1, 1), (84,), (10,)]
    modern = [(6, 28, 28), (16, 10, 10), (120,), (84,), (10,)]
    assert shapes == (fig2 if name == "lenet5" else modern)
    assert MODELS[name](num_classes=26)(torch.zeros(2, 1, 32, 32)).shape == (2, 26)


def test_table_1():
    assert [len(inputs) for inputs in C3_INPUTS] == [3] * 6 + [4] * 9 + [6]
    assert sum(map(len, C3_INPUTS)) == 60
    assert all(len(set(inputs)) == len(inputs) for inputs in C3_INPUTS)
    assert len(set(C3_INPUTS)) == 16
    assert [sum(i in inputs for inputs in C3_INPUTS) for i in range(6)] == [10] * 6


def test_sparse_convolution_equals_a_loop_over_its_connections():
    layer, x = SparseConv2d().double(), torch.randn(2, 6, 14, 14).double()
    kernels = iter(layer.weight)
    for k, inputs in enumerate(C3_INPUTS):
        wanted = layer.bias[k] + sum(
            F.conv2d(x[:, i : i + 1], next(kernels)[None, None]) for i in inputs
        )
        torch.testing.assert_close(layer(x)[:, k : k + 1], wanted)


def test_subsampling_sums_four_inputs():
    layer, x = Subsampling(3).double(), torch.randn(2, 3, 6, 6).double()
    total = x[:, :, ::2, ::2] + x[:, :, 1::2, ::2] + x[:, :, ::2, 1::2] + x[:, :, 1::2, 1::2]
    torch.testing.assert_close(layer(x), total * layer.weight + layer.bias)


def test_squashing():
    x = torch.tensor([1.0, -1.0, 0.0, 50.0], dtype=torch.float64)
    wanted = torch.tensor([1.0, -1.0, 0.0, 1.7159], dtype=torch.float64)
    torch.testing.assert_close(squash(x), wanted, atol=1e-4, rtol=0)
    # the second derivative is extreme at 1 and -1 (Appendix A)
    grid = torch.linspace(0.0, 3.0, 3001, dtype=torch.float64, requires_grad=True)
    first = torch.autograd.grad(squash(grid).sum(), grid, create_graph=True)[0]
    second = torch.autograd.grad(first.sum(), grid)[0]
    assert grid[second.abs().argmax()].item() == pytest.approx(1.0, abs=0.02)


def test_initial_weights():
    model = lenet5()
    fans = {"c1": 25, "s2": 4, "s4": 4, "c5": 400, "f6": 120}
    for name, fan_in in fans.items():
        values = torch.cat([p.flatten() for p in getattr(model, name).parameters()])
        assert values.abs().max() <= 2.4 / fan_in
        assert values.abs().max() > 0.5 * 2.4 / fan_in
    weights = iter(model.c3.weight)
    for k, inputs in enumerate(C3_INPUTS):
        limit = 2.4 / (25 * len(inputs))
        assert all(0.7 * limit < next(weights).abs().max() <= limit for _ in inputs)
        assert model.c3.bias[k].abs() <= limit


def test_bitmaps():
    codes = digit_bitmaps()
    assert codes.shape == (10, 84)
    assert set(codes.flatten().tolist()) == {-1.0, 1.0}
    distances = (codes[:, None] - codes).square().sum(2) + 1000 * torch.eye(10)
    assert distances.min() >= 4 * 3  # no two digits share all but a few pixels
    assert not any(p.requires_grad for p in RBF().buffers())
    more = digit_bitmaps(40)
    assert torch.equal(more[:10], codes)
    assert len({tuple(code) for code in more.tolist()}) == 40
    assert digit_bitmaps(4).shape == (4, 84)


def test_rbf_is_eq_7():
    x = torch.randn(3, 84)
    y = RBF()(x)
    for b in range(3):
        for i in range(10):
            wanted = sum((x[b, j] - digit_bitmaps()[i, j]) ** 2 for j in range(84))
            assert y[b, i].item() == pytest.approx(wanted.item(), rel=1e-4)


def test_loss_is_eq_9():
    y = torch.rand(5, 10).double() * 4
    labels = torch.tensor([3, 1, 0, 9, 9])
    for j in (0.1, 1.0, 7.0):
        terms = [
            y[p, d] + math.log(math.exp(-j) + sum(math.exp(-y[p, i]) for i in range(10)))
            for p, d in enumerate(labels)
        ]
        wanted = sum(terms) / 5
        assert eq9_loss(-y, labels, j).item() == pytest.approx(wanted.item(), rel=1e-9)
    far = torch.full((1, 10), -500.0, requires_grad=True)  # nothing under- or overflows
    loss = eq9_loss(far, labels[:1])
    loss.backward()
    assert loss.item() == pytest.approx(499.0)


def test_modern_equals_the_same_layers_in_sequence():
    model = lenet5_modern().double()
    reference = nn.Sequential(
        nn.Conv2d(1, 6, 5), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10),
    ).double()  # fmt: skip
    for ours, theirs in zip(model.parameters(), reference.parameters(), strict=True):
        theirs.data = ours.data.reshape(theirs.shape).clone()
    x = torch.randn(4, 1, 32, 32).double()
    torch.testing.assert_close(model(x), reference(x))
    model(x).square().sum().backward()
    reference(x).square().sum().backward()
    for ours, theirs in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(ours.grad.reshape(theirs.shape), theirs.grad)


def test_lenet5_equals_the_equations_written_out():
    """The whole network, layer by layer, with plain loops where the paper has sums."""
    model, x = lenet5().double(), torch.randn(2, 1, 32, 32).double()

    def f(a):
        return 1.7159 * torch.tanh(2 * a / 3)

    def pool(a, layer):
        windows = a.unfold(2, 2, 2).unfold(3, 2, 2).sum((4, 5))
        return f(windows * layer.weight + layer.bias)

    a = f(F.conv2d(x, model.c1.weight, model.c1.bias))
    a = pool(a, model.s2)
    weights = iter(model.c3.weight)
    maps = []
    for k, inputs in enumerate(C3_INPUTS):
        maps.append(sum(F.conv2d(a[:, i : i + 1], next(weights)[None, None]) for i in inputs))
        maps[-1] = maps[-1] + model.c3.bias[k]
    a = pool(f(torch.cat(maps, 1)), model.s4)
    a = f(a.flatten(1) @ model.c5.weight.flatten(1).T + model.c5.bias)
    a = f(a @ model.f6.weight.T + model.f6.bias)
    y = torch.stack([((a - code) ** 2).sum(1) for code in digit_bitmaps().double()], 1)
    torch.testing.assert_close(model(x), -y)


def test_sdlm_samples_have_the_hessian_as_covariance():
    torch.manual_seed(0)
    centres = digit_bitmaps().double()
    x = (0.97 * centres[3] + 0.03 * centres[8])[None] + 0.02 * torch.randn(1, 84).double()
    x = x.requires_grad_()
    label = torch.tensor([3])

    def loss(x):
        return eq9_loss(-(x - centres).square().sum(1)[None], label, 1.0)

    hessian = torch.autograd.functional.hessian(loss, x)[0, :, 0]
    random = torch.Generator().manual_seed(0)
    samples = torch.cat([output_sample(x.detach(), centres, random, 1.0) for _ in range(20000)])
    covariance = samples.T @ samples / len(samples)
    assert (covariance - hessian).abs().max() < 0.05 * hessian.abs().max()


def test_sdlm_estimates_the_gauss_newton_diagonal():
    torch.manual_seed(0)
    model, images = lenet5(), torch.rand(8, 1, 32, 32)
    parameter = model.f6.bias
    optimizer = SDLM([parameter], lr=0.1)
    random = torch.Generator().manual_seed(0)
    estimates = []
    for _ in range(100):
        optimizer.estimate(model, images, random)
        estimates.append(optimizer.state[parameter]["curvature"])
    exact = torch.zeros_like(parameter)
    for image in images.split(1):
        x = model.features(image)
        # f'(a) from f: f = A tanh(S a), so f' = A S - S f^2 / A, and x depends on its bias only
        slope = (1.7159 * 2 / 3 - 2 / 3 / 1.7159 * x.detach() ** 2)[0]
        y = lambda x: eq9_loss(-(x - model.output.centres).square().sum(1)[None], torch.tensor([0]))  # noqa: E731
        hessian = torch.autograd.functional.hessian(y, x.detach())[0, :, 0]
        exact += hessian.diagonal() * slope**2 / len(images)
    torch.testing.assert_close(torch.stack(estimates).mean(0), exact, rtol=0.05, atol=0.01)


def test_sdlm_step():
    weight = nn.Parameter(torch.tensor([1.0, 2.0]))
    optimizer = SDLM([weight], lr=0.5, mu=0.25)
    optimizer.state[weight]["curvature"] = torch.tensor([0.0, 0.75])
    weight.grad = torch.tensor([1.0, 1.0])
    optimizer.step()
    assert weight.tolist() == [1 - 0.5 / 0.25, 2 - 0.5 / 1.0]


def test_sdlm_trains_resumes_and_is_for_lenet5(refused):
    flags = ["--quiet", "--optimizer", "sdlm", "--limit", "64", "--epochs", "2", "--val", "0"]
    train.main([*flags, "--run-dir", "a"])
    train.main([*flags, "--run-dir", "b", "--max-steps", "3"])  # inside the second epoch
    train.main(["--quiet", "--resume", "--run-dir", "b"])
    a, b = (torch.load(f"{folder}/last.pt") for folder in "ab")
    assert all(torch.equal(a["model"][k], b["model"][k]) for k in a["model"])
    assert "adamw" in refused(train.main, ["--optimizer", "sdlm", "--model", "lenet5_modern"])


STEPS = {  # a weight of 1 after two steps of 0.1 with the gradient 2, by each method's equations
    "sgd": 1 - 0.1 * 2 - 0.1 * 2,
    "momentum": 1 - 0.1 * 2 - 0.1 * (0.9 * 2 + 2),
    "rmsprop": 1 - 0.1 * 2 / (0.01 * 4) ** 0.5 - 0.1 * 2 / ((0.99 * 0.01 + 0.01) * 4) ** 0.5,
    "adam": 1 - 0.1 - 0.1,
    "adamw": ((1 - 0.1 * 0.05) - 0.1) * (1 - 0.1 * 0.05) - 0.1,
}


@pytest.mark.parametrize("name", train.OPTIMIZERS)
def test_optimisers_step_by_their_equations_and_train(name, refused):
    weight = nn.Parameter(torch.tensor([1.0]))
    optimizer = train.OPTIMIZERS[name]([weight], 0.1)
    for _ in range(2):
        weight.grad = torch.tensor([2.0])
        optimizer.step()
    assert weight.item() == pytest.approx(STEPS[name], abs=1e-5)
    flags = ["--quiet", "--limit", "64", "--epochs", "2", "--val", "0", "--run-dir", name]
    train.main([*flags, "--optimizer", name, "--max-steps", "1"])
    assert torch.load(f"{name}/last.pt")["config"]["flags"]["optimizer"] == name
    train.main(["--quiet", "--resume", "--run-dir", name])
    assert torch.load(f"{name}/last.pt")["epoch"] == 2
    other = "sgd" if name != "sgd" else "adam"
    if name != "momentum":  # sgd without it: torch has one class for both
        train.main([*flags[:-1], f"{name}-2", "--optimizer", name, "--max-steps", "1"])
        argv = ["--quiet", "--resume", "--run-dir", f"{name}-2", "--optimizer", other]
        assert "its optimizer differs" in refused(train.main, argv)


def test_penalties_are_of_the_weights_alone(refused):
    model = lenet5_modern()
    value = train.penalty(model, 0.1, 0.3)
    values = torch.cat([layer.weight.detach().flatten() for layer in model.children()])
    expected = 0.1 * values.abs().sum() + 0.3 / 2 * values.square().sum()
    torch.testing.assert_close(value.detach(), expected)
    value.backward()
    w = model.f6.weight
    torch.testing.assert_close(w.grad, 0.1 * w.detach().sign() + 0.3 * w.detach())
    assert model.f6.bias.grad is None
    assert train.penalty(model, 0.0, 0.0) == 0
    sizes = {}
    for flag in ("--seed", "--l1", "--l2"):  # the first changes nothing
        argv = ["--quiet", "--limit", "64", "--epochs", "2", "--val", "0", "--run-dir", flag[2:]]
        train.main([*argv, flag, "0" if flag == "--seed" else "1.0"])
        state = weights(flag[2:])
        sizes[flag] = sum(v.abs().sum() for k, v in state.items() if k.endswith("weight"))
    assert max(sizes["--l1"], sizes["--l2"]) < sizes["--seed"]
    assert "whole parameters" in refused(train.main, ["--fsdp", "--l1", "0.1"])
    assert "--l2" in refused(train.main, ["--l2", "-1"])


@pytest.mark.parametrize("name", MODELS)
def test_overfits_one_batch(name):
    torch.manual_seed(0)
    model, x, labels = MODELS[name](), torch.rand(16, 1, 32, 32), torch.arange(16) % 10
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.003)
    for _ in range(200):
        loss = train.criterion(model(x), labels, name)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (model(x).argmax(1) == labels).all()


def test_a_rate_too_high_ends_in_one_line(refused):
    line = refused(train.main, ["--quiet", "--model", "lenet5_modern", "--lr", "1e9"])
    assert "step" in line
    assert "1e+09" in line
    assert not list(Path().rglob("*.pt"))


def test_huge_weights_with_a_finite_loss_are_no_success(refused):
    """The rate leaves the training losses finite, but not the measured ones."""
    flags = ["--quiet", "--limit", "64", "--epochs", "1", "--lr", "1e9"]
    refused(train.main, [*flags, "--model", "lenet5_modern", "--run-dir", "run"])
    assert not list(Path().rglob("*.pt"))
    assert Path("run/metrics.jsonl").read_text() == ""


def test_a_poisoned_loss_stops_lenet5(refused, monkeypatch):
    monkeypatch.setattr(train, "criterion", lambda logits, *_: logits.sum() * float("nan"))
    assert "step 1" in refused(train.main, ["--quiet", "--limit", "64"])


def draw(count):
    return Draw([("test", 0)], count, slice(0, count), torch.device("cpu"))


def test_affine_without_amounts_is_the_identity():
    x = torch.rand(5, 3, 9, 7)
    torch.testing.assert_close(train.random_affine(x, draw(5)), x)


@pytest.mark.parametrize(
    ("amounts", "matrix"),
    [
        ({"degrees": 90}, lambda r: [[np.cos(r[0]), -np.sin(r[0])], [np.sin(r[0]), np.cos(r[0])]]),
        ({"scale": 0.3}, lambda r: [[1 + 0.3 * r[3], 0], [0, 1 + 0.3 * r[3]]]),
        ({"squeeze": 0.3}, lambda r: [[1 + 0.3 * r[4], 0], [0, 1 / (1 + 0.3 * r[4])]]),
        ({"shear": 0.3}, lambda r: [[1, -0.3 * r[5]], [0, 1]]),
    ],
)
def test_affine_moves_points_as_its_matrix_says(amounts, matrix):
    """A blob's centre of mass, before and after."""
    count, size = 40, 65
    y, x = torch.meshgrid(*[torch.arange(float(size)) - size // 2] * 2, indexing="ij")
    blob = torch.exp(-((x - 10) ** 2 + (y - 4) ** 2) / 8).expand(count, 1, size, size)
    out = train.random_affine(blob, draw(count), **amounts)[:, 0]
    mass = out.sum((1, 2))
    centre = torch.stack([(out * x).sum((1, 2)) / mass, (out * y).sum((1, 2)) / mass], 1)
    numbers = draw(count).uniform(-1, 1, 6).double().numpy()
    numbers[:, 0] *= np.pi / 2
    for row, found in zip(numbers, centre, strict=True):
        wanted = np.array(matrix(row)) @ [10, 4]
        if amounts == {"degrees": 90}:  # either sense of rotation is one
            assert np.linalg.norm(found) == pytest.approx(np.linalg.norm(wanted), abs=0.1)
        else:
            assert found.numpy() == pytest.approx(wanted, abs=0.1)


def test_affine_translates_by_pixels():
    x = torch.zeros(200, 1, 33, 33)
    x[:, :, 16, 16] = 1
    out = train.random_affine(x, draw(200), translate=3)[:, 0]
    axis = torch.arange(33.0) - 16
    shifts = torch.stack([(out.sum(1) * axis).sum(1), (out.sum(2) * axis).sum(1)], 1)
    assert shifts.abs().max() <= 3.001
    assert shifts.abs().max() > 2.8
    assert (shifts[:, 0] - shifts[:, 1]).abs().max() > 1


def test_distortions_of_parts_are_parts_of_those_of_the_whole():
    dev = Device(processes.device_args())
    pixels = torch.randint(0, 256, (24, 1, 32, 32)).byte()
    facts, batches = {"classes": ["a"], "mean": [0.1], "std": [0.8]}, []
    for dev.world, dev.rank in ((1, 0), (2, 0), (2, 1)):
        part = ImageSet("train", Held(pixels, dev), torch.zeros(24), facts, dev).batches(
            8, augment=train.distort
        )
        part.seek(1, 2)
        batches.append(next(iter(part))[0])
    torch.testing.assert_close(torch.cat(batches[1:]), batches[0])


@pytest.mark.parametrize("flags", [["--precision", "bf16"], ["--precision", "fp16"], ["--distort"]])
def test_other_paths_of_the_loop(flags):
    metrics = train.main(["--quiet", "--limit", "64", "--epochs", "1", "--run-dir", "run", *flags])
    assert all(math.isfinite(value) for value in metrics.values())
    assert all(torch.isfinite(t).all() for t in weights("run").values())


@pytest.mark.parametrize("change", ["--batch-size 128", "--batch-size 8", "--limit 96"])
def test_the_rate_falls_as_before_after_resuming_with_other_steps(change):
    """By the share of the training that is over, whatever the steps of an epoch, down to 0."""
    flags = ["--quiet", "--limit", "256", "--val", "0", "--epochs", "4", "--run-dir", "run"]
    train.main([*flags, "--max-steps", "12"])  # the middle of the second epoch of eight steps
    train.main(["--quiet", "--resume", "--run-dir", "run", *change.split()])
    rows = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    rates = [row["lr"] for row in rows if not row.get("final")]
    wanted = [2e-3 * train.warmup_and_cosine(epoch / 4) for epoch in range(1, 5)]
    assert rates == pytest.approx(wanted)
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] == pytest.approx(0, abs=1e-12)


def test_a_tenth_of_larger_sets_than_the_digits_is_for_validation():
    def val(*argv):
        return train.parse_args(list(argv)).val

    assert val() == val("--data", "digits") == 137
    assert val("--data", "mnist") == val("--data", "folder:x") == 5000
    assert val("--paper") == val("--paper", "--data", "folder:x") == 0
    assert val("--data", "mnist", "--val", "137") == 137
    make_tree(count=25, sizes=[(20, 20)])
    train.main(["--quiet", "--data", "folder:tree", "--max-steps", "1", "--run-dir", "run"])
    args = train.parse_args(["--resume", "--run-dir", "run"])
    parts = train.load_images(args, Device(args), 28, 1)
    assert [len(part) for part in parts] == [36, 4, 10]  # at most a tenth, again after resuming


def test_more_classes_than_digits():
    make_tree(classes="abcdefghijkl", count=4, sizes=[(30, 20)])
    metrics = train.main(["--quiet", "--data", "folder:tree", "--epochs", "1", "--val", "0"])
    again = train.main(["--quiet", "--evaluate", "runs/lenet/lenet5-folder-tree/last.pt"])
    assert again["test_loss"] == pytest.approx(metrics["test_loss"])
    assert (Path("runs/lenet/evaluate-lenet5-folder-tree") / "confusion.png").exists()


# ---------------------------------------------------------------------- sample.py, claims.py


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "run"
    metrics = train.main(["--quiet", "--epochs", "12", "--run-dir", str(folder)])
    return folder / "last.pt", metrics


def draw_digits(folder):
    """Test digits as a user may have them: larger, in a corner, dark on light, any mode."""
    from sklearn.datasets import load_digits

    raw, files, labels = load_digits(), [], []
    for number in range(20):
        small = Image.fromarray((raw.images[number] * 255 / 16).astype(np.uint8))
        page = Image.new("L", (300, 200))
        page.paste(small.resize((120, 120), Image.Resampling.BICUBIC), (150, 20))
        if number % 2:
            page = Image.fromarray(255 - np.asarray(page))
        page = page.convert(["L", "RGB", "P", "RGBA"][number % 4])
        files.append(Path(folder, f"{number}.png"))
        page.save(files[-1])
        labels.append(str(raw.target[number]))
    return files, labels


def test_sample_reads_images_of_any_size_and_mode(trained, capsys):
    Path("scans").mkdir()
    files, labels = draw_digits("scans")
    found = sample.main(["--checkpoint", str(trained[0]), "scans", "--out", "out"])
    right = sum(found[str(f)][0] == label for f, label in zip(files, labels, strict=True))
    assert right >= 17
    text = capsys.readouterr().out
    assert text.count("dark on light") == text.count("light on dark") == 10
    assert Path("out/predictions.png").exists()


def test_sample_without_input_shows_mistakes_and_features(trained, capsys, refused):
    checkpoint, metrics = trained
    found = sample.main(["--checkpoint", str(checkpoint), "--out", "out"])
    assert found["mistakes"] == round((1 - metrics["test_accuracy"]) * 359)
    assert {p.name for p in Path("out").iterdir()} == {"mistakes.png", "features.png"}
    line = refused(sample.main, ["--checkpoint", str(checkpoint), "--out", "out"])
    assert "out/features.png is there already" in line


def test_sample_takes_the_newest_run_and_makes_a_new_folder(monkeypatch):
    train.main(["--quiet", "--epochs", "1", "--limit", "64"])
    monkeypatch.setattr("common.plot.image_grid", lambda images, path, *_: Path(path).touch())
    for _ in range(2):
        sample.main([])
    made = {p.name for p in Path("runs/lenet/lenet5-digits").glob("samples*")}
    assert made == {"samples", "samples-2"}


def test_sample_errors(trained, refused):
    assert "train.py" in refused(sample.main, [])
    checkpoint = ["--checkpoint", str(trained[0])]
    Path("bad.png").write_bytes(b"no image")
    for inputs in (["bad.png"], ["nothing.png"]):
        assert inputs[0] in refused(sample.main, [*checkpoint, *inputs])
    Path("empty").mkdir()
    assert "empty" in refused(sample.main, [*checkpoint, "empty"])


def test_mnist_preprocessing():
    ink = np.zeros((90, 70), np.float32)
    ink[10:70, 30:45] = 1
    image = fit(ink, 20, 28)[0, 0].double()
    rows, columns = (image.sum(axis).nonzero() for axis in (1, 0))
    assert len(rows) == 20
    assert len(columns) == 5
    place = torch.arange(28.0).double()
    assert (image.sum(1) @ place / image.sum()).item() == pytest.approx(13.5, abs=0.51)
    assert (image.sum(0) @ place / image.sum()).item() == pytest.approx(13.5, abs=0.51)
    assert fit(np.zeros((5, 5), np.float32), 20, 28).sum() == 0


def test_claims_run_resume_and_summarise(capsys):
    argv = ["data", "--data", "digits", "--seeds", "0", "1", "--epochs", "1", "--out", "out"]
    summary = claims.main(argv)
    assert set(summary) == {"359", "719", "1438", "1438-distorted"}
    written = json.loads(Path("out/claim_data.json").read_text())
    assert len(written["359"]["test_accuracy"]["values"]) == 2
    assert written["359"]["command"].startswith("python lenet/train.py --paper")
    assert Path("out/claim_data.png").exists()
    before = {p: p.stat().st_mtime_ns for p in Path("runs").rglob("*")}
    assert claims.main(argv) == summary  # skipped, as all is done
    assert before == {p: p.stat().st_mtime_ns for p in Path("runs").rglob("*")}


@pytest.mark.slow
def test_quick_reaches_the_number_of_the_readme():
    assert train.main(["--quiet"])["test_accuracy"] >= 0.97


def test_features_are_the_outputs_of_f6():
    model = LeNet5()
    x = torch.rand(2, 1, 32, 32)
    wanted = -(model.features(x)[:, None] - digit_bitmaps()).square().sum(2)
    torch.testing.assert_close(model(x), wanted)
