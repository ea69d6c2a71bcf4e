"""A training run: its folder, checkpoints, resuming, stopping, and what is printed of it.

    run = Run(args, dev, model=model, optimizer=optimizer, schedule=schedule, dataset=train.facts)
    for epoch in run.epochs():
        for images, labels in run.progress(train.batches(args.batch_size)):
            ...
            run.add(train_loss=loss)
        run.log(epoch, **run.means(), **evaluate(model, val, dev))
        run.save()
    return run.finish(**evaluate(model, test, dev))

Every keyword is saved under its name and restored on --resume: modules, optimisers, schedules,
and dictionaries of tensors (an EMA) or plain values. Resuming is exact, inside an epoch too; it
rests on torch's random numbers alone, so don't draw from `random` or NumPy in a loop.
"""

import argparse
import itertools
import json
import math
import os
import platform
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from tqdm import tqdm

from common import fail, seed_of
from common.checkpoint import read_checkpoint, restore, state_of, write_checkpoint
from common.device import Device

CHECK_STEPS = 50  # how often the flag of a non-finite loss is read: reading waits for the device
AGREE_STEPS = 10  # how often several processes agree on stopping and saving
LINE_SECONDS = 10.0  # between progress lines where there is no terminal


def progress(items: Iterable, dev: Device, what: str, total: int, done: int = 0) -> Iterator:
    """Passes `items` on, with a bar that shows rate and remaining time (plain lines in a file)."""
    shown = dev.main and not dev.quiet and total > 1  # epochs of one step follow one another fast
    if not shown or sys.stderr.isatty():
        yield from tqdm(items, what, total, leave=False, initial=done, disable=not shown)
        return
    start = last = time.monotonic()
    for count, item in enumerate(items, 1):
        yield item
        if (now := time.monotonic()) - last > LINE_SECONDS:
            last = now
            rate, left = count / (now - start), total - done - count
            left = f", {left / rate:.0f} s left" if left else ""
            line = f"{what}: {done + count}/{total}, {rate:.1f}/s{left}"
            print(line, file=sys.stderr, flush=True)


