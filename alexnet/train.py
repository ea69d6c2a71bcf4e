"""Trains AlexNet (Krizhevsky, Sutskever, Hinton 2012), or the small network of its Fig. 1.

    python alexnet/train.py                                          # shapes: 93.6%, 46 s
    python alexnet/train.py --data cifar10 --data-dir PATH --regularise --epochs 60
    python alexnet/train.py --paper --data folder:PATH               # ImageNet's tree
    python alexnet/train.py --model alexnet_owt --weights imagenet --freeze --data folder:PATH

Measured on one core of a Zen 4 server (see the README).
"""

import math
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alexnet.model import MODELS
from common import cli, fail
from common.classify import Tally, check_images
from common.data.augment import random_colour, random_crop, random_flip, scaled_window
from common.data.batches import Draw
from common.data.images import IMAGE_SETS, ImageSet, add_image_flags, colour_covariance, load_images
from common.device import Device
from common.run import Run
from common.schedule import cosine
from common.weights import add_weight_flags, check_weights, keep_frozen, start_from, trained

# fmt: off
QUICK = dict(model="convnet4", data="shapes",               epochs=10, val=500, batch_size=64,  lr=0.002)  # noqa: E501
PAPER = dict(model="alexnet",  data="folder:data/imagenet", epochs=90, val=0,   batch_size=128, lr=0.01,  # noqa: E501
             colour_pca=True, ten_crop=True)
# fmt: on
LARGE = dict(lr=0.01, optimizer="sgd", schedule="stairs", regularise=True)  # the paper's Sec. 4, 5
PIXELS = {"alexnet": 227, "alexnet_owt": 224, "convnet4": 32}
PUBLISHED = {"alexnet_owt": "alexnet"}


def recipe(model: str, data: str | None, paper: bool, **_) -> tuple[dict, dict]:
    """The large networks are trained as the paper says, convnet4 so only with --paper."""
    if model == "convnet4":
        own = dict(optimizer="adamw", schedule="cosine", regularise=False)
        return dict(size=32) | (LARGE if paper else own), {}
    photos = (data or ("folder:" if paper else "")).startswith("folder:")
    size = PIXELS[model] if photos else 99  # the least that leaves alexnet 2x2 maps
    return LARGE | dict(size=size), {"activation": f"it is for convnet4 of Fig. 1, not for {model}"}


def parse_args(argv: list[str] | None = None) -> cli.Flags:
    """The flags; see --help."""
    parser = cli.Parser("alexnet", __doc__, QUICK, PAPER, MODELS, IMAGE_SETS, recipe)
    add_image_flags(parser)
    add_weight_flags(parser)
    add, switch = parser.add_argument, parser.add_switch
    add("--size", type=cli.integer(8), metavar="S", help="pixels the network sees")
    add("--activation", choices=["relu", "tanh"], default="relu", help="after each layer (Fig. 1)")
    add("--optimizer", choices=["sgd", "adamw"], help="sgd is the paper's")
    add("--schedule", choices=["stairs", "cosine", "constant"], help="of lr; stairs: the paper's")
    switch("--regularise", help="with augmentation, weight decay and dropout (Fig. 1: without)")
    switch("--colour-pca", help="shift colours as in Sec. 4.1")
    switch("--ten-crop", help="average the test over ten crops")
    args = parser.parse_args(argv)
    check_weights(args, PUBLISHED)
    if args.colour_pca and not args.regularise:
        fail("--colour-pca changes the images: add --regularise")
    return args


def build(args: cli.Flags, num_classes: int) -> nn.Module:
    """The network that the flags ask for."""
    choice = {"activation": args.activation} if args.model == "convnet4" else {}
    model = MODELS[args.model](num_classes=num_classes, **choice)
    for module in model.modules():
        if isinstance(module, nn.Dropout) and not args.regularise:
            module.p = 0.0
    return model


