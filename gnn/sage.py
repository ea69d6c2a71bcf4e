"""GraphSAGE (Hamilton, Ying, Leskovec 2017, arXiv:1706.02216): inductive learning by sampling.

A convolution over the whole graph learns about that graph. GraphSAGE learns how to aggregate: a
node's new features are a map of its own and of its neighbours' mean (or maximum), so nodes never
seen in training get theirs, too; and a sample of the neighbours will do, so that a step costs the
same however large the graph is.

Shapes: N nodes, E edges, B nodes of a batch, C channels, K classes.

`Neighbours` draws them: numbers are a hash of (key, node, place), so that a node has the same
neighbours in whatever part of a batch it is. Layers equal PyTorch Geometric's
SAGEConv(normalize=True) and bear its names. Departures: the L2 norm is taken before the ReLU, not
after; a node with fewer neighbours than are asked for gives each of them once (the paper draws
some repeatedly: the same mean, with noise); the means are of the neighbours alone.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gnn.graph import Edges, linear, remembered, weighted_sum

Block = tuple[Tensor, int]  # edges (2, E), targets: the first so many nodes


class SageLayer(nn.Module):
    """W_l aggregate(neighbours) + W_r own, of length 1 (Alg. 1, lines 4, 5 and 7).

    With `aggregator="max"` the neighbours pass a ReLU layer first (Eq. 3).
    """

    def __init__(self, in_channels: int, out_channels: int, aggregator: str = "mean"):
        super().__init__()
        if aggregator not in ("mean", "max"):
            raise ValueError(f"unknown aggregator {aggregator!r}: there are mean, max")
        self.aggregator = aggregator
        self.lin_l = nn.Linear(in_channels, out_channels)
        self.lin_r = nn.Linear(in_channels, out_channels, bias=False)
        if aggregator == "max":
            self.lin = nn.Linear(in_channels, in_channels)

    # fmt: off
    def forward(self, x: Tensor, edges: Tensor | Block) -> Tensor:
        """Features (N, C_in) and edges to (N, C_out); of a block, of its targets alone."""
        edge_index, num_targets = (edges, len(x)) if isinstance(edges, Tensor) else edges
        kind = ("plain", len(x), num_targets)
        edges = remembered(edge_index, kind, lambda: Edges(edge_index, len(x), num_targets))
        narrower = self.lin_l.in_features > self.lin_l.out_features
        if self.aggregator == "max":
            z = linear(x, self.lin.weight) + self.lin.bias
            z = self.lin_l(maximum(F.relu(z), edges))               # Eq. 3
        elif narrower:                                              # the mean of maps is the
            z = mean(linear(x, self.lin_l.weight), edges) + self.lin_l.bias     # map of the mean
        else:
            z = self.lin_l(mean(x, edges))                          # Alg. 1, line 4
        own = x if num_targets == len(x) else x[:num_targets]
        z = z + linear(own, self.lin_r.weight)                      # line 5: W [own || neighbours]
        return F.normalize(z, dim=1)                                # line 7
    # fmt: on


def mean(x: Tensor, edges: Edges) -> Tensor:
    """The mean over each target's neighbours; zeros where there are none."""
    exact = torch.promote_types(x.dtype, torch.float32)
    if edges.weights is None or edges.weights.dtype != exact:
        edges.weights = (1 / edges.degrees().clamp(min=1).to(exact)).index_select(0, edges.targets)
    return weighted_sum(edges.weights, x, edges)


def maximum(x: Tensor, edges: Edges) -> Tensor:
    """The greatest value among each target's neighbours; zeros where there are none."""
    places = edges.targets[:, None].expand(-1, x.shape[1])
    zeros = x.new_zeros(edges.num_targets, x.shape[1])
    messages = x.index_select(0, edges.sources)
    return zeros.scatter_reduce(0, places, messages, "amax", include_self=False)


