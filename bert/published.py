"""Weights to start from: published ones of the hub, a folder or a file, or a run of train.py.

found = read_weights("bert-base-uncased", dev.say)     # or a folder, a file, a run
model = found.build()                                  # the network of pre-training
new = found.load(model.classifier(2))                  # the layers that the weights don't have

What parameters are called in published files stands in names.py; here stand the files.
"""

import contextlib
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from bert import names
from bert.data import KINDS
from bert.model import FAMILIES, MODELS, Pretrained
from common import fail
from common.checkpoint import read_tensors, weights_in
from common.folder import find_run, read_flags
from common.weights import files_of, read_config

FILES = (
    "config.json",
    "tokenizer.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "tokenizer_config.json",
)  # beside them
LEAST = 8  # tokens that an example has, for a pair of texts and the special tokens


@dataclasses.dataclass
class Found:
    """Weights under our names, the `network` that they are of (as `names.describe` gives it), and
    the facts of their vocabulary, or None where there is none."""

    source: str
    network: dict
    state: dict[str, Tensor]
    vocabulary: dict | None = None
    model: str | None = None  # the name it has in MODELS, where that is known

    @property
    def family(self) -> str:
        """Which of the five."""
        return self.network["family"]

    def build(self, dropout: float | None = None) -> Pretrained:
        """The network of pre-training, with new weights."""
        try:
            return names.build(self.network, dropout)
        except (ValueError, TypeError) as error:
            fail(f"{self.source} is no network of ours ({error})")

    def load(self, model: nn.Module) -> list[str]:
        """Gives a network these weights; returns the names of layers that they don't have."""
        try:
            return names.load(model, self.state, self.family)
        except ValueError as error:
            fail(f"{self.source} doesn't fit {self.family}: {error}")


def read_weights(name: str, say: Callable = print) -> Found:
    """Published weights, or those of a run of train.py (its folder, or a checkpoint).

    Whatever is missing, damaged or doesn't fit ends in one line.
    """
    repository, model = names.PUBLISHED.get(name, (name, None))
    files = files_of(name, FILES, [repository])
    content = read_tensors(files["weights"])
    config = content.get("config") if isinstance(content, dict) else None
    if isinstance(config, dict) and "flags" in config:
        return from_run(name, content)
    theirs = weights_in(content) if isinstance(content, dict) else {}
    if not theirs:
        fail(f"{files['weights']} holds no weights")
    settings = read_config(files)
    family = names.family_of(theirs, settings)
    if not family:
        kind = settings.get("model_type", "its names are of none")
        fail(f"--weights {name} is of none of {', '.join(FAMILIES)} ({kind})")
    if not settings:
        say(f"note: no config.json beside {name}: heads are taken to be of 64 dimensions")
    try:
        state = names.renamed(theirs, family)
        network = {"family": family, **names.settings_of(state, settings, family)}
        network = names.describe(names.build(network))  # with the settings that are as usual
    except ValueError as error:
        fail(f"--weights {name}: {error}")
    if (context := network.get("context") or LEAST) < LEAST:
        fail(f"--weights {name} is of a network that sees {context} tokens at once: take one that "
             f"sees {LEAST} or more")  # fmt: skip
    found = Found(name, network, state, model=model)
    if text := read_tokenizer_files(files, family, name):
        size = network["vocab_size"]
        found.vocabulary = dict(tokenizer=text, vocab_size=size, family=family, published=True)
        check_tokenizer(found)
    return found


