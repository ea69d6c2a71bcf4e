"""The claims of rnn/README.md as experiments.

    python rnn/claims.py lag
    python rnn/claims.py gradients
    python rnn/claims.py forget
    python rnn/claims.py bidirectional --data-dir PATH
    python rnn/claims.py clipping

lag: the adding problem over 50 to 400 steps (1997, Sec. 5.4): Elman's network doesn't learn to keep
what it saw, the LSTM and the GRU do. 64 units, 2,000 steps of 50 sequences, where the paper
has 8 units at most and up to half a million sequences.
gradients: the norm of d h_T / d h_t over the lag T - t, before training and after that of `lag`
over 100 steps: it vanishes in Elman's network.
forget: an LSTM with and without forget gates on a text that goes on and on (Gers 2000): without
them the cells' states grow.
bidirectional: sentences of film reviews read one way and both ways (Schuster and Paliwal 1997),
with equally many weights.
clipping: Elman's network with plain gradient descent at a high rate, the gradient's norm clipped
and not (Pascanu et al. 2013): without, the loss jumps.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from common import cli
from common.checkpoint import read_checkpoint
from common.claims import history, plus_minus, run_arms, write_summary
from common.data.batches import Draw
from common.device import Device
from common.folder import make_folder
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
ADDING = ["--data", "adding", "--epochs", "10", "--quiet"]
CLAIMS = {
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
    "lag": ADDING,
    "gradients": ADDING,
    "forget": ["--data", "pydocs", "--hidden-size", "128", "--epochs", "4", "--lr", "5e-3",
               "--dropout", "0", "--quiet"],
    "bidirectional": ["--data", "sst2", "--pooling", "last", "--epochs", "5", "--quiet"],
    "clipping": ["--data", "pydocs", "--model", "elman", "--optimizer", "sgd", "--lr", "1",
                 "--hidden-size", "128", "--epochs", "10", "--limit", "100000", "--dropout", "0",
                 "--quiet"],
}  # fmt: skip


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The flags; see --help."""
    parser = cli.claims_parser("rnn", __doc__, CLAIMS)
    parser.add_argument("--epochs", type=cli.integer(1), help="of each run (default: the claim's)")
    return parser.parse_args(argv)


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


