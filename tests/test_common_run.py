"""Runs: folders, checkpoints, exact resuming, stopping, and what a run writes."""

import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import toy
from conftest import FORKS, start
from helpers import make_tree

from common.checkpoint import load_state, read_checkpoint, state_of

# Everything random is on: order, augmentation, dropout; a schedule, an EMA, moments of Adam.
RANDOM = ["--quiet", "--dropout", "0.3", "--optimizer", "adam", "--lr", "0.003"]


def saved(folder, name="last.pt"):
    """The content of a run's checkpoint."""
    return read_checkpoint(Path(folder) / name)


def same(a, b):
    """Whether two nested values are equal bit for bit."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    return a == b


def assert_same_run(folder, reference, parts=("model", "optimizer", "schedule", "ema", "rng")):
    a, b = saved(folder), saved(reference)
    for part in parts:
        if part == "rng":
            assert torch.equal(a[part][0]["cpu"], b[part][0]["cpu"])
        else:
            assert same(a[part], b[part]), part
    drop = ("seconds",)
    rows = [
        [{k: v for k, v in json.loads(line).items() if k not in drop} for line in lines]
        for lines in (
            Path(f, "metrics.jsonl").read_text().splitlines() for f in (folder, reference)
        )
    ]
    assert rows[0] == rows[1]


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """An uninterrupted run of three epochs of ten steps, and its metrics."""
    folder = tmp_path_factory.mktemp("run") / "reference"
    return folder, toy.main([*RANDOM, "--run-dir", str(folder)])


def test_what_a_run_folder_holds(reference):
    folder, metrics = reference
    assert {p.name for p in folder.iterdir()} == {
        "config.json",
        "metrics.jsonl",
        "curves.png",
        "last.pt",
        "best.pt",
    }
    config = json.loads((folder / "config.json").read_text())
    assert set(vars(toy.parse_args([]))) - {"stored"} <= set(config["flags"])
    assert config["versions"]["torch"] == torch.__version__
    assert {"commit", "device", "precision"} <= config.keys()
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2, 3, 3]
    assert [row["step"] for row in rows] == [10, 20, 30, 30]
    assert metrics.items() <= rows[-1].items()
    assert metrics["test_count"] == 359  # nothing is dropped in evaluation
    assert {"train_loss", "val_accuracy", "lr"} <= rows[0].keys()


def test_checkpoint_holds_plain_values(reference):
    content = torch.load(reference[0] / "last.pt", weights_only=True)
    wanted = {"model", "optimizer", "schedule", "scaler", "ema", "rng", "epoch", "step", "sums"}
    assert wanted <= content.keys()
    assert not any(key.startswith(("module.", "_orig_mod.")) for key in content["model"])
    assert set(content["optimizer"]["state"]) == {n for n, _ in toy.Conv().named_parameters()}


def test_best_is_the_best_epoch(reference):
    folder, _ = reference
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()[:3]]
    accuracy = [row["val_accuracy"] for row in rows]
    assert saved(folder, "best.pt")["epoch"] == 1 + accuracy.index(max(accuracy))


def test_same_seed_same_run_other_seed_other_run(reference):
    toy.main([*RANDOM, "--run-dir", "again"])
    assert_same_run("again", reference[0])
    toy.main([*RANDOM, "--run-dir", "other", "--seed", "1"])
    assert not same(saved("other")["model"], saved(reference[0])["model"])


@pytest.mark.parametrize("steps", [3, 10, 17, 30])  # inside an epoch, and where one ends
def test_resume_after_max_steps_is_exact(reference, steps):
    metrics = toy.main([*RANDOM, "--run-dir", "run", "--max-steps", str(steps)])
    assert metrics["test_count"] == 359  # it ended normally: saved, evaluated, returned
    assert saved("run")["step"] == steps
    toy.main(["--quiet", "--resume", "--run-dir", "run"])  # all other flags are stored ones
    assert_same_run("run", reference[0])


@pytest.mark.parametrize("step", [0, 4, 9, 29])  # 9 and 29: the last step of an epoch, of the run
def test_ctrl_c_saves_says_how_to_go_on_and_resumes_exactly(reference, step, capsys):
    with pytest.raises(SystemExit) as caught:
        toy.main([*RANDOM, "--run-dir", "run", "--signal-at", str(step)])
    assert caught.value.code == 128 + signal.SIGINT
    assert "--resume --run-dir run" in capsys.readouterr().out
    assert saved("run")["step"] == step + 1  # the step was finished
    rows = Path("run/metrics.jsonl").read_text().splitlines()
    assert len(rows) == step // 10  # only whole epochs were logged
    toy.main(["--quiet", "--resume", "--run-dir", "run", "--signal-at", "-1"])
    assert_same_run("run", reference[0])


def test_signal_handlers_are_put_back(reference):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    toy.main(["--quiet", "--max-steps", "1"])
    assert before == (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM))


@contextlib.contextmanager
def running(command):
    """A forked process that runs a script, and what it prints."""
    read, write = os.pipe()
    with open(read) as output, open(write, "w") as pipe:
        child = start(command, pipe, sys.__stderr__)
        pipe.close()
        yield child, output
        child.join()


@pytest.mark.skipif(not FORKS, reason="no forks")
def test_a_run_killed_again_and_again_ends_with_the_same_weights(tmp_path):
    """SIGKILL at any moment and within a save, SIGTERM, SIGINT: always resumed, bit for bit."""
    flags = [*RANDOM, "--epochs", "20", "--save-minutes", "0.0005", "--precision", "fp32"]
    toy.main([*flags, "--run-dir", "reference"])
    command = [toy.__file__, *flags[1:], "--run-dir", "run"]
    ends = [(signal.SIGKILL, 2), ("save", 5), (signal.SIGTERM, 0), (signal.SIGKILL, 1)]
    ends += [(signal.SIGINT, 1)]
    for number, (end, count) in enumerate(ends):  # when so many epochs, or saves, are over
        extra = ["--kill-in-save", str(count if end == "save" else -1)]
        extra += ["--resume"] if number else []
        with running([*command, *extra]) as (child, output):
            lines = (line for line in output if line.startswith(("conv on digits", "epoch")))
            if end != "save":
                next(itertools.islice(lines, count, None))
                os.kill(child.pid, end)
            output.read()
        wanted = {signal.SIGTERM: 143, signal.SIGINT: 130}.get(end, -signal.SIGKILL)
        assert child.exitcode == wanted, (end, child.exitcode)
        if Path("run/last.pt").exists():
            saved("run")  # always loadable
    toy.main(["--quiet", "--resume", "--run-dir", "run", "--kill-in-save", "-1"])
    assert_same_run("run", "reference")


def test_a_kill_between_best_and_last_replays_the_epoch(reference, monkeypatch):
    from common import run

    class Killed(BaseException):
        pass

    plain = run.write_checkpoint

    def write(path, content):
        if path.name == "last.pt" and content["epoch"] == 2:
            raise Killed
        plain(path, content)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(run, "write_checkpoint", write)
        toy.main([*RANDOM, "--run-dir", "run"])
    rows = Path("run/metrics.jsonl")
    rows.write_text(rows.read_text() + '{"epoch": 3, "st')  # and a row cut short
    toy.main(["--quiet", "--resume", "--run-dir", "run"])
    assert_same_run("run", reference[0])


def test_a_save_that_fails_leaves_the_old_checkpoint(reference, monkeypatch, refused):
    toy.main([*RANDOM, "--run-dir", "run", "--max-steps", "10"])
    before = Path("run/last.pt").read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    line = refused(toy.main, ["--quiet", "--resume", "--run-dir", "run"])
    assert "No space left" in line
    assert "can't write run/" in line
    assert Path("run/last.pt").read_bytes() == before


def test_no_run_overwrites_another(refused):
    for _ in range(3):
        toy.main(["--quiet", "--max-steps", "1", "--data", "digits"])
    assert {p.name for p in Path("runs/toy").iterdir()} == {
        "conv-digits",
        "conv-digits-2",
        "conv-digits-3",
    }
    line = refused(toy.main, ["--run-dir", "runs/toy/conv-digits"])
    assert "--resume" in line
    Path("mine").mkdir()
    Path("mine/config.json").write_text("{}")
    refused(toy.main, ["--run-dir", "mine"])
    assert Path("mine/config.json").read_text() == "{}"


def test_resume_alone_continues_the_newest(reference):
    toy.main([*RANDOM, "--max-steps", "3"])
    os.utime("runs/toy/conv-digits/last.pt", (0, 0))  # clocks may be coarse
    toy.main([*RANDOM, "--max-steps", "4", "--seed", "3"])
    toy.main(["--quiet", "--resume"])
    assert saved("runs/toy/conv-digits")["step"] == 3
    assert saved("runs/toy/conv-digits-2")["step"] == 30


def test_resume_with_no_checkpoint_starts_from_zero(reference):
    toy.main([*RANDOM, "--resume", "--run-dir", "run"])
    assert_same_run("run", reference[0])


def test_typed_flags_beat_stored_ones():
    toy.main(["--quiet", "--run-dir", "run", "--max-steps", "12", "--lr", "0.04", "--clip", "9"])
    toy.main(["--quiet", "--resume", "--run-dir", "run", "--lr", "0.02", "--max-steps", "13"])
    args = read_checkpoint("run/last.pt")["config"]["flags"]
    assert (args["lr"], args["clip"], args["max_steps"]) == (0.02, 9.0, 13)
    rate = read_checkpoint("run/last.pt")["optimizer"]["rates"][0]["lr"]
    assert rate == pytest.approx(0.02 * (1 - 13 / 31))
    toy.main(["--quiet", "--resume", "--run-dir", "run"])  # --max-steps is not inherited
    assert saved("run")["step"] == 30


def test_changed_rate_takes_effect_in_a_recursive_schedule():
    flags = ["--quiet", "--schedule", "cosine"]
    toy.main([*flags, "--run-dir", "a", "--max-steps", "12", "--lr", "0.04"])
    toy.main([*flags, "--run-dir", "b", "--max-steps", "20", "--lr", "0.02"])
    toy.main(["--quiet", "--resume", "--run-dir", "a", "--lr", "0.02", "--max-steps", "20"])
    rates = [saved(f)["optimizer"]["rates"][0]["lr"] for f in "ab"]
    assert rates[0] == pytest.approx(rates[1])


def test_other_model_or_data_is_refused_by_name(refused):
    toy.main(["--quiet", "--run-dir", "run", "--max-steps", "1"])
    before = Path("run/last.pt").read_bytes()
    line = refused(toy.main, ["--resume", "--run-dir", "run", "--model", "mlp"])
    assert "'conv'" in line
    assert "'mlp'" in line
    line = refused(toy.main, ["--resume", "--run-dir", "run", "--data", "mnist"])
    assert "'digits'" in line
    refused(toy.main, ["--evaluate", "run/last.pt", "--model", "mlp"])
    assert Path("run/last.pt").read_bytes() == before


def test_resume_with_a_shorter_epoch_ends():
    toy.main(["--quiet", "--run-dir", "run", "--max-steps", "8"])
    toy.main(["--quiet", "--run-dir", "run", "--resume", "--limit", "64"])
    assert saved("run")["epoch"] == 3


def test_resume_with_another_precision_or_optimiser(refused):
    flags = ["--quiet", "--precision", "fp32"]
    toy.main([*flags, "--run-dir", "run", "--max-steps", "3"])
    toy.main(["--quiet", "--run-dir", "run", "--resume", "--precision", "fp16", "--max-steps", "5"])
    toy.main(["--quiet", "--run-dir", "run", "--resume", "--precision", "fp32", "--max-steps", "6"])
    line = refused(toy.main, ["--run-dir", "run", "--resume", "--optimizer", "adam"])
    assert "SGD" in line
    assert "Adam" in line


def test_a_signal_while_processes_agree_is_not_lost(monkeypatch):
    from common.device import Device

    plain, calls = Device.agree, iter(range(999))

    def agree(self, *values):
        result = plain(self, *values)
        if next(calls) == 5:
            signal.raise_signal(signal.SIGTERM)
        return result

    monkeypatch.setattr(Device, "agree", agree)
    with pytest.raises(SystemExit) as caught:
        toy.main(["--quiet", "--run-dir", "run"])
    assert caught.value.code == 128 + signal.SIGTERM


def test_a_signal_writes_the_best_that_waits(monkeypatch):
    from common.run import Run

    plain = Run.save
    monkeypatch.setattr(Run, "save", lambda self: plain(self, every=1000))
    with pytest.raises(SystemExit):
        toy.main(["--quiet", "--run-dir", "run", "--signal-at", "24"])
    assert saved("run")["best"] == saved("run", "best.pt")["best"]


def test_patience_stops_early_and_tests_the_best():
    flags = ["--quiet", "--epochs", "60", "--lr", "3", "--patience", "2", "--limit", "64"]
    metrics = toy.main([*flags, "--run-dir", "run"])  # so high a rate that it soon gets worse
    rows = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    accuracy = [row["val_accuracy"] for row in rows[:-1]]
    best = accuracy.index(max(accuracy))
    assert len(accuracy) == best + 3 < 60
    assert saved("run", "best.pt")["epoch"] == best + 1
    toy.main(["--quiet", "--resume", "--run-dir", "run"])  # it was over: nothing is trained
    assert len(Path("run/metrics.jsonl").read_text().splitlines()) == len(rows)
    again = toy.main(["--quiet", "--evaluate", "run/best.pt", "--run-dir", "evaluated"])
    assert again == metrics


def test_without_validation_there_is_no_best():
    toy.main(["--quiet", "--val", "0", "--epochs", "1", "--run-dir", "run"])
    assert not Path("run/best.pt").exists()


def test_evaluate_trains_nothing_and_takes_the_stored_flags(reference, capsys):
    folder, metrics = reference
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    again = toy.main(["--evaluate", str(folder / "last.pt")])
    assert again == metrics
    assert "test_accuracy" in capsys.readouterr().out
    row = json.loads(Path("runs/toy/evaluate-conv-digits/metrics.jsonl").read_text())
    assert metrics.items() <= row.items()
    assert before == {p.name: p.read_bytes() for p in folder.iterdir()}
    assert not list(Path("runs").glob("**/*.pt"))
    toy.main(["--quiet", "--resume", "--max-steps", "1"])  # an evaluation is no run to resume
    assert Path("runs/toy/conv-digits/last.pt").exists()


def test_loss_that_is_not_finite_stops_the_run(refused):
    line = refused(toy.main, ["--quiet", "--run-dir", "run", "--poison", "14"])
    assert "step 15" in line
    assert "0.05" in line
    assert "run/last.pt" in line
    assert saved("run")["step"] == 10  # the last good one
    assert len(Path("run/metrics.jsonl").read_text().splitlines()) == 1
    assert all(torch.isfinite(t).all() for t in saved("run")["model"].values())
    line = refused(toy.main, ["--quiet", "--run-dir", "none", "--poison", "2"])
    assert "step 3" in line
    assert "none was saved" in line
    assert not Path("none/last.pt").exists()


def test_weights_that_are_not_finite_are_not_saved(refused, monkeypatch):
    """The last step's loss is fine, but its gradient was not."""
    plain = torch.optim.SGD.step
    calls = iter(range(99))

    def step(self, *args):
        plain(self, *args)
        if next(calls) == 9:
            self.param_groups[0]["params"][0].data.fill_(float("nan"))

    monkeypatch.setattr(torch.optim.SGD, "step", step)
    refused(toy.main, ["--quiet", "--val", "0", "--run-dir", "run"])
    assert not Path("run/last.pt").exists()


