"""How the Triton kernels of `layer_norm` cut their rows: functions of the shape, the dtypes and the device alone.

The README of the operator derives these numbers, and says what an H100 made of them. The `other_...` functions are what
a search on the GPU at hand (`fastssl.ops.tile_search`) tries beside them.
"""

import functools
from collections.abc import Iterator
from typing import NamedTuple

import torch

from fastssl.ops.triton_device import Processors

MAX_WIDTH = 16384
"""A program keeps whole rows in the registers of one multiprocessor; wider ones do not fit."""
MAX_WIDTH_WITH_SUMS = 8192
"""Beyond this the backward has no registers left for the sums of weight and bias: a second kernel makes them."""
BACKWARD_REGISTERS = 128
"""Of a thread: what a multiprocessor has for each of the 512 that stay on it. The compiler would at times take more,
and a program would wait for its place."""
_SHARED_BYTES_BESIDE = 4096
"""Shared memory of a program that is no tile: what CUDA keeps, and the exchange of sums between warps."""


class ForwardTiling(NamedTuple):
    """Of `forward_kernel`."""

    block: int
    """Columns of a tile: the power of two that holds a row."""
    rows: int
    """Rows of a tile; a program has one tile."""
    vector: int
    """Neighbouring columns of a thread."""
    num_warps: int


class BackwardThreads(NamedTuple):
    """What a tiling of `backward_kernel` follows from, for any number of rows."""

    num_warps: int
    elements: int
    """Of a tile, to each thread; more where one row has more."""


class BackwardTiling(NamedTuple):
    """Of `backward_kernel`."""

    block: int
    """Columns of a tile, as in the forward."""
    rows: int
    """Rows of a tile; a program walks over many."""
    row_groups: int
    """Threads that hold the same columns, of different rows."""
    vector: int
    """Neighbouring columns of a thread."""
    num_warps: int
    stages: int
    """Tiles in the pipeline, with the one at work."""
    programs: int
    """Size of the grid."""


class SumTiling(NamedTuple):
    """Of `sum_partials_kernel` and `parameter_kernel`."""

    columns: int
    rows: int
    num_warps: int
    stages: int


PARTIALS = SumTiling(columns=16, rows=256, num_warps=8, stages=3)
"""Narrow programs, so that there is one for every multiprocessor."""
PARAMETERS = SumTiling(columns=512, rows=8, num_warps=8, stages=3)
"""Of rows wider than MAX_WIDTH_WITH_SUMS."""


@functools.lru_cache
def forward_tiling(width: int, *dtypes: torch.dtype) -> ForwardTiling:
    """Return tiles in which a thread has 128 bytes of every tensor under way, 64 in rows of 16 bits that are narrow.

    A warp has rows of up to 1024 columns to itself, so that their sums need no barrier. Where a tile of 16-bit elements
    has twice the rows, they share the parameters that a thread loads.

    Args:
        width: of a row.
        dtypes: of x, the residual and the sum.
    """
    block, vector = _block(width), _vector(dtypes)
    num_warps = min(max(1, block // 1024), 16)
    return _forward_tiling(block, vector, num_warps, 64 if vector == 8 and 512 <= block < MAX_WIDTH else 32)


def other_forward_tilings(width: int, *dtypes: torch.dtype) -> Iterator[ForwardTiling]:
    """Yield tilings with half and twice the warps to a row, and 16 to 64 elements a thread."""
    block, vector, num_warps = _block(width), _vector(dtypes), forward_tiling(width, *dtypes).num_warps
    for warps in (num_warps // 2, num_warps, 2 * num_warps):
        for elements in (16, 32, 64):
            if 1 <= warps <= 16 and 32 * warps * elements >= block:
                yield _forward_tiling(block, vector, warps, elements)


def backward_threads(width: int) -> BackwardThreads:
    """Return 16 elements a thread, which leave room in the registers for the weight and both sums of its columns."""
    return BackwardThreads(num_warps=min(max(4, _block(width) // 256), 16), elements=16)


def other_backward_threads(width: int) -> Iterator[BackwardThreads]:
    """Yield 4 to 16 warps with 8 to 32 elements a thread."""
    for num_warps in (4, 8, 16):
        for elements in (8, 16, 32):
            if 32 * num_warps * elements >= min(_block(width), 512 * 16):
                yield BackwardThreads(num_warps, elements)


@functools.lru_cache
def backward_tiling(
    num_rows: int,
    width: int,
    dtypes: tuple[torch.dtype, ...],
    device: Processors,
    threads: BackwardThreads | None = None,
) -> BackwardTiling:
    """Return tiles, and programs that put 512 threads on each multiprocessor.

    Tiles to come wait in shared memory, as many as it holds. All programs get the same number of tiles, give or take
    one: fewer programs make fewer partial sums.

    Args:
        num_rows, width: of the input.
        dtypes: of the tensors that are read, one each.
        device: what it runs on.
        threads: None for `backward_threads(width)`.
    """
    num_warps, elements = threads or backward_threads(width)
    block, vector = _block(width), _vector(dtypes)
    rows = max(1, 32 * num_warps * elements // block)
    resident = 16 // num_warps
    tile_bytes = rows * block * sum(dtype.itemsize for dtype in dtypes)
    stages = min(3, 1 + (device.shared_bytes // resident - _SHARED_BYTES_BESIDE) // tile_bytes)
    num_tiles = -(-num_rows // rows)
    tiles_each = -(-num_tiles // min(num_tiles, resident * device.count))
    return BackwardTiling(
        block=block,
        rows=rows,
        row_groups=max(1, 32 * num_warps * vector // block),
        vector=vector,
        num_warps=num_warps,
        stages=stages,
        programs=-(-num_tiles // tiles_each),
    )


def _forward_tiling(block: int, vector: int, num_warps: int, elements: int) -> ForwardTiling:
    """Return tiles of so many elements a thread, or of one row."""
    return ForwardTiling(block, max(1, 32 * num_warps * elements // block), vector, num_warps)


def _block(width: int) -> int:
    return max(16, 1 << (width - 1).bit_length())


def _vector(dtypes: tuple[torch.dtype, ...]) -> int:
    """Return the columns of a thread: 16 bytes of the widest tensor, so that stores fill whole sectors."""
    return 4 if torch.float32 in dtypes else 8
