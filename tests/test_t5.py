"""T5: sizes, parity with transformers, relative positions, the cache, gaps in plain text.

Scripts and data are in test_t5_scripts.py.
"""

import itertools
import math
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from helpers import count, dropped

from t5 import corruption, layers
from t5.corruption import corrupt, counts_of, cut_in_two, give_back, hidden_spans, lengths_of
from t5.decoding import Decoding, write
from t5.layers import Attention, Sizes, buckets_of
from t5.model import END, MODELS, PAD, START, T5, PrefixLM, build, describe, rebuild, to_the_right

COUNTS = {
    "t5_small": 60_506_624,
    "t5_base": 222_903_552,
    "t5_large": 737_668_096,
    "t5_3b": 2_851_598_336,
    "t5_11b": 11_307_321_344,
    "t5_v1_1_small": 76_961_152,
    "t5_v1_1_base": 247_577_856,
    "t5_mini": 4_673_088,
    "t5_tiny": 1_050_368,
}
KINDS = ["v1.0", "v1.1"]


def random_weights(model, scale=0.2):
    """Every weight random and none near what hides a wrong wire."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=generator, dtype=torch.float64)
            p.copy_(scale * noise + ("layer_norm" in name) + noise * ("attention_bias" in name))
    return model.double().eval()


def tiny(kind=T5, **settings):
    sizes = dict(vocab_size=50, d_model=32, num_layers=3, num_heads=4, d_kv=6, d_ff=64, dropout=0.0)
    return random_weights(kind(Sizes(**sizes | settings)))


def tokens(*shape, vocab_size=50, seed=0):
    """Real tokens, none of them padding."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(1, vocab_size, shape, generator=generator)


def padded(rows=3, length=11, seed=0):
    """Sources of several lengths."""
    source = tokens(rows, length, seed=seed)
    for row in range(1, rows):
        source[row, length - 3 * row :] = PAD
    return source


@pytest.mark.parametrize("name", MODELS)
def test_parameters(name):
    with torch.device("meta"):
        model = MODELS[name]()
    assert count(model) == COUNTS[name]
    assert f"{COUNTS[name]:,}" in MODELS[name].__doc__
    assert not [n for n, _ in model.named_parameters() if "bias" in n.split(".")[-1]]


# ---------------------------------------------------------------------- parity


def reference(kind, **settings):
    """transformers' network; of version 1.1 untied, as released, which it no longer does alone."""
    from transformers import T5Config, T5ForConditionalGeneration

    sizes = dict(vocab_size=50, d_model=32, d_kv=6, d_ff=64, num_layers=3, num_heads=4)
    sizes |= dict(decoder_start_token_id=0, dropout_rate=0.0) | settings
    if kind == "v1.1":
        sizes |= dict(feed_forward_proj="gated-gelu", tie_word_embeddings=False)
    config = T5Config(**sizes)
    if kind == "v1.1":
        config.tie_word_embeddings = False
    model = T5ForConditionalGeneration(config)
    random_weights(model)
    if kind == "v1.1":  # set so, its three tables of embeddings come apart
        table = model.shared.weight
        for part in (model.encoder, model.decoder):
            part.embed_tokens.weight = table
    return model


def ours_of(theirs, kind):
    model = tiny(gated=kind == "v1.1", tied=kind == "v1.0")
    state = theirs.state_dict()
    model.load_state_dict({name: state[name] for name in model.state_dict()})
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_parity_with_transformers(kind):
    """Logits, loss and gradients with the same weights; theirs takes the norm in float32."""
    theirs = reference(kind)
    ours = ours_of(theirs, kind)
    source, answer = padded(), tokens(3, 7, seed=1)
    found = theirs(input_ids=source, attention_mask=(source != PAD).long(), labels=answer)
    target = torch.cat([torch.full((3, 1), START), answer[:, :-1]], 1)
    logits = ours(source, target)
    torch.testing.assert_close(logits, found.logits, rtol=1e-5, atol=2e-6)
    assert logits.std() > 0.1
    loss = F.cross_entropy(logits.flatten(0, 1), answer.flatten())
    torch.testing.assert_close(loss, found.loss, rtol=1e-6, atol=0)
    loss.backward()
    found.loss.backward()
    wanted = {name: p.grad for name, p in theirs.named_parameters()}
    for name, p in ours.named_parameters():
        size = wanted[name].abs().max().item()
        assert size > 1e-6, name
        torch.testing.assert_close(p.grad, wanted[name], rtol=1e-4, atol=1e-5 * size, msg=name)


