"""Latent diffusion: parity with diffusers and transformers, sizes, schedules, losses, guidance."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from helpers import count, perturb
from torch import nn

from latentdiffusion import layers
from latentdiffusion.autoencoder import (
    Codebook,
    KLAutoencoder,
    PatchDiscriminator,
    Pixels,
    VQAutoencoder,
    balance,
    hinge,
    kl_f4,
    kl_f8,
    kl_small,
    vq_f4,
    vq_f8,
    vq_small,
)
from latentdiffusion.diffusion import SD1, LatentDiffusion, ldm_small, stable_diffusion
from latentdiffusion.schedulers import SAMPLERS, Schedule
from latentdiffusion.text import TextEncoder
from latentdiffusion.unet import UNet

diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")


def kinds(count, attention, plain, other):
    return [other if level in attention else plain for level in range(count)]


def their_kl(latent, widths, depth, groups=32, attention=()):
    """diffusers' autoencoder of the same configuration."""
    return diffusers.AutoencoderKL(
        down_block_types=kinds(
            len(widths), attention, "DownEncoderBlock2D", "AttnDownEncoderBlock2D"
        ),
        up_block_types=kinds(len(widths), (), "UpDecoderBlock2D", ""),
        block_out_channels=widths,
        layers_per_block=depth,
        latent_channels=latent,
        norm_num_groups=groups,
    )


def their_vq(latent, widths, depth, codes, groups=32, attention=()):
    down = kinds(len(widths), attention, "DownEncoderBlock2D", "AttnDownEncoderBlock2D")
    up = kinds(len(widths), attention, "UpDecoderBlock2D", "AttnUpDecoderBlock2D")
    return diffusers.VQModel(
        down_block_types=down,
        up_block_types=up[::-1],
        block_out_channels=widths,
        layers_per_block=depth,
        latent_channels=latent,
        num_vq_embeddings=codes,
        norm_num_groups=groups,
    )


def their_unet(widths, attention, depth, heads, context, groups=32, linear=False, channels=4, n=1):
    down = kinds(len(widths), attention, "DownBlock2D", "CrossAttnDownBlock2D")
    return diffusers.UNet2DConditionModel(
        sample_size=8,
        in_channels=channels,
        out_channels=channels,
        block_out_channels=widths,
        layers_per_block=depth,
        down_block_types=down,
        up_block_types=[kind.replace("Down", "Up") for kind in down[::-1]],
        cross_attention_dim=context,
        attention_head_dim=heads,  # which is their number
        norm_num_groups=groups,
        use_linear_projection=linear,
        transformer_layers_per_block=n,
    )


def same(outputs, ours, theirs, rtol=1e-9, atol=1e-10):
    """Outputs, and gradients of every parameter, of two networks with the same names."""
    torch.testing.assert_close(*outputs, rtol=rtol, atol=atol)
    named = dict(ours.named_parameters())
    assert named.keys() == dict(theirs.named_parameters()).keys()
    for name, p in theirs.named_parameters():
        assert p.grad is not None, name
        limit = 1e-8 * p.grad.abs().max().item() + 1e-11
        torch.testing.assert_close(named[name].grad, p.grad, rtol=1e-6, atol=limit, msg=name)


def weigh(y):
    """A loss in which every number counts in its own way."""
    return (y * torch.linspace(-1, 1, y.numel()).view_as(y)).sum()


# ---------------------------------------------------------------------- stage one


@pytest.mark.parametrize(
    ("latent", "widths", "depth", "groups"), [(2, (32, 64), 1, 32), (3, (8, 16, 8, 24), 2, 4)]
)
def test_parity_of_the_kl_autoencoder(latent, widths, depth, groups):
    """In float64: moments, images and every gradient; the names are diffusers'."""
    theirs = perturb(their_kl(latent, widths, depth, groups).double())
    ours = KLAutoencoder(latent, widths, depth, groups=groups).double()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 3, 16, 24).double()
    known, found = ours.encode(x), theirs.encode(x).latent_dist
    torch.testing.assert_close(known, torch.cat([found.mean, found.logvar], 1))
    torch.testing.assert_close(ours.mode(known), found.mode())
    outputs = ours.decode(ours.mode(known)), theirs.decode(found.mode()).sample
    for y, more in zip(outputs, (known, found.parameters), strict=True):
        (weigh(y) + weigh(more)).backward()
    same(outputs, ours, theirs)
    torch.manual_seed(3)
    rebuilt, kl = ours(x)
    assert rebuilt.shape == x.shape
    torch.testing.assert_close(kl, found.kl().mean(), rtol=1e-9, atol=1e-9)
    torch.manual_seed(3)
    noise = torch.randn_like(found.mean.contiguous())
    want = ours.decode(found.mean + found.std * noise)
    torch.testing.assert_close(rebuilt, want)


