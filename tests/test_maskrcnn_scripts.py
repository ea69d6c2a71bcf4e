"""Mask R-CNN's scripts: training, resuming, evaluation, samples, claims, and what they refuse."""

import collections
import copy
import itertools
import json
import math
import os
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from conftest import torchrun
from helpers import weights
from PIL import Image
from pycocotools.coco import COCO
from test_maskrcnn_data import SQUARE, coco, label_maps, picture

from common.device import Device
from maskrcnn import claims, sample, train
from maskrcnn.data import load_instances
from maskrcnn.model import RCNN, fasterrcnn_small, maskrcnn_small

TINY = ["--min-size", "48", "--width", "8", "--proposals", "16", "--regions", "8", "--quiet"]
SHORT = [*TINY, "--batch-size", "2", "--val", "2"]
SCORES = {"box_ap", "box_ap50", "box_ap75", "mask_ap", "mask_ap50", "mask_ap75"}


@pytest.fixture(autouse=True)
def few_scenes(monkeypatch):
    monkeypatch.setattr("common.data.boxes.NUM_SCENES", {"train": 10, "test": 3})


def same(a, b):
    assert a.keys() == b.keys()
    assert all(torch.equal(a[key], b[key]) for key in a)


# ---------------------------------------------------------------------- training


def test_a_run_and_its_evaluation(refused):
    metrics = train.main([*SHORT, "--epochs", "2", "--run-dir", "run"])
    assert {f"test_{key}" for key in SCORES} <= metrics.keys()
    losses = {"loss_classifier", "loss_box_reg", "loss_mask", "loss_objectness", "loss_rpn_box_reg"}
    assert losses | {"train_loss"} <= metrics.keys()
    assert metrics["train_loss"] == pytest.approx(sum(metrics[key] for key in losses))
    rows = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert [row.get("epoch") for row in rows] == [1, 2, 2]
    assert {"val_box_ap50", "val_mask_ap50"} <= rows[0].keys()
    assert rows[1]["lr"] < rows[0]["lr"] <= 2e-3
    for name in ("curves", "precision_recall_box", "precision_recall_mask"):
        assert Path(f"run/{name}.png").exists()
    assert Path("run/best.pt").exists()
    measured = ["--evaluate", "run/last.pt", "--run-dir", "again", "--quiet"]
    assert "trains nothing" in refused(train.main, [*measured, "--weights", "run/best.pt"])
    found = train.main(measured)
    assert found == {key: metrics[key] for key in metrics if key.startswith("test_")}
    assert train.parse_args(["--evaluate", "run/last.pt"]).width == 8  # as the run has it


def test_resumed_is_uninterrupted():
    """Bit for bit, within an epoch: order, augmentation and samples are drawn alike."""
    argv = [*SHORT, "--epochs", "2", "--exposure", "1.3", "--min-size", "32", "40", "48"]
    train.main([*argv, "--run-dir", "whole"])
    for steps in ("1", "5", "7"):
        train.main([*argv, "--run-dir", "parts", "--resume", "--max-steps", steps])
    train.main([*argv, "--run-dir", "parts", "--resume"])
    same(weights("whole"), weights("parts"))
    train.main([*argv, "--run-dir", "other", "--seed", "1", "--max-steps", "1"])
    assert not torch.equal(weights("other")["rpn.head.cls_logits.weight"],
                           weights("whole")["rpn.head.cls_logits.weight"])  # fmt: skip


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_steps_and_stays_finite(precision):
    metrics = train.main([*SHORT, "--max-steps", "2", "--precision", precision])
    assert all(map(math.isfinite, metrics.values()))


