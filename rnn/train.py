"""Trains recurrent networks: on text, sentences, speech and time series, told from --data.

python rnn/train.py                                            # pydocs: 1.19 nats, 44 s
python rnn/train.py --data shakespeare --data-dir PATH         # 1.47 nats, 6 min
python rnn/train.py --data text:novel.txt --tokens bpe         # your own text
python rnn/train.py --model bilstm --data sst2 --data-dir PATH # 82.2%, 36 s; also names …
python rnn/train.py --model bilstm --data sentences:PATH       # your own texts with labels
python rnn/train.py --model bilstm --data fsdd --data-dir PATH # spoken digits: 100%, 57 s
python rnn/train.py --data etth1 --data-dir PATH               # a forecast, also series:PATH
python rnn/train.py --paper                                    # 1997: the adding problem

Measured on one core of a Zen 5-class server that others used, too (see the README).
"""

import argparse
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common import cli, fail
from common.device import Device
from common.run import Run
from common.schedule import warmup_and_cosine
from rnn.corpus import Carried
from rnn.measures import confusion, metrics_of, sums_of
from rnn.model import MODELS
from rnn.recipes import DATA, FIXED, MODULES, OPTIMIZERS, SIZES, add_flags, check, recipe, task_of
from rnn.series import METRICS, as_table, baselines

# fmt: off
QUICK = dict(model="lstm", data="pydocs", epochs=10, val=20_000, batch_size=3200, lr=1e-2,
             hidden_size=256, num_layers=1, embedding_size=64, dropout=0.2, bptt=100, clip=1.0,
             keep_bias=0.0)
PAPER = dict(model="lstm_1997", data="adding", epochs=8, val=500, batch_size=1, lr=0.25,  # half of
             hidden_size=4, num_layers=1, length=100, optimizer="sgd", decay=1.0,  # Sec. 5.4's, as
             logistic=True, clip=1.0)  # our squared error isn't halved
# fmt: on


def parse_args(argv: list[str] | None = None) -> cli.Flags:
    """The flags; see --help."""
    parser = cli.Parser("rnn", __doc__, QUICK, PAPER, MODELS, DATA, recipe, FIXED)
    add_flags(parser)
    args = parser.parse_args(argv)
    check(args)
    return args


def build(args: argparse.Namespace, facts: dict) -> nn.Module:
    """The network that the flags ask for, for data of these facts."""
    task, sizes = facts["task"], {n: v for n in SIZES if (v := getattr(args, n)) is not None}
    own = ("dropout", "keep_bias") + ("logistic",) * (task == "adding")
    sizes |= {name: value for name in own if (value := getattr(args, name, None)) is not None}
    if task == "text":
        return MODELS[args.model]("text", vocab_size=facts["vocab_size"], **sizes)
    sizes["pooling"] = args.pooling
    if task in ("sentences", "speech"):
        words = task == "sentences"
        sizes |= {"vocab_size": facts["vocab_size"]} if words else {"num_features": facts["mels"]}
        return MODELS[args.model]("classes", num_classes=len(facts["classes"]), **sizes)
    columns, targets = facts.get("columns", "xy"), facts.get("targets", "z")
    features = len(columns) * facts.get("segment", 1)
    sizes |= {"num_features": features, "num_targets": len(targets)}
    return MODELS[args.model]("series", horizon=facts.get("horizon", 1), **sizes)


def step_size(args: argparse.Namespace, steps: int, step: int) -> float:
    """Share of the peak rate: up and down a cosine, or a decay after each of some epochs."""
    if not args.decay:
        return warmup_and_cosine((step + 1) / (args.epochs * steps + 1))
    return args.decay ** max(0, step // steps + 1 - args.decay_after)


def loss_of(outputs: Tensor, targets: Tensor) -> Tensor:
    """The mean: of numbers their squared error, of tokens and classes the cross-entropy."""
    if targets.is_floating_point():
        return F.mse_loss(outputs.float(), targets)
    return F.cross_entropy(outputs.float().flatten(0, -2), targets.flatten())


@torch.inference_mode()
def evaluate(
    model: nn.Module, part: Any, dev: Device, args: argparse.Namespace, picture: Path | None = None
) -> dict[str, float]:
    """The task's metrics on a part of the data; `picture` is for the confusion matrix."""
    model.eval()
    state, total = None, 0
    for inputs, lengths, targets in part.batches(max(args.batch_size, 100)):
        with dev.autocast():
            outputs, state = model(inputs, lengths, state)
        total = total + sums_of(outputs, targets, part.facts)
    total = dev.sum(total)
    if picture and dev.main and part.facts.get("classes"):
        from common.plot import confusion_matrix

        confusion_matrix(confusion(total).long(), part.facts["classes"], picture)
    return metrics_of(total, part)


def compare(metrics: dict[str, float], sets: tuple, run: Run, dev: Device) -> None:
    """Prints a forecast's errors beside those of simple forecasts, and writes them."""
    if dev.main and sets[2].facts["task"] == "series":
        ours = {f"ours ({run.args.model})": {key: metrics[f"test_{key}"] for key in METRICS}}
        table = as_table({**baselines(*sets), **ours}, sets[2].facts)
        (run.folder / "forecasts.txt").write_text(table + "\n", "utf-8")
        dev.say(table)


@cli.command
def main(argv: list[str] | None = None) -> dict[str, float]:
    """Trains, or evaluates a checkpoint; returns the training and test metrics."""
    args = parse_args(argv)
    numbers = task_of(args.data) in ("series", "adding")  # small networks: bf16 gains nothing
    dev = Device(args, auto_precision="fp32" if numbers else "bf16")
    sets = train, val, test = MODULES[task_of(args.data)].load(args, dev)
    if args.patience and not (val or args.evaluate):
        fail(f"--patience needs a validation set to watch: {args.data} is too small for one")
    task = train.facts["task"]
    model = build(args, train.facts)
    net = dev.wrap(model)
    how = {"weight_decay": args.weight_decay} if args.optimizer == "adam" else {}
    how |= {"alpha": 0.95} if args.optimizer == "rmsprop" else {"fused": not args.fsdp}
    optimizer = OPTIMIZERS[args.optimizer](model.parameters(), args.lr, **how)
    batches = train.batches(args.batch_size, train=True)
    share = partial(step_size, args, len(batches))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, share)
    carried = Carried(dev, on=task == "text")
    parts = dict(model=model, optimizer=optimizer, schedule=schedule, carried=carried)
    best = {"sentences": ("val_accuracy", max), "speech": ("val_accuracy", max)}
    watched = best.get(task, ("val_mse" if task == "series" else "val_loss", min))
    run = Run(args, dev, watched, **parts, dataset=train.facts)

    def measure_test() -> dict[str, float]:
        metrics = evaluate(model, test, dev, args, run.folder / "confusion.png")
        compare(metrics, sets, run, dev)
        return metrics

    if args.evaluate:
        return run.finish(**measure_test())
    for epoch in run.epochs():
        model.train()
        carried.begin(anew=run.epoch_begins, batches=batches)
        for inputs, lengths, targets in run.progress(batches):
            with dev.autocast():
                outputs, state = net(inputs, lengths, carried.take())
            loss = loss_of(outputs, targets)
            carried.put(state)
            run.add(train_loss=loss)
            if dev.step(loss, optimizer):
                schedule.step()
        run.log(epoch, **run.means(), **(evaluate(model, val, dev, args) if val else {}))
        run.save()
    return run.finish(**run.means(), **measure_test())


if __name__ == "__main__":
    main()
