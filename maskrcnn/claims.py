"""The claims of maskrcnn/README.md as experiments.

    python maskrcnn/claims.py align                        # RoIAlign against RoIPool (Table 2c)
    python maskrcnn/claims.py masks                        # a mask a class, or a class a pixel (2b)
    python maskrcnn/claims.py pyramid                      # a pyramid, or a single map
    python maskrcnn/claims.py proposals                    # how many proposals it takes
    python maskrcnn/claims.py cells --data-dir PATH        # beside U-Net with connected parts

All but the last train the small network on shapes, as by default but longer. `align` reads a single
map of stride 16, as rounding to its cells is what the claim is about (the paper's is of stride 16
and 32). `cells` is about nuclei, a fifth of the images held out: both networks see the same others.
"""

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from common import cli
from common.checkpoint import read_checkpoint
from common.claims import arm_folder, finished, plus_minus, run_arms, run_script, write_summary
from common.data.masks import by_name, cut_fold, read_part
from common.device import Device
from common.folder import make_folder
from maskrcnn.data import InstanceSet, load_instances, run_lengths
from maskrcnn.scores import Answer, answer_of, measure, overlaps
from maskrcnn.train import build, evaluate
from maskrcnn.train import main as train
from maskrcnn.train import parse_args as train_flags

LONGER = ["--epochs", "4"]  # of the small network on shapes
CLAIMS = {  # arms, by the claim: their names, their flags
    "align": {"single": ["--no-pyramid"], "pool": ["--no-pyramid", "--pool", "pool"]},
    "masks": {"default": [], "softmax": ["--masks", "softmax"]},
    "pyramid": {"default": [], "single": ["--no-pyramid"]},
    "proposals": {"default": []},
}
NAMES = {
    "align": {"single": "RoIAlign", "pool": "RoIPool"},
    "masks": {"default": "sigmoid, a mask a class", "softmax": "softmax over classes"},
    "pyramid": {"default": "pyramid", "single": "single map"},
}
NUMBERS = [1, 3, 10, 30, 64, 100, 300]  # of proposals
OVERLAPS = [0.5 + 0.05 * k for k in range(10)]
FOLDS, THRESHOLD = 5, 0.5  # of nuclei; the score from which on a cell is counted
METRICS = ("test_box_ap", "test_box_ap50", "test_mask_ap", "test_mask_ap50", "test_mask_ap75")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The flags; see --help."""
    parser = cli.claims_parser("maskrcnn", __doc__, [*CLAIMS, "cells"])
    parser.add_argument("--epochs", type=cli.integer(1), metavar="N", help="of each run")
    return parser.parse_args(argv)


def longer(args: argparse.Namespace) -> list[str]:
    """The flags of how long each run is."""
    return ["--epochs", str(args.epochs)] if args.epochs else LONGER


def compare(args: argparse.Namespace) -> dict:
    """Two arms on shapes: writes claim_NAME.json and .png."""
    results, commands, _ = run_arms("maskrcnn", train, CLAIMS[args.claim], longer(args), args)
    summary = write_summary(args.out / f"claim_{args.claim}.json", results, commands)

    from common.plot import bars

    names = NAMES[args.claim]
    groups = {
        key.removeprefix("test_").replace("_", " "): {
            names[arm]: [100 * value for value in entry[key]["values"]]
            for arm, entry in summary.items()
        }
        for key in METRICS
    }
    bars(groups, args.out / f"claim_{args.claim}.png")
    for arm, entry in summary.items():
        found = (f"{key[5:]} {plus_minus(entry[key]['values'])}" for key in METRICS)
        print(f"{names[arm]}: {', '.join(found)}")
    return summary


def open_trained(folder: Path, args: argparse.Namespace) -> tuple:
    """The model of an arm's run, the test set of its data, a device, and its flags."""
    checkpoint = read_checkpoint(folder / "last.pt")
    argv = ["--evaluate", str(folder / "last.pt"), "--data-dir", args.data_dir, "--quiet"]
    flags = train_flags([*argv, "--device", args.device])
    dev = Device(flags)
    test = load_instances(flags, dev)[2]
    model = build(flags, checkpoint["dataset"])
    model.load_state_dict(checkpoint["model"])
    return model.to(dev.device).eval(), test, dev, flags


