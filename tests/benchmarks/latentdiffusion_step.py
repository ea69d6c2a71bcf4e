"""Times training steps of Stable Diffusion's U-Net beside diffusers'.

    python tests/benchmarks/latentdiffusion_step.py                  # a quarter of its widths
    python tests/benchmarks/latentdiffusion_step.py --full --rounds 5
    python tests/benchmarks/latentdiffusion_step.py --forward        # a step of sampling

Both sides have the same weights, latents, texts and AdamW, and take turns in one process. `equal`
is both in fp32; `default` is ours as train.py runs it (precision auto, its fused AdamW), theirs in
fp32 with torch's AdamW. Printed is the ratio of medians, theirs over ours, with its quartiles round
by round.
"""

import argparse
import os

os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "16384")

import torch
from diffusers import UNet2DConditionModel
from timing import interleave, ratio
from torch import nn

from common.device import Device
from latentdiffusion.diffusion import SD1
from latentdiffusion.schedulers import Schedule
from latentdiffusion.train import parse_args
from latentdiffusion.unet import UNet


class Answer(nn.Module):
    """diffusers' network wraps its answer."""

    def __init__(self, unet: nn.Module):
        super().__init__()
        self.unet = unet

    def forward(self, x: torch.Tensor, times: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        """The noise alone."""
        return self.unet(x, times, text).sample


def settings(full: bool) -> dict:
    """Those of Stable Diffusion's U-Net, or a quarter of its widths."""
    found = dict(SD1["unet"])
    return (
        found if full else found | dict(widths=[80, 160, 320, 320], heads=2, context=192, groups=16)
    )


def sides(args: argparse.Namespace, dev: Device, default: bool) -> list:
    """Our step and diffusers'."""
    found = settings(args.full)
    theirs = UNet2DConditionModel(
        sample_size=args.size,
        block_out_channels=found["widths"],
        cross_attention_dim=found["context"],
        attention_head_dim=found["heads"],  # which is their number
        norm_num_groups=found.get("groups", 32),
    )
    ours = UNet(**found)
    ours.load_state_dict(theirs.state_dict())
    z = torch.randn(args.batch_size, 4, args.size, args.size, device=dev.device)
    text = torch.randn(args.batch_size, 77, found["context"], device=dev.device)
    kept = Schedule().kept.float().to(dev.device)

    def stepper(unet: nn.Module, mine: bool):
        net = dev.wrap(unet, channels_last=False) if mine and default else unet.to(dev.device)
        net = net if mine else Answer(net)
        optimizer = torch.optim.AdamW(unet.parameters(), 1e-4, fused=mine and default)
        fast = dict(dtype=torch.bfloat16, enabled=mine and default and dev.precision == "bf16")

        def step() -> None:
            times = torch.randint(1000, (len(z),), device=z.device)
            noise, share = torch.randn_like(z), kept[times][:, None, None, None]
            x = share.sqrt() * z + (1 - share).sqrt() * noise
            if args.forward:
                with torch.inference_mode(), torch.autocast(dev.device.type, **fast):
                    net(x, times, text)
                return wait(dev)
            with torch.autocast(dev.device.type, **fast):
                loss = (net(x, times, text).float() - noise).square().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            wait(dev)

        return step

    return [stepper(ours, True), stepper(theirs, False)]


def wait(dev: Device) -> None:
    """A GPU answers before it is done."""
    if dev.device.type == "cuda":
        torch.cuda.synchronize()


def main() -> None:
    """Prints the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=16, help="of the latents")
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--full", action="store_true", help="its own widths")
    parser.add_argument("--forward", action="store_true", help="without the way back")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()
    for default in (False, True):
        dev = Device(parse_args(["--device", args.device, "--quiet"]))
        ours, theirs = interleave(sides(args, dev, default), args.rounds)
        print(f"{'default' if default else 'equal':>8}: {ratio(ours, theirs)}", flush=True)


if __name__ == "__main__":
    main()
