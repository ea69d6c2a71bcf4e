"""Deep autoencoders (Hinton and Salakhutdinov 2006, doi:10.1126/science.1127647).

A network squeezes an image into a few numbers, its code, and a second one rebuilds the image from
them. Trained to rebuild, the pair finds a curved surface near all images, where principal
components (PCA) find a flat one: with as many numbers it loses less. With `noise` it sees a
spoilt image and has to rebuild the clean one (Vincent et al. 2008, doi:10.1145/1390156.1390294).

Shapes: B batch, C channels, H and W pixels, D numbers of a code. Pixels are from 0 to 1.

Departures: trained end to end by Adam, where the paper stacks pretrained layers (RBMs) first; ReLU
in place of logistic hidden units, which is what makes that possible; squared error in place of
cross-entropy, since it is what the paper reports. The noise is normal; Vincent's sets pixels to
zero. `sample` is ours: an autoencoder knows codes, not how often they occur, so a normal
distribution is put over the codes seen in training.
"""

import itertools

import torch
from torch import Tensor, nn


class Autoencoder(nn.Module):
    """An encoder, a code of `latent` numbers, a decoder.

    `encoder` takes (B, C, H, W) to (B, D), `decoder` (B, D) to (B, C, H, W) from 0 to 1; `noise`
    is the standard deviation of what is added to the pixels that the encoder sees in training.
    """

    infers, prior, straight = True, False, True  # see model.py

    def __init__(self, encoder: nn.Module, decoder: nn.Module, latent: int, noise: float = 0.0):
        super().__init__()
        self.encoder, self.decoder, self.latent, self.noise = encoder, decoder, latent, noise
        self.register_buffer("code_mean", torch.zeros(latent))
        self.register_buffer("code_covariance", torch.eye(latent))

    # fmt: off
    def forward(self, x: Tensor) -> Tensor:               # (B, C, H, W)
        """The loss: squared error, summed over pixels, averaged over images."""
        codes = self.to_codes(self.spoil(x))              # (B, D)
        if self.training:
            self.remember(codes.detach().float())
        return self.error(x, self.from_codes(codes)).mean()
    # fmt: on

    def to_codes(self, x: Tensor) -> Tensor:
        """Codes (B, D) of images (B, C, H, W)."""
        return self.encoder(x)

    def from_codes(self, codes: Tensor) -> Tensor:
        """Images (B, C, H, W) of codes (B, D)."""
        return self.decoder(codes)

    def spoil(self, x: Tensor) -> Tensor:
        """Images as a denoising autoencoder gets them."""
        return x + self.noise * torch.randn_like(x) if self.noise else x

    @staticmethod
    def error(x: Tensor, rebuilt: Tensor) -> Tensor:
        """Squared error of each image (B,), summed over pixels."""
        return (rebuilt.to(x.dtype) - x).square().flatten(1).sum(1)

    def reconstruct(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) through the code and back."""
        return self.from_codes(self.to_codes(x)).to(x.dtype)

    def measures(self, x: Tensor) -> dict[str, Tensor]:
        """For each image (B,): the squared error; with noise, also that of the spoilt image."""
        found = {"error": self.error(x, self.reconstruct(x))}
        if self.noise:
            spoilt = self.spoil(x)
            found["denoised_error"] = self.error(x, self.reconstruct(spoilt))
            found["noisy_error"] = self.error(x, spoilt)
        return found

    @torch.no_grad()
    def remember(self, codes: Tensor, rate: float = 0.01) -> None:
        """Running mean and covariance of the codes."""
        apart = codes - self.code_mean
        self.code_mean.lerp_(codes.mean(0), rate)
        self.code_covariance.lerp_((apart[:, :, None] * apart[:, None]).mean(0), rate)

    def draw_codes(self, n: int) -> Tensor:
        """Codes (n, D) from the normal distribution with the mean and covariance of those seen."""
        device = self.code_mean.device
        found = torch.linalg.eigh(self.code_covariance.cpu())  # not all devices can
        values, vectors = (part.to(device) for part in found)
        normal = torch.randn(n, self.latent, device=device)
        return self.code_mean + (normal * values.clamp(min=0).sqrt()) @ vectors.T

    def sample(self, n: int) -> Tensor:
        """Images (n, C, H, W)."""
        return self.from_codes(self.draw_codes(n)).float()


def mlp(sizes: list[int]) -> list[nn.Module]:
    """Linear layers of these sizes with ReLUs between them."""
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return layers[:-1]


def autoencoder(
    channels: int = 1, size: int = 28, latent: int = 30, noise: float = 0.0
) -> Autoencoder:
    """784-1000-500-250-30 and back (Fig. 1 of 2006); 2,837,314 parameters for MNIST."""
    sizes = [channels * size**2, 1000, 500, 250, latent]
    encoder = nn.Sequential(nn.Flatten(), *mlp(sizes))
    shape = (channels, size, size)
    decoder = nn.Sequential(*mlp(sizes[::-1]), nn.Unflatten(1, shape), nn.Sigmoid())
    return Autoencoder(encoder, decoder, latent, noise)


def conv_autoencoder(
    channels: int = 1, size: int = 28, latent: int = 30, noise: float = 0.0
) -> Autoencoder:
    """Two strided convolutions and a linear layer, and back; our sizes.

    Raises ValueError for a size that can't be halved twice.
    """
    if size % 4:
        raise ValueError(f"it halves images twice: {size} pixels are no multiple of 4")
    side, width = size // 4, 64
    encoder = nn.Sequential(
        *(nn.Conv2d(channels, width // 2, 4, 2, 1), nn.ReLU()),
        *(nn.Conv2d(width // 2, width, 4, 2, 1), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(width * side**2, latent)),
    )
    decoder = nn.Sequential(
        *(nn.Linear(latent, width * side**2), nn.ReLU(), nn.Unflatten(1, (width, side, side))),
        *(nn.ConvTranspose2d(width, width // 2, 4, 2, 1), nn.ReLU()),
        *(nn.ConvTranspose2d(width // 2, channels, 4, 2, 1), nn.Sigmoid()),
    )
    return Autoencoder(encoder, decoder, latent, noise)
