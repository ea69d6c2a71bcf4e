"""Recurrent networks: sizes, parity with torch.nn, the equations by brute force, and the scripts.

Usage: torchrun --nproc-per-node 2 tests/test_rnn.py FOLDER trains the same way there.
"""

import itertools
import json
import math
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from conftest import torchrun
from helpers import BOTH, count, dropped, modes, weights
from processes import device_args
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from common.data.corpora import END, Corpus, Text, Vocabulary, make_vocabulary, parts_of
from common.device import Device
from rnn import adding, claims, corpus, measures, recipes, sample, train
from rnn.corpus import Measured, Stream, Windows
from rnn.heads import Classifier, Forecaster, LanguageModel, Reader
from rnn.model import GRU, LSTM, MODELS, Elman

THEIRS = {Elman: nn.RNN, LSTM: nn.LSTM, GRU: nn.GRU}
CASES = [
    (layer, *case) for layer in THEIRS for case in ((1, False), (2, False), (1, True), (3, True))
]
LENGTHS = torch.tensor([7, 1, 4, 5])
WORDS = "in the beginning there was a word and the word was with us"


def pair(layer, num_layers=1, both=False, **settings):
    """Our layers and torch's, of the same weights, in float64."""
    torch.manual_seed(0)
    ours = layer(3, 5, num_layers, bidirectional=both, **settings).double()
    theirs = THEIRS[layer](3, 5, num_layers, batch_first=True, bidirectional=both).double()
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def as_tuple(state):
    return state if isinstance(state, tuple) else (state,)


def inputs(batch=4, steps=7, size=3):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, steps, size, generator=generator, dtype=torch.float64)


# ---------------------------------------------------------------------- sizes


def test_parameters():
    wanted = {"char_rnn": 240_321, "lstm_small": 4_653_200, "lstm_medium": 19_780_400}
    wanted["lstm_large"] = 66_034_000
    with torch.device("meta"):
        for name, size in wanted.items():
            assert count(MODELS[name]()) == size, name
    i, h = 3, 5
    for layer, gates in ((Elman, 1), (GRU, 3), (LSTM, 4)):
        assert count(layer(i, h)) == gates * (h * i + h * h + 2 * h)
        assert count(layer(i, h, bidirectional=True)) == 2 * count(layer(i, h))
        twice = layer(i, h, 2)
        assert count(twice) == count(layer(i, h)) + count(layer(h, h))
    assert count(LSTM(i, h, forget_gate=False)) == 3 * (h * i + h * h + 2 * h)


def test_zarembas_weights_begin_in_their_range():
    model = MODELS["lstm_small"](vocab_size=50)
    assert all(p.abs().max() <= 0.1 for p in model.parameters())
    assert model.rnn.weight_hh_l1.std().item() == pytest.approx(0.2 / 12**0.5, rel=0.05)


