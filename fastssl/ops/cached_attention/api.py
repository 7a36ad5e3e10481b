"""The public function `cached_attention`: its meaning, its checks, its choice of backend."""

import math
import numbers

import torch
from torch import Tensor

from fastssl.ops.backend import choose
from fastssl.ops.cached_attention import native, reference, stock
from fastssl.ops.recording import asks_for_gradient
from fastssl.ops.surroundings import can_be_read, without_autocast

BACKENDS = {"native": native, "stock": stock, "reference": reference}


def cached_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    lengths: Tensor,
    *,
    window: int | None = None,
    scale: float | None = None,
    rotary: tuple[Tensor, Tensor] | None = None,
    backend: str = "auto",
) -> Tensor:
    """Attend with one new token a sequence to all tokens of its sequence, and remember it; for inference.

    The token at position p = lengths[b] gets its key and value written to slot ``p % S`` of the caches, **in place**,
    and ``softmax(scale q k^T) v`` over positions 0 to p, or ``p - window + 1`` to p. `lengths` is left as it is.

    Args:
        q: (B, H, D), the new tokens' queries (native: fp32). Slices of one fused projection are read where they are.
        k, v: (B, H_k, D), their keys and values, where H_k divides H: a key head serves H / H_k neighbouring heads.
        k_cache, v_cache: (B, H_k, S, D), both fp32, bf16 or q's dtype; the tokens of a head stand side by side, which
            is the order in which they are read. Slots without a token hold finite numbers, such as zeros.
        lengths: (B) int32 or int64: how many tokens each sequence had before this one.
        window: how many tokens are seen, the new one among them; None: all. With a window of at most S the cache is a
            ring, and never full.
        scale: of the scores, default ``D ** -0.5``.
        rotary: cos and sin, (B, D) each, of the new tokens' positions: q and k are turned by them first, in pairs of
            the first and the second half of D (as in Hugging Face's models), and the cache holds turned keys.
        backend: "auto", "native", "stock" or "reference".

    Returns:
        (B, H, D) in q's dtype.

    Raises:
        ValueError: for shapes, dtypes or devices that do not fit, a full cache (not looked for on a GPU nor under
            torch.compile), a call that autograd would have to record, or a backend that cannot run the call.

    Numerics: fp32 arithmetic; the new token is seen as the cache holds it. A sequence's result does not depend on the
        sequences beside it, nor on the number of threads.

    Source: Dao et al. 2023, "Flash-Decoding"; Su et al. 2021 (arXiv 2104.09864) for rotary positions.
    """
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    if backend == "auto" and native.is_usual(q, window, rotary):
        # Once a layer and token: the kernel's own checks come first. Where they fail nothing is written, and the slower
        # ones below say why, or another backend serves.
        try:
            return native.forward(q, k, v, k_cache, v_cache, lengths, window=window, scale=scale, rotary=rotary)
        except RuntimeError:
            pass
    check(q, k, v, k_cache, v_cache, lengths, window, rotary)
    facts = {"cache_dtype": k_cache.dtype, "cache_strides": k_cache.stride(-1) * v_cache.stride(-1), "rotary": rotary}
    name = choose("cached_attention", backend, BACKENDS, q.device, q.dtype, facts)
    with without_autocast(q.device):
        return BACKENDS[name].forward(q, k, v, k_cache, v_cache, lengths, window=window, scale=scale, rotary=rotary)


def check(q, k, v, k_cache, v_cache, lengths, window, rotary) -> None:
    """Raise what `cached_attention` raises for these arguments."""
    _check_shapes(q, k, v, k_cache, v_cache)
    if rotary is not None:
        _check_rotary(q, rotary)
    _check_dtypes(q, k, v, k_cache, v_cache, lengths)
    slots = k_cache.shape[2]
    if window is not None and not (isinstance(window, numbers.Integral) and window >= 1):
        raise ValueError(
            f"cached_attention: window must be at least 1, the token itself, and a whole number, got {window}"
        )
    if can_be_read(lengths):
        _check_room(lengths, slots if window is None or window > slots else math.inf)


