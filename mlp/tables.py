"""Tables: those of scikit-learn, and the user's own CSV files.

    train, val, test = load_table(args, dev)
    inputs = encode(read_table(path), facts["columns"])[0]     # of new rows

pandas reads them, scikit-learn's transformers learn from the training part how to scale numbers,
what to fill in and which categories there are. What they learned stands in `facts["columns"]` as
plain values, travels in the checkpoint, and is all that `encode` needs.
"""

import csv
import io
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from common import cli, counted, fail, unknown
from common.data.batches import Batches
from common.data.sources import Source, named, open_source, say_parts, split
from common.device import Device

if TYPE_CHECKING:
    import pandas as pd

SKLEARN = ("iris", "wine", "breast-cancer", "diabetes")
TABLES = [*SKLEARN, "csv:PATH"]
SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
MOST = 1000  # categories of a column, and classes
FEW = 10  # so many different whole numbers are classes, more are a quantity
LARGEST = 1e100  # numbers beyond are no measurements: they count as missing, as infinity does
SHOWN = 6  # names in a line
LARGE = 20 << 20  # bytes that take some seconds to read


def listed(names: Sequence[str]) -> str:
    """Some names in a line, and how many more there are."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(map(str, names[:SHOWN])) + more


# ---------------------------------------------------------------------- reading files


def read_text(path: Path) -> str:
    """A text file in UTF-8, with or without a byte order mark."""
    try:
        content = path.read_bytes()
    except OSError as error:
        fail(f"can't read {path}: {error.strerror or error}")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        fail(f"{path}: line {line} is not UTF-8 text: save the table as UTF-8")


def records(text: str, separator: str, path: Path) -> list[tuple[int, list[str]]]:
    """The rows that aren't empty: the line that each begins in, and its cells."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True)
    found, line = [], 1
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells) or len(cells) > 1:
                found.append((line, cells))
            line = reader.line_num + 1
    except csv.Error as error:
        fail(f"{path}: line {line} is not CSV ({error})")
    return found


def read_table(path: Path) -> "pd.DataFrame":
    """A CSV file as text, NaN where a cell is empty (or ?, NA, NaN, …); the index is the line.

    Commas, semicolons, tabs or bars separate cells: what cuts the header into most of them.
    """
    import pandas as pd

    if not path.is_file():
        fail(f"{path}: {'a folder' if path.is_dir() else 'there is no such file'}: name a CSV file")
    if path.stat().st_size > LARGE:
        print(f"reading {path}, {path.stat().st_size >> 20} MiB", file=sys.stderr, flush=True)
    text = read_text(path)
    first = next((line for line in text.splitlines() if line.strip()), "")
    if not first:
        fail(f"{path} is empty: its first line has to name the columns")
    widths = {s: len(next(csv.reader([first], delimiter=s))) for s in SEPARATORS}
    separator = max(widths, key=widths.get)  # of equals the first
    (_, header), *rows = records(text, separator, path)
    names = [" ".join(name.split()) for name in header]
    for name in names:
        if name and names.count(name) > 1:
            places = [str(place) for place, other in enumerate(names, 1) if other == name]
            fail(f"{path}: the columns {' and '.join(places)} are both called {name!r}: the first "
                 "line has to name each once")  # fmt: skip
    for line, cells in rows:
        if len(cells) != len(names):
            fail(f"{path}: line {line} has {counted(len(cells), 'cell')}, not the {len(names)} of "
                 f"the header ({SEPARATORS[separator]} separate them)")  # fmt: skip
    if not rows:
        fail(f"{path} has a header and no rows below it")
    names = [name or f"(column {place})" for place, name in enumerate(names, 1)]
    how = dict(
        sep=separator, dtype="string", header=0, names=names, index_col=False, na_values=["?"]
    )
    try:
        table = pd.read_csv(io.StringIO(text), skipinitialspace=True, **how)
    except (pd.errors.ParserError, ValueError) as error:
        if "EOF inside string" in str(error):
            fail(f"{path}: a quotation mark in line {rows[-1][0]} is never closed")
        fail(f"{path} is not CSV ({error})")
    if len(table) != len(rows):
        fail(f"{path} is not CSV: a quotation mark is open, or lines are blank but for spaces")
    table = table.apply(lambda column: column.str.strip()).replace("", pd.NA)
    table.index = [line for line, _ in rows]
    table.attrs["separator"] = separator
    return table


