"""Pre-trains BERT, RoBERTa, ALBERT, ELECTRA and XLNet: words that are hidden in a text are told.

python bert/train.py                                       # 25.4% ± 1.1, bigrams 19.3%; 103 s
python bert/train.py --model electra_tiny                  # roberta_tiny, albert_tiny, xlnet_tiny
python bert/train.py --data english --data-dir PATH        # bert_mini, 17 million characters
python bert/train.py --data text:novel.txt                 # your own file, or a folder of .txt
python bert/train.py --weights bert-base-uncased --data text:novel.txt
python bert/train.py --paper --data text:wikipedia         # BERT's recipe; --model roberta_base …

`test_masked_accuracy` is the share of hidden tokens that are told, `test_unigram_accuracy` and
`test_bigram_accuracy` what two simple models of the same text tell of them. Of seeds 0, 1, 2.
"""

import argparse

import torch

from bert import names
from bert.data import Documents, guesses, load_text, split_long
from bert.lamb import Lamb
from bert.model import FAMILIES, MODELS, Pretrained
from bert.published import Found, check_model, read_weights
from bert.recipes import PAIRS, PART, SIZES, check, family_of, recipe, rows_of
from common import cli, fail
from common.data.corpora import CORPUS_SETS
from common.device import Device, forked
from common.run import Run
from common.schedule import warmup_and_line

# fmt: off
QUICK = dict(model="bert_tiny", data="pydocs", vocab_size=2048, steps=4200, every=600, val=20_000,
             batch_size=512, length=32, lr=2e-3, weight_decay=0.01, dropout=0.0, clip=1.0)
PAPER = dict(model="bert_base", data="text:data/wikipedia", vocab_size=30_522, steps=1_000_000,
             every=10_000, val=1_000_000, batch_size=131_072, accumulate=8, lr=1e-4,
             weight_decay=0.01, clip=1.0)  # A.2 of BERT's paper
# fmt: on
FIXED = [*SIZES, "vocab_size", "lowercase", "length", "pairs", "everywhere", "every", "weights"]
OPTIMIZERS = {"adamw": torch.optim.AdamW, "lamb": Lamb}


def parse_args(argv: list[str] | None = None) -> cli.Flags:
    """The flags; see --help."""
    parser = cli.Parser("bert", __doc__, QUICK, PAPER, MODELS, CORPUS_SETS, recipe, FIXED)
    add, count = parser.add_argument, dict(type=cli.integer(1), metavar="N")
    add("--vocab-size", **count, group="data", default=2048, help="at most so many tokens")
    text = "let capitals and accents go"
    parser.add_switch("--lowercase", group="data", help=text)
    text = "tokens of an example, special ones included"
    add("--length", type=cli.integer(8), metavar="N", group="data", none="the context", help=text)
    add("--every", **count, group="training", default=250, help="steps between validations")
    text = "start from published weights (bert-base-uncased …), a folder, a file or a run"
    add("--weights", metavar="NAME|PATH", none="no", group="training", help=text)
    for name, text in (("layers", "blocks"), ("heads", "heads that share d_model"),
                       ("groups", "layers with weights of their own (ALBERT)")):  # fmt: skip
        add(f"--num-{name}", **count, none="the model's", help=text)
    for name, text in (("d-model", "width"), ("d-ff", "width of the feed-forward layers")):
        add(f"--{name}", **count, none="the model's", help=text)
    own = dict(type=cli.integer(8), metavar="N", none="the model's")
    add("--context", **own, help="tokens that are seen at once, at most")
    add("--dropout", type=cli.share, metavar="P", none="the model's", help="of values left out")
    text = "learn from pairs of sentences, too: which follow (BERT), in which order (ALBERT)"
    parser.add_switch("--pairs", default=True, help=text)
    text = "learn from all tokens, and not from the hidden ones alone (ELECTRA)"
    parser.add_switch("--everywhere", default=True, help=text)
    text = "different masks that a text gets before they come again; 1: static"
    add("--copies", **count, none="no end of them", help=text)
    add("--optimizer", choices=list(OPTIMIZERS), default="adamw", help="which one")
    text = "what matrices shrink by in a step, times the rate"
    add("--weight-decay", type=cli.not_negative, metavar="L", default=0.01, help=text)
    kind = cli.number(lambda x: 0 < x < 1, "a number between 0 and 1")
    text = "share of the steps in which the rate rises, before it falls"
    add("--warmup", type=kind, metavar="S", default=0.1, help=text)
    text = "Adam's: how slowly its mean of squares moves"
    add("--beta2", type=cli.share, metavar="B", default=0.98, help=text)
    return check(parser.parse_args(argv))


def start(args: argparse.Namespace, dev: Device) -> Found | None:
    """The weights to start from; none where the run goes on with a checkpoint."""
    if not args.weights or args.stored:
        return None
    found = read_weights(args.weights, dev.say)
    if found.vocabulary is None:
        fail(f"--weights {args.weights}: there is no tokenizer beside the weights, so no text can "
             "be read for them")  # fmt: skip
    if "model" in args.typed:
        check_model(found, args.model)
    return found


