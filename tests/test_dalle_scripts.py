"""The scripts of DALL-E: both stages, resuming, measuring, samples, released files, bad input."""

import collections
import importlib.util
import json
import math
import os
import signal
import sys
import types
from pathlib import Path

import pytest
import torch
from conftest import ROOT, torchrun
from helpers import make_tree, weights
from PIL import Image
from torch import nn

from common import scenes
from common.data.shapes import COLOURS, ShapeImages
from dalle import claims, data, evaluate, published, rerank, sample, train, train_dvae
from dalle.dvae import DVAE
from dalle.model import MODELS

DVAE_FLAGS = ["--width", "8", "--num-codes", "12", "--size", "8", "--factor", "4"]
STREAM_FLAGS = ["--d-model", "16", "--num-layers", "2", "--num-heads", "2", "--size", "8"]
TINY = ["--limit", "24", "--val", "6", "--batch-size", "8", "--quiet", "--precision", "fp32"]


@pytest.fixture(autouse=True)
def short(monkeypatch):
    """Few scenes, and a judge that hardly has to be good."""
    monkeypatch.setattr("common.data.shapes.NUM_SCENES", {"train": 60, "test": 12})
    for name, value in dict(TRAINED=64, EPOCHS=1, MEASURED=10).items():
        monkeypatch.setattr(scenes, name, value)


def codes_run(*argv, folder="codes"):
    """A short training of a small dVAE; returns its folder."""
    train.main(["--model", "dvae_small", *DVAE_FLAGS, *TINY, "--epochs", "1", "--run-dir", folder,
                *argv])  # fmt: skip
    return folder


def stream_run(*argv, codes="codes", folder="run"):
    """A short training of a small transformer on codes; returns its metrics."""
    return train.main([*STREAM_FLAGS, *TINY, "--codes", codes, "--epochs", "1", "--prompts", "3",
                       "--run-dir", folder, *argv])  # fmt: skip


def assert_same(one, other, exact=True):
    one, other = weights(one), weights(other)
    assert one.keys() == other.keys()
    for name, value in one.items():
        if exact:
            assert torch.equal(value, other[name]), name
        else:
            torch.testing.assert_close(value, other[name], rtol=1e-3, atol=2e-5, msg=name)


# ---------------------------------------------------------------------- both stages


BOTH = [*STREAM_FLAGS, *TINY, "--epochs", "1", "--num-codes", "12", "--factor", "4", "--prompts",
        "0"]  # fmt: skip


def test_both_stages_in_one_command(capsys):
    found = train.main([*[flag for flag in BOTH if flag != "--quiet"], "--run-dir", "run",
                        "--prompts", "4"])  # fmt: skip
    assert {f"test_{key}" for key in ("loss", "text_loss", "image_loss", "right", "shape", "colour",
            "rebuilt", "judge", "plain_right")} <= found.keys()  # fmt: skip
    assert all(map(math.isfinite, found.values()))
    assert found["test_right"] <= min(found["test_shape"], found["test_colour"])
    said = capsys.readouterr().out
    assert "first the codes: dvae_small" in said
    assert "the judge's own accuracy on real scenes" in said
    for name in ("last.pt", "config.json", "metrics.jsonl", "curves.png", "samples.png"):
        assert Path("run", name).is_file(), name
    codes = torch.load("run/codes/last.pt")
    flags = codes["config"]["flags"]
    assert (flags["size"], flags["limit"], flags["num_codes"], flags["val"]) == (8, 24, 12, 6)
    whole = torch.load("run/last.pt")
    assert whole["dvae"].keys() == codes["model"].keys()  # the averaged weights travel with it
    for name, value in codes["ema"].items():
        assert torch.equal(whole["dvae"][name], value)
    row = json.loads(Path("run/metrics.jsonl").read_text().splitlines()[-1])
    assert row["final"] and row["test_right"] == found["test_right"]


def stop_after(monkeypatch, kind, calls):
    """Sends this process a Ctrl-C in a forward pass of training."""
    count = iter(range(10**6))
    whole = kind.forward

    def forward(self, *given):
        if self.training and next(count) == calls:
            os.kill(os.getpid(), signal.SIGINT)
        return whole(self, *given)

    monkeypatch.setattr(kind, "forward", forward)


@pytest.mark.parametrize("stage", [DVAE, MODELS["dalle_small"]().__class__])
def test_a_run_that_is_stopped_goes_on_exactly(stage, capsys):
    train.main([*BOTH, "--run-dir", "whole"])
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, stage, 1)
        with pytest.raises(SystemExit) as caught:
            train.main([*[flag for flag in BOTH if flag != "--quiet"], "--run-dir", "stopped"])
    assert caught.value.code == 130
    said = capsys.readouterr().out.splitlines()[-1]
    assert said.endswith("python dalle/train.py --resume --run-dir stopped")
    train.main(["--resume", "--run-dir", "stopped", "--quiet"])
    assert_same("whole/codes", "stopped/codes")
    assert_same("whole", "stopped")


def test_resume_alone_finds_a_run_that_was_stopped_in_its_first_stage(monkeypatch):
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, DVAE, 1)
        with pytest.raises(SystemExit):
            train.main(BOTH)
    (folder,) = Path("runs/dalle").iterdir()
    assert folder.name == "dalle_small-shapes"
    train.main(["--resume", "--quiet"])
    assert [path.name for path in Path("runs/dalle").iterdir()] == [folder.name]
    assert (folder / "last.pt").exists()


