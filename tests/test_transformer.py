"""The Transformer: sizes, parity with torch's layers, properties, decoding, and that it learns.

Usage: torchrun --nproc-per-node 2 tests/test_transformer.py FOLDER trains the same way there.
"""

import io
import itertools
import json
import math
import os
import sys
import unicodedata
from pathlib import Path
from types import SimpleNamespace

import pytest
import sacrebleu
import torch
import torch.nn.functional as F
from conftest import torchrun
from helpers import count, perturb, weights
from torch import nn

from common.data import pairs
from transformer import claims, decoding, sample, train
from transformer.decoding import Decoding, beam_search, generate
from transformer.model import (
    END,
    MODELS,
    PAD,
    START,
    MultiHeadAttention,
    Transformer,
    attention,
    sinusoids,
    transformer_small,
)

ALPHABET = 20


def small(**settings):
    torch.manual_seed(0)
    sizes = dict(d_model=32, d_ff=64, num_heads=4, num_layers=3, dropout=0.0, max_length=128)
    return perturb(Transformer(ALPHABET, **(sizes | settings)).double().eval())


def sentences(lengths, seed=0):
    """Random tokens (B, T), padded."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(4, ALPHABET, (len(lengths), max(lengths)), generator=generator)
    return tokens * (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None])


def test_parameters():
    with torch.device("meta"):
        assert count(MODELS["transformer_base"](vocab_size=37_000)) == 63_082_496
        assert count(MODELS["transformer_big"](vocab_size=37_000)) == 214_245_376
        assert count(transformer_small()) == 2_619_392


# ---------------------------------------------------------------------- the paper's equations


def test_attention_is_torchs():
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, n, 8, dtype=torch.float64) for n in (5, 7, 7))
    mask = torch.rand(2, 1, 5, 7) > 0.3
    mask[..., 0] = True
    for m in (None, mask):
        ours, weights = attention(q, k, v, m)
        torch.testing.assert_close(ours, F.scaled_dot_product_attention(q, k, v, m))
        torch.testing.assert_close(weights.sum(-1), torch.ones(2, 3, 5, dtype=torch.float64))
    assert not weights[~mask.expand_as(weights)].any()


def test_a_token_that_may_look_nowhere_gets_zeros():
    """As from torch's kernel; and its gradients are no NaN."""
    torch.manual_seed(0)
    parts = [torch.randn(2, 3, n, 8, dtype=torch.float64, requires_grad=True) for n in (5, 7, 7)]
    mask = torch.rand(2, 1, 5, 7) > 0.3
    mask[0, :, 2] = False
    ours, weights = attention(*parts, mask)
    assert not ours[0, :, 2].any()
    assert not weights[0, :, 2].any()
    theirs = F.scaled_dot_product_attention(*parts, mask)
    torch.testing.assert_close(ours, theirs)
    grads = [torch.autograd.grad(out.square().sum(), parts) for out in (ours, theirs)]
    torch.testing.assert_close(*grads)


def test_attention_by_brute_force():
    q, k, v = (torch.randn(1, 1, n, 4, dtype=torch.float64) for n in (2, 3, 3))
    wanted = torch.zeros(2, 4, dtype=torch.float64)
    for i in range(2):
        scores = [math.exp(float(q[0, 0, i] @ k[0, 0, j]) / 2) for j in range(3)]
        for j in range(3):
            wanted[i] += scores[j] / sum(scores) * v[0, 0, j]
    torch.testing.assert_close(attention(q, k, v)[0][0, 0], wanted)


def test_recording_changes_nothing():
    model, source, target = small(), sentences([5, 3]), sentences([4, 6])
    plain = model(source, target)
    layers = [m for m in model.modules() if isinstance(m, MultiHeadAttention)]
    assert len(layers) == 9
    for layer in layers:
        layer.recording = True
    torch.testing.assert_close(model(source, target), plain)
    assert layers[0].weights.shape == (2, 4, 5, 5)
    assert not layers[0].weights[1, :, :, 3:].any()  # of the padding
    own = model.decoder[0].attention.weights
    assert torch.equal(own, own.tril())


def test_positions_are_the_papers():
    table = sinusoids(50, 16)
    for pos, i in itertools.product((0, 1, 7, 49), range(8)):
        angle = pos / 10_000 ** (2 * i / 16)
        assert table[pos, 2 * i].item() == pytest.approx(math.sin(angle), abs=1e-6)
        assert table[pos, 2 * i + 1].item() == pytest.approx(math.cos(angle), abs=1e-6)
    assert sinusoids(3, 5).shape == (3, 5)


