"""Says what is in image files with a Vision Transformer, or shows its test predictions; and in
attention.jpg where it looked.

python vit/sample.py photo.jpg photos/   # your own images: five likeliest classes of each
python vit/sample.py                     # a grid of test images with the answers
python vit/sample.py --weights imagenet --model vit_b_16 photo.jpg        # ImageNet's classes
python vit/sample.py --weights timm.safetensors --normalise half photo.jpg   # the authors'

attention.jpg has the attention of all layers, rolled out from the class token to the image (Fig.
6): where it is dark nobody looked.
"""

from pathlib import Path

import torch

from common import classify, cli
from common.data.images import ImageSet
from common.device import Device
from vit import train
from vit.maps import looked_at, shaded
from vit.model import MODELS, VisionTransformer

SHOWN = 12  # images in attention.jpg


def show_attention(model: VisionTransformer, images: ImageSet, dev: Device, out: Path) -> None:
    """Writes attention.jpg: images (of a test set, those that come first) beside what was seen."""
    from common.plot import image_grid

    pixels, _ = images.examples(torch.arange(min(SHOWN, len(images))))
    with dev.autocast():
        seen = looked_at(model, pixels)
    plain = torch.stack(classify.colour(pixels, images.facts))
    pairs = torch.stack([plain, shaded(plain, seen)], 1).flatten(0, 1)
    image_grid(pairs, out / "attention.jpg", columns=6, size=1.3)
    print(f"wrote {out / 'attention.jpg'}")


@cli.command
def main(argv: list[str] | None = None) -> dict:
    """Classifies the inputs, or shows test predictions; returns what it found."""
    text = "of --weights: how their pixels were normalised (default: imagenet)"
    flags = {"--normalise": dict(choices=["imagenet", "half"], help=text)}
    text = "of --weights: pixels that the network is to see (default: theirs)"
    flags["--size"] = dict(type=cli.integer(8), metavar="S", help=text)
    weights = classify.Published(
        train.PUBLISHED, train.parse_args, flags, train.INPUTS, fitted=lambda model: model.fitted
    )
    own = dict(published=weights, look=show_attention, made=("attention.jpg",))
    return classify.sample("vit", __doc__, MODELS, train.build, argv, **own)


if __name__ == "__main__":
    main()
