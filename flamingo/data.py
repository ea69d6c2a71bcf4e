"""Images with what is said of them, interleaved as the paper has it (Sec. 2.3, Fig. 9).

train, val, test = load(args, dev, size)         # common's CaptionSets, whose captions are entries
words = Words(facts["vocabulary"])               # of the language model
seen = Part(train, model, dev)                   # images as the frozen encoder sees them, kept
for rows in run.progress(Interleaved(seen, words, args, dev)): ...   # training
rows = tests(part, support, words, kind, shots=4)                    # questions after examples

A row is one sequence: <BOS><image>Question: … Answer: red<EOC><image>… where <BOS> and <EOC> are
the language model's end of a document.
"""

import argparse
import collections
import dataclasses
import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from common import cli, counted, fail, seed_of, unknown
from common.data import shapes as world
from common.data.captions import READERS, Captioned, CaptionSet, load_captions, scene_images
from common.data.corpora import END, END_TOKEN, Vocabulary
from common.data.files import ImageFiles
from common.data.sources import PART_NAMES, Source, split
from common.device import Device
from common.run import progress_bar
from flamingo.model import Flamingo
from flamingo.questions import CAPTION, IMAGE, KINDS, MARK, WORDS, Entry, ask, prompt_of

DATA = ["shapes", "shapes:N", "flickr8k", "vqa:JSON"]
QUESTION = "question"  # the kind of the user's own, unless they name kinds
HELD = 2 << 30  # bytes of features that are kept; of more, images are looked at as they are needed
CHUNK = 100  # images that are looked at together
# Position first: who has learnt to look everywhere alike, for colours, doesn't learn it any more.
ORDER = ("position", "colour", "size", "count", "shape", "yes-no", CAPTION)
ALONE = 0.5  # share of training rows that are of one kind of entry
# How often a kind is drawn where others are once: what is learned late more often, what is learned
# soon less so, as are captions, which have ten times the tokens of an answer.
SHARES = {"shape": 2.0, "size": 1.2, "count": 0.5, CAPTION: 0.2}
TOLD = 0.5  # how often the language model reads a caption and questions on it, not a row


# ---------------------------------------------------------------------- sources


def scenes(args: argparse.Namespace) -> Source:
    """Scenes of the world of shapes, each with its caption and all questions."""
    parts = {}
    for name, images in scene_images(args).items():
        entries = ask(images.indices, images.seed)
        parts[name] = Captioned(images, entries, world.labels_of(images.indices))
    return Source(world.CLASSES, parts)


def captioned(args: argparse.Namespace) -> Source:
    """Flickr8k's captions as entries."""
    source = READERS["flickr8k"](args)
    for part in source.parts.values():
        part.captions = [[Entry(CAPTION, "", text) for text in some] for some in part.captions]
    return source


def read_json(path: Path, flag: str) -> list[dict]:
    """The list of objects in a JSON file; or, a line each, of JSON lines."""
    if not path.is_file():
        fail(f"{flag}: there is no file {path}")
    try:
        text = path.read_text("utf-8-sig")
        found = [json.loads(line) for line in text.splitlines() if line.strip()] if (
            path.suffix == ".jsonl") else json.loads(text)  # fmt: skip
    except OSError as error:
        fail(f"can't read {path}: {error.strerror or error}")
    except ValueError as error:  # UnicodeDecodeError is one
        fail(f"{path} is not JSON ({error})")
    if not isinstance(found, list) or not all(isinstance(entry, dict) for entry in found):
        fail(f"{path} has to be a list of objects, each with image, question and answer")
    if not found:
        fail(f"{path} is empty: it needs objects with image, question and answer")
    return found


def clean(value: object) -> str:
    """A text of the user's in one line, without what marks images and ends."""
    text = " ".join(str(value).split())
    return text.replace(MARK, " ").replace(END, " ")


