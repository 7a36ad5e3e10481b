"""Sums over steps, the smoothed loss, and the plateau report.

Each is a dataclass of plain numbers that a checkpoint carries, so that a resumed run reports what an uninterrupted one
would.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor


@dataclass
class MetricSums:
    """Adds up a model's metric sums and turns them into means."""

    sums: dict[str, float] = field(default_factory=dict)
    """"<kind>_loss_sum", "<kind>_correct", "<kind>_count" of each kind of prediction; others are only added up."""

    def add(self, metrics: Mapping[str, Tensor | float]) -> None:
        """Add one batch's sums."""
        for name, value in metrics.items():
            self.sums[name] = self.sums.get(name, 0.0) + float(value)

    def kinds(self) -> list[str]:
        """Return the kinds of prediction seen, such as "masked_lm"."""
        return [name.removesuffix("_count") for name, value in self.sums.items() if name.endswith("_count") and value]

    def means(self) -> dict[str, float]:
        """Return "<kind>_loss", "<kind>_accuracy", and "<kind>_perplexity" = exp(loss) for language modelling."""
        means = {}
        for kind in self.kinds():
            loss, correct, count = (self.sums.get(f"{kind}_{what}") for what in ("loss_sum", "correct", "count"))
            if loss is not None:
                means[f"{kind}_loss"] = loss / count
            if correct is not None:
                means[f"{kind}_accuracy"] = correct / count
            if loss is not None and kind.endswith("lm"):
                means[f"{kind}_perplexity"] = math.exp(min(loss / count, 700.0))
        return means

    def loss(self) -> float:
        """Return the sum over kinds of the mean loss."""
        return sum(self.sums[f"{kind}_loss_sum"] / self.sums[f"{kind}_count"] for kind in self.kinds())


@dataclass
class ExponentialAverage:
    """m_k = b m_(k-1) + (1 - b) x_k with b = 0.98, divided by its weight 1 - b^k to be unbiased from the start."""

    weighted_sum: float = 0.0
    """m_k."""
    weight: float = 0.0
    """1 - b^k."""

    def add(self, value: float) -> None:
        """Take one value."""
        self.weighted_sum = 0.98 * self.weighted_sum + 0.02 * value
        self.weight = 0.98 * self.weight + 0.02

    @property
    def value(self) -> float:
        """The average so far; NaN before the first value."""
        return self.weighted_sum / self.weight if self.weight else math.nan


@dataclass
class PlateauDetector:
    """Says once when a smoothed loss has stopped falling, and once when it falls again.

    A new low is at least half a per cent below the last one.
    """

    low: float | None = None
    """The last new low."""
    low_step: int = 0
    """Its step."""
    reported: bool = False
    """Whether the present plateau has been told."""

    def add(self, step: int, loss: float, patience_steps: int) -> str | None:
        """Take the smoothed loss of a step and return a message, or None where there is nothing to say.

        Args:
            step: number of the step.
            loss: smoothed loss.
            patience_steps: steps without a new low that make a plateau.
        """
        if self.low is None or loss < 0.995 * self.low:
            left, self.low, self.low_step, self.reported = self.reported, loss, step, False
            return f"step {step}: the loss left its plateau, now {loss:.4f}" if left else None
        if self.reported or step - self.low_step < patience_steps:
            return None
        self.reported = True
        return (
            f"step {step}: the loss has been on a plateau near {loss:.4f} since step {self.low_step}; "
            "training goes on (such phases may end by themselves)"
        )
