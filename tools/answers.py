"""What the page of tools/demo.py answers: a function for each tab, from the runs that are there.

Each calls what the sample.py of its folder calls. Networks are opened when they are first asked,
and the last few stay open. Whatever a person may do wrong raises `Sorry` with one line.
"""

import contextlib
import csv
import functools
import importlib
import io
import queue
import sys
import tempfile
import threading
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from common.folder import as_spelt_now, read_flags
from tools.milestones import small_models
from tools.trained import ROOT, checkpoint_of, opened, part_of

MOST_BYTES = 10 << 20  # of an upload
MOST_PIXELS = 25_000_000  # of an image
MOST_LETTERS = 2000  # of a text
MOST_FILES = 64
KEPT = 3  # networks that stay open
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
SHOWN = 20  # rows of a table
HOME: list[tempfile.TemporaryDirectory] = []  # of what is drawn


class Sorry(Exception):
    """What is wrong, in one line that a person can act on."""


# ---------------------------------------------------------------------- what is said


class Ears(io.TextIOBase):
    """A stream that passes on what is written, but for threads that listen: theirs is kept."""

    def __init__(self, stream: Any):
        self.stream, self.heard = stream, threading.local()

    def write(self, text: str) -> int:
        """Writes, or keeps, a text."""
        kept = getattr(self.heard, "text", None)
        if kept is None:
            return self.stream.write(text)
        kept.append(text)
        return len(text)

    def flush(self) -> None:
        """Of what is kept there is nothing to flush."""
        if getattr(self.heard, "text", None) is None:
            self.stream.flush()

    def isatty(self) -> bool:
        """No bars are drawn into what is kept."""
        return getattr(self.heard, "text", None) is None and self.stream.isatty()

    def fileno(self) -> int:
        """That of the stream, for those who write past this."""
        return self.stream.fileno()


@contextlib.contextmanager
def listening() -> Iterator[list[str]]:
    """Inside, the notes that this thread prints are kept in the list, and what would end a command
    with a line raises Sorry with that line."""
    for name in ("stdout", "stderr"):
        if not isinstance(getattr(sys, name), Ears):
            setattr(sys, name, Ears(getattr(sys, name)))
    said: list[str] = []
    streams, notes = (sys.stdout, sys.stderr), []
    before = [getattr(stream.heard, "text", None) for stream in streams]
    sys.stdout.heard.text, sys.stderr.heard.text = [], said
    try:
        yield notes
    except SystemExit as end:
        lines = [line for line in "".join(said).splitlines() if line.startswith("error: ")]
        raise Sorry(lines[-1].removeprefix("error: ") if lines else "it ended early") from end
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise Sorry("memory ran out: take a smaller input, or a smaller network") from error
    finally:
        for stream, kept in zip(streams, before, strict=True):
            stream.heard.text = kept
        lines = "".join(said).splitlines()
        notes += [line.removeprefix("note: ") for line in lines if line.startswith("note: ")]


def heard(function: Callable) -> Callable:
    """A function whose printed complaints raise Sorry."""

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        with listening():
            return function(*args, **kwargs)

    return wrapped


# ---------------------------------------------------------------------- runs


class Kind(NamedTuple):
    """What a tab is about: whose runs it takes, and the command that makes one."""

    folders: tuple[str, ...]
    script: str
    flags: tuple[str, ...] = ()
    fits: Callable[[dict], bool] = lambda flags: True

    @property
    def command(self) -> str:
        """As it is typed."""
        return " ".join(["python", self.script, *self.flags])


def is_table(flags: dict) -> bool:
    """Whether a run of mlp is of a table."""
    return flags.get("model") == "mlp_table"


def is_series(flags: dict) -> bool:
    """Whether a run of rnn forecasts."""
    return str(flags.get("data")).partition(":")[0] in ("airline", "sunspots", "etth1", "series")


