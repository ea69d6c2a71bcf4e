"""What is done with each region (Girshick 2015, arXiv:1504.08083; He et al. 2017).

Each proposal is cut out of the feature maps at one size, whatever its own is: RoIAlign reads the
maps between their cells, so that nothing is rounded and a mask lies where the object does. Then one
branch names the object and corrects its box, and another, of convolutions, draws its mask: one for
every class, each pixel on its own (sigmoid), so that classes don't compete for pixels.

Boxes are (..., 4): left, top, right, bottom in pixels of the network's input.
Shapes: B batch, R regions, K classes with the background (0), C channels, S cells a side of a
region, Q pixels a side of a mask (2S), M objects of an image.

`pool="pool"` (RoIPool, which rounds) and `masks="softmax"` (one class a pixel) are what the paper
compares with in Table 2, not what it recommends.
"""

import itertools
import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import batched_nms, roi_align, roi_pool

from maskrcnn.proposals import (
    BELOW,
    BETWEEN,
    box_iou,
    clip,
    decode,
    encode,
    full,
    match,
    not_tiny,
    sample,
    smooth_l1,
)

# Cells of a map up to which, on a CPU, the two products are the faster way to learn: torchvision's
# kernel, forward and backward, takes 1.6 times as long at 24 x 24 cells and 4.3 times at 6 x 8 of
# 48 channels, and as long at 25 x 34 of 256 (tests/benchmarks/maskrcnn_step.py --align).
SMALL_MAP = 1024
# Moves are small: brought to about standard deviation 1, by Detectron's and torchvision's numbers.
BOX_WEIGHTS = (10.0, 10.0, 5.0, 5.0)


# ---------------------------------------------------------------------- RoIAlign


def align(
    x: Tensor, regions: Tensor, size: int, scale: float, samples: int = 2, aligned: bool = False
) -> Tensor:
    """RoIAlign written out (Sec. 3, Fig. 3), as two products of matrices.

    Maps x (B, C, H, W) and regions (R, 5), the image's number and a box in pixels, to
    (R, C, size, size). `scale` is cells of the map over pixels. A region is cut into size x size
    parts of equal size, each the mean of `samples` x `samples` places, read between the four
    nearest cells. By `aligned` a cell's value stands in its middle, else in its corner, as in the
    published weights, where a region also has a cell's side at least.

    Reading between cells is linear, first along the rows and then along the columns.
    """
    if not len(regions):
        return x.new_zeros(0, x.shape[1], size, size)
    box = regions[:, 1:] * scale - (0.5 if aligned else 0.0)
    sides = (box[:, 2:] - box[:, :2]).clamp(min=0.0 if aligned else 1.0)
    columns, rows = (
        reading(box[:, axis], sides[:, axis] / size, size, samples, length).to(x.dtype)
        for axis, length in enumerate((x.shape[3], x.shape[2]))
    )  # (R, size, W), (R, size, H)
    # The regions of an image side by side, so that one product reads all images.
    image = regions[:, 0].long()
    mine = F.one_hot(image, len(x)).cumsum(0)  # (R, B): how many there are so far
    most = int(mine[-1].max())
    place = image * most + mine.gather(1, image[:, None])[:, 0] - 1
    together = rows.new_zeros(len(x) * most, size, x.shape[2]).index_copy(0, place, rows)
    lines = x.permute(0, 2, 3, 1).flatten(2)  # (B, H, W * C)
    read = together.view(len(x), most * size, -1) @ lines  # (B, most * size, W * C)
    read = read.view(len(x) * most, size, x.shape[3], -1).index_select(0, place)
    # (R, size, W, C), then along the columns
    found = columns @ read.transpose(1, 2).flatten(2)  # (R, size, size * C)
    return found.unflatten(2, (size, -1)).permute(0, 3, 2, 1)


def reading(begin: Tensor, step: Tensor, size: int, samples: int, length: int) -> Tensor:
    """How much of each cell in a line goes into each of `size` parts: (R, size, length).

    Parts begin at `begin` (R,) and are `step` (R,) long. A place reads the two cells about it, the
    nearer the more; beyond the last cell it reads that one, and more than a cell outside nothing.
    """
    places = torch.arange(size * samples, device=begin.device, dtype=begin.dtype) + 0.5
    places = begin[:, None] + places * (step / samples)[:, None]  # (R, size * samples)
    inside = (places >= -1) & (places <= length)
    cells = torch.arange(length, device=begin.device, dtype=begin.dtype)
    near = (1 - (places.clamp(0, length - 1)[..., None] - cells).abs()).clamp(min=0)
    return (near * inside[..., None]).unflatten(1, (size, samples)).mean(2)


