import os
import time
from functools import partial

import pytest
import torch

from benchmarks.own_process import OwnProcess
from benchmarks.timing import Launch


def process_and_threads() -> Launch:
    return lambda: os.getpid() * 1000.0 + torch.get_num_threads()


def failing(when: str) -> Launch:
    if when == "built":
        raise ValueError("no such model")

    def launch() -> float:
        raise ValueError("no such batch")

    return launch


def test_the_launch_runs_elsewhere_with_as_many_threads():
    launch = OwnProcess(process_and_threads)
    before = torch.get_num_threads()
    try:
        for num_threads in (1, 2, 1):
            torch.set_num_threads(num_threads)
            process, threads = divmod(launch(), 1000)
            assert (process == os.getpid(), threads) == (False, num_threads)
    finally:
        torch.set_num_threads(before)


def slow() -> Launch:
    time.sleep(60.0)
    return lambda: 0.0


def test_several_are_built_at_once_and_one_that_takes_too_long_is_ended():
    first, second = (OwnProcess(build, wait=False) for build in (process_and_threads, slow))
    first.wait(60.0)
    assert first() > 0
    began = time.monotonic()
    with pytest.raises(RuntimeError, match="was not ready within 0 s"):
        second.wait(0.1)
    assert time.monotonic() - began < 10
    assert not second._process.is_alive()


def test_what_fails_there_is_told_here():
    with pytest.raises(RuntimeError, match="no such model"):
        OwnProcess(partial(failing, "built"))
    launch = OwnProcess(partial(failing, "launched"))
    with pytest.raises(RuntimeError, match="no such batch"):
        launch()
