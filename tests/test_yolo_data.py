"""Data sets of boxes, their augmentation, and what detectors share: suppression and precision."""

import argparse
import colorsys
import json
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image, ImageOps

from common import detection
from common import precision as pascal
from common.data import boxes as data
from common.data.batches import Draw
from common.data.boxes import Objects, load_boxes
from common.detection import Found
from common.device import Device
from yolo import augment

XML = """<annotation><filename>{file}</filename>{objects}</annotation>"""
OBJECT = """<object><name>{0}</name><difficult>{5}</difficult><bndbox><xmin>{1}</xmin>
<ymin>{2}</ymin><xmax>{3}</xmax><ymax>{4}</ymax></bndbox></object>"""


def voc(root, images, lists=None, size=(40, 20)):
    """A folder in Pascal's layout: {name: [(class, xmin, ymin, xmax, ymax, difficult)]}."""
    for name in ("Annotations", "JPEGImages", "ImageSets/Main"):
        Path(root, name).mkdir(parents=True, exist_ok=True)
    for name, objects in images.items():
        Image.new("RGB", size, (len(name) * 9, 80, 40)).save(f"{root}/JPEGImages/{name}.jpg")
        text = "".join(OBJECT.format(*o) for o in objects)
        Path(root, "Annotations", f"{name}.xml").write_text(
            XML.format(file=f"{name}.jpg", objects=text)
        )
    for name, members in (lists or {}).items():
        Path(root, "ImageSets/Main", f"{name}.txt").write_text("\n".join(members) + "\n")


def arguments(name, **changes):
    values = dict(
        data=name, data_dir="data", val=0, limit=None, seed=0, typed=[], chosen=[], device="cpu",
        precision="fp32", accumulate=1, clip=None, compile=False, fsdp=False, quiet=False,
        stream=None, workers=0, stored={},
    )  # fmt: skip
    return argparse.Namespace(**values | changes)


def load(name, size=16, **changes):
    args = arguments(name, **changes)
    return load_boxes(args, Device(args), size)


def one(n=4, **changes):
    return {f"i{k}": [("cat", 1, 1, 20, 10, 0)] for k in range(n)} | changes


# ---------------------------------------------------------------------- reading


def test_voc_folder(capsys):
    images = one(
        first=[("dog", 11, 6, 20, 15, 0), ("cat", 1, 1, 40, 20, 1)],
        flat=[("cat", 5, 5, 5, 9, 0), ("cat", 3, 3, 9, 9, 0), ("cat", 9, 9, 9, 12, 0)],
        wide=[("dog", -5, 0, 50, 10, 0), ("dog", 60, 5, 70, 9, 0)],
    )
    lists = {"train": ["first", "flat"], "val": ["i0", "i1"], "test": ["wide", "i2"]}
    voc("mine", images, lists)
    train, val, test = load("voc:mine", val=5)
    assert train.facts["classes"] == ["cat", "dog"]
    assert (len(train), len(val), len(test)) == (2, 2, 2)
    # pixels count from 1 and both corners belong: 11 to 20 are ten pixels
    boxes, labels, difficult = train.truth(0)
    assert boxes.tolist() == [[10, 5, 20, 15], [0, 0, 40, 20]]
    assert (labels.tolist(), difficult.tolist()) == ([1, 0], [False, True])
    assert train.labels.tolist() == [[1, -1], [0, -1]]  # the difficult one isn't trained on
    assert len(train.truth(1).labels) == 1
    assert test.truth(0).boxes.tolist() == [[0, 0, 40, 10]]
    said = capsys.readouterr().out
    assert (
        "2 boxes of zero area skipped, 1 box outside the image skipped, "
        "1 box reaching out of the image clipped"
    ) in said
    assert "2 boxes to train on" in said
    train, val, _ = load("voc:mine")  # without validation it is trained on
    assert (len(train), val) == (4, None)


def test_boxes_become_shares():
    voc("mine", {"a": [("cat", 11, 6, 20, 15, 0)], "b": [("cat", 1, 1, 40, 20, 0)]},
        {"train": ["a"], "test": ["b"]})  # fmt: skip
    train, _, test = load("voc:mine", size=16)
    torch.testing.assert_close(train.boxes[0, 0], torch.tensor([0.25, 0.25, 0.5, 0.75]))
    assert test.boxes[0, 0].tolist() == [0, 0, 1, 1]
    assert train.images.pixels.shape == (1, 3, 16, 16)
    assert train.images.pixels.dtype == torch.uint8


def test_lists_that_are_not_there(refused):
    voc("mine", one(10))
    train, _, test = load("voc:mine")
    assert (len(train), len(test)) == (8, 2)
    voc("mine", one(10), {"train": ["i0", "i1"], "val": ["i2"]})
    train, _, test = load("voc:mine")
    assert (len(train), len(test)) == (2, 1)
    assert "nowhere" in refused(load, "voc:nowhere")
    voc("single", one(1))
    assert "can't be split" in refused(load, "voc:single")
    voc("none", {"a": [], "b": [], "c": []})
    assert "no boxes" in refused(load, "voc:none")


