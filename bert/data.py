"""Text to pre-train on: documents of sentences, vocabularies of pieces, examples step by step.

train, val, test = load_text(args, dev, "bert")
for inputs, answers in run.progress(train.steps(rows, length, steps)): ...

What an example looks like and what is hidden in it is each paper's own, in its file (`FAMILIES`);
here stand the text, the vocabulary, and which example comes when: a function of (seed, step).
"""

import argparse
import collections
import itertools
import json
import random
import re
import statistics
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from bert.model import FAMILIES, Example, Masked, Special, collate
from common import counted, fail, seed_of
from common.data.corpora import CORPORA, Text, parts_of
from common.data.corpora import END as BETWEEN
from common.data.sources import say_parts
from common.data.text import in_fixed_order, read_tokenizer
from common.device import Device
from common.run import progress_bar

KINDS = {"bert": "WordPiece", "electra": "WordPiece", "roberta": "byte-level BPE",
         "albert": "Unigram", "xlnet": "Unigram"}  # fmt: skip
OPENING, CLOSING = "\"'\u2018\u201c", "\"'\u2019\u201d"  # quotation marks, straight and curved
ENDS = re.compile(  # of a sentence: a mark, then space, then what isn't a small letter
    rf"(?<=[.!?])[{CLOSING})\]]*\s+(?=[{OPENING}(\[]*[^\s{OPENING}(\[a-z])"
)
CLOSED = tuple(f".!?:){CLOSING}")  # a line that ends so ends a sentence
LEARNT_FROM = 20_000_000  # characters that a vocabulary is made from
Sentence = list[int]  # tokens, without special ones
Document = list[Sentence]


# ---------------------------------------------------------------------- sentences


def sentences_of(document: str) -> list[str]:
    """The sentences of a document, without line breaks, and without lines that have neither letter
    nor digit, such as the rules of tables.

    Lines that mostly end as sentences do are sentences, or several; else they were broken to fit a
    page, and what an empty line ends is a paragraph. A sentence ends at a mark before a space and
    something that isn't a small letter.
    """
    lines = [line.strip() for line in document.splitlines()]
    lines = [line for line in lines if not line or any(map(str.isalnum, line))]
    full = [line for line in lines if line]
    whole = sum(line.endswith(CLOSED) for line in full) >= 0.8 * len(full)
    found, waiting = [], []
    for line in [*lines, ""]:
        if line:
            waiting.append(line)
        if waiting and (whole or not line):
            text = " ".join(waiting)
            cuts = [0, *(match.end() for match in ENDS.finditer(text)), len(text)]
            found += [text[a:b] for a, b in itertools.pairwise(cuts)]
            waiting = []
    return [sentence for sentence in map(str.strip, found) if sentence]


# ---------------------------------------------------------------------- vocabulary