def test_what_the_first_stage_is_told():
    """Flags of the machine and of the data are meant for both stages."""
    train.main([*BOTH, "--run-dir", "run", "--accumulate", "2", "--patience", "3", "--factor", "2",
                "--max-steps", "1", "--objects", "2"])  # fmt: skip
    flags = json.loads(Path("run/codes/config.json").read_text())["flags"]
    assert (flags["accumulate"], flags["patience"], flags["factor"]) == (2, 3, 2)
    assert flags["objects"] == 2
    assert not flags["compile"]
    whole = torch.load("run/last.pt")
    assert whole["model"]["row.weight"].shape[0] == 4  # 8 pixels by 2
    assert whole["dataset"]["text_length"] == 11


def test_codes_that_are_finished_are_not_trained_again(monkeypatch):
    """And the transformer begins alike, whether they were trained just before or not."""
    train.main([*BOTH, "--run-dir", "run"])
    whole = weights("run")
    for name in ("last.pt", "best.pt", "metrics.jsonl"):
        Path("run", name).unlink()
    before = weights("run/codes")
    monkeypatch.setattr(train_dvae, "train_dvae", None)  # would be called
    train.main(["--resume", "--run-dir", "run", "--quiet"])
    for name, value in weights("run/codes").items():
        assert torch.equal(value, before[name])
    for name, value in weights("run").items():
        assert torch.equal(value, whole[name])


def test_codes_of_a_run_its_checkpoint_or_a_transformer():
    codes_run()
    stream_run()
    stream_run(codes="codes/last.pt", folder="by-file")
    stream_run(codes="run", folder="by-transformer")
    assert_same("run", "by-file")
    assert_same("run", "by-transformer")
    assert not Path("run/codes").exists()
    flags = torch.load("run/last.pt")["config"]["flags"]
    assert (flags["size"], flags["num_codes"]) == (8, 12)


def test_size_and_number_of_codes_come_with_the_codes():
    codes_run()
    args = train.parse_args(["--codes", "codes"])
    assert (args.size, args.num_codes) == (8, 12)


def test_evaluating_gives_the_metrics_of_the_training():
    codes_run()
    found = stream_run()
    again = train.main(["--evaluate", "run/last.pt", "--quiet", "--run-dir", "evaluated"])
    for key, value in again.items():
        assert value == pytest.approx(found[key]), key
    assert "test_right" in again
    first = json.loads(Path("codes/metrics.jsonl").read_text().splitlines()[-1])
    again = train.main(["--evaluate", "codes/last.pt", "--quiet", "--run-dir", "codes-evaluated"])
    for key, value in again.items():
        assert value == pytest.approx(first[key], rel=1e-5), key


def test_micro_batches_and_processes_change_nothing():
    codes_run()
    stream_run("--prompts", "0")
    stream_run("--prompts", "0", "--accumulate", "2", folder="parts")
    assert_same("run", "parts", exact=False)
    done = torchrun(str(ROOT / "dalle/train.py"), *STREAM_FLAGS, *TINY, "--codes", "codes",
                    "--epochs", "1", "--prompts", "0", "--run-dir", "two")  # fmt: skip
    assert not done.returncode, done.stderr
    assert_same("run", "two", exact=False)


def test_two_processes_train_both_stages_and_draw():
    done = torchrun(str(ROOT / "dalle/train.py"), *BOTH[:-2], "--prompts", "3", "--max-steps", "1",
                    "--run-dir", "run")  # fmt: skip
    assert not done.returncode, done.stderr
    row = json.loads(Path("run/metrics.jsonl").read_text().splitlines()[-1])
    assert 0 <= row["test_right"] <= 1


def test_a_sharded_transformer_trains_and_draws():
    codes_run()
    stream_run("--max-steps", "2", "--prompts", "0")
    done = torchrun(str(ROOT / "dalle/train.py"), *STREAM_FLAGS, *TINY, "--codes", "codes",
                    "--epochs", "1", "--prompts", "3", "--max-steps", "2", "--fsdp", "--run-dir",
                    "shards")  # fmt: skip
    assert not done.returncode, done.stderr
    assert_same("run", "shards", exact=False)


@pytest.mark.parametrize("prompts", ["1", "3"])
def test_shards_draw_for_any_number_of_prompts(prompts, monkeypatch):
    """Processes that draw for fewer captions than others take part in each pass: else they hang."""
    codes_run()
    done = torchrun(str(ROOT / "dalle/train.py"), *STREAM_FLAGS, *TINY, "--codes", "codes",
                    "--epochs", "1", "--prompts", prompts, "--max-steps", "1", "--fsdp",
                    "--run-dir", "shards")  # fmt: skip
    assert not done.returncode, done.stderr
    row = json.loads(Path("shards/metrics.jsonl").read_text().splitlines()[-1])
    assert row["test_judge"] * int(prompts) == pytest.approx(
        round(row["test_judge"] * int(prompts))
    )


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_other_precisions(precision):
    flags = ["--precision", precision, "--max-steps", "1"]
    codes_run(*flags)
    found = stream_run(*flags)
    assert all(map(math.isfinite, found.values()))


def test_patience_puts_the_best_weights_back(monkeypatch):
    """What is worse on validation after the first epoch is not what is tested, or handed on."""
    worse = iter(range(10))

    def metrics(*given, **_):
        part = next(g for g in given if hasattr(g, "part"))
        return {f"{part.part}_loss": float(next(worse))}

    for script, name in ((train_dvae, "code_metrics"), (train, "stream_metrics")):
        monkeypatch.setattr(script, name, metrics)
    codes_run("--patience", "1", "--epochs", "3")
    best, last = torch.load("codes/best.pt"), torch.load("codes/last.pt")
    assert (best["epoch"], last["epoch"]) == (1, 2)
    kernel = "encoder.blocks.input.w"
    assert not torch.equal(best["ema"][kernel], last["ema"][kernel])
    stream_run("--patience", "1", "--epochs", "3", "--prompts", "0")
    best, last = torch.load("run/best.pt"), torch.load("run/last.pt")
    assert (best["epoch"], last["epoch"]) == (1, 2)
    assert torch.equal(last["dvae"][kernel], torch.load("codes/best.pt")["ema"][kernel])


