"""The claims of latentdiffusion/README.md as experiments.

    python latentdiffusion/claims.py guidance       # what is right, and how diverse, over the scale
    python latentdiffusion/claims.py steps          # samplers against the number of their steps
    python latentdiffusion/claims.py conditioning   # cross-attention against a pooled vector
    python latentdiffusion/claims.py compression    # pixels against factors 2, 4, 8 at equal time

All on `shapes`. `guidance` and `steps` measure the same trainings. `compression` times a few steps
of each arm first, as they will be trained, and gives each --minutes, of which a third goes to the
autoencoder where there is one; it also trains generative's DDPM on pixels for as long, which knows
no texts.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import torch

from common import cli, fail
from common.checkpoint import read_checkpoint
from common.claims import finished, run_arms, run_script, write_summary
from common.device import Device, forked
from common.folder import make_folder, write_text
from common.scenes import ready
from latentdiffusion.autoencoder import kl_small
from latentdiffusion.data import load
from latentdiffusion.diffusion import ldm_small
from latentdiffusion.evaluate import features, frechet, quality, real_features
from latentdiffusion.sample import open_model
from latentdiffusion.train import main as train

SCALES = ("1", "1.5", "3", "5", "8")
WAYS = {"ddim": (5, 10, 20, 50), "dpm": (5, 10, 20, 50), "ddpm": (10, 20, 50, 200)}
FACTORS = {1: 3, 2: 3, 4: 4, 8: 16}  # and the channels of latents
CLAIMS = ("guidance", "steps", "conditioning", "compression")
ARMS = {
    "conditioning": {
        kind: ["--conditioning", kind] for kind in ("attention", "pooled")
    }
}  # fmt: skip
SHOWN = {
    "guidance": ["test_right", "test_spread", "test_frechet"],
    "steps": ["test_right", "test_frechet"],
    "conditioning": ["test_right", "test_shape", "test_colour"],
    "compression": ["test_right", "test_frechet"],
}
NAMES = {"test_right": "share right", "test_spread": "spread", "test_frechet": "Fréchet distance"}
BATCH, AE_BATCH = 32, 16  # of the steps that are timed: train.py's
SIZE = 32  # pixels, in `compression`: the networks halve them up to four times
DDPM = "generative's DDPM"


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The flags; see --help."""
    parser = cli.claims_parser("latentdiffusion", __doc__, CLAIMS)
    add, count = parser.add_argument, dict(type=cli.integer(1), metavar="N")
    add("--steps", **count, help="of each second stage (default: train.py's)")
    add("--ae-steps", **count, help="of each first stage (default: train.py's)")
    text = "images of each kind that are measured (default: 200)"
    add("--samples", type=cli.integer(2), metavar="N", default=200, help=text)
    text = "of each training of `compression` (default: 3)"
    add("--minutes", type=cli.positive, metavar="M", default=3.0, help=text)
    args = parser.parse_args(argv)
    if args.claim == "compression" and (args.steps or args.ae_steps):
        fail("compression gives each arm as many steps as fit into --minutes: leave --steps and "
             "--ae-steps out")  # fmt: skip
    return args


@cli.command
def main(argv: list[str] | None = None) -> dict:
    """Runs what isn't done yet; writes claim_<name>.json and .png; returns the summary."""
    args = parse_args(argv)
    make_folder(args.out)
    shared = []
    for flag in ("steps", "ae_steps"):
        value = getattr(args, flag)
        shared += [f"--{flag.replace('_', '-')}", str(value)] if value else []
    if args.claim in ("guidance", "steps"):
        trained = {"ldm_small": []}  # the same for both
        _, commands, folders = run_arms(
            "latentdiffusion", train, trained, [*shared, "--samples", "0"], args
        )
        results, commands = measure_again(folders["ldm_small"], commands["ldm_small"], args)
    else:
        arms = ARMS[args.claim] if args.claim in ARMS else equal_time(args)
        shared += ["--samples", str(args.samples)]
        shared += ["--frechet"] if args.claim == "compression" else []
        results, commands, _ = run_arms("latentdiffusion", train, arms, shared, args)
    if args.claim == "compression":
        results[DDPM], commands[DDPM] = pixels_without_texts(args)
    path = args.out / f"claim_{args.claim}.json"
    summary = write_summary(path, results, commands)
    draw(summary, args)
    for arm, metrics in summary.items():
        shown = (
            f"{key.removeprefix('test_')} {metrics[key]['mean']:.3g} ± {metrics[key]['std']:.2g}"
            for key in SHOWN[args.claim]
            if key in metrics
        )
        print(f"{arm:>18}: {', '.join(shown)}")
    print(f"wrote {path} and {path.with_suffix('.png')}")
    return summary


