"""What BERT and its line share below the papers: sizes, attention, dropout, rows without padding.

Shapes: B batch, T tokens (padded), R real tokens of a batch in all, H heads, d dimensions of a
head, D d_model.

Sequences of a batch differ in length. All that looks at one token alone is computed on the R real
ones, laid end to end (`Rows`); only attention has to see them side by side.
"""

import dataclasses
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclasses.dataclass
class Sizes:
    """What an encoder is built from.

    `attention_dropout` is of attention's weights, and `dropout` where it is None; `d_embedding` is
    `d_model` where it is None; `context` is the most tokens, `pad` the token that is padding, `eps`
    that of the norms. Raises ValueError for heads that can't share `d_model`.
    """

    vocab_size: int
    d_model: int
    num_layers: int
    num_heads: int
    d_ff: int
    context: int = 512
    d_embedding: int | None = None
    num_segments: int = 2
    pad: int = 0
    eps: float = 1e-12
    dropout: float = 0.1
    attention_dropout: float | None = None

    def __post_init__(self) -> None:
        if self.d_model % self.num_heads:
            raise ValueError(
                f"{self.num_heads} heads can't share {self.d_model} dimensions equally"
            )
        if self.d_embedding is None:
            self.d_embedding = self.d_model

    @property
    def weights_dropout(self) -> float:
        """The share of attention's weights that is left out."""
        return self.dropout if self.attention_dropout is None else self.attention_dropout


class Rows:
    """Which of the places (B, T) hold tokens, True in `real`; the others are padding.

    `mask` (B, 1, 1, T) is for attention; None where nothing is padding. In an exported network,
    whose steps can't depend on that, padding is computed with the rest.
    """

    def __init__(self, real: Tensor):
        self.real, self.shape = real, real.shape
        self.index = self.mask = None
        self.exporting = torch.compiler.is_exporting()
        if self.exporting or not real.all():
            self.mask = real[:, None, None]
        if self.mask is not None and not self.exporting:
            self.index = real.flatten().nonzero().flatten()  # (R,)

    def pack(self, x: Tensor) -> Tensor:
        """(B, T, ...) to what stands at real tokens (R, ...)."""
        x = x.flatten(0, 1)
        return x if self.index is None else x[self.index]

    def spread(self, x: Tensor) -> Tensor:
        """(R, ...) to (B, T, ...), with zeros at the padding."""
        if self.index is not None:
            x = x.new_zeros(self.real.numel(), *x.shape[1:]).index_copy(0, self.index, x)
        x = x.unflatten(0, self.shape)
        return x * self.real.unflatten(1, (-1, *[1] * (x.dim() - 2))) if self.exporting else x


# fmt: off
def attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None):
    """Scaled dot-product attention, written out: heads (B, H, T, d) and weights (B, H, T, S).

    `query` is (B, H, T, d), `key` and `value` (B, H, S, d); `mask`, which broadcasts to the
    weights, is True where a token is seen.
    """
    scores = query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])  # (B, H, T, S)
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf)
    weights = scores.softmax(-1)
    return weights @ value, weights
# fmt: on


def attention_kernel(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float = 0.0
) -> Tensor:
    """The same, to heads alone, by what is fastest; `dropout` is the share of weights left out.

    That is torch's kernel; but on a CPU not in bf16, which takes its backward pass twice as long,
    and not with dropout, for which it has a slow path there.
    """
    if not query.is_cpu:
        return F.scaled_dot_product_attention(query, key, value, mask, dropout)
    with torch.autocast("cpu", enabled=False):
        if dropout:
            scores = query * query.shape[-1] ** -0.5 @ key.transpose(-2, -1)
            if mask is not None:
                scores = scores.masked_fill(~mask, -math.inf)
            return drop_values(scores.softmax(-1), dropout) @ value
        if query.dtype == torch.bfloat16:
            parts = (x.float() for x in (query, key, value))
            return F.scaled_dot_product_attention(*parts, mask).bfloat16()
        return F.scaled_dot_product_attention(query, key, value, mask)


