"""The two little worlds of the 1986 paper: patterns that may be symmetrical, and two families.

A world is whole in memory, and one batch: the paper adds up the gradient over all cases before it
changes a weight. An epoch of the script is SWEEPS such steps.
"""

import itertools

import torch
from torch import Tensor

from common import cli, fail
from common.data.sources import say_parts, split
from common.device import Device

SWEEPS = 25  # of all cases: an epoch
WORLDS = {"symmetry": "symmetry", "families": "family_trees"}  # and the networks of Fig. 1 and 3
TOLERANCES = {"symmetry": 0.0, "families": 0.2}
RELATIONS = ("father", "mother", "husband", "wife", "son", "daughter")
RELATIONS += ("uncle", "aunt", "brother", "sister", "nephew", "niece")
# Fig. 2: the grandparents, two couples; their children with husband or wife; the grandchildren.
# In each tree people stand at the same places, so that equal places are isomorphic.
ENGLISH = ("Christopher", "Penelope", "Andrew", "Christine", "Margaret", "Arthur")
ENGLISH += ("Victoria", "James", "Jennifer", "Charles", "Colin", "Charlotte")
ITALIANS = ("Roberto", "Maria", "Pierro", "Francesca", "Gina", "Emilio")
ITALIANS += ("Lucia", "Marco", "Angela", "Tomaso", "Alfonso", "Sophia")
PEOPLE = ENGLISH + ITALIANS
WOMEN = {1, 3, 4, 6, 8, 11}  # places in a tree
COUPLES = ((0, 1), (2, 3), (5, 4), (7, 6), (9, 8))  # husband and wife
CHILDREN = {
    (0, 1): (5, 6),
    (2, 3): (7, 8),
    (7, 6): (10, 11),
}  # a son and a daughter, or the reverse


def relatives(person: int, relation: str) -> set[int]:
    """Who of a tree is the `relation` of the person at a place: none, one, or two of them."""
    spouse = {a: b for couple in COUPLES for a, b in (couple, couple[::-1])}
    parents = {child: set(couple) for couple, some in CHILDREN.items() for child in some}
    children = {p: set(some) for couple, some in CHILDREN.items() for p in couple}

    def siblings(p: int) -> set[int]:
        return {q for q in parents if parents[q] == parents.get(p)} - {p}

    def with_spouses(people: set[int]) -> set[int]:
        return people | {spouse[p] for p in people if p in spouse}

    own = siblings(person)
    older = set().union(*(siblings(p) for p in parents.get(person, ())))
    # By marriage, too: Colin's aunts are his father's sister and the wife of his mother's brother.
    younger = set().union(*(children.get(p, set()) for p in own | siblings(spouse.get(person, -1))))
    kinds = {
        ("father", "mother"): parents.get(person, set()),
        ("husband", "wife"): {spouse[person]} if person in spouse else set(),
        ("son", "daughter"): children.get(person, set()),
        ("uncle", "aunt"): with_spouses(older),
        ("brother", "sister"): own,
        ("nephew", "niece"): younger,
    }
    (names,) = (names for names in kinds if relation in names)
    return {p for p in kinds[names] if (p in WOMEN) == (relation == names[1])}


def family_facts() -> tuple[list[tuple[int, int]], Tensor, Tensor]:
    """All questions (person, relation) that have an answer: 104, with inputs and answers.

    Inputs are (104, 36), the person and then the relation; answers (104, 24), as many ones as there
    are such relatives: 112 triples in all.
    """
    asked, rows = [], []
    for tree, (place, relation) in itertools.product(
        (0, 12), itertools.product(range(12), RELATIONS)
    ):
        if found := relatives(place, relation):
            asked.append((tree + place, RELATIONS.index(relation)))
            rows.append([float(p - tree in found) for p in range(24)])
    inputs = torch.zeros(len(asked), 36)
    for row, (person, relation) in zip(inputs, asked, strict=True):
        row[person] = row[24 + relation] = 1
    return asked, inputs, torch.tensor(rows)


def patterns() -> tuple[Tensor, Tensor]:
    """The 64 patterns of six zeros and ones (64, 6), and 1 for the eight symmetrical (64, 1)."""
    inputs = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 6)
    return inputs, (inputs == inputs.flip(1)).all(1, keepdim=True).float()


class World:
    """A part of a world: inputs (B, N) and what the output units should be (B, K)."""

    def __init__(self, part: str, inputs: Tensor, targets: Tensor, facts: dict, dev: Device):
        self.part, self.facts, self.dev = part, facts, dev
        self.inputs, self.targets = inputs.to(dev.device), targets.to(dev.device)
        self.sweeps = 1

    def __len__(self) -> int:
        return len(self.inputs)

    def batches(self, _batch_size: int) -> list[tuple[Tensor, Tensor]]:
        """All cases at once, for one epoch of training or for evaluation."""
        return [(self.inputs, self.targets)] * self.sweeps

    def once(self) -> "World":
        """The same part, to be measured."""
        return World(self.part, self.inputs, self.targets, self.facts, self.dev)


class Answers:
    """Counts of cases that are answered: each output unit is on the right side of 0.5."""

    def __init__(self, world: World):
        self.part, self.loss, self.right, self.count = world.part, 0.0, 0, len(world)

    def add(self, loss: Tensor, logits: Tensor, targets: Tensor) -> None:
        """Of a batch the sum of the errors, logits (B, K) and targets (B, K)."""
        self.loss += float(loss)
        self.right += int(((logits > 0) == (targets > 0.5)).all(1).sum())

    def metrics(self, _picture: object = None) -> dict[str, float]:
        """The error of a case (Eq. 3), and the share of cases that are answered."""
        return {
            f"{self.part}_loss": self.loss / self.count,
            f"{self.part}_accuracy": self.right / self.count,
        }


def load_world(args: cli.Flags, dev: Device) -> tuple[World, None, World]:
    """The training and test set of --data.

    Of the families four facts, drawn by the seed, are the test set; of the patterns all are both.
    """
    if dev.world > 1:
        fail(f"torchrun: {args.data} is one batch, in one process")
    facts = {"kind": "world", "tolerance": TOLERANCES[args.data], "classes": []}
    if args.data == "symmetry":
        inputs, targets = patterns()
        rest = test = torch.arange(64)
    else:
        _, inputs, targets = family_facts()
        rest, test = split(len(inputs), 4 / len(inputs), "facts", args.seed)
    if args.limit and args.limit < len(rest):
        rest = rest[split(len(rest), args.limit / len(rest), "limit", args.seed)[1]]
    parts = {
        name: World(name, inputs[some], targets[some], facts, dev)
        for name, some in (("train", rest), ("test", test))
    }
    parts["train"].sweeps = SWEEPS
    note = "all 64 are both" if args.data == "symmetry" else "the seed draws the test set"
    say_parts(args, dev, parts, "cases", note)
    return parts["train"], None, parts["test"]
