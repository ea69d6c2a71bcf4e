"""Compares images and texts with a trained CLIP or a published one.

python clip/sample.py photo.jpg --texts "two dogs on grass" "a child"   # texts ranked for an image
python clip/sample.py photos/ --search "two dogs on grass"              # images ranked for a text
python clip/sample.py photo.jpg photos/ --classes dog cat "hot dog"     # zero-shot classes
python clip/sample.py --weights openai/clip-vit-base-patch32 photos/ --search "a red car"
python clip/sample.py                                                   # the test set, see below

--search writes search.jpg, a contact sheet of the images that fit best. Without inputs some images
and captions of the test set are drawn with all their cosines, similarity.png (Fig. 21's style).
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from clip.evaluation import text_features
from clip.model import CLIP, MODELS
from clip.pairs import square_window
from clip.prompts import ONE, class_features, fill, templates_of
from clip.published import Found, read_published
from common import cli, counted, fail
from common.classify import colour, images_of
from common.data.captions import load_captions
from common.data.files import find_images, white_in
from common.data.text import as_typed
from common.data.tokens import Tokens
from common.device import Device
from common.folder import keep_what_is_there, make_folder, new_samples, open_run
from common.run import progress_bar

SHEET = 40  # images of search.jpg
SHOWN = 8  # pairs of similarity.png
ASKED = ("texts", "search", "classes")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The flags; see --help."""
    parser = cli.sample_parser("clip", __doc__)
    add = parser.add_argument
    add("inputs", nargs="*", type=Path, help="image files, or folders of them")
    text = "published weights in place of a run: a name of the hub, a folder or a file"
    add("--weights", metavar="NAME|PATH", help=text)
    text = "texts to compare with each image; the likeliest first"
    add("--texts", nargs="+", metavar="TEXT", help=text)
    add("--search", metavar="TEXT", help="rank the images by how well they fit this text")
    add("--classes", nargs="+", metavar="NAME", help="names of classes, put into --template")
    text = "a sentence with {} for the class, or ensemble (default: ensemble, of several)"
    add("--template", metavar="TEXT", help=text)
    text = "images to print, with --search (default: 10)"
    add("--top", type=cli.integer(1), metavar="N", help=text)
    args = parser.parse_args(argv)
    asked = [name for name in ASKED if getattr(args, name) is not None]
    if len(asked) > 1:
        fail(f"give --{asked[0]} or --{asked[1]}: one question at a time")
    if args.weights and args.checkpoint:
        fail("give --weights or --checkpoint, one of them")
    if args.inputs and not asked:
        fail("say what to do with the images: --texts, --search or --classes")
    if asked and not args.inputs:
        fail(f"--{asked[0]} is about images: name image files, or folders of them")
    if args.weights and not args.inputs:
        fail("--weights has no test images of its own: name image files, or folders of them")
    for flag, needs in (("template", "classes"), ("top", "search")):
        if getattr(args, flag) is not None and needs not in asked:
            fail(f"--{flag} goes with --{needs}")
    for name in asked:
        value = getattr(args, name)
        typed = as_typed([value] if name == "search" else value)
        if "" in typed:
            fail(f"--{name} has an empty text: there is nothing to compare images with")
        if len(typed) != len(set(typed)):
            fail(f"--{name} has {next(t for t in typed if typed.count(t) > 1)!r} twice")
        setattr(args, name, typed)
    if args.template and args.template != "ensemble" and args.template.count("{}") != 1:
        fail(f"--template {args.template!r} needs one {{}} for the name of the class, as {ONE!r}")
    return args


