"""tools/scale.py, and the commands of SCALE.md: several processes, several machines, sharding."""

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import FORKS, MILESTONES, ROOT, start, torchrun
from torch.distributed.elastic.multiprocessing.subprocess_handler import subprocess_handler

from tools import scale

SCRIPT = "lenet/train.py"
needs_lenet = pytest.mark.skipif("lenet" not in MILESTONES, reason="a tree without LeNet")
FLAGS = ["--limit", "128", "--epochs", "1", "--batch-size", "32", "--precision", "fp32", "--quiet"]


def final(folder):
    row = json.loads(Path(folder, "metrics.jsonl").read_text().splitlines()[-1])
    return {key: value for key, value in row.items() if "_" in key}


def agent(folder, *flags):
    """Starts torchrun, as one machine does."""
    command = [sys.executable, "-m", "torch.distributed.run", *flags, str(ROOT / SCRIPT), *FLAGS]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*command, "--run-dir", folder], env=environment, stderr=subprocess.PIPE, text=True
    )


def finish(*processes):
    for process in processes:
        _, errors = process.communicate(timeout=120)
        assert not process.returncode, errors[-2000:]


class Forked:
    """As much of a subprocess.Popen as tools/scale.py and torchrun need, forked from this process:
    to import torch anew takes seconds."""

    def __init__(self, args, env, stdout, stderr, start_new_session=False):
        self.args, script = args, [word for word in args[1:] if word != "-u"]
        with open(os.devnull, "w") as nowhere:
            out = nowhere if stdout == subprocess.DEVNULL else stdout or sys.stdout
            self.process = start(script, out, stderr or sys.stderr, **env)
        self.pid = self.process.pid
        if start_new_session:  # torchrun ends the whole group
            os.setpgid(self.pid, self.pid)

    def poll(self):
        return self.returncode

    @property
    def returncode(self):
        return self.process.exitcode

    def wait(self, seconds=None):
        self.process.join(seconds)


@pytest.fixture
def forked(monkeypatch):
    """What tools/scale.py starts is forked."""
    if FORKS:
        forking = SimpleNamespace(**vars(subprocess) | {"Popen": Forked})
        monkeypatch.setattr(scale, "subprocess", forking)


@pytest.fixture
def all_forked(forked, monkeypatch):
    """And what torchrun starts."""
    if FORKS:
        monkeypatch.setattr(f"{subprocess_handler.__name__}.Popen", Forked)


@needs_lenet
def test_two_machines_equal_one_with_two_processes():
    """The two "machines" are agents on this one: they meet at an address, as SCALE.md says."""
    done = torchrun(ROOT / SCRIPT, *FLAGS, "--run-dir", "one")
    assert not done.returncode, done.stderr
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    meet = ["--nnodes", "2", "--nproc-per-node", "1", "--rdzv-backend", "c10d", "--rdzv-id", "1"]
    meet += ["--rdzv-endpoint", f"localhost:{port}"]
    finish(agent("two", *meet), agent("two", *meet))
    assert final("two") == final("one")


@needs_lenet
@pytest.mark.parametrize("way", ["ddp", "fsdp"])
def test_it_measures_and_draws(way, capsys, all_forked):
    argv = ["--script", SCRIPT, "--epochs", "2", "--limit", "256", "--rounds", "1", "--out", "out"]
    summary = scale.main(argv + ["--fsdp"] * (way == "fsdp"))
    assert summary["way"] == way
    one, two = (summary["seconds"][count] for count in "12")
    assert summary["efficiency"] == pytest.approx(one / two / 2)
    assert summary["largest_loss_gap"] < 1e-3  # LeNet has no batch norm: the same training
    name = "scale" if way == "ddp" else "scale-fsdp"
    assert json.loads(Path(f"out/{name}.json").read_text()) == summary
    assert Path(f"out/{name}.png").stat().st_size > 1000
    assert "times as fast as one" in capsys.readouterr().out


def test_what_is_refused(refused):
    assert "there is no such script" in refused(scale.main, ["--script", "nothing/train.py"])
    assert "at least 2" in refused(scale.main, ["--processes", "1"])


@needs_lenet
def test_what_the_script_refuses_is_handed_on(refused, all_forked):
    argv = ["--script", SCRIPT, "--model", "lenet9", "--rounds", "1"]
    assert "unknown model 'lenet9'" in refused(scale.main, argv)


