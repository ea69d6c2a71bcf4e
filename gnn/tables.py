"""The user's own graphs, in CSV tables; mistakes end in one line that names file and line.

One graph, whose nodes have classes (`--data graph:PATH`), is a folder with

    nodes.csv    id,label,split,word1,word2,...    label may be empty; split is train, val or test
    edges.csv    source,target                     names of nodes; each edge counts both ways

and many graphs, with a class each (`--data graphs:PATH`), one with

    graphs.csv   id,label,split
    nodes.csv    graph,id,weight,charge,...        all but the first two are features
    edges.csv    graph,source,target               without graph, if no two nodes share their id

The columns may stand in any order: features are taken in that of their names. `split` and the
features may be left out. Semicolons or tabs may part the cells, too.
"""

import contextlib
import dataclasses
import math
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from common import counted, fail
from common.data.tables import read_table
from gnn.sets import Graph, by_degree

MOST_WITHOUT_FEATURES = 20_000  # nodes: as many features of their own each take 1.6 GB


@dataclasses.dataclass
class Tables:
    """What a folder holds; labels, splits and lines are of nodes, or of graphs if there are many.

    Cells that are empty are "". The graph's labels are all -1.
    """

    path: Path  # of the table in which the labels stand
    graph: Graph
    labels: list[str]
    splits: list[str]
    lines: list[int]
    columns: list[str]  # names of the features, if there are some


def tidy(text: str) -> str:
    """Text without blanks around it, in Unicode's normal form C: so that equal names are equal."""
    return unicodedata.normalize("NFC", text.strip())


def read_rows(path: Path, *needed: str) -> Iterator[tuple[int, dict[str, str]]]:
    """The rows of a table with their line numbers: cells by the names of their columns.

    Those names are in lower case, each once, `needed` ones among them; rows are of one width.
    """
    table = read_table(path)
    names = [tidy(name).lower() for name in table.rows[0]]
    if not set(needed) <= set(names) or len(set(names)) < len(names):
        fail(f"{path}: line {table.lines[0]} has to name the columns, each once, "
             f"{','.join(needed)} among them: it has {cut(','.join(names))!r}")  # fmt: skip
    for line, cells in zip(table.lines[1:], table.rows[1:], strict=True):
        yield line, dict(zip(names, map(tidy, cells), strict=True))


def cut(text: str, most: int = 60) -> str:
    """The beginning of a long text."""
    return text if len(text) <= most else text[:most] + "..."


def read_tables(root: Path, many: bool = False, facts: Mapping | None = None) -> Tables:
    """The graph, or with `many` the graphs, in a folder.

    Without columns of features each node of one graph gets a feature of its own; of many graphs it
    is the number of its neighbours. `facts` are those of the data that a network was trained on,
    if it is to see these: columns have to be as they were there, and features of names are mapped.
    """
    nodes_path, graphs_path = root / "nodes.csv", root / "graphs.csv"
    if not root.is_dir():
        others = "graphs.csv, nodes.csv" if many else "nodes.csv"
        fail(f"{root} is not a folder: it needs {others} and edges.csv")
    heads = list(read_rows(graphs_path, "id")) if many else []
    graphs = places(graphs_path, ((line, row["id"]) for line, row in heads)) if many else {"": 0}
    rows = list(read_rows(nodes_path, *(["graph", "id"] if many else ["id"])))
    for path, found, what in ((graphs_path, graphs, "graphs"), (nodes_path, rows, "nodes")):
        if not found:
            fail(f"{path} has no {what} below its header")
    if many:
        for line, row in rows:
            if row["graph"] not in graphs:
                fail(f"{nodes_path}: line {line}: there is no graph {row['graph']!r} among the "
                     f"{len(graphs):,} of graphs.csv")  # fmt: skip
        rows.sort(key=lambda numbered: graphs[numbered[1]["graph"]])
        filled = {row["graph"] for _, row in rows}
        for line, row in heads:
            if row["id"] not in filled:
                fail(f"{graphs_path}: line {line}: the graph {row['id']!r} has no node in "
                     "nodes.csv")  # fmt: skip
    place = places(nodes_path, ((line, (r.get("graph"), r["id"])[not many :]) for line, r in rows))
    columns = sorted(rows[0][1].keys() - ({"graph", "id"} if many else {"id", "label", "split"}))
    edges = read_edges(root / "edges.csv", rows, place, many)
    if columns:
        values = [[number(row[c], nodes_path, line, c) for c in columns] for line, row in rows]
        features = torch.tensor(values)
    elif many:
        features = by_degree(edges, len(rows))
    else:
        known = facts.get("names") if facts and not facts.get("columns") else None
        features = features_of_names(nodes_path, rows, known)
    graph_of = torch.tensor([graphs[row["graph"]] for _, row in rows]) if many else None
    told = heads if many else rows
    names = [row["id"] for _, row in told]
    graph = Graph(features, edges, torch.full((len(told),), -1), graph_of, names)
    labels, splits = ([row.get(name, "") for _, row in told] for name in ("label", "split"))
    lines = [line for line, _ in told]
    found = Tables(graphs_path if many else nodes_path, graph, labels, splits, lines, columns)
    if facts:
        check_columns(found, facts, many)
    return found


