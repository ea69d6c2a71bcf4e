"""LeNet-5: LeCun, Bottou, Bengio, Haffner, "Gradient-Based Learning Applied to Document
Recognition", Proceedings of the IEEE 86(11), 1998 (not on arXiv).

A convolutional layer looks at small patches only, applies the same few weights at every place of
the image, and is followed by subsampling, so that a shape is recognised wherever it stands. All
layers, from the pixels to the class, are trained together by gradient descent. The 1998 network
ends in ten radial basis units that measure the distance to a small picture of each digit.

Shapes: B batch, C maps (channels), H and W pixels, K classes.

`lenet5` follows Sec. II-B; these points the paper leaves open or we changed:
- the digit bitmaps of Fig. 3 are drawn anew: the paper prints them too small to copy;
- the constant j of Eq. 9 has no value in the paper: 1 here, see `eq9_loss`;
- more than ten classes get random codes of -1 and +1 (the alternative that Sec. II-B names).
`lenet5_modern` is the network most people build under this name today: all maps connected in C3,
ReLU, max-pooling and a linear output layer.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Table I: the maps of S2 that each of the sixteen maps of C3 sees.
C3_INPUTS = (
    (0, 1, 2), (1, 2, 3), (2, 3, 4), (3, 4, 5), (0, 4, 5), (0, 1, 5),  # three neighbours
    (0, 1, 2, 3), (1, 2, 3, 4), (2, 3, 4, 5), (0, 3, 4, 5), (0, 1, 4, 5), (0, 1, 2, 5),  # four
    (0, 1, 3, 4), (1, 2, 4, 5), (0, 2, 3, 5),  # two pairs
    (0, 1, 2, 3, 4, 5),  # all
)  # fmt: skip

# The digits as 7x12 pictures, twelve rows each: the targets of the 84 units of F6 (after Fig. 3).
DIGITS = """
 .......  .......  .......  .......  .......  .......  .......  .......  .......  .......
 ..###..  ...#...  .#####.  .#####.  .....#.  #######  ..####.  #######  .#####.  .#####.
 .##.##.  ..##...  ##...##  ##...##  ....##.  ##.....  .##....  ##...##  ##...##  ##...##
 ##...##  .###...  .....##  .....##  ...###.  ##.....  ##.....  .....##  ##...##  ##...##
 ##...##  ...#...  .....##  .....##  ..##.#.  ######.  ##.....  ....##.  ##...##  ##...##
 ##...##  ...#...  ....##.  ..####.  .##..#.  .....##  ######.  ....##.  .#####.  .######
 ##...##  ...#...  ...##..  .....##  ##...#.  .....##  ##...##  ...##..  ##...##  .....##
 ##...##  ...#...  ..##...  .....##  #######  .....##  ##...##  ...##..  ##...##  .....##
 .##.##.  ...#...  .##....  ##...##  .....#.  ##...##  ##...##  ..##...  ##...##  ....##.
 ..###..  .#####.  #######  .#####.  .....#.  .#####.  .#####.  ..##...  .#####.  .####..
 .......  .......  .......  .......  .......  .......  .......  .......  .......  .......
 .......  .......  .......  .......  .......  .......  .......  .......  .......  .......
