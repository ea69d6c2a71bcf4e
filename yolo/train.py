"""Trains YOLO (Redmon, Divvala, Girshick, Farhadi 2016).

    python yolo/train.py                                          # shapes: mAP 0.65, 95 s
    python yolo/train.py --data bccd --data-dir PATH --weights FILE  # fine-tunes
    python yolo/train.py --paper --data-dir PATH                  # VOC 2007 and 2012, 135 epochs
    python yolo/train.py --data voc:PATH --grid 10 --size 224     # your own; or coco:FILE

Measured on one core of a Zen 4 server (see the README).
"""

from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from common import cli, fail
from common.classify import check_images
from common.data import boxes as data
from common.data.batches import Draw
from common.data.images import add_image_flags
from common.detection import Found, coco_precision, suppress
from common.device import Device
from common.precision import average_precisions, draw_curves
from common.run import Run
from common.schedule import cosine
from common.weights import add_weight_flags, check_weights, keep_frozen, start_from, trained
from yolo.augment import random_exposure, random_mirror, random_scale_and_shift
from yolo.errors import SIMILAR, breakdown, similar_classes
from yolo.model import MODELS, decode, yolo_loss

# fmt: off
QUICK = dict(model="yolov1_small", data="shapes",  epochs=10,  val=250, batch_size=16, lr=2e-3, optimizer="adamw")  # noqa: E501
PAPER = dict(model="yolov1",       data="voc0712", epochs=135, val=0,   batch_size=64, lr=1e-2, optimizer="sgd")  # noqa: E501
# fmt: on
THRESHOLD = 0.001  # surer candidates are kept for precision and recall


def recipe(model: str, data: str | None, paper: bool, **given) -> tuple[dict, dict]:
    """Sizes of images by model and data; which classes Fig. 4 calls similar."""
    small, data = model == "yolov1_small", data or (PAPER if paper else QUICK)["data"]
    drawn = data == "shapes"
    size = (96 if drawn else 256) if small else (128 if drawn else 448)
    own = dict(size=size, similar=SIMILAR.get(data, "none"))
    nothing = {} if small else {"width": f"{model} has the paper's widths"}
    if given.get("augment") is False:
        nothing["mirror"] = "it is a part of --augment"
    return own, nothing


def parse_args(argv: list[str] | None = None) -> cli.Flags:
    """The flags; see --help."""
    parser = cli.Parser("yolo", __doc__, QUICK, PAPER, MODELS, data.BOX_SETS, recipe)
    add_image_flags(parser)
    add_weight_flags(parser, published=False)
    add, count = parser.add_argument, dict(type=cli.integer(1), metavar="N")
    add("--size", type=cli.integer(8), metavar="S", help="pixels the network sees")
    add("--grid", **count, default=7, help="cells a side, S")
    add("--boxes", **count, default=2, help="predictors of a cell, B")
    add("--width", **count, none="the model's", help="channels that yolov1_small begins with")
    add("--optimizer", choices=["adamw", "sgd"], help="sgd is the paper's, with its steps")
    parser.add_switch("--augment", default=True, help="train on changed images")
    add("--mirror", choices=["no", "sideways", "both"], default="sideways", help="how to augment")
    text = "classes that Fig. 4 calls similar: 'cat,dog;car,bus' or none"
    add("--similar", metavar="NAMES", help=text)
    args = parser.parse_args(argv)
    check_weights(args, {})
    if args.size % 64 and args.model != "yolov1_small":
        fail(f"--size {args.size}: {args.model} needs a multiple of 64")
    if args.model == "yolov1_small" and args.size < 8 * args.grid:
        fail(f"--grid {args.grid} needs --size {8 * args.grid}: a cell is 8 pixels or more")
    return args


def build(args: cli.Flags, num_classes: int) -> torch.nn.Module:
    """The network that the flags ask for."""
    width = {"width": args.width} if args.width else {}
    return MODELS[args.model](num_classes, args.grid, args.boxes, args.size, **width)


