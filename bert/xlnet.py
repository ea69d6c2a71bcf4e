"""XLNet (Yang, Dai, Yang, Carbonell, Salakhutdinov, Le 2019, "XLNet: Generalized autoregressive
pretraining for language understanding", arXiv:1906.08237).

A language model that predicts tokens one after another, but in an order drawn anew for each text:
so every token learns to use what stands before and after it, and the probability of a text is still
a product, without [MASK] and without taking hidden words for independent. Text stays in its place;
what is drawn is who may see whom.

Shapes: B batch, T tokens (padded), M remembered tokens, S = M + T, P places that are predicted of a
sequence (padded), N of all sequences, H heads, d dimensions of a head, D d_model, V vocabulary, K
classes.

Parameters bear the names of the released weights (`transformer.layer.0.rel_attn.q`). Departures:
special tokens are seen by all; the order is drawn over the whole sequence, and all rows are read
forwards (the authors draw it in halves of 256 tokens, and half of their rows run backwards). The
GELU is exact, where the released code approximates it by tanh.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bert.examples import (
    Document,
    Example,
    Masked,
    Random,
    Special,
    candidates,
    cleaned,
    fit,
    hide,
    joined,
)
from bert.layers import (
    Dropout,
    FineTuned,
    Pretrained,
    Sizes,
    accuracy,
    drop_values,
    first_weights,
    gelu,
)
from bert.original import draw_pairs

PARTS = 6  # K: one token of so many is predicted (Sec. 2.3, 3.1)
MOST_TOKENS = 5  # of a span that is predicted

# ---------------------------------------------------------------------- the network


class Sight(NamedTuple):
    """What the queries of a stream see of the keys, and how these lie to them.

    `mask` (B, Q, S) is True where a query sees a key, `differs` (B, Q, S) where it is of another
    segment, and `places` (B, Q) are those of the queries; None are all T.
    """

    mask: Tensor
    differs: Tensor
    places: Tensor | None = None


# fmt: off
class RelativeAttention(nn.Module):
    """Attention that knows how far away a token is, and not where (Transformer-XL; Sec. 2.4)."""

    def __init__(self, sizes: Sizes):
        super().__init__()
        width, heads = sizes.d_model, sizes.num_heads
        shape = width, heads, width // heads
        for name in "qkvor":
            self.register_parameter(name, nn.Parameter(torch.empty(shape)))
        for name in ("r_w_bias", "r_r_bias", "r_s_bias"):
            self.register_parameter(name, nn.Parameter(torch.empty(shape[1:])))
        self.seg_embed = nn.Parameter(torch.empty(2, *shape[1:]))        # same segment, another
        self.layer_norm = nn.LayerNorm(width, sizes.eps)
        self.drop, self.dropout = Dropout(sizes.dropout), sizes.weights_dropout

    def project(self, x: Tensor, weight: Tensor) -> Tensor:
        """(B, T, D) to (B, H, T, d)."""
        return F.linear(x, weight.flatten(1).T).unflatten(-1, weight.shape[1:]).transpose(1, 2)

    def forward(self, streams: list[Tensor], sights: list[Sight], known: Tensor, far: Tensor,
                maps: list[Tensor] | None = None) -> list[Tensor]:
        """Streams (B, Q, D), whose queries look at what is `known` (B, S, D), to the same.

        `far` (1, S + T, D) are the embeddings of distances S, …, 1 - T.
        """
        key, value = self.project(known, self.k), self.project(known, self.v)      # (B, H, S, d)
        distance = self.project(far, self.r)                             # (1, H, S + T, d)
        length = far.shape[1] - known.shape[1]
        found = []
        for x, sight in zip(streams, sights, strict=True):
            query = self.project(x, self.q)                              # (B, H, Q, d)
            scores = (query + self.r_w_bias[:, None]) @ key.transpose(2, 3)        # (B, H, Q, S)
            by_distance = (query + self.r_r_bias[:, None]) @ distance.transpose(2, 3)
            scores = scores + shifted(by_distance, length, key.shape[2], sight.places)
            same, other = ((query + self.r_s_bias[:, None]) @ e[:, :, None] for e in self.seg_embed)
            scores = scores + torch.where(sight.differs[:, None], other, same)
            weights = seen_softmax(scores / math.sqrt(query.shape[-1]), sight.mask[:, None])
            if maps is not None:
                maps.append(weights)
            weights = drop_values(weights, self.dropout if self.training else 0.0)
            heads = (weights @ value).transpose(1, 2).flatten(2)         # (B, Q, H d)
            found.append(self.layer_norm(x + self.drop(F.linear(heads, self.o.flatten(1)))))
        return found
# fmt: on


def shifted(scores: Tensor, length: int, keys: int, places: Tensor | None) -> Tensor:
    """Scores by distance (B, H, Q, S + T), from far before on, to those by key (B, H, Q, S).

    A query at place i finds key j at the index T - i + j. With all T queries in a row, that is to
    cut the first T scores off, and to read on in rows that are shorter by one.
    """
    if places is None:
        flat = scores.flatten(2)[:, :, length:]
        return flat.unflatten(2, (length, -1))[..., :keys]
    index = length - places[:, :, None] + torch.arange(keys, device=scores.device)  # (B, Q, S)
    return scores.gather(3, index[:, None].expand(-1, scores.shape[1], -1, -1))


def seen_softmax(scores: Tensor, mask: Tensor) -> Tensor:
    """Softmax over what is seen; zeros for who sees nothing, as the first token of an order does.

    An even share of everything would let it see, of all tokens, its own.
    """
    nothing = ~mask.any(-1, keepdim=True)
    weights = scores.masked_fill(~(mask | nothing), -math.inf).softmax(-1)
    return weights.masked_fill(nothing, 0)


class FeedForward(nn.Module):
    """Two linear layers around a GELU, added and then normalised."""

    def __init__(self, sizes: Sizes):
        super().__init__()
        self.layer_1 = nn.Linear(sizes.d_model, sizes.d_ff)
        self.layer_2 = nn.Linear(sizes.d_ff, sizes.d_model)
        self.layer_norm = nn.LayerNorm(sizes.d_model, sizes.eps)
        self.drop = Dropout(sizes.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) to (..., D)."""
        inner = self.drop(gelu(self.layer_1(x)))
        return self.layer_norm(x + self.drop(self.layer_2(inner)))


