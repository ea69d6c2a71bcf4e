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

from common import cli
from common.data import sources
from common.data.augment import cut_windows
from common.data.batches import Batches, Draw
from common.data.files import ImageFiles, luminance, notes_on, read_files
from common.data.shapes import ShapeImages
from common.data.sources import Pixels, named, open_source, say_parts, split
from common.device import Device
from common.run import progress_bar

READERS = {
    "shapes": sources.shapes,
    "digits": sources.digits,
    **dict.fromkeys(sources.IDX_SETS, sources.idx_set),
    "cifar10": sources.cifar,
    "cifar100": sources.cifar,
    "folder": sources.folder,
}
IMAGE_SETS = [name if name != "folder" else "folder:PATH" for name in READERS]
IMAGE_SETS.insert(1, "shapes:N")  # so many scenes
STREAM_BYTES = 2 << 30  # of pixels: larger folders are streamed


def add_image_flags(parser: cli.Parser) -> None:
    """The flags of scripts whose images may lie in files."""
    text = "read image files as they are needed, or all at once"
    parser.add_switch(
        "--stream", default=None, none="from 2 GiB of pixels", group="data", help=text
    )
    usable = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count())
    text, kind = "processes that read image files", cli.integer(0)
    cores = min(8, len(usable))
    parser.add_argument("--workers", type=kind, default=cores, metavar="N", group="data", help=text)

    def in_memory(_model: str, data: str, _paper: bool, **_given) -> tuple[dict, dict]:
        reason = f"{data} always lies in memory; it is for files of your own"
        held = data.partition(":")[0] in READERS.keys() - {"folder"}  # others are in files
        return {}, dict.fromkeys(("stream", "workers"), reason) if held else {}

    parser.recipes.append(in_memory)


class Held:
    """Images in memory, uint8 (N, C, H, W): on the device where they fit."""

    def __init__(self, pixels: Tensor, dev: Device):
        self.pixels, self.dev = pixels, dev
        if dev.device.type == "cuda":
            free, _ = torch.cuda.mem_get_info()
            fits = pixels.numel() < free / 4
            self.pixels = pixels.to(dev.device) if fits else pixels.pin_memory()

    def __len__(self) -> int:
        return len(self.pixels)

    def take(self, indices: Tensor) -> "Held":
        """The images at `indices`, still in memory."""
        return Held(self.pixels[indices.to(self.pixels.device)], self.dev)

    def draws(self, parts: list[Tensor], draws: Iterable[Draw], epoch: int) -> Iterable[Draw]:
        """Random numbers of parts: those of their steps."""
        return draws

    def read(
        self, parts: Iterable[Tensor], windows: Iterable[Draw] | None, cut: Callable | None = None
    ) -> Iterator[Tensor]:
        """The images of parts, on the device; with `windows` what is drawn there, by `cut`."""
        for part in parts:
            images = self.pixels[part.to(self.pixels.device)]
            images = images.to(self.dev.device, non_blocking=True)
            yield cut(images, next(windows)) if windows else images


class Streamed:
    """Images in files, which worker processes read as they are needed."""

    def __init__(self, files: ImageFiles, workers: int, dev: Device):
        self.files, self.workers, self.dev = files, workers, dev

    def __len__(self) -> int:
        return len(self.files)

    def take(self, indices: Tensor) -> "Streamed":
        """The images at `indices`, still in files."""
        return Streamed(self.files.take(indices), self.workers, self.dev)

    def draws(self, parts: list[Tensor], draws: Iterable[Draw], epoch: int) -> Iterator[Draw]:
        """Random numbers of parts: each example has its own seed, as each is read on its own."""
        for part in parts:
            keys = [("example", self.dev.seed, epoch, i) for i in part.tolist()]
            yield Draw(keys, len(keys), slice(None), self.dev.device)

    def read(
        self, parts: Iterable[Tensor], windows: Iterable[Draw] | None, cut: Callable | None = None
    ) -> Iterator[Tensor]:
        """The images of parts, on the device; with `windows` what is drawn there, cut from files.

        `cut` is for images in memory: files know what to cut.
        """
        keys = (
            list(zip(part.tolist(), next(windows).uniform(0, 1, 5).tolist(), strict=True))
            if windows
            else part.tolist()
            for part in parts
        )
        for images in read_files(self.files, keys, self.workers, self.dev):
            yield images.to(self.dev.device, non_blocking=True)


