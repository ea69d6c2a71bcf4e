"""Finds objects in images with a trained YOLO, or shows what it finds in test images.

python yolo/sample.py photo.jpg photos/    # your own images, of any size: a table, pictures, JSON
python yolo/sample.py                      # a grid of test images: true boxes are white
"""

import argparse
import json
import sys
import time
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from common import cli, counted, fail
from common.classify import names_for, open_model
from common.data.boxes import load_boxes, scale_of, squeeze
from common.data.files import UNREADABLE, find_images, open_image
from common.data.images import Held, ImageSet
from common.detection import Found, draw_boxes, suppress
from common.device import Device
from common.folder import make_folder
from yolo.model import MODELS, decode
from yolo.train import build

SIDES = "    left     top   right  bottom"
TILE, GAP = 360, 6  # pixels of an image's longer side in predictions.jpg, and between images


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The flags; see --help."""
    parser = cli.sample_parser("yolo", __doc__)
    add = parser.add_argument
    add("inputs", nargs="*", type=Path, help="image files, or folders of them")
    add(
        "--threshold",
        type=cli.positive,
        default=0.2,
        help="the least score of a box that is shown, below 1 (default: 0.2)",
    )
    add("--count", type=cli.integer(1), default=12, help="test images to show (default: 12)")
    add("--json", action="store_true", help="print JSON, a line a file, in place of the table")
    args = parser.parse_args(argv)
    if args.threshold >= 1:
        fail(f"--threshold {args.threshold:g}: scores are below 1")
    return args


@torch.inference_mode()
def detect(
    model: torch.nn.Module, pixels: Tensor, flags: argparse.Namespace, dev: Device, least: float
) -> Found:
    """One pass over one image (1, 3, size, size), normalised; boxes in shares of it, on the CPU."""
    with dev.autocast():
        output = model(pixels)
    boxes, scores = decode(output.float(), flags.boxes)
    return Found(*(part.cpu() for part in suppress(boxes[0], scores[0], least)))


def over(threshold: float, scores: Tensor) -> str:
    """What to say where nothing is over the threshold: how sure the surest box is."""
    surest = f"the surest has {float(scores.max()):.2g}" if len(scores) else "there is no box"
    return f"over {threshold:g} (--threshold): {surest}"


def find(
    files: list[Path],
    model: torch.nn.Module,
    flags: argparse.Namespace,
    facts: dict,
    dev: Device,
    args: argparse.Namespace,
    out: Path,
) -> dict[str, list[dict]]:
    """Prints a table, draws each image with its boxes, and writes detections.json."""
    found, seconds, classes = {}, [], facts["classes"]
    blank = torch.zeros(1, 3, flags.size, flags.size, dtype=torch.uint8)
    images = ImageSet("test", Held(blank, dev), torch.zeros(1), facts, dev)
    detect(model, images.normalise(blank.to(dev.device)), flags, dev, 1.0)  # warms up
    width = max(len(str(path)) for path in files)
    lines = [] if args.json else [f"{'file':<{width}}  class           score{SIDES}"]
    for path, name in zip(files, names_for(files), strict=True):
        try:
            image = open_image(path, facts.get("top")).convert("RGB")
        except UNREADABLE as error:
            fail(f"{path} is not a readable image ({error})")
        pixels = squeeze(image, flags.size)[None].to(dev.device)
        begin = time.perf_counter()
        here = detect(model, images.normalise(pixels), flags, dev, args.threshold)
        seconds.append(time.perf_counter() - begin)
        boxes, rows = here.boxes * scale_of(image.size), []
        for box, score, label in zip(
            boxes.tolist(), here.scores.tolist(), here.labels.tolist(), strict=True
        ):
            rows.append(
                {
                    "class": classes[label],
                    "score": round(score, 4),
                    "box": [round(v, 1) for v in box],
                }
            )
        for row in rows if not args.json else ():
            sides = "".join(f"{v:8.1f}" for v in row["box"])
            lines.append(f"{path!s:<{width}}  {row['class']:<15} {row['score']:.3f}{sides}")
        if args.json:
            lines.append(json.dumps({"file": str(path), "objects": rows}))
        elif not rows:
            best = detect(model, images.normalise(pixels), flags, dev, 0.0).scores
            lines.append(f"{path!s:<{width}}  nothing {over(args.threshold, best)}")
        texts = [f"{row['class']} {row['score']:.2f}" for row in rows]
        drawn = draw_boxes(image, boxes, here.labels, texts)
        drawn.save(out / f"{name}.jpg", quality=90)
        found[str(path)] = rows
    (out / "detections.json").write_text(json.dumps(found, indent=1) + "\n")
    print("\n".join(lines))
    place = sys.stderr if args.json else sys.stdout
    print(f"wrote {counted(len(files), 'picture')} and detections.json to {out}", file=place)
    rate = len(files) / sum(seconds)
    print(f"{rate:.1f} frames a second, one at a time, without reading and drawing ({dev}, "
          f"{dev.precision}, {flags.size} pixels)", file=place)  # fmt: skip
    return found


def show(
    model: torch.nn.Module,
    flags: argparse.Namespace,
    facts: dict,
    dev: Device,
    args: argparse.Namespace,
    out: Path,
) -> dict[str, int]:
    """Writes predictions.jpg: test images, the true boxes in white and those found in colour."""
    test = load_boxes(flags, dev, flags.size)[2]
    test.facts.update(mean=facts["mean"], std=facts["std"])
    count = min(args.count, len(test))
    chosen = torch.randperm(len(test), generator=torch.Generator().manual_seed(0))[:count]
    pictures, total, best = [], 0, torch.zeros(0)
    for i in chosen.tolist():
        (stored,) = test.images.read([torch.tensor([i])], None)  # (1, 3, S, S)
        pixels = test.normalise(stored)
        here = detect(model, pixels, flags, dev, args.threshold)
        width, height = test.sizes[i]
        large = (TILE * width // max(width, height), TILE * height // max(width, height))
        image = Image.fromarray(stored[0].cpu().permute(1, 2, 0).numpy()).resize(large)
        truth = test.objects[i]
        image = draw_boxes(
            image, truth.boxes * scale_of(large), truth.labels, [""] * len(truth.labels), "white"
        )
        texts = [
            f"{facts['classes'][label]} {score:.2f}"
            for label, score in zip(here.labels.tolist(), here.scores.tolist(), strict=True)
        ]
        image = draw_boxes(image, here.boxes * scale_of(large), here.labels, texts)
        pictures.append(image)
        total += len(here.labels)
        if not total:
            best = torch.cat([best, detect(model, pixels, flags, dev, 0.0).scores])
    columns, deep = min(4, count), max(picture.height for picture in pictures) + GAP
    size = (columns * (TILE + GAP) - GAP, -(-count // columns) * deep - GAP)
    sheet = Image.new("RGB", size, "white")
    for number, picture in enumerate(pictures):
        sheet.paste(picture, (number % columns * (TILE + GAP), number // columns * deep))
    sheet.save(out / "predictions.jpg", quality=75)
    boxes, images = counted(total, "box", "boxes"), counted(count, "test image")
    said = f"over {args.threshold:g}" if total else over(args.threshold, best)
    print(f"{boxes} in {images} {said} (white: the true ones)")
    print(f"wrote {out / 'predictions.jpg'}")
    return {"boxes": total, "images": count}


@cli.command
def main(argv: list[str] | None = None) -> dict:
    """Finds objects in the inputs, or shows test images; returns what it found."""
    args = parse_args(argv)
    files = find_images(args.inputs)
    model, flags, facts, dev, out = open_model(args, "yolo", MODELS, build)
    drawn = [f"{name}.jpg" for name in names_for(files)]
    make_folder(out, *((*drawn, "detections.json") if files else ["predictions.jpg"]))
    if files:
        return find(files, model, flags, facts, dev, args, out)
    return show(model, flags, facts, dev, args, out)


if __name__ == "__main__":
    main()
