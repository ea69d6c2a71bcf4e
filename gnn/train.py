"""Trains the graph networks: GCN (2016), GraphSAGE (2017) and GAT (2017).

python gnn/train.py                                              # gcn on karate, 4 seconds
python gnn/train.py --paper --data-dir PATH                      # gcn on Cora, Sec. 5.2
python gnn/train.py --model gat --data cora --data-dir PATH      # also sage
python gnn/train.py --model sage --data mutag --data-dir PATH    # molecules
python gnn/train.py --model gat --data graph:PATH                # your own nodes.csv, edges.csv
python gnn/train.py --model gcn --data graphs:PATH               # many graphs, a class each
"""

from collections.abc import Callable, Iterable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common import cli, fail
from common.device import Device
from common.run import Run
from gnn.data import GRAPH_SETS, load_graphs
from gnn.embedding import draw_frames, embeddings, probe
from gnn.model import MODELS, GraphClassifier
from gnn.recipes import ROWS, add_flags, check, recipe, takes_all, widths
from gnn.sage import Neighbours, unsupervised_loss, walk_batch
from gnn.sets import Batch, GraphSet
from gnn.stopping import Both, above_mean

# fmt: off
QUICK = dict(model="gcn", data="karate", epochs=300, val=0, batch_size=512, lr=0.01,
             hidden=[4, 4, 2], dropout=0.0, weight_decay=5e-4, activation="tanh")
PAPER = dict(model="gcn", data="cora", epochs=200, val=500, batch_size=512, lr=0.01,
             hidden=[16], dropout=0.5, weight_decay=5e-4, window=10)
# fmt: on
def parse_args(argv: list[str] | None = None) -> cli.Flags:
    """The flags; see --help."""
    parser = cli.Parser("gnn", __doc__, QUICK, PAPER, MODELS, GRAPH_SETS, recipe)
    add_flags(parser)
    args = parser.parse_args(argv)
    check(args)
    return args


def build(args: cli.Flags, facts: dict) -> nn.Module:
    """The network that the flags ask for."""
    own = {name: getattr(args, name) for name in ROWS[args.model]["own"]}
    settings = {**own, "hidden": widths(args), "dropout": args.dropout}
    channels, num_classes, make = facts["channels"], len(facts["classes"]), MODELS[args.model]
    if facts["task"] == "graphs":
        width = (settings["hidden"] or [64])[-1]
        return GraphClassifier(make(channels, width, **settings), width, num_classes, args.readout)
    model = make(channels, num_classes, **settings)
    if args.loss == "unsupervised":
        model.lin, model.dropout = nn.Identity(), 0.0  # the answer is the embedding
    return model


def loss_of(logits: Tensor, labels: Tensor | list[Tensor], reduction: str) -> Tensor:
    """Cross-entropy, of one class or of several labels; of embeddings and walks Eq. 1 (SAGE)."""
    if isinstance(labels, list):
        return unsupervised_loss(logits.float(), *labels, reduction)
    if labels.dim() == 2:
        return F.binary_cross_entropy_with_logits(logits.float(), labels, reduction=reduction)
    return F.cross_entropy(logits.float(), labels, reduction=reduction)


@torch.no_grad()
def evaluate(
    model: nn.Module,
    part: GraphSet,
    train: GraphSet,
    dev: Device,
    args: cli.Flags,
    picture: Path | None = None,
) -> dict[str, float]:
    """Loss, and accuracy or micro-averaged F1; all neighbours count, none are drawn."""
    model.eval()
    name, task, classes = part.part, part.facts["task"], part.facts["classes"]
    if args.loss == "unsupervised":
        return {f"{name}_accuracy": probe(model, train, part)}
    classes = ["absent", "present"] if task == "labels" else classes
    size, loss = len(classes), torch.zeros((), device=dev.device)
    counts = torch.zeros(size**2, dtype=torch.int64, device=dev.device)  # true x predicted
    for batch in part.batches(args.batch_size) if task == "graphs" else [part.everything()]:
        with dev.autocast():
            logits = model(*batch.inputs)[batch.rows]
        loss += loss_of(logits, batch.labels, "sum")
        answers = (logits > 0) if task == "labels" else logits.argmax(1)
        pairs = batch.labels.long() * size + answers
        counts += torch.bincount(pairs.flatten(), minlength=size**2)
    if task == "graphs":  # each process has seen its share; one graph is seen whole by all
        loss, counts = dev.sum(loss), dev.sum(counts)
    counts = counts.view(size, size)
    if picture and dev.main:
        from common.plot import confusion_matrix

        confusion_matrix(counts, classes, picture)
    loss, total, right = float(loss), int(counts.sum()), int(counts.trace())
    if task == "labels":
        f1 = 2 * int(counts[1, 1]) / max(int(counts[1].sum() + counts[:, 1].sum()), 1)
        return {f"{name}_loss": loss / total, f"{name}_f1": f1}
    return {f"{name}_loss": loss / total, f"{name}_accuracy": right / total}


