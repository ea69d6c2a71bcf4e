"""T5 (Raffel, Shazeer, Roberts, Lee, Narang, Matena, Zhou, Li, Liu 2019, "Exploring the limits of
transfer learning with a unified text-to-text transformer", arXiv:1910.10683).

Every task is the same: text in, text out. What is to be done stands in the text, as a prefix
("translate English to German: ..."), so one network, one loss and one way of writing do for
translation, classification and whatever else. It is a Transformer's encoder and decoder, first
trained to fill the gaps of plain text.

Shapes: B batch, S source tokens, T target tokens, D d_model, V vocabulary, H heads.

Beside it stands `PrefixLM`, the paper's other architecture (Fig. 4, right): one stack that sees the
source as a whole and the target from the left.

Token 0 is padding, and is what a target begins with; token 1 ends a text. The paper leaves open
what its code settles, here the same: initial weights, eps of the norms, the size of the buckets.
"Version 1.1" (of the code, 2020) has gated feed-forward layers, narrower ones, and a last layer of
its own, which is not scaled.
"""

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from t5.layers import Cache, Sizes, Stack

PAD, END, UNKNOWN = range(3)  # the first tokens of every vocabulary
START = PAD


class Text2Text(nn.Module):
    """What both architectures have: a table of embeddings, and the last layer.

    `sizes` are what it is built from.
    """

    def __init__(self, sizes: Sizes):
        super().__init__()
        self.sizes = sizes
        self.shared = nn.Embedding(sizes.vocab_size, sizes.d_model)
        nn.init.normal_(self.shared.weight, std=1.0)
        if not sizes.tied:
            self.lm_head = nn.Linear(sizes.d_model, sizes.vocab_size, bias=False)
            nn.init.normal_(self.lm_head.weight, std=sizes.d_model**-0.5)

    def logits(self, x: Tensor) -> Tensor:
        """Features (..., D) to logits (..., V)."""
        if not self.sizes.tied:
            return self.lm_head(x)
        return F.linear(x * self.sizes.d_model**-0.5, self.shared.weight)

    def new_cache(self) -> Cache:
        """A cache of nothing."""
        return [[{}, {}] for _ in range(self.sizes.num_layers)]


class T5(Text2Text):
    """Encoder and decoder (Sec. 2.1; Fig. 4, left)."""

    def __init__(self, sizes: Sizes):
        super().__init__(sizes)
        self.encoder = Stack(sizes, cross=False, bidirectional=True)
        self.decoder = Stack(sizes, cross=True, bidirectional=False)

    def encode(self, source: Tensor) -> tuple[Tensor, Tensor | None]:
        """Tokens (B, S) to the memory (B, S, D) and where it is no padding (B, 1, 1, S), or None
        where none is."""
        real = source != PAD
        whole = not torch.compiler.is_exporting() and real.all()
        mask = None if whole else real[:, None, None]
        return self.encoder(self.shared(source), mask), mask

    def decode(
        self, target: Tensor, memory: Tensor, mask: Tensor | None, cache: Cache | None = None
    ) -> Tensor:
        """Tokens (B, T), after those of the cache, and a memory to features (B, T, D)."""
        before = causal(target.shape[1], target.device) if target.shape[1] > 1 else None
        return self.decoder(self.shared(target), before, memory, mask, cache)

    # fmt: off
    def forward(self, source: Tensor, target: Tensor) -> Tensor:  # (B, S), (B, T)
        """Logits (B, T, V) of the token that follows each target token."""
        memory, mask = self.encode(source)                        # (B, S, D), (B, 1, 1, S)
        x = self.decode(target, memory, mask)                     # (B, T, D)
        return self.logits(x)                                     # (B, T, V)
    # fmt: on


class PrefixLM(Text2Text):
    """One stack that reads source and target as one sequence (Sec. 3.2.1; Fig. 4, right).

    Source tokens see the whole source, target tokens the source and what is left of them; each
    token passes through as many layers as in a `T5` of the same sizes, with half the parameters.
    """

    def __init__(self, sizes: Sizes):
        super().__init__(sizes)
        self.decoder = Stack(sizes, cross=False, bidirectional=True)

    def read(self, source: Tensor, target: Tensor, cache: Cache | None = None) -> Tensor:
        """Tokens (B, S) and (B, T) to features of the target's (B, T, D).

        The padding of sources goes to their left: distances to the target stay what they are.
        """
        (length, size), new = source.shape, target.shape[1]
        source = to_the_right(source)
        tokens = torch.cat([source, target], 1)  # (B, S + T)
        places = torch.arange(size + new, device=tokens.device)
        seen = (places <= places[:, None]) | (places < size)  # (S + T, S + T)
        real = torch.cat([source != PAD, target.new_ones(length, new).bool()], 1)
        mask = seen & real[:, None, None]  # (B, 1, S + T, S + T)
        return self.decoder(self.shared(tokens), mask, cache=cache)[:, size:]

    def go_on(self, source: Tensor, new: Tensor, cache: Cache) -> Tensor:
        """One new token (B, 1), after the sources and those of the cache, to features (B, 1, D)."""
        written = cache[0][0]["key"].shape[2] + 1 - source.shape[1]
        real = to_the_right(source) != PAD
        mask = torch.cat([real, real.new_ones(len(real), written)], 1)[:, None, None]
        return self.decoder(self.shared(new), mask, cache=cache)

    # fmt: off
    def forward(self, source: Tensor, target: Tensor) -> Tensor:  # (B, S), (B, T)
        """Logits (B, T, V) of the token that follows each target token."""
        return self.logits(self.read(source, target))
    # fmt: on


