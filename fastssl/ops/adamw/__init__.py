"""The AdamW update of all parameters in one pass over memory."""

from fastssl.ops.adamw.api import adamw_

__all__ = ["adamw_"]
