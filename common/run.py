"""A training run: checkpoints, resuming, stopping, and what is printed of it.

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
import dataclasses
import itertools
import json
import math
import os
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from tqdm import tqdm

from common import fail, seed_of
from common.checkpoint import load_state, read_checkpoint, state_of, write_checkpoint
from common.device import Device
from common.folder import as_line, config, new_run, read_rows, write_text

CHECK_STEPS = 50  # how often the flag of a non-finite loss is read: reading waits for the device
AGREE_STEPS = 10  # how often several processes agree on stopping and saving
LINE_SECONDS = 10.0  # between progress lines where there is no terminal
SIZE_FLAGS = ("batch_size", "limit", "val")  # that change how many steps an epoch has


def progress_bar(items: Iterable, dev: Device, what: str, total: int, done: int = 0) -> Iterator:
    """Passes `items` on, with a bar that shows rate and remaining time (plain lines in a file)."""
    shown = dev.main and not dev.quiet and total > 1  # epochs of one step follow one another fast
    if not sys.stderr:
        yield from items
        return
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


@dataclasses.dataclass
class Best:
    """The best epoch so far, by the metric `name`; `better` is max or min."""

    name: str
    better: Callable
    value: float | None = None
    stale: int = 0  # epochs since
    improved: bool = False  # by the epoch that was logged last
    waiting: dict | None = None  # contents of best.pt that aren't written yet

    def see(self, metrics: dict[str, float], whole: bool) -> None:
        """Compares an epoch; one that --max-steps cut short only where there is no other."""
        if self.name not in metrics or not (whole or self.value is None):
            return
        found = metrics[self.name]
        if self.value is None or self.better(self.value, found) != self.value:
            self.improved, self.stale = True, 0
            self.value = found if whole else None
        else:
            self.stale += 1


class Signals:
    """Ctrl-C and SIGTERM, noted for the end of the step; a later second one ends at once."""

    def __init__(self):
        self.number, self.when = 0, 0.0
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, self.note)

    def note(self, number: int, _frame: Any) -> None:
        """The handler."""
        if self.number and time.monotonic() - self.when > 2:  # torchrun sends two together
            os._exit(128 + number)
        self.number, self.when = self.number or number, time.monotonic()


class Run:
    """One run and its folder, `self.folder`; see the top of this file.

    `monitor` names the validation metric that chooses `best.pt`, with `max` or `min`, or is a rule
    of its own.
    """

    def __init__(
        self,
        args: argparse.Namespace,
        dev: Device,
        monitor: tuple[str, Callable] | Best = ("val_accuracy", max),
        **parts: Any,
    ):
        self.args, self.dev, self.parts = args, dev, parts
        self.best = monitor if isinstance(monitor, Best) else Best(*monitor)
        self.epoch = self.position = self.step = 0  # position: steps into the epoch
        self.epoch_is_whole = False  # the one that was trained last
        self.steps = 0  # of an epoch, as far as is known
        self.sums, self.rows, self.rng, self.ended = {}, [], None, None
        self.seconds, self.begun, self.saved = 0.0, time.monotonic(), time.monotonic()
        self.config = config(args, dev)
        self.names = {}
        for key, part in parts.items():
            if isinstance(part, nn.Module):
                prefix = "" if key == "model" else f"{key}."
                self.names.update({p: prefix + n for n, p in part.named_parameters()})
        stored = args.stored
        if args.evaluate:
            self.restore(args.evaluate, stored, only=(nn.Module, dict))
            self.epoch, self.step = stored["epoch"], stored["step"]
        elif stored:
            self.resume(args.run_dir / "last.pt", stored)
        stored.clear()  # as large as the model and its moments
        self.folder = self.make_folder()
        self.tensorboard = tensorboard(self.folder) if args.tensorboard and dev.main else None
        self.signals = Signals()
        done = f", going on at epoch {self.epoch + 1}, step {self.step}" if self.step else ""
        dev.say(f"{args.model} on {args.data}, {dev}, {dev.precision}, in {self.folder}{done}")

    # ------------------------------------------------------------------ the loop

    def epochs(self, ended: Callable[[], bool] | None = None) -> Iterator[int]:
        """The epochs still to be trained; then, with --patience, puts the best weights back.

        `ended` is asked after each whether that was the last, as by a rule of the paper's.
        """
        self.ended = ended
        if self.rng is not None:
            self.set_rng(self.rng)
        while not self.over():
            yield self.epoch
        best = self.folder / "best.pt"
        if self.args.patience and self.dev.agree(best.exists())[0]:  # rank 0 may still write it
            self.restore(best, read_checkpoint(best), only=(nn.Module, dict))

    def over(self) -> bool:
        """Whether there is nothing left to train."""
        epochs = getattr(self.args, "epochs", None) or sys.maxsize
        patience = self.args.patience or sys.maxsize
        done = self.epoch >= epochs or self.step >= self.last_step()
        return done or self.best.stale >= patience or bool(self.ended and self.ended())

    def last_step(self) -> int:
        """The step that ends the run, if the epochs don't before."""
        return min(self.args.max_steps or sys.maxsize, getattr(self.args, "steps", sys.maxsize))

    @property
    def epoch_begins(self) -> bool:
        """Whether nothing of the epoch is trained yet: a run may go on inside one."""
        return self.position == 0

    def progress(self, batches: Iterable) -> Iterator:
        """Passes on the rest of the epoch's parts; minds signals and saves between the steps.

        `batches` has a length in steps and `seek(epoch, step)`, or is a plain list of parts.
        """
        per_step, steps = self.dev.accumulate, len(batches)
        if self.epoch_begins:
            self.sums = {}
        steps = steps if hasattr(batches, "seek") else steps // per_step
        self.count_anew(steps)
        if hasattr(batches, "seek"):
            batches.seek(self.epoch, self.position)
        else:
            batches = itertools.islice(batches, self.position * per_step, None)
        parts = iter(batches)
        of = f"/{self.args.epochs}" if "epochs" in self.args else ""
        what = f"epoch {self.epoch + 1}{of}"
        for _ in progress_bar(range(self.position, steps), self.dev, what, steps, self.position):
            if self.step >= self.last_step():
                break
            self.dev.steps = self.step
            yield from itertools.islice(parts, per_step)
            self.step, self.position = self.step + 1, self.position + 1
            self.between_steps()
        self.check_finite()
        self.epoch_is_whole = self.position == steps
        if self.epoch_is_whole:
            self.epoch, self.position = self.epoch + 1, 0

    def count_anew(self, steps: int) -> None:
        """Notes the steps of an epoch; after --resume with another --batch-size, --limit or --val
        brings position and schedule to the same share of it."""
        if self.steps < 0:  # resumed so; the old number is kept as -steps
            self.position = self.position * steps // -self.steps
            for schedule in self.parts.values():
                if isinstance(schedule, LambdaLR):
                    schedule.last_epoch = self.epoch * steps + self.position
                    pairs = zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)
                    rates = [base * share(schedule.last_epoch) for base, share in pairs]
                    for group, rate in zip(schedule.optimizer.param_groups, rates, strict=True):
                        group["lr"] = rate
        self.position, self.steps = min(self.position, steps), steps

    def between_steps(self) -> None:
        """After a step: stops on a signal, saves every --save-minutes, checks the loss."""
        if self.dev.world == 1 or self.step % AGREE_STEPS == 0:
            due = time.monotonic() - self.saved > 60 * self.args.save_minutes
            number, due = map(int, self.dev.agree(self.signals.number, due))
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
        self.write_row({"epoch": epoch + 1, "step": self.step, **metrics, "lr": self.rate()})
        self.best.see(metrics, self.epoch_is_whole)

    def rate(self) -> float:
        """The learning rate of now: of each optimiser that of the first group, as others may have
        a multiple of --lr; of several optimisers the largest."""
        optimizers = (part for part in self.parts.values() if isinstance(part, Optimizer))
        return max((part.param_groups[0]["lr"] for part in optimizers), default=0.0)

    def save(self, every: float = 0.0) -> None:
        """Writes best.pt if this epoch was the best, and last.pt; leaves if a signal came.

        For epochs of milliseconds: `every` is how many seconds to let pass between saves.
        """
        late = time.monotonic() - self.saved >= every
        number, late = map(int, self.dev.agree(self.signals.number, late))
        now = late or number or self.over()
        state = self.state() if self.best.improved or now else None
        self.best.waiting = state if self.best.improved else self.best.waiting
        self.best.improved = False
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
        if self.tensorboard:
            self.tensorboard.close()
        if self.signals.number:
            raise SystemExit(128 + self.signals.number)
        return metrics

    # ------------------------------------------------------------------ stopping

    def leave(self, number: int) -> NoReturn:
        """Ends after signal `number`, with everything saved."""
        self.draw()
        where = shlex.quote(str(self.folder))
        if self.dev.main:
            print(f"stopped in epoch {self.epoch + 1}, after step {self.step}; go on with:")
            script = f"{self.args.milestone}/{self.args.script}"
            print(f"python {script} --resume --run-dir {where}", flush=True)
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
        smaller = f"--lr than {self.args.lr:g}" if getattr(self.args, "lr", None) else "--lr"
        fail(
            f"the loss stopped being finite at step {bad}, at a rate of {self.rate():.3g}: try a "
            f"smaller {smaller}, or --clip 1; {good}"
        )

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
            "steps": self.steps,
            "step": self.step,
            "best": self.best.value,
            "stale": self.best.stale,
            "seconds": self.seconds + time.monotonic() - self.begun,
            "config": self.config,
        }

    def write(self, state: dict) -> None:
        """Writes last.pt, and before it best.pt if a better one waits."""
        if self.dev.main and self.best.waiting:
            write_checkpoint(self.folder / "best.pt", self.best.waiting)
        if self.dev.main:
            write_checkpoint(self.folder / "last.pt", state)
        self.best.waiting, self.saved = None, time.monotonic()

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
                    load_state(part, state[key], self.names, lr_scale)
            except (KeyError, RuntimeError, ValueError, TypeError) as error:
                reason = str(error).strip().splitlines()[-1].strip()
                fail(f"{path} doesn't fit {self.args.model}: its {key} differs ({reason})")

    def resume(self, path: Path, state: dict) -> None:
        """Puts everything where the checkpoint has it; typed flags keep their new values."""
        flags = state["config"]["flags"]
        scale = self.args.lr / flags["lr"] if flags.get("lr") else 1.0
        self.restore(path, state, lr_scale=scale)
        for key, scaler in state["scaler"].items():
            if scaler and self.dev.precision == "fp16":
                self.dev.scaler(self.parts[key]).load_state_dict(scaler)
        for key in ("epoch", "position", "step", "seconds"):
            setattr(self, key, state[key])
        self.best.value, self.best.stale = state["best"], state["stale"]
        if any(flags.get(key) != getattr(self.args, key, None) for key in SIZE_FLAGS):
            old = state.get("steps") or (self.step - self.position) // max(1, self.epoch)
            self.steps = -old  # of an epoch of the old size, see `count_anew`
        here = 1.0 if self.dev.main else 0.0  # the sums are those of all processes
        self.sums = {k: pair.to(self.dev.device) * here for k, pair in state["sums"].items()}
        self.rng = state["rng"]
        rows = read_rows(path.parent)
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
                folder = folder or new_run(self.args)
                folder.mkdir(parents=True, exist_ok=True)
                write_text(folder / "config.json", json.dumps(self.config, indent=1) + "\n")
                write_text(folder / "metrics.jsonl", "".join(map(as_line, self.rows)))
        except OSError as error:
            fail(f"can't write the run folder {folder or error.filename}: {error.strerror}")
        return self.dev.gather(folder)[0]

    def write_row(self, row: dict) -> None:
        """A row of metrics.jsonl, and of the terminal and TensorBoard."""
        self.rows.append(row)
        if not self.dev.main:
            return
        try:
            with open(self.folder / "metrics.jsonl", "a") as file:
                file.write(as_line(row))
        except OSError as error:
            fail(f"can't write {self.folder / 'metrics.jsonl'}: {error.strerror}")
        metrics = {k: v for k, v in row.items() if k not in ("epoch", "step", "final")}
        if not row.get("final"):
            of = f"/{self.args.epochs}" if "epochs" in self.args else ""
            self.dev.say(f"epoch {row['epoch']:3d}{of}  step {row['step']}  {show(metrics)}")
        for key, value in metrics.items() if self.tensorboard else ():
            self.tensorboard.add_scalar(key, value, row["step"])

    def draw(self) -> None:
        """Writes curves.png."""
        rows = [row for row in self.rows if not row.get("final")]
        if self.dev.main and rows:
            from common.plot import curves

            curves(rows, self.folder / "curves.png")


def start_average(ema: dict[str, Tensor], weights: dict[str, Tensor]) -> None:
    """Makes `ema` hold what a resumed run has averaged of `weights`, or else these themselves.

    `ema` is a part of the run, empty until then: so --resume may begin to average, or end it.
    """
    kept = dict(ema)
    ema.clear()
    ema.update({name: kept.get(name, w).to(w.device, copy=True) for name, w in weights.items()})


def show(metrics: dict[str, float]) -> str:
    """The metrics in one line."""
    return "  ".join(f"{key} {value:.4g}" for key, value in metrics.items())


def tensorboard(folder: Path) -> Any:
    """TensorBoard's writer."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        fail("--tensorboard needs TensorBoard: pip install -e '.[tensorboard]'")
    return SummaryWriter(str(folder))