def comma_of(values: "pd.Series", separator: str) -> str:
    """What a comma in numbers means: "decimal" or "thousands"; "" where there is none.

    "1,5" is one and a half; but in files that commas separate, a column of "1,234" in quotation
    marks, always in groups of three digits, is thousands.
    """
    if not values.str.contains(",", regex=False).any():
        return ""
    grouped = values.dropna().str.match(r"^[+-]?\d{1,3}(,\d{3})*(\.\d+)?$").all()
    return "thousands" if separator == "," and grouped else "decimal"


def as_numbers(values: "pd.Series", comma: str = "") -> "pd.Series":
    """Text as numbers, NaN where it is none; `comma` is what `comma_of` says."""
    import pandas as pd

    if comma == "decimal":  # 1.234,5 has points for thousands
        plain = values.str.replace(".", "", regex=False).str.replace(",", ".", regex=False)
        values = plain.where(values.str.contains(",", regex=False).fillna(False), values)
    elif comma:
        values = values.str.replace(",", "", regex=False)
    numbers = pd.to_numeric(values, errors="coerce").astype(float)
    return numbers.where(numbers.abs() < LARGEST)


# ---------------------------------------------------------------------- what is learned of columns


def learn(table: "pd.DataFrame", notes: list[str]) -> list[dict]:
    """What is to be known of each column of the training part, as plain values.

    Of numbers `fill`, `mean` and `std`; of categories their names; `missing` says whether cells
    are empty, which is then an input of its own. Columns that tell nothing are left out, and
    `notes` say so.
    """
    separator, columns, gone = table.attrs.get("separator", ","), [], {"empty": [], "constant": []}
    for name in table.columns:
        present = table[name].dropna()
        if present.nunique() < 2:
            gone["constant" if len(present) else "empty"].append(name)
            continue
        comma = comma_of(present, separator)
        numbers = as_numbers(present, comma)
        if numbers.notna().all() or is_infinite(present[numbers.isna()]):
            column = {"comma": comma} | learn_numbers(as_numbers(table[name], comma))
            if not column["std"] > 0:
                gone["constant"].append(name)
                continue
        else:
            column = learn_categories(table[name])
            if (share := numbers.notna().mean()) >= 0.5:
                odd = present[numbers.isna()]
                notes.append(f"{name} is taken for categories: {share:.0%} of it are numbers, but "
                             f"line {odd.index[0]} has {odd.iloc[0]!r}")  # fmt: skip
            if len(column["categories"]) > MOST:
                fail(f"the column {name!r} is text with {len(column['categories']):,} different "
                     f"values, at most {MOST:,} can be categories: leave it out with --drop "
                     f"{name!r}")  # fmt: skip
        columns.append({"name": name, **column})
    holes = {c["name"]: int(table[c["name"]].isna().sum()) for c in columns}
    if any(holes.values()):
        shown = listed([f"{name} ({count:,})" for name, count in holes.items() if count])
        notes.append(f"empty cells, marked as such, numbers filled with the median: {shown}")
    for why, names in gone.items():
        if names:
            notes.append(f"left out, {why}: {listed(names)}")
    if not columns:
        fail("no column is left to learn from: all are empty or constant in the training part")
    return columns


def is_infinite(values: "pd.Series") -> bool:
    """Whether all are numbers that no float holds."""
    import pandas as pd

    return bool(np.isinf(pd.to_numeric(values, errors="coerce").astype(float)).all())


