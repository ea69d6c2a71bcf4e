"""The claims of efficientnet/README.md as experiments.

    python efficientnet/claims.py scaling --data-dir PATH                   # CIFAR-10
    python efficientnet/claims.py excitation --data-dir PATH
    python efficientnet/claims.py scaling --data shapes --epochs 1 --seeds 0  # to see how it works

scaling: four times the multiply-adds are spent on width, depth and resolution together, by the
paper's ratios, or on one of them alone (Fig. 3, Table 7). The network that is scaled is tiny: 0.3
of B0's width and half of its depth, for 16 pixels. claim_scaling_maps.png shows what parts of an
image speak for its class (Fig. 7).
excitation: `efficientnet_small` with and without squeeze-and-excitation.
All arms of a claim are trained alike.
"""

import argparse
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common import classify, cli
from common.claims import error_curve, error_of, multiply_adds, run_arms, write_summary
from common.folder import make_folder
from efficientnet.model import MODELS, compound, efficientnet_small
from efficientnet.train import build
from efficientnet.train import main as train

BASE = (0.3, 0.5, 16)  # width and depth, of B0's, and pixels
EXCITATION = {"with excitation": [], "without": ["--no-excitation"]}
EPOCHS = {"scaling": 6, "excitation": 8}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The flags; see --help."""
    parser = cli.claims_parser("efficientnet", __doc__, list(EPOCHS), data="cifar10")
    text = f"of each run (default: {', '.join(f'{n} for {c}' for c, n in EPOCHS.items())})"
    parser.add_argument("--epochs", type=cli.integer(1), metavar="N", help=text)
    text = "of scaling: 2**PHI times the multiply-adds (default: 2)"
    parser.add_argument("--phi", type=cli.multiplier, nargs="+", default=[2.0], help=text)
    text = "end each run after N steps, to see how it works"
    parser.add_argument("--max-steps", type=cli.integer(1), metavar="N", help=text)
    args = parser.parse_args(argv)
    args.epochs = args.epochs or EPOCHS[args.claim]
    return args


@cache
def costs(width: float, depth: float, size: int) -> tuple[int, int]:
    """Multiply-adds for an image, and parameters, of `efficientnet_small` at this scale, with ten
    classes."""
    with torch.device("meta"):
        model = efficientnet_small(width=width, depth=depth)
        image = torch.empty(1, 3, size, size)
    return multiply_adds(model, image), sum(p.numel() for p in model.parameters())


def scales(phi: float) -> dict[str, tuple[float, float, int]]:
    """Width, depth and pixels of four networks with as nearly as can be the same multiply-adds."""
    width, depth, size = BASE
    times = compound(phi)
    together = (round(width * times[0], 3), round(depth * times[1], 3), round(size * times[2]))
    goal, factors = costs(*together)[0], [1.04**n for n in range(1, 80)]

    def nearest(candidates: list[tuple[float, float, int]]) -> tuple[float, float, int]:
        begin, end = 0, len(candidates)  # costs rise
        while end - begin > 1:
            middle = (begin + end) // 2
            begin, end = (middle, end) if costs(*candidates[middle])[0] <= goal else (begin, middle)
        return min(candidates[begin : begin + 2], key=lambda scale: abs(costs(*scale)[0] - goal))

    return {
        "width": nearest([(round(width * f, 3), depth, size) for f in factors]),
        "depth": nearest([(width, round(depth * f, 3), size) for f in factors]),
        "resolution": nearest([(width, depth, size + n) for n in range(1, 10 * size)]),
        "compound": together,
    }


def as_flags(scale: tuple[float, float, int]) -> list[str]:
    """The flags of train.py for a scale."""
    return [word for pair in zip(("--width", "--depth", "--size"), map(str, scale), strict=True)
            for word in pair]  # fmt: skip


def compare_scaling(args: argparse.Namespace, shared: list[str]) -> dict:
    """Trains the base and what it is scaled to; writes claim_scaling.json and .png."""
    scale_of, names = {"base": BASE}, ("width", "depth", "resolution", "compound")
    for phi in args.phi:
        scale_of |= {f"{name}, phi {phi:g}": scale for name, scale in scales(phi).items()}
    arms = {arm: as_flags(scale) for arm, scale in scale_of.items()}
    results, commands, folders = run_arms("efficientnet", train, arms, shared, args)
    for arm, runs in results.items():
        for run in runs:
            run["multiply_adds"], run["parameters"] = costs(*scale_of[arm])
    summary = write_summary(args.out / "claim_scaling.json", results, commands)
    points = {name: {} for name in names}
    for arm, metrics in summary.items():
        count, parameters = costs(*scale_of[arm])
        for name in names if arm == "base" else [arm.split(",")[0]]:
            points[name][count / 1e6] = [100 * (1 - run["test_accuracy"]) for run in results[arm]]
        show(arm, metrics, f"{count / 1e6:6.2f} million multiply-adds, "
             f"{parameters:>9,} parameters, ")  # fmt: skip

    from common.plot import spread

    spread(points, args.out / "claim_scaling.png", x="million multiply-adds", y="test error (%)")
    last = ["base", *(f"{name}, phi {args.phi[-1]:g}" for name in names)]
    draw_maps({arm: folders[arm][0] for arm in last}, args)
    return summary


def activation_maps(model: nn.Module, images: Tensor, classes: Tensor) -> Tensor:
    """How much each place speaks for a class (Zhou et al. 2016): (B, H, W), from 0 to 1.

    The logits are means over places of the last features times the classifier's weights, so that
    what a place adds can be read.
    """
    features = model.features(images)  # (B, C, h, w)
    maps = torch.einsum("bchw,bc->bhw", features, model.classifier[1].weight[classes])
    maps = F.interpolate(maps[:, None], images.shape[2:], mode="bilinear")[:, 0]
    low, high = maps.amin((1, 2), True), maps.amax((1, 2), True)
    return (maps - low) / (high - low).clamp(min=1e-8)


@torch.inference_mode()
def draw_maps(folders: dict[str, Path], args: argparse.Namespace) -> None:
    """Writes claim_scaling_maps.png: test images below the maps of each arm's first run."""
    from matplotlib.figure import Figure

    from common.plot import save

    figure = Figure(figsize=(8, 1.25 * len(folders)), layout="constrained")
    for row, (arm, folder) in zip(figure.subplots(len(folders), 8), folders.items(), strict=True):
        place = dict(checkpoint=folder / "last.pt", out=args.out, device=args.device)
        where = argparse.Namespace(**place, data_dir=args.data_dir)
        model, flags, facts, dev, _ = classify.open_model(where, "efficientnet", MODELS, build)
        images, labels = classify.load_parts(flags, dev, facts)[2].examples(torch.arange(8))
        maps = activation_maps(model, images, labels).cpu()
        shown = classify.colour(images, facts)
        for axis, image, heat, label in zip(row, shown, maps, labels.tolist(), strict=True):
            axis.imshow(image.permute(1, 2, 0).cpu().numpy())
            axis.imshow(heat.numpy(), cmap="inferno", alpha=0.55)
            axis.set_xticks([])
            axis.set_yticks([])
            if arm == "base":
                axis.set_title(facts["classes"][label], fontsize=8)
        row[0].set_ylabel(arm.replace(", ", "\n"), fontsize=8)
    save(figure, args.out / "claim_scaling_maps.png")


