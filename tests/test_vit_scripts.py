"""The scripts of vit: recipes, training, weights of others, samples, maps of attention, claims."""

import itertools
import json
import math
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import torchvision
from conftest import MILESTONES
from helpers import (
    BOTH,
    check_mean_loss,
    check_published,
    make_tree,
    modes,
    perturb,
    run_of,
    weights,
)
from PIL import Image
from test_vit import as_timm, images, shaken, tiny

from vit import claims, maps, sample, train
from vit.layers import SelfAttention
from vit.model import MODELS, VisionTransformer

FLAGS = ["--data", "digits", "--limit", "96", "--val", "0", "--batch-size", "32", "--quiet"]
TINY = ["--d-model", "16", "--num-layers", "2", "--num-heads", "2", "--size", "16"]
TINY_B_32 = dict(patch_size=32, num_layers=1, num_heads=2, d_model=16, d_ff=32)


@pytest.fixture
def small_b_32(monkeypatch):
    """In place of B/32, for what is no matter of its size: one layer of 16 dimensions.

    Returns a function that makes torchvision's network of these sizes.
    """
    make = lambda num_classes=1000, image_size=224, **settings: VisionTransformer(  # noqa: E731
        image_size, num_classes=num_classes, **TINY_B_32 | settings
    )
    monkeypatch.setitem(MODELS, "vit_b_32", make)
    return lambda num_classes=1000, size=224: torchvision.models.VisionTransformer(
        size, 32, 1, 2, 16, 32, num_classes=num_classes
    )


# ---------------------------------------------------------------------- recipes


def test_recipes():
    args = train.parse_args([])
    assert (args.model, args.size, args.patch_size, args.augment) == ("vit_tiny", 24, 8, False)
    assert (args.optimizer, args.normalise, args.clip, args.pool) == ("adamw", "data", None, "mean")
    args = train.parse_args(["--data", "cifar10"])
    assert (args.size, args.patch_size, args.augment) == (32, 4, True)
    args = train.parse_args(["--paper"])  # Table 3 and B.1
    assert (args.model, args.data, args.epochs, args.batch_size, args.lr, args.size) == (
        "vit_b_16", "folder:data/imagenet", 300, 4096, 3e-3, 224,
    )  # fmt: skip
    assert (args.weight_decay, args.dropout, args.warmup, args.clip) == (0.3, 0.1, 10_000, 1.0)
    assert (args.optimizer, args.normalise, args.val, args.pool) == ("adamw", "half", 0, "token")
    args = train.parse_args(["--paper", "--weights", "imagenet"])  # Table 4 and B.1.1
    assert (args.optimizer, args.lr, args.batch_size, args.size) == ("sgd", 0.03, 512, 384)
    assert (args.weight_decay, args.dropout, args.warmup, args.clip) == (0.0, 0.0, 500, 1.0)
    args = train.parse_args(["--paper", "--weights", "imagenet", "--model", "vit_h_14"])
    assert args.size == 518
    args = train.parse_args(["--model", "vit_b_16", "--weights", "imagenet"])
    assert (args.optimizer, args.weight_decay, args.clip) == ("sgd", 0.0, 1.0)
    for name in train.PUBLISHED:
        for data, size in (("folder:x", 224), ("digits", 56 if name == "vit_h_14" else 64)):
            args = train.parse_args(["--model", name, "--data", data])
            assert (args.size, args.pool, args.lr) == (size, "token", 3e-4)
    args = train.parse_args(["--data", "folder:x"])
    assert (args.size, args.patch_size, args.augment) == (64, 8, True)


def test_flags_make_the_network():
    flags = ["--d-model", "24", "--num-layers", "3", "--num-heads", "4", "--patch-size", "8"]
    flags += ["--positions", "relative", "--pool", "mean", "--dropout", "0.2", "--size", "48"]
    model = train.build(train.parse_args(flags), 4)
    layers = [m for m in model.modules() if isinstance(m, SelfAttention)]
    assert [(m.num_heads, m.out_proj.in_features) for m in layers] == [(4, 24)] * 3
    assert layers[0].offsets.shape == (71, 6)  # 36 patches and no class token
    assert (model.image_size, model.conv_proj.kernel_size) == (48, (8, 8))
    assert model.encoder.dropout.p == 0.2
    assert model.heads.head.out_features == 4


