"""One process and several on this machine: their speed, and their loss curves on top of each other.

    python tools/scale.py                    # 1 and 2 processes of one thread each, DDP
    python tools/scale.py --processes 2 --fsdp
    python tools/scale.py --device cuda --processes 8 --script resnet/train.py --model resnet50

Every run is the same training (the same --batch-size, cut among the processes). They take turns,
--rounds times. Writes scale.json and scale.png. Efficiency is the time of one process over that
of N, divided by N; time is that of the epochs, without starting and loading.
"""

import argparse
import contextlib
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from common import cli, counted, fail
from common.claims import history
from common.folder import make_folder

ROOT = Path(__file__).resolve().parents[1]
MEASURE = ["--val", "0", "--quiet"]
# What torchrun itself logs, by its own formatter or by another that is set (pytest sets one).
TORCHRUN = re.compile(
    r"^([DIWE]\d{4} \S+ \d+ torch/distributed/|[A-Z]+ +torch\.distributed\.).*$", re.M
)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The flags; see --help. `typed` are those that the user has given."""
    parser = cli.OneLineParser("python tools/scale.py", __doc__)
    add = parser.add_argument
    add("--script", default="resnet/train.py", help="what is trained (default: resnet/train.py)")
    add("--model", help="which of its models (default: the script's)")
    add("--processes", type=cli.integer(2), default=2, help="how many beside one (default: 2)")
    add("--batch-size", type=cli.integer(1), default=64, help="of a step, in all (default: 64)")
    add("--epochs", type=cli.integer(2), default=4, help="of each run (default: 4)")
    add("--limit", type=cli.integer(1), help="train on so many examples")
    add("--rounds", type=cli.integer(1), default=3, help="each side so many times (default: 3)")
    add("--fsdp", action="store_true", help="shard the parameters, in place of DDP")
    add("--device", choices=cli.DEVICES, default="auto", help="where to compute (default: auto)")
    add("--out", type=Path, default=Path("tools", "samples"), help="folder for what is made")
    args = parser.parse_args(argv)
    args.typed = re.findall(r"(?<!\S)--[\w-]+", " ".join(sys.argv[1:] if argv is None else argv))
    return args


def command(count: int, args: argparse.Namespace, folder: Path) -> list[str]:
    """The command that trains with `count` processes."""
    flags = [*MEASURE, "--batch-size", str(args.batch_size), "--epochs", str(args.epochs)]
    flags += ["--device", args.device]
    flags += ["--model", args.model] if args.model else []
    flags += ["--limit", str(args.limit)] if args.limit else []
    flags += ["--run-dir", str(folder)]
    start = [sys.executable]
    if count > 1:
        start += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
        flags += ["--fsdp"] if args.fsdp else []
    return [*start, str(ROOT / args.script), *flags]


def reason_of(errors: str, status: int) -> str:
    """Why a run failed, in a line, from what it wrote to stderr: its own words, not torchrun's."""
    failed = re.search(r"failed \(exitcode: (-?\d+)\)", errors)
    status = int(failed[1]) if failed else status
    own = TORCHRUN.sub("", errors[: failed.start()].rpartition("\n")[0] if failed else errors)
    lines = [re.sub(r"^\[rank\d+\]: ?", "", line) for line in own.splitlines() if line.strip()]
    raised, inside = [], False  # what ended each traceback
    for line in lines:
        if line.startswith("error: "):
            return line.removeprefix("error: ")
        if line.startswith(("During handling of", "The above exception")):
            raised = raised[:-1]
        elif inside and not line.startswith((" ", "Traceback")):  # of another process
            raised.append(line)
        inside = line.startswith("Traceback") or (inside and line.startswith(" "))
    if raised or lines:
        return raised[0] if raised else lines[-1]
    if status < 0:
        return f"killed by {signal.Signals(-status).name}"
    return f"it ended with status {status} and said nothing"


def whose(reason: str, args: argparse.Namespace, command: list[str]) -> str:
    """Says of the flags that a reason blames which ones the user has not typed."""
    flags = set(re.findall(r"--[\w-]+", reason)) & (set(command) - set(args.typed))
    if not flags:
        return ""
    more = "give it another" if flags <= {"--batch-size", "--epochs"} else "it can't measure this"
    return f" (tools/scale.py itself adds {', '.join(sorted(flags))}: {more})"


