"""Multilayer perceptrons: Rumelhart, Hinton, Williams, "Learning representations by
back-propagating errors", Nature 323, 533-536, 1986 (not on arXiv).

Between input and output stand hidden units, for which nobody says what they should do. The chain
rule tells how the error changes with each weight, layer by layer from the output back (see
backprop.py), and descent makes of the hidden units whatever features the task needs. Two worlds
show it: `symmetry` (Fig. 1), and `family_trees` (Fig. 2-4).

`mlp` and `mlp_deep` are fully connected networks that LeCun et al. compare with theirs in 1998
(Sec. III-C there); `mlp_dropout` is one of Srivastava et al., "Dropout: A Simple Way to Prevent
Neural Networks from Overfitting", JMLR 15, 2014, Table 2; `mlp_table` is for rows of a table.

Shapes: B batch, N inputs, K outputs, C channels, H and W pixels. Models return logits: of logistic
units the total input x of Eq. 1, whose logistic function is the activity y.

The papers leave open or we changed:
- the caption of Fig. 1 has initial weights from -0.3 to 0.3; biases, and the family trees, for
  which nothing is said, begin so too (train.py draws those of the trees wider: see the README);
- `mlp` and `mlp_deep` have ReLUs and a softmax, in 1998 a scaled tanh (`activation="tanh"` is near
  that) and squared errors; all but the worlds' begin with the weights of He et al. 2015.
"""

import math

import torch
from torch import Tensor, nn

ACTIVATIONS = {"relu": nn.ReLU, "tanh": nn.Tanh, "logistic": nn.Sigmoid}
GAINS = {"relu": 2.0, "tanh": 1.0, "logistic": 1.0}  # variance of weights, times the inputs


def squared_error(logits: Tensor, targets: Tensor, tolerance: float = 0.0) -> Tensor:
    """Eq. 3: half the squares of y - d, summed over cases and units; both (B, K), d 0 or 1.

    With a tolerance of 0.2 the error is zero where an activity is above 0.8 and should be 1, or
    below 0.2 and should be 0 (caption of Fig. 4): nothing then drives the weights on.
    """
    difference = logits.sigmoid() - targets
    return difference.where(difference.abs() > tolerance, 0.0).square().sum() / 2


class Layer(nn.Module):
    """Units in groups side by side, each group with weights from its own part of the layer below.

    `groups` are pairs (inputs, units). Weights and biases begin between -0.3 and 0.3.
    """

    def __init__(self, *groups: tuple[int, int]):
        super().__init__()
        self.groups = nn.ModuleList(nn.Linear(*sizes) for sizes in groups)
        self.sizes = [below for below, _ in groups]
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -0.3, 0.3)

    def forward(self, y: Tensor) -> Tensor:
        """Activities (B, N) of the layer below to total inputs (B, units)."""
        parts = y.split(self.sizes, 1)
        return torch.cat([g(part) for g, part in zip(self.groups, parts, strict=True)], 1)  # Eq. 1


class LogisticNet(nn.Module):
    """Layers of logistic units, as all networks of the 1986 paper."""

    def __init__(self, *layers: Layer):
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def activities(self, y: Tensor) -> list[Tensor]:
        """The activities of all layers, those of the input first: (B, N), ..., (B, K)."""
        found = [y]
        for layer in self.layers:
            found.append(layer(found[-1]).sigmoid())  # Eq. 1-2
        return found

    def forward(self, y: Tensor) -> Tensor:
        """Inputs (B, N) to logits (B, K)."""
        *hidden, last = self.layers
        for layer in hidden:
            y = layer(y).sigmoid()
        return last(y)


class Dropout(nn.Module):
    """Leaves each activity out with probability p while training, and scales up the others.

    As nn.Dropout, but thrice as fast without a GPU: a fifth of the time of `mlp_dropout`.
    The paper scales down the trained weights instead: so its max-norm of 2 is 2 (1 - p) here.
    """

    def __init__(self, p: float):
        super().__init__()
        self.p = p

    def forward(self, y: Tensor) -> Tensor:
        """Any shape to the same."""
        if not self.training:
            return y
        return y * (torch.rand(y.shape, device=y.device) >= self.p) / (1 - self.p)


