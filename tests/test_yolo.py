"""YOLO: sizes, Eq. 3 beside a loop, decoding, the errors of Fig. 4, and the scripts."""

import json
import re
from pathlib import Path

import pytest
import torch
import torchvision
from conftest import torchrun
from helpers import count
from PIL import Image
from test_yolo_data import voc
from torch import nn
from yolo_loss import loop_loss

from common.data.boxes import Objects
from common.detection import Found, suppress
from yolo import claims, sample, train
from yolo.errors import SIMILAR, VOC, breakdown, similar_classes
from yolo.model import MODELS, box_iou, decode, yolo_loss, yolov1, yolov1_small, yolov1_tiny

PARAMETERS = {"yolov1": 271_703_550, "yolov1_tiny": 45_089_374}
LAYERS = [64, 192, 128, 256, 256, 512, *[256, 512] * 4, 512, 1024, *[512, 1024] * 2, *[1024] * 4]


def layers(model, kind):
    return [m for m in model.modules() if isinstance(m, kind)]


def test_parameters():
    with torch.device("meta"):
        for name, number in PARAMETERS.items():
            assert count(MODELS[name]()) == number
        assert [m.out_channels for m in layers(yolov1(), nn.Conv2d)] == LAYERS
        assert len(layers(yolov1_tiny(), nn.Conv2d)) == 9
        for model in (yolov1(), yolov1_tiny()):
            assert {m.negative_slope for m in layers(model, nn.LeakyReLU)} == {0.1}
            assert [m.p for m in layers(model, nn.Dropout)] == [0.5]
            assert not layers(model, nn.BatchNorm2d)
        assert layers(yolov1_small(), nn.BatchNorm2d)


def test_stages_are_fig_3():
    """The resolutions that Fig. 3 names: 224 and 112 first, 7 at the end, then 4096 and 7x7x30."""
    shapes = []
    with torch.device("meta"):
        model = yolov1()
        for module in (*layers(model, nn.Conv2d), *layers(model, nn.Linear)):
            module.register_forward_hook(lambda _, __, out: shapes.append(tuple(out.shape[1:])))
        out = model(torch.empty(1, 3, 448, 448))
    sides = [224, 112, *[56] * 4, *[28] * 10, *[14] * 5, *[7] * 3]
    assert [s[1] for s in shapes[:24]] == sides
    assert shapes[24:] == [(4096,), (1470,)]
    assert out.shape == (1, 7, 7, 30)


@pytest.mark.parametrize("name", ["yolov1_tiny", "yolov1_small"])
def test_grid_boxes_and_classes_are_arguments(name):
    model = MODELS[name](num_classes=3, grid=5, boxes=3, size=128).eval()
    assert model(torch.zeros(2, 3, 128, 128)).shape == (2, 5, 5, 18)
    assert MODELS[name](3, 5, 3, 128).grid == 5


def test_any_grid_has_the_same_weights():
    a, b = yolov1_small(3, grid=7), yolov1_small(3, grid=14)
    b.load_state_dict(a.state_dict())
    assert b(torch.zeros(2, 3, 120, 112)).shape == (2, 14, 14, 13)


def test_the_output_is_linear():
    model = yolov1_tiny(2, 2, 1, 64).eval()
    out = model(torch.randn(4, 3, 64, 64) * 30)
    assert out.min() < 0
    last = list(model.children())[-1]
    assert isinstance(last, nn.Linear)


def test_initial_weights_keep_the_variance():
    for module in layers(yolov1_small(), nn.Conv2d)[:-1]:
        fan_in = module.in_channels * module.kernel_size[0] ** 2
        expected = (2 / 1.01 / fan_in) ** 0.5
        assert module.weight.std().item() == pytest.approx(expected, rel=0.1)


# ---------------------------------------------------------------------- Eq. 3


def test_box_iou_is_torchvisions():
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.rand(2, 50, 2, 2, generator=generator).sort(2).values).flatten(2).double()
    torch.testing.assert_close(box_iou(a[:, None], b[None]), torchvision.ops.box_iou(a, b))
    assert box_iou(torch.zeros(4), torch.zeros(4)) == 0


