"""Flamingo's questions, rows and vocabulary: what is asked is true, and reproducible."""

import collections
import json
import random
import re
from pathlib import Path

import pytest
import torch
from PIL import Image

from common.data.captions import CAPTION_SETS, load_captions
from common.data.corpora import END, make_vocabulary
from common.data.drawing import CLASSES
from common.data.shapes import COLOURS, draw, random_numbers
from flamingo import data, evaluate, questions, train
from flamingo.data import Entries, Interleaved, Part, Words, lay
from flamingo.model import MODELS
from flamingo.questions import CAPTION, KINDS, MARK, WAYS, Entry, ask, prompt_of


def entries_of(count=300, seed=0):
    return ask(range(count), seed)


def truth(scenes, world, index, entry):
    """The answer to a question, from what `draw` says of a scene; None where it has several."""
    count = int(world["count"][index])
    objects = [(CLASSES[scenes.shapes[index, k]], list(COLOURS)[scenes.colours[index, k]], k)
               for k in range(count)]  # fmt: skip
    if entry.kind == "count":
        return ["one", "two", "three"][count - 1]
    words = set(re.findall(r"\w+", entry.question))
    shape = words & set(CLASSES)
    colour = words & set(COLOURS)
    own = [o for o in objects if (not shape or o[0] in shape) and (not colour or o[1] in colour)]
    if entry.kind == "yes-no":
        return "yes" if own else "no"
    if len(own) != 1:
        return None
    ((name, tone, k),) = own
    if entry.kind in ("colour", "shape"):
        return tone if entry.kind == "colour" else name
    if entry.kind == "size":
        radius = float(world["radius"][index, k])
        return "small" if radius < 0.12 else "large" if radius > 0.3 else "medium"
    x, y = (world["centre"][index, k] - 0.5).tolist()
    return ("left" if x < 0 else "right") if abs(x) > abs(y) else ("top" if y < 0 else "bottom")


def test_answers_are_true():
    kinds = collections.Counter()
    for seed in (0, 1):
        scenes, world = draw(range(60), 8, seed), random_numbers(list(range(60)), seed, 3)
        for index, entries in enumerate(entries_of(60, seed)):
            assert entries[0] == Entry(CAPTION, "", scenes.captions[index])
            for entry in entries[1:]:
                assert truth(scenes, world, index, entry) == entry.answer, (index, seed, entry)
                kinds[entry.kind] += 1
    assert kinds.keys() == set(KINDS)


def test_questions_are_said_in_several_ways_and_always_the_same():
    found = entries_of()
    assert found == entries_of()
    assert found[7] == ask([7], 0)[0]  # whatever stands beside
    assert found != entries_of(seed=1)
    texts = collections.defaultdict(set)
    for entries in found:
        for kind, question, _ in entries[1:]:
            words = "|".join([*CLASSES, *COLOURS])
            about = re.compile(rf"(the|an?) ((?:{words})(?: thing| (?:{words}))?)")
            texts[kind].add(about.sub("{}", question))
    for kind, ways in WAYS.items():
        assert len(ways) >= 4
        assert texts[kind] == set(ways)


def test_every_answer_occurs_and_yes_is_as_frequent_as_no():
    counts = collections.defaultdict(collections.Counter)
    for entries in entries_of(600):
        for kind, _, answer in entries:
            counts[kind][answer] += 1
    assert set(counts["colour"]) == set(COLOURS)
    assert set(counts["shape"]) == set(CLASSES)
    assert set(counts["size"]) == {"small", "medium", "large"}
    assert set(counts["count"]) == {"one", "two", "three"}
    assert set(counts["position"]) == {"left", "right", "top", "bottom"}
    yes, no = counts["yes-no"]["yes"], counts["yes-no"]["no"]
    assert abs(yes - no) / (yes + no) < 0.05


def test_close_calls_are_not_asked():
    assert [questions.size_of(r) for r in (0.1, 0.119, 0.13, 0.29, 0.32)] == [
        "small", None, "medium", None, "large"]  # fmt: skip
    assert questions.position_of(0.2, 0.5) == "left"
    assert questions.position_of(0.9, 0.7) == "right"
    assert questions.position_of(0.5, 0.3) == "top"
    assert questions.position_of(0.55, 0.9) == "bottom"
    assert questions.position_of(0.45, 0.5) is None  # hardly off the middle
    assert questions.position_of(0.2, 0.25) is None  # in a corner


# ---------------------------------------------------------------------- rows


@pytest.fixture
def few_scenes(monkeypatch):
    monkeypatch.setattr("common.data.shapes.NUM_SCENES", {"train": 60, "test": 20})


