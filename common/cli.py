"""The command line that all scripts share: one wording, one place.

    parser = cli.Parser("lenet", __doc__, QUICK, PAPER, MODELS, IMAGE_SETS, recipe)
    parser.add_switch("--distort", help="distort the training images")
    args = parser.parse_args(argv)

A flag's value is what was typed, else what the run being resumed or evaluated has stored, else
the recipe's (QUICK, or PAPER with --paper, and what `recipe` says of model and data), else the
default. Once parsed, flags don't change. Nothing heavier than torch is imported before that, so
that --help answers at once.
"""

import argparse
import contextlib
import functools
import os
import signal
import sys
import textwrap
import threading
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from common import Flags, fail, unknown
from common.checkpoint import read_checkpoint
from common.device import DTYPES
from common.folder import as_spelt_now, find_run, holds_run, read_flags

DEVICES = ["auto", "cpu", "cuda", "mps"]
OWN_INPUTS = (
    "inputs",
    "sentences",
    "texts",
    "file",
    "interactive",
    "graph",
)  # flags of a sample.py
NEVER_STORED = ("resume", "evaluate", "run_dir", "max_steps", "fsdp")
GROUPS = ("data", "training", "this paper's own", "machine", "run")


def integer(low: int) -> Callable[[str], int]:
    """A parser of integers of at least `low` (and of 63 bits)."""

    def parse(text: str) -> int:
        if text.strip().lstrip("+-").isdecimal() and low <= int(text) < 2**63:
            return int(text)
        raise argparse.ArgumentTypeError(f"needs a whole number of at least {low}, not {text!r}")

    return parse


def number(allowed: Callable[[float], bool], words: str) -> Callable[[str], float]:
    """A parser of those numbers that are `allowed`, which `words` describe."""

    def parse(text: str) -> float:
        with contextlib.suppress(ValueError):
            if allowed(value := float(text)):
                return value
        raise argparse.ArgumentTypeError(f"needs {words}, not {text!r}")

    return parse


positive = number(lambda value: 0 < value < 3e38, "a number above zero")  # that float32 can hold
multiplier = number(lambda value: 0 < value <= 10, "a number above zero, at most 10")
not_negative = number(lambda value: 0 <= value < 3e38, "zero or a number above it")
share = number(lambda value: 0 <= value < 1, "a number from 0 to below 1")


class Lines(argparse.RawDescriptionHelpFormatter):
    """Wraps the texts of flags, but not inside of names and paths."""

    def _split_lines(self, text: str, width: int) -> list[str]:
        words = " ".join(text.split())
        return textwrap.wrap(words, width, break_on_hyphens=False, break_long_words=False)


class OneLineParser(argparse.ArgumentParser):
    """An argument parser whose complaints are one line, with the nearest valid name."""

    current: "OneLineParser | None" = None  # the last one made, for `command`
    when_full = "take fewer or smaller inputs"  # what helps when memory runs out

    def __init__(self, prog: str, doc: str = "", **settings: Any):
        usage = f"{prog} [flags]"
        super().__init__(prog, usage, doc, formatter_class=Lines, allow_abbrev=False, **settings)
        OneLineParser.current = self

    def error(self, message: str):
        fail(message.removeprefix("argument "))

    def _check_value(self, action, value):
        if action.choices is not None and value not in action.choices:
            fail(unknown(action.dest.replace("_", " "), value, action.choices))


