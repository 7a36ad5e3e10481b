"""`adamw_` by PyTorch's own fused update, which wants dense gradients and scales them in a pass of its own.

It walks over the memory of each parameter, its gradient and its averages as if all lay in one order, whatever their
strides are.
"""

import torch
from torch.autograd.graph import increment_version

from fastssl.ops.backend import Supports

SUPPORTS = Supports(
    refuses={
        "a parameter or an average is not contiguous": lambda packed, **_: not packed,
        "the tensors differ in device or dtype": lambda one_kind, **_: not one_kind,
    }
)


def update(
    parameters, gradients, exp_avgs, exp_avg_sqs, touched, *, step, lr, beta1, beta2, eps, weight_decay, gradient_factor
) -> None:
    """Take the step of `fastssl.ops.adamw`."""
    for gradient, rows in zip(gradients, touched, strict=True):
        if gradient.is_sparse and rows is not None:
            rows[gradient.indices()[0]] = True
    dense = [(gradient.to_dense() if gradient.is_sparse else gradient).contiguous() for gradient in gradients]
    if gradient_factor != 1.0:
        dense = torch._foreach_mul(dense, gradient_factor)
    # One tensor for all, filled where it lies: a copy from the host for each parameter would wait as often.
    steps = [torch.full((), float(step), device=parameters[0].device)] * len(parameters)
    torch._fused_adamw_(
        list(parameters), dense, list(exp_avgs), list(exp_avg_sqs), [], steps, lr=lr, beta1=beta1, beta2=beta2,
        weight_decay=weight_decay, eps=eps, amsgrad=False, maximize=False,
    )  # fmt: skip
    increment_version((*parameters, *exp_avgs, *exp_avg_sqs))
