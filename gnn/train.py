"""Trains the graph networks: GCN (2016), GraphSAGE (2017) and GAT (2017).

    python gnn/train.py                                              # gcn on karate, 4 seconds
    python gnn/train.py --paper --data-dir PATH                      # gcn on Cora, Sec. 5.2
    python gnn/train.py --model gat --data cora --data-dir PATH      # also sage
    python gnn/train.py --model sage --data mutag --data-dir PATH    # molecules
    python gnn/train.py --model gat --data graph:PATH                # your own nodes.csv, edges.csv

Measured on one core of a Zen 4 server (see the README).
"""

import argparse

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common import cli, fail
from common.data.graphs import GRAPH_SETS, MOLECULES, Batch, GraphSet, add_graph_flags, load_graphs
from common.device import Device
from common.run import Run
from gnn.gcn import RULES
from gnn.model import MODELS, GraphClassifier
from gnn.readout import READOUTS
from gnn.recipes import recipe
from gnn.sage import Neighbours, unsupervised_loss, walk_batch

# fmt: off
QUICK = dict(model="gcn", data="karate", epochs=300, val=500, batch_size=512, lr=0.01,
             hidden=[4, 4, 2], dropout=0.0, weight_decay=5e-4, activation="tanh")
PAPER = dict(model="gcn", data="cora", epochs=200, val=500, batch_size=512, lr=0.01,
             hidden=[16], dropout=0.5, weight_decay=5e-4, window=10)
