"""Sutskever's, Bahdanau's and Luong's networks: sizes, the papers' equations by brute force, steps,
padding, scripts.

Usage: torchrun --nproc-per-node 2 tests/test_seq2seq.py FOLDER trains the same way there.
"""

import io
import itertools
import json
import math
import os
import sys
from pathlib import Path

import pytest
import sacrebleu
import torch
import torch.nn.functional as F
from conftest import torchrun
from helpers import BOTH, count, dropped, modes, perturb, weights
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from common.data import pairs
from seq2seq import bahdanau, claims, luong, sample, sutskever, train
from seq2seq.bahdanau import Bahdanau, GatedUnit
from seq2seq.decoding import draw, translate
from seq2seq.layers import LSTM, Attention, BothWays, lengths_of, mask_of, turn
from seq2seq.luong import Luong
from seq2seq.model import END, MODELS, PAD, SCORES, SIZES, START
from seq2seq.sutskever import Sutskever

VOCAB = 14
FAMILIES = {
    "sutskever": lambda **s: Sutskever(VOCAB, 5, 6, 2, **s),
    "not reversed": lambda **s: Sutskever(VOCAB, 5, 6, 3, reverse=False, **s),
    "bahdanau": lambda **s: Bahdanau(VOCAB, 5, 6, 4, **s),
    "luong": lambda **s: Luong(VOCAB, 5, 6, 2, **{"dropout": 0.0} | s),
    "no feeding": lambda **s: Luong(
        VOCAB, 5, 6, 2, reverse=False, score="concat", input_feeding=False, **{"dropout": 0.0} | s
    ),
    "dot": lambda **s: Luong(VOCAB, 5, 6, 1, score="dot", **{"dropout": 0.0} | s),
}


def small(name, **settings):
    """One of them in float64, with weights that hide nothing."""
    torch.manual_seed(0)
    model = perturb(FAMILIES[name](**settings).double().eval())
    for p in model.parameters():
        nn.init.normal_(p, std=0.5)
    return model


