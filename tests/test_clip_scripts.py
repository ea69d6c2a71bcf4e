"""CLIP's scripts: training, metrics, predictions, samples and claims.

Usage: torchrun --nproc-per-node 2 tests/test_clip_scripts.py FOLDER trains the same way there.
"""

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import torchrun
from helpers import weights
from PIL import Image
from processes import device_args

from clip import claims, evaluation, predict, prompts, sample, train
from clip.contrast import contrastive_loss
from clip.model import clip_small
from clip.pairs import square_window
from common.data import captions
from common.data import shapes as world
from common.data.tokens import Tokens, train_tokenizer
from common.device import Device

ENCODER = ["--size", "16", "--vision-width", "8", "--embed-dim", "16"]
WORDS = ["--vocab-size", "560"]
TINY = [*ENCODER, *WORDS, "--text-width", "32", "--text-layers", "1"]
FLAGS = ["--val", "0", "--batch-size", "16", "--quiet", "--precision", "fp32"]
ALIKE = [*TINY, *FLAGS, "--max-steps", "3", "--lr", "0.5", "--eps", "1"]  # else Adam hides scales
SIZES = {"train": 64, "test": 20}


def vit_tower(monkeypatch):
    """Without batch norm, whose statistics are a part's own, parts add up to the whole."""
    own = dict(patch_size=8, vision_layers=2, vision_heads=2)
    monkeypatch.setitem(train.SIZES, "clip_small", train.SIZES["clip_small"] | own)


@pytest.fixture
def tower(monkeypatch):
    vit_tower(monkeypatch)
    monkeypatch.setattr("common.data.shapes.NUM_SCENES", SIZES)


@pytest.fixture
def scenes(monkeypatch):
    monkeypatch.setattr("common.data.shapes.NUM_SCENES", SIZES)


def run_alike(folder, *more):
    return train.main([*ALIKE, "--run-dir", str(folder), *more])


if __name__ == "__main__":
    with pytest.MonkeyPatch.context() as patch:
        vit_tower(patch)
        patch.setattr("common.data.shapes.NUM_SCENES", SIZES)
        run_alike(*sys.argv[1:])


# ---------------------------------------------------------------------- training


def assert_alike(one, two):
    for name, value in weights(one).items():
        torch.testing.assert_close(weights(two)[name], value, rtol=1e-3, atol=2e-5, msg=name)


@pytest.mark.parametrize("parts", ["2", "4"])
def test_accumulation_is_the_large_batch(tower, parts):
    """By the second pass: each part's loss is against all pairs of the step."""
    whole = run_alike("whole")
    found = run_alike("parts", "--accumulate", parts)
    assert found["train_loss"] == pytest.approx(whole["train_loss"], rel=1e-5)
    assert_alike("whole", "parts")


@pytest.mark.parametrize("more", [(), ("--accumulate", "2")], ids=["ddp", "and two parts"])
def test_two_processes_are_one(tower, more):
    """Gathered features and their gradients, the scale's too; and the metrics."""
    found = run_alike("one")
    done = torchrun(__file__, "two", *more)
    assert not done.returncode, done.stderr
    assert_alike("one", "two")
    rows = [json.loads(line) for line in Path("two/metrics.jsonl").read_text().splitlines()]
    for key, value in found.items():
        assert rows[-1][key] == pytest.approx(value, rel=1e-4), key


def test_parts_that_see_themselves_alone_are_another_training(tower, monkeypatch):
    """What the tests above would notice."""
    run_alike("whole")

    def alone(step, _number, image, text, scale):
        same = torch.eye(len(image), dtype=torch.bool)
        return contrastive_loss(image, text, scale, same) / len(step.images)

    monkeypatch.setattr(train.WholeStep, "loss", alone)
    run_alike("parts", "--accumulate", "2")
    with pytest.raises(AssertionError):
        assert_alike("whole", "parts")


def test_resumed_is_uninterrupted(scenes):
    """Inside an epoch, of scenes that are new in each."""
    argv = [*TINY, *FLAGS, "--epochs", "2"]
    train.main([*argv, "--run-dir", "whole"])
    train.main([*argv, "--run-dir", "cut", "--max-steps", "6"])
    train.main(["--resume", "--run-dir", "cut", "--quiet"])
    for name, value in weights("whole").items():
        assert torch.equal(weights("cut")[name], value), name
    metrics = train.main(["--evaluate", "cut/last.pt", "--quiet"])
    row = json.loads(Path("whole/metrics.jsonl").read_text().splitlines()[-1])
    assert {k: row[k] for k in metrics} == pytest.approx(metrics)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_precisions(scenes, precision):
    for parts in ("1", "2"):
        argv = [*TINY, *FLAGS, "--max-steps", "1", "--precision", precision]
        metrics = train.main([*argv, "--accumulate", parts])
        assert all(map(math.isfinite, metrics.values()))