def test_step_sizes_are_the_papers():
    shares = [train.step_size(1000, 200, step) for step in range(1001)]
    assert shares[:3] == [1 / 200, 2 / 200, 3 / 200]
    assert shares[199] == shares[200] == 1
    assert shares[600] == pytest.approx(0.5)
    assert shares[800] == pytest.approx((1 + math.cos(0.75 * math.pi)) / 2)
    assert shares[999] < 1e-5 and shares[1000] == 0
    shared = [train.step_size(1000, 0.2, step) for step in range(1001)]
    assert shared == shares
    assert train.step_size(1000, 0, 0) == 1  # no warm-up
    assert [train.step_size(3, 0.5, step) for step in range(4)] == [
        1 / 1.5, 1, pytest.approx(0.75), 0,
    ]  # fmt: skip
    assert train.step_size(10, 100, 9) == 0.1  # a training shorter than that never gets there
    assert [train.step_size(10, 10, step) for step in (9, 10)] == [1, 0]


def test_optimisers():
    """Matrices are decayed; norms, biases, positions, offsets and the class token are not."""
    for positions in ("1d", "2d", "relative"):
        model = tiny(positions=positions)
        optimizer = train.make_optimizer(train.parse_args(["--weight-decay", "0.25"]), model)
        assert isinstance(optimizer, torch.optim.AdamW)
        decayed, plain = optimizer.param_groups
        assert (decayed["weight_decay"], plain["weight_decay"]) == (0.25, 0)
        names = {p: name for name, p in model.named_parameters()}
        wanted = r"(conv_proj|heads\.head|.*(out_proj|mlp\.[03]))\.weight|.*in_proj_weight"
        assert {names[p] for p in decayed["params"]} == {
            name for name in names.values() if re.fullmatch(wanted, name)
        }
        assert {*decayed["params"], *plain["params"]} == set(model.parameters())
    optimizer = train.make_optimizer(train.parse_args(["--optimizer", "sgd"]), model)
    assert isinstance(optimizer, torch.optim.SGD)
    assert optimizer.param_groups[0]["momentum"] == 0.9


def test_flags_that_are_refused(refused, few):
    def line(*argv):
        text = refused(train.main, list(argv))
        assert not Path("runs").exists()
        return text

    assert "30 pixels can't be cut into patches of 8" in line("--size", "30")
    assert "patches of 14" in line("--model", "vit_h_14", "--size", "64")
    assert "5 heads can't share 64 dimensions" in line("--num-heads", "5", "--d-model", "64")
    assert "--d-model has no meaning here: vit_b_16 has its own" in line(
        "--model", "vit_b_16", "--d-model", "64"
    )
    assert "none for vit_tiny, but for vit_b_16" in line("--weights", "imagenet")
    assert "unknown positions '3d'" in line("--positions", "3d")
    assert "unknown pool 'max'" in line("--pool", "max")
    assert "from 0 to below 1" in line("--dropout", "1")
    assert "shapes:N is a number of scenes" in line("--data", "shapes:many")
    odd = ["--d-model", "9", "--num-heads", "3", "--positions", "2d", *FLAGS]
    assert "rows and columns can't share 9 dimensions" in line(*odd)


def test_what_a_checkpoint_has_settled_is_not_changed(refused):
    train.main([*FLAGS, *TINY, "--max-steps", "1", "--run-dir", "run"])
    changes = [("positions", "2d"), ("pool", "token"), ("size", "32"), ("patch-size", "8")]
    changes += [("d-model", "32"), ("num-layers", "1"), ("num-heads", "1"), ("normalise", "half")]
    for argv in (["--evaluate", "run/last.pt"], ["--resume", "--run-dir", "run"]):
        for flag, value in changes:
            line = refused(train.main, [*argv, f"--{flag}", value])
            assert f"holds {flag.replace('-', '_')} " in line


