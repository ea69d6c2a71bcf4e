"""Trains T5 (Raffel et al. 2019): on texts with gaps, or on tasks that are told apart by prefixes.

python t5/train.py                                            # six generated tasks
python t5/train.py --data english --data-dir PATH             # gaps in English text: t5_mini
python t5/train.py --weights RUN --data sst2+multi30k --data-dir PATH     # two tasks at once
python t5/train.py --weights t5-small --data mix:tasks.tsv    # your own: prefix, input, target
python t5/train.py --paper --data text:c4                     # t5_base (Sec. 3.1, 3.3.4)
"""

import argparse

import torch
import torch.nn.functional as F
from torch import Tensor

from common import cli, fail
from common.checkpoint import gathered
from common.device import Device
from common.run import Run
from common.schedule import warmup_and_line
from t5.data import DATA, FIXED, Gaps, Mixture, add_data_flags, load
from t5.decoding import write
from t5.model import ARCHITECTURES, MODELS, PAD, Text2Text, describe, rebuild
from t5.published import Found, start
from t5.recipes import SIZES, recipe
from t5.tasks import sets_in

# fmt: off
QUICK = dict(model="t5_tiny", data="tasks", tokens="chars", steps=3000, every=1000, val=300,
             batch_size=32, length=64, target_length=32, lr=3e-3, clip=1.0)
PAPER = dict(model="t5_base", data="text:data/c4", tokens="pieces", vocab_size=32_128,
             steps=524_288, every=5000, val=1_000_000, batch_size=65_536, accumulate=8, length=512,
             target_length=512, optimizer="adafactor", schedule="root", lr=0.01, warmup=0.01907,
             dropout=0.1, objective="spans")
# fmt: on


def parse_args(argv: list[str] | None = None) -> cli.Flags:
    """The flags; see --help."""
    settled = [*SIZES, *FIXED, "architecture", "bias_rate", "every", "weights"]  # by a checkpoint
    parser = cli.Parser("t5", __doc__, QUICK, PAPER, MODELS, DATA, recipe, settled, several=sets_in)
    add_data_flags(parser)
    add, count = parser.add_argument, dict(type=cli.integer(1), metavar="N")
    add("--every", **count, group="training", default=250, help="steps between validations")
    text = "start from published weights (t5-small, t5-v1_1-base …), a folder, a file or a run"
    add("--weights", metavar="NAME|PATH", none="no", group="training", help=text)
    how = dict(default="adamw", group="training", help="which one")
    add("--optimizer", choices=["adamw", "adafactor"], **how)
    text = "after its rise the rate falls in a line, with the root of the steps, or not at all"
    how = dict(default="line", group="training", help=text)
    add("--schedule", choices=["line", "root", "constant"], **how)
    kind = cli.number(lambda x: 0 < x < 1, "a number between 0 and 1")
    how = dict(default=0.1, group="training", help="share of the steps before the rate falls")
    add("--warmup", type=kind, metavar="S", **how)
    text = "the tables of relative positions learn so many times as fast (AdamW)"
    add("--bias-rate", type=cli.positive, metavar="X", default=10.0, help=text)
    for name, text in SIZES.items():
        add(f"--{name.replace('_', '-')}", **count, none="the model's", help=text)
    add("--dropout", type=cli.share, metavar="P", default=0.0, help="of values left out")
    text = "encoder and decoder, or one stack that sees the source whole (Fig. 4)"
    add("--architecture", choices=list(ARCHITECTURES), default="encoder-decoder", help=text)
    add("--beam", **count, default=1, help="width, for the test set; 1 is greedy")
    add("--length-penalty", type=cli.multiplier, metavar="A", default=0.6, help="of the beam")
    args = parser.parse_args(argv)
    if "weights" in args.typed and args.paper and args.objective:
        fail("--paper pre-trains from the beginning: leave --weights out, or name tasks")
    if args.optimizer == "adafactor" and args.fsdp:
        fail("--optimizer adafactor needs whole matrices: leave --fsdp out")
    return args


def make(args: argparse.Namespace, facts: dict, found: Found | None) -> Text2Text:
    """The network of the checkpoint, of the weights, or that the flags ask for. What it is goes
    into `facts`, so that who reads a checkpoint can build it."""
    if found or args.weights:
        facts["network"] = found.network if found else args.stored["dataset"]["network"]
        return found.build(args.dropout) if found else rebuild(facts["network"], args.dropout)
    sizes = {name: size for name in SIZES if (size := getattr(args, name)) is not None}
    how = dict(architecture=args.architecture, dropout=args.dropout)
    model = MODELS[args.model](facts["vocab_size"], **how, **sizes)
    facts["network"] = describe(model)
    return model


def step_size(args: argparse.Namespace, step: int) -> float:
    """Share of the peak rate after so many steps. With the "root" it is the peak for a share of
    `--warmup` of the steps, then falls as 1/sqrt(step), as in the paper."""
    done = (step + 1) / (args.steps + 1)
    if args.schedule == "root":
        return min(1.0, (args.warmup / done) ** 0.5)
    return warmup_and_line(done, args.warmup) if args.schedule == "line" else 1.0


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """The sum over real tokens, of logits (B, T, V) and labels (B, T)."""
    logits = logits.flatten(0, 1).float()
    return F.cross_entropy(logits, labels.flatten(), ignore_index=PAD, reduction="sum")


