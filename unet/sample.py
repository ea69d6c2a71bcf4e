"""Gives each pixel of images its class with a trained U-Net, whatever their size.

python unet/sample.py cells.png photos/   # your own images: a mask and a picture of each
python unet/sample.py                     # test images, their true masks, and the answers
"""

import argparse
import itertools
from pathlib import Path

import torch
from PIL import Image
from scipy import ndimage
from torch import Tensor

from common import cli, counted
from common.classify import names_for
from common.data.files import find_images, luminance, white_in
from common.data.masks import read_image
from common.device import Device
from common.folder import make_folder, open_run
from common.run import progress_bar
from unet.data import MaskSet, load_masks, norm_of, normalise
from unet.model import MODELS, UNet, segment
from unet.scores import overlay
from unet.train import build


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The flags; see --help."""
    parser = cli.sample_parser("unet", __doc__)
    parser.add_argument("inputs", nargs="*", type=Path, help="image files, or folders of them")
    parser.add_argument(
        "--tile", type=cli.integer(16), default=388, help="pixels of a tile's answer (default: 388)"
    )
    return parser.parse_args(argv)


def open_model(args: argparse.Namespace) -> tuple[UNet, cli.Flags, dict, Device, Path]:
    """The trained network, the flags of its training, facts of its data, a device, and the folder
    for what is made."""
    checkpoint, flags, dev, out = open_run(args, "unet", MODELS)
    facts = checkpoint["dataset"]
    model = build(flags, facts)
    model.load_state_dict(checkpoint["model"])
    model.to(dev.device, memory_format=torch.channels_last).eval()
    return model, flags, facts, dev, out


@torch.inference_mode()
def classes_of(
    model: UNet, image: Tensor, facts: dict, dev: Device, tile: int, views: int
) -> Tensor:
    """The classes (H, W), uint8, of an image (C, H, W), uint8."""
    with dev.autocast():
        answers = segment(
            model, normalise(image[None].to(dev.device), [norm_of(image, facts)]), views, tile
        )
    return answers[0].argmax(0).byte().cpu()


def fit(image: Tensor, channels: int) -> tuple[Tensor, str]:
    """An image with as many channels as the network takes, and what was done to it."""
    if len(image) == channels:
        return image, ""
    if channels == 3:
        return image.expand(3, -1, -1), " (grey: made RGB)"
    return luminance(image[None])[0], " (colour: made grey)"


def show_test(
    model: UNet, test: MaskSet, dev: Device, out: Path, tile: int, views: int, count: int = 6
) -> None:
    """Writes predictions.jpg: test images, their true masks, and the answers."""
    from common.plot import image_grid

    shown = []
    for index in range(min(count, len(test))):
        image, mask = test.content.images[index], test.content.masks[index]
        answer = classes_of(model, image, test.facts, dev, tile, views)
        shown.append([image, overlay(image, mask), overlay(image, answer)])
    titles = ["image"] * len(shown) + ["truth"] * len(shown) + ["answer"] * len(shown)
    rows = [*itertools.chain.from_iterable(zip(*shown, strict=True))]
    image_grid(rows, out / "predictions.jpg", titles, columns=len(shown), size=1.8)
    print(f"wrote {out / 'predictions.jpg'}: {len(shown)} of {len(test)} test images")


def segment_files(
    files: list[Path],
    model: UNet,
    flags: cli.Flags,
    facts: dict,
    dev: Device,
    args: argparse.Namespace,
    out: Path,
) -> dict:
    """Writes a mask and a picture of each file; returns each one's shares and parts by class."""
    top = facts.get("top") or white_in(files)  # of images with more than 8 bits
    images = [read_image(path, top) for path in files]  # before anything is written
    names = names_for(files)
    make_folder(out, *(f"{name}-{what}" for name in names for what in ("mask.png", "overlay.jpg")))
    found, notes, named = {}, [], zip(files, names, images, strict=True)
    for path, name, image in progress_bar(named, dev, "segmenting", len(files)):
        image, note = fit(image, facts["channels"])
        answer = classes_of(model, image, facts, dev, args.tile, flags.views)
        Image.fromarray(answer.numpy()).save(out / f"{name}-mask.png")
        picture = overlay(image, answer).permute(1, 2, 0).numpy()
        Image.fromarray(picture).save(out / f"{name}-overlay.jpg", quality=90)
        found[str(path)] = {
            label: {
                "share": float((answer == k).float().mean()),
                "parts": int(ndimage.label((answer == k).numpy())[1]),
            }
            for k, label in enumerate(facts["classes"])
        }
        notes.append(note)
    for (path, answers), note in zip(found.items(), notes, strict=True):
        shares = (
            f"{label} {v['share']:.1%} in {counted(v['parts'], 'part')}"
            for label, v in answers.items()
        )
        print(f"{path}{note}: {', '.join(shares)}")
    if top != facts.get("top"):
        print(f"images of more than 8 bits: {top:g} is white in all of them, as the set that the "
              "model was trained on had none")  # fmt: skip
    print(
        f"wrote {counted(len(files), 'mask')} (a pixel's value is its class) and pictures to {out}"
    )
    return found


@cli.command
def main(argv: list[str] | None = None) -> dict:
    """Segments the inputs, or test images; returns each file's shares and parts by class."""
    args = parse_args(argv)
    files = find_images(args.inputs)
    model, flags, facts, dev, out = open_model(args)
    if not files:
        test = load_masks(flags, dev, flags.size)[2]
        make_folder(out, "predictions.jpg")
        show_test(model, test, dev, out, args.tile, flags.views)
        return {"shown": len(test)}
    return segment_files(files, model, flags, facts, dev, args, out)


if __name__ == "__main__":
    main()
