"""The claims of flamingo/README.md as experiments.

    python flamingo/claims.py shots        # accuracy over the examples in the context
    python flamingo/claims.py gates        # tanh gates against none; the gates' values over depth
    python flamingo/claims.py frozen       # language model frozen against trained along
    python flamingo/claims.py resampler    # 4 to 64 latents, against no resampling

All on `shapes`, around parts that are trained first (once for each seed). shots (Fig. 2, Table 1)
leaves one kind of question out of the training of the gated layers and of the language model, by
turns, and asks it after 0, 1, 2, 4 and 8 examples; beside it the kinds that were trained on. gates
(Table 3, iii) says also how far the loss jumps in training. frozen (Table 3, viii) measures also
how well the language model still predicts text without images.
"""

import argparse
import itertools
import statistics
from pathlib import Path

from common import cli
from common.checkpoint import read_checkpoint
from common.claims import history, plus_minus, run_arms, write_summary
from common.device import Device
from common.folder import make_folder
from flamingo.data import Part, Words, chosen, load, room_for
from flamingo.evaluate import answer, mean
from flamingo.model import Flamingo
from flamingo.parts import build
from flamingo.questions import KINDS
from flamingo.train import main as train
from flamingo.train import parse_args as flags_of

NUMBERS = (0, 1, 2, 4, 8)  # of examples
LEFT = ("colour", "size", "position")  # kinds that are left out by turns
LATENTS = (4, 8, 16, 32, 64)
CLAIMS = {
    "shots": {f"without {kind}": ["--leave-out", kind] for kind in LEFT},
    "gates": {"tanh gates": [], "no gates": ["--no-gates"]},
    "frozen": {"frozen": [], "trained along": ["--tune-language"]},
    "resampler": {
        "no resampling": ["--num-latents", "0"],
        **{f"{n} latents": ["--num-latents", str(n)] for n in LATENTS},
    },
}
Results = dict[str, list[dict[str, float]]]


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The flags; see --help."""
    parser = cli.claims_parser("flamingo", __doc__, CLAIMS)
    add, count = parser.add_argument, dict(type=cli.integer(1), metavar="N")
    add("--steps", **count, help="of each training (default: train.py's)")
    add("--num-test", **count, help="questions of each kind (default: train.py's)")
    add("--size", type=cli.integer(8), metavar="S", help="pixels of images (default: train.py's)")
    text = "of each training, and no longer; of the parts', too"
    add("--max-steps", **count, help=text)
    return parser.parse_args(argv)


def shared_flags(args: argparse.Namespace) -> list[str]:
    """What all runs of a claim have in common."""
    found = ["--quiet"]
    for name in ("steps", "num_test", "size", "max_steps"):
        if (value := getattr(args, name)) is not None:
            found += [f"--{name.replace('_', '-')}", str(value)]
    return found


# ---------------------------------------------------------------------- runs, opened again


class Opened:
    """A run's network with its data: `test` and `support` (the training set)."""

    def __init__(self, folder: Path, args: argparse.Namespace):
        content = read_checkpoint(folder / "last.pt")
        stored = content["config"]["flags"]
        same = ["--data", stored["data"], "--size", str(content["dataset"]["vision"]["image_size"])]
        same += ["--num-test", str(stored["num_test"]), "--val", str(stored["val"])]
        same += ["--shots", str(stored["shots"])]
        same += ["--limit", str(stored["limit"])] if stored["limit"] else []
        self.flags = flags_of([*same, "--quiet", "--device", args.device])
        self.dev = Device(self.flags)
        self.model: Flamingo = build(content["dataset"])
        self.model.load_state_dict(content["model"])
        self.model.to(self.dev.device).eval()
        self.words = Words(content["dataset"]["vocabulary"])
        known, _, test = load(self.flags, self.dev, content["dataset"]["vision"]["image_size"])
        known.facts |= {key: content["dataset"][key] for key in ("mean", "std")}
        room = room_for(self.model, self.flags)
        self.support, self.test = (
            Part(part, self.model, self.dev, self.words, room) for part in (known, test)
        )

    def right(self, kind: str, shots: int) -> float:
        """The share of a kind's questions that is answered right after so many examples."""
        places = chosen(self.test, kind, self.flags.num_test)
        given = self.model, self.words, self.test, self.support, places, self.dev, shots
        return mean(answer(*given)[0])

    def text_loss(self) -> float:
        """Nats a token of the test questions' answers, of the language model without images."""
        losses = []
        for kind in self.test.kinds:
            places = chosen(self.test, kind, self.flags.num_test)
            given = self.model, self.words, self.test, self.support, places, self.dev
            losses.append(answer(*given, blind=True)[1])
        return statistics.mean(losses)


# ---------------------------------------------------------------------- the claims


def shots(args: argparse.Namespace) -> tuple[Results, dict[str, str]]:
    """Accuracy over examples, of the kind that was left out and of those that were not."""
    _, commands, folders = run_arms("flamingo", train, CLAIMS["shots"], shared_flags(args), args)
    results: Results = {"left out": [], "trained on": []}
    for place, _ in enumerate(args.seeds):
        rows: dict[str, dict[int, list[float]]] = {arm: {n: [] for n in NUMBERS} for arm in results}
        for kind in LEFT:
            opened = Opened(folders[f"without {kind}"][place], args)
            for n in NUMBERS:
                found = {own: opened.right(own, n) for own in KINDS}
                rows["left out"][n].append(found.pop(kind))
                rows["trained on"][n].append(statistics.mean(found.values()))
        for arm, by_number in rows.items():
            results[arm].append({f"right_{n}_shots": statistics.mean(v)
                                 for n, v in by_number.items()})  # fmt: skip
    return results, dict.fromkeys(results, "; ".join(commands.values()))


