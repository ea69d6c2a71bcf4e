"""Tables: those of scikit-learn, and the user's own CSV files.

    train, val, test = load_table(args, dev)
    inputs = encode(read_table(path), facts["columns"])[0]     # of new rows

pandas reads them, scikit-learn's transformers learn from the training set how to scale numbers,
what to fill in and which categories there are. What they learned stands in `facts["columns"]` as
plain values, travels in the checkpoint, and is all that `encode` needs.
"""

import math
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
from mlp.reading import (
    DATES,
    EMPTY,
    NO_NUMBER,
    as_dates,
    as_numbers,
    comma_of,
    format_of,
    grouped,
    parts_of,
    read_table,
    sift,
    spell,
    style_of,
)

if TYPE_CHECKING:
    import pandas as pd

SKLEARN = ("iris", "wine", "breast-cancer", "diabetes")
TABLES = [*SKLEARN, "csv:PATH"]
MOST = 1000  # categories of a column, and classes
FEW_VALUES = 10  # so many different whole numbers are classes, more are a quantity
SHOWN = 6  # names in a line


def listed(names: Sequence[str]) -> str:
    """Some names in a line, and how many more there are."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(map(str, names[:SHOWN])) + more


# ---------------------------------------------------------------------- what is learned of columns


def learn(table: "pd.DataFrame", notes: list[str]) -> list[dict]:
    """What is to be known of each column of the training set, as plain values.

    Of numbers `fill`, `mean` and `std`; of dates these of their `parts`; of categories their names;
    `missing` says whether cells are empty, which is then an input of its own. Columns that tell
    nothing are left out, and `notes` say so.
    """
    columns, gone, holes, unsure = [], {"empty": [], "constant": []}, {}, []
    for name in table.columns:
        values, comma = sift(table[name], *style_of(table))
        present = values.dropna()
        if present.nunique() < 2:
            gone["constant" if len(present) else "empty"].append(name)
            continue
        if comma is not None:
            column = {"comma": comma} | learn_numbers(as_numbers(values, comma))
            if not column["std"] > 0:
                gone["constant"].append(name)
                continue
            if doubtful(present, comma, table):
                unsure.append(name)
        elif form := format_of(values.mask(values.isin(NO_NUMBER))):
            values = values.mask(values.isin(NO_NUMBER))
            column = {"format": form} | learn_dates(as_dates(values, form))
            words = next(words for date, words in DATES.items() if form.startswith(date))
            notes.append(f"{name} is read as dates, {words}: {', '.join(column['parts'])}")
        else:
            column = learn_categories(spell(values))
            numbers, what = as_numbers(present, comma_of(present, *style_of(table))), "numbers"
            if numbers.isna().mean() > 0.5 and (form := format_of(present[:1])):
                numbers, what = as_dates(present, form), "dates"
            odd = present[numbers.isna() & ~present.isin(NO_NUMBER)].sort_index()
            number, example = len(column["categories"]), f"line {odd.index[0]} has {odd.iloc[0]!r}"
            if number > MOST:
                fail(
                    f"the column {name!r} is text with {number:,} different values ({example}), at "
                    f"most {MOST:,} can be categories: leave it out with --drop {name!r}"
                )
            if (share := numbers.notna().mean()) >= 0.5:
                notes.append(f"{name} is taken for categories: {share:.0%} of it are {what}, but "
                             f"{example}")  # fmt: skip
            elif number > FEW_VALUES and present.str.contains(r"\d").mean() >= 0.5:
                notes.append(f"{name} is taken for {number:,} categories: {example}, no number")
        holes[name] = int(values.isna().sum())
        columns.append({"name": name, **column})
    if any(holes.values()):
        shown = listed([f"{name} ({count:,})" for name, count in holes.items() if count])
        notes.append(f"empty cells, marked as such, numbers filled with the median: {shown}")
    if unsure:
        notes.append(
            f"points are taken for decimal, 1.234 for little more than 1: {listed(unsure)}"
        )
    for why, names in gone.items():
        if names:
            notes.append(f"left out, {why}: {listed(names)}")
    if not columns:
        fail("no column is left to learn from: all are empty or constant in the training set")
    return columns


def doubtful(values: "pd.Series", comma: str, table: "pd.DataFrame") -> bool:
    """Whether points that were read as decimal may be for thousands, as nothing tells."""
    return comma == "" and style_of(table)[0] == ";" and grouped(values.dropna(), ".", ",")


def learn_numbers(numbers: "pd.Series") -> dict[str, Any]:
    """The median, to fill in; mean and standard deviation, to scale with."""
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


def learn_dates(dates: "pd.Series") -> dict[str, Any]:
    """The same of what dates may tell, but for what is the same in all."""
    parts = {part: learn_numbers(numbers) for part, numbers in parts_of(dates).items()}
    parts = {part: learned for part, learned in parts.items() if learned["std"] > 0}
    return {"kind": "date", "parts": parts, "missing": bool(dates.isna().any())}


def learn_categories(values: "pd.Series") -> dict[str, Any]:
    """The categories in order."""
    from sklearn.preprocessing import OneHotEncoder

    encoder = OneHotEncoder().fit(values.dropna().to_numpy(dtype=object)[:, None])
    missing = bool(values.isna().any())
    return {"kind": "category", "categories": encoder.categories_[0].tolist(), "missing": missing}


def width_of(column: dict) -> int:
    """How many inputs a column is."""
    return len(column.get("categories") or column.get("parts") or [0]) + column["missing"]


def scale(numbers: "pd.Series", learned: dict) -> np.ndarray:
    """Numbers filled in and scaled as inputs (B, 1)."""
    scaled = (numbers.fillna(learned["fill"]) - learned["mean"]) / learned["std"]
    return scaled.clip(-1e6, 1e6).to_numpy(dtype=np.float32)[:, None]


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
    parts, notes = [], []
    for column in columns:
        name, values = column["name"], table[column["name"]]
        if column["kind"] == "number":
            values = values.mask(values.isin(NO_NUMBER))
            comma = comma_of(values, *style_of(table), column["comma"])
            numbers = as_numbers(values, comma)
            strange = values[numbers.isna() & values.notna()]
            parts.append(scale(numbers, column))
            gone, what = numbers.isna(), "is no number: it counts as missing"
        elif column["kind"] == "date":
            values = values.mask(values.isin(NO_NUMBER))
            dates = as_dates(values, column["format"])
            if dates.isna().all():  # another file, written another way
                dates = as_dates(values, format_of(values) or "ISO8601")
            strange = values[dates.isna() & values.notna()]
            numbers = parts_of(dates)
            parts += [scale(numbers[part], learned) for part, learned in column["parts"].items()]
            gone, what = dates.isna(), "is no such date: it counts as missing"
        else:
            values = spell(values.mask(values.isin(EMPTY)), column["categories"])
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
    """The column to predict: the one named, or the last that has a name."""
    if target is None:
        named = [name for name in table.columns if not name.startswith("(column ")]
        return (named or table.columns)[-1]
    if target in table.columns:
        return target
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
    line = f"line {odd.index[0]} has {odd.iloc[0]!r}" if len(odd) else ""
    how = ""
    if task == "auto":
        if len(odd) and len(odd) <= len(values) / 2 and numbers.nunique() > FEW_VALUES:
            fail(f"{name!r} is numbers, but {line}: mend or empty the cell, or take --task "
                 "classification")  # fmt: skip
        task = "classification" if len(odd) or (whole and distinct <= FEW_VALUES) else "regression"
        what = "text" if len(odd) else "whole numbers" if whole else "numbers"
        what += f" ({line})" if len(odd) and distinct > FEW_VALUES else ""
        how = f"{name} has {distinct:,} different values, {what}: {task}"
    if task == "regression" and len(odd):
        fail(f"--task regression: {name!r} is {odd.iloc[0]!r} in line {odd.index[0]}, no number")
    if task == "regression" and not numbers.std() > 0:
        fail(f"the column {name!r} has one value: there is nothing to predict")
    hint = f" ({line}, no number)" if line else ": --task regression predicts a number"
    if task == "classification" and distinct > MOST:
        fail(f"the column {name!r} has {distinct:,} different values, at most {MOST:,} can be "
             f"classes{hint}")  # fmt: skip
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

    Targets are classes, or numbers scaled to mean 0 and std 1 by those of the training set.
    """

    def __init__(self, part: str, inputs: Tensor, targets: Tensor, facts: dict, dev: Device):
        self.part, self.facts, self.dev = part, facts, dev
        self.inputs, self.targets = inputs.to(dev.device), targets.to(dev.device)

    def __len__(self) -> int:
        return len(self.inputs)

    def batches(self, batch_size: int) -> Batches:
        """Batches of inputs and targets; the training set is shuffled."""

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
        if picture:
            pairs = [torch.cat(some).cpu() for some in zip(*self.pairs, strict=True)]
            every = zip(*self.dev.gather(pairs), strict=True)
            answers, targets = (torch.cat(some) * self.std + self.mean for some in every)
            if self.dev.main:
                draw_numbers(targets, answers, picture)
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


