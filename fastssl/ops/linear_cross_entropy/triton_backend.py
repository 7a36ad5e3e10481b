"""`linear_cross_entropy` by PyTorch's matrix products and one Triton kernel over the rows between them.

Nothing is added atomically and nothing depends on which program runs first: the same call gives the same bits.
"""

from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from fastssl.ops.backend import Supports
from fastssl.ops.linear_cross_entropy import chunks
from fastssl.ops.linear_cross_entropy.on_gpu import chunk_rows, is_capturing, padded_vocabulary
from fastssl.ops.recording import tracers_are_active
from fastssl.ops.surroundings import has_values
from fastssl.ops.tile_search import Trial, rounded_size, tile_for
from fastssl.ops.triton_launch import launch

SUPPORTS = Supports(
    devices=("cuda", "cpu"),
    dtypes=(torch.float32, torch.bfloat16, torch.float16),
    needs_triton=True,
    unverified_on=("cpu",),
)


class RowKernelConfig(NamedTuple):
    """How one program sweeps its row."""

    groups: int
    """Groups of classes in one block: two loads of 16 bytes for each thread."""
    group: int
    """Neighbouring classes in one load of 16 bytes."""
    num_warps: int
    """Warps of one program."""


def row_kernel_config(vocab_size: int, dtype: torch.dtype, with_gradient: bool) -> RowKernelConfig:
    """Return the shape of the row kernel for a vocabulary and the dtype of its logits.

    The second sweep shall find its row in the second-level cache, which has about 390 KB a multiprocessor on A100 and
    on H100. A multiprocessor runs 32 to 40 of these warps at once, so 8 KB a warp keep some 256 to 320 KB in flight.
    Without a second sweep more rows may be in flight, and fewer warps wait for each other at the end. A program of 32
    warps has 64 registers a thread: too few, with every option, for float32.
    """
    row_bytes = vocab_size * dtype.itemsize
    max_warps = 8 if not with_gradient else 16 if dtype == torch.float32 else 32
    num_warps = 1
    while num_warps < max_warps and num_warps * 8192 < row_bytes:
        num_warps *= 2
    return RowKernelConfig(groups=64 * num_warps, group=16 // dtype.itemsize, num_warps=num_warps)


def other_row_kernel_configs(vocab_size: int, dtype: torch.dtype, with_gradient: bool) -> Iterator[RowKernelConfig]:
    """Yield what a search tries beside it: half and twice the warps, one to four loads for each thread of a block."""
    config = row_kernel_config(vocab_size, dtype, with_gradient)
    for num_warps in (config.num_warps // 2, config.num_warps, 2 * config.num_warps):
        for loads in (1, 2, 4):
            if 1 <= num_warps <= 32:
                yield RowKernelConfig(groups=32 * loads * num_warps, group=config.group, num_warps=num_warps)


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

    The host waits once, for the number of labelled rows, unless all are (`ignore_index` None). Under CUDA graph capture
    it cannot: there all rows take part, and those without a label give zeros, so the caller passes rows gathered to a
    fixed count.

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
    from fastssl.ops.linear_cross_entropy import triton_kernels

    # The device has that to do while the host waits for the number of rows.
    matrix = padded_vocabulary(weight, product_dtype)
    padded_bias = None if bias is None else _padded(bias, matrix.shape[0])
    if ignore_index is not None and is_capturing(hidden):
        # Zeros in place of rows without a label: what these hold, be it NaN, would meet gradients of zero in a product.
        rows, operand = None, hidden.masked_fill((targets == ignore_index)[:, None], 0)
    else:
        rows = chunks.labelled_rows(targets, ignore_index)
        operand = chunks.gather(hidden, rows)
    operand = operand.to(product_dtype).contiguous()
    labels, row_grads = chunks.gather(targets, rows), chunks.gather(row_grads, rows)
    losses, lse = (hidden.new_empty(labels.numel(), dtype=torch.float32) for _ in range(2))
    correct = labels.new_empty(labels.numel(), dtype=torch.bool)
    step, vocab_size = chunk_rows(labels.numel(), hidden.shape[1]), weight.shape[0]
    rounds_once = step == labels.numel() and weight.dtype == product_dtype
    grad_dtype = product_dtype if rounds_once else torch.float32
    grad_hidden = torch.empty_like(operand) if need_hidden else None
    grad_weight = torch.empty_like(matrix, dtype=grad_dtype) if need_weight else None
    grad_bias = losses.new_empty(vocab_size) if need_bias else None
    with_gradient = need_hidden or need_weight or need_bias
    logits = operand.new_empty(step, matrix.shape[0])
    shape = (vocab_size, product_dtype, with_gradient)

    def run(config: RowKernelConfig, chunk: Tensor, part: slice) -> None:
        launch(
            triton_kernels.softmax_cross_entropy,
            (chunk.shape[0],),
            (
                chunk,
                padded_bias,
                labels[part],
                None if row_grads is None else row_grads[part],
                losses[part],
                lse[part],
                correct[part],
            ),
            (chunk.stride(0), vocab_size, ignore_index, label_smoothing, z_loss, softcap),
            options={"num_warps": config.num_warps, "enable_fp_fusion": True},
            SMOOTHED=label_smoothing > 0.0,
            WITH_GRADIENT=with_gradient,
            GROUPS=config.groups,
            GROUP=config.group,
        )

    def trial(chunk: Tensor, part: slice) -> Trial:
        own = torch.empty_like(chunk)  # gradients take the place of logits

        def results(config: RowKernelConfig) -> tuple[Tensor, ...]:
            run(config, own.copy_(chunk), part)
            return losses[part], lse[part], own[:, :vocab_size] if with_gradient else None

        return Trial(partial(run, chunk=own, part=part), results)

    def row_kernel(chunk: Tensor, part: slice, first: bool) -> None:
        config = tile_for(
            triton_kernels.softmax_cross_entropy,
            row_kernel_config(*shape),
            lambda: other_row_kernel_configs(*shape),
            lambda: {
                "rows": rounded_size(chunk.shape[0]),
                "vocab_size, dtype, with_gradient": shape,
                "bias, row_grads": (bias is not None, row_grads is not None),
                "smoothed, softcap": (label_smoothing > 0, softcap is not None),
            },
            partial(trial, chunk, part),
            hidden.device,
        )
        run(config, chunk, part)
        if grad_bias is not None:
            # Over the padding too, whose sums are dropped: so PyTorch's loads are wide for every vocabulary.
            column_sums = chunk.sum(0, dtype=torch.float32)[:vocab_size]
            _ = grad_bias.copy_(column_sums) if first else grad_bias.add_(column_sums)

    gradients = (grad_hidden, grad_weight, grad_bias)
    with torch.cuda.device_of(hidden):
        chunks.run(operand, matrix, logits, row_kernel, gradients)
    return chunks.results((hidden, weight, bias), targets.numel(), rows, (losses, lse, correct), gradients)


# A call of it costs much more than one of the function: only graphs and transforms see it.
_forward_with_gradients_op = torch.library.custom_op(
    "fastssl::linear_cross_entropy_triton", _forward_with_gradients, mutates_args=()
)
_forward_with_gradients_op.register_fake(chunks.fake_results)


def scale_(gradients: list[Tensor], factor: Tensor) -> None:
    """Multiply the gradients of `forward_with_gradients` by a number, in place; the host does not wait for it."""
    if torch.compiler.is_compiling():
        for gradient in gradients:
            gradient.copy_(gradient.float() * factor)
        return
    from fastssl.ops.linear_cross_entropy import triton_kernels

    with torch.cuda.device_of(factor):
        for gradient in gradients:
            if gradient.numel() > 0:
                block = 2048
                grid = (min(-(-gradient.numel() // block), 1024),)
                launch(
                    triton_kernels.scale,
                    grid,
                    (gradient, factor),
                    (gradient.numel(),),
                    options={"num_warps": 4},
                    BLOCK=block,
                )


def _padded(bias: Tensor, length: int) -> Tensor:
    padded = bias.new_empty(length, dtype=torch.float32)
    padded[: bias.numel()].copy_(bias)
    return padded