def places(path: Path, names: Iterator[tuple[int, str | tuple]]) -> dict[str | tuple, int]:
    """The place of each name; none may be missing, or there twice."""
    place: dict[str | tuple, int] = {}
    for line, name in names:
        own = name[-1] if isinstance(name, tuple) else name
        if not own or name in place:
            fail(f"{path}: line {line}: the id {own!r} is {'there twice' if own else 'missing'}")
        place[name] = len(place)
    return place


def read_edges(path: Path, rows: list, place: Mapping[tuple, int], many: bool) -> Tensor:
    """The edges (2, E), each once and turned round, too."""
    from torch_geometric.utils import to_undirected

    sides, alone, graphs = [], {}, [row.get("graph") for _, row in rows]
    for _, row in rows if many else ():  # who is meant where edges.csv names no graph
        alone[row["id"]] = None if row["id"] in alone else place[row["graph"], row["id"]]
    for line, row in read_rows(path, "source", "target"):
        within = many and "graph" in row
        if strange := sorted(row.keys() - {"source", "target", *(["graph"] * many)}):
            fail(f"{path}: line 1 has the column {strange[0]!r}: an edge has source and target"
                 f"{' and perhaps graph' if many else ''} alone")  # fmt: skip
        ends = []
        for name in (row["source"], row["target"]):
            key = (row["graph"], name) if within else (name,)
            found = alone.get(name, -1) if many and not within else place.get(key, -1)
            if found is None:
                fail(f"{path}: line {line}: several graphs have a node {name!r}: add the column "
                     "graph")  # fmt: skip
            if found < 0:
                among = f"the graph {row['graph']!r}" if within else f"the {len(rows):,}"
                fail(f"{path}: line {line}: there is no node {name!r} among {among} of nodes.csv")
            ends.append(found)
        if graphs[ends[0]] != graphs[ends[1]]:
            fail(f"{path}: line {line} joins two graphs, {graphs[ends[0]]!r} and "
                 f"{graphs[ends[1]]!r}")  # fmt: skip
        sides.append(ends)
    if not sides:
        fail(f"{path} has no edges: a graph network has nothing to look at without")
    return to_undirected(torch.tensor(sides).t().contiguous(), num_nodes=len(rows))


def features_of_names(path: Path, rows: list, known: Sequence[str] | None) -> Tensor:
    """A feature of its own for each node, at the place of its name among those that are `known`."""
    names = [row["id"] for _, row in rows]
    place = {name: k for k, name in enumerate(names if known is None else known)}
    if len(place) > MOST_WITHOUT_FEATURES:
        fail(
            f"{path} has {len(place):,} nodes and no features: one of its own for each is for "
            f"{MOST_WITHOUT_FEATURES:,} at most, so add columns (the degree, or a 1)"
        )
    for line, row in rows:
        if row["id"] not in place:
            fail(f"{path}: line {line}: the network was trained without features, and knows its "
                 f"{len(place):,} nodes by name: {row['id']!r} is none of them")  # fmt: skip
    features = torch.zeros(len(names), len(place))
    features[torch.arange(len(names)), [place[name] for name in names]] = 1.0
    return features


def number(text: str, path: Path, line: int, name: str) -> float:
    """A finite number."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or abs(value) > 3e38:
        fail(f"{path}: line {line}: {name} is {text!r}, not a finite number")
    return value


def check_columns(found: Tables, facts: Mapping, many: bool) -> None:
    """Ends in one line unless the features are those that a network, trained on data of these
    `facts`, knows."""
    columns, known = found.columns, facts.get("columns") or []
    channels, wanted = found.graph.features.shape[1], facts["channels"]
    reason = ""
    if known and (missing := sorted(set(known) - set(columns))):
        reason = f"has no column {missing[0]!r}, which the network was trained with"
    elif known and (strange := sorted(set(columns) - set(known))):
        reason = f"has the column {strange[0]!r}, which the network was not trained with"
    elif columns and not known and "names" in facts:
        reason = f"has the column {columns[0]!r}, and the network was trained without features"
    elif columns and channels != wanted:
        reason = f"has {counted(channels, 'column')} of features, and the network takes {wanted:,}"
    elif not columns and (channels != wanted or not (many or facts.get("kind") == "graph")):
        reason = f"has no columns of features, and the network takes {wanted:,}"
    if reason:
        fail(f"{found.path.with_name('nodes.csv')} {reason}")


def classes_of(labels: Sequence[str], facts: Mapping) -> list[str]:
    """The classes among the labels; or those of the network, if `facts` tell that it knows all.

    Classes that are whole numbers are in the order of these.
    """
    names = sorted(set(filter(None, labels)))
    with contextlib.suppress(ValueError):
        names = sorted(names, key=int)
    known = facts.get("classes", [])
    return list(known) if set(names) <= set(known) else names