"""


def squash(x: Tensor) -> Tensor:
    """Scaled hyperbolic tangent, f(1) = 1 and f(-1) = -1, most strongly bent there (App. A)."""
    return 1.7159 * torch.tanh(2 / 3 * x)


def uniform_fan_in(parameter: Tensor, fan_in: int) -> None:
    """Draws from [-2.4/fan_in, 2.4/fan_in], so that the squashing starts unsaturated (App. A)."""
    nn.init.uniform_(parameter, -2.4 / fan_in, 2.4 / fan_in)


class Subsampling(nn.Module):
    """S2 and S4: the sum over 2x2 places, times one coefficient, plus one bias a map."""

    def __init__(self, num_maps: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_maps, 1, 1))
        self.bias = nn.Parameter(torch.empty(num_maps, 1, 1))
        for parameter in (self.weight, self.bias):
            uniform_fan_in(parameter, 4)

    def forward(self, x: Tensor) -> Tensor:  # (B, C, H, W)
        return F.avg_pool2d(x, 2) * (4 * self.weight) + self.bias  # (B, C, H/2, W/2)


class SparseConv2d(nn.Module):
    """C3: a 5x5 convolution in which map k sees the maps `inputs[k]` only (Table I).

    Holds just the existing connections: 60 kernels and 16 biases, 1,516 numbers. The different
    inputs force the maps to differ, and fewer connections mean less work.
    """

    def __init__(self, inputs: tuple = C3_INPUTS, in_channels: int = 6, kernel_size: int = 5):
        super().__init__()
        self.shape = (len(inputs), in_channels, kernel_size, kernel_size)
        pairs = [(k, i) for k, seen in enumerate(inputs) for i in seen]
        self.register_buffer("pairs", torch.tensor(pairs).T.contiguous(), persistent=False)
        self.weight = nn.Parameter(torch.empty(len(pairs), kernel_size, kernel_size))
        self.bias = nn.Parameter(torch.empty(len(inputs)))
        for (k, _), kernel in zip(pairs, self.weight.data, strict=True):
            uniform_fan_in(kernel, len(inputs[k]) * kernel_size**2)
        for k, seen in enumerate(inputs):
            uniform_fan_in(self.bias.data[k], len(seen) * kernel_size**2)

    def forward(self, x: Tensor) -> Tensor:  # (B, 6, 14, 14)
        kernels = self.weight.new_zeros(self.shape).index_put(tuple(self.pairs), self.weight)
        return F.conv2d(x, kernels, self.bias)  # (B, 16, 10, 10)


def digit_bitmaps(num_classes: int = 10) -> Tensor:
    """The fixed centres of the output units: (num_classes, 84), +1 for ink and -1 for paper."""
    rows = [line.split() for line in DIGITS.strip().splitlines()]  # 12 rows of ten 7-letter pieces
    glyphs = ["".join(row[digit] for row in rows) for digit in range(10)]
    codes = torch.tensor([[1.0 if pixel == "#" else -1.0 for pixel in glyph] for glyph in glyphs])
    random = torch.Generator().manual_seed(0)
    extra = torch.randint(0, 2, (max(0, num_classes - 10), 84), generator=random) * 2.0 - 1
    return torch.cat([codes, extra])[:num_classes]


class RBF(nn.Module):
    """Euclidean radial basis units: y_i = sum_j (x_j - w_ij)^2 with fixed w (Eq. 7)."""

    def __init__(self, num_classes: int = 10):
        super().__init__()
        self.register_buffer("centres", digit_bitmaps(num_classes))

    def forward(self, x: Tensor) -> Tensor:  # (B, 84)
        return (x[:, None] - self.centres).square().sum(2)  # (B, K)


def eq9_loss(logits: Tensor, labels: Tensor, j: float = 1.0) -> Tensor:
    """Eq. 9, averaged over the batch, for logits that are minus the distances y: (B, K), (B,).

    Pulls the right class's distance down and pushes the others up, up to distances around j.
    The paper says only that j is positive; the README gives the errors at four values.
    """
    limit = torch.full_like(logits[:, :1], -j)  # what is further away than j is left alone
    competing = torch.cat([limit, logits], 1).logsumexp(1)
    return (competing - logits.gather(1, labels[:, None])[:, 0]).mean()


class LeNet5(nn.Module):
    """Fig. 2: three convolutions, two subsamplings, 84 hidden units, ten radial basis units."""

    def __init__(self, num_classes: int = 10):
        super().__init__()
        self.c1 = nn.Conv2d(1, 6, 5)
        self.s2 = Subsampling(6)
        self.c3 = SparseConv2d()
        self.s4 = Subsampling(16)
        self.c5 = nn.Conv2d(16, 120, 5)
        self.f6 = nn.Linear(120, 84)
        self.output = RBF(num_classes)
        for layer, fan_in in ((self.c1, 25), (self.c5, 400), (self.f6, 120)):
            uniform_fan_in(layer.weight, fan_in)
            uniform_fan_in(layer.bias, fan_in)

    def features(self, x: Tensor) -> Tensor:
        """Grey images (B, 1, 32, 32), background -0.1 and ink 1.175, to F6's outputs (B, 84)."""
        x = squash(self.c1(x))  # (B, 6, 28, 28)
        x = squash(self.s2(x))  # (B, 6, 14, 14)
        x = squash(self.c3(x))  # (B, 16, 10, 10)
        x = squash(self.s4(x))  # (B, 16, 5, 5)
        x = squash(self.c5(x)).flatten(1)  # (B, 120)
        return squash(self.f6(x))  # (B, 84), a picture of 7x12

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, 1, 32, 32) to logits (B, K): minus the distance to each class's bitmap."""
        return -self.output(self.features(x))


class LeNet5Modern(nn.Module):
    """LeNet-5's sizes with today's parts: 61,706 parameters."""

    def __init__(self, num_classes: int = 10):
        super().__init__()
        self.c1 = nn.Conv2d(1, 6, 5)
        self.c3 = nn.Conv2d(6, 16, 5)
        self.c5 = nn.Linear(16 * 5 * 5, 120)  # a 5x5 convolution of 5x5 maps
        self.f6 = nn.Linear(120, 84)
        self.output = nn.Linear(84, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, 1, 32, 32) to logits (B, K)."""
        x = F.relu(F.max_pool2d(self.c1(x), 2))  # (B, 6, 14, 14); pooled first: fewer ReLUs
        x = F.relu(F.max_pool2d(self.c3(x), 2))  # (B, 16, 5, 5)
        x = F.relu(self.c5(x.flatten(1)))  # (B, 120)
        return self.output(F.relu(self.f6(x)))  # (B, K)


def lenet5(num_classes: int = 10) -> LeNet5:
    """LeNet-5 of 1998: 60,000 trainable parameters, 340,908 connections."""
    return LeNet5(num_classes)


def lenet5_modern(num_classes: int = 10) -> LeNet5Modern:
    """LeNet-5 as built today: 61,706 parameters with ten classes."""
    return LeNet5Modern(num_classes)


MODELS = {"lenet5": lenet5, "lenet5_modern": lenet5_modern}
