"""Captions as common.data.captions reads them: the world of shapes, Flickr8k's form, tables."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from clip.train import parse_args
from common.data import captions as data
from common.data import shapes as world
from common.data.shapes import ShapeImages
from common.device import Device


def load(name, *more, size=16, **how):
    files = [] if name.startswith("shapes") else ["--workers", "0"]
    args = parse_args(["--data", name, "--quiet", "--device", "cpu", *files, *more])
    return data.load_captions(args, Device(args), size, **how)


def photos(folder, count=10, size=(20, 16)):
    """Image files, each of one colour that its number tells."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    for i in range(count):
        pixels = np.full((size[1], size[0], 3), 20 * i, dtype=np.uint8)
        Image.fromarray(pixels).save(Path(folder, f"{i}.png"))


def table(path, rows, head=("image", "caption"), delimiter=","):
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerows([head, *rows] if head else rows)


def five(count=10, name="{}.png"):
    return [
        (name.format(i), f"caption {k} of {i}, a photo") for i in range(count) for k in range(5)
    ]


# ---------------------------------------------------------------------- scenes


def test_captions_of_scenes_are_those_of_the_world():
    wanted = world.draw(range(3, 9), size=16, seed=1)
    scenes = ShapeImages(range(3, 9), 1)
    captions = scenes.captions(chunk=4)
    assert captions == [[text, f"a photo of {text}"] for text in wanted.captions]
    pixels, texts = scenes.pairs(16)
    assert texts == captions
    assert torch.equal(pixels, wanted.pixels)


def test_scenes_without_end(few):
    """Each epoch has other ones, a function of the epoch and the place alone; test scenes stay."""
    train, val, test = load("shapes", "--val", "30")
    assert (len(train), len(val), len(test)) == (200, 30, 40)
    batches = train.batches(50)
    assert len(batches) == 4
    seen, plain = [], 0
    for epoch in (0, 1):
        batches.seek(epoch, 0)
        images, texts, labels = zip(*batches, strict=True)
        steps = batches.steps()
        for places, pixels, some, classes in zip(steps, images, texts, labels, strict=True):
            scenes = ShapeImages([200 * epoch + i for i in places.tolist()], 0)
            wanted, both = scenes.pairs(16)
            assert some in ([one for one, _ in both], [other for _, other in both])
            plain += some[0].startswith("a photo of")
            torch.testing.assert_close(pixels, train.images.normalise(wanted))
            assert torch.equal(classes, world.labels_of(scenes.indices))
        seen.append([text for some in texts for text in some])
    assert sorted(seen[0]) != sorted(seen[1])
    assert 0 < plain < 8  # some of the steps
    batches.seek(1, 2)  # resumed inside an epoch
    again = [text for _, some, _ in batches for text in some]
    assert again == seen[1][100:]
    assert test.captions == [some[:1] for some in ShapeImages(range(40), 1).captions()]
    assert val.captions == [some[:1] for some in ShapeImages(range(30), 2).captions()]
    assert torch.equal(test.labels, torch.arange(40) % 10)


def test_all_parts_of_a_step_have_captions_of_one_kind(few):
    """However the step is cut; other steps may have the other kind, of scenes of any number."""
    for name in ("shapes", "shapes:80"):
        whole = load(name, "--val", "0")[0].batches(20)
        halves = load(name, "--val", "0", "--accumulate", "2")[0].batches(20)
        kinds = set()
        for epoch in range(3):
            whole.seek(epoch, 0)
            halves.seek(epoch, 0)
            parts = iter(halves)
            for images, texts, _ in whole:
                (one, some, _), (other, rest, _) = next(parts), next(parts)
                assert texts == some + rest
                torch.testing.assert_close(images, torch.cat([one, other]))
                kinds.add(frozenset(text.startswith("a photo of") for text in texts))
        assert kinds == {frozenset([True]), frozenset([False])}


def test_so_many_scenes(few, refused):
    train, val, _ = load("shapes:60", "--val", "10")
    assert (len(train), len(val)) == (50, 10)
    everything = set(train.texts()[0])
    for epoch in (0, 1):
        batches = train.batches(25)
        batches.seek(epoch, 0)
        for images, texts, labels in batches:
            assert set(texts) <= everything
            assert images.shape == (25, 3, 16, 16)
            assert labels.shape == (25,)
    limited = load("shapes", "--limit", "20", "--val", "0")[0]
    assert len(limited) == 20
    assert limited.endless is None
    line = refused(load, "shapes:0")
    assert "N of shapes:N is a number of scenes" in line


