"""Sequences of unequal length in memory, in padded batches of about one length.

train, val, test = load(args, dev)       # of sentences.py, speech.py
for inputs, lengths, targets in run.progress(train.batches(args.batch_size, train=True)): ...
"""

import argparse
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence

import torch
from torch import Tensor

from common import counted, fail, seed_of
from common.data.batches import Batches, Draw
from common.data.sources import split
from common.device import Device

POOL = 50  # steps whose examples are sorted by length together, so that there is little padding


class LikeLengths(Batches):
    """Steps of examples of about one length: `lengths` (N,); order is of (seed, epoch) alone.

    In training a fresh order is cut into pools of steps, each pool is sorted by length, and the
    steps are shuffled. Evaluation goes from the shortest example to the longest.
    """

    def __init__(
        self, lengths: Tensor, batch_size: int, dev: Device, shuffle: bool, fetch: Callable
    ):
        super().__init__(len(lengths), batch_size, dev, shuffle, fetch)
        self.lengths = lengths

    def steps(self) -> Sequence[Tensor]:
        """The indices of each step of the epoch."""
        if not self.shuffle:
            return self.lengths.argsort(stable=True).tensor_split(len(self))
        pools = [pool.flatten() for pool in super().steps().split(POOL)]
        order = torch.cat([pool[self.lengths[pool].argsort(stable=True)] for pool in pools])
        generator = torch.Generator().manual_seed(seed_of("steps", self.dev.seed, self.epoch))
        places = torch.randperm(len(self), generator=generator)
        return order.view(len(self), self.batch_size)[places]


class Sequences:
    """One part of a data set: `part` is "train", "val" or "test".

    `sequences` are tensors (T,) of tokens or (T, F) of features, T at least 1; `targets` (N,) the
    classes. `names` are what a person calls the examples: the sentence, the file. `facts` are the
    plain values that a checkpoint keeps, the same for all parts. `augment(inputs, lengths, draw)`
    is for training.
    """

    def __init__(
        self,
        part: str,
        sequences: Sequence[Tensor],
        targets: Tensor,
        names: Sequence[str],
        facts: dict,
        dev: Device,
        augment: Callable[[Tensor, Tensor, Draw], Tensor] | None = None,
    ):
        self.part, self.names, self.facts, self.dev = part, names, facts, dev
        self.augment = augment
        self.lengths = torch.tensor([len(sequence) for sequence in sequences])  # (N,), on the CPU
        self.begins = self.lengths.cumsum(0) - self.lengths
        self.values = torch.cat(list(sequences)).to(dev.device)  # all of them, one after another
        self.targets = targets.to(dev.device)

    def __len__(self) -> int:
        return len(self.lengths)

    def batches(self, batch_size: int, train: bool = False) -> LikeLengths:
        """Batches of inputs (B, T) or (B, T, F), lengths (B,) on the CPU and targets (B,).

        Inputs are padded with zeros at the end. To `train` is to shuffle and to augment.
        """

        def fetch(parts: list[Tensor], draws: Iterable[Draw], _epoch: int) -> Iterator:
            for part, draw in zip(parts, draws, strict=True):
                inputs, lengths, targets = self.examples(part)
                if train and self.augment:
                    inputs = self.augment(inputs, lengths, draw)
                yield inputs, lengths, targets

        return LikeLengths(self.lengths, batch_size, self.dev, train, fetch)

    def examples(self, indices: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The chosen ones as a batch: inputs, lengths, targets."""
        lengths, device = self.lengths[indices], self.dev.device
        places = torch.arange(int(lengths.max()))
        padding = places >= lengths[:, None]  # (B, T)
        rows = (self.begins[indices, None] + places).masked_fill(padding, 0)
        inputs = self.values[rows.to(device)]
        inputs[padding.to(device)] = 0
        return inputs, lengths, self.targets[indices.to(device)]


def split_by(keys: Sequence[Hashable], share: float = 0.2) -> tuple[Tensor, Tensor]:
    """Two sorted index sets, the rest and a seeded `share`: what has one key is in one of them."""
    groups = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    held_out = split(len(groups), share, 0)[1]
    held = torch.isin(torch.tensor([groups[key] for key in keys]), held_out)
    return (~held).nonzero().flatten(), held.nonzero().flatten()


def with_test(parts: dict, data: str, keys: Sequence[Hashable]) -> list[str]:
    """Sees to it that there is a test part, in place; returns what to say of it.

    It is the validation part where there is one, or else a seeded fifth of the training part;
    `keys` are those of `split_by`.
    """
    if "test" in parts:
        return []
    if "val" in parts:
        parts["test"] = parts.pop("val")
        return ["there is no test part, so the validation part is it"]
    if len(set(keys)) < 2:
        fail(f"--data {data} holds {counted(len(set(keys)), 'example')}: that can't be split")
    whole = parts["train"]
    parts["train"], parts["test"] = (whole.take(indices) for indices in split_by(keys))
    return ["there is no test part, so a seeded fifth is it"]


def classes_in(names: Iterable[str], known: Sequence[str] = ()) -> list[str]:
    """The classes in order, whole numbers by their value; `known` ones of a network, if it
    knows all."""
    names = sorted(set(names))
    if all(name.lstrip("-").isdecimal() for name in names):
        names.sort(key=int)
    return list(known) if set(names) <= set(known) else names


def known_classes(args: argparse.Namespace) -> list[str]:
    """The classes of the checkpoint that the run goes on with; none where there isn't one."""
    return args.stored.get("dataset", {}).get("classes", [])


def check_classes(data: str, classes: Sequence[str], known: Sequence[str]) -> None:
    """Fails where a network is to go on with a data set that has a class it doesn't know."""
    if strange := sorted(set(classes) - set(known)) if known else []:
        fail(f"--data {data} has the class {strange[0]!r}, which the checkpoint's network doesn't "
             f"know: it knows {', '.join(known)}")  # fmt: skip
