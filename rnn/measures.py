"""What is counted of each task's answers, batch by batch, and the metrics that it becomes."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rnn.adding import RIGHT
from rnn.series import as_metrics, error_sums


def sums_of(outputs: Tensor, targets: Tensor, facts: dict) -> Tensor:
    """Of a batch, float64: text: nats and tokens told (2,); classes: nats, and the counts of each
    pair, true and answered (1 + K²,); a series: those of `error_sums`; adding: squared
    error, wrong answers, how many (3,)."""
    if facts["task"] == "series":
        return error_sums(outputs, targets, facts)
    if facts["task"] == "adding":
        error = (outputs.double() - targets.double()).abs()
        return torch.stack([error.square().sum(), (error > RIGHT).double().sum(),
                            torch.ones_like(error).sum()])  # fmt: skip
    outputs, targets = outputs.float().flatten(0, -2), targets.flatten()
    nats = F.cross_entropy(outputs, targets, reduction="sum", ignore_index=-100).double()
    if facts["task"] == "text":
        return torch.stack([nats, (targets != -100).sum().double()])
    size = outputs.shape[1]
    pairs = torch.bincount(targets * size + outputs.argmax(1), minlength=size**2)
    return torch.cat([nats[None], pairs.double()])


def metrics_of(sums: Tensor, part: Any) -> dict[str, float]:
    """The metrics of a part of the data: `loss` and, by task,

    text: `nats` and `bits` a character, `perplexity` of a token; classes: `accuracy`; a series:
    `mse` and `mae`, scaled and in units; adding: `wrong`, the share of answers off by over 0.04.
    """
    name, facts = part.part, part.facts
    if facts["task"] == "series":
        found = as_metrics(sums)
    elif facts["task"] == "adding":
        loss, wrong, count = sums.tolist()
        found = {"loss": loss / count, "wrong": wrong / count}
    elif facts["task"] == "text":
        nats, count = sums.tolist()
        loss, a_character = nats / count, nats / max(part.characters, 1)
        found = {"loss": loss, "nats": a_character, "bits": a_character / math.log(2)}
        found["perplexity"] = math.exp(min(loss, 700.0))
    else:
        pairs = confusion(sums)
        total = max(float(pairs.sum()), 1.0)
        found = {"loss": float(sums[0]) / total, "accuracy": float(pairs.trace()) / total}
    return {f"{name}_{key}": value for key, value in found.items()}


def confusion(sums: Tensor) -> Tensor:
    """The counts of classes (K, K), true and answered."""
    return sums[1:].view(math.isqrt(len(sums) - 1), -1)
