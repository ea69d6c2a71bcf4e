"""What the scripts of this folder share: the flags, which model has which, data, and building."""

import argparse
import re
from pathlib import Path

from torch import nn

from common import cli, fail, unknown, weights
from common.data.images import IMAGE_SETS, add_image_flags, load_images, take
from common.data.points import load_moons
from common.device import Device
from generative.model import MODELS

# fmt: off
DATA = [*IMAGE_SETS, "moons"]
SIZES = {"digits": 8, "mnist": 28, "fashion-mnist": 28, "kmnist": 28, "folder": 64}  # else 32
CODES, NOISES = ("autoencoder", "conv_autoencoder"), ("ddpm", "ddpm_small")
VAES, GANS = ("vae", "conv_vae"), ("gan", "dcgan")
OWN = {  # flags that not all models have
    "latent": CODES + VAES, "noise": CODES, "without": CODES,
    "beta": VAES, "likelihood": VAES, "binarise": VAES, "importance": VAES,
    "conditional": GANS, "saturating": GANS,
    "num_blocks": ("realnvp",), "width": ("dcgan", "realnvp", "realnvp2d", "ddpm_small"),
    "dropout": NOISES, "sample_steps": NOISES,
    **{key: [m for m in MODELS if m not in GANS] for key in ("ema", "warmup", "decay")},
    "optimizer": [m for m in MODELS if m not in GANS],
}
OLD_NAMES = {  # of attention, in the files that were released with the paper's weights
    "query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0",
}
# fmt: on


def add_flags(parser: argparse.ArgumentParser) -> None:
    """All flags beside the shared ones."""
    add_image_flags(parser)
    add, count, amount = parser.add_argument, cli.whole(1), cli.not_negative
    add("--size", type=cli.whole(4), help="pixels: 8 of digits, 28 of mnist, 64 of folders, or 32")
    add("--flip", choices=["yes", "no"], default="no", help="mirror half of the training images")
    add("--latent", type=count, help="numbers of a code: 30, of a VAE 20")
    add("--noise", type=amount, help="autoencoders: rebuild from pixels with such noise")
    add("--without", metavar="CLASS", help="autoencoders: train without a class, then detect it")
    add("--beta", type=amount, help="VAE: weight of the KL term (default 1)")
    add("--likelihood", choices=["bernoulli", "gaussian"], help="VAE: of pixels (bernoulli)")
    add("--binarise", choices=["yes", "no"], help="VAE: draw pixels as 0 or 1 (bernoulli: yes)")
    add(
        "--importance",
        type=cli.whole(0),
        default=0,
        help="VAE: draws for the likelihood of the test (100)",
    )
    add("--conditional", action="store_true", help="GANs: tell both players the class")
    add("--saturating", action="store_true", help="GANs: the generator's loss of Eq. 1")
    add("--width", type=count, help="channels of dcgan, ddpm_small and the flows' networks")
    add("--num-blocks", type=count, help="realnvp: residual blocks of a coupling's network")
    add("--dropout", type=amount, help="diffusion: in the U-Net (0.1)")
    add("--sample-steps", type=count, help="diffusion: of the 1000, by DDIM if fewer")
    add(
        "--ema",
        type=amount,
        default=0.0,
        help="average the weights with this decay (diffusion: 0.9999)",
    )
    add("--warmup", type=cli.whole(0), default=100, help="steps in which the rate rises")
    add("--decay", choices=["yes", "no"], default="yes", help="let the rate fall to zero (cosine)")
    add("--optimizer", choices=["adam", "adagrad"], default="adam", help="which one")
    add("--samples", type=cli.whole(0), default=0, help="measure so many samples in the test")
    add("--weights", metavar="FILE", help="start from a checkpoint, or diffusers' U-Net (ddpm)")


