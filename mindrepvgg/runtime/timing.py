"""Timing side by side: contestants take turns, so that a slow spell of the machine meets all of them."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import TypeVar

import numpy as np

Name = TypeVar("Name")
Value = TypeVar("Value")


def turns(names: Collection[Name], rounds: int, warmup: int = 0, rest: float = 0.0) -> Iterator[tuple[Name, bool]]:
    """Yield whose turn it is: everybody's once a round, in an order that is shuffled for each round.

    Args:
        names: the contestants. Who is removed while the turns go on gets none from the next round on.
        rounds: how many rounds count.
        warmup: rounds before them, which do not count.
        rest: seconds to wait before each turn.

    Yields:
        (name, whether the turn counts).
    """
    shuffle = random.Random(0).shuffle
    for number in range(warmup + rounds):
        order = list(names)
        shuffle(order)
        for name in order:
            time.sleep(rest)
            yield name, number >= warmup


def take_turns(
    contestants: Mapping[Name, Callable[[], Value]], rounds: int, warmup: int = 0, rest: float = 0.0
) -> dict[Name, list[Value]]:
    """Call each contestant once a round.

    Args:
        contestants: name -> a function that does one turn and returns what was measured, as `timed` makes one.
        rounds, warmup, rest: see `turns`.

    Returns:
        Name -> the values of the rounds that count.
    """
    values: dict[Name, list[Value]] = {name: [] for name in contestants}
    for name, counts in turns(contestants, rounds, warmup, rest):
        value = contestants[name]()
        if counts:
            values[name].append(value)
    return values


def timed(call: Callable, count: int = 1, clock: Callable[[], float] = time.perf_counter) -> Callable[[], float]:
    """Make a function that calls `call` `count` times and returns the seconds of one call, by `clock`."""

    def seconds() -> float:
        start = clock()
        for _ in range(count):
            call()
        return (clock() - start) / count

    return seconds


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Return the lower quartile, the median and the upper quartile."""
    low, median, high = np.percentile(values, (25, 50, 75)).tolist()
    return low, median, high


def times_as_fast(own: Sequence[float], other: Sequence[float]) -> float:
    """Return the median over the rounds of the other's seconds over one's own."""
    return statistics.median(b / a for a, b in zip(own, other, strict=True))
