"""VGG: sizes, stages, parity with torchvision, dense evaluation, and that it learns."""

import json
import math
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import torchvision
from helpers import check_published, count, make_tree, perturb, structure, weights
from torch import nn

from vgg import claims, sample, train
from vgg import model as vgg
from vgg.model import MODELS, SMALL, VGG, SlidingLinear, fully_convolutional

# Table 1 and 2 of the paper for A, B, D, E; C and A-LRN from its table; torchvision's for _bn.
PARAMETERS = {
    "vgg11": 132_863_336,
    "vgg11_lrn": 132_863_336,
    "vgg13": 133_047_848,
    "vgg16_c": 133_638_952,
    "vgg16": 138_357_544,
    "vgg19": 143_667_240,
    "vgg11_bn": 132_868_840,
    "vgg13_bn": 133_053_736,
    "vgg16_bn": 138_365_992,
    "vgg19_bn": 143_678_248,
    "vgg11_bn_small": 596_298,
    "vgg13_bn_small": 607_962,
    "vgg16_bn_small": 940_698,
}
# The columns of Table 1, as (size, channels) of every convolution; M is a pooling.
TABLE_1 = {
    "vgg11": "3-64 M 3-128 M 3-256 3-256 M 3-512 3-512 M 3-512 3-512 M",
    "vgg11_lrn": "3-64 LRN M 3-128 M 3-256 3-256 M 3-512 3-512 M 3-512 3-512 M",
    "vgg13": "3-64 3-64 M 3-128 3-128 M 3-256 3-256 M 3-512 3-512 M 3-512 3-512 M",
    "vgg16_c": "3-64 3-64 M 3-128 3-128 M 3-256 3-256 1-256 M 3-512 3-512 1-512 M "
    "3-512 3-512 1-512 M",
    "vgg16": "3-64 3-64 M 3-128 3-128 M 3-256 3-256 3-256 M 3-512 3-512 3-512 M "
    "3-512 3-512 3-512 M",
    "vgg19": "3-64 3-64 M 3-128 3-128 M 3-256 3-256 3-256 3-256 M 3-512 3-512 3-512 3-512 M "
    "3-512 3-512 3-512 3-512 M",
}
IN_TORCHVISION = [name for name in MODELS if hasattr(torchvision.models, name)]


def build(name, **changes):
    """The network with a classifier narrow enough for a quick test, whatever its name."""
    original = vgg.VGG
    try:
        vgg.VGG = lambda *args, **kwargs: original(*args, **{**kwargs, **changes})
        return MODELS[name](num_classes=10)
    finally:
        vgg.VGG = original


@pytest.mark.parametrize("name", MODELS)
def test_parameters(name):
    with torch.device("meta"):
        assert count(MODELS[name]()) == PARAMETERS[name]
    stated = re.findall(r"([\d,]+) parameters", MODELS[name].__doc__)
    assert stated in ([f"{PARAMETERS[name]:,}"], [])


def test_the_counts_follow_from_table_1():
    def parameters(layers):
        total, channels = 0, 3
        for size, width in re.findall(r"(\d)-(\d+)", layers):
            total += int(width) * (channels * int(size) ** 2 + 1)
            channels = int(width)
        for inputs, outputs in ((512 * 49, 4096), (4096, 4096), (4096, 1000)):
            total += outputs * (inputs + 1)
        return total

    assert {name: parameters(layers) for name, layers in TABLE_1.items()} == {
        name: PARAMETERS[name] for name in TABLE_1
    }


