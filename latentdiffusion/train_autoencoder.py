"""Trains the first stage: an autoencoder of images (Sec. 3.1), perhaps with a discriminator.

train.py calls it, with its flags: by itself for `--model kl_small` and the other autoencoders, and
before the second stage where no --autoencoder is given.
"""

import contextlib
import shlex
import signal
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from common import cli
from common.claims import finished
from common.data.captions import CaptionSet
from common.device import Device, forked
from common.folder import begin_run
from common.run import Run
from common.schedule import cosine
from latentdiffusion.autoencoder import PatchDiscriminator, Pixels, balance, hinge, make_autoencoder
from latentdiffusion.data import load
from latentdiffusion.options import as_argv, autoencoder_settings, read_first

SHOWN = 10  # images of rebuilt.png


def step_size(steps: int, warmup: int, decay: bool, step: int) -> float:
    """Share of the learning rate: a rise, then constant, or half a cosine down to zero."""
    fall = cosine(min(1.0, step / max(1, steps))) if decay else 1.0
    return min(1.0, (step + 1) / max(1, warmup)) * fall


@torch.inference_mode()
def measure(model: nn.Module, part: CaptionSet, dev: Device, picture: Path | None = None) -> dict:
    """Errors of images rebuilt from their likeliest latents: absolute, and as PSNR (pixels from 0
    to 1); of a codebook the share of entries in use. `picture` shows some over what became of them.
    """
    from common.plot import sheet

    model.eval()
    sums, used, shown = torch.zeros(3, device=dev.device), [], []
    with forked("rebuilt", dev):
        for x, _ in part.images.batches(64, shuffle=False):
            with dev.autocast():
                known = model.encode(x)
                rebuilt = model.decode(model.mode(known)).to(x.dtype).clamp(-1, 1)
            apart = (rebuilt - x).flatten(1) / 2
            errors = [apart.abs().mean(1).sum(), apart.square().mean(1).sum()]
            sums += torch.stack([*errors, torch.full_like(errors[0], len(x))])
            if model.regulariser == "vq":
                used.append(model.quantize.nearest(known.to(x.dtype)).flatten().unique().cpu())
            if not shown:
                shown = [x[:SHOWN], rebuilt[:SHOWN]]
    error, square, count = dev.sum(sums).tolist()
    square = torch.tensor(square / count)
    metrics = {"error": error / count, "psnr": float(-10 * square.clamp(min=1e-10).log10())}
    if used:
        entries = torch.cat([u for some in dev.gather(used) for u in some]).unique()
        metrics["codes"] = len(entries) / model.quantize.embedding.num_embeddings
    if picture and dev.main:
        sheet((torch.cat(shown) + 1) / 2, picture, columns=len(shown[0]))
    return {f"{part.part}_{key}": value for key, value in metrics.items()}


def weigh(args: cli.Flags, model: nn.Module, x: Tensor, rebuilt: Tensor, penalty: Tensor) -> tuple:
    """The loss but for the discriminator's term, and the error in it: errors are a mean over
    pixels, and the KL, which is a sum, weighs `--kl-weight` of their sum (App. G)."""
    apart = rebuilt - x
    error = apart.abs().mean() if args.error == "absolute" else apart.square().mean()
    if model.regulariser == "kl":
        penalty = args.kl_weight * penalty / x[0].numel()
    return error + penalty, error


