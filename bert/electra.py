"""ELECTRA (Clark, Luong, Le, Manning 2020, "ELECTRA: Pre-training text encoders as discriminators
rather than generators", arXiv:2003.10555).

A small masked language model fills in hidden words as it sees fit, and the encoder is to tell for
every token whether it is the original. So it learns from all tokens and not from 15%, and never
sees a [MASK], which no text has. The small model is thrown away afterwards.

Shapes: B batch, T tokens (padded), R real tokens in all, N hidden tokens in all, D d_model,
E d_embedding, V vocabulary, K classes.

Parameters bear the names of the released weights: `electra…` and `discriminator_predictions…` those
of a discriminator, and behind `generator.` those of a generator. As in the released code 15% of the
chosen tokens stay as they are for the generator, which the paper doesn't say; they are drawn
without repetition, where the code repeats some. The generator of the small one is a quarter as
wide, as in the paper; the released weights have one of full width.
The discriminator's loss of an example counts as much as its hidden tokens, so that a batch can be
cut anywhere.
"""

import math
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bert import roberta
from bert.examples import Document, Example, Masked, Random, Special, candidates, cleaned, hide
from bert.layers import Pretrained, Sizes, accuracy, first_weights, gelu, nats
from bert.original import SHARE, Encoder, join

# ---------------------------------------------------------------------- the network


class GeneratorPredictions(nn.Module):
    """From the generator's width to that of the embeddings."""

    def __init__(self, sizes: Sizes):
        super().__init__()
        self.dense = nn.Linear(sizes.d_model, sizes.d_embedding)
        self.LayerNorm = nn.LayerNorm(sizes.d_embedding, sizes.eps)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) to (..., E)."""
        return self.LayerNorm(gelu(self.dense(x)))


class Bias(nn.Module):
    """A number for each word, which the released weights name so."""

    def __init__(self, vocab_size: int):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(vocab_size))


class Generator(nn.Module):
    """A masked language model (Sec. 2), `share` as wide as the discriminator, as deep, and with the
    same table of words, places and segments (Sec. 3.2)."""

    def __init__(self, sizes: Sizes, share: float):
        super().__init__()
        self.electra = Encoder(narrower(sizes, share), pooler=False)
        self.generator_predictions = GeneratorPredictions(narrower(sizes, share))
        self.generator_lm_head = Bias(sizes.vocab_size)

    # fmt: off
    def forward(self, tokens: Tensor, segments=None, places: Tensor | None = None) -> Tensor:
        """Logits (N, V) of the words at the places, or (B, T, V) of all."""
        x = self.electra(tokens, segments)                               # (B, T, D)
        chosen = x if places is None else x.flatten(0, 1)[places]        # (N, D)
        table = self.electra.embeddings.word_embeddings.weight
        return F.linear(self.generator_predictions(chosen), table, self.generator_lm_head.bias)
    # fmt: on


def narrower(sizes: Sizes, share: float) -> Sizes:
    """The generator's sizes (Table 6): width, heads and feed-forward times `share`.

    Raises ValueError if that gives no whole heads.
    """
    width, heads, inner = (
        round(share * n) for n in (sizes.d_model, sizes.num_heads, sizes.d_ff))  # fmt: skip
    if not width or not heads or width % heads:
        raise ValueError(
            f"a generator of {share:g} of {sizes.d_model} dimensions has no whole heads"
        )
    own = dict(d_model=width, num_heads=heads, d_ff=inner)
    return Sizes(**vars(sizes) | own)


class DiscriminatorPredictions(nn.Module):
    """For each token the logit of that it was replaced."""

    def __init__(self, sizes: Sizes):
        super().__init__()
        self.dense = nn.Linear(sizes.d_model, sizes.d_model)
        self.dense_prediction = nn.Linear(sizes.d_model, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) to (...)."""
        return self.dense_prediction(gelu(self.dense(x)))[..., 0]


class Outputs(NamedTuple):
    """Of the generator logits (N, V); of the discriminator one (R,) for each real token, beside
    what is `replaced` among them, which were `chosen`, and the example (R,) that each is of."""

    logits: Tensor
    scores: Tensor
    replaced: Tensor
    chosen: Tensor
    example: Tensor
    labels: None = None


def draw(logits: Tensor) -> Tensor:
    """A word for each of the logits (N, V), by their softmax (Sec. 2), through which no gradient
    goes: the largest of the logits and Gumbel's noise."""
    with torch.no_grad():
        noise = torch.empty_like(logits, dtype=torch.float32).exponential_()
        return (logits.float() - noise.log()).argmax(-1)


