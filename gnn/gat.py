"""Graph attention networks (Veličković and others 2017, arXiv:1710.10903).

A graph convolution weighs neighbours by their degrees alone. Here a node looks at what its
neighbours hold: a small network scores each edge, a softmax over the edges of a node makes weights
of the scores, and several heads do so side by side.

Shapes: N nodes, E edges (self-loops included), C channels of a head, H heads, K classes.

Parameter names are those of PyTorch Geometric. Departure: with `attention="constant"` (Sec. 3.3's
Const-GAT) every neighbour weighs the same.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gnn.graph import Edges, EdgeSum, Spread, linear, remembered, weighted_sum, without_loops


def with_loops(edge_index: Tensor, num_nodes: int) -> Edges:
    """The edges and one self-loop for each node."""
    make = lambda: Edges(without_loops(edge_index, num_nodes), num_nodes)  # noqa: E731
    return remembered(edge_index, ("loops", num_nodes), make)


def softmax(scores: Tensor, edges: Edges) -> Tensor:
    """Scores (E, H) to weights that add up to 1 over the edges of each target."""
    places = edges.targets[:, None].expand_as(scores)
    top = scores.new_full((edges.num_targets, scores.shape[1]), -torch.inf)
    top = top.scatter_reduce(0, places, scores.detach(), "amax")  # so that exp doesn't overflow
    shares = (scores - top.index_select(0, edges.targets)).exp()
    if torch.compiler.is_exporting():
        total = torch.zeros_like(top).index_add(0, edges.targets, shares)
        return shares / total.index_select(0, edges.targets)
    return shares / Spread.apply(EdgeSum.apply(shares, edges), edges, "targets")


class AttentionLayer(nn.Module):
    """H heads of attention over the neighbours (Fig. 1); `concat` them, or take their mean."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        num_heads: int = 1,
        concat: bool = True,
        dropout: float = 0.0,
        slope: float = 0.2,
        constant: bool = False,
    ):
        super().__init__()
        self.num_heads, self.channels, self.concat = num_heads, out_channels, concat
        self.dropout, self.slope, self.constant = dropout, slope, constant
        self.lin = nn.Linear(in_channels, num_heads * out_channels, bias=False)
        self.att_src = nn.Parameter(torch.empty(1, num_heads, out_channels))
        self.att_dst = nn.Parameter(torch.empty(1, num_heads, out_channels))
        self.bias = nn.Parameter(torch.zeros(out_channels * (num_heads if concat else 1)))
        self.recording, self.weights = False, None  # with recording: (E, H) of the last pass
        for weight in (self.lin.weight, self.att_src, self.att_dst):
            nn.init.xavier_uniform_(weight)

    # fmt: off
    def forward(self, x: Tensor, edge_index: Tensor, dropout: float = 0.0) -> Tensor:
        """Features (N, C_in) and edges (2, E) to (N, H C) or (N, C); `dropout` of the features."""
        edges = with_loops(edge_index, len(x))
        h = linear(x, self.lin.weight, dropout, self.training)
        h = h.view(-1, self.num_heads, self.channels)           # (N, H, C), W h
        exact = torch.promote_types(h.dtype, torch.float32)     # a softmax is nothing for bf16
        source = (h * self.att_src).sum(2).to(exact)            # (N, H): a^T [Wh_i || Wh_j] is the
        target = (h * self.att_dst).sum(2).to(exact)            # sum of two products
        if self.constant:
            source, target = source * 0, target * 0             # the same weights for all
        if torch.compiler.is_exporting():
            scores = source[edges.sources] + target[edges.targets]
        else:
            scores = Spread.apply(source, edges, "sources") + Spread.apply(target, edges, "targets")
        alpha = softmax(F.leaky_relu(scores, self.slope), edges)   # (E, H), Eq. 3
        if self.recording:
            self.weights = alpha.detach()
        alpha = F.dropout(alpha, self.dropout, self.training).t().contiguous()
        heads = h.transpose(0, 1).contiguous()                  # (H, N, C)
        heads = [weighted_sum(a, z, edges) for a, z in zip(alpha, heads, strict=True)]  # Eq. 4
        out = torch.cat(heads, 1) if self.concat else torch.stack(heads).mean(0)  # Eq. 5, 6
        return out + self.bias
    # fmt: on


class GAT(nn.Module):
    """Attention layers with ELU between them (Sec. 3.3).

    `hidden` are the channels of a head in each hidden layer. `residual` adds a layer's input, by a
    linear map where the widths differ (the paper's network for PPI). `attention` is "learned", or
    "constant".
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        hidden: Sequence[int] = (8,),
        num_heads: int = 8,
        out_heads: int = 1,
        dropout: float = 0.6,
        residual: bool = False,
        attention: str = "learned",
    ):
        super().__init__()
        widths = [in_channels, *(num_heads * channels for channels in hidden)]
        shared = dict(dropout=dropout, constant=attention == "constant")
        self.convs = nn.ModuleList(
            AttentionLayer(width, channels, num_heads, **shared)
            for width, channels in zip(widths, hidden, strict=False)
        )
        last = AttentionLayer(widths[-1], num_classes, out_heads, concat=False, **shared)
        self.convs.append(last)
        self.dropout, self.residual = dropout, residual
        outputs = [*widths[1:], num_classes]
        pairs = list(zip(widths, outputs, strict=True)) if residual else []
        self.skips = nn.ModuleList(
            nn.Identity() if a == b else nn.Linear(a, b, bias=False) for a, b in pairs
        )

    def layer(self, number: int, x: Tensor, edge_index: Tensor) -> Tensor:
        """One layer, and what goes around it."""
        out = self.convs[number](x, edge_index, self.dropout)
        return out + self.skips[number](x) if self.residual else out

    def embed(self, x: Tensor, edge_index: Tensor) -> Tensor:
        """Features (N, C) to those of the last hidden layer (N, H C)."""
        for number in range(len(self.convs) - 1):
            x = F.elu(self.layer(number, x, edge_index))
        return x

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        """Features (N, C) and edges (2, E) to logits (N, K)."""
        return self.layer(len(self.convs) - 1, self.embed(x, edge_index), edge_index)


def gat(in_channels: int = 1433, num_classes: int = 7, **settings) -> GAT:
    """Sec. 3.3: 8 heads of 8 channels, then one of K, dropout 0.6; 92,373 parameters on Cora."""
    return GAT(in_channels, num_classes, **settings)
