"""The feature pyramid (Lin et al. 2017, arXiv:1612.03144) on the stages of a residual network.

A deep network's late maps know what is there but not where, its early maps the other way round.
The pyramid hands what the late maps know down to the early ones (Fig. 3): each map is doubled in
size and the next earlier one, brought to as many channels, is added. So every level knows both,
and objects of every size find a level whose cells suit them.

Shapes: B batch, C channels, H and W pixels of the padded images, s the stride of a map.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resnet.model import ResNet


class FrozenBatchNorm(nn.Module):
    """Batch norm whose statistics, weights and biases are constants: buffers, not parameters.

    Detectors see few large images a step, too few to estimate a mean: they keep what the backbone
    learned on ImageNet. `torchvision`'s is two operations, this is one.
    """

    def __init__(self, channels: int, eps: float = 1e-5):
        super().__init__()
        self.eps = eps
        self.register_buffer("weight", torch.ones(channels))
        self.register_buffer("bias", torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Features (B, C, H, W) to (B, C, H, W)."""
        mean, var = self.running_mean, self.running_var
        return F.batch_norm(x, mean, var, self.weight, self.bias, False, 0.0, self.eps)

    def _load_from_state_dict(self, state, prefix, *args):
        state.pop(f"{prefix}num_batches_tracked", None)  # of a norm that was trained
        super()._load_from_state_dict(state, prefix, *args)


def freeze_norms(module: nn.Module) -> None:
    """Puts frozen norms in the place of all batch norms below `module`."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            frozen = FrozenBatchNorm(child.num_features, child.eps)
            frozen.load_state_dict(child.state_dict())
            setattr(module, name, frozen)
        else:
            freeze_norms(child)


class Body(nn.Module):
    """A residual network without its classifier, which gives the maps of its last stages."""

    def __init__(self, network: ResNet, num_maps: int):
        super().__init__()
        self.conv1, self.bn1 = network.conv1, network.bn1
        self.relu, self.maxpool = network.relu, network.maxpool
        self.stages = [f"layer{stage + 1}" for stage in range(network.num_stages)]
        for name in self.stages:
            self.add_module(name, getattr(network, name))
        self.num_maps = num_maps

    def forward(self, x: Tensor) -> list[Tensor]:  # (B, 3, H, W)
        """Images (B, 3, H, W) to maps (B, C, H/s, W/s), the finest first."""
        x = self.relu(self.bn1(self.conv1(x)))
        x, maps = self.maxpool(x), []
        for name in self.stages:
            x = getattr(self, name)(x)
            maps.append(x)
        return maps[-self.num_maps :]


def convolution(in_channels: int, out_channels: int, kernel: int) -> nn.Sequential:
    """A convolution that keeps the size, in a sequence of its own as torchvision names it."""
    layer = nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2)
    nn.init.kaiming_uniform_(layer.weight, a=1)
    nn.init.zeros_(layer.bias)
    return nn.Sequential(layer)


class FeaturePyramid(nn.Module):
    """Maps of many channels to as many maps of `channels`, and one coarser (Fig. 3).

    Of a single map there is nothing to hand down: it stays alone, without the coarser one.
    """

    def __init__(self, in_channels: list[int], channels: int):
        super().__init__()
        self.inner_blocks = nn.ModuleList(convolution(c, channels, 1) for c in in_channels)
        self.layer_blocks = nn.ModuleList(convolution(channels, channels, 3) for _ in in_channels)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Maps (B, C_i, H/s, W/s), the finest first, to maps (B, channels, H/s, W/s)."""
        across = [block(x) for block, x in zip(self.inner_blocks, maps, strict=True)]
        top, levels = across[-1], []
        for number in reversed(range(len(maps))):
            if number < len(maps) - 1:
                doubled = F.interpolate(top, size=across[number].shape[-2:], mode="nearest")
                top = across[number] + doubled
            levels.insert(0, self.layer_blocks[number](top))
        if len(maps) > 1:  # for the largest anchors alone: every second pixel of the last
            levels.append(F.max_pool2d(levels[-1], 1, 2))
        return levels


class Backbone(nn.Module):
    """A residual network and the pyramid on its last `num_maps` stages.

    With `frozen` norms they are constants; only the last `trainable` of its five parts (the first
    convolution and four stages) learn.
    """

    def __init__(
        self,
        network: ResNet,
        channels: int,
        num_maps: int = 4,
        frozen: bool = False,
        trainable: int = 5,
    ):
        super().__init__()
        in_features = network.fc.in_features
        self.body = Body(network, num_maps)
        if frozen:
            freeze_norms(self.body)
        widths = [in_features // 2**k for k in reversed(range(num_maps))]
        self.fpn, self.channels = FeaturePyramid(widths, channels), channels
        parts = [["conv1", "bn1"], *([name] for name in self.body.stages)]
        for part in parts[: max(0, len(parts) - trainable)]:
            for name in part:
                getattr(self.body, name).requires_grad_(False)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Images (B, 3, H, W) to the levels of the pyramid, (B, channels, H/s, W/s) each."""
        return self.fpn(self.body(x))
