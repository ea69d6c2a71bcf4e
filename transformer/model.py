"""The Transformer (Vaswani, Shazeer, Parmar, Uszkoreit, Jones, Gomez, Kaiser, Polosukhin 2017,
"Attention is all you need", arXiv:1706.03762).

A sequence is read and written without recurrence: every token looks at all others at once and takes
what it needs, by a softmax over dot products. Several heads look for different things side by side,
and sinusoids added to the embeddings tell where a token stands.

Shapes: B batch, S source tokens, T target tokens, D d_model, H heads, V vocabulary.

Token 0 is padding, after the end of a sentence; masks are True where attention is allowed. No norm
follows the last layer, unless `norm_first`. The paper leaves open: biases (all layers but the last,
which gives its 65 million), initial weights (Glorot's, of embeddings N(0, 1/D)), learned positions
(one table for both sides).
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PAD, START, END, UNKNOWN = range(4)  # the first tokens of every vocabulary


# fmt: off
def attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None):
    """Scaled dot-product attention (Fig. 2, left), written out; also returns the weights.

    `mask` broadcasts to (B, H, T, S). A token that may look nowhere gets zeros, in both.
    """
    scores = query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])  # (B, H, T, S)
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf)
    weights = scores.softmax(-1)
    if mask is not None:  # of nothing but -inf, the softmax is NaN
        weights = weights.masked_fill(~mask.any(-1, keepdim=True), 0)
    return weights @ value, weights                                      # Eq. 1
# fmt: on


def attention_kernel(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: bool):
    """The same in one kernel of torch's, which keeps no weights."""
    if not query.is_cpu or query.dtype != torch.bfloat16:
        return F.scaled_dot_product_attention(query, key, value, mask, is_causal=causal)
    with torch.autocast("cpu", enabled=False):  # in bf16, the backward pass is 8 times as slow
        query, key, value = query.float(), key.float(), value.float()
        heads = F.scaled_dot_product_attention(query, key, value, mask, is_causal=causal)
    return heads.bfloat16()


class MultiHeadAttention(nn.Module):
    """Attention by `num_heads` heads of D / H dimensions each (Fig. 2, right; Sec. 3.2.2).

    With `recording` set, `weights` holds the attention of the last call, (B, H, T, S).
    """

    def __init__(self, d_model: int, num_heads: int):
        super().__init__()
        if d_model % num_heads:
            raise ValueError(f"{num_heads} heads can't share {d_model} dimensions equally")
        self.num_heads = num_heads
        self.query = nn.Linear(d_model, d_model)  # the W^Q of all heads side by side
        self.key_value = nn.Linear(d_model, 2 * d_model)  # W^K and W^V
        self.output = nn.Linear(d_model, d_model)  # W^O
        self.recording, self.weights = False, None

    # fmt: off
    def forward(self, x: Tensor, memory=None, mask=None, causal=False, cache=None) -> Tensor:
        """What `x` (B, T, D) finds in `memory` (B, S, D), or in itself: (B, T, D).

        `mask` broadcasts to (B, H, T, S); `cache` is that of `keys_and_values`.
        """
        query = self.split(self.query(x))                                # (B, H, T, D/H)
        key, value = self.keys_and_values(x, memory, cache)              # (B, H, S, D/H)
        heads = self.attend(query, key, value, mask, causal)             # Eq. 1 in each
        return self.output(heads.transpose(1, 2).flatten(2))             # Concat(heads) W^O
    # fmt: on

    def split(self, x: Tensor) -> Tensor:
        """Gives each head its dimensions: (B, T, D) to (B, H, T, D/H)."""
        return x.unflatten(2, (self.num_heads, -1)).transpose(1, 2)

    def keys_and_values(self, x: Tensor, memory: Tensor | None, cache: dict | None):
        """Both (B, H, S, D/H), of `memory` or of `x` itself.

        A `cache` (at first empty) keeps them: those of a memory for good, those of `x` to be found
        again by the tokens that follow.
        """
        if memory is not None and cache:
            return cache["key"], cache["value"]
        both = self.key_value(x if memory is None else memory).chunk(2, -1)
        key, value = map(self.split, both)
        if memory is None and cache:
            key, value = (torch.cat(p, 2) for p in ((cache["key"], key), (cache["value"], value)))
        if cache is not None:
            cache.update(key=key, value=value)
        return key, value

    def attend(self, query: Tensor, key: Tensor, value: Tensor, mask, causal: bool) -> Tensor:
        """Eq. 1 by the kernel, or written out where its weights are wanted."""
        if not self.recording:
            return attention_kernel(query, key, value, mask, causal)
        if causal:
            mask = query.new_ones(query.shape[2], key.shape[2]).tril().bool()
        heads, self.weights = attention(query, key, value, mask)
        return heads


