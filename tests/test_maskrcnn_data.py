"""Mask R-CNN's data: what is read of each kind, what is refused, augmentation, and the scores."""

import json
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_masks

from common.data.batches import Draw
from common.data.shapes import bound
from common.device import Device
from maskrcnn import data, sample, scores, train
from maskrcnn.augment import change, exposed, mirrored, transposed

SQUARE = [4, 3, 14, 3, 14, 9, 4, 9]  # 10 x 6 pixels


def picture(path, size=(30, 20), seed=0, **settings):
    """An image of noise; its width and height are `size`."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **settings)


def coco(annotations, images=4, size=(30, 20), path="set.json", save=True, **entry):
    """A file of COCO's format whose annotations (segmentation, more) are of the image 0."""
    rows = []
    for number, given in enumerate(annotations):
        segmentation, more = given if isinstance(given, tuple) else (given, {})
        row = {"id": number, "image_id": 0, "category_id": 7, "bbox": [4, 3, 10, 6], "iscrowd": 0}
        rows.append(row | {"segmentation": segmentation} | more)
    for number in range(1, images):  # so that every part holds something
        rows.append({"id": 100 + number, "image_id": number, "category_id": 7, "iscrowd": 0,
                     "bbox": [4, 3, 10, 6], "segmentation": [SQUARE]})  # fmt: skip
    listed = [{"id": n, "file_name": f"{n}.png", "width": size[0], "height": size[1]} | entry
              for n in range(images)]  # fmt: skip
    content = {"images": listed, "categories": [{"id": 7, "name": "thing"}], "annotations": rows}
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(json.dumps(content))
    for number in range(images if save else 0):
        picture(Path(path).parent / f"{number}.png", size, number)


def load(*argv, quiet=True):
    args = train.parse_args([*argv, *(["--quiet"] if quiet else []), "--device", "cpu"])
    return data.load_instances(args, Device(args))


def of_image(sets, file="0.png"):
    """The things of an image of `coco`, in whatever part it is."""
    for part in filter(None, sets):
        for number in range(len(part)):
            pixels = torch.from_numpy(np.array(Image.open(file).convert("RGB"))).permute(2, 0, 1)
            (read,) = next(iter(part.read([torch.tensor([number])])))
            if read.shape == pixels.shape and torch.equal(read, pixels):
                return part.things[number], part, number
    raise AssertionError("the image is in no part")


def masks_of(things, size=(30, 20)):
    return data.drawn(things.masks, size)


def plain_square():
    mask = torch.zeros(20, 30, dtype=torch.uint8)
    mask[3:9, 4:14] = 1
    return mask


# ---------------------------------------------------------------------- COCO's format


def lengths(mask):
    """Uncompressed run-lengths of a mask (H, W): columns one after the other, zeros first."""
    flat, counts, value = mask.T.reshape(-1).tolist(), [], 0
    for pixel in flat:
        if pixel != value or not counts:
            counts += [0] if not counts and pixel == value else [0, 0] if not counts else [0]
            value = pixel
        counts[-1] += 1
    return {"size": list(mask.shape), "counts": counts}


def compressed(mask):
    coded = coco_masks.encode(np.asfortranarray(mask.numpy()))
    return {"size": coded["size"], "counts": coded["counts"].decode()}


@pytest.mark.parametrize("kind", ["polygon", "single", "lengths", "compressed"])
def test_outlines_of_every_kind(kind):
    mask = plain_square()
    written = {"polygon": [SQUARE], "single": SQUARE, "lengths": lengths(mask),
               "compressed": compressed(mask)}[kind]  # fmt: skip
    coco([written])
    things, part, number = of_image(load("--data", "coco:set.json"))
    assert torch.equal(masks_of(things)[0], mask)
    assert things.objects.boxes.tolist() == [[4, 3, 14, 9]]
    target = part.target(number)
    assert target["labels"].tolist() == [1]  # 0 is the background
    assert torch.equal(target["masks"][0], mask)


