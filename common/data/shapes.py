"""The world of shapes: labelled scenes without number, drawn and not stored.

    scenes = draw(range(64), size=96)      # pixels, labels, boxes, masks, captions
    scenes.captions[0]                     # 'a small red circle left of a large blue star'

![Thirty scenes with their labels, and the masks of the first ten](shapes.jpg)

A scene is a pure function of (seed, index): the same scene at every size, and on every platform
the same pixels up to rounding (its random numbers are Philox's raw stream). On a textured, noisy
background lie strokes and up to `max_objects` coloured shapes with anti-aliased edges, turned by
up to 45 degrees, some partly covered. The label is the class of the largest shape, the subject; the
others are at most half as large. `python -m common.data.shapes PATH.jpg` draws the sheet.
"""

import dataclasses
import math
import sys
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from common.data.drawing import CLASSES, paint

COLOURS = {
    "red": (214, 40, 40),
    "orange": (245, 130, 20),
    "yellow": (250, 215, 40),
    "green": (45, 160, 60),
    "cyan": (50, 200, 210),
    "blue": (40, 80, 210),
    "purple": (130, 50, 170),
    "pink": (245, 130, 190),
}
NUM_SCENES = {"train": 10_000, "test": 1_000}  # of the data set `shapes`: seeds 0 and 1
SMALL, LARGE = 0.12, 0.3  # radii, as shares of the side, that captions call so
CANDIDATES = 6  # places tried for each further object
STROKES, GRID = 3, 6  # lines of a scene; side of the grid of its texture
NUM_SCENE = 16 + GRID * GRID + 8 * STROKES  # random numbers of a scene
NUM_OBJECT = 7 + 2 * CANDIDATES  # and of each object


@dataclasses.dataclass
class Scenes:
    """N scenes of up to M objects, S pixels wide; what isn't there is -1, zero or False."""

    pixels: Tensor  # uint8 (N, 3, S, S)
    labels: Tensor  # (N,), the subject's class
    shapes: Tensor  # (N, M), classes; the subject comes first
    colours: Tensor  # (N, M), places in COLOURS
    boxes: Tensor  # (N, M, 4), pixels: left, top, right, bottom of what is seen, right excluded
    masks: Tensor  # bool (N, M, S, S), what is seen of each object
    captions: list[str]


class ShapeImages:
    """Scenes still to be drawn, as the images of a data set."""

    def __init__(self, indices: Sequence[int], seed: int):
        self.indices, self.seed = list(indices), seed

    def __len__(self) -> int:
        return len(self.indices)

    def take(self, places: Tensor) -> "ShapeImages":
        """The scenes at `places`, still to be drawn."""
        return ShapeImages([self.indices[i] for i in places.tolist()], self.seed)

    def draw(self, size: int, chunk: int = 100) -> Iterator[Tensor]:
        """Their pixels, uint8 (n, 3, size, size), a chunk at a time."""
        for begin in range(0, len(self), chunk):
            yield paint(random_numbers(self.indices[begin : begin + chunk], self.seed, 3), size)[0]

    def captions(self, chunk: int = 1000) -> list[list[str]]:
        """Two sentences on each (see `two_captions`); nothing is drawn for that."""
        lines = []
        for begin in range(0, len(self), chunk):
            world = random_numbers(self.indices[begin : begin + chunk], self.seed, 3)
            lines += two_captions(world)
        return lines

    def pairs(self, size: int) -> tuple[Tensor, list[list[str]]]:
        """The pixels of all, uint8 (N, 3, size, size), and their captions, at once."""
        world = random_numbers(self.indices, self.seed, 3)
        return paint(world, size)[0], two_captions(world)


def draw(indices: Iterable[int], size: int = 64, seed: int = 0, max_objects: int = 3) -> Scenes:
    """Draws the scenes of a seed, with all that is known of them; `size` is their side in pixels.

    `max_objects` (1 to 8) chooses a world: each scene has 1 to so many objects, smaller where
    there are many. Data sets for classification have 3.
    """
    if not 1 <= max_objects <= 8 or size < 8:
        raise ValueError("scenes have 1 to 8 objects and at least 8 pixels")
    world = random_numbers(list(indices), seed, max_objects)
    pixels, covers = paint(world, size)
    masks = torch.stack([cover > 0.5 for cover in covers], 1)  # (N, M, S, S)
    there = torch.arange(max_objects) < world["count"][:, None]
    shapes, colours = (world[k].masked_fill(~there, -1) for k in ("shape", "colour"))
    captions = [describe(world, scene) for scene in range(len(pixels))]
    return Scenes(pixels, world["shape"][:, 0], shapes, colours, bound(masks), masks, captions)


def labels_of(indices: Sequence[int]) -> Tensor:
    """The labels of scenes: the classes take turns, so that every data set is balanced."""
    return torch.tensor(indices, dtype=torch.int64) % len(CLASSES)


def with_few(count: int, seed: int, most: int) -> list[int]:
    """The first `count` scenes of a seed that have at most `most` of three objects."""
    places: list[int] = []
    begin = 0
    while len(places) < count:
        some = list(range(begin, begin + 256))
        numbers = random_numbers(some, seed, 3)["count"].tolist()
        places += [index for index, number in zip(some, numbers, strict=True) if number <= most]
        begin += 256
    return places[:count]


