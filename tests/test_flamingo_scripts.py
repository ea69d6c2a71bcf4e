"""The scripts of Flamingo: parts, training, resuming, measuring, samples, claims, bad input."""

import importlib
import io
import json
import math
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from conftest import torchrun
from helpers import weights
from PIL import Image

from clip.model import CLIP
from common.data.corpora import END, make_vocabulary
from common.data.shapes import draw
from flamingo import answering, claims, data, evaluate, parts, sample, train
from flamingo.data import Part, Words
from flamingo.model import SIZES, Flamingo, flamingo_small
from flamingo.questions import CAPTION, KINDS, MARK, ask, prompt_of
from gpt.model import GPT2

CLIP_SIZES = dict(embed_dim=8, image_size=16, vision_layers=(1, 1), vision_width=4, vision_heads=2,
                  patch_size=None, text_width=8, text_layers=1, text_heads=2, vocab_size=20,
                  stem_stride=2)  # fmt: skip
GPT_SIZES = dict(family="gpt2", context=96, d_model=16, num_layers=2, num_heads=2, d_head=8,
                 windows=[None])  # fmt: skip
CHUNKS, WHOLE = parts.CHUNKS, SIZES["flamingo_small"]
PARTS = ["--vision", "clip", "--language", "gpt"]
TINY = [*PARTS, "--limit", "24", "--val", "6", "--batch-size", "12", "--num-test", "12",
        "--steps", "4", "--every", "2", "--shots", "2", "--precision", "fp32",
        "--quiet"]  # fmt: skip


def make_small(patch):
    """Few scenes, few texts, and narrow new layers."""
    patch.setattr("common.data.shapes.NUM_SCENES", {"train": 60, "test": 30})
    patch.setattr(parts, "CHUNKS", 200)
    small = dict(width=12, resampler_layers=1, resampler_heads=2, d_head=4, num_heads=2)
    patch.setitem(SIZES, "flamingo_small", WHOLE | small)


@pytest.fixture(autouse=True)
def few_scenes(monkeypatch):
    make_small(monkeypatch)


def write_parts(seed=0, **sizes):
    """Runs of clip and of gpt that were never trained."""
    torch.manual_seed(seed)
    texts = [f"{MARK}{prompt_of(e)} {e.answer}" for some in ask(range(60), 0) for e in some]
    vocabulary = make_vocabulary(END.join(texts), "bpe", 400, ends=True)
    network = GPT_SIZES | dict(vocab_size=vocabulary["vocab_size"]) | sizes
    language = GPT2(**{k: v for k, v in network.items() if k != "family"} | dict(
        windows=(None,), dropout=0.0))  # fmt: skip
    vision = CLIP(**CLIP_SIZES)
    inputs = dict(mean=[0.4, 0.5, 0.6], std=[0.2, 0.25, 0.3])
    known = dict(clip=dict(network=CLIP_SIZES, tokenizer="", **inputs))
    known["gpt"] = vocabulary | dict(network=network)
    for (folder, facts), model in zip(known.items(), (vision, language), strict=True):
        name = "clip_small" if folder == "clip" else "gpt_tiny"
        flags = {"milestone": folder, "model": name}
        Path(folder).mkdir(exist_ok=True)
        content = {"config": {"flags": flags}, "dataset": facts, "model": model.state_dict()}
        torch.save(content, f"{folder}/last.pt")
    return vision.visual, language


