"""Times a training step of U-Net beside the same layers written plainly with nn.Sequential.

    python tests/benchmarks/unet_step.py                     # unet_small at 256 pixels, batch 2
    python tests/benchmarks/unet_step.py --width 64 --valid --size 252 --batch-size 1

Both sides have the same weights, input, loss and SGD with momentum, and take turns in one process.
`equal` is both in fp32, contiguous; `default` is ours as the script runs (precision auto,
channels-last). Printed is the ratio of medians, the plain one's time over ours.
"""

import argparse
import os

os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "16384")

import torch
import torch.nn.functional as F
from timing import beside
from torch import Tensor, nn

from common.device import Device
from unet.model import UNet, energy
from unet.train import parse_args


class Plain(nn.Module):
    """U-Net as a tutorial has it."""

    def __init__(self, width: int, padding: int):
        super().__init__()

        def double(c_in: int, c_out: int) -> nn.Sequential:
            return nn.Sequential(
                nn.Conv2d(c_in, c_out, 3, padding=padding),
                nn.ReLU(inplace=True),
                nn.Conv2d(c_out, c_out, 3, padding=padding),
                nn.ReLU(inplace=True),
            )

        w = [width * 2**k for k in range(5)]
        self.down = nn.ModuleList([double(1, w[0])])
        for k in range(4):
            self.down.append(nn.Sequential(nn.MaxPool2d(2), *double(w[k], w[k + 1])))
        self.up = nn.ModuleList(nn.ConvTranspose2d(w[k + 1], w[k], 2, 2) for k in (3, 2, 1, 0))
        self.join = nn.ModuleList(double(w[k + 1], w[k]) for k in (3, 2, 1, 0))
        self.out = nn.Conv2d(width, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        maps = []
        for down in self.down:
            x = down(x)
            maps.append(x)
        for up, join, across in zip(self.up, self.join, maps[-2::-1], strict=True):
            x = up(x)
            gap = (across.shape[2] - x.shape[2]) // 2
            across = across[:, :, gap : gap + x.shape[2], gap : gap + x.shape[3]]
            x = join(torch.cat([across, x], 1))
        return self.out(x)


def main() -> None:
    """Prints both ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--valid", action="store_true")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()
    padding = "valid" if args.valid else "same"
    dev = Device(parse_args(["--device", args.device, "--quiet"]))
    x = torch.randn(args.batch_size, 1, args.size, args.size, device=dev.device)
    side = args.size - (184 if args.valid else 0)
    masks = torch.randint(0, 2, (args.batch_size, side, side), device=dev.device).byte()
    weights = torch.ones(masks.shape, device=dev.device)

    def stepper(ours: bool, default: bool):
        model = UNet(1, 2, args.width, padding, dropout=0.0)
        if not ours:
            plain = Plain(args.width, 0 if args.valid else 1)
            assert len(plain.state_dict()) == len(model.state_dict())
            model = plain
        model = dev.wrap(model) if default else model.to(dev.device)
        optimizer = torch.optim.SGD(model.parameters(), 1e-3, momentum=0.99)

        def step() -> None:
            if default:
                with dev.autocast():
                    loss = energy(model(x).float(), masks, weights)
            else:
                loss = F.cross_entropy(model(x), masks.long())
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            if dev.device.type == "cuda":
                torch.cuda.synchronize()

        return step

    beside(stepper, args.rounds)


if __name__ == "__main__":
    main()
