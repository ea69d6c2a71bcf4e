"""The discrete variational autoencoder of DALL-E (Ramesh et al. 2021, arXiv:2102.12092, Sec. 2.1).

An image becomes a grid of codes, each one of K, as text becomes tokens: 32 x 32 of 8,192 stand for
256 x 256 pixels. To choose a code has no gradient, so in training each place holds a mixture of
codes, softmax((logits + Gumbel noise) / temperature), which becomes a choice as the temperature
falls (Jang et al. 2016, Maddison et al. 2016). The loss is the negative evidence lower bound: the
likelihood of the pixels, and what the codes' distribution tells beyond the uniform one.

Shapes: B batch, C channels, H and W pixels, K codes, h and w places of the grid (H and W over the
`factor`). Pixels are from 0 to 1.

Parameters bear the names of the released encoder and decoder (`blocks.group_1.block_1.res_path`).
Left open by the paper: the loss is divided by the number of pixels' values (App. A.2), the KL term
too. `hard` chooses one code in the forward pass and takes the mixture's gradient (straight
through); the paper's own training has the mixture.
"""

import math
from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EPS = 0.1  # how far pixels are kept from 0 and 1, where their logits are infinite (App. A.3)


class Conv2d(nn.Module):
    """A convolution of odd kernels that keeps the size; `w` and `b` as in the released code."""

    def __init__(self, in_channels: int, channels: int, kernel: int):
        super().__init__()
        deviation = (in_channels * kernel**2) ** -0.5
        self.w = nn.Parameter(torch.randn(channels, in_channels, kernel, kernel) * deviation)
        self.b = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) to (B, C, H, W)."""
        return F.conv2d(x, self.w, self.b, padding=self.w.shape[2] // 2)


class Block(nn.Module):
    """Four convolutions on a quarter of the channels, `gain` times added to the input (App. A.1).

    `kernels` are their sizes: the encoder's last is 1, the decoder's first.
    """

    def __init__(self, in_channels: int, channels: int, kernels: tuple[int, ...], gain: float):
        super().__init__()
        widths = [in_channels, *[channels // 4] * 3, channels]
        same = in_channels == channels
        self.gain = gain
        self.id_path = nn.Identity() if same else Conv2d(in_channels, channels, 1)
        layers = OrderedDict()
        for i, kernel in enumerate(kernels):
            layers[f"relu_{i + 1}"] = nn.ReLU()
            layers[f"conv_{i + 1}"] = Conv2d(widths[i], widths[i + 1], kernel)
        self.res_path = nn.Sequential(layers)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) to (B, C, H, W)."""
        return self.id_path(x) + self.gain * self.res_path(x)


class Stack(nn.Module):
    """Groups of blocks between a first convolution and a last one, which an encoder and a decoder
    are; `between` comes after each group but the last."""

    def __init__(
        self,
        first: Conv2d,
        widths: list[int],
        num_blocks: int,
        kernels: tuple[int, ...],
        between: tuple[str, nn.Module],
        outputs: int,
        gain: float | None,
    ):
        super().__init__()
        groups, width = [], first.w.shape[0]
        if gain is None:
            gain = (len(widths) * num_blocks) ** -2.0  # a deep network begins near the identity
        for number, channels in enumerate(widths, 1):
            layers = OrderedDict()
            for i in range(1, num_blocks + 1):
                layers[f"block_{i}"] = Block(width, channels, kernels, gain)
                width = channels
            if number < len(widths):
                layers[between[0]] = between[1]
            groups.append((f"group_{number}", nn.Sequential(layers)))
        last = OrderedDict(relu=nn.ReLU(), conv=Conv2d(width, outputs, 1))
        ends = ("input", first), ("output", nn.Sequential(last))
        self.blocks = nn.Sequential(OrderedDict([ends[0], *groups, ends[1]]))

    def forward(self, x: Tensor) -> Tensor:
        """The encoder: images (B, C, H, W) to logits (B, K, h, w); the decoder: codes (B, K, h, w)
        to (B, 2C, H, W)."""
        return self.blocks(x)


class Encoder(Stack):
    """Residual groups with pooling between, the width doubled in each (App. A.1)."""

    def __init__(
        self,
        channels: int,
        num_codes: int,
        width: int,
        num_groups: int,
        num_blocks: int,
        gain: float | None = None,
    ):
        widths = [width * 2**i for i in range(num_groups)]
        first = Conv2d(channels, width, 7)
        pool = ("pool", nn.MaxPool2d(2))
        super().__init__(first, widths, num_blocks, (3, 3, 3, 1), pool, num_codes, gain)


