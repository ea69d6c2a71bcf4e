"""High-Resolution Image Synthesis with Latent Diffusion Models (Rombach, Blattmann, Lorenz, Esser,
Ommer 2021, arXiv:2112.10752), and Stable Diffusion, which is its largest model with CLIP's text
encoder.

    autoencoder.py  stage one: images to latents and back, KL or VQ, and the patch discriminator
    unet.py         stage two: the U-Net that denoises latents, told a text by cross-attention
    text.py         the text encoder, small or CLIP's
    schedulers.py   the chain's noise; DDPM, DDIM, DPM-Solver++
    diffusion.py    the whole: loss, guidance, from noise to pixels
    layers.py       what the autoencoders and the U-Net share

Each file says what departs from the paper. They need one another, torch and nothing else.
"""

from latentdiffusion.autoencoder import kl_f4, kl_f8, kl_small, vq_f4, vq_f8, vq_small
from latentdiffusion.diffusion import ldm_small, stable_diffusion

MODELS = {
    "kl_f4": kl_f4,
    "kl_f8": kl_f8,
    "vq_f4": vq_f4,
    "vq_f8": vq_f8,
    "kl_small": kl_small,
    "vq_small": vq_small,
    "stable_diffusion": stable_diffusion,
    "ldm_small": ldm_small,
}