def pool(x: Tensor, regions: Tensor, size: int, scale: float) -> Tensor:
    """RoIPool written out (Girshick 2015, Sec. 2.1); the model calls torchvision's, which is fast.

    As `align`, but a region's corners are rounded to cells, which both belong to it, its parts are
    rounded outwards, and of each is taken the largest value, 0 where it holds no cell of the map.
    """
    found = x.new_zeros(len(regions), x.shape[1], size, size)
    for number, (image, *box) in enumerate(regions.tolist()):
        left, top, right, bottom = (math.floor(side * scale + 0.5) for side in box)
        columns = whole_parts(left, right, size, x.shape[3])
        rows = whole_parts(top, bottom, size, x.shape[2])
        for (i, row), (j, column) in itertools.product(enumerate(rows), enumerate(columns)):
            if (part := x[int(image), :, row, column]).numel():
                found[number, :, i, j] = part.amax((1, 2))
    return found


def whole_parts(first: int, last: int, size: int, length: int) -> list[slice]:
    """The cells from `first` to `last`, as far as a line of `length` has them, in `size` parts."""
    step = max(last - first + 1, 1) / size
    edges = [(first + math.floor(k * step), first + math.ceil((k + 1) * step)) for k in range(size)]
    return [slice(*(min(max(edge, 0), length) for edge in pair)) for pair in edges]


class RegionPool(nn.Module):
    """Regions cut out of the level of the pyramid that suits their size (Lin et al. 2017, Eq. 1).

    A region of `side` pixels (the root of its area) belongs to a map of stride 16, the fourth; one
    half as large to the third, and so on. `kind` is "align" or, rounded to cells, "pool".
    """

    def __init__(self, kind: str = "align", side: float = 224.0):
        super().__init__()
        self.kind, self.side = kind, side

    def forward(
        self, maps: list[Tensor], boxes: list[Tensor], image: tuple[int, int], size: int
    ) -> Tensor:
        """Maps (B, C, H/s, W/s) and boxes (n, 4) of each image to (R, C, size, size)."""
        together = torch.cat(boxes)
        number = [torch.full((len(b), 1), float(i)) for i, b in enumerate(boxes)]
        regions = torch.cat([torch.cat(number).to(together), together], 1)  # (R, 5)
        scales = [x.shape[3] / image[1] for x in maps]
        if len(maps) == 1:
            return self.cut(maps[0], regions, size, scales[0])
        level = self.level_of(together, scales)
        places = [(level == number).nonzero()[:, 0] for number in range(len(maps))]
        parts = [self.cut(x, regions[place], size, scale)
                 for x, place, scale in zip(maps, places, scales, strict=True)]  # fmt: skip
        return torch.cat(parts)[torch.cat(places).argsort()]

    def level_of(self, boxes: Tensor, scales: list[float]) -> Tensor:
        """The number (R,) of the map for each box (R, 4): Eq. 1, k = 4 + log2(sqrt(wh) / side)."""
        low, high = (round(-math.log2(scale)) for scale in (scales[0], scales[-1]))
        root = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).sqrt()
        level = (4 + (root / self.side).log2() + 1e-6).floor()
        return level.clamp(low, high).long() - low

    def cut(self, x: Tensor, regions: Tensor, size: int, scale: float) -> Tensor:
        """Regions (n, 5) of one map: (n, C, size, size)."""
        regions = regions.to(x.dtype) if x.dtype == torch.float64 else regions.float()
        x = full(x)
        if self.kind == "pool":
            return roi_pool(x, regions, size, scale)
        if x.requires_grad and x.device.type == "cpu" and x.shape[2] * x.shape[3] <= SMALL_MAP:
            with torch.autocast("cpu", enabled=False):  # places between cells need all digits
                return align(x, regions, size, scale)
        return roi_align(x, regions, size, scale, 2)


# ---------------------------------------------------------------------- the branches


class BoxHead(nn.Module):
    """Two linear layers over a region (Fig. 4, right)."""

    def __init__(self, channels: int, size: int, units: int):
        super().__init__()
        self.fc6 = nn.Linear(channels * size**2, units)
        self.fc7 = nn.Linear(units, units)

    def forward(self, x: Tensor) -> Tensor:
        """Regions (R, C, S, S) to (R, units)."""
        return F.relu(self.fc7(F.relu(self.fc6(x.flatten(1)))))


