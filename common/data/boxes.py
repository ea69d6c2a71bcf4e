"""Data sets of labelled boxes: read once, kept as uint8, augmented a whole batch at a time.

    train, val, test = load_boxes(args, dev, size=448)
    for images, boxes, labels, _ in run.progress(train.batches(args.batch_size, augment=augment)):

Images are squeezed to a square. Boxes (B, M, 4) are left, top, right, bottom in shares of the
image, labels (B, M) their classes, and -1 where an image has fewer. `voc:PATH` is a folder in
Pascal's layout (Annotations, JPEGImages and, if there, ImageSets/Main), `coco:JSON` an annotation
file of COCO's format. In Pascal's files pixels count from 1 and both corners belong to a box; in
COCO's the first edge is 0. Boxes lie on the image as it is seen, turned by its EXIF data: those
that were drawn before that, or on a picture scaled, are carried over.
"""

import argparse
import codecs
import contextlib
import dataclasses
import io
import json
import math
import operator
import unicodedata
import xml.etree.ElementTree
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from common import counted, fail, unknown
from common.data import shapes as world
from common.data.batches import Batches, Draw
from common.data.files import (
    ORIENTATION,
    UNREADABLE,
    ImageFiles,
    images_below,
    notes_on,
    open_image,
    upright,
)
from common.data.images import STREAM_BYTES, Held, ImageSet, Streamed, read_or_stream, statistics
from common.data.shapes import ShapeImages
from common.data.sources import PART_NAMES, Source, download, named, open_source, say_parts, split
from common.device import Device
from common.run import progress_bar

if TYPE_CHECKING:
    from pycocotools.coco import COCO

BOX_SETS = ["shapes", "bccd", "voc2007", "voc2012", "voc0712", "voc:PATH", "coco:JSON"]
VOC = ["aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"]
VOC += ["diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa"]
VOC += ["train", "tvmonitor"]
BCCD = ["RBC", "WBC", "Platelets"]
NUM_SCENES, MAX_OBJECTS = {"train": 2_500, "test": 500}, 4  # of `shapes`: seeds 0 and 1
LEAST_SIDE = 0.01  # pixels of a box within its image: rounding would leave nothing of a smaller one
NO = ("0", "0.0", "false", "none", "")  # of a COCO file's `iscrowd`, however it is written
SIDEWAYS = (5, 6, 7, 8)  # EXIF's values of ORIENTATION that swap the sides


class Objects(NamedTuple):
    """What one image holds."""

    boxes: Tensor  # (n, 4): left, top, right, bottom, in pixels or in shares of the image
    labels: Tensor  # (n,)
    difficult: Tensor  # bool (n,): neither trained on nor counted


class Outline(NamedTuple):
    """Which pixels an object has, as COCO's format writes it; see `Entry`."""

    segmentation: object
    name: str  # of the annotation
    size: tuple[float, float]  # width and height of the picture that it was drawn on
    turn: int  # how EXIF turns that picture


@dataclasses.dataclass
class Part:
    """One part of a data set as it was found: files (or scenes still to be drawn) and objects."""

    images: list[str] | ShapeImages
    objects: list[Objects]  # in shares of the image; empty for scenes
    sizes: list[tuple[int, int]]  # width and height of the images as they are seen
    outlines: list[list[Outline]] = dataclasses.field(default_factory=list)  # if there are some

    def __len__(self) -> int:
        return len(self.images)

    def take(self, indices: Tensor) -> "Part":
        """The images at `indices`."""
        if isinstance(self.images, ShapeImages):
            return Part(self.images.take(indices), [], [])
        lists = (self.images, self.objects, self.sizes, self.outlines)
        return Part(*([items[i] for i in indices.tolist()] if items else [] for items in lists))


class SquareFiles(ImageFiles):
    """Image files, each squeezed to a square of `size` pixels."""

    def __getitem__(self, index: int) -> Tensor | str:
        try:
            image = open_image(self.paths[index], self.top).convert("RGB")
        except UNREADABLE as error:
            return f"{self.paths[index]} is not a readable image ({error})"
        return squeeze(image, self.size)


