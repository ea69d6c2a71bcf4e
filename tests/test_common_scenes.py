"""The judge of generated scenes: what captions ask for, what it sees, and its cache."""

import importlib
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers import run_of

from common import scenes
from common.data import captions
from common.data.drawing import CLASSES
from common.data.shapes import COLOURS, draw, random_numbers

DEV = SimpleNamespace(device=torch.device("cpu"), rank=0, main=True, quiet=True)


@pytest.fixture
def short(monkeypatch):
    """A judge that is trained in a second."""
    for name, value in dict(TRAINED=128, EPOCHS=1, MEASURED=20).items():
        monkeypatch.setattr(scenes, name, value)


def test_what_captions_ask_for():
    captions = ["a large blue star", "An orange ring left of a red circle", "pink X, green moon"]
    found = scenes.wanted(captions)
    pairs = torch.stack(found, 1).tolist()
    names = [(CLASSES[shape], list(COLOURS)[colour]) for shape, colour in pairs]
    assert names == [("star", "blue"), ("ring", "orange"), ("moon", "green")]
    for caption in ("a star", "blue", "", "a bluestar"):
        with pytest.raises(ValueError, match="names no shape"):
            scenes.wanted(["a red circle", caption])


def test_the_asked_scenes_are_of_one_object_and_unseen():
    asked = scenes.one_object(100)
    assert asked.captions == scenes.one_object(100, 8).captions  # of every size the same
    assert len(asked.captions) == 100
    assert (asked.shapes[:, 1:] == -1).all()
    shapes, colours = scenes.wanted(asked.captions)
    assert torch.equal(shapes, asked.shapes[:, 0])
    assert torch.equal(colours, asked.colours[:, 0])
    test = draw(range(300), scenes.SIZE, seed=1)  # of the data set's test set, none is left out
    alone = (test.shapes[:, 1] == -1).nonzero()[:, 0][:100]
    assert torch.equal(asked.pixels, test.pixels[alone])
    other = scenes.one_object(5, seed=2)
    assert not torch.equal(other.pixels, asked.pixels[:5])


def test_right_is_the_shape_and_the_colour():
    class Fixed(scenes.Judge):
        def read(self, images):
            return torch.tensor([1, 1, 1]), torch.tensor([2, 2, 2])

    found = Fixed().right(torch.zeros(3, 3, 8, 8), torch.tensor([1, 1, 0]), torch.tensor([2, 0, 2]))
    assert found.tolist() == [True, False, False]


def test_it_names_the_largest_object_whatever_the_size(short):
    judge = scenes.Judge().eval()
    small = draw(range(4), 64).pixels / 255
    assert judge.features(small).shape == (4, 64)
    half = torch.nn.functional.avg_pool2d(small, 2)
    apart = judge.features(small) - judge.features(half)
    assert apart.abs().mean() < 0.2 * judge.features(half).std()
    logits = judge(half)
    assert [part.shape for part in logits] == [(4, len(CLASSES)), (4, len(COLOURS))]
    shapes, colours = judge.read(half)
    assert torch.equal(shapes, logits[0].argmax(1))
    assert torch.equal(colours, logits[1].argmax(1))


def test_it_is_trained_once_and_kept(short, monkeypatch):
    before = torch.get_rng_state()
    first = scenes.ready(DEV)
    assert torch.equal(torch.get_rng_state(), before)  # a training goes on as without it
    assert not first.training
    assert first.accuracy.keys() == {"shape", "colour", "both"}
    assert first.accuracy["both"] <= min(first.accuracy["shape"], first.accuracy["colour"])
    assert "both" in str(first)
    (file,) = scenes.CACHE.iterdir()
    monkeypatch.setattr(scenes, "train", None)  # would be called
    again = scenes.ready(DEV)
    assert again.accuracy == first.accuracy
    for a, b in zip(first.state_dict().values(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    monkeypatch.setattr(scenes, "RATE", 0.2)  # another recipe is another judge
    with pytest.raises(TypeError):
        scenes.ready(DEV)
    assert file.exists()


def test_other_processes_write_nothing(short):
    scenes.ready(SimpleNamespace(**vars(DEV) | {"rank": 1, "main": False}))
    assert not scenes.CACHE.exists()


def test_it_learns(monkeypatch):
    """Of 320 scenes with few steps: colours far above chance."""
    for name, value in dict(TRAINED=320, EPOCHS=6, MEASURED=300).items():
        monkeypatch.setattr(scenes, name, value)
    assert scenes.ready(DEV).accuracy["colour"] > 0.3


@pytest.mark.slow
def test_it_sees_what_is_there():
    """With the recipe as it stands, in a minute or two."""
    accuracy = scenes.ready(DEV).accuracy
    assert accuracy["both"] > 0.9


@pytest.mark.parametrize("most", [1, 2, 3])
def test_data_sets_of_simple_scenes(most, monkeypatch):
    """Those of the world's scenes that have few objects, the parts apart, none left out."""
    monkeypatch.setattr("common.data.shapes.NUM_SCENES", {"train": 40, "test": 20})
    args = SimpleNamespace(data="shapes", val=10, objects=most)
    source = captions.scenes(args)
    for part, seed, count in (("train", 0, 40), ("test", 1, 20), ("val", 2, 10)):
        found = source.parts[part]
        numbers = random_numbers(list(range(400)), seed, 3)["count"]
        wanted = (numbers <= most).nonzero()[:, 0][:count].tolist()
        assert found.pixels.indices == wanted
        if most == 1:
            assert not any(" of " in some[0] or " and " in some[0] for some in found.captions)
    assert source.parts["train"].endless == (most == 3)


@pytest.mark.parametrize("folder", ["dalle", "latentdiffusion"])
def test_both_stages_have_the_same_scenes(folder, little, refused):
    train = importlib.import_module(f"{folder}.train")
    run = Path(run_of(folder, "--objects", "2"))
    (first,) = (path for path in run.glob("*/config.json"))
    for path in (run / "config.json", first):
        assert json.loads(path.read_text())["flags"]["objects"] == 2
    assert "needs a number from 1 to 3, not '4'" in refused(train.main, ["--objects", "4"])
    line = refused(train.main, ["--objects", "1", "--data", "flickr8k"])
    assert "only scenes of shapes have a number of objects" in line
