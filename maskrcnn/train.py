"""Trains Mask R-CNN (He, Gkioxari, Dollár, Girshick 2017); without masks Faster R-CNN.

python maskrcnn/train.py                                       # shapes: mask AP50 0.69, 110 s
python maskrcnn/train.py --data nuclei --data-dir PATH         # cell nuclei, one by one
python maskrcnn/train.py --data coco:FILE --weights FILE       # your own outlines; or masks:PATH
python maskrcnn/train.py --data bccd --data-dir PATH           # boxes alone; or voc:PATH
python maskrcnn/train.py --paper --data coco:FILE              # ResNet-50, 800 pixels
"""

from functools import partial
from pathlib import Path

import torch

from common import cli, fail
from common.device import Device
from common.run import Run
from common.schedule import cosine
from common.weights import keep_frozen, trained
from maskrcnn.augment import change
from maskrcnn.data import INSTANCE_SETS, InstanceSet, add_instance_flags, has_masks, load_instances
from maskrcnn.loading import add_weight_flags, check_weights, start_from
from maskrcnn.model import MODELS, RCNN
from maskrcnn.scores import answer_of, draw_curves, measure

COCO = "coco:data/coco/annotations/instances_train2017.json"
# fmt: off
QUICK = dict(model="maskrcnn_small",        data="shapes", epochs=3, val=100, batch_size=8,
             lr=2e-3, optimizer="adamw", warmup=100, limit=2000)
PAPER = dict(model="maskrcnn_resnet50_fpn", data=COCO,    epochs=22, val=0,  batch_size=16,
             lr=0.02, optimizer="sgd", warmup=500, weights="imagenet")  # Sec. 3.1: 160k steps
FILES = dict(val=0, batch_size=4, lr=1e-3, limit=None)  # of small models on images in files
EPOCHS = {"nuclei": 40, "bccd": 30}  # with FILES
LARGE = dict(batch_size=2, lr=0.0025, optimizer="sgd", warmup=100)  # of ResNet-50: a 1/8 of PAPER
# fmt: on


def recipe(model: str, data: str | None, paper: bool, **given) -> tuple[dict, dict]:
    """Boxes alone have Faster R-CNN; sizes, epochs and augmentation by model and data."""
    own, nothing = {}, {"compile": "images differ in size, and boxes in number, from step to step"}
    data = data or (PAPER if paper else QUICK)["data"]
    kind = data.partition(":")[0]
    if not has_masks(data) and not given.get("model_chosen"):
        model = own["model"] = "fasterrcnn_resnet50_fpn" if paper else "fasterrcnn_small"
    small = model.endswith("_small")
    if not paper and kind != "shapes":
        own |= FILES | {"epochs": EPOCHS.get(kind, 40)}
    if not paper and not small:
        own |= LARGE
    sizes = {"shapes": ([96], 512), "nuclei": ([384], 768)}  # half of these have 11 x 11 pixels
    sizes = sizes.get(kind, ([256], 512)) if small or kind == "shapes" else ([800], 1333)
    own["min_size"], own["max_size"] = sizes
    own["proposals"], own["regions"] = (64, 32) if kind == "shapes" else (300, 128)
    own["mirror"] = "both" if kind in ("nuclei", "bccd") else "sideways"
    own["weights"] = PAPER["weights"] if paper and not small else None
    own["norms"] = "frozen" if given.get("weights", own["weights"]) and not small else "batch"
    own["trainable"] = 3 if own["norms"] == "frozen" else 5  # Sec. 4: the first two stay
    if small:
        reason = f"{model} trains all it has, from the beginning"
        nothing |= {"norms": reason, "trainable": reason}
    else:
        nothing |= dict.fromkeys(("width", "proposals", "regions"), f"{model} has the paper's")
    if model.startswith("fasterrcnn"):
        nothing["masks"] = f"{model} draws none"
    if given.get("augment") is False:
        nothing |= dict.fromkeys(("mirror", "exposure"), "it is a part of --augment")
    return own, nothing


