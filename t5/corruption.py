"""What plain text is turned into to learn from it: sources with gaps, and what was in them.

    source, target = corrupt(tokens, sentinels, generator)     # (B, N) to (B, S), (B, T)
    source, target = cut_in_two(tokens, generator)             # a prefix, and how it goes on

Span corruption (Sec. 3.3.4, 3.7), as the released code draws it: exactly a share `rate` of the
tokens is hidden, in so many spans that they are `mean` tokens long on average. Each becomes one
sentinel in the source, another for each; the target has the same sentinels, each followed by what
it stands for.

    Thank you for inviting me to your party last week.
    source: Thank you <X> me to your party <Y> week.
    target: <X> for inviting <Y> last

A text begins with a token that is kept and ends with one that is hidden, so no sentinel closes the
target (in the paper's Figure 2 there is one). The baseline (Sec. 3.1.4) hides single tokens, and
those that stand side by side are one span.

Shapes: B batch, N tokens of a text, S and T tokens of source and target, K spans.
"""

import torch
from torch import Tensor

RATE, MEAN = 0.15, 3.0  # Sec. 3.7


def counts_of(length: int, rate: float = RATE, mean: float = MEAN) -> tuple[int, int]:
    """How many of `length` tokens are hidden, and in how many spans: at least one each, and at
    least one token is kept. Halves are rounded to even, as in the released code."""
    hidden = min(max(round(length * rate), 1), length - 1)
    spans = max(round(hidden / mean), 1)
    return hidden, min(spans, hidden, length - hidden)


def lengths_of(length: int, rate: float = RATE, mean: float = MEAN) -> tuple[int, int]:
    """The tokens of source and target that a text of `length` tokens makes, END among them."""
    hidden, spans = counts_of(length, rate, mean)
    return length - hidden + spans + 1, hidden + spans + 1


def raw_length(source_length: int, rate: float = RATE, mean: float = MEAN) -> int:
    """The longest text whose source has at most so many tokens: 568 for 512, 141 for 128.

    Raises ValueError where there is none.
    """
    if lengths_of(2, rate, mean)[0] > source_length:
        raise ValueError(f"{source_length} tokens are too few for a source with a gap")
    length = 2
    while lengths_of(length + 1, rate, mean)[0] <= source_length:
        length += 1
    return length


def segments(items: int, count: int, rows: int, generator: torch.Generator) -> Tensor:
    """`items` cut at random into `count` parts of one at least: their sizes (`rows`, `count`).

    All ways to cut are equally likely.
    """
    cuts = torch.rand(rows, items - 1, generator=generator).argsort(1)[:, : count - 1].sort(1)[0]
    ends = torch.cat([cuts + 1, torch.full((rows, 1), items)], 1)
    return ends.diff(dim=1, prepend=torch.zeros(rows, 1, dtype=torch.int64))


def hidden_spans(
    rows: int, length: int, generator: torch.Generator, rate: float = RATE, mean: float = MEAN
) -> Tensor:
    """Which tokens are hidden, True in (`rows`, `length`): kept and hidden spans by turns."""
    hidden, spans = counts_of(length, rate, mean)
    gaps = segments(hidden, spans, rows, generator)  # (B, K)
    kept = segments(length - hidden, spans, rows, generator)
    ends = torch.stack([kept, gaps], 2).flatten(1).cumsum(1)  # kept, hidden, kept, …
    places = torch.arange(length).expand(rows, -1).contiguous()
    return torch.searchsorted(ends, places, right=True) % 2 == 1


def replace(tokens: Tensor, spans: Tensor, sentinels: Tensor) -> Tensor:
    """The tokens (B, N) with one sentinel in place of each of the `spans`, True in (B, N).

    The k-th span of a text gets the k-th of the `sentinels` (at least K). All texts have to keep
    equally many tokens.
    """
    first = spans & ~torch.nn.functional.pad(spans, (1, 0))[:, :-1]
    marks = sentinels[(first.cumsum(1) - 1).clamp(min=0)]
    kept = first | ~spans
    return torch.where(first, marks, tokens)[kept].view(len(tokens), -1)


def corrupt(
    tokens: Tensor,
    sentinels: Tensor,
    end: int,
    generator: torch.Generator,
    rate: float = RATE,
    mean: float = MEAN,
) -> tuple[Tensor, Tensor]:
    """Texts (B, N) to sources (B, S) and targets (B, T), each with the token `end`.

    Raises ValueError where there are fewer sentinels than spans.
    """
    spans = counts_of(tokens.shape[1], rate, mean)[1]
    if spans > len(sentinels):
        raise ValueError(f"{spans} gaps are more than the {len(sentinels)} sentinels")
    hidden = hidden_spans(*tokens.shape, generator, rate, mean).to(tokens.device)
    ends = tokens.new_full((len(tokens), 1), end)
    source, target = replace(tokens, hidden, sentinels), replace(tokens, ~hidden, sentinels)
    return torch.cat([source, ends], 1), torch.cat([target, ends], 1)


def give_back(source: list[int], target: list[int], sentinels: list[int]) -> list[int]:
    """The text of a source and a target without their ends: each sentinel of the source becomes
    what follows it in the target."""
    filled, known = {}, set(sentinels)
    for token in target:
        if token in known:
            filled[token] = gap = []
        elif filled:
            gap.append(token)
    return [t for token in source for t in (filled.get(token, []) if token in known else [token])]


def cut_in_two(
    tokens: Tensor, end: int, pad: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Prefix language modelling (Sec. 3.3.1): texts (B, N), each cut at a random place, to what
    comes before (B, S) and after (B, T), each with `end`, then padded; no part is empty."""
    rows, length = tokens.shape
    cuts = torch.randint(1, length, (rows, 1), generator=generator).to(tokens.device)
    places = torch.arange(length + 1, device=tokens.device).expand(rows, -1)
    closed = torch.cat([tokens, tokens.new_full((rows, 1), end)], 1)
    source = closed.masked_fill(places == cuts, end).masked_fill(places > cuts, pad)
    moved = (places + cuts).clamp(max=length)
    target = closed.gather(1, moved).masked_fill(places + cuts > length, pad)
    return source[:, : int(cuts.max()) + 1], target[:, : length - int(cuts.min()) + 1]
