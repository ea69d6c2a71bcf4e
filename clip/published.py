"""Published weights: OpenAI's CLIPs and others of their form, from the Hugging Face hub, a folder
or a file, with their tokenizer.

found = read_published("openai/clip-vit-base-patch32", dev.say)   # or a folder, a file, a run
model = found.build()                                             # with these weights

Files of transformers and state_dicts of OpenAI's code or open_clip's are taken as they are. What
OpenAI gives for download are TorchScript programs, which aren't run here: save their state_dict().
"""

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path

from PIL import Image
from torch import Tensor

from clip.layers import HEAD
from clip.model import CLIP, MODELS, SIZES
from clip.names import current, is_transformers
from common import fail
from common.checkpoint import read_tensors, weights_in
from common.data.tokens import MERGES, Tokens, from_vocabulary, read_merges
from common.weights import files_of, read_config

PUBLISHED = {  # of the hub, and which of our models that is
    "openai/clip-vit-base-patch32": "clip_vit_b_32",
    "openai/clip-vit-base-patch16": "clip_vit_b_16",
    "openai/clip-vit-large-patch14": "clip_vit_l_14",
    "openai/clip-vit-large-patch14-336": "clip_vit_l_14",
}
FILES = ("config.json", "tokenizer.json", "vocab.json", "merges.txt", "preprocessor_config.json")
INPUTS = {  # of the released networks: mean and std of the pixels they were trained on, and
    "resample": "bicubic",  # how these were scaled
    "mean": [0.48145466, 0.4578275, 0.40821073],
    "std": [0.26862954, 0.26130258, 0.27577711],
}


@dataclasses.dataclass
class Found:
    """Weights under our names, the sizes of the `network` that they are of, its tokenizer as JSON
    (None where there is none), mean and std of its inputs, and how these are scaled."""

    source: str
    network: dict
    state: dict[str, Tensor]
    tokenizer: str | None = None
    inputs: dict = dataclasses.field(default_factory=lambda: dict(INPUTS))

    def build(self) -> CLIP:
        """The network with these weights."""
        try:
            model = CLIP(**self.network)
            model.load_state_dict(self.state)
        except (RuntimeError, ValueError, TypeError) as error:
            reason = str(error).strip().splitlines()[-1].strip()
            fail(f"{self.source} doesn't fit the sizes that its weights seem to have ({reason})")
        return model


def count_blocks(state: dict[str, Tensor], prefix: str) -> int:
    """How many numbers follow a prefix in the names."""
    pattern = re.compile(re.escape(prefix) + r"(\d+)\.")
    return len({match[1] for match in map(pattern.match, state) if match})


