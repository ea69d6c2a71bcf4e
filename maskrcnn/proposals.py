"""Region proposals (Ren, He, Girshick, Sun 2015, arXiv:1506.01497).

Anchors, boxes of a few sizes and shapes, stand on every cell of the pyramid's maps. A small
network slides over the maps and says of each anchor how likely it holds an object, of whatever
class, and how to move it there. The surest, without those that overlap surer ones, are the
proposals that the heads look at: a few hundred places in the image instead of all.

Boxes are (..., 4): left, top, right, bottom in pixels of the network's input.
Shapes: B batch, A anchors of an image, M objects of an image, N boxes.

Departures from Ren et al.: anchors that cross the image's border are trained on too, and a level of
the pyramid has anchors of one size (both as in Lin et al. 2017, arXiv:1612.03144); smooth L1 turns
at 1/9, and both losses are divided by the anchors sampled (both as torchvision has it).
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import batched_nms

# Of a predicted logarithm of growth, as in Detectron and torchvision: larger would overflow.
LARGEST = math.log(1000 / 16)
TURN = 1 / 9  # where smooth L1 becomes a straight line
BETWEEN, BELOW = -2, -1  # in place of an object's number: neither used nor background; background


def full(x: Tensor) -> Tensor:
    """At least single precision: half of it can't tell neighbouring pixels of a large image."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


# ---------------------------------------------------------------------- boxes


def box_iou(a: Tensor, b: Tensor) -> Tensor:
    """IoU (N, M) of boxes (N, 4) with boxes (M, 4)."""
    low = torch.maximum(a[:, None, :2], b[:, :2])
    high = torch.minimum(a[:, None, 2:], b[:, 2:])
    across, down = (high - low).clamp(min=0).unbind(2)  # (N, M) each
    overlap = across * down
    areas = (a[:, 2:] - a[:, :2]).prod(1)[:, None] + (b[:, 2:] - b[:, :2]).prod(1)
    return overlap / (areas - overlap)


def encode(boxes: Tensor, anchors: Tensor, weights: tuple[float, ...] = (1, 1, 1, 1)) -> Tensor:
    """What moves anchors (N, 4) to boxes (N, 4): Ren et al.'s Eq. 2, times `weights`."""
    (x, y, w, h), (ax, ay, aw, ah) = (centres(b) for b in (boxes, anchors))
    moves = [(x - ax) / aw, (y - ay) / ah, (w / aw).log(), (h / ah).log()]
    return torch.stack([move * k for move, k in zip(moves, weights, strict=True)], -1)


def decode(deltas: Tensor, anchors: Tensor, weights: tuple[float, ...] = (1, 1, 1, 1)) -> Tensor:
    """The boxes (..., 4) that `deltas` (..., 4) make of anchors (..., 4): undoes `encode`."""
    x, y, w, h = centres(anchors)
    dx, dy, dw, dh = (d / k for d, k in zip(deltas.unbind(-1), weights, strict=True))
    x, y = dx * w + x, dy * h + y
    w, h = dw.clamp(max=LARGEST).exp() * w / 2, dh.clamp(max=LARGEST).exp() * h / 2
    return torch.stack([x - w, y - h, x + w, y + h], -1)


def centres(boxes: Tensor) -> tuple[Tensor, ...]:
    """Centre and sides (x, y, w, h), each (...), of boxes (..., 4)."""
    left, top, right, bottom = boxes.unbind(-1)
    w, h = right - left, bottom - top
    return left + w / 2, top + h / 2, w, h


