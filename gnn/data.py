"""Graphs: the karate club, citations (Planetoid), molecules (TUDataset), PPI, the user's.

train, val, test = load_graphs(args, dev)
for batch in run.progress(train.batches(args.batch_size)): ...

PyTorch Geometric reads its formats, out of the raw files alone: nothing is written beside them.
The user's own graph is a folder with two tables:

    nodes.csv    id,label,split,word1,word2,...    label may be empty; split is train, val or test
    edges.csv    source,target                     names of nodes; each edge counts both ways

The columns may stand in any order: features are taken in that of their names.

`split` and the features may be left out: then a seeded fifth of the labelled nodes is the test
part, and each node has a feature of its own.
"""

import argparse
import contextlib
import csv
import dataclasses
import json
import math
import urllib.error
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from common import cli, counted, fail, seed_of
from common.data.batches import Batches
from common.data.sources import split
from common.device import Device

PLANETOID = {"cora": "Cora", "citeseer": "CiteSeer", "pubmed": "PubMed"}
MOLECULES = {"mutag": "MUTAG", "proteins": "PROTEINS"}
GRAPH_SETS = ["karate", *PLANETOID, *MOLECULES, "ppi", "graph:PATH"]
NUM_FOLDS = 10
MOST_WITHOUT_FEATURES = 20_000  # nodes: as many features of their own each take 1.6 GB


def add_graph_flags(parser: cli.Parser) -> None:
    """The flags that say how graphs are read."""
    add, text = parser.add_argument, "divide each node's features by their sum, or not"
    add("--features", choices=["rows", "raw"], default="rows", group="data", help=text)
    text = "which tenth is the test part"
    add("--fold", type=cli.integer(0), metavar="K", default=0, group="data", help=text)
    text = "train without the nodes of the other parts"
    parser.add_switch("--unseen", group="data", help=text)

    def of_kinds(_model: str, data: str, _paper: bool, **_given) -> tuple[dict, dict]:
        kind = data.partition(":")[0]
        needless = {} if kind in MOLECULES else {"fold": f"{kind} has a split of its own"}
        if kind in (*MOLECULES, "ppi"):
            needless["unseen"] = f"{kind} has other graphs in its test part anyway"
        return {}, needless

    parser.recipes.append(of_kinds)


@dataclasses.dataclass
class Graph:
    """A graph, or many of them one after another.

    Labels are (N,) classes of nodes, -1 where unknown; (N, K) zeros and ones where a node has
    several; or (G,) classes of graphs.
    """

    features: Tensor  # (N, C)
    edge_index: Tensor  # (2, E), sources and targets
    labels: Tensor
    graph_of: Tensor | None = None  # (N,), in order
    names: Sequence[str] | None = None  # of the nodes, in the user's table

    def to(self, device: torch.device) -> "Graph":
        """The graph with its tensors on a device."""
        values = (getattr(self, field.name) for field in dataclasses.fields(self))
        return Graph(*(v.to(device) if isinstance(v, Tensor) else v for v in values))

    def without(self, nodes: Tensor) -> tuple["Graph", Tensor]:
        """The graph that is left without `nodes`, and each node's new place (-1: gone)."""
        stays = torch.ones(len(self.features), dtype=torch.bool)
        stays[nodes] = False
        place = torch.where(stays, stays.cumsum(0) - 1, -1)
        edge_index = place[self.edge_index[:, stays[self.edge_index].all(0)]]
        names = self.names and [n for n, s in zip(self.names, stays.tolist(), strict=True) if s]
        return Graph(self.features[stays], edge_index, self.labels[stays], None, names), place


@dataclasses.dataclass
class Source:
    """A data set as it was read: the graph of each part, and what of it (nodes or graphs) counts.

    `task` is "nodes" (a class each), "labels" (several each) or "graphs" (a class each).
    """

    classes: list[str]
    task: str
    graphs: dict[str, Graph]
    indices: dict[str, Tensor]
    note: str = ""
    columns: Sequence[str] = ()  # names of the features, in the user's table


# ---------------------------------------------------------------------- readers


