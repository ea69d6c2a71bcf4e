"""DenseNets: sizes, parity with torchvision, equations, recomputation, and that they learn."""

import json
import math
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import torchvision
from conftest import MILESTONES
from helpers import check_mean_loss, check_published, compare, count, perturb, structure, weights
from torch import nn

from densenet import claims, sample, train
from densenet.model import (
    MODELS,
    DenseLayer,
    DenseNet,
    Transition,
    cifar_densenet,
    current_name,
    densenet121,
    densenet_bc_22_12,
)

PARAMETERS = {
    "densenet121": 7_978_856,
    "densenet161": 28_681_000,
    "densenet169": 14_149_480,
    "densenet201": 20_013_928,
    "densenet40": 1_019_722,
    "densenet_bc_22_12": 71_686,
    "densenet_bc_40_12": 176_122,
    "densenet_bc_100_12": 769_162,
}
FLAGS = ["--data", "digits", "--limit", "96", "--val", "0", "--batch-size", "32", "--quiet"]


def test_parameters():
    with torch.device("meta"):
        assert {name: count(make()) for name, make in MODELS.items()} == PARAMETERS
        sizes = [count(cifar_densenet(*a)) for a in ((100, 12), (100, 24))]
        sizes += [count(cifar_densenet(*a, bc=True)) for a in ((250, 24), (190, 40))]
    assert sizes == [6_979_642, 27_249_082, 15_324_406, 25_624_430]
    for depth, bc in ((41, False), (43, True), (4, False)):
        with pytest.raises(ValueError, match=f"not {depth}"):
            cifar_densenet(depth, bc=bc)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", ["densenet121", "densenet161", "densenet169", "densenet201"])
def test_parity_with_torchvision(name, training):
    theirs = perturb(getattr(torchvision.models, name)(num_classes=7).double())
    with torch.device("meta"):
        ours = MODELS[name](num_classes=7).double()
    ours.to_empty(device="cpu").load_state_dict(theirs.state_dict())  # the names are the same
    compare(ours, theirs, torch.randn(2, 3, 64, 72, dtype=torch.float64), training)


@pytest.mark.parametrize("depth", [121, 161, 169, 201])
def test_layers_are_torchvisions(depth):
    name = f"densenet{depth}"
    with torch.device("meta"):
        theirs = getattr(torchvision.models, name)()
        assert structure(MODELS[name](num_classes=1000)) == structure(theirs)


def test_parity_of_recomputing_networks():
    """Ours with theirs; but theirs counts each batch twice in its running statistics."""
    options = dict(growth_rate=4, block_config=(2, 3), num_init_features=8, num_classes=7)
    theirs = torchvision.models.DenseNet(**options, memory_efficient=True)
    theirs = perturb(theirs.double())
    ours = DenseNet(**options, checkpoint=True).double()
    ours.load_state_dict(theirs.state_dict())
    images = torch.randn(2, 3, 64, 72, dtype=torch.float64)
    compare(ours, theirs, images, True, statistics=False)


def older(state):
    """A state_dict with the names that the published files have: `norm.1` for `norm1`."""
    return {re.sub(r"(layer\d+\.(?:norm|conv))", r"\1.", key): v for key, v in state.items()}


def test_names_of_published_files_are_understood():
    state = densenet121().state_dict()
    old = older(state)
    assert "features.denseblock1.denselayer1.norm.1.running_var" in old
    assert "features.denseblock4.denselayer16.conv.2.weight" in old
    assert [current_name(key) for key in old] == list(state)
    assert all(current_name(key) == key for key in state)
    model = densenet121()
    model.load_state_dict(old)
    loaded = model.state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in state.items())
    assert "features.denseblock1.denselayer1.norm.1.running_var" in old  # the caller's are kept
    whole = nn.Sequential(densenet_bc_22_12())  # also as a part of something else
    whole.load_state_dict(older(whole.state_dict()))


