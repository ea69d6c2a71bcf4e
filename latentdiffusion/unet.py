"""The U-Net that denoises latents and is told a text (Rombach et al. 2021, Sec. 3.3, App. E.2.1).

DDPM's U-Net, but that its attention layers are whole Transformer blocks: the places of a map attend
to one another, then to the tokens of the text (cross-attention, Eq. of Sec. 3.3), then go through a
gated two-layer network.

Shapes: B batch, C channels, H and W places of the latents, S tokens of the text, D their width, E
numbers of a time's embedding, h heads.

The names are diffusers'. With `pooled` the network has no cross-attention: it is told the mean of
the text's tokens, added to the time. That is ours, for the claim `conditioning`.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentdiffusion.layers import Attention, Downsample, ResBlock, Upsample, zero


class GEGLU(nn.Module):
    """One half of a layer's outputs, times the GELU of the other half."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.proj = nn.Linear(inputs, 2 * outputs)

    def forward(self, x: Tensor) -> Tensor:
        """(..., inputs) to (..., outputs)."""
        value, gate = self.proj(x).chunk(2, -1)
        return value * F.gelu(gate)


class FeedForward(nn.Module):
    """A gated layer, four times as wide, and one back."""

    def __init__(self, width: int, dropout: float):
        super().__init__()
        self.net = nn.Sequential(
            GEGLU(width, 4 * width), nn.Dropout(dropout), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) to the same."""
        return self.net(x)


class Block(nn.Module):
    """Self-attention, cross-attention (if there is a `context`), feed-forward; norms come first."""

    def __init__(self, width: int, num_heads: int, context: int | None, dropout: float):
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn1 = Attention(width, num_heads, dropout=dropout)
        if context:
            self.norm2 = nn.LayerNorm(width)
            self.attn2 = Attention(width, num_heads, context, dropout)
        self.crosses = bool(context)
        self.norm3 = nn.LayerNorm(width)
        self.ff = FeedForward(width, dropout)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """(B, T, width) and a text (B, S, D) to (B, T, width)."""
        x = x + self.attn1(self.norm1(x))
        if self.crosses:
            x = x + self.attn2(self.norm2(x), context)
        return x + self.ff(self.norm3(x))


class SpatialTransformer(nn.Module):
    """Transformer blocks over the places of a map, between two projections, with a shortcut.

    `linear`: the projections are linear layers, as in Stable Diffusion 2; else 1x1 convolutions.
    """

    def __init__(self, channels: int, num_heads: int, groups: int, linear: bool, depth: int, **kw):
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, eps=1e-6)
        project = nn.Linear if linear else lambda inputs, outputs: nn.Conv2d(inputs, outputs, 1)
        self.proj_in = project(channels, channels)
        self.transformer_blocks = nn.ModuleList(
            Block(channels, num_heads, **kw) for _ in range(depth)
        )
        self.proj_out = project(channels, channels)
        self.linear = linear
        zero(self.proj_out)

    # fmt: off
    def forward(self, x: Tensor, context: Tensor) -> Tensor:          # (B, C, H, W), (B, S, D)
        """Maps to maps of the same shape."""
        out = self.norm(x)
        out = out if self.linear else self.proj_in(out)
        out = out.flatten(2).transpose(1, 2)                          # (B, HW, C)
        out = self.proj_in(out) if self.linear else out
        for block in self.transformer_blocks:
            out = block(out, context)
        out = self.proj_out(out) if self.linear else out
        out = out.transpose(1, 2).reshape(x.shape)
        return x + (out if self.linear else self.proj_out(out))
    # fmt: on


class Stage(nn.Module):
    """The blocks of one resolution on the way down or up, and the change to the next."""

    def __init__(
        self, inputs: list[int], width: int, attention: dict | None, up: bool, last: bool, **kw
    ):
        super().__init__()
        self.resnets = nn.ModuleList(ResBlock(count, width, **kw) for count in inputs)
        if attention:
            self.attentions = nn.ModuleList(SpatialTransformer(width, **attention) for _ in inputs)
        if up and not last:
            self.upsamplers = nn.ModuleList([Upsample(width)])
        elif not last:
            self.downsamplers = nn.ModuleList([Downsample(width, lopsided=False)])
        self.attends, self.up, self.last = bool(attention), up, last

    def forward(self, x: Tensor, time: Tensor, context: Tensor, maps: list[Tensor]) -> Tensor:
        """Going down it adds what it makes to `maps`, going up it takes them back, last first."""
        for number, block in enumerate(self.resnets):
            x = block(torch.cat([x, maps.pop()], 1) if self.up else x, time)
            x = self.attentions[number](x, context) if self.attends else x
            maps += [] if self.up else [x]
        if not self.last:
            x = (self.upsamplers if self.up else self.downsamplers)[0](x)
            maps += [] if self.up else [x]
        return x


class Middle(nn.Module):
    """Block, Transformer, block at the lowest resolution."""

    def __init__(self, width: int, attention: dict, **kw):
        super().__init__()
        self.resnets = nn.ModuleList(ResBlock(width, width, **kw) for _ in range(2))
        self.attentions = nn.ModuleList([SpatialTransformer(width, **attention)])

    def forward(self, x: Tensor, time: Tensor, context: Tensor) -> Tensor:
        """(B, C, H, W) to the same."""
        return self.resnets[1](self.attentions[0](self.resnets[0](x, time), context), time)


class TimeEmbedding(nn.Module):
    """Cosines and sines of the time, and two layers."""

    def __init__(self, width: int):
        super().__init__()
        self.width = width
        self.linear_1, self.linear_2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, 4 * width)

    def forward(self, times: Tensor) -> Tensor:
        """Times (B,) to (B, E), E four times the width."""
        half = self.width // 2
        places = torch.arange(half, dtype=torch.float32, device=times.device)
        angles = times[:, None].float() * torch.exp(-math.log(10_000) * places / half)
        waves = torch.cat([angles.cos(), angles.sin()], 1).to(self.linear_1.weight.dtype)
        return self.linear_2(F.silu(self.linear_1(waves)))


class UNet(nn.Module):
    """Latents with noise (B, C, H, W), times (B,) and a text (B, S, D) to the noise in them.

    `widths` are the channels of each resolution, `attention` lists those that have Transformers by
    their numbers (0 is the finest; the middle always has one), `depth` counts the blocks of each on
    the way down, one fewer than on the way up. `heads` is one number, or one a resolution.
    """

    def __init__(
        self,
        channels: int,
        widths: tuple[int, ...],
        attention: tuple[int, ...],
        depth: int,
        heads: int | tuple[int, ...],
        context: int,
        groups: int = 32,
        dropout: float = 0.0,
        linear: bool = False,
        layers: int = 1,
        outputs: int | None = None,
        pooled: bool = False,
    ):
        super().__init__()
        heads = (heads,) * len(widths) if isinstance(heads, int) else tuple(heads)
        self.factor = 2 ** (len(widths) - 1)  # latents have to be a multiple of it
        self.context, top = context, len(widths) - 1
        kw = dict(embedding=4 * widths[0], groups=groups, dropout=dropout, eps=1e-5)
        shared = dict(groups=groups, linear=linear, depth=layers, dropout=dropout)
        shared |= dict(context=None if pooled else context)
        with_heads = [shared | dict(num_heads=count) for count in heads]
        blocks = [kind if level in attention else None for level, kind in enumerate(with_heads)]
        self.conv_in = nn.Conv2d(channels, widths[0], 3, padding=1)
        self.time_embedding = TimeEmbedding(widths[0])
        if pooled:
            self.text_embedding = nn.Linear(context, 4 * widths[0])
        self.pooled = pooled
        self.down_blocks, self.up_blocks = nn.ModuleList(), nn.ModuleList()
        across, count = [widths[0]], widths[0]  # channels of the maps that cross over
        for level, width in enumerate(widths):
            inputs = [count] + [width] * (depth - 1)
            stage = Stage(inputs, width, blocks[level], up=False, last=level == top, **kw)
            self.down_blocks.append(stage)
            across += [width] * (depth + (level < top))
            count = width
        self.mid_block = Middle(count, with_heads[-1], **kw)
        for level in range(top, -1, -1):
            width = widths[level]
            inputs = [before + across.pop() for before in [count] + [width] * depth]
            self.up_blocks.append(Stage(inputs, width, blocks[level], True, level == 0, **kw))
            count = width
        self.conv_norm_out = nn.GroupNorm(groups, count, eps=1e-5)
        self.conv_out = nn.Conv2d(count, outputs or channels, 3, padding=1)
        zero(self.conv_out, *(m.conv2 for m in self.modules() if isinstance(m, ResBlock)))

    def forward(self, x: Tensor, times: Tensor, context: Tensor) -> Tensor:
        """(B, C, H, W), (B,) and (B, S, D) to (B, C, H, W)."""
        time = self.time_embedding(times)
        if self.pooled:
            time = time + self.text_embedding(context.mean(1))
        time = F.silu(time)  # once for all blocks
        x = self.conv_in(x)
        maps = [x]
        for stage in self.down_blocks:
            x = stage(x, time, context, maps)
        x = self.mid_block(x, time, context)
        for stage in self.up_blocks:
            x = stage(x, time, context, maps)
        return self.conv_out(F.silu(self.conv_norm_out(x)))