@pytest.fixture(scope="module")
def trained_once(tmp_path_factory):
    """A folder with parts, and a short run around them."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        make_small(patch)
        write_parts()
        train.main([*TINY, "--run-dir", "run"])
    return folder


@pytest.fixture
def made(trained_once):
    """The same here; flags that name its checkpoint."""
    for name in ("clip", "gpt", "run"):
        shutil.copytree(trained_once / name, name)
    return ["--checkpoint", "run/last.pt"]


# ---------------------------------------------------------------------- training


def test_a_run_around_parts_that_are_there(capsys):
    vision, language = write_parts()
    found = train.main([flag for flag in TINY if flag != "--quiet"] + ["--run-dir", "run"])
    kinds = {f"test_{evaluate.named(kind)}" for kind in KINDS}
    more = {f"test_{k}" for k in ("accuracy", "guess", "blind", "loss", "margin", "caption_loss",
            "caption_blind_loss")}  # fmt: skip
    assert found.keys() == kinds | more | {"train_loss"}
    assert all(map(math.isfinite, found.values()))
    shares = [found[key] for key in kinds]
    assert found["test_accuracy"] == pytest.approx(sum(shares) / 6)
    said = capsys.readouterr().out
    assert "what the test set is asked, and the answers' shares:" in said
    assert "  count: 12 questions; " in said
    state = weights("run")
    for prefix, part in (("vision_encoder", vision), ("lang_encoder", language)):
        for name, value in part.state_dict().items():  # bit for bit
            assert torch.equal(state[f"{prefix}.{name}"], value), name
    moved = [float(v) for name, v in state.items() if name.endswith("_gate")]
    assert len(moved) == 4 and all(moved)
    facts = torch.load("run/last.pt")["dataset"]
    assert facts["mean"] == [0.4, 0.5, 0.6]  # as the encoder was trained
    rows = Path("run/metrics.jsonl").read_text().splitlines()
    assert len(rows) == 3 and "val_accuracy" in json.loads(rows[0])


def test_language_model_trained_along():
    _, language = write_parts()
    train.main([*TINY, "--tune-language", "--run-dir", "run"])
    state = weights("run")
    same = [torch.equal(state[f"lang_encoder.{n}"], v) for n, v in language.state_dict().items()]
    assert not all(same)
    assert torch.load("run/last.pt")["dataset"]["network"]["settings"]["frozen"] == [
        "vision_encoder"]  # fmt: skip


def in_process(calls):
    """What runs a part's script, in this process."""

    def run(script, argv):
        calls.append(script.parent.name)
        return importlib.import_module(f"{script.parent.name}.train").main(argv)

    return run


def test_parts_that_are_missing_are_trained_once(monkeypatch, capsys):
    calls = []
    monkeypatch.setattr(parts, "run_script", in_process(calls))
    flags = ["--limit", "24", "--val", "0", "--batch-size", "12", "--num-test", "6", "--shots", "2",
             "--max-steps", "2", "--size", "16"]  # fmt: skip
    found = train.main([*flags, "--run-dir", "one"])
    assert calls == ["clip", "gpt"]
    said = capsys.readouterr().out
    assert "first the image encoder, by clip, in runs/flamingo-parts/clip-" in said
    assert "first the language model, by gpt, in runs/flamingo-parts/gpt-" in said
    folders = sorted(path.name[:-7] for path in Path("runs/flamingo-parts").iterdir())
    assert folders == ["clip", "gpt"]
    (text,) = Path("data/cache").glob("flamingo-*.txt")
    assert text.read_text().count("Question: ") > 50
    again = train.main([*flags, "--quiet", "--run-dir", "two"])
    assert calls == ["clip", "gpt"] and again == found
    for name, value in weights("one").items():  # whoever trained the parts
        assert torch.equal(value, weights("two")[name]), name
    train.main([*flags, "--quiet", "--leave-out", "size", "--run-dir", "three"])
    assert calls == ["clip", "gpt", "gpt"]  # another text, the same images
    (place,) = Path("runs/flamingo-parts").glob("clip-*")
    named = ["--vision", str(place)]
    train.main([*flags[:-2], *named, "--quiet", "--run-dir", "four"])
    assert calls == ["clip", "gpt", "gpt"]
    assert torch.load("four/last.pt")["dataset"]["vision"]["image_size"] == 16


def test_a_run_that_is_stopped_goes_on_exactly(monkeypatch):
    write_parts()
    train.main([*TINY, "--run-dir", "whole"])
    count, whole = iter(range(100)), Flamingo.forward

    def forward(self, *given, **more):
        if self.training and next(count) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return whole(self, *given, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Flamingo, "forward", forward)
        with pytest.raises(SystemExit) as caught:
            train.main([*TINY, "--run-dir", "stopped"])
    assert caught.value.code == 130
    for path in ("clip/last.pt", "gpt/last.pt"):
        Path(path).unlink()  # the checkpoint holds all
    train.main(["--resume", "--run-dir", "stopped", "--quiet"])
    for name, value in weights("whole").items():
        assert torch.equal(value, weights("stopped")[name]), name
    rows = [
        Path(name, "metrics.jsonl").read_text().splitlines()[-1] for name in ("whole", "stopped")
    ]
    assert json.loads(rows[0]) == json.loads(rows[1])