class Layer(nn.Module):
    """Attention and feed-forward, with the same weights for each stream (Fig. 1)."""

    def __init__(self, sizes: Sizes):
        super().__init__()
        self.rel_attn = RelativeAttention(sizes)
        self.ff = FeedForward(sizes)

    def forward(self, streams: list[Tensor], *how) -> list[Tensor]:
        """Streams (B, Q, D) to the same; see RelativeAttention."""
        return [self.ff(x) for x in self.rel_attn(streams, *how)]


class Encoder(nn.Module):
    """Embeddings and layers, for one stream or two (Fig. 1, c)."""

    def __init__(self, sizes: Sizes, num_memory: int):
        super().__init__()
        self.pad, self.num_memory = sizes.pad, num_memory
        self.word_embedding = nn.Embedding(sizes.vocab_size, sizes.d_model)
        self.mask_emb = nn.Parameter(torch.empty(1, 1, sizes.d_model))  # g at the beginning
        self.layer = nn.ModuleList(Layer(sizes) for _ in range(sizes.num_layers))
        self.drop = Dropout(sizes.dropout)

    def forward(
        self,
        tokens: Tensor,
        segments: Tensor | None = None,
        ranks: Tensor | None = None,
        places: Tensor | None = None,
        memory: list[Tensor] | None = None,
        maps: list[Tensor] | None = None,
    ) -> tuple[Tensor, list[Tensor] | None]:
        """The content of all tokens (B, T, D), zeros at the padding; or with `places` (B, P) what
        is known there without it (B, P, D). And the memory then.

        `ranks` (B, T) say when a token's turn is in the order, -1 that all see it (all of them, if
        none are given). `memory` has the input of each layer for the tokens before (B, M, D).
        """
        real = tokens != self.pad
        segments = torch.zeros_like(tokens) if segments is None else segments
        ranks = torch.full_like(tokens, -1) if ranks is None else ranks
        past = memory[0].shape[1] if memory else 0
        before = (ranks[:, None] < ranks[:, :, None]) | (ranks[:, None] == -1)  # (B, T, T)
        before = F.pad(before & real[:, None], (past, 0), value=True)  # (B, T, S)
        itself = F.pad(
            torch.eye(tokens.shape[1], dtype=torch.bool, device=tokens.device), (past, 0)
        )
        differs = F.pad(segments, (past, 0))[:, None] != segments[:, :, None]  # (B, T, S)
        streams, sights = [self.word_embedding(tokens)], [Sight(before | itself, differs)]
        if places is not None:  # Eq. 4: g knows a place, and not what stands there
            streams.append(self.mask_emb.expand(*places.shape, -1).to(streams[0].dtype))
            rows = torch.arange(len(tokens), device=tokens.device)[:, None]
            sights.append(Sight(before[rows, places], differs[rows, places], places))
        far = self.drop(distances(past, tokens.shape[1], streams[0])[None])
        streams, kept = [self.drop(x) for x in streams], []
        for number, layer in enumerate(self.layer):
            known = torch.cat([memory[number], streams[0]], 1) if memory else streams[0]
            if self.num_memory:
                kept.append(known[:, -self.num_memory :].detach())
            if places is not None and number == len(self.layer) - 1:  # no one asks for content
                streams, sights = streams[1:], sights[1:]
            streams = layer(streams, sights, known, far, maps)
        found = self.drop(streams[0])
        if places is None:
            found = found.masked_fill(~real[:, :, None], 0)
        return found, kept or None


