"""What the claims.py of all milestones share: arms that are skipped when done, and their summary.

results, commands, folders = run_arms("lenet", train, ARMS, ["--paper"], args)
write_summary(args.out / "claim_data.json", results, commands)

A claim whose trainings take longer than one sitting is run arm by arm (`--arms`, where claims.py
offers it), on whatever machine there is; the JSON, which git keeps, collects them:

kept = stored_arms(path, CLAIMS[args.claim], args)        # before the training
summary, results = add_arms(path, CLAIMS[args.claim], args, results, commands, kept)
"""

import argparse
import datetime
import json
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from common import fail, seed_of, unknown
from common.device import choose_device
from common.folder import git_commit, read_rows, write_text


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
    summary = summarise(results, commands)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(summary, indent=1) + "\n")
    return summary


def summarise(results: dict[str, list[dict]], commands: dict[str, str]) -> dict:
    """What `write_summary` writes."""
    summary = {}
    for arm, runs in results.items():
        metrics = {}
        for key in runs[0]:
            values = [run[key] for run in runs]
            deviation = statistics.stdev(values) if len(values) > 1 else 0.0
            metrics[key] = {"mean": statistics.mean(values), "std": deviation, "values": values}
        summary[arm] = {"command": commands[arm], **metrics}
    return summary


# ---------------------------------------------------------------------- arms of several sittings


def arm_of(name: str, arms: Iterable[str]) -> str | None:
    """The arm that a result is of: "a" and "a, from scratch" are of "a"."""
    return next((arm for arm in arms if name == arm or name.startswith(f"{arm}, ")), None)


def stored_arms(path: Path, arms: Iterable[str], args: argparse.Namespace) -> dict[str, dict]:
    """What the JSON at `path` has of the arms that `--arms` leaves out; nothing without `--arms`.

    Ends in one line, before anything is trained, where it isn't of the same seeds and steps.
    """
    if not args.arms:
        return {}
    for arm in args.arms:
        if arm not in arms:
            fail(unknown(f"arm of {args.claim}", arm, arms))
    try:
        stored = json.loads(path.read_text("utf-8")) if path.exists() else {}
        others = {name: arm_of(name, arms) for name in stored}
        kept = {name: dict(stored[name]) for name, arm in others.items()
                if arm and arm not in args.arms}  # fmt: skip
    except (AttributeError, OSError, TypeError, ValueError):
        fail(f"{path} has no arms that can be read: fetch it again from git, or move it away")
    for name, entry in kept.items():
        for what, mine in settings(args).items():
            if entry.get(what) != mine:
                fail(f"{path} has {name!r} with {what} {entry.get(what)} and this would be with "
                     f"{mine}: take the same, or another --out")  # fmt: skip
    return kept


def settings(args: argparse.Namespace) -> dict:
    """What all arms of a claim have to have in common."""
    return {"seeds": list(args.seeds), "max_steps": args.max_steps}


def add_arms(
    path: Path,
    arms: Iterable[str],
    args: argparse.Namespace,
    results: dict[str, list[dict]],
    commands: dict[str, str],
    kept: dict[str, dict],
) -> tuple[dict, dict[str, list[dict]]]:
    """`write_summary` with what `stored_arms` kept, in the order of `arms`; the results of all.

    Beside each arm's command stand its seeds, and when, where and with which commit it was run.
    """
    now = {"date": f"{datetime.date.today()}", "machine": machine(args.device),
           "commit": git_commit()}  # fmt: skip
    new = summarise(results, commands)
    both = kept | {name: settings(args) | now | entry for name, entry in new.items()}
    order = list(arms)
    summary = {n: both[n] for n in sorted(both, key=lambda n: order.index(arm_of(n, order)))}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(summary, indent=1) + "\n")
    return summary, {name: runs_of(entry) for name, entry in summary.items()}


def runs_of(entry: dict) -> list[dict]:
    """An arm's metrics, seed by seed, from what a summary has of it."""
    values = {key: m["values"] for key, m in entry.items() if isinstance(m, dict)}
    return [dict(zip(values, row, strict=True)) for row in zip(*values.values(), strict=True)]


def machine(device: str) -> str:
    """The processor or GPU that `--device` names, in words."""
    if choose_device(device) == "cuda":
        return torch.cuda.get_device_name()
    return torch.cpu.get_capabilities().get("cpu_name") or platform.machine()


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
