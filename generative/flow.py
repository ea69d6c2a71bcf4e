"""RealNVP: density estimation with invertible networks (Dinh, Sohl-Dickstein, Bengio 2016,
arXiv:1605.08803).

A chain of steps that can each be undone turns an image into what looks like normal noise. Its
log-likelihood is, exactly, that of the noise plus the log-determinant of the chain's Jacobian; run
backwards, the chain makes images. A coupling keeps half of its input, and scales and shifts the
other half by what a network makes of the first: so inverse and determinant cost next to nothing.

Shapes: B batch, C channels, H and W pixels, D numbers in all. Pixels are from 0 to 1.

Departures: a checkerboard's kept half is folded to half the resolution, (2C, H/2, W/2), where the
paper's network sees the full one with zeros between: the same split for a quarter of the work. No
batch norm as a step of the chain; instead each network's last layer starts at zero, and so the
chain as the identity. That in the networks normalises, as usual, by the batch in training (so that
only an evaluated density is one of a single image), by running averages after. The logit is of a +
(1 - 2a)x, a = 0.05: the paper's a + (1 - a)x is unbounded at white. All networks have one width,
and scales go on down to 4 pixels (from 28: to 7, which have no checkerboard of halves, so that the
last four couplings take channels): the paper doubles the width at each scale, which puts most
weights into the last, and halves CIFAR-10's images only once. No penalty on the scales of the
weight norm (5e-5).
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

ALPHA = 0.05  # of the logit


def checkerboard(x: Tensor) -> tuple[Tensor, Tensor]:
    """Pixels (B, C, H, W) to the black and the white, (B, 2C, H/2, W/2) each (Fig. 3, left)."""
    a, b, c, d = F.pixel_unshuffle(x, 2).unflatten(1, (-1, 4)).unbind(2)  # of each 2x2 square
    return torch.cat([a, d], 1), torch.cat([b, c], 1)


def join_checkerboard(black: Tensor, white: Tensor) -> Tensor:
    """The inverse of `checkerboard`."""
    (a, d), (b, c) = black.chunk(2, 1), white.chunk(2, 1)
    return F.pixel_shuffle(torch.stack([a, b, c, d], 2).flatten(1, 2), 2)


class Coupling(nn.Module):
    """Half of the input passes, the other half is scaled by exp(s) and shifted by t (Eq. 7 and 8).

    `network` makes of the half that passes twice its channels: s, before its tanh and scale, and t.
    The halves are those of the channels, or of a checkerboard (Fig. 3); `swap` exchanges them.
    """

    def __init__(self, network: nn.Module, shape: tuple[int, ...], swap: bool, board: bool = False):
        super().__init__()
        self.network, self.swap, self.board = network, swap, board
        self.scale = nn.Parameter(torch.ones(shape))

    def parts(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The half that passes, the other, s and t."""
        kept, changed = checkerboard(x) if self.board else x.chunk(2, 1)
        if self.swap:
            kept, changed = changed, kept
        s, t = self.network(kept).to(x.dtype).chunk(2, 1)  # from bf16
        return kept, changed, self.scale * s.tanh(), t

    def join(self, kept: Tensor, changed: Tensor) -> Tensor:
        """The inverse of the split."""
        both = (changed, kept) if self.swap else (kept, changed)
        return join_checkerboard(*both) if self.board else torch.cat(both, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, ...) to the same, and the log-determinant (B,), the sum of s."""
        kept, changed, s, t = self.parts(x)
        return self.join(kept, changed * s.exp() + t), s.flatten(1).sum(1)

    def inverse(self, y: Tensor) -> Tensor:
        """Undoes `forward`."""
        kept, changed, s, t = self.parts(y)
        return self.join(kept, (changed - t) * (-s).exp())


def follow(couplings: nn.ModuleList, x: Tensor) -> tuple[Tensor, Tensor]:
    """One coupling after another: what comes out, and the sum of the log-determinants (B,)."""
    log_det = x.new_zeros(len(x))
    for coupling in couplings:
        x, change = coupling(x)
        log_det = log_det + change
    return x, log_det


def retrace(couplings: nn.ModuleList, y: Tensor) -> Tensor:
    """Undoes `follow`."""
    for coupling in reversed(couplings):
        y = coupling.inverse(y)
    return y


class Block(nn.Module):
    """A residual block of two weight-normalised 3x3 convolutions, each after a batch norm."""

    def __init__(self, width: int):
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)
        self.conv1 = weight_norm(nn.Conv2d(width, width, 3, padding=1))
        self.conv2 = weight_norm(nn.Conv2d(width, width, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        """(B, width, H, W) to the same."""
        return x + self.conv2(F.relu(self.norm2(self.conv1(F.relu(self.norm1(x))))))


class Last(nn.Conv2d):
    """A convolution that starts at zero, always in fp32: bf16's s and t cost 0.02 bits of MNIST."""

    def reset_parameters(self) -> None:
        """All zeros."""
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, width, H, W) to s and t, (B, 2C, H, W)."""
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x.to(self.weight.dtype))


def convolutions(channels: int, width: int, num_blocks: int) -> nn.Sequential:
    """The network of a coupling on maps with `channels` (Sec. 4.1)."""
    first = weight_norm(nn.Conv2d(channels, width, 3, padding=1))
    last = Last(width, 2 * channels, 3, padding=1)
    return nn.Sequential(first, *(Block(width) for _ in range(num_blocks)), nn.ReLU(), last)


def chain(channels: int, width: int, num_blocks: int, length: int, board: bool) -> nn.ModuleList:
    """So many couplings, halves of `channels`, that change one half and the other in turn."""
    return nn.ModuleList(
        Coupling(convolutions(channels, width, num_blocks), (channels, 1, 1), bool(k % 2), board)
        for k in range(length)
    )


class Scale(nn.Module):
    """One scale (Sec. 3.6): 3 checkerboards, a squeeze, 3 channel masks, and half of it leaves.

    The half is a checkerboard's white, which the boards changed last, given the black, which goes
    on. The paper doesn't say which; its authors' code divides so too. Where the half that was
    changed last went on instead, a first epoch of MNIST ended 0.1 bits higher.
    """

    def __init__(self, channels: int, width: int, num_blocks: int):
        super().__init__()
        sizes = 2 * channels, width, num_blocks
        self.boards, self.channels = chain(*sizes, 3, True), chain(*sizes, 3, False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # (B, C, H, W)
        """Two halves, the one that leaves and the one that goes on, and the log-determinant."""
        x, log_det = follow(self.boards, x)
        x, change = follow(self.channels, F.pixel_unshuffle(x, 2))  # (B, 4C, H/2, W/2), squeezed
        goes_on, leaves = checkerboard(F.pixel_shuffle(x, 2))  # (B, 2C, H/2, W/2) each
        return leaves, goes_on, log_det + change

    def inverse(self, left: Tensor, rest: Tensor) -> Tensor:
        """Undoes `forward`."""
        x = retrace(self.channels, F.pixel_unshuffle(join_checkerboard(rest, left), 2))
        return retrace(self.boards, F.pixel_shuffle(x, 2))


class Flow(nn.Module):
    """What flows share: `encode` to noise (B, D) with the log-determinant (B,), and its inverse,
    `from_codes`."""

    infers, prior, straight = True, True, True  # see model.py
    shape: tuple[int, ...]

    def log_prob(self, x: Tensor) -> Tensor:
        """The log-likelihood (B,) in nats, a density (Eq. 3)."""
        z, log_det = self.encode(x)
        return log_det - (z.square() + math.log(2 * math.pi)).sum(1) / 2

    def to_codes(self, x: Tensor) -> Tensor:
        """The noise (B, D) that examples become."""
        return self.encode(x)[0]

    def draw_codes(self, n: int) -> Tensor:
        """Noise (n, D)."""
        return torch.randn(n, math.prod(self.shape), device=next(self.parameters()).device)

    def sample(self, n: int) -> Tensor:
        """n examples, of noise."""
        return self.from_codes(self.draw_codes(n))


class RealNVP(Flow):
    """The multi-scale flow of images. Dequantised images are from 0 to 1, without bounds."""

    def __init__(self, channels: int, size: int, width: int, num_blocks: int):
        super().__init__()
        self.shape, self.scales = (channels, size, size), nn.ModuleList()
        self.sides: list[tuple[int, int]] = []  # channels and side of what leaves each scale
        while size % 2 == 0 and size >= 8:
            self.scales.append(Scale(channels, width, num_blocks))
            channels, size = 2 * channels, size // 2
            self.sides.append((channels, size))
        even = size % 2 == 0  # 7 pixels have no checkerboard of halves
        self.last = chain(2 * channels if even else channels // 2, width, num_blocks, 4, even)
        self.sides.append((channels, size))

    def forward(self, x: Tensor) -> Tensor:
        """The loss: bits a dimension of images (B, C, H, W), averaged."""
        return self.measures(x)["bits"].mean()

    def measures(self, x: Tensor) -> dict[str, Tensor]:
        """For each image (B,): bits a dimension, those of its 256 grey values."""
        size = math.prod(self.shape)
        noisy = (255 * x + torch.rand_like(x)) / 256  # uniform dequantisation (Sec. 3.1)
        return {"bits": 8 - self.log_prob(noisy) / (size * math.log(2))}

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Dequantised images (B, C, H, W) to noise (B, D), and the log-determinant (B,)."""
        squeezed = ALPHA + (1 - 2 * ALPHA) * x
        x = squeezed.log() - (-squeezed).log1p()  # the logit
        stretch = math.log(1 - 2 * ALPHA) - squeezed.log() - (-squeezed).log1p()
        log_det, found = stretch.flatten(1).sum(1), []
        for scale in self.scales:
            left, x, change = scale(x)
            log_det = log_det + change
            found.append(left.flatten(1))
        x, change = follow(self.last, x)
        return torch.cat([*found, x.flatten(1)], 1), log_det + change

    def to_codes(self, x: Tensor) -> Tensor:
        """The noise (B, D) that images become, from the middle of their grey values."""
        return self.encode((255 * x + 0.5) / 256)[0]

    def from_codes(self, z: Tensor) -> Tensor:
        """Noise (B, D) to images (B, C, H, W), of 256 grey values from 0 to 1."""
        return (256 * self.undo(z)).floor().clamp(0, 255) / 255

    def undo(self, z: Tensor) -> Tensor:
        """The inverse of `encode`."""
        lengths = [channels * side**2 for channels, side in self.sides]
        parts = [
            part.reshape(-1, channels, side, side)
            for part, (channels, side) in zip(z.split(lengths, 1), self.sides, strict=True)
        ]
        x = retrace(self.last, parts.pop())
        for scale, part in zip(reversed(self.scales), reversed(parts), strict=True):
            x = scale.inverse(part, x)
        return (x.sigmoid() - ALPHA) / (1 - 2 * ALPHA)


