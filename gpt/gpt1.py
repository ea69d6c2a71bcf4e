"""GPT-1 (Radford, Narasimhan, Salimans, Sutskever 2018, "Improving language understanding by
generative pre-training").

A decoder of the Transformer alone is trained to predict the next token of books, and then, with one
new layer and hardly another change, to answer questions about sentences: what it has learned of
language carries over. The norm comes after each sum, as in the Transformer of 2017.

Shapes: B batch, T tokens, D d_model, V vocabulary, K classes.

Departure: dropout falls on the sum of both embeddings, where the released code drops elements of
the tables, before the look-up.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt.layers import MLP, Dropout, LanguageModel, SelfAttention


class PostNormBlock(nn.Module):
    """Attention and feed-forward, each added and then normalised (Fig. 1, left)."""

    def __init__(self, d_model: int, num_heads: int, dropout: float):
        super().__init__()
        self.attn = SelfAttention(d_model, num_heads, dropout)
        self.ln_1 = nn.LayerNorm(d_model)
        self.mlp = MLP(d_model)
        self.ln_2 = nn.LayerNorm(d_model)
        self.drop = Dropout(dropout)

    def forward(self, x: Tensor, cache: dict | None = None) -> Tensor:
        """(B, T, D) to (B, T, D)."""
        x = self.ln_1(x + self.drop(self.attn(x, cache)))
        return self.ln_2(x + self.drop(self.mlp(x)))  # Eq. 2


class GPT1(LanguageModel):
    """The language model (Sec. 3.1)."""

    def __init__(
        self,
        vocab_size: int = 40_478,
        d_model: int = 768,
        num_layers: int = 12,
        num_heads: int = 12,
        context: int = 512,
        dropout: float = 0.1,
    ):
        def block(_layer: int) -> PostNormBlock:
            return PostNormBlock(d_model, num_heads, dropout)

        super().__init__(vocab_size, context, d_model, num_layers, dropout, block)


class Classifier(nn.Module):
    """A language model, and a linear layer on what it makes of a text's last token (Sec. 3.2).

    The last token is one of its own, <extract>; `body` is any of the GPTs.
    """

    def __init__(self, body: LanguageModel, num_classes: int, dropout: float = 0.1):
        super().__init__()
        self.body, self.drop = body, Dropout(dropout)
        self.head = nn.Linear(body.wte.embedding_dim, num_classes)
        nn.init.normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    def forward(self, tokens: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Classes (B, K) of tokens (B, T), padded at the end, of these lengths (B,); and the
        logits (B, T, V) of the language model, for the auxiliary loss (Eq. 5)."""
        x = self.body.features(tokens)  # (B, T, D)
        last = x[torch.arange(len(x), device=x.device), lengths - 1]  # (B, D)
        return self.head(self.drop(last)), F.linear(x, self.body.wte.weight)


def gpt1(vocab_size: int = 40_478, **settings) -> GPT1:
    """116,534,784 parameters with its 40,478 tokens."""
    return GPT1(vocab_size, **settings)
