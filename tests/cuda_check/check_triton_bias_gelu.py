"""The Triton kernels of bias + GELU, in the tiles that a launch on an A100 or an H100 would take: nothing spills."""

import pytest

from fastssl.ops.bias_gelu.triton_kernels import backward_kernel, forward_kernel, sum_partials_kernel
from fastssl.ops.bias_gelu.triton_tiling import (
    BACKWARD_BYTES,
    FORWARD_BYTES,
    NUM_WARPS,
    PARTIALS,
    RESIDENT,
    Processors,
    tiling_of,
    walk_of,
)
from tests.cuda_check.triton_compilation import CAPABILITIES, DTYPES, compile_and_check

PROCESSORS = {80: Processors(108, 164 * 1024), 90: Processors(132, 228 * 1024)}
REGISTERS_OF_A_PROCESSOR = 65536
CALLS = [
    *(("bf16", "fp32", width) for width in (128, 256, 768, 1024, 1536, 3072, 4096, 16384)),
    *((x, bias, 3072) for x, bias in (("bf16", "bf16"), ("fp16", "fp16"), ("fp16", "fp32"), ("fp32", "fp32"))),
    ("fp32", "fp32", 768),
    ("fp32", "bf16", 3072),
]
"""dtypes of x and of the bias, width."""


def constants(width, tiling, tanh):
    return {
        "WIDTH": width,
        "COLUMNS": tiling.columns,
        "ROWS": tiling.rows,
        "ROW_GROUPS": tiling.row_groups,
        "VECTOR": tiling.vector,
        "TANH": tanh,
    }


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("tanh", [False, True])
@pytest.mark.parametrize(("x", "bias", "width"), CALLS)
def test_forward(x, bias, width, tanh, capability):
    resources = compile_and_check(
        forward_kernel,
        {"x_ptr": f"*{x}", "bias_ptr": f"*{bias}", "y_ptr": f"*{x}", "num_rows": "i32"},
        constants(width, tiling_of(width, DTYPES[x], FORWARD_BYTES), tanh),
        capability=capability,
        num_warps=NUM_WARPS,
        num_stages=1,
    )
    assert resources.shared_bytes == 0, "the bias meets the tile in another layout"
    assert resources.registers <= 64, f"too few programs stay to keep the memory busy: {resources}"


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("tanh", [False, True])
@pytest.mark.parametrize(("x", "bias", "width"), CALLS)
def test_backward(x, bias, width, tanh, capability):
    device, tiling = PROCESSORS[capability], tiling_of(width, DTYPES[x], BACKWARD_BYTES)
    stages = walk_of(1 << 20, tiling, device).stages
    resources = compile_and_check(
        backward_kernel,
        {
            "grad_y_ptr": f"*{x}",
            "x_ptr": f"*{x}",
            "bias_ptr": f"*{bias}",
            "grad_x_ptr": f"*{x}",
            "partials_ptr": "*fp32",
            "num_rows": "i32",
        },
        constants(width, tiling, tanh) | {"STAGES": stages},
        capability=capability,
        num_warps=NUM_WARPS,
        num_stages=3,
    )
    resident = min(
        REGISTERS_OF_A_PROCESSOR // (32 * NUM_WARPS * (-(-resources.registers // 8) * 8)),
        device.shared_bytes // (resources.shared_bytes + 1024),
    )
    assert resident >= RESIDENT, f"programs wait for each other: {resources}"


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("width", [131, 500])
def test_rows_that_do_not_lie_on_sectors(width, capability):
    tiling = tiling_of(width, DTYPES["bf16"], FORWARD_BYTES)
    compile_and_check(
        forward_kernel,
        {"x_ptr": "*bf16", "bias_ptr": "*fp32", "y_ptr": "*bf16", "num_rows": "i32"},
        constants(width, tiling, False),
        capability=capability,
        num_warps=NUM_WARPS,
        num_stages=1,
        hot=False,
    )


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("width", [768, 3072, 4096])
def test_sum_of_partials(width, capability):
    compile_and_check(
        sum_partials_kernel,
        {"partials_ptr": "*fp32", "grad_bias_ptr": "*fp32", "num_partials": "i32"},
        {"WIDTH": width, "COLUMNS": PARTIALS.columns, "ROWS": PARTIALS.rows, "STAGES": PARTIALS.stages},
        capability=capability,
        num_warps=PARTIALS.num_warps,
        num_stages=PARTIALS.stages,
    )
