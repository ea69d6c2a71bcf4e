"""Text as examples for BERT and its line: special tokens, masked examples, batches of them.

Here stands what several of them share; how text is arranged and what of it is hidden differs from
paper to paper, and stands in their files. Every draw comes from a `random.Random` that the caller
gives, one for each example: so neither the size of batches nor the number of processes changes an
example.

Shapes: B batch, T tokens (padded), N hidden tokens of a batch in all, V vocabulary.
"""

import functools
import itertools
import random as random_module
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

Random = random_module.Random
Document = list[list[int]]  # its sentences, as tokens without special ones


class Special(NamedTuple):
    """The special tokens of a vocabulary of V, and which tokens begin a word.

    `others` are further special ones; without `begins` every token is a word.
    """

    pad: int
    unk: int
    cls: int
    sep: int
    mask: int
    vocab_size: int
    others: tuple[int, ...] = ()
    begins: Sequence[bool] | None = None

    @property
    def all(self) -> frozenset[int]:
        """Every special token."""
        return frozenset((*self[:5], *self.others))


class Example(NamedTuple):
    """One sequence, special tokens included, with the label of the sentences, where they have
    one."""

    tokens: list[int]
    segments: list[int]
    label: int | None = None


class Masked(NamedTuple):
    """An example of which tokens are hidden: `targets` stood at `places`.

    `ranks` are XLNet's: when each token's turn comes, -1 for those that all others see.
    """

    tokens: list[int]
    segments: list[int]
    label: int | None
    places: list[int]
    targets: list[int]
    ranks: list[int] | None = None


def candidates(example: Example, special: Special) -> list[int]:
    """The places whose tokens may be hidden: all but those of special tokens."""
    never = special.all - {special.unk}
    return [i for i, token in enumerate(example.tokens) if token not in never]


def hide(example: Example, places: list[int], replace: Callable[[int], int]) -> Masked:
    """The example with `replace(token)` for the tokens at these places, which are put in order."""
    tokens, places = list(example.tokens), sorted(places)
    targets = [tokens[i] for i in places]
    for place, token in zip(places, targets, strict=True):
        tokens[place] = replace(token)
    return Masked(tokens, example.segments, example.label, places, targets)


def fit(
    a: list[int], b: list[int], room: int, random: Random | None = None
) -> tuple[list[int], list[int]]:
    """Both without some tokens, always one of the longer's, until `room` holds them.

    These are the last ones; with `random` each is the first or the last.
    """
    over = max(0, len(a) + len(b) - room)
    lead = max(-over, min(over, len(a) - len(b)))  # until both are equally long
    from_a = (over + lead) // 2
    return cut(a, from_a, random), cut(b, over - from_a, random)


def cut(tokens: list[int], number: int, random: Random | None) -> list[int]:
    """Without so many of the first and last ones."""
    front = sum(random.random() < 0.5 for _ in range(number)) if random else 0
    return tokens[front : len(tokens) - (number - front)]


def cleaned(documents: Sequence[Document]) -> list[Document]:
    """Without empty sentences and documents."""
    kept = ([sentence for sentence in document if sentence] for document in documents)
    return [document for document in kept if document]


def joined(sentences: Sequence[list[int]]) -> list[int]:
    """The tokens of sentences in one list."""
    return list(itertools.chain.from_iterable(sentences))


def thirds(token: int, random: Random, words: Sequence[int], special: Special) -> int:
    """What stands for a hidden token: 80% [MASK], 10% any of `words`, 10% the token itself."""
    draw = random.random()
    if draw < 0.8:
        return special.mask
    return words[random.randrange(len(words))] if draw < 0.9 else token


@functools.lru_cache(8)
def words_but(vocab_size: int, never: frozenset[int]) -> list[int]:
    """All tokens of a vocabulary but some."""
    return [token for token in range(vocab_size) if token not in never]


def collate(
    masked: Sequence[Masked], pad: int, family: str = "bert", device: torch.device | None = None
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A batch: `inputs` for the model and `answers` for its loss.

    inputs: `tokens` and `segments` (B, T), padded to the longest, and `places` (N,), counted
    through all rows; for ELECTRA also `targets`, for XLNet `ranks` (B, T). answers: `targets` (N,),
    how many of them each example has, `counts` (B,), and where examples have a label `labels` (B,).
    Raises ValueError if only some of them have one.
    """
    length = max(len(example.tokens) for example in masked)

    def rows(lists: list[list[int]], filler: int) -> Tensor:
        padded = [one + [filler] * (length - len(one)) for one in lists]
        return torch.tensor(padded, dtype=torch.long, device=device)

    def line(values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.long, device=device)

    places = [row * length + place for row, one in enumerate(masked) for place in one.places]
    targets = line([token for one in masked for token in one.targets])
    inputs = {
        "tokens": rows([one.tokens for one in masked], pad),
        "segments": rows([one.segments for one in masked], 0),
        "places": line(places),
    }
    if family == "electra":
        inputs["targets"] = targets
    if family == "xlnet":
        inputs["ranks"] = rows([one.ranks for one in masked], -1)
    answers = {"targets": targets, "counts": line([len(one.places) for one in masked])}
    labels = [one.label for one in masked]
    if None not in labels:
        answers["labels"] = line(labels)
    elif any(label is not None for label in labels):
        raise ValueError("some examples of the batch have a label, others have none")
    return inputs, answers
