"""Trains multilayer perceptrons: on images, on tables, and on the two worlds of the 1986 paper.

    python mlp/train.py                                       # real digits: 97.9%, 4 s
    python mlp/train.py --paper                               # family trees: 100 facts, 4 s
    python mlp/train.py --data symmetry --seed 3              # mirror symmetry, 1 s
    python mlp/train.py --data csv:rows.csv --target price    # your own table
    python mlp/train.py --data iris                           # also wine, breast-cancer, diabetes
    python mlp/train.py --paper --model mlp --data-dir PATH            # MNIST: 1.72% error, 1 min
    python mlp/train.py --paper --model mlp_dropout --data-dir PATH    # 1.10%, 12 min

Measured on one core of a Zen 5 server (see the README, with the errors on MNIST).
"""

from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common import cli, fail
from common.classify import Tally
from common.data.images import ImageSet, load_images
from common.device import Device
from common.run import Run
from common.schedule import warmup_and_cosine
from mlp.backprop import Descent
from mlp.model import MODELS, limit_norms, squared_error
from mlp.recipes import kind_of, parse
from mlp.tables import Errors, TableSet, load_table
from mlp.worlds import Answers, World, load_world

# fmt: off
QUICK = dict(model="mlp",          data="digits",   epochs=40,  val=137, batch_size=32,  lr=2e-3)
PAPER = dict(model="family_trees", data="families", epochs=180, val=0,   batch_size=100, lr=0.03)
# fmt: on
GENTLE = 20  # sweeps with half the rate and momentum 0.5, for the family trees (Fig. 4)
OPTIMIZERS = {
    "sgd": torch.optim.SGD,
    "adagrad": torch.optim.Adagrad,
    "rmsprop": torch.optim.RMSprop,
    "adam": torch.optim.Adam,
    "adamw": partial(torch.optim.AdamW, weight_decay=0.01, fused=True),
}
Part = ImageSet | TableSet | World


def parse_args(argv: list[str] | None = None) -> cli.Flags:
    """The flags; see --help."""
    return parse(__doc__, QUICK, PAPER, argv)


def load(args: cli.Flags, dev: Device) -> tuple[Part, Part | None, Part]:
    """The training, validation (or None) and test set of --data."""
    kind = kind_of(args.data)
    if kind == "image":
        return load_images(args, dev, size=28, channels=1)
    return load_table(args, dev) if kind == "table" else load_world(args, dev)


def build(args: cli.Flags, facts: dict) -> nn.Module:
    """The network that the flags ask for, for the data that the facts are of."""
    make = MODELS[args.model]
    if kind_of(args.data) == "world":
        model = make()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(args.spread / 0.3)
        return model
    names = ("activation", "norm", "dropout", "input_dropout")
    settings = {name: getattr(args, name) for name in names} | {"hidden": tuple(args.hidden)}
    outputs = len(facts["classes"]) or 1
    sizes = [facts["in_features"], outputs] if "in_features" in facts else [outputs]
    return make(*sizes, **settings)


def build_optimizer(args: cli.Flags, model: nn.Module) -> torch.optim.Optimizer:
    """The optimiser that the flags ask for."""
    if args.optimizer == "momentum":
        gentle = GENTLE * (args.model == "family_trees")
        return Descent(model.parameters(), args.lr, args.momentum, gentle, args.decay)
    return OPTIMIZERS[args.optimizer](model.parameters(), args.lr)


def share_of_rate(kind: str, gentle: int, steps: int, step: int) -> float:
    """Share of the learning rate: in the worlds constant after a gentle start, else a cosine."""
    if kind == "world":
        return 0.5 if step < gentle else 1.0
    return warmup_and_cosine(min(1.0, step / steps))


def criterion(outputs: Tensor, targets: Tensor, facts: dict) -> Tensor:
    """Of worlds Eq. 3, summed; else the mean: of squares for one number, or cross-entropy."""
    if facts.get("kind") == "world":
        return squared_error(outputs.float(), targets, facts["tolerance"])
    if facts["classes"]:
        return F.cross_entropy(outputs, targets)
    return F.mse_loss(outputs[:, 0].float(), targets)


def penalty(model: nn.Module, l1: float, l2: float) -> Tensor | float:
    """What is added to the loss: l1 * sum |w| + l2 / 2 * sum w^2 over all weights, not biases."""
    named = model.named_parameters() if l1 or l2 else []
    weights = [p for name, p in named if p.dim() > 1]
    return sum(l1 * w.abs().sum() + l2 / 2 * w.square().sum() for w in weights)


@torch.inference_mode()
def evaluate(
    model: nn.Module, part: Part, dev: Device, picture: Path | None = None
) -> dict[str, float]:
    """The loss, and accuracy or the errors of a number; `picture` shows the errors."""
    model.eval()
    facts = part.facts
    classes = facts["classes"]
    tally = Answers(part) if isinstance(part, World) else (Tally if classes else Errors)(part, dev)
    for inputs, targets in part.batches(1000):
        with dev.autocast():
            outputs = model(inputs)
            loss = criterion(outputs, targets, facts)
        if classes:
            tally.add(loss * len(targets), outputs.argmax(1), targets)
        else:
            tally.add(loss, outputs, targets)
    return tally.metrics(picture)


@cli.command
def main(argv: list[str] | None = None) -> dict[str, float]:
    """Trains, or evaluates a checkpoint; returns the test metrics."""
    args = parse_args(argv)
    kind = kind_of(args.data)
    dev = Device(args, auto_precision="bf16" if args.model == "mlp_dropout" else "fp32")
    train, val, test = load(args, dev)
    part = min(args.batch_size, len(train)) // (dev.world * dev.accumulate)
    if getattr(args, "norm", None) and part < 2:
        fail("--norm can't train on one example at a time: raise --batch-size, lower --accumulate")
    model = build(args, train.facts)
    net = dev.wrap(model)
    optimizer = build_optimizer(args, model)
    steps = args.epochs * len(train.batches(args.batch_size))
    share = partial(share_of_rate, kind, GENTLE * (args.model == "family_trees"), steps)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, share)
    watched = ("val_accuracy", max) if kind == "image" else ("val_loss", min)
    parts = dict(model=model, optimizer=optimizer, schedule=schedule, dataset=train.facts)
    run = Run(args, dev, watched, **parts)
    picture = run.folder / ("confusion.png" if train.facts["classes"] else "predicted.png")
    if args.evaluate:
        return run.finish(**evaluate(model, test, dev, picture))

    for epoch in run.epochs():
        model.train()
        for inputs, targets in run.progress(train.batches(args.batch_size)):
            with dev.autocast():
                loss = criterion(net(inputs), targets, train.facts)
            run.add(train_loss=loss)
            if dev.step(loss + penalty(model, args.l1, args.l2), optimizer):
                schedule.step()
                if args.max_norm:
                    limit_norms(model, args.max_norm)
        known = evaluate(model, train.once(), dev) if kind == "world" else {}
        run.log(epoch, **run.means() | known, **(evaluate(model, val, dev) if val else {}))
        run.save(every=10)
    return run.finish(**evaluate(model, test, dev, picture))


if __name__ == "__main__":
    main()