FLAGS = ["--quiet", "--precision", "fp32", "--val", "0", "--batch-size", "12"]


def facts(texts=None):
    texts = texts or [f"{MARK}{prompt_of(e)} {e.answer}" for some in entries_of(60) for e in some]
    return make_vocabulary(END.join(texts), "bpe", 400, ends=True)


def parts(*argv):
    args = train.parse_args([*FLAGS, *argv])
    dev = train.Device(args)
    sets = data.load(args, dev, 24)
    model, words = MODELS["flamingo_small"]().eval(), Words(facts())
    return [Part(part, model, dev, words, 40) for part in sets if part], words, args, dev


def test_rows_are_text_with_marks_and_what_follows_is_counted(few_scenes):
    words = Words(facts())
    rows = [[Entry("colour", "what colour is the star?", "red"), Entry(CAPTION, "", "a red star")],
            [Entry("count", "how many shapes are there?", "three")]]  # fmt: skip
    tokens, following = lay(rows, words, whole=False)
    assert tokens.shape == following.shape
    text = words.vocabulary.decode(tokens[0].tolist())
    assert text == (f"{END}{MARK}Question: what colour is the star? Answer: red{END}"
                    f"{MARK}Output: a red star")  # fmt: skip
    counted = [words.vocabulary.decode([t]) for t in following[0].tolist() if t != -100]
    assert "".join(counted) == f" red{END} a red star{END}"
    for row in range(2):
        for t in range(tokens.shape[1] - 1):
            if following[row, t] != -100:
                assert following[row, t] == tokens[row, t + 1]
    whole = lay(rows, words, whole=True)[1]
    counted = [words.vocabulary.decode([t]) for t in whole[0].tolist() if t != -100]
    assert "".join(counted) == text.replace(MARK, "")[1:] + END
    last = lay(rows, words, whole=False, last=True)[1]
    counted = [words.vocabulary.decode([t]) for t in last[0].tolist() if t != -100]
    assert "".join(counted) == f" a red star{END}"
    assert (tokens == words.mark).sum(1).tolist() == [2, 1]
    assert (tokens[1, len(words.chunk(rows[1][0])[0]) + 1 :] == words.end).all()


def test_prompts_of_the_users_are_read_as_rows_are():
    words = Words(facts())
    entry = Entry("colour", "what colour is the star?", "red")
    chunk, begin = words.chunk(entry)
    for text in ("<image>Question: what colour is the star? Answer:",
                 " <image> Question: what colour is the star? Answer: "):  # fmt: skip
        assert words.prompt(text) == [words.end, *chunk[:begin]]
    assert words.prompt("no image").count(words.mark) == 0
    assert words.prompt(f"a{MARK}b") == words.prompt("ab")  # none is smuggled in
    assert words.text(chunk) == "<image>Question: what colour is the star? Answer: red"


def test_a_vocabulary_without_the_mark_is_refused(refused):
    characters = make_vocabulary("abc", "chars", 10)
    assert "no token for the mark" in refused(Words, characters)
    no_end = make_vocabulary(f"abc{MARK}", "chars", 10)
    assert "no end of a document" in refused(Words, no_end)


def test_features_are_those_of_the_images(few_scenes):
    (known, test), *_ = parts()
    places = torch.tensor([[3, 5], [59, 3]])
    images = known.part.images.examples(places.flatten())[0]
    want = known.model.look(images.view(2, 2, *images.shape[1:]))
    torch.testing.assert_close(known.features(places), want)
    known.known = None  # too many to keep: they are looked at anew
    torch.testing.assert_close(known.features(places), want)
    assert len(test.known) == 20


def test_entries_that_are_too_long_are_left_out(few_scenes, refused, capsys):
    (part, test), words, args, dev = parts()
    sizes = [len(words.chunk(e)[0]) for some in part.part.captions for e in some]
    assert (max(part.longest.values()), part.left) == (max(sizes), 0)
    short = Part(part.part, part.model, dev, words, 14)
    assert short.left == sum(size > 14 for size in sizes) > 0
    assert max(short.longest.values()) == 14
    places = [p for groups in short.groups.values() for group in groups for p in group]
    assert len(places) == len(sizes) - short.left
    assert all(len(words.chunk(short.entry(p))[0]) <= 14 for p in places)
    dev.quiet = False
    data.say_left([part, short], 14, dev)
    assert f"note: {short.left:,} questions and captions of more than 14" in capsys.readouterr().out
    none = Part(part.part, part.model, dev, words, 3)
    assert "nothing that is said of the train images" in refused(data.say_left, [none], 3, dev)
    model = part.model
    assert data.room_for(model, args) == 255 // 2
    assert data.room_for(model, args.but(shots=8)) == 255 // 9
    assert evaluate.shots_that_fit(model, test, part, "size") == [0, 4, 8]
    del part.groups["count"]
    assert evaluate.shots_that_fit(model, test, part, "count") == [0]  # there are no examples
    assert evaluate.shots_that_fit(model, part, part, "size") == []
    model.lang_encoder.context = 5 * max(part.longest["size"], test.longest["size"]) + 1
    assert evaluate.shots_that_fit(model, test, part, "size") == [0, 4]


