"""What the GPTs share: causal self-attention with a cache, the feed-forward network, the frame.

Shapes: B batch, T tokens, S tokens so far (a cache's and these), H heads, d dimensions of a head,
D d_model, V vocabulary, w window.

Parameters bear the names of the released GPT-2 (`wte`, `h.0.attn.c_attn`), whose matrices lie the
other way round there: see published.py.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Cache = list[dict[str, Tensor]]  # of each layer "key" and "value", (B, H, S, d); rows come first
MOST_SCORES = 1 << 24  # of a layer that are held at once: 32 MiB


# fmt: off
def attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Scaled dot-product attention, written out: heads (B, H, T, d) and weights (B, H, T, S).

    `query` is (B, H, T, d), `key` and `value` (B, H, S, d); `mask` (T, S) is True where a token is
    seen.
    """
    scores = query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])  # (B, H, T, S)
    weights = scores.masked_fill(~mask, -math.inf).softmax(-1)
    return weights @ value, weights
# fmt: on


def attention_kernel(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    causal: bool = False,
    dropout: float = 0.0,
) -> Tensor:
    """The same in one kernel of torch's, which keeps no weights: to heads (B, H, T, d).

    `causal` stands for the mask of what came before; `dropout` is the share of weights left out.
    """
    if not query.is_cpu or query.dtype != torch.bfloat16:
        return F.scaled_dot_product_attention(query, key, value, mask, dropout, causal)
    if causal and query.shape[:3].numel() * key.shape[2] <= MOST_SCORES:
        return causal_products(query, key, value, dropout)
    with torch.autocast("cpu", enabled=False):  # in bf16, the backward pass is 8 times as slow
        query, key, value = query.float(), key.float(), value.float()
        heads = F.scaled_dot_product_attention(query, key, value, mask, dropout, causal)
    return heads.bfloat16()


def causal_products(query: Tensor, key: Tensor, value: Tensor, dropout: float) -> Tensor:
    """Causal attention (T is S) as plain products of matrices: to heads (B, H, T, d).

    On a CPU in bf16 it takes half of the kernel's time.
    """
    length, d = query.shape[2:]
    mask = query.new_full((length, length), -math.inf).triu(1)
    with torch.autocast("cpu", enabled=False):
        rows = (x.flatten(0, 1) for x in (query, key.transpose(2, 3)))  # (B H, T, d), (B H, d, T)
        weights = torch.baddbmm(mask, *rows, alpha=d**-0.5).softmax(-1)
        heads = drop_values(weights, dropout) @ value.flatten(0, 1)
    return heads.unflatten(0, query.shape[:2])


