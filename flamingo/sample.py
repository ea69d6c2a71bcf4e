"""Answers questions about images with a trained Flamingo, describes them, goes on from examples.

python flamingo/sample.py photo.png --question "what colour is the star?"    # the newest run
python flamingo/sample.py a.png b.png --caption                    # describes each
python flamingo/sample.py --few-shot examples.json                 # answers the last of a list
python flamingo/sample.py a.png b.png --prompt "<image>Output: a red star <image>Output:"
python flamingo/sample.py photo.png --interactive                  # each line that is typed
python flamingo/sample.py                                          # questions of the test set

looked.png shows over each image where the answer looked. The list of --few-shot is JSON: objects
with image, question and answer (or image and caption), the last one without its answer. A prompt
without images is answered by the language model alone.
"""

import argparse
import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from common import cli, fail
from common.classify import colour, images_of
from common.data.files import find_images, white_in
from common.data.text import as_text, as_typed, check_prompt
from common.folder import keep_what_is_there, make_folder, open_run
from flamingo.answering import as_map, check_length, check_marks, looked_at, write
from flamingo.data import Part, Words, chosen, clean, load, read_json, room_for
from flamingo.model import MODELS, Flamingo
from flamingo.parts import build
from flamingo.questions import CAPTION, IMAGE, Entry, prompt_of, with_article

