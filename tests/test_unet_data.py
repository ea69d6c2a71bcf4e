"""Image and mask sets: reading, folds, label maps, tiles, distances, scores."""

from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

from common.data.masks import read_mask
from common.device import Device
from unet.data import UNKNOWN, load_masks, look_up, separate, two_distances
from unet.scores import class_scores, iou_of, match_cells, overlay, tally


def flags(**changes):
    values = dict(
        data="shapes", data_dir="data", val=0, limit=None, seed=0, folds=3, fold=0, contrast="set",
        typed=[],
        chosen=[], device="cpu", precision="fp32", quiet=True, accumulate=1, clip=None, fsdp=False,
        compile=False, stored={},
    )  # fmt: skip
    return Namespace(**{**values, **changes})


def make(root, count=6, kind="masks", size=(20, 30), values=(0, 255)):
    for folder in ("images", kind):
        Path(root, folder).mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for k in range(count):
        Image.fromarray(rng.integers(0, 255, size, dtype=np.uint8)).save(f"{root}/images/{k}.png")
        mask = np.array(values, dtype=np.uint8)[rng.integers(0, len(values), size)]
        Image.fromarray(mask).save(f"{root}/{kind}/{k}.png")


def load(root, **changes):
    args = flags(data=f"folder:{root}", **changes)
    return load_masks(args, Device(args), 16)


def test_folds_hold_each_image_once():
    make("set", 7)
    seen = []
    for fold in range(3):
        train, val, test = load("set", fold=fold)
        assert val is None
        assert len(train) + len(test) == 7
        assert not set(train.content.names) & set(test.content.names)
        seen += test.content.names
    assert sorted(seen) == [f"{k}.png" for k in range(7)]
    other = load("set", seed=5)[2]
    assert other.content.names == load("set")[2].content.names  # the seed chooses no test images


def test_a_tree_with_a_test_part():
    make("set/train", 4)
    make("set/test", 2)
    train, _, test = load("set")
    assert (len(train), len(test)) == (4, 2)
    assert train.facts["classes"] == ["background", "foreground"]


def test_validation_and_limit():
    make("set", 9)
    train, val, test = load("set", val=2, chosen=["val"], limit=3)
    assert (len(train), len(val), len(test)) == (3, 2, 3)
    args = flags(data="folder:set", val=6, chosen=["val"])
    with pytest.raises(SystemExit):
        load_masks(args, Device(args), 16)


def test_classes_of_masks(refused):
    make("three", values=(0, 1, 2, 255))
    facts = load("three")[0].facts
    assert facts["classes"] == ["background", "class 1", "class 2"]
    assert any((m == UNKNOWN).any() for m in load("three")[0].content.masks)
    make("two", values=(0, 7))
    assert {int(v) for m in load("two")[0].content.masks for v in m.unique()} == {0, 1}
    make("gap", values=(0, 1, 3))
    line = refused(load, "gap")
    assert "value 3" in line
    assert ".png" in line


def test_palettes_and_bad_masks(refused):
    image = Image.fromarray(np.array([[0, 1], [2, 1]], dtype=np.uint8), mode="P")
    image.putpalette([9, 9, 9, 200, 0, 0, 0, 200, 0])
    image.save("palette.png")
    assert read_mask(Path("palette.png")).tolist() == [[0, 1], [2, 1]]
    Image.new("RGB", (4, 4), "red").save("red.png")
    assert "red.png" in refused(read_mask, Path("red.png"))
    Image.fromarray(np.array([[0, 300]], dtype=np.uint16)).save("deep.png")
    assert read_mask(Path("deep.png")).tolist() == [[0, 300]]


def test_pairs_that_do_not_fit(refused):
    make("set")
    Path("set/masks/3.png").unlink()
    assert "3.png has no mask" in refused(load, "set")
    make("set")
    Image.new("L", (30, 20)).save("set/masks/extra.png")
    assert "extra.png has no image" in refused(load, "set")
    Path("set/masks/extra.png").unlink()
    Image.new("L", (31, 20)).save("set/masks/2.png")
    assert "30x20 and 31x20" in refused(load, "set")
    Path("set/images/2.png").write_bytes(b"no image")
    assert "2.png" in refused(load, "set")
    assert "nowhere" in refused(load, "nowhere")
    Path("empty").mkdir()
    assert "images/" in refused(load, "empty")
    make("few", 2)
    assert "--folds 3" in refused(load, "few")


