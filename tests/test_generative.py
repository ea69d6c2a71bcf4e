"""Autoencoders, VAEs, GANs and flows: sizes, equations by brute force, properties."""

import math

import pytest
import torch
from helpers import count
from torch import nn
from torch.distributions import Normal, kl_divergence

from generative.autoencoder import autoencoder, conv_autoencoder
from generative.flow import ALPHA, checkerboard, join_checkerboard, realnvp, realnvp2d
from generative.gan import Maxout, dcgan, discriminator_loss, generator_loss
from generative.model import MODELS
from generative.vae import conv_vae, vae

PARAMETERS = {
    "autoencoder": 2_837_314,
    "conv_autoencoder": 258_015,
    "vae": 815_824,
    "conv_vae": 1_691_369,
    "gan": 2_503_984 + 1_231_441,
    "dcgan": 12_658_432 + 11_036_160,
    "realnvp": 13_837_620,
    "realnvp2d": 35_352,
    "ddpm": 35_746_307,
    "ddpm_small": 1_576_084,
}


def test_parameters():
    with torch.device("meta"):
        assert {name: count(factory()) for name, factory in MODELS.items()} == PARAMETERS
        assert count(dcgan().generator) == 12_658_432  # at 64 pixels
        assert count(vae(hidden=400, nonlinearity=nn.ReLU)) == 652_824  # PyTorch's example


def small(name, size=8, channels=1, **settings):
    """A model of 8x8 images, or points; quickly built."""
    torch.manual_seed(0)
    if name == "realnvp2d":
        return MODELS[name](width=8, num_couplings=4)
    if name == "realnvp":
        settings |= dict(width=4, num_blocks=1)
    if name in ("dcgan", "ddpm_small"):
        settings |= dict(width=8)
    return MODELS[name](channels=channels, size=size, **settings)


@pytest.mark.parametrize("name", [name for name in MODELS if name != "ddpm"])
@pytest.mark.parametrize("channels", [1, 3])
def test_one_contract(name, channels):
    """forward(x) is one number with a gradient, sample(n) draws images from 0 to 1."""
    model = small(name, channels=channels)
    x = torch.rand(5, 2) if name == "realnvp2d" else torch.rand(5, channels, 8, 8)
    loss = model(x)
    assert loss.shape == ()
    loss.backward()
    assert any(p.grad is not None and p.grad.any() for p in model.parameters())
    with torch.no_grad():
        drawn = model.eval().sample(3)
    assert drawn.shape == (3, *x.shape[1:])
    if name != "realnvp2d":
        assert drawn.min() >= 0
        assert drawn.max() <= 1


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("conv_autoencoder", 30), ("conv_vae", 18), ("realnvp", 30), ("ddpm", 28),
        ("ddpm_small", 14), ("dcgan", 4), ("dcgan", 18), ("dcgan", 6),
    ],
)  # fmt: skip
def test_sizes_that_cannot_be_halved(name, size):
    with pytest.raises(ValueError, match=f"{size}"):
        MODELS[name](channels=1, size=size)


# ---------------------------------------------------------------------- autoencoders


def test_the_autoencoder_of_2006():
    model = autoencoder()
    sizes = [m.out_features for m in model.modules() if isinstance(m, nn.Linear)]
    assert sizes == [1000, 500, 250, 30, 250, 500, 1000, 784]


@pytest.mark.parametrize("factory", [autoencoder, conv_autoencoder])
def test_squared_error_is_summed_over_pixels(factory):
    torch.manual_seed(0)
    model, x = factory(2, 8, latent=3).eval(), torch.rand(4, 2, 8, 8)
    rebuilt = model.reconstruct(x)
    want = sum((rebuilt[b] - x[b]).square().sum().item() for b in range(4)) / 4
    assert model(x).item() == pytest.approx(want, rel=1e-5)
    assert model.measures(x)["error"].mean().item() == pytest.approx(want, rel=1e-5)