CASES = {
    "no object": ([], []),
    "one": ([[0.2, 0.3, 0.5, 0.9]], [1]),
    "two in one cell": ([[0.30, 0.30, 0.40, 0.41], [0.31, 0.29, 0.42, 0.40]], [0, 2]),
    "the same box twice": ([[0.3, 0.3, 0.4, 0.4]] * 2, [2, 1]),
    "on a corner of four cells": ([[0.0, 0.25, 0.5, 0.75]], [2]),
    "on the last border": ([[0.9, 0.9, 1.0, 1.0], [1.0, 1.0, 1.0, 1.0]], [0, 1]),
    "tiny": ([[0.6, 0.1, 0.6 + 1e-4, 0.1 + 1e-5]], [0]),
    "the whole image": ([[0.0, 0.0, 1.0, 1.0]], [1]),
    "no area": ([[0.7, 0.7, 0.7, 0.7]], [1]),
    "padding between": ([[0.1, 0.1, 0.2, 0.2], [0, 0, 0, 0], [0.12, 0.1, 0.2, 0.2]], [1, -1, 0]),
}


@pytest.mark.parametrize("grid", [2, 7])
@pytest.mark.parametrize("case", CASES)
def test_the_loss_is_that_of_a_loop_on_edge_cases(case, grid):
    boxes, labels = CASES[case]
    boxes = torch.tensor(boxes, dtype=torch.float64).view(1, -1, 4)
    check_loss(torch.randn(1, grid, grid, 13), boxes, torch.tensor(labels).long().view(1, -1), 2)


@pytest.mark.parametrize(("grid", "num_boxes", "num_classes"), [(7, 2, 20), (5, 3, 4), (3, 1, 1)])
def test_the_loss_is_that_of_a_loop_at_random(grid, num_boxes, num_classes):
    generator = torch.Generator().manual_seed(grid)
    for _ in range(5):
        output = torch.randn(3, grid, grid, 5 * num_boxes + num_classes, generator=generator)
        sides = torch.rand(3, 6, 2, 2, generator=generator, dtype=torch.float64)
        boxes = sides.sort(2).values.flatten(2)
        labels = torch.randint(-1, num_classes, (3, 6), generator=generator)
        check_loss(output, boxes, labels, num_boxes)
    # predictors that know the answer nearly: their IoU is not zero, and decides
    boxes, labels = boxes[:, :1], labels[:, :1].clamp(min=0)
    near = torch.cat([boxes.new_zeros(3, 5 * num_boxes + num_classes)]).expand(grid, grid, -1, -1)
    near = near.permute(2, 0, 1, 3).clone()
    for j in range(num_boxes):
        size = (boxes[:, 0, 2:] - boxes[:, 0, :2]).sqrt() * (1 + 0.1 * j)
        near[..., 5 * j : 5 * j + 2] = 0.5
        near[..., 5 * j + 2 : 5 * j + 4] = size[:, None, None]
    check_loss(near, boxes, labels, num_boxes)


def check_loss(output, boxes, labels, num_boxes):
    values, gradients = [], []
    for function in (yolo_loss, loop_loss):
        leaf = output.double().clone().requires_grad_()
        value = function(leaf, boxes, labels, num_boxes)
        value.backward()
        values.append(value.detach())
        gradients.append(leaf.grad)
    torch.testing.assert_close(*values, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-9)


def test_the_loss_by_hand():
    """One cell, two predictors: all five lines of Eq. 3 with numbers that can be added up."""
    boxes, labels = torch.tensor([[[0.25, 0.25, 0.75, 0.75]]]), torch.tensor([[1]])
    #                       x    y   √w   √h  conf     x    y    √w        √h       conf  classes
    output = torch.tensor([0.5, 0.5, 1.0, 1.0, 0.3, 0.6, 0.5, 0.5**0.5, 0.5**0.5, 0.9, 0.2, 0.7])
    iou = 0.4 * 0.5 / (0.25 + 0.25 - 0.2)  # of the second; the first covers all: 0.25
    wanted = 5 * 0.1**2 + (0.9 - iou) ** 2 + 0.5 * 0.3**2 + 0.2**2 + 0.3**2
    assert yolo_loss(output.view(1, 1, 1, 12), boxes, labels).item() == pytest.approx(wanted)
    twice = yolo_loss(output.expand(2, 1, 1, 12), boxes.expand(2, 1, 4), labels.expand(2, 1))
    assert twice.item() == pytest.approx(wanted)  # the mean over the batch
    empty = yolo_loss(output.view(1, 1, 1, 12), boxes, -labels)
    assert empty.item() == pytest.approx(0.5 * (0.3**2 + 0.9**2))


