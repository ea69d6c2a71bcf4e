"""Residual networks (He, Zhang, Ren, Sun 2015, arXiv:1512.03385).

Deep plain networks train worse than shallow ones, although they could compute the same. Here a
block learns what to add to its input, F(x), and its output is F(x) + x (Eq. 1): doing nothing is
then easy to learn, gradients reach every block unhindered, and depth helps again.

Shapes: B batch, C channels, H and W pixels, K classes.

ImageNet's networks (Table 1; 18 to 152 layers, 224 pixels) have projections where the shape
changes (option B), CIFAR's (Sec. 4.2; 6n + 2 layers, 32 pixels) have shortcuts without parameters
(option A). `resnet50` and its like halve the resolution in the first 1x1 convolution of a block,
as the paper does; `resnet50_v1_5` in the 3x3, as torchvision does, whose parameter names these
networks bear. Departures: the last pooling adapts to the image's size (at 224 pixels it is the
paper's 7x7), so that other sizes pass.
"""

from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (Fig. 5, left); plain without the shortcut."""

    expansion = 1  # output channels over `channels`

    def __init__(
        self,
        in_channels: int,
        channels: int,
        stride: int = 1,
        downsample: nn.Module | None = None,
        shortcut: bool = True,
    ):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample, self.shortcut = downsample, shortcut

    # fmt: off
    def forward(self, x: Tensor) -> Tensor:             # (B, C_in, H, W)
        """Features (B, C_in, H, W) to (B, C, H/stride, W/stride)."""
        out = self.relu(self.bn1(self.conv1(x)))        # (B, C, H/s, W/s)
        out = self.bn2(self.conv2(out))                 # (B, C, H/s, W/s)
        if self.shortcut:                               # Eq. 1; with a projection Eq. 2
            out += x if self.downsample is None else self.downsample(x)
        return self.relu(out)
    # fmt: on


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions and a shortcut (Fig. 5, right).

    A stride is taken by the first convolution, as in the paper, or with `v1_5` by the second.
    """

    expansion = 4

    def __init__(
        self,
        in_channels: int,
        channels: int,
        stride: int = 1,
        downsample: nn.Module | None = None,
        v1_5: bool = False,
    ):
        super().__init__()
        first, second = (1, stride) if v1_5 else (stride, 1)
        self.conv1 = nn.Conv2d(in_channels, channels, 1, first, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, second, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, 4 * channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample

    # fmt: off
    def forward(self, x: Tensor) -> Tensor:             # (B, C_in, H, W)
        """Features (B, C_in, H, W) to (B, 4C, H/stride, W/stride)."""
        out = self.relu(self.bn1(self.conv1(x)))        # (B, C, H/s, W/s), or with v1_5 still H, W
        out = self.relu(self.bn2(self.conv2(out)))      # (B, C, H/s, W/s)
        out = self.bn3(self.conv3(out))                 # (B, 4C, H/s, W/s)
        out += x if self.downsample is None else self.downsample(x)  # Eq. 1 or 2
        return self.relu(out)
    # fmt: on


def projection(in_channels: int, channels: int, stride: int) -> nn.Module:
    """The shortcut where the shape changes, option B: a 1x1 convolution (Sec. 3.3)."""
    convolution = nn.Conv2d(in_channels, channels, 1, stride, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(channels))


class PaddedShortcut(nn.Module):
    """A shortcut of option A: every second pixel, and zeros for the channels that are new."""

    def __init__(self, in_channels: int, channels: int, stride: int):
        super().__init__()
        self.stride, self.new_channels = stride, channels - in_channels

    def forward(self, x: Tensor) -> Tensor:
        """Features (B, C_in, H, W) to (B, C, H/stride, W/stride)."""
        return F.pad(x[:, :, :: self.stride, :: self.stride], [0, 0, 0, 0, 0, self.new_channels])


class ResNet(nn.Module):
    """Four stages for ImageNet (Table 1), three for CIFAR (Sec. 4.2).

    `block(in_channels, channels, stride, downsample)` builds a block, `depths` counts the blocks
    of each stage, and `width` is the channels of the first; each further stage doubles them and
    halves the resolution. The first stage of `small_images` sees every pixel.
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck] | partial,
        depths: tuple[int, ...],
        num_classes: int,
        width: int = 64,
        small_images: bool = False,
    ):
        super().__init__()
        if small_images:
            self.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
        else:
            self.conv1 = nn.Conv2d(3, width, 7, 2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.Identity() if small_images else nn.MaxPool2d(3, 2, padding=1)
        expansion = getattr(block, "func", block).expansion
        shortcut = PaddedShortcut if small_images else projection
        self.num_stages, in_channels = len(depths), width
        for stage, depth in enumerate(depths):
            channels, stride = width * 2**stage, 1 if stage == 0 else 2
            changes = stride > 1 or in_channels != expansion * channels
            downsample = shortcut(in_channels, expansion * channels, stride) if changes else None
            blocks = [block(in_channels, channels, stride, downsample)]
            in_channels = expansion * channels
            blocks += [block(in_channels, channels) for _ in range(depth - 1)]
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(in_channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):  # keeps the variance through ReLUs [13 in the paper]
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    # fmt: off
    def forward(self, x: Tensor) -> Tensor:             # (B, 3, H, W)
        """Images (B, 3, H, W) to logits (B, K)."""
        x = self.relu(self.bn1(self.conv1(x)))          # (B, 64, H/2, W/2); CIFAR: 16, H, W
        x = self.maxpool(x)                             # (B, 64, H/4, W/4); CIFAR: 16, H, W
        for stage in range(self.num_stages):            # each after the first halves H and W
            x = getattr(self, f"layer{stage + 1}")(x)   # (B, C, H/32, W/32); CIFAR: H/4, W/4
        x = self.avgpool(x).flatten(1)                  # (B, C)
        return self.fc(x)                               # (B, K)
    # fmt: on


def resnet18(num_classes: int = 1000) -> ResNet:
    """Table 1; 11,689,512 parameters."""
    return ResNet(BasicBlock, (2, 2, 2, 2), num_classes)


def resnet34(num_classes: int = 1000) -> ResNet:
    """Table 1; 21,797,672 parameters."""
    return ResNet(BasicBlock, (3, 4, 6, 3), num_classes)


def resnet50(num_classes: int = 1000, v1_5: bool = False) -> ResNet:
    """Table 1; 25,557,032 parameters."""
    return ResNet(partial(Bottleneck, v1_5=v1_5), (3, 4, 6, 3), num_classes)


def resnet101(num_classes: int = 1000, v1_5: bool = False) -> ResNet:
    """Table 1; 44,549,160 parameters."""
    return ResNet(partial(Bottleneck, v1_5=v1_5), (3, 4, 23, 3), num_classes)


def resnet152(num_classes: int = 1000, v1_5: bool = False) -> ResNet:
    """Table 1; 60,192,808 parameters."""
    return ResNet(partial(Bottleneck, v1_5=v1_5), (3, 8, 36, 3), num_classes)


def cifar_resnet(
    depth: int, num_classes: int = 10, shortcut: bool = True, width: int = 16
) -> ResNet:
    """Sec. 4.2: 6n + 2 layers, from `width` to 4 times `width` channels; plain without shortcuts.

    Of the paper's width, 16, networks of 20, 32, 44, 56 and 110 layers have 269,722, 464,154,
    658,586, 853,018 and 1,727,962 parameters.
    Raises ValueError for another kind of depth.
    """
    num_blocks, rest = divmod(depth - 2, 6)
    if rest or num_blocks < 1:
        raise ValueError(f"the depth has to be 6n + 2, not {depth}")
    block = partial(BasicBlock, shortcut=shortcut)
    return ResNet(block, (num_blocks,) * 3, num_classes, width, small_images=True)


resnet20, resnet32, resnet44, resnet56, resnet110 = (
    partial(cifar_resnet, depth) for depth in (20, 32, 44, 56, 110)
)
plain20, plain56 = (partial(cifar_resnet, depth, shortcut=False) for depth in (20, 56))

MODELS = {
    "resnet20": resnet20,
    "resnet32": resnet32,
    "resnet44": resnet44,
    "resnet56": resnet56,
    "resnet110": resnet110,
    "plain20": plain20,
    "plain56": plain56,
    "resnet18": resnet18,
    "resnet34": resnet34,
    "resnet50": resnet50,
    "resnet101": resnet101,
    "resnet152": resnet152,
    "resnet50_v1_5": partial(resnet50, v1_5=True),
    "resnet101_v1_5": partial(resnet101, v1_5=True),
    "resnet152_v1_5": partial(resnet152, v1_5=True),
}
