"""Trains GoogLeNet (Szegedy et al. 2014) and Inception-v3 (Szegedy et al. 2015).

    python googlenet/train.py                                # shapes: 97.6%, 83 s
    python googlenet/train.py --no-aux                       # the same without auxiliary heads
    python googlenet/train.py --model inception_v3_small     # Inception-v3, small: 98.4%, 70 s
    python googlenet/train.py --data cifar10 --data-dir PATH --epochs 30
    python googlenet/train.py --paper --data folder:PATH     # ImageNet's tree
    python googlenet/train.py --paper --model inception_v3 --data folder:PATH    # its own paper
    python googlenet/train.py --model googlenet_bn --data folder:PATH --size 128   # your own images
    python googlenet/train.py --model googlenet_bn --weights imagenet --freeze --data folder:PATH

Measured on one core of a Zen 4 server, Inception-v3 of a Zen 5 (see the README).
"""

import argparse
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from common import cli, fail
from common.classify import Tally, check_images
from common.data.augment import crop_and_flip, resized_window
from common.data.images import IMAGE_SETS, ImageSet, add_image_flags, load_images
from common.device import Device
from common.run import Run, start_average
from common.schedule import warmup_and_cosine
from common.weights import add_weight_flags, check_weights, keep_frozen, start_from, trained
from googlenet.model import MODELS

# fmt: off
QUICK = dict(model="googlenet_bn_small", data="shapes",               epochs=4,   val=500, batch_size=64, lr=0.1,  schedule="cosine")  # noqa: E501
PAPER = dict(model="googlenet",          data="folder:data/imagenet", epochs=250, val=0,   batch_size=32, lr=0.01, schedule="stairs", average=0.9999)  # noqa: E501
V3 = dict(optimizer="rmsprop", epochs=100, batch_size=1600, lr=0.045, smoothing=0.1, clip=2.0)  # Sec. 8: 50 times 32  # noqa: E501
# fmt: on
V3_MODELS = ("inception_v3", "inception_v3_small")
PUBLISHED = {"googlenet_bn": "googlenet", "inception_v3": "inception_v3"}  # torchvision's names
HEADS = ("fc", "aux1.fc2", "aux2.fc2", "AuxLogits.fc")  # that know the number of classes
AUXILIARY = ("aux1", "aux2", "AuxLogits")
HALF = {"mean": [0.5] * 3, "std": [0.5] * 3}  # torchvision's weights take pixels from -1 to 1


def recipe(model: str, data: str | None, paper: bool, **_) -> tuple[dict, dict]:
    """The size of the images; Inception-v3 smooths its labels, and has a paper of its own."""
    photos = (data or ("folder:" if paper else "")).startswith("folder:")
    large, less = (299, 96) if model in V3_MODELS else (224, 64)
    own = dict(size=32 if model.endswith("small") else large if photos else less)
    if model in V3_MODELS:
        return own | (V3 if paper else dict(smoothing=0.1)), {}
    return own, {"whole_filters": "it is for inception_v3"}


def parse_args(argv: list[str] | None = None) -> cli.Flags:
    """The flags; see --help."""
    parser = cli.Parser("googlenet", __doc__, QUICK, PAPER, MODELS, IMAGE_SETS, recipe)
    add_image_flags(parser)
    add_weight_flags(parser)
    add, switch = parser.add_argument, parser.add_switch
    switch("--aux", default=True, help="train the auxiliary heads, too")
    switch("--whole-filters", help="5x5 and 7x7 filters in one piece, as before Inception-v3")
    switch("--augment", default=True, help="train on changed images")
    text = "of lr; stairs: the paper's, down by steps"
    add("--schedule", choices=["cosine", "stairs"], help=text)
    add("--optimizer", choices=["sgd", "rmsprop"], default="sgd", help="rmsprop: Inception-v3's")
    text = "share of the labels spread over all classes"
    add("--smoothing", type=cli.share, metavar="EPS", default=0.0, help=text)
    text = "evaluate an average of weights, of this decay (0: the last weights)"
    add("--average", type=cli.share, metavar="DECAY", default=0.0, help=text)
    add("--size", type=cli.integer(8), metavar="S", help="pixels the network sees")
    args = parser.parse_args(argv)
    check_weights(args, PUBLISHED)
    if args.average and args.fsdp:
        fail("--average needs whole parameters: leave --fsdp away")
    return args


