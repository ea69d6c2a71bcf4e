"""CLIP's loss, over all pairs of a step, whatever number of processes and of parts it is cut into.

Shapes: B pairs of a step, b of one part, E dimensions of the features.

Each part needs the features of all others. In `WholeStep` those of other processes are gathered,
and those of this process's other parts were computed beforehand without gradients (`look_ahead`);
then each part is computed again, with gradients, against all. That costs one more forward pass, and
gives the gradients of the large batch.
"""

import contextlib
from collections.abc import Iterator, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from common import seed_of
from common.device import REDUCED, Device


def contrastive_loss(
    image_features: Tensor, text_features: Tensor, scale: Tensor, same: Tensor
) -> Tensor:
    """The mean cross-entropy of the right text of each image, and the right image of each text.

    Features are (B, E), of length 1. `same` (B, B) is True where two pairs have equal captions: of
    several right answers all are to be as likely, and what even then can't be told is subtracted,
    so that a perfect network has a loss of zero. Without repetitions this is Fig. 3's loss; with
    them it has the same gradients, as equal texts have equal features, and another lowest value.
    """
    logits = scale * image_features @ text_features.T  # (B, B), a row an image
    count = same.sum(1).to(logits.dtype)  # right answers of each
    right = same / count  # (B, B): same is symmetric, and equal captions have equal counts
    texts = -(right * logits.log_softmax(1)).sum(1)
    images = -(right * logits.log_softmax(0)).sum(0)
    return ((texts + images) / 2 - count.log()).mean()


def keys_of(texts: Sequence[str], dev: Device) -> Tensor:
    """Numbers (B,) that are equal where texts are, in all processes alike."""
    return torch.tensor([seed_of(text) for text in texts], device=dev.device)


def gather(part: Tensor, dev: Device) -> list[Tensor]:
    """The tensors of all processes, of equal shapes, without gradients."""
    if not dev.distributed:
        return [part.detach()]
    sent = part.detach().contiguous()
    parts = [torch.empty_like(sent) for _ in range(dev.world)]
    REDUCED.append(sent)
    dist.all_gather(parts, sent)
    return parts


class WholeStep:
    """The features of all pairs of a step, and the loss of one part against them.

    `add` is called by all processes alike, once for each of their parts, in turn.
    """

    def __init__(self, dev: Device):
        self.dev = dev
        self.images: list[Tensor] = []  # (b, E), by part and process
        self.texts: list[Tensor] = []
        self.keys: list[Tensor] = []

    def add(self, image_features: Tensor, text_features: Tensor, keys: Tensor) -> None:
        """Takes one part's features (b, E), and numbers (b,) that are equal for equal captions."""
        self.images += gather(image_features, self.dev)
        self.texts += gather(text_features, self.dev)
        self.keys += gather(keys, self.dev)

    def loss(
        self, number: int, image_features: Tensor, text_features: Tensor, scale: Tensor
    ) -> Tensor:
        """The loss of the whole step, with gradients for this process's part `number`.

        Gradients of all parts and processes add up to those of the whole. Of the `scale`, which
        each of them has, it is an equal share.
        """
        place, pieces = number * self.dev.world + self.dev.rank, len(self.images)
        images, texts = list(self.images), list(self.texts)
        images[place], texts[place] = image_features, text_features
        scale = scale.detach() + (scale - scale.detach()) / pieces
        keys = torch.cat(self.keys)
        same = keys[:, None] == keys[None]
        return contrastive_loss(torch.cat(images), torch.cat(texts), scale, same)


@contextlib.contextmanager
def unrecorded(model: nn.Module) -> Iterator[None]:
    """Batch norm normalises by the batch as in training, but keeps no statistics of it."""
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d) and m.training]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


def look_ahead(model: nn.Module, parts: list, dev: Device) -> WholeStep:
    """The features of all parts of a step, without gradients (the first of two passes)."""
    step = WholeStep(dev)
    with torch.no_grad(), unrecorded(model), dev.autocast():
        for images, texts, keys in parts:
            step.add(*model(images, texts)[:2], keys)
    return step