def drop_values(x: Tensor, share: float) -> Tensor:
    """Dropout. On a CPU eight bytes are drawn at a time, one for each value, which is several times
    as fast as F.dropout; the share is then the nearest of 256."""
    if not share or not x.is_cpu:
        return F.dropout(x, share) if share else x
    limit = min(round(256 * share), 255)
    draws = torch.empty(-(-x.numel() // 8), dtype=torch.int64).random_(-(2**63), None)
    kept = draws.view(torch.uint8)[: x.numel()].view(x.shape) >= limit
    return x * (kept.to(x.dtype) * (256 / (256 - limit)))


class Dropout(nn.Module):
    """Leaves out a share of the values in training, and makes the others larger for it."""

    def __init__(self, share: float):
        super().__init__()
        self.share = share

    def forward(self, x: Tensor) -> Tensor:
        """Any shape to the same."""
        return drop_values(x, self.share) if self.training else x


def gelu(x: Tensor, tanh: bool = False) -> Tensor:
    """x Φ(x), or with `tanh` its approximation (Hendrycks and Gimpel 2016).

    In bf16 both round to nearly the same, and the exact one takes a CPU a fifth of the time.
    """
    exact = not tanh or (x.is_cpu and x.dtype == torch.bfloat16)
    return F.gelu(x, approximate="none" if exact else "tanh")


def first_weights(module: nn.Module) -> None:
    """Matrices from N(0, 0.02²) (BERT's truncates it at two stds), biases 0, norms 1."""
    for name, p in module.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(p)
        elif p.dim() > 1:
            nn.init.normal_(p, std=0.02)


class Pretrained(nn.Module):
    """What the five models have in common: their sizes, and if they say no other, filling and loss.

    `settings` are plain values that build the same network again: those of `Sizes` but for
    `dropout`, and the model's `own`.
    """

    family = ""

    def __init__(self, sizes: Sizes, **own):
        super().__init__()
        self.pad, self.context = sizes.pad, sizes.context
        self.d_model, self.vocab_size = sizes.d_model, sizes.vocab_size
        settings = dataclasses.asdict(sizes) | own
        self.settings = {key: value for key, value in settings.items() if key != "dropout"}

    def fill(self, tokens: Tensor, places: Tensor, segments: Tensor | None = None) -> Tensor:
        """Logits (N, V) of what stands at the places, where the tokens are hidden."""
        return self(tokens, segments, places).logits

    def loss(self, outputs, targets: Tensor, counts: Tensor, labels: Tensor | None = None):
        """Nats of the N hidden tokens, and for each the pair's, in all; and N.

        Raises ValueError if there are labels, and the model has no head for them, or the other way.
        """
        return nats(outputs, targets, counts, labels), len(targets)


class FineTuned(nn.Module):
    """What the five classifiers have in common: an encoder that is pre-trained, a vector for the
    whole text, and an answer.

    Each says what stands for a text: `pool(features, tokens)`, (B, T, D) and (B, T) to (B, D); and
    what is made of that: `answer(pooled)`, (B, D) to (B, K).
    """

    def __init__(self, model: Pretrained, name: str):
        super().__init__()
        self.pad, self.context, self.name = model.pad, model.context, name
        self.add_module(name, model.get_submodule(name))

    def features(self, tokens: Tensor, segments=None, maps=None) -> Tensor:
        """The encoder alone: (B, T) to (B, T, D)."""
        return self.get_submodule(self.name)(tokens, segments, maps)

    def summary(self, tokens: Tensor, segments: Tensor | None = None) -> Tensor:
        """What stands for the whole text, (B, T) to (B, D)."""
        return self.pool(self.features(tokens, segments), tokens)

    def forward(self, tokens: Tensor, segments: Tensor | None = None) -> Tensor:
        """Tokens and segments (B, T) to logits (B, K), or to what regression predicts (B, 1)."""
        return self.answer(self.summary(tokens, segments))


def nats(outputs, targets: Tensor, counts: Tensor, labels: Tensor | None) -> Tensor:
    """Of the hidden tokens in all, (N,) `targets`; and for each of them its pair's, (B,) `labels`.

    `outputs` have `logits` (N, V) and `labels` (B, 2). Raises ValueError if one side has labels
    alone.
    """
    found = F.cross_entropy(outputs.logits, targets, reduction="sum")
    if (labels is None) != (outputs.labels is None):
        whose = ("examples have labels", "the model") if labels is not None else (
            "the model has a head for labels", "the examples")  # fmt: skip
        raise ValueError(f"{whose[0]}, {whose[1]} none")
    if labels is not None:
        found = found + (counts * F.cross_entropy(outputs.labels, labels, reduction="none")).sum()
    return found


@torch.no_grad()
def accuracy(name: str, logits: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """Nats, and how many are right, each with the number of targets: (2,)."""
    logits, number = logits.float(), logits.new_tensor(len(targets), dtype=torch.float32)
    loss = F.cross_entropy(logits, targets, reduction="sum")
    right = (logits.argmax(-1) == targets).sum().float()
    return {f"{name}_loss": torch.stack([loss, number]),
            f"{name}_accuracy": torch.stack([right, number])}  # fmt: skip


def averaged(features: Tensor, real: Tensor) -> Tensor:
    """The mean (B, D) of features (B, T, D) over real tokens, True in `real` (B, T)."""
    weights = real.to(features.dtype)[:, :, None]
    return (features * weights).sum(1) / weights.sum(1).clamp(min=1)
