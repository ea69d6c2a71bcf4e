"""The claims of mlp/README.md as experiments.

    python mlp/claims.py symmetry                          # 20 seeds
    python mlp/claims.py families                          # 10 seeds
    python mlp/claims.py depth --data-dir PATH             # MNIST
    python mlp/claims.py regularisation --data-dir PATH
    python mlp/claims.py optimisers --data-dir PATH
    python mlp/claims.py tables --data-dir PATH            # 5 seeds; PATH/tabular/abalone.csv, …
    python mlp/claims.py depth --data digits --seeds 0     # to see how it works

symmetry: two hidden units suffice, with weights equal and opposite about the middle (Fig. 1).
families: 100 of the 104 facts are learned, and the other four answered (Fig. 2-4).
depth: gradients by layer, and errors at 2 to 16 layers, of logistic units, ReLUs, and ReLUs with
batch normalisation.
regularisation: none, L1, L2, dropout, early stopping, on 1,000 images.
optimisers: each at the best rate of a small grid.
tables: beside logistic or ridge regression and gradient-boosted trees of scikit-learn.

Strengths and rates are chosen on the validation set, with the first seed.
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from common import cli, fail
from common.claims import best_arms, history, plus_minus, run_arms, write_summary
from common.device import Device
from common.folder import make_folder
from mlp.train import build, criterion, load
from mlp.train import main as train
from mlp.train import parse_args as train_flags

SEEDS = {"symmetry": range(20), "families": range(10), "tables": range(5)}  # else 0 1 2
DEPTHS = (2, 4, 8, 16)
KINDS = {
    "logistic": ["--activation", "logistic"],
    "ReLU": ["--activation", "relu"],
    "ReLU, normalised": ["--activation", "relu", "--norm"],
}
FEW_IMAGES = ["--limit", "1000", "--batch-size", "50", "--epochs", "60"]
FEW_IMAGES += ["--optimizer", "adam"]  # AdamW would make the weights of every arm smaller
STRENGTHS = {
    "none": [[]],
    "L1": [["--l1", s] for s in ("1e-6", "1e-5", "1e-4", "1e-3")],
    "L2": [["--l2", s] for s in ("1e-4", "3e-4", "1e-3", "1e-2")],
    "dropout": [["--dropout", s] for s in ("0.2", "0.5", "0.7", "0.8", "0.9")],
    "early stopping, patience": [["--patience", "10"]],
}
GRIDS = {
    "sgd": ("0.01", "0.03", "0.1", "0.3", "1"),
    "momentum": ("0.003", "0.01", "0.03", "0.1", "0.3"),
    "adagrad": ("0.003", "0.01", "0.03", "0.1", "0.3"),
    **dict.fromkeys(("rmsprop", "adam", "adamw"), ("0.0003", "0.001", "0.003", "0.01", "0.03")),
}
FILES = {  # files below PATH/tabular, and flags
    "adult": ["adult_train.csv,adult_test.csv"],
    "wine_quality": ["wine_quality.csv"],
    "california_housing": ["california_housing.csv", "--target", "median_house_value"],
    "abalone": ["abalone.csv"],
}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The flags; see --help."""
    parser = cli.claims_parser("mlp", __doc__, CLAIMS)
    parser.set_defaults(seeds=None)
    text = "of depth, regularisation, optimisers (default: mnist)"
    parser.add_argument("--data", choices=["mnist", "digits"], default="mnist", help=text)
    parser.add_argument(
        "--epochs", type=cli.integer(1), help="of each run (default: the claim's own)"
    )
    args = parser.parse_args(argv)
    args.seeds = list(SEEDS.get(args.claim, range(3))) if args.seeds is None else args.seeds
    return args


def epochs(args: argparse.Namespace, own: int) -> list[str]:
    """The flag for the claim's own number of epochs, or the user's."""
    return ["--epochs", str(args.epochs or own)]


def errors(results: dict[str, list[dict]]) -> dict[str, list[float]]:
    """Test errors in percent, by arm and seed."""
    return {
        arm: [100 * (1 - run["test_accuracy"]) for run in runs] for arm, runs in results.items()
    }


# ---------------------------------------------------------------------- the claims


