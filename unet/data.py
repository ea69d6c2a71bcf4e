"""Images with a class for every pixel: read once, kept as uint8, cut and warped as they are used.

    train, val, test = load_masks(args, dev, size)
    for images, masks, weights in run.progress(train.batches(args.batch_size, cut)): ...

Images of one set may differ in size. Label maps, which number the cells (or other things) of an
image, become foreground in which those that touch are separated by a line of background.
"""

import argparse
import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from common import cli, counted, fail
from common.data import shapes as world
from common.data.batches import Batches, Draw
from common.data.files import (
    ORIENTATION,
    PAGED,
    UNREADABLE,
    images_below,
    open_image,
    upright,
    white_in,
)
from common.data.images import as_facts, moments_of
from common.data.shapes import ShapeImages
from common.data.sources import Source, folders_in, named, open_source, part_folders, say_parts
from common.device import Device
from common.run import progress_bar

UNKNOWN = 255  # in a class map: belongs to no class, isn't trained on or counted
SETS = {  # their folder in --data-dir, and there the folders of images and of masks
    "isbi": ("isbi2012_membrane", "image", "label", ["membrane", "cell"]),
    "nuclei": ("nuclei_dsb2018", "images", "labels", ["background", "nucleus"]),
}
NUM_SCENES = 4_000, 100  # of `shapes`, training (seed 0) and test (seed 1)
MASK_SETS = ["shapes", *SETS, "folder:PATH"]
# What turns an image upright, by the value of EXIF's ORIENTATION.
TURNS = dict(enumerate([Image.Transpose(k) for k in (0, 3, 1, 5, 4, 6, 2)], 2))
LEAST_WEIGHT = 1e-13  # border weights below this are nothing


@dataclasses.dataclass
class Annotated:
    """Images uint8 (C, H, W), class maps uint8 (H, W), and label maps int32 (H, W) or None.

    Until the classes are known, `masks` hold the values of the files at `paths`.
    """

    images: list[Tensor]
    masks: list[Tensor]
    labels: list[Tensor] | None
    names: list[str]
    paths: list[Path] = dataclasses.field(default_factory=list)

    def __len__(self) -> int:
        return len(self.images)

    def take(self, indices: Tensor) -> "Annotated":
        """The images at `indices`, with what is known of them."""
        lists = (self.images, self.masks, self.labels, self.names, self.paths)
        return Annotated(*(some and [some[i] for i in indices.tolist()] for some in lists))


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
    add = parser.add_argument
    text = "a set without a test part is cut into so many"
    add("--folds", type=cli.integer(2), metavar="N", default=6, group="data", help=text)
    text = "and this one of them, from 0, is the test part"
    add("--fold", type=cli.integer(0), metavar="K", default=0, group="data", help=text)
    text = "brightness and contrast are brought to a norm for the set, or for each image"
    add("--contrast", choices=["set", "image"], group="data", help=text)

    def with_test_part(_model: str, data: str, _paper: bool, **_given) -> tuple[dict, dict]:
        reason = "it is for sets without a test part, and shapes has one"
        return {}, dict.fromkeys(("fold", "folds"), reason) if data == "shapes" else {}

    parser.recipes.append(with_test_part)


