"""Denoising diffusion (Ho, Jain, Abbeel 2020, arXiv:2006.11239; DDIM: Song, Meng, Ermon 2020,
arXiv:2010.02502).

A fixed chain adds a little noise to an image a thousand times, until nothing but noise is left. A
network learns to undo one step, which is to say what noise was added; from pure noise, step by
step, it then makes new images. Nothing is played against anything and nothing is squeezed: the
loss is a squared error, and it is, up to weights, a bound on the likelihood.

Shapes: B batch, C channels, H and W pixels, E numbers of a time's embedding. Pixels are from 0 to 1
outside; in here x is from -1 to 1. Times are 0 to T - 1 (the paper's t is one more).

The network is in denoiser.py. Departures: none in `ddpm`; `ddpm_small` is a narrow one of ours for
digits, which sees squares of 2x2 pixels as channels. DDIM's steps are spread from T - 1 down
("trailing"), so that sampling begins at pure noise whatever their number.
"""

import math
from collections import deque
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from generative.denoiser import UNet


def gaussian_kl(mean1: Tensor, log_var1: Tensor, mean2: Tensor, log_var2: Tensor) -> Tensor:
    """KL(N1 || N2) of each number, in nats."""
    return (
        log_var2 - log_var1 - 1 + ((mean1 - mean2).square() + log_var1.exp()) / log_var2.exp()
    ) / 2