@pytest.mark.parametrize("name", TABLE_1)
def test_layers_are_those_of_table_1(name):
    with torch.device("meta"):
        model = MODELS[name]()
    found = []
    for layer in model.features:
        if isinstance(layer, nn.Conv2d):
            assert layer.stride == (1, 1)
            assert layer.padding[0] == layer.kernel_size[0] // 2
            found.append(f"{layer.kernel_size[0]}-{layer.out_channels}")
        elif isinstance(layer, nn.LocalResponseNorm):
            found.append("LRN")
        elif isinstance(layer, nn.MaxPool2d):
            assert (layer.kernel_size, layer.stride) == (2, 2)
            found.append("M")
        else:
            assert isinstance(layer, nn.ReLU)
    assert " ".join(found) == TABLE_1[name]
    with_weights = [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    assert len(with_weights) == int(name[3:5])


def test_local_response_normalisation_is_alexnets():
    """b = a / (2 + 1e-4 * the sum of squares over five neighbouring channels) ** 0.75."""
    layer = build("vgg11_lrn", hidden=()).features[2]
    assert isinstance(layer, nn.LocalResponseNorm)
    a = torch.randn(2, 12, 3, 3).double() * 30
    wanted = torch.empty_like(a)
    for channel in range(12):
        near = a[:, max(0, channel - 2) : channel + 3]
        wanted[:, channel] = a[:, channel] / (2 + 1e-4 * near.square().sum(1)) ** 0.75
    torch.testing.assert_close(layer(a), wanted)


@pytest.mark.parametrize("name", MODELS)
def test_shapes_of_every_stage(name):
    model = build(name, hidden=(8,)).eval()
    shapes = []
    for layer in model.features:
        if isinstance(layer, nn.MaxPool2d):
            layer.register_forward_hook(lambda _, __, out: shapes.append(tuple(out.shape[1:])))
    with torch.inference_mode():
        assert model(torch.zeros(1, 3, 64, 96)).shape == (1, 10)
        assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 10)
    widths = (16, 32, 64, 128, 128) if "small" in name else (64, 128, 256, 512, 512)
    assert shapes[:5] == [(c, 64 >> i, 96 >> i) for i, c in enumerate(widths, 1)]


def test_initial_weights_are_glorots():
    torch.manual_seed(0)
    for layer in build("vgg16", hidden=(64,)).modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            fans = (layer.weight.shape[0] + layer.weight.shape[1]) * layer.weight[0, 0].numel()
            limit = (6 / fans) ** 0.5
            assert 0.95 * limit < layer.weight.abs().max() <= limit
            assert layer.weight.std().item() == pytest.approx(limit / 3**0.5, rel=0.1)
            assert not layer.bias.any()


# ---------------------------------------------------------------------- torchvision


