"""How good a text-to-image model is: its loss on held-out images; in the world of shapes also
whether a judge (common/scenes.py) sees what captions ask for, and how far from real images are:

- right: the share of unseen captions of one object whose image shows its shape and colour; and of
  their real images after the first stage has rebuilt them (rebuilt), which bounds it from above
  where nothing is guided;
- Fréchet distance (Heusel et al. 2017, arXiv:1706.08500, Eq. 6) of normal distributions fitted to
  the judge's features of images for test captions, and of the test images;
- spread: how different images for one caption are: the mean distance of their features, over that
  of test images.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from common import cli
from common.data.captions import CaptionSet
from common.device import Device, forked
from common.scenes import TEST_SEED, Judge, one_object, ready, wanted
from latentdiffusion.data import CHUNK, Latents, Words
from latentdiffusion.diffusion import LatentDiffusion
from latentdiffusion.draw import how_of, images_for, numbered, teller

SHOWN = 16  # images of samples.png
JUDGED = {"test": TEST_SEED, "val": 2}  # seeds of the scenes whose captions are drawn and judged
AGAIN = 8, 8  # captions whose images are compared with one another, and how many of each


@torch.inference_mode()
def mean_loss(model: LatentDiffusion, latents: Latents, dev: Device) -> dict[str, float]:
    """The loss over a part of the data, always with the same noise."""
    model.eval()
    total = torch.zeros((), device=dev.device)
    with forked("loss", dev):
        for known, tokens in latents.batches(64, shuffle=False):
            total += model(model.to_latents(known), tokens) * len(tokens)
    return {f"{latents.part.part}_loss": float(dev.sum(total)) / len(latents)}


def shared(
    model: LatentDiffusion, words: Words, texts: Sequence[str], key: str, args, dev: Device
) -> Tensor:
    """Images for texts, drawn by all processes together: (N, 3, S, S)."""
    own = range(dev.rank, len(texts), dev.world)
    seeds = numbered(key, len(texts))
    made = []
    if own:
        tell = teller(model, words, [texts[i] for i in own], dev)
        mine, shape = [seeds[i] for i in own], (args.size, args.size)
        made = list(images_for(model, tell, mine, shape, dev, how_of(args)))
    images: list = [None] * len(texts)
    for rank, some in enumerate(dev.gather(made)):
        images[rank :: dev.world] = some
    return torch.stack(images)


def as_pixels(part: CaptionSet, rows: Tensor) -> Tensor:
    """The images at `rows` of a part, from 0 to 1."""
    return (part.images.examples(rows)[0] + 1) / 2


@torch.inference_mode()
def rebuilt(model: LatentDiffusion, pixels: Tensor, dev: Device) -> Tensor:
    """Images (N, 3, S, S), uint8, as the first stage rebuilds them: from 0 to 1, on the CPU."""
    made = []
    for part in pixels.split(CHUNK):
        x = part.to(dev.device).float() / 127.5 - 1
        with dev.autocast():
            z = model.to_latents(model.autoencoder.encode(x), drawn=False)
            made.append(model.to_pixels(z).float().cpu())
    return torch.cat(made)


def real_features(judge: Judge, part: CaptionSet, dev: Device) -> Tensor:
    """The features of a part's images, (N, D)."""
    rows = torch.arange(len(part)).split(500)
    return torch.cat([features(judge, as_pixels(part, some), dev) for some in rows])


@torch.no_grad()
def features(judge: Judge, images: Tensor, dev: Device) -> Tensor:
    """The judge's features (N, D), float64, on the CPU."""
    parts = (judge.features(part.to(dev.device)).cpu() for part in images.split(500))
    return torch.cat(list(parts)).double()


def frechet(a: Tensor, b: Tensor) -> float:
    """The squared Fréchet distance between normal distributions fitted to (N, D) and (M, D)."""
    means, covariances = [a.mean(0), b.mean(0)], [a.T.cov(), b.T.cov()]
    values, vectors = torch.linalg.eigh(covariances[0])
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    mixed = torch.linalg.eigvalsh(root @ covariances[1] @ root).clamp(min=0).sqrt().sum()
    apart = (means[0] - means[1]).square().sum()
    return float(apart + covariances[0].trace() + covariances[1].trace() - 2 * mixed)


def distance(found: Tensor) -> float:
    """The mean distance between different rows of (N, D)."""
    return float(torch.pdist(found).mean())


def quality(
    model: LatentDiffusion,
    words: Words,
    test: CaptionSet,
    args: cli.Flags,
    dev: Device,
    spread: bool = False,
) -> dict[str, float]:
    """The measures of the world of shapes, of --samples images each: what is right, with --frechet
    the Fréchet distance, with `spread` that, too."""
    with torch.inference_mode(False):
        judge = ready(dev)
    dev.say(str(judge))
    asked, part = one_object(args.samples, args.size, JUDGED[args.judged]), args.judged
    made = shared(model, words, asked.captions, "right", args, dev)
    shapes, colours = wanted(asked.captions)
    seen = judge.read(made)
    again = rebuilt(model, asked.pixels, dev)
    metrics = {
        f"{part}_right": float(judge.right(made, shapes, colours).double().mean()),
        f"{part}_shape": float((seen[0] == shapes).double().mean()),
        f"{part}_colour": float((seen[1] == colours).double().mean()),
        f"{part}_rebuilt": float(judge.right(again, shapes, colours).double().mean()),
        "judge_right": judge.accuracy["both"],
    }
    if args.frechet or spread:
        real = real_features(judge, test, dev)
    if args.frechet:
        texts = [some[0] for some in test.captions[: args.samples]]
        made = features(judge, shared(model, words, texts, "frechet", args, dev), dev)
        metrics["test_frechet"] = frechet(real, made)
    if spread:
        count, times = AGAIN
        texts = [text for text in asked.captions[:count] for _ in range(times)]
        again = features(judge, shared(model, words, texts, "spread", args, dev), dev)
        near = [distance(part) for part in again.split(times)]
        metrics["test_spread"] = sum(near) / len(near) / distance(real)
    return metrics


def show(model: LatentDiffusion, words: Words, texts, args, dev: Device, path: Path) -> None:
    """Writes images for some captions, with these as titles."""
    import textwrap

    from common.plot import image_grid

    texts = texts[:SHOWN]
    images = shared(model, words, texts, "shown", args, dev)
    if dev.main:
        titles = ["\n".join(textwrap.wrap(text, 24)[:3]) for text in texts]
        image_grid(images, path, titles, columns=4, size=1.8)
