"""What BERT and its line learn from: how text becomes examples, and which tokens are hidden.

Each function is tried on cases made by hand, and by its statistics over many draws.
"""

import math
import random
from collections import Counter

import pytest
import torch

from bert import albert, electra, original, roberta, xlnet
from bert.examples import Example, Masked, Special, collate, fit, hide
from bert.model import FAMILIES

PAD, UNK, CLS, SEP, MASK = range(5)
SPECIAL = Special(PAD, UNK, CLS, SEP, MASK, vocab_size=10_000)


class Scripted(random.Random):
    """Draws what it was told to, in turn."""

    def __init__(self, *values):
        super().__init__(0)
        self.values = list(values)

    def random(self):
        return self.values.pop(0)


def numbered(*lengths, start=10):
    """Documents of sentences of so many tokens, all different and in the order of the text."""
    token, documents = start, []
    for document in lengths:
        sentences = []
        for length in document:
            sentences.append(list(range(token, token + length)))
            token += length
        documents.append(sentences)
    return documents


def halves(example, sep=SEP):
    """The tokens of an example's segments, without special ones."""
    kept = [[t for t, s in zip(example.tokens, example.segments, strict=True)
             if s == segment and t > MASK] for segment in (0, 1)]  # fmt: skip
    assert example.tokens.count(sep) == 1 + bool(kept[1])
    return kept


def near(share, wanted, count):
    return abs(share - wanted) < 4.5 * (wanted * (1 - wanted) / count) ** 0.5


# ---------------------------------------------------------------------- what they share


@pytest.mark.parametrize(
    ("a", "b", "room", "wanted"),
    [
        ([1, 2, 3], [4, 5], 5, ([1, 2, 3], [4, 5])),
        ([1, 2, 3, 4], [5, 6], 4, ([1, 2], [5, 6])),
        ([1], [2, 3, 4], 3, ([1], [2, 3])),
        ([1, 2, 3], [4, 5, 6], 3, ([1, 2], [4])),
        ([1, 2, 3, 4, 5], [6, 7, 8], 4, ([1, 2], [6, 7])),
        ([1, 2, 3], [], 2, ([1, 2], [])),
    ],
)
def test_the_longer_loses_its_end(a, b, room, wanted):
    found = fit(a, b, room)
    assert sorted(map(len, found)) == sorted(map(len, wanted))
    assert found == wanted or len(a) == len(b)
    for kept, whole in zip(found, (a, b), strict=True):
        assert kept == whole[: len(kept)]


def test_both_ends_are_cut_alike_with_random():
    draw, fronts = random.Random(0), 0
    for _ in range(2000):
        a, b = fit([*range(10)], [*range(10, 16)], 12, draw)
        assert (len(a), len(b)) == (6, 6)
        assert a == list(range(a[0], a[0] + 6)) and b == list(range(10, 16))
        fronts += a[0]
    assert near(fronts / 8000, 0.5, 8000)


def test_hidden_tokens_are_in_order():
    example = Example([CLS, 7, 8, 9, SEP], [0, 0, 0, 1, 1], 1)
    found = hide(example, [3, 1], lambda token: 10 * token)
    assert found == Masked([CLS, 70, 8, 90, SEP], [0, 0, 0, 1, 1], 1, [1, 3], [7, 9])
    assert example.tokens == [CLS, 7, 8, 9, SEP]


def test_a_batch():
    one = Masked([2, 4, 8, 3], [0, 0, 1, 1], 1, [1], [7], [-1, 0, -1, -1])
    two = Masked([2, 4, 3], [0, 0, 0], 0, [1], [9], [-1, 0, -1])
    inputs, answers = collate([two, one], 5)
    assert inputs.keys() == {"tokens", "segments", "places"}
    assert inputs["tokens"].tolist() == [[2, 4, 3, 5], [2, 4, 8, 3]]
    assert inputs["segments"].tolist() == [[0, 0, 0, 0], [0, 0, 1, 1]]
    assert inputs["places"].tolist() == [1, 5]
    assert {k: v.tolist() for k, v in answers.items()} == {
        "targets": [9, 7],
        "counts": [1, 1],
        "labels": [0, 1],
    }
    assert collate([two, one], 5, "electra")[0]["targets"].tolist() == [9, 7]
    assert collate([two, one], 5, "xlnet")[0]["ranks"].tolist() == [[-1, 0, -1, -1]] * 2
    assert "labels" not in collate([two._replace(label=None)], 5)[1]
    with pytest.raises(ValueError, match="some examples of the batch have a label"):
        collate([one, two._replace(label=None)], 5)
    nothing = collate([two._replace(places=[], targets=[], label=None)], 5)
    assert nothing[0]["places"].shape == nothing[1]["targets"].shape == (0,)
    assert nothing[0]["places"].dtype == torch.long


