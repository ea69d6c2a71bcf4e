"""Images with a class for every pixel: read once, kept as uint8, cut and warped as they are used.

    train, val, test = load_masks(args, dev, size)
    for images, masks, weights in run.progress(train.batches(args.batch_size, cut)): ...

Images of one set may differ in size. Label maps, which number the cells (or other things) of an
image, become foreground in which those that touch are separated by a line of background.
"""

import argparse
import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from common import cli, counted, fail
from common.data import shapes as world
from common.data.batches import Batches, Draw
from common.data.files import images_below, white_in
from common.data.images import as_facts, moments_of
from common.data.masks import (
    DEEDS,
    LABELS,
    Annotated,
    add_fold_flags,
    check_fold,
    cut_fold,
    find_pairs,
    read_part,
)
from common.data.shapes import ShapeImages
from common.data.sources import Source, named, open_source, say_parts
from common.device import Device
from common.run import progress_bar

UNKNOWN = 255  # in a class map: belongs to no class, isn't trained on or counted
SETS = {  # their folder in --data-dir, and there the folders of images and of masks
    "isbi": ("isbi2012_membrane", "image", "label", ["membrane", "cell"]),
    "nuclei": ("nuclei_dsb2018", "images", "labels", ["background", "nucleus"]),
}
NUM_SCENES = 4_000, 100  # of `shapes`, training (seed 0) and test (seed 1)
MASK_SETS = ["shapes", *SETS, "folder:PATH"]
LEAST_WEIGHT = 1e-13  # border weights below this are nothing


def drawn(scenes: ShapeImages, size: int, dev: Device) -> Annotated:
    """The pixels of scenes, and the numbers of the objects seen there."""
    images, labels = [], []
    chunks = torch.tensor(scenes.indices).split(100)
    for chunk in progress_bar(chunks, dev, "drawing scenes", len(chunks)):
        some = world.draw(chunk.tolist(), size, scenes.seed)
        numbers = torch.arange(1, some.masks.shape[1] + 1)[:, None, None]
        images += some.pixels
        labels += (some.masks * numbers).amax(1).int()  # one object at most is seen at a pixel
    names = [f"scene {i}" for i in scenes.indices]
    return Annotated(images, list(map(separate, labels)), labels, names)


def add_mask_flags(parser: cli.Parser) -> None:
    """The flags that say how a set of images and masks is read."""
    add_fold_flags(parser, "shapes")
    text = "brightness and contrast are brought to a norm for the set, or for each image"
    parser.add_argument("--contrast", choices=["set", "image"], group="data", help=text)


