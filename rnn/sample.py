"""What a trained recurrent network says: text that goes on, classes, forecasts.

python rnn/sample.py --prompt "The " --temperature 0.7    # a language model writes on
python rnn/sample.py "a fine film" "a dull one"           # the class of sentences, and why
python rnn/sample.py word.wav                             # the word in a recording
python rnn/sample.py series.csv                           # what comes after a series' end
python rnn/sample.py                                      # of the test set
"""

import argparse
import contextlib
import io
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from common import cli, counted, fail
from common.data.corpora import Vocabulary
from common.data.text import check_prompt, in_words, read_lines
from common.device import Device
from common.folder import keep_what_is_there, make_folder, open_run
from rnn import sentences, series, speech
from rnn.model import MODELS
from rnn.recipes import MODULES
from rnn.train import build

SHOWN = 8  # examples of the test set
MADE = {  # by task
    "text": ["text.txt"],
    "sentences": ["words.png"],
    "series": ["forecasts.png", "forecast.csv"],
}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The flags; see --help."""
    parser = cli.sample_parser("rnn", __doc__)
    add, count = parser.add_argument, cli.integer(1)
    add("inputs", nargs="*", help="sentences; or WAV files; or a CSV file, as the network takes")
    add("--file", type=Path, help="the lines of this text file are the sentences")
    add("--prompt", help="the text to go on from (default: a new line)")
    add("--length", type=count, metavar="N", help="tokens to write (default: 1000)")
    add("--temperature", type=cli.not_negative, metavar="T",
        help="below 1 likelier, 0 the likeliest, above 1 bolder (default: 0.8)")  # fmt: skip
    text = "of what is drawn: text, or sentences of the test set (default: 0)"
    add("--seed", type=cli.integer(0), metavar="N", help=text)
    args = parser.parse_args(argv)
    if args.inputs and args.file:
        fail("give sentences, or --file: one of them")
    check_prompt(args.prompt)
    return args


def open_model(args: argparse.Namespace) -> tuple[nn.Module, cli.Flags, dict, Device, Path]:
    """The trained network, the flags of its training, facts of its data, a device, and the folder
    for what is made."""
    checkpoint, flags, dev, out = open_run(args, "rnn", MODELS)
    facts = checkpoint["dataset"]
    model = build(flags, facts)
    model.load_state_dict(checkpoint["model"])
    return model.to(dev.device).eval(), flags, facts, dev, out


# ---------------------------------------------------------------------- text


def pieces(tokens: Iterator[int], vocabulary: Vocabulary) -> Iterator[str]:
    """The text of tokens as it comes; of pieces that end inside a character more are awaited."""
    waiting: list[int] = []
    for token in tokens:
        waiting.append(token)
        text = vocabulary.decode(waiting)
        if vocabulary.tokenizer and text.endswith("\ufffd") and len(waiting) < 8:
            continue
        yield text
        waiting = []
    if waiting:
        yield vocabulary.decode(waiting)


def write(model: nn.Module, facts: dict, dev: Device, args: argparse.Namespace) -> str:
    """Goes on from the prompt, on the terminal as it is written; returns the whole text."""
    vocabulary = Vocabulary(facts)
    prompt = "\n" if args.prompt is None else args.prompt
    if strange := vocabulary.unknown(prompt):
        note = f"{counted(len(strange), 'character')} that training has not: {in_words(strange)}"
        print(f"note: in the prompt {note}", file=sys.stderr)
    temperature = 0.8 if args.temperature is None else args.temperature
    generator = torch.Generator().manual_seed(args.seed or 0)
    start = vocabulary.encode(prompt).to(dev.device)
    how = temperature, vocabulary.never, generator
    written = [prompt]
    print(prompt, end="", flush=True)
    for piece in pieces(model.generate(start, args.length or 1000, *how), vocabulary):
        print(piece, end="", flush=True)
        written.append(piece)
    print()
    return "".join(written)


# ---------------------------------------------------------------------- classes


def say(notes: Sequence[str]) -> None:
    """Prints what a person should know of the inputs."""
    for note in notes:
        print(f"note: {note}", file=sys.stderr)


def tell(names: Sequence[str], outputs: Tensor, wanted: Sequence[str], classes: list[str]) -> dict:
    """Prints the likeliest classes of each; returns the first by name."""
    odds = outputs.float().softmax(1).cpu()
    for i, name in enumerate(names):
        best = odds[i].topk(min(3, len(classes)))
        text = ", ".join(
            f"{classes[k]} {p:.1%}" for p, k in zip(*map(Tensor.tolist, best), strict=True)
        )
        print(f"{name}: {text}" + (f"   (wanted: {wanted[i]})" if wanted else ""))
    return {name: classes[k] for name, k in zip(names, odds.argmax(1).tolist(), strict=True)}


def draw_weights(words: Sequence[Sequence[str]], weights: Tensor, heads: Sequence[str], path: Path):
    """Draws the words of sentences, the darker the more weight they have in the answer."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from common.plot import save

    figure = Figure(figsize=(9, 0.5 * len(words) + 0.2))
    axis = figure.add_axes((0, 0, 1, 1))
    axis.set_axis_off()
    axis.set(xlim=(0, 100), ylim=(len(words), 0))
    renderer = FigureCanvasAgg(figure).get_renderer()
    for row, (some, head) in enumerate(zip(words, heads, strict=True)):
        axis.text(1, row + 0.5, head[:20], fontsize=9, va="center", weight="bold", parse_math=False)
        left, most = 16.0, float(weights[row, : len(some)].max())
        for word, weight in zip(some, weights[row].tolist(), strict=False):
            share = weight / max(most, 1e-9)
            box = dict(
                facecolor=(1 - 0.7 * share, 1 - 0.45 * share, 1.0), edgecolor="none", pad=1.5
            )
            text = axis.text(
                left, row + 0.5, word, fontsize=9, va="center", bbox=box, parse_math=False
            )
            width = text.get_window_extent(renderer).width / figure.dpi / 9 * 100
            if left + width > 97:
                text.set_text("…")
                break
            left += width + 0.9
    save(figure, path)