@pytest.mark.parametrize(
    ("latent", "widths", "depth", "codes", "groups", "attention"),
    [(2, (32, 64), 1, 16, 32, ()), (4, (8, 16, 24), 2, 7, 4, (2,)), (3, (8, 8), 1, 5, 4, (0, 1))],
)
def test_parity_of_the_vq_autoencoder(latent, widths, depth, codes, groups, attention):
    theirs = perturb(their_vq(latent, widths, depth, codes, groups, attention).double())
    nn.init.normal_(theirs.quantize.embedding.weight)
    ours = VQAutoencoder(latent, widths, depth, codes, groups=groups, attention=attention).double()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 3, 16, 16).double()
    torch.testing.assert_close(ours.encode(x), theirs.encode(x).latents)
    z = torch.randn(2, latent, 4, 4).double()
    torch.testing.assert_close(ours.decode(z), theirs.decode(z).sample)
    numbers = theirs.quantize(z)[2][2]
    assert torch.equal(ours.quantize.nearest(z).flatten(), numbers)
    assert len(numbers.unique()) > 2
    outputs = ours(x)[0], theirs(x).sample  # gradients pass straight through the codebook
    for y in outputs:
        weigh(y).backward()
    ours.quantize.embedding.weight.grad = torch.zeros_like(ours.quantize.embedding.weight)
    theirs.quantize.embedding.weight.grad = torch.zeros_like(theirs.quantize.embedding.weight)
    same(outputs, ours, theirs)


def test_the_loss_of_the_codebook():
    """By brute force: which of two terms each gradient belongs to; beta weighs the commitment."""
    model = vq_small(latent_channels=2, width=8, num_codes=6).double()
    nn.init.normal_(model.quantize.embedding.weight)
    z = torch.randn(2, 2, 3, 3).double().requires_grad_()
    model.encode = lambda x: z
    _, loss = model(torch.zeros(2, 3, 12, 12).double())
    codes = model.quantize.embedding.weight
    gaps = torch.zeros(2, 3, 3, 2).double()
    pull = torch.zeros_like(codes)
    for b in range(2):
        for i in range(3):
            for j in range(3):
                away = (codes.detach() - z[b, :, i, j].detach()).square().sum(1)
                number = int(away.argmin())
                gaps[b, i, j] = z[b, :, i, j].detach() - codes[number].detach()
                pull[number] -= 2 * gaps[b, i, j] / 36
    assert loss.item() == pytest.approx(float(1.25 * gaps.square().mean()))
    loss.backward()
    torch.testing.assert_close(codes.grad, pull.detach())
    torch.testing.assert_close(z.grad.movedim(1, -1), 0.25 * 2 * gaps / 36)


def test_the_nearest_entry_of_many_places():
    book = Codebook(11, 3)
    nn.init.normal_(book.embedding.weight)
    z = torch.randn(2, 3, 70, 70)  # more places than are looked up at a time
    away = (z.movedim(1, -1)[..., None, :] - book.embedding.weight).square().sum(-1)
    assert (book.nearest(z) == away.argmin(-1)).float().mean() > 0.999  # but for rounding
    assert torch.equal(book.look_up(torch.tensor([[[4]]]))[0, :, 0, 0], book.embedding.weight[4])


SIZES = {
    "kl_f8": (kl_f8, lambda: their_kl(4, (128, 256, 512, 512), 2), 83_653_863),
    "kl_f4": (kl_f4, lambda: their_kl(3, (128, 256, 512), 2), 55_312_063),
    "vq_f4": (vq_f4, lambda: their_vq(3, (128, 256, 512), 2, 8192), 55_322_782),
    "vq_f8": (vq_f8, lambda: their_vq(4, (128, 256, 256, 512), 2, 16_384, 32, (3,)), 67_717_295),
    "unet": (
        lambda: UNet(**SD1["unet"]),
        lambda: their_unet((320, 640, 1280, 1280), (0, 1, 2), 2, 8, 768),
        859_520_964,
    ),
}


