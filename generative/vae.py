"""The variational autoencoder (Kingma and Welling 2013, arXiv:1312.6114).

An autoencoder whose code is uncertain: the encoder answers with a normal distribution q(z|x), a
draw from it is decoded, and a second term keeps q near the prior N(0, 1). Together they are a lower
bound on log p(x), so that training is maximum likelihood, and codes from the prior decode to images
that could be real. Drawing z as mean + deviation * noise lets gradients through (Sec. 2.4).

Shapes: B batch, C channels, H and W pixels, D latents. Pixels are from 0 to 1.

The bound sums over pixels and latents and is averaged over images (other scales change what is
learnt: they are a `beta` in disguise). Departures: weights start as torch's do, not N(0, 0.01), and
have no prior of their own (a small weight decay); the Gaussian decoder's stds are at least
1/255, else pixels that never change make the density infinite. `beta` weighs the second term
(Higgins et al. 2017), 1 is the paper's.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class VAE(nn.Module):
    """`encoder` takes images to the mean and log variance of q (B, 2D), `decoder` codes (B, D) to
    the logits of pixels (B, C, H, W), or, with `likelihood="gaussian"`, to (B, 2C, H, W): the
    logits of the means, and log variances.

    `binarise` draws each pixel as 0 or 1, anew each time, with its grey value as probability.
    """

    infers, prior, straight = True, True, True  # see model.py

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        latent: int,
        likelihood: str = "bernoulli",
        beta: float = 1.0,
        binarise: bool = False,
    ):
        super().__init__()
        self.encoder, self.decoder, self.latent = encoder, decoder, latent
        self.likelihood, self.beta, self.binarise = likelihood, beta, binarise

    def forward(self, x: Tensor) -> Tensor:
        """The loss: the negative bound (Eq. 10) of images (B, C, H, W), with `beta`, averaged."""
        likelihood, kl = self.terms(self.prepare(x))
        return (self.beta * kl - likelihood).mean()

    def prepare(self, x: Tensor) -> Tensor:
        """Pixels as the model sees them."""
        return torch.bernoulli(x) if self.binarise else x

    # fmt: off
    def terms(self, x: Tensor) -> tuple[Tensor, Tensor]:  # (B, C, H, W)
        """The two terms of the bound for each image, in nats: log p(x|z) and KL(q || prior)."""
        mean, log_var = self.encode(x)                    # (B, D) each
        z = mean + (log_var / 2).exp() * torch.randn_like(mean)
        kl = (mean.square() + log_var.exp() - 1 - log_var).sum(1) / 2  # Appendix B
        return self.log_p(x, z), kl                       # (B,) each
    # fmt: on

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance of q(z|x), (B, D) each."""
        mean, log_var = self.encoder(x).to(x.dtype).chunk(2, 1)  # from bf16
        return mean, log_var

    def log_p(self, x: Tensor, z: Tensor) -> Tensor:
        """log p(x|z) of each image, summed over pixels (Appendix C)."""
        out = self.decoder(z).to(x.dtype)
        if self.likelihood == "bernoulli":
            return -F.binary_cross_entropy_with_logits(out, x, reduction="none").flatten(1).sum(1)
        mean, log_var = out.chunk(2, 1)
        log_var = log_var.clamp(min=-2 * math.log(255))
        apart = (x - mean.sigmoid()).square() / log_var.exp()
        return -(apart + log_var + math.log(2 * math.pi)).flatten(1).sum(1) / 2

    def to_codes(self, x: Tensor) -> Tensor:
        """Codes (B, D) of images (B, C, H, W): the means of q."""
        return self.encode(x)[0]

    def from_codes(self, z: Tensor) -> Tensor:
        """The pixels (B, C, H, W) expected for codes (B, D)."""
        out = self.decoder(z).to(z.dtype)
        return (out if self.likelihood == "bernoulli" else out.chunk(2, 1)[0]).sigmoid()

    def reconstruct(self, x: Tensor) -> Tensor:
        """Images through the mean of q and back."""
        return self.from_codes(self.to_codes(x))

    def measures(self, x: Tensor) -> dict[str, Tensor]:
        """For each image (B,): the bound (beta 1) and its second term, in nats."""
        likelihood, kl = self.terms(self.prepare(x))
        return {"bound": likelihood - kl, "kl": kl}

    def log_likelihood(self, x: Tensor, k: int) -> Tensor:
        """log p(x) of each image (B,), by importance sampling with k draws.

        A tighter lower bound the larger k is (Burda et al. 2015, arXiv:1509.00519, Eq. 8).
        """
        x = self.prepare(x)
        mean, log_var = self.encode(x)
        found = []
        for _ in range(k):
            noise = torch.randn_like(mean)
            z = mean + (log_var / 2).exp() * noise
            ratio = (noise.square() + log_var - z.square()).sum(1) / 2  # log p(z) - log q(z|x)
            found.append(self.log_p(x, z) + ratio)
        return torch.stack(found).logsumexp(0) - math.log(k)

    @staticmethod
    def active_latents(means: Tensor) -> int:
        """How many latents tell images apart, from the means of q over the data (N, D).

        Those whose variance is above 0.01 (Burda et al., Sec. 5.2).
        """
        return int((means.var(0) > 0.01).sum()) if len(means) > 1 else 0

    def draw_codes(self, n: int) -> Tensor:
        """Codes (n, D) from the prior."""
        return torch.randn(n, self.latent, device=next(self.parameters()).device)

    def sample(self, n: int) -> Tensor:
        """Images (n, C, H, W): the pixels expected for codes from the prior."""
        return self.from_codes(self.draw_codes(n))


