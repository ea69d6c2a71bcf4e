"""The scripts of latent diffusion: both stages, published folders, samples, claims, bad input."""

import itertools
import json
import math
import re
import shutil
import signal
from functools import partial
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch
from conftest import torchrun
from helpers import make_tree, perturb, weights
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from common import scenes
from common.data.tokens import Tokens
from common.device import Device
from latentdiffusion import (
    claims,
    data,
    evaluate,
    options,
    published,
    sample,
    train,
    train_autoencoder,
)
from latentdiffusion.autoencoder import SIZES, Pixels
from latentdiffusion.draw import Noise
from latentdiffusion.model import MODELS

diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")

AE = ["--width", "8", "--size", "16", "--batch-size", "8", "--quiet", "--precision", "fp32"]
ALONE = ["--width", "32", "--size", "16", "--batch-size", "8", "--quiet", "--precision", "fp32"]
ALONE += ["--val", "8", "--sample-steps", "2"]  # of the second stage
TINY = [*ALONE, "--ae-width", "8", "--ae-steps", "2"]
SHORT = [*TINY, "--steps", "3", "--samples", "0"]


@pytest.fixture(autouse=True)
def short(monkeypatch):
    """Few scenes, and a judge that hardly has to be good."""
    monkeypatch.setattr("common.data.shapes.NUM_SCENES", {"train": 40, "test": 12})
    for name, value in dict(TRAINED=64, EPOCHS=1, MEASURED=10).items():
        monkeypatch.setattr(scenes, name, value)


def first_run(*argv, folder="first", model="kl_small"):
    """A short training of a small autoencoder; returns its metrics."""
    return train.main(
        ["--model", model, *AE, "--steps", "2", "--val", "8", "--run-dir", folder, *argv]
    )


def run(*argv, folder="run"):
    """A short training of both stages, or of the second; returns the metrics."""
    one = "--autoencoder" in argv or ("--factor", "1") in itertools.pairwise(argv)
    flags = [*(ALONE if one else TINY), "--steps", "3", "--samples", "0", "--run-dir", folder]
    return train.main([*flags, *argv])


def assert_same(one, other):
    one, other = weights(one), weights(other)
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


# ---------------------------------------------------------------------- both stages


def test_both_stages_in_one_command(capsys):
    argv = [*TINY, "--steps", "3", "--samples", "3", "--frechet"]
    found = train.main([*argv, "--run-dir", "run"])
    keys = ("loss", "right", "shape", "colour", "rebuilt", "frechet")
    assert {*(f"test_{key}" for key in keys), "judge_right"} <= found.keys()
    assert all(map(math.isfinite, found.values()))
    assert found["test_right"] <= min(found["test_shape"], found["test_colour"])
    for name in ("last.pt", "config.json", "metrics.jsonl", "curves.png", "samples.png"):
        assert Path("run", name).is_file(), name
    for name in ("last.pt", "rebuilt.png", "metrics.jsonl"):
        assert Path("run/autoencoder", name).is_file(), name
    state, first = weights("run"), weights("run/autoencoder")
    for name, value in first.items():  # the first stage is frozen in the second
        assert torch.equal(state[f"autoencoder.{name}"], value)
    again = train.main(["--evaluate", "run/last.pt", "--quiet", "--run-dir", "again"])
    for key in ("test_loss", "test_right", "test_frechet", "judge_right"):
        assert again[key] == pytest.approx(found[key], rel=1e-5), key


def test_captions_are_without_idle_words():
    train_set, val, test = data.load(args := train.parse_args(SHORT), Device(args))
    for part in (train_set, val, test):
        assert all(len(some) == 1 for some in part.captions)
        assert all(
            re.match(r"an? (large |small )?[a-z]+ [a-z]+$", some[0]) for some in part.captions
        )
    assert "photo" not in " ".join(train_set.chosen(0))


def test_latents_are_scaled_by_their_measured_deviation():
    run()
    content = torch.load("run/last.pt")
    scale = content["model"]["scale"]
    assert content["dataset"]["network"]["scale"] == pytest.approx(float(scale))
    args = train.parse_args([*SHORT, "--run-dir", "other"])
    dev = Device(args)
    part = data.load(args, dev)[0]
    _, autoencoder = options.read_first(args.but(autoencoder="run"))
    x = part.images.examples(torch.arange(len(part)))[0]
    assert x.min() >= -1
    assert x.max() > 0.5
    with torch.no_grad():
        z = torch.cat([autoencoder.draw(autoencoder.encode(x)) for _ in range(20)])
    assert (z * scale).std().item() == pytest.approx(1, abs=0.02)


def test_latents_are_what_the_autoencoder_says_of_each_image():
    first_run()
    args = train.parse_args([*SHORT, "--run-dir", "x"])
    dev = Device(args)
    part = data.load(args, dev)[0]
    words = data.Words(data.learn_words(part, 1024, dev))
    _, autoencoder = options.read_first(args.but(autoencoder="first"))
    latents = data.Latents(part, words, autoencoder, dev)
    batches = latents.batches(8)
    batches.seek(1, 0)
    orders, chosen = batches.steps(), part.chosen(1)
    assert len({*chosen}) > 1
    for rows, (known, tokens) in zip(orders, batches, strict=True):
        x = part.images.examples(rows)[0]
        torch.testing.assert_close(known, autoencoder.encode(x), rtol=1e-4, atol=1e-5)
        assert torch.equal(tokens, words.encode([chosen[i] for i in rows.tolist()]))
    (known, tokens), *_ = latents.batches(8, shuffle=False)
    first = [part.captions[i][0] for i in range(len(tokens))]
    assert torch.equal(tokens, words.encode(first))


def test_captions_are_dropped():
    tokens, none = torch.arange(1, 20_001).view(-1, 2), torch.tensor([-1, -2])
    torch.manual_seed(0)
    found = train.dropped(tokens, none, 0.1)
    gone = (found == none).all(1)
    assert gone.double().mean().item() == pytest.approx(0.1, abs=0.01)
    assert torch.equal(found[~gone], tokens[~gone])
    assert torch.equal(train.dropped(tokens, none, 0.0), tokens)


def test_a_tenth_of_the_captions_is_dropped_in_training(monkeypatch):
    seen = []
    plain = train.dropped
    monkeypatch.setattr(train, "dropped", lambda t, n, s: seen.append((n, s)) or plain(t, n, s))
    run()
    none, share = seen[0]
    assert share == 0.1
    words = data.Words(torch.load("run/last.pt")["dataset"]["words"])
    assert torch.equal(none, words.encode([""])[0])
    assert words.tokens.start == none[0]
    assert (none[1:] == words.tokens.end).all()


def test_the_average_is_what_is_measured_and_sampled(monkeypatch):
    run("--ema", "0.5", "--steps", "4")
    content = torch.load("run/last.pt")
    names = content["ema"].keys()
    assert not [name for name in names if name.startswith("autoencoder")]
    assert any(not torch.equal(content["ema"][n], content["model"][n]) for n in names)
    argv = ["--checkpoint", "run/last.pt", "--device", "cpu"]
    model = sample.open_model(sample.parse_args([*argv, "a red circle"]))[0]
    for name, p in model.named_parameters():
        assert torch.equal(p, content["ema"].get(name, content["model"][name])), name
    assert torch.equal(model.scale, content["model"]["scale"])
    run("--ema", "0", "--steps", "4", folder="plain")
    assert not torch.load("plain/last.pt")["ema"]
    assert_same("run", "plain")  # to average changes no training


