"""tools/compare.py: what it trains, measures, writes and refuses."""

import importlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import MILESTONES

from tools import compare, milestones

if not {"lenet", "resnet"} <= set(MILESTONES):
    pytest.skip("a tree cut to some of the folders", allow_module_level=True)
FAST = ["--limit", "64", "--epochs", "1", "--out", "out"]


@pytest.fixture(autouse=True)
def few(monkeypatch):
    monkeypatch.setattr(compare, "ROUNDS", 1)
    monkeypatch.setattr("common.data.shapes.NUM_SCENES", {"train": 80, "test": 40})


def test_the_models_are_those_of_milestones_toml():
    assert list(compare.MODELS) == [
        e["folder"]
        for e in milestones.entries()
        if e["task"] == "image classification" and e["folder"] in MILESTONES
    ]
    for folder, names in compare.MODELS.items():
        assert set(names) <= importlib.import_module(f"{folder}.model").MODELS.keys()


def test_small_models_of_a_task(tmp_path):
    """By folder, in the order of the file, where there is such a folder."""
    entries = [("one", "graphs", "a"), ("two", "detection", "b"), ("gone", "graphs", "c")]
    rest = dict.fromkeys(milestones.KEYS["milestone"][0].split(), "")
    with open(tmp_path / "milestones.toml", "w") as file:
        for folder, task, small in entries:
            entry = rest | dict(folder=folder, task=task, small=[small])
            print("[[milestone]]", *(f"{k} = {v!r}" for k, v in entry.items()), sep="\n", file=file)
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    assert milestones.small_models("graphs", tmp_path) == {"one": ["a"]}
    assert milestones.small_models(root=tmp_path) == {"one": ["a"], "two": ["b"]}


def test_a_damaged_entry_is_named(refused):
    parse = milestones.parse
    assert "milestones.toml is damaged" in refused(parse, "[[milestone]")
    assert "milestones.toml is damaged ('milestone')" in refused(parse, "")
    whole = {key: "" for key in milestones.KEYS["milestone"][0].split()} | {"folder": "one"}

    def text(**changed):
        return "[[milestone]]\n" + "\n".join(f"{k} = {v!r}" for k, v in (whole | changed).items())

    assert "the task of the milestone one is none of" in refused(parse, text(task="cooking"))
    line = refused(parse, text(task="graphs", colour="red"))
    assert "the milestone one has colour, read by nobody" in line


def test_rates_are_of_the_median_round(monkeypatch):
    """A clock that only steps and passes move: four seconds and one, a hundred to warm up."""
    clock, warm = [0.0], set()

    def taking(seconds, name):
        def function():
            late = 30 * (clock[0] > 430)  # in the last two rounds something else runs
            clock[0] += seconds + late if name in warm else 100
            warm.add(name)

        return function

    monkeypatch.setattr(compare, "ROUNDS", 5)
    monkeypatch.setattr(compare, "open_run", lambda folder, device: (folder,))
    taken = {name: (taking(4, f"{name} step"), taking(1, f"{name} pass")) for name in "AB"}
    monkeypatch.setattr(compare, "stepper", taken.get)
    monkeypatch.setattr(compare.time, "perf_counter", lambda: clock[0])
    assert compare.rates({"a": "A", "b": "B"}, "cpu") == {name: [32, 128] for name in "ab"}


def test_it_trains_measures_and_compares_runs(capsys, monkeypatch):
    argv, measure = [*FAST, "--models", "lenet5", "resnet20", "--seeds", "0", "1"], compare.peak_of

    def peak(folder, device):  # each time a process of its own: once will do
        return measure(folder, device) if folder.parent.name == "resnet-claims" else 512.0

    monkeypatch.setattr(compare, "peak_of", peak)
    table = compare.main(argv)
    assert list(table) == ["lenet5", "resnet20"]
    assert [row["parameters"] for row in table.values()] == [60_000, 269_722]
    assert table["resnet20"]["multiply_adds"] == pytest.approx(40.6e6, rel=0.01)  # "0.04e9"
    for row in table.values():
        assert row["seeds"] == 2
        assert row["train_rate"] > 0 and row["infer_rate"] > 0
        assert 100 < row["peak_mib"] < 4000
    assert json.loads(Path("out/compare-shapes.json").read_text()) == table
    assert "| `resnet20` | 269,722 |" in Path("out/compare-shapes.md").read_text()
    assert Path("out/compare-shapes.png").stat().st_size > 1000
    assert "in memory" in capsys.readouterr().out
    monkeypatch.setattr(compare, "peak_of", lambda *_: 512.0)
    compare.main(argv)
    assert "in memory" not in capsys.readouterr().out  # done is done
    runs = [str(path) for path in sorted(Path("runs").glob("*/*"))]
    again = compare.main(["--runs", *runs, "--out", "out"])
    for name, row in again.items():
        assert (row["mean"], row["seeds"]) == (table[name]["mean"], 2)
    assert Path("out/compare-runs.md").exists()


