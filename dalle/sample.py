"""Draws images for captions with a trained DALL-E, or rebuilds images from their codes.

python dalle/sample.py "a large red star" "a blue ring"      # the newest run, 8 of each
python dalle/sample.py "a green moon" --count 64 --top-k 32 --temperature 0.7
python dalle/sample.py "a green moon" --count 64 --rerank runs/clip/clip_small-shapes   # by CLIP
python dalle/sample.py "a blue ring" --image photo.png --rows 4    # goes on from the upper rows
python dalle/sample.py --rebuild photo.png photos/                 # through the dVAE and back
python dalle/sample.py --file captions.txt                         # one caption a line
python dalle/sample.py --masks                                     # what tokens see (Fig. 11)
python dalle/sample.py                                             # captions of the test set

Images are in samples.png, a row for each caption, the best first where they are re-ranked. Without
captions it draws for some of the test set, beside the real image and what its codes make of it.
Checkpoints of a dVAE alone rebuild images: yours, or those of the test set.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from common import cli, counted, fail
from common.data.files import ImageFiles, find_images
from common.data.text import SPECIAL, UNKNOWN, as_typed, read_sentences
from common.device import Device
from common.folder import keep_what_is_there, make_folder, open_run
from dalle.data import Words, images_of, load
from dalle.evaluate import draw
from dalle.model import DALLE, DVAE, MODELS, stream_mask
from dalle.options import CODES, SIZES
from dalle.published import network_of, weights_of
from dalle.rerank import read_clip

SHOWN = 8  # captions of the test set
DRAWING = ("count", "temperature", "top_k", "top_p", "seed", "rerank", "image", "rows")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The flags; see --help."""
    parser = cli.sample_parser("dalle", __doc__)
    add, count = parser.add_argument, dict(type=cli.integer(1), metavar="N")
    add("sentences", nargs="*", metavar="CAPTION", help="what to draw")
    add("--file", type=Path, help="a text file with captions to draw, one a line")
    text = "image files, or folders of them, to rebuild from their codes"
    add("--rebuild", nargs="+", type=Path, metavar="IMAGE", help=text)
    add("--count", **count, help="images of each caption (default: 8)")
    text = "below 1 likelier, 0 the likeliest, above 1 bolder (default: as in the test)"
    add("--temperature", type=cli.not_negative, metavar="T", help=text)
    add("--top-k", **count, help="draw from the K likeliest codes alone (default: all)")
    share = cli.number(lambda x: 0 < x <= 1, "a number above 0, at most 1")
    add("--top-p", type=share, metavar="P",
        help="draw from the likeliest codes that make up P (default: all)")  # fmt: skip
    add("--seed", type=cli.integer(0), metavar="N", help="of what is drawn (default: 0)")
    text = "a run of clip: the images that fit their caption best come first"
    add("--rerank", metavar="RUN", help=text)
    add("--image", type=Path, metavar="FILE", help="an image to go on from, with --rows")
    text = "rows of codes of --image that are kept (default: the upper half)"
    add("--rows", **count, help=text)
    text = "draw which image tokens one in the middle of the image sees, by kind of layer"
    add("--masks", action="store_true", help=text)
    args = parser.parse_args(argv)
    args.sentences = read_captions(args)
    drawing = [name for name in DRAWING if getattr(args, name) is not None]
    if args.masks and (args.sentences or drawing or args.rebuild):
        fail("--masks draws no images: leave the other flags out")
    if args.rebuild and (args.sentences or drawing):
        what = f"--{drawing[0].replace('_', '-')}" if drawing else "captions"
        fail(f"--rebuild draws nothing: leave {what} out")
    if args.rebuild and args.data_dir:
        fail("--data-dir is where test examples lie: leave it out beside inputs of your own")
    if args.image and not args.sentences:
        fail("--image is gone on from by a caption: give one")
    if args.rows and not args.image:
        fail("--rows are those of --image: name one")
    if args.temperature == 0 and (args.top_k or args.top_p):
        fail("--temperature 0 takes the likeliest code: --top-k and --top-p need a larger one")
    return args


def read_captions(args: argparse.Namespace) -> list[str]:
    """The captions that were typed, or those of a file; an empty one ends in one line."""
    if args.file and args.sentences:
        fail("give captions, or --file: one of them")
    found = read_sentences([], args.file) if args.file else as_typed(args.sentences)
    if not all(text.strip() for text in found):
        number = [bool(text.strip()) for text in found].index(False) + 1
        fail(f"caption {number} is empty: say what to draw")
    return found