def test_the_average_warms_up():
    model = nn.Linear(1, 1, bias=False)
    ema, by_hand = {"weight": model.weight.detach().clone()}, model.weight.item()
    for step in range(50):
        with torch.no_grad():
            model.weight.fill_(math.sin(step))
        train.average(ema, model, 0.8, step)
        decay = min(0.8, (1 + step) / (10 + step))
        by_hand = decay * by_hand + (1 - decay) * math.sin(step)
    assert ema["weight"].item() == pytest.approx(by_hand, rel=1e-4)


def test_resumed_is_uninterrupted():
    """Inside an epoch of the second stage; the first isn't trained again."""
    run("--steps", "6", folder="whole")
    run("--steps", "6", "--max-steps", "3", folder="half")
    before = Path("half/autoencoder/last.pt").stat().st_mtime_ns
    train.main(["--resume", "--run-dir", "half", "--quiet"])
    assert_same("whole", "half")
    one, other = torch.load("whole/last.pt")["ema"], torch.load("half/last.pt")["ema"]
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert Path("half/autoencoder/last.pt").stat().st_mtime_ns == before


def test_a_stop_between_the_stages():
    """What goes on with the first stage done is what trained both without a stop."""
    run(folder="whole")
    Path("cut").mkdir()
    shutil.copytree("whole/autoencoder", "cut/autoencoder")
    shutil.copy("whole/config.json", "cut")
    train.main(["--resume", "--run-dir", "cut", "--quiet"])
    assert_same("whole", "cut")


def test_patience_measures_the_best_weights(monkeypatch):
    losses, seen = iter([1.0, 2.0, 3.0]), []

    def measured(model, latents, dev):
        seen.append(model.unet.conv_in.weight.clone())
        return {f"{latents.part.part}_loss": next(losses)}

    monkeypatch.setattr(train, "mean_loss", measured)
    run("--patience", "1", "--steps", "50")
    first, second, last = seen
    assert torch.equal(last, first)
    assert not torch.equal(last, second)


def test_the_first_stage_is_told(monkeypatch):
    """Its own batch size, and what both stages have alike."""
    seen, plain = [], train_autoencoder.train_autoencoder

    def noted(args, sets):
        seen.append(args)
        return plain(args, sets)

    monkeypatch.setattr(train_autoencoder, "train_autoencoder", noted)
    run("--ae-batch-size", "4", "--accumulate", "2")
    (args,) = seen
    assert (args.batch_size, args.accumulate, args.steps, args.size) == (4, 2, 2, 16)
    both = train.parse_args(["--compile"])
    assert train.parse_args(options.as_argv(both, model="kl_small")).compile


def test_a_stop_in_the_first_stage(monkeypatch, capsys):
    """Ctrl-C there says how both go on; and they end as if nothing had been."""
    run("--ae-steps", "4", folder="whole")
    weigh = train_autoencoder.weigh

    def stopping(*args):
        signal.raise_signal(signal.SIGINT)
        return weigh(*args)

    monkeypatch.setattr(train_autoencoder, "weigh", stopping)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(SystemExit) as stop:
        run("--ae-steps", "4", folder="cut")
    assert stop.value.code == 130
    assert signal.getsignal(signal.SIGINT) is before
    assert "train.py --resume --run-dir cut\n" in capsys.readouterr().out
    assert not Path("cut/last.pt").exists()
    monkeypatch.setattr(train_autoencoder, "weigh", weigh)
    train.main(["--resume", "--run-dir", "cut", "--quiet"])
    assert_same("whole", "cut")


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision(precision):
    found = run("--precision", precision)
    assert all(map(math.isfinite, found.values()))


@pytest.mark.parametrize("more", [[], ["--fsdp"]], ids=["ddp", "fsdp"])
def test_two_processes(more):
    """A first stage without noise of its own is that of one process; so are the latents' order
    and standard deviation; and both processes draw what is measured."""
    flags = [*SHORT, "--regulariser", "vq", "--max-steps", "2"]
    flags += [] if more else ["--samples", "3"]
    done = torchrun(train.__file__, *flags, *more, "--run-dir", "two")
    assert done.returncode == 0, done.stderr
    one = train.main([*flags, "--samples", "0", "--run-dir", "one"])
    found = json.loads(Path("two/metrics.jsonl").read_text().splitlines()[-1])
    assert found["final"]
    assert more or 0 <= found["test_right"] <= 1
    assert found["test_loss"] == pytest.approx(one["test_loss"], rel=0.1)
    assert weights("two")["scale"].item() == pytest.approx(weights("one")["scale"].item(), 1e-3)
    for name, value in weights("one/autoencoder").items():
        other = weights("two/autoencoder")[name]
        torch.testing.assert_close(value, other, rtol=1e-3, atol=2e-5, msg=name)


def test_processes_share_the_encoding(monkeypatch):
    """What two processes encode, put together, is in the order of the images."""
    args = train.parse_args([*SHORT, "--run-dir", "x"])
    part = data.load(args, Device(args))[0]
    x = part.images.examples(torch.arange(len(part)))[0]
    words = data.Words(data.learn_words(part, 600, Device(args)))
    monkeypatch.setattr(data, "CHUNK", 7)
    own = []
    for rank in (0, 1):
        dev = Device(args)
        dev.rank, dev.world = rank, 2
        dev.gather = lambda value: own.append(value) or [value, value]
        part.images.dev = dev
        data.Latents(part, words, Pixels(), dev)
    dev.gather = lambda value: own
    assert torch.equal(data.Latents(part, words, Pixels(), dev).known, x)


@pytest.mark.parametrize(
    "more",
    [
        ["--factor", "1"],
        ["--factor", "2", "--latent-channels", "2"],
        ["--factor", "8", "--regulariser", "vq"],
        ["--conditioning", "pooled"],
        ["--prediction", "epsilon"],
    ],
    ids=lambda more: more[1],
)
def test_kinds_of_models(more):
    found = run(*more)
    assert math.isfinite(found["test_loss"])
    network = torch.load("run/last.pt")["dataset"]["network"]
    if more[0] == "--prediction":
        assert network["schedule"]["prediction"] == "epsilon"
    if more == ["--factor", "1"]:
        assert network["autoencoder"] == {"kind": "none"}
        assert not Path("run/autoencoder").exists()
    argv = ["--checkpoint", "run/last.pt", "a red circle"]
    assert "grid.png" in sample.main(argv)["written"]


# ---------------------------------------------------------------------- the first stage


@pytest.mark.parametrize("model", ["kl_small", "vq_small"])
def test_the_first_stage_alone(model):
    found = first_run(model=model)
    assert {"test_error", "test_psnr", "train_error"} <= found.keys()
    assert ("test_codes" in found) == (model == "vq_small")
    again = train.main(["--evaluate", "first/last.pt", "--quiet", "--run-dir", "again"])
    assert again["test_error"] == pytest.approx(found["test_error"], rel=1e-6)
    assert Path("again/rebuilt.png").is_file()


