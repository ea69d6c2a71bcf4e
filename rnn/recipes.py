"""The four tasks, which --data tells apart: their flags and recipes, and what has no meaning."""

import torch

from common import cli, fail
from rnn import adding, corpus, sentences, series, speech
from rnn.heads import POOLINGS

MODULES = {  # what reads the data
    "text": corpus,
    "sentences": sentences,
    "speech": speech,
    "series": series,
    "adding": adding,  # a series of which one number is to be told, in the end
}
NAMES = {name: task for task, module in MODULES.items() for name in module.SETS}
OWN_FILES = ("text", "sentences", "wav", "series")  # with a PATH after a colon
DATA = [f"{name}:PATH" if name in OWN_FILES else name for name in NAMES]
OPTIMIZERS = {
    "adam": torch.optim.AdamW,  # Adam, as long as --weight-decay is 0
    "rmsprop": torch.optim.RMSprop,
    "sgd": torch.optim.SGD,
}
SIZED = ("char_rnn", "lstm_small", "lstm_medium", "lstm_large")  # language models of one size
TWO_WAYS = ("bilstm", "bigru")
SIZES = ["hidden_size", "num_layers", "embedding_size"]
OWN = {  # flags that mean something for one task alone
    "text": ["tokens", "bptt"],
    "sentences": ["units", "max_length", "text_column", "label_column"],
    "speech": ["sample_rate", "mels", "max_seconds", "freq_mask", "time_mask"],
    "series": ["target", "inputs", "window", "horizon", "segment", "time_column", "season",
               "relative"],
    "adding": ["length", "logistic"],
}  # fmt: skip
FIXED = [*SIZES, "pooling", "vocab_size", "tokens", "units", "max_length", "sample_rate", "mels",
         "max_seconds", "target", "inputs", "window", "horizon", "segment", "relative",
         "logistic"]  # fmt: skip

# fmt: off
TASKS = {  # beside QUICK, which is for text
    "sentences": dict(hidden_size=64, embedding_size=200, dropout=0.5, pooling="attention",
                      epochs=6, val=500, batch_size=32, lr=2e-3, vocab_size=10_000),
    "speech": dict(hidden_size=128, dropout=0.3, pooling="attention",
                   epochs=25, val=200, batch_size=32, lr=2e-3),
    "series": dict(hidden_size=64, dropout=0.1, epochs=10, val=1000, batch_size=64, lr=1e-3),
    "adding": dict(hidden_size=64, dropout=0.0, epochs=10, val=500, batch_size=50, lr=2e-3),
}
SETS = {  # on top
    "shakespeare": dict(hidden_size=384, num_layers=2, dropout=0.3, bptt=64,
                        epochs=10, val=10_000, batch_size=4096, lr=6e-3),
    "names": dict(units="characters", hidden_size=128, num_layers=2, embedding_size=64,
                  dropout=0.4, pooling="last", epochs=15, lr=3e-3),
    "airline": dict(dropout=0.2, epochs=60, batch_size=16, lr=3e-3, **series.WINDOWS["airline"]),
    "sunspots": dict(dropout=0.2, batch_size=32, **series.WINDOWS["sunspots"]),
    "etth1": dict(hidden_size=128, dropout=0.4, epochs=6, batch_size=32, lr=5e-4,
                  **series.WINDOWS["etth1"]),
}
PAPERS = {  # with --paper: Karpathy's char-rnn, and Zaremba et al. 2014, Sec. 4.1
    "char_rnn": dict(data="shakespeare", epochs=50, val=55_000, batch_size=2500, bptt=50, lr=2e-3,
                     optimizer="rmsprop", decay=0.97, decay_after=10, clip=5.0, dropout=0.0),
    "lstm_small":  dict(batch_size=400, bptt=20, epochs=13, decay=0.5, decay_after=4, clip=5.0,
                        dropout=0.0),
    "lstm_medium": dict(batch_size=700, bptt=35, epochs=39, decay=1 / 1.2, decay_after=6, clip=5.0,
                        dropout=0.5),
    "lstm_large":  dict(batch_size=700, bptt=35, epochs=55, decay=1 / 1.15, decay_after=14,
                        clip=10.0, dropout=0.65),
}
ZAREMBA = dict(data="text:data/ptb", tokens="bpe", vocab_size=10_000, val=5000, lr=1.0,
               optimizer="sgd")
# fmt: on
WORDS = {
    "text": "text",
    "sentences": "sentences",
    "speech": "speech",
    "series": "time series",
    "adding": "the adding problem",
}  # fmt: skip


def task_of(data: str) -> str:
    """Which of MODULES a data set is for."""
    return NAMES.get(data.partition(":")[0], "text")