def test_parts_of_an_object_are_one_mask():
    coco([[SQUARE, [20, 10, 26, 10, 26, 15, 20, 15]]])
    things, *_ = of_image(load("--data", "coco:set.json"))
    assert len(things) == 1
    assert int(masks_of(things).sum()) == 60 + 30


def test_what_is_dropped_is_counted(capsys):
    """Polygons of two points, and masks without a pixel; an object with a good polygon stays."""
    empty = lengths(torch.zeros(20, 30, dtype=torch.uint8))
    coco([[[1, 1, 5, 5]], [SQUARE, [1, 1, 5, 5]], empty, [[2.1, 2.1, 2.2, 2.1, 2.2, 2.2]], []])
    things, *_ = of_image(load("--data", "coco:set.json", quiet=False))
    assert len(things) == len(things.masks) == 1
    said = capsys.readouterr().out
    assert "2 polygons of fewer than three points dropped" in said
    assert "3 masks without a pixel dropped" in said


def test_bad_outlines(refused):
    mask = plain_square()
    cases = [
        ({"size": [10, 10], "counts": [100]}, "mask has 10x10 pixels, its image 30x20"),
        ({"size": [20, 30], "counts": [5, 7]}, "12 pixels"),
        ({"size": [20, 30], "counts": [700, -100]}, "damaged"),
        ({"size": [20, 30]}, "'counts'"),
        ({"size": "large", "counts": []}, "damaged"),
        ({"size": [20, 30], "counts": "@@@@"}, "a count is -32"),
        ({"size": [20, 30], "counts": ""}, "0 pixels"),
        ({"size": [20, 30], "counts": compressed(mask)["counts"][:-1]}, "within a count"),
        ({"size": [20, 30], "counts": compressed(mask)["counts"][:-3]}, "pixels"),
        ({"size": [20, 30], "counts": "c26~~"}, "no compressed counts"),
        ({"size": [20, 30], "counts": "d\u00e4"}, "damaged"),
        ([[1, 2, "x", 4, 5, 6]], "x and y in turn"),
        ([[1, 2, 3, 4, 5, 6, 7]], "x and y in turn"),
        ([[1, 2, 3, 4, 5, float("nan")]], "x and y in turn"),
        ([[1, 2, 3, 1e9, 5, 6]], "a polygon reaches to 1e+09, far outside"),
        ("outline", "neither a list of polygons nor run-lengths"),
        (None, "no segmentation"),
    ]
    for number, (written, words) in enumerate(cases):
        coco([written], save=not number)
        line = refused(load, "--data", "coco:set.json")
        assert words in line, line
        assert "annotation 0" in line and "0.png" in line, line
    assert int(mask.sum()) == 60


def test_compressed_run_lengths_are_pycocotools():
    for _ in range(100):
        height, width = torch.randint(1, 60, (2,)).tolist()
        mask = (torch.rand(height, width) > torch.rand(())).to(torch.uint8)
        found = data.read_run_lengths(compressed(mask), (width, height), "here")
        assert found.tolist() == mask.tolist()


def test_boxes_that_graze_the_image_are_dropped(capsys):
    """A hair's breadth within it would be no area at all after rounding."""
    coco([([SQUARE], {"bbox": [29.99999, 5, 9, 6]}), ([SQUARE], {"bbox": [4, 3, 1e-6, 6]}),
          ([SQUARE], {"bbox": [30, 5, 9, 6]}), [SQUARE]])  # fmt: skip
    things, *_ = of_image(load("--data", "coco:set.json", quiet=False))
    assert things.objects.boxes.tolist() == [[4, 3, 14, 9]]
    said = capsys.readouterr().out
    assert "2 boxes of zero area skipped, 1 box outside the image skipped" in said


def test_boxes_alone_suffice_without_masks():
    """Faster R-CNN reads files without outlines."""
    coco([None])
    things, part, number = of_image(load("--data", "coco:set.json", "--model", "fasterrcnn_small"))
    assert things.masks is None
    assert "masks" not in part.target(number)


