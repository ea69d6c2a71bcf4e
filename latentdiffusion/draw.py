"""Images for texts: the way from seeds through noise and latents to pixels.

    tell = teller(model, words, texts, dev)
    images = images_for(model, tell, seeds, (size, size), dev, how_of(args))

Each image has noise of its own seed: it is the same whatever else is drawn beside it.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from common import seed_of
from common.device import Device
from common.run import progress_bar
from latentdiffusion.data import Words
from latentdiffusion.diffusion import LatentDiffusion


class Noise:
    """Standard normal numbers for a batch, from a seed an image; called again, new ones."""

    def __init__(self, seeds: Sequence[int]):
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def __call__(self, like: Tensor) -> Tensor:
        """(B, C, h, w), where `like` is any tensor (..., C, h, w) of its type and device."""
        rows = [torch.randn(like.shape[-3:], generator=g) for g in self.generators]
        return torch.stack(rows).to(like)


def how_of(args: argparse.Namespace) -> dict:
    """How images are drawn, as the flags say."""
    return dict(steps=args.sample_steps, guidance=args.guidance, sampler=args.sampler)


def numbered(key: str, count: int) -> list[int]:
    """Seeds for so many images of an evaluation."""
    return [seed_of(key, number) for number in range(count)]


def teller(
    model: LatentDiffusion, words: Words, texts: Sequence[str], dev: Device, without: str = ""
) -> Callable:
    """A function of the places (B,) of texts, which returns what the U-Net is told of them, and of
    what images are led away from: (B, S, D) each."""

    def tell(rows: Tensor) -> list[Tensor]:
        tokens = words.encode([*(texts[i] for i in rows.tolist()), without]).to(dev.device)
        told = model.text(tokens)
        return [told[:-1], told[-1:].expand(len(rows), -1, -1)]

    return tell


@torch.inference_mode()
def images_for(
    model: LatentDiffusion,
    tell: Callable,
    seeds: Sequence[int],
    shape: tuple[int, int],
    dev: Device,
    how: dict,
    at_once: int = 100,
    prepare: Callable | None = None,
    what: str = "drawing",
) -> Tensor:
    """An image (3, H, W), from 0 to 1, for each seed: (N, 3, H, W), on the CPU.

    `tell(rows)` is of `teller`; `shape` is the images' height and width; `how` holds the `steps`,
    `guidance` and `sampler`. At most `at_once` are denoised together, and decoded one by one.
    `prepare(noise, rows)` may return what to begin at in place of noise (B, C, h, w), and further
    arguments of `LatentDiffusion.denoise`.
    """
    model.eval()
    factor, channels = model.autoencoder.factor, model.autoencoder.latent_channels
    like = torch.empty(channels, *(side // factor for side in shape), device=dev.device)
    parts = torch.arange(len(seeds)).split(at_once)
    steps = how["steps"] - how.get("begin", 0)

    def latents() -> Iterator[Tensor | None]:
        for rows in parts:
            noise = Noise([seeds[i] for i in rows.tolist()])
            x, more = noise(like), {}
            with dev.autocast():
                if prepare:
                    x, more = prepare(x, rows)
                for made in model.denoise(x, tell(rows), **how, draw=noise, **more):
                    x = made
                    yield None
                yield model.to_pixels(x).cpu()

    bar = progress_bar(latents(), dev, what, len(parts) * (steps + 1))
    return torch.cat([images for images in bar if images is not None])