def test_parts_of_a_step_are_its_mean(monkeypatch):
    """With --accumulate the weights move once a step, along the mean of its parts' gradients."""
    parts, steps, forward, original = [], [], RCNN.forward, torch.optim.AdamW.step

    def noted(self, images, targets=None):
        if self.training:
            parts.append((copy.deepcopy(self), torch.get_rng_state(), images, targets))
        return forward(self, images, targets)

    def step(self, *args, **kwargs):
        steps.append([p.grad.clone() for group in self.param_groups for p in group["params"]])
        return original(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(RCNN, "forward", noted)
        patch.setattr(torch.optim.AdamW, "step", step)
        train.main([*SHORT, "--accumulate", "2", "--max-steps", "1"])
    assert len(steps) == 1 and [len(images) for _, _, images, _ in parts] == [1, 1]
    gradients = []
    for model, state, images, targets in parts:
        torch.set_rng_state(state)  # as the boxes to train on are drawn
        sum(model(images, targets).values()).backward()
        gradients.append([p.grad for p in model.parameters()])
    for found, one, other in zip(*steps, *gradients, strict=True):
        torch.testing.assert_close(found, (one + other) / 2, rtol=1e-4, atol=1e-6)
    assert any(not torch.allclose(one, other) for one, other in zip(*gradients, strict=True))


def two(folder):
    """What the processes of the test below do."""
    sys.argv[1:] = []
    argv = [*SHORT, "--max-steps", "2", "--run-dir", folder]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("common.data.boxes.NUM_SCENES", {"train": 10, "test": 3})
        metrics = train.main(argv)
    Path(folder, f"rank{os.environ['RANK']}.json").write_text(json.dumps(metrics))


def test_two_processes_share_a_step():
    """They end with equal weights and equal figures, of all test images."""
    done = torchrun(__file__, Path.cwd() / "run")
    assert not done.returncode, done.stderr[-2000:]
    one, other = (json.loads(Path(f"run/rank{n}.json").read_text()) for n in "01")
    assert one == other
    found = train.main(["--evaluate", "run/last.pt", "--run-dir", "again", "--quiet"])
    for key, value in found.items():
        assert one[key] == pytest.approx(value, abs=1e-6), key


def test_training_on_files_from_weights(capsys):
    """A run on outlines starts from one on scenes, whose pixels' mean it keeps; new last layers."""
    train.main([*SHORT, "--max-steps", "1", "--run-dir", "first"])
    coco([[SQUARE]], 6)
    argv = ["--data", "coco:set.json", *TINY[:-1], "--batch-size", "2", "--max-steps", "1"]
    argv += ["--weights", "first/last.pt"]
    capsys.readouterr()
    metrics = train.main([*argv, "--freeze", "--run-dir", "second"])
    said = capsys.readouterr().out
    assert "box_predictor.cls_score" in said and "new, for coco:set.json's classes" in said
    assert {f"test_{key}" for key in SCORES} <= metrics.keys()
    before, after = weights("first"), weights("second")
    frozen = ("backbone.fpn", "rpn", "roi_heads.box_head", "backbone.body.conv1")
    for key in (key for key in before if key.startswith(frozen)):
        assert torch.equal(before[key], after[key]), key
    assert after["roi_heads.box_predictor.cls_score.weight"].shape[0] == 2
    facts = [torch.load(f"{name}/last.pt")["dataset"] for name in ("first", "second")]
    assert facts[0]["mean"] == facts[1]["mean"] and facts[1]["classes"] == ["thing"]
    again = train.main(["--evaluate", "second/last.pt", "--run-dir", "again", "--quiet"])
    assert again == {key: metrics[key] for key in again}  # with the mean that it was trained with
    built = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "evaluate", lambda model, *rest: built.append(model.mean) or {})
        train.main(["--evaluate", "second/last.pt", "--run-dir", "other", "--quiet"])
    assert list(built[0]) == facts[0]["mean"]
    moved = train.main([*argv, "--run-dir", "third"])
    assert not torch.equal(weights("third")["backbone.body.conv1.weight"],
                           before["backbone.body.conv1.weight"])  # fmt: skip
    assert moved.keys() == metrics.keys()