def test_errors_of_rebuilt_images():
    """By hand: absolute errors, and the mean square as PSNR, of pixels from 0 to 1."""

    class Off(Pixels):
        def decode(self, z):
            return z * 0.5

    args = train.parse_args(["--model", "kl_small", *AE])
    dev = Device(args)
    part = data.load(args, dev)[2]
    x = part.images.examples(torch.arange(len(part)))[0]
    found = train_autoencoder.measure(Off(), part, dev)
    assert found["test_error"] == pytest.approx((x.abs() / 4).mean().item(), rel=1e-5)
    square = (x / 4).square().mean().item()
    assert found["test_psnr"] == pytest.approx(-10 * math.log10(square), rel=1e-5)


def test_the_loss_is_the_papers_sums_over_pixels():
    argv = ["--model", "kl_small", "--kl-weight", "0.5"]
    args = train.parse_args([*argv, "--error", "absolute"])
    model = nn.Module()
    model.regulariser = "kl"
    x, rebuilt, kl = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4), torch.tensor(7.0)
    loss, error = train_autoencoder.weigh(args, model, x, rebuilt, kl)
    sums = (x - rebuilt).abs().sum() / 2 + 0.5 * kl
    assert (loss * 48).item() == pytest.approx(sums.item(), rel=1e-5)
    assert error.item() == pytest.approx((x - rebuilt).abs().mean().item())
    squared = train_autoencoder.weigh(train.parse_args(argv), model, x, rebuilt, kl)[1]
    assert squared.item() == pytest.approx((x - rebuilt).square().mean().item())
    model.regulariser = "vq"
    loss, error = train_autoencoder.weigh(args, model, x, rebuilt, kl)
    assert loss.item() == pytest.approx(error.item() + 7)


def test_the_discriminator_begins_when_it_is_told(monkeypatch):
    argv = ["--size", "24", "--steps", "3", "--limit", "16"]
    seen, plain = [], train_autoencoder.hinge
    monkeypatch.setattr(train_autoencoder, "hinge", lambda a, b: seen.append(1) or plain(a, b))
    first_run(*argv, "--adversarial", "0.5", "--adversarial-from", "9", folder="late")
    assert not seen
    first_run(*argv, "--adversarial", "0.5", "--adversarial-from", "2", folder="on")
    assert len(seen) == 1
    name = "decoder.conv_out.weight"
    assert not torch.equal(weights("on")[name], weights("late")[name])
    content, before = torch.load("on/last.pt"), torch.load("late/last.pt")
    assert content["judge_optimizer"]["state"]
    assert not before["judge_optimizer"]["state"]
    assert any(not torch.equal(before["judge"][k], v) for k, v in content["judge"].items())


def test_a_first_stage_of_ones_own():
    """Of a run, of a whole model, of a published folder; each keeps its weights."""
    first_run("--latent-channels", "3")
    run("--autoencoder", "first", folder="one")
    assert train.parse_args(["--autoencoder", "first"]).size == 16  # as that has learnt
    state, first = weights("one"), weights("first")
    assert state["unet.conv_in.weight"].shape[1] == 3
    assert all(torch.equal(state[f"autoencoder.{name}"], value) for name, value in first.items())
    assert not Path("one/autoencoder").exists()
    theirs = their_autoencoder()
    theirs.save_pretrained("published/vae")
    for name, want in (("one", first), ("one/last.pt", first), ("published", theirs.state_dict())):
        settings, found = options.read_first(train.parse_args(["--autoencoder", name]))
        assert settings["kind"] == "kl"
        assert found.state_dict().keys() == want.keys()
        assert all(torch.equal(found.state_dict()[key], value) for key, value in want.items())
    theirs.save_pretrained("alone")  # an autoencoder published by itself
    settings, found, scale = published.read_autoencoder("alone")
    assert (settings["latent_channels"], scale) == (4, 0.3)


def test_codes_of_another_autoencoder(refused):
    first_run("--latent-channels", "3")
    argv = [*ALONE, "--autoencoder", "first"]
    for flag in ("--factor", "--latent-channels", "--ae-steps", "--ae-batch-size"):
        assert "names one that is trained" in refused(train.main, [*argv, flag, "2"])
    run(folder="run")
    line = refused(train.main, ["--resume", "--run-dir", "run", "--autoencoder", "first"])
    assert "start a new run" in line
    line = refused(train.main, ["--resume", "--run-dir", "run", "--objects", "2"])
    assert "holds objects 1" in line
    torch.save({"config": {"flags": {"milestone": "dalle", "model": "dvae_small"}}}, "dvae.pt")
    line = refused(train.main, [*ALONE, "--autoencoder", "dvae.pt"])
    assert "dalle" in line
    assert "codes" in line
    line = refused(train.main, ["--model", "stable_diffusion", "--autoencoder", "first", "--size",
                                "64", "--max-steps", "1", "--quiet", "--val", "4"])  # fmt: skip
    assert "3 channels of latents" in line
    assert "no such file or folder" in refused(train.main, [*ALONE, "--autoencoder", "nowhere"])
    Path("bare").mkdir()
    assert "no last.pt" in refused(train.main, [*ALONE, "--autoencoder", "bare"])


# ---------------------------------------------------------------------- data


