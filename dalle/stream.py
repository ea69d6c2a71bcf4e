"""The transformer of DALL-E (Ramesh et al. 2021, arXiv:2102.12092, Sec. 2.2).

A caption and its image are one sequence: up to 256 tokens of text, then the image's 1,024 codes in
reading order. The transformer learns to predict the next token of it, and so, given a caption, can
draw codes one after another, which the dVAE's decoder makes an image of. Missing words are tokens
too: each of the 256 places has a padding token of its own.

Shapes: B batch, T text places, N = h w image tokens, D d_model, V text vocabulary, K codes.

    logits = model(text, codes)             # (B, T), -1 where there is no word, and (B, h, w)
    loss, of_text, of_image = losses(*logits, text, codes)

The stream is read from a start token, so that the first word is predicted, too, and the last image
token isn't read: 1 + 256 + 1,023 = 1,280. Left open by the paper, and chosen here: padding tokens
are predicted as words are, so that the text's loss is a mean over all places; the outputs have
matrices of their own, without biases; parameters are called as GPT-2's (`h.0.attn.c_attn`), and
begin as there.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dalle.dvae import wide
from dalle.layers import Block, Layout

TEXT_WEIGHT, IMAGE_WEIGHT = 1 / 8, 7 / 8  # of their losses (Sec. 2.2)
SPARSE = "sparse"  # the paper's mixture of kinds


def kinds_of(attention: str, num_layers: int) -> list[str]:
    """The kind of attention of each layer: row, column, row, row, … and conv at last (App. B.1);
    or the same `attention` in all."""
    if attention != SPARSE:
        return [attention] * num_layers
    kinds = ["column" if (i - 2) % 4 == 0 else "row" for i in range(1, num_layers)]
    return [*kinds, "conv"]


def padded(text: Tensor, text_vocab: int) -> Tensor:
    """Text (B, T) with the padding token of each place, those after the words', in place of -1."""
    own = torch.arange(text_vocab, text_vocab + text.shape[1], device=text.device)
    return torch.where(text < 0, own, text)


