"""The public function `attention`: its meaning, its checks, its choice of backend, its place in autograd."""

import torch
from torch import Tensor

from fastssl.ops.attention import hopper, native, reference, stock, triton_backend
from fastssl.ops.attention.checks import check_devices, check_lengths, check_tensors, resolve_window
from fastssl.ops.backend import remembered_choice
from fastssl.ops.philox import dropout_threshold, resolve_seed
from fastssl.ops.recording import differentiable_once, is_recorded
from fastssl.ops.surroundings import autocast_dtype, without_autocast

BACKENDS = {
    "native": native,
    "triton": triton_backend,
    "hopper": hopper,
    "stock": stock,
    "reference": reference,
}
FUSED = [name for name, module in BACKENDS.items() if hasattr(module, "backward")]
"""Backends with a backward of their own; the others are made of operators that PyTorch differentiates."""


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    cu_seqlens_q: Tensor | None = None,
    cu_seqlens_k: Tensor | None = None,
    max_seqlen_q: int | None = None,
    max_seqlen_k: int | None = None,
    causal: bool = False,
    window: tuple[int | None, int | None] | None = None,
    bias: Tensor | None = None,
    alibi_slopes: Tensor | None = None,
    dropout_p: float = 0.0,
    scale: float | None = None,
    seed: int | Tensor | None = None,
    return_lse: bool = False,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Scaled dot-product attention, ``dropout(softmax(scale q k^T + bias + alibi)) v`` within each sequence.

    Query i of a sequence with T queries and S keys stands at key position i + S - T (bottom-right alignment), from
    which `causal`, `window` and `alibi_slopes` measure. A query that sees no key gives 0 and lse -inf.

    Args:
        q: queries, packed (N, H, D) or dense (B, T, H, D); fp32, bf16 or fp16 (fp64: not native).
        k, v: keys and values, (N_k, H_k, D) or (B, S, H_k, D), dtype of q; H_k divides H, and query head h uses
            key head h // (H / H_k). Under autocast q, k and v are cast to its dtype.
        cu_seqlens_q: (B + 1) int32, packed input only: sequence b owns rows cu_seqlens_q[b] to cu_seqlens_q[b + 1].
        cu_seqlens_k: the same for k and v; default cu_seqlens_q.
        max_seqlen_q, max_seqlen_k: bounds of the lengths in tokens, for devices that cannot read the lengths; optional.
        causal: hide keys after the query's own position; the same as a window to the right of 0.
        window: (left, right), how many keys before and after its own position a query sees; None or -1: all.
        bias: (H, T', S') or (B, H, T', S'), in q's dtype or fp32, added to the scaled scores of query i and key j at
            [..., i, j]; T' and S' at least the longest lengths. Differentiable; its gradient is zero outside.
        alibi_slopes: (H) fp32; adds -slope |distance|. Not differentiable.
        dropout_p: probability of dropping a weight, quantised to 1/65536; kept ones are scaled up.
        scale: factor of the scores; default 1 / sqrt(D).
        seed: key of the dropout mask, an int or a 0-d int64 tensor; None draws one from torch's generator.
        return_lse: also return lse, the natural logarithm of the softmax's denominator. Differentiable.
        backend: "auto", "native", "triton", "hopper", "stock" or "reference".

    Returns:
        The output, shape and dtype of q; with `return_lse` also lse in fp32, (H, N) packed or (B, H, T) dense.

    Raises:
        ValueError: for shapes, dtypes, lengths or options that do not fit, or a backend that cannot run the call.

    Accumulation is in fp32 (reference: in q's dtype). Memory beyond the output and lse is linear in the lengths
    (native), also in the backward.
    The backends native, triton and hopper are differentiable once, the others as often as PyTorch's own operators.

    Source: Vaswani et al. 2017 (arXiv 1706.03762) §3.2.1; Dao 2023 (arXiv 2307.08691) for lse and the backward; Press,
    Smith and Lewis 2021 (arXiv 2108.12409) §3 for ALiBi; Salmon et al. 2011 for the dropout's generator.
    """
    product_dtype = autocast_dtype(q.device)
    if product_dtype is not None:
        q, k, v = q.to(product_dtype), k.to(product_dtype), v.to(product_dtype)
    if cu_seqlens_k is None:
        cu_seqlens_k = cu_seqlens_q
        max_seqlen_k = max_seqlen_q if max_seqlen_k is None else max_seqlen_k
    check_tensors(q, k, v, bias, alibi_slopes)
    check_devices(q, cu_seqlens_q=cu_seqlens_q, cu_seqlens_k=cu_seqlens_k)
    check_lengths(q, k, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, bias)
    window_left, window_right = resolve_window(causal, window)
    dropped = dropout_threshold(dropout_p) > 0
    needs_grad = is_recorded(q, k, v, bias)
    name = backend_for(
        backend,
        q.device,
        q.dtype,
        width=q.shape[-1],
        packed=q.dim() == 3,
        biased=bias is not None,
        dropped=dropped,
        return_lse=return_lse,
        needs_grad=needs_grad,
    )
    tensors = (
        bias,
        cu_seqlens_q,
        None if cu_seqlens_k is cu_seqlens_q else cu_seqlens_k,
        None if alibi_slopes is None else alibi_slopes.float(),
        resolve_seed(seed, q.device) if dropped else None,
    )
    scale = q.shape[-1] ** -0.5 if scale is None else float(scale)
    numbers = (window_left, window_right, dropout_p if dropped else 0.0, scale, max_seqlen_q, max_seqlen_k)
    if name in FUSED and needs_grad:
        if torch.compiler.is_compiling():  # its autograd.Function takes no tensor twice; a view is another tensor
            k, v = k.view_as(k), v.view_as(v)
        out, lse = _FusedAttention.apply(name, q, k, v, *tensors, *numbers)
    else:
        with without_autocast(q.device):
            out, lse = BACKENDS[name].forward(q, k, v, *tensors, *numbers)
    return (out, lse) if return_lse else out


class _FusedAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, name, q, k, v, bias, cu_seqlens_q, cu_seqlens_k, alibi_slopes, seed, *numbers):
        tensors = (bias, cu_seqlens_q, cu_seqlens_k, alibi_slopes, seed)
        out, lse, kept_bits = BACKENDS[name].forward_saving(q, k, v, *tensors, *numbers)
        ctx.save_for_backward(q, k, v, out, lse, kept_bits, *tensors)
        ctx.name, ctx.numbers = name, numbers
        ctx.set_materialize_grads(False)
        return out, lse

    @staticmethod
    @differentiable_once
    def backward(ctx, saved, grad_out, grad_lse):
        q, k, v, out, lse, kept_bits, bias, *others = saved()
        grad_out = torch.zeros_like(out) if grad_out is None else grad_out
        *grads, grad_bias = BACKENDS[ctx.name].backward(
            grad_out, grad_lse, q, k, v, out, lse, kept_bits, bias, *others, *ctx.numbers, ctx.needs_input_grad[4]
        )
        grad_bias = None if grad_bias is None else grad_bias.to(bias.dtype)
        return None, *grads, grad_bias, *(None,) * (len(others) + len(ctx.numbers))


def backend_for(
    requested: str,
    device: torch.device,
    dtype: torch.dtype,
    *,
    width: int,
    packed: bool = True,
    biased: bool = False,
    dropped: bool = False,
    return_lse: bool = False,
    needs_grad: bool = False,
) -> str:
    """Return the name of the backend that serves a call, as `fastssl.ops.backend.choose` does.

    Args:
        requested: "auto", or a name.
        device, dtype: of q.
        width: D.
        packed: whether q is (N, H, D).
        biased, dropped, return_lse: whether there is a bias, dropout, and a wish for lse.
        needs_grad: whether autograd records the call.
    """
    facts = {
        "device": device.type,
        "dtype": dtype,
        "width": width,
        "biased": biased,
        "needs_grad": needs_grad,
        "packed": packed,
        "compiling": torch.compiler.is_compiling(),
        "dropped": dropped,
        "return_lse": return_lse,
    }
    return remembered_choice("attention", requested, BACKENDS, device, dtype, facts)