def test_crowds_are_not_trained_on_and_held_against_nobody():
    crowd = lengths(torch.ones(20, 30, dtype=torch.uint8))
    coco([[SQUARE], (crowd, {"iscrowd": 1, "bbox": [0, 0, 30, 20]})])
    things, part, number = of_image(load("--data", "coco:set.json"))
    assert things.objects.difficult.tolist() == [False, True]
    assert part.target(number)["boxes"].tolist() == [[4, 3, 14, 9]]
    assert len(part.target(number)["masks"]) == 1
    own = scores.truth_of([things], [(30, 20)], ["thing"])
    mask = plain_square()
    far = torch.zeros(20, 30, dtype=torch.uint8)
    far[12:18, 20:28] = 1  # within the crowd alone
    boxes, both = torch.tensor([[20.0, 12, 28, 18], [4, 3, 14, 9]]), torch.stack([far, mask])
    answer = scores.Answer(boxes, torch.tensor([0.9, 0.8]), torch.zeros(2).long(),
                           data.run_lengths(both))  # fmt: skip
    for kind in ("box", "mask"):
        found = scores.scores_of(scores.precisions(own, scores.as_coco([answer], [0]), kind))
        assert found["ap"] == pytest.approx(1.0)


def test_categories_with_gaps_keep_their_ids():
    coco([([SQUARE], {"category_id": 90}), ([SQUARE], {"category_id": 3})])
    content = json.loads(Path("set.json").read_text())
    names = {90: "b", 7: "thing", 3: "a", 8: "b"}  # two of one name are one class
    content["categories"] = [{"id": key, "name": name} for key, name in names.items()]
    Path("set.json").write_text(json.dumps(content))
    things, part, _ = of_image(load("--data", "coco:set.json"))
    assert things.objects.labels.tolist() == [0, 2]
    assert part.facts["classes"] == ["b", "thing", "a"] and part.facts["ids"] == [90, 7, 3]
    answer = perfect(things)
    found = sample.as_json([Path("0.png")], [(30, 20)], [answer], part.facts)
    assert [row["category_id"] for row in found["annotations"]] == [90, 3]
    assert {row["id"]: row["name"] for row in found["categories"]} == {90: "b", 7: "thing", 3: "a"}
    older = {"classes": part.facts["classes"]}  # a checkpoint from before
    found = sample.as_json([Path("0.png")], [(30, 20)], [answer], older)
    assert [row["category_id"] for row in found["annotations"]] == [1, 3]


def test_grey_images_are_read_in_colour():
    coco([[SQUARE]])
    grey = Image.open("0.png").convert("L")
    grey.save("0.png")
    things, part, number = of_image(load("--data", "coco:set.json"))
    (pixels,) = next(iter(part.read([torch.tensor([number])])))
    assert pixels.tolist() == [np.asarray(grey).tolist()] * 3 and len(things) == 1


def test_boxes_in_corners_and_crowds_in_words_are_seen(capsys):
    """A bbox of corners doesn't fit its outline: so much is said; iscrowd "0" is no crowd."""
    coco([([SQUARE], {"bbox": [4, 3, 14, 9], "iscrowd": "0"}), (SQUARE, {"bbox": [4, 3, 14, 9]}),
          ([SQUARE], {"iscrowd": False}), ([SQUARE], {"iscrowd": "1"}),
          ([SQUARE], {"iscrowd": True})])  # fmt: skip
    things, *_ = of_image(load("--data", "coco:set.json", quiet=False))
    assert things.objects.difficult.tolist() == [False] * 3 + [True] * 2
    assert "2 boxes in set.json overlapping the polygons by less than half" in (
        capsys.readouterr().out)  # fmt: skip
    coco([[SQUARE]])
    load("--data", "coco:set.json", quiet=False)
    assert "overlapping" not in capsys.readouterr().out