def stairs(model: str, per_epoch: int, step: int) -> float:
    """Share of the learning rate: 4% less every 8 epochs (Sec. 6); Inception-v3's, 6% every 2."""
    factor, epochs = (0.94, 2) if model in V3_MODELS else (0.96, 8)
    return factor ** (step // (epochs * per_epoch))


def make_optimizer(args: cli.Flags, weights: list[nn.Parameter]) -> torch.optim.Optimizer:
    """SGD with momentum, or Inception-v3's RMSProp (its Sec. 8), which grows slowly by eps 1."""
    if args.optimizer == "rmsprop":
        return torch.optim.RMSprop(
            weights, args.lr, alpha=0.9, eps=1.0, momentum=0.9, weight_decay=4e-5
        )
    fused = not args.fsdp  # torch has no fused SGD for shards
    return torch.optim.SGD(weights, args.lr, momentum=0.9, weight_decay=2e-4, fused=fused)


def up_and_down(steps: int, step: int) -> float:
    """Share of the learning rate in short trainings: up for a tenth of them, then down to zero."""
    return warmup_and_cosine((step + 1) / (steps + 1))


def build(args: argparse.Namespace, num_classes: int, **own: bool) -> nn.Module:
    """The network that the flags ask for, with its auxiliary heads."""
    own |= {"factorised": not args.whole_filters} if args.model in V3_MODELS else {}
    return MODELS[args.model](num_classes, **own)


@torch.inference_mode()
def evaluate(
    model: nn.Module, images: ImageSet, dev: Device, ema: dict, picture: Path | None = None
) -> dict[str, float]:
    """Mean loss and accuracy over a part of the data; `picture` is for the confusion matrix.

    `ema` holds the averaged weights to measure, or nothing.
    """
    model.eval()
    tally = Tally(images, dev)
    for x, labels in images.batches(250):
        with dev.autocast():
            logits = torch.func.functional_call(model, ema, x)
            loss = F.cross_entropy(logits, labels, reduction="sum")
        tally.add(loss, logits.argmax(1), labels)
    return tally.metrics(picture)


@cli.command
def main(argv: list[str] | None = None) -> dict[str, float]:
    """Trains, or evaluates a checkpoint; returns the training and test metrics."""
    args = parse_args(argv)
    dev = Device(args)
    # Of folders any 8 to 100% of an image, 3:4 to 4:3, half of them mirrored (Sec. 6).
    window = resized_window if args.augment else None
    train, val, test = load_images(args, dev, args.size, window=window)
    model = build(args, len(train.facts["classes"]))
    check_images(model, args, dev, len(train), args.size)
    start_from(model, args, dev, train.facts, HEADS, PUBLISHED, HALF, AUXILIARY)
    for name in AUXILIARY if not args.aux else ():
        if hasattr(model, name):  # only now, so that the rest begins with the same weights
            setattr(model, name, None)
    net = dev.wrap(model)
    optimizer = make_optimizer(args, trained(model))
    per_epoch = len(train.batches(args.batch_size))
    rate = partial(up_and_down, args.epochs * per_epoch)
    if args.schedule == "stairs":
        rate = partial(stairs, args.model, per_epoch)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    ema, facts = {}, train.facts
    run = Run(
        args, dev, model=model, optimizer=optimizer, schedule=schedule, ema=ema, dataset=facts
    )
    floats = {name: t for name, t in model.state_dict().items() if t.is_floating_point()}
    start_average(ema, floats if args.average else {})
    if args.evaluate:
        return run.finish(**evaluate(model, test, dev, ema, run.folder / "confusion.png"))

    folder = args.data.startswith("folder:")
    augment = crop_and_flip if args.augment and not folder else None
    criterion = partial(F.cross_entropy, label_smoothing=args.smoothing)
    share = 0.4 if args.model in V3_MODELS else 0.3  # Sec. 5; v3: its authors' code
    for epoch in run.epochs():
        model.train()
        keep_frozen(model)
        for images, labels in run.progress(train.batches(args.batch_size, augment=augment)):
            with dev.autocast():
                outputs = net(images)
                logits, *auxiliary = outputs if args.aux else [outputs]
                loss = criterion(logits, labels)
                extra = sum(criterion(other, labels) for other in auxiliary)
            run.add(train_loss=loss, train_accuracy=(logits.argmax(1) == labels).float().mean())
            if dev.step(loss + share * extra, optimizer):
                schedule.step()
                for name, average in ema.items():  # Polyak averaging (Sec. 6)
                    average.lerp_(floats[name], 1 - args.average)
        run.log(epoch, **run.means(), **(evaluate(model, val, dev, ema) if val else {}))
        run.save()
    picture = run.folder / "confusion.png"
    return run.finish(**run.means(), **evaluate(model, test, dev, ema, picture))


if __name__ == "__main__":
    main()