def table(name="pairs.csv", sizes=((20, 30),), rows=10):
    """Images of noise, and a CSV with their captions."""
    random = np.random.default_rng(0)
    lines = ["image,caption"]
    for number in range(rows):
        pixels = random.integers(0, 256, (*sizes[number % len(sizes)], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(f"{number}.png")
        lines += [f"{number}.png,picture number {number}", f"{number}.png,the {number}th image"]
    Path(name).write_text("\n".join(lines) + "\n")
    return f"captions:{name}"


def test_data_of_ones_own():
    found = run("--data", table(), "--val", "2", folder="one")
    assert math.isfinite(found["test_loss"])
    assert "test_right" not in found
    make_tree("tree", ("red_tulip", "daisy"))
    run("--data", "folder:tree", "--val", "2", folder="two")
    words = data.Words(torch.load("two/last.pt")["dataset"]["words"])
    assert words.context == 4  # start, two words, end
    args = train.parse_args([*SHORT, "--data", "folder:tree", "--run-dir", "x"])
    captions = {some[0] for some in data.load(args, Device(args))[0].captions}
    assert captions <= {"red tulip", "daisy"}


def test_captions_without_images(refused):
    Path("bare.csv").write_text("image,caption\nnowhere.png,a dog\n")
    assert "nowhere.png" in refused(run, "--data", "captions:bare.csv")
    Path("words.csv").write_text("caption\na dog\n")
    assert "image" in refused(run, "--data", "captions:words.csv")
    assert "there is no file" in refused(run, "--data", "captions:gone.csv")
    assert "captions.csv" in refused(run, "--data", "flickr8k", "--data-dir", "empty")


def test_words():
    args = train.parse_args(SHORT)
    dev = Device(args)
    part = data.load(args, dev)[0]
    facts = data.learn_words(part, 600, dev)
    words = data.Words(facts)
    longest = max(len(words.tokens.tokenizer.encode(t).ids) for some in part.captions for t in some)
    assert facts["context"] == longest + 2
    rows = words.encode(["a red circle", "a " * 200])
    assert rows.shape == (2, facts["context"])
    assert words.cut == 1
    said = []
    dev.say = said.append
    words.say_cut((part, None), dev)
    assert not said
    words.context = 4
    words.say_cut((part, None), dev)
    (line,) = said
    assert re.match(r"note: \d+ captions cut at 4 tokens", line)
    assert rows[0, 0] == words.tokens.start
    assert (rows[:, -1] == words.tokens.end).all()
    other = data.Words(facts | {"pad": 7}).encode(["a red circle"])[0]
    kept = int((rows[0] == words.tokens.end).nonzero()[0]) + 1
    assert torch.equal(other[:kept], rows[0, :kept])
    assert (other[kept:] == 7).all()


# ---------------------------------------------------------------------- measuring


def test_the_measure_by_hand(monkeypatch):
    """What the judge says of which images, and the Fréchet distance of whose features."""
    run()
    args = train.parse_args([*TINY, "--samples", "5", "--frechet"])
    dev = Device(args)
    test = data.load(args, dev)[2]
    model, words, *_ = sample.open_model(
        sample.parse_args(["--checkpoint", "run/last.pt", "a red circle"])
    )
    asked = scenes.one_object(5, 16)
    shapes, colours = scenes.wanted(asked.captions)

    class Fixed(scenes.Judge):
        def read(self, images):
            assert images.shape == (5, 3, 16, 16)
            return shapes.clone(), torch.where(torch.arange(5) < 3, colours, -1)

        def features(self, images):
            return images.flatten(1)[:, :3]

    judge = Fixed()
    judge.accuracy = {"both": 0.9}
    monkeypatch.setattr(evaluate, "ready", lambda dev: judge)
    found = evaluate.quality(model, words, test, args, dev, spread=True)
    assert found["test_right"] == pytest.approx(3 / 5)
    assert found["test_shape"] == 1
    assert found["test_colour"] == pytest.approx(3 / 5)
    assert found["judge_right"] == 0.9
    assert found["test_spread"] > 0
    assert found["test_rebuilt"] == pytest.approx(3 / 5)
    real = test.images.examples(torch.arange(12))[0].flatten(1)[:, :3].double() / 2 + 0.5
    texts = [some[0] for some in test.captions[:5]]
    made = evaluate.shared(model, words, texts, "frechet", args, dev).flatten(1)[:, :3].double()
    assert found["test_frechet"] == pytest.approx(evaluate.frechet(real, made), rel=1e-4)
    seeds, plain = [], evaluate.one_object
    monkeypatch.setattr(evaluate, "one_object", lambda *how: seeds.append(how) or plain(*how))
    other = args.but(judged="val", frechet=False)
    found = evaluate.quality(model, words, test, other, dev)
    assert seeds == [(5, 16, 2)]
    assert "val_right" in found
    assert not {"test_right", "test_frechet"} & found.keys()


def test_rebuilt_images_are_those_of_the_first_stage():
    run()
    argv = ["--checkpoint", "run/last.pt", "a red circle"]
    model, _, _, _, dev, _ = sample.open_model(sample.parse_args(argv))
    pixels = scenes.one_object(3, 16).pixels
    with torch.no_grad():
        known = model.autoencoder.encode(pixels.float() / 127.5 - 1)
        want = model.autoencoder.decode(model.autoencoder.mode(known)).clamp(-1, 1) / 2 + 0.5
    torch.testing.assert_close(evaluate.rebuilt(model, pixels, dev), want, atol=0.02, rtol=0)


def test_the_frechet_distance():
    """Of normal distributions whose covariances share axes: by the closed form."""
    torch.manual_seed(0)
    a, b = torch.randn(400, 2).double(), 3 * torch.randn(500, 2).double() + 1
    a, b = ((x - x.mean(0)) for x in (a, b))
    scale = lambda x: x @ torch.linalg.inv(torch.linalg.cholesky(x.T.cov()).T)  # noqa: E731
    one, other = scale(a), 3 * scale(b) + 2
    assert evaluate.frechet(one, other) == pytest.approx(2 * 2**2 + 2 * (3 - 1) ** 2, rel=1e-6)
    assert evaluate.frechet(one, one) == pytest.approx(0, abs=1e-6)


# ---------------------------------------------------------------------- published folders


VOCABULARY = ["<|startoftext|>", "<|endoftext|>", "!", "a", "b", "a</w>", "b</w>", "c</w>"]
VOCABULARY += ["ab", "ab</w>", "!</w>"]


def their_autoencoder():
    torch.manual_seed(5)
    return perturb(
        diffusers.AutoencoderKL(
            down_block_types=["DownEncoderBlock2D"] * 2,
            up_block_types=["UpDecoderBlock2D"] * 2,
            block_out_channels=[32, 64],
            layers_per_block=1,
            latent_channels=4,
            scaling_factor=0.3,
        )
    )


def folder_of(name="theirs", second=False, **scheduler):
    """A tiny random pipeline of diffusers, saved; with `second` as Stable Diffusion 2 is made."""
    Path("words").mkdir(exist_ok=True)
    Path("words/vocab.json").write_text(json.dumps({t: i for i, t in enumerate(VOCABULARY)}))
    Path("words/merges.txt").write_text("#version: 0.2\na b\na b</w>\n")
    tokenizer = transformers.CLIPTokenizer.from_pretrained("words", model_max_length=12)
    if second:
        tokenizer.pad_token = "!"
    torch.manual_seed(1)
    text = transformers.CLIPTextModel(
        transformers.CLIPTextConfig(
            vocab_size=len(VOCABULARY),
            hidden_size=32,
            intermediate_size=64,
            num_attention_heads=2,
            num_hidden_layers=2,
            max_position_embeddings=12,
            hidden_act="gelu" if second else "quick_gelu",
            bos_token_id=0,
            eos_token_id=1,
        )
    )
    unet = diffusers.UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=(1, 2) if second else 2,
        use_linear_projection=second,
    )
    settings = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    settings |= dict(clip_sample=False, set_alpha_to_one=False, steps_offset=1)
    settings |= dict(prediction_type="v_prediction" if second else "epsilon") | scheduler
    pipe = diffusers.StableDiffusionPipeline(
        vae=their_autoencoder(),
        text_encoder=perturb(text),
        tokenizer=tokenizer,
        unet=perturb(unet),
        scheduler=diffusers.DDIMScheduler(**settings),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    pipe.save_pretrained(name)
    return pipe


@pytest.mark.parametrize("second", [False, True], ids=["sd1", "sd2"])
def test_a_published_folder_draws_what_diffusers_draws(second):
    """The same text, without text, noise, guidance and steps: the same image."""
    pipe = folder_of(second=second)
    found = published.read_published("theirs")
    assert found.size == 16
    assert found.settings["scale"] == 0.3
    model, words = found.build().eval(), data.Words(found.words)
    noise = torch.randn(1, 4, 8, 8)
    how = dict(num_inference_steps=4, guidance_scale=3.0, latents=noise, output_type="pt")
    theirs = pipe("ab c", negative_prompt="b", **how).images
    with torch.no_grad():
        asked, other = model.text(words.encode(["ab c", "b"])).split(1)
        *_, z = model.denoise(noise, [asked, other], 4, 3.0, "ddim")
        ours = model.to_pixels(z)
    assert theirs.std() > 0.02
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=2e-4)


def test_sample_with_published_weights(capsys):
    folder_of()
    argv = ["--weights", "theirs", "ab", "c", "--count", "2", "--sample-steps", "2", "--seed", "5"]
    found = sample.main([*argv, "--out", "out"])
    assert found["seeds"] == {"ab": [5, 6], "c": [5, 6]}
    names = {"1-seed5.png", "1-seed6.png", "2-seed5.png", "2-seed6.png", "grid.png"}
    assert set(found["written"]) == names
    with Image.open("out/1-seed5.png") as image:
        assert image.size == (16, 16)
    assert "ab: seed 5, 6" in capsys.readouterr().out
    sample.main([*argv[:3], "--size", "24x16", "--sample-steps", "1", "--out", "wide"])
    with Image.open("wide/1-seed0.png") as image:
        assert image.size == (16, 24)


def test_training_goes_on_from_published_weights(refused):
    """The U-Net learns; CLIP's text encoder and the autoencoder stay."""
    folder_of()
    argv = ["--weights", "theirs", "--data", table(), "--size", "16", "--val", "2", "--quiet"]
    argv += ["--max-steps", "2", "--sample-steps", "1", "--ema", "0", "--run-dir", "run"]
    assert train.parse_args(argv).model == "stable_diffusion"
    found = train.main(argv)
    assert math.isfinite(found["test_loss"])
    state = weights("run")
    unet = load_file("theirs/unet/diffusion_pytorch_model.safetensors")
    assert any(not torch.equal(state[f"unet.{k}"], v) for k, v in unet.items())
    for name, value in load_file("theirs/text_encoder/model.safetensors").items():
        assert torch.equal(state[f"text.{name.removeprefix('text_model.')}"], value)
    for name, value in load_file("theirs/vae/diffusion_pytorch_model.safetensors").items():
        assert torch.equal(state[f"autoencoder.{name}"], value)
    assert state["scale"].item() == pytest.approx(0.3)  # the published one, not measured anew
    path = Path("theirs/scheduler/scheduler_config.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_train_timesteps": 10}))
    argv[argv.index("--sample-steps") + 1] = "11"
    assert "the chain has 10" in refused(train.main, [*argv[:-1], "short"])
    again = train.main(["--evaluate", "run/last.pt", "--quiet", "--run-dir", "again"])
    assert again["test_loss"] == pytest.approx(found["test_loss"], rel=1e-6)