def test_outlines_drawn_on_another_size_or_before_exif_turned_the_image(capsys):
    """As boxes: scaled along, and turned along, polygons as well as run-lengths."""
    for kind in ("polygon", "lengths"):
        mask = plain_square()
        written = [SQUARE] if kind == "polygon" else lengths(mask)
        coco([written], images=5, path=f"{kind}/set.json")
        large = Image.open(f"{kind}/0.png").resize((60, 40), Image.Resampling.NEAREST)
        large.save(f"{kind}/0.png")
        things, *_ = of_image(load("--data", f"coco:{kind}/set.json"), f"{kind}/0.png")
        assert things.objects.boxes.tolist() == [[8, 6, 28, 18]]
        drawn = masks_of(things, (60, 40))[0]
        assert int(drawn.sum()) == 4 * 60
        assert int(drawn[6:18, 8:28].sum()) == 4 * 60
        exif = Image.Exif()
        exif[0x0112] = 6  # to be turned by a quarter, clockwise
        coco([written], images=5, path=f"turned/{kind}.json")
        for number in range(5):
            picture(f"turned/{number}.png", seed=number, exif=exif)
        sets = load("--data", f"coco:turned/{kind}.json")
        part = next(part for part in sets if part)
        assert part.sizes[0] == (20, 30)
        wanted = torch.rot90(mask, -1)
        for part in filter(None, sets):
            for things in part.things:
                assert torch.equal(masks_of(things, (20, 30))[0], wanted), kind


def test_train_and_val_files_are_parts():
    """As COCO's own: annotations/instances_train2017.json and images in train2017/."""
    for part, count in (("train", 5), ("val", 3)):
        name = f"annotations/instances_{part}2017.json"
        coco([[SQUARE]], count, path=name, save=False)
        for number in range(count):
            picture(f"{part}2017/{number}.png", seed=number)
    parts = load("--data", "coco:annotations/instances_train2017.json")
    assert [part and len(part) for part in parts] == [5, None, 3]


def test_nothing_to_learn(refused):
    coco([], images=1)
    content = json.loads(Path("set.json").read_text())
    content["images"] += [
        {"id": n, "file_name": "0.png", "width": 30, "height": 20} for n in (1, 2)
    ]
    Path("set.json").write_text(json.dumps(content))
    assert "no objects" in refused(load, "--data", "coco:set.json")


def test_streamed_images_are_the_same():
    coco([[SQUARE]], 6)
    argv = ["--data", "coco:set.json", "--batch-size", "2", "--no-augment"]
    batches = []
    for more in (["--no-stream"], ["--stream", "--workers", "0"]):
        part = load(*argv, *more)[0]
        batches.append(list(part.batches(2)))
        assert part.facts["mean"] == pytest.approx(load(*argv)[0].facts["mean"], abs=1e-6)
    assert isinstance(part.images, data.AnyFiles)
    for (images, targets, places), (others, wanted, same) in zip(*batches, strict=True):
        assert torch.equal(places, same)
        for one, other in zip([*images, *(t["masks"] for t in targets)],
                              [*others, *(t["masks"] for t in wanted)], strict=True):  # fmt: skip
            assert torch.equal(one, other)
    Path(part.images.paths[0]).write_bytes(b"no image")
    with pytest.raises(SystemExit):
        list(part.batches(2))


# ---------------------------------------------------------------------- label maps


def label_maps(root, count=10, kind="labels", size=(24, 16)):
    """Images of grey noise; of image k the numbers 1 and 3 + k, and for k = 0 nothing."""
    for number in range(count):
        labels = np.zeros((size[1], size[0]), dtype=np.uint8)
        if number:
            labels[2:6, 3:8], labels[8:14, 10 : 12 + number % 5] = 1, 3 + number
        for folder, pixels in (("images", np.random.default_rng(number).integers(
                0, 255, labels.shape, dtype=np.uint8)), (kind, labels)):  # fmt: skip
            Path(root, folder).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(Path(root, folder, f"{number}.png"))


