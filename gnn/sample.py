"""Classifies nodes with a trained graph network, and draws what it has learned.

    python gnn/sample.py                       # the test part of the data it was trained on
    python gnn/sample.py --nodes 0 17 33       # these nodes: classes and probabilities
    python gnn/sample.py --graph PATH          # your own nodes.csv and edges.csv

Written are predictions.csv, tsne.png (hidden features), graph.png (the predicted classes) and, of
GAT, attention.png: the weights on the edges of one node's neighbourhood.
"""

import argparse
import csv
from pathlib import Path

import torch
from torch import Tensor

from common import cli, fail
from common.device import Device
from common.folder import make_folder, open_run
from gnn.data import Graph, GraphSet, load_graphs, read_tables, row_normalised
from gnn.gat import AttentionLayer, with_loops
from gnn.model import MODELS
from gnn.train import build

MOST_DRAWN, MOST_LAID_OUT = 3000, 500  # nodes in a picture; those whose layout is computed


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The flags; see --help."""
    parser = cli.sample_parser("gnn", __doc__)
    add = parser.add_argument
    add("--nodes", nargs="+", help="nodes (or graphs) to classify, by name or number")
    add("--graph", type=Path, help="a folder with nodes.csv and edges.csv; labels aren't needed")
    return parser.parse_args(argv)


def read_own(path: Path, flags: argparse.Namespace, facts: dict, dev: Device) -> GraphSet:
    """A graph of the user's, as the test part; its labels are used where they are known."""
    found = read_tables(path)
    channels = found.graph.features.shape[1]
    if channels != facts["channels"]:
        fail(f"{path} has {channels} features a node, and the network takes {facts['channels']}")
    if missing := sorted(set(facts.get("columns", [])) - set(found.columns)):
        fail(f"{path}/nodes.csv has no column {missing[0]!r}, which the network was trained with")
    graph, place = found.graph, {name: k for k, name in enumerate(facts["classes"])}
    if flags.features != "raw":
        graph.features = row_normalised(graph.features)
    graph.labels = torch.tensor([place.get(label, -1) for label in found.labels])
    return GraphSet("test", graph, torch.arange(len(graph.labels)), facts, dev)


def choose(wanted: list[str] | None, part: GraphSet, count: int) -> list[int]:
    """The places of what is to be classified: the nodes named, or the part's."""
    if not wanted:
        return part.indices.tolist()
    names = part.graph.names or [str(k) for k in range(count)]
    place = {name: k for k, name in enumerate(names)}
    if strange := [name for name in wanted if name not in place]:
        fail(f"--nodes: there is no {strange[0]!r} among {count}, {names[0]} to {names[-1]}")
    return [place[name] for name in wanted]


@torch.no_grad()
def run_model(model, part: GraphSet) -> tuple[Tensor, Tensor, Tensor]:
    """Probabilities, hidden features and labels of all nodes, or of all graphs."""
    if part.facts["task"] == "graphs":
        batch = part.some(torch.arange(len(part.graph.labels), device=part.dev.device))
    else:
        batch = part.everything()
    logits, hidden = model(*batch.inputs).float(), model.embed(*batch.inputs).float()
    several = part.facts["task"] == "labels"
    return logits.sigmoid() if several else logits.softmax(1), hidden, part.graph.labels


def write_predictions(
    path: Path, chosen: list[int], shares: Tensor, labels: Tensor, part: GraphSet
) -> dict[str, tuple[str, float]]:
    """Writes and prints what is predicted; returns the class and its probability by name."""
    classes, several = part.facts["classes"], part.facts["task"] == "labels"
    names, found, right, known = part.graph.names, {}, 0, 0
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "predicted", "probability", "label"])
        for k in chosen:
            share, place = shares[k].max(0)
            if several:
                answer = " ".join(classes[c] for c in (shares[k] > 0.5).nonzero()[:, 0].tolist())
                label = " ".join(classes[c] for c in labels[k].nonzero()[:, 0].tolist())
            else:
                answer = classes[int(place)]
                label = classes[int(labels[k])] if labels[k] >= 0 else ""
            name = names[k] if names else str(k)
            found[name] = (answer, float(share))
            right, known = right + (answer == label), known + bool(label)
            writer.writerow([name, answer, f"{float(share):.4f}", label])
            if len(found) <= 10:
                print(f"{name}: {answer or 'none'} ({float(share):.1%})")
    more = f" (of {len(found)}, all in {path})" if len(found) > 10 else f"; wrote {path}"
    print((f"{right} of {known} with a label are right" if known else "no labels known") + more)
    return found


