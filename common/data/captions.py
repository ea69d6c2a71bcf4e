"""Images with captions: the world of shapes without end, Flickr8k, a table of the user's.

    train, val, test = load_captions(args, dev, size=64)
    for images, texts, labels in run.progress(train.batches(args.batch_size)): ...

Captions are strings: how they become tokens is the milestone's. An image may have several; in
training one is drawn for each image in each epoch, by the seed; of scenes, which are described in
two ways ("a photo of ..." or without), one way for all of a step: an image doesn't tell which.
"""

import argparse
import collections
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from common import cli, counted, fail, seed_of
from common.data import shapes as world
from common.data.batches import Batches, Draw
from common.data.files import SUFFIXES, ImageFiles, notes_on
from common.data.images import (
    STREAM_BYTES,
    Held,
    ImageSet,
    Streamed,
    drawn,
    read_or_stream,
    statistics,
)
from common.data.shapes import ShapeImages
from common.data.sources import MOST_SCENES, PART_NAMES, Source, open_source, say_parts, split
from common.data.tables import Table, no_column, read_table
from common.device import Device

CAPTION_SETS = ["shapes", "shapes:N", "flickr8k", "captions:CSV"]
COLUMNS = {  # names that tables have for them, in any case
    "image": ("image", "image_name", "file", "file_name", "filename", "filepath", "path"),
    "caption": ("caption", "captions", "text", "title", "sentence", "comment"),
}
FOLDERS = (".", "images", "Images", "Flicker8k_Dataset")  # beside a table, where images may lie
FLICKR = (("flickr8k_subset", "captions.csv"), ("flickr8k", "captions.txt"),
          ("Flickr8k", "captions.txt"), (".", "captions.csv"), (".", "captions.txt"))  # fmt: skip
OBJECTS = 3  # of a scene, at most
STATISTICS = 2000  # scenes without end that are held: for mean and standard deviation, and `first`


@dataclasses.dataclass
class Captioned:
    """Images, the captions of each, and its class where there are classes.

    `endless` scenes are others in each epoch; `captions` are then those of the first. With `kinds`
    all images have two captions, said in two ways, and a step takes all in one of these.
    """

    pixels: ImageFiles | ShapeImages
    captions: list[list[str]]
    labels: Tensor | None = None  # (N,)
    endless: bool = False
    kinds: bool = False

    def __len__(self) -> int:
        return len(self.captions)

    def take(self, indices: Tensor) -> "Captioned":
        """The images at `indices` with what is known of them, in every epoch."""
        labels = None if self.labels is None else self.labels[indices]
        captions = [self.captions[i] for i in indices.tolist()]
        return Captioned(self.pixels.take(indices), captions, labels, kinds=self.kinds)


