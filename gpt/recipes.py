"""What train.py runs by default on top of its QUICK and PAPER: by data set, paper and weights."""

from common import fail
from common.data.sentences import SETS as SENTENCES
from gpt.published import model_of

# fmt: off
HOUR = dict(model="gpt_small", vocab_size=4096, steps=1600, every=200, lr=2e-3, batch_size=4096,
            dropout=0.2, weight_decay=1.0)
SETS = {  # on top of QUICK
    "shakespeare": HOUR | dict(tokens="chars", steps=4000, every=500),
    "tinystories": HOUR,
    "brown": HOUR | dict(steps=2500, every=250, val=100_000),
    "wikitext2": HOUR | dict(steps=4000, every=500),  # its own validation set
}
MINUTES = dict(context=64, steps=1600, every=400, lr=6e-3, dropout=0.0, weight_decay=0.1)
TUNE = dict(steps=200, every=50, batch_size=4096, lr=5e-5, weight_decay=0.1)  # from --weights

# On top of PAPER. GPT-1 (Sec. 4.1): 100 epochs of BooksCorpus, here taken as 1.2 billion tokens.
GPT1 = dict(data="text:data/bookscorpus", vocab_size=40_478, batch_size=64 * 512, lr=2.5e-4,
            steps=3_600_000, weight_decay=0.01, beta2=0.999)
GPT3 = dict(data="text:data/commoncrawl", dropout=0.0, floor=0.1, fall=0.8667)  # App. B: 260 of 300
TABLE = {  # GPT-3's Table 2.1: tokens of a step (0.5 to 3.2 million), peak rate
    "gpt3_small":  (2**19, 6.0e-4),
    "gpt3_medium": (2**19, 3.0e-4),
    "gpt3_large":  (2**19, 2.5e-4),
    "gpt3_xl":     (2**20, 2.0e-4),
    "gpt3_2b7":    (2**20, 1.6e-4),
    "gpt3_6b7":    (2**21, 1.2e-4),
    "gpt3_13b":    (2**21, 1.0e-4),
    "gpt3_175b":   (1568 * 2048, 0.6e-4),
}
# fmt: on
TRAINED, RISEN = 300e9, 375e6  # tokens that GPT-3 saw in all, and while the rate rose (App. B)
PART = 8192  # tokens of a part of a step, as of GPT-2's in PAPER
SIZES = ["num_layers", "d_model", "num_heads", "context", "window"]


def papers_own(model: str, given: dict) -> dict:
    """The recipe that the model's paper publishes; of GPT-2 none, so there PAPER is all."""
    if model == "gpt1":
        own, rising = dict(GPT1), 2000
        batch = own["batch_size"] = given.get("batch_size", own["batch_size"])
    elif model in TABLE:
        batch, rate = TABLE[model]
        batch = given.get("batch_size", batch)
        own = GPT3 | dict(batch_size=batch, lr=rate, steps=round(TRAINED / batch))
        rising = RISEN / batch
    else:
        return {}
    share = min(0.5, rising / given.get("steps", own["steps"]))
    return own | dict(accumulate=max(1, batch // PART), warmup=float(f"{share:.3g}"))


def recipe(
    model: str, data: str | None, paper: bool, model_chosen: bool = True, **given
) -> tuple[dict, dict]:
    """The data's recipe, or the paper's of this model, and the flags that mean nothing."""
    if (data or "").partition(":")[0] in SENTENCES:
        fail(f"{data} are sentences with classes: use gpt/finetune.py")
    own, nothing = papers_own(model, given) if paper else dict(SETS.get(data, {})), {}
    if data == "shakespeare" and model == "gpt_tiny" and model_chosen and not paper:
        own |= MINUTES
    if weights := given.get("weights"):
        own = own if paper else TUNE | {"model": model_of(weights)}
    model = model if model_chosen else own.get("model", model)
    if weights:
        whose = "the weights have sizes and a vocabulary of their own"
        nothing |= dict.fromkeys([*SIZES, "tokens", "vocab_size"], whose)
    elif given.get("tokens", own.get("tokens")) == "chars":
        nothing["vocab_size"] = "there are as many characters as the text has (add --tokens bpe)"
    if not model.startswith("gpt3"):
        nothing.setdefault("window", f"all layers of {model} see all tokens before")
    return own, nothing
