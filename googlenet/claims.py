"""The claim of googlenet/README.md as an experiment.

    python googlenet/claims.py aux --data-dir PATH                   # CIFAR-10: 27 minutes
    python googlenet/claims.py aux --data shapes --epochs 2 --seeds 0    # to see how it works

aux: the auxiliary heads help a deep network to train (Sec. 5). With and without them, from the same
initial weights, without batch norm as in the paper and with it.
"""

import argparse

from common import cli
from common.claims import history, plus_minus, run_arms, write_summary
from common.folder import make_folder
from googlenet.train import main as train

ARMS = {
    f"{name}{kind}": ["--model", name, "--lr", rate, *flags]
    for name, rate in (("googlenet_small", "0.02"), ("googlenet_bn_small", "0.1"))
    for kind, flags in (("", []), (", no heads", ["--no-aux"]))
}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The flags; see --help."""
    parser = cli.claims_parser("googlenet", __doc__, ["aux"])
    parser.add_argument("--data", default="cifar10", help="which data (default: cifar10)")
    parser.add_argument("--epochs", type=cli.integer(1), default=6, help="of each run (default: 6)")
    return parser.parse_args(argv)


@cli.command
def main(argv: list[str] | None = None) -> dict:
    """Runs what isn't done yet; writes claim_aux.json and .png; returns the summary."""
    args = parse_args(argv)
    make_folder(args.out)
    shared = ["--data", args.data, "--epochs", str(args.epochs), "--batch-size", "64", "--val", "0"]
    shared += ["--schedule", "cosine"]
    results, commands, folders = run_arms("googlenet", train, ARMS, shared, args)
    summary = write_summary(args.out / "claim_aux.json", results, commands)

    from common.plot import spread

    curves = {}
    for arm in ARMS:
        runs = [history(folder, "train_accuracy") for folder in folders[arm]]
        curves[arm] = {epoch: [100 * (1 - run[epoch]) for run in runs] for epoch in runs[0]}
    spread(curves, args.out / "claim_aux.png", x="epoch", y="training error (%)")
    for arm, metrics in summary.items():
        errors = [
            plus_minus([1 - v for v in metrics[f"{part}_accuracy"]["values"]], digits=2)
            for part in ("train", "test")
        ]
        print(f"{arm:>28}: training error {errors[0]}, test error {errors[1]}")
    print(f"wrote {args.out / 'claim_aux.json'} and {args.out / 'claim_aux.png'}")
    return summary


if __name__ == "__main__":
    main()
