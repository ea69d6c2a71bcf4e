"""Greedy, sampled and beam decoding, against searches by brute force on tiny vocabularies."""

import itertools
import math
from typing import NamedTuple

import pytest
import torch

from common.decode import beam_search, generate, keep, shares, write

END, WORDS, WIDTH = 0, 5, 6  # END is one of the words


class Memory(NamedTuple):
    """A state as nested as any."""

    h: torch.Tensor
    more: dict


class Kept:
    """A state that gives up its rows itself."""

    def __init__(self, h):
        self.h = h

    def keep(self, rows):
        return Kept(self.h[rows])


class Speaker:
    """A random recurrent network: what it says next depends on all that was said before."""

    def __init__(self, seed=0, kind="tensor", scale=2.0):
        draw = torch.Generator().manual_seed(seed)
        shapes = (WORDS, WIDTH), (WIDTH, WIDTH), (WIDTH, WORDS)
        matrices = [torch.randn(s, generator=draw, dtype=torch.float64) for s in shapes]
        self.embedding, self.inner, self.output = matrices
        self.kind, self.scale, self.rows = kind, scale, []

    def begin(self, count, seed=0):
        draw = torch.Generator().manual_seed(seed)
        return self.pack(torch.randn(count, WIDTH, generator=draw, dtype=torch.float64))

    def pack(self, h):
        if self.kind == "nested":
            return Memory(h[:, :2], {"a": (h[:, 2:], None), "b": [h.sum(1)]})
        return Kept(h) if self.kind == "kept" else h

    def unpack(self, state):
        if self.kind == "nested":
            h = torch.cat([state.h, state.more["a"][0]], 1)
            assert torch.allclose(state.more["b"][0], h.sum(1))
            return h
        return state.h if self.kind == "kept" else state

    def __call__(self, tokens, state):
        self.rows.append(len(tokens))
        h = torch.tanh(self.unpack(state) @ self.inner + self.embedding[tokens[:, -1]])
        return h @ self.output * self.scale, self.pack(h)

    def score(self, row, words, length_penalty, most):
        """Log-probability of a sequence, with END if there is room, over the penalty."""
        words = [*words, END] if len(words) < most else words
        tokens, total = torch.tensor([[1]]), 0.0
        state = self.pack(row[None])
        for word in words:
            logits, state = self(tokens, state)
            total += float(logits.log_softmax(1)[0, word])
            tokens = torch.cat([tokens, torch.tensor([[word]])], 1)
        return total / ((5 + len(words)) / 6) ** length_penalty


def start(count, length=1):
    return torch.ones(count, length, dtype=torch.long)


KINDS = ["tensor", "nested", "kept"]


@pytest.mark.parametrize("alpha", [0.0, 0.6, 2.0])
@pytest.mark.parametrize("kind", KINDS)
def test_beam_search_is_exhaustive_where_the_beam_holds_all(kind, alpha):
    """Nothing beats what is found among all sequences that end; of those cut at the limit one is
    taken only where the beam has none that ends, which here is never."""
    for seed in range(3):
        speaker, most = Speaker(seed, kind), 4
        states = speaker.unpack(speaker.begin(3, seed))
        found = beam_search(speaker, speaker.begin(3, seed), start(3), most, END, 300, alpha)
        ended = [w for n in range(most) for w in itertools.product(range(1, WORDS), repeat=n)]
        assert len(ended) == 1 + 4 + 16 + 64
        for row, words in zip(states, found, strict=True):
            scores = {w: speaker.score(row, w, alpha, most) for w in ended}
            assert tuple(words) == max(scores, key=scores.get)


def test_a_sequence_that_never_ends_is_cut_at_the_likeliest():
    speaker = Speaker()
    state = speaker.begin(2)

    def mute(tokens, state):
        logits, state = speaker(tokens, state)
        return logits.index_fill(1, torch.tensor([END]), -math.inf), state

    found = beam_search(mute, speaker.begin(2), start(2), 3, END, 200, 0.6)
    for row, words in zip(state, found, strict=True):
        whole = itertools.product(range(1, WORDS), repeat=3)
        logs = {w: logs_of(mute, row, w) for w in whole}
        assert tuple(words) == max(logs, key=logs.get)


