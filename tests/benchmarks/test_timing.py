from collections.abc import Callable

import pytest

from benchmarks.timing import Effort, Spread, interleave, ratios, spread, timed


def recording(log: list[str], name: str, seconds: float) -> Callable[[], float]:
    def launch() -> float:
        log.append(name)
        return seconds

    return launch


def test_contenders_are_launched_in_turn():
    log: list[str] = []
    contenders = {name: recording(log, name, 1.0) for name in "ABC"}
    seconds = interleave(contenders, Effort(seconds=0.0, min_rounds=3, max_rounds=9, warmup_rounds=2))
    assert "".join(log) == "ABC" * 5
    assert seconds == {name: [1.0] * 3 for name in "ABC"}


@pytest.mark.parametrize(("launch_seconds", "rounds"), [(1.0, 5), (0.1, 10), (1e-6, 40)])
def test_rounds_fit_the_time_between_their_bounds(launch_seconds: float, rounds: int):
    contenders = {name: recording([], name, launch_seconds) for name in "AB"}
    seconds = interleave(contenders, Effort(seconds=2.001, min_rounds=5, max_rounds=40, warmup_rounds=1))
    assert len(seconds["A"]) == len(seconds["B"]) == rounds


def test_effort_refuses_what_cannot_be_measured():
    with pytest.raises(ValueError, match="min_rounds"):
        Effort(min_rounds=3, max_rounds=2)
    with pytest.raises(ValueError, match="warmup_rounds"):
        Effort(warmup_rounds=0)


def test_spread_and_ratios():
    assert spread([4.0, 1.0, 2.0, 5.0, 3.0]) == Spread(2.0, 3.0, 4.0)
    assert spread([7.0]) == Spread(7.0, 7.0, 7.0)
    # Round by round: a noisy round that slows both contenders leaves their ratio alone.
    assert ratios([2.0, 20.0, 2.0], [1.0, 10.0, 1.0]) == Spread(2.0, 2.0, 2.0)


def test_timed_calls_the_work_once():
    log: list[str] = []
    assert timed(lambda: log.append("called"))() >= 0.0
    assert log == ["called"]