@pytest.mark.parametrize("kind", ["labels", "masks"])
def test_label_maps(kind):
    label_maps("own", kind=kind)
    train_part, val, test = load("--data", "masks:own", "--folds", "5")
    assert (len(train_part), val, len(test)) == (8, None, 2)
    assert train_part.facts["classes"] == ["object"]
    counts = sorted(len(things) for part in (train_part, test) for things in part.things)
    assert counts == [0] + [2] * 9
    full = next(number for number in range(8) if len(train_part.things[number]))
    target = train_part.target(full)
    assert target["boxes"][0].tolist() == [3, 2, 8, 6]
    assert target["masks"][0].sum() == 20 and target["masks"].shape[1:] == (16, 24)
    images, targets, places = next(iter(train_part.batches(8)))
    assert all(image.shape == (3, 16, 24) and image.max() <= 1 for image in images)
    assert [len(t["labels"]) for t in targets] == [len(train_part.things[i]) for i in places]


def test_objects_of_a_label_map(monkeypatch):
    """Boxes and masks of every number, whatever the numbers are, few masks in memory at a time."""
    counts, encode = [], data.run_lengths
    monkeypatch.setattr(data, "run_lengths", lambda m: counts.append(len(m)) or encode(m))
    labels = torch.randint(0, 50, (30, 40), dtype=torch.int32) ** 2 * 500_000  # with gaps
    for some in (labels, labels + 7, labels * 0, labels * 0 + 3):
        boxes, masks = data.numbered_objects(some)
        numbers = [number for number in some.unique().tolist() if number]
        wanted = torch.stack([some == number for number in numbers]) if numbers else some[:0, None]
        assert torch.equal(data.drawn(masks, (40, 30)).bool().view_as(wanted), wanted.bool())
        assert boxes.tolist() == (bound(wanted).tolist() if numbers else [])
    assert max(counts) == 16


def test_label_maps_of_16_bits():
    """More than 255 objects, or their numbers, are told apart."""
    label_maps("own", 6)
    for number in range(6):
        labels = np.zeros((16, 24), dtype=np.uint16)
        labels[2:6, 3:8], labels[2:6, 10:12] = 300, 300 + 256
        Image.fromarray(labels).save(f"own/labels/{number}.png")
    train_part, _, _ = load("--data", "masks:own", "--folds", "2")
    assert train_part.things[0].objects.boxes.tolist() == [[3, 2, 8, 6], [10, 2, 12, 6]]
    assert masks_of(train_part.things[0], (24, 16)).sum((1, 2)).tolist() == [20, 8]


def test_folds_are_those_of_the_segmenter():
    """Each image is held out once; and `unet`'s folds, which claims.py compares with, are these."""
    from common.data.masks import cut_fold, read_part

    label_maps("nuclei_dsb2018")
    seen = []
    for fold in range(5):
        argv = ["--data", "nuclei", "--data-dir", ".", "--folds", "5", "--fold", str(fold)]
        train_part, _, test = load(*argv)
        assert (len(train_part), len(test)) == (8, 2)
        seen += [image.sum().item() for image in test.images]
    whole = read_part(Path("nuclei_dsb2018/images"), Path("nuclei_dsb2018/labels"), True, None,
                      {}, Device(train.parse_args(["--quiet"])))  # fmt: skip
    assert sorted(seen) == sorted(3 * image.sum().item() for image in whole.images)
    part = cut_fold(whole, types.SimpleNamespace(data="nuclei", folds=5, fold=4))[1]
    assert [3 * image.sum().item() for image in part.images] == seen[-2:]


def test_a_tree_with_parts():
    for part, count in (("train", 6), ("test", 2)):
        label_maps(f"own/{part}", count)
    assert [part and len(part) for part in load("--data", "masks:own")] == [6, None, 2]


def test_bad_label_maps(refused, capsys):
    assert "no such folder" in refused(load, "--data", "masks:nowhere")
    assert "there is no data/nuclei_dsb2018" in refused(load, "--data", "nuclei")
    label_maps("own")
    assert "--fold 7" in refused(load, "--data", "masks:own", "--fold", "7")
    assert "too many" in refused(load, "--data", "masks:own", "--folds", "40")
    Image.new("L", (9, 9)).save("own/labels/3.png")
    line = refused(load, "--data", "masks:own")
    assert "differ in size" in line and "3.png" in line
    Path("own/labels/3.png").unlink()
    assert "3.png has no mask" in refused(load, "--data", "masks:own")
    label_maps("one", 6)
    for number in range(6):
        Image.fromarray(np.full((16, 24), 255, dtype=np.uint8)).save(f"one/labels/{number}.png")
    load("--data", "masks:one", quiet=False)
    assert "the number 255 alone" in capsys.readouterr().out


