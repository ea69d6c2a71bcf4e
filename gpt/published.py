"""Published weights: GPT-1's, GPT-2's and GPT-Neo's, from the Hugging Face hub, a folder or a file.

found = read_published("gpt2", dev.say)   # or a folder, a file of weights, a run of train.py
model = found.build()                     # with these weights

`transformers` and the released files store the matrices of most linear layers the other way round
(its Conv1D), and GPT-Neo has a matrix each for queries, keys and values. NAMES has it all.
"""

import contextlib
import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from common import fail
from common.checkpoint import read_tensors, weights_in
from common.weights import files_of, read_config
from gpt.model import GPT1, GPT2, MODELS, LanguageModel

PUBLISHED = {  # of the hub, and which of our models that is
    "openai-gpt": "gpt1",
    "gpt2": "gpt2",
    "gpt2-medium": "gpt2_medium",
    "gpt2-large": "gpt2_large",
    "gpt2-xl": "gpt2_xl",
}
OWNER = "openai-community"  # has them on the hub, where their names alone are old spellings
FILES = ("config.json", "tokenizer.json", "vocab.json", "merges.txt")  # beside the weights
KINDS = {"openai-gpt": "gpt1", "gpt2": "gpt2", "gpt_neo": "gpt_neo"}  # model_type in config.json

# fmt: off
NAMES = [  # ours, GPT-1's, GPT-2's, GPT-Neo's: "=" is the same, "T" the same on its side; N a layer
    ("wte.weight",             "tokens_embed.weight",    "=", "="),
    ("wpe.weight",             "positions_embed.weight", "=", "="),
    ("h.N.ln_1.weight",        "=",                      "=", "="),
    ("h.N.ln_1.bias",          "=",                      "=", "="),
    ("h.N.attn.c_attn.weight", "T",                      "T", "h.N.attn.attention.{}_proj.weight"),
    ("h.N.attn.c_attn.bias",   "=",                      "=", None),
    ("h.N.attn.c_proj.weight", "T",                      "T", "h.N.attn.attention.out_proj.weight"),
    ("h.N.attn.c_proj.bias",   "=",                      "=", "h.N.attn.attention.out_proj.bias"),
    ("h.N.ln_2.weight",        "=",                      "=", "="),
    ("h.N.ln_2.bias",          "=",                      "=", "="),
    ("h.N.mlp.c_fc.weight",    "T",                      "T", "="),
    ("h.N.mlp.c_fc.bias",      "=",                      "=", "="),
    ("h.N.mlp.c_proj.weight",  "T",                      "T", "="),
    ("h.N.mlp.c_proj.bias",    "=",                      "=", "="),
    ("ln_f.weight",            None,                     "=", "="),
    ("ln_f.bias",              None,                     "=", "="),
]
# fmt: on
STANDARD = {  # what config.json may say, as all published ones do
    "layer_norm_epsilon": 1e-5,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
}
IGNORED = re.compile(r"(h\.\d+\.attn\.(attention\.)?(masked_)?bias|lm_head\.weight|position_ids)$")


def build(network: dict, dropout: float = 0.0) -> LanguageModel:
    """The network that `describe` describes."""
    settings = dict(network)
    make = GPT1 if settings.pop("family") == "gpt1" else GPT2
    if make is GPT1:
        settings = {k: v for k, v in settings.items() if k not in ("windows", "d_head")}
    else:
        settings["windows"] = tuple(settings.get("windows") or [None])
    return make(**settings, dropout=dropout)


def describe(model: LanguageModel, family: str) -> dict:
    """The sizes of a network as plain values, which a checkpoint keeps."""
    first = model.h[0].attn
    return dict(
        family=family,
        vocab_size=model.wte.num_embeddings,
        context=model.context,
        d_model=model.wte.embedding_dim,
        num_layers=len(model.h),
        num_heads=first.num_heads,
        d_head=first.c_proj.in_features // first.num_heads,
        windows=[block.attn.window for block in model.h],
    )


@dataclasses.dataclass
class Found:
    """Weights under our names, the `network` (as `describe` gives it) that they are of, and the
    facts of their vocabulary, as `common.data.corpora` has them, or None where there is none."""

    source: str
    network: dict
    state: dict[str, Tensor]
    vocabulary: dict | None = None
    model: str | None = None  # the name it has in MODELS, where that is known

    def build(self, dropout: float = 0.0) -> LanguageModel:
        """The network with these weights."""
        try:
            model = build(self.network, dropout)
            model.load_state_dict(self.state)
        except (RuntimeError, ValueError, TypeError) as error:
            reason = str(error).strip().splitlines()[-1].strip()
            fail(f"{self.source} doesn't fit the sizes that its config.json gives ({reason})")
        return model


