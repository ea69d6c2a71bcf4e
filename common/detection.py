"""What detectors share: from candidates to final boxes, average precision, boxes drawn on images.

Found boxes and true ones are in the same units: pixels of the image, left, top, right, bottom.
"""

import contextlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from common.data.boxes import Objects

COLOURS = ["#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080", "#9a6324", "#808000"]


class Found(NamedTuple):
    """The final boxes of one image, the surest first."""

    boxes: Tensor  # (n, 4)
    scores: Tensor  # (n,)
    labels: Tensor  # (n,)


def suppress(
    boxes: Tensor, scores: Tensor, threshold: float, iou: float = 0.5, most: int = 100
) -> Found:
    """Final boxes of candidates (N, 4) with the scores (N, K) of each class.

    Of the pairs of box and class over `threshold`, the thousand surest go through non-maximal
    suppression at `iou` within each class; at most `most` remain.
    """
    from torchvision.ops import batched_nms

    box, label = (scores > threshold).nonzero(as_tuple=True)
    chosen = scores[box, label]
    if len(chosen) > 1000:
        chosen, order = chosen.topk(1000)
        box, label = box[order], label[order]
    keep = batched_nms(boxes[box], chosen, label, iou)[:most]
    return Found(boxes[box[keep]], chosen[keep], label[keep])


# ---------------------------------------------------------------------- average precision


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


def coco_precision(
    found: Sequence[Found],
    truth: Sequence[Objects],
    sizes: Sequence[tuple[int, int]],
    classes: Sequence[str],
) -> float:
    """COCO's mean average precision, over IoU 0.5 to 0.95, by pycocotools.

    Difficult objects are given to it as crowds, which it ignores too.
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    annotations, results = [], []
    for image, (here, there) in enumerate(zip(found, truth, strict=True)):
        for box, label, crowd in zip(*(part.tolist() for part in there), strict=True):
            left, top, right, bottom = box
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image,
                    "category_id": label,
                    "bbox": [left, top, right - left, bottom - top],
                    "area": (right - left) * (bottom - top),
                    "iscrowd": int(crowd),
                }
            )
        for box, score, label in zip(*(part.tolist() for part in here), strict=True):
            left, top, right, bottom = box
            bbox = [left, top, right - left, bottom - top]
            results.append({"image_id": image, "category_id": label, "bbox": bbox, "score": score})
    if not annotations or not results:
        return 0.0
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its progress
        known = COCO()
        known.dataset = {
            "info": {},
            "images": [{"id": i, "width": w, "height": h} for i, (w, h) in enumerate(sizes)],
            "categories": [{"id": i, "name": name} for i, name in enumerate(classes)],
            "annotations": annotations,
        }
        known.createIndex()
        measure = COCOeval(known, known.loadRes(results), "bbox")
        measure.evaluate()
        measure.accumulate()
        measure.summarize()
    return max(0.0, float(measure.stats[0]))


# ---------------------------------------------------------------------- pictures


def draw_boxes(
    image: Image.Image, boxes: Tensor, labels: Tensor, texts: Sequence[str], colour: str = ""
) -> Image.Image:
    """A copy of an RGB image with boxes (n, 4) in its pixels, each class in a colour of its own.

    With `colour` all boxes have that.
    """
    image = image.copy()
    side = min(image.size)
    width, letters = max(1, round(side / 200)), max(10, round(side / 32))
    pen, font = ImageDraw.Draw(image), ImageFont.load_default(letters)
    things = list(zip(boxes.tolist(), labels.tolist(), texts, strict=True))
    for box, label, text in reversed(things):  # the surest come first, and lie on top
        tone = colour or COLOURS[label % len(COLOURS)]
        pen.rectangle(box, outline=tone, width=width)
        if text:
            at = (box[0], max(0, box[1] - letters - 4))
            left, top, right, bottom = pen.textbbox(at, text, font=font)
            pen.rectangle((left - 1, top - 1, right + 1, bottom + 1), fill=tone)
            pen.text(at, text, fill="white", font=font)
    return image


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
