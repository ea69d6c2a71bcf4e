"""Data sets of graphs: the karate club, citations, molecules, PPI, and the user's tables.

PyTorch Geometric reads its sets. What it makes of the raw files is kept in data/cache: nothing is
written beside them.
"""

import contextlib
import io
import os
import re
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common import cli, counted, fail, seed_of
from common.data.sources import Source, named, open_source, say_parts, split
from common.device import Device
from gnn.sets import Graph, GraphSet, Some, by_degree, column_scales, row_normalised
from gnn.tables import Tables, classes_of, read_tables

PLANETOID = {"cora": "Cora", "citeseer": "CiteSeer", "pubmed": "PubMed"}
MOLECULES = {"mutag": "MUTAG", "proteins": "PROTEINS"}
GRAPH_SETS = ["karate", *PLANETOID, *MOLECULES, "tu:NAME", "ppi", "graph:PATH", "graphs:PATH"]
KINDS = {"karate": "karate", "ppi": "ppi", "graph": "citation", "tu": "graphs", "graphs": "graphs"}
KINDS |= dict.fromkeys(PLANETOID, "citation") | dict.fromkeys(MOLECULES, "graphs")
NUM_FOLDS = 10
CACHE = Path("data", "cache")


def add_graph_flags(parser: cli.Parser) -> None:
    """The flags that say how graphs are read."""
    add, kinds = parser.add_argument, ["rows", "standard", "raw"]
    text = "rows: divide each node's by their sum; standard: bring columns that aren't zeros and "
    text += "ones to mean 0, standard deviation 1"
    add("--features", choices=kinds, default="rows", group="data", help=text)
    text = "take the continuous attributes of nodes, beside their labels"
    parser.add_switch("--attributes", group="data", help=text)
    text = "which tenth is the test set"
    add("--fold", type=cli.integer(0), metavar="K", default=0, group="data", help=text)
    text = "train without the nodes of the other parts"
    parser.add_switch("--unseen", group="data", help=text)


def kind_of(data: str) -> str:
    """The kind of a data set by its name: "karate", "citation" (or another graph), "graphs", "ppi".

    Names that there are not are taken for a graph's.
    """
    return KINDS.get(data.partition(":")[0], "citation")


# ---------------------------------------------------------------------- PyTorch Geometric's sets


def from_pyg(kind: type, args: cli.Flags, name: str, files: Sequence[str], **settings: Any) -> Any:
    """A data set of PyTorch Geometric's, `kind`, out of its `files` below --data-dir.

    Only where these are missing they are downloaded; damaged ones end in one line. What was made
    of them is kept in CACHE, under a name that changes with them; it appears there whole, so that
    processes side by side don't meet.
    """
    root = Path(args.data_dir).expanduser() / kind.__name__
    raw = root / name / "raw"
    new = [path for path in (raw, *raw.parents, CACHE, *CACHE.parents) if not path.exists()]

    def kept() -> Path:
        stats = [(path.name, path.stat()) for path in sorted(raw.glob("*"))]
        key = seed_of(str(raw.resolve()), *(f"{n} {s.st_size} {s.st_mtime_ns}" for n, s in stats))
        return CACHE / f"{kind.__name__}-{name or 'all'}-{key:016x}"

    def read(processed: Path) -> Any:
        there = type(kind.__name__, (kind,), {"processed_dir": str(processed)})
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            return there(str(root), *([name] if name else []), **settings)

    try:
        if kept().is_dir():
            return read(kept())
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE, ignore_cleanup_errors=True) as made:
            found = read(Path(made))
            with contextlib.suppress(OSError):  # another process was first
                os.rename(made, kept())
            return found
    except Exception as error:  # of the network, of a proxy, of an archive, of what is in files
        for path in new:
            with contextlib.suppress(OSError):
                path.rmdir()
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(":.")
        if missing := [file for file in files if not (raw / file).is_file()]:
            fail(
                f"{missing[0]} is not in {raw} and can't be downloaded ({reason}): "
                "name another folder with --data-dir, or take --data karate, which needs no files"
            )
        if str(CACHE) in str(getattr(error, "filename", None)):
            fail(f"can't write {CACHE}, where what is read from {raw} is kept ({reason})")
        fail(f"the files in {raw} are damaged ({reason}): get them anew")


