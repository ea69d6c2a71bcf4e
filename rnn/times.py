"""A time series in a CSV file: read, put in order, at even steps, without holes.

    series = read_series(path, time_column=None)
    series.values                   # (T, C), float64, no NaN
    series.filled                   # (T, C), where the file has no number
    series.label(range(3))          # how its times are written

What can't be mended, or only by guessing a lot, ends in one line that names the line.
"""

import dataclasses
import re
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from common import counted, fail
from common.data.tables import Table, no_column, read_table

TIME_NAMES = ["date", "time", "timestamp", "datetime", "date_time", "month", "year", "day", "week",
              "hour", "period", "ds", "ts", "quarter"]  # fmt: skip
COUNT_NAMES = ["t", "step"]  # times, too, if they count upwards
MISSING = {"", "na", "n/a", "nan", "null", "none", "-", "?"}
FILLED = "filled with the last before; no forecast is measured there"
FRACTION = {";": re.compile(r"[+-]?[\d.]*,\d+$")}  # else:
POINTED = re.compile(r"[+-]?[\d,]*\.\d+$")
UTC = "+00:00"
MOST_FILLED = 0.1  # of the steps, or of a column's numbers
UNEVEN = 0.2  # of a step, by which neighbours may miss a multiple of it
SECOND, HOUR = 1_000_000, 3_600_000_000  # microseconds
DAY = 24 * HOUR
OFFSET = re.compile(r":\d\d(?:\.\d+)?\s*([+-])(\d\d):?(\d\d)?$")  # of a time from UTC
WORDS = {7 * DAY: "week", DAY: "day", HOUR: "hour", 60 * SECOND: "minute", SECOND: "second"}