def sizes_of(state: dict[str, Tensor], settings: dict, source: str) -> dict:
    """The sizes of a network, from the shapes of its weights under our names; heads, which shapes
    don't tell, have 64 dimensions unless `settings` (config.json) says how many there are."""

    def shape(name: str) -> tuple[int, ...]:
        if name not in state:
            fail(f"{source} is no CLIP: it has no {name}")
        return tuple(state[name].shape)

    (context, width), (vocab_size, _) = (
        shape("positional_embedding"), shape("token_embedding.weight"))  # fmt: skip
    text, vision = settings.get("text_config") or {}, settings.get("vision_config") or {}
    sizes = dict(embed_dim=shape("text_projection")[1], context=context, vocab_size=vocab_size)
    sizes |= dict(text_width=width, text_layers=count_blocks(state, "transformer.resblocks."))
    sizes["text_heads"] = text.get("num_attention_heads") or max(1, width // HEAD)
    kinds = {part.get("hidden_act", "quick_gelu") for part in (text, vision)}
    if len(kinds) > 1 or not kinds <= {"quick_gelu", "gelu"}:
        fail(f"{source}: its activations are {', '.join(sorted(kinds))}; here both encoders have "
             "quick_gelu, or both gelu")  # fmt: skip
    sizes["activation"] = kinds.pop()
    if "visual.proj" in state:
        width, _, patch, _ = shape("visual.conv1.weight")
        side = round((shape("visual.positional_embedding")[0] - 1) ** 0.5)
        layers = count_blocks(state, "visual.transformer.resblocks.")
        heads = vision.get("num_attention_heads") or max(1, width // HEAD)
        sizes |= dict(patch_size=patch, image_size=patch * side)
        return sizes | dict(vision_layers=layers, vision_width=width, vision_heads=heads)
    width = shape("visual.conv3.weight")[0]
    places, channels = shape("visual.attnpool.positional_embedding")
    stages = count_blocks({k.replace("visual.layer", "visual.layer."): 0 for k in state},
                          "visual.layer.")  # fmt: skip
    layers = [count_blocks(state, f"visual.layer{stage + 1}.") for stage in range(stages)]
    shrunk = 4 * 2 ** (stages - 1)
    sizes |= dict(patch_size=None, image_size=shrunk * round((places - 1) ** 0.5))
    return sizes | dict(vision_layers=layers, vision_width=width,
                        vision_heads=max(1, channels // HEAD))  # fmt: skip


def read_tokenizer_files(files: dict[str, Path | None], source: str) -> str | None:
    """The tokenizer beside the weights as JSON: tokenizer.json, vocab.json and merges.txt, or the
    file of merges of OpenAI's code."""
    from tokenizers import Tokenizer

    whole, vocab, merges = (files.get(n) for n in ("tokenizer.json", "vocab.json", "merges.txt"))
    try:
        if whole:
            return Tokenizer.from_file(str(whole)).to_str()
        if vocab and merges:
            lines = merges.read_text("utf-8").splitlines()
            pairs = [tuple(line.split()) for line in lines if not line.startswith("#version")]
            return from_vocabulary(json.loads(vocab.read_text("utf-8")), filter(None, pairs))
    except Exception as error:  # the library raises nothing narrower
        fail(f"{source}: its tokenizer is damaged ({error})")
    return read_merges(files[MERGES]) if files.get(MERGES) else None


def read_inputs(files: dict[str, Path | None]) -> dict:
    """What is known of the inputs (see INPUTS), from preprocessor_config.json, else OpenAI's."""
    settings = read_config({"config.json": files.get("preprocessor_config.json")})
    mean, std = settings.get("image_mean"), settings.get("image_std")
    if not (mean and std):
        return dict(INPUTS)
    bilinear = settings.get("resample") == Image.Resampling.BILINEAR  # that file has PIL's number
    resample = "bilinear" if bilinear else "bicubic"
    return dict(mean=list(mean), std=list(std), resample=resample)


def read_published(name: str, say: Callable = print) -> Found:
    """Published weights, or those of a run of train.py (its folder, or a checkpoint).

    Whatever is missing, damaged or doesn't fit ends in one line.
    """
    files = files_of(name, (*FILES, MERGES))
    content = read_tensors(files["weights"])
    config = content.get("config") if isinstance(content, dict) else None
    if isinstance(config, dict) and "flags" in config:
        return from_run(name, content)
    theirs = weights_in(content) if isinstance(content, dict) else {}
    if not theirs:
        fail(f"{files['weights']} holds no weights")
    if is_transformers(theirs) and not files.get("config.json"):
        say(f"note: no config.json beside {name}: heads are taken to be of {HEAD} dimensions")
    state = {key: value.float() for key, value in current(theirs).items()}
    network = sizes_of(state, read_config(files), name)
    tokenizer = read_tokenizer_files(files, name)
    if tokenizer:
        tokens = Tokens(tokenizer)
        if tokens.size > network["vocab_size"]:
            fail(f"{name}: its tokenizer doesn't fit the weights: it has {tokens.size:,} tokens, "
                 f"they have {network['vocab_size']:,}")  # fmt: skip
        network["end_token"] = tokens.end
    return Found(name, network, state, tokenizer, read_inputs(files))


def from_run(name: str, content: dict) -> Found:
    """The weights of a checkpoint of train.py."""
    flags, facts = content["config"]["flags"], content["dataset"]
    if flags.get("milestone") != "clip" or flags.get("model") not in MODELS:
        fail(f"{name} is a checkpoint of {flags.get('milestone')}, not of clip/train.py")
    if "network" not in facts:
        fail(f"{name} is of predict.py, which has no texts: name one of clip/train.py")
    inputs = {key: facts[key] for key in INPUTS if key in facts}
    return Found(name, facts["network"], content["model"], facts["tokenizer"], inputs)


def model_of(weights: str) -> str:
    """The name of our model that weights are for, as far as it is known without reading them: by
    the config.json beside them, which is that of a run or a published one."""
    path = Path(weights).expanduser()
    config = (path.parent if path.is_file() else path) / "config.json"
    if weights in PUBLISHED or not config.is_file():
        return PUBLISHED.get(weights, "clip_vit_b_32")
    try:
        content = dict(json.loads(config.read_text("utf-8")))
        vision = content.get("vision_config") or {}
        kind = vision.get("patch_size", 32), vision.get("hidden_size", 768)
        name = content["flags"]["model"] if "flags" in content else {
            (sizes["patch_size"], sizes["vision_width"]): name for name, sizes in SIZES.items()
        }.get(kind)  # fmt: skip
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        name = None
    return name if name in MODELS else "clip_vit_b_32"
