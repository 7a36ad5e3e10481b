"""`cached_attention` by the compiled CPU kernels: keys and values are read once, on every instruction set."""

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from fastssl import extension
from fastssl.ops.backend import Supports

SUPPORTS = Supports(
    devices=("cpu",),
    dtypes=(torch.float32,),
    needs_cpu_ops=True,
    refuses={
        "the caches are neither float32 nor bfloat16": lambda cache_dtype, **_: (
            cache_dtype not in (torch.float32, torch.bfloat16)
        ),
        "the numbers of a token are not neighbours in a cache": lambda cache_strides, **_: cache_strides != 1,
        "the rotary tables are not float32": lambda rotary, **_: (
            rotary is not None and any(table.dtype != torch.float32 for table in rotary)
        ),
    },
)


def is_usual(q: Tensor, window: int | None, rotary: tuple[Tensor, Tensor] | None) -> bool:
    """Return whether `forward` serves a call, or finds what is wrong with it; False where it takes more to tell."""
    if torch.is_grad_enabled() or q.dtype is not torch.float32 or not q.is_cpu or not extension.cpu_ops_loaded():
        return False
    return (window is None or window > 0) and (rotary is None or len(rotary) == 2)


def forward(q, k, v, k_cache, v_cache, lengths, *, window, scale, rotary) -> Tensor:
    """Return the output of `fastssl.ops.cached_attention`."""
    cos, sin = rotary or (None, None)
    out = torch.ops.fastssl.cached_attention(q, k, v, k_cache, v_cache, lengths, window or 0, scale, cos, sin)
    note_writes(k_cache, v_cache)
    return out


def note_writes(*caches: Tensor) -> None:
    """Let autograd know that the caches have changed; a compiled graph knows it from the operator's schema."""
    if not torch.compiler.is_compiling():
        increment_version(caches)


@extension.fake_kernel("fastssl::cached_attention")
def _forward_fake(q, k, v, k_cache, v_cache, lengths, window, scale, cos, sin):
    return q.new_empty(q.shape)
