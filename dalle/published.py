"""The dVAE of a run, or the released one: its weights, and the network that they fit.

The released encoder.pkl and decoder.pkl (https://github.com/openai/DALL-E) are pickled modules, not
tensors alone. They are read with `weights_only` all the same: the classes that they name are
replaced by a shell that holds attributes and has no code, and the tensors are taken out of these.
"""

import pickle
import warnings
from pathlib import Path

import torch
from torch import Tensor

from common import fail
from common.checkpoint import read_checkpoint, read_tensors, weights_in
from common.folder import read_flags
from dalle.dvae import DVAE

PARTS = ("encoder", "decoder")  # files of a folder, by any ending of these
ENDINGS = (".pkl", ".pt", ".pth", ".bin", ".safetensors")
THEIRS = ("encoder.Encoder", "encoder.EncoderBlock", "decoder.Decoder", "decoder.DecoderBlock",
          "utils.Conv2d")  # classes in the files  # fmt: skip
TORCHS = ("container.Sequential", "activation.ReLU", "pooling.MaxPool2d", "upsampling.Upsample",
          "linear.Identity")  # fmt: skip
NAMES = [f"dall_e.{name}" for name in THEIRS] + [f"torch.nn.modules.{name}" for name in TORCHS]


class Shell:
    """Stands for a class of a pickled module: what is read becomes its attributes."""

    def tensors(self, prefix: str = "") -> dict[str, Tensor]:
        """The parameters in it by name, as a state_dict has them."""
        held = vars(self)
        found = {prefix + name: p.data for name, p in held.get("_parameters", {}).items()}
        for name, inner in held.get("_modules", {}).items():
            if isinstance(inner, Shell):
                found |= inner.tensors(f"{prefix}{name}.")
        return found


def file_of(folder: Path, part: str) -> Path | None:
    """The file of a part in a folder, None without one."""
    files = (folder / f"{part}{ending}" for ending in ENDINGS)
    return next((file for file in files if file.is_file()), None)


def read_part(path: Path) -> dict[str, Tensor]:
    """The state of an encoder or a decoder: a state_dict, or a released pickle."""
    shells = [(Shell, name) for name in NAMES]
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(shells):
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        content = None
        if "dall_e" in str(error):
            fail(f"{path} holds more than the released module does: refused, not loaded")
    except Exception:  # what isn't torch's, or damaged: read_tensors says it
        content = None
    if isinstance(content, Shell):
        return content.tensors()
    content = read_tensors(path) if content is None else content
    return weights_in(content) if isinstance(content, dict) else {}


def network_of(state: dict[str, Tensor], path: Path | str) -> DVAE:
    """The dVAE that has these weights; its sizes are read off them. Weights of something else end
    in one line."""
    kernel = state.get("encoder.blocks.input.w")
    if kernel is None or "decoder.blocks.input.w" not in state:
        fail(f"{path} holds no dVAE: it has no "
             f"{'encoder' if kernel is None else 'decoder'}.blocks.input.w")  # fmt: skip
    groups = {name.split(".")[2] for name in state if name.startswith("encoder.blocks.group_")}
    blocks = {name.split(".")[3] for name in state if name.startswith("encoder.blocks.group_1.")}
    first = state["decoder.blocks.input.w"]
    try:
        with torch.device("meta"):
            model = DVAE(
                num_codes=first.shape[1],
                width=kernel.shape[0],
                num_groups=len(groups),
                num_blocks=len(blocks),
                first_width=first.shape[0],
                channels=kernel.shape[1],
                gain=float(state["gain"]) if "gain" in state else None,
            )
        model.load_state_dict(state, assign=True)
    except (RuntimeError, ValueError, IndexError) as error:
        fail(f"{path} holds no whole dVAE ({str(error).strip().splitlines()[-1].strip()})")
    return model.float()


def read_codes(name: str | Path) -> DVAE:
    """The dVAE that --codes or --weights names.

    It is a run's folder or checkpoint (of a transformer: the dVAE in it), a folder with the
    released encoder.pkl and decoder.pkl, or a file of a state_dict of both.
    """
    path = Path(name).expanduser()
    if not path.exists():
        fail(f"there is no dVAE at {path}: name a run of dvae_small, or a folder that holds "
             "encoder.pkl and decoder.pkl")  # fmt: skip
    if path.is_dir():
        if (path / "last.pt").is_file():
            waited = read_flags(path).get("patience") and (path / "best.pt").is_file()
            path = path / ("best.pt" if waited else "last.pt")
        else:
            files = {part: file_of(path, part) for part in PARTS}
            if missing := [part for part, file in files.items() if not file]:
                fail(f"{path} holds no run (last.pt) and no {missing[0]}.pkl")
            state = {f"{part}.{key}": value for part, file in files.items()
                     for key, value in read_part(file).items()}  # fmt: skip
            return network_of(state, path)
    content = read_tensors(path)
    if not isinstance(content, dict) or "config" not in content:
        return network_of(weights_in(content) if isinstance(content, dict) else {}, path)
    return network_of(weights_of(read_checkpoint(path)), path)


def weights_of(checkpoint: dict) -> dict[str, Tensor]:
    """The dVAE's weights in a checkpoint: those of a transformer's dVAE, or the averaged ones."""
    return checkpoint.get("dvae") or checkpoint["model"] | checkpoint.get("ema", {})
