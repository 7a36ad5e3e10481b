"""Scaled dot-product attention over packed or dense sequences."""

from fastssl.ops.attention.api import attention

__all__ = ["attention"]
