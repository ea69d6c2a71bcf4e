"""Writing tokens one by one: the likeliest, drawn ones, or by beam search.

    def step(tokens, state):  # (N, T), all so far, to logits (N, V) of the next and the state then
        return model.step(tokens[:, -1], state)

    found = generate(step, state, start, most=50, end=END)                     # greedy
    found = generate(step, state, start, most=50, temperature=0.8, top_p=0.9)  # drawn
    found = beam_search(step, state, start, most=50, end=END, beam=4)

The N rows are sequences that are written side by side; they leave when they are finished, and what
they write doesn't depend on the others. So a state has to be given up row by row: it is a tensor
with the rows first, a tuple, list or dictionary of states, None, or an object with a `keep(rows)`
that returns the state of these rows (N',), which may be fewer, more, or in another order.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Step = Callable[[Tensor, Any], tuple[Tensor, Any]]


def keep(state: Any, rows: Tensor) -> Any:
    """The state of some rows (N',) alone, in their order."""
    if state is None:
        return None
    if isinstance(state, Tensor):
        return state[rows]
    if hasattr(state, "keep"):
        return state.keep(rows)
    if isinstance(state, dict):
        return {name: keep(part, rows) for name, part in state.items()}
    parts = [keep(part, rows) for part in state]
    return type(state)(*parts) if hasattr(state, "_fields") else type(state)(parts)


def shares(
    logits: Tensor, temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None
) -> Tensor:
    """The probabilities (N, V) to draw from, float64 on the CPU.

    Of the softmax of logits (N, V) over `temperature` only the `top_k` largest are left (Fan et al.
    2018), and of these only the fewest that make up `top_p` of their sum (Holtzman et al. 2019),
    at least one.
    """
    rest = (logits - logits.amax(1, keepdim=True)).cpu().double()  # 0 and below
    found = (rest / temperature).softmax(1)
    if top_k is None and top_p is None:
        return found
    largest, order = found.sort(dim=1, descending=True, stable=True)
    if top_k is not None:
        largest[:, top_k:] = 0
    if top_p is not None:
        before = largest.cumsum(1) - largest  # what the larger ones make up
        largest[before >= top_p * largest.sum(1, keepdim=True)] = 0
    found = torch.zeros_like(found).scatter(1, order, largest)
    return found / found.sum(1, keepdim=True)


@torch.no_grad()
def generate(
    step: Step,
    state: Any,
    tokens: Tensor,
    most: int | Tensor,
    end: int | None = None,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
) -> list[list[int]]:
    """The likeliest token at each step; or, with a `temperature`, one drawn from `shares`.

    `tokens` (B, T) are what the sequences begin with. Returns what follows in each, without the
    token `end`: at most so many as `most` says of all or each (B,), at least 1. `generator` is on
    the CPU.
    """
    start, limit = tokens.shape[1], torch.as_tensor(most, device=tokens.device).expand(len(tokens))
    rows = torch.arange(len(tokens), device=tokens.device)  # the sequences not finished yet
    found = [[] for _ in tokens]
    while len(rows):
        logits, state = step(tokens, state)  # (rows, V)
        if temperature > 0:
            odds = shares(logits, temperature, top_k, top_p)
            new = torch.multinomial(odds, 1, generator=generator).to(tokens.device)
        else:
            new = logits.argmax(1, keepdim=True)
        tokens = torch.cat([tokens, new], 1)
        done = tokens.shape[1] - start >= limit[rows]
        if end is not None:
            done |= new[:, 0] == end
        if done.any():
            for row, written in zip(rows[done].tolist(), tokens[done].tolist(), strict=True):
                found[row] = written[start : -1 if written[-1] == end else None]
            (left,) = torch.where(~done)
            rows, tokens, state = rows[left], tokens[left], keep(state, left)
    return found


@torch.no_grad()
def beam_search(
    step: Step,
    state: Any,
    tokens: Tensor,
    most: int | Tensor,
    end: int,
    beam: int = 4,
    alpha: float = 0.6,
) -> list[list[int]]:
    """What follows with the highest log-probability over a length penalty, of those in the beam.

    The penalty is ((5 + length) / 6)^alpha (Wu et al. 2016, Eq. 14). A sequence is finished when
    not even the likeliest open end could still beat the best finished one. One that is cut at its
    limit counts where no other was finished. `tokens`, `most` and what is returned are as in
    `generate`; the B rows of the state become B * beam.
    """
    start, limit = tokens.shape[1], torch.as_tensor(most, device=tokens.device).expand(len(tokens))
    rows = torch.arange(len(tokens), device=tokens.device)  # the sequences not finished yet
    found = [[] for _ in tokens]
    scores = torch.full((len(tokens), beam), -math.inf, device=tokens.device)
    scores[:, 0] = 0  # the beams of a sequence begin alike: only the first counts
    best = torch.full_like(scores[:, 0], -math.inf)
    copies = rows.repeat_interleave(beam)
    tokens, state = tokens[copies], keep(state, copies)  # (rows * beam, T)
    for length in range(1, int(limit.max()) + 1):
        logits, state = step(tokens, state)
        total = scores.view(-1, 1) + logits.float().log_softmax(1)  # (rows * beam, V)
        width = total.shape[1]
        top, place = total.view(len(rows), -1).topk(min(2 * beam, beam * width), 1)
        parent, new = place // width, place % width  # (rows, 2 * beam)
        ended, last = (new == end) & ~top.isneginf(), length >= limit[rows]
        cut = (last & best[rows].isneginf())[:, None] & ~ended.any(1, keepdim=True)
        final = top.masked_fill(~(ended | cut), -math.inf) / ((5 + length) / 6) ** alpha
        score, which = final.max(1)
        first = torch.arange(len(rows), device=tokens.device)[:, None] * beam
        for i in torch.where(score > best[rows])[0].tolist():
            written = tokens[first[i, 0] + parent[i, which[i]], start:].tolist()
            token = int(new[i, which[i]])
            found[rows[i]] = written if token == end else [*written, token]
        best[rows] = torch.maximum(best[rows], score)
        scores, order = top.masked_fill(ended, -math.inf).topk(beam, 1)  # (rows, beam)
        hope = scores[:, 0] / ((5 + limit[rows]) / 6) ** alpha  # a longer one scores no more
        (left,) = torch.where(~last & (hope > best[rows]))
        if not len(left):
            break
        kept = (first + parent.gather(1, order))[left].flatten()
        tokens = torch.cat([tokens[kept], new.gather(1, order)[left].view(-1, 1)], 1)
        rows, scores, state = rows[left], scores[left], keep(state, kept)
    return found


def write(
    step: Step,
    state: Any,
    tokens: Tensor,
    most: int | Tensor,
    end: int,
    beam: int = 1,
    alpha: float = 0.6,
) -> list[list[int]]:
    """By beam search, or with a beam of one the likeliest token at each step."""
    if beam == 1:
        return generate(step, state, tokens, most, end)
    return beam_search(step, state, tokens, most, end, beam, alpha)
