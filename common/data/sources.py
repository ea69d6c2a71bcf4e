"""Data sets as they are found: what all readers return, and readers of labelled images.

A loader is its readers, functions of the flags that return a `Source`, and `open_source`, which
cuts validation set and sample. Mistakes end in one line that names the file.
"""

import argparse
import contextlib
import dataclasses
import math
import os
import urllib.error
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common import counted, fail, seed_of
from common.data import shapes as world
from common.data.files import SUFFIXES, ImageFiles, images_below
from common.data.shapes import ShapeImages
from common.device import Device

IDX_FILES = [
    f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")
]
IDX_SETS = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST", "kmnist": "KMNIST"}
PART_NAMES = {  # of folders, in any case
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
MOST_SCENES = 10_000_000  # of shapes:N
SHOWN = 12  # class names in the line that says what was read

Pixels = Tensor | ImageFiles | ShapeImages  # Tensor: uint8 (N, C, H, W)


@dataclasses.dataclass
class Source:
    """A data set as it is on disk.

    The parts are called train, test and perhaps val; each has a length and `take(indices)`, which
    makes a smaller one. `facts` is what else is known of it.
    """

    classes: list[str]
    parts: dict[str, Any]
    note: str = ""
    facts: dict = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class Labelled:
    """Images and a class for each."""

    pixels: Pixels
    labels: Tensor  # (N,)

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: Tensor) -> "Labelled":
        """The examples at `indices`, with their labels."""
        whole = isinstance(self.pixels, Tensor)
        pixels = self.pixels[indices] if whole else self.pixels.take(indices)
        return Labelled(pixels, self.labels[indices])


def split(size: int, share: float, *key: int | str) -> tuple[Tensor, Tensor]:
    """Two sorted index sets: the rest, and a seeded `share` of `size` examples (at least one)."""
    order = torch.randperm(size, generator=torch.Generator().manual_seed(seed_of("split", *key)))
    cut = max(1, round(size * share))
    return order[cut:].sort().values, order[:cut].sort().values