def vqa(args: argparse.Namespace) -> Source:
    """The user's own questions: JSON of (image, question, answer), images beside the file.

    An entry may have a `kind`, a `split` (train, val, test), and in place of question and answer a
    `caption`. Without splits a seeded fifth of the images is the test set.
    """
    path = Path(args.data.partition(":")[2]).expanduser()
    found: dict[str, dict[str, list[Entry]]] = {}
    for number, raw in enumerate(read_json(path, f"--data {args.data}"), 1):
        where = f"{path}: entry {number}"
        image = raw.get("image")
        if not isinstance(image, str) or not image:
            fail(f"{where} has no image")
        if not (file := path.parent / image).is_file():
            fail(f"{where} names {image}, which is not in {path.parent}")
        name = PART_NAMES.get(str(raw.get("split", "train")).lower())
        if not name:
            fail(f"{where} has the split {raw['split']!r}: train, val and test are known")
        some = found.setdefault(name, {}).setdefault(str(file), [])
        some.append(entry_of(raw, where))
    if "train" not in found:
        fail(f"{path}: no entry is of the train set")
    parts = {name: Captioned(ImageFiles(list(some)), list(some.values()))
             for name, some in found.items()}  # fmt: skip
    note = ""
    if "test" not in parts and "val" in parts:
        parts["test"], note = parts.pop("val"), "there is no test set, so val is it"
    elif "test" not in parts:
        everything = parts["train"]
        if len(everything) < 2:
            fail(f"--data {args.data} is of one image: that can't be split")
        cuts = split(len(everything), 0.2, 0)
        parts["train"], parts["test"] = (everything.take(places) for places in cuts)
        note = "a seeded fifth of the images is the test set"
    return Source([], parts, note)


def entry_of(raw: dict, where: str) -> Entry:
    """What an object of a JSON file says of its image."""
    if "caption" in raw:
        if not clean(raw["caption"]):
            fail(f"{where}: its caption is empty")
        return Entry(CAPTION, "", clean(raw["caption"]))
    for key in ("question", "answer"):
        if not clean(raw.get(key, "")):
            keys = ", ".join(raw) or "nothing"
            fail(f"{where} has no {key}: there are {keys}")
    kind = clean(raw.get("kind", QUESTION))
    return Entry(kind, clean(raw["question"]), clean(raw["answer"]))


SOURCES = {"shapes": scenes, "flickr8k": captioned, "vqa": vqa}


def load(
    args: cli.Flags, dev: Device, size: int
) -> tuple[CaptionSet, CaptionSet | None, CaptionSet]:
    """The training, validation (None without --val) and test set of `--data`; `captions` are the
    entries of each image. Scenes are the same in each epoch, as images are looked at but once."""
    name = f"shapes:{world.NUM_SCENES['train']}" if args.data == "shapes" else args.data
    sets = load_captions(
        args.but(data=name), dev, size, readers=SOURCES, what="questions and captions"
    )
    kinds = {entry.kind for some in sets[0].captions for entry in some}
    for kind in args.leave_out or ():
        if kind not in kinds - {CAPTION}:
            fail(f"--leave-out: {unknown('kind', kind, sorted(kinds - {CAPTION}))}")
    if not kinds - {*(args.leave_out or ())}:
        fail("--leave-out leaves nothing to train on")
    return sets


# ---------------------------------------------------------------------- text


