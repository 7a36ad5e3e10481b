"""The public AdamW update: checks and backend choice. It works in place and has no gradient of its own."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fastssl import extension
from fastssl.ops.adamw import native, reference, stock
from fastssl.ops.backend import choose

BACKENDS = {"native": native, "stock": stock, "reference": reference}
BLOCK = 16384
"""Numbers that `squared_norm` sums in float32."""


@torch.no_grad()
def adamw_(
    parameters: Sequence[Tensor],
    gradients: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    *,
    step: int,
    lr: float,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    gradient_factor: float = 1.0,
    touched: Sequence[Tensor | None] | None = None,
    backend: str = "auto",
) -> None:
    """Take one step of Adam with decoupled weight decay, in place.

    g = gradient_factor * gradient;  m = beta1 m + (1 - beta1) g;  v = beta2 v + (1 - beta2) g^2
    p = (1 - lr weight_decay) p - lr / (1 - beta1^step) * m / (sqrt(v / (1 - beta2^step)) + eps)

    Args:
        parameters: p, of any shapes, floating.
        gradients: of the shapes and dtypes of `parameters`. That of a matrix may be a coalesced sparse tensor of rows
            (as `nn.Embedding(sparse=True)` makes): its other rows count as zeros, and all rows are updated.
        exp_avgs, exp_avg_sqs: m and v, of the shapes and dtypes of `parameters`.
        step: number of this step, from 1.
        lr: learning rate.
        beta1, beta2: decay of the averages, in [0, 1).
        eps: added to the root, above or equal to 0.
        weight_decay: at least 0.
        gradient_factor: of the gradients, which are left as they are: a clipping costs no pass of its own.
        touched: one entry a parameter, None or (rows) bool, for sparse gradients: rows that ever had a gradient, added
            to here. The others have zero averages, and are not read unless they decay. None: all rows are read.
        backend: "auto", "native", "stock" or "reference".

    Raises:
        ValueError: for lists, shapes or numbers that do not fit, or a backend that cannot run the call.

    Numerics: arithmetic in the dtype of the parameters. The bits do not depend on the number of threads.

    Source: Loshchilov and Hutter, "Decoupled Weight Decay Regularization" (2019), arXiv 1711.05101, algorithm 2.
    """
    touched = [None] * len(parameters) if touched is None else touched
    _check(parameters, gradients, exp_avgs, exp_avg_sqs, touched)
    numbers = {"lr": lr, "eps": eps, "weight_decay": weight_decay}
    wrong = {name: number for name, number in numbers.items() if not number >= 0}
    wrong |= {name: beta for name, beta in (("beta1", beta1), ("beta2", beta2)) if not 0 <= beta < 1}
    if wrong or step < 1:
        raise ValueError(
            f"adamw_: expected step >= 1, lr, eps and weight_decay >= 0, betas in [0, 1); got step {step}, {wrong}"
        )
    if not parameters:
        return
    tensors = [tensor for group in (parameters, exp_avgs, exp_avg_sqs) for tensor in group]
    facts = {
        "packed": all(tensor.is_contiguous() for tensor in tensors),
        "one_kind": len({(tensor.device, tensor.dtype) for tensor in tensors}) == 1,
    }
    name = choose("adamw_", backend, BACKENDS, parameters[0].device, parameters[0].dtype, facts)
    BACKENDS[name].update(
        parameters, gradients, exp_avgs, exp_avg_sqs, touched, step=step, lr=lr, beta1=beta1, beta2=beta2, eps=eps,
        weight_decay=weight_decay, gradient_factor=gradient_factor,
    )  # fmt: skip


@torch.no_grad()
def squared_norm(tensors: Sequence[Tensor]) -> Tensor:
    """Return the sum of the squares of all numbers of float32 CPU tensors, 0-d float64; 0 for no tensors.

    Blocks of numbers are summed in float32, these sums in float64, always in the same order.
    """
    if not extension.cpu_ops_loaded():
        squares = [part.square().sum().double() for t in tensors for part in t.reshape(-1).split(BLOCK)]
        return torch.stack(squares).sum() if squares else torch.zeros((), dtype=torch.float64)
    packed = [tensor.contiguous() for tensor in tensors]
    return torch.ops.fastssl.sum_of_squares(packed) if packed else torch.zeros((), dtype=torch.float64)


def _check(parameters, gradients, exp_avgs, exp_avg_sqs, touched) -> None:
    lengths = [len(group) for group in (parameters, gradients, exp_avgs, exp_avg_sqs, touched)]
    if len(set(lengths)) > 1:
        raise ValueError(f"adamw_: all lists must have one entry a parameter, got {lengths}")
    for index, (parameter, gradient, *averages, rows) in enumerate(
        zip(parameters, gradients, exp_avgs, exp_avg_sqs, touched, strict=True)
    ):
        shape, dtype = parameter.shape, parameter.dtype
        for tensor in (gradient, *averages):
            if tensor.shape != shape or tensor.dtype != dtype:
                raise ValueError(
                    f"adamw_: gradient and averages of parameter {index} must be {dtype} of shape "
                    f"{tuple(shape)}, got {tensor.dtype} of shape {tuple(tensor.shape)}"
                )
        if gradient.device != parameter.device:
            raise ValueError(
                f"adamw_: the gradient of parameter {index} must be on {parameter.device}, got {gradient.device}"
            )
        if gradient.is_sparse and not (gradient.sparse_dim() == 1 and gradient.is_coalesced()):
            raise ValueError(
                f"adamw_: the sparse gradient of parameter {index} must be coalesced rows: call .coalesce() on it"
            )
        if gradient.is_sparse and rows is not None:
            _check_touched(index, parameter, rows)


def _check_touched(index: int, parameter: Tensor, rows: Tensor) -> None:
    if rows.dtype != torch.bool or rows.shape != parameter.shape[:1] or rows.device != parameter.device:
        raise ValueError(
            f"adamw_: touched of parameter {index} must be torch.bool of shape ({len(parameter)},) on "
            f"{parameter.device}, one a row, got {rows.dtype} of shape {tuple(rows.shape)} on {rows.device}"
        )
    if not rows.is_contiguous():
        raise ValueError(f"adamw_: touched of parameter {index} must be contiguous: call .contiguous() on it, once")