class Decoder(Stack):
    """The same the other way round, with pixels doubled between the groups (App. A.1)."""

    def __init__(
        self,
        channels: int,
        num_codes: int,
        width: int,
        num_groups: int,
        num_blocks: int,
        first_width: int,
        gain: float | None = None,
    ):
        widths = [width * 2**i for i in reversed(range(num_groups))]
        first = Conv2d(num_codes, first_width, 1)
        larger = ("upsample", nn.Upsample(scale_factor=2, mode="nearest"))
        super().__init__(first, widths, num_blocks, (1, 3, 3, 3), larger, 2 * channels, gain)


class DVAE(nn.Module):
    """Encoder and decoder; the grid has a place for each `factor` x `factor` pixels.

    `width` is the channels of the groups at full resolution, `first_width` those that a code
    becomes, `gain` what blocks are multiplied by (default: 1 / their number²). Raises ValueError
    for a width whose quarter is no whole number.
    """

    def __init__(
        self,
        num_codes: int = 8192,
        width: int = 256,
        num_groups: int = 4,
        num_blocks: int = 2,
        first_width: int = 128,
        channels: int = 3,
        gain: float | None = None,
    ):
        super().__init__()
        if width % 4:
            raise ValueError(f"blocks work on a quarter of their channels: not of {width}")
        self.num_codes, self.factor, self.channels = num_codes, 2 ** (num_groups - 1), channels
        sizes = channels, num_codes, width, num_groups, num_blocks
        stored = None if gain is None else torch.tensor(float(gain))
        self.register_buffer("gain", stored)  # beside the weights, which don't tell it
        self.encoder = Encoder(*sizes, gain)
        self.decoder = Decoder(*sizes, first_width, gain)

    # fmt: off
    def forward(
        self, x: Tensor, temperature: float = 1.0, beta: float = 6.6, hard: bool = False
    ) -> tuple[Tensor, Tensor, Tensor]:                        # (B, C, H, W)
        """The loss, and its terms -log p(x|z) and KL, each a mean over images and pixels' values.

        `beta` weighs the KL term. Raises ValueError for sizes that are no multiple of `factor`.
        """
        nats, kl = self.terms(x, self.logits(x), temperature, hard)
        return nats + beta * kl, nats, kl                      # Eq. 1, negated

    def terms(
        self, x: Tensor, logits: Tensor, temperature: float, hard: bool = False
    ) -> tuple[Tensor, Tensor]:
        """The two terms of images (B, C, H, W) whose codes have these logits (B, K, h, w)."""
        z = relaxed(logits, temperature, hard)                 # (B, K, h, w)
        nats = -log_laplace(mapped(x), wide(self.decoder(z))).mean()
        kl = divergence(logits).sum((1, 2)).mean() / x[0].numel()
        return nats, kl
    # fmt: on

    def logits(self, x: Tensor) -> Tensor:
        """Logits (B, K, h, w), float32 or wider, of the codes of images (B, C, H, W)."""
        if x.shape[2] % self.factor or x.shape[3] % self.factor:
            size = f"{x.shape[3]}x{x.shape[2]}"
            raise ValueError(f"images of {size} pixels can't be cut into squares of {self.factor}")
        return wide(self.encoder(mapped(x)))

    @torch.no_grad()
    def spread(self, x: Tensor, deviation: float) -> None:
        """Lets each code stand for a place of images x (B, C, H, W), drawn at random: the nearer
        the encoder's features of another place, the larger its logit; `deviation` is the std of a
        place's logits. The decoder begins with like inputs for like codes, of std 1.

        As it begins otherwise, all codes are alike for all images, and training picks a few.
        """
        last, first = self.encoder.blocks.output, self.decoder.blocks.input
        features = last.relu(self.encoder.blocks[:-1](mapped(x)))
        features = features.movedim(1, 3).flatten(0, 2)  # (N, D)
        middle = features.mean(0)
        drawn = torch.randperm(len(features), device=x.device)
        chosen = drawn.repeat(-(-self.num_codes // len(drawn)))[: self.num_codes]
        apart = features[chosen] - middle  # (K, D)
        bias = -apart.square().sum(1) / 2
        logits = (features - middle) @ apart.T + bias  # (N, K), of -distance² / 2
        scale = deviation / logits.std(1).mean().clamp(min=1e-6)
        last.conv.w.copy_(scale * apart[..., None, None])
        last.conv.b.copy_(scale * (bias - apart @ middle))
        inputs = torch.randn(len(first.w), apart.shape[1]).to(apart) @ apart.T
        first.w.copy_((inputs / inputs.std().clamp(min=1e-6))[..., None, None])

    def encode(self, x: Tensor) -> Tensor:
        """The likeliest codes (B, h, w) of images (B, C, H, W): what the transformer learns."""
        return self.logits(x).argmax(1)

    def decode(self, codes: Tensor) -> Tensor:
        """Images (B, C, H, W), from 0 to 1, of codes (B, h, w): the medians of their pixels."""
        first, rest = self.decoder.blocks[0], self.decoder.blocks[1:]
        x = F.embedding(codes, first.w[:, :, 0, 0].T) + first.b  # a 1x1 convolution of one-hots
        mean = rest(x.permute(0, 3, 1, 2).contiguous()).chunk(2, 1)[0]
        return unmapped(mean.to(first.w.dtype).sigmoid())

    def reconstruct(self, x: Tensor) -> Tensor:
        """Images through their likeliest codes and back."""
        return self.decode(self.encode(x))


def wide(x: Tensor) -> Tensor:
    """At least float32: what autocast made narrower, as it was."""
    return x if x.dtype == torch.float64 else x.float()


def mapped(x: Tensor) -> Tensor:
    """Pixels from 0 to 1 as the networks see them, from EPS to 1 - EPS (App. A.3, Eq. 3)."""
    return (1 - 2 * EPS) * x + EPS


def unmapped(x: Tensor) -> Tensor:
    """The inverse of `mapped`, at least 0 and at most 1."""
    return ((x - EPS) / (1 - 2 * EPS)).clamp(0, 1)


def relaxed(logits: Tensor, temperature: float, hard: bool = False) -> Tensor:
    """Mixtures of codes (B, K, h, w) drawn from their logits by the Gumbel-softmax.

    With `hard` the values are the likeliest code alone, and the gradient is the mixture's.
    """
    noise = -torch.empty_like(logits).exponential_().log()  # Gumbel(0, 1)
    z = ((logits + noise) / temperature).softmax(1)
    if not hard:
        return z
    chosen = torch.zeros_like(z).scatter(1, z.argmax(1, keepdim=True), 1.0)
    return chosen + (z - z.detach())  # the value of one, the gradient of the other


def divergence(logits: Tensor) -> Tensor:
    """KL(q || uniform) of each place (B, h, w), in nats, from logits (B, K, h, w)."""
    log_q = logits.log_softmax(1)
    return (log_q.exp() * log_q).sum(1) + math.log(logits.shape[1])


def log_laplace(x: Tensor, out: Tensor) -> Tensor:
    """log p of mapped pixels x (B, C, H, W): logits that are Laplace-distributed (App. A.3, Eq. 2).

    `out` (B, 2C, H, W) holds their means and the logarithms of their scales. A normal or Laplace
    distribution of the pixels themselves would reach beyond 0 and 1.
    """
    mean, log_scale = out.chunk(2, 1)
    apart = (x.logit() - mean).abs() / log_scale.exp()
    return -apart - log_scale - math.log(2) - x.log() - (1 - x).log()


def dvae(num_codes: int = 8192, **settings) -> DVAE:
    """The paper's, factor 8: an encoder of 53,786,240 and a decoder of 43,829,766 parameters."""
    return DVAE(num_codes, **settings)


def dvae_small(num_codes: int = 256, factor: int = 4, **settings) -> DVAE:
    """Ours, for minutes of one machine: with factor 4 there are 8 x 8 codes for 32 x 32 pixels.

    Raises ValueError for a factor that is no power of two.
    """
    if factor < 1 or factor & (factor - 1):
        raise ValueError(f"pixels are halved from group to group, so no code stands for {factor}")
    groups = factor.bit_length()
    small = dict(width=32, num_groups=groups, num_blocks=1, first_width=32, gain=1.0)
    return DVAE(num_codes, **small | settings)
