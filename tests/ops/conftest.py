"""Fixtures of the operator tests: every instruction set, every thread count."""

import gc
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from benchmarks.gpu.trial import why_not
from fastssl import extension
from fastssl.ops.attention import hopper
from tests.cuda_emulation.emulation import Emulation
from tests.cuda_hardware import Hardware

CAPABILITIES = ["generic", "avx2", "avx512"]


@pytest.fixture(params=CAPABILITIES)
def capability(request) -> str:
    """Run the test once per compiled copy of the CPU kernels; skips those that this machine lacks."""
    if not extension.cpu_ops_loaded():
        pytest.skip("the compiled CPU operators are not built")
    best = extension.cpu_capability()
    if CAPABILITIES.index(request.param) > CAPABILITIES.index(best):
        pytest.skip(f"this machine has no {request.param}")
    torch.ops.fastssl.set_cpu_capability(request.param)
    yield request.param
    torch.ops.fastssl.set_cpu_capability(best)


@pytest.fixture
def with_threads():
    """Return a function that calls another one on a given number of threads."""
    before = torch.get_num_threads()

    def call(num_threads, function):
        torch.set_num_threads(num_threads)
        return function()

    yield call
    torch.set_num_threads(before)


@pytest.fixture
def triton_device() -> str:
    """Where Triton's kernels run in this session: on the GPU, or on the CPU in Triton's interpreter."""
    return "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture
def cuda_kernels(monkeypatch, request) -> Iterator[Emulation | Hardware]:
    """Run the CUDA kernels wherever the native backends call the compiled operators, on tensors of the CPU.

    Where there is a GPU they run on it, elsewhere in the emulation, in which a write outside a tensor that a launcher
    had allocated fails the test.
    """
    if not extension.cpu_ops_loaded():
        pytest.skip("the compiled CPU operators are not built")
    if torch.cuda.is_available():
        if not extension.cuda_ops_loaded():
            pytest.skip("the compiled CUDA operators are not built")
        kernels = Hardware(torch.ops.fastssl, "cuda")
    else:
        kernels = request.getfixturevalue("cuda_emulation")
    kernels.set_device()
    kernels.set_thread_order(0)
    monkeypatch.setattr(torch.ops, "fastssl", kernels.ops)
    yield kernels
    gc.collect()
    assert not kernels.remembered_error()


@pytest.fixture
def hopper_runs(cuda_kernels, monkeypatch) -> None:
    """Let the kernels for compute capability 9.0 take tensors of the CPU, as `cuda_kernels` does with the others."""
    if torch.cuda.is_available() and (reason := why_not("hopper")):
        if torch.cuda.get_device_capability() == (9, 0):
            pytest.fail(reason)
        pytest.skip(reason)
    reasons = {why: refuses for why, refuses in hopper.SUPPORTS.refuses.items() if "capability" not in why}
    here = replace(hopper.SUPPORTS, devices=(), needs_cuda_ops=False, refuses=reasons)
    monkeypatch.setattr(hopper, "SUPPORTS", here)
