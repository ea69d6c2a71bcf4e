"""The claims of clip/README.md as experiments, on the world of shapes.

    python clip/claims.py objective
    python clip/claims.py prompts
    python clip/claims.py robustness
    python clip/claims.py batch
    python clip/claims.py batch --epochs 1 --seeds 0 --max-steps 20    # to see how it works

objective: telling captions apart teaches more than predicting their words, at equal computation:
accuracy without labels against multiply-adds (Fig. 2).
prompts: a sentence names a class better than its bare name, an ensemble better than one (Fig. 4).
robustness: without labels less is lost than of a supervised network, where backgrounds, noise and
colours are not those of training (Fig. 13). Both have one image encoder and see as many scenes.
batch: the more pairs are told apart at once, the better, of as many scenes in all.

Networks are those of train.py and predict.py without flags, but for what is compared; those of
`objective` serve `prompts` and `robustness`.
"""

import argparse
import math
import statistics
from pathlib import Path

import torch
from torch import Tensor

from clip.evaluation import accuracy
from clip.model import CLIP, MODELS
from clip.predict import Predictor
from clip.predict import main as predict
from clip.prompts import ONE, SHAPES, class_features
from clip.train import QUICK, sizes_of
from clip.train import main as train
from clip.train import parse_args as flags_of
from common import cli
from common.claims import history, multiply_adds, plus_minus, run_arms, write_summary
from common.data.drawing import CLASSES, paint
from common.data.shapes import random_numbers
from common.data.tokens import Tokens
from common.device import Device
from common.folder import make_folder, open_run

