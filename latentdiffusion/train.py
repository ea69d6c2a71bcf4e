"""Trains latent diffusion: an autoencoder, then a U-Net that denoises its latents, told a text.

python latentdiffusion/train.py                            # shapes with captions: both stages
python latentdiffusion/train.py --model kl_small           # the first stage alone; also vq_small …
python latentdiffusion/train.py --autoencoder runs/latentdiffusion/kl_small-shapes
python latentdiffusion/train.py --data captions:pairs.csv  # your own; folder:PATH, flickr8k
python latentdiffusion/train.py --weights PATH --data captions:pairs.csv   # from Stable Diffusion
python latentdiffusion/train.py --paper --data captions:laion.csv          # its size, its recipe

A run's folder has the first stage in autoencoder/. On `shapes` the test draws --samples images:
`test_right` is the share in which a judge sees the shape and the colour that were asked for.
"""

import copy
from functools import partial

import torch
from torch import Tensor, nn

from common import cli
from common.checkpoint import gathered
from common.device import Device
from common.run import Run
from common.weights import trained
from latentdiffusion.data import Latents, Words, load, name_of
from latentdiffusion.evaluate import mean_loss, quality, show
from latentdiffusion.options import AUTOENCODERS, make, parse, start
from latentdiffusion.train_autoencoder import first_stage, step_size, train_autoencoder

# fmt: off
QUICK = dict(model="ldm_small",        data="shapes", steps=2000, batch_size=32, lr=2e-3, val=500, warmup=50, decay=True)   # noqa: E501
PAPER = dict(model="stable_diffusion", data="captions:data/laion.csv", steps=237_000, batch_size=2048, lr=1e-4, val=0, warmup=10_000, decay=False)  # noqa: E501
# fmt: on


def parse_args(argv: list[str] | None = None) -> cli.Flags:
    """The flags; see --help."""
    return parse(__doc__, QUICK, PAPER, argv)


def dropped(tokens: Tensor, none: Tensor, share: float) -> Tensor:
    """Tokens (B, T) in which a share of the texts is that of no text, `none` (T,), at random."""
    left_out = torch.rand(len(tokens), 1, device=tokens.device) < share
    return torch.where(left_out, none, tokens)


def average(ema: dict[str, Tensor], model: nn.Module, decay: float, step: int) -> None:
    """The average of the weights over steps; the decay warms up, so that short runs have one."""
    decay = min(decay, (1 + step) / (10 + step))
    for name, p in model.named_parameters():
        if name in ema:
            ema[name].lerp_(p.detach(), 1 - decay)


@cli.command
def main(argv: list[str] | None = None) -> dict[str, float]:
    """Trains, or evaluates a checkpoint; returns the training and test metrics."""
    args = parse_args(argv)
    if args.model in AUTOENCODERS:
        return train_autoencoder(args)
    dev = Device(args)
    found = start(args, dev)
    train, val, test = load(args, dev)
    first = None
    if not (found or args.stored):
        args, first = first_stage(args, parse_args, dev, (train, val, test))
        torch.manual_seed(args.seed)  # whether it was trained now or before a stop
    model = make(args, train, found, first, dev).to(dev.device)
    words = Words(train.facts["words"])
    words.say_cut((train, val, test), dev)
    wanted = [part for part in (train, val, test) if part and not (args.evaluate and part != test)]
    parts = [Latents(part, words, model.autoencoder, dev) for part in wanted]
    latents, test_latents = {p.part.part: p for p in parts}, parts[-1]
    if not (found or args.stored):  # latents get a std of 1, as the chain's noise has
        model.scale.fill_(1 / latents["train"].deviation(model.autoencoder))
        train.facts["network"]["scale"] = float(model.scale)
        dev.say(f"latents are multiplied by {float(model.scale):.4g}")
    judge = copy.deepcopy(model)  # is given the weights to measure
    net = dev.wrap(model, channels_last=False)
    optimizer = torch.optim.AdamW(trained(model), args.lr, weight_decay=0.01, fused=not args.fsdp)
    share = partial(step_size, args.steps, args.warmup, args.decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, share)
    kept = {k: p for k, p in model.named_parameters() if p.requires_grad and args.ema}
    ema = {name: p.detach().clone() for name, p in kept.items()}
    state = dict(model=model, optimizer=optimizer, schedule=schedule, ema=ema)
    run = Run(args, dev, ("val_loss", min), **state, dataset=train.facts)

    def measure(part: Latents) -> dict[str, float]:
        weights = model.state_dict() | (ema if args.ema else {})
        judge.load_state_dict({name: gathered(value) for name, value in weights.items()})
        metrics = mean_loss(judge, part, dev)
        if part is test_latents:
            texts = [some[0] for some in test.captions]
            show(judge, words, texts, args, dev, run.folder / "samples.png")
            if args.samples and name_of(args.data) == "shapes":
                metrics |= quality(judge, words, test, args, dev)
        return metrics

    if args.evaluate:
        return run.finish(**measure(test_latents))
    none = words.encode([""])[0].to(dev.device)
    for epoch in run.epochs():
        model.train()
        for known, tokens in run.progress(latents["train"].batches(args.batch_size)):
            z = model.to_latents(known)  # drawn anew
            tokens = dropped(tokens, none, args.drop)
            with dev.autocast():
                loss = net(z, tokens)
            run.add(train_loss=loss)
            if dev.step(loss, optimizer):
                schedule.step()
                average(ema, model, args.ema, run.step)
        run.log(epoch, **run.means(), **(measure(latents["val"]) if val else {}))
        run.save(every=10)
    return run.finish(**run.means(), **measure(test_latents))


if __name__ == "__main__":
    main()
