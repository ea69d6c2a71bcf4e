"""The gated recurrent unit (Cho, van Merrienboer, Gulcehre, Bahdanau, Bougares, Schwenk, Bengio
2014, "Learning phrase representations using RNN encoder-decoder", arXiv:1406.1078, Sec. 2.3).

An LSTM with two gates and no memory beside its output: z keeps the old or takes the new, r hides
the old from what is to be new.

torch resets after the product with U, which one kernel can do for all gates at once; the paper
before it, and that is `reset_after=False`. Biases, which the paper leaves out, are torch's.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rnn.stack import Recurrent, State


class GRU(Recurrent):
    """`reset_after=False` is the unit as published, which has no kernel of torch's.

    Rows of the matrices: gates r and z, and what is new (n). With a `keep_bias` above zero, that of
    z, it begins by keeping what it was.
    """

    gates = 3
    kernel = torch.gru

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        dropout: float = 0.0,
        bidirectional: bool = False,
        fused: bool = True,
        reset_after: bool = True,
        keep_bias: float = 0.0,
    ):
        sizes = input_size, hidden_size, num_layers
        super().__init__(*sizes, dropout, bidirectional, fused and reset_after)
        self.reset_after = reset_after
        for place in range(len(self.names) if keep_bias else 0):
            bias_ih, bias_hh = self.weights(place)[2:]
            nn.init.constant_(bias_ih[hidden_size : 2 * hidden_size], keep_bias)
            nn.init.zeros_(bias_hh[hidden_size : 2 * hidden_size])

    # fmt: off
    def step(self, x: Tensor, state: State, weight_hh: Tensor, bias_hh: Tensor) -> State:
        """(B, H) to (B, H)."""
        (h,) = state
        x_gates, x_new = x.tensor_split([2 * self.hidden_size], 1)
        u_gates, u_new = weight_hh.tensor_split([2 * self.hidden_size])
        b_gates, b_new = bias_hh.tensor_split([2 * self.hidden_size])
        r, z = (x_gates + F.linear(h, u_gates, b_gates)).sigmoid().chunk(2, 1)  # Eq. 5, 6
        if self.reset_after:
            n = torch.tanh(x_new + r * F.linear(h, u_new, b_new))
        else:
            n = torch.tanh(x_new + F.linear(r * h, u_new, b_new))               # Eq. 8
        return (z * h + (1 - z) * n,)                                           # Eq. 7
    # fmt: on