def test_metrics_are_there_and_shares(scenes):
    metrics = train.main([*TINY, *FLAGS, "--max-steps", "1"])
    wanted = {"match", "zero_shot", "zero_shot_one", "probe"}
    wanted |= {f"{kind}_r{k}" for kind in ("text", "image") for k in (1, 5, 10)}
    assert {f"test_{key}" for key in wanted} | {"train_loss", "train_scale"} == metrics.keys()
    assert all(0 <= metrics[f"test_{key}"] <= 1 for key in wanted)
    rows = train.main([*TINY, *FLAGS[2:], "--val", "20", "--max-steps", "1", "--run-dir", "run"])
    (row, _) = map(json.loads, Path("run/metrics.jsonl").read_text().splitlines())
    assert 0 <= row["val_match"] <= 1
    assert "val_probe" not in row
    assert rows.keys() == metrics.keys()


def test_the_scale_stays_at_its_limit(scenes, monkeypatch):
    """After each step."""
    monkeypatch.setattr("clip.model.MOST_SCALE", 10.0)  # below the first value
    train.main([*TINY, *FLAGS, "--max-steps", "1", "--run-dir", "run"])
    assert weights("run")["logit_scale"].exp().item() == pytest.approx(10)


def test_matrices_decay_and_nothing_else(scenes):
    args = train.parse_args([*TINY, *FLAGS])
    model = clip_small(**train.sizes_of(args) | dict(vocab_size=560))
    groups = train.make_optimizer(args, model).param_groups
    assert all(group["betas"] == (0.9, 0.98) and group["eps"] == 1e-6 for group in groups)
    names = {id(p): name for name, p in model.named_parameters()}
    kept, decayed = set(), set()
    assert groups[0]["lr"] == args.lr  # that is printed
    for group in groups:
        some = {names[id(p)] for p in group["params"]}
        assert group["weight_decay"] in (0, args.weight_decay)
        (decayed if group["weight_decay"] else kept).update(some)
        blocks = {name.startswith("transformer.") for name in some}
        assert blocks == {group["lr"] < args.lr}
        assert group["lr"] == pytest.approx(args.lr * (0.1 if True in blocks else 1))
    assert "logit_scale" in kept
    assert "ln_final.weight" in kept
    assert all(name.endswith(("bias", "weight", "logit_scale")) for name in kept)
    assert decayed | kept == set(names.values())
    assert len(decayed) + len(kept) == len(names)
    assert "text_projection" not in kept


