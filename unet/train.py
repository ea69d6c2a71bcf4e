"""Trains U-Net (Ronneberger, Fischer, Brox 2015).

python unet/train.py                                      # shapes: IoU 0.933, 78 s
python unet/train.py --data isbi --data-dir PATH          # neurons, a fold of 30 images
python unet/train.py --data nuclei --data-dir PATH        # cell nuclei, told apart
python unet/train.py --data folder:PATH                   # your own images/ and masks/
python unet/train.py --paper --data-dir PATH              # the paper's network and recipe
"""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from common import cli
from common.classify import check_images
from common.device import Device
from common.run import Run
from common.schedule import cosine
from common.weights import add_weight_flags, check_weights, keep_frozen, start_from, trained
from unet.augment import brighten, cut, tile_of
from unet.data import MASK_SETS, UNKNOWN, MaskSet, add_mask_flags, load_masks
from unet.model import MODELS, UNet, border_weights, energy, segment
from unet.scores import class_scores, iou_of, match_cells, tally

# fmt: off
QUICK = dict(model="unet_small", data="shapes", epochs=2, val=100, batch_size=16, lr=3e-3, size=64,
             optimizer="adamw", augment=False, contrast="set", border=10.0, balance=False, views=1)
PAPER = dict(model="unet", data="isbi", epochs=2400, val=0, batch_size=1, lr=1e-3, size=388,
             optimizer="sgd", augment=True, contrast="set", border=10.0, balance=True, views=8)
CELLS = dict(val=0, batch_size=2, size=256, augment=True, contrast="set", border=0.0, views=8)
EPOCHS = {"isbi": 200, "nuclei": 12}  # with CELLS, which are for all images but shapes
# fmt: on


def recipe(model: str, data: str | None, paper: bool, **given) -> tuple[dict, dict]:
    """Photographs of cells and the user's own have another recipe than shapes."""
    own = dict(width=getattr(MODELS[model], "keywords", {}).get("width", 64))  # Fig. 1's 64
    if not paper and data not in (None, "shapes"):
        own |= CELLS | {"epochs": EPOCHS.get(data, 40)}
    values, nothing = (PAPER if paper else QUICK) | own | given, {}
    if not values["augment"]:
        nothing |= dict.fromkeys(("elastic", "rotate"), "it is a part of --augment")
    if not values["border"]:
        nothing["sigma"] = "it is how far the weights of --border reach, and w0 is 0"
    return own, nothing


def parse_args(argv: list[str] | None = None) -> cli.Flags:
    """The flags; see --help."""
    parser = cli.Parser("unet", __doc__, QUICK, PAPER, MODELS, MASK_SETS, recipe)
    add_mask_flags(parser)
    add_weight_flags(parser, published=False)
    add, switch = parser.add_argument, parser.add_switch
    count, amount = dict(type=cli.integer(1), metavar="N"), dict(type=cli.not_negative, metavar="X")
    add("--size", **count, help="pixels of a training tile's answer (shapes: of a scene)")
    add("--width", **count, help="channels of the first stage")
    switch("--skips", default=True, help="connect the two paths")
    add("--optimizer", choices=["sgd", "adamw"], help="sgd has the paper's momentum of 0.99")
    switch("--augment", help="turn, bend and brighten training tiles")
    add("--elastic", **amount, default=10.0, help="std of the 3x3 displacements, pixels")
    add("--rotate", **amount, default=180.0, help="turn by up to so many degrees")
    add("--border", **amount, help="w0 of Eq. 2; 0: borders weigh as the rest")
    add("--sigma", type=cli.positive, metavar="X", default=5.0, help="sigma of Eq. 2, in pixels")
    switch("--balance", help="w_c of Eq. 1: rare classes count")
    add("--views", type=int, choices=[1, 8], help="average test answers over so many turns")
    args = parser.parse_args(argv)
    check_weights(args, {})
    return args


def build(args: cli.Flags, facts: dict) -> UNet:
    """The network that the flags ask for."""
    settings = {"skips": args.skips} | ({"width": args.width} if args.width else {})
    return MODELS[args.model](facts["channels"], len(facts["classes"]), **settings)


