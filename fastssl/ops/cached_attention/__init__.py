"""Attention of one new token a sequence to a cache of keys and values."""

from fastssl.ops.cached_attention.api import cached_attention

__all__ = ["cached_attention"]