def feed_forward(d_model: int, d_ff: int) -> nn.Sequential:
    """Two linear layers, at each position alike (Eq. 2)."""
    return nn.Sequential(nn.Linear(d_model, d_ff), nn.ReLU(), nn.Linear(d_ff, d_model))


class Residual(nn.Module):
    """Adds what a sub-layer computes to its input, and normalises (Sec. 3.1, 5.4)."""

    def __init__(self, d_model: int, dropout: float, norm_first: bool):
        super().__init__()
        self.norm, self.dropout = nn.LayerNorm(d_model), nn.Dropout(dropout)
        self.norm_first = norm_first

    def forward(self, x: Tensor, sublayer) -> Tensor:
        """LayerNorm(x + Sublayer(x)); with `norm_first`, x + Sublayer(LayerNorm(x))."""
        if self.norm_first:
            return x + self.dropout(sublayer(self.norm(x)))
        return self.norm(x + self.dropout(sublayer(x)))


class EncoderLayer(nn.Module):
    """Self-attention and feed-forward (Fig. 1, left)."""

    def __init__(self, d_model: int, d_ff: int, num_heads: int, dropout: float, norm_first: bool):
        super().__init__()
        self.attention = MultiHeadAttention(d_model, num_heads)
        self.feed_forward = feed_forward(d_model, d_ff)
        self.residuals = nn.ModuleList(Residual(d_model, dropout, norm_first) for _ in range(2))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, S, D) to (B, S, D)."""
        x = self.residuals[0](x, lambda y: self.attention(y, mask=mask))
        return self.residuals[1](x, self.feed_forward)


class DecoderLayer(nn.Module):
    """Self-attention to earlier tokens, attention to the source, feed-forward (Fig. 1, right)."""

    def __init__(self, d_model: int, d_ff: int, num_heads: int, dropout: float, norm_first: bool):
        super().__init__()
        self.attention = MultiHeadAttention(d_model, num_heads)
        self.cross = MultiHeadAttention(d_model, num_heads)
        self.feed_forward = feed_forward(d_model, d_ff)
        self.residuals = nn.ModuleList(Residual(d_model, dropout, norm_first) for _ in range(3))

    def forward(self, x: Tensor, memory: Tensor, mask: Tensor, cache=(None, None)) -> Tensor:
        """(B, T, D), reading a memory (B, S, D), to (B, T, D)."""
        causal = x.shape[1] > 1  # with a cache one token comes at a time, and may see all in it
        x = self.residuals[0](x, lambda y: self.attention(y, causal=causal, cache=cache[0]))
        x = self.residuals[1](x, lambda y: self.cross(y, memory, mask, cache=cache[1]))
        return self.residuals[2](x, self.feed_forward)


def sinusoids(length: int, d_model: int) -> Tensor:
    """PE(pos, 2i) = sin(pos / 10000^(2i/D)), PE(pos, 2i + 1) = cos of the same (Sec. 3.5)."""
    rates = 10_000.0 ** (-torch.arange(0, d_model, 2, dtype=torch.float64) / d_model)
    angles = torch.arange(length, dtype=torch.float64)[:, None] * rates  # (length, D/2)
    return torch.stack([angles.sin(), angles.cos()], 2).flatten(1)[:, :d_model].float()


class Transformer(nn.Module):
    """Encoder and decoder of `num_layers` layers each (Fig. 1).

    `positions` are "sinusoidal", "learned" or "none"; no sequence is longer than `max_length`.
    """

    def __init__(
        self,
        vocab_size: int,
        d_model: int = 512,
        d_ff: int = 2048,
        num_heads: int = 8,
        num_layers: int = 6,
        dropout: float = 0.1,
        max_length: int = 512,
        positions: str = "sinusoidal",
        norm_first: bool = False,
    ):
        super().__init__()
        self.d_model, self.max_length = d_model, max_length
        # One matrix for source, target and the last layer (Sec. 3.4).
        self.embedding = nn.Embedding(vocab_size, d_model)
        if positions == "learned":  # Table 3, row E
            self.positions = nn.Parameter(torch.randn(max_length, d_model) * d_model**-0.5)
        else:
            table = sinusoids(max_length, d_model) * (positions != "none")
            self.register_buffer("positions", table, persistent=False)
        self.dropout = nn.Dropout(dropout)
        layer = d_model, d_ff, num_heads, dropout, norm_first
        self.encoder = nn.ModuleList(EncoderLayer(*layer) for _ in range(num_layers))
        self.decoder = nn.ModuleList(DecoderLayer(*layer) for _ in range(num_layers))
        norm = nn.LayerNorm if norm_first else nn.Identity
        self.encoder_norm, self.decoder_norm = norm(d_model), norm(d_model)
        nn.init.normal_(self.embedding.weight, std=d_model**-0.5)  # times sqrt(D): std 1
        for name, p in self.named_parameters():
            if name.startswith(("encoder", "decoder")) and p.dim() == 2:
                for matrix in p.detach().chunk(2 if "key_value" in name else 1):
                    nn.init.xavier_uniform_(matrix)
            elif name.endswith("bias"):
                nn.init.zeros_(p)

    def embed(self, tokens: Tensor, start: int = 0) -> Tensor:
        """Tokens (B, T), the first at position `start`, to embeddings (B, T, D) (Sec. 3.4, 3.5)."""
        end = start + tokens.shape[1]
        if end > self.max_length:
            raise ValueError(f"{end} tokens are more than max_length, {self.max_length}")
        x = self.embedding(tokens) * math.sqrt(self.d_model)
        return self.dropout(x + self.positions[start:end])

    def encode(self, source: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (B, S) to the memory (B, S, D) and its mask (B, 1, 1, S)."""
        x, mask = self.embed(source), (source != PAD)[:, None, None]
        for layer in self.encoder:
            x = layer(x, mask)
        return self.encoder_norm(x), mask

    def decode(self, target: Tensor, memory: Tensor, mask: Tensor, cache=None) -> Tensor:
        """Tokens (B, T) and a memory to features (B, T, D); each sees earlier tokens alone.

        That hides the padding, too. With a `cache` (see `Decoding`) the target is one new token.
        """
        cache = cache or [(None, None)] * len(self.decoder)
        x = self.embed(target, cache[0][0]["key"].shape[2] if cache[0][0] else 0)
        for layer, part in zip(self.decoder, cache, strict=True):
            x = layer(x, memory, mask, part)
        return self.decoder_norm(x)

    # fmt: off
    def forward(self, source: Tensor, target: Tensor) -> Tensor:  # (B, S), (B, T)
        """Logits (B, T, V) of the token that follows each target token."""
        memory, mask = self.encode(source)                        # (B, S, D), (B, 1, 1, S)
        x = self.decode(target, memory, mask)                     # (B, T, D)
        return F.linear(x, self.embedding.weight)                 # (B, T, V)
    # fmt: on


