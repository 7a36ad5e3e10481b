"""What this machine gives: the rates of its matrix product and of its memory, measured briefly and once a process."""

import itertools
import time
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from fastssl import extension

_MATMUL_SIZE = 1536
_COPY_BYTES = 1 << 28
_READ_BYTES, _PIECES = 1 << 30, 8


def measured_matmul_flops(dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu") -> float:
    """Return the floating-point operations per second of a square matrix product (the "sgemm rate").

    The best of several runs within a third of a second, with the present number of threads; kept for the process.

    Args:
        dtype: of the operands.
        device: where to measure.
    """
    return _matmul_flops(dtype, str(device), torch.get_num_threads())


def measured_copy_bandwidth(device: str | torch.device = "cpu") -> float:
    """Return the bytes per second, read and written together, of a copy larger than the caches.

    The best of several runs within a third of a second, with the present number of threads; kept for the process.

    Args:
        device: where to measure.
    """
    return _copy_bandwidth(str(device), torch.get_num_threads())


def measured_read_bandwidth(device: str | torch.device = "cpu") -> float:
    """Return the bytes per second of reading alone, of memory that no cache holds: what a decoding model is bound by.

    The best of several runs within a third of a second, with the present number of threads; kept for the process. A
    run reads an eighth of 1 GiB, each time another one.

    Args:
        device: where to measure.
    """
    return _read_bandwidth(str(device), torch.get_num_threads())


def read(tensor: Tensor) -> None:
    """Read a packed fp32 tensor once, as fast as its memory allows."""
    if tensor.is_cpu and extension.cpu_ops_loaded():
        torch.ops.fastssl.sum_of_words(tensor)
    else:
        tensor.sum()


@cache
def _matmul_flops(dtype: torch.dtype, device: str, num_threads: int) -> float:
    left, right = (torch.ones(_MATMUL_SIZE, _MATMUL_SIZE, dtype=dtype, device=device) for _ in range(2))
    out = torch.empty_like(left)
    return 2 * _MATMUL_SIZE**3 / _best_seconds(lambda: torch.mm(left, right, out=out), device)


@cache
def _copy_bandwidth(device: str, num_threads: int) -> float:
    source = torch.ones(_COPY_BYTES, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * _COPY_BYTES / _best_seconds(lambda: target.copy_(source), device)


@cache
def _read_bandwidth(device: str, num_threads: int) -> float:
    pieces = torch.ones(_PIECES, _READ_BYTES // _PIECES // 4, device=device)
    turn = itertools.cycle(pieces)
    return _READ_BYTES / _PIECES / _best_seconds(lambda: read(next(turn)), device)


def _best_seconds(work: Callable[[], object], device: str, budget_seconds: float = 0.35) -> float:
    """Return the shortest of the runs, at least three, that fit in the budget; the first one only warms up."""
    work()
    best, end, runs = float("inf"), time.perf_counter() + budget_seconds, 0
    while runs < 3 or time.perf_counter() < end:
        _wait(device)
        start = time.perf_counter()
        work()
        _wait(device)
        best, runs = min(best, time.perf_counter() - start), runs + 1
    return best


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
