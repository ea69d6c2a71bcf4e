"""Says what is in image files with a trained GoogLeNet, or shows its test predictions.

python googlenet/sample.py photo.jpg photos/   # your own images: five likeliest classes of each
python googlenet/sample.py                     # a grid of test images with the answers
"""

import argparse
from pathlib import Path

from torch import nn

from common import cli
from common.checkpoint import read_checkpoint
from common.classify import classify, find_images, load_test, open_model, show_predictions
from googlenet.model import MODELS


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The flags; see --help."""
    parser = cli.sample_parser("googlenet", __doc__)
    parser.add_argument("inputs", nargs="*", type=Path, help="image files, or folders of them")
    return parser.parse_args(argv)


def build(flags: argparse.Namespace, num_classes: int) -> nn.Module:
    """The network as it was trained: with the auxiliary heads, or without them."""
    return MODELS[flags.model](num_classes, aux_logits=not flags.no_aux)


@cli.command
def main(argv: list[str] | None = None) -> dict:
    """Classifies the inputs, or shows test predictions; returns what it found."""
    args = parse_args(argv)
    files = find_images(args.inputs)
    model, flags, facts, dev = open_model(args, "googlenet", MODELS, build)
    model.load_state_dict(read_checkpoint(args.checkpoint)["ema"], strict=False)  # if averaged
    cli.make_folder(args.out)
    if files:
        return classify(files, model, facts, flags.size, dev, args.out)
    return {"right": show_predictions(model, load_test(flags, dev, facts), dev, args.out)}


if __name__ == "__main__":
    main()