def drop_values(x: Tensor, share: float) -> Tensor:
    """Dropout. On a CPU eight bytes are drawn at a time, one for each value, which is several times
    as fast as F.dropout; the share is then the nearest of 256."""
    if not share or not x.is_cpu:
        return F.dropout(x, share) if share else x
    limit = min(round(256 * share), 255)
    draws = torch.empty(-(-x.numel() // 8), dtype=torch.int64).random_(-(2**63), None)
    kept = draws.view(torch.uint8)[: x.numel()].view(x.shape) >= limit
    return x * (kept.to(x.dtype) * (256 / (256 - limit)))


class Dropout(nn.Module):
    """Leaves out a share of the values in training, and makes the others larger for it."""

    def __init__(self, share: float):
        super().__init__()
        self.share = share

    def forward(self, x: Tensor) -> Tensor:
        """Any shape to the same."""
        return drop_values(x, self.share) if self.training else x


def visible(new: int, so_far: int, window: int | None, device=None) -> Tensor:
    """What the last `new` of `so_far` tokens see, (T, S): those before and themselves.

    With a `window` the nearest so many alone, themselves among them.
    """
    i = torch.arange(so_far - new, so_far, device=device)[:, None]
    j = torch.arange(so_far, device=device)
    return (j <= i) & (i - j < (window or so_far))


def banded(query: Tensor, key: Tensor, value: Tensor, window: int, dropout: float = 0.0) -> Tensor:
    """Attention of each token to the nearest `window`, (B, H, T, d) to the same, in time and memory
    T w and not T².

    The sequence is cut into blocks of w tokens; each block sees itself and the one before.
    """
    batch, _, length, _ = query.shape
    parts = (F.pad(x, (0, 0, 0, -length % window)) for x in (query, key, value))
    query, key, value = (x.unflatten(2, (-1, window)).transpose(1, 2) for x in parts)
    blocks = query.shape[1]  # (B, n, H, w, d)
    before = (F.pad(x, (0, 0, 0, 0, 0, 0, 1, 0))[:, :-1] for x in (key, value))  # zeros, 1, 2, …
    key, value = (torch.cat(both, 3) for both in zip(before, (key, value), strict=True))
    mask = visible(window, 2 * window, window, query.device).repeat(blocks, 1, 1)  # (n, w, 2w)
    mask[0, :, :window] = False  # nothing comes before the first block
    mask = mask.repeat(batch, 1, 1)[:, None]
    query, key, value = (x.flatten(0, 1) for x in (query, key, value))  # (B n, H, w, d)
    heads = attention_kernel(query, key, value, mask, dropout=dropout)
    heads = heads.unflatten(0, (batch, blocks)).transpose(1, 2).flatten(2, 3)
    return heads[:, :, :length]


class SelfAttention(nn.Module):
    """Each token looks at itself and those before it; with a `window` at the nearest alone.

    With `recording` set, `weights` holds the attention of the last call, (B, H, T, S). Raises
    ValueError for heads that can't share `d_model`, unless their size `d_head` is given.
    """

    def __init__(
        self,
        d_model: int,
        num_heads: int,
        dropout: float = 0.0,
        d_head: int | None = None,
        window: int | None = None,
    ):
        super().__init__()
        if d_head is None and d_model % num_heads:
            raise ValueError(f"{num_heads} heads can't share {d_model} dimensions equally")
        inner = num_heads * (d_head or d_model // num_heads)
        self.num_heads, self.dropout, self.window = num_heads, dropout, window
        self.c_attn = nn.Linear(d_model, 3 * inner)  # queries, keys and values of all heads
        self.c_proj = nn.Linear(inner, d_model)
        self.recording, self.weights = False, None

    # fmt: off
    def forward(self, x: Tensor, cache: dict | None = None) -> Tensor:
        """(B, T, D) to (B, T, D). A `cache` (at first empty) keeps keys and values for later."""
        parts = self.c_attn(x).chunk(3, -1)                              # (B, T, H d) each
        query, key, value = (
            p.unflatten(2, (self.num_heads, -1)).transpose(1, 2) for p in parts)  # (B, H, T, d)
        if cache:
            key = torch.cat([cache["key"], key], 2)                      # (B, H, S, d)
            value = torch.cat([cache["value"], value], 2)
        if cache is not None:
            cache.update(key=key, value=value)
        heads = self.attend(query, key, value)                           # (B, H, T, d)
        return self.c_proj(heads.transpose(1, 2).flatten(2))             # (B, T, D)
    # fmt: on

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Queries (B, H, T, d), keys and values (B, H, S, d) to heads (B, H, T, d): by the kernel,
        or written out where the weights are wanted."""
        new, so_far, window = query.shape[2], key.shape[2], self.window
        if self.recording:
            mask = visible(new, so_far, window, query.device)
            heads, self.weights = attention(query, key, value, mask)
            return heads
        dropout = self.dropout if self.training else 0.0
        if new == 1:  # it sees all that is near
            near = slice(-window, None) if window else slice(None)
            return attention_kernel(query, key[:, :, near], value[:, :, near], dropout=dropout)
        if new < so_far:
            mask = visible(new, so_far, window, query.device)
            return attention_kernel(query, key, value, mask, dropout=dropout)
        if window and window < so_far:
            return banded(query, key, value, window, dropout)
        return attention_kernel(query, key, value, causal=True, dropout=dropout)


class MLP(nn.Module):
    """Two linear layers around a GELU (its approximation by tanh, as in the released code).

    In bf16 the exact GELU rounds to nearly the same, and takes a CPU a fifth of the time.
    """

    def __init__(self, d_model: int):
        super().__init__()
        self.c_fc = nn.Linear(d_model, 4 * d_model)
        self.c_proj = nn.Linear(4 * d_model, d_model)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) to (B, T, D)."""
        x = self.c_fc(x)
        exact = x.is_cpu and x.dtype == torch.bfloat16
        return self.c_proj(F.gelu(x, approximate="none" if exact else "tanh"))


class LanguageModel(nn.Module):
    """Embeddings of tokens and places, `num_layers` blocks, and the embedding as last layer.

    `make_block(layer)` makes a block; no sequence is longer than `context`.
    """

    def __init__(
        self,
        vocab_size: int,
        context: int,
        d_model: int,
        num_layers: int,
        dropout: float,
        make_block: Callable[[int], nn.Module],
    ):
        super().__init__()
        self.context = context
        self.wte = nn.Embedding(vocab_size, d_model)
        self.wpe = nn.Embedding(context, d_model)
        self.drop = Dropout(dropout)
        self.h = nn.ModuleList(make_block(layer) for layer in range(num_layers))
        self.ln_f = nn.Identity()
        for name, p in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(p)
            elif p.dim() == 2:
                nn.init.normal_(p, std=0.02)

    # fmt: off
    def features(self, tokens: Tensor, cache: Cache | None = None, before=None) -> Tensor:
        """Tokens (B, T), after those of the cache, to what the last layer sees (B, T, D).

        `before(layer, x)` may change what goes into each block, (B, T, D), to the same.
        Raises ValueError for more tokens than the context.
        """
        past = cache[0]["key"].shape[2] if cache and cache[0] else 0
        end = past + tokens.shape[1]
        if end > self.context:
            raise ValueError(f"{end} tokens are more than the context, {self.context}")
        places = torch.arange(past, end, device=tokens.device)
        x = self.drop(self.wte(tokens) + self.wpe(places))               # (B, T, D)
        for layer, block in enumerate(self.h):
            x = x if before is None else before(layer, x)
            x = block(x, cache[layer] if cache else None)
        return self.ln_f(x)

    def forward(self, tokens: Tensor, cache: Cache | None = None) -> Tensor:
        """Logits (B, T, V) of the token that follows each of the tokens (B, T)."""
        return F.linear(self.features(tokens, cache), self.wte.weight)
    # fmt: on

    def step(self, tokens: Tensor, cache: Cache | None) -> tuple[Tensor, Cache | None]:
        """All tokens so far (B, T) to the logits (B, V) of the next, and the cache then.

        The cache holds the tokens but the newest; None is for always reading all anew. Of more
        tokens than the context the first ones are let go, half a context at a time: with learned
        positions the rest then stand at other places, and have to be read anew.
        """
        length, half = tokens.shape[1], max(1, self.context // 2)
        begin = max(0, -(-(length - self.context) // half)) * half
        seen = cache[0]["key"].shape[2] if cache and cache[0] else 0
        if cache is not None and begin and begin + seen != length - 1:  # it holds what is let go
            cache, seen = self.new_cache(), 0
        x = self.features(tokens[:, begin + seen :], cache)[:, -1]
        return F.linear(x, self.wte.weight), cache

    def new_cache(self) -> Cache:
        """A cache of nothing."""
        return [{} for _ in self.h]
