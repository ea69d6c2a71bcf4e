"""Times Mask R-CNN's training step and inference beside torchvision's.

    python tests/benchmarks/maskrcnn_step.py                                # training steps
    python tests/benchmarks/maskrcnn_step.py --inference
    python tests/benchmarks/maskrcnn_step.py --models maskrcnn_small --size 96 --batch-size 8
    python tests/benchmarks/maskrcnn_step.py --align                        # RoIAlign alone

Both sides have the same weights and images and take turns in one process. `equal` is both in fp32,
contiguous; `default` is ours as the script runs (precision auto, channels-last, fused optimiser)
against torchvision's as published. Both have the recipe's optimiser: AdamW of the small networks,
SGD of the large ones. `--align` times RoIAlign forward and backward, as two products of matrices
(heads.align) and as torchvision's kernel, on maps of several sizes. Printed are the ratio of
medians, torchvision's time over ours, with the quartiles of the rounds. The small networks' other
side is torchvision's of the same parts and settings. `--busy` takes the processor's time, not the
clock's, where other work is done meanwhile.
"""

import argparse
import os
import time
from collections.abc import Callable

os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "16384")

import torch
import torchvision
from timing import interleave, ratio
from torch import Tensor, nn
from torchvision.models.detection import anchor_utils, backbone_utils, faster_rcnn, mask_rcnn

from common.device import Device
from maskrcnn.heads import align
from maskrcnn.model import MODELS
from maskrcnn.train import parse_args

NAMES = ("maskrcnn_resnet50_fpn", "fasterrcnn_resnet50_fpn", "maskrcnn_small", "fasterrcnn_small")
CLASSES = 11  # with the background
MAPS = [  # images, channels, height, width, stride; regions of an image
    (8, 48, 24, 24, 4, 32),  # the small network's, of 96 x 96 pixels
    (8, 48, 24, 32, 4, 32),  # of 96 x 128 pixels
    (8, 48, 6, 8, 16, 32),
    (2, 256, 25, 34, 32, 64),  # ResNet-50's last, of 800 x 1088 pixels
    (2, 256, 25, 34, 32, 400),
]


class Maps(nn.Module):
    """Torchvision's side of the small network: our backbone, its maps by name."""

    def __init__(self, backbone: nn.Module):
        super().__init__()
        self.body, self.fpn = backbone.body, backbone.fpn
        self.out_channels = backbone.channels

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Images to maps."""
        return {str(number): level for number, level in enumerate(self.fpn(self.body(x)))}


def small_of_torchvision(name: str, size: int) -> nn.Module:
    """torchvision's detector with the parts and settings of a small network of ours."""
    ours = MODELS[name](CLASSES, size, 2 * size)
    channels, own, parts = ours.backbone.channels, ours.rpn, ours.roi_heads
    levels = ((12,), (24,), (48,), (96,))

    def pool(side: int) -> nn.Module:
        names = ["0", "1", "2"]
        return torchvision.ops.MultiScaleRoIAlign(names, side, 2, canonical_scale=56)

    kind, masks = faster_rcnn.FasterRCNN, {}
    if parts.masks:
        kind, masks = (
            mask_rcnn.MaskRCNN,
            dict(
                mask_roi_pool=pool(parts.mask_size),
                mask_head=mask_rcnn.MaskRCNNHeads(channels, (channels,) * 2, 1),
                mask_predictor=mask_rcnn.MaskRCNNPredictor(channels, channels, CLASSES),
            ),
        )
    return kind(
        Maps(ours.backbone),
        min_size=size,
        max_size=2 * size,
        rpn_anchor_generator=anchor_utils.AnchorGenerator(levels, ((0.5, 1.0, 2.0),) * 4),
        rpn_pre_nms_top_n_train=own.before[0],
        rpn_pre_nms_top_n_test=own.before[1],
        rpn_post_nms_top_n_train=own.after[0],
        rpn_post_nms_top_n_test=own.after[1],
        rpn_batch_size_per_image=own.number,
        box_batch_size_per_image=parts.number,
        box_roi_pool=pool(7),
        box_head=faster_rcnn.TwoMLPHead(channels * 49, 256),
        box_predictor=faster_rcnn.FastRCNNPredictor(256, CLASSES),
        **masks,
    )


def build(name: str, ours: bool, size: int) -> nn.Module:
    """One side's model; both sides get the same weights."""
    torch.manual_seed(0)
    if name.endswith("_small"):
        theirs = small_of_torchvision(name, size)
        model = MODELS[name](CLASSES, size, 2 * size)
    else:
        norm = torchvision.ops.FrozenBatchNorm2d
        backbone = backbone_utils.resnet_fpn_backbone(
            backbone_name="resnet50", weights=None, norm_layer=norm, trainable_layers=3
        )
        kind = mask_rcnn.MaskRCNN if name.startswith("mask") else faster_rcnn.FasterRCNN
        theirs = kind(backbone, CLASSES, min_size=size, max_size=2 * size)
        calm(theirs)
        model = MODELS[name](CLASSES, size, 2 * size, trainable=3)
    model.load_state_dict(theirs.state_dict())
    return model if ours else theirs