def test_the_target_of_the_confidence_is_a_constant():
    boxes, labels = torch.tensor([[[0.2, 0.2, 0.7, 0.8]]]), torch.tensor([[0]])
    output = torch.full((1, 1, 1, 6), 0.5, requires_grad=True)
    yolo_loss(output, boxes, labels, num_boxes=1).backward()
    moved = output.detach() + torch.tensor([0.0, 0, 0, 0, 1e-3, 0])
    slope = (yolo_loss(moved, boxes, labels, 1) - yolo_loss(output, boxes, labels, 1)) / 1e-3
    assert output.grad[0, 0, 0, 4].item() == pytest.approx(slope.item(), abs=2e-3)
    assert output.grad[0, 0, 0, 0].item() == pytest.approx(2 * 5 * (0.5 - 0.45), abs=1e-5)


def test_equal_parts_give_the_whole():
    """With --accumulate or two processes the mean over equal parts is the batch's loss."""
    generator = torch.Generator().manual_seed(0)
    output = torch.randn(8, 7, 7, 30, generator=generator)
    boxes = torch.rand(8, 4, 2, 2, generator=generator).sort(2).values.flatten(2)
    labels = torch.randint(-1, 20, (8, 4), generator=generator)
    parts = [yolo_loss(*(t[i : i + 2] for t in (output, boxes, labels))) for i in range(0, 8, 2)]
    torch.testing.assert_close(sum(parts) / 4, yolo_loss(output, boxes, labels))


# ---------------------------------------------------------------------- decoding


def test_decoding_is_that_of_a_loop():
    output = torch.randn(2, 3, 3, 2 * 5 + 4, generator=torch.Generator().manual_seed(0))
    boxes, scores = decode(output, 2)
    assert boxes.shape == (2, 18, 4)
    assert scores.shape == (2, 18, 4)
    for b in range(2):
        for row in range(3):
            for column in range(3):
                cell = output[b, row, column].tolist()
                for j in range(2):
                    x, y, w, h, confidence = cell[5 * j : 5 * j + 5]
                    x, y, w, h = (x + column) / 3, (y + row) / 3, w * w, h * h
                    corner = [x - w / 2, y - h / 2, x + w / 2, y + h / 2]
                    place = (row * 3 + column) * 2 + j
                    wanted = [min(max(v, 0), 1) for v in corner]
                    assert boxes[b, place].tolist() == pytest.approx(wanted, abs=1e-5)
                    shares = [max(confidence, 0) * max(p, 0) for p in cell[10:]]
                    assert scores[b, place].tolist() == pytest.approx(shares, abs=1e-5)


def test_what_the_loss_wants_is_what_is_decoded():
    boxes = torch.tensor([[[0.1, 0.2, 0.4, 0.9], [0.5, 0.55, 0.95, 0.7]]])
    labels = torch.tensor([[2, 0]])
    output = torch.zeros(1, 7, 7, 13, requires_grad=True)
    with torch.no_grad():
        output.add_(0.1 * torch.randn(output.shape, generator=torch.Generator().manual_seed(0)))
    optimizer = torch.optim.Adam([output], lr=0.03)
    for _ in range(400):
        optimizer.zero_grad()
        loss = yolo_loss(output, boxes, labels)
        loss.backward()
        optimizer.step()
    assert loss < 1e-3
    found = suppress(*(part[0] for part in decode(output.detach())), 0.5)
    assert found.labels.sort().values.tolist() == [0, 2]
    torch.testing.assert_close(
        found.boxes[found.labels.argsort()], boxes[0, [1, 0]], atol=0.01, rtol=0
    )


