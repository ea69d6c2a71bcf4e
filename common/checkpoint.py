"""Checkpoint files: plain tensors and JSON values, written whole or not at all.

State is gathered from and given to the parts of a run: modules, optimisers, schedules and
dictionaries. With --fsdp the parameters are shards (DTensor); files always hold them whole, so
that any number of processes can go on with them.
"""

import os
import pickle
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from common import fail


def read_tensors(path: str | Path) -> Any:
    """What torch.save wrote to a file, on the CPU; a damaged file ends in one line naming it.

    Only tensors and plain values are loaded (`weights_only`): no file can run code here.
    """
    try:
        with warnings.catch_warnings():  # a foreign file is to end in one line
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        fail(f"checkpoint {path}: {error.strerror or error}")
    except pickle.UnpicklingError as error:
        if "GLOBAL" in str(error):
            fail(f"checkpoint {path} holds more than tensors and plain values: refused, not loaded")
        fail(f"checkpoint {path} is damaged")
    except Exception:  # a damaged file may fail in any way
        fail(f"checkpoint {path} is damaged or empty")


def read_checkpoint(path: str | Path) -> dict:
    """A checkpoint's contents on the CPU; a file that isn't one ends in one line naming it."""
    content = read_tensors(path)
    config = content.get("config") if isinstance(content, dict) else None
    if not isinstance(config, dict) or not isinstance(config.get("flags"), dict):
        fail(f"{path} is not a checkpoint of a run: write those with train.py")
    return content


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


def whole(value: Any) -> Any:
    """A copy on the CPU, with shards gathered (every process has to take part)."""
    if isinstance(value, DTensor):
        value = value.full_tensor()
    return value.detach().cpu().clone() if isinstance(value, Tensor) else value


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
        state = {names[p]: {k: whole(v) for k, v in s.items()} for p, s in part.state.items()}
        rates = [{k: v for k, v in g.items() if "lr" in k} for g in part.param_groups]
        return {"kind": type(part).__name__, "state": state, "rates": rates}
    if isinstance(part, nn.Module) or not hasattr(part, "state_dict"):
        part = part.state_dict() if isinstance(part, nn.Module) else part
        return {key: whole(value) for key, value in part.items()}
    return part.state_dict()


def restore(part: Any, state: Any, names: dict[Tensor, str], lr_scale: float = 1.0) -> None:
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
