"""The flags of train.py, and what it takes by itself for a model and a data set."""

from pathlib import Path

from common import cli, fail
from common.data.captions import add_scene_flags
from common.data.images import add_image_flags
from common.folder import read_flags
from common.weights import check_evaluated
from dalle.data import DATA, PLAIN
from dalle.layers import KINDS
from dalle.model import MODELS
from dalle.stream import SPARSE

CODES = {"dalle": "dvae", "dalle_small": "dvae_small"}  # which dVAE a transformer trains first
TOLD = ("num_codes", "factor")  # of the dVAE, which a transformer's flags choose, too
PLACES = {1: 6, 2: 11, 3: 17}  # for the tokens of what is said of so many objects
# fmt: off
SIZES = ("text_length", "d_model", "num_layers", "num_heads", "attention", "kernel")
STREAM = dict(  # flags of the transformer alone
    codes=None, vocab_size=16_384, attention=SPARSE, dropout=0.0, beta2=0.96, captions="full",
    text_length=None, d_model=None, num_layers=None, num_heads=None, kernel=None, prompts=0,
    draw_temperature=1.0)
DVAE = dict(  # of the dVAE alone; App. A.2
    num_codes=None, factor=None, width=None, beta=6.6, beta_rise=0.0017, temperature=1 / 16,
    cooling=0.05, straight_through=False, ema=0.999, spread=0.0, encoder_rate=1.0,
    encoder_waits=0.0, weights=None)
OWN = {
    "dvae_small": dict(
        num_codes=512, factor=4, width=24, epochs=2, batch_size=16, lr=3e-3, beta=0.02,
        beta_rise=0.2, temperature=0.25, cooling=0.8, ema=0.99, weight_decay=1e-4, warmup=0.05,
        clip=1.0, spread=15.0, encoder_rate=0.5, encoder_waits=0.1),
    "dalle_small": dict(
        vocab_size=256, d_model=128, num_layers=4, num_heads=4, kernel=5, prompts=200),
    "dvae": dict(num_codes=8192, factor=8, width=256, weight_decay=1e-4, warmup=0.0),
    "dalle": dict(text_length=256, d_model=3968, num_layers=64, num_heads=62, kernel=11),
}
PHOTOS = {  # of image files, which are fewer and larger than scenes
    "dvae_small": dict(size=64, epochs=60),
    "dalle_small": dict(
        size=64, epochs=60, batch_size=16, vocab_size=2048, text_length=32, d_model=192,
        num_layers=4, num_heads=6, dropout=0.1),
}
DVAE_PAPER = dict(  # App. A.2: 3 million steps, and a cosine over 1.2 of them
    epochs=6, batch_size=512, lr=1e-4, clip=None, weight_decay=1e-4, warmup=0.0, fall=0.4,
    floor=0.0125)
# fmt: on
FIXED = ("size", "objects", "codes", *TOLD, "width", "weights", "vocab_size", "captions", *SIZES)


def recipe(model: str, data: str | None, paper: bool, **given) -> tuple[dict, dict]:
    """Defaults for this model and data, and the flags that mean nothing for them."""
    kind, small = "dvae" if model.startswith("dvae") else "dalle", model.endswith("_small")
    own = (DVAE if kind == "dvae" else STREAM) | OWN[model]
    scenes = (data or ("" if paper else "shapes")).startswith("shapes")
    own |= dict(size=256 if paper else 64 if not scenes else 24 if small else 32)
    if kind == "dvae" and paper:
        own |= DVAE_PAPER
    elif not scenes:
        own |= PHOTOS.get(model, {})
    own["objects"] = 1 if scenes and small else 3
    if scenes and model == "dalle_small":
        own["text_length"] = PLACES[given.get("objects", own["objects"])]
    if not small and not paper:
        own |= dict(batch_size=8, lr=1e-4)
    other = STREAM if kind == "dvae" else DVAE
    nothing = {flag: f"it is for {'dalle' if kind == 'dvae' else 'dvae'} and its small one"
               for flag in other}  # fmt: skip
    if kind == "dvae":
        nothing["fsdp"] = "a dVAE is small enough for one device: torchrun alone shares its steps"
    else:
        first = OWN[CODES[model]] | ({} if scenes or paper else PHOTOS.get(CODES[model], {}))
        for flag in TOLD:
            nothing.pop(flag)
            own[flag] = first[flag]
        if codes := given.get("codes"):
            place = Path(codes).expanduser()
            known = read_flags(place if place.is_dir() else place.parent)
            own |= {key: known[key] for key in ("size", *TOLD) if known.get(key)}
            nothing |= dict.fromkeys(TOLD, "the codes of --codes are made already")
        if not scenes:
            own |= dict(prompts=0, captions=None)
            reason = "only captions of shapes can be judged, and are plain or in full"
            nothing |= dict.fromkeys(("prompts", "captions"), reason)
    if not scenes:
        nothing["objects"] = "only scenes of shapes have a number of objects that is known"
    if not small:
        sizes = ("factor", "width", "d_model", "num_layers", "num_heads")
        nothing |= dict.fromkeys(sizes, f"{model} has the paper's")
    return own, nothing


