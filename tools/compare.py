"""Trains the classifiers on the same data for the same number of passes, and compares them.

    python tools/compare.py                                      # shapes
    python tools/compare.py --data cifar10 --data-dir PATH       # CIFAR-10, or what is there of it
    python tools/compare.py --runs runs/resnet/* runs/vgg/*      # runs that you have
    python tools/compare.py --runs runs/seq2seq/* runs/t5/*      # of any task: translators, say

Writes compare-DATA.md, .json and .png: parameters, multiply-adds of an image (by PyTorch's own
counter), test accuracy, images a second in training and inference, and the peak memory of a
training step. Runs lie in runs/, are skipped when done and go on where they were interrupted.
The networks are the small ones that milestones.toml names for classifiers of images. Each is
trained by its own script, at its own learning rate, batches of 128.

Runs that are not all of classifiers of images are compared by the test metrics that all of them
have, with parameters and minutes of training; runs of one model that differ in the seed alone come
together.
"""

import argparse
import importlib
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common import cli, fail
from common.checkpoint import read_checkpoint
from common.claims import finished, multiply_adds, run_arms
from common.device import Device, peak_memory
from common.folder import as_spelt_now, make_folder
from tools.milestones import small_models

MODELS = small_models("image classification")  # by the folder whose script trains them
EPOCHS = {"shapes": 4}  # else 10
BATCH = 128
ASIDE = ("seed", "run_dir", "typed", "chosen", "quiet", "data_dir", "device", "resume")
ASIDE += ("tensorboard", "save_minutes", "workers")  # flags that runs of one kind may differ in
BUFFERS = ("running_mean", "running_var", "num_batches_tracked")  # of a state, but not learnt
PLAIN = ("loss", "nats", "bits", "perplexity", "frechet", "ratio", "seconds", "mse", "mae", "psnr")
ROUNDS = 7  # of timing, of which the median counts


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The flags; see --help."""
    parser = cli.OneLineParser("python tools/compare.py", __doc__)
    names = [name for models in MODELS.values() for name in models]
    add = parser.add_argument
    add("--data", default="shapes", help="as for the scripts (default: shapes)")
    add("--data-dir", default="data", help="where downloaded data sets lie (default: data)")
    add("--models", nargs="+", choices=names, default=names, help="which (default: all)")
    add("--epochs", type=cli.integer(1), help="passes of each (default: 4 of shapes, else 10)")
    add("--limit", type=cli.integer(1), help="train on so many images")
    add("--seeds", type=cli.integer(0), nargs="+", default=[0, 1, 2], help="(default: 0 1 2)")
    add("--device", choices=cli.DEVICES, default="auto", help="where to compute (default: auto)")
    add("--runs", nargs="+", type=Path, help="compare these run folders, and train nothing")
    add("--out", type=Path, default=Path("tools", "samples"), help="folder for what is made")
    add("--peak", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    args.seeds = list(dict.fromkeys(args.seeds))  # a run that is named twice is one
    return args


def train_all(args: argparse.Namespace) -> dict[str, list[Path]]:
    """Trains what isn't trained yet; returns the run folders by model, seed by seed."""
    epochs = args.epochs or EPOCHS.get(args.data, 10)
    shared = ["--data", args.data, "--epochs", str(epochs), "--val", "0"]
    shared += ["--batch-size", str(BATCH), *(["--limit", str(args.limit)] if args.limit else [])]
    folders = {}
    for milestone, names in MODELS.items():
        for name in [name for name in names if name in args.models]:
            train = importlib.import_module(f"{milestone}.train").main
            arms = {name: ["--model", name]}
            folders |= run_arms(milestone, train, arms, shared, args)[2]
    return folders


