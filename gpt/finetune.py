"""Fine-tunes a GPT on sentences with classes, as GPT-1's paper does (Sec. 3.2, Eq. 5).

python gpt/finetune.py --weights runs/gpt/RUN --data sst2 --data-dir PATH
python gpt/finetune.py --weights openai-gpt --data sentences:PATH      # your own texts with labels
python gpt/finetune.py --data sst2 --data-dir PATH                     # from the beginning
python gpt/sample.py "a fine film" "a dull one"                        # what it says

A sentence is read between two new tokens, <start> and <extract>; a linear layer on what the network
makes of the last predicts the class. The next token is still predicted, too, with a weight of a
half.
"""

import argparse
import sys
from collections.abc import Iterable, Iterator, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from common import cli, counted, fail
from common.data.batches import Batches, Draw
from common.data.classes import check_classes, known_classes
from common.data.corpora import CORPORA, Vocabulary, make_vocabulary
from common.data.sentences import SETS
from common.data.sources import named, open_source, say_parts
from common.device import Device
from common.run import Run
from common.schedule import warmup_and_line
from gpt.model import MODELS, Classifier
from gpt.published import Found, build, describe, model_of
from gpt.recipes import SIZES
from gpt.train import start

# fmt: off
QUICK = dict(model="gpt_tiny", data="sst2", epochs=4, val=500, batch_size=32, lr=1e-3, dropout=0.1,
             clip=1.0)
PAPER = dict(model="gpt1", data="sst2", epochs=3, val=500, batch_size=32, lr=6.25e-5, dropout=0.1,
             clip=1.0)  # Sec. 4.1
# fmt: on
DATA = [f"{name}:PATH" if name == "sentences" else name for name in SETS]
FIXED = [*SIZES, "vocab_size", "weights"]  # by a checkpoint
SPECIAL = 2  # <start> and <extract>, the last rows of the embedding


def recipe(model: str, data: str | None, paper: bool, **given) -> tuple[dict, dict]:
    """The defaults, and the flags that mean nothing."""
    if (data or "").partition(":")[0] in CORPORA:
        fail(f"{data} is a text without classes: use gpt/train.py, or --weights of a run with it")
    if not (weights := given.get("weights")):
        nothing = {} if model.startswith("gpt3") else {"window": f"all layers of {model} see all"}
        return {}, nothing
    whose = "the weights have sizes and a vocabulary of their own"
    name = model_of(weights)
    own = {"model": name, "lr": 6.25e-5 if name in ("gpt1", "gpt3_small") else 1e-4}
    return own, dict.fromkeys([*SIZES, "vocab_size"], whose)


def parse_args(argv: list[str] | None = None) -> cli.Flags:
    """The flags; see --help."""
    parser = cli.Parser("gpt", __doc__, QUICK, PAPER, MODELS, DATA, recipe, FIXED, "finetune.py")
    add, count = parser.add_argument, dict(type=cli.integer(1), metavar="N")
    text = "start from published weights, a folder, a file, or a run of train.py"
    add("--weights", metavar="NAME|PATH", none="no", group="training", help=text)
    text = "without --weights: pieces of bytes made of the training set, at most so many"
    add("--vocab-size", **count, group="data", default=1024, help=text)
    column = dict(metavar="COLUMN", group="data", none="found by its name")
    add("--text-column", **column, help="of a table: its name, or its number from 1")
    add("--label-column", **column, help="the same, of the classes")
    for name in SIZES:
        add(f"--{name.replace('_', '-')}", **count, none="the model's", help="as of train.py")
    add("--dropout", type=cli.share, metavar="P", default=0.1, help="of values left out")
    text = "weight of the language model's loss (lambda, Eq. 5)"
    add("--auxiliary", type=cli.not_negative, metavar="L", default=0.5, help=text)
    text = "what matrices shrink by in a step, times the rate"
    add("--weight-decay", type=cli.not_negative, metavar="L", default=0.01, help=text)
    kind = cli.number(lambda x: 0 < x < 1, "a number between 0 and 1")
    text = "share of the steps in which the rate rises"
    add("--warmup", type=kind, metavar="S", default=0.002, help=text)
    return parser.parse_args(argv)


