"""The claims of vit/README.md as experiments.

    python vit/claims.py data
    python vit/claims.py positions
    python vit/claims.py distance
    python vit/claims.py patch
    python vit/claims.py positions --epochs 1 --seeds 0 --max-steps 20    # to see how it works

data: with few images a ResNet is better, with many the Transformer catches up (Fig. 3, 4): both see
as many images, of few scenes over and over or of many, and the ResNet is trained by its own script.
positions: any kind is better than none, and it matters little which (Table 8).
distance: how far heads look, layer by layer (Fig. 7, right), and whether learned positions know
where they are (Fig. 7, centre): of networks with "1d" positions, those of the claim before.
patch: smaller patches, more tokens: accuracy, and the time of a step.

Networks are those of train.py without flags, but for what is compared.
"""

import argparse
import itertools
import math
import statistics
import time
from pathlib import Path

import torch
import torch.nn.functional as F

from common import classify, cli
from common.claims import plus_minus, run_arms, run_script, write_summary
from common.folder import make_folder
from vit.maps import attention_distances, attention_maps, position_similarity
from vit.model import MODELS, POSITIONS
from vit.train import QUICK, build, make_optimizer
from vit.train import main as train
from vit.train import parse_args as flags_of

SCENES = (1_000, 10_000, 50_000)  # of `data`
IMAGES = 100_000  # that each of its runs sees
SIZE = 24  # pixels of images
PATCHES = (3, 4, 6, 8, 12)  # of `patch`
ARMS = {
    "positions": {name: ["--positions", name] for name in POSITIONS},
    "distance": {"1d": ["--positions", "1d"]},
    "patch": {f"{size} pixels": ["--patch-size", str(size)] for size in PATCHES},
}
EXAMPLES = 128  # images that attention is measured on (D.7)
Results = dict[str, list[dict[str, float]]]


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The flags; see --help."""
    parser = cli.claims_parser("vit", __doc__, RUN)
    text = f"of each run, but for data (default: {QUICK['epochs']})"
    parser.add_argument("--epochs", type=cli.integer(1), metavar="N", help=text)
    text = "of data: numbers of different scenes (default: 1000 10000 50000)"
    parser.add_argument("--scenes", type=cli.integer(1), nargs="+", default=SCENES, help=text)
    text = f"of data: how many each run sees (default: {IMAGES})"
    parser.add_argument("--images", type=cli.integer(1), default=IMAGES, metavar="N", help=text)
    text = "end each run after N steps, to see how it works"
    parser.add_argument("--max-steps", type=cli.integer(1), metavar="N", help=text)
    return parser.parse_args(argv)


def shared_flags(args: argparse.Namespace) -> list[str]:
    """What all runs of a claim have in common."""
    more = ["--max-steps", str(args.max_steps)] if args.max_steps else []
    return ["--val", "0", "--quiet", *more]


def run_alike(args: argparse.Namespace) -> tuple[Results, dict, dict]:
    """The arms of the claim, by the recipe of train.py."""
    epochs = ["--epochs", str(args.epochs)] if args.epochs else []
    return run_arms("vit", train, ARMS[args.claim], [*epochs, *shared_flags(args)], args)


# ---------------------------------------------------------------------- data


def train_resnet(argv: list[str]) -> dict[str, float]:
    """Runs resnet/train.py as a command, as no folder imports another's script; its metrics."""
    return run_script(Path(__file__).resolve().parents[1] / "resnet" / "train.py", argv)


def crossing(scenes: list[int], ahead: list[float]) -> float | None:
    """Where a line through the points (log of scenes, how far one is ahead) meets zero, or None."""
    points = list(zip(map(math.log, scenes), ahead, strict=True))
    for (x, y), (later, other) in itertools.pairwise(points):
        if (y < 0) != (other < 0):
            return math.exp(x + (later - x) * y / (y - other))
    return None


