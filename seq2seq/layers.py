"""What the three networks share: embeddings and last layer, deep LSTMs, both ways, attention.

Shapes: B batch, S source tokens, T target tokens, D embedding, H hidden units, L layers, V
vocabulary.

Token 0 is padding, after the end of a sentence; masks are True where there is a token. What a
decoder carries from step to step has the batch first, so that beams can be reordered.
"""

import math
import warnings
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PAD, START, END, UNKNOWN = range(4)  # the first tokens of every vocabulary
SHUT = -1e4  # what is added to a gate that is to be shut: its logistic function is 0
WEIGHTS = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")  # torch's names
RECURRENT = ("weight_hh", "unit.gates", "unit.new")  # in the names of matrices from state to state

# On a GPU, cuDNN copies them together at each call, which costs little beside the call.
warnings.filterwarnings("ignore", "RNN module weights are not part of single contiguous chunk")


def half_precision(x: Tensor) -> AbstractContextManager:
    """Leaves autocast on, but for a CPU without bf16 (or fp16) of its own: oneDNN's recurrent
    layers have no kernel there."""
    if not x.is_cpu or not torch.is_autocast_enabled("cpu"):
        return nullcontext()
    kind = {torch.bfloat16: "bf16", torch.float16: "fp16"}[torch.get_autocast_dtype("cpu")]
    able = torch.cpu.get_capabilities()
    native = able.get(f"avx512_{kind}", False) or able.get(f"amx_{kind}", False)
    return nullcontext() if native else torch.autocast("cpu", enabled=False)


def lengths_of(source: Tensor) -> Tensor:
    """How many tokens each sentence has (B,), at least 1."""
    return (source != PAD).sum(1).clamp(min=1)


def mask_of(source: Tensor) -> Tensor:
    """Where the tokens of sentences (B, S) are."""
    return torch.arange(source.shape[1], device=source.device) < lengths_of(source)[:, None]


def turn(x: Tensor, lengths: Tensor) -> Tensor:
    """Each sequence of (B, S, ...) turned around; its padding stays behind it."""
    places = torch.arange(x.shape[1], device=x.device)
    turned = lengths[:, None] - 1 - places  # (B, S)
    turned = torch.where(turned >= 0, turned, places)
    return x.gather(1, turned.reshape(*turned.shape, *[1] * (x.dim() - 2)).expand_as(x))


class Words(nn.Module):
    """The embeddings of both sides, and the last layer, which predicts the next word.

    `tied` is for small networks: one matrix for all three (Press and Wolf 2016), and a layer before
    the last one that brings `width` to D. Not in these papers. Raises ValueError for a tied source
    of another size.
    """

    def __init__(
        self, vocab_size: int, d_model: int, width: int, source_size: int | None, tied: bool
    ):
        super().__init__()
        if tied and source_size not in (None, vocab_size):
            raise ValueError("tied embeddings need one vocabulary for both sides")
        self.target = nn.Embedding(vocab_size, d_model)
        self.source = None if tied else nn.Embedding(source_size or vocab_size, d_model)
        self.output = None if tied else nn.Linear(width, vocab_size, bias=False)
        reduce = tied and width != d_model
        self.reduce = nn.Linear(width, d_model, bias=False) if reduce else nn.Identity()

    def of_source(self, tokens: Tensor) -> Tensor:
        """Tokens (B, S) to embeddings (B, S, D)."""
        return (self.source or self.target)(tokens)

    def of_target(self, tokens: Tensor) -> Tensor:
        """Tokens (B, T) to embeddings (B, T, D)."""
        return self.target(tokens)

    def logits(self, x: Tensor) -> Tensor:
        """(..., width) to (..., V)."""
        return F.linear(self.reduce(x), (self.output or self.target).weight)


def initialise(model: nn.Module) -> None:
    """Initial weights of small networks, with which these learn sooner than with the papers'.

    Glorot's; orthogonal ones from state to state, for each gate; embeddings N(0, 1/D); no biases.
    """
    for name, p in model.named_parameters():
        if p.dim() == 1:
            nn.init.zeros_(p)
        elif name in ("words.source.weight", "words.target.weight"):
            nn.init.normal_(p, std=p.shape[1] ** -0.5)
        elif any(part in name for part in RECURRENT):
            for square in p.detach().split(p.shape[1]):
                nn.init.orthogonal_(square)
        else:
            nn.init.xavier_uniform_(p)