def test_pairs_belong_together(few):
    """Of a fixed set: the image of a caption is drawn from the same scene."""
    train, _, _ = load("shapes:40", "--val", "0")
    drawn = list(ShapeImages(range(40), 0).draw(16, 1))
    everything = [text for some in train.captions for text in some]
    scenes = {text: drawn[i] for i, some in enumerate(train.captions) for text in some}
    seen = 0
    for images, texts, _ in train.batches(20):
        for image, text in zip(images, texts, strict=True):
            if everything.count(text) == 1:  # of equal captions one can't tell whose they are
                torch.testing.assert_close(image, train.images.normalise(scenes[text])[0])
                seen += 1
    assert seen > 10


# ---------------------------------------------------------------------- tables


def test_a_table_of_the_users():
    photos("mine/images")
    table("mine/pairs.csv", five())
    train, val, test = load("captions:mine/pairs.csv", "--val", "2")
    assert (len(train), len(val), len(test)) == (6, 2, 2)
    assert "classes" not in train.facts
    assert train.labels is None
    means = torch.tensor(train.facts["mean"])
    for part in (train, val, test):
        for i, some in enumerate(part.captions):
            number = int(some[0].split()[3][:-1])
            assert some == [f"caption {k} of {number}, a photo" for k in range(5)]
            (pixels,), _ = part.images.examples(torch.tensor([i]))
            colour = (pixels * torch.tensor(part.facts["std"]).view(3, 1, 1)).mean((1, 2)) + means
            torch.testing.assert_close(colour * 255, torch.full((3,), 20.0 * number), atol=0.6,
                                       rtol=0)  # fmt: skip
    everyone = [some[0] for part in (train, val, test) for some in part.captions]
    assert len(set(everyone)) == 10  # an image is in one part


def test_a_caption_of_each_image_is_drawn_in_each_epoch():
    photos("mine")
    table("mine/pairs.csv", five())
    train, _, test = load("captions:mine/pairs.csv", "--val", "0")
    seen = [train.chosen(epoch) for epoch in range(60)]
    assert seen == [load("captions:mine/pairs.csv", "--val", "0")[0].chosen(e) for e in range(60)]
    for some, *lines in zip(train.captions, *seen, strict=True):
        assert set(lines) == set(some)  # all of the five have their turn
    batches = train.batches(4)
    batches.seek(3, 0)
    for places, (_, texts, labels) in zip(batches.steps(), batches, strict=True):
        assert texts == [seen[3][i] for i in places.tolist()]
        assert labels is None
    texts, owned = test.texts()
    assert len(texts) == 10
    assert owned == [list(range(5)), list(range(5, 10))]


@pytest.mark.parametrize("head", [("filepath", "title"), ("FILE", "Text"), None])
def test_columns_and_delimiters(head):
    photos("mine/Images")
    table("mine/pairs.tsv", five(), head, "\t")
    train, _, test = load("captions:mine/pairs.tsv", "--val", "0")
    assert (len(train), len(test)) == (8, 2)
    assert len(train.captions[0]) == 5


def test_parts_that_a_table_names(refused):
    photos("mine")
    names = ["train"] * 6 + ["val"] * 2 + ["test"] * 2
    rows = [(f"{i}.png", f"text {i}", name) for i, name in enumerate(names)]
    table("mine/pairs.csv", rows, ("image", "caption", "split"))
    train, val, test = load("captions:mine/pairs.csv", "--val", "2")
    assert [some[0] for some in test.captions] == ["text 8", "text 9"]
    assert [len(train), len(val)] == [6, 2]
    table("mine/two.csv", [row for row in rows if row[2] != "test"], ("image", "caption", "split"))
    assert len(load("captions:mine/two.csv", "--val", "0")[2]) == 2
    table("mine/odd.csv", [("0.png", "x", "dev set")], ("image", "caption", "split"))
    assert "line 2 has the split 'dev set'" in refused(load, "captions:mine/odd.csv")
    table("mine/none.csv", [("0.png", "x", "test")], ("image", "caption", "split"))
    assert "no row is of the train set" in refused(load, "captions:mine/none.csv")