def symmetry(args: argparse.Namespace) -> dict:
    """How many seeds get there, and what the weights look like where they do."""
    from matplotlib.figure import Figure

    from common.plot import save

    arms = {"1,425 sweeps": epochs(args, 57), "5,000 sweeps": epochs(args, 200)}
    shared = ["--data", "symmetry", "--quiet"]
    results, commands, folders = run_arms("mlp", train, arms, shared, args)
    for arm, runs in results.items():
        for run, folder in zip(runs, folders[arm], strict=True):
            w = torch.load(folder / "last.pt")["model"]["layers.0.groups.0.weight"]  # (2, 6)
            left, right = w[:, :3], w[:, 3:].flip(1)
            sizes = left.abs().mean(0).sort().values
            run["solved"] = float(run["test_accuracy"] == 1)
            run["opposite"] = float((left + right).abs().max() / w.abs().max())  # 0: exactly
            run["second"], run["third"] = (sizes[1:] / sizes[0]).tolist()  # 2 and 4 in Fig. 1
    figure = Figure(figsize=(5.6, 3.4), layout="constrained")
    axis = figure.subplots()
    last = list(folders)[-1]
    for run, folder in zip(results[last], folders[last], strict=True):
        points = history(folder, "train_loss")
        colour = "tab:blue" if run["solved"] else "tab:red"
        sweeps, errors_then = [25 * e for e in points], [64 * e for e in points.values()]
        axis.plot(sweeps, errors_then, color=colour, alpha=0.6)
    axis.axvline(1425, color="black", linewidth=0.8, linestyle=":")
    axis.set_xlabel("sweeps through the 64 patterns (dotted: the paper's 1,425)")
    axis.set_ylabel("error E (Eq. 3)")
    axis.set_title("blue: all patterns right at the end", fontsize=9)
    axis.grid(alpha=0.3)
    save(figure, args.out / "claim_symmetry.png")
    for arm, runs in results.items():
        good = [run for run in runs if run["solved"]]
        print(f"{arm}: {len(good)} of {len(runs)} seeds have all 64 patterns right")
        for run in good:
            print(f"  weights 1 : {run['second']:.2f} : {run['third']:.2f}, opposite but for "
                  f"{run['opposite']:.1%}")  # fmt: skip
    return write_summary(args.out / "claim_symmetry.json", results, commands)


def families(args: argparse.Namespace) -> dict:
    """Facts learned, of 100, and answered, of 4: with the numbers of Fig. 4's caption, and ours."""
    from common.plot import bars

    printed = ["--lr", "0.01", "--decay", "0.002", "--spread", "0.3"]
    arms = {"as printed": [*printed, *epochs(args, 60)], "ours": epochs(args, 180)}
    shared = ["--data", "families", "--quiet"]
    results, commands, folders = run_arms("mlp", train, arms, shared, args)
    for arm, runs in results.items():
        for run, folder in zip(runs, folders[arm], strict=True):
            run["learned"] = 100 * list(history(folder, "train_accuracy").values())[-1]
            run["answered"] = 4 * run["test_accuracy"]
    summary = write_summary(args.out / "claim_families.json", results, commands)
    panels = {"facts learned, of 100": "learned", "others answered, of 4": "answered"}
    values = {
        title: {arm: [run[key] for run in runs] for arm, runs in results.items()}
        for title, key in panels.items()
    }
    bars(values, args.out / "claim_families.png")
    for arm in results:
        learned, answered = (summary[arm][key]["values"] for key in ("learned", "answered"))
        print(f"{arm}: learned {plus_minus(learned, 1, unit='')} of 100; answered "
              f"{plus_minus(answered, 1, 2, '')} of 4: {[round(a) for a in answered]}")  # fmt: skip
    return summary


def gradient_norms(flags: list[str], args: argparse.Namespace, seed: int) -> list[float]:
    """The norm of the gradient of each layer's weights, on 1,000 images, before training."""
    places = ["--data-dir", args.data_dir, "--device", args.device]
    flags = train_flags([*flags, *places, "--seed", str(seed), "--quiet"])
    dev = Device(flags, "fp32")
    part = load(flags, dev)[0]
    model = dev.wrap(build(flags, part.facts)).train()
    inputs, targets = part.examples(torch.arange(min(1000, len(part))))
    criterion(model(inputs), targets, part.facts).backward()
    return [float(p.grad.norm()) for p in model.parameters() if p.dim() == 2]


