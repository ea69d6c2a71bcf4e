"""Labelled sentences as they are found: the sets of `SETS`, and the user's tables and folders.

Where files are missing the one line says what to take `instead`.
"""

import argparse
import ast
import collections
import dataclasses
import html
import platform
import re
import sysconfig
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from common import counted, fail
from common.data.classes import classes_in, known_classes, with_test
from common.data.sources import PART_NAMES, Source, folders_in, part_folders, readable
from common.data.tables import Table, no_column, read_table
from common.data.text import find_text, read_lines

TEXTS = ["text", "sentence", "message", "review", "content", "comment", "document", "question",
         "tweet", "utterance", "body", "headline", "title", "name"]  # fmt: skip
LABELS = ["label", "class", "category", "sentiment", "target", "polarity", "intent", "topic", "y"]
OWN = "sentences:PATH, a table of your own"  # what to take where the files of a set are missing
PACKAGES = [
    "asyncio",
    "email",
    "http",
    "importlib",
    "logging",
    "multiprocessing",
    "unittest",
    "xml",
]  # of the standard library, the classes of `docstrings`
DESCRIBED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
TABLES = (".tsv", ".csv", ".tsv.gz", ".csv.gz")


@dataclasses.dataclass
class Texts:
    """Sentences and a class for each."""

    texts: list[str]
    labels: Tensor  # (N,)

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, indices: Tensor) -> "Texts":
        """The examples at `indices`."""
        return Texts([self.texts[i] for i in indices.tolist()], self.labels[indices])


Pairs = list[tuple[str, str]]  # sentences and the names of their classes


