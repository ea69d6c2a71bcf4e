"""The flags of train.py, and what each network and each kind of data asks for."""

import contextlib
import math
from pathlib import Path

from common import cli, fail
from common.data.images import IMAGE_SETS, add_image_flags
from mlp.model import ACTIVATIONS, MODELS
from mlp.tables import SKLEARN, TABLES
from mlp.worlds import WORLDS

DATA = [*IMAGE_SETS, *TABLES, *WORLDS]
KINDS = {"symmetry": "world", "family_trees": "world", "mlp_table": "table"}  # else images
WORLD_OF = {model: data for data, model in WORLDS.items()}
USUAL = {"image": "mlp", "table": "mlp_table"}  # the network, where nobody chose one
OPTIMIZERS = ["sgd", "momentum", "adagrad", "rmsprop", "adam", "adamw"]
NOTHING_OWN = dict(momentum=0.9, decay=0.0, spread=0.3, l1=0.0, l2=0.0, max_norm=None)
RELU = NOTHING_OWN | dict(activation="relu", norm=False, dropout=0.0, input_dropout=0.0)
ROWS = {  # beside QUICK and PAPER
    # Fig. 1: 57 x 25 = 1,425 sweeps.
    "symmetry": NOTHING_OWN | dict(epochs=57, lr=0.1, optimizer="momentum"),
    # Fig. 4 has 60 x 25 = 1,500 sweeps, a rate of 0.01, a decay of 0.002: see the README.
    "family_trees": NOTHING_OWN
    | dict(epochs=180, lr=0.03, optimizer="momentum", decay=3e-4, spread=1.0),
    "mlp": RELU | dict(hidden=[300]),
    "mlp_deep": RELU | dict(hidden=[500, 150]),
    "mlp_dropout": RELU | dict(hidden=[1024] * 3, dropout=0.5, input_dropout=0.2, max_norm=1.0),
    "mlp_table": RELU | dict(hidden=[256, 128], dropout=0.1),
}
# Of tables up to so many rows: the batch, and L2.
BATCHES = ((2000, 16, 0.03), (20_000, 64, 1e-3), (math.inf, 256, 0.0))
FEW_ROWS = 1000  # of fewer a tenth is too little to choose by: none is kept back
ONE_BATCH = "the paper adds up the gradient of all cases before it changes a weight"
PAPERS_NET = "the network is the paper's"


def kind_of(data: str) -> str:
    """What a data set holds: "world", "table" or "image"."""
    name = data.partition(":")[0]
    return "world" if name in WORLDS else "table" if name in (*SKLEARN, "csv") else "image"


def rows_of(data: str) -> int:
    """About how many rows a table has: the lines of the (first) file."""
    paths = [data.partition(":")[2], data.partition(":")[2].split(",")[0]]
    for path in map(Path, paths):
        with contextlib.suppress(OSError), open(path.expanduser(), "rb") as file:
            return sum(chunk.count(b"\n") for chunk in iter(lambda: file.read(1 << 20), b""))
    return 0