JOINED = {
    "bert": ("C a a S", "C a a S b S", "000011"),
    "roberta": ("C a a S", "C a a S S b S", "0000000"),
    "albert": ("C a a S", "C a a S b S", "000011"),
    "electra": ("C a a S", "C a a S b S", "000011"),
    "xlnet": ("a a S C", "a a S b S C", "000112"),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_one_sentence_and_two(family):
    alone, both, segments = JOINED[family]
    join = FAMILIES[family].join

    def spelt(example):
        letters = {CLS: "C", SEP: "S", 11: "a", 12: "b"}
        return " ".join(letters[token] for token in example.tokens)

    found = join([11, 11], None, SPECIAL, 20)
    assert (spelt(found), found.label) == (alone, None)
    assert found.segments == ([0, 0, 0, 2] if family == "xlnet" else [0] * 4)
    found = join([11, 11], [12], SPECIAL, 20)
    assert spelt(found) == both
    assert "".join(map(str, found.segments)) == segments
    for length in (8, 11, 16):
        assert len(join([11] * 30, None, SPECIAL, length).tokens) == length
        cut = join([11] * 30, [12] * 30, SPECIAL, length)
        assert len(cut.tokens) == len(cut.segments) == length
        assert abs(cut.tokens.count(11) - cut.tokens.count(12)) <= 1
    whole = join([11] * 30, [12] * 2, SPECIAL, 12)
    assert whole.tokens.count(12) == 2


@pytest.mark.parametrize("family", FAMILIES)
def test_special_tokens_of_a_family(family):
    entry = FAMILIES[family]
    assert entry.roles.keys() == set(Special._fields[:5])
    assert set(entry.roles.values()) <= set(entry.specials)
    assert len(set(entry.roles.values())) == 5
    wanted = {"roberta": 1, "xlnet": 5}.get(family, 0)
    assert entry.specials.index(entry.roles["pad"]) == wanted
    assert Special(1, 2, 3, 4, 5, 10, others=(9,)).all == {1, 2, 3, 4, 5, 9}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_seed_is_a_mask_and_special_tokens_are_never_hidden(family):
    entry = FAMILIES[family]
    special = SPECIAL._replace(others=(9,))
    example = entry.join([*range(10, 40), UNK, 9], [*range(50, 80)], special, 100)
    found = [entry.corrupt(example, special, random.Random(seed)) for seed in (1, 1, *range(400))]
    assert found[0] == found[1]
    assert len({tuple(one.places) for one in found}) > 390
    seen = Counter()
    for one in found:
        assert one.places == sorted(set(one.places))
        assert one.targets == [example.tokens[i] for i in one.places]
        assert one.segments == example.segments
        hidden = set(one.places)
        for i, token in enumerate(example.tokens):
            assert i in hidden or one.tokens[i] == token
        seen.update(one.targets)
    assert not {CLS, SEP, 9}.intersection(seen)
    assert UNK in seen  # a word, though an unknown one
    assert seen.keys() == {*range(10, 40), UNK, *range(50, 80)}


# ---------------------------------------------------------------------- BERT


def test_80_10_10():
    example = Example([CLS, *range(10, 108), SEP], [0] * 100)
    draw, kinds, words = random.Random(0), Counter(), Counter()
    special = SPECIAL._replace(vocab_size=40, mask=4)
    for _ in range(3000):
        found = original.mask_tokens(example, special, draw)
        assert len(found.places) == 15
        for place, target in zip(found.places, found.targets, strict=True):
            token = found.tokens[place]
            kind = "mask" if token == MASK else "same" if token == target else "random"
            kinds[kind] += 1
            if kind == "random":
                words[token] += 1
    total = kinds.total()
    for kind, share in (("mask", 0.8 + 0.1 / 39), ("same", 0.1), ("random", 0.1 * 38 / 39)):
        assert near(kinds[kind] / total, share, total), kind
    assert words.keys() == {*range(40)} - {PAD, MASK}  # the whole vocabulary, but no padding
    assert max(words.values()) < 2 * min(words.values())


@pytest.mark.parametrize(
    ("draws", "wanted"),
    [((0.0,), MASK), ((0.799,), MASK), ((0.8,), 8), ((0.899,), 8), ((0.9,), 11), ((0.99,), 11)],
)
def test_what_stands_for_a_hidden_token(draws, wanted):
    script = Scripted(*draws)
    script.randrange = lambda n: n - 1
    assert original.thirds(11, script, [7, 8], SPECIAL) == wanted


@pytest.mark.parametrize(("length", "number"), [(4, 1), (9, 1), (10, 2), (128, 19), (512, 77)])
def test_how_many_are_hidden(length, number):
    example = Example([CLS, *[11] * (length - 2), SEP], [0] * length)
    for seed in range(5):
        found = original.mask_tokens(example, SPECIAL, random.Random(seed))
        assert len(found.places) == number
        half = original.mask_tokens(example, SPECIAL, random.Random(seed), share=0.5)
        assert len(half.places) == min(round(0.5 * length), length - 2)
    empty = Example([CLS, SEP], [0, 0])
    for entry in FAMILIES.values():
        assert entry.corrupt(empty, SPECIAL, random.Random(0)).places == []


def test_next_sentence_pairs():
    """Words of one token each: so nothing has to be cut, and all can be followed."""
    documents = numbered(*[[1] * n for n in (9000, 7000, 12_000)])
    home = {t: n for n, d in enumerate(documents) for (t,) in d}
    found = original.segment_pairs(documents, 23, SPECIAL, random.Random(0))
    labels, read, lengths = Counter(), Counter(), Counter()
    for example in found:
        a, b = halves(example)
        assert example.tokens == [CLS, *a, SEP, *b, SEP]
        assert a and b and len(example.tokens) <= 23
        assert a == list(range(a[0], a[0] + len(a)))
        assert b == list(range(b[0], b[0] + len(b))) or example.label
        if example.label:
            assert home[b[0]] != home[a[0]]
            assert len({home[t] for t in b}) == 1
        else:
            assert b[0] == a[-1] + 1 and home[b[-1]] == home[a[0]]
        labels[example.label] += 1
        lengths[len(example.tokens) == 23] += 1
        read.update(a if example.label else a + b)
    assert near(labels[1] / len(found), 0.5, len(found))
    assert read == Counter([*home])  # what was not taken as second is read again as first
    short = lengths[False] / len(found)  # some end where their second's document does
    assert 0.07 < short < 0.13


def test_pairs_that_are_too_long_are_cut_at_random():
    documents = numbered([30, 30, 30], [40])
    found = original.segment_pairs(documents, 33, SPECIAL, random.Random(0))
    assert all(len(example.tokens) == 33 for example in found if len(example.tokens) > 20)
    for example in found:
        a, b = halves(example)
        assert abs(len(a) - len(b)) <= 1 or len(example.tokens) < 33
        assert a == list(range(a[0], a[0] + len(a)))


def test_documents_of_one_sentence_and_of_none():
    documents = [*numbered([3], [4], [2]), [], [[]]]
    for example in original.segment_pairs(documents, 32, SPECIAL, random.Random(0)):
        a, b = halves(example)
        assert example.label == 1 and a != b
    for empty in ([], [[[7, 8], [9]]], [[[7]], []]):
        with pytest.raises(ValueError, match="needs at least two documents"):
            original.segment_pairs(empty, 32, SPECIAL, random.Random(0))


# ---------------------------------------------------------------------- RoBERTa


@pytest.mark.parametrize(
    ("length", "wanted"),
    [
        (7, [[CLS, 10, 11, 12, SEP], [CLS, 13, 14, 15, SEP]]),
        (9, [[CLS, 10, 11, 12, SEP, 13, 14, 15, SEP]]),
        (6, [[CLS, 10, 11, 12, SEP], [CLS, 13, 14, 15, SEP]]),
        (4, [[CLS, 10, 11, SEP], [CLS, 12, SEP], [CLS, 13, 14, SEP], [CLS, 15, SEP]]),
    ],
)
def test_full_sentences(length, wanted):
    documents = [*numbered([2, 1], [3]), []]
    found = roberta.full_sentences(documents, length, SPECIAL)
    assert [example.tokens for example in found] == wanted
    assert all(set(example.segments) == {0} and example.label is None for example in found)


def test_full_sentences_are_full_and_lose_nothing():
    draw = random.Random(0)
    documents = numbered(*[[draw.randint(1, 9) for _ in range(30)] for _ in range(20)])
    found = roberta.full_sentences(documents, 40, SPECIAL)
    words = [t for example in found for t in example.tokens if t > MASK]
    assert words == [t for document in documents for sentence in document for t in sentence]
    assert all(len(example.tokens) <= 40 for example in found)
    assert sum(len(example.tokens) > 30 for example in found) >= len(found) - 1
    seams = [example.tokens[1:-1].count(SEP) for example in found]
    ends = sum(example.tokens[-2] in {d[-1][-1] for d in documents} for example in found)
    assert sum(seams) + ends == 20


def test_15_percent_on_average_and_no_special_words():
    example = Example([CLS, *range(10, 19), SEP], [0] * 11)
    draw, numbers, words = random.Random(0), Counter(), Counter()
    special = SPECIAL._replace(vocab_size=30, others=(5,))
    for _ in range(8000):
        found = roberta.mask_tokens(example, special, draw)
        numbers[len(found.places)] += 1
        words.update(found.tokens[i] for i in found.places if found.tokens[i] != MASK)
    assert numbers.keys() == {1, 2}
    assert near(numbers[2] / 8000, 0.65, 8000)  # 1.65 of 11
    assert words.keys() == {*range(6, 30)}


# ---------------------------------------------------------------------- ALBERT


def test_sentence_order():
    documents = numbered(*[[1] * n for n in (9000, 15_000)])
    home = {t: n for n, d in enumerate(documents) for (t,) in d}
    found = albert.ordered_pairs(documents, 23, SPECIAL, random.Random(0))
    read = Counter()
    for example in found:
        a, b = halves(example)
        first, second = (b, a) if example.label else (a, b)
        assert first + second == list(range(first[0], first[0] + len(first + second)))
        assert home[first[0]] == home[second[-1]]
        read.update(a + b)
    swapped = sum(example.label for example in found)
    assert near(swapped / len(found), 0.5, len(found))
    assert sum(read.values()) >= len(home) - 2
    assert max(read.values()) == 1
    shorter = sum(len(example.tokens) < 23 for example in found) / len(found)
    assert 0.07 < shorter < 0.13


def test_order_of_a_document_of_one_sentence():
    for seed in range(20):
        (example,) = albert.ordered_pairs(
            [[[7, 8, 9], []], [[6]]], 32, SPECIAL, random.Random(seed)
        )
        a, b = halves(example)
        assert (b + a if example.label else a + b) == [7, 8, 9]
        assert a and b


class Recording(random.Random):
    """Notes the runs that are drawn, and their weights."""

    def choices(self, population, weights):
        (found,) = super().choices(population, weights)
        self.drawn = [*getattr(self, "drawn", ()), found]
        self.weights = weights
        return [found]


def test_runs_of_words():
    """One to three words, with 6, 3 and 2 elevenths; as many as are given, where there is room."""
    example = Example([CLS, *range(10, 210), SEP], [0] * 202)
    draw = Recording(0)
    for _ in range(300):
        before = len(getattr(draw, "drawn", ()))
        found = albert.mask_ngrams(example, SPECIAL, draw)
        assert len(found.places) == 30
        assert sum(draw.drawn[before:]) >= 30
    total = len(draw.drawn)
    for n, share in ((1, 6 / 11), (2, 3 / 11), (3, 2 / 11)):
        assert near(draw.drawn.count(n) / total, share, total)


def test_a_run_is_one_run(monkeypatch):
    """The first run that is drawn lies side by side; it is cut to what may still be hidden."""
    example = Example([CLS, *range(10, 28), SEP], [0] * 20)  # 3 are hidden
    for n, places in ((3, 3), (2, 3), (1, 3)):
        draw = random.Random(0)
        draw.choices = lambda lengths, weights, n=n: [n]
        seen = Counter()
        for _ in range(200):
            found = albert.mask_ngrams(example, SPECIAL, draw)
            assert len(found.places) == places
            seen[found.places[-1] - found.places[0]] += 1
        assert seen[2] > 150 if n == 3 else seen[2] < 60


def test_whole_words_are_hidden_and_none_across_a_separator():
    begins = [True] * 10_000
    for token in (12, 13, 22, 31, 32, 33):
        begins[token] = False
    special = SPECIAL._replace(begins=begins)
    words = [[11, 12, 13], [20], [21, 22], [30, 31, 32, 33], [40], [41]]
    text = [CLS, 11, 12, 13, 20, 21, 22, SEP, 30, 31, 32, 33, 40, 41, SEP]
    example = Example(text, [0] * 8 + [1] * 7)
    draw, seen = random.Random(0), Counter()
    for _ in range(600):
        found = albert.mask_ngrams(example, special, draw)
        assert len(found.places) <= 2  # 15% of 15
        hidden = set(found.targets)
        for word in words:
            assert not hidden.intersection(word) or hidden.issuperset(word)
        seen.update(map(tuple, [found.targets]))
    assert seen.keys() == {(20, 40), (20, 41), (21, 22), (40, 41)}  # no word of three or four
    assert albert.run([[1, 2], [3], [5, 6]], 0, 3) == [1, 2, 3]  # a separator stands at 4
    assert albert.run([[1, 2], [3], [5, 6]], 2, 3) == [5, 6]
    assert albert.run([[1, 2], [3], [4]], 0, 2) == [1, 2, 3]


def test_what_stands_for_a_run_is_drawn_for_each_token():
    example = Example([CLS, *range(10, 410), SEP], [0] * 402)
    draw, kinds = random.Random(0), Counter()
    for _ in range(150):
        found = albert.mask_ngrams(example, SPECIAL, draw)
        for place, target in zip(found.places, found.targets, strict=True):
            kinds[found.tokens[place] == MASK, found.tokens[place] == target] += 1
    total = kinds.total()
    assert near(kinds[True, False] / total, 0.8, total)
    assert near(kinds[False, True] / total, 0.1, total)


# ---------------------------------------------------------------------- ELECTRA


def test_the_generator_gets_masks_or_the_token():
    example = Example([CLS, *range(10, 59), SEP], [0] * 51)
    draw, kinds = random.Random(0), Counter()
    for _ in range(2000):
        found = electra.mask_tokens(example, SPECIAL, draw)
        assert len(found.places) == math.ceil(0.15 * 51) == 8
        for place, target in zip(found.places, found.targets, strict=True):
            assert found.tokens[place] in (MASK, target)
            kinds[found.tokens[place] == MASK] += 1
    assert near(kinds[True] / kinds.total(), 0.85, kinds.total())
    paper = electra.mask_tokens(example, SPECIAL, draw, stays=0.0)
    assert paper.tokens.count(MASK) == 8


def test_two_segments():
    documents = numbered(*[[4] * 100 for _ in range(12)])
    home = {t: n for n, d in enumerate(documents) for s in d for t in s}
    found = electra.two_segments(documents, 64, SPECIAL, random.Random(0))
    kinds, read = Counter(), Counter()
    for example in found:
        a, b = halves(example)
        assert a and len(example.tokens) <= 64 and example.label is None
        assert len({home[t] for t in a + b}) == 1
        assert (a + b) == sorted(a + b)
        kinds["one" if not b else "two"] += 1
        if b and len(example.tokens) == 64:
            assert 25 <= len(a) <= 36
        read.update(a + b)
    assert max(read.values()) == 1
    assert sum(read.values()) > 0.9 * len(home)  # some ends are cut off
    assert 0.02 < kinds["one"] / len(found) < 0.25


# ---------------------------------------------------------------------- XLNet


def test_a_sixth_is_predicted_in_spans_in_any_order():
    example = Example([*range(10, 135), SEP, CLS], [0] * 127)
    draw, places, spans = random.Random(0), Counter(), Counter()
    for _ in range(3000):
        found = xlnet.permute(example, SPECIAL, draw)
        assert found.tokens == example.tokens
        assert len(found.places) == 127 // 6 == 21
        ranks = [found.ranks[i] for i in found.places]
        assert sorted(ranks) == list(range(21))
        assert all(found.ranks[i] == -1 for i in {*range(127)} - {*found.places})
        places.update(found.places)
        starts = [i for i in found.places if i - 1 not in found.places]
        spans[len(starts)] += 1
    assert places.keys() == {*range(125)}
    middle = [places[i] / 3000 for i in range(20, 100)]
    assert min(middle) > 0.12 and max(middle) < 0.22  # a sixth of each
    mean = sum(n * times for n, times in spans.items()) / 3000
    assert 7 < mean < 16  # 21, if all were single


def test_all_orders_are_alike():
    example = Example([*range(10, 26), SEP, CLS], [0] * 18)
    draw, orders = random.Random(0), Counter()
    for _ in range(6000):
        found = xlnet.permute(example, SPECIAL, draw)
        orders[tuple(found.ranks[i] for i in found.places)] += 1
    assert len(orders) == 6
    assert all(near(times / 6000, 1 / 6, 6000) for times in orders.values())


def test_spans_are_one_to_five_tokens_by_one_over_n():
    example = Example([*range(10, 1210), SEP, CLS], [0] * 1202)
    draw = Recording(0)
    for _ in range(40):
        xlnet.permute(example, SPECIAL, draw)
    total = len(draw.drawn)
    whole = sum(1 / n for n in range(1, 6))
    assert set(draw.drawn) == {1, 2, 3, 4, 5}
    for n in range(1, 6):
        assert near(draw.drawn.count(n) / total, 1 / n / whole, total)


@pytest.mark.parametrize("apart", [0.5, 0.0])
def test_two_contexts(apart):
    documents = numbered(*[[1] * n for n in (9000, 7000)])
    if not apart:
        documents = documents[:1]
    home = {t: n for n, d in enumerate(documents) for (t,) in d}
    found = xlnet.two_contexts(documents, 23, SPECIAL, random.Random(0), apart)
    strange = 0
    for example in found:
        a, b = halves(example)
        middle = [SEP, *b] if b else []
        assert example.tokens == [*a, *middle, SEP, CLS]
        assert example.segments == [0] * (len(a) + 1) + [1] * (len(b) + bool(b)) + [2]
        assert example.label is None
        other = bool(b) and home[b[0]] != home[a[0]]
        assert other or not b or b[0] == a[-1] + 1
        strange += other
    assert near(strange / len(found), 0.5, len(found)) if apart else not strange
    shorter = sum(len(example.tokens) < 23 for example in found)
    assert shorter <= (0.03 * len(found) if apart else 1)  # where a document ends, and nowhere else
    if apart:
        with pytest.raises(ValueError, match="needs at least two documents"):
            xlnet.two_contexts(documents[:1], 23, SPECIAL, random.Random(0))


def test_streams_go_on_from_batch_to_batch():
    documents = numbered([5, 4], [30], [2, 60])
    found = xlnet.streams(documents, 3, 12, SPECIAL)
    text = [t for d in documents for t in [*[x for s in d for x in s], SEP]][:-1]
    assert len(found) == len(text) // 30 == 3
    for row in range(3):
        read = [t for batch in found for t in batch[row].tokens[:-2]]
        assert read == text[30 * row : 30 * row + 30]
    for batch in found:
        for example in batch:
            assert example.tokens[-2:] == [SEP, CLS] and example.segments == [0] * 11 + [2]