# ---------------------------------------------------------------------- parity with torch.nn


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize(("layer", "num_layers", "both"), CASES)
def test_outputs_states_and_gradients_are_torchs(layer, num_layers, both, fused):
    ours, theirs = pair(layer, num_layers, both)
    ours.fused = fused
    shape = num_layers * (1 + both), 4, 5
    begin = tuple(torch.randn(shape, dtype=torch.float64) for _ in range(ours.states))
    for state in (None, begin):
        results = []
        for side in (ours, theirs):
            x = inputs().requires_grad_()
            given = state if state is None or layer is LSTM or side is ours else state[0]
            outputs, last = side(x, given)
            last = as_tuple(last)
            loss = outputs.square().sum() + sum(part.sin().sum() for part in last)
            grads = torch.autograd.grad(loss, [x, *side.parameters()])
            results.append([outputs, *last, *grads])
        for a, b in zip(*results, strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize(("layer", "num_layers", "both"), CASES)
def test_packed_and_masked_sequences_are_torchs(layer, num_layers, both, fused):
    ours, theirs = pair(layer, num_layers, both)
    ours.fused = fused
    for lengths, order in ((LENGTHS, False), (LENGTHS.sort(descending=True).values, True)):
        results = []
        for side in (ours, theirs):
            x = inputs().requires_grad_()
            packed = pack_padded_sequence(x, lengths, True, enforce_sorted=order)
            outputs, last = side(packed)
            padded, again = pad_packed_sequence(outputs, batch_first=True)
            assert torch.equal(again, lengths)
            last = as_tuple(last)
            loss = padded.square().sum() + sum(part.sin().sum() for part in last)
            grads = torch.autograd.grad(loss, [x, *side.parameters()], retain_graph=True)
            results.append([padded, *last, *grads])
        for a, b in zip(*results, strict=True):
            torch.testing.assert_close(a, b)
        x = inputs().requires_grad_()
        outputs, state = ours(x, lengths=lengths)
        assert state is None
        torch.testing.assert_close(outputs, results[1][0])
        wanted = torch.autograd.grad(results[1][0].square().sum(), list(theirs.parameters()))
        found = torch.autograd.grad(outputs.square().sum(), list(ours.parameters()))
        torch.testing.assert_close(found, wanted)


def test_a_packed_sequence_goes_on_from_a_state():
    ours, theirs = pair(LSTM, 2, True)
    state = tuple(torch.randn(4, 4, 5, dtype=torch.float64) for _ in range(2))
    packed = pack_padded_sequence(inputs(), LENGTHS, True, enforce_sorted=False)
    wanted = theirs(packed, state)
    for fused in (True, False):
        ours.fused = fused
        outputs, last = ours(packed, state)
        torch.testing.assert_close(outputs.data, wanted[0].data)
        torch.testing.assert_close(last, wanted[1])


@pytest.mark.parametrize("layer", THEIRS)
def test_weights_go_both_ways(layer):
    ours, theirs = pair(layer, 2, True)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    other = layer(3, 5, 2, bidirectional=True).double()
    other.load_state_dict(theirs.state_dict())
    torch.testing.assert_close(other(inputs())[0], theirs(inputs())[0])


@pytest.mark.parametrize("fused", [True, False])
def test_dropout_is_between_the_layers_alone(fused):
    """With all dropped, the second layer hears nothing of the input, in training."""
    layer = LSTM(3, 5, 2, dropout=1.0, fused=fused).double()
    a, b = layer(inputs())[0], layer(inputs() + 1)[0]
    torch.testing.assert_close(a, b)
    layer.eval()
    assert not torch.allclose(layer(inputs())[0], layer(inputs() + 1)[0])
    single = LSTM(3, 5, 1, dropout=1.0, fused=fused).double()
    assert not torch.allclose(single(inputs())[0], single(inputs() + 1)[0])
    short = LSTM(3, 5, 2, dropout=1.0, bidirectional=True, fused=fused).double()
    torch.testing.assert_close(
        short(inputs(), lengths=LENGTHS)[0], short(inputs() + 1, lengths=LENGTHS)[0]
    )


# ---------------------------------------------------------------------- equations, by brute force


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def brute_force(layer, x):
    """One layer, number by number: h (T, H), after x (T, C), as lists."""
    w_ih, w_hh, b_ih, b_hh = (p.tolist() for p in layer.weights(0))
    size = layer.hidden_size
    h, c, rows, now = [0.0] * size, [0.0] * size, [], [[]]

    def net(row, h, both=True):
        seen = sum(w * v for w, v in zip(w_ih[row], now[0], strict=True)) + b_ih[row]
        fed = sum(w * v for w, v in zip(w_hh[row], h, strict=True)) + b_hh[row]
        return seen + fed if both else (seen, fed)

    for now[0] in x.tolist():
        new_h, new_c = [], []
        if isinstance(layer, GRU):
            r = [sigmoid(net(k, h)) for k in range(size)]
        for k in range(size):
            if isinstance(layer, Elman):
                new_h.append(math.tanh(net(k, h)))
            elif isinstance(layer, GRU):
                z = sigmoid(net(size + k, h))
                if layer.reset_after:
                    seen, fed = net(2 * size + k, h, both=False)
                    n = math.tanh(seen + r[k] * fed)
                else:  # Cho et al. 2014, Eq. 8
                    n = math.tanh(net(2 * size + k, [a * b for a, b in zip(r, h, strict=True)]))
                new_h.append(z * h[k] + (1 - z) * n)
            else:
                places = [0, 1, 2, 3] if layer.forget_gate else [0, None, 1, 2]
                i, f, g, o = (None if p is None else net(p * size + k, h) for p in places)
                keep = 1.0 if f is None else sigmoid(f)
                new_c.append(keep * c[k] + sigmoid(i) * math.tanh(g))
                new_h.append(sigmoid(o) * math.tanh(new_c[k]))
        h, c = new_h, new_c
        rows.append(h)
    return torch.tensor(rows, dtype=torch.float64)


@pytest.mark.parametrize(
    ("layer", "settings"),
    [
        (Elman, {}),
        (LSTM, {}),
        (LSTM, {"forget_gate": False}),
        (GRU, {}),
        (GRU, {"reset_after": False}),
    ],
)
def test_the_equations_by_brute_force(layer, settings):
    torch.manual_seed(0)
    layer = layer(3, 4, **settings).double()
    for p in layer.parameters():
        nn.init.normal_(p)
    x = inputs(1, 6)
    torch.testing.assert_close(layer(x)[0][0], brute_force(layer, x[0]))


def test_both_ways_is_one_way_and_the_other():
    layer = LSTM(3, 5, bidirectional=True).double()
    forth, back = LSTM(3, 5).double(), LSTM(3, 5).double()
    state = layer.state_dict()
    forth.load_state_dict({k: v for k, v in state.items() if "reverse" not in k})
    back.load_state_dict({k[:-8]: v for k, v in state.items() if "reverse" in k})
    x = inputs()
    wanted = torch.cat([forth(x)[0], back(x.flip(1))[0].flip(1)], 2)
    torch.testing.assert_close(layer(x)[0], wanted)


def test_forget_gates_begin_open():
    layer = LSTM(3, 5, 2, bidirectional=True)
    for place in range(4):
        bias_ih, bias_hh = layer.weights(place)[2:]
        assert (bias_ih + bias_hh)[5:10].tolist() == [1.0] * 5
    for layer in (GRU(3, 5, keep_bias=4.0), LSTM(3, 5, keep_bias=4.0)):
        bias_ih, bias_hh = layer.weights(0)[2:]
        assert (bias_ih + bias_hh)[5:10].tolist() == [4.0] * 5
    h = GRU(3, 5, keep_bias=20.0)(torch.randn(2, 9, 3), (torch.ones(1, 2, 5),))[1][0]
    torch.testing.assert_close(h, torch.ones(1, 2, 5))


@pytest.mark.parametrize("layer", THEIRS)
def test_a_text_in_pieces_is_the_text(layer):
    """The state that goes on is all that a layer remembers."""
    ours, _ = pair(layer, 2)
    whole, last = ours(inputs())
    state, pieces = None, []
    for piece in inputs().split(3, 1):
        out, state = ours(piece, state)
        pieces.append(out)
    torch.testing.assert_close(torch.cat(pieces, 1), whole)
    torch.testing.assert_close(state, last)


# ---------------------------------------------------------------------- what is built on them


@pytest.mark.parametrize("pooling", ["mean", "last", "attention"])
@pytest.mark.parametrize("name", ["lstm", "bigru", "elman", "lstm_1997"])
def test_padding_changes_nothing(name, pooling):
    torch.manual_seed(0)
    model = MODELS[name]("classes", num_classes=3, vocab_size=9, hidden_size=6, pooling=pooling)
    model = model.double().eval()
    model.embedding.double()
    tokens = torch.randint(9, (4, 7))
    together, _ = model(tokens, LENGTHS)
    kept = model.weights
    assert kept.shape == (4, 7)
    torch.testing.assert_close(kept.sum(1).double(), torch.ones(4, dtype=torch.float64))
    for row, length in enumerate(LENGTHS.tolist()):
        alone, _ = model(tokens[row : row + 1, :length], torch.tensor([length]))
        torch.testing.assert_close(together[row], alone[0])
        assert not kept[row, length:].any()
        no_lengths, _ = model(tokens[row : row + 1, :length])
        torch.testing.assert_close(no_lengths, alone)
    none, _ = model(tokens, torch.tensor([0, 1, 1, 1]))
    assert none.isfinite().all()
    torch.testing.assert_close(none[0], model(tokens[:1, :1])[0][0])
    longer, _ = model(F.pad(tokens, (0, 3), value=5), LENGTHS)
    torch.testing.assert_close(longer, together)


def test_pooling_by_hand():
    torch.manual_seed(0)
    make = lambda size: LSTM(size, 4, bidirectional=True)  # noqa: E731
    x = torch.randn(2, 5, 8)
    mean = Reader(make, 2, num_features=3, pooling="mean")
    torch.testing.assert_close(mean.pool(x, torch.tensor([5, 2]))[1], x[1, :2].mean(0))
    last = Reader(make, 2, num_features=3, pooling="last").pool(x, torch.tensor([5, 2]))
    torch.testing.assert_close(last[1], torch.cat([x[1, 1, :4], x[1, 0, 4:]]))
    reader = Reader(make, 2, num_features=3, pooling="attention")
    scores = [reader.score(x[1, t]).item() for t in range(2)]
    odds = [math.exp(score) / sum(map(math.exp, scores)) for score in scores]
    wanted = odds[0] * x[1, 0] + odds[1] * x[1, 1]
    torch.testing.assert_close(reader.pool(x, torch.tensor([5, 2]))[1], wanted)
    with pytest.raises(ValueError, match="attention"):
        Reader(make, 2, num_features=3, pooling="max")


def test_shapes_and_a_language_model_that_would_cheat():
    text = MODELS["gru"]("text", vocab_size=11, hidden_size=8)
    assert isinstance(text, LanguageModel)
    logits, state = text(torch.randint(11, (2, 5)))
    assert logits.shape == (2, 5, 11)
    assert state[0].shape == (1, 2, 8)
    series = MODELS["bilstm"]("series", num_features=4, horizon=6, num_targets=2, hidden_size=8)
    assert isinstance(series, Forecaster)
    assert series(torch.randn(3, 9, 4))[0].shape == (3, 6, 2)
    assert isinstance(MODELS["bigru"](), Classifier)
    assert MODELS["lstm"]("classes", num_classes=7, num_features=40)(
        torch.randn(2, 9, 40), torch.tensor([9, 3])
    )[0].shape == (2, 7)
    with pytest.raises(ValueError, match="both ways"):
        MODELS["bilstm"]("text")


def test_one_hot_is_a_table_of_its_own():
    """What char-rnn reads is the column of the input matrix that belongs to the character."""
    model = MODELS["char_rnn"](vocab_size=5)
    tokens = torch.tensor([[3]])
    assert model.embedding(tokens).tolist() == [[[0, 0, 0, 1, 0]]]
    assert not list(model.embedding.parameters())


def test_each_token_is_told_from_those_before():
    model = MODELS["lstm"]("text", vocab_size=11, hidden_size=8, num_layers=2).eval()
    tokens = torch.randint(11, (2, 6))
    other = tokens.clone()
    other[:, 4] = (other[:, 4] + 1) % 11
    a, b = model(tokens)[0], model(other)[0]
    torch.testing.assert_close(a[:, :4], b[:, :4])
    assert not torch.allclose(a[:, 4:], b[:, 4:])


@pytest.mark.parametrize("name", ["elman", "lstm", "gru", "lstm_1997", "gru_2014"])
def test_it_learns_a_small_text_by_heart(name):
    torch.manual_seed(0)
    text = torch.tensor([list(b"the quick brown fox jumps over a lazy dog, and again. ")]) - 32
    model = MODELS[name]("text", vocab_size=96, hidden_size=64, embedding_size=16)
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    for _ in range(60):
        loss = F.cross_entropy(model(text[:, :-1])[0][0], text[0, 1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < (0.5 if name == "lstm_1997" else 0.1)


def test_it_learns_which_of_two_came_first():
    torch.manual_seed(0)
    x = torch.zeros(32, 12, 2)
    for row in range(32):
        first = row % 2
        x[row, 1 + row % 4, first] = x[row, 7 + row % 3, 1 - first] = 1
    targets, lengths = torch.arange(32) % 2, torch.full((32,), 12)
    for pooling in ("last", "attention", "mean"):
        model = MODELS["bigru"]("classes", num_features=2, hidden_size=16, pooling=pooling)
        optimizer = torch.optim.Adam(model.parameters(), 0.02)
        for _ in range(60):
            loss = F.cross_entropy(model(x, lengths)[0], targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        assert loss.item() < 0.1, pooling


# ---------------------------------------------------------------------- text


def device(rank=0, world=1, accumulate=1, seed=0):
    return SimpleNamespace(
        rank=rank, world=world, accumulate=accumulate, seed=seed, main=True, quiet=True,
        device=torch.device("cpu"), gather=lambda value: [value] * world,
    )  # fmt: skip


def test_streams_go_on_from_step_to_step():
    tokens = torch.arange(103)
    batches = Windows(tokens, 12, 4, device())
    assert (batches.streams, batches.window, len(batches)) == (3, 4, 8)
    steps = list(batches)
    assert len(steps) == 8
    for inputs, lengths, following in steps:
        assert lengths is None
        assert torch.equal(inputs + 1, following)
    for (a, _, _), (b, _, _) in itertools.pairwise(steps):
        assert torch.equal(a[:, -1] + 1, b[:, 0])
    begins = set()
    for epoch in range(20):
        batches.seek(epoch, 5)
        rest = list(batches)
        assert len(rest) == 3
        begins.add(int(rest[0][0][0, 0]))
    assert len(begins) > 3  # they begin anew in each epoch
    batches.seek(0, 5)
    assert all(torch.equal(a[0], b[0]) for a, b in zip(batches, steps[5:], strict=True))


def test_parts_of_a_step_are_the_step():
    tokens = torch.arange(500)
    whole = list(Windows(tokens, 32, 4, device()))
    parts = {rank: list(Windows(tokens, 32, 4, device(rank, 2, accumulate=2))) for rank in (0, 1)}
    for step, (inputs, _, _) in enumerate(whole):
        cut = [parts[rank][2 * step + k][0] for k in (0, 1) for rank in (0, 1)]
        assert torch.equal(torch.cat(cut), inputs)


@pytest.mark.parametrize("size", [2, 3, 50, 257, 258, 700, 5000, 20_000])
@pytest.mark.parametrize("world", [1, 2])
def test_every_token_is_measured_once(size, world):
    tokens = torch.arange(size)
    told = []
    for rank in range(world):
        context = {}
        for inputs, _, following in Measured(tokens, 64, device(rank, world)):
            real = following != -100
            assert torch.equal(inputs[real] + 1, following[real])
            told += following[real].tolist()
            for row in range(len(inputs)):  # each row reads on without a gap
                before = context.get(row)
                assert before is None or before in (int(inputs[row, 0]) - 1, size - 2)
                context[row] = int(inputs[row, -1])
    assert sorted(told) == list(range(1, size))


def test_what_is_measured_is_what_one_stream_would_be():
    """Streams side by side with a warm-up tell nearly what the whole text in one row would."""
    torch.manual_seed(0)
    model = MODELS["lstm"]("text", vocab_size=12, hidden_size=16).eval()
    tokens = torch.randint(12, (3000,))
    with torch.no_grad():
        whole = F.cross_entropy(model(tokens[None, :-1])[0][0], tokens[1:]).item()
    part = SimpleNamespace(part="x", facts={"task": "text"}, characters=2999)
    total, state = 0, None
    with torch.no_grad():
        for inputs, _, following in Measured(tokens, 64, device()):
            outputs, state = model(inputs, None, state)
            total = total + measures.sums_of(outputs, following, part.facts)
    found = measures.metrics_of(total, part)
    assert found["x_loss"] == pytest.approx(whole, abs=1e-5)
    assert found["x_bits"] == pytest.approx(whole / math.log(2), abs=1e-5)
    assert found["x_perplexity"] == pytest.approx(math.exp(whole), rel=1e-4)


@pytest.mark.parametrize("tokens", ["chars", "bpe"])
def test_vocabularies_give_the_text_back(tokens):
    text = "Zwölf Boxkämpfer jagen\n\n  Viktor 🙂 quer,\tüber den großen Deich.\n" * 5
    facts = make_vocabulary(text, tokens, 300)
    vocabulary = Vocabulary(json.loads(json.dumps(facts)))
    ids = vocabulary.encode(text)
    assert vocabulary.decode(ids.tolist()) == text
    assert ids.max() < facts["vocab_size"]
    assert not vocabulary.unknown(text)
    strange = vocabulary.encode("Ωx Deich")
    if tokens == "chars":
        assert strange[0] == 0
        assert vocabulary.decode(strange.tolist()) == "\ufffdx Deich"
        assert vocabulary.unknown("Ωx Deich") == "Ω"
    else:  # of bytes: nothing is unknown
        assert vocabulary.decode(strange.tolist()) == "Ωx Deich"


def test_pieces_inside_a_character_wait_for_the_rest():
    vocabulary = Vocabulary(make_vocabulary("plain words only", "bpe", 256))
    ids = vocabulary.encode("a🙂ü.").tolist()
    assert len(ids) == 8
    assert list(sample.pieces(iter(ids), vocabulary)) == ["a", "🙂", "ü", "."]


def test_nats_of_pieces_are_counted_by_character():
    text = "one two three four " * 40
    facts = {"task": "text", **make_vocabulary(text, "bpe", 270)}
    part = Stream("test", text, facts, 16, device())
    first = Vocabulary(facts).decode(part.tokens[:1].tolist())
    assert part.characters == len(text) - len(first)
    found = measures.metrics_of(torch.tensor([100.0, len(part) - 1]), part)
    assert found["test_nats"] == pytest.approx(100 / part.characters)
    assert found["test_loss"] == pytest.approx(100 / (len(part) - 1))


def test_pydocs_and_the_last_tenth():
    texts = parts_of(train.parse_args(["--val", "0"]), corpus.SETS["pydocs"](SimpleNamespace()))
    sizes = [len(texts[part]) for part in ("train", "test")]
    assert sizes[1] == sum(sizes) // 10
    assert END not in str(texts["train"])
    assert sum(sizes) > 400_000


# ---------------------------------------------------------------------- adding


def test_the_adding_problem_by_hand():
    length = 30
    rows = []
    sets = adding.Sums("test", 64, length, device())
    for pairs, lengths, sums in sets.batches(16):
        rows += list(zip(pairs, lengths.tolist(), sums.flatten().tolist(), strict=True))
    assert len(rows) == 64
    seen = set()
    for pairs, steps, wanted in rows:
        assert length <= steps <= 33
        seen.add(steps)
        values, marks = pairs[:steps].T.tolist()
        assert all(-1 <= value <= 1 for value in values)
        assert marks[0] == marks[-1] == -1
        places = [t for t, mark in enumerate(marks) if mark == 1]
        if len(places) == 1:  # the first is at the very beginning, which counts as 0
            places = [0, *places]
        assert len(places) == 2
        assert min(places) < 10
        assert max(places) < length // 2
        total = sum(values[t] for t in places if t)
        assert wanted == pytest.approx(0.5 + total / 4, abs=1e-6)
        assert not pairs[steps:].any()
    assert seen == {30, 31, 32, 33}


def test_sums_are_new_in_each_epoch_and_the_test_part_stays():
    train_part = adding.Sums("train", 20, 20, device())
    batches = train_part.batches(10, train=True)
    first = [sums for _, _, sums in batches]
    batches.seek(1, 0)
    again = [sums for _, _, sums in batches]
    assert not torch.equal(torch.cat(first), torch.cat(again))
    tests = [torch.cat([s for _, _, s in adding.Sums("test", 20, 20, device()).batches(b)])
             for b in (20, 7)]  # fmt: skip
    torch.testing.assert_close(*tests)


# ---------------------------------------------------------------------- the loop


@pytest.fixture
def short(monkeypatch):
    """A short text in the place of the documentation."""
    words = WORDS.split()
    text = " ".join(words[(i * i + i // 7) % len(words)] for i in range(1500))
    monkeypatch.setitem(corpus.SETS, "pydocs", lambda args: Corpus({"all": Text([text])}))
    monkeypatch.setattr(adding, "TEST", 40)


SMALL = ["--quiet", "--precision", "fp32", "--hidden-size", "16", "--embedding-size", "8"]
TEXT = [*SMALL, "--batch-size", "160", "--bptt", "10", "--val", "400", "--dropout", "0"]


def same(a, b, **tolerance):
    for key in a:
        torch.testing.assert_close(a[key], b[key], **tolerance)


@pytest.mark.parametrize("model", ["lstm", "gru", "elman"])
def test_resuming_is_exact_inside_an_epoch(short, model):
    """The state goes on where it was, and so do dropout's random numbers and all else."""
    flags = [*TEXT, "--model", model, "--epochs", "2", "--dropout", "0.3", "--num-layers", "2"]
    train.main([*flags, "--run-dir", "whole"])
    train.main([*flags, "--run-dir", "cut", "--max-steps", "7"])
    stored = torch.load("cut/last.pt")
    assert (stored["position"], stored["carried"]["0"].shape) == (7, (2, 16, 16))
    train.main(["--quiet", "--resume", "--run-dir", "cut"])
    whole, cut = (torch.load(f"{name}/last.pt") for name in ("whole", "cut"))
    assert whole["step"] == cut["step"] > 14
    for part in ("model", "carried"):
        for key, value in whole[part].items():
            assert torch.equal(value, cut[part][key]), key
    rows = [[json.loads(line) for line in Path(name, "metrics.jsonl").read_text().splitlines()]
            for name in ("whole", "cut")]  # fmt: skip
    assert rows[0][-1] == rows[1][-1]


def test_the_state_matters_in_training(short, monkeypatch):
    """Without it the same run comes to other weights: so the tests above could fail."""
    flags = [*TEXT, "--max-steps", "4"]
    train.main([*flags, "--run-dir", "with"])
    monkeypatch.setattr(corpus.Carried, "take", lambda self: None)
    train.main([*flags, "--run-dir", "without"])
    a, b = weights("with"), weights("without")
    assert any((a[key] - b[key]).abs().max() > 1e-4 for key in a)


def test_each_epoch_begins_at_the_state_zero(short, monkeypatch):
    taken, take = [], corpus.Carried.take
    monkeypatch.setattr(corpus.Carried, "take", lambda self: taken.append(take(self)) or taken[-1])
    train.main([*TEXT, "--epochs", "3"])
    zeros = [number for number, state in enumerate(taken) if state is None]
    assert zeros == [0, len(taken) // 3, 2 * len(taken) // 3]


def test_weights_decay(short):
    for decay in ("0", "20"):
        train.main([*TEXT, "--max-steps", "1", "--weight-decay", decay, "--run-dir", decay])
    plain, less = weights("0"), weights("20")
    assert not any(torch.equal(plain[key], less[key]) for key in plain)


KINDS = {
    "text": [*TEXT],
    "bpe": [*TEXT, "--tokens", "bpe", "--vocab-size", "270", "--clip", "0.5"],
    "adding": [*SMALL[:-2], "--data", "adding", "--length", "12", "--batch-size", "20", "--val",
               "20", "--limit", "200"],
}  # fmt: skip
STEPS = ["--max-steps", "6", "--lr", "0.01"]


@pytest.mark.parametrize("kind", KINDS)
def test_accumulation_equals_the_large_batch(kind, short):
    rows = []
    for k in (1, 2):
        flags = [*KINDS[kind], *STEPS, "--run-dir", f"k{k}", "--accumulate", str(k)]
        rows.append(train.main(flags))
    same(weights("k1"), weights("k2"), rtol=0, atol=5e-5)
    assert rows[0] == pytest.approx(rows[1], rel=1e-3)
    if kind != "adding":
        states = [torch.load(f"k{k}/last.pt")["carried"] for k in (1, 2)]
        same(*states, rtol=0, atol=1e-4)


def both_processes():
    for kind, flags in KINDS.items():
        train.main([*flags, *STEPS, "--run-dir", f"two-{kind}"])
    train.main([*KINDS["text"], *STEPS, "--fsdp", "--run-dir", "shards-text"])
    train.main(["--quiet", "--resume", "--run-dir", "half", "--max-steps", "6"])


def test_two_processes_equal_one(short):
    for kind, flags in KINDS.items():
        train.main([*flags, *STEPS, "--run-dir", f"one-{kind}"])
    half = [*KINDS["text"], *STEPS]
    half[half.index("--max-steps") + 1] = "3"
    train.main([*half, "--run-dir", "half"])
    done = torchrun(__file__, Path.cwd())
    assert done.returncode == 0, done.stderr
    pairs = [(f"one-{kind}", f"two-{kind}") for kind in KINDS]
    pairs += [("one-text", "shards-text"), ("one-text", "half")]
    for one, two in pairs:
        same(weights(one), weights(two), rtol=0, atol=5e-5)
        if "adding" not in one:  # the state of all streams, of either
            states = [torch.load(f"{name}/last.pt")["carried"] for name in (one, two)]
            same(*states, rtol=0, atol=1e-4)
        rows = [json.loads(Path(name, "metrics.jsonl").read_text().splitlines()[-1])
                for name in (one, two)]  # fmt: skip
        for key in rows[0]:
            assert rows[0][key] == pytest.approx(rows[1][key], rel=1e-3), (key, two)


NATIVE = Path("/proc/cpuinfo").exists() and "avx512_bf16" in Path("/proc/cpuinfo").read_text()
ABILITIES = [{"avx512_bf16": native} for native in (False, True)[: 1 + NATIVE]]


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("model", ["lstm", "gru", "elman", "lstm_1997", "gru_2014"])
def test_half_precision_steps(precision, model, monkeypatch):
    """Two steps with the state carried on, about as in fp32, on processors with and without."""
    tokens = torch.randint(9, (4, 21))
    for able in ABILITIES:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda able=able: able)
        losses = []
        for kind in ("fp32", precision):
            torch.manual_seed(1)
            dev = Device(device_args(precision=kind))
            net = dev.wrap(MODELS[model]("text", vocab_size=9, hidden_size=16, num_layers=2))
            optimizer = torch.optim.SGD(net.parameters(), 0.5)
            carried = corpus.Carried(dev, on=True)
            for step in (slice(0, 10), slice(10, 20)):
                with dev.autocast():
                    outputs, state = net(tokens[:, step], None, carried.take())
                carried.put(state)
                loss = train.loss_of(outputs, tokens[:, 1:][:, step])
                dev.step(loss, optimizer)
            losses.append(loss.item())
        assert losses[1] == pytest.approx(losses[0], rel=0.02)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_from_training_to_the_test(precision, short, monkeypatch):
    flags = ["--precision", precision, *(f for f in TEXT if f not in ("--precision", "fp32"))]
    for able in ABILITIES:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda able=able: able)
        metrics = train.main([*flags, "--max-steps", "2"])
        assert all(map(math.isfinite, metrics.values()))


def test_a_batch_size_typed_on_resume_makes_other_streams(short):
    train.main([*TEXT, "--run-dir", "run", "--max-steps", "5"])
    metrics = train.main(["--quiet", "--resume", "--run-dir", "run", "--batch-size", "80",
                          "--epochs", "2"])  # fmt: skip
    assert math.isfinite(metrics["test_loss"])
    assert torch.load("run/last.pt")["carried"]["0"].shape == (1, 8, 16)


def test_rates():
    args = SimpleNamespace(decay=0.5, decay_after=2, epochs=10)
    shares = [train.step_size(args, 3, step) for step in range(12)]
    assert shares == [1.0] * 6 + [0.5] * 3 + [0.25] * 3
    args = SimpleNamespace(decay=None, epochs=10)
    shares = [train.step_size(args, 3, step) for step in range(30)]
    assert shares.index(max(shares)) == 3
    assert shares[:3] == sorted(shares[:3])
    assert 0 < shares[-1] < 0.02


@pytest.mark.slow
def test_quick_reaches_the_number_of_the_readme():
    assert train.main(["--quiet"])["test_nats"] < 1.25


# ---------------------------------------------------------------------- the scripts


def test_a_text_of_ones_own_and_what_is_written(capsys, refused):
    Path("mine.txt").write_text("ab cd ef\r\n" * 400, "utf-8")
    flags = ["--data", "text:mine.txt", *TEXT[1:], "--lr", "0.02", "--epochs", "6"]
    metrics = train.main([*flags, "--run-dir", "run"])
    assert "3,240 train" in capsys.readouterr().out.replace("2,840 train, 400 val", "3,240 train")
    assert metrics["test_nats"] < 0.7
    again = train.main(["--evaluate", "run/last.pt", "--quiet"])
    assert again["test_nats"] == pytest.approx(metrics["test_nats"], rel=1e-4)
    line = refused(train.main, ["--evaluate", "run/last.pt", "--data", "sst2"])
    assert "network is for text: sst2 is of sentences" in line
    capsys.readouterr()
    argv = ["--checkpoint", "run/last.pt", "--prompt", "ab c", "--length", "40"]
    text = sample.main([*argv, "--temperature", "0", "--out", "out"])
    streams = capsys.readouterr()
    assert text.startswith("ab c")
    assert len(text) == 44
    assert streams.out == text + "\n"  # nothing else on stdout
    assert Path("out/text.txt").read_text() == text + "\n"
    assert "out/text.txt is there already" in refused(sample.main, [*argv, "--out", "out"])
    assert not set(text) - set("ab cdef\n")
    texts = {sample.main([*argv, "--seed", seed, "--temperature", "3"]) for seed in "0012"}
    assert len(texts) == 3
    assert sample.main([*argv, "--temperature", "1e-300"]) == text  # as with 0
    capsys.readouterr()
    text = sample.main([*argv[:2], "--prompt", "Ωa", "--length", "3"])
    assert "1 character that training has not: Ω" in capsys.readouterr().err
    assert text.startswith("Ωa")
    assert len(sample.main([*argv[:2], "--length", "5"])) == 6


def test_bad_text(refused):
    Path("empty.txt").write_text(" \n")
    Path("latin.txt").write_bytes("eins\nzwei\nfünf\n".encode("latin-1"))
    Path("wide.txt").write_text("text", "utf-16")
    Path("zero.txt").write_bytes(b"ab\0cd")
    Path("one.txt").write_text("x")
    Path("few.txt").write_text("abcdefghij")
    Path("cut.txt.gz").write_bytes(b"\x1f\x8b\x08\x00abc")
    Path("folder").mkdir()
    for name, words in {
        "empty.txt": "empty.txt is empty",
        "latin.txt": "latin.txt: line 3 is not UTF-8 text (byte 0xfc, ü in Latin-1)",
        "wide.txt": "UTF-16",
        "zero.txt": "zero bytes",
        "one.txt": "two at least",
        "cut.txt.gz": "damaged",
        "folder": "no text files",
        "nowhere.txt": "no such file",
    }.items():
        assert words in refused(train.main, ["--data", f"text:{name}"]), name
    assert "two at least" in refused(train.main, ["--data", "text:few.txt"])
    Path("more.txt").write_text("abcdefghij" * 3)
    assert "--val 27 leaves nothing" in refused(
        train.main, ["--data", "text:more.txt", "--val", "27"]
    )
    line = refused(train.main, ["--data", "text:more.txt", "--val", "1"])
    assert "--val 1: of one character there is nothing to tell" in line
    assert "too few" in refused(
        train.main, ["--data", "text:more.txt", "--val", "0", "--accumulate", "40"]
    )
    line = refused(train.main, ["--data", "text:more.txt", "--tokens", "bpe", "--vocab-size", "9"])
    assert "256 bytes" in line
    assert "can't share" in refused(
        train.main, ["--data", "text:more.txt", "--batch-size", "15", "--bptt", "5", "--accumulate",
                     "2"]
    )  # fmt: skip
    assert "input.txt is not in" in refused(train.main, ["--data", "shakespeare"])
    assert not Path("runs").exists()


def test_the_shortest_text_there_is(capsys):
    Path("short.txt").write_text("ab" * 10)
    metrics = train.main(["--data", "text:short.txt", "--max-steps", "2", "--quiet", "--val", "0"])
    assert math.isfinite(metrics["test_loss"])
    Path("books").mkdir()
    for name in ("train", "val", "test"):
        Path("books", f"{name}.txt").write_text(f"{name} text " * 20)
    train.main(["--data", "text:books", "--max-steps", "2"])
    out = capsys.readouterr().out
    assert "220 train, 180 val, 200 test characters" in out
    Path("books/val.txt").unlink()
    Path("books/train.txt").rename("books/ptb.train.txt")
    Path("books/test.txt").rename("books/ptb.valid.txt")
    train.main(["--data", "text:books", "--max-steps", "2", "--val", "0"])
    assert "220 train, 200 test characters" in capsys.readouterr().out
    metrics = train.main(["--data", "text:books", "--limit", "50", "--val", "0", "--epochs", "1"])
    assert "50 train, 200 test" in capsys.readouterr().out
    assert math.isfinite(metrics["test_loss"])
    assert "note: the val set has 2 characters that training has not: l v" in out


def test_flags_that_mean_nothing(refused):
    for argv, words in (
        (["--pooling", "mean"], "answers after each token"),
        (["--vocab-size", "500"], "--tokens bpe"),
        (["--data", "adding", "--bptt", "5"], "it is for text"),
        (["--data", "fsdd", "--embedding-size", "5"], "numbers"),
        (["--model", "lstm_small", "--hidden-size", "5"], "sizes of its own"),
        (["--decay-after", "5"], "cosine"),
        (["--model", "elman", "--keep-bias", "2"], "no gate that keeps"),
        (["--model", "lstm_small", "--keep-bias", "2"], "drawn alike"),
        (["--compile"], "compiled already"),
        (["--model", "bilstm", "--data", "pydocs"], "both ways"),
        (["--model", "char_rnn", "--data", "adding"], "language model"),
        (["--optimizer", "sgd", "--weight-decay", "0.1"], "AdamW"),
        (["--data", "sst2", "--text-column", "text"], "sentences:PATH"),
    ):
        assert words in refused(train.parse_args, argv), argv


def test_flags_reach_the_network():
    argv = [
        "--data",
        "sst2",
        "--model",
        "bigru",
        "--pooling",
        "mean",
        "--hidden-size",
        "6",
        "--num-layers",
        "2",
        "--embedding-size",
        "4",
        "--dropout",
        "0.3",
        "--keep-bias",
        "2",
    ]
    facts = {"task": "sentences", "classes": ["a", "b"], "vocab_size": 9}
    model = train.build(train.parse_args(argv), facts)  # fmt: skip
    assert (model.pooling, model.dropout.p, model.embedding.size) == ("mean", 0.3, 4)
    rnn = model.rnn
    assert (rnn.hidden_size, rnn.num_layers, rnn.directions, rnn.dropout) == (6, 2, 2, 0.3)
    assert rnn.bias_ih_l0[6:12].tolist() == [2.0] * 6
    assert dropped(model, torch.ones(3, 5).long()) == {(3, 5, 4): 1, (3, 12): 1}
    text = MODELS["lstm"]("text", vocab_size=9, hidden_size=6, embedding_size=4)
    assert dropped(text, torch.ones(3, 5).long()) == {(3, 5, 4): 1, (3, 5, 6): 1}


def test_it_trains_in_training_and_is_measured_without_dropout(short, monkeypatch):
    seen = modes(train, monkeypatch)
    train.main([*TEXT, "--epochs", "2"])
    assert seen == BOTH


def test_recipes():
    assert recipes.task_of("sentences:x") == "sentences"
    assert recipes.task_of("pydocs") == "text"
    assert train.parse_args(["--paper"]).data == "adding"
    zaremba = train.parse_args(["--paper", "--model", "lstm_medium"])
    assert (zaremba.batch_size, zaremba.bptt, zaremba.epochs) == (700, 35, 39)
    assert (zaremba.optimizer, zaremba.lr, zaremba.dropout) == ("sgd", 1.0, 0.5)
    assert train.parse_args(["--model", "bilstm"]).data == "adding"
    assert train.parse_args(["--data", "names"]).units == "characters"
    assert train.parse_args(["--data", "etth1"]).horizon == 24


def test_the_output_unit_of_1997():
    answers = []
    for argv in (["--paper"], ["--data", "adding"]):
        model = train.build(train.parse_args(argv), {"task": "adding"})
        nn.init.constant_(model.output.bias, 50.0)
        answers.append(float(model(torch.zeros(1, 5, 2))[0].detach()))
    assert answers[0] == 1.0
    assert answers[1] > 40


def test_sentences_from_training_to_the_picture(capsys, refused):
    good, bad = ["lovely", "great fun"], ["dull", "awful mess"]
    lines = ["text\tlabel"] + [
        f"a {word} film number {i}\t{label}"
        for i in range(40)
        for label, words in (("good", good), ("bad", bad))
        for word in words
    ]
    Path("mine.tsv").write_text("\n".join(lines) + "\n")
    flags = [
        "--data",
        "sentences:mine.tsv",
        *SMALL[1:],
        "--epochs",
        "12",
        "--lr",
        "0.02",
        "--dropout",
        "0",
    ]
    metrics = train.main([*flags, "--quiet", "--model", "bilstm", "--run-dir", "run"])
    assert metrics["test_accuracy"] > 0.9
    assert Path("run/confusion.png").exists()
    argv = ["--checkpoint", "run/last.pt"]
    found = sample.main([*argv, "a lovely film", "what an awful mess", "--out", "out"])
    assert list(found.values()) == ["good", "bad"]
    assert Path("out/words.png").exists()
    Path("lines.txt").write_text("dull\n\nlovely fun\n")
    assert len(sample.main([*argv, "--file", "lines.txt"])) == 2
    assert 0 < len(sample.main(argv)) <= sample.SHOWN
    assert "wanted:" in capsys.readouterr().out
    assert "--prompt means nothing" in refused(sample.main, [*argv, "--prompt", "x"])
    assert "sentence 2 is empty" in refused(sample.main, [*argv, "fine", ""])


def test_a_series_from_training_to_the_forecast(capsys, refused):
    Path("mine.csv").write_text("day,value\n" + "\n".join(
        f"{(i // 24) % 28 + 1:02}.01.2020 {i % 24:02}:00,{10 + math.sin(i / 3):.4f}"
        for i in range(600)) + "\n")  # fmt: skip
    flags = ["--data", "series:mine.csv", "--window", "24", "--horizon", "6", "--epochs", "3"]
    metrics = train.main([*flags, *SMALL[1:-2], "--lr", "0.01", "--run-dir", "run"])
    out = capsys.readouterr().out
    assert "ridge regression" in out
    assert "ours (lstm)" in out
    assert Path("run/forecasts.txt").read_text().count("\n") >= 4
    assert metrics["test_mse"] < 2
    argv = ["--checkpoint", "run/last.pt", "--out", "out"]
    sample.main(argv)
    assert Path("out/forecasts.png").exists()
    assert "out/forecasts.png is there already" in refused(sample.main, [*argv, "mine.csv"])
    argv = [*argv[:-1], "two"]
    found = sample.main([*argv, "mine.csv"])
    assert len(found["value"]) == 6
    assert all(7 < value < 13 for value in found["value"].values())
    assert Path("two/forecast.csv").read_text().count("\n") == 7
    assert "one series at a time" in refused(sample.main, [*argv, "mine.csv", "mine.csv"])
    assert "nothing is drawn" in refused(sample.main, [*argv, "--seed", "3"])


def test_adding_is_told(short, capsys):
    train.main([*KINDS["adding"], "--max-steps", "2", "--run-dir", "run"])
    assert len(sample.main(["--checkpoint", "run/last.pt"])) > 4
    assert "right is" in capsys.readouterr().out


# ---------------------------------------------------------------------- claims


def test_norms_of_gradients_by_hand():
    """Of a linear chain, h_t = x + W h: powers of the matrix, nearly, for small h."""
    torch.manual_seed(0)
    layer = Elman(1, 3).double()
    with torch.no_grad():
        for p in layer.parameters():
            p.zero_()
        layer.weight_hh_l0.copy_(0.5 * torch.eye(3))
    torch.set_default_dtype(torch.float64)
    try:
        norms = claims.gradient_norms(layer, torch.zeros(2, 5, 1), draws=2000)["h"]
    finally:
        torch.set_default_dtype(torch.float32)
    wanted = torch.tensor([0.5**lag for lag in (4, 3, 2, 1, 0)], dtype=torch.float64)
    torch.testing.assert_close(norms, wanted, rtol=0.05, atol=0)


def test_a_stream_read_on_by_hand():
    """Against the fused kernel on the whole stream; longer than a part of 500."""
    torch.manual_seed(0)
    model = MODELS["lstm"]("text", vocab_size=9, hidden_size=8, embedding_size=4).eval()
    tokens = torch.randint(9, (1203,))
    sizes, losses = claims.read_on(model, tokens, device())
    with torch.no_grad():
        logits, (_, c) = model(tokens[None, :-1])
        wanted = F.cross_entropy(logits[0], tokens[1:], reduction="none")
    torch.testing.assert_close(losses, wanted, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(sizes[-1], c.abs().mean(), rtol=1e-4, atol=1e-5)
    assert sizes.shape == losses.shape == (1202,)


def test_cells_are_of_equal_size():
    sizes = []
    for flags in claims.CLAIMS["cells"].values():
        argv = ["--data", "shakespeare", "--num-layers", "1", *flags]
        model = train.build(train.parse_args(argv), {"task": "text", "vocab_size": 66})
        sizes.append(count(model))
    assert sizes == [350_398, 351_429, 350_914]


@pytest.fixture
def tiny_claims(short, monkeypatch):
    """Runs of two steps of 8 units, and data for those that read files."""
    Path("SST2").mkdir()
    for part in ("train", "dev", "test"):
        lines = [f"{'good' if i % 2 else 'bad'} film {i % 5}\t{i % 2}" for i in range(40)]
        Path("SST2", f"{part}.tsv").write_text("\n".join(lines) + "\n")
    Path("tinyshakespeare").mkdir()
    Path("tinyshakespeare/input.txt").write_text(WORDS * 20)
    small = ["--hidden-size", "8", "--max-steps", "2", "--precision", "fp32"]
    sums = ["--limit", "100", "--length", "12"]
    arms = {
        claim: {
            arm: [*flags, *small, *(sums if claim in ("lag", "gradients") else [])]
            for arm, flags in some.items()
            if {"lag": ", 50 ", "cells": "LSTM"}.get(claim, "") in arm
        }
        for claim, some in claims.CLAIMS.items()
    }
    monkeypatch.setattr(claims, "LAGS", (50,))
    monkeypatch.setattr(claims, "SHOWN_LAGS", (1, 10))
    monkeypatch.setattr(claims, "CLAIMS", arms)
    monkeypatch.setattr(claims, "RATES", ("1e-9", "1e-2"))


@pytest.mark.parametrize("claim", claims.CLAIMS)
def test_claims_run_and_summarise(claim, tiny_claims, capsys):
    argv = [claim, "--seeds", "0", "--out", "out", "--data-dir", ".", "--epochs", "1"]
    summary = claims.main(argv)
    wanted = claims.CLAIMS[claim].keys()
    if claim == "cells":  # the first rate learns nothing
        wanted = {f"{name} 1e-2" for name in wanted}
        assert all("--lr 1e-2 --seed" in entry["command"] for entry in summary.values())
    assert summary.keys() == wanted
    found = json.loads(Path("out", f"claim_{claim}.json").read_text())
    assert found == summary
    if claim == "gradients":
        keys = {f"{part}_{when}_lag_{lag}" for part in "hc" for when in ("before", "after")
                for lag in claims.SHOWN_LAGS}  # fmt: skip
        assert keys <= found["LSTM, 100 steps"].keys()
    if claim == "forget":
        keys = {f"stream_{what}{place}" for what in ("nats", "state")
                for place in ("", "_first", "_last")}  # fmt: skip
        assert all(keys <= entry.keys() for entry in found.values())
    assert Path("out", f"claim_{claim}.png").exists()
    before = {p: p.stat().st_mtime_ns for p in Path("runs").rglob("last.pt")}
    assert claims.main(argv) == summary
    assert {p: p.stat().st_mtime_ns for p in Path("runs").rglob("last.pt")} == before


if __name__ == "__main__":  # what torchrun starts
    os.chdir(sys.argv[1])
    words = WORDS.split()
    text = " ".join(words[(i * i + i // 7) % len(words)] for i in range(1500))
    corpus.SETS["pydocs"] = lambda args: Corpus({"all": Text([text])})
    adding.TEST = 40
    both_processes()
