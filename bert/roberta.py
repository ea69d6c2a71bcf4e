"""RoBERTa (Liu, Ott, Goyal, Du, Joshi, Chen, Levy, Lewis, Zettlemoyer, Stoyanov 2019, "RoBERTa: A
robustly optimized BERT pretraining approach", arXiv:1907.11692).

BERT had been trained for too short a time. The same network, trained longer on more text in larger
batches, without pairs of sentences and with other words hidden each time a text is seen, overtakes
all that had come after it.

Shapes: B batch, T tokens (padded), N hidden tokens in all, D d_model, V vocabulary, K classes.

Parameters bear the names of the released weights (`roberta.encoder…`, `lm_head…`); as there, places
begin with the number after that of padding. The paper leaves open: which tokens may be hidden (here
none that are special), and how 15% become a whole number (as in fairseq, at random, so that they
are kept on average).
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
    thirds,
    words_but,
)
from bert.layers import Dropout, FineTuned, Pretrained, Sizes, accuracy, first_weights, gelu
from bert.original import SHARE, Encoder, Outputs

# ---------------------------------------------------------------------- the network


class Head(nn.Module):
    """Logits of the hidden words, by the table of embeddings and a bias for each word."""

    def __init__(self, sizes: Sizes):
        super().__init__()
        self.dense = nn.Linear(sizes.d_model, sizes.d_model)
        self.layer_norm = nn.LayerNorm(sizes.d_model, sizes.eps)
        self.bias = nn.Parameter(torch.zeros(sizes.vocab_size))

    def forward(self, x: Tensor, table: Tensor) -> Tensor:
        """(..., D) and a table (V, D) to (..., V)."""
        return F.linear(self.layer_norm(gelu(self.dense(x))), table, self.bias)


class RoBERTa(Pretrained):
    """BERT's encoder, and the head for words alone."""

    family = "roberta"

    def __init__(self, sizes: Sizes):
        super().__init__(sizes)
        self.roberta = Encoder(sizes, pooler=False, offset=sizes.pad + 1)
        self.lm_head = Head(sizes)
        first_weights(self)

    def features(self, tokens: Tensor, segments=None, maps=None) -> Tensor:
        """The encoder alone: (B, T) to (B, T, D)."""
        return self.roberta(tokens, segments, maps)

    # fmt: off
    def forward(self, tokens: Tensor, segments=None, places: Tensor | None = None) -> Outputs:
        """Tokens (B, T), and the places (N,) to predict, counted through all rows.

        Segments (B, T) are all 0, as there is one kind.
        """
        x = self.roberta(tokens, segments)                               # (B, T, D)
        chosen = x if places is None else x.flatten(0, 1)[places]        # (N, D)
        return Outputs(self.lm_head(chosen, self.roberta.embeddings.word_embeddings.weight))
    # fmt: on

    def figures(self, outputs: Outputs, targets: Tensor, counts: Tensor, labels=None) -> dict:
        """By name a sum and its count: nats and share right of the hidden words."""
        return accuracy("masked", outputs.logits, targets)

    def classifier(self, num_classes: int, dropout: float = 0.1) -> "Classifier":
        """A network to fine-tune, on this encoder."""
        return Classifier(self, num_classes, dropout)


class TwoLayers(nn.Module):
    """The pooler that pre-training didn't make, and the layer of the answer."""

    def __init__(self, d_model: int, num_classes: int):
        super().__init__()
        self.dense = nn.Linear(d_model, d_model)
        self.out_proj = nn.Linear(d_model, num_classes)
        first_weights(self)


class Classifier(FineTuned):
    """The encoder and two new layers on the first token, <s>."""

    def __init__(self, model: Pretrained, num_classes: int, dropout: float = 0.1, name="roberta"):
        super().__init__(model, name)
        self.classifier, self.drop = TwoLayers(model.d_model, num_classes), Dropout(dropout)

    def pool(self, features: Tensor, tokens: Tensor) -> Tensor:
        """Features (B, T, D) to what stands for the whole text (B, D)."""
        return self.classifier.dense(self.drop(features[:, 0])).tanh()

    def answer(self, pooled: Tensor) -> Tensor:
        """That (B, D) to logits (B, K)."""
        return self.classifier.out_proj(self.drop(pooled))


