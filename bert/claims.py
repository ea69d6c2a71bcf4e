"""The claims of bert/README.md as experiments, and the table of the five.

    python bert/claims.py table --data-dir PATH
    python bert/claims.py pretraining --data-dir PATH
    python bert/claims.py pairs --data-dir PATH
    python bert/claims.py masking
    python bert/claims.py sharing
    python bert/claims.py all_tokens --data-dir PATH
    python bert/claims.py permutation --data-dir PATH
    python bert/claims.py table --arms bert_mini electra_mini --data-dir PATH    # the rest later

table: the five at the same size (4 to 5 million parameters) and the same computation (processor
time) on English text, then fine-tuned on SST-2; and the same networks from scratch. Beside them
the LSTM of rnn/, which reads both ways and has nothing but SST-2 (its own default recipe).
pretraining (BERT, Sec. 1): SST-2 with and without, by the number of labelled examples.
pairs (RoBERTa, Table 2): with next-sentence pairs, and with full sentences and no pairs.
masking (RoBERTa, Table 1): the same masks in each pass, ten different ones, or always others.
sharing (ALBERT, Table 4): four layers with weights of one, two or four.
all_tokens (ELECTRA, Table 5 and Fig. 2): the discriminator learns from all tokens, or from the
hidden ones alone; and BERT at the same computation.
permutation (XLNet, Table 6): permutations against hidden words, at the same computation.

What is pre-trained for a claim lies below runs/bert-claims, and is trained once. With --arms the
JSON keeps what it has of the others, so that a table can be filled on several days and machines.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from bert.finetune import main as finetune
from bert.train import main as train
from common import cli
from common.checkpoint import read_checkpoint
from common.claims import (
    add_arms,
    arm_folder,
    best_arms,
    finished,
    plus_minus,
    run_arms,
    run_script,
    stored_arms,
)
from common.folder import make_folder

# fmt: off
TABLE = {  # model: optimiser steps that take 35 minutes of one (busy) core, and the peak rate
    "bert_mini":    ("2900", "1e-3"),
    "roberta_mini": ("2900", "1e-3"),
    "albert_mini":  ("1000", "1e-3"),
    "electra_mini": ("2350", "1e-3"),
    "xlnet_mini":   ("2300", "1e-3"),
}
TINY = {  # of `pairs`, `all_tokens` and `permutation`: arm, flags; what a step takes: not measured
    "pairs":            ["--model", "bert_tiny", "--steps", "3000"],
    "no pairs":         ["--model", "bert_tiny", "--no-pairs", "--steps", "3000"],
    "all tokens":       ["--model", "electra_tiny", "--steps", "2000"],
    "hidden tokens":    ["--model", "electra_tiny", "--no-everywhere", "--steps", "2000"],
    "permutations":     ["--model", "xlnet_tiny", "--steps", "2000"],
}
ENGLISH = ["--data", "english", "--vocab-size", "8192", "--lowercase", "--batch-size", "2048",
           "--val", "100000", "--every", "500", "--quiet"]
SST2 = ["--data", "sst2", "--epochs", "3", "--quiet"]
MRPC = ["--data", "mrpc", "--epochs", "3", "--quiet"]
RATES = ("1e-4", "4e-4")  # of fine-tuning, of which the better one counts
EXAMPLES = {100: "60", 500: "20", 2000: "6", 6920: "3"}  # labelled ones, and epochs over them
LSTM = {"bilstm": ["--model", "bilstm", "--data", "sst2", "--quiet"]}  # of rnn/, and of its README
CLAIMS = {
    "table": [*TABLE, *LSTM],
    "pretraining": ["pre-trained", "from scratch"],
    "pairs": ["pairs", "no pairs"],
    "masking": {"1 mask": ["--copies", "1"], "10 masks": ["--copies", "10"], "always others": []},
    "sharing": {f"weights of {n}": ["--num-groups", n] for n in ("1", "2", "4")},
    "all_tokens": ["all tokens", "hidden tokens", "no pairs"],
    "permutation": ["permutations", "no pairs"],
}
SHARED = {
    "masking": ["--model", "bert_tiny", "--steps", "3200", "--every", "800", "--quiet"],
    "sharing": ["--model", "albert_tiny", "--num-layers", "4", "--steps", "3200", "--every", "800",
                "--quiet"],
}
# fmt: on
SHOWN = {"no pairs": "hidden words", "pairs": "hidden words and pairs"}  # other names of arms
Results = dict[str, list[dict[str, float]]]


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The flags; see --help."""
    return cli.claims_parser("bert", __doc__, CLAIMS, by_arm=True).parse_args(argv)


def chosen(args: argparse.Namespace) -> list[str]:
    """The claim's arms that are to be run."""
    return [arm for arm in CLAIMS[args.claim] if not args.arms or arm in args.arms]


