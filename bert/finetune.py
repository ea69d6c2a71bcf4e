"""Fine-tunes a pre-trained network on what is to be said of sentences or of pairs of them.

python bert/finetune.py              # the newest run of train.py, on docstrings: of which package?
python bert/finetune.py --data sst2 --data-dir PATH
python bert/finetune.py --weights runs/bert/RUN --data mrpc --data-dir PATH      # cola, sts-b …
python bert/finetune.py --weights bert-base-uncased --data sentences:PATH        # your own texts
python bert/finetune.py --data pairs:PATH --regression                 # two texts and a number each
python bert/finetune.py --from-scratch --data sst2 --data-dir PATH     # without pre-training
python bert/sample.py "a fine film" "a dull one"                       # what it says

A text becomes tokens, these become embeddings, the Transformer makes of each what it means here,
one vector is pooled of them, and a linear layer reads the class, or a number, from that.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bert import names
from bert.data import Vocabulary, make_vocabulary
from bert.model import MODELS
from bert.published import Found, check_model, newest_run, read_weights
from bert.recipes import SIZES, family_of, tuning
from bert.tasks import DATA, Task, encode, load_task, measure, padded, read_task
from common import cli, counted, fail
from common.data.sources import Source
from common.device import Device
from common.run import Run
from common.schedule import warmup_and_line

# fmt: off
QUICK = dict(model="bert_tiny", data="docstrings", epochs=3, val=200, batch_size=32, lr=3e-4,
             clip=1.0)
PAPER = dict(model="bert_base", data="sst2", epochs=3, val=500, batch_size=32, lr=2e-5,
             clip=1.0)  # A.3 of BERT's paper
# fmt: on
FIXED = [*SIZES, "vocab_size", "lowercase", "length", "weights", "from_scratch", "regression"]


def parse_args(argv: list[str] | None = None) -> cli.Flags:
    """The flags; see --help."""
    parser = cli.Parser("bert", __doc__, QUICK, PAPER, MODELS, DATA, tuning, FIXED, "finetune.py")
    add, count = parser.add_argument, dict(type=cli.integer(1), metavar="N")
    text = "start from published weights, a folder, a file, or a run of train.py"
    none = "the newest run of train.py"
    add("--weights", metavar="NAME|PATH", none=none, group="training", help=text)
    text = "begin with new weights (with --weights: of that network, with its vocabulary)"
    parser.add_switch("--from-scratch", group="training", help=text)
    text = "of a new vocabulary, made of the training set: at most so many tokens"
    add("--vocab-size", **count, group="data", default=8192, help=text)
    text = "let capitals and accents go in a new vocabulary"
    parser.add_switch("--lowercase", group="data", help=text)
    text = "tokens of an input, special ones included; what is more is cut off"
    add("--length", type=cli.integer(8), metavar="N", group="data", none="the context", help=text)
    column = dict(metavar="COLUMN", group="data", none="found by its name")
    add("--text-column", **column, help="of a table: its name, or its number from 1")
    add("--second-column", **column, help="the same, of the second text of pairs")
    add("--label-column", **column, help="the same, of the labels")
    parser.add_switch("--regression", group="data", help="the labels of pairs are numbers")
    for name in SIZES:
        text = "as of train.py, for a network without --weights"
        least = dict(type=cli.integer(8 if name == "context" else 1), metavar="N")
        add(f"--{name.replace('_', '-')}", **least, none="the model's", help=text)
    text = "of values left out, in the last layer, too; of ALBERT there alone"
    add("--dropout", type=cli.share, metavar="P", default=0.1, help=text)
    text = "what matrices shrink by in a step, times the rate"
    add("--weight-decay", type=cli.not_negative, metavar="L", default=0.01, help=text)
    kind = cli.number(lambda x: 0 < x < 1, "a number between 0 and 1")
    text = "share of the steps in which the rate rises, before it falls"
    add("--warmup", type=kind, metavar="S", default=0.1, help=text)
    return parser.parse_args(argv)


def start(args: argparse.Namespace, dev: Device) -> Found | None:
    """The weights to start from, by default those of the newest run; none where the run goes on
    with a checkpoint, or begins with a network of --model."""
    if args.stored or (args.from_scratch and not args.weights):
        return None
    name = args.weights or newest_run()
    if not name:
        fail("no run of train.py is in runs/bert: train one, or name --weights, or --from-scratch")
    found = read_weights(str(name), dev.say)
    if "model" in args.typed:
        check_model(found, args.model)
    if found.vocabulary is None:
        fail(f"--weights {name}: there is no tokenizer beside the weights, so no text can be read "
             "for them")  # fmt: skip
    return found


def facts_of(args: argparse.Namespace, dev: Device, found: Found | None, source: Source) -> dict:
    """Vocabulary and network: the checkpoint's, those of the weights, or new ones."""
    if known := args.stored.get("dataset"):
        return {key: value for key, value in known.items() if key != "classes"}
    if found:
        facts = {**found.vocabulary, "network": found.network}
    else:
        train = source.parts["train"]
        texts = [*train.first, *(train.second or [])]
        family = family_of(args.model)
        made = make_vocabulary(texts, family, args.vocab_size, args.lowercase)
        facts = dev.gather(made)[0]
        sizes = {name: size for name in SIZES if (size := getattr(args, name)) is not None}
        try:
            pad = Vocabulary(facts).special.pad
            with torch.device("meta"):
                facts["network"] = names.describe(MODELS[args.model](facts["vocab_size"], pad=pad,
                                                                     **sizes))  # fmt: skip
        except ValueError as error:
            fail(f"{args.model} can't be built so: {error}")
    most = facts["network"]["context"] or args.length or 512
    if "length" in args.typed and args.length > most:
        fail(f"--length {args.length}: the network's context is {most}, take no more")
    facts["length"] = min(args.length or most, most)
    return facts