def test_images_without_a_caption_are_left_out_aloud(capsys):
    photos("mine")
    rows = [*five(8), ("8.png", ""), ("8.png", "  "), ("7.png", ""), ("9.png", "the last")]
    table("mine/pairs.csv", rows)
    args = parse_args(["--data", "captions:mine/pairs.csv", "--workers", "0"])
    train, _, test = data.load_captions(args, Device(args), 16)[:3]
    assert len(train) + len(test) == 8  # and one is for validation
    said = capsys.readouterr().out
    assert "3 rows without a caption left out" in said
    assert "1 image without any caption left out" in said


def test_what_tables_may_lack(refused):
    photos("mine")
    for rows, head, words in [
        ([("0.png", "a")], ("image", "words"), "the column caption: mine/pairs.csv has no"),
        ([("0.png", "a")], ("photo_id", "caption"), "the column image"),
        ([("nothing.png", "a"), ("0.png", "b")], ("image", "caption"),
         "line 2 names nothing.png, which is not in mine"),
        ([("0.png", ""), ("1.png", "")], ("image", "caption"), "no image has a caption"),
        ([("", "a"), ("1.png", "b")], ("image", "caption"), "line 2 names no image"),
        ([("0.png", "a"), ("0.png", "b")], ("image", "caption"), "holds one image with captions"),
        ([("0.png", "a", "b")], ("image", "caption"), "line 2 has 3 cells"),
    ]:  # fmt: skip
        table("mine/pairs.csv", rows, head)
        assert words in refused(load, "captions:mine/pairs.csv", "--val", "0"), words
    assert "there is no file nowhere.csv" in refused(load, "captions:nowhere.csv")
    Path("mine/3.png").write_text("no image")
    table("mine/pairs.csv", five())
    assert "mine/3.png is not a readable image" in refused(load, "captions:mine/pairs.csv")


def test_flickr8k_in_its_forms(refused):
    photos("shared/flickr8k_subset/images", 5)
    table("shared/flickr8k_subset/captions.csv", five(5))
    assert len(load("flickr8k", "--data-dir", "shared", "--val", "0")[0]) == 4
    photos("other/Images", 5)
    table("other/captions.txt", five(5))
    assert len(load("flickr8k", "--data-dir", "other", "--val", "0")[0]) == 4
    line = refused(load, "flickr8k", "--data-dir", "nowhere")
    assert "captions.csv is in none of nowhere" in line
    assert "--data shapes" in line


def test_windows_are_for_training(monkeypatch):
    """Squares are cut from files; evaluation sees the middle of a square of 8/7."""
    from clip.pairs import square_window

    photos("mine", size=(40, 32))
    table("mine/pairs.csv", five())
    for stream in ("--stream", "--no-stream"):
        train, _, test = load("captions:mine/pairs.csv", "--val", "0", stream, size=14,
                              window=square_window)  # fmt: skip
        assert train.facts["side"] == 16
        assert next(iter(train.batches(4)))[0].shape == (4, 3, 14, 14)
        assert test.images.examples(torch.arange(2))[0].shape == (2, 3, 14, 14)
    numbers = torch.rand(500, 5)
    sides = torch.full((500,), 40), torch.full((500,), 60)
    left, top, across, down, mirrored = square_window(numbers, *sides).unbind(1)
    assert torch.equal(across, down)
    assert not mirrored.any()
    assert 0.64 * 40 <= across.min() < 27
    assert 39 < across.max() <= 40
    assert (left >= 0).all() and (left + across <= 60.001).all()
    assert (top >= 0).all() and (top + down <= 40.001).all()
    assert left.max() > 20


def test_first_images_are_a_part_to_evaluate(few):
    train, _, _ = load("shapes", "--val", "0")
    some = train.first(30)
    assert len(some.images) == len(some.labels) == 30
    pixels = torch.cat([x for x, _ in some.images.batches(20)])
    wanted, _ = ShapeImages(range(30), 0).pairs(16)
    torch.testing.assert_close(pixels, train.images.normalise(wanted))
    assert len(train.first(10**6).images) == 200


def test_equal_captions_are_counted():
    assert data.repeated(["a", "b", "a", "c", "b", "a"]) == 5
    assert data.repeated(["a", "b"]) == 0


def test_published_inputs_are_kept(few):
    inputs = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "network": {}}
    train = load("shapes", "--val", "0", inputs=inputs)[0]
    assert train.facts["mean"] == [0.1, 0.2, 0.3]
    assert "network" not in train.facts