def open_models(
    args: argparse.Namespace,
) -> tuple[DVAE, DALLE | None, dict, cli.Flags, Device, Path]:
    """The dVAE, the transformer (None in a checkpoint of codes alone), facts of the data, the flags
    of its training, a device, and the folder for what is made."""
    checkpoint, flags, dev, out = open_run(args, "dalle", MODELS)
    facts, model = checkpoint["dataset"], None
    dvae = network_of(weights_of(checkpoint), args.checkpoint or "the checkpoint")
    if flags.model in CODES:
        sizes = {name: getattr(flags, name) for name in SIZES}
        sizes |= dict(num_codes=dvae.num_codes, side=flags.size // dvae.factor)
        model = MODELS[flags.model](Words(facts).size, **sizes)
        model.load_state_dict(checkpoint["model"])
        model = model.to(dev.device).eval()
    elif args.sentences or args.rerank or args.masks:
        fail(f"{flags.model} makes codes of images, and draws nothing: name a run of dalle_small")
    return dvae.to(dev.device).requires_grad_(False).eval(), model, facts, flags, dev, out


def read_images(files: Sequence[Path], facts: dict, size: int) -> Tensor:
    """The middle squares of files as the dVAE takes them: (N, 3, size, size), from 0 to 1."""
    images = list(ImageFiles([str(path) for path in files], size, 3, top=facts.get("top")))
    for image in images:
        if isinstance(image, str):
            fail(image)
    return torch.stack(images).float() / 255


def check_words(captions: Sequence[str], words: Words) -> None:
    """Says which captions are cut or have unknown characters; one of unknown words alone fails."""
    for caption in captions:
        if not words.known(caption):
            fail(f"the caption {caption!r} has no word that training knew")
    found = words.tokens(captions)
    if found.cut:
        print(f"note: {counted(found.cut, 'caption')} cut at {words.length} tokens")
    if found.unknown:
        print(f"note: {SPECIAL[UNKNOWN]} stands for {' '.join(found.unknown)}, which training did "
              "not have")  # fmt: skip


@cli.command
@torch.inference_mode()
def main(argv: list[str] | None = None) -> dict:
    """Draws or rebuilds; returns the captions with their images' scores, or errors by file."""
    args = parse_args(argv)
    dvae, model, facts, flags, dev, out = open_models(args)
    files = find_images(args.rebuild or [])
    keep_what_is_there(out, "samples.png", "rebuilt.png", "codes.png", "masks.png")
    if args.masks:
        return draw_masks(model, out)
    if files or not model:
        return rebuild(files, dvae, facts, flags, dev, out)
    words = Words(facts)
    if not args.sentences:
        return show_test(model, dvae, words, flags, args, dev, out)
    check_words(args.sentences, words)
    count = args.count or 8
    begun, how = None, drawing(args, flags)
    if args.image:
        begun = begin(args, dvae, facts, flags, dev).expand(len(args.sentences) * count, -1)
    text = words.encode(args.sentences).repeat_interleave(count, 0)
    images = draw(model, dvae, text, dev, begun=begun, **how)
    images = images.unflatten(0, (len(args.sentences), count))
    scores = None
    if args.rerank:
        scores = read_clip(args.rerank, dev).scores(images, args.sentences)
        order = scores.argsort(1, descending=True)
        rows = torch.arange(len(images), device=order.device)[:, None]
        images, scores = images[rows, order], scores.gather(1, order)
    make_folder(out)
    draw_rows(images, args.sentences, scores, out / "samples.png")
    print(f"wrote {out / 'samples.png'}: {counted(count, 'image')} of each caption, a row each")
    return {
        text: scores[i].tolist() if args.rerank else [] for i, text in enumerate(args.sentences)
    }


def drawing(args: argparse.Namespace, flags: cli.Flags) -> dict:
    """The settings of what is drawn."""
    warm = flags.draw_temperature if args.temperature is None else args.temperature
    print(f"temperature {warm:g}, seed {args.seed or 0}")
    return dict(seed=args.seed or 0, temperature=warm, top_k=args.top_k, top_p=args.top_p)


def begin(
    args: argparse.Namespace, dvae: DVAE, facts: dict, flags: cli.Flags, dev: Device
) -> Tensor:
    """The codes (1, n) of the upper rows of --image."""
    side = flags.size // dvae.factor
    rows = args.rows or side // 2
    if rows >= side:
        fail(f"--rows {rows}: of {side} rows at least one is left to be drawn")
    image = read_images(find_images([args.image])[:1], facts, flags.size)
    return dvae.encode(image.to(dev.device))[:, :rows].flatten(1)


def draw_rows(images: Tensor, captions: Sequence[str], scores: Tensor | None, path: Path) -> None:
    """A row of images for each caption; `scores` stand over them."""
    from common.plot import image_grid

    columns = min(images.shape[1], 16)
    titles = []
    for row, caption in enumerate(captions):
        marks = [""] * images.shape[1] if scores is None else [f"{s:.2f}" for s in scores[row]]
        shown = caption if len(caption) <= 40 else caption[:39] + "…"
        titles += [f"{shown}\n{marks[0]}".strip(), *marks[1:]]
        titles += [""] * (-len(titles) % columns)
    blank = images.new_ones(-images.shape[1] % columns, *images.shape[2:])
    flat = torch.cat([torch.cat([row, blank]) for row in images])
    image_grid(flat, path, titles, columns, size=1.3)


def draw_masks(model: DALLE, out: Path) -> dict[str, list[int]]:
    """Writes masks.png: for each kind of layer what the stream's tokens see (rows: who sees), and
    what a token in the middle of the image sees of the grid. Returns the layers of each kind."""
    from matplotlib.figure import Figure

    from common.plot import save

    prefix, height, width, _ = model.layout
    kinds: dict[str, list[int]] = {}
    for number, block in enumerate(model.h, 1):
        kinds.setdefault(block.attn.kind, []).append(number)
    figure = Figure(figsize=(2.6 * len(kinds), 4.6), layout="constrained")
    axes = figure.subplots(2, len(kinds), squeeze=False)
    middle = min(height // 2 * width + width // 2, height * width - 2)  # the last isn't read
    for column, (kind, layers) in enumerate(kinds.items()):
        mask = stream_mask(kind, model.layout)
        axes[0, column].imshow(mask.numpy(), cmap="Blues", vmin=0, vmax=1.4)
        numbers = ", ".join(map(str, layers[:6])) + (" …" if len(layers) > 6 else "")
        title = f"{kind}: layer{'s' if len(layers) > 1 else ''} {numbers}"
        axes[0, column].set_title(title, fontsize=9)
        axes[0, column].axvline(prefix - 0.5, color="grey", linewidth=0.5)
        axes[0, column].axhline(prefix - 0.5, color="grey", linewidth=0.5)
        grid = torch.zeros(height * width)
        grid[: mask.shape[1] - prefix] = mask[prefix + middle, prefix:].float()
        grid[middle] = 1.4
        axes[1, column].imshow(grid.view(height, width).numpy(), cmap="Blues", vmin=0, vmax=1.4)
        axes[1, column].set_title("of the image, from its middle", fontsize=9)
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
    make_folder(out)
    save(figure, out / "masks.png")
    print(f"wrote {out / 'masks.png'}: {', '.join(kinds)}")
    return kinds


def rebuild(
    files: list[Path], dvae: DVAE, facts: dict, flags: cli.Flags, dev: Device, out: Path
) -> dict[str, float]:
    """Writes rebuilt.png, images over what their codes make of them, and codes.png, the codes that
    they have most often; returns the mean squared error of each file, or of test images."""
    from common.plot import sheet

    if files:
        x = read_images(files, facts, flags.size)
    else:
        part = images_of(load(flags, dev)[2])
        x = part.examples(torch.arange(min(len(part), 12)))[0].cpu()
    parts = x.to(dev.device).split(64)
    codes = torch.cat([dvae.encode(part) for part in parts])
    back = torch.cat([dvae.decode(part) for part in codes.split(64)]).cpu()
    errors = (back - x).square().flatten(1).mean(1).tolist()
    make_folder(out)
    shown = min(len(x), 12)
    sheet(torch.cat([x[:shown], back[:shown]]), out / "rebuilt.png", columns=shown)
    counts = codes.flatten().bincount(minlength=dvae.num_codes)
    often = counts.argsort(descending=True, stable=True)[: min(64, int((counts > 0).sum()))]
    side = 3  # a code is shown among its like: its pixels hang on its neighbours
    grid = often[:, None, None].expand(-1, side, side)
    sheet(dvae.decode(grid.contiguous()).cpu(), out / "codes.png", columns=16)
    used = counted(int((counts > 0).sum()), "different code")
    names = [str(path) for path in files] or [f"test image {i}" for i in range(len(x))]
    for name, error in zip(names, errors, strict=True):
        print(f"{name}: squared error {error:.4f}")
    print(f"{counted(codes[0].numel(), 'code')} an image, {used} in all; wrote rebuilt.png and "
          f"codes.png in {out}")  # fmt: skip
    return dict(zip(names, errors, strict=True))


def show_test(
    model: DALLE,
    dvae: DVAE,
    words: Words,
    flags: cli.Flags,
    args: argparse.Namespace,
    dev: Device,
    out: Path,
) -> dict:
    """Writes samples.png: test captions, their image, what its codes make of it, and draws."""
    from common.plot import image_grid

    flags = flags.but(val=0)
    test = load(flags, dev)[2]
    n = min(SHOWN, len(test))
    captions = [some[0] for some in test.captions[:n]]
    real = test.images.examples(torch.arange(n))[0]
    count = args.count or 6
    text = words.encode(captions).repeat_interleave(count, 0)
    images = draw(model, dvae, text, dev, **drawing(args, flags)).unflatten(0, (n, count))
    scores = read_clip(args.rerank, dev).scores(images, captions) if args.rerank else None
    if scores is not None:
        order = scores.argsort(1, descending=True)
        images = images[torch.arange(n, device=order.device)[:, None], order]
    back = dvae.reconstruct(real)
    rows = torch.cat([real[:, None], back[:, None], images], 1).flatten(0, 1)
    titles = []
    for caption in captions:
        shown = caption if len(caption) <= 30 else caption[:29] + "…"
        titles += [shown, "rebuilt", *[""] * count]
    make_folder(out)
    image_grid(rows, out / "samples.png", titles, columns=count + 2, size=1.3)
    print(f"wrote {out / 'samples.png'}: real, rebuilt and drawn images of {n} test captions")
    return {caption: [] for caption in captions}


if __name__ == "__main__":
    main()
