"""The claims of gnn/README.md as experiments.

    python gnn/claims.py results --data-dir PATH      # the three networks on Cora
    python gnn/claims.py unseen --data-dir PATH       # SAGE: test nodes unseen, no labels
    python gnn/claims.py rules --data-dir PATH        # Table 3 of the GCN paper
    python gnn/claims.py depth --data-dir PATH        # 1 to 8 layers, with and without residuals
    python gnn/claims.py attention --data-dir PATH    # GAT: learned weights and constant ones
    python gnn/claims.py samples --data-dir PATH      # SAGE: how many neighbours are drawn
    python gnn/claims.py folds --data mutag --data-dir PATH    # ten-fold cross-validation

Of each arm ten seeds (folds: one, ten folds). `--data karate --epochs 2 --seeds 0` shows how one
works.
"""

import argparse

from common import cli
from common.claims import plus_minus, run_arms, write_summary
from common.folder import make_folder
from gnn.gcn import RULES
from gnn.model import MODELS
from gnn.train import main as train

FANOUTS = [1, 2, 3, 5, 10, 25]
CLAIMS = {
    "results": {name: ["--model", name] for name in MODELS},
    "unseen": {
        "sage": ["--model", "sage"],
        "sage, unseen": ["--model", "sage", "--unseen"],
        "sage, max": ["--model", "sage", "--aggregator", "max"],
        "sage, unsupervised": ["--model", "sage", "--loss", "unsupervised", "--epochs", "10"],
    },
    "rules": {rule: ["--model", "gcn", "--rule", rule] for rule in RULES},
    "depth": {
        f"{n} layers{', residual' * residual}": ["--model", "gcn", "--num-layers", str(n)]
        + ["--residual"] * residual
        for residual in (False, True)
        for n in range(1, 9)
    },
    "attention": {
        kind: ["--model", "gat", "--attention", kind] for kind in ("learned", "constant")
    },
    "samples": {
        f"{n} and {n}" if n else "all": ["--model", "sage", "--fanouts", str(n), str(n)]
        for n in (*FANOUTS, 0)
    },
    "folds": {
        f"{name}, fold {k}": ["--model", name, "--fold", str(k)]
        for name in MODELS
        for k in range(10)
    },
}
SEEDS = {"folds": [0]}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The flags; see --help."""
    parser = cli.claims_parser("gnn", __doc__, CLAIMS)
    parser.set_defaults(seeds=None)
    parser.add_argument("--data", default="cora", help="which data (default: cora)")
    parser.add_argument("--epochs", type=cli.integer(1), help="of each run, to shorten it")
    args = parser.parse_args(argv)
    if not args.seeds:
        args.seeds = SEEDS.get(args.claim, list(range(10)))
    return args


@cli.command
def main(argv: list[str] | None = None) -> dict:
    """Runs what isn't done yet; writes claim_NAME.json and .png; returns the summary."""
    args = parse_args(argv)
    make_folder(args.out)
    shared = ["--data", args.data, *(["--epochs", str(args.epochs)] if args.epochs else [])]
    results, commands, _ = run_arms("gnn", train, CLAIMS[args.claim], [*shared, "--quiet"], args)
    name = args.claim + (f"_{args.data}" if args.claim == "folds" else "")
    path = args.out / f"claim_{name}.json"
    summary = write_summary(path, results, commands)
    scores = {arm: [run["test_accuracy"] for run in runs] for arm, runs in results.items()}
    if args.claim == "folds":  # the mean over folds of each seed; the spread is that of the folds
        scores = {
            m: [v for arm in scores if arm.startswith(m) for v in scores[arm]] for m in MODELS
        }
    for arm, values in scores.items():
        print(f"{arm:>28}: {plus_minus(values)}")
    draw(args, scores, path.with_suffix(".png"))
    print(f"wrote {path} and {path.with_suffix('.png')}")
    return summary


def draw(args: argparse.Namespace, scores: dict[str, list[float]], path) -> None:
    """The claim's picture: bars, or curves over depth and sample size."""
    from common.plot import bars, spread

    label = "test accuracy (%)"
    scores = {arm: [100 * value for value in values] for arm, values in scores.items()}
    if args.claim == "depth":
        lines = {
            name: {n: scores[f"{n} layers{end}"] for n in range(1, 9)}
            for name, end in (("plain", ""), ("residual", ", residual"))
        }
        spread(lines, path, x="layers", y=label)
    elif args.claim == "samples":
        drawn = {n: scores[f"{n} and {n}"] for n in FANOUTS}
        whole = {n: scores["all"] for n in FANOUTS}
        spread({"drawn": drawn, "all": whole}, path, "neighbours of each node", label, log=True)
    else:
        bars({label: {arm.replace(", ", "\n"): v for arm, v in scores.items()}}, path)


if __name__ == "__main__":
    main()