def test_faster_rcnn_has_no_masks():
    Path("own/Annotations").mkdir(parents=True)
    for number in range(5):
        picture(f"own/JPEGImages/{number}.jpg", seed=number)
        box = "<xmin>5</xmin><ymin>4</ymin><xmax>14</xmax><ymax>9</ymax>"
        Path(f"own/Annotations/{number}.xml").write_text(
            f"<annotation><object><name>cat</name><bndbox>{box}</bndbox></object></annotation>"
        )
    argv = ["--data", "voc:own", *TINY, "--batch-size", "2", "--max-steps", "1", "--run-dir", "run"]
    metrics = train.main(argv)
    assert "test_box_ap50" in metrics and not [key for key in metrics if "mask" in key]
    found = sample.main(["own/JPEGImages/1.jpg", "--checkpoint", "run/last.pt", "--out", "out",
                         "--threshold", "0.001"])  # fmt: skip
    assert all("segmentation" not in row for row in found["annotations"])
    assert sample.main(["--checkpoint", "run/last.pt", "--out", "sheet"])["images"] == 1


def test_nuclei_are_found_by_fold():
    label_maps("nuclei_dsb2018", 10)
    argv = ["--data", "nuclei", "--data-dir", ".", *TINY, "--folds", "5", "--max-steps", "1"]
    metrics = train.main([*argv, "--batch-size", "2", "--run-dir", "run"])
    own = ["--data", "masks:nuclei_dsb2018", "--run-dir", "own", "--quiet"]  # is measured alike
    found = train.main(["--evaluate", "run/last.pt", *own])
    assert found["test_mask_ap50"] == metrics["test_mask_ap50"]


def test_the_paper_is_one_flag_away():
    args = train.parse_args(["--paper"])
    assert (args.model, args.min_size, args.max_size) == ("maskrcnn_resnet50_fpn", [800], 1333)
    assert (args.norms, args.trainable, args.weights) == ("frozen", 3, "imagenet")
    share = [train.step_size(1000, args, step) for step in (0, 249, 499, 740, 760)]
    assert share == pytest.approx([1 / 500, 0.5, 1, 1, 0.1])  # a tenth after 3/4
    quick = train.parse_args([])
    rise = [train.step_size(1000, quick, step) for step in (0, 99, 999)]
    assert rise[0] < 0.02 < 0.9 < rise[1] and rise[2] < 1e-3
    model = train.build(args.but(min_size=[64], max_size=64), {
        "classes": ["a"], "mean": [0.5] * 3, "std": [0.2] * 3})  # fmt: skip
    learnt = {name.split(".")[2] for name, p in model.named_parameters()
              if p.requires_grad and name.startswith("backbone.body")}  # fmt: skip
    assert learnt == {"layer2", "layer3", "layer4"}


def test_what_is_refused(refused):
    for argv, words in [
        (["--min-size", "300", "--max-size", "200"], "--max-size 200 is below --min-size 300"),
        (["--min-size", "8"], "at least 32"),
        (["--weights", "nowhere.pt"], "there is no such file (or write coco, or imagenet)"),
        (["--freeze"], "add --weights"),
        (["--weights", "coco"], "none for maskrcnn_small, but for maskrcnn_resnet50_fpn"),
        (["--weights", "imagenet"], "none for maskrcnn_small"),
        (["--compile"], "images differ in size"),
        (["--norms", "frozen"], "trains all it has"),
        (["--model", "maskrcnn_resnet50_fpn", "--regions", "9"], "has the paper's"),
        (["--model", "fasterrcnn_small", "--masks", "softmax"], "draws none"),
        (["--no-augment", "--mirror", "both"], "part of --augment"),
        (["--exposure", "0.5"], "from 1 to 4"),
        (["--fold", "1"], "shapes has one"),
        (["--workers", "1"], "always lies in memory"),
        (["--data", "bccd", "--model", "maskrcnn_small"], "has boxes alone"),
        (["--data", "coco:nowhere.json"], "nowhere.json"),
        (["--data", "masks:nowhere"], "no such folder"),
        (["--data", "nuclei"], "there is no data/nuclei_dsb2018"),
        (["--data", "bccd"], "BCCD"),
    ]:
        assert words in refused(train.main, argv), argv
    assert not Path("runs").exists()


