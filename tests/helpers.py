"""What the tests of several milestones use; no milestone has to be there."""

import functools
import importlib
import math
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn


def count(module: nn.Module) -> int:
    """The number of learnt parameters."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def perturb(model: nn.Module) -> nn.Module:
    """Norms, biases and what begins at zero made random, so that none hides a wrong wire."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            noise = torch.rand(tensor.shape, generator=generator, dtype=torch.float64)
            if tensor.dim() == 1:
                scale = "weight" in name or "var" in name
                tensor.copy_(noise + 0.5 if scale else noise - 0.5)
            elif tensor.is_floating_point() and not tensor.any():
                tensor.copy_(noise / 5 - 0.1)
    return model


def dropped(model: nn.Module, *inputs: torch.Tensor) -> dict[tuple[int, ...], int]:
    """The shapes of what dropout is applied to in training, and how often."""
    seen, hooks = Counter(), []
    for module in model.train().modules():
        if type(module).__name__ == "Dropout":
            note = lambda _module, given, _out: seen.update([tuple(given[0].shape)])  # noqa: E731
            hooks.append(module.register_forward_hook(note))
    model(*inputs)
    for hook in hooks:
        hook.remove()
    return dict(seen)


SETTINGS = {
    nn.Conv2d: ("kernel_size", "stride", "padding", "dilation", "groups"),
    nn.BatchNorm2d: ("eps", "momentum"),
}


def structure(model: nn.Module) -> tuple[dict, dict]:
    """By names the shapes of what a network holds, and how its convolutions and norms are set."""
    layers = {
        name: [getattr(module, setting) for setting in settings]
        for name, module in model.named_modules()
        for kind, settings in SETTINGS.items()
        if isinstance(module, kind)
    }
    return {name: value.shape for name, value in model.state_dict().items()}, layers


def compare(ours, theirs, images, training, name=str, statistics=True):
    """Two classifiers with equal weights: logits, gradients of images and of all parameters, and
    running statistics, which `training` changes; `name` says what one of theirs is called here."""
    outputs = []
    for model in (ours, theirs):
        x = images.clone().requires_grad_()
        logits = model.train(training)(x)
        (logits * torch.linspace(-1, 1, logits.numel()).view_as(logits)).sum().backward()
        outputs.append((logits, x.grad))
    torch.testing.assert_close(*outputs, rtol=1e-8, atol=1e-10)
    wanted = {name(key): p.grad for key, p in theirs.named_parameters()}
    assert wanted.keys() == {key for key, _ in ours.named_parameters()}
    for key, p in ours.named_parameters():
        atol = 1e-9 * wanted[key].abs().max().item() + 1e-11
        torch.testing.assert_close(p.grad, wanted[key], rtol=1e-7, atol=atol, msg=key)
    state = ours.state_dict()
    for key, value in theirs.state_dict().items() if statistics else ():
        torch.testing.assert_close(state[name(key)], value, msg=key)


def modes(script, monkeypatch, make: str = "build") -> set[tuple[bool, bool]]:
    """Notes how a script's networks are called from now on: in training, and with gradients.

    It has to be both or neither: dropout is on while it trains, and off while it is measured.
    """
    seen, original = set(), getattr(script, make)

    def made(*args):
        model = original(*args)
        model.register_forward_hook(
            lambda module, *_: seen.add((module.training, torch.is_grad_enabled()))
        )
        return model

    monkeypatch.setattr(script, make, made)
    return seen


BOTH = {(True, True), (False, False)}  # of `modes`


class Undecided(nn.Module):
    """Equal logits for all of ten classes, whatever it sees: its loss is the logarithm of ten."""

    def __init__(self):
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(10))

    def forward(self, x):
        return self.logits.expand(len(x), -1)


def check_mean_loss(train, *more):
    """What a script's `evaluate` returns is a mean over images, however many are in a batch."""
    args = train.parse_args(["--data", "digits", "--size", "8", "--quiet"])
    dev = train.Device(args)
    test = train.load_images(args, dev, args.size)[2]
    assert len(test) > 250  # more than one batch
    found = train.evaluate(Undecided(), test, dev, *more)
    assert found["test_loss"] == pytest.approx(math.log(10))


def weights(folder: str | Path) -> dict[str, torch.Tensor]:
    """The model of a run's last checkpoint."""
    return torch.load(Path(folder, "last.pt"))["model"]


@functools.cache
def few_digits(count):
    """In place of scikit-learn's load_digits: the first `count` of them."""
    from sklearn.datasets import load_digits

    whole = load_digits()
    few = SimpleNamespace(images=whole.images[:count], target=whole.target[:count])
    return lambda: few


def check_published(sample, theirs, entry, argv=(), inputs=None):
    """A sample.py answers with the weights of a file as `theirs` does, of which they are.

    The image has the size that `entry`, torchvision's published weights, says; `inputs` are the
    mean and std for `theirs`, if they aren't those of `entry`. Returns what sample.py found.
    """
    cut, random = entry.transforms(), torch.Generator().manual_seed(1)
    (side,), (size,) = cut.resize_size, cut.crop_size
    pixels = torch.randint(0, 256, (side, side, 3), dtype=torch.uint8, generator=random)
    Image.fromarray(pixels.numpy()).save("noise.png")
    torch.save(theirs.state_dict(), "theirs.pth")
    argv = ["--weights", "theirs.pth", *argv, "noise.png", "--out", "out"]
    found = sample.main(argv)["noise.png"]
    begin = (side - size) // 2
    middle = pixels.permute(2, 0, 1)[:, begin : begin + size, begin : begin + size] / 255
    mean, std = inputs or (cut.mean, cut.std)
    x = (middle - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    with torch.no_grad():
        shares, places = theirs.eval()(x[None]).softmax(1)[0].topk(5)
    assert [name for name, _ in found] == [entry.meta["categories"][i] for i in places.tolist()]
    torch.testing.assert_close(torch.tensor([p for _, p in found]), shares, rtol=1e-3, atol=1e-6)
    assert Path("out/predictions.jpg").exists()
    return found


def run_of(folder: str, *argv: str, new: bool = False) -> str:
    """Trains a milestone's network for a step, on little; returns the run's folder, which is called
    like the milestone, or `new`."""
    if not Path(__file__).parents[1].joinpath(folder, "train.py").exists():
        pytest.skip(f"a tree without {folder}")
    train = importlib.import_module(f"{folder}.train")
    flags = [*argv, "--max-steps", "1", "--limit", "16", "--quiet"]
    flags += [] if new else ["--run-dir", folder]
    if 0 < train.parse_args([*argv]).val <= 1000:
        flags += ["--val", "4"]
    train.main(flags)
    return folder


def make_tree(root="tree", classes=("cat", "dog"), count=6, names=("",), sizes=((20, 14, 3),)):
    """Images of noise, brighter from class to class: ROOT/NAME/CLASS/NUMBER.png.

    `sizes` are taken in turn: (H, W, 3) in colour, (H, W) in grey.
    """
    random = np.random.default_rng(0)
    for name in names:
        for number, label in enumerate(classes):
            folder = Path(root, name, label)
            folder.mkdir(parents=True)
            low = 127 * number // max(1, len(classes) - 1)
            for i in range(count):
                pixels = random.integers(low, low + 128, sizes[i % len(sizes)])
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.png")
