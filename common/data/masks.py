"""Images with a class for every pixel: read once, kept as uint8, cut and warped as they are used.

    train, val, test = load_masks(args, dev)
    for images, masks, weights in run.progress(train.batches(args.batch_size, cut=cut)): ...

Images of one set may differ in size. Label maps, which number the cells (or other things) of an
image, become foreground in which those that touch are separated by a line of background.
"""

import argparse
import dataclasses
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from common import fail
from common.cli import whole
from common.data import shapes as world
from common.data.batches import Batches, Draw
from common.data.files import SUFFIXES, UNREADABLE, open_image
from common.data.images import as_facts, moments_of
from common.data.sources import cut_parts
from common.device import Device
from common.run import progress

UNKNOWN = 255  # in a class map: belongs to no class, isn't trained on or counted
SETS = {  # their folder in --data-dir, and there the folders of images and of masks
    "isbi": ("isbi2012_membrane", "image", "label", ["membrane", "cell"]),
    "nuclei": ("nuclei_dsb2018", "images", "labels", ["background", "nucleus"]),
}
NUM_SCENES = 4_000, 100  # of `shapes`, training (seed 0) and test (seed 1)
MASK_SETS = ["shapes", *SETS, "folder:PATH"]


@dataclasses.dataclass
class Pairs:
    """Images uint8 (C, H, W), class maps uint8 (H, W), and label maps int32 (H, W) or None."""

    images: list[Tensor]
    masks: list[Tensor]
    labels: list[Tensor] | None
    names: list[str]
    paths: list[Path] | None = None  # of the masks, while they hold values and not yet classes

    def __len__(self) -> int:
        return len(self.images)

    def take(self, indices: Tensor) -> "Pairs":
        """Those at `indices`."""
        labels = self.labels and [self.labels[i] for i in indices.tolist()]
        rest = ([part[i] for i in indices.tolist()] for part in (self.images, self.masks))
        return Pairs(*rest, labels, [self.names[i] for i in indices.tolist()])


def add_mask_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of scripts that use `load_masks`."""
    add = parser.add_argument
    add("--folds", type=whole(2), default=6, help="a set without a test part is cut into so many")
    add("--fold", type=whole(0), default=0, help="and this one of them, from 0, is the test part")
    add(
        "--contrast",
        choices=["set", "image"],
        help="brightness and contrast are brought to a norm for the set, or for each image",
    )


class MaskSet:
    """One part of a data set: `part` is "train", "val" or "test".

    `facts` holds the `classes`, the number of `channels`, and their `mean` and `std` (of the
    training part, pixels from 0 to 1); `weights`, if given, are maps (H, W) that go with the masks.
    """

    def __init__(self, part: str, pairs: Pairs, facts: dict, dev: Device):
        self.part, self.pairs, self.facts, self.dev = part, pairs, facts, dev
        self.weights: list[Tensor] | None = None

    def __len__(self) -> int:
        return len(self.pairs)

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
                    images, masks = self.whole(part)
                    yield images, masks, part
                else:
                    sizes = torch.tensor([self.pairs.masks[i].shape for i in part.tolist()])
                    places, side = cut(draw, *sizes.T.to(self.dev.device))
                    images, masks, weights = self.sample(part, places, side)
                    yield augment(images, draw) if augment else images, masks, weights

        if cut is None and len({mask.shape for mask in self.pairs.masks}) > 1:
            batch_size = self.dev.world
        return Batches(len(self), batch_size, self.dev, cut is not None, fetch)

    def distances(self, reach: int = 40) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """For each image its class map (H, W) and the `two_distances` of its cells.

        Without numbers, cells are the connected parts of all but class 0. Of distances from `reach`
        pixels on a border weight would be nothing: 10 exp(-40² / 50) < 1e-12.
        """
        from scipy import ndimage

        pairs = self.pairs
        for index in progress(range(len(self)), self.dev, "measuring distances", len(self)):
            mask = pairs.masks[index]
            cells = (mask > 0) & (mask != UNKNOWN)
            cells = (
                pairs.labels[index] if pairs.labels else torch.from_numpy(ndimage.label(cells)[0])
            )
            yield mask, *two_distances(cells, reach)

    def whole(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Whole images (B, C, H, W), normalised, and their class maps (B, H, W), of one size."""
        some = self.pairs.take(indices)
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

        norms = [norm_of(self.pairs.images[i], self.facts) for i in part.tolist()]
        images = normalise(cut(self.pairs.images, places, "bilinear"), norms)
        masks = cut(self.pairs.masks, middle, "nearest")[:, 0].byte()
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
    """Mean and deviation (2, C, 1, 1) that an image (C, H, W) is normalised by; pixels from 0 to 1.

    The set's or, if `facts["contrast"]` is "image", its own.
    """
    if facts["contrast"] != "image":
        return torch.tensor([facts["mean"], facts["std"]])[..., None, None]
    std, mean = torch.std_mean(image.float() / 255, (1, 2), correction=0, keepdim=True)
    return torch.stack([mean, std.clamp(min=1 / 255)])


