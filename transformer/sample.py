"""Translates with a trained Transformer, and shows where its heads look.

python transformer/sample.py "A dog runs." "Two men talk."   # sentences
python transformer/sample.py --file FILE                     # a text file, line by line
python transformer/sample.py --interactive                   # what you type
python transformer/sample.py                                 # sentences of the test part
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from common import cli, fail
from common.data.pairs import load_pairs
from common.data.text import (
    START,
    decode,
    decode_line,
    encode,
    losses,
    pad,
    read_lines,
    read_tokenizer,
)
from common.device import Device
from transformer.decoding import beam_search, generate
from transformer.model import MODELS, MultiHeadAttention, Transformer
from transformer.train import build, weights_to_use

TOGETHER = 64  # sentences translated side by side


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The flags; see --help."""
    parser = cli.sample_parser("transformer", __doc__)
    add = parser.add_argument
    add("sentences", nargs="*", help="what to translate")
    add("--file", type=Path, help="translate the lines of this text file")
    add("--interactive", action="store_true", help="translate what is typed, line by line")
    add("--beam", type=cli.whole(1), help="width of the beam; 1 is greedy (default: 4)")
    add("--length-penalty", type=cli.not_negative, help="alpha of the beam's scores (default: 0.6)")
    add("--temperature", type=cli.positive, help="draw each token from the softmax instead")
    add("--seed", type=cli.whole(0), default=0, help="of what is drawn (default: 0)")
    args = parser.parse_args(argv)
    if bool(args.sentences) + bool(args.file) + args.interactive > 1:
        fail("give sentences, or --file, or --interactive: one of them")
    if args.interactive and args.out:
        fail("--interactive writes no files: leave --out out")
    penalty = args.length_penalty
    if args.temperature and (args.beam or penalty is not None):
        fail("--temperature draws tokens, --beam and --length-penalty search: use one or the other")
    if penalty is not None and (args.beam == 1 or penalty >= 10):
        fail(f"--length-penalty {penalty:g} needs a --beam above 1, and to be below 10 itself")
    args.beam, args.length_penalty = args.beam or 4, 0.6 if penalty is None else penalty
    return args


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
        elif args.beam > 1:
            written = beam_search(model, source, args.beam, args.length_penalty, most=most)
        else:
            written = generate(model, source, most=most)
        for i, text in zip(some, decode(tokenizer, written), strict=True):
            found[full[i]] = text
    return found


@torch.no_grad()
def draw_attention(
    line: str, translation: str, model: Transformer, tokenizer, dev: Device, out: Path
) -> None:
    """Writes encoder.png, decoder.png and cross.png: the weights of all heads of all layers."""
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
        "encoder": ([layer.attention for layer in model.encoder], names[0], names[0]),
        "decoder": ([layer.attention for layer in model.decoder], names[1], names[1]),
        "cross": ([layer.cross for layer in model.decoder], names[1], names[0]),
    }
    for kind, (parts, rows, columns) in kinds.items():
        maps = torch.stack([part.weights[0] for part in parts])  # (layers, H, T, S)
        attention_grid(maps, rows, columns, out / f"{kind}.png")
    for layer in layers:
        layer.recording, layer.weights = False, None
    print(f"wrote {', '.join(f'{kind}.png' for kind in kinds)} of the first sentence in {out}")


def interact(answer: Callable[[str], str]) -> None:
    """Answers each line that is typed, until the end of the input."""
    print("type a sentence; Ctrl-D ends", file=sys.stderr)
    raw = getattr(sys.stdin, "buffer", None)
    for number, line in enumerate(raw or sys.stdin, 1):
        text = decode_line(line, "the input", number) if raw else line.strip()
        print(answer(text), flush=True)


@cli.command
def main(argv: list[str] | None = None) -> dict:
    """Translates; returns the inputs with their translations."""
    args = parse_args(argv)
    for number, sentence in enumerate(args.sentences, 1):
        decode_line(sentence.encode("utf-8", "surrogateescape"), "sentence", number)
    lines = [sentence.strip() for sentence in args.sentences]
    if args.sentences and not any(lines):
        fail("the sentences are empty: there is nothing to translate")
    lines = read_lines(args.file) if args.file else lines
    checkpoint, flags, dev = cli.open_run(args, "transformer", MODELS)
    flags.evaluate, facts = str(args.checkpoint), checkpoint["dataset"]
    tokenizer = read_tokenizer(facts["tokenizer"])
    model = build(flags, tokenizer.get_vocab_size())
    model.load_state_dict(weights_to_use(checkpoint, flags))
    model.to(dev.device).eval()
    print(f"{flags.model} trained on {flags.data}, from {args.checkpoint}", file=sys.stderr)

    def answer(lines: list[str]) -> list[str]:
        return translate(lines, model, tokenizer, facts["longest"] * 5 // 4, dev, args)

    if args.interactive:
        interact(lambda line: answer([line])[0])
        return {}
    wanted = []
    if not lines:
        test = load_pairs(flags, dev)[2]
        chosen = torch.randperm(len(test), generator=torch.Generator().manual_seed(0))[:10]
        lines, wanted = ([side[i] for i in chosen.tolist()] for side in test.lines)
    found = answer(lines)
    cli.make_folder(args.out)
    for i, (line, text) in enumerate(zip(lines, found, strict=True)):
        print(f"{line} → {text}" + (f"   (wanted: {wanted[i]})" if wanted else ""))
    (args.out / "translations.txt").write_text("\n".join(found) + "\n", "utf-8")
    first = next(i for i, line in enumerate(lines) if line)
    draw_attention(lines[first], found[first], model, tokenizer, dev, args.out)
    return dict(zip(lines, found, strict=True))


if __name__ == "__main__":
    main()
