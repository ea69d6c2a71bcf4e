"""Augmentation of a whole batch of images with boxes, each example with its own randomness."""

import torch
import torch.nn.functional as F
from torch import Tensor

from common.data.batches import Draw
from common.data.boxes import area


def random_scale_and_shift(
    images: Tensor, boxes: Tensor, labels: Tensor, draw: Draw, scale: float, shift: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Scales by 1 ± `scale` about the middle and shifts by up to `shift` of the image's sides.

    What comes into sight is grey. Boxes are clipped, and lose their label where less than a
    tenth of them is left.
    """
    numbers = draw.uniform(-1, 1, 3)
    s, (x, y) = 1 + numbers[:, 0] * scale, (numbers[:, 1:] * shift).unbind(1)
    zero = torch.zeros_like(s)
    rows = [1 / s, zero, -2 * x / s, zero, 1 / s, -2 * y / s]  # from places of the output
    matrices = torch.stack(rows, 1).view(-1, 2, 3)
    grid = F.affine_grid(matrices, list(images.shape), align_corners=False)
    grey = 127.5
    images = F.grid_sample(images.to(grid.dtype) - grey, grid, align_corners=False) + grey
    move = torch.stack([x, y, x, y], 1)[:, None]
    moved = (boxes - 0.5) * s[:, None, None] + 0.5 + move
    clipped = moved.clamp(0, 1)
    return images, clipped, labels.masked_fill(area(clipped) < 0.1 * area(moved), -1)


def random_mirror(
    images: Tensor, boxes: Tensor, draw: Draw, vertical: bool = False
) -> tuple[Tensor, Tensor]:
    """Mirrors half of the images left to right, or with `vertical` top to bottom."""
    chosen = draw.uniform(0, 1) < 0.5
    images = torch.where(chosen[:, None, None, None], images.flip(2 if vertical else 3), images)
    left, top, right, bottom = boxes.unbind(2)
    sides = [left, 1 - bottom, right, 1 - top] if vertical else [1 - right, top, 1 - left, bottom]
    return images, torch.where(chosen[:, None, None], torch.stack(sides, 2), boxes)


def random_exposure(images: Tensor, draw: Draw, factor: float) -> Tensor:
    """Multiplies or divides saturation and value (of HSV) by up to `factor`; 0 to 255, floats."""
    size, up = draw.uniform(1, factor, 2), draw.uniform(0, 1, 2) < 0.5
    by_saturation, by_value = torch.where(up, size, 1 / size).view(-1, 2, 1, 1, 1).unbind(1)
    images = images.float()
    value = images.amax(1, keepdim=True)  # V; a channel is V (1 - S t), t its hue's share
    low = images.amin(1, keepdim=True)
    # S V is V - low: it grows up to V, where the saturation is 1.
    by_saturation = by_saturation.minimum(value / (value - low).clamp(min=1e-3))
    images = value - (value - images) * by_saturation
    return images * by_value.minimum(255 / value.clamp(min=1e-3))
