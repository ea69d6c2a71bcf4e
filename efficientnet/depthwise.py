"""Depthwise convolutions whose gradients are quick on a CPU: the same values, other kernels.

oneDNN, which computes convolutions there, lacks two kernels and takes plain loops in their place:
for the weights' gradient of filters beyond 3x3, and in bf16 and fp16 for the input's gradient
where there is a stride. Both can be written as convolutions that it has.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_input, conv2d_weight


class Depthwise(torch.autograd.Function):
    """F.conv2d with a filter (C, 1, K, K) for each channel of (B, C, H, W), and its gradients."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
        """(B, C, H, W) to (B, C, H', W')."""
        ctx.save_for_backward(x, weight)
        ctx.sizes = stride, padding
        return F.conv2d(x, weight, None, stride, padding, groups=len(weight))

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        """The gradients of input and weights, each if it is asked for."""
        x, weight = ctx.saved_tensors
        first, second = ctx.needs_input_grad[:2]
        return (
            input_gradient(grad, x, weight, *ctx.sizes) if first else None,
            weight_gradient(grad, x, weight, *ctx.sizes) if second else None,
            None,
            None,
        )


def input_gradient(grad: Tensor, x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
    """Gradients (B, C, h, w) of the output to those of the input (B, C, H, W), by filters
    (C, 1, k, k). With a stride, in low precision: zeros between them, then a convolution without.
    """
    if stride == 1 or x.dtype.itemsize > 2:
        return conv2d_input(x.shape, weight, grad, stride, padding, groups=len(weight))
    reach = weight.shape[2] - 1
    places = (n + 2 * padding - reach for n in x.shape[2:])  # that a filter has without stride
    spread = torch.empty(*x.shape[:2], *places, dtype=x.dtype, memory_format=torch.channels_last)
    spread.zero_()[:, :, ::stride, ::stride] = grad
    return F.conv2d(spread, weight.flip(2, 3), padding=reach - padding, groups=len(weight))


def weight_gradient(grad: Tensor, x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
    """Gradients (B, C, h, w) of the output to those of the filters (C, 1, k, k), by the input
    (B, C, H, W). Of 5x5 filters: four times of 3x3, one for each corner; they agree where they
    overlap."""
    channels, size = len(weight), weight.shape[2]
    if size != 5 and min(x.shape[2:]) >= size:
        return conv2d_weight(x, weight.shape, grad, stride, padding, groups=channels)
    x = F.pad(x, [padding] * 4)
    if size != 5:  # in bf16 torch leaves weights that see only padding as memory happens to be
        return conv2d_weight(x, weight.shape, grad, stride, groups=channels)
    whole = torch.empty_like(weight)
    high, wide = (stride * (n - 1) + 3 for n in grad.shape[2:])  # what 3x3 filters reach
    for i in (0, 2):
        for j in (0, 2):
            part = x[:, :, i : i + high, j : j + wide]
            part = conv2d_weight(part, (channels, 1, 3, 3), grad, stride, groups=channels)
            whole[:, :, i : i + 3, j : j + 3] = part
    return whole


def depthwise(x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
    """F.conv2d of (B, C, H, W) for depthwise filters (C, 1, k, k), to (B, C, h, w), with quick
    gradients where torch has slow ones."""
    plain = x.device.type != "cpu" or torch.compiler.is_compiling() or not torch.is_grad_enabled()
    low = torch.is_autocast_enabled("cpu")
    dtype = torch.get_autocast_dtype("cpu") if low else x.dtype
    if plain or (weight.shape[2] == 3 and (stride == 1 or dtype.itemsize > 2)):
        return F.conv2d(x, weight, None, stride, padding, groups=len(weight))
    return Depthwise.apply(x.to(dtype), weight.to(dtype), stride, padding)
