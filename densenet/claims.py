"""The claims of densenet/README.md as experiments.

    python densenet/claims.py parameters --data-dir PATH                 # CIFAR-10
    python densenet/claims.py reuse --data-dir PATH
    python densenet/claims.py reuse --data shapes --epochs 1 --seeds 0   # to see how it works

parameters: for the same error a DenseNet-BC needs fewer parameters than a residual network
(Fig. 3): three of each, 70,000 to 850,000 parameters, trained alike by the scripts of both folders.
reuse: layers draw on features of all ages (Fig. 5): the mean size of the weights that lead from
each layer to each later one, in the three blocks of a trained `densenet40`.
Images have 16 pixels; all arms of a claim have the same number of epochs.
"""

import argparse
import json
import math
from pathlib import Path

import torch
from torch import Tensor

from common import cli
from common.checkpoint import read_checkpoint
from common.claims import error_of, plus_minus, run_arms, run_script, write_summary
from common.folder import make_folder
from densenet.train import main as train

DENSE = {name: ["--model", name] for name in (f"densenet_bc_{n}_12" for n in (22, 40, 100))}
RESIDUAL = {
    "resnet20 of half the width": ["--model", "resnet20", "--width", "8"],
    "resnet20": ["--model", "resnet20"],
    "resnet56": ["--model", "resnet56"],
}
SHARED = ["--batch-size", "64", "--lr", "0.1", "--val", "0"]
EPOCHS = {"parameters": 8, "reuse": 15}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The flags; see --help."""
    parser = cli.claims_parser("densenet", __doc__, list(EPOCHS), data="cifar10", size=16)
    text = f"of each run (default: {', '.join(f'{n} for {c}' for c, n in EPOCHS.items())})"
    parser.add_argument("--epochs", type=cli.integer(1), metavar="N", help=text)
    text = "end each run after N steps, to see how it works"
    parser.add_argument("--max-steps", type=cli.integer(1), metavar="N", help=text)
    return parser.parse_args(argv)


def train_resnet(argv: list[str]) -> dict[str, float]:
    """Runs resnet/train.py as a command, as no folder imports another's script; its metrics."""
    return run_script(Path(__file__).resolve().parents[1] / "resnet" / "train.py", argv)


def parameters_of(folder: Path) -> int:
    """The number of parameters that a run has trained: its momentum has one for each."""
    state = read_checkpoint(folder / "last.pt")["optimizer"]["state"]
    return sum(part["momentum_buffer"].numel() for part in state.values())


def compare_parameters(args: argparse.Namespace, shared: list[str]) -> dict:
    """Trains three networks of each kind; writes claim_parameters.json and .png."""
    results, commands, errors = {}, {}, {"DenseNet-BC, k = 12": {}, "ResNet": {}}
    sides = [("densenet", train, DENSE), ("resnet", train_resnet, RESIDUAL)]
    for (folder, main_of, arms), points in zip(sides, errors.values(), strict=True):
        found, ran, where = run_arms(folder, main_of, arms, shared, args)
        results, commands = results | found, commands | ran
        for arm in arms:
            counted = parameters_of(where[arm][0])
            points[counted / 1000] = [100 * (1 - run["test_accuracy"]) for run in found[arm]]
            for run in found[arm]:
                run["parameters"] = counted
    summary = write_summary(args.out / "claim_parameters.json", results, commands)
    for arm, metrics in summary.items():
        test, training = error_of(metrics, "test"), error_of(metrics, "train")
        print(f"{arm:>26}: {metrics['parameters']['mean']:>9,} parameters, test error {test}, "
              f"training error {training}")  # fmt: skip

    from common.plot import spread

    picture = args.out / "claim_parameters.png"
    spread(errors, picture, x="parameters (thousands)", y="test error (%)")
    return summary


def connections(state: dict[str, Tensor], block: int) -> Tensor:
    """Mean absolute weights (n + 1, n + 1) in a trained block of n layers, as in Fig. 5.

    Rows are sources: what comes into the block, then its layers. Columns are who reads them: the
    layers, then the transition or, behind the last block, the classifier. The rest is not a number.
    """
    part = f"features.denseblock{block}.denselayer"
    n = sum(key.startswith(part) and key.endswith("conv1.weight") for key in state)
    last = state.get(f"features.transition{block}.conv.weight", state["classifier.weight"])
    readers = [state[f"{part}{i + 1}.conv1.weight"] for i in range(n)] + [last]
    first = readers[0].shape[1]
    rate = (last.shape[1] - first) // n
    means = torch.full((n + 1, n + 1), torch.nan)
    for column, weight in enumerate(readers):
        sizes = weight.abs().transpose(0, 1).flatten(1).mean(1)  # of each channel that is read
        groups = sizes.split([first] + [rate] * column)
        means[: column + 1, column] = torch.stack([group.mean() for group in groups])
    return means