class Sentences:
    """One part of labelled sentences, as tokens between <start> and <extract>."""

    def __init__(self, part: str, texts: Sequence[str], labels: Tensor, facts: dict, dev: Device):
        self.part, self.labels, self.facts, self.dev = part, labels.to(dev.device), facts, dev
        self.tokens, self.cut = encode(texts, facts)

    def __len__(self) -> int:
        return len(self.tokens)

    def batches(self, batch_size: int, train: bool = False) -> Batches:
        """Tokens (B, T), padded with zeros at the end, lengths (B,) and classes (B,)."""

        def fetch(parts: list[Tensor], _draws: Iterable[Draw], _epoch: int) -> Iterator:
            for part in parts:
                tokens, lengths = padded([self.tokens[i] for i in part.tolist()], self.dev)
                yield tokens, lengths, self.labels[part.to(self.dev.device)]

        return Batches(len(self), batch_size, self.dev, train, fetch)


def encode(texts: Sequence[str], facts: dict) -> tuple[list[Tensor], int]:
    """Each text as tokens (T,) between <start> and <extract>; and how many were cut."""
    vocabulary, network = Vocabulary(facts), facts["network"]
    most, first = network["context"] - SPECIAL, network["vocab_size"] - SPECIAL
    before, after = torch.tensor([first]), torch.tensor([first + 1])
    pieces = [vocabulary.encode(text) for text in texts]
    tokens = [torch.cat([before, piece[:most], after]) for piece in pieces]
    return tokens, sum(len(piece) > most for piece in pieces)


def padded(tokens: Sequence[Tensor], dev: Device) -> tuple[Tensor, Tensor]:
    """Tokens (B, T) and lengths (B,) on the device."""
    lengths = torch.tensor([len(some) for some in tokens])
    return pad_sequence(list(tokens), batch_first=True).to(dev.device), lengths.to(dev.device)


def load(
    args: argparse.Namespace, dev: Device, found: Found | None
) -> tuple[Sentences, Sentences | None, Sentences]:
    """The training, validation (None without --val) and test set of `--data`."""
    source = open_source(args, dev, SETS)
    known = args.stored.get("dataset", {})
    check_classes(args.data, source.classes, known_classes(args))
    if known:
        facts = {k: v for k, v in known.items() if k != "classes"}
    elif found:
        facts = {**found.vocabulary, "network": dict(found.network)}
        facts["network"]["vocab_size"] += SPECIAL
    else:
        text = "\n".join(source.parts["train"].texts)
        facts = dev.gather(make_vocabulary(text, "bpe", args.vocab_size))[0]
        sizes = {name: size for name in SIZES if (size := getattr(args, name)) is not None}
        try:
            with torch.device("meta"):
                model = MODELS[args.model](facts["vocab_size"] + SPECIAL, **sizes)
        except ValueError as error:
            fail(f"--num-heads: {error}")
        facts["network"] = describe(model, "gpt1" if args.model == "gpt1" else "gpt2")
    facts["classes"] = source.classes
    if (most := facts["network"]["context"] - SPECIAL) < 1:
        fail(f"--context {most + SPECIAL}: with <start> and <extract> around it a sentence needs "
             f"{SPECIAL + 1} tokens at least")  # fmt: skip
    sets = {
        part: Sentences(part, content.texts, content.labels, facts, dev)
        for part, content in source.parts.items()
    }
    say_parts(args, dev, sets, "sentences", named(source.classes))
    cut = sum(part.cut for part in sets.values())
    short = f"{counted(cut, 'sentence')} cut at {most} tokens" if cut else ""
    for note in filter(None, (source.note, short)):
        dev.say(f"note: {note}")
    return sets["train"], sets.get("val"), sets["test"]


def make(args: argparse.Namespace, facts: dict, found: Found | None) -> Classifier:
    """The classifier, on the weights that were found; new tokens and the last layer begin anew."""
    model = Classifier(build(facts["network"], args.dropout), len(facts["classes"]), args.dropout)
    if found:
        own = model.body.state_dict()
        rows = own["wte.weight"].clone()
        rows[:-SPECIAL] = found.state["wte.weight"]
        model.body.load_state_dict({**found.state, "wte.weight": rows})
    return model


