"""Learning-rate schedules: the factor by which the peak learning rate is multiplied, as pure functions.

Linear, cosine and constant have the values of the Hugging Face schedules of those names: `step` counts the updates done
before this one, so that with warm-up the first update has factor zero.
"""

import math
from dataclasses import dataclass

from fastssl.training.config import TrainingConfig


def linear_factor(step: int, warmup_steps: int, total_steps: int) -> float:
    """Return s / w in warm-up, then (n - s) / (n - w), for step s, w warm-up steps and n steps in all."""
    if step < warmup_steps:
        return step / warmup_steps
    return max(0.0, (total_steps - step) / max(1, total_steps - warmup_steps))


def cosine_factor(step: int, warmup_steps: int, total_steps: int) -> float:
    """Return s / w in warm-up, then (1 + cos(pi (s - w) / (n - w))) / 2 (Loshchilov and Hutter, arXiv 1608.03983)."""
    if step < warmup_steps:
        return step / warmup_steps
    progress = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    return 0.5 * (1.0 + math.cos(math.pi * progress))


def constant_factor(step: int, warmup_steps: int) -> float:
    """Return s / w in warm-up, then 1."""
    return step / warmup_steps if step < warmup_steps else 1.0


def warmup_stable_decay_factor(step: int, warmup_steps: int, decay_steps: int, total_steps: int) -> float:
    """Return s / w in warm-up, 1 until the last `decay_steps` d, then (n - s) / d (MiniCPM, arXiv 2404.06395)."""
    rising = constant_factor(step, warmup_steps)
    falling = max(0.0, (total_steps - step) / decay_steps) if decay_steps else 1.0
    return min(rising, falling, 1.0)


def time_budget_factor(fraction: float, warmup_fraction: float) -> float:
    """Return the linear schedule over the used fraction of a time budget (arXiv 2212.14034, section 4.3)."""
    if fraction < warmup_fraction:
        return fraction / warmup_fraction
    return max(0.0, (1.0 - fraction) / max(1e-9, 1.0 - warmup_fraction))


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """The learning rate of a run.

    `learning_rate(step, elapsed_seconds)` is a pure function; only the time-budget schedule reads the second argument.
    """

    config: TrainingConfig
    """The settings of the run."""
    total_steps: int | None
    """Optimizer steps in all; None where only a time budget ends the run."""

    @property
    def warmup_steps(self) -> int:
        """Steps of warm-up: warmup_steps, or else warmup_ratio of all steps, rounded up."""
        if self.config.warmup_steps or self.total_steps is None:
            return self.config.warmup_steps
        return math.ceil(self.config.warmup_ratio * self.total_steps)

    def learning_rate(self, step: int, elapsed_seconds: float = 0.0) -> float:
        """Return the learning rate of the update that follows `step` finished ones.

        In warm-up it rises from zero to the peak; then the factor f of the schedule gives min + f (peak - min).
        """
        peak, lowest = self.config.learning_rate, self.config.min_learning_rate
        factor = self._factor(step, elapsed_seconds)
        return peak * factor if self._warms_up(step, elapsed_seconds) else lowest + factor * (peak - lowest)

    def _warms_up(self, step: int, elapsed_seconds: float) -> bool:
        if self.config.scheduler != "time_budget" or self.config.warmup_steps:
            return step < self.warmup_steps
        return self._used_fraction(elapsed_seconds) < self.config.warmup_ratio

    def _factor(self, step: int, elapsed_seconds: float) -> float:
        warmup = self.warmup_steps
        match self.config.scheduler:
            case "linear":
                return linear_factor(step, warmup, self.total_steps)
            case "cosine":
                return cosine_factor(step, warmup, self.total_steps)
            case "constant":
                return constant_factor(step, warmup)
            case "wsd":
                decay_steps = math.ceil(self.config.decay_ratio * self.total_steps)
                return warmup_stable_decay_factor(step, warmup, decay_steps, self.total_steps)
        fraction = self._used_fraction(elapsed_seconds)
        if self.config.warmup_steps:
            return min(constant_factor(step, warmup), time_budget_factor(fraction, 0.0))
        return time_budget_factor(fraction, self.config.warmup_ratio)

    def _used_fraction(self, elapsed_seconds: float) -> float:
        return elapsed_seconds / (60.0 * self.config.time_budget_minutes)
