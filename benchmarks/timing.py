"""Interleaved timing: every contender is launched once a round, so that a noisy moment hits all of them alike."""

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

Launch = Callable[[], float]
"""Runs its work once and returns the seconds that it took, by its own account."""


def timed(work: Callable[[], object]) -> Launch:
    """Return a launch that calls `work` and measures the call."""

    def launch() -> float:
        start = time.perf_counter()
        work()
        return time.perf_counter() - start

    return launch


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How long to measure one comparison."""

    seconds: float = 2.0
    """Aimed-at length of the whole comparison, all contenders together."""
    min_rounds: int = 5
    """Rounds that are measured even where they take longer."""
    max_rounds: int = 200
    """Rounds after which more would teach nothing."""
    warmup_rounds: int = 2
    """Rounds that are run first and forgotten; the last of them sets the number of measured ones."""

    def __post_init__(self) -> None:
        if not (self.warmup_rounds >= 1 and 1 <= self.min_rounds <= self.max_rounds):
            raise ValueError(f"expected warmup_rounds >= 1 and 1 <= min_rounds <= max_rounds, got {self}")


def interleave(contenders: Mapping[str, Launch], effort: Effort) -> dict[str, list[float]]:
    """Measure every contender once a round, A B C A B C ..., and return the seconds of each, one entry a round.

    Args:
        contenders: name -> launch, in launching order.
        effort: warm-up rounds, and how many rounds to keep.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    collecting = gc.isenabled()
    gc.disable()
    try:
        for _ in range(effort.warmup_rounds):
            round_seconds = sum(launch() for launch in contenders.values())
        affordable = int(effort.seconds / max(round_seconds, 1e-9))
        for _ in range(min(max(affordable, effort.min_rounds), effort.max_rounds)):
            for name, launch in contenders.items():
                seconds[name].append(launch())
    finally:
        if collecting:
            gc.enable()
    return seconds


@dataclass(frozen=True)
class Spread:
    """A median and the quartiles around it."""

    low: float
    """First quartile."""
    median: float
    """Second quartile."""
    high: float
    """Third quartile."""


def spread(values: list[float]) -> Spread:
    """Return median and quartiles of at least one value."""
    if len(values) == 1:
        return Spread(values[0], values[0], values[0])
    return Spread(*statistics.quantiles(values, n=4, method="inclusive"))


def ratios(numerators: list[float], denominators: list[float]) -> Spread:
    """Return the spread of the round-by-round ratios of two contenders of one `interleave`."""
    return spread([above / below for above, below in zip(numerators, denominators, strict=True)])
