"""Answers texts that begin with a prefix, with a trained T5 or a published one.

python t5/sample.py "sort: 41 7 23" "add: 17 + 5"        # the newest run
python t5/sample.py --weights t5-small "translate English to German: A dog runs."
python t5/sample.py "Thank you <extra_id_0> me to your party <extra_id_1> week."   # fills gaps
python t5/sample.py --file FILE                           # a text file, line by line
python t5/sample.py --interactive                         # what you type
python t5/sample.py                                       # examples of the test set
"""

import argparse
import contextlib
import io
import sys
from pathlib import Path

import torch

from common import cli, fail
from common.data.text import as_typed, in_words, interact, pad, read_lines
from common.device import Device
from common.folder import keep_what_is_there, make_folder, new_samples, open_run
from t5.corruption import give_back
from t5.data import Gaps, load
from t5.decoding import write
from t5.model import END, MODELS, START, T5, Text2Text, rebuild
from t5.published import read_published
from t5.tasks import prefix_of
from t5.vocabulary import SENTINEL, Vocabulary

TOGETHER = 64  # texts answered side by side
SHOWN = 10  # examples of the test set
FARTHEST = 64  # distance that is drawn
MADE = ("answers.txt", "positions.png", "attention.png")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The flags; see --help."""
    parser = cli.sample_parser("t5", __doc__)
    add, count = parser.add_argument, dict(type=cli.integer(1), metavar="N")
    add("texts", nargs="*", help="what to answer, each with its prefix")
    text = "published weights in place of a run: t5-small, t5-v1_1-base …, a folder or a file"
    add("--weights", metavar="NAME|PATH", help=text)
    add("--file", type=Path, help="answer the lines of this text file")
    add("--interactive", action="store_true", help="answer what is typed, line by line")
    add("--length", **count, help="tokens to write, at most (default: as in training, or 64)")
    add("--beam", **count, help="width of the beam; 1 is greedy (default: 1)")
    text = "alpha of the beam's scores (default: 0.6)"
    add("--length-penalty", type=cli.multiplier, metavar="A", help=text)
    text = "draw from the softmax: below 1 likelier, above 1 bolder"
    add("--temperature", type=cli.positive, metavar="T", help=text)
    add("--top-k", **count, help="draw from the K likeliest tokens alone")
    share = cli.number(lambda x: 0 < x <= 1, "a number above 0, at most 1")
    add("--top-p", type=share, metavar="P", help="draw from the likeliest that make up P")
    add("--seed", type=cli.integer(0), metavar="N", help="of what is drawn (default: 0)")
    args = parser.parse_args(argv)
    if bool(args.texts) + bool(args.file) + args.interactive > 1:
        fail("give texts, or --file, or --interactive: one of them")
    if args.interactive and args.out:
        fail("--interactive writes no files: leave --out out")
    if args.interactive and not sys.stdin:
        fail("--interactive reads the standard input, which is closed")
    if args.weights and args.checkpoint:
        fail("give --weights or --checkpoint, one of them")
    if args.weights and not (args.texts or args.file or args.interactive):
        fail("--weights have no test set: give texts to answer")
    if args.temperature and (args.beam or args.length_penalty):
        fail("--temperature draws tokens, --beam and --length-penalty search: use one or the other")
    for flag in ("top_k", "top_p", "seed"):
        if getattr(args, flag) is not None and not args.temperature:
            fail(f"--{flag.replace('_', '-')} is for draws: add --temperature 1")
    if args.length_penalty and (args.beam or 1) == 1:
        fail("--length-penalty compares targets: add --beam 4")
    return args


Opened = tuple[Text2Text, dict, cli.Flags | None, Device, Path, str]


def open_model(args: argparse.Namespace) -> Opened:
    """The network (of published weights or a checkpoint), its facts, flags, a device, a folder, and
    what to say of it."""
    if args.weights:
        found = read_published(args.weights, lambda *text: print(*text, file=sys.stderr))
        if found.vocabulary is None:
            fail(f"--weights {args.weights}: no tokenizer.json or spiece.model is beside the "
                 "weights, so no text can be read for them")  # fmt: skip
        alone = dict(device=args.device, quiet=True, fsdp=False, compile=False, accumulate=1)
        dev = Device(cli.Flags(**alone, clip=None, seed=0, precision="fp32"))
        name = Path(args.weights).resolve().stem if Path(args.weights).exists() else args.weights
        out = args.out or new_samples(Path("runs", "t5", f"weights-{name.replace('/', '-')}"))
        facts = dict(found.vocabulary, tasks=found.tasks, kind=found.kind)
        return found.build().to(dev.device).eval(), facts, None, dev, out, ""
    with contextlib.redirect_stdout(io.StringIO()) as said:
        checkpoint, flags, dev, out = open_run(args, "t5", MODELS)
    facts = checkpoint["dataset"] | {"kind": flags.objective or "tasks"}
    model = rebuild(facts["network"])
    model.load_state_dict(checkpoint["model"])
    return model.to(dev.device).eval(), facts, flags, dev, out, said.getvalue()


class Answers:
    """Answers texts with a network: `facts` are those of its vocabulary and tasks, and the `kind`
    of what it has learned ("tasks", or of a text "spans" or "prefix")."""

    def __init__(
        self,
        model: Text2Text,
        facts: dict,
        flags: cli.Flags | None,
        dev: Device,
        args: argparse.Namespace,
    ):
        self.model, self.dev, self.args = model, dev, args
        self.vocabulary = Vocabulary(facts)
        self.prefixes = [task["prefix"] for task in facts["tasks"].values()]
        self.kind = facts["kind"]
        self.longest = flags.length if flags else 512
        written = facts["longest"] * 5 // 4 + 1 if "longest" in facts else 64
        self.most = args.length or written
        self.generator = torch.Generator().manual_seed(args.seed or 0)
        self.said: set[str] = set()

    def note(self, text: str) -> None:
        """Says something once."""
        if text not in self.said:
            print(f"note: {text}", file=sys.stderr)
        self.said.add(text)

    def read(self, text: str) -> torch.Tensor:
        """The tokens of a text; says what is lost, and what the network hasn't learned. Raises
        ValueError for a sentinel that the vocabulary lacks."""
        encoded = self.vocabulary.encode_prompt(text, self.longest)
        if encoded.cut:
            self.note(f"a text has more than {self.longest} tokens: the rest is cut")
        if encoded.unknown:
            strange = in_words(sorted(set("".join(encoded.unknown))))
            self.note(f"characters the vocabulary lacks, read as <unk>: {strange}")
        gaps = SENTINEL.search(text)
        if self.kind == "tasks" and not gaps and prefix_of(text, self.prefixes) is None:
            known = ", ".join(f'"{prefix}:"' for prefix in self.prefixes[:8])
            more = ", …" if len(self.prefixes) > 8 else ""
            begin = text.partition(":")[0][:40] if ":" in text else text[:20]
            self.note(f'"{begin}" is no prefix the network was trained with; known are '
                      f"{known}{more}")  # fmt: skip
        elif self.kind == "spans" and not gaps:
            self.note("the network was trained to fill gaps alone (<extra_id_0>, …): it knows no "
                      "prefix")  # fmt: skip
        elif self.kind == "prefix" and gaps:
            self.note("the network was trained to go on with texts, not to fill gaps")
        return encoded.tokens[0]

    @torch.inference_mode()
    def answer(self, texts: list[str]) -> list[str]:
        """The answers, text by text; an empty text stays empty. Of gaps it is the text filled."""
        full = [i for i, text in enumerate(texts) if text]
        sources = {i: self.read(texts[i]) for i in full}
        order, found, args = (
            sorted(full, key=lambda i: len(sources[i])),
            [""] * len(texts),
            self.args,
        )
        draw = {}
        if args.temperature:
            draw = dict(temperature=args.temperature, top_k=args.top_k, top_p=args.top_p,
                        generator=self.generator)  # fmt: skip
        for begin in range(0, len(order), TOGETHER):
            some = order[begin : begin + TOGETHER]
            source = pad([sources[i] for i in some], self.dev)
            how = (args.beam or 1, args.length_penalty or 0.6)
            with self.dev.autocast():
                written = write(self.model, source, self.most, *how,
                                known=self.vocabulary.known, **draw)  # fmt: skip
            for i, tokens in zip(some, written, strict=True):
                if SENTINEL.search(texts[i]):
                    tokens = give_back(sources[i].tolist(), tokens, self.vocabulary.sentinels)
                found[i] = self.vocabulary.decode([tokens])[0]
        return found


def draw_positions(model: Text2Text, path: Path) -> None:
    """Draws what each head adds to the score of a token, by how far it stands away."""
    from matplotlib.figure import Figure

    from common.plot import save

    stacks = {"encoder": model.encoder} if isinstance(model, T5) else {}
    stacks["decoder"] = model.decoder
    figure = Figure(figsize=(4.6 * len(stacks), 3.4), layout="constrained")
    axes = figure.subplots(1, len(stacks), squeeze=False)[0]
    for axis, (name, stack) in zip(axes, stacks.items(), strict=True):
        device = stack.final_layer_norm.weight.device
        bias = stack.bias(2 * FARTHEST + 1, 2 * FARTHEST + 1, device)[:, FARTHEST]
        bias = bias.detach().float().cpu()
        last = 2 * FARTHEST + 1 if stack.bidirectional else FARTHEST + 1
        distances = torch.arange(-FARTHEST, FARTHEST + 1)[:last]
        for head, values in enumerate(bias[:, :last]):
            axis.plot(distances, values, label=f"head {head + 1}", linewidth=1)
        axis.set(title=name, xlabel="distance to the token that is looked at (tokens)",
                 ylabel="added to the score")  # fmt: skip
        axis.grid(alpha=0.3)
        if len(bias) <= 8:
            axis.legend(fontsize=7)
    save(figure, path)


@torch.inference_mode()
def draw_attention(
    model: T5, source: torch.Tensor, tokens: list[int], answers: Answers, path: Path
):
    """Draws where each token of an answer looks in its source, in all heads of all layers."""
    from common.plot import attention_grid

    layers = [block.layer[1].EncDecAttention for block in model.decoder.block]
    for layer in layers:
        layer.recording = True
    target = torch.tensor([[START, *tokens[:24]]], device=answers.dev.device)
    model(source[None].to(answers.dev.device), target)
    maps = torch.stack([layer.weights[0] for layer in layers])  # (layers, H, T, S)
    for layer in layers:
        layer.recording, layer.weights = False, None
    rows = answers.vocabulary.names([*tokens[:24], END][: target.shape[1]])
    attention_grid(maps, rows, answers.vocabulary.names(source.tolist()), path)


def of_test(flags: cli.Flags, dev: Device) -> tuple[list[str], list[str]]:
    """Examples of the test set, as texts, and what is wanted of each."""
    test = load(flags, dev)[2]
    vocabulary = Vocabulary(test.facts)
    if isinstance(test, Gaps):
        source, target, *_ = next(iter(test.in_order(SHOWN)))
        bare = [[t for t in row.tolist() if t not in (START, END)] for row in source]
        texts = target.tolist()
        if test.objective == "spans":
            texts = [
                give_back(a, b, vocabulary.sentinels) for a, b in zip(bare, texts, strict=True)
            ]
        return vocabulary.decode(bare), vocabulary.decode(texts)
    some = test.examples
    chosen = torch.randperm(len(some), generator=torch.Generator().manual_seed(0))[:SHOWN]
    some = some.take(chosen)
    return some.inputs, some.targets


@cli.command
def main(argv: list[str] | None = None) -> dict[str, str]:
    """Answers; returns the texts with their answers."""
    args = parse_args(argv)
    texts = read_lines(args.file) if args.file else as_typed(args.texts)
    if texts and not any(texts):
        fail("the texts are empty: there is nothing to answer")
    model, facts, flags, dev, out, said = open_model(args)
    answers = Answers(model, facts, flags, dev, args)
    if args.interactive:
        print(said, end="", file=sys.stderr)
        interact(lambda line: answers.answer([line])[0])
        return {}
    keep_what_is_there(out, *MADE)
    wanted: list[str] = []
    if not texts:
        texts, wanted = of_test(flags, dev)
    try:
        found = answers.answer(texts)
    except ValueError as error:
        fail(str(error))
    print(said, end="", file=sys.stderr)  # nothing but answers goes to stdout
    make_folder(out)
    (out / "answers.txt").write_text("\n".join(found) + "\n", "utf-8")
    draw_positions(model, out / "positions.png")
    made = ["answers.txt", "positions.png"]
    first = next(i for i, text in enumerate(texts) if text)
    if isinstance(model, T5) and not SENTINEL.search(texts[first]):
        source = answers.vocabulary.encode_prompt(texts[first], 40).tokens[0]
        tokens = answers.vocabulary.encode([found[first]], 24).tokens[0].tolist()[:-1]
        draw_attention(model, source, tokens, answers, out / "attention.png")
        made.append("attention.png")
    for i, (text, answer) in enumerate(zip(texts, found, strict=True)):
        print(f"{text} → {answer}" + (f"   (wanted: {wanted[i]})" if wanted else ""))
    print(f"wrote {', '.join(made)} in {out}", file=sys.stderr)
    return dict(zip(texts, found, strict=True))


if __name__ == "__main__":
    main()
