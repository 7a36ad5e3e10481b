import dataclasses

import pytest

from fastssl.training import TrainingConfig
from fastssl.training.config import identity_of


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"max_steps": 0}, "max_steps=0; expected a number above zero"),
        ({"num_train_epochs": -1.0}, "num_train_epochs"),
        ({"learning_rate": -1e-3}, "learning_rate"),
        ({"warmup_ratio": 1.5}, "warmup_ratio=1.5; expected a share from 0 to 1"),
        ({"adam_beta2": 1.0}, "adam_beta2"),
        ({"save_total_limit": 0}, "save_total_limit"),
        ({"lr_scheduler_type": "linaer"}, "linaer"),
        ({"precision": "fp8"}, "precision='fp8'; expected one of auto, fp32, bf16"),
        ({"lr_scheduler_type": "time_budget"}, "needs time_budget_minutes"),
        ({"lr_scheduler_type": "cosine", "time_budget_minutes": 1.0}, "add max_steps"),
        ({"output_dir": ""}, "output_dir"),
    ],
)
def test_bad_settings_are_named(settings, words):
    with pytest.raises(ValueError, match=words):
        TrainingConfig(**({"output_dir": "run"} | settings))


@pytest.mark.parametrize(
    "settings, scheduler",
    [
        ({}, "linear"),
        ({"time_budget_minutes": 5.0}, "time_budget"),
        ({"time_budget_minutes": 5.0, "max_steps": 10}, "linear"),
        ({"lr_scheduler_type": "constant", "time_budget_minutes": 5.0}, "constant"),
    ],
)
def test_auto_schedule(settings, scheduler):
    assert TrainingConfig(output_dir="run", **settings).scheduler == scheduler


def test_resume_true_means_last():
    assert TrainingConfig(output_dir="run", resume_from_checkpoint=True).resume_from_checkpoint == "last"


def test_identity_holds_what_decides_the_numbers():
    config = TrainingConfig(output_dir="run", max_steps=5)
    same = dataclasses.replace(config, output_dir="other", save_steps=3, logging_steps=1, lr_scheduler_type="linear")
    assert identity_of(config) == identity_of(same)
    assert identity_of(config) != identity_of(dataclasses.replace(config, learning_rate=1e-3))
    assert identity_of(config) != identity_of(dataclasses.replace(config, seed=1))


@pytest.mark.parametrize(("metric", "greater"), [("accuracy", True), ("eval_loss", False), ("bits_per_byte", False)])
def test_losses_and_what_follows_from_them_are_better_when_less(metric: str, greater: bool):
    assert TrainingConfig(output_dir="x", metric_for_best_model=metric).best_is_greater == greater
