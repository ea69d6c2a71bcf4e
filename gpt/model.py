"""The GPTs: a Transformer's decoder that predicts the next token (Radford et al. 2018 and 2019,
Brown et al. 2020).

Trained on nothing but text, such a model comes to know what makes text likely: letters, words,
grammar, facts, and in the end what a text asks for. This page lists them: what they share stands
in layers.py, each paper's own in gpt1.py, gpt2.py and gpt3.py; of GPT-4 no architecture was
published.

    model = gpt_tiny(vocab_size=1000)
    logits = model(tokens)                                    # (B, T) to (B, T, V)
    logits, cache = model.step(tokens, model.new_cache())     # (B, V), of the next token alone
"""

from gpt.gpt1 import GPT1, Classifier, gpt1
from gpt.gpt2 import GPT2, gpt2, gpt2_large, gpt2_medium, gpt2_xl, gpt_small, gpt_tiny
from gpt.gpt3 import (
    GPT3,
    gpt3_2b7,
    gpt3_6b7,
    gpt3_13b,
    gpt3_175b,
    gpt3_large,
    gpt3_medium,
    gpt3_small,
    gpt3_xl,
)
from gpt.layers import Cache, LanguageModel, SelfAttention

__all__ = ["GPT1", "GPT2", "GPT3", "MODELS", "Cache", "Classifier", "LanguageModel",
           "SelfAttention"]  # fmt: skip

MODELS = {
    "gpt1": gpt1,
    "gpt2": gpt2,
    "gpt2_medium": gpt2_medium,
    "gpt2_large": gpt2_large,
    "gpt2_xl": gpt2_xl,
    "gpt3_small": gpt3_small,
    "gpt3_medium": gpt3_medium,
    "gpt3_large": gpt3_large,
    "gpt3_xl": gpt3_xl,
    "gpt3_2b7": gpt3_2b7,
    "gpt3_6b7": gpt3_6b7,
    "gpt3_13b": gpt3_13b,
    "gpt3_175b": gpt3_175b,
    "gpt_small": gpt_small,
    "gpt_tiny": gpt_tiny,
}