@pytest.mark.parametrize("name", SIZES)
def test_published_sizes(name):
    """On the meta device: the count, and every name and shape of diffusers'."""
    make, other, want = SIZES[name]
    with torch.device("meta"):
        ours, theirs = make(), other()
    shapes = {key: p.shape for key, p in ours.state_dict().items()}
    assert shapes == {key: p.shape for key, p in theirs.state_dict().items()}
    assert count(ours) == want


def test_sizes_of_stable_diffusion():
    with torch.device("meta"):
        model = stable_diffusion()
    assert count(model.autoencoder) == 83_653_863
    assert count(model.unet) == 859_520_964
    assert count(model.text) == 123_060_480
    assert model.factor == 64
    assert (model.autoencoder.factor, model.unet.factor) == (8, 8)


@pytest.mark.parametrize("factor", [2, 4, 8])
@pytest.mark.parametrize("make", [kl_small, vq_small])
def test_small_autoencoders(make, factor):
    model = make(factor=factor, latent_channels=5, width=8)
    x = torch.rand(2, 3, 32, 24) * 2 - 1
    known = model.encode(x)
    assert model.draw(known).shape == (2, 5, 32 // factor, 24 // factor)
    assert model.decode(model.mode(known)).shape == x.shape
    assert model.factor == factor
    assert model.last_layer is model.decoder.conv_out.weight
    with pytest.raises(ValueError, match="factor of 3"):
        make(factor=3)
    with pytest.raises(ValueError, match="multiple of 8"):
        make(width=12)


def test_kl_latents_are_drawn():
    model = kl_small(width=8)
    known = torch.cat([torch.full((4000, 8, 1, 1), 0.5), torch.full((4000, 8, 1, 1), -1.0)], 1)
    drawn = model.draw(known)
    assert drawn.mean().item() == pytest.approx(0.5, abs=0.02)
    assert drawn.std().item() == pytest.approx(math.exp(-0.5), rel=0.03)
    assert torch.equal(model.mode(known), known[:, :8])
    nn.init.constant_(model.quant_conv.bias, 100.0)
    assert model.encode(torch.zeros(1, 3, 8, 8))[:, 8:].max() <= 20  # else exp overflows


def test_pixels_are_their_own_latents():
    x = torch.randn(2, 3, 8, 8)
    model = Pixels()
    assert model.factor == 1
    assert model.latent_channels == 3
    for method in (model.encode, model.draw, model.mode, model.decode):
        assert torch.equal(method(x), x)


def test_the_patch_discriminator():
    """Sizes of pix2pix's: 70 pixels see each logit; two batches have statistics of their own."""
    net = PatchDiscriminator().double()
    assert count(net) == 2_765_633
    (out,) = net(torch.randn(2, 3, 64, 64).double())
    assert out.shape == (2, 1, 6, 6)
    net.eval()
    x = torch.zeros(1, 3, 128, 128).double().requires_grad_()
    net(x)[0][0, 0, 7, 7].backward()
    seen = x.grad[0].abs().sum(0).nonzero()
    assert (seen.amax(0) - seen.amin(0) + 1).tolist() == [70, 70]
    net.train()
    real, fake = torch.rand(4, 3, 32, 32).double(), torch.rand(4, 3, 32, 32).double() - 3
    both = net(real, fake)
    for one, x in zip(both, (real, fake), strict=True):
        torch.testing.assert_close(one, net(x)[0])


def test_hinge():
    real, fake = torch.tensor([2.0, 0.5, -1.0]), torch.tensor([-2.0, -0.5, 1.0])
    want = (sum(max(0, 1 - float(v)) for v in real) + sum(max(0, 1 + float(v)) for v in fake)) / 6
    assert hinge(real, fake).item() == pytest.approx(want)
    assert hinge(torch.tensor([1.5]), torch.tensor([-1.5])).item() == 0


def test_both_losses_pull_alike_at_the_last_layer():
    layer = nn.Parameter(torch.randn(3, 4))
    x = torch.randn(5, 3)
    out = x @ layer
    error, adversarial = (out - 1).abs().sum(), 1e-3 * out.square().mean()
    weight = balance(error, adversarial, layer)
    pulls = [
        torch.autograd.grad(loss, layer, retain_graph=True)[0].norm()
        for loss in (error, adversarial)
    ]
    assert (weight * pulls[1]).item() == pytest.approx(pulls[0].item(), rel=0.2)
    assert not weight.requires_grad
    assert balance(1e6 * error, 1e-6 * adversarial, layer) == 1e4


# ---------------------------------------------------------------------- stage two


@pytest.mark.parametrize(
    ("sizes", "linear", "n"),
    [
        (((32, 64), (0,), 1, 2, 12, 32), False, 1),
        (((16, 32, 32), (0, 1), 2, 4, 8, 8), True, 1),
        (((8, 16, 24), (1, 2), 2, (1, 2, 3), 6, 4), False, 2),
    ],
)
def test_parity_of_the_unet(sizes, linear, n):
    """In float64: outputs and every gradient, also for latents that aren't square."""
    theirs = perturb(their_unet(*sizes, linear=linear, n=n).double()).eval()
    ours = UNet(4, *sizes, linear=linear, layers=n).double().eval()
    ours.load_state_dict(theirs.state_dict())
    x, times = torch.randn(2, 4, 8, 12).double(), torch.tensor([3, 700])
    text = torch.randn(2, 5, sizes[4]).double()
    outputs = ours(x, times, text), theirs(x, times, text).sample
    for y in outputs:
        weigh(y).backward()
    same(outputs, ours, theirs)


def test_blocks_begin_as_the_identity():
    unet = UNet(4, (16, 32), (0, 1), 1, 2, 8, groups=4)
    x, text = torch.randn(2, 4, 8, 8), torch.randn(2, 3, 8)
    assert not unet(x, torch.tensor([0, 999]), text).any()
    maps = torch.randn(2, 16, 8, 8)
    assert torch.equal(unet.down_blocks[0].resnets[0](maps, torch.randn(2, 64)), maps)
    assert torch.equal(unet.down_blocks[0].attentions[0](maps, text), maps)


def test_the_text_comes_in_by_cross_attention_or_by_a_pooled_vector():
    x, times = torch.randn(1, 4, 8, 8), torch.tensor([500])
    text = torch.randn(1, 6, 8)
    for pooled in (False, True):
        unet = perturb(UNet(4, (16, 32), (0, 1), 1, 2, 8, groups=4, pooled=pooled))
        answer = unet(x, times, text)
        assert not torch.allclose(unet(x, times, text + 1), answer)
        shuffled = unet(x, times, text.flip(1))  # tokens bear their places in themselves
        torch.testing.assert_close(shuffled, answer, rtol=1e-3, atol=1e-4)
        spread = text + torch.tensor([1.0, -1, 0, 0, 0, 0])[None, :, None]  # of the same mean
        assert torch.allclose(unet(x, times, spread), answer, atol=1e-5) == pooled
        assert any("attn2" in name for name, _ in unet.named_parameters()) != pooled


def test_attention_in_slices(monkeypatch):
    """The same answer, and never more scores at a time than allowed."""
    q, k, v = (torch.randn(2, 3, n, 4).double() for n in (50, 7, 7))
    whole = layers.attend(q, k, v)
    held, plain = [], F.scaled_dot_product_attention

    def noted(q, k, v):
        held.append(q.shape[0] * q.shape[1] * q.shape[2] * k.shape[2])
        return plain(q, k, v)

    monkeypatch.setattr(F, "scaled_dot_product_attention", noted)
    monkeypatch.setattr(layers, "SCORES", 500)
    torch.testing.assert_close(layers.attend(q, k, v), whole)
    assert len(held) > 1
    assert max(held) <= 500
    monkeypatch.setattr(layers, "SCORES", 1)  # one query at a time is the least
    torch.testing.assert_close(layers.attend(q, k, v), whole)


def test_attention_of_bf16_on_a_cpu(monkeypatch):
    """Plain products, where their scores are few, have the kernel's values and gradients."""
    parts = [torch.randn(2, 3, n, 4) for n in (50, 7, 7)]
    calls, plain = [], F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *x: calls.append(x) or plain(*x))

    def found(kind: torch.dtype) -> list[torch.Tensor]:
        own = [part.to(kind).requires_grad_() for part in parts]
        answer = layers.attend(*own)
        return [answer, *torch.autograd.grad(answer.square().sum(), own)]

    wanted, fast = found(torch.float32), found(torch.bfloat16)
    assert len(calls) == 1
    for one, other in zip(fast, wanted, strict=True):
        assert one.dtype == torch.bfloat16
        torch.testing.assert_close(one.float(), other, rtol=0.05, atol=0.08)
    monkeypatch.setattr(layers, "KEPT", 2 * 3 * 50 * 7 - 1)  # too many to be kept
    found(torch.bfloat16)
    assert len(calls) == 2


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_parity_of_clips_text_encoder(activation):
    config = transformers.CLIPTextConfig(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=48,
        num_attention_heads=4,
        num_hidden_layers=2,
        max_position_embeddings=16,
        hidden_act=activation,
        bos_token_id=0,
        eos_token_id=49,
    )
    theirs = perturb(transformers.CLIPTextModel(config).double())
    ours = TextEncoder(50, 16, 32, 2, 4, 48, causal=True, activation=activation).double()
    state = {k.removeprefix("text_model."): v for k, v in theirs.state_dict().items()}
    ours.load_state_dict(state)
    tokens = torch.randint(50, (3, 11))
    outputs = ours(tokens), theirs(tokens).last_hidden_state
    for y in outputs:
        weigh(y).backward()
    torch.testing.assert_close(*outputs, rtol=1e-9, atol=1e-10)
    wanted = {k.removeprefix("text_model."): p.grad for k, p in theirs.named_parameters()}
    for name, p in ours.named_parameters():
        torch.testing.assert_close(p.grad, wanted[name], rtol=1e-6, atol=1e-10, msg=name)


