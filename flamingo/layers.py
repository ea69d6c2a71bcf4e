"""The layers that Flamingo puts before blocks of a frozen language model (Sec. 2.2, Fig. 4).

Text looks at images by cross-attention, and what it sees is added through a gate: the tanh of a
learned number that begins at zero. So at first nothing is changed, bit for bit, and training opens
the gates as far as it helps. Among several images a token looks only at the last that came before
it (Sec. 2.3, Fig. 7); a token before the first looks at none.

Shapes: B batch, T tokens, D width of the text, M images, L latents of each, C their width, H heads,
d dimensions of a head.

Parameters bear the names of OpenFlamingo's checkpoints.
"""

import torch
from torch import Tensor, nn

from flamingo.resampler import FeedForward, attend, heads


def images_before(tokens: Tensor, image_token: int) -> Tensor:
    """How many images came before each of the tokens (B, T), or at it: (B, T).

    That is the number of the image the token sees, from 1; 0 is none.
    """
    return (tokens == image_token).cumsum(1)


def sight(seen: Tensor, num_images: int, num_latents: int) -> Tensor:
    """Which latents tokens see that see images `seen` (B, T): (B, T, M L), True where they do."""
    numbers = torch.arange(1, num_images + 1, device=seen.device)
    return (seen[:, :, None] == numbers).repeat_interleave(num_latents, 2)


class MaskedCrossAttention(nn.Module):
    """Tokens look at the latents of one image each.

    With `recording` set, `weights` holds the attention of the last call, (B, H, T, M L).
    """

    def __init__(self, width: int, media_width: int, num_heads: int, d_head: int):
        super().__init__()
        inner = num_heads * d_head
        self.num_heads = num_heads
        self.norm = nn.LayerNorm(width)
        self.to_q = nn.Linear(width, inner, bias=False)
        self.to_kv = nn.Linear(media_width, 2 * inner, bias=False)
        self.to_out = nn.Linear(inner, width, bias=False)
        self.recording, self.weights = False, None

    def keys(self, media: Tensor) -> dict[str, Tensor]:
        """Latents (B, M, L, C) as keys and values (B, H, M, L, d), the same for all tokens."""
        pair = self.to_kv(media).chunk(2, 3)
        key, value = (x.unflatten(3, (self.num_heads, -1)).permute(0, 3, 1, 2, 4) for x in pair)
        return {"key": key, "value": value}

    # fmt: off
    def forward(self, x: Tensor, media: dict[str, Tensor], visible: Tensor) -> Tensor:
        """Tokens (B, T, D), keys and values of latents, and which are visible to which token
        (B, T, M L), to (B, T, D): zeros where nothing is."""
        key, value = (media[name].flatten(2, 3) for name in ("key", "value"))  # (B, H, M L, d)
        query = heads(self.to_q(self.norm(x)), self.num_heads)             # (B, H, T, d)
        blind = ~visible.any(2, keepdim=True)                              # (B, T, 1)
        mask = (visible | blind)[:, None]  # a softmax over nothing would be no number
        out, weights = attend(query, key, value, mask, self.recording)
        if self.recording:
            self.weights = weights
        out = self.to_out(out.transpose(1, 2).flatten(2))                  # (B, T, D)
        return out.masked_fill(blind, 0.0)
    # fmt: on


class GatedCrossAttentionBlock(nn.Module):
    """GATED XATTN-DENSE (Fig. 4): cross-attention and a feed-forward network, each gated.

    Without `gated` both are added as they are, from the beginning: the paper's ablation.
    """

    def __init__(
        self,
        width: int,
        media_width: int,
        num_heads: int,
        d_head: int,
        activation: str = "squared_relu",
        gated: bool = True,
    ):
        super().__init__()
        self.attn = MaskedCrossAttention(width, media_width, num_heads, d_head)
        self.attn_gate = nn.Parameter(torch.zeros(1)) if gated else None
        self.ff = FeedForward(width, activation)
        self.ff_gate = nn.Parameter(torch.zeros(1)) if gated else None

    def gates(self) -> tuple[Tensor | float, Tensor | float]:
        """What attention and feed-forward are multiplied by: from -1 to 1."""
        if self.attn_gate is None:
            return 1.0, 1.0
        return self.attn_gate.tanh(), self.ff_gate.tanh()

    def keys(self, media: Tensor) -> dict[str, Tensor]:
        """Latents (B, M, L, C) as keys and values (B, H, M, L, d), the same for all tokens."""
        return self.attn.keys(media)

    def forward(self, x: Tensor, media: dict[str, Tensor], visible: Tensor) -> Tensor:
        """(B, T, D) to the same."""
        of_attention, of_feed_forward = self.gates()
        x = x + of_attention * self.attn(x, media, visible)
        return x + of_feed_forward * self.ff(x)
