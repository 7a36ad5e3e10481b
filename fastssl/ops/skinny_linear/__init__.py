"""The linear map of few rows, as a model needs it that generates a token at a time."""

from fastssl.ops.skinny_linear.api import skinny_linear
from fastssl.ops.skinny_linear.norm import RowNorm

__all__ = ["RowNorm", "skinny_linear"]