def test_the_small_encoder_sees_the_whole_text():
    for causal in (False, True):
        model = TextEncoder(9, 6, 8, 1, 2, 16, causal)
        tokens = torch.tensor([[1, 2, 3, 4]])
        torch.testing.assert_close(model(tokens), F.layer_norm(model.embeddings(tokens), (8,)))
        perturb(model)
        first = model(tokens)[0, 0]
        other = model(torch.tensor([[1, 2, 3, 5]]))[0, 0]
        assert torch.equal(first, other) == causal


# ---------------------------------------------------------------------- noise and steps


def test_the_schedule_is_scaled_linear():
    ours = Schedule()
    theirs = diffusers.DDPMScheduler(1000, 0.00085, 0.012, "scaled_linear")
    torch.testing.assert_close(ours.beta.float(), theirs.betas, rtol=1e-5, atol=1e-9)
    torch.testing.assert_close(ours.kept.float(), theirs.alphas_cumprod, rtol=1e-4, atol=1e-7)
    roots = ours.beta.sqrt().diff()
    assert roots.max() - roots.min() < 1e-12
    assert ours.kept[-1].item() == pytest.approx(0.00466, rel=1e-2)  # a trace is left
    line = Schedule(kind="linear", start=1e-4, end=0.02).beta.diff()
    assert line.max() - line.min() < 1e-12
    for wrong in (dict(kind="cosine"), dict(spacing="even"), dict(prediction="sample")):
        with pytest.raises(ValueError, match="there are"):
            Schedule(**wrong)