class Run:
    """One run and its folder, `self.folder`; see the top of this file.

    `monitor` names the validation metric that chooses `best.pt`, with `max` or `min`.
    """

    def __init__(
        self,
        args: argparse.Namespace,
        dev: Device,
        monitor: tuple[str, Callable] = ("val_accuracy", max),
        **parts: Any,
    ):
        self.args, self.dev, self.parts, self.monitor = args, dev, parts, monitor
        self.epoch = self.position = self.step = self.stale = 0  # position: steps into the epoch
        self.best, self.improved, self.unsaved_best = None, False, None
        self.sums, self.rows, self.rng, self.signal, self.signalled = {}, [], None, 0, 0.0
        self.seconds, self.begun, self.saved = 0.0, time.monotonic(), time.monotonic()
        self.num_epochs = getattr(args, "epochs", None) or sys.maxsize
        self.num_steps = min(args.max_steps or sys.maxsize, getattr(args, "steps", sys.maxsize))
        self.config = config(args, dev)
        self.names = {}
        for key, part in parts.items():
            if isinstance(part, nn.Module):
                prefix = "" if key == "model" else f"{key}."
                self.names.update({p: prefix + n for n, p in part.named_parameters()})
        last = args.run_dir / "last.pt" if args.run_dir and args.resume else None
        if args.evaluate:
            state = read_checkpoint(args.evaluate)
            self.restore(args.evaluate, state, only=(nn.Module, dict))
            self.epoch, self.step = state["epoch"], state["step"]
        elif last and last.exists():
            self.resume(last)
        self.folder = self.make_folder()
        self.log_tensorboard = tensorboard(self.folder) if args.tensorboard and dev.main else None
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, self.on_signal)
        done = f", going on at epoch {self.epoch + 1}, step {self.step}" if self.step else ""
        dev.say(f"{args.model} on {args.data}, {dev}, {dev.precision}, in {self.folder}{done}")

    # ------------------------------------------------------------------ the loop

    def epochs(self) -> Iterator[int]:
        """The epochs still to be trained; then, with --patience, puts the best weights back."""
        if self.rng is not None:
            self.set_rng(self.rng)
        while not self.over():
            yield self.epoch
        best = self.folder / "best.pt"
        if self.args.patience and self.dev.agree(best.exists())[0]:  # rank 0 may still write it
            self.restore(best, read_checkpoint(best), only=(nn.Module, dict))

    def over(self) -> bool:
        """Whether there is nothing left to train."""
        patience = self.args.patience or sys.maxsize
        done = self.epoch >= self.num_epochs or self.step >= self.num_steps
        return done or self.stale >= patience

    def progress(self, batches: Iterable) -> Iterator:
        """Passes on the rest of the epoch's parts; minds signals and saves between the steps.

        `batches` has a length in steps; one with `seek(epoch, step)` starts there by itself.
        """
        per_step, steps = self.dev.accumulate, len(batches)
        if self.position == 0:
            self.sums = {}
        steps = steps if hasattr(batches, "seek") else steps // per_step
        self.position = min(self.position, steps)  # resumed with a shorter epoch
        if hasattr(batches, "seek"):
            batches.seek(self.epoch, self.position)
        else:
            batches = itertools.islice(batches, self.position * per_step, None)
        parts = iter(batches)
        what = f"epoch {self.epoch + 1}"
        for _ in progress(range(self.position, steps), self.dev, what, steps, self.position):
            if self.step >= self.num_steps:
                break
            self.dev.steps = self.step
            yield from itertools.islice(parts, per_step)
            self.step, self.position = self.step + 1, self.position + 1
            self.between_steps()
        self.check_finite()
        if self.position == steps:
            self.epoch, self.position = self.epoch + 1, 0

    def between_steps(self) -> None:
        """After a step: stops on a signal, saves every --save-minutes, checks the loss."""
        if self.dev.world == 1 or self.step % AGREE_STEPS == 0:
            due = time.monotonic() - self.saved > 60 * self.args.save_minutes
            number, due = map(int, self.dev.agree(self.signal, due))
            if number or due:
                self.write(self.state())
            if number:
                self.leave(number)
        if self.step % CHECK_STEPS == 0:
            self.check_finite()

    def add(self, count: int = 1, **values: Tensor) -> None:
        """Adds to the epoch's running means: each value is itself a mean over `count` items."""
        kind = torch.float32 if self.dev.device.type == "mps" else torch.float64
        for key, value in values.items():
            total = value.detach().to(kind) * count
            pair = torch.stack([total, torch.full_like(total, count)])
            self.sums[key] = self.sums[key] + pair if key in self.sums else pair

    def means(self) -> dict[str, float]:
        """The running means of this epoch, over all processes."""
        sums = {key: self.dev.sum(pair.clone()).tolist() for key, pair in self.sums.items()}
        return {key: total / count for key, (total, count) in sums.items()}

    def log(self, epoch: int, **metrics: float) -> None:
        """Ends an epoch: one row of metrics.jsonl, one line, and the choice of the best weights."""
        self.check_finite(**metrics)
        optimizers = (part for part in self.parts.values() if isinstance(part, Optimizer))
        rate = max((g["lr"] for part in optimizers for g in part.param_groups), default=0.0)
        self.write_row({"epoch": epoch + 1, "step": self.step, **metrics, "lr": rate})
        name, better = self.monitor
        whole = self.position == 0  # an epoch that --max-steps cut short is not compared
        if name in metrics and (whole or self.best is None):
            if self.best is None or better(self.best, metrics[name]) != self.best:
                self.improved, self.stale = True, 0
                self.best = metrics[name] if whole else None
            else:
                self.stale += 1

    def save(self, every: float = 0.0) -> None:
        """Writes best.pt if this epoch was the best, and last.pt; leaves if a signal came.

        For epochs of milliseconds: `every` is how many seconds to let pass between saves.
        """
        late = time.monotonic() - self.saved >= every
        number, late = map(int, self.dev.agree(self.signal, late))
        now = late or number or self.over()
        state = self.state() if self.improved or now else None
        self.unsaved_best = state if self.improved else self.unsaved_best
        self.improved = False
        if now:
            self.write(state)
        if number and not self.over():
            self.leave(number)

    def finish(self, **metrics: float) -> dict[str, float]:
        """Ends the run: the last row, the curves, one line. Returns the metrics."""
        self.check_finite(**metrics)
        seconds = self.seconds + time.monotonic() - self.begun
        self.write_row({"epoch": self.epoch, "step": self.step, **metrics, "final": True})
        self.draw()
        if self.dev.main:
            place = f"{self.dev.precision}, {self.dev}, {seconds:.0f} s, {self.folder}"
            print(f"{show(metrics)}  ({place})", flush=True)
        if self.log_tensorboard:
            self.log_tensorboard.close()
        if self.signal:
            raise SystemExit(128 + self.signal)
        return metrics

    # ------------------------------------------------------------------ stopping

    def on_signal(self, number: int, _frame: Any) -> None:
        """Notes the signal for the end of the step; a later second one ends at once."""
        if self.signal and time.monotonic() - self.signalled > 2:  # torchrun sends two together
            os._exit(128 + number)
        self.signal, self.signalled = self.signal or number, time.monotonic()

    def leave(self, number: int) -> NoReturn:
        """Ends after signal `number`, with everything saved."""
        self.draw()
        where = shlex.quote(str(self.folder))
        if self.dev.main:
            print(f"stopped in epoch {self.epoch + 1}, after step {self.step}; go on with:")
            print(f"python {self.args.milestone}/train.py --resume --run-dir {where}", flush=True)
        raise SystemExit(128 + number)

    def check_finite(self, state: dict | None = None, **metrics: float) -> None:
        """Stops the run if a loss, a metric, or a weight about to be saved is not finite."""
        bad = int(self.dev.agree(int(self.dev.bad_step))[0])
        if bad < 0 and not all(map(math.isfinite, metrics.values())):
            bad = self.step
        modules = [key for key, part in self.parts.items() if isinstance(part, nn.Module)]
        values = (value for key in modules if state for value in state[key].values())
        if bad < 0 and not all(v.isfinite().all() for v in values if isinstance(v, Tensor)):
            bad = self.step
        if bad < 0:
            return
        last = self.folder / "last.pt"
        good = f"the last good checkpoint is {last}" if last.exists() else "none was saved before"
        rate = f"a smaller --lr than {self.args.lr:g}" if "lr" in self.args else "other settings"
        fail(f"the loss stopped being finite at step {bad}: try {rate}, or --clip 1; {good}")

    # ------------------------------------------------------------------ files

    def state(self) -> dict:
        """The contents of a checkpoint. Every process has to call this."""
        state = {key: state_of(part, self.names) for key, part in self.parts.items()}
        self.check_finite(state)
        rng = {"cpu": torch.get_rng_state(), "device": None}
        if self.dev.device.type == "cuda":
            rng["device"] = torch.cuda.get_rng_state()
        elif self.dev.device.type == "mps":
            rng["device"] = torch.mps.get_rng_state()
        optimizers = {key: part for key, part in self.parts.items() if isinstance(part, Optimizer)}
        return state | {
            "scaler": {key: self.dev.scaler(part).state_dict() for key, part in optimizers.items()},
            "rng": self.dev.gather(rng),
            "sums": {k: self.dev.sum(pair.clone()).cpu() for k, pair in self.sums.items()},
            "epoch": self.epoch,
            "position": self.position,
            "step": self.step,
            "best": self.best,
            "stale": self.stale,
            "seconds": self.seconds + time.monotonic() - self.begun,
            "config": self.config,
        }

    def write(self, state: dict) -> None:
        """Writes last.pt, and before it best.pt if a better one waits."""
        if self.dev.main and self.unsaved_best:
            write_checkpoint(self.folder / "best.pt", self.unsaved_best)
        if self.dev.main:
            write_checkpoint(self.folder / "last.pt", state)
        self.unsaved_best, self.saved = None, time.monotonic()

    def restore(
        self, path: str | Path, state: dict, only: Any = object, lr_scale: float = 1.0
    ) -> None:
        """Gives the parts of the kind `only` their state; what doesn't fit ends in one line."""
        known, now = state.get("dataset", {}), self.parts.get("dataset", {})
        if known.get("classes") != now.get("classes"):
            fail(f"{path} was trained on other classes than those of {self.args.data}")
        for key, part in self.parts.items():
            try:
                if isinstance(part, only):
                    restore(part, state[key], self.names, lr_scale)
            except (KeyError, RuntimeError, ValueError, TypeError) as error:
                reason = str(error).strip().splitlines()[-1].strip()
                fail(f"{path} doesn't fit {self.args.model}: its {key} differs ({reason})")

    def resume(self, path: Path) -> None:
        """Puts everything where the checkpoint has it; typed flags keep their new values."""
        state = read_checkpoint(path)
        flags = state["config"]["flags"]
        scale = self.args.lr / flags["lr"] if flags.get("lr") else 1.0
        self.restore(path, state, lr_scale=scale)
        for key, scaler in state["scaler"].items():
            if scaler and self.dev.precision == "fp16":
                self.dev.scaler(self.parts[key]).load_state_dict(scaler)
        for key in ("epoch", "step", "best", "stale", "seconds"):
            setattr(self, key, state[key])
        old, new = flags.get("batch_size"), getattr(self.args, "batch_size", None)
        self.position = state["position"] * old // new if old and new else state["position"]
        here = 1.0 if self.dev.main else 0.0  # the sums are those of all processes
        self.sums = {k: pair.to(self.dev.device) * here for k, pair in state["sums"].items()}
        self.rng = state["rng"]
        rows = self.read_rows(path.parent / "metrics.jsonl")
        self.rows = [r for r in rows if r.get("epoch", 0) <= self.epoch and not r.get("final")]

    def set_rng(self, states: list[dict]) -> None:
        """The random state of the checkpoint; with another number of processes, a fresh one."""
        if len(states) != self.dev.world:
            torch.manual_seed(seed_of("resume", self.dev.seed, self.dev.rank, self.step))
            return
        torch.set_rng_state(states[self.dev.rank]["cpu"])
        device = states[self.dev.rank]["device"]
        if device is not None and self.dev.device.type == "cuda":
            torch.cuda.set_rng_state(device)
        elif device is not None and self.dev.device.type == "mps":
            torch.mps.set_rng_state(device)

    def make_folder(self) -> Path:
        """The run's folder with config.json; new unless it is given or resumed."""
        folder = self.args.run_dir
        try:
            if self.dev.main:
                folder = folder or new_folder(self.args)
                folder.mkdir(parents=True, exist_ok=True)
                text = json.dumps(self.config, indent=1) + "\n"
                write_text(folder / "config.json", text)
                write_text(folder / "metrics.jsonl", "".join(map(as_line, self.rows)))
        except OSError as error:
            fail(f"can't write the run folder {folder or error.filename}: {error.strerror}")
        return self.dev.gather(folder)[0]

    @staticmethod
    def read_rows(path: Path) -> list[dict]:
        """The rows of metrics.jsonl; a line that a kill cut short is left out."""
        rows = []
        for line in path.read_text().splitlines() if path.exists() else []:
            try:
                rows.append(json.loads(line))
            except ValueError:
                break
        return rows

    def write_row(self, row: dict) -> None:
        self.rows.append(row)
        if not self.dev.main:
            return
        with open(self.folder / "metrics.jsonl", "a") as file:
            file.write(as_line(row))
        metrics = {k: v for k, v in row.items() if k not in ("epoch", "step", "final")}
        if not row.get("final"):
            self.dev.say(f"epoch {row['epoch']:3d}  step {row['step']}  {show(metrics)}")
        for key, value in metrics.items() if self.log_tensorboard else ():
            self.log_tensorboard.add_scalar(key, value, row["step"])

    def draw(self) -> None:
        """Writes curves.png."""
        rows = [row for row in self.rows if not row.get("final")]
        if self.dev.main and rows:
            from common.plot import curves

            curves(rows, self.folder / "curves.png")