# ---------------------------------------------------------------------- shapes, and boxes alone


@pytest.fixture
def few_scenes(monkeypatch):
    monkeypatch.setattr("common.data.boxes.NUM_SCENES", {"train": 12, "test": 4})


def test_scenes(few_scenes):
    part, val, test = load("--min-size", "64", "--val", "3")
    assert [len(part), len(val), len(test)] == [9, 3, 4]
    assert part.facts["classes"][0] == "circle"
    for number, things in enumerate(test.things):
        masks = masks_of(things, (64, 64))
        assert len(masks) == len(things) and masks.any(2).any(1).all()
        for mask, (left, top, right, bottom) in zip(masks, things.objects.boxes.int().tolist(),
                                                    strict=True):  # fmt: skip
            rows, columns = mask.any(1).nonzero()[:, 0], mask.any(0).nonzero()[:, 0]
            assert [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1] == [
                left,
                top,
                right,
                bottom,
            ]
        assert test.sizes[number] == (64, 64)
    assert len({len(things) for things in (*part.things, *test.things)}) > 1


def test_boxes_alone_ask_for_faster_rcnn(refused):
    Path("own/Annotations").mkdir(parents=True)
    for number in range(4):
        picture(f"own/JPEGImages/{number}.jpg", seed=number)
        box = "<xmin>5</xmin><ymin>4</ymin><xmax>14</xmax><ymax>9</ymax>"
        Path(f"own/Annotations/{number}.xml").write_text(
            f"<annotation><object><name>cat</name><bndbox>{box}</bndbox></object></annotation>"
        )
    argv = ["--data", "voc:own"]
    assert train.parse_args(argv).model == "fasterrcnn_small"
    assert train.parse_args([*argv, "--paper"]).model == "fasterrcnn_resnet50_fpn"
    line = refused(train.parse_args, [*argv, "--model", "maskrcnn_small"])
    assert "has boxes alone" in line and "fasterrcnn_small" in line
    part = load(*argv)[0]
    assert part.things[0].masks is None
    assert part.target(0)["boxes"].tolist() == [[4, 3, 14, 9]]


# ---------------------------------------------------------------------- augmentation


def marked(size=(8, 6)):
    """An image whose object is brighter: its box and mask tell where."""
    image, mask = torch.zeros(3, size[1], size[0]), torch.zeros(1, size[1], size[0])
    image[:, 1:3, 2:5] = mask[:, 1:3, 2:5] = 1
    target = {"boxes": torch.tensor([[2.0, 1, 5, 3]]), "labels": torch.tensor([4]), "masks": mask}
    return image, target


def agrees(image, target):
    """Whether the box and the mask are where the image is bright."""
    rows, columns = image[0].any(1).nonzero()[:, 0], image[0].any(0).nonzero()[:, 0]
    box = [int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1]
    return target["boxes"].int().tolist() == [box] and torch.equal(image[0], target["masks"][0])


def test_boxes_and_masks_are_carried_along():
    image, target = marked()
    for changed in (mirrored(image, target, 1), mirrored(image, target, 2),
                    transposed(image, target)):  # fmt: skip
        assert agrees(*changed)
        assert not torch.equal(changed[0], image)
        assert changed[1]["labels"].tolist() == [4]
    image, target = marked((6, 6))
    draw = Draw([("step", 0, 0, 0)], 200, slice(None), torch.device("cpu"))
    for mirror, ways in (("no", 1), ("sideways", 2), ("both", 8)):
        images, targets = change([image] * 200, [target] * 200, draw, mirror, 1.0)
        assert all(map(agrees, images, targets))
        assert len({tuple(i.flatten().tolist()) for i in images}) == ways
        boxes = {key: value for key, value in target.items() if key != "masks"}
        change([image] * 200, [boxes] * 200, draw, mirror, 1.0)  # Faster R-CNN's


