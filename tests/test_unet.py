"""U-Net: sizes, Fig. 1, tiles without seams, Eq. 1 and 2, deformation, and the scripts."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import count, weights
from PIL import Image

from common.data.batches import Draw
from common.device import Device
from unet import claims, sample, train
from unet.data import load_masks, two_distances
from unet.model import (
    MODELS,
    UNet,
    border_weights,
    elastic_displacement,
    energy,
    mirror,
    overlap_tile,
    segment,
    unet,
    unet_small,
)


def cells(root="set", count=6, size=48, seed=0):
    """Images with bright round cells, and their numbers."""
    rng = np.random.default_rng(seed)
    for folder in ("images", "labels"):
        Path(root, folder).mkdir(parents=True, exist_ok=True)
    y, x = np.mgrid[:size, :size]
    for k in range(count):
        labels = np.zeros((size, size), dtype=np.uint8)
        for n in range(1, 5):
            cy, cx = rng.integers(6, size - 6, 2)
            labels[(y - cy) ** 2 + (x - cx) ** 2 < 36] = n
        image = 60 + 120 * (labels > 0) + rng.normal(0, 12, labels.shape)
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(f"{root}/images/{k}.png")
        Image.fromarray(labels).save(f"{root}/labels/{k}.png")


def draw(count, seed=0):
    return Draw([("test", seed)], count, slice(None), torch.device("cpu"))


# ---------------------------------------------------------------------- the network


def test_parameters():
    with torch.device("meta"):
        assert count(unet()) == 31_030_658
        assert count(unet_small()) == 1_942_306
        assert count(UNet(3, 5)) == count(unet()) + 2 * 9 * 64 + 3 * 65


def test_stages_are_fig_1():
    shapes = []
    with torch.device("meta"):
        model = unet()
        for m in model.modules():
            if isinstance(m, (torch.nn.Conv2d, torch.nn.ConvTranspose2d)):
                m.register_forward_hook(lambda m, i, out: shapes.append(tuple(out.shape[1:3])))
        logits = model(torch.empty(1, 1, 572, 572))
    assert shapes == [
        (64, 570), (64, 568), (128, 282), (128, 280), (256, 138), (256, 136), (512, 66), (512, 64),
        (1024, 30), (1024, 28), (512, 56), (512, 54), (512, 52), (256, 104), (256, 102), (256, 100),
        (128, 200), (128, 198), (128, 196), (64, 392), (64, 390), (64, 388), (2, 388),
    ]  # fmt: skip
    assert logits.shape == (1, 2, 388, 388)


def test_padded_maps_keep_their_size():
    with torch.device("meta"):
        assert UNet(3, 7, 8, padding="same")(torch.empty(2, 3, 48, 80)).shape == (2, 7, 48, 80)


@pytest.mark.parametrize("side", [187, 189, 190, 572 + 8])
def test_sizes_that_do_not_pool(side):
    with pytest.raises(ValueError, match="16"):
        UNet(width=2)(torch.zeros(1, 1, side, 572))
    with pytest.raises(ValueError, match="16"):
        UNet(width=2, padding="same")(torch.zeros(1, 1, 32, 40))


def test_the_skips_are_cropped_in_the_middle():
    """Behind a dead lower half, an answer is a function of the pixels around it alone."""
    torch.manual_seed(0)
    model = UNet(width=2).double().eval()
    with torch.no_grad():
        model.ups[-1].up.weight.zero_()
    x = torch.randn(1, 1, 252, 252).double().requires_grad_()
    model(x)[0, :, 30, 40].sum().backward()
    rows, columns = x.grad[0, 0].nonzero().T
    assert (rows.float().mean().round(), columns.float().mean().round()) == (30 + 92, 40 + 92)
    assert rows.max() - rows.min() == 8  # four 3x3 convolutions


def test_initial_weights_keep_the_variance():
    torch.manual_seed(0)
    model = unet()
    conv = model.down[2][2]
    assert conv.weight.std().item() == pytest.approx((2 / (9 * 256)) ** 0.5, rel=0.02)
    assert conv.bias.abs().max() == 0


def test_without_skips_nothing_crosses():
    with_skips, without = UNet(width=4), UNet(width=4, skips=False)
    assert without.ups[0].conv[0].in_channels * 2 == with_skips.ups[0].conv[0].in_channels
    assert without(torch.zeros(1, 1, 188, 188)).shape == (1, 2, 4, 4)


def test_dropout_is_at_the_end_of_the_contracting_path():
    model, rates = unet_small(dropout=1.0), []
    model.train()
    for conv in model.down[1:]:
        conv.register_forward_hook(lambda m, x, y: rates.append(float(x[0].detach().abs().max())))
    model(torch.randn(1, 1, 32, 32))
    assert [rate == 0 for rate in rates] == [False, False, False, True]


def test_it_overfits_a_batch():
    torch.manual_seed(0)
    model, x = unet_small(dropout=0.0), torch.randn(2, 1, 32, 32)
    masks = (torch.rand(2, 32, 32) < 0.4).byte()
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(150):
        loss = energy(model(x), masks, torch.ones(2, 32, 32))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.1


# ---------------------------------------------------------------------- tiles


def test_mirroring_is_numpys():
    for length in (1, 2, 5, 40):
        want = np.pad(np.arange(length), 92, mode="reflect")
        places = torch.arange(-92, length + 92)
        assert mirror(places, length).tolist() == want.tolist()


@pytest.mark.parametrize(("size", "tile"), [((196, 196), 68), ((196, 212), 100), ((100, 180), 84)])
def test_tiles_equal_one_whole_pass(size, tile):
    """Also at the image's border, and where tiles meet, whatever their size."""
    torch.manual_seed(0)
    model = UNet(2, 3, width=3).double().eval()
    x = torch.randn(2, 2, *size).double()
    below, right = (-(side - 4) % 16 for side in size)
    whole = F.pad(x, [92, 92 + right, 92, 92 + below], mode="reflect")
    with torch.no_grad():
        whole = model(whole)[:, :, : size[0], : size[1]]
        tiles = overlap_tile(model, x, tile)
    assert torch.allclose(tiles, whole, atol=1e-12)