def test_what_annotations_name_must_be_there(refused):
    voc("mine", one(4), {"train": ["i0", "i1"], "test": ["i2", "i9"]})
    assert "i9.xml" in refused(load, "voc:mine")
    Path("mine/ImageSets/Main/test.txt").write_text("i2\n")
    Path("mine/JPEGImages/i1.jpg").unlink()
    assert "i1.jpg" in refused(load, "voc:mine")
    Path("mine/JPEGImages/i1.jpg").write_text("no image")
    assert "i1.jpg is not a readable image" in refused(load, "voc:mine")
    voc("mine", one(4, i2=[("cta", 1, 1, 5, 5, 0)]))
    line = refused(load, "voc:mine")
    assert "i2.xml" in line
    assert "did you mean cat?" in line
    Path("mine/classes.txt").write_text("cat\ncta\n")
    assert load("voc:mine")[0].facts["classes"] == ["cat", "cta"]
    text = XML.format(file="i2.jpg", objects=OBJECT.format("cat", "x", 1, 2, 3, 0))
    nameless = XML.format(file="i2.jpg", objects=OBJECT.format(" ", 1, 1, 2, 3, 0))
    boxless = XML.format(file="i2.jpg", objects="<object/>")
    for bad in ("<annotation>", "", boxless, text, nameless):
        Path("mine/Annotations/i2.xml").write_text(bad)
        assert "i2.xml is damaged" in refused(load, "voc:mine")


def test_bccd_and_voc_where_they_are_not(refused, monkeypatch):
    assert "BCCD" in refused(load, "bccd")

    def offline(root, *_args, **_kwargs):
        Path(root, "VOCdevkit").mkdir(parents=True)
        raise OSError("no route to host")

    monkeypatch.setattr(torchvision.datasets, "VOCDetection", offline)
    for name in ("voc2007", "voc2012", "voc0712"):
        line = refused(load, name)
        assert "trainval.txt" in line
        assert "--data shapes" in line
    assert not Path("data").exists()


def test_the_years_of_voc(monkeypatch, capsys):
    for year in ("2007", "2012"):
        lists = {"train": ["i0"], "val": ["i1"], "trainval": ["i0", "i1"]}
        lists |= {"test": ["i2", "i3"]} if year == "2007" else {}
        voc(f"data/VOCdevkit/VOC{year}", one(4), lists)
    train, val, test = load("voc2007")
    assert (len(train), val, len(test), test.points) == (2, None, 2, 11)
    train, val, test = load("voc0712")
    assert (len(train), len(test), test.points) == (4, 2, 11)
    train, val, test = load("voc0712", val=1)
    assert (len(train), len(val), len(test)) == (2, 2, 2)
    capsys.readouterr()
    train, val, test = load("voc2012")
    assert (len(train), len(test), test.points) == (1, 1, 0)
    assert "val set is the test set" in capsys.readouterr().out
    assert len(data.VOC) == 20


def test_names_stay_in_their_folder(refused):
    voc("mine", one(3), {"train": ["i0"], "test": ["../secret"]})
    Path("mine/secret.xml").write_text(XML.format(file="i0.jpg", objects=""))
    assert "not below" in refused(load, "voc:mine")
    voc("mine", one(3), {"train": ["i0"], "test": ["i1"]})
    path = Path("mine/Annotations/i1.xml")
    path.write_text(path.read_text().replace("i1.jpg", "/home/other/i1.jpg"))
    assert "mine/JPEGImages/i1.jpg" in str(
        data.voc_folder(arguments("voc:mine")).parts["test"].images[0]
    )
    coco("set/train.json", images=[{"id": 10, "file_name": "../gone.png"}], annotations=[])
    assert "not below" in refused(load, "coco:set/train.json")


def coco(path, **changes):
    content = {
        "images": [{"id": 10 + k, "file_name": f"{k}.png"} for k in range(5)],
        "categories": [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}],
        "annotations": [
            {"id": 1, "image_id": 10, "category_id": 7, "bbox": [10, 5, 20, 10], "iscrowd": 0},
            {"id": 2, "image_id": 11, "category_id": 3, "bbox": [30, 5, 20, 10], "iscrowd": 1},
            {"id": 3, "image_id": 12, "category_id": 3, "bbox": [30, 5, 0, 10]},
            {"id": 4, "image_id": 13, "category_id": 3, "bbox": [0, 5, 9, 10]},
        ],
    }
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content | changes))
    for k in range(5):
        Image.new("RGB", (40, 20)).save(path.parent / f"{k}.png")


def test_coco_file(capsys, refused):
    coco("mine/train.json")
    source = data.coco(arguments("coco:mine/train.json"))
    assert (len(source.parts["train"]), len(source.parts["test"]), source.classes) == (
        4,
        1,
        ["cat", "dog"],
    )
    assert "1 box of zero area skipped, 1 box reaching out" in source.note
    coco("mine/val.json")
    train, _, test = load("coco:mine/train.json")
    assert (len(train), len(test)) == (5, 5)
    assert train.truth(0).boxes.tolist() == [[10, 5, 30, 15]]
    assert train.truth(1).boxes.tolist() == [[30, 5, 40, 15]]
    assert train.truth(1).difficult.tolist() == [True]
    assert len(train.truth(4).labels) == 0
    assert "val.json is the test set" in capsys.readouterr().out
    bad = {"id": 9, "image_id": 99, "category_id": 3, "bbox": [0, 0, 5, 5]}
    coco("mine/train.json", annotations=[bad])
    assert "annotation 9 names image 99" in refused(load, "coco:mine/train.json")
    coco("mine/train.json", annotations=[bad | {"image_id": 10, "category_id": 5}])
    assert "annotation 9 names class 5" in refused(load, "coco:mine/train.json")
    coco("mine/train.json", annotations=[bad | {"image_id": 10, "bbox": [1, 2, 3]}])
    assert "train.json" in refused(load, "coco:mine/train.json")
    coco("mine/train.json", images=[{"id": 10, "file_name": "gone.png"}], annotations=[])
    assert "gone.png" in refused(load, "coco:mine/train.json")
    Path("mine/train.json").write_text("{")
    assert "train.json" in refused(load, "coco:mine/train.json")
    assert "nothing.json" in refused(load, "coco:nothing.json")
    assert "coco:mine" in refused(load, "coco:mine")