def train_autoencoder(args: cli.Flags, sets: tuple | None = None) -> dict[str, float]:
    """Trains, or evaluates a checkpoint; returns the training and test metrics.

    `sets` are the parts of the data, where they are loaded already.
    """
    dev = Device(args)
    train, val, test = sets or load(args, dev)
    settings = autoencoder_settings(args)
    settings = args.stored["dataset"]["network"] if args.stored else settings
    model, facts = make_autoencoder(**settings), train.facts | dict(network=settings)
    judge = PatchDiscriminator(layers=3 if args.size >= 64 else 2) if args.adversarial else None
    net, judge_net = dev.wrap(model), dev.wrap(judge) if judge else None
    adam = partial(torch.optim.Adam, lr=args.lr, betas=(0.5, 0.9), fused=True)  # as VQGAN's
    optimizer, share = adam(model.parameters()), partial(step_size, args.steps, args.warmup)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, partial(share, args.decay))
    parts = dict(model=model, optimizer=optimizer, schedule=schedule, dataset=facts)
    if judge:
        parts |= dict(judge=judge, judge_optimizer=(judge_optimizer := adam(judge.parameters())))
    run = Run(args, dev, ("val_error", min), **parts)
    if args.evaluate:
        return run.finish(**measure(model, test, dev, run.folder / "rebuilt.png"))

    for epoch in run.epochs():
        model.train()
        for x, _ in run.progress(train.images.batches(args.batch_size, shuffle=True)):
            on = judge is not None and run.step >= args.adversarial_from
            with dev.autocast():
                rebuilt, penalty = net(x)
                rebuilt = rebuilt.to(x.dtype)
                loss, error = weigh(args, model, x, rebuilt, penalty)
                if on:
                    adversarial = -judge(rebuilt)[0].float().mean()
            if on:
                weight = args.adversarial * balance(error, adversarial, model.last_layer)
                loss = loss + weight * adversarial
                run.add(train_adversarial=adversarial)
            run.add(train_error=(rebuilt - x).detach().abs().mean() / 2, train_penalty=penalty)
            if dev.step(loss, optimizer):
                schedule.step()
            if on:
                with dev.autocast():
                    on_real, on_fake = judge_net(x, rebuilt.detach())
                    judged = hinge(on_real.float(), on_fake.float())
                run.add(train_judge_loss=judged)
                dev.step(judged, judge_optimizer)
        run.log(epoch, **run.means(), **(measure(model, val, dev) if val else {}))
        run.save(every=10)
    picture = run.folder / "rebuilt.png"
    return run.finish(**run.means(), **measure(model, test, dev, picture))


def first_stage(
    args: cli.Flags, parse: Callable, dev: Device, sets: tuple
) -> tuple[cli.Flags, tuple[dict, nn.Module]]:
    """The autoencoder of a second stage and its settings: the one that --autoencoder names, none
    with --factor 1, or one that is trained now, in a folder of the run's own, which the flags that
    are returned name.

    `parse` makes flags of a command line. A first stage that was stopped goes on.
    """
    if args.autoencoder:
        return args, read_first(args)
    if args.model == "ldm_small" and args.factor == 1:
        return args, (dict(kind="none"), Pixels())
    args = begin_run(args, dev)
    where = args.run_dir / "autoencoder"
    if not finished(where):
        same = dict(steps=args.ae_steps, batch_size=args.ae_batch_size)
        same |= dict(run_dir=where, resume=True, quiet=args.quiet)
        same |= dict(model="kl_f8") if args.model == "stable_diffusion" else dict(
            model=f"{args.regulariser}_small", factor=args.factor, width=args.ae_width,
            latent_channels=args.latent_channels)  # fmt: skip
        dev.say("the first stage, an autoencoder:")
        with handlers_kept(), going_on(args.run_dir, dev):
            train_autoencoder(parse(as_argv(args, **same)), sets)
        dev.say("the second stage:")
    return args, read_first(args.but(autoencoder=str(where)))


@contextlib.contextmanager
def handlers_kept() -> Iterator[None]:
    """Puts the handlers of signals back, which a run sets for its own steps."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    if threading.current_thread() is threading.main_thread():
        for number, handler in handlers.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def going_on(folder: Path, dev: Device) -> Iterator[None]:
    """Says how both stages go on where the first one was stopped."""
    try:
        yield
    except SystemExit as stop:
        if dev.main and stop.code != 2:
            where = shlex.quote(str(folder))
            print("or with both stages:")
            print(f"python latentdiffusion/train.py --resume --run-dir {where}", flush=True)
        raise
