"""Whether pictures show what a caption asks for: the measure of text to image in the world of
shapes.

    asked = one_object(200)                       # unseen scenes of one object, with their captions
    judge = ready(dev)                            # trained, or from the cache: data/cache/scenes
    images = ...                                  # (200, 3, S, S), from 0 to 1, for asked.captions
    shapes, colours = wanted(asked.captions)      # (200,) each: places in CLASSES and COLOURS
    right = judge.right(images, shapes, colours)  # bool (200,): the shape and the colour asked for
    judge.accuracy                                # of real scenes: {"shape", "colour", "both"}

The judge is a small residual network, trained on scenes of the training seed: it names the shape
and the colour of the largest object. It sees SIZE pixels, whatever the pictures have. Half of what
it learns from was smaller before, as generated pictures are blurred and lack the scenes' noise.
Chance is 1 in 80.
"""

import re
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common import seed_of
from common.checkpoint import read_tensors, write_checkpoint
from common.data.drawing import CLASSES
from common.data.shapes import COLOURS, Scenes, ShapeImages, draw, random_numbers, with_few
from common.device import Device, forked, multiplies_bf16
from common.run import progress_bar
from common.schedule import warmup_and_line

CACHE = Path("data", "cache", "scenes")
SIZE = 24  # pixels that the judge sees
TRAINED, EPOCHS, BATCH = 10_000, 5, 64  # scenes of seed 0
RATE = 0.1
WIDTHS, DEPTH = (16, 32, 64), 3  # channels of the stages, blocks of each: a ResNet of 20 layers
TEST_SEED = 1  # of the data set's test set
MEASURED = 1000  # scenes of the test set that the judge is measured on, where they have one object
FIRST = re.compile(rf"\b({'|'.join(COLOURS)}) ({'|'.join(CLASSES)})s?\b")