SHOWN = 12  # questions of the test set
Found = dict[str, str]


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The flags; see --help."""
    parser = cli.sample_parser("flamingo", __doc__)
    add, count = parser.add_argument, dict(type=cli.integer(1), metavar="N")
    add("inputs", nargs="*", type=Path, metavar="IMAGE", help="image files, or folders of them")
    add("--question", metavar="TEXT", help="asked about each image")
    add("--caption", action="store_true", help="describe each image")
    add("--few-shot", type=Path, metavar="JSON", help="a list of examples, the last to be answered")
    text = "text with <image> where the images stand, in their order"
    add("--prompt", metavar="TEXT", help=text)
    text = "answer each line that is typed, about the image"
    add("--interactive", action="store_true", help=text)
    add("--length", **count, default=30, help="tokens to write, at most (default: 30)")
    text = "below 1 likelier, 0 the likeliest (the default), above 1 bolder"
    add("--temperature", type=cli.not_negative, metavar="T", default=0.0, help=text)
    text = "of what is drawn (default: 0)"
    add("--seed", type=cli.integer(0), metavar="N", default=0, help=text)
    args = parser.parse_args(argv)
    ways = dict(question=args.question is not None, caption=args.caption,
                few_shot=args.few_shot is not None, prompt=args.prompt is not None,
                interactive=args.interactive)  # fmt: skip
    asked = [f"--{name.replace('_', '-')}" for name, given in ways.items() if given]
    if len(asked) > 1:
        fail(f"give {asked[0]} or {asked[1]}, one of them")
    if args.inputs and not asked:
        fail("say what to do with the images: --question, --caption, --prompt or --interactive")
    if args.few_shot and args.inputs:
        fail("--few-shot names its images itself: leave them out")
    if asked and args.data_dir:
        fail("--data-dir is where test examples lie: leave it out beside inputs of your own")
    if args.caption and not args.inputs:
        fail("--caption describes images: name image files, or folders of them")
    if args.interactive and (args.out or len(args.inputs) > 1):
        what = "writes no files: leave --out out" if args.out else "is about one image at a time"
        fail(f"--interactive {what}")
    if args.question is not None:
        (args.question,) = as_typed([args.question])
        if not args.question:
            fail("--question is empty: ask something")
    check_prompt(args.prompt)
    return args


class Speaker:
    """A trained model with all that it needs to answer."""

    def __init__(self, args: argparse.Namespace):
        checkpoint, self.flags, self.dev, self.out = open_run(args, "flamingo", MODELS)
        self.args, self.facts = args, checkpoint["dataset"]
        self.model: Flamingo = build(self.facts)
        self.model.load_state_dict(checkpoint["model"])
        self.model.to(self.dev.device).eval()
        self.words = Words(self.facts["vocabulary"])
        self.size = self.facts["vision"]["image_size"]

    def read(self, files: Sequence[Path]) -> Tensor | None:
        """Image files as the encoder sees them (M, 3, S, S); None where there are none."""
        if not files:
            return None
        inputs = {key: self.facts[key] for key in ("mean", "std")} | {"side": self.size}
        inputs["top"] = self.facts.get("top") or white_in(files)
        images = images_of(list(files), inputs, self.size, self.dev)
        return images.examples(torch.arange(len(files)))[0]

    def answer(self, tokens: list[int], images: Tensor | None) -> tuple[str, Tensor | None]:
        """What is written after a prompt, and where its first word looked, (P,)."""
        check_length(self.model, tokens)
        how = dict(length=self.args.length, temperature=self.args.temperature, seed=self.args.seed)
        written = write(self.model, self.words, tokens, images, **how)
        seen = None
        if images is not None:
            ends = written or [self.words.end]
            seen = looked_at(self.model, self.words, tokens, ends, images).mean(0)
        return self.words.text(written), seen

    def ask(self, text: str, files: Sequence[Path]) -> tuple[str, Tensor | None]:
        """The answer to a prompt with marks, and where it looked."""
        check_marks(text.count(IMAGE), files)
        return self.answer(self.words.prompt(text), self.read(files))


def about(entry: Entry, with_image: bool = True) -> str:
    """The prompt for an entry of one image."""
    return IMAGE * with_image + prompt_of(entry)


# ---------------------------------------------------------------------- ways to ask


def ask_each(speaker: Speaker, entry: Entry, files: Sequence[Path], out: Path) -> Found:
    """The same of each image; with a question and no image the language model answers."""
    found, shown = {}, []
    for file in files:
        text, seen = speaker.ask(about(entry), [file])
        print(f"{file}: {text}")
        found[str(file)] = text
        shown.append((speaker.read([file])[0], f"{entry.question}\n{text}".strip(), seen))
    if not files:
        found[entry.question] = speaker.ask(about(entry, False), [])[0]
        print(f"(no image: the language model alone) {found[entry.question]}")
    draw(shown, speaker.facts, out)
    return found


def read_shots(path: Path) -> tuple[list[Entry], list[Path | None]]:
    """The entries of a few-shot file, the last one without an answer, and their images."""
    entries, files = [], []
    raw = read_json(path, f"--few-shot {path}")
    for number, one in enumerate(raw, 1):
        where, last = f"{path}: entry {number}", number == len(raw)
        key = "caption" if "question" not in one else "answer"
        answer, question = clean(one.get(key, "")), clean(one.get("question", ""))
        if "question" in one and not question:
            fail(f"{where} has an empty question")
        if last and answer:
            fail(
                f"{where} is the last one and has {with_article(key)}: leave out what is asked for"
            )
        if not last and not answer:
            fail(f"{where} has no {key}: only the last one is answered")
        file = one.get("image")
        if file is not None and not (path.parent / str(file)).is_file():
            fail(f"{where} names {file}, which is not in {path.parent}")
        if file is None and key == "caption":
            fail(f"{where} has neither an image nor a question")
        entries.append(Entry(CAPTION if key == "caption" else key, question, answer))
        files.append(None if file is None else path.parent / str(file))
    return entries, files


def few_shot(speaker: Speaker, path: Path, out: Path) -> Found:
    """Answers the last of a list of examples."""
    entries, files = read_shots(path)
    words, tokens = speaker.words, [speaker.words.end]
    for entry, file in zip(entries, files, strict=True):
        chunk, begin = words.chunk(entry)
        chunk = chunk if entry.answer else chunk[:begin]
        tokens += chunk if file else chunk[1:]
    named = [file for file in files if file]
    images = speaker.read(named)
    text, seen = speaker.answer(tokens, images)
    print(text)
    if files[-1]:
        draw([(images[-1], f"{entries[-1].question}\n{text}".strip(), seen)], speaker.facts, out)
    return {str(files[-1] or entries[-1].question): text}


def prompted(speaker: Speaker, text: str, files: Sequence[Path], out: Path) -> Found:
    """Goes on from a prompt of the user's."""
    answer, seen = speaker.ask(text, files)
    if not files:
        print("note: no image is named, so the language model alone writes", file=sys.stderr)
    print(f"{text} {answer}")
    if files:
        draw([(speaker.read(files[-1:])[0], answer, seen)], speaker.facts, out)
    return {text: answer}