class Vocabulary:
    """A vocabulary of pieces, from the `facts` of a checkpoint: the `tokenizer` as JSON, whose
    `family` it is of, and whether it was `published`."""

    def __init__(self, facts: dict):
        self.family = facts["family"]
        self.tokenizer = read_tokenizer(facts["tokenizer"])
        self.tokenizer.no_padding()
        self.tokenizer.no_truncation()
        # A word is the same pieces at a sentence's beginning as in the middle.
        self.before = " " if self.family == "roberta" and not facts.get("published") else ""
        roles = FAMILIES[self.family].roles
        ids = {role: self.tokenizer.token_to_id(name) for role, name in roles.items()}
        if missing := [roles[role] for role, token in ids.items() if token is None]:
            fail(f"the tokenizer is of another model than {self.family}: it has no {missing[0]}")
        self.size, self.known = facts["vocab_size"], self.tokenizer.get_vocab_size()
        known = set(ids.values())
        added = self.tokenizer.get_added_tokens_decoder()
        others = sorted(i for i, token in added.items() if token.special and i not in known)
        self.special = Special(
            **ids, vocab_size=self.size, others=tuple(others), begins=self.begins()
        )

    def begins(self) -> list[bool]:
        """Of each token whether a word begins with it."""
        found, marks = [True] * self.size, {"roberta": "Ġ", "albert": "▁", "xlnet": "▁"}
        special = self.tokenizer.get_added_tokens_decoder()
        for token, number in self.tokenizer.get_vocab().items():
            if number < self.size and number not in special:
                mark = marks.get(self.family)
                found[number] = token.startswith(mark) if mark else not token.startswith("##")
        return found

    def encode(self, texts: Sequence[str]) -> list[Sentence]:
        """The tokens of texts. What looks like a special token in them is text like any other, or
        unknown, where the vocabulary has no other pieces for it."""
        self.tokenizer.encode_special_tokens = True
        lines = [self.before + text for text in texts]
        found = self.tokenizer.encode_batch_fast(lines, add_special_tokens=False)
        never, unknown = self.special.all, self.special.unk
        return [[unknown if t in never else t for t in piece.ids] for piece in found]

    def encode_with_masks(self, text: str) -> Sentence:
        """The tokens of one text, in which special tokens may be written."""
        self.tokenizer.encode_special_tokens = False
        return self.tokenizer.encode(self.before + text, add_special_tokens=False).ids

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of tokens."""
        text = self.tokenizer.decode(list(tokens), skip_special_tokens=False).strip()
        mask = FAMILIES[self.family].roles["mask"]
        return re.sub(rf"(?<=\S){re.escape(mask)}", f" {mask}", text)

    def names(self, tokens: Sequence[int]) -> list[str]:
        """What a person calls tokens: the pieces, without the mark of a word's beginning."""
        found = []
        for token in tokens:
            name = self.tokenizer.id_to_token(int(token)) or "?"
            if self.family == "roberta" and token not in (*self.special[:5], *self.special.others):
                name = self.tokenizer.decode([int(token)]).strip()
            found.append(name.lstrip("▁") or name)
        return found


def make_vocabulary(
    sentences: Sequence[str], family: str, vocab_size: int, lowercase: bool
) -> dict:
    """The `facts` of a vocabulary of the family's kind, of at most `vocab_size` tokens made of
    these sentences.

    bert, electra: WordPiece (Wu et al. 2016); roberta: byte-level BPE (Radford et al. 2019);
    albert, xlnet: Unigram (Kudo 2018). With `lowercase` capitals and accents go.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
    from tokenizers import trainers  # isort: skip

    specials, roles = FAMILIES[family].specials, FAMILIES[family].roles
    bare = [normalizers.NFD(), normalizers.Lowercase(), normalizers.StripAccents()]
    how = dict(vocab_size=vocab_size, special_tokens=list(specials), show_progress=False)
    kind = KINDS[family]
    if kind == "WordPiece":
        tokenizer = Tokenizer(models.WordPiece(unk_token=roles["unk"]))
        tokenizer.normalizer = normalizers.BertNormalizer(
            lowercase=lowercase, strip_accents=lowercase, handle_chinese_chars=True
        )
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        tokenizer.decoder = decoders.WordPiece()
        letters = frequent_letters(sentences, tokenizer.normalizer, vocab_size // 4)
        least, kinds = len(specials) + 2 * len(letters), "letter, alone and inside of a word"
        # Named beforehand, or the library would number what goes on a word, and so choose among
        # equal pairs, in an order that is another each time.
        how["special_tokens"] = [*specials, *(f"##{letter}" for letter in letters)]
        limit = dict(initial_alphabet=letters, limit_alphabet=len(letters))
        trainer = trainers.WordPieceTrainer(**how, **limit)
    elif kind == "byte-level BPE":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.normalizer = normalizers.Sequence(bare) if lowercase else None
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        least, kinds = len(specials) + len(alphabet), "of 256 bytes"
        trainer = trainers.BpeTrainer(**how, initial_alphabet=alphabet)
        sentences = (f" {sentence}" for sentence in sentences)
    else:
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.normalizer = normalizers.Sequence(
            [normalizers.NFKC(), *(bare if lowercase else []), normalizers.Replace(" {2,}", " ")]
        )
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
        tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
        letters = frequent_letters(sentences, tokenizer.normalizer, vocab_size // 2)
        least, kinds = len(specials) + len(letters), "letter"
        trainer = trainers.UnigramTrainer(
            **how, unk_token=roles["unk"], initial_alphabet=letters, max_piece_length=16
        )
    if vocab_size <= least:
        fail(f"--vocab-size {vocab_size}: {kind} needs more than {least:,} tokens here, one for "
             f"each special token and each {kinds}")  # fmt: skip
    tokenizer.train_from_iterator(sentences, trainer)
    if kind == "Unigram":
        tokenizer = in_fixed_order(tokenizer, specials, specials.index(roles["unk"]))
        tokenizer.add_special_tokens([AddedToken(name, special=True) for name in specials])
    plain = json.loads(tokenizer.to_str())
    plain["added_tokens"] = [t for t in plain["added_tokens"] if t["content"] in specials]
    tokenizer = Tokenizer.from_str(json.dumps(plain))
    # Where a text says "[MASK]", the space before belongs to it, as the next word brings its own.
    mask = AddedToken(roles["mask"], lstrip=kind != "WordPiece", special=True)
    tokenizer.add_special_tokens([mask])
    size = tokenizer.get_vocab_size()
    return dict(tokenizer=tokenizer.to_str(), vocab_size=size, family=family)


def frequent_letters(sentences: Sequence[str], normalizer, most: int) -> list[str]:
    """The `most` frequent characters, as the library's own choice among equals is random."""
    counts: collections.Counter = collections.Counter()
    for begin in range(0, len(sentences), 1000):
        text = normalizer.normalize_str(" ".join(sentences[begin : begin + 1000]))
        counts.update(text.replace(" ", ""))
    return sorted(counts, key=lambda c: (-counts[c], c))[:most]


