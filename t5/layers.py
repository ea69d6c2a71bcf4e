"""What T5 is built from: norm, relative positions, attention, feed-forward layer, stack.

Shapes: B batch, T tokens that look, S tokens that are looked at, D d_model, H heads, d dimensions
of a head, F d_ff.

Parameters bear the names of the released weights (`block.0.layer.0.SelfAttention.q`). No layer has
a bias, and what a norm takes away is the size alone, not the mean.
"""

import dataclasses
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Cache = list[list[dict[str, Tensor]]]  # of each block its own and the memory's "key" and "value"


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What the stacks are built from.

    `num_layers` are those of each stack; with `gated` the feed-forward layers are GEGLUs, with
    `tied` the last layer is the table of embeddings. Distances between tokens fall into
    `num_buckets`, all from `max_distance` on into the same.
    """

    vocab_size: int
    d_model: int
    num_layers: int
    num_heads: int
    d_kv: int
    d_ff: int
    gated: bool = False
    tied: bool = True
    num_buckets: int = 32
    max_distance: int = 128
    dropout: float = 0.1


class RMSNorm(nn.Module):
    """Divides by the root of the mean square, and has no bias (Zhang and Sennrich 2019)."""

    def __init__(self, d_model: int, eps: float = 1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(d_model))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) to (B, T, D)."""
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


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


def buckets_of(
    distances: Tensor, bidirectional: bool, num_buckets: int = 32, max_distance: int = 128
) -> Tensor:
    """The bucket of each distance from a token to one it looks at (negative: one before).

    Near ones have a bucket each, farther ones share one, in steps that grow by a constant factor
    (Sec. 2.1; the sizes are the released code's). If `bidirectional`, half of the buckets are for
    what comes after; else that all falls into bucket 0, as nobody may look there.
    """
    after = 0
    if bidirectional:
        num_buckets //= 2
        after = (distances > 0) * num_buckets
        distances = distances.abs()
    else:
        distances = (-distances).clamp(min=0)
    exact = num_buckets // 2
    steps = torch.log(distances.clamp(min=1) / exact) / math.log(max_distance / exact)
    far = exact + (steps * (num_buckets - exact)).long()
    return after + torch.where(distances < exact, distances, far.clamp(max=num_buckets - 1))


# fmt: off
def attention(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, dropout: float = 0.0):
    """Attention without 1/sqrt(d): heads (B, H, T, d) and weights (B, H, T, S).

    `query` is (B, H, T, d), `key` and `value` (B, H, S, d); `bias`, which broadcasts to
    (B, H, T, S), is added to the scores; `dropout` is the share of weights left out.
    """
    scores = query @ key.transpose(-2, -1)                # (B, H, T, S); initial ones are smaller
    weights = (scores if bias is None else scores + bias).softmax(-1)
    return drop_values(weights, dropout) @ value, weights
# fmt: on


