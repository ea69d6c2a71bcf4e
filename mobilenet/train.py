"""Trains MobileNets: v1 (Howard et al. 2017), v2 (Sandler et al. 2018), v3 (Howard et al. 2019).

python mobilenet/train.py                                 # shapes: 97.9%, 93 s on one core (Zen 4)
python mobilenet/train.py --data cifar10 --data-dir PATH --epochs 15
python mobilenet/train.py --model mobilenet_v1_cifar --no-separable    # full convolutions
python mobilenet/train.py --paper --data folder:PATH      # v1 on ImageNet's tree
python mobilenet/train.py --paper --model mobilenet_v3_large --data folder:PATH
python mobilenet/train.py --model mobilenet_v2 --data folder:PATH --size 128     # your own images
python mobilenet/train.py --model mobilenet_v2 --weights imagenet --freeze --data folder:PATH
"""

import argparse
import copy
import inspect
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common import cli, fail
from common.classify import Tally, check_images
from common.data.augment import crop_and_flip, scaled_window
from common.data.images import IMAGE_SETS, ImageSet, add_image_flags, load_images
from common.device import DTYPES, Device
from common.run import Run, start_average
from common.schedule import warmup_and_cosine
from common.weights import IMAGENET, add_weight_flags, check_weights, keep_frozen, start_from
from mobilenet.model import MODELS, folded

# fmt: off
QUICK = dict(model="mobilenet_v2_cifar", data="shapes",               epochs=3,   val=1000, batch_size=32, lr=0.03,  optimizer="sgd",     schedule="cosine")  # noqa: E501
PAPER = dict(model="mobilenet_v1",       data="folder:data/imagenet", epochs=300, val=0,    batch_size=96, lr=0.045, optimizer="rmsprop", schedule="stairs")  # noqa: E501
V3 = dict(epochs=600, batch_size=4096, lr=0.1, decay=1e-5, average=0.9999)  # its Sec. 6.1.1
# fmt: on
PUBLISHED = {n: n for n in ("mobilenet_v2", "mobilenet_v3_large", "mobilenet_v3_small")}
PUBLISHED["mobilenet_v1"] = "timm/mobilenetv1_100.ra4_e3600_r224_in1k"  # on the hub
HEADS = {"v1": "classifier", "v2": "classifier.1", "v3": "classifier.3"}  # know the classes
DROPOUT = {"v1": 0.001, "v2": 0.2, "v3": 0.2}  # v3: Sec. 6.1.1; v1, v2: the authors' code
FIXED = ("width", "separable", "linear")  # by a checkpoint
HALF = {"mean": [0.5] * 3, "std": [0.5] * 3}  # pixels from -1 to 1
INPUTS = {"v1": HALF, "v2": IMAGENET, "v3": IMAGENET}  # timm's v1: -1 to 1


def recipe(model: str, data: str | None, paper: bool, **_) -> tuple[dict, dict]:
    """Size and width that belong to the model; what only one of the architectures has."""
    cifar, version = model.endswith("cifar"), model[10:12]
    own = V3.copy() if paper and version == "v3" else {}
    own |= {"data": "cifar10"} if paper and cifar else {}
    photos = (data or ("folder:" if paper else "")).startswith("folder:")
    own |= dict(size=32 if cifar else 224 if photos else 64, dropout=DROPOUT[version])
    if cifar and (data or "shapes").startswith("shapes") and not paper:
        own |= dict(dropout=0.0, augment=False)  # they delay the start; nothing is overfitted
    own["width"] = inspect.signature(MODELS[model]).parameters["width"].default
    nothing = {} if version == "v1" else {"separable": "it is for the first MobileNet"}
    nothing |= {} if version == "v2" else {"linear": "it is for MobileNetV2"}
    if isinstance(MODELS[model], partial):
        nothing["width"] = f"{model} is of width {own['width']}"
    return own, nothing


def parse_args(argv: list[str] | None = None) -> cli.Flags:
    """The flags; see --help."""
    parser = cli.Parser("mobilenet", __doc__, QUICK, PAPER, MODELS, IMAGE_SETS, recipe, FIXED)
    add_image_flags(parser)
    add_weight_flags(parser)
    add, switch = parser.add_argument, parser.add_switch
    add("--size", type=cli.integer(8), metavar="S", help="pixels the network sees")
    add("--width", type=cli.multiplier, metavar="ALPHA", help="the width multiplier")
    add("--dropout", type=cli.share, metavar="RATE", help="of what the last layer reads")
    switch("--separable", default=True, help="depthwise and 1x1 convolutions, not full ones")
    switch("--linear", default=True, help="bottlenecks without ReLU6")
    add("--optimizer", choices=["sgd", "rmsprop"], help="rmsprop: the papers'")
    add("--schedule", choices=["cosine", "stairs"], help="of lr; stairs: the papers', by steps")
    text = "weight decay; depthwise filters, norms and biases have none"
    add("--decay", type=cli.not_negative, metavar="RATE", default=4e-5, help=text)
    text = "evaluate an average of weights, of this decay (0: the last weights)"
    add("--average", type=cli.share, metavar="DECAY", default=0.0, help=text)
    switch("--augment", default=True, help="train on changed images")
    args = parser.parse_args(argv)
    check_weights(args, PUBLISHED)
    if args.average and args.fsdp:
        fail("--average needs whole parameters: leave --fsdp away")
    return args


