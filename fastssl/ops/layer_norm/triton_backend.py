"""`layer_norm` by Triton kernels, for any GPU that Triton serves: one pass over memory in each direction."""

import torch
from torch import Tensor

from fastssl.ops.backend import Supports
from fastssl.ops.layer_norm import native
from fastssl.ops.layer_norm.triton_tiling import (
    BACKWARD_REGISTERS,
    MAX_WIDTH,
    MAX_WIDTH_WITH_SUMS,
    PARAMETERS,
    PARTIALS,
    BackwardThreads,
    ForwardTiling,
    backward_threads,
    backward_tiling,
    forward_tiling,
    other_backward_threads,
    other_forward_tilings,
)
from fastssl.ops.philox import LANE_RANGE, dropout_threshold
from fastssl.ops.tile_search import Trial, rounded_size, tile_for
from fastssl.ops.triton_device import processors
from fastssl.ops.triton_launch import launch

SUPPORTS = Supports(
    devices=("cuda", "cpu"),
    dtypes=(torch.float32, torch.bfloat16, torch.float16),
    needs_triton=True,
    unverified_on=("cpu",),
    first_on=("cuda",),
    refuses={
        **native.SUPPORTS.refuses,
        f"a row has more than {MAX_WIDTH} elements": lambda width, **_: width > MAX_WIDTH,
    },
)

_OPTIONS = {"enable_fp_fusion": True}
"""Of every launch: products and sums fuse, whatever this release of Triton does by itself."""
_BACKWARD_OPTIONS = _OPTIONS | ({} if torch.version.hip else {"maxnreg": BACKWARD_REGISTERS})


def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    *,
    eps: float,
    dropout_p: float,
    seed: Tensor | None,
    with_sum: bool,
) -> tuple[Tensor, Tensor]:
    """Return (y, sum) of `fastssl.ops.layer_norm`, without a graph for autograd; sum is empty if not asked for."""
    threshold = dropout_threshold(dropout_p)
    y, total, _, _ = (_forward_op if torch.compiler.is_compiling() else _forward)(
        x, weight, bias, residual, eps, threshold, seed, with_sum
    )
    return y, x if residual is None and threshold == 0 else total


