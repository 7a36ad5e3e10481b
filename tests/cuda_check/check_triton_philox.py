"""Dropout of a tile, in the shapes of attention and of layer norm, keeps everything in registers."""

import pytest
import triton
import triton.language as tl

from fastssl.ops.triton_philox import keep_mask, philox_key
from tests.cuda_check.triton_compilation import CAPABILITIES, compile_and_check


@triton.jit
def dropped_tile_kernel(values, seed, threshold, row, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Zeroes what the mask drops of a tile (ROWS, COLUMNS)."""
    key_0, key_1 = philox_key(seed)
    group = tl.arange(0, COLUMNS // 8)[None, :].to(tl.uint32)
    rows = row + tl.arange(0, ROWS)[:, None]
    zero = tl.full((1, 1), 0, tl.uint32)
    keep = keep_mask(group, rows.to(tl.uint32), zero, zero, key_0, key_1, threshold)
    at = values + rows * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    tl.store(at, tl.where(keep, tl.load(at), 0.0))


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize(("rows", "columns"), [(1, 1024), (4, 256), (64, 64), (64, 128)])
def test_dropped_tile(capability, dtype, rows, columns):
    compile_and_check(
        dropped_tile_kernel,
        {"values": f"*{dtype}", "seed": "*i64", "threshold": "i32", "row": "i32"},
        {"ROWS": rows, "COLUMNS": columns},
        capability=capability,
        num_warps=4,
        num_stages=1,
    )
