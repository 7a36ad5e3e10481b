"""The definition of `skinny_linear` in plain PyTorch, for any floating dtype and device."""

import math

import torch
from torch import Tensor

from fastssl.ops.backend import Supports
from fastssl.ops.quantized_linear.weight import QuantizedWeight
from fastssl.ops.skinny_linear.norm import RowNorm

SUPPORTS = Supports()


def normalised(x: Tensor, norm: RowNorm) -> Tensor:
    """Return the rows of x, normalised."""
    if norm.kind == "layer_norm":
        x = x - x.mean(-1, keepdim=True)
    y = x * (x.square().mean(-1, keepdim=True) + norm.eps).rsqrt() * norm.weight.to(x.dtype)
    return y if norm.bias is None else y + norm.bias.to(x.dtype)


def activated(x: Tensor, activation: str) -> Tensor:
    """Return the activation of x; of "swiglu" half as many columns."""
    if activation == "gelu":
        return x * (1 + (x / math.sqrt(2)).erf()) / 2
    if activation == "gelu_tanh":
        return x * (1 + (math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)).tanh()) / 2
    if activation == "silu":
        return x * x.sigmoid()
    if activation == "swiglu":
        gates, others = x.chunk(2, dim=-1)
        return gates * gates.sigmoid() * others
    return x


def forward(
    x: Tensor,
    weight: Tensor | QuantizedWeight,
    bias: Tensor | None,
    *,
    norm: RowNorm | None,
    activation: str,
    residual: Tensor | None,
) -> Tensor:
    """Return y of `fastssl.ops.skinny_linear`; arithmetic in float32, or in float64 where `x` is."""
    wide = torch.promote_types(x.dtype, torch.float32)
    rows = x.to(wide) if norm is None else normalised(x.to(wide), norm)
    if isinstance(weight, QuantizedWeight):
        weight = weight.values().to(wide) * weight.scale[:, None].to(wide)
    y = rows @ weight.to(wide).T
    y = activated(y if bias is None else y + bias.to(wide), activation)
    return (y if residual is None else y + residual.to(wide)).to(x.dtype)
