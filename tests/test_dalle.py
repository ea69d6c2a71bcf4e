"""DALL-E's two networks: counts, the paper's equations by brute force, masks, the cache."""

import itertools
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from helpers import count, perturb

from common.claims import finished
from common.decode import generate, keep
from dalle import dvae, layers, stream, train
from dalle.layers import Layout, blockwise, stream_mask
from dalle.model import MODELS

TINY = dict(num_codes=7, width=8, num_groups=3, num_blocks=2, first_width=6)
SMALL = dict(num_codes=11, text_length=5, side=4, d_model=16, num_layers=4, num_heads=2, kernel=3)


def tiny_dvae(**settings):
    return perturb(dvae.DVAE(**TINY | settings)).double()


def tiny_dalle(**settings):
    return perturb(stream.DALLE(9, **SMALL | settings)).double().eval()


def example(model, batch=3):
    """Captions of several lengths, the first as long as can be, and codes."""
    length, side = model.text_length, model.layout.width
    text = torch.randint(model.text_vocab, (batch, length))
    for row in range(1, batch):
        text[row, max(1, length - row) :] = -1
    return text, torch.randint(model.num_codes, (batch, side, side))


# ---------------------------------------------------------------------- sizes and names


def test_parameters():
    with torch.device("meta"):
        codes, whole = MODELS["dvae"](), MODELS["dalle"]()
    assert count(codes.encoder) == 53_786_240
    assert count(codes.decoder) == 43_829_766
    assert count(whole.h) == 12_095_479_808  # 64 layers, 62 heads of 64
    tables = 2 * 8192 + 2 * (16_384 + 256) + 256 + 32 + 32 + 1  # embeddings, outputs, places, start
    assert count(whole) == count(whole.h) + 3968 * (tables + 2)  # and the last norm
    assert whole.layout.length == 256 + 1024
    assert whole.h[0].attn.num_heads == 62
    assert (count(MODELS["dvae_small"]()), count(MODELS["dalle_small"]())) == (203_030, 1_001_344)


