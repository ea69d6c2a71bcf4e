"""What the scripts of this folder share: a row a model, the flags, and how a model is built."""

import dataclasses
import re
from pathlib import Path

from torch import nn

from common import cli, fail, weights
from common.checkpoint import read_weights
from common.data.images import add_image_flags
from generative.data import DATA, usual_size
from generative.model import MODELS

GANS = ("gan", "dcgan")  # two losses and two optimisers: train_gan.py's
VAL = 1000  # examples to watch, of at least ten times as many


@dataclasses.dataclass(frozen=True)
class Row:
    """How one model is trained, and which flags mean something for it."""

    epochs: tuple[int, int]  # on digits, and on larger sets
    batch_size: int
    lr: float
    network: dict  # arguments of its factory that are flags
    own: dict  # other flags that not all models have
    paper: dict  # what --paper changes
    clip: float | None = None
    data: str = "digits"


# fmt: off
ONE_LOSS = dict(ema=0.0, warmup=100, decay=True, optimizer="adam")
CODES, PLAYERS = ONE_LOSS | dict(without=None), dict(conditional=False, saturating=False)
CONSTANT = dict(warmup=0, decay=False)  # a rate that doesn't change
VAE = dict(latent=20, beta=1.0, likelihood="bernoulli", binarise=True)
ROWS = {
    "autoencoder": Row((100, 30), 100, 1e-3, dict(latent=30, noise=0.0), CODES,
                       paper=CONSTANT | dict(data="mnist", epochs=200)),
    "conv_autoencoder": Row((150, 20), 100, 1e-3, dict(latent=30, noise=0.0), CODES,
                            paper=CONSTANT | dict(data="mnist", epochs=200)),
    "vae": Row((200, 60), 100, 1e-3, VAE, ONE_LOSS | dict(importance=100),  # 10^8 images, Fig. 2
               paper=CONSTANT | dict(data="mnist", epochs=1667, lr=0.02, optimizer="adagrad")),
    "conv_vae": Row((150, 25), 100, 1e-3, VAE, ONE_LOSS | dict(importance=100),
                    paper=CONSTANT | dict(data="mnist", epochs=200)),
    "gan": Row((100, 60), 100, 1e-3, dict(), PLAYERS, paper=dict(data="mnist", epochs=200)),
    "dcgan": Row((200, 15), 64, 2e-4, dict(width=64), PLAYERS,
                 paper=dict(data="folder:data/lsun", epochs=5, batch_size=128, width=128)),
    "realnvp": Row((15, 12), 16, 4e-3, dict(width=32, num_blocks=2), ONE_LOSS, clip=0.5,
                   paper=CONSTANT | dict(data="cifar10", epochs=200, batch_size=64, lr=1e-3,
                                         width=64, num_blocks=8, clip=None, flip=True)),
    "realnvp2d": Row((40, 40), 200, 2e-3, dict(width=64), ONE_LOSS, CONSTANT, data="moons"),
    "ddpm": Row((60, 20), 64, 2e-4, dict(dropout=0.1, sample_steps=1000),
                ONE_LOSS | dict(ema=0.9999), clip=1.0,
                paper=dict(data="cifar10", epochs=2051, batch_size=128, warmup=5000, decay=False,
                           flip=True)),
    "ddpm_small": Row((60, 15), 64, 1e-3, dict(width=48, dropout=0.1, sample_steps=50),
                      ONE_LOSS | dict(ema=0.9999), clip=1.0,
                      paper=dict(data="mnist", epochs=200, warmup=5000, decay=False)),
}
# fmt: on
OWN = {flag: None for row in ROWS.values() for flag in row.network | row.own}
OLD_NAMES = {  # of attention, in the files that were released with the paper's weights
    "query": "to_q",
    "key": "to_k",
    "value": "to_v",
    "proj_attn": "to_out.0",
}


def recipe(model: str, data: str | None, paper: bool, **given) -> tuple[dict, dict[str, str]]:
    """A model's row as defaults, and the flags that other models have, or other data."""
    row = ROWS[model]
    defaults = row.network | row.own
    defaults |= dict(data=row.data, batch_size=row.batch_size, lr=row.lr, clip=row.clip)
    defaults |= dict(val=0 if paper or model in GANS else VAL)
    changes = row.paper if paper else {}
    data = data or changes.get("data", row.data)
    defaults |= dict(epochs=row.epochs[data != "digits"], size=usual_size(data))
    if given.get("likelihood") == "gaussian":  # of grey values
        changes = changes | dict(binarise=False)
    nothing = {}
    for flag in OWN:
        having = [name for name, row in ROWS.items() if flag in row.network | row.own]
        if model not in having:
            nothing[flag] = f"it is for {', '.join(having)}"
    if model in GANS:
        reason = "a GAN's losses choose nothing; measure --samples"
        nothing |= dict.fromkeys(("val", "patience"), reason)
    if data == "moons":
        images = ("samples", "size", "flip", "stream", "workers")
        nothing |= dict.fromkeys(images, "it is for images, not for points")
    return defaults | changes, nothing


