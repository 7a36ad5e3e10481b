"""The public function `skinny_linear`: its meaning, its checks, its choice of backend."""

import torch
from torch import Tensor

from fastssl.ops.backend import choose
from fastssl.ops.quantized_linear.weight import QuantizedWeight
from fastssl.ops.recording import asks_for_gradient
from fastssl.ops.skinny_linear import native, reference, stock
from fastssl.ops.skinny_linear.norm import KINDS, RowNorm
from fastssl.ops.surroundings import without_autocast

BACKENDS = {"native": native, "stock": stock, "reference": reference}


def skinny_linear(
    x: Tensor,
    weight: Tensor | QuantizedWeight,
    bias: Tensor | None = None,
    *,
    norm: RowNorm | None = None,
    activation: str = "none",
    residual: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """A linear map of few rows, for inference: ``activation(norm(x) W^T + bias) + residual``.

    Reading the weight is nearly all that it costs; it is read once for all rows, at the speed of the memory.

    Args:
        x: (..., E) floating (native: fp32).
        weight: (F, E), in fp32, in bf16 (half the reading) or in 8 bits from `quantize_weight` (a quarter).
        bias: (F) floating, or None.
        norm: a layer norm or an RMS norm of the rows of x.
        activation: "none", "gelu" (the exact one), "gelu_tanh", "silu", or "swiglu": F is even, the first half of the
            outputs are gates, and the result is ``silu(gates) * others``, with F / 2 columns.
        residual: of the shape and dtype of the result, or None.
        backend: "auto", "native", "stock" or "reference".

    Returns:
        (..., F) in x's dtype, or (..., F / 2) with "swiglu".

    Raises:
        ValueError: for shapes, dtypes or devices that do not fit, a call that autograd would have to record (there is
            no gradient), or a backend that cannot run the call.

    Numerics: fp32 arithmetic. Natively a row's result does not depend on the rows beside it, nor on the number of
        threads; more than 32 rows of a floating weight go to PyTorch's product, which promises neither. With an 8-bit
        weight the native backend rounds normalised rows to 16 bits, by at most ``max |row| / 65278``.

    Source: Shazeer 2020, "GLU Variants Improve Transformer" (arXiv 2002.05202), for swiglu.
    """
    if backend == "auto" and native.is_usual(x, weight, norm):
        # A model calls this dozens of times a token: the kernel's own checks come first. Where they fail, the slower
        # ones below say why, or another backend serves.
        try:
            return native.forward(x, weight, bias, norm=norm, activation=activation, residual=residual)
        except RuntimeError:
            pass
    facts = check(x, weight, bias, norm, activation, residual)
    name = choose("skinny_linear", backend, BACKENDS, x.device, x.dtype, facts)
    with without_autocast(x.device):
        return BACKENDS[name].forward(x, weight, bias, norm=norm, activation=activation, residual=residual)


def check(x, weight, bias, norm, activation, residual) -> dict[str, object]:
    """Raise what is to be raised, and return the facts that the choice of a backend depends on."""
    kind, outputs, inputs = describe(weight)
    if x.dim() == 0 or x.shape[-1] != inputs or inputs == 0:
        raise ValueError(
            f"skinny_linear: x must have shape (..., {inputs}) for a weight of shape {(outputs, inputs)}, "
            f"got {tuple(x.shape)}"
        )
    if activation not in native.ACTIVATIONS:
        raise ValueError(
            f"skinny_linear: activation must be one of {', '.join(native.ACTIVATIONS)}, got {activation!r}"
        )
    tensors = {"weight": weight.packed if kind is torch.int8 else weight, "bias": bias, "residual": residual}
    _check_bias_and_residual(x, outputs, bias, activation, residual)
    if norm is not None:
        _check_norm(norm, inputs)
        tensors |= {"norm.weight": norm.weight, "norm.bias": norm.bias}
    _check_tensors(x, tensors)
    return {"weight_dtype": kind, "rows": x.numel() // inputs, "inputs": inputs}


def describe(weight: Tensor | QuantizedWeight) -> tuple[torch.dtype, int, int]:
    """Return dtype (torch.int8 for 8 bits), F and E of a weight."""
    if isinstance(weight, QuantizedWeight):
        return torch.int8, weight.out_features, weight.in_features
    if weight.dim() != 2 or not weight.is_floating_point():
        raise ValueError(
            f"skinny_linear: weight must be floating of shape (F, E), or come from quantize_weight; got {weight.dtype} "
            f"of shape {tuple(weight.shape)}"
        )
    return weight.dtype, *weight.shape


def _check_bias_and_residual(x, outputs, bias, activation, residual) -> None:
    if bias is not None and bias.shape != (outputs,):
        raise ValueError(f"skinny_linear: bias must have shape ({outputs},), got {tuple(bias.shape)}")
    if activation == "swiglu":
        if outputs % 2:
            raise ValueError(f"skinny_linear: swiglu needs an even number of rows of the weight, got {outputs}")
        outputs //= 2
    if residual is not None and (residual.shape != (*x.shape[:-1], outputs) or residual.dtype != x.dtype):
        raise ValueError(
            f"skinny_linear: residual must be {x.dtype} of shape {(*x.shape[:-1], outputs)}, got {residual.dtype} of "
            f"shape {tuple(residual.shape)}"
        )


def _check_norm(norm: RowNorm, inputs: int) -> None:
    if norm.kind not in KINDS:
        raise ValueError(f"skinny_linear: norm.kind must be one of {', '.join(KINDS)}, got {norm.kind!r}")
    for name, tensor in (("weight", norm.weight), ("bias", norm.bias)):
        if tensor is not None and tensor.shape != (inputs,):
            raise ValueError(f"skinny_linear: norm.{name} must have shape ({inputs},), got {tuple(tensor.shape)}")


def _check_tensors(x: Tensor, tensors: dict[str, Tensor | None]) -> None:
    if not x.is_floating_point():
        raise ValueError(f"skinny_linear: x must be floating point, got {x.dtype}")
    records = torch.is_grad_enabled()
    if records and asks_for_gradient(x):
        tensors = {"x": x, **tensors}
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        if name != "weight" and not tensor.is_floating_point():
            raise ValueError(f"skinny_linear: {name} must be floating point, got {tensor.dtype}")
        if tensor.device != x.device:
            raise ValueError(f"skinny_linear: {name} must be on {x.device} like x, got {tensor.device}")
        if records and asks_for_gradient(tensor):
            raise ValueError(
                f"skinny_linear: it has no gradient, and {name} asks for one; call it under torch.no_grad() or "
                "torch.inference_mode()"
            )
