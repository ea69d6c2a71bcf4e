"""Trains Flamingo: what two frozen networks know, joined by layers that look at images.

python flamingo/train.py                                    # shapes: the parts, then the layers
python flamingo/train.py --vision RUN --language RUN        # runs of clip/train.py, gpt/train.py
python flamingo/train.py --leave-out size                   # and asked about sizes, after examples
python flamingo/train.py --data flickr8k --data-dir PATH    # captions of photographs
python flamingo/train.py --data vqa:questions.json          # your own: image, question, answer
python flamingo/train.py --model flamingo_3b --vision RUN --language RUN --data vqa:questions.json
python flamingo/train.py --paper --vision RUN --language RUN --data vqa:questions.json

`test_accuracy` is the share of questions that are answered right, a mean over the kinds; beside it
what guessing gets, and the language model without images. A step has --batch-size images.
"""

from functools import partial

import torch
import torch.nn.functional as F
from torch.distributed.fsdp import register_fsdp_forward_method

from common import cli
from common.device import Device
from common.folder import begin_run
from common.run import Run
from common.schedule import cosine
from flamingo.data import Interleaved, Part, Words, describe, load, room_for, say_left
from flamingo.evaluate import evaluate
from flamingo.model import Flamingo
from flamingo.options import parse, settings_of
from flamingo.parts import around, build, find_parts, named_parts

# fmt: off
QUICK = dict(model="flamingo_small", data="shapes",            steps=2000,    every=500,    batch_size=36,   lr=2e-3,  # noqa: E501
             val=500, clip=1.0, gate_rate=10.0, resampler_rate=0.1)
PAPER = dict(model="flamingo_80b",   data="vqa:data/m3w.json", steps=500_000, every=10_000, batch_size=2048, lr=1e-4,  # noqa: E501
             val=0, clip=1.0, gate_rate=1.0, resampler_rate=1.0, warmup=5000, decay=False,
             loss="text", accumulate=256)
# fmt: on


def parse_args(argv: list[str] | None = None) -> cli.Flags:
    """The flags; see --help."""
    return parse(__doc__, QUICK, PAPER, argv)


def make_optimizer(args: cli.Flags, model: Flamingo) -> torch.optim.Optimizer:
    """AdamW; of the gated layers' matrices all decay, and nothing of the resampler (Appendix).
    The gates learn at a rate of their own, as in a short training they have far to go, and so does
    the resampler, which hears nothing but noise as long as they are closed."""
    groups: dict[tuple[float, float], list] = {(1.0, args.weight_decay): []}  # its rate is printed
    for name, p in model.named_parameters():
        resampler, gate = name.startswith("perceiver."), name.endswith("_gate")
        rate = args.resampler_rate if resampler else args.gate_rate if gate else 1.0
        decay = args.weight_decay if p.dim() > 1 and not resampler else 0.0
        if p.requires_grad:
            groups.setdefault((rate, decay), []).append(p)
    kinds = [dict(params=some, lr=args.lr * rate, weight_decay=decay)
             for (rate, decay), some in groups.items()]  # fmt: skip
    return torch.optim.AdamW(kinds, args.lr, fused=not args.fsdp)


def step_size(args: cli.Flags, step: int) -> float:
    """Share of the rate: up in a straight line, then constant, or half a cosine down."""
    rising = args.warmup if args.warmup >= 1 else args.steps * args.warmup
    if step < rising:
        return min(1.0, (step + 1) / rising)
    return cosine(min(1.0, step / args.steps), rising / args.steps) if args.decay else 1.0


@cli.command
def main(argv: list[str] | None = None) -> dict[str, float]:
    """Trains, or evaluates a checkpoint; returns the training and test metrics."""
    args = parse_args(argv)
    dev, known = Device(args), args.stored.get("dataset")
    named = {} if known else named_parts(args, dev)
    vision = known["vision"] if known else named["vision"].facts["network"] if args.vision else {}
    train, val, test = load(args, dev, vision.get("image_size") or args.size)
    if known:
        facts = {key: known[key] for key in ("vision", "language", "vocabulary", "network")}
        facts |= {key: known[key] for key in ("mean", "std")}
        model = build(facts)
        model.load_state_dict(args.stored["model"])
    else:
        args = args if len(named) == 2 else begin_run(args, dev)
        parts = find_parts(args, dev, train, named)
        dev = Device(args)  # seeds anew: the layers begin alike, whoever trained the parts
        model, facts = around(*parts, args.model, settings_of(args))
        facts |= {key: parts[0].facts[key] for key in ("mean", "std")}
    train.facts |= facts  # images as the encoder was trained to see them
    words, model = Words(facts["vocabulary"]), model.to(dev.device)
    room = room_for(model, args)
    sets = [part for part in (train, val, test) if part]
    parts = {part.part: Part(part, model, dev, words, room) for part in sets}
    say_left(list(parts.values()), room, dev)
    dev.say(describe(parts["test"], args.num_test))
    steps = min(args.every, args.steps)
    batches = None if args.evaluate else Interleaved(parts["train"], words, args, dev, steps)
    net = dev.wrap(model)
    for layer in model.gated if args.fsdp else ():
        register_fsdp_forward_method(layer, "keys")
    optimizer, share = make_optimizer(args, model), partial(step_size, args)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, share)
    state = dict(model=model, optimizer=optimizer, schedule=schedule, dataset=train.facts)
    run = Run(args, dev, ("val_loss", min), **state)

    def measure(name: str) -> dict[str, float]:
        if name not in parts:
            return {}
        return evaluate(model, words, parts[name], parts["train"], args, dev)

    if args.evaluate:
        return run.finish(**measure("test"))
    for epoch in run.epochs():
        model.train()
        for rows in run.progress(batches):
            with dev.autocast():
                logits = net(rows.tokens, features=rows.features)
            nats = F.cross_entropy(logits.float().flatten(0, 1), rows.following.flatten(),
                                   reduction="sum")  # fmt: skip
            count = (rows.following != -100).sum()
            run.add(train_loss=nats / count)
            if dev.step(nats, optimizer, count=count):
                schedule.step()
        run.log(epoch, **run.means(), **measure("val"))
        run.save()
    return run.finish(**run.means(), **measure("test"))


if __name__ == "__main__":
    main()
