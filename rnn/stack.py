"""What the recurrent layers share: stacks, both directions, dropout, sequences of unequal length.

Shapes: B batch, T time steps, C input features, H `hidden_size`, L layers times directions.

A layer is a cell (elman.py, lstm.py, gru.py) that is applied at each time step; its weights bear
the names that torch.nn gives them, so that a state_dict goes both ways. `fused` runs them through
torch's kernel, else the steps are written out: the same numbers, more slowly. Batch comes first.
"""

import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

# On a GPU, cuDNN copies them together at each call, which costs little beside the call.
warnings.filterwarnings("ignore", "RNN module weights are not part of single contiguous chunk")

State = tuple[Tensor, ...]  # h, of an LSTM also c, each (L, B, H)


def half_precision(x: Tensor) -> AbstractContextManager:
    """Autocast as it is; but fp32 on a CPU that has no such numbers: oneDNN has no kernel there."""
    if not x.is_cpu or not torch.is_autocast_enabled("cpu"):
        return nullcontext()
    kind = {torch.bfloat16: "bf16", torch.float16: "fp16"}[torch.get_autocast_dtype("cpu")]
    able = torch.cpu.get_capabilities()
    native = able.get(f"avx512_{kind}", False) or able.get(f"amx_{kind}", False)
    return nullcontext() if native else torch.autocast("cpu", enabled=False)


