"""Sentences with a class each: names, film reviews, news, text messages, the user's own.

train, val, test = load(args, dev)
for tokens, lengths, classes in run.progress(train.batches(args.batch_size, train=True)): ...

Sentences are words, or characters, of a vocabulary that the library `tokenizers` makes of the
training part; it travels in the checkpoint. All is read in lower case.
"""

import argparse
import dataclasses
import html
import re
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from common import cli, counted, fail
from common.data.sources import (
    PART_NAMES,
    Source,
    folders_in,
    named,
    open_source,
    part_folders,
    readable,
    say_parts,
)
from common.data.text import as_text, find_text, read_lines, read_tokenizer
from common.device import Device
from rnn.batches import Sequences, check_classes, classes_in, with_test
from rnn.tables import Table, no_column, read_table

SPECIAL = ["<pad>", "<unk>"]
PAD, UNKNOWN = range(2)
# A word; the ends of contractions ("did n't") are words of their own, as in the Penn Treebank.
WORD = r"\w+(?=n't)|n't|'\w+|\w+|[^\w\s]"
RARE = 2  # a word that stands in training less often is <unk>, which is learned so
TEXTS = ["text", "sentence", "message", "review", "content", "comment", "document", "question",
         "tweet", "utterance", "body", "headline", "title", "name"]  # fmt: skip
LABELS = ["label", "class", "category", "sentiment", "target", "polarity", "intent", "topic", "y"]
FIXED = ["units", "vocab_size", "max_length"]  # by a checkpoint
TABLES = (".tsv", ".csv", ".tsv.gz", ".csv.gz")