def test_noise_is_added_to_what_is_seen_and_not_to_the_target():
    torch.manual_seed(0)
    model, x, seen = autoencoder(1, 8, noise=0.5), torch.rand(200, 1, 8, 8), []
    model.encoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model.decoder = nn.Sequential(nn.Linear(30, 64), nn.Unflatten(1, (1, 8, 8)))
    with torch.no_grad():
        for p in model.decoder.parameters():
            p.zero_()
        assert float(model(x)) == pytest.approx(float(x.square().sum() / 200), rel=1e-5)
        found = model.measures(x)
    assert (seen[0] - x).std().item() == pytest.approx(0.5, rel=0.02)
    assert float(found["noisy_error"].mean()) == pytest.approx(64 * 0.25, rel=0.05)
    assert torch.equal(found["error"], found["denoised_error"])  # as the decoder says nothing


def test_samples_of_an_autoencoder_have_the_codes_distribution():
    torch.manual_seed(0)
    model = autoencoder(1, 8, latent=2)
    mix = torch.tensor([[2.0, 0.0], [1.5, 0.5]])
    for _ in range(800):
        model.remember(torch.randn(100, 2) @ mix.T + torch.tensor([3.0, -1.0]))
    assert torch.allclose(model.code_mean, torch.tensor([3.0, -1.0]), atol=0.15)
    assert torch.allclose(model.code_covariance, mix @ mix.T, atol=0.3)
    codes = []
    model.decoder.register_forward_pre_hook(lambda _, inputs: codes.append(inputs[0]))
    model.sample(20_000)
    assert torch.allclose(codes[0].T.cov(), model.code_covariance, atol=0.15)
    assert torch.allclose(codes[0].mean(0), model.code_mean, atol=0.1)


# ---------------------------------------------------------------------- VAE


def test_kl_in_closed_form_is_the_monte_carlo_one():
    torch.manual_seed(0)
    model, x = vae(1, 8, latent=3).double(), torch.rand(2, 1, 8, 8).double()
    with torch.no_grad():
        model.encoder[-1].weight.mul_(5)
        mean, log_var = model.encode(x)
        q = Normal(mean, (log_var / 2).exp())
        kl = model.terms(x)[1]
        z = q.sample((200_000,))
        drawn = (q.log_prob(z) - Normal(0, 1).log_prob(z)).sum(2).mean(0)
    assert torch.allclose(kl, drawn, rtol=0.02)
    closed = kl_divergence(q, Normal(torch.zeros(()).double(), torch.ones(()).double())).sum(1)
    assert torch.allclose(kl, closed)
    assert kl.min() > 0.1


@pytest.mark.parametrize("factory", [vae, conv_vae])
def test_the_bound_sums_pixels_and_latents_and_averages_images(factory):
    torch.manual_seed(0)
    model, x = factory(1, 8, latent=3, beta=2.5).double(), torch.rand(3, 1, 8, 8).double()
    torch.manual_seed(1)
    loss = model(x)
    torch.manual_seed(1)
    mean, log_var = model.encode(x)
    z = mean + (log_var / 2).exp() * torch.randn_like(mean)
    p, total = model.from_codes(z), 0.0
    for b in range(3):
        for pixel, chance in zip(x[b].flatten(), p[b].flatten(), strict=True):
            total -= pixel * chance.log() + (1 - pixel) * (1 - chance).log()
        for m, v in zip(mean[b], log_var[b].exp(), strict=True):
            total += 2.5 * 0.5 * (m**2 + v - 1 - v.log())
    assert loss.item() == pytest.approx(total.item() / 3)
    torch.manual_seed(1)
    found = model.measures(x)  # whatever beta is
    assert found["bound"].mean().item() == pytest.approx(
        -(loss - 1.5 * found["kl"].mean()).item(), rel=1e-6
    )


