"""Kernel libraries for GPUs, where they are installed; each is imported when it is asked for."""

import importlib.util
from collections.abc import Callable

from torch import Tensor


def installed(package: str) -> bool:
    """Tell whether a package can be imported."""
    return importlib.util.find_spec(package) is not None


def flash_attention(*, cu_seqlens: Tensor, max_seqlen: int, dropout_p: float, causal: bool) -> Callable[..., Tensor]:
    """Return flash-attn's function on packed (N, H, D) tensors."""

    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        from flash_attn import flash_attn_varlen_func

        lengths = (cu_seqlens, cu_seqlens, max_seqlen, max_seqlen)
        return flash_attn_varlen_func(q, k, v, *lengths, dropout_p=dropout_p, causal=causal)

    return attention


def liger_layer_norm(x: Tensor, weight: Tensor, bias: Tensor, *, eps: float) -> Tensor:
    """Return Liger's layer norm."""
    from liger_kernel.transformers.functional import liger_layer_norm as function

    return function(x, weight, bias, eps)


def quack_layer_norm(x: Tensor, weight: Tensor, bias: Tensor, *, eps: float) -> Tensor:
    """Return QuACK's layer norm, which has a forward alone and takes float32 parameters."""
    from quack.rmsnorm import layernorm_fwd

    return layernorm_fwd(x, weight.float(), bias.float(), eps=eps)


def liger_linear_cross_entropy(
    hidden: Tensor, weight: Tensor, bias: Tensor | None = None, *, targets: Tensor
) -> Tensor:
    """Return Liger's fused linear cross-entropy."""
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy as function

    return function(hidden, weight, targets, bias)


def quack_linear_cross_entropy(hidden: Tensor, weight: Tensor, *, targets: Tensor) -> Tensor:
    """Return QuACK's chunked linear cross-entropy, which has no bias."""
    from quack.linear_cross_entropy import chunked_linear_cross_entropy as function

    return function(hidden, weight, targets, ignore_index=-100, reduction="mean")