# ---------------------------------------------------------------------- one part of a text


def at_least_two(documents: list[Document]) -> list[Document]:
    """The documents; of one alone its halves, as a pair may have to be of two."""
    if len(documents) > 1:
        return documents
    sentences = documents[0]
    if len(sentences) == 1 and len(sentences[0]) > 1:
        sentences = [sentences[0][: len(sentences[0]) // 2], sentences[0][len(sentences[0]) // 2 :]]
    middle = len(sentences) // 2
    return [sentences[:middle] or sentences, sentences[middle:]]


class Documents:
    """One part of a corpus: `part` is "train", "val" or "test".

    `facts` are what a checkpoint keeps, the same for all parts; `copies` says how many different
    examples and masks a text gets before they are the same again (None: always others). `arrange`
    makes the examples, usually as the family's paper does.
    """

    def __init__(
        self,
        part: str,
        documents: list[Document],
        facts: dict,
        dev: Device,
        copies: int | None = None,
        arrange: Callable[..., list[Example]] | None = None,
    ):
        self.part, self.facts, self.dev, self.copies = part, facts, dev, copies
        self.documents = at_least_two(documents)
        self.family = FAMILIES[facts["family"]]
        self.arrange = arrange or self.family.arrange
        self.special = Vocabulary(facts).special

    def __len__(self) -> int:
        return sum(len(sentence) for document in self.documents for sentence in document)

    def examples(self, length: int, number: int) -> list[Example]:
        """The examples of the `number`th pass over the text, of at most `length` tokens each."""
        draw = random.Random(seed_of("pairs", self.part, self.seed, number))
        found = self.arrange(self.documents, length, self.special, draw)
        if not found:
            fail(f"the {self.part} set has too few words for an example: take more text")
        return found

    def masked(self, example: Example, number: int, place: int) -> Masked:
        """An example of the `number`th pass, the `place`th in it, with its mask."""
        draw = random.Random(seed_of("mask", self.part, self.seed, number, place))
        return self.family.corrupt(example, self.special, draw)

    @property
    def seed(self) -> int:
        """That of the run; but what is measured is the same for all."""
        return self.dev.seed if self.part == "train" else 0

    def steps(self, rows: int, length: int, steps: int) -> "Steps":
        """`steps` steps of `rows` examples to train on."""
        return Steps(self, rows, length, steps)

    def in_order(self, rows: int, length: int) -> Iterator[tuple[dict, dict, bool]]:
        """The part once, `rows` examples at a time: inputs and answers, and whether they count.

        Every process gets as many batches, of which the last may not count: with sharded
        parameters each waits for the others.
        """
        examples, dev = self.examples(length, 0), self.dev
        cuts = torch.arange(len(examples)).split(rows)
        mine = [cuts[i % len(cuts)] for i in range(dev.rank, len(cuts) + -len(cuts) % dev.world,
                dev.world)]  # fmt: skip
        counts = [i < len(cuts) for i in range(dev.rank, len(cuts) + -len(cuts) % dev.world,
                  dev.world)]  # fmt: skip
        batches = progress_bar(mine, dev, "evaluating", len(mine))
        for some, count in zip(batches, counts, strict=True):
            masked = [self.masked(examples[i], 0, i) for i in some.tolist()]
            yield *self.batch(masked), count

    def batch(self, masked: list[Masked]) -> tuple[dict, dict]:
        """Inputs and answers, as the network takes them, on the device."""
        return collate(masked, self.special.pad, self.facts["family"], self.dev.device)


def split_long(parts: Sequence[Documents | None], length: int, dev: Device) -> None:
    """Cuts sentences that have more tokens than an example in pieces, and says how many there are:
    else what is over would never be read."""
    most, count = length - len(("[CLS]", "[SEP]", "[SEP]")), 0
    for part in filter(None, parts):
        for document in part.documents:
            count += sum(len(sentence) > most for sentence in document)
            document[:] = [s[i : i + most] for s in document for i in range(0, len(s), most)]
    if count:
        dev.say(f"note: {counted(count, 'sentence')} of more than {most} tokens cut in pieces")


class Steps:
    """The parts of steps that this process computes, in turn: inputs and answers.

    Which examples a step has, and with which masks, follows from (seed, step) alone. The text is
    read pass after pass, each in an order of its own.
    """

    def __init__(self, text: Documents, rows: int, length: int, steps: int):
        self.text, self.dev, self.length, self.count = text, text.dev, length, steps
        self.epoch = self.first = 0
        self.pieces = self.dev.world * self.dev.accumulate
        self.rows = rows
        if rows % self.pieces:
            fail(f"--batch-size makes {counted(rows, 'example')} of {length} tokens, which "
                 f"{self.dev.world} processes x {self.dev.accumulate} micro-batches can't share: "
                 f"choose a multiple of {length * self.pieces}")  # fmt: skip
        self.made: dict[int, list[Example]] = {}  # of the current pass, by its number
        self.sizes: list[int] = []  # of the passes so far

    def __len__(self) -> int:
        return self.count

    def seek(self, epoch: int, step: int) -> None:
        """Sets the epoch, and the step to begin at, of the next iteration."""
        self.epoch, self.first = epoch, step

    def reading(self, number: int) -> tuple[list[Example], Tensor, int]:
        """The examples of a pass, their order, and the number that their draws go by."""
        key = number % self.text.copies if self.text.copies else number
        if key not in self.made:
            self.made.clear()
            self.made[key] = self.text.examples(self.length, key)
        examples = self.made[key]
        generator = torch.Generator().manual_seed(seed_of("order", self.dev.seed, number))
        return examples, torch.randperm(len(examples), generator=generator), key

    def from_row(self, row: int) -> Iterator[Masked]:
        """The examples from the `row`th on, without end."""
        begin = 0
        for number in itertools.count():
            if number == len(self.sizes) or row < begin + self.sizes[number]:
                examples, order, key = self.reading(number)
                self.sizes[number:] = [len(examples)]
                for place in order[max(0, row - begin) :].tolist():
                    yield self.text.masked(examples[place], key, place)
            begin += self.sizes[number]

    def __iter__(self) -> Iterator[tuple[dict, dict]]:
        begin = self.epoch * self.count
        rows = self.from_row((begin + self.first) * self.rows)
        for _ in range(self.first, self.count):
            step = torch.arange(self.rows).tensor_split(self.pieces)
            masked = list(itertools.islice(rows, self.rows))
            for part in step[self.dev.rank :: self.dev.world]:
                yield self.text.batch([masked[i] for i in part.tolist()])


# ---------------------------------------------------------------------- what is easy to tell


def guesses(train: Documents, part: Documents, length: int) -> dict[str, float]:
    """How often two simple models of the training set are right where tokens of `part` are hidden,
    in the examples that `part.in_order` has.

    A unigram model always says the most frequent token. A bigram model says what most often follows
    the token before (which it is shown, though that may be hidden, too).
    """
    size = train.special.vocab_size
    texts = [[t for sentence in document for t in sentence] for document in train.documents]
    usual = int(torch.tensor(list(itertools.chain.from_iterable(texts))).bincount().argmax())
    ids = [torch.tensor(text, dtype=torch.long) for text in texts]  # also those of one token
    pairs = torch.cat([text[:-1] * size + text[1:] for text in ids])
    keys, counts = pairs.unique(return_counts=True)
    order = counts.argsort(stable=True)  # of equal counts the largest token comes last, and counts
    best = dict(zip((keys // size)[order].tolist(), (keys % size)[order].tolist(), strict=True))
    right, total = [0, 0], 0
    for place, example in enumerate(part.examples(length, 0)):
        masked = part.masked(example, 0, place)
        for where, target in zip(masked.places, masked.targets, strict=True):
            before = example.tokens[where - 1] if where else -1
            right[0] += target == usual
            right[1] += target == best.get(before, usual)
            total += 1
    names = "unigram_accuracy", "bigram_accuracy"
    return {f"{part.part}_{name}": n / max(1, total) for name, n in zip(names, right, strict=True)}


# ---------------------------------------------------------------------- loading


def read_parts(args: argparse.Namespace) -> tuple[dict[str, list[list[str]]], str]:
    """The sentences of the documents of each part, and what there is to say of the corpus."""
    corpus = CORPORA[args.data.partition(":")[0]](args)
    parts = parts_of(args, corpus)
    found = {}
    for name, text in parts.items():
        documents = map(sentences_of, documents_of(text))
        found[name] = [document for document in documents if document]
    return found, corpus.note


def documents_of(text: Text) -> list[str]:
    """The documents of a part of a corpus."""
    return str(text).split(BETWEEN)


def load_text(
    args: argparse.Namespace,
    dev: Device,
    family: str,
    vocabulary: dict | None = None,
    arrange: Callable[..., list[Example]] | None = None,
) -> tuple[Documents, Documents | None, Documents]:
    """The training, validation (None without --val) and test set of `--data`.

    The vocabulary is that of the checkpoint that the run goes on with, or the `vocabulary` of
    weights to start from, or made of the training set as --vocab-size and --lowercase say.
    """
    parts, note = read_parts(args)
    known = args.stored.get("dataset", {})
    names = ("tokenizer", "vocab_size", "family", "published")
    facts = {name: known[name] for name in names if name in known} or dict(vocabulary or {})
    if not facts:
        sentences = list(itertools.chain.from_iterable(parts["train"]))
        sizes = list(itertools.accumulate(map(len, sentences)))
        most = sum(size <= LEARNT_FROM for size in sizes)
        dev.say(f"making a vocabulary ({KINDS[family]}) of {counted(most, 'sentence')}")
        made = make_vocabulary(sentences[:most], family, args.vocab_size, args.lowercase)
        facts = dev.gather(made)[0]
    coder, sets = Vocabulary(facts), {}
    for name, documents in parts.items():
        encoded = encode_documents(documents, coder)
        if not encoded:
            fail(f"the {name} set of {args.data} has no words: take more text")
        if len(encoded) == 1:
            dev.say(f"note: the {name} set is one document: its halves are taken for two")
        sets[name] = Documents(name, encoded, facts, dev, args.copies, arrange)
    count = sum(map(len, parts["train"]))
    typical = statistics.median(len(s) for d in sets["train"].documents for s in d)
    words = f"{facts['vocab_size']:,} different ({KINDS[coder.family]})"
    shape = (
        f"in training {counted(len(parts['train']), 'document')} of {counted(count, 'sentence')}"
    )
    say_parts(
        args, dev, sets, "tokens", words, f"{shape}, of {typical:g} tokens in the middle", note
    )
    for name, part in sets.items():
        unknown = sum(s.count(part.special.unk) for d in part.documents for s in d)
        if unknown:
            dev.say(f"note: {counted(unknown, 'token')} of the {name} set are unknown to the "
                    "vocabulary")  # fmt: skip
    return sets["train"], sets.get("val"), sets["test"]


def encode_documents(documents: list[list[str]], vocabulary: Vocabulary) -> list[Document]:
    """Documents of sentences as tokens; what has none is left out."""
    flat = vocabulary.encode(list(itertools.chain.from_iterable(documents)))
    sentences, found = iter(flat), []
    for document in documents:
        tokens = [t for t in itertools.islice(sentences, len(document)) if t]
        if tokens:
            found.append(tokens)
    return found
