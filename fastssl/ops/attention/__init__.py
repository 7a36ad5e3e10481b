"""Scaled dot-product attention over packed or dense sequences."""

from fastssl.ops.attention.api import attention
from fastssl.ops.attention.projection import split_projection

__all__ = ["attention", "split_projection"]
