"""The claims of rnn/README.md as experiments.

    python rnn/claims.py cells --data-dir PATH
    python rnn/claims.py lag
    python rnn/claims.py gradients
    python rnn/claims.py forget
    python rnn/claims.py bidirectional --data-dir PATH
    python rnn/claims.py clipping

cells: Elman's network, the GRU and the LSTM of equally many weights on Shakespeare, three epochs,
each at the best of five rates by validation with the first seed.
lag: the adding problem over 50 to 400 steps (1997, Sec. 5.4): Elman's network doesn't learn to keep
what it saw, the LSTM and the GRU do. 64 units, 2,000 steps of 50 sequences, where the paper
has four cells and 74,000 (100 steps) to 853,000 (1,000 steps) sequences, one at a time.
gradients: the norm of d h_T / d h_t over the lag T - t, before training and after that of `lag`
over 100 steps: it vanishes in Elman's network.
forget: an LSTM with and without forget gates on a text that goes on and on (Gers 2000): the test
set is read as one stream, from its first character to its last. Without forget gates the cells'
states grow.
bidirectional: sentences of film reviews read one way and both ways (Schuster and Paliwal 1997),
with equally many weights.
clipping: Elman's network with plain gradient descent at a high rate, the gradient's norm clipped
and not (Pascanu et al. 2013): without, the loss may jump.
"""

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common import cli
from common.checkpoint import read_checkpoint
from common.claims import best_arms, history, plus_minus, run_arms, write_summary
from common.data.batches import Draw
from common.device import Device
from common.folder import make_folder
from common.run import progress_bar
from rnn.adding import make
from rnn.corpus import load as load_text
from rnn.stack import Recurrent
from rnn.train import build
from rnn.train import main as train

KEEPING = {  # gates that begin by keeping: with a bias of 1 or 0 they learn no lag of 50 so soon
    "Elman": ["--model", "elman"],
    "GRU": ["--model", "gru", "--keep-bias", "6"],
    "LSTM": ["--model", "lstm", "--keep-bias", "4"],
}
LAGS = (50, 100, 200, 400)
SHOWN_LAGS = (1, 10, 50, 90)
ENDS = 5000  # characters at either end of a long stream
RATES = ("2e-3", "4e-3", "8e-3", "1.6e-2", "3.2e-2")  # of `cells`
ADDING = ["--data", "adding", "--epochs", "10", "--quiet"]
CLAIMS = {
    "cells": {  # 350,398, 351,429 and 350,914 weights
        "Elman": ["--model", "elman", "--hidden-size", "526"],
        "GRU": ["--model", "gru", "--hidden-size", "299"],
        "LSTM": ["--model", "lstm", "--hidden-size", "256"],
    },
    "lag": {
        f"{name}, {lag} steps": [*flags, "--length", str(lag)]
        for lag in LAGS
        for name, flags in KEEPING.items()
    },
    "gradients": {
        f"{name}, 100 steps": [*flags, "--length", "100"] for name, flags in KEEPING.items()
    },
    "forget": {"forget gate": ["--model", "lstm"], "none (1997)": ["--model", "lstm_1997"]},
    "bidirectional": {
        "one way": ["--model", "lstm", "--hidden-size", "128"],
        "both ways": ["--model", "bilstm", "--hidden-size", "80"],
    },
    "clipping": {"clipped at 1": ["--clip", "1"], "not clipped": ["--clip", "1e9"]},
}
SHARED = {
    "cells": ["--data", "shakespeare", "--num-layers", "1", "--dropout", "0", "--epochs", "3",
              "--quiet"],
    "lag": ADDING,
    "gradients": ADDING,
    "forget": ["--data", "pydocs", "--hidden-size", "128", "--epochs", "4", "--lr", "5e-3",
               "--dropout", "0", "--quiet"],
    "bidirectional": ["--data", "sst2", "--pooling", "last", "--epochs", "5", "--quiet"],
    "clipping": ["--data", "pydocs", "--model", "elman", "--optimizer", "sgd", "--lr", "3",
                 "--hidden-size", "128", "--epochs", "10", "--limit", "100000", "--dropout", "0",
                 "--quiet"],
}  # fmt: skip
Results = dict[str, list[dict[str, float]]]  # by arm and seed, as run_arms gives them
Folders = dict[str, list[Path]]


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The flags; see --help."""
    parser = cli.claims_parser("rnn", __doc__, CLAIMS)
    parser.add_argument("--epochs", type=cli.integer(1), help="of each run (default: the claim's)")
    return parser.parse_args(argv)


def network(folder: Path, trained: bool = True, **given) -> tuple[nn.Module, cli.Flags]:
    """The network of a run, as it began or as it was at its end, and the run's flags."""
    stored = read_checkpoint(folder / "last.pt")
    flags = cli.Flags(**{**stored["config"]["flags"], "stored": stored, **given})
    torch.manual_seed(flags.seed)
    model = build(flags, stored["dataset"])
    if trained:
        model.load_state_dict(stored["model"])
    return model.eval(), flags