def pretrain(flags: Sequence[str], seed: int, args: argparse.Namespace, more: list[str]) -> Path:
    """The folder of a pre-training with these flags, which is trained unless it is there."""
    argv = [*flags, *ENGLISH, *more, "--seed", str(seed)]
    folder = arm_folder("bert", "pretraining", argv)
    if not finished(folder):
        where = ["--run-dir", str(folder), "--data-dir", args.data_dir, "--device", args.device]
        train([*argv, *where, "--resume"])
    return folder


def measured_before(folder: Path) -> dict[str, float]:
    """What a pre-training has measured on its test set, its optimiser steps and its seconds."""
    metrics, stored = finished(folder), read_checkpoint(folder / "last.pt")
    found = {f"pretraining_{k}": v for k, v in metrics.items() if k.startswith("test_")}
    return found | {"pretraining_steps": stored["step"], "pretraining_seconds": stored["seconds"]}


def train_lstm(argv: list[str]) -> dict[str, float]:
    """Runs rnn/train.py as a command, as no folder imports another's script; its metrics."""
    return run_script(Path(__file__).resolve().parents[1] / "rnn" / "train.py", argv)


def of_model(model: str) -> list[str]:
    """The flags of one of the table's five."""
    steps, rate = TABLE[model]
    return ["--model", model, "--steps", steps, "--lr", rate]


def spelt(command: str, folder: Path, flags: Sequence[str], more: list[str]) -> str:
    """A command of fine-tuning with what has to be pre-trained before it."""
    first = " ".join(["python bert/train.py", *flags, *ENGLISH, *more, "--seed 0 --data-dir PATH",
                      "--run-dir", str(folder)])  # fmt: skip
    command = command.replace("train.py", "finetune.py") + " --data-dir PATH"
    return f"{first} && {command}"


# ---------------------------------------------------------------------- the table


def table(args: argparse.Namespace, more: list[str]) -> tuple[Results, dict]:
    """The five: pre-trained once, fine-tuned with each seed, and from scratch."""
    results, commands = {}, {}
    for model in (arm for arm in chosen(args) if arm in TABLE):
        folder = pretrain(of_model(model), 0, args, more)
        before = measured_before(folder)
        stored = read_checkpoint(folder / "last.pt")
        names = [n for n in stored["model"] if not n.startswith("generator.")]
        before["parameters"] = sum(stored["model"][name].numel() for name in names)
        weights = ["--weights", str(folder / "last.pt")]
        choices = {
            model: [[*weights, "--lr", rate] for rate in RATES],
            f"{model}, from scratch": [
                [*weights, "--from-scratch", "--lr", rate] for rate in RATES
            ],
        }
        found, own, _ = best_arms("bert", finetune, choices, [*SST2, *more], args)
        for arm, runs in found.items():
            scratch = "from scratch" in arm
            name = f"{model}, from scratch" if scratch else model
            results[name] = [({} if scratch else before) | run for run in runs]
            commands[name] = spelt(own[arm], folder, of_model(model), more)
    beside = {arm: flags for arm, flags in LSTM.items() if arm in chosen(args)}
    found, own, folders = run_arms("rnn", train_lstm, beside, more, args)
    for arm, runs in found.items():
        state = read_checkpoint(folders[arm][0] / "last.pt")["model"]
        count = sum(value.numel() for value in state.values())
        results[arm] = [{"parameters": count} | run for run in runs]
        commands[arm] = f"{own[arm]} --data-dir PATH"
    return results, commands


def pretraining(args: argparse.Namespace, more: list[str]) -> tuple[Results, dict]:
    """bert_mini of the table by the number of labelled examples, with and without its weights."""
    folder = pretrain(of_model("bert_mini"), 0, args, more)
    weights = ["--weights", str(folder / "last.pt")]
    results, commands = {}, {}
    for arm in chosen(args):
        own = [] if arm == "pre-trained" else ["--from-scratch"]
        for count, epochs in EXAMPLES.items():
            limit = ["--limit", str(count), "--epochs", epochs]
            if count == max(EXAMPLES):
                limit = ["--epochs", epochs]
            flags = ["--data", "sst2", "--quiet", *weights, *own, *limit]
            name = f"{arm}, {count:,} examples"
            choices = {name: [[*flags, "--lr", rate] for rate in RATES]}
            found, said, _ = best_arms("bert", finetune, choices, more, args)
            ((best, runs),) = found.items()
            results[name] = runs
            commands[name] = spelt(said[best], folder, of_model("bert_mini"), more)
    return results, commands


# ---------------------------------------------------------------------- small networks


