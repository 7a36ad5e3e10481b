"""`attention` by the compiled kernels: on the CPU all of it, on CUDA all but a bias; memory linear in length."""

import torch
from torch import Tensor

from fastssl import extension
from fastssl.ops.attention.projection import of_one_projection
from fastssl.ops.backend import Supports
from fastssl.ops.philox import dropout_threshold

_CUDA_WIDTH = 128
SUPPORTS = Supports(
    devices=("cpu", "cuda"),
    dtypes=(torch.float32, torch.bfloat16, torch.float16),
    needs_cpu_ops=True,
    needs_cuda_ops=True,
    refuses={
        "its CUDA kernels multiply bfloat16 and float16, the tensors are float32": lambda device, dtype, **_: (
            device == "cuda" and dtype == torch.float32
        ),
        f"its CUDA kernels take heads of a width of at most {_CUDA_WIDTH}": lambda device, width, **_: (
            device == "cuda" and width > _CUDA_WIDTH
        ),
        "its CUDA kernels take no bias": lambda device, biased, **_: device == "cuda" and biased,
    },
    unverified={"its backward": lambda device, needs_grad, **_: device == "cuda" and needs_grad},
)


def forward(
    q, k, v, bias, cu_seqlens_q, cu_seqlens_k, alibi_slopes, seed, window_left, window_right, dropout_p, scale,
    max_seqlen_q, max_seqlen_k,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return the output, shaped like q, and lse, (H, N) for packed and (B, H, T) for dense input; no graph.

    Lengths are read on the host, so that their bounds are not needed.
    """
    threshold = dropout_threshold(dropout_p)
    return torch.ops.fastssl.attention_forward(
        q, k, v, cu_seqlens_q, cu_seqlens_k, bias, alibi_slopes, window_left, window_right, threshold, seed, scale
    )


def forward_saving(*arguments) -> tuple[Tensor, Tensor, None]:
    """Return the output, lse and nothing else for the backward, which draws dropout's decisions again."""
    return *forward(*arguments), None


def backward(
    grad_out, grad_lse, q, k, v, out, lse, _, bias, cu_seqlens_q, cu_seqlens_k, alibi_slopes, seed, window_left,
    window_right, dropout_p, scale, max_seqlen_q, max_seqlen_k, bias_needs_grad,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:  # fmt: skip
    """Return the gradients of q, k, v and bias (float32, or None where it is not wanted).

    Those of q, k and v are neighbouring slices of one (..., H + 2 H_k, D) buffer where the three themselves are, so
    that a fused projection takes them without a copy; else each is packed, so that it becomes a `.grad` without one.
    """
    together = of_one_projection(q, k, v)
    grad_q, grad_k, grad_v, grad_bias = torch.ops.fastssl.attention_backward(
        grad_out, grad_lse, q, k, v, out, lse, cu_seqlens_q, cu_seqlens_k, bias, alibi_slopes, window_left,
        window_right, dropout_threshold(dropout_p), seed, scale, bias_needs_grad, together,
    )  # fmt: skip
    if together:
        grad_q, grad_k, grad_v = grad_q.split_with_sizes((q.shape[-2], k.shape[-2], k.shape[-2]), dim=-2)
    return grad_q, grad_k, grad_v, grad_bias if bias_needs_grad else None


def forward_fake(q: Tensor) -> tuple[Tensor, Tensor]:
    """Return an output and lse as the compiled operators allocate them."""
    lse_shape = (q.shape[1], q.shape[0]) if q.dim() == 3 else (q.shape[0], q.shape[2], q.shape[1])
    return q.new_empty(q.shape), q.new_empty(lse_shape, dtype=torch.float32)


def gradient_buffers_fake(q: Tensor, k: Tensor, together: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Return gradients of q, k and v as the compiled operators allocate them."""
    if not together:
        return q.new_empty(q.shape), k.new_empty(k.shape), k.new_empty(k.shape)
    *rows, heads, width = q.shape
    return q.new_empty((*rows, heads + 2 * k.shape[-2], width)), k.new_empty(0), k.new_empty(0)


@extension.fake_kernel("fastssl::attention_forward")
def _forward_fake(q, *_):
    return forward_fake(q)


@extension.fake_kernel("fastssl::attention_backward")
def _backward_fake(grad_out, grad_lse, q, k, v, out, lse, cu_seqlens_q, cu_seqlens_k, bias, *rest):
    *_, bias_needs_grad, together = rest
    grad_bias = lse.new_empty(bias.shape if bias_needs_grad else 0)
    return *gradient_buffers_fake(q, k, together), grad_bias
