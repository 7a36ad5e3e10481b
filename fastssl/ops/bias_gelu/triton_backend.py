"""`bias_gelu` by Triton kernels, for any GPU that Triton serves: one pass over memory in each direction."""

import torch
from torch import Tensor

from fastssl.ops.backend import Supports
from fastssl.ops.bias_gelu import native
from fastssl.ops.bias_gelu.triton_tiling import (
    BACKWARD_BYTES,
    FORWARD_BYTES,
    NUM_WARPS,
    PARTIALS,
    Tiling,
    other_tilings,
    tiling_of,
    walk_of,
)
from fastssl.ops.tile_search import Trial, rounded_size, tile_for
from fastssl.ops.triton_device import processors
from fastssl.ops.triton_launch import launch

SUPPORTS = Supports(
    devices=("cuda", "cpu"),
    dtypes=(torch.float32, torch.bfloat16, torch.float16),
    needs_triton=True,
    unverified_on=("cpu",),
    first_on=("cuda",),
    refuses=native.SUPPORTS.refuses,
)

_OPTIONS = {"enable_fp_fusion": True}
"""Of every launch: products and sums fuse, whatever this release of Triton does by itself."""


def forward(x: Tensor, bias: Tensor, *, approximate: str) -> Tensor:
    """Return y of `fastssl.ops.bias_gelu`, without a graph for autograd."""
    return (_forward_op if torch.compiler.is_compiling() else _forward)(x, bias, approximate == "tanh")


def backward(grad_y: Tensor, x: Tensor, bias: Tensor, *, approximate: str) -> tuple[Tensor, Tensor]:
    """Return the gradients of `x`, in its dtype, and of `bias`, float32."""
    return (_backward_op if torch.compiler.is_compiling() else _backward)(grad_y, x, bias, approximate == "tanh")


def _forward(x: Tensor, bias: Tensor, tanh: bool) -> Tensor:
    from fastssl.ops.bias_gelu.triton_kernels import forward_kernel

    y = native.forward_fake(x, bias, tanh)
    if not x.numel():
        return y
    width = x.shape[-1]
    num_rows = x.numel() // width
    x, bias = x.contiguous(), bias.contiguous()

    def run(tiling: Tiling) -> None:
        launch(
            forward_kernel,
            (tiling.blocks * -(-num_rows // tiling.rows),),
            (x, bias, y),
            (num_rows,),
            options={"num_warps": NUM_WARPS, **_OPTIONS},
            WIDTH=width,
            COLUMNS=tiling.columns,
            ROWS=tiling.rows,
            ROW_GROUPS=tiling.row_groups,
            VECTOR=tiling.vector,
            TANH=tanh,
        )

    with torch.cuda.device_of(x):
        trial = Trial(run, lambda tiling: (run(tiling), y))
        run(_tiling(forward_kernel, FORWARD_BYTES, trial, x, bias, tanh))
    return y


def _backward(grad_y: Tensor, x: Tensor, bias: Tensor, tanh: bool) -> tuple[Tensor, Tensor]:
    grad_x, grad_bias = native.backward_fake(grad_y, x, bias, tanh)
    if not x.numel():
        return grad_x, grad_bias.zero_()
    with torch.cuda.device_of(x):
        partials = _launch_rows(grad_y.contiguous(), x.contiguous(), bias.contiguous(), grad_x, tanh)
        _launch_sum(partials, grad_bias)
    return grad_x, grad_bias


def _launch_rows(grad_y: Tensor, x: Tensor, bias: Tensor, grad_x: Tensor, tanh: bool) -> Tensor:
    """Write the gradient of x; return the partial sums of the bias's, (parts, F) float32."""
    from fastssl.ops.bias_gelu.triton_kernels import backward_kernel

    width = x.shape[-1]
    num_rows = x.numel() // width

    def run(tiling: Tiling) -> Tensor:
        parts, stages = walk_of(num_rows, tiling, processors(x.device))
        partials = x.new_empty(parts, width, dtype=torch.float32)
        launch(
            backward_kernel,
            (tiling.blocks, parts),
            (grad_y, x, bias, grad_x, partials),
            (num_rows,),
            options={"num_warps": NUM_WARPS, **_OPTIONS},
            WIDTH=width,
            COLUMNS=tiling.columns,
            ROWS=tiling.rows,
            ROW_GROUPS=tiling.row_groups,
            VECTOR=tiling.vector,
            TANH=tanh,
            STAGES=stages,
        )
        return partials

    def results(tiling: Tiling) -> tuple[Tensor, Tensor]:
        partials = run(tiling)
        return grad_x, partials.sum(0)

    return run(_tiling(backward_kernel, BACKWARD_BYTES, Trial(results, results), x, bias, tanh))


def _tiling(kernel, tile_bytes: int, trial: Trial, x: Tensor, bias: Tensor, tanh: bool) -> Tiling:
    """Return the tiles of a direction: a function of the call, or measured."""
    width = x.shape[-1]
    return tile_for(
        kernel,
        tiling_of(width, x.dtype, tile_bytes),
        lambda: other_tilings(width, x.dtype, tile_bytes),
        lambda: {
            "rows": rounded_size(x.numel() // width),
            "width": width,
            "dtypes": (x.dtype, bias.dtype),
            "tanh": tanh,
        },
        lambda: trial,
        x.device,
    )


def _launch_sum(partials: Tensor, grad_bias: Tensor) -> None:
    """Write the gradient of the bias."""
    from fastssl.ops.bias_gelu.triton_kernels import sum_partials_kernel

    num_partials, width = partials.shape
    launch(
        sum_partials_kernel,
        (-(-width // PARTIALS.columns),),
        (partials, grad_bias),
        (num_partials,),
        options={"num_warps": PARTIALS.num_warps, **_OPTIONS},
        WIDTH=width,
        COLUMNS=PARTIALS.columns,
        ROWS=PARTIALS.rows,
        STAGES=PARTIALS.stages,
    )


# Calls of these cost a dozen microseconds more than those of the functions, so that only graphs hold them.
_forward_op = torch.library.custom_op("fastssl::triton_bias_gelu_forward", _forward, mutates_args=())
_backward_op = torch.library.custom_op("fastssl::triton_bias_gelu_backward", _backward, mutates_args=())


_forward_op.register_fake(native.forward_fake)
_backward_op.register_fake(native.backward_fake)
