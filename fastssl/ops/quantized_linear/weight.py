"""Weights of 8 bits: their scales, and the order in which the compiled kernel reads them."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

PANEL_COLUMNS, COLUMN_ALIGNMENT, QUAD = 16, 32, 4
"""As in csrc/quantized_linear/quantized_linear.h."""


@dataclass(frozen=True, kw_only=True)
class QuantizedWeight:
    """A weight (F, E) as ``scale[:, None] * values``, values from -127 to 127; `quantize_weight` makes it.

    The values are kept once, in the kernel's order: four neighbours of a row in one word, sixteen rows side by side.
    """

    packed: Tensor
    """(F / 16, E / 4, 16, 4) uint8, F rounded up to 32 and E to 4: the values plus 128."""
    scale: Tensor
    """(F) fp32."""
    sum: Tensor
    """(F) fp32: the sum of each row's values."""
    in_features: int
    """E."""

    @property
    def out_features(self) -> int:
        """F."""
        return self.scale.numel()

    def values(self) -> Tensor:
        """Return the values, (F, E) int8."""
        rows = self.packed.permute(0, 2, 1, 3).flatten(2).flatten(0, 1)
        return (rows[: self.out_features, : self.in_features].short() - 128).to(torch.int8)


@torch.no_grad()
def quantize_weight(weight: Tensor) -> QuantizedWeight:
    """Return a weight in 8 bits with one scale for each row, ``max |row| / 127``.

    Args:
        weight: (F, E) floating, finite.

    Raises:
        ValueError: for another shape, or values that are not finite.
    """
    if weight.dim() != 2 or weight.numel() == 0:
        raise ValueError(f"quantize_weight: weight must have shape (F, E), got {tuple(weight.shape)}")
    if not weight.isfinite().all():
        raise ValueError("quantize_weight: weight holds values that are not finite; the training that made it diverged")
    weight = weight.float()
    largest = weight.abs().amax(1)
    values = (weight * (127 / largest.clamp(min=1e-30))[:, None]).round()
    rows, columns = weight.shape
    padded = F.pad(values, (0, -columns % QUAD, 0, -rows % COLUMN_ALIGNMENT))
    panels = padded.view(-1, PANEL_COLUMNS, padded.shape[1] // QUAD, QUAD)
    packed = (panels.permute(0, 2, 1, 3) + 128).to(torch.uint8).contiguous()
    return QuantizedWeight(packed=packed, scale=largest / 127, sum=values.sum(1), in_features=columns)