def test_accumulation_changes_nothing():
    write_parts()
    flags = [*TINY, "--shots", "0"]  # rows of one image in both
    train.main([*flags, "--run-dir", "one"])
    train.main([*flags, "--accumulate", "3", "--run-dir", "three"])
    for name, value in weights("one").items():
        torch.testing.assert_close(value, weights("three")[name], rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize("more", [[], ["--fsdp"]])
def test_two_processes_do_what_one_does(more):
    write_parts()
    flags = [*TINY, "--shots", "0", "--num-test", "9"]
    done = torchrun(train.__file__, *flags, *more, "--run-dir", "two")
    assert done.returncode == 0, done.stderr[-2000:]
    one = train.main([*flags, "--run-dir", "one"])
    for name, value in weights("one").items():
        torch.testing.assert_close(value, weights("two")[name], rtol=1e-3, atol=2e-5)
    found = json.loads(Path("two/metrics.jsonl").read_text().splitlines()[-1])
    for key, value in one.items():
        assert found[key] == pytest.approx(value, rel=1e-3, abs=1e-3), key


def test_evaluate_gives_what_training_gave(made):
    row = json.loads(Path("run/metrics.jsonl").read_text().splitlines()[-1])
    found = train.main(["--evaluate", "run/last.pt", "--quiet", "--precision", "fp32"])
    for key, value in found.items():
        assert row[key] == pytest.approx(value), key


def test_kinds_left_out_are_asked_after_examples():
    write_parts(context=200)
    found = train.main(
        [*TINY, "--leave-out", "size", "count", "--run-dir", "run", "--max-steps", "1"]
    )
    assert {f"test_left_{n}" for n in (0, 4, 8)} <= found.keys()
    assert "test_size" not in found and "test_colour" in found


def test_whole_text_counts_where_it_is_asked_for():
    write_parts()
    one = train.main([*TINY, "--max-steps", "1", "--run-dir", "one"])
    two = train.main([*TINY, "--max-steps", "1", "--loss", "text", "--run-dir", "two"])
    assert one["train_loss"] != two["train_loss"]


def test_answers_are_right_where_greedy_decoding_writes_them(made):
    """What one pass with the right tokens says is what writing gives, after examples, too."""
    args = train.parse_args([*TINY])
    dev = train.Device(args)
    known, _, test = data.load(args, dev, 16)
    content = torch.load("run/last.pt")
    model = parts.build(content["dataset"])
    model.load_state_dict(content["model"])
    model.eval()
    words = Words(content["dataset"]["vocabulary"])
    support, asked = (Part(p, model, dev, words, 31) for p in (known, test))
    for kind in ("yes-no", CAPTION):
        for shots in (0, 2):
            places = data.chosen(asked, kind, 8)
            rows, examples, images = data.questions(asked, support, places, shots)
            written = []
            for row, own, image in zip(rows, examples, images, strict=True):
                tokens = [words.end, *(t for e in row[:-1] for t in words.chunk(e)[0])]
                chunk, begin = words.chunk(row[-1])
                seen = torch.cat([support.features(own[None]), asked.features(image.view(1, 1))], 1)
                with torch.no_grad():
                    state = model.begin(torch.tensor([[*tokens, *chunk[:begin]]]), features=seen)
                    found = answering.generate(model.step, state, torch.tensor(
                        [[*tokens, *chunk[:begin]]]), 8, words.end)[0]  # fmt: skip
                written.append(found == chunk[begin:-1])
            right, loss = evaluate.answer(model, words, asked, support, places, dev, shots)
            assert right.tolist() == written
            assert math.isfinite(loss)


def test_an_answer_by_the_truth_is_right(made, monkeypatch):
    """With logits that know what follows, all is right; with others nothing."""
    args = train.parse_args([*TINY])
    dev = train.Device(args)
    known, _, test = data.load(args, dev, 16)
    content = torch.load("run/last.pt")
    model = parts.build(content["dataset"])
    words = Words(content["dataset"]["vocabulary"])
    support, asked = (Part(p, model, dev, words, 31) for p in (known, test))
    whole, laid = data.lay, []
    monkeypatch.setattr(evaluate, "lay", lambda *a, **k: laid.append(whole(*a, **k)) or laid[-1])

    class Oracle(torch.nn.Module):
        def __init__(self, shift):
            super().__init__()
            self.shift = shift

        def forward(self, tokens, features=None):
            size = words.vocabulary.tokenizer.get_vocab_size()
            following = (laid[-1][1].clamp(min=0) + self.shift) % size
            return torch.nn.functional.one_hot(following, size).float()

    places = data.chosen(asked, "colour", 12)
    for shift, want in ((0, 1.0), (1, 0.0)):
        right, _ = evaluate.answer(Oracle(shift), words, asked, support, places, dev, 1)
        assert evaluate.mean(right) == want


# ---------------------------------------------------------------------- the user's own data


def test_questions_of_the_users_own(monkeypatch):
    Path("photos").mkdir()
    entries = []
    for n in range(12):
        colour = ("red", "blue")[n % 2]
        Image.new("RGB", (20, 20), colour).save(f"photos/{n}.png")
        entries.append(dict(image=f"photos/{n}.png", question="what colour is it?", answer=colour))
    Path("own.json").write_text(json.dumps(entries))
    calls = []
    monkeypatch.setattr(parts, "run_script", in_process(calls))
    flags = ["--data", "vqa:own.json", "--size", "16", "--max-steps", "1", "--batch-size", "4",
             "--val", "2", "--quiet"]  # fmt: skip
    found = train.main([*flags, "--run-dir", "run"])
    assert {"test_question", "test_guess", "test_blind"} <= found.keys()
    assert calls == ["clip", "gpt"]
    (table,) = Path("data/cache").glob("flamingo-*.csv")
    lines = table.read_text().splitlines()
    assert lines[0] == "image,caption" and len(lines) == 1 + 8  # of the training set alone
    assert lines[1].endswith((",what colour is it? red", ",what colour is it? blue"))
    found = sample.main(["photos/0.png", "--question", "what colour is it?", "--checkpoint",
                         "run/last.pt", "--out", "out"])  # fmt: skip
    assert list(found) == ["photos/0.png"]
    sample.main(["--checkpoint", "run/last.pt", "--out", "test"])
    assert Path("test/looked.png").exists()


# ---------------------------------------------------------------------- samples


def scene(name="scene.png", index=3):
    Image.fromarray(draw([index], 32).pixels[0].permute(1, 2, 0).numpy()).save(name)
    return name


def test_questions_and_captions(made, capsys):
    one, two = scene(), scene("other.png", 4)
    found = sample.main([one, two, "--question", "what colour is the star?", *made, "--out", "a"])
    assert list(found) == [one, two]
    assert Path("a/looked.png").exists()
    assert f"{one}: {found[one]}" in capsys.readouterr().out
    found = sample.main([one, "--caption", *made, "--length", "3", "--out", "b"])
    assert list(found) == [one]
    found = sample.main([*made, "--out", "c"])
    assert len(found) == 12 and Path("c/looked.png").exists()
    drawn = [sample.main([one, "--caption", *made, "--temperature", "2", "--seed", str(n), "--out",
                          f"d{n}{k}"]) for k in (0, 1) for n in (1, 2)]  # fmt: skip
    assert drawn[0] == drawn[2] and drawn[0] != drawn[1]


def test_an_answer_is_that_of_the_model(made):
    speaker = sample.Speaker(sample.parse_args([scene(), "--caption", *made]))
    text = "<image>Question: what colour is the star? Answer:"
    tokens, images = speaker.words.prompt(text), speaker.read([Path("scene.png")])
    facts = speaker.facts
    pixels = draw([3], 32).pixels.float() / 255
    middle = torch.nn.functional.interpolate(pixels, (16, 16), mode="bilinear", antialias=True)
    want = (middle - torch.tensor(facts["mean"]).view(3, 1, 1)) / torch.tensor(
        facts["std"]).view(3, 1, 1)  # fmt: skip
    torch.testing.assert_close(images, want, atol=0.03, rtol=0)
    written, so_far = [], torch.tensor([tokens])
    with torch.no_grad():
        for _ in range(5):
            logits = speaker.model(so_far, images[None])[0, -1]
            logits[speaker.words.mark] = -math.inf
            if (token := int(logits.argmax())) == speaker.words.end:
                break
            written.append(token)
            so_far = torch.cat([so_far, torch.tensor([[token]])], 1)
    found = answering.write(speaker.model, speaker.words, tokens, images, length=5)
    assert found == written


def test_where_it_looked(made):
    speaker = sample.Speaker(sample.parse_args([scene(), "--caption", *made]))
    tokens = speaker.words.prompt("<image>Output: a star <image>Output:")
    images = speaker.read([Path("scene.png")] * 2)
    maps = answering.looked_at(speaker.model, speaker.words, tokens, [5, 6, 7], images)
    assert maps.shape == (3, 16)
    torch.testing.assert_close(maps.sum(1), torch.ones(3))
    assert not any(layer.attn.recording for layer in speaker.model.gated)
    assert answering.as_map(maps[0]).shape == (4, 4)
    assert answering.as_map(torch.arange(10.0)).tolist()[0] == [1, 2, 3]  # without a class token
    with torch.no_grad():  # latents that all look at one place
        attention = speaker.model.perceiver.layers[-1][0]
        attention.to_kv.weight.zero_()
    maps = answering.looked_at(speaker.model, speaker.words, tokens, [5], images)
    torch.testing.assert_close(maps, torch.full((1, 16), 1 / 16))


def test_few_shot_prompts(made, capsys, refused):
    files = [scene(f"{n}.png", n) for n in range(3)]
    shots = [dict(image=files[0], question="how many shapes are there?", answer="one"),
             dict(image=files[1], question="how many shapes are there?", answer="two"),
             dict(image=files[2], question="how many shapes are there?")]  # fmt: skip
    Path("shots.json").write_text(json.dumps(shots))
    found = sample.main(["--few-shot", "shots.json", *made, "--out", "a"])
    assert list(found) == ["2.png"] and Path("a/looked.png").exists()
    ask_one = ("<image>Question: how many shapes are there? Answer: {}<image>Question: how many "
               "shapes are there? Answer:")  # fmt: skip
    speaker = sample.Speaker(sample.parse_args([*made, files[0], "--caption"]))
    tokens = [speaker.words.end]
    for one in shots[:-1]:
        tokens += speaker.words.chunk(sample.Entry("answer", one["question"], one["answer"]))[0]
    tokens += speaker.words.prompt(ask_one.split("{}")[1])[1:]
    images = speaker.read([Path(file) for file in files])
    assert speaker.answer(tokens, images)[0] == found["2.png"]
    Path("captions.json").write_text(json.dumps([dict(image=files[0], caption="a star"),
                                                 dict(image=files[1])]))  # fmt: skip
    assert list(sample.main(["--few-shot", "captions.json", *made, "--out", "b"])) == ["1.png"]
    Path("text.json").write_text(json.dumps([dict(question="one?", answer="two"),
                                             dict(question="three?")]))  # fmt: skip
    assert list(sample.main(["--few-shot", "text.json", *made, "--out", "c"])) == ["three?"]
    for bad, words in (
        ([shots[1], shots[0]], "is the last one and has an answer"),
        ([shots[2], shots[2]], "has no answer: only the last one is answered"),
        ([shots[0] | dict(image="gone.png"), shots[2]], "names gone.png"),
        ([dict(caption="a star"), shots[2]], "neither an image nor a question"),
        ([dict(image=files[0], question="")], "an empty question"),
        (shots[:1] * 9 + shots[2:], "and the language model sees 96"),
    ):
        Path("bad.json").write_text(json.dumps(bad))
        assert words in refused(sample.main, ["--few-shot", "bad.json", *made, "--out", "d"])
    assert "no file" in refused(sample.main, ["--few-shot", "gone.json", *made])


def test_prompts_with_marks(made, capsys, refused):
    one, two = scene(), scene("other.png", 4)
    prompt = "<image>Output: a red star <image>Output:"
    found = sample.main([one, two, "--prompt", prompt, *made, "--out", "a"])
    assert list(found) == [prompt]
    line = refused(sample.main, [one, "--prompt", prompt, *made])
    assert "the prompt has 2 image marks, but 1 image is named" in line
    line = refused(sample.main, ["--prompt", prompt, *made])
    assert "the prompt has 2 image marks, but 0 images are named" in line
    line = refused(sample.main, [one, two, "--prompt", "<image>Output:", *made])
    assert "other.png has no mark in the prompt" in line
    line = refused(sample.main, [one, "--prompt", "Output:", *made])
    assert "the images have no marks in the prompt" in line


def test_no_image_is_the_language_model(made, capsys):
    speaker = sample.Speaker(sample.parse_args([*made, "--prompt", "Output:"]))
    tokens = speaker.words.prompt("Output:")
    state = speaker.model.lang_encoder.new_cache()
    start, written = torch.tensor([tokens]), []
    with torch.no_grad():
        while len(written) < 6:
            logits, state = speaker.model.lang_encoder.step(start, state)
            logits[:, speaker.words.mark] = -math.inf
            if (token := int(logits.argmax())) == speaker.words.end:
                break
            written.append(token)
            start = torch.cat([start, torch.tensor([[token]])], 1)
    capsys.readouterr()
    found = sample.main(["--prompt", "Output:", *made, "--length", "6"])
    assert found == {"Output:": speaker.words.text(written)}
    assert "the language model alone writes" in capsys.readouterr().err
    found = sample.main(["--question", "is there a star?", *made, "--length", "2"])
    assert list(found) == ["is there a star?"]
    assert "(no image: the language model alone)" in capsys.readouterr().out
    assert not list(Path("run").glob("samples*"))


def test_interactive(made, monkeypatch, capsys):
    name = scene()
    typed = f"is there a star?\n\n{name}\nhow many shapes are there?\n" + "a" * 5000 + "\n"

    class Stdin:
        buffer = io.BytesIO(typed.encode() + b"\xff\xfe\n")

    monkeypatch.setattr("sys.stdin", Stdin)
    assert sample.main(["--interactive", *made, "--length", "3"]) == {}
    printed = capsys.readouterr()
    assert len(printed.out.splitlines()) == 3  # what was opened, and two answers
    assert "too long a question" in printed.err and "not UTF-8" in printed.err


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["x.png"], "say what to do with the images"),
        (["x.png", "--question", "a?", "--caption"], "one of them"),
        (["--caption"], "--caption describes images"),
        (["--few-shot", "a.json", "x.png"], "names its images itself"),
        (["x.png", "--question", " "], "--question is empty"),
        (["x.png", "--prompt", ""], "--prompt is empty"),
        (["x.png", "y.png", "--interactive"], "one image at a time"),
        (["--interactive", "--out", "a"], "writes no files"),
        (["--question", "a?", "--data-dir", "b"], "--data-dir"),
        (["nowhere.png", "--caption"], "nowhere.png"),
        (["text.png", "--caption"], "text.png is not a readable image"),
        (["x.png", "--caption", "--length", "0"], "--length"),
        (["x.png", "--caption", "--temperature", "-1"], "--temperature"),
    ],
)
def test_bad_flags_of_samples(argv, words, made, refused):
    scene("x.png"), scene("y.png")
    Path("text.png").write_text("no image")
    assert words in refused(sample.main, [*argv, *made])
    assert not list(Path("run").glob("samples*"))


