"""`quantized_linear` from PyTorch's own operators: an integer product between elementwise passes."""

import functools

import torch
from torch import Tensor
from torch.nn import functional as F

from fastssl.ops.backend import Supports
from fastssl.ops.quantized_linear.reference import quantize_rows
from fastssl.ops.quantized_linear.weight import QuantizedWeight


@functools.cache
def _product_is_exact(device: str) -> bool:
    """Whether the library sums products of bytes without saturation: on a CPU without VNNI it does not."""
    if device != "cpu":
        return False
    largest = torch.full((64, 64), 127, dtype=torch.int8)
    return bool((torch._int_mm(largest, largest) == 64 * 127**2).all())


SUPPORTS = Supports(
    refuses={
        "PyTorch's product of 8-bit matrices is not exact on this machine": lambda device, **_: (
            not _product_is_exact(device)
        ),
    }
)


def forward(x: Tensor, weight: QuantizedWeight, bias: Tensor | None, *, gelu: bool) -> Tensor:
    """Return (N, F) in x's dtype."""
    rows, scale, centre = quantize_rows(x)
    products = torch._int_mm(rows.nan_to_num().to(torch.int8), weight.values().T)
    y = (products * scale + centre * weight.sum) * weight.scale
    y = y if bias is None else y + bias.float()
    return (F.gelu(y) if gelu else y).to(x.dtype)
