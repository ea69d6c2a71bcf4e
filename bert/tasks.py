"""What is said of a sentence or of two: GLUE's tasks and the user's own, and their metrics.

train, val, test = load_task(args, dev, facts)
for tokens, segments, answers in run.progress(train.batches(32, train=True)): ...

`answers` are classes (B,), or numbers (B,) where a task is a regression.
"""

import argparse
import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from bert.data import Vocabulary
from bert.model import FAMILIES
from common import counted, fail
from common.data import sentences
from common.data.batches import Batches, Draw
from common.data.classes import check_classes, classes_in, known_classes, with_test
from common.data.sentences import LABELS, alone, place
from common.data.sources import Source, named, open_source, say_parts
from common.data.tables import Table, no_column, read_table
from common.data.text import find_text
from common.device import Device

FIRST = ["sentence1", "text1", "first", "premise", "question1", *sentences.TEXTS]
SECOND = ["sentence2", "text2", "second", "hypothesis", "question2", "answer"]
SCORES = ["score", "similarity", "relatedness", "value", *LABELS]
Row = tuple[str, str, str]  # two texts and a label
OWN = "sentences:PATH or pairs:PATH, a table of your own"  # where the files of a set are missing
METRICS = {  # what GLUE reports beside or in place of the accuracy (Wang et al. 2018, Table 1)
    "cola": ["matthews"],
    "mrpc": ["accuracy", "f1"],
    "sts-b": ["pearson", "spearman"],
}


# ---------------------------------------------------------------------- files


@dataclasses.dataclass
class Examples:
    """Sentences, or pairs of them, with classes (long) or numbers (float32) (N,)."""

    first: list[str]
    second: list[str] | None
    answers: Tensor

    def __len__(self) -> int:
        return len(self.first)

    def take(self, indices: Tensor) -> "Examples":
        """Those at `indices`."""
        some = indices.tolist()
        second = self.second and [self.second[i] for i in some]
        return Examples([self.first[i] for i in some], second, self.answers[indices])


def of_sentences(reader: Callable):
    """A reader of single sentences, made of one of common/data/sentences.py."""

    def read(args: argparse.Namespace) -> Source:
        source = reader(args, OWN)
        for part, texts in source.parts.items():
            source.parts[part] = Examples(texts.texts, None, texts.labels)
        return source

    return read


def mrpc(args: argparse.Namespace) -> Source:
    """Pairs of sentences of news that say the same or not (Dolan and Brockett 2005)."""
    root = place(args, "glue/MRPC", "train.tsv", "test.tsv", instead=OWN)
    rows, notes = read_pairs({part: find_text(root / f"{part}.tsv") for part in ("train", "test")},
                             args, "label")  # fmt: skip
    words = {"0": "different", "1": "the same"}
    named_so = {p: [(a, b, words.get(c, c)) for a, b, c in some] for p, some in rows.items()}
    return pairs_source(args, named_so, notes, classes=["different", "the same"])


def stsb(args: argparse.Namespace) -> Source:
    """Pairs of sentences, and how alike they are, 0 to 5 (Cer et al. 2017): 5,749, 1,500, 1,379."""
    root = place(args, "glue/STS-B", "train.tsv", "dev.tsv", "test.tsv", instead=OWN)
    files = {"train": "train", "val": "dev", "test": "test"}
    rows, notes = read_pairs({part: find_text(root / f"{file}.tsv") for part, file in
                              files.items()}, args, "score")  # fmt: skip
    return pairs_source(args, rows, notes, numbers=True)


