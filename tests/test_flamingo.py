"""Flamingo's layers and the whole: counts, parity with Idefics, gates, the mask, the cache."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from helpers import count, perturb
from torch import nn

from clip.model import ModifiedResNet, VisionTransformer
from common.decode import generate
from flamingo.layers import GatedCrossAttentionBlock, images_before, sight
from flamingo.model import MODELS, SIZES, Flamingo
from flamingo.resampler import ACTIVATIONS, PerceiverResampler
from gpt.model import GPT1, GPT2

MARK = 1
TINY = dict(num_heads=2, d_head=4, num_latents=3, width=8, resampler_layers=2, resampler_heads=2,
            num_frames=1, image_token=MARK)  # fmt: skip


def vision():
    return VisionTransformer(8, 4, 12, 1, 2, 6, "quick_gelu")


def language(**settings):
    return GPT2(20, **dict(d_model=8, num_layers=3, num_heads=2, context=32) | settings)


def tiny(**settings):
    """A small Flamingo in float64, in evaluation, whose gates are open."""
    return perturb(Flamingo(vision(), language(), **TINY | settings)).double().eval()


def prompts(batch=3, length=14, images=2):
    """Tokens with one or two marks in each row, and images for them."""
    tokens = torch.randint(2, 20, (batch, length))
    for row in range(batch):
        tokens[row, 1 + row] = MARK
        if row != 1:
            tokens[row, 6 + row] = MARK
    return tokens, torch.randn(batch, images, 3, 8, 8).double()


def size(module):
    return sum(p.numel() for p in module.parameters())


# ---------------------------------------------------------------------- sizes and names


def test_parameters():
    """The resampler's 194 million and the gated layers' 1.2, 1.6 and 10 billion of Table 1 are
    rounded, and count what isn't published; these are counted here."""
    with torch.device("meta"):
        models = {name: make() for name, make in MODELS.items()}
    found = {name: (size(m.perceiver), size(m.gated), len(m.gated)) for name, m in models.items()}
    assert found == {
        "flamingo_3b": (190_487_040, 1_157_824_560, 24),
        "flamingo_9b": (190_487_040, 1_803_714_580, 10),
        "flamingo_80b": (190_487_040, 8_355_446_808, 12),
        "flamingo_small": (431_104, 788_488, 4),
    }
    sizes = {name: size(m.lang_encoder) for name, m in models.items()}
    assert sizes["flamingo_3b"] == 1_278_332_928
    assert sizes["flamingo_9b"] == 8_194_662_400
    assert sizes["flamingo_80b"] == 64_711_966_720
    for name, model in models.items():
        assert size(model.vision_encoder) == (343_000 if "small" in name else 303_966_208)
        assert count(model) == size(model.perceiver) + size(model.gated)  # what is learned
    with torch.device("meta"):
        assert count(MODELS["flamingo_small"](frozen=[])) == 2_519_776


def test_counts_by_hand():
    with torch.device("meta"):
        model = MODELS["flamingo_3b"]()
    norm = 2 * 1536
    attention = 2 * norm + 1536 * 2048 * 4  # 16 heads of 128
    layer = attention + norm + 2 * 4 * 1536**2
    resampler = 6 * layer + (64 + 8) * 1536 + norm + (1024 * 1536 + 1536)
    assert size(model.perceiver) == resampler
    block = 2 * 2 * 2048 + 2 * 2048**2 + 2 * 1536 * 2048 + 2 * 4 * 2048**2 + 2
    assert size(model.gated) == 24 * block


def test_blocks_that_have_a_gated_layer():
    for name, places in {"flamingo_9b": range(0, 40, 4), "flamingo_80b": range(0, 80, 7)}.items():
        assert len(list(places)) == {"flamingo_9b": 10, "flamingo_80b": 12}[name]
        assert SIZES[name]["every"] == places.step
    model = tiny(every=2)
    assert len(model.gated) == 2
    seen = []
    for place, layer in enumerate(model.gated):
        layer.register_forward_hook(lambda *_, place=place: seen.append(f"gated {place}"))
    for place, block in enumerate(model.lang_encoder.h):
        block.register_forward_hook(lambda *_, place=place: seen.append(f"block {place}"))
    model(*prompts())
    assert seen == ["gated 0", "block 0", "block 1", "gated 1", "block 2"]


