"""Reading tables: the cells of a CSV file, and what numbers they are.

    table = read_table(path)                              # text, as it stands in the file
    values, comma = sift(table["price"])                  # without cells that say "no value"
    numbers = as_numbers(values, comma or "")

pandas reads them. A point or a comma may be decimal or part thousands: `comma_of` tells which.
Dates are read, too: `format_of` tells how they are written.
"""

import csv
import io
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from common import counted, fail
from common.data.text import read_whole

if TYPE_CHECKING:
    import pandas as pd

SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
EMPTY = ["?", "NaN", "nan"]  # cells without a value, in any column
NO_NUMBER = [*EMPTY, "NA", "N/A", "n/a", "#N/A", "<NA>", "null", "NULL", "None"]  # among numbers
LARGEST = 1e100  # numbers beyond are no measurements: they count as missing, as infinity does
EXACT = 2.0**53  # up to here a float holds every whole number
LARGE = 20 << 20  # bytes that take some seconds to read
GAPS = r"[ \u00a0\u2009\u202f'\u2019]"  # may part thousands, too: 1 234, 1'234
PARTED = rf"[+-]?[1-9]\d{{0,2}}({GAPS}\d{{3}})+([.,]\d+)?"
DATES = {  # as pandas writes them, and in words
    "ISO8601": "year-month-day",
    "%Y/%m/%d": "year/month/day",
    "%d.%m.%Y": "day.month.year",
    "%d/%m/%Y": "day/month/year",
    "%m/%d/%Y": "month/day/year",
    "%d-%m-%Y": "day-month-year",
    "%d %b %Y": "day month year",
    "%d-%b-%Y": "day-month-year",
    "%b %d, %Y": "month day, year",
}
TIMES = ["", " %H:%M", " %H:%M:%S", " %I:%M %p"]  # that may follow
TRIED = 50  # dates that tell which formats may be theirs


# ---------------------------------------------------------------------- files


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


def cut(text: str, separators: str, path: Path) -> tuple[str, list[tuple[int, list[str]]]]:
    """The separator and the rows that it makes.

    It is what cuts all rows into equally many cells; of several, or where none does, what cuts the
    first row into most of them.
    """
    first = next(line for line in text.splitlines() if line.strip())
    widths = {s: len(next(csv.reader([first], delimiter=s))) for s in separators}
    tried = sorted(widths, key=widths.get, reverse=True)  # of equals in order
    for separator in [s for s in tried if widths[s] > 1]:
        rows = records(text, separator, path)
        if len({len(cells) for _, cells in rows}) == 1:
            return separator, rows
    return tried[0], records(text, tried[0], path)


def without_comments(text: str) -> tuple[str, int]:
    """The text with lines that begin with # above the header made blank, and how many there were.

    The last of them is the header itself (#id,name), if it has as many cells as the line below.
    """
    lines = re.match(r"(\s*#.*(\n|$))*", text)[0]
    *_, last = ["", *lines.split("\n")[:-1]]
    below = text[len(lines) :].partition("\n")[0]
    cells = [(last.count(s), below.count(s)) for s in SEPARATORS]
    if re.match(r"#\S", last) and any(a == b > 0 for a, b in cells):
        lines = lines[: -len(last) - 1]
    count = len(re.findall(r"^\s*#", lines, re.MULTILINE))
    return "\n" * lines.count("\n") + text[len(lines) :], count


