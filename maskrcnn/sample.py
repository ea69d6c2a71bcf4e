"""Finds objects one by one with a trained Mask R-CNN, or shows what it finds in test images.

python maskrcnn/sample.py cells.png photos/            # your own: a table, pictures, COCO's JSON
python maskrcnn/sample.py                              # a sheet of test images, and the truth
python maskrcnn/sample.py --weights coco photo.jpg     # torchvision's weights, 80 kinds of things
"""

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from common import cli, counted, fail
from common.classify import names_for
from common.data.files import UNREADABLE, find_images, open_image
from common.detection import COLOURS, draw_boxes
from common.device import Device
from common.folder import make_folder, new_samples, open_run
from maskrcnn.data import InstanceSet, as_tensor, drawn, load_instances
from maskrcnn.loading import PUBLISHED, fitted, read
from maskrcnn.model import MODELS, RCNN
from maskrcnn.scores import Answer, answer_of, as_coco
from maskrcnn.train import build
from maskrcnn.train import parse_args as train_flags

SIDES = "    left     top   right  bottom  pixels"
TILE, GAP = 320, 6  # pixels of an image's longer side in predictions.jpg, and between images


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The flags; see --help."""
    parser = cli.sample_parser("maskrcnn", __doc__)
    add = parser.add_argument
    add("inputs", nargs="*", type=Path, help="image files, or folders of them")
    text = "torchvision's weights of COCO, or a file of such, in place of a checkpoint"
    add("--weights", metavar="coco|FILE", help=text)
    text = f"whose weights these are: {', '.join(PUBLISHED)} (default: the first of them)"
    add("--model", choices=PUBLISHED, metavar="NAME", help=text)
    text = "the score over which an object is shown, below 1 (default: 0.5)"
    add("--threshold", type=cli.positive, default=0.5, metavar="X", help=text)
    add("--count", type=cli.integer(1), default=8, help="test images to show (default: 8)")
    add("--json", action="store_true", help="print the JSON in place of the table")
    args = parser.parse_args(argv)
    if args.threshold >= 1:
        fail(f"--threshold {args.threshold:g}: scores are below 1")
    if args.model and not args.weights:
        fail("--model goes with --weights: a checkpoint knows its own")
    if args.weights and args.checkpoint:
        fail("--checkpoint and --weights both name a network: choose one")
    if args.weights and not args.inputs:
        fail("--weights has no test images of its own: name image files, or folders of them")
    if args.weights and args.weights != "coco" and not Path(args.weights).is_file():
        fail(f"--weights {args.weights}: there is no such file (or write coco)")
    return args


def open_published(args: argparse.Namespace) -> tuple[RCNN, dict, Device, Path]:
    """A network with torchvision's weights, the facts of its data, a device, a new folder."""
    from torchvision.models import get_model_weights

    name = args.model or PUBLISHED[0]
    argv = ["--model", name, "--weights", args.weights, "--data", "coco:.", "--device", args.device]
    flags = train_flags([*argv, "--quiet"])
    state, known = read(flags)
    rows = next((v for k, v in state.items() if k.endswith("box_predictor.cls_score.bias")), None)
    if rows is None:
        fail(f"--weights {args.weights} is not of a detector: it has no box_predictor")
    classes = get_model_weights(name)["COCO_V1"].meta["categories"][1:]
    if len(rows) != len(classes) + 1:
        classes = [f"class {number}" for number in range(1, len(rows))]
    facts = {"classes": classes, "top": None, **{key: known[key] for key in ("mean", "std")}}
    model, dev = build(flags, facts), Device(flags)
    state = fitted(model, state, flags)
    if strange := sorted(state.keys() ^ model.state_dict().keys()):
        fail(f"{args.weights} is of another network than {name}: {strange[0]} is in one alone")
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        fail(f"{args.weights} doesn't fit {name}: {str(error).splitlines()[-1].strip()}")
    print(f"{name} with the weights {args.weights}", file=sys.stderr if args.json else sys.stdout)
    out = args.out or new_samples(Path("runs", "maskrcnn"))
    return model.to(dev.device).eval(), facts, dev, out


def open_model(args: argparse.Namespace) -> tuple[RCNN, cli.Flags, dict, Device, Path]:
    """The trained network, the flags of its training, facts of its data, a device, and the folder
    for what is made."""
    checkpoint, flags, dev, out = open_run(args, "maskrcnn", MODELS)
    facts = checkpoint["dataset"]
    model = build(flags, facts)
    model.load_state_dict(checkpoint["model"])
    return model.to(dev.device).eval(), flags, facts, dev, out