def test_saves_may_be_skipped_but_never_the_last_or_the_best(monkeypatch):
    from common.run import Run

    plain = Run.save
    monkeypatch.setattr(Run, "save", lambda self: plain(self, every=1000))
    toy.main([*RANDOM, "--run-dir", "run"])
    assert saved("run")["step"] == 30
    rows = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()[:3]]
    accuracy = [row["val_accuracy"] for row in rows]
    assert saved("run", "best.pt")["epoch"] == 1 + accuracy.index(max(accuracy))


def test_tensorboard(monkeypatch, refused):
    toy.main(["--quiet", "--tensorboard", "--run-dir", "run", "--max-steps", "1"])
    assert list(Path("run").glob("events.out.*"))
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    assert "tensorboard" in refused(toy.main, ["--tensorboard", "--max-steps", "1"])


def test_plain_progress_lines_where_there_is_no_terminal(monkeypatch, capsys):
    from common import run

    monkeypatch.setattr(run, "LINE_SECONDS", 0.0)
    toy.main(["--max-steps", "5", "--run-dir", "run"])
    lines = capsys.readouterr().err.splitlines()
    assert any(line.startswith("epoch 1/3: 4/10, ") and "/s, " in line for line in lines)
    assert not any("\r" in line for line in lines)


def test_quiet_prints_the_result_only(capsys):
    toy.main(["--quiet", "--max-steps", "1"])
    captured = capsys.readouterr()
    assert captured.err == ""
    assert len(captured.out.splitlines()) == 1
    assert "bf16" in captured.out or "fp32" in captured.out  # a result names its precision


