"""Images with their objects, one by one: boxes, classes, and masks where the data have them.

    train, val, test = load_instances(args, dev)
    for images, targets, _ in run.progress(train.batches(args.batch_size, augment)): ...

Images keep their sizes, as in torchvision's detectors: a batch is a list. Masks are kept as COCO's
run-lengths, a few hundred bytes each, and drawn when they are needed. Classes count from 1 in
targets, as 0 is the background; from 0 in `facts["classes"]`.
"""

import argparse
import dataclasses
import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from common import cli, counted, fail
from common.data import boxes as boxed
from common.data import shapes as world
from common.data.batches import Batches, Draw
from common.data.boxes import Objects, Outline, scale_of, turned
from common.data.files import UNREADABLE, ImageFiles, notes_on, open_image, read_files, white_in
from common.data.images import STREAM_BYTES, as_facts, moments_of
from common.data.masks import (
    DEEDS,
    TURNS,
    Annotated,
    add_fold_flags,
    check_fold,
    cut_fold,
    find_pairs,
    read_part,
)
from common.data.shapes import ShapeImages
from common.data.sources import Source, named, open_source, say_parts
from common.device import Device
from common.run import progress_bar

BOXES_ONLY = ["bccd", "voc2007", "voc2012", "voc0712", "voc:PATH"]
INSTANCE_SETS = ["shapes", "nuclei", "coco:JSON", "masks:PATH", *BOXES_ONLY]
CUT = ("nuclei", "masks")  # sets that may have no test set
FAR = 10  # sides of an image, the larger one, that a polygon may lie outside of it
AT_ONCE = 16  # objects of a label map whose masks are in memory together
SAMPLE = 256  # images of a streamed set whose pixels the mean is taken of


def has_masks(data: str) -> bool:
    """Whether a data set tells which pixels an object has."""
    return data.partition(":")[0] not in {name.partition(":")[0] for name in BOXES_ONLY}


@dataclasses.dataclass
class Things:
    """What one image holds."""

    objects: Objects  # boxes in pixels; `difficult` are crowds too
    masks: list[dict] | None  # COCO's run-lengths, one an object

    def __len__(self) -> int:
        return len(self.objects.labels)


class AnyFiles(ImageFiles):
    """Image files as they are, uint8 (3, H, W)."""

    def __getitem__(self, index: int) -> Tensor | str:
        try:
            image = open_image(self.paths[index], self.top).convert("RGB")
        except UNREADABLE as error:
            return f"{self.paths[index]} is not a readable image ({error})"
        return as_tensor(image)


def as_tensor(image: Image.Image) -> Tensor:
    """An RGB image as uint8 (3, H, W)."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


class InstanceSet:
    """One part of a data set: `part` is "train", "val" or "test".

    `images` are uint8 tensors (3, H, W), or files that `workers` processes read as they are needed.
    `facts` holds the `classes`, and the `mean` and `std` of pixels from 0 to 1.
    """

    def __init__(
        self,
        part: str,
        images: list[Tensor] | AnyFiles,
        things: list[Things],
        sizes: list[tuple[int, int]],
        facts: dict,
        dev: Device,
        workers: int = 0,
    ):
        self.part, self.images, self.things, self.sizes = part, images, things, sizes
        self.facts, self.dev, self.workers = facts, dev, workers

    def __len__(self) -> int:
        return len(self.things)

    def batches(self, batch_size: int, augment: Callable | None = None) -> Batches:
        """Lists of images (3, H, W), from 0 to 1, of targets, and places in the set (B,).

        A target has `boxes` (M, 4) in pixels, `labels` (M,) from 1, and `masks` (M, H, W), uint8,
        if the set has some; in training crowds and difficult objects are left out.
        `augment(images, targets, draw)` changes both, of the training set, which is shuffled.
        """
        shuffle = self.part == "train"

        def fetch(parts: list[Tensor], draws: list[Draw], epoch: int) -> Iterator:
            for part, images, draw in zip(parts, self.read(parts), draws, strict=True):
                images = [image.to(self.dev.device, non_blocking=True) for image in images]
                images = [image.float() / 255 for image in images]
                targets = [self.target(i) for i in part.tolist()] if shuffle else []
                if augment:
                    images, targets = augment(images, targets, draw)
                yield images, targets, part

        return Batches(len(self), batch_size, self.dev, shuffle, fetch)

    def read(self, parts: list[Tensor]) -> Iterator[list[Tensor]]:
        """The pixels of the images of parts, in turn."""
        keys = [part.tolist() for part in parts]
        if isinstance(self.images, AnyFiles):
            yield from read_files(self.images, keys, self.workers, self.dev, whole=False)
            return
        for some in keys:
            yield [self.images[i] for i in some]

    def target(self, index: int) -> dict[str, Tensor]:
        """What the image at `index` holds, to train on, on the device."""
        things, device = self.things[index], self.dev.device
        boxes, labels, difficult = things.objects
        kept = (~difficult).nonzero()[:, 0]
        target = {"boxes": boxes[kept].to(device), "labels": labels[kept].to(device) + 1}
        if things.masks is not None:
            masks = drawn([things.masks[i] for i in kept.tolist()], self.sizes[index])
            target["masks"] = masks.to(device)
        return target


def measurable(things: Sequence[Things]) -> int:
    """How many objects count in images: those that are neither crowds nor difficult."""
    return sum(int((~some.objects.difficult).sum()) for some in things)


def drawn(masks: list[dict], size: tuple[int, int]) -> Tensor:
    """Run-lengths as masks uint8 (n, H, W) of an image of this width and height."""
    from pycocotools import mask as coco_masks

    if not masks:
        return torch.zeros(0, size[1], size[0], dtype=torch.uint8)
    pixels = coco_masks.decode(masks)  # (H, W, n), column by column
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))


def run_lengths(masks: Tensor) -> list[dict]:
    """Masks (n, H, W) of 0 and 1 as COCO's compressed run-lengths."""
    from pycocotools import mask as coco_masks

    if not len(masks):
        return []
    pixels = masks.byte().cpu().numpy().transpose(1, 2, 0)
    return coco_masks.encode(np.asfortranarray(pixels))


