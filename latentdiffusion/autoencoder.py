"""The autoencoders whose latents are denoised (Rombach et al. 2021, Sec. 3.1, App. G).

Stage one: an image is squeezed into a map of latents whose sides are `factor` times shorter, and
rebuilt from it. What is lost is detail that nobody sees; what is left is small enough for a U-Net.
Two regularisers keep the latents from growing without bounds: a slight pull towards N(0, 1) (KL),
or a codebook that replaces each place by its nearest entry (VQ), which belongs to the decoder.

Shapes: B batch, C channels of latents, H and W pixels, h and w places of the latents (H / factor).
Pixels are from -1 to 1 in here.

All have one contract:

    encode(x)      what is known of an image's latents, to be kept: (B, ..., h, w)
    draw(known)    latents (B, C, h, w) from that; `mode(known)` the likeliest
    decode(z)      images (B, 3, H, W) of latents
    forward(x)     images rebuilt, and the regulariser's loss

Departures: the loss has no perceptual term (LPIPS needs a network trained on ImageNet, which is not
at hand offline): the absolute error of pixels, the regulariser and the patch discriminator remain,
and rebuilt images are softer for it. In the vector-quantised loss beta weighs the commitment, as in
its paper; in the authors' code it weighs the codebook's term. The names are diffusers'. Our small
ones see squares of 2x2 pixels as channels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentdiffusion.layers import Downsample, MapAttention, ResBlock, Upsample

EPS = 1e-6  # of the norms


class Stage(nn.Module):
    """The blocks of one resolution, with attention or without, and the change to the next."""

    def __init__(
        self, inputs: int, width: int, depth: int, groups: int, attention: bool, change: str
    ):
        super().__init__()
        counts = [inputs] + [width] * (depth - 1)
        self.resnets = nn.ModuleList(ResBlock(c, width, groups, EPS) for c in counts)
        if attention:
            self.attentions = nn.ModuleList(MapAttention(width, groups) for _ in counts)
        if change == "down":
            self.downsamplers = nn.ModuleList([Downsample(width, lopsided=True)])
        elif change == "up":
            self.upsamplers = nn.ModuleList([Upsample(width)])
        self.attends, self.change = attention, change

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) to (B, width, H, W), or half or twice H and W."""
        for number, block in enumerate(self.resnets):
            x = block(x)
            x = self.attentions[number](x) if self.attends else x
        if self.change == "down":
            return self.downsamplers[0](x)
        return self.upsamplers[0](x) if self.change == "up" else x