def test_the_reason_stands_in_tracebacks_of_two_processes_that_write_at_once():
    begin, frame = "Traceback (most recent call last):", '  File "bad.py", line 4'
    also = "During handling of the above exception, another exception occurred:"
    first = [begin, begin, frame, frame, "KeyError: 'a'", "KeyError: 'a'", also, also]
    lines = [*first, begin, begin, frame, frame, "ValueError: no ink", "ValueError: no ink"]
    assert scale.reason_of("\n".join(lines), 1) == "ValueError: no ink"


BAD = """
import os, signal, sys
if {how!r} == "raise":
    try:
        {{}}["a"]
    except KeyError:
        raise ValueError("first line\\nand second")
if {how!r} == "kill" and os.environ.get("RANK", "0") == "0":
    os.kill(os.getpid(), signal.SIGKILL)
if {how!r} == "say":
    print("out of ink", file=sys.stderr)
if {how!r} == "blame":
    print("error: --val 0 is too few for --limit 9", file=sys.stderr)
sys.exit(3)
"""


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("raise", "ValueError: first line"),
        ("kill", "killed by SIGKILL"),
        ("say", "out of ink"),
        ("nothing", "it ended with status 3 and said nothing"),
        (
            "blame",
            "--val 0 is too few for --limit 9 (tools/scale.py itself adds --val: "
            "it can't measure this)",
        ),
    ],
)
def test_the_reason_is_the_scripts_own(count, how, reason, refused, forked):
    """Not the frame that torchrun draws around it, and no flag that the user didn't type."""
    script = Path("bad.py").resolve()
    script.write_text(BAD.format(how=how))
    args = scale.parse_args(["--script", str(script), "--limit", "9"])
    processes = "1 process" if count == 1 else "2 processes"
    line = refused(scale.run, count, args, Path("run"))
    assert line == f"error: {script} with {processes}: {reason}"


def test_a_flag_that_the_tool_adds_is_not_blamed_on_the_user():
    def blamed(reason, *typed):
        args = scale.parse_args(["--script", "x.py", *typed])
        return scale.whose(reason, args, scale.command(1, args, Path("run")))

    reason = "--batch-size 64 can't be cut into 3 equal parts"
    other = " (tools/scale.py itself adds --batch-size: give it another)"
    assert blamed(reason) == other
    assert blamed(reason, "--batch-size", "64") == blamed(reason, "--batch-size=64") == ""
    assert blamed("lower --lr") == ""  # in no command


FAKE = """
import json, sys, time
folder = sys.argv[sys.argv.index("--run-dir") + 1]
print("x" * {noise}, file=sys.stderr)  # more than a pipe holds
with open(folder + "/metrics.jsonl", "a") as file:
    for epoch in (1, 2):
        time.sleep({pause})
        row = json.dumps({{"epoch": epoch, {metric!r}: 0.5}})
        print(row, file=file, flush={pause} > 0)  # else both at once
"""


@pytest.mark.parametrize(
    ("noise", "pause", "metric", "reason"),
    [
        (200_000, 0.2, "train_loss", ""),
        (0, 0, "train_loss", "too short to be timed"),
        (0, 0, "val_loss", "logs no train_loss for each epoch"),
    ],
)
def test_scripts_that_talk_hurry_or_keep_silent(noise, pause, metric, reason, refused):
    Path("fake.py").write_text(FAKE.format(noise=noise, pause=pause, metric=metric))
    args = scale.parse_args(["--script", str(Path("fake.py").resolve()), "--epochs", "2"])
    if reason:
        assert reason in refused(scale.run, 1, args, Path("run"))
    else:
        seconds, losses = scale.run(1, args, Path("run"))
        assert 0.1 < seconds < 5 and losses == {1: 0.5, 2: 0.5}


def test_the_page_names_what_there_is():
    text = (ROOT / "SCALE.md").read_text()
    for script in re.findall(r"torchrun [^\n]*?(\w+/train\.py)", text.replace("\\\n", " ")):
        assert script.partition("/")[0] not in MILESTONES or (ROOT / script).is_file()
    whole = "resnet" in MILESTONES  # else a tree cut to some of the folders
    for flag in whole * (
        "--nnodes",
        "--nproc-per-node",
        "--rdzv-endpoint",
        "--fsdp",
        "--accumulate",
    ):
        assert flag in text
