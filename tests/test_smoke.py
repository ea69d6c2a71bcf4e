"""One optimiser step of every model of every milestone, through its script."""

import importlib
import math

import pytest
import torch
from conftest import MILESTONES
from helpers import count, few_digits

from common.data import corpora

LARGE = 10_000_000  # parameters
LIMIT = 7 << 28  # bytes for parameters, gradients, moments: with activations 2 GiB


def models():
    for folder in MILESTONES:
        for name in importlib.import_module(f"{folder}.model").MODELS:
            yield folder, name


@pytest.fixture(autouse=True)
def few_scenes(monkeypatch):
    """Evaluating a large network on a thousand images takes far longer than the step."""
    monkeypatch.setattr("common.data.shapes.NUM_SCENES", {"train": 12, "test": 4})
    monkeypatch.setattr("common.data.boxes.NUM_SCENES", {"train": 12, "test": 4})
    monkeypatch.setattr("common.scenes.TRAINED", 64)
    monkeypatch.setattr("common.data.pairs.TEST_DATES", 4)
    monkeypatch.setattr("sklearn.datasets.load_digits", few_digits(40))
    if "unet" in MILESTONES:
        monkeypatch.setattr("unet.data.NUM_SCENES", (12, 2))
    short = corpora.Corpus({"all": corpora.Text(["a short text, with a test set. " * 30])})
    monkeypatch.setitem(corpora.CORPORA, "pydocs", lambda args: short)
    if "latentdiffusion" in MILESTONES:
        monkeypatch.setitem(importlib.import_module("latentdiffusion.options").SECOND, "samples", 0)
    if "flamingo" in MILESTONES:  # its parts are trained in this process, on as few scenes
        monkeypatch.setattr("flamingo.parts.run_script", in_process)
        monkeypatch.setattr("flamingo.parts.CHUNKS", 200)
    if "rnn" in MILESTONES:
        monkeypatch.setattr("rnn.adding.TEST", 20)
    if "t5" in MILESTONES:
        monkeypatch.setattr("t5.tasks.TRAINED", 20)
        monkeypatch.setattr("t5.tasks.TESTED", 1)


def in_process(script, argv):
    """Another folder's script, as `common.claims.run_script` runs it, but in this process."""
    return importlib.import_module(f"{script.parent.name}.{script.stem}").main(argv)


@pytest.mark.parametrize(("folder", "name"), list(models()))
def test_one_step(folder, name, monkeypatch):
    factory = importlib.import_module(f"{folder}.model").MODELS[name]
    with torch.device("meta"):
        try:
            size = count(factory())
        except NotImplementedError:  # initialisations that need numbers
            size = 0
    if 16 * size > LIMIT:
        pytest.skip("too large for the default run")
    if size > LARGE:  # its files are as those of the smaller ones, and fill half a gigabyte
        monkeypatch.setattr("common.run.write_checkpoint", lambda path, content: None)
    train = importlib.import_module(f"{folder}.train")
    argv = ["--model", name, "--max-steps", "1", "--limit", "8", "--quiet"]
    if 0 < train.parse_args(argv).val <= 1000:  # in more, characters are counted
        argv += ["--val", "4"]
    metrics = train.main(argv)
    assert metrics
    assert all(map(math.isfinite, metrics.values()))