def test_training_goes_on_from_a_run(refused):
    run("--steps", "2")
    argv = ["--weights", "run", "--size", "16", "--batch-size", "8", "--quiet", "--samples", "0"]
    argv += ["--sample-steps", "1", "--val", "8", "--max-steps", "1", "--run-dir", "on"]
    assert train.parse_args(argv).model == "ldm_small"
    train.main(argv)
    content, before = torch.load("on/last.pt"), torch.load("run/last.pt")
    assert content["dataset"]["words"] == before["dataset"]["words"]
    name = "unet.conv_in.weight"
    moved = (content["model"][name] - before["ema"][name]).abs()
    assert 0 < moved.max() < 0.01
    first_run()
    assert "first stage" in refused(train.main, ["--weights", "first", *argv[2:-1], "other"])


def hub(monkeypatch, repo, folder):
    """A cache of the hub's with the files of a folder, and no network."""
    root = Path("cache").resolve()
    place = root / f"models--{repo.replace('/', '--')}"
    shutil.copytree(folder, place / "snapshots/abc")
    (place / "refs").mkdir()
    (place / "refs/main").write_text("abc")
    find = partial(huggingface_hub.try_to_load_from_cache, cache_dir=root)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", find)

    def offline(*_, **__):
        asked.append(1)
        raise OSError("no network\nmore of it")

    asked = []
    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", offline)
    return asked


def test_weights_of_the_hub_from_its_cache(monkeypatch, refused):
    folder_of()
    asked = hub(monkeypatch, "CompVis/stable-diffusion-v1-4", "theirs")
    one = published.read_published("CompVis/stable-diffusion-v1-4")
    two = published.read_published("theirs")
    assert one.settings == two.settings
    assert one.words == two.words
    assert all(torch.equal(one.state[name], value) for name, value in two.state.items())
    asked.clear()
    line = refused(published.read_published, "someone/other")
    for words in ("someone/other", "unet/config.json", "(no network)"):
        assert words in line
    assert len(asked) == 1  # one answer is enough


def test_older_names_and_forms_of_files():
    """Attention as it was called, position_ids, text_model, .bin, no tokenizer.json."""
    folder_of()
    new = published.read_published("theirs")
    old = {v: k for k, v in published.OLD.items()}
    path = Path("theirs/vae/diffusion_pytorch_model.safetensors")
    state = {}
    for name, value in load_file(path).items():
        part = next((p for p in old if f".{p}." in name and "attentions" in name), None)
        state[name.replace(f".{part}.", f".{old[part]}.") if part else name] = value
    assert any(".proj_attn." in name for name in state)
    path.unlink()
    torch.save(state, path.with_suffix(".bin"))
    path = Path("theirs/text_encoder/model.safetensors")
    state = {f"text_model.{k.removeprefix('text_model.')}": v for k, v in load_file(path).items()}
    state["text_model.embeddings.position_ids"] = torch.arange(12)[None]
    save_file(state, path)
    Path("theirs/tokenizer/tokenizer.json").unlink()
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(f"words/{name}", f"theirs/tokenizer/{name}")
    config = Path("theirs/vae/config.json")
    content = json.loads(config.read_text())
    for key in ("scaling_factor", "shift_factor", "use_quant_conv", "mid_block_add_attention"):
        del content[key]  # which Stable Diffusion 1's has not
    config.write_text(json.dumps(content))
    found = published.read_published("theirs")
    assert found.settings["scale"] == 0.18215
    for name, value in new.state.items():
        assert torch.equal(found.state[name], value) or name == "scale"
    some = Tokens(found.words["tokenizer"]).encode(["AB  c!", "cab"], 12)[0]
    assert torch.equal(some, Tokens(new.words["tokenizer"]).encode(["AB  c!", "cab"], 12)[0])


def change(part, **settings):
    """Changes a config of the folder."""
    path = Path("theirs", part)
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


@pytest.mark.parametrize(
    ("part", "settings", "words"),
    [
        ("unet/config.json", dict(addition_embed_type="text_time"), "addition_embed_type"),
        ("unet/config.json", dict(in_channels=9), "9 channels in"),
        ("unet/config.json", dict(down_block_types=["DownBlock2D", "Fancy"]), "Fancy"),
        ("unet/config.json", dict(cross_attention_dim=24), "24 numbers a token"),
        ("unet/config.json", dict(layers_per_block=2), "no unet."),
        ("unet/config.json", dict(block_out_channels=None), "no usable settings"),
        ("vae/config.json", dict(latent_channels=3), "autoencoder has 3"),
        ("vae/config.json", dict(shift_factor=0.1), "shift_factor"),
        ("text_encoder/config.json", dict(hidden_act="relu"), "quick_gelu or gelu"),
        ("scheduler/scheduler_config.json", dict(beta_schedule="squaredcos_cap_v2"), "linear"),
    ],
)
def test_folders_that_are_not_for_this_code(part, settings, words, refused):
    folder_of()
    change(part, **settings)
    read = lambda: published.read_published("theirs").build()  # noqa: E731
    assert words in refused(read)


