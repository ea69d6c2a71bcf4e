"""The claims of generative/README.md as experiments.

    python generative/claims.py samples       # a VAE's samples against an autoencoder's
    python generative/claims.py codes         # an autoencoder's errors beside those of PCA
    python generative/claims.py denoising     # noise that is removed, and how much is left
    python generative/claims.py anomaly       # digits that were never seen, found by their error
    python generative/claims.py beta          # the weight of the KL term, and latents that collapse
    python generative/claims.py saturating    # the generator's two losses
    python generative/claims.py ema           # diffusion with and without averaged weights
    python generative/claims.py steps         # the quality of samples against DDIM's steps
    python generative/claims.py likelihood    # bits of clean and of noisy digits
    python generative/claims.py table --data-dir PATH     # all five on MNIST, one seed

All but `table` take scikit-learn's digits (--data mnist: the same with more of everything).
"""

import argparse
from pathlib import Path

import torch

from common import cli
from common.claims import finished, run_arms, write_summary
from common.folder import make_folder
from generative.data import load
from generative.evaluate import classifier, draw_samples, features, frechet, precision_recall
from generative.sample import open_model
from generative.train import main as train

FIVE = ["conv_autoencoder", "conv_vae", "dcgan", "realnvp", "ddpm_small"]
ARMS = {
    "samples": {
        "autoencoder": ["--model", "conv_autoencoder", "--latent", "20"],
        "VAE": ["--model", "conv_vae", "--latent", "20", "--no-binarise"],
    },
    "codes": {f"{k} numbers": ["--model", "autoencoder", "--latent", str(k)] for k in (2, 10, 30)},
    "denoising": {
        f"noise {noise}": ["--model", "conv_autoencoder", "--noise", noise]
        for noise in ("0.2", "0.5")
    },
    "anomaly": {
        f"without {k}": ["--model", "conv_autoencoder", "--latent", "10", "--without", str(k)]
        for k in (0, 1, 4, 9)
    },
    "beta": {
        f"beta {beta}": ["--model", "vae", "--beta", beta] for beta in ("0.1", "1", "4", "16")
    },
    "saturating": {
        "non-saturating": ["--model", "gan"],
        "saturating": ["--model", "gan", "--saturating"],
    },
    "ema": {"ddpm_small": ["--model", "ddpm_small"]},
    "steps": {"ddpm_small": ["--model", "ddpm_small"]},
    "likelihood": {"realnvp": ["--model", "realnvp"]},
    "table": {name: ["--model", name] for name in FIVE},
}
AGAIN = {  # measured again from the one checkpoint
    "ema": {"with EMA": [], "without": ["--ema", "0"]},
    "steps": {f"{k} steps": ["--sample-steps", str(k)] for k in (5, 10, 20, 50, 100, 1000)},
}
SHOWN = {  # what is printed and drawn
    "samples": ["test_frechet", "test_precision", "test_recall"],
    "codes": ["test_error", "pca_error"],
    "denoising": ["test_noisy_error", "test_denoised_error", "test_error"],
    "anomaly": ["test_auc"],
    "beta": ["test_bound", "test_kl", "test_active"],
    "saturating": ["test_frechet", "test_precision", "test_recall"],
    "ema": ["test_frechet", "test_bits"],
    "steps": ["test_frechet", "test_sample_seconds"],
    "likelihood": ["test_bits", "ranked"],
    "table": [
        *("test_error", "test_bound", "test_log_likelihood", "test_bits", "test_frechet"),
        *("test_precision", "test_recall", "test_neighbour_ratio", "test_sample_seconds"),
    ],
}
SAMPLED = ("samples", "saturating", "ema", "steps", "table")
NOISE = (0.0, 0.02, 0.05, 0.1, 0.2, 0.4)  # standard deviations, of pixels from 0 to 1


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The flags; see --help."""
    parser = cli.claims_parser("generative", __doc__, ARMS)
    parser.add_argument("--data", help="which data (default: digits; table: mnist)")
    parser.add_argument("--epochs", type=cli.integer(1), help="of each run, to shorten it")
    parser.add_argument("--samples", type=cli.integer(2), help="measured (default: 1000, or 10000)")
    args = parser.parse_args(argv)
    args.data = args.data or ("mnist" if args.claim == "table" else "digits")
    args.samples = args.samples or (10_000 if args.claim == "table" else 1000)
    return args


@cli.command
def main(argv: list[str] | None = None) -> dict:
    """Runs what isn't done yet; writes claim_<name>.json and .png; returns the summary."""
    args = parse_args(argv)
    make_folder(args.out)
    shared = ["--data", args.data]
    shared += ["--epochs", str(args.epochs)] if args.epochs else []
    shared += ["--samples", str(args.samples)] if args.claim in SAMPLED else []
    if args.claim in AGAIN:  # the trainings of both claims are the same
        shared[-2:] = []
    results, commands, folders = run_arms("generative", train, ARMS[args.claim], shared, args)
    if args.claim in AGAIN:
        (trained,) = folders.values()
        results, commands = measure_again(trained, args)
    if args.claim == "codes":
        for arm, runs in results.items():
            for run, folder in zip(runs, folders[arm], strict=True):
                run["pca_error"] = pca_error(folder, int(arm.split()[0]), args)
    if args.claim == "likelihood":
        results, commands = rank(folders["realnvp"], args, commands["realnvp"])
    if args.claim == "table":
        results["training images"] = [compare_training(f, args) for f in folders[FIVE[-1]]]
        commands["training images"] = "as many training images, in place of samples"
        show_five(folders, args)
    path = args.out / f"claim_{args.claim}.json"
    summary = write_summary(path, results, commands)
    draw(summary, args)
    if args.claim == "table":
        print_table(summary, args)
    else:
        print_arms(summary, args.claim)
    print(f"wrote {path} and {path.with_suffix('.png')}")
    return summary


