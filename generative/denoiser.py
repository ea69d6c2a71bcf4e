"""The U-Net that DDPM denoises with (Ho, Jain, Abbeel 2020, arXiv:2006.11239, Appendix B).

U-Net's way down, way up and skips, with residual blocks, group norm, self-attention at the lower
resolutions, and the time, which every block is told. It answers with the noise in an image.

Shapes: B batch, C channels, H and W pixels, E numbers of a time's embedding.

The names are diffusers'; where the released weights have older ones, train.py's --weights renames
them. Departure: with `patch` above 1 squares of that many pixels are folded into channels first,
and its answer is unfolded: the paper's has 1.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ResBlock(nn.Module):
    """Norm, SiLU, convolution, twice, with the time added between, and a shortcut (Appendix B)."""

    def __init__(self, inputs: int, outputs: int, embedding: int, groups: int, dropout: float):
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, inputs, eps=1e-6)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.time_emb_proj = nn.Linear(embedding, outputs)
        self.norm2 = nn.GroupNorm(groups, outputs, eps=1e-6)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """Maps (B, inputs, H, W) and times (B, E) to (B, outputs, H, W)."""
        out = self.conv1(F.silu(self.norm1(x))) + self.time_emb_proj(time)[:, :, None, None]
        return self.conv_shortcut(x) + self.conv2(self.dropout(F.silu(self.norm2(out))))


class Attention(nn.Module):
    """Self-attention over all places of a map, one head."""

    def __init__(self, channels: int, groups: int):
        super().__init__()
        self.group_norm = nn.GroupNorm(groups, channels, eps=1e-6)
        self.to_q, self.to_k, self.to_v = (nn.Linear(channels, channels) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    # fmt: off
    def forward(self, x: Tensor) -> Tensor:                          # (B, C, H, W)
        """Maps to maps of the same shape."""
        tokens = self.group_norm(x).flatten(2).transpose(1, 2)       # (B, HW, C)
        q, k, v = self.to_q(tokens), self.to_k(tokens), self.to_v(tokens)
        out = F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0]
        return x + self.to_out[0](out).transpose(1, 2).reshape(x.shape)
    # fmt: on


class Resample(nn.Module):
    """Half the resolution by a strided convolution, or twice by repeating pixels before one."""

    def __init__(self, channels: int, up: bool):
        super().__init__()
        self.up = up
        self.conv = nn.Conv2d(channels, channels, 3, stride=1 if up else 2, padding=int(up))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to half or twice H and W."""
        x = F.interpolate(x, scale_factor=2.0) if self.up else F.pad(x, (0, 1, 0, 1))
        return self.conv(x)


class Stage(nn.Module):
    """The blocks of one resolution on the way down or up, and the change to the next."""

    def __init__(self, inputs: list[int], width: int, attention: bool, up: bool, last: bool, **kw):
        super().__init__()
        self.resnets = nn.ModuleList(ResBlock(count, width, **kw) for count in inputs)
        if attention:
            self.attentions = nn.ModuleList(Attention(width, kw["groups"]) for _ in inputs)
        if not last:
            resample = nn.ModuleList([Resample(width, up)])
            self.add_module("upsamplers" if up else "downsamplers", resample)
        self.attention, self.up, self.last = attention, up, last

    def forward(self, x: Tensor, time: Tensor, maps: list[Tensor]) -> Tensor:
        """Going down it adds what it makes to `maps`, going up it takes them back, last first."""
        for number, block in enumerate(self.resnets):
            x = block(torch.cat([x, maps.pop()], 1) if self.up else x, time)
            x = self.attentions[number](x) if self.attention else x
            maps += [] if self.up else [x]
        if not self.last:
            x = (self.upsamplers if self.up else self.downsamplers)[0](x)
            maps += [] if self.up else [x]
        return x


class Middle(nn.Module):
    """Block, attention, block at the lowest resolution."""

    def __init__(self, width: int, **kw):
        super().__init__()
        self.resnets = nn.ModuleList(ResBlock(width, width, **kw) for _ in range(2))
        self.attentions = nn.ModuleList([Attention(width, kw["groups"])])

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """(B, C, H, W) to the same."""
        return self.resnets[1](self.attentions[0](self.resnets[0](x, time)), time)


class TimeEmbedding(nn.Module):
    """Sinusoids of the time, as the Transformer has them, and two layers."""

    def __init__(self, width: int):
        super().__init__()
        self.width = width
        self.linear_1, self.linear_2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, 4 * width)

    def forward(self, times: Tensor) -> Tensor:
        """Times (B,) to (B, E), E four times the width, ready for the blocks."""
        half = self.width // 2
        places = torch.arange(half, dtype=torch.float32, device=times.device)
        angles = times[:, None] * torch.exp(-math.log(10_000) * places / (half - 1))
        waves = torch.cat([angles.sin(), angles.cos()], 1).to(self.linear_1.weight.dtype)
        return F.silu(self.linear_2(F.silu(self.linear_1(waves))))


class UNet(nn.Module):
    """Images with noise (B, C, H, W) and times (B,) to the noise in them (Appendix B).

    `width` times `multiples` are the channels of each resolution, `attention` lists those that have
    it by their numbers (0 is the finest), `depth` counts the blocks of each on the way down, one
    fewer than on the way up.
    """

    def __init__(
        self,
        channels: int,
        width: int,
        multiples: tuple[int, ...],
        attention: tuple[int, ...],
        depth: int,
        groups: int,
        dropout: float,
        patch: int = 1,
    ):
        super().__init__()
        self.patch = patch
        kw = dict(embedding=4 * width, groups=groups, dropout=dropout)
        widths, top = [width * m for m in multiples], len(multiples) - 1
        self.conv_in = nn.Conv2d(channels * patch**2, width, 3, padding=1)
        self.time_embedding = TimeEmbedding(width)
        self.down_blocks, self.up_blocks = nn.ModuleList(), nn.ModuleList()
        across, count = [width], width  # channels of the maps that cross over
        for level, w in enumerate(widths):
            inputs = [count] + [w] * (depth - 1)
            stage = Stage(inputs, w, level in attention, up=False, last=level == top, **kw)
            self.down_blocks.append(stage)
            across += [w] * (depth + (level < top))
            count = w
        self.mid_block = Middle(count, **kw)
        for level in range(top, -1, -1):
            inputs = [
                before + across.pop() for before in [count] + [widths[level]] * depth
            ]  # one block more than on the way down
            stage = Stage(inputs, widths[level], level in attention, True, level == 0, **kw)
            self.up_blocks.append(stage)
            count = widths[level]
        self.conv_norm_out = nn.GroupNorm(groups, width, eps=1e-6)
        self.conv_out = nn.Conv2d(width, channels * patch**2, 3, padding=1)
        for module in self.modules():  # the blocks begin as the identity, as in the authors' code
            last = {ResBlock: "conv2", UNet: "conv_out"}.get(type(module))
            layer = getattr(module, last) if last else getattr(module, "to_out", [None])[0]
            if layer is not None:
                nn.init.zeros_(layer.weight)
                nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, times: Tensor) -> Tensor:
        """(B, C, H, W) and (B,) to (B, C, H, W)."""
        x = F.pixel_unshuffle(x, self.patch)
        time, x = self.time_embedding(times), self.conv_in(x)
        maps = [x]
        for stage in self.down_blocks:
            x = stage(x, time, maps)
        x = self.mid_block(x, time)
        for stage in self.up_blocks:
            x = stage(x, time, maps)
        return F.pixel_shuffle(self.conv_out(F.silu(self.conv_norm_out(x))), self.patch)