def joined(found: Any) -> tuple[Tensor | None, Tensor, Tensor | None, Tensor]:
    """Features, edges and labels of many graphs as one, and the graph of each node."""
    from torch_geometric.data import Batch

    try:
        whole = Batch.from_data_list([*found])
        if whole.x is not None and len(whole.x) != len(whole.batch):
            raise ValueError(f"{len(whole.x):,} features for {len(whole.batch):,} nodes")
    except Exception as error:  # files that don't fit together show only here
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        fail(f"the files in {found.raw_dir} are damaged ({reason}): get them anew")
    return whole.x, whole.edge_index, whole.y, whole.batch


def numbered(labels: Tensor) -> list[str]:
    """Names for classes that have none."""
    return [str(k) for k in range(int(labels.max()) + 1)]


def masked(graph: Graph, **masks: Tensor) -> dict[str, Some]:
    """A part of each mask."""
    return {part: Some(graph, mask.nonzero()[:, 0]) for part, mask in masks.items()}


def karate(args: cli.Flags) -> Source:
    """Zachary's karate club: 34 nodes, four communities, one labelled node in each."""
    from torch_geometric.datasets import KarateClub

    data = KarateClub()[0]
    graph, note = Graph(data.x, data.edge_index, data.y), "one labelled node a class; the other "
    parts = masked(graph, train=data.train_mask, test=~data.train_mask)
    return Source(numbered(data.y), parts, note + "30 are the test set", {"task": "nodes"})


def planetoid(args: cli.Flags) -> Source:
    """Cora, CiteSeer and PubMed with the public split (Yang and others 2016)."""
    from torch_geometric.datasets import Planetoid

    parts = ["x", "tx", "allx", "y", "ty", "ally", "graph", "test.index"]
    files = [f"ind.{args.data}.{part}" for part in parts]
    data = from_pyg(Planetoid, args, PLANETOID[args.data], files)[0]
    if not len(data.x) == len(data.y) == len(data.train_mask):
        fail(f"the files of {args.data} are damaged: {len(data.x):,} nodes with features, "
             f"{len(data.y):,} with labels")  # fmt: skip
    graph = Graph(data.x, data.edge_index, data.y)
    parts = masked(graph, train=data.train_mask, val=data.val_mask, test=data.test_mask)
    return Source(numbered(data.y), parts, facts={"task": "nodes"})


def tu_set(args: cli.Flags) -> Source:
    """Graphs with a class each (Morris and others 2020); a stratified tenth is the test set."""
    from torch_geometric.datasets import TUDataset

    name = MOLECULES.get(args.data) or args.data.partition(":")[2]
    if not re.fullmatch(r"[\w-]+", name):
        fail(f"--data {args.data}: {name!r} is not the name of a TU data set, such as ENZYMES")
    files = [f"{name}_{part}.txt" for part in ("A", "graph_indicator", "graph_labels")]
    found = from_pyg(TUDataset, args, name, files, use_node_attr=True)
    x, edge_index, labels, graph_of = joined(found)
    if labels is None or labels.is_floating_point():
        fail(f"{files[2]} is not in {found.raw_dir}: the graphs of {name} have no classes")
    attributes, notes = found.num_node_attributes, []
    if attributes and not args.attributes:
        x = x[:, attributes:]
        has = counted(attributes, "continuous attribute")
        notes.append(f"{has} of each node left out (--attributes takes them)")
    elif attributes:
        notes.append(f"{counted(attributes, 'continuous attribute')} of each node taken")
    elif "attributes" in args.typed and args.attributes:
        fail(f"--attributes: the nodes of {name} have none")
    if x is None or not x.shape[1]:
        x = by_degree(edge_index, len(graph_of))
        notes.append("no features: those of a node are the number of its neighbours")
    graph = Graph(x, edge_index, labels, graph_of)
    parts, note = fold_parts(args, graph, torch.arange(len(labels)))
    return Source(numbered(labels), parts, "; ".join([*notes, note]), {"task": "graphs"})


def fold_parts(args: cli.Flags, graph: Graph, graphs: Tensor) -> tuple[dict[str, Some], str]:
    """The fold that --fold names of some graphs as test set, and the rest to train on."""
    if args.fold >= NUM_FOLDS:
        fail(f"--fold {args.fold}: there are {NUM_FOLDS} folds, 0 to {NUM_FOLDS - 1}")
    fold = folds(graph.labels[graphs])
    parts = {"train": graphs[fold != args.fold], "test": graphs[fold == args.fold]}
    if empty := [name for name, indices in parts.items() if not len(indices)]:
        fail(f"fold {args.fold} of {counted(len(graphs), 'graph')} leaves the {empty[0]} set "
             f"empty: {NUM_FOLDS} graphs at least are needed")  # fmt: skip
    note = f"fold {args.fold} of {NUM_FOLDS} is the test set, with classes in equal shares"
    return {name: Some(graph, indices) for name, indices in parts.items()}, note


