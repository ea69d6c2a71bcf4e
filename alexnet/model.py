"""AlexNet: Krizhevsky, Sutskever, Hinton, "ImageNet Classification with Deep Convolutional Neural
Networks", NIPS 2012 (not on arXiv); and Krizhevsky, "One weird trick for parallelizing
convolutional neural networks", 2014 (arXiv:1404.5997).

A convolutional network of LeNet's kind, a thousand times as large, learns to tell a thousand sorts
of objects apart in photographs. Rectified linear units make so large a network trainable in days;
two graphics cards hold it, half of the maps each, and conv2, conv4 and conv5 see only those of
their own card; dropout and augmented images keep its sixty million parameters from overfitting.

Shapes: B batch, C maps (channels), H and W pixels, K classes.

`alexnet` follows Sec. 3.2-3.5, 4.2 and 5; these points we changed:
- images of 227 pixels: from the paper's 224, 11x11 patches 4 apart don't give its 55x55 maps;
- the classifier sees 6x6 maps whatever the size of the image, through an average over as many
  places; at 227 pixels that changes nothing.
`alexnet_owt` is the network of the second paper, as torchvision has it and under its parameter
names: one card, so no groups; other widths; no response normalisation; dropout before the
layers, not behind them; torch's own initial weights.
`convnet4` is a small network for CIFAR-10, as Fig. 1 needs one to compare activations. The paper
doesn't describe its own; this is the layout that came with the authors' code as the "18%" net,
without response normalisation, as Fig. 1 has no regularisation. Initial weights are scaled to the
activation, so that the activations are compared and not how well one scale fits them.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LocalResponseNorm(nn.Module):
    """Divides each unit by the strength of its n neighbouring maps at the same place (Sec. 3.3).

    The sum over neighbours is a 1x1 convolution with a band of ones: many idle products, yet 2.6
    to 4.5 times as fast as F.local_response_norm (fp32 on a CPU, channels-last), and bf16 works.
    """

    def __init__(self, n: int = 5, k: float = 2.0, alpha: float = 1e-4, beta: float = 0.75):
        super().__init__()
        self.n, self.k, self.alpha, self.beta = n, k, alpha, beta

    def forward(self, x: Tensor) -> Tensor:  # (B, C, H, W), the same out
        i = torch.arange(x.shape[1], device=x.device)
        band = ((i[:, None] - i).abs() <= self.n // 2).to(x.dtype)  # (C, C)
        sums = F.conv2d(x.square(), self.alpha * band[:, :, None, None])
        return x * (self.k + sums) ** -self.beta  # b in Sec. 3.3


# fmt: off
class AlexNet(nn.Module):
    """Fig. 2: five convolutions and three fully connected layers, on two cards."""

    def __init__(self, num_classes: int = 1000):
        super().__init__()
        self.features = nn.Sequential(                                           # (B, 3, 227, 227)
            nn.Conv2d(3, 96, 11, stride=4), nn.ReLU(inplace=True),               # (B,  96, 55, 55)
            LocalResponseNorm(), nn.MaxPool2d(3, 2),                             # (B,  96, 27, 27)
            nn.Conv2d(96, 256, 5, padding=2, groups=2), nn.ReLU(inplace=True),   # (B, 256, 27, 27)
            LocalResponseNorm(), nn.MaxPool2d(3, 2),                             # (B, 256, 13, 13)
            nn.Conv2d(256, 384, 3, padding=1), nn.ReLU(inplace=True),            # (B, 384, 13, 13)
            nn.Conv2d(384, 384, 3, padding=1, groups=2), nn.ReLU(inplace=True),  # (B, 384, 13, 13)
            nn.Conv2d(384, 256, 3, padding=1, groups=2), nn.ReLU(inplace=True),  # (B, 256, 13, 13)
            nn.MaxPool2d(3, 2),                                                  # (B, 256, 6, 6)
        )
        self.avgpool = nn.AdaptiveAvgPool2d(6)                                   # (B, 256, 6, 6)
        self.classifier = nn.Sequential(
            nn.Linear(256 * 6 * 6, 4096), nn.ReLU(inplace=True), nn.Dropout(),   # (B, 4096)
            nn.Linear(4096, 4096), nn.ReLU(inplace=True), nn.Dropout(),          # (B, 4096)
            nn.Linear(4096, num_classes),                                        # (B, K)
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Sec. 5: biases of 1 give the rectified units something to pass on from the beginning."""
        layers = [m for m in self.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
        for number, layer in enumerate(layers, 1):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.constant_(layer.bias, float(number in (2, 4, 5, 6, 7)))

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, 3, H, W), normalised, to logits (B, K)."""
        return self.classifier(self.avgpool(self.features(x)).flatten(1))


class AlexNetOWT(nn.Module):
    """The one-tower network of arXiv:1404.5997, equal to torchvision's `alexnet`."""

    def __init__(self, num_classes: int = 1000):
        super().__init__()
        self.features = nn.Sequential(                                           # (B, 3, 224, 224)
            nn.Conv2d(3, 64, 11, stride=4, padding=2), nn.ReLU(inplace=True),    # (B,  64, 55, 55)
            nn.MaxPool2d(3, 2),                                                  # (B,  64, 27, 27)
            nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(inplace=True),             # (B, 192, 27, 27)
            nn.MaxPool2d(3, 2),                                                  # (B, 192, 13, 13)
            nn.Conv2d(192, 384, 3, padding=1), nn.ReLU(inplace=True),            # (B, 384, 13, 13)
            nn.Conv2d(384, 256, 3, padding=1), nn.ReLU(inplace=True),            # (B, 256, 13, 13)
            nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(inplace=True),            # (B, 256, 13, 13)
            nn.MaxPool2d(3, 2),                                                  # (B, 256, 6, 6)
        )
        self.avgpool = nn.AdaptiveAvgPool2d(6)                                   # (B, 256, 6, 6)
        self.classifier = nn.Sequential(
            nn.Dropout(), nn.Linear(256 * 6 * 6, 4096), nn.ReLU(inplace=True),   # (B, 4096)
            nn.Dropout(), nn.Linear(4096, 4096), nn.ReLU(inplace=True),          # (B, 4096)
            nn.Linear(4096, num_classes),                                        # (B, K)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, 3, H, W), normalised, to logits (B, K)."""
        return self.classifier(self.avgpool(self.features(x)).flatten(1))


class ConvNet4(nn.Module):
    """Three convolutions and one fully connected layer for small images (Fig. 1)."""

    def __init__(self, num_classes: int = 10, activation: str = "relu"):
        super().__init__()
        act = {"relu": lambda: nn.ReLU(inplace=True), "tanh": nn.Tanh}[activation]
        self.features = nn.Sequential(                                           # (B,  3, 32, 32)
            nn.Conv2d(3, 32, 5, padding=2),                                      # (B, 32, 32, 32)
            nn.MaxPool2d(3, 2, ceil_mode=True), act(),                           # (B, 32, 16, 16)
            nn.Conv2d(32, 32, 5, padding=2), act(),                              # (B, 32, 16, 16)
            nn.AvgPool2d(3, 2, ceil_mode=True),                                  # (B, 32, 8, 8)
            nn.Conv2d(32, 64, 5, padding=2), act(),                              # (B, 64, 8, 8)
            nn.AvgPool2d(3, 2, ceil_mode=True),                                  # (B, 64, 4, 4)
        )
        self.avgpool = nn.AdaptiveAvgPool2d(4)                                   # (B, 64, 4, 4)
        self.classifier = nn.Linear(64 * 4 * 4, num_classes)                     # (B, K)
        for layer in self.features:
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, nonlinearity=activation)
                nn.init.zeros_(layer.bias)
        nn.init.normal_(self.classifier.weight, std=0.01)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, 3, H, W), normalised, to logits (B, K)."""
        return self.classifier(self.avgpool(self.features(x)).flatten(1))
# fmt: on


def alexnet(num_classes: int = 1000) -> AlexNet:
    """AlexNet of 2012, for 227 pixels: 60,965,224 parameters."""
    return AlexNet(num_classes)


def alexnet_owt(num_classes: int = 1000) -> AlexNetOWT:
    """AlexNet of 2014 as in torchvision, for 224 pixels: 61,100,840 parameters."""
    return AlexNetOWT(num_classes)


def convnet4(num_classes: int = 10, activation: str = "relu") -> ConvNet4:
    """The network of Fig. 1 for 32 pixels, with "relu" or "tanh": 89,578 parameters."""
    return ConvNet4(num_classes, activation)


MODELS = {"alexnet": alexnet, "alexnet_owt": alexnet_owt, "convnet4": convnet4}