# ---------------------------------------------------------------------- samples


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    """A run that has learnt bright squares of its own by heart."""
    folder = tmp_path_factory.mktemp("taught")
    before = Path.cwd()
    os.chdir(folder)
    try:
        coco([[SQUARE]], 5, size=(48, 48))
        content = json.loads(Path("set.json").read_text())
        content["annotations"] = []
        for number in range(5):
            side, left, top = 20, 4 + 4 * number, 22 - 4 * number
            pixels = np.random.default_rng(number).integers(0, 40, (48, 48, 3), dtype=np.uint8)
            pixels[top : top + side, left : left + side, 0] = 220
            Image.fromarray(pixels).save(f"{number}.png")
            polygon = [left, top, left + side, top, left + side, top + side, left, top + side]
            own = {"id": number, "image_id": number, "category_id": 7, "iscrowd": 0}
            own |= {"bbox": [left, top, side, side], "segmentation": [polygon]}
            content["annotations"].append(own)
        Path("set.json").write_text(json.dumps(content))
        argv = ["--data", f"coco:{folder / 'set.json'}", "--min-size", "48", "--width", "8"]
        argv += ["--proposals", "24", "--regions", "12", "--batch-size", "4", "--quiet"]
        argv += ["--lr", "0.005", "--warmup", "5"]
        metrics = train.main([*argv, "--epochs", "60", "--run-dir", "run"])
    finally:
        os.chdir(before)
    return folder, metrics


def test_it_learns(taught):
    assert taught[1]["test_box_ap50"] > 0.9
    assert taught[1]["test_mask_ap50"] > 0.9


def test_samples_of_own_images(taught, capsys, refused, monkeypatch):
    """A table, pictures, and a file that pycocotools reads, in the pixels of each image."""
    folder, _ = taught
    Path("mine").mkdir()
    shutil.copy(folder / "0.png", "mine/small.png")
    large = Image.new("RGB", (144, 96))
    large.paste(Image.open(folder / "1.png").resize((96, 96)))
    large.save("mine/large.png")
    Image.new("RGB", (40, 30)).save("mine/empty.jpg")
    argv = ["--checkpoint", str(folder / "run/last.pt")]
    seen, find = [], sample.find
    with monkeypatch.context() as patch:
        patch.setattr(sample, "find", lambda model, pixels, *rest: seen.append(
            (tuple(pixels.shape), int(pixels.max()))) or find(model, pixels, *rest))  # fmt: skip
        found = sample.main(["mine", *argv, "--out", "out"])
    sizes = [shape for shape, _ in seen]  # the first on a blank image, to warm up, untimed
    assert sizes == [(3, 30, 40), (3, 30, 40), (3, 30, 40), (3, 96, 144), (3, 48, 48)]
    assert seen[0][1] == 0 < seen[-1][1]
    said = capsys.readouterr().out
    assert ", 48 pixels)" in said and "frames a second" in said and "thing" in said
    assert "mine/empty.jpg  nothing over 0.5 (--threshold)" in said
    assert json.loads(Path("out/detections.json").read_text()) == found
    known = COCO("out/detections.json")
    capsys.readouterr()
    by_name = {image["file_name"]: image for image in known.imgs.values()}
    assert known.cats[7]["name"] == "thing"  # as the user's file has it
    for name, box in (("mine/small.png", [4, 22, 20, 20]), ("mine/large.png", [16, 36, 40, 40])):
        image = by_name[name]
        (row, *_) = known.imgToAnns[image["id"]]
        assert row["bbox"] == pytest.approx(box, abs=12)
        mask = known.annToMask(row)
        assert mask.shape == (image["height"], image["width"])
        assert mask.sum() == row["area"] == pytest.approx(box[2] * box[3], rel=0.5)
        left, top = box[0] + box[2] // 2, box[1] + box[3] // 2
        assert mask[top, left] == 1 and 0 < row["score"] <= 1
    for name, size in (("small", (48, 48)), ("large", (144, 96)), ("empty", (40, 30))):
        assert Image.open(f"out/{name}.jpg").size == size
    before = np.asarray(Image.open("mine/small.png").convert("RGB")).astype(int)
    after = np.asarray(Image.open("out/small.jpg").convert("RGB")).astype(int)
    assert abs(before - after)[26:38, 8:20].max() > 40  # tinted
    assert "small.jpg is there" in refused(sample.main, ["mine/small.png", *argv, "--out", "out"])
    capsys.readouterr()
    sample.main(["mine/small.png", *argv, "--out", "json", "--json"])
    said = json.loads(capsys.readouterr().out)  # nothing else
    assert said["images"][0]["file_name"] == "mine/small.png"
    Path("mine/bad.jpg").write_text("no image")
    assert "bad.jpg" in refused(sample.main, ["mine", *argv, "--out", "out2"])