def ours(theirs: dict[str, Tensor], family: str, d_head: int, source: str) -> dict[str, Tensor]:
    """The weights of a file under our names, as our layers hold them."""
    place = 1 + ["gpt1", "gpt2", "gpt_neo"].index(family)
    theirs = {name.removeprefix("transformer."): value for name, value in theirs.items()}
    left = {name for name in theirs if not IGNORED.search(name)}
    head = theirs.get("lm_head.weight")
    layers = 1 + max((int(m[1]) for m in (re.match(r"h\.(\d+)\.", n) for n in theirs) if m),
                     default=-1)  # fmt: skip

    def take(name: str) -> Tensor:
        if name not in theirs:
            fail(f"{source} is no {family}: it has no {name}")
        left.discard(name)
        return theirs[name].float()

    width = theirs.get("h.0.mlp.c_fc.weight", torch.empty(0)).shape[0]
    as_ours = width == 4 * theirs.get("h.0.ln_1.weight", torch.empty(1)).shape[0]
    found = {}
    for row in NAMES:
        for layer in range(layers) if "N" in row[0] else [0]:
            name, other = (n and n.replace("N", str(layer)) for n in (row[0], row[place]))
            if other is None and "c_attn" in name:  # GPT-Neo has no biases there
                found[name] = torch.zeros(len(found[name.replace("bias", "weight")]))
            elif other == "T":  # but in a state_dict of ours
                found[name] = take(name) if as_ours else take(name).T.contiguous()
            elif other and "{}" in other:  # its scores aren't divided by the root of d, ours are
                query, key, value = (take(other.format(part)) for part in "qkv")
                found[name] = torch.cat([query * d_head**0.5, key, value])
            elif other:
                found[name] = take(name if other == "=" else other)
    if left:
        fail(f"{source} is of another network than {family}: it has {min(left)}")
    if head is not None and not torch.equal(head.float(), found["wte.weight"]):
        fail(f"{source} has a last layer of its own (lm_head), which is not that of {family}")
    return found


