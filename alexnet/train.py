"""Trains AlexNet (Krizhevsky, Sutskever, Hinton 2012), or the small network of its Fig. 1.

    python alexnet/train.py                                          # shapes: TODO-MEASURE
    python alexnet/train.py --paper --data folder:PATH               # AlexNet on ImageNet's tree
    python alexnet/train.py --paper --model convnet4 --data-dir PATH # CIFAR-10: TODO-MEASURE
    python alexnet/train.py --model alexnet_owt --weights imagenet --freeze --data folder:PATH

Measured on two cores of a Zen 5 server (see the README).
"""

import argparse
import math
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alexnet.model import MODELS
from common import cli, fail
from common.classify import check_images
from common.data.augment import random_colour, random_crop, random_flip, scaled_window
from common.data.batches import Draw
from common.data.images import IMAGE_SETS, ImageSet, add_image_flags, colour_covariance, load_images
from common.device import Device
from common.run import Run
from common.weights import add_weight_flags, check_weights, keep_frozen, start_from, trained

# fmt: off
QUICK = dict(model="convnet4", data="shapes",               epochs=20,  val=500, batch_size=64,  lr=0.01)  # noqa: E501
PAPER = dict(model="alexnet",  data="folder:data/imagenet", epochs=90,  val=0,   batch_size=128, lr=0.01,  # noqa: E501
             colour_pca=True, ten_crop=True)  # Sec. 4.1 and 5
CIFAR = dict(                  data="cifar10",              epochs=100, val=0,   batch_size=64,  lr=0.01,  # noqa: E501
             colour_pca=False, ten_crop=False)  # --paper --model convnet4