def measure_again(trained: list[Path], args: argparse.Namespace) -> tuple[dict, dict]:
    """Evaluations of the same weights, in folders below that of their run."""
    results, commands = {}, {}
    for arm, flags in AGAIN[args.claim].items():
        flags = ["--samples", str(args.samples), *flags]
        commands[arm] = " ".join(["python generative/train.py --evaluate CHECKPOINT", *flags])
        results[arm] = []
        for folder in trained:
            where = folder / f"{args.claim}-{arm.replace(' ', '-')}-{args.samples}"
            argv = ["--evaluate", str(folder / "last.pt"), *flags, "--run-dir", str(where)]
            argv += ["--data-dir", args.data_dir, "--device", args.device, "--quiet"]
            results[arm].append(finished(where) or train(argv))
    return results, commands


def reopen(folder: Path, args: argparse.Namespace) -> tuple:
    """The model of a run, its flags, the parts of its data and the device."""
    here = dict(device=args.device, data_dir=args.data_dir, out=None, sample_steps=None)
    model, flags, _, dev, _ = open_model(cli.Flags(checkpoint=folder / "last.pt", **here))
    return model, flags, load(flags, dev), dev


@torch.inference_mode()
def pca_error(folder: Path, latent: int, args: argparse.Namespace) -> float:
    """The squared error of test images that as many principal components rebuild."""
    _, _, (train, _, test), _ = reopen(folder, args)
    x, y = (p.examples(torch.arange(len(p)))[0].flatten(1).cpu() for p in (train, test))
    mean = x.mean(0)
    axes = torch.linalg.eigh(((x - mean).T @ (x - mean)).double()).eigenvectors[:, -latent:]
    apart = (y - mean).double()
    return float((apart - apart @ axes @ axes.T).square().sum(1).mean())