class Middle(nn.Module):
    """Block, attention, block at the lowest resolution."""

    def __init__(self, width: int, groups: int):
        super().__init__()
        self.resnets = nn.ModuleList(ResBlock(width, width, groups, EPS) for _ in range(2))
        self.attentions = nn.ModuleList([MapAttention(width, groups)])

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same."""
        return self.resnets[1](self.attentions[0](self.resnets[0](x)))


class Encoder(nn.Module):
    """Images (B, channels, H, W) to (B, outputs, h, w)."""

    def __init__(self, channels: int, widths, depth: int, outputs: int, groups: int, attention):
        super().__init__()
        top = len(widths) - 1
        self.conv_in = nn.Conv2d(channels, widths[0], 3, padding=1)
        self.down_blocks, inputs = nn.ModuleList(), widths[0]
        for level, width in enumerate(widths):
            change = "down" if level < top else ""
            self.down_blocks.append(Stage(inputs, width, depth, groups, level in attention, change))
            inputs = width
        self.mid_block = Middle(inputs, groups)
        self.conv_norm_out = nn.GroupNorm(groups, inputs, eps=EPS)
        self.conv_out = nn.Conv2d(inputs, outputs, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        x = self.conv_in(x)
        for stage in self.down_blocks:
            x = stage(x)
        return self.conv_out(F.silu(self.conv_norm_out(self.mid_block(x))))


class Decoder(nn.Module):
    """Latents (B, inputs, h, w) to images (B, channels, H, W); a block more at each resolution."""

    def __init__(self, channels: int, widths, depth: int, inputs: int, groups: int, attention):
        super().__init__()
        top = len(widths) - 1
        self.conv_in = nn.Conv2d(inputs, widths[-1], 3, padding=1)
        self.mid_block = Middle(widths[-1], groups)
        self.up_blocks, count = nn.ModuleList(), widths[-1]
        for level in range(top, -1, -1):
            width, change = widths[level], "up" if level else ""
            self.up_blocks.append(
                Stage(count, width, depth + 1, groups, level in attention, change)
            )
            count = width
        self.conv_norm_out = nn.GroupNorm(groups, count, eps=EPS)
        self.conv_out = nn.Conv2d(count, channels, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        """See the class."""
        z = self.mid_block(self.conv_in(z))
        for stage in self.up_blocks:
            z = stage(z)
        return self.conv_out(F.silu(self.conv_norm_out(z)))


class Autoencoder(nn.Module):
    """Encoder and decoder of the sizes that all share.

    `widths` are the channels of each resolution, `depth` counts the blocks of the encoder's,
    `attention` lists the resolutions with attention by their numbers (0 is the finest; the middle
    always has some). Squares of `patch` pixels are folded into channels first, and unfolded at the
    end: the paper's have 1.
    """

    def __init__(
        self,
        latent_channels: int,
        widths: tuple[int, ...],
        depth: int,
        outputs: int,
        attention: tuple[int, ...] = (),
        groups: int = 32,
        patch: int = 1,
    ):
        super().__init__()
        channels = 3 * patch**2
        self.latent_channels, self.patch = latent_channels, patch
        self.factor = patch * 2 ** (len(widths) - 1)
        self.encoder = Encoder(channels, widths, depth, outputs, groups, attention)
        self.decoder = Decoder(channels, widths, depth, latent_channels, groups, attention)

    def fold(self, x: Tensor) -> Tensor:
        """Squares of pixels as channels."""
        return F.pixel_unshuffle(x, self.patch) if self.patch > 1 else x

    def unfold(self, x: Tensor) -> Tensor:
        """Channels as squares of pixels."""
        return F.pixel_shuffle(x, self.patch) if self.patch > 1 else x

    @property
    def last_layer(self) -> Tensor:
        """The weights that make pixels, where the discriminator's pull is measured."""
        return self.decoder.conv_out.weight