def test_codes_are_made_once_where_images_stay_alike(monkeypatch):
    """Batches have the codes and the captions that encoding each step's images gives."""
    codes_run()
    dvae, made = published.read_codes("codes").requires_grad_(False), []
    encode = DVAE.encode
    monkeypatch.setattr(DVAE, "encode", lambda self, x: made.append(len(x)) or encode(self, x))
    for objects in ("1", "3"):  # of which the latter are new in each epoch
        flags = ["--codes", "codes", *STREAM_FLAGS, *TINY[2:], "--accumulate", "2"]
        args = train.parse_args([*flags, "--objects", objects])
        dev = train.Device(args)
        part = data.load(args, dev)[0]
        made.clear()
        coded = data.Coded(part, dvae, dev)
        assert made == ([60] if objects == "1" else [])
        for epoch in (0, 1):
            batches, want = coded.batches(8), part.batches(8)
            batches.seek(epoch, 5)
            want.seek(epoch, 5)
            rows = 0
            for (codes, captions), (images, texts, _) in zip(batches, want, strict=True):
                assert torch.equal(codes, encode(dvae, images))
                assert [text.removeprefix(data.PHOTO) for text in captions] == [
                    text.removeprefix(data.PHOTO) for text in texts
                ]
                rows += len(captions)
            assert rows == 16


# ---------------------------------------------------------------------- the dVAE's script


def test_metrics_of_codes(monkeypatch):
    """By hand, from the checkpoint: what is rebuilt, how many codes are used."""
    codes_run("--ema", "0.5")
    row = json.loads(Path("codes/metrics.jsonl").read_text().splitlines()[-1])
    model = published.read_codes("codes").eval()
    args = train.parse_args(["--model", "dvae_small", *DVAE_FLAGS, *TINY])
    dev = train.Device(args)
    test = data.load(args, dev)[2]
    x = test.images.examples(torch.arange(12))[0]
    with torch.no_grad():
        codes = model.encode(x)
        error = (model.decode(codes) - x).square().mean()
    assert row["test_error"] == pytest.approx(float(error), rel=1e-4)
    assert row["test_psnr"] == pytest.approx(-10 * math.log10(float(error)), rel=1e-4)
    shares = [
        count / codes.numel() for count in collections.Counter(codes.flatten().tolist()).values()
    ]
    assert row["test_used"] == pytest.approx(len(shares) / 12)
    entropy = -sum(share * math.log(share) for share in shares)
    assert row["test_perplexity"] == pytest.approx(math.exp(entropy), rel=1e-4)
    assert row["test_loss"] == pytest.approx(row["test_nats"] + row["test_kl"])


def test_schedules():
    args = types.SimpleNamespace(temperature=0.25, cooling=0.5, beta=2.0, beta_rise=0.2, warmup=0.1,
                                 fall=0.8, floor=0.1)  # fmt: skip
    warm = [train_dvae.temperature(100, args, step) for step in range(101)]
    assert warm[0] == 1
    assert warm[25] == pytest.approx(0.625)
    assert warm[50:] == [0.25] * 51
    weight = [train_dvae.beta(100, args, step) for step in range(100)]
    assert 0 < weight[0] < 0.05
    assert weight[9] == pytest.approx(1.0)
    assert weight[19:] == [pytest.approx(2.0)] * 81
    rate = [train_dvae.step_size(100, args, step) for step in range(101)]
    assert rate[10] == 1 == max(rate)
    assert rate[4] == pytest.approx(5 / 11)
    assert rate[45] == pytest.approx(0.55)
    assert rate[80:] == [pytest.approx(0.1)] * 21
    args.encoder_waits, args.encoder_rate = 0.3, 0.2
    slow = [train_dvae.encoder_size(100, args, step) for step in range(101)]
    assert slow[:30] == [0] * 30
    assert slow[30:] == [pytest.approx(0.2 * share) for share in rate[30:]]
    args.warmup = 20  # steps
    assert train_dvae.step_size(100, args, 9) == pytest.approx(10 / 21)


def test_the_encoder_waits():
    codes_run("--encoder-waits", "0.9", "--max-steps", "2", "--ema", "0")
    codes_run("--encoder-waits", "0.9", "--max-steps", "1", "--ema", "0", folder="shorter")
    one, other = weights("codes"), weights("shorter")
    moved = {name.split(".")[0] for name in one if not torch.equal(one[name], other[name])}
    assert moved == {"decoder"}
    codes_run("--encoder-waits", "0", "--max-steps", "2", "--ema", "0", folder="at-once")
    one, other = weights("codes"), weights("at-once")
    assert not torch.equal(one["encoder.blocks.input.w"], other["encoder.blocks.input.w"])


def test_weights_are_averaged(monkeypatch):
    """A tenth of the average is kept at first, then more, up to --ema."""
    step, seen = train_dvae.Device.step, []

    def noting(self, loss, optimizer, *rest):
        kernel = optimizer.param_groups[1]["params"][0]
        seen[:] = seen or [kernel.detach().clone()]
        moved = step(self, loss, optimizer, *rest)
        seen.append(kernel.detach().clone())
        return moved

    monkeypatch.setattr(train_dvae.Device, "step", noting)
    codes_run("--ema", "0.15", "--encoder-waits", "0")
    average = seen[0]
    for number, kernel in enumerate(seen[1:]):
        kept = min(0.15, (1 + number) / (10 + number))
        average = kept * average + (1 - kept) * kernel
    assert len(seen) == 4
    found = torch.load("codes/last.pt")
    torch.testing.assert_close(found["ema"]["encoder.blocks.input.w"], average)
    assert torch.equal(found["model"]["encoder.blocks.input.w"], seen[-1])
    codes_run("--ema", "0", folder="plain")
    assert not torch.load("plain/last.pt")["ema"]


