"""What the scripts of image classifiers share: counting, images that fit, the user's files."""

import argparse
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from common import cli, counted, fail
from common.data.files import ImageFiles, find_images, look_at
from common.data.images import ImageSet, Streamed, load_images
from common.device import Device
from common.folder import keep_what_is_there, make_folder, new_samples, open_run
from common.run import progress_bar
from common.weights import IMAGENET, start_from, torchvisions


class Tally:
    """Sums of losses and a confusion matrix over a part of a data set, and over all processes."""

    def __init__(self, images: ImageSet, dev: Device):
        self.part, self.count, self.dev = images.part, len(images), dev
        self.classes = images.facts["classes"]
        self.loss = torch.zeros((), device=dev.device)
        self.counts = torch.zeros(len(self.classes) ** 2, device=dev.device)

    def add(self, loss: Tensor, answers: Tensor, labels: Tensor) -> None:
        """Of a batch the sum of the losses, the answers (B,) and the true classes (B,)."""
        self.loss += loss
        size = len(self.classes)
        self.counts += torch.bincount(labels * size + answers, minlength=size**2)

    def metrics(self, picture: Path | None = None) -> dict[str, float]:
        """Mean loss and accuracy; `picture` is for the confusion matrix."""
        loss, counts = self.dev.sum(self.loss), self.dev.sum(self.counts)
        counts = counts.view(len(self.classes), -1)
        if picture and self.dev.main:
            from common.plot import confusion_matrix

            confusion_matrix(counts, self.classes, picture)
        return {
            f"{self.part}_loss": float(loss / self.count),
            f"{self.part}_accuracy": float(counts.trace() / counts.sum()),
        }