def learn_numbers(numbers: "pd.Series") -> dict[str, Any]:
    """The median, to fill in; mean and deviation, to scale with."""
    from sklearn.impute import SimpleImputer
    from sklearn.preprocessing import StandardScaler

    values = numbers.to_numpy(dtype=float)[:, None]
    imputer, scaler = SimpleImputer(strategy="median"), StandardScaler()
    scaler.fit(imputer.fit_transform(values))
    learned = dict(fill=imputer.statistics_[0], mean=scaler.mean_[0], std=scaler.scale_[0])
    flat = scaler.var_[0] == 0  # scikit-learn then scales by 1
    learned["std"] = 0.0 if flat or not np.isfinite(learned["std"]) else learned["std"]
    plain = {key: float(value) for key, value in learned.items()}
    return {"kind": "number", **plain, "missing": bool(numbers.isna().any())}


def learn_categories(values: "pd.Series") -> dict[str, Any]:
    """The categories in order."""
    from sklearn.preprocessing import OneHotEncoder

    encoder = OneHotEncoder().fit(values.dropna().to_numpy(dtype=object)[:, None])
    missing = bool(values.isna().any())
    return {"kind": "category", "categories": encoder.categories_[0].tolist(), "missing": missing}


def width_of(column: dict) -> int:
    """How many inputs a column is."""
    return len(column.get("categories", [0])) + column["missing"]


def encode(table: "pd.DataFrame", columns: list[dict]) -> tuple[Tensor, list[str]]:
    """Rows as inputs (B, N), with what was learned of the columns; and notes on what is new.

    Columns may stand in any order; others than those are left out. Raises SystemExit if one is
    missing. A new category is none of the known ones; text where numbers were counts as missing.
    """
    if lacking := [c["name"] for c in columns if c["name"] not in table.columns]:
        close = [unknown("column", lacking[0], table.columns).partition(": ")[2]] * (
            len(table.columns) <= 3 * SHOWN
        )
        fail(f"the rows have no column {listed([repr(name) for name in lacking])}, which the "
             f"network was trained with{': ' + close[0] if close else ''}")  # fmt: skip
    parts, notes, separator = [], [], table.attrs.get("separator", ",")
    for column in columns:
        name, values = column["name"], table[column["name"]]
        if column["kind"] == "number":
            numbers = as_numbers(values, column["comma"] or comma_of(values, separator))
            strange = values[numbers.isna() & values.notna()]
            scaled = (numbers.fillna(column["fill"]) - column["mean"]) / column["std"]
            parts.append(scaled.clip(-1e6, 1e6).to_numpy(dtype=np.float32)[:, None])
            gone, what = numbers.isna(), "is no number: it counts as missing"
        else:
            codes = values.map({c: i for i, c in enumerate(column["categories"])})
            strange = values[codes.isna() & values.notna()]
            grid = np.arange(len(column["categories"]))
            parts.append((codes.to_numpy(dtype=float)[:, None] == grid).astype(np.float32))
            gone, what = values.isna(), "is new: it counts as none of the known"
        if column["missing"]:
            parts.append(gone.to_numpy(dtype=np.float32)[:, None])
        if gone.any() and not column["missing"] and not len(strange):
            notes.append(f"{name}: {counted(int(gone.sum()), 'empty cell')}, as never in training")
        if len(strange):
            more = f" (and {len(strange) - 1:,} more)" if len(strange) > 1 else ""
            notes.append(f"{name}: {strange.iloc[0]!r} in line {strange.index[0]}{more} {what}")
    return torch.from_numpy(np.concatenate(parts, 1)), notes


# ---------------------------------------------------------------------- targets


def find_target(table: "pd.DataFrame", target: str | None, where: str) -> str:
    """The column to predict: the one named, or the last."""
    if target is None or target in table.columns:
        return target or table.columns[-1]
    message = unknown("column", target, table.columns)
    fail(f"{where}: {message if len(message) < 300 else message.partition('There are')[0]}")


