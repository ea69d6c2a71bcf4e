"""GoogLeNet: Szegedy, Liu, Jia, Sermanet, Reed, Anguelov, Erhan, Vanhoucke, Rabinovich, "Going
Deeper with Convolutions", CVPR 2015 (arXiv:1409.4842, 2014).

An inception module looks at its input with 1x1, 3x3 and 5x5 filters and a pooling side by side
and stacks what they find. 1x1 convolutions first shrink the channels that the large filters see,
so that nine such modules, 22 layers deep, have a ninth of AlexNet's weights. In training, two
auxiliary classifiers sit on lower modules and send gradients in halfway down.

Shapes: B batch, C channels, H and W pixels, K classes.

`googlenet` follows Sec. 5, Fig. 3 and Table 1; these points the paper leaves open or we changed:
- initial weights: He's of 2015 (the paper has none; with Glorot's of 2010 it learns slower);
- the response normalisation's numbers are those of the AlexNet paper;
- the auxiliary heads pool maps that are not 14x14 (images that are not 224 pixels) adaptively to
  4x4, and the last pooling covers whatever is there, so that other image sizes work.

`googlenet_bn` is torchvision's variant: batch norm in place of biases and response normalisation,
3x3 in place of the 5x5 filters (its known slip), a 2x2 fourth pooling, always adaptive pooling in
the heads, less dropout. It takes torchvision's weights, names and all. Those that torchvision has
published expect inputs from -1 to 1, that is mean 0.5 and std 0.5 (torchvision's own model
rescales within, `transform_input`; here that is the caller's), and their heads are untrained.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from googlenet.inception_v3 import inception_v3, inception_v3_small

# Table 1: filters of 1x1, 3x3 reduce, 3x3, 5x5 reduce, 5x5, pool projection
INCEPTIONS = {
    "3a": (64, 96, 128, 16, 32, 32),
    "3b": (128, 128, 192, 32, 96, 64),
    "4a": (192, 96, 208, 16, 48, 64),
    "4b": (160, 112, 224, 24, 64, 64),
    "4c": (128, 128, 256, 24, 64, 64),
    "4d": (112, 144, 288, 32, 64, 64),
    "4e": (256, 160, 320, 32, 128, 128),
    "5a": (256, 160, 320, 32, 128, 128),
    "5b": (384, 192, 384, 48, 128, 128),
}


class ResponseNorm(nn.Module):
    """Local response normalisation, Sec. 3.3 of the AlexNet paper: x / (2 + 1e-4 S)^0.75, where S
    sums the squares of the channel and of two neighbours on each side, at the same place.

    The sum is a 1x1 convolution with a band of ones: on a CPU 2 to 13 times as fast as torch's.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W), and so is what returns."""
        place = torch.arange(x.shape[1], device=x.device)
        band = ((place[:, None] - place).abs() <= 2).to(x.dtype)  # (C, C)
        d = 2 + 1e-4 * F.conv2d(x.square(), band[:, :, None, None])
        return x * (d * d.sqrt()).rsqrt()  # x / d^0.75, with roots in place of slow powers


class BasicConv2d(nn.Module):
    """Convolution with a bias, or with batch norm in its place; then ReLU. H and W shrink by the
    stride alone."""

    def __init__(
        self, in_channels: int, out_channels: int, size: int, stride: int = 1, bn: bool = False
    ):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, size, stride, size // 2, bias=not bn)
        self.bn = nn.BatchNorm2d(out_channels, eps=0.001) if bn else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) to (B, C_out, H/stride, W/stride)."""
        return F.relu(self.bn(self.conv(x)), inplace=True)


class Inception(nn.Module):
    """Four branches side by side (Fig. 2b); `widths` are a row of Table 1."""

    def __init__(self, in_channels: int, widths: tuple[int, ...], bn: bool = False):
        super().__init__()
        ones, reduce3, threes, reduce5, fives, pooled = widths
        large = 3 if bn else 5
        self.out_channels = ones + threes + fives + pooled
        self.branch1 = BasicConv2d(in_channels, ones, 1, bn=bn)
        self.branch2 = nn.Sequential(
            BasicConv2d(in_channels, reduce3, 1, bn=bn), BasicConv2d(reduce3, threes, 3, bn=bn)
        )
        self.branch3 = nn.Sequential(
            BasicConv2d(in_channels, reduce5, 1, bn=bn), BasicConv2d(reduce5, fives, large, bn=bn)
        )
        self.branch4 = nn.Sequential(
            nn.MaxPool2d(3, stride=1, padding=1), BasicConv2d(in_channels, pooled, 1, bn=bn)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) to (B, out_channels, H, W)."""
        return torch.cat([self.branch1(x), self.branch2(x), self.branch3(x), self.branch4(x)], 1)