def test_the_embedding_is_shared_and_scaled():
    model = small()
    assert [n for n, p in model.named_parameters() if p.shape[0] == ALPHABET] == [
        "embedding.weight"
    ]
    tokens = sentences([4])
    wanted = model.embedding.weight[tokens] * 32**0.5 + model.positions[:4]
    torch.testing.assert_close(model.embed(tokens), wanted)
    assert transformer_small().embedding.weight.std().item() == pytest.approx(128**-0.5, rel=0.02)


def test_initial_weights():
    for name, p in transformer_small().named_parameters():
        if "key_value.weight" in name:  # two square matrices
            assert p.abs().max().item() == pytest.approx((6 / 256) ** 0.5, rel=0.01)
        elif name.endswith("bias"):
            assert not p.any()


# ---------------------------------------------------------------------- parity


def copy_attention(theirs, ours):
    weight = torch.cat([ours.query.weight, ours.key_value.weight])
    bias = torch.cat([ours.query.bias, ours.key_value.bias])
    theirs.in_proj_weight.data.copy_(weight)
    theirs.in_proj_bias.data.copy_(bias)
    theirs.out_proj.load_state_dict(ours.output.state_dict())


def reference(model, norm_first=False):
    """torch's layers with the same weights: encoder and decoder."""
    args = dict(dropout=0.0, batch_first=True, norm_first=norm_first, dtype=torch.float64)
    stacks = []
    for layers, kind in (
        (model.encoder, nn.TransformerEncoderLayer),
        (model.decoder, nn.TransformerDecoderLayer),
    ):
        stack = nn.ModuleList()
        for ours in layers:
            theirs = kind(32, 4, 64, **args)
            copy_attention(theirs.self_attn, ours.attention)
            if hasattr(ours, "cross"):
                copy_attention(theirs.multihead_attn, ours.cross)
            theirs.linear1.load_state_dict(ours.feed_forward[0].state_dict())
            theirs.linear2.load_state_dict(ours.feed_forward[2].state_dict())
            for number, residual in enumerate(ours.residuals, 1):
                getattr(theirs, f"norm{number}").load_state_dict(residual.norm.state_dict())
            stack.append(theirs)
        stacks.append(stack)
    return stacks


@pytest.mark.parametrize("norm_first", [False, True])
def test_parity_with_torch(norm_first):
    """Outputs and gradients of real tokens, with padding and causal masks."""
    model = small(norm_first=norm_first).train()
    encoder, decoder = reference(model, norm_first)
    source, target = sentences([7, 4, 1]), sentences([5, 6, 2], seed=1)
    real = target != PAD
    weights = torch.randn(int(real.sum()), ALPHABET, dtype=torch.float64)
    ours = model(source, target)[real]
    ours.mul(weights).sum().backward()
    grads = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()

    x = model.embed(source)
    for layer in encoder:
        x = layer(x, src_key_padding_mask=source == PAD)
    memory, x = model.encoder_norm(x), model.embed(target)
    causal = torch.ones(6, 6, dtype=torch.bool).triu(1)
    for layer in decoder:
        x = layer(
            x,
            memory,
            tgt_mask=causal,
            tgt_key_padding_mask=~real,
            memory_key_padding_mask=source == PAD,
        )
    theirs = F.linear(model.decoder_norm(x), model.embedding.weight)[real]
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    theirs.mul(weights).sum().backward()
    torch.testing.assert_close(grads["embedding.weight"], model.embedding.weight.grad)
    for stack, layers, name in (
        (model.encoder, encoder, "encoder"),
        (model.decoder, decoder, "decoder"),
    ):
        for i, layer in enumerate(layers):
            parts = [("attention", layer.self_attn)]
            if name == "decoder":
                parts.append(("cross", layer.multihead_attn))
            for key, theirs in parts:
                parts = [grads[f"{name}.{i}.{key}.{k}.weight"] for k in ("query", "key_value")]
                torch.testing.assert_close(torch.cat(parts), theirs.in_proj_weight.grad)
                parts = [grads[f"{name}.{i}.{key}.{k}.bias"] for k in ("query", "key_value")]
                torch.testing.assert_close(
                    torch.cat(parts), theirs.in_proj_bias.grad, rtol=1e-6, atol=1e-9
                )
                torch.testing.assert_close(
                    grads[f"{name}.{i}.{key}.output.weight"], theirs.out_proj.weight.grad
                )
            for k, linear in ((0, layer.linear1), (2, layer.linear2)):
                torch.testing.assert_close(
                    grads[f"{name}.{i}.feed_forward.{k}.weight"], linear.weight.grad
                )
            for k in range(len(stack[i].residuals)):
                norm = getattr(layer, f"norm{k + 1}")
                torch.testing.assert_close(
                    grads[f"{name}.{i}.residuals.{k}.norm.weight"], norm.weight.grad
                )


