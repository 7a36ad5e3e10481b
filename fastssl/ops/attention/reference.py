"""The definition of `attention`: plain differentiable torch, one sequence at a time, any dtype."""

import torch
from torch import Tensor

from fastssl.ops.backend import Supports
from fastssl.ops.philox import attention_keep_mask, dropout_scale

SUPPORTS = Supports(
    refuses={
        "it reads sequence lengths on the host, which torch.compile cannot": lambda packed, compiling, **_: (
            packed and compiling
        )
    }
)

_COARSE_LSE = 2.0**20
"""Here float32 numbers are 1/8 apart."""


def forward(
    q, k, v, bias, cu_seqlens_q, cu_seqlens_k, alibi_slopes, seed, window_left, window_right, dropout_p, scale,
    max_seqlen_q, max_seqlen_k,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return the output, shaped like q, and lse, (H, N) for packed and (B, H, T) for dense input.

    Arguments are those of `fastssl.attention`, checked, with `causal` and `window` resolved to two numbers of keys.
    """
    packed = q.dim() == 3
    if cu_seqlens_q.shape[0] == 1 if packed else q.shape[0] == 0:
        return q.clone(), q[..., 0].transpose(-1, -2).float()
    cu_seqlens_k = cu_seqlens_q if cu_seqlens_k is None else cu_seqlens_k
    queries = q.split(cu_seqlens_q.diff().tolist()) if packed else q
    keys, values = (x.split(cu_seqlens_k.diff().tolist()) if packed else x for x in (k, v))
    outs, lses = [], []
    for index, (one_q, one_k, one_v) in enumerate(zip(queries, keys, values, strict=True)):
        one_bias = bias[index] if bias is not None and bias.dim() == 4 else bias
        scores, visible = _scores(one_q, one_k, one_bias, alibi_slopes, window_left, window_right, scale)
        empty = ~visible.any(-1)
        scores = scores.masked_fill(empty[..., None], 0.0)
        lse = scores.logsumexp(-1)
        # By lse, as every kernel computes them, but where that is too large to tell how many scores it is the sum of.
        coarse = (lse.abs() > _COARSE_LSE)[..., None]
        probabilities = (scores - lse[..., None]).masked_fill(coarse, 0.0).exp()
        probabilities = torch.where(coarse, scores.softmax(-1), probabilities).masked_fill(empty[..., None], 0.0)
        if dropout_p > 0.0:
            keep = attention_keep_mask(*scores.shape[1:], scores.shape[0], index, dropout_p, seed, q.device)
            probabilities = probabilities * keep * dropout_scale(dropout_p)
        outs.append(torch.einsum("hts,shd->thd", probabilities, _repeat_heads(one_v, q.shape[-2])))
        lses.append(lse.masked_fill(empty, -torch.inf).to(torch.promote_types(lse.dtype, torch.float32)))
    return (torch.cat(outs), torch.cat(lses, dim=1)) if packed else (torch.stack(outs), torch.stack(lses))


def _scores(q, k, bias, alibi_slopes, window_left, window_right, scale) -> tuple[Tensor, Tensor]:
    """Return the scores (H, T, S) of one sequence, -inf where hidden, and which of them are visible."""
    scores = torch.einsum("thd,shd->hts", q, _repeat_heads(k, q.shape[1])) * scale
    num_queries, num_keys = scores.shape[1:]
    query, key = torch.arange(num_queries, device=q.device), torch.arange(num_keys, device=q.device)
    distance = key - (query + num_keys - num_queries)[:, None]
    if bias is not None:
        scores = (scores + bias[:, :num_queries, :num_keys]).to(q.dtype)
    if alibi_slopes is not None:
        scores = scores - (alibi_slopes[:, None, None] * distance.abs()).to(q.dtype)
    scores = scores.masked_fill((distance < -window_left) | (distance > window_right), -torch.inf)
    return scores, scores != -torch.inf


def _repeat_heads(x: Tensor, num_heads: int) -> Tensor:
    return x.repeat_interleave(num_heads // x.shape[1], dim=1)