def run(count: int, args: argparse.Namespace, folder: Path) -> tuple[float, dict[int, float]]:
    """Seconds of the epochs after the first, and the training loss of each."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # a thread a process: what is compared
    folder.mkdir()
    rows, seen = folder / "metrics.jsonl", []
    with open(folder.with_suffix(".err"), "w+") as errors:
        process = subprocess.Popen(
            command(count, args, folder), env=environment, stdout=subprocess.DEVNULL, stderr=errors
        )
        ended = False
        while not ended:
            ended = process.poll() is not None  # and then a last look
            new = len(rows.read_text().splitlines()) - len(seen) if rows.exists() else 0
            seen += [rows.stat().st_mtime] * new if new > 0 else []  # when an epoch ended
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.02)
        errors.seek(0)
        reason = reason_of(errors.read(), process.returncode)
    if process.returncode:
        blamed = whose(reason, args, process.args)
        fail(f"{args.script} with {counted(count, 'process', 'processes')}: {reason}{blamed}")
    losses = history(folder, "train_loss") if rows.exists() else {}
    if len(losses) < 2:
        fail(f"{args.script} logs no train_loss for each epoch, which is what is compared")
    seconds = seen[args.epochs - 1] - seen[0]
    if seconds <= 0:
        fail(f"an epoch of {args.script} is too short to be timed: give more data, or --epochs")
    return seconds, losses


def draw(losses: dict[int, dict[int, float]], summary: dict, path: Path) -> None:
    """The loss curves on top of each other."""
    from matplotlib.figure import Figure

    from common.plot import save

    figure = Figure(figsize=(5, 3.6), layout="constrained")
    axis = figure.subplots()
    for (count, curve), style in zip(losses.items(), ("o-", "x--"), strict=True):
        processes = counted(count, "process", "processes")
        label = f"{processes}, {summary['seconds'][str(count)]:.1f} s"
        axis.plot(list(curve), list(curve.values()), style, label=label)
    axis.set(
        xlabel="epoch", ylabel="training loss", title=f"efficiency {summary['efficiency']:.0%}"
    )
    axis.grid(alpha=0.3)
    axis.legend()
    save(figure, path)


@cli.command
def main(argv: list[str] | None = None) -> dict:
    """Runs all, writes and prints the result; returns it."""
    args = parse_args(argv)
    if not (ROOT / args.script).is_file():
        fail(f"--script {args.script}: there is no such script in {ROOT}")
    make_folder(args.out)
    counts = [1, args.processes]
    seconds, losses = {count: [] for count in counts}, {}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(args.rounds):
            for count in counts[:: 1 if number % 2 else -1]:  # neither is always the first
                took, losses[count] = run(count, args, Path(folder, f"{number}-{count}"))
                seconds[count].append(took)
                print(f"{counted(count, 'process', 'processes')}: {took:.1f} s", flush=True)
    one, several = (statistics.median(seconds[count]) for count in counts)
    gaps = [abs(losses[1][e] - losses[args.processes][e]) / losses[1][e] for e in losses[1]]
    summary = {
        "command": " ".join(["torchrun", f"--nproc-per-node {args.processes}", args.script]),
        "way": "fsdp" if args.fsdp else "ddp",
        "seconds": {str(count): statistics.median(seconds[count]) for count in counts},
        "all_seconds": {str(count): seconds[count] for count in counts},
        "speedup": one / several,
        "efficiency": one / several / args.processes,
        "largest_loss_gap": max(gaps),
    }
    name = "scale-fsdp" if args.fsdp else "scale"
    (args.out / f"{name}.json").write_text(json.dumps(summary, indent=1) + "\n")
    draw({count: losses[count] for count in counts}, summary, args.out / f"{name}.png")
    print(f"{args.processes} processes are {summary['speedup']:.2f} times as fast as one "
          f"(efficiency {summary['efficiency']:.0%}); their losses differ by at most "
          f"{summary['largest_loss_gap']:.1%}; wrote {args.out / name}.png")  # fmt: skip
    return summary


if __name__ == "__main__":
    main()
