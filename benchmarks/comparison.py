"""One row of the report: fastssl and its peers on one case, what it costs at least, and how it is checked."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from benchmarks.limits import Limit
from benchmarks.timing import Effort, Launch, Spread, interleave, ratios, spread

OURS = "fastssl"
"""Name of our own contender in every comparison."""

LIMIT = "limit"
"""Name under which the machine's own rate is measured among the contenders."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """fastssl beside its peers on one case, ready to be launched."""

    contenders: Mapping[str, Launch]
    """Name -> launch; `OURS` is among them."""
    check: Callable[[], None]
    """Raises AssertionError unless every contender that claims the same mathematics gives the same numbers."""
    work: float = 0.0
    """What one launch must do at least: useful FLOPs, bytes read and written once, or tokens."""
    unit: str = ""
    """ "FLOP", "B" or "token"; empty where nothing is counted."""
    limit: Limit | None = None
    """What the machine gives for such work, in the same unit; None where the machine has no rate for it."""
    memory: Mapping[str, Callable[[], Mapping[str, Tensor]]] = field(default_factory=dict)
    """Name -> work whose peak memory is to be reported as well."""
    effort: Effort | None = None
    """How long to measure, where the case knows better than the run's options."""
    finish: Callable[[], str] = lambda: ""
    """Called after the measurement: checks what only the end can show, writes further results, returns a remark."""

    def measure(self, effort: Effort) -> dict[str, list[float]]:
        """Return the seconds of every contender, and of `LIMIT` where there is one, round by round."""
        limit = {} if self.limit is None else {LIMIT: self.limit.launch}
        return interleave({**self.contenders, **limit}, self.effort or effort)


@dataclass(frozen=True, kw_only=True)
class Row:
    """A measured comparison."""

    suite: str
    """Name of the suite, such as "attention"."""
    case: str
    """Name of the case in its suite, such as "8x128"."""
    seconds: Mapping[str, list[float]]
    """Contender -> seconds, round by round."""
    work: float = 0.0
    """As in `Comparison`."""
    unit: str = ""
    """As in `Comparison`."""
    limit_work: float = 0.0
    """Work of one launch of the limit; 0 where there is none."""
    limit_name: str = ""
    """What the limit is, where it is not the CPU's sgemm or copy."""
    memory_bytes: Mapping[str, int] = field(default_factory=dict)
    """Contender -> peak memory beyond what was there before its launch and what it returns."""
    remark: str = ""
    """What a table cannot hold, in a sentence."""

    @property
    def peers(self) -> list[str]:
        """Every contender but fastssl."""
        return [name for name in self.seconds if name not in (OURS, LIMIT)]

    def time(self, contender: str) -> Spread:
        """Seconds of one launch."""
        return spread(self.seconds[contender])

    def speedup(self, peer: str) -> Spread:
        """How many times as long as fastssl the peer takes, round by round."""
        return ratios(self.seconds[peer], self.seconds[OURS])

    def rate(self, contender: str) -> float | None:
        """Work per second at the median time; None where nothing is counted."""
        return self.work / self.time(contender).median if self.unit else None

    def share(self, contender: str) -> float | None:
        """Rate of a contender as a share of the machine's, which was measured in the same rounds; None without."""
        if not self.limit_work:
            return None
        return ratios(self.seconds[LIMIT], self.seconds[contender]).median * self.work / self.limit_work
