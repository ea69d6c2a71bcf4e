"""What test_common_device.py starts with torchrun: many short runs, one after another.

Usage: torchrun --nproc-per-node 2 tests/processes.py FOLDER (which holds a run `one` to resume).
"""

import os
import sys
import weakref
from types import SimpleNamespace

import torch
from torch import nn

FLAGS = ["--quiet", "--precision", "fp32"]


def two_optimisers(fsdp=False):
    """Both players of a GAN-like game; returns their weights after two steps."""
    from common.checkpoint import gathered
    from common.device import Device

    dev = Device(device_args(fsdp=fsdp))
    one, two = nn.Linear(3, 3), nn.Linear(3, 1)
    net1, net2 = dev.wrap(one), dev.wrap(two)
    first = torch.optim.SGD(one.parameters(), lr=0.1)
    second = torch.optim.SGD(two.parameters(), lr=0.1)
    x = torch.arange(12.0).view(4, 3)[dev.rank :: dev.world] / 10
    for _ in range(2):
        dev.step(net2(net1(x).detach()).square().mean(), second)
        dev.step(net2(net1(x)).square().mean(), first)
    return [gathered(p) for p in (*one.parameters(), *two.parameters())]


def counted():
    """A sum over items, unequally shared by the processes, over two parts."""
    from common.checkpoint import gathered
    from common.device import Device

    dev = Device(device_args(accumulate=2))
    torch.manual_seed(0)
    model = nn.Linear(2, 1)
    net = dev.wrap(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    items = torch.arange(20.0).view(10, 2) / 10
    cuts = [0, 1, 4, 9, 10] if dev.world == 2 else [0, 4, 10]
    for number in range(2):
        part = (
            slice(*cuts[2 * number + dev.rank :][:2])
            if dev.world == 2
            else slice(*cuts[number:][:2])
        )
        dev.step(net(items[part]).square().sum(), optimizer, count=len(items[part]))
    return [gathered(p) for p in model.parameters()]


def kept():
    """Whether a tensor outlives its last user, for gloo's thread is slow to let go of it."""
    from common.device import Device

    tensor = torch.ones(1)
    still = weakref.ref(tensor)
    Device(device_args()).sum(tensor)
    del tensor
    return still() is not None


def device_args(**changes):
    return SimpleNamespace(
        **{
            "device": "cpu",
            "precision": "fp32",
            "accumulate": 1,
            "clip": None,
            "compile": False,
            "fsdp": False,
            "quiet": True,
            "seed": 0,
            **changes,
        }
    )


def main(folder):
    import toy

    os.chdir(folder)
    toy.main([*FLAGS, "--run-dir", "ddp"])
    toy.main([*FLAGS, "--run-dir", "ddp-accumulate", "--accumulate", "4", "--clip", "0.5"])
    toy.main([*FLAGS, "--run-dir", "fsdp", "--fsdp", "--optimizer", "adam", "--lr", "0.01"])
    toy.main(
        [*FLAGS, "--run-dir", "fsdp-accumulate", "--fsdp", "--accumulate", "4", "--clip", "0.5"]
    )
    toy.main([*FLAGS, "--run-dir", "half", "--max-steps", "15"])
    toy.main([*FLAGS, "--run-dir", "half-fsdp", "--max-steps", "15", "--fsdp"])
    toy.main(["--quiet", "--run-dir", "one", "--resume"])
    toy.main(["--quiet", "--run-dir", "one-fsdp", "--resume", "--fsdp"])
    toy.main([*FLAGS[:1], "--precision", "fp16", "--run-dir", "fp16", "--fsdp"])
    evaluated = toy.main(["--quiet", "--evaluate", "half/last.pt", "--run-dir", "evaluated"])
    games = [two_optimisers(), two_optimisers(fsdp=True)]
    results = {"evaluated": evaluated, "games": games, "counted": counted(), "kept": kept()}
    if os.environ["RANK"] == "0":
        torch.save(results, "results.pt")


if __name__ == "__main__":
    main(sys.argv[1])
