"""What a file that leaves this repository holds: for each kind of network what goes in, what comes
out, and with what it is compared.

A `Form` has the module that is traced. Loops are in it where they can be: detection with its
suppression, writing the likeliest tokens, drawing images from noise. They are loops of the format
(torch.while_loop), so that a file is as long for a thousand steps as for one.
"""

import inspect
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common import decode
from tools.loops import (
    Denoising,
    Detector,
    Drawing,
    Greedy,
    GreedyFlamingo,
    GreedyGPT,
    GreedyRNN,
    GreedySeq2Seq,
    GreedyT5,
    GreedyTransformer,
    Latent,
    Refused,
)
from tools.milestones import small_models
from tools.trained import Trained, part_of

MOST_ROWS = 1 << 16  # of a batch, and of what else may be of any length


@dataclass
class Form:
    """A module to trace, and what it takes.

    `make(rows, length, draw)` makes inputs by name: `rows` in the batch, sequences of `length`;
    `axes` names those of their dimensions that may have any size, with the largest. `truth(inputs)`
    is what the checkpoint's own code answers, by default the module's. `note` says to a person
    what goes in; `more` are facts for the file.
    """

    module: nn.Module
    make: Callable[[int, int, torch.Generator], dict[str, Tensor]]
    axes: dict[str, dict[int, tuple[str, int]]]
    outputs: tuple[str, ...]
    note: str
    truth: Callable[[dict[str, Tensor]], tuple[Tensor, ...]] | None = None
    more: dict[str, Any] = field(default_factory=dict)

    def answers(self, inputs: dict[str, Tensor]) -> tuple[Tensor, ...]:
        """What the checkpoint answers, a tensor for each output."""
        found = self.truth(inputs) if self.truth else self.module(*inputs.values())
        return found if isinstance(found, tuple) else (found,)


class Called(nn.Module):
    """A module whose forward pass is `function(model, ...)`."""

    def __init__(self, model: nn.Module, function: Callable):
        super().__init__()
        self.model, self.function = model, function

    def forward(self, *inputs: Tensor) -> Any:
        """What the function returns."""
        return self.function(self.model, *inputs)


def batch(*others: str) -> dict[int, tuple[str, int]]:
    """Axes of which the first is the batch, and the next ones have these names."""
    return {i: (name, MOST_ROWS) for i, name in enumerate(("batch", *others))}


# ---------------------------------------------------------------------- images


def normalised(facts: dict, size: int) -> dict[str, Any]:
    """What has to be known to prepare an image."""
    channels = len(facts["mean"])
    return dict(size=size, channels=channels, range="0 to 1, before mean and std", layout="NCHW")


def image_note(more: dict, facts: dict) -> str:
    """How an image is prepared, in words."""
    colour = "RGB" if more["channels"] == 3 else "grey"
    side = facts.get("side") or more["size"]
    return (f"images (batch, {more['channels']}, {more['size']}, {more['size']}), {colour}: the "
            f"middle square scaled to {side} pixels, of it the middle {more['size']}; pixels from "
            "0 to 1, minus mean, divided by std")  # fmt: skip


def images(facts: dict, size: int) -> Callable:
    """A maker of random images, as they are after mean and std."""
    mean, std = (torch.tensor(facts[key]).view(-1, 1, 1) for key in ("mean", "std"))

    def make(rows: int, length: int, draw: torch.Generator) -> dict[str, Tensor]:
        pixels = torch.rand(rows, len(mean), size, size, generator=draw)
        return {"images": (pixels - mean) / std}

    return make


def classifier(trained: Trained) -> Form:
    """Images to the logits of classes."""
    facts, size = trained.facts, trained.flags.size
    more = normalised(facts, size)
    note = image_note(more, facts)
    return Form(trained.model, images(facts, size), {"images": batch()}, ("logits",), note, None,
                more)  # fmt: skip


def lenet(trained: Trained) -> Form:
    """Digits of 28 pixels with 2 of background around them."""
    more = normalised(trained.facts, 32) | {"pad": 2}
    note = ("images (batch, 1, 32, 32), grey, light ink on dark: 28 pixels, and 2 of black on each "
            "side; pixels from 0 to 1, minus mean, divided by std")  # fmt: skip
    make = images(trained.facts, 32)
    return Form(trained.model, make, {"images": batch()}, ("logits",), note, None, more)


