"""The claims of alexnet/README.md as experiments.

    python alexnet/claims.py relu --data-dir PATH                        # CIFAR-10: 10 minutes
    python alexnet/claims.py relu --data shapes --epochs 2 --seeds 0     # to see how it works

relu: a network with rectified linear units reaches 25% training error in far fewer epochs than
the same network with tanh, each with the learning rate that trains it fastest (Fig. 1).
"""

import argparse
import json
import statistics

from alexnet.train import main as train
from common import cli
from common.claims import history, run_arms, write_summary
from common.folder import make_folder

# The lowest training loss after 5 epochs, among 0.001, 0.003, 0.01 and 0.03 (seed 0, CIFAR-10).
RATES = {"relu": "0.01", "tanh": "0.03"}
SHARED = ["--no-regularise", "--optimizer", "sgd", "--schedule", "constant"]
SHARED += ["--batch-size", "64", "--val", "0"]
TARGET = 0.25  # training error


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The flags; see --help."""
    parser = cli.claims_parser("alexnet", __doc__, ["relu"], data="cifar10", epochs=20)
    return parser.parse_args(argv)


def epochs_until(errors: dict[int, float], target: float) -> int | None:
    """The first epoch whose training error is at most `target`, or None."""
    return next((epoch for epoch, error in errors.items() if error <= target), None)


@cli.command
def main(argv: list[str] | None = None) -> dict:
    """Runs what isn't done yet; writes claim_relu.json and .png; returns the summary."""
    args = parse_args(argv)
    make_folder(args.out)
    shared = ["--data", args.data, "--epochs", str(args.epochs), *SHARED]
    arms = {arm: ["--activation", arm, "--lr", rate] for arm, rate in RATES.items()}
    results, commands, folders = run_arms("alexnet", train, arms, shared, args)
    summary = write_summary(args.out / "claim_relu.json", results, commands)

    from common.plot import spread

    curves = {}
    for arm in arms:
        runs = [history(folder, "train_accuracy") for folder in folders[arm]]
        errors = [{epoch: 1 - value for epoch, value in run.items()} for run in runs]
        curves[arm] = {epoch: [100 * run[epoch] for run in errors] for epoch in errors[0]}
        reached = [epochs_until(run, TARGET) for run in errors]
        mean = None if None in reached else statistics.mean(reached)
        summary[arm]["epochs_to_25%"] = {"mean": mean, "values": reached}
        words = f"{mean:.1f} epochs" if mean else f"more than {args.epochs} epochs"
        print(f"{arm}: {words} to {TARGET:.0%} training error ({reached})")
    (args.out / "claim_relu.json").write_text(json.dumps(summary, indent=1) + "\n")
    spread(curves, args.out / "claim_relu.png", x="epoch", y="training error (%)")
    print(f"wrote {args.out / 'claim_relu.json'} and {args.out / 'claim_relu.png'}")
    return summary


if __name__ == "__main__":
    main()