def losses(
    answer: Tensor, logits: Tensor, tokens: Tensor, lengths: Tensor, classes: Tensor
) -> tuple[Tensor, Tensor]:
    """Losses of the classes (L2) and of the next tokens of the texts (L1), from what `Classifier`
    returns: `answer` (B, K) and `logits` (B, T, V), for tokens (B, T), lengths (B,), classes (B,).

    L1 is each text's mean over its tokens, as in the released code: all texts weigh the same, and
    equal parts of a batch too.
    """
    places = torch.arange(1, tokens.shape[1], device=tokens.device)
    following = tokens[:, 1:].masked_fill(places >= lengths[:, None], -100)
    logits = logits[:, :-1].float().transpose(1, 2)  # (B, V, T - 1)
    nats = F.cross_entropy(logits, following, reduction="none")  # (B, T - 1), 0 in the padding
    told = (nats.sum(1) / (lengths - 1)).mean()
    return F.cross_entropy(answer.float(), classes), told


@torch.inference_mode()
def evaluate(model: Classifier, part: Sentences, dev: Device) -> dict[str, float]:
    """Loss and accuracy of the classes."""
    model.eval()
    sums = torch.zeros(3, device=dev.device)
    for tokens, lengths, classes in part.batches(64):
        with dev.autocast():
            answer = model(tokens, lengths)[0].float()
        loss = F.cross_entropy(answer, classes, reduction="sum")
        right = (answer.argmax(1) == classes).sum().float()
        sums += torch.stack([loss, right, torch.full_like(loss, len(classes))])
    loss, right, count = dev.sum(sums).tolist()
    return {f"{part.part}_loss": loss / count, f"{part.part}_accuracy": right / count}


@torch.inference_mode()
def classify(
    model: Classifier, facts: dict, sentences: Sequence[str], dev: Device
) -> dict[str, str]:
    """Prints the likeliest classes of sentences; returns the first of each."""
    (tokens, cut), classes = encode(sentences, facts), facts["classes"]
    if cut:
        most = facts["network"]["context"] - SPECIAL
        print(f"note: {counted(cut, 'sentence')} cut at {most} tokens", file=sys.stderr)
    odds = model(*padded(tokens, dev))[0].float().softmax(1).cpu()
    for text, row in zip(sentences, odds, strict=True):
        best = row.topk(min(3, len(classes)))
        pairs = zip(best.values.tolist(), best.indices.tolist(), strict=True)
        print(f"{text}: {', '.join(f'{classes[k]} {p:.1%}' for p, k in pairs)}")
    return dict(zip(sentences, (classes[k] for k in odds.argmax(1).tolist()), strict=True))


def step_size(steps: int, warmup: float, step: int) -> float:
    """Share of the peak rate: up and down in straight lines."""
    return warmup_and_line((step + 1) / (steps + 1), warmup)


@cli.command
def main(argv: list[str] | None = None) -> dict[str, float]:
    """Trains, or evaluates a checkpoint; returns the training and test metrics."""
    args = parse_args(argv)
    dev = Device(args)
    found = start(args, dev)
    train, val, test = load(args, dev, found)
    model = make(args, train.facts, found)
    net = dev.wrap(model)
    matrices = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() < 2]
    groups = [dict(params=matrices, weight_decay=args.weight_decay), dict(params=others)]
    optimizer = torch.optim.AdamW(groups, args.lr, weight_decay=0.0, fused=not args.fsdp)
    batches = train.batches(args.batch_size, train=True)
    share = partial(step_size, args.epochs * len(batches), args.warmup)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, share)
    parts: dict[str, nn.Module | object] = dict(model=model, optimizer=optimizer, schedule=schedule)
    run = Run(args, dev, ("val_accuracy", max), **parts, dataset=train.facts)
    if args.evaluate:
        return run.finish(**evaluate(model, test, dev))
    for epoch in run.epochs():
        model.train()
        for tokens, lengths, classes in run.progress(batches):
            with dev.autocast():
                answer, logits = net(tokens, lengths)
            loss, told = losses(answer, logits, tokens, lengths, classes)
            run.add(train_loss=loss, train_lm_loss=told)
            if dev.step(loss + args.auxiliary * told, optimizer):  # Eq. 5
                schedule.step()
        run.log(epoch, **run.means(), **(evaluate(model, val, dev) if val else {}))
        run.save()
    return run.finish(**run.means(), **evaluate(model, test, dev))


if __name__ == "__main__":
    main()
