"""Text as language models read it: the Python documentation, Shakespeare, the user's own files.

train, val, test = load(args, dev)
for tokens, _, following in run.progress(train.batches(args.batch_size, train=True)): ...

A text is one line of tokens, cut into as many streams as a batch has rows; a step takes the next
`--bptt` tokens of each, and the network's state goes on from step to step (see `Carried`).
"""

import argparse
import platform
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common import counted, fail, seed_of
from common.data.sources import PART_NAMES, Source, say_parts
from common.data.text import find_text, read_raw, read_tokenizer
from common.device import Device
from common.run import progress_bar

UNKNOWN = "\ufffd"  # the first symbol of a vocabulary of characters
TEST_STREAMS, WARM_UP = 32, 256  # a part is measured in so many streams, each read in so far before


# ---------------------------------------------------------------------- sources


def read_text(path: Path) -> str:
    """A text file of UTF-8, perhaps gzipped, with line feeds; else ends in one line naming it."""
    raw = read_raw(path)
    try:
        text = raw.removeprefix(b"\xef\xbb\xbf").decode("utf-8")
    except UnicodeDecodeError as error:
        line, byte = raw[: error.start].count(b"\n") + 1, raw[error.start]
        fail(f"{path}: line {line} is not UTF-8 text (byte {byte:#04x}): convert it")
    if not text.strip():
        fail(f"{path} is empty: it needs text")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def last_tenth(text: str, note: str = "") -> Source:
    """The text with its last tenth held out as the test part."""
    cut = len(text) - len(text) // 10
    return Source([], {"train": text[:cut], "test": text[cut:]}, note)


def pydocs(args: argparse.Namespace) -> Source:
    """The language reference that Python's standard library holds for `help()`."""
    from pydoc_data.topics import topics

    text = "\n\n".join(topics[name].strip() for name in sorted(topics)) + "\n"
    version = ".".join(platform.python_version_tuple()[:2])
    return last_tenth(text, f"the topics of Python {version}, other versions have others")


def shakespeare(args: argparse.Namespace) -> Source:
    """Plays of Shakespeare's, 1,115,394 characters (Karpathy's tinyshakespeare)."""
    root = Path(args.data_dir).expanduser() / "tinyshakespeare"
    path = find_text(root / "input.txt")
    if not path:
        fail(f"input.txt is not in {root}: name the folder that holds tinyshakespeare with "
             "--data-dir, or take --data pydocs, which needs no files")  # fmt: skip
    return last_tenth(read_text(path))


def own(args: argparse.Namespace) -> Source:
    """The user's own: a text file, or all .txt files of a folder one after another.

    If these are called train, test and perhaps val (ptb.valid.txt), they are the parts.
    """
    path = Path(args.data.partition(":")[2]).expanduser()
    if path.is_file():
        return last_tenth(read_text(path))
    if not path.is_dir():
        fail(f"--data {args.data}: there is no such file or folder; take --data pydocs, which "
             "needs no files")  # fmt: skip
    files = sorted(file for file in path.iterdir() if file.name.endswith((".txt", ".txt.gz")))
    if not files:
        fail(f"--data {args.data}: the folder holds no text files (.txt)")
    words = {file: re.split(r"[._-]", file.name.lower()) for file in files}
    named = {PART_NAMES[w]: file for file in files for w in words[file] if w in PART_NAMES}
    if "train" in named and len(named) > 1:
        named = {"test" if "test" not in named and part == "val" else part: file
                 for part, file in named.items()}  # fmt: skip
        return Source([], {part: read_text(file) for part, file in named.items()})
    return last_tenth("\n".join(read_text(file) for file in files), counted(len(files), "file"))


SETS = {"pydocs": pydocs, "shakespeare": shakespeare, "text": own}


# ---------------------------------------------------------------------- vocabulary


class Vocabulary:
    """Characters, or pieces of words (byte-pair encoding), from the `facts` of a checkpoint."""

    def __init__(self, facts: dict):
        self.characters = facts.get("characters", "")
        self.tokenizer = read_tokenizer(facts["tokenizer"]) if "tokenizer" in facts else None
        self.never = () if self.tokenizer else (0,)  # not to be written

    def encode(self, text: str) -> Tensor:
        """Tokens (N,)."""
        if self.tokenizer:
            lines = text.splitlines(keepends=True)  # the library takes long over long lines
            return torch.tensor([i for p in self.tokenizer.encode_batch(lines) for i in p.ids])
        codes, known = codes_of(text), codes_of(self.characters)
        places = torch.searchsorted(known[1:], codes).clamp(max=max(len(known) - 2, 0))
        return torch.where(known[1:][places] == codes, places + 1, 0)

    def decode(self, tokens: list[int]) -> str:
        """The text of tokens."""
        if self.tokenizer:
            return self.tokenizer.decode(tokens, skip_special_tokens=False)
        return "".join(self.characters[token] for token in tokens)

    def unknown(self, text: str) -> str:
        """The characters of a text that training did not have."""
        return "" if self.tokenizer else "".join(sorted(set(text) - set(self.characters)))


