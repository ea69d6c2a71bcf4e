"""The claims of gpt/README.md as experiments.

    python gpt/claims.py transfer --data-dir PATH
    python gpt/claims.py shots
    python gpt/claims.py scaling --data-dir PATH
    python gpt/claims.py banded --data-dir PATH

transfer (GPT-1, Table 5): SST-2 from a network that has read film reviews before, with and without
the auxiliary loss, and from one that has read nothing, each at the better of two rates.
shots (GPT-3, Fig. 1.2): each text is a list of examples of a hidden rule, drawn anew for it, that
gives each of eight letters a digit; how often is the next digit predicted, by how many examples
stand before it and by the network's size?
scaling (GPT-3, Fig. 3.1; GPT-4's report, Fig. 1): of five sizes, each at the best of two numbers of
steps, a power law of the computation is fitted to the smaller four, and predicts the fifth's loss.
banded (GPT-3, Sec. 2.1): every second layer sees the nearest tokens alone, or all; loss, and time
and memory of a training step by the length of the context.
"""

import argparse
import multiprocessing
import random
import statistics
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from common import cli, fail, seed_of
from common.checkpoint import read_checkpoint
from common.claims import arm_folder, best_arms, finished, plus_minus, run_arms, write_summary
from common.data.corpora import END, END_TOKEN, Vocabulary
from common.device import peak_memory
from common.folder import make_folder
from gpt.finetune import main as finetune
from gpt.model import MODELS
from gpt.published import build
from gpt.train import main as train

LETTERS, DIGITS, EXAMPLES = "abcdefgh", "12345678", 64  # of a hidden rule; of a text
SHOTS = 16  # answers of a text that are counted, with so many examples before them and fewer
RULE_TEXTS, TESTED = 60_000, 2_000  # to train on, to test with
PRETRAINING = ["--model", "gpt_tiny", "--steps", "3000", "--every", "500", "--vocab-size", "2048",
               "--context", "64", "--batch-size", "4096", "--lr", "3e-3", "--weight-decay", "0.1",
               "--quiet"]  # fmt: skip