def test_optimizer_state_is_named_and_empty_before_the_first_step():
    model = torch.nn.Linear(2, 2)
    names = {p: n for n, p in model.named_parameters()}
    optimizer = torch.optim.Adam(model.parameters())
    assert state_of(optimizer, names)["state"] == {}
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    state = state_of(optimizer, names)
    assert set(state["state"]) == {"weight", "bias"}
    other = torch.nn.Linear(2, 2)
    names = {p: n for n, p in other.named_parameters()}
    turned = torch.optim.Adam([other.bias, other.weight])  # another order of the parameters
    load_state(turned, state, names)
    assert torch.equal(turned.state[other.weight]["exp_avg"], state["state"]["weight"]["exp_avg"])


def test_moments_take_the_layout_of_their_parameters():
    """Fused optimisers take numbers as they lie; those of a run with shards lie otherwise."""
    weights = torch.randn(4, 3, 3, 3)
    changed = []
    for layout in (torch.channels_last, torch.contiguous_format):
        p = torch.nn.Parameter(weights.to(memory_format=torch.channels_last))
        optimizer = torch.optim.SGD([p], 0.1, momentum=0.9, fused=True)
        moments = {"momentum_buffer": torch.arange(108.0).view(4, 3, 3, 3)}
        moments["momentum_buffer"] = moments["momentum_buffer"].contiguous(memory_format=layout)
        state = {"kind": "SGD", "state": {"p": moments}, "rates": [{"lr": 0.1}]}
        load_state(optimizer, state, {p: "p"})
        p.grad = torch.zeros_like(p)
        optimizer.step()
        changed.append(p.detach())
    assert torch.equal(*changed)
    torch.testing.assert_close(changed[0], weights - 0.09 * torch.arange(108.0).view(4, 3, 3, 3))


