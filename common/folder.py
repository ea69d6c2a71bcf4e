"""Run folders: naming a new one, finding, opening and refusing those that are there.

A run's folder holds config.json (flags, versions, device), metrics.jsonl, curves.png, last.pt and
perhaps best.pt; new ones lie in runs/<milestone>/<model>-<data>.
"""

import argparse
import contextlib
import itertools
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from common import Flags, fail
from common.checkpoint import read_checkpoint
from common.device import Device

ONCE_WORDS = ("augment", "regularise", "skips", "balance", "ramp", "flip", "binarise", "decay")


def as_spelt_now(flags: dict) -> dict:
    """The flags of a run, in today's spelling: yes and no were words, `stream` one of three."""
    words = {"yes": True, "no": False, "auto": None}
    new = {k: words.get(v, v) if k in (*ONCE_WORDS, "stream") else v for k, v in flags.items()}
    if "no_aux" in new:
        new["aux"] = not new.pop("no_aux")
    return new


def holds_run(folder: Path) -> bool:
    """Whether a new run would overwrite something there."""
    rows, config = folder / "metrics.jsonl", folder / "config.json"
    foreign = config.exists() and '"flags"' not in config.read_text(errors="replace")
    return foreign or (folder / "last.pt").exists() or (rows.exists() and rows.stat().st_size > 0)


def find_run(
    milestone: str, names: Iterable[str] = ("last.pt", "config.json"), script: str | None = None
) -> Path | None:
    """The training run below runs/ whose `names` were written to last, or None; with `script` only
    of this one."""
    files = [file for name in names for file in Path("runs", milestone).glob(f"*/{name}")]
    for file in sorted(files, key=lambda file: file.stat().st_mtime, reverse=True):
        flags = read_flags(file.parent)
        if flags and not flags.get("evaluate") and script in (None, flags.get("script")):
            return file.parent
    return None


def read_flags(folder: Path) -> dict:
    """The flags in a folder's config.json; none where there is no such file."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return dict(json.loads((folder / "config.json").read_text())["flags"])
    return {}


def new_run(args: argparse.Namespace) -> Path:
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


def begin_run(args: Flags, dev: Device) -> Flags:
    """Makes a run's folder, with config.json, before what the run needs is trained; the flags that
    return name it. So --resume finds it wherever that was stopped, and one that can't be written
    ends in one line at once."""
    folder = args.run_dir
    try:
        if dev.main:
            folder = folder or new_run(args)
            folder.mkdir(parents=True, exist_ok=True)
            made = config(args.but(run_dir=folder), dev)
            write_text(folder / "config.json", json.dumps(made, indent=1) + "\n")
    except OSError as error:
        fail(f"can't write the run folder {folder or error.filename}: {error.strerror}")
    return args.but(run_dir=dev.gather(folder)[0])


def make_folder(path: Path, *names: str) -> None:
    """Makes the folder for results, before any work is done for them.

    Ends in one line if one of `names`, the files that will be written, is there already.
    """
    keep_what_is_there(path, *names)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        fail(f"--out {path}: {error.strerror}")


def keep_what_is_there(folder: Path, *names: str) -> None:
    """Ends in one line if one of these files, which would be written, is in the folder."""
    for name in names:
        if (folder / name).exists():
            fail(f"{folder / name} is there already: name another folder with --out")


def new_samples(folder: Path) -> Path:
    """A new name in a folder for what a sample.py makes: samples, samples-2, … (not made yet)."""
    names = itertools.chain(["samples"], (f"samples-{n}" for n in itertools.count(2)))
    return next(folder / name for name in names if not (folder / name).exists())


def open_run(
    args: argparse.Namespace, milestone: str, models: Iterable[str]
) -> tuple[dict, Flags, Device, Path]:
    """What a sample.py is to use: a checkpoint, the flags of its training, a device, a folder.

    The checkpoint is `args.checkpoint`, or the newest run's (its best one, if it was trained with
    --patience, as that is what it was tested with); the folder for what is made is
    `args.out`, or a new name beside the checkpoint (not made yet).
    """
    newest = find_run(milestone, ["last.pt"])
    if not args.checkpoint and not newest:
        fail(f"no run is in runs/{milestone}: train one, python {milestone}/train.py")
    if args.checkpoint:
        path = Path(args.checkpoint)
    else:
        waited = read_flags(newest).get("patience") and (newest / "best.pt").exists()
        path = newest / ("best.pt" if waited else "last.pt")
    checkpoint = read_checkpoint(path)
    flags = as_spelt_now(checkpoint["config"]["flags"])
    name = flags.get("model", "")
    if name not in models or flags.get("milestone") != milestone:
        fail(f"{path} holds the model {name!r}; here are {', '.join(models)}")
    place = sys.stderr if getattr(args, "json", False) else sys.stdout  # which is JSON alone
    print(f"{name} trained on {flags['data']}, from {path}", file=place)
    out = args.out or new_samples(path.parent)
    here = dict(device=args.device, data_dir=args.data_dir or flags["data_dir"])
    alone = dict(quiet=True, fsdp=False, compile=False, accumulate=1, typed=[], stored=checkpoint)
    flags = Flags(**{"chosen": ["val"]} | flags | here | alone)
    return checkpoint, flags, Device(flags, checkpoint["config"].get("precision", "bf16")), out


def read_rows(folder: Path) -> list[dict]:
    """The rows of metrics.jsonl; a line that a kill cut short is left out."""
    rows, path = [], folder / "metrics.jsonl"
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


def as_line(row: dict) -> str:
    """A row of metrics.jsonl."""
    return json.dumps(row) + "\n"


def write_text(path: Path, text: str) -> None:
    """Replaces a small file whole."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text, "utf-8")
    os.replace(temporary, path)


def config(args: argparse.Namespace, dev: Device) -> dict[str, Any]:
    """What made a run: every flag, versions, commit, device."""
    flags = {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()}
    flags.pop("stored", None)
    versions = {"python": platform.python_version(), "torch": str(torch.__version__)}
    device = {"device": str(dev), "precision": dev.precision}
    return {"flags": flags, "versions": versions, "commit": git_commit(), **device}


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
