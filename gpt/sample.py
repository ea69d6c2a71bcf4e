"""Goes on from a prompt with a trained GPT or a published one, streamed as it is written.

python gpt/sample.py --prompt "The function" --count 3     # the newest run, three texts at once
python gpt/sample.py --weights gpt2 --prompt "Once upon"   # published weights; a folder, a file
python gpt/sample.py --file prompt.txt --stop "\\n\\n"       # the prompt is the text of a file
python gpt/sample.py --interactive                         # each line that is typed is a prompt
python gpt/sample.py "a fine film"                         # after finetune.py: classes of sentences
"""

import argparse
import contextlib
import io
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from common import cli, fail
from common.data.corpora import END, Vocabulary, read_text
from common.data.text import as_typed, check_prompt, in_words
from common.device import Device
from common.folder import keep_what_is_there, make_folder, new_samples, open_run
from gpt.model import MODELS, Classifier, LanguageModel
from gpt.published import build, read_published
from gpt.writing import write

SHOWN = 24  # tokens that are drawn
MADE = ("text.txt", "next.png", "attention.png")
WRITING = dict(length=200, count=1, temperature=0.7, top_k=None, top_p=None, stop="", seed=0)
ESCAPES = {"\\n": "\n", "\\t": "\t"}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The flags; see --help."""
    parser = cli.sample_parser("gpt", __doc__)
    add, count = parser.add_argument, dict(type=cli.integer(1), metavar="N")
    add("sentences", nargs="*", help="for a network of finetune.py: sentences to classify")
    text = "published weights in place of a run: gpt2, gpt2-medium …, a folder or a file"
    add("--weights", metavar="NAME|PATH", help=text)
    add("--prompt", help="the text to go on from (default: a document's beginning)")
    add("--file", type=Path, help="a text file that is the prompt")
    add("--interactive", action="store_true", help="go on from each line that is typed")
    add("--length", **count, help="tokens to write, at most (default: 200)")
    add("--count", **count, help="texts to write, side by side (default: 1)")
    add("--temperature", type=cli.not_negative, metavar="T",
        help="below 1 likelier, 0 the likeliest, above 1 bolder (default: 0.7)")  # fmt: skip
    add("--top-k", **count, help="draw from the K likeliest tokens alone (default: all)")
    share = cli.number(lambda x: 0 < x <= 1, "a number above 0, at most 1")
    add("--top-p", type=share, metavar="P",
        help="draw from the likeliest tokens that make up P (default: all)")  # fmt: skip
    add("--stop", metavar="TEXT", help=r"end before this text; \n is a line's end")
    add("--seed", type=cli.integer(0), metavar="N", help="of what is drawn (default: 0)")
    args = parser.parse_args(argv)
    given = args.prompt is not None, args.file is not None, args.interactive, bool(args.sentences)
    if sum(given) > 1:
        fail("give --prompt, or --file, or --interactive, or sentences to classify: one of them")
    if args.out and (args.interactive or args.sentences):
        what = "--interactive" if args.interactive else "classifying"
        fail(f"{what} writes no files: leave --out out")
    args.sentences = as_typed(args.sentences)
    if "" in args.sentences:
        fail(f"sentence {args.sentences.index('') + 1} is empty: it has no class")
    args.typed = [name for name in WRITING if getattr(args, name) is not None]
    vars(args).update({name: value for name, value in WRITING.items() if name not in args.typed})
    if args.temperature == 0 and (args.top_k or args.top_p):
        fail("--temperature 0 takes the likeliest token: --top-k and --top-p need a larger one")
    if args.data_dir:
        fail("--data-dir has no meaning here: no data set is read")
    if args.weights and args.checkpoint:
        fail("give --weights or --checkpoint, one of them")
    if args.weights and args.sentences:
        fail("--weights are of language models: give the text to go on from with --prompt")
    if args.interactive and not sys.stdin:
        fail("--interactive reads the standard input, which is closed")
    check_prompt(args.prompt)
    for escape, character in ESCAPES.items():
        args.stop = args.stop.replace(escape, character)
    return args


def open_model(args: argparse.Namespace) -> tuple[torch.nn.Module, dict, Device, Path]:
    """The network (of published weights or a checkpoint), its facts, a device, a folder."""
    if args.weights:
        found = read_published(args.weights, lambda *text: print(*text, file=sys.stderr))
        if found.vocabulary is None:
            fail(f"--weights {args.weights}: no tokenizer.json is beside the weights, so no prompt "
                 "can be read for them")  # fmt: skip
        alone = dict(device=args.device, quiet=True, fsdp=False, compile=False, accumulate=1)
        dev = Device(cli.Flags(**alone, clip=None, seed=args.seed, precision="fp32"))
        name = Path(args.weights).resolve().stem if Path(args.weights).exists() else args.weights
        root = Path("runs", "gpt", f"weights-{name.replace('/', '-')}")
        out = args.out or new_samples(root)
        keep_what_is_there(out, *MADE)
        return found.build().to(dev.device).eval(), found.vocabulary, dev, out
    with contextlib.redirect_stdout(io.StringIO()) as said:
        checkpoint, _, dev, out = open_run(args, "gpt", MODELS)
    facts = checkpoint["dataset"]
    model: torch.nn.Module = build(facts["network"])
    if "classes" in facts:
        model = Classifier(model, len(facts["classes"]))
    model.load_state_dict(checkpoint["model"])
    if "classes" in facts and not args.sentences:
        fail("the checkpoint is a classifier's: give sentences to classify")
    if "classes" in facts and args.typed:
        flag = f"--{args.typed[0].replace('_', '-')}"
        fail(f"{flag} has no meaning here: sentences are classified, and nothing is written")
    if args.sentences and "classes" not in facts:
        fail("the checkpoint is a language model's: give the text to go on from with --prompt")
    if not args.sentences:
        keep_what_is_there(out, *MADE)
    print(said.getvalue(), end="", file=sys.stderr)  # on stdout a text is alone
    return model.to(dev.device).eval(), facts, dev, out


def read_prompt(text: str | None, vocabulary: Vocabulary, context: int, dev: Device) -> Tensor:
    """The prompt's tokens (T,): at most as many as the network sees; says what is lost."""
    if text is None and vocabulary.end is not None:
        tokens = torch.tensor([vocabulary.end])
    else:
        text = "\n" if text is None else text
        if strange := vocabulary.unknown(text):
            note = f"training did not have these characters: {in_words(strange)}"
            print(f"note: {note}", file=sys.stderr)
        tokens = vocabulary.encode(text)
    if not len(tokens):
        fail("the prompt has no tokens: give a text to go on from with --prompt")
    if len(tokens) > context:
        print(f"note: the prompt has {len(tokens):,} tokens, of which the network sees the last "
              f"{context:,}: the rest is cut", file=sys.stderr)  # fmt: skip
        tokens = tokens[-context:]
    return tokens.to(dev.device)


