"""How many threads a command computes with."""

from __future__ import annotations

import torch


def use_threads(number: int | None) -> None:
    """Compute with so many threads; None leaves PyTorch's choice.

    Raises:
        ValueError: For less than one.
    """
    if number is None:
        return
    if number < 1:
        raise ValueError(f"num_threads must be at least 1, got {number}; leave it out for PyTorch's choice")
    torch.set_num_threads(number)