@pytest.mark.parametrize("spacing", ["trailing", "leading", "linspace"])
@pytest.mark.parametrize("steps", [1, 4, 10, 50])
def test_times_are_the_schedulers(spacing, steps):
    offset = 1 if spacing == "leading" else 0
    theirs = diffusers.DDIMScheduler(timestep_spacing=spacing, steps_offset=offset)
    theirs.set_timesteps(steps)
    ours = Schedule(spacing=spacing, offset=offset).times(steps)
    if spacing == "linspace" and steps == 1:  # theirs: the one without noise
        assert ours == [0]
    assert ours == theirs.timesteps.tolist()


def test_times_of_any_number_of_steps_descend_and_stay_in_range():
    for spacing in ("trailing", "leading", "linspace"):
        for steps in (1, 2, 3, 7, 300, 999, 1000):
            times = Schedule(spacing=spacing).times(steps)
            assert len(times) == steps
            assert all(a > b for a, b in itertools.pairwise(times))
            assert 0 <= times[-1] <= times[0] <= 999
    for steps in (0, 1001):
        with pytest.raises(ValueError, match=f"{steps} steps: the chain has 1 to 1000"):
            Schedule().times(steps)


def wave(x, time):
    """A smooth stand-in for a network."""
    return torch.sin(3 * x + time / 200)


