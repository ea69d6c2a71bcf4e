"""Densely connected networks (Huang, Liu, van der Maaten, Weinberger 2016, arXiv:1608.06993).

A residual block adds its result to its input; what is added can't be told apart afterwards. Here
every layer of a block sees what all earlier ones made, side by side (Eq. 2), and adds only a few
new channels, the growth rate k, that all later ones can use as they are. Nothing has to be learnt
or carried along twice, so the layers can be narrow and the network small.

Shapes: B batch, C channels, H and W pixels, K classes, k growth rate.

ImageNet's networks (Table 1; 121 to 264 layers, 224 pixels) are DenseNet-BC: each 3x3 convolution
is preceded by a bottleneck of 4k channels (B), and transitions halve the channels (C). CIFAR's have
three equal blocks of 32, 16 and 8 pixels, and are BC or plain. Parameters bear torchvision's
names; those of its published files (`norm.1` for `norm1`) are understood, too. Departures: the
last pooling adapts to the image's size (at 224 pixels it is the paper's 7x7). A transition pools
before its convolution where nothing stands between the two: a mean over pixels and a 1x1
convolution can change places, and four times fewer multiplications give the same. The stem of
plain networks has 16 channels, as the paper says; the authors' later code has 2k there, too.
"""

import re
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recomputed


@contextmanager
def uncounted(norm: nn.BatchNorm2d) -> Iterator[None]:
    """Within it a batch leaves the running statistics alone: it has been counted before."""
    count, momentum = norm.num_batches_tracked, norm.momentum
    norm.num_batches_tracked, norm.momentum = None, 0.0
    try:
        yield
    finally:
        norm.num_batches_tracked, norm.momentum = count, momentum


class DenseLayer(nn.Module):
    """H of Eq. 2: norm, ReLU and convolution, k channels from all that there are (Sec. 3).

    With a `bottleneck` a 1x1 convolution to 4k channels comes first. With `checkpoint` what lies
    before the first convolution's result is made again for the gradients, not kept: the features
    joined anew in every layer would take memory that grows with the square of the depth.
    """

    def __init__(
        self,
        in_channels: int,
        growth_rate: int,
        bottleneck: bool = True,
        drop_rate: float = 0.0,
        checkpoint: bool = False,
    ):
        super().__init__()
        self.bottleneck, self.checkpoint = bottleneck, checkpoint
        self.norm1 = nn.BatchNorm2d(in_channels)
        if bottleneck:
            self.conv1 = nn.Conv2d(in_channels, 4 * growth_rate, 1, bias=False)
            self.norm2 = nn.BatchNorm2d(4 * growth_rate)
            self.conv2 = nn.Conv2d(4 * growth_rate, growth_rate, 3, padding=1, bias=False)
        else:
            self.conv1 = nn.Conv2d(in_channels, growth_rate, 3, padding=1, bias=False)
        self.relu, self.dropout = nn.ReLU(inplace=True), nn.Dropout(drop_rate)

    def squeeze(self, *features: Tensor) -> Tensor:
        """The first convolution of all features, each (B, C_i, H, W): (B, 4k or k, H, W)."""
        return self.conv1(self.relu(self.norm1(torch.cat(features, 1))))

    # fmt: off
    def forward(self, features: list[Tensor]) -> Tensor:            # l of (B, C_i, H, W)
        """All features of the block so far, each (B, C_i, H, W), to new ones (B, k, H, W)."""
        if self.checkpoint and torch.is_grad_enabled():
            def contexts():                                         # first, and when it is redone
                return nullcontext(), uncounted(self.norm1)
            out = recomputed(self.squeeze, *features, use_reentrant=False, context_fn=contexts)
        else:
            out = self.squeeze(*features)                           # (B, 4k or k, H, W)
        out = self.dropout(out)
        if self.bottleneck:
            out = self.dropout(self.conv2(self.relu(self.norm2(out))))  # (B, k, H, W)
        return out
    # fmt: on


class DenseBlock(nn.Sequential):
    """Layers of which each sees the block's input and what all earlier ones made (Fig. 1)."""

    def __init__(self, num_layers: int, in_channels: int, growth_rate: int, **options):
        super().__init__()
        for i in range(num_layers):
            layer = DenseLayer(in_channels + i * growth_rate, growth_rate, **options)
            self.add_module(f"denselayer{i + 1}", layer)

    def forward(self, x: Tensor) -> Tensor:
        """Features (B, C, H, W) to (B, C + layers * k, H, W)."""
        features = [x]
        for layer in self:
            features.append(layer(features))  # x_l = H_l([x_0, ..., x_(l-1)]), Eq. 2
        return torch.cat(features, 1)


class Transition(nn.Module):
    """Between two blocks: norm, ReLU, a 1x1 convolution, and half the resolution (Sec. 3)."""

    def __init__(self, in_channels: int, out_channels: int, drop_rate: float = 0.0):
        super().__init__()
        self.norm = nn.BatchNorm2d(in_channels)
        self.relu = nn.ReLU(inplace=True)
        self.conv = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        self.dropout, self.pool = nn.Dropout(drop_rate), nn.AvgPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        """Features (B, C_in, H, W) to (B, C_out, H/2, W/2)."""
        x = self.relu(self.norm(x))
        if self.training and self.dropout.p:
            return self.pool(self.dropout(self.conv(x)))
        return self.conv(self.pool(x))  # the same, of a quarter of the pixels