def recipe(model: str, data: str | None, paper: bool, **given) -> tuple[dict, dict]:
    """The network's row on the data's; where only the data is chosen, its usual network."""
    kind = kind_of(data) if data else KINDS.get(model, "image")
    world = kind == "world" and data not in (None, WORLD_OF.get(model))
    if KINDS.get(model, "image") != kind or world:
        model = WORLDS.get(data) or USUAL[kind]
    own, nothing = {"model": model} | ROWS[model], {}
    if kind == "world":
        own |= dict(data=WORLD_OF[model], val=0, batch_size=64 if model == "symmetry" else 100)
        nothing = dict.fromkeys(("batch_size", "accumulate"), ONE_BATCH)
        nothing |= dict.fromkeys(("val", "patience"), "all cases are trained on")
        nothing |= dict.fromkeys(("hidden", "activation", "norm"), PAPERS_NET)
        nothing |= dict.fromkeys(("dropout", "input_dropout", "max_norm"), PAPERS_NET)
        nothing |= dict(fsdp="a few hundred weights are not for sharing")
    elif kind == "table":
        rows = rows_of(data or "iris")
        size, l2 = next(row[1:] for row in BATCHES if rows <= row[0])
        val = given.get("val", 0 if rows < FEW_ROWS else 5000)
        own |= dict(data=data or "iris", epochs=60, val=val, patience=20 if val else None)
        own |= dict(optimizer="adamw", batch_size=size, lr=3e-3, l2=l2)
    else:
        own |= dict(data=data or ("mnist" if paper else "digits"), optimizer="adamw")
        own |= dict(val=0) if paper else dict(val=137 if own["data"] == "digits" else 5000)
        short = dict(epochs=20, batch_size=128, lr=1e-3)
        small = dict(epochs=40, batch_size=32, lr=2e-3)  # digits: 1,301 images
        own |= small if own["data"] == "digits" else short
        if model == "mlp_dropout" and own["data"] != "digits":  # large steps, and many
            own |= dict(epochs=150, batch_size=250)
            if given.get("optimizer", "momentum") == "momentum":
                own |= dict(optimizer="momentum", momentum=0.95, lr=0.025)
    if given.get("fsdp"):  # no process has the whole weights that these look at
        own |= dict(l2=0.0, max_norm=None)
    if kind != "image":
        nothing |= dict.fromkeys(("stream", "workers"), "it is for image files")
    if kind != "table" or data in (None, *SKLEARN):
        nothing |= dict.fromkeys(("target", "task", "drop"), "it is for tables, --data csv:PATH")
    if kind != "world":
        nothing |= dict(spread="it is for the networks of 1986")
    if given.get("optimizer", own["optimizer"]) != "momentum":
        nothing |= dict.fromkeys(("momentum", "decay"), "it is for --optimizer momentum")
    return own, nothing


def parse(doc: str, quick: dict, paper: dict, argv: list[str] | None) -> cli.Flags:
    """The flags; see --help."""
    fixed = ["hidden", "activation", "norm", "target", "task", "drop"]
    parser = cli.Parser("mlp", doc, quick, paper, MODELS, DATA, recipe, fixed)
    add_image_flags(parser)
    add, switch, count = parser.add_argument, parser.add_switch, cli.integer(1)
    text = "the column to predict, of csv:PATH (or csv:TRAIN,TEST)"
    add("--target", metavar="COLUMN", none="the last", group="data", help=text)
    kinds, text = ["auto", "classification", "regression"], "told from the target"
    add("--task", choices=kinds, default="auto", group="data", help=f"auto: {text}")
    text = "columns to leave out, as numbers of rows are"
    add("--drop", nargs="+", metavar="COLUMN", group="data", help=text)
    add("--hidden", type=count, nargs="+", metavar="N", help="units of each hidden layer")
    add("--activation", choices=list(ACTIVATIONS), help="of hidden units")
    switch("--norm", help="normalise over the batch before the activation")
    add("--dropout", type=cli.share, metavar="P", help="share of hidden units left out")
    add("--input-dropout", type=cli.share, metavar="P", help="share of inputs left out")
    add("--max-norm", type=cli.positive, metavar="C", none="no limit",
        help="longest weights into a hidden unit")  # fmt: skip
    add("--optimizer", choices=OPTIMIZERS, default="adamw", help="momentum is the paper's, Eq. 9")
    add("--momentum", type=cli.share, metavar="A", default=0.9, help="share of the last change")
    text = "share of each weight taken off after each step"
    add("--decay", type=cli.share, metavar="D", default=0.0, help=text)
    add("--spread", type=cli.positive, metavar="R", default=0.3, help="initial weights: -R to R")
    add("--l1", type=cli.not_negative, metavar="L", default=0.0, help="penalty on |weight|")
    add("--l2", type=cli.not_negative, metavar="L", default=0.0, help="on half of weight^2")
    args = parser.parse_args(argv)
    kind, wanted = kind_of(args.data), KINDS.get(args.model, "image")
    if kind != wanted or (kind == "world" and WORLDS[args.data] != args.model):
        right = WORLDS.get(args.data) or USUAL[kind]
        fail(f"--model {args.model} is not for {args.data}: take --model {right}")
    if args.fsdp and (args.l1 or args.l2 or args.max_norm):
        fail("--l1, --l2 and --max-norm need whole parameters: leave --fsdp away")
    return args
