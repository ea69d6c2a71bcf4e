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

from common import cli, counted, fail, seed_of
from common.data.sources import Source, open_source, say_parts, split
from common.data.text import (
    END,
    PAD,
    START,
    Encoded,
    TokenBatches,
    encode,
    find_text,
    losses,
    pad,
    read_lines,
    read_tokenizer,
    train_bpe,
)
from common.device import Device

PAIR_SETS = ["dates", "multi30k", "pairs:SRC,TGT"]
DATES_PER_EPOCH, TEST_DATES, MOST_TEST = 20_000, 500, 2_000
MOST_TOKENS = 10_000  # of a sentence: attention takes memory by the square of its length
FIXED = ["direction", "vocab_size", "max_length"]  # by a checkpoint


def add_pair_flags(parser: cli.Parser) -> None:
    """The flags of scripts that use `load_pairs`."""
    add, ways = parser.add_argument, ["en-de", "de-en"]
    text, size = "at most so many tokens, for both languages", cli.integer(8)
    add("--direction", choices=ways, default="en-de", group="data", help="from which to which")
    add("--vocab-size", type=size, metavar="N", group="data", help=text)
    text = "tokens of a sentence; what is more is cut off"
    add("--max-length", type=cli.integer(2), metavar="N", default=128, group="data", help=text)

    def one_way(_model: str, data: str, _paper: bool, **_given) -> tuple[dict, dict]:
        reason = f"it is for multi30k, and {data} has one direction"
        return {}, {} if data == "multi30k" else {"direction": reason}

    parser.recipes.append(one_way)


@dataclasses.dataclass
class Lines:
    """Sentences and their translations, line by line.

    `fresh(epoch)` makes others for each epoch, where there is no end of them.
    """

    source: list[str]
    target: list[str]
    fresh: Callable[[int], "Lines"] | None = None

    def __len__(self) -> int:
        return len(self.source)

    def take(self, indices: Tensor) -> "Lines":
        """The pairs at `indices`, in every epoch."""
        chosen = indices.tolist()
        return Lines([self.source[i] for i in chosen], [self.target[i] for i in chosen])


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


def date_pairs(
    part: str, count: int, *key: int | str, notations: Sequence[str] = NOTATIONS
) -> Lines:
    """`count` random days of a part, 1930 to 2029, as people write them and in ISO form."""
    draw = random.Random(seed_of("dates", part, *key))
    sources, targets = [], []
    while len(sources) < count:
        ordinal = draw.randrange(FIRST_DAY, LAST_DAY)
        if part_of(ordinal) == part:
            day = datetime.date.fromordinal(ordinal)
            text = write_date(day, draw.choice(notations))
            style = draw.random()
            text = text.upper() if style < 0.1 else text.lower() if style < 0.3 else text
            sources.append(text)
            targets.append(day.isoformat())
    return Lines(sources, targets)


def dates(args: argparse.Namespace) -> Source:
    """Dates in many notations, and in ISO form: 20,000 new pairs an epoch, without end."""

    def fresh(epoch: int) -> Lines:
        return date_pairs("train", DATES_PER_EPOCH, args.seed, epoch)

    parts = {"train": dataclasses.replace(fresh(0), fresh=fresh)}
    parts["val"] = date_pairs("val", args.val, args.seed) if args.val else None
    parts["test"] = date_pairs("test", TEST_DATES)
    note = "training pairs are new in each epoch; the test days are in none of them"
    return Source([], parts, note, {"languages": ["text", "iso"], "metric": "exact"})


# ---------------------------------------------------------------------- files


def multi30k(args: argparse.Namespace, instead: str = "dates, which needs no files") -> Source:
    """Multi30k (Elliott et al. 2016): 29,000 captions of photographs, English and German; where
    files are missing the one line says what to take `instead`."""
    languages = args.direction.split("-")
    folder = Path(args.data_dir).expanduser()
    folder = folder / "multi30k" if (folder / "multi30k").is_dir() else folder
    parts, notes = {}, []
    for part, name in (("train", "train"), ("val", "val"), ("test", "test_2016_flickr")):
        files = [find_text(folder / f"{name}.{language}") for language in languages]
        if None in files:
            missing = f"{name}.{languages[files.index(None)]}"
            fail(
                f"{missing} (or {missing}.gz) is not in {folder}: get Multi30k's task 1 from "
                "https://github.com/multi30k/dataset and name its folder with --data-dir, or "
                f"take --data {instead}"
            )
        parts[part], note = read_pairs(*files)
        notes += [note] if note else []
    return Source([], parts, "; ".join(notes), {"languages": languages, "metric": "bleu"})


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
    everything, note = read_pairs(*names)
    if len(everything) < 2:
        fail(f"--data {args.data} holds one pair of sentences: that can't be split")
    share = min(0.1, MOST_TEST / len(everything))
    train, test = (everything.take(some) for some in split(len(everything), share, 0))
    percent = 100 * len(test) / len(everything)
    notes = [f"a seeded {percent:.2g}% of all pairs is the test set", note]
    languages = [Path(name.removesuffix(".gz")).suffix[1:] or "source" for name in names]
    facts = {"languages": languages, "metric": "bleu"}
    return Source([], {"train": train, "test": test}, "; ".join(filter(None, notes)), facts)


