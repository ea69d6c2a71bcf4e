"""Trains the Transformer (Vaswani et al. 2017) to translate. Measured on a core of a Zen 4 server.

python transformer/train.py                                    # dates: 99.7% exact, 89 s
python transformer/train.py --data multi30k --data-dir PATH    # English to German: BLEU 38.1
python transformer/train.py --data pairs:train.en,train.de     # your own sentences
python transformer/train.py --paper --data pairs:train.en,train.de    # Sec. 5: transformer_base
"""

import argparse
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common import cli, fail
from common.checkpoint import whole
from common.data.pairs import FIXED, PAIR_SETS, PairSet, add_pair_flags, load_pairs
from common.data.text import PAD, decode
from common.device import Device
from common.run import Run
from transformer.decoding import beam_search, generate
from transformer.model import MODELS, Transformer

# fmt: off
QUICK = dict(model="transformer_small", data="dates", epochs=4, val=200, batch_size=1000, lr=3e-3,
             warmup=100, vocab_size=1000, num_layers=2, average=2, beam=1)
PAPER = dict(model="transformer_base", data="pairs:data/wmt14/train.en,data/wmt14/train.de",
             epochs=20, val=0, batch_size=25_000, lr=None, warmup=4000, vocab_size=37_000)
WORDS = dict(epochs=26, val=1000, batch_size=2000, lr=None, warmup=2000, vocab_size=6_000,
             num_layers=None, dropout=0.2, average=5, beam=4)  # without --paper, for all but dates