def weigh(images: MaskSet, args: cli.Flags) -> list[Tensor] | None:
    """The weight maps (H, W) of a set: w_c and the border term of Eq. 2, computed beforehand."""
    masks, balance = images.content.masks, torch.ones(UNKNOWN + 1)
    if args.balance:  # the inverse frequency of a class; 1 on average
        counts = sum(torch.bincount(mask.flatten(), minlength=UNKNOWN + 1) for mask in masks)
        counts = counts[: len(images.facts["classes"])]
        balance[: len(counts)] = counts.sum() / (len(counts) * counts.clamp(min=1))
    if not args.border:
        return [balance[mask.long()] for mask in masks] if args.balance else None
    return [  # the border term is for the background
        balance[mask.long()] + border_weights(*distances, args.border, args.sigma) * (mask == 0)
        for mask, *distances in images.distances(args.border, args.sigma)
    ]


def step_size(steps: int, step: int) -> float:
    """Share of the learning rate: a short warm-up, then a half cosine down to zero."""
    done = step / max(1, steps)
    return min(1.0, done / 0.05) * cosine(min(1.0, done))


@torch.inference_mode()
def evaluate(model: UNet, images: MaskSet, dev: Device, views: int = 1) -> dict[str, float]:
    """Loss, pixel error, IoU and Dice over all pixels, the images' mean IoU, scores of cells."""
    model.eval()
    part, classes, num = images.part, images.facts["classes"], len(images.facts["classes"])
    loss, counts = torch.zeros((), device=dev.device), torch.zeros(num, num, dtype=torch.int64)
    sums = torch.zeros(4)  # over images: IoU, average precision, merged cells, cells
    for x, masks, indices in images.batches(10):
        with dev.autocast():
            logits = segment(model, x, views)
        loss += F.cross_entropy(logits, masks.long(), ignore_index=UNKNOWN, reduction="sum")
        answers = logits.argmax(1).cpu()
        for index, mask, answer in zip(indices.tolist(), masks.cpu(), answers, strict=True):
            seen = tally(mask, answer, num)
            labels = images.content.labels and images.content.labels[index]
            cells = (0.0, 0, 0) if labels is None else match_cells(labels, answer > 0)
            counts += seen
            iou = iou_of(seen)[1:].nanmean().nan_to_num(1.0)  # right if nothing is there, nor seen
            sums += torch.tensor([iou, *cells])
    loss, counts, sums = (dev.sum(t.to(dev.device)).cpu() for t in (loss, counts, sums))
    metrics = {f"{part}_loss": float(loss / counts.sum()), **class_scores(counts, classes, part)}
    metrics[f"{part}_image_iou"] = float(sums[0]) / len(images)
    if images.content.labels:
        metrics[f"{part}_ap"] = float(sums[1]) / len(images)
        metrics[f"{part}_merged"] = float(sums[2] / sums[3].clamp(min=1))
    return metrics


@cli.command
def main(argv: list[str] | None = None) -> dict[str, float]:
    """Trains, or evaluates a checkpoint; returns the training and test metrics."""
    args = parse_args(argv)
    dev = Device(args)
    train, val, test = load_masks(args, dev, args.size)
    model = build(args, train.facts)
    side = tile_of(args) + 2 * model.context
    check_images(model, args, dev, len(train), side, train.facts["channels"])
    start_from(model, args, dev, train.facts, ("head",), {})
    net = dev.wrap(model)
    steps = args.epochs * len(train.batches(args.batch_size, cut))
    if args.optimizer == "sgd":  # Sec. 3
        optimizer, share = torch.optim.SGD(trained(model), args.lr, momentum=0.99), lambda step: 1.0
    else:
        optimizer, share = torch.optim.AdamW(trained(model), args.lr), partial(step_size, steps)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, share)
    parts = dict(model=model, optimizer=optimizer, schedule=schedule, dataset=train.facts)
    run = Run(args, dev, ("val_iou", max), **parts)
    if args.evaluate:
        return run.finish(**evaluate(model, test, dev, args.views))

    train.weights = weigh(train, args)
    places = partial(cut, args=args, context=model.context)
    augment = brighten if args.augment else None
    for epoch in run.epochs():
        model.train()
        keep_frozen(model)
        for images, masks, weights in run.progress(train.batches(args.batch_size, places, augment)):
            with dev.autocast():
                loss = energy(net(images).float(), masks, weights)
            run.add(train_loss=loss)
            if dev.step(loss, optimizer):
                schedule.step()
        run.log(epoch, **run.means(), **(evaluate(model, val, dev) if val else {}))
        run.save(every=10)
    return run.finish(**run.means(), **evaluate(model, test, dev, args.views))


if __name__ == "__main__":
    main()
