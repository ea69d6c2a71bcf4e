"""What train.py and finetune.py run by default on top of their QUICK and PAPER: by model, data,
paper and weights."""

import argparse
from pathlib import Path

from bert import tasks
from bert.published import model_of, newest_run
from common import fail
from common.data.corpora import CORPORA
from common.data.sentences import SETS as SENTENCES
from common.folder import read_flags

SIZES = ["num_layers", "d_model", "num_heads", "d_ff", "context", "num_groups"]
LOWER = ("bert", "albert", "electra")  # whose vocabularies know no capitals, if they are uncased
PAIRS = ("bert", "albert")  # that learn from pairs of sentences

# fmt: off
HOUR = dict(model="bert_mini", vocab_size=8192, steps=6000, every=1000, val=100_000, lr=1e-3,
            batch_size=4096, length=None, dropout=None, weight_decay=0.01)
SETS = {  # on top of QUICK
    "english": HOUR, "brown": HOUR, "movie-reviews": HOUR, "wikitext2": HOUR | dict(val=1),
}
TUNE = dict(steps=500, every=100, batch_size=4096, length=None, dropout=None,
            lr=5e-5)  # from --weights

# On top of PAPER, which is BERT's (A.2). Steps, examples of a step, their length, peak rate, steps
# in which it rises, beta2, clip (None: none).
PAPERS = {
    "bert":           (1_000_000,  256, 512, 1e-4,    10_000, 0.999, 1.0),   # A.2; clip as its code
    "roberta":        (  500_000, 8192, 512, 6e-4,    24_000, 0.98,  None),  # Table 9, base
    "roberta_large":  (  500_000, 8192, 512, 4e-4,    30_000, 0.98,  None),  # Table 9, large
    "albert":         (  125_000, 4096, 512, 1.76e-3,  3_125, 0.999, 1.0),   # Sec. 4.1; its code
    "electra":        (  766_000,  256, 512, 2e-4,    10_000, 0.999, 1.0),   # Table 6, base
    "electra_small":  (1_000_000,  128, 128, 5e-4,    10_000, 0.999, 1.0),   # Table 6, small
    "electra_large":  (1_750_000, 2048, 512, 2e-4,    10_000, 0.999, 1.0),   # Table 6, large
    "xlnet":          (  500_000, 8192, 512, 4e-4,    40_000, 0.999, 1.0),   # Table 8, large
}
VOCABULARY = {"bert": 30_522, "roberta": 50_265, "albert": 30_000, "electra": 30_522,
              "xlnet": 32_000}
PART = 16_384  # tokens of a part of a step, with --paper

# finetune.py --paper: epochs, examples of a step, peak rate, share in which it rises, weight decay.
# Steps are those of GLUE's SST-2, of 67,349 phrases; that of `sst2` is of 6,920 sentences.
TUNED = {
    "bert":          (3,  32, 2e-5, 0.1,  0.01),  # A.3: 2 to 4; 16 or 32; 2e-5, 3e-5 or 5e-5
    "roberta":       (10, 32, 1e-5, 0.06, 0.1),   # Table 10: 16 or 32; 1e-5, 2e-5 or 3e-5
    "albert":        (10, 32, 1e-5, 0.06, 0.01),  # Table 14, SST-2: 20,935 steps, 1,256 of warm-up
    "electra":       (3,  32, 1e-4, 0.1,  0.0),   # Table 7, base
    "electra_small": (3,  32, 3e-4, 0.1,  0.0),   # Table 7, small
    "electra_large": (3,  32, 5e-5, 0.1,  0.0),   # Table 7, large
    "xlnet":         (3,  32, 2e-5, 0.1,  0.01),  # Table 9
}
# fmt: on
SMALL = ("tiny", "mini")


def family_of(model: str) -> str:
    """bert, roberta, albert, electra or xlnet."""
    return model.partition("_")[0]


