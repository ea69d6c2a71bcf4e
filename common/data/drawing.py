"""How the scenes of `common.data.shapes` are drawn: shapes, strokes, ground and noise.

A shape's edge is looked up in a template of signed distances, turned and scaled; how far a pixel's
centre is inside says how much of the pixel is covered.
"""

import functools
import math
import operator
from collections.abc import Iterable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

CLASSES = ["circle", "square", "triangle", "star", "cross"]
CLASSES += ["ring", "heart", "moon", "arrow", "hourglass"]
REACH, TEXELS = 2.0, 160  # templates cover [-REACH, REACH]^2 around a shape of radius 1
HEART = (-13 / 16, 5 / 16, 2 / 16, 1 / 16)  # of the cosines of its outline
FORM = ("shape", "centre", "radius", "angle")


def paint(world: dict[str, Tensor], size: int) -> tuple[Tensor, list[Tensor]]:
    """Pixels uint8 (N, 3, size, size), and how much is seen of each object, (N, size, size)."""
    place = (torch.arange(size) + 0.5) / size
    image = background(world, place)  # (N, 3, S, S), 0 to 1
    count, covers = world["count"], []
    *under, over = world["strokes"].unbind(1)
    for stroke in under:
        image = image.lerp_(stroke[:, 4:7, None, None], stroke_cover(stroke, place)[:, None])
    for k in range(world["shape"].shape[1]):
        here = (count > k).nonzero()[:, 0]
        cover = torch.zeros(len(image), size, size)
        if len(here):
            cover[here] = object_cover({key: world[key][here, k] for key in FORM}, size)
        covers = [seen * (1 - cover) for seen in covers] + [cover]
        image = image.lerp_(world["rgb"][:, k, :, None, None], cover[:, None])
    cover = stroke_cover(over, place)
    covers = [seen * (1 - cover) for seen in covers]
    image = image.lerp_(over[:, 4:7, None, None], cover[:, None])
    num_bytes = image[0].numel()
    words = np.stack([stream.random_raw(-(-num_bytes // 8)) for stream in world["streams"]])
    noise = torch.from_numpy(words.astype("<u8").view(np.uint8)[:, :num_bytes].copy())
    noise = noise.view(image.shape)  # 0 to 255
    level = (8 + 24 * world["ground"][:, 12]).view(-1, 1, 1, 1) / 255
    image = image.mul_(255).add_(noise.float().sub_(127.5).mul_(level))
    return image.round_().clamp_(0, 255).byte(), covers


def object_cover(form: dict[str, Tensor], size: int) -> Tensor:
    """How much of each pixel one object of each scene covers, 0 to 1: (N, size, size)."""
    shape, centre, radius, angle = form.values()
    cos, sin = angle.cos() / radius / REACH / 2, angle.sin() / radius / REACH / 2
    x, y = (centre * 2 - 1).unbind(1)  # affine_grid's coordinates: -1 to 1 across the image
    rows = [cos, sin, -(cos * x + sin * y), -sin, cos, sin * x - cos * y]
    grid = F.affine_grid(torch.stack(rows, 1).view(-1, 2, 3), [len(x), 1, size, size], False)
    distance = F.grid_sample(templates()[shape], grid, padding_mode="border", align_corners=False)
    return (0.5 - distance[:, 0] * (radius * size).view(-1, 1, 1)).clamp_(0, 1)


def stroke_cover(stroke: Tensor, place: Tensor) -> Tensor:
    """How much of each pixel a thin line between two points covers, 0 to 1: (N, S, S)."""
    ends = stroke[:, :4].view(-1, 2, 2) * 1.4 - 0.2
    begin, along = ends[:, 0], ends[:, 1] - ends[:, 0]  # (N, 2): x, y
    x, y = (place - begin[:, :1])[:, None], (place - begin[:, 1:])[:, :, None]
    dx, dy = along[:, 0, None, None], along[:, 1, None, None]
    share = ((x * dx + y * dy) / (dx * dx + dy * dy).clamp(min=1e-6)).clamp_(0, 1)
    distance = ((x - share * dx) ** 2 + (y - share * dy) ** 2).sqrt_()
    width = (0.006 + 0.012 * stroke[:, 7]).view(-1, 1, 1)
    return (0.5 - (distance - width) * len(place)).clamp_(0, 1)


def background(world: dict[str, Tensor], place: Tensor) -> Tensor:
    """Two muted colours, mixed by smooth noise and waves: (N, 3, S, S), 0 to 1."""
    u, size = world["ground"], len(place)
    smooth = F.interpolate(world["grid"], (size, size), mode="bicubic", align_corners=False)
    angle, frequency = u[:, 0] * math.pi, 8 + 50 * u[:, 1] ** 2
    wave = place * (angle.cos() * frequency)[:, None]  # (N, S)
    down = place * (angle.sin() * frequency)[:, None] + 6.3 * u[:, 2:3]
    wave = torch.sin(wave[:, None, :] + down[:, :, None])[:, None]  # (N, 1, S, S)
    share = u[:, 3].view(-1, 1, 1, 1)
    mix = (smooth * (1.2 - share * 0.7)).add_(wave * (0.35 * share)).clamp_(0, 1)
    grey = 0.15 + 0.7 * u[:, 4:5] + torch.tensor([-0.5, 0.5]) * (0.1 + 0.3 * u[:, 5:6])
    tint = (u[:, [6, 7, 8, 9, 10, 11]].view(-1, 2, 3) - 0.5) * 0.24
    ground = (grey[:, :, None] + tint).clamp(0, 1)[..., None, None]  # (N, 2, 3, 1, 1)
    return torch.lerp(ground[:, 0], ground[:, 1], mix)


@functools.cache
def templates() -> Tensor:
    """Signed distances to the edges of each class at radius 1, negative inside: (K, 1, T, T)."""
    place = (torch.arange(TEXELS, dtype=torch.float64) + 0.5) / TEXELS * 2 * REACH - REACH
    y, x = torch.meshgrid(place, place, indexing="ij")
    radius, moved = (x * x + y * y).sqrt(), ((x - 0.42) ** 2 + y * y).sqrt()
    round_ones = {
        "circle": radius - 0.9,
        "ring": (radius - 0.68).abs() - 0.26,
        "moon": (radius - 0.95).maximum(0.72 - moved),  # a disc without another
    }
    fields = [
        round_ones[name] if name in round_ones else polygon_distance(outline(name), x, y)
        for name in CLASSES
    ]
    return torch.stack(fields)[:, None].float()


def outline(name: str) -> list[tuple[float, float]]:
    """The corners of a shape of radius about 1."""

    def spokes(angles: Iterable[float], radii: Sequence[float]) -> list[tuple[float, float]]:
        pairs = ((math.radians(a), radii[i % len(radii)]) for i, a in enumerate(angles))
        return [(r * math.sin(a), -r * math.cos(a)) for a, r in pairs]

    if name == "square":
        return spokes(range(45, 405, 90), [1.1])
    if name == "triangle":
        return spokes(range(0, 360, 120), [1.1])
    if name == "star":
        return spokes(range(0, 360, 36), [1.1, 0.45])
    if name == "cross":
        return spokes([a + turn for turn in range(0, 360, 90) for a in (18, 45, 72)], [1, 0.44, 1])
    if name == "hourglass":
        return [(-0.8, -1), (0.8, -1), (0.12, 0), (0.8, 1), (-0.8, 1), (-0.12, 0)]
    if name == "arrow":
        right = [(0, -1.1), (0.85, -0.1), (0.3, -0.1), (0.3, 1)]
        return right + [(-x, y) for x, y in right[:0:-1]]
    angles = (2 * math.pi * i / 72 for i in range(72))  # the heart
    return [
        (math.sin(t) ** 3, sum(map(operator.mul, HEART, map(math.cos, (t, 2 * t, 3 * t, 4 * t)))))
        for t in angles
    ]


def polygon_distance(corners: list[tuple[float, float]], x: Tensor, y: Tensor) -> Tensor:
    """The signed distance of places to a polygon's edge, negative inside."""
    nearest = torch.full_like(x, torch.inf)
    inside = torch.zeros_like(x, dtype=torch.bool)
    for (ax, ay), (bx, by) in zip(corners, corners[1:] + corners[:1], strict=True):
        dx, dy = bx - ax, by - ay
        share = (((x - ax) * dx + (y - ay) * dy) / (dx * dx + dy * dy)).clamp(0, 1)
        nearest = nearest.minimum((x - ax - share * dx) ** 2 + (y - ay - share * dy) ** 2)
        if (
            dy
        ):  # a ray to the right crosses the edges of what it is inside of an odd number of times
            inside ^= ((ay > y) != (by > y)) & (x < ax + (y - ay) * dx / dy)
    return nearest.sqrt() * torch.where(inside, -1, 1)