# ---------------------------------------------------------------------- reading


def add_instance_flags(parser: cli.Parser) -> None:
    """The flags that say how a set of objects is read."""
    held = {name.partition(":")[0] for name in INSTANCE_SETS} - set(CUT)
    add_fold_flags(parser, *sorted(held))
    text = "read image files as they are needed, or all at once"
    parser.add_switch(
        "--stream", default=None, none="from 2 GiB of pixels", group="data", help=text
    )
    text = "processes that read image files as they are needed"
    kind = dict(type=cli.integer(0), metavar="N", default=2)
    parser.add_argument("--workers", **kind, group="data", help=text)

    def in_memory(_model: str, data: str, _paper: bool, **given) -> tuple[dict, dict]:
        reason = f"{data} always lies in memory; it is for files that are listed"
        always = data.partition(":")[0] in ("shapes", *CUT)
        return {}, dict.fromkeys(("stream", "workers"), reason) if always else {}

    parser.recipes.append(in_memory)


def load_instances(
    args: argparse.Namespace, dev: Device
) -> tuple[InstanceSet, InstanceSet | None, InstanceSet]:
    """The training, validation (None without --val) and test set of `--data`.

    `shapes` are drawn at --min-size pixels, of several the last.
    """
    if args.data.partition(":")[0] in CUT:
        check_fold(args)
    readers = {name: boxed.READERS[name] for name in boxed.READERS}
    readers |= {"nuclei": lambda args: nuclei(args, dev), "masks": lambda args: own(args, dev)}
    source = open_source(args, dev, readers)
    facts, notes, sets = {"classes": source.classes}, [source.note], {}
    facts["top"], counts = source.facts.get("top"), Counter()
    if "ids" in source.facts:  # what COCO's file calls the classes
        facts["ids"] = source.facts["ids"]
    facts["points"] = source.facts.get("points", 0)  # of Pascal's measure, in 2007
    first = source.parts["train"]
    if isinstance(first, boxed.Part) and not isinstance(first.images, ShapeImages):
        paths = [path for part in source.parts.values() for path in part.images]
        more, facts["top"] = notes_on(paths, 3)
        known = args.stored.get("dataset", {})  # of the model that is measured or goes on
        facts["top"] = known.get("top") or facts["top"]
        notes += more
    for name, part in source.parts.items():
        if isinstance(part, Annotated):
            content = of_labels(part)
        elif isinstance(part.images, ShapeImages):
            content = of_scenes(part.images, args.min_size[-1], dev)
        else:
            masks = args.model.startswith("maskrcnn")
            content = of_files(part, args, facts, masks, counts, dev)
        sets[name] = InstanceSet(name, *content, facts, dev, getattr(args, "workers", 0))
    notes += [text.format(counted(counts[key], *words)) for key, (text, *words) in SAID.items()
              if counts[key]]  # fmt: skip
    count = measurable(sets["train"].things)
    notes = "; ".join(filter(None, notes))
    if not count and not args.stored:
        fail(f"--data {args.data}: its training set has no objects{f' ({notes})' if notes else ''}")
    for name, word in (("val", "validation"), ("test", "test")):
        if name in sets and not measurable(sets[name].things):
            some = " but crowds or difficult ones" if any(map(len, sets[name].things)) else ""
            why = f"the {word} set has no objects{some}: nothing to measure"
            if name == "val" and args.patience and not args.stored:
                fail(f"--data {args.data}: {why}, and --patience waits for its scores")
            notes = "; ".join(filter(None, [notes, why]))
    facts["mean"], facts["std"] = statistics(sets["train"])
    place = "streamed" if isinstance(sets["train"].images, AnyFiles) else "in memory"
    what = counted(count, "object") + " to train on"
    place += f" ({notes})" if notes else ""
    say_parts(args, dev, sets, "images", named(source.classes), what, place)
    return sets["train"], sets.get("val"), sets["test"]


