"""Reading image sets from where they are: scikit-learn, torchvision's downloads, folders.

Each reader returns a `Source`. Pixels are uint8 (N, C, H, W), `ImageFiles` still on disk,
or `ShapeImages` still to be drawn.
Mistakes end in one line that names the file.
"""

import argparse
import contextlib
import dataclasses
import math
import urllib.error
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common import fail, seed_of
from common.data import shapes as world
from common.data.files import ImageFiles
from common.data.shapes import ShapeImages

IDX_FILES = [
    f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")
]
IDX_SETS = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST", "kmnist": "KMNIST"}


Pixels = Tensor | ImageFiles | ShapeImages


@dataclasses.dataclass
class Source:
    """The parts of a data set as they are on disk: (pixels, labels), and what to say of them."""

    classes: list[str]
    train: tuple[Pixels, Tensor]
    test: tuple[Pixels, Tensor]
    val: tuple[Pixels, Tensor] | None = None
    note: str = ""


def split(size: int, share: float, *key: int | str) -> tuple[Tensor, Tensor]:
    """Two sorted index sets: the rest, and a seeded `share` of `size` examples (at least one)."""
    order = torch.randperm(size, generator=torch.Generator().manual_seed(seed_of("split", *key)))
    cut = max(1, round(size * share))
    return order[cut:].sort().values, order[:cut].sort().values


def cut_parts(
    args: argparse.Namespace,
    parts: dict[str, Any],
    size: Callable = len,
    take: Callable | None = None,
) -> dict[str, Any]:
    """The parts "train" and "test", and with --val "val": the set's own, or cut off by the seed.

    --limit keeps so many of the training part. `take(part, indices)` makes a smaller part, by
    default its `take` method; `size(part)` counts its examples.
    """
    take = take or (lambda part, indices: part.take(indices))
    parts = {name: part for name, part in parts.items() if part and (name != "val" or args.val)}
    count = size(parts["train"])
    if args.val and "val" not in parts:
        if "val" not in args.chosen:  # a default made for larger sets
            args.val = min(args.val, max(1, count // 10))
        if args.val >= count:
            fail(f"--val {args.val} leaves nothing of {count} training examples: lower it")
        rest, held_out = split(count, args.val / count, "val", args.seed)
        parts["val"], parts["train"] = take(parts["train"], held_out), take(parts["train"], rest)
        count -= len(held_out)
    if args.limit and args.limit < count:
        few = split(count, args.limit / count, "limit", args.seed)[1]
        parts["train"] = take(parts["train"], few)
    return {name: parts[name] for name in ("train", "val", "test") if name in parts}


def shapes(args: argparse.Namespace) -> Source:
    """10,000 + 1,000 scenes of the world of shapes, drawn at the size that is asked for."""
    parts = []
    for seed, count in enumerate(world.NUM_SCENES.values()):
        indices = range(count)
        parts.append((ShapeImages(indices, seed), world.labels_of(indices)))
    return Source(world.CLASSES, *parts)


def digits(args: argparse.Namespace) -> Source:
    """scikit-learn's 1,797 handwritten digits of 8x8 pixels, split 80/20 by a fixed seed."""
    from sklearn.datasets import load_digits

    raw = load_digits()
    pixels = torch.from_numpy((raw.images * 255 / 16).round().astype(np.uint8))[:, None]
    labels = torch.from_numpy(raw.target)
    train, test = split(len(labels), 0.2, 0)
    note = "a fifth of them is the test part; writers are shared between the parts"
    classes = [str(digit) for digit in range(10)]
    return Source(classes, (pixels[train], labels[train]), (pixels[test], labels[test]), note=note)


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
        reason = str(error).strip().splitlines()[0].rstrip(":")
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
    train, test = (kind(args.data_dir, train=part) for part in (True, False))
    classes = [str(digit) for digit in range(10)] if args.data == "mnist" else list(kind.classes)
    return Source(classes, (train.data[:, None], train.targets), (test.data[:, None], test.targets))


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
    note = ""
    if (
        missing
        and here
        and not {name for name, _ in wanted} - {e[0] for e in kind.train_list} & set(missing)
    ):
        note = f"a part: {len(here)} of {len(kind.train_list)} training batches are in {folder}"
    elif missing:
        download(
            lambda: kind(args.data_dir, download=True), args.data_dir, kind.base_folder, missing
        )
        here = kind.train_list
    part = type(kind.__name__, (kind,), {"train_list": here})  # torchvision checks just these
    for name, md5 in (*here, *kind.test_list, wanted[-1]):
        if not torchvision.datasets.utils.check_integrity(folder / name, md5):
            fail(f"{folder / name} is damaged (its md5 is not {md5}): delete it and run again")
    train, test = (part(args.data_dir, train=t) for t in (True, False))
    arrays = [
        (torch.from_numpy(s.data).permute(0, 3, 1, 2), torch.tensor(s.targets))
        for s in (train, test)
    ]
    return Source(list(train.classes), *arrays, note=note)


def folder(args: argparse.Namespace) -> Source:
    """The user's own ImageFolder tree: a folder a class, perhaps below train/, val/, test/."""
    from torchvision.datasets import ImageFolder

    root = Path(args.data.partition(":")[2]).expanduser()
    if not root.is_dir():
        fail(
            f"--data folder:{root}: there is no such folder; name one with a folder of images for "
            "each class, or take --data shapes, which needs no files"
        )

    def read(path: Path) -> tuple[list[str], ImageFiles, Tensor]:
        try:
            tree = ImageFolder(str(path))
        except (OSError, RuntimeError) as error:
            fail(f"--data folder:{root}: {error}")
        paths, labels = zip(*tree.samples, strict=True)
        return tree.classes, ImageFiles(paths), torch.tensor(labels)

    def held_out(name: str) -> tuple[ImageFiles, Tensor]:
        names, files, labels = read(root / name)
        if strange := sorted(set(names) - set(classes)):
            fail(
                f"--data folder:{root}: {name}/ has the class {strange[0]!r}, which train/ has not"
            )
        return files, torch.tensor([classes.index(n) for n in names])[labels]

    parts = {name for name in ("train", "val", "test") if (root / name).is_dir()}
    classes, files, labels = read(root / "train" if "train" in parts else root)
    if "train" in parts and parts & {"val", "test"}:
        val = held_out("val") if "val" in parts else None
        if "test" in parts:
            return Source(classes, (files, labels), held_out("test"), val)
        return Source(
            classes, (files, labels), val, note="there is no test/, so val/ is the test part"
        )
    if len(labels) < 2:
        fail(f"--data folder:{root} holds one image: that can't be split")
    train, test = split(len(labels), 0.2, 0)
    note = "there is no test/, so a seeded fifth is the test part"
    parts = [(files.subset(indices), labels[indices]) for indices in (train, test)]
    return Source(classes, *parts, note=note)
