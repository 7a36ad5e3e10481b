"""The operators, one folder each: attention, bias + GELU, layer norm, linear cross-entropy, a whole block of a small
model, the 8-bit linear map, and what generation needs: the linear map of few rows, attention to a cache, and a block
made of both.

The functions carry the names of their folders: inside the package import from ``fastssl.ops.<op>.api``.
"""

from fastssl.ops.attention.api import attention
from fastssl.ops.bias_gelu.api import bias_gelu
from fastssl.ops.cached_attention.api import cached_attention
from fastssl.ops.decoder_block.api import decoder_block
from fastssl.ops.decoder_block.weights import BlockWeights, LinearMap
from fastssl.ops.layer_norm.api import layer_norm
from fastssl.ops.linear_cross_entropy.api import LinearCrossEntropyStats, linear_cross_entropy
from fastssl.ops.pre_norm_block.api import pre_norm_block
from fastssl.ops.pre_norm_block.dropout import BlockDropout
from fastssl.ops.quantized_linear.api import quantized_linear
from fastssl.ops.skinny_linear.api import skinny_linear
from fastssl.ops.skinny_linear.norm import RowNorm
from fastssl.ops.tile_search import search_tiles

__all__ = [
    "BlockDropout",
    "BlockWeights",
    "LinearCrossEntropyStats",
    "LinearMap",
    "RowNorm",
    "attention",
    "bias_gelu",
    "cached_attention",
    "decoder_block",
    "layer_norm",
    "linear_cross_entropy",
    "pre_norm_block",
    "quantized_linear",
    "search_tiles",
    "skinny_linear",
]