class MaskSet:
    """One part of a data set: `part` is "train", "val" or "test".

    `facts` holds the `classes` and the `values` of masks that stand for them, the number of
    `channels`, their `mean` and `std` (of the training set, pixels from 0 to 1), and `top`, which
    is white in images of more than 8 bits. `weights`, if given, are maps (H, W) beside the masks.
    """

    def __init__(self, part: str, content: Annotated, facts: dict, dev: Device):
        self.part, self.content, self.facts, self.dev = part, content, facts, dev
        self.weights: list[Tensor] | None = None

    def __len__(self) -> int:
        return len(self.content)

    def batches(
        self, batch_size: int, cut: Callable | None = None, augment: Callable | None = None
    ) -> Batches:
        """For training: images (B, C, S, S), normalised, class maps (B, T, T), weights (B, T, T).

        `cut(draw, heights, widths)` says what is cut out of each image: the `places` (B, S, S, 2)
        of the pixels, x and y, in pixels of the image and mirrored where they are outside it, and
        the side T of the middle part that has answers. Weights are 1 where the set has none.
        `augment(images, draw)` changes the normalised images.

        Without `cut`: whole images, in order, one at a time where sizes differ, normalised
        (B, C, H, W), with class maps (B, H, W) and their indices (B,).
        """

        def fetch(parts: list[Tensor], draws: Iterable[Draw], epoch: int) -> Iterator:
            for part, draw in zip(parts, draws, strict=True):
                if cut is None:
                    images, masks = self.uncut(part)
                    yield images, masks, part
                else:
                    sizes = torch.tensor([self.content.masks[i].shape for i in part.tolist()])
                    places, side = cut(draw, *sizes.T.to(self.dev.device))
                    images, masks, weights = self.sample(part, places, side)
                    yield augment(images, draw) if augment else images, masks, weights

        if cut is None and len({mask.shape for mask in self.content.masks}) > 1:
            batch_size = self.dev.world
        return Batches(len(self), batch_size, self.dev, cut is not None, fetch)

    def distances(self, w0: float, sigma: float) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """For each image its class map (H, W) and the `two_distances` of its cells.

        Without numbers, cells are the connected parts of all but class 0. Distances are given as
        far as Eq. 2's border weight, w0 exp(-(d1 + d2)^2 / (2 sigma^2)), is more than nothing.
        """
        from scipy import ndimage

        content, reach = self.content, reach_of(w0, sigma)
        places = range(len(self))
        for index in progress_bar(places, self.dev, "measuring distances", len(self)):
            mask = content.masks[index]
            cells = (mask > 0) & (mask != UNKNOWN)
            numbered = content.labels and content.labels[index]
            if numbered is None:
                numbered = torch.from_numpy(ndimage.label(cells)[0])
            yield mask, *two_distances(numbered, reach)

    def uncut(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Whole images (B, C, H, W), normalised, and their class maps (B, H, W), of one size."""
        some = self.content.take(indices)
        images, masks = (
            torch.stack(part).to(self.dev.device) for part in (some.images, some.masks)
        )
        return normalise(images, [norm_of(image, self.facts) for image in some.images]), masks

    def sample(self, part: Tensor, places: Tensor, side: int) -> tuple[Tensor, Tensor, Tensor]:
        """Images at `places` (B, S, S, 2), and masks and weights in the middle `side` pixels."""
        border = (places.shape[1] - side) // 2
        middle = places[:, border : border + side, border : border + side]

        def cut(maps: list[Tensor], places: Tensor, mode: str) -> Tensor:
            chosen = zip(part.tolist(), places.split(1), strict=True)
            return torch.cat([look_up(maps[i], place, mode) for i, place in chosen])

        norms = [norm_of(self.content.images[i], self.facts) for i in part.tolist()]
        images = normalise(cut(self.content.images, places, "bilinear"), norms)
        masks = cut(self.content.masks, middle, "nearest")[:, 0].byte()
        if self.weights is None:
            return images, masks, torch.ones(masks.shape, device=masks.device)
        return images, masks, cut(self.weights, middle, "bilinear")[:, 0]


def look_up(values: Tensor, places: Tensor, mode: str) -> Tensor:
    """Values (C, H, W) or (H, W) at places (1, S, S, 2), x and y, mirrored: (1, C, S, S)."""
    height, width = values.shape[-2:]
    size = torch.tensor([width, height], device=places.device)
    grid = 2 * places / (size - 1).clamp(min=1) - 1
    values = values.reshape(1, -1, height, width).to(places.device).float()
    return F.grid_sample(values, grid, mode, padding_mode="reflection", align_corners=True)


def norm_of(image: Tensor, facts: dict) -> Tensor:
    """Mean and std (2, C, 1, 1) that an image (C, H, W) is normalised by; pixels from 0 to 1.

    The set's or, if `facts["contrast"]` is "image", its own.
    """
    if facts["contrast"] != "image":
        return torch.tensor([facts["mean"], facts["std"]])[..., None, None]
    std, mean = torch.std_mean(image.float() / 255, (1, 2), correction=0, keepdim=True)
    return torch.stack([mean, std.clamp(min=1 / 255)])


def normalise(pixels: Tensor, norms: list[Tensor]) -> Tensor:
    """Pixels from 0 to 255 (B, C, H, W) to floats of about mean 0 and standard deviation 1."""
    mean, std = torch.stack(norms).to(pixels.device).unbind(1)  # (B, C, 1, 1) each
    return (pixels.float() / 255 - mean) / std


def load_masks(
    args: argparse.Namespace, dev: Device, size: int
) -> tuple[MaskSet, MaskSet | None, MaskSet]:
    """The training, validation (None without --val) and test set of `--data`.

    `shapes` are drawn at `size` pixels. A set without a test set is cut into --folds parts by a
    fixed seed, and --fold is the test set.
    """
    check_fold(args)
    readers = {name: lambda args: stored_set(args, dev) for name in SETS}
    readers |= {"shapes": scenes, "folder": lambda args: own_folder(args, dev)}
    source = open_source(args, dev, readers)
    if args.data == "shapes":  # no more are drawn than are needed
        source.parts = {name: drawn(part, size, dev) for name, part in source.parts.items()}
    marked = sum(bool(((m > 0) & (m != UNKNOWN)).any()) for m in source.parts["train"].masks)
    if not marked and not args.stored:  # a model that is there may be measured on anything
        fail(f"{args.data}: no mask of the training set marks anything, so there is nothing to "
             "learn (are they painted in another channel, or empty?)")  # fmt: skip
    facts = {"classes": source.classes, **source.facts}
    pixels = (image.flatten(1) for image in source.parts["train"].images)
    facts["mean"], facts["std"] = as_facts(*moments_of(pixels))
    facts["contrast"] = args.contrast
    sets = {part: MaskSet(part, content, facts, dev) for part, content in source.parts.items()}
    held_out = [content.masks for part, content in source.parts.items() if part != "train"]
    if args.fsdp and len({mask.shape for masks in held_out for mask in masks}) > 1:
        # processes with more tiles than others would wait for ever
        fail("--fsdp evaluates images of one size only: leave it away, or bring them to one size")
    kind = "grey" if facts["channels"] == 1 else "colour"
    if blank := len(source.parts["train"]) - marked:
        which = f"{blank:,} of {len(source.parts['train']):,} training masks"
        source.note = "; ".join(filter(None, [source.note, f"{which} mark nothing"]))
    note = f" ({source.note})" if source.note else ""
    say_parts(args, dev, sets, f"{kind} images", named(source.classes) + note)
    return sets["train"], sets.get("val"), sets["test"]


def scenes(args: argparse.Namespace) -> Source:
    """Scenes of the world of shapes: objects against the background."""
    train, test = (ShapeImages(range(count), seed) for seed, count in enumerate(NUM_SCENES))
    facts = {"channels": 3, "labelled": True, "values": [0, 1]}
    return Source(["background", "shape"], {"train": train, "test": test}, facts=facts)


def stored_set(args: argparse.Namespace, dev: Device) -> Source:
    """ISBI's membranes, or the nuclei of the Data Science Bowl."""
    name, images, masks, classes = SETS[args.data]
    root = Path(args.data_dir, name)
    if not root.is_dir():
        fail(
            f"{args.data}: there is no {root}; copy it there, name another folder with "
            "--data-dir, or take --data shapes, which needs no files"
        )
    found = {"train": (root / images, root / masks, masks == "labels")}
    return as_source(args, found, classes, [], dev)


def own_folder(args: argparse.Namespace, dev: Device) -> Source:
    """The user's images/ and masks/ or labels/, perhaps below train/, val/ and test/."""
    found, notes = find_pairs(args.data)
    if len({labelled for *_, labelled in found.values()}) > 1:
        fail(f"{args.data}: all parts need masks/, or all labels/")
    return as_source(args, found, ["background", "foreground"], notes, dev)


def as_source(
    args: argparse.Namespace,
    found: dict[str, tuple[Path, Path, bool]],
    classes: list[str],
    notes: list[str],
    dev: Device,
) -> Source:
    """Reads folders of images and of masks (or label maps: True) by part; cuts folds."""
    known = args.stored.get("dataset", {})  # of the model that is measured or goes on
    files = [path for images, *_ in found.values() for path in images_below(images)]
    top, counts = white_in(files), dict.fromkeys(DEEDS, 0)
    top = (top and known.get("top")) or top
    parts = {name: read_part(*folders, top, counts, dev) for name, folders in found.items()}
    labelled = parts["train"].labels is not None
    channels = max(image.shape[0] for part in parts.values() for image in part.images)
    for part in parts.values():
        part.images = [image.expand(channels, -1, -1) for image in part.images]
    if top is not None:
        notes.append(f"images of more than 8 bits: {top:g} is white in all of them")
    notes += [f"{counted(n, 'file')} {DEEDS[deed]}" for deed, n in counts.items() if n]
    facts = {"channels": channels, "labelled": labelled, "top": top, "values": [0, 1]}
    if labelled:
        for part in parts.values():
            part.masks = [separate(label) for label in part.labels]
    else:
        numbers = list(range(len(known.get("classes", []))))  # in checkpoints without values
        values = class_values(list(parts.values()), known.get("values", numbers))
        if len(values) > 2:
            classes = ["background", *(f"class {value}" for value in values[1:])]
        if numbers_things(list(parts.values()), values):
            notes.append(f"masks/ seems to number the things of each image, up to {values[-1]}: "
                         "if so, call the folder labels/")  # fmt: skip
        for part in parts.values():
            part.masks = [as_classes(mask, values) for mask in part.masks]
        facts["values"] = values
    if "test" not in parts:
        parts["train"], parts["test"], note = cut_fold(parts["train"], args)
        notes.append(note)
    return Source(classes, parts, "; ".join(notes), facts)


def class_values(parts: list[Annotated], known: list[int]) -> list[int]:
    """The values that stand for classes: 0 and one other, or 0 to K - 1 (and 255 for unknown).

    Those `known` from a checkpoint with more than two classes hold if there are no others.
    """
    counts = [
        (path, torch.bincount(mask.flatten().long(), minlength=256) > 0)
        for part in parts
        for path, mask in zip(part.paths, part.masks, strict=True)
    ]
    there = torch.stack([c for _, c in counts]).any(0).nonzero()[:, 0].tolist()
    if len(known) > 2 and set(there) <= {*known, UNKNOWN} and there != [0, UNKNOWN]:
        return known
    if len(there) == 1 and (known or there == [0]):  # all background, or all foreground
        return [0, there[0] or 1]
    if len(there) == 1:
        fail(f"{counts[0][0]} and all other masks are {there[0]} everywhere: nothing is told apart")
    if len(there) == 2 and there[0] == 0:
        return there
    values = [value for value in there if value != UNKNOWN]
    if values == list(range(len(values))):
        return values
    odd = next(v for k, v in enumerate(values) if v != k)
    path = next(path for path, c in counts if c[odd])
    fail(
        f"{path} holds the value {odd}, which is no class: masks hold 0 and one other value, or 0 "
        f"to K - 1 without a gap, and 255 where it is unknown (JPEG blurs masks: use PNG; {LABELS})"
    )


def numbers_things(parts: list[Annotated], values: list[int]) -> bool:
    """Whether masks look like label maps, which number the things of each image.

    There are many values, and nearly each image has all from 1 to its own last; or, as a thing is
    in one piece, so is nearly each value of an image.
    """
    from scipy import ndimage

    masks = [mask for part in parts for mask in part.masks]
    runs = [[v for v in mask.unique().tolist() if v not in (0, UNKNOWN)] for mask in masks]
    lengths = [len(run) for run in runs if run]
    nested = sum(run[-1] == len(run) for run in runs if run) >= 0.9 * len(lengths)
    nested = nested and len(set(lengths)) > 1
    if nested and len(values) > 8:
        return True
    if len(values) <= (5 if nested else 32):  # may look so by chance
        return False
    pieces = [  # of each value, in the first images
        ndimage.label(mask.numpy() == value, np.ones((3, 3)))[1]
        for mask, run in zip(masks[:20], runs[:20], strict=True)
        for value in run
    ]
    return pieces.count(1) >= 0.8 * len(pieces)


def as_classes(mask: Tensor, values: list[int]) -> Tensor:
    """The class map (H, W) of a mask of `values`."""
    table = torch.full((256,), UNKNOWN, dtype=torch.uint8)
    table[values] = torch.arange(len(values), dtype=torch.uint8)
    return table[mask.long()]


def separate(labels: Tensor) -> Tensor:
    """The foreground (H, W) of a label map, without the pixels that touch a later number.

    So no two cells are connected, not by a corner either.
    """
    padded = F.pad(labels, [1] * 4)
    around = padded.unfold(0, 3, 1).unfold(1, 3, 1).flatten(2).amax(2)  # (H, W)
    smaller = (labels > 0) & (around > labels)
    return ((labels > 0) & ~smaller).byte()


def reach_of(w0: float, sigma: float) -> int:
    """Pixels beyond which a border weight w0 exp(-d^2 / (2 sigma^2)) is below LEAST_WEIGHT."""
    return math.ceil(sigma * math.sqrt(2 * math.log(max(w0 / LEAST_WEIGHT, math.e))))


def two_distances(labels: Tensor, reach: int) -> tuple[Tensor, Tensor]:
    """Each pixel's distances to the nearest and the second nearest cell of a label map (H, W).

    In pixels, to the nearest pixel of the cell (so 0 inside it); infinite from `reach` on.
    """
    from scipy import ndimage

    values = labels.numpy()
    nearest = np.full((2, *values.shape), np.inf, dtype=np.float32)
    for number, box in enumerate(ndimage.find_objects(values), 1):
        if box is None:
            continue
        around = tuple(slice(max(0, s.start - reach), s.stop + reach) for s in box)
        distance = ndimage.distance_transform_edt(values[around] != number).astype(np.float32)
        distance[distance >= reach] = np.inf
        here = nearest[(slice(None), *around)]
        here[1] = np.minimum(here[1], np.maximum(here[0], distance))
        here[0] = np.minimum(here[0], distance)
    return torch.from_numpy(nearest[0]), torch.from_numpy(nearest[1])
