"""What a trained network makes of sentences: hidden words, classes, attention, what is near.

python bert/sample.py "The [MASK] of a function is a [MASK]."     # the newest run fills the gaps
python bert/sample.py --weights bert-base-uncased "Paris is the [MASK] of France."
python bert/sample.py "a fine film" "a dull one"                  # after finetune.py: their classes
python bert/sample.py "A man plays." "A man is playing."          # of pairs: two by two
python bert/sample.py --near "Lists are mutable." --file FILE     # the lines most like it
python bert/sample.py --file FILE                                 # a text file, line by line
python bert/sample.py                                             # sentences of the test set
"""

import argparse
import contextlib
import io
import random
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bert import finetune, names, tasks
from bert.data import Vocabulary, read_parts
from bert.model import FAMILIES, MODELS, averaged
from bert.published import read_weights
from common import cli, fail
from common.data.corpora import CORPORA
from common.data.text import as_typed, read_lines
from common.device import Device
from common.folder import keep_what_is_there, make_folder, new_samples, open_run

MASK, SHOWN, TESTED = "[MASK]", 24, 8  # what a user writes; tokens drawn; sentences without input
FILLS = ("cls.predictions", "lm_head", "predictions", "generator", "lm_loss")  # layers, if new
AT_ONCE, MOST = 64, 2000  # texts read side by side; sentences looked through for near ones


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The flags; see --help."""
    parser = cli.sample_parser("bert", __doc__)
    add, count = parser.add_argument, dict(type=cli.integer(1), metavar="N")
    add("sentences", nargs="*", help=f"texts; {MASK} stands for what is to be told")
    add("--file", type=Path, help="a text file, each line of which is a text")
    text = "published weights in place of a run: bert-base-uncased …, a folder or a file"
    add("--weights", metavar="NAME|PATH", help=text)
    text = "look for what is most like this sentence in --file, or in the test set"
    add("--near", metavar="TEXT", help=text)
    add("--top", **count, default=5, help="how many answers to show (default: 5)")
    args = parser.parse_args(argv)
    if args.weights and args.checkpoint:
        fail("give --weights or --checkpoint, one of them")
    if args.sentences and (args.file or args.near):
        fail(f"give sentences, or {'--near' if args.near else '--file'}: one of them")
    texts = as_typed(args.sentences)
    if "" in texts:
        fail(f"sentence {texts.index('') + 1} is empty: there is nothing to tell")
    if args.near is not None and not as_typed([args.near])[0]:
        fail("--near is empty: give a sentence")
    if args.weights and not (texts or args.file):
        fail(f"give a sentence with {MASK}, or --file: to --weights belongs no test set")
    return cli.Flags(**vars(args) | {"sentences": texts})


def open_model(
    args: argparse.Namespace,
) -> tuple[nn.Module, dict, Device, Path, argparse.Namespace | None]:
    """The network (of published weights or a checkpoint), its facts, a device, a folder, and the
    flags of its training."""
    if args.weights:
        found = read_weights(args.weights, lambda *text: print(*text, file=sys.stderr))
        if found.vocabulary is None:
            fail(f"--weights {args.weights}: no tokenizer is beside the weights, so no text can be "
                 "read for them")  # fmt: skip
        alone = dict(device=args.device, quiet=True, fsdp=False, compile=False, accumulate=1)
        dev = Device(cli.Flags(**alone, clip=None, seed=0, precision="fp32"))
        path = Path(args.weights)
        name = path.resolve().stem if path.exists() else args.weights.replace("/", "-")
        out = args.out or new_samples(Path("runs", "bert", f"weights-{name}"))
        model = found.build()
        new = [name for name in found.load(model) if name.startswith(FILLS)]
        facts = {**found.vocabulary, "network": found.network, "headless": ", ".join(new)}
        return model.to(dev.device).eval(), facts, dev, out, None
    with contextlib.redirect_stdout(io.StringIO()) as said:
        checkpoint, flags, dev, out = open_run(args, "bert", MODELS)
    facts = checkpoint["dataset"]
    tuned = "metrics" in facts
    model = finetune.build(facts) if tuned else names.build(facts["network"])
    model.load_state_dict(checkpoint["model"])
    flags = flags.but(said=said.getvalue())  # nothing but answers goes to stdout
    return model.to(dev.device).eval(), facts, dev, out, flags


def read(text: str, facts: dict) -> tuple[Tensor, Tensor]:
    """A text, in which [MASK] may stand, as tokens and segments (T,), special ones with them."""
    vocabulary, family = Vocabulary(facts), FAMILIES[facts["family"]]
    most = facts["network"]["context"] or 512
    ids = vocabulary.encode_with_masks(text.replace(MASK, family.roles["mask"]))
    example = family.join(ids, None, vocabulary.special, most)
    if len(example.tokens) < len(
        family.join(ids, None, vocabulary.special, len(ids) + most).tokens
    ):
        print(f"note: a text has more tokens than the context of {most:,}: its end is cut",
              file=sys.stderr)  # fmt: skip
    return torch.tensor(example.tokens), torch.tensor(example.segments)


# ---------------------------------------------------------------------- hidden words


@torch.inference_mode()
def fill(
    texts: Sequence[str], model: nn.Module, facts: dict, dev: Device, top: int
) -> dict[str, list[list[tuple[str, float]]]]:
    """Prints, and returns by text, the likeliest tokens for each [MASK], with probabilities."""
    vocabulary, found = Vocabulary(facts), {}
    special = vocabulary.special
    never = sorted({*special.all, *range(vocabulary.known, special.vocab_size)})
    for text in texts:
        tokens, segments = read(text, facts)
        places = (tokens == special.mask).nonzero().flatten()
        if not len(places):
            fail(f"{text!r} has no {MASK} that the network could tell: write one for a word")
        inputs = (part[None].to(dev.device) for part in (tokens, segments))
        tokens_in, segments_in = inputs
        logits = model.fill(tokens_in, places.to(dev.device), segments_in).float()
        logits[:, never] = -torch.inf
        best = logits.softmax(1).cpu().topk(min(top, vocabulary.known - len(special.all)))
        found[text] = [
            list(zip(vocabulary.names(ids.tolist()), odds.tolist(), strict=True))
            for odds, ids in zip(best.values, best.indices, strict=True)
        ]
        whole = tokens.clone()
        whole[places] = best.indices[:, 0]
        print(vocabulary.decode([t for t in whole.tolist() if t not in special.all]))
        for number, answers in enumerate(found[text], 1):
            print(f"  {number}: {', '.join(f'{word} {odds:.1%}' for word, odds in answers)}")
    return found


def hide_a_word(sentences: Sequence[str], count: int) -> list[str]:
    """Some sentences with one word of each hidden, always the same ones."""
    draw = random.Random(0)
    fit = [s for s in sentences if 5 <= len(s.split()) <= 20]
    chosen = draw.sample(fit, min(count, len(fit))) or list(sentences[:count])
    hidden = []
    for sentence in chosen:
        words = sentence.split()
        place = draw.randrange(len(words))
        end = words[place][len(words[place].rstrip(".,;:!?")) :]
        hidden.append(" ".join([*words[:place], MASK + end, *words[place + 1 :]]))
    return hidden


def draw_fill(answers: dict[str, list[list[tuple[str, float]]]], path: Path) -> None:
    """Draws the probabilities of the tokens for each [MASK] of the first text."""
    from matplotlib.figure import Figure

    from common.plot import save

    text, gaps = next(iter(answers.items()))
    gaps = gaps[:4]
    figure = Figure(figsize=(3.2 * len(gaps) + 0.4, 0.28 * len(gaps[0]) + 1), layout="constrained")
    for axis, gap in zip(figure.subplots(1, len(gaps), squeeze=False)[0], gaps, strict=True):
        words, odds = zip(*gap, strict=True)
        axis.barh(range(len(words)), odds, color="tab:blue", alpha=0.8)
        axis.set_yticks(range(len(words)), words, parse_math=False)
        axis.invert_yaxis()
        axis.set_xlabel("probability")
        axis.grid(axis="x", alpha=0.3)
    figure.suptitle(text[:90], fontsize=9, parse_math=False)
    save(figure, path)


@torch.inference_mode()
def draw_attention(
    tokens: Tensor, segments: Tensor, model: nn.Module, facts: dict, dev: Device, path: Path
) -> None:
    """Draws where each of the first tokens (T,) of an input looks, a small picture a head: dark is
    much. The network reads all of it; a pair's two texts are in it as they were classified."""
    from common.plot import attention_grid

    maps: list[Tensor] = []
    model.features(tokens[None].to(dev.device), segments[None].to(dev.device), maps)
    labels = Vocabulary(facts).names(tokens[:SHOWN].tolist())
    shown = torch.stack([layer[0, :, :SHOWN, :SHOWN] for layer in maps])
    attention_grid(shown, labels, labels, path)