def test_detections_are_scored_by_ones_own_annotations(taught):
    """As the README says; the classes have the ids of the file that was trained on."""
    folder, _ = taught
    files = [str(folder / f"{number}.png") for number in range(5)]
    argv = ["--checkpoint", str(folder / "run/last.pt"), "--threshold", "0.05"]
    sample.main([*files, *argv, "--out", "out"])
    readme = Path(sample.__file__).with_name("README.md").read_text()
    (block,) = (b for b in re.findall(r"```python\n(.*?)```", readme, re.S) if "loadRes" in b)
    content = json.loads((folder / "set.json").read_text())
    for row in content["annotations"]:
        row["area"] = 400  # which pycocotools wants
    Path("truth.json").write_text(json.dumps(content))
    block = block.replace("annotations/instances_test.json", "truth.json")
    found = {}
    exec(block.replace("runs/samples/detections.json", "out/detections.json"), found)
    assert found["measure"].stats[1] > 0.5  # AP at 0.5; ids that don't match would give 0


def test_no_masks_are_drawn_in_vain(monkeypatch):
    """Neither of what is below the threshold, nor to tell how sure the surest box is."""
    picture("photo.png", (60, 50))
    model, drawn = maskrcnn_small(3, 48, width=8).eval(), []
    draw = type(model.roi_heads).draw
    monkeypatch.setattr(type(model.roi_heads), "draw", lambda self, x: drawn.append(len(x))
                        or draw(self, x))  # fmt: skip
    pixels, dev = sample.as_tensor(Image.open("photo.png")), Device(train.parse_args(["--quiet"]))
    with torch.no_grad():
        model.roi_heads.box_predictor.cls_score.bias[0] += 3.2  # nothing is sure
    scores = sample.find(model, pixels, dev, 0.01).scores
    assert len(scores) > 3 and 0.01 < scores.min() < 0.05  # the least that evaluation looks at
    least = float(scores[1])
    found = sample.find(model, pixels, dev, least)
    assert found.scores.tolist() == scores[:1].tolist() and len(found.masks) == 1
    assert drawn == [len(scores), 1]
    said = sample.over(model, pixels, dev, 0.9)
    assert said == f"over 0.9 (--threshold): the surest has {float(scores[0]):.2g}"
    assert len(drawn) == 2
    assert sample.find(model, pixels, dev, least).masks  # again


def test_the_sheet_of_test_images(taught):
    folder, _ = taught
    argv = ["--checkpoint", str(folder / "run/last.pt")]
    shown = sample.main([*argv, "--out", "sheet"])
    assert shown["images"] == 1
    files = [str(folder / f"{number}.png") for number in range(5)]  # one of them is the test set
    found = sample.main([*files, *argv, "--out", "own"])
    images = collections.Counter(row["image_id"] for row in found["annotations"])
    assert shown["objects"] in images.values()  # one, or on some processors two on one square
    assert Image.open("sheet/predictions.jpg").size == (320, 646)