def group(folders: list[Path]) -> dict[str, list[Path]]:
    """Run folders by their model and data; those that differ in the seed alone come together.

    Ends in one line at what is no finished run, and at a run and its copy.
    """
    groups: dict[tuple[str, str], dict[str, list[Path]]] = {}
    trained: dict[tuple, Path] = {}  # by flags and seed
    named: dict[Path, Path] = {}  # what is named twice, be it by a link, counts once
    for folder in folders:
        named.setdefault(folder.resolve(), folder)
    for folder in named.values():
        if not (folder / "last.pt").is_file():
            fail(f"{folder} holds no last.pt: name the folders of runs")
        metrics = finished(folder)
        if metrics is None:
            fail(f"{folder} is not finished: go on with --resume --run-dir {folder}")
        flags = as_spelt_now(read_checkpoint(folder / "last.pt")["config"]["flags"])
        rest = json.dumps({k: v for k, v in flags.items() if k not in ASIDE}, sort_keys=True)
        twin = trained.setdefault((rest, flags["seed"]), folder)
        if twin != folder:
            fail(f"{twin} and {folder} are one training, with equal flags and seed: name one")
        kinds = groups.setdefault((flags["model"], flags["data"]), {})
        kinds.setdefault(rest, []).append(folder)
    several = len({data for _, data in groups}) > 1  # accuracies that can't be compared: say so
    rows = {}
    for (model, data), kinds in groups.items():
        name = f"{model} on {data}" if several else model
        for number, found in enumerate(kinds.values(), 1):
            rows[name if len(kinds) == 1 else f"{name} ({number})"] = found
            if len(kinds) > 1:
                print(f"{name} ({number}): {' '.join(map(str, found))}")
    return rows


def of_images(folder: Path) -> bool:
    """Whether a run is of a classifier of images, whose speed and memory can be measured alike."""
    flags = read_checkpoint(folder / "last.pt")["config"]["flags"]
    return flags.get("milestone") in MODELS and "test_accuracy" in finished(folder)


def any_task(folders: dict[str, list[Path]]) -> dict[str, dict]:
    """Parameters, minutes and shared test metrics (mean and std) of runs of any task."""
    results = {name: [finished(folder) for folder in found] for name, found in folders.items()}
    shared = [key for key in next(iter(results.values()))[0] if key.startswith("test_")]
    for name, runs in results.items():
        had = shared
        shared = [key for key in shared if all(key in run for run in runs)]
        if not shared:
            fail(f"{name} has none of the others' test metrics ({', '.join(had) or 'none'})")
    table = {}
    for name, found in folders.items():
        states = [read_checkpoint(folder / "last.pt") for folder in found]
        tensors = {  # one that two names share counts once
            (value.data_ptr(), value.shape): value.numel()
            for key, value in states[0]["model"].items()
            if value.is_floating_point() and not key.endswith(BUFFERS)
        }
        table[name] = {
            "parameters": sum(tensors.values()),
            "minutes": statistics.mean(state["seconds"] for state in states) / 60,
            "seeds": len(found),
            "precision": states[0]["config"].get("precision", ""),
            "device": states[0]["config"].get("device", ""),
        }
        for key in shared:
            values = [run[key] for run in results[name]]
            deviation = statistics.stdev(values) if len(values) > 1 else 0.0
            table[name][key] = {"mean": statistics.mean(values), "std": deviation}
    return table


def open_run(folder: Path, device: str) -> tuple[nn.Module, Tensor, Tensor, Device]:
    """The trained network of a run, a batch of images (noise) and labels, and the device."""
    checkpoint = read_checkpoint(folder / "last.pt")
    here = dict(device=device, quiet=True, fsdp=False, accumulate=1)
    flags = cli.Flags(**as_spelt_now(checkpoint["config"]["flags"]) | here)
    dev = Device(flags, checkpoint["config"].get("precision", "bf16"))
    classes = len(checkpoint["dataset"]["classes"])
    train = importlib.import_module(f"{flags.milestone}.train")
    if hasattr(train, "build"):
        model = train.build(flags, classes)
    else:
        model = train.MODELS[flags.model](num_classes=classes)
    model.load_state_dict(checkpoint["model"])
    dev.wrap(model)
    first = next(p for p in model.parameters() if p.dim() == 4)
    size = getattr(flags, "size", 32)  # LeNet sees 32 pixels
    images = torch.randn(BATCH, first.shape[1] or 1, size, size, device=dev.device)
    return model, images, torch.randint(0, classes, (BATCH,), device=dev.device), dev