def outputs(channels: int, likelihood: str) -> int:
    """Channels of the decoder's answer."""
    return channels * (2 if likelihood == "gaussian" else 1)


def vae(
    channels: int = 1,
    size: int = 28,
    latent: int = 20,
    hidden: int = 500,
    nonlinearity: Callable[[], nn.Module] = nn.Tanh,
    likelihood: str = "bernoulli",
    **settings,
) -> VAE:
    """The paper's, for MNIST: 500 hidden tanh units on each side; 815,824 parameters.

    With 400 hidden ReLUs it is the one of PyTorch's examples, 652,824.
    """
    pixels, out = channels * size**2, outputs(channels, likelihood)
    encoder = nn.Sequential(
        *(nn.Flatten(), nn.Linear(pixels, hidden), nonlinearity()), nn.Linear(hidden, 2 * latent)
    )
    decoder = nn.Sequential(
        *(nn.Linear(latent, hidden), nonlinearity(), nn.Linear(hidden, out * size**2)),
        nn.Unflatten(1, (out, size, size)),
    )
    return VAE(encoder, decoder, latent, likelihood, **settings)


def conv_vae(
    channels: int = 1, size: int = 28, latent: int = 20, likelihood: str = "bernoulli", **settings
) -> VAE:
    """Two strided convolutions on each side; our sizes.

    Raises ValueError for a size that can't be halved twice.
    """
    if size % 4:
        raise ValueError(f"it halves images twice: {size} pixels are no multiple of 4")
    side, width, hidden = size // 4, 64, 256
    encoder = nn.Sequential(
        *(nn.Conv2d(channels, width // 2, 4, 2, 1), nn.ReLU()),
        *(nn.Conv2d(width // 2, width, 4, 2, 1), nn.ReLU(), nn.Flatten()),
        *(nn.Linear(width * side**2, hidden), nn.ReLU(), nn.Linear(hidden, 2 * latent)),
    )
    decoder = nn.Sequential(
        *(nn.Linear(latent, hidden), nn.ReLU()),
        *(nn.Linear(hidden, width * side**2), nn.ReLU(), nn.Unflatten(1, (width, side, side))),
        *(nn.ConvTranspose2d(width, width // 2, 4, 2, 1), nn.ReLU()),
        nn.ConvTranspose2d(width // 2, outputs(channels, likelihood), 4, 2, 1),
    )
    return VAE(encoder, decoder, latent, likelihood, **settings)
