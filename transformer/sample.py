"""Translates with a trained Transformer, and shows where its heads look.

python transformer/sample.py "A dog runs." "Two men talk."   # sentences
python transformer/sample.py --file FILE                     # a text file, line by line
python transformer/sample.py --interactive                   # what you type
python transformer/sample.py                                 # sentences of the test set
"""

import argparse
import contextlib
import sys
from functools import partial
from pathlib import Path

import torch

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
from transformer.decoding import generate, write
from transformer.model import MODELS, MultiHeadAttention, Transformer
from transformer.train import build, weights_to_use

TOGETHER = 64  # sentences translated side by side
MADE = ("translations.txt", "encoder.png", "decoder.png", "cross.png")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The flags; see --help."""
    parser = cli.sample_parser("transformer", __doc__)
    add = parser.add_argument
    kind, count = cli.not_negative, cli.integer(1)
    add("sentences", nargs="*", help="what to translate")
    add("--file", type=Path, help="translate the lines of this text file")
    add("--interactive", action="store_true", help="translate what is typed, line by line")
    add("--beam", type=count, metavar="N", help="width of the beam; 1 is greedy (default: 4)")
    add(
        "--length-penalty", type=kind, metavar="A", help="alpha of the beam's scores (default: 0.6)"
    )
    add("--temperature", type=cli.positive, metavar="T", help="draw from the softmax instead")
    add("--seed", type=cli.integer(0), metavar="N", help="of what is drawn (default: 0)")
    args = parser.parse_args(argv)
    if bool(args.sentences) + bool(args.file) + args.interactive > 1:
        fail("give sentences, or --file, or --interactive: one of them")
    if args.interactive and args.out:
        fail("--interactive writes no files: leave --out out")
    if args.interactive and not sys.stdin:
        fail("--interactive reads the standard input, which is closed")
    penalty = args.length_penalty
    if args.temperature and (args.beam or penalty is not None):
        fail("--temperature draws tokens, --beam and --length-penalty search: use one or the other")
    if args.seed is not None and not args.temperature:
        fail("--seed is for draws: add --temperature 1")
    if penalty is not None and (args.beam == 1 or penalty >= 10):
        fail(f"--length-penalty {penalty:g} needs a --beam above 1, and to be below 10 itself")
    penalty = 0.6 if penalty is None else penalty
    own = dict(beam=args.beam or 4, length_penalty=penalty, seed=args.seed or 0)
    return cli.Flags(**vars(args) | own)


def open_model(args: argparse.Namespace) -> tuple[Transformer, cli.Flags, dict, Device, Path]:
    """The trained network (averaged, if it was tested so), the flags of its training, facts of its
    data, a device, and the folder for what is made."""
    checkpoint, flags, dev, out = open_run(args, "transformer", MODELS)
    facts = checkpoint["dataset"]
    model = build(flags, read_tokenizer(facts["tokenizer"]).get_vocab_size())
    model.load_state_dict(weights_to_use(checkpoint, flags, partial(print, file=sys.stderr)))
    return model.to(dev.device).eval(), flags, facts, dev, out


@torch.no_grad()
def translate(
    lines: list[str],
    model: Transformer,
    tokenizer,
    most: int,
    dev: Device,
    args: argparse.Namespace,
) -> list[str]:
    """The translations, line by line; an empty line stays empty. Says what was lost."""
    full = [i for i, line in enumerate(lines) if line]
    found = [""] * len(lines)
    encoded = encode(tokenizer, [lines[i] for i in full], model.max_length)
    if note := losses([encoded], model.max_length):
        print(f"note: {note}", file=sys.stderr)
    generator = torch.Generator().manual_seed(args.seed)
    order = sorted(range(len(full)), key=lambda i: len(encoded.tokens[i]))
    for begin in range(0, len(order), TOGETHER):
        some = order[begin : begin + TOGETHER]
        source = pad([encoded.tokens[i] for i in some], dev)
        if args.temperature:
            written = generate(model, source, args.temperature, most=most, generator=generator)
        else:
            written = write(model, source, args.beam, args.length_penalty, most)
        for i, text in zip(some, decode(tokenizer, written), strict=True):
            found[full[i]] = text
    return found


@torch.no_grad()
def draw_attention(
    line: str, translation: str, model: Transformer, tokenizer, dev: Device, out: Path
) -> list[str]:
    """Writes the weights of all heads of all layers to three pictures; returns their names."""
    from common.plot import attention_grid

    source, target = (
        encode(tokenizer, [t], model.max_length).tokens[0] for t in (line, translation)
    )
    target = torch.cat([torch.tensor([START]), target[:-1]])
    layers = [m for m in model.modules() if isinstance(m, MultiHeadAttention)]
    for layer in layers:
        layer.recording = True
    model(source[None].to(dev.device), target[None].to(dev.device))
    names = [[tokenizer.id_to_token(i) for i in ids.tolist()] for ids in (source, target)]
    kinds = {
        "encoder.png": ([layer.attention for layer in model.encoder], names[0], names[0]),
        "decoder.png": ([layer.attention for layer in model.decoder], names[1], names[1]),
        "cross.png": ([layer.cross for layer in model.decoder], names[1], names[0]),
    }
    for name, (parts, rows, columns) in kinds.items():
        maps = torch.stack([part.weights[0] for part in parts])  # (layers, H, T, S)
        attention_grid(maps, rows, columns, out / name)
    for layer in layers:
        layer.recording, layer.weights = False, None
    return list(kinds)


@cli.command
def main(argv: list[str] | None = None) -> dict:
    """Translates; returns the inputs with their translations."""
    args = parse_args(argv)
    lines, wanted = read_sentences(args.sentences, args.file), []
    if args.out:
        keep_what_is_there(args.out, *MADE)
    with contextlib.redirect_stdout(sys.stderr):  # nothing but translations goes to stdout
        model, flags, facts, dev, out = open_model(args)
    tokenizer = read_tokenizer(facts["tokenizer"])

    def answer(lines: list[str]) -> list[str]:
        return translate(lines, model, tokenizer, facts["longest"] * 5 // 4, dev, args)

    if args.interactive:
        interact(lambda line: answer([line])[0])
        return {}
    if not lines:
        test = load_pairs(flags, dev)[2]
        chosen = torch.randperm(len(test), generator=torch.Generator().manual_seed(0))[:10]
        some = test.lines.take(chosen)
        lines, wanted = some.source, some.target
    make_folder(out)
    found = answer(lines)
    (out / "translations.txt").write_text("\n".join(found) + "\n", "utf-8")
    first = next(i for i, line in enumerate(lines) if line)
    pictures = draw_attention(lines[first], found[first], model, tokenizer, dev, out)
    for i, (line, text) in enumerate(zip(lines, found, strict=True)):
        print(f"{line} → {text}" + (f"   (wanted: {wanted[i]})" if wanted else ""))
    if not any(found):
        print("note: all translations are empty", file=sys.stderr)
    print(f"wrote {', '.join(pictures)} of the first sentence in {out}")
    return dict(zip(lines, found, strict=True))


if __name__ == "__main__":
    main()
