"""MobileNetV3: Howard, Sandler, Chu, Chen, Chen, Tan, Wang, Zhu, Pang, Vasudevan, Le, Adam 2019,
arXiv:1905.02244.

MobileNetV2's blocks, arranged by a search for what is accurate on a phone in a given time: filters
of 3x3 or 5x5, any expansion, squeeze-and-excitation in some, which weighs each channel by what
the whole image shows, and in the deeper half h-swish, x * ReLU6(x + 3) / 6, for ReLU (Sec. 5.2).
The first and the last layers, slow for what they did, were redesigned by hand (Sec. 5.1).

Shapes: B batch, C channels, H and W pixels, K classes.

Parameters bear torchvision's names. Departures: the last pooling adapts to the image's size; the
two layers behind it are linear (Tables 1 and 2: 1x1 convolutions, the same); squeeze-and-excitation
shrinks to a quarter, rounded to a multiple of 8.
"""

from torch import Tensor, nn

from mobilenet.layers import ConvNorm, divisible, initialise

# Tables 1 and 2: size of the filters, expanded and output channels, SE, h-swish, stride
LARGE = (
    (3, 16, 16, False, False, 1),
    (3, 64, 24, False, False, 2),
    (3, 72, 24, False, False, 1),
    (5, 72, 40, True, False, 2),
    (5, 120, 40, True, False, 1),
    (5, 120, 40, True, False, 1),
    (3, 240, 80, False, True, 2),
    (3, 200, 80, False, True, 1),
    (3, 184, 80, False, True, 1),
    (3, 184, 80, False, True, 1),
    (3, 480, 112, True, True, 1),
    (3, 672, 112, True, True, 1),
    (5, 672, 160, True, True, 2),
    (5, 960, 160, True, True, 1),
    (5, 960, 160, True, True, 1),
)
SMALL = (
    (3, 16, 16, True, False, 2),
    (3, 72, 24, False, False, 2),
    (3, 88, 24, False, False, 1),
    (5, 96, 40, True, True, 2),
    (5, 240, 40, True, True, 1),
    (5, 240, 40, True, True, 1),
    (5, 120, 48, True, True, 1),
    (5, 144, 48, True, True, 1),
    (5, 288, 96, True, True, 2),
    (5, 576, 96, True, True, 1),
    (5, 576, 96, True, True, 1),
)


class SqueezeExcitation(nn.Module):
    """Weighs channels by a small network of their means, with h-sigmoid at its end (Sec. 5.3)."""

    def __init__(self, channels: int):
        super().__init__()
        squeezed = divisible(channels // 4)
        self.fc1, self.fc2 = nn.Conv2d(channels, squeezed, 1), nn.Conv2d(squeezed, channels, 1)
        self.relu, self.gate = nn.ReLU(inplace=True), nn.Hardsigmoid()

    def forward(self, x: Tensor) -> Tensor:
        """Features (B, C, H, W), each channel times a number from 0 to 1."""
        weight = self.relu(self.fc1(x.mean((2, 3), keepdim=True)))  # (B, C/4, 1, 1)
        return x * self.gate(self.fc2(weight))  # gate: (B, C, 1, 1)


class Block(nn.Module):
    """An inverted residual, with squeeze-and-excitation or without (Fig. 4).

    `wide` counts the channels inside, `size` is of the depthwise filters; `excite` and `swish` are
    the columns SE and NL of the tables, `norm` batch norm's settings.
    """

    def __init__(
        self,
        in_channels: int,
        size: int,
        wide: int,
        out_channels: int,
        excite: bool,
        swish: bool,
        stride: int,
        norm: dict,
    ):
        super().__init__()
        self.shortcut = stride == 1 and in_channels == out_channels
        options = dict(activation=nn.Hardswish if swish else nn.ReLU, **norm)
        layers = [ConvNorm(in_channels, wide, **options)] if wide != in_channels else []
        layers.append(ConvNorm(wide, wide, size, stride, depthwise=True, **options))
        layers += [SqueezeExcitation(wide)] if excite else []
        layers.append(ConvNorm(wide, out_channels, activation=None, **norm))
        self.block = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Features (B, C_in, H, W) to (B, C_out, H/stride, W/stride)."""
        return x + self.block(x) if self.shortcut else self.block(x)


class MobileNetV3(nn.Module):
    """Tables 1 and 2: a full convolution, blocks, a 1x1 convolution, two linear layers.

    `table` has a row for each block. `last` counts the channels between the two linear layers, of
    which training drops a share `dropout`; `width` multiplies all but these. Of `small_images` the
    first two strides are 1, and norms have torch's own eps and momentum.
    """

    def __init__(
        self,
        table: tuple[tuple, ...],
        last: int,
        num_classes: int = 1000,
        width: float = 1.0,
        dropout: float = 0.2,
        small_images: bool = False,
    ):
        super().__init__()
        norm = {} if small_images else dict(eps=0.001, momentum=0.01)  # decay 0.99: Sec. 6.1.1
        channels, strides = divisible(16 * width), 2 * small_images  # to be made 1
        layers = [ConvNorm(3, channels, 3, 1 if strides else 2, activation=nn.Hardswish, **norm)]
        strides -= strides > 0
        for size, wide, out_channels, excite, swish, stride in table:
            if stride > 1 and strides:
                stride, strides = 1, strides - 1
            wide, out_channels = divisible(wide * width), divisible(out_channels * width)
            layers.append(Block(channels, size, wide, out_channels, excite, swish, stride, norm))
            channels = out_channels
        layers.append(ConvNorm(channels, 6 * channels, activation=nn.Hardswish, **norm))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            nn.Linear(6 * channels, last),
            nn.Hardswish(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(last, num_classes),
        )
        initialise(self)

    # fmt: off
    def forward(self, x: Tensor) -> Tensor:            # (B, 3, H, W)
        """Images (B, 3, H, W) to logits (B, K)."""
        x = self.features(x)                           # (B, C, H/32, W/32)
        return self.classifier(x.mean((2, 3)))         # (B, K)
    # fmt: on


def mobilenet_v3_large(num_classes: int = 1000, width: float = 1.0, **options) -> MobileNetV3:
    """Table 1; 5,483,032 parameters. `options` are MobileNetV3's dropout."""
    return MobileNetV3(LARGE, divisible(1280 * width), num_classes, width, **options)


def mobilenet_v3_small(num_classes: int = 1000, width: float = 1.0, **options) -> MobileNetV3:
    """Table 2; 2,542,856 parameters. `options` are MobileNetV3's dropout."""
    return MobileNetV3(SMALL, divisible(1024 * width), num_classes, width, **options)


def mobilenet_v3_cifar(num_classes: int = 10, width: float = 1.0, **options) -> MobileNetV3:
    """For 32 pixels, not in the paper: the small one, its first two strides 1, with 256 channels
    between the last two layers; 1,077,290 parameters for ten classes. `options` are as above.
    """
    options = dict(small_images=True, **options)
    return MobileNetV3(SMALL, 256, num_classes, width, **options)
