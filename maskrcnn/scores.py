"""COCO's measures of boxes and masks, by pycocotools."""

import contextlib
import io
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from common.data.boxes import indexed
from common.detection import Found
from common.precision import average_precisions
from common.precision import draw_curves as precision_curves
from maskrcnn.data import InstanceSet, Things, measurable, run_lengths

KINDS = {"box": "bbox", "mask": "segm"}  # ours, and COCO's names
AREAS = {"": 0, "_small": 1, "_medium": 2, "_large": 3}  # below 32 x 32 pixels, 96 x 96, above


class Answer(NamedTuple):
    """What was found in an image, the surest first."""

    boxes: Tensor  # (n, 4), in its pixels
    scores: Tensor  # (n,)
    labels: Tensor  # (n,), from 0
    masks: list[dict] | None  # run-lengths


def answer_of(found: dict[str, Tensor], threshold: float = 0.5) -> Answer:
    """What the model found in an image; a pixel is the object's if it is so by over `threshold`."""
    masks = run_lengths(found["masks"][:, 0] > threshold) if "masks" in found else None
    boxes, scores, labels = (found[key].float().cpu() for key in ("boxes", "scores", "labels"))
    return Answer(boxes, scores, labels.long() - 1, masks)


def as_coco(answers: Sequence[Answer], ids: Sequence) -> list[dict]:
    """Answers as results in COCO's form; `ids` name their images, categories are numbers from 0."""
    results = []
    for image, answer in zip(ids, answers, strict=True):
        rows = zip(
            answer.boxes.tolist(), answer.scores.tolist(), answer.labels.tolist(), strict=True
        )
        for number, ((left, top, right, bottom), score, label) in enumerate(rows):
            box = [left, top, right - left, bottom - top]
            row = {"image_id": image, "category_id": label, "bbox": box, "score": score}
            if answer.masks is not None:
                row["segmentation"] = answer.masks[number]
            results.append(row)
    return results


def truth_of(
    things: Sequence[Things], sizes: Sequence[tuple[int, int]], classes: Sequence[str]
) -> dict:
    """What images hold, in COCO's format; difficult objects are crowds."""
    from pycocotools import mask as coco_masks

    annotations = []
    for image, there in enumerate(things):
        rows = zip(*(part.tolist() for part in there.objects), strict=True)
        for number, ((left, top, right, bottom), label, crowd) in enumerate(rows):
            mask = there.masks[number] if there.masks is not None else None
            area = (right - left) * (bottom - top) if mask is None else float(coco_masks.area(mask))
            annotations.append({
                "id": len(annotations) + 1, "image_id": image, "category_id": label,
                "bbox": [left, top, right - left, bottom - top],
                "area": area, "iscrowd": int(crowd), "segmentation": mask,
            })  # fmt: skip
    images = [{"id": number, "width": w, "height": h} for number, (w, h) in enumerate(sizes)]
    categories = [{"id": number, "name": name} for number, name in enumerate(classes)]
    return {"info": {}, "images": images, "categories": categories, "annotations": annotations}


def precisions(truth: dict, results: list[dict], kind: str, most: int = 100) -> np.ndarray | None:
    """COCO's precision (10, 101, K, 4) by overlap (0.5, 0.55 to 0.95), recall (0, 0.01 to 1), class
    and size, of the `most` surest answers of an image; -1 for what there isn't. None without
    objects or answers. `kind` is "box" or "mask"."""
    from pycocotools.cocoeval import COCOeval

    if not truth["annotations"] or not results:
        return None
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its progress
        known = indexed(truth)
        # loadRes would take the area of masks from its own: boxes have theirs
        own = [{k: v for k, v in row.items() if k != ("segmentation" if kind == "box" else "bbox")}
               for row in results]  # fmt: skip
        measure = COCOeval(known, known.loadRes(own), KINDS[kind])
        measure.params.maxDets = [1, 10, most]
        measure.evaluate()
        measure.accumulate()
    return measure.eval["precision"][..., -1]


def scores_of(precision: np.ndarray | None) -> dict[str, float]:
    """AP over all overlaps, at 0.5 and 0.75, and by the objects' size where there are such.

    0 where nothing was found.
    """
    if precision is None:
        return {"ap": 0.0, "ap50": 0.0, "ap75": 0.0}
    found = {f"ap{name}": mean(precision[..., area]) for name, area in AREAS.items()}
    found |= {"ap50": mean(precision[0, ..., 0]), "ap75": mean(precision[5, ..., 0])}
    return {key: value for key, value in found.items() if value is not None}


def mean(values: np.ndarray) -> float | None:
    """The mean of what is there."""
    there = values[values > -1]
    return float(there.mean()) if there.size else None


def measure(
    answers: Sequence[Answer], images: InstanceSet, most: int = 100
) -> tuple[dict[str, float], dict[str, np.ndarray | None]]:
    """The scores of boxes (`box_ap` …) and, where both sides have them, masks (`mask_ap` …), and
    the precisions that they are the means of.

    Where there are boxes alone, also the mean of Pascal's average precision at 0.5 (`map50`).
    Nothing where the images hold no objects but crowds and difficult ones; where they do and
    none is found, all are 0.
    """
    if not measurable(images.things):
        return {}, {}
    truth = truth_of(images.things, images.sizes, images.facts["classes"])
    results = as_coco(answers, range(len(answers)))
    masks = all(a.masks is not None for a in answers) and images.things[0].masks is not None
    metrics, curves = {}, {}
    for kind in ("box", "mask") if masks else ("box",):
        curves[kind] = precisions(truth, results, kind, most)
        metrics |= {f"{kind}_{key}": value for key, value in scores_of(curves[kind]).items()}
    if images.things[0].masks is None:
        found = [Found(*answer[:3]) for answer in answers]
        own = [things.objects for things in images.things]
        points, count = images.facts.get("points", 0), len(images.facts["classes"])
        averages = [a for a in average_precisions(found, own, count, points)[0] if a is not None]
        metrics["map50"] = sum(averages) / len(averages)
    return metrics, curves


def draw_curves(curve: np.ndarray | None, classes: Sequence[str], path) -> None:
    """Draws precision over recall of each class at an overlap of 0.5, from `precisions`."""
    lines, averages = [None] * len(classes), [None] * len(classes)
    for number in range(len(classes) if curve is not None else 0):
        values = curve[0, :, number, 0]
        if (values > -1).all():
            lines[number] = values, np.linspace(0, 1, len(values))
            averages[number] = float(values.mean())
    precision_curves(lines, averages, classes, path)


def overlaps(found: Tensor, truth: Tensor) -> Tensor:
    """Of each true box (M, 4) the largest IoU (M,) with boxes (N, 4); 0 without any."""
    from torchvision.ops import box_iou

    return box_iou(truth, found).amax(1) if len(found) else torch.zeros(len(truth))