class AuxiliaryHead(nn.Module):
    """A small classifier on the maps of 4a or 4d, in training only (Sec. 5; right of Fig. 3)."""

    def __init__(self, in_channels: int, num_classes: int, width: float = 1, bn: bool = False):
        super().__init__()
        self.adaptive = bn
        self.conv = BasicConv2d(in_channels, int(128 * width), 1, bn=bn)
        self.fc1 = nn.Linear(int(128 * width) * 4 * 4, int(1024 * width))
        self.dropout = nn.Dropout(0.7)
        self.fc2 = nn.Linear(int(1024 * width), num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, C, H, W) to logits (B, K)."""
        # fmt: off
        if x.shape[2:] == (14, 14) and not self.adaptive:
            x = F.avg_pool2d(x, 5, stride=3)                 # (B, C, 4, 4), windows overlap
        else:
            x = F.adaptive_avg_pool2d(x, 4)                  # (B, C, 4, 4)
        x = self.conv(x).flatten(1)                          # (B, 2048)
        x = self.dropout(F.relu(self.fc1(x), inplace=True))  # (B, 1024)
        return self.fc2(x)                                   # (B, K)
        # fmt: on


class GoogLeNet(nn.Module):
    """Fig. 3: a stem, nine inception modules in three groups, average pooling, one linear layer.

    `bn` chooses torchvision's variant (see the top of this file). `width` scales all layers, and
    `small_images` is for 32 pixels: a 3x3 convolution of stride 1 in place of the 7x7 of stride 2,
    and no second pooling, so that the modules work on 16, 8 and 4 pixels.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        aux_logits: bool = True,
        bn: bool = False,
        dropout: float = 0.4,
        width: float = 1.0,
        small_images: bool = False,
    ):
        super().__init__()
        stem, channels = int(64 * width), int(192 * width)
        size, stride = (3, 1) if small_images else (7, 2)
        self.conv1 = BasicConv2d(3, stem, size, stride, bn)
        self.maxpool1 = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        self.norm1 = nn.Identity() if bn else ResponseNorm()
        self.conv2 = BasicConv2d(stem, stem, 1, bn=bn)
        self.conv3 = BasicConv2d(stem, channels, 3, bn=bn)
        self.norm2 = nn.Identity() if bn else ResponseNorm()
        pool = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        self.maxpool2 = nn.Identity() if small_images else pool
        self.maxpool3 = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        self.maxpool4 = nn.MaxPool2d(2 if bn else 3, stride=2, ceil_mode=True)
        for name, widths in INCEPTIONS.items():
            module = Inception(channels, tuple(int(n * width) for n in widths), bn)
            self.add_module(f"inception{name}", module)
            channels = module.out_channels
        below, above = int(512 * width), int(528 * width)  # channels of 4a and 4d
        self.aux1 = AuxiliaryHead(below, num_classes, width, bn) if aux_logits else None
        self.aux2 = AuxiliaryHead(above, num_classes, width, bn) if aux_logits else None
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):  # keeps the variance through 22 layers of ReLU
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor, Tensor]:
        """Images (B, 3, H, W) to logits (B, K); in training, if built with the auxiliary heads,
        to (logits, aux2, aux1): torchvision's order, the upper head first.
        """
        # fmt: off
        heads = self.training and self.aux1 is not None       # sizes of 224 pixels:
        x = self.norm1(self.maxpool1(self.conv1(x)))          # (B, 64, 56, 56)
        x = self.norm2(self.conv3(self.conv2(x)))             # (B, 192, 56, 56)
        x = self.inception3a(self.maxpool2(x))                # (B, 256, 28, 28)
        x = self.inception3b(x)                               # (B, 480, 28, 28)
        x = self.inception4a(self.maxpool3(x))                # (B, 512, 14, 14)
        aux1 = self.aux1(x) if heads else None                # (B, K)
        x = self.inception4c(self.inception4b(x))             # (B, 512, 14, 14)
        x = self.inception4d(x)                               # (B, 528, 14, 14)
        aux2 = self.aux2(x) if heads else None                # (B, K)
        x = self.inception4e(x)                               # (B, 832, 14, 14)
        x = self.inception5a(self.maxpool4(x))                # (B, 832, 7, 7)
        x = self.inception5b(x)                               # (B, 1024, 7, 7)
        x = F.adaptive_avg_pool2d(x, 1).flatten(1)            # (B, 1024)
        logits = self.fc(self.dropout(x))                     # (B, K)
        # fmt: on
        return (logits, aux2, aux1) if heads else logits


def googlenet(num_classes: int = 1000, aux_logits: bool = True) -> GoogLeNet:
    """The paper's: 6,998,552 parameters without the auxiliary heads, 13,378,280 with them."""
    return GoogLeNet(num_classes, aux_logits)


def googlenet_bn(num_classes: int = 1000, aux_logits: bool = True) -> GoogLeNet:
    """torchvision's: 6,624,904 parameters without the auxiliary heads, 13,004,888 with them."""
    return GoogLeNet(num_classes, aux_logits, bn=True, dropout=0.2)


def googlenet_small(num_classes: int = 10, aux_logits: bool = True) -> GoogLeNet:
    """For 32 pixels, a quarter as wide: 377,126 parameters without the heads, 653,306 with."""
    return GoogLeNet(num_classes, aux_logits, width=0.25, small_images=True)


def googlenet_bn_small(num_classes: int = 10, aux_logits: bool = True) -> GoogLeNet:
    """For 32 pixels, a quarter as wide: 355,138 parameters without the heads, 631,382 with."""
    return GoogLeNet(num_classes, aux_logits, bn=True, dropout=0.2, width=0.25, small_images=True)


MODELS = {
    "googlenet": googlenet,
    "googlenet_bn": googlenet_bn,
    "googlenet_small": googlenet_small,
    "googlenet_bn_small": googlenet_bn_small,
    "inception_v3": inception_v3,
    "inception_v3_small": inception_v3_small,
}
