"""Image files: found, opened whatever their mode, cut to size, and read by worker processes."""

import signal
import struct
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor

from common import counted, fail
from common.device import Device

UNREADABLE = (  # what Pillow raises of damaged files
    *(OSError, SyntaxError, ValueError, TypeError, LookupError, EOFError, ArithmeticError),
    *(struct.error, Image.DecompressionBombError),
)
SUFFIXES = {".png", ".jpg", ".jpeg", ".jfif", ".bmp", ".gif", ".tif", ".tiff", ".webp"}
SUFFIXES |= {".pgm", ".ppm"}
PAGED = {".gif", ".tif", ".tiff"}  # may hold several images
DEEP = ("I", "F")  # modes of more than 8 bits, beside I;16
TOPS = (255, 1023, 4095, 16383, 65535)  # white of 8, 10, 12, 14 and 16 bits
ORIENTATION = 0x0112  # EXIF's tag of how an image is to be turned: 1 to 8, 1 not at all
LOOKED_AT = 256  # files of a large set whose headers are looked at


class ImageFiles(torch.utils.data.Dataset):
    """Image files read one by one, as uint8 (C, H, W), or a line of complaint.

    `files[i]` is the middle of an image, cut to a square of `size` pixels, with `pad` black ones
    around. `files[i, numbers]` is what `window` cuts from it (see `common.data.augment`), scaled
    to `cut` pixels. `top` is what white is in images of more than 8 bits. `resample` is how pixels
    are scaled, "bilinear" or "bicubic".
    """

    def __init__(
        self,
        paths: Sequence[str],
        size: int = 0,
        channels: int = 3,
        pad: int = 0,
        window: Callable | None = None,
        cut: int = 0,
        top: float | None = None,
        resample: str = "bilinear",
    ):
        self.resample = Image.Resampling[resample.upper()]
        self.paths, self.size, self.channels, self.pad = list(paths), size, channels, pad
        self.window, self.cut, self.top = window, cut, top

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, key: int | tuple[int, list[float]]) -> Tensor | str:
        index, numbers = key if isinstance(key, tuple) else (key, None)
        try:
            image = open_image(self.paths[index], self.top)
            image = image.convert("L" if self.channels == 1 else "RGB")
        except UNREADABLE as error:
            return f"{self.paths[index]} is not a readable image ({error})"
        if numbers is None:
            image = ImageOps.fit(image, (self.size, self.size), self.resample)
        else:
            height, width = torch.tensor([[image.height], [image.width]])
            window = self.window(torch.tensor([numbers]), height, width)[0].tolist()
            left, top, across, down, mirrored = window
            box = (left, top, min(left + across, image.width), min(top + down, image.height))
            image = image.resize((self.cut, self.cut), self.resample, box)
            image = ImageOps.mirror(image) if mirrored else image
        pixels = torch.from_numpy(np.array(image)).view(image.height, image.width, -1)
        return F.pad(pixels.permute(2, 0, 1), [self.pad] * 4)

    def take(self, indices: Tensor) -> "ImageFiles":
        """The files at `indices`, to be read alike."""
        paths = [self.paths[i] for i in indices.tolist()]
        settings = self.size, self.channels, self.pad, self.window, self.cut, self.top
        return type(self)(paths, *settings, self.resample.name)


def find_images(inputs: Iterable[Path]) -> list[Path]:
    """The files named, and those in the folders named, linked ones too; hidden ones are left."""
    files = []
    for path in inputs:
        if not path.exists():
            fail(f"{path}: there is no such file")
        inside = images_below(path) if path.is_dir() else [path]
        if not inside:
            fail(f"{path} holds no images")
        files += inside
    return files


def images_below(
    folder: Path, suffixes: Iterable[str] = SUFFIXES, seen: frozenset[Path] = frozenset()
) -> list[Path]:
    """The image files (or others with `suffixes`) in a folder and in those below it, in order.

    Hidden ones are left; linked folders are read, but none inside of itself.
    """
    if (here := folder.resolve()) in seen:
        return []  # a link that leads back
    paths = [path for path in sorted(folder.iterdir()) if not path.name.startswith(".")]
    files = [p for p in paths if p.suffix.lower() in suffixes and p.is_file()]
    for path in paths:
        files += images_below(path, suffixes, seen | {here}) if path.is_dir() else []
    return files


