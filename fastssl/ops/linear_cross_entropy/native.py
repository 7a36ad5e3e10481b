"""`linear_cross_entropy` by PyTorch's matrix products and one compiled kernel over the rows between them."""

import torch
from torch import Tensor

from fastssl.ops.backend import Supports
from fastssl.ops.linear_cross_entropy import chunks, on_gpu
from fastssl.ops.recording import tracers_are_active
from fastssl.ops.surroundings import can_be_read, has_values

SUPPORTS = Supports(
    devices=("cpu", "cuda"),
    dtypes=(torch.float32, torch.bfloat16, torch.float16),
    needs_cpu_ops=True,
    needs_cuda_ops=True,
    refuses={
        "it multiplies no float16 on the CPU": lambda device, product_dtype, **_: (
            device.type == "cpu" and product_dtype == torch.float16
        )
    },
)

MIN_CHUNK_ROWS = 256
MAX_CHUNK_ROWS = 1024
MIN_CHUNK_LOGITS = 1 << 18
"""Of a chunk of few classes, in numbers."""


def chunk_rows(num_rows: int, width: int, vocab_size: int) -> int:
    """Return the rows of one chunk on the CPU: about as many as the model is wide, and chunks of equal size.

    Each chunk reads and writes the whole weight gradient once, so few rows waste memory bandwidth; a chunk of E rows
    is as large as that gradient. Of a small vocabulary there are as many rows as fill a core's cache.
    """
    limit = max(width, MIN_CHUNK_ROWS, MIN_CHUNK_LOGITS // vocab_size)
    return chunks.even_rows(num_rows, min(limit, MAX_CHUNK_ROWS))


def forward(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None,
    *,
    ignore_index: int | None,
    label_smoothing: float,
    z_loss: float,
    softcap: float | None,
    product_dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return (losses (N), lse (N), number of correct predictions (0-d)), without a graph for autograd."""
    options = (ignore_index, label_smoothing, z_loss, softcap, product_dtype)
    return forward_with_gradients(hidden, weight, targets, bias, None, *options, False, False, False)[:3]


def forward_with_gradients(hidden: Tensor, *others) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return losses (N), lse (N), number of correct predictions, and the gradients of <row_grads, losses>.

    On a GPU the host waits once, for the number of labelled rows, unless all are (`ignore_index` None). Under CUDA
    graph capture it cannot: there all rows take part, and those without a label give zeros, so the caller passes rows
    gathered to a fixed count.

    Args:
        hidden, weight, targets, bias: as in the public function.
        row_grads: (N) float32; None for ones.
        ignore_index, label_smoothing, z_loss, softcap, product_dtype: as in the public function.
        need_hidden, need_weight, need_bias: which gradients to compute; the others come back empty.
    """
    traced = tracers_are_active() or not has_values(hidden)
    return (_forward_with_gradients_op if traced else _forward_with_gradients)(hidden, *others)


def _forward_with_gradients(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None,
    row_grads: Tensor | None,
    ignore_index: int | None,
    label_smoothing: float,
    z_loss: float,
    softcap: float | None,
    product_dtype: torch.dtype,
    need_hidden: bool,
    need_weight: bool,
    need_bias: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    gpu = _is_on_gpu(hidden)
    wide_bias = None if bias is None else bias.float().contiguous()
    if gpu:  # the device has that to do while the host waits for the number of rows
        matrix = on_gpu.padded_vocabulary(weight, product_dtype)
    looks_later = gpu and ignore_index is not None and on_gpu.is_capturing(hidden)
    unlabelled = targets == ignore_index if looks_later else None
    if unlabelled is None:
        rows = chunks.labelled_rows(targets, ignore_index)
        operand, labels, row_grads = (chunks.gather(tensor, rows) for tensor in (hidden, targets, row_grads))
    else:
        rows, operand, labels, row_grads = None, *_with_idle_rows(hidden, targets, row_grads, unlabelled)
    arithmetic = product_dtype
    if not gpu and not (product_dtype == torch.bfloat16 and _has_bf16_arithmetic()):
        arithmetic = torch.float32
    operand = operand.to(product_dtype).to(arithmetic).contiguous()
    if not gpu:
        matrix = weight.to(product_dtype).to(arithmetic).contiguous()
    losses, lse = (hidden.new_empty(labels.numel(), dtype=torch.float32) for _ in range(2))
    correct = labels.new_empty(labels.numel(), dtype=torch.bool)
    sizes = (labels.numel(), hidden.shape[1])
    step = on_gpu.chunk_rows(*sizes) if gpu else chunk_rows(*sizes, weight.shape[0])
    rounds_once = labels.numel() <= step and not (gpu and weight.dtype != product_dtype)
    grad_hidden = torch.ops.fastssl.empty_output(operand, operand.shape) if need_hidden else None
    grad_weight_like = matrix if rounds_once else losses
    grad_weight = torch.ops.fastssl.empty_output(grad_weight_like, matrix.shape) if need_weight else None
    vocab_size, with_gradient = weight.shape[0], need_hidden or need_weight or need_bias
    grad_bias = losses.new_empty(vocab_size) if need_bias else None

    def row_kernel(chunk: Tensor, part: slice, first: bool) -> None:
        torch.ops.fastssl.softmax_cross_entropy_(
            chunk[:, :vocab_size],
            wide_bias,
            labels[part],
            None if row_grads is None else row_grads[part],
            label_smoothing,
            z_loss,
            softcap or 0.0,
            with_gradient,
            losses[part],
            lse[part],
            correct[part],
            grad_bias,
            not first,
        )
        if with_gradient and chunk.shape[1] > vocab_size:
            chunk[:, vocab_size:].zero_()  # an infinite operand left NaN, which a softcap may keep from all else

    gradients = (grad_hidden, grad_weight, grad_bias)
    logits = torch.ops.fastssl.empty_output(operand, (step, matrix.shape[0]))
    chunks.run(operand, matrix, logits, row_kernel, gradients)
    if unlabelled is not None:
        for tensor in (losses, lse, correct):
            tensor.masked_fill_(unlabelled, 0)
    return chunks.results((hidden, weight, bias), targets.numel(), rows, (losses, lse, correct), gradients)


# A call of it costs much more than one of the function: only graphs and transforms see it.
_forward_with_gradients_op = torch.library.custom_op(
    "fastssl::linear_cross_entropy", _forward_with_gradients, mutates_args=()
)
_forward_with_gradients_op.register_fake(chunks.fake_results)


def scale_(gradients: list[Tensor], factor: Tensor) -> None:
    """Multiply the gradients of `forward_with_gradients` by a number, in place; the host waits for none of a GPU's."""
    gpu = _is_on_gpu(factor)
    if gpu and torch.compiler.is_compiling():
        for gradient in gradients:
            gradient.copy_(gradient.float() * factor)
    elif gpu:
        for gradient in gradients:
            torch.ops.fastssl.scale_(gradient, factor)
    elif not can_be_read(factor) or factor.item() != 1.0:
        for gradient in gradients:
            gradient.mul_(factor)


def _is_on_gpu(tensor: Tensor) -> bool:
    return tensor.is_cuda


def _with_idle_rows(
    hidden: Tensor, targets: Tensor, row_grads: Tensor | None, unlabelled: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return operands, labels and gradients of the rows' losses of which those without a label give zeros.

    Their operands are zero: what they hold, be it NaN, would meet gradients of zero in a product.
    """
    if row_grads is None:
        row_grads = hidden.new_ones(targets.shape, dtype=torch.float32)
    return (
        hidden.masked_fill(unlabelled[:, None], 0),
        targets.masked_fill(unlabelled, 0),
        row_grads.masked_fill(unlabelled, 0),
    )


def _has_bf16_arithmetic() -> bool:
    # Without it PyTorch's bfloat16 product is emulated, several times slower than the float32 one.
    return torch.cpu._is_avx512_bf16_supported()
