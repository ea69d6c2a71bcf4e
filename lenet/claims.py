"""The claims of lenet/README.md as experiments.

    python lenet/claims.py data --data-dir PATH           # MNIST: 12 runs, about half an hour
    python lenet/claims.py data --data digits --seeds 0   # the same on the digits, a minute

data: more data still helps a convolutional net that has few parameters. The test error falls from
a quarter of the training images to half to all of them, and again with distorted images (Fig. 6).
"""

import argparse

from common import cli
from common.claims import error_of, run_arms, write_summary
from common.data.images import IMAGE_SETS
from common.folder import make_folder
from lenet.train import main as train

NUM_IMAGES = {"mnist": 60000, "fashion-mnist": 60000, "kmnist": 60000, "digits": 1438}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The flags; see --help."""
    parser = cli.claims_parser("lenet", __doc__, ["data"])
    known = [name for name in IMAGE_SETS if name in NUM_IMAGES]
    parser.add_argument("--data", choices=known, default="mnist", help="(default: mnist)")
    parser.add_argument("--model", default="lenet5", help="(default: lenet5)")
    parser.add_argument(
        "--epochs", type=cli.integer(1), default=20, help="of each run (default: 20)"
    )
    return parser.parse_args(argv)


@cli.command
def main(argv: list[str] | None = None) -> dict:
    """Runs what isn't done yet; writes claim_data.json and claim_data.png; returns the summary."""
    args = parse_args(argv)
    make_folder(args.out)
    most = NUM_IMAGES[args.data]
    arms = {f"{n}": ["--limit", f"{n}"] for n in (most // 4, most // 2, most)}
    arms[f"{most}-distorted"] = ["--limit", f"{most}", "--distort"]
    shared = ["--paper", "--data", args.data, "--model", args.model, "--epochs", str(args.epochs)]
    results, commands, _ = run_arms("lenet", train, arms, shared, args)
    summary = write_summary(args.out / "claim_data.json", results, commands)

    from common.plot import spread

    errors = {
        arm: [100 * (1 - run["test_accuracy"]) for run in runs] for arm, runs in results.items()
    }
    plain = {int(arm): values for arm, values in errors.items() if arm.isdecimal()}
    distorted = {most: errors[f"{most}-distorted"]}
    axes = {"x": "training images", "y": "test error (%)", "log": True}
    spread({"as they are": plain, "distorted": distorted}, args.out / "claim_data.png", **axes)
    for arm, metrics in summary.items():
        print(f"{arm:>16} images: test error {error_of(metrics, 'test')}")
    print(f"wrote {args.out / 'claim_data.json'} and {args.out / 'claim_data.png'}")
    return summary


if __name__ == "__main__":
    main()
