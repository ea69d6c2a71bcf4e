"""Trains LeNet-5 (LeCun, Bottou, Bengio, Haffner 1998).

    python lenet/train.py                                     # real digits: 98.6% in 10 s
    python lenet/train.py --paper --data-dir PATH             # MNIST: 0.84% error, 5 minutes
    python lenet/train.py --paper --data-dir PATH --distort   # distorted images: 0.72%, 5 minutes
    python lenet/train.py --data folder:PATH                  # your own images, a folder a class

Measured on one core of a Zen 5 server (see the README). The errors on MNIST are means of three
seeds; the digits are those of seed 0, the default.
"""

import math
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from common import cli, fail, seed_of
from common.classify import Tally
from common.data.batches import Draw
from common.data.images import IMAGE_SETS, ImageSet, add_image_flags, load_images
from common.device import Device
from common.run import Run
from common.schedule import warmup_and_cosine
from lenet.model import MODELS, eq9_loss
from lenet.sdlm import SDLM

# fmt: off
QUICK = dict(model="lenet5", data="digits", epochs=40, val=137, batch_size=32, lr=2e-3)
PAPER = dict(model="lenet5", data="mnist",  epochs=20, val=0,   batch_size=32, lr=2e-3)
# fmt: on
OPTIMIZERS = {  # beside the paper's own, sdlm; a learning rate for each is in the README
    "sgd": torch.optim.SGD,
    "momentum": partial(torch.optim.SGD, momentum=0.9),
    "rmsprop": torch.optim.RMSprop,
    "adam": torch.optim.Adam,
    "adamw": partial(torch.optim.AdamW, weight_decay=0.05, fused=True),
}


def recipe(model: str, data: str | None, paper: bool, **_) -> tuple[dict, dict]:
    """Of other sets than the digits a tenth is for validation, at most 5,000 images."""
    return {} if paper or data in (None, "digits") else {"val": 5000}, {}


def parse_args(argv: list[str] | None = None) -> cli.Flags:
    """The flags; see --help."""
    parser = cli.Parser("lenet", __doc__, QUICK, PAPER, MODELS, IMAGE_SETS, recipe)
    add_image_flags(parser)
    add, optimizers = parser.add_argument, [*OPTIMIZERS, "sdlm"]
    add("--optimizer", choices=optimizers, default="adamw", help="which; sdlm is the paper's")
    add("--l1", type=cli.not_negative, metavar="L", default=0.0, help="penalty on |weight|")
    add("--l2", type=cli.not_negative, metavar="L", default=0.0, help="on half of weight^2")
    parser.add_switch("--distort", help="distort the training images")
    return parser.parse_args(argv)


def random_affine(
    images: Tensor,
    draw: Draw,
    degrees: float = 0.0,
    translate: float = 0.0,
    scale: float = 0.0,
    squeeze: float = 0.0,
    shear: float = 0.0,
) -> Tensor:
    """Small planar distortions, bilinear, zeros outside; returns float in the range it came in.

    Each amount is the half-width of a uniform distribution: `degrees` of rotation, `translate` in
    pixels, `scale` and `squeeze` (wider and flatter, or narrower and taller) as relative size,
    `shear` as the horizontal shift per unit of height.
    """
    angle, right, down, size, wide, slant = draw.uniform(-1, 1, 6).unbind(1)
    angle, size, wide = angle * math.radians(degrees), 1 + size * scale, 1 + wide * squeeze
    # The matrix maps places of the output to places of the input: hence the inverse sizes.
    across, along = 1 / (size * wide), wide / size
    cos, sin, slant = angle.cos(), angle.sin(), slant * shear
    height, width = images.shape[2:]
    row_x = torch.stack(
        [across * cos, across * (slant * cos - sin), right * translate * 2 / width], 1
    )
    row_y = torch.stack(
        [along * sin, along * (slant * sin + cos), down * translate * 2 / height], 1
    )
    matrices = torch.stack([row_x, row_y], 1)  # (B, 2, 3)
    grid = F.affine_grid(matrices, list(images.shape), align_corners=False)
    return F.grid_sample(images.to(grid.dtype), grid, align_corners=False)


def distort(images: Tensor, draw: Draw) -> Tensor:
    """Shifts, scaling, squeezing and shearing (Sec. III-B); the paper gives no amounts."""
    return random_affine(images, draw, translate=2, scale=0.15, squeeze=0.1, shear=0.3)