def sentences(lengths, seed=0, start=False):
    """Random tokens (B, T), padded."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(4, VOCAB, (len(lengths), max(lengths)), generator=generator)
    tokens = tokens * (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None])
    return torch.cat([torch.full((len(lengths), 1), START), tokens], 1) if start else tokens


SOURCES, TARGETS = sentences([7, 3, 1, 5]), sentences([4, 6, 2, 5], 1, start=True)
both = pytest.mark.parametrize("name", list(FAMILIES))


# ---------------------------------------------------------------------- sizes


def matrices(model):
    return sum(p.numel() for p in model.parameters() if p.dim() > 1)


def test_parameters_are_the_papers():
    with torch.device("meta"):
        model = MODELS["sutskever"]()
        lstm = 4 * 2 * (4 * 1000 * 1000 * 2)  # layers, sides, gates from input and from state
        assert lstm == 64_000_000  # "of which 64M are pure recurrent connections"
        assert matrices(model) == lstm + (160_000 + 80_000 + 80_000) * 1000 == 384_000_000
        assert count(model) == 384_000_000 + 4 * 2 * 8000
        joint = MODELS["sutskever"](80_000)  # one vocabulary for both sides, as with --paper
        assert matrices(joint) == lstm + 3 * 80_000 * 1000

        model, n, k = MODELS["luong"](), 1000, 50_000
        base = lstm + 3 * k * n
        assert base == 214_000_000
        assert matrices(model) == base + 2 * n * n + n * n + 4 * n * n == 221_000_000
        plain = MODELS["luong"](score="dot", input_feeding=False)
        assert matrices(plain) == base + 2 * n * n
        assert matrices(MODELS["luong"](score="concat")) == base + 6 * n * n + 2 * n * n + n

        model, n, m, maxout, k = MODELS["bahdanau"](), 1000, 620, 500, 30_000  # A.2.3
        encoder = 2 * 3 * (m * n + n * n)
        decoder = 3 * (m * n + n * n + 2 * n * n) + n * n  # and W_s
        attention = n * n + n * 2 * n + n
        output = 2 * maxout * (n + m + 2 * n) + k * maxout
        wanted = 2 * k * m + encoder + decoder + attention + output
        assert matrices(model) == wanted == 80_401_000
        assert count(model) == wanted + 2 * 2 * 3 * n + 3 * n + n + 2 * maxout
    small_ones = {name: count(MODELS[name]()) for name in MODELS if name.endswith("_small")}
    assert small_ones == {
        "sutskever_small": 2_643_968,
        "bahdanau_small": 2_542_080,
        "luong_small": 2_588_672,
    }


def test_first_weights():
    model = Sutskever(50, 30, 40, 2)  # Sec. 3.4
    assert all(0.07 < p.abs().max() <= 0.08 for p in model.parameters() if p.numel() > 100)
    model = Luong(50, 30, 40, 2)
    assert all(0.09 < p.abs().max() <= 0.1 for p in model.parameters() if p.numel() > 100)
    model = Bahdanau(50, 30, 40, 20)  # B.1
    for square in (model.unit.new.weight, *model.unit.gates.weight.split(40),
                   *model.encoder.back.weight_hh_l0.split(40)):  # fmt: skip
        torch.testing.assert_close(square @ square.T, torch.eye(40), atol=1e-5, rtol=0)
    assert not model.attention.v.weight.any()
    assert model.attention.key.weight.std().item() == pytest.approx(0.001, rel=0.1)
    assert model.words.target.weight.std().item() == pytest.approx(0.01, rel=0.1)
    for family in (Sutskever, Luong, Bahdanau):  # of the small networks
        model = family(50, 30, 40, init=None)
        recurrent = [p for name, p in model.named_parameters() if "weight_hh" in name]
        for square in itertools.chain(*(p.split(40) for p in recurrent)):
            torch.testing.assert_close(square @ square.T, torch.eye(40), atol=1e-5, rtol=0)
        assert recurrent
        assert not any(p.any() for p in model.parameters() if p.dim() == 1)
        assert model.words.target.weight.std().item() == pytest.approx(30**-0.5, rel=0.1)
    assert {name for name, sizes in SIZES.items() if sizes.get("init", 0) is None} == {
        name for name in MODELS if name.endswith("_small")
    }


# ---------------------------------------------------------------------- the papers' equations


def score_by_hand(attention, q, m):
    q, m = q.detach(), m.detach()
    if attention.kind == "dot":
        return float(q @ m)
    if attention.kind == "general":
        return float(q @ attention.key.weight.detach() @ m)
    hidden = (attention.query.weight @ q + attention.key.weight @ m).detach()
    return sum(
        float(v) * math.tanh(x)
        for v, x in zip(attention.v.weight[0].detach(), hidden.tolist(), strict=True)
    )


@pytest.mark.parametrize("kind", SCORES)
def test_attention_by_brute_force(kind):
    torch.manual_seed(0)
    sizes = (4, 4, 4) if kind == "dot" else (4, 6, 5)
    attention = Attention(kind, *sizes).double()
    query = torch.randn(2, 3, sizes[0], dtype=torch.float64)
    memory = torch.randn(2, 5, sizes[1], dtype=torch.float64)
    mask = torch.tensor([[True] * 5, [True, True, False, False, False]])
    with torch.no_grad():
        contexts, weights = attention(query, memory, attention.keys(memory), mask)
    for b, t in itertools.product(range(2), range(3)):
        there = [s for s in range(5) if mask[b, s]]
        odds = {s: math.exp(score_by_hand(attention, query[b, t], memory[b, s])) for s in there}
        total = sum(odds.values())
        for s in range(5):
            share = odds[s] / total if s in odds else 0.0
            assert float(weights[b, t, s]) == pytest.approx(share, abs=1e-12)
        context = sum(odds[s] / total * memory[b, s] for s in there)
        torch.testing.assert_close(contexts[b, t], context)
    torch.testing.assert_close(weights.sum(2), torch.ones(2, 3, dtype=torch.float64))


def test_concat_joins_query_and_memory():
    """Luong's W_a [h_t; h_s] is Bahdanau's W_a s + U_a h."""
    attention = Attention("concat", 3, 4, 5)
    q, m = torch.randn(3), torch.randn(4)
    joint = torch.cat([attention.query.weight, attention.key.weight], 1)
    wanted = attention.v.weight @ torch.tanh(joint @ torch.cat([q, m]))
    found = attention.scores(q[None, None], attention.keys(m[None, None]))
    torch.testing.assert_close(found[0, 0], wanted)


def test_scores_that_do_not_fit():
    with pytest.raises(ValueError, match="cosine"):
        Attention("cosine", 3, 3)
    with pytest.raises(ValueError, match="no dot product"):
        Attention("dot", 3, 4)
    with pytest.raises(ValueError, match="one vocabulary"):
        Sutskever(10, tied=True, source_size=20)


def test_the_gated_unit_resets_before_the_product():
    """A.1.1, A.2.2, number by number."""
    torch.manual_seed(0)
    unit = GatedUnit(3, 4, 2).double()
    y, c, s = (torch.randn(n, dtype=torch.float64) for n in (3, 4, 2))
    found = unit(unit.inputs(y[None]), c[None], s[None])[0]
    of_y = unit.inputs.weight @ y + unit.inputs.bias
    of_c = unit.context.weight @ c
    net = of_y + of_c
    z = torch.sigmoid(net[:2] + unit.gates.weight[:2] @ s)
    r = torch.sigmoid(net[2:4] + unit.gates.weight[2:] @ s)
    new = torch.tanh(net[4:] + unit.new.weight @ (r * s))
    torch.testing.assert_close(found, (1 - z) * s + z * new)


def reference_lstm(ours, input_size):
    """torch's stack with the same weights."""
    theirs = nn.LSTM(input_size, ours.hidden_size, len(ours.layers), batch_first=True).double()
    for number, layer in enumerate(ours.layers):
        for name, p in layer.named_parameters():
            getattr(theirs, name.replace("l0", f"l{number}")).data.copy_(p)
    return theirs


def test_the_deep_lstm_is_torchs():
    """Outputs, last states and gradients; by the kernel, and step by step."""
    torch.manual_seed(0)
    ours, x = LSTM(3, 4, 3).double(), torch.randn(2, 5, 3, dtype=torch.float64)
    theirs = reference_lstm(ours, 3)
    state = tuple(torch.randn(2, 3, 4, dtype=torch.float64) for _ in "hc")
    wanted, last = theirs(x, tuple(part.transpose(0, 1).contiguous() for part in state))
    found, new = ours(x, state)
    torch.testing.assert_close(found, wanted)
    for a, b in zip(new, last, strict=True):
        torch.testing.assert_close(a, b.transpose(0, 1))
    layer, now, outputs = ours.layers[0], state, []
    for net in F.linear(x, layer.weight_ih_l0, layer.bias_ih_l0).unbind(1):
        out, now = ours.step(net, now)
        outputs.append(out)
    torch.testing.assert_close(torch.stack(outputs, 1), wanted)
    torch.testing.assert_close(now, new)
    grads = []
    for out, params in ((wanted, theirs), (found, ours), (torch.stack(outputs, 1), ours)):
        grads.append(torch.autograd.grad(out.square().sum(), list(params.parameters())))
    for a, b, c in zip(*grads, strict=True):
        torch.testing.assert_close(a, b)
        torch.testing.assert_close(a, c)


