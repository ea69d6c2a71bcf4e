"""Trains the graph networks: GCN (2016), GraphSAGE (2017) and GAT (2017).

python gnn/train.py                                              # gcn on karate, 4 seconds
python gnn/train.py --paper --data-dir PATH                      # gcn on Cora, Sec. 5.2
python gnn/train.py --model gat --data cora --data-dir PATH      # also sage
python gnn/train.py --model sage --data mutag --data-dir PATH    # molecules
python gnn/train.py --model gat --data graph:PATH                # your own nodes.csv, edges.csv
"""

import argparse
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common import cli, fail
from common.data.graphs import GRAPH_SETS, MOLECULES, Batch, GraphSet, add_graph_flags, load_graphs
from common.device import Device
from common.graphs import draw_frames, embeddings, probe
from common.run import Run
from gnn.gcn import RULES
from gnn.model import MODELS, GraphClassifier
from gnn.readout import READOUTS
from gnn.recipes import SETTINGS, fit, recipe, takes_all, without_meaning
from gnn.sage import Neighbours, unsupervised_loss, walk_batch

# fmt: off
QUICK = dict(model="gcn", data="karate", epochs=300, val=500, batch_size=512, lr=0.01,
             hidden=[4, 4, 2], dropout=0.0, weight_decay=5e-4, activation="tanh")
PAPER = dict(model="gcn", data="cora", epochs=200, val=500, batch_size=512, lr=0.01,
             hidden=[16], dropout=0.5, weight_decay=5e-4, window=10)
