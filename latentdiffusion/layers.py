"""Layers that the autoencoders and the U-Net share.

Shapes: B batch, C channels, H and W pixels (of an image or of latents), T tokens, D width, E
numbers of a time's embedding, h heads.

The names are diffusers', so that published weights load.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SCORES = 1 << 26  # numbers of an attention's scores that may be held at a time: 256 MiB in float32
KEPT = 1 << 24  # those that may be kept for the way back: 32 MiB in bfloat16


class ResBlock(nn.Module):
    """Norm, SiLU, convolution, twice, and a shortcut; with an `embedding` width the time is added
    between the two."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        groups: int,
        eps: float,
        embedding: int = 0,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, inputs, eps=eps)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.time_emb_proj = nn.Linear(embedding, outputs) if embedding else None
        self.norm2 = nn.GroupNorm(groups, outputs, eps=eps)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, time: Tensor | None = None) -> Tensor:
        """Maps (B, inputs, H, W) and times (B, E), after their SiLU, to (B, outputs, H, W)."""
        out = self.conv1(F.silu(self.norm1(x)))
        if self.time_emb_proj is not None:
            out = out + self.time_emb_proj(time)[:, :, None, None]
        return self.conv_shortcut(x) + self.conv2(self.dropout(F.silu(self.norm2(out))))


class Downsample(nn.Module):
    """Half the resolution by a strided convolution.

    The U-Net pads all sides by 1, the autoencoders (`lopsided`) only the right and the lower one.
    """

    def __init__(self, channels: int, lopsided: bool):
        super().__init__()
        self.lopsided = lopsided
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=int(not lopsided))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, H/2, W/2)."""
        return self.conv(F.pad(x, (0, 1, 0, 1)) if self.lopsided else x)


class Upsample(nn.Module):
    """Twice the resolution: pixels are repeated, and a convolution smooths them."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, 2H, 2W)."""
        return self.conv(F.interpolate(x, scale_factor=2.0))


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Softmax attention of q (B, h, T, d) over k and v (B, h, S, d): (B, h, T, d).

    Queries go through in slices, so that at most SCORES scores are held at a time, where the
    machine's kernel holds them at all: large images have many tokens. The answer is the same.
    """
    if torch.compiler.is_exporting():  # slices are of one batch size
        return F.scaled_dot_product_attention(q, k, v)
    count = q.shape[:3].numel() * k.shape[2]
    if q.is_cpu and q.dtype == torch.bfloat16 and count <= KEPT:
        with torch.autocast("cpu", enabled=False):  # takes half of the time of torch's kernel
            return (q * q.shape[3] ** -0.5 @ k.transpose(2, 3)).softmax(-1) @ v
    rows = max(1, SCORES // (q.shape[0] * q.shape[1] * k.shape[2]))
    if rows >= q.shape[2]:
        return F.scaled_dot_product_attention(q, k, v)
    parts = [F.scaled_dot_product_attention(part, k, v) for part in q.split(rows, 2)]
    return torch.cat(parts, 2)


class Attention(nn.Module):
    """Attention from tokens (B, T, D) to themselves, or to a context (B, S, `context`)."""

    def __init__(self, width: int, num_heads: int, context: int | None = None, dropout: float = 0):
        super().__init__()
        if width % num_heads:
            raise ValueError(f"{num_heads} heads can't share {width} channels")
        self.num_heads = num_heads
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k = nn.Linear(context or width, width, bias=False)
        self.to_v = nn.Linear(context or width, width, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(width, width), nn.Dropout(dropout)])

    # fmt: off
    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:  # (B, T, D), (B, S, C)
        """Tokens to tokens of the same shape."""
        context = x if context is None else context
        q, k, v = (
            layer(given).unflatten(2, (self.num_heads, -1)).transpose(1, 2)  # (B, h, T, D/h)
            for layer, given in ((self.to_q, x), (self.to_k, context), (self.to_v, context))
        )
        out = attend(q, k, v).transpose(1, 2).flatten(2)                    # (B, T, D)
        return self.to_out[1](self.to_out[0](out))
    # fmt: on


class MapAttention(nn.Module):
    """Self-attention over all places of a map, one head, with a norm and a shortcut of its own:
    the autoencoders'."""

    def __init__(self, channels: int, groups: int):
        super().__init__()
        self.group_norm = nn.GroupNorm(groups, channels, eps=1e-6)
        self.to_q, self.to_k, self.to_v = (nn.Linear(channels, channels) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    # fmt: off
    def forward(self, x: Tensor) -> Tensor:                           # (B, C, H, W)
        """Maps to maps of the same shape."""
        tokens = self.group_norm(x).flatten(2).transpose(1, 2)        # (B, HW, C)
        q, k, v = self.to_q(tokens), self.to_k(tokens), self.to_v(tokens)
        out = attend(q[:, None], k[:, None], v[:, None])[:, 0]
        return x + self.to_out[0](out).transpose(1, 2).reshape(x.shape)
    # fmt: on


def zero(*layers: nn.Module) -> None:
    """Weights and biases that begin at zero: a block with such a last layer begins as its
    shortcut."""
    for layer in layers:
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
