"""The flags of gnn/train.py beside the shared ones, and which of them go together."""

import argparse

from common import cli, fail
from common.data.graphs import add_graph_flags
from gnn.gcn import RULES
from gnn.readout import READOUTS
from gnn.recipes import fit, recipe, takes_all, without_meaning

UNUSED = {"--compile": "torch.compile can't follow sums over edges: it would break off at each"}


def add_flags(parser: argparse.ArgumentParser) -> None:
    """All flags beside the shared ones."""
    add_graph_flags(parser)
    add, count, share = parser.add_argument, cli.whole(1), cli.not_negative
    add("--hidden", type=count, nargs="+", help="channels of the layers (gat: of a head)")
    add("--num-layers", type=count, help="instead: so many layers, of the width of the first")
    add("--dropout", type=share, help="share of features (gat: and attention) left out")
    add("--weight-decay", type=share, default=5e-4, help="L2 (gcn on one graph: of the first "
        "layer only)")  # fmt: skip
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


def settle(args: argparse.Namespace) -> argparse.Namespace:
    """Takes the paper's recipe for the data where no flag was given; what can't be ends here."""
    kind, typed = args.data.partition(":")[0], set(args.typed)
    if kind != "karate" or args.model != "gcn":
        found = recipe(args.model, kind).items()
        vars(args).update({key: value for key, value in found if key not in args.chosen})
    args.full = takes_all(args.model, kind)
    for flag, why in without_meaning(args.model, kind, args.loss).items():
        if flag in typed:
            fail(f"--{flag.replace('_', '-')} means nothing for {args.model} on {kind}: {why}")
    if {"window", "patience"} <= typed:
        fail("--window and --patience are two ways to stop: choose one of them")
    if "patience" in typed:  # the recipe's window would stop without taking the best weights
        args.window = None
    elif "window" in typed:
        args.patience = None
    widths, draws = len(args.hidden), len(args.fanouts)
    args.hidden, args.fanouts = fit(args.model, args.num_layers, args.hidden, args.fanouts)
    layers = len(args.hidden)
    if "hidden" in typed and widths not in (1, layers):
        fail(f"--hidden has {widths} widths, and --num-layers needs one, or {layers}")
    if "fanouts" in typed and draws != layers:
        fail(f"--fanouts needs a number for each of the {layers} layers of --hidden")
    if args.dropout >= 1:
        fail(f"--dropout is a share: it needs a number below 1, not {args.dropout:g}")
    return args