def is_text(flags: dict) -> bool:
    """Whether a run writes."""
    kind = str(flags.get("data")).partition(":")[0]
    return flags.get("script") != "finetune.py" and kind in ("pydocs", "shakespeare", "text")


def draws(flags: dict) -> bool:
    """Whether a run draws images of captions, and isn't of the codes alone."""
    model = str(flags.get("model"))
    return model.startswith(("ldm", "stable", "dalle"))


WAVES = Path("data", "demo", "waves.csv")  # what a forecaster is trained on if asked from the page
KINDS = {
    "digit": Kind(("lenet",), "lenet/train.py"),
    "photo": Kind(tuple(small_models("image classification")), "resnet/train.py",
                  fits=lambda flags: flags.get("milestone") != "lenet"),
    "things": Kind(("yolo", "unet", "maskrcnn"), "yolo/train.py"),
    "sentence": Kind(("transformer", "seq2seq"), "transformer/train.py"),
    "prompt": Kind(("gpt", "rnn"), "gpt/train.py", fits=is_text),
    "caption": Kind(("latentdiffusion", "dalle"), "latentdiffusion/train.py", fits=draws),
    "words": Kind(("clip",), "clip/train.py", fits=lambda f: f.get("script") != "predict.py"),
    "series": Kind(("rnn",), "rnn/train.py", ("--data", f"series:{WAVES}", "--horizon", "24"),
                   is_series),
    "rows": Kind(("mlp",), "mlp/train.py", ("--model", "mlp_table"), is_table),
}  # fmt: skip


def runs_for(name: str) -> list[str]:
    """The runs below the current directory that a tab can use, the newest first."""
    kind, found = KINDS[name], []
    for folder in kind.folders:
        for file in Path("runs", folder).glob("*/last.pt"):
            flags = as_spelt_now(read_flags(file.parent))
            with contextlib.suppress(OSError):
                if flags.get("milestone") == folder and kind.fits(flags):
                    found.append((file.stat().st_mtime, file.parent.as_posix()))
    return [path for _, path in sorted(found, reverse=True)]


def open_run(name: str, run: str | None) -> tuple[str, tuple]:
    """The folder of a run, and what its sample.py opens; only runs that `runs_for` names are."""
    if not run:
        raise Sorry(f"no run is chosen: train one, {KINDS[name].command}")
    if run not in runs_for(name):
        raise Sorry(f"{run} is no run for this, or is gone: choose another")
    path = checkpoint_of(run)
    return Path(run).parent.name, kept_open(Path(run).parent.name, path, path.stat().st_mtime_ns)


@functools.lru_cache(KEPT)
def kept_open(folder: str, path: Path, _written: int) -> tuple:
    """What a folder's sample.py opens of a checkpoint as it was written last."""
    return opened(folder, path, device="auto")


# ---------------------------------------------------------------------- what is given


def new_folder() -> Path:
    """An empty folder for what is drawn, gone with the program."""
    if not HOME:
        HOME.append(tempfile.TemporaryDirectory(prefix="milestones-"))
    return Path(tempfile.mkdtemp(dir=HOME[0].name))


def checked_image(path: str | Path | None) -> Path:
    """A file that is an image, not too large; it is decoded by nobody else before."""
    from PIL import Image

    if not path:
        raise Sorry("give an image first")
    path = Path(path)
    if path.stat().st_size > MOST_BYTES:
        raise Sorry(f"{path.name} has more than {MOST_BYTES >> 20} MiB: give a smaller image")
    if path.suffix.lower() not in PICTURES:
        raise Sorry(f"{path.name} is no image: give one of {', '.join(PICTURES)}")
    try:
        with Image.open(path) as image:  # reads the head alone
            width, height = image.size
    except Image.DecompressionBombError:
        width = height = MOST_PIXELS
    except (OSError, ValueError, SyntaxError) as error:
        raise Sorry(f"{path.name} is no image that can be read") from error
    if width * height > MOST_PIXELS:
        raise Sorry(f"{path.name} has more than {MOST_PIXELS // 10**6} million pixels: scale it")
    return path


