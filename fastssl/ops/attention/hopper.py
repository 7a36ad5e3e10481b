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


def forward(
    q, k, v, bias, cu_seqlens_q, cu_seqlens_k, alibi_slopes, seed, window_left, window_right, dropout_p, scale,
    max_seqlen_q, max_seqlen_k,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return the output, shaped like q, and lse, (H, N) for packed and (B, H, T) for dense input; no graph.

    The bounds of the lengths decide how the work is divided; what is not known is taken to be long.
    """
    if _nothing_to_copy(q, k):
        numbers = (window_left, window_right, dropout_p, scale, max_seqlen_q, max_seqlen_k)
        return native.forward(q, k, v, None, cu_seqlens_q, cu_seqlens_k, alibi_slopes, seed, *numbers)
    return torch.ops.fastssl.attention_hopper_forward(
        q, k, v, cu_seqlens_q, cu_seqlens_k, alibi_slopes, window_left, window_right, dropout_threshold(dropout_p),
        seed, scale, max_seqlen_q or 0, max_seqlen_k or 0,
    )  # fmt: skip


def forward_saving(*arguments) -> tuple[Tensor, Tensor, None]:
    """Return the output, lse and nothing else for the backward, which draws dropout's decisions again."""
    return *forward(*arguments), None


def backward(
    grad_out, grad_lse, q, k, v, out, lse, _, bias, cu_seqlens_q, cu_seqlens_k, alibi_slopes, seed, window_left,
    window_right, dropout_p, scale, max_seqlen_q, max_seqlen_k, bias_needs_grad,
) -> tuple[Tensor, Tensor, Tensor, None]:  # fmt: skip
    """Return the gradients of q, k and v, laid out as native does."""
    if _nothing_to_copy(q, k):
        tensors = (None, cu_seqlens_q, cu_seqlens_k, alibi_slopes, seed)
        numbers = (window_left, window_right, dropout_p, scale, max_seqlen_q, max_seqlen_k)
        return native.backward(grad_out, grad_lse, q, k, v, out, lse, None, *tensors, *numbers, False)
    together = of_one_projection(q, k, v)
    grads = torch.ops.fastssl.attention_hopper_backward(
        grad_out, grad_lse, q, k, v, out, lse, cu_seqlens_q, cu_seqlens_k, alibi_slopes, window_left, window_right,
        dropout_threshold(dropout_p), seed, scale, max_seqlen_q or 0, max_seqlen_k or 0, together,
    )  # fmt: skip
    if together:
        grads = grads[0].split_with_sizes((q.shape[-2], k.shape[-2], k.shape[-2]), dim=-2)
    return *grads, None


def _nothing_to_copy(q: Tensor, k: Tensor) -> bool:
    return q.numel() == 0 or k.numel() == 0


@extension.fake_kernel("fastssl::attention_hopper_forward")
def _forward_fake(q, *_):
    return native.forward_fake(q)


@extension.fake_kernel("fastssl::attention_hopper_backward")
def _backward_fake(grad_out, grad_lse, q, k, v, out, lse, *rest):
    return native.gradient_buffers_fake(q, k, together=rest[-1])
