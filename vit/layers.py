"""What the encoder of a Vision Transformer is made of: attention, with or without relative
positions, and a block.

Shapes: B batch, T tokens, D d_model, A heads, d dimensions of a head. Equations are those of
Dosovitskiy et al. 2020; parameters bear torchvision's names. Left open by the paper: heads share
one table of relative positions in a layer. The authors' GELU is an approximation by tanh; here it
is exact, as in torchvision and timm.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EPS = 1e-6  # of the norms


# fmt: off
def attention(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None):
    """Self-attention (Eq. 6, 7), written out: heads (B, A, T, d) and weights (B, A, T, T).

    `bias` is added to the scores, which are scaled already there.
    """
    scores = query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])  # (B, A, T, T)
    weights = (scores if bias is None else scores + bias).softmax(-1)    # Eq. 6
    return weights @ value, weights                                      # Eq. 7
# fmt: on


def attention_kernel(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
    """The same without the weights: heads (B, A, T, d), by a kernel of torch's.

    On a CPU in bf16 its backward pass is slow; plain products take half of its time there.
    """
    if not query.is_cpu or query.dtype != torch.bfloat16:
        return F.scaled_dot_product_attention(query, key, value, bias)
    with torch.autocast("cpu", enabled=False):
        rows = query.flatten(0, 1), key.transpose(2, 3).flatten(0, 1)  # (B A, T, d), (B A, d, T)
        start = query.new_zeros(1) if bias is None else bias.to(query.dtype).flatten(0, 1)
        weights = torch.baddbmm(start, *rows, alpha=query.shape[3] ** -0.5).softmax(-1)
        heads = weights @ value.flatten(0, 1)
    return heads.unflatten(0, query.shape[:2])


class SelfAttention(nn.Module):
    """Multi-head self-attention (Eq. 5 to 8, appendix A).

    With `relative` (T) the table `offsets` (2T - 1, d) says what a key at each distance adds to a
    query's scores (D.4). With `recording` set, `weights` holds the attention of the last call,
    (B, A, T, T). Raises ValueError for heads that can't share `d_model`, and for one place alone.
    """

    def __init__(self, d_model: int, num_heads: int, relative: int = 0):
        super().__init__()
        if d_model % num_heads:
            raise ValueError(f"{num_heads} heads can't share {d_model} dimensions equally")
        if relative == 1:
            raise ValueError("one patch alone has no relative positions: take smaller ones")
        self.num_heads = num_heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * d_model, d_model))  # of q, k, v (Eq. 5)
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * d_model))
        self.out_proj = nn.Linear(d_model, d_model)  # Eq. 8
        self.offsets = None
        if relative:
            table = torch.empty(2 * relative - 1, d_model // num_heads)
            self.offsets = nn.Parameter(nn.init.normal_(table, std=0.02))
        self.recording, self.weights = False, None
        for matrix in (*self.in_proj_weight.detach().chunk(3), self.out_proj.weight):
            nn.init.xavier_uniform_(matrix)
        nn.init.zeros_(self.out_proj.bias)

    # fmt: off
    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) to (B, T, D)."""
        parts = F.linear(x, self.in_proj_weight, self.in_proj_bias)  # (B, T, 3 D)
        parts = parts.unflatten(2, (3, self.num_heads, -1))          # (B, T, 3, A, d)
        query, key, value = parts.permute(2, 0, 3, 1, 4)             # (B, A, T, d) each
        bias = None if self.offsets is None else self.distances(query)
        if self.recording:
            heads, self.weights = attention(query, key, value, bias)
        else:
            heads = attention_kernel(query, key, value, bias)        # (B, A, T, d)
        return self.out_proj(heads.transpose(1, 2).flatten(2))       # (B, T, D)
    # fmt: on

    def distances(self, query: Tensor) -> Tensor:
        """The scores (B, A, T, T) of queries (B, A, T, d) with the offsets of the keys from them.

        Row T - 1 + j - i of the table is for a key j and a query i. All products with it are made,
        (B, A, T, 2T - 1); in memory, what the next query needs begins one column earlier.
        """
        length = query.shape[2]
        scores = query @ self.offsets.T.to(query.dtype) / math.sqrt(query.shape[3])
        shifted = scores.flatten(2)[:, :, length - 1 : -1].unflatten(2, (length, -1))
        return shifted[..., :length]


class EncoderBlock(nn.Module):
    """Attention and a feed-forward network, each after a norm and added to its input (Fig. 1)."""

    def __init__(self, d_model: int, d_ff: int, num_heads: int, dropout: float, relative: int):
        super().__init__()
        self.ln_1 = nn.LayerNorm(d_model, EPS)
        self.self_attention = SelfAttention(d_model, num_heads, relative)
        self.dropout = nn.Dropout(dropout)
        self.ln_2 = nn.LayerNorm(d_model, EPS)
        wide, narrow = nn.Linear(d_model, d_ff), nn.Linear(d_ff, d_model)
        self.mlp = nn.Sequential(wide, nn.GELU(), nn.Dropout(dropout), narrow, nn.Dropout(dropout))
        for layer in (wide, narrow):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.normal_(layer.bias, std=1e-6)

    # fmt: off
    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) to (B, T, D)."""
        x = x + self.dropout(self.self_attention(self.ln_1(x)))      # Eq. 2
        return x + self.mlp(self.ln_2(x))                            # Eq. 3
    # fmt: on
