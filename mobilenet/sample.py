"""Says what is in image files with a trained MobileNet, or shows its test predictions.

python mobilenet/sample.py photo.jpg photos/   # your own images: five likeliest classes of each
python mobilenet/sample.py                     # a grid of test images with the answers
python mobilenet/sample.py --weights imagenet photo.jpg       # ImageNet's 1,000 classes
python mobilenet/sample.py --weights FILE --model mobilenet_v3_large photo.jpg
"""

from common import classify, cli
from mobilenet import train
from mobilenet.model import MODELS


@cli.command
def main(argv: list[str] | None = None) -> dict:
    """Classifies the inputs, or shows test predictions; returns what it found."""
    inputs = {"mobilenet_v1": train.INPUTS["v1"]}
    weights = classify.Published(train.PUBLISHED, train.parse_args, inputs=inputs)
    return classify.sample("mobilenet", __doc__, MODELS, train.build, argv, published=weights)


if __name__ == "__main__":
    main()