def make(args: argparse.Namespace, facts: dict, found: Found | None, dev: Device) -> nn.Module:
    """The network for the task, on the weights that were found; its last layers begin anew."""
    model = build(facts, args.dropout)
    if found and not args.from_scratch:
        new = found.load(model)
        dev.say(f"weights of {found.source}; new at random: {', '.join(new)}")
    return model


def build(facts: dict, dropout: float = 0.0) -> nn.Module:
    """The network that the facts of a checkpoint describe; `dropout` is of all its layers, but of
    ALBERT's in the last one alone (its Table 14)."""
    inner = 0.0 if facts["family"] == "albert" else dropout
    pretrained = names.build(facts["network"], inner)
    return pretrained.classifier(max(1, len(facts["classes"])), dropout)


def loss_of(answers: Tensor, wanted: Tensor, facts: dict, reduction: str = "mean") -> Tensor:
    """Nats of classes (B, K); or squared error of numbers (B, 1), which are predicted in stds
    from the mean of the training set."""
    if facts["classes"]:
        return F.cross_entropy(answers.float(), wanted, reduction=reduction)
    numbers = (wanted - facts["center"]) / facts["scale"]
    return F.mse_loss(answers[:, 0].float(), numbers, reduction=reduction)


@torch.inference_mode()
def evaluate(
    model: nn.Module, part: Task, dev: Device, picture: Path | None = None
) -> dict[str, float]:
    """Loss, and the metrics that GLUE has for the task; `picture` is for the confusion matrix."""
    model.eval()
    losses, found, wanted = [], [], []
    for tokens, segments, answers in part.batches(64):
        with dev.autocast():
            given = model(tokens, segments).float()
        losses.append(loss_of(given, answers, part.facts, "sum").double())
        found.append(given.argmax(1) if part.facts["classes"] else given[:, 0])
        wanted.append(answers)
    everything = dev.gather([torch.cat(found).cpu(), torch.cat(wanted).cpu()])
    found, wanted = (torch.cat(parts) for parts in zip(*everything, strict=True))
    if picture and dev.main and (count := len(part.facts["classes"])):
        from common.plot import confusion_matrix

        counts = (wanted * count + found).bincount(minlength=count**2).view(count, count)
        confusion_matrix(counts, part.facts["classes"], picture)
    loss = float(dev.sum(torch.stack(losses).sum().float())) / len(wanted)
    metrics = {"loss": loss, **measure(part.facts["metrics"], found, wanted)}
    return {f"{part.part}_{name}": value for name, value in metrics.items()}