def depth(args: argparse.Namespace) -> dict:
    """Gradients by layer at the start, and test errors, over the number of hidden layers."""
    from matplotlib.figure import Figure

    from common.plot import save

    shared = ["--model", "mlp", "--data", args.data, "--limit", "10000", "--batch-size", "64"]
    shared += ["--val", "0", "--lr", "0.001", *epochs(args, 5), "--quiet"]
    arms = {
        f"{kind}, {number}": ["--hidden", *["100"] * number, *flags]
        for kind, flags in KINDS.items()
        for number in DEPTHS
    }
    results, commands, _ = run_arms("mlp", train, arms, shared, args)
    for arm, runs in results.items():
        for run, seed in zip(runs, args.seeds, strict=True):
            norms = gradient_norms([*shared, *arms[arm]], args, seed)
            run |= {f"gradient_{layer}": norm for layer, norm in enumerate(norms, 1)}
    summary = write_summary(args.out / "claim_depth.json", results, commands)
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    for kind in KINDS:
        entry = summary[f"{kind}, {DEPTHS[-1]}"]
        left.plot(
            range(1, DEPTHS[-1] + 2),
            [entry[f"gradient_{layer}"]["mean"] for layer in range(1, DEPTHS[-1] + 2)],
            marker=".",
            label=kind,
        )
        found = [errors(results)[f"{kind}, {number}"] for number in DEPTHS]
        means = [sum(values) / len(values) for values in found]
        spans = [[m - min(v) for m, v in zip(means, found, strict=True)],
                 [max(v) - m for m, v in zip(means, found, strict=True)]]  # fmt: skip
        right.errorbar(DEPTHS, means, spans, marker="o", capsize=3, label=kind)
    left.set_yscale("log")
    left.set_xlabel("layer, from the pixels (17: the output)")
    left.set_ylabel("norm of the gradient, before training")
    right.set_xscale("log", base=2)
    right.set_yscale("log")
    right.set_xticks(DEPTHS, [str(number) for number in DEPTHS])
    right.set_xlabel("hidden layers of 100 units")
    right.set_ylabel("test error (%)")
    for axis in (left, right):
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    save(figure, args.out / "claim_depth.png")
    for arm, values in errors(results).items():
        first = summary[arm]["gradient_1"]["mean"]
        print(f"{arm} layers: test error {plus_minus(values, 1)}, first gradient {first:.2g}")
    return summary


def report(name: str, results: dict, commands: dict, args: argparse.Namespace) -> dict:
    """Writes and prints the test errors of the arms."""
    from common.plot import bars

    bars({"test error (%)": errors(results)}, args.out / f"claim_{name}.png")
    for arm, values in errors(results).items():
        print(f"{arm}: test error {plus_minus(values, 1, 2)}")
    return write_summary(args.out / f"claim_{name}.json", results, commands)


def regularisation(args: argparse.Namespace) -> dict:
    """Ways to generalise from 1,000 images."""
    shared = ["--model", "mlp", "--data", args.data, "--quiet", *FEW_IMAGES]
    shared += ["--epochs", str(args.epochs)] if args.epochs else []
    results, commands, _ = best_arms("mlp", train, STRENGTHS, shared, args)
    return report("regularisation", results, commands, args)


def optimisers(args: argparse.Namespace) -> dict:
    """Six optimisers, five passes over 10,000 images."""
    shared = ["--model", "mlp", "--data", args.data, "--limit", "10000", "--batch-size", "64"]
    shared += ["--quiet", *epochs(args, 5)]
    arms = {
        name: [["--optimizer", name, "--lr", rate] for rate in rates]
        for name, rates in GRIDS.items()
    }
    results, commands, _ = best_arms("mlp", train, arms, shared, args)
    return report("optimisers", results, commands, args)


