"""What a launch costs on a device: by events on a GPU, whose host runs ahead; by the host's clock elsewhere."""

import itertools
import math
import time
from collections.abc import Callable, Sequence
from typing import Protocol

import torch

from benchmarks.timing import Launch

Prepared = Callable[[], Callable[[], object]]
"""Makes ready what must not be measured, and returns the work to be measured."""

COLD_SHARE = 4
"""Inputs of all sets together, in sizes of the L2 cache: what a launch reads was pushed out by the others."""
MAX_SETS = 64
_MAX_HEAD_START_SECONDS = 5e-3
_CYCLES_PER_SECOND = 2e9
"""Of a multiprocessor at most, or nearly: a slower one sleeps longer, which does no harm."""


class Clock(Protocol):
    """Measures work on one device."""

    def seconds(self, work: Callable[[], object], head_start_seconds: float) -> tuple[float, float]:
        """Run work and return the seconds that the device took, and those until the host had handed it over.

        Args:
            work: runs on the device.
            head_start_seconds: how long the device shall wait first, so that the host can hand over everything.
        """


class HostClock:
    """For a device that is done when the call returns."""

    def seconds(self, work: Callable[[], object], head_start_seconds: float) -> tuple[float, float]:
        """Run work and return its seconds, twice: nothing runs ahead here."""
        del head_start_seconds
        start = time.perf_counter()
        work()
        elapsed = time.perf_counter() - start
        return elapsed, elapsed


class CudaClock:
    """Events on the current stream, behind a kernel that only waits.

    Without the wait, a short kernel would be measured together with the time that Python takes to launch it. Before it,
    twice as much is read as the L2 cache holds: inputs that rotate are not enough where a forward pass that is not
    measured has just read them, or where results come to lie where the last ones did. What is read need not be written
    back while the clock runs.
    """

    def __init__(self) -> None:
        self._start, self._end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        cache = torch.cuda.get_device_properties(torch.cuda.current_device()).L2_cache_size
        self._other = torch.zeros(2 * cache // 4, dtype=torch.int32, device="cuda")

    def seconds(self, work: Callable[[], object], head_start_seconds: float) -> tuple[float, float]:
        """Run work and return the seconds between the events around it, and those of the host."""
        torch.cuda.synchronize()
        self._other.max()
        if head_start_seconds > 0:
            torch.cuda._sleep(int(head_start_seconds * _CYCLES_PER_SECOND))
        self._start.record()
        began = time.perf_counter()
        work()
        handed_over = time.perf_counter() - began
        self._end.record()
        self._end.synchronize()
        return self._start.elapsed_time(self._end) * 1e-3, handed_over


def clock_of(device: torch.device) -> Clock:
    """Return the clock of a device."""
    return CudaClock() if device.type == "cuda" else HostClock()


def number_of_sets(device: torch.device, bytes_of_a_set: int) -> int:
    """Return how many sets of inputs to rotate, so that none of them is found in the cache; at least two."""
    if device.type != "cuda":
        return 2
    cache = torch.cuda.get_device_properties(device).L2_cache_size
    return min(max(2, math.ceil(COLD_SHARE * cache / max(bytes_of_a_set, 1)) + 1), MAX_SETS)


def rotating(works: Sequence[Prepared], clock: Clock) -> Launch:
    """Return a launch that takes the works in turn, one a launch, each on inputs of its own.

    The head start is one and a half times what the host needed at best. A launch that waits for the device by itself
    is measured with its wait, as its user would feel it.
    """
    turns, best_host_seconds = itertools.cycle(works), math.inf

    def launch() -> float:
        nonlocal best_host_seconds
        work = next(turns)()
        head_start = min(1.5 * best_host_seconds, _MAX_HEAD_START_SECONDS) if best_host_seconds < math.inf else 0.0
        seconds, host_seconds = clock.seconds(work, head_start)
        best_host_seconds = min(best_host_seconds, host_seconds)
        return seconds

    return launch
