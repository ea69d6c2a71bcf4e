"""Images with pixels from 0 to 1, or points in the plane, for models that can be drawn whole."""

import dataclasses

import torch
from torch import Tensor

from common import cli, fail, unknown
from common.data.batches import Batches
from common.data.images import IMAGE_SETS, ImageSet, load_images
from common.data.sources import Source, named, open_source, say_parts
from common.device import Device

DATA = [*IMAGE_SETS, "moons"]
GREY = {"digits": 8, "mnist": 28, "fashion-mnist": 28, "kmnist": 28}  # and their pixels
CENTRE, SPREAD = torch.tensor([0.5, 0.25]), torch.tensor([0.87, 0.5])  # of the moons


def usual_size(data: str) -> int:
    """How many pixels wide images of this data are, unless --size says otherwise."""
    return 64 if data.startswith("folder:") else GREY.get(data, 32)


def load(args: cli.Flags, dev: Device) -> tuple:
    """The training, validation (None without --val) and test set of `--data`.

    Ends in one line where --samples or --without can't be measured on it.
    """
    if args.data == "moons":
        return load_moons(args, dev)
    channels = 1 if args.data in GREY else 3
    parts = load_images(args, dev, args.size, channels, mean=[0.0] * channels, std=[1.0] * channels)
    classes, test = parts[0].facts["classes"], parts[2]
    if args.samples and len(classes) < 2:
        fail(f"--samples {args.samples}: images of one class teach no classifier to compare with")
    if args.samples and min(args.samples / dev.world, len(test) - 1) < 1:
        need = f"a sample for each of {dev.world} processes and two test images"
        fail(f"--samples {args.samples} needs {need}; {args.data} has {len(test)} to test")
    if args.without is None:
        return parts
    if args.without not in classes:
        fail(unknown("class", args.without, classes))
    index = classes.index(args.without)
    if index not in test.labels:
        fail(f"--without {args.without}: the test set has none to detect")
    return *(part and without(part, index) for part in parts[:2]), test


def without(images: ImageSet, index: int) -> ImageSet:
    """What is left of a part when a class is taken out."""
    others = images.take((images.labels.cpu() != index).nonzero().flatten())
    if not len(others):
        fail(f"--without {images.facts['classes'][index]} leaves nothing of the {images.part} set")
    return others


@dataclasses.dataclass
class Points:
    """Points in the plane, and a class for each."""

    points: Tensor  # (N, 2)
    labels: Tensor  # (N,)

    def __len__(self) -> int:
        return len(self.points)

    def take(self, indices: Tensor) -> "Points":
        """The points at `indices`, with their labels."""
        return Points(self.points[indices], self.labels[indices])


class PointSet:
    """One part of a set of points: `part` is "train", "val" or "test"; see `ImageSet`."""

    def __init__(self, part: str, content: Points, facts: dict, dev: Device):
        self.part, self.facts, self.dev = part, facts, dev
        self.points, self.labels = content.points.to(dev.device), content.labels.to(dev.device)

    def __len__(self) -> int:
        return len(self.points)

    def batches(self, batch_size: int, shuffle: bool | None = None) -> Batches:
        """Batches of points (B, 2) and labels (B,). Only the training set is shuffled."""
        shuffle = self.part == "train" if shuffle is None else shuffle

        def fetch(parts, _draws, _epoch):
            return ((self.points[part], self.labels[part]) for part in parts)

        return Batches(len(self), batch_size, self.dev, shuffle, fetch)


def moons(_args: cli.Flags) -> Source:
    """scikit-learn's two interleaved half circles: 10,000 points to train on, 2,000 to test.

    Each coordinate is shifted and scaled to a mean of about 0 and a standard deviation of about 1.
    """
    from sklearn.datasets import make_moons

    parts = {}
    for seed, (part, size) in enumerate({"train": 10_000, "test": 2000}.items()):
        points, labels = make_moons(size, noise=0.05, random_state=seed)
        points = (torch.from_numpy(points).float() - CENTRE) / SPREAD
        parts[part] = Points(points, torch.from_numpy(labels))
    return Source(["upper", "lower"], parts)


def load_moons(args: cli.Flags, dev: Device) -> tuple[PointSet, PointSet | None, PointSet]:
    """The training, validation (None without --val) and test set of the moons."""
    source = open_source(args, dev, {"moons": moons})
    facts = {"classes": source.classes}
    sets = {part: PointSet(part, content, facts, dev) for part, content in source.parts.items()}
    say_parts(args, dev, sets, "points", named(source.classes), "computed")
    return sets["train"], sets.get("val"), sets["test"]
