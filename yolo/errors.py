"""What a detector gets wrong: the error analysis of Fig. 4 (after Hoiem et al. 2012).

Of each class the N surest detections are looked at, N being how many objects it has. Each is
correct (its class, IoU over 0.5), a localisation error (its class, IoU 0.1 to 0.5), similar (a
similar class, over 0.1), other (another class, over 0.1) or background (0.1 at most with anything).
Where the paper is silent, we follow Hoiem: a second box on an object is a localisation error, and
boxes on objects marked as difficult are passed over.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from yolo.model import box_iou

KINDS = ["correct", "localisation", "similar", "other", "background"]
ANIMALS, VEHICLES = "bird,cat,cow,dog,horse,person,sheep", "bicycle,boat,bus,car,motorbike,train"
VOC = f"{ANIMALS};aeroplane,{VEHICLES};chair,diningtable,sofa"
SIMILAR = {
    "shapes": "circle,ring,moon;triangle,arrow;star,cross;square,hourglass",
    "bccd": "none",
    **dict.fromkeys(("voc2007", "voc2012", "voc0712"), VOC),
}


def similar_classes(groups: str, classes: Sequence[str]) -> Tensor:
    """Which classes are similar, bool (K, K), from `a,b;c,d,e` or `none`.

    No class is similar to itself. Raises KeyError for a strange name.
    """
    similar = torch.zeros(len(classes), len(classes), dtype=torch.bool)
    for group in [] if groups == "none" else groups.split(";"):
        names = [name.strip() for name in group.split(",")]
        if strange := set(names) - set(classes):
            raise KeyError(min(strange))
        places = torch.tensor([classes.index(name) for name in names])
        similar[places[:, None], places] = True
    return similar.fill_diagonal_(False)


def breakdown(found: Sequence, truth: Sequence, similar: Tensor) -> dict[str, float]:
    """The share of each of the KINDS, averaged over the classes that were found at all.

    `found` holds for each image its boxes (n, 4), scores (n,) and labels (n,), `truth` its boxes
    (m, 4), labels (m,) and whether they are difficult (m,).
    """
    shares = []
    candidates = [[] for _ in similar]  # of each class: score, image, place in its list
    for image, (_, scores, labels) in enumerate(found):
        for place, (score, label) in enumerate(zip(scores.tolist(), labels.tolist(), strict=True)):
            candidates[label].append((score, image, place))
    for label in range(len(similar)):
        wanted = sum(int(((labels == label) & ~hard).sum()) for _, labels, hard in truth)
        taken, kinds = set(), []
        for _, image, place in sorted(candidates[label], key=lambda c: -c[0]):
            if len(kinds) == wanted:
                break
            kind, own = judge(found[image][0][place], truth[image], label, similar[label])
            if kind is None:
                continue
            again = kind == "correct" and (image, own) in taken
            kinds.append("localisation" if again else kind)
            taken.add((image, own))
        if kinds:
            shares.append([kinds.count(kind) / len(kinds) for kind in KINDS])
    total = torch.tensor(shares, dtype=torch.float64).view(-1, len(KINDS))
    return dict(zip(KINDS, (total.sum(0) / max(1, len(shares))).tolist(), strict=True))


def judge(box: Tensor, truth: Sequence, label: int, similar: Tensor) -> tuple[str | None, int]:
    """Which kind a detection is on its own, and the object of its class that it overlaps most."""
    boxes, labels, hard = truth
    if not len(labels):
        return "background", -1
    iou = box_iou(box, boxes)  # (m,)
    same = iou.where(labels == label, -1.0)
    best, own = same.max(0)
    if best > 0.1:
        if hard[own]:
            return None, -1
        return ("correct", int(own)) if best > 0.5 else ("localisation", -1)
    if (iou.where(similar[labels], 0.0) > 0.1).any():
        return "similar", -1
    return ("other" if (iou > 0.1).any() else "background"), -1