def as_source(args: argparse.Namespace, found: dict[str, Pairs], notes: list[str]) -> Source:
    """What was read of each part; where there is no test set, one is cut off, with equal sentences
    on the same side.

    With the classes of a checkpoint, if it knows all of them.
    """
    classes = classes_in((label for _, label in found["train"]), known_classes(args))
    parts = {}
    for name, pairs in found.items():
        if strange := sorted({label for _, label in pairs} - set(classes)):
            part = "validation" if name == "val" else name
            fail(f"--data {args.data}: the {part} set has the class {strange[0]!r}, which the "
                 f"training set has not ({', '.join(classes[:12])})")  # fmt: skip
        labels = torch.tensor([classes.index(label) for _, label in pairs])
        parts[name] = Texts([text for text, _ in pairs], labels)
    if len(classes) == 1:
        notes.append("with one class there is nothing to tell apart: every answer is right")
    if len(classes) > max(2, len(parts["train"]) // 2):
        fail(f"--data {args.data}: {len(classes):,} different labels of {len(parts['train']):,} "
             "sentences are no classes: name the right --label-column")  # fmt: skip
    keys = {name: [text.lower() for text in part.texts] for name, part in parts.items()}
    notes += with_test(parts, args.data, keys["train"]) + shared(keys, "sentence")
    return Source(classes, parts, "; ".join(filter(None, notes)))


def shared(keys: dict[str, Sequence[str]], what: str) -> list[str]:
    """What there is to say of examples that another part than the training set shares with it."""
    both = {name: len(set(keys["train"]).intersection(some)) for name, some in keys.items()}
    return [f"{counted(count, what)} of the {name} set stand in training, too"
            for name, count in both.items() if count and name != "train"]  # fmt: skip


def alone(values: Sequence[str]) -> bool:
    """Whether the first of a column stands there once, and each other value again: so it is taken
    for the column's name, where that isn't known."""
    counts = collections.Counter(values)
    return len(values) > 3 and counts.pop(values[0]) == 1 and min(counts.values()) > 1


def parts_in(args: argparse.Namespace, folder: Path, tables: Sequence[Path]) -> dict[str, Path]:
    """The tables of a folder by their names, train, dev, test; a single one may have any."""
    names: dict[str | None, Path] = {}
    for file in tables:
        part = PART_NAMES.get(file.name.split(".")[0].lower())
        if part in names and part:
            fail(f"--data {args.data}: {names[part].name} and {file.name} are both the {part} set")
        names[part] = file
    if len(tables) > 1 and "train" not in names:
        fail(f"--data {args.data}: of the tables in {folder} none is train.tsv or train.csv: name "
             f"one of them ({', '.join(file.name for file in tables[:12])})")  # fmt: skip
    if "train" not in names:
        return {"train": tables[0]}
    return {part: file for part, file in names.items() if part}


# ---------------------------------------------------------------------- sets


def place(args: argparse.Namespace, folder: str, *files: str, instead: str) -> Path:
    """The folder of a set, which may be --data-dir itself; it has to hold the `files`."""
    root = Path(args.data_dir).expanduser()
    root = root / folder if (root / folder).is_dir() else root
    for name in files:
        if not find_text(root / name):
            fail(
                f"{name} is not in {Path(args.data_dir, folder)}: name the folder that holds "
                f"{folder} with --data-dir, or take --data {instead}"
            )
    return root


def names(args: argparse.Namespace, instead: str = OWN) -> Source:
    """First names, a file a class (Kantrowitz 1991: 5,001 female, 2,943 male)."""
    root = place(args, "names", "female.txt", "male.txt", instead=instead)
    return as_source(args, {"train": a_file_a_class([root / "female.txt", root / "male.txt"])}, [])


def docstrings(args: argparse.Namespace, instead: str = OWN) -> Source:
    """What Python's standard library says of its modules, classes and functions, and of which of
    eight packages that is: the first paragraphs of four words or more, about 1,800 of them."""
    root = Path(sysconfig.get_path("stdlib"))
    pairs: dict[str, tuple[str, str]] = {}
    for package in PACKAGES:
        for file in sorted((root / package).rglob("*.py")):
            try:
                tree = ast.parse(file.read_text("utf-8"))
            except (OSError, ValueError, SyntaxError):
                continue  # a file for other versions or systems
            texts = (ast.get_docstring(node) or "" for node in ast.walk(tree)
                     if isinstance(node, DESCRIBED))  # fmt: skip
            for text in (" ".join(text.split("\n\n")[0].split()) for text in texts):
                if len(text.split()) >= 4:
                    pairs.setdefault(text.lower(), (text, package))
    if not pairs:
        fail(f"--data docstrings: {root} has no standard library in Python: take {instead}")
    version = ".".join(platform.python_version_tuple()[:2])
    note = f"the docstrings of Python {version}, other versions have others"
    return as_source(args, {"train": list(pairs.values())}, [note])


def sst2(args: argparse.Namespace, instead: str = OWN) -> Source:
    """Sentences of film reviews (Socher et al. 2013): 6,920 + 872 + 1,821, official parts."""
    root = place(args, "SST2", "train.tsv", "dev.tsv", "test.tsv", instead=instead)
    words, found = {"0": "negative", "1": "positive"}, {}
    for part, file in (("train", "train"), ("val", "dev"), ("test", "test")):
        pairs, _ = labelled(read_table(find_text(root / f"{file}.tsv")), "", "")
        found[part] = [(text, words.get(label, label)) for text, label in pairs]
    return as_source(args, found, [])


def cola(args: argparse.Namespace, instead: str = OWN) -> Source:
    """Sentences that are grammatical or not (Warstadt et al. 2018): 8,551 + 1,043 (dev)."""
    root = place(args, "glue/CoLA", "train.tsv", "dev.tsv", instead=instead)
    words, found = {"0": "not grammatical", "1": "grammatical"}, {}
    for part, file in (("train", "train"), ("val", "dev")):
        pairs, _ = labelled(read_table(find_text(root / f"{file}.tsv")), "sentence", "label")
        found[part] = [(text, words.get(label, label)) for text, label in pairs]
    return as_source(args, found, [])


def ag_news(args: argparse.Namespace, instead: str = OWN) -> Source:
    """News of four classes (Zhang et al. 2015), title and description."""
    root = place(args, "ag_news", "test.csv", instead=instead)
    there = find_text(root / "train.csv")
    found = {}
    for part in ("train", "test") if there else ("test",):
        table = read_table(find_text(root / f"{part}.csv"))
        kinds = ["World", "Sports", "Business", "Sci/Tech"]
        for line, cells in zip(table.lines, table.rows, strict=True):
            if cells[0] not in ("1", "2", "3", "4") or len(cells) < 3:
                fail(f"{table.path}: line {line}: wanted are class (1 to 4), title, description")
        found[part] = [(tidy_news(" ".join(c[1:])), kinds[int(c[0]) - 1]) for c in table.rows]
    if there:
        return as_source(args, found, [])
    note = "the official test set alone is there: a seeded fifth of it is held out, the rest "
    source = as_source(args, {"train": found["test"]}, [])
    source.note = note + "is trained on"
    return source


def tidy_news(text: str) -> str:
    """Without what is left of HTML: " #39;" was an apostrophe, a backslash a line's end."""
    text = re.sub(r"\s?#(\d+);", r"&#\1;", text.replace("\\", " "))
    return re.sub(r"<[^<>]*>", " ", html.unescape(text))


def sms_spam(args: argparse.Namespace, instead: str = OWN) -> Source:
    """Text messages, ham or spam (Almeida et al. 2011): 5,574, of which 5,171 differ."""
    root = place(args, "sms_spam", instead=instead)
    names = ["SMSSpamCollection.tsv", "SMSSpamCollection"]
    path = next((root / name for name in names if (root / name).is_file()), None)
    path = path or place(args, "sms_spam", names[0], instead=instead) / names[0]
    rows = [line.partition("\t") for line in read_lines(path)]
    bad = next((n for n, row in enumerate(rows, 1) if row[0] not in ("ham", "spam")), None)
    if bad:
        fail(f"{path}: line {bad} begins with neither ham nor spam and a tab")
    pairs = [(text.strip(), label) for label, _, text in rows if text.strip()]
    return as_source(args, {"train": pairs}, ["equal messages are in one part"])


def own(args: argparse.Namespace, instead: str = OWN) -> Source:
    """The user's own: a table with texts and labels, or a folder. In this may lie

    train.tsv, dev.tsv, test.tsv (or .csv); a folder a class of text files, perhaps below train/,
    val/, test/; or a text file a class, a sentence a line.
    """
    path = Path(args.data.partition(":")[2]).expanduser()
    columns = args.text_column or "", args.label_column or ""
    if path.is_file():
        pairs, notes = labelled(read_table(path), *columns)
        return as_source(args, {"train": pairs}, notes)
    if not path.is_dir():
        other = f", or take --data {instead}" if instead != OWN else ""
        fail(f"--data {args.data}: there is no such file or folder; name a table of texts and "
             f"labels, or a folder{other}")  # fmt: skip
    tables = [file for file in sorted(path.iterdir()) if file.name.lower().endswith(TABLES)]
    if tables:
        return parts_of_tables(args, path, tables, columns)
    found, notes = part_folders(path, args.data)
    read = {}
    for part, folder in (found or {"train": path}).items():
        read[part], empty = in_folder(folder)
        if empty:
            notes.append(f"{counted(len(empty), 'empty file')} left out, the first {empty[0]}")
        if not read[part]:
            fail(f"--data {args.data}: {found.get(part, path)} holds no table (.csv, .tsv), and no "
                 "folder of text files (.txt) for each class")  # fmt: skip
    return as_source(args, read, notes)


def parts_of_tables(
    args: argparse.Namespace, folder: Path, tables: Sequence[Path], columns: tuple[str, str]
) -> Source:
    """What the tables of a folder hold."""
    found, notes = {}, []
    for part, file in parts_in(args, folder, tables).items():
        found[part], more = labelled(read_table(file), *columns)
        notes += more
    return as_source(args, found, notes)


def in_folder(root: Path) -> tuple[Pairs, list[Path]]:
    """The sentences below a folder: a folder a class of files, or else a file a class; and the
    files that are empty."""
    files = {p: sorted(f for f in p.rglob("*.txt") if f.is_file()) for p in folders_in(root)}
    alone = [] if any(files.values()) else sorted(f for f in root.glob("*.txt") if f.is_file())
    empty = {f for some in (alone, *files.values()) for f in some if is_empty(f)}
    pairs = a_file_a_class([file for file in alone if file not in empty]) + [
        (" ".join(filter(None, read_lines(file))), readable(folder.name))
        for folder, some in files.items()
        for file in some
        if file not in empty
    ]
    return pairs, sorted(empty)


def is_empty(file: Path) -> bool:
    """Whether a file holds nothing but space."""
    try:
        return file.stat().st_size < 1000 and not file.read_bytes().strip()
    except OSError:
        return False  # who reads it says why that can't be


def a_file_a_class(files: Sequence[Path]) -> Pairs:
    """Text files that bear the name of a class, a sentence a line."""
    return [(line, readable(file.stem)) for file in files for line in read_lines(file) if line]


def labelled(table: Table, text: str, label: str) -> tuple[Pairs, list[str]]:
    """The sentences and labels of a table; columns that aren't named are found.

    By the names that the header gives them, if it is one: a name that stands again in its column is
    a text or a class. Or, of two columns, that which holds fewer different values is the label.
    Rows that lack one of them are left out, which is said.
    """
    first, width = [cell.lower() for cell in table.rows[0]], len(table.rows[0])
    places = [column(table, f"--{flag}-column", name) for flag, name in
              (("text", text), ("label", label))]  # fmt: skip
    typed = any(name.lower() in first for name in (text, label) if name and not name.isdecimal())
    once = [
        name
        for k, name in enumerate(first)
        if name in (*TEXTS, *LABELS) and name not in (row[k].lower() for row in table.rows[1:])
    ]
    headed = typed or bool(once)
    for i, known in enumerate((TEXTS, LABELS)):
        if places[i] is None and headed:
            there = [first.index(name) for name in known if name in first]
            places[i] = next((k for k in there if k not in places), None)
    if width == 2 and places.count(None) == 1:
        places[places.index(None)] = 1 - next(place for place in places if place is not None)
    if width == 2 and None in places:
        counts = [len({row[k] for row in table.rows}) for k in (0, 1)]
        places = [1, 0] if counts[0] < counts[1] else [0, 1]
    if None in places:
        fail(f"{table.path} has {counted(width, 'column')}, {', '.join(table.rows[0])[:200]}: name "
             "those of text and label with --text-column and --label-column")  # fmt: skip
    at, to = places
    values = [row[to] for row in table.rows]
    notes = []
    if not headed and (headed := alone(values)):
        notes.append(f"the first line of {table.path.name} is taken for a header")
    rows = list(zip(table.rows, table.lines, strict=True))[headed:]
    bad = [line for row, line in rows if not (row[at] and row[to])]
    if bad:
        notes.append(f"{counted(len(bad), 'row')} of {table.path.name} without text or label left "
                     f"out, the first in line {bad[0]}")  # fmt: skip
    if len(bad) == len(rows):
        fail(f"{table.path} has no row with text and label")
    return [(row[at], row[to]) for row, _ in rows if row[at] and row[to]], notes


def column(table: Table, flag: str, name: str) -> int | None:
    """The place of the column that the user has named, or numbered from 1."""
    columns = [cell.lower() for cell in table.rows[0]]
    if name.isdecimal() and 1 <= int(name) <= len(columns):
        return int(name) - 1
    if not name or name.lower() in columns:
        return columns.index(name.lower()) if name else None
    no_column(table.path, flag, name, table.rows[0])


SETS = {"docstrings": docstrings, "names": names, "sst2": sst2, "ag-news": ag_news,
        "sms-spam": sms_spam, "sentences": own}  # fmt: skip
