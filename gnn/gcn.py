"""Graph convolutional networks (Kipf and Welling 2016, arXiv:1609.02907).

A layer takes the weighted mean of a node and its neighbours, and a linear map of that: with two
layers a node sees two steps far, and a few labelled nodes teach the rest. The filter is the first
order of a spectral one, made stable by the "renormalisation trick".

Shapes: N nodes, E edges, C channels, K classes.

`RULES` are those of Table 3. A self-loop among the edges is replaced by the one that the rule adds,
as in PyTorch Geometric, whose parameter names these layers bear. Departures: the Chebyshev filters
take the largest eigenvalue of the Laplacian as 2, as Eq. 5 does; residual connections (Eq. 14) join
layers of equal width only.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from gnn.graph import Edges, linear, remembered, weighted_sum, without_loops

RULES = {  # name: (weight matrices in a layer, self-loops among the edges)
    "renormalised": (1, True),  # D~^-1/2 (A + I) D~^-1/2 X W
    "chebyshev3": (4, False),  # sum of T_k(L~) X W_k, k = 0 to 3
    "chebyshev2": (3, False),
    "first-order": (2, False),  # X W_0 + D^-1/2 A D^-1/2 X W_1
    "single": (1, False),  # (I + D^-1/2 A D^-1/2) X W
    "first-order-only": (1, False),  # D^-1/2 A D^-1/2 X W
    "mlp": (1, False),  # X W
}


def normalised(edge_index: Tensor, num_nodes: int, loops: bool, dtype: torch.dtype) -> Edges:
    """The edges with the weights D^-1/2 A D^-1/2; `loops`: of A + I, and D of that."""

    def make() -> Edges:
        full = without_loops(edge_index, num_nodes)
        edges = Edges(full if loops else full[:, : full.shape[1] - num_nodes], num_nodes)
        scale = edges.degrees().clamp(min=1).to(dtype).rsqrt()  # (N,), D^-1/2
        edges.weights = scale[edges.sources] * scale[edges.targets]
        return edges

    return remembered(edge_index, ("normalised", num_nodes, loops, dtype), make)


class GraphConvolution(nn.Module):
    """One propagation rule and its weights (Eq. 2 without the activation; Table 3)."""

    def __init__(self, in_channels: int, out_channels: int, rule: str = "renormalised"):
        super().__init__()
        if rule not in RULES:
            raise ValueError(f"unknown rule {rule!r}: there are {', '.join(RULES)}")
        self.rule, (self.num_terms, self.loops) = rule, RULES[rule]
        self.lin = nn.Linear(in_channels, self.num_terms * out_channels, bias=False)
        self.bias = nn.Parameter(torch.zeros(out_channels))
        for weight in self.lin.weight.chunk(self.num_terms):
            nn.init.xavier_uniform_(weight.data)

    # fmt: off
    def forward(self, x: Tensor, edge_index: Tensor, dropout: float = 0.0) -> Tensor:
        """Features (N, C_in) and edges (2, E) to (N, C_out); `dropout` of the features."""
        z = linear(x, self.lin.weight, dropout, self.training)  # (N, terms C_out), X W
        if self.rule == "mlp":
            return z + self.bias
        exact = torch.promote_types(z.dtype, torch.float32)
        edges = normalised(edge_index, len(x), self.loops, exact)
        def propagate(z: Tensor) -> Tensor:                     # (N, C_out), D^-1/2 A D^-1/2 Z
            return weighted_sum(edges.weights, z, edges)
        if self.rule == "single":
            z = z + propagate(z)                                # Eq. 7
        elif self.rule == "first-order":
            own, others = z.chunk(2, 1)
            z = own + propagate(others)                         # Eq. 6
        elif self.rule.startswith("chebyshev"):                 # Eq. 5, by Clenshaw's recurrence:
            first, *rest = z.chunk(self.num_terms, 1)           # L~ = L - I = -D^-1/2 A D^-1/2
            b1 = b2 = torch.zeros_like(first)
            for term in reversed(rest):
                b1, b2 = term - 2 * propagate(b1) - b2, b1      # b_k = Z_k + 2 L~ b_k+1 - b_k+2
            z = first - propagate(b1) - b2
        else:
            z = propagate(z)                                    # Eq. 8
        return z + self.bias
    # fmt: on


class GCN(nn.Module):
    """Layers of graph convolutions (Eq. 9); `hidden` are the channels between them.

    `residual` adds the input of a hidden layer to its output, where the widths are equal (Eq. 14).
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        hidden: Sequence[int] = (16,),
        dropout: float = 0.5,
        rule: str = "renormalised",
        residual: bool = False,
        activation: str = "relu",
    ):
        super().__init__()
        widths = [in_channels, *hidden, num_classes]
        self.convs = nn.ModuleList(GraphConvolution(a, b, rule) for a, b in pairwise(widths))
        self.dropout, self.residual, self.activation = dropout, residual, getattr(torch, activation)

    def embed(self, x: Tensor, edge_index: Tensor) -> Tensor:
        """Features (N, C) to those of the last hidden layer."""
        for conv in self.convs[:-1]:
            h = self.activation(conv(x, edge_index, self.dropout))
            x = h + x if self.residual and h.shape == x.shape else h
        return x

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        """Features (N, C) and edges (2, E) to logits (N, K)."""
        return self.convs[-1](self.embed(x, edge_index), edge_index, self.dropout)


def gcn(in_channels: int = 1433, num_classes: int = 7, **settings) -> GCN:
    """Sec. 5.2: 16 hidden units, dropout 0.5; 23,063 parameters on Cora."""
    return GCN(in_channels, num_classes, **settings)
