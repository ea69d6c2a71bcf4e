"""Classifies nodes, or graphs, with a trained graph network, and draws what it has learned.

    python gnn/sample.py                       # the test set of the data it was trained on
    python gnn/sample.py --nodes 0 17 33       # these nodes: classes and probabilities
    python gnn/sample.py --graph PATH          # your own nodes.csv and edges.csv (and graphs.csv)

Written are predictions.csv, tsne.png (hidden features), graph.png (the predicted classes; of a
large graph the part around some nodes) and, of GAT, attention.png: the weights on the edges of one
node's neighbourhood.
"""

import argparse
import csv
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from common import cli, counted, fail
from common.device import Device
from common.folder import make_folder, open_run
from gnn.data import load_graphs, scaled
from gnn.gat import AttentionLayer, with_loops
from gnn.model import MODELS
from gnn.sets import Graph, GraphSet
from gnn.tables import read_tables, tidy
from gnn.train import build

MOST_DRAWN, MOST_LAID_OUT = 3000, 500  # nodes in a picture; those whose layout is computed
MOST_LOOKED_AT, PRINTED = 60, 10  # neighbours in attention.png; predictions that are printed
MADE = ("predictions.csv", "tsne.png", "graph.png", "attention.png")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The flags; see --help."""
    parser = cli.sample_parser("gnn", __doc__)
    add, text = parser.add_argument, "nodes (or graphs) to classify, by name or number"
    add("--nodes", nargs="+", metavar="NAME", help=text)
    text = "a folder of tables, as for --data graph: or graphs:; labels aren't needed"
    add("--graph", type=Path, metavar="PATH", help=text)
    return parser.parse_args(argv)


def open_model(args: argparse.Namespace) -> tuple[nn.Module, cli.Flags, dict, Device, Path]:
    """The trained network, the flags of its training, facts of its data, a device, and the folder
    for what is made; one that was trained without labels ends in one line."""
    checkpoint, flags, dev, out = open_run(args, "gnn", MODELS)
    facts = checkpoint["dataset"]
    if flags.loss == "unsupervised":
        fail("the network was trained without labels: it has embeddings, and no classes")
    model = build(flags, facts)
    model.load_state_dict(checkpoint["model"])
    return model.to(dev.device).eval(), flags, facts, dev, out


def read_own(path: Path, flags: cli.Flags, facts: dict, dev: Device) -> GraphSet:
    """The user's graph, or graphs, as test set; labels are used where they are known."""
    if facts["task"] == "labels":
        fail(f"--graph is for networks that give a class; this one, of {flags.data}, gives labels")
    found = read_tables(path, facts["task"] == "graphs", facts)
    graph, place = found.graph, {name: k for k, name in enumerate(facts["classes"])}
    graph.features = scaled(graph.features, flags.features, facts)
    graph.labels = torch.tensor([place.get(label, -1) for label in found.labels])
    return GraphSet("test", graph, torch.arange(len(graph.labels)), facts, dev)


def choose(wanted: list[str] | None, part: GraphSet, count: int) -> list[int]:
    """The places of what is to be classified: the nodes named, or the part's."""
    if not wanted:
        return part.indices.tolist()
    names = part.graph.names or [str(k) for k in range(count)]
    place = {name: k for k, name in enumerate(names)}
    wanted = [tidy(name) for name in wanted]
    if strange := [name for name in wanted if name not in place]:
        fail(f"--nodes: there is no {strange[0]!r} among {count}, {names[0]} to {names[-1]}")
    return [place[name] for name in wanted]


@torch.no_grad()
def run_model(model: nn.Module, part: GraphSet) -> tuple[Tensor, Tensor, Tensor]:
    """Probabilities, hidden features and labels of all nodes, or of all graphs."""
    batch = part.everything()
    logits, hidden = model(*batch.inputs).float(), model.embed(*batch.inputs).float()
    several = part.facts["task"] == "labels"
    return logits.sigmoid() if several else logits.softmax(1), hidden, part.graph.labels


def write_predictions(
    path: Path, chosen: list[int], shares: Tensor, labels: Tensor, part: GraphSet
) -> tuple[dict[str, tuple[str, float]], int, int]:
    """Writes what is predicted; returns the class and its probability by name, how many are right,
    and of how many that is known."""
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
    return found, right, known


def draw_hidden(hidden: Tensor, labels: Tensor, facts: dict, path: Path) -> Tensor:
    """Draws hidden features by t-SNE (van der Maaten and Hinton 2008); returns the points."""
    from sklearn.manifold import TSNE

    from common.plot import scatter

    settings = dict(init="pca" if hidden.shape[1] > 1 else "random", random_state=0)
    tsne = TSNE(perplexity=min(30, (len(hidden) - 1) / 3), **settings)
    points = torch.from_numpy(tsne.fit_transform(hidden.cpu().numpy()))
    scatter({"hidden features, t-SNE": points}, labels, facts["classes"], path, size=6)
    return points


def around(edge_index: Tensor, seeds: Sequence[int], num_nodes: int, most: int) -> Tensor:
    """The places, in order, of the nodes near `seeds`: step by step, until there are `most`."""
    inside = torch.zeros(num_nodes, dtype=torch.bool, device=edge_index.device)
    inside[list(seeds)[:most]] = True
    while (room := most - int(inside.sum())) > 0:
        touched = edge_index[:, inside[edge_index].any(0)].unique()
        new = touched[~inside[touched]]
        if not len(new):
            break
        inside[new[:room]] = True
    return inside.nonzero()[:, 0]