def test_what_stands_before_a_sentence_is_not_read():
    torch.manual_seed(0)
    ours = LSTM(3, 4, 2).double()
    for p in ours.parameters():
        nn.init.normal_(p)
    x = torch.randn(3, 6, 3, dtype=torch.float64)
    blank = torch.arange(6) < torch.tensor([0, 2, 5])[:, None]
    found, state = ours(x, ours.begin(x), blank)
    for i, start in enumerate((0, 2, 5)):
        alone = x[i : i + 1, start:]
        wanted, last = ours(alone, ours.begin(alone))
        torch.testing.assert_close(found[i : i + 1, start:], wanted)
        for a, b in zip(state, last, strict=True):
            torch.testing.assert_close(a[i : i + 1], b)
    (grad,) = torch.autograd.grad(state[1].sum() + found.sum(), ours.layers[0].weight_ih_l0)
    assert grad.isfinite().all()


def test_both_ways_is_torchs_of_packed_sentences():
    torch.manual_seed(0)
    ours = BothWays(3, 4).double()
    theirs = nn.GRU(3, 4, batch_first=True, bidirectional=True).double()
    for end, part in (("", ours.forth), ("_reverse", ours.back)):
        for name, p in part.named_parameters():
            getattr(theirs, name + end).data.copy_(p)
    lengths = torch.tensor([5, 2, 1, 4])
    x = torch.randn(4, 5, 3, dtype=torch.float64)
    packed = theirs(pack_padded_sequence(x, lengths, True, enforce_sorted=False))[0]
    wanted = pad_packed_sequence(packed, batch_first=True)[0]
    mask = torch.arange(5) < lengths[:, None]
    torch.testing.assert_close(ours(x, lengths)[mask], wanted[mask])


def test_turning():
    tokens = torch.tensor([[4, 5, 6], [7, 8, PAD], [9, PAD, PAD]])
    turned = turn(tokens, lengths_of(tokens))
    assert turned.tolist() == [[6, 5, 4], [8, 7, PAD], [9, PAD, PAD]]
    wide = tokens[:, :, None].expand(-1, -1, 2)
    assert torch.equal(turn(wide, lengths_of(tokens))[..., 1], turned)
    assert mask_of(torch.tensor([[PAD, PAD], [4, PAD]])).tolist() == [[True, False]] * 2


# ---------------------------------------------------------------------- whole networks


@pytest.mark.parametrize("reverse", [True, False])
def test_sutskever_is_two_stacks(reverse):
    """The last state of one of torch's, at each sentence's end, begins the other."""
    model = small("sutskever" if reverse else "not reversed")
    assert model.reverse == reverse
    encoder, decoder = (reference_lstm(part, 5) for part in (model.encoder, model.decoder))
    for source, target in zip(SOURCES, TARGETS, strict=True):
        source = source[source != PAD]
        x = model.words.source(source.flip(0) if reverse else source)
        state = encoder(x[None])[1]
        out = decoder(model.words.target(target)[None], state)[0]
        wanted = out @ model.words.output.weight.T
        found = model(source[None], target[None])
        torch.testing.assert_close(found, wanted)


def test_bahdanau_by_the_equations():
    """A.1.2, A.2: one sentence, word by word."""
    model = small("bahdanau")
    unit, attention = model.unit, model.attention
    for source, target in zip(SOURCES, TARGETS, strict=True):
        source = source[source != PAD]
        x = model.words.source(source)
        h = torch.cat([model.encoder.forth(x[None])[0][0],
                       model.encoder.back(x.flip(0)[None])[0][0].flip(0)], 1)  # fmt: skip
        s = torch.tanh(model.begin.weight @ h[0, 6:] + model.begin.bias)  # of the way back
        logits = model(source[None], target[None])[0]
        alignment = model.decode(target[None], model.encode(source[None]))[1][0]
        for i, y in enumerate(model.words.target(target)):
            e = torch.tensor([score_by_hand(attention, s, annotation) for annotation in h]).double()
            c = e.softmax(0) @ h
            torch.testing.assert_close(alignment[i], e.softmax(0))
            t = model.from_state.weight @ s + model.from_state.bias
            t = t + model.from_word.weight @ y + model.from_context.weight @ c
            t = torch.stack([torch.maximum(t[2 * j], t[2 * j + 1]) for j in range(4)])
            torch.testing.assert_close(logits[i], model.words.output.weight @ t)
            s = unit(unit.inputs(y[None]), c[None], s[None])[0]


@pytest.mark.parametrize("name", ["luong", "no feeding", "dot"])
def test_luong_by_the_equations(name):
    """Eq. 4-8, and input feeding of Sec. 3.3: one sentence, word by word."""
    model = small(name)
    encoder = reference_lstm(model.encoder, 5)
    decoder = reference_lstm(model.decoder, 11 if model.input_feeding else 5)
    for source, target in zip(SOURCES, TARGETS, strict=True):
        source = source[source != PAD]
        tokens = source.flip(0) if model.reverse else source
        memory, state = encoder(model.words.source(tokens)[None])
        logits = model(source[None], target[None])[0]
        alignment = model.decode(target[None], model.encode(source[None]))[1][0]
        joint = torch.zeros(6, dtype=torch.float64)
        for i, y in enumerate(model.words.target(target)):
            x = torch.cat([y, joint]) if model.input_feeding else y
            h, state = decoder(x[None, None], state)
            e = [score_by_hand(model.attention, h[0, 0], m) for m in memory[0]]
            a = torch.tensor(e).double().softmax(0)
            joint = torch.tanh(model.join.weight @ torch.cat([a @ memory[0], h[0, 0]]))
            torch.testing.assert_close(logits[i], model.words.output.weight @ joint)
            torch.testing.assert_close(alignment[i], a.flip(0) if model.reverse else a)