def read_table(path: Path) -> "pd.DataFrame":
    """A CSV file as text, NaN where a cell is empty; the index is the line.

    Commas, semicolons, tabs or bars separate cells; a first line `sep=;` says which. In `attrs`
    stand the `separator`, whether numbers have a `decimal` comma somewhere, and `notes`.
    """
    import pandas as pd

    if not path.is_file():
        fail(f"{path}: {'a folder' if path.is_dir() else 'there is no such file'}: name a CSV file")
    if path.stat().st_size > LARGE:
        print(f"reading {path}, {path.stat().st_size >> 20} MiB", file=sys.stderr, flush=True)
    text, separators = read_whole(path), "".join(SEPARATORS)
    if said := re.match(r'"?sep=([,;\t|])"?(?=\r?\n)', text):
        text, separators = text[said.end() :], said[1]
    text, comments = without_comments(text)
    if not text.strip():
        fail(f"{path} is empty: its first line has to name the columns")
    separator, ((_, header), *rows) = cut(text, separators, path)
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
    how = dict(sep=separator, dtype="string", header=0, names=names, index_col=False)
    how |= dict(skipinitialspace=True, keep_default_na=False, na_values=[""])
    try:
        table = pd.read_csv(io.StringIO(text), **how)
    except (pd.errors.ParserError, ValueError) as error:
        if "EOF inside string" in str(error):
            fail(f"{path}: a quotation mark in line {rows[-1][0]} is never closed")
        fail(f"{path} is not CSV ({error})")
    if len(table) != len(rows):
        fail(f"{path} is not CSV: a quotation mark is open, or lines are blank but for spaces")
    table = table.apply(lambda column: column.str.strip()).replace("", pd.NA)
    table.index = [line for line, _ in rows]
    table.attrs["separator"] = separator
    skipped = f"{path}: {counted(comments, 'line')} above the header, marked #, skipped"
    table.attrs["notes"] = [skipped] if comments else []
    table.attrs["decimal"] = any(has_decimal_comma(table[name], separator) for name in names)
    return table


# ---------------------------------------------------------------------- numbers


def grouped(values: "pd.Series", mark: str, point: str) -> bool:
    """Whether all numbers with a `mark` may have it for thousands: 1,234 or 12,345,678.9."""
    some = values[values.str.contains(mark, regex=False)]
    pattern = rf"[+-]?[1-9]\d{{0,2}}(\{mark}\d{{3}})+(\{point}\d+)?"
    return len(some) > 0 and bool(some.str.fullmatch(pattern).all())


def surely(values: "pd.Series", mark: str, point: str) -> bool:
    """Whether marks can't be decimal: two in a number, or a `point` behind one."""
    return bool(values.str.contains(rf"\{mark}\d+[\{mark}\{point}]").any())


def comma_of(values: "pd.Series", separator: str, decimal: bool = False, known: str = "") -> str:
    """What a comma and a point in numbers mean; "" where there are points alone, and decimal.

    "thousands": 1,234.5. "decimal": 1,5. "points": 1.234,5 or, in a table with `decimal` commas
    elsewhere, 1.234. In files that commas separate, a column of "1,234" in quotation marks, always
    in groups of three digits, is thousands. `known` is what they meant in training, which decides
    where numbers can be read so.
    """
    values = values.dropna()
    commas = values.str.contains(",", regex=False).any()
    if known == "thousands" and (not commas or grouped(values, ",", ".")):
        return known
    points = grouped(values, ".", ",")
    if known == "points" and (points or not values.str.contains(".", regex=False).any()):
        return known
    if not commas:
        return "points" if points and (decimal or surely(values, ".", ",")) else ""
    if grouped(values, ",", "."):
        plain = values[~values.str.contains(",", regex=False)]
        small = not plain.str.contains(r"\d{4}").any()  # else they would have commas, too
        if surely(values, ",", ".") or (separator == "," and known != "decimal" and small):
            return "thousands"
    return "points" if points else "decimal"


