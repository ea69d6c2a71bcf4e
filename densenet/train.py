"""Trains densely connected networks (Huang, Liu, van der Maaten, Weinberger 2016).

python densenet/train.py                                 # shapes: 94.9%, 71 s
python densenet/train.py --paper --data-dir PATH         # CIFAR-10 with 100 layers, BC
python densenet/train.py --paper --no-augment --data-dir PATH                  # and dropout
python densenet/train.py --paper --model densenet121 --data folder:PATH        # ImageNet's tree
python densenet/train.py --model densenet121 --data folder:PATH --size 128     # your own images
python densenet/train.py --model densenet121 --weights imagenet --freeze --data folder:PATH

Measured on one core of a Zen 5 server, three seeds (see the README).
"""

import argparse
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F

from common import cli, fail
from common.classify import Tally, check_images
from common.data.augment import crop_and_flip, random_colour, scaled_window
from common.data.images import IMAGE_SETS, ImageSet, add_image_flags, colour_covariance, load_images
from common.device import Device
from common.run import Run
from common.weights import add_weight_flags, check_weights, keep_frozen, start_from, trained
from densenet.model import MODELS, DenseNet, current_name

CIFAR = [name for name, factory in MODELS.items() if getattr(factory, "args", ())]  # of 32 pixels
PUBLISHED = {name: name for name in MODELS if name not in CIFAR}  # by torchvision
# fmt: off
QUICK = dict(model="densenet_bc_22_12",  data="shapes",  epochs=4,   val=500, batch_size=64, lr=0.1)
PAPER = dict(model="densenet_bc_100_12", data="cifar10", epochs=300, val=0,   batch_size=64, lr=0.1)
IMAGENET = dict(data="folder:data/imagenet", epochs=90, batch_size=256)  # Sec. 4.2
LARGEST = dict(epochs=100, batch_size=128)  # of densenet161, for which the memory was short
# fmt: on


def recipe(
    model: str, data: str | None, paper: bool, augment: bool = True, **_
) -> tuple[dict, dict]:
    """Sec. 4.2: CIFAR's networks have dropout where images are not augmented; ImageNet's recipe."""
    if model in CIFAR:
        return dict(size=32, dropout=0.0 if augment else 0.2), {}
    own = IMAGENET | (LARGEST if model == "densenet161" else {}) if paper else {}
    photos = (data or own.get("data", "")).startswith("folder:")
    return own | dict(size=224 if photos else 64), {}


def parse_args(argv: list[str] | None = None) -> cli.Flags:
    """The flags; see --help."""
    parser = cli.Parser("densenet", __doc__, QUICK, PAPER, MODELS, IMAGE_SETS, recipe)
    add_image_flags(parser)
    add_weight_flags(parser)
    add = parser.add_argument
    add("--size", type=cli.integer(8), metavar="S", help="pixels the network sees")
    text = "share of what convolutions make that is left out, the first's excepted"
    add("--dropout", type=cli.share, metavar="RATE", default=0.0, help=text)
    parser.add_switch("--augment", default=True, help="train on changed images")
    text = "make joined features again for the gradients: less memory, longer steps"
    parser.add_switch("--recompute", help=text)
    args = parser.parse_args(argv)
    check_weights(args, PUBLISHED)
    if args.recompute and args.compile:
        fail("what is recomputed can't be compiled: leave --compile or --recompute away")
    return args


def build(args: argparse.Namespace, num_classes: int) -> DenseNet:
    """The network that the flags ask for."""
    options = dict(drop_rate=args.dropout, checkpoint=args.recompute)
    return MODELS[args.model](num_classes=num_classes, **options)


def drops(model: str) -> tuple[float, ...]:
    """The shares of a training after which the rate falls to a tenth (Sec. 4.2)."""
    if model in CIFAR:
        return 1 / 2, 3 / 4
    return (0.3, 0.6, 0.9) if model == "densenet161" else (1 / 3, 2 / 3)  # epochs 30, 60 (and 90)


def step_size(steps: int, drops: tuple[float, ...], step: int) -> float:
    """Share of the rate: a tenth of it after each of the `drops`, which are shares of `steps`."""
    return 0.1 ** sum(step >= steps * drop for drop in drops)


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
    # The shorter side scaled to 256 to 480 pixels, 224 of them cut out, as for residual networks.
    low, high = args.size * 8 // 7, args.size * 15 // 7
    window = partial(scaled_window, size=args.size, low=low, high=high)
    window = window if args.augment else None
    train, val, test = load_images(args, dev, args.size, window=window)
    model = build(args, len(train.facts["classes"]))
    check_images(model, args, dev, len(train), args.size)
    start_from(model, args, dev, train.facts, ("classifier",), PUBLISHED, current_name=current_name)
    net = dev.wrap(model)
    optimizer = torch.optim.SGD(
        trained(model), args.lr, momentum=0.9, nesterov=True, weight_decay=1e-4,
        fused=not args.fsdp,
    )  # fmt: skip
    steps = args.epochs * len(train.batches(args.batch_size))
    share = partial(step_size, steps, drops(args.model))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, share)
    run = Run(args, dev, model=model, optimizer=optimizer, schedule=schedule, dataset=train.facts)
    if args.evaluate:
        return run.finish(**evaluate(model, test, dev, run.folder / "confusion.png"))

    augment = crop_and_flip  # Sec. 4.1
    if args.data.startswith("folder:"):  # windows are mirrored already; colours as in [8, 11, 12]
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
