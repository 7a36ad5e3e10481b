"""Stopped and resumed is the same as never stopped, to the bit, however it was stopped."""

import multiprocessing
import os
import random
import signal
import time

import pytest
import torch

from fastssl.training import Trainer, TrainingConfig
from fastssl.training.checkpoint import list_checkpoints, verify_checkpoint
from fastssl.training.log import read_metrics
from tests.training.stand_in import (
    StandInConfig,
    StandInModel,
    StandInSource,
    make_trainer,
    run_in_process,
    weights_of,
)

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["tests.training.stand_in"])
pytestmark = pytest.mark.usefixtures("metrics_only")
TIMED = ("tokens_per_second", "elapsed_seconds")


def start(run, **settings):
    """Start a run in a process of its own, whose words go to run.err."""
    process = SERVER.Process(target=run_in_process, args=(str(run),), kwargs=settings)
    process.start()
    return process


def finish(process):
    process.join(timeout=60)
    assert process.exitcode is not None, "the run did not end in a minute"
    return process.exitcode


def spoken(run):
    return run.with_suffix(".err").read_text()


def wait_for(condition, process, run):
    deadline = time.monotonic() + 60
    while not condition():
        assert process.exitcode is None, spoken(run)
        assert time.monotonic() < deadline, "the run did not get there in a minute"
        time.sleep(0.002)


def assert_same_end(one, other, step):
    for file in ("model.safetensors", "optimizer.safetensors"):
        assert (one / f"checkpoint-{step}" / file).read_bytes() == (other / f"checkpoint-{step}" / file).read_bytes()
    rows = [
        [{k: v for k, v in row.items() if k not in TIMED} for row in read_metrics(run / "metrics.jsonl")]
        for run in (one, other)
    ]
    assert rows[0] == rows[1]


@pytest.mark.parametrize("settings", [{}, {"gradient_accumulation_steps": 3}, {"lr_scheduler_type": "wsd"}])
def test_every_step_is_a_point_to_resume_from(tmp_path, settings):
    settings = {"logging_steps": 4, "max_steps": 12, "save_steps": 1, **settings}
    make_trainer(tmp_path / "straight", **settings).train()
    for stop in (1, 5, 8, 11):
        run = tmp_path / f"from-{stop}"
        checkpoint = tmp_path / "straight" / f"checkpoint-{stop}"
        make_trainer(run, model=StandInModel(seed=9), resume_from_checkpoint=str(checkpoint), **settings).train()
        assert [int(path.name.split("-")[1]) for path in list_checkpoints(run)] == list(range(stop + 1, 13))
        for file in ("model.safetensors", "optimizer.safetensors"):
            ours, theirs = (path / "checkpoint-12" / file for path in (run, tmp_path / "straight"))
            assert ours.read_bytes() == theirs.read_bytes()


def test_dropout_is_in_the_test_above(tmp_path):
    for name, dropout in (("with", 0.1), ("without", 0.0)):
        make_trainer(tmp_path / name, model=StandInModel(StandInConfig(dropout=dropout)), max_steps=3).train()
    with_dropout, without = (weights_of(tmp_path / name / "checkpoint-3") for name in ("with", "without"))
    assert not torch.equal(with_dropout["decoder.weight"], without["decoder.weight"])


def test_resuming_reads_only_the_batches_that_are_left(tmp_path):
    class Counting(StandInSource):
        taken = 0

        def batch(self, epoch, index):
            Counting.taken += 1
            return super().batch(epoch, index)

    make_trainer(tmp_path, max_steps=200, save_steps=190).train()
    make_trainer(
        tmp_path, data=Counting(), max_steps=200, resume_from_checkpoint=str(tmp_path / "checkpoint-190")
    ).train()
    assert 10 <= Counting.taken <= 20


def test_metrics_repeat_no_step(tmp_path):
    settings = {"max_steps": 20, "logging_steps": 3, "save_steps": 10}
    make_trainer(tmp_path / "straight", **settings).train()
    run = tmp_path / "resumed"
    make_trainer(run, **settings).train()
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 21, "lo')
    make_trainer(run, resume_from_checkpoint=str(run / "checkpoint-10"), **settings).train()
    assert [row["step"] for row in read_metrics(run / "metrics.jsonl")] == [3, 6, 9, 12, 15, 18, 20]
    assert_same_end(tmp_path / "straight", run, 20)


