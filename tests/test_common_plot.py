"""Plots are written as PNG, off-screen, whatever the labels hold."""

import argparse
import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from common import plot
from common.claims import (
    add_arms,
    arm_folder,
    error_curve,
    error_of,
    finished,
    stored_arms,
    write_summary,
)


@pytest.fixture(autouse=True, scope="module")
def drawn_once():
    """In place of that of conftest.py: here each picture is drawn."""


def pixels(path):
    image = np.asarray(Image.open(path).convert("RGB"))
    assert image.std() > 1, "an empty picture"
    return image


def test_no_window_is_ever_opened():
    assert "matplotlib.pyplot" not in sys.modules


def test_curves():
    rows = [{"epoch": e, "step": 10 * e, "train_loss": 1 / e, "lr": 0.1} for e in range(1, 9)]
    plot.curves([*rows, {"epoch": 9, "step": 90, "val_loss": 0.2}], "new/folder/curves.png")
    width = pixels("new/folder/curves.png").shape[1]
    plot.curves([{"epoch": 1, "step": 1, "train_loss": 1.0}], "one.png")
    assert pixels("one.png").shape[1] < width  # losses share axes, the rate has its own


@pytest.mark.parametrize("channels", [1, 3])
def test_image_grid(channels):
    images = torch.zeros(7, channels, 12, 12, dtype=torch.uint8)
    images[:, 0, 4:8] = 255
    titles = [f"$^{i}$ {{" for i in range(7)]
    plot.image_grid(images, "grid.png", titles, columns=3, heading="seven")
    tall = pixels("grid.png").shape[0]
    plot.image_grid(list(images[:2].float() / 255), "two.png")
    assert pixels("two.png").shape[0] < tall


@pytest.mark.parametrize("channels", [1, 3])
def test_sheet(channels):
    """Each image lies where it belongs, pixel by pixel; what is left of the page is white."""
    images = torch.rand(5, channels, 4, 4)
    plot.sheet(images, "new/sheet.png", columns=3, pixels=8)
    page = pixels("new/sheet.png")
    assert page.shape == (2 * (2 * 5 - 1), 2 * (3 * 5 - 1), 3)
    second_row = page[10:18:2, 10:18:2].astype(float) / 255
    assert np.abs(second_row - images[4].expand(3, 4, 4).permute(1, 2, 0).numpy()).max() < 0.01
    assert (page[10:, 20:] == 255).all()


@pytest.mark.parametrize("num_classes", [2, 10, 120])
def test_confusion_matrix(num_classes):
    counts = torch.eye(num_classes) * 5
    plot.confusion_matrix(counts, [f"$^{i}$" for i in range(num_classes)], "confusion.png")
    image = pixels("confusion.png").astype(int)
    assert (image[..., 2] - image[..., 0]).max() > 50  # the diagonal is blue


def test_scatter():
    points, labels = torch.rand(6, 2), torch.tensor([0, 1, -1, 0, 1, 1])
    plot.scatter({"$^0$ {": points}, labels, ["$^0$", "$x^$"], "points.png", [2])
    pixels("points.png")


def test_spread_and_summary(tmp_path):
    plot.spread({"a": {10: [1.0, 2.0], 20: [0.5]}}, "spread.png", "images", "error", log=True)
    pixels("spread.png")
    results = {"a": [{"test_accuracy": 0.5}, {"test_accuracy": 0.7}]}
    summary = write_summary(tmp_path / "out" / "claim.json", results, {"a": "python x"})
    assert summary["a"]["test_accuracy"]["mean"] == pytest.approx(0.6)
    assert summary["a"]["test_accuracy"]["std"] == pytest.approx(0.1414, abs=1e-4)
    assert error_of(summary["a"], "test") == "40.00% ± 14.14"


def arguments(*arms, seeds=(0, 1), steps=None):
    return argparse.Namespace(
        claim="it", arms=[*arms], seeds=[*seeds], max_steps=steps, device="cpu"
    )


def run_arm(path, name, args, value=0.5):
    """What a claims.py does with --arms, for one arm of two results."""
    kept = stored_arms(path, ["a", "a b", "15%, 3"], args)
    runs = [{"test_accuracy": value + seed / 10, "test_loss": 1.0} for seed in args.seeds]
    results = {name: runs, f"{name}, from scratch": runs}
    commands = dict.fromkeys(results, f"python x {name}")
    return add_arms(path, ["a", "a b", "15%, 3"], args, results, commands, kept)


