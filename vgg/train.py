"""Trains VGG networks (Simonyan, Zisserman 2015).

    python vgg/train.py                                       # shapes: 99.5%, 57 s
    python vgg/train.py --data cifar10 --data-dir PATH --model vgg16_bn_small
    python vgg/train.py --paper --data folder:PATH            # ImageNet's tree, by the paper
    python vgg/train.py --model vgg16 --weights imagenet --freeze --data folder:PATH
    python vgg/train.py --evaluate runs/vgg/vgg16-folder-PATH/last.pt --dense 256 384 512

Measured on one core of a Zen 4 server (see the README).
"""

from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from common import cli, fail
from common.classify import Tally, check_images
from common.data.augment import crop_and_flip, random_colour, scaled_window
from common.data.files import ImageFiles
from common.data.images import (
    IMAGE_SETS,
    READERS,
    Held,
    ImageSet,
    Streamed,
    add_image_flags,
    colour_covariance,
    drawn,
    load_images,
)
from common.device import Device
from common.run import Run
from common.weights import add_weight_flags, check_weights, keep_frozen, start_from, trained
from vgg.model import MODELS, VGG, fully_convolutional

QUICK = dict(model="vgg11_bn_small", data="shapes", epochs=12, val=500, batch_size=64, lr=0.02)
PAPER = dict(model="vgg16", data="folder:data/imagenet", epochs=74, batch_size=256, lr=0.01)
PUBLISHED = {name: name for name in MODELS if name[5:] in ("", "_bn")}  # of torchvision


def recipe(
    model: str, data: str | None, paper: bool, size: int | None = None, **_
) -> tuple[dict, dict]:
    """Sizes of images, and with --paper the scales of training (Sec. 3.1) and test (Sec. 4.2)."""
    data, small = data or (PAPER if paper else QUICK)["data"], "small" in model
    photos = data.startswith("folder:")
    size = size or (32 if small else 224 if photos else 64)
    low, middle, high = (size * n // 7 for n in (8, 12, 16))  # 256, 384 and 512 of 224
    scales = dict(size=size, scales=[low, high if paper and photos else low])
    dense = paper and photos and size >= least_side(model)
    reason = f"it is for folder:PATH; images of {data} are shifted by an eighth instead"
    return scales | dict(dense=[low, middle, high] if dense else None), (
        {} if photos else {"scales": reason})  # fmt: skip


def least_side(model: str) -> int:
    """Pixels that the fully connected layers see."""
    return 32 if "small" in model else 224


def parse_args(argv: list[str] | None = None) -> cli.Flags:
    """The flags; see --help."""
    parser = cli.Parser("vgg", __doc__, QUICK, PAPER, MODELS, IMAGE_SETS, recipe)
    add_image_flags(parser)
    add_weight_flags(parser)
    add, side = parser.add_argument, cli.integer(8)
    add("--size", type=side, metavar="S", help="pixels the network sees")
    text = "the shorter side of training images, drawn anew each time"
    add("--scales", type=side, nargs=2, metavar=("LOW", "HIGH"), help=text)
    text = "test on whole images of Q pixels and their mirror images, averaged; none: on the middle"
    add("--dense", type=side, nargs="*", metavar="Q", help=text)
    args = parser.parse_args(argv)
    check_weights(args, PUBLISHED)
    (low, high), least = args.scales, least_side(args.model)
    if not args.size <= low <= high:
        fail(f"--scales {low} {high}: needs {args.size} (--size) <= LOW <= HIGH")
    if args.dense and min(args.size, *args.dense) < least:
        fail(f"--dense slides a window of {least} pixels: --size and each Q have to be as large")
    if args.dense and args.fsdp:
        fail("--dense needs whole parameters: leave --fsdp away")
    return args


def step_size(done: float) -> float:
    """Share of the rate: warm-up, then a tenth three times (Sec. 3.1; the paper says not when)."""
    return min(1.0, done / 0.05) * 0.1 ** sum(done >= part for part in (0.5, 0.75, 0.9))


def dense_logits(model: VGG, x: Tensor, scales: list[int]) -> Tensor:
    """Log-probabilities (B, K), averaged over scales and mirror images (Sec. 3.2 and 4.2)."""
    network, posteriors = fully_convolutional(model), []
    for side in scales:
        scaled = F.interpolate(x, (side, side), mode="bilinear", antialias=True)
        for view in (scaled, scaled.flip(3)):
            scores = network(view).mean((2, 3))  # (B, K, H', W') to (B, K)
            posteriors.append(scores.float().softmax(1))
    return torch.stack(posteriors).mean(0).log()


def whole_images(args: cli.Flags, dev: Device, test: ImageSet) -> ImageSet:
    """The test set for dense evaluation: all of the middle square, at the largest scale."""
    source, side = READERS[args.data.partition(":")[0]](args).parts["test"], max(args.dense)
    if isinstance(source.pixels, ImageFiles):
        files = ImageFiles(source.pixels.paths, side, top=test.facts["top"])
        images = Streamed(files, args.workers, dev)
    else:
        images = Held(drawn(source.pixels, side, 3, 0, dev), dev)
    return ImageSet("test", images, source.labels, test.facts, dev, side)


@torch.inference_mode()
def evaluate(
    model: VGG,
    images: ImageSet,
    dev: Device,
    picture: Path | None = None,
    scales: list[int] | None = None,
) -> dict[str, float]:
    """Mean loss and accuracy over a part of the data; `picture` is for the confusion matrix."""
    model.eval()
    tally = Tally(images, dev)
    most = max(1, 2**21 // images.size**2)  # memory for two million pixels
    for x, labels in images.batches(min(250, most)):
        with dev.autocast():
            logits = dense_logits(model, x, scales) if scales else model(x)
            loss = F.cross_entropy(logits, labels, reduction="sum")
        tally.add(loss, logits.argmax(1), labels)
    return tally.metrics(picture)


@cli.command
def main(argv: list[str] | None = None) -> dict[str, float]:
    """Trains, or evaluates a checkpoint; returns the training and test metrics."""
    args = parse_args(argv)
    dev = Device(args)
    window = partial(scaled_window, size=args.size, low=args.scales[0], high=args.scales[1])
    train, val, test = load_images(args, dev, args.size, window=window)
    model = MODELS[args.model](num_classes=len(train.facts["classes"]))
    check_images(model, args, dev, len(train), args.size)
    last = f"classifier.{len(model.classifier) - 1}"
    start_from(model, args, dev, train.facts, (last,), PUBLISHED)
    net = dev.wrap(model)
    optimizer = torch.optim.SGD(
        trained(model), args.lr, momentum=0.9, weight_decay=5e-4, fused=not args.fsdp
    )
    steps = args.epochs * len(train.batches(args.batch_size))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: step_size(step / steps))
    run = Run(args, dev, model=model, optimizer=optimizer, schedule=schedule, dataset=train.facts)
    test = whole_images(args, dev, test) if args.dense else test
    picture = run.folder / "confusion.png"
    if args.evaluate:
        return run.finish(**evaluate(model, test, dev, picture, args.dense))

    augment = crop_and_flip
    if args.data.startswith("folder:"):  # windows are mirrored already; the colours of Sec. 3.1
        augment = partial(random_colour, covariance=colour_covariance(train))
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
    return run.finish(**run.means(), **evaluate(model, test, dev, picture, args.dense))


if __name__ == "__main__":
    main()
