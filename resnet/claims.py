"""The claims of resnet/README.md as experiments.

    python resnet/claims.py depth --data-dir PATH                        # CIFAR-10: 29 minutes
    python resnet/claims.py depth --data shapes --epochs 2 --seeds 0     # to see how it works

depth: a plain network of 56 layers trains worse than one of 20; with shortcuts the deeper one
trains better (Fig. 6). The paper takes 64,000 steps; for some 4,000 the networks have a quarter of
its widths, and images of 16 pixels, not augmented: the same for all arms.
"""

import argparse

from common import cli
from common.claims import history, plus_minus, run_arms, write_summary
from common.folder import make_folder
from resnet.train import main as train

SHARED = ["--width", "4", "--no-augment", "--batch-size", "64", "--warmup", "200", "--val", "0"]
ARMS = ["plain20", "plain56", "resnet20", "resnet56"]


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The flags; see --help."""
    parser = cli.claims_parser("resnet", __doc__, ["depth"])
    parser.add_argument("--data", default="cifar10", help="which data (default: cifar10)")
    parser.add_argument(
        "--epochs", type=cli.integer(1), default=25, help="of each run (default: 25)"
    )
    parser.add_argument("--size", type=cli.integer(8), default=16, help="pixels (default: 16)")
    return parser.parse_args(argv)


@cli.command
def main(argv: list[str] | None = None) -> dict:
    """Runs what isn't done yet; writes claim_depth.json and .png; returns the summary."""
    args = parse_args(argv)
    make_folder(args.out)
    shared = ["--data", args.data, "--epochs", str(args.epochs), "--size", str(args.size), *SHARED]
    arms = {arm: ["--model", arm] for arm in ARMS}
    results, commands, folders = run_arms("resnet", train, arms, shared, args)
    summary = write_summary(args.out / "claim_depth.json", results, commands)

    from common.plot import spread

    curves = {}  # of the training error, as in Fig. 6
    for arm in ARMS:
        runs = [history(folder, "train_accuracy") for folder in folders[arm]]
        curves[arm] = {epoch: [100 * (1 - run[epoch]) for run in runs] for epoch in runs[0]}
    spread(curves, args.out / "claim_depth.png", x="epoch", y="training error (%)")
    for arm in ARMS:
        train_error, test_error = (
            plus_minus([1 - v for v in summary[arm][f"{part}_accuracy"]["values"]], digits=2)
            for part in ("train", "test")
        )
        print(f"{arm:>9}: training error {train_error}, test error {test_error}")
    print(f"wrote {args.out / 'claim_depth.json'} and {args.out / 'claim_depth.png'}")
    return summary


if __name__ == "__main__":
    main()