class Words:
    """The language model's vocabulary at work: entries and prompts as tokens.

    Ends in one line if it lacks what marks an image, or the end of a document.
    """

    def __init__(self, facts: dict):
        self.vocabulary = Vocabulary(facts)
        self.kept: dict[str, list[int]] = {}
        mark = self.vocabulary.encode(MARK).tolist()
        if len(mark) != 1 or mark[0] in self.vocabulary.never:
            fail("the language model's vocabulary has no token for the mark of an image: take one "
                 "of gpt/train.py --tokens bpe")  # fmt: skip
        if self.vocabulary.end is None:
            fail("the language model's vocabulary has no end of a document, which ends an answer")
        self.mark, self.end = mark[0], self.vocabulary.end

    def tokens(self, text: str) -> list[int]:
        """A text without marks."""
        if text not in self.kept:
            self.kept[text] = self.vocabulary.encode(text).tolist()
        return self.kept[text]

    def chunk(self, entry: Entry) -> tuple[list[int], int]:
        """<image>, prompt, answer, <EOC>; and the place where the answer begins."""
        prompt = [self.mark, *self.tokens(prompt_of(entry))]
        return [*prompt, *self.tokens(f" {entry.answer}"), self.end], len(prompt)

    def prompt(self, text: str) -> list[int]:
        """A prompt as the user writes it, with `<image>` where images stand, after <BOS>.

        Spaces around a mark don't count.
        """
        found = [self.end]
        for number, part in enumerate(clean_prompt(text).split(IMAGE)):
            found += [self.mark] * bool(number) + self.tokens(part.strip(" ")) * bool(part.strip())
        return found

    def text(self, tokens: Sequence[int]) -> str:
        """Tokens as people write them."""
        found = self.vocabulary.decode(list(tokens))
        return found.replace(MARK, IMAGE).replace(END, " ").strip()


def clean_prompt(text: str) -> str:
    """A prompt without the characters that stand for marks and ends."""
    return text.replace(MARK, "").replace(END, " ")


@dataclasses.dataclass
class Rows:
    """Sequences side by side: tokens (B, T), ended by ends; what follows each, -100 where that
    isn't counted; and features of the images (B, M, 1, P, C)."""

    tokens: Tensor
    following: Tensor
    features: Tensor

    def to(self, device: torch.device) -> "Rows":
        """The same on a device."""
        return Rows(*(x.to(device, non_blocking=True) for x in vars(self).values()))


def lay(
    rows: Sequence[Sequence[Entry]], words: Words, whole: bool, last: bool = False
) -> tuple[Tensor, Tensor]:
    """Entries in rows as tokens (B, T), and what follows each of them (B, T).

    Counted are the answers with their ends; `whole` counts all text but marks (as the paper does),
    `last` the last answer of a row alone.
    """
    made = []
    for row in rows:
        tokens, counted_here = [words.end], [False]
        for number, entry in enumerate(row):
            chunk, begin = words.chunk(entry)
            first = 1 if whole else begin
            tokens += chunk
            on = not last or number == len(row) - 1
            counted_here += [on and place >= first for place in range(len(chunk))]
        made.append((tokens, counted_here))
    longest = max(len(tokens) for tokens, _ in made)
    tokens = torch.full((len(rows), longest), words.end)
    counts = torch.zeros(len(rows), longest, dtype=torch.bool)
    for place, (own, on) in enumerate(made):
        tokens[place, : len(own)], counts[place, : len(own)] = torch.tensor(own), torch.tensor(on)
    following = tokens[:, 1:].masked_fill(~counts[:, 1:], -100)
    return tokens[:, :-1], following


# ---------------------------------------------------------------------- parts


class Entries:
    """What is said of a part's images.

    `groups` are by kind the places (image, entry) with the same answer: a draw takes an answer
    first, so that each is as frequent as the others. Captions, and the user's own questions, are
    one group each: drawn as they come.
    """

    def __init__(self, part: CaptionSet):
        self.part = part
        answers: dict[str, dict[str, list]] = {}
        for image, entries in enumerate(part.captions):
            for place, (kind, _, answer) in enumerate(entries):
                group = answer if kind in KINDS else ""
                answers.setdefault(kind, {}).setdefault(group, []).append((image, place))
        self.groups = {kind: list(found.values()) for kind, found in sorted(answers.items())}

    def entry(self, place: tuple[int, int]) -> Entry:
        """The entry at a place."""
        return self.part.captions[place[0]][place[1]]

    @property
    def kinds(self) -> list[str]:
        """The kinds of questions."""
        return [kind for kind in self.groups if kind != CAPTION]


