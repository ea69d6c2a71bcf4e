"""The command line that all scripts share: one wording, one place.

    parser = cli.Parser("lenet", __doc__, QUICK, PAPER, MODELS, IMAGE_SETS)
    parser.add_argument("--distort", action="store_true", help="...")
    args = parser.parse_args(argv)

A flag's value is what was typed, else what the run being resumed or evaluated has stored, else
the recipe's (QUICK, or PAPER with --paper), else the default. Nothing heavier than torch is
imported before the flags are parsed, so that --help answers at once.
"""

import argparse
import contextlib
import functools
import itertools
import json
import math
import signal
import threading
from collections.abc import Callable, Iterable
from pathlib import Path

import torch

from common import fail, unknown
from common.checkpoint import read_checkpoint
from common.device import DTYPES, Device

DEVICES = ["auto", "cpu", "cuda", "mps"]
NEVER_STORED = ("resume", "evaluate", "run_dir", "max_steps", "fsdp")


def whole(low: int) -> Callable[[str], int]:
    """A parser of whole numbers of at least `low` (and of 63 bits)."""

    def parse(text: str) -> int:
        if text.strip().lstrip("+-").isdecimal() and low <= int(text) < 2**63:
            return int(text)
        raise argparse.ArgumentTypeError(f"needs a whole number of at least {low}, not {text!r}")

    return parse


