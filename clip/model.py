"""CLIP (Radford, Kim, Hallacy, Ramesh, Goh, Agarwal, Sastry, Askell, Mishkin, Clark, Krueger,
Sutskever 2021, arXiv:2103.00020).

An image encoder and a text encoder learn one space: of a batch of pairs each image's own caption is
to be the nearest of all captions there, and each caption's own image the nearest image. No labels
are needed, and afterwards whatever can be said in words is a class: "a photo of a dog".

Shapes: B batch, H and W pixels, T tokens, D width of the text encoder, E dimensions of the space,
V vocabulary.

Parameters bear OpenAI's names (names.py has those of transformers). Departures: the features are
returned divided by their lengths, as all that is done with them needs. The end of a text is found
by its token, not by the largest number in the row: the same for the released vocabulary, in which
it is the last one. Its limit of 100 for the scale is kept by who trains, by `limit_scale`. The
paper has 76 tokens and 49,152 words, the released networks (and these) 77 and 49,408.
layers.py and vision.py say more.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clip.layers import Transformer
from clip.vision import ModifiedResNet, VisionTransformer

FIRST_SCALE, MOST_SCALE = 1 / 0.07, 100.0  # what cosines are multiplied by (Sec. 2.5)
CONTEXT = 77  # tokens of a text


def unit(features: Tensor) -> Tensor:
    """Features (B, E) divided by their lengths, in fp32 at least: in bf16 near ones are equal."""
    return F.normalize(features.to(torch.promote_types(features.dtype, torch.float32)), dim=1)


class CLIP(nn.Module):
    """Two encoders and a scale (Fig. 1, left; Fig. 3).

    With a `patch_size` images are read by a Vision Transformer of `vision_layers` blocks, else by a
    ResNet, `vision_layers` blocks a stage. A text of at most `context` tokens ends in `end_token`
    (default: the last of the vocabulary); what comes after it isn't read.
    `words_first` is for small networks: see `begin_with_words`.
    Raises ValueError for sizes that don't fit together.
    """

    def __init__(
        self,
        embed_dim: int,
        image_size: int,
        vision_layers: int | Sequence[int],
        vision_width: int,
        vision_heads: int,
        patch_size: int | None,
        text_width: int,
        text_layers: int,
        text_heads: int,
        context: int = CONTEXT,
        vocab_size: int = 49_408,
        end_token: int | None = None,
        activation: str = "quick_gelu",
        stem_stride: int = 4,
        words_first: bool = False,
    ):
        super().__init__()
        self.image_size, self.context = image_size, context
        self.end_token = vocab_size - 1 if end_token is None else end_token
        sizes = vision_width, vision_layers, vision_heads, embed_dim
        if patch_size:
            self.visual = VisionTransformer(image_size, patch_size, *sizes, activation)
        else:
            width, layers, heads, _ = sizes
            self.visual = ModifiedResNet(image_size, layers, width, heads, embed_dim, stem_stride)
        self.transformer = Transformer(text_width, text_layers, text_heads, True, activation)
        self.token_embedding = nn.Embedding(vocab_size, text_width)
        self.positional_embedding = nn.Parameter(torch.empty(context, text_width))
        self.ln_final = nn.LayerNorm(text_width)
        self.text_projection = nn.Parameter(torch.empty(text_width, embed_dim))
        self.logit_scale = nn.Parameter(torch.tensor(math.log(FIRST_SCALE)))
        self.initialise()
        if words_first:
            self.begin_with_words()

    def initialise(self) -> None:
        """The released code's initial weights of the text encoder: the deeper, the smaller what
        each block adds."""
        width, layers = self.transformer.resblocks[0].ln_1.normalized_shape[0], self.transformer
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.positional_embedding, std=0.01)
        nn.init.normal_(self.text_projection, std=width**-0.5)
        added = width**-0.5 * (2 * len(layers.resblocks)) ** -0.5
        for block in layers.resblocks:
            nn.init.normal_(block.attn.in_proj_weight, std=width**-0.5)
            nn.init.normal_(block.attn.out_proj.weight, std=added)
            nn.init.normal_(block.mlp.c_fc.weight, std=(2 * width) ** -0.5)
            nn.init.normal_(block.mlp.c_proj.weight, std=added)

    @torch.no_grad()
    def begin_with_words(self) -> None:
        """Makes the text encoder begin as a mean of words, whatever their order: all are looked at
        alike, and what the feed-forward networks add begins at zero. For short trainings of small
        networks: as released, the features of a text change so fast at first that images can't
        follow."""
        width = self.text_projection.shape[0]
        nn.init.normal_(self.token_embedding.weight)
        self.token_embedding.weight[self.end_token] = 0.0  # the feature is what it looks at
        self.positional_embedding.mul_(0.1)
        for block in self.transformer.resblocks:
            block.attn.in_proj_weight[: 2 * width].mul_(0.1)  # of queries and keys
            nn.init.normal_(block.attn.out_proj.weight, std=width**-0.5)
            nn.init.zeros_(block.mlp.c_proj.weight)

    def encode_image(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) to features of length 1, (B, E)."""
        if images.shape[2:] != (self.image_size, self.image_size):
            size = "x".join(map(str, images.shape[2:]))
            raise ValueError(f"images of {size} pixels, but positions for {self.image_size}")
        return unit(self.visual(images))

    # fmt: off
    def encode_text(self, tokens: Tensor) -> Tensor:
        """Tokens (B, T), each row with `end_token` in it, to features of length 1, (B, E)."""
        if tokens.shape[1] > self.context:
            raise ValueError(f"texts of {tokens.shape[1]} tokens, but positions for {self.context}")
        x = self.token_embedding(tokens)                                # (B, T, D)
        x = x + self.positional_embedding[: tokens.shape[1]]            # (B, T, D)
        x = self.ln_final(self.transformer(x))                          # (B, T, D)
        ends = (tokens == self.end_token).int().argmax(1)               # (B,), of the first one
        x = x[torch.arange(len(x), device=x.device), ends]              # (B, D)
        return unit(x @ self.text_projection)                           # (B, E)
    # fmt: on

    def forward(self, images: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Features (B, E) of images and of texts, and the scale of their products' logits."""
        return self.encode_image(images), self.encode_text(tokens), self.logit_scale.exp()

    @torch.no_grad()
    def limit_scale(self) -> None:
        """Keeps the scale at MOST_SCALE at most; after each step (Sec. 2.5)."""
        self.logit_scale.clamp_(max=math.log(MOST_SCALE))


# fmt: off
TEXT = dict(text_width=512, text_layers=12, text_heads=8)
SIZES = {  # Tables 19 and 20; the last is ours, for small images
    "clip_vit_b_32": dict(embed_dim=512, image_size=224, patch_size=32, vision_layers=12,
                          vision_width=768, vision_heads=12, **TEXT),
    "clip_vit_b_16": dict(embed_dim=512, image_size=224, patch_size=16, vision_layers=12,
                          vision_width=768, vision_heads=12, **TEXT),
    "clip_vit_l_14": dict(embed_dim=768, image_size=224, patch_size=14, vision_layers=24,
                          vision_width=1024, vision_heads=16,
                          text_width=768, text_layers=12, text_heads=12),
    "clip_resnet50": dict(embed_dim=1024, image_size=224, patch_size=None,
                          vision_layers=(3, 4, 6, 3), vision_width=64, vision_heads=32, **TEXT),
    "clip_small":    dict(embed_dim=64, image_size=24, patch_size=None, vision_layers=(1, 1, 1),
                          vision_width=16, vision_heads=4, stem_stride=2,
                          text_width=64, text_layers=1, text_heads=2, vocab_size=1024,
                          words_first=True),
}
# fmt: on


def clip_vit_b_32(**settings) -> CLIP:
    """CLIP with ViT-B/32; 151,277,313 parameters."""
    return CLIP(**SIZES["clip_vit_b_32"] | settings)


def clip_vit_b_16(**settings) -> CLIP:
    """CLIP with ViT-B/16; 149,620,737 parameters."""
    return CLIP(**SIZES["clip_vit_b_16"] | settings)


def clip_vit_l_14(**settings) -> CLIP:
    """CLIP with ViT-L/14; 427,616,513 parameters, 427,944,193 for 336 pixels."""
    return CLIP(**SIZES["clip_vit_l_14"] | settings)


def clip_resnet50(**settings) -> CLIP:
    """CLIP with the modified ResNet-50; 102,007,137 parameters."""
    return CLIP(**SIZES["clip_resnet50"] | settings)


def clip_small(**settings) -> CLIP:
    """Not of the paper: a small modified ResNet for images of 24 pixels, and one layer for text."""
    return CLIP(**SIZES["clip_small"] | settings)


MODELS = {
    "clip_small": clip_small,
    "clip_vit_b_32": clip_vit_b_32,
    "clip_vit_b_16": clip_vit_b_16,
    "clip_vit_l_14": clip_vit_l_14,
    "clip_resnet50": clip_resnet50,
}
