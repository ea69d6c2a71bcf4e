"""Published weights: Stable Diffusion's folders in the layout of the library diffusers, from the
Hugging Face hub or a path.

    found = read_published("CompVis/stable-diffusion-v1-4")    # or a folder
    model = found.build()

Such a folder holds one for each part: vae, unet, text_encoder, tokenizer, scheduler, each with a
config and, where there are any, weights. Settings that this code doesn't have end in one line.
"""

import dataclasses
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from common import fail
from common.checkpoint import read_tensors, weights_in
from common.data.tokens import Tokens, from_vocabulary
from common.weights import fetch, read_config
from latentdiffusion.autoencoder import make_autoencoder
from latentdiffusion.diffusion import LatentDiffusion, assemble

MODEL = [f"diffusion_pytorch_model{kind}" for kind in (".safetensors", ".bin", ".fp16.safetensors")]
TEXT = ["model.safetensors", "pytorch_model.bin", "model.fp16.safetensors"]
WORDS = ["tokenizer.json", "vocab.json", "merges.txt"]
OLD = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}  # of attention
OLD_NAME = re.compile(rf"\b({'|'.join(OLD)})(?=\.(weight|bias)$)")

UNET = {  # settings that have to be so, where config.json says anything of them
    "act_fn": ("silu",),
    "flip_sin_to_cos": (True,),
    "freq_shift": (0,),
    "downsample_padding": (1,),
    "norm_eps": (1e-5,),
    "mid_block_type": ("UNetMidBlock2DCrossAttn",),
    "resnet_time_scale_shift": ("default",),
    "time_embedding_type": ("positional",),
    "conv_in_kernel": (3,),
    "conv_out_kernel": (3,),
    "attention_type": ("default",),
    "mid_block_scale_factor": (1,),
    "resnet_out_scale_factor": (1.0,),
    **dict.fromkeys(
        (
            *("class_embed_type", "addition_embed_type", "num_class_embeds", "encoder_hid_dim"),
            *("time_cond_proj_dim", "cross_attention_norm", "timestep_post_act"),
            *("time_embedding_act_fn", "time_embedding_dim", "encoder_hid_dim_type"),
            *("mid_block_only_cross_attention", "reverse_transformer_layers_per_block"),
        ),
        (None,),
    ),
    **dict.fromkeys(
        (
            *("dual_cross_attention", "only_cross_attention", "center_input_sample"),
            *("class_embeddings_concat", "resnet_skip_time_act"),
        ),
        (False,),
    ),
}
VAE = {
    "act_fn": ("silu",),
    "in_channels": (3,),
    "out_channels": (3,),
    "shift_factor": (None,),
    "latents_mean": (None,),
    "latents_std": (None,),
    "use_quant_conv": (True,),
    "use_post_quant_conv": (True,),
    "mid_block_add_attention": (True,),
    "norm_type": ("group",),
}
TEXT_ENCODER = {"layer_norm_eps": (1e-5,), "hidden_act": ["quick_gelu", "gelu"]}
SCHEDULE = {
    "beta_schedule": ("scaled_linear", "linear"),
    "trained_betas": (None,),
    "rescale_betas_zero_snr": (False,),
    "thresholding": (False,),
    "prediction_type": ("epsilon", "v_prediction"),
}


@dataclasses.dataclass
class Found:
    """The `settings` of a model (see `assemble`), its weights under our names, and the facts of its
    vocabulary (see `Words`); `size` is the side of images it was made for, in pixels."""

    source: str
    settings: dict
    state: dict[str, Tensor]
    words: dict
    size: int

    def build(self) -> LatentDiffusion:
        """The model with these weights."""
        with torch.device("meta"):  # what it begins with isn't needed
            model = assemble(self.settings)
        return fill(model, self.state, self.source)