def open_model(
    args: argparse.Namespace,
) -> tuple[CLIP, Tokens, dict, cli.Flags | None, Device, Path]:
    """The network (of published weights or a checkpoint), its vocabulary, facts of its inputs, the
    flags of its training (None with --weights), a device, and the folder for what is made."""
    if args.weights:
        found = read_published(args.weights)
        if found.tokenizer is None:
            fail(f"--weights {args.weights}: no tokenizer.json is beside the weights, so no text "
                 "can be read for them")  # fmt: skip
        alone = dict(device=args.device, quiet=True, fsdp=False, compile=False, accumulate=1)
        dev = Device(cli.Flags(**alone, clip=None, seed=0, precision="fp32"))
        out, flags = args.out or new_samples(Path("runs", "clip")), None
        size = found.network["image_size"]
        facts = dict(found.inputs, side=size)
        print(f"{args.weights}, {size} pixels")
    else:
        checkpoint, flags, dev, out = open_run(args, "clip", MODELS)
        facts = checkpoint["dataset"]
        if "network" not in facts:
            fail("the checkpoint is of predict.py, which has no text encoder: name one of train.py")
        found = Found("", facts["network"], checkpoint["model"], facts["tokenizer"])
    model = found.build().to(dev.device).eval()
    return model, Tokens(found.tokenizer), facts, flags, dev, out


@torch.inference_mode()
def read_images(
    model: CLIP, files: Sequence[Path], facts: dict, dev: Device, shown: int
) -> tuple[Tensor, list[Tensor]]:
    """Features (N, E) of image files, and the first of them as they look."""
    facts = facts | dict(top=facts.get("top") or white_in(files))
    images, features, looks = images_of(files, facts, model.image_size, dev), [], []
    parts = torch.arange(len(files)).split(32)
    for part in progress_bar(parts, dev, "reading", len(parts)):
        pixels, _ = images.examples(part)
        with dev.autocast():
            features.append(model.encode_image(pixels))
        looks += colour(pixels, facts)[: max(0, shown - len(looks))]
    return torch.cat(features), looks


def note_cuts(tokens: Tokens, texts: Sequence[str], context: int) -> None:
    """Says how many texts are longer than what is read."""
    if cut := tokens.encode(texts, context)[1]:
        print(f"note: {counted(cut, 'text')} cut at {context} tokens")


@torch.inference_mode()
def ask_texts(
    args: argparse.Namespace, model: CLIP, tokens: Tokens, facts: dict, data: str, dev: Device
) -> dict[str, list[tuple[str, float]]]:
    """For each image the texts, or classes, and how likely they are of these, likeliest first."""
    names = args.texts or args.classes
    if args.texts:
        note_cuts(tokens, names, model.context)
        features = text_features(model, tokens, names, dev)
    else:
        ensemble = args.template in (None, "ensemble")
        templates = templates_of(data) if ensemble else [args.template]
        note_cuts(tokens, [fill(text, name) for text in templates for name in names], model.context)
        features = class_features(model, tokens, names, templates)
    files = find_images(args.inputs)
    images, _ = read_images(model, files, facts, dev, 0)
    cosines = images @ features.T
    odds = (model.logit_scale.exp() * cosines).softmax(1)
    found = {}
    for file, row, near in zip(files, odds, cosines, strict=True):
        order = row.argsort(descending=True).tolist()
        found[str(file)] = [(names[k], float(row[k])) for k in order]
        shown = ", ".join(f"{names[k]} {row[k]:.1%} (cosine {near[k]:.3f})" for k in order[:5])
        rest = len(order) - 5
        print(f"{file}: {shown}{f', and {rest} less likely ones' if rest > 0 else ''}")
    return found