def spread_of(means: Tensor) -> dict[str, float]:
    """How a block's readers share out their weights, on average over those with a choice.

    `evenness`: over how many sources they are spread, of all that there are (exp of the entropy
    over the count: 1 if all weigh alike). `input`: what comes into the block weighs, over the mean.
    """
    evenness, first = [], []
    for column in range(1, means.shape[1]):
        shares = means[: column + 1, column] / means[: column + 1, column].sum()
        entropy = -(shares * shares.clamp(min=1e-12).log()).sum().item()
        evenness.append(math.exp(entropy) / (column + 1))
        first.append(shares[0].item() * (column + 1))
    return {"evenness": sum(evenness) / len(evenness), "input": sum(first) / len(first)}


def show_reuse(args: argparse.Namespace, shared: list[str]) -> dict:
    """Trains densenet40 and looks at its weights; writes claim_reuse.json and .png."""
    arms = {"densenet40": ["--model", "densenet40"]}
    results, commands, folders = run_arms("densenet", train, arms, shared, args)
    states = [read_checkpoint(folder / "last.pt")["model"] for folder in folders["densenet40"]]
    maps = []
    for block in (1, 2, 3):
        found = [connections(state, block) for state in states]
        maps.append(torch.stack(found).mean(0))
        for run, means in zip(results["densenet40"], found, strict=True):
            run |= {f"{key}_{block}": value for key, value in spread_of(means).items()}
    path = args.out / "claim_reuse.json"
    summary = write_summary(path, results, commands)
    summary["weights"] = [
        [[round(v, 5) for v in row if v == v] for row in means.tolist()] for means in maps
    ]
    path.write_text(json.dumps(summary) + "\n")
    draw(maps, args.out / "claim_reuse.png")
    for block in (1, 2, 3):
        even, first = (
            plus_minus(summary["densenet40"][f"{key}_{block}"]["values"])
            for key in ("evenness", "input")
        )
        print(f"block {block}: weights spread over {even} of the sources; "
              f"the block's input weighs {first} of the mean")  # fmt: skip
    return summary


def draw(maps: list[Tensor], path: Path) -> None:
    """One heat map for each block: rows are sources, columns readers, whose largest is dark."""
    from matplotlib.figure import Figure

    from common.plot import save

    figure = Figure(figsize=(10.5, 4.2), layout="constrained")
    for number, (axis, means) in enumerate(zip(figure.subplots(1, 3), maps, strict=True), 1):
        largest = means.nan_to_num().amax(0)  # by reader, as the classifier's are another size
        image = axis.imshow((means / largest).numpy(), cmap="viridis_r", vmin=0, vmax=1)
        n = len(means) - 1
        places = sorted({0, *range(1, n, 2), n})
        last = "classifier" if number == len(maps) else "transition"
        axis.set_xticks(places, [str(p + 1) if p < n else last for p in places], rotation=90)
        axis.set_yticks(places, ["input" if p == 0 else str(p) for p in places])
        axis.set_title(f"block {number}", fontsize=10)
        axis.set_xlabel("read by layer")
    figure.axes[0].set_ylabel("made by layer")
    figure.colorbar(
        image, ax=figure.axes, label="mean |weight|, over the reader's largest", shrink=0.7
    )
    save(figure, path)


@cli.command
def main(argv: list[str] | None = None) -> dict:
    """Runs what isn't done yet; writes claim_NAME.json and .png; returns the summary."""
    args = parse_args(argv)
    make_folder(args.out)
    args.epochs = args.epochs or EPOCHS[args.claim]
    shared = ["--data", args.data, "--epochs", str(args.epochs), "--size", str(args.size), *SHARED]
    if args.max_steps:
        shared += ["--max-steps", str(args.max_steps)]
    summary = (compare_parameters if args.claim == "parameters" else show_reuse)(args, shared)
    stem = args.out / f"claim_{args.claim}"
    print(f"wrote {stem.with_suffix('.json')} and {stem.with_suffix('.png')}")
    return summary


if __name__ == "__main__":
    main()