def parse_args(argv: list[str] | None = None) -> cli.Flags:
    """The flags; see --help."""
    parser = cli.Parser("maskrcnn", __doc__, QUICK, PAPER, MODELS, INSTANCE_SETS, recipe)
    add_instance_flags(parser)
    add_weight_flags(parser)
    add, count = parser.add_argument, dict(type=cli.integer(1), metavar="N")
    text = "pixels of an image's shorter side; of several, one is drawn for each training image"
    add("--min-size", type=cli.integer(32), nargs="+", metavar="S", help=text)
    add("--max-size", type=cli.integer(32), metavar="S", help="pixels of the longer side, at most")
    add("--detections", **count, default=100, help="objects of an image, at most")
    add("--width", **count, default=24, help="channels that small models begin with")
    add("--proposals", **count, help="of small models, for each image")
    add("--regions", **count, help="proposals of each image that are trained on")
    text = "batch norm learns, or is frozen: for weights that were trained before"
    add("--norms", choices=["frozen", "batch"], help=text)
    text = "how many of the backbone's five parts learn, the last ones"
    add("--trainable", type=int, choices=range(6), metavar="N", help=text)
    add("--optimizer", choices=["sgd", "adamw"], help="sgd is the paper's, with its step")
    add("--warmup", type=cli.integer(0), metavar="N", help="steps in which the rate rises")
    parser.add_switch("--augment", default=True, help="train on changed images")
    add("--mirror", choices=["no", "sideways", "both"], help="how to augment")
    text = "brightness and contrast are multiplied or divided by up to so much"
    add("--exposure", type=cli.number(lambda x: 1 <= x <= 4, "a number from 1 to 4"), metavar="X",
        default=1.0, help=text)  # fmt: skip
    add("--pool", choices=["align", "pool"], default="align", help="RoIAlign, or RoIPool")
    text = "a mask for each class, or one class for each pixel"
    add("--masks", choices=["sigmoid", "softmax"], default="sigmoid", help=text)
    parser.add_switch("--pyramid", default=True, help="a pyramid, or the last map alone")
    args = parser.parse_args(argv)
    check_weights(args)
    if args.model.startswith("maskrcnn") and not has_masks(args.data):
        fail(f"--data {args.data} has boxes alone: take --model fasterrcnn_small, or "
             "fasterrcnn_resnet50_fpn")  # fmt: skip
    if max(args.min_size) > args.max_size:
        fail(f"--max-size {args.max_size} is below --min-size {max(args.min_size)}")
    return args


def build(args: cli.Flags, facts: dict) -> RCNN:
    """The network that the flags ask for."""
    settings = dict(pool=args.pool, pyramid=args.pyramid, most=args.detections)
    settings |= dict(mean=facts["mean"], std=facts["std"])
    if args.model.startswith("maskrcnn"):
        settings["masks"] = args.masks
    if args.model.endswith("small"):
        settings |= dict(width=args.width, proposals=args.proposals, regions=args.regions)
    else:
        settings |= dict(frozen=args.norms == "frozen", trainable=args.trainable)
    return MODELS[args.model](len(facts["classes"]) + 1, args.min_size, args.max_size, **settings)


def step_size(steps: int, args: cli.Flags, step: int) -> float:
    """Share of the rate: a rise; then half a cosine, or the paper's tenth after 3/4."""
    rise = min(1.0, (step + 1) / max(1, args.warmup))
    down = cosine(min(1.0, step / steps)) if args.optimizer == "adamw" else 1.0
    return rise * (down if args.optimizer == "adamw" else 1.0 if step < steps * 3 / 4 else 0.1)


@torch.inference_mode()
def evaluate(
    model: RCNN, images: InstanceSet, dev: Device, args: cli.Flags, folder: Path | None = None
) -> dict[str, float]:
    """COCO's precision of boxes and masks; with `folder` the curves there."""
    model.eval()
    mine = []
    for pixels, _, places in images.batches(args.batch_size):
        with dev.autocast():
            found = model(pixels)
        mine += zip(places.tolist(), map(answer_of, found), strict=True)
    everyone = dict(pair for share in dev.gather(mine) for pair in share)
    answers = [everyone[i] for i in range(len(images))]
    metrics, curves = measure(answers, images, args.detections)
    for kind, curve in curves.items() if folder and dev.main else ():
        draw_curves(curve, images.facts["classes"], folder / f"precision_recall_{kind}.png")
    return {f"{images.part}_{key}": value for key, value in metrics.items()}


@cli.command
def main(argv: list[str] | None = None) -> dict[str, float]:
    """Trains, or evaluates a checkpoint; returns the training and test metrics."""
    args = parse_args(argv)
    dev = Device(args)
    train, val, test = load_instances(args, dev)
    model = build(args, train.facts)
    start_from(model, args, dev, train.facts)
    net = dev.wrap(model)
    if args.optimizer == "sgd":
        settings = dict(momentum=0.9, weight_decay=1e-4, fused=not args.fsdp)
        optimizer = torch.optim.SGD(trained(model), args.lr, **settings)
    else:
        optimizer = torch.optim.AdamW(
            trained(model), args.lr, weight_decay=0.05, fused=not args.fsdp
        )
    steps = args.epochs * len(train.batches(args.batch_size))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, partial(step_size, steps, args))
    metric = "val_mask_ap50" if args.model.startswith("maskrcnn") else "val_box_ap50"
    parts = dict(model=model, optimizer=optimizer, schedule=schedule, dataset=train.facts)
    run = Run(args, dev, (metric, max), **parts)
    if args.evaluate:
        return run.finish(**evaluate(model, test, dev, args, run.folder))

    augment = partial(change, mirror=args.mirror, exposure=args.exposure) if args.augment else None
    for epoch in run.epochs():
        model.train()
        keep_frozen(model)
        for images, targets, _ in run.progress(train.batches(args.batch_size, augment)):
            with dev.autocast():
                losses = net(images, targets)  # of proposals, classes, boxes and masks
            loss = sum(losses.values())
            run.add(train_loss=loss, **losses)
            if dev.step(loss, optimizer):
                schedule.step()
        run.log(epoch, **run.means(), **(evaluate(model, val, dev, args) if val else {}))
        run.save()
    return run.finish(**run.means(), **evaluate(model, test, dev, args, run.folder))


if __name__ == "__main__":
    main()