def own_pairs(args: argparse.Namespace) -> Source:
    """The user's own: a table, or a folder of train.tsv, dev.tsv, test.tsv (or .csv), of two texts
    and a label each; with --regression the label is a number."""
    path = Path(args.data.partition(":")[2]).expanduser()
    if path.is_file():
        files = {"train": path}
    elif path.is_dir():
        tables = [f for f in sorted(path.iterdir()) if f.name.lower().endswith(sentences.TABLES)]
        if not tables:
            fail(f"--data {args.data}: the folder holds no train.tsv or train.csv")
        files = sentences.parts_in(args, path, tables)
    else:
        fail(f"--data {args.data}: there is no such file or folder; name a table of two texts and "
             "a label, or take --data mrpc")  # fmt: skip
    rows, notes = read_pairs(files, args)
    return pairs_source(args, rows, notes, numbers=args.regression)


def read_pairs(
    files: dict[str, Path], args: argparse.Namespace, label: str = ""
) -> tuple[dict[str, list[Row]], list[str]]:
    """The rows of tables by part, and what there is to say of them."""
    rows, notes = {}, []
    for part in ("train", "val", "test"):
        if part in files:
            rows[part], more = pairs_of(read_table(files[part]), args, label)
            notes += more
    return rows, notes


def pairs_of(
    table: Table, args: argparse.Namespace, label: str = ""
) -> tuple[list[Row], list[str]]:
    """First text, second text and label of a table's rows, by the names of its header, or by the
    places 1, 2, 3 where it has none of these names; and what there is to say.

    The first line is a header where it has a name that is typed, or a known one that doesn't stand
    in its column again; or else by its label: once there, or no number above numbers. Rows that
    lack a text or the label are left out.
    """
    header = [cell.lower() for cell in table.rows[0]]
    names = [args.text_column, args.second_column, args.label_column or label]
    flags = ["--text-column", "--second-column", "--label-column"]
    places: list[int | None] = [None] * 3
    headed = any(name in (*FIRST, *SECOND, *SCORES) and
                 name not in (row[k].lower() for row in table.rows[1:])
                 for k, name in enumerate(header))  # fmt: skip
    for k, (name, flag, known) in enumerate(
        zip(names, flags, (FIRST, SECOND, SCORES), strict=True)
    ):
        if name and name.isdecimal() and 1 <= int(name) <= len(header):
            places[k] = int(name) - 1
        elif name and name.lower() not in header:
            no_column(table.path, flag, name, table.rows[0])
        elif name or headed:
            there = [name.lower()] if name else [word for word in known if word in header]
            places[k] = next(
                (header.index(w) for w in there if name or header.index(w) not in places), None
            )
            headed = True
    if None in places and len(header) == 3 and not headed:
        places = [0, 1, 2]
    if None in places:
        lacking = places.index(None)
        what = ("first text", "second text", "label")[lacking]
        columns = f"{counted(len(header), 'column')}, {', '.join(table.rows[0])[:200]}"
        fail(f"{table.path} has {columns}: name that of the {what} with {flags[lacking]}")
    if len(set(places)) < 3:
        one, other = [k for k in range(3) if places.count(places[k]) > 1][:2]
        fail(f"{flags[one]} and {flags[other]} name the same column of {table.path}: name two")
    labels, notes = [row[places[2]] for row in table.rows], []
    numbers = [is_number(label) for label in labels] if args.regression else []
    if not headed and (not numbers[0] and all(numbers[1:]) if numbers else alone(labels)):
        headed = len(labels) > 1
        notes.append(f"the first line of {table.path.name} is taken for a header")
    rows = [tuple(row[place] for place in places) for row in table.rows[headed:]]
    bad = [n for row, n in zip(rows, table.lines[headed:], strict=True) if not all(row)]
    if len(bad) == len(rows):
        fail(f"{table.path} has no row with two texts and a label")
    if bad:
        some = f"{counted(len(bad), 'row')} of {table.path.name}"
        notes.append(f"{some} without a text or label left out, the first in line {bad[0]}")
    return [row for row in rows if all(row)], notes