# fmt: on
PIXELS = {"alexnet": 227, "alexnet_owt": 224, "convnet4": 32}
PUBLISHED = {"alexnet_owt": "alexnet"}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The flags; see --help."""
    parser = cli.Parser("alexnet", __doc__, QUICK, PAPER, MODELS, IMAGE_SETS)
    add_image_flags(parser)
    add_weight_flags(parser)
    add, either = parser.add_argument, argparse.BooleanOptionalAction
    text = "pixels the network sees: 32 for convnet4, for others 224 or 227 of folders, else 99"
    add("--size", type=cli.whole(8), help=text)
    add("--activation", choices=["relu", "tanh"], default="relu", help="of convnet4")
    add("--plain", action="store_true", help="convnet4 as for Fig. 1: nothing against overfitting")
    add("--colour-pca", action=either, default=False, help="shift colours as in Sec. 4.1")
    add("--ten-crop", action=either, default=False, help="average the test over ten crops")
    args = parser.parse_args(argv)
    check_weights(args, PUBLISHED)
    small = args.model == "convnet4"
    for flag in ("activation", "plain"):
        if flag in args.typed and not small:
            fail(f"--{flag} is for convnet4, the network of Fig. 1, not for {args.model}")
    if args.plain and args.colour_pca:
        fail("--plain leaves the images as they are: leave --colour-pca away")
    if args.paper and small:
        vars(args).update({k: v for k, v in CIFAR.items() if k not in args.chosen})
    own = small or args.data.startswith("folder:")
    args.size = args.size or (PIXELS[args.model] if own else 99)  # the least that has 2x2 maps
    return args


def build(args: argparse.Namespace, num_classes: int) -> nn.Module:
    """The network that the flags ask for."""
    choice = {"activation": args.activation} if args.model == "convnet4" else {}
    return MODELS[args.model](num_classes=num_classes, **choice)


def square_window(numbers: Tensor, height: Tensor, width: Tensor, size: int) -> Tensor:
    """7/8 of the middle square of an image, anywhere in it: the paper's 224 of 256 (Sec. 4.1)."""
    side, whole = torch.minimum(height, width), -(-size * 8 // 7)
    windows = scaled_window(numbers, side, side, size, whole, whole)
    windows[:, 0] += (width - side) / 2
    windows[:, 1] += (height - side) / 2
    windows[:, :2] = windows[:, :2].round()  # between pixels the window would be blurred
    return windows


def augment(images: Tensor, draw: Draw, shift: bool, covariance: Tensor | None) -> Tensor:
    """With `shift` an eighth padded on each side, a crop anywhere, half of them mirrored, as
    photographs were in `square_window`; then colours shifted by Sec. 4.1."""
    if shift:
        images = random_flip(random_crop(images, draw, padding=images.shape[3] // 8), draw)
    return images if covariance is None else random_colour(images, draw, covariance)


def ten_crops(images: Tensor, size: int) -> Tensor:
    """The corners and the middle, and their mirror images (Sec. 4.1): ten in a row for each.

    (B, C, H, H) to (10 B, C, size, size). Images without a margin get that of the training.
    """
    images = F.pad(images, [size // 8 if images.shape[3] == size else 0] * 4)
    end = images.shape[3] - size
    places = [(0, 0), (0, end), (end, 0), (end, end), (end // 2, end // 2)]
    crops = torch.stack([images[:, :, y : y + size, x : x + size] for y, x in places], 1)
    return torch.cat([crops, crops.flip(4)], 1).flatten(0, 1)


def step_size(drops: list[float], step: int) -> float:
    """Share of the learning rate in a step: a tenth from each of the steps `drops` on."""
    return 0.1 ** sum(step >= drop for drop in drops)


@torch.inference_mode()
def evaluate(
    model: nn.Module, images: ImageSet, dev: Device, picture: Path | None, ten_crop: bool = False
) -> dict[str, float]:
    """Mean loss and accuracy over a part of the data; `picture` is for the confusion matrix."""
    model.eval()
    num_classes = len(images.facts["classes"])
    loss, top5 = torch.zeros(2, device=dev.device)
    counts = torch.zeros(num_classes**2, device=dev.device)
    views = (lambda pixels, _: ten_crops(pixels, images.size)) if ten_crop else None
    for x, labels in images.batches(25 if ten_crop else 250, augment=views, whole=ten_crop):
        with dev.autocast():
            scores = model(x).float().log_softmax(1).view(len(labels), -1, num_classes)
        scores = scores.logsumexp(1) - math.log(scores.shape[1])  # of the mean of the softmax
        loss += F.nll_loss(scores, labels, reduction="sum")
        answers = scores.topk(min(5, num_classes)).indices  # (B, 5)
        top5 += (answers == labels[:, None]).sum()
        counts += torch.bincount(labels * num_classes + answers[:, 0], minlength=num_classes**2)
    loss, top5, counts = dev.sum(loss), dev.sum(top5), dev.sum(counts).view(-1, num_classes)
    if picture and dev.main:
        from common.plot import confusion_matrix

        confusion_matrix(counts, images.facts["classes"], picture)
    metrics = {"loss": loss / len(images), "accuracy": counts.trace() / counts.sum()}
    if num_classes > 10:
        metrics["top5_accuracy"] = top5 / counts.sum()
    return {f"{images.part}_{key}": float(value) for key, value in metrics.items()}


@cli.command
def main(argv: list[str] | None = None) -> dict[str, float]:
    """Trains, or evaluates a checkpoint; returns the training and test metrics."""
    args = parse_args(argv)
    small = args.model == "convnet4"
    dev = Device(args)
    window = None if args.plain else partial(square_window, size=args.size)
    train, val, test = load_images(args, dev, args.size, window=window)
    if args.model == "alexnet":  # its weights and its normalisation are made for pixels to 255
        train.facts["std"] = [1 / 255] * 3
    model = build(args, len(train.facts["classes"]))
    check_images(model, args, dev, args.size)
    heads = ("classifier",) if small else ("classifier.6",)
    start_from(model, args, dev, train.facts, heads, PUBLISHED)
    net = dev.wrap(model)
    decay = 0.0 if args.plain else 5e-4
    optimizer = torch.optim.SGD(trained(model), args.lr, 0.9, weight_decay=decay, fused=True)
    steps = args.epochs * len(train.batches(args.batch_size))
    # The paper waits until the validation error stands still; these are arXiv:1404.5997's places.
    drops = () if args.plain else (0.86, 0.93) if small else (0.25, 0.5, 0.75)
    share = partial(step_size, [drop * steps for drop in drops])
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, share)
    run = Run(args, dev, model=model, optimizer=optimizer, schedule=schedule, dataset=train.facts)
    test_metrics = partial(evaluate, model, test, dev, run.folder / "confusion.png", args.ten_crop)
    if args.evaluate:
        return run.finish(**test_metrics())

    colours = colour_covariance(train) if args.colour_pca else None
    shift = not args.data.startswith("folder:")
    change = None if args.plain else partial(augment, shift=shift, covariance=colours)
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