class CaptionSet:
    """One part of a data set: `part` is "train", "val" or "test".

    `captions` are those of each image, `labels` (N,) its class where there are `facts["classes"]`.
    `facts` also has the `mean` and `std` that images are normalised with, and the `side` of the
    square that evaluation cuts its middle from; the three parts share it. `images` is the part as
    an ImageSet, whose labels are places in it; of endless scenes it holds those of the first epoch,
    as many as are asked for.
    """

    def __init__(
        self,
        part: str,
        source: Captioned,
        held: Held | Streamed,
        facts: dict,
        dev: Device,
        size: int,
        window: Callable | None = None,
    ):
        self.part, self.facts, self.dev, self.size = part, facts, dev, size
        self.captions, self.labels = source.captions, source.labels
        self.endless = source.pixels if source.endless else None
        self.kinds = source.kinds
        self.paths = getattr(source.pixels, "paths", [])  # of image files
        self.images = ImageSet(part, held, torch.arange(len(held)), facts, dev, size, window)

    def __len__(self) -> int:
        return len(self.captions)

    def batches(self, batch_size: int) -> Batches:
        """Batches of training: images (B, 3, S, S), normalised, on the device; B captions; and the
        classes (B,), or None where there are none."""

        def fetch(parts: list[Tensor], draws: Iterable[Draw], epoch: int) -> Iterator:
            draws = list(draws)
            steps = [draw.keys[0][-1] for draw in draws]
            if self.endless:
                for step, part in zip(steps, parts, strict=True):
                    yield self.fresh(epoch, step, part)
                return
            made = self.images.batches(batch_size).fetch(parts, draws, epoch)
            chosen = None if self.kinds else self.chosen(epoch)
            for step, part, (images, _) in zip(steps, parts, made, strict=True):
                labels = None if self.labels is None else self.labels[part].to(self.dev.device)
                places = part.tolist()
                if self.kinds:
                    texts = self.in_one_way([self.captions[i] for i in places], epoch, step)
                else:
                    texts = [chosen[i] for i in places]
                yield images, texts, labels

        return Batches(len(self), batch_size, self.dev, True, fetch)

    def fresh(self, epoch: int, step: int, places: Tensor) -> tuple[Tensor, list[str], Tensor]:
        """The scenes at `places` of an epoch, normalised, their captions and classes."""
        begin = epoch * len(self)
        scenes = ShapeImages([begin + i for i in places.tolist()], self.endless.seed)
        pixels, both = scenes.pairs(self.size)
        labels = world.labels_of(scenes.indices).to(self.dev.device)
        images = self.images.normalise(pixels.to(self.dev.device))
        return images, self.in_one_way(both, epoch, step), labels

    def in_one_way(self, captions: Sequence[list[str]], epoch: int, step: int) -> list[str]:
        """Of each image the caption in the way of this step."""
        way = seed_of("way", self.dev.seed, epoch, step) % len(captions[0])
        return [some[way] for some in captions]

    def first(self, count: int) -> "CaptionSet":
        """The first images, as a part to be evaluated on, with their captions and classes."""
        count = min(count, len(self.images))
        held = self.images.images.take(torch.arange(count))
        labels = None if self.labels is None else self.labels[:count]
        few = Captioned(ImageFiles([]), self.captions[:count], labels)  # pixels are held
        return CaptionSet("first", few, held, self.facts, self.dev, self.size)

    def chosen(self, epoch: int) -> list[str]:
        """The caption of each image in an epoch of training, where there are no kinds."""
        generator = torch.Generator().manual_seed(seed_of("caption", self.dev.seed, epoch))
        places = torch.rand(len(self), generator=generator).tolist()
        return [some[int(u * len(some))] for some, u in zip(self.captions, places, strict=True)]

    def example(self, count: int) -> list[str]:
        """Captions of the first images as a step might have them."""
        return [some[0] for some in self.captions[:count]] if self.kinds else self.chosen(0)[:count]

    def texts(self) -> tuple[list[str], list[list[int]]]:
        """All different captions, and by image the places of its own among them."""
        places: dict[str, int] = {}
        owned = [[places.setdefault(text, len(places)) for text in some] for some in self.captions]
        return list(places), owned


def repeated(texts: Sequence[str]) -> int:
    """How many of these captions another one equals."""
    return sum(count for count in collections.Counter(texts).values() if count > 1)


# ---------------------------------------------------------------------- sources


def scene_images(args: argparse.Namespace) -> dict[str, ShapeImages]:
    """The scenes of each part of `shapes` or `shapes:N`, still to be drawn."""
    typed, counts = args.data.partition(":")[2], dict(world.NUM_SCENES)
    if typed:
        if not (typed.isdecimal() and 1 <= int(typed) <= MOST_SCENES):
            fail(f"--data {args.data}: N of shapes:N is a number of scenes to train on, from 1 to "
                 f"{MOST_SCENES:,}")  # fmt: skip
        counts["train"] = int(typed)
    elif args.val:
        counts["val"] = args.val
    most, parts = objects_of(args), {}
    for part, seed in {"train": 0, "test": 1, "val": 2}.items():
        if part in counts:
            count = counts[part]
            chosen = range(count) if most == OBJECTS else world.with_few(count, seed, most)
            parts[part] = ShapeImages(chosen, seed)
    return parts


def objects_of(args: argparse.Namespace) -> int:
    """How many objects a scene may have; OBJECTS where a script has no such flag."""
    return getattr(args, "objects", OBJECTS)


