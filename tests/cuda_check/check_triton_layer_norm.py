"""The Triton kernels of layer norm, in the tiles that a launch on an A100 or an H100 would take: nothing spills."""

import pytest

from fastssl.ops.layer_norm.triton_kernels import (
    backward_kernel,
    forward_kernel,
    parameter_kernel,
    sum_partials_kernel,
)
from fastssl.ops.layer_norm.triton_tiling import (
    BACKWARD_REGISTERS,
    MAX_WIDTH,
    MAX_WIDTH_WITH_SUMS,
    PARAMETERS,
    PARTIALS,
    Processors,
    SumTiling,
    backward_tiling,
    forward_tiling,
)
from tests.cuda_check.triton_compilation import CAPABILITIES, DTYPES, compile_and_check

PROCESSORS = {80: Processors(108, 164 * 1024), 90: Processors(132, 228 * 1024)}
REGISTERS_OF_A_PROCESSOR = 65536
PLAIN, FUSED, WITH_SUM = {}, {"residual": True, "dropout": True}, {"residual": True, "dropout": True, "grad_sum": True}
WIDTHS = (128, 256, 384, 512, 768, 1024, 1536, 2048, 4096, 8192)
"""All are compiled in bfloat16."""
FLOAT32_WIDTHS = (768, 1024, 4096, 8192)
CALLS = [
    *(("bf16", "bf16", width, options) for width in WIDTHS for options in (PLAIN, FUSED, WITH_SUM)),
    *(("fp32", "fp32", width, options) for width in FLOAT32_WIDTHS for options in (PLAIN, FUSED, WITH_SUM)),
    *(("bf16", "fp32", width, options) for width in FLOAT32_WIDTHS for options in (FUSED, WITH_SUM)),
    ("fp16", "fp16", 1024, FUSED),
    ("fp16", "fp32", 1024, FUSED),
]
"""dtypes of x and of the sum, width, options."""
IDS = [f"{x}-{total}-{width}-{'-'.join(options) or 'plain'}" for x, total, width, options in CALLS]
SCALARS = {"num_rows": "i32", "threshold": "i32", "scale": "fp32"}


def arguments(given: dict[str, object]) -> tuple[dict[str, str], dict[str, object]]:
    """Split what is given into types of pointers and constants; None and False are a pointer that is not given."""
    types = {name: kind for name, kind in given.items() if isinstance(kind, str)}
    return types, {name: None for name, kind in given.items() if not isinstance(kind, str)}


def compile_forward(x, total, width, options, capability, with_sum=True, **more):
    block, rows, vector, num_warps = forward_tiling(width, DTYPES[x], DTYPES[total])
    residual, dropout = options.get("residual"), options.get("dropout")
    signature, constexprs = arguments(
        {
            "x_ptr": f"*{x}",
            "residual_ptr": residual and f"*{total}",
            "weight_ptr": "*fp32",
            "bias_ptr": "*fp32",
            "seed_ptr": dropout and "*i64",
            "y_ptr": f"*{x}",
            "sum_ptr": with_sum and (residual or dropout) and f"*{total}",
            "mean_ptr": "*fp32",
            "rstd_ptr": "*fp32",
        }
    )
    constexprs |= {"WIDTH": width, "BLOCK": block, "ROWS": rows, "VECTOR": vector}
    signature |= {**SCALARS, "eps": "fp32"}
    return compile_and_check(
        forward_kernel, signature, constexprs, capability=capability, num_warps=num_warps, num_stages=1, **more
    )