class Part(Entries):
    """A part of the data at work: its entries, and its images as the frozen encoder sees them.

    Entries of more than `room` tokens are left out, and counted in `left`; `longest` is how many
    the longest of a kind has of those that stay.
    """

    def __init__(self, part: CaptionSet, model: Flamingo, dev: Device, words: Words, room: int):
        super().__init__(part)
        self.model, self.dev, self.left = model, dev, 0
        self.longest: dict[str, int] = {}
        for kind, groups in list(self.groups.items()):
            sizes = [[len(words.chunk(self.entry(p))[0]) for p in group] for group in groups]
            flat = [size for some in sizes for size in some]
            self.left += sum(size > room for size in flat)
            self.longest[kind] = max((size for size in flat if size <= room), default=0)
            kept = [[p for p, size in zip(group, some, strict=True) if size <= room]
                    for group, some in zip(groups, sizes, strict=True)]  # fmt: skip
            self.groups[kind] = [group for group in kept if group]
        self.groups = {kind: groups for kind, groups in self.groups.items() if groups}
        size = len(part) * model.vision_encoder.places * model.vision_encoder.width * 4
        self.known = None if size > HELD else self.look_at_all()

    @torch.no_grad()
    def look_at_all(self) -> Tensor:
        """Features of all images (N, P, C), once, in float32; on the device where they fit."""
        images, self.model = self.part.images, self.model.eval()
        parts = torch.arange(len(self.part)).split(CHUNK)
        bar = progress_bar(parts, self.dev, f"looking at the {self.part.part} images", len(parts))
        found = [self.features_of(images.examples(some)[0]).cpu() for some in bar]
        known = torch.cat(found)
        if self.dev.device.type == "cuda":
            free, _ = torch.cuda.mem_get_info()
            fits = known.numel() * 4 < free / 4
            known = known.to(self.dev.device) if fits else known.pin_memory()
        return known

    def features_of(self, images: Tensor) -> Tensor:
        """Of images (n, 3, S, S) on the device: (n, P, C)."""
        with torch.no_grad():
            return self.model.vision_encoder.features(images).float()

    def features(self, places: Tensor) -> Tensor:
        """Of the images at `places` (B, M): (B, M, 1, P, C)."""
        flat = places.flatten()
        if self.known is None:
            found = self.features_of(self.part.images.examples(flat)[0])
        else:
            found = self.known[flat.to(self.known.device)]
        return found.unflatten(0, places.shape)[:, :, None]


def shares_of(kinds: Sequence[str], coming: bool) -> list[float]:
    """How often entries of each kind are drawn; while kinds are still `coming` in one after
    another, the newest as often as all others."""
    found = [SHARES.get(kind, 1.0) for kind in kinds]
    return [*found[:-1], sum(found[:-1])] if coming and len(found) > 1 else found


def draw_row(
    part: Entries,
    kinds: Sequence[str],
    length: int,
    riddles: float,
    draw: random.Random,
    coming: bool = False,
) -> tuple[list[tuple[int, int]], str | None]:
    """The places of a training row's entries, and its riddle's word, or None.

    Half of the rows are of one kind, so that what comes is told by the examples before it; of those
    of a kind of question, a share has a made-up word in place of all questions.
    """
    alone = draw.random() < ALONE
    own = draw.choices(kinds, shares_of(kinds, coming), k=length)
    kind = own[0]
    own = [kind] * length if alone else own
    places = [draw.choice(draw.choice(part.groups[kind])) for kind in own]
    riddle = alone and length > 1 and kind != CAPTION and draw.random() < riddles
    return places, draw.choice(WORDS) if riddle else None