def test_names_are_those_of_openflamingo():
    model = tiny()
    layer = {f"0.{n}" for n in ("norm_media.weight", "norm_media.bias", "norm_latents.weight",
             "norm_latents.bias", "to_q.weight", "to_kv.weight", "to_out.weight")}  # fmt: skip
    layer |= {f"1.{n}" for n in ("0.weight", "0.bias", "1.weight", "3.weight")}
    names = {f"layers.{i}.{n}" for i in range(2) for n in layer}
    names |= {"latents", "norm.weight", "norm.bias", "project.weight", "project.bias"}
    assert model.perceiver.state_dict().keys() == names
    assert model.gated[0].state_dict().keys() == {
        *("attn_gate", "ff_gate", "attn.norm.weight", "attn.norm.bias", "attn.to_q.weight"),
        *("attn.to_kv.weight", "attn.to_out.weight"),
        *("ff.0.weight", "ff.0.bias", "ff.1.weight", "ff.3.weight"),
    }
    framed = PerceiverResampler(8, 8, 1, 2, 4, 3, num_frames=5)
    assert framed.frame_embs.shape == (5, 8)


# ---------------------------------------------------------------------- the resampler


def idefics(**settings):
    from transformers.models.idefics.configuration_idefics import IdeficsConfig

    config = IdeficsConfig(
        hidden_size=8, num_attention_heads=2, intermediate_size=32, use_resampler=True,
        vision_config=dict(embed_dim=12), **settings)  # fmt: skip
    config._attn_implementation = "sdpa"  # the other one has a softmax in float32
    return config


def test_parity_of_the_resampler():
    """With Idefics', whose activation is a ReLU, and which knows no frames."""
    from transformers.models.idefics.perceiver import IdeficsPerceiverResampler

    theirs = IdeficsPerceiverResampler(idefics(), 12, 2, 3, 5, 4).double()
    ours = PerceiverResampler(12, 12, 2, 3, 5, 4, num_frames=1, activation="relu").double()
    perturb(ours)
    state = {}
    for name, value in ours.state_dict().items():
        layer, _, rest = name.removeprefix("layers.").partition(".")
        kinds = {"norm_media": "context_layer_norm", "norm_latents": "latents_layer_norm",
                 "to_q": "q_proj", "to_out": "output_proj"}  # fmt: skip
        if name.startswith("layers.") and "to_kv" in rest:
            for kind, part in zip("kv", value.chunk(2), strict=True):
                state[f"blocks.{layer}.0.{kind}_proj.weight"] = part
        elif rest.startswith("0."):
            part, kind = rest[2:].split(".")
            state[f"blocks.{layer}.0.{kinds[part]}.{kind}"] = value
        elif rest.startswith("1."):
            number, kind = rest[2:].split(".")
            part = {"0": "ln", "1": "fc", "3": "c_proj"}[number]
            state[f"blocks.{layer}.1.{part}.{kind}"] = value
        else:
            state[name.replace("norm.", "layer_norm.")] = value
    theirs.load_state_dict(state)
    x = torch.randn(3, 7, 12).double()
    found = []
    for model, inputs in ((ours, x[:, None]), (theirs, x)):
        inputs = inputs.clone().requires_grad_()
        out = model(inputs)
        (out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum().backward()
        found.append((out, inputs.grad.view_as(x), model.latents.grad))
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-11)


def test_the_resampler_by_hand():
    """Of one image and one layer: latents look at places and latents, all squared ReLU."""
    model = perturb(PerceiverResampler(6, 6, 1, 2, 3, 2, num_frames=1)).double()
    x = torch.randn(1, 1, 4, 6).double()
    (attention, feed), latents = model.layers[0], model.latents
    media, own = attention.norm_media(x[0, 0]), attention.norm_latents(latents)
    both = torch.cat([media, own])
    query, (key, value) = (
        own @ attention.to_q.weight.T,
        (both @ attention.to_kv.weight.T).chunk(2, 1),
    )
    parts = []
    for h in range(2):
        d = slice(3 * h, 3 * h + 3)
        scores = query[:, d] @ key[:, d].T / math.sqrt(3)
        parts.append(scores.softmax(1) @ value[:, d])
    latents = latents + torch.cat(parts, 1) @ attention.to_out.weight.T
    hidden = feed[0](latents) @ feed[1].weight.T
    latents = latents + (hidden.clamp(min=0) ** 2) @ feed[3].weight.T
    torch.testing.assert_close(model(x)[0], model.norm(latents))
    assert set(ACTIVATIONS) == {"squared_relu", "relu", "gelu"}