@both
@pytest.mark.parametrize("tied", [False, True])
def test_a_step_at_a_time_is_the_whole_pass(name, tied):
    model = small(name, tied=tied)
    words = [p for p in model.parameters() if len(p) == VOCAB]
    assert len(words) == (1 if tied else 3)
    wanted, alignment, last = model.decode(TARGETS, model.encode(SOURCES))
    assert wanted.shape == (*TARGETS.shape, VOCAB)
    torch.testing.assert_close(model(SOURCES, TARGETS), wanted)
    state = model.encode(SOURCES)
    for t, tokens in enumerate(TARGETS.unbind(1)):
        weights = model.decode(tokens[:, None], state)[1]
        logits, state = model.step(tokens, state)
        torch.testing.assert_close(logits, wanted[:, t])
        if alignment is not None:
            torch.testing.assert_close(weights[:, 0], alignment[:, t])
    for name, part in state._asdict().items():
        torch.testing.assert_close(part, getattr(last, name))
        assert len(part) == len(SOURCES)  # the batch comes first


@both
def test_padding_changes_nothing(name):
    model = small(name)
    wanted = model(SOURCES, TARGETS)
    wider = model(F.pad(SOURCES, [0, 4]), F.pad(TARGETS, [0, 2]))
    torch.testing.assert_close(wider[:, : TARGETS.shape[1]], wanted)
    for i, (source, target) in enumerate(zip(SOURCES, TARGETS, strict=True)):
        source, target = source[source != PAD], target[target != PAD]
        found = model(source[None], target[None])[0]
        torch.testing.assert_close(found, wanted[i, : len(target)])


@both
def test_padding_gets_no_gradient(name):
    model = small(name)
    real = TARGETS != PAD
    model(F.pad(SOURCES, [0, 3]), TARGETS)[real].square().sum().backward()
    assert not model.words.source.weight.grad[PAD].any()
    assert model.words.source.weight.grad[SOURCES[0]].any()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@both
def test_causality(name):
    """What is written later changes nothing before; all of the source counts."""
    model = small(name)
    before = model(SOURCES, TARGETS)
    for t in range(1, TARGETS.shape[1]):
        changed = TARGETS.clone()
        changed[:, t:] = (changed[:, t:] - 3) % (VOCAB - 4) + 4
        after = model(SOURCES, changed)
        torch.testing.assert_close(after[:, :t], before[:, :t])
        assert not torch.allclose(after[:, t], before[:, t])
    for s in range(7):
        changed = SOURCES[:1].clone()
        changed[0, s] = 4 if changed[0, s] != 4 else 5
        assert not torch.allclose(model(changed, TARGETS[:1]), before[:1])


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("sutskever", {(4, 7, 6): 3}),  # between the layers of both, and before the last one
        ("bahdanau", {(4, 7, 4): 1}),  # before the last layer
        ("luong", {(4, 7, 6): 2, (4, 6): 14}),  # in the decoder step by step, twice
        ("no feeding", {(4, 7, 6): 4}),
    ],
)
def test_where_dropout_falls(name, more):
    found = dropped(small(name, dropout=0.5), SOURCES, TARGETS)
    assert found == {(4, 7, 5): 2, **more}  # both embeddings


def test_reversing_is_of_the_source():
    one, other = small("sutskever"), small("sutskever", reverse=False)
    turned = turn(SOURCES, lengths_of(SOURCES))
    torch.testing.assert_close(one(SOURCES, TARGETS), other(turned, TARGETS))
    assert not torch.allclose(one(SOURCES, TARGETS), other(SOURCES, TARGETS))


@both
def test_the_weights_of_the_padding_are_zero(name):
    model = small(name)
    weights = model.decode(TARGETS, model.encode(SOURCES))[1]
    if "sutskever" in name or "reversed" in name:
        assert weights is None
        return
    assert weights.shape == (*TARGETS.shape, SOURCES.shape[1])
    torch.testing.assert_close(weights.sum(2), torch.ones(TARGETS.shape, dtype=torch.float64))
    assert not weights.transpose(1, 2)[SOURCES == PAD].any()


@both
def test_decoding_is_of_each_sentence_alone(name):
    model = small(name)
    ways = [
        lambda source: translate(model, source, 9),
        lambda source: translate(model, source, 9, 3, 1.0),
        lambda source: draw(model, source, 9, temperature=1e-9),
    ]
    found = [way(SOURCES) for way in ways]
    assert found[2] == found[0]
    for way, together in zip(ways, found, strict=True):
        for i, source in enumerate(SOURCES):
            assert way(source[source != PAD][None]) == together[i : i + 1]
    tokens = [START, *found[0][0]]
    logits = model(SOURCES[:1], torch.tensor([tokens]))[0].argmax(1).tolist()
    assert logits[: len(tokens) - 1] == tokens[1:]
    assert logits[-1] == END or len(tokens) == 10