class DDPM(nn.Module):
    """The chain of noise around a U-Net.

    `sample_steps` is how many of the T steps `sample` takes: all by default, by the paper's
    Algorithm 2; fewer by DDIM, without noise on the way.
    """

    infers, prior, straight = False, True, False  # see model.py

    def __init__(self, unet: nn.Module, shape: tuple[int, ...], sample_steps: int = 1000):
        super().__init__()
        self.unet, self.shape, self.sample_steps = unet, shape, sample_steps
        exact = dict(dtype=torch.float64, device="cpu")  # not all devices have float64
        beta = torch.linspace(1e-4, 0.02, 1000, **exact)  # Sec. 4
        kept = (1 - beta).cumprod(0)
        before = torch.cat([torch.ones(1, **exact), kept[:-1]])
        variance = beta * (1 - before) / (1 - kept)  # Eq. 7
        self.num_times = len(beta)
        tables = dict(
            signal=kept.sqrt(),  # the root of the paper's alpha bar
            noise=(1 - kept).sqrt(),
            clean=before.sqrt() * beta / (1 - kept),  # the weights of Eq. 7
            noisy=(1 - beta).sqrt() * (1 - before) / (1 - kept),
            log_variance=torch.cat([variance[1:2], variance[1:]]).log(),  # the first is zero
        )
        for name, table in tables.items():
            table = table.float().to(torch.get_default_device())
            self.register_buffer(name, table, persistent=False)

    def at(self, table: Tensor, times: Tensor) -> Tensor:
        """A table's values at times (B,), to be used with images: (B, 1, 1, 1)."""
        return table[times][:, None, None, None]

    def forward(self, x: Tensor) -> Tensor:
        """The loss L_simple of images (B, C, H, W) (Eq. 14, Algorithm 1), averaged over pixels."""
        times = torch.randint(self.num_times, (len(x),), device=x.device)
        noise = torch.randn_like(x)
        return (self.unet(self.diffuse(2 * x - 1, times, noise), times) - noise).square().mean()

    def diffuse(self, x: Tensor, times: Tensor, noise: Tensor) -> Tensor:
        """x_t from x_0 in one step (Eq. 4)."""
        return self.at(self.signal, times) * x + self.at(self.noise, times) * noise

    def posterior(self, x: Tensor, noisy: Tensor, times: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance of q(x_{t-1} | x_t, x_0) (Eq. 6 and 7); at time 0 the variance,
        which is zero there, is that of time 1."""
        mean = self.at(self.clean, times) * x + self.at(self.noisy, times) * noisy
        return mean, self.at(self.log_variance, times)

    def predict(self, noisy: Tensor, times: Tensor) -> tuple[Tensor, Tensor]:
        """The network's noise, and the image x_0 that it means, clipped to the range of pixels."""
        noise = self.unet(noisy, times).to(noisy.dtype)
        clean = (noisy - self.at(self.noise, times) * noise) / self.at(self.signal, times)
        return noise, clean.clamp(-1, 1)

    def times_of(self, steps: int) -> list[int]:
        """The times that sampling visits, spread evenly and ending at 0's neighbourhood."""
        return [round(self.num_times * (1 - k / steps)) - 1 for k in range(steps)]

    def denoise(self, x: Tensor, steps: int | None = None) -> Iterator[Tensor]:
        """From noise (B, C, H, W), step by step; yields the images that are in the making.

        Raises ValueError for more steps than T.
        """
        steps = steps or self.sample_steps
        if steps > self.num_times:
            raise ValueError(f"{steps} steps are more than the {self.num_times} there are")
        visits = self.times_of(steps)
        for now, then in zip(visits, [*visits[1:], -1], strict=True):
            times = torch.full((len(x),), now, device=x.device)
            noise, clean = self.predict(x, times)
            if steps == self.num_times:  # Algorithm 2
                mean, log_variance = self.posterior(clean, x, times)
                x = mean + (log_variance / 2).exp() * torch.randn_like(x) if now else mean
            else:  # DDIM, Eq. 12 with sigma 0; the noise fits the clipped image
                noise = (x - self.signal[now] * clean) / self.noise[now]
                x = self.signal[then] * clean + self.noise[then] * noise if then >= 0 else clean
            yield x

    def draw_codes(self, n: int) -> Tensor:
        """Noise (n, D) to begin at."""
        return torch.randn(n, math.prod(self.shape), device=self.signal.device)

    def from_codes(self, codes: Tensor) -> Tensor:
        """Images (B, C, H, W) of noise (B, D)."""
        last = deque(self.denoise(codes.view(-1, *self.shape)), maxlen=1).pop()
        return self.to_pixels(last)

    def sample(self, n: int) -> Tensor:
        """Images (n, C, H, W)."""
        return self.from_codes(self.draw_codes(n))

    @staticmethod
    def to_pixels(x: Tensor) -> Tensor:
        """From -1 to 1 to the range from 0 to 1."""
        return ((x + 1) / 2).clamp(0, 1)

    def terms(self, x: Tensor, times: Tensor, noise: Tensor) -> Tensor:
        """L_{t-1} of Eq. 5 in nats, for images (B, C, H, W) from -1 to 1; the discretised
        decoder of Eq. 13 at time 0. (B,)"""
        noisy = self.diffuse(x, times, noise)
        mean, log_variance = self.posterior(self.predict(noisy, times)[1], noisy, times)
        kl = gaussian_kl(*self.posterior(x, noisy, times), mean, log_variance)
        scaled = (-log_variance / 2).exp() / math.sqrt(2)
        below, above = (torch.erf((x - mean + d) * scaled) for d in (-1 / 255, 1 / 255))
        below, above = below.where(x > -0.999, -1.0), above.where(x < 0.999, 1.0)
        decoder = -((above - below) / 2).clamp(min=1e-12).log()
        first = (times == 0)[:, None, None, None]
        return torch.where(first, decoder, kl).flatten(1).sum(1)

    def measures(self, x: Tensor, draws: int = 2) -> dict[str, Tensor]:
        """For each image (B,): the variational bound in bits a dimension (Eq. 5).

        The terms of t > 1 are estimated at `draws` times each, spread evenly over the batch.
        """
        x, rest, size = 2 * x - 1, self.num_times - 1, math.prod(self.shape)
        total = self.terms(
            x, torch.zeros(len(x), dtype=torch.int64, device=x.device), torch.randn_like(x)
        )
        places = torch.arange(len(x) * draws, device=x.device) + torch.rand(1, device=x.device)
        times = 1 + (places / (len(x) * draws) * rest).long().clamp(max=rest - 1)
        for part in times[torch.randperm(len(times), device=x.device)].view(draws, -1):
            total = total + self.terms(x, part, torch.randn_like(x)) * rest / draws
        zero = torch.zeros_like(x)
        prior = gaussian_kl(self.signal[-1] * x, zero + 2 * self.noise[-1].log(), zero, zero)
        return {"bits": (total + prior.flatten(1).sum(1)) / (size * math.log(2))}


def ddpm(channels: int = 3, size: int = 32, dropout: float = 0.1, sample_steps: int = 1000) -> DDPM:
    """The paper's network for CIFAR-10; 35,746,307 parameters.

    Raises ValueError for a size that can't be halved three times.
    """
    if size % 8:
        raise ValueError(f"it halves images three times: {size} pixels are no multiple of 8")
    unet = UNet(channels, 128, (1, 2, 2, 2), (1,), 2, 32, dropout)
    return DDPM(unet, (channels, size, size), sample_steps)


def ddpm_small(
    channels: int = 1, size: int = 28, width: int = 48, dropout: float = 0.1, sample_steps: int = 50
) -> DDPM:
    """A narrow one for digits: patches, two resolutions, a block each, DDIM in 50 steps.

    1,576,084 parameters.

    Raises ValueError for a size that can't be halved twice, or a width that 8 doesn't divide.
    """
    if size % 4:
        raise ValueError(f"it halves images twice: {size} pixels are no multiple of 4")
    if width % 8:
        raise ValueError(f"it has 8 groups of channels: a width of {width} is no multiple of 8")
    unet = UNet(channels, width, (1, 2), (1,), 1, 8, dropout, patch=2)
    return DDPM(unet, (channels, size, size), sample_steps)
