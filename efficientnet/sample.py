"""Says what is in image files with an EfficientNet, or shows its test predictions.

python efficientnet/sample.py photo.jpg photos/   # your own images: five likeliest classes of each
python efficientnet/sample.py                     # a grid of test images with the answers
python efficientnet/sample.py --weights imagenet --model efficientnet_b0 photo.jpg   # 1,000 classes
"""

import argparse
from pathlib import Path

from common import classify, cli, fail
from common.data.files import find_images
from common.device import Device
from common.weights import IMAGENET, start_from
from efficientnet import train
from efficientnet.model import MODELS, SIZES, current_name


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The flags; see --help."""
    parser = cli.sample_parser("efficientnet", __doc__)
    add = parser.add_argument
    add("inputs", nargs="*", type=Path, help="image files, or folders of them")
    text = "torchvision's weights, or a file of weights, for ImageNet's classes; no checkpoint"
    add("--weights", metavar="imagenet|FILE", help=text)
    text = "of --weights (default: efficientnet_b0)"
    add("--model", choices=list(SIZES), default="efficientnet_b0", metavar="NAME", help=text)
    text = "of --weights; same: TensorFlow's (default: symmetric)"
    add("--padding", choices=["symmetric", "same"], default="symmetric", help=text)
    return parser.parse_args(argv)


def classify_photos(args: argparse.Namespace) -> dict:
    """The likeliest of ImageNet's classes for each file, by published weights."""
    from torchvision.models import get_model_weights

    if args.checkpoint:
        fail("--checkpoint and --weights both name a network: choose one")
    if not args.inputs:
        fail("--weights has no test images of its own: name image files, or folders of them")
    flags = ["--model", args.model, "--weights", args.weights, "--padding", args.padding]
    flags = train.parse_args([*flags, "--data", "folder:.", "--device", args.device, "--quiet"])
    files, dev = find_images(args.inputs), Device(flags)
    model = train.build(flags, 1000)
    entry = get_model_weights(args.model).IMAGENET1K_V1
    facts = dict(classes=entry.meta["categories"], side=-(-flags.size * 8 // 7), **IMAGENET)
    start_from(model, flags, dev, facts, (), train.PUBLISHED, current_name=current_name)
    print(f"{args.model} with the weights {args.weights}, {flags.size} pixels")
    model.to(dev.device).eval()
    return classify.classify(files, model, facts, flags.size, dev, args.out or Path("samples"))


@cli.command
def main(argv: list[str] | None = None) -> dict:
    """Classifies the inputs, or shows test predictions; returns what it found."""
    args = parse_args(argv)
    if args.weights:
        return classify_photos(args)
    return classify.sample("efficientnet", __doc__, MODELS, train.build, argv)


if __name__ == "__main__":
    main()
