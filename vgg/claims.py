"""The claims of vgg/README.md as experiments.

    python vgg/claims.py depth --data-dir PATH                      # CIFAR-10: 26 minutes
    python vgg/claims.py depth --data shapes --epochs 2 --seeds 0   # to see how it works

depth: the deeper the network, the lower the error (Sec. 4.1, Table 3): A, B and D, with 11, 13 and
16 layers, small and with batch normalisation, trained alike.
"""

import argparse

from common import cli
from common.claims import error_of, run_arms, write_summary
from common.folder import make_folder
from vgg.train import main as train

DEPTHS = {"vgg11_bn_small": 11, "vgg13_bn_small": 13, "vgg16_bn_small": 16}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The flags; see --help."""
    parser = cli.claims_parser("vgg", __doc__, ["depth"], data="cifar10", epochs=20)
    return parser.parse_args(argv)


@cli.command
def main(argv: list[str] | None = None) -> dict:
    """Runs what isn't done yet; writes claim_depth.json and .png; returns the summary."""
    args = parse_args(argv)
    make_folder(args.out)
    shared = ["--data", args.data, "--epochs", str(args.epochs), "--val", "0"]
    arms = {arm: ["--model", arm] for arm in DEPTHS}
    results, commands, _ = run_arms("vgg", train, arms, shared, args)
    summary = write_summary(args.out / "claim_depth.json", results, commands)

    from common.plot import spread

    errors = {
        part: {
            depth: [100 * (1 - run[f"{part}_accuracy"]) for run in results[arm]]
            for arm, depth in DEPTHS.items()
        }
        for part in ("test", "train")
    }
    axes = {"x": "layers with weights", "y": "error (%)"}
    spread(errors, args.out / "claim_depth.png", **axes)
    for arm, metrics in summary.items():
        test, training = error_of(metrics, "test"), error_of(metrics, "train")
        print(f"{arm}: test error {test}, training error {training}")
    print(f"wrote {args.out / 'claim_depth.json'} and {args.out / 'claim_depth.png'}")
    return summary


if __name__ == "__main__":
    main()
