"""What EfficientNet's training does to images: shifts and mirror images, AutoAugment."""

import torch
from torch import Tensor

from common.data.augment import crop_and_flip
from common.data.batches import Draw


def auto_augment(images: Tensor, draw: Draw, policy: str) -> Tensor:
    """AutoAugment (Cubuk et al. 2018) by torchvision, with its `policy` "imagenet" or "cifar10".

    What is uncovered becomes grey. torchvision draws from torch's own numbers, here from a seed
    for each image, so that order and processes don't matter.
    """
    from torchvision.transforms import AutoAugment, AutoAugmentPolicy

    change = AutoAugment(AutoAugmentPolicy(policy), fill=[128.0] * 3)
    seeds, changed = draw.integers(0, 2**24 - 1, 1).flatten().tolist(), []
    with torch.random.fork_rng(devices=[]):
        for image, seed in zip(images.round().clamp(0, 255).byte(), seeds, strict=True):
            torch.manual_seed(seed)
            changed.append(change(image))
    return torch.stack(changed)


def small_images(images: Tensor, draw: Draw, auto: bool) -> Tensor:
    """Crops and flips, then AutoAugment with CIFAR-10's policy if `auto`."""
    images = crop_and_flip(images, draw)
    return auto_augment(images, draw, "cifar10") if auto else images
