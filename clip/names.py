"""What CLIP's parameters are called in transformers, and here, which is as OpenAI calls them.

transformers has a matrix each for queries, keys and values, which are one here, and both last
projections the other way round.
"""

import re

import torch
from torch import Tensor

NAMES = {  # of transformers: ours; T is the same on its side
    "logit_scale": "logit_scale",
    "text_projection.weight": "text_projection T",
    "visual_projection.weight": "visual.proj T",
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.final_layer_norm.weight": "ln_final.weight",
    "text_model.final_layer_norm.bias": "ln_final.bias",
    "vision_model.embeddings.class_embedding": "visual.class_embedding",
    "vision_model.embeddings.patch_embedding.weight": "visual.conv1.weight",
    "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
    "vision_model.pre_layrnorm.weight": "visual.ln_pre.weight",  # so it is spelt there
    "vision_model.pre_layrnorm.bias": "visual.ln_pre.bias",
    "vision_model.post_layernorm.weight": "visual.ln_post.weight",
    "vision_model.post_layernorm.bias": "visual.ln_post.bias",
}
TOWERS = {"text_model": "transformer", "vision_model": "visual.transformer"}
INSIDE = {  # of a block
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}
LAYER = re.compile(r"(text_model|vision_model)\.encoder\.layers\.(\d+)\.(.+)\.(weight|bias)")
BUFFERS = ("input_resolution", "context_length", "vocab_size", "attn_mask")  # of OpenAI's files


def is_transformers(state: dict[str, Tensor]) -> bool:
    """Whether weights bear transformers' names."""
    return any(key.startswith(tuple(TOWERS)) for key in state)


def current(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights under our names, from transformers' or OpenAI's; other names stay as they are."""
    if not is_transformers(state):
        return {key: value for key, value in state.items() if key not in BUFFERS}
    found: dict[str, Tensor] = {}
    thirds: dict[str, dict[str, Tensor]] = {}
    for key, value in state.items():
        if key.endswith("position_ids"):
            continue
        if match := LAYER.fullmatch(key):
            tower, number, layer, kind = match.groups()
            block = f"{TOWERS[tower]}.resblocks.{number}"
            if layer in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"):
                thirds.setdefault(f"{block}.attn.in_proj_{kind}", {})[layer[-6]] = value
            else:
                found[f"{block}.{INSIDE.get(layer, layer)}.{kind}"] = value
        else:
            name, _, turned = NAMES.get(key, key).partition(" ")
            found[name] = value.T.contiguous() if turned else value
    for name, parts in thirds.items():
        if parts.keys() == set("qkv"):  # else it will be missed
            found[name] = torch.cat([parts[part] for part in "qkv"])
    return found