class MaskSet:
    """One part of a data set: `part` is "train", "val" or "test".

    `facts` holds the `classes` and the `values` of masks that stand for them, the number of
    `channels`, their `mean` and `std` (of the training part, pixels from 0 to 1), and `top`, which
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
    if args.fold >= args.folds:
        fail(f"--fold {args.fold}: there are {args.folds} (--folds), counted from 0")
    readers = {name: lambda args: stored_set(args, dev) for name in SETS}
    readers |= {"shapes": scenes, "folder": lambda args: own_folder(args, dev)}
    source = open_source(args, dev, readers)
    if args.data == "shapes":  # no more are drawn than are needed
        source.parts = {name: drawn(part, size, dev) for name, part in source.parts.items()}
    marked = sum(bool(((m > 0) & (m != UNKNOWN)).any()) for m in source.parts["train"].masks)
    if not marked and not args.stored:  # a model that is there may be measured on anything
        fail(f"{args.data}: no mask of the training part marks anything, so there is nothing to "
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
    root = Path(args.data.partition(":")[2]).expanduser()
    if not root.is_dir():
        fail(
            f"--data folder:{root}: there is no such folder; name one with images/ and masks/, "
            "or take --data shapes, which needs no files"
        )
    if (root / "images").is_dir():
        others = [p for p in folders_in(root) if p.name not in ("images", "masks", "labels")]
        left = ", ".join(path.name for path in others if images_below(path))
        parts, notes = {}, [f"{left} beside images/ is left out"] if left else []
    else:
        parts, notes = part_folders(root, args.data)
    parts = parts or {"train": root}
    if "val" in parts and "test" not in parts:
        notes.append(f"there is no test part, so {parts['val'].name}/ is it")
        parts["test"] = parts.pop("val")
    found = {}
    for part, path in parts.items():
        kinds = [name for name in ("masks", "labels") if (path / name).is_dir()]
        if not (path / "images").is_dir() or len(kinds) != 1:
            fail(f"{path} needs a folder images/ and beside it masks/ (classes) or labels/ "
                 "(numbers)")  # fmt: skip
        found[part] = (path / "images", path / kinds[0], kinds == ["labels"])
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
        everything = parts["train"]
        if len(everything) < args.folds:
            fail(f"{args.data} has {counted(len(everything), 'image')}: --folds {args.folds} is "
                 "too many")  # fmt: skip
        generator = torch.Generator().manual_seed(0)  # the same folds for every --seed
        order = torch.randperm(len(everything), generator=generator).tensor_split(args.folds)
        rest = torch.cat([o for k, o in enumerate(order) if k != args.fold])
        parts["train"] = everything.take(rest.sort().values)
        parts["test"] = everything.take(order[args.fold].sort().values)
        sizes = ", ".join(str(len(o)) for o in order)
        notes.append(f"the test part is fold {args.fold} of {args.folds}; their sizes: {sizes}")
    return Source(classes, parts, "; ".join(notes), facts)


DEEDS = {  # of files, to be counted
    "pages": "with further pages, not as many in image and mask: the first is read",
    "turned": "with a mask that is turned as its image's EXIF data say",
    "alpha": "with a mask painted in its alpha channel, which is read",
}
LABELS = "numbers of things belong in a folder labels/"


def by_name(folder: Path) -> dict[str, Path]:
    """The image files in a folder and below it, by their place there without the suffix."""
    found: dict[str, Path] = {}
    for path in images_below(folder):
        name = path.relative_to(folder).with_suffix("").as_posix()
        if name in found:
            fail(f"{folder} holds {path.name} and {found[name].name}: one name, two images")
        found[name] = path
    return found


def read_part(
    images: Path, masks: Path, labelled: bool, top: float | None, counts: dict, dev: Device
) -> Annotated:
    """Images and the masks, or label maps, of the same names; `counts` what was done to files."""
    there, marked = by_name(images), by_name(masks)
    if not there:
        fail(f"{images} holds no images")
    if alone := sorted(there.keys() - marked.keys()):
        fail(f"{there[alone[0]]} has no mask of its name in {masks}")
    if alone := sorted(marked.keys() - there.keys()):
        fail(f"{marked[alone[0]]} has no image of its name in {images}")
    part = Annotated([], [], [] if labelled else None, [], [])
    for name in progress_bar(sorted(there), dev, "reading images", len(there)):
        path, own = there[name], marked[name]
        pages = pages_of(path)
        if pages_of(own) != pages:
            counts["pages"] += 1
            pages = 1
        for page in range(pages):
            image, mask = read_image(path, top, page), read_mask(own, page, counts)
            if (turned := turned_along(path, own, mask)) is not None:
                counts["turned"] += 1
                mask = turned
            if image.shape[1:] != mask.shape:
                sizes = " and ".join(f"{w}x{h}" for h, w in (image.shape[1:], mask.shape))
                fail(f"{path} and its mask differ in size: {sizes} pixels")
            part.images.append(image)
            part.names.append(path.name if pages == 1 else f"{path.name} page {page + 1}")
            part.paths.append(own)
            if labelled:
                part.labels.append(mask)
            elif int(mask.max()) > 255:
                fail(f"{own} holds the value {int(mask.max())}: classes end at 255; "
                     f"{LABELS}")  # fmt: skip
            part.masks.append(mask.clamp(max=1).byte() if labelled else mask.byte())
    return part


def pages_of(path: Path) -> int:
    """How many images a file holds."""
    if path.suffix.lower() not in PAGED:
        return 1
    try:
        with Image.open(path) as image:
            return getattr(image, "n_frames", 1)
    except UNREADABLE as error:
        fail(f"{path} is not a readable image ({error})")


def turned_along(path: Path, own: Path, mask: Tensor) -> Tensor | None:
    """A mask of an image's stored pixels, turned as the image's EXIF data say; None if it needn't.

    A mask with EXIF data of its own, or of another size than the stored pixels, is upright, and so
    is an image whose EXIF data are damaged.
    """
    try:
        with Image.open(path) as image, Image.open(own) as marked:
            turn = TURNS.get(image.getexif().get(ORIENTATION))
            if turn is None or marked.getexif().get(ORIENTATION) or image.size[::-1] != mask.shape:
                return None
            if upright(image) is image:
                return None
    except UNREADABLE:
        return None
    return torch.from_numpy(np.array(Image.fromarray(mask.numpy()).transpose(turn)))


def read_image(path: Path, top: float | None = None, page: int = 0) -> Tensor:
    """An image file as uint8 (1, H, W) if it is grey, else (3, H, W)."""
    try:
        image = np.array(open_image(path, top, page))
    except UNREADABLE as error:
        fail(f"{path} is not a readable image ({error})")
    pixels = torch.from_numpy(image)
    if pixels.ndim == 3 and bool((pixels == pixels[..., :1]).all()):
        pixels = pixels[..., 0]  # grey, stored as colour
    return pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)


def read_mask(path: Path, page: int = 0, counts: dict | None = None) -> Tensor:
    """A mask file as int32 (H, W): its values, or those of its palette's places.

    Where all colours are one and the alpha channel isn't, or nothing is opaque, that is the mask.
    """
    try:
        with Image.open(path) as image:
            image.seek(page)
            mask, layered = np.array(upright(image)), image.mode in ("RGBA", "LA")
    except UNREADABLE as error:
        fail(f"{path} is not a readable image ({error})")
    if mask.ndim == 3:
        colours = mask[..., :3] if mask.shape[2] > 2 else mask[..., :1]
        alpha = mask[..., -1]
        if layered and (colours == colours[:1, :1]).all() and alpha.min() < 255:
            if counts:
                counts["alpha"] += 1
            return torch.from_numpy(alpha.astype(np.int32))
        if (colours != colours[..., :1]).any():
            fail(f"{path} is a colour image: masks hold one number a pixel (grey, or a palette)")
        mask = colours[..., 0]
    real = mask.dtype.kind == "f"
    if (real and (~np.isfinite(mask) | (mask != mask.round())).any()) or not (
        mask.min() >= 0 and mask.max() < 2**31
    ):
        fail(f"{path} holds numbers that name no class: masks hold whole numbers from 0")
    return torch.from_numpy(mask.astype(np.int32))


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
