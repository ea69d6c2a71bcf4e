"""Five ways to learn to make images, and who found them.

    autoencoder.py  codes and back         Hinton, Salakhutdinov 2006, doi:10.1126/science.1127647
    vae.py          codes that are drawn   Kingma and Welling 2013, arXiv:1312.6114
    gan.py          two players            Goodfellow et al. 2014, arXiv:1406.2661; DCGAN 2015
    flow.py         steps with an inverse  Dinh et al. 2016, arXiv:1605.08803
    diffusion.py    noise, undone          Ho et al. 2020, arXiv:2006.11239

Each file can be copied out whole (diffusion.py with its U-Net, denoiser.py). All have one contract,
in which images are (B, C, H, W) from 0 to 1 (for realnvp2d points, (B, 2)):

    forward(x)      the loss (of a GAN the discriminator's; its two are functions of gan.py)
    sample(n)       n images, from_codes(draw_codes(n))
    draw_codes(n)   codes (n, D) as the model expects them: noise, but for the autoencoder
    from_codes(z)   images of codes
    to_codes(x)     codes of images, where the model `infers` them
    reconstruct(x)  images through their codes and back, where something is lost on the way
    denoise(z)      all steps from noise to images, where there are several
    measures(x)     a number for each image, by name: an error, a bound, bits (not of a GAN)

    infers          images have codes
    prior           codes are standard normal by design
    straight        the way from code to code is a line; else, between noises, along a sphere

Factories take `channels` and `size`, those of points neither.
"""

from generative.autoencoder import autoencoder, conv_autoencoder
from generative.diffusion import ddpm, ddpm_small
from generative.flow import realnvp, realnvp2d
from generative.gan import dcgan, gan
from generative.vae import conv_vae, vae

MODELS = {
    "autoencoder": autoencoder,
    "conv_autoencoder": conv_autoencoder,
    "vae": vae,
    "conv_vae": conv_vae,
    "gan": gan,
    "dcgan": dcgan,
    "realnvp": realnvp,
    "realnvp2d": realnvp2d,
    "ddpm": ddpm,
    "ddpm_small": ddpm_small,
}