def test_averaged_weights_are_there_for_a_while():
    model = nn.Linear(2, 2)
    before = model.weight.detach().clone()
    with evaluate.averaged(model, {"weight": torch.zeros(2, 2)}):
        assert not model.weight.any()
    assert torch.equal(model.weight, before)
    with pytest.raises(KeyError), evaluate.averaged(model, {"weight": torch.zeros(2, 2)}):
        raise KeyError
    assert torch.equal(model.weight, before)


def test_images_without_captions_make_codes():
    make_tree(sizes=((20, 14, 3), (16, 16)))
    train.main(["--model", "dvae_small", *DVAE_FLAGS, "--data", "folder:tree", "--epochs", "1",
                "--batch-size", "4", "--val", "0", "--quiet", "--run-dir", "codes"])  # fmt: skip
    assert published.read_codes("codes").num_codes == 12


# ---------------------------------------------------------------------- words


def facts_of(captions, length=6, size=60):
    part = types.SimpleNamespace(texts=lambda: (captions, None), facts={})
    args = types.SimpleNamespace(vocab_size=size, text_length=length, captions=None)
    data.make_words(part, args, types.SimpleNamespace(gather=lambda value: [value]))
    return part.facts


def test_words_are_lower_case_tokens_without_an_end():
    words = data.Words(facts_of(["a red star", "a blue ring", "A red ring"] * 3))
    found = words.encode(["A RED star", "a", "a a a a a a a a"])
    assert found.shape == (3, 6)
    assert torch.equal(found[0], words.encode(["a red star"])[0])
    assert (found[1] >= 0).sum() == 1
    assert (found[1, 1:] == -1).all()
    assert (found[2] >= 0).all()
    assert words.tokens(["a a a a a a a a", "a red"]).cut == 1
    assert words.tokens(["a a a a a a"]).cut == 0  # just fits
    assert found.max() < words.size
    assert words.known("a red zebra")
    assert not words.known("Ж")


def test_captions_in_full_and_plain():
    long = [f"a large red {name} left of an orange ring" for name in ("star", "arrow")]
    plain = ["a star left of a ring", "an arrow left of a ring"]
    assert [data.plainly(text) for text in long] == plain
    assert [data.plainly(f"a photo of {text}") for text in long] == plain
    assert data.reworded(long, "plain", 1, 2) == plain
    photos = [f"a photo of {text}" for text in long]
    assert data.reworded(photos, "full", 1, 2) == long
    assert data.reworded(photos, None, 1, 2) == photos
    found = [data.reworded(long, "mixed", 1, step) for step in range(300)]
    assert found == [data.reworded(long, "mixed", 1, step) for step in range(300)]
    share = sum(text in plain for some in found for text in some) / 600
    assert 0.02 < share < 0.09
    for both in ShapeImages(range(100), 0).captions():  # no colour and no size is left
        words = data.plainly(both[0]).split()
        assert not {"small", "large", *COLOURS}.intersection(words)
        assert words[0] in ("a", "an")
        assert "photo" not in words


def test_a_transformer_is_told_what_the_flag_says(monkeypatch):
    codes_run()
    told = []
    encode = data.Words.encode
    monkeypatch.setattr(data.Words, "encode", lambda self, texts: told.append(texts) or
                        encode(self, texts))  # fmt: skip
    for kind in data.PLAIN:
        told.clear()
        stream_run("--captions", kind, "--max-steps", "1", "--prompts", "0", folder=kind)
        plain = [not {*COLOURS}.intersection(text.split()) for text in told[0]]
        assert len(plain) == 8
        assert all(plain) if kind == "plain" else sum(plain) < 4
        assert all({*COLOURS}.intersection(text.split()) for some in told[1:] for text in some)
        assert not any("photo" in text for some in told for text in some)


# ---------------------------------------------------------------------- measuring draws


def test_what_is_right_is_as_the_judge_sees_it(monkeypatch):
    """With the real scenes in place of draws, draws do as well as real scenes."""
    codes_run()
    args = train.parse_args(["--codes", "codes", *STREAM_FLAGS, *TINY, "--prompts", "20"])
    dev = train.Device(args)
    asked = scenes.one_object(20, 8)
    real = asked.pixels / 255
    given = []

    def draw(model, dvae, text, *rest, **how):
        given.append((text, how))
        return real

    class Sees(scenes.Judge):
        """The truth of what is real, but for every second image; else it answers 0."""

        def read(self, images):
            found = []
            for image in images:
                number = next((i for i in range(20) if torch.equal(image, real[i])), None)
                known = number is not None and number % 2 == 0
                found.append(asked.shapes[number, 0] if known else -1)
            shapes = torch.tensor(found)
            return shapes, torch.where(shapes >= 0, asked.colours[:, 0], -1)

    monkeypatch.setattr(evaluate, "draw", draw)
    monkeypatch.setattr(evaluate, "ready", lambda dev: Sees())
    words = types.SimpleNamespace(encode=lambda captions: captions)
    dvae = published.read_codes("codes")
    found = evaluate.prompt_metrics(None, dvae, words, args, dev)
    assert found["test_right"] == found["test_judge"] == found["test_shape"] == 0.5
    assert found["test_plain_right"] == 0.5
    assert found["test_rebuilt"] == 0
    (full, _), (plain, _) = given
    assert full == asked.captions
    assert [text.split()[-1] for text in plain] == [text.split()[-1] for text in full]
    assert all(text.split()[0] in ("a", "an") and len(text.split()) == 2 for text in plain)
    assert given[0][1]["temperature"] == args.draw_temperature