def change(
    images: Tensor, boxes: Tensor, labels: Tensor, draw: Draw, mirror: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Scaling and translation up to 20%, exposure and saturation up to 1.5 (Sec. 2.2)."""
    images, boxes, labels = random_scale_and_shift(images, boxes, labels, draw, 0.2, 0.2)
    if mirror != "no":
        images, boxes = random_mirror(images, boxes, draw)
    if mirror == "both":
        images, boxes = random_mirror(images, boxes, draw, vertical=True)
    return random_exposure(images, draw, 1.5), boxes, labels


def paper_steps(done: float) -> float:
    """Share of the rate: a rise from a tenth, 1 until epoch 75 of 135, then a tenth and a 100th."""
    if done < 5 / 135:  # "the first epochs", says Sec. 2.2
        return 0.1 + 0.9 * done / (5 / 135)
    return 1.0 if done < 75 / 135 else 0.1 if done < 105 / 135 else 0.01


def up_and_down(done: float) -> float:
    """Share of the peak learning rate when a share `done` of the training is over."""
    return min((done + 1e-3) / 0.05, cosine(done))


@torch.inference_mode()
def evaluate(
    model: torch.nn.Module,
    images: data.BoxSet,
    dev: Device,
    args: cli.Flags,
    folder: Path | None = None,
) -> dict[str, float]:
    """Loss and mAP at 0.5; with `folder` COCO's mAP, the errors of Fig. 4, and curves there."""
    model.eval()
    loss, mine, classes = torch.zeros((), device=dev.device), [], images.facts["classes"]
    for x, boxes, labels, places in images.batches(min(50, args.batch_size)):
        with dev.autocast():
            output = model(x)
        output = output.float()
        loss += yolo_loss(output, boxes, labels, args.boxes) * len(x)
        for place, *candidates in zip(places.tolist(), *decode(output, args.boxes), strict=True):
            mine.append((place, [part.cpu() for part in suppress(*candidates, THRESHOLD)]))
    everyone = dict(pair for share in dev.gather(mine) for pair in share)
    truth = [images.truth(i) for i in range(len(images))]
    found = [images.in_pixels(i, Found(*everyone[i])) for i in range(len(images))]
    precisions, curves = average_precisions(found, truth, len(classes), images.points)
    known = [value for value in precisions if value is not None]  # the others have no objects
    metrics = {"loss": float(dev.sum(loss)) / len(images), "map50": sum(known) / max(1, len(known))}
    if folder:
        metrics["map"] = coco_precision(found, truth, images.sizes, classes)
        metrics |= breakdown(found, truth, similar_classes(args.similar, classes))
        shown = ("no objects" if value is None else f"{value:.3f}" for value in precisions)
        dev.say("AP at 0.5:", ", ".join(map(" ".join, zip(classes, shown, strict=True))))
        if dev.main:
            draw_curves(curves, precisions, classes, folder / "precision_recall.png")
    return {f"{images.part}_{key}": value for key, value in metrics.items()}


@cli.command
def main(argv: list[str] | None = None) -> dict[str, float]:
    """Trains, or evaluates a checkpoint; returns the training and test metrics."""
    args = parse_args(argv)
    dev = Device(args)
    train, val, test = data.load_boxes(args, dev, args.size)
    classes = train.facts["classes"]
    try:
        similar_classes(args.similar, classes)
    except KeyError as error:
        fail(f"--similar names {error.args[0]!r}, which is none of {', '.join(classes)}")
    model = build(args, len(classes))
    check_images(model, args, dev, len(train), args.size)
    start_from(model, args, dev, train.facts, ("head",), {})
    net = dev.wrap(model)
    if args.optimizer == "sgd":
        settings = dict(momentum=0.9, weight_decay=5e-4, fused=not args.fsdp)
        optimizer, share = torch.optim.SGD(trained(model), args.lr, **settings), paper_steps
    else:
        optimizer = torch.optim.AdamW(trained(model), args.lr, weight_decay=0.05)
        share = up_and_down
    steps = args.epochs * len(train.batches(args.batch_size))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: share(step / steps))
    parts = dict(model=model, optimizer=optimizer, schedule=schedule, dataset=train.facts)
    run = Run(args, dev, ("val_map50", max), **parts)
    if args.evaluate:
        return run.finish(**evaluate(model, test, dev, args, run.folder))

    augment = partial(change, mirror=args.mirror) if args.augment else None
    for epoch in run.epochs():
        model.train()
        keep_frozen(model)
        for images, boxes, labels, _ in run.progress(train.batches(args.batch_size, augment)):
            with dev.autocast():
                output = net(images)
            loss = yolo_loss(output.float(), boxes, labels, args.boxes)
            run.add(train_loss=loss)
            if dev.step(loss, optimizer):
                schedule.step()
        run.log(epoch, **run.means(), **(evaluate(model, val, dev, args) if val else {}))
        run.save()
    return run.finish(**run.means(), **evaluate(model, test, dev, args, run.folder))


if __name__ == "__main__":
    main()