@torch.no_grad()
def evaluate(
    model: Text2Text, part: Gaps | Mixture, dev: Device, args: argparse.Namespace, beam: int = 1
) -> tuple[dict[str, float], list[str]]:
    """Loss and accuracy a target token; of tasks also their metrics, and the answers in order."""
    model.eval()
    kind = torch.float32 if dev.device.type == "mps" else torch.float64
    sums, found = torch.zeros(3, dtype=kind, device=dev.device), []
    tasks, rows = isinstance(part, Mixture), rows_of(args, part) // (dev.world * dev.accumulate)
    if tasks:  # no gradients: there is room for more of them than in training
        rows = min(256, 4 * max(1, rows)) // beam
    for source, target, counts, indices in part.in_order(max(1, rows)):
        with dev.autocast():
            logits, labels = model(source, target[:, :-1]), target[:, 1:]
        right = (logits.argmax(2) == labels) & (labels != PAD)
        values = torch.stack([cross_entropy(logits, labels), right.sum(), labels.ne(PAD).sum()])
        sums += values.to(kind) * (counts > 0)
        if tasks:
            with dev.autocast():
                how = (part.most, beam, args.length_penalty)
                written = write(model, source, *how, known=part.vocabulary.known)
            found += zip(indices.tolist(), part.vocabulary.decode(written), strict=True)
    loss, right, count = dev.sum(sums).tolist()
    metrics = {f"{part.part}_loss": loss / count, f"{part.part}_token_accuracy": right / count}
    answers = [text for _, text in sorted({p for some in dev.gather(found) for p in some})]
    return metrics | (part.score(answers) if tasks else {}), answers


def rows_of(args: argparse.Namespace, part: Gaps | Mixture) -> int:
    """Examples of a step: of a text as many as have --batch-size source tokens."""
    text = isinstance(part, Gaps)
    return max(1, args.batch_size // args.length) if text else args.batch_size


@cli.command
def main(argv: list[str] | None = None) -> dict[str, float]:
    """Trains, or evaluates a checkpoint; returns the training and test metrics."""
    args = parse_args(argv)
    dev = Device(args)
    found = start(args, dev)
    train, val, test = load(args, dev, found and found.vocabulary)
    model = make(args, train.facts, found)
    net = dev.wrap(model)
    if args.optimizer == "adafactor":
        optimizer = torch.optim.Adafactor(model.parameters(), args.lr)
    else:
        # Adam's steps are of one size, the initial weights are not: see README.md, Departures.
        rates = {"": 1, "shared.": 10, "_bias": args.bias_rate, ".q.": model.sizes.d_kv**-0.5}
        kinds: dict[str, list] = {part: [] for part in rates}  # the first one's rate is printed
        for name, p in model.named_parameters():
            kinds[max((part for part in rates if part in name), key=len)].append(p)
        groups = [dict(params=some, lr=args.lr * rates[part]) for part, some in kinds.items()]
        how = dict(betas=(0.9, 0.98), weight_decay=0, fused=not args.fsdp)
        optimizer = torch.optim.AdamW(groups, args.lr, **how)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: step_size(args, step))
    parts = dict(model=model, optimizer=optimizer, schedule=schedule)
    judge = rebuild(train.facts["network"]).to(dev.device) if args.fsdp else model
    tasks = isinstance(train, Mixture)
    monitor = ("val_score", max) if tasks else ("val_loss", min)
    own = {key: train.facts[key] for key in ("tasks", "longest") if key in train.facts}
    run = Run(args, dev, monitor, **parts, dataset=train.facts)
    train.facts |= own  # a checkpoint's are those of its own data, --evaluate may have another

    def measure(part: Gaps | Mixture, beam: int = 1) -> dict[str, float]:
        if args.fsdp:  # whole, to write with
            judge.load_state_dict({key: gathered(v) for key, v in model.state_dict().items()})
        metrics, answers = evaluate(judge, part, dev, args, beam)
        if part is test and tasks and dev.main:
            (run.folder / "answers.txt").write_text("\n".join(answers) + "\n", "utf-8")
        return metrics

    if args.evaluate:
        return run.finish(**measure(test, args.beam))
    mix = (args.mix_temperature, args.mix_limit) if tasks else ()
    batches = train.steps(rows_of(args, train), min(args.every, args.steps), *mix)
    for epoch in run.epochs():
        model.train()
        for source, target, count in run.progress(batches):
            with dev.autocast():
                logits = net(source, target[:, :-1])
            loss = cross_entropy(logits, target[:, 1:])
            run.add(count, train_loss=loss / max(1, count))
            if dev.step(loss, optimizer, count):
                schedule.step()
        run.log(epoch, **run.means(), **(measure(val) if val else {}))
        run.save()
    return run.finish(**run.means(), **measure(test, args.beam))


if __name__ == "__main__":
    main()
