"""MobileNets: Howard, Zhu, Chen, Kalenichenko, Wang, Weyand, Andreetto, Adam 2017,
arXiv:1704.04861.

A convolution does two things at once: it filters, and it mixes channels. Here a depthwise
convolution filters each channel by itself, and a 1x1 convolution mixes: for 3x3 filters 8 to 9
times fewer multiplications (Sec. 3.1), at one per cent of accuracy. A width multiplier makes all
layers narrower (Sec. 3.3).

Shapes: B batch, C channels, H and W pixels, K classes.

Parameters bear timm's names, so that its published weights load. Departures: ReLU6 for ReLU, as in
the authors' code; padding is symmetric, as in timm's; the last pooling adapts to the image's size;
the last depthwise layer has stride 1 (Table 1 says 2, and shows the sizes of 1).
"""

import torch.nn.functional as F
from torch import Tensor, nn

from mobilenet.layers import DepthwiseConv2d, divisible, initialise

# Table 1: output channels, layers, stride of the first
STAGES = ((64, 1, 1), (128, 2, 2), (256, 2, 2), (512, 6, 2), (1024, 2, 2))


class SeparableConv(nn.Module):
    """Depthwise 3x3 and pointwise 1x1 convolution, each with norm and ReLU (Fig. 3, right)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1):
        super().__init__()
        self.conv_dw = DepthwiseConv2d(in_channels, 3, stride)
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv_pw = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)

    # fmt: off
    def forward(self, x: Tensor) -> Tensor:                              # (B, C_in, H, W)
        """Features (B, C_in, H, W) to (B, C_out, H/stride, W/stride)."""
        x = F.relu6(self.bn1(self.conv_dw(x)), inplace=True)             # (B, C_in, H/s, W/s)
        return F.relu6(self.bn2(self.conv_pw(x)), inplace=True)          # (B, C_out, H/s, W/s)
    # fmt: on


class FullConv(nn.Module):
    """What a separable convolution replaces (Fig. 3, left): filters of all channels at once."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Features (B, C_in, H, W) to (B, C_out, H/stride, W/stride)."""
        return F.relu6(self.bn(self.conv(x)), inplace=True)


class MobileNetV1(nn.Module):
    """Table 1: a full convolution, 13 separable ones, average pooling, and a linear layer.

    `width` is the multiplier alpha. Without `separable` all convolutions are full (Table 4). Of
    `small_images` the first two strides are 1. `dropout` is of what the linear layer reads.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        width: float = 1.0,
        dropout: float = 0.001,
        separable: bool = True,
        small_images: bool = False,
    ):
        super().__init__()
        layer = SeparableConv if separable else FullConv
        channels, first = divisible(32 * width), 1 if small_images else 2
        self.conv_stem = nn.Conv2d(3, channels, 3, first, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        stages = []
        for number, (out_channels, num_layers, stride) in enumerate(STAGES):
            stride = 1 if small_images and number == 1 else stride
            wide, layers = divisible(out_channels * width), []
            for i in range(num_layers):
                layers.append(layer(channels, wide, stride if i == 0 else 1))
                channels = wide
            stages.append(nn.Sequential(*layers))
        self.blocks = nn.Sequential(*stages)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(channels, num_classes)
        initialise(self)

    # fmt: off
    def forward(self, x: Tensor) -> Tensor:                              # (B, 3, H, W)
        """Images (B, 3, H, W) to logits (B, K)."""
        x = F.relu6(self.bn1(self.conv_stem(x)), inplace=True)           # (B, 32, H/2, W/2)
        x = self.blocks(x)                                               # (B, 1024, H/32, W/32)
        x = x.mean((2, 3))                                               # (B, 1024)
        return self.classifier(self.dropout(x))                          # (B, K)
    # fmt: on


def mobilenet_v1(num_classes: int = 1000, width: float = 1.0, **options) -> MobileNetV1:
    """Table 1; of widths 1, 0.75, 0.5 and 0.25 4,231,976, 2,585,560, 1,331,592, 470,072 parameters.

    `options` are MobileNetV1's dropout and separable.
    """
    return MobileNetV1(num_classes, width, **options)


def mobilenet_v1_cifar(num_classes: int = 10, width: float = 0.5, **options) -> MobileNetV1:
    """For 32 pixels, not in the paper: the first two strides are 1, half of the widths; 823,722
    parameters for ten classes. `options` are as above.
    """
    return MobileNetV1(num_classes, width, small_images=True, **options)
