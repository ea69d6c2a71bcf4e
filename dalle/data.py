"""Images and captions as the two networks take them: pixels from 0 to 1, and words as tokens."""

import re
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from common import cli, fail, seed_of
from common.data import text as texts
from common.data.augment import scaled_window
from common.data.batches import Batches, Draw
from common.data.captions import CAPTION_SETS, CaptionSet, load_captions
from common.data.drawing import CLASSES
from common.data.images import IMAGE_SETS, ImageSet, load_images
from common.data.shapes import COLOURS
from common.data.text import UNKNOWN, read_tokenizer, train_bpe
from common.device import Device
from common.run import progress_bar
from dalle.dvae import DVAE

DATA = [*CAPTION_SETS, *(name for name in IMAGE_SETS if not name.startswith("shapes"))]
RANGE = dict(mean=[0.0] * 3, std=[1.0] * 3)  # pixels stay from 0 to 1
PLAIN = {"full": 0.0, "plain": 1.0, "mixed": 0.05}  # shares of captions; of Betker et al., Sec. 3.3
PHOTO = "a photo of "  # how every second caption of a scene begins: it tells nothing
NAMED = re.compile(rf"\ban? (?:(?:small|large) )?(?:{'|'.join(COLOURS)}) ({'|'.join(CLASSES)})\b")


def has_captions(data: str) -> bool:
    """Whether a data set of this name has captions."""
    return data.partition(":")[0] in {name.partition(":")[0] for name in CAPTION_SETS}


def load(args: cli.Flags, dev: Device) -> tuple:
    """The training, validation (None without --val) and test set of --data: CaptionSets, or for
    the dVAE alone also ImageSets."""
    size, mirrored = args.size, not has_captions(args.data)

    def window(numbers: Tensor, height: Tensor, width: Tensor) -> Tensor:
        """A square of 8/9 to all of the image's shorter side (Listing 2), mirrored or not
        (Listing 1): captions know left from right."""
        found = scaled_window(numbers, height, width, size, size, size * 9 // 8)
        return found if mirrored else found * found.new_tensor([1, 1, 1, 1, 0])

    if not has_captions(args.data):
        return load_images(args, dev, size, window=window, **RANGE)
    return load_captions(args, dev, size, RANGE, window)


def images_of(part: CaptionSet | ImageSet) -> ImageSet:
    """The images of a part alone."""
    return part.images if isinstance(part, CaptionSet) else part


class Words:
    """A vocabulary at work, from the `facts` of a checkpoint: `size` words, `length` places."""

    def __init__(self, facts: dict):
        self.tokenizer = read_tokenizer(facts["tokenizer"])
        self.size, self.length = self.tokenizer.get_vocab_size(), facts["text_length"]

    def encode(self, captions: Sequence[str]) -> Tensor:
        """Captions, lower-cased, as tokens (B, T), cut at T; -1 where there is no word."""
        found = torch.full((len(captions), self.length), -1)
        for row, tokens in zip(found, self.tokens(captions).tokens, strict=True):
            row[: len(tokens) - 1] = tokens[:-1]  # without the end: padding says where it is
        return found

    def tokens(self, captions: Sequence[str]) -> texts.Encoded:
        """The tokens of captions, each with an end, and what is lost of them."""
        lowered = [caption.lower() for caption in captions]
        return texts.encode(self.tokenizer, lowered, self.length + 1)

    def known(self, caption: str) -> bool:
        """Whether a caption has a word, or a letter, that training had."""
        tokens = self.tokens([caption]).tokens[0][:-1].tolist()
        names = (self.tokenizer.id_to_token(token) for token in tokens if token != UNKNOWN)
        return any(name.strip("▁") for name in names)


class Coded:
    """The training set as the transformer takes it: codes (B, h, w) and B captions.

    Images that are alike in each epoch become codes once, here; scenes without end, and crops, in
    each step.
    """

    def __init__(self, part: CaptionSet, dvae: DVAE, dev: Device):
        self.part, self.dvae, self.dev, self.codes = part, dvae, dev, None
        if not part.endless and not part.images.window:
            places = torch.arange(len(part)).split(250)
            shown = progress_bar(places, dev, "encoding", len(places))
            self.codes = torch.cat([self.encode(part.images.examples(some)[0]) for some in shown])

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Of each place the likeliest code: no noise (Sec. 2.2)."""
        with self.dev.autocast():
            return self.dvae.encode(images)

    def batches(self, batch_size: int) -> Batches:
        """Batches of training, in the order, with the captions and the crops of the part's own."""

        def fetch(parts: list[Tensor], draws: Iterable[Draw], epoch: int) -> Iterator:
            if self.codes is None:
                made = self.part.batches(batch_size).fetch(parts, draws, epoch)
                yield from ((self.encode(images), captions) for images, captions, _ in made)
                return
            captions = self.part.chosen(epoch)
            for places in parts:
                texts = [captions[i] for i in places.tolist()]
                yield self.codes[places.to(self.codes.device)], texts

        return Batches(len(self.part), batch_size, self.dev, True, fetch)


def read_texts(part: CaptionSet, args: cli.Flags) -> list[str]:
    """The different captions of a part, as they are read: those of scenes in full and plain."""
    found = part.texts()[0]
    if args.captions:
        full = [caption.removeprefix(PHOTO) for caption in found]
        found = list(dict.fromkeys([*full, *map(plainly, full)]))
    return found


def make_words(train: CaptionSet, args: cli.Flags, dev: Device) -> None:
    """Puts a vocabulary, trained on the captions of the training set by byte-pair encoding, into
    the facts of the data (Sec. 2.2: of lower-cased captions)."""
    captions = [caption.lower() for caption in read_texts(train, args)]
    tokenizer = train_bpe(captions, args.vocab_size).to_str()
    train.facts |= dict(tokenizer=dev.gather(tokenizer)[0], text_length=args.text_length)


def say_losses(
    words: Words, parts: Sequence[CaptionSet | None], args: cli.Flags, dev: Device
) -> None:
    """Says what of the captions isn't read."""
    found = [words.tokens(read_texts(part, args)) for part in parts if part]
    if note := texts.losses(found, words.length):
        dev.say(f"note: {note}")


def plainly(caption: str) -> str:
    """A caption of a scene as alt texts are: "a large red star" becomes "a star"."""

    def bare(found: re.Match) -> str:
        return f"{'an' if found[1][0] in 'aeiou' else 'a'} {found[1]}"

    return NAMED.sub(bare, caption.removeprefix(PHOTO))


def reworded(captions: Sequence[str], kind: str | None, *key: int) -> list[str]:
    """Captions of scenes in full, plain, or mixed, of which a seeded share is plain: the same
    whatever the number of processes. With None they are as they came."""
    if kind is None:
        return list(captions)
    return [
        plainly(text) if seed_of("plain", *key, text) / 2**63 < PLAIN[kind]
        else text.removeprefix(PHOTO)
        for text in captions
    ]  # fmt: skip


def check_captions(args: cli.Flags) -> None:
    """Ends in one line where the transformer is to learn from images without captions."""
    if not has_captions(args.data):
        fail(f"--data {args.data} has images but no captions, which {args.model} learns from: "
             f"take {', '.join(CAPTION_SETS)}, or train codes alone, --model dvae")  # fmt: skip