def test_draws_are_the_same_for_a_seed_and_part_by_part(monkeypatch):
    dvae, model = MODELS["dvae_small"](8, width=8), MODELS["dalle_small"](
        9, num_codes=8, text_length=4, side=2, d_model=16, num_layers=2, num_heads=2)  # fmt: skip
    text = torch.randint(9, (5, 4))
    dev = train.Device(train.parse_args(["--quiet", "--precision", "fp32"]))
    found = [evaluate.draw(model, dvae, text, dev, seed=seed) for seed in (1, 1, 2)]
    assert found[0].shape == (5, 3, 8, 8)
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
    monkeypatch.setattr(evaluate, "PART", 2)
    likeliest = evaluate.draw(model, dvae, text, dev, temperature=0)
    monkeypatch.setattr(evaluate, "PART", 100)
    torch.testing.assert_close(likeliest, evaluate.draw(model, dvae, text, dev, temperature=0))
    begun = torch.randint(8, (5, 3))
    kept = evaluate.draw(model, dvae, text, dev, begun=begun, temperature=0)
    codes = torch.cat([begun, torch.zeros(5, 1, dtype=torch.int64)], 1).view(5, 2, 2)
    with torch.no_grad():
        options = [dvae.decode(codes.index_fill(0, torch.arange(0), 0) +
                               torch.tensor([[0, 0], [0, k]])) for k in range(8)]  # fmt: skip
    for row in range(5):
        assert any(torch.allclose(kept[row], option[row]) for option in options)


# ---------------------------------------------------------------------- released files


@pytest.fixture
def released(monkeypatch):
    """Writes modules as the released files hold them, with the classes of OpenAI's package, which
    aren't there when the files are read."""

    def write(model, folder="theirs"):
        Path(folder).mkdir()
        modules = {name: types.ModuleType(name) for name in
                   ("dall_e", "dall_e.encoder", "dall_e.decoder", "dall_e.utils")}  # fmt: skip
        for place in published.THEIRS:
            module, _, name = place.rpartition(".")
            kind = type(name, (nn.Module,), {"__module__": f"dall_e.{module}"})
            setattr(modules[f"dall_e.{module}"], name, kind)

        def theirs(module, outer=None):
            kind = type(module).__name__
            place = {"Conv2d": "utils", "Encoder": "encoder", "Decoder": "decoder"}.get(kind)
            if kind == "Block":
                place, kind = outer.lower(), f"{outer}Block"
            outer = kind if kind in ("Encoder", "Decoder") else outer
            if not place and not list(module.children()):
                return module
            other = getattr(modules[f"dall_e.{place}"], kind)() if place else nn.Sequential()
            for name, p in module.named_parameters(recurse=False):
                setattr(other, name, nn.Parameter(p.detach().clone(), requires_grad=False))
            for name, child in module.named_children():
                other.add_module(name, theirs(child, outer))
            other.use_mixed_precision, other.device = True, torch.device("cpu")
            return other

        with monkeypatch.context() as patch:
            for name, module in modules.items():
                patch.setitem(sys.modules, name, module)
            for part in ("encoder", "decoder"):
                torch.save(theirs(getattr(model, part)), f"{folder}/{part}.pkl")
        return folder

    return write


def test_released_pickles_are_read_without_their_code(released):
    model = DVAE(num_codes=10, width=8, num_blocks=1, first_width=6)
    folder = released(model)
    found = published.read_codes(folder)
    assert (found.num_codes, found.factor) == (10, 8)
    for name, value in model.state_dict().items():
        assert torch.equal(found.state_dict()[name], value), name
    x = torch.rand(1, 3, 16, 16)
    assert torch.equal(found.encode(x), model.encode(x))


def test_released_codes_in_both_scripts(released, refused):
    folder = released(DVAE(num_codes=10, width=8, num_groups=3, num_blocks=1, first_width=6))
    stream_run(codes=folder)
    train.main(["--model", "dvae_small", "--weights", folder, "--size", "8", *TINY, "--max-steps",
                "1", "--run-dir", "tuned"])  # fmt: skip
    assert published.read_codes("tuned").num_codes == 10
    again = train.main(["--evaluate", "tuned/last.pt", "--quiet", "--run-dir", "evaluated"])
    assert math.isfinite(again["test_loss"])
    line = refused(train.main, ["--evaluate", "tuned/last.pt", "--weights", folder])
    assert "--weights starts a training" in line
    assert "0 decoder" not in refused(train.main, ["--model", "dvae_small", "--weights", "nowhere"])


class Bomb:
    def __reduce__(self):
        return Path.write_text, (Path("exploded"), "")


def test_a_pickle_that_would_run_code_is_refused(released, refused):
    folder = released(DVAE(num_codes=10, width=8, num_blocks=1, first_width=6))
    torch.save(Bomb(), f"{folder}/decoder.pkl")
    line = refused(published.read_codes, folder)
    assert "decoder.pkl" in line
    assert not Path("exploded").exists()


def test_state_dicts_of_the_released_names():
    model = DVAE(num_codes=10, width=8, num_groups=2, num_blocks=2, first_width=6)
    torch.save(model.state_dict(), "both.pt")
    assert published.read_codes("both.pt").factor == 2
    Path("parts").mkdir()
    for part in ("encoder", "decoder"):
        torch.save(getattr(model, part).state_dict(), f"parts/{part}.pt")
    found = published.read_codes("parts")
    assert torch.equal(found.encode(torch.ones(1, 3, 4, 4)), model.encode(torch.ones(1, 3, 4, 4)))