class ImageSet:
    """One part of a data set: `part` is "train", "val" or "test".

    `facts` holds the `classes`, the `side` of the square that evaluation cuts its middle from, and
    the `mean` and `std` of each channel (of the training set, pixels from 0 to 1) that batches are
    normalised with; the three parts share it. Networks see `size` pixels (0: all there are), of
    the training set those in a `window` if there is one.
    """

    def __init__(
        self,
        part: str,
        images: Held | Streamed,
        labels: Tensor,
        facts: dict,
        dev: Device,
        size: int = 0,
        window: Callable | None = None,
    ):
        self.part, self.images, self.facts, self.dev = part, images, facts, dev
        self.labels, self.size, self.window = labels.to(dev.device), size, window

    def __len__(self) -> int:
        return len(self.images)

    def take(self, indices: Tensor) -> "ImageSet":
        """The examples at `indices`."""
        labels = self.labels[indices.to(self.labels.device)]
        rest = self.facts, self.dev, self.size, self.window
        return ImageSet(self.part, self.images.take(indices), labels, *rest)

    def batches(
        self,
        batch_size: int,
        augment: Callable | None = None,
        shuffle: bool | None = None,
        margin: bool = False,
    ) -> Batches:
        """Batches of images (B, C, H, W), float and normalised, and labels (B,), on the device.

        `augment(images, draw)` gets uint8 pixels and may return floats from 0 to 255. Only the
        training set is shuffled, unless `shuffle` says otherwise. Without `shuffle` images are
        cut from the middle, or come with the `margin` around it.
        """
        shuffle = self.part == "train" if shuffle is None else shuffle

        def fetch(parts: list[Tensor], draws: Iterable[Draw], epoch: int) -> Iterator:
            window = self.window if shuffle else None
            draws, ahead = self.images.draws(parts, draws, epoch), None
            if window:
                draws, ahead = itertools.tee(draws)
            read = self.images.read(parts, ahead, self.cut)
            for part, images, draw in zip(parts, read, draws, strict=True):
                images = images if window or margin else self.middle(images)
                images = augment(images, draw) if augment else images
                yield self.normalise(images), self.labels[part]

        return Batches(len(self), batch_size, self.dev, shuffle, fetch)

    def cut(self, images: Tensor, draw: Draw) -> Tensor:
        """What the window shows of images in memory, float."""
        side = torch.full((len(images),), images.shape[3], device=images.device)
        return cut_windows(images, self.window(draw.uniform(0, 1, 5), side, side), self.size)

    def middle(self, images: Tensor) -> Tensor:
        """The middle of images that are larger than the network's."""
        rest = images.shape[3] - self.size if self.size else 0
        begin, end = rest // 2, images.shape[3] - (rest - rest // 2)
        return images[:, :, begin:end, begin:end] if rest > 0 else images

    def examples(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """The middle of the chosen images (N, C, H, W), normalised, and their labels (N,)."""
        pixels = self.middle(torch.cat(list(self.images.read(indices.split(64), None))))
        return self.normalise(pixels), self.labels[indices.to(self.dev.device)]

    def normalise(self, pixels: Tensor) -> Tensor:
        """Pixels from 0 to 255 (B, C, H, W) to floats of about mean 0 and standard deviation 1."""
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
    side: int = 0,
) -> tuple[ImageSet, ImageSet | None, ImageSet]:
    """The training, validation (None without --val) and test set of `--data`.

    Images become `channels` x `size` x `size` (cut to a square, then scaled; 1 channel is grey),
    with `pad` black pixels around. `mean` and `std` default to those of the training set.

    `window` (see `common.data.augment`) is for folders: what it cuts of an image is trained on.
    Streamed images are cut from the file, others from the square of `side` pixels (by default
    8/7 of `size`) that is kept in memory; evaluation takes the middle of that square.
    """
    source = open_source(args, dev, READERS)
    window = window if args.data.startswith("folder:") else None
    side = (side or -(-size * 8 // 7)) if window else max(side, size)
    facts = {"classes": source.classes, "side": side}
    notes, pixels = [source.note], source.parts["train"].pixels
    if isinstance(pixels, ImageFiles):
        paths = [path for part in source.parts.values() for path in part.pixels.paths]
        more, facts["top"] = notes_on(paths, channels)
        known = getattr(args, "stored", {}).get("dataset", {})  # of the model that goes on
        facts["top"] = known.get("top") or facts["top"]
        notes += more
    elif isinstance(pixels, Tensor) and pixels.shape[1] == 1 and channels == 3:
        notes.append("the images are grey: made RGB with three equal channels")
    pixel_bytes = channels * (side + 2 * pad) ** 2 * sum(map(len, source.parts.values()))
    stream = pixel_bytes > STREAM_BYTES if args.stream is None else args.stream
    sets = {}
    for part, content in source.parts.items():
        images = content.pixels
        if isinstance(images, ImageFiles):
            settings = (side, channels, pad, window, size, facts["top"])
            images = read_or_stream(ImageFiles(images.paths, *settings), stream, args.workers, dev)
        else:
            images = Held(drawn(images, side, channels, pad, dev), dev)
        cut = window if part == "train" else None
        sets[part] = ImageSet(part, images, content.labels, facts, dev, size + 2 * pad, cut)
    facts["mean"], facts["std"] = (mean, std) if mean and std else statistics(sets["train"])
    place = "streamed" if isinstance(sets["train"].images, Streamed) else "in memory"
    notes = "; ".join(filter(None, notes))
    say_parts(args, dev, sets, "images", named(source.classes), place + (notes and f" ({notes})"))
    return sets["train"], sets.get("val"), sets["test"]


def read_or_stream(files: ImageFiles, stream: bool, workers: int, dev: Device) -> Held | Streamed:
    """Image files, all read now, or to be read as they are needed."""
    if stream:
        return Streamed(files, workers, dev)
    parts = [part.tolist() for part in torch.arange(len(files)).split(64)]
    read = read_files(files, parts, workers, dev)
    return Held(torch.cat(list(progress_bar(read, dev, "reading images", len(parts)))), dev)


def drawn(pixels: Pixels, size: int, channels: int, pad: int, dev: Device) -> Tensor:
    """Scenes drawn, or pixels, as uint8 (N, channels, size + 2 pad, size + 2 pad)."""
    if isinstance(pixels, ShapeImages):
        total = -(-len(pixels) // 100)
        scenes = progress_bar(pixels.draw(size, 100), dev, "drawing scenes", total)
        pixels = torch.cat(list(scenes))
    return fit(pixels, size, channels, pad)


def fit(pixels: Tensor, size: int, channels: int, pad: int = 0) -> Tensor:
    """Pixels uint8 brought to one size and number of channels, in chunks that memory can bear."""
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
    if isinstance(images.images, Held):
        chunks = images.images.pixels.split(1024)
    else:
        some = split(len(images), min(1.0, 2048 / len(images)), "statistics")[1]
        chunks = torch.cat(list(images.images.read(some.split(64), None))).split(1024)
    return moments_of(chunk.movedim(1, 0).flatten(1) for chunk in chunks)


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