class Printer:
    """Prints texts as they are written: the first at once, each other when its turn comes."""

    def __init__(self, prompt: str, count: int):
        self.prompt, self.count, self.parts = prompt, count, [[] for _ in range(count)]
        self.begin(0)

    def begin(self, number: int) -> None:
        """Prints what stands before a text."""
        if self.count > 1:
            print(f"--- {number + 1}", flush=True)
        print(self.prompt, end="", flush=True)

    def show(self, row: int, text: str) -> None:
        """Takes a piece of a text."""
        self.parts[row].append(text)
        if row == 0:
            print(text, end="", flush=True)

    def end(self) -> None:
        """Prints the other texts."""
        print()
        for row in range(1, self.count):
            self.begin(row)
            print("".join(self.parts[row]))


def go_on(
    text: str | None,
    model: LanguageModel,
    vocabulary: Vocabulary,
    dev: Device,
    args: argparse.Namespace,
) -> tuple[list[str], Tensor]:
    """Writes on from a prompt, on the terminal; returns the texts with it, and its tokens."""
    prompt = read_prompt(text, vocabulary, model.context, dev)
    seen = vocabulary.decode(prompt.tolist()).replace(END, "")
    printer = Printer(seen, args.count)
    how = dict(temperature=args.temperature, top_k=args.top_k, top_p=args.top_p, stop=args.stop)
    how |= dict(count=args.count, seed=args.seed, show=printer.show)
    written = write(model, vocabulary, prompt, args.length, **how)
    printer.end()
    return [seen + more for more in written], prompt


