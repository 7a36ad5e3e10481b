"""The benchmarks as pytest-benchmark sees them: one test a case, so that `-k`, storage and `compare` all work."""

import pytest

from benchmarks.comparison import OURS
from benchmarks.session import BenchmarkSession
from benchmarks.suites import Case
from benchmarks.table import csv_fields


class ReplayClock:
    """A clock that advances by measured durations: pytest-benchmark's own loop knows one function and no peers."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        """Return the clock's reading in seconds."""
        return self.now

    def advance(self, seconds: float) -> None:
        """Let `seconds` pass."""
        self.now += seconds


CLOCK = ReplayClock()


@pytest.mark.benchmark(timer=CLOCK)
def test_comparison(case: Case, benchmark, benchmark_session: BenchmarkSession):
    row = benchmark_session.measure(case)
    ours = row.seconds[OURS]
    benchmark.group = case.suite
    benchmark.extra_info.update({name: csv_fields(row, name) for name in row.seconds})
    replayed = iter(ours)
    benchmark.pedantic(lambda: CLOCK.advance(next(replayed)), rounds=len(ours))
