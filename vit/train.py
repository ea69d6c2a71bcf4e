"""Trains Vision Transformers (Dosovitskiy et al. 2020).

python vit/train.py                                         # shapes: 86.4%, 135 s on a busy core
python vit/train.py --data cifar10 --data-dir PATH --epochs 15
python vit/train.py --paper --data folder:PATH              # ImageNet's tree: B/16, 300 epochs
python vit/train.py --paper --weights imagenet --data folder:PATH    # fine-tuning, at 384 pixels
python vit/train.py --model vit_b_16 --weights imagenet --freeze --data folder:PATH
python vit/train.py --data folder:PATH --size 64            # your own images, from scratch
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
from common.run import Run
from common.schedule import cosine
from common.weights import (
    IMAGENET,
    add_weight_flags,
    check_weights,
    keep_frozen,
    start_from,
    trained,
)
from vit.model import MODELS, POOLS, POSITIONS, SIZES, VisionTransformer

# fmt: off
QUICK = dict(model="vit_tiny", data="shapes:50000",         epochs=5,   val=500, batch_size=32,   lr=1.3e-3, weight_decay=0.05,  # noqa: E501
             warmup=0.4, pool="mean")
PAPER = dict(model="vit_b_16", data="folder:data/imagenet", epochs=300, val=0,   batch_size=4096, lr=3e-3, weight_decay=0.3,  # noqa: E501
             dropout=0.1, warmup=10_000, clip=1.0, normalise="half")  # Table 3, B.1
TUNING = dict(optimizer="sgd", lr=0.01, weight_decay=0.0, warmup=0.1, dropout=0.0, clip=1.0)
PAPERS_TUNING = TUNING | dict(lr=0.03, epochs=8, batch_size=512, warmup=500)  # Table 4, B.1.1
PUBLISHED = {  # by torchvision; of H/14 those with a linear layer trained on frozen features
    name: name + ":IMAGENET1K_SWAG_LINEAR_V1" * (name == "vit_h_14")
    for name in MODELS if name != "vit_tiny"
}
# fmt: on
INPUTS = {"data": {}, "half": dict(mean=[0.5] * 3, std=[0.5] * 3), "imagenet": IMAGENET}
SHAPE = ("patch_size", "d_model", "num_layers", "num_heads")  # of vit_tiny
FIXED = ("size", *SHAPE, "positions", "pool", "normalise")  # by a checkpoint


def recipe(
    model: str, data: str | None, paper: bool, weights: str | None = None, **_
) -> tuple[dict, dict]:
    """The size of the images, and what fine-tuning changes."""
    photos = (data or PAPER["data"] * paper).startswith("folder:")
    tuning = (PAPERS_TUNING if paper else TUNING) if weights else {}
    scenes = (data or QUICK["data"]).startswith("shapes") and not photos
    if model == "vit_tiny":
        small = dict(size=24, patch_size=8, d_model=96) if scenes else dict(size=32)
        sizes = dict(size=64, patch_size=8) if photos else small
        return SIZES["tiny"] | dict(augment=not scenes) | sizes | tuning, {}
    patch = SIZES[model.removeprefix("vit_")]["patch_size"]
    size = (518 if patch == 14 else 384) if paper and weights else 224  # Sec. 4.2
    size = size if photos else 56 if patch == 14 else 64
    own = dict(size=size, patch_size=patch, pool="token") | ({} if paper else dict(lr=3e-4))
    return own | tuning, dict.fromkeys(SHAPE, f"{model} has its own")


def parse_args(argv: list[str] | None = None) -> cli.Flags:
    """The flags; see --help."""
    parser = cli.Parser("vit", __doc__, QUICK, PAPER, MODELS, IMAGE_SETS, recipe, FIXED)
    add_image_flags(parser)
    add_weight_flags(parser)
    add = parser.add_argument
    add("--size", type=cli.integer(8), metavar="S", help="pixels the network sees")
    for name, of in (("patch-size", "pixels of a patch"), ("d-model", "numbers of a token"),
                     ("num-layers", "blocks"), ("num-heads", "heads of a block")):  # fmt: skip
        add(f"--{name}", type=cli.integer(1), metavar="N", help=f"{of}, of vit_tiny")
    text = "how places are told apart (appendix D.4)"
    add("--positions", choices=POSITIONS, default="1d", help=text)
    text = "what is classified: the class token, or the mean of the patches' (D.3)"
    add("--pool", choices=POOLS, default="token", help=text)
    text = "after every dense layer but those of q, k and v"
    add("--dropout", type=cli.share, metavar="RATE", default=0.0, help=text)
    text = "adamw for training, sgd with momentum for fine-tuning"
    add("--optimizer", choices=["adamw", "sgd"], default="adamw", help=text)
    text = "of the matrices, times the rate"
    add("--weight-decay", type=cli.not_negative, metavar="W", default=0.0, help=text)
    text = "steps in which the rate rises, or below 1 their share; then it falls as half a cosine"
    add("--warmup", type=cli.not_negative, metavar="N", default=0.1, help=text)
    text = "mean and std that pixels are normalised with: the data's, 0.5 and 0.5, ImageNet's"
    add("--normalise", choices=list(INPUTS), default="data", help=text)
    parser.add_switch("--augment", default=True, help="train on changed images")
    args = parser.parse_args(argv)
    check_weights(args, PUBLISHED)
    try:
        with torch.device("meta"):  # before any work is done
            build(args, 1)
    except ValueError as error:
        fail(error)
    return args


def build(args: argparse.Namespace, num_classes: int) -> VisionTransformer:
    """The network that the flags ask for."""
    sizes = SHAPE if args.model == "vit_tiny" else ()
    settings = {key: getattr(args, key) for key in (*sizes, "dropout", "positions", "pool")}
    return MODELS[args.model](num_classes, args.size, **settings)


def make_optimizer(args: cli.Flags, model: nn.Module) -> torch.optim.Optimizer:
    """AdamW, or SGD with momentum; only the matrices of layers are decayed."""
    matrices = {m.weight for m in model.modules() if isinstance(m, (nn.Linear, nn.Conv2d))}
    matrices |= {p for name, p in model.named_parameters() if name.endswith("in_proj_weight")}
    groups = [
        dict(params=[p for p in trained(model) if (p in matrices) == decayed],
             weight_decay=args.weight_decay * decayed) for decayed in (True, False)
    ]  # fmt: skip
    fused = not args.fsdp
    if args.optimizer == "sgd":
        return torch.optim.SGD(groups, args.lr, momentum=0.9, fused=fused)
    return torch.optim.AdamW(groups, args.lr, betas=(0.9, 0.999), fused=fused)


def step_size(steps: int, warmup: float, step: int) -> float:
    """Share of the rate: up in a straight line for `warmup` steps, or that share of them, then
    half a cosine."""
    rising = warmup if warmup >= 1 else steps * warmup
    if step < rising:
        return min(1.0, (step + 1) / rising)
    return cosine(step / steps, rising / steps) if step < steps else 0.0


@torch.inference_mode()
def evaluate(
    model: nn.Module, images: ImageSet, dev: Device, picture: Path | None = None
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
    dev = Device(args, auto_precision="fp32" if args.model == "vit_tiny" else "bf16")
    window = resized_window if args.augment else None
    train, val, test = load_images(args, dev, args.size, window=window, **INPUTS[args.normalise])
    model = build(args, len(train.facts["classes"]))
    check_images(model, args, dev, len(train), args.size)
    start_from(model, args, dev, train.facts, ("heads.head",), PUBLISHED, fitted=model.fitted)
    wanted = INPUTS[args.normalise].get("mean", train.facts["mean"])
    if args.weights and "normalise" in args.typed and wanted != train.facts["mean"]:
        fail(f"--normalise {args.normalise}: the weights have another mean: leave it out")
    net = dev.wrap(model)
    optimizer, batches = make_optimizer(args, model), train.batches(args.batch_size)
    share = partial(step_size, args.epochs * len(batches), args.warmup)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, share)
    run = Run(args, dev, model=model, optimizer=optimizer, schedule=schedule, dataset=train.facts)
    if args.evaluate:
        return run.finish(**evaluate(model, test, dev, run.folder / "confusion.png"))

    # Windows of photographs are cut, and mirrored, already.
    augment = crop_and_flip if args.augment and not args.data.startswith("folder:") else None
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