# ---------------------------------------------------------------------- bad input


def test_what_is_no_dvae(refused):
    for make, words in [
        (lambda: torch.save({"a": torch.ones(2)}, "x.pt"), "it has no encoder.blocks.input.w"),
        (lambda: Path("x.pt").write_text("no weights"), "damaged"),
        (lambda: torch.save(nn.Linear(2, 2).state_dict(), "x.pt"), "holds no dVAE"),
    ]:
        make()
        assert words in refused(train.main, ["--codes", "x.pt", "--quiet"])
    assert "there is no dVAE at nowhere" in refused(train.main, ["--codes", "nowhere"])
    Path("empty").mkdir()
    assert "no run (last.pt) and no encoder.pkl" in refused(train.main, ["--codes", "empty"])
    model = DVAE(num_codes=10, width=8, num_groups=2, num_blocks=1, first_width=6).state_dict()
    del model["encoder.blocks.group_1.block_1.res_path.conv_2.w"]
    torch.save(model, "x.pt")
    assert "holds no whole dVAE" in refused(train.main, ["--codes", "x.pt"])
    assert not Path("runs").exists()


def test_codes_of_another_autoencoder(refused):
    codes_run()
    codes_run("--seed", "1", folder="others")
    stream_run()
    for argv in (["--resume", "--run-dir", "run"], ["--evaluate", "run/last.pt"]):
        line = refused(train.main, [*argv, "--codes", "others"])
        assert "holds codes 'codes', not 'others'" in line
    train.main([*BOTH, "--run-dir", "own"])
    line = refused(train.main, ["--resume", "--run-dir", "own", "--codes", "others"])
    assert "began without --codes" in line
    for flag, value in (("--num-codes", "20"), ("--factor", "2")):
        line = refused(train.main, ["--codes", "codes", flag, value])
        assert f"{flag} has no meaning here" in line
    line = refused(train.main, ["--resume", "--run-dir", "own", "--objects", "3"])
    assert "holds objects 1, not 3" in line
    line = refused(train.main, ["--model", "dvae_small", "--evaluate", "codes/last.pt",
                                "--weights", "others"])  # fmt: skip
    assert "began without --weights" in line


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--size", "31", "--limit", "8"], "--size 31: a code stands for 4x4 pixels"),
        (["--model", "dvae_small", "--size", "31"], "--size 31: a code stands for 4x4 pixels"),
        (["--size", "31", "--factor", "2"], "--size 31: a code stands for 2x2 pixels"),
        (["--model", "dvae_small", "--width", "10"], "--width 10: blocks work on a quarter"),
        (["--factor", "3"], "--factor 3: a code stands for 2x2, 4x4 or 8x8 pixels"),
        (["--model", "dvae", "--factor", "4"], "--factor has no meaning here: dvae has"),
        (["--kernel", "4"], "--kernel 4: a square around a token has an odd side"),
        (["--attention", "diagonal"], "unknown attention 'diagonal'"),
        (["--temperature", "0.5"], "--temperature has no meaning here: it is for dvae"),
        (["--model", "dvae_small", "--prompts", "5"], "--prompts has no meaning here"),
        (["--model", "dvae", "--width", "8"], "--width has no meaning here: dvae has the paper's"),
        (["--data", "digits"], "has images but no captions"),
        (["--data", "folder:tree"], "has images but no captions"),
        (["--data", "captions:none.csv"], "none.csv"),
        (["--data", "captions:none.csv", "--prompts", "5"], "only captions of shapes"),
        (["--data", "captions:none.csv", "--captions", "plain"], "only captions of shapes"),
        (["--draw-temperature", "-1"], "--draw-temperature"),
        (["--model", "dvae_small", "--evaluate", "x", "--weights", "y"], "x"),
        (["--model", "dvae_small", "--paper", "--weights", "y"], "leave --weights out"),
        (["--num-codes", "1"], "--num-codes"),
    ],
)  # fmt: skip
def test_bad_flags(argv, words, refused):
    assert words in refused(train.main, argv)
    assert not Path("runs").exists()


def test_heads_that_do_not_fit(refused):
    codes_run()
    line = refused(stream_run, "--num-heads", "3")
    assert "3 heads can't share 16 dimensions" in line


