"""Times training steps of the models of images beside torchvision's, and whole epochs.

    python tests/benchmarks/cnn_step.py                                     # every shared variant
    python tests/benchmarks/cnn_step.py --models resnet18 googlenet --memory
    python tests/benchmarks/cnn_step.py --models densenet121 --inference    # forward passes alone
    python tests/benchmarks/cnn_step.py --epoch --data-dir PATH             # CIFAR-10, with data

A step is forward, backward and SGD with momentum. Both sides have the same weights and input and
take turns in one process. `equal` is both in fp32, contiguous; `default` is ours as the scripts
run (precision auto, channels-last, fused SGD) against torchvision's as published. Printed are the
ratio of medians, torchvision's time over ours, with its spread round by round. `--memory` runs each
side in a process of its own and compares their peak resident memory. With `--inference` a forward
pass in evaluation takes the place of the step, by default with folded norms where the script has
them so. `--busy` takes the processor's time, not the clock's, where other work is done meanwhile.
`inception_v3` sees 299 pixels and `vit_*` 224, whatever --size says.

`--epoch` times ResNet-20 (32 pixels) and ResNet-18 (64, the script's default) on the CIFAR-10 part,
with crops and flips, beside the usual script: per-image transforms, a DataLoader (the better
of 0 and 2 workers), fp32.
"""

import argparse
import importlib
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "16384")

import torch
import torch.nn.functional as F
import torchvision
from timing import interleave, ratio
from torch import nn

from alexnet.model import MODELS as ALEXNET
from common.data.augment import crop_and_flip
from common.data.images import load_images
from common.device import DTYPES, Device, peak_memory
from googlenet.model import MODELS as GOOGLENET
from resnet.model import MODELS as RESNET
from resnet.train import parse_args
from vgg.model import MODELS as VGG

SAME = {  # torchvision's name: our factory
    "alexnet": ALEXNET["alexnet_owt"],
    **{name: VGG[name] for name in ("vgg11", "vgg13", "vgg16", "vgg19")},
    **{name: VGG[name] for name in ("vgg11_bn", "vgg13_bn", "vgg16_bn", "vgg19_bn")},
    "googlenet": GOOGLENET["googlenet_bn"],
    "inception_v3": GOOGLENET["inception_v3"],
    "resnet18": RESNET["resnet18"],
    "resnet34": RESNET["resnet34"],
    **{f"resnet{n}": RESNET[f"resnet{n}_v1_5"] for n in (50, 101, 152)},
}
VIT = ("vit_b_16", "vit_b_32", "vit_l_16", "vit_l_32", "vit_h_14")
LATER = {  # not on every branch
    "densenet": {f"densenet{n}": f"densenet{n}" for n in (121, 161, 169, 201)},
    "mobilenet": {
        "mobilenetv1_100": "mobilenet_v1",  # timm's
        **{name: name for name in ("mobilenet_v2", "mobilenet_v3_large", "mobilenet_v3_small")},
        **{f"mobilenetv2_{n}": f"mobilenet_v2_{n}" for n in ("035", "050", "075", "140")},  # too
    },
    "efficientnet": {name: name for name in (f"efficientnet_b{n}" for n in range(8))},
    "vit": {name: name for name in VIT},
}
for folder, names in LATER.items():
    if Path(__file__).parents[2].joinpath(folder).is_dir():
        models = importlib.import_module(f"{folder}.model").MODELS
        SAME |= {theirs: models[ours] for theirs, ours in names.items()}
        if folder == "efficientnet":  # timm's
            SAME["tf_efficientnet_b0"] = partial(models["efficientnet_b0"], padding="same")
PIXELS = {"inception_v3": 299}  # torchvision's head needs maps of 17x17
PIXELS |= dict.fromkeys(VIT, 224)  # positions are of that grid


def build(name: str, ours: bool) -> nn.Module:
    """One side's model; both sides get the same weights."""
    torch.manual_seed(0)
    extra = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    if hasattr(torchvision.models, name):
        theirs = getattr(torchvision.models, name)(**extra)
    else:
        theirs = importlib.import_module("timm").create_model(name)
    if not ours:
        return theirs
    model = SAME[name]()
    model.load_state_dict(theirs.state_dict())
    return model


def stepper(name: str, ours: bool, default: bool, args: argparse.Namespace) -> Callable:
    """A function that takes one training step, or one pass of inference."""
    model = build(name, ours)
    dev = Device(parse_args(["--device", args.device, "--quiet"]))
    torch.manual_seed(0)
    size = PIXELS.get(name, args.size)
    images = torch.randn(args.batch_size, 3, size, size).to(dev.device)
    labels = torch.randint(1000, (args.batch_size,), device=dev.device)
    tuned = ours and default
    if tuned:
        model = dev.wrap(model)
    model.to(dev.device).train()
    if not tuned:
        dev.precision = "fp32"
    optimizer = torch.optim.SGD(model.parameters(), 1e-3, momentum=0.9, fused=tuned or None)

    def step() -> None:
        with dev.autocast():
            output = model(images)
            main, *heads = output if isinstance(output, tuple) else [output]
            loss = F.cross_entropy(main, labels)
            loss = loss + 0.3 * sum(F.cross_entropy(head, labels) for head in heads)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if dev.device.type == "cuda":
            torch.cuda.synchronize()

    @torch.inference_mode()
    def infer() -> None:
        with dev.autocast():
            model(images)
        if dev.device.type == "cuda":
            torch.cuda.synchronize()

    if args.inference:
        model.eval()
        if tuned:
            folder = type(model).__module__.partition(".")[0]
            folded = getattr(importlib.import_module(f"{folder}.model"), "folded", None)
            model = folded(model, DTYPES[dev.precision]) if folded else model  # as it is evaluated
    return infer if args.inference else step


