"""Trains CLIP (Radford et al. 2021): images and captions, each to find its own among all others.

python clip/train.py                                             # shapes: 83.6%, 106 s
python clip/train.py --data flickr8k --data-dir PATH             # photographs, five captions each
python clip/train.py --data captions:pairs.csv                   # your own: columns image, caption
python clip/train.py --weights openai/clip-vit-base-patch32 --data captions:pairs.csv
python clip/train.py --weights PATH --freeze --data captions:pairs.csv   # last projections alone
python clip/train.py --paper --data captions:pairs.csv           # Table 18: ViT-B/32, 32 epochs

clip_small is for small images: a modified ResNet of few blocks. `test_match` is the right caption
found among 100 different ones (measured on one core); evaluation.py has the other metrics,
contrast.py says how processes and --accumulate share the loss.
"""

import argparse
import itertools
from functools import partial

import torch

from clip.contrast import WholeStep, look_ahead
from clip.evaluation import measure
from clip.model import CLIP, CONTEXT, MODELS, SIZES
from clip.pairs import say_notes, square_window, whole_steps
from clip.published import Found, read_published
from clip.recipes import FIXED, OWN, add_own_flags, recipe
from common import cli, fail
from common.classify import check_images
from common.data.captions import CAPTION_SETS, CaptionSet, load_captions
from common.data.images import add_image_flags
from common.data.tokens import Tokens, train_tokenizer
from common.device import Device
from common.run import Run
from common.schedule import cosine
from common.weights import keep_frozen, trained

# fmt: off
QUICK = dict(model="clip_small",    data="shapes",                epochs=8,  val=250, batch_size=64,    lr=2e-3,  # noqa: E501
             weight_decay=0.1, warmup=0.1)
PAPER = dict(model="clip_vit_b_32", data="captions:data/web.csv", epochs=32, val=0,   batch_size=32768, lr=5e-4,  # noqa: E501
             weight_decay=0.2, warmup=2000, accumulate=64)  # Tables 18 and 20
# fmt: on
PROJECTIONS = ("logit_scale", "text_projection", "visual.proj", "visual.attnpool.c_proj.")


def parse_args(argv: list[str] | None = None) -> cli.Flags:
    """The flags; see --help."""
    parser = cli.Parser("clip", __doc__, QUICK, PAPER, MODELS, CAPTION_SETS, recipe, FIXED)
    add_image_flags(parser)
    add = parser.add_argument
    text = "start from published weights (openai/clip-vit-base-patch32 …), a folder, a file, a run"
    add("--weights", metavar="NAME|PATH", none="no", group="training", help=text)
    text = "train only the last projections of both encoders, and the scale"
    parser.add_switch("--freeze", group="training", help=text)
    add_own_flags(parser)
    args = parser.parse_args(argv)
    if args.batch_size == 1:
        fail("--batch-size 1: one pair has no other to be told from; take 2 or more")
    if args.freeze and not args.weights:
        fail("--freeze trains the projections on what --weights gives: add --weights NAME|PATH")
    if args.weights and args.paper:
        fail("--paper trains from the beginning: leave --weights out")
    if not args.weights:
        try:
            with torch.device("meta"):  # before any work is done
                CLIP(**sizes_of(args))
        except ValueError as error:
            fail(f"--model {args.model}: {error}")
    return args


def sizes_of(args: argparse.Namespace) -> dict:
    """The sizes of the network that the flags ask for."""
    own = {name: getattr(args, name) for name in OWN if args.model == "clip_small"}
    sizes = dict(image_size=args.size, vocab_size=args.vocab_size, context=CONTEXT)
    return SIZES[args.model] | own | sizes


def start(args: argparse.Namespace, dev: Device) -> Found | None:
    """The weights to start from; none where the run goes on with a checkpoint."""
    if not args.weights or args.stored:
        return None
    found = read_published(args.weights, dev.say)
    if found.tokenizer is None:
        fail(f"--weights {args.weights}: there is no tokenizer.json beside the weights, so no text "
             "can be read for them")  # fmt: skip
    kinds = [(sizes["patch_size"], sizes["vision_width"])
             for sizes in (SIZES[args.model], found.network)]  # fmt: skip
    if "model" in args.typed and kinds[0] != kinds[1]:
        fail(f"--model {args.model}: the weights are of another network: leave --model out")
    return found


