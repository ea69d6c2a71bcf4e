"""Says what is in image files with a trained network, or shows what it has learnt.

python alexnet/sample.py photo.jpg photos/   # your own images: five likeliest classes of each
python alexnet/sample.py                     # test predictions, first filters, nearest neighbours
python alexnet/sample.py --weights imagenet photo.jpg   # ImageNet's classes, by alexnet_owt
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alexnet import train
from alexnet.model import MODELS
from common import classify, cli
from common.classify import colour
from common.data.images import ImageSet
from common.data.sources import split
from common.device import Device
from common.run import progress_bar

ROWS, COLUMNS = 8, 6  # test images, and neighbours of each
CANDIDATES = 10_000  # training images among which neighbours are looked for


def show_filters(model: nn.Module, out: Path) -> None:
    """Writes filters.png: the first layer's filters (Fig. 3), each stretched to 0 to 1.

    The upper half of AlexNet's is that of the first card.
    """
    from common.plot import image_grid

    filters = model.features[0].weight.detach().float().cpu()  # (C, 3, h, w)
    low, high = filters.amin((1, 2, 3), keepdim=True), filters.amax((1, 2, 3), keepdim=True)
    tiles = F.pad((filters - low) / (high - low).clamp(min=1e-8), [1] * 4, value=1.0)
    rows = [torch.cat(list(row), 2) for row in tiles.split(16)]  # (3, h + 2, 16 w + 32)
    heading = f"the {len(filters)} filters of {filters.shape[2]}x{filters.shape[3]} of conv1"
    image_grid([torch.cat(rows, 1)], out / "filters.png", size=8.0, heading=heading)
    print(f"{heading}; wrote {out / 'filters.png'}")


@torch.inference_mode()
def last_hidden(model: nn.Module, images: ImageSet, indices: Tensor, dev: Device) -> Tensor:
    """What the last layer sees of the chosen images: (N, D), float32."""
    *_, last = (m for m in model.modules() if isinstance(m, nn.Linear))
    seen = []
    hook = last.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].float()))
    parts = indices.split(250)
    for part in progress_bar(parts, dev, "features", len(parts)):
        with dev.autocast():
            model(images.examples(part)[0])
    hook.remove()
    return torch.cat(seen)


def nearest(queries: Tensor, candidates: Tensor, count: int) -> Tensor:
    """Places (N, count) of the candidates (M, D) nearest to each query (N, D), nearest first."""
    return torch.cdist(queries, candidates).topk(count, largest=False).indices


@torch.inference_mode()
def show_neighbours(
    model: nn.Module, known: ImageSet, test: ImageSet, dev: Device, out: Path
) -> float:
    """Writes neighbours.jpg (Fig. 4, right): test images, and the training images nearest to each
    in the last hidden layer. Returns the share of neighbours that are of the test image's class.
    """
    from common.plot import image_grid

    random = torch.Generator().manual_seed(0)
    queries = torch.randperm(len(test), generator=random)[:ROWS]
    pool = split(len(known), min(1.0, CANDIDATES / len(known)), "neighbours")[1]
    features = (last_hidden(model, *part, dev) for part in ((test, queries), (known, pool)))
    found = pool[nearest(*features, min(COLUMNS, len(pool))).cpu()]  # (ROWS, COLUMNS)
    pictures, titles, classes, same = [], [], test.facts["classes"], 0
    for query, places in zip(queries, found, strict=True):
        images, labels = test.examples(query[None])
        near, near_labels = known.examples(places)
        pictures += colour(images, test.facts) + colour(near, test.facts)
        titles += [f"{classes[k]}" for k in [*labels.tolist(), *near_labels.tolist()]]
        same += int((near_labels == labels).sum())
    heading = "test images (left), and the training images nearest to each"
    image_grid(pictures, out / "neighbours.jpg", titles, found.shape[1] + 1, 1.0, heading)
    share = same / found.numel()
    print(f"{share:.0%} of the neighbours are of the same class; wrote {out / 'neighbours.jpg'}")
    return share


def show_more(model: nn.Module, parts: tuple, dev: Device, out: Path) -> dict:
    """Filters and neighbours; returns the share of these that are of the test image's class."""
    show_filters(model, out)
    return {"same_class": show_neighbours(model, parts[0], parts[2], dev, out)}


@cli.command
def main(argv: list[str] | None = None) -> dict:
    """Classifies the inputs, or shows what the network has learnt; returns what it found."""
    weights = classify.Published(train.PUBLISHED, train.parse_args)
    made = "filters.png", "neighbours.jpg"
    return classify.sample("alexnet", __doc__, MODELS, train.build, argv, show_more, weights, made)


if __name__ == "__main__":
    main()