def draw_graph(
    graph: Graph, points: Tensor | None, answers: Tensor, chosen: list[int], facts: dict, path: Path
) -> str:
    """Draws the graph with the predicted classes; returns which part of it.

    A small one is laid out; a larger one lies where t-SNE puts its nodes, `points`; of one too
    large for that, with None, the part around the first of the `chosen` nodes is laid out.
    """
    import networkx
    from torch_geometric.utils import subgraph

    from common.plot import scatter

    count, edges, seeds, part = len(graph.features), graph.edge_index, [], ""
    if count > MOST_DRAWN:
        seeds = chosen[:5]
        nodes = around(edges, seeds, count, MOST_LAID_OUT)
        edges, _ = subgraph(nodes, edges, relabel_nodes=True, num_nodes=count)
        answers, count = answers[nodes], len(nodes)
        names = graph.names or range(len(graph.features))
        part = f", around {', '.join(str(names[k]) for k in seeds)}"
        seeds = torch.searchsorted(nodes, nodes.new_tensor(seeds)).tolist()
    if count <= MOST_LAID_OUT or points is None:
        net = networkx.Graph(edges.t().tolist())
        net.add_nodes_from(range(count))
        places = networkx.spring_layout(net, seed=0)
        points = torch.tensor([places[k].tolist() for k in range(count)])
    title = {f"predicted classes{part}": points}
    scatter(title, answers, facts["classes"], path, seeds, edges, size=6)
    return f"graph.png ({counted(count, 'node')}{part})" if part else "graph.png"


@torch.no_grad()
def draw_attention(model: nn.Module, part: GraphSet, node: int, path: Path) -> None:
    """Draws how much each head of each layer looks at each neighbour of a node, itself included.

    Of very many neighbours those are drawn that the last layer looks at most.
    """
    from gnn.plot import attention_rows

    layers = [m for m in model.modules() if isinstance(m, AttentionLayer)]
    for layer in layers:
        layer.recording = True
    features, edge_index = part.everything().inputs
    model(features, edge_index)
    edges = with_loops(edge_index, len(features))
    here = (edges.targets == node).nonzero()[:, 0]
    heading = "where node {} looks"
    if len(here) > MOST_LOOKED_AT:
        heading += f": {MOST_LOOKED_AT} of {len(here):,} neighbours"
        most = layers[-1].weights[here].mean(1).topk(MOST_LOOKED_AT).indices
        here = here[most.sort().values]
    names = part.graph.names or [str(k) for k in range(len(features))]
    labels = [names[k] for k in edges.sources[here].tolist()]
    maps = {f"layer {n}": layer.weights[here].t().cpu() for n, layer in enumerate(layers, 1)}
    attention_rows(maps, labels, path, heading.format(names[node]))
    for layer in layers:
        layer.recording, layer.weights = False, None


@cli.command
def main(argv: list[str] | None = None) -> dict:
    """Classifies and draws; returns the predictions by name."""
    args = parse_args(argv)
    model, flags, facts, dev, out = open_model(args)
    part = read_own(args.graph, flags, facts, dev) if args.graph else load_graphs(flags, dev)[2]
    shares, hidden, labels = run_model(model, part)
    chosen, count, answers = choose(args.nodes, part, len(shares)), len(shares), shares.argmax(1)
    make_folder(out, *MADE)
    found, right, known = write_predictions(out / "predictions.csv", chosen, shares, labels, part)
    colours, written, notes, points = answers if labels.dim() == 2 else labels, [], [], None
    if count < 5:
        notes.append("tsne.png needs five nodes at least: not drawn")
    elif bool((hidden == hidden[0]).all()):  # t-SNE ends in a segmentation fault
        notes.append("the hidden features of all are equal: tsne.png is not drawn")
    elif count <= MOST_DRAWN:
        points = draw_hidden(hidden, colours, facts, out / "tsne.png")
        written.append("tsne.png")
    else:
        some = torch.randperm(count, generator=torch.Generator().manual_seed(0))[:MOST_DRAWN]
        draw_hidden(hidden[some], colours[some], facts, out / "tsne.png")
        written.append(f"tsne.png ({MOST_DRAWN:,} of {count:,}, drawn at random)")
    if facts["task"] == "nodes":
        written.append(draw_graph(part.graph, points, answers, chosen, facts, out / "graph.png"))
    if flags.model == "gat" and facts["task"] != "graphs":
        draw_attention(model, part, chosen[0], out / "attention.png")
        written.append("attention.png")
    for name, (answer, share) in list(found.items())[:PRINTED]:
        print(f"{name}: {answer or 'none'} ({share:.1%})")
    print(f"{right} of {known} with a label are right" if known else "no labels known", end="")
    print(f" (of {len(found):,} predictions)" if len(found) > PRINTED else "")
    for note in notes:
        print(f"note: {note}")
    print(f"wrote {', '.join(['predictions.csv', *written])} in {out}")
    return found


if __name__ == "__main__":
    main()
