"""The stochastic diagonal Levenberg-Marquardt method of the LeNet-5 paper (Sec. III-B, Appendix C).

Gradient descent in which every weight k has its own step size, the larger the flatter the loss is
in its direction: eta / (mu + h_k), with h_k an estimate of the second derivative. The paper
propagates second derivatives backwards layer by layer, leaving out what is off the diagonal; here
each h_k is an unbiased estimate of the Gauss-Newton diagonal, from squared gradients of
random projections of the output. That needs no rules of its own for each layer.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn


class SDLM(torch.optim.Optimizer):
    """Descent with the step sizes lr / (mu + h); call `estimate` before each epoch."""

    def __init__(self, params: Iterable[Tensor], lr: float = 5e-4, mu: float = 0.25):
        super().__init__(params, {"lr": lr, "mu": mu})

    @torch.no_grad()
    def step(self, closure: Callable | None = None) -> None:
        for group in self.param_groups:
            for p in (p for p in group["params"] if p.grad is not None):
                curvature = self.state[p]["curvature"]
                p.addcdiv_(p.grad, curvature + group["mu"], value=-group["lr"])

    def estimate(
        self, model: nn.Module, images: Tensor, random: torch.Generator, j: float = 1.0
    ) -> None:
        """Sets h to the mean over `images` (N, 1, 32, 32) of the Gauss-Newton diagonal of Eq. 9."""
        params = [p for group in self.param_groups for p in group["params"]]
        sums = [torch.zeros_like(p) for p in params]
        for image in images.split(1):
            features = model.features(image)  # (1, 84)
            projection = output_sample(features.detach(), model.output.centres, random, j)
            for total, g in zip(
                sums, torch.autograd.grad(features, params, projection), strict=True
            ):
                total.addcmul_(g, g)
        for p, total in zip(params, sums, strict=True):
            self.state[p]["curvature"] = total / len(images)


def output_sample(x: Tensor, centres: Tensor, random: torch.Generator, j: float) -> Tensor:
    """A random vector (1, 84) whose covariance is the Hessian of Eq. 9 at F6's output x (1, 84).

    That Hessian is 2 p_0 I + Cov(d): p are the weights of the terms of Eq. 9's logarithm, p_0 that
    of the constant j, and d the gradients 2(x - w_i) of the distances, 0 for the constant. The
    label drops out. The projection of the output on it has, squared, the curvature as its mean.
    """
    distances = (x - centres).square().sum(1)  # (K,)
    p = torch.cat([distances.new_tensor([-j]), -distances]).softmax(0)  # (K+1,)
    d = torch.cat([torch.zeros_like(x), 2 * (x - centres)])  # (K+1, 84)
    pick = torch.multinomial(p.cpu(), 1, generator=random).to(x.device)
    signs = torch.randint(0, 2, x.shape, generator=random).to(x) * 2 - 1
    return (2 * p[0]).sqrt() * signs + d[pick] - p @ d