def calm(model: nn.Module) -> None:
    """Frozen norms that keep the size of signals: an untrained backbone's would overflow."""
    for module in model.modules():
        if isinstance(module, torchvision.ops.FrozenBatchNorm2d):
            module.weight.fill_(0.5)


def scenes(args: argparse.Namespace, masks: bool) -> tuple[list[Tensor], list[dict]]:
    """Random images, each with eight objects."""
    torch.manual_seed(1)
    height, width = args.size, args.size * 4 // 3
    images = [torch.rand(3, height, width) for _ in range(args.batch_size)]
    targets = []
    for _ in images:
        corner = torch.rand(8, 2) * torch.tensor([width, height]) * 0.6
        boxes = torch.cat([corner, corner + 8 + torch.rand(8, 2) * height * 0.3], 1)
        target = {"boxes": boxes, "labels": torch.randint(1, CLASSES, (8,))}
        if masks:
            target["masks"] = (torch.rand(8, height, width) > 0.5).byte()
        targets.append(target)
    return images, targets


def stepper(name: str, ours: bool, default: bool, args: argparse.Namespace) -> Callable:
    """A function that takes one training step, or one pass of inference."""
    flags = parse_args(["--model", name, "--device", args.device, "--quiet"])
    dev = Device(flags)
    model = build(name, ours, args.size)
    images, targets = scenes(args, name.startswith("mask"))
    images = [image.to(dev.device) for image in images]
    targets = [{key: value.to(dev.device) for key, value in t.items()} for t in targets]
    tuned = ours and default
    if tuned:
        dev.wrap(model)
    else:
        dev.precision = "fp32"
    model.to(dev.device).train(not args.inference)
    learnt = [p for p in model.parameters() if p.requires_grad]
    if flags.optimizer == "sgd":
        settings = dict(momentum=0.9, weight_decay=1e-4)
        optimizer = torch.optim.SGD(learnt, 1e-4, fused=tuned or None, **settings)
    else:
        optimizer = torch.optim.AdamW(learnt, 1e-4, weight_decay=0.05, fused=tuned or None)

    def step() -> None:
        torch.manual_seed(2)  # both sample alike
        with dev.autocast():
            loss = sum(model(images, [dict(target) for target in targets]).values())
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

    return infer if args.inference else step


def time_align(rounds: int, clock: Callable) -> None:
    """Prints a table of RoIAlign forward and backward on one CPU, on the maps of MAPS."""
    print("RoIAlign to 7x7, forward and backward; torchvision's time over that of two products")
    for count, channels, height, width, stride, regions in MAPS:
        torch.manual_seed(0)
        x = torch.randn(count, channels, height, width)
        x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
        pixels = stride * torch.tensor([width, height])
        corner = torch.rand(count * regions, 2) * pixels * 0.6
        boxes = torch.cat([corner, corner + 8 + torch.rand(len(corner), 2) * stride * 8], 1)
        number = torch.arange(count).repeat_interleave(regions)[:, None].float()
        boxes, weights = torch.cat([number, boxes], 1), torch.randn(len(boxes), channels, 7, 7)

        def side(cut: Callable, x=x, boxes=boxes, scale=1 / stride, weights=weights) -> Callable:
            def step() -> None:
                x.grad = None
                (cut(x, boxes, 7, scale, 2) * weights).sum().backward()

            return step

        sides = [side(align), side(torchvision.ops.roi_align)]
        shape = f"{count} x {channels} x {height} x {width}, {regions} regions each"
        print(f"{shape:<40} {ratio(*interleave(sides, rounds, clock=clock))}", flush=True)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=NAMES, default=NAMES)
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--inference", action="store_true")
    parser.add_argument("--align", action="store_true")
    parser.add_argument("--busy", action="store_true")
    args = parser.parse_args()
    clock = time.process_time if args.busy else time.perf_counter
    if args.align:
        return time_align(args.rounds, clock)
    what = "inference" if args.inference else "training step"
    print(f"{what}, batch {args.batch_size} at {args.size} pixels; torchvision's time over ours")
    print(f"{'model':<25} {'equal':<20} {'default':<20}")
    for name in args.models:
        ratios = []
        for default in (False, True):
            sides = [stepper(name, ours, default, args) for ours in (True, False)]
            ratios.append(ratio(*interleave(sides, args.rounds, clock=clock)))
        print(f"{name:<25} {ratios[0]:<20} {ratios[1]:<20}", flush=True)


if __name__ == "__main__":
    main()
