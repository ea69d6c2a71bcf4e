"""Classifies whole graphs: a network for nodes, pooled over the nodes of each graph."""

import torch
from torch import Tensor, nn

READOUTS = ["mean", "sum", "max"]


class GraphClassifier(nn.Module):
    """The logits of a graph are a linear map of its nodes' pooled features.

    `nodes` maps (N, C) to (N, `channels`); its graphs lie one after another.
    """

    def __init__(self, nodes: nn.Module, channels: int, num_classes: int, readout: str = "mean"):
        super().__init__()
        self.nodes, self.readout = nodes, readout
        self.head = nn.Linear(channels, num_classes)

    def embed(self, x: Tensor, edges: Tensor, graph_of: Tensor, num_graphs: int) -> Tensor:
        """Features (N, C), and the graph of each node (N,), to the graphs' features (G, C_out)."""
        h = torch.relu(self.nodes(x, edges))
        places = graph_of[:, None].expand_as(h)
        zeros = h.new_zeros(num_graphs, h.shape[1])
        if self.readout == "max":
            return zeros.scatter_reduce(0, places, h, "amax", include_self=False)
        total = zeros.scatter_add(0, places, h)
        if self.readout == "sum":
            return total
        counts = torch.bincount(graph_of, minlength=num_graphs).clamp(min=1)
        return total / counts[:, None]

    def forward(self, x: Tensor, edges: Tensor, graph_of: Tensor, num_graphs: int) -> Tensor:
        """Logits (G, K)."""
        return self.head(self.embed(x, edges, graph_of, num_graphs))