# ---------------------------------------------------------------------- Fig. 4


def things(*rows):
    boxes = torch.tensor([row[:4] for row in rows], dtype=torch.float32).view(-1, 4)
    return boxes, [row[4] for row in rows], [row[5] for row in rows]


def test_the_errors_of_fig_4():
    boxes, labels, hard = things(
        (0, 0, 10, 10, 0, False), (20, 0, 30, 10, 1, False), (40, 0, 50, 10, 2, False),
        (60, 0, 70, 10, 0, False), (80, 0, 90, 10, 0, False), (0, 50, 10, 60, 0, True),
        (90, 90, 99, 99, 0, False), (70, 90, 79, 99, 0, False),
    )  # fmt: skip
    truth = [Objects(boxes, torch.tensor(labels), torch.tensor(hard))]
    found_boxes, scores, found_labels = things(
        (0, 0, 10, 10, 0.9, 0),    # correct
        (0, 50, 10, 60, 0.85, 0),  # a difficult object: passed over
        (0, 0, 9, 10, 0.8, 0),     # the same object once more: localisation
        (60, 0, 63, 10, 0.7, 0),   # IoU 0.3: localisation
        (20, 0, 30, 10, 0.6, 0),   # a class that is similar
        (40, 0, 50, 10, 0.5, 0),   # another class
        (0, 80, 10, 90, 0.4, 1),   # nothing there; class 1 has one object
        (20, 0, 30, 10, 0.3, 1),   # so this one is not looked at
        (80, 0, 90, 10, 0.2, 0),   # the last of five of class 0: not looked at
    )  # fmt: skip
    found = [Found(found_boxes, torch.tensor(scores), torch.tensor(found_labels))]
    similar = similar_classes("a,b", ["a", "b", "c"])
    shares = breakdown(found, truth, similar)
    # of class 0 five are looked at, of class 1 one; of class 2 nothing was found
    wanted = {"correct": 1 / 5, "localisation": 2 / 5, "similar": 1 / 5, "other": 1 / 5}
    wanted = {kind: share / 2 for kind, share in wanted.items()} | {"background": 1 / 2}
    assert shares == pytest.approx(wanted)
    alone = breakdown(found, truth, similar_classes("none", ["a", "b", "c"]))
    assert (alone["similar"], alone["other"]) == (0, pytest.approx(2 / 5 / 2))
    assert sum(breakdown([found[0]] * 2, [truth[0]] * 2, similar).values()) == pytest.approx(1)


def test_an_iou_of_exactly_half_is_not_correct():
    truth = [Objects(torch.tensor([[0.0, 0, 10, 10]]), torch.tensor([0]), torch.tensor([False]))]
    half = Found(torch.tensor([[0.0, 0, 10, 5]]), torch.tensor([0.9]), torch.tensor([0]))
    assert breakdown([half], truth, torch.zeros(1, 1).bool())["localisation"] == 1


def test_similar_classes_are_symmetric_and_not_their_own():
    from common.data import boxes as data

    for name, classes in (("voc2007", data.VOC), ("shapes", data.world.CLASSES)):
        similar = similar_classes(SIMILAR[name], classes)
        assert torch.equal(similar, similar.T)
        assert not similar.diag().any()
        assert similar.any(1).sum() >= 8
    assert not similar_classes(SIMILAR["bccd"], data.BCCD).any()
    similar = similar_classes(VOC, data.VOC)
    assert similar[data.VOC.index("cat"), data.VOC.index("dog")]
    assert not similar[data.VOC.index("cat"), data.VOC.index("car")]
    with pytest.raises(KeyError, match="unicorn"):
        similar_classes("cat,unicorn", data.VOC)


# ---------------------------------------------------------------------- the scripts