class LSTM(nn.Module):
    """`num_layers` LSTMs, one above the other, with dropout between them (Zaremba et al. 2014)."""

    def __init__(self, input_size: int, hidden_size: int, num_layers: int, dropout: float = 0.0):
        super().__init__()
        sizes = [input_size] + [hidden_size] * (num_layers - 1)
        self.layers = nn.ModuleList(nn.LSTM(size, hidden_size) for size in sizes)
        self.hidden_size, self.dropout = hidden_size, nn.Dropout(dropout)

    def begin(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The state zero, for inputs (B, T, D)."""
        zero = x.new_zeros(len(x), len(self.layers), self.hidden_size)
        return zero, zero

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor], blank: Tensor | None = None):
        """Inputs (B, T, D) and a state h, c, (B, L, H) each, to outputs (B, T, H) and the state.

        Where `blank` (B, T) is True, before a sentence, nothing is let in: the state zero stays
        zero. So the last state is that at the end of each sentence, in one call of torch's kernel.
        """
        last = []
        for layer, (h, c) in zip(self.layers, self.by_layer(state), strict=True):
            x, *new = self.run(layer, self.dropout(x) if last else x, h, c, blank)
            last.append(new)
        return x, tuple(torch.stack(part, 1) for part in zip(*last, strict=True))

    def by_layer(self, state: tuple[Tensor, Tensor]) -> list[tuple[Tensor, Tensor]]:
        """h and c (B, H) of each layer."""
        return list(zip(*(part.unbind(1) for part in state), strict=True))

    def run(self, layer: nn.LSTM, x: Tensor, h: Tensor, c: Tensor, blank: Tensor | None):
        """One layer by torch's kernel: outputs, and the last h and c."""
        weights = [getattr(layer, name) for name in WEIGHTS]
        if blank is not None:  # one more input, which shuts the input gate
            shut = weights[0].new_zeros(len(weights[0]), 1)
            shut[: self.hidden_size] = SHUT
            weights[0] = torch.cat([weights[0], shut], 1)
            x = torch.cat([x, blank[:, :, None].to(x.dtype)], 2)
        begin = [part[None].to(x.dtype).contiguous() for part in (h, c)]
        with half_precision(x):
            x, h, c = torch.lstm(x, begin, weights, True, 1, 0.0, self.training, False, True)
        return x, h[0], c[0]

    # fmt: off
    def step(self, net: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple]:
        """One step, written out: `net` (B, 4 H) is what enters the gates of the first layer, but
        for what the last h adds; to the output (B, H) and the state."""
        last = []
        for layer, (h, c) in zip(self.layers, self.by_layer(state), strict=True):
            if last:
                net = F.linear(self.dropout(last[-1][0]), layer.weight_ih_l0, layer.bias_ih_l0)
            net = net + F.linear(h, layer.weight_hh_l0, layer.bias_hh_l0)
            i, f, g, o = net.chunk(4, 1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            last.append((o.sigmoid() * c.tanh(), c))
        return last[-1][0], tuple(torch.stack(part, 1) for part in zip(*last, strict=True))
    # fmt: on


def encode_lstm(lstm: LSTM, words: Words, source: Tensor, reverse: bool, dropout: nn.Dropout):
    """Reads sentences (B, S), backwards if `reverse`: outputs (B, S, H), and the last state.

    The padding goes before the sentence. Outputs lie where their tokens are in the source.
    """
    lengths = lengths_of(source)
    tokens = source.flip(1) if reverse else turn(source, lengths).flip(1)
    x, blank = dropout(words.of_source(tokens)), tokens == PAD  # (B, S, D), (B, S)
    if blank.is_cpu and not torch.compiler.is_exporting() and not blank.any():
        blank = None  # elsewhere, to ask would be to wait
    x, state = lstm(x, lstm.begin(x), blank)
    return x.flip(1) if reverse else turn(x.flip(1), lengths), state


class BothWays(nn.Module):
    """A GRU that reads forwards and one that reads backwards (Schuster and Paliwal 1997)."""

    def __init__(self, input_size: int, hidden_size: int):
        super().__init__()
        self.forth = nn.GRU(input_size, hidden_size, batch_first=True)
        self.back = nn.GRU(input_size, hidden_size, batch_first=True)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """(B, S, D) to what both say of each token, (B, S, 2 H)."""
        with half_precision(x):
            forth, back = self.forth(x)[0], self.back(turn(x, lengths))[0]
        return torch.cat([forth, turn(back, lengths)], 2)


class Attention(nn.Module):
    """Which of the source's words a query needs: a score for each, and a softmax over them.

    "dot":     q · m                       (Luong Eq. 8; H is that of the memory)
    "general": q · W m                     (Luong Eq. 8)
    "concat":  v · tanh(W q + U m)         (Luong Eq. 8; Bahdanau A.1.2)

    Raises ValueError for another kind, and for sizes without a dot product.
    """

    def __init__(self, kind: str, query_size: int, memory_size: int, size: int | None = None):
        super().__init__()
        if kind not in SCORES:
            raise ValueError(f"a score is one of {', '.join(SCORES)}, not {kind!r}")
        if kind == "dot" and query_size != memory_size:
            raise ValueError(f"{query_size} and {memory_size} dimensions have no dot product")
        self.kind, size = kind, size or query_size
        if kind != "dot":
            out = query_size if kind == "general" else size
            self.key = nn.Linear(memory_size, out, bias=False)
        if kind == "concat":
            self.query = nn.Linear(query_size, size, bias=False)
            self.v = nn.Linear(size, 1, bias=False)

    def keys(self, memory: Tensor) -> Tensor:
        """What queries are compared with, once for a sentence: (B, S, M) to (B, S, size)."""
        return memory if self.kind == "dot" else self.key(memory)

    # fmt: off
    def scores(self, query: Tensor, keys: Tensor) -> Tensor:
        """Queries (B, T, H) and keys (B, S, size) to scores (B, T, S)."""
        if self.kind == "concat":
            hidden = self.query(query)[:, :, None] + keys[:, None]       # (B, T, S, size)
            return self.v(hidden.tanh())[..., 0]
        return query @ keys.transpose(1, 2)

    def forward(self, query: Tensor, memory: Tensor, keys: Tensor, mask: Tensor):
        """What the queries find in the memory (B, S, M): contexts (B, T, M), weights (B, T, S).

        `mask` (B, S) is False at the padding, which gets no weight.
        """
        scores = self.scores(query, keys).masked_fill(~mask[:, None], -math.inf)
        weights = scores.softmax(2)                                      # Bahdanau Eq. 6, Luong 7
        return weights.to(memory.dtype) @ memory, weights                # Bahdanau Eq. 5
    # fmt: on


SCORES = ("dot", "general", "concat")
