"""`skinny_linear` from PyTorch's own operators, one after the other."""

from torch import Tensor
from torch.nn import functional as F

from fastssl.ops.backend import Supports
from fastssl.ops.quantized_linear.weight import QuantizedWeight
from fastssl.ops.skinny_linear.norm import RowNorm

SUPPORTS = Supports()


def forward(
    x: Tensor,
    weight: Tensor | QuantizedWeight,
    bias: Tensor | None,
    *,
    norm: RowNorm | None,
    activation: str,
    residual: Tensor | None,
) -> Tensor:
    """Return y of `fastssl.ops.skinny_linear`; a weight of another dtype is widened as a whole."""
    dtype = x.dtype
    if norm is not None:
        x = _normalised(x, norm)
    if isinstance(weight, QuantizedWeight):
        weight = weight.values().to(dtype) * weight.scale[:, None].to(dtype)
    y = F.linear(x, weight.to(dtype), None if bias is None else bias.to(dtype))
    if activation in ("gelu", "gelu_tanh"):
        y = F.gelu(y, approximate="tanh" if activation == "gelu_tanh" else "none")
    elif activation == "silu":
        y = F.silu(y)
    elif activation == "swiglu":
        gates, others = y.chunk(2, dim=-1)
        y = F.silu(gates) * others
    return y if residual is None else y + residual


def _normalised(x: Tensor, norm: RowNorm) -> Tensor:
    weight = norm.weight.to(x.dtype)
    bias = None if norm.bias is None else norm.bias.to(x.dtype)
    if norm.kind == "layer_norm":
        return F.layer_norm(x, x.shape[-1:], weight, bias, norm.eps)
    y = F.rms_norm(x, x.shape[-1:], weight, norm.eps)
    return y if bias is None else y + bias
