"""Sparse attention over one stream of text and image tokens (Ramesh et al. 2021, Sec. 2.2, App.
B.1; after Child et al. 2019, arXiv:1904.10509).

A text token sees those before it; an image token sees all of the text, and of the image what its
layer's pattern allows (Fig. 11):

    row     the last w + 1 in the order of reading, itself among them: back to the one above
    column  those above it in its own column, and itself
    conv    those before it within a square of `kernel` x `kernel` around it, itself among them
    dense   all before it, and itself; no layer of the paper's

Rows and squares go on at the other side of the image, as places are counted in reading order.

Shapes: B batch, T tokens, S tokens so far (a cache's and these), A heads, d dimensions of a head,
D d_model, P tokens of the prefix (start and text), N image tokens, h and w of the image's grid.
"""

import functools
import math
from collections import OrderedDict
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

KINDS = ("row", "column", "conv", "dense")
BLOCKS_FROM = (
    1024  # image tokens from which on rows and columns are computed in blocks: on one core
)
# 1.05 and 1.2 times as fast as under a mask for 32 x 32, and slower for fewer; squares never pay


class Layout(NamedTuple):
    """What the stream is made of: the P tokens before the image, and the image's h x w."""

    prefix: int
    height: int
    width: int
    kernel: int = 11

    @property
    def length(self) -> int:
        """Tokens that are read: the last of the image is only ever predicted."""
        return self.prefix + self.height * self.width - 1


def allowed(kind: str, gap: Tensor, width: int, kernel: int) -> Tensor:
    """Whether an image token sees another that lies `gap` places before it (any shape), bool.

    Raises ValueError for an unknown kind.
    """
    before = gap >= 0
    if kind == "dense":
        return before
    if kind == "row":
        return before & (gap <= width)
    if kind == "column":
        return before & (gap % width == 0)
    if kind == "conv":
        half = kernel // 2
        places = torch.arange(half + 1)[:, None] * width + torch.arange(-half, half + 1)
        return before & torch.isin(gap, places.to(gap.device))
    raise ValueError(f"unknown kind of attention {kind!r}: there are {', '.join(KINDS)}")


@functools.lru_cache(64)
def stream_mask(kind: str, layout: Layout, device: torch.device | None = None) -> Tensor:
    """What each token of the stream sees (length, length): True where attention is allowed."""
    i = torch.arange(layout.length, device=device)
    gap = i[:, None] - i
    of_image = (i >= layout.prefix)[:, None] & (i >= layout.prefix)
    near = allowed(kind, gap, layout.width, layout.kernel)
    return (gap >= 0) & (near | ~of_image)