def test_shapes_know_their_boxes():
    train, val, test = load("shapes", size=48, limit=30, val=10)
    assert (len(train), len(val), len(test)) == (30, 10, data.NUM_SCENES["test"])
    boxes, labels = train.boxes, train.labels
    assert labels.min() == -1
    assert 0 <= labels.max() < 10
    there = boxes[labels >= 0]
    assert (there[:, 2:] > there[:, :2]).all()
    assert there.min() >= 0
    assert there.max() <= 1
    assert (labels >= 0).sum(1).max() <= data.MAX_OBJECTS


def test_val_and_flags(refused):
    voc("mine", one(6), {"train": ["i0", "i1", "i2"], "val": ["i3"], "test": ["i4"]})
    assert "validation set of its own" in refused(lambda: load("voc:mine", val=2, typed=["val"]))
    assert "leaves nothing" in refused(lambda: load("shapes", val=2500, chosen=["val"]))


# ---------------------------------------------------------------------- where boxes lie

WAYS = {  # of Pillow from the image as it is seen to the stored one, by EXIF's orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_270,
}  # fmt: skip


def photo(root, name, orientation=1, stored=True, said="true", scale=1, suffix="jpg"):
    """A photo with a white thing, turned by EXIF, and its box as `stored` or as it is seen.

    The annotation gives the "true" size of what the box was drawn on, or its sides "exchanged",
    or "no" size, or zeros.
    """
    for folder in ("Annotations", "JPEGImages"):
        Path(root, folder).mkdir(parents=True, exist_ok=True)
    image = Image.new("L", (90, 60))
    image.paste(255, (60, 9, 81, 24))
    file = image.transpose(WAYS[orientation]) if orientation > 1 else image
    exif = Image.Exif()
    exif[data.ORIENTATION] = orientation
    file.convert("RGB").save(f"{root}/JPEGImages/{name}.{suffix}", exif=exif, quality=95)
    drawn_on = file if stored else image
    size = [scale * side for side in drawn_on.size]
    left, top, right, bottom = (scale * v for v in drawn_on.getbbox())
    objects = OBJECT.format("cat", left + 1, top + 1, right, bottom, 0)
    size = {"true": size, "exchanged": size[::-1], "zeros": [0, 0], "no": None}[said]
    text = "<size><width>{}</width><height>{}</height></size>".format(*size) if size else ""
    Path(root, f"Annotations/{name}.xml").write_text(
        XML.format(file=f"{name}.{suffix}", objects=text + objects)
    )


def parts_of(name, **changes):
    """All images of a set, squeezed to 60x60, with their boxes in shares."""
    train, _, test = load(name, size=60, **changes)
    pixels = torch.cat([part.images.pixels for part in (train, test)])
    return pixels, torch.cat([part.boxes[:, 0] for part in (train, test)])


def check_boxes(name, count):
    """Each box lies on the white thing of its image."""
    pixels, boxes = parts_of(name)
    assert len(pixels) == count
    for image, box in zip(pixels, boxes, strict=True):
        assert box.tolist() == pytest.approx(bright(image.float().numpy()), abs=1.5 / 60)
        assert box.tolist() == pytest.approx([60 / 90, 9 / 60, 81 / 90, 24 / 60], abs=0.01)


@pytest.mark.parametrize("suffix", ["jpg", "tif", "png"])
@pytest.mark.parametrize("stored", [True, False], ids=["stored", "seen"])
def test_boxes_of_photos_that_exif_turns(stored, suffix, capsys):
    for orientation in range(1, 9):
        photo("mine", f"p{orientation}", orientation, stored, suffix=suffix)
    check_boxes("voc:mine", 8)
    said = capsys.readouterr().out
    assert ("boxes of 7 images drawn before EXIF's turn: turned along" in said) == stored
    assert ("EXIF turns 3 images and nothing says" in said) != stored  # those that keep their sides


def test_photos_that_say_nothing_follow_the_others(capsys):
    for k, orientation in enumerate((2, 3, 4)):
        photo("mirrored", f"p{k}", orientation, stored=False)
    check_boxes("voc:mirrored", 3)  # nobody says anything: as it is seen
    assert "EXIF turns 3 images and nothing says" in capsys.readouterr().out
    for orientation in (2, 5, 6, 8):
        photo("silent", f"p{orientation}", orientation, said="no")
        photo("zeros", f"p{orientation}", orientation, said="zeros")
    check_boxes("voc:silent", 4)  # some boxes lie outside of the image as it is seen
    check_boxes("voc:zeros", 4)
    capsys.readouterr()
    for k in range(2):
        photo("both", f"a{k}", 6)
        photo("both", f"b{k}", 8, stored=False)
        photo("both", f"c{k}", 2, stored=False)
    check_boxes("voc:both", 6)
    assert "boxes of 2 images drawn before EXIF's turn" in capsys.readouterr().out


