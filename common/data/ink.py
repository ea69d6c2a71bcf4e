"""Images of single characters as people have them, made like those of MNIST or of the digits."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from common import counted, fail
from common.data import images
from common.data.files import UNREADABLE, ImageFiles, open_image
from common.data.images import Held, ImageSet
from common.data.sources import IDX_SETS
from common.device import Device
from common.folder import make_folder


def read_ink(path: Path) -> tuple[np.ndarray, str]:
    """The ink of an image, 0 to 1 (H, W), and how it was read.

    What most of the border shows is taken for the ground, and what differs from it for ink.
    """
    try:
        grey = np.asarray(open_image(path).convert("L"), dtype=np.float32)
    except UNREADABLE as error:
        fail(f"{path} is not a readable image ({error})")
    border = np.concatenate([grey[0], grey[-1], grey[:, 0], grey[:, -1]])
    ground = float(np.median(border))
    dark = grey.max() - ground < ground - grey.min()  # the ink is further from the ground
    ink = np.clip(ground - grey if dark else grey - ground, 0, None)
    if ink.max() < 8:
        return np.zeros_like(ink), "blank"
    return ink / ink.max(), "dark on light" if dark else "light on dark"


def fit(ink: np.ndarray, box: int, side: int) -> Tensor:
    """Cuts the ink out, scales it into `box` pixels and centres its mass in `side` pixels.

    That is how MNIST was made of NIST's scans (20 in 28 pixels). Returns uint8 (1, 1, side, side).
    """
    rows, columns = (np.flatnonzero((ink > 0.25).any(axis)) for axis in (1, 0))
    if not len(rows):
        return torch.zeros(1, 1, side, side, dtype=torch.uint8)
    ink = torch.from_numpy(ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].copy())
    height, width = (max(1, round(n * box / max(ink.shape))) for n in ink.shape)
    ink = F.interpolate(ink[None, None], (height, width), mode="bilinear", antialias=True)[0, 0]
    ink = ink / ink.max()
    places = (torch.arange(n).float() for n in ink.shape)
    centre = [float((ink.sum(1 - axis) * p).sum() / ink.sum()) for axis, p in enumerate(places)]
    top, left = (
        min(max(round((side - 1) / 2 - c), 0), side - n)
        for c, n in zip(centre, ink.shape, strict=True)
    )
    image = torch.zeros(1, 1, side, side, dtype=torch.uint8)
    image[0, 0, top : top + height, left : left + width] = (ink * 255).round().byte()
    return image


def read_digits(files: list[Path], facts: dict, kind: str, pad: int = 0) -> tuple[Tensor, list]:
    """Image files as a network that was trained on the set `kind` takes them, uint8 (N, 1, H, W),
    grey images of 28 pixels with `pad` around; and how each was read."""
    pixels, readings = [], []
    for path in files:
        ink, reading = read_ink(path)
        if kind in IDX_SETS:
            pixels.append(fit(ink, 20, 28))
        elif kind == "digits":  # its digits fill their 8x8 pixels
            pixels.append(fit(ink, 8, 8))
        else:
            pixels.append(ImageFiles([str(path)], 28, 1, top=facts.get("top"))[0][None])
            reading = "as it is"
        readings.append(reading)
    return torch.cat([images.fit(p, 28, 1, pad) for p in pixels]), readings


def normalised(pixels: Tensor, facts: dict, dev: Device) -> Tensor:
    """Such pixels as the network sees them, on the device."""
    blank = ImageSet("test", Held(pixels[:1], dev), torch.zeros(1), facts, dev)
    return blank.normalise(pixels.to(dev.device))


def classify(
    files: list[Path],
    model: torch.nn.Module,
    facts: dict,
    dev: Device,
    kind: str,
    out: Path,
    pad: int = 0,
) -> list[tuple[str, float]]:
    """Prints a table and writes predictions.png; returns class and probability of each file.

    The network was trained on the set `kind`, on grey images of 28 pixels with `pad` around.
    """
    from common.plot import image_grid

    pixels, readings = read_digits(files, facts, kind, pad)
    with torch.inference_mode():
        probabilities = model(normalised(pixels, facts, dev)).float().softmax(1).cpu()
    share, best = probabilities.max(1)
    classes = [facts["classes"][i] for i in best]
    titles = [f"{name} ({p:.0%})" for name, p in zip(classes, share.tolist(), strict=True)]
    make_folder(out, "predictions.png")
    image_grid(pixels[:100], out / "predictions.png", titles)
    width = max(len(str(path)) for path in files)
    print(f"{'file':<{width}}  {'read as':<13}  class  probability")
    for path, reading, name, p in zip(files, readings, classes, share.tolist(), strict=True):
        print(f"{path!s:<{width}}  {reading:<13}  {name:<5}  {p:.3f}")
    print(f"wrote {out / 'predictions.png'}{', of the first 100' if len(files) > 100 else ''}")
    return list(zip(classes, share.tolist(), strict=True))


@torch.inference_mode()
def show_mistakes(model: torch.nn.Module, test: ImageSet, out: Path, count: int = 80) -> int:
    """Writes mistakes.png, the first misread test images as in Fig. 8 of LeNet's paper; returns
    their number."""
    from common.plot import image_grid

    answers = torch.cat([model(x).argmax(1) for x, _ in test.batches(1000)])
    wrong = (answers != test.labels).nonzero()[:, 0]
    classes = test.facts["classes"]
    titles = [f"{classes[test.labels[i]]}→{classes[answers[i]]}" for i in wrong[:count]]
    heading = f"{len(wrong)} of {counted(len(test), 'test image')} misread: truth → answer"
    if len(wrong):
        shown, _ = test.examples(wrong[:count])
        image_grid(stretch(shown), out / "mistakes.png", titles, 16, 0.7, heading)
        heading += f"; wrote {out / 'mistakes.png'}"
    print(heading)
    return len(wrong)


def stretch(values: Tensor) -> Tensor:
    """Each image's values (N, C, H, W) to 0 to 1."""
    low, high = values.amin((1, 2, 3), keepdim=True), values.amax((1, 2, 3), keepdim=True)
    return (values - low) / (high - low).clamp(min=1e-8)
