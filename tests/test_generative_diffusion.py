"""Diffusion: parity with diffusers, the chain's closed forms by brute force, the bound."""

import math

import pytest
import torch
from helpers import count, perturb
from torch.distributions import Normal, kl_divergence

from generative.denoiser import UNet
from generative.diffusion import DDPM, ddpm, ddpm_small, gaussian_kl

diffusers = pytest.importorskip("diffusers")


def theirs(width, multiples, attention, depth, groups, dropout, channels=3, size=32):
    """diffusers' U-Net of the same configuration; the released one's with 128, (1, 2, 2, 2)."""
    kinds = ["AttnDownBlock2D" if k in attention else "DownBlock2D" for k in range(len(multiples))]
    return diffusers.UNet2DModel(
        sample_size=size,
        in_channels=channels,
        out_channels=channels,
        block_out_channels=[width * m for m in multiples],
        down_block_types=kinds,
        up_block_types=[k.replace("Down", "Up") for k in reversed(kinds)],
        layers_per_block=depth,
        downsample_padding=0,
        flip_sin_to_cos=False,
        freq_shift=1,
        norm_eps=1e-6,
        norm_num_groups=groups,
        attention_head_dim=None,
        dropout=dropout,
    )


@pytest.mark.parametrize(
    "sizes",
    [(32, (1, 2, 2, 2), (1,), 2, 32), (16, (1, 2), (0, 1), 1, 8), (8, (1, 3, 2), (2,), 3, 4)],
)
def test_parity_of_the_unet(sizes):
    """In float64: outputs and every gradient; the names are the same, as in released weights."""
    reference = perturb(theirs(*sizes, 0.1).double())
    ours = UNet(3, *sizes, 0.1).double()
    ours.load_state_dict(reference.state_dict())
    torch.manual_seed(0)
    x, times = torch.randn(2, 3, 16, 16).double(), torch.tensor([3, 700])
    outputs = []
    for model in (ours.eval(), reference.eval()):
        y = model(x, times)
        y = y if torch.is_tensor(y) else y.sample
        (y * torch.linspace(-1, 1, y.numel()).view_as(y)).sum().backward()
        outputs.append(y)
    torch.testing.assert_close(*outputs, rtol=1e-9, atol=1e-10)
    named = dict(ours.named_parameters())
    for name, p in reference.named_parameters():
        torch.testing.assert_close(named[name].grad, p.grad, rtol=1e-7, atol=1e-9, msg=name)


def test_the_papers_network_has_the_released_names_and_sizes():
    with torch.device("meta"):
        ours, reference = ddpm().unet, theirs(128, (1, 2, 2, 2), (1,), 2, 32, 0.1)
    shapes = {name: p.shape for name, p in ours.state_dict().items()}
    assert shapes == {name: p.shape for name, p in reference.state_dict().items()}
    assert count(ours) == 35_746_307


def test_blocks_begin_as_the_identity():
    torch.manual_seed(0)
    model = ddpm_small(1, 8, width=16)
    assert not model.unet(torch.randn(2, 1, 8, 8), torch.tensor([0, 999])).any()
    x = torch.randn(2, 16, 4, 4)
    stage = model.unet.down_blocks[0]
    assert torch.equal(stage.resnets[0](x, torch.randn(2, 64)), x)


def test_dropout_is_in_every_block():
    rates = [m.p for m in ddpm_small(1, 8, width=8).modules() if isinstance(m, torch.nn.Dropout)]
    assert len(rates) == 8
    assert set(rates) == {0.1}


def test_patches_are_folded_and_unfolded():
    unet = UNet(2, 8, (1, 2), (1,), 1, 4, 0.0, patch=2)
    assert unet.conv_in.in_channels == 8
    with torch.no_grad():  # the last layer's bias alone: one value for each place in a patch
        unet.conv_out.bias.copy_(torch.arange(8.0))
    y = unet(torch.randn(1, 2, 8, 8), torch.tensor([5]))
    assert y.shape == (1, 2, 8, 8)
    assert y[0, 1, ::2, 1::2].unique().tolist() == [5.0]


# ---------------------------------------------------------------------- the chain


def chain(network=None, **settings):
    """The chain in float64 around a network of one's own; images of 2x2 pixels."""
    model = DDPM(network or torch.nn.Identity(), (1, 2, 2), **settings).double()
    beta = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    return model, beta


def test_the_schedule():
    model, beta = chain()
    assert beta[0] == pytest.approx(1e-4)
    assert torch.allclose(model.signal**2, (1 - beta).cumprod(0), rtol=1e-5)
    assert torch.allclose(model.noise**2, 1 - (1 - beta).cumprod(0), rtol=1e-5)
    assert model.num_times == 1000
    assert model.signal[-1].square().item() == pytest.approx(
        4.04e-5, rel=0.01
    )  # hardly a trace is left


