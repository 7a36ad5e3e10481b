"""What `attention` refuses, in words that name the argument and the remedy."""

import itertools
import numbers

import torch
from torch import Tensor

from fastssl.ops.surroundings import can_be_read

UNLIMITED = 2**31 - 1
"""Number of keys that no window reaches."""


def check_tensors(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, alibi_slopes: Tensor | None) -> None:
    """Raise ValueError unless shapes and dtypes fit together."""
    if q.dim() not in (3, 4) or k.dim() != q.dim() or k.shape != v.shape:
        raise ValueError(
            "attention: expected q (N, H, D) with k and v (N_k, H_k, D), or q (B, T, H, D) with k and v "
            f"(B, S, H_k, D); got q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}"
        )
    if q.shape[-1] != k.shape[-1] or q.shape[-1] == 0:
        raise ValueError(
            f"attention: q has head width {q.shape[-1]}, k and v have {k.shape[-1]}; they must be equal, > 0"
        )
    if k.shape[-2] == 0 or q.shape[-2] % k.shape[-2] != 0:
        raise ValueError(
            f"attention: the key/value heads must divide the query heads; got {k.shape[-2]} and {q.shape[-2]}"
        )
    if q.dim() == 4 and q.shape[0] != k.shape[0]:
        raise ValueError(f"attention: q has {q.shape[0]} sequences, k and v have {k.shape[0]}")
    if not q.is_floating_point() or not q.dtype == k.dtype == v.dtype:
        raise ValueError(f"attention: q, k and v must share one floating dtype; got {q.dtype}, {k.dtype}, {v.dtype}")
    check_devices(q, k=k, v=v, bias=bias, alibi_slopes=alibi_slopes)
    _check_additions(q, bias, alibi_slopes)


def check_devices(q: Tensor, **others: Tensor | None) -> None:
    """Raise ValueError unless all tensors are where q is."""
    for name, tensor in others.items():
        if tensor is not None and not isinstance(tensor, Tensor):
            raise ValueError(f"attention: {name} must be a tensor, got {type(tensor).__name__}")
        if tensor is not None and tensor.device != q.device:
            raise ValueError(f"attention: {name} must be on {q.device} like q, got {tensor.device}")


def _check_additions(q: Tensor, bias: Tensor | None, alibi_slopes: Tensor | None) -> None:
    heads = q.shape[-2]
    if bias is not None:
        if bias.dim() not in (3, 4) or bias.shape[-3] != heads:
            raise ValueError(
                f"attention: bias must be (H, T, S) or (B, H, T, S) with H = {heads}, got {tuple(bias.shape)}; "
                "expand a bias that all heads share"
            )
        if bias.dtype not in (q.dtype, torch.float32):
            raise ValueError(f"attention: bias must be {q.dtype} like q, or torch.float32; got {bias.dtype}")
    if alibi_slopes is not None:
        if alibi_slopes.shape != (heads,) or not alibi_slopes.is_floating_point():
            raise ValueError(
                f"attention: alibi_slopes must be a floating tensor of shape ({heads},), "
                f"got {alibi_slopes.dtype} {tuple(alibi_slopes.shape)}"
            )
        if alibi_slopes.requires_grad:
            raise ValueError("attention: alibi_slopes gets no gradient; detach it, or learn a bias instead")


def check_lengths(q, k, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, bias) -> None:
    """Raise ValueError unless the offsets describe q, k and v and the bias covers the longest sequences.

    Offsets on another device, under torch.compile, or without values are not read.
    """
    if q.dim() == 4:
        if cu_seqlens_q is not None or cu_seqlens_k is not None:
            raise ValueError("attention: cu_seqlens belong to packed (N, H, D) input; q is dense (B, T, H, D)")
        num_sequences, longest_q, longest_k = q.shape[0], q.shape[1], k.shape[1]
    else:
        if cu_seqlens_q is None:
            raise ValueError("attention: packed (N, H, D) input needs cu_seqlens_q, the (B + 1) int32 row offsets")
        num_sequences = cu_seqlens_q.shape[0] - 1
        longest_q = _longest("q", cu_seqlens_q, q.shape[0], max_seqlen_q)
        if cu_seqlens_k is cu_seqlens_q and q.shape[0] == k.shape[0]:
            longest_k = longest_q
        else:
            longest_k = _longest("k", cu_seqlens_k, k.shape[0], max_seqlen_k)
        if cu_seqlens_k.shape != cu_seqlens_q.shape:
            raise ValueError(
                f"attention: cu_seqlens_q describes {num_sequences} sequences, "
                f"cu_seqlens_k {cu_seqlens_k.shape[0] - 1}; they must agree"
            )
    if bias is None:
        return
    if bias.dim() == 4 and bias.shape[0] != num_sequences:
        raise ValueError(f"attention: bias has {bias.shape[0]} sequences, the input has {num_sequences}")
    if bias.shape[-2] < longest_q or bias.shape[-1] < longest_k:
        raise ValueError(
            f"attention: bias covers {bias.shape[-2]} queries and {bias.shape[-1]} keys, "
            f"the longest sequences have {longest_q} and {longest_k}"
        )


def _longest(side: str, cu_seqlens: Tensor, num_rows: int, bound: int | None) -> int:
    """Return the longest length that the offsets hold, 0 where they cannot be read here (capture, other devices)."""
    if cu_seqlens.dtype != torch.int32 or cu_seqlens.dim() != 1 or cu_seqlens.shape[0] == 0:
        raise ValueError(
            f"attention: cu_seqlens_{side} must be a 1-D int32 tensor of B + 1 offsets, "
            f"got {cu_seqlens.dtype} {tuple(cu_seqlens.shape)}"
        )
    if not can_be_read(cu_seqlens):
        return 0
    offsets = cu_seqlens.tolist()
    lengths = [end - begin for begin, end in itertools.pairwise(offsets)]
    longest = max(lengths, default=0)
    if offsets[0] != 0 or offsets[-1] != num_rows or min(lengths, default=0) < 0:
        raise ValueError(
            f"attention: cu_seqlens_{side} must rise from 0 to the {num_rows} rows of {side}, got {_shorten(offsets)}"
        )
    if bound is not None and longest > bound:
        raise ValueError(f"attention: max_seqlen_{side}={bound} is below the longest sequence, {longest}")
    return longest


def _shorten(offsets: list[int]) -> str:
    return str(offsets) if len(offsets) <= 8 else f"[{', '.join(map(str, offsets[:4]))}, ..., {offsets[-1]}]"


def resolve_window(causal: bool, window: tuple[int | None, int | None] | None) -> tuple[int, int]:
    """Return how many keys to the left and right of its own position a query sees."""
    sides = (None, None) if window is None else window
    if not isinstance(sides, tuple | list) or len(sides) != 2 or not all(map(_is_side, sides)):
        raise ValueError(
            f"attention: window must be (left, right), each a whole number of keys, None or -1; got {window}"
        )
    left, right = (UNLIMITED if side is None or side == -1 else min(side, UNLIMITED) for side in sides)
    return left, 0 if causal else right


def _is_side(side: int | None) -> bool:
    return side is None or (isinstance(side, numbers.Integral) and side >= -1)