class Parser(OneLineParser):
    """The flags that every train.py has, with defaults from its recipes.

    `milestone` is the folder's name; `models` and `data` are the known names, where a data set
    such as `folder:PATH` stands for all names that begin with `folder:`. `quick` and `paper` are
    the two recipes; one with `steps` in place of `epochs` gets `--steps`.

    `recipe(model, data, paper, **given)` returns two dictionaries: defaults for this model and
    data on top of the recipe's, and the flags that mean nothing here (`"batch_size"`) with the
    reason. `data` is None where nobody chose it; `given` holds all other flags that were typed or
    stored, and as `model_chosen` whether the model was. Flags that mean nothing are left out of
    --help, and refused if they are typed.

    What a checkpoint settles for good is `fixed`: to type another value beside --resume or
    --evaluate is refused. `script` is named where a run can be gone on with. Where --data may name
    `several` sets, that is a function from the text to their names.
    """

    def __init__(
        self,
        milestone: str,
        doc: str,
        quick: dict,
        paper: dict,
        models: Iterable[str],
        data: Iterable[str],
        recipe: Callable[..., tuple[dict, dict[str, str]]] | None = None,
        fixed: Iterable[str] = (),
        script: str = "train.py",
        several: Callable[[str], list[str]] | None = None,
    ):
        super().__init__(f"python {milestone}/{script}", doc, add_help=False)
        self.script, self.several = script, several
        self.fixed = ["model", "data", *fixed]
        self.milestone, self.quick, self.paper = milestone, quick, paper
        self.data, self.defaults, self.nothing = list(data), {}, {}
        self.recipe, self.recipes = recipe, []  # of data: see `add_image_flags`
        self.groups = {name: self.add_argument_group(name) for name in GROUPS}
        models, count = list(models), dict(type=integer(1), metavar="N")

        def of(group: str) -> tuple[Callable, Callable]:
            return partial(self.add_argument, group=group), partial(self.add_switch, group=group)

        add, switch = of("data")
        text = f"which network: {', '.join(models)}"
        add("--model", choices=models, metavar="NAME", default=quick["model"], help=text)
        add("--data", metavar="NAME", help=f"one of {', '.join(self.data)}")
        text = "where data sets lie, or are downloaded to"
        add("--data-dir", metavar="DIR", default="data", help=text)
        text = "train on a seeded sample of N (validation and test stay whole)"
        add("--limit", **count, none="all", help=text)
        text = "cut N examples off for validation (at most a tenth, unless typed)"
        add("--val", type=integer(0), metavar="N", default=0, help=text)
        add, switch = of("training")
        switch("--paper", help="take every default from the paper's recipe")
        length = "--steps" if "steps" in quick else "--epochs"
        add(length, **count, help=f"how many {length[2:]}")
        add("--batch-size", **count, help="examples (of text: tokens) of a step, in all")
        add("--lr", type=positive, metavar="RATE", help="peak learning rate")
        add("--clip", type=positive, metavar="NORM", none="no", help="clip the gradients' norm")
        text = "stop after N epochs without progress on validation, with the best weights"
        add("--patience", **count, none="no", help=text)
        text = "of weights, order, augmentation and splits"
        add("--seed", type=integer(0), metavar="N", default=0, help=text)
        add, switch = of("machine")
        add("--device", choices=DEVICES, default="auto", help="where to compute")
        text, kinds = "of the maths; auto: bf16 where that is faster", ["auto", *DTYPES]
        add("--precision", choices=kinds, default="auto", help=text)
        text = "cut each step into N parts, one after another"
        add("--accumulate", **count, default=1, help=text)
        switch("--compile", help="compile the model with torch.compile")
        switch("--fsdp", help="under torchrun: shard parameters over processes")
        add, switch = of("run")
        add("--run-dir", metavar="DIR", none="a new one below runs/", help="the run's folder")
        switch("--resume", help="continue --run-dir, or else the newest run")
        text = "train nothing, measure this checkpoint"
        add("--evaluate", metavar="CHECKPOINT", none="no", help=text)
        text = "end after N optimiser steps, schedules unchanged"
        add("--max-steps", **count, none="no", help=text)
        text = "between saves inside an epoch"
        add("--save-minutes", type=positive, metavar="M", default=10.0, help=text)
        switch("--quiet", help="print the result only")
        switch("--tensorboard", help="also log for TensorBoard")
        text = "show these flags, with the values that will run"
        wanted = dict(action="store_true", dest="help", default=argparse.SUPPRESS, help=text)
        self.groups["run"].add_argument("-h", "--help", **wanted)

    def add_argument(
        self, *names, default=None, group: str = GROUPS[2], none: str = "none", **kwargs
    ) -> argparse.Action:
        """Adds a flag to a `group` of --help; `none` says there what None means.

        The default is kept aside, as a recipe may change it.
        """
        add = self.groups[group].add_argument
        action = add(*names, default=argparse.SUPPRESS, **kwargs)
        action.none = none
        self.defaults[action.dest] = default
        return action

    def add_switch(self, name: str, default: bool | None = False, **kwargs) -> argparse.Action:
        """A flag of yes or no, spelt `--flip` and `--no-flip`."""
        kind = argparse.BooleanOptionalAction
        return self.add_argument(name, action=kind, default=default, **kwargs)

    def parse_args(self, argv: list[str] | None = None) -> Flags:
        """The flags; with them come `milestone`, `script`, `run_dir` (a Path or None), the names of
        those that were `typed`, of those typed now or when the run began (`chosen`), and what is
        `stored` in the checkpoint that the command goes on with ({} if there is none).

        Raises SystemExit(2) after one line on stderr for anything that can't be.
        """
        argv = sys.argv[1:] if argv is None else list(argv)
        given, strange = self.parse_known_args(argv)
        typed = vars(given)
        wanted = typed.pop("help", False)
        if strange:
            fail(unknown("flag", strange[0], [f"--{d.replace('_', '-')}" for d in self.defaults]))
        if empty := next((flag for flag, value in typed.items() if value == ""), None):
            fail(f"--{empty.replace('_', '-')} is empty: give it a value, or leave it out")
        source, stored, flags = self.find(typed)
        milestone = flags.get("milestone", self.milestone)
        if milestone != self.milestone:
            fail(f"{source} is of {milestone}, not of {self.milestone}: use {milestone}/train.py")
        self.refuse_changes(typed, flags, source)
        kept = {k: v for k, v in flags.items() if k in self.defaults and k not in NEVER_STORED}
        values = self.ask(kept | typed) | kept | typed
        if wanted:
            self.print_values(values)
        self.check(values, typed)
        folder = source if values["resume"] and source else values["run_dir"]
        values["run_dir"] = Path(folder) if folder else None
        once = flags.get("chosen", kept)  # by whoever began the run
        chosen = sorted({*typed, *(name for name in kept if name in once)})
        more = dict(typed=sorted(typed), chosen=chosen, stored=stored, script=self.script)
        return Flags(**values, **more, milestone=self.milestone)

    def find(self, typed: dict) -> tuple[str | None, dict, dict]:
        """The run folder or checkpoint that this command goes on with, its content, its flags."""
        if "evaluate" in typed:
            if typed.get("resume"):
                fail("--evaluate trains nothing, so there is nothing to --resume")
            source, stored = typed["evaluate"], read_checkpoint(typed["evaluate"])
        elif not typed.get("resume"):
            return None, {}, {}
        else:
            folder = Path(typed["run_dir"]) if "run_dir" in typed else find_run(self.milestone)
            source = folder and str(folder)
            if not folder or not (folder / "last.pt").exists():  # from zero
                return source, {}, as_spelt_now(read_flags(folder)) if folder else {}
            stored = read_checkpoint(folder / "last.pt")
        return source, stored, as_spelt_now(stored["config"]["flags"])

    def refuse_changes(self, typed: dict, flags: dict, source: str | None) -> None:
        """Fails if something was typed that the checkpoint has settled."""
        for key in self.fixed:
            changed = key in typed and typed[key] != flags.get(key, typed[key])
            if changed and not (key == "data" and "evaluate" in typed):
                known, flag = flags[key], key.replace("_", "-")
                held = f"holds {key} {known!r}" if known is not None else f"began without --{flag}"
                fail(f"{source} {held}, not {typed[key]!r}: start a new run for that")

    def ask(self, given: dict) -> dict:
        """The defaults for the model and data that are `given`; notes what means nothing there."""
        paper = given.get("paper", False)
        defaults = {**self.defaults, **(self.paper if paper else self.quick), "paper": paper}
        model, data = given.get("model", defaults["model"]), given.get("data")
        rest = {k: v for k, v in given.items() if k not in ("model", "data", "paper")}
        if self.recipe:
            chosen = "model" in given
            own, self.nothing = self.recipe(model, data, paper, model_chosen=chosen, **rest)
        else:
            own, self.nothing = {}, {}
        defaults |= own
        for recipe in self.recipes:
            own, nothing = recipe(model, data or defaults["data"], paper, **rest)
            defaults |= own
            self.nothing |= nothing
        return defaults

    def check(self, values: dict, typed: dict) -> None:
        """Fails on values that don't fit together, before anything is loaded or written."""
        kinds = [name.split(":")[0] + ":" for name in self.data if ":" in name]

        def known(data: str) -> bool:
            return data in self.data or any(data.startswith(k) and data != k for k in kinds)

        names = [values["data"]]
        if self.several and not known(names[0]):
            names = self.several(names[0])
        for data in names:
            if not known(data):
                parts = data.split("+") if self.several else []
                strange = next((part for part in parts if not known(part)), data)
                fail(unknown("data set", strange, self.data))
        for flag, reason in self.nothing.items():
            if flag in typed and typed[flag] is not False:  # to say no to it is harmless
                fail(f"--{flag.replace('_', '-')} has no meaning here: {reason}")
        if values["patience"] and not values["val"]:
            fail("--patience needs a validation set to watch: give --val N too")
        folder = values["run_dir"]
        if folder and not values["resume"] and holds_run(Path(folder)):
            fail(f"{folder} holds a run already: add --resume, or choose another --run-dir")

    @property
    def when_full(self) -> str:
        if "batch_size" in self.nothing:
            return "take a smaller --model or data set"
        size = " or --size" if "size" in self.defaults.keys() - self.nothing.keys() else ""
        parts = "" if "accumulate" in self.nothing else ", or raise --accumulate"
        return f"lower --batch-size{size}{parts}"

    def print_values(self, values: dict) -> None:
        """Prints the flags that mean something here, with the values that would run, and exits."""
        for action in self._actions:
            if action.dest in self.nothing:
                action.help = argparse.SUPPRESS
            elif action.dest in values:
                shown = self.shown(action, values[action.dest])
                action.help = f"{action.help} (default: {shown})".replace("%", "%%")
        self.print_help()
        self.exit()

    @staticmethod
    def shown(action: argparse.Action, value: Any) -> str:
        """A value as --help shows it."""
        if value is None:
            return action.none
        if isinstance(value, bool):
            return "yes" if value else "no"
        return " ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


