"""EfficientNets (Tan and Le 2019, arXiv:1905.11946).

A network gets better when it is deeper, wider, or sees larger images, but each of these alone
soon stops helping. Scaled together by fixed ratios they help each other (Eq. 3): one step of phi
takes 1.2 times the depth, 1.1 times the width and 1.15 times the resolution, for about twice
the multiply-adds. What is scaled is a small network, found by a search (B0, Table 1): inverted
bottlenecks, as in MobileNetV2, with squeeze-and-excitation and swish.

Shapes: B batch, C channels, E channels inside a block, H and W pixels, K classes.

Parameters bear torchvision's names; those of timm's files (`conv_stem`, `blocks.1.0.conv_dw`) are
understood, too. Departures and what the paper leaves open:
- `padding="same"` is TensorFlow's, where the odd pixel of a stride is padded at the end, with the
  eps of 0.001 in batch norm that the authors' weights were trained with. Without it padding is
  symmetric and eps 1e-5 (B5 to B7: 0.001), as in torchvision's weights.
- Batch norm's momentum is the paper's (0.99 there is 0.01 here) for B5 to B7, else torch's 0.1, as
  in torchvision.
- Blocks are left out example by example, each with its own share, as in the authors' code.
- Initial weights are those of the authors' code, but for the last layer's: theirs grow as classes
  get fewer, torch's are as large as theirs for 1,000. (torchvision's depthwise ones are smaller by
  the square root of the channels, which batch norm then undoes.)
"""

import math
import re
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from efficientnet.depthwise import depthwise

STAGES = (  # Table 1: expansion, kernel size, stride, channels, blocks of the stages 2 to 8
    (1, 3, 1, 16, 1),
    (6, 3, 2, 24, 2),
    (6, 5, 2, 40, 2),
    (6, 3, 2, 80, 3),
    (6, 5, 1, 112, 3),
    (6, 5, 2, 192, 4),
    (6, 3, 1, 320, 1),
)
STRIDES = (2, *(stride for _, _, stride, _, _ in STAGES))  # of the stem and the stages
SIZES = {  # the authors' code: width, depth, resolution, dropout
    "efficientnet_b0": (1.0, 1.0, 224, 0.2),
    "efficientnet_b1": (1.0, 1.1, 240, 0.2),
    "efficientnet_b2": (1.1, 1.2, 260, 0.3),
    "efficientnet_b3": (1.2, 1.4, 300, 0.3),
    "efficientnet_b4": (1.4, 1.8, 380, 0.4),
    "efficientnet_b5": (1.6, 2.2, 456, 0.4),
    "efficientnet_b6": (1.8, 2.6, 528, 0.5),
    "efficientnet_b7": (2.0, 3.1, 600, 0.5),
}


def compound(phi: float) -> tuple[float, float, float]:
    """Eq. 3: how many times the width, depth and resolution, for 2**phi times the multiply-adds."""
    return 1.1**phi, 1.2**phi, 1.15**phi


def round_channels(channels: float) -> int:
    """The nearest multiple of 8, but not below nine tenths of `channels`."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded


class Convolution(nn.Conv2d):
    """A convolution without bias, padded symmetrically, or ("same") as TensorFlow does: with stride
    the missing pixels are shared out by the image's size, and the odd one stands at the end.
    """

    def __init__(self, *sizes: int, stride: int = 1, groups: int = 1, padding: str = "symmetric"):
        self.same = padding == "same" and stride > 1  # without stride the two are the same
        pad = 0 if self.same else sizes[2] // 2
        super().__init__(*sizes, stride, pad, groups=groups, bias=False)

    def forward(self, x: Tensor, scale: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        """(B, C_in, H, W) to (B, C_out, H/s, W/s), rounded up; each channel times `scale` (C_out,),
        plus `bias` (C_out,), where these are given."""
        if self.same:
            size, stride = self.kernel_size[0], self.stride[0]
            missing = [max((-(-n // stride) - 1) * stride + size - n, 0) for n in x.shape[:1:-1]]
            x = F.pad(x, [n for m in missing for n in (m // 2, m - m // 2)])
        if self.groups > 1 and scale is None:
            return depthwise(x, self.weight, self.stride[0], self.padding[0])
        weight = self.weight if scale is None else self.weight * scale.view(-1, 1, 1, 1)
        return F.conv2d(x, weight, bias, self.stride, self.padding, groups=self.groups)


class ConvNorm(nn.Sequential):
    """Convolution, batch norm and, unless it is not wanted, swish: x times its sigmoid.

    Where no gradients are wanted the norm's fixed statistics are multiplied into the convolution's
    weights: one pass over the features less, 1.15 times as fast on a CPU.
    """

    def __init__(
        self,
        *sizes: int,
        activation: bool = True,
        norm: Callable[[int], nn.BatchNorm2d] = nn.BatchNorm2d,
        **options,
    ):
        super().__init__(Convolution(*sizes, **options), norm(sizes[1]), *[nn.SiLU()] * activation)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) to (B, C_out, H/s, W/s)."""
        conv, norm, *activation = self
        if norm.training or torch.is_grad_enabled():
            return super().forward(x)
        scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
        x = conv(x, scale, norm.bias - norm.running_mean * scale)
        return F.silu(x, inplace=True) if activation else x