def test_published_weights_find_on_own_images(monkeypatch, refused):
    """A file of torchvision's answers as torchvision does, with COCO's names."""
    monkeypatch.setattr(sample, "train_flags", lambda argv: train.parse_args(
        [*argv, "--min-size", "64", "--max-size", "64"]))  # fmt: skip
    theirs = torchvision.models.detection.fasterrcnn_resnet50_fpn(
        weights=None, weights_backbone=None, num_classes=91, min_size=64, max_size=64
    )
    theirs.roi_heads.score_thresh = 0.2
    torch.save(theirs.state_dict(), "theirs.pth")
    picture("photo.png", (60, 50))
    argv = ["--weights", "theirs.pth", "photo.png", "--threshold", "0.2"]
    line = refused(sample.main, [*argv, "--out", "out"])
    assert "is of another network than maskrcnn_resnet50_fpn" in line
    with torch.no_grad():
        theirs.roi_heads.box_predictor.cls_score.bias[17] = 3.0
        torch.save(theirs.state_dict(), "theirs.pth")
        pixels = torch.from_numpy(np.array(Image.open("photo.png"))).permute(2, 0, 1) / 255
        (wanted,) = theirs.eval()([pixels])
    found = sample.main([*argv, "--model", "fasterrcnn_resnet50_fpn", "--out", "out"])
    assert found["categories"][16]["name"] == "cat"
    assert len(found["annotations"]) == len(wanted["boxes"]) > 3
    theirs = (wanted[key].tolist() for key in ("boxes", "labels", "scores"))
    for row, box, label, score in zip(found["annotations"], *theirs, strict=True):
        assert row["category_id"] == label and row["score"] == pytest.approx(score, abs=1e-3)
        left, top, width, height = row["bbox"]
        assert [left, top, left + width, top + height] == pytest.approx(box, abs=0.1)


def test_what_samples_refuse(refused):
    for argv, words in [
        (["x.png", "--threshold", "1"], "scores are below 1"),
        (["--weights", "coco"], "name image files"),
        (["x.png", "--weights", "no.pth"], "there is no such file (or write coco)"),
        (["x.png", "--model", "maskrcnn_resnet50_fpn"], "goes with --weights"),
        (["x.png", "--weights", "coco", "--checkpoint", "a.pt"], "choose one"),
    ]:
        assert words in refused(sample.main, argv), argv


# ---------------------------------------------------------------------- claims


def test_claims_run_resume_and_summarise(monkeypatch, capsys):
    runs, done = [], []

    def short(argv):
        runs.append(argv)
        done.append(train.main([*argv, *SHORT]))
        return done[-1]

    monkeypatch.setattr(claims, "train", short)
    monkeypatch.setattr(claims, "NUMBERS", [1, 8])
    argv = ["--seeds", "0", "1", "--epochs", "1", "--out", "out"]
    summary = claims.main(["masks", *argv])
    assert len(runs) == 4
    assert summary == json.loads(Path("out/claim_masks.json").read_text())
    assert ["softmax" in argv for argv in runs] == [False, False, True, True]
    assert [argv[argv.index("--seed") + 1] for argv in runs] == ["0", "1"] * 2
    for arm, own in (("default", done[:2]), ("softmax", done[2:])):
        for key in ("test_box_ap50", "loss_mask"):
            assert summary[arm][key]["values"] == [metrics[key] for metrics in own]
    assert len({metrics["loss_mask"] for metrics in done}) == 4
    assert "--masks softmax" in summary["softmax"]["command"]
    assert Path("out/claim_masks.png").exists()
    claims.main(["masks", *argv])
    assert len(runs) == 4  # done is done
    test = load_instances(train.parse_args(SHORT), Device(train.parse_args(SHORT)))[2]
    corner = torch.tensor([[0.0, 0, 1, 1]])
    again = itertools.cycle([torch.cat([corner, t.objects.boxes]) for t in test.things])
    with monkeypatch.context() as patch:  # a network that proposes a pixel, then the true boxes
        patch.setattr(RCNN, "propose", lambda self, images: [(next(again), None) for _ in images])
        patch.setattr(claims, "evaluate", lambda model, *rest: {
            "test_box_ap50": model.rpn.after[1] / 10})  # fmt: skip
        summary = claims.main(["proposals", *argv])
    assert len(runs) == 4  # the same runs
    shares = [summary["default"][f"recall50_of_{n}"]["values"] for n in (1, 8)]
    assert shares == [[0.0, 0.0], [1.0, 1.0]]
    assert [summary["default"][f"box_ap50_of_{n}"]["mean"] for n in (1, 8)] == [0.1, 0.8]
    assert Path("out/claim_proposals.png").exists()
    for claim in ("align", "pyramid"):
        claims.main([claim, "--seeds", "0", "--epochs", "1", "--out", "out"])
    assert ["--pool" in argv for argv in runs[4:]] == [False, True]  # pyramid's are done
    assert all("--no-pyramid" in argv for argv in runs[4:])
    assert "RoIPool" in capsys.readouterr().out