@torch.inference_mode()
def find(model: RCNN, pixels: Tensor, dev: Device, least: float) -> Answer:
    """What is found in an image, uint8 (3, H, W), with a score over `least`."""
    model.roi_heads.threshold = least  # of what is less sure no mask is drawn
    with dev.autocast():
        (found,) = model([pixels.to(dev.device).float() / 255])
    return answer_of(found)


def over(model: RCNN, pixels: Tensor, dev: Device, least: float) -> str:
    """What to say where nothing is over the threshold: how sure the surest box is."""
    masks, model.roi_heads.masks = model.roi_heads.masks, None
    scores = find(model, pixels, dev, 0.0).scores
    model.roi_heads.masks = masks
    surest = f"the surest has {float(scores[0]):.2g}" if len(scores) else "there is no box"
    return f"over {least:g} (--threshold): {surest}"


def overlay(
    image: Image.Image, boxes: Tensor, labels: Tensor, masks: Tensor | None, texts: list[str]
) -> Image.Image:
    """A copy of an RGB image with boxes (n, 4), names above them, and masks (n, H, W) laid over it,
    each object's in another colour."""
    numbers = torch.arange(len(labels))
    if masks is not None:
        pixels = np.array(image, dtype=np.float32)
        for number, mask in reversed(list(enumerate(masks.bool().numpy()))):  # the surest on top
            tone = COLOURS[number % len(COLOURS)]
            colour = np.array([int(tone[at : at + 2], 16) for at in (1, 3, 5)], dtype=np.float32)
            pixels[mask] = 0.5 * pixels[mask] + 0.5 * colour
        image = Image.fromarray(pixels.round().astype(np.uint8))
    return draw_boxes(image, boxes, numbers, texts)


def as_json(files: list[Path], sizes: list, answers: list[Answer], facts: dict) -> dict:
    """What was found in COCO's form: images (numbers from 1), categories (under the ids of the file
    that was trained on, else numbers from 1), and annotations with scores, masks in run-lengths."""
    from pycocotools import mask as coco_masks

    images = [
        {"id": number, "file_name": str(path), "width": width, "height": height}
        for number, (path, (width, height)) in enumerate(zip(files, sizes, strict=True), 1)
    ]
    rows = []
    classes = facts["classes"]
    ids = facts.get("ids") or list(range(1, len(classes) + 1))
    for number, row in enumerate(as_coco(answers, [image["id"] for image in images]), 1):
        row |= {"id": number, "category_id": ids[row["category_id"]], "iscrowd": 0}
        row["bbox"], row["score"] = [round(v, 2) for v in row["bbox"]], round(row["score"], 4)
        row["area"] = round(row["bbox"][2] * row["bbox"][3], 2)
        if coded := row.get("segmentation"):
            row["area"] = int(coco_masks.area(coded))
            row["segmentation"] = {"size": list(coded["size"]), "counts": coded["counts"].decode()}
        rows.append(row)
    categories = [{"id": key, "name": name} for key, name in zip(ids, classes, strict=True)]
    return {"images": images, "categories": categories, "annotations": rows}


def find_in_files(
    files: list[Path], model: RCNN, facts: dict, dev: Device, args: argparse.Namespace, out: Path
) -> dict:
    """Prints a table, draws what is found over each image, and writes detections.json."""
    answers, sizes, seconds, classes = [], [], [], facts["classes"]
    width = max(len(str(path)) for path in files)
    lines = [f"{'file':<{width}}  class           score{SIDES}"]
    for path, name in zip(files, names_for(files), strict=True):
        try:
            image = open_image(path, facts.get("top")).convert("RGB")
        except UNREADABLE as error:
            fail(f"{path} is not a readable image ({error})")
        if not answers and not args.json:  # warms up
            find(model, torch.zeros_like(as_tensor(image)), dev, args.threshold)
        begin = time.perf_counter()
        answer = find(model, as_tensor(image), dev, args.threshold)
        seconds.append(time.perf_counter() - begin)
        masks = None if answer.masks is None else drawn(answer.masks, image.size)
        texts = []
        for number, (box, score, label) in enumerate(
            zip(answer.boxes.tolist(), answer.scores.tolist(), answer.labels.tolist(), strict=True)
        ):
            texts.append(f"{classes[label]} {score:.2f}")
            sides = "".join(f"{value:8.1f}" for value in box)
            pixels = "       -" if masks is None else f"{int(masks[number].sum()):8d}"
            lines.append(f"{path!s:<{width}}  {classes[label]:<15} {score:.3f}{sides}{pixels}")
        if not texts:
            said = over(model, as_tensor(image), dev, args.threshold) if not args.json else ""
            lines.append(f"{path!s:<{width}}  nothing {said}")
        overlay(image, answer.boxes, answer.labels, masks, texts).save(
            out / f"{name}.jpg", quality=90
        )
        answers.append(answer)
        sizes.append(image.size)
    content = as_json(files, sizes, answers, facts)
    text = json.dumps(content, indent=1) + "\n"
    (out / "detections.json").write_text(text)
    print(text.rstrip() if args.json else "\n".join(lines))
    if not args.json:
        print(f"wrote {counted(len(files), 'picture')} and detections.json to {out}")
        rate = len(files) / sum(seconds)
        print(f"{rate:.1f} frames a second, one at a time, without reading and drawing ({dev}, "
              f"{dev.precision}, {model.min_size[-1]} pixels)")  # fmt: skip
    return content


