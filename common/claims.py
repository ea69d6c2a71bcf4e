"""What the claims.py of all milestones share: arms that are skipped when done, and their summary.

results, commands, folders = run_arms("lenet", train, ARMS, ["--paper"], args)
write_summary(args.out / "claim_data.json", results, commands)
"""

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from common import fail, seed_of
from common.folder import read_rows


def run_arms(
    milestone: str,
    train: Callable,
    arms: dict[str, list[str]],
    shared: list[str],
    args: argparse.Namespace,
) -> tuple[dict[str, list[dict]], dict[str, str], dict[str, list[Path]]]:
    """Trains each arm (its flags, on top of `shared`) with each of `args.seeds`, unless it is done.

    Returns by arm the final metrics and the folders of its runs, seed by seed, and its command.
    """
    results, commands, folders = {}, {}, {}
    for arm, flags in arms.items():
        commands[arm] = " ".join([f"python {milestone}/train.py", *shared, *flags, "--seed SEED"])
        results[arm], folders[arm] = [], []
        for seed in args.seeds:
            argv = [*shared, *flags, "--seed", str(seed)]
            folder = arm_folder(milestone, arm, argv)
            where = ["--run-dir", str(folder), "--data-dir", args.data_dir, "--device", args.device]
            results[arm].append(finished(folder) or train([*argv, *where, "--resume"]))
            folders[arm].append(folder)
    return results, commands, folders


def best_arms(
    milestone: str,
    train: Callable,
    arms: dict[str, list[list[str]]],
    shared: list[str],
    args: argparse.Namespace,
    metric: str = "val_accuracy",
    better: Callable = max,
) -> tuple[dict[str, list[dict]], dict[str, str], dict[str, list[Path]]]:
    """`run_arms` with those of each name's flags that are best on validation with the first seed.

    `arms` are by name the flags to choose among; the arm is called by the name and the last flag,
    if any. What counts is the last epoch's `metric`, of which `better` is max or min.
    """
    first = argparse.Namespace(**vars(args) | {"seeds": args.seeds[:1]})
    chosen = {}
    for name, choices in arms.items():
        tried = {" ".join([name, *flags[-1:]]): flags for flags in choices}
        folders = run_arms(milestone, train, tried, shared, first)[2]
        found = {
            arm: list(history(where[0], metric).values())[-1] for arm, where in folders.items()
        }
        best = better(found, key=found.get)
        chosen[best] = tried[best]
        others = ", ".join(f"{arm} {value:.4g}" for arm, value in found.items())
        print(f"{best} is the best by {metric} ({others})", flush=True)
    return run_arms(milestone, train, chosen, shared, args)


def multiply_adds(model: nn.Module, image: Tensor) -> int:
    """Of one image (1, C, H, W), in evaluation, by PyTorch's counter: half of its operations.

    Both may be on the meta device, where nothing is computed.
    """
    from torch.utils.flop_counter import FlopCounterMode

    model.eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(image)
    return counter.get_total_flops() // 2


def history(folder: Path, metric: str) -> dict[int, float]:
    """A metric by epoch, from a run's metrics.jsonl."""
    rows = (row for row in read_rows(folder) if metric in row and not row.get("final"))
    return {row["epoch"]: row[metric] for row in rows}


def error_curve(folders: Sequence[Path], metric: str) -> dict[int, list[float]]:
    """The error (%) by epoch of an arm's runs, of each a value, from the accuracy `metric`."""
    runs = [history(folder, metric) for folder in folders]
    return {epoch: [100 * (1 - run[epoch]) for run in runs] for epoch in runs[0]}


def arm_folder(milestone: str, arm: str, argv: list[str]) -> Path:
    """Where one arm with these flags runs: the same flags, the same folder."""
    return Path("runs", f"{milestone}-claims", f"{arm}-{seed_of(*argv) % 16**6:06x}")


def finished(folder: Path) -> dict[str, float] | None:
    """The final metrics of a run that has ended, or None."""
    row = (read_rows(folder) or [{}])[-1]
    return {k: v for k, v in row.items() if "_" in k} if row.get("final") else None


def run_script(script: Path, argv: list[str]) -> dict[str, float]:
    """Runs another milestone's train.py as a command, as no folder imports another's script.

    Returns its metrics, from the --run-dir of `argv`; ends as it ended, if that was no success.
    """
    if not script.is_file():
        fail(f"this claim is about two milestones, and {script.parent.name}/{script.name} isn't in "
             "this tree")  # fmt: skip
    child = subprocess.Popen([sys.executable, str(script), *argv])
    try:
        child.wait()
    except KeyboardInterrupt:  # the child has it, too, and saves
        child.wait()
        raise
    if child.returncode:
        raise SystemExit(child.returncode)
    return finished(Path(argv[argv.index("--run-dir") + 1]))


def write_summary(path: Path, results: dict[str, list[dict]], commands: dict[str, str]) -> dict:
    """Writes for each arm its command, and mean, standard deviation and values of each metric."""
    summary = {}
    for arm, runs in results.items():
        metrics = {}
        for key in runs[0]:
            values = [run[key] for run in runs]
            deviation = statistics.stdev(values) if len(values) > 1 else 0.0
            metrics[key] = {"mean": statistics.mean(values), "std": deviation, "values": values}
        summary[arm] = {"command": commands[arm], **metrics}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(summary, indent=1) + "\n")
    return summary


def plus_minus(
    values: Sequence[float], scale: float = 100, digits: int = 1, unit: str = "%"
) -> str:
    """Mean and std over seeds as a README has them, "97.7% ± 0.3"; of one seed the value."""
    mean = f"{statistics.mean(values) * scale:.{digits}f}{unit}"
    return f"{mean} ± {statistics.stdev(values) * scale:.{digits}f}" if len(values) > 1 else mean


def error_of(metrics: dict, part: str) -> str:
    """Mean and std of an arm's error on the part "train" or "test", "2.34% ± 0.10"; `metrics`
    are its entry in what `write_summary` returns."""
    return plus_minus([1 - value for value in metrics[f"{part}_accuracy"]["values"]], digits=2)