SMALL = [("24", "2", "2"), ("40", "2", "2"), ("64", "3", "4"), ("96", "4", "4"), ("128", "4", "4")]
STEPS = [(300, 600), (500, 1000), (800, 1600), (1200, 2400), (2000, 4000)]
RATES = ("3e-4", "1e-3")  # of `transfer`
LENGTHS, BAND = (256, 512, 1024, 2048), 64
CLAIMS = {
    "transfer": {
        "pre-trained": ["--weights"],
        "pre-trained, no auxiliary loss": ["--weights", "--auxiliary", "0"],
        "from scratch": [],
    },
    "shots": {
        "1 layer": ["--num-layers", "1", "--d-model", "32", "--num-heads", "1"],
        "2 layers": ["--num-layers", "2", "--d-model", "64", "--num-heads", "2"],
        "4 layers": ["--num-layers", "4", "--d-model", "128", "--num-heads", "4"],
    },
    "scaling": {
        f"{width} wide, {layers} layers": [
            ["--d-model", width, "--num-layers", layers, "--num-heads", heads,
             "--steps", str(steps)] for steps in both
        ]
        for (width, layers, heads), both in zip(SMALL, STEPS, strict=True)
    },
    "banded": {"dense": ["--window", "512"], f"bands of {BAND}": ["--window", str(BAND)]},
}  # fmt: skip
SHARED = {
    "transfer": ["--data", "sst2", "--model", "gpt_tiny", "--epochs", "4", "--quiet"],
    "shots": ["--model", "gpt_tiny", "--tokens", "chars", "--context", "32", "--steps", "4000",
              "--every", "500", "--batch-size", "4096", "--lr", "2e-3", "--dropout", "0",
              "--weight-decay", "0.1", "--quiet"],
    "scaling": ["--data", "brown", "--model", "gpt_tiny", "--tokens", "bpe", "--vocab-size", "1024",
                "--every", "100", "--val", "100000", "--batch-size", "2048", "--lr", "4e-3",
                "--dropout", "0", "--weight-decay", "0.1", "--quiet"],
    "banded": ["--data", "brown", "--model", "gpt3_small", "--num-layers", "4", "--d-model", "128",
               "--num-heads", "4", "--context", "512", "--vocab-size", "1024", "--steps", "1000",
               "--every", "250", "--batch-size", "4096", "--lr", "4e-3", "--dropout", "0",
               "--weight-decay", "0.1", "--quiet"],
}  # fmt: skip
Results = dict[str, list[dict[str, float]]]


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The flags; see --help."""
    parser = cli.claims_parser("gpt", __doc__, CLAIMS)
    text = "of each run, and no longer (default: the claim's)"
    parser.add_argument("--max-steps", type=cli.integer(1), metavar="N", help=text)
    return parser.parse_args(argv)


# ---------------------------------------------------------------------- transfer


def transfer(args: argparse.Namespace, more: list[str]) -> tuple[Results, dict, dict]:
    """A network that has read film reviews, and what SST-2 gains from it."""
    argv = [*PRETRAINING, "--data", f"text:{args.data_dir}/movie_reviews", *more]
    folder = arm_folder("gpt", "pretraining", argv)
    if not finished(folder):
        where = ["--run-dir", str(folder), "--data-dir", args.data_dir, "--device", args.device]
        train([*argv, *where, "--resume"])
    arms = {
        arm: [word for flag in flags for word in
              ([flag, str(folder / "last.pt")] if flag == "--weights" else [flag])]
        for arm, flags in CLAIMS["transfer"].items()
    }  # fmt: skip
    own = ["--vocab-size", "2048", "--context", "64"]  # as the pre-trained network's
    arms["from scratch"] = [*arms["from scratch"], *own]
    choices = {arm: [[*flags, "--lr", rate] for rate in RATES] for arm, flags in arms.items()}
    how = [*SHARED["transfer"], *more]
    results, commands, folders = best_arms("gpt", finetune, choices, how, args)
    before = " ".join(["python gpt/train.py", *argv, "--run-dir", str(folder)])
    for arm, text in commands.items():
        text = text.replace("train.py", "finetune.py") + " --data-dir PATH"
        text = f"{before} && {text}" if "--weights" in text else text
        commands[arm] = text.replace(f"text:{args.data_dir}/", "text:PATH/")
    return results, commands, folders


# ---------------------------------------------------------------------- shots


def rule_text(draw: random.Random) -> tuple[str, list[bool]]:
    """Examples of a rule, "c3a7c3…"; and which of its digits follow from those before."""
    rule = {letter: draw.choice(DIGITS) for letter in LETTERS}
    letters = [draw.choice(LETTERS) for _ in range(EXAMPLES)]
    known = [letter in letters[:place] for place, letter in enumerate(letters)]
    return "".join(letter + rule[letter] for letter in letters), known


def rule_file(seed: int) -> Path:
    """A file of such texts to train on, below data/cache."""
    path = Path("data", "cache", f"rules-{seed}.txt")
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        draw = random.Random(seed_of("rules", seed))
        texts = (rule_text(draw)[0] for _ in range(RULE_TEXTS))
        path.write_text(f"\n{END_TOKEN}\n".join(texts), "utf-8")
    return path


@torch.inference_mode()
def right_by_shots(folder: Path) -> tuple[list[float], list[float]]:
    """How often the digit is predicted, by how many examples stand before it (0 to SHOTS - 1), on
    new texts; and how often the best answer that there is would be right."""
    stored = read_checkpoint(folder / "last.pt")
    vocabulary = Vocabulary(stored["dataset"])
    model = build(stored["dataset"]["network"])
    model.load_state_dict(stored["model"])
    model.eval()
    draw = random.Random(seed_of("rules", "test"))
    texts, known = zip(*(rule_text(draw) for _ in range(TESTED)), strict=True)
    tokens = torch.stack([vocabulary.encode(END + text[: 2 * SHOTS]) for text in texts])  # (N, T)
    places = 2 + 2 * torch.arange(SHOTS)  # of the digits
    logits = torch.cat([model(some)[:, places - 1] for some in tokens[:, :-1].split(100)])
    right = (logits.argmax(2) == tokens[:, places]).double().mean(0)
    least = torch.tensor(1 / len(DIGITS)).double()
    return right.tolist(), torch.where(torch.tensor(known)[:, :SHOTS], 1.0, least).mean(0).tolist()


def shots(args: argparse.Namespace, more: list[str]) -> tuple[Results, dict, dict]:
    """Networks of three sizes on texts of rules."""
    data = ["--data", f"text:{rule_file(0)}"]
    how = [*data, *SHARED["shots"], *more]
    results, commands, folders = run_arms("gpt", train, CLAIMS["shots"], how, args)
    for arm, runs in results.items():
        for run, folder in zip(runs, folders[arm], strict=True):
            right, best = right_by_shots(folder)
            run |= {f"right_{k}_shots": value for k, value in enumerate(right)}
            run |= {f"possible_{k}_shots": value for k, value in enumerate(best)}
    commands = {arm: f"{text}  # the claim writes that file" for arm, text in commands.items()}
    return results, commands, folders


# ---------------------------------------------------------------------- scaling


def compute_of(folder: Path) -> float:
    """The computation of a run: 6 N floating-point operations a token, N being the parameters
    without the embeddings of places."""
    stored = read_checkpoint(folder / "last.pt")
    weights = sum(v.numel() for n, v in stored["model"].items() if n != "wpe.weight")
    return 6.0 * weights * stored["step"] * stored["config"]["flags"]["batch_size"]


def power_law(compute: list[float], loss: list[float]) -> tuple[float, float, float]:
    """a, b, c of L = a C^-b + c: for each of 500 c from zero up, a and b are those of a straight
    line through log(L - c); the c is taken whose L has the least squared error."""
    x, y = np.log(compute), np.array(loss)
    best = None
    for c in np.linspace(0, min(loss) * 0.98, 500):
        slope, start = np.polyfit(x, np.log(y - c), 1)
        error = float(np.sum((np.exp(start + slope * x) + c - y) ** 2))
        if best is None or error < best[0]:
            best = error, float(np.exp(start)), float(-slope), float(c)
    return best[1:]


def scaling(args: argparse.Namespace, more: list[str]) -> tuple[Results, dict, dict]:
    """Five sizes, and the prediction for the largest."""
    how = [*SHARED["scaling"], *more]
    results, commands, folders = best_arms(
        "gpt", train, CLAIMS["scaling"], how, args, "val_loss", min
    )
    compute = [statistics.mean(map(compute_of, where)) for where in folders.values()]
    loss = [statistics.mean(run["test_loss"] for run in runs) for runs in results.values()]
    a, b, c = power_law(compute[:-1], loss[:-1])
    for flops, runs in zip(compute, results.values(), strict=True):
        for run in runs:
            run |= {"compute": flops, "fitted_loss": a * flops**-b + c}
            run |= {"fitted_a": a, "fitted_b": b, "fitted_c": c}
    told, measured = a * compute[-1] ** -b + c, loss[-1]
    print(f"L = {a:.4g} C^-{b:.3f} + {c:.3f}; of the largest predicted {told:.3f}, measured "
          f"{measured:.3f}: error {told / measured - 1:+.1%}")  # fmt: skip
    return results, commands, folders


# ---------------------------------------------------------------------- banded


def cost_of_step(window: int, length: int, answer) -> None:
    """Seconds of the processor and peak MiB of training steps, into the queue `answer`; runs in a
    process of its own."""
    torch.set_num_threads(1)
    sizes = dict(num_layers=4, d_model=128, num_heads=4, context=length, window=window)
    model = MODELS["gpt3_small"](1024, **sizes)
    tokens, seconds = torch.randint(1024, (2, length + 1)), []
    for _ in range(4):
        start = time.process_time()
        logits = model(tokens[:, :-1])
        F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).backward()
        seconds.append(time.process_time() - start)
    answer.put((min(seconds[1:]), peak_memory()))


def banded(args: argparse.Namespace, more: list[str]) -> tuple[Results, dict, dict]:
    """Loss of both, and what a step of both costs."""
    results, commands, folders = run_arms(
        "gpt", train, CLAIMS["banded"], [*SHARED["banded"], *more], args
    )
    context = multiprocessing.get_context("spawn")
    for arm, runs in results.items():
        for length in LENGTHS:
            answer = context.SimpleQueue()
            window = BAND if arm != "dense" else length
            child = context.Process(target=cost_of_step, args=(window, length, answer))
            child.start()
            child.join()
            if child.exitcode:  # of memory that ran out, say: no answer would ever come
                fail(f"a step with windows of {length:,} tokens ended with {child.exitcode}")
            seconds, memory = answer.get()
            for run in runs:
                run |= {f"seconds_{length}_tokens": seconds, f"mib_{length}_tokens": memory}
    return results, commands, folders


# ---------------------------------------------------------------------- pictures


def draw(claim: str, results: Results, path: Path) -> None:
    """The claim's picture."""
    from common.plot import bars, spread

    if claim == "transfer":
        values = {a: [100 * r["test_accuracy"] for r in runs] for a, runs in results.items()}
        bars({"SST-2, test accuracy (%)": values}, path)
    elif claim == "shots":
        series = {arm: {k: [100 * r[f"right_{k}_shots"] for r in runs] for k in range(SHOTS)}
                  for arm, runs in results.items()}  # fmt: skip
        first = next(iter(results.values()))
        series["the best there is"] = {
            k: [100 * run[f"possible_{k}_shots"] for run in first] for k in range(SHOTS)
        }
        spread(series, path, "examples before", "predicted right (%)")
    elif claim == "scaling":
        series = {"measured": {}, "fitted to all but the last": {}}
        for runs in results.values():
            flops = runs[0]["compute"]
            series["measured"][flops] = [run["test_loss"] for run in runs]
            series["fitted to all but the last"][flops] = [runs[0]["fitted_loss"]]
        draw_scaling(series, path)
    else:
        draw_banded(results, path)


