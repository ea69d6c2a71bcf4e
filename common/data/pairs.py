"""Sentence pairs for translation: generated dates, Multi30k, two text files of the user's.

train, val, test = load_pairs(args, dev)
for batch in run.progress(train.batches(args.batch_size)): ...
"""

import argparse
import dataclasses
import datetime
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from common import fail, seed_of
from common.cli import whole
from common.data.sources import cut_parts, split
from common.data.text import (
    END,
    PAD,
    START,
    TokenBatches,
    encode,
    find_text,
    losses,
    pad,
    read_lines,
    read_tokenizer,
    stored_facts,
    train_bpe,
)
from common.device import Device

Lines = tuple[Sequence[str], Sequence[str]]  # source and target, line by line
PAIR_SETS = ["dates", "multi30k", "pairs:SRC,TGT"]
DATES_PER_EPOCH, TEST_DATES, MOST_TEST = 20_000, 500, 2_000


FIXED = ["direction", "vocab_size", "max_length"]  # by a checkpoint


def add_pair_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of scripts that use `load_pairs`."""
    add = parser.add_argument
    add("--direction", choices=["en-de", "de-en"], default="en-de", help="of multi30k")
    add("--vocab-size", type=whole(8), help="at most so many tokens, for both languages")
    add("--max-length", type=whole(2), default=128, help="tokens of a sentence; more are cut off")


@dataclasses.dataclass
class Source:
    """The parts of a data set as text, and what to say of them.

    `fresh(epoch)` makes new training pairs for each epoch, where there is no end of them.
    """

    languages: list[str]
    train: Lines
    test: Lines
    val: Lines | None = None
    metric: str = "bleu"
    fresh: Callable[[int], Lines] | None = None
    note: str = ""


# ---------------------------------------------------------------------- dates

MONTHS = [datetime.date(2000, month, 1).strftime("%B") for month in range(1, 13)]
DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
ROMAN = ["I", "II", "III", "IV", "V", "VI", "VII", "VIII", "IX", "X", "XI", "XII"]
NOTATIONS = [
    "{d} {month} {y}",
    "{d:02} {mon} {y}",
    "{d}-{mon}-{y}",
    "{d}{th} {month} {y}",
    "the {d}{th} of {month}, {y}",
    "{month} {d}, {y}",
    "{mon} {d}{th}, {y}",
    "{month} the {d}{th} {y}",
    "{weekday}, {d} {month} {y}",
    "{wkd} {mon} {d} {y}",
    "{weekday}, {month} {d}{th}, {y}",
    "{d}.{m}.{y}",
    "{d:02}.{m:02}.{y}",
    "{m}/{d}/{y}",
    "{m:02}/{d:02}/{y}",
    "{d} {roman} {y}",
    "{y} {month} {d}",
    "{y}, {d}{th} {mon}",
    "{y}/{m:02}/{d:02}",
    "{y}{m:02}{d:02}",
    "{d} {mon} '{yy:02}",
    "{m}/{d}/{yy:02}",
]
FIRST_DAY, LAST_DAY = (datetime.date(year, 1, 1).toordinal() for year in (1930, 2030))


def write_date(day: datetime.date, notation: str) -> str:
    """A date as people write it: 3/7/2015 is American, 7.3.2015 European."""
    th = "th" if 10 < day.day < 14 else {1: "st", 2: "nd", 3: "rd"}.get(day.day % 10, "th")
    month, weekday = MONTHS[day.month - 1], DAYS[day.weekday()]
    return notation.format(
        **dict(d=day.day, m=day.month, y=day.year, yy=day.year % 100, th=th),
        **dict(month=month, mon=month[:3], weekday=weekday, wkd=weekday[:3]),
        roman=ROMAN[day.month - 1],
    )


def part_of(ordinal: int) -> str:
    """Each day belongs to one part, by a fixed draw: a tenth to test, a tenth to val."""
    return {0: "test", 1: "val"}.get(seed_of("day", ordinal) % 10, "train")


def date_pairs(part: str, count: int, *key: int | str) -> Lines:
    """`count` random days of a part, 1930 to 2029, as people write them and in ISO form."""
    draw = random.Random(seed_of("dates", part, *key))
    sources, targets = [], []
    while len(sources) < count:
        ordinal = draw.randrange(FIRST_DAY, LAST_DAY)
        if part_of(ordinal) == part:
            day = datetime.date.fromordinal(ordinal)
            text = write_date(day, draw.choice(NOTATIONS))
            style = draw.random()
            text = text.upper() if style < 0.1 else text.lower() if style < 0.3 else text
            sources.append(text)
            targets.append(day.isoformat())
    return sources, targets


def dates(args: argparse.Namespace) -> Source:
    """Dates in many notations, and in ISO form: 20,000 new pairs an epoch, without end."""
    val = date_pairs("val", args.val, args.seed) if args.val else None

    def fresh(epoch: int) -> Lines:
        return date_pairs("train", DATES_PER_EPOCH, args.seed, epoch)

    note = "training pairs are new in each epoch; the test days are in none of them"
    test = date_pairs("test", TEST_DATES)
    return Source(["text", "iso"], fresh(0), test, val, "exact", fresh, note)


# ---------------------------------------------------------------------- files


def multi30k(args: argparse.Namespace) -> Source:
    """Multi30k (Elliott et al. 2016): 29,000 captions of photographs, English and German."""
    languages = args.direction.split("-")
    folder = Path(args.data_dir).expanduser()
    folder = folder / "multi30k" if (folder / "multi30k").is_dir() else folder
    parts = {}
    for part, name in (("train", "train"), ("val", "val"), ("test", "test_2016_flickr")):
        files = [find_text(folder / f"{name}.{language}") for language in languages]
        if None in files:
            missing = f"{name}.{languages[files.index(None)]}"
            fail(
                f"{missing} (or {missing}.gz) is not in {folder}: get Multi30k's task 1 from "
                "https://github.com/multi30k/dataset and name its folder with --data-dir, or "
                "take --data dates, which needs no files"
            )
        parts[part] = read_pairs(*files)
    (train, *lost), (val, *lost_val), (test, *lost_test) = parts.values()
    note = "; ".join(filter(None, lost + lost_val + lost_test))
    return Source(languages, train, test, val, note=note)


def text_files(args: argparse.Namespace) -> Source:
    """Two text files of the user's: line i of one translates line i of the other."""
    names = args.data.partition(":")[2].split(",")
    if len(names) != 2 or not all(names):
        fail(f"--data {args.data}: name two text files, as in pairs:train.en,train.de")
    for path in (Path(name).expanduser() for name in names):
        if not path.exists():
            fail(
                f"--data {args.data}: there is no file {path}; name your own as in "
                "pairs:train.en,train.de, or take --data dates, which needs no files"
            )
    pairs, note = read_pairs(*names)
    if len(pairs[0]) < 2:
        fail(f"--data {args.data} holds one pair of sentences: that can't be split")
    share = min(0.1, MOST_TEST / len(pairs[0]))
    train, test = (take(pairs, indices) for indices in split(len(pairs[0]), share, 0))
    note = "; ".join(filter(None, [f"a seeded {share:.2g} of all is the test part", note]))
    languages = [Path(name.removesuffix(".gz")).suffix[1:] or "source" for name in names]
    return Source(languages, train, test, note=note)


