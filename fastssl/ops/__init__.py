"""The operators, one folder each: attention, bias + GELU, layer norm, linear cross-entropy, and the 8-bit linear map.

The functions carry the names of their folders: inside the package import from ``fastssl.ops.<op>.api``.
"""

from fastssl.ops.attention.api import attention
from fastssl.ops.bias_gelu.api import bias_gelu
from fastssl.ops.layer_norm.api import layer_norm
from fastssl.ops.linear_cross_entropy.api import LinearCrossEntropyStats, linear_cross_entropy
from fastssl.ops.quantized_linear.api import quantized_linear

__all__ = [
    "LinearCrossEntropyStats",
    "attention",
    "bias_gelu",
    "layer_norm",
    "linear_cross_entropy",
    "quantized_linear",
]
