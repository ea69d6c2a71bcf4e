"""Fixtures for all tests. Runs write below a temporary folder: each test works in its own.

Order and processes change nothing: every fixture and every test draws from the same seed.
"""

import atexit
import contextlib
import ctypes
import faulthandler
import gc
import importlib
import inspect
import logging
import math
import multiprocessing.connection
import os
import runpy
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # one thread a worker, and a child; torch reads it on import
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")  # the same on machines with a GPU

import pytest
import torch
import torch.distributed as dist
from helpers import few_digits

ROOT = Path(__file__).resolve().parents[1]
MILESTONES = sorted(path.parent.name for path in ROOT.glob("*/model.py"))
BACKBONES = {  # whole networks of other folders, through their constructors
    "maskrcnn": {"resnet"},
    "dalle": {"clip"},
    "latentdiffusion": {"generative"},
    "flamingo": {"clip", "gpt"},
}
os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "tests")])  # for child processes
torch.cpu.get_capabilities = dict  # precision "auto" is fp32 on every processor
HANGS = 1800  # seconds: on a machine that is busy with other things a minute is nothing
WORKER_BYTES = 3 << 30  # what a worker takes with its largest test


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers():
    """As many workers as cores, fewer where memory is scarce."""
    usable = getattr(os, "sched_getaffinity", lambda _: range(os.cpu_count() or 1))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return max(1, min(len(usable(0)), memory // WORKER_BYTES))


def pytest_collection_finish():
    """What was imported stays: to look through it for garbage takes longer than most tests."""
    gc.collect()
    gc.freeze()


# torch.manual_seed notes for an absent GPU who called it: a millisecond, six times a test.
seed = (
    torch.manual_seed if torch.accelerator.is_available() else torch.default_generator.manual_seed
)


@pytest.hookimpl(tryfirst=True)
def pytest_fixture_setup():
    seed(0)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call():
    seed(0)


def memory():
    """Bytes of this process that are no file's; Linux alone tells."""
    _, resident, shared, *_ = map(int, Path("/proc/self/statm").read_text().split())
    return (resident - shared) * os.sysconf("SC_PAGE_SIZE")


KEPT = [256 << 20]  # bytes after memory was last given back


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """The current directory is empty, so that `runs/` and `data/` are never the user's."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("common.run.LINE_SECONDS", math.inf)  # no line because it takes long
    yield
    with contextlib.suppress(OSError, AttributeError):  # Linux, glibc: what a large test freed
        if memory() > KEPT[0] + (256 << 20):
            gc.collect()
            ctypes.CDLL(None).malloc_trim(0)
            KEPT[0] = memory()


@pytest.fixture
def few(monkeypatch):
    """Of digits and scenes a few: to evaluate a network on all takes longer than a step."""
    monkeypatch.setattr("sklearn.datasets.load_digits", few_digits(200))
    monkeypatch.setattr("common.data.shapes.NUM_SCENES", {"train": 200, "test": 40})


@pytest.fixture
def little(few, monkeypatch):
    """Of all data little, so that a checkpoint of any milestone costs a step; and mine.csv, with
    labelled sentences."""
    monkeypatch.setattr("common.data.boxes.NUM_SCENES", {"train": 12, "test": 4})
    monkeypatch.setattr("common.data.pairs.TEST_DATES", 4)
    monkeypatch.setattr("common.scenes.TRAINED", 64)
    if "unet" in MILESTONES:
        monkeypatch.setattr("unet.data.NUM_SCENES", (12, 2))
    if "latentdiffusion" in MILESTONES:
        second = importlib.import_module("latentdiffusion.options").SECOND
        monkeypatch.setitem(second, "samples", 0)
    rows = [f"a {word} film,{word}" for word in ("good", "bad") * 20]
    Path("mine.csv").write_text("\n".join(["text,label", *rows]) + "\n")


DRAWN = {}  # pictures as bytes, by what they are of


def copied(draw, kind):
    """A function that draws what is of a new kind, and else writes the picture of its kind.

    `kind` gets all arguments but the path.
    """
    names = inspect.signature(draw)

    def write(*args, **kwargs):
        given = names.bind(*args, **kwargs)
        given.apply_defaults()
        path = Path((what := dict(given.arguments)).pop("path"))
        key = (draw.__name__, path.suffix, *kind(**what))
        if key not in DRAWN:
            draw(*args, **kwargs)
            DRAWN[key] = path.read_bytes()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(DRAWN[key])

    return write


def odd(*texts):
    """The characters that may be no plain text for matplotlib, or in no font."""
    return tuple(sorted({c for text in texts for c in text if not (c.isascii() and c.isalnum())}))


def kind_of_grid(images, titles, columns, size, heading):
    shapes = tuple((image.shape, image.dtype) for image in images)
    return shapes, len(titles), columns, size, bool(heading), odd(heading, *titles)


KINDS = {  # the functions of common.plot that scripts call most, and what one picture stands for
    "curves": lambda rows: sorted({key for row in rows for key in row}),
    "confusion_matrix": lambda counts, classes: classes,
    "image_grid": kind_of_grid,
    "bars": lambda groups: [str({k: list(arms) for k, arms in groups.items()})],
    "spread": lambda series, **rest: [str({k: list(v) for k, v in series.items()}), str(rest)],
}


@pytest.fixture(autouse=True, scope="module")
def drawn_once():
    """Of the same metrics, classes, sizes or arms a worker draws one picture: it takes longer than
    to train what most tests train."""
    from common import plot

    with pytest.MonkeyPatch.context() as patch:
        for name, kind in KINDS.items():
            patch.setattr(plot, name, copied(getattr(plot, name), kind))
        yield


@pytest.fixture
def refused(capsys):
    """Calls what has to end in one line on stderr and exit status 2; returns the line."""

    def check(function, *args):
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            function(*args)
        assert caught.value.code == 2
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1, lines
        assert lines[0].startswith("error: ")
        assert "Traceback" not in lines[0]
        return lines[0]

    return check


def run_python(*args, **kwargs):
    """Runs a Python command to its end; returns the completed process with its output."""
    command = [sys.executable, *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=HANGS, **kwargs)


FORKS = sys.platform == "linux"  # elsewhere processes that use frameworks of the system may not


def start(command, out, err, **environment):
    """Starts a script with its arguments, or -m and a module with its own, in a process forked from
    this one, its output to files.

    It costs nothing, where to import torch anew takes longer than what most tests train.
    """
    target, args = be_a_script, ([*map(str, command)], (out, err), environment)
    process = multiprocessing.get_context("fork").Process(target=target, args=args)
    process.start()
    return process


def be_a_script(command, files, environment):
    """What a forked process does."""
    for number, file in enumerate(files, 1):
        os.dup2(file.fileno(), number)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False) for number in (1, 2))
    for logger in [logging.root, *logging.root.manager.loggerDict.values()]:
        for handler in getattr(logger, "handlers", ()):
            if isinstance(handler, logging.StreamHandler):
                handler.stream = sys.stderr  # setStream would flush what a test has closed
    os.environ.update(environment)
    is_module = command[0] == "-m"
    sys.argv = command[is_module:]
    faulthandler.register(signal.SIGALRM, sys.stderr, chain=True)  # a traceback, and the end
    signal.alarm(HANGS)  # its thread in dump_traceback_later would hang a fork of this fork
    try:
        (runpy.run_module if is_module else runpy.run_path)(sys.argv[0], run_name="__main__")
    finally:
        if dist.is_initialized():
            atexit.unregister(dist.destroy_process_group)
            dist.destroy_process_group()


def torchrun(*command):
    """Runs a script in two processes, as torchrun does; returns their end and their output.

    On Linux forked; test_scale.py starts torchrun itself.
    """
    if not FORKS:
        two = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        return run_python(*two, *command)
    store = dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    place = {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": str(store.port)}
    place |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0"}
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        both = [start(command, out, err, RANK=n, LOCAL_RANK=n, **place) for n in "01"]
        waiting = {process.sentinel: process for process in both}
        while waiting:
            for ended in multiprocessing.connection.wait(waiting):
                process = waiting.pop(ended)
                process.join()
                if process.exitcode:  # the other one may wait for it without end
                    for other in waiting.values():
                        other.kill()
        texts = [(file.seek(0), file.read())[1] for file in (out, err)]
    code = max(abs(process.exitcode) for process in both)
    return subprocess.CompletedProcess(command, code, *texts)