SAID = {  # of objects, counted: text, one, many
    "points": ("{} of fewer than three points dropped", "polygon"),
    "empty": ("{} without a pixel dropped", "mask"),
    "scaled": ("{} drawn at another size: scaled", "mask"),
}


def statistics(images: InstanceSet) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel, of pixels from 0 to 1."""
    some = torch.arange(len(images))
    if isinstance(images.images, AnyFiles):
        some = some[:: max(1, len(some) // SAMPLE)]
    chunks = itertools.chain.from_iterable(images.read(list(some.split(64))))
    return as_facts(*moments_of(image.flatten(1) for image in chunks))


def of_scenes(
    images: ShapeImages, size: int, dev: Device
) -> tuple[list[Tensor], list[Things], list[tuple[int, int]]]:
    """Scenes of the world of shapes, with what is seen of each object."""
    pixels, things = [], []
    chunks = torch.tensor(images.indices).split(100)
    for chunk in progress_bar(chunks, dev, "drawing scenes", len(chunks)):
        some = world.draw(chunk.tolist(), size, images.seed, boxed.MAX_OBJECTS)
        pixels += some.pixels
        seen = (some.shapes >= 0) & (boxed.area(some.boxes) > 0)  # some are hidden altogether
        for there, boxes, labels, masks in zip(
            seen, some.boxes, some.shapes, some.masks, strict=True
        ):
            flags = torch.zeros(int(there.sum()), dtype=torch.bool)
            objects = Objects(boxes[there].float(), labels[there], flags)
            things.append(Things(objects, run_lengths(masks[there])))
    return pixels, things, [(size, size)] * len(pixels)


# ---------------------------------------------------------------------- label maps


def nuclei(args: argparse.Namespace, dev: Device) -> Source:
    """Nuclei of cells under the microscope (Data Science Bowl 2018): a number for each."""
    root = Path(args.data_dir, "nuclei_dsb2018")
    if not root.is_dir():
        fail(
            f"nuclei: there is no {root}; copy it there, name another folder with "
            "--data-dir, or take --data shapes, which needs no files"
        )
    found = {"train": (root / "images", root / "labels", True)}
    return numbered(args, found, ["nucleus"], [], dev)


def own(args: argparse.Namespace, dev: Device) -> Source:
    """The user's images/ and labels/ (or masks/), perhaps below train/, val/ and test/."""
    found, notes = find_pairs(args.data)
    classes = args.stored.get("dataset", {}).get("classes", [])  # of the model that is measured
    return numbered(args, found, classes if len(classes) == 1 else ["object"], notes, dev)