def tiny(args: argparse.Namespace, more: list[str]) -> tuple[Results, dict]:
    """Small networks, of each seed pre-trained and then fine-tuned on SST-2 and MRPC."""
    results, commands = {}, {}
    for arm in chosen(args):
        results[arm] = []
        for seed in args.seeds:
            folder = pretrain([*TINY[arm], "--lr", "2e-3"], seed, args, more)
            row = measured_before(folder)
            for task, flags in (("sst2", SST2), ("mrpc", MRPC)):
                how = [*flags, "--weights", str(folder / "last.pt"), "--lr", "5e-4", *more]
                one = argparse.Namespace(**vars(args) | {"seeds": [seed]})
                found, said, _ = run_arms("bert", finetune, {f"{arm}, {task}": how}, [], one)
                ((_, (metrics,)),) = found.items()
                row |= {f"{task}_{k}": v for k, v in metrics.items() if k.startswith("test_")}
                if seed == args.seeds[0]:
                    text = spelt(*said.values(), folder, [*TINY[arm], "--lr", "2e-3"], more)
                    known = commands.get(arm)
                    commands[arm] = f"{known} && {text.split(' && ')[1]}" if known else text
            results[arm].append(row)
    return results, commands


def masking(args: argparse.Namespace, more: list[str]) -> tuple[Results, dict]:
    """Masks that come again, and masks that don't."""
    arms = {arm: CLAIMS["masking"][arm] for arm in chosen(args)}
    found = run_arms("bert", train, arms, [*SHARED["masking"], *more], args)
    return found[0], found[1]


def sharing(args: argparse.Namespace, more: list[str]) -> tuple[Results, dict]:
    """Layers that share weights; with the number of parameters."""
    shared = [*SHARED["sharing"], *more]
    arms = {arm: CLAIMS["sharing"][arm] for arm in chosen(args)}
    results, commands, folders = run_arms("bert", train, arms, shared, args)
    for arm, runs in results.items():
        state = read_checkpoint(folders[arm][0] / "last.pt")["model"]
        for run in runs:
            run["parameters"] = sum(value.numel() for value in state.values())
    return results, commands


# ---------------------------------------------------------------------- pictures


def draw(claim: str, results: Results, path: Path) -> None:
    """The claim's picture."""
    from common.plot import bars, spread

    def percent(key: str) -> dict[str, list[float]]:
        return {SHOWN.get(arm, arm): [100 * run[key] for run in runs]
                for arm, runs in results.items()}  # fmt: skip

    if claim == "pretraining":
        series: dict[str, dict[float, list[float]]] = {}
        for name, runs in results.items():
            arm, count = name.rsplit(", ", 1)
            number = int(count.split()[0].replace(",", ""))
            series.setdefault(arm, {})[number] = [100 * run["test_accuracy"] for run in runs]
        spread(series, path, "labelled sentences", "SST-2, test accuracy (%)", log=True)
    elif claim == "table":
        values = percent("test_accuracy")
        sides = {"pre-trained": {}, "from scratch": {}}
        for arm, numbers in values.items():
            model, _, scratch = arm.partition(", ")
            side = "from scratch" if arm in LSTM else scratch or "pre-trained"
            sides[side][model.partition("_")[0]] = numbers
        bars({f"SST-2, test accuracy (%), {side}": arms for side, arms in sides.items() if arms},
             path)  # fmt: skip
    elif claim in ("masking", "sharing"):
        losses = {arm: [run["test_masked_loss"] for run in runs] for arm, runs in results.items()}
        bars({"hidden tokens told (%)": percent("test_masked_accuracy"),
              "nats a hidden token": losses}, path)  # fmt: skip
    else:
        bars({"SST-2, accuracy (%)": percent("sst2_test_accuracy"),
              "MRPC, F1 (%)": percent("mrpc_test_f1")}, path)  # fmt: skip


RUN = {"table": table, "pretraining": pretraining, "masking": masking, "sharing": sharing}


def key_of(claim: str) -> str:
    """The metric that is printed."""
    if claim in ("masking", "sharing"):
        return "test_masked_accuracy"
    return "test_accuracy" if claim in ("table", "pretraining") else "sst2_test_accuracy"


def cost(runs: list[dict[str, float]]) -> str:
    """What was spent on pre-training, of the first seed, where that was measured."""
    if "pretraining_seconds" not in runs[0]:
        return ""
    steps, seconds = (runs[0][f"pretraining_{name}"] for name in ("steps", "seconds"))
    return f", pre-trained for {steps:,} steps in {seconds:,.0f} s"


@cli.command
def main(argv: list[str] | None = None) -> dict:
    """Runs what isn't done yet; writes claim_NAME.json and .png; returns the summary."""
    args = parse_args(argv)
    make_folder(args.out)
    path, key = args.out / f"claim_{args.claim}.json", key_of(args.claim)
    arms = list(CLAIMS[args.claim])
    kept = stored_arms(path, arms, args)
    more = ["--max-steps", str(args.max_steps)] if args.max_steps else []
    results, commands = RUN.get(args.claim, tiny)(args, more)
    summary, results = add_arms(path, arms, args, results, commands, kept)
    draw(args.claim, results, path.with_suffix(".png"))
    for arm, runs in results.items():
        print(f"{arm:>32}: {key} {plus_minus([run[key] for run in runs])}{cost(runs)}")
    print(f"wrote {path.name} and {path.stem}.png in {args.out}")
    return summary


if __name__ == "__main__":
    main()