class ELECTRA(Pretrained):
    """Generator and discriminator (Fig. 2).

    `generator` is the share of the discriminator's width; `weight` that of its loss, λ. Without
    `everywhere` the discriminator learns at hidden tokens alone (Sec. 3.5, "ELECTRA 15%").
    """

    family = "electra"

    def __init__(
        self, sizes: Sizes, generator: float = 0.25, weight: float = 50.0, everywhere: bool = True
    ):
        super().__init__(sizes, generator=generator, weight=weight, everywhere=everywhere)
        self.weight, self.everywhere = weight, everywhere
        self.electra = Encoder(sizes, pooler=False)
        self.discriminator_predictions = DiscriminatorPredictions(sizes)
        self.generator = Generator(sizes, generator)
        ours, its = self.electra.embeddings, self.generator.electra.embeddings
        for name in ("word_embeddings", "position_embeddings", "token_type_embeddings"):
            setattr(its, name, getattr(ours, name))  # Sec. 3.2, weight sharing
        first_weights(self)

    def features(self, tokens: Tensor, segments=None, maps=None) -> Tensor:
        """The discriminator's encoder alone: (B, T) to (B, T, D)."""
        return self.electra(tokens, segments, maps)

    # fmt: off
    def forward(self, tokens: Tensor, segments, places: Tensor, targets: Tensor) -> Outputs:
        """Tokens and segments (B, T), the places (N,) that are hidden, counted through all rows,
        and what stood there."""
        real = (tokens != self.pad).flatten()
        logits = self.generator(tokens, segments, places)                # (N, V)
        guesses = draw(logits)                                           # (N,)
        written = tokens.flatten().index_put((places,), guesses)         # (B T,)
        chosen = torch.zeros_like(real).index_fill(0, places, True)
        replaced = torch.zeros_like(real).index_put((places,), guesses != targets)
        x = self.electra(written.view_as(tokens), segments, real=real.view_as(tokens))
        scores = self.discriminator_predictions(x.flatten(0, 1)[real])   # (R,)
        example = torch.arange(len(tokens), device=tokens.device)
        example = example.repeat_interleave(tokens.shape[1])
        return Outputs(logits, scores, *(part[real] for part in (replaced, chosen, example)))
    # fmt: on

    def detect(self, tokens: Tensor, segments: Tensor | None = None) -> Tensor:
        """Logits (B, T) of that a token was replaced."""
        return self.discriminator_predictions(self.electra(tokens, segments))

    def fill(self, tokens: Tensor, places: Tensor, segments: Tensor | None = None) -> Tensor:
        """The generator's logits (N, V) of what stands at the places, where the tokens are
        [MASK]."""
        return self.generator(tokens, segments, places)

    def loss(self, outputs: Outputs, targets: Tensor, counts: Tensor, labels=None):
        """Nats of the N hidden tokens, and for each λ times its example's mean over real tokens of
        the discriminator's, in all; and N. Raises ValueError if examples have labels."""
        found = nats(outputs, targets, counts, labels)
        each = F.binary_cross_entropy_with_logits(
            outputs.scores.float(), outputs.replaced.float(), reduction="none")  # fmt: skip
        if self.everywhere:
            lengths = outputs.example.bincount(minlength=len(counts))
            each = each * (counts / lengths.clamp(min=1))[outputs.example]
        else:
            each = each * outputs.chosen
        return found + self.weight * each.sum(), len(targets)

    @torch.no_grad()
    def figures(self, outputs: Outputs, targets: Tensor, counts: Tensor, labels=None) -> dict:
        """By name a sum and its count: the generator's nats and share right; the discriminator's
        over real tokens, which of them are replaced, and how many of those it finds."""
        scores, replaced = outputs.scores.float(), outputs.replaced
        right = (scores > 0) == replaced
        each = F.binary_cross_entropy_with_logits(scores, replaced.float(), reduction="none")
        ones = torch.ones_like(scores)

        def share(x: Tensor, of: Tensor) -> Tensor:
            return torch.stack([x.float().sum(), of.float().sum()])

        return accuracy("masked", outputs.logits, targets) | {
            "replaced_loss": share(each, ones),
            "replaced_accuracy": share(right, ones),
            "replaced_share": share(replaced, ones),
            "replaced_found": share(right & replaced, replaced),
        }

    def classifier(self, num_classes: int, dropout: float = 0.1) -> "Classifier":
        """A network to fine-tune, on the discriminator's encoder."""
        return Classifier(self, num_classes, dropout)