def numbered(
    args: argparse.Namespace,
    found: dict[str, tuple[Path, Path, bool]],
    classes: list[str],
    notes: list[str],
    dev: Device,
) -> Source:
    """Reads folders of images and of label maps, by part; cuts folds."""
    known = args.stored.get("dataset", {})
    files = [path for images, *_ in found.values() for path in boxed.images_below(images)]
    top, counts = white_in(files), dict.fromkeys(DEEDS, 0)
    top = (top and known.get("top")) or top
    parts = {name: read_part(images, labels, True, top, counts, dev)
             for name, (images, labels, _) in found.items()}  # fmt: skip
    notes = [*notes, *(f"{counted(n, 'file')} {DEEDS[deed]}" for deed, n in counts.items() if n)]
    if top is not None:
        notes.append(f"images of more than 8 bits: {top:g} is white in all of them")
    maps = [labels for part in parts.values() for labels in part.labels]
    values = {value for labels in maps for value in labels.unique().tolist()} - {0}
    if len(values) == 1 and len(maps) > 1:
        notes.append(f"all label maps hold the number {values.pop()} alone: one object an image "
                     "(number each object to have them told apart)")  # fmt: skip
    if "test" not in parts:
        parts["train"], parts["test"], note = cut_fold(parts["train"], args)
        notes.append(note)
    return Source(classes, parts, "; ".join(notes), {"top": top})


def of_labels(part: Annotated) -> tuple[list[Tensor], list[Things], list[tuple[int, int]]]:
    """Images in colour, and of their label maps one thing for each number."""
    images, things, sizes = [], [], []
    for image, labels in zip(part.images, part.labels, strict=True):
        images.append(image.expand(3, -1, -1))
        boxes, masks = numbered_objects(labels)
        none = torch.zeros(len(boxes), dtype=torch.int64)
        things.append(Things(Objects(boxes, none, none.bool()), masks))
        sizes.append((labels.shape[1], labels.shape[0]))
    return images, things, sizes


def numbered_objects(labels: Tensor) -> tuple[Tensor, list[dict]]:
    """The boxes (n, 4) and run-lengths of the numbers in a label map (H, W), from the lowest on."""
    from scipy import ndimage

    numbers, places = np.unique(labels.numpy(), return_inverse=True)
    places = places.reshape(labels.shape) + int(numbers[0] != 0)  # from 1, without gaps
    found = ndimage.find_objects(places)
    boxes = [[across.start, down.start, across.stop, down.stop] for down, across in found]
    every, masks = torch.arange(1, len(found) + 1), []
    for some in every.split(AT_ONCE):
        masks += run_lengths(torch.from_numpy(places) == some.view(-1, 1, 1))
    return torch.tensor(boxes, dtype=torch.float32).view(-1, 4), masks


# ---------------------------------------------------------------------- lists of files


def of_files(
    part: boxed.Part,
    args: argparse.Namespace,
    facts: dict,
    masks: bool,
    counts: Counter,
    dev: Device,
) -> tuple[list[Tensor] | AnyFiles, list[Things], list[tuple[int, int]]]:
    """Listed image files with their boxes and, with `masks`, their outlines in run-lengths."""
    things = []
    for number, (objects, size) in enumerate(zip(part.objects, part.sizes, strict=True)):
        objects = objects._replace(boxes=objects.boxes * scale_of(size))
        if not masks:
            things.append(Things(objects, None))
            continue
        found = [
            outlined(outline, size, part.images[number], args.data, counts)
            for outline in part.outlines[number]
        ]
        kept = torch.tensor([place for place, mask in enumerate(found) if mask], dtype=torch.int64)
        objects = Objects(*(values[kept] for values in objects))
        things.append(Things(objects, [found[place] for place in kept.tolist()]))
    files = AnyFiles(part.images, top=facts["top"])
    stored = sum(3 * width * height for width, height in part.sizes)
    if stored > STREAM_BYTES if args.stream is None else args.stream:
        return files, things, part.sizes
    keys = [some.tolist() for some in torch.arange(len(files)).split(64)]
    read = read_files(files, keys, args.workers, dev, whole=False)
    images = list(itertools.chain.from_iterable(
        progress_bar(read, dev, "reading images", len(keys))))  # fmt: skip
    return images, things, part.sizes


