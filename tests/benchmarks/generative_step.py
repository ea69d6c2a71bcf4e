"""Times training steps of DDPM's U-Net beside diffusers', and of DCGAN beside the usual script.

    python tests/benchmarks/generative_step.py                  # both
    python tests/benchmarks/generative_step.py --only dcgan --size 64 --batch-size 16

Both sides have the same weights, data and Adam, and take turns in one process. `equal` is both in
fp32, contiguous; `default` is ours as the scripts run (precision auto, their memory format, DDPM's
fused Adam). Printed is the ratio of medians, theirs over ours, with its quartiles round by round.

ddpm: a step of `ddpm` (CIFAR-10's U-Net, 32 pixels; --small: a quarter of its widths) against
`UNet2DModel` of the same configuration. dcgan: both players' updates, against the script that most
tutorials have: the discriminator on real and on generated images, a backward pass each, then the
generator's update on the same images, with gradients for all weights of the discriminator, too.
Ours draws new ones for it, as the paper does, a pass of the generator more; in `equal` theirs does,
too.
"""

import argparse
import os

os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "16384")

import torch
import torch.nn.functional as F
from diffusers import UNet2DModel
from timing import interleave, ratio
from torch import nn

from common.device import Device
from generative.diffusion import DDPM, UNet
from generative.gan import dcgan, discriminator_loss, generator_loss
from generative.train import parse_args


def ddpm_sides(args: argparse.Namespace, dev: Device, default: bool) -> list:
    """Our step and diffusers'."""
    width = 32 if args.small else 128
    kinds = ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"]
    theirs = UNet2DModel(
        sample_size=args.size,
        block_out_channels=[width, 2 * width, 2 * width, 2 * width],
        down_block_types=kinds,
        up_block_types=[kind.replace("Down", "Up") for kind in kinds[::-1]],
        downsample_padding=0,
        flip_sin_to_cos=False,
        freq_shift=1,
        norm_eps=1e-6,
        attention_head_dim=None,
        dropout=0.1,
    )
    ours = UNet(3, width, (1, 2, 2, 2), (1,), 2, 32, 0.1)
    ours.load_state_dict(theirs.state_dict())
    x = torch.rand(args.batch_size, 3, args.size, args.size, device=dev.device)

    def stepper(unet: nn.Module, mine: bool):
        chain = DDPM(unet, (3, args.size, args.size))
        net = dev.wrap(chain, channels_last=False) if mine and default else chain.to(dev.device)
        if not mine:
            chain.unet = Answer(unet)
        optimizer = torch.optim.Adam(chain.parameters(), 2e-4, fused=mine and default)

        def step() -> None:
            with torch.autocast(dev.device.type, torch.bfloat16, enabled=mine and default):
                loss = net(x)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            wait(dev)

        return step

    return [stepper(ours, True), stepper(theirs, False)]


class Answer(nn.Module):
    """diffusers' network wraps its answer."""

    def __init__(self, unet: nn.Module):
        super().__init__()
        self.unet = unet

    def forward(self, x: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
        """The noise alone."""
        return self.unet(x, times).sample


def dcgan_sides(args: argparse.Namespace, dev: Device, default: bool) -> list:
    """Our step and the usual one."""
    real = torch.rand(args.batch_size, 3, args.size, args.size, device=dev.device)

    def players(mine: bool) -> tuple:
        torch.manual_seed(0)
        model = dcgan(3, args.size, width=32 if args.small else 128).to(dev.device)
        if mine and default:
            dev.wrap(model)
        pair = model.generator, model.discriminator
        return model, *(torch.optim.Adam(p.parameters(), 2e-4, (0.5, 0.999)) for p in pair)

    ours, ours_g, ours_d = players(True)

    def step() -> None:
        with torch.autocast(dev.device.type, torch.bfloat16, enabled=default):
            with torch.no_grad():
                fake = ours.generator(ours.draw_codes(len(real)))
            loss = discriminator_loss(*ours.discriminator([real, fake]))
        dev.step(loss, ours_d)
        with torch.autocast(dev.device.type, torch.bfloat16, enabled=default):
            fake = ours.generator(ours.draw_codes(len(real)))
            loss = generator_loss(ours.discriminator([fake])[0])
        dev.step(loss, ours_g)
        wait(dev)

    theirs, theirs_g, theirs_d = players(False)
    one, zero = torch.ones(len(real), device=dev.device), torch.zeros(len(real), device=dev.device)

    def usual() -> None:
        theirs_d.zero_grad()
        F.binary_cross_entropy_with_logits(theirs.discriminator([real])[0], one).backward()
        fake = theirs.generator(theirs.draw_codes(len(real)))
        answer = theirs.discriminator([fake.detach()])[0]
        F.binary_cross_entropy_with_logits(answer, zero).backward()
        theirs_d.step()
        theirs_g.zero_grad()
        if not default:  # the same algorithm on both sides
            fake = theirs.generator(theirs.draw_codes(len(real)))
        F.binary_cross_entropy_with_logits(theirs.discriminator([fake])[0], one).backward()
        theirs_g.step()
        wait(dev)

    return [step, usual]


def wait(dev: Device) -> None:
    """A GPU answers before it is done."""
    if dev.device.type == "cuda":
        torch.cuda.synchronize()


def main() -> None:
    """Prints the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=["ddpm", "dcgan"])
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--small", action="store_true", help="a quarter of the widths")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()
    for name, sides in (("ddpm", ddpm_sides), ("dcgan", dcgan_sides)):
        for default in (False, True):
            if args.only in (None, name):
                dev = Device(parse_args(["--device", args.device, "--quiet"]))
                ours, theirs = interleave(sides(args, dev, default), args.rounds)
                label = "default" if default else "equal"
                print(f"{name} {label:>8}: {ratio(ours, theirs)}", flush=True)


if __name__ == "__main__":
    main()
