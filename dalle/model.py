"""DALL-E: text to image by predicting tokens (Ramesh et al. 2021, arXiv:2102.12092).

Two networks, trained one after the other. dvae.py makes a grid of discrete codes of an image, and
an image of codes; stream.py is a transformer over one stream of a caption's tokens and its image's
codes, whose sparse attention stands in layers.py.

    codes = dvae.encode(images)                               # (B, C, H, W) to (B, h, w)
    loss, _, _ = losses(*model(text, codes), text, codes)     # text (B, T), -1: no word
    logits, state = model.step(codes, model.begin(text))      # of the next code, by a cache
    images = dvae.decode(codes)

Of DALL-E 3 (Betker et al. 2023) no architecture was published, but what it learnt of captions: the
claim `captions` of claims.py.
"""

from dalle.dvae import DVAE, dvae, dvae_small
from dalle.layers import Layout, SelfAttention, stream_mask
from dalle.stream import DALLE, dalle, dalle_small, losses

__all__ = ["DALLE", "DVAE", "MODELS", "Layout", "SelfAttention", "losses", "stream_mask"]

MODELS = {"dvae": dvae, "dvae_small": dvae_small, "dalle": dalle, "dalle_small": dalle_small}