def unet(trained: Trained) -> Form:
    """Images whose sides the network can halve to logits of each pixel's class."""
    facts, model = trained.facts, trained.model
    valid = model.padding == "valid"
    size = 188 if valid else max(16, trained.flags.size // 16 * 16)
    facts = facts | {key: facts.get(key, [v] * facts["channels"])
                     for key, v in (("mean", 0.0), ("std", 1.0))}  # fmt: skip
    more = normalised(facts, size) | {"margin": model.context}
    more["range"] = "0 to 1, then by mean and std (or each image by its own)"
    note = (f"images (batch, {facts['channels']}, {size}, {size}); the logits (batch, class, row, "
            f"column) are of the pixels {model.context} from each side: mirror so many around an "
            "image")  # fmt: skip
    return Form(model, images(facts, size), {"images": batch()}, ("logits",), note, None, more)


def yolo(trained: Trained) -> Form:
    """Images to boxes, with suppression."""
    from common.detection import suppress

    decoded = part_of("yolo.model", "decode")
    facts, flags, size = trained.facts, trained.flags, trained.flags.size
    make, model = images(facts, size), trained.model
    module = Detector(model, decoded, flags.boxes)

    def inputs(rows: int, length: int, draw: torch.Generator) -> dict[str, Tensor]:
        pixels = make(rows, length, draw)["images"]
        scores = decoded(model(pixels), flags.boxes)[1]
        return {"images": pixels, "threshold": scores.median()[None]}  # so that half of them count

    def truth(given: dict[str, Tensor]) -> tuple[Tensor, ...]:
        boxes, scores = decoded(model(given["images"]), flags.boxes)
        rows = []
        for box, score in zip(boxes, scores, strict=True):
            found = suppress(box, score, float(given["threshold"]), module.overlap, module.most)
            rest = min(module.most, score.numel()) - len(found.scores)
            rows.append([F.pad(part, [0, 0] * (part.dim() - 1) + [0, rest])
                         for part in found] + [torch.tensor(len(found.scores))])  # fmt: skip
        box, score, label, count = (torch.stack(part) for part in zip(*rows, strict=True))
        return box, score, label, count, boxes, scores

    more = normalised(facts, size) | {"resize": "squeezed, not cut"}
    note = (f"images (batch, 3, {size}, {size}), squeezed to that; pixels from 0 to 1, minus mean, "
            "divided by std; threshold (1,): the least score, 0.2 in sample.py. boxes are left, "
            "top, right, bottom in shares of the image; the first `count` of each image are "
            "found")  # fmt: skip
    axes = {"images": batch(), "threshold": {}}
    outputs = ("boxes", "scores", "labels", "count", "candidates", "candidate_scores")
    return Form(module, inputs, axes, outputs, note, truth, more)


# ---------------------------------------------------------------------- rows, words, graphs


def mlp(trained: Trained) -> Form:
    """Rows of a table as they are encoded, images, or questions."""
    model, facts, flags = trained.model, trained.facts, trained.flags
    if "in_features" not in facts and "mean" in facts:
        more = normalised(facts, 28)
        note = ("images (batch, 1, 28, 28), grey, light ink on dark; pixels from 0 to 1, minus "
                "mean, divided by std")  # fmt: skip
        return Form(model, images(facts, 28), {"images": batch()}, ("logits",), note, None, more)
    worlds = {"symmetry": 6, "family_trees": 36}
    width = facts.get("in_features") or worlds[flags.model]

    def make(rows: int, length: int, draw: torch.Generator) -> dict[str, Tensor]:
        return {"rows": torch.randn(rows, width, generator=draw)}

    note = f"rows (batch, {width}): the columns one after another as `columns` says: numbers minus \
mean, divided by std; categories one-hot; with `missing` one more that is 1 for an empty cell"
    if not facts.get("columns"):
        note = f"rows (batch, {width}) of zeros and ones"
    return Form(model, make, {"rows": batch()}, ("outputs",), note)


def whole(low: int, high: int) -> Callable:
    """A maker of whole numbers (rows, length)."""

    def make(rows: int, length: int, draw: torch.Generator) -> Tensor:
        return torch.randint(low, high, (rows, length), generator=draw)

    return make


def rnn(trained: Trained) -> Form:
    """Sequences to what comes next, to a class, to a forecast."""
    model, facts = trained.model, trained.facts
    task = facts["task"]
    if task == "text":
        return writing_rnn(trained)
    if task == "sentences":
        some, note = whole(1, facts["vocab_size"]), "tokens (batch, length), 0 behind the end"
    else:
        width = model.rnn.input_size

        def some(rows: int, length: int, draw: torch.Generator) -> Tensor:
            return torch.randn(rows, length, width, generator=draw)

        note = f"steps (batch, length, {width}), " + (
            "scaled by mean and std" if task == "series" else "as in training"
        )

    def make(rows: int, length: int, draw: torch.Generator) -> dict[str, Tensor]:
        lengths = torch.randint(1, length + 1, (rows,), generator=draw)
        lengths[0] = length
        return {"inputs": some(rows, length, draw), "lengths": lengths}

    module = Called(model, lambda net, inputs, lengths: net(inputs, lengths)[0])
    axes = {"inputs": batch("length"), "lengths": batch()}
    name = "logits" if "classes" in facts else "forecast"
    return Form(module, make, axes, (name,), f"inputs: {note}; lengths (batch,)")


def gnn(trained: Trained) -> Form:
    """Nodes with edges, of one graph or of many side by side."""
    model, channels = trained.model, trained.facts["channels"]
    graphs = trained.facts["task"] == "graphs"

    def make(rows: int, length: int, draw: torch.Generator) -> dict[str, Tensor]:
        nodes = length * rows
        first = torch.randint(nodes, (3 * nodes,), generator=draw)
        second = first // length * length + torch.randint(length, (3 * nodes,), generator=draw)
        features = torch.rand(nodes, channels, generator=draw)
        made = {"features": features, "edges": torch.stack([first, second])}
        return made | ({"sizes": torch.full((rows,), length)} if graphs else {})

    axes = {"features": {0: ("nodes", MOST_ROWS)}, "edges": {1: ("edges", 1 << 20)}}
    if not graphs:
        note = "features (nodes, channel); edges (2, edges), int64: from, to"
        return Form(model, make, axes, ("logits",), note)

    def run(net: nn.Module, features: Tensor, edges: Tensor, sizes: Tensor) -> Tensor:
        places = torch.arange(features.shape[0])[:, None]
        return net(features, edges, (places >= sizes.cumsum(0)).sum(1), sizes.shape[0])

    axes["sizes"] = batch()
    note = "features (nodes, channel); edges (2, edges): from, to; sizes (batch,): each graph's \
nodes, which lie one after another"
    return Form(Called(model, run), make, axes, ("logits",), note)


def bert(trained: Trained) -> Form:
    """Sentences to a class, or hidden words to what they were."""
    model, facts = trained.model, trained.facts
    tokens, most = whole(0, model_size(facts)), facts["network"]["context"] or 512
    pad = facts["network"].get("pad", 0)

    def make(rows: int, length: int, draw: torch.Generator) -> dict[str, Tensor]:
        some = tokens(rows, length, draw)
        some = torch.where(some == pad, (pad + 1) % model_size(facts), some)
        some[1:, length // 2 + 1 :] = pad  # rows of unequal length
        segments = torch.zeros_like(some)
        return {"tokens": some, "segments": segments}

    rows = {0: ("batch", MOST_ROWS), 1: ("length", most)}
    axes = {"tokens": rows, "segments": rows}
    note = f"tokens (batch, length), {pad} behind the end; segments (batch, length), 0 and 1"
    if "metrics" in facts:
        return Form(model, make, axes, ("logits",), note)

    def fill(rows: int, length: int, draw: torch.Generator) -> dict[str, Tensor]:
        return make(rows, length, draw) | {"places": torch.arange(rows) * length}

    module = Called(model, lambda net, tokens, segments, places: net.fill(tokens, places, segments))
    axes["places"] = {0: ("hidden", MOST_ROWS)}
    note += "; places (hidden,): where words are hidden, counted through all rows"
    return Form(module, fill, axes, ("logits",), note)


def model_size(facts: dict) -> int:
    """The tokens of a network."""
    return facts["network"]["vocab_size"]


# ---------------------------------------------------------------------- loops that write


def gpt(trained: Trained, most: int | None = None) -> Form:
    """A text's beginning to what follows, or sentences to classes."""
    model, facts = trained.model, trained.facts
    size = model_size(facts)
    tokens = whole(0, size)
    if "classes" in facts:

        def sentences(rows: int, length: int, draw: torch.Generator) -> dict[str, Tensor]:
            lengths = torch.randint(1, length + 1, (rows,), generator=draw)
            return {"tokens": tokens(rows, length, draw), "lengths": lengths}

        axes = {"tokens": {0: ("batch", MOST_ROWS), 1: ("length", facts["network"]["context"])},
                "lengths": batch()}  # fmt: skip
        module = Called(model, lambda net, tokens, lengths: net(tokens, lengths)[0])
        note = (f"tokens (batch, length): {size - 2}, those of the text, {size - 1}, any behind; "
                "lengths (batch,)")  # fmt: skip
        return Form(module, sentences, axes, ("logits",), note)
    from common.data.corpora import Vocabulary

    vocabulary = Vocabulary(facts)
    end = -1 if vocabulary.end is None else vocabulary.end
    most = checked(most, min(64, model.context // 2), model.context - 1)
    loop = GreedyGPT(model, most, end, size, never_written(vocabulary, size))

    def make(rows: int, length: int, draw: torch.Generator) -> dict[str, Tensor]:
        return {"tokens": tokens(rows, min(length, model.context - most), draw)}

    def truth(given: dict[str, Tensor]) -> tuple[Tensor, ...]:
        prompt = given["tokens"]
        found = decode.generate(
            loop.banned(model.step), model.new_cache(), prompt, most, None if end < 0 else end
        )
        before = prompt.shape[1] - 1

        def logits(written: Tensor) -> Tensor:
            return model(torch.cat([prompt, written.clamp(min=0)], 1)[:, :-1])[:, before:]

        return *loop.truth(found, logits), model(prompt)

    def run(loop: Greedy, prompt: Tensor) -> tuple[Tensor, ...]:
        return *loop(prompt), loop.model(prompt)

    axes = {"tokens": {0: ("batch", MOST_ROWS), 1: ("length", model.context - most)}}
    note = (f"tokens (batch, length) of the beginnings, of one length, at most "
            f"{model.context - most}; written are {most} more, the likeliest, and their "
            "log-probability; logits (batch, length, token): what follows each")  # fmt: skip
    outputs = ("written", "log_probability", "logits")
    return Form(Called(loop, run), make, axes, outputs, note, truth, {"end": end, "most": most})


def never_written(vocabulary: Any, size: int) -> tuple[int, ...]:
    """The tokens that a text never has, of `size` that a network knows."""
    known = vocabulary.tokenizer.get_vocab_size() if vocabulary.tokenizer else size
    return (*vocabulary.never, *range(known, size))


def checked(most: int | None, usual: int, limit: int) -> int:
    """How many tokens a loop writes."""
    if most is not None and not 1 <= most <= limit:
        raise Refused(f"--length {most}: the network writes 1 to {limit} tokens")
    return most or max(1, min(usual, limit))


def writing_rnn(trained: Trained, most: int | None = None) -> Form:
    """A text's beginning to what follows."""
    from common.data.corpora import Vocabulary

    model, facts = trained.model, trained.facts
    vocabulary, size = Vocabulary(facts), facts["vocab_size"]
    loop, tokens = GreedyRNN(model, most or 64, -1, size, vocabulary.never), whole(0, size)

    def make(rows: int, length: int, draw: torch.Generator) -> dict[str, Tensor]:
        return {"tokens": tokens(rows, length, draw)}

    def truth(given: dict[str, Tensor]) -> tuple[Tensor, ...]:
        never = tuple(vocabulary.never)
        found = [list(model.generate(row, loop.most, 0.0, never)) for row in given["tokens"]]
        before = given["tokens"].shape[1] - 1

        def logits(written: Tensor) -> Tensor:
            return model(torch.cat([given["tokens"], written], 1)[:, :-1])[0][:, before:]

        return *loop.truth(found, logits), model(given["tokens"])[0]

    def run(loop: Greedy, prompt: Tensor) -> tuple[Tensor, ...]:
        return *loop(prompt), loop.model(prompt)[0]

    note = f"tokens (batch, length) of the beginnings; written are {loop.most} more, the likeliest"
    outputs = ("written", "log_probability", "logits")
    return Form(Called(loop, run), make, {"tokens": batch("length")}, outputs, note, truth,
                {"most": loop.most})  # fmt: skip


def translation(trained: Trained, most: int | None, kind: type[Greedy], steps: Callable) -> Form:
    """A source text to the likeliest target: `steps(source)` are step, state and first tokens of
    common/decode.py."""
    model, facts = trained.model, trained.facts
    words = json.loads(facts["tokenizer"])["model"]["vocab"]
    size = len(words)
    usual = min(facts["longest"] * 5 // 4, 100)
    loop = kind(model, checked(most, usual, trained.flags.max_length - 1), 2, size)
    tokens = whole(4, size)

    def make(rows: int, length: int, draw: torch.Generator) -> dict[str, Tensor]:
        source = tokens(rows, length, draw)
        source[:, -1] = 2
        source[1:, length // 2 + 1 :] = 0  # sentences of unequal length
        return {"source": source}

    def truth(given: dict[str, Tensor]) -> tuple[Tensor, ...]:
        source = given["source"]
        step, state, first = steps(model, source)
        found = decode.generate(loop.banned(step), state, first, loop.most, loop.end)
        return loop.truth(
            found, lambda written: model(source, torch.cat([first, written], 1)[:, :-1])
        )

    axes = {"source": {0: ("batch", MOST_ROWS), 1: ("length", trained.flags.max_length)}}
    note = (f"source (batch, length): a sentence's tokens and 2, its end, 0 behind it; written are "
            f"at most {loop.most}, the likeliest one by one, 2 from the end on")  # fmt: skip
    more = {"pad": 0, "start": 1, "end": 2, "most": loop.most}
    return Form(loop, make, axes, ("written", "log_probability"), note, truth, more)


def transformer(trained: Trained, most: int | None = None) -> Form:
    """A sentence to its translation."""
    Decoding, step = part_of("transformer.decoding", "Decoding", "step")

    def steps(model: nn.Module, source: Tensor) -> tuple:
        return step, Decoding(model, source), torch.full_like(source[:, :1], 1)

    return translation(trained, most, GreedyTransformer, steps)


def seq2seq(trained: Trained, most: int | None = None) -> Form:
    """A sentence to its translation."""
    begin = part_of("seq2seq.decoding", "begin")
    return translation(trained, most, GreedySeq2Seq, begin)


def t5(trained: Trained, most: int | None = None) -> Form:
    """A text with its prefix to the answer."""
    Decoding, step = part_of("t5.decoding", "Decoding", "step")
    END, PAD, START, T5 = part_of("t5.model", "END", "PAD", "START", "T5")
    Vocabulary = part_of("t5.vocabulary", "Vocabulary")
    model, facts = trained.model, trained.facts
    if not isinstance(model, T5):
        raise Refused(f"{trained.flags.model} moves each source to the right by its length, which "
                      "is not traced")  # fmt: skip
    known, size = Vocabulary(facts).known, model.sizes.vocab_size
    usual = min(facts["longest"] * 5 // 4 + 1 if "longest" in facts else 64, 100)
    loop = GreedyT5(model, checked(most, usual, 512), END, size, (PAD, *range(known, size)))
    tokens = whole(2, known)

    def make(rows: int, length: int, draw: torch.Generator) -> dict[str, Tensor]:
        source = tokens(rows, length, draw)
        source[:, -1] = END
        source[1:, length // 2 + 1 :] = PAD
        return {"source": source}

    def truth(given: dict[str, Tensor]) -> tuple[Tensor, ...]:
        source = given["source"]
        first = torch.full_like(source[:, :1], START)
        state = Decoding(model, source, known=known)
        found = decode.generate(loop.banned(step), state, first, loop.most, END)
        return loop.truth(
            found, lambda written: model(source, torch.cat([first, written], 1)[:, :-1])
        )

    axes = {"source": batch("length")}
    note = (f"source (batch, length): the text's tokens and {END}, its end, {PAD} behind it; "
            f"written are at most {loop.most}, the likeliest one by one")  # fmt: skip
    more = {"pad": PAD, "end": END, "most": loop.most}
    return Form(loop, make, axes, ("written", "log_probability"), note, truth, more)


# ---------------------------------------------------------------------- images and text, generators


def clip(trained: Trained) -> Form:
    """Images and texts, so many of each, to their features and all products of these."""
    model, facts = trained.model, trained.facts
    make = images(facts, model.image_size)
    more = normalised(facts, model.image_size)
    note = image_note(more, facts)
    if not hasattr(model, "token_embedding"):
        return Form(model, make, {"images": batch()}, ("scores",), note, None, more)
    size = facts["network"]["vocab_size"]

    def inputs(rows: int, length: int, draw: torch.Generator) -> dict[str, Tensor]:
        some = whole(0, size)(rows + 1, length, draw)
        some[:, -1] = model.end_token
        return {"images": make(rows, length, draw)["images"], "tokens": some}

    def run(net: nn.Module, pixels: Tensor, tokens: Tensor) -> tuple[Tensor, ...]:
        of_images, of_texts, scale = net(pixels, tokens)
        return of_images, of_texts, scale * of_images @ of_texts.T

    axes = {"images": batch()}
    axes["tokens"] = {0: ("texts", MOST_ROWS), 1: ("length", model.context)}
    note += (f"; tokens (texts, length), at most {model.context}, each text with "
             f"{model.end_token}, its end")  # fmt: skip
    outputs = ("image_features", "text_features", "logits")
    return Form(Called(model, run), inputs, axes, outputs, note, None, more)


def flamingo(trained: Trained, most: int | None = None) -> Form:
    """Images and a text with their marks to what follows."""
    Words = part_of("flamingo.data", "Words")
    model, facts = trained.model, trained.facts
    words, language = Words(facts["vocabulary"]), model.lang_encoder
    size, room = language.wte.num_embeddings, language.context
    side = facts["vision"]["image_size"]
    most = checked(most, min(30, room // 2), room - 1)
    never = (words.mark, *never_written(words.vocabulary, size))
    loop = GreedyFlamingo(model, most, words.end, size, never)
    tokens, draw_images = whole(0, size), images(facts, side)

    def make(rows: int, length: int, draw: torch.Generator) -> dict[str, Tensor]:
        length, count = min(length, room - most), 1 + length % 3
        some = tokens(rows, length, draw)
        some = torch.where(some == words.mark, words.end, some)
        some[:, : count * (length // count) : length // count] = words.mark
        pixels = draw_images(rows * count, length, draw)["images"]
        return {"tokens": some, "images": pixels.unflatten(0, (rows, count))}

    def truth(given: dict[str, Tensor]) -> tuple[Tensor, ...]:
        prompt, before = given["tokens"], given["tokens"].shape[1] - 1
        state = model.begin(prompt, given["images"])
        found = decode.generate(loop.banned(model.step), state, prompt, most, words.end)

        def logits(written: Tensor) -> Tensor:
            return model(torch.cat([prompt, written], 1)[:, :-1], given["images"])[:, before:]

        return *loop.truth(found, logits), model(prompt, given["images"])

    more = normalised(facts, side) | dict(mark=words.mark, end=words.end, most=most)
    note = (f"tokens (batch, length), at most {room - most}: {words.end}, and then {words.mark} "
            f"where each image stands; images (batch, pictures, 3, {side}, {side}), in their "
            f"order, scaled as one of {side} pixels, minus mean, divided by std; written are at "
            f"most {most}, the likeliest one by one, {words.end} from the end on; logits (batch, "
            "length, token): what follows each")  # fmt: skip
    axes = {"tokens": {0: ("batch", MOST_ROWS), 1: ("length", room - most)},
            "images": batch("pictures")}  # fmt: skip
    outputs = ("written", "log_probability", "logits")
    return Form(loop, make, axes, outputs, note, truth, more)


def generative(trained: Trained) -> Form:
    """Codes, or noise, to images; and images to codes where they have some."""
    model, facts = trained.model, trained.facts
    codes = model.draw_codes(2).shape[1]
    classes = getattr(model, "num_classes", 0)

    def make(rows: int, length: int, draw: torch.Generator) -> dict[str, Tensor]:
        made = {"codes": torch.randn(rows, codes, generator=draw)}
        if classes:
            made["labels"] = torch.randint(classes, (rows,), generator=draw)
        return made

    axes, note = {"codes": batch()}, f"codes (batch, {codes}), "
    note += "standard normal" if model.prior or not model.infers else "as the encoder makes them"
    if hasattr(model, "denoise"):
        truth = lambda given: (model.from_codes(given["codes"]),)  # noqa: E731
        more = {"steps": model.sample_steps}
        return Form(Denoising(model), make, axes, ("images",), note, truth, more)
    if hasattr(model, "generator"):
        axes |= {"labels": batch()} if classes else {}
        return Form(model.generator, make, axes, ("images",), note)
    if hasattr(model, "undo"):
        note += "; images before they are cut to 256 grey values"
        module = Called(model, lambda net, z: net.undo(z).clamp(0, 1))
        return Form(module, make, axes, ("images",), note)
    name = "images"
    if len(getattr(model, "shape", ())) == 1:
        name = "points"
        return Form(Called(model, lambda net, z: net.from_codes(z)), make, axes, (name,), note)
    plain = facts | {"mean": [0.0] * len(facts["mean"]), "std": [1.0] * len(facts["std"])}
    pixels = images(plain, trained.flags.size)

    def both(rows: int, length: int, draw: torch.Generator) -> dict[str, Tensor]:
        return make(rows, length, draw) | pixels(rows + 1, length, draw)

    def run(net: nn.Module, z: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        return net.from_codes(z), net.to_codes(x)

    axes["images"] = {0: ("images", MOST_ROWS)}
    note += "; images (images, channel, row, column), from 0 to 1, to their codes"
    more = normalised(plain, trained.flags.size)
    return Form(Called(model, run), both, axes, ("decoded", "encoded"), note, None, more)


def dalle(trained: Trained) -> Form:
    """A caption and noise to an image; of a dVAE alone images to codes and back."""
    model, facts, flags = trained.model, trained.facts, trained.flags
    if "stream" not in model:
        more = normalised(facts, flags.size)

        def run(net: nn.ModuleDict, x: Tensor) -> tuple[Tensor, Tensor]:
            logits = net["dvae"].logits(x)
            return logits, net["dvae"].decode(logits.argmax(1))

        note = image_note(more, facts) + "; codes are the largest logits (batch, code, row, column)"
        make = images(facts, flags.size)
        return Form(Called(model, run), make, {"images": batch()}, ("logits", "rebuilt"), note,
                    None, more)  # fmt: skip
    module, stream = Drawing(model), model["stream"]
    count = stream.layout.height * stream.layout.width

    def make(rows: int, length: int, draw: torch.Generator) -> dict[str, Tensor]:
        text = whole(4, stream.text_vocab)(rows, stream.text_length, draw)
        text[:, length % stream.text_length :] = -1
        noise = torch.rand(rows, count, stream.num_codes, generator=draw)
        return {"text": text, "noise": -(-noise.clamp(min=1e-6).log()).log()}

    def truth(given: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        def step(codes: Tensor, state: dict) -> tuple[Tensor, dict]:
            logits, state = stream.step(codes, state)
            return logits + given["noise"][:, codes.shape[1]], state

        first = torch.zeros(len(given["text"]), 0, dtype=torch.int64)
        begin = stream.begin(given["text"], cached=False)
        rows = decode.generate(step, {**begin, "cache": None}, first, count)
        codes = torch.tensor(rows).unflatten(1, (stream.layout.height, stream.layout.width))
        return codes, model["dvae"].decode(codes)

    axes = {"text": batch(), "noise": batch()}
    note = (f"text (batch, {stream.text_length}): a caption's tokens, -1 behind them; noise "
            f"(batch, {count}, {stream.num_codes}): -log(-log(u)) of uniform u draws from the "
            "softmax, zeros take the likeliest; images from 0 to 1")  # fmt: skip
    return Form(module, make, axes, ("codes", "images"), note, truth)


def latentdiffusion(trained: Trained) -> Form:
    """A text and noise to an image; of a first stage images to latents and back."""
    model, flags = trained.model, trained.flags
    if not hasattr(model, "unet"):
        facts = trained.facts
        more = normalised(facts, flags.size)

        def rebuild(net: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
            z = net.mode(net.encode(x))
            return z, net.decode(z)

        note = image_note(more, facts) + "; rebuilt from -1 to 1"
        make = images(facts, flags.size)
        return Form(Called(model, rebuild), make, {"images": batch()}, ("latents", "rebuilt"), note,
                    None, more)  # fmt: skip
    module = Latent(model, flags.sampler, flags.sample_steps, flags.guidance)
    side, channels = flags.size // model.autoencoder.factor, model.autoencoder.latent_channels
    words, context = (trained.facts["network"]["text"][key] for key in ("vocab_size", "context"))

    def make(rows: int, length: int, draw: torch.Generator) -> dict[str, Tensor]:
        made = {"noise": torch.randn(rows, channels, side, side, generator=draw)}
        for name in ("tokens", "without"):
            made[name] = whole(0, words)(rows, context, draw)
        return made

    def truth(given: dict[str, Tensor]) -> tuple[Tensor]:
        told = [model.text(given["tokens"]), model.text(given["without"])]
        how = dict(steps=flags.sample_steps, guidance=flags.guidance, sampler=flags.sampler)
        for made in model.denoise(given["noise"], told, **how):
            z = made
        return (model.to_pixels(z),)

    axes = {name: batch() for name in ("noise", "tokens", "without")}
    note = (f"noise (batch, {channels}, {side}, {side}), standard normal; tokens and without "
            f"(batch, {context}): the text's, and that of no text, from which images are led away; "
            "images from 0 to 1")  # fmt: skip
    more = dict(sampler=flags.sampler, steps=flags.sample_steps, guidance=flags.guidance)
    return Form(module, make, axes, ("images",), note, truth, more)


# ---------------------------------------------------------------------- by folder


def maskrcnn(trained: Trained) -> Form:
    """None: its loop is refused."""
    raise Refused("its images have a size each, and how many proposals go on is decided by what is "
                  "found in each: no batch of one shape holds that; --to safetensors has the "
                  "weights")  # fmt: skip


OWN = dict(
    lenet=lenet, unet=unet, yolo=yolo, mlp=mlp, rnn=rnn, gnn=gnn, bert=bert, gpt=gpt, t5=t5,
    transformer=transformer, seq2seq=seq2seq, clip=clip, generative=generative, dalle=dalle,
    latentdiffusion=latentdiffusion, maskrcnn=maskrcnn, flamingo=flamingo,
)  # fmt: skip


def form_of(folder: str, trained: Trained, most: int | None = None) -> Form:
    """The form of a folder's network; raises Refused where there is none.

    `most` is how many tokens a loop writes; of a network that writes none it is refused.
    """
    images = folder in small_models("image classification")
    make = OWN.get(folder, classifier if images else None)
    if make is None:
        raise Refused(f"{folder} has no form in tools/forms.py")
    writes = "most" in inspect.signature(make).parameters
    if folder == "rnn" and trained.facts["task"] == "text":
        make, writes = writing_rnn, True
    writes = writes and not (folder == "gpt" and "classes" in trained.facts)
    if most is not None and not writes:
        raise Refused(f"--length {most} is for networks that write: {folder} writes nothing")
    return make(trained, most) if most else make(trained)
