"""`layer_norm` by the compiled kernels, for the CPU and for CUDA: one pass over memory in each direction."""

import torch
from torch import Tensor

from fastssl import extension
from fastssl.ops.backend import Supports
from fastssl.ops.philox import dropout_threshold

SUPPORTS = Supports(
    devices=("cpu", "cuda"),
    dtypes=(torch.float32, torch.bfloat16, torch.float16),
    needs_cpu_ops=True,
    needs_cuda_ops=True,
    refuses={
        "the residual must have the dtype of x, or float32": lambda x_dtype, residual_dtype, **_: (
            residual_dtype not in (x_dtype, torch.float32)
        ),
        "a parameter is float64": lambda parameter_dtypes, **_: torch.float64 in parameter_dtypes,
    },
)


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
    y, total, _, _ = torch.ops.fastssl.layer_norm_forward(x, weight, bias, residual, eps, threshold, seed, with_sum)
    return y, x if residual is None and threshold == 0 else total


def forward_saving(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, eps: float, dropout_p: float, seed
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return (y, sum, mean, rstd); sum is `x` itself where nothing is added to it or dropped from it."""
    threshold = dropout_threshold(dropout_p)
    y, total, mean, rstd = torch.ops.fastssl.layer_norm_forward(x, weight, bias, residual, eps, threshold, seed, True)
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
    grad_x, grad_residual, grad_weight, grad_bias = torch.ops.fastssl.layer_norm_backward(
        grad_y, grad_sum, total, weight, mean, rstd, threshold, seed, apart
    )
    if not with_residual:
        grad_residual = None
    elif not apart:
        grad_residual = grad_x
    grad_bias = None if bias_dtype is None else grad_bias.to(bias_dtype)
    return grad_x, grad_residual, grad_weight.to(weight.dtype), grad_bias


@extension.fake_kernel("fastssl::layer_norm_forward")
def forward_fake(x, weight, bias, residual, eps, dropout_threshold, seed, with_sum):
    """Return the outputs of the forward, not filled in."""
    sum_like = x if residual is None else residual
    changed = residual is not None or dropout_threshold > 0
    total = sum_like.new_empty(x.shape if changed and with_sum else 0)
    mean = x.new_empty(x.numel() // x.shape[-1], dtype=torch.float32)
    return torch.empty_like(x, memory_format=torch.contiguous_format), total, mean, torch.empty_like(mean)


@extension.fake_kernel("fastssl::layer_norm_backward")
def backward_fake(grad_y, grad_sum, sum, weight, mean, rstd, dropout_threshold, seed, residual_apart):
    """Return the outputs of the backward, not filled in."""
    grad_x = torch.empty_like(sum if grad_y is None else grad_y, memory_format=torch.contiguous_format)
    grad_residual = sum.new_empty(sum.shape) if residual_apart else sum.new_empty(0)
    parameter = weight.new_empty(weight.shape, dtype=torch.float32)
    return grad_x, grad_residual, parameter, torch.empty_like(parameter)