class BoxSet(ImageSet):
    """One part of a data set of boxes; `part` is "train", "val" or "test".

    `facts` holds the `classes`, and the `mean` and `std` that batches are normalised with.
    """

    def __init__(
        self,
        part: str,
        images: Held | Streamed,
        objects: list[Objects],
        sizes: list[tuple[int, int]],
        facts: dict,
        dev: Device,
        points: int = 0,
    ):
        most = max(1, *(len(o.labels) for o in objects))
        boxes = torch.zeros(len(objects), most, 4)
        labels = torch.full((len(objects), most), -1)
        for i, (corners, classes, difficult) in enumerate(objects):
            boxes[i, : len(classes)] = corners
            labels[i, : len(classes)] = classes.masked_fill(difficult, -1)
        super().__init__(part, images, labels, facts, dev)
        self.boxes, self.objects, self.sizes = boxes.to(dev.device), objects, sizes
        self.points = points

    def batches(
        self, batch_size: int, augment: Callable | None = None, shuffle: bool | None = None
    ) -> Batches:
        """Batches of images (B, C, H, W), normalised, boxes, labels, and places in the set (B,).

        `augment(images, boxes, labels, draw)` gets uint8 pixels and returns the three, pixels
        as floats from 0 to 255. Difficult objects have no label.
        """
        shuffle = self.part == "train" if shuffle is None else shuffle

        def fetch(parts: list[Tensor], draws: list[Draw], epoch: int) -> Iterator:
            read = self.images.read(parts, None)
            for part, images, draw in zip(parts, read, draws, strict=True):
                places = part.to(self.dev.device)
                boxes, labels = self.boxes[places], self.labels[places]
                if augment:
                    images, boxes, labels = augment(images, boxes, labels, draw)
                yield self.normalise(images), boxes, labels, part

        return Batches(len(self), batch_size, self.dev, shuffle, fetch)

    def truth(self, index: int) -> Objects:
        """What the image at `index` holds, in pixels of its file."""
        return self.in_pixels(index, self.objects[index])

    def in_pixels(self, index: int, content: NamedTuple) -> NamedTuple:
        """Things whose `boxes` are shares of the image at `index`, in pixels of its file."""
        return content._replace(boxes=content.boxes * scale_of(self.sizes[index]))


def scale_of(size: tuple[int, int]) -> Tensor:
    """What turns shares of an image of this width and height into pixels."""
    return torch.tensor([*size, *size], dtype=torch.float32)


