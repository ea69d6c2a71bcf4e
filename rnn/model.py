"""The recurrent networks: Elman's (1990), the LSTM (Hochreiter and Schmidhuber 1997, Gers et al.
2000), both ways at once (Schuster and Paliwal 1997), the GRU (Cho et al. 2014, arXiv:1406.1078).

A network with a loop reads a sequence step by step: what it is after a step depends on the step's
input and on what it was before. This page lists them: the cells stand in elman.py, lstm.py and
gru.py, what they share in stack.py, and what is built on them in heads.py.

    lstm("text", vocab_size=65)                          # a language model
    bilstm("classes", num_classes=2, vocab_size=10_000)  # a classifier of sentences
    gru("classes", num_classes=10, num_features=40)      # of speech
    lstm("series", num_features=7, horizon=24)           # a forecaster
"""

from collections.abc import Callable
from functools import partial

from torch import nn

from rnn.elman import Elman
from rnn.gru import GRU
from rnn.heads import POOLINGS, Classifier, Forecaster, LanguageModel
from rnn.lstm import LSTM

__all__ = ["GRU", "LSTM", "MODELS", "POOLINGS", "TASKS", "Elman"]

TASKS = {"text": LanguageModel, "classes": Classifier, "series": Forecaster}
CELL = ("bidirectional", "fused", "forget_gate", "keep_bias", "reset_after")  # arguments of cells


def assemble(
    layer: Callable,
    task: str,
    hidden_size: int = 256,
    num_layers: int = 1,
    dropout: float = 0.0,
    **settings,
) -> nn.Module:
    """The task's network on `num_layers` layers; the other settings are theirs, or the task's."""
    own = {name: settings.pop(name) for name in CELL if name in settings}
    make = partial(layer, hidden_size=hidden_size, num_layers=num_layers, dropout=dropout, **own)
    return TASKS[task](make, dropout=dropout, **settings)


def elman(task: str = "text", **settings) -> nn.Module:
    """The simple recurrent network of 1990."""
    return assemble(Elman, task, **settings)


def lstm(task: str = "text", **settings) -> nn.Module:
    """Long short-term memory as everyone has it, with the forget gate of 2000."""
    return assemble(LSTM, task, **settings)


def lstm_1997(task: str = "text", **settings) -> nn.Module:
    """Long short-term memory as it was published, without a forget gate."""
    return assemble(LSTM, task, forget_gate=False, **settings)


def gru(task: str = "text", **settings) -> nn.Module:
    """The gated recurrent unit as torch has it."""
    return assemble(GRU, task, **settings)


def gru_2014(task: str = "text", **settings) -> nn.Module:
    """The gated recurrent unit as it was published, which resets before the product."""
    return assemble(GRU, task, reset_after=False, **settings)


def bilstm(task: str = "classes", **settings) -> nn.Module:
    """An LSTM that reads both ways."""
    return assemble(LSTM, task, bidirectional=True, **settings)


def bigru(task: str = "classes", **settings) -> nn.Module:
    """A GRU that reads both ways."""
    return assemble(GRU, task, bidirectional=True, **settings)


def char_rnn(task: str = "text", **settings) -> nn.Module:
    """Karpathy's char-rnn (2015): characters one-hot; 240,321 parameters with 65 of them."""
    sizes = dict(hidden_size=128, num_layers=2, embedding_size=0) | settings
    return assemble(LSTM, task, **sizes)


def zaremba(size: int, drop: float, init: float, task: str = "text", **settings) -> nn.Module:
    """Zaremba, Sutskever, Vinyals (2014), arXiv:1409.2329, Sec. 4.1: 2 layers, 10,000 words."""
    sizes = dict(hidden_size=size, embedding_size=size, num_layers=2, dropout=drop)
    if task == "text":
        sizes |= dict(vocab_size=10_000, init=init)
    return assemble(LSTM, task, **sizes | settings)


def lstm_small(task: str = "text", **settings) -> nn.Module:
    """Without dropout; 4,653,200 parameters."""
    return zaremba(200, 0.0, 0.1, task, **settings)


def lstm_medium(task: str = "text", **settings) -> nn.Module:
    """19,780,400 parameters."""
    return zaremba(650, 0.5, 0.05, task, **settings)


def lstm_large(task: str = "text", **settings) -> nn.Module:
    """66,034,000 parameters."""
    return zaremba(1500, 0.65, 0.04, task, **settings)


MODELS = {
    "elman": elman,
    "lstm": lstm,
    "lstm_1997": lstm_1997,
    "gru": gru,
    "gru_2014": gru_2014,
    "bilstm": bilstm,
    "bigru": bigru,
    "char_rnn": char_rnn,
    "lstm_small": lstm_small,
    "lstm_medium": lstm_medium,
    "lstm_large": lstm_large,
}
