"""The claims of yolo/README.md as experiments.

    python yolo/claims.py one-pass                         # 3 minutes
    python yolo/claims.py errors --data-dir PATH           # half an hour
    python yolo/claims.py grid --data-dir PATH --seeds 0   # 12 minutes

one-pass: frames a second of one pass over the image, decoding and suppression included, against the
same backbone slid over as many windows as that pass proposes boxes (98), at the full input and at a
quarter of its side. Speed doesn't depend on the weights, so they are random; a seed is one
measurement.

errors: what is wrong among the surest detections is mostly the place, not the class (Fig. 4): on
shapes, and on blood cells after a first training on shapes.

grid: what the number of cells S does on blood cells, all else equal; judged on the validation set.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from common import cli, fail
from common.claims import history, plus_minus, run_arms, write_summary
from common.detection import suppress
from common.device import Device
from common.folder import make_folder
from yolo.errors import KINDS
from yolo.model import MODELS, decode
from yolo.train import main as train
from yolo.train import parse_args as train_flags

SPEED = {"yolov1": 448, "yolov1_tiny": 448, "yolov1_small": 256}  # pixels of the input
NUM_WINDOWS = 98
CELLS = ["--data", "bccd", "--grid", "14", "--size", "256", "--mirror", "both"]
CELLS += ["--batch-size", "4", "--lr", "0.001"]
EPOCHS = {"errors": 40, "grid": 25}  # on blood cells
SHAPES = []  # as by default
GRIDS = [7, 10, 14, 20]


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The flags; see --help."""
    parser = cli.claims_parser("yolo", __doc__, ["one-pass", "errors", "grid"])
    parser.add_argument("--models", nargs="+", choices=list(SPEED), help="of one-pass: all")
    parser.add_argument("--epochs", type=cli.integer(1), help="on blood cells")
    args = parser.parse_args(argv)
    if args.claim == "one-pass" and args.epochs:
        fail("--epochs is for errors and grid: one-pass trains nothing")
    if args.claim != "one-pass" and args.models:
        fail(f"--models is for one-pass: {args.claim} trains yolov1_small")
    return args


def slide(image: Tensor, size: int) -> Iterator[Tensor]:
    """98 windows of an image (1, 3, H, W), scaled to `size` pixels, in batches of 14 at most.

    They lie at 7 x 7 places, with a half and with a quarter of the image's side.
    """
    for share in (2, 4):
        side = image.shape[3] // share
        places = torch.linspace(0, image.shape[3] - side, 7).int().tolist()
        cuts = [image[:, :, y : y + side, x : x + side] for y in places for x in places]
        for batch in torch.cat(cuts).tensor_split([14, 28, 42]):
            yield F.interpolate(batch, (size, size), mode="bilinear", antialias=True)


def seconds(work: Callable, dev: Device, rounds: int) -> float:
    """The median time of `work`, after one round to warm up."""
    times = []
    for _ in range(rounds + 1):
        begin = time.perf_counter()
        with torch.inference_mode(), dev.autocast():
            work()
        if dev.device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - begin)
    return statistics.median(times[1:])