def pairs_source(
    args: argparse.Namespace,
    rows: dict[str, list[tuple[str, str, str]]],
    notes: list[str],
    numbers: bool = False,
    classes: Sequence[str] = (),
) -> Source:
    """What was read of each part; where there is no test set, one is cut off, with equal pairs on
    the same side."""
    classes = [] if numbers else list(classes) or classes_in(
        (row[2] for row in rows["train"]), known_classes(args))  # fmt: skip
    parts = {}
    for name, some in rows.items():
        answers = []
        for _, _, label in some:
            if numbers:
                answers.append(as_number(label, args.data))
            elif label in classes:
                answers.append(classes.index(label))
            else:
                fail(f"--data {args.data}: the {name} set has the class {label!r}, which the "
                     f"training set has not ({', '.join(classes[:12])})")  # fmt: skip
        kind = torch.float32 if numbers else torch.int64
        parts[name] = Examples([a for a, _, _ in some], [b for _, b, _ in some],
                               torch.tensor(answers, dtype=kind))  # fmt: skip
    if len(classes) > max(2, len(parts["train"]) // 2):
        count = len(parts["train"])
        fail(f"--data {args.data}: {len(classes):,} different labels of {count:,} pairs are "
             "no classes: name the right --label-column, or add --regression")  # fmt: skip
    if len(classes) == 1:
        notes.append("with one class there is nothing to tell apart: every answer is right")
    keys = {name: [f"{a}\t{b}".lower() for a, b, _ in some] for name, some in rows.items()}
    notes += with_test(parts, args.data, keys["train"]) + sentences.shared(keys, "pair")
    return Source(classes, parts, "; ".join(filter(None, notes)))


def as_number(label: str, data: str) -> float:
    """A label that is a number."""
    if not is_number(label):
        fail(f"--data {data}: the label {label!r} is no number: leave --regression out")
    if abs(float(label)) > (most := torch.finfo(torch.float32).max):
        fail(f"--data {data}: the label {label!r} is larger than {most:.2g}, the most that a "
             "network's numbers hold: scale the labels down")  # fmt: skip
    return float(label)


def is_number(label: str) -> bool:
    """Whether a label is a finite number."""
    try:
        return math.isfinite(float(label))
    except ValueError:
        return False


SETS = {
    "docstrings": of_sentences(sentences.SETS["docstrings"]),
    "sst2": of_sentences(sentences.SETS["sst2"]),
    "cola": of_sentences(sentences.cola),
    "ag-news": of_sentences(sentences.SETS["ag-news"]),
    "sms-spam": of_sentences(sentences.SETS["sms-spam"]),
    "names": of_sentences(sentences.SETS["names"]),
    "sentences": of_sentences(sentences.SETS["sentences"]),
    "mrpc": mrpc,
    "sts-b": stsb,
    "pairs": own_pairs,
}
DATA = [f"{name}:PATH" if name in ("sentences", "pairs") else name for name in SETS]


# ---------------------------------------------------------------------- tokens


class Task:
    """One part of a task as tokens: `part` is "train", "val" or "test".

    `facts` are what a checkpoint keeps: the vocabulary and network, the `classes` (none in a
    regression, which has `center` and `scale` of its numbers), the `metrics`.
    """

    def __init__(self, part: str, examples: Examples, facts: dict, dev: Device):
        self.part, self.facts, self.dev = part, facts, dev
        self.answers = examples.answers.to(dev.device)
        self.inputs, self.cut = encode(examples.first, examples.second, facts)

    def __len__(self) -> int:
        return len(self.inputs)

    def batches(self, batch_size: int, train: bool = False) -> Batches:
        """Tokens and segments (B, T), padded at the end, and answers (B,)."""

        def fetch(parts: list[Tensor], _draws: Iterable[Draw], _epoch: int) -> Iterator:
            for part in parts:
                some = [self.inputs[i] for i in part.tolist()]
                yield *padded(some, self.facts, self.dev), self.answers[part.to(self.dev.device)]

        return Batches(len(self), batch_size, self.dev, train, fetch)


def encode(
    first: Sequence[str], second: Sequence[str] | None, facts: dict
) -> tuple[list[tuple[Tensor, Tensor]], int]:
    """Texts, or pairs of them, as tokens and segments (T,), the special ones of the family with
    them; and how many were cut, as the network has not so many places."""
    vocabulary, length = Vocabulary(facts), facts["length"]
    join = FAMILIES[facts["family"]].join
    sides = [vocabulary.encode(first)]
    sides.append(vocabulary.encode(second) if second else [None] * len(first))
    found, cut = [], 0
    for a, b in zip(*sides, strict=True):
        example = join(a, b, vocabulary.special, length)
        whole = join(a, b, vocabulary.special, len(a) + len(b or ()) + length)
        cut += len(whole.tokens) > len(example.tokens)
        found.append((torch.tensor(example.tokens), torch.tensor(example.segments)))
    return found, cut


def padded(
    inputs: Sequence[tuple[Tensor, Tensor]], facts: dict, dev: Device
) -> tuple[Tensor, Tensor]:
    """Tokens and segments (B, T) on the device."""
    tokens, segments = zip(*inputs, strict=True)
    pad = facts["network"]["pad"]
    rows = pad_sequence(list(tokens), batch_first=True, padding_value=pad)
    return rows.to(dev.device), pad_sequence(list(segments), batch_first=True).to(dev.device)


def load_task(
    args: argparse.Namespace, dev: Device, facts: dict, source: Source
) -> tuple[Task, Task | None, Task]:
    """The training, validation (None without --val) and test set of `--data`, of which `source` is
    what `read_task` gives; completes the `facts`."""
    kind, numbers = args.data.partition(":")[0], not source.classes
    facts["classes"], facts["pairs"] = source.classes, bool(source.parts["train"].second)
    facts["metrics"] = ["pearson", "spearman"] if numbers else METRICS.get(kind, ["accuracy"])
    if numbers and "scale" not in facts:
        answers = source.parts["train"].answers.double()
        scale = float(answers.std()) if len(answers) > 1 else 0.0
        facts |= dict(center=float(answers.mean()), scale=scale or 1.0)
    sets = {part: Task(part, some, facts, dev) for part, some in source.parts.items()}
    of = "pairs" if facts["pairs"] else "sentences"
    what = "a number each" if numbers else named(source.classes)
    say_parts(args, dev, sets, of, what)
    cut = sum(part.cut for part in sets.values())
    short = f"{counted(cut, of[:-1])} cut at {facts['length']} tokens" if cut else ""
    for note in filter(None, (source.note, short)):
        dev.say(f"note: {note}")
    return sets["train"], sets.get("val"), sets["test"]


def read_task(args: argparse.Namespace, dev: Device) -> Source:
    """The parts of `--data` as they are used."""
    source = open_source(args, dev, SETS)
    known = args.stored.get("dataset", {})
    if known and bool(known.get("classes")) != bool(source.classes):
        kinds = "classes", "numbers"
        here, there = (kinds[not some] for some in (source.classes, known.get("classes")))
        fail(f"--data {args.data} has {here} to tell, the checkpoint's network tells {there}")
    check_classes(args.data, source.classes, known_classes(args))
    return source


def measure(metrics: Sequence[str], answers: Tensor, wanted: Tensor) -> dict[str, float]:
    """GLUE's metrics of answers (N,), against those wanted: classes, or numbers for correlations.

    Of constant answers there is no correlation: it counts as 0.
    """
    from scipy.stats import pearsonr, spearmanr
    from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

    def correlated(by):
        some = len(answers) > 1 and len(answers.unique()) > 1 and len(wanted.unique()) > 1
        return float(by(answers.numpy(), wanted.numpy()).statistic) if some else 0.0

    ways = {
        "accuracy": lambda: accuracy_score(wanted, answers),
        "f1": lambda: f1_score(wanted, answers, pos_label=1, zero_division=0),
        "matthews": lambda: matthews_corrcoef(wanted, answers),
        "pearson": lambda: correlated(pearsonr),
        "spearman": lambda: correlated(spearmanr),
    }
    return {name: float(ways[name]()) for name in metrics}
