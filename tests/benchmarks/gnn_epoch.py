"""Times a training epoch of GCN, GraphSAGE and GAT beside the same model on PyG's layers.

    python tests/benchmarks/gnn_epoch.py --data-dir PATH           # on Cora
    python tests/benchmarks/gnn_epoch.py --data synthetic          # 100,000 nodes, 2,000,000 edges
    python tests/benchmarks/gnn_epoch.py --data synthetic --peak   # peak memory of each side
    python tests/benchmarks/gnn_epoch.py --sampler                 # 1,024 seeds, 25, 10 neighbours

An epoch is one full-batch step: forward, loss of the labelled nodes, backward, Adam. Both sides
have the same sizes and dropout (theirs on dense features, as in PyG's examples; GCNConv keeps its
normalised edges), fp32, and take turns in one process. Printed is the ratio of medians, theirs over
ours. Peak memory is that of a process of its own for each side, above what it was before.
"""

import argparse
import os
import subprocess
import sys
import time

os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "16384")

import torch
import torch.nn.functional as F
from timing import interleave, ratio
from torch import Tensor, nn

from common.device import peak_memory
from gnn.model import MODELS
from gnn.sage import Neighbours


class Reference(nn.Module):
    """The same network on PyTorch Geometric's layers."""

    def __init__(self, name: str, in_channels: int, num_classes: int):
        super().__init__()
        from torch_geometric.nn import GATConv, GCNConv, SAGEConv

        self.name, self.lin = name, nn.Identity()
        if name == "gcn":
            shapes, self.drop = ((in_channels, 16), (16, num_classes)), 0.5
            convs = [GCNConv(a, b, cached=True) for a, b in shapes]
        elif name == "gat":
            self.drop, heads = 0.6, dict(dropout=0.6)
            convs = [GATConv(in_channels, 8, 8, **heads)]
            convs.append(GATConv(64, num_classes, 1, concat=False, **heads))
        else:
            self.drop, self.lin = 0.5, nn.Linear(128, num_classes)
            convs = [SAGEConv(a, 128, normalize=True) for a in (in_channels, 128)]
        self.convs = nn.ModuleList(convs)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        first, second = self.convs
        if self.name == "sage":
            x = second(
                F.dropout(F.relu(first(x, edge_index)), self.drop, self.training), edge_index
            )
            return self.lin(F.dropout(x, self.drop, self.training))
        act = F.relu if self.name == "gcn" else F.elu
        x = act(first(F.dropout(x, self.drop, self.training), edge_index))
        return second(F.dropout(x, self.drop, self.training), edge_index)


def make_data(args: argparse.Namespace) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Features, edges, labels and the labelled nodes."""
    if args.data == "cora":
        from torch_geometric.io import read_planetoid_data

        data = read_planetoid_data(f"{args.data_dir}/Planetoid/Cora/raw", "cora")
        x = data.x / data.x.sum(1, keepdim=True).clamp(min=1)
        return x, data.edge_index, data.y, data.train_mask.nonzero()[:, 0]
    torch.manual_seed(0)
    x, labels = torch.randn(args.nodes, args.channels), torch.randint(0, 10, (args.nodes,))
    edges = torch.randint(0, args.nodes, (2, args.edges // 2))
    train = torch.randperm(args.nodes)[: args.nodes // 10]
    return x, torch.cat([edges, edges.flip(0)], 1), labels, train


def stepper(name: str, ours: bool, data: tuple[Tensor, ...]):
    """A function that trains one epoch."""
    x, edge_index, labels, train = data
    make = MODELS[name] if ours else lambda *sizes: Reference(name, *sizes)
    model = make(x.shape[1], int(labels.max()) + 1).train()
    optimizer = torch.optim.Adam(model.parameters(), 0.01)

    def step() -> None:
        F.cross_entropy(model(x, edge_index)[train], labels[train]).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def peak(name: str, ours: bool, args: argparse.Namespace) -> None:
    """Prints the peak memory of three epochs, MiB above that before."""
    data = make_data(args)
    if not ours:
        import torch_geometric.nn  # noqa: F401
    before = peak_memory()
    step = stepper(name, ours, data)
    for _ in range(3):
        step()
    print(peak_memory() - before)


def sampler(args: argparse.Namespace) -> None:
    """Prints the median time of a sample on a graph of a million nodes and ten million edges."""
    torch.manual_seed(0)
    edges = torch.randint(0, 1_000_000, (2, 10_000_000))
    graph, times = Neighbours(edges, 1_000_000), []
    for key in range(5 * args.rounds):
        seeds = torch.randint(0, 1_000_000, (1100,)).unique()[:1024]
        begin = time.perf_counter()
        nodes, _ = graph.sample(seeds, (25, 10), key)
        times.append(1000 * (time.perf_counter() - begin))
    low, median, high = (sorted(times)[len(times) * k // 4] for k in (1, 2, 3))
    print(f"sampling: {median:.1f} ms (quartiles {low:.1f} to {high:.1f}), {len(nodes):,} nodes")


def main() -> None:
    """Prints the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", choices=["cora", "synthetic"], default="cora")
    parser.add_argument("--data-dir", default="data")
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--nodes", type=int, default=100_000)
    parser.add_argument("--edges", type=int, default=2_000_000)
    parser.add_argument("--channels", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--peak", action="store_true")
    parser.add_argument("--sampler", action="store_true")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        return peak(args.one[0], args.one[1] == "ours", args)
    if args.sampler:
        return sampler(args)
    data = None if args.peak else make_data(args)
    for name in args.models:
        if args.peak:
            sides = []
            for side in ("ours", "theirs"):
                command = [sys.executable, *sys.argv, "--one", name, side]
                out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
                sides.append(float(out.split()[-1]))
            print(f"{name:>5}: {sides[0]:.0f} MiB, theirs {sides[1]:.0f}", flush=True)
        else:
            times = interleave([stepper(name, ours, data) for ours in (True, False)], args.rounds)
            medians = [1000 * sorted(side)[len(side) // 2] for side in times]
            line = f"{medians[0]:.1f} ms, theirs {medians[1]:.1f} ms"
            print(f"{name:>5}: {ratio(*times)} ({line})", flush=True)


if __name__ == "__main__":
    main()
