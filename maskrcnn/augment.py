"""Augmentation of images of any sizes with their boxes and masks, each with its own randomness."""

import torch
from torch import Tensor

from common.data.batches import Draw


def change(
    images: list[Tensor], targets: list[dict], draw: Draw, mirror: str, exposure: float
) -> tuple[list[Tensor], list[dict]]:
    """Mirrors half of the images "sideways" (Sec. 3.1), with "both" also half of them top to bottom
    and half along the diagonal, and multiplies or divides brightness and contrast by up to
    `exposure`."""
    numbers = draw.uniform(0, 1, 5).cpu()  # of each image
    done = [], []
    for image, target, some in zip(images, targets, numbers, strict=True):
        if mirror != "no" and some[0] < 0.5:
            image, target = mirrored(image, target, 2)
        if mirror == "both" and some[1] < 0.5:
            image, target = mirrored(image, target, 1)
        if mirror == "both" and some[2] < 0.5:
            image, target = transposed(image, target)
        if exposure > 1:
            image = exposed(image, *(exposure ** (2 * some[3:] - 1)).tolist())
        done[0].append(image)
        done[1].append(target)
    return done


def mirrored(image: Tensor, target: dict, axis: int) -> tuple[Tensor, dict]:
    """An image (3, H, W) and its target left to right (axis 2) or top to bottom (axis 1)."""
    left, top, right, bottom = target["boxes"].unbind(1)
    length = image.shape[axis]
    sides = [length - right, top, length - left, bottom]
    if axis == 1:
        sides = [left, length - bottom, right, length - top]
    changed = {**target, "boxes": torch.stack(sides, 1)}
    if "masks" in target:
        changed["masks"] = target["masks"].flip(axis)
    return image.flip(axis), changed


def transposed(image: Tensor, target: dict) -> tuple[Tensor, dict]:
    """An image (3, H, W) and its target with rows and columns exchanged: with both mirrorings, all
    eight ways to lay a square."""
    changed = {**target, "boxes": target["boxes"][:, [1, 0, 3, 2]]}
    if "masks" in target:
        changed["masks"] = target["masks"].transpose(1, 2)
    return image.transpose(1, 2), changed


def exposed(image: Tensor, brightness: float, contrast: float) -> Tensor:
    """An image from 0 to 1 with brightness multiplied, and its distance to its mean too."""
    image = image * brightness
    mean = image.mean()
    return ((image - mean) * contrast + mean).clamp(0, 1)