def test_training_rows(few_scenes):
    (part, _), words, args, dev = parts("--shots", "3", "--riddles", "0.5")
    batches = Interleaved(part, words, args, dev, 20)
    assert batches.lengths == [1, 2, 3, 4]
    seen, rows = collections.Counter(), list(batches)
    assert len(rows) == len(batches) == 20
    for row in rows:
        count, images = row.features.shape[:2]
        assert count * images == 12  # images of a step
        assert ((row.tokens == words.mark).sum(1) == images).all()
        seen[images] += 1
    assert seen.keys() == {1, 2, 3, 4}
    batches.seek(0, 15)
    for one, other in zip(batches, rows[15:], strict=True):
        assert torch.equal(one.tokens, other.tokens)
        assert torch.equal(one.features, other.features)
    batches.seek(1, 0)
    assert not torch.equal(next(iter(batches)).features.sum(), rows[0].features.sum())
    again = list(Interleaved(part, words, args.but(seed=1), dev, 3))
    assert len(again) == 3


SIDES = ("left", "right", "top", "bottom")


def test_kinds_come_in_one_after_another(few_scenes):
    (part, _), words, args, dev = parts("--introduce", "0.5", "--steps", "28", "--shots", "0")
    kinds = data.trained_kinds(part, args)
    assert kinds == ["position", "colour", "size", "count", "shape", "yes-no", CAPTION]
    for step, count in ((0, 1), (1, 1), (2, 2), (12, 7), (13, 7), (14, 7), (27, 7)):
        assert data.introduced(kinds, step, 28, 0.5) == kinds[:count]
    assert data.introduced(kinds, 0, 28, 0.0) == kinds
    rows = list(Interleaved(part, words, args, dev, 28))
    for step, row in enumerate(rows[:4]):
        text = words.text(row.tokens.flatten().tolist())
        assert any(f"Answer: {side}" in text for side in SIDES), step
        assert any(f"Answer: {colour}" in text for colour in COLOURS) == (step > 1), step
        assert "how many" not in text and "Output" not in text
    assert any("how many" in words.text(row.tokens.flatten().tolist()) for row in rows[14:])


def test_shares_of_kinds():
    """What is learned late comes more often; while kinds come in, the newest as often as all
    others."""
    kinds = ["position", "colour", "shape", CAPTION]
    assert data.shares_of(kinds, False) == [1, 1, data.SHARES["shape"], data.SHARES[CAPTION]]
    assert data.shares_of(kinds[:3], True) == [1, 1, 2]
    assert data.shares_of(kinds, True)[3] == 2 + data.SHARES["shape"]
    assert data.shares_of(kinds[:1], True) == [1]
    assert data.shares_of([CAPTION], False) == [data.SHARES[CAPTION]]
    assert data.SHARES["shape"] > 1 > data.SHARES["count"] > data.SHARES[CAPTION]


def test_rows_of_one_kind_and_riddles(few_scenes):
    (part, _), *_ = parts()
    draws, kinds = random.Random(0), list(part.groups)
    alone, riddles, answers = 0, 0, collections.Counter()
    for _ in range(3000):
        places, riddle = data.draw_row(part, kinds, 3, 0.4, draws)
        found = [part.entry(place) for place in places]
        same = len({e.kind for e in found}) == 1
        alone += same
        riddles += riddle is not None
        assert riddle is None or (same and found[0].kind != CAPTION)
        answers.update(e.answer for e in found if e.kind == "count")
        shown = data.entries_of(part, places, riddle)
        assert riddle is None or [e.question for e in shown] == [f"{riddle}?"] * 3
        assert [e.answer for e in shown] == [e.answer for e in found]
    assert 0.45 < alone / 3000 < 0.57
    assert 0.15 < riddles / 3000 < 0.23  # of a half, nearly all but captions, 0.4
    shares = [n / sum(answers.values()) for n in answers.values()]
    assert len(shares) == 3 and max(shares) < 0.38  # though most scenes have one shape


