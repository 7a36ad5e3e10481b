"""Softmax cross-entropy fused with the linear map to the vocabulary."""

from fastssl.ops.linear_cross_entropy.api import LinearCrossEntropyStats, linear_cross_entropy

__all__ = ["LinearCrossEntropyStats", "linear_cross_entropy"]
