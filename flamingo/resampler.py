"""The Perceiver resampler of Flamingo (Alayrac et al. 2022, Sec. 2.1, Fig. 5).

However many places an image has, and a video frames: a fixed number of learned latents look at all
of them, and at one another, and what they have gathered is all that the language model sees.

Shapes: N images (or videos), F frames, P places of a frame, C the image encoder's width, D width,
L latents, H heads, d dimensions of a head.

Parameters bear the names of OpenFlamingo's checkpoints. Places have no embedding, as in the paper
(its convolutions know where they are), unless they are asked for. Of more frames than there are
embeddings these are interpolated, as the paper does from 8 to 30. Where places have embeddings,
each latent begins by looking at places of its own: that is ours, and learns sooner what is where.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SquaredReLU(nn.Module):
    """max(0, x)² (So et al. 2021)."""

    def forward(self, x: Tensor) -> Tensor:
        """Elementwise."""
        return F.relu(x).square()


# Initial stds of latents and of embeddings, which the paper doesn't give. Latents begin so small
# that what they gather is soon the most of them: with 1, an image hardly changes them. Queries
# begin large, so that scores have a std of about 2 and each latent looks somewhere of its own: with
# PyTorch's, all gather the mean of an image, and neither places nor shapes were learnt.
SMALL, PLACED = 0.1, 1.0
SHARP = 4.0  # of queries, times the root of the width
ALIGNED = 2.0  # and of queries that begin as the keys of places, to which their scores are larger
ACTIVATIONS = {  # the paper's; Idefics' resampler has a ReLU, OpenFlamingo GELUs
    "squared_relu": SquaredReLU,
    "relu": nn.ReLU,
    "gelu": nn.GELU,
}


class FeedForward(nn.Sequential):
    """A norm, and two layers without biases around an activation: (..., D) to the same."""

    def __init__(self, width: int, activation: str):
        super().__init__(
            nn.LayerNorm(width),
            nn.Linear(width, 4 * width, bias=False),
            ACTIVATIONS[activation](),
            nn.Linear(4 * width, width, bias=False),
        )


# fmt: off
def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None,
           written_out: bool = False) -> tuple[Tensor, Tensor | None]:
    """Heads (B, H, T, d), and with `written_out` their weights (B, H, T, S).

    `mask` (B, 1, T, S) is True where a query may look; each has to see something.
    """
    if written_out:
        scores = query @ key.transpose(2, 3) / math.sqrt(query.shape[3])  # (B, H, T, S)
        scores = scores if mask is None else scores.masked_fill(~mask, -math.inf)
        weights = scores.softmax(3)
        return weights @ value, weights
    if query.is_cpu and query.dtype == torch.bfloat16:  # the kernel's backward pass is slow there
        with torch.autocast("cpu", enabled=False):
            parts = query.float(), key.float(), value.float()
            return F.scaled_dot_product_attention(*parts, mask).bfloat16(), None
    return F.scaled_dot_product_attention(query, key, value, mask), None
# fmt: on


def heads(x: Tensor, num_heads: int) -> Tensor:
    """(B, T, H d) to (B, H, T, d)."""
    return x.unflatten(2, (num_heads, -1)).transpose(1, 2)


class PerceiverAttention(nn.Module):
    """Latents look at the features and at the latents.

    With `recording` set, `weights` holds the attention of the last call, (N, H, L, S + L).
    """

    def __init__(self, width: int, num_heads: int, d_head: int):
        super().__init__()
        inner = num_heads * d_head
        self.num_heads = num_heads
        self.norm_media = nn.LayerNorm(width)
        self.norm_latents = nn.LayerNorm(width)
        self.to_q = nn.Linear(width, inner, bias=False)
        self.to_kv = nn.Linear(width, 2 * inner, bias=False)
        self.to_out = nn.Linear(inner, width, bias=False)
        nn.init.normal_(self.to_q.weight, std=SHARP * width**-0.5)
        self.recording, self.weights = False, None

    # fmt: off
    def forward(self, x: Tensor, latents: Tensor) -> Tensor:
        """Features (N, S, D) and latents (N, L, D) to what is added to the latents, (N, L, D)."""
        x, latents = self.norm_media(x), self.norm_latents(latents)
        query = heads(self.to_q(latents), self.num_heads)              # (N, H, L, d)
        key, value = self.to_kv(torch.cat([x, latents], 1)).chunk(2, 2)
        key, value = (heads(y, self.num_heads) for y in (key, value))  # (N, H, S + L, d)
        out, weights = attend(query, key, value, written_out=self.recording)
        if self.recording:
            self.weights = weights
        return self.to_out(out.transpose(1, 2).flatten(2))             # (N, L, D)
    # fmt: on


def drawn(count: int, width: int, deviation: float) -> nn.Parameter:
    """Embeddings (N, D) to begin with."""
    return nn.Parameter(deviation * torch.randn(count, width))


class ResamplerLayer(nn.Sequential):
    """Attention and a feed-forward network, each added to the latents.

    A Sequential in name alone, as checkpoints call them 0 and 1, and a ModuleList can't be sharded.
    """

    def __init__(self, width: int, num_heads: int, d_head: int, activation: str):
        attention = PerceiverAttention(width, num_heads, d_head)
        super().__init__(attention, FeedForward(width, activation))

    def forward(self, x: Tensor, latents: Tensor) -> Tensor:
        """Features (N, S, D) and latents (N, L, D) to latents."""
        attention, feed_forward = self
        latents = latents + attention(x, latents)
        return latents + feed_forward(latents)


class PerceiverResampler(nn.Module):
    """Learned latents gather what is in an image or a video (Fig. 5).

    `num_frames` is how many frames have a time embedding (one: none is needed), `places` how many
    places of a frame have an embedding (0: none, as in the paper). With 0 latents nothing is
    resampled: the features themselves are passed on, embedded and normalised.
    """

    def __init__(
        self,
        in_width: int,
        width: int,
        num_layers: int = 6,
        num_heads: int = 16,
        d_head: int = 128,
        num_latents: int = 64,
        num_frames: int = 8,
        places: int = 0,
        activation: str = "squared_relu",
    ):
        super().__init__()
        self.num_latents = num_latents
        self.project = nn.Linear(in_width, width) if in_width != width else nn.Identity()
        self.frame_embs = drawn(num_frames, width, PLACED) if num_frames > 1 else None
        self.place_embs = drawn(places, width, PLACED) if places else None
        self.latents = drawn(num_latents, width, SMALL) if num_latents else None
        self.layers = nn.ModuleList(
            ResamplerLayer(width, num_heads, d_head, activation)
            for _ in range(num_layers if num_latents else 0)
        )
        self.norm = nn.LayerNorm(width)
        if num_latents and places:
            self.share_out_places()

    @torch.no_grad()
    def share_out_places(self) -> None:
        """Has each latent begin with places of its own to look at, one or a few in a row.

        Latents are what the embeddings of these places are, turned, and queries of turned ones what
        keys are of the places: unturned a latent would find itself.
        """
        own = F.adaptive_avg_pool1d(self.place_embs.T, len(self.latents)).T  # (L, D)
        turn = torch.linalg.qr(torch.randn(own.shape[1], own.shape[1]))[0]
        self.latents.copy_(SMALL * own @ turn)
        for attention, _ in self.layers:
            keys = attention.to_kv.weight.chunk(2)[0]
            nn.init.normal_(keys, std=own.shape[1] ** -0.5)
            attention.to_q.weight.copy_(ALIGNED * keys @ turn)

    # fmt: off
    def forward(self, features: Tensor) -> Tensor:
        """What the image encoder sees in frames, (N, F, P, C), to (N, L, D)."""
        x = self.project(features)                                     # (N, F, P, D)
        if self.frame_embs is not None:
            x = x + self.times(x.shape[1])[:, None]
        if self.place_embs is not None:
            x = x + self.place_embs
        x = x.flatten(1, 2)                                            # (N, F P, D)
        if self.latents is None:
            return self.norm(x)
        latents = self.latents.expand(x.shape[0], -1, -1)              # (N, L, D)
        for layer in self.layers:
            latents = layer(x, latents)
        return self.norm(latents)
    # fmt: on

    def times(self, frames: int) -> Tensor:
        """The embeddings of so many frames, (F, D): the first ones, or spread by interpolation."""
        if frames <= len(self.frame_embs):
            return self.frame_embs[:frames]
        known = self.frame_embs.T[None]  # (1, D, frames known)
        return F.interpolate(known, size=frames, mode="linear", align_corners=True)[0].T
