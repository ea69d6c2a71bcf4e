"""Data sets of labelled boxes: read once, kept as uint8, augmented a whole batch at a time.

    train, val, test = load_boxes(args, dev, size=448)
    for images, boxes, labels, _ in run.progress(train.batches(args.batch_size, augment=augment)):

Images are squeezed to a square. Boxes (B, M, 4) are left, top, right, bottom in shares of the
image, labels (B, M) their classes, and -1 where an image has fewer. `voc:PATH` is a folder in
Pascal's layout (Annotations, JPEGImages and, if there, ImageSets/Main), `coco:JSON` an annotation
file of COCO's format. In Pascal's files pixels count from 1 and both corners belong to a box; in
COCO's the first edge is 0.
"""

import argparse
import dataclasses
import json
import math
import xml.etree.ElementTree
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from common import counted, fail, unknown
from common.data import shapes as world
from common.data.batches import Batches, Draw
from common.data.files import UNREADABLE, ImageFiles, notes_on, open_image
from common.data.images import STREAM_BYTES, Held, ImageSet, Streamed, read_or_stream, statistics
from common.data.shapes import ShapeImages
from common.data.sources import Source, download, named, open_source, say_parts, split
from common.device import Device
from common.run import progress_bar

BOX_SETS = ["shapes", "bccd", "voc2007", "voc2012", "voc0712", "voc:PATH", "coco:JSON"]
VOC = ["aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"]
VOC += ["diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa"]
VOC += ["train", "tvmonitor"]
BCCD = ["RBC", "WBC", "Platelets"]
NUM_SCENES, MAX_OBJECTS = {"train": 2_500, "test": 500}, 4  # of `shapes`: seeds 0 and 1
ORIENTATION, SIDEWAYS = 274, (5, 6, 7, 8)  # the EXIF tag, and its values that swap the sides


class Objects(NamedTuple):
    """What one image holds."""

    boxes: Tensor  # (n, 4): left, top, right, bottom, in pixels of the file or shares of the image
    labels: Tensor  # (n,)
    difficult: Tensor  # bool (n,): neither trained on nor counted


@dataclasses.dataclass
class Part:
    """One part of a data set as it was found: files (or scenes still to be drawn) and objects."""

    images: list[str] | ShapeImages
    objects: list[Objects]  # in shares of the image; empty for scenes
    sizes: list[tuple[int, int]]  # width and height of the files

    def __len__(self) -> int:
        return len(self.images)

    def take(self, indices: Tensor) -> "Part":
        """The images at `indices`."""
        if isinstance(self.images, ShapeImages):
            return Part(self.images.take(indices), [], [])
        lists = (self.images, self.objects, self.sizes)
        return Part(*([items[i] for i in indices.tolist()] for items in lists))


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


class Reader:
    """Turns annotations in pixels into `Objects`, and counts what it had to change."""

    def __init__(self, classes: list[str] | None):
        self.classes, self.counts = classes, Counter()

    def objects(
        self, found: list[tuple[str, list[float], bool]], size: tuple[int, int], where: str
    ) -> Objects:
        """From (class, [left, top, right, bottom], difficult), the first pixel's edge being 0."""
        boxes, labels, flags = [], [], []
        for name, box, difficult in found:
            if name not in self.classes:
                fail(f"{where}: {unknown('class', name, self.classes)}")
            if not all(map(math.isfinite, box)):
                fail(f"{where}: a box of {name} has the corners {box}")
            clipped = [min(max(v, 0), size[i % 2]) for i, v in enumerate(box)]
            if clipped[2] <= clipped[0] or clipped[3] <= clipped[1]:
                flat = box[2] <= box[0] or box[3] <= box[1]
                self.counts["of zero area" if flat else "outside the image"] += 1
                continue
            self.counts["clipped"] += clipped != box
            boxes.append([v / size[i % 2] for i, v in enumerate(clipped)])
            labels.append(self.classes.index(name))
            flags.append(difficult)
        shares = torch.tensor(boxes, dtype=torch.float32).view(-1, 4)
        return Objects(shares, torch.tensor(labels).long(), torch.tensor(flags).bool())

    def note(self) -> str:
        """What was counted, in words."""
        deeds = {
            "of zero area": "of zero area skipped",
            "outside the image": "outside the image skipped",
            "clipped": "reaching out of the image clipped",
        }
        counted = ((self.counts[key], deed) for key, deed in deeds.items())
        return ", ".join(f"{n} box{'es' * (n > 1)} {deed}" for n, deed in counted if n)