# ---------------------------------------------------------------------- training


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_paths_of_the_loop(precision, monkeypatch):
    monkeypatch.setattr(train, "check_images", lambda *_: None)  # which trains nothing
    seen = modes(train, monkeypatch)
    argv = [*FLAGS, *TINY, "--max-steps", "2", "--accumulate", "2", "--precision", precision]
    argv += ["--positions", "relative", "--pool", "mean", "--dropout", "0.1", "--clip", "1"]
    metrics = train.main([*argv, "--run-dir", "run"])
    assert seen == BOTH
    assert all(map(math.isfinite, metrics.values()))
    assert all(t.isfinite().all() for t in weights("run").values())
    assert Path("run/confusion.png").exists()


def test_resumed_is_uninterrupted():
    argv = [*FLAGS, *TINY, "--epochs", "2", "--limit", "64", "--dropout", "0.1"]
    train.main([*argv, "--run-dir", "whole"])
    train.main([*argv, "--run-dir", "cut", "--max-steps", "3"])
    train.main(["--resume", "--run-dir", "cut", "--quiet"])
    whole, cut = weights("whole"), weights("cut")
    assert all(torch.equal(value, cut[key]) for key, value in whole.items())


def test_accumulated_is_whole():
    argv = [*FLAGS, *TINY, "--max-steps", "2", "--clip", "0.5"]
    train.main([*argv, "--run-dir", "whole"])
    train.main([*argv, "--run-dir", "parts", "--accumulate", "4"])
    whole, parts = weights("whole"), weights("parts")
    for key, value in whole.items():
        torch.testing.assert_close(parts[key], value, rtol=1e-3, atol=3e-5, msg=key)


def test_the_papers_recipe_runs_on_a_tree():
    make_tree(count=12, sizes=((40, 30, 3),))
    argv = ["--paper", "--model", "vit_tiny", "--data", "folder:tree", *TINY, "--patch-size", "4"]
    argv += ["--batch-size", "8", "--max-steps", "2", "--workers", "0", "--quiet"]
    metrics = train.main([*argv, "--run-dir", "run"])
    assert all(map(math.isfinite, metrics.values()))
    facts = torch.load("run/last.pt")["dataset"]
    assert (facts["mean"], facts["std"]) == ([0.5] * 3, [0.5] * 3)


def test_photographs_are_cut_and_scenes_are_shifted(monkeypatch, few):
    """One way for files, the other for what is in memory, and none without --augment."""
    calls = []
    for name in ("resized_window", "crop_and_flip"):
        real = getattr(train, name)
        monkeypatch.setattr(
            train, name, lambda *a, n=name, f=real, **k: calls.append(n) or f(*a, **k)
        )
    make_tree(count=4, sizes=((40, 30, 3),))
    for data, wanted in (("folder:tree", "resized_window"), ("shapes:64", "crop_and_flip")):
        argv = ["--data", data, *TINY, "--patch-size", "4", "--val", "0", "--batch-size", "4"]
        argv += ["--max-steps", "1", "--epochs", "1", "--quiet"]
        train.main([*argv, "--augment"])
        assert set(calls) == {wanted}
        calls.clear()
        train.main([*argv, "--no-augment"])
        assert not calls


def test_the_loss_is_a_mean_over_the_images():
    check_mean_loss(train)


# ---------------------------------------------------------------------- weights of others


