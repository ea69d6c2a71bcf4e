"""Trains DALL-E (Ramesh et al. 2021): a dVAE, then a transformer on captions and its codes.

python dalle/train.py                                       # shapes: one after the other
python dalle/train.py --model dvae_small                    # the codes alone
python dalle/train.py --codes runs/dalle/dvae_small-shapes  # the transformer, on codes of yours
python dalle/train.py --data captions:pairs.csv             # your own: columns image, caption
python dalle/train.py --data flickr8k --data-dir PATH       # photographs, five captions each
python dalle/train.py --codes PATH --data captions:pairs.csv    # on the released encoder.pkl …
python dalle/train.py --model dvae_small --data folder:PATH     # codes of images without captions
python dalle/train.py --paper --data captions:pairs.csv     # Sec. 2: dalle on codes of dvae

`test_right` is the share of unseen captions of one object for which an image is drawn that has the
shape and the colour, as a classifier of scenes sees it (common/scenes.py, trained at the first
use). Losses are in nats a token. The first stage is in train_dvae.py, the flags in options.py.
"""

from functools import partial

import torch
from torch.distributed.fsdp import register_fsdp_forward_method

from common import cli, fail
from common.data.captions import CaptionSet
from common.device import Device
from common.run import Run
from dalle.data import Coded, Words, check_captions, load, make_words, reworded, say_losses
from dalle.evaluate import prompt_metrics, stream_metrics
from dalle.model import DALLE, DVAE, MODELS, losses
from dalle.options import CODES, SIZES, check_size, parse
from dalle.published import network_of, read_codes
from dalle.train_dvae import step_size, train_dvae, train_first

# fmt: off
QUICK = dict(model="dalle_small", data="shapes",                epochs=8, val=500, batch_size=32,   lr=2e-3,  # noqa: E501
             clip=1.0, warmup=0.05)
PAPER = dict(model="dalle",       data="captions:data/web.csv", epochs=2, val=0,   batch_size=1024, lr=4.5e-4,  # noqa: E501
             clip=4.0, warmup=5000)  # App. B.2
# fmt: on


def parse_args(argv: list[str] | None = None) -> cli.Flags:
    """The flags; see --help."""
    return parse(__doc__, QUICK, PAPER, argv)


def find_codes(args: cli.Flags, dev: Device) -> tuple[cli.Flags, DVAE]:
    """The dVAE, of the checkpoint, of --codes, or trained now; and the flags, with a run's folder
    if it had to be made for that."""
    if args.stored:
        path = args.evaluate or args.run_dir
        if "dvae" not in args.stored:
            fail(f"{path} has no dVAE in it: it is no whole checkpoint of {args.model}")
        return args, network_of(args.stored["dvae"], path)
    if args.codes:
        return args, read_codes(args.codes)
    args, folder = train_first(args, dev, parse_args)
    return args, read_codes(folder)


def build(args: cli.Flags, words: Words, dvae: DVAE) -> DALLE:
    """The transformer that the flags ask for, for these words and codes."""
    check_size(args.size, dvae.factor)
    sizes = {name: getattr(args, name) for name in SIZES}
    sizes |= dict(num_codes=dvae.num_codes, side=args.size // dvae.factor, dropout=args.dropout)
    try:
        return MODELS[args.model](words.size, **sizes)
    except ValueError as error:
        fail(f"{args.model} can't be built: {error}")


def make_optimizer(args: cli.Flags, model: DALLE) -> torch.optim.Optimizer:
    """AdamW; gains, biases, and embeddings don't decay (App. B.2)."""
    plain = {p for n, p in model.named_parameters() if p.dim() < 2 or n.split(".")[0] not in
             ("h", "text_head", "image_head")}  # fmt: skip
    groups = [dict(params=[p for p in model.parameters() if (p in plain) == is_plain],
                   weight_decay=0.0 if is_plain else args.weight_decay)
              for is_plain in (False, True)]  # fmt: skip
    return torch.optim.AdamW(groups, args.lr, (0.9, args.beta2), fused=not args.fsdp)


@cli.command
def main(argv: list[str] | None = None) -> dict[str, float]:
    """Trains, or evaluates a checkpoint; returns the training and test metrics."""
    args = parse_args(argv)
    if args.model not in CODES:
        return train_dvae(args)
    check_captions(args)
    args, dvae = find_codes(args, Device(args))
    check_size(args.size, dvae.factor)
    dev = Device(args)  # seeds anew: the transformer begins alike, whoever trained the codes
    train, val, test = load(args, dev)
    known = args.stored.get("dataset")
    if known:
        train.facts |= {key: known[key] for key in ("tokenizer", "text_length")}
    else:
        make_words(train, args, dev)
    words = Words(train.facts)
    say_losses(words, (train, val, test), args, dev)
    dvae = dvae.to(dev.device).requires_grad_(False).eval()
    model = build(args, words, dvae)
    net = dev.wrap(model)
    if args.fsdp:
        register_fsdp_forward_method(model, "step")
    optimizer = make_optimizer(args, model)
    steps = args.epochs * len(train.batches(args.batch_size))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, partial(step_size, steps, args))
    parts = dict(model=model, optimizer=optimizer, schedule=schedule, dataset=train.facts)
    run = Run(args, dev, ("val_loss", min), **parts, dvae=dvae.state_dict())

    def measure(part: CaptionSet | None) -> dict[str, float]:
        found = stream_metrics(model, dvae, part, words, dev) if part else {}
        if part is test and args.prompts:
            picture = run.folder / "samples.png"
            found |= prompt_metrics(model, dvae, words, args, dev, picture)
        return found

    if args.evaluate:
        return run.finish(**measure(test))
    batches = Coded(train, dvae, dev).batches(args.batch_size)
    for epoch in run.epochs():
        model.train()
        for codes, captions in run.progress(batches):
            captions = reworded(captions, args.captions, args.seed, run.step)
            text = words.encode(captions).to(dev.device)
            with dev.autocast():
                loss, of_text, of_image = losses(*net(text, codes), text, codes)
            run.add(train_loss=loss, train_text_loss=of_text, train_image_loss=of_image)
            if dev.step(loss, optimizer):
                schedule.step()
        run.log(epoch, **run.means(), **measure(val))
        run.save()
    return run.finish(**run.means(), **measure(test))


if __name__ == "__main__":
    main()