@pytest.mark.parametrize("tile", [16, 48, 400])
def test_padded_tiles_equal_one_whole_pass(tile):
    torch.manual_seed(0)
    model = UNet(1, 2, width=3, padding="same").double().eval()
    x = torch.randn(1, 1, 240, 256).double()
    with torch.no_grad():
        assert torch.allclose(overlap_tile(model, x, tile), model(x), atol=1e-12)


@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize("size", [(1, 1), (1, 50), (17, 33), (50, 401)])
def test_tiles_of_any_size(padding, size):
    model = UNet(1, 2, width=1, padding=padding).eval()
    with torch.no_grad():
        assert overlap_tile(model, torch.zeros(1, 1, *size), 132).shape == (1, 2, *size)


@pytest.mark.parametrize("size", [(48, 48), (20, 45)])
def test_views_are_brought_back(size):
    """The average doesn't care how the image lies; a network that doesn't either is unchanged."""
    torch.manual_seed(0)
    model, x = (
        UNet(1, 2, width=2, padding="same").double().eval(),
        torch.randn(1, 1, *size).double(),
    )
    with torch.no_grad():
        answer = segment(model, x, 8)
        turned = segment(model, x.rot90(1, (2, 3)).flip(3), 8)
        assert torch.allclose(turned.flip(3).rot90(-1, (2, 3)), answer, atol=1e-5)
        for conv in (m for m in model.modules() if isinstance(m, torch.nn.Conv2d)):
            conv.weight.copy_(conv.weight.mean((2, 3), keepdim=True).expand_as(conv.weight))
        for up in model.ups:
            up.up.weight.copy_(up.up.weight.mean((2, 3), keepdim=True).expand_as(up.up.weight))
        if size == (48, 48):
            same = model(x).softmax(1).log().float()
            assert torch.allclose(segment(model, x, 8).float(), same, atol=1e-5)


# ---------------------------------------------------------------------- Eq. 1 and 2


