"""Sequence to sequence (Sutskever, Vinyals, Le 2014, "Sequence to sequence learning with neural
networks", arXiv:1409.3215).

A deep LSTM reads a sentence into its state, a vector of fixed size; from that state another one
writes the translation word by word. Read backwards, the first words of both sentences lie
near each other, and gradients find the way between them (Sec. 3.3).

Shapes: B batch, S source tokens, T target tokens, D embedding, H hidden units, L layers, V
vocabulary.

Departures: dropout, tied embeddings (see `Words`) and initial weights (`initialise`) of the small
network; the paper spreads its layers over eight GPUs.
"""

from typing import NamedTuple

from torch import Tensor, nn

from seq2seq.layers import LSTM, Words, encode_lstm, initialise


class State(NamedTuple):
    """What the decoder knows between two words."""

    h: Tensor  # (B, L, H)
    c: Tensor  # (B, L, H)


class Sutskever(nn.Module):
    """Encoder and decoder of `num_layers` LSTMs each (Fig. 1); `reverse` reads from the end."""

    def __init__(
        self,
        vocab_size: int,
        d_model: int = 1000,
        hidden_size: int = 1000,
        num_layers: int = 4,
        dropout: float = 0.0,
        reverse: bool = True,
        tied: bool = False,
        source_size: int | None = None,
        init: float | None = 0.08,
    ):
        super().__init__()
        self.reverse, self.dropout = reverse, nn.Dropout(dropout)
        self.words = Words(vocab_size, d_model, hidden_size, source_size, tied)
        self.encoder = LSTM(d_model, hidden_size, num_layers, dropout)
        self.decoder = LSTM(d_model, hidden_size, num_layers, dropout)
        if init is None:
            initialise(self)
        for p in self.parameters() if init else ():
            nn.init.uniform_(p, -init, init)  # Sec. 3.4

    # fmt: off
    def encode(self, source: Tensor) -> State:                           # (B, S)
        """The sentence as the state that the decoder begins with: all there is of it."""
        _, state = encode_lstm(self.encoder, self.words, source, self.reverse, self.dropout)
        return State(*state)

    def decode(self, target: Tensor, state: State) -> tuple[Tensor, None, State]:
        """Tokens (B, T) to logits (B, T, V) of those that follow, no weights, and the state."""
        x = self.dropout(self.words.of_target(target))                   # (B, T, D)
        x, state = self.decoder(x, state)                                # (B, T, H)
        return self.words.logits(self.dropout(x)), None, State(*state)   # Eq. 1

    def forward(self, source: Tensor, target: Tensor) -> Tensor:         # (B, S), (B, T)
        """Logits (B, T, V) of the token that follows each target token."""
        return self.decode(target, self.encode(source))[0]
    # fmt: on

    def step(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        """The newest tokens (B,) to logits (B, V) of the next ones."""
        logits, _, state = self.decode(tokens[:, None], state)
        return logits[:, 0], state


# fmt: off
SIZES = {  # Sec. 3.4, and ours for one machine
    "paper": dict(d_model=1000, hidden_size=1000, num_layers=4, dropout=0.0, tied=False),
    "small": dict(d_model=128,  hidden_size=256,  num_layers=2, dropout=0.3, tied=True,
                  init=None),
}
# fmt: on


def sutskever(
    vocab_size: int | None = None, source_size: int | None = None, **settings
) -> Sutskever:
    """Sec. 3.4, with 160,000 source words: 384,000,000 weights, of which 64 million recurrent.

    Without sizes the target has 80,000 words; with `vocab_size` alone both sides have so many.
    """
    source_size = source_size or vocab_size or 160_000
    return Sutskever(vocab_size or 80_000, source_size=source_size, **SIZES["paper"] | settings)


def sutskever_small(vocab_size: int = 6_000, **settings) -> Sutskever:
    """Ours, for one machine; 2,643,968 parameters with 6,000 tokens."""
    return Sutskever(vocab_size, **SIZES["small"] | settings)
