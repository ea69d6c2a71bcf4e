"""Sources and targets, step by step: of plain text with gaps, or of tasks in their proportions.

train, val, test = load(args, dev)
for source, target, count in run.progress(train.steps(rows, steps)): ...

A batch is of sources (B, S) and targets (B, T + 1), which begin with START, both padded at the end;
`count` are the target tokens to be told. Which examples a step has, and with which gaps, follows
from (seed, step) alone.
"""

import argparse
import dataclasses
from collections.abc import Iterator, Mapping
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from common import cli, counted, fail, seed_of
from common.data.corpora import CORPORA, CORPUS_SETS, Tokens, load_corpus
from common.data.sources import say_parts
from common.data.text import Encoded
from common.device import Device
from common.run import progress_bar
from t5 import corruption
from t5.model import END, PAD, START, UNKNOWN
from t5.tasks import TASK_SETS, Examples, are_tasks, judge, read_tasks
from t5.vocabulary import Vocabulary, make_vocabulary, strange_characters

SENTINELS = 100  # of a vocabulary that is made here, as of the published one
TESTED_GAPS = 2_000  # texts of the validation and of the test set that are measured, at most


DATA = [*TASK_SETS, *CORPUS_SETS]
FIXED = ["tokens", "vocab_size", "words", "objective"]  # by a checkpoint


def add_data_flags(parser: cli.Parser) -> None:
    """The flags of what is learned from."""

    def add(*names, **kwargs) -> None:
        parser.add_argument(*names, group="data", **kwargs)

    count, length = (dict(type=cli.integer(low), metavar="N") for low in (1, 3))
    text = "pieces of words (Unigram) or characters"
    add("--tokens", choices=["pieces", "chars"], default="pieces", help=text)
    add("--vocab-size", **count, default=2048, help="at most so many tokens")
    text = "tasks whose texts the vocabulary is to know, too (multi30k, so that it knows German)"
    add("--words", metavar="TASKS", none="no", help=f"{text}, or no")
    text = "from which language to which"
    add("--direction", choices=["en-de", "de-en"], default="en-de", help=text)
    add("--length", **length, default=128, help="tokens of a source, at most")
    add("--target-length", **length, default=64, help="tokens of a target, at most")
    text = "what is learned from a text: to fill gaps, or to go on (Sec. 3.3.1)"
    parser.add_argument("--objective", choices=["spans", "prefix"], help=text)
    kind = cli.number(lambda x: 0 < x < 1, "a number between 0 and 1")
    text = "share of a text that is hidden"
    parser.add_argument("--noise", type=kind, metavar="R", default=corruption.RATE, help=text)
    kind = cli.number(lambda x: 1 <= x < 1000, "a number from 1 to below 1,000")
    text = "tokens of a gap, on average"
    parser.add_argument("--span", type=kind, metavar="N", default=corruption.MEAN, help=text)
    text = "of the tasks' proportions: 1 by their sizes, a large one all alike (Sec. 3.5.2)"
    parser.add_argument("--mix-temperature", type=cli.positive, metavar="T", default=1.0, help=text)
    text = "a task with more examples counts as if it had so many"
    parser.add_argument("--mix-limit", **count, default=2**21, help=text)


class Batch(NamedTuple):
    """Sources (B, S), targets that begin with START (B, T + 1), target tokens to be told, and the
    places of the examples in their set (B,)."""

    source: Tensor
    target: Tensor
    count: int
    indices: Tensor


def as_batch(source: Tensor, target: Tensor, indices: Tensor, dev: Device) -> Batch:
    """A batch of sources (B, S) and targets (B, T), without columns that are padding alone."""
    source, target = (t[:, : int((t != PAD).sum(1).max())] for t in (source, target))
    count = int((target != PAD).sum())
    target = torch.cat([target.new_full((len(target), 1), START), target], 1)
    source, target = (t.to(dev.device, non_blocking=True) for t in (source, target))
    return Batch(source, target, count, indices)


# ---------------------------------------------------------------------- plain text


