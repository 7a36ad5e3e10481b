import errno
import json
import math
import os

import pytest
import torch

from fastssl.training import (
    ModelCost,
    NonFiniteError,
    RunDirectoryError,
    Trainer,
    TrainingConfig,
    evaluate,
    log,
    loop,
    trainer,
)
from fastssl.training.checkpoint import list_checkpoints
from fastssl.training.durable import sha256_of
from fastssl.training.log import read_metrics
from fastssl.training.run_directory import DirectoryLock
from tests.training.stand_in import StandInConfig, StandInModel, StandInSource, make_trainer, weights_of

COST = ModelCost(parameters=1000, flops_per_token=6000.0, memory_bytes=1 << 20)


pytestmark = pytest.mark.usefixtures("metrics_only")


def train_rows(directory):
    return [row for row in read_metrics(directory / "metrics.jsonl") if "loss" in row]


def test_the_loss_falls_and_everything_is_written(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(trainer, "default_sinks", log.default_sinks)
    config = TrainingConfig(
        output_dir=str(tmp_path / "run"),
        max_steps=60,
        learning_rate=2e-2,
        eval_steps=25,
        save_steps=20,
        save_total_limit=2,
        num_threads=1,
    )
    companions = lambda directory: (directory / "tokenizer.json").write_text("{}")  # noqa: E731
    result = Trainer(
        StandInModel(),
        config,
        StandInSource(),
        eval_data=StandInSource(seed=1),
        cost=COST,
        write_companions=companions,
    ).train()
    run = tmp_path / "run"
    assert (result.step, result.stopped_by, result.exit_code) == (60, "max_steps", 0)
    assert result.checkpoint == run / "checkpoint-60"
    assert [path.name for path in list_checkpoints(run)] == ["checkpoint-40", "checkpoint-60"]
    assert (result.checkpoint / "tokenizer.json").exists()
    assert (run / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert list((run / "tensorboard").glob("events.*"))
    written = json.loads((run / "run.json").read_text())
    assert written["config"]["save_steps"] == 20 and written["machine"]["num_threads"] == 1
    rows = train_rows(run)
    assert [row["step"] for row in rows] == [10, 20, 30, 40, 50, 60]
    assert rows[-1]["loss"] < rows[0]["loss"] - 1 and rows[-1]["masked_lm_accuracy"] > rows[0]["masked_lm_accuracy"]
    assert all(row["mfu"] > 0 and row["tokens_per_second"] > 0 and math.isfinite(row["grad_norm"]) for row in rows)
    evaluations = [row for row in read_metrics(run / "metrics.jsonl") if "eval_loss" in row]
    assert [row["step"] for row in evaluations] == [25, 50, 60]
    assert result.evaluation == {name: value for name, value in evaluations[-1].items() if name != "step"}
    spoken = capsys.readouterr().err
    assert "step 10/60 · loss" in spoken and "MFU" in spoken and "left" in spoken and "held out: loss" in spoken


def test_evaluation_equals_the_means_over_all_batches():
    model, source = StandInModel(StandInConfig(dropout=0.5)), StandInSource(seed=3)
    found = evaluate(model, source)
    assert model.training and evaluate(model, source) == found
    model.eval()
    outputs = [model(source.batch(0, index)).metrics for index in range(source.num_batches(0))]
    loss, correct, count = (
        sum(float(m[f"masked_lm_{what}"]) for m in outputs) for what in ("loss_sum", "correct", "count")
    )
    assert found == pytest.approx(
        {
            "eval_loss": loss / count,
            "eval_masked_lm_loss": loss / count,
            "eval_masked_lm_accuracy": correct / count,
            "eval_masked_lm_perplexity": math.exp(loss / count),
        }
    )


def test_epochs_set_the_number_of_steps(tmp_path):
    training = make_trainer(tmp_path, max_steps=None, num_train_epochs=2, gradient_accumulation_steps=2)
    # Epochs of 7 and 8 batches, two a step.
    assert training.total_steps == 8
    assert training.train().step == 8
    assert train_rows(tmp_path)[-1]["learning_rate"] == pytest.approx(1e-2 / 8)


def test_a_time_budget_ends_the_run(tmp_path):
    result = make_trainer(tmp_path, max_steps=None, time_budget_minutes=0.01, logging_steps=1).train()
    rows = train_rows(tmp_path)
    assert result.stopped_by == "time_budget" and result.step > 3 and (tmp_path / f"checkpoint-{result.step}").is_dir()
    rates = [row["learning_rate"] for row in rows]
    assert rates == sorted(rates, reverse=True) and 0 <= rates[-1] < rates[0] <= 1e-2
    used = json.loads((result.checkpoint / "training_state.json").read_text())["elapsed_seconds"]
    assert used >= 0.6
    again = make_trainer(tmp_path, max_steps=None, time_budget_minutes=0.01, resume_from_checkpoint="last").train()
    assert again.step == result.step, "the used time must count after a resume"


@pytest.fixture(params=[True, False], ids=["waits", "goes on"])
def waiting(request, monkeypatch) -> bool:
    """Whether the host reads the numbers of a step before the next one, as on a CPU; else after, as on a GPU."""
    if not request.param:
        monkeypatch.setattr(loop, "WAITING_DEVICES", frozenset())
    return request.param


def test_a_nan_stops_the_run_and_names_step_batch_and_checkpoint(tmp_path, waiting):
    data = StandInSource(poison=(1, 3))
    model = StandInModel()
    training = make_trainer(tmp_path, model=model, data=data, save_steps=4)
    expected = r"step 11: the loss is nan at batch \(epoch 1, index 3\).*last good checkpoint: .*checkpoint-8"
    with pytest.raises(NonFiniteError, match=expected):
        training.train()
    assert [path.name for path in list_checkpoints(tmp_path)] == ["checkpoint-4", "checkpoint-8"]
    assert all(weight.isfinite().all() for weight in model.parameters())


def test_a_nan_leaves_the_weights_of_the_step_before(tmp_path, waiting):
    bad, good = StandInModel(), StandInModel()
    constant = {"lr_scheduler_type": "constant", "warmup_steps": 0}
    with pytest.raises(NonFiniteError, match="step 4"):
        make_trainer(tmp_path / "bad", model=bad, data=StandInSource(poison=(0, 3)), **constant).train()
    make_trainer(tmp_path / "good", model=good, max_steps=3, **constant).train()
    assert all(torch.equal(*pair) for pair in zip(bad.parameters(), good.parameters(), strict=True))
    assert not torch.equal(bad.decoder.weight, StandInModel().decoder.weight)


def test_numbers_that_are_read_late_are_the_same(tmp_path, monkeypatch):
    settings = {"max_steps": 10, "logging_steps": 3, "eval_steps": 4, "save_steps": 5, "max_grad_norm": 0.5}
    models = {}
    for name, devices in (("waits", {"cpu"}), ("goes on", set())):
        monkeypatch.setattr(loop, "WAITING_DEVICES", frozenset(devices))
        models[name] = StandInModel()
        make_trainer(tmp_path / name, model=models[name], **settings).train()
    now, later = (train_rows(tmp_path / name) for name in models)
    for row, other in zip(now, later, strict=True):
        for figure in ("step", "loss", "loss_average", "grad_norm", "tokens", "learning_rate"):
            assert other[figure] == pytest.approx(row[figure], rel=1e-5), figure
    for one, other in zip(*(model.parameters() for model in models.values()), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_the_same_run_again_asks_for_resume(tmp_path):
    make_trainer(tmp_path, max_steps=3).train()
    with pytest.raises(RunDirectoryError, match=r"already holds this run.*--resume-from-checkpoint last"):
        make_trainer(tmp_path, max_steps=3).train()


@pytest.mark.parametrize("resume", [None, "last"])
def test_another_run_is_refused(tmp_path, resume):
    make_trainer(tmp_path, max_steps=3).train()
    before = sorted(path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file())
    with pytest.raises(
        RunDirectoryError,
        match=r"different run: training.learning_rate is 0.01 there and 0.5 here; model.width is 16 there and 8 here.*"
        "Choose another output_dir",
    ):
        make_trainer(
            tmp_path,
            model=StandInModel(StandInConfig(width=8)),
            max_steps=3,
            learning_rate=0.5,
            resume_from_checkpoint=resume,
        ).train()
    assert before == sorted(path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file())


def test_a_longer_run_may_go_on(tmp_path, capsys):
    make_trainer(tmp_path, max_steps=3, lr_scheduler_type="constant").train()
    longer = make_trainer(tmp_path, max_steps=6, lr_scheduler_type="constant", resume_from_checkpoint="last")
    assert longer.train().step == 6
    assert "another length: training.max_steps is 3 there and 6 here" in capsys.readouterr().err


def test_last_without_a_checkpoint_starts_at_zero(tmp_path, capsys):
    assert make_trainer(tmp_path, max_steps=3, resume_from_checkpoint="last").train().step == 3
    assert "no checkpoint in" in capsys.readouterr().err


def test_another_number_of_threads_is_told(tmp_path, capsys):
    make_trainer(tmp_path, max_steps=3).train()
    state = json.loads((tmp_path / "checkpoint-3" / "run.json").read_text())
    state["machine"]["num_threads"] = 7
    rewrite_in_checkpoint(tmp_path / "checkpoint-3", "run.json", json.dumps(state))
    make_trainer(tmp_path, max_steps=3, resume_from_checkpoint="last").train()
    assert "checkpoint-3 was made with 7 threads, now there are 1" in capsys.readouterr().err


def rewrite_in_checkpoint(checkpoint, name, text):
    (checkpoint / name).write_text(text)
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    manifest["files"][name] = {"bytes": len(text.encode()), "sha256": sha256_of(checkpoint / name)}
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))


def test_metrics_that_cannot_be_written_stop_the_run_in_words(tmp_path, monkeypatch):
    class FullDisk(log.MetricsFile):
        def write(self, row):
            if row["step"] > 4:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            super().write(row)

        def close(self):
            super().close()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(trainer, "default_sinks", lambda directory, step: [FullDisk(directory / "metrics.jsonl", step)])
    expected = "step 6: could not write to .*No space left on device; last good checkpoint: .*checkpoint-4; free space"
    with pytest.raises(RunDirectoryError, match=expected):
        make_trainer(tmp_path, logging_steps=2, save_steps=4).train()


def test_a_directory_in_use_is_refused(tmp_path):
    lock = DirectoryLock(tmp_path)
    with pytest.raises(RunDirectoryError, match="another process is training in it"):
        make_trainer(tmp_path).train()
    lock.release()
    make_trainer(tmp_path, max_steps=1).train()


def test_a_killed_save_is_cleaned_up_at_the_next_start(tmp_path, capsys):
    (tmp_path / ".checkpoint-5.tmp").mkdir()
    (tmp_path / ".checkpoint-5.tmp" / "model.safetensors").write_bytes(b"half")
    make_trainer(tmp_path, max_steps=1).train()
    assert not list(tmp_path.glob(".checkpoint*"))
    assert "deleted unfinished .checkpoint-5.tmp" in capsys.readouterr().err


def test_a_plateau_is_told_once_and_does_not_stop_the_run(tmp_path, capsys):
    assert make_trainer(tmp_path, max_steps=60, learning_rate=0.0, plateau_steps=20).train().step == 60
    assert capsys.readouterr().err.count("the loss has been on a plateau") == 1


def test_no_data_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="no batch in epoch 0"):
        make_trainer(tmp_path, data=StandInSource(0))


