"""The operators, one folder each: attention, bias + GELU, layer norm, linear cross-entropy, the 8-bit linear map, and
what generation needs, the linear map of few rows and attention to a cache.

The functions carry the names of their folders: inside the package import from ``fastssl.ops.<op>.api``.
"""

from fastssl.ops.attention.api import attention
from fastssl.ops.bias_gelu.api import bias_gelu
from fastssl.ops.cached_attention.api import cached_attention
from fastssl.ops.layer_norm.api import layer_norm
from fastssl.ops.linear_cross_entropy.api import LinearCrossEntropyStats, linear_cross_entropy
from fastssl.ops.quantized_linear.api import quantized_linear
from fastssl.ops.skinny_linear.api import skinny_linear
from fastssl.ops.skinny_linear.norm import RowNorm

__all__ = [
    "LinearCrossEntropyStats",
    "RowNorm",
    "attention",
    "bias_gelu",
    "cached_attention",
    "layer_norm",
    "linear_cross_entropy",
    "quantized_linear",
    "skinny_linear",
]
