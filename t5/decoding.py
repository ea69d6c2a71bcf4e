"""Writing a target with a trained network: greedy, sampled, or by beam search.

The searches are those of common/decode.py. With `cached` a step computes the newest token alone and
finds the keys and values of the others in a cache; without it, all of them anew: the same tokens,
more slowly.
"""

import torch
from torch import Tensor

from common import decode
from t5.model import END, PAD, START, T5, Text2Text


class Decoding:
    """The next token's logits for a batch of sources (B, S): a state of common/decode.py.

    Tokens from `known` on, which only fill up a table of embeddings, are never written.
    """

    def __init__(
        self, model: Text2Text, source: Tensor, cached: bool = True, known: int | None = None
    ):
        self.model, self.known = model, known
        self.source, self.memory, self.mask = source, None, None
        self.rows = len(source)
        if isinstance(model, T5):
            self.memory, self.mask = model.encode(source)
        self.cache = model.new_cache() if cached else None

    def features(self, tokens: Tensor) -> Tensor:
        """Target tokens so far (B, T) to the features of the last (B, D)."""
        new = tokens[:, -1:] if self.cache else tokens
        if isinstance(self.model, T5):
            return self.model.decode(new, self.memory, self.mask, self.cache)[:, -1]
        if self.cache and self.cache[0][0]:
            return self.model.go_on(self.source, new, self.cache)[:, -1]
        return self.model.read(self.source, new, self.cache)[:, -1]

    def step(self, tokens: Tensor) -> Tensor:
        """Target tokens so far (B, T) to logits (B, V), float32."""
        logits = self.model.logits(self.features(tokens)).float()
        logits[:, PAD] = -torch.inf  # is no token to write
        if self.known is not None:
            logits[:, self.known :] = -torch.inf
        return logits

    def keep(self, rows: Tensor) -> "Decoding":
        """Goes on with these rows.

        As many as before are the beams of the same sources in another order: they read the same
        source, so of an encoder's only what was written is moved.
        """
        others = len(rows) != self.rows
        self.rows = len(rows)
        if others:
            self.source = self.source[rows]
        if others and self.memory is not None:
            self.memory = self.memory[rows]
            self.mask = self.mask if self.mask is None else self.mask[rows]
        for parts in self.cache or []:
            for part in parts if others else parts[:1]:
                part.update({name: tensor[rows] for name, tensor in part.items()})
        return self


def step(tokens: Tensor, state: Decoding) -> tuple[Tensor, Decoding]:
    """What common/decode.py calls."""
    return state.step(tokens), state


@torch.no_grad()
def write(
    model: Text2Text,
    source: Tensor,
    most: int | Tensor,
    beam: int = 1,
    alpha: float = 0.6,
    cached: bool = True,
    known: int | None = None,
    **draw,
) -> list[list[int]]:
    """The tokens that answer sources (B, S), at most so many as `most` says, without their end.

    The likeliest at each step; with a `beam` above 1 the best of a beam search (Sec. 3.7: 4, a
    length penalty of 0.6); or with `temperature`, `top_k`, `top_p`, `generator` in `draw`, drawn.
    """
    model.eval()
    state, start = Decoding(model, source, cached, known), torch.full_like(source[:, :1], START)
    if draw:
        return decode.generate(step, state, start, most, END, **draw)
    return decode.write(step, state, start, most, END, beam, alpha)
