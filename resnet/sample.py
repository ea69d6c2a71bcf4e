"""Says what is in image files with a trained residual network, or shows its test predictions.

python resnet/sample.py photo.jpg photos/   # your own images: five likeliest classes of each
python resnet/sample.py                     # a grid of test images with the answers
python resnet/sample.py --weights imagenet --model resnet50_v1_5 photo.jpg   # ImageNet's classes
"""

from common import classify, cli
from resnet import train
from resnet.model import MODELS


@cli.command
def main(argv: list[str] | None = None) -> dict:
    """Classifies the inputs, or shows test predictions; returns what it found."""
    weights = classify.Published(train.PUBLISHED, train.parse_args)
    return classify.sample("resnet", __doc__, MODELS, train.build, argv, published=weights)


if __name__ == "__main__":
    main()
