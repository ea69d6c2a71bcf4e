"""Tables of the user's, CSV or TSV: cells, and the lines in which they stand."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn

from common import counted, fail, nearest
from common.data.text import read_lines

DELIMITERS = {"\t": "tab", ";": "semicolon", ",": "comma", "|": "bar"}


class Table(NamedTuple):
    """Rows of equally many cells; the first may be a header."""

    path: Path
    rows: list[list[str]]
    lines: list[int]  # where each row ends in the file
    delimiter: str


def read_table(path: Path) -> Table:
    """The cells of a UTF-8 file, which may be gzipped; empty lines are skipped.

    What parts the cells is found out: it makes rows of one width. A .tsv has tabs. Tabs know no
    quotation marks, as sentences hold single ones; else cells may be quoted. Tabs at the ends of
    lines, where no row has a cell, part nothing. A file that is missing or empty, not UTF-8 or of
    rows of different widths ends in one line that names the place.
    """
    lines = read_lines(path, table=True)
    tsv = path.name.lower().removesuffix(".gz").endswith(".tsv")
    for delimiter in ["\t"] if tsv else DELIMITERS:
        table = split_lines(path, lines, delimiter)
        if isinstance(table, Table) and len(table.rows[0]) > 1:
            return table
    delimiter = "\t" if tsv else max(DELIMITERS, key=lines[0].count)
    table = split_lines(path, lines, delimiter)
    return table if isinstance(table, Table) else fail(table)


def split_lines(path: Path, lines: Sequence[str], delimiter: str) -> Table | str:
    """The table; or the complaint, if it is none with this delimiter."""
    quoting = csv.QUOTE_NONE if delimiter == "\t" else csv.QUOTE_MINIMAL
    how = dict(delimiter=delimiter, quoting=quoting, skipinitialspace=True, strict=True)
    reader = csv.reader((line + "\n" for line in lines), **how)
    rows, numbers = [], []
    try:
        for cells in reader:
            cells = [bare(cell.strip()) for cell in cells]
            if any(cells):
                rows.append(cells)
                numbers.append(reader.line_num)
    except csv.Error as error:
        return f"{path}: line {reader.line_num} is not CSV ({error})"
    if not rows:
        return f"{path} is empty: it needs rows of cells"
    if delimiter == "\t":
        width = max(k for cells in rows for k, cell in enumerate(cells, 1) if cell)
        rows = [cells[:width] for cells in rows]
    for cells, number in zip(rows, numbers, strict=True):
        if len(cells) != len(rows[0]):
            return (
                f"{path}: line {number} has {counted(len(cells), 'cell')}, not the {len(rows[0])} "
                f"of line {numbers[0]}, with a {DELIMITERS[delimiter]} between cells"
            )
    return Table(path, rows, numbers, delimiter)


def bare(cell: str) -> str:
    """A cell without quotation marks around it. Where others are inside that aren't doubled, as in
    "A" and "B", all are the cell's own."""
    inner = cell[1:-1]
    quoted = len(cell) > 1 and cell[0] == cell[-1] == '"' and '"' not in inner.replace('""', "")
    return inner if quoted else cell


def no_column(path: Path, flag: str, name: str, columns: Sequence[str]) -> NoReturn:
    """Fails for a column that isn't there, with the nearest that is."""
    near = nearest(name, columns)
    hint = f"did you mean {near}? There" if near else "there"
    shown = ", ".join(columns[:20]) + (", …" if len(columns) > 20 else "")
    fail(f"{flag} {name}: {path} has no such column; {hint} are {shown}")
