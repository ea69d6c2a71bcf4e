"""A small script on `common`, for its tests: no milestone has to be there.

Three flags make trouble at a given step: --poison a loss that is not finite, --signal-at a Ctrl-C,
--kill-in-save a SIGKILL while that save is being written.
"""

import os
import signal

import torch
import torch.nn.functional as F
from torch import nn

from common import cli
from common.data.augment import random_crop
from common.data.images import IMAGE_SETS, add_image_flags, load_images
from common.device import Device
from common.run import Run

QUICK = dict(
    model="conv", data="digits", epochs=3, batch_size=32, lr=0.05, val=100, limit=320, augment=True
)
PAPER = dict(model="mlp", data="mnist", epochs=9, batch_size=64, lr=0.1, val=0)


class Conv(nn.Module):
    def __init__(self, num_classes=10):
        super().__init__()
        self.blocks = nn.Sequential(
            nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU()),
            nn.Sequential(nn.Conv2d(8, 8, 3), nn.ReLU(), nn.MaxPool2d(2)),
        )
        self.dropout = nn.Dropout(0.0)
        self.head = nn.Linear(32, num_classes)

    def forward(self, x):
        return self.head(self.dropout(self.blocks(x).flatten(1)))


def mlp(num_classes=10):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, num_classes))


MODELS = {"conv": Conv, "mlp": mlp}


def parse_args(argv=None):
    parser = cli.Parser("toy", __doc__, QUICK, PAPER, MODELS, IMAGE_SETS)
    add_image_flags(parser)
    parser.add_switch("--augment", help="random shifts")
    parser.add_argument("--dropout", type=float, default=0.0, help="share of features left out")
    parser.add_argument("--optimizer", choices=["sgd", "adam"], default="sgd", help="which one")
    parser.add_argument("--schedule", choices=["linear", "cosine"], default="linear", help="of lr")
    parser.add_argument("--poison", type=int, default=-1, help="step with a bad loss")
    parser.add_argument("--signal-at", type=int, default=-1, help="step with a Ctrl-C")
    parser.add_argument("--kill-in-save", type=int, default=-1, help="save with a SIGKILL")
    return parser.parse_args(argv)


def evaluate(model, images, dev):
    model.eval()
    sums = torch.zeros(3, device=dev.device)
    with torch.inference_mode():
        for x, labels in images.batches(50):
            with dev.autocast():
                logits = model(x)
            loss = F.cross_entropy(logits.float(), labels, reduction="sum")
            correct = (logits.argmax(1) == labels).sum()
            sums += torch.stack([loss, correct.float(), torch.tensor(float(len(labels)))])
    loss, correct, count = dev.sum(sums).tolist()
    return {
        f"{images.part}_loss": loss / count,
        f"{images.part}_accuracy": correct / count,
        f"{images.part}_count": count,
    }


def kill_in_save(number):
    """SIGKILL within the `number`th write of a checkpoint, when half of it is on the disk."""
    import io

    plain, count = torch.save, 0

    def save(content, file):
        nonlocal count
        count += 1
        if count == number:
            buffer = io.BytesIO()
            plain(content, buffer)
            file.write(buffer.getvalue()[: buffer.tell() // 2])
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        plain(content, file)

    torch.save = save


@cli.command
def main(argv=None):
    args = parse_args(argv)
    if args.kill_in_save > 0:
        kill_in_save(args.kill_in_save)
    dev = Device(args)
    train, val, test = load_images(args, dev, size=8, channels=1)
    model = MODELS[args.model](num_classes=len(train.facts["classes"]))
    if args.model == "conv":
        model.dropout.p = args.dropout
    net = dev.wrap(model)
    if args.optimizer == "adam":
        optimizer = torch.optim.Adam(model.parameters(), lr=args.lr)
    else:
        optimizer = torch.optim.SGD(model.parameters(), lr=args.lr, momentum=0.9)
    total = args.epochs * len(train.batches(args.batch_size))
    if args.schedule == "linear":
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: 1 - s / (total + 1))
    else:
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, total + 1)
    ema = {name: p.detach().clone() for name, p in model.named_parameters()}
    run = Run(
        args, dev, model=model, optimizer=optimizer, schedule=schedule, ema=ema, dataset=train.facts
    )
    if args.evaluate:
        return run.finish(**evaluate(model, test, dev))
    for epoch in run.epochs():
        model.train()
        augment = (lambda x, draw: random_crop(x, draw, 1)) if args.augment else None
        for images, labels in run.progress(train.batches(args.batch_size, augment=augment)):
            with dev.autocast():
                loss = F.cross_entropy(net(images), labels)
            if run.step == args.poison:
                loss = loss * float("inf")
            if run.step == args.signal_at:
                signal.raise_signal(signal.SIGINT)
            run.add(train_loss=loss)
            if dev.step(loss, optimizer):
                schedule.step()
                for name, p in model.named_parameters():
                    ema[name].lerp_(p.detach(), 0.1)
        run.log(epoch, **run.means(), **(evaluate(model, val, dev) if val else {}))
        run.save()
    return run.finish(**evaluate(model, test, dev))


if __name__ == "__main__":
    main()