class BoxPredictor(nn.Module):
    """Of a region its class, and for every class the moves to its box."""

    def __init__(self, units: int, num_classes: int):
        super().__init__()
        self.cls_score = nn.Linear(units, num_classes)
        self.bbox_pred = nn.Linear(units, 4 * num_classes)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(R, units) to logits (R, K) and moves (R, K, 4)."""
        return full(self.cls_score(x)), full(self.bbox_pred(x)).unflatten(1, (-1, 4))


def mask_convolutions(channels: int, widths: tuple[int, ...]) -> nn.Sequential:
    """3x3 convolutions over a region, each with a ReLU (Fig. 4, right)."""
    blocks = []
    for width in widths:
        layer = nn.Conv2d(channels, width, 3, padding=1)
        nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(layer.bias)
        blocks.append(nn.Sequential(layer, nn.ReLU(inplace=True)))
        channels = width
    return nn.Sequential(*blocks)


class MaskPredictor(nn.Module):
    """Doubles the resolution, then one mask for every class."""

    def __init__(self, channels: int, num_classes: int):
        super().__init__()
        self.conv5_mask = nn.ConvTranspose2d(channels, channels, 2, 2)
        self.mask_fcn_logits = nn.Conv2d(channels, num_classes, 1)
        for layer in (self.conv5_mask, self.mask_fcn_logits):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(R, C, 14, 14) to logits (R, K, 28, 28)."""
        return full(self.mask_fcn_logits(F.relu(self.conv5_mask(x))))


def mask_loss(logits: Tensor, labels: Tensor, truth: Tensor, kind: str = "sigmoid") -> Tensor:
    """The mean over pixels of the masks of the true classes alone (Sec. 3, "Mask Representation").

    Logits (R, K, Q, Q), classes (R,), and how much of each pixel is the object's (R, Q, Q). By
    "softmax" each pixel chooses among all classes, the background (0) too, as in Table 2b. Zero
    where there is no region.
    """
    if not len(labels):
        return logits.sum() * 0
    own = torch.arange(len(labels), device=labels.device)
    if kind == "sigmoid":
        return F.binary_cross_entropy_with_logits(logits[own, labels], truth)
    shares = logits.log_softmax(1)
    return -(truth * shares[own, labels] + (1 - truth) * shares[:, 0]).mean()


def mask_probabilities(logits: Tensor, labels: Tensor, kind: str = "sigmoid") -> Tensor:
    """Of each pixel how likely it is the object's: (R, Q, Q), of logits (R, K, Q, Q)."""
    own = torch.arange(len(labels), device=labels.device)
    if kind == "sigmoid":
        return logits[own, labels].sigmoid()
    return logits.softmax(1)[own, labels]


class Chosen(NamedTuple):
    """Regions of an image that are trained on."""

    boxes: Tensor  # (n, 4)
    labels: Tensor  # (n,), 0 for background
    objects: Tensor  # (n,): which object it is to find, any for background
    truth: Tensor  # (n, 4): the box of that object