class SampleParser(OneLineParser):
    """The parser of a sample.py; refuses what would be ignored."""

    def parse_args(self, args: list[str] | None = None, namespace=None) -> argparse.Namespace:
        found = super().parse_args(args, namespace)
        given = vars(found)
        for name in ("checkpoint", "data_dir", "weights"):
            if given.get(name) == "":
                fail(f"--{name.replace('_', '-')} is empty: give it a value, or leave it out")
        if found.data_dir and any(given.get(name) for name in OWN_INPUTS):
            fail("--data-dir is where test examples lie: leave it out beside inputs of your own")
        return found


def sample_parser(milestone: str, doc: str) -> SampleParser:
    """The flags that every sample.py has; `common.folder.open_run` completes them."""
    parser = SampleParser(f"python {milestone}/sample.py", doc)
    add = parser.add_argument
    add("--checkpoint", help="a checkpoint of train.py (default: of the newest run)")
    text = "folder for what is made (default: a new one beside the checkpoint)"
    add("--out", type=Path, metavar="DIR", help=text)
    text = "where test examples lie, where none are given (default: as in training)"
    add("--data-dir", metavar="DIR", help=text)
    add("--device", choices=DEVICES, default="auto", help="where to compute (default: auto)")
    return parser


def claims_parser(
    milestone: str,
    doc: str,
    claims: Iterable[str],
    data: str | None = None,
    epochs: int | None = None,
    size: int | None = None,
    by_arm: bool = False,
) -> OneLineParser:
    """The flags that every claims.py has; where a default is given for them, also `--data`,
    `--epochs` and `--size`; `by_arm` adds `--arms` and `--max-steps`, for claims.stored_arms."""
    parser = OneLineParser(f"python {milestone}/claims.py CLAIM", doc)
    add, text = parser.add_argument, "one run each (default: 0 1 2)"
    add("claim", choices=list(claims), help="which claim to put to the test")
    add("--seeds", type=integer(0), nargs="+", default=[0, 1, 2], metavar="N", help=text)
    add("--data-dir", metavar="DIR", default="data", help="where data sets lie (default: data)")
    add("--device", choices=DEVICES, default="auto", help="where to compute (default: auto)")
    out = Path(milestone, "samples")
    text = f"folder for JSON and picture (default: {out})"
    add("--out", type=Path, default=out, metavar="DIR", help=text)
    if data:
        add("--data", default=data, metavar="NAME", help=f"which data (default: {data})")
    if epochs:
        text = f"of each run (default: {epochs})"
        add("--epochs", type=integer(1), default=epochs, metavar="N", help=text)
    if size:
        text = f"pixels the networks see (default: {size})"
        add("--size", type=integer(8), default=size, metavar="S", help=text)
    if by_arm:
        text = "of the claim, and no others; what the JSON has of those stays (default: all)"
        add("--arms", nargs="+", metavar="ARM", help=text)
        text = "of each training, and no longer (default: the claim's)"
        add("--max-steps", type=integer(1), metavar="N", help=text)
    return parser