def learns_from_pairs(args: argparse.Namespace, found: Found | None) -> bool:
    """Whether the network (of weights, a checkpoint or the flags) has a head for pairs."""
    network = found.network if found else args.stored.get("dataset", {}).get("network", {})
    return network.get("pairs", args.pairs)


def make(
    args: argparse.Namespace, facts: dict, pad: int, found: Found | None, dev: Device
) -> Pretrained:
    """The network of the checkpoint, of the weights, or that the flags ask for. What it is goes
    into `facts`, so that who reads a checkpoint can build it."""
    if args.weights:
        facts["network"] = found.network if found else args.stored["dataset"]["network"]
        if "everywhere" in args.typed and facts["network"]["family"] == "electra":
            facts["network"] = {**facts["network"], "everywhere": args.everywhere}
        model = names.build(facts["network"], args.dropout)
        if found and (new := found.load(model)):
            dev.say(f"note: {args.weights} has no {', '.join(new)}: new, at random")
        return model
    given = {
        name: size for name in [*SIZES, "dropout"] if (size := getattr(args, name)) is not None
    }
    family = family_of(args.model)
    own = {"bert": ["pairs"], "albert": ["pairs"], "electra": ["everywhere"]}.get(family, [])
    given |= {name: getattr(args, name) for name in own}
    try:
        model = MODELS[args.model](facts["vocab_size"], pad=pad, **given)
    except ValueError as error:
        fail(f"{args.model} can't be built so: {error}")
    facts["network"] = names.describe(model)
    return model


@torch.no_grad()
def evaluate(model: Pretrained, part: Documents, dev: Device, rows: int, length: int) -> dict:
    """Of the hidden tokens nats and the share that is right; of pairs and of replaced tokens, where
    the model learns from them, the same. What ELECTRA draws in a batch goes by its number."""
    model.eval()
    sums: dict[str, torch.Tensor] = {}
    rows = min(rows, max(1, PART // length))  # of so many a step's pieces are, too, with --paper
    with forked("evaluate", dev, alike=True):
        for number, (inputs, answers, counts) in enumerate(part.in_order(rows, length)):
            torch.manual_seed(number * dev.world + dev.rank)
            with dev.autocast():
                found = model.figures(model(**inputs), **answers)
            for name, pair in found.items():
                sums[name] = sums.get(name, 0) + pair.double() * counts
    pairs = {name: dev.sum(pair).tolist() for name, pair in sums.items()}
    return {
        f"{part.part}_{name}": total / max(1.0, count) for name, (total, count) in pairs.items()
    }


@cli.command
def main(argv: list[str] | None = None) -> dict[str, float]:
    """Trains, or evaluates a checkpoint; returns the training and test metrics."""
    args = parse_args(argv)
    dev = Device(args)
    found = start(args, dev)
    family = found.family if found else family_of(args.model)
    single = family in PAIRS and not learns_from_pairs(args, found)
    arrange = FAMILIES["roberta"].arrange if single else None
    train, val, test = load_text(args, dev, family, found and found.vocabulary, arrange)
    model = make(args, train.facts, train.special.pad, found, dev)
    length, rows = rows_of(args, model.context)
    split_long((train, val, test), length, dev)
    net = dev.wrap(model)
    decayed = [p for n, p in model.named_parameters() if p.dim() > 1 and not n.endswith("bias")]
    others = [p for n, p in model.named_parameters() if p.dim() < 2 or n.endswith("bias")]
    groups = [dict(params=decayed, weight_decay=args.weight_decay), dict(params=others)]
    how = dict(lr=args.lr, betas=(0.9, args.beta2), eps=1e-6, weight_decay=0.0)
    how |= dict(fused=not args.fsdp) if args.optimizer == "adamw" else {}
    optimizer = OPTIMIZERS[args.optimizer](groups, **how)
    share = lambda step: warmup_and_line((step + 1) / (args.steps + 1), args.warmup)  # noqa: E731
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, share)
    parts = dict(model=model, optimizer=optimizer, schedule=schedule)
    run = Run(args, dev, ("val_masked_loss", min), **parts, dataset=train.facts)

    def measure(part: Documents) -> dict[str, float]:
        return evaluate(model, part, dev, rows, length)

    if args.evaluate:
        return run.finish(**measure(test), **guesses(train, test, length))
    batches = train.steps(rows, length, min(args.every, args.steps))
    for epoch in run.epochs():
        model.train()
        for inputs, answers in run.progress(batches):
            with dev.autocast():
                loss, count = model.loss(net(**inputs), **answers)
            run.add(count, train_loss=loss / max(1, count))
            if dev.step(loss, optimizer, count):
                schedule.step()
        run.log(epoch, **run.means(), **(measure(val) if val else {}))
        run.save()
    return run.finish(**run.means(), **measure(test), **guesses(train, test, length))


if __name__ == "__main__":
    main()