@pytest.mark.parametrize("name", ["sutskever", "bahdanau", "luong"])
def test_it_overfits_a_batch(name):
    torch.manual_seed(0)
    model = MODELS[f"{name}_small"](VOCAB, hidden_size=48, dropout=0.0)
    source, target = sentences([6] * 8), sentences([5] * 8, 1, start=True)
    target = torch.cat([target, torch.full((8, 1), END)], 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(80):
        loss = train.cross_entropy(model(source, target[:, :-1]), target[:, 1:]) / 48
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    assert loss < 0.05
    assert translate(model, source, 10) == target[:, 1:-1].tolist()
    assert translate(model, source, 10, 4) == target[:, 1:-1].tolist()


def test_bf16_is_near_fp32():
    for name in ("sutskever", "bahdanau", "luong"):
        torch.manual_seed(0)
        model, grads = MODELS[f"{name}_small"](VOCAB, dropout=0.0, hidden_size=32), []
        for enabled in (False, True):
            with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                logits = model(SOURCES, TARGETS)
            logits.float().square().mean().backward()
            grads.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
            model.zero_grad()
        assert F.cosine_similarity(*grads, dim=0) > 0.99, name


# ---------------------------------------------------------------------- training


def test_the_loss_counts_real_tokens_and_smooths():
    logits, labels = torch.randn(2, 3, 5), torch.tensor([[1, 4, PAD], [2, PAD, PAD]])
    log, total = logits.log_softmax(2), 0.0
    for row, place in ((0, 0), (0, 1), (1, 0)):
        wanted = torch.full((5,), 0.1 / 5)
        wanted[labels[row, place]] += 0.9
        total -= float((wanted * log[row, place]).sum())
    assert float(train.cross_entropy(logits, labels, 0.1)) == pytest.approx(total, rel=1e-5)


def test_recipes():
    args = train.parse_args([])
    assert (args.model, args.data, args.beam) == ("bahdanau_small", "dates", 1)
    args = train.parse_args(["--paper"])
    assert (args.model, args.optimizer, args.lr, args.clip, args.vocab_size, args.hidden_size) == (
        "bahdanau", "adadelta", 1.0, 1.0, 30_000, 1000,
    )  # fmt: skip
    args = train.parse_args(["--paper", "--model", "sutskever"])
    assert (args.optimizer, args.lr, args.clip, args.num_layers, args.beam, args.per) == (
        "sgd", 0.7, 5.0, 4, 12, "sentences",
    )  # fmt: skip
    assert args.vocab_size == 80_000
    args = train.parse_args(["--paper", "--model", "luong"])
    assert (args.lr, args.dropout, args.halve_after, args.input_feeding) == (1.0, 0.2, 8.0, True)
    assert args.epochs == 12
    epochs = {name: train.parse_args(["--model", f"{name}_small"]).epochs for name in KINDS}
    assert epochs == {"bahdanau": 3, "luong": 5, "sutskever": 8}
    args = train.parse_args(["--data", "multi30k", "--model", "luong_small"])
    assert (args.hidden_size, args.num_layers, args.beam, args.optimizer) == (224, 2, 4, "adam")


def test_rates():
    def share(step, *flags):
        args = train.parse_args(["--model", "sutskever", "--paper", *flags])
        return train.step_size(args, 100, step)

    assert [share(s) for s in (0, 499, 500, 549, 550, 600, 799)] == [
        1, 1, 0.5, 0.5, 0.25, 0.125, 0.5**6,
    ]  # fmt: skip
    luong = [train.step_size(train.parse_args(["--model", "luong", "--paper"]), 10, s)
             for s in (79, 80, 89, 90, 119)]  # fmt: skip
    assert luong == [1, 0.5, 0.5, 0.25, 0.5**4]
    args = train.parse_args(["--paper"])
    assert {train.step_size(args, 10, step) for step in range(50)} == {1}
    args = train.parse_args([])
    shares = [train.step_size(args, 100, step) for step in range(300)]
    assert max(shares) == pytest.approx(1, abs=0.04)
    assert shares[0] < 0.05
    assert 0 < shares[-1] < 0.001


def test_it_trains_in_training_and_is_measured_without_dropout(few, monkeypatch):
    seen = modes(train, monkeypatch)
    train.main([*FAST, "--epochs", "2", "--batch-size", "2000"])
    assert seen == BOTH


def test_flags_reach_the_loss_and_the_search(few, monkeypatch):
    seen, loss, search = [], train.cross_entropy, train.translate
    monkeypatch.setattr(
        train, "cross_entropy", lambda x, y, *how: seen.append(("loss", *how)) or loss(x, y, *how)
    )
    monkeypatch.setattr(
        train, "translate", lambda *a: seen.append(("search", *a[3:])) or search(*a)
    )
    flags = ["--max-steps", "1", "--smoothing", "0.2", "--beam", "2", "--length-penalty", "3"]
    train.main([*FAST, *flags])
    wanted = [("loss", 0.2), ("loss",), ("search", 1, 3.0), ("search", 2, 3.0)]
    assert list(dict.fromkeys(seen)) == wanted  # training, validation, test


def test_sizes_are_the_models():
    """What --help shows is what is built."""
    for name in MODELS:
        args = train.parse_args(["--data", "multi30k", "--paper", "--model", name])
        with torch.device("meta"):
            model, default = train.build(args, 50), MODELS[name](50)
        assert count(model) == count(default)
        assert model.dropout.p == args.dropout == SIZES[name]["dropout"]
    args = train.parse_args(["--model", "luong_small", "--score", "dot", "--no-input-feeding"])
    model = train.build(args, 50)
    assert (model.attention.kind, model.input_feeding) == ("dot", False)
    for name, module in (("sutskever", sutskever), ("bahdanau", bahdanau), ("luong", luong)):
        assert SIZES[name] is module.SIZES["paper"]


@pytest.fixture
def few(monkeypatch):
    """A small test set."""
    monkeypatch.setattr(pairs, "TEST_DATES", 20)


FAST = ["--quiet", "--limit", "300", "--val", "20", "--vocab-size", "60", "--hidden-size", "16"]
KINDS = {
    "bahdanau": [],
    "sutskever": ["--model", "sutskever_small"],
    "luong": ["--model", "luong_small"],
}


def same(a, b, **tolerance):
    assert a.keys() == b.keys()
    for key in a:
        torch.testing.assert_close(a[key], b[key], **tolerance)


ALIKE = ["--max-steps", "2", "--precision", "fp32", "--dropout", "0", "--batch-size", "400"]


@pytest.mark.parametrize("kind", list(KINDS))
def test_accumulation_equals_the_large_batch(kind, few):
    flags, losses = [*FAST, *KINDS[kind], *ALIKE, "--optimizer", "sgd", "--lr", "0.1"], []
    for k in (1, 3):
        for per in ("tokens", "sentences"):
            more = ["--per", per, "--run-dir", f"{per}{k}", "--accumulate", str(k)]
            losses.append(train.main([*flags, *more])["train_loss"])
    same(weights("tokens1"), weights("tokens3"), rtol=0, atol=1e-5)
    same(weights("sentences1"), weights("sentences3"), rtol=0, atol=1e-5)
    assert losses[0] == pytest.approx(losses[2], rel=1e-5)


def test_a_mean_over_sentences_is_the_longer_step(few):
    """A date has 12 tokens, the end among them: the first step is 12 times as long."""
    flags = [*FAST, *ALIKE, "--optimizer", "sgd", "--schedule", "constant", "--max-steps", "1"]
    flags += ["--lr", "1e-3", "--clip", "1e9"]
    train.main([*flags, "--lr", "1e-20", "--run-dir", "first"])
    moves = []
    for per in ("tokens", "sentences"):
        train.main([*flags, "--per", per, "--run-dir", per])
        first = weights("first")
        moved = [(v - first[k]).norm() for k, v in weights(per).items()]
        moves.append(torch.stack(moved).norm())
    assert 11.9 < float(moves[1] / moves[0]) < 12.1


TOGETHER = {"two": [], "shards": ["--fsdp"]}
SHARDED = ["bahdanau", "luong"]


def test_two_processes_equal_one(few):
    for kind in KINDS:
        train.main([*FAST, *KINDS[kind], *ALIKE, "--clip", "1", "--run-dir", f"one-{kind}"])
    done = torchrun(__file__, Path.cwd())
    assert done.returncode == 0, done.stderr
    for kind, name in (*((kind, "shards") for kind in SHARDED), *((kind, "two") for kind in KINDS)):
        folders = f"one-{kind}", f"{name}-{kind}"
        same(*map(weights, folders), rtol=0, atol=5e-5)
        ends = [json.loads(Path(f, "metrics.jsonl").read_text().splitlines()[-1]) for f in folders]
        assert ends[0]["test_exact"] == ends[1]["test_exact"]
        assert ends[0]["test_loss"] == pytest.approx(ends[1]["test_loss"], rel=1e-4)


@pytest.mark.parametrize("kind", list(KINDS))
def test_resuming_is_exact(kind, few):
    flags = [*FAST, *KINDS[kind], "--epochs", "2", "--batch-size", "1400", "--precision", "fp32"]
    train.main([*flags, "--run-dir", "whole"])
    train.main([*flags, "--run-dir", "cut", "--max-steps", "2"])
    train.main(["--quiet", "--resume", "--run-dir", "cut"])
    whole, cut = (torch.load(f"{name}/last.pt") for name in ("whole", "cut"))
    assert whole["step"] == cut["step"] > 3
    for key, value in whole["model"].items():
        assert torch.equal(value, cut["model"][key])


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_steps(precision, few):
    for kind in KINDS.values():
        metrics = train.main([*FAST, *kind, "--max-steps", "1", "--precision", precision])
        assert all(map(math.isfinite, metrics.values()))


@pytest.mark.parametrize("model", ["sutskever", "bahdanau", "luong"])
def test_the_papers_recipes_step(model, few):
    """On dates, with fewer units: the optimisers, rates and clipping."""
    flags = ["--paper", "--model", model, "--data", "dates", "--limit", "60", "--quiet"]
    flags += ["--hidden-size", "8", "--vocab-size", "40", "--epochs", "1", "--beam", "2"]
    metrics = train.main([*flags, "--batch-size", "200", "--run-dir", "run"])
    assert all(map(math.isfinite, metrics.values()))
    assert "test_exact" in metrics


# ---------------------------------------------------------------------- the scripts


def write_pairs(count=60):
    words = ["ein", "zwei", "drei", "vier", "fünf"]
    lines = [[words[(i * k + k) % 5] for k in range(1, 2 + i % 6)] for i in range(count)]
    Path("a.txt").write_text("\n".join(map(" ".join, lines)) + "\n", "utf-8")
    Path("b.txt").write_text("\n".join(" ".join(x[::-1]) for x in lines) + "\n", "utf-8")
    return "pairs:a.txt,b.txt"


def test_pairs_evaluate_and_samples(capsys, monkeypatch, refused):
    references, evaluate = {}, train.evaluate

    def note(model, pairs, *rest):
        references[pairs.part] = pairs.lines.target
        return evaluate(model, pairs, *rest)

    monkeypatch.setattr(train, "evaluate", note)
    flags = ["--data", write_pairs(300), "--hidden-size", "32", "--vocab-size", "40"]
    flags += ["--epochs", "6", "--batch-size", "100", "--lr", "1e-2"]
    metrics = train.main([*flags, "--run-dir", "run"])
    answers = Path("run/translations.txt").read_text("utf-8").splitlines()
    wanted = sacrebleu.corpus_bleu(answers, [references["test"]]).score / 100
    assert metrics["test_bleu"] == pytest.approx(wanted)
    assert wanted > 0
    assert "nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:" in capsys.readouterr().out
    rows = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert {"train_loss", "val_loss", "val_bleu"} <= rows[0].keys()
    again = train.main(["--evaluate", "run/last.pt", "--quiet"])
    assert again["test_bleu"] == pytest.approx(wanted)

    argv = ["--checkpoint", "run/last.pt"]
    found = sample.main([*argv, "zwei drei", "ein Ωmega", "--out", "out"])
    assert list(found) == ["zwei drei", "ein Ωmega"]
    assert "Ω" in capsys.readouterr().err
    assert Path("out/alignment.png").stat().st_size > 1000
    Path("in.txt").write_text("ein\n\nzwei drei\n", "utf-8")
    sample.main([*argv, "--file", "in.txt", "--out", "file"])
    capsys.readouterr()
    assert "file/translations.txt is there" in refused(sample.main, [*argv, "ein", "--out", "file"])
    lines = Path("file/translations.txt").read_text("utf-8").split("\n")
    assert len(lines) == 4
    assert lines[1] == ""
    tested = sample.main([*argv, "--out", "test"])  # of the test set
    assert {" ".join(source.split()[::-1]) for source in tested} <= set(references["test"])
    drawn = ["--temperature", "1", "--top-k", "3", "--top-p", "0.9", "--seed", "3"]
    one, two = (sample.main([*argv, "ein", *drawn, "--out", name]) for name in ("d1", "d2"))
    assert one == two
    assert list(sample.main([*argv, "ein", "--beam", "1", "--out", "greedy"])) == ["ein"]
    sample.main([*argv, "ein " * 500, "--out", "long"])
    assert "1 sentence cut at 128 tokens" in capsys.readouterr().err


def test_the_alignment_is_of_what_was_written(few, monkeypatch):
    """Rows: the words that were written, and the end; columns: the source."""
    train.main([*FAST, "--max-steps", "1", "--run-dir", "run"])
    seen = []
    monkeypatch.setattr(sample, "draw_alignments", lambda found, path: seen.extend(found))
    found = sample.main(["--checkpoint", "run/last.pt", "5 May 1999", "1.2.1950"])
    assert len(seen) == 2
    for (shares, rows, columns), (source, text) in zip(seen, found.items(), strict=True):
        assert shares.shape == (len(rows), len(columns))
        torch.testing.assert_close(shares.sum(1), torch.ones(len(rows)))
        assert rows[-1] == columns[-1] == "</s>"
        assert "".join(columns[:-1]).replace("▁", " ").strip() == source
        shown = [token for token in rows[:-1] if token not in ("<pad>", "<s>", "<unk>")]
        assert "".join(shown).replace("▁", " ").strip() == text
    whole = [*seen]
    seen.clear()
    monkeypatch.setattr(sample, "LONGEST", 2)  # of a long sentence the beginning
    sample.main(["--checkpoint", "run/last.pt", "5 May 1999", "1.2.1950"])
    for (part, rows, columns), (shares, *names) in zip(seen, whole, strict=True):
        assert [rows, columns] == [side[:2] for side in names]
        torch.testing.assert_close(part, shares[:2, :2])


def test_a_network_without_attention_has_nothing_to_show(few, capsys):
    train.main([*FAST, *KINDS["sutskever"], "--max-steps", "1", "--run-dir", "run"])
    sample.main(["--checkpoint", "run/last.pt", "1.2.1950", "--out", "out"])
    assert "no attention to show" in capsys.readouterr().out
    assert not Path("out/alignment.png").exists()


def test_typed_sentences(few, monkeypatch, capsys, refused):
    train.main([*FAST, "--max-steps", "1", "--run-dir", "run"])
    capsys.readouterr()
    raw = io.TextIOWrapper(io.BytesIO(b"5 May 1999\n\n\xfcber\n\xc2\xa0\n1.2.1950\n"))
    monkeypatch.setattr("sys.stdin", raw)
    argv = ["--checkpoint", "run/last.pt", "--interactive"]
    sample.main(argv)
    streams = capsys.readouterr()
    assert streams.out.count("\n") == 4  # two of them empty
    assert "line 3 is not UTF-8 text (byte 0xfc, ü in Latin-1)" in streams.err
    monkeypatch.setattr("sys.stdin", None)  # closed, as by <&-
    assert "which is closed" in refused(sample.main, argv)


def test_empty_translations_are_said(few, capsys, monkeypatch):
    nothing = lambda model, source, *_: [[]] * len(source)  # noqa: E731
    monkeypatch.setattr(train, "translate", nothing)
    train.main([*FAST, "--no-quiet", "--max-steps", "1", "--run-dir", "run"])
    assert "all 20 translations are empty" in capsys.readouterr().out
    monkeypatch.setattr(sample, "translate", nothing)
    sample.main(["--checkpoint", "run/last.pt", "1.2.1950"])
    assert "all translations are empty" in capsys.readouterr().err


def test_bad_samples(few, refused):
    train.main([*FAST, "--max-steps", "1", "--run-dir", "run"])
    argv = ["--checkpoint", "run/last.pt"]
    assert "nothing to translate" in refused(sample.main, [*argv, "  "])
    assert "nowhere.txt" in refused(sample.main, [*argv, "--file", "nowhere.txt"])
    Path("empty.txt").touch()
    assert "empty.txt is empty" in refused(sample.main, [*argv, "--file", "empty.txt"])
    Path("latin.txt").write_bytes("Tür\nüber\n".encode("latin-1"))
    assert "line 1 is not UTF-8" in refused(sample.main, [*argv, "--file", "latin.txt"])
    assert "sentence 1 is not UTF-8" in refused(sample.main, [*argv, "\udcfcber"])
    assert "one of them" in refused(sample.main, [*argv, "a", "--interactive"])
    assert "no files" in refused(sample.main, [*argv, "--interactive", "--out", "out"])
    for flags in (["--beam", "2"], ["--length-penalty", "1"]):
        assert "one or the other" in refused(sample.main, ["a", "--temperature", "1", *flags])
    assert "--beam above 1" in refused(sample.main, ["a", "--beam", "1", "--length-penalty", "1"])
    for flags in (["--top-k", "2"], ["--top-p", "0.5"], ["--seed", "1"]):
        assert "add --temperature" in refused(sample.main, ["a", *flags])
    assert "--top-p" in refused(sample.main, ["a", "--temperature", "1", "--top-p", "1.5"])
    for flag, value in (("--hidden-size", "8"), ("--vocab-size", "50")):
        name = flag[2:].replace("-", "_")
        for more in (["--resume", "--run-dir", "run"], ["--evaluate", "run/last.pt"]):
            assert f"holds {name}" in refused(train.main, [*more, flag, value])
    for more in (["--resume", "--run-dir", "run"], ["--evaluate", "run/last.pt"]):
        assert "holds model" in refused(train.main, [*more, "--model", "luong_small"])


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--dropout", "1"], "--dropout"),
        (["--smoothing", "1.5"], "--smoothing"),
        (["--beam", "2", "--length-penalty", "400"], "below 10"),
        (["--length-penalty", "1"], "add --beam"),
        (["--direction", "de-en"], "dates has one direction"),
        (["--num-layers", "3"], "bahdanau_small has one layer"),
        (["--reverse"], "reads both ways"),
        (["--score", "dot"], "one score"),
        (["--model", "sutskever_small", "--score", "dot"], "no attention"),
        (["--model", "sutskever_small", "--input-feeding"], "no attention after"),
        (["--model", "luong_small", "--score", "cosine"], "'cosine'"),
        (["--halve-after", "3"], "--schedule halving"),
        (["--compile"], "kernels"),
        (["--data", "pairs:one.txt"], "two text files"),
        (["--data", "pairs:one.txt,two.txt"], "no file one.txt"),
        (["--data", "multi30k", "--data-dir", "nowhere"], "train.en"),
        (["--model", "bahdanau_smal"], "did you mean bahdanau_small"),
    ],
)
def test_bad_settings(flags, words, refused):
    assert words in refused(train.main, flags)


