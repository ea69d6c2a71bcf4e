"""Points in the plane, for models that can be drawn whole."""

import argparse

import torch
from torch import Tensor

from common import fail
from common.data.batches import Batches
from common.data.sources import split
from common.device import Device

CENTRE, SPREAD = torch.tensor([0.5, 0.25]), torch.tensor([0.87, 0.5])  # of the moons


class PointSet:
    """One part of a set of points: `part` is "train", "val" or "test"; see `ImageSet`."""

    def __init__(self, part: str, points: Tensor, labels: Tensor, facts: dict, dev: Device):
        self.part, self.facts, self.dev = part, facts, dev
        self.points, self.labels = points.to(dev.device), labels.to(dev.device)

    def __len__(self) -> int:
        return len(self.points)

    def batches(self, batch_size: int, shuffle: bool | None = None) -> Batches:
        """Batches of points (B, 2) and labels (B,). Only the training part is shuffled."""
        shuffle = self.part == "train" if shuffle is None else shuffle

        def fetch(parts, _draws, _epoch):
            return ((self.points[part], self.labels[part]) for part in parts)

        return Batches(len(self), batch_size, self.dev, shuffle, fetch)


def load_moons(
    args: argparse.Namespace, dev: Device, count: int = 10_000
) -> tuple[PointSet, PointSet | None, PointSet]:
    """scikit-learn's two interleaved half circles: `count` points to train on, 2,000 to test.

    Each coordinate is shifted and scaled to a mean of about 0 and a deviation of about 1.
    """
    from sklearn.datasets import make_moons

    facts, parts = {"classes": ["upper", "lower"]}, {}
    for seed, (part, size) in enumerate({"train": count, "test": 2000}.items()):
        points, labels = make_moons(size, noise=0.05, random_state=seed)
        points = (torch.from_numpy(points).float() - CENTRE) / SPREAD
        parts[part] = points, torch.from_numpy(labels)
    if args.val:
        if args.val >= count:
            fail(f"--val {args.val} leaves nothing of {count} training examples: lower it")
        cuts = split(count, args.val / count, "val", args.seed)
        points, labels = parts["train"]
        parts["train"], parts["val"] = ((points[cut], labels[cut]) for cut in cuts)
    if args.limit and args.limit < len(parts["train"][0]):
        points, labels = parts["train"]
        cut = split(len(points), args.limit / len(points), "limit", args.seed)[1]
        parts["train"] = points[cut], labels[cut]
    sets = {part: PointSet(part, *content, facts, dev) for part, content in parts.items()}
    counts = ", ".join(f"{len(sets[p]):,} {p}" for p in ("train", "val", "test") if p in sets)
    dev.say(f"moons: {counts} points, computed")
    return sets["train"], sets.get("val"), sets["test"]