def test_recipes():
    args = train.parse_args([])
    assert (args.model, args.data, args.size, args.grid) == ("yolov1_small", "shapes", 96, 7)
    args = train.parse_args(["--paper"])
    assert (args.model, args.data, args.epochs, args.batch_size, args.lr, args.optimizer) == (
        "yolov1", "voc0712", 135, 64, 1e-2, "sgd",
    )  # fmt: skip
    assert (args.size, args.grid, args.boxes, args.similar) == (448, 7, 2, VOC)
    args = train.parse_args(["--paper", "--model", "yolov1_tiny", "--size", "192"])
    assert (args.size, args.epochs) == (192, 135)
    assert train.parse_args(["--data", "bccd"]).size == 256


def test_step_sizes_are_the_papers():
    rates = [1e-2 * train.paper_steps(epoch / 135) for epoch in (0, 5, 74.9, 75, 104.9, 105, 134.9)]
    assert rates == pytest.approx([1e-3, 1e-2, 1e-2, 1e-3, 1e-3, 1e-4, 1e-4])
    rises = [train.paper_steps(epoch / 135) for epoch in range(6)]
    assert rises == sorted(rises)


def test_bad_flags(refused):
    for argv, words in (
        (["--model", "yolov1", "--size", "100"], "multiple of 64"),
        (["--model", "yolov1_tiny", "--width", "8"], "--width has no meaning here"),
        (["--grid", "20"], "--size 160"),
        (["--freeze"], "--weights"),
        (["--weights", "nothing.pt"], "no such file"),
        (["--weights", "imagenet"], "no such file"),
        (["--no-augment", "--mirror", "both"], "--mirror"),
        (["--similar", "circle,unicorn", "--limit", "64"], "'unicorn'"),
        (["--data", "shape"], "did you mean shapes?"),
        (["--data", "voc:"], "unknown data set"),
        (["--data", "coco:nothing.json"], "nothing.json"),
    ):
        assert words in refused(train.main, argv)
    assert not list(Path().iterdir())


def toy(root="toy", n=12):
    """Images with one bright square each, of two classes."""
    images = {
        f"i{k}": [(["dark", "light"][k % 2], 5 + k, 5, 25 + k, 25, 0)] for k in range(n)
    }  # fmt: skip
    lists = {"train": [f"i{k}" for k in range(n - 4)], "test": [f"i{k}" for k in range(n - 4, n)]}
    voc(root, images, lists, size=(48, 32))
    for k in range(n):
        image = Image.new("RGB", (48, 32), "gray")
        image.paste("white" if k % 2 else "black", (4 + k, 4, 25 + k, 25))
        image.save(f"{root}/JPEGImages/i{k}.png")
        Path(f"{root}/JPEGImages/i{k}.jpg").unlink()
    return ["--data", f"voc:{root}", "--size", "32", "--grid", "4", "--width", "8", "--val", "0",
            "--batch-size", "8"]  # fmt: skip


def test_it_overfits_a_batch():
    argv = [*toy(), "--quiet", "--no-augment", "--lr", "0.01"]
    metrics = train.main([*argv, "--epochs", "60", "--run-dir", "run"])
    assert metrics["train_loss"] < 0.3
    assert set(metrics) == {
        "train_loss", "test_loss", "test_map50", "test_map", "test_correct", "test_localisation",
        "test_similar", "test_other", "test_background",
    }  # fmt: skip
    assert Path("run/precision_recall.png").exists()
    # its own training images, evaluated
    names = Path("toy/ImageSets/Main/train.txt").read_text()
    Path("toy/ImageSets/Main/test.txt").write_text(names)
    metrics = train.main(["--evaluate", "run/last.pt", "--quiet"])
    assert metrics["test_map50"] > 0.95
    assert metrics["test_correct"] == 1


def test_interrupted_and_resumed_is_uninterrupted():
    argv = [*toy(), "--quiet", "--epochs", "3", "--batch-size", "4", "--mirror", "both"]
    train.main([*argv, "--run-dir", "whole"])
    train.main([*argv, "--run-dir", "cut", "--max-steps", "3"])
    train.main(["--resume", "--run-dir", "cut", "--quiet"])
    a, b = (torch.load(f"{name}/last.pt") for name in ("whole", "cut"))
    assert a["step"] == b["step"] == 6
    for key, value in a["model"].items():
        assert torch.equal(value, b["model"][key]), key


