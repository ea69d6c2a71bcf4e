"""Pictures of results. Nothing opens a window; each function writes one file."""

import textwrap
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

MOST_HEADS = 64  # that get a picture of their own, with the names of tokens


def save(figure: Figure, path: str | Path) -> None:
    """Writes a figure, as PNG or by the ending of its name, making its folder."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # letters no font has, long names
        figure.savefig(path, dpi=100)


def curves(rows: Sequence[dict], path: str | Path) -> None:
    """Draws each metric over the epochs; those that end alike (train_loss, val_loss) share axes.

    `rows` are those of metrics.jsonl: dictionaries with `epoch` and numbers.
    """
    keys = [k for k in dict.fromkeys(k for row in rows for k in row) if k not in ("epoch", "step")]
    kinds = list(dict.fromkeys(key.rpartition("_")[2] for key in keys))
    figure = Figure(figsize=(4.2 * len(kinds), 3.2), layout="constrained")
    axes = figure.subplots(1, len(kinds), squeeze=False)[0]
    for axis, kind in zip(axes, kinds, strict=True):
        for key in (key for key in keys if key.rpartition("_")[2] == kind):
            points = [(row["epoch"], row[key]) for row in rows if key in row]
            axis.plot(
                *zip(*points, strict=True), marker="." if len(points) < 30 else None, label=key
            )
        axis.set_xlabel("epoch")
        axis.grid(alpha=0.3)
        axis.legend()
    save(figure, path)


def image_grid(
    images: Tensor | Sequence[Tensor],
    path: str | Path,
    titles: Sequence[str] = (),
    columns: int = 10,
    size: float = 1.0,
    heading: str = "",
) -> None:
    """Draws images (C, H, W), values 0 to 255 if uint8 and 0 to 1 if float, grey if C is 1.

    `size` is the width of one image in inches; `titles` stand over the images.
    """
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    height = size * (1.25 if titles else 1.05)
    figure = Figure(
        figsize=(size * columns, height * rows + 0.4 * bool(heading)), layout="constrained"
    )
    axes = figure.subplots(rows, columns, squeeze=False).flat
    for axis in figure.axes:
        axis.axis("off")
    for index, (axis, image) in enumerate(zip(axes, images, strict=False)):
        pixels = np.asarray(image.cpu()).transpose(1, 2, 0)
        top = 255 if pixels.dtype == np.uint8 else 1
        axis.imshow(
            pixels.squeeze(2) if pixels.shape[2] == 1 else pixels, cmap="gray", vmin=0, vmax=top
        )
        if titles:
            axis.set_title(titles[index], fontsize=8, pad=2, parse_math=False)
    if heading:
        figure.suptitle(heading, fontsize=10)
    save(figure, path)


def sheet(images: Tensor, path: str | Path, columns: int = 10, pixels: int = 48) -> None:
    """Tiles images (N, C, H, W) from 0 to 1, exactly enlarged to about `pixels`, without titles.

    Much quicker than `image_grid` for many small images.
    """
    values = (np.asarray(images.float().cpu()).clip(0, 1) * 255).round().astype(np.uint8)
    count, channels, height, width = values.shape
    columns, scale = min(columns, count), max(1, pixels // width)
    rows = -(-count // columns)
    page = np.full((rows * columns, channels, height + 1, width + 1), 255, dtype=np.uint8)
    page[:count, :, :-1, :-1] = values
    page = page.reshape(rows, columns, channels, height + 1, width + 1).transpose(0, 3, 1, 4, 2)
    page = page.reshape(rows * (height + 1), columns * (width + 1), channels)[:-1, :-1]
    page = page.repeat(scale, 0).repeat(scale, 1)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(page.squeeze(2) if channels == 1 else page).save(path)


def confusion_matrix(counts: Tensor, classes: Sequence[str], path: str | Path) -> None:
    """Draws counts (K, K): rows are the true classes, columns the predicted ones.

    Shades are shares of a row. Over 30 classes the numbers and names are left out.
    """
    counts = np.asarray(counts.cpu())
    num_classes = len(classes)
    side = min(12.0, 2 + 0.5 * num_classes)
    figure = Figure(figsize=(side, side), layout="constrained")
    axis = figure.subplots()
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axis.set_xlabel("predicted")
    axis.set_ylabel("true")
    if num_classes <= 30:
        axis.set_xticks(range(num_classes), classes, rotation=90, parse_math=False)
        axis.set_yticks(range(num_classes), classes, parse_math=False)
        for (row, column), count in np.ndenumerate(counts):
            if count:
                colour = "white" if shares[row, column] > 0.5 else "black"
                axis.text(
                    column, row, int(count), ha="center", va="center", color=colour, fontsize=8
                )
    save(figure, path)


def spread(
    series: dict[str, dict[float, Sequence[float]]],
    path: str | Path,
    x: str,
    y: str,
    log: bool = False,
) -> None:
    """Draws mean and standard deviation over seeds: {label: {x: values}}, with axis labels x, y."""
    figure = Figure(figsize=(5, 3.6), layout="constrained")
    axis = figure.subplots()
    for label, points in series.items():
        means = [np.mean(values) for values in points.values()]
        errors = [np.std(values, ddof=1) if len(values) > 1 else 0 for values in points.values()]
        axis.errorbar(list(points), means, errors, marker="o", capsize=3, label=label)
    if log:
        axis.set_xscale("log")
        ticks = sorted({place for points in series.values() for place in points})
        axis.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
        axis.minorticks_off()
    axis.set_xlabel(x)
    axis.set_ylabel(y)
    axis.grid(alpha=0.3)
    axis.legend()
    save(figure, path)


def bars(groups: dict[str, dict[str, Sequence[float]]], path: str | Path) -> None:
    """Draws one panel for each of {title: {arm: values}}: means, with the std over seeds."""
    figure = Figure(figsize=(3.4 * len(groups) + 0.4, 3.2), layout="constrained")
    panels = figure.subplots(1, len(groups), squeeze=False)[0]
    for axis, (title, arms) in zip(panels, groups.items(), strict=True):
        means = [np.mean(values) for values in arms.values()]
        errors = [np.std(v, ddof=1) if len(v) > 1 else np.nan for v in arms.values()]  # nan: none
        places = range(len(arms))
        axis.bar(places, means, yerr=errors, capsize=4, width=0.6, color="tab:blue", alpha=0.8)
        for place, mean in zip(places, means, strict=True):
            axis.text(place, mean / 2, f"{mean:.3g}", ha="center", va="center", fontsize=9)
        width = max(5, 42 // len(arms))  # characters that fit below a bar
        names = [textwrap.fill(arm, width, break_long_words=False) for arm in arms]
        axis.set_xticks(places, names, fontsize=8, parse_math=False)
        axis.set_title(title, fontsize=10, parse_math=False)
        axis.grid(axis="y", alpha=0.3)
    save(figure, path)


def scatter(
    panels: dict[str, Tensor],
    labels: Tensor,
    classes: Sequence[str],
    path: str | Path,
    marked: Sequence[int] = (),
    edges: Tensor | None = None,
    size: float = 3.0,
) -> None:
    """Draws points (N, 2) in one panel for each of {title: points}, coloured by class (-1: grey).

    `marked` points have a ring; `edges` (2, E) between points are thin lines.
    """
    from matplotlib.collections import LineCollection

    labels, columns = np.asarray(labels.cpu()), min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(size * columns, size * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flat
    for axis in figure.axes:
        axis.axis("off")
    radius = 40 if len(labels) < 100 else 400 / len(labels) ** 0.5
    for axis, (title, points) in zip(axes, panels.items(), strict=False):
        points = np.asarray(points.cpu())
        if edges is not None:
            lines = points[np.asarray(edges.cpu()).T]  # (E, 2, 2)
            axis.add_collection(LineCollection(lines, colors="0.8", linewidths=0.4, zorder=0))
        for k in np.unique(labels):
            name, colour = (classes[k], f"C{k % 10}") if k >= 0 else ("unknown", "0.7")
            here = labels == k
            axis.scatter(*points[here].T, s=radius, color=colour, label=name, linewidths=0)
        if len(marked):
            places = list(marked)
            axis.scatter(*points[places].T, s=2 * radius, facecolors="none", edgecolors="black")
        axis.set_title(title, fontsize=9, parse_math=False)
    if len(np.unique(labels)) <= 20:
        for text in figure.axes[0].legend(fontsize=6).get_texts():
            text.set_parse_math(False)
    save(figure, path)


def attention_grid(
    maps: Tensor, rows: Sequence[str], columns: Sequence[str], path: str | Path
) -> None:
    """Draws attention weights (layers, H, T, S), a small picture a head: dark is much.

    `rows` name the T tokens that look, `columns` the S tokens that are looked at. More than
    MOST_HEADS heads are tiles without names: a picture each would take a minute.
    """
    layers, heads, maps = *maps.shape[:2], maps.float().cpu().numpy()
    if layers * heads > MOST_HEADS:
        return tiles(maps, path)
    width, height = (min(4.0, 0.9 + 0.13 * len(names)) for names in (columns, rows))
    figure = Figure(figsize=(width * heads, height * layers), layout="constrained")
    axes = figure.subplots(layers, heads, squeeze=False)
    for layer, head in np.ndindex(layers, heads):
        axis = axes[layer, head]
        axis.imshow(maps[layer, head], cmap="Blues", vmin=0, vmax=1, aspect="auto")
        axis.set_title(f"layer {layer + 1}, head {head + 1}", fontsize=7, pad=2)
        below, beside = layer == layers - 1, head == 0
        style = dict(fontsize=6, parse_math=False)
        axis.set_xticks(range(len(columns)), columns if below else [], rotation=90, **style)
        axis.set_yticks(range(len(rows)), rows if beside else [], **style)
        axis.tick_params(length=0)
    save(figure, path)


def tiles(maps: np.ndarray, path: str | Path) -> None:
    """Draws attention weights (layers, H, T, S) as one picture, with lines between the heads."""
    layers, heads = maps.shape[:2]
    around = [(0, 0), (0, 0), (0, 1), (0, 1)]  # lighter than nothing
    padded = np.pad(maps, around, constant_values=-0.3)
    height, width = padded.shape[2:]
    figure = Figure(figsize=(0.7 * heads + 1, 0.7 * layers + 1), layout="constrained")
    axis = figure.subplots()
    page = padded.transpose(0, 2, 1, 3).reshape(layers * height, heads * width)
    axis.imshow(page, cmap="Blues", vmin=-0.3, vmax=1)
    axis.set_xticks(width * (np.arange(heads) + 0.5), range(1, heads + 1))
    axis.set_yticks(height * (np.arange(layers) + 0.5), range(1, layers + 1))
    axis.set(xlabel="head", ylabel="layer")
    save(figure, path)
