"""`layer_norm` by PyTorch's own operator, without dropout: PyTorch draws another mask than ours."""

import torch
import torch.nn.functional as F
from torch import Tensor

from fastssl.ops.backend import Supports

SUPPORTS = Supports(
    refuses={"PyTorch's dropout draws another mask than the seed asks for": lambda dropout_p, **_: dropout_p > 0}
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
    """Return (y, sum) of `fastssl.ops.layer_norm`; differentiable by autograd.

    The sum comes whether it is asked for or not.
    """
    total = x if residual is None else (residual + x).to(residual.dtype)
    wide = torch.promote_types(total.dtype, weight.dtype)
    bias = None if bias is None else bias.to(wide)
    return F.layer_norm(total.to(wide), x.shape[-1:], weight.to(wide), bias, eps).to(x.dtype), total
