"""Published weights of T5, from the Hugging Face hub, a folder or a file; or those of a run.

found = read_published("t5-small", dev.say)   # or a folder, a file of weights, a run of train.py
model = found.build()                         # with these weights

Our parameters bear the released names. What files hold beside them: the table of embeddings under
up to three more names, and in the oldest a table of positions that nothing reads.
"""

import argparse
import contextlib
import dataclasses
import io
import json
import re
import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from common import fail
from common.checkpoint import read_tensors, weights_in
from common.data.text import read_tokenizer
from common.device import Device
from common.folder import read_flags
from common.weights import files_of, read_config
from t5.model import MODELS, SIZES, Text2Text, rebuild
from t5.vocabulary import SENTINEL, SPECIAL, facts_of

PUBLISHED = {  # names of the hub: the repository there, and which of our models that is
    "t5-small": ("google-t5/t5-small", "t5_small"),
    "t5-base": ("google-t5/t5-base", "t5_base"),
    "t5-large": ("google-t5/t5-large", "t5_large"),
    "t5-3b": ("google-t5/t5-3b", "t5_3b"),
    "t5-11b": ("google-t5/t5-11b", "t5_11b"),
    "t5-v1_1-small": ("google/t5-v1_1-small", "t5_v1_1_small"),
    "t5-v1_1-base": ("google/t5-v1_1-base", "t5_v1_1_base"),
}
# Prefixes that version 1.0 was trained with (Appendix D), which no file of its names.
PREFIXES = ["summarize", "cola sentence", "sst2 sentence", "mrpc sentence1", "stsb sentence1",
            "qqp question1", "mnli hypothesis", "qnli question", "rte sentence1", "wnli sentence1",
            "cb hypothesis", "copa choice1", "multirc question", "record query", "wic pos", "wsc",
            "question", "translate English to German", "translate English to French",
            "translate English to Romanian"]  # fmt: skip
FILES = ("config.json", "tokenizer.json", "spiece.model")  # beside the weights
TABLES = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")  # the same as `shared`
UNREAD = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
POSITIONS = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
STANDARD = {"layer_norm_epsilon": 1e-6, "is_encoder_decoder": True}  # as all published ones have it
ACTIVATIONS = {"relu": False, "gated-gelu": True}  # and whether they are gated


@dataclasses.dataclass
class Found:
    """Weights under our names, the `network` (as `t5.model.describe` gives it) that they are of,
    and the facts of their vocabulary, or None where there is none."""

    source: str
    network: dict
    state: dict[str, Tensor]
    vocabulary: dict | None = None
    model: str | None = None  # the name it has in MODELS, where that is known
    tasks: dict = dataclasses.field(default_factory=dict)  # that it has learned
    kind: str = "tasks"  # what it has learned: these, or of a text "spans" or "prefix"

    def build(self, dropout: float = 0.0) -> Text2Text:
        """The network with these weights."""
        try:
            model = rebuild(self.network, dropout)
            model.load_state_dict(self.state)
        except (RuntimeError, ValueError, TypeError) as error:
            reason = str(error).strip().splitlines()[-1].strip()
            fail(f"{self.source} doesn't fit the sizes that its config.json gives ({reason})")
        return model


def sizes_of(theirs: Mapping[str, Tensor], config: Mapping, source: str) -> dict:
    """The network that weights are of, by their shapes, and by config.json."""

    def shape(name: str) -> torch.Size:
        if name not in theirs:
            fail(f"{source} holds the weights of no T5: it has no {name}")
        return theirs[name].shape

    if (kind := config.get("model_type", "t5")) != "t5":
        fail(f"{source}: config.json says {kind}, here it is t5")
    if other := next((k for k, v in STANDARD.items() if config.get(k, v) != v), None):
        fail(f"{source}: config.json says {other} is {config[other]}, here it is {STANDARD[other]}")
    block = "encoder.block.0.layer."
    gated = f"{block}1.DenseReluDense.wi_0.weight" in theirs
    if ACTIVATIONS.get(config.get("feed_forward_proj", "gated-gelu" if gated else "relu")) != gated:
        fail(f"{source}: config.json says its feed-forward layers are "
             f"{config['feed_forward_proj']}; here they are {' or '.join(ACTIVATIONS)}, as the "
             "weights are")  # fmt: skip
    vocab_size, d_model = shape("shared.weight")
    num_buckets, num_heads = shape(POSITIONS)
    inner = shape(f"{block}0.SelfAttention.q.weight")[0]
    layers = [{int(m[1]) for m in (re.match(rf"{side}\.block\.(\d+)\.", n) for n in theirs) if m}
              for side in ("encoder", "decoder")]  # fmt: skip
    if len(layers[0]) != len(layers[1]):
        fail(f"{source} has {len(layers[0])} layers in the encoder and {len(layers[1])} in the "
             "decoder; here both have as many")  # fmt: skip
    head = theirs.get("lm_head.weight")
    own = head is not None and not torch.equal(head, theirs["shared.weight"])
    tied = config.get("tie_word_embeddings", not own)
    if tied and own:
        fail(f"{source} has a last layer of its own (lm_head), though its config.json says it is "
             "the table of embeddings")  # fmt: skip
    if not tied and head is None:
        fail(f"{source}: config.json says the last layer is none of embeddings, and the file has "
             "no lm_head.weight")  # fmt: skip
    return dict(
        architecture="encoder-decoder",
        vocab_size=vocab_size,
        d_model=d_model,
        num_layers=len(layers[0]),
        num_heads=num_heads,
        d_kv=inner // num_heads,
        d_ff=shape(f"{block}1.DenseReluDense.wo.weight")[1],
        gated=gated,
        tied=tied,
        num_buckets=num_buckets,
        max_distance=config.get("relative_attention_max_distance", 128),
    )