def read_tokenizer_files(files: dict[str, Path | None], family: str, source: str) -> str | None:
    """The tokenizer beside the weights as JSON: tokenizer.json; else vocab.txt (WordPiece), or
    vocab.json and merges.txt (RoBERTa's)."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    whole, lines, vocab, merges, settings = (files.get(name) for name in FILES[1:])
    roles = FAMILIES[family].roles
    try:
        if whole:
            return Tokenizer.from_file(str(whole)).to_str()
        if lines and KINDS[family] == "WordPiece":
            # At this mark alone: splitlines would part lines at pieces such as \u2028, too.
            pieces = lines.read_text("utf-8").removesuffix("\n").split("\n")
            tokenizer = Tokenizer(models.WordPiece(
                {piece: i for i, piece in enumerate(pieces)}, unk_token=roles["unk"]))  # fmt: skip
            capitals = any("A" <= piece[:1] <= "Z" for piece in pieces)  # others stay in all
            known = json.loads(settings.read_text("utf-8")) if settings else {}
            lowercase = bool(known.get("do_lower_case", not capitals))
            tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
            tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
            tokenizer.decoder = decoders.WordPiece()
        elif vocab and merges and family == "roberta":
            tokenizer = Tokenizer(models.BPE.from_file(str(vocab), str(merges)))
            tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
            tokenizer.decoder = decoders.ByteLevel()
        else:
            return None
    except Exception as error:  # the library raises nothing narrower
        fail(f"{source}: its tokenizer is damaged ({error})")
    there = [name for name in roles.values() if tokenizer.token_to_id(name) is not None]
    tokenizer.add_special_tokens(there)
    return tokenizer.to_str()


def check_tokenizer(found: Found) -> None:
    """Ends in one line if the tokenizer is another model's, or has more tokens than the weights."""
    from common.data.text import read_tokenizer

    tokenizer = read_tokenizer(found.vocabulary["tokenizer"])
    most = max(tokenizer.get_vocab().values(), default=-1) + 1
    if most > (size := found.vocabulary["vocab_size"]):
        fail(f"{found.source}: its tokenizer doesn't fit the weights: it has {most:,} tokens, they "
             f"have {size:,}")  # fmt: skip
    roles = FAMILIES[found.family].roles
    if missing := [name for name in roles.values() if tokenizer.token_to_id(name) is None]:
        fail(f"{found.source}: its tokenizer is of another model than {found.family}: it has no "
             f"{missing[0]}")  # fmt: skip
    if (place := tokenizer.token_to_id(roles["pad"])) != found.network["pad"]:
        fail(f"{found.source}: its tokenizer is of another model: its {roles['pad']} is token "
             f"{place}, that of the weights {found.network['pad']}")  # fmt: skip


def from_run(name: str, content: dict) -> Found:
    """The weights of a checkpoint of train.py."""
    flags = content["config"]["flags"]
    if flags.get("milestone") != "bert" or flags.get("model") not in MODELS:
        fail(f"{name} is a checkpoint of {flags.get('milestone')}, not of bert/train.py")
    facts = dict(content["dataset"])
    if "metrics" in facts:
        fail(f"{name} is of finetune.py: name a run of bert/train.py")
    return Found(name, facts.pop("network"), content["model"], facts, flags["model"])


def newest_run() -> Path | None:
    """The newest run of train.py below runs/bert, or None."""
    return find_run("bert", ["last.pt"], "train.py")


def model_of(weights: str) -> str | None:
    """The name of our model that weights are for, as far as that is known without reading them:
    by the config.json beside them, which is that of a run or a published one."""
    if weights in names.PUBLISHED:
        return names.PUBLISHED[weights][1]
    path = Path(weights).expanduser()
    folder = path.parent if path.is_file() else path
    if (name := read_flags(folder).get("model")) in MODELS:
        return name
    with contextlib.suppress(OSError, ValueError, AttributeError):
        kind = json.loads((folder / "config.json").read_text("utf-8")).get("model_type")
        return {"electra": "electra_small"}.get(kind, f"{kind}_base" if kind in FAMILIES else None)
    return None


def check_model(found: Found, model: str) -> None:
    """Ends in one line if the weights are of another network than the one that was asked for: of
    another name, or where they have none of another family or other sizes."""
    theirs = found.model or found.family
    same = theirs == model if found.model else model.partition("_")[0] == theirs
    if same and not found.model:
        with torch.device("meta"):
            asked = MODELS[model](found.network["vocab_size"]).settings
        sizes = ("d_model", "num_layers", "num_heads", "d_ff")
        if other := [name for name in sizes if asked[name] != found.network[name]]:
            same, theirs = False, f"a network of {other[0]} {found.network[other[0]]}"
    if not same:
        whose = theirs if theirs.startswith("a network") else f"{theirs}'s"
        fail(f"--weights {found.source} are {whose}, not {model}'s: leave --model out")