def test_names_are_those_of_the_released_networks():
    with torch.device("meta"):
        state = MODELS["dvae"]().state_dict()
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    assert shapes["encoder.blocks.input.w"] == (256, 3, 7, 7)
    assert shapes["decoder.blocks.input.w"] == (128, 8192, 1, 1)
    assert shapes["encoder.blocks.output.conv.w"] == (8192, 2048, 1, 1)
    assert shapes["decoder.blocks.output.conv.w"] == (6, 256, 1, 1)
    for part, widths in {
        "encoder": [256, 512, 1024, 2048],
        "decoder": [2048, 1024, 512, 256],
    }.items():
        before, kernels = (256, (3, 3, 3, 1)) if part == "encoder" else (128, (1, 3, 3, 3))
        for (g, wide), b in itertools.product(enumerate(widths, 1), (1, 2)):
            name = f"{part}.blocks.group_{g}.block_{b}"
            inner = [before, wide // 4, wide // 4, wide // 4, wide]
            for i, kernel in enumerate(kernels):
                want = (inner[i + 1], inner[i], kernel, kernel)
                assert shapes.pop(f"{name}.res_path.conv_{i + 1}.w") == want
                assert shapes.pop(f"{name}.res_path.conv_{i + 1}.b") == want[:1]
            if before != wide:
                assert shapes.pop(f"{name}.id_path.w") == (wide, before, 1, 1)
                assert shapes.pop(f"{name}.id_path.b") == (wide,)
            before = wide
    ends = {f"{part}.blocks.{end}.{kind}" for part in ("encoder", "decoder")
            for end in ("input", "output.conv") for kind in "wb"}  # fmt: skip
    assert shapes.keys() == ends


def test_the_released_code_agrees():
    """Where it is installed: OpenAI's package DALL-E, of which no other version is known."""
    theirs = pytest.importorskip("dall_e")
    sizes = dict(n_hid=64, n_blk_per_group=1, vocab_size=512)
    encoder, decoder = theirs.Encoder(**sizes), theirs.Decoder(n_init=16, **sizes)
    ours = perturb(dvae.DVAE(512, width=64, num_blocks=1, first_width=16))
    for their, our in ((encoder, ours.encoder), (decoder, ours.decoder)):
        their.load_state_dict(our.state_dict())
    x = torch.rand(2, 3, 16, 24)
    logits = encoder(theirs.map_pixels(x))
    torch.testing.assert_close(ours.logits(x), logits, rtol=1e-4, atol=1e-5)
    codes = logits.argmax(1)
    one_hot = F.one_hot(codes, 512).permute(0, 3, 1, 2).float()
    out = decoder(one_hot)
    want = theirs.unmap_pixels(out[:, :3].sigmoid())
    torch.testing.assert_close(ours.decode(codes), want, rtol=1e-4, atol=1e-5)


# ---------------------------------------------------------------------- the dVAE


def test_the_blocks_by_hand():
    """A path around four convolutions on a quarter of the channels, times 1 / layers²."""
    model = tiny_dvae()
    block = model.encoder.blocks.group_2.block_1
    x = torch.randn(2, 8, 4, 6).double()
    y = x
    for i, kernel in enumerate((3, 3, 3, 1), 1):
        conv = block.res_path.get_submodule(f"conv_{i}")
        assert conv.w.shape[2] == kernel
        y = F.conv2d(y.clamp(min=0), conv.w, conv.b, padding=kernel // 2)
    around = F.conv2d(x, block.id_path.w, block.id_path.b)
    torch.testing.assert_close(block(x), around + y / 6**2)  # three groups of two
    assert model.decoder.blocks.group_1.block_1.res_path.conv_1.w.shape[2] == 1


def test_stages():
    model = tiny_dvae()
    seen = {}
    for part in (model.encoder, model.decoder):
        for name, module in part.blocks.named_children():
            key = f"{'encoder' if part is model.encoder else 'decoder'} {name}"
            module.register_forward_hook(
                lambda _m, _x, out, key=key: seen.__setitem__(key, tuple(out.shape[1:]))
            )
    model(torch.rand(1, 3, 16, 8).double())
    assert seen == {
        "encoder input": (8, 16, 8),
        "encoder group_1": (8, 8, 4),
        "encoder group_2": (16, 4, 2),
        "encoder group_3": (32, 4, 2),
        "encoder output": (7, 4, 2),
        "decoder input": (6, 4, 2),
        "decoder group_1": (32, 8, 4),
        "decoder group_2": (16, 16, 8),
        "decoder group_3": (8, 16, 8),
        "decoder output": (6, 16, 8),
    }


def test_pixels_are_mapped_and_back():
    x = torch.linspace(0, 1, 11).double()
    torch.testing.assert_close(dvae.mapped(x), 0.1 + 0.8 * x)
    torch.testing.assert_close(dvae.unmapped(dvae.mapped(x)), x)
    assert dvae.unmapped(torch.tensor([0.0, 1.0])).tolist() == [0, 1]


def test_the_likelihood_by_brute_force():
    """Equation 2 pixel by pixel; as a density its integral from 0 to 1 is 1."""
    x = (0.1 + 0.8 * torch.rand(2, 3, 4, 5)).double()
    out = torch.randn(2, 6, 4, 5).double()
    found = dvae.log_laplace(x, out)
    for b, c, i, j in itertools.product(*map(range, x.shape)):
        value, mean, scale = (
            float(x[b, c, i, j]),
            float(out[b, c, i, j]),
            math.exp(out[b, 3 + c, i, j]),
        )
        logit = math.log(value / (1 - value))
        density = math.exp(-abs(logit - mean) / scale) / (2 * scale * value * (1 - value))
        assert float(found[b, c, i, j]) == pytest.approx(math.log(density))
    places = ((torch.arange(200_000) + 0.5) / 200_000).double().view(1, 1, 1, -1)
    for mean, log_scale in ((0.7, -0.5), (-1.5, -1.0)):
        out = torch.tensor([mean, log_scale]).double().view(1, 2, 1, 1)
        assert float(dvae.log_laplace(places, out).exp().mean()) == pytest.approx(1, abs=1e-3)


def test_the_divergence_by_brute_force():
    logits = torch.randn(2, 7, 3, 4).double()
    found = dvae.divergence(logits)
    q = logits.softmax(1)
    for b, i, j in itertools.product(range(2), range(3), range(4)):
        want = sum(float(p) * math.log(float(p) * 7) for p in q[b, :, i, j])
        assert float(found[b, i, j]) == pytest.approx(want)
    uniform = dvae.divergence(torch.zeros(1, 7, 1, 1))
    assert float(uniform) == pytest.approx(0, abs=1e-6)
    certain = dvae.divergence(torch.eye(7)[:1, :, None, None] * 1e4)
    assert float(certain) == pytest.approx(math.log(7))


def test_relaxed_codes_are_draws_from_the_logits():
    """The largest of logits plus Gumbel noise is drawn from their softmax, at any temperature."""
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0]).view(1, 4, 1, 1).expand(1, 4, 200, 200)
    z = dvae.relaxed(logits, 0.5)
    torch.testing.assert_close(z.sum(1), torch.ones(1, 200, 200))
    shares = F.one_hot(z.argmax(1), 4).float().mean((0, 1, 2))
    torch.testing.assert_close(shares, logits[0, :, 0, 0].softmax(0), atol=0.01, rtol=0)
    mixed = [float(dvae.relaxed(logits, t).amax(1).mean()) for t in (0.1, 1.0, 10.0)]
    assert mixed[0] > 0.9 > mixed[1] > mixed[2]