def logs_of(step, row, words):
    tokens, state, total = torch.tensor([[1]]), row[None], 0.0
    for word in words:
        logits, state = step(tokens, state)
        total += float(logits.log_softmax(1)[0, word])
        tokens = torch.cat([tokens, torch.tensor([[word]])], 1)
    return total


def test_a_long_penalty_asks_for_longer_sequences():
    speaker, lengths = Speaker(1), []
    for alpha in (0.0, 1.0, 3.0):
        found = beam_search(speaker, speaker.begin(20), start(20), 12, END, 8, alpha)
        lengths.append(sum(map(len, found)))
    assert lengths == sorted(lengths)
    assert lengths[0] < lengths[2]


def ways():
    for beam in (2, 4):
        yield lambda *args, beam=beam: beam_search(*args, END, beam, 0.6)
    yield lambda *args: generate(*args, END)


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_is_written_as_its_rows_alone(kind):
    """Of unequal limits, and whichever rows leave before."""
    speaker, most = Speaker(2, kind), torch.tensor([1, 9, 4, 9, 9, 6, 12, 2])
    for way in ways():
        together = way(speaker, speaker.begin(8), start(8), most)
        for i in range(8):
            row = torch.tensor([i])
            alone = way(speaker, keep(speaker.begin(8), row), start(1), int(most[i]))
            assert alone == together[i : i + 1]
        order = torch.tensor([5, 2, 7, 0, 1, 3, 6, 4])
        mixed = way(speaker, keep(speaker.begin(8), order), start(8), most[order])
        assert mixed == [together[i] for i in order]
        assert len({len(words) for words in together}) > 2


def test_rows_leave_when_they_are_finished():
    speaker = Speaker(2)
    found = generate(speaker, speaker.begin(8), start(8), 12, END)
    steps = [min(12, len(words) + 1) for words in found]
    assert speaker.rows == [sum(n > t for n in steps) for t in range(max(steps))]
    assert len(set(speaker.rows)) > 2
    speaker.rows.clear()
    beam_search(speaker, speaker.begin(8), start(8), 12, END, 3)
    assert speaker.rows[0] == 24
    assert speaker.rows == sorted(speaker.rows, reverse=True)
    assert speaker.rows[-1] < 24


def test_greedy_takes_the_likeliest():
    speaker = Speaker(3)
    states = speaker.begin(6)
    for row, words in zip(states, generate(speaker, states, start(6), 7, END), strict=True):
        tokens, state, wanted = torch.tensor([[1]]), row[None], []
        while len(wanted) < 7:
            logits, state = speaker(tokens, state)
            if int(logits.argmax()) == END:
                break
            wanted.append(int(logits.argmax()))
            tokens = torch.tensor([[1, *wanted]])
        assert words == wanted
    assert beam_search(speaker, states, start(6), 7, END, 1, 0) == write(
        speaker, states, start(6), 7, END
    )
    assert write(speaker, states, start(6), 7, END, 4) == beam_search(
        speaker, states, start(6), 7, END, 4
    )


def test_a_wider_beam_finds_likelier_ends():
    """Than greedy decoding, where that comes to an end; a beam of 80 holds all."""
    speaker, states = Speaker(4), Speaker(4).begin(20)
    greedy, wide = (
        beam_search(speaker, states, start(20), 4, END, beam, alpha=0) for beam in (1, 80)
    )
    scores = [
        tuple(speaker.score(row, words, 0, 4) for words in (a, b))
        for row, a, b in zip(states, greedy, wide, strict=True)
        if len(a) < 4 and len(b) < 4
    ]
    assert len(scores) > 5
    assert all(a <= b + 1e-5 for a, b in scores)
    assert any(a < b - 0.1 for a, b in scores)