def test_border_weights_are_eq_2():
    labels = torch.zeros(20, 22, dtype=torch.int32)
    labels[3:9, 2:9], labels[4:12, 11:18] = 1, 2
    weights = border_weights(*two_distances(labels, 40))
    y1, x1 = (labels == 1).nonzero().T.tolist()
    y2, x2 = (labels == 2).nonzero().T.tolist()
    for y, x in ((0, 0), (6, 9), (6, 10), (19, 21), (5, 5)):
        d1, d2 = sorted([
            min(math.hypot(y - a, x - b) for a, b in zip(ys, xs, strict=True))
            for ys, xs in ((y1, x1), (y2, x2))
        ])  # fmt: skip
        want = 10 * math.exp(-((d1 + d2) ** 2) / (2 * 25))
        assert weights[y, x].item() == pytest.approx(want, rel=1e-4)
    assert border_weights(*two_distances((labels == 1).int(), 40)).max() == 0  # one cell alone


def test_the_energy_is_eq_1():
    torch.manual_seed(0)
    logits, masks = torch.randn(2, 3, 4, 5).double(), torch.randint(0, 3, (2, 4, 5)).byte()
    weights = torch.rand(2, 4, 5).double()
    masks[0, 0, 0] = 255
    total = 0.0
    for b, y, x in np.ndindex(2, 4, 5):
        if masks[b, y, x] != 255:
            p = logits[b, :, y, x].exp() / logits[b, :, y, x].exp().sum()
            total -= weights[b, y, x] * p[masks[b, y, x].long()].log()
    assert energy(logits, masks, weights).item() == pytest.approx(total / 39)


def test_weight_maps_of_the_script():
    cells()
    args = train.parse_args(["--data", "folder:set", "--quiet", "--balance", "--border", "10"])
    images = load_masks(args, Device(args), 48)[0]
    maps = train.weigh(images, args)
    frequencies = torch.stack([m.float().mean() for m in images.content.masks]).mean()
    for mask, found in zip(images.content.masks, maps, strict=True):
        assert torch.allclose(found[mask == 1], 0.5 / frequencies, rtol=1e-4)  # no border there
        assert (found[mask == 0] >= 0.5 / (1 - frequencies) - 1e-4).all()
    assert max(float(found.max()) for found in maps) > 5
    args = args.but(balance=False, border=0.0)
    assert train.weigh(images, args) is None


# ---------------------------------------------------------------------- deformation


