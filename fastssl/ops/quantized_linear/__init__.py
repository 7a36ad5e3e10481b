"""The 8-bit linear map: `quantized_linear`."""

from fastssl.ops.quantized_linear.api import quantized_linear
from fastssl.ops.quantized_linear.weight import QuantizedWeight, quantize_weight

__all__ = ["QuantizedWeight", "quantize_weight", "quantized_linear"]
