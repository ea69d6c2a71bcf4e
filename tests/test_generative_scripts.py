"""The scripts of the generative models: recipes, training, measuring, samples, bad input."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import torchrun
from helpers import count, weights
from PIL import Image

from common.device import Device, forked
from generative import claims, evaluate, sample, train, train_gan
from generative.data import load
from generative.gan import GAN
from generative.model import MODELS
from generative.options import build, recipe

TINY = ["--limit", "64", "--val", "0", "--batch-size", "16", "--quiet", "--precision", "fp32"]


@pytest.fixture(autouse=True)
def short_classifier(monkeypatch):
    """The evaluation's classifier hardly has to be good here."""
    monkeypatch.setattr(evaluate, "LEAST_STEPS", 5)


def run(model, *argv):
    """A short run on digits."""
    extra = {"ddpm_small": ["--width", "8"], "dcgan": ["--width", "8"]}
    extra["realnvp"] = ["--width", "4", "--num-blocks", "1"]
    shared = [*TINY[:2], *TINY[4:]] if model in ("gan", "dcgan") else TINY
    return train.main(["--model", model, *shared, *extra.get(model, []), *argv])


# ---------------------------------------------------------------------- recipes


def test_recipes():
    args = train.parse_args([])
    assert (args.model, args.data, args.size, args.ema) == ("ddpm_small", "digits", 8, 0.9999)
    assert (args.batch_size, args.lr, args.epochs, args.clip) == (64, 1e-3, 60, 1)
    args = train.parse_args(["--paper"])
    assert (args.model, args.data, args.size, args.val) == ("ddpm", "cifar10", 32, 0)
    assert (args.batch_size, args.lr, args.ema, args.clip) == (128, 2e-4, 0.9999, 1)
    assert (args.epochs * 50_000 // 128, args.warmup, args.decay) == (801_171, 5000, False)
    args = train.parse_args(["--model", "vae", "--paper"])
    assert (args.data, args.optimizer, args.batch_size, args.ema) == ("mnist", "adagrad", 100, 0)
    args = train.parse_args(["--model", "dcgan", "--data", "folder:somewhere"])
    assert (args.size, args.val, args.lr) == (64, 0, 2e-4)
    args = train.parse_args(["--model", "realnvp", "--paper"])
    assert (args.batch_size, args.lr, args.clip, args.decay) == (64, 1e-3, None, False)
    assert train.parse_args(["--model", "realnvp2d"]).data == "moons"
    assert train.parse_args(["--model", "vae", "--data", "mnist"]).size == 28
    assert train_gan.parse_args([]).model == "gan"


def test_models_are_the_papers_with_paper_and_smaller_without():
    facts = {"mean": [0.0] * 3, "classes": ["a", "b"]}
    for argv, want in ((["--paper"], 13_837_620), ([], None)):
        args = train.parse_args(["--model", "realnvp", *argv])
        found = count(build(args, facts))
        assert found == want or (want is None and found < 1_000_000)


def test_a_model_has_its_own_flags_and_no_others():
    for model in MODELS:
        settings, nothing = recipe(model, None, False)
        assert not settings.keys() & nothing.keys() - {"val", "size"}, model
    assert {"latent", "beta", "importance"} <= recipe("vae", None, False)[0].keys()
    assert {"noise", "without", "saturating"} <= recipe("vae", None, False)[1].keys()
    assert {"ema", "decay", "patience"} <= recipe("dcgan", None, False)[1].keys()
    assert train.parse_args(["--model", "vae"]).binarise
    assert train.parse_args(["--model", "vae", "--likelihood", "gaussian"]).binarise is False
    assert train.parse_args(["--model", "vae", "--no-binarise"]).binarise is False
    assert train.parse_args(["--model", "realnvp", "--paper", "--no-flip"]).flip is False
    assert train_gan.parse_args(["--paper"]).data == "mnist"


def test_step_sizes():
    assert train.step_size(1000, 100, False, 49) == 0.5
    assert train.step_size(1000, 100, False, 900) == 1
    assert train.step_size(1000, 0, True, 500) == pytest.approx(0.5)
    assert train.step_size(1000, 0, True, 1000) == pytest.approx(0, abs=1e-9)


def test_the_average_warms_up():
    """min(decay, (1 + t) / (10 + t)), by hand."""
    model = torch.nn.Linear(1, 1, bias=False)
    ema, by_hand = {"weight": model.weight.detach().clone()}, model.weight.item()
    for step in range(50):
        with torch.no_grad():
            model.weight.fill_(math.sin(step))
        train.average(ema, model, 0.8, step)
        decay = min(0.8, (1 + step) / (10 + step))
        by_hand = decay * by_hand + (1 - decay) * math.sin(step)
    assert ema["weight"].item() == pytest.approx(by_hand, rel=1e-4)


# ---------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--sample-steps", "1001"], "1000"),
        (["--sample-steps", "0"], "--sample-steps"),
        (["--model", "vae", "--sample-steps", "10"], "ddpm"),
        (["--model", "vae", "--noise", "0.1"], "autoencoder"),
        (["--latent", "2"], "vae"),
        (["--model", "gan", "--ema", "0.9"], "--ema"),
        (["--model", "gan", "--val", "10"], "--val"),
        (["--model", "vae", "--saturating"], "gan"),
        (["--model", "vae", "--data", "moons"], "moons"),
        (["--model", "realnvp2d", "--data", "digits"], "moons"),
        (["--model", "realnvp2d", "--samples", "10"], "--samples"),
        (["--model", "realnvp2d", "--workers", "0"], "--workers"),
        (["--samples", "1"], "--samples"),
        (["--weights", "nowhere.pt"], "nowhere.pt"),
        (["--ema", "1"], "--ema"),
        (["--dropout", "1.5"], "--dropout"),
        (["--model", "vae", "--latent", "0"], "--latent"),
        (["--model", "vae", "--beta", "-1"], "--beta"),
        (["--model", "vae", "--likelihood", "gaussian", "--binarise"], "--binarise"),
        (["--model", "conv_vae", "--size", "10"], "multiple of 4"),
        (["--model", "ddpm", "--size", "20"], "multiple of 8"),
        (["--model", "dcgan", "--size", "18"], "18"),
        (["--model", "ddpm_small", "--width", "12"], "--width"),
        (["--model", "conv_autoencoder", "--without", "ten"], "unknown class"),
        (["--data", "mnist"], "train-images-idx3-ubyte is not in"),
    ],
)
def test_bad_flags(argv, words, refused):
    line = refused(train.main, [*argv, "--quiet"])
    assert words in line
    assert not list(Path().iterdir())