def test_a_damaged_checkpoint_is_skipped_aloud(tmp_path, capsys):
    settings = {"max_steps": 20, "save_steps": 5}
    make_trainer(tmp_path / "straight", **settings).train()
    run = tmp_path / "run"
    make_trainer(run, **settings).train()
    for step, file in ((20, "model.safetensors"), (15, "optimizer.safetensors")):
        path = run / f"checkpoint-{step}" / file
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    make_trainer(run, resume_from_checkpoint="last", **settings).train()
    told = capsys.readouterr().err
    assert "checkpoint-20 is damaged" in told and "checkpoint-15 is damaged" in told
    assert f"resuming from {run / 'checkpoint-10'} at step 10" in told
    assert_same_end(tmp_path / "straight", run, 20)
    for checkpoint in list_checkpoints(run):
        verify_checkpoint(checkpoint)


def test_killed_at_random_moments(tmp_path):
    settings = {"save_steps": 3, "save_total_limit": 2, "logging_steps": 7, "lr_scheduler_type": "constant"}
    run, rng, reached = tmp_path / "run", random.Random(5), 0
    for _ in range(5):
        process = start(run, max_steps=100_000, resume_from_checkpoint="last", **settings)
        wait_for(lambda: max([0, *map(step_of, list_checkpoints(run))]) > reached + 3, process, run)  # noqa: B023
        time.sleep(rng.uniform(0, 0.1))
        process.kill()
        assert finish(process) == -signal.SIGKILL
        checkpoints = list_checkpoints(run)
        assert 1 <= len(checkpoints) <= 3
        for checkpoint in checkpoints:
            verify_checkpoint(checkpoint)
        reached = step_of(checkpoints[-1])
    end = reached + 10
    process = start(run, max_steps=end, resume_from_checkpoint="last", **settings)
    assert finish(process) == 0 and f"at step {reached}" in spoken(run)
    assert not list(run.glob(".checkpoint*"))
    make_trainer(tmp_path / "straight", max_steps=end, **settings | {"save_steps": 100_000}).train()
    assert_same_end(tmp_path / "straight", run, end)


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_and_stops(tmp_path, number, code):
    settings = {"max_steps": 100_000, "save_steps": 100_000, "logging_steps": 5, "lr_scheduler_type": "constant"}
    run = tmp_path / "run"
    process = start(run, **settings)
    wait_for(lambda: (run / "metrics.jsonl").exists() and (run / "metrics.jsonl").stat().st_size > 0, process, run)
    os.kill(process.pid, number)
    assert finish(process) == code, spoken(run)
    (checkpoint,) = list_checkpoints(run)
    verify_checkpoint(checkpoint)
    assert f"{number.name}: finishing this step and saving" in spoken(run)
    assert f"ended by {number.name} at step {step_of(checkpoint)}" in spoken(run)
    make_trainer(tmp_path / "straight", **settings | {"max_steps": step_of(checkpoint)}).train()
    same = tmp_path / "straight" / checkpoint.name / "model.safetensors"
    assert (checkpoint / "model.safetensors").read_bytes() == same.read_bytes()


def test_a_signal_cuts_an_evaluation_short_and_resuming_makes_up_for_it(tmp_path):
    class Interrupting(StandInSource):
        def batch(self, epoch, index):
            assert index == 0, "the evaluation must end at the signal"
            os.kill(os.getpid(), signal.SIGINT)
            return super().batch(epoch, index)

    def run(name, held_out, resume=None):
        settings = {"max_steps": 6, "eval_steps": 4, "learning_rate": 1e-2, "num_threads": 1, "logging_steps": 2}
        config = TrainingConfig(output_dir=str(tmp_path / name), resume_from_checkpoint=resume, **settings)
        return Trainer(StandInModel(), config, StandInSource(), eval_data=held_out).train()

    run("straight", StandInSource(seed=1))
    stopped = run("stopped", Interrupting(seed=1))
    assert (stopped.step, stopped.exit_code, stopped.evaluation) == (4, 130, {})
    run("stopped", StandInSource(seed=1), resume="last")
    assert_same_end(tmp_path / "straight", tmp_path / "stopped", 6)


