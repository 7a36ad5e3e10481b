"""Stock PyTorch through its compiler."""

from collections.abc import Callable

import torch


def compiled(function: Callable) -> Callable:
    """Return `function` compiled for exactly the shapes that it will see; the first call compiles.

    What an earlier case compiled is forgotten, lest its shapes make this one dynamic and slower than it can be.
    """
    torch.compiler.reset()
    return torch.compile(function, dynamic=False)