class Output:
    """A stream that goes on when nobody reads it any more: a run ends with its checkpoint.

    What the reader's encoding lacks is printed as a question mark.
    """

    def __init__(self, stream: Any):
        self.stream = stream
        with contextlib.suppress(AttributeError, ValueError, OSError):
            stream.reconfigure(errors="replace")

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        """Writes, or from the first failure on does nothing."""
        with self.steadied():
            self.stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flushes, or from the first failure on does nothing."""
        with self.steadied():
            self.stream.flush()

    @contextlib.contextmanager
    def steadied(self):
        """Lets what can't be written go to nowhere, here and when Python flushes at its end."""
        try:
            yield
        except OSError as error:
            with contextlib.suppress(OSError, ValueError, AttributeError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), self.stream.fileno())
            if sys.stderr and self.stream is not sys.__stderr__:
                with contextlib.suppress(OSError, ValueError, AttributeError):
                    reason = error.strerror or error
                    print(
                        f"note: what is printed goes nowhere from here: {reason}", file=sys.stderr
                    )


def command(main: Callable) -> Callable:
    """Decorates a script's main: full memory and Ctrl-C end in one line, not in a traceback,
    and output that nobody takes ends nothing."""

    @functools.wraps(main)
    def wrapped(argv: list[str] | None = None):
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        streams = sys.stdout, sys.stderr
        sys.stdout, sys.stderr = (
            stream if stream is None or isinstance(stream, Output) else Output(stream)
            for stream in streams
        )
        try:
            return main(argv)
        except KeyboardInterrupt:
            print("interrupted", flush=True)
            raise SystemExit(128 + signal.SIGINT) from None
        except (MemoryError, RuntimeError) as error:
            full = isinstance(error, (MemoryError, torch.OutOfMemoryError))
            if not full and "can't allocate memory" not in str(error):
                raise
            parser = OneLineParser.current
            fail(f"memory ran out: {parser.when_full if parser else OneLineParser.when_full}")
        finally:
            if sys.stdout:
                sys.stdout.flush()
            sys.stdout, sys.stderr = streams
            if threading.current_thread() is threading.main_thread():
                for number, handler in handlers.items():
                    signal.signal(number, handler)

    return wrapped
