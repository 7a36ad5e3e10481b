"""Tensors in the middle of NaN, which shows what a kernel reads or writes outside them."""

import torch
from torch import Tensor

GUARD = 64
"""Elements on either side."""


class Surrounded:
    """A copy of a tensor inside a larger one that is NaN elsewhere.

    Args:
        tensor: contiguous.
        offset: elements by which the copy begins behind a 256-byte boundary.
        row_padding: NaN between the rows of a matrix.
    """

    def __init__(self, tensor: Tensor, offset: int = 0, row_padding: int = 0):
        rows = tensor.shape[0] if row_padding else 1
        length = tensor.numel() + rows * row_padding
        self._whole = torch.empty(length + 2 * GUARD + offset + 256, dtype=tensor.dtype)
        self._whole.view(torch.uint8).fill_(0xFF)
        begin = GUARD + offset + (-self._whole.data_ptr() // tensor.itemsize - GUARD) % (256 // tensor.itemsize)
        inside = self._whole[begin : begin + length]
        if row_padding:
            inside = inside.view(rows, tensor.shape[1] + row_padding)[:, : tensor.shape[1]]
        self.tensor = inside.view(tensor.shape) if not row_padding else inside
        """The copy."""
        self.tensor.copy_(tensor)

    def untouched_outside(self) -> bool:
        """Tell whether everything around the copy is as it was."""
        copy = self.tensor.clone()
        self.tensor.view(torch.uint8).fill_(0xFF)
        untouched = bool((self._whole.view(torch.uint8) == 0xFF).all())
        self.tensor.copy_(copy)
        return untouched