def karate(args: argparse.Namespace) -> Source:
    """Zachary's karate club: 34 nodes, four communities, one labelled node in each."""
    from torch_geometric.datasets import KarateClub

    data = KarateClub()[0]
    graph = Graph(data.x, data.edge_index, data.y)
    train = data.train_mask.nonzero()[:, 0]
    rest = (~data.train_mask).nonzero()[:, 0]
    note = "one labelled node a class; the other 30 are the test part"
    names = [str(k) for k in range(int(data.y.max()) + 1)]
    return Source(names, "nodes", {"all": graph}, {"train": train, "test": rest}, note)


def find_raw(args: argparse.Namespace, folder: str, files: Sequence[str], get: Callable) -> Path:
    """The folder with the raw files of a set; if they aren't there, `get` downloads them."""
    root = Path(args.data_dir).expanduser()
    raw = root / folder / "raw"
    if missing := [name for name in files if not (raw / name).is_file()]:
        new = [path for path in (raw, *raw.parents) if not path.exists()]
        try:
            get(raw)
        except Exception as error:  # of the network, of a proxy, of an archive: many kinds
            if not isinstance(error, (OSError, RuntimeError, ValueError, urllib.error.URLError)):
                raise
            for path in new:
                if path.is_dir() and not any(path.iterdir()):
                    path.rmdir()
            reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(":.")
            fail(
                f"{missing[0]} is not in {raw} and can't be downloaded ({reason}): "
                "name another folder with --data-dir, or take --data karate, which needs no files"
            )
        if missing := [name for name in files if not (raw / name).is_file()]:
            fail(f"{missing[0]} is not in {raw}, nor among what was downloaded")
    return raw


def fetch(url: str, folder: Path, unpack: bool = False) -> None:
    """Downloads a file, and unpacks a zip."""
    from torch_geometric.data import download_url, extract_zip

    path = download_url(url, str(folder), log=False)
    if unpack:
        extract_zip(path, str(folder), log=False)
        Path(path).unlink()


def read_raw(raw: Path, read: Callable) -> Any:
    """What `read` makes of raw files; damaged ones, which may fail in any way, end in one line."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return read()
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        fail(f"the files in {raw} are damaged ({reason}): get them anew")


def planetoid(args: argparse.Namespace) -> Source:
    """Cora, CiteSeer and PubMed with the public split (Yang and others 2016)."""
    name = PLANETOID[args.data]
    parts = ["x", "tx", "allx", "y", "ty", "ally", "graph", "test.index"]
    files = [f"ind.{args.data}.{part}" for part in parts]

    def get(raw: Path) -> None:
        from torch_geometric.datasets import Planetoid

        for file in files:
            fetch(f"{Planetoid.url}/{file}", raw)

    def read() -> Any:
        from torch_geometric.io import read_planetoid_data

        data = read_planetoid_data(str(raw), args.data)
        if not len(data.x) == len(data.y) == len(data.train_mask):
            raise ValueError(f"{len(data.x)} nodes with features, {len(data.y)} with labels")
        return data

    raw = find_raw(args, f"Planetoid/{name}", files, get)
    data = read_raw(raw, read)
    masks = {"train": data.train_mask, "val": data.val_mask, "test": data.test_mask}
    indices = {part: mask.nonzero()[:, 0] for part, mask in masks.items()}
    classes = [str(k) for k in range(int(data.y.max()) + 1)]
    return Source(classes, "nodes", {"all": Graph(data.x, data.edge_index, data.y)}, indices)


def molecules(args: argparse.Namespace) -> Source:
    """MUTAG and PROTEINS: graphs with a class each; a stratified tenth of them is the test part."""
    name = MOLECULES[args.data]
    files = [f"{name}_{part}.txt" for part in ("A", "graph_indicator", "graph_labels")]
    files.append(f"{name}_node_labels.txt")

    def get(raw: Path) -> None:
        from torch_geometric.datasets import TUDataset

        fetch(f"{TUDataset.url}/{name}.zip", raw, unpack=True)
        for path in (raw / name).glob("*"):
            path.rename(raw / path.name)

    def read() -> tuple[Graph, Tensor]:
        from torch_geometric.io import read_tu_data

        data, slices, sizes = read_tu_data(str(raw), name)
        counts = slices["x"].diff()
        if len(data.x) != slices["x"][-1] or len(data.y) != len(counts):
            raise ValueError(f"{len(data.x)} labels for {int(slices['x'][-1])} nodes")
        graph_of = torch.arange(len(counts)).repeat_interleave(counts)
        shift = slices["x"][:-1].repeat_interleave(slices["edge_index"].diff())
        features = data.x[:, sizes["num_node_attributes"] :]
        return Graph(features, data.edge_index + shift, data.y, graph_of)

    raw = find_raw(args, f"TUDataset/{name}", files, get)
    graph = read_raw(raw, read)
    if args.fold >= NUM_FOLDS:
        fail(f"--fold {args.fold}: there are {NUM_FOLDS} folds, 0 to {NUM_FOLDS - 1}")
    fold = folds(graph.labels)
    indices = {"train": fold != args.fold, "test": fold == args.fold}
    indices = {part: mask.nonzero()[:, 0] for part, mask in indices.items()}
    classes = [str(k) for k in range(int(graph.labels.max()) + 1)]
    note = f"fold {args.fold} of {NUM_FOLDS} is the test part, with classes in equal shares"
    return Source(classes, "graphs", {"all": graph}, indices, note)


def folds(labels: Tensor) -> Tensor:
    """A fold for each example, 0 to 9, by a fixed draw; every class is spread evenly over them."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed_of("folds")))
    order = order[labels[order].argsort(stable=True)]
    fold = torch.empty_like(order)
    fold[order] = torch.arange(len(labels)) % NUM_FOLDS
    return fold