# fmt: on
def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The flags; see --help."""
    parser = cli.Parser("gnn", __doc__, QUICK, PAPER, MODELS, GRAPH_SETS)
    add_graph_flags(parser)
    add, count, share = parser.add_argument, cli.whole(1), cli.not_negative
    add("--hidden", type=count, nargs="+", help="channels of the layers (gat: of a head)")
    add("--num-layers", type=count, help="instead: so many layers, of the width of the first")
    add("--dropout", type=share, help="share of features (gat: and attention) left out")
    add("--weight-decay", type=share, default=5e-4, help="L2 (gcn: of the first layer only)")
    add("--window", type=count, help="stop if the validation loss is above its mean of the last N")
    add("--rule", choices=list(RULES), default="renormalised", help="gcn: how features spread")
    add("--activation", choices=["relu", "tanh"], default="relu", help="gcn: between layers")
    add("--residual", action="store_true", help="gcn, gat: add a layer's input to its output")
    add("--num-heads", type=count, default=8, help="gat: of hidden layers")
    add("--out-heads", type=count, default=1, help="gat: of the last layer, averaged")
    add("--attention", choices=["learned", "constant"], default="learned", help="gat: its weights")
    add("--aggregator", choices=["mean", "max"], default="mean", help="sage: of neighbours")
    add("--fanouts", type=cli.whole(0), nargs="+", default=[25, 10], help="sage: neighbours to "
        "draw, a number for each step away from a node; 0 stands for all")  # fmt: skip
    add("--loss", choices=["supervised", "unsupervised"], default="supervised", help="sage: Eq. 1")
    add("--readout", choices=READOUTS, default="mean", help="of whole graphs")
    args = parser.parse_args(argv)
    kind = args.data.partition(":")[0]
    if kind != "karate" or args.model != "gcn":
        found = recipe(args.model, kind).items()
        vars(args).update({key: value for key, value in found if key not in args.chosen})
    args.full = takes_all(args.model, kind)
    for flag, why in without_meaning(args.model, kind).items():
        if flag in args.typed:
            fail(f"--{flag.replace('_', '-')} means nothing for {args.model} on {kind}: {why}")
    args.hidden, args.fanouts = fit(args.model, args.num_layers, args.hidden, args.fanouts)
    if args.model == "sage" and kind not in MOLECULES and len(args.fanouts) != len(args.hidden):
        fail(f"--fanouts needs a number for each of the {len(args.hidden)} layers of --hidden")
    if args.dropout >= 1:
        fail(f"--dropout is a share: it needs a number below 1, not {args.dropout:g}")
    return args


def build(args: argparse.Namespace, facts: dict) -> nn.Module:
    """The network that the flags ask for."""
    settings = {name: getattr(args, name) for name in SETTINGS[args.model]}
    settings |= {"hidden": args.hidden, "dropout": args.dropout}
    num_classes, make = len(facts["classes"]), MODELS[args.model]
    if facts["task"] == "graphs":
        nodes = make(facts["channels"], width := (args.hidden or [64])[-1], **settings)
        return GraphClassifier(nodes, width, num_classes, args.readout)
    model = make(facts["channels"], num_classes, **settings)
    if args.loss == "unsupervised":
        model.lin, model.dropout = nn.Identity(), 0.0  # the answer is the embedding
    return model


def loss_of(logits: Tensor, labels: Tensor | list[Tensor], reduction: str = "mean") -> Tensor:
    """Cross-entropy, of one class or of several labels; of embeddings and walks Eq. 1 (SAGE)."""
    if isinstance(labels, list):
        return unsupervised_loss(logits.float(), *labels)
    if labels.dim() == 2:
        return F.binary_cross_entropy_with_logits(logits.float(), labels, reduction=reduction)
    return F.cross_entropy(logits.float(), labels, reduction=reduction)


@torch.no_grad()
def evaluate(
    model: nn.Module, part: GraphSet, train: GraphSet, dev: Device, args: argparse.Namespace
) -> dict[str, float]:
    """Loss, and accuracy or micro-averaged F1; all neighbours count, none are drawn."""
    model.eval()
    name, task = part.part, part.facts["task"]
    if args.loss == "unsupervised":
        return {f"{name}_accuracy": probe(model, train, part)}
    sums = torch.zeros(5, device=dev.device)
    for batch in part.batches(args.batch_size) if task == "graphs" else [part.whole()]:
        with dev.autocast():
            logits = model(*batch.inputs)[batch.rows]
        loss, count = loss_of(logits, batch.labels, "sum"), batch.labels.numel()
        answers = logits > 0 if task == "labels" else logits.argmax(1)
        right, both = (answers == batch.labels).sum(), (answers * batch.labels).sum()
        either = answers.sum() + batch.labels.sum()
        sums += torch.stack([loss, right, both, either, torch.full_like(loss, count)])
    loss, right, both, either, count = dev.sum(sums).tolist()
    score = {f"{name}_f1": 2 * both / max(either, 1)}
    score = score if task == "labels" else {f"{name}_accuracy": right / count}
    return {f"{name}_loss": loss / count, **score}


def sampler(part: GraphSet, args: argparse.Namespace) -> Callable[[Tensor, int], Batch]:
    """Makes a mini-batch of places in the part, with neighbours drawn from a key (Alg. 2)."""
    graph, neighbours = part.graph, Neighbours(part.graph.edge_index, len(part.graph.features))

    def make(places: Tensor, key: int) -> Batch:
        if args.loss == "unsupervised":  # the places are nodes: all of them count
            seeds, *labels = walk_batch(neighbours, places, key)
        else:
            seeds = part.indices[places]
            labels = graph.labels[seeds]
        nodes, blocks = neighbours.sample(seeds, args.fanouts, key)
        return Batch((graph.features[nodes], blocks), slice(None), labels)

    return make


def above_mean(losses: list[float], window: int) -> bool:
    """Whether the last validation loss is above the mean of the `window` before it (Sec. 5.2)."""
    before = losses[-window - 1 : -1]
    return len(before) == window and losses[-1] > sum(before) / window


@cli.command
def main(argv: list[str] | None = None) -> dict[str, float]:
    """Trains, or evaluates a checkpoint; returns the training and test metrics."""
    args = parse_args(argv)
    dev = Device(args, auto_precision="fp32")
    if args.full and dev.distributed:
        fail(f"torchrun: {args.model} on {args.data} takes the whole graph at once, in one process")
    train, val, test = load_graphs(args, dev)
    model = build(args, train.facts)
    net = dev.wrap(model)
    first = list((model.convs[0] if args.model == "gcn" and args.full else model).parameters())
    rest = [p for p in model.parameters() if all(p is not q for q in first)]
    groups = [{"params": first, "weight_decay": args.weight_decay}, {"params": rest}]
    optimizer = torch.optim.Adam(groups if rest else groups[:1], args.lr)
    history = {"val_loss": [], "frames": []}
    metric = "val_accuracy" if args.loss == "unsupervised" else "val_loss"
    parts = dict(model=model, optimizer=optimizer, history=history, dataset=train.facts)
    run = Run(args, dev, (metric, min if metric == "val_loss" else max), **parts)
    if args.evaluate:
        return run.finish(**evaluate(model, test, train, dev, args))

    batches = [train.whole()] if args.full else train.batches(args.batch_size)
    if args.model == "sage" and train.facts["task"] != "graphs":
        size = len(train.graph.features) if args.loss == "unsupervised" else None
        batches = train.batches(args.batch_size, sampler(train, args), size)
    for epoch in run.epochs():
        if args.window and above_mean(history["val_loss"], args.window):
            break
        if args.data == "karate" and epoch in [args.epochs * k // 12 for k in (0, 1, 2, 4, 8)]:
            history["frames"].append((epoch, embeddings(model, train)))
        model.train()
        for batch in run.progress(batches):
            with dev.autocast():
                logits = net(*batch.inputs)[batch.rows]
            loss = loss_of(logits, batch.labels)
            run.add(train_loss=loss)
            dev.step(loss, optimizer)
        metrics = evaluate(model, val, train, dev, args) if val else {}
        history["val_loss"].append(metrics.get("val_loss", 0.0))
        run.log(epoch, **run.means(), **metrics)
        run.save(every=10)
    run.save()
    if args.data == "karate" and dev.main:  # Appendix A
        frames = [*history["frames"], (run.epoch, embeddings(model, train))]
        draw_frames(frames, train, run.folder / "embeddings.png")
    return run.finish(**run.means(), **evaluate(model, test, train, dev, args))


if __name__ == "__main__":
    main()
