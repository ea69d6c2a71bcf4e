"""Trains EfficientNets (Tan and Le 2019).

python efficientnet/train.py                                  # shapes: 98%, 100 s of one core
python efficientnet/train.py --data cifar10 --data-dir PATH --epochs 15
python efficientnet/train.py --paper --data folder:PATH       # ImageNet's tree, B0
python efficientnet/train.py --paper --model efficientnet_b3 --data folder:PATH
python efficientnet/train.py --model efficientnet_b0 --data folder:PATH --size 128     # your own
python efficientnet/train.py --model efficientnet_b0 --weights imagenet --freeze --data folder:PATH

efficientnet_small is for 32 pixels, and gains nothing from bf16. Departure: RMSProp is torch's: it
begins with squared gradients of zero, not one, and adds eps behind the root: 0.03 for 0.001 under.
"""

import argparse
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from common import cli, fail
from common.classify import Tally, check_images
from common.data.augment import resized_window
from common.data.images import IMAGE_SETS, ImageSet, add_image_flags, load_images
from common.device import Device
from common.run import Run, start_average
from common.schedule import warmup_and_cosine
from common.weights import add_weight_flags, check_weights, keep_frozen, start_from, trained
from efficientnet.augment import auto_augment, small_images
from efficientnet.model import MODELS, SIZES, EfficientNet, current_name

# fmt: off
QUICK = dict(model="efficientnet_small", data="shapes",               epochs=5,   val=500,   batch_size=32,   lr=0.002, optimizer="rmsprop", schedule="cosine")  # noqa: E501
PAPER = dict(model="efficientnet_b0",    data="folder:data/imagenet", epochs=350, val=25000, batch_size=4096, lr=0.256, optimizer="rmsprop", schedule="stairs",  # noqa: E501
             patience=350, smoothing=0.1, average=0.9999, autoaugment=True)  # Sec. 5.2
CIFAR = dict(data="cifar10", val=2500, batch_size=256, lr=0.016)  # the same for small images
PUBLISHED = {name: name for name in SIZES}  # by torchvision
# fmt: on
FIXED = ("width", "depth", "excitation", "padding")  # by a checkpoint


def recipe(model: str, data: str | None, paper: bool, **_) -> tuple[dict, dict]:
    """Resolution and dropout of the model; a small one has multipliers, too."""
    if model == "efficientnet_small":
        own = CIFAR if paper else {}
        return own | dict(size=32, width=0.5, depth=0.5, dropout=0.1, drop_path=0.0), {}
    _, _, size, dropout = SIZES[model]
    photos = paper or (data or "").startswith("folder:")
    own = dict(size=size if photos else 64, dropout=dropout, drop_path=0.2)
    return own, dict.fromkeys(("width", "depth"), f"{model} has the paper's")


def parse_args(argv: list[str] | None = None) -> cli.Flags:
    """The flags; see --help."""
    parser = cli.Parser("efficientnet", __doc__, QUICK, PAPER, MODELS, IMAGE_SETS, recipe, FIXED)
    add_image_flags(parser)
    add_weight_flags(parser)
    add, switch = parser.add_argument, parser.add_switch
    add("--size", type=cli.integer(8), metavar="S", help="pixels the network sees")
    add("--width", type=cli.multiplier, metavar="W", help="times the channels of B0")
    add("--depth", type=cli.multiplier, metavar="D", help="times the blocks of B0")
    switch("--excitation", default=True, help="squeeze-and-excitation in every block")
    text = "same: TensorFlow's, and its eps, for weights from there"
    add("--padding", choices=["symmetric", "same"], default="symmetric", help=text)
    add("--dropout", type=cli.share, metavar="RATE", help="before the last layer")
    text = "share of examples that skip a block, in the last one: the first skips none"
    add("--drop-path", type=cli.share, metavar="RATE", help=text)
    add("--optimizer", choices=["sgd", "rmsprop"], help="rmsprop: the paper's")
    text = "of lr; stairs: the paper's, 5 epochs up, then times 0.97 each 2.4 epochs"
    add("--schedule", choices=["cosine", "stairs"], help=text)
    text = "share of the labels spread over all classes"
    add("--smoothing", type=cli.share, metavar="EPS", default=0.0, help=text)
    text = "evaluate an average of weights, of this decay (0: the last weights)"
    add("--average", type=cli.share, metavar="DECAY", default=0.0, help=text)
    switch("--augment", default=True, help="train on changed images")
    switch("--autoaugment", default=False, help="change them more, by AutoAugment's policies")
    args = parser.parse_args(argv)
    check_weights(args, PUBLISHED)
    if args.autoaugment and not args.augment:
        fail("--autoaugment changes images, and --no-augment leaves them: choose one")
    if args.weights == "imagenet" and args.padding == "same":
        fail("torchvision's weights were trained with symmetric padding: leave --padding same away")
    if args.average and args.fsdp:
        fail("--average needs whole parameters, which --fsdp cuts: add --average 0")
    return args