def test_stages_are_table_1():
    shapes = []
    model = densenet121(num_classes=10)
    for name in ("conv0", "pool0", *(f"denseblock{i}" for i in range(1, 5))):
        layer = model.features.get_submodule(name)
        layer.register_forward_hook(lambda _, __, out: shapes.append(tuple(out.shape[1:])))
    model.eval()(torch.zeros(1, 3, 224, 224))
    assert shapes == [
        (64, 112, 112), (64, 56, 56), (256, 56, 56), (512, 28, 28), (1024, 14, 14), (1024, 7, 7),
    ]  # fmt: skip


@pytest.mark.parametrize(("depth", "bc"), [(40, False), (100, True)])
def test_stages_of_cifar(depth, bc):
    """Three equal blocks of 32, 16 and 8 pixels, of the depth that the name says."""
    with torch.device("meta"):
        model, shapes = cifar_densenet(depth, bc=bc), []
        for i in (1, 2, 3):
            block = model.features.get_submodule(f"denseblock{i}")
            block.register_forward_hook(lambda _, __, out: shapes.append(tuple(out.shape[1:])))
        assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    widths = [216, 300, 342] if bc else [160, 304, 448]
    assert shapes == [(w, size, size) for w, size in zip(widths, (32, 16, 8), strict=True)]
    layers = [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    assert len(layers) == depth


@pytest.mark.parametrize(("depth", "bc"), [(10, False), (16, True)])
def test_cifar_networks_are_eq_2_written_out(depth, bc):
    """Sec. 3 in functions, in the paper's order: x_l = H_l([x_0, ..., x_(l-1)])."""
    model = perturb(cifar_densenet(depth, growth_rate=4, bc=bc).double()).eval()
    images = torch.randn(2, 3, 20, 20, dtype=torch.float64)
    parts = dict(model.features.named_children())

    def norm_relu(x, norm):
        mean, var = norm.running_mean, norm.running_var
        x = (x - mean.view(-1, 1, 1)) / (var.view(-1, 1, 1) + 1e-5).sqrt()
        return (x * norm.weight.view(-1, 1, 1) + norm.bias.view(-1, 1, 1)).clamp(min=0)

    x = F.conv2d(images, parts["conv0"].weight, padding=1)
    for i in (1, 2, 3):
        features = [x]
        for layer in parts[f"denseblock{i}"]:
            new = norm_relu(torch.cat(features, 1), layer.norm1)
            if bc:
                new = norm_relu(F.conv2d(new, layer.conv1.weight), layer.norm2)
            last = layer.conv2 if bc else layer.conv1
            features.append(F.conv2d(new, last.weight, padding=1))
            assert features[-1].shape[1] == 4
        x = torch.cat(features, 1)
        if i < 3:
            channels = x.shape[1]
            between = parts[f"transition{i}"]
            x = F.avg_pool2d(F.conv2d(norm_relu(x, between.norm), between.conv.weight), 2)
            assert x.shape[1] == (channels // 2 if bc else channels)
    logits = model.classifier(norm_relu(x, parts["norm5"]).mean((2, 3)))
    torch.testing.assert_close(model(images), logits)


def test_transitions_pool_first_unless_dropout_stands_between():
    torch.manual_seed(0)
    between = perturb(Transition(6, 3).double())
    x = torch.randn(2, 6, 7, 9, dtype=torch.float64)  # odd sizes are cut off in either order
    wanted = F.avg_pool2d(between.conv(F.relu(between.norm(x.clone()))), 2)
    torch.testing.assert_close(between(x.clone()), wanted)
    between.dropout.p = 0.999  # nothing is left of nearly all pixels, before they are pooled
    zeros = (between(torch.randn(2, 6, 64, 64, dtype=torch.float64)) == 0).double().mean()
    assert 0.99 < zeros < 0.9985  # of single pixels it would be 0.999
    assert (between.eval()(x) != 0).all()


@pytest.mark.parametrize(
    ("depth", "bc", "places"), [(22, True, 9 * 2 + 2), (40, False, 36 + 2)], ids=["bc", "plain"]
)
def test_dropout_follows_every_convolution_but_the_first(monkeypatch, depth, bc, places):
    """Of 22 layers 20, of 40 layers 38: without the first convolution and the classifier."""
    dropped, real = [], F.dropout
    model = cifar_densenet(depth, bc=bc, drop_rate=0.2)
    made = []
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda _, __, out: made.append(out))
    monkeypatch.setattr(F, "dropout", lambda x, *a: dropped.append(x) or real(x, *a))
    model(torch.randn(2, 3, 16, 16))
    assert len(dropped) == places
    assert [id(x) for x in dropped] == [id(x) for x in made[1:]]
    logits = [model.eval()(torch.ones(1, 3, 16, 16)) for _ in range(2)]
    assert torch.equal(*logits)


def test_initial_weights():
    torch.manual_seed(0)
    model = densenet121()
    for name, m in model.named_modules():
        if isinstance(m, nn.Conv2d):
            fan_out = m.out_channels * m.kernel_size[0] ** 2
            assert m.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.1), name
    assert not model.classifier.bias.any()


