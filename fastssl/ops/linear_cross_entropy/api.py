"""The public linear cross-entropy: checks, backend choice, autograd."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from fastssl.ops.backend import remembered_choice
from fastssl.ops.linear_cross_entropy import native, reference, stock, triton_backend
from fastssl.ops.recording import differentiable_once, is_recorded
from fastssl.ops.surroundings import autocast_dtype, can_be_read, without_autocast

BACKENDS = {"native": native, "triton": triton_backend, "stock": stock, "reference": reference}
FUSED = ("native", "triton")
REDUCTIONS = ("none", "sum", "mean")
SMALLEST_SOFTCAP = torch.finfo(torch.float32).tiny
"""Smaller ones are subnormal in float32, or zero, and give NaN."""


class LinearCrossEntropyStats(NamedTuple):
    """What `linear_cross_entropy` knows beside its loss; no gradient flows through any of it."""

    losses: Tensor
    """Loss of each row, shape of `targets`, float32 (float64 for float64 inputs); 0 where ignored."""
    lse: Tensor
    """Log-sum-exp of each row's logits (natural logarithm), shape and dtype of `losses`; 0 where ignored."""
    num_correct: Tensor
    """Rows whose target has the largest logit (the first of equals), 0-d int64."""


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    ignore_index: int | None = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float | None = None,
    reduction: str = "mean",
    return_stats: bool = False,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, LinearCrossEntropyStats]:
    """Return the cross-entropy of the softmax over hidden @ weight.T + bias, without ever holding all logits.

    logits = hidden @ weight.T + bias, then softcap * tanh(logits / softcap);  lse = log sum exp(logits)
    loss = lse - (1 - label_smoothing) * logits[target] - label_smoothing * mean(logits) + z_loss * lse^2

    Args:
        hidden: (..., E) float32, bfloat16, float16 or float64.
        weight: (V, E), possibly of a wider dtype than `hidden` (float32 master weights).
        targets: shape of `hidden` without E, int64 in [0, V), or `ignore_index` where that is a number.
        bias: (V), or None.
        ignore_index: target of the rows that have no label; they are dropped before the product. None: every row has
            a label, nothing is looked for, and the host does not wait for a GPU.
        label_smoothing: probability mass spread evenly over the vocabulary, in [0, 1].
        z_loss: weight of lse^2, at least 0.
        softcap: bound of the logits' magnitude, above 0 and finite; None for none.
        reduction: "none" (one loss a row, 0 where ignored), "sum", or "mean" over labelled rows; the mean over no
            labels is 0 with zero gradients.
        return_stats: also return `LinearCrossEntropyStats`.
        backend: "auto", "native", "triton", "stock" or "reference".

    Returns:
        The loss, float32 (float64 for float64 inputs), 0-d or the shape of `targets`; with `return_stats` also the
        statistics. Gradients have the dtypes of their inputs.

    Raises:
        ValueError: for shapes, dtypes, devices or option values that do not fit, a target outside the vocabulary, or a
            backend that cannot run the call. On a GPU the host does not wait to look at targets: there the native
            and triton backends answer one outside the vocabulary with a loss and gradients of NaN, PyTorch with its own
            error.

    Numerics: the product's operands are in the autocast dtype where autocast is on, else in the wider dtype of
    `hidden` and `weight`; softmax, loss and gradient accumulation are float32. A bfloat16 product rounds the logits
    to bfloat16, as PyTorch's does, on machines with bfloat16 arithmetic, and leaves them float32 on others.
    Memory: with the native and triton backends one chunk of logits beyond the gradients, which "sum" and "mean" compute
    in the forward; "none" recomputes the logits in the backward. They are differentiable once.
    CUDA graphs: under capture no row can be dropped for what its target holds. Pass labelled rows, gathered to a fixed
    count with `ignore_index` in the rest: the native and triton backends then do the work of every row and count zero
    for the rest. Outside of capture they wait once for the device, for the number of labelled rows, unless
    `ignore_index` is None.

    Source: Wijmans et al., "Cut Your Losses in Large-Vocabulary Language Models" (2024), arXiv 2411.09009; gradient in
    the forward: Hsu et al., "Liger Kernel" (2024), arXiv 2410.10989, section 3.2; z-loss: Chowdhery et al., "PaLM"
    (2022), arXiv 2204.02311, section 5; softcap: "Gemma 2" (2024), arXiv 2408.00118, section 2.
    """
    _check_tensors(hidden, weight, targets, bias)
    _check_options(label_smoothing, z_loss, softcap, reduction)
    if can_be_read(targets):
        _check_range(targets, weight.shape[0], ignore_index)
    product_dtype = _product_dtype(hidden, weight)
    options = {
        "ignore_index": ignore_index,
        "label_smoothing": label_smoothing,
        "z_loss": z_loss,
        "softcap": softcap,
        "product_dtype": product_dtype,
    }
    facts = {**options, "device": hidden.device}
    name = remembered_choice("linear_cross_entropy", backend, BACKENDS, hidden.device, product_dtype, facts)
    rows, labels = hidden.reshape(-1, hidden.shape[-1]), targets.reshape(-1)
    with without_autocast(hidden.device):
        if name in FUSED and is_recorded(hidden, weight, bias):
            loss, losses, lse, num_correct = _FusedLinearCrossEntropy.apply(
                rows, weight, bias, labels, name, reduction, *options.values()
            )
        else:
            losses, lse, num_correct = BACKENDS[name].forward(rows, weight, labels, bias, **options)
            num_labelled = _num_labelled(labels, ignore_index) if reduction == "mean" else None
            loss = losses if reduction == "none" else _reduce(losses, num_labelled)
    loss = loss.reshape(targets.shape) if reduction == "none" else loss
    if not return_stats:
        return loss
    per_row = (tensor.detach().reshape(targets.shape) for tensor in (losses, lse))
    return loss, LinearCrossEntropyStats(*per_row, num_correct)


