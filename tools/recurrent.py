"""Recurrent layers that can be traced for sequences of any length.

torch.export runs torch's kernels step by step to learn the shapes of what comes out, and so takes
the example's length for the only one. Inside `traceable` shapes are told by themselves. A kernel
that ONNX lacks (Elman's) becomes a loop of the format, `scan`.
"""

import contextlib
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._C import DispatchKey
from torch._decomp import global_decomposition_table
from torch._higher_order_ops.scan import scan
from torch.fx.experimental.proxy_tensor import get_proxy_mode

KEYS = (DispatchKey.Autograd, DispatchKey.CompositeImplicitAutograd, DispatchKey.Meta)
TABLE = global_decomposition_table["post_autograd"]  # which shapes are inferred by


def lstm_step(x: Tensor, state: list[Tensor], weight: Tensor, bias: Tensor) -> list[Tensor]:
    """h and c (B, H) after a step; `x` (B, 4H) is W x + b."""
    h, c = state
    i, f, g, o = (x + F.linear(h, weight, bias)).chunk(4, 1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return [o.sigmoid() * c.tanh(), c]


def gru_step(x: Tensor, state: list[Tensor], weight: Tensor, bias: Tensor) -> list[Tensor]:
    """h (B, H) after a step; `x` (B, 3H) is W x + b."""
    (h,) = state
    x_r, x_z, x_n = x.chunk(3, 1)
    h_r, h_z, h_n = F.linear(h, weight, bias).chunk(3, 1)
    z = (x_z + h_z).sigmoid()
    new = (x_n + (x_r + h_r).sigmoid() * h_n).tanh()
    return [(1 - z) * new + z * h]


def elman_step(x: Tensor, state: list[Tensor], weight: Tensor, bias: Tensor) -> list[Tensor]:
    """h (B, H) after a step; `x` (B, H) is W x + b."""
    return [(x + F.linear(state[0], weight, bias)).tanh()]


def run(x: Tensor, state: list[Tensor], weights: list[Tensor], step: Callable, back: bool):
    """One layer one way: inputs (T, B, C) to outputs (T, B, H) and the last state."""
    weight_ih, weight_hh, bias_ih, bias_hh = weights
    x = F.linear(x, weight_ih, bias_ih)
    if isinstance(x.shape[0], int) and x.shape[0] == 1:  # in a loop that goes on token by token
        state = step(x[0], state, weight_hh, bias_hh)
        return state[0][None], state

    def combine(state: list[Tensor], x: Tensor) -> tuple[list[Tensor], Tensor]:
        new = step(x, state, weight_hh, bias_hh)
        return new, new[0].clone()

    state, outputs = scan(combine, [part.clone() for part in state], x.flip(0) if back else x)
    return outputs.flip(0) if back else outputs, state


def layers_of(step: Callable) -> Callable:
    """What stands for one of torch's kernels: see torch.lstm for its arguments."""

    def kernel(x, state, weights, biases, num_layers, dropout, train, both, batch_first):
        several = isinstance(state, (list, tuple))
        if get_proxy_mode() is None:  # nothing is traced: what is asked for are shapes
            states = list(state) if several else [state]
            out = x.new_empty(*x.shape[:2], states[0].shape[2] * (1 + both))
            return out, *(part.new_empty(part.shape) for part in states)
        parts = [part.unbind(0) for part in (state if several else [state])]
        x, last = x.transpose(0, 1) if batch_first else x, []
        for layer in range(num_layers):
            outputs = []
            for back in (False, True)[: 1 + both]:
                place = layer * (1 + both) + back
                begin = [part[place] for part in parts]
                own = weights[4 * place : 4 * place + 4]
                out, new = run(x, begin, own, step, back)
                outputs.append(out)
                last.append(new)
            x = torch.cat(outputs, 2) if both else outputs[0]
        x = x.transpose(0, 1) if batch_first else x
        return x, *(torch.stack(part) for part in zip(*last, strict=True))

    return kernel


KERNELS = {
    torch.ops.aten.lstm.input: layers_of(lstm_step),
    torch.ops.aten.gru.input: layers_of(gru_step),
    torch.ops.aten.rnn_tanh.input: layers_of(elman_step),
}


@contextlib.contextmanager
def traceable() -> Iterator[None]:
    """Inside, torch's recurrent kernels are traced as loops."""
    before = {op: dict(op.py_kernels) for op in KERNELS}
    table = {op: TABLE[op] for op in KERNELS if op in TABLE}
    for op, kernel in KERNELS.items():
        TABLE[op] = kernel
        op.py_kernels.update(dict.fromkeys(KEYS, kernel))
        op._dispatch_cache.clear()
    try:
        yield
    finally:
        for op, kernels in before.items():
            TABLE.pop(op)
            op.py_kernels.clear()
            op.py_kernels.update(kernels)
            op._dispatch_cache.clear()
        TABLE.update(table)