@pytest.mark.parametrize("claim", list(claims.CLAIMS))
def test_claims_run_resume_and_summarise(claim, few, monkeypatch, capsys):
    runs = []
    fast = ["--limit", "100", "--max-steps", "1", "--hidden-size", "8"]
    monkeypatch.setattr(claims, "WIDTHS", (1, 2))

    def run(argv):
        runs.append(argv)
        return train.main(argv if "--evaluate" in argv else argv + fast)

    monkeypatch.setattr(claims, "train", run)
    argv = [claim, "--data", "dates", "--epochs", "1", "--seeds", "0", "--out", "out"]
    summary = claims.main(argv)
    trained = sum("--evaluate" not in argv for argv in runs)
    assert trained == len(claims.CLAIMS[claim]) == len(summary)
    assert summary == json.loads(Path(f"out/claim_{claim}.json").read_text())
    assert Path(f"out/claim_{claim}.png").exists()
    before = len(runs)
    claims.main(argv)
    assert len(runs) == before  # done is done
    out = capsys.readouterr().out
    assert "exact match" in out
    if claim == "beam":
        assert before == 6
        assert "beam 2:" in out


def test_bleu_by_length(few):
    """Each sentence of the test set is in one group, by the words of its source."""
    Path("run").mkdir()
    texts = [" ".join(["wort"] * n) for n in (3, 8, 9, 12, 20, 30)]
    Path("run/translations.txt").write_text("\n".join([*texts[:4], "falsch", "falsch"]) + "\n")

    class Test(list):
        lines = pairs.Lines(texts, texts)

    found = claims.by_length(Path("run"), Test(texts), "test_bleu")
    assert list(found) == ["1-8", "9-10", "11-12", "18+"]
    assert found["1-8"] == found["11-12"] == pytest.approx(1)
    assert found["18+"] == 0


@pytest.mark.slow
def test_quick_reaches_the_readmes_number():
    assert train.main(["--quiet"])["test_exact"] >= 0.95


if __name__ == "__main__":
    os.chdir(sys.argv[1])
    pairs.TEST_DATES = 20
    for name, flags in TOGETHER.items():
        for kind in KINDS if name == "two" else SHARDED:
            train.main([*FAST, *KINDS[kind], *ALIKE, "--clip", "1", *flags,
                        "--run-dir", f"{name}-{kind}"])  # fmt: skip
