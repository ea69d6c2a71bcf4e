"""Text that language models read on and on: corpora, vocabularies, windows of tokens.

train, val, test = load_corpus(args, dev)
for tokens, following in run.progress(train.windows(args.batch_size, context, steps)): ...

A corpus is documents one after another, with the character END between them. Its last tenth is the
test set, and validation the end of what is left. A large file is never in memory whole: it is read
in blocks, and its tokens lie in a file below data/cache, from which each step takes its windows.
"""

import argparse
import bisect
import contextlib
import dataclasses
import gzip
import io
import itertools
import json
import os
import platform
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NoReturn

import numpy as np
import torch
from torch import Tensor

from common import counted, fail, seed_of
from common.data.sources import PART_NAMES, say_parts
from common.data.text import MARKS, find_text, in_words, read_tokenizer, read_whole
from common.device import Device
from common.run import progress_bar

UNKNOWN = "\ufffd"  # the first symbol of a vocabulary of characters
END, END_TOKEN = "\x03", "<|endoftext|>"  # between documents: in a text, and as files have it
LARGE = 32 << 20  # bytes of a file, or characters of a part: more is never in memory at once
BLOCK = 1 << 20  # characters read at a time
SHORTEST_CHAPTER = 2000  # characters; what is shorter is a heading, or a list of contents
LEARNT_FROM = 100 << 20  # characters of the training set that a vocabulary of pieces is made from
CACHE = Path("data", "cache")


# ---------------------------------------------------------------------- files