def codes_of(text: str) -> Tensor:
    """The code points of a text (N,)."""
    return torch.frombuffer(bytearray(text.encode("utf-32-le")), dtype=torch.int32).long()


def make_vocabulary(text: str, tokens: str, vocab_size: int) -> dict:
    """The `facts` of a vocabulary made of the training part."""
    if tokens == "chars":
        characters = UNKNOWN + "".join(sorted(set(text) - {UNKNOWN}))
        return {"characters": characters, "vocab_size": len(characters)}
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())  # of bytes: no character is unknown (Radford et al. 2019)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    if vocab_size < len(alphabet):
        fail(f"--vocab-size {vocab_size}: --tokens bpe needs one for each of 256 bytes at least")
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, initial_alphabet=sorted(alphabet), show_progress=False
    )
    tokenizer.train_from_iterator(text.splitlines(keepends=True), trainer)
    return {"tokenizer": tokenizer.to_str(), "vocab_size": tokenizer.get_vocab_size()}


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
            fail(f"the training part has {counted(len(tokens), 'token')}: too few for the "
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
    """The training, validation (None without --val) and test part of `--data`.

    Parts are contiguous: validation is the end of the training part. The vocabulary is that of the
    training part, or of the checkpoint that the run goes on with.
    """
    readers: dict[str, Callable] = SETS
    source = readers[args.data.partition(":")[0]](args)
    texts, known = source.parts, args.stored.get("dataset", {})
    if short := next((part for part, text in texts.items() if len(text) < 2), None):
        fail(f"the {short} part of {args.data} has {counted(len(texts[short]), 'character')}: a "
             "language model needs two at least in each, take more text")  # fmt: skip
    if own_val := len(texts.get("val", "")):
        if "val" in args.typed and args.val not in (0, own_val):
            fail(f"--val {args.val}: {args.data} has a validation part of its own, of {own_val}: "
                 f"--val {own_val} takes it, --val 0 does without")  # fmt: skip
        if not args.val:
            del texts["val"]
    elif args.val:
        most = len(texts["train"]) // 10
        size = args.val if "val" in args.chosen else min(args.val, most)
        if size >= len(texts["train"]) - 1:
            fail(f"--val {args.val} leaves nothing of {len(texts['train']):,} characters: lower it")
        if size == 1 == args.val:
            fail("--val 1: of one character there is nothing to tell; take two at least, or 0")
        if size > 1:
            texts["val"] = texts["train"][-size:]
            texts["train"] = texts["train"][:-size]
        else:
            note = "too short for a validation part"
            source.note = "; ".join(filter(None, [source.note, note]))
    names = ("characters", "tokenizer", "vocab_size")
    facts = {name: known[name] for name in names if name in known}
    if not facts:
        made = make_vocabulary(texts["train"], args.tokens, args.vocab_size)
        facts = dev.gather(made)[0]
    facts = {"task": "text", "tokens": args.tokens, **facts}
    if args.limit and args.limit < len(texts["train"]):  # so many characters in a row
        size = max(2, args.limit)
        generator = torch.Generator().manual_seed(seed_of("limit", args.seed))
        begin = int(torch.randint(len(texts["train"]) - size + 1, (), generator=generator))
        texts["train"] = texts["train"][begin : begin + size]
    sets = {name: Stream(name, texts[name], facts, args.bptt, dev)
            for name in ("train", "val", "test") if name in texts}  # fmt: skip
    kind = "characters" if args.tokens == "chars" else "tokens"
    say_parts(args, dev, sets, kind, f"{facts['vocab_size']:,} different", source.note)
    for part in sets.values():
        if part.unknown:
            shown = " ".join(c if c.isprintable() else f"U+{ord(c):04X}" for c in part.unknown[:20])
            dev.say(f"note: the {part.part} part has {counted(len(part.unknown), 'character')} "
                    f"that training has not: {shown}")  # fmt: skip
    return sets["train"], sets.get("val"), sets["test"]