REFERENCES = {
    "ddpm": (diffusers.DDPMScheduler, dict(variance_type="fixed_small", clip_sample=False)),
    "ddim": (diffusers.DDIMScheduler, dict(clip_sample=False)),
    "dpm": (diffusers.DPMSolverMultistepScheduler, dict(algorithm_type="dpmsolver++")),
}


def reference(name, schedule, steps):
    """diffusers' scheduler with our tables in float64."""
    make, settings = REFERENCES[name]
    own = dict(timestep_spacing=schedule.spacing, prediction_type=schedule.prediction)
    own |= dict(steps_offset=schedule.offset) if name != "dpm" else {}
    if name == "ddim":
        own["set_alpha_to_one"] = schedule.clean_end
    theirs = make(1000, 0.00085, 0.012, "scaled_linear", **settings, **own)
    theirs.alphas_cumprod = schedule.kept
    theirs.betas, theirs.alphas = schedule.beta, 1 - schedule.beta
    if name == "ddim" and not schedule.clean_end:
        theirs.final_alpha_cumprod = schedule.kept[0]
    if name == "ddpm":
        theirs.one = torch.tensor(1.0).double()
    if name == "dpm":
        theirs.alpha_t, theirs.sigma_t = schedule.kept.sqrt(), (1 - schedule.kept).sqrt()
        theirs.lambda_t = theirs.alpha_t.log() - theirs.sigma_t.log()
    theirs.set_timesteps(steps)
    return theirs


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("steps", [1, 4, 20, 50])
@pytest.mark.parametrize("name", SAMPLERS)
def test_samplers_are_the_schedulers(name, steps, prediction, monkeypatch):
    """From noise to the end, with the same noise on both sides."""
    published = name == "ddim"  # as Stable Diffusion's settings have it
    more = dict(spacing="leading", offset=1, clean_end=False) if published else {}
    schedule = Schedule(prediction=prediction, **more)
    theirs, ours = reference(name, schedule, steps), SAMPLERS[name](schedule, steps)
    assert ours.times == theirs.timesteps.tolist()
    if name == "ddpm":
        import diffusers.schedulers.scheduling_ddpm as module

        state = torch.Generator()
        draw = lambda: torch.randn(2, 1, 3, 3, generator=state).double()  # noqa: E731
        monkeypatch.setattr(module, "randn_tensor", lambda *_, **__: draw())
    x = y = torch.randn(2, 1, 3, 3).double()
    for place, time in enumerate(theirs.timesteps):
        seeds = 7 + place
        if name == "ddpm":
            state.manual_seed(seeds)
        y = theirs.step(wave(y, int(time)), time, y).prev_sample
        if name == "ddpm":
            state.manual_seed(seeds)
            x = ours.step(x, wave(x, int(time)), place, lambda _: draw())
        else:
            x = ours.step(x, wave(x, int(time)), place)
        limit = 1e-5 if name == "dpm" else 1e-7  # its sigmas are float32
        torch.testing.assert_close(x, y, rtol=limit, atol=limit)


