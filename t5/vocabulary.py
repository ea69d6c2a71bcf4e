"""The tokens of T5: pieces of words (Unigram, Kudo 2018) or characters, and sentinels for gaps.

As in the released vocabulary token 0 is padding, 1 ends a text, 2 is what is unknown, and the
sentinels are the last ones, from the last on: <extra_id_0> has the largest number.
"""

import collections
import re
from collections.abc import Iterable, Sequence

import torch

from common import fail
from common.data.text import Encoded, in_fixed_order, in_words, read_tokenizer
from t5.model import END, PAD, UNKNOWN

SPECIAL = ["<pad>", "</s>", "<unk>"]
SENTINEL = re.compile(r"<extra_id_(\d+)>")
LEARNT_FROM = 20_000_000  # characters that a vocabulary is made from


class Vocabulary:
    """A vocabulary from the `facts` of a checkpoint: the `tokenizer` as JSON.

    `known` is how many tokens it has (a published table of embeddings has a few more, which mean
    nothing); `sentinels` are in the order in which gaps get them; `spelt` says whether tokens are
    characters, spaces among them.
    """

    def __init__(self, facts: dict):
        self.tokenizer = read_tokenizer(facts["tokenizer"])
        self.tokenizer.no_padding()
        self.tokenizer.no_truncation()
        self.tokenizer.encode_special_tokens = True  # "</s>" in a text is text like any other
        tokens = self.tokenizer.get_vocab()
        self.known = max(tokens.values(), default=-1) + 1
        self.spelt = type(self.tokenizer.model).__name__ == "BPE"
        marks = {int(m[1]): i for t, i in tokens.items() if (m := SENTINEL.fullmatch(t))}
        self.sentinels = [marks[number] for number in sorted(marks)]
        if missing := [t for i, t in enumerate(SPECIAL) if tokens.get(t) != i]:
            fail(f"the tokenizer is of another model than T5: its {missing[0]} is token "
                 f"{tokens.get(missing[0], 'nowhere')}")  # fmt: skip

    def normal(self, text: str) -> str:
        """A text as `decode` gives it back, if all its characters are known."""
        normalizer = self.tokenizer.normalizer
        return " ".join((normalizer.normalize_str(text) if normalizer else text).split())

    def encode(self, texts: Sequence[str], most: int, part: bool = False) -> Encoded:
        """Texts as tensors of at most `most` tokens, the last of which is END; what is `part` of a
        longer text keeps the spaces at its ends, if they are tokens."""
        found, cut, strange = [], 0, set()
        special = {PAD, END, *self.sentinels}
        texts = list(texts) if part else [text.strip() for text in texts]
        pieces = self.tokenizer.encode_batch(texts, add_special_tokens=False)
        for text, piece in zip(texts, pieces, strict=True):
            # A Unigram model takes a written "</s>" for its own piece of that name.
            ids = [UNKNOWN if token in special else token for token in piece.ids]
            if UNKNOWN in ids:
                places = (piece.offsets[i] for i, token in enumerate(ids) if token == UNKNOWN)
                strange.update(*(text[a:b].strip() for a, b in places))
            cut += len(ids) >= most
            found.append(torch.tensor([*ids[: most - 1], END]))
        return Encoded(found, cut, sorted(strange))

    def encode_prompt(self, text: str, most: int) -> Encoded:
        """The same of one text, in which <extra_id_0> is the sentinel of that name. Raises
        ValueError where the vocabulary lacks it."""
        parts, ids, strange = re.split(f"({SENTINEL.pattern})", text.strip()), [], set()
        # The pattern's own group stands among the parts, too: text, sentinel, number, text …
        for place in range(0, len(parts), 3):
            if parts[place].strip() or (self.spelt and parts[place]):
                piece = self.encode([parts[place]], len(parts[place]) * 4 + 8, part=True)
                ids += piece.tokens[0][:-1].tolist()
                strange.update(piece.unknown)
            if place + 2 < len(parts):
                number = int(parts[place + 2])
                if number >= len(self.sentinels):
                    raise ValueError(f"the vocabulary has {len(self.sentinels)} sentinels, and no "
                                     f"{parts[place + 1]}")  # fmt: skip
                ids.append(self.sentinels[number])
        tokens = torch.tensor([*ids[: most - 1], END])
        return Encoded([tokens], int(len(ids) >= most), sorted(strange))

    def decode(self, rows: Sequence[Sequence[int]]) -> list[str]:
        """Lists of tokens as texts, with the names of sentinels in them."""
        bare = [[i for i in row if i not in (PAD, END)] for row in rows]
        texts = self.tokenizer.decode_batch(bare, skip_special_tokens=False)
        if not self.spelt:  # pieces of words lose the space before a sentinel
            texts = [re.sub(r"\s*(<extra_id_\d+>)\s*", r" \1 ", text) for text in texts]
        return [text.strip() for text in texts]

    def names(self, tokens: Sequence[int]) -> list[str]:
        """What a person calls tokens."""
        found = (self.tokenizer.id_to_token(int(token)) or "?" for token in tokens)
        return [name.replace("▁", "·") if name == "▁" else name.lstrip("▁") for name in found]


