"""What train.py runs by default on top of QUICK and PAPER: by data, model, paper, weights."""

from common import fail
from common.data.sentences import SETS as SENTENCES
from t5.published import model_of
from t5.tasks import SETS, are_tasks, sets_in

SIZES = {"num_layers": "blocks of each stack", "num_heads": "heads of attention",
         "d_model": "width", "d_kv": "width of a head",
         "d_ff": "width of the feed-forward layers"}  # fmt: skip

# fmt: off
TEXT = dict(objective="spans", tokens="pieces", vocab_size=2048, steps=1500, every=500, val=20_000,
            batch_size=4096, length=128, lr=3e-3)
HOUR = TEXT | dict(model="t5_mini", vocab_size=8192, steps=5000, every=1000, val=100_000)
TEXTS = {"english": HOUR | dict(words="multi30k"), "brown": HOUR, "movie-reviews": HOUR,
         "gutenberg": HOUR, "tinystories": HOUR, "wikitext2": HOUR | dict(val=1)}  # on top of QUICK
TUNE = dict(tokens="pieces", vocab_size=4096, steps=6000, every=1000, val=500, batch_size=64,
            length=128, target_length=64, lr=1e-3, dropout=0.1)  # of tasks in files
PAPER_TUNE = dict(objective=None, steps=262_144, every=5000, val=500, batch_size=128, lr=1e-3,
                  schedule="constant", patience=1000)  # Sec. 3.1.3, on top of PAPER: the best of
# the checkpoints, by validation, is tested; so many epochs there are not, so none ends the run
# fmt: on
ALONE = ("sst2", "cola", "multi30k")  # sets that are one task


def own_defaults(model: str, data: str | None, paper: bool, tasks: bool) -> dict:
    """The recipe of the data on top of QUICK, or of --paper on top of PAPER."""
    if paper:
        dropout = {} if tasks or not model.startswith("t5_v1_1") else {"dropout": 0.0}
        return (PAPER_TUNE if tasks else {}) | dropout  # version 1.1 has none in pre-training
    if not tasks:
        return dict(TEXTS.get(data, TEXT))
    return {} if data in (None, "tasks") else dict(TUNE)


def meaningless(tasks: bool, names: list[str], value: dict) -> dict[str, str]:
    """The flags that mean nothing, where the data is `tasks` of these sets, or a text, and other
    flags have these values."""
    nothing = {}
    if tasks:
        why = "tasks have sources and targets as they are"
        nothing |= dict.fromkeys(["objective", "noise", "span"], why)
    else:
        why = "a text has no tasks"
        own = ["mix_temperature", "mix_limit", "target_length", "beam", "length_penalty"]
        nothing |= dict.fromkeys(own, why)
    if value["objective"] == "prefix":
        nothing |= dict.fromkeys(["noise", "span"], "a text that is cut in two has no gaps")
    if tasks and len(names) == 1 and names[0] in ALONE:
        nothing |= dict.fromkeys(["mix_temperature", "mix_limit"], "there is one task")
    if value["beam"] == 1:
        nothing.setdefault("length_penalty", "it compares targets: add --beam 4")
    if value["weights"]:
        whose = "the weights have sizes and a vocabulary of their own"
        nothing |= dict.fromkeys([*SIZES, "tokens", "vocab_size", "words", "architecture"], whose)
    elif value["tokens"] == "chars":
        every = "there are as many characters as the text has (add --tokens pieces)"
        nothing |= {"vocab_size": every}
    if "multi30k" not in [*names, *sets_in(value["words"] or "")]:
        nothing["direction"] = "it is of multi30k"
    if value["schedule"] == "constant":
        nothing["warmup"] = "the rate is constant"
    if value["optimizer"] == "adafactor":
        nothing["bias_rate"] = "Adafactor's steps grow with the weights (add --optimizer adamw)"
    return nothing


def recipe(
    model: str, data: str | None, paper: bool, model_chosen: bool = True, **given
) -> tuple[dict, dict]:
    """The data's recipe, or the paper's, and the flags that mean nothing."""
    kind = (data or "").partition(":")[0]
    if kind in SENTENCES and kind not in SETS:
        fail(f"--data {data}: of sentences with labels make a table of prefix, input and target, "
             "and name it with mix:FILE")  # fmt: skip
    tasks = are_tasks(data) and not (paper and data is None)
    own = own_defaults(model, data, paper, tasks)
    if (weights := given.get("weights")) and not model_chosen:
        own["model"] = model_of(weights) or model
    if given.get("val") == 0:
        own["patience"] = None
    value = dict.fromkeys(["objective", "words", "weights"]) | dict(beam=1, schedule="line")
    value |= dict(tokens="pieces" if paper or not tasks else "chars",
                  optimizer="adafactor" if paper else "adamw")  # fmt: skip
    value |= {name: x for name, x in (own | given).items() if name in value}
    names = sets_in(data or "tasks") if tasks else [kind]
    return own, meaningless(tasks, [name.partition(":")[0] for name in names], value)