BATCHES = (32, 64, 128, 256)  # of `batch`
TEST = 1  # the seed of the test scenes
KINDS = ("as in training", "backgrounds", "noise", "colours")  # of `robustness`
TEMPLATES = {
    "the name alone": ["{}"],
    '"a …"': ["a {}"],
    '"a photo of a …"': [ONE],
    "one sentence, mean of all": SHAPES,
    "all of them, an ensemble": SHAPES,
}
Results = dict[str, list[dict[str, float]]]


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The flags; see --help."""
    parser = cli.claims_parser("clip", __doc__, RUN, epochs=QUICK["epochs"])
    text = "of batch: pairs of a step (default: 32 64 128 256)"
    parser.add_argument("--batches", type=cli.integer(2), nargs="+", default=BATCHES, help=text)
    text = "test scenes of robustness, of each kind (default: 1000)"
    parser.add_argument("--scenes", type=cli.integer(10), default=1000, metavar="N", help=text)
    text = "end each run after N steps, to see how it works"
    parser.add_argument("--max-steps", type=cli.integer(1), metavar="N", help=text)
    return parser.parse_args(argv)


def shared_flags(args: argparse.Namespace, epochs: int = 0) -> list[str]:
    """What all runs of a claim have in common."""
    more = ["--max-steps", str(args.max_steps)] if args.max_steps else []
    return ["--epochs", str(epochs or args.epochs), "--quiet", *more]


def run_clip(args: argparse.Namespace) -> tuple[Results, dict, dict]:
    """CLIP by the recipe of train.py."""
    return run_arms("clip", train, {"CLIP": []}, shared_flags(args), args)


def run_predictions(
    args: argparse.Namespace, arm: str, target: str, epochs: int
) -> tuple[Results, dict, dict]:
    """The image encoder alone, by predict.py."""
    arms = {arm: ["--target", target]}
    results, commands, folders = run_arms("clip", predict, arms, shared_flags(args, epochs), args)
    commands = {arm: text.replace("train.py", "predict.py") for arm, text in commands.items()}
    return results, commands, folders


def open_network(folder: Path, args: argparse.Namespace) -> tuple[CLIP | Predictor, dict, Device]:
    """A trained network, the facts of its data, and a device."""
    place = argparse.Namespace(checkpoint=folder / "last.pt", out=args.out, device=args.device,
                               data_dir=args.data_dir)  # fmt: skip
    checkpoint, flags, dev, _ = open_run(place, "clip", MODELS)
    facts = checkpoint["dataset"]
    if "network" in facts:
        model = CLIP(**facts["network"])
    else:
        model = Predictor(sizes_of(flags), len(checkpoint["model"]["head.bias"]))
    model.load_state_dict(checkpoint["model"])
    return model.to(dev.device).eval(), facts, dev


# ---------------------------------------------------------------------- objective


def costs() -> dict[str, int]:
    """Multiply-adds of one pair, forward, by the objective. Captions have 10 tokens, as they have
    in the mean."""
    sizes = sizes_of(flags_of([]))
    with torch.device("meta"):
        model, image = CLIP(**sizes), torch.empty(1, 3, sizes["image_size"], sizes["image_size"])
        alone = Predictor(sizes, sizes["vocab_size"])

        class Pair(torch.nn.Module):
            def forward(self, image: Tensor) -> None:
                model.visual(image)
                words = torch.zeros(1, 10, dtype=torch.int64)
                x = model.token_embedding(words) + model.positional_embedding[:10]
                model.transformer(x)

        return {"CLIP": multiply_adds(Pair(), image), "words": multiply_adds(alone, image)}


def compare_objectives(args: argparse.Namespace) -> tuple[Results, dict]:
    """Telling captions apart, and predicting their words, for as many multiply-adds."""
    price = costs()
    epochs = max(1, round(args.epochs * price["CLIP"] / price["words"]))
    results, commands, folders = run_clip(args)
    more = run_predictions(args, "words", "words", epochs)
    for all_, some in zip((results, commands, folders), more, strict=True):
        all_ |= some
    curves = {}
    for arm, places in folders.items():
        runs = [history(folder, "val_zero_shot") for folder in places]
        length = epochs if arm == "words" else args.epochs
        scenes = 10_000 * price[arm] / 1e9  # billions of multiply-adds of an epoch
        whole = [epoch for epoch in range(1, length + 1) if all(epoch in run for run in runs)]
        curves[arm] = {n * scenes: [100 * run[n] for run in runs] for n in whole}
    ratio = price["CLIP"] / price["words"]
    print(f"a pair costs CLIP {ratio:.2f} times as many multiply-adds as a bag of words: "
          f"{args.epochs} epochs and {epochs}")  # fmt: skip
    from common.plot import spread

    spread(curves, args.out / "claim_objective.png", x="multiply-adds, forward (billions)",
           y="zero-shot accuracy on validation (%)")  # fmt: skip
    return results, commands


# ---------------------------------------------------------------------- prompts and robustness


def changed(kind: str, count: int, size: int) -> tuple[Tensor, Tensor]:
    """Test scenes with something that isn't as in training: pixels (N, 3, size, size) and classes.

    Backgrounds are of bright colours in stripes; noise has five times its std; shapes have
    any colour, mostly one without a name. What else is in a scene stays as it is.
    """
    numbers = random_numbers(list(range(count)), TEST, 3)
    ground = numbers["ground"].clone()  # see common.data.drawing
    if kind == "backgrounds":
        ground[:, 3] = 1.0  # waves
        ground[:, 6:] = torch.cat([(ground[:, 6:12] - 0.5) * 5 + 0.5, ground[:, 12:]], 1)
    elif kind == "noise":
        ground[:, 12] = (5 * (8 + 24 * ground[:, 12]) - 8) / 24
    elif kind == "colours":
        random = torch.Generator().manual_seed(0)
        numbers["rgb"] = torch.rand(numbers["rgb"].shape, generator=random)
    return paint(numbers | {"ground": ground}, size)[0], numbers["shape"][:, 0]


@torch.inference_mode()
def features_of(model: CLIP | Predictor, pixels: Tensor, facts: dict, dev: Device) -> Tensor:
    """Features of CLIP, or scores of a predictor, of pixels (N, 3, H, W)."""
    mean, std = (torch.tensor(facts[k], device=dev.device).view(3, 1, 1) for k in ("mean", "std"))
    encode = model.encode_image if isinstance(model, CLIP) else model
    parts = []
    for some in pixels.split(250):
        with dev.autocast():
            parts.append(encode((some.to(dev.device).float() / 255 - mean) / std).float())
    return torch.cat(parts)


def classifier(model: CLIP, facts: dict, templates: list[str]) -> Tensor:
    """The features (K, E) of the classes of the world."""
    return class_features(model, Tokens(facts["tokenizer"]), CLASSES, templates)


def compare_prompts(args: argparse.Namespace) -> tuple[Results, dict]:
    """The same networks, asked in different words."""
    _, commands, folders = run_clip(args)
    results: Results = {name: [] for name in TEMPLATES}
    for folder in folders["CLIP"]:
        model, facts, dev = open_network(folder, args)
        pixels, labels = changed(KINDS[0], args.scenes, model.image_size)
        images = features_of(model, pixels, facts, dev)
        for name, templates in TEMPLATES.items():
            kinds = [[text] for text in templates] if "mean" in name else [templates]
            found = [accuracy(images, classifier(model, facts, kind), labels) for kind in kinds]
            results[name].append({"test_zero_shot": statistics.mean(found)})
    draw_bars({"zero-shot accuracy (%)": percent(results, "test_zero_shot")}, args)
    return results, dict.fromkeys(results, commands["CLIP"])


def compare_robustness(args: argparse.Namespace) -> tuple[Results, dict]:
    """Zero-shot and supervised, on scenes of the kind of training and on others."""
    _, commands, folders = run_clip(args)
    _, more, others = run_predictions(args, "supervised", "labels", args.epochs)
    commands, folders = commands | more, folders | others
    results: Results = {}
    for arm, places in folders.items():
        results[arm] = []
        for folder in places:
            model, facts, dev = open_network(folder, args)
            row = {}
            for kind in KINDS:
                pixels, labels = changed(kind, args.scenes, model.image_size)
                found = features_of(model, pixels, facts, dev)
                if isinstance(model, CLIP):
                    found = found @ classifier(model, facts, SHAPES).T
                right = (found.argmax(1).cpu() == labels).float().mean()
                row[f"accuracy_{kind.replace(' ', '_')}"] = float(right)
            results[arm].append(row)
    panels = {kind: percent(results, f"accuracy_{kind.replace(' ', '_')}") for kind in KINDS}
    draw_bars({f"{kind} (%)": arms for kind, arms in panels.items()}, args)
    for arm, runs in results.items():
        kept = [statistics.mean([run[k] for k in list(run)[1:]]) / max(run[next(iter(run))], 1e-9)
                for run in runs]  # fmt: skip
        print(f"{arm}: of its accuracy {plus_minus(kept)} are left, in the mean of the three")
    return results, commands


# ---------------------------------------------------------------------- batch


def compare_batches(args: argparse.Namespace) -> tuple[Results, dict]:
    """As many scenes, cut into steps of different sizes; the rate goes with the root of these."""
    sizes = sorted(set(args.batches))
    arms = {
        f"{size} pairs": ["--batch-size", str(size),
                          "--lr", f"{QUICK['lr'] * math.sqrt(size / QUICK['batch_size']):.3g}"]
        for size in sizes
    }  # fmt: skip
    results, commands, _ = run_arms("clip", train, arms, shared_flags(args), args)
    from common.plot import spread

    curves = {
        label: {size: [100 * run[key] for run in runs]
                for size, runs in zip(sizes, results.values(), strict=True)}
        for label, key in (("caption among 100", "test_match"), ("zero-shot", "test_zero_shot"))
    }  # fmt: skip
    path = args.out / "claim_batch.png"
    spread(curves, path, x="pairs of a step", y="test accuracy (%)", log=True)
    return results, commands


def percent(results: Results, metric: str) -> dict[str, list[float]]:
    """A metric of all runs by arm, in percent."""
    return {arm: [100 * run[metric] for run in runs] for arm, runs in results.items()}


def draw_bars(panels: dict, args: argparse.Namespace) -> None:
    """The picture of a claim, in bars."""
    from common.plot import bars

    bars(panels, args.out / f"claim_{args.claim}.png")


RUN = {
    "objective": compare_objectives,
    "prompts": compare_prompts,
    "robustness": compare_robustness,
    "batch": compare_batches,
}


@cli.command
def main(argv: list[str] | None = None) -> dict:
    """Runs what isn't done yet; writes claim_NAME.json and .png; returns the summary."""
    args = parse_args(argv)
    make_folder(args.out)
    results, commands = RUN[args.claim](args)
    path = args.out / f"claim_{args.claim}.json"
    summary = write_summary(path, results, commands)
    width = max(map(len, summary))
    shown = ("test_zero_shot", "test_match") if args.claim != "robustness" else ()
    for arm, runs in results.items():
        keys = [key for key in runs[0] if key in shown or key.startswith("accuracy")]
        words = (f"{key.removeprefix('test_')} {plus_minus([run[key] for run in runs])}"
                 for key in keys)  # fmt: skip
        print(f"{arm:>{width}}: {', '.join(words)}")
    print(f"wrote {path} and {path.with_suffix('.png')}")
    return summary


if __name__ == "__main__":
    main()