def entries_of(part: Entries, places: Sequence[tuple[int, int]], riddle: str | None) -> list[Entry]:
    """The entries of a row, in a riddle with its word for a question."""
    found = [part.entry(place) for place in places]
    return found if riddle is None else [e._replace(question=f"{riddle}?") for e in found]


def trained_kinds(part: Entries, args: cli.Flags) -> list[str]:
    """The kinds of entries that are trained on, in the order in which they come in."""
    kinds = [kind for kind in part.groups if kind not in (args.leave_out or ())]
    return sorted(kinds, key=lambda kind: ORDER.index(kind) if kind in ORDER else len(ORDER))


def introduced(kinds: Sequence[str], step: int, steps: int, share: float) -> Sequence[str]:
    """The kinds that have come in by a step: one after another, in a share of the steps."""
    over = share * steps
    return kinds[: 1 + int(step / over * len(kinds))] if step < over else kinds


def lengths(images: int, most: int) -> list[int]:
    """How long rows can be that share so many images, at most `most`."""
    return [n for n in range(1, most + 1) if images % n == 0]


def room_for(model: Flamingo, args: cli.Flags) -> int:
    """How many tokens an entry may have, so that --shots examples and a question fit."""
    return (model.lang_encoder.context - 1) // (args.shots + 1)


def say_left(parts: Sequence[Part], room: int, dev: Device) -> None:
    """Says how many entries are too long; ends in one line where none is short enough."""
    for part in parts:
        if not part.groups:
            fail(f"nothing that is said of the {part.part.part} images fits into {room} tokens: "
                 "take fewer --shots, or a language model that sees more at once")  # fmt: skip
    if left := sum(part.left for part in parts):
        what = counted(left, "question or caption", "questions and captions")
        dev.say(f"note: {what} of more than {room} tokens left out: with --shots examples they "
                "don't fit")  # fmt: skip


