"""Inception-v3: Szegedy, Vanhoucke, Ioffe, Shlens, Wojna, "Rethinking the Inception Architecture
for Computer Vision", CVPR 2016 (arXiv:1512.00567, 2015).

A large filter is a waste: two 3x3 convolutions see what one 5x5 does for 18/25 of the work, and
1x7 followed by 7x1 what one 7x7 does for 2/7 of it (Sec. 3). So built, and with batch norm in every
layer, a network of 42 layers, as the paper counts, takes 5.7 billion multiply-adds, little more
than a third of VGG-16's. Where maps shrink, convolution and pooling run side by side, so that
nothing is squeezed through a bottleneck (Sec. 5).

Shapes: B batch, C channels, H and W pixels, K classes.

`inception_v3` is torchvision's network: it takes the published weights, names and all. They expect
inputs from -1 to 1, that is mean 0.5 and std 0.5, and their auxiliary head was trained.
The paper's Table 1 and Fig. 5 to 7 leave the widths open; these are of the authors' own code, as
torchvision has them. Departures:
- the auxiliary head pools maps that are not 17x17 (images that are not 299 pixels) adaptively to
  5x5, the size its convolution needs, so that other image sizes train, too;
- the paper has batch norm in the auxiliary head's linear layer as well ("BN-auxiliary", Sec. 4);
  there, as in the released weights, its convolutions alone have it;
- weights begin from normal distributions cut at two stds, of 0.1 (0.01 and 0.001 in the
  head), as in the authors' code; the paper doesn't say.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Size = int | tuple[int, int]
Layer = tuple[str, int, Size] | tuple[str, int, Size, int]  # name, out_channels, size, stride
Branch = list[str | Layer | list[Layer]]  # in turn; a list's layers see the same input


def module_a(pooled: int) -> list[Branch]:
    """Fig. 5: 5x5 filters become two layers of 3x3; 35x35 maps. One 5x5 is left in."""
    return [
        [("branch1x1", 64, 1)],
        [("branch5x5_1", 48, 1), ("branch5x5_2", 64, 5)],
        [("branch3x3dbl_1", 64, 1), ("branch3x3dbl_2", 96, 3), ("branch3x3dbl_3", 96, 3)],
        ["average", ("branch_pool", pooled, 1)],
    ]


def module_c(narrow: int) -> list[Branch]:
    """Fig. 6: 7x7 filters become 1x7 and 7x1; 17x17 maps, `narrow` channels inside."""
    return [
        [("branch1x1", 192, 1)],
        [("branch7x7_1", narrow, 1), ("branch7x7_2", narrow, (1, 7)), ("branch7x7_3", 192, (7, 1))],
        [
            ("branch7x7dbl_1", narrow, 1),
            ("branch7x7dbl_2", narrow, (7, 1)),
            ("branch7x7dbl_3", narrow, (1, 7)),
            ("branch7x7dbl_4", narrow, (7, 1)),
            ("branch7x7dbl_5", 192, (1, 7)),
        ],
        ["average", ("branch_pool", 192, 1)],
    ]


GRID_35 = [  # Fig. 10: 35x35 to 17x17
    [("branch3x3", 384, 3, 2)],
    [("branch3x3dbl_1", 64, 1), ("branch3x3dbl_2", 96, 3), ("branch3x3dbl_3", 96, 3, 2)],
    ["maximum"],
]
GRID_17 = [  # Fig. 10: 17x17 to 8x8
    [("branch3x3_1", 192, 1), ("branch3x3_2", 320, 3, 2)],
    [
        ("branch7x7x3_1", 192, 1),
        ("branch7x7x3_2", 192, (1, 7)),
        ("branch7x7x3_3", 192, (7, 1)),
        ("branch7x7x3_4", 192, 3, 2),
    ],
    ["maximum"],
]
MODULE_E = [  # Fig. 7: 1x3 and 3x1 side by side, for many channels on the smallest maps
    [("branch1x1", 320, 1)],
    [("branch3x3_1", 384, 1), [("branch3x3_2a", 384, (1, 3)), ("branch3x3_2b", 384, (3, 1))]],
    [
        ("branch3x3dbl_1", 448, 1),
        ("branch3x3dbl_2", 384, 3),
        [("branch3x3dbl_3a", 384, (1, 3)), ("branch3x3dbl_3b", 384, (3, 1))],
    ],
    ["average", ("branch_pool", 192, 1)],
]
MODULES = {
    "Mixed_5b": module_a(32),
    "Mixed_5c": module_a(64),
    "Mixed_5d": module_a(64),
    "Mixed_6a": GRID_35,
    "Mixed_6b": module_c(128),
    "Mixed_6c": module_c(160),
    "Mixed_6d": module_c(160),
    "Mixed_6e": module_c(192),
    "Mixed_7a": GRID_17,
    "Mixed_7b": MODULE_E,
    "Mixed_7c": MODULE_E,
}
REPEATED = ("Mixed_5c", "Mixed_5d", "Mixed_6c", "Mixed_6d", "Mixed_6e", "Mixed_7c")


def unfactorised(branch: Branch) -> Branch:
    """The branch with whole filters: two of 3x3 become one of 5x5, 1x7 and 7x1 one of 7x7.

    What the paper started from, to compare with. A pair takes the name and width of its second.
    """
    whole, layers = [], list(branch)
    while layers:
        first, *layers = layers
        second = layers[0] if layers else None
        if isinstance(first, tuple) and isinstance(second, tuple) and len(first) == 3:
            name, out_channels, size, *stride = second
            pair = (first[2], size)
            if pair == (3, 3) or pair in (((1, 7), (7, 1)), ((7, 1), (1, 7))):
                first = (name, out_channels, 5 if pair == (3, 3) else 7, *stride)
                layers = layers[1:]
        whole.append(first)
    return whole


class BasicConv2d(nn.Module):
    """Convolution, batch norm, ReLU; an odd size keeps H and W unless `padding` is 0."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        size: Size,
        stride: int = 1,
        padding: int | tuple[int, int] | None = None,
    ):
        super().__init__()
        if padding is None:
            padding = (size // 2,) * 2 if isinstance(size, int) else (size[0] // 2, size[1] // 2)
        self.conv = nn.Conv2d(in_channels, out_channels, size, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(out_channels, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) to (B, C_out, H', W')."""
        return F.relu(self.bn(self.conv(x)), inplace=True)


class Mixed(nn.Module):
    """Branches side by side, their outputs stacked as channels (`out_channels`); each branch is
    read from a table, and `width` scales its layers.

    Layers of stride 2 don't pad, so that 35 pixels become 17, and 17 become 8.
    """

    def __init__(self, in_channels: int, branches: list[Branch], width: float = 1.0):
        super().__init__()
        self.branches, self.out_channels = branches, 0
        for branch in branches:
            channels = in_channels
            for step in branch:
                layers = step if isinstance(step, list) else [step]
                layers = [layer for layer in layers if not isinstance(layer, str)]
                for name, out_channels, size, *stride in layers:
                    # With stride 2 a 3x3 doesn't pad; a 5x5 padded by 1 gives maps as large.
                    kind = dict(stride=2, padding=(size - 3) // 2) if stride else {}
                    conv = BasicConv2d(channels, int(out_channels * width), size, **kind)
                    self.add_module(name, conv)
                if layers:
                    channels = sum(int(layer[1] * width) for layer in layers)
            self.out_channels += channels

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) to (B, out_channels, H, W), or with stride 2 about half of H and W."""
        return torch.cat([self.follow(branch, x) for branch in self.branches], 1)

    def follow(self, branch: Branch, x: Tensor) -> Tensor:
        """The steps of a branch in turn: from (B, C_in, H, W) to the branch's share of channels."""
        for step in branch:
            if step == "average":
                x = F.avg_pool2d(x, 3, stride=1, padding=1)
            elif step == "maximum":
                x = F.max_pool2d(x, 3, stride=2)
            elif isinstance(step, list):
                x = torch.cat([self.get_submodule(name)(x) for name, *_ in step], 1)
            else:
                x = self.get_submodule(step[0])(x)
        return x


class InceptionAux(nn.Module):
    """A classifier on the last 17x17 maps, in training only (Fig. 8): it regularises (Sec. 4)."""

    def __init__(self, in_channels: int, num_classes: int, width: float = 1.0):
        super().__init__()
        self.conv0 = BasicConv2d(in_channels, int(128 * width), 1)
        self.conv1 = BasicConv2d(int(128 * width), int(768 * width), 5, padding=0)
        self.fc = nn.Linear(int(768 * width), num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, C, H, W) to logits (B, K)."""
        # fmt: off
        whole = x.shape[2:] == (17, 17)                                             # 299 pixels
        x = F.avg_pool2d(x, 5, 3) if whole else F.adaptive_avg_pool2d(x, 5)         # (B, 768, 5, 5)
        x = self.conv1(self.conv0(x))                                               # (B, 768, 1, 1)
        return self.fc(x.flatten(1))                                                # (B, K)
        # fmt: on


class Inception3(nn.Module):
    """Table 1: a stem, eleven modules, average pooling, one linear layer.

    `width` scales all layers, `dropout` is of what the linear layer reads. `small_images` is for 32
    pixels: the stem has stride 1 and one pooling, and of the modules for a size of maps, 16, 7 and
    3 pixels here, only the first is left. `factorised=False` has 5x5 and 7x7 filters where the
    paper splits them.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        aux_logits: bool = True,
        dropout: float = 0.5,
        width: float = 1.0,
        small_images: bool = False,
        factorised: bool = True,
    ):
        super().__init__()

        def w(channels: int) -> int:
            return int(channels * width)

        stride, padding = (1, 1) if small_images else (2, 0)
        self.Conv2d_1a_3x3 = BasicConv2d(3, w(32), 3, stride, padding)
        self.Conv2d_2a_3x3 = BasicConv2d(w(32), w(32), 3, padding=padding)
        self.Conv2d_2b_3x3 = BasicConv2d(w(32), w(64), 3)
        self.maxpool1 = nn.Identity() if small_images else nn.MaxPool2d(3, stride=2)
        self.Conv2d_3b_1x1 = BasicConv2d(w(64), w(80), 1)
        self.Conv2d_4a_3x3 = BasicConv2d(w(80), w(192), 3, padding=padding)
        self.maxpool2 = nn.MaxPool2d(3, stride=2, padding=padding)
        channels = w(192)
        for name, branches in MODULES.items():
            if not factorised:
                branches = [unfactorised(branch) for branch in branches]
            if small_images and name in REPEATED:
                self.add_module(name, nn.Identity())
            else:
                module = Mixed(channels, branches, width)
                self.add_module(name, module)
                channels = module.out_channels
            if name == "Mixed_6e":
                aux = InceptionAux(channels, num_classes, width) if aux_logits else None
                self.AuxLogits = aux
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(channels, num_classes)
        deviations = {"AuxLogits.conv1.conv": 0.01, "AuxLogits.fc": 0.001}
        for name, module in self.named_modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                std = deviations.get(name, 0.1)
                nn.init.trunc_normal_(module.weight, std=std, a=-2 * std, b=2 * std)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Images (B, 3, H, W) to logits (B, K); in training, if built with the auxiliary head, to
        (logits, aux).
        """
        # fmt: off
        heads = self.training and self.AuxLogits is not None             # sizes of 299 pixels:
        x = self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x))                    # (B, 32, 147, 147)
        x = self.maxpool1(self.Conv2d_2b_3x3(x))                         # (B, 64, 73, 73)
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x))                    # (B, 192, 71, 71)
        x = self.Mixed_5b(self.maxpool2(x))                              # (B, 256, 35, 35)
        x = self.Mixed_5d(self.Mixed_5c(x))                              # (B, 288, 35, 35)
        x = self.Mixed_6b(self.Mixed_6a(x))                              # (B, 768, 17, 17)
        x = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(x)))               # (B, 768, 17, 17)
        aux = self.AuxLogits(x) if heads else None                       # (B, K)
        x = self.Mixed_7a(x)                                             # (B, 1280, 8, 8)
        x = self.Mixed_7c(self.Mixed_7b(x))                              # (B, 2048, 8, 8)
        x = F.adaptive_avg_pool2d(x, 1).flatten(1)                       # (B, 2048)
        logits = self.fc(self.dropout(x))                                # (B, K)
        # fmt: on
        return (logits, aux) if heads else logits


def inception_v3(
    num_classes: int = 1000, aux_logits: bool = True, factorised: bool = True
) -> Inception3:
    """The paper's: 23,834,568 parameters without the auxiliary head, 27,161,264 with it."""
    return Inception3(num_classes, aux_logits, factorised=factorised)


def inception_v3_small(
    num_classes: int = 10, aux_logits: bool = True, factorised: bool = True
) -> Inception3:
    """For 32 pixels, a quarter as wide, 24 layers: 601,202 parameters without the head, 763,324
    with it.
    """
    small = dict(dropout=0.2, width=0.25, small_images=True)
    return Inception3(num_classes, aux_logits, factorised=factorised, **small)
