"""Times a training step of DALL-E's transformer beside torch's own layers under the same masks.

    python tests/benchmarks/dalle_step.py                    # dalle_small as QUICK has it
    python tests/benchmarks/dalle_step.py --side 32 --text-length 64 --batch-size 2

The paper's transformer was never released. So theirs is the plain way to write it: the same
embeddings and outputs around torch.nn.TransformerEncoderLayer, each with its layer's pattern as a
dense mask. Both sides have the same sizes, loss, data and AdamW, and take turns in one process.
`equal` is both in fp32; `default` is ours as train.py runs it (precision auto, fused AdamW), theirs
in fp32 with torch's AdamW. `codes` is a default step whose images are encoded in it over one whose
codes are there already, as train.py has them; `cache` is drawing an image without the cache over
drawing it with it. Printed are ratios of medians with their quartiles round by round.
"""

import argparse
import os

os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "16384")

import torch
from timing import beside, interleave, ratio
from torch import Tensor, nn

from common.decode import generate
from common.device import Device
from dalle.dvae import dvae_small
from dalle.layers import stream_mask
from dalle.stream import DALLE, dalle_small, losses
from dalle.train import parse_args


class Plain(nn.Module):
    """The stream of a DALLE through torch's layers; `masks` are True where nothing is seen."""

    def __init__(self, ends: DALLE):
        super().__init__()
        width, heads = len(ends.start), ends.h[0].attn.num_heads
        how = dict(dropout=0.0, activation="gelu", batch_first=True, norm_first=True)
        blocks = [nn.TransformerEncoderLayer(width, heads, 4 * width, **how) for _ in ends.h]
        masks = [~stream_mask(block.attn.kind, ends.layout) for block in ends.h]
        for number, mask in enumerate(masks):
            self.register_buffer(f"mask{number}", mask)
        self.layers, self.ends = nn.ModuleList(blocks), ends
        ends.h = nn.ModuleList()

    def forward(self, text: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
        """As DALLE's."""
        read = self.ends.read_codes(codes.flatten(1)[:, :-1])
        x = torch.cat([self.ends.read_text(text), read], 1)
        for number, layer in enumerate(self.layers):
            x = layer(x, src_mask=self.get_buffer(f"mask{number}"))
        x, length = self.ends.ln_f(x), text.shape[1]
        return self.ends.text_head(x[:, :length]), self.ends.image_head(x[:, length:])


def main() -> None:
    """Prints the ratios."""
    quick = parse_args(["--quiet"])
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--side", type=int, default=quick.size // quick.factor, help="codes across")
    add("--attention", default=quick.attention)
    for name in ("text_length", "num_codes", "d_model", "num_layers", "num_heads", "kernel"):
        add(f"--{name.replace('_', '-')}", type=int, default=getattr(quick, name))
    add("--batch-size", type=int, default=quick.batch_size)
    add("--rounds", type=int, default=15)
    add("--device", default="auto")
    args = parser.parse_args()
    dev = Device(parse_args(["--device", args.device, "--quiet"]))
    sizes = {k: v for k, v in vars(args).items() if k not in ("batch_size", "rounds", "device")}

    text = torch.randint(50, (args.batch_size, args.text_length), device=dev.device)
    grid = args.batch_size, args.side, args.side
    codes = torch.randint(args.num_codes, grid, device=dev.device)
    width = parse_args(["--model", "dvae_small"]).width
    encoder = dvae_small(args.num_codes, quick.factor, width=width).to(dev.device)
    images = torch.rand(len(text), 3, *[args.side * quick.factor] * 2, device=dev.device)

    def wait() -> None:
        if dev.device.type == "cuda":
            torch.cuda.synchronize()

    def stepper(ours: bool, default: bool, encodes: bool = False):
        model = dalle_small(50, **sizes).to(dev.device)
        model = model if ours else Plain(model).to(dev.device)
        optimizer = torch.optim.AdamW(model.parameters(), 1e-4, fused=default)

        def step() -> None:
            with dev.autocast() if default else torch.autocast(dev.device.type, enabled=False):
                with torch.no_grad():
                    read = encoder.encode(images) if encodes else codes
                loss, _, _ = losses(*model(text, read), text, read)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            wait()

        return step

    beside(stepper, args.rounds)
    sides = [stepper(True, True), stepper(True, True, encodes=True)]
    print(f"   codes: {ratio(*interleave(sides, args.rounds))}", flush=True)

    model = dalle_small(50, **sizes).to(dev.device).eval()
    empty = torch.empty(len(text), 0, dtype=torch.int64, device=dev.device)

    def drawer(cached: bool):
        def draw() -> None:
            with dev.autocast():
                generate(model.step, model.begin(text, cached), empty, args.side**2)
            wait()

        return draw

    with torch.no_grad():
        times = interleave([drawer(True), drawer(False)], max(3, args.rounds // 3), 1)
    print(f"   cache: {ratio(*times)}", flush=True)


if __name__ == "__main__":
    main()
