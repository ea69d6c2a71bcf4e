"""Attention of a node to its neighbours, drawn."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from common.plot import save


def attention_rows(
    maps: dict[str, Tensor], names: Sequence[str], path: str | Path, heading: str
) -> None:
    """Draws weights (H, n) of each of {layer: weights}, a row a head: dark is much.

    `names` are the n that are looked at.
    """
    width = 1.6 + 0.35 * len(names)
    height = sum(0.9 + 0.25 * len(weights) for weights in maps.values()) + 0.6
    figure = Figure(figsize=(min(width, 30), height), layout="constrained")
    ratios = [1 + len(weights) for weights in maps.values()]
    most = max(float(weights.max()) for weights in maps.values())
    axes = figure.subplots(len(maps), 1, squeeze=False, height_ratios=ratios)[:, 0]
    for axis, (title, weights) in zip(axes, maps.items(), strict=True):
        shown = axis.imshow(np.asarray(weights), cmap="Blues", vmin=0, vmax=most, aspect="auto")
        axis.set_title(title, fontsize=8)
        heads = [f"head {k + 1}" for k in range(len(weights))]
        axis.set_yticks(range(len(heads)), heads, fontsize=7)
        axis.set_xticks(range(len(names)), names, fontsize=7, rotation=90, parse_math=False)
    figure.colorbar(shown, ax=list(axes), shrink=0.6)
    figure.suptitle(heading, fontsize=9)
    save(figure, path)
