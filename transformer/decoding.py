"""Writing a target with a trained Transformer: greedy, sampled, or by beam search (Sec. 6.1).

Sentences are decoded side by side, and leave the batch when they are finished. With `cached` a step
computes the newest token alone and finds the keys and values of the others in a cache; without it,
all of them anew: the same tokens, more slowly. A target has at most `extra` tokens more than its
source, as in the paper, and at most `most` where that is given.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from transformer.model import END, PAD, START, Transformer


class Decoding:
    """The next token's logits for a batch of sources, each in `copies` rows."""

    def __init__(self, model: Transformer, source: Tensor, cached: bool = True, copies: int = 1):
        memory, mask = model.encode(source)
        self.model = model
        self.memory, self.mask = (t.repeat_interleave(copies, 0) for t in (memory, mask))
        self.cache = [({}, {}) for _ in model.decoder] if cached else None

    def step(self, tokens: Tensor) -> Tensor:
        """Tokens so far (B, T) to logits (B, V), float32."""
        new = tokens[:, -1:] if self.cache else tokens
        x = self.model.decode(new, self.memory, self.mask, self.cache)[:, -1]
        return F.linear(x, self.model.embedding.weight).float()

    def keep(self, rows: Tensor) -> None:
        """Goes on with these rows.

        As many as before are the beams of the same sentences in another order: they read the same
        source, so only what they wrote is moved.
        """
        fewer = len(rows) < len(self.memory)
        if fewer:
            self.memory, self.mask = self.memory[rows], self.mask[rows]
        for own, other in self.cache or []:
            for part in (own, other) if fewer else (own,):
                part.update({name: tensor[rows] for name, tensor in part.items()})


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
    state, limit = Decoding(model, source, cached), longest(model, source, extra, most)
    rows = torch.arange(len(source), device=source.device)  # the sentences not finished yet
    tokens, found = torch.full_like(source[:, :1], START), [[] for _ in source]
    while len(rows):
        logits = state.step(tokens)  # (rows, V)
        if temperature > 0:
            rest = (logits - logits.amax(1, keepdim=True)).cpu().double()  # 0 and below
            shares = (rest / temperature).softmax(1)
            new = torch.multinomial(shares, 1, generator=generator).to(source.device)
        else:
            new = logits.argmax(1, keepdim=True)
        tokens = torch.cat([tokens, new], 1)
        done = (new[:, 0] == END) | (tokens.shape[1] > limit[rows])
        if done.any():
            for row, target in zip(rows[done].tolist(), tokens[done].tolist(), strict=True):
                found[row] = target[1:-1] if target[-1] == END else target[1:]
            (left,) = torch.where(~done)
            rows, tokens = rows[left], tokens[left]
            state.keep(left)
    return found


def write(
    model: Transformer, source: Tensor, beam: int, alpha: float, most: int
) -> list[list[int]]:
    """By beam search, or with a beam of one the likeliest token at each step."""
    if beam == 1:
        return generate(model, source, most=most)
    return beam_search(model, source, beam, alpha, most=most)


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
    """The target with the highest log-probability over a length penalty, of those in the beam.

    The penalty is ((5 + length) / 6)^alpha (Wu et al. 2016, Eq. 14). A sentence is finished when
    not even the likeliest open target could still beat the best finished one. One that is cut at
    its limit counts where no other was finished. `source` (B, S); returns the tokens between start
    and end of each sentence.
    """
    model.eval()
    state, limit = Decoding(model, source, cached, beam), longest(model, source, extra, most)
    rows = torch.arange(len(source), device=source.device)  # the sentences not finished yet
    tokens = torch.full_like(source[:, :1], START).repeat_interleave(beam, 0)  # (rows * beam, T)
    scores = torch.full((len(source), beam), -math.inf, device=source.device)
    scores[:, 0] = 0  # the beams of a sentence begin alike: only the first counts
    best, found = torch.full_like(scores[:, 0], -math.inf), [[] for _ in source]
    for length in range(1, int(limit.max()) + 1):
        total = scores.view(-1, 1) + state.step(tokens).log_softmax(1)  # (rows * beam, V)
        width = total.shape[1]
        top, place = total.view(len(rows), -1).topk(min(2 * beam, beam * width), 1)
        parent, new = place // width, place % width  # (rows, 2 * beam)
        ended, last = new == END, length >= limit[rows]
        cut = (last & best[rows].isneginf())[:, None] & ~ended.any(1, keepdim=True)
        final = top.masked_fill(~(ended | cut), -math.inf) / ((5 + length) / 6) ** alpha
        score, which = final.max(1)
        first = torch.arange(len(rows), device=source.device)[:, None] * beam
        for i in torch.where(score > best[rows])[0].tolist():
            written = tokens[first[i, 0] + parent[i, which[i]], 1:].tolist()
            token = int(new[i, which[i]])
            found[rows[i]] = written if token == END else [*written, token]
        best[rows] = torch.maximum(best[rows], score)
        scores, order = top.masked_fill(ended, -math.inf).topk(beam, 1)  # (rows, beam)
        hope = scores[:, 0] / ((5 + limit[rows]) / 6) ** alpha  # a longer target scores no more
        (left,) = torch.where(~last & (hope > best[rows]))
        if not len(left):
            break
        source_rows = (first + parent.gather(1, order))[left].flatten()
        new = new.gather(1, order)[left].view(-1, 1)
        tokens = torch.cat([tokens[source_rows], new], 1)
        rows, scores = rows[left], scores[left]
        state.keep(source_rows)
    return found
