"""You Only Look Once (Redmon, Divvala, Girshick, Farhadi 2016, arXiv:1506.02640).

Detection as one regression: a grid of S x S cells is laid over the image, and one pass of one
network says for every cell what is in it and where. Each cell has P predictors of a box (x, y, w,
h and a confidence) and one set of K class probabilities; the cell that holds an object's centre
answers for it. No windows, no proposals: the network sees the whole image for each decision.

Shapes: B batch, C channels, H and W pixels, S cells a side, P predictors of a cell (the paper's B),
K classes, M objects an image at most. An output is (B, S, S, 5P + K): x, y, w, h, confidence of
each predictor, then the classes.

Where the paper leaves a choice: the network puts out the roots of w and h, which Eq. 3 compares
(as Darknet does; a negative output then still is a box), and of several objects in one cell the
first listed is kept, as a cell has one set of classes. Fast YOLO's layers, which the paper only
counts, are those of the first file that Darknet released for it, with 256 linear units before
the 4,096.

Departures: `size` may differ from 448 pixels, and the grid is then still S x S. `yolov1_small` is
our own: a batch-norm backbone, and convolutions in place of the fully connected layers, so that
few images suffice and any S has the same weights.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# (channels, kernel, stride) of a convolution; "M" halves the resolution by max-pooling
YOLO = [(64, 7, 2), "M", (192, 3, 1), "M"]
YOLO += [(128, 1, 1), (256, 3, 1), (256, 1, 1), (512, 3, 1), "M"]
YOLO += [(256, 1, 1), (512, 3, 1)] * 4 + [(512, 1, 1), (1024, 3, 1), "M"]
YOLO += [(512, 1, 1), (1024, 3, 1)] * 2  # as far as this trained on ImageNet first (Sec. 2.2)
YOLO += [(1024, 3, 1), (1024, 3, 2), (1024, 3, 1), (1024, 3, 1)]
FAST = [(16, 3, 1), "M", (32, 3, 1), "M", (64, 3, 1), "M", (128, 3, 1), "M", (256, 3, 1), "M"]
FAST += [(512, 3, 1), "M", (1024, 3, 1), (1024, 3, 1), (1024, 3, 1)]


def convolutions(layers: list, in_channels: int = 3, norm: bool = False) -> nn.Sequential:
    """Convolutions, each with a leaky ReLU (Eq. 2), and poolings between them."""
    modules = []
    for layer in layers:
        if layer == "M":
            modules.append(nn.MaxPool2d(2))
            continue
        channels, kernel, stride = layer
        padding = (kernel - 1) // 2
        modules.append(nn.Conv2d(in_channels, channels, kernel, stride, padding, bias=not norm))
        modules += [nn.BatchNorm2d(channels)] if norm else []
        modules.append(nn.LeakyReLU(0.1, inplace=True))
        in_channels = channels
    return nn.Sequential(*modules)


class YOLOv1(nn.Module):
    """Convolutions down to a 64th of the resolution, then fully connected layers (Fig. 3).

    `hidden` are the sizes of linear units between the two, which Fast YOLO has.
    """

    def __init__(
        self,
        layers: list,
        num_classes: int = 20,
        grid: int = 7,
        boxes: int = 2,
        size: int = 448,
        hidden: tuple[int, ...] = (),
    ):
        super().__init__()
        self.grid, self.boxes = grid, boxes
        self.features = convolutions(layers)
        units = 1024 * (size // 64) ** 2
        linear = [nn.Linear(a, b) for a, b in zip((units, *hidden), hidden, strict=False)]
        last = hidden[-1] if hidden else units
        self.connected = nn.Sequential(
            *linear, nn.Linear(last, 4096), nn.LeakyReLU(0.1, inplace=True), nn.Dropout(0.5)
        )
        self.head = nn.Linear(4096, grid * grid * (5 * boxes + num_classes))
        initialise(self)

    # fmt: off
    def forward(self, x: Tensor) -> Tensor:             # (B, 3, H, W)
        """Images (B, 3, size, size) to the grid (B, S, S, 5P + K)."""
        x = self.features(x).flatten(1)                 # (B, 1024 * (H/64) * (W/64))
        x = self.connected(x)                           # (B, 4096)
        return self.head(x).unflatten(1, (self.grid, self.grid, -1))  # linear: no activation
    # fmt: on


class SmallYOLO(nn.Module):
    """Our own: batch norm everywhere, and a head of convolutions over the cells.

    A map of an eighth of the resolution is pooled to S x S cells; three convolutions there let
    each cell see its neighbours, and the last gives its numbers.
    """

    def __init__(self, num_classes: int = 20, grid: int = 7, boxes: int = 2, width: int = 24):
        super().__init__()
        self.grid, self.boxes = grid, boxes
        c = width
        layers = [(c, 3, 2), (c, 3, 1), "M", (2 * c, 3, 1), (2 * c, 3, 1), "M"]
        self.features = convolutions([*layers, (4 * c, 3, 1), (4 * c, 3, 1)], norm=True)
        self.cells = convolutions(
            [(8 * c, 3, 1), (4 * c, 1, 1), (8 * c, 3, 1), (8 * c, 3, 1)], 4 * c, norm=True
        )
        self.head = nn.Conv2d(8 * c, 5 * boxes + num_classes, 1)
        initialise(self)

    # fmt: off
    def forward(self, x: Tensor) -> Tensor:             # (B, 3, H, W)
        """Images (B, 3, H, W) to the grid (B, S, S, 5P + K)."""
        x = self.features(x)                            # (B, 4c, H/8, W/8)
        x = F.adaptive_max_pool2d(x, self.grid)         # (B, 4c, S, S)
        x = self.cells(x)                               # (B, 8c, S, S)
        return self.head(x).permute(0, 2, 3, 1)         # (B, S, S, 5P + K), linear
    # fmt: on


def initialise(model: nn.Module) -> None:
    """He's initial weights for leaky ReLUs; the paper names none. The head begins near zero."""
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(module.weight, 0.1, nonlinearity="leaky_relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    nn.init.normal_(model.head.weight, std=0.01)


def box_iou(a: Tensor, b: Tensor) -> Tensor:
    """IoU of boxes (..., 4) given by their corners; 0 where both are empty."""
    low, high = torch.maximum(a[..., :2], b[..., :2]), torch.minimum(a[..., 2:], b[..., 2:])
    overlap = (high - low).clamp(min=0).prod(-1)
    areas = (a[..., 2:] - a[..., :2]).prod(-1) + (b[..., 2:] - b[..., :2]).prod(-1)
    return overlap / (areas - overlap).clamp(min=1e-12)


def corners(predictors: Tensor, column: Tensor, row: Tensor, grid: int) -> Tensor:
    """Predictors (..., 5) of the cells at (column, row) to left, top, right, bottom (..., 4).

    x and y count from the cell's corner in cells, the others are shares of the image.
    """
    place = torch.stack([column, row], -1)
    centre, half = (predictors[..., :2] + place) / grid, predictors[..., 2:4].square() / 2
    return torch.cat([centre - half, centre + half], -1)


# fmt: off
def yolo_loss(
    output: Tensor, boxes: Tensor, labels: Tensor, num_boxes: int = 2,
    coord: float = 5.0, noobj: float = 0.5,
) -> Tensor:
    """Eq. 3, summed over an image and averaged over the batch.

    `output` (B, S, S, 5P + K) is the network's, `num_boxes` its P. `boxes` (B, M, 4) are left,
    top, right, bottom in shares of the image, `labels` (B, M) classes, and -1 where there is none.
    """
    batch, grid = output.shape[:2]
    cells = output.flatten(1, 2)                                  # (B, S*S, 5P + K)
    predictors = cells[..., : 5 * num_boxes].unflatten(2, (num_boxes, 5))  # (B, S*S, P, 5)
    centre = (boxes[..., :2] + boxes[..., 2:]) / 2 * grid         # (B, M, 2), in cells
    column, row = centre.floor().clamp(0, grid - 1).unbind(-1)    # (B, M)
    cell = (row * grid + column).long()                           # (B, M)

    number = torch.arange(boxes.shape[1], device=cells.device).expand_as(cell)
    number = number.where(labels >= 0, boxes.shape[1])            # padding loses to any object
    first = number.new_full((batch, grid * grid), boxes.shape[1])
    first = first.scatter_reduce(1, cell, number, "amin")         # (B, S*S): the first of each cell
    chosen = (first.gather(1, cell) == number) & (labels >= 0)    # (B, M)
    image, m = chosen.nonzero(as_tuple=True)                      # (N,): the objects that count
    cell, column, row = cell[image, m], column[image, m], row[image, m]
    truth, centre = boxes[image, m], centre[image, m]             # (N, 4), (N, 2)

    found = predictors[image, cell]                               # (N, P, 5)
    with torch.no_grad():  # the better box is responsible, and how good it is its target
        iou = box_iou(corners(found, column[:, None], row[:, None], grid), truth[:, None])
        iou, best = iou.max(1)                                    # (N,), the first of equals
    own = found[torch.arange(len(best), device=best.device), best]  # (N, 5)
    roots = (truth[:, 2:] - truth[:, :2]).clamp(min=0).sqrt()     # (N, 2)
    places = (own[:, :2] - (centre - torch.stack([column, row], 1))).square().sum()
    sizes = (own[:, 2:4] - roots).square().sum()
    objects = (own[:, 4] - iou).square().sum()
    empty = torch.ones_like(predictors[..., 4]).index_put((image, cell, best), iou.new_zeros(()))
    nothing = (predictors[..., 4].square() * empty).sum()         # of all that aren't responsible
    wanted = F.one_hot(labels[image, m].long(), cells.shape[2] - 5 * num_boxes)  # (N, K)
    classes = (cells[image, cell, 5 * num_boxes :] - wanted).square().sum()
    return (coord * (places + sizes) + objects + noobj * nothing + classes) / batch  # Eq. 3


def decode(output: Tensor, num_boxes: int = 2) -> tuple[Tensor, Tensor]:
    """The grid (B, S, S, 5P + K) to candidate boxes (B, S*S*P, 4) and scores (B, S*S*P, K).

    Boxes are left, top, right, bottom in shares of the image, clipped to it; a score is the
    class's probability times the box's confidence (Eq. 1), negative ones counted as zero.
    """
    place = torch.arange(output.shape[1], device=output.device)
    row, column = torch.meshgrid(place, place, indexing="ij")     # (S, S)
    row, column = (t[..., None].expand(-1, -1, num_boxes) for t in (row, column))  # (S, S, P)
    predictors = output[..., : 5 * num_boxes].unflatten(3, (num_boxes, 5))  # (B, S, S, P, 5)
    boxes = corners(predictors, column, row, len(place)).clamp(0, 1)  # (B, S, S, P, 4)
    classes = output[..., None, 5 * num_boxes :].clamp(min=0)     # (B, S, S, 1, K)
    scores = predictors[..., 4:].clamp(min=0) * classes           # (B, S, S, P, K)
    return boxes.flatten(1, 3), scores.flatten(1, 3)
# fmt: on


def yolov1(num_classes: int = 20, grid: int = 7, boxes: int = 2, size: int = 448) -> YOLOv1:
    """Fig. 3: 24 convolutions and two fully connected layers; 271,703,550 parameters."""
    return YOLOv1(YOLO, num_classes, grid, boxes, size)


def yolov1_tiny(num_classes: int = 20, grid: int = 7, boxes: int = 2, size: int = 448) -> YOLOv1:
    """Fast YOLO (Sec. 2.1): 9 convolutions."""
    return YOLOv1(FAST, num_classes, grid, boxes, size, hidden=(256,))


def yolov1_small(
    num_classes: int = 20, grid: int = 7, boxes: int = 2, size: int = 448, width: int = 24
) -> SmallYOLO:
    """Not in the paper. For images of any size, so that `size` changes nothing."""
    return SmallYOLO(num_classes, grid, boxes, width)


MODELS = {"yolov1": yolov1, "yolov1_tiny": yolov1_tiny, "yolov1_small": yolov1_small}
