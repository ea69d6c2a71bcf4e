"""The adding problem (Hochreiter and Schmidhuber 1997, Sec. 5.4, experiment 4), made as needed.

train, val, test = load(args, dev)
for pairs, lengths, sums in run.progress(train.batches(args.batch_size, train=True)): ...

A sequence of at least `--length` pairs: a number from -1 to 1, and a mark. Two numbers are marked,
one of the first ten and one of the first half, and their sum is to be told at the end: so what
was seen has to be kept for half the sequence at least.
"""

import argparse
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from common import cli
from common.data.batches import Batches, Draw
from common.data.sources import say_parts
from common.device import Device

AN_EPOCH, VAL, TEST = 10_000, 500, 2560  # sequences; the test set is as large as the paper's
RIGHT = 0.04  # the largest error of an answer that counts as right


def add_flags(parser: cli.Parser) -> None:
    """The flags of `load`."""
    add, count = parser.add_argument, dict(type=cli.integer(10), metavar="T", group="data")
    add("--length", **count, default=100, help="pairs of a sequence of the adding problem, least")
    text = "squash the answer as the output unit of 1997 does"
    parser.add_switch("--logistic", group="data", help=text)


def make(length: int, draw: Draw) -> tuple[Tensor, Tensor, Tensor]:
    """Pairs (B, 1.1 T, 2), padded with zeros, lengths (B,) from T to 1.1 T, and sums (B, 1, 1)."""
    most = length + length // 10
    numbers = draw.uniform(-1, 1, most)
    lengths = draw.integers(length, most).cpu()
    first = draw.integers(0, 9)[:, None]
    second = draw.integers(0, length // 2 - 2)[:, None]  # among those that are not marked yet
    second = second + (second >= first)
    places = torch.arange(most, device=numbers.device)
    last = (lengths - 1).to(numbers.device)[:, None]
    marks = ((places == first) | (places == second)).float()
    marks = marks.masked_fill((places == 0) | (places == last), -1.0)
    sums = (numbers * (marks == 1)).sum(1)  # a marked number at the very first place counts as 0
    pairs = torch.stack([numbers, marks], 2).masked_fill((places > last)[:, :, None], 0.0)
    return pairs, lengths, (0.5 + sums / 4)[:, None, None]


class Sums:
    """One part: `part` is "train", "val" or "test"; of the first there is no end."""

    def __init__(self, part: str, size: int, length: int, dev: Device):
        self.part, self.size, self.length, self.dev = part, size, length, dev
        self.facts = {"task": "adding", "length": length}

    def __len__(self) -> int:
        return self.size

    def batches(self, batch_size: int, train: bool = False) -> Batches:
        """Batches of pairs (B, T, 2), lengths (B,) on the CPU and sums (B, 1, 1).

        To train is to get new ones in each step, of (seed, epoch, step).
        """

        def fetch(parts: list[Tensor], draws: Iterable[Draw], _epoch: int) -> Iterator:
            for part, draw in zip(parts, draws, strict=True):
                if not train:
                    draw = Draw([(self.part, i) for i in part.tolist()], len(part), slice(None),
                                self.dev.device)  # fmt: skip
                pairs, lengths, sums = make(self.length, draw)
                longest = int(lengths.max())
                yield pairs[:, :longest], lengths, sums

        return Batches(self.size, batch_size, self.dev, train, fetch)


def load(args: argparse.Namespace, dev: Device) -> tuple[Sums, Sums | None, Sums]:
    """The training, validation (None without --val) and test set."""
    sizes = {"train": min(args.limit or AN_EPOCH, AN_EPOCH), "val": args.val, "test": TEST}
    sets = {part: Sums(part, size, args.length, dev) for part, size in sizes.items() if size}
    say_parts(args, dev, sets, "sequences", f"of {args.length} pairs or more, new in each epoch")
    return sets["train"], sets.get("val"), sets["test"]


SETS = {"adding": make}