def add_scene_flags(parser: cli.Parser) -> None:
    """The flag of the scripts that can keep to simple scenes."""
    text = "of the scenes of shapes, take those with at most so many (below 3: the same ones in \
each epoch)"
    parser.add_argument("--objects", type=some_objects, metavar="N", default=OBJECTS, group="data",
                        help=text)  # fmt: skip


def some_objects(text: str) -> int:
    """A parser of how many objects a scene may have."""
    if text not in map(str, range(1, OBJECTS + 1)):
        raise argparse.ArgumentTypeError(f"needs a number from 1 to {OBJECTS}, not {text!r}")
    return int(text)


def scenes(args: argparse.Namespace) -> Source:
    """Scenes of the world of shapes; with `shapes:N` N of them, else new ones in each epoch.

    In training a scene has two captions, that differ in "a photo of"; else the one without.
    """
    parts, endless = {}, args.data == "shapes" and objects_of(args) == OBJECTS
    for part, images in scene_images(args).items():
        captions = images.captions()
        if part != "train":
            captions = [some[:1] for some in captions]
        labels, training = world.labels_of(images.indices), part == "train"
        parts[part] = Captioned(images, captions, labels, endless and training, kinds=training)
    return Source(world.CLASSES, parts, "those of training are new in each epoch" * endless)


def flickr8k(args: argparse.Namespace) -> Source:
    """Flickr8k (Hodosh et al. 2013), or a part of it: photographs with five captions each."""
    root = Path(args.data_dir).expanduser()
    table = next((root / a / b for a, b in FLICKR if (root / a / b).is_file()), None)
    if not table:
        fail(f"captions.csv is in none of {root}, {root / FLICKR[0][0]} and {root / FLICKR[1][0]}: "
             "get Flickr8k (its captions.txt and images) and name its folder with --data-dir, or "
             "take --data shapes, which needs no files")  # fmt: skip
    return from_table(table, args.data)


def captions_of(args: argparse.Namespace) -> Source:
    """A CSV of the user's, with a column of images and one of captions; perhaps one of parts."""
    path = Path(args.data.partition(":")[2]).expanduser()
    if not path.is_file():
        fail(f"--data {args.data}: there is no file {path}; name a table with an image and a "
             "caption column, or take --data shapes, which needs no files")  # fmt: skip
    return from_table(path, args.data)


def columns_of(table: Table) -> tuple[int, int, int | None, bool]:
    """The places of images, captions and parts (None without them), and whether there is a header.

    A table of two columns needs none, if its first cell is an image file.
    """
    head = [cell.lower().lstrip("\ufeff") for cell in table.rows[0]]
    if len(head) == 2 and Path(head[0]).suffix in SUFFIXES:
        return 0, 1, None, False
    places = []
    for column, names in COLUMNS.items():
        place = next((head.index(name) for name in names if name in head), None)
        if place is None:
            no_column(table.path, "the column", column, table.rows[0])
        places.append(place)
    return *places, head.index("split") if "split" in head else None, True


