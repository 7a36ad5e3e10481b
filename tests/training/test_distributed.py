"""Two processes compute what one does with twice the accumulation."""

import json
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from fastssl.training import Trainer, TrainingConfig, trainer
from fastssl.training.checkpoint import list_checkpoints
from fastssl.training.distributed import World, expect_one_process
from fastssl.training.log import read_metrics
from tests.training.stand_in import StandInConfig, StandInModel, StandInSource, metrics_only_sinks, weights_of

ROOT = Path(__file__).resolve().parent.parent.parent
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["tests.training.stand_in"])
SETTINGS = {"max_steps": 6, "learning_rate": 1e-2, "logging_steps": 2, "save_steps": 3, "weight_decay": 0.1}


def torchrun(run, **settings):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "tests.training.distributed_run", str(run), json.dumps(settings)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=120)


@pytest.mark.slow
@pytest.mark.usefixtures("metrics_only")
def test_two_processes_equal_twice_the_accumulation(tmp_path):
    done = torchrun(tmp_path / "two", gradient_accumulation_steps=2, **SETTINGS)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("step 6/6") == 1, "the first process alone speaks"
    config = TrainingConfig(output_dir=str(tmp_path / "one"), gradient_accumulation_steps=4, **SETTINGS)
    Trainer(StandInModel(StandInConfig(dropout=0.0)), config, StandInSource(), eval_data=StandInSource(seed=1)).train()
    torch.testing.assert_close(
        weights_of(tmp_path / "two" / "checkpoint-6"), weights_of(tmp_path / "one" / "checkpoint-6")
    )
    two, one = (read_metrics(tmp_path / name / "metrics.jsonl") for name in ("two", "one"))
    timed = ("tokens_per_second", "elapsed_seconds", "epoch")
    assert len(two) == len(one) == 4
    for ours, theirs in zip(two, one, strict=True):
        for name in set(ours) - set(timed):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-4), name


def one_of_two(rank, meeting_file, run, settings):
    dist.init_process_group("gloo", init_method=f"file://{meeting_file}", rank=rank, world_size=2)
    trainer.default_sinks = metrics_only_sinks
    config = TrainingConfig(output_dir=run, num_threads=1, **settings)
    assert Trainer(StandInModel(), config, StandInSource(), eval_data=StandInSource(1, seed=1)).train().exit_code == 0
    dist.destroy_process_group()


def two_processes(tmp_path, run, **settings):
    meeting_file = tmp_path / f"meeting-{run.name}-{len(list(tmp_path.iterdir()))}"
    arguments = [(rank, str(meeting_file), str(run), SETTINGS | settings) for rank in range(2)]
    processes = [SERVER.Process(target=one_of_two, args=each) for each in arguments]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=60)
    assert [process.exitcode for process in processes] == [0, 0]


def test_two_processes_resume_to_the_bit(tmp_path):
    two_processes(tmp_path, tmp_path / "straight")
    from_three = str(tmp_path / "straight" / "checkpoint-3")
    two_processes(tmp_path, tmp_path / "resumed", resume_from_checkpoint=from_three)
    straight, resumed = (weights_of(tmp_path / name / "checkpoint-6") for name in ("straight", "resumed"))
    assert all(torch.equal(straight[name], resumed[name]) for name in straight)


def test_what_makes_several_runs_is_refused_under_torchrun(monkeypatch):
    expect_one_process("glue")
    monkeypatch.setattr(World, "join", lambda: World(size=2))
    with pytest.raises(ValueError, match=r"glue makes several runs.*start it without torchrun"):
        expect_one_process("glue")


def test_a_process_that_waits_in_vain_says_so(monkeypatch):
    def closed():
        raise RuntimeError("Connection closed by peer\nand more")

    monkeypatch.setattr(dist, "barrier", closed)
    World().barrier()
    with pytest.raises(
        ConnectionError, match=r"process 1 waited in vain for the others; .*\(Connection closed by peer\)$"
    ):
        World(rank=1, size=2).barrier()


def one_whose_evaluation_fails_on_one_of_two(rank, meeting_file, run):
    def evaluation(model, *, world, **_):
        if world.rank == 1:
            raise ValueError("no example in this corpus")
        return {"eval_loss": world.sum({"loss": 1.0})["loss"]}

    dist.init_process_group("gloo", init_method=f"file://{meeting_file}", rank=rank, world_size=2)
    trainer.default_sinks = metrics_only_sinks
    config = TrainingConfig(output_dir=run, num_threads=1, max_steps=4, eval_steps=2, save_steps=100)
    Trainer(StandInModel(), config, StandInSource(), evaluation=evaluation).train()


def test_an_evaluation_that_fails_in_one_process_ends_it_and_waits_for_nobody(tmp_path):
    """The others are in the evaluation, and would not come to a save."""
    arguments = [(rank, str(tmp_path / "meeting"), str(tmp_path / "run")) for rank in range(2)]
    processes = [SERVER.Process(target=one_whose_evaluation_fails_on_one_of_two, args=each) for each in arguments]
    for process in processes:
        process.start()
    processes[1].join(timeout=60)
    ended = processes[1].exitcode
    for process in processes:
        process.kill()
        process.join()
    assert ended == 1
    assert not list_checkpoints(tmp_path / "run")