def checked_table(path: str | Path | None) -> list[str]:
    """A CSV file, not too large, as an argument; none if none is given."""
    if not path:
        return []
    path = Path(path)
    if path.suffix.lower() not in (".csv", ".tsv", ".txt"):
        raise Sorry(f"{path.name} is no table: give a CSV file")
    if path.stat().st_size > MOST_BYTES:
        raise Sorry(f"{path.name} has more than {MOST_BYTES >> 20} MiB: give a smaller file")
    return [str(path)]


def checked_text(text: str | None, what: str) -> str:
    """A text that isn't empty, and not too long."""
    text = (text or "").strip()
    if not text:
        raise Sorry(f"write {what} first")
    if len(text) > MOST_LETTERS:
        raise Sorry(f"{len(text):,} letters are too many: {MOST_LETTERS:,} at most")
    return text


@functools.cache
def scenes(count: int = 24, size: int = 96) -> list[str]:
    """Files of drawn scenes, for those who have no image at hand."""
    from PIL import Image

    from common.data.shapes import draw

    folder, drawn, files = new_folder(), draw(range(count), size=size), []
    for number, pixels in enumerate(drawn.pixels):
        files.append(str(folder / f"scene-{number + 1}.png"))
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(files[-1])
    return files


# ---------------------------------------------------------------------- the tabs


@heard
@torch.inference_mode()
def read_digit(run: str, drawing: Any) -> tuple[dict[str, float], str]:
    """The probability of each digit, and a picture of LeNet's first maps, of a drawing: an array
    (H, W, 4), or a file."""
    from PIL import Image

    from common.data.ink import normalised, read_digits

    show_features = part_of("lenet.sample", "show_features")
    out = new_folder()
    if drawing is None:
        raise Sorry("draw a digit first")
    if isinstance(drawing, (str, Path)):
        file = checked_image(drawing)
    else:
        ink = Image.fromarray(drawing).convert("RGBA")
        paper = Image.new("RGBA", ink.size, "white")
        paper.alpha_composite(ink)
        file = out / "drawing.png"
        paper.convert("L").save(file)
    _, (model, flags, facts, dev, _) = open_run("digit", run)
    pixels, readings = read_digits([file], facts, flags.data, pad=2)
    if readings == ["blank"]:
        raise Sorry("there is nothing on the paper: draw a digit first")
    x = normalised(pixels, facts, dev)
    odds = model(x).float().softmax(1)[0].cpu().tolist()
    show_features(model, x, out)
    return dict(zip(facts["classes"], odds, strict=True)), str(out / "features.png")


@heard
def name_photo(runs: Sequence[str], file: str | None) -> dict[str, list[tuple[str, float]]]:
    """The likeliest classes of an image by run, with their probabilities."""
    from common.classify import classify

    path = checked_image(file)
    if not runs:
        raise Sorry("choose at least one run")
    found = {}
    for run in list(runs)[:8]:
        _, (model, flags, facts, dev, _) = open_run("photo", run)
        answers = classify([path], model, facts, flags.size, dev, new_folder())
        found[run] = next(iter(answers.values()))
    return found


@heard
def find_things(run: str, file: str | None, threshold: float) -> tuple[str, list[list[str]]]:
    """A picture with what is found in an image, and rows of what it is."""
    path, out = checked_image(file), new_folder()
    folder, (model, flags, facts, dev, _) = open_run("things", run)
    sample = importlib.import_module(f"{folder}.sample")
    args = Namespace(threshold=float(min(max(threshold, 0.01), 0.99)), json=False, tile=388)
    if folder == "yolo":
        (rows,) = sample.find([path], model, flags, facts, dev, args, out).values()
        said = [[row["class"], f"{row['score']:.2f}"] for row in rows]
    elif folder == "maskrcnn":
        content = sample.find_in_files([path], model, facts, dev, args, out)
        names = {row["id"]: row["name"] for row in content["categories"]}
        said = [[names[a["category_id"]], f"{a['score']:.2f}"] for a in content["annotations"]]
    else:
        (parts,) = sample.segment_files([path], model, flags, facts, dev, args, out).values()
        said = [[name, f"{part['share']:.1%} in {part['parts']} parts"]
                for name, part in parts.items()]  # fmt: skip
    (picture,) = out.glob("*.jpg")
    return str(picture), said or [["nothing", f"over {args.threshold:g}"]]


