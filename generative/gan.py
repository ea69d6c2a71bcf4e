"""Generative adversarial networks (Goodfellow et al. 2014, arXiv:1406.2661; DCGAN: Radford, Metz,
Chintala 2015, arXiv:1511.06434).

A generator turns noise into images, a discriminator tells them from real ones, and each learns from
the other's mistakes. There is no likelihood and no code to infer: the discriminator is a loss that
is learnt, and where pixelwise losses blur, it notices the blur. DCGAN found the convolutional
pair whose training is stable.

Shapes: B batch, Z noise, C channels, H and W pixels, K classes. Pixels are from 0 to 1.

With `num_classes` both players are told the class (Mirza and Osindero 2014, arXiv:1411.1784).
Departures: noise is standard normal (DCGAN's is uniform; 2014 leaves it open); DCGAN's first map is
4 to 7 pixels wide, so that sizes other than 64 pass (28: 7, 14, 28), and `width` may be less than
128; tanh's range is moved to 0 to 1.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """-log D(x) - log(1 - D(G(z))), averaged (Eq. 1), from logits (B,)."""
    return F.softplus(-real).mean() + F.softplus(fake).mean()


def generator_loss(fake: Tensor, saturating: bool = False) -> Tensor:
    """-log D(G(z)), averaged, from logits (B,); saturating: log(1 - D(G(z))), as in Eq. 1.

    The latter hardly has a gradient while the discriminator wins (Sec. 3).
    """
    return -F.softplus(fake).mean() if saturating else F.softplus(-fake).mean()


class GAN(nn.Module):
    """The two players. `generator(z, labels)` gives images, `discriminator(images, labels)` logits.

    Train each with its own optimiser on the losses above; `labels` (B,) only with `num_classes`.
    """

    infers, prior, straight = False, True, False  # see model.py

    def __init__(self, generator: nn.Module, discriminator: nn.Module, num_classes: int = 0):
        super().__init__()
        self.generator, self.discriminator = generator, discriminator
        self.num_classes = num_classes

    def draw_codes(self, n: int) -> Tensor:
        """Noise (n, Z) for the generator."""
        return torch.randn(n, self.generator.noise, device=next(self.parameters()).device)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """The discriminator's loss on images (B, C, H, W) and as many generated ones."""
        fake = self.generator(self.draw_codes(len(x)), labels)
        return discriminator_loss(*self.discriminator([x, fake], labels))

    def from_codes(self, z: Tensor) -> Tensor:
        """Images (B, C, H, W) of noise (B, Z); with classes, of the first."""
        labels = torch.zeros(len(z), dtype=torch.int64, device=z.device)
        return self.generator(z, labels if self.num_classes else None)

    def sample(self, n: int, labels: Tensor | None = None) -> Tensor:
        """Images (n, C, H, W); of random classes, unless `labels` (n,) says which."""
        noise = self.draw_codes(n)
        if self.num_classes and labels is None:
            labels = torch.randint(self.num_classes, (n,), device=noise.device)
        return self.generator(noise, labels).float()


class Generator(nn.Module):
    """`layers` take noise, with the class as one-hot beside it, to pixels from 0 to 1."""

    def __init__(self, layers: nn.Module, noise: int, num_classes: int):
        super().__init__()
        self.layers, self.noise, self.num_classes = layers, noise, num_classes

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:  # (B, Z)
        """Noise (B, Z), and classes (B,), to images (B, C, H, W)."""
        if self.num_classes:
            z = torch.cat([z, F.one_hot(labels, self.num_classes).to(z)], 1)
        return self.layers(z)


class Discriminator(nn.Module):
    """`layers` take pixels from -1 to 1, with the class as K constant channels, to one logit."""

    def __init__(self, layers: nn.Module, num_classes: int):
        super().__init__()
        self.layers, self.num_classes = layers, num_classes

    def forward(self, batches: list[Tensor], labels: Tensor | None = None) -> list[Tensor]:
        """Logits (B,) for each of several batches of images (B, C, H, W).

        Real and generated images pass one after the other, each with its own batch statistics, yet
        in one call: distributed wrappers allow but one before the backward pass.
        """
        found = []
        for x in batches:
            x = 2 * x - 1
            if self.num_classes:
                classes = F.one_hot(labels, self.num_classes).to(x)[:, :, None, None]
                x = torch.cat([x, classes.expand(-1, -1, *x.shape[2:])], 1)
            found.append(self.layers(x).float().flatten())
        return found


