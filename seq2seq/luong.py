"""Attention after the step (Luong, Pham, Manning 2015, "Effective approaches to attention-based
neural machine translation", arXiv:1508.04025), the global kind.

Two deep LSTMs as Sutskever's, and the decoder looks back at the source: its new top state scores
those of the encoder, in the simplest case by a dot product, and what it finds is joined to it
before the next word is predicted. With input feeding, that joint vector is an input of the next
step, so that the decoder knows where it has looked.

Shapes: B batch, S source tokens, T target tokens, D embedding, H hidden units, L layers, V
vocabulary.

Departures: no local attention (Sec. 3.2) and no "location" score; tied embeddings (see `Words`) and
initial weights (`initialise`) of the small network.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seq2seq.layers import LSTM, Attention, Words, encode_lstm, initialise, mask_of


class State(NamedTuple):
    """What the decoder knows between two words."""

    h: Tensor  # (B, L, H)
    c: Tensor  # (B, L, H)
    fed: Tensor  # the last attentional vector (B, H)
    memory: Tensor  # the encoder's top states (B, S, H)
    keys: Tensor  # (B, S, H)
    mask: Tensor  # (B, S)


class Luong(nn.Module):
    """Fig. 2 and 4; `score` is "dot", "general" or "concat"."""

    def __init__(
        self,
        vocab_size: int,
        d_model: int = 1000,
        hidden_size: int = 1000,
        num_layers: int = 4,
        dropout: float = 0.2,
        reverse: bool = True,
        score: str = "general",
        input_feeding: bool = True,
        tied: bool = False,
        source_size: int | None = None,
        init: float | None = 0.1,
    ):
        super().__init__()
        self.reverse, self.dropout = reverse, nn.Dropout(dropout)
        self.d_model, self.input_feeding = d_model, input_feeding
        self.words = Words(vocab_size, d_model, hidden_size, source_size, tied)
        self.encoder = LSTM(d_model, hidden_size, num_layers, dropout)
        width = d_model + hidden_size * input_feeding
        self.decoder = LSTM(width, hidden_size, num_layers, dropout)
        self.attention = Attention(score, hidden_size, hidden_size)  # W_a
        self.join = nn.Linear(2 * hidden_size, hidden_size, bias=False)  # W_c
        if init is None:
            initialise(self)
        for p in self.parameters() if init else ():
            nn.init.uniform_(p, -init, init)  # Sec. 4.1

    # fmt: off
    def encode(self, source: Tensor) -> State:                           # (B, S)
        """The encoder's states, the last of which the decoder begins with."""
        memory, (h, c) = encode_lstm(
            self.encoder, self.words, source, self.reverse, self.dropout)
        keys = self.attention.keys(memory)
        return State(h, c, torch.zeros_like(memory[:, 0]), memory, keys, mask_of(source))

    def attend(self, h: Tensor, state: State) -> tuple[Tensor, Tensor]:
        """Top states (B, T, H) to attentional vectors (B, T, H) and the weights (B, T, S)."""
        context, weights = self.attention(h, state.memory, state.keys, state.mask)
        return self.join(torch.cat([context, h], 2)).tanh(), weights     # Eq. 5, 7

    def decode(self, target: Tensor, state: State) -> tuple[Tensor, Tensor, State]:
        """Tokens (B, T) to logits (B, T, V) of those that follow, the weights (B, T, S) with which
        each of these looks at the source, and the state."""
        y = self.dropout(self.words.of_target(target))                   # (B, T, D)
        if self.input_feeding:
            joint, weights, state = self.feed(y, state)                  # (B, T, H)
        else:                                                            # all steps at once
            h, last = self.decoder(y, (state.h, state.c))
            joint, weights = self.attend(self.dropout(h), state)
            state = state._replace(h=last[0], c=last[1])
        return self.words.logits(self.dropout(joint)), weights, state    # Eq. 6

    def feed(self, y: Tensor, state: State) -> tuple[Tensor, Tensor, State]:
        """Input feeding, step by step (Sec. 3.3): the last attentional vector is an input, too."""
        layer = self.decoder.layers[0]
        of_word, of_fed = layer.weight_ih_l0.tensor_split([self.d_model], 1)
        h, fed, joints, weights = (state.h, state.c), state.fed, [], []
        for net in F.linear(y, of_word, layer.bias_ih_l0).unbind(1):
            top, h = self.decoder.step(net + F.linear(fed, of_fed), h)
            fed, weight = self.attend(self.dropout(top)[:, None], state)
            fed = fed[:, 0]
            joints.append(fed)
            weights.append(weight)
        state = state._replace(h=h[0], c=h[1], fed=fed)
        return torch.stack(joints, 1), torch.cat(weights, 1), state

    def forward(self, source: Tensor, target: Tensor) -> Tensor:         # (B, S), (B, T)
        """Logits (B, T, V) of the token that follows each target token."""
        return self.decode(target, self.encode(source))[0]
    # fmt: on

    def step(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        """The newest tokens (B,) to logits (B, V) of the next ones."""
        logits, _, state = self.decode(tokens[:, None], state)
        return logits[:, 0], state


# fmt: off
SIZES = {  # Sec. 4.1, and ours for one machine
    "paper": dict(d_model=1000, hidden_size=1000, num_layers=4, dropout=0.2, tied=False),
    "small": dict(d_model=128,  hidden_size=224,  num_layers=2, dropout=0.3, tied=True,
                  init=None),
}
# fmt: on


def luong(vocab_size: int = 50_000, **settings) -> Luong:
    """Sec. 4.1: 214,000,000 weights without attention, 221,000,000 with it and input feeding."""
    return Luong(vocab_size, **SIZES["paper"] | settings)


def luong_small(vocab_size: int = 6_000, **settings) -> Luong:
    """Ours, for one machine; 2,588,672 parameters with 6,000 tokens."""
    return Luong(vocab_size, **SIZES["small"] | settings)
