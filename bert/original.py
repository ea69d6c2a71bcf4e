"""BERT (Devlin, Chang, Lee, Toutanova 2018, "BERT: Pre-training of deep bidirectional transformers
for language understanding", arXiv:1810.04805).

A Transformer's encoder reads text from both sides at once. It learns by filling in words that were
hidden from it, and by telling whether one piece of text followed another; then the whole of it is
fine-tuned, with one new layer, for whatever is to be said of a sentence or a pair.

Shapes: B batch, T tokens (padded), R real tokens in all, N hidden tokens in all, D d_model,
E d_embedding, V vocabulary, K classes.

Parameters bear the names of the released weights (`bert.encoder.layer.0.attention.self.query`).
Departures: logits are computed at hidden tokens alone. A random word is never padding. The loss of
a pair counts as much as the hidden tokens of its example, so that a batch can be cut anywhere; with
equally long examples that is the paper's sum of two means. A tenth of the pairs is short, where
the released code has a tenth of the documents give short pairs. The GELU is exact, where that code
approximates it by tanh.
"""

from collections.abc import Iterator
from functools import partial
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
    thirds,
    words_but,
)
from bert.layers import (
    Dropout,
    FineTuned,
    Pretrained,
    Rows,
    Sizes,
    accuracy,
    attention,
    attention_kernel,
    first_weights,
    gelu,
)

SHARE = 0.15  # of the tokens are hidden (Sec. 3.1)

# ---------------------------------------------------------------------- the network


class Embeddings(nn.Module):
    """The sum of what is known of a token, its place and its segment, normalised (Fig. 2)."""

    def __init__(self, sizes: Sizes, num_places: int | None = None):
        super().__init__()
        width = sizes.d_embedding
        self.word_embeddings = nn.Embedding(sizes.vocab_size, width)
        self.position_embeddings = nn.Embedding(num_places or sizes.context, width)
        self.token_type_embeddings = nn.Embedding(sizes.num_segments, width)
        self.LayerNorm = nn.LayerNorm(width, sizes.eps)
        self.drop = Dropout(sizes.dropout)

    def forward(self, tokens: Tensor, places: Tensor, segments: Tensor) -> Tensor:
        """(R,) each to (R, E)."""
        x = self.word_embeddings(tokens) + self.position_embeddings(places)
        return self.drop(self.LayerNorm(x + self.token_type_embeddings(segments)))


class SelfAttention(nn.Module):
    """Every token looks at all others of its sequence, before and after it."""

    def __init__(self, sizes: Sizes):
        super().__init__()
        self.num_heads, self.dropout = sizes.num_heads, sizes.weights_dropout
        for name in ("query", "key", "value"):
            self.add_module(name, nn.Linear(sizes.d_model, sizes.d_model))

    def forward(self, x: Tensor, rows: Rows, maps: list[Tensor] | None = None) -> Tensor:
        """(R, D) to (R, D); appends the weights (B, H, T, T) to `maps`, if that is given."""
        parts = (rows.spread(layer(x)) for layer in (self.query, self.key, self.value))
        parts = [p.unflatten(2, (self.num_heads, -1)).transpose(1, 2) for p in parts]
        if maps is None:
            heads = attention_kernel(*parts, rows.mask, self.dropout if self.training else 0.0)
        else:
            heads, weights = attention(*parts, rows.mask)
            maps.append(weights)
        return rows.pack(heads.transpose(1, 2).flatten(2))


class AddNorm(nn.Module):
    """A linear layer, whose output is added to what the block began with, and normalised."""

    def __init__(self, inner: int, sizes: Sizes):
        super().__init__()
        self.dense = nn.Linear(inner, sizes.d_model)
        self.LayerNorm = nn.LayerNorm(sizes.d_model, sizes.eps)
        self.drop = Dropout(sizes.dropout)

    def forward(self, x: Tensor, before: Tensor) -> Tensor:
        """(R, inner) and (R, D) to (R, D)."""
        return self.LayerNorm(before + self.drop(self.dense(x)))


class Attention(nn.Module):
    """The first half of a layer."""

    def __init__(self, sizes: Sizes):
        super().__init__()
        self.self = SelfAttention(sizes)
        self.output = AddNorm(sizes.d_model, sizes)

    def forward(self, x: Tensor, rows: Rows, maps: list[Tensor] | None = None) -> Tensor:
        """(R, D) to (R, D)."""
        return self.output(self.self(x, rows, maps), x)