def test_resampler_and_gates_learn_at_rates_of_their_own():
    """In our own recipe; in the paper's all learn alike, and of the gated layers' matrices alone
    decay."""
    write_parts()
    found, model = {}, flamingo_small()
    for name, flags in (("ours", []), ("paper", ["--paper", "--model", "flamingo_small", *PARTS])):
        args = train.parse_args([*flags, "--quiet"])
        groups = train.make_optimizer(args, model).param_groups
        names = {id(p): name for name, p in model.named_parameters()}
        found[name] = {names[id(p)]: (g["lr"] / args.lr, g["weight_decay"])
                       for g in groups for p in g["params"]}  # fmt: skip
        assert groups[0]["lr"] == args.lr  # which is what is printed
    learned = {name for name, p in model.named_parameters() if p.requires_grad}
    assert found["ours"].keys() == found["paper"].keys() == learned
    assert found["ours"]["perceiver.layers.0.0.to_q.weight"] == (pytest.approx(0.1), 0.0)
    assert found["ours"]["gated.0.attn_gate"] == (pytest.approx(10.0), 0.0)
    assert found["ours"]["gated.0.attn.to_q.weight"] == (1.0, 0.1)
    assert found["ours"]["gated.0.attn.norm.weight"] == (1.0, 0.0)
    assert {rate for rate, _ in found["paper"].values()} == {1.0}


