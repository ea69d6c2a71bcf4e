"""Shows that streaming a folder takes the same memory however many images there are.

    python tests/benchmarks/stream_memory.py PATH     # an ImageFolder tree

For growing shares of the images, an epoch of batches (64 random resized crops of 224 pixels, two
workers) is read in a process of its own, streamed and, beside it, whole in memory. Printed is the
peak resident memory of the process, above what it was before, and all that of its largest worker.
"""

import argparse
import resource
import subprocess
import sys

from common.data.augment import resized_window
from common.data.images import load_images
from common.device import Device
from googlenet.train import parse_args


def peaks() -> tuple[float, float]:
    """Peak resident MiB of this process, and of its largest child."""
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return tuple(resource.getrusage(kind).ru_maxrss / 1024 for kind in kinds)


def read(path: str, limit: int, how: str) -> None:
    """Reads one epoch and prints the peaks above those before it; `how` is "stream" or not so."""
    flags = ["--data", f"folder:{path}", "--limit", str(limit), "--val", "0", "--quiet"]
    args = parse_args([*flags, f"--{how}", "--workers", "2"])
    dev = Device(args)
    before = peaks()[0]
    train, _, _ = load_images(args, dev, 224, mean=[0.5] * 3, std=[0.5] * 3, window=resized_window)
    count = sum(len(labels) for _, labels in train.batches(64))
    own, worker = peaks()
    print(f"{count:>8} {how:>9} {own - before:>9.0f} {worker:>9.0f}")


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("path", help="an ImageFolder tree")
    parser.add_argument("--images", type=int, nargs="+", default=[320, 640, 960, 1280, 1600])
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        return read(args.path, int(args.one[0]), args.one[1])
    print(f"{'images':>8} {'how':>9} {'MiB':>9} {'worker':>9}", flush=True)
    for how in ("stream", "no-stream"):
        for count in args.images:
            one = ["--one", str(count), how]
            subprocess.run([sys.executable, __file__, args.path, *one], check=True)


if __name__ == "__main__":
    main()