def test_displacements_are_bicubic_between_a_3x3_grid():
    normal = torch.randn(2, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    bent = elastic_displacement(normal, 61, 61, 10.0)
    assert torch.allclose(bent[:, :, ::30, ::30], 10 * normal, atol=1e-4)
    assert (bent[..., 1:] - bent[..., :-1]).abs().max() < 2.5  # smooth: 20 pixels over 30


def cut(count=3, context=0, size=60, **changes):
    typed = ["--augment", "--size", "32", "--data", "nuclei"]
    args = train.parse_args(typed)
    vars(args).update(changes)
    sizes = torch.full((count,), size)
    return train.cut(draw(count), sizes, sizes, args, context)


def test_tiles_without_augmentation_are_straight():
    places, side = cut(augment=False, size=50)
    assert side == 32
    assert places.shape == (3, 32, 32, 2)
    assert torch.allclose(places[:, 0, 1:, 0] - places[:, 0, :-1, 0], torch.ones(3, 31), atol=1e-4)
    assert torch.equal(places[:, 0, :, 1].diff(dim=1), torch.zeros(3, 31))
    assert places.min() >= 0
    assert places.max() <= 49


def test_turned_tiles_are_turned_squares():
    places, _ = cut(elastic=0.0)
    corner = places[:, 0, 0]
    for other in ((0, 31), (31, 0)):
        gap = (places[:, other[0], other[1]] - corner).norm(dim=1)
        assert torch.allclose(gap, torch.full((3,), 31.0), atol=1e-3)
    angles = places[:, 0, 31] - corner
    assert angles.std(0).min() > 1  # each its own


def test_the_context_lies_around_the_tile():
    narrow, wide = cut(elastic=0.0, rotate=0.0)[0], cut(elastic=0.0, rotate=0.0, context=10)[0]
    assert torch.allclose(wide[:, 10:-10, 10:-10], narrow, atol=1e-4)


def test_image_and_mask_are_bent_together():
    """An image that shows its mask still does after the deformation."""
    Path("set/images").mkdir(parents=True)
    Path("set/masks").mkdir()
    y, x = np.mgrid[:96, :96]
    for k in range(6):
        disc = ((y - 40 - k) ** 2 + (x - 50) ** 2 < 900).astype(np.uint8) * 255
        Image.fromarray(disc).save(f"set/images/{k}.png")
        Image.fromarray(disc).save(f"set/masks/{k}.png")
    args = train.parse_args(["--data", "folder:set", "--size", "64", "--quiet"])
    images = load_masks(args, Device(args), 64)[0]
    for x, masks, _ in images.batches(5, lambda d, h, w: train.cut(d, h, w, args, 8)):
        assert x.shape == (5, 1, 80, 80)
        shown = x[:, 0, 8:-8, 8:-8] > x.amin()
        inside = x[:, 0, 8:-8, 8:-8] >= x.amax() - 1e-3
        assert (inside <= masks.bool()).all()
        assert (masks.bool() <= shown).all()
        assert 0.05 < masks.float().mean() < 0.95


# ---------------------------------------------------------------------- the scripts


def test_recipes():
    args = train.parse_args([])
    assert (args.model, args.data, train.tile_of(args)) == ("unet_small", "shapes", 64)
    args = train.parse_args(["--paper"])
    assert (args.model, args.optimizer, args.batch_size) == ("unet", "sgd", 1)
    assert train.tile_of(args) == 388
    assert (args.border, args.sigma, args.elastic) == (10, 5, 10)
    args = train.parse_args(["--data", "isbi", "--epochs", "7"])
    assert (args.epochs, args.augment, args.border) == (7, True, 0)
    assert train.parse_args(["--data", "nuclei", "--border", "3"]).border == 3
    assert train.parse_args(["--data", "isbi", "--paper"]).epochs == 2400
    assert train.tile_of(train.parse_args(["--size", "50"])) == 64
    assert train.tile_of(train.parse_args(["--size", "50", "--model", "unet"])) == 52


def test_bad_flags(refused):
    assert "--fold 6" in refused(train.main, ["--data", "isbi", "--fold", "6"])
    assert "--fold" in refused(train.main, ["--fold", "1"])
    assert "--augment" in refused(train.main, ["--elastic", "3"])
    assert "--augment" in refused(train.main, ["--data", "isbi", "--no-augment", "--rotate", "3"])
    assert "--border" in refused(train.main, ["--data", "isbi", "--sigma", "3"])
    assert "--border" in refused(train.main, ["--border", "-1"])
    assert "isbi2012_membrane" in refused(train.main, ["--data", "isbi"])
    assert "imagenet" in refused(train.main, ["--weights", "imagenet"])
    assert not list(Path().iterdir())
    cells()
    one = ["--data", "folder:set", "--size", "16", "--batch-size", "1"]
    assert "--batch-size" in refused(train.main, one)


def run(*argv):
    return train.main(["--data", "folder:set", "--size", "32", "--width", "4", "--quiet", *argv])


def test_cells_are_learnt_counted_and_shown(capsys, refused):
    cells(count=12)
    metrics = run(
        "--epochs", "60", "--lr", "3e-3", "--width", "8", "--batch-size", "2", "--run-dir", "run"
    )
    assert metrics["test_iou_foreground"] > 0.8
    assert {
        "test_ap",
        "test_merged",
        "test_image_iou",
        "test_pixel_error",
        "test_dice",
    } <= metrics.keys()
    assert train.main(["--evaluate", "run/last.pt", "--quiet"]) == pytest.approx(
        {k: v for k, v in metrics.items() if k.startswith("test_")}
    )
    assert sample.main(["--checkpoint", "run/last.pt", "--out", "shown"])["shown"] == 2
    line = refused(sample.main, ["--checkpoint", "run/last.pt", "--out", "shown"])
    assert "shown/predictions.jpg is there already" in line
    Image.open("set/images/0.png").resize((70, 33)).convert("RGB").rotate(5).save("mine.png")
    Image.new("RGB", (40, 30), "red").save("red.jpg")
    found = sample.main(["mine.png", "red.jpg", "--checkpoint", "run/last.pt", "--out", "out"])
    assert Image.open("out/mine-mask.png").size == (70, 33)
    shares = [v["share"] for v in found["mine.png"].values()]
    assert sum(shares) == pytest.approx(1)
    assert "red.jpg (colour: made grey)" in capsys.readouterr().out


def test_resumed_equals_uninterrupted():
    cells()
    shared = ["--epochs", "3", "--batch-size", "2", "--seed", "3"]
    run(*shared, "--run-dir", "whole")
    run(*shared, "--run-dir", "parts", "--max-steps", "3")
    run(*shared, "--run-dir", "parts", "--resume")
    whole, parts = (weights(name) for name in ("whole", "parts"))
    assert all(torch.equal(whole[key], parts[key]) for key in whole)


def test_fine_tuning_to_other_classes(capsys):
    cells()
    run("--max-steps", "1", "--run-dir", "first")
    for k in range(6):
        labels = np.asarray(Image.open(f"set/labels/{k}.png")) % 3
        Path("other/images").mkdir(parents=True, exist_ok=True)
        Path("other/masks").mkdir(exist_ok=True)
        Image.open(f"set/images/{k}.png").save(f"other/images/{k}.png")
        Image.fromarray(labels).save(f"other/masks/{k}.png")
    argv = ["--data", "folder:other", "--weights", "first/last.pt", "--width", "4", "--freeze"]
    train.main([*argv, "--max-steps", "2", "--run-dir", "second"])
    assert "head new" in capsys.readouterr().out
    first, second = (weights(name) for name in ("first", "second"))
    assert torch.equal(first["down.0.0.weight"], second["down.0.0.weight"])
    assert second["head.weight"].shape[0] == 3


@pytest.mark.parametrize("grey", [True, False])
def test_weights_of_a_plain_file_keep_the_datas_mean(grey, refused, capsys):
    """No statistics of other people's photographs: the scores are those of the run itself."""
    cells(count=8)
    if not grey:
        for path in Path("set/images").iterdir():
            tinted = np.asarray(Image.open(path))[..., None] * np.array([1.0, 0.6, 0.3])
            Image.fromarray(tinted.astype(np.uint8)).save(path)
    shared = ["--no-augment", "--views", "1", "--batch-size", "2"]
    first = run(*shared, "--epochs", "40", "--lr", "3e-3", "--run-dir", "first")
    state = weights("first")
    torch.save(state, "plain.pt")
    torch.save({"state_dict": {f"module.{key}": v for key, v in state.items()}}, "wrapped.pt")
    for number, name in enumerate(("plain.pt", "wrapped.pt", "first/last.pt")):
        argv = ["--weights", name, "--freeze", "--lr", "1e-12", "--max-steps", "1"]
        again = run(*shared, *argv, "--run-dir", f"again{number}")
        for key in ("test_iou", "test_image_iou", "test_loss"):
            assert again[key] == pytest.approx(first[key], abs=1e-5), (name, key)
        facts = [torch.load(f"{f}/last.pt")["dataset"] for f in ("first", f"again{number}")]
        assert facts[0]["mean"] == facts[1]["mean"]
    assert len(facts[0]["mean"]) == (1 if grey else 3)
    assert first["test_iou"] > 0.3  # so that a wrong mean would show
    argv = ["--data", "folder:set", "--weights", "plain.pt", "--size", "32", "--width", "8"]
    assert "doesn't fit" in refused(train.main, argv)


def test_deep_images_have_the_scale_of_the_training(capsys):
    """A 12-bit image is as bright in sample.py as it was in training, whatever its own range."""
    cells(count=6)
    for path in Path("set/images").iterdir():
        deep = np.asarray(Image.open(path)).astype(np.uint16) * 16
        Image.fromarray(deep).save(path)
    run("--max-steps", "1", "--run-dir", "run")
    assert torch.load("run/last.pt")["dataset"]["top"] == 4095
    seen = []
    image = np.full((32, 32), 800, dtype=np.uint16)
    Image.fromarray(image).save("dark.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sample, "overlay", lambda image, answer: seen.append(image) or image[[0] * 3])
        sample.main(["dark.png", "--checkpoint", "run/last.pt", "--out", "out"])
    assert int(seen[0].max()) == round(800 / 4095 * 255)
    assert "more than 8 bits" not in capsys.readouterr().out


def test_deep_images_for_a_model_of_others_share_a_scale(capsys):
    cells()
    run("--max-steps", "1", "--run-dir", "run")
    for k, value in enumerate((500, 3000)):
        Image.fromarray(np.full((20, 20), value, dtype=np.uint16)).save(f"deep{k}.png")
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sample, "overlay", lambda image, answer: seen.append(image) or image[[0] * 3])
        argv = ["deep0.png", "deep1.png", "--checkpoint", "run/last.pt", "--out", "out"]
        sample.main(argv)
    assert [int(i.max()) for i in seen] == [round(v / 4095 * 255) for v in (500, 3000)]
    assert "4095 is white" in capsys.readouterr().out


def test_a_set_that_lacks_a_class_is_measured(refused):
    """By value: what there is of the classes is scored, what there is not has no score."""
    for root, values in (("set", (0, 1, 2)), ("some", (0, 2)), ("other", (0, 1, 3))):
        rng = np.random.default_rng(0)
        for k in range(6):
            mask = np.kron(rng.choice(values, (2, 2)), np.ones((16, 16))).astype(np.uint8)
            mask[:4, :4], mask[:4, 4:8], mask[:4, 8:12] = (values * 2)[:3]
            for folder, pixels in (("images", mask * 80), ("masks", mask)):
                Path(root, folder).mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(f"{root}/{folder}/{k}.png")
    run("--epochs", "40", "--lr", "3e-3", "--batch-size", "2", "--run-dir", "run")
    argv = ["--evaluate", "run/last.pt", "--quiet", "--data"]
    found = train.main([*argv, "folder:some"])
    assert found["test_iou_class_2"] > 0.7
    assert found["test_iou_background"] > 0.7
    assert found.get("test_iou_class_1", 0.0) == 0  # perhaps given, never there
    assert "value 3" in refused(train.main, [*argv, "folder:other"])


def test_the_model_of_fig_1_takes_small_images():
    cells(count=4)
    metrics = train.main([
        "--data", "folder:set", "--model", "unet", "--width", "2", "--max-steps", "1", "--folds",
        "2", "--batch-size", "2", "--size", "20", "--quiet", "--optimizer", "sgd", "--run-dir",
        "run",
    ])  # fmt: skip
    again = train.main(["--evaluate", "run/last.pt", "--quiet"])
    assert again == pytest.approx({k: v for k, v in metrics.items() if k.startswith("test_")})
    sample.main(["set/images/0.png", "--checkpoint", "run/last.pt", "--out", "out"])
    assert Image.open("out/0-mask.png").size == (48, 48)


def test_claims_run_and_summarise(monkeypatch, capsys):
    cells(count=6)
    runs = []

    def short(argv):
        runs.append(argv)
        return train.main([*argv, "--width", "1", "--max-steps", "1", "--size", "16", "--quiet"])

    monkeypatch.setattr(claims, "train", short)
    for claim in ("skips", "elastic", "border", "folds"):
        argv = [claim, "--data", "folder:set", "--seeds", "0", "--epochs", "1", "--out", "out"]
        summary = claims.main(argv)
        assert summary == json.loads(Path(f"out/claim_{claim}.json").read_text())
        assert Path(f"out/claim_{claim}.png").exists()
        assert len(summary) == {"skips": 2, "elastic": 6, "border": 2, "folds": 6}[claim]
    count = len(runs)
    claims.main([*argv])
    assert len(runs) == count  # done is done
    assert "IoU" in capsys.readouterr().out


def test_every_model_is_built_without_arguments():
    with torch.device("meta"):
        assert all(isinstance(factory(), UNet) for factory in MODELS.values())


@pytest.mark.slow
def test_quick_reaches_the_readmes_number():
    assert train.main(["--quiet"])["test_iou"] > 0.9
