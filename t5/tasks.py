"""Tasks as text: a prefix that says what to do, an input, a target.

    source = read_tasks(args, dev)        # of --data sst2, tasks, mix:FILE, sst2+multi30k …
    source.parts["train"].inputs[0]       # "sst2 sentence: a fine film"

Prefixes and label words of the paper's tasks are the paper's (Appendix D). `tasks` is a generated
mixture of six; a test input is in no training set.
"""

import argparse
import dataclasses
import itertools
import random
import re
from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from common import counted, fail, seed_of, unknown
from common.data import pairs, sentences
from common.data.classes import with_test
from common.data.sources import PART_NAMES, Source, open_source, split
from common.data.tables import read_table
from common.device import Device

OWN = "tasks, which needs no files"
LANGUAGES = {"en": "English", "de": "German"}
FEW_LABELS = 20  # targets of a prefix that are label words, at most
LONG = 3  # words of a median target that is no sentence, at most


@dataclasses.dataclass
class Task:
    """What is known of a prefix: how its answers are judged ("exact", "accuracy", "matthews",
    "bleu"), and the `labels` that are answers, if they are labels."""

    prefix: str
    metric: str
    labels: list[str] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class Examples:
    """Texts in and out, and the name of each one's task."""

    tasks: list[str]
    inputs: list[str]  # with the prefix
    targets: list[str]

    def __len__(self) -> int:
        return len(self.inputs)

    def take(self, indices: Tensor) -> "Examples":
        """Those at `indices`."""
        chosen = indices.tolist()
        parts = (self.tasks, self.inputs, self.targets)
        return Examples(*([part[i] for i in chosen] for part in parts))


def joined(prefix: str, text: str) -> str:
    """The text that the network reads."""
    return f"{prefix}: {text}"


def prefix_of(text: str, known: list[str]) -> str | None:
    """The one of the `known` prefixes that a text begins with, or None."""
    return next((prefix for prefix in known if text.startswith(f"{prefix}:")), None)


def examples(task: str, prefix: str, inputs: list[str], targets: list[str]) -> Examples:
    """Examples of one task."""
    return Examples([task] * len(inputs), [joined(prefix, text) for text in inputs], targets)


# ---------------------------------------------------------------------- generated

TRAINED, TESTED = 20_000, 150  # examples of each of the six
NOTATIONS = [
    "{d} {month} {y}",
    "{d} {mon} {y}",
    "{month} {d}, {y}",
    "{mon} {d} {y}",
    "{wkd} {d} {mon} {y}",
    "{d}.{m}.{y}",
    "{m:02}/{d:02}/{y}",
]  # of dates
LETTERS = "abcdefghijklmnopqrstuvwxyz"
Made = tuple[str, str, str]  # input, target, and what decides its part


def adding(draw: random.Random) -> Made:
    """A number below 100 and one below 10, in either order."""
    a, b = draw.sample([draw.randrange(100), draw.randrange(10)], 2)
    return f"{a} + {b}", str(a + b), f"{min(a, b)} {max(a, b)}"


def sorting(draw: random.Random) -> Made:
    """Three or four numbers below 100, from the smallest to the largest."""
    numbers = [draw.randrange(100) for _ in range(draw.randrange(3, 5))]
    answer = " ".join(map(str, sorted(numbers)))
    return " ".join(map(str, numbers)), answer, answer


def reversing(draw: random.Random) -> Made:
    """Three to six letters, the last one first."""
    word = "".join(draw.choices(LETTERS, k=draw.randrange(3, 7)))
    return word, word[::-1], word


def counting(draw: random.Random) -> Made:
    """How often the letter a stands in a word of four to eight."""
    few = ["a", *draw.sample(LETTERS[1:], 2)]
    word = "".join(draw.choices(few, k=draw.randrange(4, 9)))
    return word, str(word.count("a")), word


def comparing(draw: random.Random) -> Made:
    """Two numbers below 100, half of them near one another."""
    a = draw.randrange(100)
    b = draw.randrange(100) if draw.random() < 0.5 else min(99, max(0, a + draw.randrange(-5, 6)))
    answer = ">" if a > b else "<" if a < b else "="
    return f"{a} {b}", answer, f"{min(a, b)} {max(a, b)}"


