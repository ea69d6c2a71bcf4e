"""Trains GPTs: the next token of a text is predicted from those before it.

python gpt/train.py                                        # pydocs: 1.74 bits a character, 2 min
python gpt/train.py --data shakespeare --data-dir PATH     # gpt_small: 1.530 nats, 49 min; with
                                                           # --model gpt_tiny 1.680, 3 min
python gpt/train.py --data tinystories --data-dir PATH     # also brown, wikitext2
python gpt/train.py --data text:novel.txt                  # your own file, or a folder of .txt
python gpt/train.py --weights gpt2 --data text:novel.txt   # goes on from published weights
python gpt/train.py --paper --data text:webtext            # GPT-2's; --model gpt1, gpt3_small …

`test_loss` is in nats a token, `test_bits` in bits a character. Measured on a Zen 5-class core.
"""

import argparse
import math
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from common import cli, fail
from common.data.corpora import CORPUS_SETS, Tokens, load_corpus
from common.device import Device
from common.run import Run
from common.schedule import cosine
from gpt.model import MODELS, LanguageModel
from gpt.published import Found, build, check_model, describe, read_published
from gpt.recipes import SIZES, recipe

# fmt: off
QUICK = dict(model="gpt_tiny", data="pydocs", tokens="bpe", vocab_size=2048, steps=2600, every=650,
             val=20_000, batch_size=1024, lr=3e-3, dropout=0.1, weight_decay=2.0, clip=1.0)
PAPER = dict(model="gpt2", data="text:data/webtext", tokens="bpe", vocab_size=50_257,
             steps=100_000, every=1000, val=500_000, batch_size=524_288, accumulate=64, lr=6e-4,
             dropout=0.1, weight_decay=0.1, clip=1.0)
# fmt: on
FIXED = [*SIZES, "tokens", "vocab_size", "every", "weights"]  # by a checkpoint


def parse_args(argv: list[str] | None = None) -> cli.Flags:
    """The flags; see --help."""
    parser = cli.Parser("gpt", __doc__, QUICK, PAPER, MODELS, CORPUS_SETS, recipe, FIXED)
    add, count = parser.add_argument, dict(type=cli.integer(1), metavar="N")
    text = "pieces of bytes (BPE, Sec. 2.2 of GPT-2's paper) or characters"
    add("--tokens", choices=["bpe", "chars"], group="data", default="bpe", help=text)
    add("--vocab-size", **count, group="data", default=1024, help="at most so many tokens")
    add("--every", **count, group="training", default=250, help="steps between validations")
    text = "start from published weights (gpt2, gpt2-medium …), a folder, a file or a run"
    add("--weights", metavar="NAME|PATH", none="no", group="training", help=text)
    for name, text in (("layers", "blocks"), ("heads", "heads that share d_model")):
        add(f"--num-{name}", **count, none="the model's", help=text)
    add("--d-model", **count, none="the model's", help="width")
    add("--context", **count, none="the model's", help="tokens that are seen at once")
    add("--window", **count, none="the model's", help="tokens that every second layer sees (GPT-3)")
    add("--dropout", type=cli.share, metavar="P", default=0.1, help="of values left out")
    text = "what matrices shrink by in a step, times the rate"
    add("--weight-decay", type=cli.not_negative, metavar="L", default=0.1, help=text)
    kind = cli.number(lambda x: 0 < x < 1, "a number between 0 and 1")
    text = "share of the steps in which the rate rises, before a cosine"
    add("--warmup", type=kind, metavar="S", default=0.05, help=text)
    kind = cli.number(lambda x: 0 < x <= 1, "a number above 0, at most 1")
    add("--fall", type=kind, metavar="S", default=1.0, help="share after which the cosine is over")
    add("--floor", type=cli.share, metavar="S", default=0.0, help="of the peak rate, left then")
    text = "Adam's: how slowly its mean of squares moves"
    add("--beta2", type=cli.share, metavar="B", default=0.95, help=text)
    args = parser.parse_args(argv)
    if args.warmup >= args.fall:
        fail(f"--warmup {args.warmup:g} has to be less than --fall {args.fall:g}")
    if "weights" in args.typed and args.paper:
        fail("--paper trains from the beginning: leave --weights out")
    return args


