"""`attention` by CUDA kernels made for compute capability 9.0: tensor copies, products of warpgroups; no bias."""

import torch
from torch import Tensor

from fastssl import extension
from fastssl.ops.attention import native
from fastssl.ops.attention.projection import of_one_projection
from fastssl.ops.backend import Supports
from fastssl.ops.philox import dropout_threshold

CAPABILITY = (9, 0)
WIDEST_HEAD = 128
KEYS_OF_A_TILE, BYTES_OF_A_TILE = 128, 16
"""Of dropout's decisions, a bit each, for a query and a head; csrc/attention/hopper_kernels.cuh has their order."""
TWO_PASSES_UP_TO = 512
"""Keys of a sequence up to which the backward is two kernels, which make each score twice and add nothing in memory.

Beyond, one kernel makes each score once, and blocks add to the gradient of the queries in turns; but heads of more than
64 columns with dropout take two passes always.
"""
SUPPORTS = Supports(
    devices=("cuda",),
    dtypes=(torch.bfloat16, torch.float16),
    needs_cuda_ops=True,
    unverified_on=("cuda",),
    refuses={
        "its kernels are made for compute capability 9.0 alone": lambda **_: not extension.has_capability(CAPABILITY),
        f"it takes heads of a multiple of 8 columns, at most {WIDEST_HEAD}": lambda width, **_: (
            width % 8 != 0 or width > WIDEST_HEAD
        ),
        "it takes no bias": lambda biased, **_: biased,
    },
)


def forward(q, k, v, *others) -> tuple[Tensor, Tensor]:
    """Return the output, shaped like q, and lse, (H, N) for packed and (B, H, T) for dense input; no graph.

    Arguments are those of the native backend. The bounds of the lengths decide how the work is divided; what is not
    known is taken to be long.
    """
    out, lse, _ = _forward(q, k, v, *others, kept_tiles=0)
    return out, lse


def forward_saving(q, k, v, *others) -> tuple[Tensor, Tensor, Tensor]:
    """Return also dropout's decisions for the backward, int32, a bit each.

    Where the bound of packed lengths is not known, or they would take more memory than q, they are empty, and the
    backward draws them again.
    """
    return _forward(q, k, v, *others, kept_tiles=_tiles_to_keep(q, k, longest_k=others[-1]))


def _forward(
    q, k, v, bias, cu_seqlens_q, cu_seqlens_k, alibi_slopes, seed, window_left, window_right, dropout_p, scale,
    max_seqlen_q, max_seqlen_k, *, kept_tiles: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    if _nothing_to_copy(q, k):
        numbers = (window_left, window_right, dropout_p, scale, max_seqlen_q, max_seqlen_k)
        nothing = q.new_empty(0, dtype=torch.int32)
        return *native.forward(q, k, v, None, cu_seqlens_q, cu_seqlens_k, alibi_slopes, seed, *numbers), nothing
    return torch.ops.fastssl.attention_hopper_forward(
        q, k, v, cu_seqlens_q, cu_seqlens_k, alibi_slopes, window_left, window_right, dropout_threshold(dropout_p),
        seed, scale, max_seqlen_q or 0, max_seqlen_k or 0, kept_tiles,
    )  # fmt: skip


def backward(
    grad_out, grad_lse, q, k, v, out, lse, kept, bias, cu_seqlens_q, cu_seqlens_k, alibi_slopes, seed, window_left,
    window_right, dropout_p, scale, max_seqlen_q, max_seqlen_k, bias_needs_grad,
) -> tuple[Tensor, Tensor, Tensor, None]:  # fmt: skip
    """Return the gradients of q, k and v, laid out as native does."""
    if _nothing_to_copy(q, k):
        tensors = (None, cu_seqlens_q, cu_seqlens_k, alibi_slopes, seed)
        numbers = (window_left, window_right, dropout_p, scale, max_seqlen_q, max_seqlen_k)
        return native.backward(grad_out, grad_lse, q, k, v, out, lse, None, *tensors, *numbers, False)
    together = of_one_projection(q, k, v)
    kept_tiles = _tiles_to_keep(q, k, longest_k=max_seqlen_k) if kept.numel() else 0
    grads = torch.ops.fastssl.attention_hopper_backward(
        grad_out, grad_lse, q, k, v, out, lse, kept, cu_seqlens_q, cu_seqlens_k, alibi_slopes, window_left,
        window_right, dropout_threshold(dropout_p), seed, scale, max_seqlen_q or 0, max_seqlen_k or 0, kept_tiles,
        together, _longest(k, max_seqlen_k) > TWO_PASSES_UP_TO,
    )  # fmt: skip
    if together:
        grads = grads[0].split_with_sizes((q.shape[-2], k.shape[-2], k.shape[-2]), dim=-2)
    return *grads, None


def _tiles_to_keep(q: Tensor, k: Tensor, longest_k: int | None) -> int:
    """Return the number of tiles of keys whose decisions the forward keeps: all of them, or 0."""
    if k.dim() == 3 and not longest_k:
        return 0
    tiles = -(-_longest(k, longest_k) // KEYS_OF_A_TILE)
    return tiles if tiles * BYTES_OF_A_TILE <= q.shape[-1] * q.element_size() else 0


def _longest(rows: Tensor, bound: int | None) -> int:
    """Return the bound of the length of a sequence, where none is known that of all together."""
    return rows.shape[1] if rows.dim() == 4 else bound or rows.shape[0]


def _nothing_to_copy(q: Tensor, k: Tensor) -> bool:
    return q.numel() == 0 or k.numel() == 0


@extension.fake_kernel("fastssl::attention_hopper_forward")
def _forward_fake(q, k, v, *others):
    threshold, kept_tiles = others[5], others[-1]
    rows = q.shape[-3] + 64
    heads = q.shape[1] if q.dim() == 3 else q.shape[0] * q.shape[2]
    return *native.forward_fake(q), q.new_empty(heads * kept_tiles * rows * 4 if threshold else 0, dtype=torch.int32)


@extension.fake_kernel("fastssl::attention_hopper_backward")
def _backward_fake(grad_out, grad_lse, q, k, v, *rest):
    return native.gradient_buffers_fake(q, k, together=rest[-2])
