"""The public layer normalisation: checks, backend choice, autograd."""

import torch
from torch import Tensor

from fastssl.ops.backend import remembered_choice
from fastssl.ops.layer_norm import native, reference, stock, triton_backend
from fastssl.ops.philox import dropout_threshold, resolve_seed
from fastssl.ops.recording import differentiable_once, is_recorded

BACKENDS = {"native": native, "triton": triton_backend, "stock": stock, "reference": reference}
FUSED = ("native", "triton")
"""Backends with kernels of their own for both directions; autograd differentiates the others."""


def layer_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    eps: float,
    residual: Tensor | None = None,
    dropout_p: float = 0.0,
    seed: int | Tensor | None = None,
    return_sum: bool = False,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Normalise each row of residual + dropout(x) to zero mean and unit variance, then scale and shift it.

    sum = residual + dropout(x);  y = (sum - mean(sum)) / sqrt(var(sum) + eps) * weight + bias

    Args:
        x: (..., E) float32, bfloat16, float16 or float64.
        weight: (E), of any of these dtypes, for example float32 beside 16-bit activations.
        bias: (E), or None for no shift.
        eps: added to the (biased) variance, at least 0.
        residual: shape of `x`, possibly of a wider dtype (a float32 residual stream); None for none.
        dropout_p: probability of dropping an element of `x`, in steps of 1/65536; kept elements are scaled up.
        seed: of the dropout mask: int, 0-d int64 tensor, or None to draw one from torch's default generator. The mask
            depends on the seed, the row and the column alone, never on backend, layout or thread count. Under
            `torch.compile` pass a tensor: an int is a constant of the compiled graph.
        return_sum: also return the sum, for pre-norm models; `x` itself where nothing is added or dropped.
        backend: "auto", "native", "triton", "stock" or "reference".

    Returns:
        y, shape and dtype of `x`; with `return_sum` also sum, dtype of `residual` (of `x` where there is none).

    Raises:
        ValueError: for shapes, dtypes or devices that do not fit, or a backend that cannot run the call.

    Numerics: float32 arithmetic (float64 for float64 inputs), mean first, then the centred variance, both of the sum
    as it is returned. Memory: saves the sum and two floats a row; the mask is never stored. Where nothing is saved, the
    kernels for GPUs write no sum unless `return_sum` asks for it. Differentiable once (native, triton).

    Source: Ba, Kiros, Hinton, "Layer Normalization" (2016), arXiv 1607.06450, section 3.
    """
    _check(x, weight, bias, residual, eps, dropout_p)
    name = backend_for(
        backend,
        x.device,
        x.dtype,
        width=x.shape[-1],
        dropout_p=dropout_p,
        residual_dtype=x.dtype if residual is None else residual.dtype,
        parameter_dtypes=(weight.dtype, None if bias is None else bias.dtype),
    )
    seed = resolve_seed(seed, x.device) if dropout_p > 0 else None
    if name not in FUSED or not is_recorded(x, weight, bias, residual):
        options = {"eps": eps, "dropout_p": dropout_p, "seed": seed, "with_sum": return_sum}
        y, total = BACKENDS[name].forward(x, weight, bias, residual, **options)
        return (y, total) if return_sum else y
    if torch.compiler.is_compiling():  # its autograd.Function takes no tensor twice; a view is another tensor
        weight, bias, residual = (None if t is None else t.view_as(t) for t in (weight, bias, residual))
    is_x = residual is None and seed is None
    y, total, _ = _FusedLayerNorm.apply(name, x, weight, bias, residual, eps, dropout_p, seed, return_sum and not is_x)
    return (y, x if is_x else total) if return_sum else y


def backend_for(
    requested: str,
    device: torch.device,
    dtype: torch.dtype,
    *,
    width: int,
    dropout_p: float,
    residual_dtype: torch.dtype,
    parameter_dtypes: tuple[torch.dtype | None, ...],
) -> str:
    """Return the name of the backend that serves a call, as `fastssl.ops.backend.choose` does.

    Args:
        requested: "auto", or a name.
        device, dtype: of x.
        width: E.
        dropout_p: of the call.
        residual_dtype: of the residual, of x where there is none.
        parameter_dtypes: of weight and bias.
    """
    facts = {
        "width": width,
        "dropout_p": dropout_p,
        "x_dtype": dtype,
        "residual_dtype": residual_dtype,
        "parameter_dtypes": parameter_dtypes,
    }
    return remembered_choice("layer_norm", requested, BACKENDS, device, dtype, facts)


class _FusedLayerNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, backend, x, weight, bias, residual, eps, dropout_p, seed, return_sum):
        y, total, mean, rstd = BACKENDS[backend].forward_saving(x, weight, bias, residual, eps, dropout_p, seed)
        ctx.save_for_backward(total, weight, mean, rstd, seed)
        ctx.backend, ctx.dropout_p, ctx.x_dtype = backend, dropout_p, x.dtype
        ctx.bias_dtype = None if bias is None else bias.dtype
        ctx.set_materialize_grads(False)
        # rstd is returned, for nobody's use, so that an output is among what is saved.
        return y, total if return_sum else None, rstd

    @staticmethod
    @differentiable_once
    def backward(ctx, saved, grad_y, grad_total, _):
        total, weight, mean, rstd, seed = saved()
        if grad_y is None and ctx.x_dtype != total.dtype:
            grad_y = total.new_zeros(total.shape, dtype=ctx.x_dtype)
        grad_x, grad_residual, grad_weight, grad_bias = BACKENDS[ctx.backend].backward(
            grad_y,
            grad_total,
            total,
            weight,
            mean,
            rstd,
            dropout_p=ctx.dropout_p,
            seed=seed,
            with_residual=ctx.needs_input_grad[4],
            bias_dtype=ctx.bias_dtype,
        )
        return None, grad_x, grad_weight, grad_bias, grad_residual, None, None, None, None


def _check(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, eps: float, dropout_p: float
) -> None:
    if x.dim() == 0 or x.shape[-1] == 0:
        raise ValueError(f"layer_norm: x needs a last dimension of at least one element, got shape {tuple(x.shape)}")
    width = x.shape[-1:]
    for name, tensor, shape in (("weight", weight, width), ("bias", bias, width), ("residual", residual, x.shape)):
        if tensor is not None and tensor.shape != shape:
            raise ValueError(
                f"layer_norm: {name} must have shape {tuple(shape)} for x of shape {tuple(x.shape)}, "
                f"got {tuple(tensor.shape)}"
            )
    for name, tensor in (("x", x), ("weight", weight), ("bias", bias), ("residual", residual)):
        if tensor is not None and not tensor.is_floating_point():
            raise ValueError(f"layer_norm: {name} must be floating point, got {tensor.dtype}")
        if tensor is not None and tensor.device != x.device:
            raise ValueError(f"layer_norm: {name} must be on {x.device} like x, got {tensor.device}")
    if not eps >= 0:
        raise ValueError(f"layer_norm: eps must be at least 0, got {eps}")
    dropout_threshold(dropout_p)
