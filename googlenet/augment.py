"""What GoogLeNet's training does to small images: shifted crops, half of them mirrored."""

from torch import Tensor

from common.data.augment import random_crop, random_flip
from common.data.batches import Draw


def crop_and_flip(images: Tensor, draw: Draw) -> Tensor:
    """4 of 32 pixels padded on each side, a random crop, half of them mirrored."""
    return random_flip(random_crop(images, draw, padding=images.shape[3] // 8), draw)