# ---------------------------------------------------------------------- near sentences


@torch.inference_mode()
def vectors(texts: Sequence[str], model: nn.Module, facts: dict, dev: Device) -> Tensor:
    """Of each text the mean of what the network makes of its tokens, of length 1: (N, D)."""
    found = []
    for begin in range(0, len(texts), AT_ONCE):
        inputs = [read(text, facts) for text in texts[begin : begin + AT_ONCE]]
        tokens, segments = tasks.padded(inputs, facts, dev)
        features = model.features(tokens, segments)
        found.append(F.normalize(averaged(features.float(), tokens != model.pad), dim=1))
    return torch.cat(found)


def near(
    text: str, texts: Sequence[str], model: nn.Module, facts: dict, dev: Device, top: int
) -> dict[str, float]:
    """Prints, and returns with their cosines, the texts whose vectors are nearest to that of one.

    What all texts have in common is taken off first: without that all of them are near.
    """
    if len(texts) > MOST:
        print(f"note: of {len(texts):,} sentences the first {MOST:,} are looked through",
              file=sys.stderr)  # fmt: skip
    texts = [other for other in dict.fromkeys(texts) if other != text][:MOST]
    if not texts:
        fail("there is no other sentence to compare with")
    everything = vectors([text, *texts], model, facts, dev)
    everything = F.normalize(everything - everything[1:].mean(0), dim=1)
    cosines = (everything[1:] @ everything[0]).cpu()
    best = cosines.topk(min(top, len(texts)))
    found = {texts[i]: c for i, c in zip(best.indices.tolist(), best.values.tolist(), strict=True)}
    for other, cosine in found.items():
        print(f"{cosine:.3f}  {other}")
    return found


