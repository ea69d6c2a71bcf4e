"""Image files: opened whatever their mode, cut to size, and read by worker processes."""

import signal
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor

from common import fail
from common.device import Device

UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)
SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".pgm", ".ppm"}


class ImageFiles(torch.utils.data.Dataset):
    """Image files read one by one, as uint8 (C, H, W), or a line of complaint.

    `files[i]` is the middle of an image, cut to a square of `size` pixels, with `pad` black ones
    around. `files[i, numbers]` is what `window` cuts from it (see `common.data.augment`), scaled
    to `cut` pixels.
    """

    def __init__(
        self,
        paths: Sequence[str],
        size: int = 0,
        channels: int = 3,
        pad: int = 0,
        window: Callable | None = None,
        cut: int = 0,
    ):
        self.paths, self.size, self.channels, self.pad = list(paths), size, channels, pad
        self.window, self.cut = window, cut

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, key: int | tuple[int, list[float]]) -> Tensor | str:
        index, numbers = key if isinstance(key, tuple) else (key, None)
        try:
            image = open_image(self.paths[index]).convert("L" if self.channels == 1 else "RGB")
        except UNREADABLE as error:
            return f"{self.paths[index]} is not a readable image ({error})"
        if numbers is None:
            image = ImageOps.fit(image, (self.size, self.size), Image.Resampling.BILINEAR)
        else:
            height, width = torch.tensor([[image.height], [image.width]])
            window = self.window(torch.tensor([numbers]), height, width)[0].tolist()
            left, top, across, down, mirrored = window
            box = (left, top, min(left + across, image.width), min(top + down, image.height))
            image = image.resize((self.cut, self.cut), Image.Resampling.BILINEAR, box)
            image = ImageOps.mirror(image) if mirrored else image
        pixels = torch.from_numpy(np.array(image)).view(image.height, image.width, -1)
        return F.pad(pixels.permute(2, 0, 1), [self.pad] * 4)

    def subset(self, indices: Tensor) -> "ImageFiles":
        """Those at `indices`, with the same settings."""
        paths = [self.paths[i] for i in indices.tolist()]
        return ImageFiles(paths, self.size, self.channels, self.pad, self.window, self.cut)

    def count_grey(self, most: int = 256) -> tuple[int, int]:
        """How many of how many files, looked at by their headers alone, are without colour."""
        looked_at, grey = self.paths[:: max(1, len(self) // most)][:most], 0
        for path in looked_at:
            try:
                with Image.open(path) as image:
                    grey += image.mode in ("1", "L", "LA", "La", "I", "F", "I;16")
            except UNREADABLE:
                continue  # reading it will complain
        return grey, len(looked_at)


def open_image(path: str | Path) -> Image.Image:
    """An image file as 8-bit L or RGB, turned upright; 16 bits are scaled to 8.

    Transparent places become white, or black where all that is opaque is light.
    """
    with warnings.catch_warnings():  # of large images: they are read all the same
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        image = ImageOps.exif_transpose(Image.open(path))
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        values = np.nan_to_num(np.asarray(image, dtype=np.float64))
        tops = ([1] if image.mode == "F" else []) + [255, 65535, values.max()]
        top = next(top for top in tops if values.max() <= top)
        return Image.fromarray((values.clip(0) / top * 255).round().astype(np.uint8))
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
    files: ImageFiles, keys: Iterable[list], workers: int, dev: Device
) -> Iterator[Tensor]:
    """Reads `files[key]` for batches of keys, in order, with worker processes a little ahead."""
    loader = torch.utils.data.DataLoader(
        files,
        batch_sampler=keys,
        num_workers=workers if len(files) > 256 else 0,
        collate_fn=collate,
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
    return next((image for image in images if isinstance(image, str)), None) or torch.stack(images)


def ignore_interrupt(_worker: int) -> None:
    """Signals sent to the whole group are for the parent, which saves and stops its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