def positive(text: str) -> float:
    """Parses a number above zero that float32 can hold."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < 3e38:
        raise argparse.ArgumentTypeError(f"needs a number above zero, not {text!r}")
    return value


def not_negative(text: str) -> float:
    """Parses zero or a number above it."""
    try:
        return 0.0 if float(text) == 0 else positive(text)
    except (ValueError, argparse.ArgumentTypeError):
        raise argparse.ArgumentTypeError(f"needs zero or a number above it, not {text!r}") from None


class OneLineParser(argparse.ArgumentParser):
    """An argument parser whose complaints are one line, with the nearest valid name."""

    def __init__(self, prog: str, doc: str):
        form = argparse.RawDescriptionHelpFormatter
        super().__init__(prog=prog, description=doc, formatter_class=form, allow_abbrev=False)

    def error(self, message: str):
        fail(message.removeprefix("argument "))

    def _check_value(self, action, value):
        if action.choices is not None and value not in action.choices:
            fail(unknown(action.dest.replace("_", " "), value, action.choices))


class Parser(OneLineParser):
    """The shared flags of DESIGN.md section 3, with defaults from two recipes.

    `milestone` is the folder's name; `models` and `data` are the known names, where a data set
    such as `folder:PATH` stands for all names that begin with `folder:`. `unused` maps a shared
    flag that has no meaning for this script (`"--accumulate"`) to the reason, which is given to
    whoever uses it. A recipe with `steps` in place of `epochs` gets `--steps`. What a checkpoint
    settles for good is `fixed`: to type another value beside --resume or --evaluate is refused.
    """

    def __init__(
        self,
        milestone: str,
        doc: str,
        quick: dict,
        paper: dict,
        models: Iterable[str],
        data: Iterable[str],
        unused: dict[str, str] | None = None,
        fixed: Iterable[str] = (),
    ):
        self.fixed = ["model", "data", *fixed]
        self.milestone, self.quick, self.paper = milestone, quick, paper
        self.data, self.unused, self.defaults = list(data), unused or {}, {}
        super().__init__(f"python {milestone}/train.py", doc)
        add = self.add_argument
        length = "--steps" if "steps" in quick else "--epochs"
        add("--paper", action="store_true", help="take every default from the paper's recipe")
        add("--model", choices=list(models), help="which network")
        add("--data", help=f"which data: {', '.join(self.data)}")
        add("--data-dir", default="data", help="where downloaded data sets lie")
        add("--limit", type=whole(1), help="keep a seeded sample of N training examples")
        add("--val", type=whole(0), default=0, help="cut N examples off for validation")
        add(length, type=whole(1), help=f"how many {length[2:]} to train")
        add("--batch-size", type=whole(1), help="examples (of text: tokens) of a step, in all")
        add("--lr", type=positive, help="peak learning rate")
        add("--seed", type=whole(0), default=0, help="of weights, order, augmentation and splits")
        add("--device", choices=DEVICES, default="auto", help="where to compute")
        kinds = ["auto", *DTYPES]
        add("--precision", choices=kinds, default="auto", help="of the maths")
        add("--compile", action="store_true", help="compile the model with torch.compile")
        add("--accumulate", type=whole(1), default=1, help="cut each step into K micro-batches")
        add("--clip", type=positive, help="clip the norm of the gradients")
        add("--patience", type=whole(1), help="stop after N epochs without progress on validation")
        add("--fsdp", action="store_true", help="under torchrun: shard parameters over processes")
        add("--run-dir", help="the run's folder; else a new one below runs/")
        add("--resume", action="store_true", help="continue --run-dir, or else the newest run")
        add("--evaluate", metavar="CHECKPOINT", help="train nothing, measure this checkpoint")
        add("--max-steps", type=whole(1), help="end after N optimiser steps, schedules unchanged")
        add("--save-minutes", type=positive, default=10.0, help="between saves inside an epoch")
        add("--quiet", action="store_true", help="print the result only")
        add("--tensorboard", action="store_true", help="also log for TensorBoard")

    def add_argument(self, *names, default=None, help="", **kwargs):
        """As in argparse; the default is kept aside, as a recipe may change it, and shown."""
        if "--help" in names:
            return super().add_argument(*names, default=argparse.SUPPRESS, help=help, **kwargs)
        if kwargs.get("action") == "store_true":
            default = False
        action = super().add_argument(*names, default=argparse.SUPPRESS, help=help, **kwargs)
        self.defaults[action.dest] = default
        quick, paper = (r.get(action.dest, default) for r in (self.quick, self.paper))
        shown = f"{quick}" if quick == paper else f"{quick}; paper: {paper}"
        if names[0] in self.unused:
            action.help = f"not used: {self.unused[names[0]]}"
        else:
            action.help = f"{help} (default: {shown})".replace("%", "%%")
        return action

    def parse_args(self, argv: list[str] | None = None) -> argparse.Namespace:
        """The flags; `args.milestone` and `args.run_dir` (a Path or None) come with them,
        and the names of those that were `typed`, and of those typed or stored (`chosen`).

        Raises SystemExit(2) after one line on stderr for anything that can't be.
        """
        given, strange = self.parse_known_args(argv)
        typed = vars(given)
        if strange:
            fail(unknown("flag", strange[0], [f"--{d.replace('_', '-')}" for d in self.defaults]))
        for flag, reason in self.unused.items():
            if flag[2:].replace("-", "_") in typed:
                fail(f"{flag} has no meaning here: {reason}")
        source, stored = self.stored(typed)
        milestone = stored.get("milestone", self.milestone)
        if milestone != self.milestone:
            fail(f"{source} is of {milestone}, not of {self.milestone}: use {milestone}/train.py")
        for key in self.fixed:
            changed = key in typed and typed[key] != stored.get(key, typed[key])
            if changed and not (key == "data" and "evaluate" in typed):
                name = stored[key]
                fail(f"{source} holds {key} {name!r}, not {typed[key]!r}: start a new run for that")
        paper = typed.get("paper", stored.get("paper"))
        recipe = self.paper if paper else self.quick
        kept = {k: v for k, v in stored.items() if k in self.defaults and k not in NEVER_STORED}
        args = argparse.Namespace(**{**self.defaults, **recipe, **kept, **typed})
        args.milestone, args.typed = self.milestone, sorted(typed)
        args.chosen = sorted({*typed, *kept})  # the rest are defaults
        args.run_dir = (
            Path(source) if args.resume and source else args.run_dir and Path(args.run_dir)
        )
        self.check(args)
        return args

    def stored(self, typed: dict) -> tuple[str | None, dict]:
        """The run folder or checkpoint that this command goes on with, and its flags."""
        if "evaluate" in typed:
            if "resume" in typed:
                fail("--evaluate trains nothing, so there is nothing to --resume")
            return typed["evaluate"], read_checkpoint(typed["evaluate"])["config"]["flags"]
        if "resume" not in typed:
            return None, {}
        folder = Path(typed["run_dir"]) if "run_dir" in typed else newest_run(self.milestone)
        if folder and (folder / "last.pt").exists():
            return str(folder), read_checkpoint(folder / "last.pt")["config"]["flags"]
        try:
            return str(folder), json.loads((folder / "config.json").read_text())["flags"]
        except (TypeError, OSError, ValueError, KeyError):  # nothing to go on with: from zero
            return folder and str(folder), {}

    def check(self, args: argparse.Namespace) -> None:
        """Fails on values that don't fit together, before anything is loaded or written."""
        kinds = [name.split(":")[0] + ":" for name in self.data if ":" in name]
        if args.data not in self.data and not any(
            args.data.startswith(kind) and args.data != kind for kind in kinds
        ):
            fail(unknown("data set", args.data, self.data))
        if args.patience and not args.val:
            fail("--patience needs a validation part to watch: give --val N too")
        if args.run_dir and not args.resume and holds_run(args.run_dir):
            fail(f"{args.run_dir} holds a run already: add --resume, or choose another --run-dir")