def read_pairs(source: str | Path, target: str | Path) -> tuple[Lines, str]:
    """The pairs of two files without those that lack a side, and what to say of these."""
    sides = read_lines(source), read_lines(target)
    if len(sides[0]) != len(sides[1]):
        counts = f"{len(sides[0]):,} lines and {target} {len(sides[1]):,}"
        fail(f"{source} has {counts}: line i of one has to translate line i of the other")
    whole = [pair for pair in zip(*sides, strict=True) if all(pair)]
    if not whole:
        fail(f"no line of {source} and {target} has text on both sides")
    empty = len(sides[0]) - len(whole)
    note = f"{empty:,} pairs with an empty line in {source} or {target} are left out"
    return tuple(map(list, zip(*whole, strict=True))), note if empty else ""


SOURCES = {"dates": dates, "multi30k": multi30k, "pairs": text_files}


def take(pairs: Lines, indices: Tensor) -> Lines:
    """The chosen pairs."""
    source, target = pairs
    chosen = indices.tolist()
    return [source[i] for i in chosen], [target[i] for i in chosen]


# ---------------------------------------------------------------------- sets


class Pairs(NamedTuple):
    """A batch: padded tokens that end in END, the target's also begin with START."""

    source: Tensor  # (B, S)
    target: Tensor  # (B, T + 1)
    count: int  # target tokens to predict, padding not among them
    indices: Tensor  # (B,), places in the set