def test_a_hard_choice_has_the_gradient_of_the_mixture():
    logits, weights = torch.randn(2, 5, 3, 3).double(), torch.randn(2, 5, 3, 3).double()
    found = []
    for hard in (False, True):
        torch.manual_seed(1)
        leaf = logits.clone().requires_grad_()
        z = dvae.relaxed(leaf, 0.7, hard)
        (z * weights).sum().backward()
        found.append((z.detach(), leaf.grad))
    (soft, gradient), (hard, straight) = found
    torch.testing.assert_close(hard, F.one_hot(soft.argmax(1), 5).permute(0, 3, 1, 2).double())
    torch.testing.assert_close(straight, gradient)
    assert gradient.abs().min() > 0


def test_the_mixture_is_the_softmax_of_noisy_logits(monkeypatch):
    logits, noise = torch.randn(2, 5, 3, 3).double(), torch.rand(2, 5, 3, 3).double() + 0.1
    monkeypatch.setattr(torch.Tensor, "exponential_", lambda self: self.copy_(noise))
    odds = (logits.exp() / noise) ** (1 / 0.3)  # of logits - log(noise), over the temperature
    torch.testing.assert_close(dvae.relaxed(logits, 0.3), odds / odds.sum(1, keepdim=True))


def test_the_loss():
    """Terms of all pixels and of all places, over the number of the pixels' values."""
    model = tiny_dvae()
    x = torch.rand(2, 3, 8, 8).double()
    torch.manual_seed(5)
    loss, nats, kl = model(x, temperature=0.5, beta=2.5)
    torch.manual_seed(5)
    logits = model.encoder(0.1 + 0.8 * x)
    out = model.decoder(dvae.relaxed(logits, 0.5))
    likelihood = dvae.log_laplace(0.1 + 0.8 * x, out).flatten(1).sum(1)
    apart = dvae.divergence(logits).flatten(1).sum(1)
    torch.testing.assert_close(nats, -likelihood.mean() / (3 * 64))
    torch.testing.assert_close(kl, apart.mean() / (3 * 64))
    torch.testing.assert_close(loss, nats + 2.5 * kl)
    model = dvae.DVAE(**TINY).double()
    model(x)[0].backward()
    assert all(p.grad.abs().sum() > 0 for p in model.parameters())


def test_codes_and_back():
    model = tiny_dvae()
    x = torch.rand(2, 3, 8, 12).double()
    codes = model.encode(x)
    assert codes.shape == (2, 2, 3)
    assert torch.equal(codes, model.logits(x).argmax(1))
    one_hot = F.one_hot(codes, 7).permute(0, 3, 1, 2).double()
    median = model.decoder(one_hot)[:, :3].sigmoid()
    torch.testing.assert_close(model.decode(codes), ((median - 0.1) / 0.8).clamp(0, 1))
    torch.testing.assert_close(model.reconstruct(x), model.decode(codes))