def from_table(path: Path, data: str) -> Source:
    """The images that a table names, and their captions; a seeded fifth of them is the test set,
    unless a column `split` says which are."""
    table = read_table(path)
    image, caption, part, has_head = columns_of(table)
    found: dict[str, dict[str, list[str]]] = {}
    where = next((folder for folder in FOLDERS if any(
        (path.parent / folder / row[image]).is_file() for row in table.rows[has_head:][:100])),
        FOLDERS[0])  # fmt: skip
    known: set[str] = set()
    bare = 0
    for row, line in list(zip(table.rows, table.lines, strict=True))[has_head:]:
        file, name = path.parent / where / row[image], "train"
        if not row[image]:
            fail(f"{path}: line {line} names no image")
        if str(file) not in known and not file.is_file():
            fail(f"{path}: line {line} names {row[image]}, which is not in {path.parent / where}")
        known.add(str(file))
        if part is not None:
            name = PART_NAMES.get(row[part].lower())
            if not name:
                fail(f"{path}: line {line} has the split {row[part]!r}: train, val and test are "
                     "known")  # fmt: skip
        if not row[caption]:
            bare += 1
            continue
        some = found.setdefault(name, {}).setdefault(str(file), [])
        if row[caption] not in some:
            some.append(row[caption])
    notes = [f"{counted(bare, 'row')} without a caption left out"] if bare else []
    files = {file for some in found.values() for file in some}
    if alone := len(known - files):
        notes.append(f"{counted(alone, 'image')} without any caption left out")
    if not files:
        fail(f"{path}: no image has a caption")
    parts = {
        name: Captioned(ImageFiles(list(some)), list(some.values())) for name, some in found.items()
    }
    if "train" not in parts:
        fail(f"{path}: no row is of the train set")
    if "test" not in parts and "val" in parts:
        notes.append("there is no test set, so val is it")
        parts["test"] = parts.pop("val")
    if "test" not in parts:
        everything = parts["train"]
        if len(everything) < 2:
            fail(f"--data {data} holds one image with captions: that can't be split")
        cuts = split(len(everything), 0.2, 0)
        parts["train"], parts["test"] = (everything.take(indices) for indices in cuts)
        notes.append("a seeded fifth of the images is the test set")
    return Source([], parts, "; ".join(notes))


READERS = {"shapes": scenes, "flickr8k": flickr8k, "captions": captions_of}


# ---------------------------------------------------------------------- sets


def load_captions(
    args: argparse.Namespace,
    dev: Device,
    size: int,
    inputs: dict | None = None,
    window: Callable | None = None,
    readers: Mapping[str, Callable] = READERS,
    what: str = "captions",
) -> tuple[CaptionSet, CaptionSet | None, CaptionSet]:
    """The training, validation (None without --val) and test set of `--data`.

    Images become 3 x `size` x `size`, cut to a square, then scaled. `inputs` are the `mean` and
    `std` to normalise with, if not those of the training set, and perhaps how to `resample`.
    `window` (see `common.data.augment`) is for image files: what it cuts is trained on, and
    evaluation takes the middle of the square of 8/7 of `size` that is kept. `readers` may know more
    data sets than those here, and `what` say what their captions are.
    """
    source = open_source(args, dev, readers)
    is_files = isinstance(source.parts["train"].pixels, ImageFiles)
    window = window if is_files else None
    side = -(-size * 8 // 7) if window else size
    facts, notes = {"side": side}, [source.note]
    if inputs and "resample" in inputs:
        facts["resample"] = inputs["resample"]
    if source.classes:
        facts["classes"] = source.classes
    if is_files:
        paths = [path for part in source.parts.values() for path in part.pixels.paths]
        more, top = notes_on(paths, 3)
        facts["top"] = args.stored.get("dataset", {}).get("top") or top
        notes += more
    pixel_bytes = 3 * side**2 * sum(map(len, source.parts.values()))
    stream = pixel_bytes > STREAM_BYTES if args.stream is None else args.stream
    sets = {}
    for part, content in source.parts.items():
        if is_files:
            resample = facts.get("resample", "bilinear")
            settings = (side, 3, 0, window, size, facts["top"], resample)
            files = ImageFiles(content.pixels.paths, *settings)
            held = read_or_stream(files, stream, args.workers, dev)
        else:
            count = min(len(content), STATISTICS) if content.endless else len(content)
            held = Held(drawn(content.pixels.take(torch.arange(count)), side, 3, 0, dev), dev)
        cut = window if part == "train" else None
        sets[part] = CaptionSet(part, content, held, facts, dev, size, cut)
    if inputs:
        facts.update({key: list(inputs[key]) for key in ("mean", "std")})
    else:
        facts["mean"], facts["std"] = statistics(sets["train"].images)
    place = "streamed" if isinstance(sets["train"].images.images, Streamed) else "in memory"
    captions = sum(len(some) for part in source.parts.values() for some in part.captions)
    notes = "; ".join(filter(None, notes))
    told = f"{captions:,} {what}"
    say_parts(args, dev, sets, "images", told, place + (notes and f" ({notes})"))
    return sets["train"], sets.get("val"), sets["test"]
