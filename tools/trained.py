"""Trained networks of any milestone: where their checkpoints lie, and how they are opened.

A folder's own sample.py opens what its train.py wrote; here are the arguments that it gets.
"""

import argparse
import importlib
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from common import classify, cli, fail, unknown
from common.checkpoint import read_checkpoint
from common.data.tokens import Tokens
from common.folder import as_spelt_now, read_flags

ROOT = Path(__file__).resolve().parents[1]


class Trained(NamedTuple):
    """A network with its weights, on the CPU, and what its checkpoint says of it."""

    model: nn.Module
    flags: argparse.Namespace
    facts: dict  # of its data, and for some of the network
    content: dict  # the checkpoint


def part_of(module: str, *names: str) -> Any:
    """What a milestone's module calls so, one thing or several; imported when it is needed, so that
    this file is of use on a branch without that milestone."""
    found = importlib.import_module(module)
    parts = [getattr(found, name) for name in names]
    return parts[0] if len(parts) == 1 else parts


def milestones() -> list[str]:
    """The folders that there are."""
    return sorted(path.parent.name for path in ROOT.glob("*/model.py"))


def checkpoint_of(path: str | Path) -> Path:
    """The file of a checkpoint, or of a run's folder the one that it was tested with."""
    path = Path(path)
    if not path.is_dir():
        if not path.exists():
            fail(f"{path}: there is no such run or checkpoint")
        return path
    waited = read_flags(path).get("patience") and (path / "best.pt").exists()
    if not (file := path / ("best.pt" if waited else "last.pt")).exists():
        fail(f"{path} holds no last.pt: name a run's folder, or a checkpoint")
    return file


def milestone_of(content: dict, path: Path) -> str:
    """The folder whose network a checkpoint holds; one of no folder ends in one line."""
    name = content["config"]["flags"].get("milestone", "")
    if name not in milestones():
        fail(f"{path}: {unknown('milestone', name, milestones())}")
    return name


def opened(folder: str, path: Path, *more: str, device: str = "cpu") -> tuple:
    """What a folder's sample.py opens of a checkpoint, its network among it, given `more` of its
    command line; a checkpoint that isn't the folder's ends in one line."""
    sample = importlib.import_module(f"{folder}.sample")
    parse = getattr(sample, "parse_args", None) or cli.sample_parser(folder, "").parse_args
    args = parse(["--checkpoint", str(path), "--device", device, *more])
    if folder == "dalle":
        return sample.open_models(args)
    own = getattr(sample, "open_model", classify.open_model)
    if own is not classify.open_model:
        return own(args)
    train = importlib.import_module(f"{folder}.train")
    build = getattr(sample, "build", getattr(train, "build", None))
    models = importlib.import_module(f"{folder}.model").MODELS
    return classify.open_model(args, folder, models, build)


def open_trained(path: Path) -> Trained:
    """The network of a checkpoint, as its folder's sample.py uses it; else ends in one line."""
    content = read_checkpoint(path)
    folder, flags = milestone_of(content, path), as_spelt_now(content["config"]["flags"])
    facts, flags = content.get("dataset", {}), argparse.Namespace(**flags)
    if folder == "latentdiffusion" and flags.model in first_stages():
        model = of_latents(content)
    elif folder == "clip" and "network" not in facts:
        model = of_words(content, facts)
    elif folder == "flamingo":
        model = part_of("flamingo.parts", "build")(facts)
        model.load_state_dict(content["model"])
    else:
        more = ["a sentence"] if folder == "gpt" and "classes" in facts else []
        model, *others = opened(folder, path, *more)
        if folder == "dalle":
            stream = {"stream": others[0]} if others[0] else {}
            model = nn.ModuleDict({"dvae": model} | stream)
    return Trained(model.float().cpu().eval().requires_grad_(False), flags, facts, content)


def first_stages() -> tuple[str, ...]:
    """The models of latentdiffusion that are autoencoders alone."""
    return part_of("latentdiffusion.options", "AUTOENCODERS")


def of_latents(content: dict) -> nn.Module:
    """The first stage of latent diffusion alone."""
    make_autoencoder = part_of("latentdiffusion.autoencoder", "make_autoencoder")
    model = make_autoencoder(**content["dataset"]["network"])
    model.load_state_dict(content["model"] | content.get("ema", {}))
    return model


def of_words(content: dict, facts: dict) -> nn.Module:
    """The network of clip/predict.py."""
    MODELS, Predictor = part_of("clip.model", "MODELS"), part_of("clip.predict", "Predictor")
    sizes_of = part_of("clip.train", "sizes_of")
    flags = argparse.Namespace(**as_spelt_now(content["config"]["flags"]))
    if flags.model not in MODELS:
        fail(f"the checkpoint is of {flags.model}, which is no network of clip")
    words = flags.target == "words"
    outputs = Tokens(facts["words"]).size if words else len(facts["classes"])
    model = Predictor(sizes_of(flags), outputs)
    model.load_state_dict(content["model"])
    return model