def test_codes_are_spread_over_images():
    """Each code stands for a place of the images: the softmax of distances between features, by
    brute force; the decoder's inputs are alike for codes that are."""
    torch.manual_seed(0)
    model = dvae.DVAE(**TINY | dict(num_codes=50)).double()
    x = torch.rand(8, 3, 16, 16).double()
    before = len(model.encode(x).unique())
    features = model.encoder.blocks[:-1](dvae.mapped(x)).relu().detach()
    features = features.permute(0, 2, 3, 1).reshape(-1, features.shape[1])  # 128 places
    torch.manual_seed(1)
    model.spread(x, 3.0)
    torch.manual_seed(1)
    stands_for = features[torch.randperm(len(features))[:50]]
    want = -torch.cdist(features, stands_for).square() / 2
    want = want * 3.0 / want.std(1).mean()
    logits = model.logits(x).detach().permute(0, 2, 3, 1).reshape(-1, 50)
    torch.testing.assert_close(logits.softmax(1), want.softmax(1))
    assert logits.std(1).mean() == pytest.approx(3.0)
    assert len(model.encode(x).unique()) > max(40, 2 * before)
    inputs = model.decoder.blocks.input.w.detach()[:, :, 0, 0].T  # (50, 6)
    assert inputs.std().item() == pytest.approx(1)
    apart = torch.cdist(stands_for, stands_for).flatten()
    found = torch.corrcoef(torch.stack([apart, torch.cdist(inputs, inputs).flatten()]))
    assert found[0, 1] > 0.5
    assert all(p.requires_grad for p in model.parameters())


def test_more_codes_than_places_to_stand_for():
    model = dvae.DVAE(**TINY | dict(num_codes=50))
    model.spread(torch.rand(2, 3, 16, 16), 3.0)
    assert len(model.encoder.blocks.output.conv.w.unique(dim=0)) == 32  # all of them
    assert model.logits(torch.rand(2, 3, 16, 16)).isfinite().all()


def test_pixels_of_a_code():
    for factor, side in ((2, 8), (4, 4), (8, 2)):
        model = dvae.dvae_small(16, factor, width=8)
        assert model.factor == factor
        assert model.encode(torch.rand(1, 3, 16, 16)).shape == (1, side, side)
    with pytest.raises(ValueError, match="no code stands for 6"):
        dvae.dvae_small(16, 6)


def test_a_gain_of_ones_own():
    blocks = [m for m in dvae.DVAE(**TINY, gain=0.7).modules() if isinstance(m, dvae.Block)]
    assert len(blocks) == 12
    assert {block.gain for block in blocks} == {0.7}


def test_sizes_that_do_not_divide():
    with pytest.raises(ValueError, match="30x32 pixels can't be cut into squares of 4"):
        tiny_dvae().encode(torch.rand(1, 3, 32, 30).double())
    with pytest.raises(ValueError, match="quarter"):
        dvae.DVAE(7, width=10)