def recipe(model: str, data: str | None, paper: bool, **given) -> tuple[dict, dict[str, str]]:
    """The defaults for a model and data, and the flags that mean nothing there with the reason."""
    own = {}
    if paper and model in SIZED:
        own = PAPERS[model] if model == "char_rnn" else ZAREMBA | PAPERS[model]
    elif not data and model in TWO_WAYS:
        own = {"data": "adding"}
    data = data or own.get("data") or ("adding" if paper else "pydocs")
    task = task_of(data)
    if not (paper and task == "adding" and model not in SIZED):  # that is PAPER, as it stands
        own = TASKS.get(task, {}) | SETS.get(data, {}) | own
    if model in SIZED:
        own = own | dict.fromkeys(SIZES) | {"dropout": PAPERS[model]["dropout"]}
    nothing = without_meaning(model, data, {**own, **given})
    if task != "text" or "keep_bias" in nothing:  # QUICK's is for text
        own = own | {"keep_bias": None}
    return own, nothing


def without_meaning(model: str, data: str, values: dict) -> dict[str, str]:
    """The flags that this model and data have no use for, and why."""
    nothing, task = {}, task_of(data)

    def refuse(reason: str, *flags: str) -> None:
        nothing.update(dict.fromkeys(flags, reason))

    for other, flags in OWN.items():
        if other != task:
            refuse(f"it is for {WORDS[other]}", *flags)
    if task == "text":
        refuse("a language model answers after each token", "pooling")
        if values.get("tokens", "chars") == "chars":
            refuse("there are as many characters as the text has (add --tokens bpe)", "vocab_size")
    elif task != "sentences":
        refuse("its inputs are numbers", "embedding_size", "vocab_size")
    if task == "sentences" and not data.startswith("sentences:"):
        refuse("it is for tables of one's own (sentences:PATH)", "text_column", "label_column")
    if model in SIZED:
        refuse(f"{model} has sizes of its own", *SIZES)
    if model in ("elman", "lstm_1997"):
        refuse(f"{model} has no gate that keeps", "keep_bias")
    if model in SIZED[1:]:
        refuse("all weights of the paper's networks are drawn alike", "keep_bias")
    if not values.get("decay"):
        refuse("without --decay the rate falls along a cosine", "decay_after")
    if values.get("optimizer", "adam") != "adam":
        refuse("it is for Adam (AdamW)", "weight_decay")
    refuse("the recurrence is one call of torch's kernel, which is compiled already", "compile")
    return nothing


def add_flags(parser: cli.Parser) -> None:
    """All flags beside the shared ones."""
    add, count = parser.add_argument, dict(type=cli.integer(1), metavar="N")
    add("--hidden-size", **count, none="the model's", help="units of a layer, in one direction")
    add("--num-layers", **count, none="the model's", default=1, help="one above the other")
    text = "numbers that stand for a token; 0 is one-hot"
    add("--embedding-size", type=cli.integer(0), metavar="N", none="the model's", help=text)
    add("--dropout", type=cli.share, metavar="P", default=0.0, help="before, between, after layers")
    text = "how the steps' outputs become one"
    add("--pooling", choices=POOLINGS, default="last", help=text)
    text = "first bias of the gate that keeps what was (LSTM: forget gate, GRU: z)"
    kind = cli.number(lambda value: abs(value) < 100, "a number from -100 to 100")
    add("--keep-bias", type=kind, metavar="B", none="the model's", help=text)
    add("--optimizer", choices=list(OPTIMIZERS), default="adam", help="how the weights move")
    text = "what the weights shrink by in a step, times the rate (AdamW)"
    add("--weight-decay", type=cli.not_negative, metavar="L", default=0.0, help=text)
    text = "times what the rate is taken after each epoch"
    add("--decay", type=cli.positive, metavar="F", none="a cosine", help=text)
    add("--decay-after", **count, default=1, help="epochs before --decay begins")
    text = "steps that a step of training reads on, and gradients go back"
    add("--bptt", **count, default=100, help=text)
    kind = dict(group="data", default="chars")
    add("--tokens", choices=["chars", "bpe"], **kind, help="what a text is cut into")
    text = "most words, or pieces of words"
    kind = dict(type=cli.integer(3), metavar="N", group="data", default=1000)
    add("--vocab-size", **kind, help=text)
    for module in MODULES.values():
        if module is not corpus:
            module.add_flags(parser)


def check(args: cli.Flags) -> None:
    """Ends in one line if flags don't go together."""
    task, known = task_of(args.data), args.stored.get("dataset", {}).get("task")
    if known and known != task:
        fail(f"the checkpoint's network is for {WORDS[known]}: {args.data} is of {WORDS[task]}")
    if task == "text" and args.model in TWO_WAYS:
        fail(f"{args.model} reads both ways, so it would see what a language model is to tell: for "
             f"{args.data} take {args.model[2:]}")  # fmt: skip
    if task != "text" and args.model in SIZED:
        fail(f"{args.model} is a language model: for {args.data} take lstm or bilstm")