class Gaps:
    """One part of a text, from which sources and targets are made by an `objective`: "spans" hides
    a share `rate` in gaps that are `mean` tokens long on average, "prefix" cuts in two.

    A source has at most `length` tokens. Raises SystemExit where there are fewer sentinels than
    gaps, or the text is too short.
    """

    def __init__(
        self, tokens: Tokens, length: int, objective: str | None, rate: float, mean: float
    ):
        objective = objective or "spans"  # a run on tasks that is evaluated has none
        self.tokens, self.dev, self.part, self.facts = (
            tokens, tokens.dev, tokens.part, tokens.facts)  # fmt: skip
        self.objective, self.rate, self.mean = objective, rate, mean
        self.sentinels = torch.tensor(Vocabulary(self.facts).sentinels, dtype=torch.int64)
        self.special = torch.cat([torch.tensor([PAD, END]), self.sentinels])
        if objective == "spans" and not len(self.sentinels):
            fail("this vocabulary has no sentinels, as it was made for tasks: it can't mark gaps "
                 "(--weights with --objective prefix needs none)")  # fmt: skip
        try:
            raw = corruption.raw_length(length, rate, mean) if objective == "spans" else length
        except ValueError as error:
            fail(f"--length {length}: {error}")
        self.raw = min(raw, len(tokens))
        if objective == "spans":
            gaps = corruption.counts_of(self.raw, rate, mean)[1]
            if gaps > len(self.sentinels):
                fail(f"--length {length}, --noise {rate:g} and --span {mean:g} make {gaps} gaps of "
                     f"a text, and the vocabulary has {len(self.sentinels)} sentinels: lower "
                     "--length or --noise, or raise --span")  # fmt: skip

    def __len__(self) -> int:
        return len(self.tokens)

    def unknown(self) -> int:
        """How many tokens stand for what the vocabulary lacks."""
        whole, size = len(self), 1 << 20
        blocks = (self.tokens.take(torch.tensor([begin]), min(size, whole - begin))
                  for begin in range(0, whole, size))  # fmt: skip
        return sum(int((block == UNKNOWN).sum()) for block in blocks)

    def made(self, texts: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Sources and targets of texts (B, N), on the CPU."""
        texts = texts.cpu()
        texts = texts.masked_fill(torch.isin(texts, self.special), UNKNOWN)  # "</s>" in a text
        if self.objective == "prefix":
            return corruption.cut_in_two(texts, END, PAD, generator)
        return corruption.corrupt(texts, self.sentinels, END, generator, self.rate, self.mean)

    def steps(self, rows: int, steps: int) -> "Drawn":
        """`steps` steps of `rows` texts to train on."""

        def draw(step: int) -> tuple[Tensor, Tensor, Tensor]:
            generator = torch.Generator().manual_seed(seed_of("gaps", self.dev.seed, step))
            places = len(self.tokens) - self.raw + 1
            begins = torch.randint(places, (rows,), generator=generator)
            return *self.made(self.tokens.take(begins, self.raw), generator), begins

        return Drawn(draw, rows, steps, self.dev)

    def in_order(self, rows: int) -> Iterator[Batch]:
        """Texts side by side, at most TESTED_GAPS, evenly spread, with the same gaps each time.

        Every process gets as many batches, of which the last may count nothing.
        """
        dev, whole = self.dev, len(self.tokens) // self.raw
        chosen = torch.linspace(0, whole - 1, min(whole, TESTED_GAPS)).long() * self.raw
        generator = torch.Generator().manual_seed(seed_of("gaps", self.part))
        sides = self.made(self.tokens.take(chosen, self.raw), generator)  # whatever `rows` are
        cuts = torch.arange(len(chosen)).split(rows)
        for number in rounds(len(cuts), dev):
            places = cuts[number % len(cuts)]
            batch = as_batch(*(side[places] for side in sides), chosen[places], dev)
            yield batch if number < len(cuts) else batch._replace(count=0)


class Drawn:
    """The parts of steps that this process computes, in turn. `draw(step)` makes a whole step of
    sources, targets and places; its rows are shared out."""

    def __init__(self, draw, rows: int, steps: int, dev: Device):
        self.draw, self.count, self.dev = draw, steps, dev
        self.epoch = self.first = 0
        self.pieces = dev.world * dev.accumulate
        if rows % self.pieces:
            fail(f"--batch-size makes {counted(rows, 'example')}, which {dev.world} processes x "
                 f"{dev.accumulate} micro-batches can't share: choose a multiple")  # fmt: skip

    def __len__(self) -> int:
        return self.count

    def seek(self, epoch: int, step: int) -> None:
        """Sets the epoch, and the step to begin at, of the next iteration."""
        self.epoch, self.first = epoch, step

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, int]]:
        for step in range(self.epoch * self.count + self.first, (self.epoch + 1) * self.count):
            parts = [part.chunk(self.pieces) for part in self.draw(step)]
            for piece in range(self.dev.rank, self.pieces, self.dev.world):
                yield as_batch(*(part[piece] for part in parts), self.dev)[:3]


def rounds(count: int, dev: Device) -> Iterator[int]:
    """The numbers of the batches that this process takes; as many for each, so some are no less
    than `count`: these don't count."""
    numbers = range(dev.rank, count + -count % dev.world, dev.world)
    return iter(progress_bar(numbers, dev, "evaluating", len(numbers)))


# ---------------------------------------------------------------------- tasks


def mixing_rates(
    sizes: Mapping[str, int], temperature: float = 1.0, most: float = 2.0**21
) -> dict[str, float]:
    """The share of each task in the mixture, by the number of its examples (Sec. 3.5.2).

    As large as its number, but no more than `most`, and that to the power 1 / `temperature`: 1 is
    in proportion, a very large one the same for all.
    """
    counts = {task: min(size, most) for task, size in sizes.items()}
    largest = max(counts.values())  # of shares of it no power is too large
    weights = {task: (n / largest) ** (1 / temperature) for task, n in counts.items()}
    return {task: weight / sum(weights.values()) for task, weight in weights.items()}


class Mixture:
    """One part of tasks as tokens: `part` is "train", "val" or "test".

    `facts` are what a checkpoint keeps: the vocabulary, and of each task its prefix, metric and
    labels. `length` and `target_length` are the most tokens of a source and of a target.
    """

    def __init__(
        self,
        part: str,
        examples: Examples,
        facts: dict,
        dev: Device,
        length: int,
        target_length: int,
    ):
        self.part, self.facts, self.dev = part, facts, dev
        self.vocabulary, self.target_length = Vocabulary(facts), target_length
        plain = {name for name, fact in facts["tasks"].items() if fact["metric"] != "bleu"}
        targets = [self.vocabulary.normal(target) if task in plain else target for task, target in
                   zip(examples.tasks, examples.targets, strict=True)]  # fmt: skip
        self.examples = dataclasses.replace(examples, targets=targets)  # as answers are written
        self.sources = self.vocabulary.encode(examples.inputs, length)
        self.targets = self.vocabulary.encode(examples.targets, target_length)
        self.by_task: dict[str, list[int]] = {}
        for place, task in enumerate(examples.tasks):
            self.by_task.setdefault(task, []).append(place)

    def __len__(self) -> int:
        return len(self.examples)

    @property
    def most(self) -> int:
        """Tokens of an answer, at most: an untrained network would go on and on."""
        return min(self.target_length, self.facts["longest"] * 5 // 4 + 1)

    def score(self, answers: list[str]) -> dict[str, float]:
        """The metrics of all answers in order; says of the test set what else there is to say."""
        some = self.examples
        found, notes = judge(self.facts["tasks"], some.tasks, answers, some.targets)
        for note in notes if self.part == "test" else ():
            self.dev.say(f"note: {note}")
        return {f"{self.part}_{name}": value for name, value in found.items()}

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Padded sources and targets of these examples, and their places."""
        some = indices.tolist()
        parts = ([side.tokens[i] for i in some] for side in (self.sources, self.targets))
        return *(pad_sequence(part, True, PAD) for part in parts), indices

    def steps(self, rows: int, steps: int, temperature: float = 1.0, most: float = 2.0**21):
        """`steps` steps of `rows` examples to train on, tasks in the proportion of `mixing_rates`.

        Of a task's examples none comes again before all have come. A step isn't of examples of like
        length, which would save padding: a length tells tasks apart, and a step would be of one.
        But where a step is computed in parts (--accumulate, processes), the parts are.
        """
        sizes = {task: len(places) for task, places in self.by_task.items()}
        rates = mixing_rates(sizes, temperature, most)
        order = Order(self.by_task, rates, rows, self.dev.seed)
        both = zip(self.sources.tokens, self.targets.tokens, strict=True)
        lengths = torch.tensor([len(source) + len(target) for source, target in both])
        parts = self.dev.world * self.dev.accumulate > 1

        def draw(step: int) -> tuple[Tensor, Tensor, Tensor]:
            places = order.step(step)
            return self.batch(places[lengths[places].argsort(stable=True)] if parts else places)

        return Drawn(draw, rows, steps, self.dev)

    def in_order(self, rows: int) -> Iterator[Batch]:
        """The part once, examples of like length together; every process gets as many batches."""
        lengths = torch.tensor([len(tokens) for tokens in self.sources.tokens])
        cuts = lengths.argsort(stable=True).split(rows)
        for number in rounds(len(cuts), self.dev):
            batch = as_batch(*self.batch(cuts[number % len(cuts)]), self.dev)
            yield batch if number < len(cuts) else batch._replace(count=0)


class Order:
    """Which examples come when: of each step `rows` places, a function of the seed and its number.
    For a later step the earlier ones' tasks are drawn again."""

    def __init__(
        self, by_task: dict[str, list[int]], rates: dict[str, float], rows: int, seed: int
    ):
        self.places = [torch.tensor(by_task[task]) for task in rates]
        self.rates = torch.tensor(list(rates.values()), dtype=torch.float64)
        self.rows, self.seed = rows, seed
        self.done, self.begun = 0, torch.zeros(len(rates), dtype=torch.int64)  # steps, examples
        self.orders: dict[tuple[int, int], Tensor] = {}

    def tasks_of(self, step: int) -> Tensor:
        """How many examples of each task a step has."""
        generator = torch.Generator().manual_seed(seed_of("tasks", self.seed, step))
        drawn = torch.multinomial(self.rates, self.rows, replacement=True, generator=generator)
        return drawn.bincount(minlength=len(self.rates))

    def step(self, number: int) -> Tensor:
        """The places of a step's examples, mixed."""
        if number < self.done:
            self.done = 0
            self.begun.zero_()
        while self.done < number:
            self.begun += self.tasks_of(self.done)
            self.done += 1
        found = [self.of_task(task, int(begin), int(count)) for task, (begin, count) in
                 enumerate(zip(self.begun, self.tasks_of(number), strict=True))]  # fmt: skip
        generator = torch.Generator().manual_seed(seed_of("order", self.seed, number))
        return torch.cat(found)[torch.randperm(self.rows, generator=generator)]

    def of_task(self, task: int, begin: int, count: int) -> Tensor:
        """`count` examples of a task from its `begin`th on, pass after pass over all."""
        size, found = len(self.places[task]), []
        while count:
            number, place = divmod(begin, size)
            if (task, number) not in self.orders:
                self.orders = {key: o for key, o in self.orders.items() if key[0] != task}
                key = seed_of("pass", self.seed, task, number)
                generator = torch.Generator().manual_seed(key)
                self.orders[task, number] = torch.randperm(size, generator=generator)
            some = self.orders[task, number][place : place + count]
            found.append(self.places[task][some])
            begin, count = begin + len(some), count - len(some)
        return torch.cat(found) if found else torch.empty(0, dtype=torch.int64)


# ---------------------------------------------------------------------- both

Part = Gaps | Mixture


def words_of(args: argparse.Namespace, dev: Device) -> list[str]:
    """The texts of the training sets of --words, which the vocabulary is to know, too."""
    if args.words in (None, "no"):
        return []
    instead = f"{args.data} with --words no"
    quiet = args.but(data=args.words, val=0, limit=None, chosen=[], typed=[], instead=instead)
    part = read_tasks(quiet, dev).parts["train"]
    return [*part.inputs, *part.targets]


def load(
    args: argparse.Namespace, dev: Device, vocabulary: dict | None = None
) -> tuple[Part, Part | None, Part]:
    """The training, validation (None without --val) and test set of `--data`.

    The vocabulary is that of the checkpoint that the run goes on with, or the `vocabulary` of
    weights to start from, or made of the training set.
    """
    if args.data.partition(":")[0] in CORPORA:
        return load_text(args, dev, vocabulary)
    if not are_tasks(args.data):
        fail(f"--data {args.data}: name a text, or tasks")
    source = read_tasks(args, dev)
    train = source.parts["train"]
    known = {k: v for k, v in args.stored.get("dataset", {}).items() if k in FACTS}
    facts = known or vocabulary
    if not facts:
        texts = [*train.inputs, *train.targets, *words_of(args, dev)]
        prefixes = [task.prefix for task in source.facts["tasks"].values()]
        made = make_vocabulary([], args.tokens, args.vocab_size, 0, texts, prefixes)
        facts = dev.gather(made)[0]
    normal = Vocabulary(facts).normal
    tasks = {name: vars(task) | {"labels": list(map(normal, task.labels))}
             for name, task in source.facts["tasks"].items()}  # fmt: skip
    facts = dict(facts) | {"tasks": tasks}
    sets = {
        part: Mixture(part, some, facts, dev, args.length, args.target_length)
        for part, some in source.parts.items()
    }
    longest = max(map(len, sets["train"].targets.tokens))
    facts["longest"] = longest  # of the training set: what is written needn't be much longer
    what = counted(len(tasks), "task")
    say_parts(args, dev, sets, "examples", what, f"{facts['vocab_size']:,} tokens")
    for note in filter(None, (source.note, *losses(list(sets.values()), args))):
        dev.say(f"note: {note}")
    return sets["train"], sets.get("val"), sets["test"]


FACTS = ("tokenizer", "vocab_size", "literal", "published")  # of a vocabulary


def losses(sets: list[Mixture], args: argparse.Namespace) -> list[str]:
    """What to say of texts that were cut, and of characters that the vocabulary lacks."""
    notes = []
    for side, most, flag in (("sources", args.length, "length"),
                             ("targets", args.target_length, "target-length")):  # fmt: skip
        encoded: list[Encoded] = [getattr(some, side) for some in sets]
        if cut := sum(e.cut for e in encoded):
            notes.append(f"{counted(cut, side[:-1])} cut at {most} tokens (--{flag})")
    both = [e for some in sets for e in (some.sources, some.targets)]
    return [*notes, strange_characters(both)]


def load_text(
    args: argparse.Namespace, dev: Device, vocabulary: dict | None
) -> tuple[Gaps, Gaps | None, Gaps]:
    """The same of a corpus."""
    sentinels = min(SENTINELS, max(1, args.vocab_size // 4))
    make = partial(make_vocabulary, kind=args.tokens, vocab_size=args.vocab_size,
                   sentinels=sentinels)  # fmt: skip
    more = words_of(args, dev) if not (vocabulary or args.stored) else []
    parts = load_corpus(args, dev, vocabulary, lambda blocks: make(blocks, more=more))
    how = dict(length=args.length, objective=args.objective, rate=args.noise, mean=args.span)
    train, val, test = (part and Gaps(part, **how) for part in parts)
    train.facts["tasks"] = {}
    if count := test.unknown():
        dev.say(f"note: {count:,} of {len(test):,} tokens of the test set are <unk>: characters "
                "the vocabulary lacks")  # fmt: skip
    return train, val, test
