"""Weights to start from: torchvision's of COCO, ImageNet's of the backbone, or a file.

    add_weight_flags(parser)                      # --weights coco|imagenet|FILE, --freeze
    start_from(model, args, dev, train.facts)     # before dev.wrap

A file may be a checkpoint of ours, a state_dict of torchvision's detectors (in the names of the
released file, too), or of a classifier, of which the backbone is taken. Layers for other classes
begin anew.
"""

import argparse
import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from common import cli, fail
from common.checkpoint import read_weights
from common.device import Device
from common.weights import IMAGENET, check_evaluated, download, load

HEADS = ("roi_heads.box_predictor", "roi_heads.mask_predictor")
MASKS = ("roi_heads.mask_head", "roi_heads.mask_predictor")
PUBLISHED = ("maskrcnn_resnet50_fpn", "fasterrcnn_resnet50_fpn")
OLD = [  # names of the released files, and torchvision's of today, which are ours
    (r"^(rpn\.head\.conv)\.(weight|bias)$", r"\1.0.0.\2"),
    (r"^(backbone\.fpn\.(?:inner|layer)_blocks\.\d)\.(weight|bias)$", r"\1.0.\2"),
]


def add_weight_flags(parser: cli.Parser) -> None:
    """The flags of what to start from, and what of it learns."""
    text = (
        "start from torchvision's detector of COCO, from its classifier of ImageNet, or from a "
        "state_dict or checkpoint; other classes get new last layers"
    )
    names = "coco|imagenet|FILE"
    parser.add_argument("--weights", metavar=names, none="no", group="training", help=text)
    text = "train only the last layers, of classes, boxes and masks"
    parser.add_switch("--freeze", group="training", help=text)


def check_weights(args: argparse.Namespace) -> None:
    """Ends in one line if the flags ask for weights that aren't there, or that nothing would read,
    before any work is done."""
    check_evaluated(args)
    if args.freeze and not args.weights:
        fail("--freeze trains the last layers on what --weights gives: add --weights FILE")
    if args.weights in ("coco", "imagenet"):
        if args.model not in PUBLISHED:
            fail(f"--weights {args.weights}: none for {args.model}, but for {', '.join(PUBLISHED)}")
    elif "weights" in args.typed and not Path(args.weights).is_file():
        fail(f"--weights {args.weights}: there is no such file (or write coco, or imagenet)")


def start_from(model: nn.Module, args: argparse.Namespace, dev: Device, facts: dict) -> None:
    """Loads `args.weights`, if any, into `model`, and freezes all but its last layers on --freeze.

    `facts` and `model` get the mean and std of pixels that the weights were trained with,
    also those of a run that is measured or goes on.
    """
    known = args.stored.get("dataset")
    if args.weights and not args.stored:
        state, known = read(args)
        note = load(model, fitted(model, state, args), args, HEADS, MASKS)
        whose = "those they were trained with" if known else "those of the data"
        dev.say(f"weights of {args.weights}{note}; mean and std are {whose}")
    if known:
        facts.update({key: list(known[key]) for key in ("mean", "std")})
        model.mean, model.std = tuple(facts["mean"]), tuple(facts["std"])
    if args.freeze:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name.startswith(tuple(f"{head}." for head in HEADS)))


def read(args: argparse.Namespace) -> tuple[dict[str, Tensor], Mapping | None]:
    """The weights that are asked for, and the mean and std of their pixels, if known.

    Files of ResNet-50 that don't say are taken for torchvision's.
    """
    if args.weights == "imagenet":
        return download("resnet50", {"resnet50": "resnet50"}), IMAGENET
    if args.weights == "coco":
        return download(args.model, {args.model: f"{args.model}:COCO_V1"}), IMAGENET
    state, known = read_weights(Path(args.weights))
    return state, known or (IMAGENET if args.model in PUBLISHED else None)


def fitted(
    model: nn.Module, state: Mapping[str, Tensor], args: argparse.Namespace
) -> dict[str, Tensor]:
    """The weights of a file under the names of `model`, whole.

    The released detectors divide by the root of a norm's variance alone, all others by that of the
    variance and 1e-5: this is taken off theirs beforehand, so that every file means the same here.
    """
    own = model.state_dict()
    if not any(key.startswith(("rpn.", "backbone.")) for key in state):  # a classifier
        body = {f"backbone.body.{key}": value for key, value in state.items()}
        there = {key: value for key, value in body.items() if key in own}
        if not there:
            fail(f"{args.weights} is neither of a detector nor of a backbone: it has "
                 f"{next(iter(state), 'nothing')}")  # fmt: skip
        heads = {key: value for key, value in own.items() if not key.startswith("backbone.body.")}
        return heads | {key: own[key] for key in own if counts(key)} | there
    released = any(re.match(OLD[0][0], key) or ".mask_fcn" in key.partition("mask_head")[2]
                   for key in state)  # fmt: skip
    renamed = {name_now(key): value for key, value in state.items()}
    if released:
        renamed = {key: value - 1e-5 if key.endswith("running_var") else value
                   for key, value in renamed.items()}  # fmt: skip
    # Norms that learn count their batches, frozen ones don't: no weights.
    renamed = {key: value for key, value in renamed.items() if key in own or not counts(key)}
    return renamed | {key: own[key] for key in own if counts(key) and key not in renamed}


def counts(key: str) -> bool:
    """Whether an entry is a norm's number of batches."""
    return key.endswith("num_batches_tracked")


def name_now(key: str) -> str:
    """Our name of an entry of the released files."""
    for pattern, new in OLD:
        key = re.sub(pattern, new, key)
    old = re.match(r"^(roi_heads\.mask_head)\.mask_fcn(\d)\.(.+)$", key)
    return f"{old[1]}.{int(old[2]) - 1}.0.{old[3]}" if old else key