def test_arms_of_several_sittings(tmp_path):
    """Each is in the JSON with where it comes from, whatever was run after it; and in order."""
    path = tmp_path / "out" / "claim_it.json"
    run_arm(path, "15%, 3", arguments("15%, 3"))
    first = json.loads(path.read_text())["15%, 3"]
    assert first["seeds"] == [0, 1]
    assert first["machine"]
    assert len(first["date"].split("-")) == 3
    path.write_text(path.read_text().replace(first["machine"], "another machine"))
    run_arm(path, "a b", arguments("a b"))
    summary, results = run_arm(path, "a", arguments("a"), 0.25)
    assert json.loads(path.read_text()) == summary
    names = ["a", "a b", "15%, 3"]
    assert list(summary) == [name + more for name in names for more in ("", ", from scratch")]
    assert summary["15%, 3"]["machine"] == "another machine"
    assert summary["a b"]["machine"] == first["machine"]
    assert summary["a b"]["command"] == "python x a b"
    assert results["15%, 3"] == [{"test_accuracy": v, "test_loss": 1.0} for v in (0.5, 0.6)]
    again, _ = run_arm(path, "a", arguments("a"), 0.75)  # a new result takes the place of the old
    assert again["a"]["test_accuracy"]["values"] == [0.75, 0.85]
    assert again["a b"] == summary["a b"]
    assert list(run_arm(path, "a", arguments())[0]) == ["a", "a, from scratch"]  # all: none stays


def test_arms_that_do_not_fit(tmp_path, refused):
    path = tmp_path / "claim_it.json"
    assert "did you mean a b?" in refused(run_arm, path, "a", arguments("a c"))
    run_arm(path, "a", arguments("a"))
    line = refused(run_arm, path, "a b", arguments("a b", seeds=(0, 1, 2)))
    assert "'a' with seeds [0, 1] and this would be with [0, 1, 2]" in line
    assert "max_steps None" in refused(run_arm, path, "a b", arguments("a b", steps=1))
    run_arm(path, "a", arguments("a", seeds=(3,)))  # nothing is left beside it
    for damaged in ("{", "[1]", '{"a": 1}'):
        path.write_text(damaged)
        assert "fetch it again" in refused(run_arm, path, "a b", arguments("a b"))


def test_error_curve(tmp_path):
    """A value a run in each epoch; the row of the whole run is none."""
    folders = [tmp_path / name for name in "ab"]
    for folder, right in zip(folders, (0.25, 0.75), strict=True):
        folder.mkdir()
        rows = [{"epoch": e, "train_accuracy": right * e} for e in (1, 1.25)]
        rows.append({"epoch": 2, "train_accuracy": 0.0, "final": True})
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = error_curve(folders, "train_accuracy")
    assert found == {1: [75.0, 25.0], 1.25: [68.75, 6.25]}


def test_an_arm_is_finished_only_with_its_final_row(tmp_path):
    assert finished(tmp_path) is None
    rows = tmp_path / "metrics.jsonl"
    for text in ("", '{"epoch": 1, "val_loss": 2}\n', '{"epoch": 1, "final": tr'):
        rows.write_text(text)
        assert finished(tmp_path) is None
    rows.write_text('{"epoch": 1, "step": 3, "test_loss": 2.0, "final": true}\n')
    assert finished(tmp_path) == {"test_loss": 2.0}
    assert arm_folder("x", "a", ["--lr", "1"]) != arm_folder("x", "a", ["--lr", "2"])


def test_attention_is_drawn_head_by_head_or_in_tiles(monkeypatch):
    maps = torch.rand(2, 4, 5, 3)
    drawn = []
    monkeypatch.setattr(plot, "save", lambda figure, path: drawn.append(figure))
    for most in (8, 7):
        monkeypatch.setattr(plot, "MOST_HEADS", most)
        plot.attention_grid(maps, list("abcde"), list("xyz"), "a.png")
    heads, page = (figure.axes for figure in drawn)
    assert (len(heads), len(page)) == (8, 1)
    torch.testing.assert_close(torch.tensor(heads[5].images[0].get_array().data), maps[1, 1])
    assert [text.get_text() for text in heads[4].get_yticklabels()] == list("abcde")
    assert [text.get_text() for text in heads[7].get_xticklabels()] == list("xyz")
    tiled = torch.tensor(page[0].images[0].get_array().data)
    assert tiled.shape == (2 * 6, 4 * 4)
    torch.testing.assert_close(tiled[6:11, 4:7], maps[1, 1])