def show(
    model: RCNN, test: InstanceSet, dev: Device, args: argparse.Namespace, out: Path
) -> dict[str, int]:
    """Writes predictions.jpg: test images, above the true objects and below those found."""
    count = min(args.count, len(test))
    chosen = torch.randperm(len(test), generator=torch.Generator().manual_seed(0))[:count]
    classes, columns, total = test.facts["classes"], [], 0
    for index, (pixels,) in zip(chosen.tolist(), test.read(chosen.split(1)), strict=True):
        image, things = Image.fromarray(pixels.permute(1, 2, 0).numpy()), test.things[index]
        answer = find(model, pixels, dev, args.threshold)
        texts = [
            f"{classes[label]} {score:.2f}"
            for label, score in zip(answer.labels.tolist(), answer.scores.tolist(), strict=True)
        ]
        texts = texts if len(classes) > 1 and len(texts) < 10 else [""] * len(texts)  # readable
        tiles = []
        for objects, own, names in (
            (things.objects, things.masks, [""] * len(things)),
            (answer, answer.masks, texts),
        ):
            large, scale = enlarged(image)
            masks = None if own is None else scaled(drawn(own, image.size), large.size)
            tiles.append(overlay(large, objects.boxes * scale, objects.labels, masks, names))
        columns.append(tiles)
        total += len(answer.labels)
    sheet(columns).save(out / "predictions.jpg", quality=70)
    objects, images = counted(total, "object"), counted(count, "test image")
    print(f"{objects} in {images} over {args.threshold:g} (above: the truth; below: found)")
    print(f"wrote {out / 'predictions.jpg'}")
    return {"objects": total, "images": count}


def enlarged(image: Image.Image) -> tuple[Image.Image, float]:
    """An image with a longer side of TILE pixels, and by how much it grew."""
    scale = TILE / max(image.size)
    size = tuple(max(1, round(side * scale)) for side in image.size)
    return image.resize(size, Image.Resampling.BILINEAR), scale


def scaled(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """Masks (n, H, W) at another width and height, smooth at their edges."""
    if not len(masks):
        return torch.zeros(0, size[1], size[0])
    larger = torch.nn.functional.interpolate(masks[:, None].float(), size[::-1], mode="bilinear")
    return larger[:, 0] > 0.5


def sheet(columns: list[list[Image.Image]], most: int = 4) -> Image.Image:
    """Pairs of pictures, one above the other, in rows of `most` pairs."""
    deep = max(one.height for tiles in columns for one in tiles) + GAP
    rows, across = -(-len(columns) // most), min(most, len(columns))
    page = Image.new("RGB", (across * (TILE + GAP) - GAP, 2 * rows * deep - GAP), "white")
    for number, tiles in enumerate(columns):
        for place, tile in enumerate(tiles):
            left, top = number % most * (TILE + GAP), (2 * (number // most) + place) * deep
            page.paste(tile, (left, top))
    return page


@cli.command
def main(argv: list[str] | None = None) -> dict:
    """Finds objects in the inputs, or shows test images; returns what it found."""
    args = parse_args(argv)
    files = find_images(args.inputs)
    if args.weights:
        model, facts, dev, out = open_published(args)
    else:
        model, flags, facts, dev, out = open_model(args)
    made = [f"{name}.jpg" for name in names_for(files)]
    make_folder(out, *((*made, "detections.json") if files else ["predictions.jpg"]))
    if files:
        return find_in_files(files, model, facts, dev, args, out)
    test = load_instances(flags, dev)[2]
    test.facts.update(mean=facts["mean"], std=facts["std"])
    return show(model, test, dev, args, out)


if __name__ == "__main__":
    main()