def test_the_gaussian_decoder_is_a_density():
    torch.manual_seed(0)
    model = vae(1, 8, latent=3, likelihood="gaussian").double()
    x, z = torch.rand(2, 1, 8, 8).double(), torch.randn(2, 3).double()
    mean, log_var = model.decoder(z).chunk(2, 1)
    want = Normal(mean.sigmoid(), (log_var / 2).exp()).log_prob(x).sum((1, 2, 3))
    assert torch.allclose(model.log_p(x, z), want)
    assert torch.equal(model.from_codes(z), mean.sigmoid())
    with torch.no_grad():
        model.decoder[-2].bias.fill_(-100.0)  # standard deviations stop at a grey value
    assert model.log_p(x, z).isfinite().all()


def test_importance_sampling_finds_the_likelihood():
    """With one latent log p(x) is an integral that a grid can do."""
    torch.manual_seed(0)
    model, x = vae(1, 8, latent=1).double(), torch.rand(3, 1, 8, 8).double()
    with torch.no_grad():
        model.decoder[0].weight.mul_(4)
        model.encoder[-1].weight.mul_(3)
        z = torch.linspace(-8, 8, 4001).double()
        exact = []
        for image in x:
            log_p = model.log_p(image.expand(4001, -1, -1, -1), z[:, None])
            log_p = log_p + Normal(0, 1).log_prob(z)
            exact.append(log_p.logsumexp(0) + math.log(16 / 4000))
        exact = torch.stack(exact)
        many = model.log_likelihood(x, 3000)
        few = torch.stack([model.log_likelihood(x, 1) for _ in range(500)]).mean(0)
        bound = torch.stack([model.measures(x)["bound"] for _ in range(500)]).mean(0)
    assert torch.allclose(many, exact, atol=0.05)
    assert torch.allclose(few, bound, atol=0.15)  # with one draw it is the bound
    assert (bound < exact).all()


def test_binarisation_is_dynamic():
    torch.manual_seed(0)
    model, x = vae(1, 8, binarise=True), torch.full((400, 1, 8, 8), 0.3)
    one, two = model.prepare(x), model.prepare(x)
    assert set(one.unique().tolist()) == {0.0, 1.0}
    assert not torch.equal(one, two)
    assert one.mean().item() == pytest.approx(0.3, abs=0.01)
    assert torch.equal(vae(1, 8).prepare(x), x)


def test_active_latents():
    means = torch.randn(1000, 4) * torch.tensor([1.0, 0.05, 0.2, 0.0])
    assert vae(1, 8).active_latents(means) == 2


# ---------------------------------------------------------------------- GAN


def test_losses_are_eq_1():
    torch.manual_seed(0)
    real, fake = torch.randn(50).double(), torch.randn(50).double()
    want = -(real.sigmoid().log().mean() + (1 - fake.sigmoid()).log().mean())
    assert torch.allclose(discriminator_loss(real, fake), want)
    assert torch.allclose(generator_loss(fake), -fake.sigmoid().log().mean())
    saturating = (1 - fake.sigmoid()).log().mean()
    assert torch.allclose(generator_loss(fake, saturating=True), saturating)
    sure = torch.tensor(-8.0, requires_grad=True)  # the discriminator wins
    for loss, gradient in ((generator_loss(sure), -1.0), (generator_loss(sure, True), 0.0)):
        assert torch.autograd.grad(loss, sure)[0].item() == pytest.approx(gradient, abs=1e-3)


def test_maxout_takes_the_largest_of_its_pieces():
    layer, x = Maxout(3, 4, pieces=5), torch.randn(2, 3)
    out = layer.linear(x)
    for b in range(2):
        for k in range(4):
            assert layer(x)[b, k] == out[b, 5 * k : 5 * k + 5].max()