# fmt: on
SIZES = ("num_heads", "num_layers", "dropout")
FIXED = [*FIXED, "num_heads", "num_layers", "positions", "norm_first"]  # by a checkpoint


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The flags; see --help."""
    parser = cli.Parser("transformer", __doc__, QUICK, PAPER, MODELS, PAIR_SETS, fixed=FIXED)
    add_pair_flags(parser)
    add = parser.add_argument
    add("--num-heads", type=cli.whole(1), help="heads that share d_model (default: the model's)")
    add("--num-layers", type=cli.whole(1), help="of encoder and of decoder (default: the model's)")
    add("--dropout", type=cli.not_negative, help="share of values left out (default: the model's)")
    kinds = ["sinusoidal", "learned", "none"]
    add("--positions", choices=kinds, default="sinusoidal", help="how places are told (Sec. 3.5)")
    add("--norm-first", action="store_true", help="normalise before each sub-layer, not after")
    add("--warmup", type=cli.whole(1), help="steps after which the learning rate begins to fall")
    add("--ramp", choices=["yes", "no"], default="yes", help="let it rise in those steps")
    add("--smoothing", type=cli.not_negative, default=0.1, help="of labels (Sec. 5.4)")
    add("--average", type=cli.whole(1), default=5, help="test the mean of the last N epochs")
    add("--beam", type=cli.whole(1), default=4, help="width of the beam for the test part")
    add("--length-penalty", type=cli.not_negative, default=0.6, help="alpha of the beam's scores")
    args = parser.parse_args(argv)
    if not args.paper and args.data != "dates":
        vars(args).update({k: v for k, v in WORDS.items() if k not in args.chosen})
    for flag, most in {"dropout": 1, "smoothing": 1, "length_penalty": 10}.items():
        if (value := getattr(args, flag) or 0) >= most:
            fail(f"--{flag.replace('_', '-')} needs a number below {most}, not {value:g}")
    if "length_penalty" in args.typed and args.beam == 1:
        fail("--length-penalty compares the targets of a beam: add --beam 4")
    if "average" in args.typed and args.patience:
        fail("--average is of the last weights, and --patience keeps the best: use one of them")
    return args


def build(args: argparse.Namespace, vocab_size: int) -> Transformer:
    """The network that the flags ask for."""
    sizes = {name: getattr(args, name) for name in SIZES if getattr(args, name) is not None}
    sizes |= dict(max_length=args.max_length, positions=args.positions, norm_first=args.norm_first)
    try:
        return MODELS[args.model](vocab_size, **sizes)
    except ValueError as error:
        fail(f"--num-heads: {error}")


def step_size(warmup: int, ramp: bool, step: int) -> float:
    """Share of the peak rate: min(step / warmup, (warmup / step)^0.5) (Eq. 3)."""
    step += 1
    return min(step / warmup if ramp else 1.0, (warmup / step) ** 0.5)


def cross_entropy(logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """The sum over real tokens; `smoothing` of each label goes to all tokens alike (Sec. 5.4)."""
    return F.cross_entropy(
        logits.flatten(0, 1).float(),
        labels.flatten(),
        ignore_index=PAD,
        reduction="sum",
        label_smoothing=smoothing,
    )


@torch.no_grad()
def evaluate(
    model: Transformer, pairs: PairSet, dev: Device, args: argparse.Namespace, beam: int = 1
) -> tuple[dict[str, float], list[str]]:
    """Loss a token, BLEU (of dates: the share that is right), and the translations in order."""
    model.eval()
    sums, found = torch.zeros(2, device=dev.device), []
    most = pairs.facts["longest"] * 5 // 4  # an untrained network would go on and on
    for source, target, count, indices in pairs.batches(4 * args.batch_size // beam, shuffle=False):
        with dev.autocast():
            loss = cross_entropy(model(source, target[:, :-1]), target[:, 1:])
        sums += torch.stack([loss, torch.full_like(loss, count)])
        if len(indices) and beam > 1:
            written = beam_search(model, source, beam, args.length_penalty, most=most)
        else:
            written = generate(model, source, most=most) if len(indices) else []
        found += zip(indices.tolist(), decode(pairs.tokenizer, written), strict=True)
    loss, count = dev.sum(sums).tolist()
    translations = [text for _, text in sorted(p for part in dev.gather(found) for p in part)]
    metrics = {f"{pairs.part}_loss": loss / count}
    if pairs.facts["metric"] == "exact":
        right = sum(map(str.__eq__, translations, pairs.lines[1]))
        return metrics | {f"{pairs.part}_exact": right / len(pairs)}, translations
    from sacrebleu.metrics import BLEU

    bleu = BLEU()
    score = bleu.corpus_score(translations, [list(pairs.lines[1])]).score
    if pairs.part == "test":
        dev.say(f"BLEU {score:.2f}, {bleu.get_signature()}")
    return metrics | {f"{pairs.part}_bleu": score / 100}, translations


def weights_to_use(state: dict, args: argparse.Namespace) -> dict[str, Tensor]:
    """Of a run's parts, or of its checkpoint: the average once it is whole, else the last weights.

    With --patience the best weights are wanted, not an average.
    """
    model, average = state["model"], state["average"]
    if average["count"] >= min(args.average, args.epochs) and not args.patience:
        return {name: average[name] for name in average if name != "count"}
    return model.state_dict() if isinstance(model, nn.Module) else model


@cli.command
def main(argv: list[str] | None = None) -> dict[str, float]:
    """Trains, or evaluates a checkpoint; returns the training and test metrics."""
    args = parse_args(argv)
    dev = Device(args)
    train, val, test = load_pairs(args, dev)
    model = build(args, train.tokenizer.get_vocab_size())
    args.num_heads, args.num_layers = model.encoder[0].attention.num_heads, len(model.encoder)
    judge = build(args, train.tokenizer.get_vocab_size()).to(dev.device)  # is given what to test
    args.lr = args.lr or (model.d_model * args.warmup) ** -0.5  # Eq. 3 at its peak
    net = dev.wrap(model)
    settings = args.lr, (0.9, 0.98), 1e-9
    optimizer = torch.optim.Adam(model.parameters(), *settings, fused=not args.fsdp)
    share = partial(step_size, args.warmup, args.ramp == "yes")
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, share)
    average = {name: p.detach().clone() for name, p in model.named_parameters()} | {"count": 0}
    parts = dict(model=model, optimizer=optimizer, schedule=schedule, average=average)
    run = Run(args, dev, (f"val_{train.facts['metric']}", max), **parts, dataset=train.facts)

    def measure(pairs: PairSet, beam: int = 1) -> dict[str, float]:
        weights = weights_to_use(parts, args) if pairs is test else model.state_dict()
        judge.load_state_dict({name: whole(value) for name, value in weights.items()})
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
        if run.position == 0:  # the epoch is whole; of the last ones the weights' mean (Sec. 6.1)
            place = epoch - max(args.epochs - args.average, 0)  # among them, from 0
            average["count"] = place + 1 if place in (0, average["count"]) else 0
            for name, p in model.named_parameters() if average["count"] else ():
                average[name].lerp_(p.detach(), 1 / average["count"])
        run.log(epoch, **run.means(), **(measure(val) if val else {}))
        run.save()
    return run.finish(**run.means(), **measure(test, args.beam))


if __name__ == "__main__":
    main()
