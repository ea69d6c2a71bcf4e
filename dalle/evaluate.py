"""How good the two networks are: the codes, the stream's likelihood, and pictures for prompts.

The pictures are judged by common/scenes.py: whether a network that was trained on scenes sees the
shape and the colour that the prompt names.
"""

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from common import cli
from common.data.captions import CaptionSet
from common.data.images import ImageSet
from common.decode import generate
from common.device import Device, forked
from common.run import progress_bar
from common.scenes import one_object, ready, wanted
from dalle.data import Words, images_of, plainly
from dalle.model import DALLE, DVAE, losses

SHOWN = 40  # pictures of samples.png
PART = 100  # images that are drawn side by side


@contextlib.contextmanager
def averaged(model: nn.Module, ema: dict[str, Tensor]) -> Iterator[None]:
    """Inside, the model has the averaged weights, if there are some."""
    parameters = dict(model.named_parameters())
    kept = {name: parameters[name].detach().clone() for name in ema}
    with torch.no_grad():
        for name, value in ema.items():
            parameters[name].copy_(value)
        try:
            yield
        finally:
            for name, value in kept.items():
                parameters[name].copy_(value)


@torch.no_grad()
def code_metrics(
    model: DVAE, part: CaptionSet | ImageSet, args: cli.Flags, dev: Device
) -> dict[str, float]:
    """The bound, its terms, and how the likeliest codes do.

    `loss` is the negative bound in nats a value (with a KL term of weight 1), `error` the mean
    squared error of images rebuilt from their likeliest codes, `psnr` the same in dB, `used` the
    share of the codes that any place has, `perplexity` as many as would be used equally often for
    the same entropy.
    """
    model.eval()
    images = images_of(part)
    sums = torch.zeros(3, device=dev.device)
    counts = torch.zeros(model.num_codes, device=dev.device)
    with forked("codes", dev):
        for x, _ in images.batches(100):
            with dev.autocast():
                logits = model.logits(x)
                nats, kl = model.terms(x, logits, args.temperature)
                codes = logits.argmax(1)
                error = (model.decode(codes).float() - x).square().mean()
            sums += torch.stack([nats.float(), kl.float(), error]) * len(x)
            counts += codes.flatten().bincount(minlength=model.num_codes)
    nats, kl, error = (dev.sum(sums) / len(images)).tolist()
    shares = dev.sum(counts) / counts.sum()
    entropy = -(shares * shares.clamp(min=1e-12).log()).sum()
    used = float((shares > 0).float().mean())
    found = dict(loss=nats + kl, nats=nats, kl=kl, error=error, used=used)
    found |= dict(perplexity=float(entropy.exp()), psnr=-10 * math.log10(max(error, 1e-10)))
    return {f"{images.part}_{key}": value for key, value in found.items()}


@torch.no_grad()
def stream_metrics(
    model: DALLE, dvae: DVAE, part: CaptionSet, words: Words, dev: Device
) -> dict[str, float]:
    """The loss, and nats a token of text and of image, of each image with its first caption."""
    model.eval()
    sums = torch.zeros(3, device=dev.device)
    for x, places in part.images.batches(50):
        captions = [part.captions[place][0] for place in places.tolist()]
        text = words.encode(captions).to(dev.device)
        with dev.autocast():
            codes = dvae.encode(x)
            found = losses(*model(text, codes), text, codes)
        sums += torch.stack([value.float() for value in found]) * len(x)
    values = (dev.sum(sums) / len(part)).tolist()
    keys = ("loss", "text_loss", "image_loss")
    return {f"{part.part}_{key}": value for key, value in zip(keys, values, strict=True)}


@torch.no_grad()
def draw(
    model: DALLE,
    dvae: DVAE,
    text: Tensor,
    dev: Device,
    seed: int = 0,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    begun: Tensor | None = None,
) -> Tensor:
    """Images (N, 3, S, S), from 0 to 1, drawn for captions (N, T), PART at a time.

    `begun` (N, n) are codes that they begin with. The same seed draws the same images.
    """
    model.eval()
    layout, made = model.layout, []
    generator = torch.Generator().manual_seed(seed)
    how = dict(temperature=temperature, top_k=top_k, top_p=top_p, generator=generator)
    if begun is None:
        begun = torch.empty(len(text), 0, dtype=torch.int64)
    most = layout.height * layout.width - begun.shape[1]
    parts = list(zip(text.split(PART), begun.split(PART), strict=True))
    for some, first in progress_bar(parts, dev, "drawing", len(parts)):
        first = first.to(dev.device)
        with dev.autocast():
            new = generate(model.step, model.begin(some.to(dev.device)), first, most, **how)
            new = torch.tensor(new, dtype=torch.int64, device=dev.device).view(len(some), most)
            codes = torch.cat([first, new], 1).view(-1, layout.height, layout.width)
            made.append(dvae.decode(codes).float())
    return torch.cat(made)


def prompt_metrics(
    model: DALLE,
    dvae: DVAE,
    words: Words,
    args: cli.Flags,
    dev: Device,
    picture: Path | None = None,
    seed: int = 1,
) -> dict[str, float]:
    """Draws an image for each of --prompts unseen captions of one object, and judges them.

    `right` is the share with the shape and the colour that are asked for, `plain_right` that with
    the shape where only this was named. Beside it what the judge sees in the real scenes of these
    captions (`judge`), and in these after the dVAE (`rebuilt`). `seed` is that of the scenes;
    `picture` is a file for the first images.
    """
    judge = ready(dev)
    dev.say(judge)
    asked = one_object(args.prompts, args.size, seed)
    shapes, colours = wanted(asked.captions)
    count = -(-args.prompts // dev.world)  # of each process: shards are drawn with in step
    mine = (torch.arange(count) + dev.rank * count) % args.prompts
    real = asked.pixels[mine].to(dev.device).float() / 255
    captions = [asked.captions[i] for i in mine.tolist()]

    def seen(images: Tensor) -> Tensor:  # (n, 2): which shapes and colours are as asked
        found = judge.read(images)
        return torch.stack([found[0] == shapes[mine], found[1] == colours[mine]], 1)

    how = dict(seed=args.seed + dev.rank, temperature=args.draw_temperature)
    made = draw(model, dvae, words.encode(captions), dev, **how)
    plain = draw(model, dvae, words.encode([plainly(text) for text in captions]), dev, **how)
    with torch.no_grad(), dev.autocast():
        rebuilt = torch.cat([dvae.reconstruct(part).float() for part in real.split(100)])
    rows = [seen(images) for images in (made, plain, rebuilt, real)]
    rows = torch.cat(dev.gather(torch.stack(rows, 1)))[: args.prompts]  # (N, 4, 2)
    if picture and dev.main:
        show(made, captions, rows[: len(made), 0].all(1).tolist(), picture)
    drawn, _, rebuilt, real = rows.all(2).double().mean(0).tolist()
    shape, colour = rows[:, 0].double().mean(0).tolist()
    found = dict(right=drawn, shape=shape, colour=colour, rebuilt=rebuilt, judge=real)
    found["plain_right"] = float(rows[:, 1, 0].double().mean())
    return {f"test_{key}": value for key, value in found.items()}


def show(images: Tensor, captions: list[str], right: list[bool], path: Path) -> None:
    """Draws the first images under their captions; those that are right are marked."""
    from common.plot import image_grid

    titles = [("✓ " if good else "") + text.replace(" ", "\n", 1)
              for text, good in zip(captions, right, strict=True)][:SHOWN]  # fmt: skip
    image_grid(images[:SHOWN], path, titles, columns=8, size=1.3)