# fmt: off
SIZES = {  # Table 3, and ours for one machine; `num_layers` of both stacks
    "base":  dict(d_model=512,  d_ff=2048, num_heads=8,  num_layers=6, dropout=0.1),
    "big":   dict(d_model=1024, d_ff=4096, num_heads=16, num_layers=6, dropout=0.3),
    "small": dict(d_model=128,  d_ff=512,  num_heads=4,  num_layers=4, dropout=0.1),
}
# fmt: on


def transformer_base(vocab_size: int = 37_000, **settings) -> Transformer:
    """Table 3, base; 63,082,496 parameters with 37,000 tokens."""
    return Transformer(vocab_size, **SIZES["base"] | settings)


def transformer_big(vocab_size: int = 37_000, **settings) -> Transformer:
    """Table 3, big; 214,245,376 parameters with 37,000 tokens."""
    return Transformer(vocab_size, **SIZES["big"] | settings)


def transformer_small(vocab_size: int = 6_000, **settings) -> Transformer:
    """Ours, for one machine; 2,619,392 parameters with 6,000 tokens."""
    return Transformer(vocab_size, **SIZES["small"] | settings)


MODELS = {
    "transformer_base": transformer_base,
    "transformer_big": transformer_big,
    "transformer_small": transformer_small,
}