class _FusedLinearCrossEntropy(torch.autograd.Function):
    """The gradients of "sum" and "mean" are computed in the forward, where the logits are, and handed out once."""

    @staticmethod
    def forward(ctx, hidden, weight, bias, targets, backend, reduction, *options):
        ignore_index, *_, product_dtype = options
        wanted = ctx.needs_input_grad[:3] if reduction != "none" else (False, False, False)
        num_labelled = _num_labelled(targets, ignore_index) if reduction == "mean" else None
        share = None if num_labelled is None else num_labelled.reciprocal()
        # A mean's small gradients would vanish in float16 before the loss scale arrives: there the division is last.
        late = share is not None and product_dtype == torch.float16
        losses, lse, num_correct, *gradients = BACKENDS[backend].forward_with_gradients(
            hidden,
            weight,
            targets,
            bias,
            None if share is None or late else share.expand(targets.shape),
            *options,
            *wanted,
        )
        loss = losses.clone() if reduction == "none" else _reduce(losses, num_labelled)
        ctx.save_for_backward(hidden, weight, bias, targets)
        ctx.gradients = gradients if reduction != "none" else None
        ctx.backend, ctx.share, ctx.late, ctx.options = backend, share, late, options
        ctx.mark_non_differentiable(losses, lse, num_correct)
        return loss, losses, lse, num_correct

    @staticmethod
    @differentiable_once
    def backward(ctx, saved, grad_loss, *_):
        gradients, ctx.gradients = ctx.gradients, None
        wanted = ctx.needs_input_grad[:3]
        backend = BACKENDS[ctx.backend]
        if gradients is None:  # "none", or a second backward over a retained graph
            hidden, weight, bias, targets = saved()
            row_grads = grad_loss if ctx.share is None else grad_loss * ctx.share
            row_grads = row_grads.expand(targets.shape).contiguous()
            gradients = backend.forward_with_gradients(hidden, weight, targets, bias, row_grads, *ctx.options, *wanted)[
                3:
            ]
        else:
            backend.scale_(gradients, grad_loss * ctx.share if ctx.late else grad_loss)
        found = (gradient if needed else None for gradient, needed in zip(gradients, wanted, strict=True))
        return *found, *(None for _ in ctx.needs_input_grad[3:])