class Classifier(roberta.Classifier):
    """The discriminator's encoder and two new layers on the first token, as transformers has it.

    The paper (Sec. 3.1) and the released code put one linear layer there.
    """

    def __init__(self, model: ELECTRA, num_classes: int, dropout: float = 0.1):
        super().__init__(model, num_classes, dropout, "electra")

    def pool(self, features: Tensor, tokens: Tensor) -> Tensor:
        """Features (B, T, D) to what stands for the whole text (B, D)."""
        return gelu(self.classifier.dense(self.drop(features[:, 0])))


# ---------------------------------------------------------------------- what it learns from


def two_segments(
    documents: list[Document], length: int, special: Special, random: Random
) -> list[Example]:
    """Text of one document in two segments of about equal length, without any label.

    As the released code: a tenth of the examples has one segment, and one in twenty is short. But
    what is too long loses tokens from the end of the longer segment, as BERT's pairs do; there the
    first is cut at `length` - 2, and the second has what is left.
    """
    found = []
    for document in cleaned(documents):
        at = 0
        while at < len(document):
            target = random.randint(5, length) if random.random() < 0.05 else length
            half = math.inf if random.random() < 0.1 else (target - 3) // 2
            a: list[int] = []
            b: list[int] = []
            while at < len(document) and len(a) + len(b) < target - 3:
                sentence = document[at]
                late = len(a) < half and random.random() < 0.5
                if not b and (not a or len(a) + len(sentence) < half or late):
                    a = a + sentence
                else:
                    b = b + sentence
                at += 1
            found.append(join(a, b or None, special, length))
    return found


def mask_tokens(
    example: Example, special: Special, random: Random, share: float = SHARE, stays: float = 0.15
) -> Masked:
    """Hides a share of the tokens, rounded up (Sec. 2), behind [MASK]; some of them `stay`.

    For electra_large the share is 25% (Table 6).
    """
    places = candidates(example, special)
    number = min(len(places), math.ceil(share * len(example.tokens)))
    replace = partial(keep, random=random, share=stays, mask=special.mask)
    return hide(example, random.sample(places, number), replace)


def keep(token: int, random: Random, share: float, mask: int) -> int:
    """The token itself for a share of draws, else the mask."""
    return token if random.random() < share else mask


# fmt: off
SIZES = {  # Table 6; the last two are ours
    "electra_small": dict(d_model=256,  num_layers=12, num_heads=4,  d_ff=1024, d_embedding=128),
    "electra_base":  dict(d_model=768,  num_layers=12, num_heads=12, d_ff=3072),
    "electra_large": dict(d_model=1024, num_layers=24, num_heads=16, d_ff=4096),
    "electra_mini":  dict(d_model=256,  num_layers=4,  num_heads=4,  d_ff=1024, context=128),
    "electra_tiny":  dict(d_model=128,  num_layers=2,  num_heads=2,  d_ff=512,  context=128),
}
# fmt: on
for name in ("electra_mini", "electra_tiny"):  # attention's weights stay whole, for speed
    SIZES[name]["attention_dropout"] = 0.0
OWN = ("generator", "weight", "everywhere")


def make(name: str, vocab_size: int, settings: dict) -> ELECTRA:
    """The network of a size that has a name."""
    own = {key: settings.pop(key) for key in OWN if key in settings}
    return ELECTRA(Sizes(vocab_size, **SIZES[name] | settings), **own)


def electra_small(vocab_size: int = 30_522, **settings) -> ELECTRA:
    """13,483,008 parameters in the encoder; 13,549,057 in the discriminator."""
    return make("electra_small", vocab_size, settings)


def electra_base(vocab_size: int = 30_522, **settings) -> ELECTRA:
    """108,891,648 parameters in the encoder; 109,483,009 in the discriminator."""
    return make("electra_base", vocab_size, {"generator": 1 / 3} | settings)


def electra_large(vocab_size: int = 30_522, **settings) -> ELECTRA:
    """334,092,288 parameters in the encoder; 335,142,913 in the discriminator."""
    return make("electra_large", vocab_size, settings)


def electra_mini(vocab_size: int = 8192, **settings) -> ELECTRA:
    """For an hour of one machine; 5,598,273 parameters with 8,192 tokens."""
    return make("electra_mini", vocab_size, settings)


def electra_tiny(vocab_size: int = 2048, **settings) -> ELECTRA:
    """For minutes of one machine; 811,329 parameters with 2,048 tokens."""
    return make("electra_tiny", vocab_size, {"generator": 0.5} | settings)
