"""U-Net: Convolutional Networks for Biomedical Image Segmentation.

Olaf Ronneberger, Philipp Fischer, Thomas Brox, 2015, arXiv 1505.04597.

A class for every pixel. A contracting path of convolutions and pooling sees what is there; an
expansive path brings the maps back to the pixels, and takes at each scale the contracting path's
map of that scale beside its own, which knows where it is. Convolutions are not padded, so that
every answer rests on real pixels, and images of any size are done tile by tile.

Shapes: B batch, C channels, K classes, H and W pixels.

Departures:
- Map sizes are those of Fig. 1; how up-convolutions are made the paper leaves open. Here they
  are transposed 2x2 convolutions with stride 2, without a ReLU: "a 2x2 convolution" after a plain
  upsampling would need a padded border.
- Dropout: the paper has it "at the end of the contracting path", without a rate or a number;
  here it is 0.5 after the fourth and the fifth pair of convolutions.
- `padding="same"` and `norm=True`, which are not the paper's, pad convolutions with zeros, so that
  maps keep their size, and put batch norm after them. `unet_small` has both, and trains in minutes.
"""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CONTEXT = 92  # pixels on each side that the unpadded network uses up: (572 - 388) / 2
ALIGN = 16  # pixels of a place in the lowest map: four times pooled
REACH = 96  # how far an output depends on its surroundings, as a multiple of ALIGN


class DoubleConv(nn.Sequential):
    """Two 3x3 convolutions, each with a ReLU (Fig. 1, blue arrows)."""

    def __init__(self, in_channels: int, out_channels: int, padding: str, norm: bool = False):
        layers: list[nn.Module] = []
        for channels in (in_channels, out_channels):
            layers.append(nn.Conv2d(channels, out_channels, 3, padding=padding, bias=not norm))
            layers += [nn.BatchNorm2d(out_channels)] if norm else []
            layers.append(nn.ReLU(inplace=True))
        super().__init__(*layers)


class Up(nn.Module):
    """Up-convolution, concatenation with the cropped map of the same scale, two convolutions.

    Shapes are those without padding.
    """

    def __init__(self, in_channels: int, out_channels: int, padding: str, norm: bool, skip: bool):
        super().__init__()
        self.up = nn.ConvTranspose2d(in_channels, out_channels, 2, stride=2)
        self.conv = DoubleConv(out_channels * (2 if skip else 1), out_channels, padding, norm)
        self.skip = skip

    def forward(self, x: Tensor, across: Tensor) -> Tensor:
        # fmt: off
        x = self.up(x)                                           # (B, 2C, H, W) to (B, C, 2H, 2W)
        if self.skip:
            x = torch.cat([crop(across, *x.shape[2:]), x], 1)    # (B, 2C, 2H, 2W)
        return self.conv(x)                                      # (B, C, 2H - 4, 2W - 4)
        # fmt: on


class UNet(nn.Module):
    """The network of Fig. 1: images (B, in_channels, H, W) to logits (B, K, H', W').

    Unpadded, H' = H - 184 and H has to be 12 more than a multiple of 16, at least 188; with
    `padding="same"`, H' = H, a multiple of 16. Raises ValueError for other sizes. `width` is the
    number of channels of the first stage. `skips=False` leaves the connections between the paths
    away, for the claim that they matter.
    """

    def __init__(
        self,
        in_channels: int = 1,
        num_classes: int = 2,
        width: int = 64,
        padding: str = "valid",
        dropout: float = 0.5,
        skips: bool = True,
        norm: bool = False,
    ):
        super().__init__()
        self.padding = padding
        self.context = CONTEXT if padding == "valid" else 0  # pixels lost on each side
        widths = [width << stage for stage in range(5)]  # 64 to 1024
        self.down = nn.ModuleList(
            DoubleConv(c_in, c_out, padding, norm)
            for c_in, c_out in zip([in_channels, *widths], widths, strict=False)
        )
        self.ups = nn.ModuleList(Up(2 * c, c, padding, norm, skips) for c in reversed(widths[:-1]))
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Conv2d(width, num_classes, 1)
        self.initialise()

    def initialise(self) -> None:
        """Normal with std sqrt(2 / N), N the inputs of a neuron (Sec. 3); biases zero."""
        for m in self.modules():
            if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d)):
                # Each output of a 2x2 up-convolution with stride 2 sees one input place.
                places = m.kernel_size[0] ** 2 if isinstance(m, nn.Conv2d) else 1
                nn.init.normal_(m.weight, 0.0, (2 / (m.in_channels * places)) ** 0.5)
                if m.bias is not None:
                    nn.init.zeros_(m.bias)

    def forward(self, x: Tensor) -> Tensor:
        self.check(*x.shape[2:])
        across = []
        # fmt: off
        for stage, conv in enumerate(self.down):
            x = F.max_pool2d(x, 2) if stage else x               # 572; 284, 140, 68, 32
            x = conv(x)                                          # 568; 280, 136, 64, 28
            x = self.dropout(x) if stage > 2 else x
            across.append(x)
        for up, left in zip(self.ups, across[-2::-1], strict=True):
            x = up(x, left)                                      # 52, 100, 196, 388
        return self.head(x)                                      # (B, K, 388, 388)
        # fmt: on

    def check(self, height: int, width: int) -> None:
        """Raises ValueError unless every pooled map has even sides."""
        rest, least = (12, 188) if self.padding == "valid" else (0, ALIGN)
        if height % ALIGN != rest or width % ALIGN != rest or min(height, width) < least:
            raise ValueError(
                f"{height}x{width} pixels: sides have to be {rest} more than a multiple of "
                f"{ALIGN}, and at least {least}"
            )


