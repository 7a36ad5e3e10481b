"""Curves over epochs from the lines of a run: means, smoothing, thresholds."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from fastssl.tasks.comparison.run_curve import RunCurve


def write_run(directory: Path, losses, scores=(), *, per_epoch: int = 4, every: int = 1) -> Path:
    """Write a run of `per_epoch` steps an epoch with a line every so many steps; `scores` are (step, score)."""
    directory.mkdir(parents=True, exist_ok=True)
    rows = [
        {"step": last, "epoch": last / per_epoch, "loss": float(np.mean(losses[last - every : last]))}
        for last in range(every, len(losses) + 1, every)
    ]
    rows += [{"step": step, "eval_accuracy": score, "eval_loss": 1 - score} for step, score in scores]
    lines = [json.dumps(row) + "\n" for row in sorted(rows, key=lambda row: row["step"])]
    (directory / "metrics.jsonl").write_text("".join(lines), encoding="utf-8")
    return directory


def test_means_of_epochs_and_a_part_of_one(tmp_path):
    losses = np.array([5.0, 4, 3, 2, 2, 2, 1, 1, 0.5, 0.25])
    curve = RunCurve.read(write_run(tmp_path, losses), "accuracy")
    assert curve.epoch_losses == pytest.approx({1.0: 3.5, 2.0: 1.5, 2.5: 0.375})
    np.testing.assert_array_equal(curve.steps, np.arange(1, 11))
    assert curve.epoch_scores == {} and math.isnan(curve.best_score()) and curve.epochs_to_score(0.0) is None


def test_lines_over_several_steps_keep_the_means(tmp_path):
    losses = np.array([5.0, 3, 3, 1, 2, 2, 1, 3])
    curve = RunCurve.read(write_run(tmp_path, losses, every=2), "accuracy")
    assert curve.epoch_losses == pytest.approx({1.0: 3.0, 2.0: 2.0})
    # Each line covers half an epoch, more than what is smoothed over.
    np.testing.assert_allclose(curve.smoothed, curve.losses)


def test_smoothed_over_a_quarter_epoch(tmp_path):
    losses = np.arange(16.0)
    curve = RunCurve.read(write_run(tmp_path, losses, per_epoch=8), "accuracy")
    np.testing.assert_allclose(curve.smoothed, [0, *(losses[1:] + losses[:-1]) / 2])


def test_scores_by_epoch_are_the_last_ones_in_it(tmp_path):
    scores = [(2, 0.5), (4, 0.6), (6, 0.9), (7, 0.7), (10, float("nan"))]
    curve = RunCurve.read(write_run(tmp_path, np.ones(12), scores), "eval_accuracy")
    np.testing.assert_allclose(curve.score_epochs, [0.5, 1, 1.5, 1.75, 2.5])
    assert curve.epoch_scores == pytest.approx({1.0: 0.6, 2.0: 0.7, 3.0: math.nan}, nan_ok=True)
    assert curve.best_score() == 0.9 and curve.best_score(greater_is_better=False) == 0.5


def test_arriving_at_a_loss(tmp_path):
    losses = np.array([0.1, 9, 9, 9, 9, 9, 9, 9, 4, 2, 4, 1, 1, 1, 1, 1])
    curve = RunCurve.read(write_run(tmp_path, losses, per_epoch=8), "accuracy")
    # The very first step does not count; after that, two steps are averaged.
    assert curve.epochs_to_loss(3.0) == 10 / 8
    assert curve.epochs_to_loss(1.0) == 13 / 8
    assert curve.epochs_to_loss(0.5) is None


def test_arriving_at_a_score(tmp_path):
    scores = [(4, 0.5), (8, 0.75), (12, 0.625)]
    run = write_run(tmp_path, np.ones(12), scores)
    curve = RunCurve.read(run, "accuracy")
    assert curve.epochs_to_score(0.75) == 2 and curve.epochs_to_score(0.5) == 1 and curve.epochs_to_score(0.76) is None
    loss = RunCurve.read(run, "loss")
    assert loss.epochs_to_score(0.25, greater_is_better=False) == 2
    assert loss.epochs_to_score(0.2, greater_is_better=False) is None


def test_a_run_without_lines_is_told(tmp_path):
    with pytest.raises(ValueError, match=r"metrics.jsonl has no line of training; lower --logging-steps"):
        RunCurve.read(tmp_path, "accuracy")
