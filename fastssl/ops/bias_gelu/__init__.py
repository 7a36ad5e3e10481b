"""GELU fused with the bias of the linear map in front of it."""

from fastssl.ops.bias_gelu.api import bias_gelu

__all__ = ["bias_gelu"]