# ---------------------------------------------------------------------- another size on resuming


@pytest.mark.parametrize("change", [["--batch-size", "64"], ["--limit", "160"], ["--val", "0"]])
@pytest.mark.parametrize("steps", [10, 17])  # after an epoch, and inside one
def test_a_schedule_stays_at_its_share_when_an_epoch_has_other_steps(change, steps):
    toy.main(["--quiet", "--run-dir", "run", "--limit", "320", "--max-steps", str(steps)])
    before = rows_of("run")[0]["lr"]
    toy.main(["--quiet", "--run-dir", "run", "--resume", *change])
    rates = [row["lr"] for row in rows_of("run") if not row.get("final")]
    assert rates == sorted(rates, reverse=True)  # it falls in a straight line, never rises
    assert all(rate <= before for rate in rates)
    state = read_checkpoint(Path("run", "last.pt"))
    per_epoch = state["steps"]
    assert state["schedule"]["last_epoch"] == 3 * per_epoch  # the end of the schedule
    assert rates[-1] == pytest.approx(0.05 * (1 - 3 * per_epoch / (3 * per_epoch + 1)))


def test_an_unchanged_resume_leaves_the_schedule_alone():
    toy.main(["--quiet", "--run-dir", "run", "--max-steps", "17", "--schedule", "cosine"])
    toy.main(["--quiet", "--run-dir", "run", "--resume", "--batch-size", "32"])
    toy.main(["--quiet", "--run-dir", "reference", "--schedule", "cosine"])
    assert_same_run("run", "reference")