def test_a_dvae_learns_a_batch_by_heart():
    model = MODELS["dvae_small"](16)
    x = torch.rand(4, 3, 2, 2).repeat_interleave(4, 2).repeat_interleave(4, 3)  # flat squares
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)

    def error():
        with torch.no_grad():
            return float((model.reconstruct(x) - x).abs().mean())

    before = error()
    for step in range(100):
        loss, _, _ = model(x, temperature=1 - step / 150, beta=1.0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert error() < before / 2
    assert len(model.encode(x).unique()) > 2  # of 16 squares


# ---------------------------------------------------------------------- masks


def brute(kind, layout):
    """Figure 11 place by place: which token sees which, of the prefix and the whole image."""
    prefix, height, width, kernel = layout
    size, half = height * width, kernel // 2
    mask = torch.zeros(prefix + size, prefix + size, dtype=torch.bool)
    for i in range(prefix + size):
        for j in range(i + 1):
            if i < prefix or j < prefix:
                mask[i, j] = True
                continue
            query, key = i - prefix, j - prefix
            if kind == "dense":
                mask[i, j] = True
            elif kind == "row":  # in reading order, back to the one above
                mask[i, j] = key in range(query - width, query + 1)
            elif kind == "column":
                mask[i, j] = key % width == query % width
            else:
                square = [
                    query - a * width - b for a in range(half + 1) for b in range(-half, half + 1)
                ]
                mask[i, j] = key in square
    return mask[:-1, :-1]  # the last is never read


LAYOUTS = [Layout(7, 4, 4, 3), Layout(3, 5, 3, 5), Layout(2, 3, 6, 3), Layout(1, 2, 2, 11),
           Layout(4, 1, 4, 3), Layout(4, 4, 1, 3)]  # fmt: skip


@pytest.mark.parametrize("kind", layers.KINDS)
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_masks_by_brute_force(kind, layout):
    assert torch.equal(stream_mask(kind, layout), brute(kind, layout))


def test_the_figure():
    """Fig. 11: six tokens of text, an image of 4 x 4, a kernel of 3."""
    layout = Layout(6, 4, 4, 3)
    seen = {
        kind: (torch.where(stream_mask(kind, layout)[6 + 9, 6:])[0]).tolist()
        for kind in ("row", "column", "conv")
    }
    assert seen["row"] == [5, 6, 7, 8, 9]  # five, the last of them in the same column
    assert seen["column"] == [1, 5, 9]
    assert seen["conv"] == [4, 5, 6, 8, 9]
    assert torch.where(stream_mask("conv", layout)[6 + 8, 6:])[0].tolist() == [
        3,
        4,
        5,
        7,
        8,
    ]  # wraps
    assert stream_mask("row", layout)[6:, :6].all()  # the image sees all of the text


def test_kinds_of_layers():
    kinds = stream.kinds_of("sparse", 64)
    assert kinds[:6] == ["row", "column", "row", "row", "row", "column"]
    assert kinds[-1] == "conv"
    assert kinds.count("conv") == 1
    assert [i for i, kind in enumerate(kinds, 1) if kind == "column"] == list(range(2, 64, 4))
    assert stream.kinds_of("dense", 3) == ["dense"] * 3


@pytest.mark.parametrize("kind", ["row", "column"])
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_blocks_are_the_mask(kind, layout):
    """The quick way equals the written-out one, values and gradients."""
    found = []
    for way in ("mask", "blocks"):
        torch.manual_seed(2)
        parts = [torch.randn(2, 3, layout.length, 4).double().requires_grad_() for _ in range(3)]
        if way == "mask":
            heads = layers.attention(*parts, stream_mask(kind, layout))[0]
        else:
            heads = blockwise(*parts, kind, layout)
        (heads * torch.linspace(-1, 1, heads.numel()).view_as(heads)).sum().backward()
        found.append([heads, *(part.grad for part in parts)])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("kind", layers.KINDS)
def test_kernels_are_attention_written_out(kind, monkeypatch):
    model = tiny_dalle(attention=kind, num_layers=1)
    text, codes = example(model)
    want = model(text, codes)
    layer = model.h[0].attn
    layer.recording = True
    for one, other in zip(model(text, codes), want, strict=True):
        torch.testing.assert_close(one, other)
    mask = stream_mask(kind, model.layout)
    assert layer.weights.shape == (3, 2, 21, 21)
    assert torch.equal(layer.weights > 0, mask.expand(3, 2, 21, 21))
    layer.recording = False
    monkeypatch.setattr(layers, "BLOCKS_FROM", 16)  # as large images do
    for one, other in zip(model(text, codes), want, strict=True):
        torch.testing.assert_close(one, other)


def test_in_bf16_a_cpu_computes_the_same():
    parts = [torch.randn(1, 2, 21, 8) for _ in range(3)]
    mask = stream_mask("row", Layout(6, 4, 4, 3))
    want = layers.attention(*parts, mask)[0]
    found = layers.attention_kernel(*(part.bfloat16() for part in parts), mask)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), want, atol=0.05, rtol=0.05)


def test_bad_sizes():
    with pytest.raises(ValueError, match="3 heads can't share 16"):
        tiny_dalle(num_heads=3)
    with pytest.raises(ValueError, match="unknown kind of attention 'diagonal'"):
        tiny_dalle(attention="diagonal")
    model = tiny_dalle()
    text, codes = example(model)
    for other in ((text[:, :4], codes), (text, codes[:, :3])):
        with pytest.raises(ValueError, match="the stream has 5 tokens of text"):
            model(*other)