def interact(speaker: Speaker, files: list[Path]) -> None:
    """Answers each line that is typed, about the image; a line that names a file takes it."""
    print("type a question, or the name of an image to ask about; Ctrl-D ends", file=sys.stderr)
    for number, raw in enumerate(sys.stdin.buffer, 1):
        try:
            line = as_text(raw, f"line {number}")
        except ValueError as error:  # not UTF-8
            print(f"note: {error}", file=sys.stderr)
            continue
        if is_file(line):
            files = [Path(line)]
        elif line:
            entry = Entry("", clean(line), "")
            prompt = speaker.words.prompt(about(entry, bool(files)))
            if len(prompt) >= speaker.model.lang_encoder.context:
                print("note: that is too long a question", file=sys.stderr)
                continue
            print(speaker.answer(prompt, speaker.read(files))[0], flush=True)


def is_file(line: str) -> bool:
    """Whether a line names a file; one that is too long for a name doesn't."""
    with contextlib.suppress(OSError):
        return Path(line).is_file()
    return False


def show_test(speaker: Speaker, out: Path) -> Found:
    """Questions of the test set, a few of each kind that was trained on, and the right answers."""
    test = load(speaker.flags.but(limit=None, val=0), speaker.dev, speaker.size)[2]
    test.facts |= {key: speaker.facts[key] for key in ("mean", "std")}
    room = room_for(speaker.model, speaker.flags)
    part = Part(test, speaker.model, speaker.dev, speaker.words, room)
    left = speaker.flags.leave_out or ()
    kinds = [kind for kind in part.kinds if kind not in left] or [CAPTION]
    each = -(-SHOWN // len(kinds))
    found, shown = {}, []
    for place in [p for kind in kinds for p in spread(chosen(part, kind, 100), each)][:SHOWN]:
        entry, images = part.entry(place), test.images.examples(torch.tensor(place[:1]))[0]
        text, seen = speaker.answer(speaker.words.prompt(about(entry)), images)
        mark = "✓" if text == entry.answer else f"({entry.answer})"
        name = f"{place[0]}: {entry.question or CAPTION}"
        print(f"{name} {text} {mark}")
        found[name] = text
        shown.append((images[0], f"{entry.question}\n{text} {mark}".strip(), seen))
    draw(shown, speaker.facts, out)
    return found


def spread(places: list, count: int) -> list:
    """So many of a list, from all of it."""
    return places[:: max(1, len(places) // count)][:count]


# ---------------------------------------------------------------------- the picture


def draw(shown: Sequence[tuple[Tensor, str, Tensor]], facts: dict, out: Path) -> None:
    """Writes looked.png: each image, and over it where the answer looked (bright)."""
    import textwrap

    from matplotlib.figure import Figure

    from common.plot import save

    if not shown:
        return
    columns = min(6, len(shown))
    rows = -(-len(shown) // columns)
    figure = Figure(figsize=(1.6 * columns, 2.1 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flat
    for axis in figure.axes:
        axis.axis("off")
    for axis, (image, title, seen) in zip(axes, shown, strict=False):
        side = image.shape[2]
        (pixels,) = colour(image[None], facts)
        axis.imshow(pixels.cpu().permute(1, 2, 0).numpy(), extent=(0, side, side, 0))
        places = as_map(seen)
        axis.imshow(places.numpy(), extent=(0, side, side, 0), cmap="magma", alpha=0.45,
                    interpolation="bilinear", vmin=0.0)  # fmt: skip
        lines = [textwrap.fill(line, 25) for line in title.splitlines()]
        axis.set_title("\n".join(lines), fontsize=7, pad=2, parse_math=False)
    make_folder(out)
    save(figure, out / "looked.png")
    print(f"wrote looked.png in {out}", file=sys.stderr)


@cli.command
@torch.inference_mode()
def main(argv: list[str] | None = None) -> Found:
    """Answers; returns the answers by image, question or prompt."""
    args = parse_args(argv)
    files = find_images(args.inputs)
    if args.prompt is not None:
        check_marks(args.prompt.count(IMAGE), files)
    speaker = Speaker(args)
    out = speaker.out
    if not args.interactive:
        keep_what_is_there(out, "looked.png")
    if args.interactive:
        interact(speaker, files)
        return {}
    if args.few_shot:
        return few_shot(speaker, args.few_shot, out)
    if args.prompt is not None:
        return prompted(speaker, args.prompt, files, out)
    if args.question or args.caption:
        kind = "" if args.question else CAPTION
        return ask_each(speaker, Entry(kind, args.question or "", ""), files, out)
    return show_test(speaker, out)


if __name__ == "__main__":
    main()