def rows_of(folder):
    return [json.loads(line) for line in Path(folder, "metrics.jsonl").read_text().splitlines()]


def test_a_checkpoint_is_read_once(monkeypatch):
    import common.checkpoint

    toy.main(["--quiet", "--run-dir", "run", "--max-steps", "3"])
    count, plain = [], torch.load
    monkeypatch.setattr(torch, "load", lambda *a, **k: count.append(a) or plain(*a, **k))
    assert common.checkpoint.torch.load is torch.load
    toy.main(["--quiet", "--run-dir", "run", "--resume"])
    assert len(count) == 1
    toy.main(["--quiet", "--evaluate", "run/last.pt"])
    assert len(count) == 2


def test_old_spellings_of_a_checkpoint_are_read():
    from common.folder import as_spelt_now

    old = {"augment": "yes", "regularise": "no", "stream": "auto", "no_aux": True, "mirror": "no"}
    new = {"augment": True, "regularise": False, "stream": None, "aux": False, "mirror": "no"}
    assert as_spelt_now(old) == new


def test_best_that_waits_is_a_copy():
    """A history that grows after the best epoch is not that of the best epoch."""
    history = {"losses": [1.0]}
    state = state_of(history, {})
    history["losses"].append(2.0)
    assert state == {"losses": [1.0]}


