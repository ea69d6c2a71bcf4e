"""Writing a target with a trained Transformer: greedy, sampled, or by beam search (Sec. 6.1).

The searches are those of common/decode.py. With `cached` a step computes the newest token alone and
finds the keys and values of the others in a cache; without it, all of them anew: the same tokens,
more slowly. A target has at most `extra` tokens more than its source, as in the paper, and at most
`most` where that is given.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from common import decode
from transformer.model import END, PAD, START, Transformer


class Decoding:
    """The next token's logits for a batch of sources: a state of common/decode.py."""

    def __init__(self, model: Transformer, source: Tensor, cached: bool = True):
        self.memory, self.mask = model.encode(source)
        self.model = model
        self.cache = [({}, {}) for _ in model.decoder] if cached else None

    def step(self, tokens: Tensor) -> Tensor:
        """Tokens so far (B, T) to logits (B, V), float32."""
        new = tokens[:, -1:] if self.cache else tokens
        x = self.model.decode(new, self.memory, self.mask, self.cache)[:, -1]
        return F.linear(x, self.model.embedding.weight).float()

    def keep(self, rows: Tensor) -> "Decoding":
        """Goes on with these rows.

        As many as before are the beams of the same sentences in another order: they read the same
        source, so only what they wrote is moved.
        """
        others = len(rows) != len(self.memory)
        if others:
            self.memory, self.mask = self.memory[rows], self.mask[rows]
        for own, other in self.cache or []:
            for part in (own, other) if others else (own,):
                part.update({name: tensor[rows] for name, tensor in part.items()})
        return self


def step(tokens: Tensor, state: Decoding) -> tuple[Tensor, Decoding]:
    """What common/decode.py calls."""
    return state.step(tokens), state


def longest(model: Transformer, source: Tensor, extra: int, most: int | None) -> Tensor:
    """How many tokens each target may have (B,)."""
    return ((source != PAD).sum(1) + extra).clamp(
        max=min(most or model.max_length, model.max_length)
    )


@torch.no_grad()
def generate(
    model: Transformer,
    source: Tensor,
    temperature: float = 0.0,
    cached: bool = True,
    extra: int = 50,
    most: int | None = None,
    generator: torch.Generator | None = None,
) -> list[list[int]]:
    """The likeliest token at each step; or, with a `temperature`, one drawn from the softmax.

    `source` (B, S); returns the tokens between start and end of each sentence. `generator` is on
    the CPU.
    """
    model.eval()
    state, start = Decoding(model, source, cached), torch.full_like(source[:, :1], START)
    limit = longest(model, source, extra, most)
    return decode.generate(step, state, start, limit, END, temperature, generator=generator)


@torch.no_grad()
def beam_search(
    model: Transformer,
    source: Tensor,
    beam: int = 4,
    alpha: float = 0.6,
    cached: bool = True,
    extra: int = 50,
    most: int | None = None,
) -> list[list[int]]:
    """The best target of those in the beam, for sources (B, S), as `generate` returns it."""
    model.eval()
    state, start = Decoding(model, source, cached), torch.full_like(source[:, :1], START)
    return decode.beam_search(
        step, state, start, longest(model, source, extra, most), END, beam, alpha
    )


@torch.no_grad()
def write(
    model: Transformer, source: Tensor, beam: int, alpha: float, most: int
) -> list[list[int]]:
    """By beam search, or with a beam of one the likeliest token at each step."""
    model.eval()
    state, start = Decoding(model, source), torch.full_like(source[:, :1], START)
    return decode.write(step, state, start, longest(model, source, 50, most), END, beam, alpha)