class MLP(nn.Module):
    """Fully connected layers: linear, then perhaps normalisation, the activation, and dropout."""

    def __init__(
        self,
        in_features: int,
        num_outputs: int,
        hidden: tuple[int, ...],
        activation: str = "relu",
        input_dropout: float = 0.0,
        dropout: float = 0.0,
        norm: bool = False,
    ):
        super().__init__()
        layers: list[nn.Module] = [nn.Flatten()]
        if input_dropout:
            layers.append(Dropout(input_dropout))
        widths = [in_features, *hidden]
        for below, width in zip(widths, hidden, strict=False):
            layers.append(nn.Linear(below, width))
            if norm:
                layers.append(nn.BatchNorm1d(width))
            layers.append(ACTIVATIONS[activation]())
            if dropout:
                layers.append(Dropout(dropout))
        self.layers = nn.Sequential(*layers, nn.Linear(widths[-1], num_outputs))
        self.reset(GAINS[activation])

    def reset(self, gain: float) -> None:
        """Weights that keep the size of signals from layer to layer; the last layer's are small."""
        *hidden, last = (m for m in self.layers if isinstance(m, nn.Linear))
        for linear in hidden:  # half of the ReLUs are silent: hence twice the variance (He 2015)
            nn.init.normal_(linear.weight, std=math.sqrt(gain / linear.in_features))
            nn.init.zeros_(linear.bias)
        nn.init.normal_(last.weight, std=math.sqrt(1 / last.in_features))
        nn.init.zeros_(last.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) or rows (B, N) to logits (B, K)."""
        return self.layers(x)


@torch.no_grad()
def limit_norms(model: nn.Module, limit: float) -> None:
    """Max-norm (Srivastava 2014, Sec. 5.1): weights into a hidden unit no longer than `limit`.

    Called after each step. The large steps that dropout asks for can't blow the weights up then.
    """
    *hidden, _ = (m for m in model.modules() if isinstance(m, nn.Linear))
    for linear in hidden:
        norms = linear.weight.norm(dim=1, keepdim=True)  # (units, 1)
        linear.weight.mul_((limit / norms.clamp(min=1e-12)).clamp(max=1.0))


def symmetry() -> LogisticNet:
    """Fig. 1: six inputs, two hidden units, and one that is on for symmetrical patterns; 17."""
    return LogisticNet(Layer((6, 2)), Layer((2, 1)))


def family_trees() -> LogisticNet:
    """Fig. 3: 24 people and 12 relationships, 6 + 6 units, 12, 6, and 24 people; 630 parameters."""
    return LogisticNet(Layer((24, 6), (12, 6)), Layer((12, 12)), Layer((12, 6)), Layer((6, 24)))


def mlp(
    num_classes: int = 10, in_features: int = 784, hidden: tuple[int, ...] = (300,), **settings
) -> MLP:
    """784-300-10 of the 1998 comparison: 238,510 parameters."""
    return MLP(in_features, num_classes, hidden, **settings)


def mlp_deep(
    num_classes: int = 10, in_features: int = 784, hidden: tuple[int, ...] = (500, 150), **settings
) -> MLP:
    """784-500-150-10 of the 1998 comparison: 469,160 parameters."""
    return MLP(in_features, num_classes, hidden, **settings)


def mlp_dropout(
    num_classes: int = 10,
    in_features: int = 784,
    hidden: tuple[int, ...] = (1024, 1024, 1024),
    input_dropout: float = 0.2,
    dropout: float = 0.5,
    **settings,
) -> MLP:
    """Three layers of 1,024 ReLUs with dropout: 2,913,290 parameters; needs `limit_norms`."""
    return MLP(
        in_features, num_classes, hidden, input_dropout=input_dropout, dropout=dropout, **settings
    )


def mlp_table(
    in_features: int = 4, num_outputs: int = 3, hidden: tuple[int, ...] = (128, 64), **settings
) -> MLP:
    """Rows of a table to classes, or to one number; by default of the size for the irises."""
    return MLP(in_features, num_outputs, hidden, **settings)


MODELS = {
    "symmetry": symmetry,
    "family_trees": family_trees,
    "mlp": mlp,
    "mlp_deep": mlp_deep,
    "mlp_dropout": mlp_dropout,
    "mlp_table": mlp_table,
}