def test_kinds_left_out_are_in_no_row_and_no_text(few_scenes):
    (part, _), words, args, dev = parts("--leave-out", "size", "yes-no")
    assert set(data.trained_kinds(part, args)) == {*KINDS, CAPTION} - {"size", "yes-no"}
    text = data.text_for_language(part.part, args, 500)
    assert "what colour" in text and "Output: " in text
    assert "medium" not in text and "Answer: yes" not in text
    assert text == data.text_for_language(part.part, args, 500)
    for row in Interleaved(part, words, args, dev, 5):
        assert "medium" not in words.text(row.tokens.flatten().tolist())


def test_text_for_the_language_model(few_scenes):
    """Half of it rows, which have a mark of an image each; half captions and questions, without
    marks, of the same scene."""
    (part, _), _, args, _ = parts()
    text = data.text_for_language(part.part, args, 600)
    documents = text.strip("\n").split("\n<|endoftext|>\n")
    assert len(documents) >= 600
    assert not any("\n" in document for document in documents)
    by_scene = [{f"{prompt_of(e)} {e.answer}" for e in some} for some in part.part.captions]
    known, scenes, marked, told = set().union(*by_scene), [], 0, 0
    for document in documents:
        if document[0] == MARK:
            marked += 1
            said = document[1:]
            scenes = [i for i, some in enumerate(by_scene) if said in some]  # captions may repeat
            assert said in known or re.match(r"Question: \w+\? Answer: \w+$", said)  # a riddle
        else:
            told += 1
            assert document.startswith("Question: ")
            scenes = [i for i in scenes if document in by_scene[i]]
            assert scenes, document
    assert 0.2 < told / (told + marked) < 0.8
    assert any(re.match(rf"{MARK}Question: \w+\? Answer: \w+$", some) for some in documents)


def test_tests_are_balanced_and_the_distribution_is_told(few_scenes):
    (_, test), *_ = parts()
    for kind in KINDS:
        places = data.chosen(test, kind, 30)
        counts = collections.Counter(test.entry(place).answer for place in places)
        assert len(set(counts.values())) == 1, kind  # guessing one answer gets 1 of them
        assert data.guess(test, places) == pytest.approx(1 / len(counts))
        assert places == data.chosen(test, kind, 30)
    said = data.describe(test, 30)
    assert "the test set" in said
    assert re.search(r"yes-no: 30 questions; (yes|no) 50%, (yes|no) 50%", said)


def test_examples_before_questions_are_of_their_kind_and_of_training(few_scenes):
    (known, test), *_ = parts()
    places = data.chosen(test, "size", 12)
    rows, examples, images = data.questions(test, known, places, 4)
    assert examples.shape == (len(places), 4) and images.tolist() == [i for i, _ in places]
    for row, own, place in zip(rows, examples.tolist(), places, strict=True):
        assert [entry.kind for entry in row] == ["size"] * 5
        assert row[-1] == test.entry(place)
        for entry, image in zip(row[:-1], own, strict=True):
            assert entry in known.part.captions[image]
    rows, examples, _ = data.questions(test, known, places, 0)
    assert examples.shape == (len(places), 0) and all(len(row) == 1 for row in rows)


# ---------------------------------------------------------------------- other sources


def photos(count=6, folder="photos"):
    Path(folder).mkdir(exist_ok=True, parents=True)
    for number in range(count):
        colour = tuple(torch.randint(0, 256, (3,)).tolist())
        Image.new("RGB", (20, 16), colour).save(f"{folder}/{number}.png")
    return [f"{folder}/{number}.png" for number in range(count)]


def vqa_file(entries=None, name="questions.json"):
    files = photos()
    entries = entries or [dict(image=file, question=f"what is {n}?", answer=f"it is {n % 2}")
                          for n, file in enumerate(files)]  # fmt: skip
    Path(name).write_text(json.dumps(entries))
    return f"vqa:{name}"


def loaded(name):
    args = train.parse_args([*FLAGS, "--data", name, "--size", "16"])
    return data.load(args, train.Device(args), 16)