def names_of(tokens: Sequence[int], vocabulary: Vocabulary) -> list[str]:
    """What a person calls tokens: their text, with spaces and ends of lines that can be seen."""
    texts = (vocabulary.decode([token]).replace(END, "<end>") for token in tokens)
    return [text.replace(" ", "·").replace("\n", "↵") or "?" for text in texts]


@torch.inference_mode()
def draw_next(model: LanguageModel, vocabulary: Vocabulary, prompt: Tensor, path: Path) -> None:
    """Draws the likeliest tokens after the prompt, with their probabilities."""
    from matplotlib.figure import Figure

    from common.plot import save

    odds = model.step(prompt[None], None)[0][0].float().softmax(0).cpu()
    best = odds.topk(min(SHOWN, len(odds)))
    figure = Figure(figsize=(5, 0.24 * len(best.values) + 0.9), layout="constrained")
    axis = figure.subplots()
    places = range(len(best.values))
    axis.barh(places, best.values.tolist(), color="tab:blue", alpha=0.8)
    axis.set_yticks(places, names_of(best.indices.tolist(), vocabulary), parse_math=False)
    axis.invert_yaxis()
    axis.set_xlabel("probability of the next token")
    axis.grid(axis="x", alpha=0.3)
    save(figure, path)


@torch.inference_mode()
def draw_attention(
    model: LanguageModel, vocabulary: Vocabulary, tokens: Tensor, path: Path
) -> None:
    """Draws where each of the last tokens looks, a small picture a head: dark is much."""
    from common.plot import attention_grid

    for block in model.h:
        block.attn.recording = True
    model.features(tokens[None, -SHOWN:])
    maps = torch.stack([block.attn.weights[0] for block in model.h])  # (layers, H, T, T)
    for block in model.h:
        block.attn.recording, block.attn.weights = False, None
    names = names_of(tokens[-SHOWN:].tolist(), vocabulary)
    attention_grid(maps, names, names, path)


def interact(model: LanguageModel, vocabulary: Vocabulary, dev: Device, args) -> None:
    """Goes on from each line that is typed, until the end of the input."""
    print("type the beginning of a text; Ctrl-D ends", file=sys.stderr)
    for line in io.TextIOWrapper(sys.stdin.buffer, "utf-8", "replace"):
        if prompt := line.rstrip("\r\n"):
            go_on(prompt, model, vocabulary, dev, args)


@cli.command
@torch.inference_mode()
def main(argv: list[str] | None = None) -> list[str] | dict[str, str]:
    """Writes on, or classifies; returns the texts, or the classes of the sentences."""
    args = parse_args(argv)
    text = args.prompt if args.file is None else read_text(args.file)
    model, facts, dev, out = open_model(args)
    if "classes" in facts:
        from gpt.finetune import classify

        return classify(model, facts, args.sentences, dev)
    vocabulary = Vocabulary(facts)
    if args.interactive:
        interact(model, vocabulary, dev, args)
        return []
    texts, prompt = go_on(text, model, vocabulary, dev, args)
    make_folder(out)
    (out / "text.txt").write_text("\n---\n".join(texts) + "\n", "utf-8")
    draw_next(model, vocabulary, prompt, out / "next.png")
    tokens = prompt  # of a short one also what follows it
    if len(prompt) < SHOWN and texts[0]:
        tokens = vocabulary.encode(texts[0])[: min(SHOWN, model.context)].to(dev.device)
    draw_attention(model, vocabulary, tokens, out / "attention.png")
    print(f"wrote text.txt, next.png and attention.png in {out}", file=sys.stderr)
    return texts


if __name__ == "__main__":
    main()