def compile_backward(x, total, width, options, capability, **more):
    dropout, grad_sum = options.get("dropout"), options.get("grad_sum")
    read = (DTYPES[x], DTYPES[total], *((DTYPES[total],) if grad_sum else ()))
    tiling = backward_tiling(1 << 20, width, read, PROCESSORS[capability])
    signature, constexprs = arguments(
        {
            "grad_y_ptr": f"*{x}",
            "grad_sum_ptr": grad_sum and f"*{total}",
            "sum_ptr": f"*{total}",
            "weight_ptr": "*fp32",
            "mean_ptr": "*fp32",
            "rstd_ptr": "*fp32",
            "seed_ptr": dropout and "*i64",
            "grad_x_ptr": f"*{x}",
            "grad_residual_ptr": (dropout or x != total) and f"*{total}",
            "partials_ptr": width <= MAX_WIDTH_WITH_SUMS and "*fp32",
        }
    )
    constexprs |= {
        "WIDTH": width,
        "BLOCK": tiling.block,
        "ROWS": tiling.rows,
        "ROW_GROUPS": tiling.row_groups,
        "VECTOR": tiling.vector,
        "STAGES": tiling.stages,
    }
    resources = compile_and_check(
        backward_kernel,
        signature | SCALARS,
        constexprs,
        capability=capability,
        num_warps=tiling.num_warps,
        num_stages=3,
        maxnreg=BACKWARD_REGISTERS,
        **more,
    )
    return resources, tiling


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize(("x", "total", "width", "options"), CALLS, ids=IDS)
def test_forward(x, total, width, options, capability):
    compile_forward(x, total, width, options, capability, with_sum="grad_sum" not in options)


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize(("x", "total", "width", "options"), CALLS, ids=IDS)
def test_backward(x, total, width, options, capability):
    resources, tiling = compile_backward(x, total, width, options, capability)
    device = PROCESSORS[capability]
    resident = min(
        REGISTERS_OF_A_PROCESSOR // (32 * tiling.num_warps * (-(-resources.registers // 8) * 8)),
        device.shared_bytes // (resources.shared_bytes + 1024),
    )
    assert tiling.programs <= resident * device.count, f"programs wait for each other: {tiling}, {resources}"


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize(("x", "total"), [("bf16", "bf16"), ("fp32", "fp32"), ("bf16", "fp32")])
def test_widest_rows(x, total, capability):
    """The backward of the widest rows may spill: it has 128 registers for 32 elements of up to three tensors."""
    compile_forward(x, total, MAX_WIDTH, FUSED, capability)
    compile_backward(x, total, MAX_WIDTH, PLAIN, capability, hot=x == total)
    compile_backward(x, total, MAX_WIDTH, WITH_SUM, capability, hot=False)


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("width", [131, 500])
def test_rows_that_do_not_lie_on_sectors(width, capability):
    compile_forward("bf16", "bf16", width, FUSED, capability, hot=False)
    compile_backward("bf16", "bf16", width, WITH_SUM, capability, hot=False)


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_gradient_through_the_sum_alone(capability):
    tiling = backward_tiling(1 << 20, 1024, (DTYPES["bf16"],), PROCESSORS[capability])
    compile_and_check(
        backward_kernel,
        {
            "grad_sum_ptr": "*bf16",
            "sum_ptr": "*bf16",
            "weight_ptr": "*fp32",
            "mean_ptr": "*fp32",
            "rstd_ptr": "*fp32",
            "seed_ptr": "*i64",
            "grad_x_ptr": "*bf16",
            "grad_residual_ptr": "*bf16",
        }
        | SCALARS,
        {
            "grad_y_ptr": None,
            "partials_ptr": None,
            "WIDTH": 1024,
            "BLOCK": tiling.block,
            "ROWS": tiling.rows,
            "ROW_GROUPS": tiling.row_groups,
            "VECTOR": tiling.vector,
            "STAGES": tiling.stages,
        },
        capability=capability,
        num_warps=tiling.num_warps,
        num_stages=3,
        maxnreg=BACKWARD_REGISTERS,
    )


def constants(tiling: SumTiling, width: int) -> dict[str, int]:
    return {"WIDTH": width, "COLUMNS": tiling.columns, "ROWS": tiling.rows, "STAGES": tiling.stages}


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("width", [384, 768, 1024, 8192])
def test_sum_of_partials(width, dtype, capability):
    compile_and_check(
        sum_partials_kernel,
        {"partials_ptr": "*fp32", "grad_weight_ptr": f"*{dtype}", "grad_bias_ptr": "*fp32", "num_partials": "i32"},
        constants(PARTIALS, width),
        capability=capability,
        num_warps=PARTIALS.num_warps,
        num_stages=PARTIALS.stages,
    )


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize(("x", "total"), [("bf16", "bf16"), ("fp32", "fp32"), ("bf16", "fp32")])
def test_parameters_of_the_widest_rows(x, total, capability):
    compile_and_check(
        parameter_kernel,
        {
            "grad_y_ptr": f"*{x}",
            "sum_ptr": f"*{total}",
            "mean_ptr": "*fp32",
            "rstd_ptr": "*fp32",
            "partials_ptr": "*fp32",
            "num_rows": "i32",
        },
        constants(PARAMETERS, MAX_WIDTH),
        capability=capability,
        num_warps=PARAMETERS.num_warps,
        num_stages=PARAMETERS.stages,
    )