def add_flags(parser: cli.Parser) -> None:
    """All flags beside the shared ones."""
    add_image_flags(parser)
    add, switch = parser.add_argument, parser.add_switch
    count, amount, whole = cli.integer(1), cli.not_negative, cli.integer(0)
    add("--size", type=cli.integer(4), metavar="S", group="data", help="pixels of an image's side")
    switch("--flip", group="data", help="mirror half of the training images")
    text = "train without this class, then detect it"
    add("--without", metavar="CLASS", group="data", none="with all", help=text)
    add("--warmup", type=whole, metavar="N", group="training", help="steps in which the rate rises")
    switch("--decay", group="training", help="let the rate fall to zero, along a cosine")
    kinds = ["adam", "adagrad"]
    add("--optimizer", choices=kinds, default="adam", group="training", help="which one")
    text = "average the weights with this decay (0: don't)"
    add("--ema", type=cli.share, metavar="DECAY", default=0.0, group="training", help=text)
    text = "start from a checkpoint, or diffusers' U-Net (ddpm)"
    add("--weights", metavar="FILE", group="training", none="no", help=text)
    add("--latent", type=count, metavar="D", help="numbers of a code")
    add("--noise", type=amount, metavar="STD", help="rebuild from pixels with such noise")
    add("--beta", type=amount, metavar="X", help="weight of the KL term")
    add("--likelihood", choices=["bernoulli", "gaussian"], help="of pixels")
    switch("--binarise", default=None, help="draw pixels as 0 or 1, by their grey value")
    text = "draws for the likelihood of the test"
    add("--importance", type=whole, metavar="K", default=0, help=text)
    switch("--conditional", help="tell both players the class")
    switch("--saturating", help="the generator's loss of Eq. 1")
    add("--width", type=count, metavar="C", help="channels, see the model's file")
    add("--num-blocks", type=count, metavar="N", help="residual blocks of a coupling's network")
    add("--dropout", type=cli.share, metavar="P", help="in the U-Net")
    add("--sample-steps", type=count, metavar="N", help="of the 1000, by DDIM if fewer")
    text = "measure N samples in the test"
    add("--samples", type=whole, metavar="N", default=0, help=text)


def parse(doc: str, quick: dict, paper: dict, argv: list[str] | None) -> cli.Flags:
    """The flags of train.py, or of train_gan.py, which has another model by default."""
    parser = cli.Parser("generative", doc, quick, paper, MODELS, DATA, recipe)
    add_flags(parser)
    args = parser.parse_args(argv)
    check(args)
    return args


def check(args: cli.Flags) -> None:
    """Ends in one line if flags don't fit together."""
    if (args.data == "moons") != (args.model == "realnvp2d"):
        fail(f"--model {args.model} can't take --data {args.data}: realnvp2d and moons are a pair")
    if args.samples == 1:
        fail("--samples 1: one image has no distribution to measure")
    if "weights" in args.typed and args.evaluate:
        fail("--weights starts a training, and --evaluate trains nothing: leave one of them away")
    if "weights" in args.typed and not Path(args.weights).is_file():
        fail(f"--weights {args.weights}: there is no such file")
    check_steps(args.sample_steps)
    if args.likelihood == "gaussian" and args.binarise:
        fail("--binarise makes pixels that are 0 or 1: that is for --likelihood bernoulli")
    if args.model in GANS and args.evaluate and not args.samples:
        fail("a GAN is measured by its samples: add --samples N")


def check_steps(steps: int | None) -> None:
    """Ends in one line for more steps of sampling than the chain has."""
    if steps and steps > 1000:
        fail(f"--sample-steps {steps}: the chain has 1000")


def build(args: cli.Flags, facts: dict) -> nn.Module:
    """The model that the flags ask for, for data with these facts."""
    flags = {name: getattr(args, name) for name in ROWS[args.model].network}
    settings = {k: v for k, v in flags.items() if v is not None}  # older runs: the factory's own
    if "binarise" in flags:
        settings.setdefault("binarise", args.likelihood != "gaussian")
    if args.conditional:
        settings["num_classes"] = len(facts["classes"])
    if args.data != "moons":
        settings |= dict(channels=len(facts["mean"]), size=args.size)
    try:
        return MODELS[args.model](**settings)
    except ValueError as error:
        fail(f"{args.model} can't be built, see --size and --width: {error}")


def start_from(model: nn.Module, args: cli.Flags) -> None:
    """Loads `args.weights`, if any: of the same model, or diffusers' of the U-Net."""
    if not args.weights or args.evaluate or args.stored:
        return
    state, _ = read_weights(Path(args.weights))
    if hasattr(model, "unet") and "conv_in.weight" in state:  # the U-Net alone
        old = re.compile(rf"\b({'|'.join(OLD_NAMES)})(?=\.(weight|bias)$)")
        new = (old.sub(lambda found: OLD_NAMES[found[1]], key) for key in state)
        state = {f"unet.{key}": value for key, value in zip(new, state.values(), strict=True)}
    weights.load(model, state, args, heads=())
