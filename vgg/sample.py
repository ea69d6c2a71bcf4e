"""Says what is in image files with a trained VGG network, or shows its test predictions.

python vgg/sample.py photo.jpg photos/   # your own images: five likeliest classes of each
python vgg/sample.py                     # a grid of test images with the answers
python vgg/sample.py --weights imagenet --model vgg16 photo.jpg   # ImageNet's classes
"""

from common import classify, cli
from vgg import train
from vgg.model import MODELS


@cli.command
def main(argv: list[str] | None = None) -> dict:
    """Classifies the inputs, or shows test predictions; returns what it found."""
    weights = classify.Published(train.PUBLISHED, train.parse_args)
    return classify.sample("vgg", __doc__, MODELS, argv=argv, published=weights)


if __name__ == "__main__":
    main()
