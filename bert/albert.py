"""ALBERT (Lan, Chen, Goodman, Gimpel, Sharma, Soricut 2019, "ALBERT: A lite BERT for
self-supervised learning of language representations", arXiv:1909.11942).

All layers are the same one, used again and again, and the table of words is narrow, with one matrix
that widens what is looked up: a tenth of BERT's parameters, and a network that can grow far wider
for as many. That a pair of sentences belongs together had been too easy to tell, by its topic;
which of both came first is not.

Shapes: B batch, T tokens (padded), R real tokens in all, N hidden tokens in all, D d_model,
E d_embedding, V vocabulary, K classes.

Parameters bear the names of the released weights (`albert.encoder.albert_layer_groups.0…`); the
GELU is approximated by tanh, and nothing is dropped, as in their second version. Departures: the
authors take a pair from two documents where one sentence is left of one, here it is cut in two. As
with BERT, the loss of a pair counts as much as the hidden tokens of its example.
"""

from functools import partial

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
from bert.layers import Dropout, FineTuned, Pretrained, Rows, Sizes, accuracy, first_weights, gelu
from bert.original import SHARE, Embeddings, Outputs, SelfAttention, count_places, join

MOST_WORDS = 3  # of an n-gram that is hidden (Sec. 4.1)

# ---------------------------------------------------------------------- the network


class Attention(SelfAttention):
    """Self-attention, added and then normalised; the released weights name it so."""

    def __init__(self, sizes: Sizes):
        super().__init__(sizes)
        self.dense = nn.Linear(sizes.d_model, sizes.d_model)
        self.LayerNorm = nn.LayerNorm(sizes.d_model, sizes.eps)
        self.drop = Dropout(sizes.dropout)

    def forward(self, x: Tensor, rows: Rows, maps: list[Tensor] | None = None) -> Tensor:
        """(R, D) to (R, D)."""
        heads = super().forward(x, rows, maps)
        return self.LayerNorm(x + self.drop(self.dense(heads)))


class Layer(nn.Module):
    """BERT's layer under the names of ALBERT's weights."""

    def __init__(self, sizes: Sizes):
        super().__init__()
        self.attention = Attention(sizes)
        self.ffn = nn.Linear(sizes.d_model, sizes.d_ff)
        self.ffn_output = nn.Linear(sizes.d_ff, sizes.d_model)
        self.full_layer_layer_norm = nn.LayerNorm(sizes.d_model, sizes.eps)
        self.drop = Dropout(sizes.dropout)

    def forward(self, x: Tensor, rows: Rows, maps: list[Tensor] | None = None) -> Tensor:
        """(R, D) to (R, D)."""
        x = self.attention(x, rows, maps)
        inner = self.ffn_output(gelu(self.ffn(x), tanh=True))
        return self.full_layer_layer_norm(x + self.drop(inner))


class Group(nn.Module):
    """Layers that stand in for one another; the released networks have one of one layer."""

    def __init__(self, sizes: Sizes):
        super().__init__()
        self.albert_layers = nn.ModuleList([Layer(sizes)])

    def forward(self, x: Tensor, rows: Rows, maps: list[Tensor] | None = None) -> Tensor:
        """(R, D) to (R, D)."""
        return self.albert_layers[0](x, rows, maps)


class Stack(nn.Module):
    """`num_layers` times one layer, or `num_groups` of them, each for its part of the depth."""

    def __init__(self, sizes: Sizes, num_groups: int):
        super().__init__()
        self.num_layers = sizes.num_layers
        self.embedding_hidden_mapping_in = nn.Linear(sizes.d_embedding, sizes.d_model)
        self.albert_layer_groups = nn.ModuleList(Group(sizes) for _ in range(num_groups))

    def forward(self, x: Tensor, rows: Rows, maps: list[Tensor] | None = None) -> Tensor:
        """Embeddings (R, E) to (R, D)."""
        x = self.embedding_hidden_mapping_in(x)  # Sec. 3.1, factorized embeddings: V E + E D
        for layer in range(self.num_layers):  # Sec. 3.1, cross-layer parameter sharing
            group = layer * len(self.albert_layer_groups) // self.num_layers
            x = self.albert_layer_groups[group](x, rows, maps)
        return x


class Encoder(nn.Module):
    """Embeddings, layers, and with `pooler` one more on the first token."""

    def __init__(self, sizes: Sizes, pooler: bool, num_groups: int):
        super().__init__()
        self.context, self.pad = sizes.context, sizes.pad
        self.embeddings = Embeddings(sizes)
        self.encoder = Stack(sizes, num_groups)
        if pooler:
            self.pooler = nn.Linear(sizes.d_model, sizes.d_model)

    def forward(self, tokens: Tensor, segments: Tensor | None = None, maps=None) -> Tensor:
        """Tokens (B, T), and the segments they are of, to (B, T, D), zeros at the padding.

        Raises ValueError for more tokens than the context.
        """
        rows = Rows(tokens != self.pad)
        places = count_places(rows.real, self.context)
        segments = torch.zeros_like(tokens) if segments is None else segments
        x = self.embeddings(*map(rows.pack, (tokens, places, segments)))  # (R, E)
        return rows.spread(self.encoder(x, rows, maps))

    def pooled(self, features: Tensor) -> Tensor:
        """Features (B, T, D) to what stands for the whole text (B, D)."""
        return self.pooler(features[:, 0]).tanh()