def test_label_maps_are_separated():
    make("cells", kind="labels", values=(0, 1, 2, 3))
    train = load("cells")[0]
    assert train.facts["labelled"]
    for mask, labels in zip(train.content.masks, train.content.labels, strict=True):
        parts, _ = ndimage.label(mask.numpy(), np.ones((3, 3)))
        for part in range(1, parts.max() + 1):
            assert len(labels[torch.from_numpy(parts == part)].unique()) == 1


def test_separate_keeps_what_touches_nothing():
    labels = torch.zeros(9, 9, dtype=torch.int32)
    labels[1:4, 1:8], labels[4:7, 1:8] = 1, 2
    mask = separate(labels)
    assert mask[1:3, 1:8].all()
    assert not mask[3].any()  # one line, of the first
    assert mask[4:7, 1:8].all()
    assert mask.sum() == 14 + 21


def test_distances_are_those_of_brute_force():
    torch.manual_seed(0)
    labels = torch.zeros(24, 31, dtype=torch.int32)
    labels[2:6, 3:9], labels[8:15, 10:14], labels[16:22, 2:8], labels[3:5, 20:29] = 1, 2, 3, 5
    places = torch.stack(torch.meshgrid(torch.arange(24), torch.arange(31), indexing="ij"), 2)
    places = places.view(-1, 2).float()
    each = torch.stack([
        torch.cdist(places, places[labels.flatten() == n]).amin(1) for n in (1, 2, 3, 5)
    ]).sort(0).values  # fmt: skip
    near, next_near = two_distances(labels, reach=60)
    assert torch.allclose(near.flatten(), each[0])
    assert torch.allclose(next_near.flatten(), each[1])
    near, next_near = two_distances(labels, reach=5)
    close = each[1] < 5
    assert torch.allclose(next_near.flatten()[close], each[1][close])
    assert next_near.flatten()[~close].isinf().all()
    assert two_distances(torch.zeros(4, 4, dtype=torch.int32), 5)[0].isinf().all()


def test_tiles_are_looked_up_and_mirrored():
    values = torch.arange(12.0).view(1, 3, 4)
    y, x = torch.meshgrid(torch.arange(-2, 5.0), torch.arange(-3, 7.0), indexing="ij")
    found = look_up(values, torch.stack([x, y], 2)[None], "nearest")[0, 0]
    padded = np.pad(values[0].numpy(), ((2, 2), (3, 3)), mode="reflect")
    assert np.array_equal(found.numpy(), padded)


def test_training_batches_are_the_images():
    make("set")
    train = load("set", fold=1)[0]

    def cut(draw, heights, widths):
        y, x = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
        return (torch.stack([x, y], 2) + 5).expand(len(heights), 8, 8, 2), 4

    train.weights = [mask.float() + 2 for mask in train.content.masks]
    for images, masks, weights in train.batches(2, cut):
        assert images.shape == (2, 1, 8, 8)
        assert masks.shape == weights.shape == (2, 4, 4)
        whole, classes = train.uncut(torch.arange(len(train)))
        same = [(images[0] - other[:, 5:13, 5:13]).abs().max() < 1e-4 for other in whole]
        assert sum(same) == 1
        index = same.index(True)
        assert torch.equal(masks[0], classes[index, 7:11, 7:11])
        assert torch.allclose(weights[0], masks[0].float() + 2)


def test_evaluation_batches_hold_everything_once():
    make("set", 7)
    train = load("set")[0]
    indices = torch.cat([i for *_, i in train.batches(2)])
    assert sorted(indices.tolist()) == list(range(len(train)))
    Image.new("L", (10, 10)).save("set/images/0.png")
    Image.new("L", (10, 10)).save("set/masks/0.png")
    for fold in range(3):  # sizes differ in some part: one at a time there
        for part in load("set", fold=fold)[::2]:
            differ = len({m.shape for m in part.content.masks}) > 1
            assert all(not differ or len(x) == 1 for x, *_ in part.batches(3))