def normalise(pixels: Tensor, norms: list[Tensor]) -> Tensor:
    """Pixels from 0 to 255 (B, C, H, W) to floats of about mean 0 and deviation 1."""
    mean, std = torch.stack(norms).to(pixels.device).unbind(1)  # (B, C, 1, 1) each
    return (pixels.float() / 255 - mean) / std


def load_masks(
    args: argparse.Namespace, dev: Device, size: int
) -> tuple[MaskSet, MaskSet | None, MaskSet]:
    """The training, validation (None without --val) and test part of `--data`.

    `shapes` are drawn at `size` pixels. A set without a test part is cut into --folds parts by a
    fixed seed, and --fold is the test part.
    """
    for flag in ("fold", "folds"):
        if flag in args.typed and args.data == "shapes":
            fail(f"--{flag} is for sets without a test part: shapes has one")
    if args.fold >= args.folds:
        fail(f"--fold {args.fold}: there are {args.folds} (--folds), counted from 0")
    facts, train, test, note = read(args, dev)
    parts = cut_parts(args, {"train": train, "test": test})
    if args.data == "shapes":  # no more are drawn than are needed
        parts = {name: part.draw(size, dev) for name, part in parts.items()}
    pixels = (image.flatten(1) for image in parts["train"].images)
    facts["mean"], facts["std"] = as_facts(*moments_of(pixels))
    facts["contrast"] = args.contrast
    sets = {part: MaskSet(part, pairs, facts, dev) for part, pairs in parts.items()}
    held_out = [pairs.masks for part, pairs in parts.items() if part != "train"]
    shapes = {mask.shape for masks in held_out for mask in masks}
    if args.fsdp and len(shapes) > 1:  # processes with more tiles than others would wait for ever
        fail("--fsdp evaluates images of one size only: leave it away, or bring them to one size")
    counts = ", ".join(f"{len(images):,} {part}" for part, images in sets.items())
    kind = "grey" if facts["channels"] == 1 else "colour"
    dev.say(f"{args.data}: {counts} {kind} images, classes {', '.join(facts['classes'])}{note}")
    return sets["train"], sets.get("val"), sets["test"]


