"""`linear_cross_entropy` by PyTorch's matrix products and one compiled kernel over the rows between them.

The logits exist one chunk of rows at a time. A chunk becomes its own gradient in place, which two more products turn
into the gradients of `hidden` and `weight`: three products in all, nothing recomputed, nothing of size N x V.
"""

import torch
from torch import Tensor

from fastssl.ops.backend import Supports

SUPPORTS = Supports(devices=("cpu",), dtypes=(torch.float32, torch.bfloat16), needs_cpu_ops=True)

MIN_CHUNK_ROWS = 256
MAX_CHUNK_ROWS = 1024


def chunk_rows(num_rows: int, width: int) -> int:
    """Return the rows of one chunk: about as many as the model is wide, and chunks of equal size.

    Each chunk reads and writes the whole weight gradient once, so few rows waste memory bandwidth; a chunk of E rows
    is as large as that gradient.
    """
    limit = min(max(width, MIN_CHUNK_ROWS), MAX_CHUNK_ROWS)
    return -(-num_rows // max(1, -(-num_rows // limit)))


def forward(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None,
    *,
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
    softcap: float | None,
    product_dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return (losses (N), lse (N), number of correct predictions (0-d)), without a graph for autograd."""
    options = (ignore_index, label_smoothing, z_loss, softcap, product_dtype)
    return forward_with_gradients(hidden, weight, targets, bias, None, *options, False, False, False)[:3]


@torch.library.custom_op("fastssl::linear_cross_entropy", mutates_args=())
def forward_with_gradients(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None,
    row_grads: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
    softcap: float | None,
    product_dtype: torch.dtype,
    need_hidden: bool,
    need_weight: bool,
    need_bias: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return losses (N), lse (N), number of correct predictions, and the gradients of <row_grads, losses>.

    Args:
        row_grads: (N) float32; None for ones.
        need_hidden, need_weight, need_bias: which gradients to compute; the others come back empty.
        hidden, weight, targets, bias, ignore_index, label_smoothing, z_loss, softcap, product_dtype: as in the
            public function.
    """
    rows = (targets != ignore_index).nonzero().squeeze(-1)
    everywhere = rows.numel() == targets.numel()
    arithmetic = torch.bfloat16 if product_dtype == torch.bfloat16 and _has_bf16_arithmetic() else torch.float32
    operand, matrix = (
        tensor.to(product_dtype).to(arithmetic).contiguous()
        for tensor in (hidden if everywhere else hidden[rows], weight)
    )
    losses, lse = (hidden.new_empty(rows.numel(), dtype=torch.float32) for _ in range(2))
    correct = torch.empty(rows.numel(), dtype=torch.bool)
    grad_hidden = torch.ops.fastssl.empty_output(operand, operand.shape) if need_hidden else None
    one_chunk = rows.numel() <= chunk_rows(rows.numel(), hidden.shape[1])
    grad_weight_like = matrix if one_chunk else losses
    grad_weight = torch.ops.fastssl.empty_output(grad_weight_like, matrix.shape) if need_weight else None
    grad_bias = losses.new_empty(weight.shape[0]) if need_bias else None
    _run_chunks(
        operand,
        matrix,
        targets[rows],
        None if bias is None else bias.float().contiguous(),
        None if row_grads is None else row_grads[rows],
        (label_smoothing, z_loss, softcap or 0.0),
        (losses, lse, correct),
        (grad_hidden, grad_weight, grad_bias),
    )
    if not everywhere:
        losses, lse = (torch.zeros(targets.shape).index_copy_(0, rows, tensor) for tensor in (losses, lse))
    return (
        losses,
        lse,
        correct.sum(),
        _spread(grad_hidden, hidden, None if everywhere else rows),
        hidden.new_empty(0) if grad_weight is None else grad_weight.to(weight.dtype),
        hidden.new_empty(0) if grad_bias is None else grad_bias.to(bias.dtype),
    )


def _run_chunks(hidden, weight, targets, bias, row_grads, options, per_row, gradients) -> None:
    """Fill `per_row` and the wanted `gradients`, which the caller allocates, chunk by chunk."""
    num_rows, width = hidden.shape
    grad_hidden, grad_weight, grad_bias = gradients
    with_gradient = any(gradient is not None for gradient in gradients)
    if num_rows == 0:
        for gradient in gradients:
            if gradient is not None:
                gradient.zero_()
        return
    step = chunk_rows(num_rows, width)
    logits = torch.ops.fastssl.empty_output(hidden, (step, weight.shape[0]))
    for begin in range(0, num_rows, step):
        rows = slice(begin, begin + step)
        operand = hidden[rows]
        chunk = torch.mm(operand, weight.T, out=logits[: operand.shape[0]])
        torch.ops.fastssl.softmax_cross_entropy_(
            chunk,
            bias,
            targets[rows],
            None if row_grads is None else row_grads[rows],
            *options,
            with_gradient,
            *(tensor[rows] for tensor in per_row),
            grad_bias,
            begin > 0,
        )
        if grad_hidden is not None:
            torch.mm(chunk, weight, out=grad_hidden[rows])
        if grad_weight is not None:
            _add_product(grad_weight, chunk.T, operand, first=begin == 0)


def _add_product(total: Tensor, left: Tensor, right: Tensor, *, first: bool) -> None:
    """Add left @ right to `total`, which may be wider than the operands; the first product is written instead."""
    if total.dtype == left.dtype:
        _ = torch.mm(left, right, out=total) if first else total.addmm_(left, right)
    else:
        product = torch.mm(left, right)
        _ = total.copy_(product) if first else total.add_(product)


def _has_bf16_arithmetic() -> bool:
    # Without it PyTorch's bfloat16 product is emulated, several times slower than the float32 one.
    return torch.cpu._is_avx512_bf16_supported()


def _spread(gradient: Tensor | None, like: Tensor, rows: Tensor | None) -> Tensor:
    """Return the gradient in the dtype of `like`, with zeros in the rows that had no label; empty if not wanted."""
    if gradient is None:
        return like.new_empty(0)
    gradient = gradient.to(like.dtype)
    return gradient if rows is None else like.new_zeros(like.shape).index_copy_(0, rows, gradient)


@forward_with_gradients.register_fake
def _(hidden, weight, targets, bias, *rest):
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
