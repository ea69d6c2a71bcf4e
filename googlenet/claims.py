"""The claims of googlenet/README.md as experiments.

    python googlenet/claims.py aux --data-dir PATH                   # CIFAR-10: 27 minutes
    python googlenet/claims.py factors                               # nothing to train: 2 s
    python googlenet/claims.py aux --data shapes --epochs 2 --seeds 0    # to see how it works

aux: the auxiliary heads help a deep network to train (GoogLeNet, Sec. 5). With and without them,
from the same initial weights, without batch norm as in the paper and with it.

factors: two small filters in place of a large one cost less (Inception-v3, Sec. 3). Multiply-adds
of its modules, as they are and with whole filters.
"""

import argparse
import json
from pathlib import Path

import torch

from common import cli
from common.claims import error_curve, error_of, run_arms, write_summary
from common.folder import make_folder
from googlenet.inception_v3 import MODULES, inception_v3
from googlenet.train import main as train

ARMS = {
    f"{name}{kind}": ["--model", name, "--lr", rate, *flags]
    for name, rate in (("googlenet_small", "0.02"), ("googlenet_bn_small", "0.1"))
    for kind, flags in (("", []), (", no heads", ["--no-aux"]))
}


def savings() -> dict[str, dict[str, int]]:
    """Multiply-adds of an image of 299 pixels: of each module and in all, factorised and whole."""
    from torch.utils.flop_counter import FlopCounterMode

    rows = {name.removeprefix("Mixed_"): {} for name in MODULES} | {"all": {}}
    for kind, factorised in (("whole", False), ("factorised", True)):
        with torch.device("meta"):
            model = inception_v3(aux_logits=False, factorised=factorised).eval()
            images = torch.empty(1, 3, 299, 299)
        with FlopCounterMode(display=False) as counter:
            model(images)
        found = counter.get_flop_counts()
        for name, row in rows.items():
            part = "Inception3" if name == "all" else f"Inception3.Mixed_{name}"
            row[kind] = sum(found[part].values()) // 2
    return rows


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The flags; see --help."""
    own = dict(data="cifar10", epochs=6)
    return cli.claims_parser("googlenet", __doc__, ["aux", "factors"], **own).parse_args(argv)


def factors(out: Path) -> dict:
    """Writes claim_factors.json and .png; returns the multiply-adds."""
    from matplotlib.figure import Figure

    from common.plot import save

    rows = savings()
    (out / "claim_factors.json").write_text(json.dumps(rows, indent=1) + "\n")
    figure = Figure(figsize=(6, 3), layout="constrained")
    axis, names = figure.subplots(), list(rows)[:-1]
    for shift, kind in ((-0.2, "whole"), (0.2, "factorised")):
        places = [place + shift for place in range(len(names))]
        axis.bar(places, [rows[name][kind] / 1e6 for name in names], 0.4, label=kind)
    axis.set_xticks(range(len(names)), names)
    axis.set_ylabel("million multiply-adds")
    axis.legend()
    save(figure, out / "claim_factors.png")
    for name, row in rows.items():
        whole, split = (row[kind] / 1e6 for kind in ("whole", "factorised"))
        print(f"{name:>4}: {whole:8,.0f} to {split:8,.0f} million ({split / whole - 1:+.0%})")
    print(f"wrote {out / 'claim_factors.json'} and {out / 'claim_factors.png'}")
    return rows


@cli.command
def main(argv: list[str] | None = None) -> dict:
    """Runs what isn't done yet; writes claim_NAME.json and .png; returns the summary."""
    args = parse_args(argv)
    make_folder(args.out)
    if args.claim == "factors":
        return factors(args.out)
    shared = ["--data", args.data, "--epochs", str(args.epochs), "--batch-size", "64", "--val", "0"]
    shared += ["--schedule", "cosine"]
    results, commands, folders = run_arms("googlenet", train, ARMS, shared, args)
    summary = write_summary(args.out / "claim_aux.json", results, commands)

    from common.plot import spread

    curves = {arm: error_curve(folders[arm], "train_accuracy") for arm in ARMS}
    spread(curves, args.out / "claim_aux.png", x="epoch", y="training error (%)")
    for arm, metrics in summary.items():
        training, test = error_of(metrics, "train"), error_of(metrics, "test")
        print(f"{arm:>28}: training error {training}, test error {test}")
    print(f"wrote {args.out / 'claim_aux.json'} and {args.out / 'claim_aux.png'}")
    return summary


if __name__ == "__main__":
    main()