def ppi(args: argparse.Namespace) -> Source:
    """Proteins that interact in 24 tissues: 121 labels; 20 graphs to train, 2 and 2 held out."""
    names = {"train": "train", "val": "valid", "test": "test"}
    kinds = ["feats.npy", "graph_id.npy", "graph.json", "labels.npy"]
    files = [f"{name}_{kind}" for name in names.values() for kind in kinds]

    def get(raw: Path) -> None:
        from torch_geometric.datasets import PPI

        fetch(PPI.url, raw, unpack=True)

    raw = find_raw(args, "PPI", files, get)
    graphs = {p: read_raw(raw, lambda name=n: read_ppi(raw, name)) for p, n in names.items()}
    indices = {part: torch.arange(len(graph.labels)) for part, graph in graphs.items()}
    classes = [str(k) for k in range(graphs["train"].labels.shape[1])]
    return Source(classes, "labels", graphs, indices, "the test graphs are never seen in training")


def read_ppi(raw: Path, name: str) -> Graph:
    """The graphs of one part, in the order of their numbers."""
    features, labels, numbers = (
        torch.from_numpy(np.load(raw / f"{name}_{kind}.npy"))
        for kind in ("feats", "labels", "graph_id")
    )
    content = json.loads((raw / f"{name}_graph.json").read_text())
    pairs = [(link["source"], link["target"]) for link in content["links"]]
    edges = torch.tensor(pairs, dtype=torch.int64).view(-1, 2).t()
    if not len(features) == len(labels) == len(numbers) or int(edges.max()) >= len(numbers):
        raise ValueError(f"{name}: features, labels, graphs and edges are of different nodes")
    edges = edges[:, (edges[0] != edges[1]) & (numbers[edges[0]] == numbers[edges[1]])]
    edges = unique_edges(edges, len(numbers), both_ways=not content["directed"])
    order = numbers.argsort(stable=True)
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order))
    edges = place[edges]
    edges = edges[:, edges[0].argsort(stable=True)]
    graph_of = numbers[order] - numbers.min()
    return Graph(features[order].float(), edges, labels[order].float(), graph_of)