def add_flags(parser: cli.Parser) -> None:
    """The flags of `load` but --vocab-size (at least 3), which language models share."""
    add, size = parser.add_argument, dict(type=cli.integer(1), metavar="N", group="data")
    text = "what sentences are read as"
    add("--units", choices=["words", "characters"], default="words", group="data", help=text)
    text = "words (or characters) of a sentence; what is more is cut off"
    add("--max-length", **size, default=400, help=text)
    column = dict(metavar="COLUMN", group="data", none="found by its name")
    add("--text-column", **column, help="of a table: its name, or its number from 1")
    add("--label-column", **column, help="the same, of the classes")


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
    """What was read of each part; a test part that lacks is cut off, equal sentences together.

    With the classes of a checkpoint, if it knows all of them.
    """
    known = args.stored.get("dataset", {}).get("classes", [])
    classes = classes_in((label for _, label in found["train"]), known)
    parts = {}
    for name, pairs in found.items():
        if strange := sorted({label for _, label in pairs} - set(classes)):
            fail(f"--data {args.data}: the {name} part has the class {strange[0]!r}, which the "
                 f"training part has not ({', '.join(classes[:12])})")  # fmt: skip
        labels = torch.tensor([classes.index(label) for _, label in pairs])
        parts[name] = Texts([text for text, _ in pairs], labels)
    if len(classes) == 1:
        notes.append("with one class there is nothing to tell apart: every answer is right")
    if len(classes) > max(2, len(parts["train"]) // 2):
        fail(f"--data {args.data}: {len(classes):,} different labels of {len(parts['train']):,} "
             "sentences are no classes: name the right --label-column")  # fmt: skip
    official = set(parts)
    keys = [text.lower() for text in parts["train"].texts]
    notes += with_test(parts, args.data, keys)
    for name in sorted(official & {"val", "test"} & set(parts)):
        if both := len(set(keys) & {text.lower() for text in parts[name].texts}):
            notes.append(f"{counted(both, 'sentence')} of the {name} part stand in training, too")
    return Source(classes, parts, "; ".join(filter(None, notes)))


# ---------------------------------------------------------------------- sets


def place(args: argparse.Namespace, folder: str, *files: str) -> Path:
    """The folder of a set, which may be --data-dir itself; it has to hold the `files`."""
    root = Path(args.data_dir).expanduser()
    root = root / folder if (root / folder).is_dir() else root
    for name in files:
        if not find_text(root / name):
            fail(
                f"{name} is not in {Path(args.data_dir, folder)}: name the folder that holds "
                f"{folder} with --data-dir, or take --data pydocs, which needs no files"
            )
    return root


def names(args: argparse.Namespace) -> Source:
    """First names, a file a class (Kantrowitz 1991: 5,001 female, 2,943 male)."""
    root = place(args, "names", "female.txt", "male.txt")
    return as_source(args, {"train": a_file_a_class([root / "female.txt", root / "male.txt"])}, [])


def sst2(args: argparse.Namespace) -> Source:
    """Sentences of film reviews (Socher et al. 2013): 6,920 + 872 + 1,821, official parts."""
    root = place(args, "SST2", "train.tsv", "dev.tsv", "test.tsv")
    words, found = {"0": "negative", "1": "positive"}, {}
    for part, file in (("train", "train"), ("val", "dev"), ("test", "test")):
        pairs, _ = labelled(read_table(find_text(root / f"{file}.tsv")), "", "")
        found[part] = [(text, words.get(label, label)) for text, label in pairs]
    return as_source(args, found, [])


def ag_news(args: argparse.Namespace) -> Source:
    """News of four classes (Zhang et al. 2015), title and description."""
    root = place(args, "ag_news", "test.csv")
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
    note = "the official test part alone is there: a seeded fifth of it is held out, the rest "
    source = as_source(args, {"train": found["test"]}, [])
    source.note = note + "is trained on"
    return source


def tidy_news(text: str) -> str:
    """Without what is left of HTML: " #39;" was an apostrophe, a backslash a line's end."""
    text = re.sub(r"\s?#(\d+);", r"&#\1;", text.replace("\\", " "))
    return re.sub(r"<[^<>]*>", " ", html.unescape(text))


def sms_spam(args: argparse.Namespace) -> Source:
    """Text messages, ham or spam (Almeida et al. 2011): 5,574, of which 5,171 differ."""
    root = place(args, "sms_spam")
    names = ["SMSSpamCollection.tsv", "SMSSpamCollection"]
    path = next((root / name for name in names if (root / name).is_file()), None)
    path = path or place(args, "sms_spam", names[0]) / names[0]
    rows = [line.partition("\t") for line in read_lines(path)]
    bad = next((n for n, row in enumerate(rows, 1) if row[0] not in ("ham", "spam")), None)
    if bad:
        fail(f"{path}: line {bad} begins with neither ham nor spam and a tab")
    pairs = [(text.strip(), label) for label, _, text in rows if text.strip()]
    return as_source(args, {"train": pairs}, ["equal messages are in one part"])


def own(args: argparse.Namespace) -> Source:
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
        fail(f"--data {args.data}: there is no such file or folder; name a table of texts and "
             "labels, or a folder, or take --data pydocs, which needs no files")  # fmt: skip
    tables = [file for file in sorted(path.iterdir()) if file.name.lower().endswith(TABLES)]
    if tables:
        return parts_of_tables(args, path, tables, columns)
    found, notes = part_folders(path, args.data)
    read = {part: in_folder(folder) for part, folder in (found or {"train": path}).items()}
    for part, pairs in read.items():
        if not pairs:
            fail(f"--data {args.data}: {found.get(part, path)} holds no table (.csv, .tsv), and no "
                 "folder of text files (.txt) for each class")  # fmt: skip
    return as_source(args, read, notes)


def parts_of_tables(
    args: argparse.Namespace, folder: Path, tables: Sequence[Path], columns: tuple[str, str]
) -> Source:
    """The tables of a folder by their names; a single one may have any."""
    found, notes, names = {}, [], {}
    for file in tables:
        part = PART_NAMES.get(file.name.split(".")[0].lower())
        if part in names and part:
            fail(f"--data {args.data}: {names[part]} and {file.name} are both the {part} part")
        names[part] = file.name
    if len(tables) > 1 and "train" not in names:
        fail(f"--data {args.data}: of the tables in {folder} none is train.tsv or train.csv: name "
             f"one of them ({', '.join(file.name for file in tables[:12])})")  # fmt: skip
    for part, name in names.items() if "train" in names else [("train", tables[0].name)]:
        if part:
            found[part], more = labelled(read_table(folder / name), *columns)
            notes += more
    return as_source(args, found, notes)


def in_folder(root: Path) -> Pairs:
    """The sentences below a folder: a folder a class of files, or else a file a class."""
    files = {p: sorted(f for f in p.rglob("*.txt") if f.is_file()) for p in folders_in(root)}
    if not any(files.values()):
        return a_file_a_class(sorted(f for f in root.glob("*.txt") if f.is_file()))
    return [
        (" ".join(filter(None, read_lines(file))), readable(folder.name))
        for folder, some in files.items()
        for file in some
    ]


def a_file_a_class(files: Sequence[Path]) -> Pairs:
    """Text files that bear the name of a class, a sentence a line."""
    return [(line, readable(file.stem)) for file in files for line in read_lines(file) if line]


def labelled(table: Table, text: str, label: str) -> tuple[Pairs, list[str]]:
    """The sentences and labels of a table; columns that aren't named are found.

    By the names that the header gives them, if it is one; or, of two columns, that which holds
    fewer different values is the label. Rows that lack one of them are left out, which is said.
    """
    first, width = [cell.lower() for cell in table.rows[0]], len(table.rows[0])
    places = [column(table, f"--{flag}-column", name) for flag, name in
              (("text", text), ("label", label))]  # fmt: skip
    typed = any(name.lower() in first for name in (text, label) if name and not name.isdecimal())
    headed = typed or any(name in first for name in (*TEXTS, *LABELS))
    for i, known in enumerate((TEXTS, LABELS)):
        if places[i] is None:
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
    if not headed and len(values) > 3 and values.count(values[0]) == 1:
        counts = [values.count(value) for value in set(values[1:])]
        if headed := min(counts) > 1:
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


SETS = {"names": names, "sst2": sst2, "ag-news": ag_news, "sms-spam": sms_spam, "sentences": own}


# ---------------------------------------------------------------------- vocabulary


def train_vocabulary(texts: Sequence[str], units: str, vocab_size: int) -> str:
    """The most frequent words or characters, at most `vocab_size` with `SPECIAL`: as JSON."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.WordLevel(unk_token=SPECIAL[UNKNOWN]))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace("\u2019", "'"), normalizers.Lowercase()]
    )
    pattern = Regex(WORD if units == "words" else r"[\s\S]")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(pattern, behavior="removed", invert=True)
    often = RARE if units == "words" else 1
    most = min(vocab_size, len(SPECIAL) + sum(map(len, texts)))
    trainer = trainers.WordLevelTrainer(
        vocab_size=most, min_frequency=often, special_tokens=SPECIAL, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer.to_str()


def tokenise(texts: Sequence[str], facts: dict) -> tuple[list[Tensor], list[list[str]], int]:
    """Tokens (T,) of each text, the words as they stand there, and how many were cut short.

    T is 1 to `facts["max_length"]`; a text without words is one <unk>.
    """
    tokenizer, most = read_tokenizer(facts["tokenizer"]), facts["max_length"]
    tokenizer.encode_special_tokens = True  # "<pad>" in a text is text
    encoded = tokenizer.encode_batch(list(texts))
    tokens = [torch.tensor(piece.ids[:most] or [UNKNOWN]) for piece in encoded]
    words = [
        [text[begin:end] for begin, end in piece.offsets[:most]] or [text]
        for text, piece in zip(texts, encoded, strict=True)
    ]
    return tokens, words, sum(len(piece.ids) > most for piece in encoded)


def encode(texts: Sequence[str], facts: dict) -> tuple[Tensor, Tensor, list[list[str]]]:
    """One's own sentences for a network of these `facts`: tokens (B, T), padded at the end,
    lengths (B,), and the words of each. An empty or a garbled one ends in one line."""
    clean = []
    for number, text in enumerate(texts, 1):
        try:
            clean.append(as_text(text.encode("utf-8", "surrogateescape"), f"sentence {number}"))
        except ValueError as error:
            fail(str(error))
        if not clean[-1]:
            fail(f"sentence {number} is empty: there is nothing to tell of it")
    tokens, words, _ = tokenise(clean, facts)
    lengths = torch.tensor(list(map(len, tokens)))
    return pad_sequence(tokens, batch_first=True, padding_value=PAD), lengths, words


def load(args: argparse.Namespace, dev: Device) -> tuple[Sequences, Sequences | None, Sequences]:
    """The training, validation (None without --val) and test part of `--data`.

    The vocabulary is that of the training part, or of the checkpoint that the run goes on with.
    A sentence of the training part is in no validation part that was cut from it.
    """
    source = open_source(args, dev, SETS)
    known, parts, notes = args.stored.get("dataset", {}), source.parts, [source.note]
    check_classes(args.data, source.classes, known.get("classes", []))
    if "val" in parts and args.data != "sst2":
        seen = {text.lower() for text in parts["train"].texts}
        new = [i for i, text in enumerate(parts["val"].texts) if text.lower() not in seen]
        if len(new) < len(parts["val"]) and len(new) >= dev.world:
            gone = counted(len(parts["val"]) - len(new), "sentence")
            notes.append(f"{gone} that training holds, too, left out of validation")
            parts["val"] = parts["val"].take(torch.tensor(new))
    facts = {"task": "sentences", "classes": source.classes, "units": args.units}
    facts["max_length"] = args.max_length
    if "tokenizer" in known:
        facts |= {name: known[name] for name in ("tokenizer", "units", "max_length")}
    else:
        text = train_vocabulary(parts["train"].texts, args.units, args.vocab_size)
        facts["tokenizer"] = dev.gather(text)[0]
    sets, cut, unknown = {}, 0, 0.0
    for part, content in parts.items():
        tokens, _, more = tokenise(content.texts, facts)
        sets[part] = Sequences(part, tokens, content.labels, content.texts, facts, dev)
        cut += more
        unknown = (sets[part].values == UNKNOWN).float().mean().item()  # in the end of test
    facts["vocab_size"] = read_tokenizer(facts["tokenizer"]).get_vocab_size()
    vocabulary = f"{facts['vocab_size']:,} {facts['units']}"
    say_parts(args, dev, sets, "sentences", named(source.classes), vocabulary)
    if cut:
        notes.append(f"{counted(cut, 'sentence')} cut at {facts['max_length']} {facts['units']}")
    if unknown > 0.005:
        notes.append(f"{unknown:.1%} of the test part's {facts['units']} are not in the vocabulary")
    for note in filter(None, notes):
        dev.say(f"note: {note}")
    return sets["train"], sets.get("val"), sets["test"]