class Residual(nn.Module):
    """Two 3x3 convolutions and a shortcut; the first may halve the resolution."""

    def __init__(self, in_channels: int, channels: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)
        self.shortcut = nn.Identity()
        if stride > 1:
            self.shortcut = nn.Conv2d(in_channels, channels, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) to (B, C, H/stride, W/stride)."""
        out = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        return F.relu(out + self.shortcut(x))


class Judge(nn.Module):
    """Names the shape and the colour of the largest object in pictures (N, 3, S, S), from 0 to 1.

    `accuracy` are its shares of right answers on unseen real scenes of one object.
    """

    def __init__(self):
        super().__init__()
        width = WIDTHS[0]
        layers = [nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        for stage, channels in enumerate(WIDTHS):
            for block in range(DEPTH):
                stride = 2 if stage and not block else 1
                layers.append(Residual(width, channels, stride))
                width = channels
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(width, len(CLASSES) + len(COLOURS))
        self.accuracy: dict[str, float] = {}

    def features(self, images: Tensor) -> Tensor:
        """What the last layer sees (N, 64): for distances between distributions."""
        if images.shape[-2:] != (SIZE, SIZE):
            images = F.interpolate(images, (SIZE, SIZE), mode="bilinear", antialias=True)
        return self.layers(images * 4 - 2).mean((2, 3))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of the shapes (N, 10) and of the colours (N, 8)."""
        logits = self.head(self.features(images))
        return logits[:, : len(CLASSES)], logits[:, len(CLASSES) :]

    @torch.no_grad()
    def read(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The likeliest shapes and colours (N,): places in CLASSES and COLOURS, on the CPU."""
        place = self.head.weight.device
        found = [self(part.to(place).float()) for part in images.split(500)]
        shapes, colours = (torch.cat(parts).argmax(1).cpu() for parts in zip(*found, strict=True))
        return shapes, colours

    def right(self, images: Tensor, shapes: Tensor, colours: Tensor) -> Tensor:
        """Which pictures (N, 3, S, S) show these shapes in these colours, (N,) each: bool (N,)."""
        seen = self.read(images)
        return (seen[0] == shapes) & (seen[1] == colours)

    def __str__(self) -> str:
        shares = ", ".join(f"{key} {value:.1%}" for key, value in self.accuracy.items())
        return f"the judge's own accuracy on real scenes of one object: {shares}"


def wanted(captions: Sequence[str]) -> tuple[Tensor, Tensor]:
    """The shapes and colours (N,) that captions name first. Raises ValueError if one names none."""
    found = [FIRST.search(caption.lower()) for caption in captions]
    if None in found:
        caption = captions[found.index(None)]
        raise ValueError(f"the caption {caption!r} names no shape of the world with its colour")
    names = [[match[2] for match in found], [match[1] for match in found]]
    known = CLASSES, list(COLOURS)
    shapes, colours = (
        torch.tensor([row.index(name) for name in some])
        for row, some in zip(known, names, strict=True)
    )
    return shapes, colours


def one_object(count: int, size: int = SIZE, seed: int = TEST_SEED) -> Scenes:
    """The first `count` scenes of a seed that have one object, with their captions.

    They are of the test set, unless another `seed` is given: 2 for choosing between recipes, as
    seed 0 is trained on.
    """
    return draw(with_few(count, seed, 1), size, seed)


def ready(dev: Device) -> Judge:
    """The judge on the device, trained if it isn't in the cache: 86 s of one core of a Xeon."""
    key = seed_of("judge", SIZE, WIDTHS, DEPTH, TRAINED, EPOCHS, BATCH, RATE, MEASURED) % 16**8
    path = CACHE / f"judge-{key:08x}.pt"
    with forked("judge", dev, alike=True):
        judge = Judge().to(dev.device)
        if path.exists():
            kept = read_tensors(path)
            judge.load_state_dict(kept["model"])
            judge.accuracy = kept["accuracy"]
            return judge.eval()
        train(judge, dev)
    judge.eval()
    judge.accuracy = measure(judge)
    if dev.main:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_checkpoint(path, {"model": judge.state_dict(), "accuracy": judge.accuracy})
    return judge


def train(judge: Judge, dev: Device) -> None:
    """Trains a judge on TRAINED scenes, by momentum, with a rate that rises and falls in lines."""
    pixels = torch.cat(list(ShapeImages(range(TRAINED), 0).draw(SIZE))).to(dev.device)
    numbers = random_numbers(list(range(TRAINED)), 0, 3)
    labels, colours = (numbers[key][:, 0].to(dev.device) for key in ("shape", "colour"))
    fast = multiplies_bf16(dev.device.type)
    judge.to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(judge.parameters(), RATE, momentum=0.9, weight_decay=1e-4)
    steps = EPOCHS * (TRAINED // BATCH)
    for step in progress_bar(range(steps), dev, "training the judge", steps):
        if step % (TRAINED // BATCH) == 0:
            order = torch.randperm(TRAINED).to(dev.device)
        optimizer.param_groups[0]["lr"] = RATE * warmup_and_line((step + 1) / (steps + 1))
        rows = order[step % (TRAINED // BATCH) * BATCH :][:BATCH]
        with torch.autocast(dev.device.type, torch.bfloat16, enabled=fast):
            found = judge(soften_and_mirror(pixels[rows].float() / 255))
            loss = F.cross_entropy(found[0], labels[rows])
            loss = loss + F.cross_entropy(found[1], colours[rows]) / 2  # which is easy
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def soften_and_mirror(images: Tensor) -> Tensor:
    """Mirrors half of the images (B, 3, S, S); scales half down to three quarters and up again."""
    chosen = torch.rand(2, len(images), 1, 1, 1).to(images.device) < 0.5
    images = torch.where(chosen[0], images.flip(3), images)
    small = F.interpolate(images, scale_factor=0.75, mode="bilinear", antialias=True)
    soft = F.interpolate(small, images.shape[2:], mode="bilinear", antialias=True)
    return torch.where(chosen[1], soft, images).contiguous(memory_format=torch.channels_last)


def measure(judge: Judge) -> dict[str, float]:
    """A judge's accuracy on the scenes of one object among the first MEASURED of the test set."""
    numbers = random_numbers(list(range(MEASURED)), TEST_SEED, 3)["count"]
    scenes = one_object(int((numbers == 1).sum()), SIZE)
    shapes, colours = judge.read(scenes.pixels.float() / 255)
    shape, colour = shapes == scenes.shapes[:, 0], colours == scenes.colours[:, 0]
    shares = {"shape": shape, "colour": colour, "both": shape & colour}
    return {key: float(value.double().mean()) for key, value in shares.items()}