@dataclasses.dataclass
class Series:
    """Numbers (T, C) by time and column. `unit` is "month", "weekday", "time" or "row", and the
    T places are `step` of it apart (microseconds, if "time"); `stamps` (T,) are microseconds since
    1970, or the numbers that the file gives. `filled` (T, C) is true where a number was missing."""

    path: Path
    columns: list[str]
    values: np.ndarray
    stamps: np.ndarray
    unit: str
    step: float
    dropped: dict[str, str]  # columns without numbers, with the first cell that is none
    notes: list[str]
    filled: np.ndarray
    time_name: str = ""  # of the column of times
    zone: str = ""  # written after the times: how far they are from UTC

    @property
    def step_name(self) -> str:
        """The step in words."""
        if self.unit != "time":
            return f"{self.step:g} {self.unit}" + ("s" if self.step != 1 else "")
        whole = ((size, word) for size, word in WORDS.items() if self.step % size == 0)
        size, word = next(whole, (SECOND, "second"))
        return f"{self.step / size:g} {word}" + ("s" if self.step != size else "")

    @property
    def season(self) -> int:
        """The steps of a year, week or day: the shortest of them that is at least two; else 1."""
        cycle = {"month": 12, "weekday": 5, "row": 1}.get(self.unit)
        if self.unit == "time":
            cycle = next(c for c in (DAY, 7 * DAY, 364 * DAY) if c >= 2 * self.step or c > 99 * DAY)
        return max(1, int(cycle // self.step)) if cycle % self.step == 0 else 1

    def label(self, places: Iterable[int]) -> list[str]:
        """The times at places, which may lie beyond the end, as text."""
        last = len(self.stamps) - 1
        known = [self.stamps[min(place, last)] for place in places]
        ahead = [max(0, place - last) for place in places]
        if self.unit == "row":
            return [f"{stamp + n * self.step:g}" for stamp, n in zip(known, ahead, strict=True)]
        stamps = np.array(known).astype(np.int64).astype("datetime64[us]")
        ahead = np.array(ahead)
        if self.unit == "month":
            months = stamps.astype("datetime64[M]") + (ahead * int(self.step)).astype("m8[M]")
            return [str(month) for month in months]
        if self.unit == "weekday":
            days = stamps.astype("datetime64[D]")
            return [str(day) for day in np.busday_offset(days, ahead, roll="forward")]
        stamps = stamps + (ahead * self.step).astype("m8[us]")
        exact = "D" if self.step % DAY == 0 else "m" if self.step % (60 * SECOND) == 0 else "s"
        zone = self.zone if exact != "D" else ""
        return [str(s).replace("T", " ") + zone for s in stamps.astype(f"datetime64[{exact}]")]


def read_series(path: Path, time_column: str | None = None) -> Series:
    """The series in a table with a header, in order and without holes; see `Series`.

    The time's column is the one that is named, or is called so, or holds what can be read as
    times; without any the rows follow one another at even steps. Rows are sorted by time. Up to a
    tenth of steps or numbers may be missing: there the last value before stands in, as one that
    forecasts knows no later one. The notes say so.
    """
    table = read_table(path)
    columns, rows, lines = with_header(table)
    place = time_place(table, columns, rows, time_column)
    notes, names, found, dropped, whole_columns = [], [], [], {}, {}
    fraction = FRACTION.get(table.delimiter, POINTED)
    fractions = any(fraction.match(cell) for row in rows for cell in row)
    for k, name in enumerate(columns):
        if k == place:
            continue
        cells, unsure = plain([row[k] for row in rows], table.delimiter, fractions)
        numbers, bad = as_numbers(cells, ",")
        if unsure is not None:
            notes.append(f"{name}: {rows[unsure][k]} (line {lines[unsure]}) is read as a fraction: "
                         "if points part thousands, take them out")  # fmt: skip
        if bad is not None:
            dropped[name] = f"line {lines[bad]}: {rows[bad][k]!r} is no number"
        elif np.isnan(numbers).all():
            dropped[name] = "it is empty"
        else:
            names.append(name)
            found.append(numbers)
    if not names:
        reason = next((f"; {name}: {why}" for name, why in dropped.items()), "")
        fail(f"{path} has no column of numbers{reason}")
    values = np.stack(found, 1)
    if place is None:
        notes.append("there is no column of times: the rows count as steps")
        stamps, unit, zone = np.arange(len(rows), dtype=np.float64), "row", ""
    else:
        stamps, unit, zone = read_times(path, columns[place], [row[place] for row in rows], lines)
    if zone == UTC:
        notes.append("the times differ in how far they are from UTC: they are told in UTC")
    order = np.argsort(stamps, kind="stable")
    if (falls := np.diff(stamps) < 0).any():
        early = lines[int(falls.argmax()) + 1]
        notes.append(f"the rows are not in order (line {early} is earlier than the one above): "
                     "sorted by time")  # fmt: skip
    stamps, values = stamps[order], values[order]
    lines = [lines[i] for i in order]
    texts = [rows[i][place] if place is not None else "" for i in order]
    unit, step, places = even_steps(path, stamps, unit, lines, texts)
    whole = np.arange(places[-1] + 1)
    if count := len(whole) - len(places):
        where = int((np.diff(places) > 1).argmax())
        missing = (f"{counted(count, 'step')} of {len(whole):,} missing, the first after "
                   f"{texts[where]} (line {lines[where]})")  # fmt: skip
        if count > MOST_FILLED * len(whole):
            fail(f"{path}: {missing}: more than a tenth is not filled; cut the series there")
        notes.append(f"{missing}: {FILLED}")
    for k, name in enumerate(list(names)):
        there = ~np.isnan(values[:, k])
        if count := int((~there).sum()):
            missing = (
                f"{counted(count, 'number')} missing, the first in line {lines[there.argmin()]}"
            )
            if count > MOST_FILLED * len(values):
                dropped[name] = f"{missing}: more than a tenth is not filled"
                continue
            notes.append(f"{name}: {missing}: {FILLED}")
        before = np.searchsorted(places[there], whole, "right") - 1  # -1 before the first
        known = np.isin(whole, places[there])
        whole_columns[name] = values[there, k][before.clip(0)], ~known
    if not whole_columns:
        fail(f"{path}: {next(iter(dropped))}: {next(iter(dropped.values()))}")
    stamps = np.interp(whole, places, stamps)
    values, filled = (np.stack(some, 1) for some in zip(*whole_columns.values(), strict=True))
    time_name = "" if place is None else columns[place]
    return Series(path, list(whole_columns), values, stamps, unit, step, dropped, notes, filled,
                  time_name, zone)  # fmt: skip


def with_header(table: Table) -> tuple[list[str], list[list[str]], list[int]]:
    """The columns' names, and the rows with their lines. Without a header they are numbered."""
    if len(table.rows) < 2:
        fail(f"{table.path} has one row: a series needs a header, and rows of numbers below it")
    numeric = [as_numbers([row[k] for row in table.rows[1:3]], table.delimiter)[1] is None
               for k in range(len(table.rows[0]))]  # fmt: skip
    first = [as_numbers([cell], table.delimiter)[1] is None for cell in table.rows[0]]
    above = zip(numeric, first, strict=True)
    if any(below and not head for below, head in above) or not any(first):
        names = [name or f"column {k}" for k, name in enumerate(table.rows[0], 1)]
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            fail(f"{table.path}: line {table.lines[0]} names the column {twice} twice")
        return names, table.rows[1:], table.lines[1:]
    return [f"column {k}" for k in range(1, len(first) + 1)], table.rows, table.lines


def time_place(
    table: Table, columns: Sequence[str], rows: Sequence[Sequence[str]], wanted: str | None
) -> int | None:
    """Where the times stand: in the column that is wanted, named so, or that reads as times."""
    if wanted is not None:
        return columns.index(wanted) if wanted in columns else no_column(
            table.path, "--time-column", wanted, columns)  # fmt: skip
    lower = [name.lower() for name in columns]
    named = [lower.index(name) for name in TIME_NAMES if name in lower]
    if named or len(columns) == 1:
        return min(named, default=None)
    cells = rows[0]
    for k, cell in enumerate(cells):
        number = as_numbers([cell], table.delimiter)[1] is None
        if not number and not np.isnat(parse([cell])[0]):
            return k
    for k in (lower.index(name) for name in COUNT_NAMES if name in lower):
        numbers, bad = as_numbers([row[k] for row in rows], table.delimiter)
        if bad is None and (np.diff(numbers) > 0).all() and (numbers % 1 == 0).all():
            return k
    return None


def plain(
    cells: Sequence[str], delimiter: str, fractions: bool = False
) -> tuple[list[str], int | None]:
    """Cells without marks between thousands, with points before fractions.

    Between semicolons a comma is before a fraction and points part thousands, else the other way
    round. But 1.234 may be one and a bit there, too: points part thousands if all cells that have
    any look so, and one has two points or a comma, or the table has other `fractions`. Where only
    the first holds, the place of such a cell is returned, too.
    """
    mark, point = (".", ",") if delimiter == ";" else (",", ".")
    groups = re.compile(rf"[+-]?[1-9]\d{{0,2}}((\{mark}\d{{3}})+)(\{point}\d+)?")
    marked = [(k, groups.fullmatch(cell)) for k, cell in enumerate(cells) if mark in cell]
    unsure = None
    if marked and all(match for _, match in marked):
        if fractions or any(len(match[1]) > 4 or match[3] for _, match in marked):
            cells = [cell.replace(mark, "") for cell in cells]
        elif mark == ".":
            unsure = marked[0][0]
    if point == ",":
        cells = [cell.replace(",", ".") if cell.count(",") == 1 else cell for cell in cells]
    return list(cells), unsure


def as_numbers(cells: Sequence[str], delimiter: str) -> tuple[np.ndarray, int | None]:
    """Numbers, NaN where one is missing, and the place of the first cell that is none."""
    import pandas

    cells = plain(cells, delimiter)[0]
    empty = np.array([cell.lower() in MISSING for cell in cells])
    numbers = pandas.to_numeric(pandas.Series(cells, dtype=object), errors="coerce")
    numbers = numbers.to_numpy(np.float64, na_value=np.nan)
    bad = ~empty & ~(np.abs(numbers) < 1e30)
    numbers = np.where(empty, np.nan, numbers)
    return numbers, int(bad.argmax()) if bad.any() else None


def parse(cells: Sequence[str], day_first: bool = False) -> np.ndarray:
    """Times as datetime64[us] (of UTC, where a zone is given), NaT for what is none."""
    import pandas

    if all(re.fullmatch(r"[A-Za-z]{3,4}\.?[- ]\d\d", cell) for cell in cells):  # Jan-90
        cells = [f"{cell[:3]} {cell[-2:]}" for cell in cells]
        times = pandas.to_datetime(list(cells), errors="coerce", format="%b %y")
        return times.to_numpy().astype("datetime64[us]")
    how = dict(errors="coerce", utc=True, format="mixed", dayfirst=day_first)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        times = pandas.DatetimeIndex(pandas.to_datetime(list(cells), **how))
    return times.tz_localize(None).to_numpy().astype("datetime64[us]")


def read_times(
    path: Path, name: str, cells: Sequence[str], lines: Sequence[int]
) -> tuple[np.ndarray, str, str]:
    """Microseconds since 1970, and "time"; or plain numbers, and "row"; and the times' offset.

    03/04/2020 is read in the order that makes steps more even; a number may be a year, or seconds
    (milliseconds) since 1970. Times with offsets from UTC are taken as clocks showed them; but if
    the offsets differ, in UTC where that makes steps more even.
    """
    numbers, bad = as_numbers(cells, ",")
    if bad is None and not np.isnan(numbers).any():
        if numbers.min() >= 1e8:
            return numbers * (SECOND if numbers.max() < 1e11 else 1000), "time", ""
        years = (numbers % 1 == 0).all() and numbers.min() >= 1000 and numbers.max() < 3000
        if not years and not all(re.fullmatch(r"[12]\d{7}", cell) for cell in cells):
            return numbers, "row", ""
    found = [parse(cells)]
    if all(re.match(r"\s*\d\d?[./-]\d\d?[./-]\d", cell) for cell in cells if cell):
        found.append(parse(cells, day_first=True))
        found.sort(key=unevenness)
    zone, signs = "", [OFFSET.search(cell) for cell in cells]
    if any(signs):
        minutes = [60 * int(s[1] + s[2]) + int(s[1] + (s[3] or "0")) if s else 0 for s in signs]
        shown = found[0] + np.array(minutes).astype("m8[m]")
        if len(set(minutes)) == 1:
            sign, hours, rest = signs[0].groups("00")
            found, zone = [shown], f"{sign}{hours}:{rest}"
        elif unevenness(shown) <= unevenness(found[0]):
            found = [shown]
        else:
            zone = UTC
    if (none := np.isnat(found[0])).any():
        where = int(none.argmax())
        fail(f"{path}: line {lines[where]}: {name} is {cells[where]!r}, which is no time")
    return found[0].astype(np.int64).astype(np.float64), "time", zone


def unevenness(times: np.ndarray) -> tuple[int, int]:
    """How many of the times are none, and how many steps differ from the usual one."""
    there = np.sort(times[~np.isnat(times)]).astype(np.int64).astype(np.float64)
    steps = np.diff(ticks_of(there)[1]) if len(there) > 1 else np.zeros(1)
    return int(np.isnat(times).sum()), int((steps != np.median(steps)).sum())


def ticks_of(stamps: np.ndarray) -> tuple[str, np.ndarray]:
    """The unit in which times, in order, are evenly apart, and their numbers in it.

    Months are of unequal length; some series have no Saturdays and Sundays.
    """
    times = stamps.astype(np.int64).astype("datetime64[us]")
    days = times.astype("datetime64[D]")
    usual = np.median(np.diff(stamps))
    if usual >= 27 * DAY:
        return "month", times.astype("datetime64[M]").astype(np.float64)
    if usual == DAY and np.is_busday(days).all() and len(days) > 5:
        return "weekday", np.busday_count(days[0], days).astype(np.float64)
    return "time", stamps


def even_steps(
    path: Path, stamps: np.ndarray, unit: str, lines: Sequence[int], texts: Sequence[str]
) -> tuple[str, float, np.ndarray]:
    """The unit, the usual step, and how many steps from the first each row stands."""
    if len(stamps) < 3:
        fail(f"{path} has {counted(len(stamps), 'row')}: that is no series")
    if (same := np.diff(stamps) == 0).any():
        where = int(same.argmax())
        pair = sorted(lines[where : where + 2])
        back = pair[1] == pair[0] + 1 and re.search(r"\b0?[0-3]:\d\d", texts[where])
        hint = "; where clocks went back an hour, write the times in UTC" if back else ""
        fail(f"{path}: the lines {pair[0]} and {pair[1]} have the same time, {texts[where]}: a "
             f"series has one row for each{hint}")  # fmt: skip
    unit, ticks = ticks_of(stamps) if unit == "time" else (unit, stamps)
    step = float(np.median(np.diff(ticks)))
    ratio = np.diff(ticks) / (step or 1)
    steps = ratio.round()
    if (uneven := (np.abs(ratio - steps) > UNEVEN) | (steps < 1)).any():
        where = int(uneven.argmax())
        fail(f"{path}: from line {lines[where]} to {lines[where + 1]} the time goes on by "
             f"{ratio[where]:.3g} of the usual steps: bring the series to even steps")  # fmt: skip
    return unit, step, np.concatenate([[0], steps.cumsum()]).astype(np.int64)