def read_pairs(source: str | Path, target: str | Path) -> tuple[Lines, str]:
    """The pairs of two files without those that lack a side, and what to say of these."""
    sides = read_lines(source), read_lines(target)
    if len(sides[0]) != len(sides[1]):
        count = counted(len(sides[0]), "line")
        fail(f"{source} has {count} and {target} {len(sides[1]):,}: line i of one has to translate "
             "line i of the other")  # fmt: skip
    full = [pair for pair in zip(*sides, strict=True) if all(pair)]
    if not full:
        fail(f"no line of {source} and {target} has text on both sides")
    empty = counted(len(sides[0]) - len(full), "pair")
    note = f"{empty} with an empty line in {source} or {target} left out"
    return Lines(*map(list, zip(*full, strict=True))), note if len(full) < len(sides[0]) else ""


READERS = {"dates": dates, "multi30k": multi30k, "pairs": text_files}


# ---------------------------------------------------------------------- sets


class PairBatch(NamedTuple):
    """A batch: padded tokens that end in END, the target's also begin with START."""

    source: Tensor  # (B, S)
    target: Tensor  # (B, T + 1)
    count: int  # target tokens to predict, padding not among them
    indices: Tensor  # (B,), places in the set


class PairSet:
    """One part of a data set: `part` is "train", "val" or "test".

    `facts` holds the `tokenizer` as JSON, the `languages`, the `metric` and how many tokens the
    `longest` target of the training set has; the three parts share it. `fresh(epoch)`, if given,
    makes each epoch's pairs.
    """

    def __init__(self, part: str, lines: Lines, facts: dict, dev: Device, max_length: int):
        self.part, self.lines, self.facts, self.dev = part, lines, facts, dev
        self.max_length, self.fresh = max_length, lines.fresh
        self.tokenizer = read_tokenizer(facts["tokenizer"])
        self.epoch, self.encoded = 0, self.as_tokens()

    def __len__(self) -> int:
        return len(self.lines)

    def as_tokens(self) -> list[Encoded]:
        """Both sides as tokens."""
        sides = self.lines.source, self.lines.target
        return [encode(self.tokenizer, side, self.max_length) for side in sides]

    def turn_to(self, epoch: int) -> None:
        """Makes the pairs of an epoch, if they are new in each."""
        if self.fresh and epoch != self.epoch:
            self.lines, self.epoch = self.fresh(epoch), epoch
            self.encoded = self.as_tokens()

    def batches(self, batch_size: int, shuffle: bool | None = None) -> TokenBatches:
        """Batches of about `batch_size` target tokens; only the training set is shuffled."""
        shuffle = self.part == "train" if shuffle is None else shuffle

        def lengths(epoch: int) -> Tensor:
            self.turn_to(epoch)
            source, target = (torch.tensor(list(map(len, e.tokens))) for e in self.encoded)
            return torch.stack([target, source], 1)

        def fetch(epoch: int, indices: Tensor) -> PairBatch:
            self.turn_to(epoch)
            source, target = ([side.tokens[i] for i in indices.tolist()] for side in self.encoded)
            count, start = sum(map(len, target)), torch.tensor([START])
            if not source:  # a process without work takes part in the step all the same
                source, target = [torch.tensor([END])], [torch.tensor([PAD])]
            target = pad([torch.cat([start, tokens]) for tokens in target], self.dev)
            return PairBatch(pad(source, self.dev), target, count, indices)

        return TokenBatches(lengths, batch_size, self.dev, shuffle, fetch)

    def score(self, translations: list[str]) -> dict[str, float]:
        """BLEU of all sources' translations in order; of dates, the share that is right.

        Says in which way BLEU was computed for the test set, and if nothing was translated there.
        """
        wanted, say = self.lines.target, self.dev.say if self.part == "test" else lambda *_: None
        if not any(translations):
            say(f"note: all {len(wanted):,} translations are empty: nothing was learned so far")
        if self.facts["metric"] == "exact":
            right = sum(map(str.__eq__, translations, wanted))
            return {f"{self.part}_exact": right / len(self)}
        from sacrebleu.metrics import BLEU

        bleu = BLEU()
        score = bleu.corpus_score(translations, [wanted]).score
        say(f"BLEU {score:.2f}, {bleu.get_signature()}")
        return {f"{self.part}_bleu": score / 100}


def load_pairs(args: argparse.Namespace, dev: Device) -> tuple[PairSet, PairSet | None, PairSet]:
    """The training, validation (None without --val) and test set of `--data`.

    The vocabulary is trained on the training set, or taken from the checkpoint that the run goes
    on with.
    """
    if args.max_length > MOST_TOKENS:
        fail(f"--max-length {args.max_length}: a sentence has at most {MOST_TOKENS:,} tokens here")
    source = open_source(args, dev, READERS, shared=False)  # a process may have no work in a step
    facts, train = source.facts, source.parts["train"]
    if known := args.stored.get("dataset"):
        facts["tokenizer"] = known.get("tokenizer", "")
    else:
        tokenizer = train_bpe([*train.source, *train.target], args.vocab_size)
        facts["tokenizer"] = dev.gather(tokenizer.to_str())[0]
    sets = {
        part: PairSet(part, lines, facts, dev, args.max_length)
        for part, lines in source.parts.items()
    }
    facts["longest"] = max(map(len, sets["train"].encoded[1].tokens))
    vocabulary = f"{sets['train'].tokenizer.get_vocab_size():,} tokens"
    say_parts(args, dev, sets, "pairs", " to ".join(facts["languages"]), vocabulary)
    lost = losses([side for part in sets.values() for side in part.encoded], args.max_length)
    for note in filter(None, (source.note, lost)):
        dev.say(f"note: {note}")
    return sets["train"], sets.get("val"), sets["test"]
