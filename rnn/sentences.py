"""Sentences with a class each: names, film reviews, news, text messages, the user's own.

train, val, test = load(args, dev)
for tokens, lengths, classes in run.progress(train.batches(args.batch_size, train=True)): ...

Sentences are words, or characters, of a vocabulary that the library `tokenizers` makes of the
training set; it travels in the checkpoint. All is read in lower case.
"""

import argparse
import sys
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from common import cli, counted, fail
from common.data.classes import check_classes, known_classes
from common.data.sentences import SETS as SENTENCES
from common.data.sources import named, open_source, say_parts
from common.data.text import as_typed, read_tokenizer
from common.device import Device
from common.run import progress_bar
from rnn.batches import Sequences

__all__ = ["FIXED", "PAD", "SETS", "UNKNOWN", "add_flags", "encode", "load"]

PYDOCS = "pydocs, which needs no files"  # what to take where files are missing
SETS = {name: partial(read, instead=PYDOCS) for name, read in SENTENCES.items()}
SPECIAL = ["<pad>", "<unk>"]
PAD, UNKNOWN = range(2)
# A word; the ends of contractions ("did n't") are words of their own, as in the Penn Treebank.
WORD = r"\w+(?=n't)|n't|'\w+|\w+|[^\w\s]"
RARE = 2  # a word that stands in training less often is <unk>, which is learned so
CHUNK = 10_000  # sentences read at a time
FIXED = ["units", "vocab_size", "max_length"]  # by a checkpoint


def add_flags(parser: cli.Parser) -> None:
    """The flags of `load` but --vocab-size (at least 3), which language models share."""
    add, size = parser.add_argument, dict(type=cli.integer(1), metavar="N", group="data")
    text = "what sentences are read as"
    add("--units", choices=["words", "characters"], default="words", group="data", help=text)
    text = "words (or characters) of a sentence; what is more is cut off"
    add("--max-length", **size, default=400, help=text)
    column = dict(metavar="COLUMN", group="data", none="found by its name")
    add("--text-column", **column, help="of a table: its name, or its number from 1")
    add("--label-column", **column, help="the same, of the classes")


def train_vocabulary(texts: Sequence[str], units: str, vocab_size: int) -> str:
    """The most frequent words or characters, at most `vocab_size` with `SPECIAL`: as JSON."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.WordLevel(unk_token=SPECIAL[UNKNOWN]))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace("\u2019", "'"), normalizers.Lowercase()]
    )
    pattern = Regex(WORD if units == "words" else r"[\s\S]")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(pattern, behavior="removed", invert=True)
    often = RARE if units == "words" else 1
    most = min(vocab_size, len(SPECIAL) + sum(map(len, texts)))
    trainer = trainers.WordLevelTrainer(
        vocab_size=most, min_frequency=often, special_tokens=SPECIAL, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer.to_str()


def tokenise(texts: Sequence[str], facts: dict) -> tuple[list[Tensor], list[list[str]], int]:
    """Tokens (T,) of each text, the words as they stand there, and how many were cut short.

    T is 1 to `facts["max_length"]`; a text without words is one <unk>.
    """
    tokenizer, most = read_tokenizer(facts["tokenizer"]), facts["max_length"]
    tokenizer.encode_special_tokens = True  # "<pad>" in a text is text
    encoded = tokenizer.encode_batch(list(texts))
    tokens = [torch.tensor(piece.ids[:most] or [UNKNOWN]) for piece in encoded]
    words = [
        [text[begin:end] for begin, end in piece.offsets[:most]] or [text]
        for text, piece in zip(texts, encoded, strict=True)
    ]
    return tokens, words, sum(len(piece.ids) > most for piece in encoded)


def encode(texts: Sequence[str], facts: dict) -> tuple[Tensor, Tensor, list[list[str]]]:
    """One's own sentences for a network of these `facts`: tokens (B, T), padded at the end,
    lengths (B,), and the words of each. An empty or a garbled one ends in one line."""
    clean = as_typed(texts)
    if "" in clean:
        fail(f"sentence {clean.index('') + 1} is empty: there is nothing to tell of it")
    tokens, words, _ = tokenise(clean, facts)
    lengths = torch.tensor(list(map(len, tokens)))
    return pad_sequence(tokens, batch_first=True, padding_value=PAD), lengths, words


def remarks(texts: Sequence[str], facts: dict) -> list[str]:
    """What a network of these `facts` doesn't see of one's own sentences."""
    most, found = facts["max_length"], []
    tokens, words, _ = tokenise(texts, facts | {"max_length": sys.maxsize})
    for number, (some, seen) in enumerate(zip(tokens, words, strict=True), 1):
        here = zip(seen[:most], some.tolist(), strict=False)
        if strange := list(dict.fromkeys(word for word, token in here if token == UNKNOWN)):
            shown = ", ".join(strange[:8]) + (", …" if len(strange) > 8 else "")
            found.append(f"sentence {number}: not in the vocabulary: {shown}")
        if len(some) > most:
            found.append(f"sentence {number}: cut at {most} of {len(some):,} {facts['units']}")
    return found


def load(args: argparse.Namespace, dev: Device) -> tuple[Sequences, Sequences | None, Sequences]:
    """The training, validation (None without --val) and test set of `--data`.

    The vocabulary is that of the training set, or of the checkpoint that the run goes on with.
    A sentence of the training set is in no validation set that was cut from it.
    """
    source = open_source(args, dev, SETS)
    known, parts, notes = args.stored.get("dataset", {}), source.parts, [source.note]
    check_classes(args.data, source.classes, known_classes(args))
    if "val" in parts and args.data != "sst2":
        seen = {text.lower() for text in parts["train"].texts}
        new = [i for i, text in enumerate(parts["val"].texts) if text.lower() not in seen]
        if len(new) < len(parts["val"]) and len(new) >= dev.world:
            gone = counted(len(parts["val"]) - len(new), "sentence")
            notes.append(f"{gone} that training holds, too, left out of validation")
            parts["val"] = parts["val"].take(torch.tensor(new))
    facts = {"task": "sentences", "classes": source.classes, "units": args.units}
    facts["max_length"] = args.max_length
    if "tokenizer" in known:
        facts |= {name: known[name] for name in ("tokenizer", "units", "max_length")}
    else:
        text = train_vocabulary(parts["train"].texts, args.units, args.vocab_size)
        facts["tokenizer"] = dev.gather(text)[0]
    sets, cut, unknown = {}, 0, 0.0
    for part, content in parts.items():
        tokens, more = [], 0
        chunks = range(0, len(content), CHUNK)
        for begin in progress_bar(chunks, dev, "reading sentences", len(chunks)):
            some, _, short = tokenise(content.texts[begin : begin + CHUNK], facts)
            tokens, more = tokens + some, more + short
        sets[part] = Sequences(part, tokens, content.labels, content.texts, facts, dev)
        cut += more
        unknown = (sets[part].values == UNKNOWN).float().mean().item()  # in the end of test
    facts["vocab_size"] = read_tokenizer(facts["tokenizer"]).get_vocab_size()
    vocabulary = f"{facts['vocab_size']:,} {facts['units']}"
    say_parts(args, dev, sets, "sentences", named(source.classes), vocabulary)
    if cut:
        notes.append(f"{counted(cut, 'sentence')} cut at {facts['max_length']} {facts['units']}")
    if unknown > 0.005:
        notes.append(f"{unknown:.1%} of the test set's {facts['units']} are not in the vocabulary")
    for note in filter(None, notes):
        dev.say(f"note: {note}")
    return sets["train"], sets.get("val"), sets["test"]
