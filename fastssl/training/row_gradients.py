"""Gradients of which few rows are not zero: those of a large embedding that read a few words.

An embedding with ``sparse=True`` has its gradient as the rows that were read. Clipping then passes over these alone,
and nobody fills the whole table with zeros, step for step. AdamW still updates every row, as its definition says (its
averages go on where the gradient is zero), from a table of zeros that is kept, and into which the rows are put for
the moment of the update.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn


def values_of_gradients(parameters: Sequence[nn.Parameter]) -> list[Tensor]:
    """Return what the gradients hold, each number once: dense ones whole, of sparse ones the rows.

    Changes of them change the gradients. Rows of a sparse gradient that stand for the same word are added up first.
    """
    values = []
    for parameter in parameters:
        if parameter.grad.is_sparse:
            parameter.grad = parameter.grad.coalesce()
            values.append(parameter.grad.values())
        else:
            values.append(parameter.grad)
    return values


class RowGradients:
    """Makes sparse gradients dense for an optimizer that knows no others."""

    def __init__(self) -> None:
        self._tables: dict[nn.Parameter, Tensor] = {}

    @contextmanager
    def dense(self, parameters: Sequence[nn.Parameter]) -> Iterator[None]:
        """Give every parameter a dense gradient inside the context; sparse ones are used up by it."""
        filled = []
        for parameter in parameters:
            if parameter.grad is not None and parameter.grad.is_sparse:
                rows = parameter.grad.coalesce()
                if parameter not in self._tables:
                    self._tables[parameter] = torch.zeros_like(parameter)
                table, indices = self._tables[parameter], rows.indices()[0]
                parameter.grad = table.index_copy_(0, indices, rows.values())
                filled.append((parameter, table, indices))
        yield
        for parameter, table, indices in filled:
            table.index_fill_(0, indices, 0.0)
            parameter.grad = None