def drop_columns(table: "pd.DataFrame", drop: Sequence[str], target: str, notes: list[str]) -> Any:
    """The table without the columns that --drop names, and those without a name."""
    for name in drop:
        if name not in table.columns:
            fail(f"--drop: {unknown('column', name, table.columns)}")
        if name == target:
            fail(f"--drop {name}: that is the column to predict")
    nameless = [c for c in table.columns if c.startswith("(column ") and c != target]
    nameless = [c for c in nameless if table[c].notna().any()]  # else it is just empty
    if nameless:
        notes.append(f"left out, without a name: {listed(nameless)}")
    return table.drop(columns=[*dict.fromkeys([*drop, *nameless])])


def choose_task(values: "pd.Series", task: str, name: str, separator: str) -> tuple[str, str]:
    """ "classification" or "regression", and how that was told; ends in one line if it can't be."""
    numbers = as_numbers(values, comma_of(values, separator))
    odd, distinct = values[numbers.isna()], values.nunique()
    if distinct < 2:
        fail(f"the column {name!r} has one value, {values.iloc[0]!r}: there is nothing to predict")
    whole = not len(odd) and (numbers == numbers.round()).all()
    how = ""
    if task == "auto":
        task = "classification" if len(odd) or (whole and distinct <= FEW) else "regression"
        what = "text" if len(odd) else "whole numbers" if whole else "numbers"
        how = f"{name} has {distinct:,} different values, {what}: {task}"
    if task == "regression" and len(odd):
        fail(f"--task regression: {name!r} is {odd.iloc[0]!r} in line {odd.index[0]}, no number")
    if task == "regression" and not numbers.std() > 0:
        fail(f"the column {name!r} has one value: there is nothing to predict")
    hint = "" if len(odd) else ": --task regression predicts a number"
    if task == "classification" and distinct > MOST:
        line = f" (line {odd.index[0]} has {odd.iloc[0]!r})" if len(odd) else ""
        fail(f"the column {name!r} has {distinct:,} different values{line}, at most {MOST:,} can "
             f"be classes{hint}")  # fmt: skip
    if task == "classification" and distinct == len(values):
        fail(f"each of the {len(values):,} rows has a class of its own in {name!r}: there is "
             f"nothing to learn{hint}")  # fmt: skip
    return task, how


def classes_of(values: "pd.Series", separator: str) -> list[str]:
    """The classes in order: of numbers by their size."""
    distinct = values.drop_duplicates().sort_values()
    numbers = as_numbers(distinct, comma_of(distinct, separator))
    in_order = distinct if numbers.isna().any() else distinct.iloc[numbers.argsort()]
    return in_order.tolist()


# ---------------------------------------------------------------------- parts


class Part:
    """Rows of a table that aren't encoded yet."""

    def __init__(self, table: "pd.DataFrame"):
        self.table = table

    def __len__(self) -> int:
        return len(self.table)

    def take(self, indices: Tensor) -> "Part":
        """The rows at `indices`."""
        return Part(self.table.iloc[indices.numpy()])


class TableSet:
    """One part of a table, on the device: inputs (B, N) float, and targets (B,).

    Targets are classes, or numbers scaled to mean 0 and deviation 1 by those of the training part.
    """

    def __init__(self, part: str, inputs: Tensor, targets: Tensor, facts: dict, dev: Device):
        self.part, self.facts, self.dev = part, facts, dev
        self.inputs, self.targets = inputs.to(dev.device), targets.to(dev.device)

    def __len__(self) -> int:
        return len(self.inputs)

    def batches(self, batch_size: int) -> Batches:
        """Batches of inputs and targets; the training part is shuffled."""

        def fetch(parts: list[Tensor], _draws: Any, _epoch: int) -> Any:
            for part in parts:
                part = part.to(self.inputs.device)
                yield self.inputs[part], self.targets[part]

        return Batches(len(self), batch_size, self.dev, self.part == "train", fetch)