def recalls(proposed: Sequence[Tensor], truth: Sequence[Tensor], number: int) -> dict[str, float]:
    """The share of true boxes (M, 4) that one of the first `number` proposals (n, 4) of their image
    overlaps by 0.5, by 0.75, and on average over 0.5 to 0.95."""
    best = torch.cat(
        [overlaps(boxes[:number], own) for boxes, own in zip(proposed, truth, strict=True)]
    )
    shares = {f"recall{int(100 * iou)}": float((best >= iou).float().mean()) for iou in (0.5, 0.75)}
    mean = sum(float((best >= iou).float().mean()) for iou in OVERLAPS) / len(OVERLAPS)
    return shares | {"recall": mean}


def by_number(folder: Path, args: argparse.Namespace) -> dict[str, float]:
    """Recall of the proposals, and the precision of boxes, by their number; of one run."""
    model, test, dev, flags = open_trained(folder, args)
    most, found = max(NUMBERS), {}
    model.rpn.before = model.rpn.after = (most, most)
    proposed, truth = [], [things.objects.boxes for things in test.things]
    for images, _, _ in test.batches(flags.batch_size):
        proposed += [boxes.float().cpu() for boxes, _ in model.propose(images)]
    for number in NUMBERS:
        found |= {f"{k}_of_{number}": v for k, v in recalls(proposed, truth, number).items()}
        model.rpn.after = (number, number)
        precision = evaluate(model, test, dev, flags)
        found[f"box_ap50_of_{number}"] = precision["test_box_ap50"]
    return found


def proposals(args: argparse.Namespace) -> dict:
    """Writes claim_proposals.json and .png."""
    arms = CLAIMS["proposals"]
    _, commands, folders = run_arms("maskrcnn", train, arms, longer(args), args)
    results = {"default": [by_number(folder, args) for folder in folders["default"]]}
    summary = write_summary(args.out / "claim_proposals.json", results, commands)

    from common.plot import spread

    names = {"recall50": "recall at IoU 0.5", "recall75": "recall at IoU 0.75",
             "recall": "recall, mean over IoU", "box_ap50": "box AP at 0.5"}  # fmt: skip
    entry = summary["default"]
    series = {
        name: {n: [100 * v for v in entry[f"{key}_of_{n}"]["values"]] for n in NUMBERS}
        for key, name in names.items()
    }
    spread(series, args.out / "claim_proposals.png", "proposals of an image", "%", log=True)
    for number in NUMBERS:
        shown = (f"{name} {plus_minus(entry[f'{key}_of_{number}']['values'])}"
                 for key, name in names.items())  # fmt: skip
        print(f"{number}: {', '.join(shown)}")
    return summary


# ---------------------------------------------------------------------- cells


def connected_parts(path: Path) -> Answer:
    """U-Net's answer as objects: the connected parts of its foreground, all equally sure."""
    from scipy import ndimage

    numbers, count = ndimage.label(np.asarray(Image.open(path)) > 0)
    masks = torch.from_numpy(numbers) == torch.arange(1, count + 1).view(-1, 1, 1)
    boxes = torch.tensor([[s[1].start, s[0].start, s[1].stop, s[0].stop]
                          for s in ndimage.find_objects(numbers)]).view(-1, 4)  # fmt: skip
    labels = torch.zeros(count, dtype=torch.int64)
    return Answer(boxes.float(), torch.ones(count), labels, run_lengths(masks))


def counted_right(answers: Sequence[Answer], images: InstanceSet) -> float:
    """TP / (TP + FP + FN) over all images, of objects with a score of at least THRESHOLD, where a
    match is an IoU of masks over 0.5: so each object has one match at most, if none overlap."""
    from pycocotools import mask as coco_masks

    right = found = there = 0
    for answer, things in zip(answers, images.things, strict=True):
        sure = [
            m for m, s in zip(answer.masks, answer.scores.tolist(), strict=True) if s >= THRESHOLD
        ]
        found, there = found + len(sure), there + len(things)
        if sure and things.masks:
            iou = np.asarray(coco_masks.iou(sure, things.masks, [0] * len(things)))
            right += int((iou > 0.5).any(0).sum())
    return right / max(1, found + there - right)


