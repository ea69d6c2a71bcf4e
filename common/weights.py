"""Weights to start from: torchvision's published ones, the hub's, or a file of the user's.

add_weight_flags(parser)                                       # --weights imagenet|FILE, --freeze
start_from(model, args, dev, train.facts, ("fc",), PUBLISHED)  # before dev.wrap
optimizer = SGD(trained(model), ...)
keep_frozen(model)                                             # after model.train()

files = files_of("gpt2", ("config.json", "tokenizer.json"))    # of the hub, a folder or a file
settings = read_config(files)
"""

import argparse
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from common import cli, fail
from common.checkpoint import read_weights
from common.device import Device

WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")  # the first that is there
IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}  # torchvision's inputs


def add_weight_flags(parser: cli.Parser, published: bool = True) -> None:
    """The flags of scripts that can start from weights of a file, or from `published` ones."""
    theirs = "torchvision's published weights, or from " if published else ""
    text = f"start from {theirs}a state_dict or checkpoint; other classes get a new last layer"
    metavar = "imagenet|FILE" if published else "FILE"
    parser.add_argument("--weights", metavar=metavar, none="no", group="training", help=text)
    parser.add_switch("--freeze", group="training", help="train only the last layer")


def check_weights(args: argparse.Namespace, published: Mapping[str, str]) -> None:
    """Ends in one line if the flags ask for weights that aren't there, or that nothing would read,
    before any work is done."""
    check_evaluated(args)
    name, other = ("imagenet", " (or write imagenet)") if published else ("FILE", "")
    if args.freeze and not args.weights:
        fail(f"--freeze trains the last layer on what --weights gives: add --weights {name}")
    if args.weights == "imagenet" and published and args.model not in published:
        fail(f"--weights imagenet: none for {args.model}, but for {', '.join(published)}")
    there = args.weights == "imagenet" and published
    if "weights" in args.typed and not there and not Path(args.weights).is_file():
        fail(f"--weights {args.weights}: there is no such file{other}")


def check_evaluated(args: argparse.Namespace) -> None:
    """Ends in one line if weights were typed beside a checkpoint to measure, which has its own."""
    if args.evaluate and args.weights and "weights" in args.typed:
        fail("--weights starts a training, and --evaluate trains nothing: leave one of them away")


def start_from(
    model: nn.Module,
    args: argparse.Namespace,
    dev: Device,
    facts: dict,
    heads: tuple[str, ...],
    published: Mapping[str, str],
    inputs: Mapping[str, list[float]] = IMAGENET,
    optional: tuple[str, ...] = (),
    current_name: Callable[[str], str] = str,
    fitted: Callable[[dict[str, Tensor]], dict[str, Tensor]] = dict,
) -> None:
    """Loads `args.weights`, if any, into `model`, and freezes all but its heads on `--freeze`.

    `facts` are those of the data. They get the mean and std that the weights were trained
    with, if it is known: `inputs` for torchvision's, or those that a checkpoint of ours names.

    `heads` are the names of the layers that depend on the number of classes; where the file's
    have another shape, they keep their new weights. `published` maps models to torchvision's names
    (see `torchvisions`), for those whose weights it has, or to repositories of the hub. Layers
    named in `optional` may be missing from the file. `current_name` gives the name in `model` for
    one in the file, where these may be older; `fitted` makes other changes to what the file holds,
    so that it fits, and raises ValueError for what never will.
    """
    if args.weights and not args.evaluate and not args.stored:  # which has the weights
        if args.weights == "imagenet":
            state, known = download(args.model, published), inputs
        else:
            state, known = read_weights(Path(args.weights))
        state = {current_name(key): value for key, value in state.items()}
        try:
            state = fitted(state)
        except ValueError as error:
            fail(f"--weights {args.weights}: {error}")
        note = load(model, state, args, heads, optional)
        if known:
            facts.update({key: list(known[key]) for key in ("mean", "std")})
        whose = "those they were trained with" if known else "those of the data"
        dev.say(f"weights of {args.weights}{note}; mean and std are {whose}")
    if args.freeze:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name.startswith(tuple(f"{head}." for head in heads)))


def download(name: str, published: Mapping[str, str]) -> dict[str, Tensor]:
    """torchvision's weights for ImageNet, from its cache or its server, checked by their hash.

    A name with a slash is that of a repository of the Hugging Face hub.
    """
    if "/" in published[name]:
        return from_hub(published[name])
    entry = torchvisions(published[name])
    try:
        return entry.get_state_dict(progress=True, check_hash=True)
    except (OSError, RuntimeError) as error:
        cache, file = Path(torch.hub.get_dir(), "checkpoints"), Path(entry.url).name
        fail(f"{file} is not in {cache} and can't be downloaded ({error}): copy it there")


def torchvisions(name: str) -> Any:
    """torchvision's entry of published weights: "resnet18", or one of several, "vit_h_14:NAME"."""
    from torchvision.models import get_model_weights

    model, _, which = name.partition(":")
    return get_model_weights(model)[which or "IMAGENET1K_V1"]