# ---------------------------------------------------------------------- measures


def gradient_norms(layer: Recurrent, x: Tensor, draws: int = 8) -> dict[str, Tensor]:
    """The norm of d h_T / d s_t for all t, (T,), of one layer on inputs x (B, T, C); s is h, and of
    an LSTM also c, each with what the other passes on.

    Frobenius's norm, from the products of the Jacobian with `draws` normal vectors (of which the
    squares' mean is its square), root of the mean over the batch.
    """
    size = len(x) * layer.hidden_size  # so that d h_T / d h_T, the identity, has norm 1
    zero = torch.zeros(len(x), layer.hidden_size)
    states = layer.steps(x, (zero,) * layer.states, 0)
    found = {name: torch.zeros(x.shape[1]) for name in "hc"[: layer.states]}
    parts = [part for state in states for part in state]
    for _ in range(draws):
        vector = torch.randn(zero.shape)
        gradients = torch.autograd.grad(
            (states[-1][0] * vector).sum(), parts, retain_graph=True, allow_unused=True
        )
        for place, name in enumerate(found):
            for t, gradient in enumerate(gradients[place :: layer.states]):
                square = 0.0 if gradient is None else gradient.square().sum() / size
                found[name][t] += square / draws
    return {name: values.sqrt() for name, values in found.items()}


@torch.inference_mode()
def read_on(model: nn.Module, tokens: Tensor, dev: Device) -> tuple[Tensor, Tensor]:
    """Reads a text (N,) as one stream from the state zero: the mean of |c| after each token but
    the last, and the nats that the next one costs; both (N - 1,)."""
    layer, sizes, losses = model.rnn, [], []
    state = (torch.zeros(1, layer.hidden_size),) * 2
    parts = tokens[:-1].split(500)
    for i, part in enumerate(progress_bar(parts, dev, "reading on", len(parts))):
        states = layer.steps(model.embedding(part[None]), state, 0)
        state = states[-1]
        h, c = (torch.cat(some) for some in zip(*states, strict=True))  # (500, H)
        sizes.append(c.abs().mean(1))
        following = tokens[500 * i + 1 : 500 * i + 1 + len(part)]
        losses.append(F.cross_entropy(model.output(h), following, reduction="none"))
    return torch.cat(sizes), torch.cat(losses)


# ---------------------------------------------------------------------- what is drawn of each claim


def draw_cells(results: Results, folders: Folders, path: Path, args: argparse.Namespace) -> None:
    """Nats a character of the test set."""
    from common.plot import bars

    arms = {arm: [run["test_nats"] for run in runs] for arm, runs in results.items()}
    bars({"nats a character": arms}, path)


def draw_lag(results: Results, folders: Folders, path: Path, args: argparse.Namespace) -> None:
    """Wrong sums over the number of steps."""
    from common.plot import spread

    groups = {
        name: {lag: [100 * run["test_wrong"] for run in results[f"{name}, {lag} steps"]]
               for lag in LAGS}
        for name in KEEPING
    }  # fmt: skip
    spread(groups, path, "steps", "sums told wrong (%)", log=True)


