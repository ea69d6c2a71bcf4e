"""Where a Vision Transformer looks: attention rolled out, how far heads look, alike positions.

Shapes: L layers, B batch, A heads, T tokens, N patches (T, less the class token), G patches of a
side.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from vit.layers import SelfAttention
from vit.model import VisionTransformer


@torch.inference_mode()
def attention_maps(model: VisionTransformer, images: Tensor) -> Tensor:
    """The attention of all layers and heads to images (B, 3, H, W): (L, B, A, T, T), float32."""
    layers = [module for module in model.modules() if isinstance(module, SelfAttention)]
    for layer in layers:
        layer.recording = True
    model(images)
    maps = torch.stack([layer.weights.float() for layer in layers])
    for layer in layers:
        layer.recording, layer.weights = False, None
    return maps


def rollout(maps: Tensor) -> Tensor:
    """Attention through all layers, (L, B, A, T, T) to (B, T, T) (Abnar and Zuidema 2020; D.8).

    The heads' mean; half of each token comes unchanged past the attention, by the residual
    connection; and the matrices of all layers are multiplied. Rows add up to one.
    """
    steps = (maps.mean(2) + torch.eye(maps.shape[-1], device=maps.device)) / 2  # (L, B, T, T)
    seen = steps[0]
    for step in steps[1:]:
        seen = step @ seen
    return seen


def looked_at(model: VisionTransformer, images: Tensor) -> Tensor:
    """What the classified token is made of, (B, G, G), the largest 1; of images (B, 3, H, W).

    That is the class token, or all of the patches' tokens.
    """
    seen = rollout(attention_maps(model, images))  # (B, T, T)
    rows = seen[:, 0, 1:] if model.pool == "token" else seen.mean(1)  # (B, N)
    grid = rows.unflatten(1, (math.isqrt(rows.shape[1]), -1))
    return grid / grid.amax((1, 2), True)


def shaded(images: Tensor, grid: Tensor) -> Tensor:
    """Images (B, 3, H, W) from 0 to 1, dark where nobody looks (B, G, G), as in Fig. 6."""
    light = F.interpolate(grid[:, None], images.shape[2:], mode="bilinear")
    return images * (0.15 + 0.85 * light)


def attention_distances(maps: Tensor, patch_size: int, class_token: bool) -> Tensor:
    """How far each head looks, in pixels: (L, A), the mean over images and queries (D.7).

    It is the distance between the middles of two patches, weighted by the attention that one pays
    to the other. What goes to the class token, or comes from it, has no distance, and is left out.
    """
    maps = maps[..., class_token:, class_token:]
    maps = maps / maps.sum(-1, keepdim=True)
    side = math.isqrt(maps.shape[-1])
    places = torch.cartesian_prod(*[torch.arange(side, dtype=torch.float32)] * 2).to(maps.device)
    apart = torch.cdist(places, places) * patch_size  # (N, N)
    return (maps * apart).sum(-1).mean((1, 3))


@torch.no_grad()
def position_similarity(model: VisionTransformer) -> Tensor:
    """The cosine of each patch's learned position with all others', (N, N) (Fig. 7, centre).

    Raises ValueError for a network without positions that are added.
    """
    table = model.encoder.table()
    if table is None:
        raise ValueError(f"positions {model.encoder.positions!r} are no vectors of patches")
    table = F.normalize(table[0, table.shape[1] - math.isqrt(table.shape[1]) ** 2 :], dim=1)
    return table @ table.T
