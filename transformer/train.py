"""Trains the Transformer (Vaswani et al. 2017) to translate. Measured on a core of a Zen 4 server.

python transformer/train.py                                    # dates: 99.7% exact, 89 s
python transformer/train.py --data multi30k --data-dir PATH    # English to German: BLEU 38.1
python transformer/train.py --data pairs:train.en,train.de     # your own sentences
python transformer/train.py --paper --data pairs:train.en,train.de    # Sec. 5: transformer_base
"""

import argparse
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common import cli, fail
from common.checkpoint import gathered
from common.data.pairs import FIXED, PAIR_SETS, PairSet, add_pair_flags, load_pairs
from common.data.text import PAD, decode
from common.device import Device
from common.run import Run
from transformer.decoding import write
from transformer.model import MODELS, SIZES, Transformer

# fmt: off
QUICK = dict(model="transformer_small", data="dates", epochs=4, val=200, batch_size=1000, lr=3e-3,
             warmup=100, vocab_size=1000, num_layers=2, average=2, beam=1)
PAPER = dict(model="transformer_base", data="pairs:data/wmt14/train.en,data/wmt14/train.de",
             epochs=20, val=0, batch_size=25_000, warmup=4000, vocab_size=37_000)
WORDS = dict(epochs=26, val=1000, batch_size=2000, dropout=0.2, warmup=2000,
             vocab_size=6_000, average=5, beam=4)  # without --paper, for all but dates
# fmt: on
FIXED = [*FIXED, "num_heads", "num_layers", "positions", "norm_first"]  # by a checkpoint


def recipe(model: str, data: str | None, paper: bool, **given) -> tuple[dict, dict]:
    """The data's recipe on the model's sizes. The rate's peak is that of Eq. 3, but a shorter
    warm-up doesn't raise it; one that nobody chose is at most 0.35 of the run (Multi30k: 0.32)."""
    sizes = SIZES[model.removeprefix("transformer_")]
    own = PAPER if paper else QUICK if data in (None, "dates") else WORDS
    peak = (sizes["d_model"] * max(own["warmup"], given.get("warmup", 0))) ** -0.5
    own = {"lr": peak, "warmup_share": None if "warmup" in given else 0.35} | own
    own = {name: sizes[name] for name in ("num_heads", "num_layers", "dropout")} | own
    greedy, best = given.get("beam", own.get("beam")) == 1, given.get("patience")
    nothing = {"length_penalty": "it compares targets: add --beam 4"} if greedy else {}
    nothing |= {"average": "it is of the last weights, --patience keeps the best"} if best else {}
    return own, nothing


def parse_args(argv: list[str] | None = None) -> cli.Flags:
    """The flags; see --help."""
    parser = cli.Parser("transformer", __doc__, QUICK, PAPER, MODELS, PAIR_SETS, recipe, FIXED)
    add_pair_flags(parser)
    add, switch, count, kind = parser.add_argument, parser.add_switch, cli.integer(1), cli.share
    add("--num-heads", type=count, metavar="H", help="heads that share d_model")
    add("--num-layers", type=count, metavar="N", help="of encoder and of decoder")
    add("--dropout", type=kind, metavar="P", help="share of values left out")
    kinds = ["sinusoidal", "learned", "none"]
    add("--positions", choices=kinds, default="sinusoidal", help="how places are told (Sec. 3.5)")
    switch("--norm-first", help="normalise before each sub-layer, not after")
    add("--warmup", type=count, metavar="N", help="steps until the learning rate falls (Eq. 3)")
    add("--warmup-share", type=kind, metavar="S", none="no limit", help="of the run, at most")
    switch("--ramp", default=True, help="let the rate rise in the warm-up")
    add("--smoothing", type=kind, metavar="P", default=0.1, help="of labels (Sec. 5.4)")
    add("--average", type=count, metavar="N", default=5, help="test the mean of the last N epochs")
    add("--beam", type=count, metavar="N", default=4, help="width, for the test set; 1 is greedy")
    add("--length-penalty", type=cli.not_negative, metavar="A", default=0.6, help="of the beam")
    args = parser.parse_args(argv)
    if args.length_penalty >= 10:
        fail(f"--length-penalty needs a number below 10, not {args.length_penalty:g}")
    return args


def build(args: argparse.Namespace, vocab_size: int) -> Transformer:
    """The network that the flags ask for; what older checkpoints leave open is the model's own."""
    names = ("num_heads", "num_layers", "dropout", "max_length", "positions", "norm_first")
    sizes = {name: size for name in names if (size := getattr(args, name)) is not None}
    try:
        return MODELS[args.model](vocab_size, **sizes)
    except ValueError as error:
        fail(f"--num-heads: {error}")


def warmup_of(args: argparse.Namespace, steps: int, dev: Device) -> int:
    """The steps of the warm-up in a run of `steps`; says where they are fewer, or too many."""
    most = args.warmup if args.warmup_share is None else max(1, int(args.warmup_share * steps))
    warmup, end = min(args.warmup, most), min(steps, args.max_steps or steps)
    if warmup < args.warmup and not args.evaluate:
        dev.say(f"note: of {steps:,} steps the warm-up has {warmup:,}, not {args.warmup:,}")
    if warmup > end and args.ramp and not args.evaluate:
        dev.say(f"note: the run ends after step {end:,}, inside its warm-up of {warmup:,} steps")
    return warmup


