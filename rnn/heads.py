"""What is built on recurrent layers: a language model, a classifier, a forecaster.

Shapes: B batch, T time steps, F features of a step, V vocabulary, K classes, C columns to forecast.

All are called alike, `outputs, state = model(inputs, lengths, state)`, so that one loop trains
them. `make(input_size)` makes the recurrent layers.
"""

import math
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rnn.stack import Recurrent, State

POOLINGS = ["mean", "last", "attention"]


class Symbols(nn.Module):
    """Tokens (B, T) as vectors: of a table (B, T, `size`), or with `size` 0 one-hot (B, T, V)."""

    def __init__(self, vocab_size: int, size: int):
        super().__init__()
        self.vocab_size, self.size = vocab_size, size or vocab_size
        if size:
            self.weight = nn.Parameter(torch.randn(vocab_size, size) * size**-0.5)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, T) to (B, T, size)."""
        if self.size == self.vocab_size and not hasattr(self, "weight"):
            return F.one_hot(tokens, self.vocab_size).to(torch.get_default_dtype())
        return F.embedding(tokens, self.weight)


class LanguageModel(nn.Module):
    """Tells the next token of each; dropout before, between and after the layers (Zaremba 2014).

    `init` draws all weights from (-init, init), as Zaremba's and the char-rnn's. Raises ValueError
    for layers that read both ways.
    """

    def __init__(
        self,
        make: Callable[[int], Recurrent],
        vocab_size: int = 65,
        embedding_size: int = 64,
        dropout: float = 0.0,
        init: float | None = None,
    ):
        super().__init__()
        self.embedding = Symbols(vocab_size, embedding_size)
        self.dropout = nn.Dropout(dropout)
        self.rnn = make(self.embedding.size)
        if self.rnn.directions == 2:
            raise ValueError("a language model that reads both ways would see what it is to tell")
        self.output = nn.Linear(self.rnn.hidden_size, vocab_size)
        for p in self.embedding.parameters():  # as large as one-hot: it learns much sooner
            nn.init.normal_(p)
        for p in self.parameters() if init else ():
            nn.init.uniform_(p, -init, init)

    def forward(
        self, tokens: Tensor, lengths: Tensor | None = None, state: State | None = None
    ) -> tuple[Tensor, State | None]:
        """Logits (B, T, V) of what follows each of the tokens (B, T), and the state after them."""
        x = self.dropout(self.embedding(tokens))  # (B, T, embedding_size)
        x, state = self.rnn(x, state, lengths)  # (B, T, hidden_size)
        return self.output(self.dropout(x)), state  # (B, T, V)

    @torch.inference_mode()
    def generate(
        self,
        prompt: Tensor,
        length: int,
        temperature: float = 1.0,
        never: tuple[int, ...] = (),
        generator: torch.Generator | None = None,
    ) -> Iterator[int]:
        """Draws `length` tokens after the prompt (T,), one by one; temperature 0 is the likeliest.

        The tokens of `never` are not drawn.
        """
        logits, state = self(prompt[None])
        for _ in range(length):
            last = logits[0, -1].float().cpu()
            last[list(never)] = -math.inf
            if temperature:  # float32 holds no quotient of a smaller one
                odds = (last / max(temperature, 1e-30)).softmax(0)
                token = torch.multinomial(odds, 1, generator=generator)
            else:
                token = last.argmax(0, keepdim=True)
            yield int(token)
            logits, state = self(token[None].to(prompt.device), None, state)


class Reader(nn.Module):
    """Reads a sequence, pools what the layers say at each step, and answers with one layer.

    Inputs are tokens, with a `vocab_size`, or vectors of `num_features`. Pooling: the "mean" over
    the steps; the "last" of each direction, where it has read all; or by "attention", whose weights
    `weights` (B, T) keeps: softmax over the steps of v · tanh(W h_t) (Yang et al. 2016, Eq. 5-7).
    Raises ValueError for another pooling.
    """

    def __init__(
        self,
        make: Callable[[int], Recurrent],
        num_outputs: int,
        vocab_size: int | None = None,
        num_features: int = 1,
        embedding_size: int = 64,
        dropout: float = 0.0,
        pooling: str = "last",
    ):
        super().__init__()
        if pooling not in POOLINGS:
            raise ValueError(f"pooling is one of {', '.join(POOLINGS)}, not {pooling!r}")
        self.embedding = Symbols(vocab_size, embedding_size) if vocab_size else None
        self.dropout, self.pooling = nn.Dropout(dropout), pooling
        self.rnn = make(self.embedding.size if vocab_size else num_features)
        width = self.rnn.hidden_size * self.rnn.directions
        if pooling == "attention":
            self.score = nn.Sequential(
                nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 1, bias=False)
            )
        self.output = nn.Linear(width, num_outputs)
        self.weights: Tensor | None = None  # of the steps, in the last call

    def forward(
        self, inputs: Tensor, lengths: Tensor | None = None, state: State | None = None
    ) -> tuple[Tensor, None]:
        """(B, T) tokens or (B, T, F) features to answers (B, num_outputs); there is no state."""
        if lengths is not None:
            lengths = lengths.clamp(min=1)  # of an empty sequence the first padding is read
        x = self.embedding(inputs) if self.embedding is not None else inputs
        x = self.rnn(self.dropout(x), state, lengths)[0]  # (B, T, width)
        return self.output(self.dropout(self.pool(x, lengths))), None

    def pool(self, x: Tensor, lengths: Tensor | None) -> Tensor:
        """(B, T, width) to (B, width)."""
        if lengths is None:
            lengths = torch.full((len(x),), x.shape[1])
        lengths = lengths.to(x.device)[:, None]
        mask = torch.arange(x.shape[1], device=x.device) < lengths  # (B, T)
        if self.pooling == "last":
            forth, back = x[:, :, : self.rnn.hidden_size], x[:, :, self.rnn.hidden_size :]
            place = (lengths[:, :, None] - 1).expand(-1, -1, forth.shape[2])
            self.weights = (mask.cumsum(1) == lengths) & mask
            return torch.cat([forth.gather(1, place)[:, 0], back[:, 0]], 1)
        if self.pooling == "mean":
            weights = mask / lengths
        else:
            scores = self.score(x)[:, :, 0].float()
            weights = scores.masked_fill(~mask, -math.inf).softmax(1)  # (B, T)
        self.weights = weights.detach()
        return (weights[:, None].to(x.dtype) @ x)[:, 0]


class Classifier(Reader):
    """Logits (B, K) of a sequence's class."""

    def __init__(self, make: Callable[[int], Recurrent], num_classes: int = 2, **settings):
        if not settings.get("num_features"):
            settings = {"vocab_size": 10_000} | settings
        super().__init__(make, num_classes, **settings)


class Forecaster(Reader):
    """The next `horizon` values of C columns, (B, horizon, C), from a window (B, T, F).

    `logistic` output units (of 1997) answer from 0 to 1.
    """

    def __init__(
        self,
        make: Callable[[int], Recurrent],
        num_features: int = 1,
        horizon: int = 1,
        num_targets: int = 1,
        logistic: bool = False,
        **settings,
    ):
        super().__init__(make, horizon * num_targets, None, num_features, **settings)
        self.shape, self.logistic = (horizon, num_targets), logistic

    def forward(
        self, inputs: Tensor, lengths: Tensor | None = None, state: State | None = None
    ) -> tuple[Tensor, None]:
        """(B, T, F) to (B, horizon, C)."""
        answers = super().forward(inputs, lengths, state)[0].unflatten(1, self.shape)
        return answers.sigmoid() if self.logistic else answers, None
