"""A pre-norm transformer block of a small model, in one call each way."""

from fastssl.ops.pre_norm_block.api import pre_norm_block
from fastssl.ops.pre_norm_block.dropout import BlockDropout

__all__ = ["BlockDropout", "pre_norm_block"]
