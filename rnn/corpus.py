"""Text as language models read it: the Python documentation, Shakespeare, the user's own files.

train, val, test = load(args, dev)
for tokens, _, following in run.progress(train.batches(args.batch_size, train=True)): ...

A text is one line of tokens, cut into as many streams as a batch has rows; a step takes the next
`--bptt` tokens of each, and the network's state goes on from step to step (see `Carried`).
"""

import argparse
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from common import counted, fail, seed_of
from common.data.corpora import CORPORA, END, Corpus, Text, Vocabulary, make_vocabulary, parts_of
from common.data.sources import say_parts
from common.data.text import in_words
from common.device import Device
from common.run import progress_bar

TEST_STREAMS, WARM_UP = 32, 256  # a part is measured in so many streams, each read in so far before


# ---------------------------------------------------------------------- sources


def reader(name: str, joint: str, ending: str = "") -> Callable[[argparse.Namespace], Corpus]:
    """What reads a corpus with no ends of documents in it, but `joint` between them."""

    def read(args: argparse.Namespace) -> Corpus:
        corpus = CORPORA[name](args)
        texts = {part: str(replace(text, joint=joint)).replace(END, joint) + ending
                 for part, text in corpus.parts.items()}  # fmt: skip
        return Corpus({part: Text([text]) for part, text in texts.items()}, corpus.note)

    return read


SETS = {
    "pydocs": reader("pydocs", "\n\n", "\n"),
    "shakespeare": reader("shakespeare", "\n"),
    "text": reader("text", "\n"),
}


# ---------------------------------------------------------------------- streams


class Stream:
    """One part of a text: `part` is "train", "val" or "test", `tokens` (N,) lie on the device."""

    def __init__(self, part: str, text: str, facts: dict, bptt: int, dev: Device):
        vocabulary = Vocabulary(facts)
        self.part, self.facts, self.bptt, self.dev = part, facts, bptt, dev
        self.tokens = vocabulary.encode(text).to(dev.device)
        # That are told, for nats a character: all but those of the first token.
        self.characters = len(text) - len(vocabulary.decode(self.tokens[:1].tolist()))
        self.unknown = vocabulary.unknown(text)

    def __len__(self) -> int:
        return len(self.tokens)

    def batches(self, batch_size: int, train: bool = False) -> "Windows | Measured":
        """Steps of `batch_size` tokens in all to train on; else the part once, in order."""
        if train:
            return Windows(self.tokens, batch_size, self.bptt, self.dev)
        return Measured(self.tokens, self.bptt, self.dev)