def test_pixels_are_tallied():
    mask = torch.tensor([[0, 1, 255], [2, 1, 0]], dtype=torch.uint8)
    answer = torch.tensor([[0, 2, 1], [2, 1, 1]])
    assert tally(mask, answer, 3).tolist() == [[1, 1, 0], [0, 1, 1], [0, 0, 1]]
    assert iou_of(tally(mask, answer, 4))[3].isnan()


def test_scores():
    counts = torch.tensor([[50, 10, 0], [5, 30, 0], [0, 0, 0]])
    scores = class_scores(counts, ["a", "b", "c"], "test")
    assert scores["test_pixel_error"] == pytest.approx(15 / 95)
    assert scores["test_iou_b"] == pytest.approx(30 / 45)
    assert scores["test_dice_b"] == pytest.approx(60 / 75)
    assert scores["test_iou"] == scores["test_iou_b"]  # c is neither there nor given
    assert "test_iou_c" not in scores


def test_cells_are_matched():
    cells = torch.zeros(20, 20, dtype=torch.int32)
    cells[2:6, 2:6], cells[2:6, 8:12], cells[12:18, 12:18] = 4, 9, 11
    assert match_cells(cells, cells > 0) == (1.0, 0, 3)
    joined = cells > 0
    joined[3, 6:8] = True  # a bridge of two pixels
    precision, merged, _ = match_cells(cells, joined)
    assert merged == 1
    assert precision == pytest.approx(1 / 4)  # one of three found; one part too many: 1/(3+2-1)
    half = cells == 11
    half[12:15] = False  # half of the only cell found: an IoU of 0.5 is above no threshold
    assert match_cells(cells, half)[0] == 0
    empty = torch.zeros(5, 5, dtype=torch.int32)
    assert match_cells(empty, empty > 0) == (1.0, 0, 0)
    assert match_cells(empty, empty == 0)[0] == 0


def test_overlay_leaves_the_first_class():
    image = torch.full((1, 6, 6), 100, dtype=torch.uint8)
    classes = torch.zeros(6, 6, dtype=torch.uint8)
    assert torch.equal(overlay(image, classes), image.expand(3, -1, -1))
    classes[2:4, 2:4] = 1
    changed = (overlay(image, classes) != 100).any(0)
    assert torch.equal(changed, classes > 0)


# ---------------------------------------------------------------------- other people's folders


def printed(root, capsys, **changes):
    args = flags(data=f"folder:{root}", **changes)
    dev = Device(args)
    dev.quiet = False
    return load_masks(args, dev, 16), capsys.readouterr().out


def photo(path, pixels, turn):
    """A JPEG whose EXIF data say that it has to be turned."""
    exif = Image.Exif()
    exif[274] = turn
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, exif=exif, quality=100)


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("size", [(16, 24), (16, 16)])
def test_masks_of_stored_pixels_turn_with_their_images(turn, size, capsys):
    pixels = np.zeros(size, dtype=np.uint8)
    pixels[2:6, 3:12] = 255  # in no symmetric place
    for k in range(3):
        photo(f"set/images/{k}.jpg", pixels, turn)
        Path("set/masks").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(f"set/masks/{k}.png")
    (train, _, _), line = printed("set", capsys)
    for image, mask in zip(train.content.images, train.content.masks, strict=True):
        assert ((image[0] > 127) == (mask > 0)).float().mean() > 0.99
    assert ("turned" in line) == (turn > 1)


def test_masks_of_upright_pixels_stay():
    pixels = np.zeros((16, 24), dtype=np.uint8)
    pixels[2:6, 3:12] = 255
    for k in range(3):
        photo(f"set/images/{k}.jpg", pixels, 6)
        Path("set/masks").mkdir(exist_ok=True)
        Image.fromarray(np.rot90(pixels, -1).copy()).save(f"set/masks/{k}.png")
    for image, mask in zip(*(getattr(load("set")[0].content, n) for n in ("images", "masks")),
                           strict=True):  # fmt: skip
        assert ((image[0] > 127) == (mask > 0)).float().mean() > 0.99