def folds(labels: Tensor) -> Tensor:
    """A fold for each example, 0 to 9, by a fixed draw; every class is spread evenly over them.

    Not scikit-learn's: a checkpoint that was trained with --fold is to meet its own test set.
    """
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed_of("folds")))
    order = order[labels[order].argsort(stable=True)]
    fold = torch.empty_like(order)
    fold[order] = torch.arange(len(labels)) % NUM_FOLDS
    return fold


def ppi(args: cli.Flags) -> Source:
    """Proteins that interact in 24 tissues: 121 labels; 20 graphs to train, 2 and 2 held out."""
    from torch_geometric.datasets import PPI

    kinds = ["feats.npy", "graph_id.npy", "graph.json", "labels.npy"]
    files = [f"{part}_{kind}" for part in ("train", "valid", "test") for kind in kinds]
    parts = {}
    for part in ("train", "val", "test"):
        found = from_pyg(PPI, args, "", files, split=part)
        x, edge_index, labels, graph_of = joined(found)
        parts[part] = Some(Graph(x, edge_index, labels, graph_of), torch.arange(len(labels)))
    classes = [str(k) for k in range(labels.shape[1])]
    note = "the test graphs are never seen in training"
    return Source(classes, parts, note, {"task": "labels"})


# ---------------------------------------------------------------------- the user's tables


def user_graph(args: cli.Flags) -> Source:
    """A folder of tables, see gnn/tables.py: one graph, or many (`graphs:`).

    What is drawn by seed, and the features of nodes without any, go by names: rows in another
    order mean the same to a checkpoint.
    """
    many = args.data.startswith("graphs:")
    what, facts = "graph" if many else "node", args.stored.get("dataset", {})
    known = facts.get("names")
    found = read_tables(Path(args.data.partition(":")[2]).expanduser(), many, facts)
    if not any(found.labels):
        fail(f"{found.path} has no labels: there is nothing to train for (a column label is "
             "needed)")  # fmt: skip
    classes = classes_of(found.labels, facts)
    place = {name: k for k, name in enumerate(classes)}
    graph = found.graph
    graph.labels = torch.tensor([place.get(label, -1) for label in found.labels])
    rank = {name: k for k, name in enumerate(known or [])}
    order = sorted(range(len(graph.names)), key=lambda k: rank.get(graph.names[k], len(rank)))
    notes = []
    if not found.columns:
        own = "those of a node are the number of its neighbours" if many else "each node gets one"
        notes.append(f"no features: {own}{'' if many else ' of its own'}")
        if facts and known is None and not many:
            notes.append("the checkpoint doesn't know its nodes by name: rows have to be in order")
    if any(found.splits):
        parts = own_parts(found, order, what)
        if "fold" in args.typed:
            fail(f"--fold: {found.path} has a split of its own")
    else:
        order = torch.tensor([k for k in order if found.labels[k]])
        if len(order) < 2:
            fail(f"{found.path} has one labelled {what}: that can't be split into parts")
        if many:
            parts, note = fold_parts(args, graph, order)
        else:
            cuts = (order[indices] for indices in split(len(order), 0.2, 0))
            parts = dict(zip(("train", "test"), (Some(graph, cut) for cut in cuts), strict=True))
            note = "a seeded fifth of the labelled nodes is the test set"
        notes.append(note)
    facts = {"task": "graphs" if many else "nodes", "columns": found.columns}
    if not any(found.splits) or not (found.columns or many):
        facts["names"] = list(known or graph.names)
    return Source(classes, parts, "; ".join(notes), facts)


def own_parts(found: Tables, order: Sequence[int], what: str) -> dict[str, Some]:
    """The parts that the column split names."""
    indices: dict[str, list[int]] = {"train": [], "val": [], "test": []}
    for part, label, line in zip(found.splits, found.labels, found.lines, strict=True):
        if part and part not in indices:
            fail(f"{found.path}: line {line}: split is {part!r}, not train, val or test")
        if part and not label:
            fail(f"{found.path}: line {line} is in the part {part}, but its label is missing")
    for k in order:
        if found.splits[k]:
            indices[found.splits[k]].append(k)
    if empty := [part for part in ("train", "test") if not indices[part]]:
        fail(f"{found.path}: no {what} is in the part {empty[0]} (column split)")
    return {part: Some(found.graph, torch.tensor(some)) for part, some in indices.items() if some}


