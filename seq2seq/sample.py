"""Translates with a trained network, and shows which words it looked at (Bahdanau, Fig. 3).

python seq2seq/sample.py "A dog runs." "Two men talk."   # sentences
python seq2seq/sample.py --file FILE                     # a text file, line by line
python seq2seq/sample.py --interactive                   # what you type
python seq2seq/sample.py                                 # sentences of the test set
python seq2seq/sample.py --temperature 0.7 --top-p 0.9 "A dog runs."    # drawn
"""

import argparse
import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from common import cli, fail
from common.data.pairs import load_pairs
from common.data.text import (
    START,
    decode,
    encode,
    interact,
    losses,
    pad,
    read_sentences,
    read_tokenizer,
)
from common.device import Device
from common.folder import keep_what_is_there, make_folder, open_run
from common.run import progress_bar
from seq2seq.decoding import draw, translate
from seq2seq.model import END, MODELS
from seq2seq.train import build

TOGETHER = 64  # sentences translated side by side
SHOWN, LONGEST = 4, 100  # sentences whose alignment is drawn, and the first tokens of each


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The flags; see --help."""
    parser = cli.sample_parser("seq2seq", __doc__)
    add, count = parser.add_argument, cli.integer(1)
    share = cli.number(lambda value: 0 < value <= 1, "a number above 0, to 1")
    penalty = cli.number(lambda value: 0 <= value < 10, "a number from 0 to below 10")
    add("sentences", nargs="*", help="what to translate")
    add("--file", type=Path, help="translate the lines of this text file")
    add("--interactive", action="store_true", help="translate what is typed, line by line")
    add("--beam", type=count, metavar="N", help="width of the beam; 1 is greedy (default: 4)")
    text = "alpha of the beam's scores (default: 0.6)"
    add("--length-penalty", type=penalty, metavar="A", help=text)
    add("--temperature", type=cli.positive, metavar="T", help="draw from the softmax instead")
    add("--top-k", type=count, metavar="K", help="draw from the K likeliest alone")
    add("--top-p", type=share, metavar="P", help="draw from the likeliest that make up P")
    add("--seed", type=cli.integer(0), metavar="N", help="of what is drawn (default: 0)")
    args = parser.parse_args(argv)
    if bool(args.sentences) + bool(args.file) + args.interactive > 1:
        fail("give sentences, or --file, or --interactive: one of them")
    if args.interactive and args.out:
        fail("--interactive writes no files: leave --out out")
    if args.interactive and not sys.stdin:
        fail("--interactive reads the standard input, which is closed")
    if args.temperature and (args.beam or args.length_penalty is not None):
        fail("--temperature draws tokens, --beam and --length-penalty search: use one or the other")
    if (args.top_k or args.top_p or args.seed is not None) and not args.temperature:
        fail("--top-k, --top-p and --seed are for draws: add --temperature 1")
    if args.beam == 1 and args.length_penalty is not None:
        fail("--length-penalty compares translations: it needs a --beam above 1")
    alpha = 0.6 if args.length_penalty is None else args.length_penalty
    own = dict(beam=args.beam or 4, length_penalty=alpha, seed=args.seed or 0)
    return cli.Flags(**vars(args) | own)


def open_model(args: argparse.Namespace) -> tuple[nn.Module, cli.Flags, dict, Device, Path]:
    """The trained network, the flags of its training, facts of its data, a device, and the folder
    for what is made."""
    checkpoint, flags, dev, out = open_run(args, "seq2seq", MODELS)
    facts = checkpoint["dataset"]
    model = build(flags, read_tokenizer(facts["tokenizer"]).get_vocab_size())
    model.load_state_dict(checkpoint["model"])
    return model.to(dev.device).eval(), flags, facts, dev, out


class Translator:
    """A trained network with its vocabulary."""

    def __init__(self, model: nn.Module, facts: dict, flags: cli.Flags, dev: Device):
        self.model, self.dev, self.max_length = model, dev, flags.max_length
        self.tokenizer, self.most = read_tokenizer(facts["tokenizer"]), facts["longest"] * 5 // 4

    def __call__(self, lines: Sequence[str], args: argparse.Namespace) -> list[list[int]]:
        """The tokens of the translations, line by line; none of an empty line. Says what is lost
        on the way."""
        full = [i for i, line in enumerate(lines) if line]
        found = [[] for _ in lines]
        encoded = encode(self.tokenizer, [lines[i] for i in full], self.max_length)
        if note := losses([encoded], self.max_length):
            print(f"note: {note}", file=sys.stderr)
        drawn = dict(temperature=args.temperature, top_k=args.top_k, top_p=args.top_p)
        drawn["generator"] = torch.Generator().manual_seed(args.seed)
        order = sorted(range(len(full)), key=lambda i: len(encoded.tokens[i]))
        parts = [order[i : i + TOGETHER] for i in range(0, len(order), TOGETHER)]
        for some in progress_bar(parts, self.dev, "translating", len(parts)):
            source = pad([encoded.tokens[i] for i in some], self.dev)
            if args.temperature:
                written = draw(self.model, source, self.most, **drawn)
            else:
                searched = args.beam, args.length_penalty
                written = translate(self.model, source, self.most, *searched)
            for i, tokens in zip(some, written, strict=True):
                found[full[i]] = tokens
        return found

    @torch.no_grad()
    def align(self, line: str, written: list[int]) -> tuple[Tensor, list[str], list[str]] | None:
        """The weights (T, S) with which each token that was written looked at the source, and both
        sides' tokens, at most `LONGEST`; None without attention."""
        (source,) = encode(self.tokenizer, [line], self.max_length).tokens
        target = torch.tensor([[START, *written]], device=self.dev.device)
        state = self.model.encode(source[None].to(self.dev.device))
        weights = self.model.decode(target, state)[1]
        if weights is None:
            return None
        sides = [*written, END][:LONGEST], source.tolist()[:LONGEST]
        names = [[*map(self.tokenizer.id_to_token, ids)] for ids in sides]
        return weights[0, :LONGEST, :LONGEST].float().cpu(), *names


