"""Operands that no cache holds: many of a kind, taken in turn."""

from collections.abc import Callable
from typing import Generic, TypeVar

Operand = TypeVar("Operand")
COLD_BYTES = 640 << 20
"""Of all operands of a kind: more than the largest caches, and than the weights of GPT-2 124M."""


class Rotation(Generic[Operand]):
    """Takes operands in turn; contenders that share one never meet what another has just read.

    Args:
        make: allocates an operand.
        num_bytes: size of one.
    """

    def __init__(self, make: Callable[[], Operand], num_bytes: int) -> None:
        self._operands = [make() for _ in range(max(-(-COLD_BYTES // num_bytes), 2))]
        self._turn = 0

    def next(self) -> Operand:
        """Return the operand that was not used for the longest time."""
        self._turn = (self._turn + 1) % len(self._operands)
        return self._operands[self._turn]
