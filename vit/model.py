"""Vision Transformers (Dosovitskiy, Beyer, Kolesnikov, Weissenborn, Zhai, Unterthiner, Dehghani,
Minderer, Heigold, Gelly, Uszkoreit, Houlsby 2020, arXiv:2010.11929).

An image is cut into patches, and each is treated as a word: a linear layer makes a vector of it, a
learned vector says where it stood, and the encoder of a Transformer reads them all. Nothing is
built in of what convolutions know of images (neighbours, shifts); it has to be learned from data.

Shapes: B batch, H and W pixels, P pixels of a patch, N patches (H W / P^2), T tokens (N, and the
class token), D d_model, K classes.

Parameters bear torchvision's names; the names of timm, and those of older files of torchvision,
are understood by `load_state_dict`, which also brings positions to another grid (Sec. 3.2).
`positions` are those of appendix D.4, `pool` is of D.3. Left open by the paper: a class token has
no position on the two axes of "2d". layers.py says more.
"""

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vit.layers import EPS, EncoderBlock
from vit.loading import current_name, interpolate, on_line

POSITIONS = ("none", "1d", "2d", "relative")
POOLS = ("token", "mean")


class Encoder(nn.Module):
    """Positions, `num_layers` blocks and a norm; `grid` is the patches of a side.

    Of the `positions` "1d" is one learned vector for each token (with the `class_token`), in the
    order in which one reads; "2d" has half a vector for the row and half for the column.
    """

    def __init__(
        self,
        grid: int,
        num_layers: int,
        num_heads: int,
        d_model: int,
        d_ff: int,
        dropout: float,
        positions: str,
        class_token: bool,
    ):
        super().__init__()
        self.positions, tokens = positions, grid**2 + class_token
        if positions == "1d":
            table = torch.empty(1, tokens, d_model)
            self.pos_embedding = nn.Parameter(nn.init.normal_(table, std=0.02))
        elif positions == "2d":
            tables = torch.empty(2, grid, d_model // 2)
            self.pos_axes = nn.Parameter(nn.init.normal_(tables, std=0.02))  # of rows, of columns
        self.dropout = nn.Dropout(dropout)
        block = d_model, d_ff, num_heads, dropout, tokens if positions == "relative" else 0
        blocks = {f"encoder_layer_{i}": EncoderBlock(*block) for i in range(num_layers)}
        self.layers = nn.Sequential(OrderedDict(blocks))
        self.ln = nn.LayerNorm(d_model, EPS)

    def table(self) -> Tensor | None:
        """What is added to the last tokens, (1, N, D), or to all of them, (1, T, D)."""
        if self.positions == "2d":
            rows, columns = self.pos_axes
            grid = rows.shape[0]
            both = rows[:, None].expand(-1, grid, -1), columns[None].expand(grid, -1, -1)
            return torch.cat(both, 2).flatten(0, 1)[None]
        return self.pos_embedding if self.positions == "1d" else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) to (B, T, D)."""
        table = self.table()
        if table is not None:  # Eq. 1
            x = x + F.pad(table, (0, 0, x.shape[1] - table.shape[1], 0))
        return self.ln(self.layers(self.dropout(x)))


class VisionTransformer(nn.Module):
    """Patches to tokens, an encoder, and a linear layer on the class token (Fig. 1).

    Images have `image_size` pixels a side, a multiple of `patch_size`. `pool="mean"` averages the
    tokens of the patches, and has no class token. With `representation_size` a layer and a tanh
    come before the last one: the paper's head of pre-training (Sec. 3.1).
    Raises ValueError for sizes, `positions` or a `pool` that can't be.
    """

    def __init__(
        self,
        image_size: int,
        patch_size: int,
        num_layers: int,
        num_heads: int,
        d_model: int,
        d_ff: int,
        num_classes: int,
        dropout: float = 0.0,
        positions: str = "1d",
        pool: str = "token",
        representation_size: int | None = None,
    ):
        super().__init__()
        if image_size % patch_size:
            raise ValueError(f"{image_size} pixels can't be cut into patches of {patch_size}")
        if positions not in POSITIONS or pool not in POOLS:
            raise ValueError(f"positions are {POSITIONS} and pool {POOLS}: not {positions}, {pool}")
        if positions == "2d" and d_model % 2:
            raise ValueError(f"rows and columns can't share {d_model} dimensions equally")
        self.image_size, self.pool, grid = image_size, pool, image_size // patch_size
        self.conv_proj = nn.Conv2d(3, d_model, patch_size, patch_size)  # E of Eq. 1, on each patch
        if pool == "token":
            self.class_token = nn.Parameter(torch.zeros(1, 1, d_model))
        sizes = grid, num_layers, num_heads, d_model, d_ff
        self.encoder = Encoder(*sizes, dropout, positions, pool == "token")
        layers = OrderedDict()
        if representation_size:
            layers["pre_logits"] = nn.Linear(d_model, representation_size)
            layers["act"] = nn.Tanh()
            nn.init.trunc_normal_(layers["pre_logits"].weight, std=d_model**-0.5)
            nn.init.zeros_(layers["pre_logits"].bias)
        layers["head"] = nn.Linear(representation_size or d_model, num_classes)
        self.heads = nn.Sequential(layers)
        nn.init.trunc_normal_(self.conv_proj.weight, std=(3 * patch_size**2) ** -0.5)
        nn.init.zeros_(self.conv_proj.bias)
        for p in self.heads.head.parameters():  # at first all classes are as likely (B.1.1)
            nn.init.zeros_(p)
        self.register_load_state_dict_pre_hook(load_fitted)

    # fmt: off
    def features(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) to what the encoder makes of their tokens (B, T, D)."""
        if images.shape[2:] != (self.image_size, self.image_size):
            size = "x".join(map(str, images.shape[2:]))
            raise ValueError(f"images of {size} pixels, but positions for {self.image_size}")
        x = self.conv_proj(images).flatten(2).transpose(1, 2)        # (B, N, D)
        if self.pool == "token":
            x = torch.cat([self.class_token.expand(len(x), -1, -1), x], 1)  # (B, T, D)
        return self.encoder(x)                                       # (B, T, D)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) to logits (B, K)."""
        x = self.features(images)                                    # (B, T, D)
        x = x[:, 0] if self.pool == "token" else x.mean(1)           # (B, D), Eq. 4
        return self.heads(x)                                         # (B, K)
    # fmt: on

    def fitted(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """A state_dict under the names of this network, its positions brought to this grid.

        Raises ValueError for relative positions of another grid.
        """
        state = {current_name(key): value for key, value in state.items()}
        own = self.state_dict()
        for key, there in state.items():
            here = own.get(key)
            if here is None or here.shape == there.shape or here.shape[-1] != there.shape[-1]:
                continue
            if key == "encoder.pos_embedding":
                state[key] = interpolate(there, here.shape[1], self.pool == "token")
            elif key == "encoder.pos_axes":
                state[key] = on_line(there, here.shape[1])
            elif key.endswith("offsets"):
                raise ValueError("relative positions are of one grid: keep the size in pixels")
        return state


def load_fitted(model: VisionTransformer, state: dict[str, Tensor], prefix: str, *_) -> None:
    """Before `load_state_dict`: what `fitted` changes."""
    own = {key: state.pop(key) for key in list(state) if key.startswith(prefix)}
    fitted = model.fitted({key[len(prefix) :]: value for key, value in own.items()})
    state.update({prefix + key: value for key, value in fitted.items()})


# fmt: off
SIZES = {  # Table 1, with the patch; the last is ours, for small images
    "b_16": dict(patch_size=16, num_layers=12, num_heads=12, d_model=768,  d_ff=3072),
    "b_32": dict(patch_size=32, num_layers=12, num_heads=12, d_model=768,  d_ff=3072),
    "l_16": dict(patch_size=16, num_layers=24, num_heads=16, d_model=1024, d_ff=4096),
    "l_32": dict(patch_size=32, num_layers=24, num_heads=16, d_model=1024, d_ff=4096),
    "h_14": dict(patch_size=14, num_layers=32, num_heads=16, d_model=1280, d_ff=5120),
    "tiny": dict(patch_size=4,  num_layers=4,  num_heads=4,  d_model=64),
}
# fmt: on


def vit_b_16(num_classes: int = 1000, image_size: int = 224, **settings) -> VisionTransformer:
    """ViT-B/16 (Table 1); 86,567,656 parameters."""
    return VisionTransformer(image_size, num_classes=num_classes, **SIZES["b_16"] | settings)


def vit_b_32(num_classes: int = 1000, image_size: int = 224, **settings) -> VisionTransformer:
    """ViT-B/32; 88,224,232 parameters."""
    return VisionTransformer(image_size, num_classes=num_classes, **SIZES["b_32"] | settings)


def vit_l_16(num_classes: int = 1000, image_size: int = 224, **settings) -> VisionTransformer:
    """ViT-L/16; 304,326,632 parameters."""
    return VisionTransformer(image_size, num_classes=num_classes, **SIZES["l_16"] | settings)


def vit_l_32(num_classes: int = 1000, image_size: int = 224, **settings) -> VisionTransformer:
    """ViT-L/32; 306,535,400 parameters."""
    return VisionTransformer(image_size, num_classes=num_classes, **SIZES["l_32"] | settings)


def vit_h_14(num_classes: int = 1000, image_size: int = 224, **settings) -> VisionTransformer:
    """ViT-H/14; 632,045,800 parameters."""
    return VisionTransformer(image_size, num_classes=num_classes, **SIZES["h_14"] | settings)


def vit_tiny(num_classes: int = 10, image_size: int = 32, **settings) -> VisionTransformer:
    """Not of the paper: patches of 4 pixels, four times `d_model` in the feed-forward network."""
    sizes = SIZES["tiny"] | settings
    return VisionTransformer(
        image_size, num_classes=num_classes, **dict(d_ff=4 * sizes["d_model"]) | sizes
    )


MODELS = {
    "vit_tiny": vit_tiny,
    "vit_b_16": vit_b_16,
    "vit_b_32": vit_b_32,
    "vit_l_16": vit_l_16,
    "vit_l_32": vit_l_32,
    "vit_h_14": vit_h_14,
}