def size_of(path: Path, where: str) -> tuple[int, int]:
    """Width and height of an image file, upright; one that isn't there ends in one line."""
    try:
        with Image.open(path) as image:
            turned = image.getexif().get(ORIENTATION) in SIDEWAYS
            return image.size[::-1] if turned else image.size
    except FileNotFoundError:
        fail(f"{where} names the image {path.name}, which is not in {path.parent}")
    except UNREADABLE as error:
        fail(f"{path} is not a readable image ({error})")


def below(folder: Path, name: str, where: str) -> Path:
    """A file in a folder; a name that leads out of it ends in one line."""
    if Path(name).is_absolute() or ".." in Path(name).parts:
        fail(f"{where} names {name}, which is not below {folder}")
    return folder / name


def read_voc_file(path: Path) -> tuple[str, list[tuple[str, list[float], bool]]]:
    """The file name and the objects in one annotation of Pascal's format."""
    try:
        root = xml.etree.ElementTree.parse(path).getroot()
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
        return root.findtext("filename") or "", found
    except OSError as error:
        fail(f"annotation {path}: {error.strerror or error}")
    except (xml.etree.ElementTree.ParseError, AttributeError, TypeError, ValueError) as error:
        fail(f"annotation {path} is damaged ({error})")


def read_voc(roots: list[tuple[Path, list[str]]], reader: Reader) -> Part:
    """The images with these names in folders of Pascal's layout."""
    read = []
    for root, names in roots:
        for name in names:
            path = below(root / "Annotations", f"{name}.xml", f"a list in {root / 'ImageSets'}")
            file, found = read_voc_file(path)
            image = root / "JPEGImages" / (Path(file).name or f"{name}.jpg")
            if not image.exists():  # many tools write a file name that was true elsewhere
                image = next((root / "JPEGImages").glob(f"{name}.*"), image)
            read.append((image, found, str(path)))
    if reader.classes is None:
        reader.classes = sorted({name for _, found, _ in read for name, _, _ in found})
    images, objects, sizes = [], [], []
    for image, found, path in read:
        sizes.append(size_of(image, path))
        images.append(str(image))
        objects.append(reader.objects(found, sizes[-1], path))
    return Part(images, objects, sizes)


def names_in(root: Path) -> dict[str, list[str]]:
    """The lists in ImageSets/Main: train, val, trainval, test, as far as they are there."""
    lists = {}
    for name in ("train", "val", "trainval", "test"):
        path = root / "ImageSets" / "Main" / f"{name}.txt"
        if path.exists():
            lists[name] = [
                line.split()[0] for line in path.read_text().splitlines() if line.strip()
            ]
    if "trainval" not in lists and "train" in lists:
        lists["trainval"] = [*lists["train"], *lists.get("val", [])]
    return lists


def voc_source(roots: dict[str, Path], tested: Path, classes: list[str] | None, val: bool,
               test: str = "test") -> Source:  # fmt: skip
    """Folders with lists: trains on `train` and watches `val`, or without it trains on both."""
    lists = {path: names_in(path) for path in {*roots.values(), tested}}
    learn = "train" if val or test == "val" else "trainval"
    wanted = [(path, learn) for path in roots.values()] + [(tested, test)]
    wanted += [(path, "val") for path in roots.values() if val and test != "val"]
    for path, name in wanted:
        if not lists[path].get(name):
            fail(f"{path / 'ImageSets' / 'Main' / f'{name}.txt'} is missing or empty")
    reader = Reader(classes)
    train = read_voc([(path, lists[path][learn]) for path in roots.values()], reader)
    held_out = None
    if val and test != "val":
        held_out = read_voc([(path, lists[path]["val"]) for path in roots.values()], reader)
    part = read_voc([(tested, lists[tested][test])], reader)
    return Source(reader.classes, {"train": train, "val": held_out, "test": part}, reader.note())


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
    return voc_source({"bccd": root}, root, BCCD, bool(args.val))