@pytest.mark.parametrize("strategy", [{}, {"eval_strategy": "epoch"}])
def test_a_signal_in_the_last_evaluation_ends_the_run_undone(tmp_path, strategy):
    class Interrupting(StandInSource):
        def batch(self, epoch, index):
            os.kill(os.getpid(), signal.SIGTERM)
            return super().batch(epoch, index)

    def run(name, held_out, resume=None):
        settings = {"max_steps": 7, "learning_rate": 1e-2, "num_threads": 1, "logging_steps": 2, **strategy}
        config = TrainingConfig(output_dir=str(tmp_path / name), resume_from_checkpoint=resume, **settings)
        return Trainer(StandInModel(), config, StandInSource(), eval_data=held_out).train()

    run("straight", StandInSource(seed=1))
    stopped = run("stopped", Interrupting(seed=1))
    assert (stopped.step, stopped.stopped_by, stopped.exit_code, stopped.evaluation) == (7, "SIGTERM", 143, {})
    assert run("stopped", StandInSource(seed=1), resume="last").stopped_by == "max_steps"
    assert_same_end(tmp_path / "straight", tmp_path / "stopped", 7)


def test_going_back_to_what_cannot_be_read_leaves_everything_as_it_is(tmp_path, monkeypatch):
    run = tmp_path / "run"
    make_trainer(run, max_steps=9, save_steps=3).train()

    def broken(*_):
        raise RuntimeError("no such optimizer")

    monkeypatch.setattr("fastssl.training.trainer.load_optimizer", broken)
    with pytest.raises(RuntimeError, match="no such optimizer"):
        make_trainer(run, max_steps=9, save_steps=3, resume_from_checkpoint=str(run / "checkpoint-3")).train()
    assert [path.name for path in list_checkpoints(run)] == ["checkpoint-3", "checkpoint-6", "checkpoint-9"]


def test_going_back_leaves_no_later_checkpoint_in_the_way(tmp_path, capsys):
    run = tmp_path / "run"
    make_trainer(run, max_steps=9, save_steps=3).train()
    for _ in range(2):
        back = {"max_steps": 7, "save_steps": 100, "resume_from_checkpoint": str(run / "checkpoint-3")}
        make_trainer(run, **back).train()
        assert [path.name for path in list_checkpoints(run)] == ["checkpoint-3", "checkpoint-7"]
    assert {path.name for path in run.glob("set-aside-*")} == {
        "set-aside-checkpoint-6",
        "set-aside-checkpoint-9",
        "set-aside-checkpoint-7",
    }
    assert (
        "checkpoint-9 is kept as set-aside-checkpoint-9: the run goes back to checkpoint-3" in capsys.readouterr().err
    )
    make_trainer(run, max_steps=9, save_steps=100, resume_from_checkpoint="last").train()
    assert "resuming from " + str(run / "checkpoint-7") in capsys.readouterr().err


def test_a_second_signal_leaves_at_once(tmp_path):
    run = tmp_path / "run"
    process = start(run, max_steps=10, endless=True)
    wait_for(lambda: (run / "in-a-step").exists(), process, run)
    os.kill(process.pid, signal.SIGINT)
    wait_for(lambda: "finishing this step" in spoken(run), process, run)
    time.sleep(0.1)
    assert process.exitcode is None, "the first signal waits for the step"
    os.kill(process.pid, signal.SIGINT)
    assert finish(process) != 0 and not list_checkpoints(run)


def test_disk_full_while_saving(tmp_path):
    settings = {"max_steps": 20, "save_steps": 5, "logging_steps": 1000, "lr_scheduler_type": "constant"}
    make_trainer(tmp_path / "straight", **settings).train()
    run = tmp_path / "run"
    make_trainer(run, **settings | {"max_steps": 5}).train()
    # A limit on the size of any file fails a write as a full disk does.
    limit = (run / "checkpoint-5" / "optimizer.safetensors").stat().st_size - 1000
    assert finish(start(run, file_size_limit=limit, resume_from_checkpoint="last", **settings)) != 0
    assert "could not save" in spoken(run) and "checkpoint-5 is intact" in spoken(run)
    assert [path.name for path in run.iterdir() if "checkpoint" in path.name] == ["checkpoint-5"]
    verify_checkpoint(run / "checkpoint-5")
    make_trainer(run, resume_from_checkpoint="last", **settings).train()
    for file in ("model.safetensors", "optimizer.safetensors"):
        ours, theirs = (path / "checkpoint-20" / file for path in (run, tmp_path / "straight"))
        assert ours.read_bytes() == theirs.read_bytes()


def step_of(checkpoint):
    return int(checkpoint.name.split("-")[1])
