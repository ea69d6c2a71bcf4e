"""Shows what a DenseNet that makes its joined features again saves in memory, and costs in time.

    python tests/benchmarks/densenet_recompute.py
    python tests/benchmarks/densenet_recompute.py --models densenet201 --batch-size 8

Training steps in fp32 of ours and of torchvision's network, each as it is and recomputing, all
four in a process of their own. Printed are the peak memory of the process (on a GPU of the device)
above what it was before the network was built, and the median time of a step.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time

os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "16384")

import torch
import torch.nn.functional as F
import torchvision

from common.device import choose_device, keep_memory, peak_memory
from densenet.model import MODELS

SIDES = ("ours", "ours, recomputing", "theirs", "theirs, recomputing")


def measure(name: str, side: str, args: argparse.Namespace) -> tuple[float, float]:
    """Peak memory in MiB and seconds of a step, here and now."""
    device = choose_device(args.device)
    keep_memory()
    torch.manual_seed(0)
    before = peak_memory(device)
    again = side.endswith("recomputing")
    if side.startswith("ours"):
        model = MODELS[name](checkpoint=again)
    else:
        model = getattr(torchvision.models, name)(memory_efficient=again)
    model.to(device).train()
    images = torch.randn(args.batch_size, 3, args.size, args.size, device=device)
    labels = torch.randint(1000, (args.batch_size,), device=device)
    optimizer = torch.optim.SGD(model.parameters(), 1e-3, momentum=0.9)
    times = []
    for _ in range(args.steps + 2):  # the first two warm up
        start = time.perf_counter()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
        optimizer.zero_grad()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return peak_memory(device) - before, statistics.median(times[2:])


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = [name for name in MODELS if hasattr(torchvision.models, name)]
    parser.add_argument("--models", nargs="+", choices=names, default=["densenet121"])
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        return print(*measure(*args.one, args))
    print(f"batch {args.batch_size} at {args.size} pixels")
    for name in args.models:
        for side in SIDES:
            command = [sys.executable, __file__, *sys.argv[1:], "--one", name, side]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            memory, seconds = map(float, done.stdout.split())
            print(f"{name:<12} {side:<20} {memory:7.0f} MiB {seconds:7.3f} s", flush=True)


if __name__ == "__main__":
    main()