def test_the_norm_comes_after_the_sum_and_none_at_the_end():
    model = transformer_small(50)
    assert isinstance(model.decoder_norm, nn.Identity)
    assert isinstance(transformer_small(50, norm_first=True).decoder_norm, nn.LayerNorm)
    memory, _ = model.eval().encode(torch.randint(4, 50, (2, 9)))
    torch.testing.assert_close(memory.mean(2), torch.zeros(2, 9), atol=1e-5, rtol=0)
    torch.testing.assert_close(memory.var(2, correction=0), torch.ones(2, 9), atol=1e-3, rtol=0)


# ---------------------------------------------------------------------- properties


@pytest.mark.parametrize("norm_first", [False, True])
def test_causality(norm_first):
    model, source, target = small(norm_first=norm_first), sentences([6, 6]), sentences([8, 8])
    before = model(source, target)
    for t in range(1, 8):
        changed = target.clone()
        changed[:, t:] = (changed[:, t:] - 3) % (ALPHABET - 4) + 4
        after = model(source, changed)
        torch.testing.assert_close(after[:, :t], before[:, :t])
        assert not torch.allclose(after[:, t], before[:, t])


def test_padding_changes_nothing():
    model, source, target = small(), sentences([4, 7]), sentences([3, 5])
    both = model(source, target)
    alone = model(source[:1, :4], target[:1, :3])
    torch.testing.assert_close(both[:1, :3], alone)
    wider = F.pad(source, [0, 5])
    torch.testing.assert_close(model(wider, F.pad(target, [0, 2]))[:, :5], both)


def test_permutation_equivariance_without_positions():
    order = torch.tensor([3, 0, 4, 1, 2])
    source = sentences([5, 5])
    for positions, equal in (("none", True), ("sinusoidal", False), ("learned", False)):
        model = small(positions=positions)
        memory, shuffled = model.encode(source)[0], model.encode(source[:, order])[0]
        assert torch.allclose(memory[:, order], shuffled) == equal


def test_sizes_that_do_not_fit():
    with pytest.raises(ValueError, match="3 heads"):
        Transformer(10, 32, num_heads=3)
    with pytest.raises(ValueError, match="max_length, 128"):
        small()(sentences([129]), sentences([2]))


def test_bf16_on_a_cpu_is_near_fp32():
    torch.manual_seed(0)
    model, source, target = transformer_small(50, dropout=0.0), sentences([9, 4]), sentences([6, 5])
    grads = []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            logits = model(source, target)
        logits.float().square().mean().backward()
        grads.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
        model.zero_grad()
    assert F.cosine_similarity(*grads, dim=0) > 0.995
    assert model.bfloat16()(source, target).dtype == torch.bfloat16


# ---------------------------------------------------------------------- decoding


@pytest.fixture(scope="module")
def speaker():
    """A model whose random sentences end after a while."""
    torch.manual_seed(1)
    return Transformer(ALPHABET, 32, 64, 4, 2, max_length=64).double().eval()


SOURCES = sentences([6, 3, 9, 1])


@pytest.mark.parametrize("way", ["greedy", "sampled", "beam"])
def test_the_cache_changes_no_token(way, speaker):
    found = []
    for cached in (True, False):
        if way == "beam":
            found.append(beam_search(speaker, SOURCES, 4, 3.0, cached, extra=20))
        else:
            generator = torch.Generator().manual_seed(0)
            temperature = 1.0 if way == "sampled" else 0.0
            found.append(
                generate(speaker, SOURCES, temperature, cached, extra=20, generator=generator)
            )
    assert found[0] == found[1]
    assert any(found[0])
    assert all(PAD <= t < ALPHABET and t != END for target in found[0] for t in target)


@pytest.mark.parametrize(
    "settings",
    [{"norm_first": True}, {"positions": "learned"}, {"positions": "none"}, {"max_length": 12}],
)
def test_the_cache_of_other_models(settings):
    model = small(num_layers=2, **settings)
    with torch.no_grad():
        for way in (generate, beam_search):
            found = way(model, SOURCES, cached=True, extra=9)
            assert found == way(model, SOURCES, cached=False, extra=9)
        target = torch.cat([torch.full((4, 1), START), sentences([5] * 4, seed=2)], 1)
        wanted, state = model(SOURCES, target), Decoding(model, SOURCES)
        for t in range(6):
            logits = state.step(target[:, : t + 1])
            torch.testing.assert_close(logits, wanted[:, t].float())