def test_deep_images_share_one_scale(capsys):
    make("set")
    for k in range(6):
        values = np.full((20, 30), 500 * (k + 1), dtype=np.uint16)
        Image.fromarray(values).save(f"set/images/{k}.png")
    (train, _, test), line = printed("set", capsys)
    shades = sorted(int(i.max()) for part in (train, test) for i in part.content.images)
    assert shades == [round(500 * (k + 1) / 4095 * 255) for k in range(6)]
    assert "4095 is white" in line
    assert train.facts["top"] == 4095


def test_pages_are_images_where_masks_have_them_too(capsys):
    make("set", 1)
    pages = [Image.new("L", (30, 20), 40 * k) for k in range(5)]
    masks = [Image.new("L", (30, 20), 255 * (k % 2)) for k in range(5)]
    pages[0].save("set/images/stack.tif", save_all=True, append_images=pages[1:])
    masks[0].save("set/masks/stack.tif", save_all=True, append_images=masks[1:])
    pages[0].save("set/images/film.tif", save_all=True, append_images=pages[1:])
    masks[1].save("set/masks/film.png")
    (train, _, test), line = printed("set", capsys)
    assert len(train) + len(test) == 1 + 5 + 1
    assert "1 file with further pages" in line
    names = train.content.names + test.content.names
    assert {f"stack.tif page {k}" for k in range(1, 6)} <= set(names)


def test_subfolders_brackets_side_files_and_hidden_ones():
    make("set")
    for kind in ("images", "masks"):
        Path("set", kind, "deep [1]").mkdir()
        Path("set", kind, "0.png").rename(Path("set", kind, "deep [1]", "0 [x].png"))
        Path("set", kind, ".hidden.png").write_bytes(b"")
        Path("set", kind, "notes.txt").write_text("1")
    Path("set/images/1.xml").write_text("<a/>")
    train, _, test = load("set")
    assert len(train) + len(test) == 6
    assert "0 [x].png" in train.content.names + test.content.names


def test_masks_without_foreground_are_refused(refused, capsys):
    make("empty", values=(0,))
    assert "no mask of the training set marks anything" in refused(load, "empty")
    make("full", values=(255,))
    assert "255 everywhere" in refused(load, "full")
    make("alpha")
    for k in range(6):
        grey = Image.open(f"alpha/masks/{k}.png")
        ink = Image.new("RGBA", grey.size, (0, 0, 0, 0))
        ink.putalpha(grey)
        ink.save(f"alpha/masks/{k}.png")
    (train, _, _), line = printed("alpha", capsys)
    make("plain")
    plain = load("plain")[0]
    assert all(map(torch.equal, train.content.masks, plain.content.masks))
    assert "alpha channel" in line


def test_a_set_without_one_of_the_models_classes(refused):
    make("set", values=(0, 1))
    known = {"dataset": {"values": [0, 1, 2], "classes": ["background", "class 1", "class 2"]}}
    train = load("set", stored=known)[0]
    assert train.facts["classes"] == known["dataset"]["classes"]
    make("two", values=(0, 2))  # by value, not by place
    assert {int(v) for m in load("two", stored=known)[0].content.masks for v in m.unique()} == {
        0,
        2,
    }
    make("three", values=(0, 1, 3))
    assert "value 3" in refused(lambda: load("three", stored=known))
    del known["dataset"]["values"]  # as in older checkpoints
    assert load("two", stored=known)[0].facts["classes"] == known["dataset"]["classes"]


@pytest.mark.parametrize("theirs", [[0, 1], [0, 255]])
@pytest.mark.parametrize("ours", [(0, 1), (0, 255), (0, 7), (0,), (255,)])
def test_two_classes_are_two_whatever_their_values(theirs, ours):
    """255 is foreground, not unknown, where a model's own masks had 1, and the other way round."""
    known = {"dataset": {"values": theirs, "classes": ["background", "foreground"]}}
    make("set", values=ours)
    train, _, test = load("set", stored=known)
    found = {int(v) for part in (train, test) for m in part.content.masks for v in m.unique()}
    assert found == {int(value > 0) for value in ours}


