"""What every fused backend of `linear_cross_entropy` does around its own row kernel: rows in, chunks, rows out.

The logits exist one chunk of rows at a time. A chunk becomes its own gradient in place, which two more products turn
into the gradients of `hidden` and `weight`: three products in all, nothing recomputed, nothing of size N x V.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from fastssl.ops.products import add_product

RowKernel = Callable[[Tensor, slice, bool], None]
"""Called with a chunk of logits (rows, V), the rows it holds, and whether it is the first chunk. Turns the logits into
their gradient where gradients are wanted, and fills what belongs to these rows."""

Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]
"""Of hidden, weight and bias; None where not wanted."""


def even_rows(num_rows: int, limit: int) -> int:
    """Return the rows of one chunk: at most `limit`, and chunks of equal size."""
    return -(-num_rows // max(1, -(-num_rows // limit)))


def labelled_rows(targets: Tensor, ignore_index: int | None) -> Tensor | None:
    """Return the indices of the rows that carry a label, or None where all do; on a GPU the host waits for them."""
    if ignore_index is None:
        return None
    rows = (targets != ignore_index).nonzero().squeeze(-1)
    return None if rows.numel() == targets.numel() else rows


def gather(tensor: Tensor | None, rows: Tensor | None) -> Tensor | None:
    """Return the given rows, contiguous; all where `rows` is None."""
    if tensor is None:
        return None
    return tensor.contiguous() if rows is None else tensor[rows]


def run(hidden: Tensor, weight: Tensor, logits: Tensor, row_kernel: RowKernel, gradients: Gradients) -> None:
    """Fill what `row_kernel` fills, and the gradients of `hidden` and `weight`, chunk by chunk.

    Args:
        hidden, weight: (rows, E) and (V, E), of the dtype of the products; V may count padding, which is the backend's.
        logits: (rows of one chunk, V), memory that every chunk uses.
        row_kernel: of the backend; it also fills the gradient of the bias.
        gradients: memory for the gradients, which may be wider than the products.
    """
    grad_hidden, grad_weight, _ = gradients
    if hidden.shape[0] == 0:
        for gradient in gradients:
            if gradient is not None:
                gradient.zero_()
        return
    step = logits.shape[0]
    for begin in range(0, hidden.shape[0], step):
        rows = slice(begin, begin + step)
        operand = hidden[rows]
        chunk = torch.mm(operand, weight.T, out=logits[: operand.shape[0]])
        row_kernel(chunk, rows, begin == 0)
        if grad_hidden is not None:
            add_product(grad_hidden[rows], chunk, weight, first=True)
        if grad_weight is not None:
            add_product(grad_weight, chunk.T, operand, first=begin == 0)


def results(
    inputs: tuple[Tensor, Tensor, Tensor | None],
    num_rows: int,
    rows: Tensor | None,
    per_row: tuple[Tensor, Tensor, Tensor],
    gradients: Gradients,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return losses (N), lse (N), number correct, and the gradients in the dtypes of `inputs`, empty if not wanted.

    Rows that are not among `rows` get zeros. The gradient of the weight may have more rows than the weight: they go.
    """
    hidden, weight, bias = inputs
    losses, lse, correct = per_row
    grad_hidden, grad_weight, grad_bias = gradients
    return (
        _spread(losses, rows, num_rows),
        _spread(lse, rows, num_rows),
        correct.sum(),
        hidden.new_empty(0) if grad_hidden is None else _spread(grad_hidden.to(hidden.dtype), rows, num_rows),
        hidden.new_empty(0) if grad_weight is None else grad_weight[: weight.shape[0]].to(weight.dtype),
        hidden.new_empty(0) if grad_bias is None else grad_bias.to(bias.dtype),
    )


def fake_results(hidden, weight, targets, bias, *rest):
    """Return what a fused backend's `forward_with_gradients` returns, shapes and dtypes alone."""
    need_hidden, need_weight, need_bias = rest[-3:]
    losses = targets.new_empty(targets.shape, dtype=torch.float32)
    return (
        losses,
        torch.empty_like(losses),
        targets.new_empty(()),
        hidden.new_empty(hidden.shape if need_hidden else 0),
        weight.new_empty(weight.shape if need_weight else 0),
        weight.new_empty(0) if not need_bias else bias.new_empty(bias.shape),
    )


def _spread(values: Tensor, rows: Tensor | None, num_rows: int) -> Tensor:
    if rows is None:
        return values
    return values.new_zeros(num_rows, *values.shape[1:]).index_copy_(0, rows, values)