def holds_run(folder: Path) -> bool:
    """Whether a new run would overwrite something there."""
    rows, config = folder / "metrics.jsonl", folder / "config.json"
    foreign = config.exists() and '"flags"' not in config.read_text(errors="replace")
    return foreign or (folder / "last.pt").exists() or (rows.exists() and rows.stat().st_size > 0)


def newest_run(milestone: str, names: Iterable[str] = ("last.pt", "config.json")) -> Path | None:
    """The training run below runs/ whose `names` were written to last, or None."""
    files = [file for name in names for file in Path("runs", milestone).glob(f"*/{name}")]
    for file in sorted(files, key=lambda file: file.stat().st_mtime, reverse=True):
        with contextlib.suppress(OSError, ValueError, KeyError):
            config = json.loads((file.parent / "config.json").read_text())
            if not config["flags"]["evaluate"]:
                return file.parent
    return None


def sample_parser(milestone: str, doc: str) -> OneLineParser:
    """The flags that every sample.py has; `open_checkpoint` completes them."""
    parser = OneLineParser(f"python {milestone}/sample.py", doc)
    add = parser.add_argument
    add("--checkpoint", help="a checkpoint of train.py (default: of the newest run)")
    add(
        "--out",
        type=Path,
        help="folder for what is made (default: a new one beside the checkpoint)",
    )
    add("--data-dir", help="where downloaded data sets lie (default: as in training)")
    add("--device", choices=DEVICES, default="auto", help="where to compute (default: auto)")
    return parser


def claims_parser(milestone: str, doc: str, claims: Iterable[str]) -> OneLineParser:
    """The flags that every claims.py has."""
    parser = OneLineParser(f"python {milestone}/claims.py", doc)
    add = parser.add_argument
    add("claim", choices=list(claims), help="which claim to put to the test")
    add(
        "--seeds", type=whole(0), nargs="+", default=[0, 1, 2], help="one run each (default: 0 1 2)"
    )
    add("--data-dir", default="data", help="where downloaded data sets lie (default: data)")
    add("--device", choices=DEVICES, default="auto", help="where to compute (default: auto)")
    add("--out", type=Path, default=Path(milestone, "samples"), help="folder for JSON and picture")
    return parser


def open_checkpoint(args: argparse.Namespace, milestone: str, models: Iterable[str]) -> dict:
    """The checkpoint that a sample.py is to use; completes `args.checkpoint` and `args.out`."""
    newest = newest_run(milestone, ["last.pt"])
    if not args.checkpoint and not newest:
        fail(f"no run is in runs/{milestone}: train one, python {milestone}/train.py")
    args.checkpoint = Path(args.checkpoint or newest / "last.pt")
    content = read_checkpoint(args.checkpoint)
    flags = content["config"]["flags"]
    name = flags.get("model", "")
    if name not in models or flags.get("milestone") != milestone:
        fail(f"{args.checkpoint} holds the model {name!r}; here are {', '.join(models)}")
    if not args.out:
        beside = args.checkpoint.parent
        names = itertools.chain(["samples"], (f"samples-{n}" for n in itertools.count(2)))
        args.out = next(beside / name for name in names if not (beside / name).exists())
    return content


def open_run(
    args: argparse.Namespace, milestone: str, models: Iterable[str]
) -> tuple[dict, argparse.Namespace, Device]:
    """The checkpoint that a sample.py is to use, the flags it was trained with, and a device."""
    checkpoint = open_checkpoint(args, milestone, models)
    flags = argparse.Namespace(**checkpoint["config"]["flags"])
    flags.device, flags.quiet, flags.fsdp, flags.typed = args.device, True, False, []
    flags.data_dir, flags.accumulate = args.data_dir or flags.data_dir, 1
    return checkpoint, flags, Device(flags)


def make_folder(path: Path) -> None:
    """Makes the folder for results, before any work is done for them."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        fail(f"--out {path}: {error.strerror}")


def command(main: Callable) -> Callable:
    """Decorates a script's main: full memory and Ctrl-C end in one line, not in a traceback."""

    @functools.wraps(main)
    def wrapped(argv: list[str] | None = None):
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            return main(argv)
        except KeyboardInterrupt:
            print("interrupted", flush=True)
            raise SystemExit(128 + signal.SIGINT) from None
        except (MemoryError, RuntimeError) as error:
            full = isinstance(error, (MemoryError, torch.OutOfMemoryError))
            if not full and "can't allocate memory" not in str(error):
                raise
            fail("memory ran out: lower --batch-size, or raise --accumulate")
        finally:
            if threading.current_thread() is threading.main_thread():
                for number, handler in handlers.items():
                    signal.signal(number, handler)

    return wrapped