@pytest.mark.parametrize("kind", ["torchvision", "an older torchvision", "timm"])
def test_fine_tuning_from_a_published_file(kind, capsys, small_b_32):
    """At another resolution: 224 pixels in the file, 96 here."""
    theirs = perturb(small_b_32()).state_dict()
    older = {k.replace("mlp.0", "mlp.linear_1").replace("mlp.3", "mlp.linear_2"): v
             for k, v in theirs.items()}  # fmt: skip
    files = {"timm": as_timm(theirs), "torchvision": theirs}
    torch.save(files.get(kind, older), "b32.pth")
    argv = ["--model", "vit_b_32", "--limit", "32", "--size", "96", "--weights", "b32.pth"]
    argv += ["--freeze", "--data", "digits", "--val", "0", "--max-steps", "2", "--batch-size", "16"]
    train.main([*argv, "--run-dir", "run"])
    line = "weights of b32.pth; heads.head new, for digits's classes; mean and std are those"
    assert f"{line} of the data" in capsys.readouterr().out
    state = weights("run")
    for key, value in theirs.items():
        if key == "encoder.pos_embedding":
            grid = value[:, 1:].transpose(1, 2).unflatten(2, (7, 7))
            grid = F.interpolate(grid, (3, 3), mode="bilinear", align_corners=True)
            torch.testing.assert_close(state[key][:, 1:], grid.flatten(2).transpose(1, 2))
            assert torch.equal(state[key][:, :1], value[:, :1])
        else:
            assert torch.equal(state[key], value) == (not key.startswith("heads.")), key
    assert state["heads.head.weight"].shape == (10, 16)
    Path("b32.pth").unlink()  # evaluating doesn't need it
    metrics = train.main(["--evaluate", "run/last.pt", "--quiet"])
    assert set(metrics) == {"test_loss", "test_accuracy"}


def test_fine_tuning_at_a_higher_resolution_from_a_run(refused):
    """Sec. 3.2; relative positions can't be."""
    train.main([*FLAGS, *TINY, "--max-steps", "1", "--run-dir", "run"])
    argv = [*FLAGS, *TINY, "--size", "24", "--weights", "run/last.pt", "--max-steps", "1"]
    train.main([*argv, "--run-dir", "higher"])
    shapes = [weights(name)["encoder.pos_embedding"].shape for name in ("run", "higher")]
    assert shapes == [(1, 16, 16), (1, 36, 16)]
    flags = ["--positions", "relative"]
    train.main([*FLAGS, *TINY, *flags, "--max-steps", "1", "--run-dir", "offsets"])
    argv = [*FLAGS, *TINY, *flags, "--size", "24", "--weights", "offsets/last.pt"]
    line = refused(train.main, argv)
    assert "offsets/last.pt: relative positions are of one grid" in line


def test_weights_of_another_network_are_refused(refused, small_b_32):
    torch.save(tiny().state_dict(), "tiny.pth")
    line = refused(train.main, ["--model", "vit_b_32", "--weights", "tiny.pth", *FLAGS])
    assert "tiny.pth is of another network than vit_b_32" in line
    line = refused(train.main, [*TINY, "--pool", "mean", "--weights", "tiny.pth", *FLAGS])
    assert "has class_token" in line