class Predictions(nn.Module):
    """Logits of the hidden words: back to E, and by the table of embeddings."""

    def __init__(self, sizes: Sizes):
        super().__init__()
        self.dense = nn.Linear(sizes.d_model, sizes.d_embedding)
        self.LayerNorm = nn.LayerNorm(sizes.d_embedding, sizes.eps)
        self.bias = nn.Parameter(torch.zeros(sizes.vocab_size))

    def forward(self, x: Tensor, table: Tensor) -> Tensor:
        """(..., D) and a table (V, E) to (..., V)."""
        return F.linear(self.LayerNorm(gelu(self.dense(x), tanh=True)), table, self.bias)


class OrderHead(nn.Module):
    """Whether both sentences stand in their order, 0, or are swapped, 1 (Sec. 3.1)."""

    def __init__(self, sizes: Sizes):
        super().__init__()
        self.drop = Dropout(sizes.dropout)
        self.classifier = nn.Linear(sizes.d_model, 2)

    def forward(self, pooled: Tensor) -> Tensor:
        """(B, D) to (B, 2)."""
        return self.classifier(self.drop(pooled))


class ALBERT(Pretrained):
    """The encoder and both heads of pre-training; without `pairs` that of words alone.

    `num_groups` layers share the depth between them: 1 is the paper's, as many as there are layers
    share nothing. Raises ValueError for others than divide the depth.
    """

    family = "albert"

    def __init__(self, sizes: Sizes, pairs: bool = True, num_groups: int = 1):
        super().__init__(sizes, pairs=pairs, num_groups=num_groups)
        if num_groups < 1 or sizes.num_layers % num_groups:
            raise ValueError(f"{sizes.num_layers} layers can't be shared by {num_groups} groups")
        self.albert = Encoder(sizes, pairs, num_groups)
        self.predictions = Predictions(sizes)
        if pairs:
            self.sop_classifier = OrderHead(sizes)
        first_weights(self)

    def features(self, tokens: Tensor, segments=None, maps=None) -> Tensor:
        """The encoder alone: (B, T) to (B, T, D)."""
        return self.albert(tokens, segments, maps)

    # fmt: off
    def forward(self, tokens: Tensor, segments=None, places: Tensor | None = None) -> Outputs:
        """Tokens and segments (B, T), and the places (N,) to predict, counted through all rows."""
        x = self.albert(tokens, segments)                                # (B, T, D)
        chosen = x if places is None else x.flatten(0, 1)[places]        # (N, D)
        logits = self.predictions(chosen, self.albert.embeddings.word_embeddings.weight)
        pairs = self.sop_classifier(self.albert.pooled(x)) if self.settings["pairs"] else None
        return Outputs(logits, pairs)
    # fmt: on

    def figures(self, outputs: Outputs, targets: Tensor, counts: Tensor, labels=None) -> dict:
        """By name a sum and its count: nats and share right of words, and of the order."""
        found = accuracy("masked", outputs.logits, targets)
        return found if labels is None else found | accuracy("order", outputs.labels, labels)

    def classifier(self, num_classes: int, dropout: float = 0.1) -> "Classifier":
        """A network to fine-tune, on this encoder."""
        return Classifier(self, num_classes, dropout)


class Classifier(FineTuned):
    """The encoder and one new layer on the pooled first token."""

    def __init__(self, model: ALBERT, num_classes: int, dropout: float = 0.1):
        super().__init__(model, "albert")
        if not hasattr(self.albert, "pooler"):  # pre-trained without pairs
            self.albert.pooler = nn.Linear(model.d_model, model.d_model)
            first_weights(self.albert.pooler)
        self.drop = Dropout(dropout)
        self.classifier = nn.Linear(model.d_model, num_classes)
        first_weights(self.classifier)

    def pool(self, features: Tensor, tokens: Tensor) -> Tensor:
        """Features (B, T, D) to what stands for the whole text (B, D)."""
        return self.albert.pooled(features)

    def answer(self, pooled: Tensor) -> Tensor:
        """That (B, D) to logits (B, K)."""
        return self.classifier(self.drop(pooled))


# ---------------------------------------------------------------------- what it learns from


def ordered_pairs(
    documents: list[Document], length: int, special: Special, random: Random
) -> list[Example]:
    """Two pieces of text of which the second followed the first, label 0; half of them swapped,
    label 1 (Sec. 3.1, sentence-order prediction). A tenth are short, as BERT's."""
    found, room = [], length - 3
    for document in cleaned(documents):
        at = 0
        while at < len(document):
            target = random.randint(2, room) if random.random() < 0.1 else room
            begin, size = at, 0
            while at < len(document) and size < target:
                size += len(document[at])
                at += 1
            if at - begin > 1:
                middle = random.randint(begin + 1, at - 1)
                a, b = joined(document[begin:middle]), joined(document[middle:at])
            elif size > 1:
                middle = random.randint(1, size - 1)
                a, b = document[begin][:middle], document[begin][middle:]
            else:  # a single token has no order
                continue
            a, b = fit(a, b, room, random)
            swapped = random.random() < 0.5
            first, second = (b, a) if swapped else (a, b)
            found.append(join(first, second, special, length)._replace(label=int(swapped)))
    return found


