"""The claims of mobilenet/README.md as experiments.

    python mobilenet/claims.py separable --data-dir PATH                # CIFAR-10
    python mobilenet/claims.py width --data-dir PATH
    python mobilenet/claims.py bottleneck --data-dir PATH
    python mobilenet/claims.py width --data shapes --epochs 1 --seeds 0    # to see how it works

separable: depthwise and 1x1 convolutions do nearly as well as full ones, with a ninth of the
multiplications (v1, Table 4).
width: accuracy falls smoothly as a multiplier makes all layers narrower (v1, Table 6).
bottleneck: a block whose narrow end has no ReLU6 learns better (v2, Fig. 6a).
All take images of 16 pixels and the same few epochs, the same for all arms of a claim.
"""

import argparse

import torch

from common import cli
from common.checkpoint import read_checkpoint
from common.claims import error_curve, error_of, multiply_adds, run_arms, write_summary
from common.folder import make_folder
from mobilenet.train import build
from mobilenet.train import main as train
from mobilenet.train import parse_args as parse_training

V1, V2 = (["--model", f"mobilenet_{version}_cifar"] for version in ("v1", "v2"))
CLAIMS = {
    "separable": {
        "separable": V1,
        "full": [*V1, "--no-separable"],
        "full, as many multiplications": [*V1, "--no-separable", "--width", "0.17"],
    },
    "width": {f"width {w}": [*V1, "--width", w] for w in ("1.0", "0.75", "0.5", "0.25")},
    "bottleneck": {"linear": V2, "ReLU6": [*V2, "--no-linear"]},
}
EPOCHS = {"separable": 10, "width": 8, "bottleneck": 15}
SHARED = ["--batch-size", "64", "--lr", "0.03", "--val", "1000"]


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The flags; see --help."""
    parser = cli.claims_parser("mobilenet", __doc__, CLAIMS, data="cifar10", size=16)
    text = f"of each run (default: {', '.join(f'{n} for {c}' for c, n in EPOCHS.items())})"
    parser.add_argument("--epochs", type=cli.integer(1), metavar="N", help=text)
    text = "end each run after N steps, to see how it works"
    parser.add_argument("--max-steps", type=cli.integer(1), metavar="N", help=text)
    return parser.parse_args(argv)


@cli.command
def main(argv: list[str] | None = None) -> dict:
    """Runs what isn't done yet; writes claim_NAME.json and .png; returns the summary."""
    args = parse_args(argv)
    make_folder(args.out)
    epochs = args.epochs or EPOCHS[args.claim]
    shared = ["--data", args.data, "--epochs", str(epochs), "--size", str(args.size), *SHARED]
    if args.max_steps:
        shared += ["--max-steps", str(args.max_steps)]
    arms = CLAIMS[args.claim]
    results, commands, folders = run_arms("mobilenet", train, arms, shared, args)
    costs = {}  # parameters and multiply-adds, as in Tables 4 and 6
    for arm, flags in arms.items():
        facts = read_checkpoint(folders[arm][0] / "last.pt")["dataset"]
        with torch.device("meta"):
            model = build(parse_training(flags), len(facts["classes"]))
            image = torch.empty(1, 3, args.size, args.size)
        costs[arm] = sum(p.numel() for p in model.parameters()), multiply_adds(model, image)
        for run in results[arm]:
            run["parameters"], run["multiply_adds"] = costs[arm]
    stem = args.out / f"claim_{args.claim}"
    summary = write_summary(stem.with_suffix(".json"), results, commands)

    from common.plot import spread

    if args.claim == "bottleneck":  # as in Fig. 6: over the training
        curves = {arm: error_curve(folders[arm], "val_accuracy") for arm in arms}
        x, y = "epoch", "validation error (%)"
    else:
        points = {
            arm: {costs[arm][1] / 1e6: [100 * (1 - r["test_accuracy"]) for r in results[arm]]}
            for arm in arms
        }
        x, y = "million multiply-adds an image", "test error (%)"
        curves = points if args.claim == "separable" else {"MobileNet": {}}
        if args.claim == "width":
            for point in points.values():
                curves["MobileNet"] |= point
    spread(curves, stem.with_suffix(".png"), x=x, y=y)
    for arm, metrics in summary.items():
        test, training = error_of(metrics, "test"), error_of(metrics, "train")
        print(f"{arm}: {costs[arm][0]:,} parameters, {costs[arm][1] / 1e6:.1f} million "
              f"multiply-adds, test error {test}, training error {training}")  # fmt: skip
    print(f"wrote {stem.with_suffix('.json')} and {stem.with_suffix('.png')}")
    return summary


if __name__ == "__main__":
    main()
