"""Trains GoogLeNet (Szegedy et al. 2014).

    python googlenet/train.py                                # shapes: 97.6%, 83 s
    python googlenet/train.py --no-aux                       # the same without auxiliary heads
    python googlenet/train.py --data cifar10 --data-dir PATH --epochs 30
    python googlenet/train.py --paper --data folder:PATH     # ImageNet's tree
    python googlenet/train.py --model googlenet_bn --data folder:PATH --size 128   # your own images
    python googlenet/train.py --model googlenet_bn --weights imagenet --freeze --data folder:PATH

Measured on one core of a Zen 4 server (see the README).
"""

import math
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common import cli, fail
from common.classify import Tally, check_images
from common.data.augment import random_crop, random_flip
from common.data.batches import Draw
from common.data.images import IMAGE_SETS, ImageSet, add_image_flags, load_images
from common.device import Device
from common.run import Run
from common.schedule import warmup_and_cosine
from common.weights import add_weight_flags, check_weights, keep_frozen, start_from, trained
from googlenet.model import MODELS

# fmt: off
QUICK = dict(model="googlenet_bn_small", data="shapes",               epochs=4,   val=500, batch_size=64, lr=0.1,  schedule="cosine")  # noqa: E501
PAPER = dict(model="googlenet",          data="folder:data/imagenet", epochs=250, val=0,   batch_size=32, lr=0.01, schedule="stairs", average=0.9999)  # noqa: E501
# fmt: on
PUBLISHED = {"googlenet_bn": "googlenet"}  # torchvision's name
HEADS = ("fc", "aux1.fc2", "aux2.fc2")  # the layers that know the number of classes
HALF = {"mean": [0.5] * 3, "std": [0.5] * 3}  # torchvision's weights take pixels from -1 to 1


def recipe(model: str, data: str | None, paper: bool, **_) -> tuple[dict, dict]:
    """The size of the images."""
    photos = (data or ("folder:" if paper else "")).startswith("folder:")
    return dict(size=32 if model.endswith("small") else 224 if photos else 64), {}


def parse_args(argv: list[str] | None = None) -> cli.Flags:
    """The flags; see --help."""
    parser = cli.Parser("googlenet", __doc__, QUICK, PAPER, MODELS, IMAGE_SETS, recipe)
    add_image_flags(parser)
    add_weight_flags(parser)
    add, switch = parser.add_argument, parser.add_switch
    switch("--aux", default=True, help="train the two auxiliary heads, too")
    switch("--augment", default=True, help="train on changed images")
    add("--schedule", choices=["cosine", "stairs"], help="of lr; stairs: times 0.96 every 8 epochs")
    text = "evaluate an average of weights, of this decay (0: the last weights)"
    add("--average", type=cli.share, metavar="DECAY", default=0.0, help=text)
    add("--size", type=cli.integer(8), metavar="S", help="pixels the network sees")
    args = parser.parse_args(argv)
    check_weights(args, PUBLISHED)
    return args


def resized_window(
    numbers: Tensor,
    height: Tensor,
    width: Tensor,
    area: tuple[float, float] = (0.08, 1.0),
    ratio: float = 4 / 3,
) -> Tensor:
    """A window with a share of the image's `area`, its sides at most 1:`ratio` (Inception's).

    What would reach beyond the image is narrowed to it.
    """
    share, aspect, x, y, side = numbers.unbind(1)
    pixels = (area[0] + share * (area[1] - area[0])) * height * width
    aspect = torch.exp((2 * aspect - 1) * math.log(ratio))  # log-uniform, as many wide as tall
    across = (pixels * aspect).sqrt().minimum(width)
    down = (pixels / aspect).sqrt().minimum(height)
    return torch.stack([x * (width - across), y * (height - down), across, down, side.round()], 1)


def crop_and_flip(images: Tensor, draw: Draw) -> Tensor:
    """4 of 32 pixels padded on each side, a random crop, half of them mirrored."""
    return random_flip(random_crop(images, draw, padding=images.shape[3] // 8), draw)


def stairs(per_epoch: int, step: int) -> float:
    """Share of the learning rate: 4% less every 8 epochs (Sec. 6)."""
    return 0.96 ** (step // (8 * per_epoch))


def up_and_down(steps: int, step: int) -> float:
    """Share of the learning rate in short trainings: up for a tenth of them, then down to zero."""
    return warmup_and_cosine((step + 1) / (steps + 1))


def start_average(ema: dict[str, Tensor], weights: dict[str, Tensor]) -> None:
    """Makes `ema` hold what a resumed run has averaged of `weights`, or else these themselves."""
    kept = dict(ema)
    ema.clear()
    ema.update({name: kept.get(name, w).to(w.device, copy=True) for name, w in weights.items()})


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
    if args.average and args.fsdp:
        fail("--average needs whole parameters: leave --fsdp away")
    dev = Device(args)
    # Of folders any 8 to 100% of an image, 3:4 to 4:3, half of them mirrored (Sec. 6).
    window = resized_window if args.augment else None
    train, val, test = load_images(args, dev, args.size, window=window)
    model = MODELS[args.model](num_classes=len(train.facts["classes"]))
    check_images(model, args, dev, len(train), args.size)
    start_from(model, args, dev, train.facts, HEADS, PUBLISHED, HALF, ("aux1", "aux2"))
    if not args.aux:  # only now, so that the rest begins with the same weights as with them
        model.aux1 = model.aux2 = None
    net = dev.wrap(model)
    weights = trained(model)
    fused = not args.fsdp  # torch has no fused SGD for shards
    optimizer = torch.optim.SGD(weights, args.lr, momentum=0.9, weight_decay=2e-4, fused=fused)
    per_epoch = len(train.batches(args.batch_size))
    rate = partial(up_and_down, args.epochs * per_epoch)
    if args.schedule == "stairs":
        rate = partial(stairs, per_epoch)
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
    for epoch in run.epochs():
        model.train()
        keep_frozen(model)
        for images, labels in run.progress(train.batches(args.batch_size, augment=augment)):
            with dev.autocast():
                outputs = net(images)
                logits, *auxiliary = outputs if args.aux else [outputs]
                loss = F.cross_entropy(logits, labels)
                extra = sum(F.cross_entropy(other, labels) for other in auxiliary)
            run.add(train_loss=loss, train_accuracy=(logits.argmax(1) == labels).float().mean())
            if dev.step(loss + 0.3 * extra, optimizer):  # Sec. 5
                schedule.step()
                for name, average in ema.items():  # Polyak averaging (Sec. 6)
                    average.lerp_(floats[name], 1 - args.average)
        run.log(epoch, **run.means(), **(evaluate(model, val, dev, ema) if val else {}))
        run.save()
    picture = run.folder / "confusion.png"
    return run.finish(**run.means(), **evaluate(model, test, dev, ema, picture))


if __name__ == "__main__":
    main()
