"""Checkpoint files: plain tensors and JSON values, written whole or not at all.

State is gathered from and given to the parts of a run: modules, optimisers, schedules and
dictionaries. With --fsdp the parameters are shards (DTensor); files always hold them whole, so
that any number of processes can go on with them.
"""

import copy
import os
import pickle
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from common import fail

WEIGHT_KEYS = ("model", "state_dict", "model_state_dict", "ema", "model_ema", "net", "network")
WRAPPERS = ("module.", "_orig_mod.")  # of DataParallel and of torch.compile


def read_tensors(path: str | Path) -> Any:
    """What torch.save or safetensors wrote to a file, on the CPU; else ends in one line naming it.

    Only tensors and plain values are loaded (`weights_only`): no file can run code here.
    """
    try:
        safe = is_safetensors(path)
    except OSError as error:
        fail(f"checkpoint {path}: {error.strerror or error}")
    try:
        if safe:
            from safetensors.torch import load_file

            return load_file(path)
        with warnings.catch_warnings():  # a foreign file is to end in one line
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "GLOBAL" in str(error):
            fail(f"checkpoint {path} holds more than tensors and plain values: refused, not loaded "
                 "(save the state_dict alone)")  # fmt: skip
        fail(f"checkpoint {path} is damaged")
    except Exception:  # a damaged file may fail in any way
        if is_torchscript(path):
            fail(f"checkpoint {path} is a TorchScript program, which is not loaded: save the "
                 "state_dict() of the module in it")  # fmt: skip
        fail(f"checkpoint {path} is damaged or empty")


def is_safetensors(path: str | Path) -> bool:
    """Whether a file begins as safetensors do: the length of a header, and the header in JSON."""
    with open(path, "rb") as file:
        head = file.read(9)
    size = int.from_bytes(head[:8], "little")
    return len(head) == 9 and head[8:] == b"{" and 8 + size <= os.path.getsize(path)


def is_torchscript(path: str | Path) -> bool:
    """Whether a file is a program that torch.jit.save wrote: a zip with code in it."""
    try:
        with zipfile.ZipFile(path) as file:
            return any(
                "/code/" in name or name.endswith("constants.pkl") for name in file.namelist()
            )
    except (OSError, zipfile.BadZipFile):
        return False


def read_checkpoint(path: str | Path) -> dict:
    """A run's checkpoint on the CPU; a file that isn't one ends in one line naming it."""
    content = read_tensors(path)
    config = content.get("config") if isinstance(content, dict) else None
    if not isinstance(config, dict) or not isinstance(config.get("flags"), dict):
        weights = isinstance(content, dict) and weights_in(content)
        hint = "; it holds weights alone, which --weights takes" if weights else ""
        fail(f"{path} is not a checkpoint of a run: write those with train.py{hint}")
    return content


def weights_in(content: dict) -> dict[str, Tensor]:
    """The tensors of a state_dict, as it is or under a usual name, without wrappers' prefixes."""
    for key in WEIGHT_KEYS:
        if isinstance(content.get(key), dict) and content[key]:
            content = content[key]
            break
    tensors = {k: v for k, v in content.items() if isinstance(v, Tensor)}
    if len(tensors) < len(content):
        return {}
    for prefix in WRAPPERS * 2:  # in either order
        if tensors and all(key.startswith(prefix) for key in tensors):
            tensors = {key.removeprefix(prefix): value for key, value in tensors.items()}
    return tensors


def read_weights(path: Path) -> tuple[dict[str, Tensor], dict | None]:
    """The weights in a file of a state_dict or of a checkpoint, and the facts of its data if known.

    Reads what torch.save and safetensors write, under the keys and prefixes of WEIGHT_KEYS and
    WRAPPERS.
    """
    content = read_tensors(path)
    weights = weights_in(content) if isinstance(content, dict) else {}
    if not weights:
        fail(f"{path} holds no weights: neither a state_dict nor a checkpoint of train.py")
    facts = content.get("dataset") if "config" in content else None
    return weights, facts if isinstance(facts, dict) and {"mean", "std"} <= facts.keys() else None