def test_an_image_is_a_video_of_one_frame_and_frames_have_times():
    model = perturb(PerceiverResampler(6, 6, 1, 2, 3, 2, num_frames=4)).double()
    frames = torch.randn(2, 4, 5, 6).double()
    with_times = frames + model.frame_embs[:, None]
    bare = PerceiverResampler(6, 6, 1, 2, 3, 2, num_frames=1).double()
    bare.load_state_dict({k: v for k, v in model.state_dict().items() if k != "frame_embs"})
    torch.testing.assert_close(model(frames), bare(with_times))
    torch.testing.assert_close(model(frames[:, :1]), bare(frames[:, :1] + model.frame_embs[0]))
    longer = model.times(7)  # the embeddings stand at every second one of seven
    torch.testing.assert_close(longer[::2], model.frame_embs)
    torch.testing.assert_close(longer[1::2], (model.frame_embs[1:] + model.frame_embs[:-1]) / 2)
    assert model(torch.randn(1, 7, 5, 6).double()).shape == (1, 2, 6)
    whole = tiny(num_frames=2)
    tokens, images = prompts()
    videos = torch.stack([images, images.flip(1)], 2)
    assert whole.look(videos).shape == (3, 2, 2, 5, 12)
    torch.testing.assert_close(whole(tokens, images), whole(tokens, images[:, :, None]))
    assert not torch.allclose(whole(tokens, videos), whole(tokens, images))


def test_places_have_embeddings_where_they_are_asked_for():
    x = torch.randn(2, 1, 5, 6).double()
    order = [4, 2, 0, 1, 3]
    for places in (0, 5):
        model = perturb(PerceiverResampler(6, 6, 1, 2, 3, 2, 1, places)).double()
        same = torch.allclose(model(x), model(x[:, :, order]))
        assert same == (places == 0)
    assert MODELS["flamingo_small"]().perceiver.place_embs.shape == (9, 128)


@pytest.mark.parametrize(("latents", "own"), [(8, 1), (4, 2), (16, 1)])
def test_latents_begin_by_looking_at_places_of_their_own(latents, own):
    """In every layer the scores of its own places are the highest for each latent, whatever is in
    the image; and what latents gather is soon the most of them."""
    torch.manual_seed(0)
    model = PerceiverResampler(64, 64, 2, 4, 16, latents, 1, places=8)
    attention = model.layers[0][0]
    attention.recording = True
    model(0.5 * torch.randn(20, 1, 8, 64))
    places = attention.weights[..., :8].mean((0, 1))  # (L, P), of images and heads
    mine = torch.arange(latents)[:, None] * 8 // latents + torch.arange(own)
    assert places.gather(1, mine).sum(1).min() > 0.5
    expected = mine.sort(1).values
    assert torch.equal(places.topk(own, 1).indices.sort(1).values, expected)
    assert model.latents.std() < 0.2
    queries, keys = attention.to_q.weight, attention.to_kv.weight.chunk(2)[0]
    assert F.cosine_similarity(queries, keys).abs().mean() < 0.5  # else a latent would find itself


def test_without_resampling_features_are_passed_on():
    model = perturb(PerceiverResampler(6, 4, 2, 2, 3, num_latents=0, num_frames=1)).double()
    x = torch.randn(2, 1, 5, 6).double()
    torch.testing.assert_close(model(x), model.norm(model.project(x[:, 0])))
    assert not model.layers
    whole = tiny(num_latents=0)
    tokens, images = prompts()
    assert whole(tokens, images).shape == (3, 14, 20)


# ---------------------------------------------------------------------- gated layers


def test_parity_of_the_gated_layer():
    """With Idefics', whose norms (RMS) and feed-forward (SwiGLU) are LLaMA's: ours in their place.
    Tokens of a gate of zero see nothing."""
    from transformers.models.idefics.modeling_idefics import IdeficsGatedCrossAttentionLayer

    torch.set_default_dtype(torch.float64)
    try:
        theirs = IdeficsGatedCrossAttentionLayer(idefics(), 0)
    finally:
        torch.set_default_dtype(torch.float32)
    ours = perturb(GatedCrossAttentionBlock(8, 12, 2, 4)).double()
    assert ours.attn_gate.item() and ours.ff_gate.item()
    theirs.input_layernorm, theirs.post_attention_layernorm = ours.attn.norm, nn.Identity()
    theirs.mlp = ours.ff
    key, value = ours.attn.to_kv.weight.chunk(2)
    with torch.no_grad():
        for part, weight in {"q": ours.attn.to_q.weight, "k": key, "v": value,
                             "o": ours.attn.to_out.weight}.items():  # fmt: skip
            getattr(theirs.cross_attn, f"{part}_proj").weight.copy_(weight)
        theirs.alpha_cross_attn.copy_(ours.attn_gate)
        theirs.alpha_dense.copy_(ours.ff_gate)
    x, latents = torch.randn(2, 6, 8).double(), torch.randn(2, 3, 4, 12).double()
    seen = torch.tensor([[0, 0, 1, 1, 2, 3], [1, 1, 1, 2, 2, 2]])
    visible = sight(seen, 3, 4)
    mask = torch.zeros(visible.shape).double().masked_fill(~visible, -1e30)[:, None]
    found = []
    for model in ("ours", "theirs"):
        leaf, media = x.clone().requires_grad_(), latents.clone().requires_grad_()
        if model == "ours":
            out = ours(leaf, ours.attn.keys(media), visible)
        else:
            gate = (seen > 0).double()
            out = theirs(leaf, image_hidden_states=media.flatten(1, 2), image_attention_mask=mask,
                         cross_attention_gate=gate)  # fmt: skip
        (out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum().backward()
        found.append((out, leaf.grad, media.grad))
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-11)