class KLAutoencoder(Autoencoder):
    """Latents are normal distributions, which a small weight on their KL keeps near N(0, 1)."""

    regulariser = "kl"

    def __init__(self, latent_channels: int, widths: tuple[int, ...], depth: int, **settings):
        super().__init__(latent_channels, widths, depth, 2 * latent_channels, **settings)
        self.quant_conv = nn.Conv2d(2 * latent_channels, 2 * latent_channels, 1)
        self.post_quant_conv = nn.Conv2d(latent_channels, latent_channels, 1)

    def encode(self, x: Tensor) -> Tensor:
        """Means and log variances (B, 2C, h, w) of images (B, 3, H, W)."""
        mean, log_var = self.quant_conv(self.encoder(self.fold(x))).chunk(2, 1)
        return torch.cat([mean, log_var.clamp(-30, 20)], 1)

    def draw(self, known: Tensor) -> Tensor:
        """Latents drawn (B, C, h, w)."""
        mean, log_var = known.chunk(2, 1)
        return mean + (log_var / 2).exp() * torch.randn_like(mean)

    def mode(self, known: Tensor) -> Tensor:
        """The means (B, C, h, w)."""
        return known.chunk(2, 1)[0]

    def decode(self, z: Tensor) -> Tensor:
        """Images (B, 3, H, W) of latents (B, C, h, w)."""
        return self.unfold(self.decoder(self.post_quant_conv(z)))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Images rebuilt from drawn latents, and the KL to N(0, 1): a sum over latents, a mean over
        images."""
        known = self.encode(x)
        mean, log_var = known.to(x.dtype).chunk(2, 1)  # from bf16
        kl = (mean.square() + log_var.exp() - 1 - log_var).flatten(1).sum(1) / 2
        return self.decode(self.draw(known)), kl.mean()


class Codebook(nn.Module):
    """The entries (`size`, C) that latents are replaced by."""

    def __init__(self, size: int, channels: int):
        super().__init__()
        self.embedding = nn.Embedding(size, channels)
        nn.init.uniform_(self.embedding.weight, -1 / size, 1 / size)

    def nearest(self, z: Tensor) -> Tensor:
        """The nearest entry of each place of latents (B, C, h, w), by its number: (B, h, w)."""
        places = z.movedim(1, -1)  # (B, h, w, C)
        rows = places.flatten(0, 2)
        whole = torch.compiler.is_exporting()  # how many parts there are is for any batch
        parts = [rows] if whole else rows.split(4096)  # distances to all entries are many numbers
        found = [torch.cdist(part, self.embedding.weight).argmin(1) for part in parts]
        return torch.cat(found).view(places.shape[:3])

    def look_up(self, numbers: Tensor) -> Tensor:
        """Entries (B, C, h, w) of numbers (B, h, w)."""
        return self.embedding(numbers).movedim(-1, 1)


class VQAutoencoder(Autoencoder):
    """Latents that are replaced by the nearest of `num_codes` entries before they are decoded.

    What is denoised are the latents before that (Sec. 3.1: the codebook belongs to the decoder).
    """

    regulariser = "vq"

    def __init__(
        self,
        latent_channels: int,
        widths: tuple[int, ...],
        depth: int,
        num_codes: int,
        beta: float = 0.25,
        **settings,
    ):
        super().__init__(latent_channels, widths, depth, latent_channels, **settings)
        self.quant_conv = nn.Conv2d(latent_channels, latent_channels, 1)
        self.quantize = Codebook(num_codes, latent_channels)
        self.post_quant_conv = nn.Conv2d(latent_channels, latent_channels, 1)
        self.beta = beta

    def encode(self, x: Tensor) -> Tensor:
        """Latents (B, C, h, w) of images (B, 3, H, W), not yet quantised."""
        return self.quant_conv(self.encoder(self.fold(x)))

    def draw(self, known: Tensor) -> Tensor:
        """Themselves: nothing is drawn."""
        return known

    mode = draw

    def decode(self, z: Tensor) -> Tensor:
        """Images (B, 3, H, W) of latents (B, C, h, w), through the codebook."""
        codes = self.quantize.look_up(self.quantize.nearest(z))
        return self.unfold(self.decoder(self.post_quant_conv(codes.to(z.dtype))))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Images rebuilt, and the codebook's loss: entries are drawn to latents, and `beta` times
        as much latents to entries (van den Oord et al. 2017, arXiv:1711.00937, Eq. 3)."""
        z = self.encode(x).to(x.dtype)  # from bf16
        codes = self.quantize.look_up(self.quantize.nearest(z))
        commitment = (codes.detach() - z).square().mean()
        loss = (codes - z.detach()).square().mean() + self.beta * commitment
        through = z + (codes - z).detach()  # gradients pass straight through
        return self.unfold(self.decoder(self.post_quant_conv(through))), loss


class Pixels(nn.Module):
    """No autoencoder: latents are pixels, as in DDPM. Factor 1, nothing to train."""

    regulariser, factor, latent_channels = "none", 1, 3

    def encode(self, x: Tensor) -> Tensor:
        """Themselves."""
        return x

    draw = mode = decode = encode


class PatchDiscriminator(nn.Module):
    """Says of overlapping patches whether they are real (Isola et al. 2017, arXiv:1611.07004).

    `layers` strided convolutions; the answer (B, 1, H', W') is a logit a patch.
    """

    def __init__(self, channels: int = 3, width: int = 64, layers: int = 3):
        super().__init__()
        parts = [nn.Conv2d(channels, width, 4, 2, 1), nn.LeakyReLU(0.2)]
        for number in range(1, layers + 1):
            inputs, outputs = (width * min(8, 2**k) for k in (number - 1, number))
            stride = 2 if number < layers else 1
            parts += [nn.Conv2d(inputs, outputs, 4, stride, 1, bias=False)]
            parts += [nn.BatchNorm2d(outputs), nn.LeakyReLU(0.2)]
        self.main = nn.Sequential(*parts, nn.Conv2d(outputs, 1, 4, 1, 1))
        for layer in self.main:
            if isinstance(layer, nn.Conv2d):
                nn.init.normal_(layer.weight, std=0.02)
            elif isinstance(layer, nn.BatchNorm2d):
                nn.init.normal_(layer.weight, 1.0, 0.02)

    def forward(self, real: Tensor, fake: Tensor | None = None) -> tuple[Tensor, ...]:
        """Logits of one batch of images, or of two, each with statistics of its own."""
        return tuple(self.main(x) for x in (real, fake) if x is not None)