def test_euler_is_ddim_in_other_coordinates():
    """As the file's docstring says: of diffusers' Euler on x / signal."""
    theirs = diffusers.EulerDiscreteScheduler(
        1000, 0.00085, 0.012, "scaled_linear", timestep_spacing="trailing"
    )
    theirs.set_timesteps(8)
    schedule = Schedule()
    ours = SAMPLERS["ddim"](schedule, 8)
    assert ours.times == [int(t) for t in theirs.timesteps]
    x = torch.randn(2, 1, 3, 3)
    y = x / schedule.scales(ours.times[0])[0]
    for place, time in enumerate(theirs.timesteps):
        answer = wave(theirs.scale_model_input(y, time), int(time))
        y = theirs.step(answer, time, y).prev_sample
        x = ours.step(x, wave(x, int(time)), place)
        signal = schedule.scales(ours.span(place)[1])[0]
        torch.testing.assert_close(x / signal, y, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("name", SAMPLERS)
def test_one_who_knows_the_latents_finds_them(name, prediction):
    z = torch.tensor([[[[0.5, -2.0], [1.0, 0.0]]]]).double()
    schedule = Schedule(prediction=prediction)
    way = SAMPLERS[name](schedule, 6)
    x = torch.randn(3, 1, 2, 2).double()
    for place, time in enumerate(way.times):
        signal, noise = schedule.scales(time)
        eps = (x - signal * z) / noise
        x = way.step(x, eps if prediction == "epsilon" else signal * eps - noise * z, place)
    torch.testing.assert_close(x, z.expand(3, -1, -1, -1))


def test_fewer_steps_of_the_solver_err_less():
    """Second order: on a smooth field it is nearer to a thousand steps than DDIM is, at the last
    time before the end."""
    schedule, x = Schedule(), torch.randn(4, 1, 2, 2).double()

    def run(name, steps):
        way, y = SAMPLERS[name](schedule, steps), x
        for place, time in enumerate(way.times):
            if time == 99:
                return y
            signal, noise = schedule.scales(time)  # of data that is normal, of std 0.5
            y = way.step(y, noise * y / (signal**2 * 0.25 + noise**2), place)

    exact = run("ddim", 1000)
    errors = {name: (run(name, 10) - exact).abs().mean().item() for name in ("ddim", "dpm")}
    assert errors["dpm"] < 0.3 * errors["ddim"]


# ---------------------------------------------------------------------- the whole


class Echo(nn.Module):
    """A network that notes its inputs and answers with some function of them."""

    def __init__(self, answer):
        super().__init__()
        self.answer, self.seen, self.factor = answer, [], 1

    def forward(self, x, times, text):
        self.seen.append((x, times, text))
        return self.answer(x, times, text)


def whole(answer, **settings):
    model = LatentDiffusion(Pixels(), Echo(answer), nn.Identity(), Schedule(**settings))
    return model.double()


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_the_loss_is_eq_3(prediction):
    model = whole(lambda x, times, text: torch.zeros_like(x), prediction=prediction)
    z, text = torch.randn(300, 4, 2, 2).double(), torch.randn(300, 5, 3)
    torch.manual_seed(0)
    loss = model(z, text)
    torch.manual_seed(0)
    times = torch.randint(1000, (300,))
    noise = torch.randn_like(z)
    (x, seen, told) = model.unet.seen[0]
    kept = Schedule().kept[times][:, None, None, None]
    assert torch.equal(seen, times)
    assert told is text
    torch.testing.assert_close(x, kept.sqrt() * z + (1 - kept).sqrt() * noise, atol=1e-6, rtol=1e-6)
    velocity = kept.sqrt() * noise - (1 - kept).sqrt() * z
    target = noise if prediction == "epsilon" else velocity
    assert loss.item() == pytest.approx(target.square().mean().item(), rel=1e-5)


@pytest.mark.parametrize("guidance", [0.0, 0.5, 1.0, 3.0])
def test_guidance(guidance):
    """other + s (asked - other); where one of the two doesn't count, it isn't computed."""
    model = whole(lambda x, times, text: x * text.mean((1, 2))[:, None, None, None])
    x = torch.randn(2, 4, 3, 3).double()
    asked, other = torch.full((2, 5, 6), 2.0).double(), torch.full((2, 5, 6), -1.0).double()
    found = model.predict(x, 10, [asked, other], guidance)
    torch.testing.assert_close(found, x * (-1 + guidance * 3))
    assert len(model.unet.seen[0][0]) == (2 if guidance in (0.0, 1.0) else 4)
    assert (model.unet.seen[0][1] == 10).all()


def test_denoising_begins_where_it_is_told_and_keeps_what_is_known():
    model = whole(lambda x, times, text: torch.zeros_like(x))
    x, text = torch.randn(1, 3, 4, 4).double(), [torch.zeros(1, 2, 3)] * 2
    made = list(model.denoise(x, text, 10, 1.0, "ddim", begin=7))
    assert [int(times) for _, times, _ in model.unet.seen] == Schedule().times(10)[7:]
    assert len(made) == 3
    seen = []

    def keep(y, time):
        seen.append(time)
        return y.new_full(y.shape, 5.0)

    (last,) = list(model.denoise(x, text, 10, 1.0, "ddim", begin=9, keep=keep))
    assert seen == [-1]
    assert (last == 5).all()


def test_latents_are_scaled_and_images_decoded_one_by_one():
    model = ldm_small(width=32, d_text=32, ae_width=8)
    model.scale.fill_(4.0)
    known = model.autoencoder.encode(torch.rand(3, 3, 16, 16) * 2 - 1)
    mode = model.to_latents(known, drawn=False)
    torch.testing.assert_close(mode, 4 * model.autoencoder.mode(known))
    sizes, decode = [], model.autoencoder.decode
    model.autoencoder.decode = lambda z: sizes.append(len(z)) or decode(z)
    images = model.to_pixels(mode)
    assert sizes == [1, 1, 1]
    want = (decode(mode / 4) + 1) / 2
    torch.testing.assert_close(images, want.clamp(0, 1), rtol=1e-4, atol=1e-5)
    assert images.min() >= 0
    assert images.max() <= 1


def test_small_models():
    assert (count(kl_small()), count(vq_small())) == (670_740, 670_020)
    parts = ldm_small()
    assert (count(parts.unet), count(parts.text)) == (1_711_368, 105_472)
    for settings in (
        dict(),
        dict(pooled=True),
        dict(factor=1),
        dict(factor=8, regulariser="vq", latent_channels=8),
    ):
        model = ldm_small(width=32, d_text=32, ae_width=8, **settings)
        factor, channels = model.autoencoder.factor, model.autoencoder.latent_channels
        assert model.factor == 2 * factor
        z = torch.randn(2, channels, 16, 16)
        loss = model(z, torch.randint(64, (2, 20)))
        assert loss.item() == pytest.approx(1, abs=0.3)  # it begins by answering zero
        loss.backward()
    with pytest.raises(ValueError, match="multiples of 32"):
        ldm_small(width=40)


def test_tables_are_float32_and_on_the_default_device():
    with torch.device("meta"):
        model = ldm_small()
    assert {b.dtype for b in model.buffers()} == {torch.float32}
    assert {b.device.type for b in model.buffers()} == {"meta"}
    assert "signal" not in model.state_dict()
    assert "scale" in model.state_dict()


def test_it_overfits_a_batch():
    """Where nothing but noise is seen, only the text tells what the latents are."""
    model = ldm_small(vocab_size=4, context=3, width=32, d_text=32, factor=1)
    only_noise = dict(num_times=1, start=0.999, end=0.999, prediction="v_prediction")
    whole = LatentDiffusion(model.autoencoder, model.unet, model.text, Schedule(**only_noise))
    tokens = torch.tensor([[1, 2, 0], [1, 3, 0]]).repeat(4, 1)
    z = torch.tensor([1.0, -1.0]).repeat(4)[:, None, None, None].expand(8, 3, 4, 4)
    optimizer = torch.optim.Adam(whole.parameters(), 3e-3)
    losses = []
    for _ in range(40):
        loss = whole(z, tokens)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) / 5 < 0.2 * losses[0]


def test_words_that_are_learnt_later_are_not_lost():
    """What the first word tells is learnt at once; the second's still comes out of the encoder."""
    model = ldm_small(vocab_size=8, context=4, width=32, factor=1)
    only_noise = dict(num_times=1, start=0.999, end=0.999, prediction="v_prediction")
    whole = LatentDiffusion(model.autoencoder, model.unet, model.text, Schedule(**only_noise))
    tokens = torch.tensor([[1, a, b, 0] for a in (2, 3) for b in (4, 5, 6, 7)])
    z = torch.tensor([1.0, -1.0]).repeat_interleave(4)[:, None, None, None].expand(8, 3, 4, 4)
    optimizer = torch.optim.AdamW(whole.parameters(), 1e-3)
    for _ in range(40):
        loss = whole(z, tokens)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        second = model.text(tokens)[:4, 2].std(0).mean()
    assert second > 0.2  # 0.02 where words begin as CLIP's do