@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_boxes_drawn_at_another_size(orientation, capsys):
    photo("mine", "a", orientation, scale=2)
    photo("mine", "b", 6, scale=3)
    photo("mine", "c", orientation, scale=1)
    check_boxes("voc:mine", 3)
    assert "boxes of 2 images drawn at another size: scaled" in capsys.readouterr().out


def test_sizes_that_do_not_fit(refused, capsys):
    photo("mine", "a", said="exchanged")
    photo("mine", "b")
    check_boxes("voc:mine", 2)  # tools that mistake rows for columns
    assert "width and height exchanged for 1 image whose boxes fit" in capsys.readouterr().out
    text = Path("mine/Annotations/a.xml").read_text()
    outside = text.replace("<ymax>24<", "<ymax>80<")
    square = text.replace("<width>60<", "<width>90<")
    for wrong, size in ((outside, "60x90"), (square, "90x90")):
        Path("mine/Annotations/a.xml").write_text(wrong)
        line = refused(load, "voc:mine")
        assert "a.xml: the boxes of a.jpg" in line
        assert f"{size} pixels, but it has 90x60" in line
    nothing = XML.format(file="a.jpg", objects="<size><width>70</width><height>9</height></size>")
    Path("mine/Annotations/a.xml").write_text(nothing)
    load("voc:mine", limit=1)  # without boxes there is nothing to misplace


@pytest.mark.parametrize("error", [ZeroDivisionError, SyntaxError])
def test_damaged_exif(error, monkeypatch):
    """Some releases of Pillow fail on it: then the image is read as it is stored."""
    for k in range(2):
        photo("mine", f"p{k}", 6, stored=True, said="true")

    def fail(*_args, **_kwargs):
        raise error("division by zero")

    turn = ImageOps.exif_transpose
    monkeypatch.setattr(ImageOps, "exif_transpose", fail)
    train, *_ = load("voc:mine", size=60)
    assert train.sizes == [(60, 90)]
    box = bright(train.images.pixels[0].float().numpy())
    assert train.boxes[0, 0].tolist() == pytest.approx(box, abs=1.5 / 60)
    # one that fails beside others, whose boxes are turned along
    photo("mine", "p3", 3, stored=True)
    damaged = lambda image: fail() if image.getexif()[data.ORIENTATION] == 3 else turn(image)  # noqa: E731
    monkeypatch.setattr(ImageOps, "exif_transpose", damaged)
    pixels, boxes = parts_of("voc:mine")
    for image, box in zip(pixels, boxes, strict=True):
        assert box.tolist() == pytest.approx(bright(image.float().numpy()), abs=1.5 / 60)


def test_cocos_sizes(capsys, refused):
    photo("mine", "a", 6)
    Path("mine/images").mkdir()
    Path("mine/JPEGImages/a.jpg").rename("mine/images/a.jpg")
    with Image.open("mine/images/a.jpg") as image:
        assert image.size == (60, 90)
        left, top, right, bottom = image.convert("L").point(lambda v: 255 * (v > 128)).getbbox()
    box = [left, top, right - left, bottom - top]
    for scale, words in ((1, "drawn before EXIF"), (2, "at another size: scaled")):
        content = {
            "images": [{"id": k, "file_name": "a.jpg", "width": 60 * scale, "height": 90 * scale}
                       for k in range(2)],
            "categories": [{"id": 1, "name": "cat"}],
            "annotations": [{"id": k, "image_id": k, "category_id": 1,
                             "bbox": [scale * v for v in box]} for k in range(2)],
        }  # fmt: skip
        Path("mine/train.json").write_text(json.dumps(content))
        check_boxes("coco:mine/train.json", 2)
        said = capsys.readouterr().out
        assert words in said
        assert "1 image listed again in train.json" in said
    content["images"][0]["width"] = 77
    Path("mine/train.json").write_text(json.dumps(content))
    assert "drawn on 77x180 pixels, but it has 90x60" in refused(load, "coco:mine/train.json")


# ---------------------------------------------------------------------- names


def test_which_image_an_annotation_means(refused):
    voc("mine", one(4), {"train": ["i0", "i1"], "test": ["i2", "i3"]})

    def image_of(name):
        source = data.voc_folder(arguments("voc:mine"))
        files = [file for part in source.parts.values() for file in part.images]
        return Path(files[int(name[1])]).name

    text = Path("mine/Annotations/i1.xml").read_text()
    for file in ("i0.jpg", "i1.jpg", "", "gone.jpg"):  # of another image, its own, none, nowhere
        Path("mine/Annotations/i1.xml").write_text(text.replace("i1.jpg", file))
        assert image_of("i1") == "i1.jpg", file
    for side in ("i1.txt", "i1.json", "i1.jpg.bak"):
        Path("mine/JPEGImages", side).write_text("no image")
    assert image_of("i1") == "i1.jpg"
    Path("mine/JPEGImages/i1.jpg").rename("mine/JPEGImages/other.v2.jpg")
    for file in ("other.v2.jpg", "C:\\data\\other.v2.jpg", "/home/other.v2.jpg", "other.v2"):
        Path("mine/Annotations/i1.xml").write_text(text.replace("i1.jpg", file))
        assert image_of("i1") == "other.v2.jpg", file
    Image.new("RGB", (40, 20)).save("mine/JPEGImages/i1.png")
    assert image_of("i1") == "i1.png"
    Image.new("RGB", (40, 20)).save("mine/JPEGImages/i1.bmp")
    assert "i1.xml may mean i1.bmp or i1.png" in refused(load, "voc:mine")
    Path("mine/Annotations/i1.xml").write_text(text.replace("i1.jpg", "i1.bmp"))
    assert image_of("i1") == "i1.bmp"


