"""VGG: Simonyan, Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition",
ICLR 2015 (arXiv:1409.1556).

Every convolution is 3x3, the smallest size that knows left from right and up from down. Two in a
row see 5x5 pixels and three see 7x7, as one large filter would, with fewer weights and a ReLU after
each. So depth is the only thing that changes from network A (11 layers with weights) to E (19).

Shapes: B batch, C channels, H and W pixels, K classes.

Departures from the paper:
- Initial weights are Glorot's. With its own N(0, 0.01) the paper had to train A first and start
  the deeper networks from it; a note in its Sec. 3.1 says that Glorot's need no such start.
- Adaptive pooling to 7x7 stands before the fully connected layers, as in torchvision, so that
  images of any size from 32 pixels on fit. At the paper's 224 pixels it changes nothing.
- The batch-norm variants are torchvision's; batch normalisation came half a year after VGG.
- `vgg11_bn_small` and its like are for images of 32 pixels: a quarter as wide, with one hidden
  layer of 128 in place of two of 4096, and without dropout.
Parameter names are torchvision's, so its published weights load as they are.
"""

import torch.nn.functional as F
from torch import Tensor, nn

# Table 1: how many convolutions stand before each of the five poolings.
A, B, D, E = (1, 1, 2, 2, 2), (2, 2, 2, 2, 2), (2, 2, 3, 3, 3), (2, 2, 4, 4, 4)