def test_dcgan_is_fig_1():
    model, shapes = dcgan(), []
    for layer in model.generator.layers:
        if isinstance(layer, nn.ConvTranspose2d):
            layer.register_forward_hook(lambda _, __, out: shapes.append(tuple(out.shape[1:])))
    fake = model.generator(torch.randn(2, 100))
    assert shapes == [(1024, 4, 4), (512, 8, 8), (256, 16, 16), (128, 32, 32), (3, 64, 64)]
    assert model.discriminator([fake, fake])[1].shape == (2,)
    kinds = [type(layer).__name__ for layer in model.discriminator.layers]
    assert kinds[:4] == ["Conv2d", "LeakyReLU", "Conv2d", "BatchNorm2d"]
    assert kinds[-1] == "Conv2d"
    assert [type(m).__name__ for m in model.generator.layers][-2:] == [
        "ConvTranspose2d",
        "ToPixels",
    ]
    for m in model.modules():
        if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d)):
            assert m.bias is None
            assert m.weight.std().item() == pytest.approx(0.02, rel=0.1)
        elif isinstance(m, nn.BatchNorm2d):
            assert m.weight.mean().item() == pytest.approx(1, abs=0.02)
            assert m.weight.std().item() == pytest.approx(0.02, rel=0.4)
        elif isinstance(m, nn.LeakyReLU):
            assert m.negative_slope == 0.2


@pytest.mark.parametrize("size", [8, 16, 28, 32])
def test_dcgan_of_other_sizes(size):
    model = dcgan(1, size, width=4)
    fake = model.sample(2)
    assert fake.shape == (2, 1, size, size)
    assert model.discriminator([fake])[0].shape == (2,)


def test_batches_keep_their_own_statistics():
    torch.manual_seed(0)
    model, x, y = dcgan(1, 16, width=4), torch.rand(6, 1, 16, 16), torch.rand(6, 1, 16, 16) / 9
    with torch.no_grad():
        for m in model.modules():
            if isinstance(m, nn.Conv2d):
                m.weight.mul_(30)
    both, alone = model.discriminator([x, y]), model.discriminator([x])
    assert torch.allclose(both[0], alone[0])
    assert not torch.allclose(both[1], model.discriminator([torch.cat([x, y])])[0][6:], atol=1e-3)


@pytest.mark.parametrize("name", ["gan", "dcgan"])
def test_both_players_are_told_the_class(name):
    model = small(name, num_classes=3).eval()
    z, labels = model.draw_codes(4), torch.tensor([0, 1, 2, 0])
    fake = model.generator(z, labels)
    assert not torch.allclose(fake, model.generator(z, labels.roll(1)))
    (logits,), (others,) = (model.discriminator([fake], k) for k in (labels, labels.roll(1)))
    assert not torch.allclose(logits, others)
    assert model.sample(5).shape == model.sample(5, torch.arange(5) % 3).shape
    assert model(fake, labels).shape == ()


# ---------------------------------------------------------------------- flows


def shaken(model):
    """The same flow with random last layers: it starts as the identity, which hides mistakes."""
    torch.manual_seed(1)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "network" in name or name.endswith("scale"):
                p.add_(0.3 * torch.randn_like(p))
    return model.double().eval()  # batch norm by its averages


def test_the_checkerboard():
    x = torch.arange(32.0).view(1, 2, 4, 4)
    black, white = checkerboard(x)
    y, column = torch.meshgrid(torch.arange(4), torch.arange(4), indexing="ij")
    even = (y + column) % 2 == 0
    assert sorted(black.flatten().tolist()) == sorted(x[:, :, even].flatten().tolist())
    assert sorted(white.flatten().tolist()) == sorted(x[:, :, ~even].flatten().tolist())
    assert torch.equal(join_checkerboard(black, white), x)
    assert black[0, 0, 0].tolist() == [0, 2]  # each place keeps its pixels
    assert black[0, 2, 0].tolist() == [5, 7]


def flows():
    for channels, size in ((1, 4), (1, 8), (2, 8), (1, 20)):  # 20: the last scale has 5 pixels
        model = shaken(realnvp(channels, size, width=4, num_blocks=1))
        torch.manual_seed(2)
        yield model, 0.05 + 0.9 * torch.rand(3, channels, size, size).double(), model.undo
    model = shaken(realnvp2d(width=8, num_couplings=4))
    yield model, torch.randn(3, 2).double(), model.from_codes