def unique_edges(edges: Tensor, num_nodes: int, both_ways: bool) -> Tensor:
    """The edges (2, E), each once; `both_ways` turns them round, too."""
    edges = torch.cat([edges, edges.flip(0)], 1) if both_ways else edges
    codes = (edges[0] * num_nodes + edges[1]).unique()
    return torch.stack([codes // num_nodes, codes % num_nodes])


# ---------------------------------------------------------------------- the user's tables


def table(path: Path) -> Iterable[tuple[int, list[str]]]:
    """The rows of a CSV file with their line numbers, the header first; all of one width."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            width, header = 0, ""
            for row in reader:
                if not row:
                    continue
                row = [cell.strip() for cell in row]
                if not width:
                    width, header = len(row), ",".join(row)
                    header = header if len(header) < 60 else header[:60] + "..."
                elif len(row) != width:
                    found = f"{len(row)} cells, not the {width} of the header ({header})"
                    fail(f"{path}: line {reader.line_num} has {found}")
                yield reader.line_num, row
    except UnicodeDecodeError:
        fail(f"{path} is not UTF-8 text: convert it")
    except csv.Error as error:
        fail(f"{path}: line {reader.line_num} is not CSV ({error})")
    except OSError as error:
        fail(f"can't read {path}: {error.strerror or error}")


class Table(NamedTuple):
    """What nodes.csv and edges.csv hold; cells that are empty are ""."""

    graph: Graph  # its labels are all -1
    labels: list[str]
    splits: list[str]
    lines: list[int]  # of nodes.csv
    columns: list[str]  # names of the features, if there are some


def read_tables(root: Path) -> Table:
    """The user's graph; mistakes name the file and the line."""
    path, edges_path = root / "nodes.csv", root / "edges.csv"
    if not root.is_dir():
        fail(f"{root} is not a folder: it needs nodes.csv and edges.csv")
    rows = list(table(path))
    header = [cell.lower() for cell in rows[0][1]] if rows else []
    if "id" not in header or len(set(header)) < len(header):
        fail(f"{path}: line 1 has to name the columns, each once: id, label, split and features")
    if len(rows) == 1:
        fail(f"{path} has no nodes below its header")
    columns = [i for i, name in enumerate(header) if name not in ("id", "label", "split")]
    columns.sort(key=header.__getitem__)  # another table of the same columns means the same
    place, values = {}, []
    for line, row in rows[1:]:
        name = row[header.index("id")]
        if not name or name in place:
            fail(f"{path}: line {line}: the id {name!r} is {'there twice' if name else 'missing'}")
        place[name] = len(place)
        values.append([number(row[i], path, line, header[i]) for i in columns])
    if not columns and len(place) > MOST_WITHOUT_FEATURES:
        fail(
            f"{path} has {len(place):,} nodes and no features: one of its own for each is for "
            f"{MOST_WITHOUT_FEATURES:,} at most, so add columns (the degree, or a 1)"
        )
    features = torch.tensor(values) if columns else torch.eye(len(place))
    sides = []
    for number_of_row, (line, row) in enumerate(table(edges_path)):
        if number_of_row == 0:
            if {cell.lower() for cell in row} != {"source", "target"} or len(row) != 2:
                fail(f"{edges_path}: line {line} has to be the header source,target")
            continue
        for cell in row:
            if cell not in place:
                fail(
                    f"{edges_path}: line {line}: there is no node {cell!r} among the "
                    f"{len(place)} of nodes.csv"
                )
        sides.append([place[cell] for cell in row])
    if not sides:
        fail(f"{edges_path} has no edges: a graph network has nothing to look at without")
    edges = unique_edges(torch.tensor(sides).t(), len(place), both_ways=True)

    def column(name: str) -> list[str]:
        return [r[header.index(name)] if name in header else "" for _, r in rows[1:]]

    unknown = torch.full((len(place),), -1)
    graph = Graph(features, edges, unknown, None, list(place))
    lines = [line for line, _ in rows[1:]]
    names = [header[i] for i in columns]
    return Table(graph, column("label"), column("split"), lines, names)


def number(text: str, path: Path, line: int, name: str) -> float:
    """A finite number."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or abs(value) > 3e38:
        fail(f"{path}: line {line}: {name} is {text!r}, not a finite number")
    return value


def user_graph(args: argparse.Namespace) -> Source:
    """A folder with nodes.csv and edges.csv; see the top of this file."""
    root = Path(args.data.partition(":")[2]).expanduser()
    found, path = read_tables(root), root / "nodes.csv"
    if not any(found.labels):
        fail(f"{path} has no labels: there is nothing to train for (a column label is needed)")
    names = sorted(set(filter(None, found.labels)))
    with contextlib.suppress(ValueError):  # classes that are numbers, in the order of these
        names = sorted(names, key=int)
    place = {name: k for k, name in enumerate(names)}
    labels = torch.tensor([place.get(label, -1) for label in found.labels])
    graph = dataclasses.replace(found.graph, labels=labels)
    known = (labels >= 0).nonzero()[:, 0]
    notes = ["" if found.columns else "no features: each node gets one of its own"]
    if any(found.splits):
        indices: dict[str, list[int]] = {"train": [], "val": [], "test": []}
        for node, (part, line) in enumerate(zip(found.splits, found.lines, strict=True)):
            if part and part not in indices:
                fail(f"{path}: line {line}: split is {part!r}, not train, val or test")
            if part and not found.labels[node]:
                fail(f"{path}: line {line} is in the part {part}, but its label is missing")
            if part:
                indices[part].append(node)
        if empty := [part for part in ("train", "test") if not indices[part]]:
            fail(f"{path}: no node is in the part {empty[0]} (column split)")
        parts = {part: torch.tensor(nodes) for part, nodes in indices.items() if nodes}
    else:
        if len(known) < 2:
            fail(f"{path} has one labelled node: that can't be split into parts")
        parts = {
            k: known[i] for k, i in zip(("train", "test"), split(len(known), 0.2, 0), strict=True)
        }
        notes.append("a seeded fifth of the labelled nodes is the test part")
    note = "; ".join(filter(None, notes))
    return Source(names, "nodes", {"all": graph}, parts, note, found.columns)


READERS = {"karate": karate, "ppi": ppi, "graph": user_graph}
READERS |= dict.fromkeys(PLANETOID, planetoid) | dict.fromkeys(MOLECULES, molecules)


# ---------------------------------------------------------------------- sets


class Batch(NamedTuple):
    """What a network is called with, `net(*inputs)`, and which rows of its answer have labels."""

    inputs: tuple
    rows: Tensor | slice
    labels: Tensor


class GraphSet:
    """One part of a data set: `part` is "train", "val" or "test"; `indices` are what counts of it.

    `facts` holds `classes`, `task` and the `channels` of the features; the parts share it.
    """

    def __init__(self, part: str, graph: Graph, indices: Tensor, facts: dict, dev: Device):
        self.part, self.facts, self.dev = part, facts, dev
        self.graph, self.indices = graph.to(dev.device), indices.to(dev.device)
        if graph.graph_of is not None:
            counts = torch.bincount(graph.graph_of)
            edges = torch.bincount(graph.graph_of[graph.edge_index[0]], minlength=len(counts))
            zero = torch.zeros(1, dtype=torch.int64)
            self.starts = torch.cat([zero, counts.cumsum(0)]).to(dev.device)  # of nodes
            self.edge_starts = torch.cat([zero, edges.cumsum(0)]).to(dev.device)

    def __len__(self) -> int:
        return len(self.indices)

    def everything(self) -> Batch:
        """The whole graph at once."""
        graph = self.graph
        inputs = (graph.features, graph.edge_index)
        return Batch(inputs, self.indices, graph.labels[self.indices])

    def some(self, graphs: Tensor) -> Batch:
        """Some of the graphs, as one."""
        nodes, graph_of = ranges(self.starts, graphs)
        edges, number = ranges(self.edge_starts, graphs)
        begins = torch.cat([graphs.new_zeros(1), torch.bincount(graph_of, minlength=len(graphs))])
        shift = begins.cumsum(0)[:-1] - self.starts[graphs]
        edge_index = self.graph.edge_index[:, edges] + shift[number]
        inputs = (self.graph.features[nodes], edge_index)
        if self.facts["task"] == "graphs":
            inputs += (graph_of, len(graphs))
            return Batch(inputs, slice(None), self.graph.labels[graphs])
        return Batch(inputs, slice(None), self.graph.labels[nodes])

    def batches(self, batch_size: int, make: Callable | None = None, size: int | None = None):
        """Steps of `batch_size` graphs; or of what `make(indices, key)` makes a batch of.

        The key is a number that depends on seed, epoch and step; `size`, else that of the part,
        counts what the indices are drawn from.
        """

        def fetch(parts: list[Tensor], draws: list, epoch: int):
            for indices, draw in zip(parts, draws, strict=True):
                indices = indices.to(self.dev.device)
                yield (
                    make(indices, seed_of(*draw.keys[0]))
                    if make
                    else self.some(
                        self.indices[indices] if self.facts["task"] == "graphs" else indices
                    )
                )

        if not size:
            graphs = self.facts["task"] == "labels" and not make
            size = len(self.starts) - 1 if graphs else len(self)
        return Batches(size, batch_size, self.dev, self.part == "train", fetch)


def ranges(starts: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """The members of the chosen groups, one group after another, and the group of each."""
    counts = starts[chosen + 1] - starts[chosen]
    group = torch.arange(len(chosen), device=starts.device).repeat_interleave(counts)
    first = counts.cumsum(0) - counts
    within = torch.arange(len(group), device=starts.device) - first[group]
    return starts[chosen][group] + within, group


def row_normalised(features: Tensor) -> Tensor:
    """Each node's features divided by their sum (of absolute values); rows of zeros stay."""
    return features / features.abs().sum(1, keepdim=True).clamp(min=1e-12)


def load_graphs(
    args: argparse.Namespace, dev: Device
) -> tuple[GraphSet, GraphSet | None, GraphSet]:
    """The training, validation (None without --val) and test part of `--data`."""
    kind = args.data.partition(":")[0]
    source = READERS[kind](args)
    parts, note = choose(args, source), source.note
    check_classes(args, source, parts["train"])
    channels = next(iter(source.graphs.values())).features.shape[1]
    facts = {"classes": source.classes, "task": source.task, "channels": channels, "kind": kind}
    facts["columns"] = list(source.columns)
    sets = {}
    for graph in source.graphs.values():
        if not bool(graph.features.isfinite().all()):
            fail(f"{args.data} has features that are not finite numbers")
        if args.features != "raw":
            graph.features = row_normalised(graph.features)
    shared = source.graphs.get("all")
    shared = shared and shared.to(dev.device)  # one copy for all parts
    for part, indices in parts.items():
        graph = shared or source.graphs[part]
        if args.unseen and part == "train":
            others = [parts[name] for name in parts if name != "train"]
            hidden = [source.indices[name] for name in source.indices if name != "train"]
            graph, place = source.graphs["all"].without(torch.cat(others + hidden))
            indices = place[indices]
        sets[part] = GraphSet(part, graph, indices, facts, dev)
    counts = ", ".join(f"{len(sets[p]):,} {p}" for p in ("train", "val", "test") if p in sets)
    what = "graphs" if source.task == "graphs" else "labelled nodes"
    graph = sets["train"].graph
    size = f"{len(graph.features):,} nodes, {graph.edge_index.shape[1]:,} edges"
    dev.say(f"{args.data}: {counts} {what}; {size}, {channels:,} features")
    if note:
        dev.say(f"note: {note}")
    return sets["train"], sets.get("val"), sets["test"]


def choose(args: argparse.Namespace, source: Source) -> dict[str, Tensor]:
    """The indices of each part, with --val and --limit."""
    parts, count = dict(source.indices), len(source.indices["train"])
    if "val" in parts:
        there = len(parts["val"])
        if "val" in args.typed and args.val not in (0, there):
            fail(
                f"--val {args.val}: {args.data} has a validation part of {there}; "
                "--val 0 does without"
            )
        if "val" in args.chosen and not args.val:
            del parts["val"]
    else:
        cut = args.val
        if "val" not in args.chosen:  # a default made for other data
            cut = count // 10 if source.task == "graphs" else 0
        if cut >= count:
            fail(f"--val {cut} leaves nothing of {counted(count, 'training example')}: lower it")
        if cut:
            cuts, train = split(count, cut / count, "val", args.seed), parts["train"]
            parts["train"], parts["val"] = (train[indices] for indices in cuts)
    if "val" not in parts and "window" in args.typed:
        fail("--window needs a validation part to watch: give --val N too")
    count = len(parts["train"])
    if args.limit and args.limit < count:
        parts["train"] = parts["train"][split(count, args.limit / count, "limit", args.seed)[1]]
    return parts


def check_classes(args: argparse.Namespace, source: Source, train: Tensor) -> None:
    """Fails if a class has no training example."""
    if source.task == "labels":
        return
    labels = next(iter(source.graphs.values())).labels
    there = set(labels[train].tolist())
    absent = [name for k, name in enumerate(source.classes) if k not in there]
    if absent:
        why = [f"--{flag}" for flag in ("limit", "val") if flag in args.typed]
        hint = f": change {' and '.join(why)}" if why else ""
        fail(f"the class {absent[0]!r} of {args.data} is absent from the training part{hint}")
