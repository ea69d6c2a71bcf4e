"""Back-propagation as the paper writes it: the chain rule by hand, and descent with momentum.

    gradients = backpropagate(model, y, d)      # what loss.backward() finds, too: a test compares
    optimizer = Descent(model.parameters(), 0.1, 0.9)

The letters are the paper's: y is the activity of a unit, x its total input, d what an output unit
should be, w_ji the weight from unit i to unit j, E the error of Eq. 3.
"""

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from mlp.model import LogisticNet


@torch.no_grad()
def backpropagate(
    model: LogisticNet, inputs: Tensor, d: Tensor, tolerance: float = 0.0
) -> dict[str, Tensor]:
    """The gradient of Eq. 3, summed over cases, by the name of the parameter.

    `inputs` (B, N) are the activities of the lowest layer, `d` (B, K) those that the output units
    should have; errors up to `tolerance` count as none.
    """
    y = model.activities(inputs)  # the forward pass: Eq. 1 and 2, layer by layer
    found = {}
    dE_dy = y[-1] - d  # Eq. 4
    dE_dy = dE_dy.where(dE_dy.abs() > tolerance, 0.0)
    for number in reversed(range(len(model.layers))):  # the backward pass
        layer, below = model.layers[number], y[number]
        dE_dx = dE_dy * y[number + 1] * (1 - y[number + 1])  # Eq. 5
        further = []
        units = [group.out_features for group in layer.groups]
        parts = zip(layer.groups, dE_dx.split(units, 1), below.split(layer.sizes, 1), strict=True)
        for place, (group, dE_dx_j, y_i) in enumerate(parts):
            name = f"layers.{number}.groups.{place}"
            found[f"{name}.weight"] = dE_dx_j.T @ y_i  # Eq. 6, summed over cases
            found[f"{name}.bias"] = dE_dx_j.sum(0)  # a weight from a unit that is always 1
            further.append(dE_dx_j @ group.weight)  # Eq. 7
        dE_dy = torch.cat(further, 1)
    return found


class Descent(torch.optim.Optimizer):
    """Eq. 9: w changes by -lr times the gradient, plus `momentum` times its last change.

    For the first `gentle` steps momentum is 0.5 (and the rate is for the schedule to halve); after
    each step every weight is made smaller by a share `decay` of itself (caption of Fig. 4).
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = 0.1,
        momentum: float = 0.9,
        gentle: int = 0,
        decay: float = 0.0,
    ):
        super().__init__(params, dict(lr=lr, momentum=momentum, gentle=gentle, decay=decay))

    @torch.no_grad()
    def step(self, closure: Callable | None = None) -> None:
        """Moves all parameters that have a gradient; there is no use for a `closure`."""
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            for p in params:
                if p not in self.state:
                    self.state[p] = {"change": torch.zeros_like(p), "steps": 0}
                self.state[p]["steps"] += 1
            changes = [self.state[p]["change"] for p in params]
            if params:
                first = self.state[params[0]]["steps"] <= group["gentle"]
                self.change(group, params, changes, 0.5 if first else group["momentum"])

    @staticmethod
    def change(
        group: dict, params: Sequence[Tensor], changes: Sequence[Tensor], momentum: float
    ) -> None:
        """One step of all parameters of a group."""
        torch._foreach_mul_(changes, momentum)
        torch._foreach_add_(changes, [p.grad for p in params], alpha=-group["lr"])
        torch._foreach_add_(params, changes)
        if group["decay"]:
            torch._foreach_mul_(params, 1 - group["decay"])
