"""`cached_attention` from PyTorch's own operators: written by index, attended to with a mask."""

from torch import Tensor
from torch.nn import functional as F

from fastssl.ops.backend import Supports
from fastssl.ops.cached_attention.reference import remember, rotated, visible

SUPPORTS = Supports()


def forward(q, k, v, k_cache, v_cache, lengths, *, window, scale, rotary) -> Tensor:
    """Return the output of `fastssl.ops.cached_attention`; all slots are read, for any lengths."""
    remember(rotated(k, rotary), v, k_cache, v_cache, lengths)
    mask = visible(lengths, k_cache.shape[2], window)[:, None, None]
    keys, values = k_cache.to(q.dtype), v_cache.to(q.dtype)
    grouped = q.shape[1] != k.shape[1]
    out = F.scaled_dot_product_attention(
        rotated(q, rotary)[:, :, None], keys, values, attn_mask=mask, scale=scale, enable_gqa=grouped
    )
    return out[:, :, 0]
