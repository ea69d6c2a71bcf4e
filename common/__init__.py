"""What changes with the machine: flags, device, run folders, plots and data sets.

Scripts call this package; it never calls back, and it knows no model of any milestone.
"""

import argparse
import difflib
import hashlib
import os
import sys
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn


class Flags(argparse.Namespace):
    """The flags of a command, which can't be changed; `but` makes a copy with other values."""

    def __init__(self, **values: Any):
        vars(self).update(values)

    def __setattr__(self, name: str, value: Any):
        raise AttributeError(f"flags don't change after parsing: {name}")

    def but(self, **values: Any) -> "Flags":
        """A copy in which some flags have other values."""
        return Flags(**vars(self) | values)


def fail(message: str, any_rank: bool = False) -> NoReturn:
    """Ends with one line on stderr and exit status 2: for mistakes a user can mend.

    Of several processes only rank 0 prints, unless `any_rank`: for what others may not see.
    """
    if any_rank or os.environ.get("RANK", "0") == "0":
        print("error:", " ".join(str(message).split()), file=sys.stderr, flush=True)
    raise SystemExit(2)


def nearest(name: str, known: Sequence[str]) -> str | None:
    """The one of `known` that is most like a name, in any case; None if none is."""
    lowered = {other.lower(): other for other in reversed(known)}
    near = difflib.get_close_matches(name.lower(), lowered, n=1, cutoff=0.3)
    return lowered[near[0]] if near else None


def unknown(what: str, name: object, known: Iterable[object]) -> str:
    """The message for a name (or number) that is not among `known`, with the nearest that is."""
    name, known = str(name), [str(one) for one in known]
    near = nearest(name, known)
    hint = f"did you mean {near}? " if near else ""
    return f"unknown {what} {name!r}: {hint}There are {', '.join(known)}"


def seed_of(*key: int | str) -> int:
    """A 63-bit seed from a key such as (seed, epoch, step); near keys give unrelated seeds."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def counted(count: int, one: str, many: str = "") -> str:
    """A number of things in words: "1 image", "2 images", "3 classes"."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"
