"""Fixtures for all tests. Runs write below a temporary folder: each test works in its own.

Order and processes change nothing: every fixture and every test draws from the same seed.
"""

import atexit
import contextlib
import ctypes
import faulthandler
import gc
import logging
import math
import multiprocessing.connection
import os
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # one thread a worker, and a child; torch reads it on import
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")  # the same on machines with a GPU

import pytest
import torch
import torch.distributed as dist

ROOT = Path(__file__).resolve().parents[1]
MILESTONES = sorted(path.parent.name for path in ROOT.glob("*/model.py"))
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


@pytest.hookimpl(tryfirst=True)
def pytest_fixture_setup():
    torch.manual_seed(0)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """The current directory is empty, so that `runs/` and `data/` are never the user's."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("common.run.LINE_SECONDS", math.inf)  # no line because it takes long
    yield
    with contextlib.suppress(OSError, AttributeError):  # Linux, glibc: what a large test freed
        if int(Path("/proc/self/statm").read_text().split()[1]) > (1 << 30) // 4096:
            gc.collect()
            ctypes.CDLL(None).malloc_trim(0)


DRAWN = {}  # pictures as bytes, by what they are of


def copied(draw, kind):
    """A function that draws what is of a new kind, and else writes the picture of its kind."""

    def write(*args):
        *what, path = args
        key = (draw.__name__, *kind(*what))
        if key not in DRAWN:
            draw(*what, path)
            DRAWN[key] = Path(path).read_bytes()
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_bytes(DRAWN[key])

    return write


@pytest.fixture(autouse=True, scope="module")
def drawn_once():
    """Of the same metrics, or classes, a worker draws one picture: it takes longer than to train
    what most tests train."""
    from common import plot

    of_metrics = copied(plot.curves, lambda rows: sorted({key for row in rows for key in row}))
    of_classes = copied(plot.confusion_matrix, lambda counts, classes: list(classes))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plot, "curves", of_metrics)
        patch.setattr(plot, "confusion_matrix", of_classes)
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
    faulthandler.dump_traceback_later(HANGS, exit=True, file=sys.stderr)
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