def note_header(table: "pd.DataFrame") -> list[str]:
    """A note, where the first line looks like a row; names that count, 0, 1, 2, are names."""
    import pandas as pd

    numbers = as_numbers(pd.Series(table.columns, dtype="string")).dropna().tolist()
    if numbers and numbers != [numbers[0] + step for step in range(len(numbers))]:
        return [f"the first line is taken for the names of the columns: {listed(table.columns)}"]
    return []


def with_target(table: "pd.DataFrame", target: str, notes: list[str]) -> "pd.DataFrame":
    """The rows that have a target, numbers among these with a decimal point and nothing else."""
    values, comma = sift(table[target], *style_of(table))
    if (gone := values.isna()).any():
        line, word = gone.idxmax(), table[target][gone].iloc[0]
        what = f"line {line} has {word!r}" if isinstance(word, str) else f"line {line} has none"
        notes.append(f"{counted(int(gone.sum()), 'row')} without {target} left out ({what})")
    if comma is not None and doubtful(values, comma, table):
        notes.append(f"points are taken for decimal, 1.234 for little more than 1: {target}")
    if comma:
        numbers = as_numbers(values, comma)
        values = values.where(numbers.isna(), numbers.map(repr))
    if len(words := values[values.isin(NO_NUMBER)]):
        notes.append(f"{words.iloc[0]!r} in line {words.index[0]} is taken for a {target}")
    table = table[~gone].copy()
    table[target] = values[~gone]
    return table


