"""Trains the five ways to learn to make images (see model.py), all but the GANs in this loop.

    python generative/train.py                             # digits by diffusion, 2 minutes
    python generative/train.py --model conv_vae            # also autoencoder, realnvp, dcgan, …
    python generative/train.py --model realnvp2d           # a density in the plane: moons
    python generative/train.py --model vae --data mnist --data-dir PATH --samples 10000
    python generative/train.py --model dcgan --data folder:PATH --size 64     # your own images
    python generative/train.py --paper --data-dir PATH     # DDPM on CIFAR-10

The alternating updates of `gan` and `dcgan` are in train_gan.py, which this script calls.
"""

from functools import partial

import torch
from torch import Tensor, nn

from common import cli
from common.checkpoint import gathered
from common.data.augment import random_flip
from common.data.images import ImageSet
from common.device import Device
from common.run import Run
from common.schedule import cosine
from generative.data import PointSet, load
from generative.evaluate import bounds, mean_loss, sample_quality
from generative.options import GANS, build, parse, start_from
from generative.train_gan import train_gan

QUICK = dict(model="ddpm_small", data="digits")  # the rest is the model's row in options.py
PAPER = dict(model="ddpm", data="cifar10")


def parse_args(argv: list[str] | None = None) -> cli.Flags:
    """The flags; see --help."""
    return parse(__doc__, QUICK, PAPER, argv)


def step_size(steps: int, warmup: int, decay: bool, step: int) -> float:
    """Share of the learning rate: a rise, then constant, or half a cosine down to zero."""
    fall = cosine(min(1.0, step / max(1, steps))) if decay else 1.0
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
        return train_gan(args)
    dev = Device(args, "fp32" if args.model in ("vae", "realnvp2d") else "bf16")
    train, val, test = load(args, dev)
    model = build(args, train.facts)
    judge = build(args, train.facts).to(dev.device)  # is given the weights to measure
    start_from(model, args)
    net = dev.wrap(model, channels_last=not hasattr(model, "unet"))
    adam = partial(torch.optim.Adam, fused=not args.fsdp)
    kind = {"adam": adam, "adagrad": torch.optim.Adagrad}[args.optimizer]
    optimizer = kind(model.parameters(), args.lr)
    steps = args.epochs * len(train.batches(args.batch_size))
    share = partial(step_size, steps, args.warmup, args.decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, share)
    ema = {k: p.detach().clone() for k, p in model.named_parameters()} if args.ema else {}
    parts = dict(model=model, optimizer=optimizer, schedule=schedule, ema=ema)
    run = Run(args, dev, ("val_loss", min), **parts, dataset=train.facts)

    def measure(images: ImageSet | PointSet) -> dict[str, float]:
        weights = model.state_dict() | (ema if args.ema else {})
        judge.load_state_dict({name: gathered(value) for name, value in weights.items()})
        metrics = mean_loss(judge, images, dev)
        if images is test:
            metrics |= bounds(judge, test, args, dev, run.folder / "roc.png" if dev.main else None)
            if args.samples:
                metrics |= sample_quality(judge, train, test, args, dev, run.folder)
        return metrics

    if args.evaluate:
        return run.finish(**measure(test))
    augment = random_flip if args.flip else None
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
