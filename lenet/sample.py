"""Reads digits in image files with a trained LeNet-5, or shows what it gets wrong.

    python lenet/sample.py photo.jpg scans/     # your own images: a table, and a picture
    python lenet/sample.py                      # misread test digits, filters and feature maps

An image may have any size and mode, dark ink on light or light ink on dark. A network trained on
MNIST or the digits gets it as those were made: the ink is cut out, scaled and centred.
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor

from common import cli
from common.classify import open_model
from common.data.files import find_images
from common.data.images import load_images
from common.data.ink import classify, show_mistakes, stretch
from common.folder import make_folder
from lenet.model import MODELS


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The flags; see --help."""
    parser = cli.sample_parser("lenet", __doc__)
    parser.add_argument("inputs", nargs="*", type=Path, help="image files, or folders of them")
    return parser.parse_args(argv)


@torch.inference_mode()
def show_features(model: torch.nn.Module, image: Tensor, out: Path) -> None:
    """Writes features.png: the six filters of C1, and what each makes of an image (1, 1, H, W)."""
    from common.plot import image_grid

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


@cli.command
def main(argv: list[str] | None = None) -> dict:
    """Classifies the inputs, or shows mistakes and features; returns what it found."""
    args = parse_args(argv)
    files = find_images(args.inputs)
    model, flags, facts, dev, out = open_model(args, "lenet", MODELS)
    if files:
        found = classify(files, model, facts, dev, flags.data, out, pad=2)
        return dict(zip(map(str, files), found, strict=True))
    make_folder(out, "features.png", "mistakes.png")
    _, _, test = load_images(flags, dev, 28, 1, 2, facts["mean"], facts["std"])
    show_features(model, test.examples(torch.tensor([0]))[0], out)
    return {"mistakes": show_mistakes(model, test, out)}


if __name__ == "__main__":
    main()
