"""Layer normalisation fused with dropout and the residual sum."""

from fastssl.ops.layer_norm.api import layer_norm

__all__ = ["layer_norm"]