def squeeze(image: Image.Image, size: int) -> Tensor:
    """An RGB image as uint8 (3, size, size), whatever its shape was."""
    image = image.resize((size, size), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def area(boxes: Tensor) -> Tensor:
    """The areas (...) of boxes (..., 4)."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


# ---------------------------------------------------------------------- reading


class Entry(NamedTuple):
    """One image and its annotation, as it is written."""

    image: Path
    where: str  # the file that says so
    size: tuple[float, float] | None  # of the picture that the boxes were drawn on, if it says
    things: list[tuple[str, list[float], bool]]  # class, box in pixels from 0, difficult
    outlines: list[tuple[object, str]] | None = None  # segmentation and name of each annotation


def as_source(parts: dict[str, list[Entry]], classes: list[str] | None, *notes: str) -> Source:
    """Parts with their boxes in shares of the images as they are seen, and notes on what was done.

    Without `classes` they are those of the training set, in order.
    """
    if classes is None:
        classes = sorted({name for entry in parts["train"] for name, *_ in entry.things})
    counts, placed = Counter(), {}
    for name, entries in parts.items():
        looks = [look(entry.image, entry.where) for entry in entries]
        placed[name] = [
            (entry, size, turn, frames(entry, size, turn))
            for entry, (size, turn) in zip(entries, looks, strict=True)
        ]
    # Where a photo doesn't show whether EXIF turned it before or after, the others may.
    photos = [some for part in placed.values() for _, _, turn, some in part if turn > 1]
    certain = {turn > 1 for some in photos if len(some) == 1 for _, turn in some}
    stored, ready = certain == {True}, {}
    for name, part in placed.items():
        objects, outlines = [], []
        for entry, size, _, some in part:
            (width, height), turn = some[-1 if stored else 0]
            if entry.things:
                own = size[::-1] if turn in SIDEWAYS else size
                counts["turned"] += turn > 1
                counts["unclear"] += len(some) > 1 and not stored
                counts["scaled"] += (width, height) != own
                counts["exchanged"] += entry.size not in (None, (width, height))
            content, kept = objects_of(entry, (width, height), turn, classes, counts)
            objects.append(content)
            if entry.outlines is not None:
                frame = (width, height), turn
                outlines.append([Outline(*entry.outlines[number], *frame) for number in kept])
        images, sizes = [str(entry.image) for entry, *_ in part], [size for _, size, *_ in part]
        ready[name] = Part(images, objects, sizes, outlines)
    return Source(classes, ready, "; ".join(filter(None, [*notes, *said(counts)])))


def look(path: Path, where: str) -> tuple[tuple[int, int], int]:
    """Width and height of an image file as it is seen, and how EXIF turns it (1: not at all).

    One that isn't there, or can't be read, ends in one line.
    """
    try:
        with Image.open(path) as image:
            try:
                turn = image.getexif().get(ORIENTATION) or 1
            except UNREADABLE:
                turn = 1  # damaged: read as it is stored
            if turn not in range(2, 9):
                return image.size, 1
            if image.format == "TIFF":  # which Pillow turns as it is read
                image.load()
                return image.size, turn
            tiny = Image.new("L", (2, 1))  # goes the way of the image, without reading that
            tiny.info = image.info
            if (after := upright(tiny)) is tiny:
                return image.size, 1
            return image.size if after.size == (2, 1) else image.size[::-1], turn
    except FileNotFoundError:
        fail(f"{where} names the image {path.name}, which is not in {path.parent}")
    except UNREADABLE as error:
        fail(f"{path} is not a readable image ({error})")


def frames(entry: Entry, size: tuple[int, int], turn: int) -> list[tuple[tuple[float, float], int]]:
    """The pictures that the boxes may have been drawn on: each its size, and how it is to turn.

    First the image as it is seen (of this size), then as it is stored, as far as the size that
    the annotation gives, or without one the boxes, allow either. Fails if the size allows neither.
    """
    options = [(size, 1)]
    if turn > 1:
        options.append((size[::-1] if turn in SIDEWAYS else size, turn))
    if entry.size is None:
        return [option for option in options if fits(entry, option[0])] or options
    for alike in (operator.eq, same_shape):
        if some := [(entry.size, turn) for frame, turn in options if alike(entry.size, frame)]:
            return some
    # Tools that mistake rows for columns exchange the sides: the boxes tell.
    exchanged = turn == 1 and same_shape(entry.size[::-1], size) and fits(entry, size)
    if exchanged or not entry.things:
        return options
    there, here = ("x".join(f"{side:g}" for side in pair) for pair in (entry.size, size))
    fail(f"{entry.where}: the boxes of {entry.image.name} were drawn on {there} pixels, "
         f"but it has {here}: save it at that size, or annotate it anew")  # fmt: skip


def same_shape(given: tuple[float, float], size: tuple[float, float]) -> bool:
    """Whether one size is the other scaled, up to a pixel in each side."""
    return abs(given[0] * size[1] - given[1] * size[0]) <= sum(size)


def fits(entry: Entry, size: tuple[float, float]) -> bool:
    """Whether all boxes lie in a picture of this size, up to a pixel."""
    return all(
        min(box) >= -1 and box[2] <= size[0] + 1 and box[3] <= size[1] + 1
        for _, box, _ in entry.things
    )


def objects_of(
    entry: Entry, size: tuple[float, float], turn: int, classes: list[str], counts: Counter
) -> tuple[Objects, list[int]]:
    """The objects of an entry, whose boxes were drawn on a picture of `size`, then turned, and
    which of its things they are."""
    boxes, labels, flags, kept = [], [], [], []
    for number, (name, box, difficult) in enumerate(entry.things):
        if name not in classes:
            fail(f"{entry.where}: {unknown('class', name, classes)}")
        if not all(map(math.isfinite, box)):
            fail(f"{entry.where}: a box of {name} has the corners {box}")
        clipped = [min(max(v, 0), size[i % 2]) for i, v in enumerate(box)]
        least = min(clipped[2] - clipped[0], clipped[3] - clipped[1])
        if least < LEAST_SIDE:
            outside = least <= 0 and box[2] > box[0] and box[3] > box[1]
            counts["outside the image" if outside else "of zero area"] += 1
            continue
        counts["clipped"] += clipped != box
        boxes.append(turned([v / size[i % 2] for i, v in enumerate(clipped)], turn))
        labels.append(classes.index(name))
        flags.append(difficult)
        kept.append(number)
    shares = torch.tensor(boxes, dtype=torch.float32).view(-1, 4)
    return Objects(shares, torch.tensor(labels).long(), torch.tensor(flags).bool()), kept


def turned(box: list[float], turn: int) -> list[float]:
    """A box in shares of a stored image, in shares of it as EXIF's `turn` (1 to 8) shows it."""
    left, top, right, bottom = box
    if turn in SIDEWAYS:
        left, top, right, bottom = top, left, bottom, right
    if turn in (2, 3, 6, 7):
        left, right = 1 - right, 1 - left
    if turn in (3, 4, 7, 8):
        top, bottom = 1 - bottom, 1 - top
    return [left, top, right, bottom]


def said(counts: Counter) -> list[str]:
    """What was done to boxes, in words."""
    images = {
        "turned": "boxes of {} drawn before EXIF's turn: turned along",
        "unclear": "EXIF turns {} and nothing says whether before the boxes were drawn: taken so",
        "scaled": "boxes of {} drawn at another size: scaled",
        "exchanged": "width and height exchanged for {} whose boxes fit: taken as they are",
    }
    boxes = {
        "of zero area": "{} of zero area skipped",
        "outside the image": "{} outside the image skipped",
        "clipped": "{} reaching out of the image clipped",
    }
    some = [text.format(counted(counts[key], "box", "boxes"))
            for key, text in boxes.items() if counts[key]]  # fmt: skip
    notes = [text.format(counted(counts[key], "image"))
             for key, text in images.items() if counts[key]]  # fmt: skip
    return [*notes, ", ".join(some)]


def sides(width: object, height: object) -> tuple[float, float] | None:
    """A size as annotations give it; None if they leave it out or write zeros."""
    try:
        size = float(width), float(height)
    except (TypeError, ValueError):
        return None
    return size if all(0 < side < math.inf for side in size) else None


def text_of(path: Path) -> str:
    """A text file, in UTF-8, UTF-16 with its mark, or else Latin-1."""
    raw = path.read_bytes()
    marks = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
    try:
        return raw.decode("utf-16" if raw.startswith(marks) else "utf-8-sig")
    except UnicodeDecodeError:
        return raw.decode("latin-1")


def lines_of(path: Path) -> list[str]:
    """The lines of a text file that aren't empty; none if there is no such file."""
    try:
        return [line.strip() for line in text_of(path).splitlines() if line.strip()]
    except FileNotFoundError:
        return []
    except OSError as error:
        fail(f"{path}: {error.strerror or error}")


def below(folder: Path, name: str, where: str) -> Path:
    """A file in a folder; a name that leads out of it ends in one line."""
    if Path(name).is_absolute() or ".." in Path(name).parts:
        fail(f"{where} names {name}, which is not below {folder}")
    return folder / name


# ---------------------------------------------------------------------- Pascal's layout


class VocFolder:
    """A folder in Pascal's layout: annotations and images by name (without suffix), and lists."""

    def __init__(self, root: Path):
        self.root, self.marks, self.images = root, root / "Annotations", root / "JPEGImages"
        found = images_below(self.marks, {".xml"})
        self.annotations = {plain(path.relative_to(self.marks)): path for path in found}
        self.pictures: dict[str, list[Path]] = {}
        for path in images_below(self.images) if self.images.is_dir() else []:
            self.pictures.setdefault(plain(path.relative_to(self.images)), []).append(path)
        self.lists = {}
        for name in ("train", "val", "trainval", "test"):
            if lines := lines_of(self.path(name)):
                self.lists[name] = [self.named(line) for line in lines]
        if "trainval" not in self.lists and "train" in self.lists:
            self.lists["trainval"] = [*self.lists["train"], *self.lists.get("val", [])]

    def path(self, name: str) -> Path:
        """Where a list lies."""
        return self.root / "ImageSets" / "Main" / f"{name}.txt"

    def named(self, line: str) -> str:
        """The annotation that a line of a list means: it may go on with a column of 1, 0 or -1."""
        line = unicodedata.normalize("NFC", line)
        first, *last = line.rsplit(None, 1)
        column = last in (["-1"], ["0"], ["1"])
        return first if column and line not in self.annotations else line

    def read(self, name: str) -> list[Entry]:
        """What a list names."""
        if not self.lists.get(name):
            fail(f"{self.path(name)} is missing or empty")
        return [self.entry(member, str(self.path(name))) for member in self.lists[name]]

    def entry(self, name: str, where: str = "") -> Entry:
        """One annotation with its image."""
        path = self.annotations.get(name) or below(self.marks, f"{name}.xml", where)
        file, size, things = read_voc_file(path)
        return Entry(self.picture(name, file, path), str(path), size, things)

    def picture(self, name: str, file: str, where: Path) -> Path:
        """The image of an annotation: that of its own name, else the one that it names.

        Tools write file names that were true elsewhere.
        """
        given = PureWindowsPath(file).name  # knows both kinds of slashes
        for key in (name, plain(given), unicodedata.normalize("NFC", given)):
            if some := self.pictures.get(key):
                break
        else:
            fail(f"{where} names the image {given or name}, which is not in {self.images}")
        some = [p for p in some if p.name == given] or some
        some = [p for p in some if p.suffix.lower() in (".jpg", ".jpeg")] or some
        if len(some) > 1:
            fail(f"{where} may mean {some[0].name} or {some[1].name}: remove one")
        return some[0]


def plain(name: str | Path) -> str:
    """The name of a file without its suffix, composed: systems write accents in two ways."""
    path = PurePosixPath(name)
    return unicodedata.normalize("NFC", str(path.with_suffix("") if path.name else path))


def read_voc_file(
    path: Path,
) -> tuple[str, tuple[float, float] | None, list[tuple[str, list[float], bool]]]:
    """File name, size and objects in one annotation of Pascal's format."""
    try:
        raw = path.read_bytes()
        try:
            root = xml.etree.ElementTree.fromstring(raw)
        except xml.etree.ElementTree.ParseError:  # Latin-1 that doesn't say so, or damaged
            root = xml.etree.ElementTree.fromstring(raw.decode("latin-1"))
        found = []
        for entry in root.findall("object"):
            corners = [float(entry.find("bndbox").findtext(k)) for k in ("xmin", "ymin")]
            far = [float(entry.find("bndbox").findtext(k)) for k in ("xmax", "ymax")]
            flat = far[0] <= corners[0] or far[1] <= corners[1]
            # Pixels count from 1 and xmax is the last that belongs: the first edge is xmin - 1.
            # Tools that count from 0 write zeros, which are no mistake.
            first = [v if flat or 0 <= v < 1 else v - 1 for v in corners]
            difficult = (entry.findtext("difficult") or "0").strip() == "1"
            if not (name := (entry.findtext("name") or "").strip()):
                raise ValueError("an object has no name")
            found.append((name, [*first, *far], difficult))
        size = sides(root.findtext("size/width"), root.findtext("size/height"))
        return (root.findtext("filename") or "").strip(), size, found
    except OSError as error:
        fail(f"annotation {path}: {error.strerror or error}")
    except (xml.etree.ElementTree.ParseError, AttributeError, TypeError, ValueError) as error:
        fail(f"annotation {path} is damaged ({error})")


def from_lists(
    folders: list[VocFolder], classes: list[str] | None, val: bool, test: str, *notes: str
) -> Source:
    """Trains on `train` and watches `val`, or without `val` trains on both; tests the first's
    list `test`, which may be `val`."""
    learn = "train" if val or test == "val" else "trainval"
    wanted = {"train": (folders, learn)}
    if val and test != "val":
        wanted["val"] = (folders, "val")
    wanted["test"] = (folders[:1], test)
    parts = {
        part: [entry for folder in some for entry in folder.read(name)]
        for part, (some, name) in wanted.items()
    }
    return as_source(parts, classes, *notes)


def shapes(args: argparse.Namespace) -> Source:
    """Scenes of the world of shapes with up to four objects."""
    parts = [ShapeImages(range(n), seed) for seed, n in enumerate(NUM_SCENES.values())]
    train, test = (Part(part, [], []) for part in parts)
    return Source(world.CLASSES, {"train": train, "test": test})


def bccd(args: argparse.Namespace) -> Source:
    """Blood cells: 364 photographs through a microscope, three classes."""
    root = Path(args.data_dir, "BCCD")
    if not (root / "ImageSets" / "Main" / "train.txt").exists():
        fail(
            f"ImageSets/Main/train.txt is not in {root}: copy the folder BCCD of the repository "
            "Shenggan/BCCD_Dataset there, name another folder with --data-dir, or take --data "
            "shapes, which needs no files"
        )
    return from_lists([VocFolder(root)], BCCD, bool(args.val), "test")


def voc_year(args: argparse.Namespace) -> Source:
    """Pascal VOC: of 2007, of 2012, or both for training and 2007 for testing (as the paper)."""
    years = {"voc2007": ["2007"], "voc2012": ["2012"], "voc0712": ["2007", "2012"]}[args.data]
    roots = {year: Path(args.data_dir, "VOCdevkit", f"VOC{year}") for year in years}
    for year, root in roots.items():
        for name in ("trainval", "test") if year == "2007" else ("trainval",):
            if not (root / "ImageSets" / "Main" / f"{name}.txt").exists():
                download_voc(args.data_dir, year, name, root)
    folders = [VocFolder(root) for root in roots.values()]
    if args.data == "voc2012":  # its test annotations are not public
        return from_lists(folders, VOC, False, "val", "its val set is the test set")
    source = from_lists(folders, VOC, bool(args.val), "test")
    source.facts["points"] = 11  # as the devkit did until 2009; since 2010 the whole area
    return source


def download_voc(data_dir: str, year: str, name: str, root: Path) -> None:
    """Lets torchvision download and check a part of Pascal VOC."""
    import torchvision

    def make() -> None:
        torchvision.datasets.VOCDetection(data_dir, year, name, download=True)

    folder = str(root.relative_to(data_dir))
    download(make, data_dir, folder, [f"ImageSets/Main/{name}.txt"], instead="shapes")


def voc_folder(args: argparse.Namespace) -> Source:
    """The user's own annotations in Pascal's layout."""
    root = Path(args.data.partition(":")[2]).expanduser()
    if not (root / "Annotations").is_dir():
        fail(
            f"--data voc:{root}: there is no folder Annotations; name one with Annotations/*.xml "
            "and JPEGImages/, or take --data shapes, which needs no files"
        )
    folder, classes = VocFolder(root), lines_of(root / "classes.txt") or None
    if twice := [name for name, count in Counter(classes).items() if count > 1]:
        fail(f"{root / 'classes.txt'} names {twice[0]} twice")
    lists = folder.lists
    listed = {name for some in lists.values() for name in some}
    rest = len(folder.annotations.keys() - listed) if listed else 0
    note = f"{counted(rest, 'annotation')} in no list left out" if rest else ""
    if "train" in lists and "test" in lists and (not args.val or "val" in lists):
        return from_lists([folder], classes, bool(args.val), "test", note)
    if "trainval" in lists and "test" in lists:
        parts = {"train": folder.read("trainval"), "test": folder.read("test")}
        return as_source(parts, classes, note)
    if "train" in lists and "val" in lists:
        why = "no test.txt: val is the test set"
        return from_lists([folder], classes, False, "val", why, note)
    names = lists.get("trainval")
    entries = [folder.entry(name) for name in names or sorted(folder.annotations)]
    return fifth(entries, classes, args.data, note if names else "")


def fifth(entries: list[Entry], classes: list[str] | None, data: str, *notes: str) -> Source:
    """A seeded fifth of the images becomes the test set."""
    if len(entries) < 2:
        fail(f"--data {data} holds {counted(len(entries), 'image')}: that can't be split")
    if classes is None:
        classes = sorted({name for entry in entries for name, *_ in entry.things})
    cuts = zip(("train", "test"), split(len(entries), 0.2, 0), strict=True)
    parts = {name: [entries[i] for i in indices.tolist()] for name, indices in cuts}
    note = "there is no list of test images, so a seeded fifth is the test set"
    return as_source(parts, classes, note, *notes)


# ---------------------------------------------------------------------- COCO's format


def coco(args: argparse.Namespace) -> Source:
    """The user's own annotations in COCO's format, with the files of val and test beside it; the
    fact `ids` is what the file calls the classes."""
    path = Path(args.data.partition(":")[2]).expanduser()
    entries, ids, note = read_coco(path)
    classes, others = list(ids), siblings(path)
    if not others:
        source = fifth(entries, classes, args.data, note)
        source.facts["ids"] = list(ids.values())
        return source
    parts = {"train": entries} | {name: read_coco(file)[0] for name, file in others.items()}
    notes = [f"{'/'.join(file.parts[-2:])} is the {name} set" for name, file in others.items()]
    if "test" not in parts:
        parts["test"] = parts.pop("val")
        notes = [f"{others['val'].name} is the test set"]
    source = as_source(parts, classes, *notes, note)
    source.facts["ids"] = list(ids.values())
    return source


def siblings(path: Path) -> dict[str, Path]:
    """The annotation files of val and test beside one of train, by part.

    They are named like it, or lie in a folder named so while it lies in `train/`.
    """
    found, name = {}, path.name.lower()
    for word, part in PART_NAMES.items():
        alike = {name.replace(own, word) for own in ("train", "training")} - {name}
        files = [file for file in path.parent.iterdir() if file.name.lower() in alike]
        if PART_NAMES.get(path.resolve().parent.name.lower()) == "train":
            folders = path.resolve().parent.parent.iterdir()
            files += [folder / path.name for folder in folders if folder.name.lower() == word]
        for file in files if part != "train" else ():
            if file.is_file():
                found.setdefault(part, file)
    return found


def indexed(content: dict) -> "COCO":
    """pycocotools' view of annotations in COCO's format, without what it prints."""
    from pycocotools.coco import COCO

    known = COCO()
    known.dataset = content
    with contextlib.redirect_stdout(io.StringIO()):
        known.createIndex()
    return known


def read_coco(path: Path) -> tuple[list[Entry], dict[str, int], str]:
    """Images and objects of one annotation file, its classes with their (first) ids, and a note;
    crowds are difficult."""
    where = f"--data coco:{path}"
    try:
        content = json.loads(text_of(path))
        for kind in ("images", "categories"):
            ids = Counter(entry["id"] for entry in content[kind])
            if twice := [key for key, count in ids.items() if count > 1]:
                fail(f"{where}: two {kind} have the id {twice[0]!r}")
        for number, entry in enumerate(content.setdefault("annotations", [])):
            entry.setdefault("id", f"number {number}")
        known = indexed(content)
        names = {key: str(entry["name"]) for key, entry in known.cats.items()}
        for annotation in content["annotations"]:
            check_annotation(annotation, known, where)
        files = {key: str(entry["file_name"]) for key, entry in known.imgs.items()}
    except OSError as error:
        fail(f"{where}: {error.strerror or error}")
    except KeyError as error:
        fail(f"{where} is not an annotation file of COCO's format: {error} is missing")
    except (ValueError, TypeError, AttributeError) as error:
        fail(f"{where} is not an annotation file of COCO's format ({error!r})")
    # The images lie beside the file, or as in COCO in train2017/ beside annotations/.
    part, up = path.stem.removeprefix("instances_"), path.parent.parent
    folders = [path.parent, path.parent / "images", up / part, up / "images", up / "images" / part]
    entries, misfits = [], 0
    for key, image in known.imgs.items():
        places = [below(folder, files[key].replace("\\", "/"), str(path)) for folder in folders]
        file = next((place for place in places if place.exists()), places[0])
        things, outlines = [], []
        for annotation in known.imgToAnns[key]:
            left, top, width, height = map(float, annotation["bbox"])
            box = [left, top, left + width, top + height]
            crowd = str(annotation.get("iscrowd", 0)).lower() not in NO
            misfits += misfit(box, annotation.get("segmentation"))
            things.append((names[annotation["category_id"]], box, crowd))
            outlines.append((annotation.get("segmentation"), f"annotation {annotation['id']}"))
        size = sides(image.get("width"), image.get("height"))
        entries.append(Entry(file, str(path), size, things, outlines))
    shared = [name for name, count in Counter(names.values()).items() if count > 1]
    note = f"categories of one name taken for one class: {', '.join(shared)}" if shared else ""
    twice = len(entries) - len({entry.image for entry in entries})
    again = f"{counted(twice, 'image')} listed again in {path.name}" if twice else ""
    ids = {name: key for key, name in reversed(names.items())}
    ids = {name: ids[name] for name in names.values()}  # in the file's order
    many = counted(misfits, "box", "boxes")
    off = (f"{many} in {path.name} overlapping the polygons by less than half "
           "(a bbox is left, top, width and height, not corners)") if misfits else ""  # fmt: skip
    return entries, ids, "; ".join(filter(None, [note, again, off]))


def misfit(box: list[float], segmentation: object) -> bool:
    """Whether a box overlaps that of its polygons, if it has some, by an IoU below 0.5."""
    polygons = segmentation if isinstance(segmentation, list) else []
    if polygons and not isinstance(polygons[0], list):
        polygons = [polygons]
    try:
        x = [float(value) for polygon in polygons for value in polygon[::2]]
        y = [float(value) for polygon in polygons for value in polygon[1::2]]
        own = min(x), min(y), max(x), max(y)
    except (TypeError, ValueError, OverflowError):  # none, or damaged: said where masks are learnt
        return False
    if box[2] <= box[0] or box[3] <= box[1]:
        return False  # of zero area, as is said
    across = max(0, min(box[2], own[2]) - max(box[0], own[0]))
    overlap = across * max(0, min(box[3], own[3]) - max(box[1], own[1]))
    areas = ((b[2] - b[0]) * (b[3] - b[1]) for b in (box, own))
    return overlap < 0.5 * (sum(areas) - overlap)


def check_annotation(annotation: dict, known: "COCO", where: str) -> None:
    """Fails unless an annotation names an image and a class of the file, and has a box."""
    key = annotation["id"]
    image, category = annotation.get("image_id"), annotation.get("category_id")
    if image not in known.imgs:
        fail(f"{where}: annotation {key} names image {image!r}, which the file doesn't list")
    if category not in known.cats:
        listed = ", ".join(map(str, known.cats))
        fail(f"{where}: annotation {key} names class {category!r}; the file lists {listed}")
    box = annotation.get("bbox")
    try:
        whole = isinstance(box, list) and len([float(value) for value in box]) == 4
    except (TypeError, ValueError):
        whole = False
    if not whole:
        what = f"the bbox {str(box)[:60]}" if "bbox" in annotation else "no bbox"
        fail(f"{where}: annotation {key} has {what}; left, top, width and height are needed")


READERS = {
    "shapes": shapes,
    "bccd": bccd,
    **dict.fromkeys(("voc2007", "voc2012", "voc0712"), voc_year),
    "voc": voc_folder,
    "coco": coco,
}


def load_boxes(
    args: argparse.Namespace, dev: Device, size: int
) -> tuple[BoxSet, BoxSet | None, BoxSet]:
    """The training, validation (None without --val) and test set of `--data`.

    Images become `size` x `size` pixels, in memory, or streamed where they are many.
    """
    source = open_source(args, dev, READERS)
    stored = 3 * size**2 * sum(map(len, source.parts.values()))
    stream = stored > STREAM_BYTES if args.stream is None else args.stream
    facts, sets, notes = {"classes": source.classes}, {}, [source.note]
    if not isinstance(source.parts["train"].images, ShapeImages):
        paths = [path for part in source.parts.values() for path in part.images]
        more, facts["top"] = notes_on(paths)
        notes += more
    for name, part in source.parts.items():
        images, objects, sizes = read_pixels(part, size, stream, args.workers, facts, dev)
        points = source.facts.get("points", 0)
        sets[name] = BoxSet(name, images, objects, sizes, facts, dev, points)
    count = int((sets["train"].labels >= 0).sum())
    if not count:
        why = f" ({source.note})" if source.note else ""
        fail(f"--data {args.data}: its training set has no boxes{why}")
    for name, word in (("val", "validation"), ("test", "test")):
        if name in sets and not (sets[name].labels >= 0).any():
            notes.append(f"the {word} set has no boxes: nothing to measure")
    facts["mean"], facts["std"] = statistics(sets["train"])
    place = "streamed" if isinstance(sets["train"].images, Streamed) else "in memory"
    note = "; ".join(filter(None, notes))
    boxes = f"{counted(count, 'box', 'boxes')} to train on"
    place += f" ({note})" if note else ""
    say_parts(args, dev, sets, "images", named(source.classes), boxes, place)
    return sets["train"], sets.get("val"), sets["test"]


def read_pixels(
    part: Part, size: int, stream: bool, workers: int, facts: dict, dev: Device
) -> tuple[Held | Streamed, list[Objects], list[tuple[int, int]]]:
    """The images of a part with their objects: read, drawn, or still on disk."""
    if isinstance(part.images, ShapeImages):
        pixels, objects, chunk = [], [], 100
        begins = range(0, len(part), chunk)
        for begin in progress_bar(begins, dev, "drawing scenes", len(begins)):
            scenes = world.draw(
                part.images.indices[begin : begin + chunk], size, part.images.seed, MAX_OBJECTS
            )
            pixels.append(scenes.pixels)
            seen = (scenes.shapes >= 0) & (area(scenes.boxes) > 0)  # some are hidden altogether
            for boxes, labels, there in zip(scenes.boxes, scenes.shapes, seen, strict=True):
                flags = torch.zeros(int(there.sum()), dtype=torch.bool)
                objects.append(Objects(boxes[there] / size, labels[there], flags))
        return Held(torch.cat(pixels), dev), objects, [(size, size)] * len(part)
    files = SquareFiles(part.images, size, top=facts["top"])
    return read_or_stream(files, stream, workers, dev), part.objects, part.sizes
