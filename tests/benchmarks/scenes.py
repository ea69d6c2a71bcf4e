"""Counts the scenes of `shapes` that one core draws in a second.

    python tests/benchmarks/scenes.py --size 64

Printed is the best of five rounds of 500 scenes.
"""

import argparse

import torch
from timing import interleave

from common.data.shapes import ShapeImages


def main() -> None:
    """Prints the rate."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=64, help="pixels")
    size = parser.parse_args().size
    torch.set_num_threads(1)
    scenes = ShapeImages(range(500), 0)
    [times] = interleave([lambda: list(scenes.draw(size))], 5)
    print(f"{500 / min(times):.0f} scenes a second at {size} pixels")


if __name__ == "__main__":
    main()
