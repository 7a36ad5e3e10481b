"""The dropout of a block."""

from typing import NamedTuple

from torch import Tensor


class BlockDropout(NamedTuple):
    """Where a block drops elements, with what probability, by which seeds (0-d int64 tensors).

    The masks are those of `layer_norm` for the sums and of `attention` for its weights.
    """

    addend_p: float = 0.0
    """Of what is added to the residual in front of the first norm."""
    attention_p: float = 0.0
    """Of attention's weights."""
    output_p: float = 0.0
    """Of what attention adds to the residual stream."""
    addend_seed: Tensor | None = None
    """Of `addend_p`; needed where it is above 0."""
    attention_seed: Tensor | None = None
    """Of `attention_p`."""
    output_seed: Tensor | None = None
    """Of `output_p`."""