def ours(theirs: Mapping[str, Tensor], tied: bool, source: str) -> dict[str, Tensor]:
    """The weights of a file without what it holds twice, float32."""
    found = {name: value for name, value in theirs.items() if name != UNREAD}
    for name in TABLES:
        if not found.pop(name, found["shared.weight"]).equal(found["shared.weight"]):
            fail(f"{source} has a table of embeddings of its own, {name}: no released one has")
    if tied:
        found.pop("lm_head.weight", None)
    return {name: value.float() for name, value in found.items()}


def read_published(name: str, say: Callable = print) -> Found:
    """Published weights, or those of a run of train.py (its folder, or a checkpoint), with what is
    known of them. Whatever is missing, damaged or doesn't fit ends in one line."""
    repository, model = PUBLISHED.get(name, (name, None))
    files = files_of(name, FILES, list(dict.fromkeys([name, repository])))
    content = read_tensors(files["weights"])
    config = content.get("config") if isinstance(content, dict) else None
    if isinstance(config, dict) and "flags" in config:
        return from_run(name, content)
    theirs = weights_in(content) if isinstance(content, dict) else {}
    if not theirs:
        fail(f"{files['weights']} holds no weights")
    if not files.get("config.json"):
        say(f"note: no config.json beside {name}: distances from 128 on are taken to be alike")
    network = sizes_of(theirs, read_config(files), name)
    found = Found(name, network, ours(theirs, network["tied"], name), model=model)
    if network["gated"]:
        found.kind = "spans"  # version 1.1 has seen C4 alone
    else:
        found.tasks = {prefix: {"prefix": prefix} for prefix in PREFIXES}
    if text := read_tokenizer_files(files, name):
        found.vocabulary = facts_of(text, network["vocab_size"])
        check_tokenizer(found)
    return found


def check_tokenizer(found: Found) -> None:
    """Ends in one line if the tokenizer knows tokens that the weights don't, or is no T5's."""
    tokens = read_tokenizer(found.vocabulary["tokenizer"]).get_vocab()
    most = max(tokens.values(), default=-1) + 1
    if most > (size := found.network["vocab_size"]):
        fail(f"{found.source}: its tokenizer doesn't fit the weights: it has {most:,} tokens, they "
             f"have {size:,}")  # fmt: skip
    if missing := [t for i, t in enumerate(SPECIAL) if tokens.get(t) != i]:
        fail(f"{found.source}: its tokenizer is of another model than T5: {missing[0]} is not "
             f"token {SPECIAL.index(missing[0])}")  # fmt: skip


# ---------------------------------------------------------------------- tokenizers


def read_tokenizer_files(files: Mapping[str, Path | None], source: str) -> str | None:
    """The tokenizer beside the weights as JSON: tokenizer.json, or spiece.model (the only one that
    version 1.1 has)."""
    from tokenizers import Tokenizer

    try:
        if whole := files.get("tokenizer.json"):
            return Tokenizer.from_file(str(whole)).to_str()
        if model := files.get("spiece.model"):
            return from_sentencepiece(model.read_bytes())
    except Exception as error:  # the library raises nothing narrower
        fail(f"{source}: its tokenizer is damaged ({error})")
    return None


