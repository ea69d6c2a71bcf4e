"""The claims of t5/README.md as experiments.

    python t5/claims.py objective --data-dir PATH
    python t5/claims.py architecture --data-dir PATH
    python t5/claims.py spans --data-dir PATH
    python t5/claims.py multitask --data-dir PATH

objective (Table 4): SST-2 by a network that has filled gaps in film reviews before, by one that has
gone on from their beginnings, and by one that has the same vocabulary and has read one step alone.
architecture (Table 2): encoder and decoder beside one stack that sees the source whole; each token
passes through as many layers, so the computation is the same and the parameters are half.
spans (Tables 6 and 7): gaps of 2, 3, 5, 10 tokens on average; 10, 15, 25, 50% of the text hidden.
multitask (Sec. 3.5.2): SST-2 and Multi30k together, beside each alone with as many of its examples.

All are fine-tuned alike after the same steps of pre-training, which the claims share: an arm that
one of them has trained, another finds done. With --arms the JSON keeps what it has of the others.
"""

import argparse
from pathlib import Path

from common import cli
from common.claims import add_arms, arm_folder, finished, plus_minus, stored_arms
from common.folder import make_folder
from t5.train import main as train

SIZE = ["--model", "t5_tiny", "--vocab-size", "4096"]
PRETRAINING = ["--data", "movie-reviews", "--limit", "3000000", "--words", "multi30k",
               "--steps", "500", "--every", "500", "--batch-size", "2048", "--length", "64",
               "--lr", "3e-3", "--val", "0", "--quiet"]  # fmt: skip
TUNING = ["--every", "400", "--val", "0", "--batch-size", "32", "--length", "64", "--lr", "1e-3",
          "--dropout", "0.1", "--quiet"]  # fmt: skip
SST2 = ["--data", "sst2", "--steps", "500", "--target-length", "8"]
BOTH = ["--data", "sst2+multi30k", "--steps", "2400", "--mix-temperature", "2"]
ALONE = {  # with T = 2 a third of the examples is of SST-2: here each has as many of its own
    "sst2": ["--data", "sst2", "--steps", "800"],
    "multi30k": ["--data", "multi30k", "--steps", "1600"],
}
# Of each arm the flags of its pre-training, and of its fine-tuning.
CLAIMS: dict[str, dict[str, tuple[list[str], list[str]]]] = {
    "objective": {
        "gaps": ([], SST2),
        "prefixes": (["--objective", "prefix"], SST2),
        "from scratch": (["--max-steps", "1"], SST2),  # which makes the vocabulary
    },
    "architecture": {
        "encoder-decoder": ([], SST2),
        "one stack": (["--architecture", "prefix-lm"], SST2),
    },
    "spans": {
        "15%, 3 tokens": ([], SST2),
        **{f"15%, {n} tokens": (["--span", n], SST2) for n in ("2", "5", "10")},
        **{f"{n}%, 3 tokens": (["--noise", f"0.{n}"], SST2) for n in ("10", "25", "50")},
    },
    "multitask": {"together": ([], BOTH), **{f"{task} alone": ([], flags)
                  for task, flags in ALONE.items()}},
}  # fmt: skip
METRICS = {  # the panel's name; of two tasks the metrics bear their names
    "SST-2, test accuracy (%)": ("test_sst2_accuracy", "test_accuracy"),
    "Multi30k, BLEU": ("test_multi30k_bleu", "test_bleu"),
}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The flags; see --help."""
    return cli.claims_parser("t5", __doc__, CLAIMS, by_arm=True).parse_args(argv)


def trained(name: str, argv: list[str], args: argparse.Namespace) -> tuple[Path, dict]:
    """The folder and metrics of a run, which is trained unless it is done."""
    folder = arm_folder("t5", name, argv)
    where = ["--run-dir", str(folder), "--data-dir", args.data_dir, "--device", args.device]
    return folder, finished(folder) or train([*argv, *where, "--resume"])


def run_arm(
    arm: str, before: list[str], tuning: list[str], args: argparse.Namespace
) -> tuple[list[dict], str]:
    """An arm's metrics, seed by seed, and its command."""
    more = ["--max-steps", str(args.max_steps)] if args.max_steps else []
    found, command = [], ""
    for seed in args.seeds:
        own = [*more, "--seed", str(seed)]
        first = [*SIZE, *PRETRAINING, *own, *before]
        weights = str(trained("pretraining", first, args)[0] / "last.pt")
        flags = ["--weights", weights, *tuning, *TUNING, *own]
        found.append(trained(arm, flags, args)[1])
        texts = [" ".join(["python t5/train.py", *part, "--data-dir PATH"])
                 for part in (first, flags)]  # fmt: skip
        command = " && ".join(texts).replace(f"--seed {seed}", "--seed SEED")
        command = command.replace(weights, "RUN/last.pt").replace(" &&", " --run-dir RUN &&", 1)
    return found, command


@cli.command
def main(argv: list[str] | None = None) -> dict:
    """Runs what isn't done yet; writes claim_NAME.json and .png; returns the summary."""
    args = parse_args(argv)
    make_folder(args.out)
    path, arms = args.out / f"claim_{args.claim}.json", CLAIMS[args.claim]
    kept = stored_arms(path, arms, args)
    results, commands = {}, {}
    for arm, (before, tuning) in arms.items():
        if not args.arms or arm in args.arms:
            results[arm], commands[arm] = run_arm(arm, before, tuning, args)
    summary, results = add_arms(path, arms, args, results, commands, kept)

    from common.plot import bars

    panels: dict[str, dict[str, list[float]]] = {}
    for name, keys in METRICS.items():
        for arm, runs in results.items():
            if key := next((key for key in keys if key in runs[0]), None):
                panels.setdefault(name, {})[arm] = [100 * run[key] for run in runs]
    bars(panels, path.with_suffix(".png"))
    for name, arms in panels.items():
        for arm, values in arms.items():
            print(f"{arm:>20}: {name} {plus_minus(values, 1, 1, '')}")
    print(f"wrote {path.name} and {path.stem}.png in {args.out}")
    return summary


if __name__ == "__main__":
    main()
