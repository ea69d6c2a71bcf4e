"""RNNsearch, the first attention (Bahdanau, Cho, Bengio 2015, "Neural machine translation by
jointly learning to align and translate", arXiv:1409.0473).

A sentence needn't be squeezed into one vector. A GRU that reads both ways leaves an annotation at
each word; before each word that it writes the decoder scores them all against its state, and
takes their mean, weighted by a softmax of the scores. Which word belongs to which is learned
from the translations alone.

Shapes: B batch, S source tokens, T target tokens, D embedding, H hidden units, V vocabulary.

Departures: the encoder's GRUs reset after the product with U, as torch's kernel does, the decoder's
before it, as in the paper; dropout, tied embeddings (see `Words`) and initial weights
(`initialise`) of the small network.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from seq2seq.layers import RECURRENT, Attention, BothWays, Words, initialise, lengths_of, mask_of


class State(NamedTuple):
    """What the decoder knows between two words."""

    s: Tensor  # (B, H)
    memory: Tensor  # the annotations (B, S, 2 H)
    keys: Tensor  # U_a times them (B, S, A)
    mask: Tensor  # (B, S)


class GatedUnit(nn.Module):
    """The decoder's hidden unit (A.1.1, A.2.2); the rows of `inputs` and `context`: z, r, new."""

    def __init__(self, input_size: int, context_size: int, hidden_size: int):
        super().__init__()
        self.inputs = nn.Linear(input_size, 3 * hidden_size)  # W_z, W_r, W and the biases
        self.context = nn.Linear(context_size, 3 * hidden_size, bias=False)  # C_z, C_r, C
        self.gates = nn.Linear(hidden_size, 2 * hidden_size, bias=False)  # U_z, U_r
        self.new = nn.Linear(hidden_size, hidden_size, bias=False)  # U

    # fmt: off
    def forward(self, x: Tensor, context: Tensor, s: Tensor) -> Tensor:
        """`inputs` of the last word (B, 3 H), context (B, 2 H) and state (B, H) to the state."""
        x_gates, x_new = (x + self.context(context)).tensor_split([2 * s.shape[1]], 1)
        z, r = (x_gates + self.gates(s)).sigmoid().chunk(2, 1)
        new = torch.tanh(x_new + self.new(r * s))
        return (1 - z) * s + z * new
    # fmt: on


class Bahdanau(nn.Module):
    """Fig. 1: both ways through the source, and a decoder that looks at it before each word.

    The paper's m is `d_model`, n and n' are `hidden_size`, l is `maxout_size`: of each two of 2 l
    units the larger goes on to the last layer. `init` is the
    standard deviation of all weights but the recurrent ones, which are orthogonal; None is
    `initialise`.
    """

    def __init__(
        self,
        vocab_size: int,
        d_model: int = 620,
        hidden_size: int = 1000,
        maxout_size: int = 500,
        dropout: float = 0.0,
        tied: bool = False,
        source_size: int | None = None,
        init: float | None = 0.01,
    ):
        super().__init__()
        n, self.dropout = hidden_size, nn.Dropout(dropout)
        self.words = Words(vocab_size, d_model, maxout_size, source_size, tied)  # E, W_o
        self.encoder = BothWays(d_model, n)
        self.begin = nn.Linear(n, n)  # W_s
        self.attention = Attention("concat", n, 2 * n)  # W_a, U_a, v_a
        self.unit = GatedUnit(d_model, 2 * n, n)
        self.from_state = nn.Linear(n, 2 * maxout_size)  # U_o
        self.from_word = nn.Linear(d_model, 2 * maxout_size, bias=False)  # V_o
        self.from_context = nn.Linear(2 * n, 2 * maxout_size, bias=False)  # C_o
        initialise(self)
        for name, p in self.named_parameters() if init else ():  # B.1
            if name.startswith("attention"):  # v_a begins at zero
                nn.init.normal_(p, std=0.0 if ".v." in name else 0.001)
            elif p.dim() > 1 and not any(part in name for part in RECURRENT):
                nn.init.normal_(p, std=init)

    # fmt: off
    def encode(self, source: Tensor) -> State:                           # (B, S)
        """The annotations of the source, and the state that the decoder begins with."""
        x = self.dropout(self.words.of_source(source))                   # (B, S, D)
        memory = self.encoder(x, lengths_of(source))                     # (B, S, 2 H)
        first = memory[:, 0].chunk(2, 1)[1]                              # of the way back
        s, keys = self.begin(first).tanh(), self.attention.keys(memory)
        return State(s, memory, keys, mask_of(source))

    def decode(self, target: Tensor, state: State) -> tuple[Tensor, Tensor, State]:
        """Tokens (B, T) to logits (B, T, V) of those that follow, the weights (B, T, S) with which
        each of these looks at the source, and the state.

        What needs no state is computed for all steps at once: inputs before, outputs after.
        """
        y = self.dropout(self.words.of_target(target))                   # (B, T, D)
        s, memory, keys, mask = state
        states, contexts, weights = [], [], []
        for x in self.unit.inputs(y).unbind(1):
            context, weight = self.attention(s[:, None], memory, keys, mask)  # by s_{i-1}
            states.append(s)
            contexts.append(context)
            weights.append(weight)
            s = self.unit(x, context[:, 0], s)
        states, contexts = torch.stack(states, 1), torch.cat(contexts, 1)
        out = self.from_state(states) + self.from_word(y) + self.from_context(contexts)
        out = out.unflatten(2, (-1, 2)).amax(3)                          # maxout: (B, T, l)
        logits = self.words.logits(self.dropout(out))                    # (B, T, V)
        return logits, torch.cat(weights, 1), state._replace(s=s)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:         # (B, S), (B, T)
        """Logits (B, T, V) of the token that follows each target token."""
        return self.decode(target, self.encode(source))[0]
    # fmt: on

    def step(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        """The newest tokens (B,) to logits (B, V) of the next ones."""
        logits, _, state = self.decode(tokens[:, None], state)
        return logits[:, 0], state


# fmt: off
SIZES = {  # A.2.3, and ours for one machine
    "paper": dict(d_model=620, hidden_size=1000, maxout_size=500, dropout=0.0, tied=False),
    "small": dict(d_model=128, hidden_size=256,  maxout_size=128, dropout=0.3, tied=True,
                  init=None),
}
# fmt: on


def bahdanau(vocab_size: int = 30_000, **settings) -> Bahdanau:
    """RNNsearch (A.2.3); 80,401,000 weights with 30,000 words on each side, and the biases."""
    return Bahdanau(vocab_size, **SIZES["paper"] | settings)


def bahdanau_small(vocab_size: int = 6_000, **settings) -> Bahdanau:
    """Ours, for one machine; 2,542,080 parameters with 6,000 tokens."""
    return Bahdanau(vocab_size, **SIZES["small"] | settings)
