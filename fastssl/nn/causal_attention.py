"""Causal self-attention over packed sequences, with or without a cache of earlier keys and values."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from fastssl.nn.kv_cache import CacheStep, LayerCache
from fastssl.nn.rotary import Rotation
from fastssl.ops.attention.api import attention
from fastssl.ops.attention.projection import split_projection


class CausalContext(NamedTuple):
    """Where the N rows of a pack stand; the same for all blocks."""

    cu_seqlens: Tensor
    """(B + 1) int32, where each sequence begins."""
    max_seqlen: int
    """Length of the longest sequence."""
    rotation: Rotation | None = None
    """Turns of queries and keys; None where positions are embedded."""
    step: CacheStep | None = None
    """How the rows go on from what is cached; None without a cache."""


class CausalSelfAttention(nn.Module):
    """Multi-head self-attention in which a token sees itself and what came before it in its sequence.

    `qkv.weight` is ((H + 2 H_k) D, E): queries above keys above values, each of them head by head.

    Args:
        hidden_size: E.
        num_heads: H, heads of the queries.
        num_key_value_heads: H_k, a divisor of H.
        head_dim: D.
        dropout_p: probability of dropping an attention weight.
        window: how many tokens are seen, the token's own included; None: all.
        qkv_bias: whether the projections have biases.
        output_bias: whether the map behind attention has one.

    Source: Radford et al. 2019 (GPT-2) §2.3; grouped queries: Ainslie et al. 2023 (arXiv 2305.13245) §2; window:
    Beltagy et al. 2020 (arXiv 2004.05150) §3.1.
    """

    def __init__(
        self,
        hidden_size: int,
        *,
        num_heads: int,
        num_key_value_heads: int,
        head_dim: int,
        dropout_p: float,
        window: int | None,
        qkv_bias: bool,
        output_bias: bool,
    ) -> None:
        super().__init__()
        self.num_heads, self.num_key_value_heads, self.head_dim = num_heads, num_key_value_heads, head_dim
        self.dropout_p = dropout_p
        self.window = window
        self.backend = "auto"
        self.qkv = nn.Linear(hidden_size, (num_heads + 2 * num_key_value_heads) * head_dim, qkv_bias)
        self.output = nn.Linear(num_heads * head_dim, hidden_size, output_bias)

    def forward(
        self,
        hidden_states: Tensor,
        context: CausalContext,
        seed: Tensor | None = None,
        cache: LayerCache | None = None,
        rows: Tensor | None = None,
    ) -> Tensor:
        """Mix every sequence's rows.

        Args:
            hidden_states: (N, E).
            context: where the rows stand.
            seed: 0-d int64 tensor for dropout; None: no dropout.
            cache: of this layer, with `context.step`; it takes the rows' keys and values.
            rows: (B) int64, the last row of each sequence, where only these are wanted.

        Returns:
            (N, E), or (B, E) of the rows that are wanted.
        """
        q, k, v = self._project(hidden_states, context.rotation)
        cu_seqlens_q, max_seqlen_q = cu_seqlens_k, max_seqlen_k = context.cu_seqlens, context.max_seqlen
        if rows is not None:
            q, max_seqlen_q = q.index_select(0, rows), 1
            cu_seqlens_q = torch.arange(len(rows) + 1, dtype=torch.int32, device=rows.device)
        if cache is not None:
            k, v = cache.extend(k, v, context.step)
            cu_seqlens_k, max_seqlen_k = context.step.cu_seqlens_k, context.step.max_seqlen_k
        mixed = attention(
            q,
            k,
            v,
            cu_seqlens_q=cu_seqlens_q,
            cu_seqlens_k=cu_seqlens_k,
            max_seqlen_q=max_seqlen_q,
            max_seqlen_k=max_seqlen_k,
            causal=True,
            window=None if self.window is None else (self.window - 1, 0),
            dropout_p=self.dropout_p if seed is not None else 0.0,
            seed=seed,
            backend=self.backend,
        )
        return self.output(mixed.flatten(-2))

    def probabilities(self, hidden_states: Tensor, context: CausalContext) -> tuple[Tensor, ...]:
        """Return each sequence's attention probabilities, (H, T, T), before dropout; for looking, not for speed."""
        q, k, _ = self._project(hidden_states, context.rotation)
        k = k.repeat_interleave(self.num_heads // self.num_key_value_heads, dim=1)
        lengths = context.cu_seqlens.diff().tolist()
        return tuple(self._probabilities(*pair) for pair in zip(q.split(lengths), k.split(lengths), strict=True))

    def _probabilities(self, q: Tensor, k: Tensor) -> Tensor:
        scores = q.transpose(0, 1) @ k.permute(1, 2, 0) * self.head_dim**-0.5
        seen = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        if self.window is not None:
            seen = seen.triu(1 - self.window)
        return scores.masked_fill(~seen, -torch.inf).softmax(-1)

    def _project(self, hidden_states: Tensor, rotation: Rotation | None) -> tuple[Tensor, Tensor, Tensor]:
        heads = self.qkv(hidden_states).unflatten(-1, (-1, self.head_dim))
        q, k, v = split_projection(heads, self.num_heads, self.num_key_value_heads)
        return (q, k, v) if rotation is None else (rotation.turn(q), rotation.turn(k), v)
