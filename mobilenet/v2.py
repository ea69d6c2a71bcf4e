"""MobileNetV2: Sandler, Howard, Zhu, Zhmoginov, Chen 2018, arXiv:1801.04381.

ReLU throws away what falls below zero: harmless in many channels, where copies remain, harmful in
few. So a block expands its narrow input sixfold, filters there depthwise and with ReLU6, and
projects back to few channels *without* an activation, a linear bottleneck. Shortcuts join the
narrow ends: inverted residuals, with less to keep in memory than where they join wide ones.

Shapes: B batch, C channels, H and W pixels, K classes.

Parameters bear torchvision's names. Departures: the last pooling adapts to the image's size; the
classifier is a linear layer (Table 2: a 1x1 convolution, the same); widths below 1 leave the
last convolution at 1,280 channels (Sec. 6.1).
"""

from torch import Tensor, nn

from mobilenet.layers import ConvNorm, divisible, initialise

# Table 2: expansion t, output channels c, blocks n, stride s of the first
STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


class InvertedResidual(nn.Module):
    """1x1 expansion, depthwise 3x3, linear 1x1 projection; a shortcut if the shape stays (Fig. 3b).

    Without `linear` the projection has a ReLU6, too (Fig. 6a).
    """

    def __init__(
        self, in_channels: int, out_channels: int, stride: int, expansion: int, linear: bool = True
    ):
        super().__init__()
        self.shortcut = stride == 1 and in_channels == out_channels
        wide = in_channels * expansion
        layers = [ConvNorm(in_channels, wide)] if expansion > 1 else []
        layers.append(ConvNorm(wide, wide, 3, stride, depthwise=True))
        layers.append(nn.Conv2d(wide, out_channels, 1, bias=False))
        layers.append(nn.BatchNorm2d(out_channels))
        self.conv = nn.Sequential(*layers, *([] if linear else [nn.ReLU6(inplace=True)]))

    def forward(self, x: Tensor) -> Tensor:
        """Features (B, C_in, H, W) to (B, C_out, H/stride, W/stride)."""
        return x + self.conv(x) if self.shortcut else self.conv(x)


class MobileNetV2(nn.Module):
    """Table 2: a full convolution, 17 inverted residuals, a 1x1 convolution, a linear layer.

    `width` is the multiplier, `dropout` of what the linear layer reads; `linear` is that of
    InvertedResidual. Of `small_images` the first two strides are 1.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        width: float = 1.0,
        dropout: float = 0.2,
        linear: bool = True,
        small_images: bool = False,
    ):
        super().__init__()
        channels, last = divisible(32 * width), divisible(1280 * max(1.0, width))
        layers = [ConvNorm(3, channels, 3, 1 if small_images else 2)]
        for number, (expansion, out_channels, num_blocks, stride) in enumerate(STAGES):
            stride = 1 if small_images and number == 1 else stride
            wide = divisible(out_channels * width)
            for i in range(num_blocks):
                first = stride if i == 0 else 1
                layers.append(InvertedResidual(channels, wide, first, expansion, linear))
                channels = wide
        layers.append(ConvNorm(channels, last))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(nn.Dropout(dropout), nn.Linear(last, num_classes))
        initialise(self)

    # fmt: off
    def forward(self, x: Tensor) -> Tensor:            # (B, 3, H, W)
        """Images (B, 3, H, W) to logits (B, K)."""
        x = self.features(x)                           # (B, 1280, H/32, W/32)
        return self.classifier(x.mean((2, 3)))         # (B, K)
    # fmt: on


def mobilenet_v2(num_classes: int = 1000, width: float = 1.0, **options) -> MobileNetV2:
    """Table 2; 3,504,872 parameters; of widths 1.4, 0.75, 0.5, 0.35 6,108,776, 2,636,424,
    1,968,680 and 1,677,128. `options` are MobileNetV2's dropout and linear.
    """
    return MobileNetV2(num_classes, width, **options)


def mobilenet_v2_cifar(num_classes: int = 10, width: float = 0.35, **options) -> MobileNetV2:
    """For 32 pixels, not in the paper: the first two strides are 1, a third of the widths; 408,938
    parameters for ten classes. `options` are as above.
    """
    return MobileNetV2(num_classes, width, small_images=True, **options)
