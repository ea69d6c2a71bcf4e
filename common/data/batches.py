"""How an epoch becomes steps, parts and random numbers: functions of (seed, epoch, step) alone.

Neither the number of processes nor --accumulate changes what a step sees, and a resumed run sees
what an uninterrupted one would have seen.
"""

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from common import counted, fail, seed_of
from common.device import Device
from common.run import progress_bar


class Batches:
    """The parts of an epoch's steps that this process computes, in turn: iterate over it.

    Its length is the number of steps. In training (`shuffle`) a step holds `batch_size` examples
    of a fresh order, cut into one equal part for each process and micro-batch; a short last step
    is dropped. In evaluation nothing is dropped, and every process gets as many parts.
    `fetch(parts, draws, epoch)` turns the indices of all parts still to come, with their random
    numbers, into the batches to yield.
    """

    def __init__(self, size: int, batch_size: int, dev: Device, shuffle: bool, fetch: Callable):
        self.size, self.dev, self.shuffle, self.fetch = size, dev, shuffle, fetch
        self.epoch = self.first = 0
        self.pieces = dev.world * (dev.accumulate if shuffle else 1)  # of a step
        if size < self.pieces:
            have = counted(size, "example")
            fail(f"{have} can't be shared by {self.pieces} processes and micro-batches: start "
                 "fewer, or take more data")  # fmt: skip
        if shuffle and batch_size % self.pieces:
            processes = counted(dev.world, "process", "processes")
            fail(f"--batch-size {batch_size} can't be cut into {processes} x {dev.accumulate} "
                 f"micro-batches: choose a multiple of {self.pieces}")  # fmt: skip
        self.batch_size = min(batch_size, size - size % self.pieces)

    def __len__(self) -> int:
        if self.shuffle:
            return self.size // self.batch_size
        return min(-(-self.size // self.batch_size), self.size // self.pieces)  # none empty

    def seek(self, epoch: int, step: int) -> None:
        """Sets the epoch, and the step to begin at, of the next iteration."""
        self.epoch, self.first = epoch, step

    def steps(self) -> Sequence[Tensor]:
        """The indices of each step of the epoch."""
        if not self.shuffle:
            return torch.arange(self.size).tensor_split(len(self))
        generator = torch.Generator().manual_seed(seed_of("order", self.dev.seed, self.epoch))
        order = torch.randperm(self.size, generator=generator)
        return order[: len(self) * self.batch_size].view(len(self), self.batch_size)

    def __iter__(self) -> Iterator:
        dev, parts, draws = self.dev, [], []
        for step, indices in enumerate(self.steps()[self.first :], self.first):
            pieces = indices.tensor_split(self.pieces)
            begins = torch.tensor([0, *map(len, pieces)]).cumsum(0).tolist()
            for number in range(dev.rank, self.pieces, dev.world):
                parts.append(pieces[number])
                rows = slice(begins[number], begins[number + 1])
                draws.append(
                    Draw([("step", dev.seed, self.epoch, step)], len(indices), rows, dev.device)
                )
        batches = iter(self.fetch(parts, draws, self.epoch))
        if self.shuffle:  # the run shows the progress of training
            return batches
        return progress_bar(batches, dev, "evaluating", len(parts))


class Draw:
    """Random numbers for each example of a part, as a batched augmentation needs them.

    They are drawn for the `size` examples of the whole step from its key, and `rows` cut out; or,
    with a key for each example, from each one's own.
    """

    def __init__(self, keys: Sequence[tuple], size: int, rows: slice, device: torch.device):
        self.keys, self.size, self.rows, self.device = keys, size, rows, device
        self.generators: list[torch.Generator] = []

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        """Numbers in [low, high): (B, *shape)."""
        if not self.generators:
            self.generators = [torch.Generator().manual_seed(seed_of(*key)) for key in self.keys]
        count = self.size // len(self.keys)
        parts = [torch.rand(count, *shape, generator=g) for g in self.generators]
        return (torch.cat(parts)[self.rows] * (high - low) + low).to(self.device)

    def normal(self, *shape: int) -> Tensor:
        """Standard normal numbers: (B, *shape), float64 but on MPS (by Box and Muller, 1958)."""
        drawn = self.uniform(0, 1, 2, *shape)
        u, v = drawn.cpu().double().unbind(1)
        numbers = (-2 * torch.log(1 - u)).sqrt() * torch.cos(2 * math.pi * v)
        kind = torch.float32 if drawn.device.type == "mps" else torch.float64
        return numbers.to(drawn.device, kind)

    def integers(self, low: int, high: int, *shape: int) -> Tensor:
        """Whole numbers from low to high, both included: (B, *shape), int64."""
        return self.uniform(low, high + 1, *shape).floor().long().clamp(max=high)
