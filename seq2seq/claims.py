"""The claims of seq2seq/README.md as experiments.

    python seq2seq/claims.py length --data-dir PATH
    python seq2seq/claims.py reverse --data-dir PATH
    python seq2seq/claims.py scores --data-dir PATH
    python seq2seq/claims.py beam --data-dir PATH
    python seq2seq/claims.py length --data dates --epochs 1 --seeds 0    # to see how it works

length: BLEU by the length of the source, with attention and without (Bahdanau, Fig. 2): a vector of
fixed size holds short sentences only.
reverse: Sutskever's network reads the source from its end, or from its beginning (Sec. 3.3).
scores: dot product, general and concat, in Luong's network (Sec. 5.3).
beam: the width of the beam, 1 to 16, with and without attention (Sutskever, Table 1).

Networks of the same size, trained once for all claims; BLEU is that of greedy translations, but in
the claim beam.
"""

import argparse
from pathlib import Path

from common import cli
from common.checkpoint import read_checkpoint
from common.claims import finished, plus_minus, run_arms, write_summary
from common.data.pairs import PairSet, load_pairs
from common.device import Device
from common.folder import make_folder
from seq2seq.train import main as train

SUTSKEVER = ["--model", "sutskever_small"]
BAHDANAU = ["--model", "bahdanau_small"]
LUONG = ["--model", "luong_small"]
CLAIMS = {
    "length": {"Sutskever": SUTSKEVER, "Bahdanau": BAHDANAU, "Luong, general": LUONG},
    "reverse": {"Sutskever": SUTSKEVER, "Sutskever, not reversed": [*SUTSKEVER, "--no-reverse"]},
    "scores": {
        "Luong, dot": [*LUONG, "--score", "dot"],
        "Luong, general": LUONG,
        "Luong, concat": [*LUONG, "--score", "concat"],
    },
    "beam": {"Sutskever": SUTSKEVER, "Bahdanau": BAHDANAU},
}
WIDTHS = (1, 2, 4, 8, 16)
BUCKETS = (8, 10, 12, 14, 17)  # words: up to 8, 9 and 10, …, 18 and more


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The flags; see --help."""
    parser = cli.claims_parser("seq2seq", __doc__, CLAIMS, data="multi30k", epochs=8)
    return parser.parse_args(argv)


def test_part(folder: Path, args: argparse.Namespace) -> PairSet:
    """The test set that a run was measured on."""
    stored = read_checkpoint(folder / "last.pt")
    here = dict(data_dir=args.data_dir, device=args.device, quiet=True, stored=stored)
    flags = cli.Flags(**stored["config"]["flags"] | here)
    return load_pairs(flags, Device(flags))[2]


def by_length(folder: Path, test: PairSet, metric: str) -> dict[str, float]:
    """The metric of a run's translations, by how many words the source has."""
    found = (folder / "translations.txt").read_text("utf-8").split("\n")[: len(test)]
    groups: dict[int, list[int]] = {}
    for i, line in enumerate(test.lines.source):
        words = len(line.split()) if metric == "test_bleu" else len(line)
        groups.setdefault(sum(words > most for most in BUCKETS), []).append(i)
    scores = {}
    for group, places in sorted(groups.items()):
        low = BUCKETS[group - 1] + 1 if group else 1
        high = f"-{BUCKETS[group]}" if group < len(BUCKETS) else "+"
        wanted = [test.lines.target[i] for i in places]
        scores[f"{low}{high}"] = score([found[i] for i in places], wanted, metric)
    return scores


def score(found: list[str], wanted: list[str], metric: str) -> float:
    """BLEU as a fraction, or the share that is right."""
    if metric == "test_exact":
        return sum(map(str.__eq__, found, wanted)) / len(wanted)
    import sacrebleu

    return sacrebleu.corpus_bleu(found, [wanted]).score / 100


def by_width(folder: Path, args: argparse.Namespace, metric: str) -> dict[int, float]:
    """The metric of a run's network, by the width of the beam."""
    scores = {}
    for width in WIDTHS:
        where = folder / f"beam-{width}"
        argv = ["--evaluate", str(folder / "last.pt"), "--run-dir", str(where), "--quiet"]
        argv += ["--data-dir", args.data_dir, "--device", args.device, "--beam", str(width)]
        scores[width] = (finished(where) or train(argv))[metric]
    return scores


@cli.command
def main(argv: list[str] | None = None) -> dict:
    """Runs what isn't done yet; writes claim_NAME.json and .png; returns the summary."""
    args = parse_args(argv)
    make_folder(args.out)
    shared = ["--data", args.data, "--epochs", str(args.epochs), "--val", "0", "--beam", "1"]
    arms = CLAIMS[args.claim]
    results, commands, folders = run_arms("seq2seq", train, arms, [*shared, "--quiet"], args)
    metric = "test_bleu" if "test_bleu" in next(iter(results.values()))[0] else "test_exact"
    name = "BLEU" if metric == "test_bleu" else "exact match (%)"
    path, curves = args.out / f"claim_{args.claim}", {}
    for arm in arms if args.claim in ("length", "beam") else ():
        if args.claim == "length":
            parts = [by_length(f, test_part(f, args), metric) for f in folders[arm]]
        else:
            parts = [by_width(f, args, metric) for f in folders[arm]]
        curves[arm] = {key: [part[key] for part in parts] for key in parts[0]}
        for run, part in zip(results[arm], parts, strict=True):
            run |= {f"{metric}, {args.claim} {key}": value for key, value in part.items()}
    summary = write_summary(path.with_suffix(".json"), results, commands)

    from common.plot import bars, spread

    if curves:
        percent = {a: {k: [100 * v for v in vs] for k, vs in c.items()} for a, c in curves.items()}
        axis = "words of the source" if args.claim == "length" else "width of the beam"
        spread(percent, path.with_suffix(".png"), axis, name, log=args.claim == "beam")
    else:
        values = {arm: [100 * run[metric] for run in runs] for arm, runs in results.items()}
        losses = {arm: [run["test_loss"] for run in runs] for arm, runs in results.items()}
        bars({name: values, "loss a token": losses}, path.with_suffix(".png"))
    for arm, runs in results.items():
        print(f"{arm:>24}: {name} {plus_minus([run[metric] for run in runs], unit='')}")
        for key, values in curves.get(arm, {}).items():
            print(f"{f'{args.claim} {key}':>24}: {plus_minus(values, unit='')}")
    print(f"wrote {path.name}.json and {path.name}.png in {args.out}")
    return summary


if __name__ == "__main__":
    main()