def build(args: argparse.Namespace, num_classes: int) -> EfficientNet:
    """The network that the flags ask for."""
    scale = dict(width=args.width, depth=args.depth) if args.model == "efficientnet_small" else {}
    kind = dict(dropout=args.dropout, drop_path=args.drop_path, excitation=args.excitation)
    return MODELS[args.model](num_classes, padding=args.padding, **kind, **scale)


def make_optimizer(args: cli.Flags, model: nn.Module) -> torch.optim.Optimizer:
    """The paper's RMSProp, or SGD; weights are decayed but for those of batch norm."""
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    plain = {p for norm in norms for p in norm.parameters()}
    decay = 1e-5 if args.optimizer == "rmsprop" else 1e-4
    groups = [
        dict(params=[p for p in trained(model) if p not in plain], weight_decay=decay),
        dict(params=[p for p in trained(model) if p in plain], weight_decay=0.0),
    ]
    if args.optimizer == "rmsprop":
        return torch.optim.RMSprop(groups, args.lr, alpha=0.9, momentum=0.9, eps=0.03)
    return torch.optim.SGD(groups, args.lr, momentum=0.9, nesterov=True, fused=not args.fsdp)


def stairs(per_epoch: int, step: int) -> float:
    """Share of the rate: up for 5 epochs, then 0.97 for every 2.4 epochs since the beginning."""
    if step < 5 * per_epoch:
        return (step + 1) / (5 * per_epoch)
    return 0.97 ** (step // (2.4 * per_epoch))


def up_and_down(steps: int, step: int) -> float:
    """Share of the rate in short trainings: up for a tenth of them, then down to zero."""
    return warmup_and_cosine((step + 1) / (steps + 1))


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
    dev = Device(args, auto_precision="fp32" if args.model == "efficientnet_small" else "bf16")
    window = resized_window if args.augment else None
    train, val, test = load_images(args, dev, args.size, window=window)
    model = build(args, len(train.facts["classes"]))
    check_images(model, args, dev, len(train), args.size)
    start_from(model, args, dev, train.facts, ("classifier",), PUBLISHED, current_name=current_name)
    net = dev.wrap(model)
    optimizer = make_optimizer(args, model)
    per_epoch = len(train.batches(args.batch_size))
    ways = {"cosine": (up_and_down, args.epochs * per_epoch), "stairs": (stairs, per_epoch)}
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, partial(*ways[args.schedule]))
    ema, parts = {}, dict(optimizer=optimizer, schedule=schedule, dataset=train.facts)
    run = Run(args, dev, model=model, ema=ema, **parts)
    floats = {name: t for name, t in model.state_dict().items() if t.is_floating_point()}
    start_average(ema, floats if args.average else {})
    picture = run.folder / "confusion.png"
    if args.evaluate:
        return run.finish(**evaluate(model, test, dev, ema, picture))

    augment = partial(small_images, auto=args.autoaugment)
    if args.data.startswith("folder:"):  # windows are cut, and mirrored, already
        augment = partial(auto_augment, policy="imagenet") if args.autoaugment else None
    augment = augment if args.augment else None
    for epoch in run.epochs():
        model.train()
        keep_frozen(model)
        for images, labels in run.progress(train.batches(args.batch_size, augment=augment)):
            with dev.autocast():
                logits = net(images)
                loss = F.cross_entropy(logits, labels, label_smoothing=args.smoothing)
            run.add(train_loss=loss, train_accuracy=(logits.argmax(1) == labels).float().mean())
            if dev.step(loss, optimizer):
                schedule.step()
                decay = min(args.average, (1 + run.step) / (10 + run.step))  # the first ones less
                for name, average in ema.items():
                    average.lerp_(floats[name], 1 - decay)
        run.log(epoch, **run.means(), **(evaluate(model, val, dev, ema) if val else {}))
        run.save()
    return run.finish(**run.means(), **evaluate(model, test, dev, ema, picture))


if __name__ == "__main__":
    main()