def classify(
    model: nn.Module,
    facts: dict,
    flags: cli.Flags,
    dev: Device,
    args: argparse.Namespace,
    out: Path,
) -> dict:
    """The classes of sentences or recordings, of the user's or of the test set."""
    words, wanted, classes = None, [], facts["classes"]
    given = [str(text) for text in args.inputs]
    if args.file:
        given = [line for line in read_lines(args.file) if line]
    if given and facts["task"] == "sentences":
        inputs, lengths, words = sentences.encode(given, facts)
        say(sentences.remarks(given, facts))
        names = given
    elif given:
        features, notes = zip(*(speech.read_recording(path, facts) for path in given), strict=True)
        say([note for some in notes for note in some])
        lengths = torch.tensor(list(map(len, features)))
        inputs, names = nn.utils.rnn.pad_sequence(features, batch_first=True), given
    else:
        test = MODULES[facts["task"]].load(flags, dev)[2]
        order = torch.randperm(len(test), generator=torch.Generator().manual_seed(args.seed or 0))
        some = order[:SHOWN]
        inputs, lengths, targets = test.examples(some)
        names = [test.names[i] for i in some.tolist()]
        wanted = [classes[k] for k in targets.tolist()]
        if facts["task"] == "sentences":
            words = sentences.encode(names, facts)[2]
    outputs, _ = model(inputs.to(dev.device), lengths)
    found = tell(names, outputs, wanted, classes)
    if words and model.weights is not None:
        make_folder(out)
        heads = [found[name] for name in names]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of letters that the font lacks
            draw_weights(
                words[:20], model.weights[:20].float().cpu(), heads[:20], out / "words.png"
            )
        print(f"wrote {out / 'words.png'}: the weights of the words")
    return found


# ---------------------------------------------------------------------- forecasts