def test_the_cache_gives_the_same_logits(speaker):
    target = torch.cat([torch.full((4, 1), START), sentences([7] * 4, seed=2)], 1)
    wanted = speaker(SOURCES, target)
    state = Decoding(speaker, SOURCES)
    for t in range(8):
        torch.testing.assert_close(state.step(target[:, : t + 1]), wanted[:, t].float())
    state.keep(torch.tensor([1, 3]))  # two sentences are finished
    fewer = target[[1, 3]]
    more = torch.cat([fewer, torch.full((2, 1), 5)], 1)
    wanted = speaker(SOURCES[[1, 3]], more)[:, -1].float()
    torch.testing.assert_close(state.step(more), wanted)


@pytest.mark.parametrize("way", [generate, beam_search])
def test_a_batch_is_decoded_as_its_sentences(way, speaker):
    together = way(speaker, SOURCES, extra=20)
    for i, length in enumerate((6, 3, 9, 1)):
        assert way(speaker, SOURCES[i : i + 1, :length], extra=20) == together[i : i + 1]


def test_greedy_takes_the_likeliest(speaker):
    for source, target in zip(SOURCES, generate(speaker, SOURCES, extra=10), strict=True):
        tokens = [START]
        while len(tokens) <= int((source != PAD).sum()) + 10:
            likeliest = int(speaker(source[None], torch.tensor([tokens]))[0, -1].argmax())
            if likeliest == END:
                break
            tokens.append(likeliest)
        assert tokens[1:] == target


class Table(nn.Module):
    """A language of four words that knows its own probabilities; for searches by brute force."""

    max_length = 6

    def __init__(self, seed):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.table = torch.randn(4, 8, 8, generator=generator) * 1.5
        self.table[..., :2] = self.table[..., 3:4] = -20  # no padding, start or unknown
        self.embedding = nn.Embedding(8, 8)
        self.embedding.weight.data = torch.eye(8)
        self.decoder = [None]

    def encode(self, source):
        return source[:, :1].float(), (source != PAD)[:, None, None]

    def decode(self, target, memory, mask, cache=None):
        first = memory[:, 0].long() - 4
        return torch.stack([self.table[f, row] for f, row in zip(first, target, strict=True)])

    def score(self, source, target, alpha):
        tokens, total = [START, *target], 0.0
        if len(target) < 6:
            tokens.append(END)
        for a, b in itertools.pairwise(tokens):
            total += float(self.table[source - 4, a].log_softmax(0)[b])
        return total / ((5 + len(tokens) - 1) / 6) ** alpha


@pytest.mark.parametrize("alpha", [0.0, 0.6, 2.0])
def test_beam_search_finds_the_best(alpha):
    """A beam as wide as there are targets is an exhaustive search."""
    for seed in range(4):
        model, source = Table(seed), torch.tensor([[4], [5], [6]])
        found = beam_search(model, source, 400, alpha, cached=False, extra=4)
        for word, target in zip((4, 5, 6), found, strict=True):
            finished = [
                list(t) for n in range(5) for t in itertools.product((4, 5, 6, 7), repeat=n)
            ]
            best = max(model.score(word, t, alpha) for t in finished)
            assert model.score(word, target, alpha) == pytest.approx(best, abs=1e-4)


def test_a_beam_of_one_is_greedy(speaker):
    assert beam_search(speaker, SOURCES, 1, 0.0, extra=12) == generate(speaker, SOURCES, extra=12)


def test_a_wider_beam_finds_likelier_targets(speaker):
    def score(source, target):
        tokens = torch.tensor([[START, *target, END]])
        log = speaker(source[None], tokens[:, :-1]).log_softmax(2)[0]
        return log[range(len(target) + 1), tokens[0, 1:]].sum().item()

    model = speaker
    greedy, wide = generate(model, SOURCES), beam_search(model, SOURCES, 8, 0.0)
    found = [
        (score(s, a), score(s, b))
        for s, a, b in zip(SOURCES, greedy, wide, strict=True)
        if len(a) < 50 and len(b) < 50
    ]
    assert all(b >= a - 1e-9 for a, b in found)