def distances(past: int, length: int, like: Tensor) -> Tensor:
    """Sinusoids of the distances from M + T down to 1 - T: (M + 2T, D), sines before cosines."""
    width, how = like.shape[-1], dict(dtype=like.dtype, device=like.device)
    rates = 10_000.0 ** (-torch.arange(0, width, 2, **how) / width)
    angles = torch.arange(past + length, -length, -1, **how)[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], 1)


class Bias(nn.Module):
    """A number for each word, which the released weights name so."""

    def __init__(self, vocab_size: int):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(vocab_size))


class Outputs(NamedTuple):
    """Logits (N, V), and the memory of each layer (B, M, D), where there is one."""

    logits: Tensor
    memory: list[Tensor] | None = None
    labels: None = None


class XLNet(Pretrained):
    """The encoder, and logits by the table of embeddings.

    With `num_memory` it remembers the inputs of its layers for so many tokens, without gradient, as
    keys for the text that goes on (Sec. 2.4, segment recurrence). Raises ValueError for an odd
    d_model, as each distance is as many sines as cosines.
    """

    family = "xlnet"

    def __init__(self, sizes: Sizes, num_memory: int = 0):
        if sizes.d_model % 2:
            raise ValueError(f"{sizes.d_model} dimensions aren't as many sines as cosines")
        super().__init__(sizes, num_memory=num_memory)
        self.transformer = Encoder(sizes, num_memory)
        self.lm_loss = Bias(sizes.vocab_size)
        first_weights(self)
        for name, p in self.named_parameters():
            if name.endswith(("_bias", "seg_embed")):
                nn.init.normal_(p, std=0.02)

    def features(self, tokens: Tensor, segments=None, maps=None) -> Tensor:
        """The content of all tokens, which see each other: (B, T) to (B, T, D)."""
        return self.transformer(tokens, segments, maps=maps)[0]

    # fmt: off
    def forward(self, tokens: Tensor, segments: Tensor, places: Tensor, ranks: Tensor,
                memory: list[Tensor] | None = None) -> Outputs:
        """Tokens, segments and ranks (B, T), and the places (N,) to predict, counted through all
        rows; the outputs' memory is for the batch whose rows go on with these."""
        rows = places // tokens.shape[1]                                 # (N,)
        counts = rows.bincount(minlength=len(tokens))                    # (B,)
        order = rows.argsort(stable=True)
        slots = torch.empty_like(places)                                 # of a row, from 0 on
        first = counts.cumsum(0) - counts
        slots[order] = torch.arange(len(places), device=places.device) - first[rows[order]]
        grid = places.new_zeros(len(tokens), int(counts.max()))          # (B, P)
        grid[rows, slots] = places % tokens.shape[1]
        guess, memory = self.transformer(tokens, segments, ranks, grid, memory)
        table = self.transformer.word_embedding.weight
        return Outputs(F.linear(guess[rows, slots], table, self.lm_loss.bias), memory)
    # fmt: on

    def fill(self, tokens: Tensor, places: Tensor, segments: Tensor | None = None) -> Tensor:
        """Logits (N, V) of what stands at the places, which see all tokens but these."""
        ranks = torch.full_like(tokens, -1)
        ranks.view(-1)[places] = 0
        return self(tokens, segments, places, ranks).logits

    def figures(self, outputs: Outputs, targets: Tensor, counts: Tensor, labels=None) -> dict:
        """By name a sum and its count: nats and share right of the predicted words."""
        return accuracy("masked", outputs.logits, targets)

    def classifier(self, num_classes: int, dropout: float = 0.1) -> "Classifier":
        """A network to fine-tune, on this encoder."""
        return Classifier(self, num_classes, dropout)