def _check_shapes(q, k, v, k_cache, v_cache) -> None:
    if q.dim() != 3 or k.dim() != 3 or q.shape[0] != k.shape[0] or q.shape[2] != k.shape[2] or v.shape != k.shape:
        raise ValueError(
            "cached_attention: q must have shape (B, H, D), k and v (B, H_k, D), one token a sequence; got "
            f"{tuple(q.shape)}, {tuple(k.shape)}, {tuple(v.shape)}"
        )
    batch, key_heads, width = k.shape
    if key_heads == 0 or q.shape[1] % key_heads or width == 0:
        raise ValueError(f"cached_attention: {q.shape[1]} query heads are no multiple of {key_heads} key heads")
    if (
        k_cache.dim() != 4
        or v_cache.shape != k_cache.shape
        or k_cache.shape != (batch, key_heads, k_cache.shape[2], width)
    ):
        raise ValueError(
            f"cached_attention: k_cache and v_cache must have shape ({batch}, {key_heads}, S, {width}), got "
            f"{tuple(k_cache.shape)}, {tuple(v_cache.shape)}"
        )


def _check_rotary(q: Tensor, rotary: tuple[Tensor, Tensor]) -> None:
    if len(rotary) != 2 or not all(isinstance(table, Tensor) for table in rotary):
        given = ", ".join(type(table).__name__ for table in rotary)
        raise ValueError(f"cached_attention: rotary must be two tensors, cos and sin, got ({given})")
    expected = (q.shape[0], q.shape[2])
    for name, table in zip(("cos", "sin"), rotary, strict=True):
        if table.shape != expected or table.device != q.device:
            raise ValueError(
                f"cached_attention: rotary's {name} must have shape {expected} on {q.device}, got "
                f"{tuple(table.shape)} on {table.device}"
            )
    if q.shape[2] % 2:
        raise ValueError(f"cached_attention: rotary pairs need an even head width, got {q.shape[2]}")


def _check_dtypes(q, k, v, k_cache, v_cache, lengths) -> None:
    if not q.is_floating_point() or k.dtype != q.dtype or v.dtype != q.dtype:
        raise ValueError(
            f"cached_attention: q, k and v must be floating and of one dtype, got {q.dtype}, {k.dtype}, {v.dtype}"
        )
    if k_cache.dtype != v_cache.dtype or not k_cache.is_floating_point():
        raise ValueError(
            "cached_attention: k_cache and v_cache must be floating and of one dtype, got "
            f"{k_cache.dtype}, {v_cache.dtype}"
        )
    if lengths.shape != q.shape[:1] or lengths.dtype not in (torch.int32, torch.int64):
        raise ValueError(
            f"cached_attention: lengths must be int32 or int64 of shape ({q.shape[0]},), got {lengths.dtype} of shape "
            f"{tuple(lengths.shape)}"
        )
    device, records = q.device, torch.is_grad_enabled()
    named = {"q": q, "k": k, "v": v, "k_cache": k_cache, "v_cache": v_cache, "lengths": lengths}
    for name, tensor in named.items():
        if tensor.device != device:
            raise ValueError(f"cached_attention: {name} must be on {device} like q, got {tensor.device}")
        if records and asks_for_gradient(tensor):
            raise ValueError(
                f"cached_attention: it has no gradient, and {name} asks for one; call it under torch.no_grad() or "
                "torch.inference_mode()"
            )


def _check_room(lengths: Tensor, slots: float) -> None:
    shortest, longest = (found([0, *lengths.tolist()]) for found in (min, max))
    if shortest < 0:
        raise ValueError(f"cached_attention: lengths must be at least 0, got {shortest}")
    if longest >= slots:
        raise ValueError(
            f"cached_attention: a sequence has {longest} tokens and the cache room for {slots}: make a larger cache, "
            "or see a window of at most that many tokens"
        )