def compare_excitation(args: argparse.Namespace, shared: list[str]) -> dict:
    """Trains with and without excitation; writes claim_excitation.json and .png."""
    from common.plot import spread

    results, commands, folders = run_arms("efficientnet", train, EXCITATION, shared, args)
    summary = write_summary(args.out / "claim_excitation.json", results, commands)
    curves = {arm: error_curve(folders[arm], "train_accuracy") for arm in EXCITATION}
    spread(curves, args.out / "claim_excitation.png", x="epoch", y="training error (%)")
    for arm, metrics in summary.items():
        show(arm, metrics)
    return summary


def show(arm: str, metrics: dict, more: str = "") -> None:
    """Prints an arm's errors."""
    test, training = error_of(metrics, "test"), error_of(metrics, "train")
    print(f"{arm:>18}: {more}test error {test}, training error {training}")


@cli.command
def main(argv: list[str] | None = None) -> dict:
    """Runs what isn't done yet; writes claim_NAME.json and .png; returns the summary."""
    args = parse_args(argv)
    make_folder(args.out)
    shared = ["--data", args.data, "--epochs", str(args.epochs), "--batch-size", "32"]
    shared += ["--lr", "0.002", "--val", "0"]
    if args.max_steps:
        shared += ["--max-steps", str(args.max_steps)]
    summary = (compare_scaling if args.claim == "scaling" else compare_excitation)(args, shared)
    stem = args.out / f"claim_{args.claim}"
    print(f"wrote {stem.with_suffix('.json')} and {stem.with_suffix('.png')}")
    return summary


if __name__ == "__main__":
    main()