# ---------------------------------------------------------------------- what it learns from


def join(a: list[int], b: list[int] | None, special: Special, length: int) -> Example:
    """<s> a </s>, or <s> a </s></s> b </s>, all in one segment.

    Where that is longer than `length`, the longer of both loses tokens from its end.
    """
    a, b = fit(a, b or [], length - 4 if b is not None else length - 2)
    second = [special.sep, *b, special.sep] if b else []
    tokens = [special.cls, *a, special.sep, *second]
    return Example(tokens, [0] * len(tokens))


def full_sentences(
    documents: list[Document], length: int, special: Special, random: Random | None = None
) -> list[Example]:
    """Sentences as many as there is room for, on from document to document with a separator
    between (Sec. 4.2, FULL-SENTENCES). Nothing is drawn.

    A sentence too long for an example of its own is cut in as many as it needs.
    """
    found, held = [], []
    room = length - 2

    def close() -> None:
        while held and held[-1] == special.sep:
            held.pop()
        if held:
            found.append(join(list(held), None, special, length))
        held.clear()

    for document in cleaned(documents):
        if held and len(held) < room:
            held.append(special.sep)
        for sentence in document:
            for begin in range(0, len(sentence), room):
                part = sentence[begin : begin + room]
                if len(held) + len(part) > room:
                    close()
                held += part
    close()
    return found


def mask_tokens(example: Example, special: Special, random: Random, share: float = SHARE) -> Masked:
    """Hides a share of the tokens, as BERT does, but of random words none is a special token.

    What makes masks dynamic (Sec. 4.1) is a `random` of its own for each time that an example is
    seen; one for each example makes them static.
    """
    places = candidates(example, special)
    number = min(len(places), max(1, int(share * len(example.tokens) + random.random())))
    words = words_but(special.vocab_size, special.all)
    replace = partial(thirds, random=random, words=words, special=special)
    return hide(example, random.sample(places, number), replace)


# fmt: off
SIZES = {  # Sec. 3.1: BERT's; the small ones are ours
    "roberta_base":  dict(d_model=768,  num_layers=12, num_heads=12, d_ff=3072),
    "roberta_large": dict(d_model=1024, num_layers=24, num_heads=16, d_ff=4096),
    "roberta_mini":  dict(d_model=256,  num_layers=4,  num_heads=4,  d_ff=1024, context=128),
    "roberta_tiny":  dict(d_model=128,  num_layers=2,  num_heads=2,  d_ff=512,  context=128),
}
# fmt: on
for name, own in SIZES.items():
    own.update(num_segments=1, pad=1, eps=1e-5)
    if name in ("roberta_mini", "roberta_tiny"):  # attention's weights stay whole, for speed
        own["attention_dropout"] = 0.0


def roberta_base(vocab_size: int = 50_265, **settings) -> RoBERTa:
    """124,697,433 parameters (124,645,632 in the encoder, where a pooler that nothing trains is
    counted with it)."""
    return RoBERTa(Sizes(vocab_size, **SIZES["roberta_base"] | settings))


def roberta_large(vocab_size: int = 50_265, **settings) -> RoBERTa:
    """355,412,057 parameters (355,359,744 in the encoder, counted so)."""
    return RoBERTa(Sizes(vocab_size, **SIZES["roberta_large"] | settings))


def roberta_mini(vocab_size: int = 8192, **settings) -> RoBERTa:
    """For an hour of one machine; 5,364,736 parameters with 8,192 tokens."""
    return RoBERTa(Sizes(vocab_size, **SIZES["roberta_mini"] | settings))


def roberta_tiny(vocab_size: int = 2048, **settings) -> RoBERTa:
    """For minutes of one machine; 694,528 parameters with 2,048 tokens."""
    return RoBERTa(Sizes(vocab_size, **SIZES["roberta_tiny"] | settings))