class Errors:
    """Sums of squares over a part of a table, in the target's own units, over all processes."""

    def __init__(self, part: TableSet, dev: Device):
        self.part, self.dev, self.std = part.part, dev, part.facts["target_std"]
        self.mean, self.count = part.facts["target_mean"], len(part)
        kind = torch.float32 if dev.device.type == "mps" else torch.float64
        self.sums = torch.zeros(3, dtype=kind, device=dev.device)  # of errors², targets, targets²
        self.pairs: list[tuple[Tensor, Tensor]] = []

    def add(self, _loss: Tensor, outputs: Tensor, targets: Tensor) -> None:
        """Of a batch the outputs (B, 1) and the targets (B,)."""
        answers, targets = outputs[:, 0].to(self.sums), targets.to(self.sums)
        errors = (answers - targets).square().sum()
        self.sums += torch.stack([errors, targets.sum(), targets.square().sum()])
        self.pairs.append((answers, targets))

    def metrics(self, picture: Path | None = None) -> dict[str, float]:
        """Mean squared error of scaled targets, its root in units, and the share explained."""
        errors, total, squares = self.dev.sum(self.sums).tolist()
        spread = squares - total**2 / self.count
        if picture and self.dev.main:
            answers, targets = (torch.cat(some).cpu() for some in zip(*self.pairs, strict=True))
            draw_numbers(targets * self.std + self.mean, answers * self.std + self.mean, picture)
        return {
            f"{self.part}_loss": errors / self.count,
            f"{self.part}_rmse": math.sqrt(errors / self.count) * self.std,
            f"{self.part}_r2": 1 - errors / spread if spread > 0 else 0.0,
        }


def draw_numbers(targets: Tensor, answers: Tensor, path: Path) -> None:
    """Predicted over true numbers."""
    from matplotlib.figure import Figure

    from common.plot import save

    figure = Figure(figsize=(4.2, 4), layout="constrained")
    axis = figure.subplots()
    axis.scatter(targets, answers, s=6, alpha=0.4, linewidths=0)
    ends = [float(targets.min()), float(targets.max())]
    axis.plot(ends, ends, color="black", linewidth=1)
    axis.set_xlabel("true")
    axis.set_ylabel("predicted")
    save(figure, path)


def sklearn_table(name: str) -> tuple["pd.DataFrame", str]:
    """A table of scikit-learn's as text, as files are, and the name of its target."""
    from sklearn import datasets

    raw = getattr(datasets, f"load_{name.replace('-', '_')}")(as_frame=True)
    table = raw.frame.astype(str)
    if name != "diabetes":
        table["target"] = [str(raw.target_names[i]) for i in raw.target]
    return table.astype("string"), "target"


def csv_paths(data: str) -> list[Path]:
    """The files of csv:PATH, or of csv:TRAIN,TEST."""
    whole = data.partition(":")[2]
    paths = [whole] if "," not in whole or Path(whole).expanduser().exists() else whole.split(",")
    if len(paths) > 2 or not all(paths):
        fail(f"--data {data}: name one file, or two, csv:TRAIN,TEST")
    return [Path(path).expanduser() for path in paths]