# ---------------------------------------------------------------------- the transformer


def test_the_stream_by_hand():
    """What the first block sees: start, words, padding by place, codes at rows and columns."""
    model = tiny_dalle()
    seen = []
    model.h[0].register_forward_pre_hook(lambda _module, given: seen.append(given[0]))
    text, codes = example(model)
    text_logits, image_logits = model(text, codes)
    (x,) = seen
    assert x.shape == (3, 5 + 16, 16)
    for b in range(3):
        torch.testing.assert_close(x[b, 0], model.start)
        for i in range(5):
            token = text[b, i] if text[b, i] >= 0 else 9 + i
            torch.testing.assert_close(x[b, 1 + i], model.wte.weight[token] + model.wpe.weight[i])
        for k in range(15):
            row, column = divmod(k, 4)
            place = model.row.weight[row] + model.column.weight[column]
            torch.testing.assert_close(
                x[b, 6 + k], model.code.weight[codes[b, row, column]] + place
            )
    assert text_logits.shape == (3, 5, 9 + 5)
    assert image_logits.shape == (3, 16, 11)


@pytest.mark.parametrize("attention", ["sparse", "dense", "row"])
def test_nothing_comes_from_what_is_later(attention):
    """Each logit of the stream depends on the tokens before it, and on no other; those of the image
    on all of the text."""
    model = tiny_dalle(attention=attention, dropout=0.0)
    text, codes = example(model, 1)
    embedded = []

    def keep(_module, given):
        given[0].retain_grad()
        embedded.append(given[0])

    model.h[0].register_forward_pre_hook(keep)
    text_logits, image_logits = model(text, codes)
    logits = [*text_logits[0], *image_logits[0]]
    for place, row in enumerate(logits):  # the logits at place p predict the token p of the stream
        embedded[0].grad = None
        (row * torch.linspace(-1, 1, len(row))).sum().backward(retain_graph=True)
        reached = embedded[0].grad[0].abs().sum(1) > 0
        assert not reached[place + 1 :].any()
        assert reached[: min(place, 5) + 1].all()
        if attention == "dense":
            assert reached[: place + 1].all()


def test_padding_tokens_are_of_their_place():
    model = tiny_dalle()
    text, codes = example(model)
    text[0] = torch.tensor([1, 2, 3, -1, -1])
    before = model(text, codes)[1][0]
    for place in range(5):
        changed = tiny_dalle()
        changed.load_state_dict(model.state_dict())
        with torch.no_grad():
            changed.wte.weight[9 + place] += torch.randn(changed.wte.weight.shape[1])
        assert torch.allclose(changed(text, codes)[1][0], before) == (place < 3)


def test_the_loss_weighs_the_image_seven_to_one():
    model = tiny_dalle()
    text, codes = example(model)
    text_logits, image_logits = model(text, codes)
    text_logits, image_logits = text_logits.detach(), image_logits.detach()
    loss, of_text, of_image = stream.losses(text_logits, image_logits, text, codes)
    nats = []
    for b, i in itertools.product(range(3), range(5)):
        token = int(text[b, i]) if text[b, i] >= 0 else 9 + i
        nats.append(-float(text_logits[b, i].log_softmax(0)[token]))
    assert float(of_text) == pytest.approx(sum(nats) / 15)
    nats = [
        -float(image_logits[b, 4 * r + c].log_softmax(0)[codes[b, r, c]])
        for b, r, c in itertools.product(range(3), range(4), range(4))
    ]
    assert float(of_image) == pytest.approx(sum(nats) / 48)
    assert float(loss) == pytest.approx((float(of_text) + 7 * float(of_image)) / 8)


@pytest.mark.parametrize("attention", ["sparse", "dense"])
def test_the_cache_gives_the_logits_of_the_whole_pass(attention):
    model = tiny_dalle(attention=attention)
    text, codes = example(model)
    want = model(text, codes)[1]
    flat = codes.flatten(1)
    for cached in (True, False):
        state = model.begin(text, cached)
        for n in range(16):
            logits, state = model.step(flat[:, :n], state)
            torch.testing.assert_close(logits, want[:, n])
            if n == 7:  # rows may leave
                rows = torch.tensor([2, 0])
                state, flat, want = keep(state, rows), flat[rows], want[rows]
        flat, want = codes.flatten(1), model(text, codes)[1]