def read_text(path: Path) -> str:
    """A text file of UTF-8, perhaps gzipped, with line feeds; else ends in one line naming it."""
    text = read_whole(path)
    if not text.strip():
        fail(f"{path} is empty: it needs text")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def blocks_of(path: Path) -> Iterator[str]:
    """The same, a block at a time."""
    line = 1

    def bad(reason: str) -> NoReturn:
        fail(f"{path}: {reason} (below line {line:,}): convert it to UTF-8")

    try:
        with open(path, "rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            source = gzip.GzipFile(fileobj=file) if packed else file
            if name := next((n for m, n in MARKS.items() if source.peek(4).startswith(m)), None):
                fail(f"{path} is {name}, not UTF-8: convert it (iconv -f {name} -t UTF-8)")
            reader = io.TextIOWrapper(source, "utf-8-sig", newline=None)
            while block := reader.read(BLOCK):
                if "\0" in block:
                    bad("not UTF-8 text but zero bytes")
                line += block.count("\n")
                yield block
    except UnicodeDecodeError as error:
        bad(f"not UTF-8 text (byte {error.object[error.start]:#04x})")
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        fail(f"{path} is damaged ({error})")
    except OSError as error:
        fail(f"can't read {path}: {error.strerror or error}")


def with_ends(blocks: Iterable[str]) -> Iterator[str]:
    """The blocks of a file in which <|endoftext|>, perhaps on a line of its own, becomes END."""
    rest, mark = "", re.compile(rf"\n?{re.escape(END_TOKEN)}\n?")
    most = len(END_TOKEN) + 2
    for block in blocks:
        text = rest + block
        end = max(0, len(text) - most)  # a mark may go on in the next block
        cut = min([end, *(m.start() for m in mark.finditer(text) if m.end() > end)])
        yield mark.sub(END, text[:cut])
        rest = text[cut:]
    yield mark.sub(END, rest)


@dataclasses.dataclass(frozen=True)
class Text:
    """Documents, of which large files are named by their paths, with `joint` between them.

    `begin` and `end` are the characters that belong to it, counted over all documents.
    """

    documents: Sequence[str | Path]
    joint: str = END
    begin: int = 0
    end: int | None = None

    def whole(self) -> Iterator[str]:
        """All of the documents, in blocks that are not too small."""
        waiting, size = [], 0
        for number, document in enumerate(self.documents):
            parts = [document] if isinstance(document, str) else with_ends(blocks_of(document))
            for part in itertools.chain([self.joint] if number else [], parts):
                waiting.append(part)
                size += len(part)
                if size >= BLOCK:
                    yield "".join(waiting)
                    waiting, size = [], 0
        yield "".join(waiting)

    def blocks(self) -> Iterator[str]:
        """Its characters, a block at a time."""
        place = 0
        for block in self.whole():
            end = len(block) if self.end is None else self.end - place
            if some := block[max(0, self.begin - place) : max(0, end)]:
                yield some
            place += len(block)
            if self.end is not None and place >= self.end:
                return

    def __len__(self) -> int:
        if self.end is None:  # counted once
            object.__setattr__(self, "end", self.begin + sum(map(len, self.blocks())))
        return self.end - self.begin

    def __str__(self) -> str:
        return "".join(self.blocks())

    def measure(self, dev: Device, what: str) -> None:
        """Counts the characters with a progress bar: of gigabytes that takes a while."""
        sizes = (d.stat().st_size for d in self.documents if isinstance(d, Path))
        blocks = progress_bar(self.blocks(), dev, f"measuring {what}", sum(sizes) // BLOCK + 1)
        object.__setattr__(self, "end", self.begin + sum(map(len, blocks)))

    def part(self, begin: int, end: int) -> "Text":
        """The characters from `begin` to `end` of these."""
        return dataclasses.replace(self, begin=self.begin + begin, end=self.begin + end)


# ---------------------------------------------------------------------- corpora


@dataclasses.dataclass
class Corpus:
    """A text to be cut into parts ("all"), or its parts ("train", "test", perhaps "val")."""

    parts: dict[str, Text]
    note: str = ""


def pydocs(args: argparse.Namespace) -> Corpus:
    """The language reference that Python's standard library holds for `help()`, by topics."""
    from pydoc_data.topics import topics

    documents = [topics[name].strip() for name in sorted(topics)]
    version = ".".join(platform.python_version_tuple()[:2])
    note = f"the topics of Python {version}, other versions have others"
    return Corpus({"all": Text(documents)}, note)


def place(args: argparse.Namespace, folder: str, *names: str) -> Path:
    """The folder below --data-dir that has one of these `names`."""
    root = Path(args.data_dir).expanduser() / folder
    if not any(find_text(root / name) for name in names):
        fail(f"{names[0]} is not in {root}: name the folder that holds {folder} with "
             "--data-dir, or take --data pydocs, which needs no files")  # fmt: skip
    return root


def shakespeare(args: argparse.Namespace) -> Corpus:
    """Plays of Shakespeare's, 1,115,394 characters (Karpathy's tinyshakespeare)."""
    root = place(args, "tinyshakespeare", "input.txt")
    return Corpus({"all": Text([read_text(find_text(root / "input.txt"))])})


def tinystories(args: argparse.Namespace) -> Corpus:
    """Stories in the words of small children, written by GPT-3.5 and GPT-4 (Eldan and Li 2023):
    all .txt files of the folder, perhaps with a validation set (see `in_parts`)."""
    root = Path(args.data_dir).expanduser() / "tinystories"
    names = text_files(root) if root.is_dir() else []
    if not names:
        place(args, "tinystories", "v2_train.txt")
    return in_parts(names)


def brown(args: argparse.Namespace) -> Corpus:
    """American English of 1961 in 15 genres (Francis and Kučera); a blank line between texts."""
    root = place(args, "brown", "news.txt")
    files = [file for file in text_files(root) if not file.name.lower().startswith("readme")]
    texts = [text for file in files for text in read_text(file).strip().split("\n\n")]
    return Corpus({"all": Text(texts)})


def movie_reviews(args: argparse.Namespace) -> Corpus:
    """2,000 film reviews, a sentence a line (Pang and Lee 2004), in a seeded order.

    Without the lines that are sentences of SST-2, too, where that lies beside them: so whoever
    reads the reviews and is tested on SST-2 has not read the test.
    """
    root = Path(args.data_dir).expanduser() / "movie_reviews"
    files = text_files(root) if root.is_dir() else []
    if not files:
        place(args, "movie_reviews", "pos/cv000_29590.txt")
    documents, known, left = [], sentences_of_sst2(root.parent / "SST2"), 0
    for file in files:
        lines = [line.strip() for line in read_text(file).splitlines()]
        own = [line for line in lines if line and bare_words(line) not in known]
        left += len(lines) - lines.count("") - len(own)
        documents.append("\n".join(own))
    shared = "the sentences of SST-2 that are in them left out" if known else ""
    note = f"{shared} ({counted(left, 'line')})" if left else shared
    return Corpus({"all": Text(mixed(documents))}, note)


def sentences_of_sst2(folder: Path) -> set[str]:
    """The sentences of SST-2's three parts, as `bare_words`; none where the set isn't there."""
    files = filter(None, (find_text(folder / f"{part}.tsv") for part in ("train", "dev", "test")))
    return {bare_words(line.partition("\t")[0]) for file in files for line in
            read_text(file).splitlines()} - {""}  # fmt: skip


def bare_words(text: str) -> str:
    """A text's words alone, in lower case: two writings of a sentence are the same."""
    return " ".join(re.findall(r"\w+", text.lower()))


def mixed(documents: Sequence[str]) -> list[str]:
    """Documents in a seeded order, so that each part of a corpus has something of all."""
    generator = torch.Generator().manual_seed(seed_of("documents", 0))
    return [documents[i] for i in torch.randperm(len(documents), generator=generator).tolist()]


def gutenberg(args: argparse.Namespace) -> Corpus:
    """Novels of Project Gutenberg's; their chapters are the documents, in a seeded order."""
    root = place(args, "gutenberg", "alice_in_wonderland.txt")
    texts = [chapter for file in text_files(root) for chapter in chapters_of(read_text(file))]
    return Corpus({"all": Text(mixed(texts))})


def chapters_of(novel: str) -> list[str]:
    """The chapters of a novel: two empty lines stand before each. What is as short as a heading or
    a list of contents belongs to the next one."""
    found, waiting = [], ""
    for piece in re.split(r"\n{3,}", novel):
        waiting += f"\n\n{piece}"
        if len(waiting) > SHORTEST_CHAPTER:
            found.append(waiting.strip())
            waiting = ""
    return [*found, *([waiting.strip()] if waiting.strip() else [])]


def english(args: argparse.Namespace) -> Corpus:
    """Film reviews, American English of 1961, novels and children's stories, in a seeded order:
    what movie-reviews, brown, gutenberg and tinystories have, 17 million characters."""
    documents, notes = [], []
    for read in (movie_reviews, brown, gutenberg, tinystories):
        corpus = read(args)
        if "all" not in corpus.parts:
            fail(f"--data english: {read.__name__} has a training set of its own there; the four "
                 "texts are to be whole")  # fmt: skip
        documents += [str(Text([document])) for document in corpus.parts["all"].documents]
        notes += [corpus.note] if corpus.note and read is movie_reviews else []
    return Corpus({"all": Text(mixed(documents))}, "; ".join(notes))


def wikitext2(args: argparse.Namespace) -> Corpus:
    """Articles of Wikipedia's (Merity et al. 2016), official parts."""
    parts = {}
    folders = ["wikitext2", "wikitext-2", "wikitext-2-raw", "wikitext-2-raw-v1", "wikitext-2-v1"]
    there = [name for name in folders if Path(args.data_dir, name).expanduser().is_dir()]
    for part, name in (("train", "train"), ("val", "valid"), ("test", "test")):
        names = [f"wiki.{name}.tokens", f"wiki.{name}.raw"]
        root = place(args, there[0] if there else folders[0], *names)
        text = read_text(next(filter(None, (find_text(root / n) for n in names))))
        articles = re.split(r"(?m)^ ?(?== [^=].*[^=] = ?$)", text)
        parts[part] = Text([article.strip() for article in articles if article.strip()])
    return Corpus(parts)


def text_files(folder: Path) -> list[Path]:
    """The .txt files of a folder, by name; where there are none, those of the folders in it."""
    ends = (".txt", ".txt.gz")
    files = sorted(file for file in folder.iterdir() if file.name.endswith(ends))
    return files or sorted(file for file in folder.rglob("*") if file.name.endswith(ends))


def documents_of(*files: Path) -> list[str | Path]:
    """The documents of files; the files themselves where these are large together."""
    size = sum(f.stat().st_size * (4 if f.name.endswith(".gz") else 1) for f in files)
    if size > LARGE:
        return list(files)
    texts = ("".join(with_ends([read_text(file)])) for file in files)
    return [document for text in texts for document in text.split(END) if document.strip()]


def own(args: argparse.Namespace) -> Corpus:
    """The user's own: a text file, or all .txt files of a folder one after another.

    A line <|endoftext|> ends a document, and so does a file.
    """
    path = Path(args.data.partition(":")[2]).expanduser()
    if path.is_file():
        return Corpus({"all": Text(documents_of(path))})
    if not path.is_dir():
        fail(f"--data {args.data}: there is no such file or folder; take --data pydocs, which "
             "needs no files")  # fmt: skip
    files = text_files(path)
    if not files:
        fail(f"--data {args.data}: the folder holds no text files (.txt)")
    return in_parts(files)


def in_parts(files: Sequence[Path]) -> Corpus:
    """The text of several files, one after another.

    If some of these are called train and test or val (ptb.valid.txt), they are the parts, and the
    others are left out.
    """
    words = {file: re.split(r"[._-]", file.name.lower()) for file in files}
    named: dict[str, list[Path]] = {}
    for file in files:
        if part := next((PART_NAMES[word] for word in words[file] if word in PART_NAMES), None):
            named.setdefault(part, []).append(file)
    if "train" in named and len(named) > 1:
        notes, others = [], len(files) - sum(map(len, named.values()))
        if others:
            notes.append(f"{counted(others, 'file')} of no part left out")
        if "test" not in named:
            named["test"] = named.pop("val")
            notes.append("there is no test set, so the validation set is it")
        parts = {part: Text(documents_of(*some)) for part, some in named.items()}
        return Corpus(parts, "; ".join(notes))
    return Corpus({"all": Text(documents_of(*files))}, counted(len(files), "file"))


CORPORA = {
    "pydocs": pydocs,
    "shakespeare": shakespeare,
    "tinystories": tinystories,
    "brown": brown,
    "movie-reviews": movie_reviews,
    "gutenberg": gutenberg,
    "english": english,
    "wikitext2": wikitext2,
    "text": own,
}
CORPUS_SETS = [f"{name}:PATH" if name == "text" else name for name in CORPORA]


def parts_of(args: argparse.Namespace, corpus: Corpus) -> dict[str, Text]:
    """The training, test and (with --val) validation set, contiguous pieces of the text.

    The test set is the last tenth, and validation the end of the rest, where the corpus has none
    of its own. --limit keeps so many characters in a row of the training set.
    """
    parts = dict(corpus.parts)
    if "all" in parts:
        text = parts.pop("all")
        cut = len(text) - len(text) // 10
        parts = {"train": text.part(0, cut), "test": text.part(cut, len(text))}
    if short := next((part for part, text in parts.items() if len(text) < 2), None):
        fail(f"the {short} set of {args.data} has {counted(len(parts[short]), 'character')}: a "
             "language model needs two at least in each, take more text")  # fmt: skip
    count = len(parts["train"])
    if "val" in parts:
        size = len(parts["val"])
        if "val" in args.typed and args.val not in (0, size):
            fail(f"--val {args.val}: {args.data} has a validation set of its own, of {size}: "
                 f"--val {size} takes it, --val 0 does without")  # fmt: skip
        if not args.val:
            del parts["val"]
    elif args.val:
        size = args.val if "val" in args.chosen else min(args.val, count // 10)
        if size >= count - 1:
            fail(f"--val {args.val} leaves nothing of {count:,} characters: lower it")
        if size == 1 == args.val:
            fail("--val 1: of one character there is nothing to tell; take two at least, or 0")
        if size > 1:
            parts["val"] = parts["train"].part(count - size, count)
            parts["train"] = parts["train"].part(0, count - size)
            count -= size
        else:
            short = "too short for a validation set"
            corpus.note = "; ".join(filter(None, [corpus.note, short]))
    if args.limit and args.limit < count:
        size = max(2, args.limit)
        generator = torch.Generator().manual_seed(seed_of("limit", args.seed))
        begin = int(torch.randint(count - size + 1, (), generator=generator))
        parts["train"] = parts["train"].part(begin, begin + size)
    return {name: parts[name] for name in ("train", "val", "test") if name in parts}


# ---------------------------------------------------------------------- vocabulary


class Vocabulary:
    """Characters, or pieces of words (byte-pair encoding), from the `facts` of a checkpoint.

    `end` is the token between documents, or None; those of `never` are not to be written. Where it
    is `literal`, what looks like a special token in a text is text like any other. Where it is
    `spaced`, each line but a document's first is read with a space before it, which is taken
    away again: so a word is the same tokens at a line's beginning as in the middle.
    """

    def __init__(self, facts: dict):
        self.characters = facts.get("characters", "")
        self.tokenizer = read_tokenizer(facts["tokenizer"]) if "tokenizer" in facts else None
        self.by_lines, self.spaced = not facts.get("published"), facts.get("spaced", False)
        self.never = () if self.tokenizer else (0,)
        place = self.characters.find(END)
        self.end = self.tokenizer.token_to_id(END_TOKEN) if self.tokenizer else (
            place if place >= 0 else None)  # fmt: skip
        if self.tokenizer:
            self.tokenizer.no_padding()
            self.tokenizer.no_truncation()
            self.tokenizer.encode_special_tokens = facts.get("literal", False)

    def encode(self, text: str, after: str = "") -> Tensor:
        """Tokens (N,) of a text that stands `after` a character."""
        if not self.tokenizer:
            codes, known = codes_of(text), codes_of(self.characters)
            places = torch.searchsorted(known[1:], codes).clamp(max=max(len(known) - 2, 0))
            return torch.where(known[1:][places] == codes, places + 1, 0)
        found: list[int] = []
        for number, document in enumerate(text.split(END)):
            if number and self.end is not None:
                found.append(self.end)
            if self.spaced:
                begins = after == "\n" and not number  # with a new line
                lines = enumerate(re.split(r"(?<=\n)", document))
                pieces = [" " * bool(k or begins) + line for k, line in lines if line]
            elif self.by_lines:
                pieces = document.splitlines(keepends=True)
            else:
                pieces = pieces_of(document)
            encoded = self.tokenizer.encode_batch_fast(pieces, add_special_tokens=False)
            found += (i for piece in encoded for i in piece.ids)
        return torch.tensor(found, dtype=torch.int64)

    def decode(self, tokens: list[int]) -> str:
        """The text of tokens."""
        if self.tokenizer:
            text = self.tokenizer.decode(tokens, skip_special_tokens=False)
            text = text.replace("\n ", "\n") if self.spaced else text
            return text.replace(END_TOKEN, END)
        return "".join(self.characters[token] for token in tokens)

    def unknown(self, text: str) -> str:
        """The characters of a text that training did not have."""
        return "" if self.tokenizer else "".join(sorted(set(text) - set(self.characters)))


def codes_of(text: str) -> Tensor:
    """The code points of a text (N,)."""
    return torch.frombuffer(bytearray(text.encode("utf-32-le")), dtype=torch.int32).long()


def pieces_of(text: str, size: int = 10_000) -> list[str]:
    """A text in pieces of about `size` characters, which are encoded one by one as if it were
    whole: GPT-2's pattern always parts a word from the one before its space. (The library takes
    long over long texts.)"""
    cuts = [match.end() for match in re.finditer(r"\S(?= [^\W\d_])", text)]
    places = [0]
    while places[-1] + size < len(text):
        number = bisect.bisect_left(cuts, places[-1] + size)
        if number == len(cuts):
            break
        places.append(cuts[number])
    return [text[a:b] for a, b in itertools.pairwise([*places, len(text)]) if b > a]


def make_vocabulary(
    blocks: str | Iterable[str], tokens: str, vocab_size: int, ends: bool = False
) -> dict:
    """The `facts` of a vocabulary made of the training set, a text or its blocks; with `ends`,
    one that knows the ends of documents, and is spaced."""
    blocks = [blocks] if isinstance(blocks, str) else blocks
    if tokens == "chars":
        known: set[str] = set().union(*map(set, blocks))
        characters = UNKNOWN + "".join(sorted(known - {UNKNOWN}))
        return {"characters": characters, "vocab_size": len(characters)}
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())  # of bytes: no character is unknown (Radford et al. 2019)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    least = len(alphabet) + ends
    if vocab_size < least:
        each = "each of 256 bytes" + (" and the end of a document" if ends else "")
        fail(f"--vocab-size {vocab_size}: --tokens bpe needs one for {each} at least")
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        initial_alphabet=sorted(alphabet),
        show_progress=False,
        special_tokens=[END_TOKEN] if ends else [],
    )
    lines = lines_of(blocks)
    tokenizer.train_from_iterator((f" {line}" for line in lines) if ends else lines, trainer)
    found = {"tokenizer": tokenizer.to_str(), "vocab_size": tokenizer.get_vocab_size()}
    return found | {"spaced": True} if ends else found


def lines_of(blocks: Iterable[str]) -> Iterator[str]:
    """The lines of a text, of a long one so many that they are LEARNT_FROM characters."""
    seen, rest = 0, ""
    for block in blocks:
        lines = (rest + block.replace(END, "\n")).splitlines(keepends=True)
        rest = lines.pop() if lines else ""
        yield from lines
        if (seen := seen + len(block)) >= LEARNT_FROM:
            break
    if rest:
        yield rest


# ---------------------------------------------------------------------- tokens


class Mapped:
    """Tokens that lie in a file, of which only what is asked for comes into memory."""

    def __init__(self, path: Path, kind: str):
        self.path, self.kind = path, np.dtype(kind)
        self.length = path.stat().st_size // self.kind.itemsize

    def __len__(self) -> int:
        return self.length

    def take(self, begins: Tensor, size: int) -> Tensor:
        """The tokens (B, `size`), int64, that begin at these places (B,)."""
        memory = np.memmap(self.path, self.kind, "r")  # opened anew: else all that was ever
        rows = [memory[i : i + size] for i in begins.tolist()]  # touched would stay resident
        return torch.from_numpy(np.stack(rows).astype(np.int64))


class Tokens:
    """One part of a corpus: `part` is "train", "val" or "test".

    `facts` are what a checkpoint keeps, the same for all parts. `characters` and `bytes` are those
    of all tokens but the first, which nothing tells.
    """

    def __init__(self, part: str, text: Text, facts: dict, dev: Device):
        self.part, self.facts, self.dev = part, facts, dev
        vocabulary = Vocabulary(facts)
        self.unknown: set[str] = set()
        if len(text) <= LARGE:
            sizes, parts = [0, 0], []
            for tokens in self.encoded(text, vocabulary, sizes):
                parts.append(tokens.int())
            self.values: Tensor | Mapped = torch.cat(parts).to(dev.device)
        else:
            self.values, sizes = self.in_file(text, vocabulary)
        places = torch.zeros(min(1, len(self))).long()  # none in a text of white space
        first = vocabulary.decode(self.take(places, 1).flatten().tolist())
        self.characters = sizes[0] - len(first)
        self.bytes = sizes[1] - len(first.encode("utf-8", "replace"))

    def __len__(self) -> int:
        return len(self.values)

    def encoded(self, text: Text, vocabulary: Vocabulary, sizes: list[int]) -> Iterator[Tensor]:
        """The tokens block by block; counts characters and bytes in `sizes`.

        A piece of a word is not torn between two blocks: what follows the last line (or the last
        space) waits for the next.
        """
        rest, after, count = "", "", len(text) // BLOCK + 1
        for block in progress_bar(text.blocks(), self.dev, f"reading the {self.part} set", count):
            self.unknown |= set(vocabulary.unknown(block))
            sizes[0] += len(block)
            sizes[1] += len(block.encode())
            block = rest + block
            ends = [block.rfind(mark) + 1 for mark in ("\n", END)] if vocabulary.by_lines else [
                m.end() for m in re.finditer(r"\S(?= [^\W\d_])", block[-4096:])]  # fmt: skip
            cut = max(ends, default=0) + (0 if vocabulary.by_lines else max(0, len(block) - 4096))
            cut = cut if vocabulary.tokenizer and ends and cut else len(block)
            yield vocabulary.encode(block[:cut], after)
            rest, after = block[cut:], block[cut - 1 : cut]
        if rest:
            yield vocabulary.encode(rest, after)

    def in_file(self, text: Text, vocabulary: Vocabulary) -> tuple[Mapped, list[int]]:
        """The tokens of a large part in a file below data/cache, made once."""
        size = self.facts["vocab_size"]
        kind = "uint8" if size <= 256 else "uint16" if size <= 65_536 else "int32"
        files = [(str(d.resolve()), d.stat().st_size, d.stat().st_mtime_ns) if isinstance(d, Path)
                 else seed_of(d) for d in text.documents]  # fmt: skip
        names = ("characters", "tokenizer", "spaced", "published", "literal")
        known = {k: self.facts[k] for k in names if k in self.facts}
        key = seed_of(str(files), text.begin, len(text), json.dumps(known, sort_keys=True), kind)
        path = CACHE / f"tokens-{key:016x}.{kind}"
        facts = path.with_suffix(".json")
        if self.dev.main and not facts.exists():
            sizes, temporary = [0, 0], path.with_suffix(f".{os.getpid()}.tmp")
            try:
                CACHE.mkdir(parents=True, exist_ok=True)
                with open(temporary, "wb") as file:
                    for tokens in self.encoded(text, vocabulary, sizes):
                        file.write(tokens.numpy().astype(kind).tobytes())
                os.replace(temporary, path)
                facts.write_text(json.dumps([sizes, "".join(sorted(self.unknown))]))
            except OSError as error:
                fail(f"can't write {temporary}: {error.strerror or error}")
            finally:
                with contextlib.suppress(OSError):
                    temporary.unlink(missing_ok=True)
        self.dev.gather(None)  # all wait for the one that writes
        sizes, unknown = json.loads(facts.read_text())
        self.unknown = set(unknown)
        return Mapped(path, kind), sizes

    def take(self, begins: Tensor, size: int) -> Tensor:
        """The tokens (B, `size`) that begin at these places (B,), int64 on the device."""
        if isinstance(self.values, Mapped):
            return self.values.take(begins, size).to(self.dev.device)
        places = begins[:, None] + torch.arange(size)
        return self.values[places.to(self.dev.device)].long()

    def windows(self, batch_size: int, window: int, steps: int) -> "Windows":
        """`steps` steps of `batch_size` tokens in all to train on."""
        return Windows(self, batch_size, window, steps)

    def in_order(self, batch_size: int, window: int) -> "InOrder":
        """The part once, in order."""
        return InOrder(self, batch_size, window)


class Windows:
    """The parts of steps that this process computes, in turn: tokens (B, T), and what follows each
    of them (B, T).

    Where the windows begin is drawn from (seed, step). A window is as long as it may be, or as the
    text is.
    """

    def __init__(self, tokens: Tokens, batch_size: int, window: int, steps: int):
        self.tokens, self.dev, self.steps, self.epoch, self.first = tokens, tokens.dev, steps, 0, 0
        self.window = max(1, min(window, batch_size, len(tokens) - 1))
        self.pieces = self.dev.world * self.dev.accumulate
        self.rows = max(1, batch_size // self.window)
        places = len(tokens) - self.window  # where windows may begin
        if self.rows > places:  # more would only be the same again
            self.rows = max(self.pieces, places - places % self.pieces)
        if self.rows % self.pieces:
            fail(f"--batch-size {batch_size} makes {counted(self.rows, 'window')} of {self.window} "
                 f"tokens, which {self.dev.world} processes x {self.dev.accumulate} micro-batches "
                 f"can't share: choose a multiple of {self.window * self.pieces}")  # fmt: skip

    def __len__(self) -> int:
        return self.steps

    def seek(self, epoch: int, step: int) -> None:
        """Sets the epoch, and the step to begin at, of the next iteration."""
        self.epoch, self.first = epoch, step

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for step in range(self.epoch * self.steps + self.first, (self.epoch + 1) * self.steps):
            generator = torch.Generator().manual_seed(seed_of("windows", self.dev.seed, step))
            places = len(self.tokens) - self.window
            begins = torch.randint(places, (self.rows,), generator=generator)
            for part in begins.view(self.pieces, -1)[self.dev.rank :: self.dev.world]:
                tokens = self.tokens.take(part, self.window + 1)
                yield tokens[:, :-1], tokens[:, 1:]


class InOrder:
    """A part in windows side by side, as `Windows` yields them, where -100 stands for what is not
    to be counted. Every token but the first is predicted once, from those before it in its window.

    A batch is as large as a part of a training step, and every process gets as many: with sharded
    parameters each waits for the others.
    """

    def __init__(self, tokens: Tokens, batch_size: int, window: int):
        self.tokens, self.dev = tokens, tokens.dev
        self.window = max(1, min(window, len(tokens) - 1))
        begins = torch.arange(0, len(tokens) - 1, self.window)
        self.last = len(tokens) - 1 - self.window  # where the last whole window begins
        idle = begins.new_full((-len(begins) % self.dev.world,), len(tokens) - 1)  # nothing counts
        mine = torch.cat([begins, idle])[self.dev.rank :: self.dev.world]
        part = batch_size // (self.dev.world * self.dev.accumulate)
        self.batches = mine.split(max(1, part // self.window))

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(progress_bar(self.pairs(), self.dev, "evaluating", len(self)))

    def pairs(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Tokens and what follows them."""
        for begins in self.batches:
            moved = begins.clamp(max=self.last)  # what is too short for a window begins earlier
            tokens = self.tokens.take(moved, self.window + 1)
            following = tokens[:, 1:].clone()
            told = torch.arange(self.window) < (begins - moved)[:, None]  # by the one before
            yield tokens[:, :-1], following.masked_fill(told.to(following.device), -100)


def load_corpus(
    args: argparse.Namespace,
    dev: Device,
    vocabulary: dict | None = None,
    make: Callable[[Iterable[str]], dict] | None = None,
) -> tuple[Tokens, Tokens | None, Tokens]:
    """The training, validation (None without --val) and test set of `--data`.

    The vocabulary is that of the checkpoint that the run goes on with, or the `vocabulary` of
    weights to start from, or made of the training set: by `make`, which gets its blocks, or as
    --tokens and --vocab-size say.
    """
    corpus = CORPORA[args.data.partition(":")[0]](args)
    for part, text in corpus.parts.items():
        if any(isinstance(document, Path) for document in text.documents):
            dev.say(f"{args.data} is large: it is read in blocks, its tokens go to {CACHE}")
            text.measure(dev, "the text" if part == "all" else f"the {part} set")
    texts, known = parts_of(args, corpus), args.stored.get("dataset", {})
    names = ("characters", "tokenizer", "vocab_size", "published", "spaced", "literal")
    facts = {name: known[name] for name in names if name in known} or vocabulary
    if not facts:
        blocks, most = texts["train"].blocks(), len(texts["train"])
        if args.tokens == "bpe":
            most = min(most, LEARNT_FROM)
        blocks = progress_bar(blocks, dev, "making the vocabulary", most // BLOCK + 1)
        if make:
            made = make(blocks)
        else:
            made = make_vocabulary(blocks, args.tokens, args.vocab_size, ends=True)
        facts = dev.gather(made)[0]
    sets = {name: Tokens(name, text, facts, dev) for name, text in texts.items()}
    kind = "characters" if "characters" in facts else "tokens"
    say_parts(args, dev, sets, kind, f"{facts['vocab_size']:,} different", corpus.note)
    for part in sets.values():
        if part.unknown:
            strange = counted(len(part.unknown), "character")
            dev.say(f"note: the {part.part} set has {strange} that training has not: "
                    f"{in_words(sorted(part.unknown))}")  # fmt: skip
        if len(part) < 2:
            fail(f"the {part.part} set of {args.data} is {counted(len(part), 'token')}: a "
                 "language model needs two at least in each, take more text")  # fmt: skip
    return sets["train"], sets.get("val"), sets["test"]
