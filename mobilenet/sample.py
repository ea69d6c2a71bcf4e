"""Says what is in image files with a trained MobileNet, or shows its test predictions.

python mobilenet/sample.py photo.jpg photos/   # your own images: five likeliest classes of each
python mobilenet/sample.py                     # a grid of test images with the answers
python mobilenet/sample.py --weights imagenet photo.jpg       # ImageNet's 1,000 classes
python mobilenet/sample.py --weights FILE --model mobilenet_v3_large photo.jpg
"""

import argparse
from pathlib import Path

from common import classify, cli, fail
from common.checkpoint import read_weights
from common.data.files import find_images
from common.device import Device
from common.weights import start_from
from mobilenet import train
from mobilenet.model import MODELS


@cli.command
def main(argv: list[str] | None = None) -> dict:
    """Classifies the inputs, or shows test predictions; returns what it found."""
    parser = cli.sample_parser("mobilenet", __doc__)
    parser.add_argument("inputs", nargs="*", type=Path, help="image files, or folders of them")
    text = "published weights, or a file of such, in place of a checkpoint: ImageNet's classes"
    parser.add_argument("--weights", metavar="imagenet|FILE", help=text)
    text = "whose weights these are (default: mobilenet_v2)"
    parser.add_argument("--model", choices=list(train.PUBLISHED), help=text)
    args = parser.parse_args(argv)
    if args.weights:
        return published(args)
    if args.model:
        fail("--model goes with --weights: a checkpoint knows its own")
    return classify.sample("mobilenet", __doc__, MODELS, train.build, argv)


def published(args: argparse.Namespace) -> dict:
    """Classifies the inputs with weights of ImageNet's 1,000 classes."""
    if args.checkpoint or not args.inputs:
        fail("--weights takes the place of --checkpoint, and needs images to look at")
    files = find_images(args.inputs)
    flags = ["--model", args.model or "mobilenet_v2", "--weights", args.weights, "--size", "224"]
    flags = train.parse_args([*flags, "--device", args.device, "--data", "folder:.", "--quiet"])

    from torchvision.models import MobileNet_V2_Weights

    classes = MobileNet_V2_Weights.IMAGENET1K_V1.meta["categories"]
    version = flags.model[10:12]
    head = train.HEADS[version]
    if args.weights != "imagenet":
        known = read_weights(Path(args.weights))[0].get(f"{head}.weight", classes)
        if len(known) != len(classes):
            fail(f"{args.weights} knows {len(known)} classes, not ImageNet's {len(classes):,}")
    inputs = train.INPUTS[version]
    facts = {"classes": classes, "side": 256, **inputs}
    dev, model = Device(flags), train.build(flags, len(classes))
    start_from(model, flags, dev, facts, (head,), train.PUBLISHED, inputs)
    out = args.out or Path("runs", "mobilenet", "samples")
    return classify.classify(files, model.to(dev.device).eval(), facts, flags.size, dev, out)


if __name__ == "__main__":
    main()
