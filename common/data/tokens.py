"""CLIP's text as tokens: byte-pair encoding of lower-cased words (Sec. 2.4), of the released
vocabulary or of one that is trained on the captions.

A vocabulary is the 256 bytes, the same at the end of a word, what merges make of them, and two
tokens for the beginning and the end of a text, which come last. It travels in checkpoints as JSON.
"""

import gzip
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from common import fail
from common.data.text import read_tokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer

START, END = "<|startoftext|>", "<|endoftext|>"
WORD = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"  # digits one by one
LAST = "</w>"  # marks the piece that ends a word
FEWEST = 2 * 256 + 2  # tokens of a vocabulary without merges
MERGES = "bpe_simple_vocab_16e6.txt.gz"  # the released vocabulary, beside OpenAI's code
RELEASED = 49_152 - 256 - 2  # merges of that file that count


def pieces(tokenizer: "Tokenizer") -> "Tokenizer":
    """The same with CLIP's way to cut a text into words of bytes."""
    from tokenizers import Regex, normalizers, pre_tokenizers

    spaces = normalizers.Replace(Regex(r"\s+"), " ")
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), spaces, normalizers.Lowercase()]
    )
    words = pre_tokenizers.Split(Regex(WORD), behavior="removed", invert=True)
    as_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, as_bytes])
    return tokenizer


def from_vocabulary(vocabulary: dict[str, int], merges: Iterable[tuple[str, str]]) -> str:
    """A tokenizer of these tokens and merges, as JSON. Raises what the library raises."""
    from tokenizers import Tokenizer, models

    merges = list(merges)
    model = models.BPE(vocabulary, merges, end_of_word_suffix=LAST, unk_token=END)
    tokenizer = pieces(Tokenizer(model))
    tokenizer.add_special_tokens([START, END])
    return tokenizer.to_str()


def from_merges(merges: Sequence[tuple[str, str]]) -> str:
    """The tokenizer that merges make, as JSON: bytes in the order of their signs come first."""
    from tokenizers import pre_tokenizers

    signs = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*signs, *(sign + LAST for sign in signs), *("".join(pair) for pair in merges)]
    return from_vocabulary({t: i for i, t in enumerate([*tokens, START, END])}, merges)


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> str:
    """A vocabulary of at most `vocab_size` tokens (at least FEWEST) for these texts, as JSON."""
    import json

    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = pieces(Tokenizer(models.BPE(end_of_word_suffix=LAST)))
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size + FEWEST,  # how many signs end words there is not known before
        min_frequency=2,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        end_of_word_suffix=LAST,
    )
    tokenizer.train_from_iterator(texts, trainer)
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    pairs = [tuple(pair.split(" ")) if isinstance(pair, str) else tuple(pair) for pair in merges]
    return from_merges(pairs[: vocab_size - FEWEST])


def read_merges(path: Path) -> str:
    """The released vocabulary from the file of its merges, plain or gzipped, as JSON."""
    try:
        raw = path.read_bytes()
        text = (gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw).decode("utf-8")
        lines = text.split("\n")[1 : 1 + RELEASED]
        return from_merges([tuple(line.split()) for line in lines if len(line.split()) == 2])
    except Exception as error:  # the library raises nothing narrower
        fail(f"{path} is damaged ({error})")


class Tokens:
    """A vocabulary at work; `end` is the token that ends a text. Ends in one line if it has none.

    `size` is one more than its largest token.
    """

    def __init__(self, tokenizer: str):
        self.tokenizer = read_tokenizer(tokenizer)
        self.tokenizer.no_padding()
        self.tokenizer.no_truncation()
        self.tokenizer.encode_special_tokens = True  # in a text they are text
        start, end = map(self.tokenizer.token_to_id, (START, END))
        if start is None or end is None:
            fail(f"the tokenizer is none of CLIP's: it has no {START if start is None else END}")
        self.start, self.end = start, end
        self.size = max(self.tokenizer.get_vocab().values()) + 1

    def encode(self, texts: Sequence[str], context: int) -> tuple[Tensor, int]:
        """Texts as (B, T), T at most `context`, and how many were cut for that.

        Each has START and END around it, also when cut; END fills what remains of a row.
        """
        encoded = self.tokenizer.encode_batch(list(texts), add_special_tokens=False)
        rows = [[self.start, *e.ids[: context - 2], self.end] for e in encoded]
        cut = sum(len(e.ids) > context - 2 for e in encoded)
        longest = max(map(len, rows), default=0)
        filled = [row + [self.end] * (longest - len(row)) for row in rows]
        return torch.tensor(filled, dtype=torch.int64).view(len(rows), longest), cut
