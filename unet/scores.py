"""Scores of masks: pixels, connected cells; and masks drawn over their images."""

import torch
from torch import Tensor

TONES = [
    *((230, 60, 50), (60, 120, 230), (60, 190, 80), (245, 190, 40), (160, 80, 200)),
    *((50, 200, 200), (240, 130, 30), (240, 120, 190), (140, 100, 60), (120, 120, 120)),
]


def match_cells(cells: Tensor, found: Tensor) -> tuple[float, int, int]:
    """How well the connected parts of `found` (H, W), a boolean mask, are those of a label map.

    Returns their average precision, which is TP / (TP + FP + FN) where a part and a cell match
    with an IoU above a threshold, averaged over the thresholds 0.5, 0.55 to 0.95 (as the Data
    Science Bowl 2018 did it); how many cells are merged: those beyond the first that have most of
    their pixels in the same part; and how many cells there are. `cells` (H, W) has 0 for none.
    """
    from scipy import ndimage

    parts, num_parts = ndimage.label(found.numpy())
    _, cells = torch.cat([cells.new_zeros(1), cells.flatten()]).unique(return_inverse=True)
    cells, num_cells = cells[1:], int(cells.max())  # numbers without gaps, 0 for none
    if num_cells + num_parts == 0:
        return 1.0, 0, 0
    pairs = cells * (num_parts + 1) + torch.from_numpy(parts).flatten()
    shared = torch.bincount(pairs, minlength=(num_cells + 1) * (num_parts + 1))
    shared = shared.view(num_cells + 1, num_parts + 1)  # pixels of cell i in part j
    union = shared.sum(1, keepdim=True) + shared.sum(0) - shared
    iou = shared[1:, 1:] / union[1:, 1:]
    hits = torch.stack([(iou > 0.5 + 0.05 * k).sum() for k in range(10)])
    precision = (hits / (num_cells + num_parts - hits)).mean()
    within = (2 * shared > shared.sum(1, keepdim=True))[1:, 1:].sum(0)
    return float(precision), int((within - 1).clamp(min=0).sum()), num_cells


def tally(mask: Tensor, answer: Tensor, num_classes: int) -> Tensor:
    """How many pixels (K, K), int64, of each class (rows) were given each class (columns).

    `mask` and `answer` (H, W) hold classes, `mask` 255 where the class is unknown.
    """
    known = mask != 255
    pairs = mask[known].long() * num_classes + answer[known].long()
    return torch.bincount(pairs, minlength=num_classes**2).view(num_classes, num_classes)


def class_scores(counts: Tensor, classes: list[str], part: str) -> dict[str, float]:
    """Scores from the `tally` of all images: the pixel error, and IoU and Dice of each class.

    The means are over all classes but the first. A class that is neither there nor given has no
    score.
    """
    iou, dice = iou_of(counts), 2 * counts.diag() / (counts.sum(1) + counts.sum(0))
    there = (~iou.isnan()).nonzero()[:, 0].tolist()
    wanted = [k for k in there if k > 0] or there
    scores = {
        f"{part}_pixel_error": 1 - float(counts.trace() / counts.sum().clamp(min=1)),
        f"{part}_iou": float(iou[wanted].mean()),
        f"{part}_dice": float(dice[wanted].mean()),
    }
    for k in there:
        name = classes[k].replace(" ", "_")
        scores |= {f"{part}_iou_{name}": float(iou[k]), f"{part}_dice_{name}": float(dice[k])}
    return scores


def iou_of(counts: Tensor) -> Tensor:
    """IoU (K,) of each class from a `tally` (K, K); not a number where there is nothing of it."""
    return counts.diag() / (counts.sum(1) + counts.sum(0) - counts.diag())


def overlay(image: Tensor, classes: Tensor) -> Tensor:
    """An image (C, H, W), uint8, with the classes (H, W) over it: (3, H, W), uint8.

    Class 0 stays as it is; the others are tinted, and outlined where they end.
    """
    from torchvision.utils import draw_segmentation_masks

    padded = torch.nn.functional.pad(classes[None, None].float(), [1] * 4, mode="replicate")
    around = padded.unfold(2, 3, 1).unfold(3, 3, 1).flatten(4)[0, 0]  # (H, W, 9)
    edge = around.amax(2) != around.amin(2)
    image, there = image.expand(3, -1, -1), classes[classes > 0].unique().tolist()
    tones = [TONES[(k - 1) % len(TONES)] for k in there]
    for place, share in ((~edge, 0.3), (edge, 0.9)) if there else ():
        masks = torch.stack([(classes == k) & place for k in there])
        image = draw_segmentation_masks(image, masks, share, tones)
    return image