def hinge(on_real: Tensor, on_fake: Tensor) -> Tensor:
    """The discriminator's loss: nothing is asked of patches beyond the margin of 1."""
    return (F.relu(1 - on_real).mean() + F.relu(1 + on_fake).mean()) / 2


def balance(error: Tensor, adversarial: Tensor, layer: Tensor) -> Tensor:
    """How much the discriminator's term has to weigh to pull at `layer` as the error does
    (Esser et al. 2020, arXiv:2012.09841, Eq. 7); at most 10,000."""
    losses = (error, adversarial)
    pulls = (torch.autograd.grad(loss, layer, retain_graph=True)[0] for loss in losses)
    one, other = (pull.float().norm() for pull in pulls)
    return (one / (other + 1e-4)).clamp(max=1e4).detach()


SIZES = {  # the paper's (App. G, Table 8), for `make_autoencoder`
    "kl_f4": dict(kind="kl", latent_channels=3, widths=[128, 256, 512], depth=2),
    "kl_f8": dict(kind="kl", latent_channels=4, widths=[128, 256, 512, 512], depth=2),
    "vq_f4": dict(kind="vq", latent_channels=3, widths=[128, 256, 512], depth=2, num_codes=8192),
    "vq_f8": dict(
        kind="vq",
        latent_channels=4,
        widths=[128, 256, 256, 512],
        depth=2,
        num_codes=16_384,
        attention=[3],
    ),
}
KINDS = {"kl": KLAutoencoder, "vq": VQAutoencoder}


def make_autoencoder(kind: str, **settings) -> nn.Module:
    """An autoencoder of plain settings, as checkpoints keep them: `kind` is kl, vq or none."""
    return KINDS[kind](**settings) if kind in KINDS else Pixels()


def kl_f4() -> KLAutoencoder:
    """KL, factor 4, 3 channels; 55,312,063 parameters."""
    return make_autoencoder(**SIZES["kl_f4"])


def kl_f8() -> KLAutoencoder:
    """KL, factor 8, 4 channels: Stable Diffusion's; 83,653,863 parameters."""
    return make_autoencoder(**SIZES["kl_f8"])


def vq_f4() -> VQAutoencoder:
    """VQ, factor 4, 3 channels, 8,192 entries; 55,322,782 parameters."""
    return make_autoencoder(**SIZES["vq_f4"])


def vq_f8() -> VQAutoencoder:
    """VQ, factor 8, 4 channels, 16,384 entries, attention at the lowest resolution; 67,717,295
    parameters."""
    return make_autoencoder(**SIZES["vq_f8"])


def small_widths(factor: int, width: int) -> list[int]:
    """The channels of our small autoencoders, of squares of 2x2 pixels: `width`, then twice as many
    at each halving."""
    levels = {2: 1, 4: 2, 8: 3}
    if factor not in levels:
        raise ValueError(f"a factor of {factor}: there are {', '.join(map(str, levels))}")
    if width % 8:
        raise ValueError(f"it has 8 groups of channels: a width of {width} is no multiple of 8")
    return [width * 2**k for k in range(levels[factor])]


def small_settings(
    kind: str, factor: int = 4, latent_channels: int = 8, width: int = 32, num_codes: int = 512
) -> dict:
    """Settings of our small ones, for `make_autoencoder`: squares of 2x2 pixels, a block at each
    resolution.

    Raises ValueError for a factor or a width that can't be.
    """
    if factor == 1:
        return dict(kind="none")
    settings = dict(kind=kind, latent_channels=latent_channels, depth=1, groups=8, patch=2)
    settings |= dict(widths=small_widths(factor, width))
    return settings | (dict(num_codes=num_codes) if kind == "vq" else {})


def kl_small(factor: int = 4, latent_channels: int = 8, width: int = 32) -> KLAutoencoder:
    """A narrow one for 24 pixels, a block at each resolution; ours; 670,740 parameters."""
    return make_autoencoder(**small_settings("kl", factor, latent_channels, width))


def vq_small(
    factor: int = 4, latent_channels: int = 8, width: int = 32, num_codes: int = 512
) -> VQAutoencoder:
    """The same with a codebook; ours."""
    return make_autoencoder(**small_settings("vq", factor, latent_channels, width, num_codes))