def test_sampling_follows_the_softmax():
    model, source = Table(0), torch.full((4000, 1), 4)
    generator = torch.Generator().manual_seed(0)
    found = generate(model, source, 1.0, cached=False, extra=0, generator=generator)
    shares = model.table[0, START].softmax(0)
    for word in range(4, 8):
        share = sum(target == [word] for target in found) / 4000
        assert share == pytest.approx(float(shares[word]), abs=0.03)
    for temperature in (1e-4, 1e-40, 1e-300):
        cold = generate(model, source[:50], temperature, False, extra=0, generator=generator)
        assert cold == generate(model, source[:50], cached=False, extra=0)


@pytest.mark.parametrize("cached", [True, False])
def test_the_cache_spares_the_decoder_what_it_has_seen(cached, monkeypatch):
    """One position a step, in place of all positions so far."""
    model, seen = small(), []
    monkeypatch.setattr(decoding, "END", -1)  # nobody stops before 9 tokens
    model.decoder[0].register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[1]))
    found = generate(model, SOURCES, cached=cached, extra=9, most=9)
    assert {len(target) for target in found} == {9}
    assert seen == ([1] * 9 if cached else list(range(1, 10)))


# ---------------------------------------------------------------------- training


def test_it_overfits_a_batch():
    torch.manual_seed(0)
    model = transformer_small(ALPHABET, num_layers=2, dropout=0.0)
    source, target = sentences([6] * 8), sentences([6] * 8, seed=1)
    target = torch.cat([torch.full((8, 1), START), target, torch.full((8, 1), END)], 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3, betas=(0.9, 0.98), eps=1e-9)
    for _ in range(60):
        loss = train.cross_entropy(model(source, target[:, :-1]), target[:, 1:]) / 56
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.05
    assert generate(model, source) == target[:, 1:-1].tolist()


def test_the_schedule_is_equation_3():
    for d_model, warmup, step in itertools.product(
        (512, 1024), (4000,), (1, 10, 3999, 4000, 90_000)
    ):
        wanted = d_model**-0.5 * min(step**-0.5, step * warmup**-1.5)
        peak = (d_model * warmup) ** -0.5
        assert peak * train.step_size(warmup, True, step - 1) == pytest.approx(wanted)
    assert train.step_size(100, False, 0) == 1
    assert train.step_size(100, False, 399) == 0.5


def test_the_loss_counts_real_tokens_and_smooths():
    logits, labels = torch.randn(2, 3, 5), torch.tensor([[1, 4, PAD], [2, PAD, PAD]])
    log = logits.log_softmax(2)
    total = 0.0
    for row, place in ((0, 0), (0, 1), (1, 0)):
        wanted = torch.full((5,), 0.1 / 5)
        wanted[labels[row, place]] += 0.9
        total -= float((wanted * log[row, place]).sum())
    assert float(train.cross_entropy(logits, labels, 0.1)) == pytest.approx(total, rel=1e-5)


def test_recipes():
    args = train.parse_args([])
    assert (args.model, args.data, args.smoothing) == ("transformer_small", "dates", 0.1)
    args = train.parse_args(["--paper"])
    assert (args.model, args.warmup, args.vocab_size, args.average) == (
        "transformer_base", 4000, 37_000, 5,
    )  # fmt: skip
    assert args.lr == (512 * 4000) ** -0.5
    args = train.parse_args(["--data", "multi30k"])
    assert (args.num_layers, args.num_heads, args.dropout) == (4, 4, 0.2)
    assert args.lr == (128 * 2000) ** -0.5  # Eq. 3 at its peak
    args = train.parse_args(["--data", "multi30k", "--model", "transformer_big", "--paper"])
    assert (args.num_layers, args.num_heads, args.dropout) == (6, 16, 0.3)


def test_sizes_are_the_models():
    """What --help shows is what is built."""
    for name in MODELS:
        args = train.parse_args(["--data", "multi30k", "--paper", "--model", name])
        with torch.device("meta"):
            model = MODELS[name]()
        built = model.encoder[0].attention.num_heads, len(model.encoder), model.dropout.p
        assert built == (args.num_heads, args.num_layers, args.dropout)


def warmup(steps, *flags):
    """The steps of the warm-up, and the peak rate."""
    args = train.parse_args(["--data", "multi30k", *flags])
    return train.warmup_of(args, steps, SimpleNamespace(say=print)), args.lr


