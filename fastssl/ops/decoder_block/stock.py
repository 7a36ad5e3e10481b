"""`decoder_block` from PyTorch's own operators."""

from torch import Tensor

from fastssl.ops.backend import Supports
from fastssl.ops.cached_attention import stock as attention_stock
from fastssl.ops.decoder_block.reference import compose
from fastssl.ops.decoder_block.weights import BlockWeights
from fastssl.ops.skinny_linear import stock as linear_stock

SUPPORTS = Supports()


def forward(x: Tensor, weights: BlockWeights, k_cache: Tensor, v_cache: Tensor, lengths: Tensor, **options) -> Tensor:
    """Return the output of `fastssl.ops.decoder_block`."""
    return compose(linear_stock.forward, attention_stock.forward, x, weights, k_cache, v_cache, lengths, **options)