# ---------------------------------------------------------------------- the command


def test_texts(flags: argparse.Namespace) -> list[str]:
    """The sentences of the test set that a network of train.py was measured on."""
    if flags.data.partition(":")[0] not in CORPORA:
        fail("give sentences, or --file")
    return [sentence for document in read_parts(flags)[0]["test"] for sentence in document]


def to_classify(
    texts: list[str], facts: dict, flags: argparse.Namespace
) -> tuple[list[str], list[str] | None]:
    """Sentences, or pairs, which are given two by two; without any some of the test set."""
    if not texts:
        source = tasks.SETS[flags.data.partition(":")[0]](flags)
        some = source.parts["test"].take(torch.arange(min(TESTED, len(source.parts["test"]))))
        return some.first, some.second
    if not facts["pairs"]:
        return texts, None
    if len(texts) % 2:
        fail(f"the network is for pairs of texts: give two by two, not {len(texts)}")
    return texts[::2], texts[1::2]


@cli.command
def main(argv: list[str] | None = None) -> dict:
    """Fills gaps, classifies, or finds near sentences; returns the answers by text."""
    args = parse_args(argv)
    texts = args.sentences or (
        [line for line in read_lines(args.file) if line] if args.file else []
    )
    model, facts, dev, out, flags = open_model(args)
    if args.near:
        return near(args.near, texts or test_texts(flags), model, facts, dev, args.top)
    tuned = "metrics" in facts
    made = ["attention.png"] if tuned else ["fill.png", "attention.png"]
    keep_what_is_there(out, *made)
    if tuned:
        first, second = to_classify(texts, facts, flags)
        answers = finetune.classify(model, facts, first, second, dev)
        (shown,), _ = tasks.encode(first[:1], second and second[:1], facts)
    else:
        if facts.get("headless"):
            fail(f"--weights {args.weights} can't fill gaps: they have no layer for that "
                 f"({facts['headless']}); look for near sentences with --near")  # fmt: skip
        texts = texts or hide_a_word(test_texts(flags), TESTED)
        answers = fill(texts, model, facts, dev, args.top)
        shown = read(texts[0], facts)
    make_folder(out)
    if not tuned:
        draw_fill(answers, out / "fill.png")
    draw_attention(*shown, model, facts, dev, out / "attention.png")
    print(flags.said if flags else "", end="", file=sys.stderr)
    print(f"wrote {' and '.join(made)} of the first text in {out}", file=sys.stderr)
    return answers


if __name__ == "__main__":
    main()