def test_gradient_checkpointing_needs_a_model_that_can(tmp_path):
    with pytest.raises(ValueError, match="StandInModel cannot recompute"):
        make_trainer(tmp_path, gradient_checkpointing=True)


def test_bf16_on_request_and_never_by_itself_on_a_cpu(tmp_path):
    for precision, name in (("auto", "a"), ("fp32", "b"), ("bf16", "c")):
        make_trainer(tmp_path / name, max_steps=5, precision=precision).train()
    weights = [weights_of(tmp_path / name / "checkpoint-5") for name in "abc"]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert not all(torch.equal(weights[0][name], weights[2][name]) for name in weights[0])
    assert all(weight.dtype == torch.float32 for weight in weights[2].values())


def test_cost_is_reckoned_from_a_timed_step_and_leaves_the_model_alone(tmp_path):
    model = StandInModel()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    config = TrainingConfig(output_dir=str(tmp_path / "run"), max_steps=100, gradient_accumulation_steps=3)
    data = StandInSource()
    cost = Trainer(model, config, data, cost=COST).estimate_cost()
    tokens = sum(data.batch(0, index).num_tokens for index in range(3))
    assert cost.tokens == pytest.approx(100 * tokens) and cost.flops == pytest.approx(100 * tokens * 6000)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not (tmp_path / "run").exists()
    with pytest.raises(ValueError, match="cost is None"):
        make_trainer(tmp_path).estimate_cost()
