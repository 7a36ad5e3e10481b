"""The public function `quantized_linear`: its meaning, its checks, its choice of backend."""

import torch
from torch import Tensor

from fastssl.ops.backend import choose
from fastssl.ops.quantized_linear import native, reference, stock
from fastssl.ops.quantized_linear.weight import QuantizedWeight
from fastssl.ops.recording import asks_for_gradient

BACKENDS = {"native": native, "stock": stock, "reference": reference}
ACTIVATIONS = ("none", "gelu")
MAX_IN_FEATURES = 32768


def quantized_linear(
    x: Tensor,
    weight: QuantizedWeight,
    bias: Tensor | None = None,
    *,
    activation: str = "none",
    backend: str = "auto",
) -> Tensor:
    """A linear map in 8 bits, for inference: ``activation((scale_x (q_x q_w^T) + centre_x sum(q_w)) scale_w + bias)``.

    Every row of x is quantised by itself on the way, ``q_x = round((x - centre_x) / scale_x)``, so that its smallest
    and largest value become -127 and 127. The products are summed exactly, in 32-bit integers; the rest is fp32.

    Args:
        x: (..., E) fp32 or bf16 (others: not native).
        weight: (F, E), from `quantize_weight`, E at most 32,768.
        bias: (F) floating, or None.
        activation: "none" or "gelu" (the exact one).
        backend: "auto", "native", "stock" or "reference".

    Returns:
        (..., F) in x's dtype. A row of x with a value that is not finite gives NaN.

    Raises:
        ValueError: for shapes, dtypes or devices that do not fit, a call that autograd would have to record (there is
            no gradient), or a backend that cannot run the call.

    Source: Dettmers et al. 2022, "LLM.int8()" (arXiv 2208.07339) §2.1, for scales by row and by column.
    """
    _check(x, weight, bias, activation)
    name = choose("quantized_linear", backend, BACKENDS, x.device, x.dtype, {"device": x.device.type})
    y = BACKENDS[name].forward(x.reshape(-1, x.shape[-1]), weight, bias, gelu=activation == "gelu")
    return y.view(*x.shape[:-1], weight.out_features)


def _check(x: Tensor, weight: QuantizedWeight, bias: Tensor | None, activation: str) -> None:
    if activation not in ACTIVATIONS:
        raise ValueError(f"quantized_linear: activation must be one of {', '.join(ACTIVATIONS)}, got {activation!r}")
    if not x.is_floating_point():
        raise ValueError(f"quantized_linear: x must be floating point, got {x.dtype}")
    if x.dim() == 0 or x.shape[-1] != weight.in_features:
        raise ValueError(
            f"quantized_linear: x must have shape (..., {weight.in_features}) for a weight of shape "
            f"{(weight.out_features, weight.in_features)}, got {tuple(x.shape)}"
        )
    if weight.in_features > MAX_IN_FEATURES:
        raise ValueError(
            f"quantized_linear: the weight has {weight.in_features} columns, whose products may leave 32 bits; "
            f"expected at most {MAX_IN_FEATURES}: leave this map in floating point"
        )
    if bias is not None and bias.shape != (weight.out_features,):
        raise ValueError(f"quantized_linear: bias must have shape ({weight.out_features},), got {tuple(bias.shape)}")
    if bias is not None and not bias.is_floating_point():
        raise ValueError(f"quantized_linear: bias must be floating point, got {bias.dtype}")
    for name, tensor in (("weight", weight.packed), ("bias", bias)):
        if tensor is not None and tensor.device != x.device:
            raise ValueError(f"quantized_linear: {name} must be on {x.device} like x, got {tensor.device}")
    if torch.is_grad_enabled() and any(tensor is not None and asks_for_gradient(tensor) for tensor in (x, bias)):
        raise ValueError(
            "quantized_linear: it has no gradient, and x or bias asks for one; call it under torch.no_grad(), or train "
            "the model before quantising it"
        )
