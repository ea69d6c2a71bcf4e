"""Pictures of what the two networks of 1986 have learned: Fig. 1 and Fig. 4."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from common.plot import save
from mlp.model import LogisticNet
from mlp.worlds import ENGLISH, ITALIANS, RELATIONS

INK = {True: "tab:blue", False: "tab:red"}  # excitatory and inhibitory


def draw_symmetry(model: LogisticNet, path: Path) -> None:
    """Fig. 1: the net for symmetry, weights on its lines and biases in its units."""
    from matplotlib.figure import Figure

    first, last = (layer.groups[0].requires_grad_(False) for layer in model.layers)
    figure = Figure(figsize=(7, 4.4), layout="constrained")
    axis = figure.subplots()
    axis.axis("off")
    inputs = [(place, 0.0) for place in range(6)]
    hidden = [(1.2, 1.5), (3.8, 1.5)]
    output = (2.5, 3.0)
    most = max(float(p.detach().abs().max()) for p in model.parameters())

    def line(start: tuple, end: tuple, weight: float, along: float) -> None:
        width = 0.4 + 4 * abs(weight) / most
        x, y = zip(start, end, strict=True)
        axis.plot(x, y, color=INK[weight > 0], linewidth=width, zorder=1, alpha=0.8)
        place = [a + along * (b - a) for a, b in zip(start, end, strict=True)]
        box = dict(boxstyle="round,pad=0.1", color="white")
        axis.text(*place, f"{weight:.1f}", fontsize=8, ha="center", va="center", bbox=box)

    for unit, here in enumerate(hidden):
        for place, below in enumerate(inputs):
            line(below, here, float(first.weight[unit, place]), 0.25 + 0.3 * unit)
        line(here, output, float(last.weight[0, unit]), 0.5)
    units = [(here, float(bias)) for here, bias in zip(hidden, first.bias, strict=True)]
    for (x, y), text in (
        *((here, "") for here in inputs),
        *((here, f"{bias:.1f}") for here, bias in units),
        (output, f"{float(last.bias[0]):.1f}"),
    ):
        axis.scatter([x], [y], s=900 if text else 250, color="white", edgecolors="black", zorder=2)
        axis.text(x, y, text, fontsize=9, ha="center", va="center", zorder=3)
    axis.set_title("weights on the lines (blue: excitatory), biases in the units", fontsize=9)
    axis.set_xlim(-0.5, 5.5)
    axis.set_ylim(-0.3, 3.4)
    save(figure, path)


def draw_weights(weights: Tensor, rows: Sequence[Sequence[str]], path: Path, heading: str) -> None:
    """Fig. 4: weights (units, inputs) of each unit as squares whose area is their size.

    `rows` name the inputs in the rows that a unit's squares stand in.
    """
    from matplotlib.collections import PatchCollection
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    units, width = len(weights), len(rows[0])
    figure = Figure(figsize=(7, 0.55 * units * (len(rows) + 0.6) + 1.2), layout="constrained")
    axes = figure.subplots(units, 1, squeeze=False)[:, 0]
    most = float(weights.abs().max())
    grid = weights.view(units, len(rows), width)
    for unit, axis in enumerate(axes):
        squares, colours = [], []
        for row, column in torch.cartesian_prod(*map(torch.arange, grid.shape[1:])).tolist():
            weight = float(grid[unit, row, column])
            side = 0.95 * (abs(weight) / most) ** 0.5
            corner = (column - side / 2, -row - side / 2)
            squares.append(Rectangle(corner, side, side))
            colours.append("white" if weight > 0 else "black")
        axis.add_collection(PatchCollection(squares, facecolors=colours))
        axis.set_facecolor("0.6")
        axis.set_xlim(-0.6, width - 0.4)
        axis.set_ylim(-len(rows) + 0.4, 0.6)
        axis.set_aspect("equal")
        axis.set_yticks([])
        axis.set_ylabel(f"{unit + 1}", rotation=0, labelpad=8, va="center")
        names = ["\n".join(column) for column in zip(*rows, strict=True)]
        last = axis is axes[-1]
        axis.set_xticks(range(width), names if last else [], fontsize=6, rotation=40 * last)
        axis.tick_params(length=0)
    figure.suptitle(heading, fontsize=9)
    save(figure, path)


def draw_families(model: LogisticNet, out: Path) -> list[str]:
    """The weights of the units for people and of those for relationships; returns file names."""
    people, relations = (group.weight.detach().cpu() for group in model.layers[0].groups)
    heading = (
        "weights into the six units for people: English above, Italians below; white: positive"
    )
    draw_weights(people, [ENGLISH, ITALIANS], out / "people.png", heading)
    heading = "weights into the six units for relationships"
    draw_weights(relations, [RELATIONS], out / "relations.png", heading)
    return ["people.png", "relations.png"]