def draw_scaling(series: dict[str, dict[float, list[float]]], path: Path) -> None:
    """Loss over computation, both logarithmic."""
    from matplotlib.figure import Figure

    from common.plot import save

    figure = Figure(figsize=(5, 3.6), layout="constrained")
    axis = figure.subplots()
    for (label, points), style in zip(series.items(), ("o", "--"), strict=True):
        means = [statistics.mean(values) for values in points.values()]
        axis.plot(list(points), means, style, label=label)
    axis.set(xscale="log", yscale="log", xlabel="floating-point operations of the training",
             ylabel="test loss (nats a token)")  # fmt: skip
    axis.grid(alpha=0.3, which="both")
    axis.legend()
    save(figure, path)


def draw_banded(results: Results, path: Path) -> None:
    """Loss of each seed; seconds and memory of a step by the length of its windows."""
    from matplotlib.figure import Figure

    from common.plot import save

    figure = Figure(figsize=(11, 3.4), layout="constrained")
    losses, *costs = figure.subplots(1, 3)
    for arm, runs in results.items():
        losses.plot([arm] * len(runs), [run["test_loss"] for run in runs], "o")
        for axis, kind in zip(costs, ("seconds", "mib"), strict=True):
            values = [runs[0][f"{kind}_{n}_tokens"] for n in LENGTHS]  # the same for all seeds
            axis.plot(LENGTHS, values, "o-", label=arm)
    losses.set(ylabel="test loss (nats a token)")
    losses.margins(x=0.5)
    for axis, what in zip(costs, ("seconds", "peak MiB"), strict=True):
        axis.set(xscale="log", yscale="log", xlabel="tokens of a window",
                 ylabel=f"{what} of a step of two windows")  # fmt: skip
        axis.set_xticks(LENGTHS, LENGTHS)
        axis.set_xticks([], minor=True)
        axis.legend()
    for axis in (losses, *costs):
        axis.grid(alpha=0.3, which="both")
    save(figure, path)


RUN = {"transfer": transfer, "shots": shots, "scaling": scaling, "banded": banded}
KEYS = {"transfer": "test_accuracy", "shots": f"right_{SHOTS - 1}_shots"}  # else test_loss


@cli.command
def main(argv: list[str] | None = None) -> dict:
    """Runs what isn't done yet; writes claim_NAME.json and .png; returns the summary."""
    args = parse_args(argv)
    make_folder(args.out)
    more = ["--max-steps", str(args.max_steps)] if args.max_steps else []
    results, commands, _ = RUN[args.claim](args, more)
    path, key = args.out / f"claim_{args.claim}.json", KEYS.get(args.claim, "test_loss")
    summary = write_summary(path, results, commands)
    draw(args.claim, results, path.with_suffix(".png"))
    for arm, runs in results.items():
        values = [run[key] for run in runs]
        text = plus_minus(values) if key != "test_loss" else plus_minus(values, 1, 3, "")
        print(f"{arm:>32}: {key} {text}")
    print(f"wrote {path.name} and {path.stem}.png in {args.out}")
    return summary


if __name__ == "__main__":
    main()