def look_at(paths: Sequence[str | Path]) -> tuple[int, int, float | None, int]:
    """Of image files, by the headers of some: how many are grey, of how many looked at, what is
    white in those of more than 8 bits (None: there are none), and how many have further pages.

    Files that can't be read are left to complain when they are.
    """
    some, grey, deep = paths[:: max(1, len(paths) // LOOKED_AT)], 0, []
    for path in some:
        try:
            with Image.open(path) as image:
                grey += image.mode in ("1", "L", "LA", "La", *DEEP) or is_deep(image)
                deep += [path] if is_deep(image) else []
        except UNREADABLE:
            continue
    paged = 0
    for path in (p for p in paths if Path(p).suffix.lower() in PAGED):
        try:
            with Image.open(path) as image:
                paged += getattr(image, "n_frames", 1) > 1
        except UNREADABLE:
            continue
    return grey, len(some), white_of(deep) if deep else None, paged


def is_deep(image: Image.Image) -> bool:
    """Whether an image has more than 8 bits a channel."""
    return image.mode in DEEP or image.mode.startswith("I;16")


def white_in(paths: Sequence[str | Path]) -> float | None:
    """What is white in those files that have more than 8 bits, looking at all; None without any."""
    deep = []
    for path in paths:
        try:
            with Image.open(path) as image:
                deep += [path] if is_deep(image) else []
        except UNREADABLE:
            continue  # reading it will complain
    return white_of(deep) if deep else None


def white_of(paths: Sequence[str | Path]) -> float:
    """What is white in images of more than 8 bits: one scale for all, by the largest value."""
    largest, whole = 0.0, True
    for path in paths:
        try:
            with Image.open(path) as image:
                values = np.nan_to_num(np.asarray(image, dtype=np.float64))
                whole &= image.mode != "F"
        except UNREADABLE:
            continue
        largest = max(largest, float(values.max()))
    return next((t for t in ((1, *TOPS) if not whole else TOPS) if largest <= t), largest)


def notes_on(paths: Sequence[str | Path], channels: int = 0) -> tuple[list[str], float | None]:
    """What to say of a set's files, and what is white in those of more than 8 bits.

    With `channels` 3 it is said that grey images are made RGB.
    """
    grey, looked_at, top, paged = look_at(paths)
    notes = []
    if grey and channels == 3:
        some = "the" if grey == looked_at else f"{grey} of {looked_at}"
        notes.append(f"{some} images are grey: made RGB with three equal channels")
    if top is not None:
        notes.append(f"images of more than 8 bits: {top:g} is white in all of them")
    if paged:
        has = "has" if paged == 1 else "have"
        notes.append(f"{counted(paged, 'file')} {has} further pages: the first is read")
    return notes, top


def upright(image: Image.Image) -> Image.Image:
    """An image turned as its EXIF data say, or as it is stored where these are damaged."""
    try:
        return ImageOps.exif_transpose(image)
    except UNREADABLE:
        return image


def open_image(path: str | Path, top: float | None = None, page: int = 0) -> Image.Image:
    """An image file as 8-bit L or RGB, turned upright; of more bits `top` (else its own) is white.

    Transparent places become white, or black where all that is opaque is light.
    """
    with warnings.catch_warnings():  # of large images: they are read all the same
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        image = Image.open(path)
        image.seek(page)
        image.load()
        image = upright(image)
    if is_deep(image):
        values = np.nan_to_num(np.asarray(image, dtype=np.float64))
        top = top or white_of([path]) or 1
        return Image.fromarray((values.clip(0, top) / top * 255).round().astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        pixels = np.asarray(image, dtype=np.float64)
        opaque = pixels[pixels[..., 3] > 127, :3]
        light = opaque.size > 0 and opaque.mean() > 127
        ground = Image.new("RGBA", image.size, (0, 0, 0, 255) if light else (255, 255, 255, 255))
        return Image.alpha_composite(ground, image).convert("RGB")
    return image.convert("L" if image.mode in ("1", "L") else "RGB")


def luminance(pixels: Tensor) -> Tensor:
    """RGB pixels (N, 3, H, W), uint8, made grey (N, 1, H, W) by the weights of ITU-R 601."""
    weights = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)
    return (pixels * weights).sum(1, keepdim=True).round().byte()


def read_files(
    files: ImageFiles, keys: Iterable[list], workers: int, dev: Device, whole: bool = True
) -> Iterator[Tensor | list[Tensor]]:
    """Reads `files[key]` for batches of keys, in order, with worker processes a little ahead.

    Batches are tensors or, if not `whole`, lists: of images that differ in size.
    """
    loader = torch.utils.data.DataLoader(
        files,
        batch_sampler=keys,
        num_workers=workers if len(files) > 256 else 0,
        collate_fn=collate if whole else listed,
        worker_init_fn=ignore_interrupt,
        generator=torch.Generator(),  # leaves the global random state as it is: resuming is exact
        pin_memory=dev.device.type == "cuda",
    )
    for batch in loader:
        if isinstance(batch, str):
            fail(batch, any_rank=True)
        yield batch


def collate(images: list[Tensor | str]) -> Tensor | str:
    """One tensor; or the first complaint about an unreadable file."""
    found = listed(images)
    return found if isinstance(found, str) else torch.stack(found)


def listed(images: list[Tensor | str]) -> list[Tensor] | str:
    """The images of a batch; or the first complaint about an unreadable file."""
    return next((image for image in images if isinstance(image, str)), None) or images


def ignore_interrupt(_worker: int) -> None:
    """Signals sent to the whole group are for the parent, which saves and stops its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