def build(args: argparse.Namespace, num_classes: int) -> nn.Module:
    """The network that the flags ask for."""
    own = {"v1": {"separable": args.separable}, "v2": {"linear": args.linear}}
    options = dict(width=args.width, dropout=args.dropout) | own.get(args.model[10:12], {})
    return MODELS[args.model](num_classes=num_classes, **options)


def make_optimizer(args: argparse.Namespace, model: nn.Module) -> torch.optim.Optimizer:
    """SGD with momentum, or the papers' RMSProp; no decay of depthwise filters (v1, Sec. 3.2)."""
    whole, thin = [], []
    for p in filter(lambda p: p.requires_grad, model.parameters()):
        (whole if p.dim() > 1 and p.shape[1] > 1 else thin).append(p)
    groups = [dict(params=whole, weight_decay=args.decay), dict(params=thin, weight_decay=0.0)]
    if args.optimizer == "rmsprop":  # eps: the authors' 1, of v3 0.001 under the root
        eps = 0.001**0.5 if args.model.startswith("mobilenet_v3") else 1.0
        return torch.optim.RMSprop(groups, args.lr, alpha=0.9, eps=eps, momentum=0.9)
    return torch.optim.SGD(groups, args.lr, momentum=0.9, nesterov=True, fused=not args.fsdp)


def step_size(args: argparse.Namespace, per_epoch: int, step: int) -> float:
    """Share of the rate: up for a tenth of the training, down to zero by half a cosine; or the
    papers' stairs, 2% less each epoch (v2, Sec. 6.1), of v3 1% less every three."""
    if args.schedule == "cosine":
        return warmup_and_cosine((step + 1) / (args.epochs * per_epoch + 1))
    factor, epochs = (0.99, 3) if args.model.startswith("mobilenet_v3") else (0.98, 1)
    return factor ** (step // (epochs * per_epoch))


def for_inference(model: nn.Module, dev: Device, ema: dict[str, Tensor]) -> nn.Module:
    """The network as it is evaluated: averaged weights if any, norms folded unless sharded."""
    if dev.fsdp:
        return model.eval()
    model = copy.deepcopy(model)
    model.load_state_dict(ema, strict=False)
    return folded(model, DTYPES[dev.precision])


@torch.inference_mode()
def evaluate(
    model: nn.Module, images: ImageSet, dev: Device, ema: dict, picture: Path | None = None
) -> dict[str, float]:
    """Mean loss and accuracy over a part of the data; `picture` is for the confusion matrix.

    `ema` holds the averaged weights to measure, or nothing.
    """
    net, tally = for_inference(model, dev, ema), Tally(images, dev)
    for x, labels in images.batches(250):
        with dev.autocast():
            logits = net(x)
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
    train, val, test = load_images(args, dev, args.size, window=window if args.augment else None)
    model = build(args, len(train.facts["classes"]))
    check_images(model, args, dev, len(train), args.size)
    head = (HEADS[args.model[10:12]],)
    start_from(model, args, dev, train.facts, head, PUBLISHED, INPUTS[args.model[10:12]])
    net = dev.wrap(model)
    optimizer = make_optimizer(args, model)
    share = partial(step_size, args, len(train.batches(args.batch_size)))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, share)
    ema, parts = {}, dict(optimizer=optimizer, schedule=schedule, dataset=train.facts)
    run = Run(args, dev, model=model, ema=ema, **parts)
    floats = {name: t for name, t in model.state_dict().items() if t.is_floating_point()}
    start_average(ema, floats if args.average else {})
    if args.evaluate:
        return run.finish(**evaluate(model, test, dev, ema, run.folder / "confusion.png"))

    photos = args.data.startswith("folder:")  # whose windows are mirrored already
    augment = crop_and_flip if args.augment and not photos else None
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
                for name, average in ema.items():
                    average.lerp_(floats[name], 1 - args.average)
        run.log(epoch, **run.means(), **(evaluate(model, val, dev, ema) if val else {}))
        run.save()
    metrics = evaluate(model, test, dev, ema, run.folder / "confusion.png")
    return run.finish(**run.means(), **metrics)


if __name__ == "__main__":
    main()