def table(captions, folder="photos", name="pairs.csv"):
    """A CSV of images with captions."""
    Path(folder).mkdir(exist_ok=True)
    lines = ["image,caption"]
    for number, caption in enumerate(captions):
        pixels = torch.randint(0, 256, (12, 16, 3), dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(f"{folder}/{number}.png")
        lines.append(f"{folder}/{number}.png,{caption}")
    Path(name).write_text("\n".join(lines) + "\n")
    return f"captions:{name}"


def test_captions_of_the_users_own(refused):
    name = table(
        ["a dog on a rug", "two cats", "a red car", "rain", "a dog", "the sea at night"] * 2
    )
    flags = ["--data", name, *BOTH[:-2], "--text-length", "3", "--val", "2"]
    found = train.main([*flags, "--run-dir", "run"])
    assert math.isfinite(found["test_loss"])
    assert "test_right" not in found
    found = sample.main(["a dog in the rain", "--checkpoint", "run/last.pt", "--count", "2"])
    assert list(found) == ["a dog in the rain"]
    sample.main(["--checkpoint", "run/last.pt", "--out", "test", "--count", "2"])
    assert Path("test/samples.png").exists()
    Path("photos/3.png").unlink()
    assert "3.png" in refused(train.main, ["--data", name])


# ---------------------------------------------------------------------- samples


@pytest.fixture
def trained():
    codes_run()
    stream_run("--prompts", "0")
    return ["--checkpoint", "run/last.pt"]


def test_samples(trained, capsys):
    found = sample.main(["a red star", "a large blue ring", *trained, "--count", "3", "--out", "a"])
    assert found == {"a red star": [], "a large blue ring": []}
    assert Path("a/samples.png").exists()
    said = capsys.readouterr().out
    assert "temperature 1, seed 0" in said
    Path("captions.txt").write_text("a red star\na moon\n")
    found = sample.main(
        ["--file", "captions.txt", *trained, "--out", "b", "--top-k", "3", "--count", "1"]
    )
    assert list(found) == ["a red star", "a moon"]
    sample.main([*trained, "--out", "c", "--count", "2"])
    assert Path("c/samples.png").exists()
    sample.main(["a moon", *trained])
    assert Path("run/samples/samples.png").exists()


def test_masks_are_drawn(trained, refused):
    assert sample.main(["--masks", *trained, "--out", "a"]) == {"row": [1], "conv": [2]}
    assert Path("a/masks.png").exists()
    assert "draws no images" in refused(sample.main, ["--masks", "a moon", *trained])
    assert "draws nothing" in refused(sample.main, ["--masks", "--checkpoint", "codes/last.pt"])


def test_an_image_is_gone_on_with(trained, monkeypatch):
    Image.new("RGB", (40, 30), (200, 10, 10)).save("photo.png")
    seen = []
    monkeypatch.setattr(sample, "draw", lambda *given, **how: seen.append(how["begun"]) or
                        torch.zeros(2, 3, 8, 8))  # fmt: skip
    sample.main(["a moon", "--image", "photo.png", "--count", "2", *trained, "--out", "a"])
    dvae = published.read_codes("run")
    image = torch.tensor([200, 10, 10]).view(1, 3, 1, 1).expand(1, 3, 8, 8) / 255
    assert torch.equal(seen[0], dvae.encode(image)[:, :1].flatten(1).expand(2, -1))


def test_images_are_rebuilt(trained):
    make_tree(count=2)
    found = sample.main(["--rebuild", "tree", *trained, "--out", "a"])
    assert len(found) == 4
    assert Path("a/rebuilt.png").exists() and Path("a/codes.png").exists()
    dvae = published.read_codes("run")
    first = next(iter(found))
    x = sample.read_images([Path(first)], {}, 8)
    with torch.no_grad():
        assert found[first] == pytest.approx(float((dvae.reconstruct(x) - x).square().mean()))
    found = sample.main(["--checkpoint", "codes/last.pt", "--out", "b"])
    assert len(found) == 12  # of the test set


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["a", "--file", "x"], "one of them"),
        ([""], "caption 1 is empty"),
        (["a moon", " "], "caption 2 is empty"),
        (["--rebuild", "x", "--count", "3"], "leave --count out"),
        (["a", "--rebuild", "x"], "leave captions out"),
        (["--image", "x"], "by a caption"),
        (["a", "--rows", "2"], "--rows are those of --image"),
        (["a", "--temperature", "0", "--top-k", "3"], "--temperature 0"),
        (["a", "--top-p", "2"], "--top-p"),
        (["Ж"], "no word that training knew"),
        (["a", "--image", "x.png", "--rows", "2"], "of 2 rows at least one"),
        (["a", "--image", "nowhere.png"], "nowhere.png"),
        (["a", "--rerank", "nowhere"], "there is no run of clip at nowhere"),
        (["a", "--rerank", "run"], "is no checkpoint of clip"),
        (["--rebuild", "nowhere.png"], "nowhere.png"),
        (["a", "--checkpoint", "codes/last.pt"], "makes codes of images, and draws nothing"),
    ],
)  # fmt: skip
def test_bad_flags_of_samples(argv, words, trained, refused, capsys):
    Image.new("RGB", (16, 16)).save("x.png")
    given = trained if "--checkpoint" not in argv else []
    assert words in refused(sample.main, [*argv, *given])
    assert not Path("run/samples").exists()


# ---------------------------------------------------------------------- claims


@pytest.fixture
def tiny_claims(monkeypatch):
    """Runs of a step, on few scenes, which are validated on a few."""
    monkeypatch.setitem(train.QUICK, "val", 4)
    monkeypatch.setattr(claims, "NUMBERS", (16, 512))
    monkeypatch.setattr(claims, "BEST_OF", (1, 2))
    return ["--seeds", "0", "1", "--max-steps", "1", "--prompts", "3", "--out", "out"]


def test_claims_of_codes_and_attention(tiny_claims, capsys, monkeypatch):
    found = claims.main(["codes", *tiny_claims])
    assert list(found) == ["16 codes", "512 codes"]
    assert len(found["16 codes"]["test_error"]["values"]) == 2
    found = claims.main(["sparse", *tiny_claims])
    assert list(found) == ["sparse", "rows alone", "dense"]
    assert "--attention dense" in found["dense"]["command"]
    assert len(found["dense"]["test_right"]["values"]) == 2
    for claim in ("codes", "sparse"):
        assert json.loads(Path(f"out/claim_{claim}.json").read_text())
        assert Path(f"out/claim_{claim}.png").exists()
    said = capsys.readouterr().out
    assert "perplexity" in said and "image_loss" in said
    runs = sorted(path.name[:-7] for path in Path("runs/dalle-claims").iterdir())
    assert runs == sorted([f"{k} codes" for k in (16, 16, 512, 512)]
                          + ["sparse", "rows alone", "dense"] * 2)  # fmt: skip
    streams = {}
    for path in Path("runs/dalle-claims").glob("*/last.pt"):
        content = torch.load(path)
        flags = content["config"]["flags"]
        if flags["model"] == "dalle_small":
            streams.setdefault(flags["seed"], []).append(content["dvae"]["decoder.blocks.input.w"])
    for seed in (0, 1):  # of a seed all arms learn the same codes
        assert len(streams[seed]) == 3
        assert all(torch.equal(w, streams[seed][0]) for w in streams[seed])
    monkeypatch.setattr(train, "train_dvae", None)
    monkeypatch.setattr(claims, "train", None)
    assert claims.main(["sparse", *tiny_claims]) == found  # all is done


