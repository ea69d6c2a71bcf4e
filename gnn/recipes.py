"""What the papers say for each model and kind of data, and which flags mean something there."""

from common import cli, fail
from gnn.data import MOLECULES, add_graph_flags, kind_of
from gnn.gcn import RULES
from gnn.readout import READOUTS

# A row a model: the flags that are arguments of its network, and its recipe for each kind of data.
# What is left out stands in SHARED, or (GCN on the karate club) in train.py's QUICK and PAPER.
ROWS = {
    "gcn": dict(
        own=["rule", "residual", "activation"],
        karate=dict(),
        citation=dict(epochs=200, lr=0.01, hidden=[16], dropout=0.5, window=10),
        graphs=dict(hidden=[64, 64]),
        ppi=dict(hidden=[256, 256], batch_size=2),
    ),
    "sage": dict(
        own=["aggregator"],
        karate=dict(epochs=60, lr=0.01, hidden=[16, 16], dropout=0.0),
        citation=dict(epochs=50, lr=0.01, hidden=[128, 128], dropout=0.5, patience=20),
        graphs=dict(hidden=[64, 64]),
        ppi=dict(hidden=[256, 256], batch_size=512),
    ),
    "gat": dict(
        own=["residual", "num_heads", "out_heads", "attention"],
        karate=dict(epochs=100, lr=0.005, hidden=[8], dropout=0.2),
        citation=dict(epochs=2000, lr=0.005, hidden=[8], dropout=0.6, patience=100, watch="both"),
        pubmed=dict(out_heads=8, lr=0.01, weight_decay=1e-3),  # on top of the above, Sec. 3.3
        graphs=dict(hidden=[16, 16], num_heads=4),
        ppi=dict(hidden=[256, 256], batch_size=2, num_heads=4, out_heads=6, residual=True,
                 watch="both"),
    ),
}  # fmt: skip
SHARED = {
    "karate": dict(val=0, activation="relu", window=None, patience=None),
    "citation": dict(val=500, activation="relu", window=None, patience=None),
    "graphs": dict(val=500, epochs=100, batch_size=32, lr=0.005, dropout=0.2, weight_decay=0.0,
                   patience=50, readout="sum", features="standard", activation="relu", window=None),
    "ppi": dict(val=500, epochs=200, lr=0.005, dropout=0.0, weight_decay=0.0, patience=100,
                features="raw", activation="relu", window=None),
}  # fmt: skip


def takes_all(model: str, data: str) -> bool:
    """Whether a step takes the whole graph at once."""
    return model != "sage" and kind_of(data) in ("karate", "citation")


def recipe(model: str, data: str | None, paper: bool, **given) -> tuple[dict, dict[str, str]]:
    """The defaults for a model and data, and the flags that mean nothing there with the reason."""
    data = data or ("cora" if paper else "karate")
    kind, row = kind_of(data), ROWS[model]
    own = SHARED[kind] | row[kind] | row.get(data, {})
    if (model, kind) == ("gcn", "karate"):  # as train.py has it
        own = dict(val=0, window=None)
    if data.startswith("tu:"):
        own["attributes"] = True
    if given.get("val") == 0 or "patience" in given:  # the window would take the last weights
        own["window"] = None
    if given.get("val") == 0 or "window" in given:
        own["patience"] = None
    if "num_layers" in given and "hidden" not in given and "hidden" in own:
        own["hidden"] = own["hidden"][:1] * num_hidden(model, given["num_layers"])
    if model == "sage":  # as many as layers, the last of them again
        count = given.get("num_layers") or len(given.get("hidden", own["hidden"]))
        own["fanouts"] = ([25, 10] + [10] * count)[:count]
    return own, without_meaning(model, data, given.get("loss"))


