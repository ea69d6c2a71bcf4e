"""Fixtures for all tests. Runs write below a temporary folder: each test works in its own."""

import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MILESTONES = sorted(path.parent.name for path in ROOT.glob("*/model.py"))
os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "tests")])  # for child processes


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """The current directory is empty, so that `runs/` and `data/` are never the user's."""
    monkeypatch.chdir(tmp_path)


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
    import subprocess

    return subprocess.run(
        [sys.executable, *map(str, args)], capture_output=True, text=True, timeout=120, **kwargs
    )
