"""Residual networks: sizes, parity with torchvision, shortcuts, and that they learn."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import torchvision
from helpers import check_mean_loss, check_published, compare, count, make_tree, perturb, structure
from torch import nn

from resnet import claims, sample, train
from resnet.model import (
    MODELS,
    BasicBlock,
    PaddedShortcut,
    cifar_resnet,
    plain20,
    resnet18,
    resnet20,
    resnet50,
)

PARAMETERS = {
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "resnet152": 60_192_808,
    "resnet20": 269_722,
    "resnet32": 464_154,
    "resnet44": 658_586,
    "resnet56": 853_018,
    "resnet110": 1_727_962,
    "plain20": 269_722,
    "plain56": 853_018,
}
PARAMETERS |= {f"resnet{n}_v1_5": PARAMETERS[f"resnet{n}"] for n in (50, 101, 152)}


def test_parameters():
    with torch.device("meta"):
        assert {name: count(make()) for name, make in MODELS.items()} == PARAMETERS


@pytest.mark.parametrize(
    ("name", "training"),
    [
        ("resnet18", True),
        ("resnet18", False),
        ("resnet34", True),
        ("resnet50_v1_5", True),
        ("resnet50_v1_5", False),
        ("resnet101_v1_5", True),
        ("resnet152_v1_5", False),
    ],
)
def test_parity_with_torchvision(name, training):
    theirs = perturb(
        getattr(torchvision.models, name.removesuffix("_v1_5"))(num_classes=7).double()
    )
    with torch.device("meta"):
        ours = MODELS[name](num_classes=7).double()
    ours.to_empty(device="cpu").load_state_dict(theirs.state_dict())  # the names are the same
    compare(ours, theirs, torch.randn(2, 3, 32, 40, dtype=torch.float64), training)


@pytest.mark.parametrize("name", train.PUBLISHED)
def test_layers_are_torchvisions(name):
    with torch.device("meta"):
        theirs = getattr(torchvision.models, train.PUBLISHED[name])()
        assert structure(MODELS[name](num_classes=1000)) == structure(theirs)


def test_the_stride_is_in_the_first_convolution_as_in_the_paper():
    block, later = resnet50().layer2[0], resnet50(v1_5=True).layer2[0]
    assert (block.conv1.stride, block.conv2.stride) == ((2, 2), (1, 1))
    assert (later.conv1.stride, later.conv2.stride) == ((1, 1), (2, 2))
    x = torch.randn(1, 3, 64, 64)
    shape = {}
    resnet50_ = resnet50(num_classes=3).eval()
    resnet50_.layer2[0].bn1.register_forward_hook(lambda _, __, y: shape.update(y=y.shape[2:]))
    assert resnet50_(x).shape == (1, 3)
    assert shape["y"] == (8, 8)


def test_stages_are_table_1():
    shapes = []
    model = resnet50(num_classes=10)
    for layer in (model.conv1, *(getattr(model, f"layer{i}") for i in range(1, 5))):
        layer.register_forward_hook(lambda _, __, out: shapes.append(tuple(out.shape[1:])))
    model.eval()(torch.zeros(1, 3, 224, 224))
    assert shapes == [(64, 112, 112), (256, 56, 56), (512, 28, 28), (1024, 14, 14), (2048, 7, 7)]


def test_stages_of_cifar():
    """Sec. 4.2: maps of 32, 16, 8 pixels, 2n layers each, 16, 32, 64 channels; option A."""
    shapes, model = [], resnet20()
    for layer in (model.layer1, model.layer2, model.layer3):
        layer.register_forward_hook(lambda _, __, out: shapes.append(tuple(out.shape[1:])))
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    assert shapes == [(16, 32, 32), (32, 16, 16), (64, 8, 8)]
    layers = [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    assert len(layers) == 20  # none in the shortcuts
    with pytest.raises(ValueError, match="6n"):
        cifar_resnet(21)


def test_option_a():
    x = torch.randn(2, 4, 6, 6)
    out = PaddedShortcut(4, 8, 2)(x)
    assert torch.equal(out[:, :4], x[:, :, ::2, ::2])
    assert out.shape == (2, 8, 3, 3)
    assert not out[:, 4:].any()


def test_the_shortcut_is_the_only_difference():
    """A block with zero weights passes its input on; a plain one does not."""
    x = torch.rand(2, 8, 5, 5)
    for shortcut, wanted in ((True, x), (False, torch.zeros_like(x))):
        block = BasicBlock(8, 8, shortcut=shortcut).eval()
        nn.init.zeros_(block.bn2.weight)
        assert torch.equal(block(x), wanted)
    plain, residual = plain20(), resnet20()
    plain.load_state_dict(residual.state_dict())
    x = torch.randn(2, 3, 32, 32)
    assert not torch.allclose(plain.eval()(x), residual.eval()(x))


def test_initial_weights_keep_the_variance():
    model = resnet18()
    for m in model.modules():
        if isinstance(m, nn.Conv2d):
            fan_out = m.out_channels * m.kernel_size[0] ** 2
            assert m.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.1)


def test_it_overfits_a_batch():
    torch.manual_seed(0)
    model, images, labels = resnet20(), torch.randn(16, 3, 32, 32), torch.arange(16) % 10
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for _ in range(40):
        loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.05


# ---------------------------------------------------------------------- the scripts


def test_recipes():
    args = train.parse_args([])
    assert (args.model, args.data, args.size) == ("resnet20", "shapes", 32)
    args = train.parse_args(["--paper"])
    assert (args.model, args.data, args.epochs, args.batch_size) == (
        "resnet110",
        "cifar10",
        164,
        128,
    )
    args = train.parse_args(["--paper", "--model", "resnet50"])
    assert (args.data, args.epochs, args.batch_size, args.size) == (
        "folder:data/imagenet", 120, 256, 224,
    )  # fmt: skip
    args = train.parse_args(["--paper", "--model", "resnet50", "--epochs", "3", "--size", "64"])
    assert (args.epochs, args.size) == (3, 64)
    assert train.parse_args(["--model", "resnet18"]).size == 64


def test_step_sizes_are_the_papers():
    shares = [
        train.step_size(64_000, 400, s) for s in (0, 399, 400, 31_999, 32_000, 48_000, 63_999)
    ]
    assert shares == [0.1, 0.1, 1.0, 1.0, 0.1, 0.01, 0.01]


def test_published_weights_are_for_torchvisions_stride(refused):
    assert set(train.PUBLISHED) == {
        "resnet18", "resnet34", "resnet50_v1_5", "resnet101_v1_5", "resnet152_v1_5",
    }  # fmt: skip
    assert train.PUBLISHED["resnet50_v1_5"] == "resnet50"
    line = refused(train.main, ["--model", "resnet50", "--weights", "imagenet"])
    assert "resnet50_v1_5" in line


def test_fine_tuning_from_a_file(capsys, few):
    theirs = torchvision.models.resnet18()
    torch.save(theirs.state_dict(), "tv.pth")
    argv = ["--model", "resnet18", "--limit", "64", "--size", "32", "--weights", "tv.pth"]
    argv.append("--freeze")
    train.main([*argv, "--max-steps", "2", "--batch-size", "16", "--run-dir", "run"])
    line = "weights of tv.pth; fc new, for shapes's classes; mean and std are those of the"
    assert f"{line} data" in capsys.readouterr().out
    state = torch.load("run/last.pt")
    assert torch.equal(state["model"]["layer4.1.conv2.weight"], theirs.layer4[1].conv2.weight)
    assert torch.equal(state["model"]["bn1.running_mean"], theirs.bn1.running_mean)
    assert state["model"]["fc.weight"].shape == (10, 512)
    train.main(["--quiet", "--limit", "64", "--max-steps", "1", "--run-dir", "plain"])
    plain = torch.load("plain/last.pt")["dataset"]  # those of the data: the file names no others
    assert state["dataset"] == plain
    Path("tv.pth").unlink()  # resuming doesn't need it
    train.main(["--resume", "--run-dir", "run", "--max-steps", "3", "--quiet"])
    metrics = train.main(["--evaluate", "run/last.pt", "--quiet"])
    assert set(metrics) == {"test_loss", "test_accuracy"}


def test_images_too_small(refused, few):
    line = refused(train.main, ["--batch-size", "1", "--model", "resnet18", "--size", "32"])
    assert "--batch-size" in line
    assert "--size" in refused(train.main, ["--size", "4"])


def test_batch_norm_on_one_image_is_refused_before_training(monkeypatch, refused, capsys):
    """At 32 pixels the last maps of resnet18 have one place: one image has no std there."""
    make_tree(count=2, sizes=[(32, 32, 3)])  # three to train on, one to test on
    flags = ["--quiet", "--data", "folder:tree", "--model", "resnet18", "--size", "32"]
    flags += ["--epochs", "1", "--val", "0"]

    def line(*more):
        text = refused(train.main, [*flags, *more])
        assert not Path("runs").exists()  # nothing was begun
        return text

    assert "one image of 32 pixels (3 training images, in parts of 1)" in line("--accumulate", "3")
    assert "in parts of 1" in line("--accumulate", "2", "--batch-size", "2")
    assert "(1 training image, in parts of 1)" in line("--limit", "1")
    assert "(2 training images, in parts of 1)" in line("--val", "1", "--accumulate", "2")
    single = train.Device

    def second(args):  # as each of two processes has it
        dev = single(args)
        dev.world = 2
        return dev

    make_tree("two", names=("train", "test"), count=2, sizes=[(32, 32, 3)])
    with monkeypatch.context() as patch:
        patch.setattr(train, "Device", second)
        text = line("--data", "folder:two", "--batch-size", "2")
    assert "(4 training images, in parts of 1)" in text
    metrics = train.main([*flags, "--run-dir", "run"])  # all three at once can be trained on
    assert metrics["train_loss"] > 0
    again = train.main(["--quiet", "--evaluate", "run/last.pt", "--limit", "1"])
    assert again["test_loss"] == metrics["test_loss"]  # in which nothing is trained


def test_the_loss_is_a_mean_over_the_images():
    check_mean_loss(train)


def test_samples(capsys, monkeypatch):
    monkeypatch.setattr("common.data.shapes.NUM_SCENES", {"train": 64, "test": 30})
    metrics = train.main(["--val", "0", "--epochs", "3", "--lr", "0.02", "--quiet"])
    assert sample.main([])["right"] == round(30 * metrics["test_accuracy"])
    from PIL import Image

    Image.new("RGB", (50, 40), "red").save("red.png")
    Image.new("L", (20, 90)).save("grey.png")
    found = sample.main(["red.png", "grey.png", "--out", "out"])
    assert len(found["red.png"]) == 5
    assert Path("out/predictions.jpg").exists()
    assert "grey.png (grey: made RGB)" in capsys.readouterr().out


def test_samples_of_published_weights():
    theirs = perturb(torchvision.models.resnet50())
    entry = torchvision.models.ResNet50_Weights.IMAGENET1K_V1
    check_published(sample, theirs, entry, ["--model", "resnet50_v1_5"])


def test_claims_run_resume_and_summarise(monkeypatch, capsys, few):
    runs = []
    monkeypatch.setattr(claims, "ARMS", ["plain20", "resnet20"])
    monkeypatch.setattr(claims, "train", lambda argv: runs.append(argv) or train.main(argv))
    argv = ["depth", "--data", "digits", "--epochs", "1", "--seeds", "0", "1", "--out", "out"]
    summary = claims.main(argv)
    assert len(runs) == 4
    assert summary == json.loads(Path("out/claim_depth.json").read_text())
    assert len(summary["plain20"]["train_accuracy"]["values"]) == 2
    assert "--model plain20" in summary["plain20"]["command"]
    assert Path("out/claim_depth.png").exists()
    claims.main(argv)
    assert len(runs) == 4  # done is done
    assert "training error" in capsys.readouterr().out


@pytest.mark.slow
def test_quick_reaches_the_readmes_number():
    assert (
        train.main(["--quiet"])["test_accuracy"] > 0.9
    )  # where a linear classifier stays below half
