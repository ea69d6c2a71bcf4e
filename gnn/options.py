"""The flags of gnn/train.py beside the shared ones, and which of them go together."""

from common import cli, fail
from gnn.data import add_graph_flags
from gnn.gcn import RULES
from gnn.readout import READOUTS
from gnn.recipes import defaults_for, fit, without_meaning

FIRST = {False: "karate", True: "cora"}  # data of QUICK and of PAPER
NO_COMPILE = "torch.compile can't follow sums over edges: it would break off at each"


def recipe(model: str, data: str | None, paper: bool, **given) -> tuple[dict, dict[str, str]]:
    """The papers' recipe for a model and kind of data; without a validation part, no stopping."""
    kind = (data or FIRST[paper]).partition(":")[0]
    own = {} if kind == "karate" and model == "gcn" else defaults_for(model, kind)
    if kind == "karate":
        own |= dict(val=0, window=None, patience=None)
    if given.get("val") == 0 or "patience" in given:
        own |= dict(window=None)
    if given.get("val") == 0 or "window" in given:
        own |= dict(patience=None)
    nothing = without_meaning(model, kind, given.get("loss", "supervised"))
    return own, nothing | {"compile": NO_COMPILE}


def add_flags(parser: cli.Parser) -> None:
    """All flags beside the shared ones."""
    add_graph_flags(parser)
    add, count, share = parser.add_argument, cli.integer(1), cli.not_negative
    add("--hidden", type=count, nargs="+", help="channels of the layers (gat: of a head)")
    add(
        "--num-layers",
        type=count,
        none="as many as of --hidden",
        help="instead: so many layers, of the width of the first",
    )
    add("--dropout", type=share, help="share of features (gat: and attention) left out")
    add("--weight-decay", type=share, default=5e-4, help="L2 (gcn on one graph: of the first "
        "layer only)")  # fmt: skip
    add(
        "--window",
        type=count,
        none="no",
        help="stop if the validation loss is above its mean of the last N",
    )
    add("--rule", choices=list(RULES), default="renormalised", help="gcn: how features spread")
    add("--activation", choices=["relu", "tanh"], default="relu", help="gcn: between layers")
    parser.add_switch("--residual", help="add a layer's input to its output")
    add("--num-heads", type=count, default=8, help="gat: of hidden layers")
    add("--out-heads", type=count, default=1, help="gat: of the last layer, averaged")
    add("--attention", choices=["learned", "constant"], default="learned", help="gat: its weights")
    add("--aggregator", choices=["mean", "max"], default="mean", help="sage: of neighbours")
    add("--fanouts", type=cli.integer(0), nargs="+", default=[25, 10], help="sage: neighbours to "
        "draw, a number for each step away from a node; 0 stands for all")  # fmt: skip
    add("--loss", choices=["supervised", "unsupervised"], default="supervised", help="sage: Eq. 1")
    add("--readout", choices=READOUTS, default="mean", help="of whole graphs")


def check(args: cli.Flags) -> None:
    """Ends in one line if flags don't go together."""
    typed = set(args.typed)
    if {"window", "patience"} <= typed:
        fail("--window and --patience are two ways to stop: choose one of them")
    if "window" in typed and not args.val:
        fail("--window needs a validation part to watch: give --val N too")
    layers = len(layers_of(args)[0])
    if "hidden" in typed and len(args.hidden) not in (1, layers):
        fail(f"--hidden has {len(args.hidden)} widths, and --num-layers needs one, or {layers}")
    if "fanouts" in typed and len(args.fanouts) != layers:
        fail(f"--fanouts needs a number for each of the {layers} layers of --hidden")
    if args.dropout >= 1:
        fail(f"--dropout is a share: it needs a number below 1, not {args.dropout:g}")


def layers_of(args: cli.Flags) -> tuple[list[int], list[int]]:
    """The widths of the layers, and how many neighbours each draws."""
    return fit(args.model, args.num_layers, args.hidden, args.fanouts)
