"""Times a whole MNIST epoch through `common.data` beside the usual way, and the data alone.

    python tests/benchmarks/data_path.py --data-dir PATH

The usual way: torchvision's dataset, per-image transforms, a DataLoader without and with two
workers. Same model (`lenet5_modern`), batch, loss and optimiser; the sides take turns in one
process. Printed are medians, and the ratio of medians over the better of the two usual ways.
"""

import argparse
import os
import statistics
import time

os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "16384")

import torch
import torch.nn.functional as F
import torchvision
from torchvision import transforms

from common.data.images import load_images
from common.device import Device
from lenet.model import lenet5_modern
from lenet.train import parse_args


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", default="data")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=256)
    options = parser.parse_args()
    args = parse_args(["--paper", "--data-dir", options.data_dir, "--model", "lenet5_modern"])
    dev = Device(args, auto_precision="fp32")
    mean, std = [0.1 / 1.275], [1 / 1.275]
    train, _, _ = load_images(args, dev, size=28, channels=1, pad=2, mean=mean, std=std)
    steps = [transforms.Pad(2), transforms.ToTensor(), transforms.Normalize(mean, std)]
    usual = torchvision.datasets.MNIST(options.data_dir, transform=transforms.Compose(steps))

    def loader(workers: int) -> torch.utils.data.DataLoader:
        return torch.utils.data.DataLoader(
            usual, options.batch_size, shuffle=True, num_workers=workers, drop_last=True
        )

    sides = {
        "common.data": lambda: train.batches(options.batch_size),
        "DataLoader, 0 workers": lambda: loader(0),
        "DataLoader, 2 workers": lambda: loader(2),
    }
    model = lenet5_modern()
    dev.wrap(model)  # in the memory format of the script, for all sides
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)

    def epoch(batches, learn: bool) -> float:
        start = time.perf_counter()
        for images, labels in batches:
            if learn:
                optimizer.zero_grad()
                F.cross_entropy(model(images), labels).backward()
                optimizer.step()
        return time.perf_counter() - start

    for title, learn in (("the data alone", False), ("a whole epoch", True)):
        times = {name: [] for name in sides}
        for round_ in range(options.rounds + 1):
            for name, batches in sides.items():
                seconds = epoch(batches(), learn)
                if round_:  # the first round warms up
                    times[name].append(seconds)
        print(f"{title}, {options.rounds} rounds, batch {options.batch_size}, {dev}, fp32:")
        for name, values in times.items():
            low, high = min(values), max(values)
            print(f"  {name:<22} {statistics.median(values):7.3f} s  ({low:.3f} to {high:.3f})")
        ours, *others = (statistics.median(values) for values in times.values())
        pairs = [min(b, c) / a for a, b, c in zip(*times.values(), strict=True)]
        ratio = f"{min(others) / ours:.1f} (round by round {min(pairs):.1f} to {max(pairs):.1f})"
        print(f"  ratio of medians over the better usual way: {ratio}")


if __name__ == "__main__":
    main()