def test_gates_begin_closed_and_are_the_tanh():
    block = GatedCrossAttentionBlock(8, 12, 2, 4).double()
    x, media = torch.randn(2, 5, 8).double(), block.attn.keys(torch.randn(2, 1, 3, 12).double())
    visible = torch.ones(2, 5, 3, dtype=torch.bool)
    assert torch.equal(block(x, media, visible), x)
    with torch.no_grad():
        block.attn_gate.fill_(0.3)
        block.ff_gate.fill_(-2.0)
    y = x + math.tanh(0.3) * block.attn(x, media, visible)
    torch.testing.assert_close(block(x, media, visible), y + math.tanh(-2.0) * block.ff(y))
    bare = GatedCrossAttentionBlock(8, 12, 2, 4, gated=False).double()
    y = x + bare.attn(x, media, visible)
    torch.testing.assert_close(bare(x, media, visible), y + bare.ff(y))
    assert bare.gates() == (1.0, 1.0)


@pytest.mark.parametrize("make", [language, lambda: GPT1(20, 8, 3, 2, 32)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_at_the_start_it_is_the_language_model_bit_for_bit(make, dtype):
    model = Flamingo(vision(), make(), **TINY).to(dtype).eval()
    tokens, images = prompts()
    want = model.lang_encoder(tokens)
    assert torch.equal(model(tokens, images.to(dtype)), want)
    assert torch.equal(model(tokens), want)
    with torch.no_grad():
        model.gated[2].attn_gate.fill_(0.1)
    assert not torch.equal(model(tokens, images.to(dtype)), want)
    assert torch.equal(model(tokens), want)  # no image at all


def test_open_gates_without_images_are_the_language_model():
    model = tiny()
    tokens, _ = prompts()
    assert torch.equal(model(tokens), model.lang_encoder(tokens))


# ---------------------------------------------------------------------- the mask


def interleavings(length=5):
    """All rows of text (2) and marks (1), with up to three marks."""
    rows = itertools.product([2, MARK], repeat=length)
    return [row for row in rows if row.count(MARK) <= 3]


def test_the_mask_by_brute_force():
    """A token sees the latents of the last mark at or before it, and no others."""
    rows = interleavings()
    tokens = torch.tensor(rows)
    visible = sight(images_before(tokens, MARK), 3, 2)  # three images of two latents
    for row, tokens_of in enumerate(rows):
        last = 0
        for t, token in enumerate(tokens_of):
            last += token == MARK
            for image, latent in itertools.product(range(3), range(2)):
                want = image + 1 == last
                assert bool(visible[row, t, 2 * image + latent]) == want, (tokens_of, t, image)


def test_which_images_reach_which_logits():
    """Of the whole, with every block's text attention: images reach their own text and what
    follows, which the text in between tells; a token before the first image none."""
    model = tiny()
    tokens = torch.tensor([[5, 6, MARK, 7, 8, MARK, 9, 10, 11]])
    images = torch.randn(1, 2, 3, 8, 8).double().requires_grad_()
    for t in range(9):
        features = model.look(images.detach()).requires_grad_()
        (grad,) = torch.autograd.grad(model(tokens, features=features)[0, t].pow(2).sum(), features)
        reached = grad.flatten(2).abs().amax(2)[0] > 0
        assert reached.tolist() == [t >= 2, t >= 5], t


def test_one_gated_layer_sees_the_last_image_alone():
    block = perturb(GatedCrossAttentionBlock(8, 12, 2, 4)).double()
    tokens = torch.tensor(interleavings(6))
    x = torch.randn(len(tokens), 6, 8).double()
    latents = torch.randn(len(tokens), 3, 2, 12).double()
    seen = images_before(tokens, MARK)
    whole = block(x, block.attn.keys(latents), sight(seen, 3, 2))
    for number in range(4):
        if number:
            alone = block.attn.keys(latents[:, number - 1 : number])
            want = block(x, alone, torch.ones(len(x), 6, 2, dtype=torch.bool))
        else:  # nothing is seen
            want = x + block.ff_gate.tanh() * block.ff(x)
        where = seen == number
        torch.testing.assert_close(whole[where], want[where])


def test_more_marks_than_images_are_refused():
    model = tiny()
    tokens, images = prompts()
    with pytest.raises(ValueError, match="2 image marks, but 1 images"):
        model(tokens, images[:, :1])
    with pytest.raises(ValueError, match="2 image marks, but 1 images"):
        model.begin(tokens, images[:, :1])
    assert model(tokens[1:2], images[1:2, :1]).shape == (1, 14, 20)


# ---------------------------------------------------------------------- frozen parts


@pytest.mark.parametrize("frozen", [("vision_encoder", "lang_encoder"), ("vision_encoder",)])
def test_frozen_parts_stay_as_they_are(frozen):
    """Bit for bit after training with dropout and batch norm in them, statistics too."""
    encoder = ModifiedResNet(16, (1, 1), 8, 2, 6, 2)
    model = Flamingo(encoder, language(dropout=0.5), **TINY, frozen=frozen)
    tokens = prompts()[0]
    images = torch.randn(3, 2, 3, 16, 16)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 0.1)
    for _ in range(3):
        model.train()
        logits = model(tokens, images)
        F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]) or not name.startswith(frozen), name
    assert not encoder.training
    assert model.lang_encoder.training == (frozen == ("vision_encoder",))
    moved = [n for n, v in model.state_dict().items() if not torch.equal(v, before[n])]
    assert {n.split(".")[0] for n in moved} == {"perceiver", "gated", *(
        () if "lang_encoder" in frozen else ("lang_encoder",))}  # fmt: skip