def draw_alignments(found: Sequence[tuple[Tensor, list[str], list[str]]], path: Path) -> None:
    """Draws weights (T, S) side by side: rows are what is written, columns the source; bright is
    much, as in the paper."""
    from matplotlib.figure import Figure

    from common.plot import save

    widths, heights = ([1 + 0.16 * len(part[k]) for part in found] for k in (2, 1))
    figure = Figure(figsize=(sum(widths), max(heights)), layout="constrained")
    panels = figure.subplots(1, len(found), squeeze=False, width_ratios=widths)[0]
    for axis, (weights, rows, columns) in zip(panels, found, strict=True):
        axis.imshow(weights, cmap="gray", vmin=0, vmax=1)
        style = dict(fontsize=7, parse_math=False)
        axis.set_xticks(range(len(columns)), columns, rotation=90, **style)
        axis.set_yticks(range(len(rows)), rows, **style)
        axis.tick_params(length=0, top=True, labeltop=True, bottom=False, labelbottom=False)
    save(figure, path)


@cli.command
def main(argv: list[str] | None = None) -> dict:
    """Translates; returns the inputs with their translations."""
    args = parse_args(argv)
    lines, wanted = read_sentences(args.sentences, args.file), []
    if args.out:
        keep_what_is_there(args.out, "translations.txt", "alignment.png")
    with contextlib.redirect_stdout(sys.stderr):  # nothing but translations goes to stdout
        model, flags, facts, dev, out = open_model(args)
    translator = Translator(model, facts, flags, dev)
    if args.interactive:
        interact(lambda line: decode(translator.tokenizer, translator([line], args))[0])
        return {}
    if not lines:
        test = load_pairs(flags, dev)[2]
        chosen = torch.randperm(len(test), generator=torch.Generator().manual_seed(0))[:10]
        some = test.lines.take(chosen)
        lines, wanted = some.source, some.target
    make_folder(out)
    written = translator(lines, args)
    found = decode(translator.tokenizer, written)
    (out / "translations.txt").write_text("\n".join(found) + "\n", "utf-8")
    for i, (line, text) in enumerate(zip(lines, found, strict=True)):
        print(f"{line} → {text}" + (f"   (wanted: {wanted[i]})" if wanted else ""))
    if not any(found):
        print("note: all translations are empty", file=sys.stderr)
    first = [i for i, line in enumerate(lines) if line][:SHOWN]
    aligned = [translator.align(lines[i], written[i]) for i in first]
    if None in aligned:
        print(f"wrote translations.txt in {out}; {flags.model} has no attention to show")
    else:
        draw_alignments(aligned, out / "alignment.png")
        print(f"wrote translations.txt and alignment.png in {out}")
    return dict(zip(lines, found, strict=True))


if __name__ == "__main__":
    main()
