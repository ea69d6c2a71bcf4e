"""Shares of the peak learning rate, by the share `done` of the training that is over."""

import math


def cosine(done: float, begin: float = 0.0) -> float:
    """Half a cosine, from 1 at `begin` down to 0 at the end."""
    return (1 + math.cos(math.pi * (done - begin) / (1 - begin))) / 2


def warmup_and_cosine(done: float, warmup: float = 0.1) -> float:
    """Rises in a straight line for a share `warmup` of the training, then half a cosine to 0."""
    return min(done / warmup, cosine(done, warmup))


def warmup_and_line(done: float, warmup: float = 0.1) -> float:
    """Rises in a straight line for a share `warmup` of the training, then falls in one to 0."""
    return max(0.0, min(done / warmup, (1 - done) / (1 - warmup)))
