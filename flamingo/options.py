"""The flags of train.py, and what it takes by itself for a model and a data set."""

import torch

from common import cli, fail
from common.data.images import add_image_flags
from flamingo.data import DATA
from flamingo.model import MODELS, SIZES
from flamingo.questions import KINDS

# fmt: off
FIXED = ("size", "vision", "language", "vision_epochs", "language_steps", "num_latents",
         "cross_every", "gates", "tune_language", "leave_out", "every")  # by a checkpoint
SHAPES = dict(size=32, vision_epochs=8, language_steps=800, shots=1, riddles=0.2,
              introduce=0.3)
PHOTOS = dict(size=64, vision_epochs=60, language_steps=1200, shots=4, riddles=0.0, steps=600,
              every=200, batch_size=40)
PLAIN = dict(size=224, shots=4, riddles=0.0, introduce=0.0, gate_rate=1.0, resampler_rate=1.0)
LARGE = PLAIN | dict(batch_size=8, lr=1e-4, steps=1000, every=250)
# fmt: on
OWN_SIZE = "the run of --vision has its own"


def recipe(model: str, data: str | None, paper: bool, **given) -> tuple[dict, dict]:
    """Defaults for this model and data, and the flags that mean nothing for them."""
    data = data or ("vqa:" if paper else "shapes")
    scenes, small = data.startswith("shapes"), model == "flamingo_small"
    own = dict(num_latents=SIZES[model]["num_latents"], cross_every=SIZES[model]["every"])
    own |= SHAPES if scenes else PHOTOS
    if scenes and given.get("leave_out"):
        own["shots"] = 8  # what was left out is asked after examples: rows have to be as long
    if paper:
        own |= PLAIN | dict(steps=500_000, every=10_000, batch_size=2048)
    elif not small:
        own |= LARGE
    elif scenes:
        own["warmup"] = 20  # steps: kinds are to come in at the full rate
    nothing = {}
    if given.get("vision"):
        own["size"] = None  # asked of the run
        nothing |= dict(size=OWN_SIZE, vision_epochs="--vision names an encoder that is trained")
    if given.get("language"):
        nothing["language_steps"] = "--language names a language model that is trained"
    if not small:
        reason = f"{model} takes parts that are trained: --vision and --language"
        nothing |= dict.fromkeys(("vision_epochs", "language_steps"), reason)
        nothing.setdefault("size", OWN_SIZE)
    if data == "flickr8k":
        why = "flickr8k has captions alone, and no questions"
        nothing |= dict.fromkeys(("leave_out", "riddles", "introduce", "num_test"), why)
    return own, nothing


def parse(doc: str, quick: dict, paper: dict, argv: list[str] | None) -> cli.Flags:
    """The flags of the command line; ends in one line where they don't fit together."""
    parser = cli.Parser("flamingo", doc, quick, paper, MODELS, DATA, recipe, FIXED)
    add_image_flags(parser)
    add, switch, count = parser.add_argument, parser.add_switch, dict(type=cli.integer(1))
    count["metavar"] = "N"
    text = "pixels that the image encoder sees"
    add("--size", type=cli.integer(8), metavar="S", none=OWN_SIZE, group="data", help=text)
    text = "kinds of question that nothing is trained on: " + ", ".join(KINDS)
    add("--leave-out", nargs="+", metavar="KIND", group="data", help=text)
    text = "examples before the last question of a training row, at most"
    add("--shots", type=cli.integer(0), metavar="N", group="data", help=text)
    text = "share of rows of one kind whose questions are a made-up word"
    add("--riddles", type=cli.share, metavar="P", default=0.0, group="data", help=text)
    text = "share of the steps in which kinds come in, one after another"
    add("--introduce", type=cli.share, metavar="S", default=0.0, group="data", help=text)
    text = "questions of each kind that are asked in validation and test"
    add("--num-test", **count, default=300, group="data", help=text)
    add("--every", **count, default=250, group="training", help="steps between validations")
    text = "of matrices of the gated layers, times the rate"
    add("--weight-decay", type=cli.not_negative, metavar="W", group="training", default=0.1,
        help=text)  # fmt: skip
    text = "steps in which the rate rises, or below 1 their share"
    add("--warmup", type=cli.not_negative, metavar="N", group="training", default=0.05, help=text)
    text = "let the rate fall to zero, along a cosine"
    switch("--decay", group="training", default=True, help=text)
    text = "count the answers alone, or all text"
    add("--loss", choices=["answers", "text"], group="training", default="answers", help=text)
    text = "of the gates, times the rate of the rest"
    kind = cli.number(lambda x: 0 < x <= 1000, "a number above zero, at most 1000")
    add("--gate-rate", type=kind, metavar="S", group="training", default=1.0, help=text)
    text = "of the resampler, times the rate of the rest"
    add("--resampler-rate", type=kind, metavar="S", group="training", default=1.0, help=text)
    text = "the image encoder: a run of clip/train.py"
    add("--vision", metavar="RUN", none="one that is trained first", help=text)
    text = "the language model: a run of gpt/train.py"
    add("--language", metavar="RUN", none="one that is trained first", help=text)
    add("--vision-epochs", **count, help="of the image encoder's training")
    add("--language-steps", **count, help="of the language model's training")
    text = "latents of an image (0: its features, not resampled)"
    add("--num-latents", type=cli.integer(0), metavar="L", help=text)
    add("--cross-every", **count, help="blocks of the language model for each gated layer")
    switch("--gates", default=True, help="multiply what gated layers add by the tanh of a number")
    text = "train the language model along, in place of leaving it as it is"
    switch("--tune-language", help=text)
    args = parser.parse_args(argv)
    if args.leave_out and args.data.startswith("shapes"):
        for kind in args.leave_out:
            if kind not in KINDS:
                fail(f"--leave-out: unknown kind {kind!r}: there are {', '.join(KINDS)}")
    if args.size and args.model == "flamingo_small":
        check_size(args.size)
    if not args.gates and "gate_rate" in args.typed:
        fail("--gate-rate is of the gates: leave --no-gates out")
    return args


def check_size(size: int) -> None:
    """Ends in one line for a side that clip_small can't halve as often as it does."""
    from clip.model import clip_small

    try:
        with torch.device("meta"):
            clip_small(image_size=size)
    except ValueError as error:
        fail(f"--size {size}: {error}")


def settings_of(args: cli.Flags) -> dict:
    """What the flags change of the model's own sizes."""
    frozen = ["vision_encoder", *([] if args.tune_language else ["lang_encoder"])]
    return dict(num_latents=args.num_latents, every=args.cross_every, gated=args.gates,
                frozen=frozen)  # fmt: skip