def draw_hidden(hidden: Tensor, labels: Tensor, facts: dict, path: Path) -> Tensor | None:
    """Draws hidden features by t-SNE (van der Maaten and Hinton 2008); returns the points."""
    from sklearn.manifold import TSNE

    from common.plot import scatter

    if len(hidden) < 5:
        print("tsne.png needs five nodes at least: not drawn")
        return None
    settings = dict(init="pca" if hidden.shape[1] > 1 else "random", random_state=0)
    tsne = TSNE(perplexity=min(30, (len(hidden) - 1) / 3), **settings)
    points = torch.from_numpy(tsne.fit_transform(hidden.cpu().numpy()))
    scatter({"hidden features, t-SNE": points}, labels, facts["classes"], path, size=6)
    return points


def draw_graph(
    graph: Graph, points: Tensor | None, answers: Tensor, facts: dict, path: Path
) -> None:
    """Draws the graph with the predicted classes; a large one where t-SNE puts its nodes."""
    from common.plot import scatter

    if len(graph.features) <= MOST_LAID_OUT:
        import networkx

        net = networkx.Graph(graph.edge_index.t().tolist())
        net.add_nodes_from(range(len(graph.features)))
        places = networkx.spring_layout(net, seed=0)
        points = torch.tensor([places[k].tolist() for k in range(len(places))])
    title = {"predicted classes": points}
    scatter(title, answers, facts["classes"], path, edges=graph.edge_index, size=6)


@torch.no_grad()
def draw_attention(model, part: GraphSet, node: int, path: Path) -> None:
    """Draws how much each head of each layer looks at each neighbour of a node, itself included."""
    from gnn.plot import attention_rows

    layers = [m for m in model.modules() if isinstance(m, AttentionLayer)]
    for layer in layers:
        layer.recording = True
    features, edge_index = part.everything().inputs
    model(features, edge_index)
    edges = with_loops(edge_index, len(features))
    here = (edges.targets == node).nonzero()[:, 0]
    names = part.graph.names or [str(k) for k in range(len(features))]
    labels = [names[k] for k in edges.sources[here].tolist()]
    maps = {f"layer {n}": layer.weights[here].t().cpu() for n, layer in enumerate(layers, 1)}
    attention_rows(maps, labels, path, f"where node {names[node]} looks")
    for layer in layers:
        layer.recording, layer.weights = False, None


@cli.command
def main(argv: list[str] | None = None) -> dict:
    """Classifies and draws; returns the predictions by name."""
    args = parse_args(argv)
    checkpoint, flags, dev, out = open_run(args, "gnn", MODELS)
    facts = checkpoint["dataset"]
    if args.graph and facts["task"] != "nodes":
        fail(f"--graph is for networks that classify nodes; this one is of {flags.data}")
    part = read_own(args.graph, flags, facts, dev) if args.graph else load_graphs(flags, dev)[2]
    model = build(flags, facts)
    model.load_state_dict(checkpoint["model"])
    model = model.to(dev.device).eval()
    if flags.loss == "unsupervised":
        fail("the network was trained without labels: it has embeddings, and no classes")
    shares, hidden, labels = run_model(model, part)
    chosen = choose(args.nodes, part, len(shares))
    make_folder(out)
    found = write_predictions(out / "predictions.csv", chosen, shares, labels, part)
    answers = shares.argmax(1)
    colours = answers if labels.dim() == 2 else torch.where(labels >= 0, labels, -1)
    count, written, points = len(shares), ["predictions.csv"], None
    if count <= MOST_DRAWN:
        points = drawn = draw_hidden(hidden, colours, facts, out / "tsne.png")
    else:
        some = torch.randperm(count, generator=torch.Generator().manual_seed(0))[:MOST_DRAWN]
        drawn = draw_hidden(hidden[some], colours[some], facts, out / "tsne.png")
    written += ["tsne.png"] if drawn is not None else []
    if facts["task"] == "nodes" and count > MOST_DRAWN:
        print(f"graph.png is for {MOST_DRAWN:,} nodes at most, and here are {count:,}: not drawn")
    elif facts["task"] == "nodes":
        draw_graph(part.graph, points, answers, facts, out / "graph.png")
        written.append("graph.png")
    if flags.model == "gat" and facts["task"] != "graphs":
        draw_attention(model, part, chosen[0], out / "attention.png")
        written.append("attention.png")
    print(f"wrote {', '.join(written)} in {out}")
    return found


if __name__ == "__main__":
    main()