@pytest.mark.parametrize("number", range(5))
def test_the_inverse_and_the_determinant(number):
    """Inverse of forward is the identity; the log-determinant that of autograd's Jacobian."""
    model, x, undo = list(flows())[number]
    z, log_det = model.encode(x)
    assert z.shape == (3, x[0].numel())
    assert torch.allclose(undo(z), x, atol=1e-9)
    assert not torch.allclose(z, x.flatten(1), atol=0.1)
    for k in range(2):
        jacobian = torch.autograd.functional.jacobian(lambda y: model.encode(y)[0], x[k : k + 1])
        jacobian = jacobian.reshape(z.shape[1], z.shape[1])
        assert torch.linalg.slogdet(jacobian)[1].item() == pytest.approx(log_det[k].item())
    assert torch.allclose(model.encode(x[:1])[0][0], z[0])  # no example minds its neighbours


def test_a_coupling_passes_half_and_its_scale_is_bounded():
    model = shaken(realnvp(1, 8, width=4, num_blocks=1))
    x, kinds = torch.randn(2, 1, 8, 8).double(), set()
    for coupling in model.scales[0].boards:
        y, log_det = coupling(x)
        same, other = (0, 1) if not coupling.swap else (1, 0)
        assert torch.equal(checkerboard(x)[same], checkerboard(y)[same])
        assert not torch.isclose(checkerboard(x)[other], checkerboard(y)[other]).any()
        assert (log_det.abs() <= 16 * coupling.scale.abs().sum()).all()
        kinds.add(coupling.swap)
    assert kinds == {True, False}
    assert [(len(s.boards), len(s.channels)) for s in model.scales] == [(3, 3)]
    assert [c.board for c in model.last] == 4 * [True]
    odd = realnvp(1, 28, width=4, num_blocks=1)  # 28, 14, and 7 pixels
    assert [c.board for c in odd.last] == 4 * [False]
    assert odd.sides == [(2, 14), (4, 7), (4, 7)]


def test_the_white_half_of_a_checkerboard_leaves_a_scale():
    model, x = realnvp(1, 8, width=4, num_blocks=1).double().eval(), torch.rand(2, 1, 8, 8).double()
    z, _ = model.encode(x)  # new, the chain is the identity
    logits = (ALPHA + (1 - 2 * ALPHA) * x).logit()
    black, white = checkerboard(logits)
    assert torch.allclose(z[:, :32], white.flatten(1))
    assert torch.allclose(z[:, 32:], black.flatten(1))


def test_scales_and_shifts_are_not_rounded_to_bf16():
    model = shaken(realnvp(1, 8, width=4, num_blocks=1)).float()
    with torch.autocast("cpu", torch.bfloat16):
        made = model.last[0].network(torch.randn(1, 4, 2, 2))
    assert made.dtype == torch.float32 and not torch.equal(made, made.bfloat16().float())


def test_bits_a_dimension_by_hand():
    """A flow that does nothing: the bits of a normal distribution on logits."""
    torch.manual_seed(0)
    model = realnvp(1, 4, width=2, num_blocks=1).double()
    x = torch.randint(256, (2, 1, 4, 4)).double() / 255
    torch.manual_seed(3)
    bits = model.measures(x)["bits"]
    torch.manual_seed(3)
    noise, want = torch.rand_like(x), []
    for image, u in zip(x, noise, strict=True):
        nats = 0.0
        for pixel, extra in zip((255 * image).flatten(), u.flatten(), strict=True):
            p = ALPHA + (1 - 2 * ALPHA) * (pixel + extra) / 256
            z = math.log(p / (1 - p))
            slope = (1 - 2 * ALPHA) / (p * (1 - p)) / 256  # of z by the grey value
            nats += -0.5 * z**2 - 0.5 * math.log(2 * math.pi) + math.log(slope)
        want.append(-nats / 16 / math.log(2))
    assert bits.tolist() == pytest.approx(want)
    assert model(x).item() == pytest.approx(sum(want) / 2, rel=0.05)  # other noise