class Dense(nn.Module):
    """A linear layer that the released weights call `dense`."""

    def __init__(self, inner: int, outer: int):
        super().__init__()
        self.dense = nn.Linear(inner, outer)

    def forward(self, x: Tensor) -> Tensor:
        """(..., inner) to (..., outer)."""
        return self.dense(x)


class Layer(nn.Module):
    """Attention and feed-forward, each added and then normalised, as in the Transformer of 2017."""

    def __init__(self, sizes: Sizes):
        super().__init__()
        self.attention = Attention(sizes)
        self.intermediate = Dense(sizes.d_model, sizes.d_ff)
        self.output = AddNorm(sizes.d_ff, sizes)

    def forward(self, x: Tensor, rows: Rows, maps: list[Tensor] | None = None) -> Tensor:
        """(R, D) to (R, D)."""
        x = self.attention(x, rows, maps)
        return self.output(gelu(self.intermediate(x)), x)


class Stack(nn.Module):
    """The layers, one after another."""

    def __init__(self, sizes: Sizes):
        super().__init__()
        self.layer = nn.ModuleList(Layer(sizes) for _ in range(sizes.num_layers))

    def forward(self, x: Tensor, rows: Rows, maps: list[Tensor] | None = None) -> Tensor:
        """(R, D) to (R, D)."""
        for layer in self.layer:
            x = layer(x, rows, maps)
        return x


class Encoder(nn.Module):
    """Embeddings, layers, and with `pooler` one more on the first token, for the whole text.

    With `offset` places are counted over real tokens, and begin with that number (RoBERTa). Of
    another width than D, embeddings are projected (ELECTRA).
    """

    def __init__(self, sizes: Sizes, pooler: bool, offset: int | None = None):
        super().__init__()
        self.context, self.pad, self.offset = sizes.context, sizes.pad, offset
        self.embeddings = Embeddings(sizes, sizes.context + (offset or 0))
        widths = sizes.d_embedding, sizes.d_model
        self.embeddings_project = nn.Linear(*widths) if len({*widths}) > 1 else nn.Identity()
        self.encoder = Stack(sizes)
        if pooler:
            self.pooler = Dense(sizes.d_model, sizes.d_model)

    # fmt: off
    def forward(self, tokens: Tensor, segments: Tensor | None = None,
                maps: list[Tensor] | None = None, real: Tensor | None = None) -> Tensor:
        """Tokens (B, T), and the segments they are of (0, if none are given), to (B, T, D).

        `real` (B, T) is True where a token is no padding, by default where it isn't `pad`; padding
        comes back as zeros. Raises ValueError for more tokens than the context.
        """
        rows = Rows(tokens != self.pad if real is None else real)
        places = count_places(rows.real, self.context, self.offset)
        segments = torch.zeros_like(tokens) if segments is None else segments
        x = self.embeddings(*map(rows.pack, (tokens, places, segments)))  # (R, E)
        x = self.encoder(self.embeddings_project(x), rows, maps)          # (R, D)
        return rows.spread(x)                                             # (B, T, D)
    # fmt: on

    def pooled(self, features: Tensor) -> Tensor:
        """Features (B, T, D) to what stands for the whole text (B, D): C, behind a tanh."""
        return self.pooler(features[:, 0]).tanh()


def count_places(real: Tensor, context: int, offset: int | None = None) -> Tensor:
    """The number of each place (B, T); with `offset` of those that are `real`, beginning there.

    Raises ValueError for more places than the context.
    """
    length = real.shape[1]
    if length > context:
        raise ValueError(f"{length} tokens are more than the context, {context}")
    if offset is None:
        return torch.arange(length, device=real.device).expand_as(real)
    return real.cumsum(1) - 1 + offset


