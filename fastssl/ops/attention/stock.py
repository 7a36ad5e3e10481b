"""`attention` from PyTorch's own `F.scaled_dot_product_attention`, where that can express the request."""

import torch
import torch.nn.functional as F
from torch import Tensor

from fastssl.ops.backend import Supports

SUPPORTS = Supports(
    refuses={
        "scaled_dot_product_attention draws another dropout mask": lambda dropped, **_: dropped,
        "scaled_dot_product_attention does not return lse": lambda return_lse, **_: return_lse,
        "it reads sequence lengths on the host, which torch.compile cannot": lambda packed, compiling, **_: (
            packed and compiling
        ),
    }
)


def forward(
    q, k, v, bias, cu_seqlens_q, cu_seqlens_k, alibi_slopes, seed, window_left, window_right, dropout_p, scale,
    max_seqlen_q, max_seqlen_k,
) -> tuple[Tensor, None]:  # fmt: skip
    """Return the output, shaped like q, and None in the place of lse.

    Packed sequences of unequal lengths run one at a time.
    """
    if q.dim() == 4:
        return _dense(q, k, v, bias, alibi_slopes, window_left, window_right, scale), None
    lengths_q = cu_seqlens_q.diff().tolist()
    lengths_k = lengths_q if cu_seqlens_k is None else cu_seqlens_k.diff().tolist()
    options = (alibi_slopes, window_left, window_right, scale)
    if len(set(lengths_q)) == len(set(lengths_k)) == 1:
        dense = (x.unflatten(0, (len(lengths_q), len(x) // len(lengths_q))) for x in (q, k, v))
        return _dense(*dense, bias, *options).flatten(0, 1), None
    outs = []
    for index, sequence in enumerate(zip(q.split(lengths_q), k.split(lengths_k), v.split(lengths_k), strict=True)):
        one_bias = bias[index : index + 1] if bias is not None and bias.dim() == 4 else bias
        outs.append(_dense(*(x[None] for x in sequence), one_bias, *options)[0])
    return torch.cat(outs) if outs else q.clone(), None


def _dense(q, k, v, bias, alibi_slopes, window_left, window_right, scale) -> Tensor:
    num_queries, num_keys = q.shape[1], k.shape[1]
    if num_queries == 0 or num_keys == 0:
        return torch.zeros_like(q) + (q.sum() + k.sum() + v.sum()) * 0
    causal = bias is None and alibi_slopes is None and num_queries == num_keys
    # PyTorch scales its own mask of minus infinities, too.
    causal = causal and window_right == 0 and window_left >= num_keys and scale > 0
    mask = None if causal else _mask(q, num_keys, bias, alibi_slopes, window_left, window_right)
    out = F.scaled_dot_product_attention(
        *(x.transpose(1, 2) for x in (q, k, v)),
        attn_mask=mask,
        is_causal=causal,
        scale=scale,
        enable_gqa=q.shape[2] != k.shape[2],
    )
    return out.transpose(1, 2)


def _mask(q, num_keys, bias, alibi_slopes, window_left, window_right) -> Tensor | None:
    """Return what is added to the scores, broadcastable to (B, H, T, S), or None where nothing is."""
    num_queries = q.shape[1]
    query, key = torch.arange(num_queries, device=q.device), torch.arange(num_keys, device=q.device)
    distance = key - (query + num_keys - num_queries)[:, None]
    mask = None
    if bias is not None:
        mask = bias[..., :num_queries, :num_keys]
    if alibi_slopes is not None:
        alibi = -alibi_slopes[:, None, None] * distance.abs()
        mask = alibi if mask is None else mask + alibi
    if window_left < num_keys or window_right < num_queries:
        hidden = (distance < -window_left) | (distance > window_right)
        mask = torch.zeros_like(distance, dtype=q.dtype) if mask is None else mask
        mask = mask.masked_fill(hidden, -torch.inf)
    if mask is None:
        return None
    return mask.to(q.dtype) if mask.dim() != 3 else mask[None].to(q.dtype)
