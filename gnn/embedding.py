"""What embeddings of nodes hold, and pictures of them."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from gnn.sets import GraphSet


@torch.no_grad()
def embeddings(model: nn.Module, part: GraphSet) -> Tensor:
    """What `model.embed` makes of the nodes, on the two axes of greatest variance (N, 2)."""
    model.eval()
    inputs = part.everything().inputs
    model(*inputs)  # with --fsdp the whole has to be called before a part of it
    z = model.embed(*inputs).float().cpu()
    if z.shape[1] == 2:
        return z
    centred = z - z.mean(0)
    return centred @ torch.linalg.svd(centred)[2][:2].t()


@torch.no_grad()
def probe(model: nn.Module, train: GraphSet, part: GraphSet) -> float:
    """Accuracy of a logistic regression on what `model` makes of nodes, fitted to `train`."""
    from sklearn.linear_model import LogisticRegression

    wholes = [p.everything() for p in (train, part)]
    (z, z_part) = (model(*whole.inputs)[whole.rows].float().cpu() for whole in wholes)
    labels, labels_part = (whole.labels.cpu() for whole in wholes)
    return float(LogisticRegression(max_iter=1000).fit(z, labels).score(z_part, labels_part))


def draw_frames(frames: Sequence[tuple[int, Tensor]], part: GraphSet, path: Path) -> None:
    """Draws where the nodes are at some epochs; labelled ones have a ring."""
    from common.plot import scatter

    graph, panels = part.graph, {f"epoch {epoch}": points for epoch, points in frames}
    marked, classes = part.indices.tolist(), part.facts["classes"]
    scatter(panels, graph.labels, classes, path, marked, graph.edge_index)
