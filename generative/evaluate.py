"""How good a generator is: its bound on held-out images, and how its samples look to a classifier.

Samples and test images are compared in the last hidden layer of a small convolutional classifier,
which is trained here on the training labels with a fixed seed and kept in data/cache/generative,
the same for all models:

- the Fréchet distance of two normal distributions (Heusel et al. 2017, arXiv:1706.08500, Eq. 6);
- precision, the share of samples that lie among test images, and recall, the share of test images
  that lie among samples (Kynkäänniemi et al. 2019, arXiv:1904.06991);
- the distance in pixels from samples to their nearest training images, over the distance from
  test images to theirs: far below 1 is copying.
"""

import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common import cli, seed_of
from common.checkpoint import read_tensors, write_checkpoint
from common.data.images import ImageSet
from common.device import Device, forked
from common.run import progress_bar
from generative.data import load

CACHE = Path("data", "cache", "generative")
SHOWN = 10  # columns of the pictures
LEAST_STEPS = 500  # of the classifier's training; two epochs of larger sets


class Classifier(nn.Module):
    """Three convolutions, a hidden layer of 64 units, K logits."""

    def __init__(self, channels: int, size: int, num_classes: int):
        super().__init__()
        side = -(-size // 4)
        self.layers = nn.Sequential(
            *(nn.Conv2d(channels, 32, 3, 1, 1), nn.ReLU()),
            *(nn.Conv2d(32, 64, 3, 2, 1), nn.ReLU(), nn.Conv2d(64, 64, 3, 2, 1), nn.ReLU()),
            *(nn.Flatten(), nn.Linear(64 * side**2, 64), nn.ReLU()),
        )
        self.head = nn.Linear(64, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) to the hidden layer (B, 64)."""
        return self.layers(x)


def classifier(test: ImageSet, args: cli.Flags, dev: Device) -> Classifier:
    """The classifier of this data, trained if it isn't in the cache.

    It learns from the whole training set, whatever --val, --limit and --without say: the same for
    all models.
    """
    data = str(Path(args.data[7:]).resolve()) if args.data.startswith("folder:") else args.data
    channels, size, classes = len(test.facts["mean"]), args.size, test.facts["classes"]
    key = seed_of(data, size, channels, *classes, len(test)) % 16**8
    path = CACHE / f"{Path(data).name}-{size}-{key:08x}.pt"
    with forked("classifier", dev, alike=True):
        net = Classifier(channels, size, len(classes)).to(dev.device)
        if path.exists():
            net.load_state_dict(read_tensors(path))
            return net.eval()
        train = load(args.but(val=0, limit=None, without=None), dev)[0]
        steps, batch = max(LEAST_STEPS, 2 * len(train) // 128), min(128, len(train))
        optimizer = torch.optim.Adam(net.parameters(), 1e-3)
        for _ in progress_bar(range(steps), dev, "training the classifier", steps):
            x, labels = train.examples(torch.randint(len(train), (batch,)))
            F.cross_entropy(net.head(net(x)), labels).backward()
            optimizer.step()
            optimizer.zero_grad()
    if dev.main:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_checkpoint(path, net.state_dict())
    return net.eval()


@torch.inference_mode()
def mean_loss(model: nn.Module, images: ImageSet, dev: Device) -> dict[str, float]:
    """The loss over a part of the data, always with the same noise."""
    model.eval()
    total = torch.zeros((), dtype=torch.float64)
    with forked("loss", dev):
        for x, _ in images.batches(500):
            total += model(x).cpu().double() * len(x)
    return {f"{images.part}_loss": float(dev.sum(total.float().to(dev.device))) / len(images)}


@torch.inference_mode()
def bounds(
    model: nn.Module, images: ImageSet, args: cli.Flags, dev: Device, picture: Path | None
) -> dict[str, float]:
    """What the model says of held-out examples: errors, bounds, likelihoods, bits a dimension.

    With --without also the area under the ROC curve, of telling the class that the training left
    out from the others by its error; `picture` is for the curve.
    """
    model.eval()
    sums, rows, means = {}, [], []
    with forked("bounds", dev):
        for x, labels in images.batches(500):
            found = model.measures(x)
            if args.importance:
                found["log_likelihood"] = model.log_likelihood(x, args.importance)
            for key, values in found.items():
                sums[key] = sums.get(key, 0.0) + values.cpu().double().sum()
            if hasattr(model, "active_latents"):
                means.append(model.encode(model.prepare(x))[0].cpu())
            if args.without:
                rows += zip(found["error"].tolist(), labels.tolist(), strict=True)
    names, totals = list(sums), torch.stack(list(sums.values())).float().to(dev.device)
    values = (dev.sum(totals) / len(images)).tolist()
    metrics = {f"test_{key}": value for key, value in zip(names, values, strict=True)}
    if means:
        found = torch.cat([m for part in dev.gather(means) for m in part])
        metrics["test_active"] = float(model.active_latents(found))
    if args.without:
        rows = [row for part in dev.gather(rows) for row in part]
        left_out = images.facts["classes"].index(args.without)
        truth = [label == left_out for _, label in rows]
        metrics["test_auc"] = roc(truth, [error for error, _ in rows], picture, args.without)
    return metrics


def roc(truth: list[bool], scores: list[float], picture: Path | None, name: str) -> float:
    """The area under the ROC curve, which is drawn."""
    from matplotlib.figure import Figure
    from sklearn.metrics import auc, roc_curve

    false, true, _ = roc_curve(truth, scores)
    if picture:
        from common.plot import save

        figure = Figure(figsize=(3.6, 3.4), layout="constrained")
        axis = figure.subplots()
        axis.plot(false, true, label=f"area {auc(false, true):.3f}")
        axis.plot([0, 1], [0, 1], ":", color="grey")
        axis.set_xlabel("share of the other classes that are reported")
        axis.set_ylabel(f"share of {name} that is reported", parse_math=False)
        axis.legend()
        save(figure, picture)
    return float(auc(false, true))


@torch.inference_mode()
def draw_samples(
    model: nn.Module, n: int, dev: Device, key: str | int = "samples", part: int = 500
) -> Tensor:
    """n images, in parts that fit in memory; the same for the same key."""
    model.eval()
    sizes, drawn = [part] * (n // part) + [n % part] * (n % part > 0), []
    with forked(f"{key}", dev):
        for size in progress_bar(sizes, dev, "sampling", len(sizes)):
            with dev.autocast():
                drawn.append(model.sample(size))
    return torch.cat(drawn)


@torch.inference_mode()
def features(net: Classifier, images: Tensor) -> Tensor:
    """The hidden layer for images (N, C, H, W): (N, 64), float64, which not all devices have."""
    return torch.cat([net(part).cpu() for part in images.split(500)]).double()


def frechet(a: Tensor, b: Tensor) -> float:
    """The squared Fréchet distance between normal distributions fitted to (N, D) and (M, D)."""
    means, covariances = [a.mean(0), b.mean(0)], [a.T.cov(), b.T.cov()]
    values, vectors = torch.linalg.eigh(covariances[0])
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    mixed = torch.linalg.eigvalsh(root @ covariances[1] @ root).clamp(min=0).sqrt().sum()
    apart = (means[0] - means[1]).square().sum()
    return float(apart + covariances[0].trace() + covariances[1].trace() - 2 * mixed)


def precision_recall(real: Tensor, fake: Tensor, k: int = 3) -> tuple[float, float]:
    """Shares of samples among real images and of real images among samples, from features (N, D).

    Among a set is who is no farther from one of its members than that member's k-th neighbour.
    """

    def share(inside: Tensor, of: Tensor) -> float:
        k_th = min(k, len(of) - 1)
        radii = torch.cat([torch.cdist(p, of).kthvalue(k_th + 1, 1)[0] for p in of.split(1000)])
        found = [(torch.cdist(p, of) <= radii).any(1) for p in inside.split(1000)]
        return float(torch.cat(found).double().mean())

    real, fake = real.float(), fake.float()
    return share(fake, real), share(real, fake)


def nearest(images: Tensor, train: ImageSet) -> tuple[Tensor, Tensor]:
    """For images (N, C, H, W) the distance in pixels to the nearest training image, and which."""
    best = torch.full((len(images),), torch.inf, device=images.device)
    index = torch.zeros(len(images), dtype=torch.int64, device=images.device)
    for part in torch.arange(len(train)).split(4096):
        away = torch.cdist(images.flatten(1), train.examples(part)[0].flatten(1))
        found, place = away.min(1)
        index = torch.where(found < best, place + int(part[0]), index)
        best = best.minimum(found)
    return best, index


@torch.inference_mode()
def sample_quality(
    model: nn.Module, train: ImageSet, test: ImageSet, args: cli.Flags, dev: Device, folder: Path
) -> dict[str, float]:
    """Draws --samples images, measures them against the test set, writes samples.png and
    neighbours.png: samples over their nearest training images."""
    with torch.inference_mode(False):
        net = classifier(test, args, dev)
    start = time.perf_counter()
    share = [len(p) for p in torch.arange(args.samples).tensor_split(dev.world)][dev.rank]
    samples = draw_samples(model, share, dev)
    samples.sum().item()  # a GPU answers before it is done
    seconds = time.perf_counter() - start
    real = torch.arange(len(test))[:10_000]
    images = torch.cat([test.examples(part)[0] for part in real.split(500)])
    fake, truth = features(net, samples), features(net, images)
    fake = torch.cat(dev.gather(fake))
    precision, recall = precision_recall(truth, fake)
    some = min(1000, len(samples), len(images))
    away, index = nearest(samples[:some], train)
    usual, _ = nearest(images[:some], train)
    if dev.main:
        from common.plot import sheet

        sheet(samples[: SHOWN**2], folder / "samples.png", SHOWN)
        rows = torch.cat([samples[:some][:SHOWN], train.examples(index[:SHOWN].cpu())[0]])
        sheet(rows, folder / "neighbours.png", min(SHOWN, some))
    return {
        "test_frechet": frechet(truth, fake),
        "test_precision": precision,
        "test_recall": recall,
        "test_neighbour_ratio": float(away.median() / usual.median().clamp(min=1e-6)),  # copies
        "test_sample_seconds": seconds * 1000 / args.samples,  # for 1,000
    }
