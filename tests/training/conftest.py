"""Fixtures of the training tests."""

import pytest

from fastssl.training import trainer
from tests.training.stand_in import metrics_only_sinks


@pytest.fixture
def metrics_only(monkeypatch):
    """Leave out TensorBoard and the picture, which take most of the time of a run of a few steps."""
    monkeypatch.setattr(trainer, "default_sinks", metrics_only_sinks)