# ---------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--leave-out", "taste"], "unknown kind 'taste'"),
        (["--leave-out", *KINDS, "--data", "flickr8k"], "captions alone"),
        (["--vision", "nowhere"], "there is no such run"),
        (["--language", "nowhere"], "there is no such run"),
        (["--vision", "gpt"], "is a checkpoint of gpt: name one of clip/train.py"),
        (["--language", "clip"], "is a checkpoint of clip: name one of gpt/train.py"),
        (["--vision", "clip", "--size", "24"], "--size has no meaning here"),
        (["--vision", "clip", "--vision-epochs", "2"], "names an encoder that is trained"),
        (["--language", "gpt", "--language-steps", "2"], "names a language model that is trained"),
        (["--size", "20"], "--size 20: images of 20 pixels"),
        (["--no-gates", "--gate-rate", "2"], "--gate-rate is of the gates"),
        (["--model", "flamingo_3b"], "flamingo_3b takes trained parts: name runs"),
        (["--model", "flamingo_3b", "--vision", "clip"], "with --language"),
        (["--model", "flamingo_3b", "--size", "24"], "--size has no meaning here"),
        ([*PARTS, "--accumulate", "5"], "can't be cut into 1 x 5 parts"),
        (["--data", "shapes:0"], "N of shapes:N"),
        (["--riddles", "1"], "--riddles"),
    ],
)
def test_bad_flags(argv, words, refused):
    write_parts()
    assert words in refused(train.main, ["--quiet", "--limit", "24", "--val", "0", *argv])
    assert not Path("runs").exists()