def test_damaged_folders(refused):
    folder_of()
    for path in ("unet/config.json", "vae/diffusion_pytorch_model.safetensors",
                 "tokenizer/tokenizer.json", "scheduler/scheduler_config.json"):  # fmt: skip
        shutil.copytree("theirs", "copy")
        Path("copy", path).write_bytes(b"damaged")
        assert "damaged" in refused(published.read_published, "copy"), path
        Path("copy", path).unlink()
        line = refused(published.read_published, "copy")
        assert "there is no" in line, path
        shutil.rmtree("copy")
    state = load_file("theirs/unet/diffusion_pytorch_model.safetensors")
    state["strange"] = torch.zeros(1)
    save_file(state, "theirs/unet/diffusion_pytorch_model.safetensors")
    assert "unet.strange" in refused(published.read_published("theirs").build)
    line = refused(sample.main, ["--weights", "nowhere", "ab"])
    assert "no such folder" in line


# ---------------------------------------------------------------------- samples


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A checkpoint that several tests draw with."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("common.data.shapes.NUM_SCENES", {"train": 40, "test": 12})
        run()
    return str(folder / "run/last.pt")


def draw(trained, *argv, out="out"):
    return sample.main(["--checkpoint", trained, "--sample-steps", "4", "--out", out, *argv])


def read(path):
    with Image.open(path) as image:
        return np.array(image.convert("RGB")).astype(int)


def test_an_image_depends_on_its_seed_alone(trained):
    """Not on what is drawn beside it, nor on how many are denoised together."""
    draw(trained, "a red circle", "a blue star", "--count", "3", "--at-once", "2", out="many")
    draw(trained, "a blue star", "--seed", "2", out="one")
    assert np.abs(read("many/2-seed2.png") - read("one/1-seed2.png")).max() <= 1
    assert np.abs(read("many/2-seed1.png") - read("one/1-seed2.png")).max() > 1
    args = ["a blue star", "--sampler", "ddpm"]
    draw(trained, *args, "--count", "2", out="two")
    draw(trained, *args, "--seed", "1", out="three")
    assert np.abs(read("two/1-seed1.png") - read("three/1-seed1.png")).max() <= 1


def test_noise_is_of_each_seed():
    like = torch.zeros(4, 2, 3)
    one, both = Noise([3]), Noise([8, 3])
    assert torch.equal(both(like)[1], one(like)[0])
    assert torch.equal(both(like)[1], one(like)[0])  # the next ones, too
    assert not torch.equal(one(like), one(like))


def test_test_captions_without_a_text(trained, capsys):
    found = draw(trained)
    assert len(found["written"]) == 12 + 1
    assert all(seeds == [0] * len(seeds) for seeds in found["seeds"].values())


def painted(path="in.png", size=(16, 16)):
    """An image of noise of the user's, (height, width)."""
    pixels = np.random.default_rng(1).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return pixels.astype(int)


def test_from_an_image(trained, monkeypatch):
    """The less of it is made anew, the fewer steps are left, and the later they begin."""
    painted()
    seen, plain = [], sample.images_for

    def noted(model, tell, seeds, shape, dev, how, *rest):
        seen.append(how)
        return plain(model, tell, seeds, shape, dev, how, *rest)

    monkeypatch.setattr(sample, "images_for", noted)
    argv = ["a red circle", "--image", "in.png"]
    draw(trained, *argv, "--strength", "1", out="all")
    draw(trained, *argv, "--strength", "0.25", out="some")
    draw(trained, *argv, out="usual")
    assert [how["begin"] for how in seen] == [0, 3, 2]
    draw(trained, "a red circle", out="plain")
    assert np.abs(read("all/1-seed0.png") - read("plain/1-seed0.png")).max() <= 1


def test_what_denoising_of_an_image_begins_at(trained):
    image = painted()
    argv = ["a", "--image", "in.png", "--strength", "0.5", "--checkpoint", trained]
    args = sample.parse_args(argv)
    model, _, flags, shape, dev, _ = sample.open_model(args)
    flags = flags.but(sample_steps=10)
    more, prepare = sample.from_image(model, args, flags, shape, dev)
    assert more == {"begin": 5}
    noise = torch.randn(1, 8, 4, 4)
    x, _ = prepare(noise, torch.arange(1))
    pixels = torch.tensor(image).permute(2, 0, 1)[None].float() / 127.5 - 1
    with torch.no_grad():
        z = model.to_latents(model.autoencoder.encode(pixels), drawn=False)
    time = model.schedule.times(10)[5]
    signal, strength = model.schedule.scales(time)
    torch.testing.assert_close(x, signal * z + strength * noise, rtol=1e-4, atol=1e-5)


def test_painting_a_part_anew(trained):
    """Where the mask is black the file's pixels stay, to the last bit; elsewhere they don't."""
    image = painted()
    mask = np.zeros((16, 16), np.uint8)
    mask[4:12, 8:] = 255
    Image.fromarray(mask).save("mask.png")
    draw(trained, "a red circle", "--image", "in.png", "--mask", "mask.png", "--count", "2")
    for seed in (0, 1):
        made = read(f"out/1-seed{seed}.png")
        assert np.array_equal(made[mask == 0], image[mask == 0])
        assert np.abs(made - image)[mask > 0].max() > 20
    assert np.abs(read("out/1-seed0.png") - read("out/1-seed1.png")).max() > 0


def test_painting_keeps_latents_at_every_step(trained):
    painted()
    mask = np.zeros((16, 16), np.uint8)
    mask[:, 8:] = 255
    Image.fromarray(mask).save("mask.png")
    argv = ["a", "--image", "in.png", "--mask", "mask.png", "--checkpoint", trained]
    args = sample.parse_args(argv)
    model, _, flags, shape, dev, _ = sample.open_model(args)
    more, prepare = sample.from_image(model, args, flags, shape, dev)
    noise, x = torch.randn(1, 8, 4, 4), torch.randn(1, 8, 4, 4)
    begun, further = prepare(noise, torch.arange(1))
    assert more == {"begin": 0}
    assert torch.equal(begun, noise)
    pixels = sample.read_image(Path("in.png"), (16, 16))[0]
    with torch.no_grad():
        z = model.to_latents(model.autoencoder.encode(pixels), drawn=False)
    for time in (500, -1):
        kept = further["keep"](x, time)
        signal, strength = model.schedule.scales(time)
        torch.testing.assert_close(kept[..., 2:], x[..., 2:])
        want = signal * z + strength * noise
        torch.testing.assert_close(kept[..., :2], want[..., :2], rtol=1e-4, atol=1e-5)


