"""What train.py takes by itself for a model, a data set and weights: where recipes differ."""

from clip.model import SIZES
from clip.published import model_of
from common import cli
from common.data.tokens import FEWEST

OWN = ("embed_dim", "vision_width", "text_width", "text_layers")  # sizes of clip_small
FIXED = ("size", "vocab_size", "weights", "freeze", *OWN)  # by a checkpoint


def recipe(
    model: str, data: str | None, paper: bool, weights: str | None = None, **given
) -> tuple[dict, dict]:
    """Sizes by model and data; what published weights settle."""
    nothing = {"fsdp": "the scale is one number, which can't be sharded; under torchrun alone "
                       "every process holds the whole network"}  # fmt: skip
    own = {}
    if weights:
        model = model if given.get("model_chosen") else model_of(weights)
        own = dict(model=model, lr=1e-5, weight_decay=0.2, epochs=5, batch_size=64)
        return own, nothing | dict.fromkeys(("size", "vocab_size", *OWN), "the weights have theirs")
    data = data or ("captions:" if paper else "shapes")
    if model != "clip_small":
        nothing |= dict.fromkeys(OWN, f"{model} has the paper's")
        own |= dict(size=224, vocab_size=49_408)
        own |= (
            {} if paper else dict(lr=5e-4, batch_size=32, size=32 if data[:6] == "shapes" else 224)
        )
        own |= dict(lr=4e-4) if paper and model == "clip_vit_l_14" else {}
        if model == "clip_vit_l_14" and own["size"] == 32:
            own["size"] = 28
    elif not data.startswith("shapes"):
        own |= dict(size=64, epochs=60, batch_size=64, lr=1e-3, vocab_size=2048)
    own["text_rate"] = 0.1 if model == "clip_small" else 1.0
    own["beta2"], own["eps"] = (0.999, 1e-8) if model == "clip_resnet50" else (0.98, 1e-6)
    return own, nothing


def add_own_flags(parser: cli.Parser) -> None:
    """The flags of sizes and of the optimiser, which predict.py has, too."""
    add, count = parser.add_argument, dict(type=cli.integer(1), metavar="N")
    add("--size", type=cli.integer(8), metavar="S", default=24, help="pixels the network sees")
    text = "at most so many tokens of a vocabulary that is trained on the captions"
    add("--vocab-size", type=cli.integer(FEWEST), metavar="N", default=1024, help=text)
    for name, of in (("embed-dim", "dimensions of the space that images and texts share"),
                     ("vision-width", "channels of the first stage"),
                     ("text-width", "of the text encoder"),
                     ("text-layers", "of the text encoder")):  # fmt: skip
        default = SIZES["clip_small"][name.replace("-", "_")]
        add(f"--{name}", **count, default=default, help=f"{of}; of clip_small")
    text = "of matrices, times the rate"
    add("--weight-decay", type=cli.not_negative, metavar="W", default=0.2, help=text)
    text = "steps in which the rate rises, or below 1 their share; then it falls as half a cosine"
    add("--warmup", type=cli.not_negative, metavar="N", default=0.1, help=text)
    text = "of the blocks of the text encoder, times the rate of the rest"
    add("--text-rate", type=cli.multiplier, metavar="S", default=1.0, help=text)
    text = "Adam's: how slowly its mean of squares moves"
    add("--beta2", type=cli.share, metavar="B", default=0.98, help=text)
    add("--eps", type=cli.positive, metavar="E", default=1e-6, help="Adam's: added to its root")
