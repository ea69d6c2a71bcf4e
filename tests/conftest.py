"""Fixtures for all tests. Runs write below a temporary folder: each test works in its own.

Order and processes change nothing: every fixture and every test draws from the same seed.
"""

import contextlib
import ctypes
import gc
import math
import os
import subprocess
import sys
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # one thread a worker, and a child; torch reads it on import
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")  # the same on machines with a GPU

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
MILESTONES = sorted(path.parent.name for path in ROOT.glob("*/model.py"))
os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "tests")])  # for child processes
torch.cpu.get_capabilities = dict  # precision "auto" is fp32 on every processor
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
    hangs = 1800  # seconds: on a machine that is busy with other things a minute is nothing
    return subprocess.run(command, capture_output=True, text=True, timeout=hangs, **kwargs)


def torchrun(*args, **kwargs):
    """Runs a script in two processes, on a port of its own."""
    two = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return run_python(*two, *args, **kwargs)