def random_numbers(indices: list[int], seed: int, max_objects: int) -> dict[str, Tensor]:
    """All that a batch of scenes is made of, as tensors (N, ...), sizes in shares of the side."""
    wanted = NUM_SCENE + max_objects * NUM_OBJECT
    keys = [np.array([seed, index], dtype=np.uint64) for index in indices]
    streams = [np.random.Philox(key=key) for key in keys]
    raw = np.stack([stream.random_raw(wanted) for stream in streams]).reshape(-1, wanted)
    u = torch.from_numpy((raw >> np.uint64(40)).astype(np.float32) / 2**24)  # (N, wanted)
    scene, u = u[:, :NUM_SCENE], u[:, NUM_SCENE:].view(-1, max_objects, NUM_OBJECT)
    count = (scene[:, 0] ** 2 * max_objects).long() + 1  # of 3: 58, 24 and 18%
    shape = (u[..., 0] * len(CLASSES)).long()
    shape[:, 0] = labels_of(indices)
    largest = (0.26 + 0.14 * u[:, :1, 1]) * (3 / count.clamp(min=3)).sqrt()[:, None]  # (N, 1)
    radius = largest * (0.3 + 0.2 * u[..., 1])
    radius[:, 0] = largest[:, 0]
    # Each object takes the candidate place that keeps furthest from those before it.
    places = u[..., 7:].unflatten(2, (CANDIDATES, 2))  # (N, M, CANDIDATES, 2)
    places = radius[..., None, None] * 0.9 + places * (1 - 1.8 * radius[..., None, None])
    centre = places[:, :, 0].clone()
    for k in range(1, max_objects):
        gaps = (places[:, k, :, None] - centre[:, None, :k]).norm(dim=3)  # (N, CANDIDATES, k)
        gaps = gaps / (radius[:, None, k, None] + radius[:, None, :k])
        best = gaps.amin(2).clamp(max=0.9).argmax(1)  # a little overlap is welcome
        centre[:, k] = places[torch.arange(len(centre)), k, best]
    tone = torch.tensor(list(COLOURS.values())) / 255
    colour = (u[..., 2] * len(COLOURS)).long()
    return {
        "streams": streams,
        "ground": scene[:, 2:16],
        "grid": scene[:, 16 : 16 + GRID * GRID].reshape(-1, 1, GRID, GRID),
        "strokes": scene[:, 16 + GRID * GRID :].reshape(-1, STROKES, 8),
        "count": count,
        "shape": shape,
        "colour": colour,
        "radius": radius,
        "centre": centre,
        "angle": (u[..., 3] - 0.5) * math.pi / 2,
        "rgb": (tone[colour] + (u[..., 4:7] - 0.5) * 0.16).clamp(0, 1),
        "anchor": (scene[:, 1] * count).long(),
    }


def two_captions(world: dict[str, Tensor]) -> list[list[str]]:
    """Of each scene what `describe` says, and the same as "a photo of ..."."""
    texts = [describe(world, scene) for scene in range(len(world["count"]))]
    return [[text, f"a photo of {text}"] for text in texts]


def describe(world: dict[str, Tensor], scene: int) -> str:
    """One sentence on one object, and where the others are from there."""
    count, anchor = int(world["count"][scene]), int(world["anchor"][scene])

    def name(k: int) -> str:
        radius = float(world["radius"][scene, k])
        size = "small " if radius < SMALL else "large " if radius > LARGE else ""
        colour = list(COLOURS)[world["colour"][scene, k]]
        text = f"{size}{colour} {CLASSES[world['shape'][scene, k]]}"
        return f"an {text}" if text[0] in "aeiou" else f"a {text}"

    def relation(k: int) -> str:
        x, y = (world["centre"][scene, anchor] - world["centre"][scene, k]).tolist()
        if abs(x) > abs(y):
            return "left of" if x < 0 else "right of"
        return "above" if y < 0 else "below"

    others = [f"{relation(k)} {name(k)}" for k in range(count) if k != anchor]
    return " ".join([name(anchor), *" and ".join(others).split()])


def bound(masks: Tensor) -> Tensor:
    """The boxes (..., 4) of masks (..., H, W): left, top, right, bottom; zeros where empty."""
    sides = []
    for axis in (-2, -1):  # columns, then rows, that hold something
        line = masks.any(axis)
        first = line.int().argmax(-1)
        last = line.shape[-1] - line.flip(-1).int().argmax(-1)
        sides.append((first, last * line.any(-1)))
    (left, right), (top, bottom) = sides
    return torch.stack([left, top, right, bottom], -1)


def main(argv: Sequence[str]) -> None:
    """Draws the contact sheet."""
    from common.plot import image_grid

    sheet = draw(range(40), size=80)
    names = [CLASSES[label] for label in sheet.labels[:30]] + ["its objects"] * 10
    tones = torch.tensor(list(COLOURS.values()), dtype=torch.uint8)[sheet.colours[:10]]
    masks = (tones[..., None, None] * sheet.masks[:10, :, None]).sum(1).byte()  # (10, 3, S, S)
    images = [*sheet.pixels[:30], *masks]
    image_grid(images, argv[0], names, heading=f"The first: {sheet.captions[0]}")


if __name__ == "__main__":
    main(sys.argv[1:])