@pytest.mark.parametrize("kind", KINDS)
def test_long_texts_are_as_in_transformers(kind):
    """Where far tokens share buckets."""
    theirs = reference(kind)
    ours = ours_of(theirs, kind)
    source, target = tokens(1, 300), tokens(1, 200, seed=1)
    with torch.no_grad():
        wanted = theirs(input_ids=source, decoder_input_ids=target).logits
        torch.testing.assert_close(ours(source, target), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", [n for n in COUNTS if n not in ("t5_mini", "t5_tiny")])
def test_named_sizes_are_as_in_transformers(name):
    """Names and shapes of every weight, on the meta device."""
    from transformers import T5Config, T5ForConditionalGeneration

    with torch.device("meta"):
        ours = MODELS[name]()
        s = ours.sizes
        sizes = dict(vocab_size=s.vocab_size, d_model=s.d_model, d_kv=s.d_kv, d_ff=s.d_ff)
        sizes |= dict(num_layers=s.num_layers, num_heads=s.num_heads)
        act = "gated-gelu" if s.gated else "relu"
        theirs = T5ForConditionalGeneration(T5Config(**sizes, feed_forward_proj=act))
    wanted = {n: p.shape for n, p in theirs.state_dict().items() if "embed_tokens" not in n}
    if s.tied:
        del wanted["lm_head.weight"]
    assert {n: p.shape for n, p in ours.state_dict().items()} == wanted


# ---------------------------------------------------------------------- properties


def bucket_by_hand(distance, bidirectional, buckets=32, most=128):
    """Of one distance, with Python's numbers."""
    found = 0
    if bidirectional:
        buckets //= 2
        found, distance = (buckets if distance > 0 else 0), abs(distance)
    else:
        distance = max(-distance, 0)
    exact = buckets // 2
    if distance < exact:
        return found + distance
    steps = math.log(distance / exact) / math.log(most / exact)
    return found + min(buckets - 1, exact + int(steps * (buckets - exact) + 1e-6))


@pytest.mark.parametrize("bidirectional", [True, False])
def test_buckets(bidirectional):
    distances = torch.arange(-300, 301)
    found = buckets_of(distances, bidirectional)
    assert found.tolist() == [bucket_by_hand(d, bidirectional) for d in distances.tolist()]
    assert len(found.unique()) == 31 + (not bidirectional)  # bucket 16 would be distance +0
    assert found.max() == 31
    from transformers.models.t5.modeling_t5 import T5Attention

    assert torch.equal(found, T5Attention._relative_position_bucket(distances, bidirectional))
    small = buckets_of(distances, bidirectional, 8, 20)
    assert small.tolist() == [bucket_by_hand(d, bidirectional, 8, 20) for d in distances.tolist()]


def test_attention_by_brute_force():
    """No root of d divides the scores, and the bias is added to them."""
    q, k, v = (torch.randn(1, 2, 5, 4, dtype=torch.float64) for _ in range(3))
    bias = torch.randn(1, 2, 5, 5, dtype=torch.float64)
    found, weights = layers.attention(q, k, v, bias)
    for h, i in itertools.product(range(2), range(5)):
        scores = [math.exp(float(q[0, h, i] @ k[0, h, j] + bias[0, h, i, j])) for j in range(5)]
        wanted = sum(s * v[0, h, j] for j, s in enumerate(scores)) / sum(scores)
        torch.testing.assert_close(found[0, h, i], wanted)
    torch.testing.assert_close(weights.sum(-1), torch.ones(1, 2, 5).double())


def test_the_kernel_of_a_gpu_is_the_attention_written_out(monkeypatch):
    q, k, v = (torch.randn(2, 3, 5, 4, dtype=torch.float64) for _ in range(3))
    bias = torch.randn(1, 3, 5, 5, dtype=torch.float64)
    layer = Attention(Sizes(50, 12, 1, 3, 4, 8, dropout=0.0)).double()
    wanted, _ = layers.attention(q, k, v, bias)
    monkeypatch.setattr(torch.Tensor, "is_cpu", False)
    torch.testing.assert_close(layer.attend(q, k, v, bias), wanted)
    layer.recording = True
    torch.testing.assert_close(layer.attend(q, k, v, bias), wanted)
    assert layer.weights.shape == (2, 3, 5, 5)


def test_the_norm_keeps_the_mean():
    norm = layers.RMSNorm(8).double()
    x = 3 + torch.randn(2, 5, 8, dtype=torch.float64)
    found = norm(x)
    torch.testing.assert_close(found, x / (x.square().mean(2, keepdim=True) + 1e-6).sqrt())
    assert (found.mean(2) > 0.5).all()


def test_all_blocks_share_one_table_of_positions():
    model = tiny()
    tables = [name for name, _ in model.named_parameters() if "relative_attention_bias" in name]
    place = "block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    assert tables == [f"encoder.{place}", f"decoder.{place}"]
    seen = []
    for block in model.encoder.block:
        attend = block.layer[0].SelfAttention
        attend.register_forward_pre_hook(lambda _module, args: seen.append(args[1]))
    model(tokens(2, 6), tokens(2, 3))
    assert len(seen) == 3
    assert all(bias is seen[0] for bias in seen)


def test_first_weights():
    torch.manual_seed(0)
    model = MODELS["t5_tiny"]()
    for name, p in model.named_parameters():
        part = name.split(".")[-2]
        wanted = {"q": (128 * 32) ** -0.5, "k": 128**-0.5, "v": 128**-0.5, "o": 128**-0.5}
        wanted |= {"wi": 128**-0.5, "wo": 512**-0.5, "shared": 1.0}
        wanted["relative_attention_bias"] = 128**-0.5
        if p.dim() == 1:
            assert (p == 1).all()
        else:
            rel = 0.25 if part == "relative_attention_bias" else 0.05
            assert p.std().item() == pytest.approx(wanted[part], rel=rel), name
    source, target = tokens(4, 20, vocab_size=1024), tokens(4, 10, vocab_size=1024)
    logits = model.eval()(source, target)
    assert logits.std().item() == pytest.approx(1, rel=0.25)  # so a loss begins near log V


def test_dropout_is_where_the_paper_has_it():
    """At the ends of the stack, on the output of each sub-layer, on the weights of attention, and
    inside of the feed-forward layer (Sec. 2.1)."""
    model = tiny(dropout=0.5, num_layers=2).float()
    found = dropped(model, tokens(2, 6), tokens(2, 3))
    assert found == {(2, 6, 32): 2 + 4, (2, 6, 64): 2, (2, 3, 32): 2 + 6, (2, 3, 64): 2}
    shares = [m.dropout for m in model.modules() if isinstance(m, Attention)]
    assert shares == [0.5] * 6
    ones = torch.ones(1000, 1000)
    kept = layers.drop_values(ones, 0.25)
    assert kept.mean().item() == pytest.approx(1, abs=0.01)
    assert (kept == 0).float().mean().item() == pytest.approx(0.25, abs=0.01)


@pytest.mark.parametrize("kind", [T5, PrefixLM])
def test_targets_see_what_is_left_of_them(kind):
    model, source, target = tiny(kind), padded(), tokens(3, 8, seed=2)
    before = model(source, target)
    for t in (1, 4, 7):
        changed = target.clone()
        changed[:, t:] = 1 + changed[:, t:] % 49
        after = model(source, changed)
        torch.testing.assert_close(after[:, :t], before[:, :t])
        assert not torch.allclose(after[:, t], before[:, t])


@pytest.mark.parametrize("kind", [T5, PrefixLM])
def test_the_first_target_sees_the_whole_source(kind):
    model, target = tiny(kind), tokens(1, 3, seed=2)
    source = tokens(1, 9)
    table = model.shared.weight
    rows = table[source].detach().requires_grad_()
    embed = torch.cat([rows, table[target]], 1) if kind is PrefixLM else rows
    if kind is T5:
        memory = model.encoder(rows, None)
        out = model.decoder(table[target], layers_mask(3), memory, None)[0, 0].sum()
    else:
        places = torch.arange(12)
        mask = (places <= places[:, None]) | (places < 9)
        out = model.decoder(embed, mask)[0, 9].sum()
        torch.testing.assert_close(out, model.read(source, target)[0, 0].sum())
    (grad,) = torch.autograd.grad(out, rows)
    assert (grad[0].abs().sum(1) > 0).all()


def layers_mask(length):
    return torch.ones(length, length, dtype=torch.bool).tril()


@pytest.mark.parametrize("kind", [T5, PrefixLM])
def test_padding_changes_nothing(kind):
    model, source, target = tiny(kind), padded(), tokens(3, 8, seed=2)
    together = model(source, target)
    for row in range(3):
        alone = source[row : row + 1, : int((source[row] != PAD).sum())]
        found = model(alone, target[row : row + 1])
        torch.testing.assert_close(found[0], together[row])


def test_padding_to_the_right():
    source = torch.tensor([[5, 6, 7, 0], [8, 0, 0, 0], [1, 2, 3, 4]])
    wanted = [[0, 5, 6, 7], [0, 0, 0, 8], [1, 2, 3, 4]]
    assert to_the_right(source).tolist() == wanted


def test_prefix_lm_has_half_the_parameters_and_the_same_layers_a_token():
    settings = dict(vocab_size=50, d_model=32, num_layers=3, num_heads=4, d_kv=6, d_ff=64)
    both = [count(kind(Sizes(**settings))) for kind in (T5, PrefixLM)]
    layer = 4 * 32 * 24 + 2 * 32 * 64 + 2 * 32  # self-attention, feed-forward, two norms
    cross = 4 * 32 * 24 + 32
    rest = 32 * 50 + 32 + 32 * 4  # embeddings, last norm, positions
    assert both == [2 * (3 * layer + 32 + 32 * 4) + 3 * cross + 32 * 50, 3 * layer + rest]


@pytest.mark.parametrize("kind", [T5, PrefixLM])
@pytest.mark.parametrize("gated", [True, False])
def test_the_cache_gives_the_same_logits(kind, gated):
    model, source = tiny(kind, gated=gated, tied=not gated), padded()
    target = torch.cat([torch.full((3, 1), START), tokens(3, 9, seed=1)], 1)
    whole = model(source, target).detach()
    whole[..., PAD] = -torch.inf
    with torch.no_grad():
        states = Decoding(model, source), Decoding(model, source, cached=False)
        for t in range(1, 11):
            for state in states:
                found = state.step(target[:, :t]).double()
                torch.testing.assert_close(found, whole[:, t - 1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", [T5, PrefixLM])
@pytest.mark.parametrize("beam", [1, 3])
def test_writing_with_and_without_the_cache(kind, beam):
    model, source = tiny(kind), padded(4)
    found = [write(model, source, 12, beam, cached=cached) for cached in (True, False)]
    assert found[0] == found[1]
    assert len(set(map(tuple, found[0]))) > 1  # rows differ, or nothing is tested
    alone = [write(model, source[i : i + 1], 12, beam)[0] for i in range(4)]
    assert alone == found[0]
    assert all(PAD not in row and END not in row for row in found[0])


def test_writing_is_transformers_generate():
    theirs = reference("v1.0", eos_token_id=END, pad_token_id=PAD).float()
    ours = ours_of(theirs, "v1.0").float()
    source = padded(4)
    how = dict(attention_mask=(source != PAD).long(), max_new_tokens=10, do_sample=False)
    wanted = theirs.generate(source, **how)
    found = write(ours, source, 10)
    for row, want in zip(found, wanted.tolist(), strict=True):
        want = want[1:]
        assert row == want[: want.index(END) if END in want else None]


def test_drawn_texts_follow_their_generator():
    model, source = tiny(), padded()
    drawn = [
        write(model, source, 8, temperature=2.0, generator=torch.Generator().manual_seed(seed))
        for seed in (0, 0, 1)
    ]
    assert drawn[0] == drawn[1] != drawn[2]


def test_what_fills_up_the_table_is_never_written():
    model, source = tiny(), tokens(8, 6)
    drawn = write(model, source, 20, known=5, temperature=50.0)
    assert {token for row in drawn for token in row} == {2, 3, 4}


@pytest.mark.parametrize("kind", ["encoder-decoder", "prefix-lm"])
def test_a_described_network_is_built_again(kind):
    model = random_weights(build("tiny", 60, kind, num_layers=1, gated=True, tied=False))
    again = rebuild(describe(model)).double().eval()
    again.load_state_dict(model.state_dict())
    some = padded(), tokens(3, 4)
    torch.testing.assert_close(again(*some), model(*some))


@pytest.mark.parametrize("kind", ["encoder-decoder", "prefix-lm"])
def test_it_learns_a_batch_by_heart(kind):
    torch.manual_seed(0)
    model = build("tiny", 30, kind, d_model=64, dropout=0.0)
    source, answer = tokens(8, 6, vocab_size=30), tokens(8, 5, vocab_size=30, seed=1)
    target = torch.cat([torch.full((8, 1), START), answer[:, :-1]], 1)
    optimizer = torch.optim.Adam(model.parameters(), 4e-3)
    for _ in range(150):
        loss = F.cross_entropy(model(source, target).flatten(0, 1), answer.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05
    answer[:, -1] = END
    assert write(model, source, 4) == answer[:, :4].tolist()


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_mixed_precision_is_near(kind):
    model, source, target = tiny().float(), padded(), tokens(3, 5)
    wanted = model(source, target)
    with torch.autocast("cpu", kind):
        found = model(source, target)
    torch.testing.assert_close(found.float(), wanted, rtol=0.1, atol=0.05 * wanted.std().item())
    found.float().square().mean().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_half_precision_does_not_overflow():
    """The feed-forward layers of trained networks give values above what float16 has."""
    model = layers.FeedForward(Sizes(50, 8, 1, 1, 8, 16, dropout=0.0))
    with torch.no_grad():
        model.wo.weight.fill_(300.0)
        model.wi.weight.fill_(30.0)
    with torch.autocast("cpu", torch.float16):
        found = model(torch.ones(1, 1, 8))
    assert (found > 65_504).all()
    assert found.isfinite().all()


# ---------------------------------------------------------------------- gaps

SENTINELS = torch.arange(999, 899, -1)


@pytest.mark.parametrize(
    ("length", "source", "target"), [(568, 512, 114), (284, 256, 58), (141, 128, 29)]
)
def test_published_lengths(length, source, target):
    assert lengths_of(length) == (source, target)
    assert corruption.raw_length(source) == length
    some = tokens(2, length, vocab_size=800)
    found = corrupt(some, SENTINELS, END, torch.Generator().manual_seed(0))
    assert [part.shape for part in found] == [(2, source), (2, target)]


def test_too_few_tokens_for_a_gap():
    with pytest.raises(ValueError, match="too few"):
        corruption.raw_length(2)
    assert corruption.raw_length(3) == 2
    with pytest.raises(ValueError, match="sentinels"):
        corrupt(tokens(2, 568), SENTINELS[:5], END, torch.Generator())


@pytest.mark.parametrize(
    ("rate", "mean", "length"),
    [(0.15, 3, 141), (0.5, 3, 60), (0.1, 2, 97), (0.25, 10, 200), (0.15, 5, 8), (0.9, 2, 20)],
)
def test_the_text_comes_back(rate, mean, length):
    some = tokens(20, length, vocab_size=800)
    generator = torch.Generator().manual_seed(1)
    source, target = corrupt(some, SENTINELS, END, generator, rate, mean)
    hidden, spans = counts_of(length, rate, mean)
    assert source.shape[1] == length - hidden + spans + 1
    assert target.shape[1] == hidden + spans + 1
    assert (source[:, -1] == END).all()
    assert (target[:, -1] == END).all()
    marks = SENTINELS.tolist()
    for text, a, b in zip(some.tolist(), source.tolist(), target.tolist(), strict=True):
        assert give_back(a[:-1], b[:-1], marks) == text
        for part in (a, b):  # in falling order, each once
            assert [t for t in part if t in marks] == marks[:spans]
        assert a[0] == text[0]  # a text begins with what is kept
        assert b[0] == marks[0]
        assert b[-2] == text[-1]  # and ends with what is hidden: no sentinel closes the target


def test_the_papers_example():
    """Figure 2. A target ends with a sentinel where its text ends with what is kept, as no text
    does that `corrupt` draws."""
    words = ["Thank", "you", "for", "inviting", "me", "to", "your", "party", "last", "week", "."]
    spans = torch.tensor([[w in ("for", "inviting", "last") for w in words]])
    ids = torch.arange(len(words))[None]
    marks = torch.tensor([102, 101, 100])
    names = dict(enumerate(words)) | {102: "<X>", 101: "<Y>", 100: "<Z>"}

    def text(part):
        return " ".join(names[i] for i in part[0].tolist())

    source = text(corruption.replace(ids, spans, marks))
    assert source == "Thank you <X> me to your party <Y> week ."
    target = text(corruption.replace(ids, ~spans, marks))
    assert target == "<X> for inviting <Y> last <Z>"


def test_the_statistics_of_gaps():
    """Exactly 15%, 3 tokens a span on average; all ways to cut are equally likely."""
    generator = torch.Generator().manual_seed(0)
    hidden = hidden_spans(2000, 141, generator)
    assert (hidden.sum(1) == 21).all()
    begins = hidden & ~F.pad(hidden, (1, 0))[:, :-1]
    assert (begins.sum(1) == 7).all()
    lengths = torch.cat([torch.tensor(spans(row)) for row in hidden.tolist()])
    assert lengths.double().mean() == 3
    counts = Counter(lengths.tolist())
    for size in range(1, 9):  # C(20 - size, 5) / C(20, 6): the rest has to be six parts
        share = math.comb(20 - size, 5) / math.comb(20, 6)
        assert counts[size] / len(lengths) == pytest.approx(share, abs=0.01)
    ways = Counter(map(tuple, corruption.segments(5, 3, 6000, generator).tolist()))
    assert len(ways) == 6  # C(4, 2)
    assert all(n == pytest.approx(1000, abs=150) for n in ways.values())


def spans(row):
    """The lengths of the runs of True."""
    return [len(list(group)) for value, group in itertools.groupby(row) if value]


def test_texts_are_cut_in_two():
    some = tokens(300, 12, vocab_size=800)
    source, target = cut_in_two(some, END + 1000, PAD, torch.Generator().manual_seed(0))
    sizes = Counter()
    for text, a, b in zip(some.tolist(), source.tolist(), target.tolist(), strict=True):
        a, b = (part[: part.index(END + 1000)] for part in (a, b))
        assert a + b == text
        sizes[len(a)] += 1
    assert set(sizes) == set(range(1, 12))
    for part in (source, target):  # behind the end there is padding alone
        after = (part == END + 1000).cumsum(1) - (part == END + 1000).long()
        assert (part[after.bool()] == PAD).all()