def test_a_model_is_measured_on_its_own_scale():
    """12-bit images are not brighter because those of another set were."""
    make("set")
    for k in range(6):
        Image.fromarray(np.full((20, 30), 900, dtype=np.uint16)).save(f"set/images/{k}.png")
    known = {"dataset": {"top": 4095, "classes": ["background", "foreground"]}}
    assert int(load("set", stored=known)[0].content.images[0].max()) == round(900 / 4095 * 255)
    assert int(load("set")[0].content.images[0].max()) == round(900 / 1023 * 255)


def test_instance_numbers_in_masks_are_noticed(capsys):
    Path("set/images").mkdir(parents=True)
    Path("set/masks").mkdir()
    for k in range(6):
        numbers = np.zeros((20, 30), dtype=np.uint8)
        numbers[::2, : 10 + k] = np.arange(1, 11 + k)
        Image.new("L", (30, 20), 9).save(f"set/images/{k}.png")
        Image.fromarray(numbers).save(f"set/masks/{k}.png")
    _, line = printed("set", capsys)
    assert "call the folder labels/" in line
    make("classes", values=tuple(range(12)))
    assert "call the folder" not in printed("classes", capsys)[1]
    for root, few in (("few", False), ("gaps", True)):
        squares(root, gaps=few)
        assert ("call the folder" in printed(root, capsys)[1]) == (not few)
    squares("many", count=40)  # no image has all from 1 on
    assert "41 classes (background, class 1, class 2" in printed("many", capsys)[1]
    assert "call the folder" in printed("many", capsys)[1]


def squares(root, count=7, gaps=False):
    """Six images of things in one piece each: 1 to 2, 1 to 3 ... 1 to 7, or some of `count`."""
    for folder in ("images", "masks"):
        Path(root, folder).mkdir(parents=True)
    for k in range(6):
        numbers = np.zeros((20, 90), dtype=np.uint8)
        last = range(1, k + 3) if count == 7 else range(1 + k, count + 1, 6)
        for n in (n for n in last if not (gaps and n == k + 1)):
            numbers[2:18, 2 * n : 2 * n + 2] = n
        Image.new("L", (90, 20), 9).save(f"{root}/images/{k}.png")
        Image.fromarray(numbers).save(f"{root}/masks/{k}.png")


def test_label_maps_among_masks_that_are_no_classes(refused):
    make("deep")
    Image.fromarray(np.full((20, 30), 300, dtype=np.uint16)).save("deep/masks/2.png")
    assert "labels/" in refused(load, "deep")
    make("gap", values=(0, 1, 3))
    assert "labels/" in refused(load, "gap")


@pytest.mark.parametrize("name", ["stack.tif", "stack.gif", "photo.webp", "photo.png"])
def test_damaged_files_end_in_one_line(name, refused, capsys):
    """Cut anywhere, and with bytes changed: read, or one line."""
    random, exif = np.random.default_rng(0), Image.Exif()
    exif[274] = 6
    more = {"save_all": True, "append_images": [Image.new("L", (30, 20), k) for k in (30, 99)]}
    pixels = random.integers(0, 255, (20, 30), dtype=np.uint8)
    more = more if name.startswith("stack") else {"exif": exif}
    Image.fromarray(pixels).save(name, **more)
    whole, refusals = Path(name).read_bytes(), 0
    make("set", 3)
    for trial in range(60):
        damaged = bytearray(whole)
        for place in random.integers(0, len(whole), 4 * (trial % 2)):
            damaged[place] = random.integers(0, 256)
        Path("set/images/1.png").unlink(missing_ok=True)
        cut = len(whole) if trial % 2 else random.integers(1, len(whole))
        path = Path("set/images/1").with_suffix(Path(name).suffix)
        path.write_bytes(damaged[:cut])
        try:
            load("set")
        except SystemExit as error:
            assert error.code == 2
            refusals += 1
        lines = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
        assert len(lines) <= 1
        path.unlink()
    assert refusals > 10


