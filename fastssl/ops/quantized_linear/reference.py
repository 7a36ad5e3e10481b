"""The definition of `quantized_linear`, in plain PyTorch; the sum of products is exact."""

import torch
from torch import Tensor
from torch.nn import functional as F

from fastssl.ops.backend import Supports
from fastssl.ops.quantized_linear.weight import QuantizedWeight

SUPPORTS = Supports()


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return q (N, E), as whole fp32 numbers from -127 to 127, scale and centre (N, 1) fp32: x = scale q + centre.

    A row with a value that is not finite has the scale NaN.
    """
    x = x.float()
    lowest, highest = x.amin(-1, keepdim=True) / 2, x.amax(-1, keepdim=True) / 2
    half, centre = highest - lowest, lowest + highest
    # Not `127 / half`, which PyTorch computes as a reciprocal and a product, rounded twice.
    factor = torch.where(half < 1e-30, 0.0, torch.full_like(half, 127) / half)
    scale = half / 127 + (x - x).sum(-1, keepdim=True)
    return ((x - centre) * factor).round(), scale, centre


def forward(x: Tensor, weight: QuantizedWeight, bias: Tensor | None, *, gelu: bool) -> Tensor:
    """Return (N, F) in x's dtype."""
    rows, scale, centre = (part.double() for part in quantize_rows(x))
    products = rows @ weight.values().double().T
    y = (products * scale + centre * weight.sum.double()) * weight.scale.double()
    if bias is not None:
        y = y + bias.double()
    return (F.gelu(y) if gelu else y).to(x.dtype)
