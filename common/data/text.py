"""Text as language models read it: files, a vocabulary of word pieces, batches of about N tokens.

The vocabulary is trained by the library `tokenizers` on the training set and kept in checkpoints
as a string of JSON, so that whoever has a checkpoint can read and write text with it.
"""

import collections
import gzip
import itertools
import json
import sys
import unicodedata
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from common import counted, fail, seed_of
from common.device import Device
from common.run import progress_bar

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SPECIAL = ["<pad>", "<s>", "</s>", "<unk>"]
PAD, START, END, UNKNOWN = range(4)
MARKS = {  # at the beginning of a file, of what is not UTF-8
    b"\xff\xfe\0\0": "UTF-32",
    b"\0\0\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}
WOBBLE = 4.0  # tokens by which the second length may differ between neighbours


def find_text(path: Path) -> Path | None:
    """The file itself, or the same with .gz; None if there is neither."""
    there = (p for p in (path, path.with_name(path.name + ".gz")) if p.is_file())
    return next(there, None)


def read_raw(path: str | Path) -> bytes:
    """The bytes of a text file, plain or gzipped, still to be read as UTF-8.

    One that is missing, damaged or in another encoding ends in one line naming it.
    """
    try:
        raw = Path(path).expanduser().read_bytes()
        raw = gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        fail(f"{path} is damaged ({error})")
    except OSError as error:
        fail(f"can't read {path}: {error.strerror or error}")
    if encoding := next((name for mark, name in MARKS.items() if raw.startswith(mark)), None):
        fail(f"{path} is {encoding}, not UTF-8: convert it (iconv -f {encoding} -t UTF-8)")
    if (place := raw.find(b"\0")) >= 0:
        line = raw.count(b"\n", 0, place) + 1
        fail(f"{path}: line {line} is not UTF-8 text but holds a zero byte or zero bytes, as "
             "UTF-16 and files that are no text do: convert it to UTF-8")  # fmt: skip
    return raw


def read_whole(path: str | Path) -> str:
    """A UTF-8 text file, plain or gzipped, as it stands but for a byte-order mark.

    One that can't be read ends in one line naming it, and the line that is not UTF-8.
    """
    try:
        return read_raw(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raw, place = error.object, error.start
        line = raw.count(b"\n", 0, place) + 1
        fail(f"{path}: line {line} is not UTF-8 text ({byte_of(raw, place)}): convert it")


def byte_of(raw: bytes, place: int) -> str:
    """The byte there, and what it would be in the encoding that files which aren't UTF-8 mostly
    are in."""
    code = raw[place]
    return f"byte {code:#04x}" + (f", {chr(code)} in Latin-1" if code >= 0xA0 else "")


def in_words(characters: Sequence[str]) -> str:
    """At most 20 characters in a line; those that nobody would see by their number."""
    shown = [c if c.isprintable() else f"U+{ord(c):04X}" for c in characters[:20]]
    return " ".join(shown) + (" …" if len(characters) > 20 else "")


def read_lines(path: str | Path, table: bool = False) -> list[str]:
    """The lines of a UTF-8 text file, plain or gzipped, each as `as_text` gives it.

    A file that is missing, damaged, empty or in another encoding ends in one line naming it.
    Of a `table` the tabs at a line's ends are kept, as empty cells lie there.
    """
    raw = read_raw(path)
    lines = raw.split(b"\n" if b"\n" in raw else b"\r")
    if not lines[-1]:
        lines.pop()
    try:
        ends = " \r" if table else None
        text = [as_text(line, f"line {number}", ends) for number, line in enumerate(lines, 1)]
    except ValueError as error:
        fail(f"{path}: {error}")
    if not any(map(str.strip, text)):
        needs = "rows of cells" if table else "text, one sentence a line"
        fail(f"{path} is empty: it needs {needs}")
    return text


def as_text(line: bytes, name: str, ends: str | None = None) -> str:
    """A line of UTF-8 without byte-order mark and the space (or the characters of `ends`) at its
    ends, in the normal form NFC.

    In that form text can be compared: an ü may also be written as u and two dots. Raises
    ValueError, with the `name` of the line, where it isn't UTF-8.
    """
    try:
        text = line.removeprefix(b"\xef\xbb\xbf").decode("utf-8")
    except UnicodeDecodeError as error:
        byte = byte_of(error.object, error.start)
        raise ValueError(f"{name} is not UTF-8 text ({byte}): convert it") from None
    return unicodedata.normalize("NFC", text).strip(ends)


def as_typed(sentences: Sequence[str]) -> list[str]:
    """Sentences from the command line as `as_text` gives them; a garbled one ends in one line."""
    try:
        return [
            as_text(sentence.encode("utf-8", "surrogateescape"), f"sentence {number}")
            for number, sentence in enumerate(sentences, 1)
        ]
    except ValueError as error:
        fail(str(error))


def read_sentences(sentences: Sequence[str], file: Path | None) -> list[str]:
    """The lines of a file, or sentences from the command line; none where there are neither."""
    if file:
        return read_lines(file)
    lines = as_typed(sentences)
    if lines and not any(lines):
        fail("the sentences are empty: there is nothing to translate")
    return lines


def check_prompt(prompt: str | None) -> None:
    """Ends in one line if a prompt was typed in which there is no text."""
    if prompt == "":
        fail("--prompt is empty: give a text to go on from, or leave it out")
    try:
        (prompt or "").encode()
    except UnicodeEncodeError:
        fail("--prompt is not UTF-8 text")


def interact(answer: Callable[[str], str]) -> None:
    """Answers each sentence that is typed, until the end of the input."""
    print("type a sentence; Ctrl-D ends", file=sys.stderr)
    for number, line in enumerate(sys.stdin.buffer, 1):
        try:
            print(answer(as_text(line, f"line {number}")), flush=True)
        except ValueError as error:  # not UTF-8
            print(f"note: {error}", file=sys.stderr)


# ---------------------------------------------------------------------- vocabulary


def train_bpe(lines: Sequence[str], vocab_size: int) -> "Tokenizer":
    """Byte-pair encoding (Sennrich et al. 2016) of at most `vocab_size` tokens, `SPECIAL` first.

    Words are split at spaces and punctuation, and each digit stands alone; `▁` marks a space, so
    that decoding gives the text back. A character that `lines` don't hold becomes <unk>, and so do
    the rarest of those that they hold, if these are more than `vocab_size`.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE(unk_token=SPECIAL[UNKNOWN]))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Metaspace(),
            pre_tokenizers.Punctuation(),
            pre_tokenizers.Digits(individual_digits=True),
        ]
    )
    tokenizer.decoder = decoders.Metaspace()
    room = vocab_size - len(SPECIAL)
    marked = ("▁" + unicodedata.normalize("NFC", line).replace(" ", "▁") for line in lines)
    counts = collections.Counter(itertools.chain.from_iterable(marked))
    letters = sorted(counts, key=lambda c: (-counts[c], c))[:room]  # the library's ties are random
    most = len(SPECIAL) + sum(map(len, lines))  # the library sets memory aside for all it is told
    trainer = trainers.BpeTrainer(
        vocab_size=min(vocab_size, most),
        special_tokens=SPECIAL,
        show_progress=False,
        min_frequency=2,
        initial_alphabet=letters,
        limit_alphabet=room,
    )
    tokenizer.train_from_iterator(lines, trainer)
    return tokenizer


def in_fixed_order(tokenizer: "Tokenizer", special: Sequence[str], unknown: int) -> "Tokenizer":
    """A Unigram model just trained, with its pieces from the likeliest on, after the `special`
    ones, of which `unknown` is the number of what the vocabulary lacks. All numbers of tokens hang
    on that order, and so all weights.

    The library numbers equals in another order each time. And the letters that training found no
    use for it makes a bit likelier than the unlikeliest piece, each by another ten-thousandth, at
    random, too.
    """
    from tokenizers import Tokenizer, models

    whole = json.loads(tokenizer.to_str())
    scores = {piece: s for piece, s in whole["model"]["vocab"] if piece not in special}
    letters = [piece for piece in scores if len(piece) == 1]
    limit = min(scores.values(), default=0) + 1e-4 * (len(letters) + 1)
    useless = sorted(letter for letter in letters if scores[letter] <= limit)
    scores |= dict(zip(useless, sorted(scores[letter] for letter in useless), strict=True))
    known = [(piece, round(score, 6)) for piece, score in scores.items()]
    known.sort(key=lambda pair: (-pair[1], pair[0]))
    ordered = Tokenizer(models.Unigram([*((s, 0.0) for s in special), *known], unk_id=unknown))
    for part in ("normalizer", "pre_tokenizer", "decoder"):
        if (own := getattr(tokenizer, part)) is not None:
            setattr(ordered, part, own)
    return ordered


def read_tokenizer(text: str) -> "Tokenizer":
    """The vocabulary that a checkpoint holds."""
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_str(text)
    except Exception as error:  # the library raises nothing narrower
        fail(f"the checkpoint's vocabulary is damaged ({error})")


class Encoded(NamedTuple):
    """Sentences as tokens, each with END, and what was lost on the way."""

    tokens: list[Tensor]
    cut: int  # sentences that were longer than the maximum
    unknown: list[str]  # characters that the vocabulary lacks


def encode(tokenizer: "Tokenizer", lines: Sequence[str], max_length: int) -> Encoded:
    """Lines as tensors of at most `max_length` tokens, the last of which is END.

    What looks like a special token in a line ("<pad>") is text like any other.
    """
    tokenizer.encode_special_tokens = True
    tokens, cut, unknown = [], 0, set()
    for line, piece in zip(lines, tokenizer.encode_batch(list(lines)), strict=True):
        ids = piece.ids
        for start, end in (piece.offsets[i] for i, t in enumerate(ids) if t == UNKNOWN):
            unknown.update(line[start:end].strip(" "))
        cut += len(ids) >= max_length
        tokens.append(torch.tensor([*ids[: max_length - 1], END]))
    return Encoded(tokens, cut, sorted(unknown))


def decode(tokenizer: "Tokenizer", tokens: Sequence[Sequence[int]]) -> list[str]:
    """Lists of tokens as lines of text."""
    lines = tokenizer.decode_batch([list(ids) for ids in tokens], skip_special_tokens=True)
    return [line.strip() for line in lines]


def losses(encoded: Sequence[Encoded], max_length: int) -> str:
    """What to say of truncated sentences and unknown characters; empty where there are none."""
    cut = sum(part.cut for part in encoded)
    unknown = sorted({character for part in encoded for character in part.unknown})
    notes = [f"{counted(cut, 'sentence')} cut at {max_length} tokens"] if cut else []
    if unknown:
        notes.append(
            f"{counted(len(unknown), 'character')} never seen in training (or too many for "
            f"--vocab-size), read as {SPECIAL[UNKNOWN]}: {in_words(unknown)}"
        )
    return "; ".join(notes)


def pad(sentences: Sequence[Tensor], dev: Device) -> Tensor:
    """Sentences of tokens as one matrix (B, T), padded at the end, on the device."""
    batch = pad_sequence(list(sentences), batch_first=True, padding_value=PAD)
    if dev.device.type == "cuda":
        batch = batch.pin_memory()
    return batch.to(dev.device, non_blocking=True)


# ---------------------------------------------------------------------- batches


class TokenBatches:
    """The parts of an epoch's steps that this process computes, in turn: iterate over it.

    `lengths(epoch)` are the token counts of its examples (N, k): the first column counts towards
    `batch_size`, and all serve to group examples of like length. `fetch(epoch, indices)` makes a
    batch, which may have to be of no examples. Its length is the number of steps.

    A step holds as many examples as have at most `batch_size` tokens in all (one longer than that
    is a step of its own); in training the steps are in random order, as are examples of the same
    length. Nothing is dropped: what is left over are the longest. Each step is cut into a part for
    each process and micro-batch; of a step with few examples some parts are empty.
    """

    def __init__(
        self,
        lengths: Callable[[int], Tensor],
        batch_size: int,
        dev: Device,
        shuffle: bool,
        fetch: Callable,
    ):
        self.lengths, self.batch_size, self.dev = lengths, batch_size, dev
        self.shuffle, self.fetch = shuffle, fetch
        self.epoch = self.first = 0
        self.plan: tuple[int, list[Tensor]] = (-1, [])  # of an epoch

    def __len__(self) -> int:
        return len(self.steps())

    def seek(self, epoch: int, step: int) -> None:
        """Sets the epoch, and the step to begin at, of the next iteration."""
        self.epoch, self.first = epoch, step

    def steps(self) -> list[Tensor]:
        """The indices of each step of the epoch."""
        if self.plan[0] == self.epoch:
            return self.plan[1]
        lengths = self.lengths(self.epoch).double()
        generator = torch.Generator().manual_seed(seed_of("order", self.dev.seed, self.epoch))
        noise = torch.rand(len(lengths), generator=generator, dtype=torch.float64) * self.shuffle
        rest = lengths[:, 1:].sum(1) + WOBBLE * noise
        order = (lengths[:, 0] + rest / (rest.max() + 1)).argsort(stable=True)
        steps = self.cut(order, lengths[order, 0].long().tolist())
        if self.shuffle:
            places = torch.randperm(len(steps), generator=generator).tolist()
            steps = [steps[place] for place in places]
        self.plan = self.epoch, steps
        return steps

    def cut(self, order: Tensor, lengths: list[int]) -> list[Tensor]:
        """The order, cut into steps of at most `batch_size` tokens."""
        sizes, tokens = [0], 0
        for length in lengths:
            if tokens + length > self.batch_size and sizes[-1]:
                sizes.append(0)
                tokens = 0
            sizes[-1] += 1
            tokens += length
        return list(order.split(sizes))

    def __iter__(self) -> Iterator:
        dev = self.dev
        pieces = dev.world * (dev.accumulate if self.shuffle else 1)  # of a step
        parts = (
            part
            for step in self.steps()[self.first :]
            for part in itertools.islice(step.tensor_split(pieces), dev.rank, None, dev.world)
        )
        batches = (self.fetch(self.epoch, part) for part in parts)
        if self.shuffle:  # the run shows the progress of training
            return batches
        return iter(progress_bar(batches, dev, "evaluating", len(self)))