def voc_year(args: argparse.Namespace) -> Source:
    """Pascal VOC: of 2007, of 2012, or both for training and 2007 for testing (as the paper)."""
    years = {"voc2007": ["2007"], "voc2012": ["2012"], "voc0712": ["2007", "2012"]}[args.data]
    roots = {year: Path(args.data_dir, "VOCdevkit", f"VOC{year}") for year in years}
    for year, root in roots.items():
        for name in ("trainval", "test") if year == "2007" else ("trainval",):
            if not (root / "ImageSets" / "Main" / f"{name}.txt").exists():
                download_voc(args.data_dir, year, name, root)
    if args.data == "voc2012":  # its test annotations are not public
        source = voc_source(roots, roots["2012"], VOC, False, test="val")
        source.note = ", ".join(filter(None, ["its val part is the test part", source.note]))
        return source
    source = voc_source(roots, roots["2007"], VOC, bool(args.val))
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
    lists, path = names_in(root), root / "classes.txt"
    classes = path.read_text().split("\n") if path.exists() else None
    classes = [name.strip() for name in classes if name.strip()] if classes else None
    if "train" in lists and "test" in lists and (not args.val or "val" in lists):
        return voc_source({"": root}, root, classes, bool(args.val))
    if "trainval" in lists and "test" in lists:
        reader = Reader(classes)
        parts = [read_voc([(root, lists[name])], reader) for name in ("trainval", "test")]
        return Source(
            reader.classes, dict(zip(("train", "test"), parts, strict=True)), reader.note()
        )
    if "train" in lists and "val" in lists:
        source = voc_source({"": root}, root, classes, False, test="val")
        source.note = ", ".join(filter(None, ["no test.txt: val is the test part", source.note]))
        return source
    reader = Reader(classes)
    names = sorted(path.stem for path in (root / "Annotations").glob("*.xml"))
    return fifth(read_voc([(root, names)], reader), reader, args)


def fifth(part: Part, reader: Reader, args: argparse.Namespace) -> Source:
    """A seeded fifth of the images becomes the test part."""
    if len(part) < 2:
        fail(f"--data {args.data} holds {len(part)} images: that can't be split")
    parts = [part.take(indices) for indices in split(len(part), 0.2, 0)]
    note = "there is no list of test images, so a seeded fifth is the test part"
    parts = dict(zip(("train", "test"), parts, strict=True))
    return Source(reader.classes, parts, ", ".join(filter(None, [note, reader.note()])))


def coco(args: argparse.Namespace) -> Source:
    """The user's own annotations in COCO's format; of `…train…`, a sibling `…val…` is tested."""
    path = Path(args.data.partition(":")[2]).expanduser()
    part, names, reader = read_coco(path, None)
    sibling = path.with_name(path.name.replace("train", "val"))
    if sibling != path and sibling.exists():
        test, _, reader = read_coco(sibling, names, reader)
        note = ", ".join(filter(None, [f"{sibling.name} is the test part", reader.note()]))
        return Source(names, {"train": part, "test": test}, note)
    return fifth(part, reader, args)


def read_coco(
    path: Path, classes: list[str] | None, reader: Reader | None = None
) -> tuple[Part, list[str], Reader]:
    """Images and objects of one annotation file; crowds are difficult."""
    try:
        content = json.loads(path.read_text())
        names = {entry["id"]: str(entry["name"]) for entry in content["categories"]}
        images = {entry["id"]: entry["file_name"] for entry in content["images"]}
        found = {key: [] for key in images}
        for entry in content.get("annotations", []):
            if entry["image_id"] not in images:
                fail(f"{path}: annotation {entry.get('id')} names image {entry['image_id']!r}, "
                     "which the file doesn't list")  # fmt: skip
            if entry["category_id"] not in names:
                known = ", ".join(map(str, names))
                fail(f"{path}: annotation {entry.get('id')} names class {entry['category_id']!r}; "
                     f"the file lists {known}")  # fmt: skip
            left, top, width, height = map(float, entry["bbox"])
            box = [left, top, left + width, top + height]
            crowd = bool(entry.get("iscrowd", 0))
            found[entry["image_id"]].append((names[entry["category_id"]], box, crowd))
    except OSError as error:
        fail(f"--data coco:{path}: {error.strerror or error}")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        fail(f"--data coco:{path} is not an annotation file of COCO's format ({error!r})")
    reader = reader or Reader(list(names.values()))
    # The images lie beside the file, or as in COCO in train2017/ beside annotations/.
    part = path.stem.removeprefix("instances_")
    folders = [path.parent, path.parent / "images", path.parent.parent / part]
    folders += [path.parent.parent / "images", path.parent.parent / "images" / part]
    places = [[below(f, str(name), str(path)) for f in folders] for name in images.values()]
    files = [next((file for file in some if file.exists()), some[0]) for some in places]
    sizes = [size_of(file, str(path)) for file in files]
    objects = [
        reader.objects(found[key], size, str(path)) for key, size in zip(images, sizes, strict=True)
    ]
    return Part([str(file) for file in files], objects, sizes), classes or reader.classes, reader


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
    """The training, validation (None without --val) and test part of `--data`.

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
        fail(f"--data {args.data}: its training part has no boxes{why}")
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