def test_moments_of_q_are_those_of_the_simulation():
    model, beta = chain()
    torch.manual_seed(0)
    start, x = 0.7, torch.full((20_000, 1, 1, 1), 0.7).double()
    for t in range(300):
        x = (1 - beta[t]).sqrt() * x + beta[t].sqrt() * torch.randn_like(x)
        if t in (0, 10, 100, 299):
            times = torch.full((20_000,), t)
            y = model.diffuse(torch.full_like(x, start), times, torch.randn_like(x))
            assert y.mean().item() == pytest.approx(x.mean().item(), abs=0.03)
            assert y.std().item() == pytest.approx(x.std().item(), rel=0.03)


@pytest.mark.parametrize("t", [1, 2, 50, 999])
def test_the_posterior_is_bayes_rule(t):
    """q(x_{t-1} | x_t, x_0) is proportional to q(x_t | x_{t-1}) q(x_{t-1} | x_0): on a grid."""
    model, beta = chain()
    kept, clean = (1 - beta).cumprod(0), 0.3
    noisy = float(kept[t].sqrt() * clean - 1.3 * (1 - kept[t]).sqrt())
    prior = Normal(kept[t - 1].sqrt() * clean, (1 - kept[t - 1]).sqrt())
    grid = prior.mean + prior.stddev * torch.linspace(-9, 9, 40_001).double()
    step = Normal((1 - beta[t]).sqrt() * grid, beta[t].sqrt())
    weights = (prior.log_prob(grid) + step.log_prob(torch.tensor(noisy).double())).softmax(0)
    mean = (weights * grid).sum()
    variance = (weights * (grid - mean).square()).sum()
    one = torch.ones(1, 1, 1, 1).double()
    found, log_variance = model.posterior(clean * one, noisy * one, torch.tensor([t]))
    assert found.item() == pytest.approx(mean.item(), abs=1e-5)
    assert log_variance.exp().item() == pytest.approx(variance.item(), rel=1e-3)


def test_kl_of_normals():
    m1, v1, m2, v2 = (torch.randn(5).double() for _ in range(4))
    want = kl_divergence(Normal(m1, (v1 / 2).exp()), Normal(m2, (v2 / 2).exp()))
    assert torch.allclose(gaussian_kl(m1, v1, m2, v2), want)


class Fixed(torch.nn.Module):
    """A network that answers with some function of its inputs."""

    def __init__(self, function):
        super().__init__()
        self.function = function
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def forward(self, x, times):
        return self.function(x, times)


def test_the_loss_is_algorithm_1():
    seen = []
    model, beta = chain(Fixed(lambda x, times: seen.append((x, times)) or torch.zeros_like(x)))
    x = torch.rand(300, 1, 2, 2).double()
    torch.manual_seed(0)
    loss = model(x)
    torch.manual_seed(0)
    times = torch.randint(1000, (300,))
    noise = torch.randn_like(x)
    assert torch.equal(seen[0][1], times)
    kept = (1 - beta).cumprod(0)[times][:, None, None, None]
    want = kept.sqrt() * (2 * x - 1) + (1 - kept).sqrt() * noise  # Eq. 4
    assert torch.allclose(seen[0][0], want, atol=1e-6)
    assert loss.item() == pytest.approx(noise.square().mean().item())


def wave(x, times):
    """A smooth stand-in for a network."""
    return torch.sin(3 * x + times[:, None, None, None] / 200)


