"""Writing what follows a prompt with images, and where its images were looked at.

tokens, files = prompt tokens with marks, and an image for each mark
written = write(model, words, tokens, images, length=30)
maps = looked_at(model, words, tokens, written, images)         # (T, P), of the last image
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from common import counted, fail
from common.decode import generate
from flamingo.data import Words
from flamingo.model import Flamingo


def check_marks(marks: int, images: Sequence[object]) -> None:
    """Ends in one line unless each mark has an image, and each image a mark."""
    if marks > len(images):
        named = f"{counted(len(images), 'image')} {'is' if len(images) == 1 else 'are'}"
        fail(f"the prompt has {counted(marks, 'image mark')}, but {named} named: each <image> "
             "needs one, in their order")  # fmt: skip
    if marks < len(images):
        where = f"{images[marks]} has no mark" if marks else "the images have no marks"
        fail(f"{where} in the prompt: write <image> where each of the {len(images)} stands")


def check_length(model: Flamingo, tokens: Sequence[int]) -> None:
    """Ends in one line for a prompt that leaves no room to write."""
    context = model.lang_encoder.context
    if len(tokens) >= context:
        fail(f"the prompt has {len(tokens):,} tokens, and the language model sees {context:,} with "
             "what it writes: give fewer examples, or shorter ones")  # fmt: skip


@torch.no_grad()
def write(
    model: Flamingo,
    words: Words,
    tokens: Sequence[int],
    images: Tensor | None,
    length: int = 30,
    temperature: float = 0.0,
    seed: int = 0,
) -> list[int]:
    """At most `length` tokens that follow a prompt (T,), until it ends; `images` (M, 3, H, W) are
    those of its marks, None where it has none. Temperature 0 is the likeliest token at each step.
    """
    start = torch.tensor([tokens], device=model.lang_encoder.wte.weight.device)
    most = min(length, model.lang_encoder.context - len(tokens))

    def step(so_far: Tensor, state: dict) -> tuple[Tensor, dict]:
        logits, state = model.step(so_far, state)
        logits = logits.float()
        logits[:, [words.mark, *words.vocabulary.never]] = -math.inf  # it writes no images
        return logits, state

    state = model.begin(start, None if images is None else images[None])
    how = dict(temperature=temperature, generator=torch.Generator().manual_seed(seed))
    return generate(step, state, start, most, words.end, **how)[0]


@torch.no_grad()
def looked_at(
    model: Flamingo, words: Words, tokens: Sequence[int], written: Sequence[int], images: Tensor
) -> Tensor:
    """How much each of the tokens that were written came of each place of the last image, (T, P).

    The attention from the token before it to the image's latents, times that of the latents to
    places in the resampler's last layer; means over heads and gated layers. That is where it
    looked, not why it answered: layers in between mix what they see.
    """
    whole = torch.tensor([[*tokens, *written]], device=images.device)[:, :-1]
    layers = [layer.attn for layer in model.gated]
    resampler = [attention for attention, _ in model.perceiver.layers][-1:]
    for attention in (*layers, *resampler):
        attention.recording = True
    try:
        model(whole, images[None])
        latents = layers[0].weights.shape[3] // len(images)
        here = slice(len(tokens) - 1, None)
        of_text = torch.stack([a.weights[0, :, here, -latents:].mean(0) for a in layers]).mean(0)
        if resampler:  # (T, L) by (L, P): places come first, latents after them
            to_places = resampler[0].weights[-1].mean(0)[:, : model.vision_encoder.places]
            of_text = of_text @ (to_places / to_places.sum(1, keepdim=True).clamp(min=1e-9))
    finally:
        for attention in (*layers, *resampler):
            attention.recording, attention.weights = False, None
    return of_text.float().cpu()


def as_map(weights: Tensor) -> Tensor:
    """Weights of places (P,) as a square map; a ViT's class token, the first, is left out."""
    side = math.isqrt(len(weights))
    return weights[-(side**2) :].view(side, side)