def reopen(folder: Path, args: argparse.Namespace) -> tuple:
    """The model of a run, its words, its flags, and the device."""
    here = dict(device=args.device, data_dir=None, out=folder / "claims", weights=None, size=None)
    here |= dict(guidance=None, sampler=None, sample_steps=None, seed=0)
    found = open_model(cli.Flags(checkpoint=folder / "last.pt", **here))
    model, words, flags, _, dev, _ = found
    dev.quiet = True
    few = dict(limit=1, val=0)  # of the training set, which isn't looked at
    judged = dict(samples=args.samples, judged="test", frechet=True)
    return model, words, flags.but(**judged, stored={}, **few), dev


def settings_of(claim: str) -> dict[str, dict]:
    """By arm what an evaluation changes."""
    if claim == "guidance":
        return {f"scale {scale}": dict(guidance=float(scale)) for scale in SCALES}
    return {
        f"{sampler}, {steps} steps": dict(sampler=sampler, sample_steps=steps)
        for sampler, counts in WAYS.items()
        for steps in counts
    }


def measure_again(trained: list[Path], command: str, args: argparse.Namespace) -> tuple[dict, dict]:
    """The measures of the same weights under each setting, kept beside them."""
    results, commands = {}, {}
    for arm, changed in settings_of(args.claim).items():
        words = " ".join(f"--{k.replace('_', '-')} {v}" for k, v in changed.items())
        commands[arm] = f"{command}; then --evaluate CHECKPOINT {words}"
        results[arm] = []
        for folder in trained:
            kept = folder / f"measured-{arm.replace(' ', '-').replace(',', '')}-{args.samples}.json"
            if not kept.is_file():
                model, vocabulary, flags, dev = reopen(folder, args)
                test = load(flags, dev)[2]
                flags = flags.but(**changed)
                found = quality(model, vocabulary, test, flags, dev, args.claim == "guidance")
                write_text(kept, json.dumps(found))
            results[arm].append(json.loads(kept.read_text()))
    return results, commands


# ---------------------------------------------------------------------- equal time


def seconds(step: Callable, rounds: int = 3) -> float:
    """How long a step takes, after one that warms up."""
    step()
    start = time.perf_counter()
    for _ in range(rounds):
        step()
    return (time.perf_counter() - start) / rounds


def machine(args: argparse.Namespace) -> Device:
    """The device, and the precision that train.py takes by itself."""
    alone = dict(accumulate=1, clip=None, fsdp=False, compile=False, precision="auto")
    return Device(cli.Flags(device=args.device, quiet=True, seed=0, **alone))


def pace(loss: Callable, parameters: list, dev: Device) -> float:
    """Seconds of a training step."""
    optimizer = torch.optim.AdamW(parameters, fused=True)

    def step() -> None:
        with dev.autocast():
            value = loss()
        dev.step(value, optimizer)

    return seconds(step)


def paces(factor: int, channels: int, dev: Device) -> dict[str, float]:
    """Seconds of a step of both stages of a model of train.py's, on this processor."""
    model = ldm_small(factor=factor, latent_channels=channels)
    net, side = dev.wrap(model, channels_last=False), SIZE // factor
    z = torch.randn(BATCH, model.autoencoder.latent_channels, side, side, device=dev.device)
    tokens = torch.randint(64, (BATCH, 20), device=dev.device)
    learns = [*model.unet.parameters(), *model.text.parameters()]
    found = {"steps": pace(lambda: net(z, tokens), learns, dev)}
    if factor > 1:
        first = kl_small(factor, channels)
        net, x = dev.wrap(first), torch.rand(AE_BATCH, 3, SIZE, SIZE, device=dev.device)

        def loss() -> torch.Tensor:
            rebuilt, kl = net(x)
            return (rebuilt.to(x.dtype) - x).square().mean() + 1e-6 * kl

        found["ae_steps"] = pace(loss, list(first.parameters()), dev)
    return found


def kept(path: Path, make: Callable) -> dict:
    """What was made once, from its file: times differ from one time to the next."""
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(make()))
    return json.loads(path.read_text())