KINDS = {"add": adding, "sort": sorting, "reverse": reversing, "count": counting,
         "compare": comparing}  # fmt: skip


def part_of(kind: str, key: str) -> str:
    """Each input belongs to one part, by a fixed draw: a tenth to test, a tenth to val."""
    return {0: "test", 1: "val"}.get(seed_of(kind, key) % 10, "train")


def made(kind: str, part: str, count: int, seed: int) -> Examples:
    """`count` examples of a generated task, of the inputs of one part."""
    if kind == "date":
        lines = pairs.date_pairs(part, count, seed, notations=NOTATIONS)
        return examples(kind, kind, lines.source, lines.target)
    draw, inputs, targets = random.Random(seed_of(kind, part, seed)), [], []
    while len(inputs) < count:
        text, answer, key = KINDS[kind](draw)
        if part_of(kind, key) == part:
            inputs.append(text)
            targets.append(answer)
    return examples(kind, kind, inputs, targets)


def generated(args: argparse.Namespace) -> Source:
    """Dates to ISO form, sorting, adding, reversing, counting, comparing: 20,000 examples each."""
    kinds = ["date", *KINDS]
    sizes = {"train": len(kinds) * TRAINED, "val": args.val, "test": len(kinds) * TESTED}
    parts = {}
    for part, size in sizes.items():
        counts = [len(range(place, size, len(kinds))) for place in range(len(kinds))]
        seed = args.seed if part == "train" else 0
        if size:
            some = [made(*x, seed) for x in zip(kinds, [part] * len(kinds), counts, strict=True)]
            parts[part] = together(some)
    note = "the inputs of the test set are in no other part"
    return Source([], parts, note, {"tasks": {kind: Task(kind, "exact") for kind in kinds}})


def together(some: list[Examples]) -> Examples:
    """Examples of several tasks, one after another."""
    names = ("tasks", "inputs", "targets")
    return Examples(*([x for part in some for x in getattr(part, name)] for name in names))


# ---------------------------------------------------------------------- files


def instead(args: argparse.Namespace) -> str:
    """What to take where the files of a set are missing: for --words, data without these."""
    return getattr(args, "instead", OWN)


def of_labels(task: str, prefix: str, reader: Callable, words: dict[str, str], metric: str):
    """A reader of sentences with a label word each, made of one of common/data/sentences.py."""

    def read(args: argparse.Namespace) -> Source:
        found = reader(args, instead(args))
        labels = [words.get(name, name) for name in found.classes]
        parts = {
            part: examples(task, prefix, texts.texts, [labels[i] for i in texts.labels.tolist()])
            for part, texts in found.parts.items()
        }
        return Source([], parts, found.note, {"tasks": {task: Task(prefix, metric, labels)}})

    return read


def multi30k(args: argparse.Namespace) -> Source:
    """Multi30k (Elliott et al. 2016), English to German or the other way."""
    found = pairs.multi30k(args, instead(args))
    a, b = (LANGUAGES[name] for name in args.direction.split("-"))
    prefix = f"translate {a} to {b}"
    parts = {part: examples("multi30k", prefix, lines.source, lines.target)
             for part, lines in found.parts.items()}  # fmt: skip
    return Source([], parts, found.note, {"tasks": {"multi30k": Task(prefix, "bleu")}})


