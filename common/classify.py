"""What the scripts of image classifiers share: images that fit, the user's files, predictions."""

import argparse
import itertools
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from common import cli, fail
from common.data.files import SUFFIXES, UNREADABLE, ImageFiles
from common.data.images import ImageSet, load_images
from common.device import Device
from common.run import progress


def check_images(
    model: nn.Module, args: argparse.Namespace, dev: Device, size: int, channels: int = 3
) -> None:
    """Ends in one line unless a batch of images of `size` pixels passes `model`.

    Runs it on shapes alone, without numbers, as one part of a training step would.
    """
    batch = min(args.batch_size, getattr(args, "limit", None) or args.batch_size)
    batch = max(1, batch // (dev.world * dev.accumulate))
    meta = {name: torch.empty_like(t, device="meta") for name, t in model.state_dict().items()}
    images = torch.empty(batch, channels, size, size, device="meta")
    try:
        with torch.no_grad():
            torch.func.functional_call(model, meta, images)
    except (RuntimeError, ValueError) as error:
        if "more than 1 value per channel" in str(error):
            fail(f"batch norm can't train on one image of {size} pixels: raise --batch-size")
        fail(f"images of {size}x{size} pixels are too small for {args.model}: raise --size")


def find_images(inputs: list[Path]) -> list[Path]:
    """The files named, and those in the folders named."""
    files = []
    for path in inputs:
        inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES)
        if path.is_dir() and not inside:
            fail(f"{path} holds no images")
        files += inside if path.is_dir() else [path]
    return files


def names_for(files: list[Path]) -> list[str]:
    """A name for what is made of each file; files of one name are told apart by -2, -3, …"""
    names: list[str] = []
    for path in files:
        tries = itertools.chain([path.stem], (f"{path.stem}-{n}" for n in itertools.count(2)))
        names.append(next(name for name in tries if name not in names))
    return names


def open_model(
    args: argparse.Namespace, milestone: str, models: dict, build: Callable | None = None
) -> tuple[nn.Module, argparse.Namespace, dict, Device]:
    """The trained model of a sample.py, the flags it was trained with, its data's facts, a device.

    `build(flags, num_classes)` makes the network where the factory needs more than the classes.
    """
    checkpoint, flags, dev = cli.open_run(args, milestone, models)
    facts = checkpoint["dataset"]
    num_classes = len(facts["classes"])
    model = build(flags, num_classes) if build else models[flags.model](num_classes=num_classes)
    model.load_state_dict(checkpoint["model"])
    print(f"{flags.model} trained on {flags.data}, from {args.checkpoint}")
    return model.to(dev.device).eval(), flags, facts, dev


def load_parts(
    flags: argparse.Namespace, dev: Device, facts: dict
) -> tuple[ImageSet, ImageSet | None, ImageSet]:
    """The parts of the data that a model was trained on, cut as in evaluation."""
    mean, std = facts["mean"], facts["std"]
    side = facts.get("side") or old_side(flags.size) * flags.data.startswith("folder:")
    return load_images(flags, dev, flags.size, mean=mean, std=std, whole=side)


def load_test(flags: argparse.Namespace, dev: Device, facts: dict) -> ImageSet:
    """The test part of the data that a model was trained on, as it was evaluated."""
    return load_parts(flags, dev, facts)[2]


def old_side(size: int) -> int:
    """The square that images are cut from, for checkpoints whose facts don't tell: 8/7 of size."""
    return -(-size * 8 // 7)


@torch.inference_mode()
def classify(
    files: list[Path], model: nn.Module, facts: dict, size: int, dev: Device, out: Path
) -> dict[str, list[tuple[str, float]]]:
    """Prints the five likeliest classes of each file and writes predictions.jpg.

    Files are read as in evaluation: their largest square, scaled to `facts["side"]`, and of that
    the middle `size` pixels.
    Returns the classes with their probabilities by file.
    """
    from common.plot import image_grid

    colours = [is_grey(path) for path in files]
    side = facts.get("side") or old_side(size)
    images = ImageFiles([str(path) for path in files], side)
    blank = torch.zeros(len(files), dtype=torch.int64)
    images = ImageSet("test", images, blank, facts, dev, size)
    found, shown = {}, []
    batches = progress(torch.arange(len(files)).split(32), dev, "reading", len(files))
    for part in batches:
        pixels, _ = images.examples(part)
        with dev.autocast():
            probabilities = model(pixels).float().softmax(1)
        shares, places = probabilities.topk(min(5, len(facts["classes"])))
        for i, share, place in zip(part.tolist(), shares.tolist(), places.tolist(), strict=True):
            names = [facts["classes"][k] for k in place]
            found[str(files[i])] = list(zip(names, share, strict=True))
            grey = " (grey: made RGB)" if colours[i] else ""
            answers = ", ".join(f"{n} {p:.1%}" for n, p in found[str(files[i])])
            print(f"{files[i]}{grey}: {answers}")
        shown += colour(pixels, facts) if len(shown) < 100 else []
    titles = [f"{answers[0][0]} ({answers[0][1]:.0%})" for answers in found.values()]
    image_grid(shown[:100], out / "predictions.jpg", titles[:100], columns=8, size=1.3)
    print(f"wrote {out / 'predictions.jpg'}{', of the first 100' if len(files) > 100 else ''}")
    return found


@torch.inference_mode()
def show_predictions(
    model: nn.Module, test: ImageSet, dev: Device, out: Path, count: int = 40
) -> int:
    """Writes predictions.jpg: test images with the answers; returns how many of them are right."""
    from common.plot import image_grid

    order = torch.randperm(len(test), generator=torch.Generator().manual_seed(0))[:count]
    images, labels = test.examples(order)
    with dev.autocast():
        answers = model(images).argmax(1)
    classes, right = test.facts["classes"], int((answers == labels).sum())
    titles = [
        classes[a] if a == t else f"{classes[t]}→{classes[a]}"
        for a, t in zip(answers.tolist(), labels.tolist(), strict=True)
    ]
    heading = f"{right} of {len(order)} test images are recognised; others: truth → answer"
    image_grid(colour(images, test.facts), out / "predictions.jpg", titles, 8, 1.2, heading)
    print(f"{heading}; wrote {out / 'predictions.jpg'}")
    return right


def is_grey(path: Path) -> bool:
    """Whether a file has no colour; one that can't be read ends in one line."""
    try:
        with Image.open(path) as image:
            return image.mode in ("1", "L", "LA", "I", "F", "I;16")
    except UNREADABLE as error:
        fail(f"{path} is not a readable image ({error})")


def colour(images: Tensor, facts: dict) -> list[Tensor]:
    """Normalised images (N, C, H, W) as they look, 0 to 1."""
    mean, std = (torch.tensor(facts[k], device=images.device) for k in ("mean", "std"))
    return list((images * std.view(-1, 1, 1) + mean.view(-1, 1, 1)).clamp(0, 1))