def baselines(flags: Sequence[str], seed: int) -> dict[str, dict[str, float]]:
    """The metrics of a linear model and of boosted trees of scikit-learn, by default settings.

    Both learn from the whole training set; the trees see categories as such, and empty cells.
    """
    import pandas as pd
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.metrics import r2_score, root_mean_squared_error

    from mlp.tables import as_numbers, encode, learn, read_source

    args = train_flags([*flags, "--quiet"])
    source, target = read_source(args)
    parts = {name: part.table for name, part in source.parts.items()}
    separator = source.facts["separator"]
    rest = parts["train"].drop(columns=target)
    rest.attrs["separator"] = separator
    columns = learn(rest, [])
    plain = {name: encode(table, columns)[0].numpy() for name, table in parts.items()}
    rich = {
        name: pd.DataFrame({
            c["name"]: as_numbers(table[c["name"]], c["comma"])
            if c["kind"] == "number"
            else pd.Categorical(table[c["name"]], categories=c["categories"])
            for c in columns
        })
        for name, table in parts.items()
    }  # fmt: skip
    classes = source.classes
    answers = {
        name: table[target].to_numpy(str) if classes else as_numbers(table[target]).to_numpy()
        for name, table in parts.items()
    }
    trees = HistGradientBoostingClassifier if classes else HistGradientBoostingRegressor
    linear = LogisticRegression(max_iter=2000) if classes else Ridge()
    found = {}
    for arm, model, inputs in (
        ("logistic" if classes else "ridge", linear, plain),
        ("trees", trees(random_state=seed, categorical_features="from_dtype"), rich),
    ):
        guess = model.fit(inputs["train"], answers["train"]).predict(inputs["test"])
        if classes:
            found[arm] = {"test_accuracy": float((guess == answers["test"]).mean())}
        else:
            rmse = float(root_mean_squared_error(answers["test"], guess))
            found[arm] = {"test_rmse": rmse, "test_r2": float(r2_score(answers["test"], guess))}
    return found


def tables(args: argparse.Namespace) -> dict:
    """Networks beside a linear model and boosted trees, on four tables."""
    from common.plot import bars

    root = Path(args.data_dir, "tabular")
    missing = [name for files, *_ in FILES.values() for name in files.split(",")]
    if lacking := [name for name in missing if not (root / name).is_file()]:
        fail(f"{lacking[0]} is not in {root}: --data-dir names the folder that has tabular/")
    results, commands, panels = {}, {}, {}
    for name, (files, *flags) in FILES.items():
        data = "csv:" + ",".join(str(root / file) for file in files.split(","))
        own = ["--data", data, *flags]
        shared = ["--quiet", *(epochs(args, 1) if args.epochs else [])]
        found, how, _ = run_arms("mlp", train, {f"{name}, mlp": own}, shared, args)
        results |= found
        commands |= {arm: line.replace(str(root), "PATH/tabular") for arm, line in how.items()}
        for seed in args.seeds:
            for arm, metrics in baselines(own, seed).items():
                results.setdefault(f"{name}, {arm}", []).append(metrics)
                commands[f"{name}, {arm}"] = "scikit-learn, in claims.py"
        metric = "test_accuracy" if "test_accuracy" in found[f"{name}, mlp"][0] else "test_r2"
        panels[f"{name}: {metric.removeprefix('test_')}"] = {
            arm.partition(", ")[2]: [run[metric] for run in runs]
            for arm, runs in results.items()
            if arm.startswith(f"{name}, ")
        }
    results = {  # of the network, too, only what is compared
        arm: [{k: v for k, v in run.items() if k != "test_loss"} for run in runs]
        for arm, runs in results.items()
    }
    bars(panels, args.out / "claim_tables.png")
    for arm, runs in results.items():
        for key in runs[0]:
            values = [run[key] for run in runs]
            share = key == "test_accuracy"
            shown = plus_minus(values) if share else plus_minus(values, 1, 4, "")
            print(f"{arm}: {key} {shown}")
    return write_summary(args.out / "claim_tables.json", results, commands)


CLAIMS: dict[str, Callable] = {
    "symmetry": symmetry,
    "families": families,
    "depth": depth,
    "regularisation": regularisation,
    "optimisers": optimisers,
    "tables": tables,
}


@cli.command
def main(argv: list[str] | None = None) -> dict:
    """Runs what isn't done yet; writes claim_NAME.json and .png; returns the summary."""
    args = parse_args(argv)
    make_folder(args.out)
    summary = CLAIMS[args.claim](args)
    print(f"wrote claim_{args.claim}.json and claim_{args.claim}.png in {args.out}")
    return summary


if __name__ == "__main__":
    main()