def test_exposure_stays_within_its_bounds():
    image = torch.rand(3, 5, 5)
    torch.testing.assert_close(exposed(image, 1.0, 1.0), image)
    assert exposed(image * 0.4, 2.0, 1.0).mean() == pytest.approx(
        0.8 * float(image.mean()), rel=1e-5
    )
    draw = Draw([("step", 0, 0, 0)], 300, slice(None), torch.device("cpu"))
    images, _ = change([image * 0.4] * 300, [{}] * 300, draw, "no", 1.5)
    means = torch.stack([i.mean() for i in images]) / (0.4 * image.mean())
    assert 0.6 < means.min() < 0.75 and 1.35 < means.max() < 1.5
    assert all(i.min() >= 0 and i.max() <= 1 for i in images)


def test_augmentation_is_a_function_of_the_step():
    coco([[SQUARE]], 6)
    part = load("--data", "coco:set.json", "--val", "0")[0]
    once, again = (
        [images for images, *_ in part.batches(
            2, lambda i, t, d: change(i, t, d, "both", 1.3))]
        for _ in range(2)
    )  # fmt: skip
    assert all(torch.equal(a, b) for x, y in zip(once, again, strict=True)
               for a, b in zip(x, y, strict=True))  # fmt: skip


# ---------------------------------------------------------------------- scores


def perfect(things):
    count = len(things)
    return scores.Answer(things.objects.boxes, torch.linspace(0.9, 0.5, count),
                         things.objects.labels, things.masks)  # fmt: skip


def test_scores(few_scenes):
    """Right answers have 1, none has 0, shifted ones between; missing ones lower recall."""
    test = load("--min-size", "64")[2]
    answers = [perfect(things) for things in test.things]
    metrics, curves = scores.measure(answers, test)
    for key in ("box_ap", "box_ap50", "mask_ap", "mask_ap50", "mask_ap75"):
        assert metrics[key] == pytest.approx(1.0)
    assert not [key for key in metrics if key.endswith("_large")]  # none is 96 pixels wide
    nothing = scores.Answer(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0).long(), [])
    metrics, curves = scores.measure([nothing] * len(test), test)
    assert metrics["box_ap"] == metrics["mask_ap50"] == 0.0
    scores.draw_curves(curves["box"], test.facts["classes"], Path("none.png"))
    shifted = [a._replace(boxes=a.boxes + torch.tensor([2.0, 0, 2, 0])) for a in answers]
    metrics, curves = scores.measure(shifted, test)
    assert metrics["mask_ap"] == pytest.approx(1.0)  # masks are where they were
    assert metrics["box_ap"] < 0.98 <= metrics["box_ap50"]
    scores.draw_curves(curves["box"], test.facts["classes"], Path("some.png"))
    assert Path("some.png").exists() and Path("none.png").exists()
    half = [answers[0], *[nothing] * (len(test) - 1)]
    assert scores.measure(half, test)[0]["mask_ap50"] < 0.9
    wrong = [a._replace(labels=(a.labels + 1) % 10) for a in answers]
    assert scores.measure(wrong, test)[0]["box_ap50"] < 0.2


@pytest.mark.parametrize("kind", ["none", "crowds", "difficult"])
def test_where_nothing_can_be_measured_there_are_no_scores(kind):
    """Without objects, with crowds alone, and with difficult boxes alone, whatever is found."""
    boxes, labels = torch.tensor([[4.0, 3, 14, 9]]), torch.zeros(1, dtype=torch.int64)
    masks = None if kind == "difficult" else data.run_lengths(plain_square()[None])
    answer = scores.Answer(boxes, torch.tensor([0.9]), labels, masks)
    none = scores.Answer(boxes[:0], torch.zeros(0), labels[:0], masks and [])
    for flags, wanted in (([True], {}), ([False], None)):
        things = data.Things(data.Objects(boxes, labels, torch.tensor(flags)), masks)
        if kind == "none" and flags[0]:
            things = data.Things(data.Objects(boxes[:0], labels[:0], torch.zeros(0).bool()), [])
        images = types.SimpleNamespace(things=[things], sizes=[(30, 20)],
                                       facts={"classes": ["a"]})  # fmt: skip
        for found, value in ((answer, 1.0), (none, 0.0)):
            metrics, curves = scores.measure([found], images)
            if wanted is None:
                assert metrics["box_ap"] == pytest.approx(value)
            else:
                assert metrics == curves == wanted


