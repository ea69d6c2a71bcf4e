"""Draws images for texts, with a trained model or a published one.

python latentdiffusion/sample.py "a large red circle" "a blue star" --count 4    # a grid
python latentdiffusion/sample.py --weights NAME "a photograph of a mountain"     # Stable Diffusion
python latentdiffusion/sample.py "a blue star" --image in.png --strength 0.6     # from an image
python latentdiffusion/sample.py "a blue star" --image in.png --mask mask.png    # paint a part
python latentdiffusion/sample.py "a blue star" --to "a red circle"               # a GIF
python latentdiffusion/sample.py                                                 # test captions

Each image has the noise of a seed, which is printed, and is the same again with it; the images of a
column have one seed. White in a mask is painted, black stays. Attention goes through large images
in slices, and --at-once says how many images are denoised together: what memory is needed depends
on these, not on --count.
"""

import argparse
import re
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from common import cli, fail
from common.data.files import UNREADABLE, open_image
from common.data.text import as_typed
from common.device import Device
from common.folder import keep_what_is_there, make_folder, new_samples, open_run
from latentdiffusion.data import Words, load, read_mask
from latentdiffusion.diffusion import LatentDiffusion, assemble
from latentdiffusion.draw import how_of, images_for, teller
from latentdiffusion.model import MODELS
from latentdiffusion.options import AUTOENCODERS, add_drawing, check_size, check_steps
from latentdiffusion.published import read_published
from latentdiffusion.schedulers import SAMPLERS

SHOWN = 16  # test captions
FRAMES = 16  # of the animation, one way
MADE = ("grid.png", "between.gif")
PUBLISHED = dict(guidance=7.5, sampler="dpm", sample_steps=25)  # where no training says