def open_source(
    args: argparse.Namespace,
    dev: Device,
    readers: Mapping[str, Callable[[argparse.Namespace], Source]],
    shared: bool = True,
) -> Source:
    """The source that --data names, with its parts as they are used.

    With --val a validation set is there: the set's own, or one cut off by the seed; --limit
    keeps so many of the training set. `shared` parts are shared out to processes, and have to be
    as large as there are of these.
    """
    source = readers[args.data.partition(":")[0]](args)
    parts = {name: part for name, part in source.parts.items() if part is not None}
    count = len(parts["train"])
    if "val" in parts:
        own = len(parts["val"])
        if "val" in args.typed and args.val not in (0, own):
            fail(f"--val {args.val}: {args.data} has a validation set of its own, of {own}: "
                 f"--val {own} takes it, --val 0 does without")  # fmt: skip
        if not args.val:
            del parts["val"]
    elif args.val:
        cut = args.val if "val" in args.chosen else min(args.val, max(1, count // 10))
        if cut >= count and "val" in args.chosen:
            fail(f"--val {args.val} leaves nothing of {counted(count, 'training example')}: "
                 "lower it")  # fmt: skip
        if cut >= count:
            source.note = "; ".join(filter(None, [source.note, "too small for a validation set"]))
        else:
            rest, held_out = split(count, cut / count, "val", args.seed)
            parts["val"], parts["train"] = parts["train"].take(held_out), parts["train"].take(rest)
            count -= len(held_out)
    if args.limit and args.limit < count:
        few = split(count, args.limit / count, "limit", args.seed)[1]
        parts["train"] = parts["train"].take(few)
    for name, part in parts.items() if shared else ():
        pieces = dev.world * (dev.accumulate if name == "train" else 1)
        if len(part) < pieces:
            fail(f"the {name} set of {args.data} has {counted(len(part), 'example')}, which "
                 f"{pieces} processes and micro-batches can't share: start fewer, or take "
                 f"{'another --val' if name == 'val' else 'more data'}")  # fmt: skip
    source.parts = {name: parts[name] for name in ("train", "val", "test") if name in parts}
    return source


def say_parts(
    args: argparse.Namespace, dev: Device, sets: Mapping[str, Any], what: str, *more: str
) -> None:
    """Prints one line on a data set: how much is in its parts, and what `more` there is to say."""
    counts = ", ".join(f"{len(part):,} {name}" for name, part in sets.items())
    dev.say(f"{args.data}: {counts} {what}" + "".join(f", {text}" for text in more if text))


def named(classes: Sequence[str]) -> str:
    """The classes of a set in words: how many there are, and their names."""
    shown = ", ".join(classes[:SHOWN]) + (", …" if len(classes) > SHOWN else "")
    return f"{counted(len(classes), 'class', 'classes')} ({shown})"


def shapes(args: argparse.Namespace) -> Source:
    """10,000 + 1,000 scenes of the world of shapes, drawn at the size that is asked for.

    `shapes:N` is of N to train on, in place of 10,000: the first ones are the same.
    """
    parts, typed = {}, args.data.partition(":")[2]
    counts = dict(world.NUM_SCENES)
    if typed:
        if not (typed.isdecimal() and 1 <= int(typed) <= MOST_SCENES):
            fail(f"--data {args.data}: N of shapes:N is a number of scenes to train on, from 1 to "
                 f"{MOST_SCENES:,}")  # fmt: skip
        counts["train"] = int(typed)
    for seed, (part, count) in enumerate(counts.items()):
        indices = range(count)
        parts[part] = Labelled(ShapeImages(indices, seed), world.labels_of(indices))
    return Source(world.CLASSES, parts)


def digits(args: argparse.Namespace) -> Source:
    """scikit-learn's 1,797 handwritten digits of 8x8 pixels, split 80/20 by a fixed seed."""
    from sklearn.datasets import load_digits

    raw = load_digits()
    pixels = torch.from_numpy((raw.images * 255 / 16).round().astype(np.uint8))[:, None]
    everything = Labelled(pixels, torch.from_numpy(raw.target))
    train, test = (everything.take(indices) for indices in split(len(everything), 0.2, 0))
    note = "a fifth of them is the test set; writers are shared between the parts"
    return Source([str(digit) for digit in range(10)], {"train": train, "test": test}, note)


def download(
    make: Callable, data_dir: str, folder: str, missing: Sequence[str], instead: str = "digits"
) -> None:
    """Lets torchvision download and check a set; leaves no empty folders behind if it can't."""
    wanted = Path(data_dir, folder)
    new = [path for path in (wanted, *wanted.parents) if not path.exists()]
    try:
        make()
    except (OSError, RuntimeError, urllib.error.URLError) as error:
        for path in new:
            with contextlib.suppress(OSError):
                path.rmdir()
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(":")
        fail(
            f"{missing[0]} is not in {wanted} and can't be downloaded ({reason}): "
            f"name another folder with --data-dir, or take --data {instead}, which needs no files"
        )


def idx_set(args: argparse.Namespace) -> Source:
    """MNIST and the sets of its format: 60,000 + 10,000 grey images of 28x28."""
    import torchvision

    kind = getattr(torchvision.datasets, IDX_SETS[args.data])
    raw = Path(args.data_dir, kind.__name__, "raw")
    if missing := [name for name in IDX_FILES if not (raw / name).exists()]:
        download(
            lambda: kind(args.data_dir, download=True),
            args.data_dir,
            f"{kind.__name__}/raw",
            missing,
        )
    for name in IDX_FILES:
        check_idx(raw / name)
    parts = {}
    for name in ("train", "test"):
        part = kind(args.data_dir, train=name == "train")
        parts[name] = Labelled(part.data[:, None], part.targets)
    classes = [str(digit) for digit in range(10)] if args.data == "mnist" else list(kind.classes)
    return Source(classes, parts)


def check_idx(path: Path) -> None:
    """Fails unless the file is as long as its header says (torchvision gives a traceback)."""
    with open(path, "rb") as file:
        head = file.read(16)
    dimensions = head[3] if len(head) > 3 else 0
    sizes = [int.from_bytes(head[4 + 4 * i : 8 + 4 * i], "big") for i in range(dimensions)]
    expected = 4 + 4 * dimensions + math.prod(sizes)
    if head[:3] != b"\x00\x00\x08" or dimensions not in (1, 3) or path.stat().st_size != expected:
        found = f"{path.stat().st_size} bytes, not the {expected} of its header"
        fail(f"{path} is damaged ({found}): delete it and run again to download it anew")


def cifar(args: argparse.Namespace) -> Source:
    """CIFAR-10, also just some of its batches, and -100: 50,000 + 10,000 images of 32x32, RGB."""
    import torchvision

    kind = torchvision.datasets.CIFAR10 if args.data == "cifar10" else torchvision.datasets.CIFAR100
    folder = Path(args.data_dir, kind.base_folder)
    wanted = [*kind.train_list, *kind.test_list, (kind.meta["filename"], kind.meta["md5"])]
    missing = [name for name, _ in wanted if not (folder / name).exists()]
    here = [entry for entry in kind.train_list if (folder / entry[0]).exists()]
    batches, note = {name for name, _ in kind.train_list}, ""
    if missing and here and set(missing) <= batches:
        note = f"a part: {len(here)} of {len(kind.train_list)} training batches are in {folder}"
    elif missing:
        download(
            lambda: kind(args.data_dir, download=True), args.data_dir, kind.base_folder, missing
        )
        here = kind.train_list
    some = type(kind.__name__, (kind,), {"train_list": here})  # torchvision checks just these
    for name, md5 in (*here, *kind.test_list, wanted[-1]):
        if not torchvision.datasets.utils.check_integrity(folder / name, md5):
            fail(f"{folder / name} is damaged (its md5 is not {md5}): delete it and run again")
    parts = {}
    for name in ("train", "test"):
        part = some(args.data_dir, train=name == "train")
        pixels = torch.from_numpy(part.data).permute(0, 3, 1, 2)
        parts[name] = Labelled(pixels, torch.tensor(part.targets))
    return Source(list(part.classes), parts, note)


def folder(args: argparse.Namespace) -> Source:
    """The user's own images, a folder a class, perhaps below train/, val/, test/ (see PART_NAMES).

    Hidden folders are no classes; images are looked for at any depth.
    """
    root = Path(args.data.partition(":")[2]).expanduser()
    if not root.is_dir():
        fail(
            f"--data folder:{root}: there is no such folder; name one with a folder of images for "
            "each class, or take --data shapes, which needs no files"
        )
    found, notes = part_folders(root, args.data)
    if "train" not in found:
        found = {"train": root}
    classes, everything = read_classes(found["train"], args.data)
    parts = {"train": everything}
    for name in ("val", "test"):
        if name in found:
            parts[name] = read_classes(found[name], args.data, classes)[1]
    if "test" not in parts and "val" in parts:
        notes.append(f"there is no test set, so {found['val'].name}/ is it")
        parts["test"] = parts.pop("val")
    if "test" not in parts:
        if len(everything) < 2:
            fail(f"--data {args.data} holds one image: that can't be split")
        cuts = split(len(everything), 0.2, 0)
        parts["train"], parts["test"] = (everything.take(indices) for indices in cuts)
        notes.append("there is no test set, so a seeded fifth is it")
    if len(classes) == 1:
        notes.append("with one class there is nothing to tell apart: every answer is right")
    return Source(classes, parts, "; ".join(notes))


def folders_in(root: Path) -> list[Path]:
    """The folders in a folder, in order, without hidden ones and what archives leave behind."""
    found = (path for path in root.iterdir() if path.is_dir())
    return sorted(p for p in found if not p.name.startswith((".", "__MACOSX")))


def part_folders(root: Path, data: str) -> tuple[dict[str, Path], list[str]]:
    """The folders of `root` that are parts of a data set, and notes on what else is there.

    A folder named as a part holds the folders of classes; one that holds images itself is a class
    of that name.
    """
    parts: dict[str, Path] = {}
    others = []
    for path in folders_in(root):
        part = PART_NAMES.get(path.name.lower())
        if not part or not folders_in(path):
            others.append(path)
        elif part in parts:
            fail(f"--data {data}: {parts[part].name}/ and {path.name}/ are both the {part} set")
        else:
            parts[part] = path
    if parts and not others and "train" not in parts:
        fail(f"--data {data}: there is {next(iter(parts.values())).name}/, but no train/ beside it")
    if "train" not in parts:
        return {}, []
    left = [path.name for path in others if images_below(path)]
    return parts, [f"{', '.join(left)} beside {parts['train'].name}/ is left out"] if left else []


def read_classes(
    root: Path, data: str, classes: list[str] | None = None
) -> tuple[list[str], Labelled]:
    """The images of a folder a class, and the classes: those given, or all that are there."""
    found = {readable(path.name): images_below(path) for path in folders_in(root)}
    if classes is None:
        if not any(found.values()):
            kinds = ", ".join(sorted(SUFFIXES))
            fail(f"--data {data}: {root} holds no folder of images for each class ({kinds})")
        if empty := [name for name, files in found.items() if not files]:
            fail(f"--data {data}: {root / empty[0]} holds no images: remove it, or fill it")
        classes = list(found)
    if strange := [name for name, files in found.items() if files and name not in classes]:
        fail(f"--data {data}: {root.name}/ has the class {strange[0]!r}, which train/ has not")
    files = [(str(p), classes.index(name)) for name, some in found.items() for p in some]
    if not files:
        fail(f"--data {data}: {root} holds no images")
    paths, labels = zip(*files, strict=True)
    return classes, Labelled(ImageFiles(paths), torch.tensor(labels))


def readable(name: str) -> str:
    """A file's name as text, what isn't UTF-8 in it replaced."""
    return os.fsencode(name).decode("utf-8", "replace")
