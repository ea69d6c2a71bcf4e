"""What a trained CLIP can do without further training: find texts and images, name classes.

Shapes: N images, M different texts, E dimensions of the features, K classes.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from clip.model import CLIP
from clip.prompts import ONE, class_features, templates_of
from common.data.captions import CaptionSet
from common.data.tokens import Tokens
from common.device import Device

RANKS = (1, 5, 10)
AMONG = 100  # different captions that one is to be found among
PROBED = 2000  # training images of a linear probe
STRENGTHS = (0.1, 1.0, 10.0, 100.0)  # of a probe's fit: scikit-learn's C


@torch.inference_mode()
def image_features(model: CLIP, part: CaptionSet, dev: Device) -> Tensor:
    """Features (N, E) of a part's images, in order; each process computes its share."""
    found = []
    for images, places in part.images.batches(250):
        with dev.autocast():
            found.append((places.cpu(), model.encode_image(images).cpu()))
    shares = [pair for share in dev.gather(found) for pair in share]
    places, features = (torch.cat(some) for some in zip(*shares, strict=True))
    return features[places.argsort()].to(dev.device)


@torch.inference_mode()
def text_features(model: CLIP, tokens: Tokens, texts: Sequence[str], dev: Device) -> Tensor:
    """Features (M, E) of texts."""
    found = []
    for begin in range(0, len(texts), 250):
        rows, _ = tokens.encode(texts[begin : begin + 250], model.context)
        with dev.autocast():
            found.append(model.encode_text(rows.to(dev.device)))
    return torch.cat(found)


def recall(similarity: Tensor, right: Tensor, ranks: Sequence[int] = RANKS) -> list[float]:
    """Of each row's K most similar columns, how often one of the `right` ones is there.

    `similarity` and `right` are (rows, columns); rows without a right one don't count.
    """
    rows = right.any(1)
    order = similarity[rows].topk(min(max(ranks), similarity.shape[1]), dim=1).indices
    hits = right[rows].gather(1, order).int().cummax(1).values.float().mean(0)
    return [float(hits[min(k, len(hits)) - 1]) for k in ranks]


def match(images: Tensor, texts: Tensor, owned: Sequence[Sequence[int]]) -> float:
    """How often an image's caption is the most similar of AMONG different ones, its own and those
    of other images: of as many as there are, if these are fewer.

    `owned` are by image the places of its captions among the texts; the first one counts. The
    images are taken in order, in groups, and those whose caption was there before are left out.
    """
    first: dict[int, int] = {}
    for image, places in enumerate(owned):
        first.setdefault(places[0], image)
    group = min(AMONG, len(first))
    some, rows = list(first), list(first.values())
    right = count = 0
    for begin in range(0, len(rows) - group + 1, group):
        part = slice(begin, begin + group)
        found = (images[rows[part]] @ texts[some[part]].T).argmax(1).cpu()
        right += int((found == torch.arange(group)).sum())
        count += group
    return right / count


def accuracy(images: Tensor, classes: Tensor, labels: Tensor) -> float:
    """How often the most similar of the classes' features (K, E) is the right one, of images (N, E)
    with labels (N,)."""
    return float(((images @ classes.T).argmax(1).cpu() == labels).float().mean())


def linear_probe(
    features: Tensor, labels: Tensor, test_features: Tensor, test_labels: Tensor
) -> float | None:
    """The accuracy on test features (M, E), with labels (M,), of logistic regression on frozen ones
    (N, E), with labels (N,), fitted by L-BFGS (Sec. 3.2).

    How strongly it is held back is chosen on the last fifth of the training features, by accuracy.
    None if the others are of one class alone.
    """
    import warnings

    from sklearn.linear_model import LogisticRegression

    def fitted(strength: float, x: Tensor, y: Tensor) -> LogisticRegression:
        with warnings.catch_warnings():  # of a fit that isn't over yet
            warnings.simplefilter("ignore")
            return LogisticRegression(C=strength, max_iter=1000).fit(x.numpy(), y.numpy())

    x, y = features.cpu().double(), labels.cpu()
    cut = len(x) - max(1, len(x) // 5)
    if len(set(y[:cut].tolist())) < 2:
        return None  # nothing to tell apart
    scores = {
        strength: fitted(strength, x[:cut], y[:cut]).score(x[cut:].numpy(), y[cut:].numpy())
        for strength in STRENGTHS
    }
    best = fitted(max(scores, key=scores.get), x, y)
    return float(best.score(test_features.cpu().double().numpy(), test_labels.cpu().numpy()))


def measure(
    model: CLIP,
    part: CaptionSet,
    tokens: Tokens,
    dev: Device,
    data: str,
    probe: CaptionSet | None = None,
) -> dict[str, float]:
    """All metrics of a part, under names that begin with its own.

    `match` is the caption found among 100; `text_r1` … the share of images with a right text among
    the 1, 5 or 10 most similar of all texts there, and `image_r1` … of texts with a right image.
    Where there are classes, `zero_shot` is the accuracy of an ensemble of prompts, and
    `zero_shot_one` that of "a photo of a …". With a `probe`, the training set, `probe` is that of
    a linear layer on the features of its first images.
    """
    model.eval()
    texts, owned = part.texts()
    images, captions = image_features(model, part, dev), text_features(model, tokens, texts, dev)
    right = torch.zeros(len(images), len(captions), dtype=torch.bool, device=images.device)
    for image, places in enumerate(owned):
        right[image, places] = True
    similarity = images @ captions.T
    found = {"match": match(images, captions, owned)}
    for name, values in (("text", recall(similarity, right)),
                         ("image", recall(similarity.T, right.T))):  # fmt: skip
        found |= {f"{name}_r{k}": value for k, value in zip(RANKS, values, strict=True)}
    if part.labels is not None:
        for name, templates in (("zero_shot", templates_of(data)), ("zero_shot_one", [ONE])):
            classes = class_features(model, tokens, part.facts["classes"], templates)
            found[name] = accuracy(images, classes, part.labels)
    if probe and probe.labels is not None:
        some = probe.first(PROBED)
        features = image_features(model, some, dev)
        share = linear_probe(features, some.labels, images, part.labels)
        found |= {} if share is None else {"probe": share}
    return {f"{part.part}_{key}": value for key, value in found.items()}