def test_masks_stay_where_exif_data_are_damaged(monkeypatch):
    """Then the image is read as it is stored, and so is its mask."""
    pixels = np.zeros((16, 24), dtype=np.uint8)
    pixels[2:6, 3:12] = 255
    for k in range(3):
        photo(f"set/images/{k}.jpg", pixels, 6)
        Path("set/masks").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(f"set/masks/{k}.png")

    def broken(image):
        raise ZeroDivisionError

    monkeypatch.setattr("PIL.ImageOps.exif_transpose", broken)
    train = load("set")[0]
    for image, mask in zip(train.content.images, train.content.masks, strict=True):
        assert image.shape == (1, 16, 24)
        assert ((image[0] > 127) == (mask > 0)).float().mean() > 0.99


def test_a_mask_with_exif_data_of_its_own_is_turned_by_them():
    pixels = np.zeros((16, 24), dtype=np.uint8)
    pixels[2:6, 3:12] = 255
    for k, turn in enumerate((3, 6, 3)):  # by 3 the size stays: turning twice would go unnoticed
        photo(f"set/images/{k}.jpg", pixels, turn)
        photo(f"set/masks/{k}.png", pixels, turn)
    train, _, test = load("set")
    content = train.content, test.content
    assert {image.shape for c in content for image in c.images} == {(1, 24, 16), (1, 16, 24)}
    both = [(c.images, c.masks) for c in content]
    for image, mask in (pair for some in both for pair in zip(*some, strict=True)):
        assert ((image[0] > 127) == (mask > 0)).float().mean() > 0.99


def test_alpha_masks_without_anything_opaque_are_empty():
    Image.new("RGBA", (30, 20), (255, 255, 255, 0)).save("empty.png")
    assert read_mask(Path("empty.png")).max() == 0
    Image.new("RGBA", (30, 20), (255, 255, 255, 255)).save("full.png")
    assert read_mask(Path("full.png")).min() == 255


def test_whole_numbers_stored_as_real_ones(refused):
    Image.fromarray(np.array([[0, 1], [2, 1]], dtype=np.float32)).save("real.tif")
    assert read_mask(Path("real.tif")).tolist() == [[0, 1], [2, 1]]
    for odd in (0.5, -1, np.nan, np.inf, 1e12):
        Image.fromarray(np.array([[0, odd]], dtype=np.float32)).save("odd.tif")
        assert "whole numbers" in refused(read_mask, Path("odd.tif"))


def test_what_lies_beside_images_is_said_to_be_left_out(capsys):
    make("set")
    assert "left out" not in printed("set", capsys)[1]
    make("set/test", 2)
    Path("set/notes").mkdir()
    assert "test beside images/ is left out" in printed("set", capsys)[1]


def test_training_masks_that_mark_nothing_are_counted(capsys):
    make("set")
    for k in (0, 1, 2):
        Image.new("L", (30, 20)).save(f"set/masks/{k}.png")
    line = printed("set", capsys, fold=1)[1]
    blank = sum(
        name in ("0.png", "1.png", "2.png") for name in load("set", fold=1)[0].content.names
    )
    assert f"{blank} of 4 training masks mark nothing" in line


@pytest.mark.parametrize(("w0", "sigma"), [(10.0, 5.0), (10.0, 20.0), (3.0, 1.0)])
def test_border_weights_reach_as_far_as_they_are_something(w0, sigma):
    from unet.data import reach_of
    from unet.model import border_weights

    labels = torch.zeros(20, 400, dtype=torch.int32)
    gap = round(4.5 * sigma)
    labels[8:12, 2:6], labels[8:12, 6 + gap : 16 + gap] = 1, 2
    reach = reach_of(w0, sigma)
    cut = border_weights(*two_distances(labels, reach), w0, sigma)
    whole = border_weights(*two_distances(labels, 1000), w0, sigma)
    assert (cut - whole).abs().max() < 1e-12
    assert whole.max() > 0
    assert reach_of(10.0, 20.0) > 150