def own(args: argparse.Namespace) -> Source:
    """The user's own: a table of prefix, input and target (TSV or CSV), or a folder of train.tsv,
    dev.tsv, test.tsv."""
    path = Path(args.data.partition(":")[2]).expanduser()
    files = {"train": path}
    if path.is_dir():
        tables = [f for f in sorted(path.iterdir()) if f.name.lower().endswith(sentences.TABLES)]
        files = {PART_NAMES.get(f.name.split(".")[0].lower(), ""): f for f in tables}
        if "train" not in files:
            fail(f"--data {args.data}: the folder holds no train.tsv (or .csv)")
    elif not path.is_file():
        fail(f"--data {args.data}: there is no such file or folder; name a table of prefix, input "
             f"and target, or take --data {instead(args)}")  # fmt: skip
    rows = {part: rows_of(files[part]) for part in ("train", "val", "test") if part in files}
    names = names_of(rows["train"])
    tasks = {}
    for prefix, task in names.items():
        targets = [target for p, _, target in rows["train"] if p == prefix]
        tasks[task] = judged(prefix, targets)
    parts = {}
    for part, some in rows.items():
        strange = next((p for p, _, _ in some if p not in names), None)
        if strange is not None:
            fail(f"--data {args.data}: the {part} set has the prefix {strange!r}, which training "
                 "has not")  # fmt: skip
        inputs = [joined(p, text) for p, text, _ in some]
        parts[part] = Examples([names[p] for p, _, _ in some], inputs, [t for *_, t in some])
    notes = with_test(parts, args.data, [text.lower() for text in parts["train"].inputs])
    for part in ("val", "test"):
        if both := part in parts and len(set(parts["train"].inputs) & set(parts[part].inputs)):
            notes.append(f"{counted(both, 'input')} of the {part} set are in training, too")
    return Source([], parts, "; ".join(notes), {"tasks": tasks})


def rows_of(path: Path) -> list[tuple[str, str, str]]:
    """Prefix (without its colon), input and target of each row of a table."""
    table = read_table(path)
    if len(table.rows[0]) != 3:
        fail(f"{path}: line {table.lines[0]} has {counted(len(table.rows[0]), 'cell')}: each line "
             "needs three, prefix, input and target, with tabs between them")  # fmt: skip
    header = [cell.lower() for cell in table.rows[0]] == ["prefix", "input", "target"]
    found = []
    for row, line in list(zip(table.rows, table.lines, strict=True))[header:]:
        prefix, text, target = row
        prefix = prefix.removesuffix(":").rstrip()
        empty = [n for n, v in zip(("prefix", "input", "target"), (prefix, text, target),
                                   strict=True) if not v]  # fmt: skip
        if empty:
            fail(f"{path}: line {line} has no {empty[0]}")
        found.append((prefix, text, target))
    if not found:
        fail(f"{path} has a header and no rows below it")
    return found


def names_of(rows: list[tuple[str, str, str]]) -> dict[str, str]:
    """A name for the metrics of each prefix: its words, and numbers where these are the same."""
    found: dict[str, str] = {}
    for prefix in dict.fromkeys(row[0] for row in rows):
        word = re.sub(r"\W+", "_", prefix.lower()).strip("_") or "task"
        names = itertools.chain([word], (f"{word}_{number}" for number in itertools.count(2)))
        found[prefix] = next(name for name in names if name not in found.values())
    return found


