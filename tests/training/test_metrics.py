import json
import math
from dataclasses import asdict

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastssl.training.metrics import ExponentialAverage, MetricSums, PlateauDetector


def test_means_weigh_predictions_not_batches():
    sums = MetricSums()
    sums.add({"masked_lm_loss_sum": torch.tensor(9.0), "masked_lm_correct": torch.tensor(1), "masked_lm_count": 3})
    sums.add({"masked_lm_loss_sum": 1.0, "masked_lm_correct": 1, "masked_lm_count": 1})
    sums.add({"sentence_loss_sum": 1.0, "sentence_correct": 2, "sentence_count": 2})
    assert sums.means() == pytest.approx(
        {
            "masked_lm_loss": 2.5,
            "masked_lm_accuracy": 0.5,
            "masked_lm_perplexity": math.exp(2.5),
            "sentence_loss": 0.5,
            "sentence_accuracy": 1.0,
        }
    )
    assert sums.loss() == 3.0


def test_no_predictions_give_no_means():
    sums = MetricSums()
    sums.add({"masked_lm_loss_sum": 0.0, "masked_lm_correct": 0, "masked_lm_count": 0})
    assert sums.means() == {} and sums.loss() == 0


@settings(deadline=None)
@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=40))
def test_average_stays_between_the_values(values):
    average = ExponentialAverage()
    assert math.isnan(average.value)
    for value in values:
        average.add(value)
    assert min(values) - 1e-9 <= average.value <= max(values) + 1e-9
    copy = ExponentialAverage(**json.loads(json.dumps(asdict(average))))
    assert copy == average


def test_plateau_is_told_once_and_its_end_too():
    detector = PlateauDetector()
    losses = [5.0] * 12 + [4.9] + [4.9] * 12
    said = [detector.add(step, loss, 10) for step, loss in enumerate(losses, start=1)]
    messages = [(step, text) for step, text in enumerate(said, start=1) if text]
    assert [step for step, _ in messages] == [11, 13, 23]
    assert "plateau near 5.0000 since step 1" in messages[0][1]
    assert "left its plateau" in messages[1][1]


def test_no_plateau_while_the_loss_falls():
    detector = PlateauDetector()
    assert not any(detector.add(step, 10 * 0.99**step, 5) for step in range(200))