def test_images_are_cut_to_the_middle_and_scaled():
    ramp = torch.arange(8.0).expand(1, 1, 4, 8)  # twice as wide as high
    middle = sample.fit(ramp, (4, 4))
    assert middle[0, 0, 0].tolist() == [2, 3, 4, 5]
    assert sample.fit(ramp, (2, 4)).shape == (1, 1, 2, 4)
    assert sample.fit(ramp, (4, 8)) is not None
    assert torch.equal(sample.fit(ramp, (4, 8)), ramp)
    assert sample.fit(torch.rand(1, 3, 5, 9), (16, 32)).shape == (1, 3, 16, 32)
    assert sample.fit(torch.rand(1, 3, 10, 10), (512, 8)).shape == (1, 3, 512, 8)


def test_between_two_texts(trained, monkeypatch):
    """One noise, told the first text, then less and less of it, then the other."""
    told = []

    def drawn(model, tell, seeds, shape, *rest):
        assert seeds == [7] * sample.FRAMES
        told.extend(tell(torch.arange(len(seeds))))
        return torch.rand(len(seeds), 3, *shape)

    monkeypatch.setattr(sample, "images_for", drawn)
    found = draw(trained, "a red circle", "--to", "a blue star", "--seed", "7")
    assert found["written"] == ["between.gif"]
    with Image.open("out/between.gif") as film:
        assert film.n_frames == 2 * sample.FRAMES - 2
        assert film.size == (160, 160)
    argv = ["--checkpoint", trained, "a"]
    model, words, *_ = sample.open_model(sample.parse_args(argv))
    with torch.no_grad():
        ends = model.text(words.encode(["a red circle", "a blue star", ""]))
    asked, other = told
    torch.testing.assert_close(asked[[0, -1]], ends[:2])
    torch.testing.assert_close(asked[5], ends[0].lerp(ends[1], 5 / 15))
    torch.testing.assert_close(other, ends[2:].expand(16, -1, -1))


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["a", "--guidance", "-1"], "guidance scale from 0"),
        (["a", "--sample-steps", "1001"], "the chain has 1000"),
        (["a", "--size", "20"], "multiples of 8"),
        (["a", "--size", "0"], "needs a side"),
        (["a", "--size", "wide"], "needs a side"),
        (["a", "--size", "16x12"], "multiples of 8"),
        (["a", "--mask", "mask.png"], "name that, too"),
        (["a", "--strength", "0.5"], "name that, too"),
        (["a", "--image", "in.png", "--strength", "0"], "--strength"),
        (["a", "--image", "in.png", "--strength", "0.5", "--mask", "mask.png"], "pure noise"),
        (["a", "--image", "in.png", "--mask", "small.png"], "8x16 pixels, the image 16x16"),
        (["a", "--image", "in.png", "--mask", "black.png"], "marks nothing"),
        (["a", "--image", "in.png", "--mask", "text.png"], "not a readable image"),
        (["a", "--image", "text.png"], "not a readable image"),
        (["a", "--image", "gone.png"], "no such file"),
        (["--image", "in.png"], "give one"),
        (["a", "b", "--to", "c"], "give one"),
        (["a", "--to", "c", "--count", "2"], "leave --count out"),
        (["a", "--to", "\udcff"], "is not UTF-8"),
        (["a", "--without", "\udcff"], "is not UTF-8"),
        (["a", "--sampler", "euler"], "unknown sampler"),
        (["a", "--weights", "theirs"], "one of them"),
        (["a", "--out", "full"], "is there already"),
        (["a", "--data-dir", "data"], "inputs of your own"),
    ],
)
def test_bad_input_of_samples(argv, words, trained, refused):
    painted()
    Image.fromarray(np.zeros((16, 16), np.uint8)).save("black.png")
    Image.fromarray(np.full((16, 8), 255, np.uint8)).save("small.png")
    Image.fromarray(np.full((16, 16), 255, np.uint8)).save("mask.png")
    Path("text.png").write_text("no image")
    Path("full").mkdir()
    Path("full/grid.png").touch()
    before = {p for p in Path().rglob("*")}
    assert words in refused(sample.main, ["--checkpoint", trained, *argv])
    assert {p for p in Path().rglob("*")} == before


def test_a_first_stage_draws_nothing(refused):
    first_run()
    assert "first stage" in refused(sample.main, ["--checkpoint", "first/last.pt", "a"])


# ---------------------------------------------------------------------- recipes and bad input


def test_recipes():
    args = train.parse_args([])
    assert (args.model, args.data, args.size, args.drop) == ("ldm_small", "shapes", 24, 0.1)
    assert (args.factor, args.samples, args.autoencoder) == (4, 200, None)
    assert (args.latent_channels, args.ae_batch_size, args.frechet) == (8, 16, False)
    args = train.parse_args(["--paper"])
    assert (args.model, args.batch_size, args.lr, args.warmup) == (
        "stable_diffusion", 2048, 1e-4, 10_000)  # fmt: skip
    assert (args.steps, args.val, args.ema, args.size) == (237_000, 0, 0.9999, 256)
    args = train.parse_args(["--model", "kl_f8"])
    assert (args.adversarial, args.adversarial_from, args.kl_weight) == (0.5, 50_001, 1e-6)
    assert (args.error, train.parse_args(["--model", "vq_small"]).error) == ("absolute", "squared")
    assert train.parse_args(["--model", "kl_small", "--data", "flickr8k"]).size == 64
    assert train.parse_args(["--data", "flickr8k"]).samples == 0


def test_a_model_has_its_own_flags_and_no_others():
    for model in MODELS:
        settings, nothing = options.recipe(model, None, False)
        known = {"factor", "width", "kl_weight", *options.SECOND}
        assert settings.keys() & nothing.keys() <= known, model
    assert {"guidance", "ae_steps"} <= options.recipe("kl_small", None, False)[1].keys()
    assert {"adversarial", "num_codes"} <= options.recipe("ldm_small", None, False)[1].keys()


def test_settings_are_those_of_the_models():
    """What train.py builds is what MODELS has."""
    for name in SIZES:
        args = train.parse_args(["--model", name])
        assert options.autoencoder_settings(args) == SIZES[name]
    args = train.parse_args(["--model", "stable_diffusion"])
    found = options.settings_of(args, options.autoencoder_settings(args))
    with torch.device("meta"):
        ours, named = options.assemble(found), MODELS["stable_diffusion"]()
    assert ours.state_dict().keys() == named.state_dict().keys()


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--size", "20"], "multiples of 8"),
        (["--size", "36", "--factor", "8"], "multiples of 16"),
        (["--model", "kl_f8", "--size", "20"], "multiples of 8"),
        (["--guidance", "-0.5"], "guidance scale from 0"),
        (["--sample-steps", "1001"], "1000"),
        (["--width", "40"], "multiples of 32"),
        (["--ae-width", "12"], "multiple of 8"),
        (["--factor", "3"], "needs 1, 2, 4 or 8"),
        (["--factor", "1", "--regulariser", "vq"], "pixels are denoised"),
        (["--drop", "1"], "--drop"),
        (["--samples", "1"], "no distribution"),
        (["--samples", "0", "--frechet"], "no images are measured"),
        (["--data", "folder:x", "--judged", "val"], "world of shapes"),
        (["--model", "kl_small", "--prediction", "epsilon"], "second stage"),
        (["--data", "folder:x", "--samples", "10"], "world of shapes"),
        (["--model", "kl_small", "--guidance", "2"], "second stage"),
        (["--model", "kl_small", "--factor", "1"], "ldm_small --factor 1"),
        (["--model", "kl_small", "--num-codes", "9"], "no codebook"),
        (["--model", "vq_small", "--kl-weight", "1"], "has a codebook"),
        (["--model", "kl_small", "--adversarial", "1", "--size", "16"], "at least 24"),
        (["--kl-weight", "1"], "first stage"),
        (["--model", "stable_diffusion", "--factor", "4"], "has its own"),
        (["--weights", "nowhere"], "no such file or folder"),
        (["--weights", "nowhere", "--paper"], "leave --weights out"),
        (["--model", "vq_f4", "--fsdp"], "small enough"),
        (["--vocab-size", "5"], "at least"),
    ],
)
def test_bad_flags(argv, words, refused):
    assert words in refused(train.main, argv)
    assert not list(Path().iterdir())


