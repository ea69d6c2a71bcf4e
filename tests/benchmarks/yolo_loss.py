"""Times YOLO's loss beside its brute-force loop, the training step, and decoding.

    python tests/benchmarks/yolo_loss.py

The loop visits images, cells and predictors one by one, as Eq. 3 is written; it gives the same
number. The two losses (forward and backward) take turns in one process; the ratio of medians is
printed with the quartiles of the rounds. The training step is `yolov1_tiny`'s and `yolov1_small`'s
with either loss, so that one sees what the loop would cost a training. Decoding is timed for 980
candidates (14 x 14 cells, 5 predictors) of 20 classes, nearly all of them over the threshold.
"""

import argparse
import os
import statistics
from collections.abc import Callable

os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "16384")

import torch
from timing import interleave, ratio
from torch import Tensor

from common.detection import suppress
from yolo.model import MODELS, decode, yolo_loss


def loop_loss(
    output: Tensor, boxes: Tensor, labels: Tensor, num_boxes: int = 2,
    coord: float = 5.0, noobj: float = 0.5,
) -> Tensor:  # fmt: skip
    """Eq. 3 with a loop over images, cells and predictors, in plain numbers where they suffice."""
    batch, grid = output.shape[:2]
    total = output.new_zeros(())
    for b in range(batch):
        holds = {}  # the first object of each cell
        for m, label in enumerate(labels[b].tolist()):
            if label >= 0:
                left, top, right, bottom = boxes[b, m].tolist()
                x, y = (left + right) / 2 * grid, (top + bottom) / 2 * grid
                column, row = (min(max(int(v // 1), 0), grid - 1) for v in (x, y))
                holds.setdefault((row, column), (label, x, y, right - left, bottom - top))
        for row in range(grid):
            for column in range(grid):
                cell = output[b, row, column]
                ious, thing = [], holds.get((row, column))
                for j in range(num_boxes if thing else 0):
                    _, x, y, w, h = thing
                    p, q, r, s = cell[5 * j : 5 * j + 4].tolist()
                    p, q, r, s = p + column, q + row, r * r * grid, s * s * grid
                    w, h = w * grid, h * grid
                    across = min(x + w / 2, p + r / 2) - max(x - w / 2, p - r / 2)
                    down = min(y + h / 2, q + s / 2) - max(y - h / 2, q - s / 2)
                    both = max(across, 0) * max(down, 0)
                    ious.append(both / max(w * h + r * s - both, 1e-12))
                best = ious.index(max(ious)) if ious else -1
                for j in range(num_boxes):
                    x, y, w, h, confidence = cell[5 * j : 5 * j + 5]
                    if j == best:
                        _, tx, ty, tw, th = thing
                        total = total + coord * ((x - (tx - column)) ** 2 + (y - (ty - row)) ** 2)
                        total = total + coord * ((w - tw**0.5) ** 2 + (h - th**0.5) ** 2)
                        total = total + (confidence - ious[j]) ** 2
                    else:
                        total = total + noobj * confidence**2
                if thing:
                    for k, value in enumerate(cell[5 * num_boxes :]):
                        total = total + (value - float(k == thing[0])) ** 2
    return total / batch


def scene(batch: int, grid: int, num_classes: int, num_objects: int) -> tuple[Tensor, ...]:
    """A random output, boxes and labels."""
    torch.manual_seed(0)
    output = torch.rand(batch, grid, grid, 10 + num_classes, requires_grad=True)
    corner, side = torch.rand(2, batch, num_objects, 2)
    corner = corner * 0.8
    boxes = torch.cat([corner, corner + 0.02 + side * (0.98 - corner)], 2)
    return output, boxes, torch.randint(num_classes, (batch, num_objects))


def report(name: str, ours: list[float], theirs: list[float]) -> None:
    """One line with both medians and their ratio."""
    a, b = statistics.median(ours), statistics.median(theirs)
    print(f"{name:<44} {1e3 * a:9.2f} ms {1e3 * b:9.2f} ms  {ratio(ours, theirs)}")


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--batch-size", type=int, default=16)
    args = parser.parse_args()
    print(f"{'':<44} {'vectorised':>12} {'loop':>12}  {'ratio (quartiles)'}")
    for grid, classes, objects in ((7, 20, 3), (14, 3, 13)):
        things = scene(args.batch_size, grid, classes, objects)
        sides = [lambda loss=loss, t=things: loss(*t).backward() for loss in (yolo_loss, loop_loss)]
        times = interleave(sides, args.rounds)
        report(f"loss, {grid}x{grid} cells, {objects} objects, batch {args.batch_size}", *times)
    for name, size in (("yolov1_tiny", 128), ("yolov1_small", 96)):
        model = MODELS[name](size=size).to(memory_format=torch.channels_last)
        images = torch.rand(args.batch_size, 3, size, size)
        _, boxes, labels = scene(args.batch_size, 7, 20, 3)

        def step(loss: Callable, model=model, images=images, boxes=boxes, labels=labels) -> None:
            with torch.autocast("cpu", torch.bfloat16):
                output = model(images)
            loss(output.float(), boxes, labels).backward()
            model.zero_grad()

        times = interleave([lambda: step(yolo_loss), lambda: step(loop_loss)], args.rounds)
        report(f"training step, {name}, {size} pixels", *times)
    output = torch.rand(1, 14, 14, 45)

    def final() -> None:
        boxes, scores = decode(output, 5)
        suppress(boxes[0], scores[0], 0.001)

    values = interleave([final], 50)[0]
    print(f"980 candidates to final boxes: {1e3 * statistics.median(values):.2f} ms")


if __name__ == "__main__":
    main()
