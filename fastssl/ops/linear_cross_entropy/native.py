"""`linear_cross_entropy` by PyTorch's matrix products and one compiled kernel over the rows between them."""

import torch
from torch import Tensor

from fastssl.ops.backend import Supports
from fastssl.ops.linear_cross_entropy import chunks

SUPPORTS = Supports(devices=("cpu",), dtypes=(torch.float32, torch.bfloat16), needs_cpu_ops=True)

MIN_CHUNK_ROWS = 256
MAX_CHUNK_ROWS = 1024


def chunk_rows(num_rows: int, width: int) -> int:
    """Return the rows of one chunk: about as many as the model is wide, and chunks of equal size.

    Each chunk reads and writes the whole weight gradient once, so few rows waste memory bandwidth; a chunk of E rows
    is as large as that gradient.
    """
    return chunks.even_rows(num_rows, min(max(width, MIN_CHUNK_ROWS), MAX_CHUNK_ROWS))


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
    rows = chunks.labelled_rows(targets, ignore_index)
    arithmetic = torch.bfloat16 if product_dtype == torch.bfloat16 and _has_bf16_arithmetic() else torch.float32
    operand, matrix = (
        tensor.to(product_dtype).to(arithmetic).contiguous() for tensor in (chunks.gather(hidden, rows), weight)
    )
    labels, row_grads = chunks.gather(targets, rows), chunks.gather(row_grads, rows)
    wide_bias = None if bias is None else bias.float().contiguous()
    losses, lse = (hidden.new_empty(labels.numel(), dtype=torch.float32) for _ in range(2))
    correct = torch.empty(labels.numel(), dtype=torch.bool)
    step = chunk_rows(labels.numel(), hidden.shape[1])
    grad_weight_like = matrix if labels.numel() <= step else losses
    grad_hidden = torch.ops.fastssl.empty_output(operand, operand.shape) if need_hidden else None
    grad_weight = torch.ops.fastssl.empty_output(grad_weight_like, matrix.shape) if need_weight else None
    grad_bias = losses.new_empty(weight.shape[0]) if need_bias else None

    def row_kernel(chunk: Tensor, part: slice, first: bool) -> None:
        torch.ops.fastssl.softmax_cross_entropy_(
            chunk,
            wide_bias,
            labels[part],
            None if row_grads is None else row_grads[part],
            label_smoothing,
            z_loss,
            softcap or 0.0,
            need_hidden or need_weight or need_bias,
            losses[part],
            lse[part],
            correct[part],
            grad_bias,
            not first,
        )

    gradients = (grad_hidden, grad_weight, grad_bias)
    chunks.run(operand, matrix, torch.ops.fastssl.empty_output(operand, (step, weight.shape[0])), row_kernel, gradients)
    return chunks.results((hidden, weight, bias), targets.numel(), rows, (losses, lse, correct), gradients)


forward_with_gradients.register_fake(chunks.fake_results)


def scale_(gradients: list[Tensor], factor: Tensor) -> None:
    """Multiply the gradients of `forward_with_gradients` by a number, in place."""
    if torch.compiler.is_compiling() or factor.item() != 1.0:
        for gradient in gradients:
            gradient.mul_(factor)


def _has_bf16_arithmetic() -> bool:
    # Without it PyTorch's bfloat16 product is emulated, several times slower than the float32 one.
    return torch.cpu._is_avx512_bf16_supported()