def judged(prefix: str, targets: list[str]) -> Task:
    """How the answers of a prefix of the user's are judged, by the targets of its training set.

    A few that come again are labels; sentences get BLEU; all else is to be equal.
    """
    labels = sorted(set(targets))
    if len(labels) <= min(FEW_LABELS, len(targets) // 2):
        return Task(prefix, "accuracy", labels)
    words = sorted(len(target.split()) for target in targets)
    return Task(prefix, "bleu" if words[len(words) // 2] > LONG else "exact")


SETS = {
    "tasks": generated,
    "sst2": of_labels("sst2", "sst2 sentence", sentences.SETS["sst2"], {}, "accuracy"),
    "cola": of_labels("cola", "cola sentence", sentences.cola,
                      {"not grammatical": "unacceptable", "grammatical": "acceptable"},
                      "matthews"),
    "multi30k": multi30k,
    "mix": own,
}  # fmt: skip
TASK_SETS = [f"{name}:FILE" if name == "mix" else name for name in SETS]


def sets_in(data: str) -> list[str]:
    """The names in --data, which a plus joins: a plus before no known name is part of a path."""
    return re.split(rf"\+(?=(?:{'|'.join(SETS)})(?:[+:]|$))", data)


def are_tasks(data: str | None) -> bool:
    """Whether --data names tasks (or nothing, where they are the default), and not a corpus."""
    return data is None or data.partition(":")[0].partition("+")[0] in SETS


def read_tasks(args: argparse.Namespace, dev: Device) -> Source:
    """All sets of --data in one, each with its parts as they are used.

    Of several, --val is cut off those that have no validation set, and --limit is of all together.
    """
    names, found = sets_in(args.data), {}
    each = args.but(limit=None, typed=[]) if len(names) > 1 else args
    for name in names:
        if name.partition(":")[0] not in SETS:
            fail(unknown("data set", name, TASK_SETS))
        if names.count(name) > 1:
            fail(f"--data {args.data} names {name} twice")
        found[name] = open_source(each.but(data=name), dev, SETS, shared=False)
    sources = list(found.values())
    tasks: dict[str, Task] = {}
    for source in sources:
        if both := sorted(tasks.keys() & source.facts["tasks"].keys()):
            fail(f"--data {args.data}: two of its sets have the prefix {both[0]!r}")
        tasks |= source.facts["tasks"]
    parts = {}
    for part in ("train", "val", "test"):
        some = [source.parts[part] for source in sources if part in source.parts]
        if some:
            parts[part] = together(some)
    count = len(parts["train"])
    if len(names) > 1 and args.limit and args.limit < count:
        few = split(count, args.limit / count, "limit", args.seed)[1]
        parts["train"] = parts["train"].take(few)
    notes = [f"{name}: {s.note}" if len(names) > 1 else s.note
             for name, s in found.items() if s.note]  # fmt: skip
    lost = [repr(task.prefix) for name, task in tasks.items() if name not in parts["train"].tasks]
    if lost:
        notes.append(f"no row is left to train on of the prefix {', '.join(lost)}")
    return Source([], parts, "; ".join(notes), {"tasks": tasks})


def label_scores(answers: list[str], targets: list[str], labels: list[str]) -> tuple[float, float]:
    """The share that is right, and the share that is none of the labels, which is wrong, too."""
    right = sum(map(str.__eq__, answers, targets))
    other = sum(answer not in labels for answer in answers)
    return right / len(targets), other / len(targets)


def matthews(answers: list[str], targets: list[str], labels: list[str]) -> float:
    """Matthews' correlation of two labels; an answer that is neither counts as the wrong one."""
    from sklearn.metrics import matthews_corrcoef

    other = dict(zip(labels, reversed(labels), strict=True))
    given = [a if a in labels else other[t] for a, t in zip(answers, targets, strict=True)]
    return float(matthews_corrcoef(targets, given))


def judge(
    facts: dict[str, dict], names: list[str], answers: list[str], targets: list[str]
) -> tuple[dict[str, float], list[str]]:
    """The metrics of answers, by task and as means over the tasks that have one; and what to say.

    `facts` are of each task its prefix, metric and labels; `score` is the mean over all tasks.
    """
    found: dict[str, dict[str, float]] = {}
    notes = []
    for task, fact in facts.items():
        places = [i for i, name in enumerate(names) if name == task]
        if not places:
            continue
        some, wanted = ([texts[i] for i in places] for texts in (answers, targets))
        metric, labels = fact["metric"], fact["labels"]
        if metric == "bleu":
            from sacrebleu.metrics import BLEU

            bleu = BLEU()
            found[task] = {"bleu": bleu.corpus_score(some, [wanted]).score / 100}
            notes.append(f"{task}: BLEU {100 * found[task]['bleu']:.2f}, {bleu.get_signature()}")
        elif metric == "exact":
            found[task] = {"exact": sum(map(str.__eq__, some, wanted)) / len(wanted)}
        else:
            right, other = label_scores(some, wanted, labels)
            found[task] = {metric: matthews(some, wanted, labels)} if metric == "matthews" else {}
            found[task] |= {"accuracy": right, "no_label": other}
            if other:
                number = counted(round(other * len(wanted)), "answer")
                notes.append(f"{task}: {number} of {len(wanted):,} no label, counted as wrong")
    means = {}
    for name in ("exact", "accuracy", "matthews", "bleu", "no_label"):
        values = [metrics[name] for metrics in found.values() if name in metrics]
        if values:
            means[name] = sum(values) / len(values)
    own = {f"{task}_{name}": v for task, metrics in found.items() for name, v in metrics.items()}
    main = [metrics[facts[task]["metric"]] for task, metrics in found.items()]
    return means | (own if len(found) > 1 else {}) | {"score": sum(main) / len(main)}, notes