def crop(x: Tensor, height: int, width: int) -> Tensor:
    """The middle of maps (B, C, H, W)."""
    top, left = (x.shape[2] - height) // 2, (x.shape[3] - width) // 2
    return x[:, :, top : top + height, left : left + width]


def mirror(places: Tensor, length: int) -> Tensor:
    """Places beyond 0 ... length - 1, mirrored back at the first and the last of them."""
    if length == 1:
        return torch.zeros_like(places)
    places = places.abs() % (2 * length - 2)
    return torch.where(places < length, places, 2 * length - 2 - places)


def overlap_tile(model: UNet, images: Tensor, tile: int = 388) -> Tensor:
    """Logits (B, K, H, W) for images (B, C, H, W) of any size, tile by tile (Fig. 2).

    Tiles overlap in their inputs, so that the answer is that of one whole pass, without seams.
    What an unpadded network needs beyond the image's border is mirrored; a padded one has zeros
    there, as in training, and only sides that aren't multiples of 16 are filled up by mirroring.
    `tile` is the side of the answers, in pixels.
    """
    valid = model.padding == "valid"
    step = max(ALIGN, tile - tile % ALIGN)  # keeps tiles in phase with the pooling
    sides = images.shape[2:]
    rest = 4 if valid else 0  # unpadded answers are 4 pixels larger than a multiple of 16

    def cuts(length: int) -> list[tuple[int, Tensor, int]]:
        """For each tile: where it begins, the places of its input, where its answer is there."""
        found = []
        for begin in range(0, length, step):
            size = min(step, -(-max(1, length - begin - rest) // ALIGN) * ALIGN)
            end = begin + size + rest
            if valid:
                low, high, offset = begin - CONTEXT, end + CONTEXT, 0
            else:
                low, high = max(0, begin - REACH), min(-(-length // ALIGN) * ALIGN, end + REACH)
                offset = begin - low
            places = torch.arange(low, high, device=images.device)
            found.append((begin, mirror(places, length), offset))
        return found

    answers = None
    for top, rows, down in cuts(sides[0]):
        for left, columns, right in cuts(sides[1]):
            y = model(images[:, :, rows[:, None], columns])[:, :, down:, right:]
            if answers is None:
                answers = y.new_empty(*y.shape[:2], *sides)
            place = answers[:, :, top : top + step + rest, left : left + step + rest]
            place.copy_(y[:, :, : place.shape[2], : place.shape[3]])
    return answers


def segment(model: UNet, images: Tensor, views: int = 1, tile: int = 388) -> Tensor:
    """Log-probabilities (B, K, H, W) for images of any size; with 8 views, of their average.

    The paper's result on membranes is an average over seven rotations (Sec. 4), it doesn't say
    which; these are four quarter turns and their mirror images, which need no interpolation.
    """
    total = torch.zeros((), device=images.device)
    for view in range(views):
        turns, flips = view % 4, (3,) if view > 3 else ()
        answer = overlap_tile(model, images.flip(flips).rot90(turns, (2, 3)), tile)
        total = total + answer.float().softmax(1).rot90(-turns, (2, 3)).flip(flips)
    return (total / views).clamp(min=1e-12).log()


def border_weights(near: Tensor, next_near: Tensor, w0: float = 10.0, sigma: float = 5.0) -> Tensor:
    """The second term of Eq. 2: large on the background between two cells that nearly touch.

    `near` and `next_near` are a pixel's distances to the borders of the nearest and the second
    nearest cell, in pixels; infinite where there is none.
    """
    return w0 * torch.exp(-((near + next_near) ** 2) / (2 * sigma**2))


def energy(logits: Tensor, classes: Tensor, weights: Tensor) -> Tensor:
    """Eq. 1, as a mean: logits (B, K, H, W), classes (B, H, W) with 255 where unknown.

    The paper's energy is a sum over pixels; its mean has the same minimum, and learning rates
    that don't depend on the size of a tile.
    """
    loss = F.cross_entropy(logits, classes.long(), reduction="none", ignore_index=255)
    return (weights * loss).sum() / (classes != 255).sum().clamp(min=1)


def elastic_displacement(normal: Tensor, height: int, width: int, sigma: float = 10.0) -> Tensor:
    """Smooth displacements (B, 2, H, W) in pixels (Sec. 3.1).

    `normal` (B, 2, 3, 3) are standard normal numbers, the vectors of a coarse 3x3 grid over the
    image; between its points they are interpolated bicubically.
    """
    return F.interpolate(normal * sigma, (height, width), mode="bicubic", align_corners=True)


unet = UNet
unet_small = partial(UNet, width=16, padding="same", norm=True)

MODELS = {
    "unet": unet,  # 31,030,658 parameters
    "unet_small": unet_small,  # a quarter of the widths, padded, batch norm: 1,942,306
}