def test_names_of_every_kind(capsys):
    names = ["a b", "a 1", "c[1]", "d*", "e.v2", "sub/f", "Münze"]
    voc("mine", one(2))
    for name in names:
        Path("mine/JPEGImages", name).parent.mkdir(exist_ok=True)
        Path("mine/Annotations", name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (40, 20)).save(f"mine/JPEGImages/{name}.jpg")
        text = XML.format(file="", objects=OBJECT.format("cat", 1, 1, 20, 10, 0))
        Path(f"mine/Annotations/{name}.xml").write_text(text)
    lines = ["a b", "a 1 -1", "a 1", "c[1]  1", "d*\t0", "e.v2", "sub/f", "Münze 1", ""]
    wanted = ["a b", "a 1", "a 1", "c[1]", "d*", "e.v2", "sub/f", "Münze"]
    path = Path("mine/ImageSets/Main/train.txt")
    Path("mine/ImageSets/Main/test.txt").write_text("i0 1\ni1 -1\n")
    decomposed = unicodedata.normalize("NFD", "\n".join(lines))
    for raw in (
        "\n".join(lines).encode(),
        "\r\n".join(lines).encode("utf-8-sig"),
        "\n".join(lines).encode("latin-1"),
        "\n".join(lines).encode("utf-16"),
        decomposed.encode(),
    ):
        path.write_bytes(raw)
        parts = data.voc_folder(arguments("voc:mine")).parts
        files = [Path(file).relative_to("mine/JPEGImages") for file in parts["train"].images]
        assert [str(file.with_suffix("")) for file in files] == wanted
        assert len(parts["test"]) == 2
    for raw in ("katze\nhündchen\n".encode("latin-1"), "katze\nhündchen".encode("utf-8-sig")):
        Path("mine/classes.txt").write_bytes(raw)
        assert data.VocFolder(Path("mine")).annotations
        assert data.lines_of(Path("mine/classes.txt")) == ["katze", "hündchen"]


def test_what_is_left_out_is_hidden_or_said(capsys, refused):
    voc("mine", one(5))
    Path("mine/Annotations/._i0.xml").write_bytes(b"\0\1")  # what macOS leaves behind
    Path("mine/.Trash").mkdir()
    Path("mine/Annotations").rename("elsewhere")
    Path("mine/Annotations").symlink_to(Path("elsewhere").resolve())
    train, _, test = load("voc:mine")
    assert len(train) + len(test) == 5
    voc("mine", {}, {"train": ["i0", "i1"], "test": ["i2"]})
    capsys.readouterr()
    load("voc:mine")
    assert "2 annotations in no list left out" in capsys.readouterr().out
    Path("mine/ImageSets/Main/test.txt").unlink()
    train, _, test = load("voc:mine")
    assert (len(train), len(test)) == (1, 1)  # a fifth, at least one, of what the list names
    Path("mine/classes.txt").write_text("cat\ndog\ncat\n")
    assert "names cat twice" in refused(load, "voc:mine")


def test_latin_1_in_annotations(refused):
    voc("mine", one(3))
    text = Path("mine/Annotations/i1.xml").read_text().replace(">cat<", ">köter<")
    Path("mine/Annotations/i1.xml").write_bytes(text.encode("latin-1"))
    assert load("voc:mine")[0].facts["classes"] == ["cat", "köter"]
    Path("mine/Annotations/i1.xml").write_bytes(text.encode("latin-1")[:-5])
    assert "i1.xml is damaged" in refused(load, "voc:mine")


def test_boxes_that_are_all_skipped_are_counted(refused):
    voc("mine", {f"i{k}": [("cat", 5, 5, 5, 9, 0)] for k in range(4)})
    line = refused(load, "voc:mine")
    assert "its training set has no boxes" in line
    assert "4 boxes of zero area skipped" in line


def test_parts_without_boxes_are_named(capsys):
    voc("mine", one(2, x=[]), {"train": ["i0", "i1"], "test": ["x"]})
    load("voc:mine")
    assert "the test set has no boxes: nothing to measure" in capsys.readouterr().out