def make_vocabulary(
    texts: Iterable[str],
    kind: str,
    vocab_size: int,
    sentinels: int,
    more: Sequence[str] = (),
    prefixes: Sequence[str] = (),
) -> dict:
    """The `facts` of a vocabulary made of these texts: "pieces", at most `vocab_size` with the
    special ones, or "chars", with a token for each of the `prefixes`. What stands in `more` is
    learned from, too."""
    from tokenizers import (
        AddedToken,
        Regex,
        Tokenizer,
        decoders,
        models,
        normalizers,
        pre_tokenizers,
    )
    from tokenizers import trainers  # isort: skip

    lines = [*lines_of(texts), *more]
    scheme = "always" if kind == "pieces" else "never"
    # Of characters a space is one, also at the end of a line of text.
    ends = [normalizers.Strip()] if kind == "pieces" else []
    normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), *ends]
    )
    counts: collections.Counter = collections.Counter()
    for begin in range(0, len(lines), 1000):
        text = normalizer.normalize_str(" ".join(lines[begin : begin + 1000]))
        counts.update(text.replace(" ", "▁"))
    room = vocab_size - len(SPECIAL) - sentinels
    letters = sorted(counts, key=lambda c: (-counts[c], c))
    if kind == "chars":
        plain = {t: i for i, t in enumerate([*SPECIAL, *sorted(letters)])}
        tokenizer = Tokenizer(models.BPE(plain, [], unk_token=SPECIAL[UNKNOWN]))
    else:
        if room < 4:  # two letters and two pieces
            fail(f"--vocab-size {vocab_size}: more than {len(SPECIAL) + sentinels + 3:,} are "
                 f"needed, for {len(SPECIAL)} special tokens, {sentinels} sentinels and the "
                 "letters")  # fmt: skip
        # The trainer keeps every character that it sees: of the rarest it is to see none. (It sees
        # a space before each line.)
        letters = sorted(letters, key=lambda c: c != "▁")
        rare = {ord(c): " " for c in letters[room // 2 :]}
        letters = letters[: room // 2]
        if rare:
            lines = [normalizer.normalize_str(line).translate(rare) for line in lines]
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.normalizer = normalizer
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
        trainer = trainers.UnigramTrainer(
            vocab_size=room + len(SPECIAL),
            special_tokens=SPECIAL,
            unk_token=SPECIAL[UNKNOWN],
            initial_alphabet=letters,
            show_progress=False,
            max_piece_length=16,
        )
        tokenizer.train_from_iterator(lines, trainer)
        tokenizer = in_fixed_order(tokenizer, SPECIAL, UNKNOWN)
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme=scheme)
    if kind == "chars":
        tokenizer.add_tokens([f"{prefix}:" for prefix in prefixes])
    names = [f"<extra_id_{number}>" for number in reversed(range(sentinels))]
    # The library may add special tokens it already has again, at the end: they stay where they are.
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in [*SPECIAL, *names]])
    return facts_of(tokenizer.to_str())


def facts_of(tokenizer: str, vocab_size: int | None = None) -> dict:
    """The facts of a tokenizer; of published weights, whose table of embeddings is longer, with
    their own size."""
    tokens = read_tokenizer(tokenizer).get_vocab()
    size = vocab_size or max(tokens.values(), default=-1) + 1
    found = {"tokenizer": tokenizer, "vocab_size": size, "literal": True}
    return found | ({"published": True} if vocab_size else {})


def lines_of(texts: Iterable[str]) -> Iterable[str]:
    """The lines of texts, of long ones so many that they are LEARNT_FROM characters."""
    seen, rest = 0, ""
    for text in texts:
        lines = (rest + text).replace("\x03", "\n").split("\n")
        rest = lines.pop()
        yield from filter(str.strip, lines)
        if (seen := seen + len(text)) >= LEARNT_FROM:
            break
    if rest.strip():
        yield rest


def strange_characters(encoded: Sequence[Encoded]) -> str:
    """What to say of characters that the vocabulary lacks; empty where there are none."""
    unknown = sorted({c for part in encoded for c in "".join(part.unknown)})
    return f"characters the vocabulary lacks, read as <unk>: {in_words(unknown)}" if unknown else ""