class DenseNet(nn.Module):
    """Four blocks for ImageNet (Table 1), three for CIFAR (Sec. 3).

    Of `block_config` are the layers of each block, `num_init_features` the channels of the stem.
    Transitions leave a share `compression` of the channels. `small_images` are seen pixel by
    pixel, without the stem's pooling. `drop_rate` is of the dropout behind each convolution but
    the first; `checkpoint` saves memory in training, for a longer step (see DenseLayer).
    """

    def __init__(
        self,
        growth_rate: int,
        block_config: tuple[int, ...],
        num_init_features: int,
        num_classes: int,
        bottleneck: bool = True,
        compression: float = 0.5,
        small_images: bool = False,
        drop_rate: float = 0.0,
        checkpoint: bool = False,
    ):
        super().__init__()
        channels, parts = num_init_features, OrderedDict()
        if small_images:
            parts["conv0"] = nn.Conv2d(3, channels, 3, padding=1, bias=False)
        else:
            parts["conv0"] = nn.Conv2d(3, channels, 7, 2, padding=3, bias=False)
            parts["norm0"] = nn.BatchNorm2d(channels)
            parts["relu0"] = nn.ReLU(inplace=True)
            parts["pool0"] = nn.MaxPool2d(3, 2, padding=1)
        options = dict(bottleneck=bottleneck, drop_rate=drop_rate, checkpoint=checkpoint)
        for number, num_layers in enumerate(block_config, 1):
            block = DenseBlock(num_layers, channels, growth_rate, **options)
            parts[f"denseblock{number}"] = block
            channels += num_layers * growth_rate
            if number < len(block_config):
                fewer = int(channels * compression)
                parts[f"transition{number}"] = Transition(channels, fewer, drop_rate)
                channels = fewer
        parts["norm5"] = nn.BatchNorm2d(channels)
        self.features = nn.Sequential(parts)
        self.relu, self.avgpool = nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(channels, num_classes)
        nn.init.zeros_(self.classifier.bias)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):  # as in the authors' code: [10] in the paper
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        self.register_load_state_dict_pre_hook(rename)

    # fmt: off
    def forward(self, x: Tensor) -> Tensor:             # (B, 3, H, W)
        """Images (B, 3, H, W) to logits (B, K)."""
        x = self.relu(self.features(x))                 # (B, C, H/32, W/32); CIFAR: H/4, W/4
        x = self.avgpool(x).flatten(1)                  # (B, C)
        return self.classifier(x)                       # (B, K)
    # fmt: on


def current_name(name: str) -> str:
    """A parameter's name of today: published files have `norm.1` and `conv.2` in their layers."""
    return re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)", r"\1\2", name)


def rename(model: nn.Module, state: dict[str, Tensor], *_) -> None:
    """Gives the tensors of a file their names of today, before they are loaded."""
    for name in list(state):
        state[current_name(name)] = state.pop(name)


def densenet121(num_classes: int = 1000, **options) -> DenseNet:
    """Table 1, k = 32; 7,978,856 parameters. `options` are DenseNet's drop_rate and checkpoint."""
    return DenseNet(32, (6, 12, 24, 16), 64, num_classes, **options)


def densenet161(num_classes: int = 1000, **options) -> DenseNet:
    """k = 48, of the authors' later weights; 28,681,000 parameters."""
    return DenseNet(48, (6, 12, 36, 24), 96, num_classes, **options)


def densenet169(num_classes: int = 1000, **options) -> DenseNet:
    """Table 1, k = 32; 14,149,480 parameters."""
    return DenseNet(32, (6, 12, 32, 32), 64, num_classes, **options)


def densenet201(num_classes: int = 1000, **options) -> DenseNet:
    """Table 1, k = 32; 20,013,928 parameters."""
    return DenseNet(32, (6, 12, 48, 32), 64, num_classes, **options)


def cifar_densenet(
    depth: int, growth_rate: int = 12, bc: bool = False, num_classes: int = 10, **options
) -> DenseNet:
    """Sec. 3 and 4.2: three equal blocks of 3x3 convolutions; `bc` with bottleneck, compression.

    Plain networks have 3n + 4 layers, BC 6n + 4. Of ten classes have: 40 layers and k = 12
    1,019,722 parameters, 100 and 12 6,979,642, 100 and 24 27,249,082; BC of 100 and 12 769,162,
    of 250 and 24 15,324,406, of 190 and 40 25,624,430.
    Raises ValueError for another kind of depth.
    """
    num_layers, rest = divmod(depth - 4, 6 if bc else 3)
    if rest or num_layers < 1:
        raise ValueError(f"the depth has to be {6 if bc else 3}n + 4, not {depth}")
    stem, compression = (2 * growth_rate, 0.5) if bc else (16, 1.0)
    kind = dict(bottleneck=bc, compression=compression, small_images=True)
    return DenseNet(growth_rate, (num_layers,) * 3, stem, num_classes, **kind, **options)


densenet40 = partial(cifar_densenet, 40)  # k = 12
densenet_bc_22_12, densenet_bc_40_12, densenet_bc_100_12 = (
    partial(cifar_densenet, depth, bc=True) for depth in (22, 40, 100)
)

MODELS = {
    "densenet_bc_22_12": densenet_bc_22_12,
    "densenet_bc_40_12": densenet_bc_40_12,
    "densenet_bc_100_12": densenet_bc_100_12,
    "densenet40": densenet40,
    "densenet121": densenet121,
    "densenet161": densenet161,
    "densenet169": densenet169,
    "densenet201": densenet201,
}
