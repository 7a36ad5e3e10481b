"""A block of a decoder for one new token a sequence, in one call."""

from fastssl.ops.decoder_block.api import decoder_block
from fastssl.ops.decoder_block.weights import BlockWeights, LinearMap

__all__ = ["BlockWeights", "LinearMap", "decoder_block"]