class Interleaved:
    """The parts of training steps that this process computes, in turn: `Rows`.

    A step has `--batch-size` images, cut into rows of one length, which is drawn for each step
    among those up to one more than `--shots`. All is drawn from (seed, step).
    """

    def __init__(self, part: Part, words: Words, args: cli.Flags, dev: Device, steps: int):
        self.part, self.words, self.args, self.dev, self.steps = part, words, args, dev, steps
        self.epoch = self.first = 0
        self.pieces = dev.world * dev.accumulate
        if args.batch_size % self.pieces:
            fail(f"--batch-size {args.batch_size} can't be cut into {dev.world} x {dev.accumulate} "
                 f"parts: choose a multiple of {self.pieces}")  # fmt: skip
        self.lengths = lengths(args.batch_size // self.pieces, args.shots + 1)
        self.kinds = trained_kinds(part, args)

    def __len__(self) -> int:
        return self.steps

    def seek(self, epoch: int, step: int) -> None:
        """Sets the epoch, and the step to begin at, of the next iteration."""
        self.epoch, self.first = epoch, step

    def __iter__(self) -> Iterator[Rows]:
        for step in range(self.epoch * self.steps + self.first, (self.epoch + 1) * self.steps):
            draw = random.Random(seed_of("rows", self.dev.seed, step))
            length = draw.choice(self.lengths)
            count = self.args.batch_size // length
            kinds = introduced(self.kinds, step, self.args.steps, self.args.introduce)
            how = kinds, length, self.args.riddles, draw, len(kinds) < len(self.kinds)
            rows = [draw_row(self.part, *how) for _ in range(count)]
            size = count // self.pieces
            for piece in range(self.dev.rank, self.pieces, self.dev.world):
                yield self.made(rows[piece * size : (piece + 1) * size])

    def made(self, rows: list) -> Rows:
        """Rows of places as tokens and features, on the device."""
        entries = [entries_of(self.part, *row) for row in rows]
        images = torch.tensor([[image for image, _ in places] for places, _ in rows])
        laid = lay(entries, self.words, whole=self.args.loss == "text")
        return Rows(*laid, self.part.features(images)).to(self.dev.device)


def text_for_language(part: CaptionSet, args: cli.Flags, chunks: int) -> str:
    """What the language model is trained on, one entry a document.

    By turns of chance it is a row as Flamingo's, of the same kinds, without images, whose answers
    nobody can know; or a caption and up to four questions about the same image, which have no mark
    of an image: their answers are in the text before, so that the model learns to read it for them,
    and to tell the words of answers apart. What is left out of the training is left out here, too.
    """
    known, lines = Entries(part), []
    kinds, draw = trained_kinds(known, args), random.Random(seed_of("text", args.seed))
    told = [[e for e in some if e.kind in kinds] for some in part.captions]
    told = [some for some in told if len({e.kind == CAPTION for e in some}) == 2]
    while len(lines) < chunks:
        if told and draw.random() < TOLD:
            some = draw.choice(told)
            captions = [e for e in some if e.kind == CAPTION]
            asked = [e for e in some if e.kind != CAPTION]
            entries = [draw.choice(captions), *draw.sample(asked, min(len(asked), 4))]
            marks = [MARK, *[""] * (len(entries) - 1)]
        else:
            row = draw_row(known, kinds, draw.randint(1, args.shots + 1), args.riddles, draw)
            entries = entries_of(known, *row)
            marks = [MARK] * len(entries)
        lines += [f"{mark}{prompt_of(entry)} {entry.answer}"
                  for mark, entry in zip(marks, entries, strict=True)]  # fmt: skip
    return f"\n{END_TOKEN}\n".join(lines) + "\n"


# ---------------------------------------------------------------------- tests


def chosen(part: Entries, kind: str, most: int) -> list[tuple[int, int]]:
    """At most so many places of a kind, as many of each answer where there are enough, seeded."""
    draw = random.Random(seed_of("tests", part.part.part, kind))
    groups = [draw.sample(group, len(group)) for group in part.groups[kind]]
    if len(groups) == 1:
        return groups[0][:most]
    share = min(max(1, most // len(groups)), *map(len, groups))
    return [place for group in groups for place in group[:share]]


def guess(part: Entries, places: Sequence[tuple[int, int]]) -> float:
    """The share of the most frequent answer of some questions: what guessing would get right."""
    counts = collections.Counter(part.entry(place).answer for place in places)
    return max(counts.values()) / len(places)


def describe(part: Entries, most: int) -> str:
    """What is asked of a part, in lines: of each kind how many questions, and all answers with
    their shares."""
    lines = []
    for kind in part.kinds:
        places = chosen(part, kind, most)
        counts = collections.Counter(part.entry(place).answer for place in places)
        shown = [f"{answer} {n / len(places):.0%}" for answer, n in counts.most_common(10)]
        more = ", …" if len(counts) > 10 else ""
        lines.append(f"  {kind}: {counted(len(places), 'question')}; {', '.join(shown)}{more}")
    return "\n".join([f"what the {part.part.part} set is asked, and the answers' shares:", *lines])


def questions(
    part: Entries, support: Entries, places: Sequence[tuple[int, int]], shots: int
) -> tuple[list[list[Entry]], Tensor, Tensor]:
    """Rows of `shots` examples of the same kind from `support` (the training set, as in the paper)
    and a question of `part` each: entries, the examples' images (B, shots), the questions' (B,)."""
    entries, examples = [], []
    for place in places:
        entry = part.entry(place)
        draw = random.Random(seed_of("shots", part.part.part, *place, shots))
        groups = support.groups.get(entry.kind) or []
        known = [draw.choice(draw.choice(groups)) for _ in range(shots)]
        entries.append([*(support.entry(p) for p in known), entry])
        examples.append([image for image, _ in known])
    images = torch.tensor([image for image, _ in places])
    return entries, torch.tensor(examples, dtype=torch.int64).view(len(places), shots), images
