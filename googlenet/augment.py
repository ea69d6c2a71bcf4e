"""What GoogLeNet's training does to images: windows of photographs, shifted crops of small ones."""

import math

import torch
from torch import Tensor

from common.data.augment import random_crop, random_flip
from common.data.batches import Draw


def resized_window(
    numbers: Tensor,
    height: Tensor,
    width: Tensor,
    area: tuple[float, float] = (0.08, 1.0),
    ratio: float = 4 / 3,
) -> Tensor:
    """A window with a share of the image's `area`, its sides at most 1:`ratio` (Inception's).

    What would reach beyond the image is narrowed to it.
    """
    share, aspect, x, y, side = numbers.unbind(1)
    pixels = (area[0] + share * (area[1] - area[0])) * height * width
    aspect = torch.exp((2 * aspect - 1) * math.log(ratio))  # log-uniform, as many wide as tall
    across = (pixels * aspect).sqrt().minimum(width)
    down = (pixels / aspect).sqrt().minimum(height)
    return torch.stack([x * (width - across), y * (height - down), across, down, side.round()], 1)


def crop_and_flip(images: Tensor, draw: Draw) -> Tensor:
    """4 of 32 pixels padded on each side, a random crop, half of them mirrored."""
    return random_flip(random_crop(images, draw, padding=images.shape[3] // 8), draw)