def draw_gradients(
    results: Results, folders: Folders, path: Path, args: argparse.Namespace
) -> None:
    """The norms over the lag, before and after training, means over the seeds."""
    from matplotlib.figure import Figure

    from common.plot import save

    figure = Figure(figsize=(9, 3.4), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for (arm, runs), colour in zip(folders.items(), ("C0", "C1", "C2"), strict=True):
        name = arm.partition(",")[0]
        for axis, when in zip(axes, ("before", "after"), strict=True):
            found: dict[str, list[Tensor]] = {}
            for run, folder in zip(results[arm], runs, strict=True):
                model, flags = network(folder, trained=when == "after")
                draw = Draw([("gradients",)], 32, slice(None), torch.device("cpu"))
                pairs = make(flags.length, draw)[0][:, : flags.length]
                for part, norms in gradient_norms(model.rnn, pairs).items():
                    norms = norms.flip(0)  # by lag
                    found.setdefault(part, []).append(norms)
                    run |= {f"{part}_{when}_lag_{lag}": float(norms[lag]) for lag in SHOWN_LAGS}
            for part, norms in found.items():
                label = f"{name}, {part}" if len(found) > 1 else name
                style = "--" if part == "c" else "-"
                axis.plot(torch.stack(norms).mean(0), style, color=colour, label=label)
            axis.set(title=f"{when} training", xlabel="lag", yscale="log", ylim=(1e-10, 1e3))
            axis.grid(alpha=0.3)
    axes[0].set_ylabel("norm of d h_T / d s_t")
    axes[0].legend(fontsize=8)
    save(figure, path)


def draw_forget(results: Results, folders: Folders, path: Path, args: argparse.Namespace) -> None:
    """The cells' states and the loss by place in the test set, read as one stream."""
    from matplotlib.figure import Figure

    from common.plot import save

    figure = Figure(figsize=(9, 3.4), layout="constrained")
    axes = figure.subplots(1, 2)
    for arm, runs in folders.items():
        curves = []
        for run, folder in zip(results[arm], runs, strict=True):
            here = dict(data_dir=args.data_dir, quiet=True, device="cpu")
            model, flags = network(folder, **here)
            part = load_text(flags, Device(flags))[2]
            found = read_on(model, part.tokens, Device(flags.but(quiet=False)))
            for name, values in zip(("state", "nats"), found, strict=True):
                run[f"stream_{name}"] = float(values.mean())
                run[f"stream_{name}_first"] = float(values[:ENDS].mean())
                run[f"stream_{name}_last"] = float(values[-ENDS:].mean())
            curves.append(torch.stack(found))
        means = torch.stack(curves).mean(0)  # (2, N - 1), over the seeds
        span = max(1, means.shape[1] // 40)
        means = means[:, : means.shape[1] // span * span].unflatten(1, (-1, span)).mean(2)
        for axis, values in zip(axes, means, strict=True):
            axis.plot([span * (i + 0.5) for i in range(len(values))], values, label=arm)
    axes[0].set(ylabel="mean of |c|", yscale="log")
    axes[1].set(ylabel="nats a character")
    for axis in axes:
        axis.set_xlabel("characters read in one stream")
        axis.grid(alpha=0.3)
    axes[0].legend()
    save(figure, path)


def draw_clipping(results: Results, folders: Folders, path: Path, args: argparse.Namespace) -> None:
    """The training loss by epoch, of all seeds."""
    from matplotlib.figure import Figure

    from common.plot import save

    figure = Figure(figsize=(5.2, 3.4), layout="constrained")
    axis = figure.subplots()
    for (arm, runs), colour in zip(folders.items(), ("C0", "C1"), strict=True):
        for number, folder in enumerate(runs):
            losses = history(folder, "train_loss")
            label = None if number else arm
            axis.plot(list(losses), list(losses.values()), color=colour, linewidth=1, label=label)
    axis.set(xlabel="epoch", ylabel="training loss (nats a character)")
    axis.grid(alpha=0.3)
    axis.legend()
    save(figure, path)


def draw_both(results: Results, folders: Folders, path: Path, args: argparse.Namespace) -> None:
    """Accuracies, one way and both ways."""
    from common.plot import bars

    arms = {arm: [100 * run["test_accuracy"] for run in runs] for arm, runs in results.items()}
    bars({"test accuracy (%)": arms}, path)


DRAWN = {  # by which metric, and how
    "cells": ("test_nats", draw_cells),
    "lag": ("test_wrong", draw_lag),
    "gradients": ("test_wrong", draw_gradients),
    "forget": ("test_nats", draw_forget),
    "bidirectional": ("test_accuracy", draw_both),
    "clipping": ("test_nats", draw_clipping),
}


@cli.command
def main(argv: list[str] | None = None) -> dict:
    """Runs what isn't done yet; writes claim_NAME.json and .png; returns the summary."""
    args = parse_args(argv)
    make_folder(args.out)
    arms, shared = CLAIMS[args.claim], list(SHARED[args.claim])
    if args.epochs:
        shared[shared.index("--epochs") + 1] = str(args.epochs)
    if args.claim == "cells":
        choices = {name: [[*flags, "--lr", rate] for rate in RATES] for name, flags in arms.items()}
        how = "val_nats", min
        results, commands, folders = best_arms("rnn", train, choices, shared, args, *how)
    else:
        results, commands, folders = run_arms("rnn", train, arms, shared, args)
    path, (shown, draw) = args.out / f"claim_{args.claim}.json", DRAWN[args.claim]
    own = set(next(iter(results.values()))[0])
    draw(results, folders, path.with_suffix(".png"), args)
    summary = write_summary(path, results, commands)
    for arm, runs in results.items():
        for key in (shown, *(key for key in runs[0] if key not in own)):  # and what draw found
            values = [run[key] for run in runs]
            share = key in ("test_wrong", "test_accuracy")
            text = plus_minus(values) if share else plus_minus(values, 1, 3, "")
            if key.partition("_lag_")[1]:
                text = f"{sum(values) / len(values):.2g}"
            print(f"{arm:>15}: {key} {text}")
    print(f"wrote {path.name} and {path.stem}.png in {args.out}")
    return summary


if __name__ == "__main__":
    main()