class Summary(nn.Module):
    """A new layer on the last token."""

    def __init__(self, d_model: int):
        super().__init__()
        self.summary = nn.Linear(d_model, d_model)

    def forward(self, last: Tensor) -> Tensor:
        """(B, D) to (B, D)."""
        return self.summary(last).tanh()


class Classifier(FineTuned):
    """The encoder and two new layers on the last token, <cls>."""

    def __init__(self, model: XLNet, num_classes: int, dropout: float = 0.1):
        super().__init__(model, "transformer")
        self.sequence_summary, self.drop = Summary(model.d_model), Dropout(dropout)
        self.logits_proj = nn.Linear(model.d_model, num_classes)
        first_weights(self.sequence_summary)
        first_weights(self.logits_proj)

    def features(self, tokens: Tensor, segments=None, maps=None) -> Tensor:
        """The encoder alone: (B, T) to (B, T, D)."""
        return self.transformer(tokens, segments, maps=maps)[0]

    def pool(self, features: Tensor, tokens: Tensor) -> Tensor:
        """Features (B, T, D) to what stands for the whole text (B, D)."""
        places = torch.arange(tokens.shape[1], device=tokens.device)
        last = (places * (tokens != self.pad)).argmax(1)
        rows = torch.arange(len(tokens), device=tokens.device)
        return self.sequence_summary(features[rows, last])

    def answer(self, pooled: Tensor) -> Tensor:
        """That (B, D) to logits (B, K)."""
        return self.logits_proj(self.drop(pooled))


# ---------------------------------------------------------------------- what it learns from


def join(a: list[int], b: list[int] | None, special: Special, length: int) -> Example:
    """a <sep> <cls>, or a <sep> b <sep> <cls>, in segments 0, 1 and 2 (Sec. 2.5).

    Where that is longer than `length`, the longer of both loses tokens from its end.
    """
    a, b = fit(a, b or [], length - 3 if b is not None else length - 2)
    second = [*b, special.sep] if b else []
    tokens = [*a, special.sep, *second, special.cls]
    return Example(tokens, [0] * (len(a) + 1) + [1] * len(second) + [2])


def two_contexts(
    documents: list[Document], length: int, special: Special, random: Random, apart: float = 0.5
) -> list[Example]:
    """Two pieces of text as one sequence (Sec. 2.5), a share `apart` of them from two documents.

    There is no label, and none of them is short, as some of BERT's are. Raises ValueError if that
    needs a second document, and there is none.
    """
    documents = cleaned(documents)
    if len(documents) < 2 and apart:
        raise ValueError("a random second sentence needs at least two documents")
    return [
        join(a, b or None, special, length)
        for number in range(len(documents))
        for a, b, _ in draw_pairs(documents, number, length - 3, random, short=0.0, apart=apart)
    ]