def parse(doc: str, quick: dict, paper: dict, argv: list[str] | None) -> cli.Flags:
    """The flags of the command line; ends in one line where they don't fit together."""
    parser = cli.Parser("dalle", doc, quick, paper, MODELS, DATA, recipe, FIXED)
    add_image_flags(parser)
    add_scene_flags(parser)
    add, switch, count = parser.add_argument, parser.add_switch, dict(type=cli.integer(1))
    count["metavar"] = "N"
    add("--size", type=cli.integer(8), metavar="S", group="data", help="pixels of an image's side")
    text = "tokens that the captions' vocabulary has at most"
    add("--vocab-size", type=cli.integer(8), metavar="N", group="data", help=text)
    add("--text-length", **count, group="data", help="places for a caption's tokens")
    text = "of shapes: in full, plain (a photo of a star), or mixed: 95% of them in full"
    ways = dict(choices=list(PLAIN), default="full", group="data")
    add("--captions", **ways, help=text)
    text = "steps in which the rate rises, or below 1 their share"
    add("--warmup", type=cli.not_negative, metavar="N", group="training", default=0.1, help=text)
    kind = cli.number(lambda x: 0 < x <= 1, "a number above 0, at most 1")
    text = "share of the steps after which the rate's cosine is over"
    add("--fall", type=kind, metavar="S", group="training", default=1.0, help=text)
    text = "of the peak rate, left then"
    add("--floor", type=cli.share, metavar="S", group="training", default=0.0, help=text)
    text = "of matrices, times the rate"
    kind = dict(type=cli.not_negative, metavar="W", group="training")
    add("--weight-decay", **kind, default=0.045, help=text)
    text = "Adam's: how slowly its mean of squares moves"
    add("--beta2", type=cli.share, metavar="B", group="training", default=0.96, help=text)
    text = "train the transformer on the codes of this run, or of a folder with the released files"
    add("--codes", metavar="RUN|PATH", none="a dVAE that is trained first", help=text)
    kinds = [SPARSE, *KINDS]
    add("--attention", choices=kinds, default=SPARSE, help="what image tokens see of the image")
    text = "side of the square that attention of kind conv sees"
    add("--kernel", type=odd, metavar="K", help=text)
    for name, of in (("d-model", "width"), ("num-layers", "blocks"), ("num-heads", "heads")):
        add(f"--{name}", **count, help=f"{of} of dalle_small")
    add("--dropout", type=cli.share, metavar="P", default=0.0, help="of values left out")
    text = "draw images for N unseen captions of one shape in the test, and judge them"
    add("--prompts", type=cli.integer(0), metavar="N", default=0, help=text)
    text = "of these draws: below 1 likelier codes, 0 the likeliest"
    add("--draw-temperature", type=cli.not_negative, metavar="T", default=1.0, help=text)
    add("--num-codes", type=cli.integer(2), metavar="K", help="codes of the dVAE")
    text = "pixels, down and across, that a code of dvae_small stands for"
    add("--factor", type=a_factor, metavar="F", help=text)
    add("--width", type=cli.integer(4), metavar="C", help="channels of dvae_small's first group")
    add("--beta", type=cli.not_negative, metavar="B", default=6.6, help="weight of the KL term")
    text = "share of the steps in which that weight rises"
    add("--beta-rise", type=cli.share, metavar="S", default=0.0017, help=text)
    text = "of the Gumbel-softmax, at last; it falls from 1"
    add("--temperature", type=cli.multiplier, metavar="T", default=1 / 16, help=text)
    kind = cli.number(lambda x: 0 < x <= 1, "a number above 0, at most 1")
    text = "share of the steps in which it falls"
    add("--cooling", type=kind, metavar="S", default=0.05, help=text)
    switch("--straight-through", help="decode the likeliest code, with the mixture's gradient")
    text = "average the dVAE's weights with this decay (0: don't)"
    add("--ema", type=cli.share, metavar="DECAY", default=0.999, help=text)
    text = "std of the codes' logits over images at the beginning (0: as the weights come)"
    add("--spread", type=cli.not_negative, metavar="S", default=0.0, help=text)
    text = "share of the rate that the encoder has"
    add("--encoder-rate", type=cli.multiplier, metavar="R", default=1.0, help=text)
    text = "share of the steps in which the encoder waits for the decoder to learn its codes"
    add("--encoder-waits", type=cli.share, metavar="S", default=0.0, help=text)
    text = "start the dVAE from a run, a state_dict, or a folder with the released files"
    add("--weights", metavar="PATH", none="no", help=text)
    args = parser.parse_args(argv)
    check(args)
    return args


def odd(text: str) -> int:
    """A parser of odd numbers."""
    number = cli.integer(1)(text)
    if number % 2 == 0:
        fail(f"--kernel {number}: a square around a token has an odd side")
    return number


def a_factor(text: str) -> int:
    """A parser of the factors that there are."""
    if text not in ("2", "4", "8"):
        fail(f"--factor {text}: a code stands for 2x2, 4x4 or 8x8 pixels")
    return int(text)


def check_size(size: int, factor: int) -> None:
    """Ends in one line where images can't be cut into the squares that codes stand for."""
    if size % factor:
        fail(f"--size {size}: a code stands for {factor}x{factor} pixels, so --size is a multiple "
             f"of {factor}")  # fmt: skip


def check(args: cli.Flags) -> None:
    """Ends in one line if flags don't fit together."""
    if not args.codes and not args.weights and not args.stored:
        check_size(args.size, args.factor)
    check_evaluated(args)
    if "weights" in args.typed and args.paper:
        fail("--paper trains from the beginning: leave --weights out")