def read(
    args: argparse.Namespace, dev: Device
) -> tuple[dict, "Pairs | Scenes", "Pairs | Scenes", str]:
    """Facts, training part, test part (of `shapes` as `Scenes`), and what to say of them."""
    if args.data == "shapes":
        parts = [Scenes(torch.arange(count), seed) for seed, count in enumerate(NUM_SCENES)]
        facts = {"classes": ["background", "shape"], "channels": 3, "labelled": True}
        return facts, *parts, ""
    if args.data in SETS:
        name, images, masks, classes = SETS[args.data]
        root = Path(args.data_dir, name)
        if not root.is_dir():
            fail(
                f"{args.data}: there is no {root}; copy it there, name another folder with "
                "--data-dir, or take --data shapes, which needs no files"
            )
        everything = [read_folder(root / images, root / masks, masks == "labels", dev)]
    else:
        classes, root = ["background", "foreground"], Path(args.data.partition(":")[2]).expanduser()
        if not root.is_dir():
            fail(
                f"--data folder:{root}: there is no such folder; name one with images/ and masks/, "
                "or take --data shapes, which needs no files"
            )
        roots = [root / "train", root / "test"]
        roots = roots if all(path.is_dir() for path in roots) else [root]
        everything = [read_tree(path, dev) for path in roots]
    labelled = everything[0].labels is not None
    if any((pairs.labels is not None) != labelled for pairs in everything):
        fail(f"{args.data}: train/ and test/ both need masks/, or both labels/")
    channels = max(image.shape[0] for pairs in everything for image in pairs.images)
    for pairs in everything:
        pairs.images = [image.expand(channels, -1, -1) for image in pairs.images]
        if labelled:
            pairs.masks = [separate(label) for label in pairs.labels]
    if not labelled:
        values = class_values(everything)
        for pairs in everything:
            pairs.masks = [as_classes(mask, values) for mask in pairs.masks]
        if len(values) > 2:
            classes = ["background", *(f"class {value}" for value in values[1:])]
    facts = {"classes": classes, "channels": channels, "labelled": labelled}
    if len(everything) == 2:
        return facts, *everything, ""
    (pairs,) = everything
    if len(pairs) < args.folds:
        fail(f"{args.data} has {len(pairs)} images: --folds {args.folds} is too many")
    generator = torch.Generator().manual_seed(0)  # the same folds for every --seed
    order = torch.randperm(len(pairs), generator=generator).tensor_split(args.folds)
    test = order[args.fold].sort().values
    rest = torch.cat([o for k, o in enumerate(order) if k != args.fold]).sort().values
    sizes = ", ".join(str(len(o)) for o in order)
    note = f" (the test part is fold {args.fold} of {args.folds}; their sizes: {sizes})"
    return facts, pairs.take(rest), pairs.take(test), note


@dataclasses.dataclass
class Scenes:
    """Scenes of the world of shapes, still to be drawn."""

    indices: Tensor
    seed: int

    def __len__(self) -> int:
        return len(self.indices)

    def take(self, indices: Tensor) -> "Scenes":
        """Those at `indices`."""
        return Scenes(self.indices[indices], self.seed)

    def draw(self, size: int, dev: Device) -> Pairs:
        """Their pixels, and the numbers of the objects seen there."""
        images, labels = [], []
        chunks = self.indices.split(100)
        for chunk in progress(chunks, dev, "drawing scenes", len(chunks)):
            drawn = world.draw(chunk.tolist(), size, self.seed)
            numbers = torch.arange(1, drawn.masks.shape[1] + 1)[:, None, None]
            images += drawn.pixels
            labels += (drawn.masks * numbers).amax(1).int()  # one object at most is seen at a pixel
        names = [f"scene {i}" for i in self.indices.tolist()]
        return Pairs(images, list(map(separate, labels)), labels, names)


def read_tree(root: Path, dev: Device) -> Pairs:
    """The pairs below a folder: images/, and masks/ or labels/."""
    kinds = [name for name in ("masks", "labels") if (root / name).is_dir()]
    if not (root / "images").is_dir() or len(kinds) != 1:
        fail(f"{root} needs a folder images/ and beside it masks/ (classes) or labels/ (numbers)")
    return read_folder(root / "images", root / kinds[0], kinds == ["labels"], dev)