def test_questions_of_the_users_own():
    known, _, test = loaded(vqa_file())
    assert len(known) + len(test) == 6 and len(test) == 1
    entries = [entry for part in (known, test) for some in part.captions for entry in some]
    assert sorted(e.question for e in entries) == [f"what is {n}?" for n in range(6)]
    assert {e.kind for e in entries} == {"question"}
    for path, some in zip(known.paths, known.captions, strict=True):
        assert some[0].question == f"what is {Path(path).stem}?"  # beside its own image
    files = photos()
    parts = [dict(image=files[0], caption="a  red\nwall"),
             dict(image=files[0], question="is it red?", answer=True, kind="yes or no"),
             dict(image=files[1], question="how many?", answer=3, split="val"),
             dict(image=files[2], question=f"a{MARK}b{END}?", answer=1, split="test")]  # fmt: skip
    known, val, test = loaded(vqa_file(parts))
    assert (len(known), val, len(test)) == (1, None, 1)
    assert known.captions == [[Entry(CAPTION, "", "a red wall"),
                               Entry("yes or no", "is it red?", "True")]]  # fmt: skip
    assert test.captions[0][0].question == "a b ?"
    Path("lines.jsonl").write_text("\n".join(json.dumps(part) for part in parts))
    assert loaded("vqa:lines.jsonl")[0].captions == known.captions


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "is not JSON"),
        ("[]", "is empty"),
        ('{"image": "a"}', "has to be a list of objects"),
        ("[3]", "has to be a list of objects"),
        ([dict(question="a?", answer="b")], "entry 1 has no image"),
        ([dict(image="none.png", question="a?", answer="b")], "names none.png"),
        ([dict(image="photos/0.png", answer="b")], "entry 1 has no question"),
        ([dict(image="photos/0.png", question="a?")], "has no answer: there are image, question"),
        ([dict(image="photos/0.png", caption=" ")], "its caption is empty"),
        ([dict(image="photos/0.png", question="a?", answer="b")], "of one image"),
        ([dict(image="photos/0.png", question="a?", answer="b", split="x")], "the split 'x'"),
        ([dict(image="photos/0.png", question="a?", answer="b", split="test")], "the train set"),
    ],
)
def test_bad_question_files(content, words, refused):
    photos()
    Path("bad.json").write_text(content if isinstance(content, str) else json.dumps(content))
    assert words in refused(train.main, [*FLAGS, "--data", "vqa:bad.json"])
    assert not Path("runs").exists()


def test_question_files_that_cannot_be_read(refused):
    assert "there is no file" in refused(train.main, [*FLAGS, "--data", "vqa:nowhere.json"])
    Path("latin.json").write_bytes(b'[{"image": "\xe9"}]')
    assert "is not JSON" in refused(train.main, [*FLAGS, "--data", "vqa:latin.json"])
    Path("photos").mkdir()
    Path("photos/0.png").write_text("no image")
    own = dict(image="photos/0.png", question="a?", answer="b")
    Path("bad.json").write_text(json.dumps([own, own | dict(split="test")]))
    assert "0.png" in refused(train.main, [*FLAGS, "--data", "vqa:bad.json"])


def test_kinds_of_the_users_own_may_be_left_out(refused):
    files = photos()
    entries = [dict(image=file, question="a?", answer="b", kind=kind)
               for file in files for kind in ("one", "two")]  # fmt: skip
    name = vqa_file(entries)
    args = train.parse_args([*FLAGS, "--data", name, "--leave-out", "one"])
    known = data.load(args, train.Device(args), 16)[0]
    assert data.trained_kinds(Entries(known), args) == ["two"]
    line = refused(train.main, [*FLAGS, "--data", name, "--leave-out", "three"])
    assert "unknown kind 'three'" in line
    line = refused(train.main, [*FLAGS, "--data", name, "--leave-out", "one", "two"])
    assert "nothing to train on" in line


def test_captions_of_photographs():
    files = photos(folder="data/flickr8k_subset")
    rows = [f"{Path(file).name},caption {n} of {file}" for file in files for n in range(2)]
    Path("data/flickr8k_subset/captions.csv").write_text("\n".join(["image,caption", *rows]))
    known, _, test = loaded("flickr8k")
    assert (len(known), len(test)) == (5, 1)
    assert known.captions[0][1].kind == CAPTION and "caption 1" in known.captions[0][1].answer
    assert Entries(known).kinds == []


def test_scenes_are_those_of_captions(few_scenes):
    """The refactored reader of common still gives what it gave: one world for all folders."""
    assert CAPTION_SETS[0] == "shapes"
    args = train.parse_args([*FLAGS])
    known, _, test = data.load(args, train.Device(args), 24)
    theirs = load_captions(args.but(data="shapes:60"), train.Device(args), 24)[0]
    assert [some[0].answer for some in known.captions] == [some[0] for some in theirs.captions]
    torch.testing.assert_close(known.images.examples(torch.arange(5))[0],
                               theirs.images.examples(torch.arange(5))[0])  # fmt: skip
    assert test.captions == ask(range(20), 1)
