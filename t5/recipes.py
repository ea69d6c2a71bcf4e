"""What train.py runs by default on top of QUICK and PAPER: by data, model, paper, weights."""

from common import fail
from common.data.corpora import CORPORA
from common.data.sentences import SETS as SENTENCES
from t5.published import model_of
from t5.tasks import are_tasks, sets_in

SIZES = ["num_layers", "d_model", "num_heads", "d_kv", "d_ff"]

# fmt: off
TEXT = dict(tokens="pieces", vocab_size=2048, steps=1500, every=500, val=20_000, batch_size=4096,
            length=128, lr=3e-3, objective="spans")
HOUR = TEXT | dict(model="t5_mini", vocab_size=8192, steps=8000, every=1000, val=100_000,
                   batch_size=4096, words="multi30k")
SETS = {  # of texts, on top of QUICK
    "pydocs": TEXT, "english": HOUR, "brown": HOUR | dict(words=None),
    "movie-reviews": HOUR | dict(words=None), "gutenberg": HOUR | dict(words=None),
}
TUNE = dict(steps=3000, every=500, val=500, batch_size=64, length=128, target_length=64, lr=1e-3,
            tokens="pieces", vocab_size=4096)  # of tasks that are read from files
PAPER_TUNE = dict(steps=262_144, every=5000, batch_size=128, length=512, target_length=512,
                  lr=1e-3, schedule="constant")  # Sec. 3.1.3
# fmt: on
PART = 16  # examples of a part of a step with --paper


def recipe(
    model: str, data: str | None, paper: bool, model_chosen: bool = True, **given
) -> tuple[dict, dict]:
    """The data's recipe, or the paper's, and the flags that mean nothing."""
    kind = (data or "").partition(":")[0]
    if kind in {*SENTENCES} - {"sst2"}:
        fail(f"--data {data}: of sentences with labels make a table of prefix, input and target, "
             "and name it with mix:FILE")  # fmt: skip
    weights, nothing = given.get("weights"), {}
    tasks = are_tasks(data) and not (paper and data is None)
    if paper:
        own = dict(PAPER_TUNE) if tasks else {}
        if model.startswith("t5_v1_1"):
            own["dropout"] = 0.1 if tasks else 0.0  # of version 1.1: none in pre-training
    elif not tasks:
        own = dict(SETS.get(data, TEXT if kind in CORPORA else {}))
    else:
        own = {} if data in (None, "tasks") else dict(TUNE)
    if weights:
        own["model"] = model_of(weights) or model
        whose = "the weights have sizes and a vocabulary of their own"
        nothing |= dict.fromkeys([*SIZES, "tokens", "vocab_size", "words", "architecture"], whose)
    if tasks:
        why = "tasks have sources and targets as they are"
        nothing |= dict.fromkeys(["objective", "noise", "span"], why)
    else:
        why = "a text has no tasks"
        nothing |= dict.fromkeys(["mix_temperature", "mix_limit", "target_length", "beam",
                                  "length_penalty"], why)  # fmt: skip
        if given.get("objective", own.get("objective")) == "prefix":
            nothing |= dict.fromkeys(["noise", "span"], "a text that is cut in two has no gaps")
    if given.get("tokens", own.get("tokens", "chars" if not paper else "pieces")) == "chars":
        nothing.setdefault("vocab_size", "there are as many characters as the text has (add "
                           "--tokens pieces)")  # fmt: skip
    if tasks and given.get("beam", 1) == 1:
        nothing["length_penalty"] = "it compares targets: add --beam 4"
    names = [kind] if not tasks else [name.partition(":")[0] for name in sets_in(data or "tasks")]
    if not {"multi30k"} & {*names, given.get("words", own.get("words"))}:
        nothing["direction"] = "it is of multi30k"
    if tasks and names == ["sst2"]:
        nothing |= dict.fromkeys(["mix_temperature", "mix_limit"], "there is one task")
    if (rule := given.get("schedule", own.get("schedule"))) == "constant":
        nothing["warmup"] = "the rate is constant"
    assert rule is None or rule
    return own, nothing