def test_the_rate_rises_and_falls():
    rates = [train.step_size(100, 0.1, step) for step in range(100)]
    assert rates[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert rates[55] == pytest.approx(0.5, abs=0.01)
    assert rates[99] < 0.01
    assert train.step_size(100, 20, 9) == pytest.approx(0.5)


def test_recipes():
    def flags(*argv):
        return train.parse_args(list(argv))

    paper = flags("--paper")
    assert (paper.model, paper.epochs, paper.batch_size, paper.lr) == (
        "clip_vit_b_32", 32, 32_768, 5e-4)  # fmt: skip
    assert (paper.weight_decay, paper.warmup, paper.beta2, paper.eps) == (0.2, 2000, 0.98, 1e-6)
    assert (paper.size, paper.vocab_size) == (224, 49_408)
    assert flags("--paper", "--model", "clip_vit_l_14").lr == 4e-4
    assert flags("--paper", "--model", "clip_resnet50").beta2 == 0.999
    assert flags("--paper", "--model", "clip_resnet50").eps == 1e-8
    assert flags("--data", "flickr8k").size == 64
    assert flags().size == 24


def test_bad_flags(refused, scenes):
    for argv, words in [
        (["--batch-size", "1"], "one pair has no other to be told from"),
        (["--freeze"], "add --weights NAME|PATH"),
        (["--weights", "nothing.pt"], "there is no such file or folder"),
        (["--paper", "--weights", "x"], "leave --weights out"),
        (["--size", "20"], "multiple of 8"),
        (["--text-width", "33"], "2 heads can't share 33"),
        (["--vocab-size", "100"], "at least 514"),
        (["--model", "clip_vit_b_16", "--text-width", "32"], "clip_vit_b_16 has the paper's"),
        (["--fsdp"], "torchrun"),
        (["--data", "shapes:1", "--val", "0"], "one pair has no other to be told from"),
        (["--batch-size", "3", "--accumulate", "2"], "multiple of 2"),
    ]:
        assert words in refused(train.main, [*argv, "--quiet"]), argv


def test_notes_on_captions(capsys, monkeypatch, scenes):
    """Long captions are cut, and equal ones in a batch are said."""
    Path("mine").mkdir()
    lines = ["image,caption"]
    for i in range(10):
        Image.new("RGB", (16, 16), (20 * i, 0, 0)).save(f"mine/{i}.png")
        lines.append(f"{i}.png,{'a long story ' * 40 if i < 3 else 'the same'}")
    Path("mine/pairs.csv").write_text("\n".join(lines))
    argv = [*TINY, "--val", "0", "--batch-size", "8", "--max-steps", "1"]
    train.main([*argv, "--data", "captions:mine/pairs.csv"])
    said = capsys.readouterr().out
    assert "note: 3 captions cut at 77 tokens" in said
    assert "of 8 pairs about" in said
    assert "right answers to each other" in said
    train.main([*argv, "--batch-size", "64"])
    said = capsys.readouterr().out
    assert "note: of 64 pairs about" in said
    assert "cut at" not in said


def test_equal_captions_are_right_answers_in_training(scenes, monkeypatch):
    """The step's `same` is True where texts are equal, whatever part they are in."""
    seen = []
    original = train.WholeStep.loss

    def noted(self, *args):
        seen.append(torch.cat(self.keys))
        return original(self, *args)

    monkeypatch.setattr(train.WholeStep, "loss", noted)
    texts = []
    steps = train.whole_steps

    def watched(batches, *rest):
        def pass_on():
            for batch in batches:
                texts.extend(batch[1])
                yield batch

        yield from steps(pass_on(), *rest)

    monkeypatch.setattr(train, "whole_steps", watched)
    train.main([*TINY, *FLAGS, "--batch-size", "64", "--max-steps", "1", "--accumulate", "2"])
    keys = seen[0]
    assert torch.equal(seen[1], keys)
    assert len(set(texts)) < 64
    for i in range(64):
        for j in range(64):
            assert (keys[i] == keys[j]) == (texts[i] == texts[j])


def test_published_weights_are_fine_tuned(scenes, monkeypatch, capsys, refused):
    """Of a run: all is kept at a rate of nearly zero; with --freeze only projections move."""
    vit_tower(monkeypatch)
    train.main([*TINY, *FLAGS, "--max-steps", "1", "--run-dir", "run"])
    before = weights("run")
    argv = ["--weights", "run", *FLAGS, "--max-steps", "2", "--freeze", "--lr", "0.01"]
    train.main([*argv, "--run-dir", "tuned"])
    moved = {k for k, v in weights("tuned").items() if not torch.equal(v, before[k])}
    assert moved == {"logit_scale", "text_projection", "visual.proj"}
    assert train.parse_args(argv).model == "clip_small"
    metrics = train.main(["--evaluate", "tuned/last.pt", "--quiet"])
    assert "test_match" in metrics
    torch.save(before, "alone.pt")
    line = refused(train.main, ["--weights", "alone.pt", "--quiet"])
    assert "no tokenizer.json beside the weights" in line
    line = refused(train.main, ["--weights", "run", "--size", "32"])
    assert "the weights have theirs" in line


# ---------------------------------------------------------------------- metrics


def test_recall_by_hand():
    similarity = torch.tensor([[0.9, 0.1, 0.5, 0.3], [0.2, 0.8, 0.9, 0.1], [0.4, 0.3, 0.2, 0.1],
                               [0.1, 0.2, 0.3, 0.4]])  # fmt: skip
    right = torch.zeros(4, 4, dtype=torch.bool)
    right[0, [0, 3]] = True  # found first
    right[1, 1] = True  # second
    right[2, 3] = True  # last; and row 3 has none
    assert evaluation.recall(similarity, right, (1, 2, 3)) == pytest.approx([1 / 3, 2 / 3, 2 / 3])
    assert evaluation.recall(similarity, right, (4, 10)) == pytest.approx([1, 1])


def test_match_is_among_different_captions(monkeypatch):
    monkeypatch.setattr(evaluation, "AMONG", 3)
    texts = torch.eye(7)
    images = torch.eye(7)[[0, 0, 1, 2, 3, 4, 5, 6]]
    owned = [[0], [0], [1], [2], [3], [4], [5], [6]]  # image 1 has the caption of image 0
    assert evaluation.match(images, texts, owned) == 1
    wrong = images.clone()
    wrong[0] = texts[2]  # within its group of 0, 1, 2
    wrong[2] = texts[5] + 0.1 * texts[1]  # what is outside of the group doesn't count
    assert evaluation.match(wrong, texts, owned) == pytest.approx(5 / 6)
    assert evaluation.match(images[:2], texts, owned[:2]) == 1  # as many as there are


def test_linear_probe():
    labels = torch.arange(300) % 3
    features = F.one_hot(labels, 3) + 0.1 * torch.randn(300, 3)
    assert evaluation.linear_probe(features, labels, features, labels) > 0.95
    assert evaluation.linear_probe(features, labels, features, (labels + 1) % 3) < 0.05
    assert evaluation.linear_probe(features[:9], labels[:9] * 0, features, labels) is None


def test_class_features_are_the_ensemble():
    text = train_tokenizer(["a photo of a red circle", "a large star"], 560)
    tokens = Tokens(text)
    sizes = dict(vocab_size=tokens.size, end_token=tokens.end)
    model = clip_small(**sizes).eval()
    found = prompts.class_features(model, tokens, ["circle", "star"], ["a {}", "a large {}"])
    for name, row in zip(("circle", "star"), found, strict=True):
        each = [model.encode_text(tokens.encode([f"a {kind}{name}"], 77)[0])[0]
                for kind in ("", "large ")]  # fmt: skip
        torch.testing.assert_close(row, F.normalize(sum(each), dim=0))
    assert prompts.fill(prompts.ONE, "arrow") == "a photo of an arrow"
    assert prompts.fill(prompts.ONE, "circle") == "a photo of a circle"
    assert len(prompts.templates_of("shapes:9")) == 2 * len(world.COLOURS)
    assert list(prompts.COLOURS) == list(world.COLOURS)
    assert all(text.count("{}") == 1 for text in (*prompts.SHAPES, *prompts.PHOTOS, prompts.ONE))
    for text in prompts.SHAPES:
        assert any(colour in text for colour in world.COLOURS)


def test_what_is_measured_is_of_the_model(scenes):
    """An encoder that knows the answers has all metrics at 1."""
    args = train.parse_args([*TINY, *FLAGS])
    dev = Device(args)
    parts = captions.load_captions(args, dev, 16, None, square_window)
    test = parts[2]
    texts, _ = test.texts()
    tokens = Tokens(train_tokenizer(texts, 560))

    class Oracle(torch.nn.Module):
        context, logit_scale = 77, torch.zeros(())

        def encode_image(self, images):
            found = []
            for image in images:
                far = (known - image).abs().flatten(1).amax(1)
                found.append(own[test.captions[int(far.argmin())][0]])
            return torch.stack(found)

        def encode_text(self, rows):
            return torch.stack([own.get(tokens.tokenizer.decode(row.tolist()).strip(),
                                        torch.zeros(64)) for row in rows])  # fmt: skip

    known = test.images.examples(torch.arange(len(test)))[0]
    own = {text: vector for text, vector in zip(texts, torch.eye(64), strict=False)}
    by_row = {}
    for text in texts:
        by_row[tuple(tokens.encode([text], 77)[0][0].tolist())] = own[text]
    oracle = Oracle()
    oracle.encode_text = lambda rows: torch.stack([
        by_row.get(tuple(row.tolist()[: row.tolist().index(tokens.end) + 1]), torch.zeros(64))
        for row in rows])  # fmt: skip
    found = evaluation.measure(oracle, test, tokens, dev, "shapes")
    for key in ("match", "text_r1", "image_r1", "text_r10", "image_r5"):
        assert found[f"test_{key}"] == 1, key
    assert found["test_zero_shot_one"] == pytest.approx(0.1)  # it knows no such sentence


# ---------------------------------------------------------------------- predictions


def test_bags_of_words():
    tokens = Tokens(train_tokenizer(["a red circle left of a blue star"] * 3, 560))
    (row,) = predict.bags(["a red red star"], tokens)
    names = [tokens.tokenizer.id_to_token(i) for i in row.nonzero()[:, 0].tolist()]
    assert sorted(names) == ["a</w>", "red</w>", "star</w>"]
    torch.testing.assert_close(row.sum(), torch.tensor(1.0))
    assert len(row[row > 0].unique()) == 1


@pytest.mark.parametrize("target", ["words", "labels"])
def test_predictions(scenes, target, refused):
    argv = [*ENCODER, *FLAGS, "--target", target, "--epochs", "1"]
    argv += WORDS if target == "words" else []
    metrics = predict.main([*argv, "--run-dir", "run"])
    wanted = {"test_match", "test_zero_shot"} if target == "words" else {"test_accuracy"}
    assert metrics.keys() == wanted | {"train_loss"}
    predict.main([*argv, "--run-dir", "cut", "--max-steps", "2"])
    predict.main(["--resume", "--run-dir", "cut", "--quiet"])
    for name, value in weights("run").items():
        assert torch.equal(weights("cut")[name], value)
    assert predict.main(["--evaluate", "run/last.pt", "--quiet"]).keys() == wanted
    line = refused(sample.main, ["--checkpoint", "run/last.pt"])
    assert "predict.py, which has no text encoder" in line
    if target == "labels":
        line = refused(predict.main, ["--target", "labels", "--data", "flickr8k"])
        assert "has captions and no classes" in line


def test_predictions_learn_by_heart(scenes, monkeypatch):
    monkeypatch.setattr("common.data.shapes.NUM_SCENES", {"train": 16, "test": 16})
    monkeypatch.setattr(captions.ShapeImages, "__init__", lambda self, indices, seed: vars(
        self).update(indices=[i % 16 for i in indices], seed=0))  # fmt: skip
    argv = [*ENCODER, *FLAGS, "--epochs", "50", "--lr", "0.01", "--weight-decay", "0"]
    assert predict.main([*argv, "--target", "labels"])["test_accuracy"] > 0.9
    found = predict.main([*argv, *WORDS])
    assert found["test_match"] > 0.4
    assert found["test_zero_shot"] > 0.3


# ---------------------------------------------------------------------- samples


@pytest.fixture
def trained(scenes):
    train.main([*TINY, *FLAGS, "--max-steps", "1", "--run-dir", "run"])
    Path("photos").mkdir()
    for i in range(5):
        Image.fromarray(np.full((30, 40, 3), 50 * i, dtype=np.uint8)).save(f"photos/{i}.png")
    return ["--checkpoint", "run/last.pt"]


def test_texts_are_ranked_for_an_image(trained, capsys):
    texts = ["a red circle", "a blue star", "a story " * 60]
    found = sample.main([*trained, "photos/1.png", "photos/3.png", "--texts", *texts])
    assert list(found) == ["photos/1.png", "photos/3.png"]
    for answers in found.values():
        odds = [p for _, p in answers]
        assert {text for text, _ in answers} == {text.strip() for text in texts}
        assert odds == sorted(odds, reverse=True)
        assert sum(odds) == pytest.approx(1)
    said = capsys.readouterr().out
    assert "note: 1 text cut at 77 tokens" in said
    assert "cosine" in said


def test_long_and_many_classes_are_said(trained, capsys):
    names = [*(f"thing {k}" for k in range(6)), "a story " * 60]
    sample.main([*trained, "photos/1.png", "--classes", *names, "--template", "{}"])
    said = capsys.readouterr().out
    assert "note: 1 text cut at 77 tokens" in said
    assert ", and 2 less likely ones" in said


def test_weights_of_another_network_than_the_typed_one(trained, refused):
    argv = ["--weights", "run/last.pt", "--max-steps", "1", "--val", "0"]
    line = refused(train.main, [*argv, "--model", "clip_vit_b_16"])
    assert "--model clip_vit_b_16: the weights are of another network" in line


def test_a_width_of_one(refused):
    assert "the stem begins with half of it" in refused(train.main, ["--vision-width", "1"])


@pytest.mark.parametrize("flag", ["text-rate", "text-width", "text-layers", "vocab-size"])
def test_predict_has_no_text_encoder(flag, refused):
    value = "1" if flag != "vocab-size" else "600"
    argv = [f"--{flag}", value, "--target", "labels"]
    assert f"--{flag} has no meaning here" in refused(predict.main, argv)


def test_one_class_alone_is_probed_by_nobody(scenes):
    found = train.main(["--data", "shapes:2", "--val", "0", "--epochs", "1", "--quiet"])
    assert "test_probe" not in found
    assert "test_zero_shot" in found


def test_images_are_searched(trained, capsys):
    found = sample.main([*trained, "photos", "--search", "a red circle", "--top", "2", "--out",
                         "out"])  # fmt: skip
    assert set(found) == {f"photos/{i}.png" for i in range(5)}
    assert list(found.values()) == sorted(found.values(), reverse=True)
    assert Path("out/search.jpg").exists()
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [words[1] for words in lines if words[1].startswith("photos/")] == list(found)[:2]


def test_classes_without_training(trained):
    argv = [*trained, "photos/2.png", "--classes", "circle", "arrow"]
    ensemble = sample.main(argv)
    assert {name for name, _ in ensemble["photos/2.png"]} == {"circle", "arrow"}
    one = sample.main([*argv, "--template", "a {}"])
    assert dict(one["photos/2.png"]) != dict(ensemble["photos/2.png"])


def test_test_pairs_are_drawn(trained, capsys):
    found = sample.main([*trained, "--out", "out"])
    assert 0 <= found["right"] <= sample.SHOWN
    assert Path("out/similarity.png").exists()
    assert f"{found['right']} of 8 test images" in capsys.readouterr().out


def test_samples_of_published_weights(capsys, refused):
    from test_clip import folder_of

    theirs = folder_of("json")
    Image.fromarray(np.full((64, 64, 3), 200, dtype=np.uint8)).save("grey.png")
    found = sample.main(["--weights", "theirs", "grey.png", "--texts", "the dog", "a cat"])
    pixels = (
        torch.full((3,), 200 / 255, dtype=torch.float64)
        - torch.tensor([0.48145466, 0.4578275, 0.40821073])
    ) / torch.tensor([0.26862954, 0.26130258, 0.27577711])
    image = pixels.view(1, 3, 1, 1).expand(1, 3, 32, 32)
    tokens = Tokens(Path("theirs/tokenizer.json").read_text()).encode(["the dog", "a cat"], 16)[0]
    logits = theirs(input_ids=tokens, pixel_values=image).logits_per_image
    odds = dict(zip(("the dog", "a cat"), logits.softmax(1)[0].tolist(), strict=True))
    assert dict(found["grey.png"]) == pytest.approx(odds, abs=1e-4)
    assert "no test images of its own" in refused(sample.main, ["--weights", "theirs"])


def test_images_for_published_weights_are_read_as_published(tmp_path):
    """As transformers' CLIPImageProcessor reads them, bicubically; to a step of 8-bit values."""
    from transformers import CLIPImageProcessor

    from clip.published import INPUTS, read_inputs
    from common.classify import images_of

    numbers = torch.Generator().manual_seed(0)
    coarse = torch.rand(3, 12, 12, generator=numbers)[None]
    pixels = F.interpolate(coarse, (90, 90), mode="nearest")[0]
    image = Image.fromarray((pixels * 255).byte().permute(1, 2, 0).numpy())
    image.save("square.png")
    kwargs = dict(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    read, dev = CLIPImageProcessor(**kwargs), Device(device_args())
    theirs = read(image, return_tensors="pt")["pixel_values"]

    def ours(inputs):
        files = images_of([Path("square.png")], {**inputs, "side": 32}, 32, dev)
        return files.examples(torch.tensor([0]))[0]

    step = 1 / 255 / min(INPUTS["std"])
    assert (ours(INPUTS) - theirs).abs().max() < 1.01 * step
    assert (ours({**INPUTS, "resample": "bilinear"}) - theirs).abs().max() > 5 * step
    read.save_pretrained("theirs")
    known = read_inputs({"preprocessor_config.json": Path("theirs", "preprocessor_config.json")})
    assert known == INPUTS
    assert read_inputs({}) == INPUTS
    file = tmp_path / "preprocessor_config.json"
    file.write_text(json.dumps({"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 2}))
    assert read_inputs({"preprocessor_config.json": file})["resample"] == "bilinear"


def test_bad_flags_of_samples(trained, refused):
    for argv, words in [
        (["photos/1.png"], "say what to do with the images"),
        (["--texts", "a"], "--texts is about images"),
        (["photos/1.png", "--texts", "a", "--classes", "b"], "one question at a time"),
        (["photos/1.png", "--texts", "a", "a"], "has 'a' twice"),
        (["photos/1.png", "--texts", "a", " "], "has an empty text"),
        (["photos/1.png", "--texts", "a", "--template", "{}"], "--template goes with --classes"),
        (["photos/1.png", "--texts", "a", "--top", "3"], "--top goes with --search"),
        (["photos/1.png", "--classes", "a", "--template", "a photo"], "needs one {}"),
        (["nowhere.png", "--search", "a"], "there is no such file"),
        (["--weights", "a", "--checkpoint", "b"], "one of them"),
        (["photos/1.png", "--search", "x", "--weights", "nothing.pt"], "there is no such file"),
    ]:
        given = argv if "--weights" in argv else [*trained, *argv]
        assert words in refused(sample.main, given), argv


# ---------------------------------------------------------------------- claims


def test_claims_run_and_are_skipped_when_done(scenes, monkeypatch, capsys):
    runs = []

    def short(main):
        def run(argv):
            runs.append(argv)
            words = WORDS if "labels" not in argv else []
            sizes = [*ENCODER, *words] if "--target" in argv else TINY
            return main([*argv, *sizes, "--batch-size", "16", "--val", "20"])

        return run

    monkeypatch.setattr(claims, "train", short(train.main))
    monkeypatch.setattr(claims, "predict", short(predict.main))
    argv = ["--seeds", "0", "1", "--max-steps", "1", "--epochs", "1", "--out", "out"]
    summary = claims.main(["objective", *argv])
    assert list(summary) == ["CLIP", "words"]
    assert summary == json.loads(Path("out/claim_objective.json").read_text())
    assert summary["words"]["command"].startswith("python clip/predict.py --epochs")
    assert "times as many multiply-adds" in capsys.readouterr().out
    assert len(runs) == 4
    summary = claims.main(["prompts", *argv, "--scenes", "20"])
    assert list(summary) == list(claims.TEMPLATES)
    assert len(runs) == 4  # the networks are those of before
    summary = claims.main(["robustness", *argv, "--scenes", "20"])
    assert list(summary) == ["CLIP", "supervised"]
    assert len(runs) == 6
    for row in summary.values():
        assert {f"accuracy_{kind.replace(' ', '_')}" for kind in claims.KINDS} < row.keys()
    assert "--target labels" in summary["supervised"]["command"]
    for claim in ("objective", "prompts", "robustness"):
        assert Path(f"out/claim_{claim}.png").exists()


def test_claim_of_batches(scenes, monkeypatch):
    runs = []
    monkeypatch.setattr(claims, "train", lambda argv: runs.append(argv) or train.main(
        [*argv, *TINY, "--val", "0"]))  # fmt: skip
    argv = ["--seeds", "0", "--max-steps", "1", "--epochs", "1", "--out", "out"]
    summary = claims.main(["batch", "--batches", "4", "16", *argv])
    assert list(summary) == ["4 pairs", "16 pairs"]
    rates = [float(run[run.index("--lr") + 1]) for run in runs]
    assert rates[1] == pytest.approx(2 * rates[0], rel=1e-2)
    assert Path("out/claim_batch.png").exists()


def test_changed_scenes():
    """The same shapes in the same places; only what the kind says is another."""
    plain, labels = claims.changed("as in training", 20, 48)
    wanted = world.draw(range(20), 48, seed=1)
    assert torch.equal(plain, wanted.pixels)
    assert torch.equal(labels, wanted.labels)
    inside = wanted.masks[:, 0][:, None].expand(-1, 3, -1, -1)
    everything = wanted.masks.any(1)[:, None].expand(-1, 3, -1, -1)
    for kind in claims.KINDS[1:]:
        pixels, same = claims.changed(kind, 20, 48)
        assert torch.equal(same, labels)
        apart = (pixels.float() - plain.float()).abs()
        within, around = apart[inside].mean(), apart[~everything].mean()
        if kind == "backgrounds":
            assert around > 20 > 5 > within
        elif kind == "colours":
            assert within > 30 > 10 > around
        else:
            assert min(within, around) > 12


def test_costs_of_the_objectives():
    price = claims.costs()
    assert price["CLIP"] > price["words"] > 1e6


@pytest.mark.slow
def test_quick_reaches_the_readmes_number():
    metrics = train.main(["--quiet"])
    assert metrics["test_match"] > 0.7
    assert metrics["test_zero_shot"] > 0.62