def folder_of(*classes):
    """Random images in colour: {class: how many} below set/."""
    rng = np.random.default_rng(0)
    for name, number in classes:
        Path("set", name).mkdir(parents=True)
        for k in range(number):
            pixels = rng.integers(0, 255, (20, 30, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(f"set/{name}/{k}.png")


@pytest.mark.parametrize("classes", [[("a", 9)], [("a", 2), ("b", 3)]])
def test_what_cannot_be_measured_is_refused_before_the_training(classes, refused):
    """Images of one class, a single test image: found before the training, not after it."""
    folder_of(*classes)
    argv = ["--model", "vae", "--data", "folder:set", "--size", "8", "--samples", "4", "--quiet"]
    assert "--samples 4" in refused(train.main, argv)
    assert not Path("runs").exists()


def test_a_class_that_cannot_be_left_out(refused):
    folder_of(("a", 9))
    argv = ["--model", "autoencoder", "--data", "folder:set", "--size", "8", "--val", "0"]
    assert "leaves nothing" in refused(train.main, [*argv, "--without", "a", "--quiet"])


def test_a_gan_script_for_gans(refused):
    assert "train.py" in refused(train_gan.main, ["--model", "vae"])


def test_a_checkpoint_of_another_of_the_five(refused):
    run("vae", "--max-steps", "1", "--run-dir", "run")
    assert "'vae'" in refused(train.main, ["--model", "ddpm_small", "--evaluate", "run/last.pt"])
    assert "'vae'" in refused(train.main, ["--model", "gan", "--resume", "--run-dir", "run"])
    line = refused(sample.main, ["--checkpoint", "run/last.pt", "--sample-steps", "10"])
    assert "--sample-steps" in line
    content = torch.load("run/last.pt")
    content["config"]["flags"]["model"] = "conv_vae"
    torch.save(content, "forged.pt")
    assert "forged.pt" in refused(train.main, ["--evaluate", "forged.pt", "--quiet"])
    assert "conv_vae" in refused(sample.main, ["--checkpoint", "forged.pt"])


def test_an_average_that_was_not_kept(refused):
    """Weights of a run without --ema are not measured, or averaged, from random ones."""
    run("vae", "--max-steps", "1", "--importance", "0", "--run-dir", "run")
    line = refused(train.main, ["--evaluate", "run/last.pt", "--ema", "0.9", "--quiet"])
    assert "ema" in line
    assert "ema" in refused(train.main, ["--resume", "--run-dir", "run", "--ema", "0.9", "--quiet"])


# ---------------------------------------------------------------------- training


@pytest.mark.parametrize("model", ["vae", "dcgan", "ddpm_small"])
def test_resumed_equals_uninterrupted(model):
    """With noise, dropout, batch norm, EMA and two optimisers; broken off inside an epoch."""
    whole = run(model, "--epochs", "2", "--run-dir", "whole")
    run(model, "--epochs", "2", "--run-dir", "parts", "--max-steps", "3")
    parts = train.main(["--resume", "--run-dir", "parts", "--quiet"])
    assert parts == pytest.approx(whole)
    one, two = (torch.load(f"{name}/last.pt") for name in ("whole", "parts"))
    assert all(torch.equal(one["model"][key], two["model"][key]) for key in one["model"])
    if model == "ddpm_small":
        assert all(torch.equal(one["ema"][key], two["ema"][key]) for key in one["ema"])
        assert any(not torch.equal(one["ema"][k], one["model"][k]) for k in one["ema"])


@pytest.mark.parametrize("model", ["conv_autoencoder", "gan"])
def test_accumulated_equals_the_large_batch(model, monkeypatch):
    """With the same noise row by row, however it is cut; dropout's can't be had so."""
    for accumulate in ("1", "4"):
        rows = torch.Generator().manual_seed(0)

        def draw(self, n, rows=rows):
            return torch.stack([torch.randn(100, generator=rows) for _ in range(n)])

        monkeypatch.setattr(GAN, "draw_codes", draw)
        monkeypatch.setattr(torch.nn.Dropout, "forward", lambda self, x: x)
        argv = ["--max-steps", "3", "--accumulate", accumulate, "--run-dir", accumulate]
        run(model, *argv, "--lr", "1e-5")
    one, four = (weights(name) for name in ("1", "4"))
    for key in one:
        if not key.startswith("code_"):
            assert torch.allclose(one[key], four[key], atol=2e-6), key


@pytest.mark.parametrize("accumulate", [1, 4])
def test_each_player_has_noise_of_its_own(accumulate, monkeypatch):
    """Algorithm 1 draws anew for the generator's step, as much as for the discriminator's."""
    drawn, draw_codes = [], GAN.draw_codes

    def draw(self, n):
        drawn.append(draw_codes(self, n))
        return drawn[-1]

    monkeypatch.setattr(GAN, "draw_codes", draw)
    run("gan", "--max-steps", "2", "--accumulate", str(accumulate))
    assert [len(noise) for noise in drawn] == [16 // accumulate] * 4 * accumulate
    assert len(torch.cat(drawn).unique(dim=0)) == 64


def test_half_precision_steps(model="ddpm_small"):
    for precision in ("bf16", "fp16"):
        metrics = run(model, "--max-steps", "2", "--precision", precision)
        assert all(map(math.isfinite, metrics.values()))
        metrics = run("dcgan", "--max-steps", "2", "--precision", precision)
        assert all(map(math.isfinite, metrics.values()))


def test_gans_log_both_losses_and_what_the_discriminator_says():
    metrics = run("gan", "--epochs", "2", "--run-dir", "run", "--conditional")
    wanted = {f"train_{k}" for k in ("generator_loss", "discriminator_loss", "real_output")}
    assert wanted | {"train_fake_output"} == metrics.keys()
    rows = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert wanted < rows[0].keys()
    assert 0 < rows[0]["train_fake_output"] < 1
    assert Path("run/curves.png").exists()


def test_a_class_left_out_is_found_by_its_error(capsys):
    argv = ["--model", "conv_autoencoder", "--without", "0", "--epochs", "15", "--latent", "8"]
    metrics = train.main([*argv, "--quiet", "--run-dir", "run", "--precision", "fp32"])
    assert metrics["test_auc"] > 0.75
    assert Path("run/roc.png").exists()
    again = train.main(["--evaluate", "run/last.pt", "--quiet", "--run-dir", "again"])
    assert again["test_auc"] == pytest.approx(metrics["test_auc"])


def test_evaluation_is_with_the_average_or_without(capsys):
    run("ddpm_small", "--epochs", "2", "--run-dir", "run")
    one = train.main(["--evaluate", "run/last.pt", "--quiet", "--samples", "4"])
    two = train.main(["--evaluate", "run/last.pt", "--quiet", "--samples", "4", "--ema", "0"])
    again = train.main(["--evaluate", "run/last.pt", "--quiet", "--samples", "4"])
    assert one["test_bits"] != two["test_bits"]
    assert {k: v for k, v in one.items() if "seconds" not in k} == pytest.approx(
        {k: v for k, v in again.items() if "seconds" not in k}
    )


def test_a_vae_is_measured_in_nats():
    metrics = run("vae", "--max-steps", "8", "--importance", "20", "--run-dir", "run")
    assert metrics["test_log_likelihood"] > metrics["test_bound"]
    assert metrics["test_loss"] == pytest.approx(-metrics["test_bound"], rel=0.05)
    assert metrics["test_active"] in range(21)  # a count of latents
    metrics = run("vae", "--max-steps", "2", "--likelihood", "gaussian", "--importance", "0")
    assert "test_log_likelihood" not in metrics


def test_moons(refused):
    args = train.parse_args(["--model", "realnvp2d", "--quiet"])
    dev = Device(args)
    parts = load(args, dev)
    assert [len(part) for part in parts] == [9000, 1000, 2000]
    x, labels = parts[0].points, parts[0].labels
    assert x.mean(0).abs().max() < 0.05
    assert (x.std(0) - 1).abs().max() < 0.05
    assert x[labels == 0, 1].mean() > x[labels == 1, 1].mean() + 1
    assert len(load(args.but(limit=50), dev)[0]) == 50
    metrics = train.main(["--model", "realnvp2d", "--epochs", "3", "--quiet", "--run-dir", "run"])
    assert metrics["test_log_likelihood"] > -2.3  # a normal distribution has about -2.8
    argv = ["--checkpoint", "run/last.pt", "--out", "out", "--count", "5"]
    sample.main(argv)
    assert "out/grid.png is there already" in refused(sample.main, argv)


def test_images_of_a_folder_in_colour(refused):
    folder_of(("a", 6), ("b", 6))
    for model in ("conv_vae", "dcgan"):
        argv = ["--model", model, "--data", "folder:set", "--size", "16", "--max-steps", "2"]
        train.main([*argv, "--quiet", "--flip", "--samples", "4", "--run-dir", model])
        sample.main(["--checkpoint", f"{model}/last.pt", "--out", f"{model}/out", "--count", "4"])
        assert Image.open(f"{model}/samples.png").mode in ("RGB", "RGBA")
    found = sample.main(["set/a", "--checkpoint", "conv_vae/last.pt", "--out", "out"])
    assert len(found) == 6
    line = refused(sample.main, ["set/a", "--checkpoint", "conv_vae/last.pt", "--out", "out"])
    assert "out/reconstructions.png is there already" in line


def test_runs_of_before_are_measured_as_they_were():
    """They had yes and no as words, None for a factory's own defaults, and channels as a fact."""
    metrics = run("vae", "--max-steps", "2", "--importance", "2", "--run-dir", "run")
    content = torch.load("run/last.pt")
    flags = content["config"]["flags"]
    flags |= dict(latent=None, binarise=None, likelihood=None, beta=None, flip="no", decay="yes")
    content["dataset"]["channels"] = 1
    torch.save(content, "run/old.pt")
    again = train.main(["--evaluate", "run/old.pt", "--quiet"])
    assert again == {key: value for key, value in metrics.items() if "train" not in key}
    assert "samples.png" in sample.main(["--checkpoint", "run/old.pt", "--count", "4"])["written"]


# ---------------------------------------------------------------------- weights to start from


def test_fine_tuning_starts_from_a_checkpoint(refused):
    run("dcgan", "--max-steps", "2", "--run-dir", "first")
    run(
        "dcgan", "--max-steps", "1", "--lr", "1e-30", "--weights", "first/last.pt", "--run-dir", "b"
    )
    one, two = (weights(name) for name in ("first", "b"))
    learnt = [key for key in one if "running" not in key and "tracked" not in key]
    assert all(torch.equal(one[key], two[key]) for key in learnt)
    argv = ["--weights", "first/last.pt", "--quiet"]
    assert "another network" in refused(train.main, ["--model", "vae", *argv])
    assert "doesn't fit" in refused(train.main, ["--model", "dcgan", "--width", "16", *argv])
    assert "--weights" in refused(train.main, ["--evaluate", "first/last.pt", *argv])


def test_diffusers_files_load_by_a_table_of_names():
    """Files as old as the released ones call attention's layers otherwise."""
    diffusers = pytest.importorskip("diffusers")
    reference = diffusers.UNet2DModel(
        sample_size=4,
        in_channels=4,  # ddpm_small folds 2x2 pixels
        out_channels=4,
        block_out_channels=[8, 16],
        down_block_types=["DownBlock2D", "AttnDownBlock2D"],
        up_block_types=["AttnUpBlock2D", "UpBlock2D"],
        layers_per_block=1,
        downsample_padding=0,
        norm_num_groups=8,
    )
    new = reference.state_dict()
    table = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def old(key):
        return next((key.replace(a, b) for a, b in table.items() if f".{a}." in key), key)

    torch.save({old(key): value for key, value in new.items()}, "old.bin")
    assert "mid_block.attentions.0.proj_attn.weight" in torch.load("old.bin")
    torch.save(new, "new.bin")
    for name in ("old", "new"):
        argv = ["--weights", f"{name}.bin", "--lr", "1e-30", "--max-steps", "1"]
        run("ddpm_small", *argv, "--run-dir", name)
        loaded = torch.load(f"{name}/last.pt")
        for kept in (loaded["model"], loaded["ema"]):
            assert all(torch.allclose(kept[f"unet.{key}"], new[key]) for key in new)


# ---------------------------------------------------------------------- evaluation


def test_frechet_distance_in_closed_form():
    torch.manual_seed(0)
    a = torch.randn(50_000, 3).double() * torch.tensor([1.0, 2.0, 0.5]) + 1
    b = torch.randn(50_000, 3).double() * torch.tensor([2.0, 2.0, 1.0])
    want = 3 + (1 - 2) ** 2 + 0 + (0.5 - 1) ** 2
    assert evaluate.frechet(a, b) == pytest.approx(want, rel=0.02)
    assert evaluate.frechet(a, a) == pytest.approx(0, abs=1e-9)


def test_frechet_distance_is_that_of_the_matrix_root():
    from scipy.linalg import sqrtm

    torch.manual_seed(0)
    a, b = torch.randn(40, 5).double() @ torch.randn(5, 5).double(), torch.randn(60, 5).double()
    c, d = a.T.cov().numpy(), b.T.cov().numpy()
    root = sqrtm(c @ d).real
    want = float((a.mean(0) - b.mean(0)).square().sum()) + np.trace(c + d - 2 * root)
    assert evaluate.frechet(a, b) == pytest.approx(want)


def test_precision_and_recall():
    torch.manual_seed(0)
    real = torch.randn(400, 2).double()
    near, far = real[:200] + 0.001, torch.full((200, 2), 50.0).double()
    assert evaluate.precision_recall(real, real) == (1, 1)
    precision, _ = evaluate.precision_recall(real, torch.cat([near, far]))
    assert precision == pytest.approx(0.5)
    narrow = real[real[:, 0] > 0]  # a mode that is missing
    precision, recall = evaluate.precision_recall(real, narrow)
    assert precision == 1
    assert 0.45 < recall < 0.75
    assert evaluate.precision_recall(real, far.unique(dim=0).expand(2, 2)) == (0, 0)


def test_precision_and_recall_by_brute_force():
    torch.manual_seed(0)
    real, fake = torch.randn(30, 3).double(), 1.5 * torch.randn(20, 3).double()

    def share(inside, of):
        found = 0
        for x in inside:
            radii = [sorted(float((y - z).norm()) for z in of)[3] for y in of]
            found += any(float((x - y).norm()) <= r for y, r in zip(of, radii, strict=True))
        return found / len(inside)

    want = share(fake, real), share(real, fake)
    assert evaluate.precision_recall(real, fake) == pytest.approx(want)


def test_samples_are_measured_and_shown():
    metrics = run("conv_vae", "--max-steps", "2", "--samples", "30", "--run-dir", "run")
    wanted = {f"test_{k}" for k in ("frechet", "precision", "recall", "neighbour_ratio")}
    assert wanted | {"test_sample_seconds"} < metrics.keys()
    assert metrics["test_frechet"] > 0
    assert Path("run/samples.png").exists()
    assert Path("run/neighbours.png").exists()
    (cached,) = Path("data/cache/generative").glob("digits-8-*.pt")
    before = cached.stat().st_mtime
    run("conv_autoencoder", "--max-steps", "1", "--samples", "10")  # the same classifier
    assert cached.stat().st_mtime == before
    assert len(list(Path("data/cache/generative").iterdir())) == 1


def test_all_processes_measure_with_one_classifier(monkeypatch):
    args = train.parse_args([*TINY, "--model", "vae"])
    dev, heads = Device(args), []
    test = load(args, dev)[2]
    for dev.rank in (0, 1):
        monkeypatch.setattr(evaluate, "CACHE", Path(f"cache-{dev.rank}"))
        heads.append(evaluate.classifier(test, args, dev).head.weight)
    assert torch.equal(*heads)


def test_copies_are_found():
    """A model that repeats training images has a ratio of 0."""
    args = train.parse_args([*TINY, "--samples", "20", "--model", "vae"])
    dev = Device(args)
    train_set, _, test = load(args, dev)

    class Copier(torch.nn.Module):
        def sample(self, n):
            return train_set.examples(torch.arange(n) % len(train_set))[0]

    Path("out").mkdir()
    found = evaluate.sample_quality(Copier(), train_set, test, args, dev, Path("out"))
    assert found["test_neighbour_ratio"] == pytest.approx(0, abs=1e-3)


def test_no_float64_is_sent_to_a_device_without_it(monkeypatch):
    """As MPS is: what is summed in float64 is summed on the CPU."""
    args = train.parse_args([*TINY, "--model", "vae"])
    dev = Device(args)
    test = load(args, dev)[2].take(torch.arange(20))
    model = build(args, test.facts)
    want = evaluate.mean_loss(model, test, dev) | evaluate.bounds(model, test, args, dev, None)
    to, mps = torch.Tensor.to, SimpleNamespace(type="mps")

    def careful(self, target, *more, **kwargs):
        if target is not mps:
            return to(self, target, *more, **kwargs)
        assert self.dtype != torch.float64
        return self

    monkeypatch.setattr(torch.Tensor, "to", careful)
    monkeypatch.setattr(torch.mps, "get_rng_state", lambda: None)
    monkeypatch.setattr(torch.mps, "set_rng_state", lambda state: None)
    dev.device = mps
    monkeypatch.setattr(test.__class__, "batches", lambda self, size: [self.examples(slice(20))])
    monkeypatch.setattr(
        test.__class__, "examples", lambda self, part: (self.images.pixels / 255, self.labels)
    )
    found = evaluate.mean_loss(model, test, dev) | evaluate.bounds(model, test, args, dev, None)
    assert found == pytest.approx(want)


def test_measuring_leaves_the_random_numbers_of_training_as_they_were(monkeypatch):
    """Those of the CPU, and those of MPS, which torch's own fork_rng leaves out."""
    now = ["training"]
    monkeypatch.setattr(torch.mps, "get_rng_state", lambda: now[0])
    monkeypatch.setattr(torch.mps, "set_rng_state", lambda state: now.__setitem__(0, state))
    dev, before = SimpleNamespace(device=torch.device("mps"), rank=0), torch.get_rng_state()
    with pytest.raises(KeyError), forked("loss", dev):
        now[0] = "measuring"
        torch.rand(3)
        raise KeyError
    assert now == ["training"]
    assert torch.equal(torch.get_rng_state(), before)


# ---------------------------------------------------------------------- samples, claims


@pytest.mark.parametrize("model", [name for name in MODELS if name not in ("realnvp2d", "ddpm")])
def test_samples(model, refused, capsys):
    extra = {"vae": ["--latent", "2"], "autoencoder": ["--latent", "2"], "gan": ["--conditional"]}
    extra["vae"] += ["--importance", "2"]
    extra["conv_autoencoder"] = ["--noise", "0.2"]
    extra["conv_vae"] = ["--importance", "2"]
    run(model, "--max-steps", "1", "--run-dir", "run", *extra.get(model, []))
    steps = ["--sample-steps", "3"] if model == "ddpm_small" else []
    argv = ["--checkpoint", "run/last.pt", "--out", "out", "--count", "12", *steps]
    written = sample.main(argv)["written"]
    wanted = {"samples.png", "interpolation.png"}
    if model in ("vae", "autoencoder"):
        wanted |= {"codes.png", "manifold.png"}
    wanted |= {"denoising.gif"} if model == "ddpm_small" else set()
    wanted |= {"reconstructions.png"} if "auto" in model or "vae" in model else set()
    assert set(written) == wanted
    if model == "ddpm_small":
        assert Image.open("out/denoising.gif").n_frames == 4
    Image.new("RGB", (40, 30), "white").save("mine.png")
    argv = ["mine.png", "--checkpoint", "run/last.pt", "--out", "mine"]
    if model in ("gan", "dcgan", "ddpm_small"):
        assert "inputs" in refused(sample.main, argv)
    else:
        assert sample.main(argv)["mine.png"] > 0
        assert "mine.png" in capsys.readouterr().out


@pytest.mark.parametrize("model", ["autoencoder", "vae", "realnvp"])
def test_samples_with_one_test_image(model, capsys):
    for part, classes in (("train", "ab"), ("test", "a")):
        for k, name in enumerate(classes):
            Path("set", part, name).mkdir(parents=True)
            for j in range(3 if part == "train" else 1):
                Image.new("L", (9, 9), 50 * k + 20 * j).save(f"set/{part}/{name}/{j}.png")
    argv = ["--model", model, "--data", "folder:set", "--size", "8", "--val", "0", "--quiet"]
    argv += [] if model == "realnvp" else ["--latent", "2"]
    metrics = train.main([*argv, "--max-steps", "1", "--batch-size", "2", "--run-dir", "run"])
    assert all(map(math.isfinite, metrics.values()))
    found = set(
        sample.main(["--checkpoint", "run/last.pt", "--count", "4", "--out", "out"])["written"]
    )
    assert "one test image" in capsys.readouterr().out
    more = {"codes.png", "manifold.png", "reconstructions.png"}
    assert found == {"samples.png"} | (set() if model == "realnvp" else more)
    if found >= more:
        assert len(np.unique(Image.open("out/manifold.png").convert("L"))) > 2  # not all NaN


def test_a_flow_says_the_bits_of_images_and_makes_no_folder(capsys):
    run("realnvp", "--max-steps", "1", "--run-dir", "run")
    capsys.readouterr()
    Image.new("L", (20, 20), 90).save("mine.png")
    found = sample.main(["mine.png", "--checkpoint", "run/last.pt"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[1:] == [f"mine.png: bits a dimension {found['mine.png']:.4g}"]
    assert not Path("run/samples").exists()


def test_samples_refuse(refused):
    assert "train" in refused(sample.main, [])
    run("vae", "--max-steps", "1", "--run-dir", "run")
    Path("text.png").write_text("no image")
    assert "text.png" in refused(sample.main, ["text.png", "--checkpoint", "run/last.pt"])
    run("ddpm_small", "--max-steps", "1", "--run-dir", "noise")
    line = refused(sample.main, ["--checkpoint", "noise/last.pt", "--sample-steps", "1001"])
    assert "1000" in line


SIZES = {
    "likelihood": 6,
    "steps": 2,
    "samples": 2,
    "codes": 3,
    "beta": 4,
    "saturating": 2,
    "ema": 2,
}
SIZES |= {"table": 6, "anomaly": 4, "denoising": 2}


@pytest.mark.parametrize(
    "claim", [c if k < 3 else pytest.param(c, marks=pytest.mark.slow) for k, c in enumerate(SIZES)]
)
def test_claims_run_resume_and_summarise(claim, monkeypatch, capsys):
    runs = []
    narrow = {"ddpm_small": ["--width", "8"], "dcgan": ["--width", "8"], "gan": []}
    narrow["realnvp"] = ["--width", "4", "--num-blocks", "1"]

    def short(argv):
        runs.append(argv)
        small = [] if "--evaluate" in argv else ["--limit", "64", "--max-steps", "1"]
        small += next((flags for name, flags in narrow.items() if name in argv), [])
        return train.main([*argv, *small, "--quiet"])

    monkeypatch.setattr(claims, "train", short)
    steps = {f"{k} steps": ["--sample-steps", str(k)] for k in (1, 3)}
    monkeypatch.setitem(claims.AGAIN, "steps", steps)
    argv = [claim, "--data", "digits", "--seeds", "0", "--samples", "12", "--out", "out"]
    summary = claims.main(argv)
    assert summary == json.loads(Path(f"out/claim_{claim}.json").read_text())
    assert Path(f"out/claim_{claim}.png").exists()
    assert len(summary) == SIZES[claim]
    count = len(runs)
    claims.main(argv)
    assert len(runs) == count  # done is done
    out = capsys.readouterr().out
    assert claim != "table" or ("| conv_vae |" in out and "training images" in out)


@pytest.mark.slow
def test_two_processes_train():
    for model in ("dcgan", "ddpm_small"):
        script = Path(train.__file__)
        extra = ["--model", model, "--width", "8", "--max-steps", "3", "--limit", "64"]
        done = torchrun(script, *extra, "--samples", "8", "--run-dir", model)
        assert done.returncode == 0, done.stderr
        assert Path(model, "samples.png").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "distance"),
    [("conv_vae", 300), ("dcgan", 300), ("realnvp", 300), ("ddpm_small", 100)],
)
def test_quick_reaches_the_readmes_number(model, distance):
    metrics = train.main(["--model", model, "--samples", "1000", "--quiet"])
    assert metrics["test_frechet"] < distance