def clip(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Boxes (..., 4) cut off at the borders of an image of this height and width."""
    height, width = size
    x, y = boxes[..., 0::2].clamp(0, width), boxes[..., 1::2].clamp(0, height)
    return torch.stack([x, y], -1).flatten(-2)


def not_tiny(boxes: Tensor, side: float) -> Tensor:
    """The places (n,) of boxes (N, 4) whose sides are at least `side`."""
    return ((boxes[:, 2:] - boxes[:, :2]) >= side).all(1).nonzero()[:, 0]


def nms(boxes: Tensor, scores: Tensor, iou: float) -> Tensor:
    """Non-maximum suppression written out; the model calls torchvision's, which is compiled.

    The places (n,) of the boxes (N, 4) that stay, the surest first: each strikes out all less sure
    ones that it overlaps by more than `iou`.
    """
    order, kept = scores.argsort(descending=True, stable=True), []
    while len(order):
        best, rest = order[0], order[1:]
        kept.append(best)
        order = rest[box_iou(boxes[best : best + 1], boxes[rest])[0] <= iou]
    return torch.stack(kept) if kept else order


# ---------------------------------------------------------------------- anchors


def anchors_of(sizes: tuple[int, ...], ratios: tuple[float, ...]) -> Tensor:
    """The anchors (n, 4) of a cell, about the point 0, 0, in whole pixels.

    A size is the root of an anchor's area, a ratio its height over its width.
    """
    heights = torch.tensor(ratios).sqrt()
    sides = torch.stack([1 / heights, heights], 1)[:, None]  # (ratios, 1, 2)
    half = (sides * torch.tensor(sizes, dtype=torch.float32)[:, None]).flatten(0, 1) / 2
    return torch.cat([-half, half], 1).round()


def all_anchors(
    maps: list[Tensor], image: tuple[int, int], cells: list[Tensor]
) -> tuple[Tensor, list[int]]:
    """The anchors (A, 4) of all cells of all maps, row by row, and how many each map has.

    `image` is the padded images' height and width; the cell in the corner is at 0, 0.
    """
    levels = []
    for x, cell in zip(maps, cells, strict=True):
        steps = [side // count for side, count in zip(image, x.shape[-2:], strict=True)]
        rows, columns = (
            torch.arange(count, device=x.device) * step
            for count, step in zip(x.shape[-2:], steps, strict=True)
        )
        y, x_ = torch.meshgrid(rows, columns, indexing="ij")
        corner = torch.stack([x_, y, x_, y], 2).view(-1, 1, 4)
        levels.append((corner + cell.to(x.device)).view(-1, 4))
    return torch.cat(levels), [len(level) for level in levels]


# ---------------------------------------------------------------------- who learns what


def match(iou: Tensor, high: float, low: float, rescue: bool = False) -> Tensor:
    """The object (N,) that each of N boxes is to find, by their IoU (M, N): the one it overlaps
    most, BELOW where that is by less than `low`, BETWEEN where by less than `high`.

    With `rescue` the boxes that overlap an object most keep theirs, however little it is.
    """
    best, objects = iou.max(0)
    found = objects.masked_fill(best < high, BETWEEN).masked_fill(best < low, BELOW)
    if rescue:
        chosen = (iou == iou.amax(1, keepdim=True)).any(0)
        found = torch.where(chosen, objects, found)
    return found


def sample(labels: Tensor, number: int, share: float) -> tuple[Tensor, Tensor]:
    """At most `number` boxes at random: places of positive ones, a `share` at most, and of others.

    `labels` (N,) are at least 1 for positive boxes, 0 for background, below for those not used.
    """
    positive, negative = (labels >= 1).nonzero()[:, 0], (labels == 0).nonzero()[:, 0]
    most = min(len(positive), int(number * share))
    rest = min(len(negative), number - most)
    # Drawn in this order, and of all: then torchvision, seeded alike, draws the same.
    positive = positive[torch.randperm(len(positive), device=labels.device)[:most]]
    negative = negative[torch.randperm(len(negative), device=labels.device)[:rest]]
    return positive, negative


def smooth_l1(found: Tensor, wanted: Tensor) -> Tensor:
    """The sum of the robust loss of boxes' moves: square below TURN, straight above."""
    return F.smooth_l1_loss(found, wanted, beta=TURN, reduction="sum")


# ---------------------------------------------------------------------- the network


class ProposalHead(nn.Module):
    """A 3x3 convolution over a map, then of each anchor a score and four moves (Fig. 3)."""

    def __init__(self, channels: int, num_anchors: int):
        super().__init__()
        first = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv = nn.Sequential(nn.Sequential(first, nn.ReLU(inplace=True)))
        self.cls_logits = nn.Conv2d(channels, num_anchors, 1)
        self.bbox_pred = nn.Conv2d(channels, 4 * num_anchors, 1)
        for layer in (first, self.cls_logits, self.bbox_pred):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)

    # fmt: off
    def forward(self, maps: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Maps (B, C, H/s, W/s) to logits (B, A) and moves (B, A, 4), row by row."""
        logits, deltas = [], []
        for x in maps:                                                  # (B, C, H/s, W/s)
            x = self.conv(x)
            logits.append(self.cls_logits(x).movedim(1, 3).flatten(1))  # (B, H/s * W/s * n)
            moves = self.bbox_pred(x).movedim(1, 3)                     # (B, H/s, W/s, 4n)
            deltas.append(moves.reshape(len(x), -1, 4))                 # (B, H/s * W/s * n, 4)
        return full(torch.cat(logits, 1)), full(torch.cat(deltas, 1))
    # fmt: on


class RegionProposals(nn.Module):
    """From the pyramid to proposals; in training also their two losses.

    `before` and `after` count the surest boxes taken of each level and, after suppression, of an
    image: in training, and in evaluation.
    """

    def __init__(
        self,
        channels: int,
        sizes: tuple[tuple[int, ...], ...] = ((32,), (64,), (128,), (256,), (512,)),
        ratios: tuple[float, ...] = (0.5, 1.0, 2.0),
        before: tuple[int, int] = (2000, 1000),
        after: tuple[int, int] = (2000, 1000),
        iou: float = 0.7,
        high: float = 0.7,
        low: float = 0.3,
        number: int = 256,
        share: float = 0.5,
    ):
        super().__init__()
        self.cells = [anchors_of(some, ratios) for some in sizes]
        self.head = ProposalHead(channels, len(self.cells[0]))
        self.before, self.after, self.iou = before, after, iou
        self.high, self.low, self.number, self.share = high, low, number, share

    def forward(
        self,
        maps: list[Tensor],
        image: tuple[int, int],
        sizes: list[tuple[int, int]],
        targets: list[dict[str, Tensor]] | None = None,
    ) -> tuple[list[Tensor], list[Tensor], dict[str, Tensor]]:
        """Maps of padded images (height and width `image`; without padding `sizes`) to proposals.

        Returns for each image the boxes (n, 4), the surest first, their scores (n,), and with
        `targets` the losses.
        """
        logits, deltas = self.head(maps)
        anchors, counts = all_anchors(maps, image, self.cells)
        anchors = anchors.to(deltas.dtype)
        boxes, scores = self.choose(logits.detach(), deltas.detach(), anchors, counts, sizes)
        losses = {} if targets is None else self.losses(logits, deltas, anchors, targets)
        return boxes, scores, losses

    def choose(
        self,
        logits: Tensor,
        deltas: Tensor,
        anchors: Tensor,
        counts: list[int],
        sizes: list[tuple[int, int]],
    ) -> tuple[list[Tensor], list[Tensor]]:
        """The surest boxes of each level, moved, clipped and suppressed, image by image.

        Of logits (B, A), moves (B, A, 4), anchors (A, 4), of which the levels have `counts`, and
        the images' heights and widths, to boxes (n, 4) of each, the surest first, and their
        scores (n,).
        """
        mode, places, levels, begin = int(not self.training), [], [], 0
        for level, count in enumerate(counts):
            most = min(count, self.before[mode])
            places.append(logits[:, begin : begin + count].topk(most, 1).indices + begin)
            levels += [level] * most
            begin += count
        places = torch.cat(places, 1)  # (B, n)
        levels = torch.tensor(levels, device=logits.device)
        scores = logits.gather(1, places).sigmoid()
        moves = deltas.gather(1, places[..., None].expand(-1, -1, 4))
        candidates = decode(moves, anchors[places])  # (B, n, 4): of these alone, not of all
        boxes, surest = [], []
        for some, score, size in zip(candidates, scores, sizes, strict=True):
            some = clip(some, size)
            there = not_tiny(some, 1e-3)
            some, score = some[there], score[there]
            kept = batched_nms(some, score, levels[there], self.iou)[: self.after[mode]]
            boxes.append(some[kept])
            surest.append(score[kept])
        return boxes, surest

    def losses(
        self, logits: Tensor, deltas: Tensor, anchors: Tensor, targets: list[dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        """Ren et al.'s Eq. 1: is there an object, and where; each a number, of sampled anchors.

        Logits (B, A), moves (B, A, 4), anchors (A, 4); of each image the true `boxes` (M, 4). Both
        sums are divided by the anchors sampled in all images (as torchvision has it).
        """
        scores, truths, moves, wanted = [], [], [], []
        for own_logits, own_deltas, target in zip(logits, deltas, targets, strict=True):
            boxes = target["boxes"].to(anchors.dtype)
            if len(boxes):
                objects = match(box_iou(boxes, anchors), self.high, self.low, rescue=True)
            else:
                objects = torch.full((len(anchors),), BELOW, device=anchors.device)
            labels = (objects >= 0).long().masked_fill(objects == BETWEEN, -1)
            positive, negative = sample(labels, self.number, self.share)
            places = torch.cat([positive, negative])
            scores.append(own_logits[places])
            truths.append(labels[places].to(logits.dtype))
            moves.append(own_deltas[positive])
            wanted.append(encode(boxes[objects[positive]], anchors[positive]))
        truth = torch.cat(truths)
        return {
            "loss_objectness": F.binary_cross_entropy_with_logits(torch.cat(scores), truth),
            "loss_rpn_box_reg": smooth_l1(torch.cat(moves), torch.cat(wanted)) / len(truth),
        }
