"""What other names and other grids a Vision Transformer's weights come under; goes with model.py.

The names are those of timm, and of older files of torchvision; a grid is the patches of an image.
"""

import math
import re

import torch
import torch.nn.functional as F
from torch import Tensor

RENAMED = {  # of timm, and older ones of torchvision
    r"patch_embed\.proj\.": "conv_proj.",
    r"cls_token$": "class_token",
    r"pos_embed$": "encoder.pos_embedding",
    r"blocks\.(\d+)\.": r"encoder.layers.encoder_layer_\1.",
    r"norm\.": "encoder.ln.",
    r"pre_logits\.fc\.": "heads.pre_logits.",
    r"head\.": "heads.head.",
}
RENAMED_INSIDE = {  # of a block
    r"\.norm([12])\.": r".ln_\1.",
    r"\.attn\.qkv\.": ".self_attention.in_proj_",
    r"\.attn\.proj\.": ".self_attention.out_proj.",
    r"\.mlp\.(fc|linear_)1\.": ".mlp.0.",
    r"\.mlp\.(fc|linear_)2\.": ".mlp.3.",
}


def current_name(key: str) -> str:
    """What a parameter is called here, by its name in timm or in a file of torchvision."""
    for old, new in RENAMED.items():
        key = re.sub(f"^{old}", new, key)
    for old, new in RENAMED_INSIDE.items() if key.startswith("encoder.layers.") else ():
        key = re.sub(old, new, key)
    return key


def interpolate(table: Tensor, tokens: int, class_token: bool) -> Tensor:
    """Learned positions (1, T, D) brought to another grid: (1, tokens, D) (Sec. 3.2).

    Bilinear, the corners on the corners, as in the authors' code; a class token keeps its own.
    What is no square stays as it is.
    """
    first, rest = table.split([int(class_token), table.shape[1] - int(class_token)], 1)
    old, new = (math.isqrt(count) for count in (rest.shape[1], tokens - int(class_token)))
    if old**2 != rest.shape[1]:
        return table
    grid = rest.transpose(1, 2).unflatten(2, (old, old))  # (1, D, old, old)
    grid = F.interpolate(grid, (new, new), mode="bilinear", align_corners=True)
    return torch.cat([first, grid.flatten(2).transpose(1, 2)], 1)


def on_line(tables: Tensor, count: int) -> Tensor:
    """Positions on both axes (2, old, D/2) brought to (2, count, D/2)."""
    lines = F.interpolate(tables.transpose(1, 2), count, mode="linear", align_corners=True)
    return lines.transpose(1, 2)