class Transform(nn.Module):
    """A last layer of its own before the words are predicted."""

    def __init__(self, sizes: Sizes):
        super().__init__()
        self.dense = nn.Linear(sizes.d_model, sizes.d_model)
        self.LayerNorm = nn.LayerNorm(sizes.d_model, sizes.eps)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) to (..., D)."""
        return self.LayerNorm(gelu(self.dense(x)))


class Predictions(nn.Module):
    """Logits of the hidden words, by the table of embeddings and a bias for each word."""

    def __init__(self, sizes: Sizes):
        super().__init__()
        self.transform = Transform(sizes)
        self.bias = nn.Parameter(torch.zeros(sizes.vocab_size))

    def forward(self, x: Tensor, table: Tensor) -> Tensor:
        """(..., D) and a table (V, D) to (..., V)."""
        return F.linear(self.transform(x), table, self.bias)


class Heads(nn.Module):
    """What pre-training asks for: hidden words, and with `pairs` whether B follows A."""

    def __init__(self, sizes: Sizes, pairs: bool):
        super().__init__()
        self.predictions = Predictions(sizes)
        if pairs:
            self.seq_relationship = nn.Linear(sizes.d_model, 2)


class Outputs(NamedTuple):
    """Logits of the words at the places, (N, V) or of all (B, T, V), and of the sentences' label,
    (B, 2), where there is one."""

    logits: Tensor
    labels: Tensor | None = None


class BERT(Pretrained):
    """The encoder and both heads of pre-training (Fig. 1, left); without `pairs` that of words
    alone."""

    family = "bert"

    def __init__(self, sizes: Sizes, pairs: bool = True):
        super().__init__(sizes, pairs=pairs)
        self.bert = Encoder(sizes, pooler=pairs)
        self.cls = Heads(sizes, pairs)
        first_weights(self)

    def features(self, tokens: Tensor, segments=None, maps=None) -> Tensor:
        """The encoder alone: (B, T) to (B, T, D)."""
        return self.bert(tokens, segments, maps)

    # fmt: off
    def forward(self, tokens: Tensor, segments=None, places: Tensor | None = None) -> Outputs:
        """Tokens and segments (B, T), and the places (N,) to predict, counted through all rows."""
        x = self.bert(tokens, segments)                                  # (B, T, D)
        chosen = x if places is None else x.flatten(0, 1)[places]        # (N, D)
        logits = self.cls.predictions(chosen, self.bert.embeddings.word_embeddings.weight)
        pairs = self.cls.seq_relationship(self.bert.pooled(x)) if self.settings["pairs"] else None
        return Outputs(logits, pairs)
    # fmt: on

    def figures(self, outputs: Outputs, targets: Tensor, counts: Tensor, labels=None) -> dict:
        """By name a sum and its count: nats and share right of words, and of pairs."""
        found = accuracy("masked", outputs.logits, targets)
        return found if labels is None else found | accuracy("pair", outputs.labels, labels)

    def classifier(self, num_classes: int, dropout: float = 0.1) -> "Classifier":
        """A network to fine-tune, on this encoder."""
        return Classifier(self, num_classes, dropout)


class Classifier(FineTuned):
    """The encoder and one new layer on the pooled first token (Fig. 4, a and b)."""

    def __init__(self, model: BERT, num_classes: int, dropout: float = 0.1):
        super().__init__(model, "bert")
        if not hasattr(self.bert, "pooler"):  # pre-trained without pairs
            self.bert.pooler = Dense(model.d_model, model.d_model)
            first_weights(self.bert.pooler)
        self.drop = Dropout(dropout)
        self.classifier = nn.Linear(model.d_model, num_classes)
        first_weights(self.classifier)

    def pool(self, features: Tensor, tokens: Tensor) -> Tensor:
        """Features (B, T, D) to what stands for the whole text (B, D): C."""
        return self.bert.pooled(features)

    def answer(self, pooled: Tensor) -> Tensor:
        """That (B, D) to logits (B, K)."""
        return self.classifier(self.drop(pooled))


# ---------------------------------------------------------------------- what it learns from


def join(a: list[int], b: list[int] | None, special: Special, length: int) -> Example:
    """[CLS] a [SEP], or [CLS] a [SEP] b [SEP], in segments 0 and 1 (Fig. 2).

    Where that is longer than `length`, the longer of both loses tokens from its end.
    """
    a, b = fit(a, b or [], length - 3 if b is not None else length - 2)
    second = [*b, special.sep] if b else []
    tokens = [special.cls, *a, special.sep, *second]
    return Example(tokens, [0] * (len(a) + 2) + [1] * len(second))


def segment_pairs(
    documents: list[Document], length: int, special: Special, random: Random
) -> list[Example]:
    """Pairs of which the second followed the first, label 0, or is from anywhere else, label 1.

    Sec. 3.1, Task 2 and A.2. Raises ValueError for fewer than two documents.
    """
    documents = cleaned(documents)
    if len(documents) < 2:
        raise ValueError("a random second sentence needs at least two documents")
    found = []
    for number in range(len(documents)):
        for a, b, label in draw_pairs(documents, number, length - 3, random):
            found.append(join(a, b, special, length)._replace(label=label))
    return found


def draw_pairs(
    documents: list[Document],
    number: int,
    room: int,
    random: Random,
    short: float = 0.1,
    apart: float = 0.5,
) -> Iterator[tuple[list[int], list[int], int]]:
    """The pairs of one document, one after another, and their labels.

    Each is as long as `room` allows, but for a share that is `short`, of any length. A share stands
    `apart` in two documents, label 1; so does a pair for which one sentence alone is left.
    """
    document, at = documents[number], 0
    while at < len(document):
        target = random.randint(2, room) if random.random() < short else room
        begin, size = at, 0
        while at < len(document) and size < target:
            size += len(document[at])
            at += 1
        middle = random.randint(begin + 1, at - 1) if at - begin > 1 else at
        a, b = joined(document[begin:middle]), joined(document[middle:at])
        label = int(apart > 0 and (not b or random.random() < apart))
        if label:  # what was to be the second is for the next pair
            b, at = elsewhere(documents, number, target - len(a), random), middle
        yield *fit(a, b, room, random), label


def elsewhere(documents: list[Document], number: int, size: int, random: Random) -> list[int]:
    """Sentences from any place of any other document, until they have `size` tokens."""
    other = random.randrange(len(documents) - 1)
    document = documents[other + (other >= number)]
    found: list[int] = []
    for sentence in document[random.randrange(len(document)) :]:
        found += sentence
        if len(found) >= size:
            break
    return found


def mask_tokens(example: Example, special: Special, random: Random, share: float = SHARE) -> Masked:
    """Hides a share of the tokens: 80% behind [MASK], 10% behind a random word, 10% not at all.

    Sec. 3.1, Task 1: [MASK] never occurs in what the model is fine-tuned on, so it has to make
    something of every token.
    """
    places = candidates(example, special)
    number = min(len(places), max(1, round(share * len(example.tokens))))
    words = words_but(special.vocab_size, frozenset([special.pad]))
    replace = partial(thirds, random=random, words=words, special=special)
    return hide(example, random.sample(places, number), replace)


# fmt: off
SIZES = {  # Sec. 3; the small ones are those of Turc et al. 2019, with a context of 128
    "bert_base":  dict(d_model=768,  num_layers=12, num_heads=12, d_ff=3072),
    "bert_large": dict(d_model=1024, num_layers=24, num_heads=16, d_ff=4096),
    "bert_mini":  dict(d_model=256,  num_layers=4,  num_heads=4,  d_ff=1024, context=128),
    "bert_tiny":  dict(d_model=128,  num_layers=2,  num_heads=2,  d_ff=512,  context=128),
}
# fmt: on
for name in ("bert_mini", "bert_tiny"):  # attention's weights stay whole, for speed on a CPU
    SIZES[name]["attention_dropout"] = 0.0


def bert_base(vocab_size: int = 30_522, pairs: bool = True, **settings) -> BERT:
    """109,482,240 parameters in the encoder; 110,106,428 with the heads of pre-training."""
    return BERT(Sizes(vocab_size, **SIZES["bert_base"] | settings), pairs)


def bert_large(vocab_size: int = 30_522, pairs: bool = True, **settings) -> BERT:
    """335,141,888 parameters in the encoder; 336,226,108 with the heads of pre-training."""
    return BERT(Sizes(vocab_size, **SIZES["bert_large"] | settings), pairs)


def bert_mini(vocab_size: int = 8192, pairs: bool = True, **settings) -> BERT:
    """For an hour of one machine; 5,430,786 parameters with 8,192 tokens."""
    return BERT(Sizes(vocab_size, **SIZES["bert_mini"] | settings), pairs)


def bert_tiny(vocab_size: int = 2048, pairs: bool = True, **settings) -> BERT:
    """For minutes of one machine; 711,170 parameters with 2,048 tokens."""
    return BERT(Sizes(vocab_size, **SIZES["bert_tiny"] | settings), pairs)