def test_what_a_coco_file_may_not_say(refused, capsys):
    coco("mine/train.json")
    content = json.loads(Path("mine/train.json").read_text())
    images, categories, box = content["images"], content["categories"], content["annotations"][0]
    for changes, words in (
        (dict(images=[*images, images[0] | {"file_name": "1.png"}]), "two images have the id 10"),
        (dict(categories=[*categories, {"id": 3, "name": "cow"}]), "two categories have the id 3"),
        (dict(annotations=[box | {"bbox": []}]), "annotation 1 has the bbox []"),
        (dict(annotations=[box | {"bbox": None}]), "annotation 1 has the bbox None"),
        (dict(annotations=[box | {"bbox": "1234"}]), "annotation 1 has the bbox 1234"),
        (dict(annotations=[{k: v for k, v in box.items() if k != "bbox"}]), "1 has no bbox"),
        (dict(annotations=[{k: v for k, v in box.items() if k not in ("id", "bbox")}]),
         "annotation number 0 has no bbox"),
        (dict(annotations=[{k: v for k, v in box.items() if k != "image_id"}]), "'image_id'"),
        (dict(images=[{"id": 10}], annotations=[]), "'file_name' is missing"),
        (dict(categories=[{"id": 3}], annotations=[]), "'name' is missing"),
        (dict(categories="cat"), "is not an annotation file"),
    ):  # fmt: skip
        coco("mine/train.json", **changes)
        assert words in refused(load, "coco:mine/train.json"), words
    for text in ("[]", '{"images": []}', "3"):
        Path("mine/train.json").write_text(text)
        assert "is not an annotation file" in refused(load, "coco:mine/train.json")
    capsys.readouterr()
    coco("mine/train.json", categories=[*categories, {"id": 9, "name": "cat"}])
    assert load("coco:mine/train.json")[0].facts["classes"] == ["cat", "dog"]
    assert "categories of one name taken for one class: cat" in capsys.readouterr().out
    annotations = [{k: v for k, v in a.items() if k != "id"} for a in content["annotations"]]
    coco("mine/train.json", annotations=annotations)
    load("coco:mine/train.json")  # nobody needs the ids of annotations
    assert capsys.readouterr().out.count("\n") == 1  # pycocotools prints nothing


def test_encodings_of_coco_files(monkeypatch):
    coco("mine/train.json", categories=[{"id": 3, "name": "Münze"}, {"id": 7, "name": "dog"}])
    text = json.dumps(json.loads(Path("mine/train.json").read_text()), ensure_ascii=False)
    for encoding in ("utf-8", "utf-8-sig", "latin-1", "utf-16"):
        Path("mine/train.json").write_bytes(text.encode(encoding))
        assert load("coco:mine/train.json")[0].facts["classes"] == ["Münze", "dog"]


def test_files_beside_that_of_training(capsys):
    for folder in ("Train", "valid", "test"):
        coco(f"mine/{folder}/_annotations.coco.json")
    train, val, test = load("coco:mine/Train/_annotations.coco.json")
    assert (len(train), val, len(test)) == (5, None, 5)
    train, val, test = load("coco:mine/Train/_annotations.coco.json", val=5)
    assert (len(train), len(val), len(test)) == (5, 5, 5)
    said = capsys.readouterr().out
    assert "valid/_annotations.coco.json is the val set" in said
    assert "test/_annotations.coco.json is the test set" in said
    for name in ("instances_Train2017", "instances_val2017", "instances_test2017"):
        coco(f"other/{name}.json")
    train, val, test = load("coco:other/instances_Train2017.json", val=5)
    assert (len(train), len(val), len(test)) == (5, 5, 5)
    assert "instances_test2017.json is the test set" in capsys.readouterr().out


# ---------------------------------------------------------------------- batches


def test_batches_are_functions_of_seed_epoch_and_step():
    voc("mine", {f"i{k}": [("cat", 1 + k, 1, 20, 10, 0)] for k in range(20)},
        {"train": [f"i{k}" for k in range(16)], "test": ["i17", "i18", "i19"]})  # fmt: skip

    def change(images, boxes, labels, draw):
        return augment.random_scale_and_shift(images, boxes, labels, draw, 0.2, 0.2)

    def epochs(**changes):
        train, _, test = load("voc:mine", **changes)
        batches = train.batches(8, change)
        batches.seek(3, 0)
        content = [torch.cat([b[k] for b in batches]) for k in range(4)]
        assert [len(b[0]) for b in test.batches(2)] == [2, 1]
        assert torch.cat([b[3] for b in test.batches(2)]).tolist() == [0, 1, 2]
        batches.seek(3, 1)
        rest = torch.cat([b[1] for b in batches])
        torch.testing.assert_close(rest, content[1][8:])
        return content

    whole = epochs()
    assert sorted(whole[3].tolist()) == list(range(16))
    for changes in (dict(accumulate=4), dict(stream=True)):
        for a, b in zip(whole, epochs(**changes), strict=True):
            torch.testing.assert_close(a, b)
    assert not torch.equal(whole[1], epochs(seed=1)[1])


# ---------------------------------------------------------------------- augmentation


def draw_of(count, key=0):
    return Draw([("test", key)], count, slice(0, count), torch.device("cpu"))


def bright(image):
    """The box of what is brighter than half, in shares."""
    rows, columns = (np.flatnonzero((image[0] > 128).any(axis)) for axis in (1, 0))
    height, width = image.shape[1:]
    return [
        columns[0] / width,
        rows[0] / height,
        (columns[-1] + 1) / width,
        (rows[-1] + 1) / height,
    ]


