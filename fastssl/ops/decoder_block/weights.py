"""The parameters of a block."""

from typing import NamedTuple

from torch import Tensor

from fastssl.ops.quantized_linear.weight import QuantizedWeight
from fastssl.ops.skinny_linear.norm import RowNorm


class LinearMap(NamedTuple):
    """A linear map, as `skinny_linear` takes it."""

    weight: Tensor | QuantizedWeight
    """(outputs, inputs) fp32 or bf16, or 8 bits from `quantize_weight`."""
    bias: Tensor | None = None
    """(outputs), or None."""


class BlockWeights(NamedTuple):
    """The parameters of a pre-norm block; both norms are of one kind."""

    attention_norm: RowNorm
    """In front of attention."""
    qkv: LinearMap
    """E to (H + 2 H_k) D: queries, keys and values, heads side by side."""
    out: LinearMap
    """H D to E, behind attention."""
    mlp_norm: RowNorm
    """In front of the feed-forward network."""
    up: LinearMap
    """E to F, or to 2 F with "swiglu", the gates first."""
    down: LinearMap
    """F to E."""
