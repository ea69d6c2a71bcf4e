"""Trains residual networks (He, Zhang, Ren, Sun 2015).

    python resnet/train.py                                   # shapes: 97.7%, 76 s on one core
    python resnet/train.py --paper --data-dir PATH           # CIFAR-10 with 110 layers
    python resnet/train.py --paper --model resnet50 --data folder:PATH             # ImageNet's tree
    python resnet/train.py --model resnet18 --data folder:PATH --size 128          # your own images
    python resnet/train.py --model resnet50_v1_5 --weights imagenet --freeze --data folder:PATH

Measured on one core of a Zen 4 server (see the README).
"""

import argparse
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F

from common import cli
from common.classify import Tally, check_images
from common.data.augment import crop_and_flip, random_colour, scaled_window
from common.data.images import IMAGE_SETS, ImageSet, add_image_flags, colour_covariance, load_images
from common.device import Device
from common.run import Run
from common.weights import add_weight_flags, check_weights, keep_frozen, start_from, trained
from resnet.model import MODELS, ResNet

CIFAR = [name for name, factory in MODELS.items() if getattr(factory, "args", ())]  # of 32 pixels
PUBLISHED = {  # by torchvision, under these names
    name: name.removesuffix("_v1_5")
    for name in MODELS
    if name not in CIFAR and name[6:] not in ("50", "101", "152")
}
# fmt: off
QUICK = dict(model="resnet20",  data="shapes",  epochs=4,   val=500, batch_size=64,  lr=0.1)
PAPER = dict(model="resnet110", data="cifar10", epochs=164, val=0,   batch_size=128, lr=0.1)  # 4.2
IMAGENET = dict(data="folder:data/imagenet", epochs=120, batch_size=256)  # Sec. 3.4: 18+ layers
# fmt: on


def recipe(model: str, data: str | None, paper: bool, **_) -> tuple[dict, dict]:
    """Sec. 4.2 is for CIFAR's networks, Sec. 3.4 for ImageNet's."""
    if model in CIFAR:
        return dict(size=32, width=16, warmup=400 * (model == "resnet110")), {}
    own = IMAGENET if paper else {}
    photos = (data or own.get("data", "")).startswith("folder:")
    reason = f"{model} has the widths of Table 1"
    return own | dict(size=224 if photos else 64, warmup=0), {"width": reason}


def parse_args(argv: list[str] | None = None) -> cli.Flags:
    """The flags; see --help."""
    parser = cli.Parser("resnet", __doc__, QUICK, PAPER, MODELS, IMAGE_SETS, recipe)
    add_image_flags(parser)
    add_weight_flags(parser)
    add = parser.add_argument
    add("--size", type=cli.integer(8), metavar="S", help="pixels the network sees")
    add("--warmup", type=cli.integer(0), metavar="N", help="steps at a tenth of the rate, first")
    add("--width", type=cli.integer(1), metavar="C", help="channels of the first stage")
    parser.add_switch("--augment", default=True, help="train on changed images")
    args = parser.parse_args(argv)
    check_weights(args, PUBLISHED)
    return args


def build(args: argparse.Namespace, num_classes: int) -> ResNet:
    """The network that the flags ask for."""
    width = {"width": args.width} if args.model in CIFAR and args.width else {}
    return MODELS[args.model](num_classes=num_classes, **width)


def step_size(steps: int, warmup: int, step: int) -> float:
    """Share of the rate: a tenth after 1/2, a hundredth after 3/4 (32k and 48k of 64k steps)."""
    if step < warmup:
        return 0.1
    return 1.0 if step < steps / 2 else 0.1 if step < steps * 3 / 4 else 0.01


@torch.inference_mode()
def evaluate(
    model: torch.nn.Module, images: ImageSet, dev: Device, picture: Path | None = None
) -> dict[str, float]:
    """Mean loss and accuracy over a part of the data; `picture` is for the confusion matrix."""
    model.eval()
    tally = Tally(images, dev)
    for x, labels in images.batches(250):
        with dev.autocast():
            logits = model(x)
            loss = F.cross_entropy(logits, labels, reduction="sum")
        tally.add(loss, logits.argmax(1), labels)
    return tally.metrics(picture)


@cli.command
def main(argv: list[str] | None = None) -> dict[str, float]:
    """Trains, or evaluates a checkpoint; returns the training and test metrics."""
    args = parse_args(argv)
    dev = Device(args)
    # The shorter side scaled to 256 to 480 pixels, 224 of them cut out (Sec. 3.4).
    low, high = args.size * 8 // 7, args.size * 15 // 7
    window = partial(scaled_window, size=args.size, low=low, high=high)
    window = window if args.augment else None
    train, val, test = load_images(args, dev, args.size, window=window)
    model = build(args, len(train.facts["classes"]))
    check_images(model, args, dev, len(train), args.size)
    start_from(model, args, dev, train.facts, ("fc",), PUBLISHED)
    net = dev.wrap(model)
    optimizer = torch.optim.SGD(
        trained(model), args.lr, momentum=0.9, weight_decay=1e-4, fused=not args.fsdp
    )
    steps = args.epochs * len(train.batches(args.batch_size))
    share = partial(step_size, steps, args.warmup)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, share)
    run = Run(args, dev, model=model, optimizer=optimizer, schedule=schedule, dataset=train.facts)
    if args.evaluate:
        return run.finish(**evaluate(model, test, dev, run.folder / "confusion.png"))

    augment = crop_and_flip  # Sec. 4.2
    if args.data.startswith("folder:"):  # windows are mirrored already; the colours of Sec. 3.4
        augment = partial(random_colour, covariance=colour_covariance(train))
    augment = augment if args.augment else None
    for epoch in run.epochs():
        model.train()
        keep_frozen(model)
        for images, labels in run.progress(train.batches(args.batch_size, augment=augment)):
            with dev.autocast():
                logits = net(images)
                loss = F.cross_entropy(logits, labels)
            run.add(train_loss=loss, train_accuracy=(logits.argmax(1) == labels).float().mean())
            if dev.step(loss, optimizer):
                schedule.step()
        run.log(epoch, **run.means(), **(evaluate(model, val, dev) if val else {}))
        run.save()
    return run.finish(**run.means(), **evaluate(model, test, dev, run.folder / "confusion.png"))


if __name__ == "__main__":
    main()