@pytest.mark.parametrize("kind", ["zoom", "sideways", "upside down", "all"])
def test_boxes_are_carried_along(kind):
    count, size = 64, 128
    generator = torch.Generator().manual_seed(0)
    corner = torch.randint(10, 60, (count, 2), generator=generator)
    box = torch.cat([corner, corner + torch.randint(12, 50, (count, 2), generator=generator)], 1)
    images = torch.zeros(count, 3, size, size, dtype=torch.uint8)
    for i, (left, top, right, bottom) in enumerate(box.tolist()):
        images[i, :, top:bottom, left:right] = 255
    boxes, labels = box[:, None] / size, torch.zeros(count, 1, dtype=torch.long)
    before = boxes.clone()
    draw = draw_of(count)
    if kind in ("zoom", "all"):
        images, boxes, labels = augment.random_scale_and_shift(
            images, boxes, labels, draw, 0.2, 0.2
        )
    if kind in ("sideways", "all"):
        images, boxes = augment.random_mirror(images, boxes, draw)
    if kind in ("upside down", "all"):
        images, boxes = augment.random_mirror(images, boxes, draw, vertical=True)
    assert (boxes - before).abs().max() > 0.1
    checked = 0
    for image, moved, label in zip(images, boxes[:, 0], labels[:, 0], strict=True):
        if label >= 0:
            assert moved.tolist() == pytest.approx(bright(image.float().numpy()), abs=1.1 / size)
            checked += 1
    assert checked > 50


def test_boxes_that_leave_lose_their_label():
    class Fixed:
        def uniform(self, low, high, *shape):
            return torch.tensor([[0.0, 1.0, 0.0]])  # no scaling, 0.2 to the right

    images = torch.zeros(1, 3, 20, 20, dtype=torch.uint8)
    boxes = torch.tensor([[[0.85, 0.1, 0.95, 0.3], [0.7, 0, 1, 1], [0.79, 0, 1, 1]]])
    labels = torch.tensor([[1, 2, 3]])
    images, moved, labels = augment.random_scale_and_shift(images, boxes, labels, Fixed(), 0.2, 0.2)
    assert labels.tolist() == [[-1, 2, -1]]
    assert moved[0, 1].tolist() == pytest.approx([0.9, 0, 1, 1])
    assert images[0, 0, 0].tolist() == pytest.approx([127.5] * 4 + [0.0] * 16, abs=1e-3)


def test_exposure_is_that_of_hsv():
    images = torch.randint(0, 256, (200, 3, 1, 1), generator=torch.Generator().manual_seed(0))
    images = torch.cat([images, torch.tensor([0, 0, 0, 255, 255, 255, 255, 0, 0]).view(3, 3, 1, 1)])
    changed = augment.random_exposure(images.byte(), draw_of(len(images)), 1.5)
    draw = draw_of(len(images))
    size, up = draw.uniform(1, 1.5, 2), draw.uniform(0, 1, 2) < 0.5
    factors = torch.where(up, size, 1 / size)
    assert factors.max() > 1.4
    assert factors.min() < 0.7
    for before, after, (s, v) in zip(images, changed, factors.tolist(), strict=True):
        h, old_s, old_v = colorsys.rgb_to_hsv(*(before.flatten() / 255).tolist())
        wanted = colorsys.hsv_to_rgb(h, min(1, old_s * s), min(1, old_v * v))
        assert (after.flatten() / 255).tolist() == pytest.approx(wanted, abs=1e-4)


# ---------------------------------------------------------------------- detection


def random_boxes(count, generator, size=100.0):
    corner = torch.rand(count, 2, generator=generator) * size * 0.7
    return torch.cat([corner, corner + 5 + torch.rand(count, 2, generator=generator) * 25], 1)


def iou(a, b):
    across = min(a[2], b[2]) - max(a[0], b[0])
    down = min(a[3], b[3]) - max(a[1], b[1])
    both = max(across, 0) * max(down, 0)
    return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both)


def test_suppression_is_that_of_a_loop():
    generator = torch.Generator().manual_seed(0)
    boxes, scores = random_boxes(60, generator), torch.rand(60, 4, generator=generator)
    pairs = sorted(((float(scores[n, k]), n, k) for n in range(60) for k in range(4)), reverse=True)
    kept = []
    for score, n, k in pairs:
        rivals = (m for _, m, other in kept if other == k)
        if score > 0.3 and all(iou(boxes[n].tolist(), boxes[m].tolist()) <= 0.5 for m in rivals):
            kept.append((score, n, k))
    found = detection.suppress(boxes, scores, 0.3, most=1000)
    assert found.labels.tolist() == [k for _, _, k in kept]
    assert torch.equal(found.boxes, boxes[[n for _, n, _ in kept]])
    assert len(detection.suppress(boxes, scores, 0.3, most=7).boxes) == 7
    assert len(detection.suppress(boxes, scores, 1.0).boxes) == 0


def random_detections(images=30, classes=3, difficult=0.2):
    generator = torch.Generator().manual_seed(1)
    found, truth = [], []
    for _ in range(images):
        m = int(torch.randint(0, 6, (), generator=generator))
        boxes = random_boxes(m, generator)
        labels = torch.randint(classes, (m,), generator=generator)
        hard = torch.rand(m, generator=generator) < difficult
        truth.append(Objects(boxes, labels, hard))
        near = boxes.repeat(2, 1) + torch.randn(2 * m, 4, generator=generator) * 2
        guesses = torch.cat([near, random_boxes(3, generator)])
        names = torch.cat([labels.repeat(2), torch.randint(classes, (3,), generator=generator)])
        scores, order = torch.rand(len(guesses), generator=generator).sort(descending=True)
        found.append(Found(guesses[order], scores, names[order]))
    return found, truth


