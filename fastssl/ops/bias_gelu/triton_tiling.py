"""How the Triton kernels of `bias_gelu` cut a matrix: functions of the shape, the dtype and the device alone.

The README of the operator derives these numbers, and says what an H100 made of them.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch

from fastssl.ops.triton_device import Processors

NUM_WARPS = 4
FORWARD_BYTES = 8192
"""Of a tile of each tensor: four loads of 16 bytes a thread."""
BACKWARD_BYTES = 4096
"""The same; two loads a thread, which leave it registers for its columns of the bias and of its gradient."""
RESIDENT = 4
"""Programs of the backward on each multiprocessor: 512 threads."""
_SHARED_BYTES_BESIDE = 4096
"""Shared memory of a program that is no tile: what CUDA keeps, and the sums that warps exchange."""
_COLUMNS = (1024, 512, 256)


class Tiling(NamedTuple):
    """Of one direction."""

    columns: int
    """Of a tile, a power of two."""
    rows: int
    """Of a tile."""
    vector: int
    """Neighbouring columns of a thread: 16 bytes."""
    blocks: int
    """Tiles that cover a row."""

    @property
    def row_groups(self) -> int:
        """Threads that hold the same columns, of different rows."""
        return max(1, 32 * NUM_WARPS * self.vector // self.columns)

    @property
    def bytes(self) -> int:
        """Of a tile of one tensor."""
        return self.rows * self.columns * 16 // self.vector


class Walk(NamedTuple):
    """Of the programs of the backward."""

    parts: int
    """Programs with the same columns; each leaves one partial sum of them."""
    stages: int
    """Tiles in the pipeline, with the one at work."""


class SumTiling(NamedTuple):
    """Of `sum_partials_kernel`."""

    columns: int
    rows: int
    num_warps: int
    stages: int


PARTIALS = SumTiling(columns=16, rows=256, num_warps=8, stages=2)
"""Narrow programs, so that there is one for every multiprocessor."""


def tiling_of(width: int, dtype: torch.dtype, tile_bytes: int) -> Tiling:
    """Return tiles as wide as leaves the fewest lanes without a column.

    Args:
        width: of a row.
        dtype: of x.
        tile_bytes: FORWARD_BYTES or BACKWARD_BYTES.
    """
    if width <= _COLUMNS[-1]:
        columns = max(16, 1 << (width - 1).bit_length())
    else:
        columns = min(_COLUMNS, key=lambda columns: (-width % columns, -columns))
    return _tiling(width, columns, dtype, tile_bytes)


def other_tilings(width: int, dtype: torch.dtype, tile_bytes: int) -> Iterator[Tiling]:
    """Yield what a search on the GPU (`fastssl.ops.tile_search`) tries: other widths, half and twice the bytes."""
    for columns in _COLUMNS if width > _COLUMNS[-1] else (tiling_of(width, dtype, tile_bytes).columns,):
        for size in (tile_bytes // 2, tile_bytes, 2 * tile_bytes):
            tiling = _tiling(width, columns, dtype, size)
            if tiling.rows >= tiling.row_groups:  # each thread has a column of some row
                yield tiling


def _tiling(width: int, columns: int, dtype: torch.dtype, tile_bytes: int) -> Tiling:
    return Tiling(
        columns=columns,
        rows=tile_bytes // dtype.itemsize // columns,
        vector=16 // dtype.itemsize,
        blocks=-(-width // columns),
    )


def walk_of(num_rows: int, tiling: Tiling, device: Processors) -> Walk:
    """Return programs that stay together on the device, with the same number of tiles each, give or take one.

    Args:
        num_rows: at least one.
        tiling: of the backward.
        device: what it runs on.
    """
    num_tiles = -(-num_rows // tiling.rows)
    tiles_each = -(-num_tiles // max(1, min(num_tiles, RESIDENT * device.count // tiling.blocks)))
    room = device.shared_bytes // RESIDENT - _SHARED_BYTES_BESIDE
    return Walk(parts=-(-num_tiles // tiles_each), stages=min(3, 1 + room // (2 * tiling.bytes)))
