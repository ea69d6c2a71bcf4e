"""The claims of transformer/README.md as experiments.

    python transformer/claims.py heads --data-dir PATH
    python transformer/claims.py positions --data-dir PATH
    python transformer/claims.py smoothing --data-dir PATH
    python transformer/claims.py warmup --data-dir PATH
    python transformer/claims.py heads --data dates --epochs 1 --seeds 0    # to see how it works

heads: several heads are better than one of all dimensions, too many are worse (Table 3, row A).
positions: learned ones are as good as sinusoids (row E); without any, word order is lost.
smoothing: of labels; a worse loss a token and a better BLEU (Sec. 5.4).
warmup: with the norm after the residual the learning rate has to rise slowly, with the norm before
it need not (not of this paper: Xiong et al. 2020). The rate is twice that of the other claims.

base, as in Table 3, is the model as it is: 4 heads, sinusoids, smoothing of 0.1; trained once.
So short a training makes most of its words with small steps: of 500 tokens, not 2,000.
"""

import argparse

from common import cli
from common.claims import plus_minus, run_arms, write_summary
from common.folder import make_folder
from transformer.train import main as train

CLAIMS = {
    "heads": {"1 head": ["--num-heads", "1"], "base": [], "16 heads": ["--num-heads", "16"]},
    "positions": {
        "base": [],
        "learned positions": ["--positions", "learned"],
        "no positions": ["--positions", "none"],
    },
    "smoothing": {"base": [], "no smoothing": ["--smoothing", "0"]},
    "warmup": {
        "post-norm": ["--ramp"],
        "post-norm, no warm-up": ["--no-ramp"],
        "pre-norm": ["--ramp", "--norm-first"],
        "pre-norm, no warm-up": ["--no-ramp", "--norm-first"],
    },
}
SHARED = ["--batch-size", "500", "--warmup", "1000", "--dropout", "0.1", "--val", "0"]
SHARED += ["--average", "1", "--beam", "1", "--quiet"]
RATE = {"warmup": 2e-3}  # else 1e-3


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The flags; see --help."""
    own = dict(data="multi30k", epochs=4)
    return cli.claims_parser("transformer", __doc__, CLAIMS, **own).parse_args(argv)


@cli.command
def main(argv: list[str] | None = None) -> dict:
    """Runs what isn't done yet; writes claim_NAME.json and .png; returns the summary."""
    args = parse_args(argv)
    make_folder(args.out)
    rate = str(RATE.get(args.claim, 1e-3))
    shared = ["--data", args.data, "--epochs", str(args.epochs), "--lr", rate, *SHARED]
    results, commands, _ = run_arms("transformer", train, CLAIMS[args.claim], shared, args)
    summary = write_summary(args.out / f"claim_{args.claim}.json", results, commands)

    from common.plot import bars

    names = {"test_bleu": "BLEU", "test_exact": "exact match (%)", "test_loss": "loss a token"}
    shown = {key: name for key, name in names.items() if key in next(iter(results.values()))[0]}
    scale = {key: 1 if key == "test_loss" else 100 for key in shown}
    panels = {
        name: {arm: [scale[key] * run[key] for run in runs] for arm, runs in results.items()}
        for key, name in shown.items()
    }
    bars(panels, args.out / f"claim_{args.claim}.png")
    for arm in results:
        values = [f"{name} {plus_minus(panels[name][arm], 1, 2, '')}" for name in panels]
        print(f"{arm:>22}: {', '.join(values)}")
    print(f"wrote claim_{args.claim}.json and claim_{args.claim}.png in {args.out}")
    return summary


if __name__ == "__main__":
    main()
