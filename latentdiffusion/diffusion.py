"""Latent diffusion (Rombach et al. 2021, arXiv:2112.10752): DDPM on an autoencoder's latents.

A network that denoises pixels spends most of its work on detail that nobody sees. Here an
autoencoder takes that away first, and the U-Net denoises the small map of latents that is left
(Eq. 2); a text encoder tells it what is in the image, by cross-attention (Eq. 3).

Shapes: B batch, C channels, h and w places of the latents, S tokens of the text. Latents in here
are scaled, so that those of the training images have a std of 1: what the chain's noise has.

Departure: captions are dropped, for guidance (Ho, Salimans 2022, arXiv:2207.12598), in our train.py
from the start; the published Stable Diffusion began that late (10%, from its version 1-3 on).
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from latentdiffusion.autoencoder import SIZES, Pixels, make_autoencoder
from latentdiffusion.autoencoder import small_settings as small_autoencoder
from latentdiffusion.schedulers import SAMPLERS, Schedule
from latentdiffusion.text import TextEncoder
from latentdiffusion.unet import UNet


class LatentDiffusion(nn.Module):
    """Autoencoder, U-Net, text encoder, and the chain of noise.

    `scale` is one over the standard deviation of the autoencoder's latents.
    """

    def __init__(
        self,
        autoencoder: nn.Module,
        unet: nn.Module,
        text: nn.Module,
        schedule: Schedule | None = None,
        scale: float = 1.0,
    ):
        super().__init__()
        self.autoencoder, self.unet, self.text = autoencoder, unet, text
        self.schedule = schedule or Schedule()
        kept, here = self.schedule.kept, torch.get_default_device()
        self.register_buffer("signal", kept.sqrt().float().to(here), persistent=False)
        self.register_buffer("noise", (1 - kept).sqrt().float().to(here), persistent=False)
        self.register_buffer("scale", torch.tensor(float(scale)))

    @property
    def factor(self) -> int:
        """What the sides of an image have to be multiples of."""
        return self.autoencoder.factor * self.unet.factor

    def forward(self, z: Tensor, tokens: Tensor) -> Tensor:
        """The loss (Eq. 3) of scaled latents (B, C, h, w) and their texts (B, S)."""
        times = torch.randint(self.schedule.num_times, (len(z),), device=z.device)
        noise = torch.randn_like(z)
        x = self.diffuse(z, times, noise)
        answer = self.unet(x, times, self.text(tokens))
        return (answer.to(z.dtype) - self.target(z, times, noise)).square().mean()

    def diffuse(self, z: Tensor, times: Tensor, noise: Tensor) -> Tensor:
        """Latents at times (B,)."""
        at = times[:, None, None, None]
        return self.signal[at] * z + self.noise[at] * noise

    def target(self, z: Tensor, times: Tensor, noise: Tensor) -> Tensor:
        """What the network is to answer with: the noise, or the velocity."""
        if self.schedule.prediction == "epsilon":
            return noise
        at = times[:, None, None, None]
        return self.signal[at] * noise - self.noise[at] * z

    def predict(self, x: Tensor, time: int, texts: list[Tensor], guidance: float) -> Tensor:
        """The network's answer for x (B, C, h, w), guided away from the second of `texts`.

        `texts` are (B, S, D) each: what is asked for, and what the image is led away from (that of
        no text, or of what isn't wanted). answer = other + guidance * (asked - other); with a
        guidance of 1 only the first is looked at, with 0 only the second.
        """
        if guidance in (0.0, 1.0):
            return self.unet(x, self.at(time, x), texts[0 if guidance else 1])
        both = self.unet(torch.cat([x, x]), self.at(time, torch.cat([x, x])), torch.cat(texts))
        asked, other = both.chunk(2)
        return other + guidance * (asked - other)

    def at(self, time: int, x: Tensor) -> Tensor:
        """A time for each of a batch, (B,)."""
        return torch.full((len(x),), time, device=x.device)

    def denoise(
        self,
        x: Tensor,
        texts: list[Tensor],
        steps: int,
        guidance: float,
        sampler: str = "ddim",
        begin: int = 0,
        draw: Callable = torch.randn_like,
        keep: Callable[[Tensor, int], Tensor] | None = None,
    ) -> Iterator[Tensor]:
        """From noise (B, C, h, w) to scaled latents, step by step; yields what is in the making.

        With `begin` the first steps are left out: x is then latents at the time of step `begin`.
        `keep(x, time)` may put back what is known at the time after each step (-1: the end);
        `draw(x)` is noise of the shape of x.
        """
        way = SAMPLERS[sampler](self.schedule, steps)
        for place in range(begin, steps):
            now, then = way.span(place)
            answer = self.predict(x, now, texts, guidance).to(x.dtype)
            x = way.step(x, answer, place, draw)
            x = keep(x, then) if keep else x
            yield x

    def to_latents(self, known: Tensor, drawn: bool = True) -> Tensor:
        """Scaled latents from what `autoencoder.encode` knows, drawn or the likeliest."""
        take = self.autoencoder.draw if drawn else self.autoencoder.mode
        return take(known) * self.scale

    def to_pixels(self, z: Tensor) -> Tensor:
        """Images (B, 3, H, W), from 0 to 1, of scaled latents (B, C, h, w); one after another, so
        that the decoder's maps, which are far larger, are held for one image alone."""
        images = [self.autoencoder.decode(part / self.scale) for part in z.split(1)]
        return ((torch.cat(images).to(z.dtype) + 1) / 2).clamp(0, 1)


SD1 = dict(  # Stable Diffusion 1, as its folders have it
    autoencoder=SIZES["kl_f8"],
    unet=dict(
        channels=4,
        widths=[320, 640, 1280, 1280],
        attention=[0, 1, 2],
        depth=2,
        heads=8,
        context=768,
    ),
    text=dict(
        vocab_size=49_408,
        context=77,
        d_model=768,
        num_layers=12,
        num_heads=12,
        d_ff=3072,
        causal=True,
        activation="quick_gelu",
    ),
    schedule=dict(spacing="leading", offset=1, clean_end=False),
    scale=0.18215,
)


def assemble(settings: dict) -> LatentDiffusion:
    """A model of plain settings, as checkpoints keep them: those of its parts, by name."""
    return LatentDiffusion(
        make_autoencoder(**settings["autoencoder"]),
        UNet(**settings["unet"]),
        TextEncoder(**settings["text"]),
        Schedule(**settings.get("schedule", {})),
        settings.get("scale", 1.0),
    )


def stable_diffusion() -> LatentDiffusion:
    """Stable Diffusion 1: 859,520,964 parameters in the U-Net, 83,653,863 in the autoencoder,
    123,060,480 in CLIP's text encoder."""
    return assemble(SD1)


def small_settings(
    autoencoder: dict,
    latent_channels: int,
    vocab_size: int = 64,
    context: int = 20,
    width: int = 64,
    depth: int = 1,
    d_text: int = 64,
    dropout: float = 0.0,
    pooled: bool = False,
    prediction: str = "epsilon",
) -> dict:
    """Settings of our small models, for `assemble`, around those of an autoencoder: a U-Net of two
    resolutions, as wide and with Transformers at both.

    Raises ValueError for widths that can't be shared out to heads and groups.
    """
    if width % 32 or d_text % 32:
        raise ValueError(f"widths of {width} and {d_text}: they have to be multiples of 32")
    unet = dict(channels=latent_channels, widths=[width] * 2, attention=[0, 1], depth=depth)
    unet |= dict(heads=width // 32, context=d_text, groups=8, dropout=dropout, pooled=pooled)
    text = dict(vocab_size=vocab_size, context=context, d_model=d_text, num_layers=2)
    text |= dict(num_heads=d_text // 32, d_ff=4 * d_text)
    schedule = dict(prediction=prediction)
    return dict(autoencoder=autoencoder, unet=unet, text=text, schedule=schedule)


def ldm_small(
    factor: int = 4,
    latent_channels: int = 8,
    regulariser: str = "kl",
    ae_width: int = 32,
    **settings,
) -> LatentDiffusion:
    """One for 24 pixels, ours: a U-Net of two resolutions, a text encoder of two layers.

    `factor` 1 has no autoencoder: it denoises pixels. `settings` are those of `small_settings`.
    """
    channels = latent_channels if factor > 1 else Pixels.latent_channels
    autoencoder = small_autoencoder(regulariser, factor, latent_channels, ae_width)
    return assemble(small_settings(autoencoder, channels, **settings))