def compare_data(args: argparse.Namespace) -> tuple[Results, dict]:
    """ViT and ResNet-20 by the number of different scenes."""
    results, commands = {}, {}
    sides = {"ViT": ("vit", train, "vit_tiny"), "ResNet-20": ("resnet", train_resnet, "resnet20")}
    curves = {side: {} for side in sides}
    scenes = sorted(set(args.scenes))
    for side, (folder, main_of, model) in sides.items():
        arms = {
            f"{side}, {count:,} scenes": ["--data", f"shapes:{count}",
                                          "--epochs", str(max(1, args.images // count))]
            for count in scenes
        }  # fmt: skip
        shared = ["--model", model, "--size", str(SIZE), *shared_flags(args)]
        found, ran, _ = run_arms(folder, main_of, arms, shared, args)
        results, commands = results | found, commands | ran
        for count, runs in zip(scenes, found.values(), strict=True):
            curves[side][count] = [100 * run["test_accuracy"] for run in runs]
    ahead = [statistics.mean(curves["ViT"][n]) - statistics.mean(curves["ResNet-20"][n])
             for n in scenes]  # fmt: skip
    place = crossing(scenes, ahead)
    where = f"cross at about {place:,.0f} scenes" if place else "do not cross"
    print(f"the curves {where}; ViT is ahead by {', '.join(f'{a:+.1f}' for a in ahead)} points")

    from common.plot import spread

    path = args.out / "claim_data.png"
    spread(curves, path, x="different scenes", y="test accuracy (%)", log=True)
    return results, commands


# ---------------------------------------------------------------------- positions and patches


def compare_positions(args: argparse.Namespace) -> tuple[Results, dict]:
    """Four ways to tell places apart."""
    results, commands, _ = run_alike(args)
    draw_bars({"test accuracy (%)": {arm: accuracy(runs) for arm, runs in results.items()}}, args)
    return results, commands


def time_of_step(patch_size: int) -> float:
    """Milliseconds of the processor for an image in a training step: the median of seven."""
    args = flags_of(["--patch-size", str(patch_size)])  # as the arms are trained
    model, batch, seconds = build(args, 10), args.batch_size, []
    optimizer = make_optimizer(args, model)
    images, labels = torch.randn(batch, 3, SIZE, SIZE), torch.randint(10, (batch,))
    for _ in range(9):
        start = time.process_time()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.process_time() - start)
    return 1000 * statistics.median(seconds[2:]) / batch


def compare_patches(args: argparse.Namespace) -> tuple[Results, dict]:
    """Patches of different sizes, and what they cost."""
    results, commands, _ = run_alike(args)
    for size, runs in zip(PATCHES, results.values(), strict=True):
        cost = time_of_step(size)
        for run in runs:
            run["step_ms_per_image"] = cost
        print(f"{(SIZE // size) ** 2} patches of {size} pixels: {cost:.2f} ms an image")
    times = {arm: [runs[0]["step_ms_per_image"]] for arm, runs in results.items()}
    panels = {"test accuracy (%)": {arm: accuracy(runs) for arm, runs in results.items()}}
    draw_bars(panels | {"training, ms an image": times}, args)
    return results, commands


def accuracy(runs: list[dict]) -> list[float]:
    """The test accuracies of runs, in percent."""
    return [100 * run["test_accuracy"] for run in runs]


def draw_bars(panels: dict, args: argparse.Namespace) -> None:
    """The picture of a claim, in bars."""
    from common.plot import bars

    bars(panels, args.out / f"claim_{args.claim}.png")


# ---------------------------------------------------------------------- distance


@torch.inference_mode()
def look_into(folder: Path, args: argparse.Namespace) -> tuple[torch.Tensor, torch.Tensor]:
    """Of a trained network the distances (L, A) that its heads look, in pixels, each layer's in
    order, and the cosines (N, N) of its patches' positions."""
    place = argparse.Namespace(checkpoint=folder / "last.pt", out=args.out, device=args.device,
                               data_dir=args.data_dir)  # fmt: skip
    model, flags, facts, dev, _ = classify.open_model(place, "vit", MODELS, build)
    flags = flags.but(limit=1, val=0)  # no more are drawn than are looked at
    images, _ = classify.load_parts(flags, dev, facts)[2].examples(torch.arange(EXAMPLES))
    distances = attention_distances(
        attention_maps(model, images), flags.patch_size, flags.pool == "token"
    )
    return distances.sort(1).values.cpu(), position_similarity(model).cpu()


def in_line(cosines: torch.Tensor) -> tuple[float, float]:
    """Mean cosine (N, N) of positions in one row or column, and of the others."""
    side = math.isqrt(len(cosines))
    places = torch.arange(len(cosines))
    row, column = places // side, places % side
    same = (row[:, None] == row) | (column[:, None] == column)
    itself = torch.eye(len(cosines), dtype=torch.bool)
    return float(cosines[same & ~itself].mean()), float(cosines[~same].mean())


def measure_distances(args: argparse.Namespace) -> tuple[Results, dict]:
    """How far heads look, and how alike positions are."""
    results, commands, folders = run_alike(args)
    (runs,), (places,) = results.values(), folders.values()
    looks = [look_into(folder, args) for folder in places]
    for run, (distances, cosines) in zip(runs, looks, strict=True):
        for layer, heads in enumerate(distances.tolist(), 1):
            run |= {f"nearest_layer_{layer}": heads[0], f"farthest_layer_{layer}": heads[-1]}
            run[f"mean_layer_{layer}"] = statistics.mean(heads)
        run["same_line_cosine"], run["elsewhere_cosine"] = in_line(cosines)
    draw_distances(looks, args.out / "claim_distance.png")
    layers = len(looks[0][0])
    for layer in range(1, layers + 1):
        values = [[run[f"{kind}_layer_{layer}"] for run in runs]
                  for kind in ("nearest", "mean", "farthest")]  # fmt: skip
        near, mean, far = (plus_minus(v, 1, 1, "") for v in values)
        print(f"layer {layer}: heads look {near} to {far} pixels far, {mean} in the mean")
    line, other = ([run[f"{k}_cosine"] for run in runs] for k in ("same_line", "elsewhere"))
    print(f"cosine of positions: {plus_minus(line, 1, 2, '')} in one row or column, "
          f"{plus_minus(other, 1, 2, '')} elsewhere")  # fmt: skip
    return results, commands


def draw_distances(looks: list[tuple[torch.Tensor, torch.Tensor]], path: Path) -> None:
    """Fig. 7, right: a point for each head of each run. Centre, of the first run: each patch's
    cosines with all others, where that patch is."""
    from matplotlib.figure import Figure

    from common.plot import save

    figure = Figure(figsize=(8.4, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    for distances, _ in looks:
        depth = torch.arange(1, len(distances) + 1)[:, None].expand_as(distances)
        left.scatter(depth.flatten(), distances.flatten(), s=14, alpha=0.7)
    left.set(xlabel="layer", ylabel="mean attention distance (pixels)", ylim=(0, None))
    left.grid(alpha=0.3)
    cosines = looks[0][1]
    side = math.isqrt(len(cosines))
    tiles = F.pad(cosines.view(side, side, side, side), (0, 1, 0, 1), value=math.nan)
    shown = right.imshow(tiles.permute(0, 2, 1, 3).flatten(0, 1).flatten(1), vmin=-1, vmax=1)
    right.set(xlabel="column of the patch", ylabel="row of the patch")
    middles = [(side + 1) * i + side / 2 for i in range(side)]
    right.set_xticks(middles, range(1, side + 1))
    right.set_yticks(middles, range(1, side + 1))
    figure.colorbar(shown, ax=right, label="cosine")
    save(figure, path)


RUN = {
    "data": compare_data,
    "positions": compare_positions,
    "distance": measure_distances,
    "patch": compare_patches,
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
    for arm, runs in results.items():
        print(f"{arm:>{width}}: test accuracy {plus_minus([r['test_accuracy'] for r in runs])}")
    print(f"wrote {path} and {path.with_suffix('.png')}")
    return summary


if __name__ == "__main__":
    main()
