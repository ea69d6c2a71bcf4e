"""The world of shapes: pure scenes, true annotations, pixels that stay what they are."""

import numpy as np
import pytest
import torch
from test_common_data import load

from common.data import drawing, shapes


def test_a_scene_is_a_function_of_seed_and_index():
    whole = shapes.draw(range(20), size=48)
    part = shapes.draw([7, 3], size=48)
    assert torch.equal(part.pixels, whole.pixels[[7, 3]])
    assert part.captions == [whole.captions[7], whole.captions[3]]
    assert torch.equal(part.boxes, whole.boxes[[7, 3]])
    other = shapes.draw(range(20), size=48, seed=1)
    assert (other.pixels != whole.pixels).float().mean() > 0.9
    assert whole.pixels.dtype == torch.uint8
    assert whole.pixels.shape == (20, 3, 48, 48)


def test_the_same_scene_at_every_size():
    small, large = (shapes.draw(range(30), size=size) for size in (64, 192))
    assert small.captions == large.captions
    assert torch.equal(small.labels, large.labels)
    assert (small.boxes - large.boxes / 3).abs().max() <= 1.5
    shrunk = torch.nn.functional.avg_pool2d(large.pixels.float(), 3)
    assert (shrunk - small.pixels.float()).abs().mean() < 12  # the noise is of the pixels


def test_pixels_are_pinned():
    """The same on every platform up to rounding: block means of five scenes, to a grey level."""
    pixels = shapes.draw(range(5), size=32).pixels.double()
    means = torch.nn.functional.avg_pool2d(pixels, 16).flatten(1)
    torch.testing.assert_close(means[:, [0, 5, 10]], PINNED, atol=0.5, rtol=0)


PINNED = torch.tensor(
    [
        [197.910, 177.262, 200.262],
        [212.191, 170.230, 125.785],
        [51.184, 71.078, 17.879],
        [72.145, 55.848, 40.387],
        [137.238, 69.793, 26.762],
    ],
    dtype=torch.float64,
)


def test_labels_are_the_largest_objects_class():
    scenes = shapes.draw(range(200), size=32)
    world = shapes.random_numbers(list(range(200)), 0, 3)
    assert torch.equal(scenes.labels, scenes.shapes[:, 0])
    assert torch.equal(scenes.labels, shapes.labels_of(range(200)))
    assert scenes.labels.bincount().tolist() == [20] * 10
    assert (world["radius"][:, 1:] < world["radius"][:, :1] * 0.51).all()
    counts = (scenes.shapes >= 0).sum(1)
    assert torch.equal(counts, world["count"])
    assert set(counts.tolist()) == {1, 2, 3}
    assert set(scenes.shapes[:, 1].tolist()) == set(range(-1, 10))
    assert set(scenes.colours[:, 0].tolist()) == set(range(8))


@pytest.mark.parametrize("max_objects", [1, 3, 8])
def test_boxes_and_masks_are_what_is_seen(max_objects):
    scenes = shapes.draw(range(60), size=64, max_objects=max_objects)
    assert scenes.masks.shape == (60, max_objects, 64, 64)
    assert scenes.masks.sum(1).max() == 1  # each pixel is of one object at most
    for n in range(60):
        for m in range(max_objects):
            rows, columns = (scenes.masks[n, m].any(axis).nonzero()[:, 0] for axis in (1, 0))
            if scenes.shapes[n, m] < 0:
                assert not scenes.masks[n, m].any()
                assert scenes.boxes[n, m].tolist() == [0, 0, 0, 0]
            elif len(rows):
                box = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
                assert scenes.boxes[n, m].tolist() == [int(b) for b in box]
    there = scenes.shapes >= 0
    assert (scenes.masks.flatten(2).sum(2) > 0)[there].float().mean() > 0.99  # few are hidden
    occluded = 0
    for n in range(60):  # the colour inside a mask is the object's
        for m in range(int(there[n].sum())):
            inside = scenes.pixels[n][:, scenes.masks[n, m]].float().mean(1)
            name = list(shapes.COLOURS)[scenes.colours[n, m]]
            if scenes.masks[n, m].sum() > 30:
                assert (inside - torch.tensor(shapes.COLOURS[name])).abs().max() < 60
    whole = shapes.random_numbers(list(range(60)), 0, max_objects)
    if max_objects > 1:  # some are partly covered by others
        alone = shapes.paint({**whole, "count": torch.ones(60, dtype=torch.int64)}, 64)[1]
        occluded = (alone[0] > 0.5).flatten(1).sum(1) > scenes.masks[:, 0].flatten(1).sum(1) + 5
        assert occluded.sum() >= 3


