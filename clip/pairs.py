"""Pairs of images and captions on their way into a training step."""

import itertools
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from clip.contrast import keys_of
from common import counted, fail
from common.data.captions import CaptionSet, repeated
from common.data.tokens import Tokens
from common.device import Device


def square_window(numbers: Tensor, height: Tensor, width: Tensor) -> Tensor:
    """A square of 64 to 100% of an image's shorter side, anywhere (Sec. 2.5: the only augmentation
    is a random square crop). Never mirrored: captions know left from right."""
    share, x, y, _, _ = numbers.unbind(1)
    side = (0.64 + 0.36 * share) * torch.minimum(height, width)
    return torch.stack([x * (width - side), y * (height - side), side, side, 0 * side], 1)


def say_cuts(parts: Iterable, tokens: Tokens, context: int, dev: Device) -> None:
    """Says how many captions of the parts (None: there is none) are longer than the context."""
    cut = 0
    for part in filter(None, parts):
        if tokens.encode(part.texts()[0], context)[1]:  # of different ones, which are fewer
            cut += tokens.encode([text for some in part.captions for text in some], context)[1]
    if cut:
        dev.say(f"note: {counted(cut, 'caption')} cut at {context} tokens")


def say_notes(train: CaptionSet, parts: Iterable, tokens: Tokens, batch_size: int, dev: Device):
    """Says how many captions are cut, and how many in a batch are equal; one pair can't be."""
    context = train.facts["network"]["context"]
    if (size := train.batches(batch_size).batch_size) < 2:
        fail(f"{counted(len(train), 'training pair')}, in batches of {size}: one pair has no other "
             "to be told from; take more data")  # fmt: skip
    say_cuts(parts, tokens, context, dev)
    if equal := repeated(train.example(size)):
        dev.say(f"note: of {size} pairs about {equal} have a caption that another of them has too: "
                "they are right answers to each other")  # fmt: skip


def whole_steps(batches: Iterable, tokens: Tokens, context: int, dev: Device) -> Iterator[list]:
    """All parts of a step together: of each its images, tokens, and keys of its captions."""
    while parts := list(itertools.islice(batches, dev.accumulate)):
        yield [
            (images, tokens.encode(texts, context)[0].to(dev.device), keys_of(texts, dev))
            for images, texts, _ in parts
        ]