def paper_steps(done: float) -> float:
    """The paper's step sizes of epochs 1-2, 3-5, 6-8, 9-12, 13-20, over the first (Sec. III-B)."""
    shares = ((2 / 20, 1.0), (5 / 20, 0.4), (8 / 20, 0.2), (12 / 20, 0.1))
    return next((share for end, share in shares if done < end), 0.02)


def criterion(logits: Tensor, labels: Tensor, model: str) -> Tensor:
    """Eq. 9 for distances to bitmaps; cross-entropy for the modern network."""
    return eq9_loss(logits, labels) if model == "lenet5" else F.cross_entropy(logits, labels)


def penalty(model: torch.nn.Module, l1: float, l2: float) -> Tensor | float:
    """What is added to the loss: l1 * sum |w| + l2 / 2 * sum w^2 over all weights, not biases."""
    named = model.named_parameters() if l1 or l2 else []
    weights = [p for name, p in named if name.endswith("weight")]
    return sum(l1 * w.abs().sum() + l2 / 2 * w.square().sum() for w in weights)


@torch.inference_mode()
def evaluate(
    model: torch.nn.Module, images: ImageSet, dev: Device, name: str, picture: Path | None = None
) -> dict[str, float]:
    """Mean loss and accuracy over a part of the data; `picture` is for the confusion matrix."""
    model.eval()
    tally = Tally(images, dev)
    for x, labels in images.batches(1000):
        with dev.autocast():
            logits = model(x)
            loss = criterion(logits, labels, name) * len(labels)
        tally.add(loss, logits.argmax(1), labels)
    return tally.metrics(picture)


@cli.command
def main(argv: list[str] | None = None) -> dict[str, float]:
    """Trains, or evaluates a checkpoint; returns the test metrics."""
    args = parse_args(argv)
    if args.optimizer == "sdlm" and args.model != "lenet5":
        fail("--optimizer sdlm follows the curvature of lenet5's output units: use adamw")
    if args.optimizer == "sdlm" and args.fsdp:
        fail("--optimizer sdlm needs whole parameters: leave --fsdp away")
    if args.fsdp and (args.l1 or args.l2):
        fail("--l1 and --l2 add up whole parameters: leave --fsdp away")
    dev = Device(args, auto_precision="fp32")  # bf16 is no faster on so small a network
    # Paper is -0.1 and ink 1.175: the mean input is then about 0, its variance 1 (Sec. II-B).
    train, val, test = load_images(
        args, dev, size=28, pad=2, channels=1, mean=[0.1 / 1.275], std=[1 / 1.275]
    )
    model = MODELS[args.model](num_classes=len(train.facts["classes"]))
    net = dev.wrap(model)
    if args.optimizer == "sdlm":
        optimizer = SDLM(model.parameters(), args.lr)
        share = paper_steps
    else:
        optimizer = OPTIMIZERS[args.optimizer](model.parameters(), args.lr)
        share = warmup_and_cosine
    steps = args.epochs * len(train.batches(args.batch_size))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: share(step / steps))
    run = Run(args, dev, model=model, optimizer=optimizer, schedule=schedule, dataset=train.facts)
    if args.evaluate:
        return run.finish(**evaluate(model, test, dev, args.model, run.folder / "confusion.png"))

    augment = distort if args.distort else None
    for epoch in run.epochs():
        model.train()
        if args.optimizer == "sdlm" and run.epoch_begins:  # 500 images a pass (Sec. III-B)
            random = torch.Generator().manual_seed(seed_of("curvature", args.seed, epoch))
            some = torch.randperm(len(train), generator=random)[:500]
            optimizer.estimate(model, train.examples(some)[0], random)
        for images, labels in run.progress(train.batches(args.batch_size, augment=augment)):
            with dev.autocast():
                loss = criterion(net(images), labels, args.model)
            run.add(train_loss=loss)
            if dev.step(loss + penalty(model, args.l1, args.l2), optimizer):
                schedule.step()
        run.log(epoch, **run.means(), **(evaluate(model, val, dev, args.model) if val else {}))
        run.save()
    return run.finish(**evaluate(model, test, dev, args.model, run.folder / "confusion.png"))


if __name__ == "__main__":
    main()