def test_a_warm_up_fits_the_run(capsys):
    peak = (128 * 2000) ** -0.5
    assert warmup(6240) == (2000, peak)  # Multi30k
    assert not capsys.readouterr().out
    assert warmup(520) == (182, peak)
    assert "of 520 steps the warm-up has 182, not 2,000" in capsys.readouterr().out
    assert warmup(1) == (1, peak)
    assert warmup(520, "--warmup", "100") == (100, peak)  # a shorter one raises no rate
    assert warmup(9000, "--warmup", "8000") == (8000, peak / 2)  # Eq. 3
    capsys.readouterr()
    assert warmup(520, "--warmup", "2000") == (2000, peak)  # as typed
    assert "ends after step 520, inside its warm-up of 2,000" in capsys.readouterr().out
    assert warmup(520, "--warmup", "2000", "--no-ramp") == (2000, peak)
    assert not capsys.readouterr().out
    warmup(6240, "--max-steps", "2000")
    assert not capsys.readouterr().out
    warmup(6240, "--max-steps", "300")
    assert "ends after step 300, inside" in capsys.readouterr().out


@pytest.fixture
def few(monkeypatch):
    """A small test set."""
    monkeypatch.setattr(pairs, "TEST_DATES", 40)


FAST = ["--quiet", "--limit", "400", "--val", "20", "--vocab-size", "60", "--num-layers", "1"]


def same(a, b, **tolerance):
    for key in a:
        torch.testing.assert_close(a[key], b[key], **tolerance)


def test_accumulation_equals_the_large_batch(few):
    flags = [*FAST, "--max-steps", "2", "--precision", "fp32", "--dropout", "0"]
    flags += ["--lr", "1e-3", "--warmup", "100"]
    losses = []
    for k in (1, 3):
        folder = ["--run-dir", f"k{k}", "--accumulate", str(k)]
        losses.append(train.main([*flags, "--batch-size", "400", *folder])["train_loss"])
    same(weights("k1"), weights("k3"), rtol=0, atol=5e-5)  # Adam divides rounding by rounding
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


KINDS = {"two": [], "shards": ["--fsdp"]}
ALIKE = [*FAST, "--max-steps", "2", "--precision", "fp32", "--dropout", "0", "--clip", "1"]
ALIKE += ["--batch-size", "300", "--warmup", "100"]


def test_two_processes_equal_one(few):
    train.main([*ALIKE, "--run-dir", "one"])
    done = torchrun(__file__, Path.cwd())
    assert done.returncode == 0, done.stderr
    for name in KINDS:
        same(weights("one"), weights(name), rtol=0, atol=5e-5)
        rows = [
            json.loads(Path(f, "metrics.jsonl").read_text().splitlines()[-1]) for f in ("one", name)
        ]
        assert rows[0]["test_exact"] == rows[1]["test_exact"]
        assert rows[0]["test_loss"] == pytest.approx(rows[1]["test_loss"], rel=1e-4)
        texts = [Path(f, "translations.txt").read_text() for f in ("one", name)]
        assert texts[0].count("\n") == texts[1].count("\n") == 40


def test_resuming_is_exact(few):
    flags = [*FAST, "--epochs", "3", "--batch-size", "2400", "--precision", "fp32"]
    flags += ["--average", "2"]
    train.main([*flags, "--run-dir", "whole"])
    train.main([*flags, "--run-dir", "cut", "--max-steps", "3"])
    train.main(["--quiet", "--resume", "--run-dir", "cut"])
    whole, cut = (torch.load(f"{name}/last.pt") for name in ("whole", "cut"))
    assert whole["step"] == cut["step"] == 6
    for part in ("model", "average"):
        for key, value in whole[part].items():
            assert value == cut[part][key] if key == "count" else torch.equal(value, cut[part][key])
    assert whole["average"]["count"] == 2


def test_the_last_epochs_are_averaged(few):
    flags = [*FAST, "--epochs", "3", "--batch-size", "2400", "--precision", "fp32"]
    seen = []
    for epochs in (2, 3):
        extra = ["--max-steps", str(2 * epochs), "--run-dir", f"to{epochs}", "--average", "2"]
        train.main([*flags, *extra])
        seen.append(torch.load(f"to{epochs}/last.pt"))
    average = seen[1]["average"]
    assert average["count"] == 2
    for key, value in seen[1]["model"].items():
        torch.testing.assert_close(average[key], (value + seen[0]["model"][key]) / 2)
    args = train.parse_args(["--epochs", "3", "--average", "2"])
    said = []
    used = train.weights_to_use(seen[1], args, said.append)
    assert used["embedding.weight"] is average["embedding.weight"]
    assert not said
    assert train.weights_to_use(seen[0], args, said.append) is seen[0]["model"]  # one of two
    assert "lacks some of the last 2 epochs" in said[0]
    for extra in (["--max-steps", "10"], []):  # a longer training averages its own last epochs
        train.main(["--quiet", "--resume", "--run-dir", "to3", "--epochs", "6", *extra])
        seen.append(torch.load("to3/last.pt"))
    assert (seen[2]["step"], seen[3]["step"], seen[3]["average"]["count"]) == (10, 12, 2)
    for key, value in seen[3]["model"].items():
        mean = (value + seen[2]["model"][key]) / 2
        torch.testing.assert_close(seen[3]["average"][key], mean)