class Recurrent(nn.Module):
    """`num_layers` of one cell, perhaps in both directions (Schuster and Paliwal 1997, Fig. 3).

    Dropout is between layers, never from step to step (Zaremba et al. 2014, Fig. 2).
    """

    gates = 1  # rows of the matrices, in multiples of H
    states = 1  # tensors that go from step to step
    kernel: Callable  # the same in torch

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        dropout: float = 0.0,
        bidirectional: bool = False,
        fused: bool = True,
    ):
        super().__init__()
        self.input_size, self.hidden_size, self.num_layers = input_size, hidden_size, num_layers
        self.dropout, self.directions, self.fused = dropout, 1 + bidirectional, fused
        rows, self.names = self.gates * hidden_size, []  # by layer and direction
        for layer in range(num_layers):
            size = hidden_size * self.directions if layer else input_size
            for end in ("", "_reverse")[: self.directions]:
                shapes = {
                    f"weight_ih_l{layer}{end}": (rows, size),
                    f"weight_hh_l{layer}{end}": (rows, hidden_size),
                    f"bias_ih_l{layer}{end}": (rows,),
                    f"bias_hh_l{layer}{end}": (rows,),  # the second one is torch's habit
                }
                self.names.append(list(shapes))
                for name, shape in shapes.items():
                    self.register_parameter(name, nn.Parameter(torch.empty(shape)))
        for p in self.parameters():
            nn.init.uniform_(p, -(hidden_size**-0.5), hidden_size**-0.5)

    def step(self, x: Tensor, state: State, weight_hh: Tensor, bias_hh: Tensor) -> State:
        """The state after one step: `x` (B, gates * H) is W x + b, the states are (B, H)."""
        raise NotImplementedError

    def forward(
        self, x: Tensor | PackedSequence, state: State | None = None, lengths: Tensor | None = None
    ) -> tuple[Tensor | PackedSequence, State | None]:
        """Outputs (B, T, H times directions) of `x` (B, T, C), and the last state.

        With `lengths` (B,), at least 1, what follows a sequence's end changes nothing and its
        outputs are zero; it begins at the state zero, and none comes back. A packed sequence gives
        a packed one, and the state at each sequence's end.
        """
        if isinstance(x, PackedSequence):
            return self.packed(x, state)
        if state is None:
            shape = self.num_layers * self.directions, len(x), self.hidden_size
            state = (x.new_zeros(shape),) * self.states
        state = tuple(part.to(x.dtype) for part in state)  # with autocast it comes back in less
        if lengths is None:
            return self.run_kernel(x, state) if self.fused else self.unroll(x, state)
        mask = torch.arange(x.shape[1], device=x.device) < lengths.to(x.device)[:, None]  # (B, T)
        if not self.fused:
            outputs = self.unroll(x, state, mask)[0]
        elif self.directions == 1:  # what comes later can't change what was before
            outputs = self.run_kernel(x, state)[0]
        else:
            outputs = self.run_both_ways(x, state, lengths)
        return outputs * mask[:, :, None], None

    # ------------------------------------------------------------------ written out

    def unroll(self, x: Tensor, state: State, mask: Tensor | None = None) -> tuple[Tensor, State]:
        """Layer by layer, direction by direction, step by step."""
        last = []
        for layer in range(self.num_layers):
            outputs = []
            for direction in range(self.directions):
                place = layer * self.directions + direction
                begin = tuple(part[place] for part in state)
                states = self.steps(x, begin, place, mask)
                outputs.append(torch.stack([s[0] for s in states], 1))  # (B, T, H)
                last.append(states[0 if direction else -1])
            x = torch.cat(outputs, 2)  # (B, T, H * directions)
            if layer < self.num_layers - 1:
                x = F.dropout(x, self.dropout, self.training)
        return x, tuple(torch.stack(part) for part in zip(*last, strict=True))

    def steps(self, x: Tensor, state: State, place: int, mask: Tensor | None = None) -> list[State]:
        """The state after each time step, of one layer in one direction.

        Where `mask` (B, T) is False the state stays as it is: so the way back begins at the end of
        each sequence.
        """
        weight_ih, weight_hh, bias_ih, bias_hh = self.weights(place)
        x = F.linear(x, weight_ih, bias_ih)  # of all steps at once: (B, T, gates * H)
        states, times = [state] * x.shape[1], range(x.shape[1])
        for t in reversed(times) if place % self.directions else times:
            new = self.step(x[:, t], state, weight_hh, bias_hh)
            if mask is not None:
                keep = mask[:, t, None]
                new = tuple(torch.where(keep, n, s) for n, s in zip(new, state, strict=True))
            states[t] = state = new
        return states

    def weights(self, place: int) -> list[Tensor]:
        """Those of one layer in one direction: weight_ih, weight_hh, bias_ih, bias_hh."""
        return [getattr(self, name) for name in self.names[place]]

    # ------------------------------------------------------------------ torch's kernel

    def run_kernel(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """The same by torch."""
        places = range(self.num_layers * self.directions)
        return self.call(x, state, places, self.num_layers, self.directions == 2)

    def call(
        self, x: Tensor, state: State, places: range, layers: int = 1, both: bool = False
    ) -> tuple[Tensor, State]:
        """The kernel with the weights of some places."""
        weights = [weight for place in places for weight in self.weights(place)]
        begin = list(state) if self.states > 1 else state[0]
        settings = True, layers, self.dropout, self.training, both, True
        with half_precision(x):
            outputs, *state = type(self).kernel(x, begin, weights, *settings)
        return outputs, tuple(state)

    def run_both_ways(self, x: Tensor, state: State, lengths: Tensor) -> Tensor:
        """Sequences of unequal length: the way back reads each of them turned around.

        Twice as fast as torch's kernel of packed sequences on a CPU, four times in bf16.
        """
        times = torch.arange(x.shape[1])
        turned = lengths.cpu()[:, None] - 1 - times  # (B, T)
        turned = torch.where(turned >= 0, turned, times).to(x.device)[:, :, None]
        for layer in range(self.num_layers):
            outputs = []
            for place in (2 * layer, 2 * layer + 1):
                begin = tuple(part[place : place + 1] for part in state)
                way = x.gather(1, turned.expand_as(x)) if place % 2 else x
                out, _ = self.call(way, begin, range(place, place + 1))
                outputs.append(out.gather(1, turned.expand_as(out)) if place % 2 else out)
            x = torch.cat(outputs, 2)
            if layer < self.num_layers - 1:
                x = F.dropout(x, self.dropout, self.training)
        return x

    def packed(self, x: PackedSequence, state: State | None) -> tuple[PackedSequence, State]:
        """A packed sequence, by torch's kernel for these, or padded and masked."""
        size = self.num_layers * self.directions, int(x.batch_sizes[0]), self.hidden_size
        if state is None:
            state = (x.data.new_zeros(size),) * self.states
        if not self.fused:
            padded, lengths = pad_packed_sequence(x, batch_first=True)
            mask = torch.arange(padded.shape[1]) < lengths[:, None]
            outputs, state = self.unroll(padded, state, mask.to(padded.device))
            enforce = x.sorted_indices is None
            return pack_padded_sequence(outputs, lengths, True, enforce_sorted=enforce), state
        if x.sorted_indices is not None:
            state = tuple(part.index_select(1, x.sorted_indices) for part in state)
        weights = [weight for place in range(size[0]) for weight in self.weights(place)]
        begin = list(state) if self.states > 1 else state[0]
        settings = True, self.num_layers, self.dropout, self.training, self.directions == 2
        with half_precision(x.data):
            data, *state = type(self).kernel(x.data, x.batch_sizes, begin, weights, *settings)
        if x.unsorted_indices is not None:
            state = [part.index_select(1, x.unsorted_indices) for part in state]
        orders = x.sorted_indices, x.unsorted_indices
        return PackedSequence(data, x.batch_sizes, *orders), tuple(state)
