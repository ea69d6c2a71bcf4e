"""Image sets for classification: read once, kept as uint8, augmented a whole batch at a time.

    train, val, test = load_images(args, dev, size=32, channels=3)
    for images, labels in run.progress(train.batches(args.batch_size, augment=augment)): ...

Sets lie whole in memory, on the device where they fit. Folders too large for that are streamed
by worker processes, behind the same `batches` call.
"""

import argparse
import os
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from common import fail
from common.cli import whole
from common.data import sources
from common.data.batches import Batches, Draw
from common.data.sources import ImageFiles, split
from common.device import Device
from common.run import progress

SOURCES = {
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

    `facts` holds the `classes`, and the `mean` and `std` of each channel (of the training part,
    pixels from 0 to 1) that batches are normalised with; the three parts share it.
    """

    def __init__(
        self, part: str, pixels: Tensor | ImageFiles, labels: Tensor, facts: dict, dev: Device
    ):
        self.part, self.pixels, self.facts, self.dev = part, pixels, facts, dev
        self.labels, self.workers = labels.to(dev.device), 0
        if isinstance(pixels, Tensor) and dev.device.type == "cuda":
            free, _ = torch.cuda.mem_get_info()
            self.pixels = (
                pixels.to(dev.device) if pixels.numel() < free / 4 else pixels.pin_memory()
            )

    def __len__(self) -> int:
        return len(self.pixels)

    def batches(
        self, batch_size: int, augment: Callable | None = None, shuffle: bool | None = None
    ) -> Batches:
        """Batches of images (B, C, H, W), float and normalised, and labels (B,), on the device.

        `augment(images, draw)` gets uint8 pixels and may return floats from 0 to 255. Only the
        training part is shuffled, unless `shuffle` says otherwise.
        """
        shuffle = self.part == "train" if shuffle is None else shuffle

        def fetch(parts: list[Tensor], draws: list[Draw], epoch: int) -> Iterator:
            if isinstance(self.pixels, ImageFiles):  # large sets: each example has its own seed
                keys = [
                    [("example", self.dev.seed, epoch, i) for i in part.tolist()] for part in parts
                ]
                draws = [Draw(k, len(k), slice(None), self.dev.device) for k in keys]
                pixels = read_files(self.pixels, parts, self.workers, self.dev)
            else:
                pixels = (self.pixels[part.to(self.pixels.device)] for part in parts)
            for part, draw, images in zip(parts, draws, pixels, strict=True):
                images = images.to(self.dev.device, non_blocking=True)
                yield (
                    self.normalise(augment(images, draw) if augment else images),
                    self.labels[part],
                )

        return Batches(len(self), batch_size, self.dev, shuffle, fetch)

    def examples(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """The chosen images (N, C, H, W), normalised as in a batch, and their labels (N,)."""
        if isinstance(self.pixels, ImageFiles):
            pixels = torch.cat(
                list(read_files(self.pixels, indices.split(64), self.workers, self.dev))
            )
        else:
            pixels = self.pixels[indices.to(self.pixels.device)]
        return self.normalise(pixels.to(self.dev.device)), self.labels[indices.to(self.dev.device)]

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
) -> tuple[ImageSet, ImageSet | None, ImageSet]:
    """The training, validation (None without --val) and test part of `--data`.

    Images become `channels` x `size` x `size` (cut to a square, then scaled; 1 channel is grey),
    with `pad` black pixels around. `mean` and `std` default to those of the training part.
    """
    kind = args.data.partition(":")[0]
    for flag in {"stream", "workers"} & set(args.typed):
        if kind != "folder":
            fail(f"--{flag} is for folder:PATH: {args.data} always lies in memory")
    source = SOURCES[kind](args)
    parts = {"train": source.train, "test": source.test, "val": source.val if args.val else None}
    if source.val and args.val and "val" in args.typed:
        fail(f"--val {args.val}: {args.data} has a val/ of its own; --val 0 does without")
    if args.val and not source.val:
        count = len(source.train[1])
        if "val" not in args.chosen:  # a default made for larger sets
            args.val = min(args.val, max(1, count // 10))
        if args.val >= count:
            fail(f"--val {args.val} leaves nothing of {count} training examples")
        cuts = split(count, args.val / count, "val", args.seed)
        parts["train"], parts["val"] = (take(source.train, indices) for indices in cuts)
    if args.limit and args.limit < len(parts["train"][1]):
        share = args.limit / len(parts["train"][1])
        parts["train"] = take(
            parts["train"], split(len(parts["train"][1]), share, "limit", args.seed)[1]
        )
    facts = {"classes": source.classes}
    pixel_bytes = channels * (size + 2 * pad) ** 2 * sum(len(p[1]) for p in parts.values() if p)
    stream = args.stream == "yes" or (args.stream == "auto" and pixel_bytes > STREAM_BYTES)
    sets = {}
    for part, content in parts.items():
        if content:
            pixels = prepare(content[0], size, channels, pad, stream, args.workers, dev)
            sets[part] = ImageSet(part, pixels, content[1], facts, dev)
            sets[part].workers = args.workers
    facts["mean"], facts["std"] = (mean, std) if mean and std else statistics(sets["train"])
    counts = ", ".join(f"{len(sets[p]):,} {p}" for p in ("train", "val", "test") if p in sets)
    place = "streamed" if isinstance(sets["train"].pixels, ImageFiles) else "in memory"
    note = f" ({source.note})" if source.note else ""
    dev.say(f"{args.data}: {counts} images, {len(source.classes)} classes, {place}{note}")
    return sets["train"], sets.get("val"), sets["test"]


def take(part: tuple, indices: Tensor) -> tuple:
    """The chosen examples of (pixels, labels)."""
    pixels, labels = part
    chosen = pixels.subset(indices) if isinstance(pixels, ImageFiles) else pixels[indices]
    return chosen, labels[indices]


def prepare(
    pixels: Tensor | ImageFiles,
    size: int,
    channels: int,
    pad: int,
    stream: bool,
    workers: int,
    dev: Device,
) -> Tensor | ImageFiles:
    """Brings pixels to one size and number of channels, in chunks so that memory stays bounded."""
    if isinstance(pixels, ImageFiles):
        files = ImageFiles(pixels.paths, size, channels, pad)
        if stream:
            return files
        chunks = torch.arange(len(files)).split(64)
        total = len(chunks)
        read = progress(read_files(files, chunks, workers, dev), dev, "reading images", total)
        return torch.cat(list(read))
    done = []
    for chunk in pixels.split(4096):
        if chunk.shape[1] != channels:
            weights = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)  # luminance, ITU-R 601
            grey = (chunk * weights).sum(1, keepdim=True).round().byte() if channels == 1 else chunk
            chunk = grey.expand(-1, channels, -1, -1)
        if chunk.shape[2] != size or chunk.shape[3] != size:
            scaled = F.interpolate(chunk.float(), (size, size), mode="bilinear", antialias=True)
            chunk = scaled.round().clamp(0, 255).byte()
        done.append(F.pad(chunk, [pad] * 4))
    return torch.cat(done)


def read_files(
    files: ImageFiles, parts: Iterable[Tensor], workers: int, dev: Device
) -> Iterator[Tensor]:
    """Reads batches of files, in order, with worker processes that stay a few batches ahead."""
    loader = torch.utils.data.DataLoader(
        files,
        batch_sampler=[part.tolist() for part in parts],
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


def statistics(images: ImageSet) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel, of pixels from 0 to 1 (streamed: of 2,048)."""
    pixels = images.pixels
    if isinstance(pixels, ImageFiles):
        some = split(len(pixels), min(1.0, 2048 / len(pixels)), "statistics")[1]
        pixels = torch.cat(list(read_files(pixels, some.split(64), images.workers, images.dev)))
    sums = torch.zeros(2, pixels.shape[1], dtype=torch.float64)
    for chunk in pixels.split(4096):
        values = chunk.cpu().float() / 255
        sums += torch.stack(
            [values.mean((2, 3)).double().sum(0), (values**2).mean((2, 3)).double().sum(0)]
        )
    mean, square = sums / len(pixels)
    return mean.tolist(), (square - mean**2).clamp(min=1e-8).sqrt().tolist()
