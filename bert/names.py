"""What published weights of the five are called, and how ours are made from them.

    state = renamed(state, family)                     # under our names
    model = build({"family": family, **settings_of(state, config, family)})
    new = load(model, state, family)                   # what stays as it was

Names are the released ones, so most weights are taken as they are. Files differ in what they leave
out (a prefix, the heads), in what they hold twice (a last layer that is the table of words), and
the oldest call a norm's weights gamma and beta.
"""

import re
from collections.abc import Mapping

from torch import Tensor, nn

from bert.albert import ALBERT
from bert.electra import ELECTRA
from bert.layers import Pretrained, Sizes
from bert.original import BERT
from bert.roberta import RoBERTa
from bert.xlnet import XLNet

CLASSES = {kind.family: kind for kind in (BERT, RoBERTa, ALBERT, ELECTRA, XLNet)}

# fmt: off
PUBLISHED = {  # names of the hub: the repository there, and which of our models that is
    "bert-base-uncased":            ("google-bert/bert-base-uncased", "bert_base"),
    "bert-base-cased":              ("google-bert/bert-base-cased", "bert_base"),
    "bert-large-uncased":           ("google-bert/bert-large-uncased", "bert_large"),
    "bert-large-cased":             ("google-bert/bert-large-cased", "bert_large"),
    "bert-mini":                    ("google/bert_uncased_L-4_H-256_A-4", "bert_mini"),
    "bert-tiny":                    ("google/bert_uncased_L-2_H-128_A-2", "bert_tiny"),
    "roberta-base":                 ("FacebookAI/roberta-base", "roberta_base"),
    "roberta-large":                ("FacebookAI/roberta-large", "roberta_large"),
    "albert-base-v2":               ("albert/albert-base-v2", "albert_base"),
    "albert-large-v2":              ("albert/albert-large-v2", "albert_large"),
    "albert-xlarge-v2":             ("albert/albert-xlarge-v2", "albert_xlarge"),
    "albert-xxlarge-v2":            ("albert/albert-xxlarge-v2", "albert_xxlarge"),
    "electra-small-discriminator":  ("google/electra-small-discriminator", "electra_small"),
    "electra-base-discriminator":   ("google/electra-base-discriminator", "electra_base"),
    "electra-large-discriminator":  ("google/electra-large-discriminator", "electra_large"),
    "xlnet-base-cased":             ("xlnet/xlnet-base-cased", "xlnet_base"),
    "xlnet-large-cased":            ("xlnet/xlnet-large-cased", "xlnet_large"),
}
BODY = {"bert": "bert.", "roberta": "roberta.", "albert": "albert.", "electra": "electra.",
        "xlnet": "transformer."}
HEADS = {  # what a file may hold or lack
    "bert":    ("cls.", "classifier.", "bert.pooler."),
    "roberta": ("lm_head.", "classifier.", "roberta.pooler."),
    "albert":  ("predictions.", "sop_classifier.", "classifier.", "albert.pooler."),
    "electra": ("discriminator_predictions.", "generator.", "classifier."),
    "xlnet":   ("lm_loss.", "sequence_summary.", "logits_proj."),
}
TWICE = {  # names of what a file holds a second time, and what that is
    "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
    "cls.predictions.decoder.bias":   "cls.predictions.bias",
    "lm_head.decoder.weight":         "roberta.embeddings.word_embeddings.weight",
    "lm_head.decoder.bias":           "lm_head.bias",
    "predictions.decoder.weight":     "albert.embeddings.word_embeddings.weight",
    "predictions.decoder.bias":       "predictions.bias",
    "generator.generator_lm_head.weight": "generator.electra.embeddings.word_embeddings.weight",
    "lm_loss.weight":                 "transformer.word_embedding.weight",
}
STANDARD = {  # what a config.json may say of a family; another network is refused
    "bert":    {"position_embedding_type": "absolute", "is_decoder": False},
    "roberta": {"position_embedding_type": "absolute", "is_decoder": False},
    "albert":  {"position_embedding_type": "absolute", "inner_group_num": 1},
    "electra": {"position_embedding_type": "absolute", "is_decoder": False},
    "xlnet":   {"attn_type": "bi", "bi_data": False, "clamp_len": -1, "same_length": False,
                "untie_r": True},
}
# fmt: on
GELUS = ("gelu", "gelu_new", "gelu_pytorch_tanh")  # alike to three digits
BUFFERS = re.compile(r"(^|\.)(position_ids|token_type_ids)$")


def family_of(state: Mapping[str, Tensor], config: Mapping) -> str | None:
    """Which of the five weights are of, by config.json or else by their names."""
    if (kind := config.get("model_type")) is not None:
        return kind if kind in CLASSES else None
    marks = {"rel_attn": "xlnet", "albert_layer_groups": "albert", "electra.": "electra",
             "roberta.": "roberta", "encoder.layer.": "bert"}  # fmt: skip
    return next((f for mark, f in marks.items() if any(mark in name for name in state)), None)


def renamed(state: Mapping[str, Tensor], family: str) -> dict[str, Tensor]:
    """The weights of a file under our names; those of a generator of ELECTRA's begin with
    `generator.`. Raises ValueError for a last layer that is not the table of words."""
    body, found = BODY[family], {}
    generator = any(name.startswith("generator_") for name in state)
    bare = not any(name.startswith(body) for name in state)
    for name, value in state.items():
        if BUFFERS.search(name):
            continue
        name = re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", name)
        name = re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", name)
        if bare and not name.startswith(HEADS[family]):
            name = body + name
        found[f"generator.{name}" if generator else name] = value
    for copy, name in TWICE.items():
        if copy in found:
            value = found.pop(copy)
            if not value.equal(found.setdefault(name, value)):
                raise ValueError(f"it has a last layer of its own ({copy})")
    return found