def read_folder(images: Path, masks: Path, labelled: bool, dev: Device) -> Pairs:
    """Reads images and the masks, or label maps, of the same names."""
    found = []
    for folder in (images, masks):
        paths = sorted(p for p in folder.glob("*") if p.suffix.lower() in SUFFIXES)
        names = {path.stem: path for path in paths}
        if len(names) < len(paths):
            twice = next(p for p in paths if names[p.stem] != p)
            fail(f"{folder} holds {twice.name} and {names[twice.stem].name}: one name, two images")
        found.append(names)
    if not found[0]:
        fail(f"{images} holds no images")
    if alone := sorted(found[0].keys() - found[1].keys()):
        fail(f"{found[0][alone[0]]} has no mask of its name in {masks}")
    if alone := sorted(found[1].keys() - found[0].keys()):
        fail(f"{found[1][alone[0]]} has no image of its name in {images}")
    pairs = Pairs([], [], [] if labelled else None, [])
    for name in progress(sorted(found[0]), dev, "reading images", len(found[0])):
        image, mask = read_image(found[0][name]), read_mask(found[1][name])
        if image.shape[1:] != mask.shape:
            sizes = " and ".join(f"{w}x{h}" for h, w in (image.shape[1:], mask.shape))
            fail(f"{found[0][name]} and its mask differ in size: {sizes} pixels")
        pairs.images.append(image)
        pairs.names.append(found[0][name].name)
        if labelled:
            pairs.labels.append(mask)
        else:
            if int(mask.max()) > 255:
                fail(f"{found[1][name]} holds the value {int(mask.max())}: classes end at 255")
            pairs.masks.append(mask.byte())
    pairs.masks = pairs.masks or [label.clamp(max=1).byte() for label in pairs.labels]
    pairs.paths = [found[1][name] for name in sorted(found[0])]
    return pairs


def read_image(path: Path) -> Tensor:
    """An image file as uint8 (1, H, W) if it is grey, else (3, H, W)."""
    try:
        image = np.array(open_image(path))
    except UNREADABLE as error:
        fail(f"{path} is not a readable image ({error})")
    pixels = torch.from_numpy(image)
    if pixels.ndim == 3 and bool((pixels == pixels[..., :1]).all()):
        pixels = pixels[..., 0]  # grey, stored as colour
    return pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)


def read_mask(path: Path) -> Tensor:
    """A mask file as int32 (H, W): its values, or those of its palette's places."""
    try:
        mask = np.array(Image.open(path))
    except UNREADABLE as error:
        fail(f"{path} is not a readable image ({error})")
    if mask.ndim == 3:
        colours = mask[..., :3] if mask.shape[2] > 2 else mask[..., :1]
        if (colours != colours[..., :1]).any():
            fail(f"{path} is a colour image: masks hold one number a pixel (grey, or a palette)")
        mask = colours[..., 0]
    if mask.dtype.kind == "f" or (mask.dtype.kind == "i" and mask.min() < 0):
        fail(f"{path} holds numbers that name no class: masks hold whole numbers from 0")
    return torch.from_numpy(mask.astype(np.int32))


def class_values(everything: list[Pairs]) -> list[int]:
    """The values that stand for classes: 0 and one other, or 0 to K - 1 (and 255 for unknown)."""
    counts = [
        (path, torch.bincount(mask.flatten().long(), minlength=256) > 0)
        for pairs in everything
        for path, mask in zip(pairs.paths, pairs.masks, strict=True)
    ]
    there = torch.stack([c for _, c in counts]).any(0).nonzero()[:, 0].tolist()
    if len(there) <= 2 and there[0] in (0, *there[1:]):
        return there if len(there) == 2 else sorted({0, *there} | ({1} if there == [0] else set()))
    known = [value for value in there if value != UNKNOWN]
    if known == list(range(len(known))):
        return known
    odd = next(v for k, v in enumerate(known) if v != k)
    path = next(path for path, c in counts if c[odd])
    fail(
        f"{path} holds the value {odd}, which is no class: masks hold 0 and one other value, or 0 "
        "to K - 1 without a gap, and 255 where it is unknown (JPEG blurs masks: use PNG)"
    )


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