class RealNVP2d(Flow):
    """Couplings that move the two coordinates of points (B, 2) in turn; our sizes."""

    def __init__(self, width: int = 64, num_couplings: int = 8):
        super().__init__()
        self.shape, self.couplings = (2,), nn.ModuleList()
        for step in range(num_couplings):
            last = nn.Linear(width, 2)
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
            layers = nn.Linear(1, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), last
            self.couplings.append(Coupling(nn.Sequential(*layers), (1,), bool(step % 2)))

    def forward(self, x: Tensor) -> Tensor:
        """The loss: the negative log-likelihood of points (B, 2) in nats, averaged."""
        return -self.log_prob(x).mean()

    def measures(self, x: Tensor) -> dict[str, Tensor]:
        """For each point (B,): the log-likelihood in nats."""
        return {"log_likelihood": self.log_prob(x)}

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Points (B, 2) to noise (B, 2), and the log-determinant (B,)."""
        return follow(self.couplings, x)

    def from_codes(self, z: Tensor) -> Tensor:
        """The inverse of `encode`: noise (B, 2) to points (B, 2)."""
        return retrace(self.couplings, z)


def realnvp(channels: int = 3, size: int = 32, width: int = 64, num_blocks: int = 8) -> RealNVP:
    """Blocks and width of Sec. 4.1 for CIFAR-10: 8 residual blocks of 64 channels in each network.

    Raises ValueError for a size that can't be halved twice.
    """
    if size % 4:
        raise ValueError(f"it halves images twice: {size} pixels are no multiple of 4")
    return RealNVP(channels, size, width, num_blocks)


realnvp2d = RealNVP2d