def stepper(model: nn.Module, images: Tensor, labels: Tensor, dev: Device):
    """A training step, and a pass of inference: functions to be timed."""
    optimizer = torch.optim.SGD(model.parameters(), 1e-4, momentum=0.9)

    def step() -> None:
        model.train()
        with dev.autocast():
            answers = model(images)
            heads = answers if isinstance(answers, tuple) else (answers,)
            loss = sum(F.cross_entropy(logits.float(), labels) for logits in heads)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        wait(dev)

    @torch.inference_mode()
    def infer() -> None:
        model.eval()
        with dev.autocast():
            model(images)
        wait(dev)

    return step, infer


def wait(dev: Device) -> None:
    """Until the device has done what it was told."""
    if dev.device.type == "cuda":
        torch.cuda.synchronize()


def rates(folders: dict[str, Path], device: str) -> dict[str, list[float]]:
    """Images a second of each network in training and inference: medians of interleaved rounds."""
    opened = {name: open_run(folder, device) for name, folder in folders.items()}
    sides = {name: stepper(*run) for name, run in opened.items()}
    seconds = {name: ([], []) for name in sides}
    for round_ in range(ROUNDS + 1):
        for name, functions in sides.items():
            for function, values in zip(functions, seconds[name], strict=True):
                begin = time.perf_counter()
                function()
                if round_:  # the first one warms up
                    values.append(time.perf_counter() - begin)
    return {name: [BATCH / statistics.median(v) for v in both] for name, both in seconds.items()}


def peak_of(folder: Path, device: str) -> float:
    """Peak memory in MiB of training steps, in a process of its own: of the device, or resident."""
    command = [sys.executable, __file__, "--peak", str(folder), "--device", device]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        fail(f"the peak memory of {folder}: {reason.removeprefix('error: ')}")
    return float(done.stdout)


def print_peak(folder: Path, device: str) -> None:
    """What `peak_of` calls: two training steps."""
    model, images, labels, dev = open_run(folder, device)
    step, _ = stepper(model, images, labels, dev)
    step()
    step()
    print(peak_memory(dev.device.type))


