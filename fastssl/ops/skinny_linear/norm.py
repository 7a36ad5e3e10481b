"""What may stand in front of the linear map: a normalisation of its rows."""

from typing import NamedTuple

from torch import Tensor

KINDS = ("layer_norm", "rms_norm")


class RowNorm(NamedTuple):
    """A normalisation of rows, ``(x - mean) / sqrt(variance + eps) * weight + bias`` or without mean and bias."""

    weight: Tensor
    """(E) floating."""
    bias: Tensor | None
    """(E) floating, or None."""
    eps: float
    """Added to the variance, or to the mean of squares."""
    kind: str = "layer_norm"
    """ "layer_norm" or "rms_norm" (Zhang and Sennrich 2019, arXiv 1910.07467)."""