def sampler(part: GraphSet, args: cli.Flags) -> Callable[[Tensor, int], Batch]:
    """Makes a mini-batch of places in the part, with neighbours drawn from a key (Alg. 2)."""
    graph, neighbours = part.graph, Neighbours(part.graph.edge_index, len(part.graph.features))
    walks = args.loss == "unsupervised"
    if walks and not (graph.edge_index[0] != graph.edge_index[1]).any():
        fail("--loss unsupervised learns from walks along edges: the training set has none")

    def make(places: Tensor, key: int) -> Batch:
        if walks:  # the places are nodes: all of them count
            seeds, *labels = walk_batch(neighbours, places, key)
        else:
            seeds = part.indices[places]
            labels = graph.labels[seeds]
        nodes, blocks = neighbours.sample(seeds, args.fanouts, key)
        pairs = labels[0].shape[1] if walks else None
        return Batch((graph.features[nodes], blocks), slice(None), labels, pairs)

    return make


def steps_of(train: GraphSet, args: cli.Flags) -> Iterable[Batch]:
    """The batches of an epoch: the whole graph, nodes with drawn neighbours, or whole graphs."""
    if takes_all(args.model, args.data):
        return [train.everything()]
    if args.model == "sage" and train.facts["task"] != "graphs":
        size = len(train.graph.features) if args.loss == "unsupervised" else None
        return train.batches(args.batch_size, sampler(train, args), size)
    return train.batches(args.batch_size)


def groups_of(model: nn.Module, args: cli.Flags) -> list[dict]:
    """The parameters with weight decay, of GCN on one graph the first layer's, and the others."""
    first = args.model == "gcn" and takes_all(args.model, args.data)
    decayed = list((model.convs[0] if first else model).parameters())
    others = [p for p in model.parameters() if all(p is not q for q in decayed)]
    groups = [{"params": decayed, "weight_decay": args.weight_decay}, {"params": others}]
    return [group for group in groups if group["params"]]


@cli.command
def main(argv: list[str] | None = None) -> dict[str, float]:
    """Trains, or evaluates a checkpoint; returns the training and test metrics."""
    args = parse_args(argv)
    dev = Device(args, auto_precision="fp32")
    if dev.distributed and takes_all(args.model, args.data):
        fail(f"torchrun: {args.model} on {args.data} takes the whole graph at once, in one process")
    train, val, test = load_graphs(args, dev)
    model = build(args, train.facts)
    net = dev.wrap(model)
    optimizer = torch.optim.Adam(groups_of(model, args), args.lr)
    history = {"val_loss": [], "frames": []}
    watched = ("val_accuracy", max) if args.loss == "unsupervised" else ("val_loss", min)
    watched = Both(*watched) if args.watch == "both" else watched
    parts = dict(model=model, optimizer=optimizer, history=history, dataset=train.facts)
    run = Run(args, dev, watched, **parts)
    picture = run.folder / "confusion.png"
    if args.evaluate:
        return run.finish(**evaluate(model, test, train, dev, args, picture))

    batches = steps_of(train, args)
    shown = [args.epochs * k // 12 for k in (0, 1, 2, 4, 8)] if args.data == "karate" else []
    for epoch in run.epochs(ended=lambda: above_mean(history["val_loss"], args.window)):
        if epoch in shown and run.epoch_begins:
            history["frames"].append((epoch, embeddings(model, train)))
        model.train()
        for batch in run.progress(batches):
            with dev.autocast():
                logits = net(*batch.inputs)[batch.rows]
            loss = loss_of(logits, batch.labels, "mean" if batch.count is None else "sum")
            run.add(batch.count or 1, train_loss=loss / (batch.count or 1))
            dev.step(loss, optimizer, batch.count)
        metrics = evaluate(model, val, train, dev, args) if val else {}
        if run.epoch_is_whole and "val_loss" in metrics:
            history["val_loss"].append(metrics["val_loss"])
        run.log(epoch, **run.means(), **metrics)
        run.save(every=10)
    if shown:  # Appendix A; with --fsdp all processes have to take part in the embeddings
        frames = [*history["frames"], (run.epoch, embeddings(model, train))]
        if dev.main:
            draw_frames(frames, train, run.folder / "embeddings.png")
    return run.finish(**run.means(), **evaluate(model, test, train, dev, args, picture))


if __name__ == "__main__":
    main()