def make(args: argparse.Namespace, train: CaptionSet, dev: Device, found: Found | None) -> CLIP:
    """The network of the checkpoint, of the weights, or that the flags ask for. What it is, and its
    vocabulary, go into the facts of the data, so that who reads a checkpoint can build it."""
    facts, known = train.facts, args.stored.get("dataset")
    if known:
        facts |= {key: known[key] for key in ("network", "tokenizer")}
    elif found:
        facts |= dict(network=found.network, tokenizer=found.tokenizer)
    else:
        texts = train.texts()[0]
        facts["tokenizer"] = dev.gather(train_tokenizer(texts, args.vocab_size))[0]
        tokens = Tokens(facts["tokenizer"])
        facts["network"] = sizes_of(args) | dict(vocab_size=tokens.size, end_token=tokens.end)
    model = found.build() if found else CLIP(**facts["network"])
    for name, parameter in model.named_parameters() if args.freeze else ():
        parameter.requires_grad_(name.startswith(PROJECTIONS))
    return model


def make_optimizer(args: cli.Flags, model: CLIP) -> torch.optim.Optimizer:
    """AdamW; of the weights all decay but gains, biases and the scale (Sec. 2.5). The rate of the
    text encoder's blocks is `--text-rate` times that of the rest, whose rate is printed."""
    blocks = {p for name, p in model.named_parameters() if name.startswith("transformer.")}
    groups = [
        dict(params=[p for p in trained(model) if (p.dim() > 1, p in blocks) == (decayed, text)],
             weight_decay=args.weight_decay * decayed, lr=args.lr * (args.text_rate if text else 1))
        for text, decayed in itertools.product((False, True), (True, False))
    ]  # fmt: skip
    groups = [group for group in groups if group["params"]]
    return torch.optim.AdamW(groups, args.lr, (0.9, args.beta2), args.eps, fused=True)


def step_size(steps: int, warmup: float, step: int) -> float:
    """Share of the rate: up in a straight line for `warmup` steps, or that share of them, then
    half a cosine."""
    rising = warmup if warmup >= 1 else steps * warmup
    if step < rising:
        return min(1.0, (step + 1) / rising)
    return cosine(step / steps, rising / steps) if step < steps else 0.0


@cli.command
def main(argv: list[str] | None = None) -> dict[str, float]:
    """Trains, or evaluates a checkpoint; returns the training and test metrics."""
    args = parse_args(argv)
    dev = Device(args, auto_precision="fp32" if args.model == "clip_small" else "bf16")
    found, known = start(args, dev), args.stored.get("dataset")
    size = (found.network if found else known["network"])["image_size"] if found or known else 0
    inputs = found.inputs if found else known
    train, val, test = load_captions(args, dev, size or args.size, inputs, square_window)
    model = make(args, train, dev, found)
    tokens = Tokens(train.facts["tokenizer"])
    say_notes(train, (train, val, test), tokens, args.batch_size, dev)
    check_images(model.visual, args, dev, len(train), model.image_size)
    net = dev.wrap(model)
    optimizer, batches = make_optimizer(args, model), train.batches(args.batch_size)
    share = partial(step_size, args.epochs * len(batches), args.warmup)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, share)
    parts = dict(model=model, optimizer=optimizer, schedule=schedule, dataset=train.facts)
    run = Run(args, dev, ("val_match", max), **parts)
    if args.evaluate:
        return run.finish(**measure(model, test, tokens, dev, args.data, train))

    pieces = dev.world * dev.accumulate
    for epoch in run.epochs():
        model.train()
        keep_frozen(model)
        for parts in whole_steps(run.progress(batches), tokens, model.context, dev):
            step = look_ahead(model, parts, dev) if dev.accumulate > 1 else WholeStep(dev)
            for number, (images, texts, keys) in enumerate(parts):
                with dev.autocast():
                    image_features, text_features, scale = net(images, texts)
                if dev.accumulate == 1:
                    step.add(image_features, text_features, keys)
                loss = step.loss(number, image_features, text_features, scale)
                run.add(train_loss=loss, train_scale=scale)
                if dev.step(loss * pieces, optimizer):
                    schedule.step()
                    model.limit_scale()
        more = measure(model, val, tokens, dev, args.data) if val else {}
        run.log(epoch, **run.means(), **more)
        run.save()
    return run.finish(**run.means(), **measure(model, test, tokens, dev, args.data, train))


if __name__ == "__main__":
    main()
