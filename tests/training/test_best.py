"""Evaluation per epoch, the best checkpoint, early stopping, a learning rate per parameter."""

import pytest
import torch

from fastssl.training import Trainer, TrainingConfig
from fastssl.training.checkpoint import list_checkpoints
from fastssl.training.log import read_metrics
from fastssl.training.optimizer import make_optimizer, set_learning_rate
from fastssl.training.source import InterleavedSource
from fastssl.training.step import NonFiniteError
from tests.training.stand_in import StandInModel, StandInSource, weights_of

pytestmark = pytest.mark.usefixtures("metrics_only")


def train(output_dir, figures=None, *, model=None, **settings):
    """Train 5 epochs of 7 or 8 batches; `figures` are what the evaluations find, one after the other."""
    found = iter(figures or ())
    settings = {"num_train_epochs": 5, "learning_rate": 1e-2, "num_threads": 1, "save_steps": 1000} | settings
    return Trainer(
        model or StandInModel(),
        TrainingConfig(output_dir=str(output_dir), **settings),
        StandInSource(),
        eval_data=None if figures else StandInSource(seed=1),
        evaluation=(lambda model, **_: {"eval_score": next(found), "eval_loss": 1.0}) if figures else None,
    ).train()


def evaluated_steps(directory):
    return [row["step"] for row in read_metrics(directory / "metrics.jsonl") if "eval_loss" in row]


@pytest.mark.parametrize(("accumulated", "steps"), [(1, [7, 15, 22, 30, 37]), (4, [2, 4, 6, 8, 10])])
def test_evaluates_once_at_the_end_of_each_epoch(tmp_path, accumulated, steps):
    train(tmp_path, eval_strategy="epoch", gradient_accumulation_steps=accumulated)
    assert evaluated_steps(tmp_path) == steps


def test_whole_epochs_are_counted_over_all_processes():
    source = InterleavedSource(StandInSource(), rank=1, size=2)
    assert [source.whole_epochs(n) for n in (0, 6, 7, 14, 15, 22)] == [0, 0, 1, 1, 2, 3]


def test_what_an_evaluation_cannot_do_loses_no_training(tmp_path):
    settings = {"max_steps": 9, "eval_steps": 4, "save_steps": 1000, "num_train_epochs": None}
    with pytest.raises(ValueError, match="metric_for_best_model='speed' is not measured here"):
        train(tmp_path, [0.1] * 3, metric_for_best_model="speed", **settings)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["checkpoint-4"]
    found = train(tmp_path, [0.1, 0.3, 0.2], metric_for_best_model="score", resume_from_checkpoint="last", **settings)
    assert (found.step, found.best_checkpoint.name) == (9, "checkpoint-8")
    assert evaluated_steps(tmp_path) == [4, 8, 9]


def test_another_figure_begins_anew(tmp_path):
    settings = {"num_train_epochs": None, "eval_steps": 2, "save_total_limit": 1}
    train(tmp_path, [0.9, 0.1], metric_for_best_model="score", max_steps=4, **settings)
    found = train(
        tmp_path, [0.2] * 2, metric_for_best_model="loss", max_steps=8, resume_from_checkpoint="last", **settings
    )
    assert found.best_checkpoint.name == "checkpoint-6"


def test_a_held_out_loss_that_is_none_stops_the_run_and_is_not_saved(tmp_path):
    def evaluation(model, **_):
        return {"eval_loss": float("nan") if len(list_checkpoints(tmp_path)) else 1.0}

    settings = {"max_steps": 9, "eval_steps": 2, "save_steps": 2, "save_total_limit": 1}
    trainer = Trainer(
        StandInModel(), TrainingConfig(output_dir=str(tmp_path), **settings), StandInSource(), evaluation=evaluation
    )
    with pytest.raises(NonFiniteError, match=r"step 4: the held-out loss is nan; .*last checkpoint: .*checkpoint-2"):
        trainer.train()
    assert [path.name for path in list_checkpoints(tmp_path)] == ["checkpoint-2"]


def test_a_metric_needs_something_to_measure_it_on(tmp_path):
    config = TrainingConfig(output_dir=str(tmp_path), max_steps=2, metric_for_best_model="loss")
    with pytest.raises(ValueError, match="metric_for_best_model='loss', but nothing is held out to measure it on"):
        Trainer(StandInModel(), config, StandInSource())


def test_the_best_checkpoint_is_kept(tmp_path):
    result = train(
        tmp_path,
        [0.1, 0.7, float("nan"), 0.7, 0.5],
        eval_strategy="epoch",
        metric_for_best_model="score",
        save_total_limit=1,
    )
    assert [path.name for path in list_checkpoints(tmp_path)] == ["checkpoint-15", "checkpoint-37"]
    assert result.best_checkpoint == tmp_path / "checkpoint-15" and result.checkpoint == tmp_path / "checkpoint-37"
    assert result.evaluation["eval_score"] == 0.5


