"""Queries, keys and values as slices of one fused projection, with a gradient that is not copied together again."""

import itertools
import operator
from collections.abc import Sequence

import torch
from torch import Tensor


def split_projection(fused: Tensor, num_heads: int, num_key_heads: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Return q, k and v, views of one tensor that holds their heads side by side.

    Means the same as ``fused.split((H, H_k, H_k), dim=-2)``, whose backward would copy the three gradients into one.
    The compiled backward of `attention` has already written them into one buffer, which is passed on as it is.

    Args:
        fused: (..., H + 2 H_k, D), any dtype.
        num_heads: H, heads of the queries.
        num_key_heads: H_k, heads of keys and values; default H.

    Returns:
        q (..., H, D), k and v (..., H_k, D); not to be changed in place.

    Raises:
        ValueError: if the heads do not add up.
    """
    sizes = (num_heads, *(2 * (num_heads if num_key_heads is None else num_key_heads,)))
    if fused.dim() < 3 or fused.shape[-2] != sum(sizes):
        raise ValueError(
            f"split_projection: expected (..., {sum(sizes)}, D) for {sizes[0]} + 2 x {sizes[1]} heads, "
            f"got {tuple(fused.shape)}"
        )
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return fused.split(sizes, dim=-2)
    return _Split.apply(fused, sizes)


def of_one_projection(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Return whether q, k and v are neighbouring slices of one packed (..., H + 2 H_k, D) tensor."""
    if torch.compiler.is_compiling() or q.shape[:-2] != k.shape[:-2]:
        return False
    heads, key_heads, width = q.shape[-2], k.shape[-2], q.shape[-1]
    row = (heads + 2 * key_heads) * width
    size = width * q.element_size()
    return (
        q.stride() == k.stride() == v.stride()
        and q.stride()[-3:] == (row, width, 1)
        and (q.dim() == 3 or q.stride(0) == q.shape[1] * row)
        and k.data_ptr() == q.data_ptr() + heads * size
        and v.data_ptr() == k.data_ptr() + key_heads * size
    )


class _Split(torch.autograd.Function):
    @staticmethod
    def forward(ctx, fused, sizes):
        return fused.split(sizes, dim=-2)

    @staticmethod
    def backward(ctx, *gradients):
        return whole_gradient(gradients), None


def whole_gradient(parts: Sequence[Tensor]) -> Tensor:
    """Return the gradients of q, k and v side by side, (..., H + 2 H_k, D): the buffer that they divide, or a copy."""
    whole = _common_buffer(parts)
    return torch.cat(tuple(parts), dim=-2) if whole is None else whole


def _common_buffer(parts: Sequence[Tensor]) -> Tensor | None:
    """Return the contiguous tensor that the parts divide along their last dimension but one, or None."""
    first = parts[0]
    shape = (*first.shape[:-2], sum(part.shape[-2] for part in parts), first.shape[-1])
    strides = tuple(itertools.accumulate((1, *(max(size, 1) for size in shape[:0:-1])), operator.mul))[::-1]
    offset = first.storage_offset()
    for part in parts:
        same_storage = part.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
        if not same_storage or part.stride() != strides or part.storage_offset() != offset or part.dtype != first.dtype:
            return None
        offset += part.shape[-2] * part.shape[-1]
    return first.as_strided(shape, strides)
