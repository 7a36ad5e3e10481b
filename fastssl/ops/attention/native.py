"""`attention` by the compiled CPU kernels: memory linear in length, the whole semantics, on every instruction set."""

import torch
from torch import Tensor

from fastssl import extension
from fastssl.ops.backend import Supports
from fastssl.ops.philox import dropout_threshold

SUPPORTS = Supports(devices=("cpu",), dtypes=(torch.float32, torch.bfloat16, torch.float16), needs_cpu_ops=True)


def forward(
    q, k, v, bias, cu_seqlens_q, cu_seqlens_k, alibi_slopes, seed, window_left, window_right, dropout_p, scale
) -> tuple[Tensor, Tensor]:
    """Return the output, shaped like q, and lse, (H, N) for packed and (B, H, T) for dense input; no graph."""
    threshold = dropout_threshold(dropout_p)
    return torch.ops.fastssl.attention_forward(
        q, k, v, cu_seqlens_q, cu_seqlens_k, bias, alibi_slopes, window_left, window_right, threshold, seed, scale
    )


def backward(
    grad_out, grad_lse, q, k, v, out, lse, bias, cu_seqlens_q, cu_seqlens_k, alibi_slopes, seed, window_left,
    window_right, dropout_p, scale, bias_needs_grad,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:  # fmt: skip
    """Return the gradients of q, k, v and bias (float32, or None where it is not wanted).

    Those of q, k and v are neighbouring slices of one (..., H + 2 H_k, D) buffer where the three have the same rows, so
    that a fused projection takes them without a copy.
    """
    grad_q, grad_kv, grad_bias = torch.ops.fastssl.attention_backward(
        grad_out, grad_lse, q, k, v, out, lse, cu_seqlens_q, cu_seqlens_k, bias, alibi_slopes, window_left,
        window_right, dropout_threshold(dropout_p), seed, scale, bias_needs_grad,
    )  # fmt: skip
    heads, key_heads = q.shape[-2], k.shape[-2]
    if q.shape[:-2] == k.shape[:-2]:
        grad_q, grad_k, grad_v = grad_q.split_with_sizes((heads, key_heads, key_heads), dim=-2)
    else:
        grad_k, grad_v = grad_kv.split(key_heads, dim=-2)
    return grad_q, grad_k, grad_v, grad_bias if bias_needs_grad else None


@extension.fake_kernel("fastssl::attention_forward")
def _forward_fake(q, *_):
    lse_shape = (q.shape[1], q.shape[0]) if q.dim() == 3 else (q.shape[0], q.shape[2], q.shape[1])
    return q.new_empty(q.shape), q.new_empty(lse_shape, dtype=torch.float32)


@extension.fake_kernel("fastssl::attention_backward")
def _backward_fake(grad_out, grad_lse, q, k, v, out, lse, cu_seqlens_q, cu_seqlens_k, bias, *rest):
    *_, bias_needs_grad = rest
    *rows, heads, width = q.shape
    *key_rows, key_heads, _ = k.shape
    together = rows == key_rows
    grad_q = q.new_empty((*rows, heads + 2 * key_heads if together else heads, width))
    grad_kv = k.new_empty(0 if together else (*key_rows, 2 * key_heads, width))
    return grad_q, grad_kv, lse.new_empty(bias.shape if bias_needs_grad else 0)