class SqueezeExcitation(nn.Module):
    """Scales each channel by what the means of all channels say (Hu et al. 2018).

    The layers are called, and kept, as 1x1 convolutions, and computed as the linear ones that they
    are: 1.1 times as fast.
    """

    def __init__(self, channels: int, squeezed: int):
        super().__init__()
        self.fc1 = nn.Conv2d(channels, squeezed, 1)
        self.fc2 = nn.Conv2d(squeezed, channels, 1)

    # fmt: off
    def forward(self, x: Tensor) -> Tensor:                                       # (B, E, H, W)
        """Features (B, E, H, W), each channel times a number from 0 to 1."""
        means = x.mean((2, 3))                                                    # (B, E)
        hidden = F.linear(means, self.fc1.weight.flatten(1), self.fc1.bias)       # (B, C_in/4)
        scale = F.linear(F.silu(hidden), self.fc2.weight.flatten(1), self.fc2.bias).sigmoid()
        return x * scale[:, :, None, None]
    # fmt: on


class MBConv(nn.Module):
    """An inverted bottleneck: widened, filtered channel by channel, scaled, narrowed.

    The squeeze is a quarter of what comes *into* the block, not of the widened channels. Where the
    shape stays, the input is added (stochastic depth: in training nothing is added to it for
    a share `drop_path` of the examples).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        expansion: int,
        kernel_size: int,
        stride: int,
        drop_path: float = 0.0,
        excitation: bool = True,
        **options,
    ):
        super().__init__()
        inner = in_channels * expansion
        parts = [ConvNorm(in_channels, inner, 1, **options)] if expansion > 1 else []
        parts.append(ConvNorm(inner, inner, kernel_size, stride=stride, groups=inner, **options))
        if excitation:
            parts.append(SqueezeExcitation(inner, max(1, in_channels // 4)))
        parts.append(ConvNorm(inner, out_channels, 1, activation=False, **options))
        self.block, self.drop_path = nn.Sequential(*parts), drop_path
        self.shortcut = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        """Features (B, C_in, H, W) to (B, C_out, H/s, W/s)."""
        out = self.block(x)
        if not self.shortcut:
            return out
        if self.training and self.drop_path:
            kept = torch.rand(len(x), 1, 1, 1, device=x.device) >= self.drop_path
            out.mul_(kept.to(out.dtype).div_(1 - self.drop_path))  # the mean stays
        return out.add_(x)  # in place: batch norm needs its input only


class EfficientNet(nn.Module):
    """A stem, seven stages of inverted bottlenecks, a 1x1 convolution, a linear layer (Table 1).

    `width` and `depth` multiply the channels and blocks of B0; `strides` are of the stem and the
    stages. `dropout` is of what the linear layer reads; the share of left-out blocks rises from 0
    in the first to nearly `drop_path`. `excitation=False` is without squeeze-and-excitation;
    `padding` is "symmetric" or "same". `eps` (not with "same") and `momentum` are batch norm's.
    """

    def __init__(
        self,
        width: float,
        depth: float,
        num_classes: int,
        dropout: float = 0.2,
        drop_path: float = 0.2,
        excitation: bool = True,
        padding: str = "symmetric",
        eps: float = 1e-5,
        momentum: float = 0.1,
        strides: tuple[int, ...] = STRIDES,
    ):
        super().__init__()
        norm = partial(nn.BatchNorm2d, eps=1e-3 if padding == "same" else eps, momentum=momentum)
        options = dict(padding=padding, norm=norm)
        channels, number = round_channels(32 * width), 0
        parts = [ConvNorm(3, channels, 3, stride=strides[0], **options)]
        total = sum(math.ceil(blocks * depth) for *_, blocks in STAGES)
        for stride, (expansion, size, _, wide, blocks) in zip(strides[1:], STAGES, strict=True):
            stage = []
            for i in range(math.ceil(blocks * depth)):
                sizes = round_channels(wide * width), expansion, size, stride if i == 0 else 1
                share = drop_path * number / total
                stage.append(MBConv(channels, *sizes, share, excitation, **options))
                channels, number = sizes[0], number + 1
            parts.append(nn.Sequential(*stage))
        parts.append(ConvNorm(channels, 4 * channels, 1, **options))
        self.features, self.avgpool = nn.Sequential(*parts), nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(nn.Dropout(dropout), nn.Linear(4 * channels, num_classes))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fan_out = module.out_channels // module.groups * module.kernel_size[0] ** 2
                nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.zeros_(self.classifier[1].bias)
        self.register_load_state_dict_pre_hook(rename)

    # fmt: off
    def forward(self, x: Tensor) -> Tensor:             # (B, 3, H, W)
        """Images (B, 3, H, W) to logits (B, K)."""
        x = self.features(x)                            # (B, C, H/32, W/32); small: H/8
        x = self.avgpool(x).flatten(1)                  # (B, C)
        return self.classifier(x)                       # (B, K)
    # fmt: on


# Names in timm's files, and what stands for them here: of the parts of a block, of those in the
# first stage, which aren't widened, and of what comes before and after the blocks.
PARTS = {
    "conv_pw": "0.0", "bn1": "0.1", "conv_dw": "1.0", "bn2": "1.1", "se.conv_reduce": "2.fc1",
    "se.conv_expand": "2.fc2", "conv_pwl": "3.0", "bn3": "3.1",
}  # fmt: skip
FIRST_PARTS = {
    "conv_dw": "0.0", "bn1": "0.1", "se.conv_reduce": "1.fc1", "se.conv_expand": "1.fc2",
    "conv_pw": "2.0", "bn2": "2.1",
}  # fmt: skip
ENDS = {
    "conv_stem": "features.0.0", "bn1": "features.0.1", "conv_head": "features.8.0",
    "bn2": "features.8.1", "classifier": "classifier.1",
}  # fmt: skip


def current_name(name: str) -> str:
    """A parameter's name here, of one in timm's files; others are left as they are."""
    part, _, kind = name.rpartition(".")
    if part in ENDS:
        return f"{ENDS[part]}.{kind}"
    if match := re.fullmatch(r"blocks\.(\d+)\.(\d+)\.(.+)", part):
        stage, block, layer = int(match[1]), match[2], match[3]
        layer = (PARTS if stage else FIRST_PARTS).get(layer, layer)
        return f"features.{stage + 1}.{block}.block.{layer}.{kind}"
    return name


def rename(model: nn.Module, state: dict[str, Tensor], prefix: str, *_) -> None:
    """Gives the tensors of a file their names here, before they are loaded."""
    for name in list(state):
        if name.startswith(prefix):
            state[prefix + current_name(name.removeprefix(prefix))] = state.pop(name)


def efficientnet(name: str, num_classes: int = 1000, **options) -> EfficientNet:
    """The size of the paper called `name`. `options` are EfficientNet's, as dropout or padding.

    B0 to B7 have 5,288,548, 7,794,184, 9,109,994, 12,233,232, 19,341,616, 30,389,784, 43,040,704
    and 66,347,960 parameters.
    """
    width, depth, _, dropout = SIZES[name]
    norm = dict(eps=1e-3, momentum=0.01) if name > "efficientnet_b4" else {}
    return EfficientNet(width, depth, num_classes, **dict(dropout=dropout) | norm | options)


def efficientnet_small(
    num_classes: int = 10, width: float = 0.5, depth: float = 0.5, **options
) -> EfficientNet:
    """Not of the paper: half of B0 each way, for 32 pixels, of which 4 are left in the end.

    Stem and stage 7 keep the resolution. 663,530 parameters for ten classes.
    """
    own = dict(strides=(1, 1, 2, 2, 2, 1, 1, 1), dropout=0.1, drop_path=0.0)
    return EfficientNet(width, depth, num_classes, **own | options)


efficientnet_b0, efficientnet_b1, efficientnet_b2, efficientnet_b3 = (
    partial(efficientnet, f"efficientnet_b{n}") for n in range(4)
)
efficientnet_b4, efficientnet_b5, efficientnet_b6, efficientnet_b7 = (
    partial(efficientnet, f"efficientnet_b{n}") for n in range(4, 8)
)

MODELS = {
    "efficientnet_small": efficientnet_small,
    "efficientnet_b0": efficientnet_b0,
    "efficientnet_b1": efficientnet_b1,
    "efficientnet_b2": efficientnet_b2,
    "efficientnet_b3": efficientnet_b3,
    "efficientnet_b4": efficientnet_b4,
    "efficientnet_b5": efficientnet_b5,
    "efficientnet_b6": efficientnet_b6,
    "efficientnet_b7": efficientnet_b7,
}
