"""Where training tiles are cut: anywhere, turned, mirrored and bent; and their brightness."""

import math

import torch
from torch import Tensor

from common import cli
from common.data.batches import Draw
from unet.model import elastic_displacement


def tile_of(args: cli.Flags) -> int:
    """The side of a training tile's answer: multiples of 16, unpadded networks 4 more."""
    rest = 0 if args.model == "unet_small" else 4
    return -(-max(1, args.size - rest) // 16) * 16 + rest


def cut(
    draw: Draw, heights: Tensor, widths: Tensor, args: cli.Flags, context: int
) -> tuple[Tensor, int]:
    """Where a training tile's pixels are (B, S, S, 2), x and y; and the side with answers.

    Anywhere in the image; with --augment turned, mirrored, and bent (Sec. 3.1).
    """
    tile, sizes = tile_of(args), torch.stack([widths, heights], 1)
    side = tile + 2 * context
    axis = torch.arange(side, device=heights.device) - (side - 1) / 2
    places = torch.stack(torch.meshgrid(axis, axis, indexing="xy"))  # (2, S, S), x and y
    free = (sizes - tile).clamp(min=0)  # (B, 2), where a tile may begin
    if args.augment:
        free = torch.where(free > 0, free, tile / 8)  # a shift, mirrored at the border
        angle = draw.uniform(-1, 1) * math.radians(args.rotate)
        flip = draw.integers(0, 1) * 2 - 1
        turn = torch.stack([angle.cos() * flip, -angle.sin(), angle.sin() * flip, angle.cos()], 1)
        places = torch.einsum("bij,jhw->bihw", turn.view(-1, 2, 2), places)
        normal = draw.normal(2, 3, 3).float()
        places = places + elastic_displacement(normal, side, side, args.elastic)
    middle = (draw.uniform(0, 1, 2) - 0.5) * free + (sizes - 1) / 2  # of the tile
    return (places + middle[:, :, None, None]).movedim(1, 3), tile


def brighten(images: Tensor, draw: Draw) -> Tensor:
    """Changes brightness and contrast of normalised images, as microscopes do."""
    gain, offset = draw.uniform(0.75, 1.25, 1, 1, 1), draw.uniform(-0.3, 0.3, 1, 1, 1)
    return images * gain + offset