def equal_time(args: argparse.Namespace) -> dict[str, list[str]]:
    """By factor the flags of as many steps as fit into --minutes."""
    path = Path("runs", "latentdiffusion-claims", "paces.json")
    found = kept(path, lambda: {str(f): paces(f, c, machine(args)) for f, c in FACTORS.items()})
    arms = {}
    for factor, channels in FACTORS.items():
        pace, budget = found[str(factor)], 60 * args.minutes
        flags = ["--size", str(SIZE), "--factor", str(factor)]
        flags += ["--objects", "3"]  # all scenes, which the DDPM has, too
        if factor > 1:
            count = max(1, int(budget / 3 / pace["ae_steps"]))
            flags += ["--latent-channels", str(channels), "--ae-steps", str(count)]
            budget *= 2 / 3
        arm = f"factor {factor}" if factor > 1 else "pixels"
        arms[arm] = [*flags, "--steps", str(max(1, int(budget / pace["steps"])))]
    return arms


def pixels_without_texts(args: argparse.Namespace) -> tuple[list[dict], str]:
    """generative's small DDPM, trained on the same scenes for as long: its Fréchet distance."""
    from generative.model import ddpm_small

    def timed() -> dict:
        dev, model = machine(args), ddpm_small(channels=3, size=SIZE)
        net, x = dev.wrap(model), torch.rand(64, 3, SIZE, SIZE, device=dev.device)
        return {"steps": pace(lambda: net(x), list(model.parameters()), dev)}

    found = kept(Path("runs", "latentdiffusion-claims", "pace-ddpm.json"), timed)
    epochs = max(1, round(60 * args.minutes / found["steps"] * 64 / 10_000))
    flags = ["--model", "ddpm_small", "--data", "shapes", "--size", str(SIZE)]
    flags += ["--epochs", str(epochs)]
    results = []
    for seed in args.seeds:
        folder = Path("runs", "latentdiffusion-claims", f"ddpm-{epochs}-{seed}")
        where = ["--run-dir", str(folder), "--device", args.device, "--resume"]
        if not finished(folder):
            run_script(Path("generative", "train.py"), [*flags, "--seed", str(seed), *where])
        path = folder / f"measured-{args.samples}.json"
        results.append(kept(path, lambda folder=folder: measure_ddpm(folder, args)))
    return results, " ".join(["python generative/train.py", *flags, "--seed SEED"])


@torch.inference_mode()
def measure_ddpm(folder: Path, args: argparse.Namespace) -> dict[str, float]:
    """The Fréchet distance of a DDPM's images, in the judge's features."""
    from generative.model import ddpm_small

    content = read_checkpoint(folder / "last.pt")
    flags = content["config"]["flags"]
    settings = {k: flags[k] for k in ("width", "dropout", "sample_steps")}
    model = ddpm_small(channels=3, size=flags["size"], **settings)
    model.load_state_dict(content["model"] | content["ema"])
    here = dict(data="shapes", data_dir="data", size=SIZE, val=0, limit=1, stored={}, typed=[])
    flags = cli.Flags(**here, chosen=[], stream=None, workers=0, quiet=True, seed=0)
    dev = machine(args)
    model.to(dev.device).eval()
    with torch.inference_mode(False):
        judge = ready(dev)
    with forked("ddpm", dev), dev.autocast():
        made = torch.cat([model.sample(min(100, args.samples - begin))
                          for begin in range(0, args.samples, 100)])  # fmt: skip
    real = real_features(judge, load(flags, dev)[2], dev)
    return {"test_frechet": frechet(real, features(judge, made.float(), dev))}


def draw(summary: dict, args: argparse.Namespace) -> None:
    """Writes the claim's picture: curves over scale and steps, else bars."""
    from common.plot import bars, spread

    path, claim = args.out / f"claim_{args.claim}.png", args.claim
    if claim == "guidance":
        keys = SHOWN[claim][:2]
        series = {
            NAMES[key]: {float(arm.split()[1]): m[key]["values"] for arm, m in summary.items()}
            for key in keys
        }
        return spread(series, path, x="guidance scale", y="share right; spread", log=False)
    if claim == "steps":
        series = {
            way: {
                steps: summary[f"{way}, {steps} steps"]["test_frechet"]["values"]
                for steps in counts
            }
            for way, counts in WAYS.items()
        }
        return spread(series, path, x="steps", y="Fréchet distance", log=True)
    groups = {
        key: {arm: m[key]["values"] for arm, m in summary.items() if key in m}
        for key in SHOWN[claim]
    }
    bars(groups, path)


if __name__ == "__main__":
    main()