def fill(model: Any, state: Mapping[str, Tensor], source: str) -> Any:
    """A model that was built without memory, with its weights; else ends in one line."""
    if missing := [key for key in model.state_dict() if key not in state]:
        fail(f"{source} doesn't fit its own settings: it has no {missing[0]}")
    if strange := [key for key in state if key not in model.state_dict()]:
        fail(f"{source} doesn't fit its own settings: it has {strange[0]}")
    for key, value in model.state_dict().items():
        if value.shape != state[key].shape:
            shapes = " and ".join(str(list(t.shape)) for t in (state[key], value))
            fail(f"{source} doesn't fit its own settings: {key} is {shapes}")
    model.load_state_dict(state, assign=True)
    if isinstance(model, LatentDiffusion):  # tables that no file holds
        kept = model.schedule.kept
        model.signal, model.noise = kept.sqrt().float(), (1 - kept).sqrt().float()
    return model.float()


def is_published(name: str) -> bool:
    """Whether a name is of published weights, rather than of a run of train.py."""
    path = Path(name).expanduser()
    if not path.exists():
        return bool(re.fullmatch(r"[\w.-]+/[\w.-]+", name)) and not name.endswith(".pt")
    return path.is_dir() and any((path / part).is_dir() for part in ("unet", "vae"))


class Files:
    """The files of a folder, or of a repository of the hub."""

    def __init__(self, name: str, flag: str = "--weights"):
        self.name, self.flag, self.folder = name, flag, Path(name).expanduser()
        self.reasons: list[str] = []  # why nothing can be downloaded
        if not self.folder.exists() and not is_published(name):
            fail(f"{flag} {name}: there is no such folder")

    def find(self, file: str) -> Path | None:
        """A file, such as unet/config.json, or None."""
        if self.folder.exists():
            path = self.folder / file
            return path if path.is_file() else None
        return fetch([self.name], file, self.reasons)

    def need(self, part: str, names: list[str]) -> Path:
        """The first of the files of a part that is there; ends in one line if none is."""
        for name in names:
            if path := self.find(f"{part}/{name}"):
                return path
        if self.folder.exists():
            fail(f"{self.flag} {self.name}: there is no {part}/{names[0]}; a folder in diffusers' "
                 "layout has vae, unet, text_encoder, tokenizer and scheduler")  # fmt: skip
        reason = (self.reasons or ["it has none"])[0]
        fail(f"{self.flag} {self.name}: there is no such folder, and of the hub's {self.name} no "
             f"{part}/{names[0]} is in the cache or can be downloaded ({reason})")  # fmt: skip

    def config(self, part: str, known: Mapping[str, tuple], file: str = "config.json") -> dict:
        """The settings of a part; ends in one line if one is none of those `known`."""
        path = self.need(part, [file])
        found = read_config({"config.json": path})
        for key, allowed in known.items():
            if found.get(key, allowed[0]) not in allowed:
                wanted = " or ".join(map(str, allowed))
                fail(f"{path} says {key} is {found[key]}: here it can be {wanted}")
        return found

    def weights(self, part: str, names: list[str]) -> dict[str, Tensor]:
        """The weights of a part, in float32, under the names of now."""
        path = self.need(part, names)
        content = read_tensors(path)
        found = weights_in(content) if isinstance(content, dict) else {}
        if not found:
            fail(f"{path} holds no weights")
        return {OLD_NAME.sub(lambda m: OLD[m[1]], key): v.float() for key, v in found.items()}


def settings_of(path: Path | str, make: Callable[[], dict]) -> dict:
    """Settings made of a config; what is missing or of another kind ends in one line."""
    try:
        return make()
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        fail(f"{path} has no usable settings ({type(error).__name__}: {error})")


def as_list(value: Any, count: int) -> list:
    """One number for all resolutions, or one for each."""
    return list(value) if isinstance(value, (list, tuple)) else [value] * count