def test_without_checkpoints_a_run_is_measured_and_nothing_is_saved(tmp_path):
    result = train(tmp_path, eval_strategy="epoch", save_strategy="no", save_steps=5)
    assert (result.stopped_by, result.step, result.checkpoint) == ("max_steps", 37, None)
    assert len(evaluated_steps(tmp_path)) == 5 and not list_checkpoints(tmp_path)


def test_a_loss_is_better_when_smaller(tmp_path):
    result = train(tmp_path, eval_strategy="epoch", metric_for_best_model="loss")
    losses = [row["eval_loss"] for row in read_metrics(tmp_path / "metrics.jsonl") if "eval_loss" in row]
    assert result.best_checkpoint.name == f"checkpoint-{evaluated_steps(tmp_path)[losses.index(min(losses))]}"


def test_stops_early_and_a_resumed_run_stays_stopped(tmp_path):
    settings = {"eval_strategy": "epoch", "metric_for_best_model": "eval_score", "early_stopping_patience": 2}
    result = train(tmp_path, [0.5, 0.4, 0.3], **settings)
    assert (result.stopped_by, result.step, result.exit_code) == ("early_stopping", 22, 0)
    assert result.best_checkpoint == tmp_path / "checkpoint-7"
    again = train(tmp_path, [0.9], **settings, resume_from_checkpoint="last")
    assert (again.stopped_by, again.step) == ("early_stopping", 22)


def test_resumed_in_the_middle_the_best_is_remembered(tmp_path):
    settings = {"eval_strategy": "epoch", "metric_for_best_model": "score", "save_steps": 10}
    whole = train(tmp_path / "whole", [0.2, 0.8, 0.3, 0.1, 0.0], **settings)
    train(tmp_path / "parts", [0.2, 0.8, 0.8], **settings | {"num_train_epochs": 2.5, "lr_scheduler_type": "constant"})
    result = train(
        tmp_path / "parts",
        [0.3, 0.1, 0.0],
        **settings | {"lr_scheduler_type": "constant"},
        resume_from_checkpoint="last",
    )
    assert result.best_checkpoint.name == whole.best_checkpoint.name == "checkpoint-15"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"eval_strategy": "steps"}, "needs eval_steps"),
        ({"eval_strategy": "epoch", "eval_steps": 5}, "leave one out"),
        ({"early_stopping_patience": 2}, "needs metric_for_best_model"),
        ({"early_stopping_patience": 0, "metric_for_best_model": "loss"}, "above zero"),
        ({"eval_strategy": "sometimes"}, "auto, steps, epoch"),
        ({"save_strategy": "never"}, "expected one of steps, no"),
        ({"save_strategy": "no", "metric_for_best_model": "loss"}, "keeps a checkpoint, but save_strategy='no'"),
        (
            {"eval_strategy": "epoch", "metric_for_best_model": "acuracy"},
            "'acuracy' is not measured.*masked_lm_accuracy",
        ),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        train(tmp_path, **settings)


def test_learning_rates_per_parameter(tmp_path):
    model = StandInModel()
    config = TrainingConfig(output_dir=str(tmp_path), learning_rate=0.1, weight_decay=0.0)
    scales = {"embedding.weight": 0.25, "norm.weight": 0.0}
    optimizer = make_optimizer(model, config, scales)
    set_learning_rate(optimizer, 0.1)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    # Adam's first update is the learning rate itself, whatever the gradient.
    for name, parameter in model.named_parameters():
        moved = before[name] - parameter
        torch.testing.assert_close(moved, torch.full_like(moved, 0.1 * scales.get(name, 1.0)), rtol=1e-4, atol=1e-6)


def test_learning_rates_per_parameter_resume_to_the_bit(tmp_path):
    def run(directory, **settings):
        return Trainer(
            StandInModel(),
            TrainingConfig(output_dir=str(directory), learning_rate=1e-2, num_threads=1, save_steps=4, **settings),
            StandInSource(),
            lr_scales={"embedding.weight": 0.5},
        ).train()

    whole = run(tmp_path / "whole", max_steps=9)
    run(tmp_path / "parts", max_steps=9)
    for checkpoint in list_checkpoints(tmp_path / "parts")[1:]:
        checkpoint.rename(tmp_path / f"aside-{checkpoint.name}")
    resumed = run(tmp_path / "parts", max_steps=9, resume_from_checkpoint="last")
    wanted = weights_of(whole.checkpoint)
    assert all(torch.equal(value, wanted[name]) for name, value in weights_of(resumed.checkpoint).items())