def gradients(folders: dict[str, list[Path]], path: Path) -> dict:
    """Draws the norms over the lag, before and after training; returns some of them."""
    from matplotlib.figure import Figure

    from common.plot import save

    figure = Figure(figsize=(9, 3.4), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    found = {}
    for arm, runs in folders.items():
        name = arm.partition(",")[0]
        for axis, when in zip(axes, ("before training", "after training"), strict=True):
            means: dict[str, list[Tensor]] = {}
            for folder in runs:
                stored = read_checkpoint(folder / "last.pt")
                flags = cli.Flags(**stored["config"]["flags"])
                torch.manual_seed(flags.seed)
                model = build(flags, stored["dataset"])
                if when == "after training":
                    model.load_state_dict(stored["model"])
                draw = Draw([("gradients",)], 32, slice(None), torch.device("cpu"))
                pairs = make(flags.length, draw)[0][:, : flags.length]
                for part, norms in gradient_norms(model.rnn, pairs).items():
                    means.setdefault(part, []).append(norms)
            for part, norms in means.items():
                mean = torch.stack(norms).mean(0).flip(0)  # by lag
                axis.plot(mean, "--" if part == "c" else "-",
                          color=f"C{list(KEEPING).index(name)}",
                          label=f"{name}, {part}" if len(means) > 1 else name)  # fmt: skip
                found.setdefault(f"{name}, {part}, {when}", {
                    f"lag {lag}": float(mean[lag]) for lag in (1, 10, 50, 90)})  # fmt: skip
            axis.set(title=when, xlabel="lag", yscale="log", ylim=(1e-10, 1e3))
            axis.grid(alpha=0.3)
    axes[0].set_ylabel("norm of d h_T / d s_t")
    axes[0].legend(fontsize=8)
    save(figure, path)
    return found


@torch.inference_mode()
def cell_sizes(folder: Path, data_dir: str) -> Tensor:
    """The mean of |c| by place, (N,), as the network of a run reads the start of the test part."""
    stored = read_checkpoint(folder / "last.pt")
    flags = cli.Flags(**{**stored["config"]["flags"], "stored": stored, "data_dir": data_dir})
    flags = flags.but(quiet=True, device="cpu")
    model = build(flags, stored["dataset"])
    model.load_state_dict(stored["model"])
    model.eval()
    tokens, sizes, state = load_text(flags, Device(flags))[2].tokens[:8000], [], None
    model.rnn.fused = False
    x = model.embedding(tokens[None])
    state = (torch.zeros(1, model.rnn.hidden_size),) * 2
    for some in x.split(500, 1):
        states = model.rnn.steps(some, state, 0)
        sizes += [float(c.abs().mean()) for _, c in states]
        state = states[-1]
    return torch.tensor(sizes)


def lines(
    curves: dict[str, Sequence[float]], path: Path, x: str, y: str, log: bool = False
) -> None:
    """Draws a line for each of {label: values}."""
    from matplotlib.figure import Figure

    from common.plot import save

    figure = Figure(figsize=(5.2, 3.4), layout="constrained")
    axis = figure.subplots()
    for label, values in curves.items():
        axis.plot(range(1, len(values) + 1), values, label=label, linewidth=1)
    axis.set(xlabel=x, ylabel=y, yscale="log" if log else "linear")
    axis.grid(alpha=0.3)
    axis.legend()
    save(figure, path)


@cli.command
def main(argv: list[str] | None = None) -> dict:
    """Runs what isn't done yet; writes claim_NAME.json and .png; returns the summary."""
    args = parse_args(argv)
    make_folder(args.out)
    shared = list(SHARED[args.claim])
    if args.epochs:
        shared[shared.index("--epochs") + 1] = str(args.epochs)
    results, commands, folders = run_arms("rnn", train, CLAIMS[args.claim], shared, args)
    path = args.out / f"claim_{args.claim}.json"
    summary, picture = write_summary(path, results, commands), path.with_suffix(".png")

    from common.plot import bars, spread

    shown = {"lag": "test_wrong", "gradients": "test_wrong", "forget": "test_nats",
             "bidirectional": "test_accuracy", "clipping": "test_nats"}[args.claim]  # fmt: skip
    if args.claim == "lag":
        groups = {
            name: {lag: [100 * run[shown] for run in results[f"{name}, {lag} steps"]]
                   for lag in LAGS}
            for name in KEEPING
        }  # fmt: skip
        spread(groups, picture, "steps", "sums told wrong (%)", log=True)
    elif args.claim == "gradients":
        for name, values in gradients(folders, picture).items():
            text = ", ".join(f"{lag} {value:.2g}" for lag, value in values.items())
            print(f"{name:>26}: {text}")
    elif args.claim == "forget":
        sizes = {arm: cell_sizes(runs[0], args.data_dir) for arm, runs in folders.items()}
        lines(sizes, picture, "characters of the test part", "mean of |c|")
        for arm, values in sizes.items():
            print(f"{arm:>26}: mean of |c| {values[:100].mean():.2f} in the first 100 characters, "
                  f"{values[-1000:].mean():.2f} in the last 1,000 of 8,000")  # fmt: skip
    elif args.claim == "clipping":
        losses = {
            arm: list(history(runs[0], "train_loss").values()) for arm, runs in folders.items()
        }
        lines(losses, picture, "epoch", "training loss (nats a character)")
    else:
        bars({"test accuracy (%)": {arm: [100 * run[shown] for run in runs]
              for arm, runs in results.items()}}, picture)  # fmt: skip
    for arm, runs in results.items():
        values = [run[shown] for run in runs]
        text = plus_minus(values, 1, 3, "") if shown == "test_nats" else plus_minus(values)
        print(f"{arm:>26}: {shown} {text}")
    print(f"wrote {path.name} and {picture.name} in {args.out}")
    return summary


if __name__ == "__main__":
    main()
