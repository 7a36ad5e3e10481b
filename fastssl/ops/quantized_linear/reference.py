"""The definition of `quantized_linear`, in plain PyTorch; the sum of products is exact."""

import torch
from torch import Tensor
from torch.nn import functional as F

from fastssl.ops.backend import Supports
from fastssl.ops.quantized_linear.weight import QuantizedWeight

SUPPORTS = Supports()


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the rows of x (N, E) in 8 bits, as fp32 whole numbers, and their scales (N, 1) fp32.

    A row of zeros (magnitudes below 1e-30) has the scale 0, one with a value that is not finite the scale NaN.
    """
    x = x.float()
    largest = x.abs().amax(-1, keepdim=True)
    # Not `127 / largest`, which PyTorch computes as a reciprocal and a product, rounded twice.
    factor = torch.where(largest < 1e-30, 0.0, torch.full_like(largest, 127) / largest)
    scale = largest / 127 + (x * 0).sum(-1, keepdim=True)
    return (x * factor).round(), scale


def forward(x: Tensor, weight: QuantizedWeight, bias: Tensor | None, *, gelu: bool) -> Tensor:
    """Return (N, F) in x's dtype."""
    rows, scale = quantize_rows(x)
    products = rows.double() @ weight.values().double().T
    y = products * scale.double() * weight.scale.double()
    if bias is not None:
        y = y + bias.double()
    return (F.gelu(y) if gelu else y).to(x.dtype)