def test_a_training_made_longer_averages_no_other_epochs(few, capsys):
    """One epoch more: of the last two the first is gone, so the last weights are tested."""
    flags = [*FAST, "--batch-size", "4000", "--precision", "fp32", "--average", "2"]
    train.main([*flags, "--epochs", "2", "--run-dir", "run"])
    assert torch.load("run/last.pt")["average"]["count"] == 2
    assert "lacks" not in capsys.readouterr().out
    flags = ["--no-quiet", "--resume", "--run-dir", "run", "--epochs", "3"]
    train.main(flags)
    assert torch.load("run/last.pt")["average"]["count"] == 0
    assert "the last weights, for --average lacks some of the last 2" in capsys.readouterr().out
    sample.main(["--checkpoint", "run/last.pt", "1.2.1950"])
    assert "lacks some of the last 2 epochs" in capsys.readouterr().err


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_steps(precision, few):
    metrics = train.main([*FAST, "--max-steps", "1", "--precision", precision])
    assert all(map(math.isfinite, metrics.values()))


# ---------------------------------------------------------------------- the scripts


def write_pairs(count=60, folder=""):
    words = ["ein", "zwei", "drei", "vier", "fünf"]
    lines = [[words[(i * k + k) % 5] for k in range(1, 2 + i % 6)] for i in range(count)]
    Path(folder, "a.txt").write_text("\n".join(map(" ".join, lines)) + "\n", "utf-8")
    Path(folder, "b.txt").write_text("\n".join(" ".join(x[::-1]) for x in lines) + "\n", "utf-8")
    return "pairs:a.txt,b.txt"


def test_pairs_evaluate_and_samples(capsys, monkeypatch, refused):
    references, evaluate = {}, train.evaluate

    def note(model, pairs, *rest):
        references[pairs.part] = pairs.lines.target
        return evaluate(model, pairs, *rest)

    monkeypatch.setattr(train, "evaluate", note)
    data = write_pairs(count=300)
    flags = ["--data", data, "--num-layers", "1", "--vocab-size", "40", "--epochs", "6"]
    flags += ["--warmup", "60", "--batch-size", "100", "--average", "1"]
    metrics = train.main([*flags, "--run-dir", "run"])
    answers = Path("run/translations.txt").read_text("utf-8").splitlines()
    wanted = sacrebleu.corpus_bleu(answers, [references["test"]]).score / 100
    assert metrics["test_bleu"] == pytest.approx(wanted)
    assert wanted > 0
    out = capsys.readouterr().out
    assert "nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:" in out
    rows = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert {"train_loss", "val_loss", "val_bleu"} <= rows[0].keys()
    again = train.main(["--evaluate", "run/last.pt", "--quiet"])
    assert again["test_bleu"] == pytest.approx(wanted)

    argv = ["--checkpoint", "run/last.pt"]
    found = sample.main([*argv, "zwei drei", "ein Ωmega", "--out", "out"])
    assert list(found) == ["zwei drei", "ein Ωmega"]
    streams = capsys.readouterr()
    assert "Ω" in streams.err
    for kind in ("encoder", "decoder", "cross"):
        assert Path(f"out/{kind}.png").stat().st_size > 1000
    sample.main([*argv, "ein " * 500, "--out", "long"])
    assert "1 sentence cut at 128 tokens" in capsys.readouterr().err
    monkeypatch.setattr(sample, "draw_attention", lambda *_: [])  # as before, and slow
    Path("in.txt").write_text("ein\n\nzwei drei\n", "utf-8")
    sample.main([*argv, "--file", "in.txt", "--out", "file"])
    capsys.readouterr()
    assert "file/translations.txt is there" in refused(sample.main, [*argv, "ein", "--out", "file"])
    lines = Path("file/translations.txt").read_text("utf-8").split("\n")
    assert len(lines) == 4
    assert lines[1] == ""
    tested = sample.main([*argv, "--out", "test"])  # of the test set
    assert {" ".join(source.split()[::-1]) for source in tested} <= set(references["test"])
    for more in (["--temperature", "1", "--seed", "3"], ["--beam", "1"]):
        assert list(sample.main([*argv, "ein", *more, "--out", more[0][2:]])) == ["ein"]


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


