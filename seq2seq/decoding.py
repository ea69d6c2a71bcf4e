"""Writing a translation with a trained network, by the searches of common/decode.py."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from common import decode
from seq2seq.layers import END, START


def begin(model: nn.Module, source: Tensor) -> tuple[Callable, Any, Tensor]:
    """What the searches begin with: step function, state, and first tokens (B, 1)."""
    first = torch.full_like(source[:, :1], START)
    return lambda tokens, state: model.step(tokens[:, -1], state), model.encode(source), first


@torch.no_grad()
def translate(
    model: nn.Module, source: Tensor, most: int, beam: int = 1, alpha: float = 0.6
) -> list[list[int]]:
    """The tokens between start and end of each translation of `source` (B, S), at most `most`: by
    beam search, or with a beam of one the likeliest at each step."""
    model.eval()
    return decode.write(*begin(model, source), most, END, beam, alpha)


@torch.no_grad()
def draw(model: nn.Module, source: Tensor, most: int, **settings: Any) -> list[list[int]]:
    """The same, drawn: with a `temperature`, `top_k`, `top_p` and `generator`."""
    model.eval()
    return decode.generate(*begin(model, source), most, END, **settings)