def jump(folder: Path) -> float:
    """The most by which the training loss rose from one of its rows to the next."""
    losses = list(history(folder, "train_loss").values())
    return max([0.0, *(b - a for a, b in itertools.pairwise(losses))])


def gates_of(folder: Path) -> dict[str, float]:
    """What the gates of a run are multiplied by, from the first layer on; none without gates."""
    state = read_checkpoint(folder / "last.pt")["model"]
    return {
        f"gate_{kind}_{name.split('.')[1]}": float(value.tanh())
        for kind in ("attn", "ff")
        for name, value in state.items()
        if name.endswith(f".{kind}_gate")
    }


def gates(args: argparse.Namespace) -> tuple[Results, dict[str, str]]:
    """Loss and stability of both, and the gates' values."""
    how = [*shared_flags(args), "--val", "0", "--every", "25"]
    results, commands, folders = run_arms("flamingo", train, CLAIMS["gates"], how, args)
    for arm, runs in results.items():
        for run, folder in zip(runs, folders[arm], strict=True):
            run |= {"largest_jump": jump(folder), **gates_of(folder)}
    return results, commands


def frozen(args: argparse.Namespace) -> tuple[Results, dict[str, str]]:
    """Accuracy of both, and what became of the language model."""
    how = shared_flags(args)
    results, commands, folders = run_arms("flamingo", train, CLAIMS["frozen"], how, args)
    for arm, runs in results.items():
        for run, folder in zip(runs, folders[arm], strict=True):
            run["text_loss"] = Opened(folder, args).text_loss()
    return results, commands


def resampler(args: argparse.Namespace) -> tuple[Results, dict[str, str]]:
    """Accuracy by the number of latents."""
    how = shared_flags(args)
    return run_arms("flamingo", train, CLAIMS["resampler"], how, args)[:2]


# ---------------------------------------------------------------------- pictures


def draw(claim: str, results: Results, path: Path) -> None:
    """The claim's picture."""
    from common.plot import bars, spread

    if claim == "shots":
        series = {arm: {n: [100 * run[f"right_{n}_shots"] for run in runs] for n in NUMBERS}
                  for arm, runs in results.items()}  # fmt: skip
        return spread(series, path, "examples before the question", "right (%)")
    if claim == "gates":
        return draw_gates(results, path)
    keys = {"test_accuracy": ("right (%)", 100)}
    if claim == "frozen":
        keys["text_loss"] = ("without images: nats a token of the answer", 1)
    groups = {
        title: {arm: [scale * run[key] for run in runs] for arm, runs in results.items()}
        for key, (title, scale) in keys.items()
    }
    return bars(groups, path)


def draw_gates(results: Results, path: Path) -> None:
    """Losses of both, and the gates over depth, which the paper has in its appendix."""
    from matplotlib.figure import Figure

    from common.plot import save

    figure = Figure(figsize=(8, 3.4), layout="constrained")
    losses, depth = figure.subplots(1, 2)
    for arm, runs in results.items():
        losses.plot([arm] * len(runs), [run["test_loss"] for run in runs], "o")
    losses.set(ylabel="test loss (nats a token of the answer)")
    losses.margins(x=0.5)
    for kind, name in (("attn", "attention"), ("ff", "feed-forward")):
        runs = results["tanh gates"]
        layers = sorted(int(key.rpartition("_")[2]) for key in runs[0]
                        if key.startswith(f"gate_{kind}_"))  # fmt: skip
        means = [statistics.mean(abs(run[f"gate_{kind}_{n}"]) for run in runs) for n in layers]
        depth.plot([n + 1 for n in layers], means, "o-", label=name)
    depth.set(xlabel="gated layer", ylabel="|tanh| of the gate", ylim=(0, 1))
    depth.legend()
    for axis in (losses, depth):
        axis.grid(alpha=0.3)
    save(figure, path)


RUN = {"shots": shots, "gates": gates, "frozen": frozen, "resampler": resampler}
SHOWN = {  # metrics that are printed, and whether they are shares
    "shots": {f"right_{n}_shots": True for n in NUMBERS},
    "gates": {"test_accuracy": True, "test_loss": False, "largest_jump": False},
    "frozen": {"test_accuracy": True, "test_loss": False, "text_loss": False},
    "resampler": {"test_accuracy": True, "test_loss": False},
}


@cli.command
def main(argv: list[str] | None = None) -> dict:
    """Runs what isn't done yet; writes claim_NAME.json and .png; returns the summary."""
    args = parse_args(argv)
    make_folder(args.out)
    results, commands = RUN[args.claim](args)
    path = args.out / f"claim_{args.claim}.json"
    summary = write_summary(path, results, commands)
    draw(args.claim, results, path.with_suffix(".png"))
    width = max(map(len, results))
    for arm, runs in results.items():
        words = []
        for key, share in SHOWN[args.claim].items():
            how = {} if share else dict(scale=1, digits=3, unit="")
            words.append(f"{key} {plus_minus([run[key] for run in runs], **how)}")
        print(f"{arm:>{width}}: {', '.join(words)}")
    print(f"wrote {path.name} and {path.stem}.png in {args.out}")
    return summary


if __name__ == "__main__":
    main()
