"""PyTorch's scaled_dot_product_attention, by the name of the kernels that it runs."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.peers import torch_eager

KERNELS = {
    "cuDNN": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}
"""Those that never hold all scores."""


def by_kernel(name: str) -> Callable[..., Tensor]:
    """Return `torch_eager.attention` on one kind of kernels; it raises where they cannot run the call."""

    def attention(*tensors: Tensor, **options) -> Tensor:
        with sdpa_kernel([KERNELS[name]]):
            return torch_eager.attention(*tensors, **options)

    return attention


def chosen(q: Tensor, k: Tensor, v: Tensor, *, dropout_p: float, causal: bool) -> str:
    """Return the name of the kernels that PyTorch takes for (B, T, H, D) tensors when nobody asks for any."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    number = torch._fused_sdp_choice(q, k, v, None, dropout_p, causal)
    names = {int(backend.value): name for name, backend in KERNELS.items()} | {int(SDPBackend.MATH.value): "math"}
    return names.get(number, f"number {number}")


def on_equal_lengths(attention: Callable[..., Tensor], sequences: int, **options) -> Callable[..., Tensor]:
    """Return the function on packed (N, H, D) tensors of sequences of one length."""

    def packed(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        dense = (x.unflatten(0, (sequences, -1)) for x in (q, k, v))
        return attention(*dense, **options).flatten(0, 1)

    return packed


def varlen(q: Tensor, k: Tensor, v: Tensor, *, cu_seqlens: Tensor, max_seqlen: int) -> Tensor:
    """Return `torch.nn.attention.varlen.varlen_attn`, which has no dropout."""
    from torch.nn.attention.varlen import varlen_attn

    return varlen_attn(q, k, v, cu_seqlens, cu_seqlens, max_seqlen, max_seqlen)


def kernels() -> dict[str, Callable[..., Tensor]]:
    """Return `by_kernel` for each of `KERNELS`, by the names of contenders."""
    return {f"SDPA {name}": partial(by_kernel(name)) for name in KERNELS}