def test_references_that_are_not_in_normal_form(capsys):
    """Translations are; BLEU of the same text would be lower."""
    scores = []
    for form in ("NFC", "NFD"):
        Path(form).mkdir()
        write_pairs(300, form)
        for name in ("a.txt", "b.txt"):
            text = Path(form, name).read_text("utf-8")
            Path(form, name).write_text(unicodedata.normalize(form, text), "utf-8")
        argv = ["--data", f"pairs:{form}/a.txt,{form}/b.txt", "--run-dir", f"run{form}", "--quiet"]
        argv += ["--num-layers", "1", "--vocab-size", "40", "--epochs", "5", "--batch-size", "100"]
        scores.append(train.main([*argv, "--warmup", "60", "--average", "1"])["test_bleu"])
    assert scores[0] == scores[1] > 0
    assert "fünf" in Path("runNFD/translations.txt").read_text("utf-8")


def test_empty_translations_are_said(few, capsys, monkeypatch):
    monkeypatch.setattr(train, "write", lambda model, source, *_: [[]] * len(source))
    train.main([*FAST, "--no-quiet", "--max-steps", "1", "--run-dir", "run"])
    assert "all 40 translations are empty" in capsys.readouterr().out
    monkeypatch.setattr(sample, "write", lambda model, source, *_: [[]] * len(source))
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
    Path("spaces.txt").write_text("\u00a0\n", "utf-8")
    assert "spaces.txt is empty" in refused(sample.main, [*argv, "--file", "spaces.txt"])
    assert "nothing to translate" in refused(sample.main, [*argv, "\u00a0"])
    assert "one of them" in refused(sample.main, [*argv, "a", "--interactive"])
    assert "no files" in refused(sample.main, [*argv, "--interactive", "--out", "out"])
    for flags in (["--beam", "2"], ["--length-penalty", "1"]):
        assert "one or the other" in refused(sample.main, ["a", "--temperature", "1", *flags])
    assert "for draws" in refused(sample.main, ["a", "--seed", "1"])
    assert "--beam above 1" in refused(sample.main, ["a", "--beam", "1", "--length-penalty", "1"])
    for flag, value in (("--num-heads", "8"), ("--positions", "none"), ("--vocab-size", "50")):
        name = flag[2:].replace("-", "_")
        for more in (["--resume", "--run-dir", "run"], ["--evaluate", "run/last.pt"]):
            assert f"holds {name}" in refused(train.main, [*more, flag, value])


def test_bad_settings(refused):
    assert "3 heads" in refused(train.main, [*FAST, "--num-heads", "3"])
    assert "--dropout" in refused(train.main, ["--dropout", "1"])
    assert "--smoothing" in refused(train.main, ["--smoothing", "1.5"])
    assert "below 10" in refused(train.main, ["--beam", "2", "--length-penalty", "400"])
    assert "add --beam" in refused(train.main, ["--length-penalty", "1"])  # of dates
    assert "keeps the best" in refused(train.main, ["--patience", "2", "--average", "3"])
    assert "--warmup-share" in refused(train.main, ["--warmup-share", "1.5"])
    assert "dates has one direction" in refused(train.main, ["--direction", "de-en"])


@pytest.mark.parametrize("claim", list(claims.CLAIMS))
def test_claims_run_resume_and_summarise(claim, few, monkeypatch, capsys):
    runs, arms = [], dict(itertools.islice(claims.CLAIMS[claim].items(), 2))
    monkeypatch.setitem(claims.CLAIMS, claim, arms)
    fast = ["--limit", "200", "--max-steps", "1", "--num-layers", "1"]
    monkeypatch.setattr(claims, "train", lambda argv: runs.append(argv) or train.main(argv + fast))
    argv = [claim, "--data", "dates", "--epochs", "1", "--seeds", "0", "--out", "out"]
    summary = claims.main(argv)
    assert len(runs) == 2
    assert summary == json.loads(Path(f"out/claim_{claim}.json").read_text())
    assert Path(f"out/claim_{claim}.png").exists()
    claims.main(argv)
    assert len(runs) == 2  # done is done
    assert "exact match" in capsys.readouterr().out


@pytest.mark.slow
def test_quick_reaches_the_readmes_number():
    assert train.main(["--quiet"])["test_exact"] >= 0.95


if __name__ == "__main__":
    os.chdir(sys.argv[1])
    pairs.TEST_DATES = 40
    for name, flags in KINDS.items():
        train.main([*ALIKE, *flags, "--run-dir", name])
