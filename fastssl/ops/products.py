"""Matrix products whose results are wider than their operands: gradients of float32 weights from 16-bit rows."""

import functools

import torch
from torch import Tensor


def product(left: Tensor, right: Tensor, dtype: torch.dtype) -> Tensor:
    """Return left @ right, (M, N) from (M, K) and (K, N), as `dtype`: rounded once where PyTorch can, else twice."""
    if dtype == left.dtype:
        return torch.mm(left, right)
    if dtype == torch.float32 and _sums_wider("mm.dtype", left.device.type):
        return torch.mm(left, right, out_dtype=dtype)
    return torch.mm(left, right).to(dtype)


def add_product(total: Tensor, left: Tensor, right: Tensor, *, first: bool = False) -> None:
    """Add left @ right to `total`, which may be wider than the operands; the first product is written instead."""
    if total.dtype == left.dtype:
        _ = torch.mm(left, right, out=total) if first else total.addmm_(left, right)
    elif _sums_wider("addmm.dtype_out", total.device.type):
        torch.addmm(total, left, right, out_dtype=total.dtype, beta=0 if first else 1, out=total)
    else:
        narrow = torch.mm(left, right)
        _ = total.copy_(narrow) if first else total.add_(narrow)


@functools.cache
def _sums_wider(op: str, device_type: str) -> bool:
    """Tell whether PyTorch has a product there whose sum is wider than its operands, so that nothing is rounded."""
    there = torch._C._dispatch_has_kernel_for_dispatch_key(f"aten::{op}", device_type.upper())
    return there and torch.version.hip is None  # which has the same key
