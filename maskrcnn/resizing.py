"""Between the user's pixels and those that the network sees: maps, boxes and masks at another size.

Shapes: B batch, C channels, H and W pixels, n objects, M objects of an image, Q pixels a side of a
predicted mask. Sizes are (height, width), boxes left, top, right, bottom.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def resized(x: Tensor, size: tuple[int, int], mode: str) -> Tensor:
    """Maps (B, C, H, W) at another height and width."""
    if tuple(x.shape[-2:]) == size:
        return x
    corners = {} if mode == "nearest" else {"align_corners": False}
    return F.interpolate(x, size, mode=mode, **corners)


def ratios(old: Sequence[int], new: Sequence[int]) -> Tensor:
    """What turns boxes (n, 4) of an image of the size `old` (height, width) into those of `new`."""
    down, across = (torch.tensor(b) / torch.tensor(a) for a, b in zip(old, new, strict=True))
    return torch.stack([across, down, across, down])


def scale_target(
    target: dict[str, Tensor], old: tuple[int, int], new: tuple[int, int]
) -> dict[str, Tensor]:
    """The target of an image of size `old` for its scaled version; raises ValueError for a box
    without an area."""
    boxes = target["boxes"]
    if (boxes[:, 2:] <= boxes[:, :2]).any():
        raise ValueError("a box without an area: right and bottom are to be beyond left and top")
    scaled = {**target, "boxes": boxes * ratios(old, new).to(boxes.device)}
    if "masks" in target:
        masks = target["masks"]
        scaled["masks"] = masks
        if old != new:
            scaled["masks"] = resized(masks[:, None].float(), new, "nearest")[:, 0].to(masks.dtype)
    return scaled


def paste(masks: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Masks (n, 1, Q, Q) within boxes (n, 4) to masks (n, 1, H, W) of the whole image.

    A ring of zeros is put around each before it is stretched, so that it ends within its box
    (not in the paper: Detectron's, and torchvision's).
    """
    height, width = size
    out = masks.new_zeros(len(masks), 1, height, width)
    side = masks.shape[3]
    masks = F.pad(masks, (1, 1, 1, 1))
    centre, half = (boxes[:, 2:] + boxes[:, :2]) / 2, (boxes[:, 2:] - boxes[:, :2]) / 2
    half = half * ((side + 2) / side)
    corners = torch.cat([centre - half, centre + half], 1).long().tolist()
    for space, mask, (left, top, right, bottom) in zip(out, masks, corners, strict=True):
        rows, columns = max(bottom - top + 1, 1), max(right - left + 1, 1)
        begin = max(left, 0), max(top, 0)
        end = min(right + 1, width), min(bottom + 1, height)
        if end[0] <= begin[0] or end[1] <= begin[1]:
            continue
        large = resized(mask[None], (rows, columns), "bilinear")[0, 0]
        part = large[begin[1] - top : end[1] - top, begin[0] - left : end[0] - left]
        space[0, begin[1] : end[1], begin[0] : end[0]] = part
    return out