def judged(answers: Sequence[Answer], images: InstanceSet) -> dict[str, float]:
    """Precision of masks, and the share of cells and answers that match."""
    metrics, _ = measure(answers, images)
    return {key: metrics[key] for key in ("mask_ap", "mask_ap50")} | {
        "right": counted_right(answers, images)
    }


def cells(args: argparse.Namespace) -> dict:
    """Writes claim_cells.json."""
    shared = ["--data", "nuclei", "--folds", str(FOLDS), "--fold", "0"]
    own = [*shared, *(["--epochs", str(args.epochs)] if args.epochs else [])]
    _, commands, folders = run_arms("maskrcnn", train, {"maskrcnn": []}, own, args)
    commands["unet"] = " ".join(["python unet/train.py", *own, "--seed SEED"])
    results = {"maskrcnn": [], "unet": []}
    for seed, folder in zip(args.seeds, folders["maskrcnn"], strict=True):
        model, test, dev, flags = open_trained(folder, args)
        answers = []
        for images, _, _ in test.batches(flags.batch_size):
            with dev.autocast(), torch.inference_mode():
                answers += map(answer_of, model(images))
        results["maskrcnn"].append(judged(answers, test))
        answers = segmented([*own, "--seed", str(seed)], args, dev)
        results["unet"].append(judged(answers, test))
    summary = write_summary(args.out / "claim_cells.json", results, commands)
    for arm, entry in summary.items():
        found = ", ".join(f"{key} {plus_minus(entry[key]['values'], 1, 3, '')}"
                          for key in ("mask_ap50", "mask_ap", "right"))  # fmt: skip
        print(f"{arm}: {found}")
    return summary


def segmented(argv: list[str], args: argparse.Namespace, dev: Device) -> list[Answer]:
    """What a U-Net trained with these flags finds in the test images, as connected parts."""
    root = Path(__file__).parents[1] / "unet"
    folder = arm_folder("maskrcnn", "unet", argv).resolve()
    where = ["--run-dir", str(folder), "--data-dir", args.data_dir, "--device", args.device]
    if not finished(folder):
        run_script(root / "train.py", [*argv, *where, "--resume"])
    place = Path(args.data_dir, "nuclei_dsb2018")
    counts = dict.fromkeys(("pages", "turned", "alpha"), 0)
    part = read_part(place / "images", place / "labels", True, None, counts, dev)
    names = cut_fold(part, argparse.Namespace(data="nuclei", folds=FOLDS, fold=0))[1].names
    found = {path.name: path for path in by_name(place / "images").values()}
    out = folder / "cells"
    files = [found[name] for name in names]
    if not out.exists():
        half = out.with_suffix(".part")  # takes its name when it is whole
        shutil.rmtree(half, ignore_errors=True)
        more = ["--checkpoint", str(folder / "last.pt"), "--out", str(half)]
        run_plain(root / "sample.py", [*map(str, files), *more, "--device", args.device])
        half.rename(out)
    return [connected_parts(out / f"{path.stem}-mask.png") for path in files]


def run_plain(script: Path, argv: list[str]) -> None:
    """Runs another milestone's script as a command; ends as it ended, if that was no success."""
    import subprocess
    import sys

    done = subprocess.run([sys.executable, str(script), *argv], stdout=subprocess.DEVNULL)
    if done.returncode:
        raise SystemExit(done.returncode)


@cli.command
def main(argv: list[str] | None = None) -> dict:
    """Runs what isn't done yet; writes JSON and picture; returns the summary."""
    args = parse_args(argv)
    make_folder(args.out)
    return {"proposals": proposals, "cells": cells}.get(args.claim, compare)(args)


if __name__ == "__main__":
    main()
