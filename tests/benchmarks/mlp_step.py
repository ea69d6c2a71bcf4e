"""Times training steps of the perceptrons beside the same nn.Sequential, and an epoch of a table.

    python tests/benchmarks/mlp_step.py                         # steps: mlp, mlp_deep, mlp_dropout
    python tests/benchmarks/mlp_step.py --epoch                 # 20,000 rows of 20 numbers

Both sides have the same weights and take turns in one process. `equal` is fp32 with AdamW on both
sides; `default` is ours as the script runs (precision auto, fused AdamW). Max-norm is left out, as
the usual script has none. An epoch, data included, is ours beside a DataLoader over a
TensorDataset. Printed is the ratio of medians, theirs over ours, with the quartiles of the rounds;
without a GPU the processor's time counts, so that other jobs disturb less.
"""

import argparse
import os
import statistics
import time

os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "16384")

import torch
import torch.nn.functional as F
from timing import interleave, ratio
from torch import nn

from common.device import Device
from mlp.model import MLP, MODELS, Dropout, mlp_table
from mlp.tables import TableSet
from mlp.train import parse_args

NAMES = ("mlp", "mlp_deep", "mlp_dropout")


def plain(model: MLP) -> nn.Sequential:
    """The usual network with the same layers and weights."""
    layers = []
    for layer in model.layers:
        kind = type(layer)
        if kind is nn.Linear:
            layers.append(nn.Linear(layer.in_features, layer.out_features))
        else:
            layers.append(nn.Dropout(layer.p) if kind is Dropout else kind())
    theirs = nn.Sequential(*layers)
    theirs.load_state_dict(
        {key.removeprefix("layers."): value for key, value in model.state_dict().items()}
    )
    return theirs


def device(args: argparse.Namespace, name: str, default: bool) -> Device:
    """The device, in the precision of train.py or in fp32."""
    kind = "auto" if default else "fp32"
    flags = parse_args(["--model", name, "--device", args.device, "--precision", kind, "--quiet"])
    return Device(flags, auto_precision="bf16" if name == "mlp_dropout" else "fp32")


def steps(name: str, default: bool, args: argparse.Namespace) -> list:
    """Our step and the usual one."""
    dev = device(args, name, default)
    ours = MODELS[name]()
    images = torch.rand(args.batch_size, 1, 28, 28, device=dev.device)
    labels = torch.randint(10, (args.batch_size,), device=dev.device)

    def stepper(model: nn.Module, mine: bool):
        model.to(dev.device).train()
        fused = True if mine and default else None
        optimizer = torch.optim.AdamW(model.parameters(), 1e-3, fused=fused)
        kind = torch.bfloat16 if dev.precision == "bf16" and mine else torch.float32

        def step() -> None:
            with torch.autocast(dev.device.type, torch.bfloat16, enabled=kind is torch.bfloat16):
                loss = F.cross_entropy(model(images), labels)
            if mine:
                dev.step(loss, optimizer)
            else:
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
            if dev.device.type == "cuda":
                torch.cuda.synchronize()

        return step

    theirs = plain(ours)  # before ours has taken a step
    return [stepper(ours, True), stepper(theirs, False)]


def epochs(args: argparse.Namespace) -> list:
    """An epoch of ours over a table, and of the usual script."""
    dev = device(args, "mlp", False)
    rows, labels = torch.randn(20_000, 20), torch.randint(3, (20_000,))
    table = TableSet("train", rows, labels, {"classes": list("abc")}, dev)
    ours = mlp_table(20, 3)
    theirs = plain(ours)
    pairs = torch.utils.data.TensorDataset(rows, labels)
    loader = torch.utils.data.DataLoader(pairs, args.batch_size, shuffle=True, drop_last=True)

    def epoch(model: nn.Module, batches):
        model.to(dev.device)
        optimizer = torch.optim.AdamW(model.parameters(), 1e-3)

        def run() -> None:
            for inputs, targets in batches:
                inputs, targets = inputs.to(dev.device), targets.to(dev.device)
                F.cross_entropy(model(inputs), targets).backward()
                optimizer.step()
                optimizer.zero_grad()

        return run

    return [epoch(ours, table.batches(args.batch_size)), epoch(theirs, loader)]


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=NAMES, default=NAMES)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=41)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--epoch", action="store_true")
    args = parser.parse_args()
    cuda = device(args, "mlp", False).device.type == "cuda"
    how = dict(clock=time.perf_counter if cuda else time.process_time)
    if args.epoch:
        times = interleave(epochs(args), min(args.rounds, 9), **how)
        shown = [f"{statistics.median(values):.2f} s" for values in times]
        print(f"an epoch: ours {shown[0]}, usual {shown[1]}, ratio {ratio(*times)}")
        return
    print(f"batch {args.batch_size}; the plain Sequential's time over ours")
    print(f"{'model':<12} {'equal':<20} default")
    for name in args.models:
        sides = [steps(name, kind, args) for kind in (False, True)]
        both = [ratio(*interleave(pair, args.rounds, **how)) for pair in sides]
        print(f"{name:<12} {both[0]:<20} {both[1]}", flush=True)


if __name__ == "__main__":
    main()
