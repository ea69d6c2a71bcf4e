"""Augmentation of a whole batch at once, each example with its own randomness.

Functions named `random_...`, and `crop_and_flip`, take images (B, C, H, W) and a `Draw`: crops and
flips of any range, colours of pixels from 0 to 255. Those named `..._window` say which part of an
image is trained on: from `numbers` (B, 5), uniform in [0, 1), and the images' heights and widths
(B,) they make windows (B, 5), which hold left, top, width and height in pixels, and 1 where the
window is mirrored.
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


def crop_and_flip(images: Tensor, draw: Draw) -> Tensor:
    """An eighth padded on each side (4 of 32 pixels), a random crop, half of them mirrored."""
    return random_flip(random_crop(images, draw, padding=images.shape[3] // 8), draw)


def random_colour(images: Tensor, draw: Draw, covariance: Tensor, spread: float = 0.1) -> Tensor:
    """Shifts each image along the principal components of the set's colours.

    The AlexNet paper's augmentation (Sec. 4.1): the sum over components of alpha times eigenvalue
    times eigenvector, alpha normal with std `spread`. `covariance` (C, C) is that of pixels
    from 0 to 1 (`colour_covariance`): the paper doesn't say in which units its eigenvalues are, and
    from 0 to 255 the shifts would be larger than the range. `images` are from 0 to 255, and
    so is what returns, float and not clipped.
    """
    values, vectors = torch.linalg.eigh(covariance.double().cpu())
    alpha = spread * draw.normal(len(values)).cpu()
    shift = (alpha * values.clamp(min=0)) @ vectors.T  # (B, C)
    return images.float() + 255 * shift.float().to(images.device)[:, :, None, None]


def scaled_window(
    numbers: Tensor, height: Tensor, width: Tensor, size: int, low: int, high: int
) -> Tensor:
    """The square of `size` pixels in an image whose shorter side is scaled to `low` to `high`.

    Raises ValueError unless size <= low <= high.
    """
    if not size <= low <= high:
        raise ValueError(f"squares of {size} pixels can't be cut from {low} to {high}")
    scale, x, y, side, _ = numbers.unbind(1)
    shorter = (low + (scale * (high - low + 1)).floor()).clamp(max=high)
    square = size / shorter * torch.minimum(height, width)
    return torch.stack(
        [x * (width - square), y * (height - square), square, square, side.round()], 1
    )


def resized_window(numbers: Tensor, height: Tensor, width: Tensor) -> Tensor:
    """A window with 8 to 100% of an image, its sides 3:4 to 4:3 (GoogLeNet's, Sec. 6).

    What would reach beyond the image is narrowed to it.
    """
    share, aspect, x, y, side = numbers.unbind(1)
    pixels = (0.08 + share * 0.92) * height * width
    aspect = torch.exp((2 * aspect - 1) * math.log(4 / 3))  # log-uniform, as many wide as tall
    across = (pixels * aspect).sqrt().minimum(width)
    down = (pixels / aspect).sqrt().minimum(height)
    return torch.stack([x * (width - across), y * (height - down), across, down, side.round()], 1)


def cut_windows(images: Tensor, windows: Tensor, size: int) -> Tensor:
    """Cuts windows (B, 5) out, scaled to `size` pixels, bilinear: (B, C, size, size), float."""
    height, width = images.shape[2:]
    left, top, across, down, mirrored = windows.float().unbind(1)
    zero, flip = torch.zeros_like(left), 1 - 2 * mirrored
    x, y = (2 * left + across) / width - 1, (2 * top + down) / height - 1  # centres, from -1 to 1
    rows = [flip * across / width, zero, x, zero, down / height, y]
    matrices = torch.stack(rows, 1).view(-1, 2, 3)
    grid = F.affine_grid(matrices, [len(images), 1, size, size], align_corners=False)
    return sample_clamped(images.to(grid.dtype), grid)


def sample_clamped(images: Tensor, grid: Tensor) -> Tensor:
    """F.grid_sample, bilinear, where what is outside shows the border's pixels."""
    if images.device.type == "mps":  # which has no such padding
        size = torch.tensor([images.shape[3], images.shape[2]], device=grid.device)
        return F.grid_sample(images, clamped(grid, size), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def clamped(grid: Tensor, size: Tensor) -> Tensor:
    """Places (..., 2) from -1 to 1, brought to between the centres of the outermost pixels."""
    return torch.minimum(torch.maximum(grid, 1 / size - 1), 1 - 1 / size)
