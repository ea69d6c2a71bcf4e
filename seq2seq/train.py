"""Trains the first networks that translate: Sutskever 2014, Bahdanau 2015, Luong 2015.

python seq2seq/train.py                                        # dates, attention: 100% exact, 50 s
python seq2seq/train.py --model sutskever_small                # without: 85 to 97%, 67 s
python seq2seq/train.py --data multi30k --data-dir PATH        # English-German: 36.9 BLEU, 45 min
python seq2seq/train.py --data pairs:train.en,train.de         # your own sentences
python seq2seq/train.py --paper --data pairs:train.en,train.fr # Bahdanau's; or --model sutskever …

Measured on one core of an AMD EPYC (Zen 5-class) server that others used, too.
"""

import argparse
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common import cli
from common.checkpoint import gathered
from common.data.pairs import FIXED, PAIR_SETS, PairSet, add_pair_flags, load_pairs
from common.data.text import PAD, decode
from common.device import Device
from common.run import Run
from common.schedule import warmup_and_cosine
from seq2seq.decoding import translate
from seq2seq.model import MODELS, SCORES, SIZES

# fmt: off
QUICK = dict(model="bahdanau_small", data="dates", epochs=3, val=200, batch_size=1000, lr=3e-3,
             clip=1.0, vocab_size=1000, smoothing=0.0, beam=1)
PAPER = dict(model="bahdanau", data="pairs:data/wmt14/train.en,data/wmt14/train.fr", val=0,
             epochs=5, batch_size=2400, lr=1.0, clip=1.0, vocab_size=30_000, smoothing=0.0,
             optimizer="adadelta", schedule="constant", per="sentences", beam=12, length_penalty=0.)
PAPERS = {  # on top: Sutskever's Sec. 3.4, Luong's Sec. 4.1
    "sutskever": dict(epochs=8, batch_size=3840, lr=0.7, clip=5.0, vocab_size=80_000,
                      optimizer="sgd", schedule="halving", halve_after=5.0, halve_every=0.5),
    "luong": dict(data="pairs:data/wmt14/train.en,data/wmt14/train.de",
                  epochs=12, batch_size=3840, lr=1.0, clip=5.0, vocab_size=50_000,
                  optimizer="sgd", schedule="halving", halve_after=8.0, halve_every=1.0),
}
WORDS = dict(epochs=30, val=1000, batch_size=2000, lr=2e-3, vocab_size=6_000, smoothing=0.1, beam=4)
# fmt: on
OPTIMIZERS = {
    "adam": partial(torch.optim.Adam, betas=(0.9, 0.98)),
    "adadelta": partial(torch.optim.Adadelta, rho=0.95, eps=1e-6),
    "sgd": torch.optim.SGD,
}
OWN = {  # what each of them can be told
    "sutskever": ("hidden_size", "dropout", "num_layers", "reverse"),
    "bahdanau": ("hidden_size", "dropout"),
    "luong": ("hidden_size", "dropout", "num_layers", "reverse", "score", "input_feeding"),
}
FIXED = [*FIXED, "hidden_size", "num_layers", "reverse", "score", "input_feeding"]


def recipe(model: str, data: str | None, paper: bool, **given) -> tuple[dict, dict]:
    """The data's recipe, or the paper's of this model, on the model's sizes; and the flags that
    mean nothing to it."""
    family, sizes = model.removesuffix("_small"), SIZES[model]
    own = {name: sizes.get(name) for name in ("hidden_size", "num_layers", "dropout")}
    if paper:
        own |= PAPERS.get(family, {})
    elif data not in (None, "dates"):
        own |= WORDS
    elif model.endswith("_small"):
        own |= dict(hidden_size=128, dropout=0.1, epochs={"bahdanau": 3, "luong": 5}.get(family, 8))
    reasons = {
        "num_layers": f"{model} has one layer",
        "reverse": f"{model} reads both ways",
        "score": f"{model} has {'one score' if family == 'bahdanau' else 'no attention'}",
        "input_feeding": f"{model} has no attention after its step",
        "compile": "the recurrence is calls of torch's kernels, or a loop of any length",
    }
    nothing = {name: reason for name, reason in reasons.items() if name not in OWN[family]}
    values = (PAPER if paper else QUICK) | own | given
    if values.get("schedule") != "halving":
        nothing |= dict.fromkeys(("halve_after", "halve_every"), "it is for --schedule halving")
    if values["beam"] == 1:
        nothing["length_penalty"] = "it compares translations: add --beam 4"
    return own, nothing