def config(args: argparse.Namespace, dev: Device) -> dict:
    """What made a run: every flag, versions, commit, device."""
    flags = {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()}
    versions = {"python": platform.python_version(), "torch": str(torch.__version__)}
    device = {"device": str(dev), "precision": dev.precision}
    return {"flags": flags, "versions": versions, "commit": git_commit(), **device}


def show(metrics: dict[str, float]) -> str:
    """The metrics in one line."""
    return "  ".join(f"{key} {value:.4g}" for key, value in metrics.items())


def as_line(row: dict) -> str:
    """A row of metrics.jsonl."""
    return json.dumps(row) + "\n"


def write_text(path: Path, text: str) -> None:
    """Replaces a small file whole."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text)
    os.replace(temporary, path)


def new_folder(args: argparse.Namespace) -> Path:
    """A folder of its own below runs/: <model>-<data>, with -2, -3, … if that is there already."""
    kind, _, path = args.data.partition(":")
    data = re.sub(r"[^\w.-]+", "-", f"{kind}-{Path(path).resolve().name}" if path else kind)
    name = f"{'evaluate-' if args.evaluate else ''}{args.model}-{data}"
    for number in itertools.count(1):
        folder = Path("runs", args.milestone, name if number == 1 else f"{name}-{number}")
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            if not folder.parent.is_dir():
                raise


def git_commit() -> str | None:
    """The commit of this repository, with a + if there are changes on top; None without git."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        commit = subprocess.run(
            [*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True
        )
        changes = subprocess.run(
            [*git, "status", "--porcelain", "-uno"], capture_output=True, text=True
        )
        return commit.stdout.strip() + ("+" if changes.stdout.strip() else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def tensorboard(folder: Path) -> Any:
    """TensorBoard's writer."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        fail("--tensorboard needs TensorBoard: pip install -e '.[tensorboard]'")
    return SummaryWriter(str(folder))