def forward_saving(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, eps: float, dropout_p: float, seed
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return (y, sum, mean, rstd); sum is `x` itself where nothing is added to it or dropped from it."""
    threshold = dropout_threshold(dropout_p)
    y, total, mean, rstd = (_forward_op if torch.compiler.is_compiling() else _forward)(
        x, weight, bias, residual, eps, threshold, seed, True
    )
    return y, x if residual is None and threshold == 0 else total, mean, rstd


def backward(
    grad_y: Tensor | None,
    grad_sum: Tensor | None,
    total: Tensor,
    weight: Tensor,
    mean: Tensor,
    rstd: Tensor,
    *,
    dropout_p: float,
    seed: Tensor | None,
    with_residual: bool,
    bias_dtype: torch.dtype | None,
) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None]:
    """Return the gradients of x, residual (None where not asked for), weight and bias (None where there is none).

    No `grad_y` stands for zeros of the dtype of `total`.
    """
    threshold = dropout_threshold(dropout_p)
    apart = with_residual and (threshold > 0 or (grad_y is not None and grad_y.dtype != total.dtype))
    grad_x, grad_residual, grad_weight, grad_bias = (_backward_op if torch.compiler.is_compiling() else _backward)(
        grad_y, grad_sum, total, weight, mean, rstd, threshold, seed, apart, bias_dtype or weight.dtype
    )
    if not with_residual:
        grad_residual = None
    elif not apart:
        grad_residual = grad_x
    return grad_x, grad_residual, grad_weight, None if bias_dtype is None else grad_bias


def _forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    eps: float,
    dropout_threshold: int,
    seed: Tensor | None,
    with_sum: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    from fastssl.ops.layer_norm.triton_kernels import forward_kernel

    outputs = native.forward_fake(x, weight, bias, residual, eps, dropout_threshold, seed, with_sum)
    y, total, mean, rstd = outputs
    num_rows, width = mean.numel(), x.shape[-1]
    if not num_rows:
        return outputs
    x, residual, weight, bias = map(_contiguous, (x, residual, weight, bias))
    given_seed, given_total = seed if dropout_threshold else None, total if total.numel() else None

    def run(tiling: ForwardTiling) -> None:
        launch(
            forward_kernel,
            (-(-num_rows // tiling.rows),),
            (x, residual, weight, bias, given_seed, y, given_total, mean, rstd),
            (num_rows, eps, dropout_threshold, _scale(dropout_threshold)),
            options={"num_warps": tiling.num_warps, **_OPTIONS},
            WIDTH=width,
            BLOCK=tiling.block,
            ROWS=tiling.rows,
            VECTOR=tiling.vector,
        )

    def results(tiling: ForwardTiling) -> tuple[Tensor, ...]:
        run(tiling)
        return y, given_total, rstd  # a mean may be noise: that of rows that are normalised already

    with torch.cuda.device_of(x):
        tiling = tile_for(
            forward_kernel,
            forward_tiling(width, x.dtype, total.dtype),
            lambda: other_forward_tilings(width, x.dtype, total.dtype),
            lambda: _facts(num_rows, width, (x, residual, weight, bias, given_seed, y, given_total)),
            lambda: Trial(run, results),
            x.device,
        )
        run(tiling)
    return outputs


def _backward(
    grad_y: Tensor | None,
    grad_sum: Tensor | None,
    sum: Tensor,
    weight: Tensor,
    mean: Tensor,
    rstd: Tensor,
    dropout_threshold: int,
    seed: Tensor | None,
    residual_apart: bool,
    bias_dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    outputs = _backward_fake(
        grad_y, grad_sum, sum, weight, mean, rstd, dropout_threshold, seed, residual_apart, bias_dtype
    )
    grad_x, grad_residual, grad_weight, grad_bias = outputs
    if grad_y is None or not mean.numel():
        grad_weight.zero_(), grad_bias.zero_()
    if grad_y is None and grad_sum is None:
        grad_x.zero_(), grad_residual.zero_()
    elif mean.numel():
        seed = seed if dropout_threshold else None
        grad_y, grad_sum, sum = _contiguous(grad_y), _contiguous(grad_sum), sum.contiguous()
        with torch.cuda.device_of(sum):
            partials = _launch_rows(grad_y, grad_sum, sum, weight, mean, rstd, dropout_threshold, seed, outputs)
            if grad_y is not None:
                _launch_sums(partials, grad_y, sum, mean, rstd, grad_weight, grad_bias)
    return outputs


# Calls of these cost a dozen microseconds more than those of the functions, so that only graphs hold them.
_forward_op = torch.library.custom_op("fastssl::triton_layer_norm_forward", _forward, mutates_args=())
_backward_op = torch.library.custom_op("fastssl::triton_layer_norm_backward", _backward, mutates_args=())


@_backward_op.register_fake
def _backward_fake(grad_y, grad_sum, sum, weight, mean, rstd, threshold, seed, residual_apart, bias_dtype):
    """Return the outputs of the backward, not filled in: those of the native one, but in the parameters' dtypes."""
    grad_x = torch.empty_like(sum if grad_y is None else grad_y, memory_format=torch.contiguous_format)
    grad_residual = sum.new_empty(sum.shape if residual_apart else 0)
    return grad_x, grad_residual, torch.empty_like(weight), torch.empty_like(weight, dtype=bias_dtype)


def _launch_rows(grad_y, grad_sum, sum, weight, mean, rstd, threshold, seed, outputs) -> Tensor | None:
    """Write the gradients of x and residual; return the partial sums of the others, None where they are not made."""
    from fastssl.ops.layer_norm.triton_kernels import backward_kernel

    grad_x, grad_residual = outputs[:2]
    num_rows, width = mean.numel(), sum.shape[-1]
    read = tuple(tensor.dtype for tensor in (grad_y, None if grad_y is None else sum, grad_sum) if tensor is not None)
    sums = grad_y is not None and width <= MAX_WIDTH_WITH_SUMS
    weight, grad_residual = weight.contiguous(), grad_residual if grad_residual.numel() else None

    def run(threads: BackwardThreads) -> Tensor | None:
        tiling = backward_tiling(num_rows, width, read, processors(sum.device), threads)
        partials = mean.new_empty(2, tiling.programs, width) if sums else None
        launch(
            backward_kernel,
            (tiling.programs,),
            (grad_y, grad_sum, sum, weight, mean, rstd, seed, grad_x, grad_residual, partials),
            (num_rows, threshold, _scale(threshold)),
            options={"num_warps": tiling.num_warps, **_BACKWARD_OPTIONS},
            WIDTH=width,
            BLOCK=tiling.block,
            ROWS=tiling.rows,
            ROW_GROUPS=tiling.row_groups,
            VECTOR=tiling.vector,
            STAGES=tiling.stages,
        )
        return partials

    def results(threads: BackwardThreads) -> tuple[Tensor | None, ...]:
        partials = run(threads)  # more of them take more time to be added, too
        return grad_x, grad_residual, None if partials is None else partials.sum(1)

    threads = tile_for(
        backward_kernel,
        backward_threads(width),
        lambda: other_backward_threads(width),
        lambda: _facts(num_rows, width, (grad_y, grad_sum, sum, weight, seed, grad_x, grad_residual)),
        lambda: Trial(results, results),
        sum.device,
    )
    return run(threads)


def _launch_sums(partials, grad_y, sum, mean, rstd, grad_weight, grad_bias) -> None:
    """Write the gradients of weight and bias, in their dtypes."""
    from fastssl.ops.layer_norm.triton_kernels import parameter_kernel, sum_partials_kernel

    num_rows, width = mean.numel(), sum.shape[-1]
    if partials is None:
        columns, rows, num_warps, stages = PARAMETERS
        blocks = -(-width // columns)
        slices = min(-(-num_rows // rows), max(1, 2 * processors(sum.device).count // blocks))
        partials = mean.new_empty(2, slices, width)
        launch(
            parameter_kernel,
            (blocks, slices),
            (grad_y, sum, mean, rstd, partials),
            (num_rows,),
            options={"num_warps": num_warps, **_OPTIONS},
            WIDTH=width,
            COLUMNS=columns,
            ROWS=rows,
            STAGES=stages,
        )
    columns, rows, num_warps, stages = PARTIALS
    launch(
        sum_partials_kernel,
        (-(-width // columns), 2),
        (partials, grad_weight, grad_bias),
        (partials.shape[1],),
        options={"num_warps": num_warps, **_OPTIONS},
        WIDTH=width,
        COLUMNS=columns,
        ROWS=rows,
        STAGES=stages,
    )


def _facts(num_rows: int, width: int, tensors: tuple[Tensor | None, ...]) -> dict[str, object]:
    """Return what the fastest tiles depend on: rows by the power of two, the width, and which tensors there are."""
    dtypes = [None if tensor is None else tensor.dtype for tensor in tensors]
    return {"num_rows": rounded_size(num_rows), "width": width, "dtypes": str(dtypes)}


def _contiguous(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()


def _scale(threshold: int) -> float:
    return LANE_RANGE / (LANE_RANGE - threshold)


_forward_op.register_fake(native.forward_fake)