# ---------------------------------------------------------------------- recomputation


def saved_bytes(model, x):
    """What a forward pass keeps for the gradients, each storage once, without parameters."""
    own = {p.untyped_storage().data_ptr() for p in [*model.parameters(), *model.buffers()]}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = (tensor, storage.nbytes())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        model(x)
    return sum(size for _, size in kept.values())


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("depth", "bc"), [(22, True), (16, False)], ids=["bc", "plain"])
def test_recomputing_changes_nothing(depth, bc, precision):
    """Outputs, gradients and running statistics bit for bit, with dropout, over two steps."""
    models, outputs = [], []
    for checkpoint in (False, True):
        torch.manual_seed(0)
        model = cifar_densenet(depth, bc=bc, drop_rate=0.2, checkpoint=checkpoint)
        for seed in (1, 2):
            torch.manual_seed(seed)
            with torch.autocast("cpu", precision, enabled=precision != torch.float32):
                logits = model(torch.randn(4, 3, 16, 16))
                loss = F.cross_entropy(logits, torch.arange(4))
            loss.backward()
        models.append(model)
        outputs.append(logits)
    assert torch.equal(*outputs)
    plain, again = models
    for (key, a), b in zip(plain.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad), key
    for (key, a), b in zip(plain.named_buffers(), again.buffers(), strict=True):
        assert torch.equal(a, b), key
    assert again.features.denseblock1.denselayer1.norm1.num_batches_tracked == 2


def test_recomputing_works_in_evaluation_and_with_frozen_layers():
    model = perturb(densenet_bc_22_12(checkpoint=True)).eval()
    plain = densenet_bc_22_12().eval()
    plain.load_state_dict(model.state_dict())
    x = torch.randn(2, 3, 16, 16)
    for net in (model, plain):
        net(x).sum().backward()
    with torch.no_grad():
        assert torch.equal(model(x), plain(x))
    for a, b in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)
    for a, b in zip(model.buffers(), plain.buffers(), strict=True):
        assert torch.equal(a, b)
    model.zero_grad()
    model.train().features.requires_grad_(False)
    model(x).sum().backward()
    assert not any(p.grad is not None for p in model.features.parameters())
    assert model.classifier.weight.grad.abs().sum() > 0


@pytest.mark.parametrize(("name", "share"), [("densenet121", 0.5), ("densenet40", 0.25)])
def test_recomputing_keeps_less_for_the_gradients(name, share):
    """Without it each layer keeps all features joined, and normalised, for itself."""
    x = torch.randn(2, 3, 64, 64) if name == "densenet121" else torch.randn(2, 3, 32, 32)
    plain, again = (saved_bytes(MODELS[name](checkpoint=flag), x) for flag in (False, True))
    assert again < share * plain


def test_memory_grows_in_proportion_to_the_depth():
    """Four times the layers take at most about four times the memory; without, more than that."""
    x, sizes = torch.randn(2, 3, 16, 16), {}
    for flag in (False, True):
        for depth in (22, 76):  # 3 and 12 layers a block
            sizes[flag, depth] = saved_bytes(cifar_densenet(depth, bc=True, checkpoint=flag), x)
    assert sizes[True, 76] < 4.2 * sizes[True, 22]
    assert sizes[False, 76] > 4.9 * sizes[False, 22]


