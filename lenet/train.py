"""Trains LeNet-5 (LeCun et al. 1998).

python lenet/train.py                                 # scikit-learn's digits, seconds
python lenet/train.py --paper --data-dir PATH         # MNIST as in the paper
python lenet/train.py --paper --distort               # with distorted training images
python lenet/train.py --data folder:PATH              # your own images, a folder a class
"""

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from common import cli, fail, seed_of
from common.data.augment import random_affine
from common.data.batches import Draw
from common.data.images import IMAGE_SETS, ImageSet, add_image_flags, load_images
from common.device import Device
from common.run import Run
from lenet.model import MODELS, eq9_loss
from lenet.sdlm import SDLM

# fmt: off
QUICK = dict(model="lenet5", data="digits", epochs=30, val=137, optimizer="sdlm", lr=8e-3, batch_size=16)
PAPER = dict(model="lenet5", data="mnist",  epochs=20, val=0,   optimizer="sdlm", lr=8e-3, batch_size=16)
# fmt: on

# Sec. VII-C: the step size eta of epochs 1-2, 3-5, 6-8, 9-12 and after, here as a share of the first.
ETA = ((2, 1.0), (5, 0.4), (8, 0.2), (12, 0.1), (20, 0.02))


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The flags; see --help."""
    parser = cli.Parser("lenet", __doc__, QUICK, PAPER, MODELS, IMAGE_SETS)
    add_image_flags(parser)
    parser.add_argument("--optimizer", choices=["sdlm", "adamw"], help="sdlm is the paper's")
    parser.add_argument("--distort", action="store_true", help="distort the training images")
    parser.add_argument("--rubbish", type=cli.positive, default=1.0, help="the constant j of Eq. 9")
    return parser.parse_args(argv)


def eta(progress: float) -> float:
    """The paper's step size, relative to the first, where `progress` of the training is done."""
    return next(share for until, share in ETA if progress < until / 20 or until == 20)


def distort(images: Tensor, draw: Draw) -> Tensor:
    """Sec. III-B: shifts, scaling, squeezing and shearing; the paper gives no amounts."""
    return random_affine(images, draw, translate=2, scale=0.15, squeeze=0.1, shear=0.3)


@torch.inference_mode()
def evaluate(model: torch.nn.Module, images: ImageSet, dev: Device, args: argparse.Namespace,
             picture: Path | None = None) -> dict[str, float]:  # fmt: skip
    """Mean loss and accuracy over one part of the data; `picture` is for the confusion matrix."""
    model.eval()
    num_classes = len(images.facts["classes"])
    confusion = torch.zeros(num_classes**2, device=dev.device)
    loss = torch.zeros((), device=dev.device)
    for x, labels in images.batches(1000):
        with dev.autocast():
            logits = model(x)
            loss += criterion(logits, labels, args) * len(labels)
        confusion += torch.bincount(
            labels * num_classes + logits.argmax(1), minlength=num_classes**2
        )
    confusion, loss = dev.sum(confusion).view(num_classes, num_classes), dev.sum(loss)
    if picture and dev.main:
        from common.plot import confusion_matrix

        confusion_matrix(confusion, images.facts["classes"], picture)
    accuracy = confusion.trace() / confusion.sum()
    return {
        f"{images.part}_loss": float(loss / len(images)),
        f"{images.part}_accuracy": float(accuracy),
    }


def criterion(logits: Tensor, labels: Tensor, args: argparse.Namespace) -> Tensor:
    """Eq. 9 for distances, cross-entropy for the modern network."""
    if args.model == "lenet5":
        return eq9_loss(logits.float(), labels, args.rubbish)
    return F.cross_entropy(logits, labels)


@cli.command
def main(argv: list[str] | None = None) -> dict[str, float]:
    """Trains or evaluates; returns the test metrics."""
    args = parse_args(argv)
    if args.optimizer == "sdlm" and args.model != "lenet5":
        fail("--optimizer sdlm follows the curvature of lenet5's output units: use adamw")
    dev = Device(args, auto_precision="fp32")  # bf16 gains nothing on so small a network
    # Background -0.1 and ink 1.175, so that a picture's mean is about 0 and its variance 1 (Sec. II-B).
    train, val, test = load_images(
        args, dev, size=28, pad=2, channels=1, mean=[0.1 / 1.275], std=[1 / 1.275]
    )
    model = MODELS[args.model](num_classes=len(train.facts["classes"]))
    net = dev.wrap(model, channels_last=False)
    steps = args.epochs * len(train.batches(args.batch_size))
    if args.optimizer == "sdlm":
        optimizer = SDLM(model.parameters(), lr=args.lr)
        shape = eta
    else:
        optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, weight_decay=0.05)
        shape = lambda progress: 1 - progress  # noqa: E731
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: shape(step / steps))
    run = Run(args, dev, model=model, optimizer=optimizer, schedule=schedule, dataset=train.facts)
    if args.evaluate:
        return run.finish(**evaluate(model, test, dev, args, run.folder / "confusion.png"))

    for epoch in run.epochs():
        model.train()
        if args.optimizer == "sdlm" and run.position == 0:
            random = torch.Generator().manual_seed(seed_of("curvature", args.seed, epoch))
            some = torch.randperm(len(train), generator=random)[:500]
            optimizer.estimate(model, train.examples(some)[0], args.rubbish, random)
        for images, labels in run.progress(
            train.batches(args.batch_size, augment=distort if args.distort else None)
        ):
            with dev.autocast():
                loss = criterion(net(images), labels, args)
            run.add(train_loss=loss)
            if dev.step(loss, optimizer):
                schedule.step()
        run.log(epoch, **run.means(), **(evaluate(model, val, dev, args) if val else {}))
        run.save()
    return run.finish(**evaluate(model, test, dev, args, run.folder / "confusion.png"))


if __name__ == "__main__":
    main()