# ---------------------------------------------------------------------- output that goes nowhere


def train_into(redirect, tmp_path, **environment):
    """Runs the toy in a shell with its output redirected; returns what stderr got.

    Without its picture, and on files: matplotlib and scikit-learn take longer than the rest.
    """
    code = "import sys, toy, types; no_picture = types.SimpleNamespace(curves=lambda *_: None); "
    code += "sys.modules['common.plot'] = no_picture; "
    code += "toy.main(['--run-dir', 'run', '--data', 'folder:tree'])"
    make_tree()
    command = f'{sys.executable} -c "{code}" {redirect}'
    env = {**os.environ, **environment}
    done = subprocess.run(["bash", "-c", f"set -o pipefail; {command}"], capture_output=True,
                          text=True, env=env, cwd=tmp_path)  # fmt: skip
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    "redirect", ["| head -1", ">&-", "> /dev/full", "2>&1 | true", "2>&- | head -1"]
)
def test_a_run_that_nobody_listens_to_ends_with_its_checkpoint(redirect, tmp_path):
    code, error = train_into(redirect, tmp_path)
    assert code == 0
    assert "Traceback" not in error
    assert "Exception ignored" not in error
    assert read_checkpoint(tmp_path / "run" / "last.pt")["epoch"] == 3
    assert rows_of(tmp_path / "run")[-1]["final"]


def test_an_encoding_that_lacks_a_letter_ends_nothing(tmp_path):
    text = "print('→', flush=True)"
    code = f"from common import cli\n@cli.command\ndef main(argv=None): {text}\nmain()"
    env = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert (done.returncode, done.stdout) == (0, "?\n")