def test_parts_without_anything_to_measure_are_named(capsys, refused):
    for part in ("train", "val", "test"):
        coco([[SQUARE]], 3, path=f"{part}.json", save=part == "train")
    content = json.loads(Path("val.json").read_text())
    for row in content["annotations"]:
        row["iscrowd"] = 1
    Path("val.json").write_text(json.dumps(content))
    argv = ["--data", "coco:train.json", "--val", "3"]
    load(*argv, quiet=False)
    said = capsys.readouterr().out
    assert (
        "the validation set has no objects but crowds or difficult ones: nothing to measure" in said
    )
    assert "--patience waits for its scores" in refused(load, *argv, "--patience", "1")
    Path("val.json").write_text(json.dumps(content | {"annotations": []}))
    load(*argv, quiet=False)
    assert "the validation set has no objects: nothing to measure" in capsys.readouterr().out


def test_scores_by_size():
    """Below 32 x 32 pixels small, above 96 x 96 large: an object found alone counts in its own."""
    sides = {"small": 20, "medium": 60, "large": 120}
    boxes = torch.tensor([[5.0, 5, 5 + side, 5 + side] for side in sides.values()])
    labels = torch.arange(3)
    none = torch.zeros(3, dtype=torch.bool)
    truth = scores.truth_of([data.Things(data.Objects(boxes, labels, none), None)], [(200, 200)],
                            list("abc"))  # fmt: skip
    answer = scores.Answer(boxes[1:2], torch.tensor([0.9]), labels[1:2], None)
    found = scores.scores_of(scores.precisions(truth, scores.as_coco([answer], [0]), "box"))
    assert (found["ap_small"], found["ap_medium"], found["ap_large"]) == (0, pytest.approx(1), 0)
    assert found["ap"] == pytest.approx(1 / 3)


def test_boxes_alone_have_pascals_measure_too():
    boxes = torch.tensor([[0.0, 0, 10, 10], [20, 20, 40, 40]])
    objects = data.Objects(boxes, torch.tensor([0, 1]), torch.zeros(2).bool())
    images = types.SimpleNamespace(things=[data.Things(objects, None)], sizes=[(50, 50)],
                                   facts={"classes": ["a", "b"]})  # fmt: skip
    answer = scores.Answer(boxes[:1], torch.tensor([0.9]), torch.tensor([0]), None)
    metrics, curves = scores.measure([answer], images)
    assert [metrics[key] for key in ("map50", "box_ap50")] == pytest.approx([0.5, 0.5])
    assert list(curves) == ["box"] and "mask_ap" not in metrics


def test_answers_of_the_model():
    masks = torch.zeros(2, 1, 8, 9)
    masks[0, 0, 2:4, 3:7], masks[1] = 0.6, 0.4
    found = {"boxes": torch.rand(2, 4), "scores": torch.tensor([0.9, 0.1]),
             "labels": torch.tensor([3, 1]), "masks": masks}  # fmt: skip
    answer = scores.answer_of(found)
    assert answer.labels.tolist() == [2, 0]
    drawn = data.drawn(answer.masks, (9, 8))
    assert drawn[0].sum() == 8 and drawn[0, 2:4, 3:7].all() and not drawn[1].any()
    assert scores.answer_of({k: v for k, v in found.items() if k != "masks"}).masks is None


def test_overlaps():
    truth = torch.tensor([[0.0, 0, 10, 10], [50, 50, 60, 60]])
    assert scores.overlaps(torch.tensor([[0.0, 0, 10, 5]]), truth).tolist() == [0.5, 0.0]
    assert scores.overlaps(torch.zeros(0, 4), truth).tolist() == [0, 0]