def unet_settings(config: dict) -> dict:
    """Ours, of the config of a UNet2DConditionModel. Raises ValueError for what isn't here."""
    widths, kinds = list(config["block_out_channels"]), list(config["down_block_types"])
    if strange := set(kinds) - {"DownBlock2D", "CrossAttnDownBlock2D"}:
        raise ValueError(f"blocks of the kind {min(strange)}")
    if [kind.replace("Down", "Up") for kind in kinds[::-1]] != list(config["up_block_types"]):
        raise ValueError("the way up is not that down")
    if not isinstance(layers := config.get("transformer_layers_per_block", 1), int):
        raise ValueError("resolutions with different numbers of Transformer blocks")
    if not isinstance(depth := config.get("layers_per_block", 2), int):
        raise ValueError("resolutions with different numbers of blocks")
    if config["in_channels"] != config["out_channels"]:
        raise ValueError(f"{config['in_channels']} channels in and {config['out_channels']} out: "
                         "it is told more than latents")  # fmt: skip
    heads = config.get("num_attention_heads") or config.get("attention_head_dim", 8)
    return dict(
        channels=config["in_channels"],
        widths=widths,
        attention=[level for level, kind in enumerate(kinds) if kind.startswith("Cross")],
        depth=depth,
        heads=as_list(heads, len(widths)),
        context=int(config["cross_attention_dim"]),
        groups=config.get("norm_num_groups", 32),
        dropout=config.get("dropout", 0.0),
        linear=bool(config.get("use_linear_projection", False)),
        layers=layers,
    )


def autoencoder_settings(config: dict) -> dict:
    """Ours, of the config of an AutoencoderKL or a VQModel. Raises ValueError for what isn't
    here."""
    down, up = list(config["down_block_types"]), list(config["up_block_types"])
    with_attention = [kind.startswith("Attn") for kind in down]
    if strange := {k.removeprefix("Attn") for k in down} - {"DownEncoderBlock2D"}:
        raise ValueError(f"blocks of the kind {min(strange)}")
    if [kind.startswith("Attn") for kind in up[::-1]] != with_attention:
        raise ValueError("the way up is not that down")
    settings = dict(
        kind="vq" if "num_vq_embeddings" in config else "kl",
        latent_channels=config["latent_channels"],
        widths=list(config["block_out_channels"]),
        depth=config.get("layers_per_block", 1),
        groups=config.get("norm_num_groups", 32),
        attention=[level for level, there in enumerate(with_attention) if there],
    )
    if settings["kind"] == "vq":
        settings["num_codes"] = config["num_vq_embeddings"]
        if (config.get("vq_embed_dim") or settings["latent_channels"]) != config["latent_channels"]:
            raise ValueError("a codebook of another width than the latents'")
    return settings


def text_settings(config: dict) -> dict:
    """Ours, of the config of a CLIPTextModel."""
    config = config.get("text_config") or config
    return dict(
        vocab_size=config["vocab_size"],
        context=config["max_position_embeddings"],
        d_model=config["hidden_size"],
        num_layers=config["num_hidden_layers"],
        num_heads=config["num_attention_heads"],
        d_ff=config["intermediate_size"],
        causal=True,
        activation=config.get("hidden_act", "quick_gelu"),
    )


def schedule_settings(config: dict, say: Callable) -> dict:
    """Ours, of the config of a scheduler, of whatever class it is: our samplers take its times."""
    kind = config.get("_class_name", "")
    if config.get("clip_sample") and kind in ("DDIMScheduler", "DDPMScheduler"):
        say("note: its scheduler clips latents to [-1, 1], which isn't done here")
    return dict(
        num_times=config.get("num_train_timesteps", 1000),
        start=config["beta_start"],
        end=config["beta_end"],
        kind=config.get("beta_schedule", "linear"),
        prediction=config.get("prediction_type", "epsilon"),
        spacing=config.get("timestep_spacing", "leading"),
        offset=config.get("steps_offset", 0),
        clean_end=bool(config.get("set_alpha_to_one", kind != "PNDMScheduler")),
    )