def test_an_image_is_gone_on_with():
    """The first rows of codes are given, and read at once."""
    model = tiny_dalle()
    text, codes = example(model)
    begun = codes.flatten(1)[:, :8]
    whole = [generate(model.step, model.begin(text, c), begun, 8) for c in (True, False)]
    assert whole[0] == whole[1]


def test_drawing_with_and_without_the_cache():
    model = tiny_dalle()
    text, _ = example(model)
    empty = torch.empty(3, 0, dtype=torch.int64)
    for how in (dict(), dict(temperature=1.0), dict(temperature=0.7, top_k=4)):
        found = []
        for cached in (True, False):
            generator = torch.Generator().manual_seed(3)
            state = model.begin(text, cached)
            found.append(generate(model.step, state, empty, 16, generator=generator, **how))
        assert found[0] == found[1]
        assert [len(row) for row in found[0]] == [16] * 3


def test_with_dense_attention_it_is_gpt2():
    """transformers' GPT2Model on the same embeddings, outputs and gradients."""
    transformers = pytest.importorskip("transformers")
    model = tiny_dalle(attention="dense")
    config = transformers.GPT2Config(
        n_embd=16, n_layer=4, n_head=2, n_positions=21, vocab_size=1, activation_function="gelu",
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    theirs = transformers.GPT2Model(config).double().eval()
    state = {name: value for name, value in model.state_dict().items() if name[:2] in ("h.", "ln")}
    state = {n: v.T if n.endswith("weight") and v.dim() == 2 else v for n, v in state.items()}
    left = theirs.load_state_dict(state, strict=False)
    assert not left.unexpected_keys
    assert set(left.missing_keys) == {"wte.weight", "wpe.weight"}
    theirs.wpe.weight.data.zero_()
    text, codes = example(model)
    x = torch.cat([model.read_text(text), model.read_codes(codes.flatten(1)[:, :-1])], 1).detach()
    ours_x, their_x = x.clone().requires_grad_(), x.clone().requires_grad_()
    ours, hidden = model.run(ours_x), theirs(inputs_embeds=their_x).last_hidden_state
    torch.testing.assert_close(ours, hidden)
    weights = torch.randn_like(ours)
    (ours * weights).sum().backward()
    (hidden * weights).sum().backward()
    torch.testing.assert_close(ours_x.grad, their_x.grad)
    torch.testing.assert_close(
        model.h[2].attn.c_attn.weight.grad, theirs.h[2].attn.c_attn.weight.grad.T
    )


def test_weights_begin_as_gpt2s():
    model = stream.DALLE(200, **SMALL | dict(d_model=64, num_layers=8)).requires_grad_(False)
    assert model.wte.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert model.h[3].attn.c_attn.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert model.h[3].mlp.c_proj.weight.std().item() == pytest.approx(0.02 / 4, rel=0.1)
    assert model.start.std().item() == pytest.approx(0.02, rel=0.5)
    assert not model.h[0].attn.c_attn.bias.any()


def test_a_transformer_learns_a_batch_by_heart():
    model = stream.DALLE(9, **SMALL | dict(d_model=64))
    text = torch.arange(4)[:, None].expand(4, 5).clone()
    text[:, 3:] = -1
    codes = torch.randint(11, (4, 4, 4))
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(80):
        loss, _, _ = stream.losses(*model(text, codes), text, codes)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    found = generate(model.step, model.begin(text), torch.empty(4, 0, dtype=torch.int64), 16)
    assert torch.equal(torch.tensor(found).view(4, 4, 4), codes)


@pytest.mark.slow
def test_quick_draws_what_it_is_asked_for():
    """Codes that show shapes, and draws that are right at least three times as often as by chance,
    which is one in 80."""
    found = train.main(["--quiet", "--run-dir", "run"])
    codes = finished(Path("run/codes"))
    assert codes["test_psnr"] > 20
    assert codes["test_used"] > 0.7
    assert found["test_judge"] > 0.9
    assert found["test_rebuilt"] > 0.7
    assert found["test_right"] > 3 / 80