def outlined(
    outline: Outline, size: tuple[int, int], image: str, data: str, counts: Counter
) -> dict | None:
    """The run-lengths of an object in its image of this width and height; None if it has no pixel.

    An outline lies on the picture that it was drawn on, which may be the image scaled, or before
    EXIF turned it.
    """
    from pycocotools import mask as coco_masks

    where = f"--data {data}: {outline.name} ({Path(image).name})"
    drawn_on, written = outline.size, outline.segmentation
    if isinstance(written, dict):
        mask = read_run_lengths(written, drawn_on, where)
        if outline.turn > 1:
            mask = np.array(Image.fromarray(mask).transpose(TURNS[outline.turn]))
        if mask.shape != size[::-1]:
            counts["scaled"] += 1
            mask = np.array(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST))
        found = coco_masks.encode(np.asfortranarray(mask))
    else:
        polygons, short = read_polygons(written, where)
        counts["points"] += short
        places = [on_image(polygon, drawn_on, outline.turn, size) for polygon in polygons]
        if not places:
            counts["empty"] += not short
            return None
        most = FAR * max(size)
        if wild := [v for place in places for v in place if abs(v) > most]:  # fills all memory
            fail(f"{where}: a polygon reaches to {wild[0]:g}, far outside the image")
        found = coco_masks.merge(coco_masks.frPyObjects(places, size[1], size[0]))
    if not int(coco_masks.area(found)):
        counts["empty"] += 1
        return None
    return found


def read_polygons(written: object, where: str) -> tuple[list[list[float]], int]:
    """The polygons of an outline, x and y in turn, and how many have fewer than three points."""
    if written is None:
        fail(f"{where} has no segmentation, and masks are to be learnt: name a model without masks "
             "(--model fasterrcnn_small), or annotate the objects' outlines")  # fmt: skip
    if not isinstance(written, list):
        fail(f"{where}: its segmentation is neither a list of polygons nor run-lengths")
    if written and all(isinstance(value, (int, float)) for value in written):
        written = [written]  # a single polygon, not in a list
    polygons, short = [], 0
    for polygon in written:
        try:
            points = [float(value) for value in polygon]
            right = all(map(math.isfinite, points)) and len(points) % 2 == 0
        except (TypeError, ValueError, OverflowError):
            right = False
        if not right:
            fail(f"{where}: a polygon is a list of numbers, x and y in turn, not "
                 f"{str(polygon)[:60]}")  # fmt: skip
        if len(points) < 6:
            short += 1
        else:
            polygons.append(points)
    return polygons, short


def on_image(
    polygon: list[float], drawn_on: tuple[float, float], turn: int, size: tuple[int, int]
) -> list[float]:
    """A polygon in the pixels of the image, from those of the picture that it was drawn on."""
    if turn == 1 and tuple(drawn_on) == tuple(size):
        return polygon
    places = []
    for x, y in zip(polygon[::2], polygon[1::2], strict=True):
        share = [x / drawn_on[0], y / drawn_on[1]]
        x, y, *_ = turned([*share, *share], turn)
        places += [x * size[0], y * size[1]]
    return places


def read_run_lengths(written: dict, drawn_on: tuple[float, float], where: str) -> np.ndarray:
    """The mask (H, W), uint8, of run-lengths, compressed or not: zeros and ones in turn, down the
    columns.

    They are read here, as pycocotools takes damaged ones and leaves pixels unset.
    """
    try:
        height, width = map(int, written["size"])
        counts = written["counts"]
        compressed = isinstance(counts, (str, bytes))
        counts = decompressed(counts) if compressed else [int(count) for count in counts]
        if min(counts, default=0) < 0:
            raise ValueError(f"a count is {min(counts)}")
        if sum(counts) != height * width:
            raise ValueError(f"its counts are of {sum(counts)} pixels")
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        fail(f"{where}: its run-lengths are damaged ({error})")
    if (width, height) != tuple(drawn_on):
        there = f"{drawn_on[0]:g}x{drawn_on[1]:g}"
        fail(f"{where}: its mask has {width}x{height} pixels, its image {there}")
    values = np.arange(len(counts), dtype=np.uint8) % 2
    return np.repeat(values, counts).reshape(width, height).T


def decompressed(written: str | bytes) -> list[int]:
    """The counts in COCO's compressed run-lengths; raises ValueError where these are cut off.

    Each character holds five bits, the lowest first, and whether more follow; from the fourth count
    on it is the difference to the one but one before.
    """
    counts, value, shift = [], 0, 0
    for byte in written.encode("ascii") if isinstance(written, str) else written:
        byte -= 48
        if not 0 <= byte < 64 or shift > 60:
            raise ValueError("no compressed counts")
        value |= (byte & 31) << shift
        shift += 5
        if byte & 32:
            continue
        if byte & 16:  # negative
            value -= 1 << shift
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
        value = shift = 0
    if shift:
        raise ValueError("they end within a count")
    return counts