def read_source(args: cli.Flags) -> tuple[Source, str]:
    """The rows that have a target, in their parts, and the name of that column.

    Without a test part of its own a seeded fifth is it. The facts are those of the target.
    """
    import pandas as pd

    notes: list[str] = []
    known = args.stored.get("dataset") or {}  # of the network that goes on, or is measured
    if args.data in SKLEARN:
        table, target = sklearn_table(args.data)
        tables, separator = [table], ","
    else:
        paths = csv_paths(args.data)
        tables = [read_table(path) for path in paths]
        target = find_target(tables[0], known.get("target") or args.target, str(paths[0]))
        if not known and args.target is None:
            notes.append(f"the last column, {target}, is the target: --target names another")
        for path, table in zip(paths[1:], tables[1:], strict=True):
            if lacking := [c for c in tables[0].columns if c not in table.columns]:
                fail(f"{path} has no column {lacking[0]!r}, which {paths[0]} has")
        separator = tables[0].attrs["separator"]
        silent = [notes, []]  # of the second file nothing is said twice
        tables = [drop_columns(t, args.drop or [], target, n) for t, n in zip(tables, silent)]  # noqa: B905
    for number, table in enumerate(tables):
        if gone := int(table[target].isna().sum()):
            notes.append(f"{counted(gone, 'row')} without {target} left out")
            tables[number] = table[table[target].notna()]
    rows = sum(map(len, tables))
    if rows < 2 or not all(map(len, tables)):
        fail(f"--data {args.data}: {counted(rows, 'row')} with a {target}: that is too few")
    every = pd.concat([table[target] for table in tables])
    task = known.get("task") or getattr(args, "task", None) or "auto"
    if known:
        kind, classes = task, known["classes"]
        if strange := sorted(set(every) - set(classes)) if kind == "classification" else []:
            fail(f"--data {args.data}: {target} is {strange[0]!r}, a class that the network wasn't "
                 "trained on")  # fmt: skip
        odd = every[as_numbers(every, comma_of(every, separator)).isna()]
        if kind == "regression" and len(odd):
            fail(
                f"--data {args.data}: {target} is {odd.iloc[0]!r} in line {odd.index[0]}, no number"
            )
    else:
        kind, how = choose_task(every, task, target, separator)
        notes += [how] if how and args.data not in SKLEARN else []
        classes = classes_of(every, separator) if kind == "classification" else []
    parts = [Part(table) for table in tables]
    if len(parts) == 1:
        parts = [parts[0].take(indices) for indices in split(rows, 0.2, 0)]
        notes.append("a seeded fifth is the test part")
    facts = {"kind": "table", "task": kind, "target": target, "separator": separator}
    content = dict(zip(("train", "test"), parts, strict=True))
    return Source(classes, content, "; ".join(notes), facts), target


def load_table(args: cli.Flags, dev: Device) -> tuple[TableSet, TableSet | None, TableSet]:
    """The training, validation (None without --val) and test part of --data."""
    source, target = read_source(args)
    source = open_source(args, dev, {args.data.partition(":")[0]: lambda _: source})
    tables = {name: part.table for name, part in source.parts.items()}
    separator, notes = source.facts.pop("separator"), [source.note]
    known = args.stored.get("dataset") or {}
    numbers = {}
    if source.facts["task"] == "regression":
        comma = comma_of(tables["train"][target], separator)
        numbers = {n: as_numbers(t[target], comma).to_numpy(float) for n, t in tables.items()}
    if known:  # of the network that goes on, or is measured
        facts = {**known}
    else:
        rest = tables["train"].drop(columns=target)
        rest.attrs["separator"] = separator
        facts = source.facts | {"classes": source.classes, "columns": learn(rest, notes)}
        if numbers:
            deviation = float(numbers["train"].std())
            facts |= {"target_mean": float(numbers["train"].mean()), "target_std": deviation or 1.0}
    facts["in_features"] = sum(map(width_of, facts["columns"]))
    sets = {}
    for name, table in tables.items():
        table.attrs["separator"] = separator
        inputs, new = encode(table, facts["columns"])
        notes += [f"{name} part: {note}" for note in new[:SHOWN]]
        if numbers:
            scaled = (numbers[name] - facts["target_mean"]) / facts["target_std"]
            targets = torch.from_numpy(scaled.astype(np.float32))
        else:
            place = {c: i for i, c in enumerate(facts["classes"])}
            targets = torch.tensor([place[value] for value in table[target]])
        sets[name] = TableSet(name, inputs, targets, facts, dev)
    kinds = [column["kind"] for column in facts["columns"]]
    shape = f"{counted(kinds.count('number'), 'number')} and " \
            f"{counted(kinds.count('category'), 'category', 'categories')} a row"  # fmt: skip
    what = named(facts["classes"]) if facts["classes"] else f"{target} to predict"
    say_parts(args, dev, sets, "rows", shape, what)
    for note in filter(None, notes):
        dev.say(f"  {note}")
    return sets["train"], sets.get("val"), sets["test"]