def test_it_overfits_a_batch():
    torch.manual_seed(0)
    model, images, labels = densenet_bc_22_12(), torch.randn(16, 3, 32, 32), torch.arange(16) % 10
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, nesterov=True)
    for _ in range(60):
        loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if loss < 0.05:
            break
    assert loss < 0.05


# ---------------------------------------------------------------------- the scripts


def test_recipes():
    args = train.parse_args([])
    assert (args.model, args.data, args.size) == ("densenet_bc_22_12", "shapes", 32)
    args = train.parse_args(["--paper"])
    assert (args.model, args.data, args.epochs, args.batch_size, args.val, args.dropout) == (
        "densenet_bc_100_12", "cifar10", 300, 64, 0, 0.0,
    )  # fmt: skip
    assert train.parse_args(["--paper", "--no-augment"]).dropout == 0.2
    assert train.parse_args(["--model", "densenet40", "--no-augment"]).dropout == 0.2
    assert train.parse_args(["--no-augment", "--dropout", "0"]).dropout == 0
    args = train.parse_args(["--paper", "--model", "densenet121", "--no-augment"])
    assert (args.data, args.epochs, args.batch_size, args.size, args.dropout) == (
        "folder:data/imagenet", 90, 256, 224, 0.0,
    )  # fmt: skip
    args = train.parse_args(["--paper", "--model", "densenet161"])
    assert (args.epochs, args.batch_size) == (100, 128)
    assert train.parse_args(["--model", "densenet121"]).size == 64
    model = train.build(train.parse_args(["--dropout", "0.3", "--recompute"]), 4)
    layer = model.features.denseblock2.denselayer3
    assert isinstance(layer, DenseLayer)
    assert (layer.dropout.p, layer.checkpoint, model.classifier.out_features) == (0.3, True, 4)
    assert model.features.transition1.dropout.p == 0.3


def test_step_sizes_are_the_papers():
    for name, epochs, falls in (
        ("densenet40", 300, (150, 225)),
        ("densenet121", 90, (30, 60)),
        ("densenet161", 100, (30, 60, 90)),
    ):
        shares = [train.step_size(epochs * 7, train.drops(name), s) for s in range(epochs * 7)]
        for number, (low, high) in enumerate(zip((0, *falls), (*falls, epochs), strict=True)):
            assert set(shares[low * 7 : high * 7]) == {0.1**number}, name


def test_momentum_is_nesterovs(monkeypatch, few):
    made, real = [], torch.optim.SGD
    monkeypatch.setattr(torch.optim, "SGD", lambda *a, **k: made.append(k) or real(*a, **k))
    train.main([*FLAGS, "--max-steps", "1"])
    assert made[0]["nesterov"]
    assert (made[0]["momentum"], made[0]["weight_decay"]) == (0.9, 1e-4)


def test_flags_that_are_refused(refused):
    assert set(train.PUBLISHED) == {f"densenet{n}" for n in (121, 161, 169, 201)}
    line = refused(train.main, ["--weights", "imagenet"])
    assert "none for densenet_bc_22_12, but for densenet121" in line
    assert "--compile" in refused(train.main, ["--recompute", "--compile"])
    assert "from 0 to below 1" in refused(train.main, ["--dropout", "1"])
    line = refused(train.main, ["--model", "densenet121", "--size", "16", "--limit", "64"])
    assert "too small for densenet121" in line


