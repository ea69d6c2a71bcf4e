"""Says what is in image files with a trained DenseNet, or shows its test predictions.

python densenet/sample.py photo.jpg photos/   # your own images: five likeliest classes of each
python densenet/sample.py                     # a grid of test images with the answers
"""

from common import classify, cli
from densenet.model import MODELS
from densenet.train import build


@cli.command
def main(argv: list[str] | None = None) -> dict:
    """Classifies the inputs, or shows test predictions; returns what it found."""
    return classify.sample("densenet", __doc__, MODELS, build, argv)


if __name__ == "__main__":
    main()