def draw(table: dict[str, dict], path: Path) -> None:
    """Accuracy against parameters, and against multiply-adds."""
    from matplotlib.figure import Figure

    from common.plot import save

    figure = Figure(figsize=(9, 3.8), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axis, key in zip(panels, ("parameters", "multiply_adds"), strict=True):
        for number, (name, row) in enumerate(table.items()):
            mark = "os^D"[number // 10 % 4]  # there are ten colours
            mean, deviation = row["mean"] * 100, row["std"] * 100
            axis.errorbar(row[key], mean, deviation, fmt=mark, capsize=3, label=name)
        axis.set_xscale("log")
        axis.set_xlabel(key.replace("_", "-"))
        axis.margins(0.2)
        axis.grid(alpha=0.3)
    panels[0].set_ylabel("test accuracy (%)")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right upper", fontsize=8)
    save(figure, path)


def as_markdown(table: dict[str, dict]) -> str:
    """The table as it stands in a README."""
    head = "| model | parameters | multiply-adds | test accuracy | points a million parameters "
    head += "| images/s, training | images/s, inference | peak memory |"
    lines = [head, "| --- " * 8 + "|"]
    for name, row in table.items():
        spread = f" ± {row['std']:.1%}" if row["seeds"] > 1 else ""
        lines.append(
            f"| `{name}` | {row['parameters']:,} | {row['multiply_adds'] / 1e6:,.1f} million "
            f"| {row['mean']:.1%}{spread} | {row['mean'] * 1e8 / row['parameters']:,.0f} "
            f"| {row['train_rate']:,.0f} | {row['infer_rate']:,.0f} | {row['peak_mib']:,.0f} MiB |"
        )
    return "\n".join(lines) + "\n"


def any_task_as_markdown(table: dict[str, dict]) -> str:
    """The table of `any_task`, as it stands in a README."""
    keys = [key for key in next(iter(table.values())) if key.startswith("test_")]
    names = [key.removeprefix("test_").replace("_", " ") for key in keys]
    lines = [f"| model | parameters | minutes | {' | '.join(names)} |"]
    lines.append("| --- " * (3 + len(keys)) + "|")
    for name, row in table.items():
        cells = [f"`{name}`", f"{row['parameters']:,}", f"{row['minutes']:,.1f}"]
        for key in keys:
            form = ".3g" if key.endswith(PLAIN) else ".1%"
            spread = f" ± {row[key]['std']:{form}}" if row["seeds"] > 1 else ""
            cells.append(f"{row[key]['mean']:{form}}{spread}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def draw_any_task(table: dict[str, dict], path: Path) -> None:
    """The first metric of every model."""
    from matplotlib.figure import Figure

    from common.plot import save

    key = next(key for key in next(iter(table.values())) if key.startswith("test_"))
    figure = Figure(figsize=(6, 0.8 + 0.4 * len(table)), layout="constrained")
    axis = figure.subplots()
    means, deviations = ([row[key][part] for row in table.values()] for part in ("mean", "std"))
    axis.barh(list(table), means, xerr=deviations, capsize=3)
    axis.invert_yaxis()
    axis.set_xlabel(key.replace("_", " "))
    save(figure, path)


def write(table: dict[str, dict], text: str, path: Path) -> dict[str, dict]:
    """Writes a table as Markdown and as JSON, and prints it; returns it."""
    path.write_text(text)
    path.with_suffix(".json").write_text(json.dumps(table, indent=1) + "\n")
    print(text, end="")
    print(f"wrote {path}, {path.with_suffix('.json').name} and {path.with_suffix('.png').name}")
    return table


@cli.command
def main(argv: list[str] | None = None) -> dict[str, dict]:
    """Trains or loads, measures, writes and prints the table; returns it by model."""
    args = parse_args(argv)
    if args.peak:
        print_peak(args.peak, args.device)
        return {}
    if not MODELS:
        fail("there is no folder of classifiers of images in this tree")
    make_folder(args.out)
    folders = group(args.runs) if args.runs else train_all(args)
    path = args.out / f"compare-{'runs' if args.runs else args.data.partition(':')[0]}.md"
    if not all(of_images(found[0]) for found in folders.values()):
        table = any_task(folders)
        draw_any_task(table, path.with_suffix(".png"))
        return write(table, any_task_as_markdown(table), path)
    speeds = rates({name: found[0] for name, found in folders.items()}, args.device)
    table = {}
    for name, found in folders.items():
        model, images, _, dev = open_run(found[0], args.device)
        accuracies = [finished(folder)["test_accuracy"] for folder in found]
        table[name] = {
            "parameters": sum(p.numel() for p in model.parameters()),
            "multiply_adds": multiply_adds(model, images[:1]),
            "mean": statistics.mean(accuracies),
            "std": statistics.stdev(accuracies) if len(found) > 1 else 0.0,
            "seeds": len(found),
            "train_rate": speeds[name][0],
            "infer_rate": speeds[name][1],
            "peak_mib": peak_of(found[0], args.device),
            "precision": dev.precision,
            "device": str(dev),
        }
    draw(table, path.with_suffix(".png"))
    return write(table, as_markdown(table), path)


if __name__ == "__main__":
    main()
