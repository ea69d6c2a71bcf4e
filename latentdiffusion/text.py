"""The text encoder: a Transformer whose last layer's tokens the U-Net attends to.

Stable Diffusion takes that of CLIP (Radford et al. 2021, arXiv:2103.00020), which isn't trained on;
the paper (Sec. 4.3.1) and our small models train one with the U-Net. The small ones see the
whole text (`causal=False`), CLIP's tokens only those before them. Padding is seen like any token,
as in both.

Shapes: B batch, T tokens, D width, h heads. The names are those of the library transformers.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentdiffusion.layers import zero


def quick_gelu(x: Tensor) -> Tensor:
    """CLIP's approximation of the GELU."""
    return x * torch.sigmoid(1.702 * x)


ACTIVATIONS = {"quick_gelu": quick_gelu, "gelu": F.gelu}


class SelfAttention(nn.Module):
    """Attention of tokens to all, or with `causal` to those up to them."""

    def __init__(self, width: int, num_heads: int, causal: bool):
        super().__init__()
        if width % num_heads:
            raise ValueError(f"{num_heads} heads can't share a width of {width}")
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (
            nn.Linear(width, width) for _ in range(4)
        )
        self.num_heads, self.causal = num_heads, causal

    # fmt: off
    def forward(self, x: Tensor) -> Tensor:                       # (B, T, D)
        """Tokens to tokens of the same shape."""
        q, k, v = (
            layer(x).unflatten(2, (self.num_heads, -1)).transpose(1, 2)     # (B, h, T, D/h)
            for layer in (self.q_proj, self.k_proj, self.v_proj)
        )
        out = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return self.out_proj(out.transpose(1, 2).flatten(2))
    # fmt: on


class MLP(nn.Module):
    """Two layers and a nonlinearity."""

    def __init__(self, width: int, hidden: int, activation: str):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.activation = ACTIVATIONS[activation]

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) to the same."""
        return self.fc2(self.activation(self.fc1(x)))


class Layer(nn.Module):
    """Attention and MLP, each with a norm before it and a shortcut around it."""

    def __init__(self, width: int, num_heads: int, hidden: int, causal: bool, activation: str):
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(width)
        self.self_attn = SelfAttention(width, num_heads, causal)
        self.layer_norm2 = nn.LayerNorm(width)
        self.mlp = MLP(width, hidden, activation)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) to the same."""
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class Embeddings(nn.Module):
    """Of tokens and of their places."""

    def __init__(self, vocab_size: int, context: int, width: int):
        super().__init__()
        self.token_embedding = nn.Embedding(vocab_size, width)
        self.position_embedding = nn.Embedding(context, width)
        # CLIP's code has 0.02 and 0.01. In so short a training as `ldm_small`'s what the layers add
        # outgrows such a word, and the last norm leaves nothing of it: these are as large as that.
        nn.init.normal_(self.token_embedding.weight)
        nn.init.normal_(self.position_embedding.weight, std=0.5)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, T) to (B, T, D)."""
        return self.token_embedding(tokens) + self.position_embedding.weight[: tokens.shape[1]]


class Layers(nn.Module):
    """The stack of layers."""

    def __init__(self, count: int, *settings):
        super().__init__()
        self.layers = nn.ModuleList(Layer(*settings) for _ in range(count))

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) to the same."""
        for layer in self.layers:
            x = layer(x)
        return x


class TextEncoder(nn.Module):
    """Tokens (B, T), T at most `context`, to what the U-Net is told: (B, T, D)."""

    def __init__(
        self,
        vocab_size: int,
        context: int,
        d_model: int,
        num_layers: int,
        num_heads: int,
        d_ff: int,
        causal: bool = False,
        activation: str = "gelu",
    ):
        super().__init__()
        self.vocab_size, self.context, self.d_model = vocab_size, context, d_model
        self.embeddings = Embeddings(vocab_size, context, d_model)
        self.encoder = Layers(num_layers, d_model, num_heads, d_ff, causal, activation)
        self.final_layer_norm = nn.LayerNorm(d_model)
        for layer in self.encoder.layers:  # it begins as the words and their places, told apart
            zero(layer.self_attn.out_proj, layer.mlp.fc2)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, T) to (B, T, D)."""
        return self.final_layer_norm(self.encoder(self.embeddings(tokens)))
