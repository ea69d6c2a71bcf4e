"""Classes of labelled examples: their names, and a test set where there is none."""

import argparse
from collections.abc import Hashable, Iterable, Sequence

import torch
from torch import Tensor

from common import counted, fail
from common.data.sources import split


def split_by(keys: Sequence[Hashable], share: float = 0.2) -> tuple[Tensor, Tensor]:
    """Two sorted index sets, the rest and a seeded `share` of the different `keys`: examples with
    the same key are in the same set."""
    groups = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    held_out = split(len(groups), share, 0)[1]
    held = torch.isin(torch.tensor([groups[key] for key in keys]), held_out)
    return (~held).nonzero().flatten(), held.nonzero().flatten()


def with_test(parts: dict, data: str, keys: Sequence[Hashable]) -> list[str]:
    """Gives `parts` a test set, in place, where there is none; returns what to say of it.

    It is the validation set where there is one, or else a seeded fifth of the training set;
    `keys` are those of `split_by`.
    """
    if "test" in parts:
        return []
    if "val" in parts:
        parts["test"] = parts.pop("val")
        return ["there is no test set, so the validation set is it"]
    if len(set(keys)) < 2:
        few = counted(len(set(keys)), "different example")
        fail(f"--data {data} holds {few}: that can't be split")
    whole = parts["train"]
    parts["train"], parts["test"] = (whole.take(indices) for indices in split_by(keys))
    return ["there is no test set, so a seeded fifth is it"]


def classes_in(names: Iterable[str], known: Sequence[str] = ()) -> list[str]:
    """The classes in order, whole numbers by their value; or the `known` ones of a network, where
    all are among them."""
    names = sorted(set(names))
    if all(name.lstrip("-").isdecimal() for name in names):
        names.sort(key=int)
    return list(known) if set(names) <= set(known) else names


def known_classes(args: argparse.Namespace) -> list[str]:
    """The classes of the checkpoint that the run goes on with; none where there isn't one."""
    return args.stored.get("dataset", {}).get("classes", [])


def check_classes(data: str, classes: Sequence[str], known: Sequence[str]) -> None:
    """Fails where a network is to go on with a data set that has a class it doesn't know."""
    if strange := sorted(set(classes) - set(known)) if known else []:
        fail(f"--data {data} has the class {strange[0]!r}, which the checkpoint's network doesn't "
             f"know: it knows {', '.join(known)}")  # fmt: skip
