"""Sequence to sequence, and the first attention: three networks that translate.

Sutskever, Vinyals, Le 2014 (sutskever.py): an LSTM reads the sentence into a vector, another one
writes the translation from it. Bahdanau, Cho, Bengio 2015 (bahdanau.py): the decoder looks back at
all words of the source before each word that it writes. Luong, Pham, Manning 2015 (luong.py): it
looks after its step, with simpler scores. What they share stands in layers.py.

    model(source, target)                                 # (B, S), (B, T) to logits (B, T, V)
    state = model.encode(source)                          # the batch comes first
    logits, state = model.step(tokens, state)             # (B,) to (B, V)
    logits, weights, state = model.decode(target, state)  # attention (B, T, S), or None
"""

from seq2seq import bahdanau, luong, sutskever
from seq2seq.layers import END, PAD, SCORES, START, UNKNOWN

__all__ = ["END", "MODELS", "PAD", "SCORES", "SIZES", "START", "UNKNOWN"]

MODELS = {
    "sutskever": sutskever.sutskever,
    "bahdanau": bahdanau.bahdanau,
    "luong": luong.luong,
    "sutskever_small": sutskever.sutskever_small,
    "bahdanau_small": bahdanau.bahdanau_small,
    "luong_small": luong.luong_small,
}
SIZES = {  # of each of them
    f"{family.__name__.rpartition('.')[2]}{'_small' if size == 'small' else ''}": values
    for family in (sutskever, bahdanau, luong)
    for size, values in family.SIZES.items()
}