def test_processes_change_nothing():
    """Two processes see the same images, and add up to the same evaluation."""
    train.main([*toy(), "--quiet", "--epochs", "2", "--run-dir", "one"])
    evaluate = ["--evaluate", "one/last.pt", "--quiet", "--precision", "fp32", "--run-dir"]
    metrics = train.main([*evaluate, "alone"])
    done = torchrun(train.__file__, *evaluate, "two")
    assert done.returncode == 0, done.stderr
    last = json.loads(Path("two/metrics.jsonl").read_text().splitlines()[-1])
    for key, value in metrics.items():
        assert last[key] == pytest.approx(value, abs=1e-6), key


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_steps(precision):
    argv = [*toy(), "--quiet", "--max-steps", "1", "--precision", precision]
    train.main(
        [*argv, "--run-dir", "run", "--optimizer", "sgd", "--accumulate", "2", "--lr", "0.01"]
    )
    state = torch.load("run/last.pt")
    assert all(value.isfinite().all() for value in state["model"].values())


def test_fine_tuning_from_a_file(capsys, refused):
    train.main(
        ["--width", "8", "--limit", "32", "--max-steps", "1", "--quiet", "--run-dir", "first"]
    )
    argv = [*toy(), "--weights", "first/last.pt"]
    train.main([*argv, "--freeze", "--max-steps", "2", "--run-dir", "run"])
    assert "head new" in capsys.readouterr().out
    before, after = (torch.load(f"{name}/last.pt") for name in ("first", "run"))
    assert before["model"].keys() == after["model"].keys()
    for key, value in before["model"].items():
        if not key.startswith("head"):
            assert torch.equal(value, after["model"][key]), key
    assert after["dataset"]["mean"] == before["dataset"]["mean"]
    wider = [*argv[: argv.index("--width")], "--width", "12", "--weights", "first/last.pt"]
    assert "doesn't fit" in refused(train.main, wider)


def test_a_plain_state_dict_leaves_the_statistics_of_the_data(capsys):
    train.main([*toy(), "--quiet", "--max-steps", "1", "--run-dir", "first"])
    state = torch.load("first/last.pt")
    torch.save(state["model"], "plain.pt")
    argv = [*toy(), "--max-steps", "1", "--weights"]
    train.main([*argv, "plain.pt", "--run-dir", "run"])
    assert "mean and std are those of the data" in capsys.readouterr().out
    facts = torch.load("run/last.pt")["dataset"]
    assert facts["mean"] == state["dataset"]["mean"]
    assert facts["mean"] != [0.485, 0.456, 0.406]  # torchvision's


def test_nothing_over_the_threshold_names_the_surest(capsys):
    train.main([*toy(), "--quiet", "--max-steps", "1", "--run-dir", "runs/yolo/run"])
    capsys.readouterr()
    sample.main(["toy/JPEGImages/i3.png", "--out", "out", "--threshold", "0.99"])
    said = capsys.readouterr().out
    [best] = re.findall(r"nothing over 0.99 \(--threshold\): the surest has (\S+)", said)
    assert 0 < float(best) < 0.99
    for share, some in ((0.9, True), (1.1, False)):
        threshold = str(share * float(best))
        found = sample.main(["toy/JPEGImages/i3.png", "--threshold", threshold])
        assert bool(found["toy/JPEGImages/i3.png"]) == some
    capsys.readouterr()
    sample.main(["--out", "grid", "--count", "3", "--threshold", "0.99"])
    said = capsys.readouterr().out
    assert "0 boxes in 3 test images over 0.99 (--threshold): the surest has 0." in said