def step_size(warmup: int, ramp: bool, step: int) -> float:
    """Share of the peak rate: min(step / warmup, (warmup / step)^0.5) (Eq. 3)."""
    step += 1
    return min(step / warmup if ramp else 1.0, (warmup / step) ** 0.5)


def cross_entropy(logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """The sum over real tokens; `smoothing` of each label goes to all tokens alike (Sec. 5.4)."""
    how = dict(ignore_index=PAD, reduction="sum", label_smoothing=smoothing)
    return F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), **how)


@torch.no_grad()
def evaluate(
    model: Transformer, pairs: PairSet, dev: Device, args: argparse.Namespace, beam: int = 1
) -> tuple[dict[str, float], list[str]]:
    """Loss a token, BLEU (of dates: the share that is right), and the translations in order."""
    model.eval()
    sums, found = torch.zeros(2, device=dev.device), []
    most = pairs.facts["longest"] * 5 // 4  # an untrained network would go on and on
    size = args.batch_size // max(beam // 4, 1)  # a wide beam multiplies sentences
    for source, target, count, indices in pairs.batches(size, shuffle=False):
        with dev.autocast():
            loss = cross_entropy(model(source, target[:, :-1]), target[:, 1:])
        sums += torch.stack([loss, torch.full_like(loss, count)])
        written = write(model, source, beam, args.length_penalty, most)[: len(indices)]
        found += zip(indices.tolist(), decode(pairs.tokenizer, written), strict=True)
    loss, count = dev.sum(sums).tolist()
    translations = [text for _, text in sorted(p for part in dev.gather(found) for p in part)]
    return {f"{pairs.part}_loss": loss / count} | pairs.score(translations), translations


def weights_to_use(state: dict, args: argparse.Namespace, say: Callable) -> dict[str, Tensor]:
    """Of a run's parts, or of its checkpoint: the average if it is whole, else the last weights;
    with --patience the best, which have taken their place."""
    model, average, count = state["model"], state["average"], min(args.average, args.epochs)
    if average["count"] >= count and not args.patience:
        return {name: average[name] for name in average if name != "count"}
    if count > 1 and not args.patience:
        say(f"note: the last weights, for --average lacks some of the last {count} epochs")
    return model.state_dict() if isinstance(model, nn.Module) else model


@cli.command
def main(argv: list[str] | None = None) -> dict[str, float]:
    """Trains, or evaluates a checkpoint; returns the training and test metrics."""
    args = parse_args(argv)
    dev = Device(args)
    train, val, test = load_pairs(args, dev)
    model = build(args, train.tokenizer.get_vocab_size())
    judge = build(args, train.tokenizer.get_vocab_size()).to(dev.device)  # is given what to test
    net = dev.wrap(model)
    settings = args.lr, (0.9, 0.98), 1e-9
    optimizer = torch.optim.Adam(model.parameters(), *settings, fused=not args.fsdp)
    steps = args.epochs * len(train.batches(args.batch_size))
    share = partial(step_size, warmup_of(args, steps, dev), args.ramp)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, share)
    average = {name: p.detach().clone() for name, p in model.named_parameters()} | {"count": 0}
    parts = dict(model=model, optimizer=optimizer, schedule=schedule, average=average)
    run = Run(args, dev, (f"val_{train.facts['metric']}", max), **parts, dataset=train.facts)

    def measure(pairs: PairSet, beam: int = 1) -> dict[str, float]:
        weights = weights_to_use(parts, args, dev.say) if pairs is test else model.state_dict()
        judge.load_state_dict({name: gathered(value) for name, value in weights.items()})
        metrics, translations = evaluate(judge, pairs, dev, args, beam)
        if pairs is test and dev.main:
            (run.folder / "translations.txt").write_text("\n".join(translations) + "\n", "utf-8")
        return metrics

    if args.evaluate:
        return run.finish(**measure(test, args.beam))
    for epoch in run.epochs():
        model.train()
        for source, target, count, _ in run.progress(train.batches(args.batch_size)):
            with dev.autocast():
                logits = net(source, target[:, :-1])
            labels = target[:, 1:]
            loss = cross_entropy(logits, labels, args.smoothing)
            right = ((logits.detach().argmax(2) == labels) & (labels != PAD)).sum()
            some = max(count, 1)  # a process may have no sentence of a step
            run.add(count, train_loss=loss / some, train_accuracy=right / some)
            if dev.step(loss, optimizer, count):
                schedule.step()
        if run.epoch_is_whole:  # of the last ones the weights' mean (Sec. 6.1)
            place = epoch - max(args.epochs - args.average, 0)  # among them, from 0
            average["count"] = place + 1 if place in (0, average["count"]) else 0
            for name, p in model.named_parameters() if average["count"] else ():
                average[name].lerp_(p.detach(), 1 / average["count"])
        run.log(epoch, **run.means(), **(measure(val) if val else {}))
        run.save()
    return run.finish(**run.means(), **measure(test, args.beam))


if __name__ == "__main__":
    main()
