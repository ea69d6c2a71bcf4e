"""The simple recurrent network (Elman 1990, "Finding structure in time", Cognitive Science 14,
179-211): hidden units read the input and, as its context, what they were a step before (Fig. 2).

Departures: hyperbolic tangent for Elman's logistic units, as torch has it; and gradients go back
through time (Rumelhart, Hinton, Williams 1986), where Elman's stopped at the context units.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from rnn.stack import Recurrent, State


class Elman(Recurrent):
    """h_t = tanh(W_ih x_t + b_ih + W_hh h_{t-1} + b_hh), for each layer."""

    kernel = torch.rnn_tanh

    def step(self, x: Tensor, state: State, weight_hh: Tensor, bias_hh: Tensor) -> State:
        """(B, H) to (B, H)."""
        (h,) = state
        return (torch.tanh(x + F.linear(h, weight_hh, bias_hh)),)
