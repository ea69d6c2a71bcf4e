"""Pascal's average precision, and its curves."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from common.data.boxes import Objects
from common.detection import Found


def precision_recall(
    found: Sequence[Found], truth: Sequence[Objects], num_classes: int, iou: float = 0.5
) -> list[tuple[np.ndarray, np.ndarray] | None]:
    """For each class precision and recall down the list of its detections; None without objects.

    By the rules of Pascal's devkit: a detection belongs to the true box of its class that it
    overlaps most; it is right if by at least `iou` and if no surer one has that box. Difficult
    objects don't count, nor do detections that belong to them.
    """
    from torchvision.ops import box_iou

    scores, labels, belongs, ignored, begin = [], [], [], [], 0
    counts = np.zeros(num_classes, dtype=np.int64)
    for here, there in zip(found, truth, strict=True):
        overlap = box_iou(here.boxes, there.boxes)  # (n, m)
        overlap = overlap.where(here.labels[:, None] == there.labels, -1.0)
        if len(there.labels):
            best, place = overlap.max(1)
            matched = (best >= iou).numpy()
            belongs.append(np.where(matched, place.numpy() + begin, -1))
            ignored.append(matched & there.difficult[place].numpy())
        else:
            belongs.append(np.full(len(here.labels), -1))
            ignored.append(np.zeros(len(here.labels), dtype=bool))
        scores.append(here.scores.numpy())
        labels.append(here.labels.numpy())
        counts += np.bincount(there.labels[~there.difficult].numpy(), minlength=num_classes)
        begin += len(there.labels)
    scores, labels, belongs, ignored = map(np.concatenate, (scores, labels, belongs, ignored))
    curves = []
    for label in range(num_classes):
        if not counts[label]:
            curves.append(None)
            continue
        chosen = np.flatnonzero((labels == label) & ~ignored)
        chosen = chosen[np.argsort(-scores[chosen], kind="stable")]
        own = belongs[chosen]
        right = np.zeros(len(chosen), dtype=bool)
        _, first = np.unique(own, return_index=True)  # the surest of each true box
        right[first] = own[first] >= 0
        hits = right.cumsum()
        curves.append((hits / np.arange(1, len(hits) + 1), hits / counts[label]))
    return curves


def average_precisions(
    found: Sequence[Found], truth: Sequence[Objects], num_classes: int, points: int = 0
) -> tuple[list[float | None], list[tuple[np.ndarray, np.ndarray] | None]]:
    """Average precision at IoU 0.5 of each class, and its curve; None for one without objects."""
    curves = precision_recall(found, truth, num_classes)
    return [curve and average_precision(*curve, points) for curve in curves], curves


def average_precision(precision: np.ndarray, recall: np.ndarray, points: int = 0) -> float:
    """The area under the falling envelope of the curve, Pascal's measure since 2010.

    With `points` = 11 the mean of the envelope at recalls 0, 0.1, … 1, as until 2009.
    """
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    if points:
        levels = np.linspace(0, 1, points) - 1e-9
        places = np.searchsorted(recall, levels)  # the first with at least that recall
        return float(np.append(envelope, 0.0)[places].mean())
    steps = np.diff(recall, prepend=0.0)
    return float((steps * envelope).sum())


def draw_curves(
    curves: Sequence[tuple[np.ndarray, np.ndarray] | None],
    precisions: Sequence[float | None],
    classes: Sequence[str],
    path: str | Path,
) -> None:
    """Draws precision over recall for each class, with its average precision."""
    from matplotlib.figure import Figure

    from common.plot import save

    figure = Figure(figsize=(6, 4), layout="constrained")
    axis = figure.subplots()
    for name, curve, average in zip(classes, curves, precisions, strict=True):
        if curve:
            axis.plot(curve[1], curve[0], label=f"{name} {average:.2f}")
    axis.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02))
    axis.grid(alpha=0.3)
    if len(axis.lines):
        figure.legend(loc="outside right upper", fontsize=8)
    save(figure, path)
