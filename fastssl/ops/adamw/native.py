"""`adamw_` by the compiled CPU kernels: every number is read once and written once, on every instruction set."""

import torch
from torch.autograd.graph import increment_version

from fastssl.ops.backend import Supports

SUPPORTS = Supports(
    devices=("cpu",),
    dtypes=(torch.float32,),
    needs_cpu_ops=True,
    refuses={
        "a parameter or an average is not contiguous": lambda packed, **_: not packed,
        "the tensors differ in device or dtype": lambda one_kind, **_: not one_kind,
    },
)


def update(parameters, gradients, exp_avgs, exp_avg_sqs, touched, **numbers) -> None:
    """Take the step of `fastssl.ops.adamw`."""
    dense = [index for index, gradient in enumerate(gradients) if not gradient.is_sparse]
    if dense:
        torch.ops.fastssl.adamw_(
            [parameters[index] for index in dense],
            [gradients[index].contiguous() for index in dense],
            [exp_avgs[index] for index in dense],
            [exp_avg_sqs[index] for index in dense],
            **numbers,
        )
    for index in set(range(len(gradients))) - set(dense):
        parameter, gradient = parameters[index], gradients[index]
        rows = touched[index]
        if rows is None:
            rows = torch.ones(parameter.shape[0], dtype=torch.bool)
        torch.ops.fastssl.adamw_rows_(
            parameter, gradient.indices()[0].contiguous(), gradient.values().contiguous(), exp_avgs[index],
            exp_avg_sqs[index], rows, **numbers,
        )  # fmt: skip
    increment_version((*parameters, *exp_avgs, *exp_avg_sqs))