def test_a_density_in_the_plane_integrates_to_one():
    model = shaken(realnvp2d(width=8, num_couplings=4))
    axis = torch.linspace(-12, 12, 601).double()
    grid = torch.cartesian_prod(axis, axis)
    with torch.no_grad():
        total = model.log_prob(grid).exp().sum() * (axis[1] - axis[0]) ** 2
    assert total.item() == pytest.approx(1, abs=0.02)


def test_samples_are_grey_values():
    drawn = small("realnvp").sample(4) * 255
    assert torch.allclose(drawn, drawn.round(), atol=1e-4)


# ---------------------------------------------------------------------- learning


@pytest.mark.parametrize(
    ("name", "ratio"),
    [("autoencoder", 0.4), ("conv_autoencoder", 0.3), ("conv_vae", 0.7), ("vae", 0.7)],
)
def test_it_overfits_a_batch(name, ratio):
    model, x = small(name), (torch.rand(8, 1, 8, 8, generator=generator(0)) < 0.5).float()
    first, last = learn(model, x, 100, 3e-3)
    assert last < ratio * first


def generator(seed):
    return torch.Generator().manual_seed(seed)


def learn(model, x, steps, lr):
    optimizer, losses = torch.optim.Adam(model.parameters(), lr), []
    for _ in range(steps):
        loss = model(x)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses[0], sum(losses[-5:]) / 5


def test_a_flow_learns_a_batch():
    x = torch.randint(0, 2, (8, 1, 8, 8), generator=generator(0)).float()
    first, last = learn(small("realnvp"), x, 40, 5e-3)
    assert last < 0.8 * first
    moons = torch.randn(200, 2, generator=generator(1)).square()
    first, last = learn(small("realnvp2d"), moons, 100, 1e-2)
    assert last < first - 0.5


def test_a_gan_learns_to_be_bright():
    model, x = small("dcgan"), torch.full((16, 1, 8, 8), 0.95)
    g = torch.optim.Adam(model.generator.parameters(), 5e-3, (0.5, 0.999))
    d = torch.optim.Adam(model.discriminator.parameters(), 5e-3, (0.5, 0.999))
    for _ in range(60):
        fake = model.generator(model.draw_codes(16))
        d.zero_grad()
        discriminator_loss(*model.discriminator([x, fake.detach()])).backward()
        d.step()
        g.zero_grad()
        generator_loss(model.discriminator([fake])[0]).backward()
        g.step()
    assert model.sample(16).mean().item() > 0.7  # a half at first


@pytest.mark.parametrize("name", [name for name in MODELS if name != "ddpm"])
def test_all_have_one_contract(name):
    """What model.py says of codes: shapes, samples, and what goes there and back."""
    small = dict(realnvp=dict(width=4, num_blocks=1), ddpm_small=dict(width=8, sample_steps=3))
    sizes = {} if name == "realnvp2d" else dict(channels=1, size=8)
    model = MODELS[name](**sizes, **small.get(name, {})).eval()
    shape = (3, 2) if name == "realnvp2d" else (3, 1, 8, 8)
    with torch.no_grad():
        torch.manual_seed(0)
        codes = model.draw_codes(3)
        images = model.from_codes(codes)
        assert codes.dim() == 2
        assert images.shape == shape
        torch.manual_seed(0)
        assert torch.equal(model.sample(3), images)
        if model.infers:
            assert model.to_codes(images).shape == codes.shape
        again = model.from_codes(model.to_codes(images)) if model.infers else images
        if hasattr(model, "reconstruct"):
            assert torch.equal(model.reconstruct(images), again)
        else:  # nothing is lost on the way, but for the rounding to grey values
            assert torch.allclose(again, images, atol=1.01 / 255)
        assert hasattr(model, "measures") == (name not in ("gan", "dcgan"))
        assert model.prior == ("auto" not in name)
        assert model.straight == model.infers