def as_numbers(values: "pd.Series", comma: str = "") -> "pd.Series":
    """Text as numbers, NaN where it is none; `comma` is what `comma_of` says."""
    import pandas as pd

    if values.str.contains(GAPS, regex=True).any():
        parted = values.str.fullmatch(PARTED).fillna(False)
        values = values.mask(parted, values.str.replace(GAPS, "", regex=True))
    if comma in ("decimal", "points"):
        plain = values.str.replace(".", "", regex=False).str.replace(",", ".", regex=False)
        with_comma = values.str.contains(",", regex=False).fillna(False)
        values = plain if comma == "points" else plain.where(with_comma, values)
    elif comma:
        values = values.str.replace(",", "", regex=False)
    numbers = pd.to_numeric(values, errors="coerce").astype(float)
    return numbers.where(numbers.abs() < LARGEST)


def has_decimal_comma(values: "pd.Series", separator: str) -> bool:
    """Whether a column is numbers with decimal commas."""
    values = values[~values.isin(NO_NUMBER)].dropna()
    if not values.str.contains(r"\d,\d").any():
        return False
    comma = comma_of(values, separator)
    return comma != "thousands" and bool(as_numbers(values, comma).notna().all())


def is_infinite(values: "pd.Series") -> bool:
    """Whether all are numbers that no float holds."""
    import pandas as pd

    return bool(np.isinf(pd.to_numeric(values, errors="coerce").astype(float)).all())


def sift(
    values: "pd.Series", separator: str, decimal: bool = False
) -> tuple["pd.Series", str | None]:
    """A column, NaN where a cell says that there is no value; and what a comma means in numbers,
    None if they aren't numbers.

    Among numbers NA, null or None say so; among words they may be one (a country, a class).
    """
    numeric = values.mask(values.isin(NO_NUMBER))
    present = numeric.dropna()
    comma = comma_of(present, separator, decimal)
    numbers = as_numbers(present, comma)
    if numbers.notna().all() or is_infinite(present[numbers.isna()]):
        return numeric, comma
    return values.mask(values.isin(EMPTY)), None


def spell(values: "pd.Series", known: Sequence[str] | None = None) -> "pd.Series":
    """Whole numbers that are spelt in several ways (1, 1.0, 01) in one: as `known`, or as 1."""
    import pandas as pd

    texts = pd.Series(known or values.dropna().unique(), dtype="string")
    numbers = as_numbers(texts)
    whole = (numbers == numbers.round()) & (numbers.abs() <= EXACT)
    ways = texts[whole].groupby(numbers[whole]).agg(list)
    keep = known or all(len(way) == 1 for way in ways)
    one = {n: way[0] if keep else f"{n:.0f}" for n, way in ways.items()}
    found = as_numbers(values).map(one)
    return values.where(found.isna() | values.isin(known or []), found).astype("string")


def style_of(table: "pd.DataFrame") -> tuple[str, bool]:
    """What separates cells in the table's file, and whether it has decimal commas."""
    return table.attrs.get("separator", ","), table.attrs.get("decimal", False)


# ---------------------------------------------------------------------- dates


def as_dates(values: "pd.Series", form: str) -> "pd.Series":
    """Text as dates without a zone, NaT where it is none in the format `form`."""
    import pandas as pd

    return pd.to_datetime(values, format=form, errors="coerce", utc=True).dt.tz_localize(None)


def format_of(values: "pd.Series") -> str | None:
    """How all of these are written as dates: in the first of `DATES`; None if not all are dates."""
    values = values.dropna().drop_duplicates()
    forms = [date if date == "ISO8601" else date + time for date in DATES for time in TIMES]
    for form in dict.fromkeys(forms):
        if len(values) and all(as_dates(v, form).notna().all() for v in (values[:TRIED], values)):
            return form
    return None


def parts_of(dates: "pd.Series") -> dict[str, "pd.Series"]:
    """What a date may tell, as numbers: days since 1970, the month, the day of the week, the hour.

    Monday is 0.
    """
    import pandas as pd

    days = (dates - pd.Timestamp(1970, 1, 1)) / pd.Timedelta(days=1)
    when = dates.dt
    hour = when.hour + when.minute / 60
    return {"days": days, "month": when.month, "weekday": when.day_of_week, "hour": hour}