def settings_of(state: Mapping[str, Tensor], config: Mapping, family: str) -> dict:
    """The settings of the network that weights, under our names, are of: by their shapes, and by
    config.json what these don't tell. Raises ValueError with a line where that isn't ours."""
    for key, wanted in STANDARD[family].items():
        if config.get(key, wanted) != wanted:
            raise ValueError(f"config.json says {key} is {config[key]}, here it is {wanted}")
    act = config.get("hidden_act", config.get("ff_activation", "gelu"))
    if act not in GELUS:
        raise ValueError(f"its activation is {act}, here it is the GELU")
    shapes = {name: tuple(value.shape) for name, value in state.items()}

    def shape(name: str) -> tuple[int, ...]:
        if BODY[family] + name not in shapes:
            raise ValueError(f"it is no {family}: it has no {BODY[family]}{name}")
        return shapes[BODY[family] + name]

    layers = {int(m[1]) for m in (re.search(r"\.layer\.(\d+)\.", name) for name in shapes) if m}
    if family == "xlnet":
        vocab_size, d_model = shape("word_embedding.weight")
        heads, d_head = shape("layer.0.rel_attn.q")[1:]
        if heads * d_head != d_model:
            raise ValueError(f"its {heads} heads of {d_head} dimensions aren't {d_model} in all")
        return dict(vocab_size=vocab_size, d_model=d_model, num_layers=len(layers),
                    num_heads=heads, d_ff=shape("layer.0.ff.layer_1.weight")[0],
                    pad=config.get("pad_token_id", 5),
                    eps=config.get("layer_norm_eps", 1e-12))  # fmt: skip
    vocab_size, d_embedding = shape("embeddings.word_embeddings.weight")
    pad = config.get("pad_token_id", int(family == "roberta"))
    found = dict(vocab_size=vocab_size, d_embedding=d_embedding, pad=pad)
    found["context"] = shape("embeddings.position_embeddings.weight")[0]
    found["num_segments"] = shape("embeddings.token_type_embeddings.weight")[0]
    found["eps"] = config.get("layer_norm_eps", 1e-5 if family == "roberta" else 1e-12)
    if family == "albert":
        if "num_hidden_layers" not in config:
            raise ValueError("its config.json is missing, and no weights tell how deep it is")
        layer = "encoder.albert_layer_groups.0.albert_layers.0."
        found["d_ff"], found["d_model"] = shape(layer + "ffn.weight")
        found["num_layers"] = config["num_hidden_layers"]
        found["num_groups"] = config.get("num_hidden_groups", 1)
    else:
        found["d_ff"], found["d_model"] = shape("encoder.layer.0.intermediate.dense.weight")
        found["num_layers"] = len(layers)
    found["num_heads"] = config.get("num_attention_heads", max(1, found["d_model"] // 64))
    if family == "roberta":
        found["context"] -= pad + 1
    if family in ("bert", "albert"):
        found["pairs"] = any(name.startswith(f"{family}.pooler.") for name in shapes)
    if family == "electra":
        found["generator"] = 1 / 3 if found["d_model"] == 768 else 0.25
        if found["num_heads"] < 4:
            found["generator"] = 1 / found["num_heads"]
    return found


def describe(model: Pretrained) -> dict:
    """The network as plain values, which a checkpoint keeps."""
    return {"family": model.family, **model.settings}


def build(network: Mapping, dropout: float | None = None, **settings) -> Pretrained:
    """The network that `describe` describes; `dropout` None is 0.1, and for ALBERT none.

    Of attention's weights it is what the network says, where it does.
    """
    values = {**network, **settings}
    family = values.pop("family")
    if dropout is None:
        dropout = 0.0 if family == "albert" else 0.1
    sizes = {key: values.pop(key) for key in [*values] if key in Sizes.__dataclass_fields__}
    return CLASSES[family](Sizes(**{"dropout": dropout} | sizes), **values)


def load(model: nn.Module, state: Mapping[str, Tensor], family: str) -> list[str]:
    """Loads weights under our names into a model or its classifier, and returns the names of the
    heads that stay new: those that the file lacks, or has for another number of classes.

    Raises ValueError if anything else is missing, strange, or of another shape.
    """
    own, heads = model.state_dict(), HEADS[family]
    if strange := [name for name in state if name not in own and not name.startswith(heads)]:
        raise ValueError(f"it has {strange[0]}, which no {family} has")
    if family == "electra" and any(name.startswith("generator.") for name in state):
        own = {name: own[name] for name in own if name in state or not name.startswith("electra.")}
    if missing := [name for name in own if name not in state and not name.startswith(heads)]:
        raise ValueError(f"it has no {missing[0]}")
    taken = {}
    for name in own:
        if name not in state:
            continue
        if own[name].shape == state[name].shape:
            taken[name] = state[name]
        elif not name.startswith(heads):
            shapes = " and ".join(str(list(s[name].shape)) for s in (state, own))
            raise ValueError(f"its {name} doesn't fit: {shapes}")
    model.load_state_dict(taken, strict=False)
    return sorted({name.rpartition(".")[0] for name in own if name not in taken})