class RegionHeads(nn.Module):
    """From proposals to objects; in training to the losses of classes, boxes and masks."""

    def __init__(
        self,
        channels: int,
        num_classes: int,
        units: int = 1024,
        mask_widths: tuple[int, ...] = (256,) * 4,
        pool: str = "align",
        masks: str | None = "sigmoid",
        side: float = 224.0,
        size: int = 7,
        mask_size: int = 14,
        number: int = 512,
        share: float = 0.25,
        overlap: float = 0.5,
        threshold: float = 0.05,
        iou: float = 0.5,
        most: int = 100,
    ):
        super().__init__()
        self.pool = RegionPool(pool, side)
        self.box_head = BoxHead(channels, size, units)
        self.box_predictor = BoxPredictor(units, num_classes)
        self.masks, self.size, self.mask_size = masks, size, mask_size
        if masks:
            self.mask_head = mask_convolutions(channels, mask_widths)
            self.mask_predictor = MaskPredictor(mask_widths[-1], num_classes)
        self.number, self.share, self.overlap = number, share, overlap
        self.threshold, self.iou, self.most = threshold, iou, most

    def forward(
        self,
        maps: list[Tensor],
        boxes: list[Tensor],
        image: tuple[int, int],
        sizes: list[tuple[int, int]],
        targets: list[dict[str, Tensor]] | None = None,
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """Maps of padded images and the proposals (n, 4) of each to what is found, or to losses.

        What is found of an image: `boxes` (n, 4), `scores` and `labels` (n,), and `masks`
        (n, 1, Q, Q) within the boxes.
        """
        if targets is not None:
            return [], self.losses(maps, boxes, image, targets)
        found = self.find(*self.judge(self.pool(maps, boxes, image, self.size)), boxes, sizes)
        if self.masks:
            counts = [len(one["boxes"]) for one in found]
            labels = torch.cat([one["labels"] for one in found])
            regions = self.pool(maps, [one["boxes"] for one in found], image, self.mask_size)
            logits = self.draw(regions)
            shares = mask_probabilities(logits, labels, self.masks)[:, None]
            for one, masks in zip(found, shares.split(counts), strict=True):
                one["masks"] = masks
        return found, {}

    # fmt: off
    def judge(self, x: Tensor) -> tuple[Tensor, Tensor]:    # (R, C, S, S)
        """Logits (R, K) and moves (R, K, 4) of regions."""
        return self.box_predictor(self.box_head(x))         # (R, K), (R, K, 4)

    def draw(self, x: Tensor) -> Tensor:                    # (R, C, 14, 14)
        """Logits (R, K, Q, Q) of the masks of regions."""
        return self.mask_predictor(self.mask_head(x))       # (R, K, 28, 28)
    # fmt: on

    def losses(
        self,
        maps: list[Tensor],
        boxes: list[Tensor],
        image: tuple[int, int],
        targets: list[dict[str, Tensor]],
    ) -> dict[str, Tensor]:
        """L_cls, L_box and L_mask (Sec. 3), each a number under torchvision's name.

        Maps (B, C, H/s, W/s), proposals (n, 4) of each image, the padded images' height and width,
        and of each image the true `boxes` (M, 4), `labels` (M,) and `masks` (M, H, W).
        """
        chosen = [self.choose(*pair) for pair in zip(boxes, targets, strict=True)]
        x = self.pool(maps, [some.boxes for some in chosen], image, self.size)
        logits, moves = self.judge(x)
        together = Chosen(*map(torch.cat, zip(*chosen, strict=True)))
        labels, there = together.labels, (together.labels > 0).nonzero()[:, 0]
        wanted = encode(together.truth[there], together.boxes[there], BOX_WEIGHTS)
        losses = {
            "loss_classifier": F.cross_entropy(logits, labels),
            "loss_box_reg": smooth_l1(moves[there, labels[there]], wanted) / len(labels),
        }
        if self.masks:  # of the regions with an object alone
            some = [Chosen(*(part[one.labels > 0] for part in one)) for one in chosen]
            if self.mask_size == self.size:
                x = x[there]
            else:
                x = self.pool(maps, [one.boxes for one in some], image, self.mask_size)
            logits = self.draw(x)
            side = logits.shape[3]
            truth = [mask_truth(one, target["masks"], side)
                     for one, target in zip(some, targets, strict=True)]  # fmt: skip
            losses["loss_mask"] = mask_loss(logits, labels[there], torch.cat(truth), self.masks)
        return losses

    @torch.no_grad()
    def choose(self, boxes: Tensor, target: dict[str, Tensor]) -> Chosen:
        """The proposals (n, 4) of an image that are trained on; its true boxes are among them."""
        truth = target["boxes"].to(boxes.dtype)
        boxes = torch.cat([boxes, truth])
        if len(truth):
            objects = match(box_iou(truth, boxes), self.overlap, self.overlap)
            labels = target["labels"][objects.clamp(min=0)].masked_fill(objects == BELOW, 0)
            labels = labels.masked_fill(objects == BETWEEN, -1)
        else:
            objects = labels = torch.zeros(len(boxes), dtype=torch.int64, device=boxes.device)
            truth = boxes.new_zeros(1, 4)
        places = torch.cat(sample(labels, self.number, self.share)).sort().values
        objects = objects[places].clamp(min=0)
        return Chosen(boxes[places], labels[places], objects, truth[objects])

    def find(
        self, logits: Tensor, moves: Tensor, boxes: list[Tensor], sizes: list[tuple[int, int]]
    ) -> list[dict[str, Tensor]]:
        """The final boxes of each image: sure enough, and none beside a surer one of its class.

        Of logits (R, K), moves (R, K, 4), regions (n, 4) of each image, R in all, and the images'
        heights and widths, to `boxes` (n, 4), `scores` (n,), the surest first, and `labels` (n,).
        """
        counts, found = [len(some) for some in boxes], []
        parts = zip(logits.softmax(1).split(counts), moves.split(counts), boxes, sizes, strict=True)
        for shares, own, some, size in parts:
            region, label = (shares[:, 1:] > self.threshold).nonzero(as_tuple=True)
            label = label + 1
            scores = shares[region, label]
            placed = clip(decode(own[region, label], some[region], BOX_WEIGHTS), size)
            kept = not_tiny(placed, 1e-2)
            placed, scores, label = placed[kept], scores[kept], label[kept]
            kept = batched_nms(placed, scores, label, self.iou)[: self.most]
            found.append({"boxes": placed[kept], "scores": scores[kept], "labels": label[kept]})
        return found


def mask_truth(chosen: Chosen, masks: Tensor, side: int) -> Tensor:
    """The objects' masks (M, H, W) cut out at the regions: (n, side, side), from 0 to 1."""
    boxes = full(chosen.boxes)
    regions = torch.cat([chosen.objects[:, None].to(boxes), boxes], 1)
    if not len(regions):
        return boxes.new_zeros(0, side, side)
    return roi_align(masks[:, None].to(boxes), regions, side, 1.0)[:, 0]