def write_run(folder, milestone, model, data="shapes", seed=0, **metrics):
    """As much of a finished run as tells what it is."""
    Path(folder).mkdir(exist_ok=True)
    flags = {"milestone": milestone, "model": model, "data": data, "seed": seed, "lr": 0.1}
    weight = torch.zeros(3, 4)
    state = {"weight": weight, "tied": weight, "norm.running_mean": torch.zeros(3)}
    torch.save({"config": {"flags": flags}, "model": state, "seconds": 90}, f"{folder}/last.pt")
    Path(folder, "metrics.jsonl").write_text(json.dumps({"epoch": 1, **metrics, "final": True}))


def test_runs_of_several_kinds_are_told_apart(refused):
    for seed, folder in enumerate("ab"):
        write_run(folder, "resnet", "resnet20", seed=seed, test_accuracy=0.5)
    a, b, c = map(Path, "abc")
    assert compare.group([a, b, a]) == {"resnet20": [a, b]}  # what is named twice counts once
    Path("link").symlink_to("b")
    again = [a, b, Path("link"), Path("x/../a"), a.resolve()]
    Path("x").mkdir()
    assert compare.group(again) == {"resnet20": [a, b]}
    shutil.copytree("b", "copy")
    assert refused(compare.group, [a, b, Path("copy")]) == (
        "error: b and copy are one training, with equal flags and seed: name one"
    )
    write_run("c", "resnet", "resnet20", "cifar10", test_accuracy=0.5)
    assert compare.group([a, b, c]) == {"resnet20 on shapes": [a, b], "resnet20 on cifar10": [c]}
    assert compare.parse_args(["--seeds", "1", "1", "0"]).seeds == [1, 0]


def test_runs_of_any_task(capsys):
    """By the metrics that all have; a tied tensor counts once, a running mean not at all."""
    for seed, bleu in enumerate((0.3, 0.32)):
        write_run(
            f"s{seed}", "seq2seq", "bahdanau", "multi30k", seed, test_bleu=bleu, test_loss=2.0
        )
    write_run("t", "t5", "t5_tiny", "multi30k", test_exact=0.1, test_loss=1.5, test_bleu=0.25)
    table = compare.main(["--runs", "s0", "s1", "t", "--out", "out"])
    assert list(table) == ["bahdanau", "t5_tiny"]
    row = table["bahdanau"]
    assert (row["parameters"], row["minutes"], row["seeds"]) == (12, 1.5, 2)
    assert row["test_bleu"]["mean"] == pytest.approx(0.31)
    assert row["test_bleu"]["std"] == pytest.approx(0.02 / 2**0.5)
    assert "test_exact" not in table["t5_tiny"]
    text = Path("out/compare-runs.md").read_text()
    assert "| `bahdanau` | 12 | 1.5 | 31.0% ± 1.4% | 2 ± 0 |" in text
    assert "| `t5_tiny` | 12 | 1.5 | 25.0% | 1.5 |" in text
    assert text in capsys.readouterr().out
    assert json.loads(Path("out/compare-runs.json").read_text()) == table
    assert Path("out/compare-runs.png").stat().st_size > 1000
    write_run("c", "gnn", "gcn", "cora", test_accuracy=0.8)  # a classifier, but not of images
    assert compare.main(["--runs", "c", "--out", "out"])["gcn"]["test_accuracy"]["mean"] == 0.8


def test_memory_that_cannot_be_measured_ends_in_one_line(refused):
    write_run("run", "resnet", "resnet9", test_accuracy=0.5)
    assert "the peak memory of run" in refused(compare.peak_of, Path("run"), "cpu")


def test_what_is_refused(refused):
    assert "unknown models 'resnet2'" in refused(compare.main, ["--models", "resnet2"])
    assert "holds no last.pt" in refused(compare.main, ["--runs", "nowhere"])
    Path("run").mkdir()
    torch.save({}, "run/last.pt")
    assert "run is not finished" in refused(compare.main, ["--runs", "run"])
    write_run("run", "unet", "unet", test_iou=0.5)
    write_run("other", "seq2seq", "bahdanau", test_bleu=0.5)
    line = refused(compare.main, ["--runs", "run", "other"])
    assert "bahdanau on shapes" not in line and "bahdanau has none of the others' test" in line
    assert "unknown data set" in refused(compare.main, [*FAST, "--data", "shape"])
