"""What the metrics.jsonl of a run tells: training loss and held-out score over epochs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fastssl.training.log import METRICS_FILE, read_metrics

_SMOOTHED_OVER_EPOCHS = 0.25


@dataclass(frozen=True, kw_only=True)
class RunCurve:
    """Training loss and held-out score of one run. R lines of training, K evaluations."""

    steps: np.ndarray
    """(R) int64: optimizer steps done at each line."""
    epochs: np.ndarray
    """(R) float64: passes over the data at each line."""
    losses: np.ndarray
    """(R) float64: mean training loss over the steps since the line before."""
    score_epochs: np.ndarray
    """(K) float64: passes over the data at each evaluation."""
    scores: np.ndarray
    """(K) float64: the held-out score."""

    @classmethod
    def read(cls, directory: Path, metric: str) -> RunCurve:
        """Read the curve of a run.

        Args:
            directory: of the run.
            metric: name of the held-out score, with or without "eval_".

        Raises:
            ValueError: where the run has no line of training.
        """
        rows = read_metrics(directory / METRICS_FILE)
        trained = [row for row in rows if "loss" in row]
        if not trained:
            raise ValueError(f"{directory / METRICS_FILE} has no line of training; lower --logging-steps")
        name = f"eval_{metric.removeprefix('eval_')}"
        evaluated = [row for row in rows if name in row]
        # Epochs have equally many steps; evaluations note their step alone.
        epochs_per_step = trained[-1]["epoch"] / trained[-1]["step"]
        return cls(
            steps=np.array([row["step"] for row in trained], dtype=np.int64),
            epochs=np.array([row["epoch"] for row in trained]),
            losses=np.array([row["loss"] for row in trained]),
            score_epochs=np.array([row["step"] * epochs_per_step for row in evaluated]),
            scores=np.array([row[name] for row in evaluated]),
        )

    @property
    def smoothed(self) -> np.ndarray:
        """(R) float64: at each line, the mean loss over the quarter epoch before it, or over what there is."""
        begin = np.maximum(self.epochs - _SMOOTHED_OVER_EPOCHS, 0.0)
        # Not less than the line itself, which may cover more.
        begin = np.minimum(begin, np.concatenate(([0.0], self.epochs[:-1])))
        return (self._sum_until(self.epochs) - self._sum_until(begin)) / (self.epochs - begin)

    @property
    def epoch_losses(self) -> dict[float, float]:
        """End of each epoch, the last of which may be a part of one -> its mean training loss."""
        ends = [float(end) for end in range(1, math.ceil(self.epochs[-1] - 1e-9))] + [float(self.epochs[-1])]
        begins = [0.0, *ends[:-1]]
        sums = self._sum_until(np.array(ends)) - self._sum_until(np.array(begins))
        return {end: float(s / (end - begin)) for end, begin, s in zip(ends, begins, sums, strict=True)}

    @property
    def epoch_scores(self) -> dict[float, float]:
        """End of each epoch -> the last score measured in it; epochs without evaluation are left out."""
        found = {}
        begin = 0.0
        for end in self.epoch_losses:
            within = (self.score_epochs > begin + 1e-9) & (self.score_epochs <= end + 1e-9)
            if within.any():
                found[end] = float(self.scores[within][-1])
            begin = end
        return found

    def epochs_to_loss(self, threshold: float) -> float | None:
        """Return after how many epochs the smoothed training loss is first at most `threshold`; None: never.

        The first quarter epoch does not count, since its means are over few steps.
        """
        low = (self.smoothed <= threshold) & (self.epochs >= _SMOOTHED_OVER_EPOCHS - 1e-9)
        return float(self.epochs[low.argmax()]) if low.any() else None

    def epochs_to_score(self, threshold: float, *, greater_is_better: bool = True) -> float | None:
        """Return after how many epochs an evaluation first reaches `threshold`; None: never."""
        good = self.scores >= threshold if greater_is_better else self.scores <= threshold
        return float(self.score_epochs[good.argmax()]) if good.any() else None

    def best_score(self, *, greater_is_better: bool = True) -> float:
        """Return the best score that is a number; NaN where there is none."""
        numbers = self.scores[~np.isnan(self.scores)]
        if not len(numbers):
            return math.nan
        return float(numbers.max() if greater_is_better else numbers.min())

    def _sum_until(self, epochs: np.ndarray) -> np.ndarray:
        """Integrate the loss from the start to each of some moments; between two lines it is taken as constant."""
        widths = np.diff(self.epochs, prepend=0.0)
        return np.interp(epochs, np.concatenate(([0.0], self.epochs)), np.cumsum([0.0, *(widths * self.losses)]))