class DALLE(nn.Module):
    """Embeddings of words, codes and their places, blocks of sparse attention, two outputs.

    `text_vocab` counts words without padding; `side` is the image grid's. `attention` is "sparse",
    or one kind for all layers. Raises ValueError for sizes that don't fit.
    """

    def __init__(
        self,
        text_vocab: int = 16_384,
        num_codes: int = 8192,
        text_length: int = 256,
        side: int = 32,
        d_model: int = 3968,
        num_layers: int = 64,
        num_heads: int = 62,
        attention: str = SPARSE,
        kernel: int = 11,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.text_vocab, self.text_length, self.num_codes = text_vocab, text_length, num_codes
        self.layout = layout = Layout(1 + text_length, side, side, kernel)
        self.start = nn.Parameter(torch.zeros(d_model))
        self.wte = nn.Embedding(text_vocab + text_length, d_model)  # words, then padding by place
        self.wpe = nn.Embedding(text_length, d_model)
        self.code = nn.Embedding(num_codes, d_model)
        self.row = nn.Embedding(side, d_model)  # of the image: a place is the sum of both (Fig. 10)
        self.column = nn.Embedding(side, d_model)
        self.drop = nn.Dropout(dropout)
        kinds = kinds_of(attention, num_layers)
        self.h = nn.ModuleList(Block(d_model, num_heads, kind, layout, dropout) for kind in kinds)
        self.ln_f = nn.LayerNorm(d_model)
        self.text_head = nn.Linear(d_model, text_vocab + text_length, bias=False)
        self.image_head = nn.Linear(d_model, num_codes, bias=False)
        for name, p in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(p)
            elif name.endswith("c_proj.weight"):  # 2L layers that add to the sum
                nn.init.normal_(p, std=0.02 / (2 * num_layers) ** 0.5)
            elif p.dim() == 2 or name == "start":
                nn.init.normal_(p, std=0.02)

    def read_text(self, text: Tensor) -> Tensor:
        """The start and the text (B, T), embedded: (B, 1 + T, D)."""
        words = self.wte(padded(text, self.text_vocab)) + self.wpe.weight
        return torch.cat([self.start.expand(len(text), 1, -1), words], 1)

    def read_codes(self, codes: Tensor, begin: int = 0) -> Tensor:
        """Image tokens (B, n) from the place `begin` on, embedded: (B, n, D)."""
        places = torch.arange(begin, begin + codes.shape[1], device=codes.device)
        width = self.layout.width
        return self.code(codes) + self.row(places // width) + self.column(places % width)

    def run(self, x: Tensor, cache: list[dict] | None = None) -> Tensor:
        """Embeddings (B, n, D), after those of the cache, to what the outputs see."""
        x = self.drop(x)
        for block, part in zip(self.h, cache or [None] * len(self.h), strict=True):
            x = block(x, part)
        return self.ln_f(x)

    # fmt: off
    def forward(self, text: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of the text (B, T, V + T) and of the image (B, N, K), each token from those before
        it; `text` is (B, T), -1 where there is no word, `codes` (B, h, w).

        Raises ValueError for another length or another grid than the stream's.
        """
        grid, length = (self.layout.height, self.layout.width), self.text_length
        if text.shape[1] != length or codes.shape[1:] != grid:
            raise ValueError(f"the stream has {length} tokens of text and {grid} of the image, "
                             f"not {text.shape[1]} and {tuple(codes.shape[1:])}")
        image = self.read_codes(codes.flatten(1)[:, :-1])                # (B, N - 1, D)
        x = self.run(torch.cat([self.read_text(text), image], 1))        # (B, T + N, D)
        return self.text_head(x[:, :length]), self.image_head(x[:, length:])
    # fmt: on

    def begin(self, text: Tensor, cached: bool = True) -> dict:
        """What `step` goes on from: the text (B, T) to draw for, and a cache of nothing."""
        cache = [{} for _ in self.h] if cached else None
        return {"text": text, "cache": cache}

    def step(self, codes: Tensor, state: dict) -> tuple[Tensor, dict]:
        """All image tokens so far (B, n) to the logits (B, K) of the next, and the state then.

        For `common.decode.generate`: the cache holds all but the newest token. Without one all is
        read anew.
        """
        n, cache = codes.shape[1], state["cache"]
        if cache is None or not cache[0]:
            x = torch.cat([self.read_text(state["text"]), self.read_codes(codes)], 1)
        else:
            x = self.read_codes(codes[:, -1:], n - 1)
        return self.image_head(self.run(x, cache)[:, -1]), state


def losses(
    text_logits: Tensor, image_logits: Tensor, text: Tensor, codes: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss, and nats a token of the text and of the image, weighed 1 to 7 (Sec. 2.2).

    `text` is (B, T) with -1 where there is no word, `codes` (B, h, w).
    """
    target = padded(text, text_logits.shape[2] - text.shape[1])
    of_text = F.cross_entropy(wide(text_logits).flatten(0, 1), target.flatten())
    of_image = F.cross_entropy(wide(image_logits).flatten(0, 1), codes.flatten())
    return TEXT_WEIGHT * of_text + IMAGE_WEIGHT * of_image, of_text, of_image


def dalle(text_vocab: int = 16_384, **settings) -> DALLE:
    """The paper's 12 billion: 64 layers of 62 heads of 64; its blocks have 12,095,479,808."""
    return DALLE(text_vocab, **settings)


def dalle_small(text_vocab: int = 512, **settings) -> DALLE:
    """Ours, for minutes of one machine: a stream of 24 + 64 tokens."""
    small = dict(d_model=128, num_layers=4, num_heads=4, text_length=24, side=8, kernel=5)
    return DALLE(text_vocab, **dict(num_codes=256) | small | settings)
