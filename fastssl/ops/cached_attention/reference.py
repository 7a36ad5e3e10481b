"""The definition of `cached_attention` in plain PyTorch, for any floating dtype and device."""

import torch
from torch import Tensor

from fastssl.ops.backend import Supports

SUPPORTS = Supports()


def rotated(x: Tensor, rotary: tuple[Tensor, Tensor] | None) -> Tensor:
    """Return x (B, H, D), turned by the angles of its tokens' positions."""
    if rotary is None:
        return x
    cos, sin = (table[:, None].to(x.dtype) for table in rotary)
    low, high = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-high, low), dim=-1) * sin


def remember(k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, lengths: Tensor) -> None:
    """Write keys and values (B, H_k, D) to the slots of the new tokens."""
    sequences = torch.arange(len(lengths), device=k.device)
    slots = lengths.long() % k_cache.shape[2]
    k_cache[sequences, :, slots] = k.to(k_cache.dtype)
    v_cache[sequences, :, slots] = v.to(v_cache.dtype)


def visible(lengths: Tensor, slots: int, window: int | None) -> Tensor:
    """Return which slots the new tokens see, (B, S) bool: those whose token is old, but not too old."""
    ages = (lengths.long()[:, None] - torch.arange(slots, device=lengths.device)) % slots
    seen = ages <= lengths[:, None]
    return seen if window is None else seen & (ages < window)


def forward(q, k, v, k_cache, v_cache, lengths, *, window, scale, rotary) -> Tensor:
    """Return the output of `fastssl.ops.cached_attention`; arithmetic in float32, or in float64 where `q` is."""
    wide = torch.promote_types(q.dtype, torch.float32)
    remember(rotated(k.to(wide), rotary), v, k_cache, v_cache, lengths)
    groups = q.shape[1] // k.shape[1]
    keys, values = (cache.to(wide).repeat_interleave(groups, dim=1) for cache in (k_cache, v_cache))
    hidden = ~visible(lengths, k_cache.shape[2], window)[:, None]
    scores = torch.einsum("bhd,bhsd->bhs", rotated(q.to(wide), rotary), keys) * scale
    weights = scores.masked_fill(hidden, -torch.inf).softmax(-1)
    return torch.einsum("bhs,bhsd->bhd", weights, values).to(q.dtype)