def mask_ngrams(example: Example, special: Special, random: Random, share: float = SHARE) -> Masked:
    """Hides a share of the tokens, in runs of one to three whole words (Sec. 4.1).

    What stands there is drawn for each token, as BERT's.
    """
    words: list[list[int]] = []  # the places of each word
    begins = special.begins
    for place in candidates(example, special):
        goes_on = begins is not None and not begins[example.tokens[place]]
        if goes_on and words and words[-1][-1] == place - 1:
            words[-1].append(place)
        else:
            words.append([place])
    left = max(1, round(share * len(example.tokens)))
    taken: set[int] = set()
    lengths = range(1, MOST_WORDS + 1)
    for start in random.sample(range(len(words)), len(words)):
        (n,) = random.choices(lengths, [1 / n for n in lengths])  # p(n) falls as 1/n
        while n and (places := run(words, start, n)) and len(places) > left:
            n -= 1  # what is left has to do
        if n and not taken.intersection(places):
            taken.update(places)
            left -= len(places)
        if not left:
            break
    replace = partial(
        thirds,
        random=random,
        words=words_but(special.vocab_size, frozenset([special.pad])),
        special=special,
    )
    return hide(example, sorted(taken), replace)


def run(words: list[list[int]], start: int, n: int) -> list[int]:
    """The places of `n` words from one on, or of fewer, if a special token or the end comes."""
    found = list(words[start])
    for word in words[start + 1 : start + n]:
        if word[0] != found[-1] + 1:
            break
        found += word
    return found


# fmt: off
SIZES = {  # Table 1; H / 64 heads, but in albert_xlarge 16, as released
    "albert_base":    dict(d_model=768,  num_layers=12, num_heads=12, d_ff=3072,   d_embedding=128),
    "albert_large":   dict(d_model=1024, num_layers=24, num_heads=16, d_ff=4096,   d_embedding=128),
    "albert_xlarge":  dict(d_model=2048, num_layers=24, num_heads=16, d_ff=8192,   d_embedding=128),
    "albert_xxlarge": dict(d_model=4096, num_layers=12, num_heads=64, d_ff=16_384, d_embedding=128),
    "albert_mini":    dict(d_model=512,  num_layers=4,  num_heads=8,  d_ff=2048,   d_embedding=128),
    "albert_tiny":    dict(d_model=128,  num_layers=2,  num_heads=2,  d_ff=512,    d_embedding=64),
}
# fmt: on
for name, own in SIZES.items():
    own["dropout"] = 0.0
    if name in ("albert_mini", "albert_tiny"):  # ours
        own["context"] = 128


def make(name: str, vocab_size: int, pairs: bool, num_groups: int, settings: dict) -> ALBERT:
    """The network of a size that has a name."""
    return ALBERT(Sizes(vocab_size, **SIZES[name] | settings), pairs, num_groups)


def albert_base(
    vocab_size: int = 30_000, pairs: bool = True, num_groups: int = 1, **settings
) -> ALBERT:
    """11,683,584 parameters in the encoder; 11,813,810 with the heads of pre-training."""
    return make("albert_base", vocab_size, pairs, num_groups, settings)


def albert_large(
    vocab_size: int = 30_000, pairs: bool = True, num_groups: int = 1, **settings
) -> ALBERT:
    """17,683,968 parameters in the encoder; 17,847,474 with the heads of pre-training."""
    return make("albert_large", vocab_size, pairs, num_groups, settings)


def albert_xlarge(
    vocab_size: int = 30_000, pairs: bool = True, num_groups: int = 1, **settings
) -> ALBERT:
    """58,724,864 parameters in the encoder; 59,021,490 with the heads of pre-training."""
    return make("albert_xlarge", vocab_size, pairs, num_groups, settings)


def albert_xxlarge(
    vocab_size: int = 30_000, pairs: bool = True, num_groups: int = 1, **settings
) -> ALBERT:
    """222,595,584 parameters in the encoder; 223,158,450 with the heads of pre-training."""
    return make("albert_xxlarge", vocab_size, pairs, num_groups, settings)


def albert_mini(
    vocab_size: int = 8192, pairs: bool = True, num_groups: int = 1, **settings
) -> ALBERT:
    """For an hour of one machine; 4,621,698 parameters with 8,192 tokens.

    As many as the other four have, by twice their width: so it computes four times as much for a
    token, which is the paper's own trade.
    """
    return make("albert_mini", vocab_size, pairs, num_groups, settings)


def albert_tiny(
    vocab_size: int = 2048, pairs: bool = True, num_groups: int = 1, **settings
) -> ALBERT:
    """For minutes of one machine; 373,314 parameters with 2,048 tokens."""
    return make("albert_tiny", vocab_size, pairs, num_groups, settings)