# fmt: off
def attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Scaled dot-product attention, written out: heads (B, A, T, d) and weights (B, A, T, S)."""
    scores = query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])  # (B, A, T, S)
    weights = scores.masked_fill(~mask, -math.inf).softmax(-1)
    return weights @ value, weights
# fmt: on


def attention_kernel(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    """The same without the weights, by a kernel of torch's: heads (…, T, d).

    On a CPU in bf16 its backward pass is slow; plain products take half of its time there.
    """
    if not query.is_cpu or query.dtype != torch.bfloat16:
        return F.scaled_dot_product_attention(query, key, value, mask)
    with torch.autocast("cpu", enabled=False):
        hidden = torch.zeros_like(mask, dtype=query.dtype).masked_fill_(~mask, -math.inf)
        scores = query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5
        return (scores + hidden).softmax(-1) @ value


def blockwise(query: Tensor, key: Tensor, value: Tensor, kind: str, layout: Layout) -> Tensor:
    """Row or column attention of the whole stream (B, A, length, d) to the same, in blocks: a row
    of the image sees the text, itself and the row before.

    Time and memory are N (P + 2 w) in place of (P + N)². Columns are rows of the transposed image,
    as in the paper, which see themselves alone.
    """
    prefix, height, width, kernel = layout
    causal = torch.ones(prefix, prefix, dtype=torch.bool, device=query.device).tril()
    first = attention_kernel(*(x[:, :, :prefix] for x in (query, key, value)), causal)

    def lines(x: Tensor) -> Tensor:  # (B, A, N - 1, d) to (B A, h, w, d), or (B A, w, h, d)
        x = F.pad(x[:, :, prefix:], (0, 0, 0, 1)).unflatten(2, (height, width)).flatten(0, 1)
        return x.transpose(1, 2) if kind == "column" else x

    query_lines, key_lines, value_lines = map(lines, (query, key, value))
    count, size = query_lines.shape[1:3]
    n = min({"row": 2, "column": 1}[kind], count)  # lines that a line sees
    i = torch.arange(size, device=query.device)
    j = torch.arange(n * size, device=query.device) - (n - 1) * size
    gap = i[:, None] - j  # (size, n size)
    near = gap >= 0 if kind == "column" else allowed(kind, gap, width, kernel)
    begins = torch.arange(count, device=query.device)[:, None] * size
    mask = near & (begins + j >= 0)[:, None]  # (count, size, n size): nothing before the first
    mask = F.pad(mask, (prefix, 0), value=True)

    def seen(x: Tensor, in_lines: Tensor) -> Tensor:  # to (B A, count, P + n size, d)
        text = x[:, :, :prefix].flatten(0, 1)[:, None].expand(-1, count, -1, -1)
        padded = F.pad(in_lines, (0, 0, 0, 0, n - 1, 0))
        return torch.cat([text, *(padded[:, k : k + count] for k in range(n))], 2)

    heads = attention_kernel(query_lines, seen(key, key_lines), seen(value, value_lines), mask)
    heads = heads.transpose(1, 2) if kind == "column" else heads
    heads = heads.flatten(1, 2)[:, :-1].unflatten(0, query.shape[:2])
    return torch.cat([first, heads], 2)


class SelfAttention(nn.Module):
    """Attention of one `kind` over a stream; see the top of this file.

    With `recording` set, `weights` holds the attention of the last call, (B, A, T, S). Raises
    ValueError for heads that can't share `d_model`, and for an unknown kind.
    """

    def __init__(self, d_model: int, num_heads: int, kind: str, layout: Layout):
        super().__init__()
        if d_model % num_heads:
            raise ValueError(f"{num_heads} heads can't share {d_model} dimensions equally")
        allowed(kind, torch.zeros(1), layout.width, layout.kernel)
        self.num_heads, self.kind, self.layout = num_heads, kind, layout
        self.c_attn = nn.Linear(d_model, 3 * d_model)  # queries, keys and values of all heads
        self.c_proj = nn.Linear(d_model, d_model)
        self.recording, self.weights = False, None

    # fmt: off
    def forward(self, x: Tensor, cache: dict | None = None) -> Tensor:
        """(B, T, D) to (B, T, D). A `cache` (at first empty) keeps keys and values for later."""
        parts = self.c_attn(x).chunk(3, -1)                              # (B, T, D) each
        query, key, value = (
            p.unflatten(2, (self.num_heads, -1)).transpose(1, 2) for p in parts)  # (B, A, T, d)
        if cache:
            key = torch.cat([cache["key"], key], 2)                      # (B, A, S, d)
            value = torch.cat([cache["value"], value], 2)
        if cache is not None:
            cache.update(key=key, value=value)
        heads = self.attend(query, key, value)                           # (B, A, T, d)
        return self.c_proj(heads.transpose(1, 2).flatten(2))             # (B, T, D)
    # fmt: on

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Queries (B, A, T, d), keys and values (B, A, S, d) to heads (B, A, T, d)."""
        new, so_far, layout = query.shape[2], key.shape[2], self.layout
        mask = stream_mask(self.kind, layout, query.device)[so_far - new : so_far, :so_far]
        if self.recording:
            heads, self.weights = attention(query, key, value, mask)
            return heads
        if new == 1 and self.kind != "dense":  # it looks at a few alone
            (near,) = torch.where(mask[0])
            key, value, mask = key[:, :, near], value[:, :, near], mask[:, near]
        whole = new == layout.length and layout.height * layout.width >= BLOCKS_FROM
        if whole and self.kind in ("row", "column"):
            return blockwise(query, key, value, self.kind, layout)
        return attention_kernel(query, key, value, mask)


class Block(nn.Module):
    """Attention and feed-forward on what is normalised, added to what is not."""

    def __init__(self, d_model: int, num_heads: int, kind: str, layout: Layout, dropout: float):
        super().__init__()
        self.ln_1 = nn.LayerNorm(d_model)
        self.attn = SelfAttention(d_model, num_heads, kind, layout)
        self.ln_2 = nn.LayerNorm(d_model)
        wide, narrow = nn.Linear(d_model, 4 * d_model), nn.Linear(4 * d_model, d_model)
        self.mlp = nn.Sequential(OrderedDict(c_fc=wide, gelu=nn.GELU(), c_proj=narrow))
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor, cache: dict | None = None) -> Tensor:
        """(B, T, D) to (B, T, D)."""
        x = x + self.drop(self.attn(self.ln_1(x), cache))
        return x + self.drop(self.mlp(self.ln_2(x)))