def parse_args(argv: list[str] | None = None) -> cli.Flags:
    """The flags; see --help."""
    parser = cli.Parser("seq2seq", __doc__, QUICK, PAPER, MODELS, PAIR_SETS, recipe, FIXED)
    add_pair_flags(parser)
    add, switch, count, kind = parser.add_argument, parser.add_switch, cli.integer(1), cli.share
    add("--hidden-size", type=count, metavar="H", help="units of a layer, in one direction")
    add("--num-layers", type=count, metavar="N", help="of encoder and of decoder")
    add("--dropout", type=kind, metavar="P", help="before, between and after layers")
    switch("--reverse", default=True, help="read the source from its end")
    add("--score", choices=SCORES, default="general", help="how words are compared (Luong Eq. 8)")
    switch("--input-feeding", default=True, help="tell the next step where this one looked")
    add("--optimizer", choices=list(OPTIMIZERS), default="adam", help="how the weights move")
    add("--schedule", choices=["cosine", "halving", "constant"], default="cosine", help="of rates")
    epochs, text = dict(type=cli.positive, metavar="E"), "epochs until the rate is first halved"
    add("--halve-after", **epochs, default=5.0, help=text)
    add("--halve-every", **epochs, default=1.0, help="epochs between halvings")
    add("--per", choices=["tokens", "sentences"], default="tokens", help="mean of the gradient")
    add("--smoothing", type=kind, metavar="P", default=0.1, help="of labels (not in these papers)")
    add("--beam", type=count, metavar="N", default=4, help="width, for the test set; 1 is greedy")
    kind = cli.number(lambda value: 0 <= value < 10, "a number from 0 to below 10")
    add("--length-penalty", type=kind, metavar="A", default=0.6, help="of the beam")
    return parser.parse_args(argv)


def build(args: argparse.Namespace, vocab_size: int) -> nn.Module:
    """The network that the flags ask for."""
    own = {name: getattr(args, name) for name in OWN[args.model.removesuffix("_small")]}
    return MODELS[args.model](vocab_size, **own)


def step_size(args: argparse.Namespace, steps: int, step: int) -> float:
    """Share of the peak rate at a step, in epochs of `steps`."""
    if args.schedule == "cosine":
        return warmup_and_cosine((step + 1) / (args.epochs * steps + 1))
    done = step / steps - args.halve_after
    return 0.5 ** (done // args.halve_every + 1) if args.schedule == "halving" and done >= 0 else 1


def cross_entropy(logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """The sum over real tokens; `smoothing` of each label goes to all tokens alike."""
    logits, how = logits.flatten(0, 1).float(), dict(ignore_index=PAD, reduction="sum")
    return F.cross_entropy(logits, labels.flatten(), label_smoothing=smoothing, **how)


@torch.no_grad()
def evaluate(
    model: nn.Module, pairs: PairSet, dev: Device, args: argparse.Namespace, beam: int = 1
) -> tuple[dict[str, float], list[str]]:
    """Loss a token, BLEU (of dates: the share that is right), and the translations in order."""
    model.eval()
    sums, found = torch.zeros(2, device=dev.device), []
    size, most = args.batch_size // max(beam // 4, 1), pairs.facts["longest"] * 5 // 4
    for source, target, count, indices in pairs.batches(size, shuffle=False):
        with dev.autocast():
            loss = cross_entropy(model(source, target[:, :-1]), target[:, 1:])
        sums += torch.stack([loss, torch.full_like(loss, count)])
        written = translate(model, source, most, beam, args.length_penalty)[: len(indices)]
        found += zip(indices.tolist(), decode(pairs.tokenizer, written), strict=True)
    loss, count = dev.sum(sums).tolist()
    translations = [text for _, text in sorted(p for part in dev.gather(found) for p in part)]
    return {f"{pairs.part}_loss": loss / count} | pairs.score(translations), translations


@cli.command
def main(argv: list[str] | None = None) -> dict[str, float]:
    """Trains, or evaluates a checkpoint; returns the training and test metrics."""
    args = parse_args(argv)
    dev = Device(args)
    train, val, test = load_pairs(args, dev)
    model = build(args, train.tokenizer.get_vocab_size())
    judge = build(args, train.tokenizer.get_vocab_size()).to(dev.device)  # is given what to test
    net = dev.wrap(model)
    fused = {} if args.optimizer == "adadelta" else {"fused": not args.fsdp}
    optimizer = OPTIMIZERS[args.optimizer](model.parameters(), args.lr, **fused)
    share = partial(step_size, args, len(train.batches(args.batch_size)))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, share)
    parts = dict(model=model, optimizer=optimizer, schedule=schedule)
    run = Run(args, dev, (f"val_{train.facts['metric']}", max), **parts, dataset=train.facts)

    def measure(pairs: PairSet, beam: int = 1) -> dict[str, float]:
        judge.load_state_dict({name: gathered(p) for name, p in model.state_dict().items()})
        metrics, translations = evaluate(judge, pairs, dev, args, beam)
        if pairs is test and dev.main:
            (run.folder / "translations.txt").write_text("\n".join(translations) + "\n", "utf-8")
        return metrics

    if args.evaluate:
        return run.finish(**measure(test, args.beam))
    for epoch in run.epochs():
        model.train()
        for source, target, count, indices in run.progress(train.batches(args.batch_size)):
            with dev.autocast():
                logits = net(source, target[:, :-1])
            labels = target[:, 1:]
            loss = cross_entropy(logits, labels, args.smoothing)
            right = ((logits.detach().argmax(2) == labels) & (labels != PAD)).sum()
            some = max(count, 1)  # a process may have no sentence of a step
            run.add(count, train_loss=loss / some, train_accuracy=right / some)
            if dev.step(loss, optimizer, count if args.per == "tokens" else len(indices)):
                schedule.step()
        run.log(epoch, **run.means(), **(measure(val) if val else {}))
        run.save()
    return run.finish(**run.means(), **measure(test, args.beam))


if __name__ == "__main__":
    main()
