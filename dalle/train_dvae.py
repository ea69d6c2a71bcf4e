"""The first stage: the dVAE, whose codes the transformer learns (Sec. 2.1, App. A.2).

Called by train.py, for `--model dvae_small` and its like, and before a transformer's own training.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from common import cli, fail
from common.claims import finished
from common.data.captions import CaptionSet
from common.data.images import ImageSet
from common.device import Device
from common.folder import begin_run
from common.run import Run, start_average
from common.schedule import cosine
from dalle.data import images_of, load
from dalle.evaluate import averaged, code_metrics
from dalle.model import DVAE, MODELS
from dalle.options import CODES, TOLD, check_size
from dalle.published import network_of, read_codes

HANDED = ("objects", "size", "limit", "val", "seed", "precision", *TOLD, "max_steps",
          "save_minutes", "stream", "workers", "accumulate", "patience", "compile", "tensorboard",
          "quiet", "paper")  # what a dVAE trained first gets, too  # fmt: skip

SPREAD_OVER = 128  # images


def step_size(steps: int, args: cli.Flags, step: int) -> float:
    """Share of the peak rate: up in a straight line, then half a cosine to the floor, constant."""
    rising = args.warmup if args.warmup >= 1 else steps * args.warmup
    if step < rising:
        return (step + 1) / (rising + 1)
    over = max(1.0, steps * args.fall - rising)
    return args.floor + (1 - args.floor) * cosine(min(1.0, (step - rising) / over))


def encoder_size(steps: int, args: cli.Flags, step: int) -> float:
    """The same for the encoder, which may wait, and learn slower: `spread` in dvae.py says why."""
    if step < steps * args.encoder_waits:
        return 0.0
    return args.encoder_rate * step_size(steps, args, step)


def temperature(steps: int, args: cli.Flags, step: int) -> float:
    """Of the Gumbel-softmax: half a cosine from 1 to --temperature."""
    done = min(1.0, step / max(1.0, steps * args.cooling))
    return args.temperature + (1 - args.temperature) * cosine(done)


def beta(steps: int, args: cli.Flags, step: int) -> float:
    """The weight of the KL term: half a cosine up to --beta."""
    done = min(1.0, (step + 1) / max(1.0, steps * args.beta_rise))
    return args.beta * (1 - cosine(done))


def make(args: cli.Flags) -> DVAE:
    """The dVAE that the flags ask for, or the one of --weights."""
    if args.weights and args.stored:
        return network_of(args.stored["model"], args.evaluate or args.run_dir)
    if args.weights:
        return read_codes(args.weights).requires_grad_()
    settings = {} if args.model == "dvae" else dict(factor=args.factor, width=args.width)
    try:
        return MODELS[args.model](args.num_codes, **settings)
    except ValueError as error:
        fail(f"--width {args.width}: {error}")


def train_dvae(args: cli.Flags, place: Callable[[], Path] | None = None) -> dict[str, float]:
    """Trains a dVAE, or evaluates a checkpoint; returns the training and test metrics.

    `place` makes the run's folder, once the data is read, where it isn't that of the flags.
    """
    dev = Device(args)
    model = make(args)
    check_size(args.size, model.factor)
    train, val, test = load(args, dev)
    args = args.but(run_dir=place()) if place else args
    if args.spread and not args.weights and not args.stored:
        part = images_of(train)
        first = part.examples(torch.arange(min(len(part.images), SPREAD_OVER)))[0]
        model.to(dev.device).spread(first, args.spread)
    net = dev.wrap(model)
    groups = [dict(params=part.parameters()) for part in (model.decoder, model.encoder)]
    how = dict(weight_decay=args.weight_decay, fused=not args.fsdp)
    optimizer = torch.optim.AdamW(groups, args.lr, **how)
    batches = train.batches(args.batch_size)
    steps = args.epochs * len(batches)
    shares = [partial(share, steps, args) for share in (step_size, encoder_size)]
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, shares)
    ema, parts = {}, dict(optimizer=optimizer, schedule=schedule, dataset=train.facts)
    run = Run(args, dev, ("val_loss", min), model=model, ema=ema, **parts)
    weights = {name: p.detach() for name, p in model.named_parameters()}
    start_average(ema, weights if args.ema else {})

    def measure(part: CaptionSet | ImageSet | None) -> dict[str, float]:
        with averaged(model, ema):
            return code_metrics(model, part, args, dev) if part else {}

    if args.evaluate:
        return run.finish(**measure(test))
    for epoch in run.epochs():
        model.train()
        for images, *_ in run.progress(batches):
            schedules = (f(steps, args, run.step) for f in (temperature, beta))
            with dev.autocast():
                loss, nats, kl = net(images, *schedules, args.straight_through)
            run.add(train_loss=loss, train_nats=nats, train_kl=kl)
            if dev.step(loss, optimizer):
                schedule.step()
                share = min(args.ema, (1 + run.step) / (10 + run.step))  # the first ones less
                for name, average in ema.items():
                    average.lerp_(weights[name], 1 - share)
        run.log(epoch, **run.means(), **measure(val))
        run.save()
    return run.finish(**run.means(), **measure(test))


def train_first(args: cli.Flags, dev: Device, parse: Callable) -> tuple[cli.Flags, Path]:
    """Trains a transformer's dVAE in codes/ of the run's folder, unless that is done.

    Returns the flags with the run's folder, and that of the codes. The run's is made first, so
    that --resume finds it wherever the training was stopped. `parse` makes flags of a command line.
    """
    folder, name = args.run_dir, CODES[args.model]
    if folder and finished(folder / "codes"):
        return args, folder / "codes"

    def place() -> Path:
        nonlocal folder
        folder = begin_run(args.but(run_dir=folder), dev).run_dir
        dev.say(f"first the codes: {name}, in {folder / 'codes'}")
        return folder / "codes"

    argv = ["--model", name, "--data", args.data, "--data-dir", args.data_dir]
    argv += ["--device", args.device]
    argv += ["--run-dir", str(folder / "codes"), "--resume"] if folder else []
    for flag in HANDED:
        value = getattr(args, flag)
        spelt = flag.replace("_", "-")
        if isinstance(value, bool):
            argv.append(f"--{spelt}" if value else f"--no-{spelt}")
        elif value is not None and flag in (*args.chosen, *args.typed):
            argv += [f"--{spelt}", str(value)]
    try:
        train_dvae(parse(argv), place)
    except SystemExit as end:
        if isinstance(end.code, int) and end.code > 128:  # a signal; all is saved
            dev.say(f"and then: python dalle/train.py --resume --run-dir {folder}")
        raise
    return args.but(run_dir=folder), folder / "codes"