def sizes_of(config: dict, theirs: dict[str, Tensor], source: str) -> tuple[str, dict]:
    """The family and our settings, by config.json; without one by the shapes of the weights."""
    names = {name.removeprefix("transformer.") for name in theirs}
    bare = {name.removeprefix("transformer."): value for name, value in theirs.items()}
    family = next((f for f, word in (("gpt1", "tokens_embed"), ("gpt_neo", "attn.attention"),
                   ("gpt2", "wte")) if any(word in name for name in names)), None)  # fmt: skip
    if not family:
        fail(f"{source} holds the weights of no GPT: none is called wte or tokens_embed")
    if (kind := config.get("model_type")) and KINDS.get(kind) != family:
        fail(f"{source}: config.json says {kind}, the weights are {family}'s")
    tokens, places = (bare.get(n) for n in (("tokens_embed.weight", "positions_embed.weight")
                      if family == "gpt1" else ("wte.weight", "wpe.weight")))  # fmt: skip
    if tokens is None or places is None:
        fail(f"{source} is no {family}: it lacks the embedding of tokens or of positions")
    layers = {int(m[1]) for m in (re.match(r"h\.(\d+)\.", name) for name in names) if m}
    heads = config.get("n_head", config.get("num_heads", max(1, tokens.shape[1] // 64)))
    sizes = dict(vocab_size=len(tokens), context=len(places), d_model=tokens.shape[1])
    sizes |= dict(num_layers=len(layers), num_heads=heads)
    if family == "gpt_neo":
        window = config.get("window_size", 256)
        layers = config.get("attention_layers") or [
            kind for kinds, times in config.get("attention_types", [[["global", "local"], 1]])
            for kind in kinds * times]  # fmt: skip
        sizes["windows"] = [window if kind == "local" else None for kind in layers]
    wanted = {"gpt1": "gelu", "gpt2": "gelu_new", "gpt_neo": "gelu_new"}[family]
    act = config.get("afn", config.get("activation_function", wanted))
    if act not in (wanted, "gelu_new", "gelu_pytorch_tanh"):
        fail(f"{source}: its activation is {act}, that of the GPTs here is {wanted}")
    if other := next((k for k, v in STANDARD.items() if config.get(k, v) != v), None):
        fail(f"{source}: config.json says {other} is {config[other]}, here it is {STANDARD[other]}")
    return family, sizes


def read_tokenizer_files(files: dict[str, Path | None], source: str) -> str | None:
    """The tokenizer beside the weights as JSON: tokenizer.json, or vocab.json and merges.txt."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    whole, vocab, merges = (files.get(n) for n in ("tokenizer.json", "vocab.json", "merges.txt"))
    try:
        if whole:
            return Tokenizer.from_file(str(whole)).to_str()
        if not (vocab and merges):
            return None
        settings = {}
        if '</w>"' in vocab.read_text("utf-8"):  # GPT-1's: pieces that end a word are marked
            settings = dict(end_of_word_suffix="</w>", unk_token="<unk>")
        tokenizer = Tokenizer(models.BPE.from_file(str(vocab), str(merges), **settings))
    except Exception as error:  # the library raises nothing narrower
        fail(f"{source}: its tokenizer is damaged ({error})")
    if settings:
        tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        tokenizer.decoder = decoders.BPEDecoder(suffix="</w>")
        return tokenizer.to_str()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if tokenizer.token_to_id("<|endoftext|>") is not None:
        tokenizer.add_special_tokens(["<|endoftext|>"])
    return tokenizer.to_str()


def read_published(name: str, say: Callable = print) -> Found:
    """Published weights, or those of a run of train.py (its folder, or a checkpoint), with what is
    known of them.

    Whatever is missing, damaged or doesn't fit ends in one line.
    """
    files = files_of(name, FILES, [name, *([f"{OWNER}/{name}"] if name in PUBLISHED else [])])
    content = read_tensors(files["weights"])
    config = content.get("config") if isinstance(content, dict) else None
    if isinstance(config, dict) and "flags" in config:
        return from_run(name, content)
    theirs = weights_in(content) if isinstance(content, dict) else {}
    if not theirs:
        fail(f"{files['weights']} holds no weights")
    settings = read_config(files)
    if not files.get("config.json"):
        say(f"note: no config.json beside {name}: heads are taken to be of 64 dimensions")
    family, sizes = sizes_of(settings, theirs, name)
    if sizes["d_model"] % sizes["num_heads"]:
        fail(f"{name}: {sizes['num_heads']} heads can't share {sizes['d_model']} dimensions")
    d_head = sizes["d_model"] // sizes["num_heads"]
    found = Found(name, {"family": family, **sizes}, ours(theirs, family, d_head, name))
    if text := read_tokenizer_files(files, name):
        size = sizes["vocab_size"]
        found.vocabulary = {"tokenizer": text, "vocab_size": size, "published": True}
        check_tokenizer(found)
    return found


def check_tokenizer(found: Found) -> None:
    """Ends in one line if the tokenizer knows tokens that the weights don't."""
    from common.data.text import read_tokenizer

    most = max(read_tokenizer(found.vocabulary["tokenizer"]).get_vocab().values(), default=-1) + 1
    if most > (size := found.vocabulary["vocab_size"]):
        fail(f"{found.source}: its tokenizer doesn't fit the weights: it has {most:,} tokens, they "
             f"have {size:,}")  # fmt: skip


def check_model(found: Found, model: str) -> None:
    """Ends in one line if the weights are of another network than the one that was asked for."""
    known = PUBLISHED.get(found.source, found.model)
    theirs = known or found.network["family"]
    if theirs != model if known else (model == "gpt1") != (theirs == "gpt1"):
        fail(f"--weights {found.source} are {theirs}'s, not {model}'s: leave --model out")


def from_run(name: str, content: dict) -> Found:
    """The weights of a checkpoint of train.py."""
    flags = content["config"]["flags"]
    if flags.get("milestone") != "gpt" or flags.get("model") not in MODELS:
        fail(f"{name} is a checkpoint of {flags.get('milestone')}, not of gpt/train.py")
    facts = dict(content["dataset"])
    if "classes" in facts:
        fail(f"{name} is of finetune.py, a classifier: name one of gpt/train.py")
    return Found(name, facts.pop("network"), content["model"], facts, flags["model"])


def model_of(weights: str) -> str:
    """The name of our model that weights are for, as far as that is known without reading them:
    by the config.json beside them, which is that of a run or a published one."""
    kind, path = PUBLISHED.get(weights), Path(weights).expanduser()
    config = (path.parent if path.is_file() else path) / "config.json"
    if not kind and config.is_file():
        with contextlib.suppress(OSError, ValueError, AttributeError):
            content = json.loads(config.read_text("utf-8"))
            name = content.get("flags", {}).get("model")
            kind = name if name in MODELS else KINDS.get(content.get("model_type"))
    return {None: "gpt2", "gpt_neo": "gpt3_small"}.get(kind, kind)