def test_recalls_by_number():
    truth = [torch.tensor([[0.0, 0, 10, 10], [20, 20, 30, 30]])]
    proposed = [torch.tensor([[0.0, 0, 10, 6], [20, 20, 30, 30], [0, 0, 10, 8]])]
    assert claims.recalls(proposed, truth, 1)["recall50"] == 0.5
    found = claims.recalls(proposed, truth, 2)
    assert (found["recall50"], found["recall75"]) == (1.0, 0.5)
    assert found["recall"] == pytest.approx((3 * 1 + 7 * 0.5) / 10)
    assert claims.recalls(proposed, truth, 3)["recall75"] == 1.0


def test_cells_beside_connected_parts(monkeypatch):
    """The other network's answers are parts of its masks; the right ones are right."""
    label_maps("nuclei_dsb2018", 10)
    asked = []

    def other(script, argv):
        asked.append((script.name, argv))
        if script.name == "sample.py":  # writes what a perfect U-Net would
            out = Path(argv[argv.index("--out") + 1])
            out.mkdir(parents=True)
            if len(asked) == 2:
                raise SystemExit(137)  # killed before it wrote anything
            for path in map(Path, argv[: argv.index("--checkpoint")]):
                labels = np.asarray(Image.open(Path("nuclei_dsb2018/labels", path.name)))
                Image.fromarray((labels > 0).astype(np.uint8)).save(out / f"{path.stem}-mask.png")

    monkeypatch.setattr(claims, "run_script", other)
    monkeypatch.setattr(claims, "run_plain", other)
    monkeypatch.setattr(claims, "train", lambda argv: train.main(
        [*argv, *TINY, "--batch-size", "2", "--max-steps", "1"]))  # fmt: skip
    argv = ["cells", "--data-dir", ".", "--seeds", "0", "--out", "out"]
    with pytest.raises(SystemExit):
        claims.main(argv)
    summary = claims.main(argv)
    assert summary["unet"]["mask_ap50"]["mean"] == pytest.approx(1.0)
    assert summary["unet"]["right"]["mean"] == 1.0
    assert 0 <= summary["maskrcnn"]["right"]["mean"] < 0.5
    assert [name for name, _ in asked] == ["train.py", "sample.py"] * 2  # no half answer is taken
    assert {"--folds", "nuclei", "5"} <= set(asked[0][1])
    assert len(asked[1][1][: asked[1][1].index("--checkpoint")]) == 2


def test_small_models_take_data_of_boxes_or_masks():
    assert maskrcnn_small(3).roi_heads.masks and fasterrcnn_small(3).roi_heads.masks is None


@pytest.mark.slow
def test_quick_reaches_the_readmes_number(monkeypatch):
    monkeypatch.setattr("common.data.boxes.NUM_SCENES", {"train": 2_500, "test": 500})
    metrics = train.main(["--quiet"])
    assert metrics["test_box_ap50"] > 0.66  # three standard deviations below the mean
    assert metrics["test_mask_ap50"] > 0.65


if __name__ == "__main__":  # what torchrun starts
    two(sys.argv[1])