class Attention(nn.Module):
    """Attention by H heads of d dimensions, which needn't be D in all.

    With `recording` set, `weights` holds the attention of the last call, (B, H, T, S). The first
    one of a stack has the relative positions of all.
    """

    def __init__(self, sizes: Sizes, positions: bool = False):
        super().__init__()
        inner = sizes.num_heads * sizes.d_kv
        self.num_heads, self.dropout = sizes.num_heads, sizes.dropout
        self.q = nn.Linear(sizes.d_model, inner, bias=False)
        self.k = nn.Linear(sizes.d_model, inner, bias=False)
        self.v = nn.Linear(sizes.d_model, inner, bias=False)
        self.o = nn.Linear(inner, sizes.d_model, bias=False)
        if positions:
            self.relative_attention_bias = nn.Embedding(sizes.num_buckets, sizes.num_heads)
        self.recording, self.weights = False, None
        # The root of d that the scores aren't divided by is in the initial weights of q.
        nn.init.normal_(self.q.weight, std=(sizes.d_model * sizes.d_kv) ** -0.5)
        for layer in (self.k, self.v):
            nn.init.normal_(layer.weight, std=sizes.d_model**-0.5)
        nn.init.normal_(self.o.weight, std=inner**-0.5)
        if positions:
            nn.init.normal_(self.relative_attention_bias.weight, std=sizes.d_model**-0.5)

    # fmt: off
    def forward(
        self, x: Tensor, bias: Tensor | None, memory: Tensor | None = None, cache=None
    ) -> Tensor:
        """What `x` (B, T, D) finds in `memory` (B, S, D), or in itself: (B, T, D).

        A `cache` (at first empty) keeps keys and values: those of a memory for good, those of `x`
        to be found again by the tokens that follow.
        """
        query = self.split(self.q(x))                                    # (B, H, T, d)
        key, value = self.keys_and_values(x, memory, cache)              # (B, H, S, d)
        heads = self.attend(query, key, value, bias)                     # (B, H, T, d)
        return self.o(heads.transpose(1, 2).flatten(2))                  # (B, T, D)
    # fmt: on

    def split(self, x: Tensor) -> Tensor:
        """Gives each head its dimensions: (B, T, H d) to (B, H, T, d)."""
        return x.unflatten(2, (self.num_heads, -1)).transpose(1, 2)

    def keys_and_values(self, x: Tensor, memory: Tensor | None, cache: dict | None):
        """Both (B, H, S, d), of `memory` or of `x` itself, after those in the cache."""
        if memory is not None and cache:
            return cache["key"], cache["value"]
        seen = x if memory is None else memory
        key, value = self.split(self.k(seen)), self.split(self.v(seen))
        if memory is None and cache:
            key = torch.cat([cache["key"], key], 2)
            value = torch.cat([cache["value"], value], 2)
        if cache is not None:
            cache.update(key=key, value=value)
        return key, value

    def attend(self, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
        """By torch's kernel on a GPU; on a CPU plain products are faster, as the bias learns."""
        dropout = self.dropout if self.training else 0.0
        if query.is_cpu or self.recording:
            heads, weights = attention(query, key, value, bias, dropout)
            if self.recording:
                self.weights = weights
            return heads
        return F.scaled_dot_product_attention(query, key, value, bias, dropout, scale=1.0)


class FeedForward(nn.Module):
    """Two linear layers around a ReLU; or `gated`, GELU(x W_0) * x W_1 before the last (GEGLU,
    Shazeer 2020), with the GELU by tanh as in the released code."""

    def __init__(self, sizes: Sizes):
        super().__init__()
        names = ("wi_0", "wi_1") if sizes.gated else ("wi",)
        for name in names:
            setattr(self, name, nn.Linear(sizes.d_model, sizes.d_ff, bias=False))
            nn.init.normal_(getattr(self, name).weight, std=sizes.d_model**-0.5)
        self.wo = nn.Linear(sizes.d_ff, sizes.d_model, bias=False)
        nn.init.normal_(self.wo.weight, std=sizes.d_ff**-0.5)
        self.gated, self.drop = sizes.gated, Dropout(sizes.dropout)

    # fmt: off
    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) to (B, T, D)."""
        x = gelu(self.wi_0(x)) * self.wi_1(x) if self.gated else F.relu(self.wi(x))
        x = self.drop(x)                                                 # (B, T, F)
        if x.dtype == torch.float16:  # what this layer gives outgrows 65,504 in trained networks
            with torch.autocast(x.device.type, enabled=False):
                return self.wo(x.float())
        return self.wo(x)                                                # (B, T, D)
    # fmt: on


def gelu(x: Tensor) -> Tensor:
    """Its approximation by tanh; in bf16 on a CPU the exact one, which rounds to nearly the same
    and takes a fifth of the time."""
    exact = x.is_cpu and x.dtype == torch.bfloat16
    return F.gelu(x, approximate="none" if exact else "tanh")


class SubLayer(nn.Module):
    """x + f(norm(x)): the norm stands before, so that the sum runs through unchanged."""

    def __init__(self, name: str, f: nn.Module, sizes: Sizes):
        super().__init__()
        self.add_module(name, f)
        self.layer_norm, self.drop = RMSNorm(sizes.d_model), Dropout(sizes.dropout)
        self.name = name

    def forward(self, x: Tensor, *args) -> Tensor:
        """(B, T, D) to (B, T, D)."""
        return x + self.drop(getattr(self, self.name)(self.layer_norm(x), *args))


class Block(nn.Module):
    """Self-attention, attention to the memory (if `cross`) and feed-forward layer."""

    def __init__(self, sizes: Sizes, cross: bool, positions: bool):
        super().__init__()
        parts = [SubLayer("SelfAttention", Attention(sizes, positions), sizes)]
        if cross:
            parts.append(SubLayer("EncDecAttention", Attention(sizes), sizes))
        parts.append(SubLayer("DenseReluDense", FeedForward(sizes), sizes))
        self.layer, self.cross = nn.ModuleList(parts), cross

    def forward(self, x: Tensor, bias, memory, memory_bias, cache) -> Tensor:
        """(B, T, D) to (B, T, D)."""
        x = self.layer[0](x, bias, None, cache[0])
        if self.cross:
            x = self.layer[1](x, memory_bias, memory, cache[1])
        return self.layer[-1](x)


class Stack(nn.Module):
    """Blocks that share one table of relative positions, and a norm after the last.

    An encoder, or with `cross` a decoder, which looks at a memory; what a token may look at is the
    `mask`'s to say, and positions are told both ways if `bidirectional`.
    """

    def __init__(self, sizes: Sizes, cross: bool, bidirectional: bool):
        super().__init__()
        self.block = nn.ModuleList(Block(sizes, cross, not i) for i in range(sizes.num_layers))
        self.final_layer_norm, self.drop = RMSNorm(sizes.d_model), Dropout(sizes.dropout)
        self.bidirectional, self.sizes = bidirectional, sizes

    def bias(self, length: int, so_far: int, device=None) -> Tensor:
        """What is added to the scores of the last `length` of `so_far` tokens: (H, T, S)."""
        table = self.block[0].layer[0].SelfAttention.relative_attention_bias.weight
        if hasattr(table, "full_tensor"):  # sharded with a block, and read outside of it
            from torch.distributed.tensor import Partial

            table = table.full_tensor(grad_placements=[Partial("avg")])
        i = torch.arange(so_far - length, so_far, device=device)[:, None]
        distances = torch.arange(so_far, device=device) - i  # (T, S)
        sizes = self.sizes
        buckets = buckets_of(distances, self.bidirectional, sizes.num_buckets, sizes.max_distance)
        return F.embedding(buckets, table).permute(2, 0, 1)

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        memory: Tensor | None = None,
        memory_mask: Tensor | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        """Embeddings (B, T, D) to features (B, T, D).

        `mask` broadcasts to (B, H, T, S), `memory_mask` to (B, H, T, S of the memory): True where a
        token may look, None for everywhere.
        """
        past = cache[0][0]["key"].shape[2] if cache and cache[0][0] else 0
        bias = self.bias(x.shape[1], past + x.shape[1], x.device)[None].to(kind_of(x))
        if mask is not None:
            bias = bias.masked_fill(~mask, torch.finfo(bias.dtype).min)
        memory_bias = None
        if memory_mask is not None:
            memory_bias = torch.zeros(memory_mask.shape, dtype=bias.dtype, device=x.device)
            memory_bias.masked_fill_(~memory_mask, torch.finfo(bias.dtype).min)
        x = self.drop(x)
        for block, part in zip(self.block, cache or [[None, None]] * len(self.block), strict=True):
            x = block(x, bias, memory, memory_bias, part)
        return self.drop(self.final_layer_norm(x))


def kind_of(x: Tensor) -> torch.dtype:
    """The type that products of matrices have here."""
    device = x.device.type
    autocast = device != "meta" and torch.is_autocast_enabled(device)
    return torch.get_autocast_dtype(device) if autocast else x.dtype