def test_published_weights_are_torchvisions(monkeypatch, refused):
    """Their entries are there; H/14 has none trained from ImageNet alone."""
    from common import weights as common_weights

    for name, entry in train.PUBLISHED.items():
        found = common_weights.torchvisions(entry)
        assert found.meta["min_size"] == (224, 224)
        assert found.url.split("/")[-1].startswith(name)
        assert found.name == "IMAGENET1K_" + ("SWAG_LINEAR_V1" if name == "vit_h_14" else "V1")

    def no_network(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", no_network)
    line = refused(common_weights.download, "vit_h_14", train.PUBLISHED)
    assert "vit_h_14_lc_swag" in line and "copy it there" in line


# ---------------------------------------------------------------------- samples


def test_samples(capsys, monkeypatch):
    monkeypatch.setattr("common.data.shapes.NUM_SCENES", {"train": 64, "test": 30})
    argv = ["--data", "shapes", *TINY, "--val", "0", "--epochs", "2", "--quiet"]
    metrics = train.main([*argv, "--pool", "mean"])
    assert sample.main([])["right"] == round(30 * metrics["test_accuracy"])
    Image.new("RGB", (50, 40), "red").save("red.png")
    Image.new("L", (20, 90)).save("grey.png")
    found = sample.main(["red.png", "grey.png", "--out", "out"])
    assert len(found["red.png"]) == 5
    assert Path("out/predictions.jpg").exists()
    assert Path("out/attention.jpg").exists()
    printed = capsys.readouterr().out
    assert "grey.png (grey: made RGB)" in printed
    assert "wrote out/attention.jpg" in printed


@pytest.mark.parametrize("normalise", ["imagenet", "half"])
def test_samples_of_published_weights(normalise, small_b_32, refused):
    theirs = perturb(small_b_32())
    entry = torchvision.models.ViT_B_32_Weights.IMAGENET1K_V1
    argv = ["--model", "vit_b_32", "--normalise", normalise]
    half = ([0.5] * 3, [0.5] * 3) if normalise == "half" else None
    check_published(sample, theirs, entry, argv, half)
    assert Path("out/attention.jpg").exists()
    assert "--normalise goes with --weights" in refused(sample.main, ["--normalise", "half"])
    assert "--size goes with --weights" in refused(sample.main, ["--size", "64"])
    argv = ["--weights", "theirs.pth", "--model", "vit_b_32", "noise.png", "--size", "65"]
    assert "can't be cut into patches of 32" in refused(sample.main, argv)


def test_weights_that_know_their_mean_keep_it(short, refused):
    run = run_of("vit")
    argv = ["--weights", f"{run}/last.pt", "--max-steps", "1", "--limit", "16", "--val", "4"]
    line = refused(train.main, [*argv, "--normalise", "half"])
    assert "the weights have another mean" in line
    train.main([*argv, "--quiet"])


def test_one_patch_has_no_relative_positions(refused):
    argv = ["--size", "24", "--patch-size", "24", "--pool", "mean", "--positions", "relative"]
    assert "one patch alone has no relative positions" in refused(train.main, argv)


def test_samples_at_another_resolution(capsys, small_b_32):
    """The image is scaled alike: 384 of 438 pixels as 224 of 256."""
    Image.new("RGB", (500, 480), "orange").save("orange.png")
    torch.save(small_b_32(size=96).state_dict(), "b32.pth")
    argv = ["--weights", "b32.pth", "--model", "vit_b_32", "orange.png"]
    found = sample.main([*argv, "--size", "384"])
    assert "vit_b_32 with the weights b32.pth, 384 pixels" in capsys.readouterr().out
    assert len(found["orange.png"]) == 5


def test_what_was_looked_at_is_drawn(monkeypatch, few):
    """Pairs of an image and the same with what nobody looked at in the dark."""
    train.main(["--data", "shapes", *TINY, "--max-steps", "1", "--quiet", "--run-dir", "run"])
    drawn = {}
    monkeypatch.setattr(
        "common.plot.image_grid",
        lambda images, path, *_, **__: drawn.update({Path(path).name: images}),
    )
    sample.main(["--checkpoint", "run/last.pt", "--out", "out"])
    pictures = drawn["attention.jpg"]
    assert len(pictures) == 2 * sample.SHOWN
    plain, dark = pictures[::2], pictures[1::2]
    assert plain.amax() <= 1
    assert (dark <= plain + 1e-6).all()
    assert (dark >= 0.15 * plain - 1e-6).all()
    assert not torch.allclose(plain, dark)


# ---------------------------------------------------------------------- maps of attention


def test_attention_maps_are_those_of_the_network():
    """Each layer's of its own input; the network is left as it was."""
    model = shaken(tiny()).eval()
    x, seen = images(3), []
    for layer in model.encoder.layers:
        layer.ln_1.register_forward_hook(lambda _, __, out: seen.append(out))
    found = maps.attention_maps(model, x)
    assert found.shape == (2, 3, 4, 10, 10)
    torch.testing.assert_close(found.sum(4), torch.ones(2, 3, 4, 10))
    for given, block, own in zip(seen, model.encoder.layers, found, strict=True):
        layer = block.self_attention
        with torch.inference_mode():
            parts = F.linear(given, layer.in_proj_weight, layer.in_proj_bias)
        query, key, _ = parts.chunk(3, 2)
        for a in range(4):
            part = slice(8 * a, 8 * a + 8)
            shares = (query[..., part] @ key[..., part].transpose(1, 2) / math.sqrt(8)).softmax(2)
            torch.testing.assert_close(own[:, a].double(), shares, rtol=1e-5, atol=1e-6)
        assert (layer.recording, layer.weights) == (False, None)


def test_rollout_by_paths():
    """All ways through three layers, half of each step's share staying where it is."""
    shares = torch.rand(3, 1, 2, 4, 4).softmax(4)
    found = maps.rollout(shares)[0]
    mean = shares.mean(2)[:, 0]
    wanted = torch.zeros(4, 4)
    for end, two, one, begin in itertools.product(range(4), repeat=4):
        way = 1.0
        for layer, (later, earlier) in zip((2, 1, 0), ((end, two), (two, one), (one, begin)),
                                           strict=True):  # fmt: skip
            way *= (mean[layer, later, earlier] + (later == earlier)) / 2
        wanted[end, begin] += way
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(found.sum(1), torch.ones(4))


@pytest.mark.parametrize("pool", ["token", "mean"])
def test_what_is_classified_was_looked_at(pool, monkeypatch):
    """One layer that only looks at the patch of row 1, column 2 lights that one up."""
    count = 9 + (pool == "token")
    shares = torch.zeros(1, 1, 2, count, count)
    shares[..., count - 4] = 1
    monkeypatch.setattr(maps, "attention_maps", lambda model, images: shares)
    grid = maps.looked_at(tiny(pool=pool), images(1))
    assert grid.shape == (1, 3, 3)
    assert grid[0].argmax() == 5
    assert grid.max() == 1
    rest = grid.flatten()[torch.arange(9) != 5]
    assert (rest == 0).all() if pool == "token" else (rest < 0.2).all()


def test_attention_distances_by_hand():
    side, patch = 3, 4
    nearest = torch.eye(10).expand(2, 5, 10, 10)  # two heads: each token looks at itself
    wide = torch.full((2, 5, 10, 10), 0.1)  # at all alike
    shares = torch.stack([torch.stack([nearest[0], wide[0]], 1), torch.stack([wide[1]] * 2, 1)])
    found = maps.attention_distances(shares, patch, class_token=True)
    places = [(y, x) for y in range(side) for x in range(side)]
    mean = sum(math.dist(a, b) for a in places for b in places) / 81 * patch
    torch.testing.assert_close(found, torch.tensor([[0, mean], [mean, mean]]))
    plain = maps.attention_distances(shares[..., 1:, 1:] / 0.9, patch, class_token=False)
    torch.testing.assert_close(plain, found)
    corner = torch.zeros(1, 1, 1, 9, 9)
    corner[..., 8] = 1  # all look at the last patch
    wanted = sum(math.dist(a, (2, 2)) for a in places) / 9 * patch
    assert maps.attention_distances(corner, patch, False).item() == pytest.approx(wanted)


def test_position_similarity():
    model = shaken(tiny(pool="token"))
    table = model.encoder.pos_embedding[0, 1:]
    found = maps.position_similarity(model)
    assert found.shape == (9, 9)
    wanted = F.cosine_similarity(table[:, None], table[None], dim=2)
    torch.testing.assert_close(found, wanted.detach())
    assert maps.position_similarity(shaken(tiny(positions="2d"))).shape == (9, 9)
    for positions in ("none", "relative"):
        with pytest.raises(ValueError, match="no vectors"):
            maps.position_similarity(tiny(positions=positions))


# ---------------------------------------------------------------------- the claims


@pytest.fixture
def short(monkeypatch, few):
    """Runs of the claims, of small networks; noted."""
    runs = []
    small = [*TINY[:-2], "--limit", "64"]

    def run(argv):
        runs.append(argv)
        return train.main([*argv, *small])

    monkeypatch.setattr(claims, "train", run)
    return runs


def test_claim_of_data(short, monkeypatch, capsys):
    def residual(argv):
        argv = [word if word != "resnet20" else "vit_tiny" for word in argv]
        return claims.train(argv)

    monkeypatch.setattr(claims, "train_resnet", residual)
    argv = ["data", "--scenes", "40", "80", "--images", "160", "--seeds", "0", "1", "--out", "out"]
    summary = claims.main([*argv, "--max-steps", "1"])
    assert len(short) == 8
    assert summary == json.loads(Path("out/claim_data.json").read_text())
    assert list(summary) == [f"{side}, {n} scenes" for side in ("ViT", "ResNet-20")
                             for n in (40, 80)]  # fmt: skip
    for count, arm in ((40, "ViT, 40 scenes"), (80, "ResNet-20, 80 scenes")):
        command = summary[arm]["command"]
        assert f"--data shapes:{count} --epochs {160 // count}" in command
    scripts = [row["command"].split()[1] for row in summary.values()]
    assert scripts == ["vit/train.py"] * 2 + ["resnet/train.py"] * 2
    assert Path("out/claim_data.png").exists()
    assert "the curves" in capsys.readouterr().out
    claims.main([*argv, "--max-steps", "1"])
    assert len(short) == 8  # done is done


def test_where_curves_cross():
    assert claims.crossing([1, 10, 100], [-1.0, -2.0, -3.0]) is None
    assert claims.crossing([1, 10, 100], [-1.0, 1.0, 3.0]) == pytest.approx(10**0.5)
    assert claims.crossing([10, 1000], [3.0, -1.0]) == pytest.approx(10**2.5)


@pytest.mark.skipif("resnet" not in MILESTONES, reason="a tree cut to some of the folders")
def test_residual_networks_are_trained_by_their_own_script():
    argv = [*FLAGS, "--max-steps", "1", "--width", "4", "--run-dir", "run"]
    metrics = claims.train_resnet(argv)
    assert 0 <= metrics["test_accuracy"] <= 1


def test_a_tree_without_residual_networks(monkeypatch, refused):
    monkeypatch.setattr(claims, "__file__", str(Path("vit", "claims.py").resolve()))
    assert "resnet/train.py isn't in this tree" in refused(claims.train_resnet, [])


def test_claims_of_positions_and_distance(short, capsys, monkeypatch):
    monkeypatch.setattr(claims, "EXAMPLES", 8)
    argv = ["--seeds", "0", "--max-steps", "1", "--epochs", "1", "--out", "out"]
    summary = claims.main(["positions", *argv])
    assert list(summary) == ["none", "1d", "2d", "relative"]
    assert "--positions relative" in summary["relative"]["command"]
    assert Path("out/claim_positions.png").exists()
    assert len(short) == 4
    summary = claims.main(["distance", *argv])
    assert len(short) == 4  # its run is one of those
    (metrics,) = summary.values()
    for layer in (1, 2):
        near, mean, far = (metrics[f"{k}_layer_{layer}"]["mean"]
                           for k in ("nearest", "mean", "farthest"))  # fmt: skip
        assert 0 < near <= mean <= far < 24 * 2**0.5
    assert -1 <= metrics["same_line_cosine"]["mean"] <= 1
    assert Path("out/claim_distance.png").exists()
    assert "layer 2: heads look" in capsys.readouterr().out


def test_positions_in_one_line():
    """Of vectors that have a row's half and a column's, those in one line share a half."""
    axes = torch.eye(3)
    table = torch.stack([torch.cat([axes[y], axes[x]]) for y in range(3) for x in range(3)])
    table = F.normalize(table, dim=1)
    assert claims.in_line(table @ table.T) == pytest.approx((0.5, 0.0))


def test_claim_of_patches(short, capsys, monkeypatch):
    argv = ["patch", "--seeds", "0", "--max-steps", "1", "--epochs", "1", "--out", "out"]
    summary = claims.main(argv)
    assert list(summary) == [f"{size} pixels" for size in (3, 4, 6, 8, 12)]
    costs = [row["step_ms_per_image"]["mean"] for row in summary.values()]
    assert all(cost > 0 for cost in costs)
    assert Path("out/claim_patch.png").exists()
    timed, own = [], train.build(train.parse_args(claims.ARMS["patch"]["4 pixels"]), 10)
    monkeypatch.setattr(claims, "build", lambda *of: timed.append(train.build(*of)) or timed[0])
    claims.time_of_step(4)
    assert [p.shape for p in timed[0].parameters()] == [p.shape for p in own.parameters()]
    assert timed[0].pool == own.pool  # what is timed is what learns
    assert "36 patches of 4 pixels" in capsys.readouterr().out


@pytest.mark.slow
def test_quick_reaches_the_readmes_number():
    assert train.main(["--quiet"])["test_accuracy"] > 0.8