def check_images(
    model: nn.Module,
    args: argparse.Namespace,
    dev: Device,
    count: int,
    size: int,
    channels: int = 3,
) -> None:
    """Ends in one line unless a batch of images of `size` pixels passes `model`.

    Runs it on shapes alone, without numbers, as one part of a step over a set of `count` would.
    """
    batch = max(1, min(args.batch_size, count) // (dev.world * dev.accumulate))
    meta = {name: torch.empty_like(t, device="meta") for name, t in model.state_dict().items()}
    images = torch.empty(batch, channels, size, size, device="meta")
    model.train(not args.evaluate)
    try:
        with torch.no_grad():
            torch.func.functional_call(model, meta, images)
    except (RuntimeError, ValueError) as error:
        if "more than 1 value per channel" in str(error):
            parts = f"{counted(count, 'training image')}, in parts of {batch}"
            fail(f"batch norm can't train on one image of {size} pixels ({parts}): raise "
                 "--batch-size or --size, lower --accumulate, or take more images")  # fmt: skip
        fail(f"images of {size}x{size} pixels are too small for {args.model}: raise --size")


def names_for(files: list[Path]) -> list[str]:
    """A name for what is made of each file; files of one name are told apart by -2, -3, …"""
    names: list[str] = []
    for path in files:
        tries = itertools.chain([path.stem], (f"{path.stem}-{n}" for n in itertools.count(2)))
        names.append(next(name for name in tries if name not in names))
    return names


def open_model(
    args: argparse.Namespace, milestone: str, models: dict, build: Callable | None = None
) -> tuple[nn.Module, cli.Flags, dict, Device, Path]:
    """The trained model of a sample.py, the flags of its training, facts of its data, a device,
    and the folder for what is made.

    `build(flags, num_classes)` makes the network where the factory needs more than the classes.
    Averaged weights, if the checkpoint has some under `ema`, are taken in place of the last ones.
    """
    checkpoint, flags, dev, out = open_run(args, milestone, models)
    facts = checkpoint["dataset"]
    num_classes = len(facts["classes"])
    model = build(flags, num_classes) if build else models[flags.model](num_classes=num_classes)
    model.load_state_dict(checkpoint["model"] | checkpoint.get("ema", {}))
    return model.to(dev.device).eval(), flags, facts, dev, out


def load_parts(
    flags: argparse.Namespace, dev: Device, facts: dict
) -> tuple[ImageSet, ImageSet | None, ImageSet]:
    """The parts of the data that a model was trained on, cut as in evaluation."""
    return load_images(
        flags, dev, flags.size, mean=facts["mean"], std=facts["std"], side=facts.get("side", 0)
    )


@dataclass(frozen=True)
class Published:
    """Networks with weights of ImageNet's 1,000 classes, for `--weights` of a sample.py.

    `names` are torchvision's (or of repositories of the hub) by ours, the default first; `parse` is
    parse_args of train.py, for the flags that `build` reads, and `flags` those of them that
    sample.py has, too, with their settings: `--size` asks for other pixels than the weights were
    trained with. Inputs are normalised as in `inputs` of a model, or of what its flag `--normalise`
    says, else by IMAGENET. See `common.weights.start_from` for `optional` and `current_name`;
    `fitted(model)` is its `fitted`.
    """

    names: Mapping[str, str]
    parse: Callable[[list[str]], cli.Flags]
    flags: Mapping[str, dict] = field(default_factory=dict)
    inputs: Mapping[str, Mapping] = field(default_factory=dict)
    optional: tuple[str, ...] = ()
    current_name: Callable[[str], str] = str
    fitted: Callable[[nn.Module], Callable] = lambda _model: dict

    def add_flags(self, parser: cli.OneLineParser) -> None:
        """--weights, and the flags that only go with it."""
        text = "published weights, or a file of such, in place of a checkpoint: ImageNet's classes"
        parser.add_argument("--weights", metavar="imagenet|FILE", help=text)
        text = f"whose weights these are: {', '.join(self.names)} (default: the first of them)"
        parser.add_argument("--model", choices=list(self.names), metavar="NAME", help=text)
        for name, settings in self.flags.items():
            parser.add_argument(name, **settings)

    def check(self, args: argparse.Namespace) -> None:
        """Ends in one line if the flags don't go together."""
        own = [f for f in ("--model", *self.flags) if getattr(args, f[2:].replace("-", "_"))]
        if own and not args.weights:
            fail(f"{own[0]} goes with --weights: a checkpoint knows its own")
        if args.weights and args.checkpoint:
            fail("--checkpoint and --weights both name a network: choose one")
        if args.weights and not args.inputs:
            fail("--weights has no test images of its own: name image files, or folders of them")

    def open(
        self, args: argparse.Namespace, models: dict, build: Callable | None
    ) -> tuple[nn.Module, cli.Flags, dict, Device]:
        """The network with its weights, flags of train.py for it, facts of ImageNet, a device."""
        name = args.model or next(iter(self.names))
        argv = ["--model", name, "--weights", args.weights, "--device", args.device, "--quiet"]
        for flag in self.flags:
            value = getattr(args, flag[2:].replace("-", "_"))
            argv += [flag, str(value)] if value else []
        flags = self.parse([*argv, "--data", "folder:."])
        facts, size = imagenet(self.names[name])
        key = flags.normalise if "--normalise" in self.flags else name
        facts |= self.inputs.get(key) or IMAGENET
        if "--size" in self.flags and args.size:
            size, facts["side"] = args.size, facts["side"] * args.size // size
        flags, dev = flags.but(size=size), Device(flags)
        model = build(flags, 1000) if build else models[name](num_classes=1000)
        rest = facts, (), self.names, facts, self.optional, self.current_name
        start_from(model, flags, dev, *rest, self.fitted(model))
        print(f"{name} with the weights {args.weights}, {size} pixels")
        return model.to(dev.device).eval(), flags, facts, dev


def imagenet(name: str) -> tuple[dict, int]:
    """Facts of ImageNet, with the `side` that images are scaled to for torchvision's weights `name`
    (or a repository's of the hub), and the pixels of their middle that the network sees."""
    entry = torchvisions("resnet18" if "/" in name else name)
    cut = entry.transforms()
    return {"classes": entry.meta["categories"], "side": cut.resize_size[0]}, cut.crop_size[0]


def sample(
    milestone: str,
    doc: str,
    models: dict,
    build: Callable | None = None,
    argv: list[str] | None = None,
    more: Callable | None = None,
    published: Published | None = None,
    made: tuple[str, ...] = (),
    look: Callable | None = None,
) -> dict:
    """The main of a classifier's sample.py: classifies the inputs, or shows test predictions.

    `more(model, parts, dev, out)` shows what else there is without inputs, and
    `look(model, images, dev, out)` what else there is in images, those of the files or of the test
    set; both write files of the names `made`. Where there are `published` weights, they can take
    the place of a checkpoint. Returns what was found.
    """
    parser = cli.sample_parser(milestone, doc)
    parser.add_argument("inputs", nargs="*", type=Path, help="image files, or folders of them")
    if published:
        published.add_flags(parser)
    args = parser.parse_args(argv)
    if published:
        published.check(args)
    files = find_images(args.inputs)
    if published and args.weights:
        model, flags, facts, dev = published.open(args, models, build)
        out = args.out or new_samples(Path("runs", milestone))
    else:
        model, flags, facts, dev, out = open_model(args, milestone, models, build)
    keep_what_is_there(out, "predictions.jpg", *(made if look or not files else ()))
    if files:
        found = classify(files, model, facts, flags.size, dev, out)
        images = images_of(files, facts, flags.size, dev)
    else:
        parts = load_parts(flags, dev, facts)
        make_folder(out)
        found, images = {"right": show_predictions(model, parts[2], dev, out)}, parts[2]
        found |= more(model, parts, dev, out) if more else {}
    if look:
        look(model, images, dev, out)
    return found


def images_of(files: list[Path], facts: dict, size: int, dev: Device) -> ImageSet:
    """Image files as a test set, read as in evaluation: their largest square, scaled to
    `facts["side"]`, and of that the middle `size` pixels. Their labels are all 0."""
    how = dict(top=facts.get("top"), resample=facts.get("resample", "bilinear"))
    images = ImageFiles([str(path) for path in files], facts.get("side", size), **how)
    blank = torch.zeros(len(files), dtype=torch.int64)
    return ImageSet("test", Streamed(images, 0, dev), blank, facts, dev, size)


@torch.inference_mode()
def classify(
    files: list[Path], model: nn.Module, facts: dict, size: int, dev: Device, out: Path
) -> dict[str, list[tuple[str, float]]]:
    """Prints the five likeliest classes of each file and writes predictions.jpg.

    Files are read by `images_of`. Returns the classes with their probabilities by file.
    """
    from common.plot import image_grid

    images = images_of(files, facts, size, dev)
    found, shown = {}, []
    for part in progress_bar(
        torch.arange(len(files)).split(32), dev, "reading", -(-len(files) // 32)
    ):
        pixels, _ = images.examples(part)
        with dev.autocast():
            probabilities = model(pixels).float().softmax(1)
        shares, places = probabilities.topk(min(5, len(facts["classes"])))
        for i, share, place in zip(part.tolist(), shares.tolist(), places.tolist(), strict=True):
            names = [facts["classes"][k] for k in place]
            found[str(files[i])] = list(zip(names, share, strict=True))
        shown += colour(pixels, facts) if len(shown) < 100 else []
    titles = [f"{answers[0][0]} ({answers[0][1]:.0%})" for answers in found.values()]
    make_folder(out)
    image_grid(shown[:100], out / "predictions.jpg", titles[:100], columns=8, size=1.3)
    for path, answers in zip(files, found.values(), strict=True):
        grey = " (grey: made RGB)" if look_at([path])[0] else ""
        print(f"{path}{grey}: {', '.join(f'{n} {p:.1%}' for n, p in answers)}")
    print(f"wrote {out / 'predictions.jpg'}{', of the first 100' if len(files) > 100 else ''}")
    return found


@torch.inference_mode()
def show_predictions(
    model: nn.Module, test: ImageSet, dev: Device, out: Path, count: int = 40
) -> int:
    """Writes predictions.jpg: test images with the answers; returns how many of them are right."""
    from common.plot import image_grid

    order = torch.randperm(len(test), generator=torch.Generator().manual_seed(0))[:count]
    images, labels = test.examples(order)
    with dev.autocast():
        answers = model(images).argmax(1)
    classes, right = test.facts["classes"], int((answers == labels).sum())
    titles = [
        classes[a] if a == t else f"{classes[t]}→{classes[a]}"
        for a, t in zip(answers.tolist(), labels.tolist(), strict=True)
    ]
    of = counted(len(order), "test image")
    heading = f"{right} of {of} recognised; others: truth → answer"
    image_grid(colour(images, test.facts), out / "predictions.jpg", titles, 8, 1.2, heading)
    print(f"{heading}; wrote {out / 'predictions.jpg'}")
    return right


def colour(images: Tensor, facts: dict) -> list[Tensor]:
    """Normalised images (N, C, H, W) as they look, 0 to 1."""
    mean, std = (torch.tensor(facts[k], device=images.device) for k in ("mean", "std"))
    return list((images * std.view(-1, 1, 1) + mean.view(-1, 1, 1)).clamp(0, 1))
