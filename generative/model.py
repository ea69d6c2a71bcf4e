"""Five ways to learn to make images, and who found them.

    autoencoder.py  codes and back         Hinton, Salakhutdinov 2006, doi:10.1126/science.1127647
    vae.py          codes that are drawn   Kingma and Welling 2013, arXiv:1312.6114
    gan.py          two players            Goodfellow et al. 2014, arXiv:1406.2661; DCGAN 2015
    flow.py         steps with an inverse  Dinh et al. 2016, arXiv:1605.08803
    diffusion.py    noise, undone          Ho et al. 2020, arXiv:2006.11239

Each file can be copied out whole (diffusion.py with its U-Net, denoiser.py). All have one contract:
images are (B, C, H, W) from 0 to 1, `forward(x)` returns the loss, `sample(n)` draws n images. The
players of a GAN are `generator` and `discriminator`; their losses are functions of gan.py.
Factories take `channels` and `size`.
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