def read_words(files: Files, context: int) -> dict:
    """The facts of the vocabulary in a folder; see `Words`."""
    there = {name: files.find(f"tokenizer/{name}") for name in WORDS}
    config = read_config({"config.json": files.find("tokenizer/tokenizer_config.json")})
    special = read_config({"config.json": files.find("tokenizer/special_tokens_map.json")})
    try:
        if there["tokenizer.json"]:
            text = there["tokenizer.json"].read_text("utf-8")
        elif there["vocab.json"] and there["merges.txt"]:
            lines = there["merges.txt"].read_text("utf-8").splitlines()
            pairs = [tuple(line.split()) for line in lines if not line.startswith("#version")]
            vocabulary = json.loads(there["vocab.json"].read_text("utf-8"))
            text = from_vocabulary(vocabulary, filter(None, pairs))
        else:
            files.need("tokenizer", ["vocab.json"])
            files.need("tokenizer", ["merges.txt"])
        tokens = Tokens(text)
    except Exception as error:  # the library raises nothing narrower
        fail(f"{files.name}: its tokenizer is damaged ({error})")
    pad = config.get("pad_token") or special.get("pad_token")
    pad = pad.get("content") if isinstance(pad, dict) else pad
    number = tokens.tokenizer.token_to_id(pad) if pad else None
    number = tokens.end if number is None else number
    context = min(context, config.get("model_max_length") or context)
    return dict(tokenizer=text, context=context, pad=number, size=tokens.size)


def read_published(name: str, say: Callable = print) -> Found:
    """A published model: a folder in diffusers' layout, or a name of the hub.

    Whatever is missing, damaged or doesn't fit ends in one line.
    """
    files = Files(name)
    unet, vae = files.config("unet", UNET), files.config("vae", VAE)
    text = files.config("text_encoder", TEXT_ENCODER)
    schedule = files.config("scheduler", SCHEDULE, "scheduler_config.json")
    settings = dict(
        autoencoder=settings_of(f"{name}/vae/config.json", lambda: autoencoder_settings(vae)),
        unet=settings_of(f"{name}/unet/config.json", lambda: unet_settings(unet)),
        text=settings_of(f"{name}/text_encoder/config.json", lambda: text_settings(text)),
        schedule=settings_of(
            f"{name}/scheduler/scheduler_config.json", lambda: schedule_settings(schedule, say)
        ),
        scale=vae.get("scaling_factor", 0.18215),
    )
    check(settings, name)
    words = read_words(files, settings["text"]["context"])
    if words["size"] > settings["text"]["vocab_size"]:
        fail(f"{name}: its tokenizer has {words['size']:,} tokens, its text encoder "
             f"{settings['text']['vocab_size']:,}")  # fmt: skip
    state = {f"autoencoder.{k}": v for k, v in files.weights("vae", MODEL).items()}
    state |= {f"unet.{k}": v for k, v in files.weights("unet", MODEL).items()}
    for key, value in files.weights("text_encoder", TEXT).items():
        key = key.removeprefix("text_model.")
        if not key.endswith("position_ids") and not key.startswith("text_projection"):
            state[f"text.{key}"] = value
    state["scale"] = torch.tensor(float(settings["scale"]))
    factor = 2 ** (len(settings["autoencoder"]["widths"]) - 1)
    side = unet.get("sample_size") or 64
    size = factor * int(side[0] if isinstance(side, (list, tuple)) else side)
    return Found(name, settings, state, words, size)


def check(settings: dict, name: str) -> None:
    """Ends in one line if the parts don't fit together."""
    unet, text, vae = (settings[part] for part in ("unet", "text", "autoencoder"))
    if unet["context"] != text["d_model"]:
        fail(f"{name}: its U-Net is told {unet['context']} numbers a token, its text encoder makes "
             f"{text['d_model']}")  # fmt: skip
    if unet["channels"] != vae["latent_channels"]:
        fail(f"{name}: its U-Net denoises {unet['channels']} channels, its autoencoder has "
             f"{vae['latent_channels']}")  # fmt: skip


def read_autoencoder(name: str) -> tuple[dict, nn.Module, float]:
    """The autoencoder of a published model, or one published alone: settings, model, and what its
    latents are to be scaled by."""
    files = Files(name, "--autoencoder")
    part = "vae" if files.find("vae/config.json") else "."
    config = files.config(part, VAE)
    settings = settings_of(f"{name}/{part}/config.json", lambda: autoencoder_settings(config))
    with torch.device("meta"):
        model = make_autoencoder(**settings)
    return settings, fill(model, files.weights(part, MODEL), name), config.get("scaling_factor")
