"""LAMB (You et al. 2019, "Large batch optimization for deep learning: training BERT in 76 minutes",
arXiv:1904.00962), with which ALBERT was trained: Adam, whose step in each matrix is as long as the
matrix is large."""

import torch
from torch.optim import Optimizer


class Lamb(Optimizer):
    """Algorithm 2 with decoupled weight decay; the length of a step is lr times the weights' norm.

    Where weights or step are all zero, and in groups without `weight_decay` (norms, biases, as in
    ALBERT's code), a step is Adam's.
    """

    def __init__(self, params, lr: float, betas=(0.9, 0.999), eps=1e-6, weight_decay=0.0):
        super().__init__(params, dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay))

    @torch.no_grad()
    def step(self, closure=None):
        """One step with the gradients that are there."""
        for group in self.param_groups:
            (beta1, beta2), decay = group["betas"], group["weight_decay"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["step"] = torch.zeros(())
                    state["exp_avg"] = torch.zeros_like(p)
                    state["exp_avg_sq"] = torch.zeros_like(p)
                state["step"] += 1
                number = float(state["step"])
                mean, square = state["exp_avg"], state["exp_avg_sq"]
                mean.lerp_(p.grad, 1 - beta1)
                square.mul_(beta2).addcmul_(p.grad, p.grad, value=1 - beta2)
                root = (square / (1 - beta2**number)).sqrt_().add_(group["eps"])
                move = mean / (1 - beta1**number) / root
                if decay:
                    move.add_(p, alpha=decay)
                    weights, length = p.norm(), move.norm()
                    ratio = torch.where((weights > 0) & (length > 0), weights / length, 1.0)
                    move.mul_(ratio)
                p.sub_(move, alpha=group["lr"])
