"""Sequences of unequal length in memory, in padded batches of about one length.

train, val, test = load(args, dev)       # of sentences.py, speech.py
for inputs, lengths, targets in run.progress(train.batches(args.batch_size, train=True)): ...
"""

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor

from common import seed_of
from common.data.batches import Batches, Draw
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
