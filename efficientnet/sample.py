"""Says what is in image files with an EfficientNet, or shows its test predictions.

python efficientnet/sample.py photo.jpg photos/   # your own images: five likeliest classes of each
python efficientnet/sample.py                     # a grid of test images with the answers
python efficientnet/sample.py --weights imagenet --model efficientnet_b0 photo.jpg   # 1,000 classes
"""

from common import classify, cli
from efficientnet import train
from efficientnet.model import MODELS, current_name


@cli.command
def main(argv: list[str] | None = None) -> dict:
    """Classifies the inputs, or shows test predictions; returns what it found."""
    text = "of --weights; same: TensorFlow's (default: symmetric)"
    padding = dict(choices=["symmetric", "same"], help=text)
    weights = classify.Published(
        train.PUBLISHED, train.parse_args, {"--padding": padding}, current_name=current_name
    )
    return classify.sample("efficientnet", __doc__, MODELS, train.build, argv, published=weights)


if __name__ == "__main__":
    main()