READERS = {"karate": karate, "ppi": ppi, "tu": tu_set, "graph": user_graph, "graphs": user_graph}
READERS |= dict.fromkeys(PLANETOID, planetoid) | dict.fromkeys(MOLECULES, tu_set)


# ---------------------------------------------------------------------- all together


def load_graphs(args: cli.Flags, dev: Device) -> tuple[GraphSet, GraphSet | None, GraphSet]:
    """The training, validation (None without --val) and test set of `--data`."""
    kind = args.data.partition(":")[0]
    source = READERS[kind](args)
    task, all_parts = source.facts["task"], dict(source.parts)
    if task == "nodes" and "val" not in {*all_parts, *args.chosen}:
        args = args.but(val=0)  # too few have labels to cut some off unasked
    source = open_source(args, dev, {kind: lambda _: source}, shared=task == "graphs")
    parts, stored = source.parts, args.stored.get("dataset", {})
    for flag in ("window", "patience"):
        if "val" not in parts and flag in args.typed:
            fail(f"--{flag} needs a validation set to watch: give --val N too")
    if task != "labels" and not args.evaluate:
        check_classes(args, source.classes, parts["train"])
    if args.unseen:
        others = [p.indices for some in (all_parts, parts) for n, p in some.items() if n != "train"]
        graph, place = parts["train"].graph.without(torch.cat(others))
        parts["train"] = Some(graph, place[parts["train"].indices])
    facts = {"classes": source.classes, "kind": kind, "columns": [], **source.facts}
    facts["channels"] = parts["train"].graph.features.shape[1]
    if stored and stored["channels"] != facts["channels"]:
        fail(f"{args.data} has {counted(facts['channels'], 'feature')} a node, and the network "
             f"takes {stored['channels']:,}")  # fmt: skip
    facts |= scale_features(args, parts, task, stored)
    graphs = {id(part.graph): part.graph.to(dev.device) for part in parts.values()}  # one copy
    sets = {n: GraphSet(n, graphs[id(p.graph)], p.indices, facts, dev) for n, p in parts.items()}
    graph = sets["train"].graph
    size = f"{counted(len(graph.features), 'node')}, {counted(graph.edge_index.shape[1], 'edge')}"
    more = named(source.classes) if task != "labels" else f"{len(source.classes)} labels"
    what = "graphs" if task == "graphs" else "labelled nodes"
    say_parts(args, dev, sets, what, more, size, counted(facts["channels"], "feature"))
    if source.note:
        dev.say(f"note: {source.note}")
    if "val" not in parts and (args.window or args.patience):
        dev.say("note: no validation set, so nothing stops the training (--val N cuts one off)")
    if len(source.classes) == 1:
        dev.say("note: with one class there is nothing to tell apart: every answer is right")
    return sets["train"], sets.get("val"), sets["test"]


def scale_features(args: cli.Flags, parts: dict[str, Some], task: str, stored: dict) -> dict:
    """Brings the features of all parts to scale; returns what belongs among the facts.

    Means and standard deviations are those of the nodes in training, or of a checkpoint's training.
    """
    graphs, facts = {id(part.graph): part.graph for part in parts.values()}.values(), {}
    if not all(bool(graph.features.isfinite().all()) for graph in graphs):
        fail(f"{args.data} has features that are not finite numbers")
    if args.features == "standard":
        train = parts["train"].graph
        seen = torch.isin(train.graph_of, parts["train"].indices) if task == "graphs" else ...
        mean, std = column_scales(train.features[seen])
        facts = {"mean": stored.get("mean", mean.tolist()), "std": stored.get("std", std.tolist())}
    for graph in graphs:
        graph.features = scaled(graph.features, args.features, facts)
    return facts


def scaled(features: Tensor, how: str, facts: dict) -> Tensor:
    """Features as the flag --features says; mean and std for "standard" are among the facts."""
    if how == "standard":
        return (features - torch.tensor(facts["mean"])) / torch.tensor(facts["std"])
    return row_normalised(features) if how == "rows" else features


def check_classes(args: cli.Flags, classes: Sequence[str], train: Some) -> None:
    """Fails if a class has no training example."""
    there = set(train.graph.labels[train.indices].tolist())
    if absent := [name for k, name in enumerate(classes) if k not in there]:
        why = [f"--{flag}" for flag in ("limit", "val") if flag in args.typed]
        hint = f": change {' and '.join(why)}" if why else ""
        fail(f"the class {absent[0]!r} of {args.data} is absent from the training set{hint}")