class Windows:
    """The parts of an epoch's steps that this process computes, in turn: tokens (B, T), None, and
    what follows each of them (B, T).

    Where the streams begin is drawn from (seed, epoch). What is too short for a step is dropped.
    """

    def __init__(self, tokens: Tensor, batch_size: int, bptt: int, dev: Device):
        self.tokens, self.dev, self.epoch, self.first = tokens, dev, 0, 0
        self.pieces, pairs = dev.world * dev.accumulate, len(tokens) - 1
        self.window = max(1, min(bptt, batch_size, pairs // self.pieces))
        self.streams, most = batch_size // self.window, pairs // self.window
        if pairs < self.pieces:
            fail(f"the training set has {counted(len(tokens), 'token')}: too few for the "
                 f"{counted(self.pieces, 'stream')} of processes and micro-batches")  # fmt: skip
        if self.streams % self.pieces:
            fail(f"--batch-size {batch_size} makes {counted(self.streams, 'stream')} of --bptt "
                 f"{self.window}, which {dev.world} processes x {dev.accumulate} micro-batches "
                 f"can't share: choose a multiple of {self.window * self.pieces}")  # fmt: skip
        self.streams = min(self.streams, most - most % self.pieces)

    def __len__(self) -> int:
        return (len(self.tokens) - 1) // (self.streams * self.window)

    def seek(self, epoch: int, step: int) -> None:
        """Sets the epoch, and the step to begin at, of the next iteration."""
        self.epoch, self.first = epoch, step

    def __iter__(self) -> Iterator[tuple[Tensor, None, Tensor]]:
        taken = len(self) * self.window * self.streams
        generator = torch.Generator().manual_seed(seed_of("streams", self.dev.seed, self.epoch))
        begin = int(torch.randint(len(self.tokens) - taken, (), generator=generator))
        inputs, following = (
            self.tokens[place : place + taken].view(self.streams, -1).tensor_split(self.pieces)
            for place in (begin, begin + 1)
        )
        for step in range(self.first, len(self)):
            now = slice(step * self.window, (step + 1) * self.window)
            for number in range(self.dev.rank, self.pieces, self.dev.world):
                yield inputs[number][:, now], None, following[number][:, now]


class Measured:
    """A part in order, as `Windows` yields it, where -100 stands for what is not to be counted.

    It is read in streams side by side; each but the first reads WARM_UP tokens of the one before,
    so that its state is warm when its own begin. Every token but the first is told once.
    """

    def __init__(self, tokens: Tensor, bptt: int, dev: Device):
        self.dev, self.bptt = dev, bptt
        pairs = len(tokens) - 1
        streams = min(TEST_STREAMS, max(1, (pairs - WARM_UP) // WARM_UP))
        share = -(-max(pairs - WARM_UP, 1) // streams)
        mine = torch.arange(streams)[dev.rank :: dev.world]
        begins = (mine if len(mine) else torch.zeros(1).long())[:, None] * share
        places = begins + torch.arange(min(WARM_UP, pairs) + share)  # (B, T)
        counted_ones = (places >= begins + WARM_UP * (begins > 0)) & (places < pairs)
        counted_ones &= bool(len(mine))  # of few tokens some processes get none that count
        places = places.clamp(max=pairs - 1).to(tokens.device)
        self.inputs = tokens[places]
        self.following = tokens[places + 1].masked_fill(~counted_ones.to(tokens.device), -100)

    def __len__(self) -> int:
        return -(-self.inputs.shape[1] // self.bptt)

    def __iter__(self) -> Iterator[tuple[Tensor, None, Tensor]]:
        parts = zip(
            self.inputs.split(self.bptt, 1), self.following.split(self.bptt, 1), strict=True
        )
        parts = ((inputs, None, following) for inputs, following in parts)
        return iter(progress_bar(parts, self.dev, "evaluating", len(self)))


class Carried:
    """The state in which each part of a step has left the network, for the next step.

    A checkpoint holds it for all streams, in order, however many processes and micro-batches there
    were. Where nothing is carried on, as between sentences, it is always None.
    """

    def __init__(self, dev: Device, on: bool):
        self.dev, self.on = dev, on
        self.states: list[tuple[Tensor, ...] | None] = [None] * dev.accumulate
        self.part = 0  # of the step

    def begin(self, anew: bool, batches: Any) -> None:
        """Before an epoch, or the rest of one: the state is zero at the beginning, and where a
        --batch-size typed on resume makes other streams."""
        known = [state[0].shape[1] for state in self.states if state]
        if anew or (known and sum(known) * self.dev.world != batches.streams):
            self.states, self.part = [None] * self.dev.accumulate, 0

    def take(self) -> tuple[Tensor, ...] | None:
        """The state for the part that comes now."""
        return self.states[self.part]

    def put(self, state: tuple[Tensor, ...] | None) -> None:
        """Keeps what the network came to, without its past: gradients end here."""
        if self.on:
            self.states[self.part] = tuple(s.detach().float() for s in state)
            self.part = (self.part + 1) % self.dev.accumulate

    def state_dict(self) -> dict:
        """The states of all streams, in order. Every process has to call this."""
        if self.states[0] is None:
            return {}
        mine = [tuple(s.cpu() for s in state) for state in self.states]
        everyone = self.dev.gather(mine)
        parts = [part for some in zip(*everyone, strict=True) for part in some]
        return {str(i): torch.cat(p, 1) for i, p in enumerate(zip(*parts, strict=True))}

    def load_state_dict(self, stored: dict) -> None:
        """Takes this process's share."""
        if stored:
            pieces = [
                stored[key].tensor_split(self.dev.world * self.dev.accumulate, 1)
                for key in sorted(stored)
            ]
            parts = list(zip(*pieces, strict=True))[self.dev.rank :: self.dev.world]
            self.states = [tuple(s.to(self.dev.device) for s in part) for part in parts]


def load(args: argparse.Namespace, dev: Device) -> tuple[Stream, Stream | None, Stream]:
    """The training, validation (None without --val) and test set of `--data`.

    Parts are contiguous: validation is the end of the training set. The vocabulary is that of the
    training set, or of the checkpoint that the run goes on with.
    """
    corpus = SETS[args.data.partition(":")[0]](args)
    known = args.stored.get("dataset", {})
    texts = {part: str(text) for part, text in parts_of(args, corpus).items()}
    names = ("characters", "tokenizer", "vocab_size")
    facts = {name: known[name] for name in names if name in known}
    if not facts:
        made = make_vocabulary(texts["train"], args.tokens, args.vocab_size)
        facts = dev.gather(made)[0]
    facts = {"task": "text", "tokens": args.tokens, **facts}
    sets = {name: Stream(name, text, facts, args.bptt, dev) for name, text in texts.items()}
    kind = "characters" if args.tokens == "chars" else "tokens"
    say_parts(args, dev, sets, kind, f"{facts['vocab_size']:,} different", corpus.note)
    for part in sets.values():
        if part.unknown:
            strange = counted(len(part.unknown), "character")
            dev.say(f"note: the {part.part} set has {strange} that training has not: "
                    f"{in_words(part.unknown)}")  # fmt: skip
    return sets["train"], sets.get("val"), sets["test"]