def peak(name: str, ours: bool, args: argparse.Namespace) -> float:
    """Peak resident memory in MiB of two fp32 steps, in a process of their own."""
    options = ["--size", str(args.size), "--batch-size", str(args.batch_size)]
    command = [sys.executable, __file__, "--peak", name, "ours" if ours else "theirs", *options]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def epoch_sides(name: str, data_dir: str, device: str, sample: list[str]) -> dict[str, Callable]:
    """One epoch of CIFAR-10: ours, and the usual script with 0 and 2 workers."""
    flags = ["--data", "cifar10", "--data-dir", data_dir, "--model", name, *sample]
    args = parse_args([*flags, "--device", device, "--val", "0", "--quiet"])
    dev = Device(args)
    train, _, _ = load_images(args, dev, args.size)
    plain, _, _ = load_images(args, dev, 32)
    steps = [
        torchvision.transforms.RandomCrop(args.size, padding=args.size // 8),
        torchvision.transforms.RandomHorizontalFlip(),
        torchvision.transforms.ToTensor(),
        torchvision.transforms.Normalize(train.facts["mean"], train.facts["std"]),
    ]
    if args.size != 32:
        steps.insert(0, torchvision.transforms.Resize(args.size))
    transform = torchvision.transforms.Compose(steps)
    pictures = [image.permute(1, 2, 0).numpy() for image in plain.images.pixels]
    to_image = torchvision.transforms.functional.to_pil_image

    class Usual(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(pictures)

        def __getitem__(self, i: int) -> tuple:
            return transform(to_image(pictures[i])), int(train.labels[i])

    def run(model: nn.Module, batches, tuned: bool) -> None:
        model.train()
        for images, labels in batches:
            with torch.autocast(
                dev.device.type, torch.bfloat16, enabled=tuned and dev.precision == "bf16"
            ):
                loss = F.cross_entropy(model(images.to(dev.device)), labels.to(dev.device))
            loss.backward()
            optimizers[model].step()
            optimizers[model].zero_grad()

    ours, theirs = (RESNET[name](num_classes=10) for _ in range(2))
    dev.wrap(ours)
    theirs.to(dev.device)
    optimizers = {
        model: torch.optim.SGD(
            model.parameters(), 0.01, momentum=0.9, weight_decay=1e-4, fused=(model is ours) or None
        )
        for model in (ours, theirs)
    }

    def loader(workers: int) -> torch.utils.data.DataLoader:
        return torch.utils.data.DataLoader(
            Usual(), 128, shuffle=True, num_workers=workers, drop_last=True
        )

    return {
        "ours": lambda: run(ours, train.batches(128, augment=crop_and_flip), True),
        "usual, 0 workers": lambda: run(theirs, loader(0), False),
        "usual, 2 workers": lambda: run(theirs, loader(2), False),
    }


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=[*SAME, "resnet20"])
    parser.add_argument("--limit", type=int, help="with --epoch: so many images")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--inference", action="store_true")
    parser.add_argument("--busy", action="store_true")
    parser.add_argument("--epoch", action="store_true")
    parser.add_argument("--data-dir", default="data")
    parser.add_argument("--peak", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peak:
        args.device = "cpu"
        step = stepper(args.peak[0], args.peak[1] == "ours", False, args)
        step()
        step()
        print(peak_memory())
        return
    if args.epoch:
        sample = ["--limit", str(args.limit)] if args.limit else []
        for name in args.models or ("resnet20", "resnet18"):
            sides = epoch_sides(name, args.data_dir, args.device, sample)
            times = interleave(list(sides.values()), args.rounds, warm_up=1)
            for side, values in zip(sides, times, strict=True):
                print(f"{name:<10} {side:<17} {statistics.median(values):6.2f} s", flush=True)
            better = min(times[1:], key=statistics.median)
            print(
                f"{name:<10} the better usual way over ours: {ratio(times[0], better)}", flush=True
            )
        return
    print(f"batch {args.batch_size} at {args.size} pixels; torchvision's time over ours")
    print(f"{'model':<10} {'equal':<20} {'default':<20} {'memory, ours over theirs' * args.memory}")
    for name in args.models or SAME:
        ratios = []
        for default in (False, True):  # two models at a time: three large ones crowd the memory
            sides = [stepper(name, ours, default, args) for ours in (True, False)]
            clock = time.process_time if args.busy else time.perf_counter
            ratios.append(ratio(*interleave(sides, args.rounds, clock=clock)))
        memory = f"{peak(name, True, args) / peak(name, False, args):.2f}" if args.memory else ""
        print(f"{name:<10} {ratios[0]:<20} {ratios[1]:<20} {memory}", flush=True)


if __name__ == "__main__":
    main()