def test_captions_are_true():
    scenes = shapes.draw(range(300), size=96)
    opposite = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
    for n, caption in enumerate(scenes.captions):
        count = int((scenes.shapes[n] >= 0).sum())
        for m in range(count):
            colour = list(shapes.COLOURS)[scenes.colours[n, m]]
            assert f"{colour} {shapes.CLASSES[scenes.shapes[n, m]]}" in caption
        words = sum(caption.count(f" {word} ") for word in opposite)
        assert words == count - 1
        assert caption.startswith(("a ", "an "))
        assert " and" * max(count - 2, 0) == "" or caption.count(" and ") == count - 2
    two = next(n for n, s in enumerate(scenes.shapes) if (s >= 0).sum() == 2)
    left, top, right, bottom = scenes.boxes[two, :2].float().unbind(1)
    x, y = (left + right) / 2, (top + bottom) / 2
    first = shapes.CLASSES[scenes.shapes[two, 0]]
    a, b = (0, 1) if scenes.captions[two].split(" ")[:4].count(first) else (1, 0)
    wide = abs(x[a] - x[b]) > abs(y[a] - y[b])
    wanted = (
        ("left of" if x[a] < x[b] else "right of")
        if wide
        else ("above" if y[a] < y[b] else "below")
    )
    assert wanted in scenes.captions[two]


def test_small_and_large_are_said():
    scenes, world = shapes.draw(range(200), size=16), shapes.random_numbers(list(range(200)), 0, 3)
    for n, caption in enumerate(scenes.captions):
        radii = world["radius"][n, : world["count"][n]]
        assert caption.count("small") == (radii < shapes.SMALL).sum()
        assert caption.count("large") == (radii > shapes.LARGE).sum()


def test_templates_are_distances():
    """Inside is negative, the slope is one, and a circle's are exact."""
    fields = drawing.templates()[:, 0]
    place = (torch.arange(drawing.TEXELS) + 0.5) / drawing.TEXELS * 4 - 2
    y, x = torch.meshgrid(place, place, indexing="ij")
    torch.testing.assert_close(fields[0], (x * x + y * y).sqrt() - 0.9, atol=1e-5, rtol=0)
    middle = drawing.TEXELS // 2
    for name, field in zip(drawing.CLASSES, fields, strict=True):
        assert (field[middle, middle] > 0) == (name in ("ring", "moon")), name
        dy, dx = torch.gradient(field, spacing=4 / drawing.TEXELS)
        near = field.abs() < 0.05
        assert ((dx**2 + dy**2).sqrt()[near] - 1).abs().median() < 0.02, name
        area = (field < 0).float().mean() * 16
        assert 0.9 < area < 2.7, name
        assert (field < 0)[(x * x + y * y).sqrt() > 1.35].sum() == 0, name
    square = fields[drawing.CLASSES.index("square")]
    wanted = (x.abs().maximum(y.abs()) - 1.1 / 2**0.5) < 0
    assert torch.equal(square < 0, wanted)


def test_edges_are_anti_aliased():
    world = shapes.random_numbers([0], 0, 1)
    cover = drawing.paint(world, 64)[1][0]
    radius = float(world["radius"][0, 0]) * 64 * 0.9  # of a circle
    between = ((cover > 0.02) & (cover < 0.98)).sum().item()
    assert 0.4 * 2 * np.pi * radius < between < 2.5 * 2 * np.pi * radius
    assert cover.sum().item() == pytest.approx(np.pi * radius**2, rel=0.05)


def test_the_data_set_shapes():
    train, val, test = load("shapes", size=32, channels=3, val=100, limit=300, chosen=["val"])
    assert (len(train), len(val), len(test)) == (300, 100, 1000)
    assert train.facts["classes"] == shapes.CLASSES
    assert torch.equal(test.images.pixels[:3], shapes.draw(range(3), size=32, seed=1).pixels)
    assert test.labels.bincount().tolist() == [100] * 10
    grey, _, _ = load("shapes", size=20, channels=1, limit=10)
    assert grey.images.pixels.shape == (10, 1, 20, 20)


def test_as_many_scenes_as_are_asked_for(refused):
    """shapes:N: those of `shapes` come first, and the test set is the same."""
    few, _, test = load("shapes:30", size=16, channels=3)
    assert (len(few), len(test)) == (30, 1000)
    assert torch.equal(few.images.pixels, shapes.draw(range(30), size=16).pixels)
    assert few.labels.bincount().tolist() == [3] * 10
    more, val, _ = load("shapes:12000", size=16, channels=3, val=10, limit=20, chosen=["val"])
    assert (len(more), len(val)) == (20, 10)
    for wrong in ("many", "0", "-1", "1e4", "10000001", "5 "):
        line = refused(lambda data: load(data, size=16, channels=3), f"shapes:{wrong}")
        assert "N of shapes:N is a number of scenes" in line


def test_worlds_that_cannot_be():
    for wrong in (dict(size=4), dict(max_objects=0), dict(max_objects=9)):
        with pytest.raises(ValueError, match="objects"):
            shapes.draw([0], **wrong)


def test_the_contact_sheet():
    from pathlib import Path

    shapes.main(["sheet.jpg"])
    assert Path("sheet.jpg").stat().st_size < 200_000
    assert (Path(shapes.__file__).parent / "shapes.jpg").exists()


def test_a_linear_classifier_stays_below_half():
    train, _, test = load("shapes", size=32, channels=3, limit=2000)
    (x, y), (tx, ty) = (s.examples(torch.arange(len(s))) for s in (train, test))
    model = torch.nn.Linear(3 * 32 * 32, 10)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=1.0)
    best = 0.0
    for _ in range(60):
        loss = torch.nn.functional.cross_entropy(model(x.flatten(1)), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        best = max(best, (model(tx.flatten(1)).argmax(1) == ty).float().mean().item())
    assert loss < 2.0  # it did learn something
    assert 0.12 < best < 0.5