def test_claim_of_captions(tiny_claims):
    found = claims.main(["captions", *tiny_claims[:1], "0", *tiny_claims[3:]])
    assert list(found) == ["plain", "descriptive", "mixed"]
    assert "--captions plain" in found["plain"]["command"]
    kinds = {}
    for path in Path("runs/dalle-claims").glob("*/config.json"):
        flags = json.loads(path.read_text())["flags"]
        kinds[path.parent.name.split("-")[0]] = flags["captions"]
    assert kinds.items() >= {"plain": "plain", "descriptive": "full", "mixed": "mixed"}.items()


def test_claim_of_re_ranking(tiny_claims, monkeypatch):
    """With scores that know the truth, the best of two is right where one of two is."""
    asked = scenes.one_object(3, 24)
    real, noise = asked.pixels / 255, torch.zeros(3, 3, 24, 24)
    scripts = []
    monkeypatch.setattr(claims, "run_script", lambda *given: scripts.append(given))

    def draw(model, dvae, text, dev, seed, temperature):
        assert temperature == 1
        return torch.stack([noise, real], 1).flatten(0, 1)

    class Truth:
        def scores(self, images, captions):
            assert captions == asked.captions
            return images.flatten(2).sum(2)

        def right(self, images, shapes, colours):
            found = torch.stack(scenes.wanted(asked.captions))
            assert torch.equal(torch.stack([shapes, colours])[:, ::2], found)
            return images.flatten(1).any(1)

    monkeypatch.setattr(claims, "draw", draw)
    monkeypatch.setattr(claims, "read_clip", lambda place, dev: Truth())
    monkeypatch.setattr(claims, "ready", lambda dev: Truth())
    found = claims.main(["rerank", *tiny_claims[:1], "0", *tiny_claims[3:]])
    assert found["best of 1"]["test_right"]["mean"] == 0.5
    assert found["best of 2"]["test_right"]["mean"] == 1.0
    ((script, argv),) = scripts
    assert script == ROOT / "clip/train.py"
    assert argv[: argv.index("--seed")] == ["--epochs", "4", "--quiet", "--max-steps", "1"]
    assert Path("out/claim_rerank.png").exists()


# ---------------------------------------------------------------------- re-ranking


def test_the_best_of_several():
    scores = torch.tensor([[0.1, 0.9, 0.3, 0.2], [0.5, 0.4, 0.8, 0.7]])
    right = torch.tensor([[True, False, True, False], [False, True, True, True]])
    assert rerank.best_of(scores, right, 1) == 5 / 8
    assert rerank.best_of(scores, right, 2) == 2 / 4  # no, yes; no, yes
    assert rerank.best_of(scores, right, 4) == 1 / 2
    assert rerank.best_of(scores, right, 3) == 1 / 2  # the fourth is in no group


@pytest.mark.skipif(not importlib.util.find_spec("clip"), reason="needs the folder clip")
def test_clip_re_ranks(trained):
    """The scores are the cosines that clip itself computes, and images come in their order."""
    from clip.model import CLIP
    from common.data.tokens import Tokens, train_tokenizer

    tokens = Tokens(train_tokenizer(["a red star", "a large blue ring left of a moon"] * 4, 600))
    network = dict(embed_dim=16, image_size=16, patch_size=8, vision_layers=1, vision_width=32,
                   vision_heads=2, text_width=32, text_layers=1, text_heads=2,
                   vocab_size=tokens.size, end_token=tokens.end)  # fmt: skip
    facts = dict(network=network, tokenizer=tokens.tokenizer.to_str(), mean=[0.5] * 3,
                 std=[0.2, 0.3, 0.4])  # fmt: skip
    flags = {"milestone": "clip", "model": "clip_small"}
    content = {"config": {"flags": flags}, "dataset": facts, "model": CLIP(**network).state_dict()}
    Path("clip").mkdir()
    torch.save(content, "clip/last.pt")
    dev = train.Device(train.parse_args(["--quiet", "--precision", "fp32"]))
    scorer = rerank.read_clip("clip", dev)
    captions = ["a red star", "a large blue ring left of a small moon"]
    images = torch.rand(2, 3, 3, 8, 8)
    found = scorer.scores(images, captions)
    rows = tokens.encode(captions, scorer.context)[0]
    larger = nn.functional.interpolate(
        images.flatten(0, 1), [scorer.size] * 2, mode="bilinear", antialias=True
    )
    with torch.no_grad():
        x = scorer.model.encode_image((larger - scorer.mean) / scorer.std).view(2, 3, -1)
        y = scorer.model.encode_text(rows)
    want = nn.functional.cosine_similarity(x, y[:, None], dim=2)
    torch.testing.assert_close(found, want, atol=1e-5, rtol=1e-5)
    found = sample.main(["a red star", *trained, "--count", "4", "--rerank", "clip", "--out", "a"])
    scores = found["a red star"]
    assert scores == sorted(scores, reverse=True)
    assert len(set(scores)) > 1