def measure(name: str, seed: int, device: str) -> dict[str, float]:
    """Frames a second of one model, by way."""
    dev = Device(train_flags(["--model", name, "--device", device, "--seed", str(seed), "--quiet"]))
    size = SPEED[name]
    model = MODELS[name](size=size)
    dev.wrap(model)
    model.eval()
    image = torch.rand(1, 3, size, size, device=dev.device)

    def one_pass() -> None:
        boxes, scores = decode(model(image).float())
        suppress(boxes[0], scores[0], 0.001)

    def windows(side: int) -> float:  # a seventh of them is timed
        part = seconds(lambda: model.features(next(slide(image, side))).mean((2, 3)), dev, 3)
        return 7 * part

    return {
        "one_pass": 1 / seconds(one_pass, dev, 7),
        "quarter_windows": 1 / windows(size // 4),
        "full_windows": 1 / windows(size),
    }


def one_pass(args: argparse.Namespace) -> dict:
    """Writes claim_one_pass.json and .png."""
    results = {
        name: [measure(name, seed, args.device) for seed in args.seeds]
        for name in args.models or SPEED
    }
    commands = dict.fromkeys(results, "python yolo/claims.py one-pass")
    summary = write_summary(args.out / "claim_one_pass.json", results, commands)

    from matplotlib.figure import Figure

    from common.plot import save

    ways = {"one_pass": "one pass", "quarter_windows": "98 windows, a quarter of the side",
            "full_windows": "98 windows, full input"}  # fmt: skip
    figure = Figure(figsize=(6, 3.2), layout="constrained")
    axis = figure.subplots()
    for number, (way, label) in enumerate(ways.items()):
        rates = [summary[name][way]["mean"] for name in results]
        axis.bar([i + 0.27 * number for i in range(len(rates))], rates, 0.25, label=label)
    axis.set_yscale("log")
    axis.set_xticks([i + 0.27 for i in range(len(results))], list(results))
    axis.set_ylabel("frames a second")
    axis.legend(fontsize=8)
    save(figure, args.out / "claim_one_pass.png")
    for name, entry in summary.items():
        rates = ", ".join(f"{label} {entry[way]['mean']:.3g} ± {entry[way]['std']:.2g}"
                          for way, label in ways.items())  # fmt: skip
        print(f"{name}: frames a second: {rates}")
    return summary


def cells(args: argparse.Namespace, start: Path) -> list[str]:
    """The flags of a training on blood cells that starts from the checkpoint `start`."""
    epochs = str(args.epochs or EPOCHS[args.claim])
    return [*CELLS, "--epochs", epochs, "--weights", str(start)]


def pretrain(args: argparse.Namespace, seeds: list[int]) -> tuple[dict, dict, Path]:
    """Shapes, trained as by default; and the checkpoint of the first seed, for blood cells."""
    args = argparse.Namespace(**{**vars(args), "seeds": seeds})
    results, commands, folders = run_arms("yolo", train, {"shapes": []}, SHAPES, args)
    return results, commands, folders["shapes"][0] / "last.pt"


def errors(args: argparse.Namespace) -> dict:
    """Writes claim_errors.json and .png."""
    results, commands, start = pretrain(args, args.seeds)
    arms = {"bccd": [*cells(args, start), "--val", "0"]}
    more, others, _ = run_arms("yolo", train, arms, [], args)
    results, commands = results | more, commands | others
    summary = write_summary(args.out / "claim_errors.json", results, commands)

    from matplotlib.figure import Figure

    from common.plot import save

    figure = Figure(figsize=(6, 2.2), layout="constrained")
    axis = figure.subplots()
    left = [0.0] * len(summary)
    for kind in KINDS:
        shares = [100 * summary[arm][f"test_{kind}"]["mean"] for arm in summary]
        axis.barh(list(summary), shares, left=left, label=kind)
        left = [a + b for a, b in zip(left, shares, strict=True)]
    axis.set_xlabel("of the surest detections (%)")
    figure.legend(loc="outside upper center", ncols=5, fontsize=8)
    save(figure, args.out / "claim_errors.png")
    for arm, entry in summary.items():
        kinds = (f"{kind} {plus_minus(entry[f'test_{kind}']['values'])}" for kind in KINDS)
        precision = plus_minus(entry["test_map50"]["values"], 1, 3, "")
        print(f"{arm}: mAP {precision}; {', '.join(kinds)}")
    return summary


def grid(args: argparse.Namespace) -> dict:
    """Writes claim_grid.json and .png."""
    start = pretrain(args, args.seeds[:1])[2]
    arms = {str(s): ["--grid", str(s)] for s in GRIDS}
    results, commands, folders = run_arms("yolo", train, arms, cells(args, start), args)
    for arm, runs in results.items():  # the validation set judges
        for run, folder in zip(runs, folders[arm], strict=True):
            run["val_map50"] = list(history(folder, "val_map50").values())[-1]
    summary = write_summary(args.out / "claim_grid.json", results, commands)

    from common.plot import spread

    values = {int(arm): [run["val_map50"] for run in runs] for arm, runs in results.items()}
    spread({"blood cells": values}, args.out / "claim_grid.png", "cells a side, S", "mAP at 0.5")
    for arm, entry in summary.items():
        precision = plus_minus(entry["val_map50"]["values"], 1, 3, "")
        print(f"S = {arm}: validation mAP at 0.5 {precision}")
    return summary


@cli.command
def main(argv: list[str] | None = None) -> dict:
    """Runs what isn't done yet; writes JSON and picture; returns the summary."""
    args = parse_args(argv)
    make_folder(args.out)
    return {"one-pass": one_pass, "errors": errors, "grid": grid}[args.claim](args)


if __name__ == "__main__":
    main()