def streams(
    documents: list[Document], rows: int, length: int, special: Special
) -> list[list[Example]]:
    """Batches of `rows` examples, of which each goes on where its row ended in the batch before:
    what memory needs. A separator stands between documents; what is left over is dropped."""
    parts = [joined(document) for document in cleaned(documents)]
    text = joined([[*part, special.sep] for part in parts])[:-1]
    step = length - 2
    count = len(text) // (rows * step)
    return [
        [
            join(text[begin : begin + step], None, special, length)
            for begin in range(batch * step, rows * count * step, count * step)
        ]
        for batch in range(count)
    ]


def permute(example: Example, special: Special, random: Random) -> Masked:
    """Draws which tokens are predicted, one of `PARTS`, and in which order; no token is changed.

    Sec. 2.3, partial prediction: the others come before them in every order. They lie in spans of
    one to five tokens, n with a probability that falls as 1/n, each anywhere in `PARTS` times its
    length.
    """
    free = candidates(example, special)
    number = min(len(free), max(1, len(example.tokens) // PARTS))
    places: list[int] = []
    cursor, lengths, allowed = 0, range(1, MOST_TOKENS + 1), set(free)
    while cursor < len(example.tokens) and len(places) < number:
        (n,) = random.choices(lengths, [1 / n for n in lengths])
        n = min(n, number - len(places))
        begin = cursor + random.randint(0, (PARTS - 1) * n)
        places += [place for place in range(begin, begin + n) if place in allowed]
        cursor += PARTS * n
    places += random.sample(sorted(allowed.difference(places)), number - len(places))
    ranks = [-1] * len(example.tokens)
    for rank, place in enumerate(random.sample(places, number)):
        ranks[place] = rank
    return hide(example, places, lambda token: token)._replace(ranks=ranks)


# fmt: off
SIZES = {  # Sec. 3.1: BERT's; the small ones are ours
    "xlnet_base":  dict(d_model=768,  num_layers=12, num_heads=12, d_ff=3072),
    "xlnet_large": dict(d_model=1024, num_layers=24, num_heads=16, d_ff=4096),
    "xlnet_mini":  dict(d_model=256,  num_layers=4,  num_heads=4,  d_ff=1024, context=128),
    "xlnet_tiny":  dict(d_model=128,  num_layers=2,  num_heads=2,  d_ff=512,  context=128),
}
# fmt: on
for name, own in SIZES.items():
    own["pad"] = 5
    if name in ("xlnet_mini", "xlnet_tiny"):  # attention's weights stay whole, for speed
        own["attention_dropout"] = 0.0


def xlnet_base(vocab_size: int = 32_000, num_memory: int = 0, **settings) -> XLNet:
    """116,718,336 parameters in the encoder; 116,750,336 with the bias of its words."""
    return XLNet(Sizes(vocab_size, **SIZES["xlnet_base"] | settings), num_memory)


def xlnet_large(vocab_size: int = 32_000, num_memory: int = 0, **settings) -> XLNet:
    """360,268,800 parameters in the encoder; 360,300,800 with the bias of its words."""
    return XLNet(Sizes(vocab_size, **SIZES["xlnet_large"] | settings), num_memory)


def xlnet_mini(vocab_size: int = 8192, num_memory: int = 0, **settings) -> XLNet:
    """For an hour of one machine; 5,527,808 parameters with 8,192 tokens."""
    return XLNet(Sizes(vocab_size, **SIZES["xlnet_mini"] | settings), num_memory)


def xlnet_tiny(vocab_size: int = 2048, num_memory: int = 0, **settings) -> XLNet:
    """For minutes of one machine; 693,888 parameters with 2,048 tokens."""
    return XLNet(Sizes(vocab_size, **SIZES["xlnet_tiny"] | settings), num_memory)