class PairSet:
    """One part of a data set: `part` is "train", "val" or "test".

    `facts` holds the `tokenizer` as JSON, the `languages`, the `metric` and how many tokens the
    `longest` target of the training part has; the three parts share it. `fresh(epoch)`, if given,
    makes each epoch's pairs.
    """

    def __init__(self, part: str, lines: Lines, facts: dict, dev: Device, max_length: int):
        self.part, self.lines, self.facts, self.dev = part, lines, facts, dev
        self.max_length, self.fresh = max_length, None
        self.tokenizer = read_tokenizer(facts["tokenizer"])
        self.encoded = [encode(self.tokenizer, side, max_length) for side in lines]
        self.epoch = 0  # that of the pairs at hand

    def __len__(self) -> int:
        return len(self.lines[0])

    def turn_to(self, epoch: int) -> None:
        """Makes the pairs of an epoch, if they are new in each."""
        if self.fresh and epoch != self.epoch:
            self.lines, self.epoch = self.fresh(epoch), epoch
            self.encoded = [encode(self.tokenizer, side, self.max_length) for side in self.lines]

    def batches(self, batch_size: int, shuffle: bool | None = None) -> TokenBatches:
        """Batches of about `batch_size` target tokens; only the training part is shuffled."""
        shuffle = self.part == "train" if shuffle is None else shuffle

        def lengths(epoch: int) -> Tensor:
            self.turn_to(epoch)
            source, target = (torch.tensor(list(map(len, e.tokens))) for e in self.encoded)
            return torch.stack([target, source], 1)

        def fetch(epoch: int, indices: Tensor) -> Pairs:
            self.turn_to(epoch)
            source, target = ([side.tokens[i] for i in indices.tolist()] for side in self.encoded)
            count, start = sum(map(len, target)), torch.tensor([START])
            if not source:  # a process without work takes part in the step all the same
                source, target = [torch.tensor([END])], [torch.tensor([PAD])]
            target = pad([torch.cat([start, tokens]) for tokens in target], self.dev)
            return Pairs(pad(source, self.dev), target, count, indices)

        return TokenBatches(lengths, batch_size, self.dev, shuffle, fetch)


def load_pairs(args: argparse.Namespace, dev: Device) -> tuple[PairSet, PairSet | None, PairSet]:
    """The training, validation (None without --val) and test part of `--data`.

    The vocabulary is trained on the training part, or taken from the checkpoint that the run goes
    on with.
    """
    kind = args.data.partition(":")[0]
    if "direction" in args.typed and kind != "multi30k":
        fail(f"--direction is for multi30k: {args.data} has one")
    source = SOURCES[kind](args)
    there = len(source.val[0]) if source.val else 0
    if kind == "multi30k" and "val" in args.typed and args.val not in (0, there):
        fail(
            f"--val {args.val}: {args.data} has a validation part of {there} pairs; --val {there} "
            "takes it, --val 0 does without"
        )
    parts = {"train": source.train, "test": source.test, "val": source.val}
    parts = cut_parts(args, parts, lambda pairs: len(pairs[0]), take)
    if args.limit and args.limit < len(source.train[0]):
        source.fresh = None
    facts = {"languages": source.languages, "metric": source.metric, "kind": kind}
    if known := stored_facts(args):
        facts["tokenizer"] = known.get("tokenizer", "")
    else:
        lines = [line for side in parts["train"] for line in side]
        facts["tokenizer"] = dev.gather(train_bpe(lines, args.vocab_size).to_str())[0]
    sets = {
        part: PairSet(part, lines, facts, dev, args.max_length) for part, lines in parts.items()
    }
    sets["train"].fresh = source.fresh
    facts["longest"] = max(map(len, sets["train"].encoded[1].tokens))
    counts = ", ".join(f"{len(sets[p]):,} {p}" for p in ("train", "val", "test") if p in sets)
    vocabulary = f"{sets['train'].tokenizer.get_vocab_size():,} tokens"
    dev.say(f"{args.data}: {counts} pairs, {' to '.join(source.languages)}, {vocabulary}")
    lost = losses([side for part in sets.values() for side in part.encoded], args.max_length)
    for note in filter(None, (source.note, lost)):
        dev.say(f"note: {note}")
    return sets["train"], sets.get("val"), sets["test"]