def compare(ours, theirs, x):
    """Logits and gradients, in train mode (the same dropout) and in eval mode."""
    theirs.load_state_dict(perturb(ours).state_dict())
    for training in (True, False):
        losses = []
        for model in (ours.train(training), theirs.train(training)):
            torch.manual_seed(1)
            model.zero_grad()
            losses.append(model(x))
            F.cross_entropy(losses[-1], torch.arange(len(x))).backward()
        torch.testing.assert_close(*losses)
        assert losses[0].std() > 1e-3
        for (name, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(p.grad, q.grad, msg=lambda m, n=name: f"{n}: {m}")
    assert all(
        torch.equal(a, b)
        for a, b in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize("name", IN_TORCHVISION)
def test_parity_with_torchvision(name):
    """Narrow fully connected layers spare time; the next test has the wide ones."""
    torch.manual_seed(0)
    ours = build(name, hidden=(32, 32)).double()
    with torch.device("meta"):
        theirs = getattr(torchvision.models, name)(num_classes=10)
    theirs.classifier[0] = nn.Linear(512 * 49, 32)
    theirs.classifier[3] = nn.Linear(32, 32)
    theirs.classifier[6] = nn.Linear(32, 10)
    x = torch.randn(3 if "bn" in name else 1, 3, 32, 32).double()  # norms need several places
    compare(ours, theirs.to_empty(device="cpu").double(), x)


def test_whole_vgg11_equals_torchvision():
    torch.manual_seed(0)
    with torch.device("meta"):
        ours, theirs = MODELS["vgg11"](), torchvision.models.vgg11()
    ours.to_empty(device="cpu")
    for p in ours.parameters():
        nn.init.normal_(p, 0, 0.02)
    theirs.load_state_dict(ours.state_dict(), assign=True)
    x = torch.randn(1, 3, 64, 64)
    for training in (True, False):
        answers = []
        for model in (ours.train(training), theirs.train(training)):
            torch.manual_seed(1)
            with torch.inference_mode():
                answers.append(model(x))
        torch.testing.assert_close(*answers)


def test_layers_are_torchvisions():
    assert len(IN_TORCHVISION) == 8
    for name in IN_TORCHVISION:
        with torch.device("meta"):
            ours, theirs = MODELS[name](), getattr(torchvision.models, name)()
        assert structure(ours) == structure(theirs)


# ---------------------------------------------------------------------- dense evaluation


def tiny(**changes):
    """A network of a few channels with all that dense evaluation has to turn round."""
    torch.manual_seed(0)
    sizes = dict(widths=(4, 6, 8, 10, 12), hidden=(20, 16))
    return perturb(VGG(vgg.A, 5, **{**sizes, **changes}).double()).eval()


@torch.inference_mode()
def test_dense_equals_plain_at_the_training_size():
    x = torch.randn(2, 3, 224, 224)
    for model in (tiny(), tiny(pooled=1), tiny(batch_norm=True), tiny(lrn=True, hidden=())):
        size = 32 * model.avgpool.output_size
        scores = fully_convolutional(model)(x[:, :, :size, :size].double())
        assert scores.shape == (2, 5, 1, 1)
        torch.testing.assert_close(scores[:, :, 0, 0], model(x[:, :, :size, :size].double()))


@torch.inference_mode()
def test_dense_vgg11_at_224_pixels():
    """The widths of the paper, in float32; 64 in place of 4096 hidden units spare a gigabyte."""
    torch.manual_seed(0)
    model = build("vgg11", hidden=(64, 64)).eval()
    x = torch.randn(1, 3, 224, 224)
    torch.testing.assert_close(
        fully_convolutional(model)(x)[:, :, 0, 0], model(x), rtol=1e-5, atol=1e-5
    )


@torch.inference_mode()
def test_dense_slides_the_classifier_over_the_maps():
    """Every score is the fully connected layers at one window of the last maps: always so."""
    model, x = tiny(), torch.randn(2, 3, 290, 331).double()
    maps, scores = model.features(x), fully_convolutional(model)(x)
    assert maps.shape[2:] == (9, 10)
    assert scores.shape == (2, 5, 3, 4)
    for row in range(3):
        for column in range(4):
            window = maps[:, :, row : row + 7, column : column + 7]
            wanted = model.classifier(window.flatten(1))
            torch.testing.assert_close(scores[:, :, row, column], wanted)


@torch.inference_mode()
def test_dense_is_the_plain_network_at_every_window():
    """Exactly so without padding. With it, windows that are cut out see zeros at their borders
    where the whole image goes on: they differ, and the fewer, the more of the window is inside."""
    model, window = tiny(pooled=1), 150  # the least that five unpadded blocks leave a pixel of
    for layer in model.features:
        if isinstance(layer, nn.Conv2d):
            layer.padding = (0, 0)
    x = torch.randn(1, 3, window + 32, window + 64).double()
    scores, answers = fully_convolutional(model)(x), []
    assert scores.shape == (1, 5, 2, 3)
    for row in range(2):
        for column in range(3):
            cut = x[:, :, 32 * row : 32 * row + window, 32 * column : 32 * column + window]
            answers.append(model(cut))
            torch.testing.assert_close(scores[:, :, row, column], answers[-1])
    torch.testing.assert_close(scores.mean((2, 3)), torch.stack(answers).mean(0))
    padded, x = tiny(), torch.randn(1, 3, 256, 256).double()
    crop = padded(x[:, :, :224, :224])
    assert not torch.allclose(fully_convolutional(padded)(x)[:, :, 0, 0], crop, rtol=1e-3)


def test_dense_shares_the_weights():
    model = tiny(pooled=1)
    dense = fully_convolutional(model)
    assert {id(p) for p in dense.parameters()} == {id(p) for p in model.parameters()}
    assert sum(isinstance(layer, SlidingLinear) for layer in dense) == 3
    x = torch.randn(2, 3, 32, 32).double()
    dense(x).sum().backward()
    gradient = model.classifier[0].weight.grad.clone()
    model.zero_grad()
    model(x).sum().backward()
    torch.testing.assert_close(gradient, model.classifier[0].weight.grad)
    with torch.no_grad():
        model.classifier[0].weight.mul_(2)
    torch.testing.assert_close(dense(x)[:, :, 0, 0], model(x))


@pytest.mark.parametrize("name", [name for name in MODELS if "small" in name])
def test_overfits_one_batch(name):
    torch.manual_seed(0)
    model, x, labels = MODELS[name](), torch.rand(8, 3, 32, 32), torch.arange(8)
    assert model.classifier[0].out_features == SMALL["hidden"][0]
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.001)
    for _ in range(20):
        logits = model(x)
        optimizer.zero_grad()
        F.cross_entropy(logits, labels).backward()
        optimizer.step()
    assert (logits.argmax(1) == labels).all()


# ---------------------------------------------------------------------- train.py


@pytest.fixture
def tree():
    """A folder of small photographs, wide and tall, some of them grey: two classes of twelve."""
    make_tree(classes=("dark", "light"), count=12, sizes=[(50, 44, 3), (40, 61, 3), (40, 40)])
    return ["--quiet", "--data", "folder:tree", "--model", "vgg11_bn_small", "--size", "32"]


SHORT = ["--epochs", "1", "--val", "0", "--batch-size", "8"]


@pytest.mark.parametrize(
    "flags",
    [
        ["--precision", "bf16"],
        ["--precision", "fp16"],
        ["--scales", "36", "72", "--stream", "--workers", "0"],
        ["--val", "4", "--dense", "32", "48"],
        ["--paper", "--accumulate", "2"],
    ],
)
def test_every_path_of_the_loop(tree, flags):
    metrics = train.main([*tree, *SHORT, "--run-dir", "run", *flags])
    assert {"train_loss", "train_accuracy", "test_loss", "test_accuracy"} == metrics.keys()
    assert all(map(math.isfinite, metrics.values()))
    assert all(t.isfinite().all() for t in weights("run").values())
    assert Path("run/confusion.png").exists()


def test_resumed_equals_uninterrupted(tree):
    """With dropout, windows, colour shifts and batch norm."""
    flags = [*tree, *SHORT, "--epochs", "2", "--scales", "36", "72", "--precision", "fp32"]
    train.main([*flags, "--run-dir", "a"])
    train.main([*flags, "--run-dir", "b", "--max-steps", "3"])  # inside the second epoch
    train.main(["--quiet", "--resume", "--run-dir", "b"])
    a, b = (weights(folder) for folder in "ab")
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_the_paper_divides_the_rate_three_times():
    shares = [train.step_size(step / 100) for step in range(5, 100)]
    assert shares == sorted(shares, reverse=True)
    assert [round(math.log10(share)) for share in sorted(set(shares))] == [-3, -2, -1, 0]
    assert [train.step_size(done) for done in (0, 0.025, 0.05)] == [0, 0.5, 1]  # warm-up


def test_scales_and_dense_of_the_paper_are_for_folders_of_224_pixels():
    def scales(*argv):
        args = train.parse_args(["--paper", *argv])
        return args.size, args.scales, args.dense

    assert scales() == (224, [256, 512], [256, 384, 512])
    assert scales("--size", "448") == (448, [512, 1024], [512, 768, 1024])
    assert scales("--size", "96") == (96, [109, 219], None)  # less than the classifier's window
    assert scales("--data", "shapes") == (64, [73, 73], None)
    assert scales("--dense") == (224, [256, 512], [])
    assert scales("--scales", "384", "384") == (224, [384, 384], [256, 384, 512])
    for name in MODELS:
        with torch.device("meta"):
            pooled = MODELS[name]().avgpool.output_size
        least = 32 * pooled
        assert train.parse_args(["--model", name, "--dense", "448", "--size", f"{least}"]).dense
        with pytest.raises(SystemExit):
            train.parse_args(["--model", name, "--dense", f"{least - 1}", "--size", "224"])


def test_scales_reach_the_windows(tree, monkeypatch):
    seen = {}

    def stop(*_, window, **__):
        seen.update(window.keywords)
        raise SystemExit

    monkeypatch.setattr(train, "load_images", stop)
    for flags, low, high in (
        ([], 36, 36),
        (["--scales", "40", "80"], 40, 80),
        (["--paper"], 36, 73),
    ):
        with pytest.raises(SystemExit):
            train.main([*tree, *flags])
        assert seen == {"size": 32, "low": low, "high": high}


@torch.inference_mode()
def test_dense_logits_average_scales_and_mirror_images():
    model, x = tiny(pooled=1, batch_norm=True), torch.randn(3, 3, 64, 64).double()
    half = F.avg_pool2d(x, 2)  # near enough to scaling with antialiasing for the same classes
    model.features[0].weight.mul_(0.1)
    shares = train.dense_logits(model, x, [64, 32]).exp()
    torch.testing.assert_close(shares.sum(1), torch.ones(3))
    torch.testing.assert_close(train.dense_logits(model, x.flip(3), [64, 32]).exp(), shares)
    one = train.dense_logits(model, half, [32]).exp()
    plain = torch.stack([model(half).softmax(1), model(half.flip(3)).softmax(1)]).mean(0)
    torch.testing.assert_close(one, plain.float())
    large = train.dense_logits(model, x, [64]).exp()
    assert not torch.allclose(large, shares, rtol=1e-3)
    small = 2 * shares - large
    torch.testing.assert_close(small, train.dense_logits(model, x, [32]).exp())


def test_evaluation_of_a_checkpoint_plain_and_dense(tree):
    metrics = train.main([*tree, *SHORT, "--run-dir", "run"])
    checkpoint = ["--quiet", "--evaluate", "run/last.pt"]
    plain = train.main(checkpoint)
    assert plain["test_loss"] == pytest.approx(metrics["test_loss"])
    dense = train.main([*checkpoint, "--dense", "32", "64"])
    assert dense.keys() == plain.keys()
    assert dense["test_loss"] != pytest.approx(plain["test_loss"])


def test_bad_flags_of_its_own(refused, tree):
    def line(*argv):
        message = refused(train.main, list(argv))
        assert not Path("runs").exists()
        return message

    assert "folder" in line("--scales", "40", "80")
    assert "LOW" in line(*tree, "--scales", "31", "64")
    assert "LOW" in line(*tree, "--scales", "64", "40")
    assert "--scales" in line(*tree, "--scales", "40")
    assert "32" in line("--dense", "31")
    assert "224" in line("--model", "vgg11", "--dense", "256")  # of 64 pixels on shapes
    assert "--fsdp" in line("--dense", "64", "--fsdp")
    assert "too small for vgg11_bn_small: raise --size" in line("--size", "16")
    assert "vgg16_bn" in line("--weights", "imagenet")  # what it has them for
    assert "--weights" in line("--freeze")


# ---------------------------------------------------------------------- weights


@pytest.fixture
def narrow(monkeypatch):
    """vgg11 and vgg13 with narrow fully connected layers, here and in torchvision."""
    for name in ("vgg11", "vgg13"):
        factory = lambda num_classes=1000, n=name: narrow_ours(n, num_classes)  # noqa: E731
        monkeypatch.setitem(train.MODELS, name, factory)


def narrow_ours(name, num_classes):
    configuration = {"vgg11": vgg.A, "vgg13": vgg.B}[name]
    return VGG(configuration, num_classes, hidden=(16, 16))


def narrow_torchvision(name):
    with torch.device("meta"):
        model = getattr(torchvision.models, name)()
    model.classifier[0] = nn.Linear(512 * 49, 16)
    model.classifier[3] = nn.Linear(16, 16)
    model.classifier[6] = nn.Linear(16, 1000)
    model = model.to_empty(device="cpu")
    for value in model.state_dict().values():
        nn.init.normal_(value, 0, 0.02)
    return model


def test_published_weights_start_a_run_on_other_classes(tree, narrow):
    theirs = narrow_torchvision("vgg11").state_dict()
    torch.save(theirs, "vgg11.pth")
    flags = [*tree, *SHORT, "--model", "vgg11", "--weights", "vgg11.pth", "--run-dir", "run"]
    train.main([*flags, "--freeze"])
    content = torch.load("run/last.pt")
    ours, head = content["model"], ("classifier.6.weight", "classifier.6.bias")
    assert all(torch.equal(ours[k], theirs[k]) for k in ours if k not in head)
    assert [list(ours[k].shape) for k in head] == [[2, 16], [2]]
    assert set(content["optimizer"]["state"]) == set(head)
    train.main([*tree, *SHORT, "--run-dir", "plain"])
    plain = torch.load("plain/last.pt")["dataset"]  # those of the data: the file names no others
    assert content["dataset"] == plain


def test_samples_of_published_weights(narrow):
    theirs = narrow_torchvision("vgg11")
    check_published(sample, theirs, torchvision.models.VGG11_Weights.IMAGENET1K_V1)


def test_weights_that_do_not_fit(tree, narrow, refused):
    torch.save(narrow_torchvision("vgg13").state_dict(), "vgg13.pth")
    flags = [*tree, *SHORT, "--model", "vgg11", "--weights"]
    assert "vgg13.pth" in refused(train.main, [*flags, "vgg13.pth"])
    Path("noise.pth").write_bytes(b"noise")
    assert "noise.pth" in refused(train.main, [*flags, "noise.pth"])


@pytest.fixture(scope="module")
def small():
    """Weights of a small network of two classes, drawn at random."""
    torch.manual_seed(1)
    return MODELS["vgg11_bn_small"](num_classes=2).state_dict()


KEYS = ["", "state_dict", "model_state_dict", "model", "ema"]
STEP = ["--batch-size", "8", "--val", "0", "--precision", "fp32", "--max-steps", "1"]


@pytest.mark.parametrize(("key", "prefix"), [*((key, "module.") for key in KEYS),
                                             ("", "_orig_mod."), ("state_dict", "")])  # fmt: skip
def test_weights_as_others_save_them(tree, small, key, prefix, capsys):
    state = {prefix + name: value for name, value in small.items()}
    torch.save({key: state, "epoch": 3, "best": 0.9} if key else state, "theirs.pth")
    flags = [flag for flag in tree if flag != "--quiet"]
    train.main([*flags, *STEP, "--lr", "1e-30", "--weights", "theirs.pth", "--run-dir", "run"])
    printed = capsys.readouterr().out
    assert "weights of theirs.pth; mean and std are those of the data" in printed
    ours = weights("run")
    learnt = [k for k in ours if k.endswith(("weight", "bias"))]
    assert all(torch.equal(ours[k], small[k]) for k in learnt)


def test_weights_in_safetensors(tree, small):
    from safetensors.torch import save_file

    save_file(small, "theirs.safetensors")
    flags = [*tree, *STEP, "--lr", "1e-30", "--weights", "theirs.safetensors", "--run-dir", "run"]
    train.main(flags)
    assert torch.equal(weights("run")["features.0.weight"], small["features.0.weight"])


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_files_that_are_something_else_are_called_what_they_are(tree, small, refused):
    torch.jit.script(nn.Linear(2, 2)).save("script.pt")
    torch.save(MODELS["vgg11_bn_small"](num_classes=2), "whole.pt")
    torch.save(small, "small.pth")
    torch.save({"state_dict": {f"module.{k}": v for k, v in small.items()}}, "nested.pth")

    def lines(path):
        """What --weights, --evaluate and sample.py say of it."""
        yield refused(train.main, [*tree, *STEP, "--weights", path])
        yield refused(train.main, ["--quiet", "--evaluate", path])
        yield refused(sample.main, ["--checkpoint", path])

    for line in lines("script.pt"):
        assert "script.pt is a TorchScript program" in line
        assert "state_dict" in line
    for line in lines("whole.pt"):
        assert "whole.pt holds more than tensors and plain values" in line
        assert "state_dict" in line
    for path in ("small.pth", "nested.pth"):
        for main, flag in ((train.main, "--evaluate"), (sample.main, "--checkpoint")):
            line = refused(main, [flag, path])
            assert f"{path} is not a checkpoint of a run" in line
            assert "it holds weights alone, which --weights takes" in line
    assert not Path("runs").exists()


def test_all_that_torchvision_has_weights_for():
    assert set(train.PUBLISHED) == set(IN_TORCHVISION)
    for name in train.PUBLISHED.values():
        assert torchvision.models.get_model_weights(name).IMAGENET1K_V1.url


# ---------------------------------------------------------------------- sample.py, claims.py


def test_sample(tree, capsys, refused):
    assert "train.py" in refused(sample.main, [])
    metrics = train.main([*tree, *SHORT, "--run-dir", "run"])
    checkpoint = ["--checkpoint", "run/last.pt"]
    found = sample.main([*checkpoint, "tree/dark", "tree/light/0.png", "--out", "out"])
    assert len(found) == 13
    for answers in found.values():
        assert {name for name, _ in answers} == {"dark", "light"}
        assert sum(share for _, share in answers) == pytest.approx(1, abs=1e-3)
    assert "grey" in capsys.readouterr().out
    assert Path("out/predictions.jpg").exists()
    shown = sample.main([*checkpoint, "--out", "grid"])
    assert shown["right"] == round(5 * metrics["test_accuracy"])
    assert Path("grid/predictions.jpg").exists()
    assert "nothing.png" in refused(sample.main, [*checkpoint, "nothing.png"])


def test_claims_run_resume_and_summarise(tree, capsys):
    argv = ["depth", "--data", "folder:tree", "--seeds", "0", "1", "--epochs", "1", "--out", "out"]
    summary = claims.main(argv)
    assert list(summary) == ["vgg11_bn_small", "vgg13_bn_small", "vgg16_bn_small"]
    written = json.loads(Path("out/claim_depth.json").read_text())
    assert len(written["vgg16_bn_small"]["test_accuracy"]["values"]) == 2
    command = written["vgg13_bn_small"]["command"]
    assert command.startswith("python vgg/train.py --data folder:tree")
    train.parse_args(command.replace("SEED", "0").split()[2:])
    assert Path("out/claim_depth.png").exists()
    before = {p: p.stat().st_mtime_ns for p in Path("runs").rglob("*")}
    assert claims.main(argv) == summary  # skipped, as all is done
    assert before == {p: p.stat().st_mtime_ns for p in Path("runs").rglob("*")}


@pytest.mark.slow
def test_quick_reaches_the_number_of_the_readme():
    assert train.main(["--quiet"])["test_accuracy"] >= 0.85