class Maxout(nn.Module):
    """A linear layer; of `pieces` neighbouring outputs the largest (Goodfellow et al. 2013)."""

    def __init__(self, inputs: int, outputs: int, pieces: int = 5):
        super().__init__()
        self.linear, self.pieces = nn.Linear(inputs, outputs * pieces), pieces

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs) to (B, outputs)."""
        return self.linear(x).unflatten(1, (-1, self.pieces)).amax(2)


def gan(channels: int = 1, size: int = 28, num_classes: int = 0) -> GAN:
    """2014's, for MNIST: ReLUs in the generator, maxout and dropout in the discriminator.

    Sizes are those of the released configuration; 2,503,984 and 1,231,441 parameters for MNIST.
    """
    shape, pixels, noise = (channels, size, size), size**2, 100
    generator = nn.Sequential(
        *(nn.Linear(noise + num_classes, 1200), nn.ReLU()),
        *(nn.Linear(1200, 1200), nn.ReLU()),
        *(nn.Linear(1200, channels * pixels), nn.Unflatten(1, shape), nn.Sigmoid()),
    )
    discriminator = nn.Sequential(
        *(nn.Flatten(), nn.Dropout(0.2), Maxout((channels + num_classes) * pixels, 240)),
        *(nn.Dropout(0.5), Maxout(240, 240), nn.Dropout(0.5), nn.Linear(240, 1)),
    )
    players = Generator(generator, noise, num_classes), Discriminator(discriminator, num_classes)
    return GAN(*players, num_classes)


class ToPixels(nn.Module):
    """tanh, from its range -1 to 1 moved to 0 to 1."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape."""
        return (x.tanh() + 1) / 2


def dcgan(
    channels: int = 3, size: int = 64, num_classes: int = 0, width: int = 128, noise: int = 100
) -> GAN:
    """DCGAN (Fig. 1): at 64 pixels 12,658,432 parameters in the generator, as many maps again in
    the discriminator; `width` is the channels at half the size of the image.

    Raises ValueError for a size that isn't 4 to 7 pixels doubled a few times.
    """
    doublings, side = 0, size
    while side > 7 and side % 2 == 0:
        doublings, side = doublings + 1, side // 2
    if not 4 <= side <= 7 or doublings == 0:
        raise ValueError(f"it halves images down to 4 to 7 pixels: that can't be done to {size}")
    widths = [width << stage for stage in range(doublings)]  # 128, 256, 512, 1024
    up: list[nn.Module] = [nn.Unflatten(1, (-1, 1, 1))]
    up.append(nn.ConvTranspose2d(noise + num_classes, widths[-1], side, bias=False))
    for inputs, outputs in zip(widths[::-1], [*widths[-2::-1], channels], strict=True):
        up += [nn.BatchNorm2d(inputs), nn.ReLU(inplace=True)]
        up.append(nn.ConvTranspose2d(inputs, outputs, 4, 2, 1, bias=False))  # no norm at the end
    down: list[nn.Module] = []
    for inputs, outputs in zip([channels + num_classes, *widths[:-1]], widths, strict=True):
        down.append(nn.Conv2d(inputs, outputs, 4, 2, 1, bias=False))
        down += [nn.BatchNorm2d(outputs)] if len(down) > 1 else []  # nor at the beginning
        down.append(nn.LeakyReLU(0.2, inplace=True))
    down.append(nn.Conv2d(widths[-1], 1, side, bias=False))
    generator = Generator(nn.Sequential(*up, ToPixels()), noise, num_classes)
    model = GAN(generator, Discriminator(nn.Sequential(*down), num_classes), num_classes)
    for module in model.modules():  # Sec. 4
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            nn.init.normal_(module.weight, 0.0, 0.02)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1.0, 0.02)
    return model