@torch.inference_mode()
def classify(
    model: nn.Module, facts: dict, first: Sequence[str], second: Sequence[str] | None, dev: Device
) -> dict[str, str | float]:
    """Prints the likeliest classes of texts or pairs, or their numbers; returns the first ones."""
    (inputs, cut), classes = encode(first, second, facts), facts["classes"]
    if cut:
        what = counted(cut, "text")
        print(f"note: {what} cut at {facts['length']} tokens", file=sys.stderr)
    shown = [" | ".join(texts) for texts in zip(*filter(None, (first, second)), strict=True)]
    # What `model(tokens, segments)` does at once:
    tokens, segments = padded(inputs, facts, dev)  # text to tokens, (B, T)
    features = model.features(tokens, segments)  # embeddings and Transformer, (B, T, D)
    pooled = model.pool(features, tokens)  # one vector a text, (B, D)
    answers = model.answer(pooled).float().cpu()  # classes, (B, K)
    if not classes:
        numbers = (answers[:, 0] * facts["scale"] + facts["center"]).tolist()
        for text, number in zip(shown, numbers, strict=True):
            print(f"{text}: {number:.2f}")
        return dict(zip(shown, numbers, strict=True))
    for text, row in zip(shown, answers.softmax(1), strict=True):
        best = row.topk(min(3, len(classes)))
        pairs = zip(best.values.tolist(), best.indices.tolist(), strict=True)
        print(f"{text}: {', '.join(f'{classes[k]} {p:.1%}' for p, k in pairs)}")
    return dict(zip(shown, (classes[k] for k in answers.argmax(1).tolist()), strict=True))


@cli.command
def main(argv: list[str] | None = None) -> dict[str, float]:
    """Trains, or evaluates a checkpoint; returns the training and test metrics."""
    args = parse_args(argv)
    dev = Device(args)
    found, source = start(args, dev), read_task(args, dev)
    facts = facts_of(args, dev, found, source)
    train, val, test = load_task(args, dev, facts, source)
    model = make(args, facts, found, dev)
    net = dev.wrap(model)
    decayed = [p for n, p in model.named_parameters() if p.dim() > 1 and not n.endswith("bias")]
    others = [p for n, p in model.named_parameters() if p.dim() < 2 or n.endswith("bias")]
    groups = [dict(params=decayed, weight_decay=args.weight_decay), dict(params=others)]
    how = dict(betas=(0.9, 0.999), eps=1e-6, weight_decay=0.0, fused=not args.fsdp)
    optimizer = torch.optim.AdamW(groups, args.lr, **how)
    batches = train.batches(args.batch_size, train=True)
    steps = args.epochs * len(batches)
    share = lambda step: warmup_and_line((step + 1) / (steps + 1), args.warmup)  # noqa: E731
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, share)
    parts = dict(model=model, optimizer=optimizer, schedule=schedule)
    run = Run(args, dev, (f"val_{facts['metrics'][-1]}", max), **parts, dataset=facts)
    if args.evaluate:
        return run.finish(**evaluate(model, test, dev, run.folder / "confusion.png"))
    for epoch in run.epochs():
        model.train()
        for tokens, segments, answers in run.progress(batches):
            with dev.autocast():
                given = net(tokens, segments)  # embeddings, Transformer, pooling, class
                loss = loss_of(given, answers, facts)
            run.add(train_loss=loss)
            if dev.step(loss, optimizer):
                schedule.step()
        run.log(epoch, **run.means(), **(evaluate(model, val, dev) if val else {}))
        run.save()
    return run.finish(**run.means(), **evaluate(model, test, dev))


if __name__ == "__main__":
    main()