def test_a_prompt_is_read_and_not_returned():
    """Without an end all write as long as they may."""
    seen = []

    def step(tokens, state):
        seen.append(tokens.tolist())
        return torch.nn.functional.one_hot(tokens.sum(1) % WORDS, WORDS).float(), None

    prompt = torch.tensor([[1, 2], [3, 3]])
    assert generate(step, None, prompt, 3) == [[3, 1, 2], [1, 2, 4]]
    assert seen[2] == [[1, 2, 3, 1], [3, 3, 1, 2]]
    found = beam_search(step, None, prompt, 3, END, 1)
    assert found == [[3, 1, 2], [1, 2, 4]]
    assert generate(step, None, prompt, 3, end=1) == [[3], []]


# ---------------------------------------------------------------------- sampling


LOGITS = torch.tensor(
    [[2.0, -1.0, 0.5, 0.4, -3.0], [0.0, 0.1, 0.2, 5.0, 0.3], [1.0, 0.9, 0.8, 0.7, 0.6]]
)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("top_k", [None, 1, 3, 5, 50])
@pytest.mark.parametrize("top_p", [None, 1e-9, 0.5, 0.9, 1.0])
def test_shares_by_brute_force(temperature, top_k, top_p):
    for row, found in zip(LOGITS.tolist(), shares(LOGITS, temperature, top_k, top_p), strict=True):
        odds = {i: math.exp(value / temperature) for i, value in enumerate(row)}
        best = sorted(odds, key=odds.get, reverse=True)[:top_k]
        total, kept = sum(odds[i] for i in best), []
        for i in best:
            if top_p is None or sum(odds[j] for j in kept) < top_p * total - 1e-12:
                kept.append(i)
        wanted = [odds[i] / sum(odds[j] for j in kept) if i in kept else 0 for i in range(WORDS)]
        torch.testing.assert_close(found, torch.tensor(wanted, dtype=torch.float64))


def test_equal_logits_are_cut_to_k():
    found = shares(torch.zeros(1, 6), 1.0, top_k=2)
    assert (found > 0).sum() == 2
    assert (shares(torch.zeros(1, 4), 1.0, top_p=0.5) > 0).sum() == 2


def test_draws_follow_the_shares():
    step = lambda tokens, state: (LOGITS[:1].expand(len(tokens), -1), None)  # noqa: E731
    for settings in ({}, {"top_k": 3}, {"top_p": 0.8}, {"top_k": 3, "top_p": 0.8}):
        random = torch.Generator().manual_seed(0)
        settings["temperature"] = 1.5
        found = generate(step, None, start(4000), 1, generator=random, **settings)
        counts = torch.tensor(found).flatten().bincount(minlength=WORDS) / 4000
        wanted = shares(LOGITS[:1], **settings)[0]
        torch.testing.assert_close(counts.double(), wanted, rtol=0, atol=0.03)
        assert not counts[wanted == 0].any()
        again = torch.Generator().manual_seed(0)
        assert found == generate(step, None, start(4000), 1, generator=again, **settings)


def test_the_coldest_draws_are_greedy():
    speaker = Speaker(3)
    wanted = generate(speaker, speaker.begin(6), start(6), 7, END)
    for settings in ({"temperature": 1e-300}, {"top_k": 1}, {"top_p": 1e-9}):
        settings = {"temperature": 1.0} | settings
        assert generate(speaker, speaker.begin(6), start(6), 7, END, **settings) == wanted


def test_nothing_is_left_for_a_backward_pass():
    weight = torch.zeros(WORDS, requires_grad=True)
    outputs = []

    def step(tokens, state):
        outputs.append(weight.expand(len(tokens), -1) * 1)
        return outputs[-1], None

    for way in ways():
        way(step, None, start(2), 3)
    assert not any(logits.requires_grad for logits in outputs)