def test_parts_that_do_not_fit(refused):
    write_parts()
    content = torch.load("gpt/last.pt")
    torch.save(content | {"dataset": content["dataset"] | {"classes": ["a"]}}, "gpt/last.pt")
    assert "of another script there" in refused(train.main, [*TINY])
    content["dataset"]["network"]["d_model"] = 32
    torch.save(content, "gpt/last.pt")
    assert "doesn't fit the sizes" in refused(train.main, [*TINY])


# ---------------------------------------------------------------------- claims


@pytest.fixture
def tiny_claims(monkeypatch):
    """Trainings of two steps around parts that are there."""
    write_parts(context=160)
    monkeypatch.setattr(claims, "shared_flags", lambda args: [*TINY, "--max-steps", "2"])
    monkeypatch.setattr(claims, "NUMBERS", (0, 2))
    monkeypatch.setitem(claims.SHOWN, "shots", {"right_0_shots": True, "right_2_shots": True})
    monkeypatch.setattr(claims, "LATENTS", (4, 8))
    for claim in ("shots", "resampler"):
        arms = list(claims.CLAIMS[claim].items())[:2]
        monkeypatch.setitem(claims.CLAIMS, claim, dict(arms))
    monkeypatch.setattr(claims, "LEFT", claims.LEFT[:2])
    return ["--out", "out", "--seeds", "0"]