def check(args: argparse.Namespace) -> None:
    """Ends in one line if flags don't fit the model, or not together."""
    for flag, models in OWN.items():
        if flag in args.typed and args.model not in models:
            fail(f"--{flag.replace('_', '-')} is for {', '.join(models)}, not for {args.model}")
    if (args.data == "moons") != (args.model == "realnvp2d"):
        fail(f"--model {args.model} can't take --data {args.data}: realnvp2d and moons are a pair")
    for flag in {"samples", "size", "flip", "stream", "workers"} & set(args.typed):
        if args.data == "moons":
            fail(f"--{flag} is for images, not for the points of moons")
    if args.samples == 1:
        fail("--samples 1: one image has no distribution to measure")
    if "weights" in args.typed and args.evaluate:
        fail("--weights starts a training, and --evaluate trains nothing: leave one of them away")
    if "weights" in args.typed and not Path(args.weights).is_file():
        fail(f"--weights {args.weights}: there is no such file")
    if args.ema >= 1 or (args.dropout or 0) >= 1:
        fail("--ema and --dropout have to be below 1")
    if args.sample_steps and args.sample_steps > 1000:
        fail(f"--sample-steps {args.sample_steps}: the chain has 1000")
    if args.model in GANS and (args.val or args.patience):
        fail("--val and --patience: a GAN's losses choose nothing; measure --samples instead")
    if args.likelihood == "gaussian" and args.binarise == "yes":
        fail("--binarise yes makes pixels that are 0 or 1: that is for --likelihood bernoulli")
    if args.model in GANS and args.evaluate and not args.samples:
        fail("a GAN is measured by its samples: add --samples N")


def build(args: argparse.Namespace, facts: dict) -> nn.Module:
    """The model that the flags ask for."""
    names = (
        "latent",
        "noise",
        "beta",
        "likelihood",
        "width",
        "num_blocks",
        "dropout",
        "sample_steps",
    )
    settings = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    if args.model in VAES:
        yes = "no" if args.likelihood == "gaussian" else "yes"
        settings["binarise"] = (args.binarise or yes) == "yes"
    if args.conditional:
        settings["num_classes"] = len(facts["classes"])
    if args.data != "moons":
        settings |= dict(channels=facts["channels"], size=args.size)
    try:
        return MODELS[args.model](**settings)
    except ValueError as error:
        fail(f"{args.model} can't be built, see --size and --width: {error}")


def start_from(model: nn.Module, args: argparse.Namespace, dev: Device) -> None:
    """Loads `args.weights`, if any: of the same model, or diffusers' of the U-Net."""
    resumed = args.resume and args.run_dir and (args.run_dir / "last.pt").exists()
    if not args.weights or args.evaluate or resumed:
        return
    state, _ = weights.read_state(Path(args.weights))
    if args.model in NOISES and "conv_in.weight" in state:  # the U-Net alone
        old = re.compile(rf"\b({'|'.join(OLD_NAMES)})(?=\.(weight|bias)$)")
        new = (old.sub(lambda found: OLD_NAMES[found[1]], key) for key in state)
        state = {f"unet.{key}": value for key, value in zip(new, state.values(), strict=True)}
    weights.load(model, state, args, dev, heads=())


def load(args: argparse.Namespace, dev: Device) -> tuple:
    """The three parts of the data: pixels from 0 to 1, or points."""
    if args.data == "moons":
        return load_moons(args, dev)
    grey = args.data in SIZES
    channels = 1 if grey else 3
    facts = dict(mean=[0.0] * channels, std=[1.0] * channels)
    parts = load_images(args, dev, args.size, channels, **facts)
    parts[0].facts["channels"] = channels
    classes = parts[0].facts["classes"]
    if args.samples and len(classes) < 2:
        fail(f"--samples {args.samples}: images of one class teach no classifier to compare with")
    if args.samples and min(args.samples / dev.world, len(parts[2]) - 1) < 1:
        need = f"a sample for each of {dev.world} processes and two test images"
        fail(f"--samples {args.samples} needs {need}; {args.data} has {len(parts[2])} to test")
    if args.without is not None:
        if args.without not in classes:
            fail(unknown("class", args.without, classes))
        if classes.index(args.without) not in parts[2].labels:
            fail(f"--without {args.without}: the test part has none to detect")
        for part in filter(None, parts[:2]):
            others = (part.labels.cpu() != classes.index(args.without)).nonzero().flatten()
            part.pixels, labels = take((part.pixels, part.labels.cpu()), others)
            part.labels = labels.to(dev.device)
            if not len(part):
                fail(f"--without {args.without} leaves nothing of the {part.part} part")
    return parts