def start(args: argparse.Namespace, dev: Device) -> Found | None:
    """The weights to start from; none where the run goes on with a checkpoint."""
    if not args.weights or args.stored:
        return None
    found = read_published(args.weights, dev.say)
    if found.vocabulary is None:
        fail(f"--weights {args.weights}: there is no tokenizer.json beside the weights, so no text "
             "can be read for them")  # fmt: skip
    if "model" in args.typed:
        check_model(found, args.model)
    return found


def make(args: argparse.Namespace, facts: dict, found: Found | None) -> LanguageModel:
    """The network of the checkpoint, of the weights, or that the flags ask for. What it is goes
    into `facts`, so that who reads a checkpoint can build it."""
    if found or args.weights:
        facts["network"] = found.network if found else args.stored["dataset"]["network"]
        return found.build(args.dropout) if found else build(facts["network"], args.dropout)
    sizes = {name: size for name in SIZES if (size := getattr(args, name)) is not None}
    try:
        model = MODELS[args.model](facts["vocab_size"], dropout=args.dropout, **sizes)
    except ValueError as error:
        fail(f"--num-heads: {error}")
    facts["network"] = describe(model, "gpt1" if args.model == "gpt1" else "gpt2")
    return model


def step_size(args: argparse.Namespace, step: int) -> float:
    """Share of the peak rate: up in a straight line, down half a cosine, and constant."""
    done = min(1.0, (step + 1) / (args.steps + 1))
    fallen = cosine(min(1.0, done / args.fall), args.warmup / args.fall)
    return min(done / args.warmup, args.floor + (1 - args.floor) * fallen)


def cross_entropy(logits: Tensor, following: Tensor, reduction: str = "mean") -> Tensor:
    """Nats a token, of logits (B, T, V) and what follows (B, T), where -100 isn't counted."""
    logits = logits.float().flatten(0, 1)
    return F.cross_entropy(logits, following.flatten(), reduction=reduction)


@torch.no_grad()
def evaluate(model: LanguageModel, part: Tokens, dev: Device, batch_size: int) -> dict[str, float]:
    """Nats a token (each from those before it in its window), and bits a character and a byte."""
    model.eval()
    sums = torch.zeros(2, device=dev.device)
    for tokens, following in part.in_order(batch_size, model.context):
        with dev.autocast():
            logits = model(tokens)
        nats = cross_entropy(logits, following, "sum")
        sums += torch.stack([nats, (following != -100).sum().float()])
    nats, count = dev.sum(sums).tolist()
    bits = {"bits": part.characters, "bits_byte": part.bytes}
    bits = {key: nats / math.log(2) / max(count, 1) for key, count in bits.items()}
    return {f"{part.part}_{key}": value for key, value in {"loss": nats / count, **bits}.items()}


@cli.command
def main(argv: list[str] | None = None) -> dict[str, float]:
    """Trains, or evaluates a checkpoint; returns the training and test metrics."""
    args = parse_args(argv)
    dev = Device(args)
    found = start(args, dev)
    train, val, test = load_corpus(args, dev, found and found.vocabulary)
    facts = train.facts
    model = make(args, facts, found)
    net = dev.wrap(model)
    matrices = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() < 2]
    groups = [dict(params=matrices, weight_decay=args.weight_decay), dict(params=others)]
    how = dict(betas=(0.9, args.beta2), weight_decay=0.0, fused=not args.fsdp)
    optimizer = torch.optim.AdamW(groups, args.lr, **how)
    share = partial(step_size, args)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, share)
    parts = dict(model=model, optimizer=optimizer, schedule=schedule)
    run = Run(args, dev, ("val_loss", min), **parts, dataset=facts)
    if args.evaluate:
        return run.finish(**evaluate(model, test, dev, args.batch_size))
    batches = train.windows(args.batch_size, model.context, min(args.every, args.steps))
    if batches.window < model.context:
        dev.say(f"note: windows have {batches.window:,} tokens, the context {model.context:,}")
    for epoch in run.epochs():
        model.train()
        for tokens, following in run.progress(batches):
            with dev.autocast():
                loss = cross_entropy(net(tokens), following)
            run.add(train_loss=loss)
            if dev.step(loss, optimizer):
                schedule.step()
        run.log(epoch, **run.means(), **(evaluate(model, val, dev, args.batch_size) if val else {}))
        run.save()
    return run.finish(**run.means(), **evaluate(model, test, dev, args.batch_size))


if __name__ == "__main__":
    main()