def causal(length: int, device=None) -> Tensor:
    """What tokens see that look to the left and at themselves alone, (T, T)."""
    return torch.ones(length, length, dtype=torch.bool, device=device).tril()


def to_the_right(source: Tensor) -> Tensor:
    """Sources (B, S) with their padding moved from the right end to the left."""
    length = source.shape[1]
    empty = (source == PAD).sum(1, keepdim=True)
    places = torch.arange(length, device=source.device) - empty  # below 0: padding
    return source.gather(1, places.clamp(min=0)).masked_fill(places < 0, PAD)


# fmt: off
SIZES = {  # Sec. 3.7 (3b, 11b: heads and widths of Table 14's), the released version 1.1, and ours
    "small": dict(d_model=512,  num_layers=6,  num_heads=8,   d_kv=64,  d_ff=2048),
    "base":  dict(d_model=768,  num_layers=12, num_heads=12,  d_kv=64,  d_ff=3072),
    "large": dict(d_model=1024, num_layers=24, num_heads=16,  d_kv=64,  d_ff=4096),
    "3b":    dict(d_model=1024, num_layers=24, num_heads=32,  d_kv=128, d_ff=16_384),
    "11b":   dict(d_model=1024, num_layers=24, num_heads=128, d_kv=128, d_ff=65_536),
    "v1_1_small": dict(d_model=512, num_layers=8,  num_heads=6,  d_kv=64, d_ff=1024),
    "v1_1_base":  dict(d_model=768, num_layers=12, num_heads=12, d_kv=64, d_ff=2048),
    "mini":  dict(d_model=192,  num_layers=3,  num_heads=6,   d_kv=32,  d_ff=768),
    "tiny":  dict(d_model=128,  num_layers=2,  num_heads=4,   d_kv=32,  d_ff=512),
}
# fmt: on
ARCHITECTURES = {"encoder-decoder": T5, "prefix-lm": PrefixLM}


def build(
    name: str, vocab_size: int, architecture: str = "encoder-decoder", **settings
) -> Text2Text:
    """A network of one of the named `SIZES`, of which `settings` change some."""
    return ARCHITECTURES[architecture](Sizes(vocab_size, **SIZES[name] | settings))


def t5_small(vocab_size: int = 32_128, **settings) -> Text2Text:
    """Sec. 3.7, small; 60,506,624 parameters."""
    return build("small", vocab_size, **settings)


def t5_base(vocab_size: int = 32_128, **settings) -> Text2Text:
    """Sec. 3.1.1, the baseline; 222,903,552 parameters."""
    return build("base", vocab_size, **settings)


def t5_large(vocab_size: int = 32_128, **settings) -> Text2Text:
    """Sec. 3.7, large; 737,668,096 parameters."""
    return build("large", vocab_size, **settings)


def t5_3b(vocab_size: int = 32_128, **settings) -> Text2Text:
    """Sec. 3.7, 3B; 2,851,598,336 parameters."""
    return build("3b", vocab_size, **settings)


def t5_11b(vocab_size: int = 32_128, **settings) -> Text2Text:
    """Sec. 3.7, 11B; 11,307,321,344 parameters."""
    return build("11b", vocab_size, **settings)


V1_1 = dict(gated=True, tied=False)


def t5_v1_1_small(vocab_size: int = 32_128, **settings) -> Text2Text:
    """Version 1.1, small; 76,961,152 parameters."""
    return build("v1_1_small", vocab_size, **V1_1 | settings)


def t5_v1_1_base(vocab_size: int = 32_128, **settings) -> Text2Text:
    """Version 1.1, base; 247,577,856 parameters."""
    return build("v1_1_base", vocab_size, **V1_1 | settings)


def t5_mini(vocab_size: int = 8_192, **settings) -> Text2Text:
    """Ours, meant for an hour of one machine; 4,673,088 parameters with 8,192 tokens."""
    return build("mini", vocab_size, **settings)


def t5_tiny(vocab_size: int = 1_024, **settings) -> Text2Text:
    """Ours, for minutes of one machine; 1,050,368 parameters with 1,024 tokens."""
    return build("tiny", vocab_size, **settings)


def describe(model: Text2Text) -> dict:
    """The network as plain values, which a checkpoint keeps; `rebuild` makes it of them."""
    kind = next(name for name, made in ARCHITECTURES.items() if type(model) is made)
    sizes = dataclasses.asdict(model.sizes)
    del sizes["dropout"]
    return {"architecture": kind, **sizes}


def rebuild(network: dict, dropout: float = 0.0) -> Text2Text:
    """The network that `describe` describes."""
    sizes = dict(network)
    return ARCHITECTURES[sizes.pop("architecture")](Sizes(**sizes, dropout=dropout))


MODELS = {
    "t5_small": t5_small,
    "t5_base": t5_base,
    "t5_large": t5_large,
    "t5_3b": t5_3b,
    "t5_11b": t5_11b,
    "t5_v1_1_small": t5_v1_1_small,
    "t5_v1_1_base": t5_v1_1_base,
    "t5_mini": t5_mini,
    "t5_tiny": t5_tiny,
}