@heard
def translate(run: str, sentence: str) -> tuple[str, str | None]:
    """The translation, and a picture of where each of its words looked (None without attention)."""
    from common.data.text import decode, read_tokenizer

    line, out = checked_text(sentence, "a sentence"), new_folder()
    folder, (model, flags, facts, dev, _) = open_run("sentence", run)
    sample = importlib.import_module(f"{folder}.sample")
    args = sample.parse_args([])
    if folder == "seq2seq":
        translator = sample.Translator(model, facts, flags, dev)
        written = translator([line], args)
        text = decode(translator.tokenizer, written)[0]
        if (aligned := translator.align(line, written[0])) is None:
            return text, None
        sample.draw_alignments([aligned], out / "alignment.png")
        return text, str(out / "alignment.png")
    tokenizer = read_tokenizer(facts["tokenizer"])
    most = facts["longest"] * 5 // 4
    (text,) = sample.translate([line], model, tokenizer, most, dev, args)
    sample.draw_attention(line, text, model, tokenizer, dev, out)
    return text, str(out / "cross.png")


def go_on(
    run: str, prompt: str, length: int = 100, temperature: float = 0.7, seed: int = 0
) -> Iterator[str]:
    """A prompt with what is written after it, each time a token is more."""
    pieces: queue.Queue = queue.Queue()

    def write() -> None:
        try:
            with listening():
                written(run, prompt, min(max(int(length), 1), 1000), temperature, seed, pieces.put)
            pieces.put(None)
        except BaseException as error:  # is raised where it is waited for
            pieces.put(error)

    threading.Thread(target=write, daemon=True).start()
    text = ""
    while (piece := pieces.get()) is not None:
        if isinstance(piece, BaseException):
            raise piece
        text += piece
        yield text


@torch.inference_mode()
def written(run: str, prompt: str, length: int, warm: float, seed: int, put: Callable) -> None:
    """Writes on from a prompt, and puts each piece of text, the prompt first."""
    from common.data.corpora import END, Vocabulary

    if not prompt or len(prompt) > MOST_LETTERS:
        checked_text(prompt, "a beginning")
    folder, found = open_run("prompt", run)
    if folder == "gpt":
        read_prompt = part_of("gpt.sample", "read_prompt")
        write = part_of("gpt.writing", "write")
        model, facts, dev, _ = found
        vocabulary = Vocabulary(facts)
        tokens = read_prompt(prompt, vocabulary, model.context, dev)
        put(vocabulary.decode(tokens.tolist()).replace(END, ""))
        how = dict(temperature=warm, seed=int(seed), show=lambda row, text: put(text))
        write(model, vocabulary, tokens, length, **how)
        return
    pieces = part_of("rnn.sample", "pieces")
    model, _, facts, dev, _ = found
    vocabulary, draw = Vocabulary(facts), torch.Generator().manual_seed(int(seed))
    start = vocabulary.encode(prompt).to(dev.device)
    put(prompt)
    for piece in pieces(model.generate(start, length, warm, vocabulary.never, draw), vocabulary):
        put(piece)