# fmt: on
ONLY = {"rule": "gcn", "activation": "gcn", "num_heads": "gat", "out_heads": "gat"}
ONLY |= {"attention": "gat", "aggregator": "sage", "fanouts": "sage", "loss": "sage"}
WHOLE = "each step takes the whole graph at once (sage draws mini-batches)"


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The flags; see --help."""
    parser = cli.Parser("gnn", __doc__, QUICK, PAPER, MODELS, GRAPH_SETS)
    add_graph_flags(parser)
    add, count, share = parser.add_argument, cli.whole(1), cli.not_negative
    add("--hidden", type=count, nargs="+", help="channels of the layers (gat: of a head)")
    add("--num-layers", type=count, help="instead: so many layers, of the width of the first")
    add("--dropout", type=share, help="share of features (gat: and attention) left out")
    add("--weight-decay", type=share, default=5e-4, help="L2 (gcn: of the first layer only)")
    add("--window", type=count, help="stop when the validation loss is above its mean of the last N")
    add("--rule", choices=list(RULES), default="renormalised", help="gcn: how features spread")
    add("--activation", choices=["relu", "tanh"], default="relu", help="gcn: between layers")
    add("--residual", action="store_true", help="gcn, gat: add a layer's input to its output")
    add("--num-heads", type=count, default=8, help="gat: of hidden layers")
    add("--out-heads", type=count, default=1, help="gat: of the last layer, averaged")
    add("--attention", choices=["learned", "constant"], default="learned", help="gat: its weights")
    add("--aggregator", choices=["mean", "max"], default="mean", help="sage: of neighbours")
    fanouts = "sage: neighbours to draw in each step away from a node; 0 stands for all"
    add("--fanouts", type=cli.whole(0), nargs="+", default=[25, 10], help=fanouts)
    add("--loss", choices=["supervised", "unsupervised"], default="supervised", help="sage: Eq. 1")
    add("--readout", choices=READOUTS, default="mean", help="of whole graphs")
    args = parser.parse_args(argv)
    kind = args.data.partition(":")[0]
    if kind != "karate" or args.model != "gcn":
        full = recipe(args.model, kind)
        vars(args).update({k: v for k, v in full.items() if k not in args.chosen})
    for flag, model in ONLY.items():
        if flag in args.typed and args.model != model:
            fail(f"--{flag.replace('_', '-')} is for {model}: {args.model} has no use for it")
    if args.residual and args.model == "sage":
        fail("--residual is for gcn and gat: sage keeps a node's own features anyway")
    if "readout" in args.typed and kind not in MOLECULES:
        fail(f"--readout is for {' and '.join(MOLECULES)}: {args.data} has labels of nodes")
    args.full = args.model != "sage" and kind not in (*MOLECULES, "ppi")
    for flag in ("batch_size", "accumulate"):
        if args.full and flag in args.typed:
            fail(f"--{flag.replace('_', '-')} has no meaning for {args.model} on {kind}: {WHOLE}")
    if args.loss == "unsupervised" and kind in (*MOLECULES, "ppi"):
        fail(f"--loss unsupervised is for one graph: {args.data} has many")
    if args.num_layers:
        layers = args.num_layers - (args.model != "sage")  # the last has the classes' width
        args.hidden = args.hidden if len(args.hidden) == layers else args.hidden[:1] * layers
        if "fanouts" not in args.chosen:
            args.fanouts = (args.fanouts + [10] * layers)[:layers]
    if args.model == "sage" and len(args.fanouts) != len(args.hidden):
        fail(f"--fanouts needs a number for each of the {len(args.hidden)} layers of --hidden")
    if args.dropout >= 1:
        fail(f"--dropout is a share: it needs a number below 1, not {args.dropout:g}")
    return args


def build(args: argparse.Namespace, facts: dict) -> nn.Module:
    """The network that the flags ask for."""
    settings = {"hidden": args.hidden, "dropout": args.dropout}
    if args.model == "gcn":
        names = ("rule", "residual", "activation")
    else:
        names = ("residual", "num_heads", "out_heads") if args.model == "gat" else ("aggregator",)
    settings |= {name: getattr(args, name) for name in names}
    if args.model == "gat":
        settings["constant"] = args.attention == "constant"
    num_classes, make = len(facts["classes"]), MODELS[args.model]
    if facts["task"] == "graphs":
        width = args.hidden[-1] if args.hidden else 64
        nodes = make(facts["channels"], width, **settings)
        return GraphClassifier(nodes, width, num_classes, args.readout)
    model = make(facts["channels"], num_classes, **settings)
    if args.loss == "unsupervised":
        model.lin, model.dropout = nn.Identity(), 0.0  # the answer is the embedding
    return model


def cross_entropy(logits: Tensor, labels: Tensor, reduction: str = "mean") -> Tensor:
    """Of one class, or summed over several labels, as the papers have it."""
    if labels.dim() == 2:
        return F.binary_cross_entropy_with_logits(logits.float(), labels, reduction=reduction)
    return F.cross_entropy(logits.float(), labels, reduction=reduction)


@torch.no_grad()
def evaluate(
    model: nn.Module, part: GraphSet, train: GraphSet, dev: Device, args: argparse.Namespace
) -> dict[str, float]:
    """Loss and accuracy, or the micro-averaged F1; with all neighbours, none drawn."""
    model.eval()
    name, task = part.part, part.facts["task"]
    if args.loss == "unsupervised":
        return {f"{name}_accuracy": probe(model, part, train)}
    sums = torch.zeros(5, device=dev.device)
    for batch in part.batches(args.batch_size) if task == "graphs" else [part.whole()]:
        with dev.autocast():
            logits = model(*batch.inputs)[batch.rows]
        loss = cross_entropy(logits, batch.labels, "sum")
        answers = logits > 0 if task == "labels" else logits.argmax(1)
        right = (answers == batch.labels).sum()
        both = (answers * batch.labels).sum()
        sums += torch.stack([loss, right, both, answers.sum() + batch.labels.sum(),
                             torch.tensor(batch.labels.numel(), device=dev.device)])  # fmt: skip
    loss, right, both, either, count = dev.sum(sums).tolist()
    if task == "labels":
        return {f"{name}_loss": loss / count, f"{name}_f1": 2 * both / max(either, 1)}
    return {f"{name}_loss": loss / count, f"{name}_accuracy": right / count}


def probe(model: nn.Module, part: GraphSet, train: GraphSet) -> float:
    """Accuracy of a logistic regression on embeddings, fitted to the training part."""
    from sklearn.linear_model import LogisticRegression

    data = [(model(*s.whole().inputs)[s.indices].cpu(), s.whole().labels.cpu()) for s in (train, part)]
    (z, labels), (z_part, labels_part) = data
    return float(LogisticRegression(max_iter=1000).fit(z, labels).score(z_part, labels_part))


def sampler(part: GraphSet, args: argparse.Namespace):
    """Makes a mini-batch of places in the part, with neighbours drawn from a key (Alg. 2)."""
    graph, neighbours = part.graph, Neighbours(part.graph.edge_index, len(part.graph.features))

    def make(places: Tensor, key: int) -> Batch:
        seeds, labels = part.indices[places], None
        if args.loss == "unsupervised":  # all nodes count
            seeds, *labels = walk_batch(neighbours, places, key)
        nodes, blocks = neighbours.sample(seeds, args.fanouts, key)
        labels = labels or graph.labels[seeds]
        return Batch((graph.features[nodes], blocks), slice(None), labels)

    return make


@cli.command
def main(argv: list[str] | None = None) -> dict[str, float]:
    """Trains, or evaluates a checkpoint; returns the training and test metrics."""
    args = parse_args(argv)
    dev = Device(args, auto_precision="fp32")
    if args.full and dev.distributed:
        fail(f"torchrun has nothing to share out with {args.model} on {args.data}: {WHOLE}")
    train, val, test = load_graphs(args, dev)
    model = build(args, train.facts)
    net = dev.wrap(model)
    first = list((model.convs[0] if args.model == "gcn" and args.full else model).parameters())
    rest = [p for p in model.parameters() if all(p is not q for q in first)]
    groups = [{"params": first, "weight_decay": args.weight_decay}, {"params": rest}]
    optimizer = torch.optim.Adam(groups if rest else groups[:1], args.lr)
    history = {"val_loss": [], "frames": []}
    metric = {"labels": "val_f1", "graphs": "val_loss"}.get(train.facts["task"], "val_loss")
    metric = "val_accuracy" if args.loss == "unsupervised" else metric
    parts = dict(model=model, optimizer=optimizer, history=history, dataset=train.facts)
    run = Run(args, dev, (metric, min if metric == "val_loss" else max), **parts)
    if args.evaluate:
        return run.finish(**evaluate(model, test, train, dev, args))

    if args.full:
        batches = [train.whole()]
    elif args.model == "sage" and train.facts["task"] != "graphs":
        size = len(train.graph.features) if args.loss == "unsupervised" else None
        batches = train.batches(args.batch_size, sampler(train, args), size)
    else:
        batches = train.batches(args.batch_size)
    for epoch in run.epochs():
        if args.window and above_mean(history["val_loss"], args.window):
            break
        if args.data == "karate" and epoch in [args.epochs * k // 12 for k in (0, 1, 2, 4, 8)]:
            history["frames"].append((epoch, embeddings(model, train)))
        model.train()
        for batch in run.progress(batches):
            with dev.autocast():
                logits = net(*batch.inputs)[batch.rows]
            if args.loss == "unsupervised":
                loss = unsupervised_loss(logits.float(), *batch.labels)
            else:
                loss = cross_entropy(logits, batch.labels)
            run.add(train_loss=loss)
            dev.step(loss, optimizer)
        metrics = evaluate(model, val, train, dev, args) if val else {}
        history["val_loss"].append(metrics.get("val_loss", 0.0))
        run.log(epoch, **run.means(), **metrics)
        run.save(every=10)
    run.save()
    if args.data == "karate" and dev.main:
        frames = [*history["frames"], (run.epoch, embeddings(model, train))]
        draw(frames, train, run.folder / "embeddings.png")
    return run.finish(**run.means(), **evaluate(model, test, train, dev, args))


def above_mean(losses: list[float], window: int) -> bool:
    """Whether the last validation loss is above the mean of the `window` before it."""
    before = losses[-window - 1 : -1]
    return len(before) == window and losses[-1] > sum(before) / window


@torch.no_grad()
def embeddings(model: nn.Module, part: GraphSet) -> Tensor:
    """The last hidden layer's features on two axes (N, 2): those of the greatest variance."""
    model.eval()
    z = model.embed(*part.whole().inputs).float().cpu()
    return z if z.shape[1] == 2 else (z - z.mean(0)) @ torch.linalg.svd(z - z.mean(0))[2][:2].t()


def draw(frames: list[tuple[int, Tensor]], part: GraphSet, path) -> None:
    """The picture of Appendix A: where the nodes are as training goes on."""
    from common.plot import scatter

    graph, marked = part.graph, part.indices.tolist()
    panels = {f"epoch {epoch}": points for epoch, points in frames}
    scatter(panels, graph.labels, part.facts["classes"], path, marked, graph.edge_index)


if __name__ == "__main__":
    main()