def from_sentencepiece(raw: bytes, sentinels: int = 100) -> str:
    """A model of the library SentencePiece (unigram) as JSON for `tokenizers`, with the sentinels
    that the model lacks. Raises ValueError or IndexError where it is none."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

    pieces, charsmap = [], b""
    for field, value in fields(raw):
        if field == 1:  # a piece: its text, its log-probability
            parts = dict(fields(value))
            pieces.append((parts[1].decode(), struct.unpack("<f", parts.get(2, b"\0\0\0\0"))[0]))
        elif field == 3:  # how a text is normalised
            charsmap = dict(fields(value)).get(2, b"")
    if [piece for piece, _ in pieces[:3]] != SPECIAL:
        raise ValueError("its first pieces are not <pad>, </s>, <unk>")
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=2))
    if charsmap:
        tokenizer.normalizer = normalizers.Precompiled(charsmap)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]
    )
    tokenizer.decoder = decoders.Metaspace()
    names = [f"<extra_id_{number}>" for number in reversed(range(sentinels))]
    if any(SENTINEL.fullmatch(piece) for piece, _ in pieces):
        names = []
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in [*SPECIAL, *names]])
    return tokenizer.to_str()


def fields(raw: bytes) -> Iterator[tuple[int, bytes]]:
    """The fields of a protocol buffer: their numbers, and the bytes of each."""

    def varint(place: int) -> tuple[int, int]:
        value = shift = 0
        while True:
            byte = raw[place]
            value, shift, place = value | (byte & 127) << shift, shift + 7, place + 1
            if byte < 128:
                return value, place

    place = 0
    while place < len(raw):
        key, place = varint(place)
        size = {1: 8, 5: 4}.get(key & 7, 0)
        if key & 7 == 0:
            number, place = varint(place)
            yield key >> 3, number.to_bytes(10, "little")
            continue
        if key & 7 == 2:
            size, place = varint(place)
        elif not size:
            raise ValueError("it is no protocol buffer")
        if place + size > len(raw):
            raise ValueError("it breaks off")
        yield key >> 3, raw[place : place + size]
        place += size


# ---------------------------------------------------------------------- runs


def from_run(name: str, content: dict) -> Found:
    """The weights of a checkpoint of train.py."""
    flags = content["config"]["flags"]
    if flags.get("milestone") != "t5" or flags.get("model") not in MODELS:
        fail(f"{name} is a checkpoint of {flags.get('milestone')}, not of t5/train.py")
    facts = dict(content["dataset"])
    network, tasks = facts.pop("network"), facts.pop("tasks", {})
    facts.pop("longest", None)
    kind = flags.get("objective") or "tasks"
    return Found(name, network, content["model"], facts, flags["model"], tasks, kind)


def nearest_model(sizes: Mapping, gated: bool) -> str:
    """The name in MODELS of a network of these sizes, or of the one that is most like it."""
    rows = {f"t5_{name}": row for name, row in SIZES.items() if ("v1_1" in name) == gated}

    def unlike(name: str) -> tuple[int, int]:
        row = rows[name]
        width = sizes.get("d_model", row["d_model"])
        return sum(sizes.get(k) != v for k, v in row.items()), abs(width - row["d_model"])

    return min(rows, key=unlike)


def model_of(weights: str) -> str | None:
    """The name of our model that weights are for: by the config.json beside them, which is that of
    a run or a published one; or of a file alone, by what it says or the sizes that it has. None
    where it can't be read."""
    if weights in PUBLISHED:
        return PUBLISHED[weights][1]
    path = Path(weights).expanduser()
    folder = path.parent if path.is_file() else path
    if (name := read_flags(folder).get("model")) in MODELS:
        return name
    with contextlib.suppress(OSError, ValueError, AttributeError):
        config = json.loads((folder / "config.json").read_text("utf-8"))
        if config.get("model_type") == "t5":
            return nearest_model(config, "gated" in config.get("feed_forward_proj", ""))
    if path.is_file():
        with contextlib.suppress(SystemExit), contextlib.redirect_stderr(io.StringIO()):
            found = read_published(weights, lambda *_: None)  # what is wrong with it is said later
            return found.model or nearest_model(found.network, found.network["gated"])
    return None


def check_model(found: Found, model: str) -> None:
    """Ends in one line if the weights are of another network than the one that was asked for."""
    gated = found.network["gated"]
    same = found.model == model if found.model else gated == model.startswith("t5_v1_1")
    if not same:
        theirs = found.model or ("version 1.1" if gated else "version 1.0")
        fail(f"--weights {found.source} are {theirs}'s, not {model}'s: leave --model out")


def start(args: argparse.Namespace, dev: Device) -> Found | None:
    """The weights to start from; none where the run goes on with a checkpoint."""
    if not args.weights or args.stored:
        return None
    found = read_published(args.weights, dev.say)
    if found.vocabulary is None:
        fail(f"--weights {args.weights}: there is no tokenizer.json or spiece.model beside the "
             "weights, so no text can be read for them")  # fmt: skip
    if "model" in args.typed:
        check_model(found, args.model)
    return found