def test_fine_tuning_from_a_published_file(capsys, few):
    theirs = perturb(torchvision.models.densenet121())
    torch.save(older(theirs.state_dict()), "tv.pth")
    argv = ["--model", "densenet121", "--limit", "32", "--size", "32", "--weights", "tv.pth"]
    argv += ["--freeze", "--data", "digits", "--val", "0"]
    train.main([*argv, "--max-steps", "2", "--batch-size", "16", "--run-dir", "run"])
    line = "weights of tv.pth; classifier new, for digits's classes; mean and std are those"
    assert f"{line} of the data" in capsys.readouterr().out
    state = weights("run")
    for key, value in theirs.state_dict().items():
        assert torch.equal(state[key], value) == (not key.startswith("classifier.")), key
    assert state["classifier.weight"].shape == (10, 1024)
    Path("tv.pth").unlink()  # evaluating doesn't need it
    metrics = train.main(["--evaluate", "run/last.pt", "--quiet"])
    assert set(metrics) == {"test_loss", "test_accuracy"}


def test_a_recomputed_training_is_the_same_training(few):
    argv = [*FLAGS, "--max-steps", "2", "--dropout", "0.1"]
    train.main([*argv, "--run-dir", "plain"])
    train.main([*argv, "--run-dir", "again", "--recompute"])
    plain, again = weights("plain"), weights("again")
    assert all(torch.equal(plain[key], again[key]) for key in plain)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_paths_of_the_loop(precision, few):
    argv = [*FLAGS, "--max-steps", "2", "--accumulate", "2", "--precision", precision]
    metrics = train.main([*argv, "--recompute", "--run-dir", "run"])
    assert all(map(math.isfinite, metrics.values()))
    assert all(t.isfinite().all() for t in weights("run").values())
    assert Path("run/confusion.png").exists()


def test_the_loss_is_a_mean_over_the_images():
    check_mean_loss(train)


def test_samples(capsys, monkeypatch):
    monkeypatch.setattr("common.data.shapes.NUM_SCENES", {"train": 64, "test": 30})
    metrics = train.main(["--val", "0", "--epochs", "2", "--lr", "0.02", "--quiet"])
    assert sample.main([])["right"] == round(30 * metrics["test_accuracy"])
    from PIL import Image

    Image.new("RGB", (50, 40), "red").save("red.png")
    Image.new("L", (20, 90)).save("grey.png")
    found = sample.main(["red.png", "grey.png", "--out", "out"])
    assert len(found["red.png"]) == 5
    assert Path("out/predictions.jpg").exists()
    assert "grey.png (grey: made RGB)" in capsys.readouterr().out


def test_samples_of_published_weights():
    """Under the names of the published files."""
    theirs = perturb(torchvision.models.densenet121())
    theirs.register_state_dict_post_hook(lambda _, state, *__: rename_older(state))
    entry = torchvision.models.DenseNet121_Weights.IMAGENET1K_V1
    check_published(sample, theirs, entry)
    assert "features.denseblock1.denselayer1.norm.1.weight" in torch.load("theirs.pth")


def rename_older(state):
    for key, value in older(dict(state)).items():
        if key not in state:
            del state[current_name(key)]
            state[key] = value


# ---------------------------------------------------------------------- the claims


def test_claim_of_parameters(monkeypatch, capsys, few):
    runs = []

    def short(argv):  # in place of both scripts; the residual network is another of ours here
        runs.append(argv)
        argv = [{"resnet20": "densenet40"}.get(word, word) for word in argv]
        return train.main([*argv, "--quiet"])

    monkeypatch.setattr(claims, "train", short)
    monkeypatch.setattr(claims, "train_resnet", short)
    monkeypatch.setattr(claims, "DENSE", {"densenet_bc_22_12": []})
    monkeypatch.setattr(claims, "RESIDUAL", {"resnet20": ["--model", "resnet20"]})
    argv = ["parameters", "--data", "digits", "--epochs", "1", "--max-steps", "1"]
    argv += ["--size", "16", "--seeds", "0", "1", "--out", "out"]
    summary = claims.main(argv)
    assert len(runs) == 4
    assert json.loads(Path("out/claim_parameters.json").read_text()) == summary
    counts = [row["parameters"]["values"] for row in summary.values()]
    assert counts == [[71_686] * 2, [1_019_722] * 2]
    commands = [row["command"].split()[1] for row in summary.values()]
    assert commands == ["densenet/train.py", "resnet/train.py"]
    assert Path("out/claim_parameters.png").exists()
    assert "71,686 parameters, test error" in capsys.readouterr().out
    claims.main(argv)
    assert len(runs) == 4  # done is done