def _num_labelled(targets: Tensor, ignore_index: int | None) -> Tensor:
    if ignore_index is None:
        return torch.full((), max(targets.numel(), 1), dtype=targets.dtype, device=targets.device)
    return (targets != ignore_index).sum().clamp(min=1)


def _reduce(losses: Tensor, num_labelled: Tensor | None) -> Tensor:
    """Return the sum of the losses, or their mean over a number of rows."""
    # A float64 sum has the same float32 bits for every thread count.
    total = losses.sum(dtype=torch.float64)
    return (total if num_labelled is None else total / num_labelled).to(losses.dtype)


def _product_dtype(hidden: Tensor, weight: Tensor) -> torch.dtype:
    asked = autocast_dtype(hidden.device)
    if asked is not None and hidden.dtype != torch.float64:
        return asked
    return torch.promote_types(hidden.dtype, weight.dtype)


def _check_tensors(hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None) -> None:
    op = "linear_cross_entropy"
    if hidden.dim() == 0 or weight.dim() != 2 or hidden.shape[-1] != weight.shape[1] or 0 in weight.shape:
        raise ValueError(
            f"{op}: hidden must have shape (..., E) and weight (V, E), "
            f"got {tuple(hidden.shape)} and {tuple(weight.shape)}"
        )
    if targets.shape != hidden.shape[:-1] or targets.dtype != torch.int64:
        raise ValueError(
            f"{op}: targets must be torch.int64 of shape {tuple(hidden.shape[:-1])}, one a row of hidden, "
            f"got {targets.dtype} of shape {tuple(targets.shape)}"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"{op}: bias must have shape {tuple(weight.shape[:1])}, got {tuple(bias.shape)}")
    for name, tensor in (("hidden", hidden), ("weight", weight), ("bias", bias), ("targets", targets)):
        if tensor is not None and tensor.device != hidden.device:
            raise ValueError(f"{op}: {name} must be on {hidden.device} like hidden, got {tensor.device}")
        if tensor is not None and tensor is not targets and not tensor.is_floating_point():
            raise ValueError(f"{op}: {name} must be floating point, got {tensor.dtype}")


def _check_options(label_smoothing: float, z_loss: float, softcap: float | None, reduction: str) -> None:
    op = "linear_cross_entropy"
    if reduction not in REDUCTIONS:
        raise ValueError(f"{op}: reduction must be one of {REDUCTIONS}, got {reduction!r}")
    if not 0.0 <= label_smoothing <= 1.0:
        raise ValueError(f"{op}: label_smoothing must be between 0 and 1, got {label_smoothing}")
    if not z_loss >= 0.0:
        raise ValueError(f"{op}: z_loss must be at least 0, got {z_loss}")
    if softcap is not None and not SMALLEST_SOFTCAP <= softcap < math.inf:
        raise ValueError(
            f"{op}: softcap must be above 0 (at least {SMALLEST_SOFTCAP:.2g}) and finite, or None for no cap, "
            f"got {softcap}"
        )


def _check_range(targets: Tensor, num_classes: int, ignore_index: int | None) -> None:
    wrong = (targets < 0) | (targets >= num_classes)
    if ignore_index is not None:
        wrong &= targets != ignore_index
    if wrong.any():
        index = wrong.nonzero()[0].tolist()
        otherwise = ", since ignore_index is None" if ignore_index is None else f", or ignore_index = {ignore_index}"
        raise ValueError(
            f"linear_cross_entropy: targets{index} is {targets[tuple(index)].item()}, expected 0 <= target < "
            f"V = {num_classes}{otherwise}"
        )