class SAGE(nn.Module):
    """Layers of SAGE and, for labels, a linear one on top (Sec. 3.1, 4).

    The edges are those of a whole graph, (2, E), or blocks from `Neighbours`, one a layer.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        hidden: Sequence[int] = (128, 128),
        dropout: float = 0.5,
        aggregator: str = "mean",
    ):
        super().__init__()
        widths = [in_channels, *hidden]
        self.convs = nn.ModuleList(
            SageLayer(a, b, aggregator) for a, b in zip(widths[:-1], hidden, strict=True)
        )
        self.lin = nn.Linear(widths[-1], num_classes)
        self.dropout = dropout

    def embed(self, x: Tensor, edges: Tensor | Sequence[Block]) -> Tensor:
        """Features (N, C) to embeddings of length 1, (N, C_out), or (B, C_out) of blocks."""
        for number, conv in enumerate(self.convs):
            x = F.dropout(F.relu(x), self.dropout, self.training) if number else x
            x = conv(x, edges if isinstance(edges, Tensor) else edges[number])
        return x

    def forward(self, x: Tensor, edges: Tensor | Sequence[Block]) -> Tensor:
        """Features (N, C) and edges to logits (N, K), or (B, K) of blocks."""
        z = self.embed(x, edges)
        return self.lin(F.dropout(z, self.dropout, self.training))


def scramble(numbers: Tensor) -> Tensor:
    """Whole numbers to others that look random, below 2^62 (the mixer of splitmix64)."""
    for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15)):
        numbers = (numbers ^ (numbers >> shift & (1 << 64 - shift) - 1)) * factor
    return (numbers ^ (numbers >> 31 & (1 << 33) - 1)) & (1 << 62) - 1


class Neighbours:
    """Draws neighbours without replacement from a graph (N nodes), in time and memory of a batch.

    The edges (2, E) are sorted once.
    """

    def __init__(self, edge_index: Tensor, num_nodes: int):
        edges = Edges(edge_index, num_nodes)
        self.sources, self.offsets, self.num_nodes = edges.sources, edges.offsets, num_nodes

    # fmt: off
    def draw(self, nodes: Tensor, count: int, key: int) -> tuple[Tensor, Tensor]:
        """Neighbours of `nodes` (n,), at most `count` each, as (which of the nodes, neighbour).

        Every set of `count` neighbours is as likely as any other: Floyd's way of drawing one.
        """
        first = self.offsets[nodes]
        degree = self.offsets[nodes + 1] - first                    # (n,)
        place = torch.arange(count, device=nodes.device)[:, None]   # (count, 1)
        unit = torch.tensor(key & (1 << 62) - 1, device=nodes.device)
        base = scramble(nodes * 0x9E3779B97F4A7C1 + unit)
        drawn = scramble(base + place * 0x632BE59BD9B4E019 % (1 << 62))  # (count, n)
        upper = degree - count + place                              # the largest that may be drawn
        drawn = torch.where(upper < 0, place, drawn % (upper.clamp(min=0) + 1))
        for i in range(1, count):                                   # drawn before: take the largest
            again = (drawn[:i] == drawn[i]).any(0)
            drawn[i] = torch.where(again, upper[i], drawn[i])
        drawn = torch.where(degree <= count, place, drawn).t()      # few: all of them
        there = place.t() < degree[:, None]                         # (n, count)
        which = there.nonzero()[:, 0]
        return which, self.sources[(drawn + first[:, None])[there]]

    def all(self, nodes: Tensor) -> tuple[Tensor, Tensor]:
        """All neighbours of `nodes`, as `draw` gives them."""
        first = self.offsets[nodes]
        degree = self.offsets[nodes + 1] - first                    # (n,)
        which = torch.arange(len(nodes), device=nodes.device).repeat_interleave(degree)
        place = torch.arange(len(which), device=nodes.device)       # and that of a node's first:
        return which, self.sources[(first - degree.cumsum(0) + degree)[which] + place]

    def sample(
        self, seeds: Tensor, fanouts: Sequence[int], key: int
    ) -> tuple[Tensor, list[Block]]:
        """The nodes that `seeds` (B,), all different, need, these first; a block for each layer.

        `fanouts` count neighbours, those of the seeds first (Alg. 2). Zero stands for all.
        """
        nodes, blocks = seeds, []
        for hop, count in enumerate(fanouts):
            which, found = self.draw(nodes, count, key + hop) if count else self.all(nodes)
            num_targets = len(nodes)
            nodes, places = number(nodes, found)
            blocks.append((torch.stack([places, which]), num_targets))
        return nodes, blocks[::-1]
    # fmt: on


def number(nodes: Tensor, found: Tensor) -> tuple[Tensor, Tensor]:
    """`nodes` (n,) and the new ones among `found` (m,) behind them; and the places of `found`."""
    together = torch.cat([nodes, found])
    unique, inverse = together.unique(return_inverse=True)
    new = torch.ones_like(unique, dtype=torch.bool)
    new[inverse[: len(nodes)]] = False
    place = torch.empty_like(unique)
    place[inverse[: len(nodes)]] = torch.arange(len(nodes), device=nodes.device)
    place[new] = torch.arange(len(nodes), len(unique), device=nodes.device)
    return torch.cat([nodes, unique[new]]), place[inverse[len(nodes) :]]


def walk_batch(
    graph: Neighbours, nodes: Tensor, key: int, length: int = 5, negatives: int = 20
) -> tuple[Tensor, Tensor, Tensor]:
    """What Eq. 1 needs for `nodes` (B,): seeds (S,), and places there: pairs (2, P), others (Q,).

    Pairs are a node and one met on a random walk of `length` steps from it. The others are
    drawn by degree^0.75, for the whole batch once.
    """
    start, here, pairs = nodes, nodes, []
    for step in range(length):
        which, found = graph.draw(here, 1, key + 100 + step)
        start, here = start[which], found
        pairs.append(torch.stack([start, here]))
    ends = torch.cat(pairs, 1)
    ends = ends[:, ends[0] != ends[1]]
    generator = torch.Generator().manual_seed(key)
    chance = graph.offsets.diff().cpu().double() ** 0.75
    others = torch.multinomial(chance, negatives, replacement=True, generator=generator)
    together = torch.cat([ends.flatten(), others.to(nodes.device)])
    seeds, places = together.unique(return_inverse=True)
    return seeds, places[: ends.numel()].view(2, -1), places[ends.numel() :]


def unsupervised_loss(z: Tensor, ends: Tensor, others: Tensor, reduction: str = "mean") -> Tensor:
    """Eq. 1: embeddings (S, C) of near nodes are alike, those of random ones are not.

    `ends` (2, P) are rows that meet on walks, `others` (Q,) rows drawn at random. The `reduction`
    over the P pairs is "mean" or "sum".
    """
    near = (z[ends[0]] * z[ends[1]]).sum(1)
    far = z[ends[0]] @ z[others].t()  # (P, Q)
    losses = -(F.logsigmoid(near) + F.logsigmoid(-far).sum(1))
    return losses.mean() if reduction == "mean" else losses.sum()


def sage(in_channels: int = 1433, num_classes: int = 7, **settings) -> SAGE:
    """Two layers of 128 channels, mean aggregator."""
    return SAGE(in_channels, num_classes, **settings)
