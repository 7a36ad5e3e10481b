"""The definition of `layer_norm` in plain differentiable PyTorch, for any floating dtype and device."""

import torch
from torch import Tensor

from fastssl.ops.backend import Supports
from fastssl.ops.philox import dropout_scale, layer_norm_keep_mask

SUPPORTS = Supports()


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
    """Return (y, sum) of `fastssl.ops.layer_norm`: sum = residual + dropout(x), rounded once; y = LN(sum).

    The sum comes whether it is asked for or not. Statistics and arithmetic are in float32, or in float64 where `x` is.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    total = x.to(wide)
    if dropout_p > 0:
        keep = layer_norm_keep_mask(x.numel() // x.shape[-1], x.shape[-1], dropout_p, seed, x.device)
        total = torch.where(keep.view(x.shape), total * dropout_scale(dropout_p), 0.0)
    if residual is not None:
        total = (residual.to(wide) + total).to(residual.dtype)
    else:
        total = total.to(x.dtype)
    centred = total.to(wide) - total.to(wide).mean(-1, keepdim=True)
    inverse_deviation = (centred.square().mean(-1, keepdim=True) + eps).rsqrt()
    y = centred * inverse_deviation * weight.to(wide)
    if bias is not None:
        y = y + bias.to(wide)
    return y.to(x.dtype), total
