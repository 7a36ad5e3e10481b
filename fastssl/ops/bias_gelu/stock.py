"""`bias_gelu` by PyTorch's own operator, with the bias added in front of it."""

import torch.nn.functional as F
from torch import Tensor

from fastssl.ops.backend import Supports

SUPPORTS = Supports()


def forward(x: Tensor, bias: Tensor, *, approximate: str) -> Tensor:
    """Return y of `fastssl.ops.bias_gelu`; differentiable by autograd."""
    return F.gelu(x + bias, approximate=approximate).to(x.dtype)