@pytest.mark.parametrize("t", [999, 500, 1])
def test_a_step_of_algorithm_2_is_the_schedulers(t, monkeypatch):
    """With the same noise on both sides."""
    import diffusers.schedulers.scheduling_ddpm as module

    scheduler = diffusers.DDPMScheduler(1000, 1e-4, 0.02, "linear", variance_type="fixed_small")
    noise = torch.randn(3, 1, 2, 2, generator=torch.Generator().manual_seed(2))
    monkeypatch.setattr(module, "randn_tensor", lambda *_, **__: noise)
    monkeypatch.setattr(torch, "randn_like", lambda _: noise)
    model = DDPM(Fixed(wave), (1, 2, 2))
    monkeypatch.setattr(model, "times_of", lambda steps: [t])
    x = 0.5 * torch.randn(3, 1, 2, 2, generator=torch.Generator().manual_seed(3))
    (ours,) = model.denoise(x)
    want = scheduler.step(wave(x, torch.full((3,), t)), t, x).prev_sample
    torch.testing.assert_close(ours, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("steps", [1, 10, 40, 100])
def test_ddim_is_the_schedulers(steps):
    scheduler = diffusers.DDIMScheduler(
        1000, 1e-4, 0.02, "linear", timestep_spacing="trailing", clip_sample=True
    )
    scheduler.set_timesteps(steps)
    model, beta = chain(Fixed(wave))
    scheduler.alphas_cumprod = (1 - beta).cumprod(0)
    assert model.times_of(steps) == scheduler.timesteps.tolist()
    x = y = torch.randn(3, 1, 2, 2, generator=torch.Generator().manual_seed(0)).double()
    for t, found in zip(scheduler.timesteps, model.denoise(x, steps), strict=True):
        noise = wave(y, torch.full((3,), int(t)))
        y = scheduler.step(noise, t, y, eta=0.0, use_clipped_model_output=True).prev_sample
        torch.testing.assert_close(found, y, rtol=1e-4, atol=1e-4)


def test_one_who_knows_the_noise_finds_the_image():
    image = torch.tensor([[[[0.5, -0.25], [1.0, -1.0]]]])
    holder = []

    def oracle(x, times):
        chain = holder[0]
        return (x - chain.at(chain.signal, times) * image) / chain.at(chain.noise, times)

    model = DDPM(Fixed(oracle), (1, 2, 2), sample_steps=20)
    holder.append(model)
    assert torch.allclose(model.sample(2), (image + 1) / 2, atol=1e-3)
    model.sample_steps = 1000
    assert torch.allclose(model.sample(2), (image + 1) / 2, atol=0.02)


def test_more_steps_than_there_are():
    with pytest.raises(ValueError, match="1001"):
        next(DDPM(Fixed(wave), (1, 2, 2)).denoise(torch.randn(1, 1, 2, 2), 1001))


# ---------------------------------------------------------------------- the bound


def test_the_decoder_is_a_distribution_over_256_values():
    model, _ = chain(Fixed(wave))
    values = (torch.arange(256.0).double() / 255 * 2 - 1).view(256, 1, 1, 1)
    for noisy in (0.9, -0.3, -1.1, 1.0):
        model.diffuse = lambda *_, noisy=noisy: torch.full((256, 1, 1, 1), noisy).double()
        total = model.terms(values, torch.zeros(256, dtype=torch.int64), values)
        assert (-total).exp().sum().item() == pytest.approx(1, abs=1e-6)


def test_the_bound_is_eq_5_term_by_term():
    """All thousand terms, each an expectation over its noise, for two tiny images."""
    model, beta = chain(Fixed(lambda x, times: 0.3 * x))
    torch.manual_seed(0)
    pixels = torch.tensor([[0.0, 51.0, 153.0, 255.0], [102.0, 204.0, 0.0, 0.0]]).double() / 255
    images = pixels.view(2, 1, 2, 2)
    x, many = 2 * images - 1, 60
    total = torch.zeros(2).double()
    for t in range(1000):
        times = torch.full((2,), t)
        for _ in range(many if t < 5 else 6):
            total += model.terms(x, times, torch.randn_like(x)) / (many if t < 5 else 6)
    kept = (1 - beta).cumprod(0)[-1]
    last = Normal(kept.sqrt() * x, (1 - kept).sqrt().expand_as(x))
    zero = torch.zeros_like(x)
    total += kl_divergence(last, Normal(zero, zero + 1)).sum((1, 2, 3))
    want = total / 4 / math.log(2)
    found = model.measures(images.repeat(1000, 1, 1, 1), draws=4)["bits"].view(1000, 2).mean(0)
    assert found.tolist() == pytest.approx(want.tolist(), rel=0.1)


def test_terms_of_later_times_are_kls():
    model, _ = chain(Fixed(wave))
    torch.manual_seed(0)
    x, noise, times = torch.rand(3, 1, 2, 2).double(), torch.randn(3, 1, 2, 2).double(), 500
    times = torch.tensor([1, 500, 999])
    noisy = model.diffuse(x, times, noise)
    mean, log_variance = model.posterior(x, noisy, times)
    answer = model.posterior(model.predict(noisy, times)[1], noisy, times)[0]
    want = ((mean - answer).square() / (2 * log_variance.exp())).sum((1, 2, 3))  # Eq. 8
    assert torch.allclose(model.terms(x, times, noise), want)


def test_it_overfits_a_batch():
    torch.manual_seed(0)
    model = ddpm_small(1, 8, width=16, dropout=0.0)
    x = (torch.rand(1, 1, 8, 8) < 0.5).float().expand(16, -1, -1, -1)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    losses = []
    for _ in range(60):
        loss = model(x)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-10:]) / 10 < 0.4 * losses[0]


def test_tables_are_computed_in_float64_on_the_cpu():
    """As MPS has none; on the device that is set by default they are float32."""
    with torch.device("meta"):
        model = ddpm_small(size=8, width=8)
    assert {t.dtype for t in model.buffers()} == {torch.float32}
    assert {t.device.type for t in model.buffers()} == {"meta"}
    made, linspace = [], torch.linspace

    def seen(*args, **kwargs):
        made.append(linspace(*args, **kwargs))
        return made[-1]

    with torch.device("meta"), pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "linspace", seen)
        ddpm_small(size=8, width=8)
    assert {t.device.type for t in made if t.dtype == torch.float64} == {"cpu"}
