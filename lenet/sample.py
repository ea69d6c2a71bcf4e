"""Reads digits in image files with a trained LeNet-5, or shows what it gets wrong.

    python lenet/sample.py photo.jpg scans/     # your own images: a table, and a picture
    python lenet/sample.py                      # misread test digits, filters and feature maps

An image may have any size and mode, dark ink on light or light ink on dark. A network trained on
MNIST or the digits gets it as those were made: the ink is cut out, scaled and centred.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from common import cli, counted, fail
from common.classify import open_model
from common.data import images as data
from common.data.files import UNREADABLE, ImageFiles, find_images, open_image
from common.data.images import ImageSet, load_images
from common.data.sources import IDX_SETS
from common.device import Device
from common.folder import make_folder
from lenet.model import MODELS


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The flags; see --help."""
    parser = cli.sample_parser("lenet", __doc__)
    parser.add_argument("inputs", nargs="*", type=Path, help="image files, or folders of them")
    return parser.parse_args(argv)


def read_ink(path: Path) -> tuple[np.ndarray, str]:
    """The ink of an image, 0 to 1 (H, W), and how it was read.

    What most of the border shows is taken for the ground, and what differs from it for ink.
    """
    try:
        grey = np.asarray(open_image(path).convert("L"), dtype=np.float32)
    except UNREADABLE as error:
        fail(f"{path} is not a readable image ({error})")
    border = np.concatenate([grey[0], grey[-1], grey[:, 0], grey[:, -1]])
    ground = float(np.median(border))
    dark = grey.max() - ground < ground - grey.min()  # the ink is further from the ground
    ink = np.clip(ground - grey if dark else grey - ground, 0, None)
    if ink.max() < 8:
        return np.zeros_like(ink), "blank"
    return ink / ink.max(), "dark on light" if dark else "light on dark"


def fit(ink: np.ndarray, box: int, side: int) -> Tensor:
    """Cuts the ink out, scales it into `box` pixels and centres its mass in `side` pixels.

    That is how MNIST was made of NIST's scans (20 in 28 pixels). Returns uint8 (1, 1, side, side).
    """
    rows, columns = (np.flatnonzero((ink > 0.25).any(axis)) for axis in (1, 0))
    if not len(rows):
        return torch.zeros(1, 1, side, side, dtype=torch.uint8)
    ink = torch.from_numpy(ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].copy())
    height, width = (max(1, round(n * box / max(ink.shape))) for n in ink.shape)
    ink = F.interpolate(ink[None, None], (height, width), mode="bilinear", antialias=True)[0, 0]
    ink = ink / ink.max()
    places = (torch.arange(n).float() for n in ink.shape)
    centre = [float((ink.sum(1 - axis) * p).sum() / ink.sum()) for axis, p in enumerate(places)]
    top, left = (
        min(max(round((side - 1) / 2 - c), 0), side - n)
        for c, n in zip(centre, ink.shape, strict=True)
    )
    image = torch.zeros(1, 1, side, side, dtype=torch.uint8)
    image[0, 0, top : top + height, left : left + width] = (ink * 255).round().byte()
    return image


def classify(
    files: list[Path], model: torch.nn.Module, facts: dict, dev: Device, kind: str, out: Path
) -> list[tuple[str, float]]:
    """Prints a table and writes predictions.png; returns class and probability of each file."""
    from common.plot import image_grid

    pixels, readings = [], []
    for path in files:
        ink, reading = read_ink(path)
        if kind in IDX_SETS:
            pixels.append(fit(ink, 20, 28))
        elif kind == "digits":  # its digits fill their 8x8 pixels
            pixels.append(fit(ink, 8, 8))
        else:
            pixels.append(ImageFiles([str(path)], 28, 1, top=facts.get("top"))[0][None])
            reading = "as it is"
        readings.append(reading)
    blank = torch.zeros(1, 1, 32, 32, dtype=torch.uint8)
    images = ImageSet("test", data.Held(blank, dev), torch.zeros(1), facts, dev)
    pixels = torch.cat([data.fit(p, 28, 1, 2) for p in pixels])
    with torch.inference_mode():
        probabilities = model(images.normalise(pixels.to(dev.device))).softmax(1).cpu()
    share, best = probabilities.max(1)
    classes = [images.facts["classes"][i] for i in best]
    titles = [f"{name} ({p:.0%})" for name, p in zip(classes, share.tolist(), strict=True)]
    make_folder(out)
    image_grid(pixels[:100], out / "predictions.png", titles)
    width = max(len(str(path)) for path in files)
    print(f"{'file':<{width}}  {'read as':<13}  class  probability")
    for path, reading, name, p in zip(files, readings, classes, share.tolist(), strict=True):
        print(f"{path!s:<{width}}  {reading:<13}  {name:<5}  {p:.3f}")
    print(f"wrote {out / 'predictions.png'}{', of the first 100' if len(files) > 100 else ''}")
    return list(zip(classes, share.tolist(), strict=True))


@torch.inference_mode()
def show_mistakes(model: torch.nn.Module, test: ImageSet, out: Path, count: int = 80) -> int:
    """Writes mistakes.png, the first misread test images as in Fig. 8; returns their number."""
    from common.plot import image_grid

    answers = torch.cat([model(x).argmax(1) for x, _ in test.batches(1000)])
    wrong = (answers != test.labels).nonzero()[:, 0]
    classes = test.facts["classes"]
    titles = [f"{classes[test.labels[i]]}→{classes[answers[i]]}" for i in wrong[:count]]
    heading = f"{len(wrong)} of {counted(len(test), 'test image')} misread: truth → answer"
    if len(wrong):
        images, _ = test.examples(wrong[:count])
        image_grid(stretch(images), out / "mistakes.png", titles, 16, 0.7, heading)
        heading += f"; wrote {out / 'mistakes.png'}"
    print(heading)
    return len(wrong)


@torch.inference_mode()
def show_features(model: torch.nn.Module, test: ImageSet, out: Path) -> None:
    """Writes features.png: the six filters of C1, and what each makes of one digit."""
    from common.plot import image_grid

    image, _ = test.examples(torch.tensor([0]))
    filters = list(stretch(model.c1.weight))
    maps = list(stretch(model.c1(image)[0][:, None]))
    digit = stretch(image)[0]
    titles = [
        "input",
        *(f"filter {i}" for i in range(1, 7)),
        "",
        *(f"map {i}" for i in range(1, 7)),
    ]
    grid = [digit, *filters, torch.ones_like(digit), *maps]
    image_grid(grid, out / "features.png", titles, 7, 1.0, "C1: six 5x5 filters and their maps")
    print(f"wrote {out / 'features.png'}")


def stretch(images: Tensor) -> Tensor:
    """Each image's values to 0 to 1."""
    low, high = images.amin((1, 2, 3), keepdim=True), images.amax((1, 2, 3), keepdim=True)
    return (images - low) / (high - low).clamp(min=1e-8)


@cli.command
def main(argv: list[str] | None = None) -> dict:
    """Classifies the inputs, or shows mistakes and features; returns what it found."""
    args = parse_args(argv)
    files = find_images(args.inputs)
    model, flags, facts, dev, out = open_model(args, "lenet", MODELS)
    if files:
        found = classify(files, model, facts, dev, flags.data, out)
        return dict(zip(map(str, files), found, strict=True))
    make_folder(out)
    _, _, test = load_images(flags, dev, 28, 1, 2, facts["mean"], facts["std"])
    show_features(model, test, out)
    return {"mistakes": show_mistakes(model, test, out)}


if __name__ == "__main__":
    main()
