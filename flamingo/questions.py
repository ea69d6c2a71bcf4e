"""Questions about scenes of the world of shapes, made by rule, and how text has them.

    entries = ask([3, 4], seed=0)            # of two scenes, each a list of entries
    entries[0][0]                            # Entry("colour", "what colour is the star?", "red")
    prompt_of(entries[0][0])                 # "Question: what colour is the star? Answer:"

Kinds of question: colour, shape, size, count, position, and yes or no. Each is said in several
ways. What is asked of a scene has one answer there: of two stars nobody asks what colour the star
is, nor for the size of what is nearly medium.
"""

import random
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from common import seed_of
from common.data.drawing import CLASSES
from common.data.shapes import COLOURS, LARGE, SMALL, describe, random_numbers

KINDS = ("colour", "shape", "size", "count", "position", "yes-no")
CAPTION = "caption"  # the kind of an entry without a question
IMAGE = "<image>"  # the mark of an image, as people write it
MARK = "\x01"  # and as the language model reads it: a byte that no text has
NUMBERS = ("one", "two", "three")
WORDS = ("dax", "wug", "blick", "fep", "toma", "zup", "kiki", "bouba")  # of riddles
WAYS = {  # {} is what is asked about
    "colour": ("what colour is {}?", "which colour does {} have?", "what is the colour of {}?",
               "{} is of which colour?"),
    "shape": ("what is {}?", "what shape is {}?", "which shape does {} have?",
              "{} is which shape?"),
    "size": ("what size is {}?", "how large is {}?", "is {} small, medium or large?",
             "which size does {} have?"),
    "count": ("how many shapes are there?", "how many things do you see?",
              "what is the number of shapes?", "how many shapes does the picture have?"),
    "position": ("where is {}?", "in which part of the picture is {}?", "where do you see {}?",
                 "on which side is {}?"),
    "yes-no": ("is there {}?", "do you see {}?", "does the picture have {}?",
               "can {} be seen?"),
}  # fmt: skip
NEAR = 0.05  # of a limit between sizes: a share of it; nobody is asked so near
OFF, CLEAR = 0.12, 1.5  # shares of the side off the middle; how many times as far as the other way


class Entry(NamedTuple):
    """What is said of an image: a question and its answer, or a caption (without a question)."""

    kind: str
    question: str
    answer: str


def prompt_of(entry: Entry) -> str:
    """The text before the answer, as the paper has it (Appendix, "prompting")."""
    return f"Question: {entry.question} Answer:" if entry.question else "Output:"


def with_article(words: str) -> str:
    """ "a star", "an arrow"."""
    return f"an {words}" if words[0] in "aeiou" else f"a {words}"


def size_of(radius: float) -> str | None:
    """What captions call it; None where that is a close call."""
    if any(abs(radius - limit) < NEAR * limit for limit in (SMALL, LARGE)):
        return None
    return "small" if radius < SMALL else "large" if radius > LARGE else "medium"


def position_of(x: float, y: float) -> str | None:
    """Where a centre is in the picture, shares of its sides; None where that isn't clear."""
    across, down = x - 0.5, y - 0.5
    far, other = max(abs(across), abs(down)), min(abs(across), abs(down))
    if far < OFF or far < CLEAR * other:
        return None
    if abs(across) > abs(down):
        return "left" if across < 0 else "right"
    return "top" if down < 0 else "bottom"


def facts_of(world: dict, scene: int, draw: random.Random) -> Iterable[tuple[str, str, str]]:
    """Kind, what is asked about, and the answer, of all that can be asked of a scene."""
    count = int(world["count"][scene])
    shapes = [CLASSES[k] for k in world["shape"][scene, :count].tolist()]
    colours = [list(COLOURS)[k] for k in world["colour"][scene, :count].tolist()]
    radii = world["radius"][scene, :count].tolist()
    centres = world["centre"][scene, :count].tolist()
    yield "count", "", NUMBERS[count - 1]
    for shape, colour, radius, centre in zip(shapes, colours, radii, centres, strict=True):
        names = []
        if shapes.count(shape) == 1:
            names.append(f"the {shape}")
            yield "colour", f"the {shape}", colour
        if colours.count(colour) == 1:
            names.append(f"the {colour} thing")
            yield "shape", f"the {colour} thing", shape
        for name in names:
            if size := size_of(radius):
                yield "size", name, size
            if place := position_of(*centre):
                yield "position", name, place
    there = {*shapes, *(f"{colour} thing" for colour in colours)}
    pairs = {f"{colour} {shape}" for colour, shape in zip(colours, shapes, strict=True)}
    for words in sorted(there | pairs):
        yield "yes-no", with_article(words), "yes"
    absent = [name for name in CLASSES if name not in shapes]
    others = [f"{name} thing" for name in COLOURS if name not in colours]
    swapped = {f"{colour} {shape}" for colour in colours for shape in shapes} - pairs
    no = draw.sample(absent, len(set(shapes))) + draw.sample(others, len(set(colours)))
    no += sorted(swapped) or [f"{draw.choice(colours)} {draw.choice(absent)}"]
    for words in no:
        yield "yes-no", with_article(words), "no"


def ask(indices: Sequence[int], seed: int, chunk: int = 1000) -> list[list[Entry]]:
    """By scene its caption and all questions, each in a way that is drawn by seed and scene."""
    found = []
    for begin in range(0, len(indices), chunk):
        some = list(indices[begin : begin + chunk])
        world = random_numbers(some, seed, 3)
        for place, index in enumerate(some):
            draw = random.Random(seed_of("questions", seed, index))
            entries = [Entry(CAPTION, "", describe(world, place))]
            for kind, about, answer in facts_of(world, place, draw):
                way = draw.choice(WAYS[kind])
                entries.append(Entry(kind, way.format(about), answer))
            found.append(entries)
    return found