def read_source(args: cli.Flags) -> tuple[Source, str]:
    """The rows that have a target, in their parts, and the name of that column.

    Without a test set of its own a seeded fifth is it. The facts are those of the target.
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
        notes += [note for table in tables for note in table.attrs["notes"]]
        target = find_target(tables[0], known.get("target") or args.target, str(paths[0]))
        if not known and args.target is None:
            notes.append(f"the last column, {target}, is the target: --target names another")
        for path, table in zip(paths[1:], tables[1:], strict=True):
            if lacking := [c for c in tables[0].columns if c not in table.columns]:
                fail(f"{path} has no column {lacking[0]!r}, which {paths[0]} has")
        separator = tables[0].attrs["separator"]
        notes += note_header(tables[0])
        silent = [notes, []]  # of the second file nothing is said twice
        pairs = zip(tables, silent, strict=False)
        tables = [drop_columns(t, args.drop or [], target, said) for t, said in pairs]
    tables = [with_target(table, target, notes) for table in tables]
    rows = sum(map(len, tables))
    if rows < 2 or not all(map(len, tables)):
        why = next((f" ({note})" for note in notes if f"without {target} left out" in note), "")
        fail(f"--data {args.data}: {counted(rows, 'row')} with a {target}: that is too few{why}")
    every = spell(pd.concat([table[target] for table in tables]), known.get("classes"))
    first = len(tables[0])
    for table, values in zip(tables, (every.iloc[:first], every.iloc[first:]), strict=False):
        table[target] = values.array
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
        own = set(tables[0][target])  # of the training set, if a file is the test set
        if strange := [c for c in classes if c not in own]:
            fail(f"--data {args.data}: the test set has the class {strange[0]!r}, which the "
                 f"training set has not ({listed(sorted(own))})")  # fmt: skip
    parts = [Part(table) for table in tables]
    if len(parts) == 1:
        parts = [parts[0].take(indices) for indices in split(rows, 0.2, 0)]
        notes.append("a seeded fifth is the test set")
    facts = {"kind": "table", "task": kind, "target": target, "separator": separator}
    content = dict(zip(("train", "test"), parts, strict=True))
    return Source(classes, content, "; ".join(notes), facts), target


def load_table(args: cli.Flags, dev: Device) -> tuple[TableSet, TableSet | None, TableSet]:
    """The training, validation (None without --val) and test set of --data."""
    source, target = read_source(args)
    source = open_source(args, dev, {args.data.partition(":")[0]: lambda _: source})
    tables = {name: part.table for name, part in source.parts.items()}
    source.facts.pop("separator")
    notes = [source.note]
    known = args.stored.get("dataset") or {}
    numbers = {}
    if source.facts["task"] == "regression":
        numbers = {n: as_numbers(t[target]).to_numpy(float) for n, t in tables.items()}
    if known:  # of the network that goes on, or is measured
        facts = {**known}
    else:
        rest = tables["train"].drop(columns=target)
        facts = source.facts | {"classes": source.classes, "columns": learn(rest, notes)}
        if numbers:
            deviation = float(numbers["train"].std())
            facts |= {"target_mean": float(numbers["train"].mean()), "target_std": deviation or 1.0}
        counts = tables["train"][target].value_counts()
        if rare := [c for c in facts["classes"] if counts.get(c, 0) < 2]:
            rows = [f"{c} ({counts.get(c, 0)})" for c in rare]
            notes.append(f"classes with too few rows to train on: {listed(rows)}")
    facts["in_features"] = sum(map(width_of, facts["columns"]))
    sets = {}
    for name, table in tables.items():
        inputs, new = encode(table, facts["columns"])
        notes += [f"{name} set: {note}" for note in new[:SHOWN]]
        if numbers:
            scaled = (numbers[name] - facts["target_mean"]) / facts["target_std"]
            targets = torch.from_numpy(scaled.astype(np.float32))
        else:
            place = {c: i for i, c in enumerate(facts["classes"])}
            targets = torch.tensor([place[value] for value in table[target]])
        sets[name] = TableSet(name, inputs, targets, facts, dev)
    kinds = [column["kind"] for column in facts["columns"]]
    words = [("number",), ("date",), ("category", "categories")]
    shape = " and ".join(counted(kinds.count(w[0]), *w) for w in words if w[0] in kinds) + " a row"
    what = named(facts["classes"]) if facts["classes"] else f"{target} to predict"
    say_parts(args, dev, sets, "rows", shape, what)
    for note in filter(None, notes):
        dev.say(f"  {note}")
    return sets["train"], sets.get("val"), sets["test"]