def write_checkpoint(path: Path, content: dict) -> None:
    """Writes beside `path`, syncs, and renames: a kill leaves the old file or the new one."""
    temporary = path.with_suffix(".tmp")
    try:
        with open(temporary, "wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        if hasattr(os, "O_DIRECTORY"):  # the rename itself, too
            folder = os.open(path.parent, os.O_DIRECTORY)
            os.fsync(folder)
            os.close(folder)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
        temporary.unlink(missing_ok=True)
        fail(f"can't write {path} ({error}); the last checkpoint there, if any, is untouched")


def gathered(value: Any) -> Any:
    """A copy on the CPU, with shards gathered (every process has to take part)."""
    if isinstance(value, DTensor):
        value = value.full_tensor()
    return value.detach().cpu().clone() if isinstance(value, Tensor) else copy.deepcopy(value)


def shard_like(value: Any, like: Tensor) -> Any:
    """`value` sharded and laid out in memory as `like` is, if it has its shape; else as it came.

    torch's fused optimisers take the numbers as they lie: a momentum in another memory format than
    its parameter (of a run with shards, which can't be channels-last) would be mixed up unnoticed.
    """
    if not isinstance(value, Tensor) or value.shape != like.shape:
        return value
    if isinstance(like, DTensor):
        return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)
    if value.stride() != like.stride():
        return torch.empty_like(like, dtype=value.dtype, device=value.device).copy_(value)
    return value


def state_of(part: Any, names: dict[Tensor, str]) -> Any:
    """What a checkpoint holds of one part of a run; `names` are the parameters' names."""
    if isinstance(part, Optimizer):
        # Not optimizer.state_dict(): its keys are positions, which a change of the model shifts.
        state = {names[p]: {k: gathered(v) for k, v in s.items()} for p, s in part.state.items()}
        rates = [{k: v for k, v in g.items() if "lr" in k} for g in part.param_groups]
        return {"kind": type(part).__name__, "state": state, "rates": rates}
    if isinstance(part, nn.Module) or not hasattr(part, "state_dict"):
        part = part.state_dict() if isinstance(part, nn.Module) else part
        return {key: gathered(value) for key, value in part.items()}
    return part.state_dict()


def load_state(part: Any, state: Any, names: dict[Tensor, str], lr_scale: float = 1.0) -> None:
    """Gives a part its state back, in place. Raises what torch raises where it doesn't fit.

    An optimiser keeps the settings it was built with (the flags of now), and takes its moments
    and the learning rates of the schedule, times `lr_scale`.
    """
    if isinstance(part, Optimizer):
        if state["kind"] != type(part).__name__:
            raise ValueError(f"{state['kind']}, not {type(part).__name__}")
        for group, rates in zip(part.param_groups, state["rates"], strict=True):
            group.update({k: v * lr_scale for k, v in rates.items()})
        indexed = part.state_dict()
        params = [p for group in part.param_groups for p in group["params"]]
        for index, p in enumerate(params):
            if moments := state["state"].get(names[p]):
                indexed["state"][index] = {k: shard_like(v, p) for k, v in moments.items()}
        part.load_state_dict(indexed)
    elif isinstance(part, nn.Module):
        here = part.state_dict()
        part.load_state_dict(
            {k: shard_like(v, here[k]) if k in here else v for k, v in state.items()}
        )
    elif hasattr(part, "load_state_dict"):
        part.load_state_dict(state)
        if hasattr(part, "base_lrs"):
            part.base_lrs = [rate * lr_scale for rate in part.base_lrs]
    else:
        if lost := [k for k, v in part.items() if isinstance(v, Tensor) and k not in state]:
            raise ValueError(f"it has no {lost[0]}")
        for key, value in state.items():
            if isinstance(part.get(key), Tensor):
                part[key].copy_(shard_like(value, part[key]))
            else:
                part[key] = value
