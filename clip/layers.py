"""What both Transformers of CLIP are made of: attention, causal or not, and a block.

Shapes: B batch, T tokens, D width, A heads, d dimensions of a head. Parameters bear the names of
the released code, which are those of `nn.MultiheadAttention`.
"""

import math
from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HEAD = 64  # dimensions of a head, in all published networks


class QuickGELU(nn.Module):
    """x sigmoid(1.702 x): the approximation of GELU that the released networks were trained with.

    It is up to 0.02 off; published weights need it.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Elementwise."""
        return x * torch.sigmoid(1.702 * x)


ACTIVATIONS = {"quick_gelu": QuickGELU, "gelu": nn.GELU}


def causal_mask(length: int, like: Tensor) -> Tensor:
    """(T, T): 0 where a token may look (at itself and those before it), else minus infinity."""
    return like.new_full((length, length), -math.inf).triu(1)


def attend(query: Tensor, key: Tensor, value: Tensor, causal: bool) -> Tensor:
    """Heads (B, A, T, d) to (B, A, T, d), by a kernel of torch's.

    On a CPU in bf16 its backward pass is slow; plain products take half of its time there.
    """
    if not query.is_cpu or query.dtype != torch.bfloat16:
        return F.scaled_dot_product_attention(query, key, value, is_causal=causal)
    with torch.autocast("cpu", enabled=False):
        rows = query.flatten(0, 1), key.transpose(2, 3).flatten(0, 1)  # (B A, T, d), (B A, d, T)
        start = causal_mask(query.shape[2], query) if causal else query.new_zeros(1)
        weights = torch.baddbmm(start, *rows, alpha=query.shape[3] ** -0.5).softmax(-1)
        heads = weights @ value.flatten(0, 1)
    return heads.unflatten(0, query.shape[:2])


class Attention(nn.Module):
    """Multi-head self-attention. Raises ValueError for heads that can't share `width`."""

    def __init__(self, width: int, num_heads: int, causal: bool):
        super().__init__()
        if width % num_heads:
            raise ValueError(f"{num_heads} heads can't share {width} dimensions equally")
        self.num_heads, self.causal = num_heads, causal
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))  # of q, k, v
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    # fmt: off
    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) to (B, T, D)."""
        parts = F.linear(x, self.in_proj_weight, self.in_proj_bias)  # (B, T, 3 D)
        parts = parts.unflatten(2, (3, self.num_heads, -1))          # (B, T, 3, A, d)
        query, key, value = parts.permute(2, 0, 3, 1, 4)             # (B, A, T, d) each
        heads = attend(query, key, value, self.causal)               # (B, A, T, d)
        return self.out_proj(heads.transpose(1, 2).flatten(2))       # (B, T, D)
    # fmt: on


class ResidualAttentionBlock(nn.Module):
    """Attention and a feed-forward network, each after a norm and added to its input."""

    def __init__(self, width: int, num_heads: int, causal: bool, activation: str):
        super().__init__()
        self.attn = Attention(width, num_heads, causal)
        self.ln_1 = nn.LayerNorm(width)
        layers = OrderedDict(
            c_fc=nn.Linear(width, 4 * width),
            gelu=ACTIVATIONS[activation](),
            c_proj=nn.Linear(4 * width, width),
        )
        self.mlp = nn.Sequential(layers)
        self.ln_2 = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) to (B, T, D)."""
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
    """`num_layers` blocks, one after another."""

    def __init__(self, width: int, num_layers: int, num_heads: int, causal: bool, activation: str):
        super().__init__()
        blocks = (
            ResidualAttentionBlock(width, num_heads, causal, activation) for _ in range(num_layers)
        )
        self.resblocks = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) to (B, T, D)."""
        return self.resblocks(x)