def papers_own(model: str, given: dict) -> dict:
    """The recipe that the model's paper publishes."""
    family = family_of(model)
    steps, rows, length, rate, rising, beta2, clip = PAPERS.get(model, PAPERS[family])
    length = given.get("length") or (min(length, 128) if model.endswith(SMALL) else length)
    batch = given.get("batch_size", rows * length)
    share = min(0.5, rising / given.get("steps", steps))
    own = dict(steps=steps, length=length, batch_size=batch, lr=rate, warmup=float(f"{share:.3g}"))
    own |= dict(beta2=beta2, clip=clip, vocab_size=VOCABULARY[family])
    rows = max(1, batch // length)
    parts = max(1, batch // PART)
    own["accumulate"] = max(n for n in range(1, parts + 1) if rows % n == 0)
    if family == "albert":
        own["optimizer"] = "lamb"
    if family == "bert":
        own["copies"] = 10  # masks that its code makes of a text
    return own


def of_model(family: str) -> dict[str, str]:
    """The flags that mean nothing to a family."""
    nothing = {}
    if family != "albert":
        nothing["num_groups"] = "it says how many layers of ALBERT have weights of their own"
    if family != "electra":
        nothing["everywhere"] = "it is of ELECTRA's discriminator"
    if family not in PAIRS:
        nothing["pairs"] = f"{family} learns from single texts"
    return nothing


def recipe(
    model: str, data: str | None, paper: bool, model_chosen: bool = True, **given
) -> tuple[dict, dict]:
    """The data's recipe, or the paper's of this model, and the flags that mean nothing."""
    if (kind := (data or "").partition(":")[0]) in {*SENTENCES, *tasks.SETS}:
        fail(f"{kind} are sentences with answers: use bert/finetune.py")
    weights = given.get("weights")
    if weights and not model_chosen:
        model = model_of(weights) or model
    own = papers_own(model, given) if paper else dict(SETS.get(data, {}))
    if weights:
        own = (own if paper else own | TUNE) | {"model": model}
    model = model if model_chosen else own.get("model", model)
    family = family_of(model)
    own["lowercase"] = family in LOWER
    nothing = of_model(family)
    if weights:
        whose = "the weights have sizes and a vocabulary of their own"
        nothing |= dict.fromkeys([*SIZES, "vocab_size", "lowercase", "pairs"], whose)
    return own, nothing


def check(args: argparse.Namespace) -> argparse.Namespace:
    """The flags of train.py; those that don't fit together end in one line."""
    if args.weights and not args.stored:
        path = Path(args.weights).expanduser()
        flags = read_flags(path.parent if path.is_file() else path)
        other = flags and (flags.get("milestone"), flags.get("script")) != ("bert", "train.py")
        if args.paper and (other or not path.exists()):
            fail("--paper trains from the beginning, or goes on from a run of train.py: leave "
                 "--weights out, or name a run")  # fmt: skip
        if "pairs" in args.typed:
            fail("--pairs and --no-pairs have no meaning beside --weights: the network has a head "
                 "for pairs, or none")  # fmt: skip
    if args.optimizer == "lamb" and args.fsdp:
        fail("--optimizer lamb needs whole matrices: leave --fsdp out")
    return args


def rows_of(args: argparse.Namespace, context: int) -> tuple[int, int]:
    """The tokens of an example and the examples of a step; ends in one line where what was typed
    doesn't fit."""
    if "length" in args.typed and args.length > context:
        fail(f"--length {args.length}: the network's context is {context}, take no more")
    length = min(args.length or context, context)
    if "batch_size" in args.typed and args.batch_size < length:
        fail(f"--batch-size {args.batch_size} counts tokens, and an example has {length}: take a "
             "multiple of that")  # fmt: skip
    return length, max(1, args.batch_size // length)


def tuning(
    model: str, data: str | None, paper: bool, model_chosen: bool = True, **given
) -> tuple[dict, dict]:
    """The same for finetune.py."""
    kind = (data or "").partition(":")[0]
    if kind in CORPORA:
        fail(f"{data} is a text without answers: use bert/train.py, or --weights of a run with it")
    weights = given.get("weights")
    own, nothing = {}, {}
    if weights or not given.get("from_scratch"):
        weights = weights or newest_run()
        known = model_of(str(weights)) if weights else None
        model = (None if model_chosen else known) or model
        own["model"] = model
        whose = "the weights have sizes and a vocabulary of their own"
        nothing |= dict.fromkeys([*SIZES, "vocab_size", "lowercase"], whose)
    elif family_of(model) != "albert":
        nothing["num_groups"] = of_model(family_of(model))["num_groups"]
    family = family_of(model)
    if paper or not model.endswith(SMALL):
        epochs, rows, rate, rising, decay = TUNED.get(model, TUNED[family])
        own |= dict(epochs=epochs, batch_size=rows, lr=rate, warmup=rising, weight_decay=decay)
    own["lowercase"] = family in LOWER
    if kind not in ("sentences", "pairs"):
        why = f"{data or 'docstrings'} has columns that are known"
        nothing |= dict.fromkeys(["text_column", "label_column"], why)
    if kind != "pairs":
        nothing["second_column"] = "it is of pairs:PATH"
        nothing["regression"] = "it says what the labels of pairs:PATH are"
    return own, nothing
