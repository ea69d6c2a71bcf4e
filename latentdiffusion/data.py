"""Images with captions as latents with tokens.

train, val, test = load(args, dev)                    # pixels from -1 to 1, captions as strings
words = Words(train.facts["words"])                   # captions to tokens
latents = Latents(train, words, autoencoder, dev)     # encoded once, then kept
for known, tokens in run.progress(latents.batches(args.batch_size)): ...
"""

import argparse
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from common import cli, counted, fail
from common.data import shapes as world
from common.data import sources
from common.data.batches import Batches, Draw
from common.data.captions import CAPTION_SETS, READERS, Captioned, CaptionSet, load_captions
from common.data.sources import Source
from common.data.tokens import FEWEST, Tokens, train_tokenizer
from common.device import Device, forked

DATA = [*CAPTION_SETS, "folder:PATH"]
INPUTS = {"mean": [0.5] * 3, "std": [0.5] * 3}  # pixels from -1 to 1
CHUNK = 64  # images that are encoded at a time
MOST = 77  # tokens of a text, as CLIP has it


def captioned_folder(args: argparse.Namespace) -> Source:
    """The user's own images, a folder a class: the caption is the folder's name."""
    source = sources.folder(args)
    for name, part in source.parts.items():
        names = [source.classes[label].replace("_", " ") for label in part.labels.tolist()]
        source.parts[name] = Captioned(part.pixels, [[text] for text in names], part.labels)
    return source


def plain_scenes(args: argparse.Namespace) -> Source:
    """Scenes of shapes, each with its one caption that doesn't begin with "a photo of": those
    words are in as many captions as not, and tell nothing."""
    source = READERS["shapes"](args)
    for part in source.parts.values():
        part.captions, part.kinds = [some[:1] for some in part.captions], False
    return source


def load(args: cli.Flags, dev: Device) -> tuple[CaptionSet, CaptionSet | None, CaptionSet]:
    """The training, validation (None without --val) and test set of `--data`, from -1 to 1.

    `shapes` are the same scenes in each epoch, as images are encoded but once.
    """
    fixed = f"shapes:{world.NUM_SCENES['train']}" if args.data == "shapes" else args.data
    readers = READERS | {"shapes": plain_scenes, "folder": captioned_folder}
    args = args.but(data=fixed)
    return load_captions(args, dev, args.size, INPUTS, readers=readers)


class Words:
    """Captions as tokens, as many for each: `facts` hold the `tokenizer`, the `context` and the
    token that fills a row (`pad`)."""

    def __init__(self, facts: dict):
        self.tokens = Tokens(facts["tokenizer"])
        self.context, self.pad = facts["context"], facts["pad"]
        self.cut = 0  # how many texts were too long

    def encode(self, texts: Sequence[str]) -> Tensor:
        """(B, context), int64; what is too long is cut, and counted in `cut`."""
        found, cut = self.tokens.encode(texts, self.context)
        self.cut += cut
        rows = torch.full((len(texts), self.context), self.pad)
        rows[:, : found.shape[1]] = found
        if self.pad != self.tokens.end:  # rows are filled after the first end
            ends = (found == self.tokens.end).cumsum(1)
            rows[:, : found.shape[1]][ends > 1] = self.pad
        return rows

    def say_cut(self, parts: Sequence[CaptionSet | None], dev: Device) -> None:
        """Says how many captions are too long."""
        texts = {text for part in parts if part for some in part.captions for text in some}
        if cut := self.tokens.encode(sorted(texts), self.context)[1]:
            dev.say(f"note: {counted(cut, 'caption')} cut at {self.context} tokens")


def learn_words(train: CaptionSet, vocab_size: int, dev: Device) -> dict:
    """The facts of a vocabulary for the captions of a training set; see `Words`."""
    texts = [text for some in train.captions for text in some]
    tokenizer = dev.gather(train_tokenizer(texts, max(FEWEST, vocab_size)))[0]
    tokens = Tokens(tokenizer)
    context = tokens.encode(texts, MOST)[0].shape[1]
    return dict(tokenizer=tokenizer, context=context, pad=tokens.end, size=tokens.size)


class Latents:
    """What an autoencoder knows of a part's images, and the tokens of their captions.

    Images are encoded once, in float32, by all processes together; latents are drawn anew in each
    step.
    """

    def __init__(self, part: CaptionSet, words: Words, autoencoder: nn.Module, dev: Device):
        self.part, self.words, self.dev = part, words, dev
        with torch.inference_mode():
            batches = part.images.batches(CHUNK * dev.world, shuffle=False)
            own = [autoencoder.encode(x).cpu() for x, _ in batches]
        shares = zip(*dev.gather(own), strict=True)  # of each step
        self.known = torch.cat([some for step in shares for some in step]).clone()  # (N, ..., h, w)
        if dev.device.type == "cuda":  # where there is room for them
            free, _ = torch.cuda.mem_get_info()
            fits = self.known.numel() * 4 < free / 4
            self.known = self.known.to(dev.device) if fits else self.known.pin_memory()

    def __len__(self) -> int:
        return len(self.part)

    def deviation(self, autoencoder: nn.Module) -> float:
        """The standard deviation of all latents drawn, by which they are scaled."""
        with forked("deviation", self.dev, alike=True):
            total = [autoencoder.draw(part).double() for part in self.known.cpu().split(1024)]
        return float(torch.cat(total).std())

    def batches(self, batch_size: int, shuffle: bool = True) -> Batches:
        """Batches of what is known of images (B, ..., h, w) and tokens (B, T), on the device. In
        training an image has another of its captions in each epoch, in evaluation its first."""

        def fetch(parts: list[Tensor], _draws: Iterable[Draw], epoch: int) -> Iterator:
            first = [some[0] for some in self.part.captions]
            texts = self.part.chosen(epoch) if shuffle else first
            for part in parts:
                tokens = self.words.encode([texts[i] for i in part.tolist()])
                known = self.known[part.to(self.known.device)]
                yield known.to(self.dev.device, non_blocking=True), tokens.to(self.dev.device)

        return Batches(len(self), batch_size, self.dev, shuffle, fetch)


def usual_size(model: str, data: str) -> int:
    """How many pixels wide images are, unless --size says otherwise."""
    if data.startswith("shapes"):
        return 24 if model != "stable_diffusion" else 64
    return 64 if model.endswith("_small") else 256


def name_of(data: str) -> str:
    """A data set's name without what follows a colon."""
    return data.partition(":")[0]


def read_mask(path: Path, height: int, width: int) -> Tensor:
    """A mask (1, 1, H, W) of an image file: 1 where it is white, which is what will be painted
    anew. Ends in one line if it isn't of this size, or marks nothing or all."""
    from common.data.files import UNREADABLE, open_image

    try:
        image = open_image(str(path), None).convert("L")
    except UNREADABLE as error:
        fail(f"{path} is not a readable image ({error})")
    if (image.height, image.width) != (height, width):
        fail(f"the mask {path} has {image.width}x{image.height} pixels, the image "
             f"{width}x{height}: they have to be equal")  # fmt: skip
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    mask = (pixels.view(1, 1, height, width) > 127).float()
    if not mask.any() or mask.all():
        what = "nothing" if not mask.any() else "everything"
        fail(f"the mask {path} marks {what} as to be painted: white is painted, black is kept")
    return mask