def test_samples(capsys, refused):
    argv = [*toy(), "--quiet", "--epochs", "40", "--no-augment", "--lr", "0.01"]
    train.main([*argv, "--run-dir", "runs/yolo/run"])
    shown = sample.main(["--out", "grid", "--count", "3"])
    assert shown["images"] == 3
    assert Path("grid/predictions.jpg").exists()
    large = Image.open("toy/JPEGImages/i3.png").resize((480, 320))
    Path("mine").mkdir()
    large.save("mine/large.png")
    large.convert("L").save("mine/grey.jpg")
    capsys.readouterr()
    found = sample.main(["mine", "toy/JPEGImages/i3.png", "--out", "out", "--threshold", "0.3"])
    said = capsys.readouterr().out
    assert "frames a second" in said
    assert "light" in said
    assert json.loads(Path("out/detections.json").read_text()) == found
    [thing, *_] = found["mine/large.png"]
    assert thing["class"] == "light"
    assert thing["box"] == pytest.approx([70, 40, 280, 250], abs=60)  # in pixels of the file
    for name in ("large", "grey", "i3"):
        assert Image.open(f"out/{name}.jpg").size == ((48, 32) if name == "i3" else (480, 320))
    line = refused(sample.main, ["mine/large.png", "--out", "out"])
    assert "out/large.jpg is there already" in line
    assert "predictions.jpg is there" in refused(sample.main, ["--out", "grid"])
    capsys.readouterr()
    sample.main(["mine/large.png", "--json", "--out", "json"])
    (line,) = capsys.readouterr().out.splitlines()  # nothing else
    assert json.loads(line)["objects"][0]["class"] == "light"
    Path("mine/bad.jpg").write_text("no image")
    assert "bad.jpg" in refused(sample.main, ["mine", "--out", "out2"])
    assert "--threshold" in refused(sample.main, ["mine", "--threshold", "2"])


def test_claims_run_resume_and_summarise(monkeypatch, capsys):
    flags = toy()
    runs = []
    shapes = ["--width", "8", "--limit", "32", "--val", "8", "--epochs", "1"]
    monkeypatch.setattr(claims, "SHAPES", shapes)
    monkeypatch.setattr("common.data.boxes.NUM_SCENES", {"train": 64, "test": 30})
    monkeypatch.setattr(claims, "CELLS", [*flags[:-4], "--batch-size", "4"])
    monkeypatch.setattr(claims, "GRIDS", [2, 4])
    monkeypatch.setattr(claims, "train", lambda argv: runs.append(argv) or train.main(argv))
    argv = ["errors", "--seeds", "0", "1", "--epochs", "1", "--out", "out"]
    summary = claims.main(argv)
    assert len(runs) == 4
    assert summary == json.loads(Path("out/claim_errors.json").read_text())
    assert len(summary["bccd"]["test_localisation"]["values"]) == 2
    assert Path("out/claim_errors.png").exists()
    claims.main(argv)
    assert len(runs) == 4  # done is done
    summary = claims.main(["grid", "--seeds", "0", "--epochs", "1", "--out", "out"])
    assert len(runs) == 6
    folder = Path(runs[-1][runs[-1].index("--run-dir") + 1])
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert summary["4"]["val_map50"]["values"] == [rows[0]["val_map50"]]
    assert "S = 2" in capsys.readouterr().out


def test_the_claim_of_speed(monkeypatch):
    def pixels(work, dev, rounds):
        """A clock that ticks with each pixel that a network is given."""
        given = []
        hook = nn.modules.module.register_module_forward_pre_hook(
            lambda module, args: given.append(args[0].numel()) if args[0].shape[1] == 3 else None
        )
        work()
        hook.remove()
        return max(given) if given else 0

    monkeypatch.setattr(claims, "seconds", pixels)
    monkeypatch.setattr(claims, "SPEED", {"yolov1_small": 64})
    argv = ["one-pass", "--models", "yolov1_small", "--seeds", "0", "--out", "out"]
    summary = claims.main(argv)["yolov1_small"]
    rates = [summary[way]["mean"] for way in ("one_pass", "full_windows", "quarter_windows")]
    assert [rates[0] / rate for rate in rates] == pytest.approx([1, 98, 98 / 16])
    assert Path("out/claim_one_pass.png").exists()
    windows = torch.cat(list(claims.slide(torch.rand(1, 3, 64, 64), 32)))
    assert windows.shape == (claims.NUM_WINDOWS, 3, 32, 32)


@pytest.mark.slow
def test_quick_reaches_the_readmes_number():
    assert train.main(["--quiet"])["test_map50"] > 0.4
