"""Says what is in image files with a trained DenseNet, or shows its test predictions.

python densenet/sample.py photo.jpg photos/   # your own images: five likeliest classes of each
python densenet/sample.py                     # a grid of test images with the answers
python densenet/sample.py --weights imagenet --model densenet121 photo.jpg   # ImageNet's classes
"""

from common import classify, cli
from densenet import train
from densenet.model import MODELS, current_name


@cli.command
def main(argv: list[str] | None = None) -> dict:
    """Classifies the inputs, or shows test predictions; returns what it found."""
    weights = classify.Published(train.PUBLISHED, train.parse_args, current_name=current_name)
    return classify.sample("densenet", __doc__, MODELS, train.build, argv, published=weights)


if __name__ == "__main__":
    main()
