"""The claims of resnet/README.md as experiments.

    python resnet/claims.py depth --data-dir PATH                        # CIFAR-10: 29 minutes
    python resnet/claims.py depth --data shapes --epochs 2 --seeds 0     # to see how it works

depth: a plain network of 56 layers trains worse than one of 20; with shortcuts the deeper one
trains better (Fig. 6). The paper takes 64,000 steps; for some 4,000 the networks have a quarter of
its widths, and images of 16 pixels, not augmented: the same for all arms.
"""

import argparse

from common import cli
from common.claims import error_curve, error_of, run_arms, write_summary
from common.folder import make_folder
from resnet.train import main as train

SHARED = ["--width", "4", "--no-augment", "--batch-size", "64", "--warmup", "200", "--val", "0"]
ARMS = ["plain20", "plain56", "resnet20", "resnet56"]


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The flags; see --help."""
    own = dict(data="cifar10", epochs=25, size=16)
    return cli.claims_parser("resnet", __doc__, ["depth"], **own).parse_args(argv)


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

    curves = {arm: error_curve(folders[arm], "train_accuracy") for arm in ARMS}  # as in Fig. 6
    spread(curves, args.out / "claim_depth.png", x="epoch", y="training error (%)")
    for arm, metrics in summary.items():
        training, test = error_of(metrics, "train"), error_of(metrics, "test")
        print(f"{arm:>9}: training error {training}, test error {test}")
    print(f"wrote {args.out / 'claim_depth.json'} and {args.out / 'claim_depth.png'}")
    return summary


if __name__ == "__main__":
    main()
