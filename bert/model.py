"""BERT and its line: encoders that learn from text alone, and are then fine-tuned (Devlin et al.
2018, Liu et al. 2019, Lan et al. 2019, Clark et al. 2020, Yang et al. 2019).

A Transformer that reads from both sides at once can't be asked for the next word, which it sees.
The five differ in what they are asked instead, and all can be asked for a text's class afterwards.
This page lists them: each paper's own stands in original.py (BERT), roberta.py, albert.py,
electra.py and xlnet.py, what lies below in layers.py and examples.py, and published weights in
names.py.

    model = bert_tiny(vocab_size=1000)
    logits, pair = model(tokens, segments)                    # (B, T) to (B, T, V) and (B, 2)
    classifier = model.classifier(num_classes=3)
    logits = classifier(tokens, segments)                     # (B, T) to (B, 3)

    example = arrange(documents, length, special, random)[0]  # of FAMILIES["bert"], as text
    masked = corrupt(example, special, random)                # as the paper hides it
    inputs, answers = collate([masked], model.pad)
    loss, count = model.loss(model(**inputs), **answers)      # a sum over so many hidden tokens
"""

from collections.abc import Callable
from typing import NamedTuple

from bert import albert, electra, original, roberta, xlnet
from bert.albert import (
    ALBERT,
    albert_base,
    albert_large,
    albert_mini,
    albert_tiny,
    albert_xlarge,
    albert_xxlarge,
)
from bert.electra import (
    ELECTRA,
    electra_base,
    electra_large,
    electra_mini,
    electra_small,
    electra_tiny,
)
from bert.examples import Document, Example, Masked, Random, Special, collate
from bert.layers import Pretrained, Sizes, averaged
from bert.original import BERT, bert_base, bert_large, bert_mini, bert_tiny
from bert.roberta import RoBERTa, roberta_base, roberta_large, roberta_mini, roberta_tiny
from bert.xlnet import XLNet, xlnet_base, xlnet_large, xlnet_mini, xlnet_tiny

__all__ = ["ALBERT", "BERT", "ELECTRA", "FAMILIES", "MODELS", "Document", "Example", "Family",
           "Masked", "Pretrained", "Random", "RoBERTa", "Sizes", "Special", "XLNet", "averaged",
           "collate"]  # fmt: skip


class Family(NamedTuple):
    """How one of the five papers makes examples of text.

    `specials` are the special tokens, which come first in a vocabulary, and `roles` says what each
    part is played by. `join(a, b, special, length)` is the input for one sentence or two;
    `arrange(documents, length, special, random)` makes examples of documents; and
    `corrupt(example, special, random)` hides some of an example's tokens.
    """

    specials: tuple[str, ...]
    roles: dict[str, str]
    join: Callable[..., Example]
    arrange: Callable[..., list[Example]]
    corrupt: Callable[..., Masked]


def roles(pad: str, unk: str, cls: str, sep: str, mask: str) -> dict[str, str]:
    """Which special token plays which part."""
    return dict(pad=pad, unk=unk, cls=cls, sep=sep, mask=mask)


BRACKETS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
FAMILIES = {
    "bert": Family(
        BRACKETS, roles(*BRACKETS), original.join, original.segment_pairs, original.mask_tokens
    ),
    "roberta": Family(
        ("<s>", "<pad>", "</s>", "<unk>", "<mask>"),
        roles("<pad>", "<unk>", "<s>", "</s>", "<mask>"),
        roberta.join,
        roberta.full_sentences,
        roberta.mask_tokens,
    ),
    "albert": Family(
        ("<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"),
        roles("<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"),
        original.join,
        albert.ordered_pairs,
        albert.mask_ngrams,
    ),
    "electra": Family(
        BRACKETS, roles(*BRACKETS), original.join, electra.two_segments, electra.mask_tokens
    ),
    "xlnet": Family(
        ("<unk>", "<s>", "</s>", "<cls>", "<sep>", "<pad>", "<mask>"),
        roles("<pad>", "<unk>", "<cls>", "<sep>", "<mask>"),
        xlnet.join,
        xlnet.two_contexts,
        xlnet.permute,
    ),
}

MODELS = {
    "bert_base": bert_base,
    "bert_large": bert_large,
    "bert_mini": bert_mini,
    "bert_tiny": bert_tiny,
    "roberta_base": roberta_base,
    "roberta_large": roberta_large,
    "roberta_mini": roberta_mini,
    "roberta_tiny": roberta_tiny,
    "albert_base": albert_base,
    "albert_large": albert_large,
    "albert_xlarge": albert_xlarge,
    "albert_xxlarge": albert_xxlarge,
    "albert_mini": albert_mini,
    "albert_tiny": albert_tiny,
    "electra_small": electra_small,
    "electra_base": electra_base,
    "electra_large": electra_large,
    "electra_mini": electra_mini,
    "electra_tiny": electra_tiny,
    "xlnet_base": xlnet_base,
    "xlnet_large": xlnet_large,
    "xlnet_mini": xlnet_mini,
    "xlnet_tiny": xlnet_tiny,
}
