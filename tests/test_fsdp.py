"""One sharded step of each image classifier: two processes do what two micro-batches do.

Usage: torchrun --nproc-per-node 2 tests/test_fsdp.py FOLDER trains them all there.
"""

import importlib
import json
import os
import sys

import pytest
import sklearn.datasets
import torch
import torch.nn.functional as F
from conftest import torchrun
from helpers import few_digits

from common.device import Device
from tools.milestones import small_models

SMALL = {folder: names[0] for folder, names in small_models("image classification").items()}
FLAGS = "--data digits --limit 64 --val 0 --batch-size 32 --max-steps 1 --precision fp32 --quiet"


def train_all(kind, *flags):
    """One step of each network, without dropout: each process draws its own."""
    F.dropout = lambda x, *_, **__: x
    sklearn.datasets.load_digits = few_digits(200)
    for folder, model in SMALL.items():
        main = importlib.import_module(f"{folder}.train").main
        main([*FLAGS.split(), "--model", model, "--run-dir", f"{folder}-{kind}", *flags])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sharded")
    done = torchrun(__file__, folder)
    assert done.returncode == 0, done.stderr[-3000:]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for module, name in ((F, "dropout"), (sklearn.datasets, "load_digits")):
            patch.setattr(module, name, getattr(module, name))  # put back afterwards
        # Shards are contiguous. Channels-last batch norm rounds otherwise, and then a few ReLUs
        # open or shut: 1e-2 of a gradient.
        wrap = Device.wrap
        patch.setattr(Device, "wrap", lambda dev, model: wrap(dev, model, channels_last=False))
        train_all("one", "--accumulate", "2")
    return folder


@pytest.mark.parametrize("name", SMALL)
def test_a_sharded_step_is_a_step(trained, name, monkeypatch):
    monkeypatch.setattr(sklearn.datasets, "load_digits", few_digits(200))
    one, two = (torch.load(trained / f"{name}-{kind}" / "last.pt") for kind in ("one", "fsdp"))
    assert one["step"] == two["step"] == 1
    moments = one["optimizer"]["state"]
    assert moments
    assert moments.keys() == two["optimizer"]["state"].keys()
    for key in moments:  # parameters; running statistics are those of one process
        torch.testing.assert_close(two["model"][key], one["model"][key], rtol=1e-3, atol=1e-4)
    main = importlib.import_module(f"{name}.train").main
    metrics = main(["--evaluate", str(trained / f"{name}-fsdp" / "last.pt"), "--quiet"])
    rows = (trained / f"{name}-fsdp" / "metrics.jsonl").read_text().splitlines()
    found = json.loads(rows[-1])["test_loss"]  # of two processes, each with its own statistics
    assert metrics["test_loss"] == pytest.approx(found, rel=0.02)


if __name__ == "__main__":
    os.chdir(sys.argv[1])
    train_all("fsdp", "--fsdp")