def size_of(text: str) -> tuple[int, int]:
    """Height and width of "512" or "512x768"."""
    if not (found := re.fullmatch(r"(\d{1,5})(?:x(\d{1,5}))?", text)) or not int(found[1]):
        raise argparse.ArgumentTypeError(f"needs a side, or a height x width, not {text!r}")
    return int(found[1]), int(found[2] or found[1])


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The flags; see --help."""
    parser = cli.sample_parser("latentdiffusion", __doc__)
    add, count = parser.add_argument, dict(type=cli.integer(1), metavar="N")
    add("texts", nargs="*", help="what is to be in the images")
    text = "a published model in place of a run: a name of the hub, or a folder"
    add("--weights", metavar="NAME|PATH", help=text)
    add("--count", **count, help="images for each text (default: 1)")
    add("--size", type=size_of, metavar="S|HxW", help="in pixels (default: as in training)")
    text = "of the first column's noise; the others have those that follow (default: 0)"
    add("--seed", type=cli.integer(0), metavar="N", default=0, help=text)
    add("--without", metavar="TEXT", help="what images are led away from (default: no text)")
    add("--image", type=Path, metavar="FILE", help="an image to begin at")
    share = cli.number(lambda x: 0 < x <= 1, "a number above 0, at most 1")
    text = "how much of --image is made anew: of the noise, 1 is all of it (default: 0.6)"
    add("--strength", type=share, metavar="X", help=text)
    text = "an image file of the size of --image: white is painted anew, black stays"
    add("--mask", type=Path, metavar="FILE", help=text)
    add("--to", metavar="TEXT", help="a GIF from the text to this one, with the same noise")
    add("--at-once", **count, help="images that are denoised together (default: 8)")
    add_drawing(parser)
    args = parser.parse_args(argv)
    args.texts = as_typed(args.texts)
    for name in ("to", "without"):
        if (text := getattr(args, name)) is not None:
            setattr(args, name, as_typed([text])[0])
    if args.weights and args.checkpoint:
        fail("give --weights or --checkpoint, one of them")
    if args.weights and not args.texts:
        fail("--weights has no test captions of its own: say what is to be in the image")
    if args.to is not None and (len(args.texts) != 1 or args.image):
        fail("--to goes from one text to another: give one, and no --image")
    if args.to is not None and args.count:
        fail("--to makes one GIF: leave --count out")
    if args.mask and not args.image:
        fail("--mask says what of an --image is painted anew: name that, too")
    if args.strength and not args.image:
        fail("--strength says how much of an --image is made anew: name that, too")
    if args.mask and args.strength:
        fail("--mask paints the white part from pure noise: leave --strength out")
    if args.image and not args.texts:
        fail("--image is changed to what a text says: give one")
    return args


def open_model(args: argparse.Namespace) -> tuple:
    """The model (of published weights, or a run's, averaged if it has that), its words, the flags
    that draw, height and width, a device, and the folder for what is made."""
    if args.weights:
        found = read_published(args.weights)
        alone = dict(device=args.device, quiet=False, fsdp=False, compile=False, accumulate=1)
        dev = Device(cli.Flags(**alone, clip=None, seed=args.seed, precision="auto"))
        name = Path(args.weights).name or "weights"
        out = args.out or new_samples(Path("runs", "latentdiffusion", f"weights-{name}"))
        flags, facts, model = cli.Flags(**PUBLISHED, size=found.size), found.words, found.build()
    else:
        checkpoint, flags, dev, out = open_run(args, "latentdiffusion", MODELS)
        if flags.model in AUTOENCODERS:
            fail(f"the checkpoint is of {flags.model}, a first stage, which knows no texts: train "
                 "a second one on it, with train.py --autoencoder")  # fmt: skip
        try:
            facts = checkpoint["dataset"]["words"]
            model = assemble(checkpoint["dataset"]["network"])
            model.load_state_dict(checkpoint["model"] | checkpoint["ema"])
        except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
            reason = str(error).strip().splitlines()[-1]
            fail(f"the checkpoint is no whole {flags.model} ({reason})")
    dev.quiet = False  # a bar shows how far it is
    typed = {k: getattr(args, k) for k in PUBLISHED if getattr(args, k) is not None}
    shape = args.size or (flags.size, flags.size)
    for side in shape:
        check_size(side, model.factor)
    flags = flags.but(**typed)
    check_steps(flags.sample_steps, model.schedule.num_times)
    return model.to(dev.device).eval(), Words(facts), flags, shape, dev, out


def read_image(path: Path, shape: tuple[int, int]) -> tuple[Tensor, tuple[int, int]]:
    """The middle of an image file, cut and scaled to `shape`, from -1 to 1, (1, 3, H, W); and the
    file's own height and width."""
    try:
        image = open_image(str(path), None).convert("RGB")
    except UNREADABLE as error:
        fail(f"{path} is not a readable image ({error})")
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    pixels = pixels.view(1, image.height, image.width, 3).permute(0, 3, 1, 2).float()
    return fit(pixels, shape) / 127.5 - 1, (image.height, image.width)


def fit(images: Tensor, shape: tuple[int, int]) -> Tensor:
    """The middle of images (B, C, H, W) of the proportions of `shape`, scaled to it."""
    sides = list(zip(shape, images.shape[2:], strict=True))
    scale = max(side / own for side, own in sides)
    height, width = (max(1, min(own, round(side / scale))) for side, own in sides)
    top, left = (images.shape[2] - height) // 2, (images.shape[3] - width) // 2
    middle = images[:, :, top : top + height, left : left + width]
    if middle.shape[2:] == torch.Size(shape):
        return middle
    return F.interpolate(middle, shape, mode="bilinear", antialias=True)


def from_image(model: LatentDiffusion, args, flags, shape, dev: Device) -> tuple[dict, Callable]:
    """What is to be done otherwise with --image: where denoising begins, and how it is prepared."""
    image, own = read_image(args.image, shape)
    mask = fit(read_mask(args.mask, *own), shape) if args.mask else None
    with torch.inference_mode():
        known = model.autoencoder.encode(image.to(dev.device))
        z = model.to_latents(known, drawn=False)  # (1, C, h, w)
    strength = 1.0 if mask is not None else args.strength or 0.6
    steps = max(1, round(flags.sample_steps * strength))  # of them at least one
    begin = flags.sample_steps - steps
    times = SAMPLERS[flags.sampler](model.schedule, flags.sample_steps).times

    def noisy(noise: Tensor, time: int) -> Tensor:
        signal, strength = model.schedule.scales(time)
        return signal * z + strength * noise

    def prepare(noise: Tensor, rows: Tensor) -> tuple[Tensor, dict]:
        if mask is None:
            return (noisy(noise, times[begin]) if begin else noise), {}
        side = z.shape[2:]  # a place is painted if any of its pixels is
        painted = F.adaptive_max_pool2d(mask.to(z), side)

        def keep(x: Tensor, time: int) -> Tensor:
            return painted * x + (1 - painted) * (noisy(noise, time) if time >= 0 else z)

        return noise, {"keep": keep}

    return {"begin": begin}, prepare


def put_back(images: Tensor, args: argparse.Namespace, shape: tuple[int, int]) -> Tensor:
    """The pixels of --image where the mask is black: what isn't painted stays as it was."""
    image, own = read_image(args.image, shape)
    mask = fit(read_mask(args.mask, *own), shape)
    return mask * images + (1 - mask) * (image + 1) / 2


def save_all(images: Tensor, names: list[str], out: Path, columns: int) -> None:
    """Writes each image, and all of them as grid.png."""
    from PIL import Image

    from common.plot import sheet

    for image, name in zip(images, names, strict=True):
        pixels = (image.permute(1, 2, 0) * 255).round().byte().numpy()
        Image.fromarray(pixels).save(out / f"{name}.png")
    sheet(images, out / "grid.png", columns, pixels=96)


def between(model, words: Words, args, flags, shape, dev: Device, out: Path) -> None:
    """Writes between.gif: the same noise told a text, another, and what lies between them."""
    from PIL import Image

    both = teller(model, words, [args.texts[0], args.to], dev, args.without or "")
    with torch.inference_mode():
        asked, other = both(torch.arange(2))
    shares = torch.linspace(0, 1, FRAMES, device=dev.device)[:, None, None]
    told = torch.lerp(asked[:1], asked[1:], shares)

    def tell(rows: Tensor) -> list[Tensor]:
        return [told[rows.to(told.device)], other[:1].expand(len(rows), -1, -1)]

    seeds = [args.seed] * FRAMES
    images = images_for(model, tell, seeds, shape, dev, how_of(flags), args.at_once or 8)
    scale = max(1, 160 // shape[1])
    frames = []
    for image in images:
        pixels = (image.permute(1, 2, 0) * 255).round().byte().numpy()
        size = (shape[1] * scale, shape[0] * scale)
        frames.append(Image.fromarray(pixels).resize(size, Image.Resampling.NEAREST))
    frames += frames[-2:0:-1]  # and back
    waits = [800 if k in (0, FRAMES - 1) else 100 for k in range(len(frames))]  # milliseconds
    frames[0].save(
        out / "between.gif", save_all=True, append_images=frames[1:], duration=waits, loop=0
    )


@cli.command
def main(argv: list[str] | None = None) -> dict:
    """Draws; returns the seeds of each text's images, and the names of what was written."""
    args = parse_args(argv)
    for path in (args.image, args.mask):
        if path and not path.is_file():
            fail(f"{path}: there is no such file")
    model, words, flags, shape, dev, out = open_model(args)
    keep_what_is_there(out, *MADE)
    texts = args.texts
    if not texts:
        test = load(flags.but(limit=1, val=0), dev)[2]  # the training set isn't looked at
        texts = [some[0] for some in test.captions[:SHOWN]]
    more, prepare = from_image(model, args, flags, shape, dev) if args.image else ({}, None)
    make_folder(out, *MADE)
    if args.to is not None:
        between(model, words, args, flags, shape, dev, out)
        print(f"{out / 'between.gif'}: from {texts[0]!r} to {args.to!r}, seed {args.seed}")
        return {"seeds": {texts[0]: [args.seed]}, "written": ["between.gif"]}
    count = args.count or 1
    asked = [text for text in texts for _ in range(count)]
    seeds = [(args.seed + number % count) % 2**63 for number in range(len(asked))]
    tell = teller(model, words, asked, dev, args.without or "")
    how = how_of(flags) | more
    images = images_for(model, tell, seeds, shape, dev, how, args.at_once or 8, prepare)
    if args.mask:
        images = put_back(images, args, shape)
    names = [f"{number // count + 1}-seed{seed}" for number, seed in enumerate(seeds)]
    save_all(images, names, out, count if len(texts) > 1 or count > 1 else 4)
    if words.cut:
        print(f"note: texts were cut at {words.context} tokens")
    found: dict[str, list[int]] = {}
    for text, seed in zip(asked, seeds, strict=True):
        found.setdefault(text, []).append(seed)
    for text, some in found.items():
        print(f"{text}: seed {', '.join(map(str, some))}")
    print(f"{out} holds grid.png and {len(names)} images of {shape[1]}x{shape[0]} pixels")
    return {"seeds": found, "written": sorted(path.name for path in out.iterdir())}


if __name__ == "__main__":
    main()