def without_meaning(model: str, data: str, loss: str | None) -> dict[str, str]:
    """The flags that this model, data and loss have no use for, and why."""
    kind, needless = kind_of(data), {}

    def refuse(reason: str, *flags: str) -> None:
        needless.update(dict.fromkeys(flags, reason))

    others = {flag for row in ROWS.values() for flag in row["own"]} - {*ROWS[model]["own"]}
    refuse(f"{model} has no such part", *others)
    refuse("torch.compile can't follow sums over edges: it would break off at each", "compile")
    if takes_all(model, data):
        reason = "each step takes the whole graph (sage draws mini-batches)"
        refuse(reason, "batch_size", "accumulate")
    if model != "sage":
        refuse("they are for sage", "fanouts", "loss")
    elif kind in ("graphs", "ppi"):
        refuse("it is for one graph, and there are many", "loss")
    if kind == "graphs":
        refuse("graphs as small as these are taken whole", "fanouts")
    else:
        refuse("nodes have labels, not graphs", "readout")
        refuse(f"--data {data} has a split of its own", "fold")
    if kind in ("graphs", "ppi"):
        refuse("there are other graphs in the test set anyway", "unseen")
    if data not in MOLECULES and not data.startswith("tu:"):
        refuse("only TU data sets keep attributes apart", "attributes")
    if kind == "ppi" and model != "sage":
        refuse("each step takes whole graphs (sage draws nodes)", "limit")
    if loss == "unsupervised":
        refuse("the paper's loss of walks has none", "dropout")
        refuse("without labels there is no validation loss; take --patience", "window", "watch")
    return needless


def add_flags(parser: cli.Parser) -> None:
    """All flags beside the shared ones."""
    add_graph_flags(parser)
    add, count = parser.add_argument, dict(type=cli.integer(1), metavar="N")
    text = "channels of the layers (gat: of a head)"
    add("--hidden", **count, nargs="+", help=text)
    text = "so many layers, of the width of the first of --hidden"
    add("--num-layers", **count, none="as --hidden has", help=text)
    text = "share of features (gat: and attention) left out"
    add("--dropout", type=cli.share, metavar="P", help=text)
    text = "L2 (gcn on one graph: of the first layer only)"
    add("--weight-decay", type=cli.not_negative, metavar="L", default=5e-4, help=text)
    text = "stop if the validation loss is above its mean of the N epochs before"
    add("--window", **count, none="no", help=text)
    text = "what --patience waits for: a lower validation loss, or as the GAT paper has it either "
    text += "that or a better score, and to keep is an epoch where both are best"
    add("--watch", choices=["loss", "both"], default="loss", help=text)
    add("--rule", choices=list(RULES), default="renormalised", help="how features spread")
    add("--activation", choices=["relu", "tanh"], default="relu", help="between layers")
    parser.add_switch("--residual", help="add a layer's input to its output")
    add("--num-heads", **count, default=8, help="of hidden layers")
    add("--out-heads", **count, default=1, help="of the last layer, averaged")
    kinds = ["learned", "constant"]
    add("--attention", choices=kinds, default="learned", help="the weights of edges")
    add("--aggregator", choices=["mean", "max"], default="mean", help="of neighbours")
    text = "neighbours to draw, a number for each step away from a node; 0 stands for all"
    add("--fanouts", type=cli.integer(0), metavar="N", nargs="+", default=[25, 10], help=text)
    kinds, text = ["supervised", "unsupervised"], "of labels, or of walks (Eq. 1)"
    add("--loss", choices=kinds, default="supervised", help=text)
    add("--readout", choices=READOUTS, default="mean", help="of a graph's nodes")


def check(args: cli.Flags) -> None:
    """Ends in one line if flags don't go together."""
    typed = set(args.typed)
    if {"window", "patience"} <= typed:
        fail("--window and --patience are two ways to stop: choose one of them")
    if "window" in typed and not args.val:
        fail("--window needs a validation set to watch: give --val N too")
    layers = len(widths(args))
    if "hidden" in typed and len(args.hidden) not in (1, layers):
        fail(f"--hidden has {len(args.hidden)} widths, and --num-layers needs one, or {layers}")
    if "fanouts" in typed and len(args.fanouts) != layers:
        fail(f"--fanouts needs a number for each of the {layers} layers of --hidden")


def widths(args: cli.Flags) -> list[int]:
    """The widths of the hidden layers: those of --hidden, or so many as --num-layers needs."""
    if not args.num_layers:
        return list(args.hidden)
    layers = num_hidden(args.model, args.num_layers)
    return list(args.hidden) if len(args.hidden) == layers else args.hidden[:1] * layers


def num_hidden(model: str, num_layers: int) -> int:
    """How many layers are hidden: the last of gcn and gat has the classes' width."""
    return num_layers - (model != "sage")