@pytest.mark.skipif("resnet" not in MILESTONES, reason="a tree cut to some of the folders")
def test_residual_networks_are_trained_by_their_own_script():
    argv = [*FLAGS, "--max-steps", "1", "--width", "4", "--run-dir", "run"]
    metrics = claims.train_resnet(argv)
    assert 0 <= metrics["test_accuracy"] <= 1
    state = weights("run").items()
    learnt = sum(value.numel() for key, value in state if "running" not in key and value.dim())
    assert claims.parameters_of(Path("run")) == learnt
    with pytest.raises(SystemExit, match="2"):
        claims.train_resnet(["--model", "nothing", "--run-dir", "other"])


def test_a_tree_without_residual_networks(monkeypatch, refused):
    monkeypatch.setattr(claims, "__file__", str(Path("densenet", "claims.py").resolve()))
    assert "resnet/train.py isn't in this tree" in refused(claims.train_resnet, [])


def test_connections_are_mean_sizes_of_weights_by_source():
    model = cifar_densenet(13, growth_rate=5)  # 3 layers a block
    state = {key: value.double() * torch.nan for key, value in model.state_dict().items()}
    part = "features.denseblock2.denselayer"
    for target in range(3):  # layers, then the transition: reading source s with weight s + 1
        layer = state[f"{part}{target + 1}.conv1.weight"]
        for source in range(target + 1):
            begin, end = (0, 31) if source == 0 else (31 + 5 * source - 5, 31 + 5 * source)
            layer[:, begin:end] = (source + 1) * (-1) ** target
    between = state["features.transition2.conv.weight"]
    between.copy_(torch.cat([torch.full((31,), 9.0), torch.arange(15.0)]).view(1, -1, 1, 1))
    found = claims.connections(state, 2)
    nan = torch.nan
    wanted = [[1, 1, 1, 9], [nan, 2, 2, 2], [nan, nan, 3, 7], [nan, nan, nan, 12]]
    torch.testing.assert_close(found, torch.tensor(wanted), equal_nan=True, check_dtype=False)
    model_state = model.state_dict()
    last = claims.connections(model_state, 3)[:, -1]  # behind it: the classifier
    assert last[0] == pytest.approx(model_state["classifier.weight"][:, :46].abs().mean().item())


def test_evenness():
    nan = torch.nan
    equal = torch.tensor([[1, 2, 3.0], [nan, 2, 3], [nan, nan, 3]])
    assert claims.spread_of(equal) == pytest.approx({"evenness": 1, "input": 1})
    newest = torch.tensor([[1, 0, 0.0], [nan, 2, 0], [nan, nan, 3]])
    found = claims.spread_of(newest)
    assert found == pytest.approx({"evenness": (1 / 2 + 1 / 3) / 2, "input": 0}, abs=1e-6)


def test_claim_of_reuse(monkeypatch, capsys, few):
    monkeypatch.setattr(claims, "train", lambda argv: train.main([*argv, "--quiet"]))
    argv = ["reuse", "--data", "digits", "--epochs", "1", "--max-steps", "1", "--size", "16"]
    summary = claims.main([*argv, "--seeds", "0", "--out", "out"])
    assert summary == json.loads(Path("out/claim_reuse.json").read_text())
    assert [len(rows) for rows in summary["weights"]] == [13, 13, 13]
    assert [len(row) for row in summary["weights"][0]] == list(range(13, 0, -1))
    assert 0.9 < summary["densenet40"]["evenness_2"]["mean"] <= 1.0  # nearly untrained
    assert Path("out/claim_reuse.png").exists()
    assert "block 3: weights spread over" in capsys.readouterr().out


@pytest.mark.slow
def test_quick_reaches_the_readmes_number():
    assert train.main(["--quiet"])["test_accuracy"] > 0.85