class VGG(nn.Module):
    """Five blocks of convolutions, each followed by max-pooling; then fully connected layers.

    `convolutions` holds the number of each block, `widths` its channels. `pointwise` makes the
    third convolution of a block 1x1 (configuration C), `lrn` normalises after the first (A-LRN).
    The last pooled maps are averaged to `pooled` x `pooled` places, and `hidden` are the sizes of
    the fully connected layers before the classes.
    """

    def __init__(
        self,
        convolutions: tuple[int, ...],
        num_classes: int = 1000,
        widths: tuple[int, ...] = (64, 128, 256, 512, 512),
        hidden: tuple[int, ...] = (4096, 4096),
        pooled: int = 7,
        batch_norm: bool = False,
        lrn: bool = False,
        pointwise: bool = False,
        dropout: float = 0.5,
    ):
        super().__init__()
        layers, channels = [], 3
        for count, width in zip(convolutions, widths, strict=True):
            for number in range(count):
                size = 1 if pointwise and number == 2 else 3
                layers.append(nn.Conv2d(channels, width, size, padding=size // 2))
                if batch_norm:
                    layers.append(nn.BatchNorm2d(width))
                layers.append(nn.ReLU(inplace=True))
                if lrn and channels == 3:  # AlexNet's constants; torch divides alpha by the size
                    layers.append(nn.LocalResponseNorm(5, alpha=5e-4, beta=0.75, k=2.0))
                channels = width
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(pooled)
        layers, inputs = [], channels * pooled**2
        for width in hidden:
            layers += [nn.Linear(inputs, width), nn.ReLU(inplace=True), nn.Dropout(dropout)]
            inputs = width
        self.classifier = nn.Sequential(*layers, nn.Linear(inputs, num_classes))
        for layer in self.modules():
            if isinstance(layer, (nn.Conv2d, nn.Linear)):  # Glorot and Bengio 2010, Eq. 16
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:  # (B, 3, H, W)
        """Images, at least 32 pixels high and wide, to logits (B, K)."""
        x = self.features(x)  # (B, 512, H/32, W/32)
        x = self.avgpool(x).flatten(1)  # (B, 512*7*7)
        return self.classifier(x)  # (B, K)


class SlidingLinear(nn.Module):
    """A fully connected layer at every place of a map: a convolution with the same weights."""

    def __init__(self, linear: nn.Linear, size: int):
        super().__init__()
        self.linear, self.size = linear, size

    def forward(self, x: Tensor) -> Tensor:  # (B, C, H, W)
        kernels = self.linear.weight.unflatten(1, (-1, self.size, self.size))
        return F.conv2d(x, kernels, self.linear.bias)  # (B, C_out, H-size+1, W-size+1)


def fully_convolutional(model: VGG) -> nn.Sequential:
    """The network for dense evaluation (Sec. 3.2): images (B, 3, H, W) to scores (B, K, H', W').

    The first fully connected layer becomes a convolution as large as the maps that it was trained
    on (7x7), the others 1x1; all weights are shared with `model`. At the training size (224 pixels)
    the map of scores has one place and equals `model(x)`. A larger image gives one place for each
    32 pixels more, which the paper averages. Each place then is the network applied to a window of
    224 pixels, except that at the window's borders the convolutions see what lies around it, and
    not the zeros of the padding.
    """
    size, layers = model.avgpool.output_size, [model.features]
    for layer in model.classifier:
        layers.append(SlidingLinear(layer, size) if isinstance(layer, nn.Linear) else layer)
        if isinstance(layer, nn.Linear):
            size = 1
    return nn.Sequential(*layers)


def vgg11(num_classes: int = 1000) -> VGG:
    """Configuration A: 132,863,336 parameters."""
    return VGG(A, num_classes)


def vgg11_lrn(num_classes: int = 1000) -> VGG:
    """A-LRN: A with one local response normalisation, which has no parameters and didn't help."""
    return VGG(A, num_classes, lrn=True)


def vgg13(num_classes: int = 1000) -> VGG:
    """Configuration B: 133,047,848 parameters."""
    return VGG(B, num_classes)


def vgg16_c(num_classes: int = 1000) -> VGG:
    """Configuration C, B with three more convolutions of 1x1: 133,638,952 parameters."""
    return VGG(D, num_classes, pointwise=True)


def vgg16(num_classes: int = 1000) -> VGG:
    """Configuration D, known as VGG-16: 138,357,544 parameters."""
    return VGG(D, num_classes)


def vgg19(num_classes: int = 1000) -> VGG:
    """Configuration E, known as VGG-19: 143,667,240 parameters."""
    return VGG(E, num_classes)


def vgg11_bn(num_classes: int = 1000) -> VGG:
    """A with batch normalisation: 132,868,840 parameters."""
    return VGG(A, num_classes, batch_norm=True)


def vgg13_bn(num_classes: int = 1000) -> VGG:
    """B with batch normalisation: 133,053,736 parameters."""
    return VGG(B, num_classes, batch_norm=True)


def vgg16_bn(num_classes: int = 1000) -> VGG:
    """D with batch normalisation: 138,365,992 parameters."""
    return VGG(D, num_classes, batch_norm=True)


def vgg19_bn(num_classes: int = 1000) -> VGG:
    """E with batch normalisation: 143,678,248 parameters."""
    return VGG(E, num_classes, batch_norm=True)


# What makes a network small: everything else is as in the large one.
SMALL = dict(widths=(16, 32, 64, 128, 128), hidden=(128,), pooled=1, dropout=0.0)


def vgg11_bn_small(num_classes: int = 10) -> VGG:
    """A for 32 pixels, a quarter as wide, with batch normalisation: 596,298 parameters."""
    return VGG(A, num_classes, batch_norm=True, **SMALL)


def vgg13_bn_small(num_classes: int = 10) -> VGG:
    """B for 32 pixels, a quarter as wide, with batch normalisation: 607,962 parameters."""
    return VGG(B, num_classes, batch_norm=True, **SMALL)


def vgg16_bn_small(num_classes: int = 10) -> VGG:
    """D for 32 pixels, a quarter as wide, with batch normalisation: 940,698 parameters."""
    return VGG(D, num_classes, batch_norm=True, **SMALL)


MODELS = {
    "vgg11": vgg11, "vgg11_lrn": vgg11_lrn, "vgg13": vgg13, "vgg16_c": vgg16_c, "vgg16": vgg16,
    "vgg19": vgg19, "vgg11_bn": vgg11_bn, "vgg13_bn": vgg13_bn, "vgg16_bn": vgg16_bn,
    "vgg19_bn": vgg19_bn, "vgg11_bn_small": vgg11_bn_small, "vgg13_bn_small": vgg13_bn_small,
    "vgg16_bn_small": vgg16_bn_small,
}  # fmt: skip
