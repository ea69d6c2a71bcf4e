"""What detectors share: from candidates to final boxes, COCO's precision, boxes drawn on images.

Found boxes and true ones are in the same units: pixels of the image, left, top, right, bottom.
"""

import contextlib
import io
from collections.abc import Sequence
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from common.data.boxes import Objects, indexed

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


def coco_precision(
    found: Sequence[Found],
    truth: Sequence[Objects],
    sizes: Sequence[tuple[int, int]],
    classes: Sequence[str],
) -> float:
    """COCO's mean average precision, over IoU 0.5 to 0.95, by pycocotools.

    Difficult objects are given to it as crowds, which it ignores too.
    """
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
    content = {
        "info": {},
        "images": [{"id": i, "width": w, "height": h} for i, (w, h) in enumerate(sizes)],
        "categories": [{"id": i, "name": name} for i, name in enumerate(classes)],
        "annotations": annotations,
    }
    known = indexed(content)
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its progress
        measure = COCOeval(known, known.loadRes(results), "bbox")
        measure.evaluate()
        measure.accumulate()
        measure.summarize()
    return max(0.0, float(measure.stats[0]))


def draw_boxes(
    image: Image.Image, boxes: Tensor, labels: Tensor, texts: Sequence[str], colour: str = ""
) -> Image.Image:
    """A copy of an RGB image with boxes (n, 4) in its pixels, each class in a colour of its own.

    With `colour` all boxes have that. Names stand above their boxes (torchvision's
    `draw_bounding_boxes` writes into them, which hides small objects).
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