def devkit(found, truth, label, least=0.5):
    """Precision and recall as Pascal's devkit computes them, one detection after the other."""
    wanted = sum(int(((t.labels == label) & ~t.difficult).sum()) for t in truth)
    rows = [
        (float(score), image, box.tolist())
        for image, f in enumerate(found)
        for box, score, k in zip(*f, strict=True)
        if k == label
    ]
    right, wrong, taken, curve = 0, 0, set(), []
    for _, image, box in sorted(rows, key=lambda row: -row[0]):
        best, place = -1.0, None
        for j, (other, k) in enumerate(
            zip(truth[image].boxes.tolist(), truth[image].labels, strict=True)
        ):
            if k == label and iou(box, other) > best:
                best, place = iou(box, other), j
        if best >= least:
            if truth[image].difficult[place]:
                continue
            if (image, place) in taken:
                wrong += 1
            else:
                right += 1
                taken.add((image, place))
        else:
            wrong += 1
        curve.append((right / (right + wrong), right / wanted))
    return np.array(curve).T


def test_average_precision_is_the_devkits():
    found, truth = random_detections()
    precisions, curves = pascal.average_precisions(found, truth, 4)
    for label in range(3):
        precision, recall = devkit(found, truth, label)
        np.testing.assert_allclose(curves[label][0], precision)
        np.testing.assert_allclose(curves[label][1], recall)
        area = sum(  # VOC 2010: the highest precision at any recall from there on
            (r - q) * precision[i:].max()
            for i, (q, r) in enumerate(zip([0, *recall], recall, strict=False))
        )
        assert precisions[label] == pytest.approx(area)
        levels = [max([*precision[recall >= t / 10 - 1e-9], 0.0]) for t in range(11)]
        points = pascal.average_precision(precision, recall, 11)
        assert points == pytest.approx(sum(levels) / 11)
    assert precisions[3] is None


def test_average_precision_by_hand():
    box = torch.tensor([[0.0, 0, 10, 10]])
    there = Objects(box, torch.tensor([0]), torch.tensor([False]))
    nothing = Found(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0).long())
    twice = Found(box.repeat(2, 1), torch.tensor([0.9, 0.8]), torch.tensor([0, 0]))
    assert pascal.average_precisions([nothing], [there], 1)[0] == [0.0]
    assert pascal.average_precisions([twice], [there], 1)[0] == [1.0]
    # the second box on an object is wrong: right, wrong, right
    [(precision, recall)] = pascal.precision_recall(
        [twice, twice._replace(scores=torch.tensor([0.7, 0.1]))], [there, there], 1
    )
    assert precision.tolist() == pytest.approx([1, 1 / 2, 2 / 3, 1 / 2])
    assert recall.tolist() == [0.5, 0.5, 1, 1]
    assert pascal.average_precision(precision, recall) == pytest.approx(0.5 + 0.5 * 2 / 3)
    eleven = (6 * 1 + 5 * 2 / 3) / 11
    assert pascal.average_precision(precision, recall, 11) == pytest.approx(eleven)
    half = box * torch.tensor([1, 1, 1, 0.5])  # an IoU of exactly 0.5 counts
    exact = Found(half, torch.tensor([0.9]), torch.tensor([0]))
    assert pascal.average_precisions([exact], [there], 1)[0] == [1.0]


def test_cocos_precision():
    sizes, names = [(100, 100)] * 30, ["a", "b", "c"]
    found, truth = random_detections(difficult=0)
    exact = [Found(t.boxes, torch.ones(len(t.labels)), t.labels) for t in truth]
    assert detection.coco_precision(exact, truth, sizes, names) == pytest.approx(1.0)
    # boxes that keep 0.72 of their area pass 5 of the 10 thresholds
    narrow = [
        f._replace(
            boxes=torch.stack([*f.boxes.T[:3], f.boxes[:, 1] * 0.28 + f.boxes[:, 3] * 0.72], 1)
        )
        for f in exact
    ]
    assert detection.coco_precision(narrow, truth, sizes, names) == pytest.approx(0.5)
    assert (
        detection.coco_precision(found, [Objects(*(x[:0] for x in t)) for t in truth], sizes, names)
        == 0
    )
    # at each threshold Pascal's rules say nearly the same (COCO reads the curve at 101 places)
    means = [
        np.mean([pascal.average_precision(*c) for c in pascal.precision_recall(found, truth, 3, t)])
        for t in np.linspace(0.5, 0.95, 10)
    ]
    assert detection.coco_precision(found, truth, sizes, names) == pytest.approx(
        np.mean(means), abs=0.02
    )


def test_pictures():
    image = Image.new("RGB", (90, 60))
    boxes, labels = torch.tensor([[10.0, 20, 40, 50]]), torch.tensor([1])
    drawn = detection.draw_boxes(image, boxes, labels, ["cat 0.9"])
    assert image.getbbox() is None
    assert drawn.getpixel((10, 35)) == (0x3C, 0xB4, 0x4B)
    assert drawn.getpixel((25, 35)) == (0, 0, 0)
    assert detection.draw_boxes(image, boxes[:0], labels[:0], []).getbbox() is None
    curve = (np.array([1.0, 0.5]), np.array([0.5, 0.5]))
    pascal.draw_curves([curve, None], [0.5, None], ["a", "b"], "out/curves.png")
    assert Path("out/curves.png").exists()
