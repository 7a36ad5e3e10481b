"""The definition of `bias_gelu` in plain differentiable PyTorch, for any floating dtype and device."""

import math

import torch
from torch import Tensor

from fastssl.ops.backend import Supports

SUPPORTS = Supports()


def forward(x: Tensor, bias: Tensor, *, approximate: str) -> Tensor:
    """Return y of `fastssl.ops.bias_gelu`; arithmetic in float32, or in float64 where `x` is."""
    wide = torch.promote_types(x.dtype, torch.float32)
    t = x.to(wide) + bias.to(wide)
    if approximate == "tanh":
        weight = (1 + (math.sqrt(2 / math.pi) * (t + 0.044715 * t**3)).tanh()) / 2
    else:
        weight = (1 + (t / math.sqrt(2)).erf()) / 2
    return (t * weight).to(x.dtype)