def square_window(numbers: Tensor, height: Tensor, width: Tensor, size: int) -> Tensor:
    """7/8 of the middle square of an image, anywhere in it: the paper's 224 of 256 (Sec. 4.1)."""
    side, whole = torch.minimum(height, width), -(-size * 8 // 7)
    windows = scaled_window(numbers, side, side, size, whole, whole)
    middle = torch.stack([width - side, height - side], 1) / 2
    windows[:, :2] = (windows[:, :2] + middle).round()  # between pixels it would be blurred
    return windows


def augment(images: Tensor, draw: Draw, shift: bool, covariance: Tensor | None) -> Tensor:
    """Shifts by up to an eighth and mirrors, unless windows were cut; then Sec. 4.1's colours."""
    if shift:
        images = random_flip(random_crop(images, draw, padding=images.shape[3] // 8), draw)
    return images if covariance is None else random_colour(images, draw, covariance)


def ten_crops(images: Tensor, size: int) -> Tensor:
    """Corners, middle and their mirror images (Sec. 4.1): (B, C, H, H) to (10 B, C, size, size).

    Images without a margin are padded as in training. The ten of an image follow each other.
    """
    images = F.pad(images, [size // 8 if images.shape[3] == size else 0] * 4)
    end = images.shape[3] - size
    places = [(0, 0), (0, end), (end, 0), (end, end), (end // 2, end // 2)]
    crops = torch.stack([images[:, :, y : y + size, x : x + size] for y, x in places], 1)
    return torch.cat([crops, crops.flip(4)], 1).flatten(0, 1)


def step_size(schedule: str, steps: int, step: int) -> float:
    """Share of the learning rate in a step of a run of `steps`."""
    done = step / steps
    if schedule == "stairs":  # the paper waits for validation to stand still; so arXiv:1404.5997
        return 0.1 ** sum(done >= drop for drop in (0.25, 0.5, 0.75))
    return min(1.0, 10 * done) * cosine(done) if schedule == "cosine" else 1.0


@torch.inference_mode()
def evaluate(
    model: nn.Module, images: ImageSet, dev: Device, picture: Path | None, ten_crop: bool = False
) -> dict[str, float]:
    """Mean loss and accuracy, of over ten classes top-5 too; `picture`: the confusion matrix."""
    model.eval()
    num_classes = len(images.facts["classes"])
    tally, top5 = Tally(images, dev), torch.zeros((), device=dev.device)
    views = (lambda pixels, _: ten_crops(pixels, images.size)) if ten_crop else None
    for x, labels in images.batches(25 if ten_crop else 250, augment=views, margin=ten_crop):
        with dev.autocast():
            scores = model(x).float().log_softmax(1).view(len(labels), -1, num_classes)
        scores = scores.logsumexp(1) - math.log(scores.shape[1])  # of the mean of the softmax
        answers = scores.topk(min(5, num_classes)).indices  # (B, 5)
        tally.add(F.nll_loss(scores, labels, reduction="sum"), answers[:, 0], labels)
        top5 += (answers == labels[:, None]).sum()
    metrics = tally.metrics(picture)
    if num_classes > 10:
        metrics[f"{images.part}_top5_accuracy"] = float(dev.sum(top5) / len(images))
    return metrics


@cli.command
def main(argv: list[str] | None = None) -> dict[str, float]:
    """Trains, or evaluates a checkpoint; returns the training and test metrics."""
    args = parse_args(argv)
    folder = args.data.startswith("folder:")
    dev = Device(args)
    window = partial(square_window, size=args.size) if args.regularise else None
    train, val, test = load_images(args, dev, args.size, window=window)
    if args.model == "alexnet":  # its weights and its normalisation are made for pixels to 255
        train.facts["std"] = [1 / 255] * 3
    model = build(args, len(train.facts["classes"]))
    check_images(model, args, dev, len(train), args.size)
    head = "classifier" if args.model == "convnet4" else "classifier.6"
    start_from(model, args, dev, train.facts, (head,), PUBLISHED)
    net = dev.wrap(model)
    kind = partial(torch.optim.SGD, momentum=0.9) if args.optimizer == "sgd" else torch.optim.AdamW
    optimizer = kind(
        trained(model), args.lr, weight_decay=5e-4 if args.regularise else 0, fused=not args.fsdp
    )
    share = partial(step_size, args.schedule, args.epochs * len(train.batches(args.batch_size)))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, share)
    run = Run(args, dev, model=model, optimizer=optimizer, schedule=schedule, dataset=train.facts)
    test_metrics = partial(evaluate, model, test, dev, run.folder / "confusion.png", args.ten_crop)
    if args.evaluate:
        return run.finish(**test_metrics())

    colours = colour_covariance(train) if args.colour_pca else None
    change = partial(augment, shift=not folder, covariance=colours) if args.regularise else None
    for epoch in run.epochs():
        model.train()
        keep_frozen(model)
        for images, labels in run.progress(train.batches(args.batch_size, augment=change)):
            with dev.autocast():
                logits = net(images)
                loss = F.cross_entropy(logits, labels)
            run.add(train_loss=loss, train_accuracy=(logits.argmax(1) == labels).float().mean())
            if dev.step(loss, optimizer):
                schedule.step()
        run.log(epoch, **run.means(), **(evaluate(model, val, dev, None) if val else {}))
        run.save()
    return run.finish(**run.means(), **test_metrics())


if __name__ == "__main__":
    main()
