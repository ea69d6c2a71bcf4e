"""Graphs in memory: parts of a data set, and batches of them.

train, val, test = load_graphs(args, dev)
for batch in run.progress(train.batches(args.batch_size)): ...
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from common import seed_of
from common.data.batches import Batches
from common.device import Device

NUM_DEGREES = 64  # features of nodes that have none


@dataclasses.dataclass
class Graph:
    """A graph, or many of them one after another.

    Labels are (N,) classes of nodes, -1 where unknown; (N, K) zeros and ones where a node has
    several; or (G,) classes of graphs. `names` are those of what has labels, in the user's tables.
    """

    features: Tensor  # (N, C)
    edge_index: Tensor  # (2, E), sources and targets
    labels: Tensor
    graph_of: Tensor | None = None  # (N,), in order
    names: Sequence[str] | None = None

    def to(self, device: torch.device) -> "Graph":
        """The graph with its tensors on a device."""
        values = (getattr(self, field.name) for field in dataclasses.fields(self))
        return Graph(*(v.to(device) if isinstance(v, Tensor) else v for v in values))

    def without(self, nodes: Tensor) -> tuple["Graph", Tensor]:
        """The one graph that is left without `nodes`, and each node's new place (-1: gone)."""
        from torch_geometric.utils import subgraph

        stays = torch.ones(len(self.features), dtype=torch.bool)
        stays[nodes] = False
        place = torch.where(stays, stays.cumsum(0) - 1, -1)
        edges, _ = subgraph(stays, self.edge_index, relabel_nodes=True)
        names = self.names and [n for n, s in zip(self.names, stays.tolist(), strict=True) if s]
        return Graph(self.features[stays], edges, self.labels[stays], None, names), place


@dataclasses.dataclass
class Some:
    """Those nodes of a graph, or of many graphs those, that are a part of a data set."""

    graph: Graph
    indices: Tensor

    def __len__(self) -> int:
        return len(self.indices)

    def take(self, indices: Tensor) -> "Some":
        """A smaller part: those at `indices` of this one."""
        return Some(self.graph, self.indices[indices])


def by_degree(edge_index: Tensor, num_nodes: int) -> Tensor:
    """Features for nodes without any: a one at the number of neighbours (N, NUM_DEGREES)."""
    from torch_geometric.utils import degree, one_hot

    degrees = degree(edge_index[1], num_nodes, torch.int64).clamp(max=NUM_DEGREES - 1)
    return one_hot(degrees, NUM_DEGREES)


def row_normalised(features: Tensor) -> Tensor:
    """Each node's features divided by their sum (of absolute values); rows of zeros stay."""
    return features / features.abs().sum(1, keepdim=True).clamp(min=1e-12)


def column_scales(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (C,) of columns; 0 and 1 for those of zeros and ones alone."""
    std, mean = torch.std_mean(features.double(), 0, correction=0)
    as_is = ((features == 0) | (features == 1)).all(0) | (std == 0)
    return mean.masked_fill(as_is, 0.0).float(), std.masked_fill(as_is, 1.0).float()


class Batch(NamedTuple):
    """What a network is called with, `net(*inputs)`, and which rows of its answer have labels.

    `count` is how many terms the loss of a part has, where parts of a step may differ in that.
    """

    inputs: tuple
    rows: Tensor | slice
    labels: Tensor | list[Tensor]
    count: int | None = None


class GraphSet:
    """One part of a data set: `part` is "train", "val" or "test"; `indices` are what counts of it.

    `facts` holds `classes`, `task` ("nodes": a class each; "labels": several each; "graphs": a
    class each) and the `channels` of the features; the parts share it.
    """

    def __init__(self, part: str, graph: Graph, indices: Tensor, facts: dict, dev: Device):
        self.part, self.facts, self.dev = part, facts, dev
        self.graph, self.indices = graph.to(dev.device), indices.to(dev.device)
        if graph.graph_of is not None:
            counts = torch.bincount(graph.graph_of)
            edges = torch.bincount(graph.graph_of[graph.edge_index[0]], minlength=len(counts))
            zero = torch.zeros(1, dtype=torch.int64)
            self.starts = torch.cat([zero, counts.cpu().cumsum(0)]).to(dev.device)  # of nodes
            self.edge_starts = torch.cat([zero, edges.cpu().cumsum(0)]).to(dev.device)

    def __len__(self) -> int:
        return len(self.indices)

    def everything(self) -> Batch:
        """The whole graph at once, or all graphs as one."""
        graph, inputs = self.graph, (self.graph.features, self.graph.edge_index)
        if self.facts["task"] == "graphs":
            inputs += (graph.graph_of, len(graph.labels))
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
        labels = self.graph.labels[nodes]
        return Batch(inputs, slice(None), labels, labels.numel())

    def batches(
        self, batch_size: int, make: Callable | None = None, size: int | None = None
    ) -> Batches:
        """Steps of `batch_size` graphs; or of what `make(indices, key)` makes a batch of.

        The key is a number that depends on seed, epoch and step; `size`, else that of the part,
        counts what the indices are drawn from.
        """
        of_part = self.facts["task"] == "graphs"  # not all graphs that are there

        def fetch(parts: list[Tensor], draws: list, epoch: int):
            for indices, draw in zip(parts, draws, strict=True):
                indices = indices.to(self.dev.device)
                if make:
                    yield make(indices, seed_of(*draw.keys[0]))
                else:
                    yield self.some(self.indices[indices] if of_part else indices)

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
