"""Two sides that take turns in one process, and the ratio of their times; for the benchmarks."""

import statistics
import time
from collections.abc import Callable


def interleave(
    sides: list[Callable], rounds: int, warm_up: int = 2, clock: Callable = time.perf_counter
) -> list[list[float]]:
    """Seconds of each side, round by round; the first rounds only warm up."""
    times = [[] for _ in sides]
    for number in range(rounds + warm_up):
        order = list(zip(sides, times, strict=True))
        for side, values in order[:: 1 if number % 2 else -1]:  # neither side is always the first
            start = clock()
            side()
            if number >= warm_up:
                values.append(clock() - start)
    return times


def ratio(ours: list[float], theirs: list[float]) -> str:
    """Theirs over ours: of the medians, and the quartiles of the rounds."""
    pairs = sorted(b / a for a, b in zip(ours, theirs, strict=True))
    low, high = pairs[len(pairs) // 4], pairs[-1 - len(pairs) // 4]
    return f"{statistics.median(theirs) / statistics.median(ours):.2f} ({low:.2f} to {high:.2f})"


def beside(
    stepper: Callable, rounds: int, clock: Callable = time.perf_counter, note: str = ""
) -> None:
    """Prints the ratio at equal settings, and with ours as the script runs by default.

    `stepper(ours, default)` makes a side; theirs never has our defaults.
    """
    for name, default in (("equal", False), ("default", True)):
        sides = [stepper(True, default), stepper(False, False)]
        print(f"{name:>8}: {ratio(*interleave(sides, rounds, clock=clock))}{note}", flush=True)