def from_hub(repository: str, file: str = "model.safetensors") -> dict[str, Tensor]:
    """The weights in a repository of the Hugging Face hub, from its cache or its server."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return read_weights(Path(hf_hub_download(repository, file)))[0]
    except (OSError, RuntimeError, ValueError, HfHubHTTPError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        fail(f"{file} of {repository} is not in the hub's cache and can't be downloaded "
             f"({reason}): get it elsewhere, and name it in --weights FILE")  # fmt: skip


def load(
    model: nn.Module,
    state: Mapping[str, Tensor],
    args: argparse.Namespace,
    heads: tuple[str, ...],
    optional: tuple[str, ...] = (),
) -> str:
    """Loads `state` whole, or all but heads of another number of classes; says which these are.

    Layers named in `optional` may be missing on either side.
    """
    own = model.state_dict()
    needless = tuple(f"{name}." for name in optional)
    state = {key: v for key, v in state.items() if key in own or not key.startswith(needless)}
    state |= {key: v for key, v in own.items() if key not in state and key.startswith(needless)}
    if missing := [key for key in own if key not in state]:
        fail(f"{args.weights} is of another network than {args.model}: it has no {missing[0]}")
    if strange := [key for key in state if key not in own]:
        fail(f"{args.weights} is of another network than {args.model}: it has {strange[0]}")
    other = [key for key in own if own[key].shape != state[key].shape]
    swapped = [key for key in other if key.startswith(tuple(f"{head}." for head in heads))]
    if wrong := [key for key in other if key not in swapped]:
        shapes = " and ".join(str(list(s[wrong[0]].shape)) for s in (state, own))
        fail(f"{args.weights} doesn't fit {args.model}: {wrong[0]} is {shapes}")
    model.load_state_dict({key: own[key] if key in swapped else state[key] for key in own})
    names = dict.fromkeys(key.rpartition(".")[0] for key in swapped)
    return f"; {', '.join(names)} new, for {args.data}'s classes" if names else ""


def trained(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that aren't frozen, for the optimiser."""
    return [p for p in model.parameters() if p.requires_grad]


def keep_frozen(model: nn.Module) -> None:
    """Puts frozen layers back in evaluation mode, so that batch norm keeps its statistics."""
    for module in model.modules():
        own = list(module.parameters(recurse=False))
        if own and not any(p.requires_grad for p in own):
            module.eval()


# ---------------------------------------------------------------------- a folder of files


def files_of(
    name: str, others: Sequence[str], repositories: Sequence[str] = ()
) -> dict[str, Path | None]:
    """Where published weights lie (under "weights"), and those of `others` that are beside them.

    `name` is a folder, a file in it, or else a name of the hub; there one of the `repositories`
    holds them, or that of this name. Of the hub the third of `others` and those after it (the
    tokenizer in older forms) are fetched only where the second (tokenizer.json) isn't there.
    """
    path = Path(name).expanduser()
    if not path.exists():
        if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) or name.endswith((".pt", ".bin")):
            fail(f"--weights {name}: there is no such file or folder")
        return files_in_hub(name, others, repositories or [name])
    folder = path if path.is_dir() else path.parent
    known = (*WEIGHT_FILES, "last.pt")  # this of a run
    weights = path if path.is_file() else next(
        (path / file for file in known if (path / file).is_file()), None)  # fmt: skip
    if not weights:
        fail(f"--weights {name}: the folder holds no {' and no '.join(known)}")
    return {"weights": weights, **{n: folder / n for n in others if (folder / n).is_file()}}


def files_in_hub(
    name: str, others: Sequence[str], repositories: Sequence[str]
) -> dict[str, Path | None]:
    """The files of a model of the hub, from its cache or its server."""
    from huggingface_hub import constants

    reasons: list[str] = []  # that nothing can be downloaded
    found = (fetch(repositories, f, reasons, on) for on in (False, True) for f in WEIGHT_FILES)
    weights = next(filter(None, found), None)
    if not weights:
        reason = (reasons or ["it has none"])[0]
        fail(f"--weights {name}: there is no such file or folder, and of the hub's "
             f"{repositories[-1]} no {WEIGHT_FILES[0]} is in {constants.HF_HUB_CACHE} or can be "
             f"downloaded ({reason}): name a folder that holds it")  # fmt: skip
    files = {"weights": weights}
    for number, file in enumerate(others):
        needless = number > 1 and files.get(others[1])
        files[file] = None if needless else fetch(repositories, file, reasons)
    return files


def fetch(
    repositories: Sequence[str], file: str, reasons: list[str], online: bool = True
) -> Path | None:
    """A file of the first of these repositories of the hub that the cache has it of, else
    downloaded from the last; None if there is none.

    Once nothing can be downloaded, `reasons` says why, and it isn't tried again.
    """
    from huggingface_hub import (
        get_hf_file_metadata,
        hf_hub_download,
        hf_hub_url,
        try_to_load_from_cache,
    )
    from huggingface_hub.utils import EntryNotFoundError, logging

    logging.set_verbosity_error()  # one line says it, elsewhere
    last = repositories[-1]
    try:
        for repository in repositories:
            if isinstance(there := try_to_load_from_cache(repository, file), str):
                return Path(there)
        if online and not reasons:
            get_hf_file_metadata(hf_hub_url(last, file), timeout=10)  # else it tries a minute
            return Path(hf_hub_download(last, file))
    except EntryNotFoundError:
        pass
    except Exception as error:  # of the network, of the hub, of the name
        reasons.append((str(error).strip().splitlines() or [type(error).__name__])[0][:100])
    return None


def read_config(files: Mapping[str, Path | None]) -> dict:
    """The settings in config.json; none where there is no such file."""
    if not (file := files.get("config.json")):
        return {}
    try:
        return dict(json.loads(file.read_text("utf-8")))
    except (OSError, ValueError, TypeError) as error:
        fail(f"{file} is damaged ({error})")