@heard
def draw_caption(run: str, caption: str, count: int = 4, seed: int = 0) -> list:
    """Images of a caption."""
    from PIL import Image

    text, count = checked_text(caption, "a caption"), min(max(int(count), 1), 16)
    folder, found = open_run("caption", run)
    if folder == "dalle":
        draw = part_of("dalle.evaluate", "draw")
        Words, check_words = part_of("dalle.sample", "Words", "check_words")
        dvae, model, facts, flags, dev, _ = found
        words = Words(facts)
        check_words([text], words)
        tokens = words.encode([text]).repeat_interleave(count, 0)
        with torch.inference_mode():
            images = draw(model, dvae, tokens, dev, int(seed), flags.draw_temperature)
    else:
        names = "how_of", "images_for", "teller"
        how_of, images_for, teller = part_of("latentdiffusion.draw", *names)
        model, words, flags, shape, dev, _ = found
        dev.quiet = True
        tell = teller(model, words, [text] * count, dev)
        seeds = [int(seed) + number for number in range(count)]
        images = images_for(model, tell, seeds, shape, dev, how_of(flags), 8)
    pixels = (images.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    large = max(1, 192 // pixels.shape[1])
    size = pixels.shape[2] * large, pixels.shape[1] * large
    return [Image.fromarray(image).resize(size, Image.Resampling.NEAREST) for image in pixels]


@heard
def search(run: str, files: Sequence[str] | None, words: str, top: int = 8) -> list[tuple]:
    """Images, the best for some words first, with their cosines; drawn scenes if none are given."""
    text = checked_text(words, "what to look for")
    if files and len(files) > MOST_FILES:
        raise Sorry(f"{len(files)} images are too many: {MOST_FILES} at most")
    paths = [checked_image(file) for file in files or scenes()]
    _, (model, tokens, facts, _, dev, _) = open_run("words", run)
    look = part_of("clip.sample", "search")
    args = Namespace(inputs=paths, search=[text], top=len(paths))
    found = look(args, model, tokens, facts, dev, new_folder())
    return [(path, f"{cosine:.3f}") for path, cosine in list(found.items())[: int(top)]]


@heard
@torch.inference_mode()
def forecast(run: str, file: str | None) -> tuple[str, list[list[str]]]:
    """A picture of what comes next, and its rows; without a file of the run's own test set."""
    tell = part_of("rnn.sample", "forecast")
    inputs, out = checked_table(file), new_folder()
    _, (model, flags, facts, dev, _) = open_run("series", run)
    table = tell(model, facts, flags, dev, Namespace(inputs=inputs), out)
    rows = [[str(time), name, f"{value:.6g}"] for name, values in table.items()
            for time, value in values.items()]  # fmt: skip
    return str(out / "forecasts.png"), rows


@heard
def predict_rows(run: str, file: str | None) -> tuple[list[str], list[list[str]], str]:
    """Head and first rows of a table with the answers, and the file of all; without a file of the
    run's own test set."""
    predict_table = part_of("mlp.sample", "predict_table")
    inputs, out = checked_table(file), new_folder()
    _, (model, flags, facts, dev, _) = open_run("rows", run)
    predict_table(inputs, model, flags, facts, dev, out)
    path = out / "predictions.csv"
    with open(path, newline="", encoding="utf-8") as lines:
        head, *rows = csv.reader(lines)
    first = sorted(range(len(head)), key=lambda k: not head[k].startswith(("predicted", "p(")))
    return [head[k] for k in first], [[row[k] for k in first] for row in rows[:SHOWN]], str(path)


def make_waves(path: Path = WAVES, count: int = 1500) -> None:
    """Writes an hourly series with days and weeks in it, unless there is a file already."""
    import math
    from datetime import datetime, timedelta

    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    draw = torch.Generator().manual_seed(0)
    noise = torch.randn(count, generator=draw).tolist()
    lines = ["time,load"]
    for hour, apart in enumerate(noise):
        load = 100 + 20 * math.sin(hour * math.pi / 12) + 8 * math.sin(hour * math.pi / 84) + apart
        lines.append(f"{datetime(2024, 1, 1) + timedelta(hours=hour):%Y-%m-%d %H:%M},{load:.2f}")
    path.write_text("\n".join(lines) + "\n")


def script_of(kind: Kind) -> Path:
    """The file of the command that makes a run."""
    return ROOT / kind.script
