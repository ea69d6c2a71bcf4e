"""Augmentation of a whole batch at once, each example with its own randomness.

Every function takes images (B, C, H, W), uint8 or float of any range, and a `Draw`.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from common.data.batches import Draw


def random_crop(images: Tensor, draw: Draw, padding: int) -> Tensor:
    """Pads each side with zeros and cuts the old size out anywhere: shifts by up to `padding`."""
    height, width = images.shape[2:]
    y, x = draw.integers(0, 2 * padding, 2).unbind(1)
    padded = F.pad(images, [padding] * 4)
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # (B, C, 2p+1, 2p+1, H, W), a view
    return windows[torch.arange(len(images), device=images.device), :, y, x]


def random_flip(images: Tensor, draw: Draw) -> Tensor:
    """Mirrors half of the images left to right."""
    return torch.where(draw.uniform(0, 1, 1, 1, 1) < 0.5, images.flip(3), images)


def random_affine(
    images: Tensor,
    draw: Draw,
    degrees: float = 0.0,
    translate: float = 0.0,
    scale: float = 0.0,
    squeeze: float = 0.0,
    shear: float = 0.0,
) -> Tensor:
    """Small planar distortions, bilinear, zeros outside; returns float in the range it came in.

    Each amount is the half-width of a uniform distribution: `degrees` of rotation, `translate` in
    pixels, `scale` and `squeeze` (wider and flatter, or narrower and taller) as relative size,
    `shear` as the horizontal shift per unit of height.
    """
    angle, right, down, size, wide, slant = draw.uniform(-1, 1, 6).unbind(1)
    angle, size, wide = angle * math.radians(degrees), 1 + size * scale, 1 + wide * squeeze
    # The matrix maps places of the output to places of the input: hence the inverse sizes.
    across, along = 1 / (size * wide), wide / size
    cos, sin, slant = angle.cos(), angle.sin(), slant * shear
    height, width = images.shape[2:]
    row_x = torch.stack(
        [across * cos, across * (slant * cos - sin), right * translate * 2 / width], 1
    )
    row_y = torch.stack(
        [along * sin, along * (slant * sin + cos), down * translate * 2 / height], 1
    )
    matrices = torch.stack([row_x, row_y], 1)  # (B, 2, 3)
    grid = F.affine_grid(matrices, list(images.shape), align_corners=False)
    return F.grid_sample(images.to(grid.dtype), grid, align_corners=False)
