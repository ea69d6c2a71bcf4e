"""Mask R-CNN (He, Gkioxari, Dollár, Girshick 2017, arXiv:1703.06870).

Every object of an image: what it is, where its box is, and which pixels are its own. A residual
network with a feature pyramid reads the image once (pyramid.py); a small network proposes a few
hundred regions that may hold something (proposals.py); each is read out of the maps without
rounding, named, moved, and its mask drawn (heads.py). Without the masks it is Faster R-CNN.

Shapes: B batch, C channels, H and W pixels, K classes with the background (0), n objects found.

Boxes are left, top, right, bottom in pixels of the user's images, classes count from 1, as in
torchvision's, whose names parameters and losses bear. Departures from the paper: the backbone's
stride is taken by the 3x3 convolutions, smooth L1 turns at 1/9, and RoIAlign begins at a cell's
corner, all as in torchvision's published weights; proposals learn with the heads. Ours: a map's
stride is what the network makes it, where torchvision guesses it from the first images it sees
(wrongly if they are far smaller than their padding).
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from maskrcnn.heads import RegionHeads
from maskrcnn.proposals import RegionProposals
from maskrcnn.pyramid import Backbone
from maskrcnn.resizing import paste, ratios, resized, scale_target
from resnet.model import BasicBlock, ResNet, resnet50

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # mean and std of pixels 0 to 1
DIVISIBLE = 32  # padded sides are multiples: every stage halves them evenly


class RCNN(nn.Module):
    """Images in, objects out: the whole, in the order of the paper's Fig. 1.

    The shorter side of an image becomes `min_size` pixels, or as many as leave the longer one
    `max_size`; of several sizes training draws one for each image, evaluation takes the last.
    """

    def __init__(
        self,
        backbone: Backbone,
        rpn: RegionProposals,
        roi_heads: RegionHeads,
        min_size: int | Sequence[int] = 800,
        max_size: int = 1333,
        mean: Sequence[float] = IMAGENET[0],
        std: Sequence[float] = IMAGENET[1],
    ):
        super().__init__()
        self.min_size = (min_size,) if isinstance(min_size, int) else tuple(min_size)
        self.max_size, self.mean, self.std = max_size, tuple(mean), tuple(std)
        self.backbone, self.rpn, self.roi_heads = backbone, rpn, roi_heads

    def forward(
        self, images: Sequence[Tensor], targets: Sequence[dict[str, Tensor]] | None = None
    ) -> list[dict[str, Tensor]] | dict[str, Tensor]:
        """Images (3, H, W) of any sizes, from 0 to 1, to what is found in each, or to losses.

        `targets` are for training: of each image `boxes` (M, 4), `labels` (M,) and `masks`
        (M, H, W) of 0 and 1. What is found: `boxes` (n, 4), `scores` and `labels` (n,), and `masks`
        (n, 1, H, W), how likely each pixel is the object's.
        Raises TypeError for images of whole numbers; ValueError for training without targets, with
        targets without masks where the network draws some, and with boxes without an area.
        """
        if self.training and targets is None:
            raise ValueError("in training mode: targets are needed")
        targets = targets if self.training else None
        padded, sizes, scaled = self.prepare(images, targets)  # (B, 3, H, W)
        maps = self.backbone(padded)  # (B, C, H/s, W/s) each
        place = tuple(padded.shape[-2:])
        boxes, _, losses = self.rpn(maps, place, sizes, scaled)  # (n, 4) each
        maps = maps[:-1] if len(maps) > 1 else maps  # the coarsest only proposes
        found, more = self.roi_heads(maps, boxes, place, sizes, scaled)
        if targets is not None:
            return {**more, **losses}
        return [self.restore(*parts) for parts in zip(found, sizes, images, strict=True)]

    def prepare(
        self, images: Sequence[Tensor], targets: Sequence[dict[str, Tensor]] | None
    ) -> tuple[Tensor, list[tuple[int, int]], list[dict[str, Tensor]] | None]:
        """Images normalised, scaled and padded to one size (B, 3, H, W), their heights and widths
        without the padding, and the targets scaled along."""
        done, scaled = [], []
        for number, image in enumerate(images):
            if not image.is_floating_point():
                raise TypeError("images are floats from 0 to 1: divide uint8 by 255")
            if targets is not None and self.roi_heads.masks and "masks" not in targets[number]:
                raise ValueError("a target without masks: this network learns to draw them")
            image = self.normalise(image)
            old = tuple(image.shape[-2:])
            new = self.scaled_size(*old)
            done.append(resized(image[None], new, "bilinear")[0])
            if targets is not None:
                scaled.append(scale_target(targets[number], old, new))
        sizes = [tuple(image.shape[-2:]) for image in done]
        height, width = (
            -(-max(side) // DIVISIBLE) * DIVISIBLE for side in zip(*sizes, strict=True)
        )
        if all(size == (height, width) for size in sizes):
            padded = torch.stack(done)
        else:
            padded = done[0].new_zeros(len(done), 3, height, width)
            for space, image in zip(padded, done, strict=True):
                space[:, : image.shape[1], : image.shape[2]] = image
        like = next(self.backbone.parameters())
        if like.is_contiguous(memory_format=torch.channels_last) and not like.is_contiguous():
            padded = padded.contiguous(memory_format=torch.channels_last)
        return padded, sizes, None if targets is None else scaled

    def normalise(self, image: Tensor) -> Tensor:
        """An image (3, H, W) to about mean 0 and standard deviation 1."""
        mean, std = (image.new_tensor(values)[:, None, None] for values in (self.mean, self.std))
        return (image - mean) / std

    def scaled_size(self, height: int, width: int) -> tuple[int, int]:
        """The height and width that the network sees of an image."""
        wanted = self.min_size[-1]
        if self.training:  # drawn of one size too: torchvision, seeded alike, then samples alike
            wanted = self.min_size[int(torch.rand(()) * len(self.min_size))]
        scale = min(wanted / min(height, width), self.max_size / max(height, width))
        return tuple(max(1, math.floor(side * scale)) for side in (height, width))

    def restore(
        self, found: dict[str, Tensor], size: tuple[int, int], image: Tensor
    ) -> dict[str, Tensor]:
        """What was found in an image scaled to `size`, in the pixels of the image itself."""
        old = tuple(image.shape[-2:])
        found["boxes"] = found["boxes"] * ratios(size, old).to(found["boxes"].device)
        if "masks" in found:
            found["masks"] = paste(found["masks"], found["boxes"], old)
        return found

    @torch.inference_mode()
    def propose(self, images: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """The proposals of each image alone: boxes (n, 4) in its pixels, the surest first, and
        their scores (n,)."""
        padded, sizes, _ = self.prepare(images, None)
        boxes, scores, _ = self.rpn(self.backbone(padded), tuple(padded.shape[-2:]), sizes)
        olds = [ratios(size, image.shape[-2:]) for size, image in zip(sizes, images, strict=True)]
        return [(box * old.to(box.device), score)
                for box, old, score in zip(boxes, olds, scores, strict=True)]  # fmt: skip


# ---------------------------------------------------------------------- the paper's, and ours


def proposals_of(
    channels: int, sizes: tuple[tuple[int], ...], pyramid: bool, amount: tuple[int, int], **settings
) -> RegionProposals:
    """Proposals of anchors with these sides, a level of the pyramid for each, or all on one map.

    `amount` boxes (in training, in evaluation) are left of an image, and as many looked at on each
    level before: a single map has all of them to look at, so that both choose among as many.
    """
    if pyramid:
        return RegionProposals(channels, sizes, before=amount, after=amount, **settings)
    before = tuple(len(sizes) * count for count in amount)
    return RegionProposals(channels, (sum(sizes, ()),), before=before, after=amount, **settings)


def maskrcnn_resnet50_fpn(
    num_classes: int = 91,
    min_size: int | Sequence[int] = 800,
    max_size: int = 1333,
    *,
    masks: str | None = "sigmoid",
    pool: str = "align",
    pyramid: bool = True,
    frozen: bool = True,
    trainable: int = 5,
    mean: Sequence[float] = IMAGENET[0],
    std: Sequence[float] = IMAGENET[1],
    most: int = 100,
) -> RCNN:
    """ResNet-50 with a pyramid of 256 channels (Sec. 3.1, "Network Architecture"); 44,401,393
    parameters with frozen norms, 44,454,513 with trained ones.

    Classes count the background. Frozen norms are for weights that were trained before: from
    scratch `frozen=False`. `most` objects at most are found in an image.
    """
    network, channels = resnet50(v1_5=True), 256
    backbone = Backbone(network, channels, 4 if pyramid else 1, frozen, trainable)
    sizes = ((32,), (64,), (128,), (256,), (512,))
    rpn = proposals_of(channels, sizes, pyramid, (2000, 1000))
    heads = RegionHeads(channels, num_classes, pool=pool, masks=masks, most=most)
    return RCNN(backbone, rpn, heads, min_size, max_size, mean, std)


def fasterrcnn_resnet50_fpn(
    num_classes: int = 91, min_size: int | Sequence[int] = 800, max_size: int = 1333, **settings
) -> RCNN:
    """The same without masks (Lin et al. 2017); 41,755,286 parameters with frozen norms.
    `settings` are as above."""
    return maskrcnn_resnet50_fpn(num_classes, min_size, max_size, masks=None, **settings)


def maskrcnn_small(
    num_classes: int = 91,
    min_size: int | Sequence[int] = 256,
    max_size: int = 512,
    *,
    masks: str | None = "sigmoid",
    pool: str = "align",
    pyramid: bool = True,
    mean: Sequence[float] = IMAGENET[0],
    std: Sequence[float] = IMAGENET[1],
    most: int = 100,
    width: int = 24,
    proposals: int = 200,
    regions: int = 64,
) -> RCNN:
    """Not in the paper: for images of 96 to 256 pixels, and one processor.

    Three stages of ResNet-18's blocks of `width` to 4 times as many channels, a pyramid of three
    levels and a coarser one, masks of 14 x 14 pixels; `proposals` are made of an image, and
    `regions` of them trained on.
    """
    channels = 2 * width
    network = ResNet(BasicBlock, (2, 2, 2), 1, width)
    backbone = Backbone(network, channels, 3 if pyramid else 1)
    sizes = ((12,), (24,), (48,), (96,))
    rpn = proposals_of(channels, sizes, pyramid, (proposals, proposals), number=64)
    heads = RegionHeads(
        channels,
        num_classes,
        units=256,
        mask_widths=(channels,) * 2,
        pool=pool,
        masks=masks,
        side=56.0,
        mask_size=7,
        number=regions,
        most=most,
    )
    return RCNN(backbone, rpn, heads, min_size, max_size, mean, std)


def fasterrcnn_small(
    num_classes: int = 91, min_size: int | Sequence[int] = 256, max_size: int = 512, **settings
) -> RCNN:
    """The same without masks, for data that has boxes alone. `settings` are as above."""
    return maskrcnn_small(num_classes, min_size, max_size, masks=None, **settings)


MODELS = {
    "maskrcnn_resnet50_fpn": maskrcnn_resnet50_fpn,
    "fasterrcnn_resnet50_fpn": fasterrcnn_resnet50_fpn,
    "maskrcnn_small": maskrcnn_small,
    "fasterrcnn_small": fasterrcnn_small,
}
