"""Trains the five ways to learn to make images (see model.py), all but the GANs in this loop.

    python generative/train.py                             # digits by diffusion, 2 minutes
    python generative/train.py --model conv_vae            # also autoencoder, realnvp, dcgan, …
    python generative/train.py --model realnvp2d           # a density in the plane: moons
    python generative/train.py --model vae --data mnist --data-dir PATH --samples 10000
    python generative/train.py --model dcgan --data folder:PATH --size 64     # your own images
    python generative/train.py --paper --data-dir PATH     # DDPM on CIFAR-10

The alternating updates of `gan` and `dcgan` are in train_gan.py, which this script calls.
"""

import argparse
import math
from functools import partial

import torch
from torch import Tensor, nn

from common import cli
from common.checkpoint import whole
from common.data.augment import random_flip
from common.data.images import ImageSet
from common.data.points import PointSet
from common.device import Device
from common.run import Run
from generative.evaluate import bounds, mean_loss, sample_quality
from generative.model import MODELS
from generative.options import (
    DATA,
    GANS,
    NOISES,
    SIZES,
    VAES,
    add_flags,
    build,
    check,
    load,
    start_from,
)

# fmt: off
QUICK = dict(model="ddpm_small", data="digits",  epochs=60,   val=1000, batch_size=64,  lr=1e-3)
PAPER = dict(model="ddpm",       data="cifar10", epochs=2051, val=0,    batch_size=128, lr=2e-4)
RECIPES = {  # epochs on digits, and on larger sets; batch size, rate
    "autoencoder":      (100, 30, 100, 1e-3),
    "conv_autoencoder": (150, 20, 100, 1e-3),
    "vae":              (200, 60, 100, 1e-3),
    "conv_vae":         (150, 25, 100, 1e-3),
    "gan":              (100, 60, 100, 1e-3),
    "dcgan":            (200, 15, 64,  2e-4),
    "realnvp":          (15,  12, 16,  4e-3),
    "realnvp2d":        (40,  40, 200, 2e-3),
    "ddpm":             (60,  20, 64,  2e-4),
    "ddpm_small":       (60,  15, 64,  1e-3),
}
NARROW = {"dcgan": dict(width=64), "realnvp": dict(width=32, num_blocks=2, clip=0.5)}
PAPERS = {  # what --paper changes of these
    "autoencoder": dict(data="mnist", epochs=200),
    "conv_autoencoder": dict(data="mnist", epochs=200),
    "vae": dict(data="mnist", epochs=1667, lr=0.02, optimizer="adagrad"),  # 10^8 images, Fig. 2
    "conv_vae": dict(data="mnist", epochs=200),
    "gan": dict(data="mnist", epochs=200),
    "dcgan": dict(data="folder:data/lsun", epochs=5, batch_size=128),
    "realnvp": dict(data="cifar10", epochs=200, batch_size=64, lr=1e-3, flip="yes"),
    "realnvp2d": dict(),
    "ddpm": dict(data="cifar10", epochs=2051, batch_size=128, warmup=5000, flip="yes"),
    "ddpm_small": dict(data="mnist", epochs=200, warmup=5000),
}
# fmt: on


def parse_args(argv: list[str] | None = None, model: str = QUICK["model"]) -> argparse.Namespace:
    """The flags; see --help. The recipe is the model's, whatever its name."""
    parser = cli.Parser("generative", __doc__, QUICK | {"model": model}, PAPER, MODELS, DATA)
    add_flags(parser)
    args = parser.parse_args(argv)
    on_digits, on_others, batch, rate = RECIPES[args.model]
    recipe = dict(
        data="moons" if args.model == "realnvp2d" else "digits", batch_size=batch, lr=rate
    )
    recipe |= dict(val=0 if args.paper or args.model in GANS else QUICK["val"])
    recipe |= dict(ema=0.9999, clip=1.0) if args.model in NOISES else {}
    recipe |= dict(importance=100) if args.model in VAES else {}
    recipe |= {} if args.paper else NARROW.get(args.model, {})
    recipe |= dict(warmup=0, decay="no") | PAPERS[args.model] if args.paper else {}
    data = args.data if "data" in args.chosen else recipe["data"]
    recipe = dict(epochs=on_digits if data == "digits" else on_others) | recipe
    vars(args).update({k: v for k, v in recipe.items() if k not in args.chosen})
    args.size = args.size or SIZES.get(data.partition(":")[0], 32)
    check(args)
    return args


def step_size(steps: int, warmup: int, decay: bool, step: int) -> float:
    """Share of the learning rate: a rise, then constant, or half a cosine down to zero."""
    fall = 0.5 * (1 + math.cos(math.pi * min(1.0, step / max(1, steps)))) if decay else 1.0
    return min(1.0, (step + 1) / max(1, warmup)) * fall


def average(ema: dict[str, Tensor], model: nn.Module, decay: float, step: int) -> None:
    """The average of the weights over steps; the decay warms up, so that short runs have one."""
    decay = min(decay, (1 + step) / (10 + step))
    for name, p in model.named_parameters():
        ema[name].lerp_(p.detach(), 1 - decay)


@cli.command
def main(argv: list[str] | None = None) -> dict[str, float]:
    """Trains, or evaluates a checkpoint; returns the training and test metrics."""
    args = parse_args(argv)
    if args.model in GANS:
        from generative.train_gan import train_gan

        return train_gan(args)
    dev = Device(args, "fp32" if args.model in ("vae", "realnvp2d") else "bf16")
    train, val, test = load(args, dev)
    model = build(args, train.facts)
    judge = build(args, train.facts).to(dev.device)  # is given the weights to measure
    start_from(model, args, dev)
    net = dev.wrap(model, channels_last=args.model not in NOISES)
    adam = partial(torch.optim.Adam, fused=not args.fsdp)
    kind = {"adam": adam, "adagrad": torch.optim.Adagrad}[args.optimizer]
    optimizer = kind(model.parameters(), args.lr)
    steps = args.epochs * len(train.batches(args.batch_size))
    share = partial(step_size, steps, args.warmup, args.decay == "yes")
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, share)
    ema = {k: p.detach().clone() for k, p in model.named_parameters()} if args.ema else {}
    parts = dict(model=model, optimizer=optimizer, schedule=schedule, ema=ema)
    run = Run(args, dev, ("val_loss", min), **parts, dataset=train.facts)

    def measure(images: ImageSet | PointSet) -> dict[str, float]:
        weights = model.state_dict() | (ema if args.ema else {})
        judge.load_state_dict({name: whole(value) for name, value in weights.items()})
        metrics = mean_loss(judge, images, dev)
        if images is test:
            metrics |= bounds(judge, test, args, dev, run.folder / "roc.png" if dev.main else None)
            if args.samples:
                metrics |= sample_quality(judge, train, test, args, dev, run.folder)
        return metrics

    if args.evaluate:
        return run.finish(**measure(test))
    augment = random_flip if args.flip == "yes" else None
    augmented = dict(augment=augment) if augment else {}
    for epoch in run.epochs():
        model.train()
        for x, _ in run.progress(train.batches(args.batch_size, **augmented)):
            with dev.autocast():
                loss = net(x)
            run.add(train_loss=loss)
            if dev.step(loss, optimizer):
                schedule.step()
                if ema:
                    average(ema, model, args.ema, run.step)
        run.log(epoch, **run.means(), **(measure(val) if val else {}))
        run.save(every=10)
    return run.finish(**run.means(), **measure(test))


if __name__ == "__main__":
    main()
