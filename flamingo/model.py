"""Flamingo (Alayrac, Donahue, Luc, Miech and 23 others 2022, arXiv:2204.14198).

A language model that sees. An image encoder (here CLIP's) and a language model (here a GPT) stay
as they were trained; between them are learned a resampler, which makes a few latents of each image
(resampler.py), and gated layers before the language model's blocks, by which text looks at images
(layers.py). Images stand anywhere in the text, so that a task is shown by a few examples.

Shapes: B batch, T tokens, V vocabulary, M images (or videos), F frames, P places of a frame, C the
encoder's width, L latents, D width of the latents.

    model = flamingo_small()
    logits = model(tokens, images)                       # (B, T), (B, M, 3, H, W) to (B, T, V)
    logits, state = model.step(tokens, model.begin(images))      # (B, V), of the next token alone

In `tokens` each image has its mark, `image_token`, a token of the language model's own. Departures:
the paper's encoder is an NFNet-F6 and its language model Chinchilla, neither of which was given
away; CLIP's ViT-L/14 and a GPT of Chinchilla's sizes stand for them. Its tokens <BOS> and <EOC> are
one here, the GPT's end of a document. A token sees the image of its own mark, as in OpenFlamingo.
`flamingo_small` has embeddings of places, as its images are of few. Parameters bear the names of
OpenFlamingo's checkpoints, but for the gated layers, which are `gated` here.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clip.model import VisionTransformer, clip_small
from flamingo.layers import GatedCrossAttentionBlock, images_before, sight
from flamingo.resampler import PerceiverResampler
from gpt.model import GPT2, gpt_tiny

PARTS = ("vision_encoder", "lang_encoder")  # that were trained before
IMAGE_TOKEN = 1  # where nothing else is said; train.py asks the vocabulary


class Flamingo(nn.Module):
    """The whole (Fig. 3).

    `vision_encoder` has `features` (B, P, C) of images, `width` C and `places` P; `lang_encoder` is
    one of gpt's. `every` says which of its blocks have a gated layer before them: every, every
    fourth. `width` of the resampler is the encoder's where it is None. With `placed` places have
    embeddings. `frozen` names the parts that keep their weights.
    """

    def __init__(
        self,
        vision_encoder: nn.Module,
        lang_encoder: nn.Module,
        every: int = 1,
        num_heads: int = 16,
        d_head: int = 128,
        num_latents: int = 64,
        width: int | None = None,
        resampler_layers: int = 6,
        resampler_heads: int = 16,
        num_frames: int = 8,
        placed: bool = False,
        activation: str = "squared_relu",
        gated: bool = True,
        image_token: int = IMAGE_TOKEN,
        frozen: Sequence[str] = PARTS,
    ):
        super().__init__()
        self.image_token, self.every, self.frozen = image_token, every, tuple(frozen)
        self.vision_encoder, self.lang_encoder = vision_encoder, lang_encoder
        width = width or vision_encoder.width
        self.perceiver = PerceiverResampler(
            vision_encoder.width,
            width,
            resampler_layers,
            resampler_heads,
            d_head,
            num_latents,
            num_frames,
            vision_encoder.places if placed else 0,
            activation,
        )
        text_width = lang_encoder.wte.embedding_dim
        self.gated = nn.ModuleList(
            GatedCrossAttentionBlock(text_width, width, num_heads, d_head, activation, gated)
            for _ in range(0, len(lang_encoder.h), every)
        )
        for name in self.frozen:
            getattr(self, name).requires_grad_(False)

    def train(self, mode: bool = True) -> "Flamingo":
        """Frozen parts stay in evaluation: no dropout, and batch norm keeps its statistics."""
        super().train(mode)
        for name in self.frozen:
            getattr(self, name).eval()
        return self

    # fmt: off
    def look(self, images: Tensor) -> Tensor:
        """Images (B, M, 3, H, W), or videos (B, M, F, 3, H, W), to features (B, M, F, P, C)."""
        videos = images if images.dim() == 6 else images[:, :, None]     # (B, M, F, 3, H, W)
        with torch.set_grad_enabled(torch.is_grad_enabled() and PARTS[0] not in self.frozen):
            features = self.vision_encoder.features(videos.flatten(0, 2))
        return features.unflatten(0, videos.shape[:3])

    def resample(self, features: Tensor) -> Tensor:
        """Features (B, M, F, P, C) to latents (B, M, L, D)."""
        return self.perceiver(features.flatten(0, 1)).unflatten(0, features.shape[:2])

    def read(self, tokens: Tensor, media: list[dict], cache: list[dict] | None = None) -> Tensor:
        """All tokens so far (B, T), with the images' keys and values by layer, to what the
        language model's last layer sees of those that the cache hasn't: (B, new, width)."""
        past = cache[0]["key"].shape[2] if cache and cache[0] else 0
        visible = None
        if media:
            seen = images_before(tokens, self.image_token)[:, past:]     # (B, new)
            visible = sight(seen, *media[0]["key"].shape[2:4])           # (B, new, M L)

        def before(layer: int, x: Tensor) -> Tensor:
            if not media or layer % self.every:
                return x
            place = layer // self.every
            return self.gated[place](x, media[place], visible)

        return self.lang_encoder.features(tokens[:, past:], cache, before)

    def forward(self, tokens: Tensor, images: Tensor | None = None,
                features: Tensor | None = None) -> Tensor:
        """Logits (B, T, V) of the token that follows each of the tokens (B, T).

        The images, or their features as `look` gives them, stand at the marks in `tokens`. Without
        both it is the language model. In evaluation a row with more marks than images raises
        ValueError; in training, where to look would be to wait for the device, it sees none there.
        """
        x = self.read(tokens, self.media(tokens, images, features))
        return F.linear(x, self.lang_encoder.wte.weight)
    # fmt: on

    def media(self, tokens: Tensor, images: Tensor | None, features: Tensor | None) -> list[dict]:
        """Keys and values of the images by gated layer; none where there are no images."""
        if images is None and features is None:
            return []
        latents = self.resample(self.look(images) if features is None else features)
        marks = 0 if self.training else int((tokens == self.image_token).sum(1).max())
        if marks > latents.shape[1]:
            raise ValueError(f"{marks} image marks, but {latents.shape[1]} images")
        return [layer.keys(latents) for layer in self.gated]

    # ------------------------------------------------------------------ writing

    def begin(
        self,
        tokens: Tensor,
        images: Tensor | None = None,
        features: Tensor | None = None,
        cached: bool = True,
    ) -> dict:
        """What `step` goes on from, for a prompt (B, T) with its images: these are looked at once.

        Raises ValueError as `forward` does.
        """
        cache = self.lang_encoder.new_cache() if cached else None
        return {"media": self.media(tokens, images, features), "cache": cache}

    def step(self, tokens: Tensor, state: dict) -> tuple[Tensor, dict]:
        """All tokens so far (B, T) to the logits (B, V) of the next, and the state then.

        For `common.decode.generate`: the cache holds all but the newest token; without one all is
        read anew. Raises ValueError for more tokens than the context.
        """
        x = self.read(tokens, state["media"], state["cache"])[:, -1]
        return F.linear(x, self.lang_encoder.wte.weight), state


# fmt: off
PAPER = dict(num_latents=64, width=1536, resampler_layers=6, resampler_heads=16, num_frames=8,
             d_head=128)
SIZES = {  # Table 1, and the appendix's table of hyper-parameters; the last is ours
    "flamingo_3b":    PAPER | dict(every=1, num_heads=16),
    "flamingo_9b":    PAPER | dict(every=4, num_heads=32),
    "flamingo_80b":   PAPER | dict(every=7, num_heads=64),
    "flamingo_small": dict(num_latents=16, width=128, resampler_layers=2, resampler_heads=4,
                           num_frames=1, d_head=32, every=1, num_heads=4, placed=True),
}
LANGUAGE = {  # Chinchilla's: 1.4, 7.1 and 70 billion; 32,000 tokens, windows of 2,048
    "flamingo_3b":    dict(d_model=2048, num_layers=24, num_heads=16),
    "flamingo_9b":    dict(d_model=4096, num_layers=40, num_heads=32),
    "flamingo_80b":   dict(d_model=8192, num_layers=80, num_heads=64),
}
# fmt: on


def of_the_paper(
    name: str, vision: nn.Module | None, language: nn.Module | None, **own
) -> Flamingo:
    """A published size around these parts, or new ones: ViT-L/14 of CLIP, a GPT of Chinchilla's
    sizes."""
    vision = vision or VisionTransformer(224, 14, 1024, 24, 16, 768, "quick_gelu")
    language = language or GPT2(32_000, context=2048, dropout=0.0, **LANGUAGE[name])
    return Flamingo(vision, language, **SIZES[name] | own)


def flamingo_3b(vision: nn.Module | None = None, language: nn.Module | None = None, **settings):
    """A gated layer before each of 24 blocks."""
    return of_the_paper("flamingo_3b", vision, language, **settings)


def flamingo_9b(vision: nn.Module | None = None, language: nn.Module | None = None, **settings):
    """A gated layer before every fourth of 40 blocks."""
    return of_the_paper("flamingo_9b", vision, language, **settings)


def flamingo_80b(vision: nn.Module | None = None, language: nn.Module | None = None, **settings):
    """A gated layer before every seventh of 80 blocks: the Flamingo."""
    return of_the_paper("flamingo_80b", vision, language, **settings)


def flamingo_small(vision: nn.Module | None = None, language: nn.Module | None = None, **settings):
    """Ours, for minutes of one machine, around `clip_small` and `gpt_tiny`."""
    vision = vision or clip_small().visual
    language = language or gpt_tiny(context=256, dropout=0.0)
    return Flamingo(vision, language, **SIZES["flamingo_small"] | settings)


MODELS = {
    "flamingo_3b": flamingo_3b,
    "flamingo_9b": flamingo_9b,
    "flamingo_80b": flamingo_80b,
    "flamingo_small": flamingo_small,
}