def forecast(
    model: nn.Module,
    facts: dict,
    flags: cli.Flags,
    dev: Device,
    args: argparse.Namespace,
    out: Path,
) -> dict:
    """What follows the end of a series; without a file, windows of the test set with the truth."""
    panels, table = [], {}
    if args.inputs:
        ahead = series.last_window(args.inputs[0], facts, flags.time_column)
        say(ahead.notes)
        outputs = model(ahead.inputs.to(dev.device), ahead.lengths)[0][0].cpu()
        values = series.to_units(outputs, ahead.past[-1:], facts)
        panels.append((ahead.times, ahead.past, None, values))
        for i, name in enumerate(facts["targets"]):
            table[name] = dict(
                zip(ahead.times[len(ahead.past) :], values[:, i].tolist(), strict=True)
            )
    else:
        test = series.load(flags, dev)[2]
        places = torch.linspace(0, len(test) - 1, min(4, len(test))).long()
        outputs = model(*test.examples(places)[:2])[0].cpu()
        for i, output in zip(places.tolist(), outputs, strict=True):
            times, past, truth = test.in_units(i)
            panels.append((times, past, truth, series.to_units(output, past[-1:], facts)))
    make_folder(out)
    draw_forecasts(panels, facts["targets"], out / "forecasts.png")
    for name, values in table.items():
        for time, value in values.items():
            print(f"{time}: {name} {value:.6g}")
    if table:
        import csv

        with open(out / "forecast.csv", "w", newline="", encoding="utf-8") as file:
            rows = csv.writer(file)
            rows.writerow(["time", *table])
            columns = [list(values.values()) for values in table.values()]
            rows.writerows(zip(next(iter(table.values())), *columns, strict=True))
    print(f"wrote {'forecast.csv and ' if table else ''}forecasts.png in {out}")
    return table


def draw_forecasts(panels: Sequence[tuple], names: Sequence[str], path: Path) -> None:
    """Draws the end of the past, the truth where it is known, and the forecast of the first
    target."""
    from matplotlib.figure import Figure

    from common.plot import save

    figure = Figure(figsize=(4.5 * min(2, len(panels)), 2.8 * -(-len(panels) // 2)),
                    layout="constrained")  # fmt: skip
    axes = figure.subplots(-(-len(panels) // 2), min(2, len(panels)), squeeze=False).flat
    for axis, (times, past, truth, values) in zip(axes, panels, strict=False):
        shown = min(len(past), 3 * len(values))
        past, times = past[-shown:], times[len(past) - shown :]
        steps = range(len(times))
        axis.plot(steps[: len(past)], past[:, 0], color="0.5", label="seen")
        if truth is not None:
            axis.plot(steps[len(past) :], truth[:, 0], color="black", label="truth")
        axis.plot(steps[len(past) :], values[:, 0], color="tab:red", label="forecast")
        ticks = [0, len(past)]
        axis.set_xticks(ticks, [times[i] for i in ticks], fontsize=7, parse_math=False)
        axis.set_ylabel(names[0][:40], parse_math=False)
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize=8)
    save(figure, path)


def add_up(model: nn.Module, flags: cli.Flags, dev: Device) -> dict:
    """A few sums of the test set, as told and as they are."""
    test = MODULES["adding"].load(flags, dev)[2]
    pairs, lengths, sums = next(iter(test.batches(SHOWN)))
    told = model(pairs, lengths)[0].flatten().tolist()
    found = dict(zip(told, sums.flatten().tolist(), strict=True))
    for answer, truth in list(found.items())[:SHOWN]:
        print(f"told {answer:.3f}, right is {truth:.3f}")
    return found


@cli.command
@torch.inference_mode()
def main(argv: list[str] | None = None) -> dict | str:
    """Writes, classifies or forecasts; returns what was found."""
    args = parse_args(argv)
    with contextlib.redirect_stdout(io.StringIO()) as said:
        model, flags, facts, dev, out = open_model(args)
    task = facts["task"]
    for flag, wanted in (("prompt", ["text"]), ("length", ["text"]), ("temperature", ["text"]),
                         ("file", ["sentences"])):  # fmt: skip
        if getattr(args, flag) is not None and task not in wanted:
            fail(f"--{flag} means nothing here: the checkpoint's network is for {task}")
    if args.seed is not None and (args.inputs or args.file or task in ("series", "adding")):
        fail("--seed means nothing here: nothing is drawn")
    if task in ("text", "adding") and args.inputs:
        hint = ": give --prompt" if task == "text" else ""
        fail(f"the checkpoint's network is for {task} and takes no inputs{hint}")
    if task == "series" and len(args.inputs) > 1:
        fail("one series at a time: give one CSV file")
    keep_what_is_there(out, *MADE.get(task, []))
    # On stdout a language model's text is alone.
    print(said.getvalue(), end="", file=sys.stderr if task == "text" else sys.stdout)
    if task == "text":
        text = write(model, facts, dev, args)
        make_folder(out)
        (out / "text.txt").write_text(text + "\n", "utf-8")
        print(f"wrote {out / 'text.txt'}", file=sys.stderr)
        return text
    if task == "adding":
        return add_up(model, flags, dev)
    answer = forecast if task == "series" else classify
    return answer(model, facts, flags, dev, args, out)


if __name__ == "__main__":
    main()
