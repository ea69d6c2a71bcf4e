"""Trains the graph networks: GCN (2016), GraphSAGE (2017) and GAT (2017).

python gnn/train.py                                              # gcn on karate, 4 seconds
python gnn/train.py --paper --data-dir PATH                      # gcn on Cora, Sec. 5.2
python gnn/train.py --model gat --data cora --data-dir PATH      # also sage
python gnn/train.py --model sage --data mutag --data-dir PATH    # molecules
python gnn/train.py --model gat --data graph:PATH                # your own nodes.csv, edges.csv
"""

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common import cli, fail
from common.device import Device
from common.run import Run
from gnn.data import GRAPH_SETS, Batch, GraphSet, load_graphs
from gnn.embedding import draw_frames, embeddings, probe
from gnn.model import MODELS, GraphClassifier
from gnn.options import add_flags, check, layers_of, recipe
from gnn.recipes import SETTINGS, takes_all
from gnn.sage import Neighbours, unsupervised_loss, walk_batch

# fmt: off
QUICK = dict(model="gcn", data="karate", epochs=300, val=500, batch_size=512, lr=0.01,
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
    settings = {name: getattr(args, name) for name in SETTINGS[args.model]}
    hidden, _ = layers_of(args)
    settings |= {"hidden": hidden, "dropout": args.dropout}
    num_classes, make = len(facts["classes"]), MODELS[args.model]
    if facts["task"] == "graphs":
        nodes = make(facts["channels"], width := (hidden or [64])[-1], **settings)
        return GraphClassifier(nodes, width, num_classes, args.readout)
    model = make(facts["channels"], num_classes, **settings)
    if args.loss == "unsupervised":
        model.lin, model.dropout = nn.Identity(), 0.0  # the answer is the embedding
    return model


def loss_of(logits: Tensor, labels: Tensor | list[Tensor], reduction: str = "mean") -> Tensor:
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
    fanouts = layers_of(args)[1]
    graph, neighbours = part.graph, Neighbours(part.graph.edge_index, len(part.graph.features))
    if args.loss == "unsupervised" and not (graph.edge_index[0] != graph.edge_index[1]).any():
        fail("--loss unsupervised learns from walks along edges: the training part has none")

    def make(places: Tensor, key: int) -> Batch:
        if args.loss == "unsupervised":  # the places are nodes: all of them count
            seeds, *labels = walk_batch(neighbours, places, key)
        else:
            seeds = part.indices[places]
            labels = graph.labels[seeds]
        nodes, blocks = neighbours.sample(seeds, fanouts, key)
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
    full = takes_all(args.model, args.data.partition(":")[0])  # each step takes the whole graph
    if full and dev.distributed:
        fail(f"torchrun: {args.model} on {args.data} takes the whole graph at once, in one process")
    train, val, test = load_graphs(args, dev)
    model = build(args, train.facts)
    net = dev.wrap(model)
    first = list((model.convs[0] if args.model == "gcn" and full else model).parameters())
    rest = [p for p in model.parameters() if all(p is not q for q in first)]
    groups = [{"params": first, "weight_decay": args.weight_decay}, {"params": rest}]
    optimizer = torch.optim.Adam(groups if rest else groups[:1], args.lr)
    history = {"val_loss": [], "frames": []}
    metric = "val_accuracy" if args.loss == "unsupervised" else "val_loss"
    parts = dict(model=model, optimizer=optimizer, history=history, dataset=train.facts)
    run = Run(args, dev, (metric, min if metric == "val_loss" else max), **parts)
    if args.evaluate:
        return run.finish(**evaluate(model, test, train, dev, args, run.folder / "confusion.png"))

    batches = [train.everything()] if full else train.batches(args.batch_size)
    if args.model == "sage" and train.facts["task"] != "graphs":
        size = len(train.graph.features) if args.loss == "unsupervised" else None
        batches = train.batches(args.batch_size, sampler(train, args), size)
    walks = args.loss == "unsupervised"
    even = not walks and (args.model == "sage" or train.facts["task"] != "labels")  # the parts
    shown = [args.epochs * k // 12 for k in (0, 1, 2, 4, 8)] if args.data == "karate" else []
    worse = (lambda: above_mean(history["val_loss"], args.window)) if args.window else None
    for epoch in run.epochs(ended=worse):
        if epoch in shown and run.epoch_begins:
            history["frames"].append((epoch, embeddings(model, train)))
        model.train()
        for batch in run.progress(batches):
            with dev.autocast():
                logits = net(*batch.inputs)[batch.rows]
            if even:
                loss, count = loss_of(logits, batch.labels), None
            else:  # so many pairs of a walk, or labels of whole graphs
                loss = loss_of(logits, batch.labels, "sum")
                count = batch.labels[0].shape[1] if walks else batch.labels.numel()
            run.add(count or 1, train_loss=loss / (count or 1))
            dev.step(loss, optimizer, count)
        metrics = evaluate(model, val, train, dev, args) if val else {}
        if run.epoch_is_whole:
            history["val_loss"].append(metrics.get("val_loss", 0.0))
        run.log(epoch, **run.means(), **metrics)
        run.save(every=10)
    if shown:  # Appendix A; with --fsdp all processes have to take part in the embeddings
        frames = [*history["frames"], (run.epoch, embeddings(model, train))]
        if dev.main:
            draw_frames(frames, train, run.folder / "embeddings.png")
    picture = run.folder / "confusion.png"
    return run.finish(**run.means(), **evaluate(model, test, train, dev, args, picture))


if __name__ == "__main__":
    main()
