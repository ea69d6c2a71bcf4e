"""Says what is in image files with a trained network, or shows its test predictions.

python googlenet/sample.py photo.jpg photos/   # your own images: five likeliest classes of each
python googlenet/sample.py                     # a grid of test images with the answers
python googlenet/sample.py --weights imagenet --model inception_v3 photo.jpg   # ImageNet's classes
"""

from torch import nn

from common import classify, cli
from googlenet import train
from googlenet.model import MODELS


def build(flags: cli.Flags, num_classes: int) -> nn.Module:
    """The network as it was trained: with the auxiliary heads, or without them."""
    return train.build(flags, num_classes, aux_logits=flags.aux)


@cli.command
def main(argv: list[str] | None = None) -> dict:
    """Classifies the inputs, or shows test predictions; returns what it found."""
    weights = classify.Published(
        train.PUBLISHED,
        train.parse_args,
        inputs=dict.fromkeys(train.PUBLISHED, train.HALF),
        optional=train.AUXILIARY,
    )
    return classify.sample("googlenet", __doc__, MODELS, build, argv, published=weights)


if __name__ == "__main__":
    main()