@pytest.mark.parametrize("claim", claims.CLAIMS)
def test_claims(claim, tiny_claims, capsys):
    summary = claims.main([claim, *tiny_claims])
    assert Path(f"out/claim_{claim}.png").exists()
    assert json.loads(Path(f"out/claim_{claim}.json").read_text()) == summary
    said = capsys.readouterr().out
    for arm, metrics in summary.items():
        assert f"{arm}: " in said
        assert "python flamingo/train.py" in metrics["command"]
        for key in claims.SHOWN[claim]:
            assert math.isfinite(metrics[key]["mean"]), key
    if claim == "gates":
        assert {f"gate_{kind}_{n}" for kind in ("attn", "ff") for n in (0, 1)} <= summary[
            "tanh gates"].keys()  # fmt: skip
        assert "gate_attn_0" not in summary["no gates"]
    before = claims.train
    claims.train = None  # all is done
    try:
        assert claims.main([claim, *tiny_claims]) == summary
    finally:
        claims.train = before


def test_claims_measure_what_training_measured(tiny_claims):
    summary = claims.main(["frozen", *tiny_claims])
    (folder,) = Path("runs/flamingo-claims").glob("frozen-*")
    opened = claims.Opened(folder, claims.parse_args(["frozen"]))
    right = [opened.right(kind, 0) for kind in KINDS]
    assert sum(right) / 6 == pytest.approx(summary["frozen"]["test_accuracy"]["mean"])


# ---------------------------------------------------------------------- that it learns


@pytest.mark.slow
def test_quick_answers_better_than_guessing():
    """QUICK, parts and all: every kind of question 25 points above the most frequent answer."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("common.data.shapes.NUM_SCENES", {"train": 10_000, "test": 1_000})
        patch.setattr(parts, "CHUNKS", CHUNKS)
        patch.setitem(SIZES, "flamingo_small", WHOLE)
        found = train.main(["--quiet"])
    assert found["test_margin"] >= 0.25
