"""Says what is in image files with a trained VGG network, or shows its test predictions.

python vgg/sample.py photo.jpg photos/   # your own images: five likeliest classes of each
python vgg/sample.py                     # a grid of test images with the answers
"""

import argparse
from pathlib import Path

from common import cli
from common.classify import classify, find_images, load_test, open_model, show_predictions
from vgg.model import MODELS


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The flags; see --help."""
    parser = cli.sample_parser("vgg", __doc__)
    parser.add_argument("inputs", nargs="*", type=Path, help="image files, or folders of them")
    return parser.parse_args(argv)


@cli.command
def main(argv: list[str] | None = None) -> dict:
    """Classifies the inputs, or shows test predictions; returns what it found."""
    args = parse_args(argv)
    files = find_images(args.inputs)
    model, flags, facts, dev = open_model(args, "vgg", MODELS)
    cli.make_folder(args.out)
    if files:
        return classify(files, model, facts, flags.size, dev, args.out)
    return {"right": show_predictions(model, load_test(flags, dev, facts), dev, args.out)}


if __name__ == "__main__":
    main()