@torch.inference_mode()
def rank(folders: list[Path], args: argparse.Namespace, command: str) -> tuple[dict, dict]:
    """Bits of test digits with noise of several stds; and how often the clean one has fewer.

    Values stay whole grey values from 0 to 255, as those that the flow was trained on.
    """
    results = {f"noise {noise}": [] for noise in NOISE}
    for folder in folders:
        model, _, (_, _, test), _ = reopen(folder, args)
        x = test.examples(torch.arange(min(len(test), 2000)))[0]
        clean = None
        for noise in NOISE:
            torch.manual_seed(0)
            spoilt = ((x + noise * torch.randn_like(x)).clamp(0, 1) * 255).round() / 255
            bits = torch.cat([model.measures(part)["bits"] for part in spoilt.split(500)])
            clean = bits if clean is None else clean
            ranked = (clean < bits).cpu().double().mean() if noise else torch.ones(())
            found = {"test_bits": float(bits.mean()), "ranked": float(ranked)}
            results[f"noise {noise}"].append(found)
    return results, dict.fromkeys(results, command)


@torch.inference_mode()
def compare_training(folder: Path, args: argparse.Namespace) -> dict[str, float]:
    """What training images score in place of samples: as good as the measures can get."""
    _, flags, (train, _, test), dev = reopen(folder, args)
    flags = flags.but(samples=args.samples)
    with torch.inference_mode(False):
        net = classifier(test, flags, dev)
    some = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))[: args.samples]
    sets = train.examples(some)[0], test.examples(torch.arange(len(test))[:10_000])[0]
    fake, real = (features(net, images) for images in sets)
    precision, recall = precision_recall(real, fake)
    distance = frechet(real, fake)
    return {"test_frechet": distance, "test_precision": precision, "test_recall": recall}


def show_five(folders: dict[str, list[Path]], args: argparse.Namespace, count: int = 12) -> None:
    """Writes five.png: a row of samples for each model, and one of test images."""
    from common.plot import sheet

    rows = []
    for name in FIVE:
        model, _, parts, dev = reopen(folders[name][0], args)
        rows.append(draw_samples(model, count, dev))
    rows.append(parts[2].examples(torch.arange(count))[0])
    sheet(torch.cat(rows), args.out / "five.png", columns=count)


def print_arms(summary: dict, claim: str) -> None:
    """A line for each arm."""
    for arm, metrics in summary.items():
        shown = (
            f"{key.removeprefix('test_')} {metrics[key]['mean']:.4g} ± {metrics[key]['std']:.2g}"
            for key in SHOWN[claim]
        )
        print(f"{arm:>18}: {', '.join(shown)}")


def print_table(summary: dict, args: argparse.Namespace) -> None:
    """The table of the README, in Markdown."""
    names = [key.removeprefix("test_").replace("_", " ") for key in SHOWN["table"]]
    lines = [" | ".join(["| model", *names]) + " |", "| --- " * (len(names) + 1) + "|"]
    for arm, metrics in summary.items():
        cells = [f"{metrics[k]['mean']:.4g}" if k in metrics else "" for k in SHOWN["table"]]
        lines.append(" | ".join([f"| {arm}", *cells]) + " |")
    print("\n".join(lines))


def draw(summary: dict, args: argparse.Namespace) -> None:
    """Writes the claim's picture: curves over steps and noise, else bars."""
    from common.plot import bars, spread

    picture, claim = args.out / f"claim_{args.claim}.png", args.claim
    if claim in ("steps", "likelihood"):
        key, x, y = {
            "steps": ("test_frechet", "steps of DDIM", "Fréchet distance"),
            "likelihood": ("test_bits", "noise, deviation", "bits a dimension"),
        }[claim]
        numbers = [float(word) for arm in summary for word in arm.split() if word[0].isdigit()]
        points = [metrics[key]["values"] for metrics in summary.values()]
        series = {next(iter(ARMS[claim])): dict(zip(numbers, points, strict=True))}
        return spread(series, picture, x=x, y=y, log=claim == "steps")
    keys = ["test_frechet"] if claim == "table" else SHOWN[claim]
    bars(
        {key: {arm: m[key]["values"] for arm, m in summary.items() if key in m} for key in keys},
        picture,
    )


if __name__ == "__main__":
    main()
