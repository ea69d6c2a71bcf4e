"""Image sets for classification: read once, kept as uint8, augmented a whole batch at a time.

    train, val, test = load_images(args, dev, size=32, channels=3)
    for images, labels in run.progress(train.batches(args.batch_size, augment=augment)): ...

Sets lie whole in memory, on the device where they fit. Folders too large for that are streamed
by worker processes, behind the same `batches` call.
"""

import argparse
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from common import fail
from common.cli import whole
from common.data import sources
from common.data.augment import cut_windows
from common.data.batches import Batches, Draw
from common.data.files import ImageFiles, luminance, read_files
from common.data.shapes import ShapeImages
from common.data.sources import Pixels, cut_parts, split
from common.device import Device
from common.run import progress

SOURCES = {
    "shapes": sources.shapes,
    "digits": sources.digits,
    **dict.fromkeys(sources.IDX_SETS, sources.idx_set),
    "cifar10": sources.cifar,
    "cifar100": sources.cifar,
    "folder": sources.folder,
}
IMAGE_SETS = [name if name != "folder" else "folder:PATH" for name in SOURCES]
STREAM_BYTES = 2 << 30  # of pixels: larger folders are streamed


def add_image_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of scripts that use `load_images`."""
    parser.add_argument(
        "--stream",
        choices=["auto", "yes", "no"],
        default="auto",
        help="read folder images as they are needed, or all at once (auto: from 2 GiB of pixels)",
    )
    usable = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count())
    cores = min(8, len(usable))
    parser.add_argument(
        "--workers", type=whole(0), default=cores, help="processes that read image files"
    )


class ImageSet:
    """One part of a data set: `part` is "train", "val" or "test".

    `facts` holds the `classes`, the `side` of the square that evaluation cuts its middle from, and
    the `mean` and `std` of each channel (of the training part, pixels from 0 to 1) that batches are
    normalised with; the three parts share it.
    """

    def __init__(
        self,
        part: str,
        pixels: Tensor | ImageFiles,
        labels: Tensor,
        facts: dict,
        dev: Device,
        size: int = 0,
        window: Callable | None = None,
    ):
        self.part, self.pixels, self.facts, self.dev = part, pixels, facts, dev
        self.labels, self.workers = labels.to(dev.device), 0
        self.size, self.window = size, window
        if isinstance(pixels, Tensor) and dev.device.type == "cuda":
            free, _ = torch.cuda.mem_get_info()
            self.pixels = (
                pixels.to(dev.device) if pixels.numel() < free / 4 else pixels.pin_memory()
            )

    def __len__(self) -> int:
        return len(self.pixels)

    def batches(
        self,
        batch_size: int,
        augment: Callable | None = None,
        shuffle: bool | None = None,
        whole: bool = False,
    ) -> Batches:
        """Batches of images (B, C, H, W), float and normalised, and labels (B,), on the device.

        `augment(images, draw)` gets uint8 pixels and may return floats from 0 to 255. Only the
        training part is shuffled, unless `shuffle` says otherwise. Without `shuffle` images are
        cut from the middle, or `whole`.
        """
        shuffle = self.part == "train" if shuffle is None else shuffle

        def fetch(parts: list[Tensor], draws: Iterable[Draw], epoch: int) -> Iterator:
            window = self.window if shuffle else None
            if isinstance(self.pixels, ImageFiles):  # large sets: each example has its own seed
                draws, ahead = itertools.tee(self.own_draw(part, epoch) for part in parts)
                keys = (
                    list(zip(part.tolist(), draw.uniform(0, 1, 5).tolist(), strict=True))
                    if window
                    else part.tolist()
                    for part, draw in zip(parts, ahead, strict=True)
                )
                pixels = read_files(self.pixels, keys, self.workers, self.dev)
            else:
                pixels = (self.pixels[part.to(self.pixels.device)] for part in parts)
            for part, images, draw in zip(parts, pixels, draws, strict=True):
                images = images.to(self.dev.device, non_blocking=True)
                if window and isinstance(self.pixels, Tensor):
                    side = torch.full((len(images),), images.shape[3], device=self.dev.device)
                    windows = window(draw.uniform(0, 1, 5), side, side)
                    images = cut_windows(images, windows, self.size)
                elif not window and not whole:
                    images = self.middle(images)
                images = augment(images, draw) if augment else images
                yield self.normalise(images), self.labels[part]

        return Batches(len(self), batch_size, self.dev, shuffle, fetch)

    def own_draw(self, part: Tensor, epoch: int) -> Draw:
        """Random numbers of a part's examples, each with its own seed."""
        keys = [("example", self.dev.seed, epoch, i) for i in part.tolist()]
        return Draw(keys, len(keys), slice(None), self.dev.device)

    def middle(self, images: Tensor) -> Tensor:
        """The middle of images that are larger than the network's."""
        rest = images.shape[3] - self.size if self.size else 0
        begin, end = rest // 2, images.shape[3] - (rest - rest // 2)
        return images[:, :, begin:end, begin:end] if rest > 0 else images

    def examples(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """The middle of the chosen images (N, C, H, W), normalised, and their labels (N,)."""
        if isinstance(self.pixels, ImageFiles):
            parts = (part.tolist() for part in indices.split(64))
            pixels = torch.cat(list(read_files(self.pixels, parts, self.workers, self.dev)))
        else:
            pixels = self.pixels[indices.to(self.pixels.device)]
        pixels = self.middle(pixels.to(self.dev.device))
        return self.normalise(pixels), self.labels[indices.to(self.dev.device)]

    def normalise(self, pixels: Tensor) -> Tensor:
        """Pixels from 0 to 255 (B, C, H, W) to floats of about mean 0 and deviation 1."""
        mean, std = (torch.tensor(self.facts[k], device=pixels.device) for k in ("mean", "std"))
        scale = (1 / (255 * std)).view(-1, 1, 1)
        return pixels.float().mul_(scale).sub_((mean / std).view(-1, 1, 1))


def load_images(
    args: argparse.Namespace,
    dev: Device,
    size: int,
    channels: int = 3,
    pad: int = 0,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    window: Callable | None = None,
    whole: int = 0,
) -> tuple[ImageSet, ImageSet | None, ImageSet]:
    """The training, validation (None without --val) and test part of `--data`.

    Images become `channels` x `size` x `size` (cut to a square, then scaled; 1 channel is grey),
    with `pad` black pixels around. `mean` and `std` default to those of the training part.

    `window` (see `common.data.augment`) is for folders: what it cuts of an image is trained on.
    Streamed images are cut from the file, others from the square of `whole` pixels (by default
    8/7 of `size`) that is kept in memory; evaluation takes the middle of that square.
    """
    kind = args.data.partition(":")[0]
    for flag in {"stream", "workers"} & set(args.typed):
        if kind != "folder":
            fail(f"--{flag} is for folder:PATH: {args.data} always lies in memory")
    source = SOURCES[kind](args)
    if source.val and args.val and "val" in args.typed:
        fail(f"--val {args.val}: {args.data} has a val/ of its own; --val 0 does without")
    parts = {"train": source.train, "test": source.test, "val": source.val}
    parts = cut_parts(args, parts, lambda part: len(part[1]), take)
    notes = [source.note, grey_note(source.train[0], channels)]
    window = window if kind == "folder" else None
    side = (whole or -(-size * 8 // 7)) if window else max(whole, size)
    facts = {"classes": source.classes, "side": side}
    pixel_bytes = channels * (side + 2 * pad) ** 2 * sum(len(p[1]) for p in parts.values())
    stream = args.stream == "yes" or (args.stream == "auto" and pixel_bytes > STREAM_BYTES)
    sets = {}
    for part, content in parts.items():
        pixels = prepare(content[0], side, channels, pad, stream, args.workers, dev)
        if isinstance(pixels, ImageFiles):
            pixels.window, pixels.cut = window, size
        out, cut = size + 2 * pad, window if part == "train" else None
        sets[part] = ImageSet(part, pixels, content[1], facts, dev, out, cut)
        sets[part].workers = args.workers
    facts["mean"], facts["std"] = (mean, std) if mean and std else statistics(sets["train"])
    counts = ", ".join(f"{len(sets[p]):,} {p}" for p in ("train", "val", "test") if p in sets)
    place = "streamed" if isinstance(sets["train"].pixels, ImageFiles) else "in memory"
    note = "".join(f" ({note})" for note in notes if note)
    dev.say(f"{args.data}: {counts} images, {len(source.classes)} classes, {place}{note}")
    return sets["train"], sets.get("val"), sets["test"]


def grey_note(pixels: Pixels, channels: int) -> str:
    """What to say of images without colour where colour is expected."""
    grey, looked_at = 0, 1
    if channels == 3 and isinstance(pixels, ImageFiles):
        grey, looked_at = pixels.count_grey()
    elif channels == 3 and isinstance(pixels, Tensor):
        grey = int(pixels.shape[1] == 1)
    some = "the" if grey == looked_at else f"{grey} of {looked_at}"
    return f"{some} images are grey: made RGB with three equal channels" if grey else ""


def take(part: tuple, indices: Tensor) -> tuple:
    """The chosen examples of (pixels, labels)."""
    pixels, labels = part
    chosen = pixels[indices] if isinstance(pixels, Tensor) else pixels.subset(indices)
    return chosen, labels[indices]


def prepare(
    pixels: Pixels, size: int, channels: int, pad: int, stream: bool, workers: int, dev: Device
) -> Tensor | ImageFiles:
    """Brings pixels to one size and number of channels, in chunks so that memory stays bounded."""
    if isinstance(pixels, ImageFiles):
        files = ImageFiles(pixels.paths, size, channels, pad)
        if stream:
            return files
        parts = [part.tolist() for part in torch.arange(len(files)).split(64)]
        read = read_files(files, parts, workers, dev)
        return torch.cat(list(progress(read, dev, "reading images", len(parts))))
    if isinstance(pixels, ShapeImages):
        total = -(-len(pixels) // 100)
        drawn = progress(pixels.draw(size, 100), dev, "drawing scenes", total)
        pixels = torch.cat(list(drawn))
    done = []
    for chunk in pixels.split(4096):
        if chunk.shape[1] != channels:
            chunk = luminance(chunk) if channels == 1 else chunk.expand(-1, channels, -1, -1)
        if chunk.shape[2] != size or chunk.shape[3] != size:
            scaled = F.interpolate(chunk.float(), (size, size), mode="bilinear", antialias=True)
            chunk = scaled.round().clamp(0, 255).byte()
        done.append(F.pad(chunk, [pad] * 4))
    return torch.cat(done)


def statistics(images: ImageSet) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel, of pixels from 0 to 1 (streamed: of 2,048)."""
    return as_facts(*moments(images))


def as_facts(mean: Tensor, covariance: Tensor) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel, from `moments`."""
    return mean.tolist(), covariance.diag().clamp(min=1e-8).sqrt().tolist()


def colour_covariance(images: ImageSet) -> Tensor:
    """The covariance (C, C) of the channels over all pixels, from 0 to 1 (streamed: of 2,048)."""
    return moments(images)[1]


def moments(images: ImageSet) -> tuple[Tensor, Tensor]:
    """Mean (C,) and covariance (C, C) of a set's pixels from 0 to 1, float64."""
    pixels = images.pixels
    if isinstance(pixels, ImageFiles):
        some = split(len(pixels), min(1.0, 2048 / len(pixels)), "statistics")[1]
        parts = (part.tolist() for part in some.split(64))
        pixels = torch.cat(list(read_files(pixels, parts, images.workers, images.dev)))
    return moments_of(chunk.movedim(1, 0).flatten(1) for chunk in pixels.split(1024))


def moments_of(chunks: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean (C,) and covariance (C, C), float64, from 0 to 1, of chunks of pixels (C, N), uint8."""
    count = first = second = 0
    for chunk in chunks:
        values = chunk.cpu().float() / 255  # (C, N)
        count += values.shape[1]
        first = first + values.sum(1, dtype=torch.float64)
        second = second + (values @ values.T / values.shape[1]).double() * values.shape[1]
    mean = first / count
    return mean, second / count - mean.outer(mean)