def test_it_learns_what_is_in_images_by_heart():
    torch.manual_seed(0)
    text = language()
    with torch.no_grad():
        text.wte.weight.mul_(50)  # as if it had been trained: else it can't be sure of anything
    model = Flamingo(vision(), text, **TINY)
    tokens = torch.tensor([[MARK, 3, answer] for answer in (5, 6, 7, 8)])
    images = torch.randn(4, 1, 3, 8, 8)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 2e-2)
    for _ in range(120):
        loss = F.cross_entropy(model(tokens, images)[:, 1], tokens[:, 2])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss < 0.5  # from 1.39, of four answers
    assert all(g.item() for layer in model.gated for g in layer.gates())


# ---------------------------------------------------------------------- writing


@pytest.mark.parametrize("settings", [{}, dict(every=2), dict(num_latents=0)])
def test_cached_decoding_is_the_whole_pass(settings):
    model = tiny(**settings)
    tokens, images = prompts()
    whole = model(tokens, images)
    for cached in (True, False):
        state = model.begin(tokens[:, :4], torch.cat([images], 1)[:, :2], cached=cached)
        for end in range(4, 15):
            logits, state = model.step(tokens[:, :end], state)
            torch.testing.assert_close(logits, whole[:, end - 1])


def test_rows_that_are_written_do_not_depend_on_others():
    model = tiny()
    tokens, images = prompts(length=10)
    for with_images in (images, None):
        state = model.begin(tokens, with_images)
        together = generate(model.step, state, tokens, 12, end=4)
        for row in range(3):
            own = None if with_images is None else images[row : row + 1]
            state = model.begin(tokens[row : row + 1], own)
            alone = generate(model.step, state, tokens[row : row + 1], 12, end=4)
            assert alone[0] == together[row]
    state = model.begin(tokens, images)
    with pytest.raises(ValueError, match="33 tokens are more than the context, 32"):
        model.step(torch.randint(2, 20, (3, 33)), state)


def test_attention_written_out_is_the_kernels():
    model = tiny()
    tokens, images = prompts()
    whole = model(tokens, images)
    for layer in model.gated:
        layer.attn.recording = True
    for attention, _ in model.perceiver.layers:
        attention.recording = True
    torch.testing.assert_close(model(tokens, images), whole)
    weights = model.gated[0].attn.weights  # (B, H, T, M L)
    assert weights.shape == (3, 2, 14, 6)
    torch.testing.assert_close(weights.sum(3), torch.ones(3, 2, 14).double())
    shown = images_before(tokens, MARK)
    assert not weights.amax(1)[(shown == 2)][:, :3].any()
    assert model.perceiver.layers[0][0].weights.shape == (6, 2, 3, 8)  # five places, three latents
