"""What the three MobileNets share: depthwise convolutions, their norms, and networks for inference.

A depthwise convolution has one filter for each channel, which sees that channel alone: K^2 C
multiplications a place, where a full one has K^2 C^2 (v1, Sec. 3.1).
"""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Depthwise(torch.autograd.Function):
    """A depthwise convolution whose gradients are made of convolutions that are quick on a CPU.

    The values are those of F.conv2d up to rounding. torch's own gradients are slow in two cases:
    the input's at stride 2 in bf16 (20 to 170 times as slow), and the weights' of 5x5 filters (5 to
    16 times in bf16, up to 1.5 in fp32). `x` is (B, C, H, W), `weight` (C, 1, K, K), K odd; the
    padding is K // 2.
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, stride: int) -> Tensor:
        """(B, C, H, W) to (B, C, ceil(H / stride), ceil(W / stride))."""
        ctx.save_for_backward(x, weight)
        ctx.stride = stride
        return F.conv2d(x, weight, None, stride, weight.shape[2] // 2, 1, len(weight))

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        """The gradients of the input and the weights, each if it is needed."""
        x, weight = ctx.saved_tensors
        first, second, _ = ctx.needs_input_grad
        return (
            input_gradient(grad, x, weight, ctx.stride) if first else None,
            weight_gradient(grad, x, weight, ctx.stride) if second else None,
            None,
        )


def gradients(
    grad: Tensor, x: Tensor, weight: Tensor, stride: int, padding: int, wanted: list[bool]
) -> tuple[Tensor | None, ...]:
    """torch's own gradients of a depthwise convolution, by that of its output (B, C, h, w): of the
    input (B, C, H, W) and of the weights (C, 1, k, k), None for what isn't wanted."""
    sizes = [stride] * 2, [padding] * 2, [1, 1], False, [0, 0], len(weight)
    return torch.ops.aten.convolution_backward(grad, x, weight, None, *sizes, [*wanted, False])


def input_gradient(grad: Tensor, x: Tensor, weight: Tensor, stride: int) -> Tensor:
    """(B, C, H, W); of a stride in low precision by zeros between the gradients, and a convolution
    of stride 1."""
    size = weight.shape[2]
    if stride == 1 or x.dtype.itemsize >= 4:
        return gradients(grad, x, weight, stride, size // 2, [True, False])[0]
    spread = torch.zeros_like(x)
    spread[:, :, ::stride, ::stride] = grad
    return F.conv2d(spread, weight.flip(2, 3), padding=size // 2, groups=len(weight))


def weight_gradient(grad: Tensor, x: Tensor, weight: Tensor, stride: int) -> Tensor:
    """(C, 1, K, K); of 5x5 filters in four parts of 3x3, which overlap in a cross."""
    size = weight.shape[2]
    if size != 5 and min(x.shape[2:]) >= size:
        return gradients(grad, x, weight, stride, size // 2, [False, True])[1]
    x = F.pad(x, [size // 2] * 4)
    if size != 5:  # in bf16 torch leaves weights that see only padding as memory happens to be
        return gradients(grad, x, weight, stride, 0, [False, True])[1]
    whole = torch.empty_like(weight)
    high, wide = (stride * (n - 1) + 3 for n in grad.shape[2:])  # what 3x3 filters reach
    for i in (0, 2):
        for j in (0, 2):
            seen = x[:, :, i : i + high, j : j + wide]
            small = weight[:, :, :3, :3]  # for its shape alone
            part = gradients(grad, seen, small, stride, 0, [False, True])[1]
            whole[:, :, i : i + 3, j : j + 3] = part
    return whole


class DepthwiseConv2d(nn.Conv2d):
    """A depthwise convolution of odd size, padded by half of it."""

    def __init__(self, channels: int, size: int = 3, stride: int = 1):
        super().__init__(channels, channels, size, stride, size // 2, groups=channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, H / stride, W / stride), rounded up."""
        size, stride, kind = self.kernel_size[0], self.stride[0], x.device.type
        if kind != "cpu" or self.bias is not None or not torch.is_grad_enabled():
            return super().forward(x)
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
        slow = size > 3 or (stride > 1 and dtype.itemsize < 4)
        if not slow or torch.compiler.is_compiling():
            return super().forward(x)
        return Depthwise.apply(x.to(dtype), self.weight.to(dtype), stride)


def divisible(channels: float) -> int:
    """The nearest multiple of 8, at least 8, but never less than 90% of `channels`."""
    nearest = max(8, int(channels + 4) // 8 * 8)
    return nearest if nearest >= 0.9 * channels else nearest + 8


class ConvNorm(nn.Sequential):
    """A convolution, its batch norm, and an activation if there is one.

    A `depthwise` one has as many channels before as after it: `in_channels` has no meaning there.
    `norm` are batch norm's eps and momentum.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        size: int = 1,
        stride: int = 1,
        depthwise: bool = False,
        activation: type[nn.Module] | None = nn.ReLU6,
        **norm,
    ):
        if depthwise:
            convolution = DepthwiseConv2d(out_channels, size, stride)
        else:
            padding = size // 2
            convolution = nn.Conv2d(in_channels, out_channels, size, stride, padding, bias=False)
        layers = [convolution, nn.BatchNorm2d(out_channels, **norm)]
        super().__init__(*layers, *([activation(inplace=True)] if activation else []))


def initialise(model: nn.Module) -> None:
    """The authors' initial weights: normal of std 0.09, cut at twice that; biases 0."""
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.trunc_normal_(module.weight, std=0.09, a=-0.18, b=0.18)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def folded(model: nn.Module, dtype: torch.dtype | None = None) -> nn.Module:
    """A copy for inference: each batch norm becomes part of the convolution before it.

    In evaluation a norm is a factor and a shift for each channel, which weights and a bias can
    hold: the same outputs up to rounding, and one pass over the features less for each layer.
    With a `dtype` convolutions and linear layers keep their weights in it, where autocast would
    change them in every pass. The given model stays as it is.
    """
    model = copy.deepcopy(model).eval()
    for module in list(model.modules()):
        before, name_before = None, ""
        for name, child in list(module.named_children()):
            if isinstance(before, nn.Conv2d) and isinstance(child, nn.BatchNorm2d):
                setattr(module, name_before, nn.utils.fuse_conv_bn_eval(before, child))
                setattr(module, name, nn.Identity())
            before, name_before = child, name
    for module in model.modules():
        if dtype and isinstance(module, (nn.Conv2d, nn.Linear)):
            module.to(dtype)
    return model
