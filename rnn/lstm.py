"""Long short-term memory (Hochreiter and Schmidhuber 1997, Neural Computation 9(8), 1735-1780),
with the forget gate of Gers, Schmidhuber, Cummins (2000, "Learning to forget", ibid. 12(10)).

A cell keeps a sum c, to which a gate lets new things in and from which another gate reads: error
flows back along the sum unchanged, for as long as it takes (the constant error carousel, Sec. 3.2).
Gers's gate forgets: without it c grows on a stream that has no end.

    i_t = sigmoid(W_i x_t + U_i h_{t-1} + b_i)      (1)  input gate, y^in in the paper
    f_t = sigmoid(W_f x_t + U_f h_{t-1} + b_f)      (2)  forget gate, of Gers
    g_t = tanh(W_g x_t + U_g h_{t-1} + b_g)         (3)  what is new, g(net_c)
    o_t = sigmoid(W_o x_t + U_o h_{t-1} + b_o)      (4)  output gate, y^out
    c_t = f_t * c_{t-1} + i_t * g_t                 (5)  the state s_c; of 1997 without f_t
    h_t = o_t * tanh(c_t)                           (6)  y^c

Departures: tanh for the squashing functions of 1997, which are 2 tanh(x / 2) for what is new and
tanh(c / 2) on the way out; every cell has gates of its own (blocks of size 1); and the gradient is
whole, where the paper cuts it at the gates.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rnn.stack import Recurrent, State


class LSTM(Recurrent):
    """The cell of 2000; with `forget_gate=False` that of 1997, which has no kernel of torch's.

    Rows of the matrices: i, f, g, o, as in torch; without the forget gate i, g, o. Its bias
    begins at `keep_bias` (above zero, as in Gers), so that at first c is kept.
    """

    gates, states = 4, 2
    kernel = torch.lstm

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        dropout: float = 0.0,
        bidirectional: bool = False,
        fused: bool = True,
        forget_gate: bool = True,
        keep_bias: float = 1.0,
    ):
        self.gates = 3 + forget_gate
        sizes = input_size, hidden_size, num_layers
        super().__init__(*sizes, dropout, bidirectional, fused and forget_gate)
        self.forget_gate = forget_gate
        for place in range(len(self.names) if forget_gate else 0):
            bias_ih, bias_hh = self.weights(place)[2:]
            nn.init.constant_(bias_ih[hidden_size : 2 * hidden_size], keep_bias)
            nn.init.zeros_(bias_hh[hidden_size : 2 * hidden_size])

    # fmt: off
    def step(self, x: Tensor, state: State, weight_hh: Tensor, bias_hh: Tensor) -> State:
        """h and c after a step, (B, H) each."""
        h, c = state
        net = (x + F.linear(h, weight_hh, bias_hh)).chunk(self.gates, 1)
        i, g, o = net[0].sigmoid(), net[-2].tanh(), net[-1].sigmoid()    # Eq. 1, 3, 4
        c = net[1].sigmoid() * c + i * g if self.forget_gate else c + i * g  # Eq. 2, 5
        return o * c.tanh(), c                                           # Eq. 6
    # fmt: on