# ---------------------------------------------------------------------- claims


@pytest.fixture
def quick_claims(monkeypatch):
    """Claims with few arms, whose trainings are short."""
    plain = claims.train
    monkeypatch.setattr(claims, "train", lambda argv: plain([*argv, *ALONE, "--ae-width", "8"]))
    monkeypatch.setattr(claims, "SCALES", ("1", "3"))
    monkeypatch.setattr(claims, "WAYS", {"ddim": (1, 2), "dpm": (2,)})


def claim(name, *argv):
    shared = ["--seeds", "0", "1", "--samples", "3", "--out", "out"]
    return claims.main([name, *shared, *argv])


def test_guidance_and_steps_measure_the_same_trainings(quick_claims, monkeypatch):
    found = claim("guidance", "--steps", "2", "--ae-steps", "2")
    assert list(found) == ["scale 1", "scale 3"]
    for metrics in found.values():
        assert {"test_right", "test_spread", "test_frechet"} <= metrics.keys()
        assert len(metrics["test_right"]["values"]) == 2
    monkeypatch.setattr(claims, "train", None)  # there is nothing left to train
    found = claim("steps", "--steps", "2", "--ae-steps", "2")
    assert list(found) == ["ddim, 1 steps", "ddim, 2 steps", "dpm, 2 steps"]
    assert "--sampler dpm --sample-steps 2" in found["dpm, 2 steps"]["command"]
    monkeypatch.setattr(claims, "quality", None)  # nor to measure
    assert claim("steps", "--steps", "2", "--ae-steps", "2") == found
    for name in ("guidance", "steps"):
        for kind in ("json", "png"):
            assert Path(f"out/claim_{name}.{kind}").is_file()


def test_an_evaluation_takes_its_arms_settings(quick_claims, monkeypatch):
    seen = []
    found = {"test_right": 1.0, "test_spread": 1.0, "test_frechet": 1.0}
    monkeypatch.setattr(claims, "quality", lambda *args: seen.append(args) or found)
    claim("guidance", "--steps", "2", "--ae-steps", "2")
    assert [args[3].guidance for args in seen] == [1, 1, 3, 3]
    assert [args[5] for args in seen] == [True] * 4
    assert all(args[3].frechet for args in seen)
    assert {args[3].samples for args in seen} == {3}


def test_conditioning(quick_claims):
    found = claim("conditioning", "--steps", "1", "--ae-steps", "1", "--seeds", "3")
    assert list(found) == ["attention", "pooled"]
    assert "--conditioning pooled" in found["pooled"]["command"]


def test_equal_time(monkeypatch, refused):
    """As many steps as fit; a third of the minutes is the autoencoder's."""
    asked = []

    def paces(factor, channels, dev):
        asked.append((factor, channels))
        return {"steps": 0.5, "ae_steps": 0.25} if factor > 1 else {"steps": 2.0}

    monkeypatch.setattr(claims, "paces", paces)
    args = claims.parse_args(["compression", "--minutes", "1"])
    arms = claims.equal_time(args)
    assert asked == [(1, 3), (2, 3), (4, 4), (8, 16)]
    size, scenes = ["--size", "32"], ["--objects", "3"]  # those that generative's DDPM learns
    assert arms["pixels"] == [*size, "--factor", "1", *scenes, "--steps", "30"]
    more = ["--latent-channels", "16", "--ae-steps", "80", "--steps", "80"]
    assert arms["factor 8"] == [*size, "--factor", "8", *scenes, *more]
    for flags in arms.values():
        train.parse_args(flags)  # sizes that divide
    monkeypatch.setattr(claims, "paces", None)  # they are kept
    assert claims.equal_time(args) == arms
    assert "leave --steps" in refused(claims.parse_args, ["compression", "--steps", "3"])


def test_paces_are_of_both_stages(monkeypatch):
    seen = []

    def pace(loss, parameters, dev):
        with dev.autocast():
            seen.append(loss())
        return len(parameters)

    monkeypatch.setattr(claims, "pace", pace)
    dev = claims.machine(claims.parse_args(["compression"]))
    found = claims.paces(4, 4, dev)
    assert all(map(torch.isfinite, seen))
    assert found["steps"] > found["ae_steps"] > 0
    assert claims.paces(1, 3, dev).keys() == {"steps"}


def test_generatives_pixels_beside(monkeypatch):
    """Its DDPM, trained by its own script, measured by the same judge."""
    generative = pytest.importorskip("generative.model")
    argvs = []

    def trained(script, argv):
        argvs.append(argv)
        folder = Path(argv[argv.index("--run-dir") + 1])
        folder.mkdir(parents=True)
        model = generative.MODELS["ddpm_small"](channels=3, size=32, width=8)
        flags = dict(model="ddpm_small", size=32, width=8, dropout=0.1, sample_steps=1)
        content = {"config": {"flags": flags}, "model": model.state_dict(), "ema": {}}
        torch.save(content, folder / "last.pt")

    monkeypatch.setattr(claims, "run_script", trained)
    monkeypatch.setattr(claims, "pace", lambda *_: 0.5)
    args = claims.parse_args(["compression", "--seeds", "0", "1", "--samples", "3"])
    results, command = claims.pixels_without_texts(args)
    assert command.startswith("python generative/train.py --model ddpm_small --data shapes")
    assert "--epochs 2" in command  # of 156 steps in 180 seconds
    assert len(argvs) == 2
    assert all(math.isfinite(found["test_frechet"]) for found in results)
    monkeypatch.setattr(claims, "run_script", None)
    monkeypatch.setattr(claims, "finished", lambda folder: True)
    assert claims.pixels_without_texts(args)[0] == results


@pytest.mark.slow
def test_quick_reaches_its_number(monkeypatch):
    """In about four minutes of two cores, and the judge, once, in one."""
    monkeypatch.setattr("common.data.shapes.NUM_SCENES", {"train": 10_000, "test": 1_000})
    for name, value in dict(TRAINED=10_000, EPOCHS=5, MEASURED=1000).items():
        monkeypatch.setattr(scenes, name, value)
    found = train.main(["--quiet"])
    assert found["judge_right"] > 0.9
    assert found["test_right"] >= 0.6
