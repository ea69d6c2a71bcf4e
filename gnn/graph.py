"""What the three graph networks share: sparse sums over the edges of a graph, and sparse features.

Gathering a message for every edge and adding it to its target (index_add) moves E x C numbers
twice. Here edges are sorted by target once, and each target's sum is read off in one go
(`embedding_bag`: a sum of rows, weighted). Its gradient is the same sum over the edges sorted by
source. Both orders are remembered for as long as the tensor of edges lives.

Shapes: N nodes, E edges, C channels, H heads. `edge_index` (2, E) has sources, then targets.
"""

import warnings
from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.weak import WeakTensorKeyDictionary

SPARSE_FROM, SPARSE_SHARE = 64, 0.2  # features with so many columns, so few of them not zero

_remembered: Any = WeakTensorKeyDictionary()


def remembered(tensor: Tensor, key: Any, make: Callable) -> Any:
    """`make()`, or what it made last time for this very tensor, unchanged since, and key."""
    if torch.compiler.is_compiling() or tensor.is_inference():
        return make()
    version, known = _remembered.get(tensor, (None, {}))
    if version != tensor._version:
        known = {}
        _remembered[tensor] = (tensor._version, known)
    if key not in known:
        known[key] = make()
    return known[key]


class Edges:
    """Edges from nodes of one set (`num_sources`) to nodes of another, sorted by target.

    `weights`, (E,) in that order, are for those who need some. Raises ValueError for edges that
    name no node.
    """

    def __init__(self, edge_index: Tensor, num_sources: int, num_targets: int | None = None):
        num_targets = num_sources if num_targets is None else num_targets
        check_edges(edge_index, num_sources, num_targets)
        sources, targets = edge_index
        exporting = torch.compiler.is_exporting()  # its sums take edges in any order
        if not exporting and bool((targets[1:] < targets[:-1]).any()):
            targets, order = targets.sort(stable=True)
            sources = sources[order]
        self.sources, self.targets = sources.contiguous(), targets.contiguous()
        self.num_sources, self.num_targets = num_sources, num_targets
        self.offsets = starts(self.targets, num_targets)
        self.weights: Tensor | None = None

    @cached_property
    def by_source(self) -> tuple[Tensor, Tensor, Tensor]:
        """The order of the edges sorted by source, their targets so, and each source's start."""
        sources, order = self.sources.sort(stable=True)
        return order, self.targets[order], starts(sources, self.num_sources)

    @cached_property
    def places(self) -> Tensor:
        """0 to E - 1."""
        return torch.arange(len(self.sources), device=self.sources.device)

    @cached_property
    def pattern(self) -> Tensor:
        """A sparse matrix (targets, sources) with a zero for each edge."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that sparse tensors are in beta
            zeros, shape = torch.zeros(len(self.sources)), (self.num_targets, self.num_sources)
            return torch.sparse_csr_tensor(self.offsets, self.sources, zeros, shape)

    def degrees(self) -> Tensor:
        """Edges that end in each target (N,)."""
        return self.offsets.diff()


def check_edges(edge_index: Tensor, num_sources: int, num_targets: int) -> None:
    """Raises ValueError unless `edge_index` is (2, E), whole numbers, within the nodes (what an
    exported network can't look at)."""
    if edge_index.dim() != 2 or edge_index.shape[0] != 2 or edge_index.dtype != torch.int64:
        found = f"{tuple(edge_index.shape)}, {edge_index.dtype}"
        raise ValueError(f"edge_index has to be (2, E) of int64, not {found}")
    if torch.compiler.is_exporting():
        return
    for nodes, count in zip(edge_index, (num_sources, num_targets), strict=True):
        if len(nodes) and not (int(nodes.min()) >= 0 and int(nodes.max()) < count):
            wrong = int(nodes.min()) if int(nodes.min()) < 0 else int(nodes.max())
            raise ValueError(
                f"edge_index names node {wrong}, but there are {count}: 0 to {count - 1}"
            )


def starts(nodes: Tensor, count: int) -> Tensor:
    """Where each node's part of the sorted `nodes` begins, and where the last one ends."""
    if torch.compiler.is_exporting():  # the length of bincount's answer depends on the numbers
        zeros = nodes.new_zeros(count + 1)
        return zeros.index_add(0, nodes + 1, torch.ones_like(nodes)).cumsum(0)
    return F.pad(torch.bincount(nodes, minlength=count).cumsum(0), [1, 0])


def bag(rows: Tensor, offsets: Tensor, x: Tensor, weights: Tensor | None = None) -> Tensor:
    """out[i] = sum of weights[e] * x[rows[e]] for e from offsets[i] to offsets[i + 1]."""
    if not len(rows):
        return x.new_zeros(len(offsets) - 1, x.shape[1])
    return F.embedding_bag(
        rows, x, offsets, mode="sum", per_sample_weights=weights, include_last_offset=True
    )


class WeightedSum(torch.autograd.Function):
    """out[i] = sum over edges e from j to i of weights[e] * x[j]; gradients for both."""

    @staticmethod
    def forward(ctx, weights: Tensor, x: Tensor, edges: Edges) -> Tensor:
        """(E,) and (N, C) to (N, C)."""
        ctx.save_for_backward(weights, x)
        ctx.edges = edges
        return bag(edges.sources, edges.offsets, x, weights)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        """Gradients of weights: grad[i] . x[j]; of x: the sum over the edges turned round."""
        (weights, x), edges, grad = ctx.saved_tensors, ctx.edges, grad.contiguous()
        grad_weights = grad_x = None
        if ctx.needs_input_grad[0]:
            grad_weights = products(grad, x, edges)
        if ctx.needs_input_grad[1]:
            order, targets, offsets = edges.by_source
            grad_x = bag(targets, offsets, grad, weights[order])
        return grad_weights, grad_x, None


def products(a: Tensor, b: Tensor, edges: Edges, piece: int = 1 << 16) -> Tensor:
    """a[i] . b[j] for every edge from j to i (E,), without (E, C) numbers in memory."""
    if a.device.type == "cpu" and a.dtype == torch.float32 and len(edges.sources):
        return torch.sparse.sampled_addmm(edges.pattern, a, b.t(), beta=0.0).values()
    out = a.new_empty(len(edges.sources))
    for begin in range(0, len(out), piece):
        part = slice(begin, begin + piece)
        torch.sum(a[edges.targets[part]] * b[edges.sources[part]], 1, out=out[part])
    return out


class Spread(torch.autograd.Function):
    """What an edge's source or target holds, (N, H) to (E, H); its gradient is a sum of edges."""

    @staticmethod
    def forward(ctx, x: Tensor, edges: Edges, side: str) -> Tensor:
        """`side` is "sources" or "targets"."""
        ctx.edges, ctx.side = edges, side
        return x.index_select(0, getattr(edges, side))

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        """The sum over the edges of each node."""
        edges, grad = ctx.edges, grad.contiguous()
        if ctx.side == "targets":
            return bag(edges.places, edges.offsets, grad), None, None
        order, _, offsets = edges.by_source
        return bag(order, offsets, grad), None, None


class EdgeSum(torch.autograd.Function):
    """The sum of what the edges of each target hold, (E, H) to (N, H)."""

    @staticmethod
    def forward(ctx, x: Tensor, edges: Edges) -> Tensor:
        """The gradient needs the edges alone."""
        ctx.edges = edges
        return bag(edges.places, edges.offsets, x.contiguous())

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        """Each edge gets the gradient of its target."""
        return grad.index_select(0, ctx.edges.targets), None


def weighted_sum(weights: Tensor, x: Tensor, edges: Edges) -> Tensor:
    """For each target the sum over its edges of weight (E,) times the source's row (N, C)."""
    if torch.compiler.is_exporting():  # written out: no other runtime has the bags
        rows = weights.to(x.dtype)[:, None] * x.index_select(0, edges.sources)
        return x.new_zeros(edges.num_targets, x.shape[1]).index_add(0, edges.targets, rows)
    return WeightedSum.apply(weights.to(x.dtype), x.contiguous(), edges)


def without_loops(edge_index: Tensor, num_nodes: int) -> Tensor:
    """The edges, with exactly one from each node to itself."""
    check_edges(edge_index, num_nodes, num_nodes)
    own = torch.arange(num_nodes, device=edge_index.device).expand(2, -1)
    return torch.cat([edge_index[:, edge_index[0] != edge_index[1]], own], 1)


def sparse(features: Tensor) -> tuple[Edges, Tensor] | None:
    """Features (N, C) as "edges" from columns to rows with values, where most of them are zeros."""
    if torch.compiler.is_compiling() or features.is_inference():
        return None
    if features.requires_grad or features.shape[1] < SPARSE_FROM:
        return None

    def make() -> tuple[Edges, Tensor] | None:
        if int(features.count_nonzero()) > SPARSE_SHARE * features.numel():
            return None
        rows, columns = features.nonzero(as_tuple=True)
        edges = Edges(torch.stack([columns, rows]), features.shape[1], len(features))
        return edges, features[rows, columns]

    return remembered(features, "sparse", make)


def linear(
    features: Tensor, weight: Tensor, dropout: float = 0.0, training: bool = False
) -> Tensor:
    """dropout(features) @ weight^T, of (N, C_in) and (C_out, C_in).

    Of sparse features only what isn't zero is multiplied, and dropped: zeros stay zeros anyway, so
    that is the same distribution.
    """
    entries = sparse(features)
    if entries is None:
        return F.linear(F.dropout(features, dropout, training), weight)
    edges, values = entries
    return weighted_sum(F.dropout(values, dropout, training), weight.t(), edges)
