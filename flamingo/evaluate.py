"""How many questions are answered right, by kind, beside guessing and beside being blind.

An answer is right if the likeliest token at each of its places is its own, and the end after it:
what greedy decoding would write. One pass finds that, as each place is told the right tokens
before it.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from common import cli
from common.device import Device
from flamingo.data import Part, Words, chosen, guess, lay, questions
from flamingo.model import Flamingo
from flamingo.questions import CAPTION

ROWS = 4096  # tokens that are read at once, about
SHOTS = (0, 4, 8)  # examples before questions of kinds that were left out


@torch.no_grad()
def answer(
    model: Flamingo,
    words: Words,
    part: Part,
    support: Part,
    places: Sequence[tuple[int, int]],
    dev: Device,
    shots: int = 0,
    blind: bool = False,
) -> tuple[Tensor, float]:
    """Which questions are answered right after `shots` examples, bool (N,), and nats a token of
    the answers. `blind` shows no images: it is the language model alone."""
    model.eval()
    rows, examples, images = questions(part, support, places, shots)
    count = len(rows) + -len(rows) % dev.world  # every process has as many; some do one twice
    mine = [i % len(rows) for i in range(dev.rank, count, dev.world)]
    right, nats = torch.zeros(len(rows)), torch.zeros(2)
    size = max(1, ROWS // (16 * (shots + 1)))
    for begin in range(0, len(mine), size):
        some = mine[begin : begin + size]
        tokens, following = lay([rows[i] for i in some], words, whole=False, last=True)
        tokens, following = tokens.to(dev.device), following.to(dev.device)
        seen = None
        if not blind:
            own = part.features(images[some, None]).to(dev.device)
            seen = torch.cat([support.features(examples[some]).to(dev.device), own], 1)
        with dev.autocast():
            logits = model(tokens, features=seen).float()  # (B, T, V)
        counts = following != -100
        wrong = (logits.argmax(2) != following) & counts
        right[some] = (~wrong.any(1)).float().cpu()
        loss = F.cross_entropy(logits.flatten(0, 1), following.flatten(), reduction="sum")
        nats += torch.stack([loss, counts.sum()]).cpu()
    twice = [i for i in range(len(rows), count) if i % dev.world == dev.rank]  # counted elsewhere
    for i in twice:
        right[i % len(rows)] = 0.0
    right, nats = (dev.sum(x.to(dev.device)).cpu() for x in (right, nats))
    return right > 0, float(nats[0] / nats[1])


def evaluate(
    model: Flamingo, words: Words, part: Part, support: Part, args: cli.Flags, dev: Device
) -> dict[str, float]:
    """Shares of right answers: of all kinds that were trained on (`accuracy`, the mean of the
    kinds), of each, and what guessing the most frequent answer gets (`guess`, a mean, too).

    `margin` is the least distance between a kind and its guess; `blind` the accuracy without
    images; `left_4` that of the kinds that were left out, after 4 examples. `loss` and
    `caption_loss` are nats a token.
    """
    found, losses, left = {}, [], {shots: [] for shots in SHOTS}
    shares: dict[str, list[float]] = {"accuracy": [], "guess": [], "blind": []}
    for kind in part.kinds:
        places = chosen(part, kind, args.num_test)
        if kind in (args.leave_out or ()):
            for shots in shots_that_fit(model, part, support, kind):
                right = answer(model, words, part, support, places, dev, shots)[0]
                left[shots].append(mean(right))
            continue
        right, loss = answer(model, words, part, support, places, dev)
        losses.append(loss)
        found[named(kind)] = mean(right)
        shares["accuracy"].append(mean(right))
        shares["guess"].append(guess(part, places))
        if part.part.part == "test":
            blind = answer(model, words, part, support, places, dev, blind=True)[0]
            shares["blind"].append(mean(blind))
    found |= {key: sum(some) / len(some) for key, some in shares.items() if some}
    found |= {f"left_{shots}": sum(some) / len(some) for shots, some in left.items() if some}
    if losses:
        found["loss"] = sum(losses) / len(losses)
        pairs = zip(shares["accuracy"], shares["guess"], strict=True)
        found["margin"] = min(right - guessed for right, guessed in pairs)
    if CAPTION in part.groups:
        places = chosen(part, CAPTION, args.num_test)
        found["caption_loss"] = answer(model, words, part, support, places, dev)[1]
        blind = answer(model, words, part, support, places, dev, blind=True)[1]
        found["caption_blind_loss"] = blind
        found.setdefault("loss", found["caption_loss"])
    return {f"{part.part.part}_{key}": value for key, value in found.items()}


def shots_that_fit(model: Flamingo, part: Part, support: Part, kind: str) -> list[int]:
    """Those of SHOTS that a kind which was left out is asked after, in the test: `support` has to
    have examples, and a row is no longer than the language model sees."""
    if part.part.part != "test":
        return []
    longest = max(part.longest[kind], support.longest.get(kind, 0))
    context = model.lang_encoder.context
    return [n for n in SHOTS
            if (n + 1) * longest + 1 <= context and (not n or kind in support.groups)]  # fmt: skip


def mean(right: Tensor) -> float:
    """The share that is right."""
    return float(right.double().mean())


def named(kind: str) -> str:
    """A kind as metrics have it."""
    return "".join(c if c.isalnum() else "_" for c in kind)
