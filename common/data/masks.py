"""Folders of images with a number for each pixel: its class, or which thing of the image it is.

    part = read_part(images, labels, True, top, counts, dev)     # pairs by name, read and compared
    train, test = cut_fold(part, args)                           # a set without a test set

A label map holds 0 for background and another number for each thing. Masks lie on the image as it
is seen: those that were painted on the stored pixels are turned along with it.
"""

import argparse
import dataclasses
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from common import cli, counted, fail
from common.data.files import ORIENTATION, PAGED, UNREADABLE, images_below, open_image, upright
from common.data.sources import folders_in, part_folders
from common.device import Device
from common.run import progress_bar

# What turns an image upright, by the value of EXIF's ORIENTATION.
TURNS = dict(enumerate([Image.Transpose(k) for k in (0, 3, 1, 5, 4, 6, 2)], 2))
DEEDS = {  # of files, to be counted
    "pages": "with further pages, not as many in image and mask: the first is read",
    "turned": "with a mask that is turned as its image's EXIF data say",
    "alpha": "with a mask painted in its alpha channel, which is read",
}
LABELS = "numbers of things belong in a folder labels/"


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


def add_fold_flags(parser: cli.Parser, *whole: str) -> None:
    """The flags that say which part of a set without a test set is held out; `whole` are the data
    sets that have one."""
    add = parser.add_argument
    text = "a set without a test set is cut into so many"
    add("--folds", type=cli.integer(2), metavar="N", default=6, group="data", help=text)
    text = "and this one of them, from 0, is the test set"
    add("--fold", type=cli.integer(0), metavar="K", default=0, group="data", help=text)

    def with_test_part(_model: str, data: str, _paper: bool, **_given) -> tuple[dict, dict]:
        name = data.partition(":")[0]
        reason = f"it is for sets without a test set, and {name} has one"
        return {}, dict.fromkeys(("fold", "folds"), reason) if name in whole else {}

    parser.recipes.append(with_test_part)


def check_fold(args: argparse.Namespace) -> None:
    """Ends in one line if --fold names none of the --folds."""
    if args.fold >= args.folds:
        fail(f"--fold {args.fold}: there are {args.folds} (--folds), counted from 0")


def cut_fold(everything: Annotated, args: argparse.Namespace) -> tuple[Annotated, Annotated, str]:
    """The training and the test set of a set without one, and a note: --fold of the --folds that
    a fixed seed cuts it into."""
    if len(everything) < args.folds:
        fail(f"{args.data} has {counted(len(everything), 'image')}: --folds {args.folds} is "
             "too many")  # fmt: skip
    generator = torch.Generator().manual_seed(0)  # the same folds for every --seed
    order = torch.randperm(len(everything), generator=generator).tensor_split(args.folds)
    rest = torch.cat([o for k, o in enumerate(order) if k != args.fold])
    train, test = (
        everything.take(rest.sort().values),
        everything.take(order[args.fold].sort().values),
    )
    sizes = ", ".join(str(len(o)) for o in order)
    return train, test, f"the test set is fold {args.fold} of {args.folds}; their sizes: {sizes}"


def find_pairs(data: str) -> tuple[dict[str, tuple[Path, Path, bool]], list[str]]:
    """The folders that a data set NAME:PATH means, by part, and notes: of images, of masks, and
    whether these are called labels/.

    images/ lies beside masks/ or labels/, perhaps below train/, val/ and test/.
    """
    kind, _, path = data.partition(":")
    root = Path(path).expanduser()
    if not root.is_dir():
        fail(
            f"--data {kind}:{root}: there is no such folder; name one with images/ and masks/, "
            "or take --data shapes, which needs no files"
        )
    if (root / "images").is_dir():
        others = [p for p in folders_in(root) if p.name not in ("images", "masks", "labels")]
        left = ", ".join(path.name for path in others if images_below(path))
        parts, notes = {}, [f"{left} beside images/ is left out"] if left else []
    else:
        parts, notes = part_folders(root, data)
    parts = parts or {"train": root}
    if "val" in parts and "test" not in parts:
        notes.append(f"there is no test set, so {parts['val'].name}/ is it")
        parts["test"] = parts.pop("val")
    found = {}
    for part, path in parts.items():
        kinds = [name for name in ("masks", "labels") if (path / name).is_dir()]
        if not (path / "images").is_dir() or len(kinds) != 1:
            fail(f"{path} needs a folder images/ and beside it masks/ (classes) or labels/ "
                 "(numbers)")  # fmt: skip
        found[part] = (path / "images", path / kinds[0], kinds == ["labels"])
    return found, notes


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
