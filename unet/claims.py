"""The claims of unet/README.md as experiments.

    python unet/claims.py skips --data-dir PATH      # nuclei with and without skip connections
    python unet/claims.py elastic --data-dir PATH    # few images of neurons, bent and not
    python unet/claims.py border --data-dir PATH     # nuclei that merge without border weights
    python unet/claims.py folds --data-dir PATH      # neurons, every fold once the test set

All with `unet_small`. `border --data shapes --epochs 1 --seeds 0` shows how one works.
"""

import argparse

from common import cli
from common.claims import plus_minus, run_arms, write_summary
from common.folder import make_folder
from unet.train import main as train

DATA = {"skips": "nuclei", "elastic": "isbi", "border": "nuclei", "folds": "isbi"}
STEPS = 300  # of each run of `elastic`, whatever the number of images


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The flags; see --help."""
    parser = cli.claims_parser("unet", __doc__, DATA)
    parser.add_argument("--data", help="which data (default: nuclei, or isbi)")
    parser.add_argument("--epochs", type=cli.integer(1), help="of each run, to shorten it")
    return parser.parse_args(argv)


def arms_of(claim: str, epochs: int | None) -> dict[str, list[str]]:
    """The flags of each arm."""
    if claim == "folds":
        length = ["--epochs", str(epochs)] if epochs else []
        return {f"fold {k}": [*length, "--fold", str(k)] for k in range(6)}
    if claim != "elastic":
        length = ["--epochs", str(epochs or 8)]
        other = ["--no-skips"] if claim == "skips" else ["--border", "10"]
        return {"U-Net": length, " ".join(other)[2:]: [*length, *other]}
    arms = {}
    for count in (5, 10, 25):
        passes = epochs or STEPS // (count // 2)  # mini-batches of 2
        shared = ["--limit", str(count), "--epochs", str(passes)]
        for name, elastic in (("bent", "10"), ("not bent", "0")):
            arms[f"{count} images, {name}"] = [*shared, "--elastic", elastic]
    return arms


@cli.command
def main(argv: list[str] | None = None) -> dict:
    """Runs what isn't done yet; writes claim_<name>.json and .png; returns the summary."""
    args = parse_args(argv)
    make_folder(args.out)
    arms = arms_of(args.claim, args.epochs)
    shared = ["--data", args.data or DATA[args.claim]]
    results, commands, _ = run_arms("unet", train, arms, shared, args)
    path = args.out / f"claim_{args.claim}.json"
    summary = write_summary(path, results, commands)
    for arm, metrics in summary.items():
        values = {key: m["values"] for key, m in metrics.items() if key != "command"}
        iou = plus_minus(values[f"test_iou_{names(metrics)[-1]}"], 1, 3, "")
        shown = f"IoU {iou}, pixel error {plus_minus(values['test_pixel_error'], digits=2)}"
        if "test_ap" in metrics:
            shown += f", AP {plus_minus(values['test_ap'], 1, 3, '')}"
            shown += f", merged {plus_minus(values['test_merged'])}"
        print(f"{arm:>22}: {shown}")
    if args.claim == "folds":
        means = [m["test_iou_cell"]["mean"] for m in summary.values() if "test_iou_cell" in m]
        if means:
            print(f"all folds: IoU of cells {plus_minus(means, 1, 3, '')}")
    draw(args, summary)
    print(f"wrote {path} and {path.with_suffix('.png')}")
    return summary


def names(metrics: dict) -> list[str]:
    """The classes that the metrics name, in order."""
    prefix = "test_iou_"
    return [key.removeprefix(prefix) for key in metrics if key.startswith(prefix)]


def draw(args: argparse.Namespace, summary: dict) -> None:
    """Writes the claim's picture: bars, or for `elastic` curves over the number of images."""
    from common.plot import bars, spread

    picture = args.out / f"claim_{args.claim}.png"
    key = f"test_iou_{names(next(iter(summary.values())))[-1]}"
    label = f"IoU of the class {key.removeprefix('test_iou_')}"
    if args.claim == "elastic":
        lines: dict = {}
        for arm, metrics in summary.items():
            count, _, name = arm.partition(" images, ")
            lines.setdefault(name, {})[int(count)] = metrics[key]["values"]
        return spread(lines, picture, x="training images", y=label)
    shown = {label: key}
    if "test_ap" in next(iter(summary.values())):
        shown |= {"average precision of cells": "test_ap", "share of merged cells": "test_merged"}
    bars(
        {
            title: {arm: m[name]["values"] for arm, m in summary.items()}
            for title, name in shown.items()
        },
        picture,
    )


if __name__ == "__main__":
    main()