def search(
    args: argparse.Namespace, model: CLIP, tokens: Tokens, facts: dict, dev: Device, out: Path
) -> dict[str, float]:
    """The images by their cosine with a text; writes search.jpg. Returns all, the best first."""
    from common.plot import image_grid

    files = find_images(args.inputs)
    keep_what_is_there(out, "search.jpg")
    note_cuts(tokens, args.search, model.context)
    (feature,) = text_features(model, tokens, args.search, dev)
    images, _ = read_images(model, files, facts, dev, 0)
    cosines = images @ feature
    order = cosines.argsort(descending=True).tolist()
    best = order[:SHEET]
    _, looks = read_images(model, [files[i] for i in best], facts, dev, SHEET)
    make_folder(out)
    titles = [f"{cosines[i]:.3f}" for i in best]
    image_grid(looks, out / "search.jpg", titles, 8, 1.3, args.search[0])
    for i in order[: args.top or 10]:
        print(f"{cosines[i]:.3f} {files[i]}")
    print(f"wrote {out / 'search.jpg'}, {counted(len(best), 'image')} of {len(files):,}")
    return {str(files[i]): float(cosines[i]) for i in order}


def draw_similarity(
    looks: Sequence[Tensor], texts: Sequence[str], cosines: Tensor, path: Path
) -> None:
    """Images above, captions beside, and the cosine of each two where they meet."""
    import textwrap

    from matplotlib.figure import Figure

    from common.plot import save

    count = len(texts)
    figure = Figure(figsize=(0.95 * count + 3.6, 0.75 * count + 1.2), layout="constrained")
    rows = figure.subplots(2, 1, height_ratios=[1, 0.75 * count])
    top, axis = rows
    top.set(xlim=(-0.5, count - 0.5), ylim=(0, 1))
    top.axis("off")
    for place, look in enumerate(looks):
        inset = top.inset_axes([place + 0.08 - 0.5, 0, 0.84, 1], transform=top.transData)
        inset.imshow(look.cpu().permute(1, 2, 0).float().numpy(), aspect="auto")
        inset.axis("off")
    values = cosines.T.float().cpu().numpy()
    axis.imshow(values, cmap="Blues", aspect="auto")
    middle = (values.min() + values.max()) / 2
    for row in range(count):
        for column in range(len(looks)):
            shade = "white" if values[row, column] > middle else "black"
            axis.text(column, row, f"{values[row, column]:.2f}", ha="center", va="center",
                      color=shade, fontsize=9)  # fmt: skip
    lines = [textwrap.shorten(text, 110, placeholder=" …") for text in texts]
    names = [textwrap.fill(line, 40) for line in lines]
    axis.set_yticks(range(count), names, fontsize=8, parse_math=False)
    axis.set_xticks([])
    save(figure, path)


@torch.inference_mode()
def show_test(
    model: CLIP, tokens: Tokens, flags: cli.Flags, facts: dict, dev: Device, out: Path
) -> dict[str, float]:
    """Writes similarity.png of some test pairs, all with different captions; says how many images
    are nearest to their own caption."""
    keep_what_is_there(out, "similarity.png")
    test = load_captions(flags, dev, model.image_size, facts, square_window)[2]
    order = torch.randperm(len(test), generator=torch.Generator().manual_seed(0)).tolist()
    first = {}
    for i in order:
        first.setdefault(test.captions[i][0], i)
    texts = list(first)[:SHOWN]
    pixels, _ = test.images.examples(torch.tensor([first[text] for text in texts]))
    with dev.autocast():
        cosines = model.encode_image(pixels) @ text_features(model, tokens, texts, dev).T
    right = int((cosines.argmax(1).cpu() == torch.arange(len(texts))).sum())
    make_folder(out)
    draw_similarity(colour(pixels, facts), texts, cosines, out / "similarity.png")
    print(f"{right} of {counted(len(texts), 'test image')} nearest to their own caption; wrote "
          f"{out / 'similarity.png'}")  # fmt: skip
    return {"right": right}


@cli.command
def main(argv: list[str] | None = None) -> dict:
    """Answers the question, or shows test pairs; returns what it found."""
    args = parse_args(argv)
    model, tokens, facts, flags, dev, out = open_model(args)
    if args.search:
        return search(args, model, tokens, facts, dev, out)
    if args.inputs:
        return ask_texts(args, model, tokens, facts, flags.data if flags else "", dev)
    return show_test(model, tokens, flags, facts, dev, out)


if __name__ == "__main__":
    main()
