"""Sentences around the names of classes, which make a classifier of a text encoder (Sec. 3.1.4)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from clip.model import CLIP
from common.data.tokens import Tokens

ONE = "a photo of a {}"
COLOURS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink")
SHAPES = [  # in the words of the scenes' captions; chosen on validation scenes
    *(f"a large {colour} {{}}" for colour in COLOURS),
    *(f"{'an' if colour == 'orange' else 'a'} {colour} {{}}" for colour in COLOURS),
]
PHOTOS = [  # a few kinds of what stands around names on the web; the paper has 80 for ImageNet
    "a photo of a {}.",
    "a photo of the {}.",
    "a close-up photo of a {}.",
    "a bright photo of a {}.",
    "a dark photo of the {}.",
    "a blurry photo of a {}.",
    "a cropped photo of a {}.",
    "a photo of many {}.",
    "a photo of a small {}.",
    "a photo of a large {}.",
    "a drawing of a {}.",
    "itap of a {}.",
]


def templates_of(data: str) -> list[str]:
    """The ensemble for the classes of a data set."""
    return SHAPES if data.startswith("shapes") else PHOTOS


def fill(template: str, name: str) -> str:
    """The sentence on a class; "a" becomes "an" before a vowel."""
    text = template.replace("{}", name)
    return text.replace(f" a {name}", f" an {name}") if name[:1].lower() in "aeiou" else text


@torch.inference_mode()
def class_features(
    model: CLIP, tokens: Tokens, classes: Sequence[str], templates: Sequence[str]
) -> Tensor:
    """A classifier (K, E): of each class the mean of its sentences' features, of length 1 again.

    The ensemble is built over features and not over probabilities, so that it costs as much as
    one sentence once it is made (Sec. 3.1.4).
    """
    device, means = model.logit_scale.device, []
    for name in classes:
        rows, _ = tokens.encode([fill(text, name) for text in templates], model.context)
        means.append(model.encode_text(rows.to(device)).mean(0))
    return F.normalize(torch.stack(means), dim=1)
