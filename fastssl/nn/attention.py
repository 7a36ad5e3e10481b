"""Self-attention over packed sequences."""

import torch
from torch import Tensor, nn

from fastssl.ops.attention.api import attention
from fastssl.ops.attention.projection import split_projection


class SelfAttention(nn.Module):
    """Multi-head self-attention, every token of a sequence seeing all tokens of it.

    Queries, keys and values come from one matrix product: `qkv.weight` is (3E, E), the three projections one above
    the other, each of them head by head.

    Args:
        hidden_size: E, a multiple of `num_heads`.
        num_heads: H.
        dropout_p: probability of dropping an attention weight.

    Source: Vaswani et al. 2017 (arXiv 1706.03762) §3.2.2.
    """

    def __init__(self, hidden_size: int, num_heads: int, dropout_p: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.dropout_p = dropout_p
        self.backend = "auto"
        self.qkv = nn.Linear(hidden_size, 3 * hidden_size)
        self.output = nn.Linear(hidden_size, hidden_size)

    def forward(
        self,
        hidden_states: Tensor,
        cu_seqlens: Tensor,
        max_seqlen: int,
        seed: Tensor | None = None,
        first_only: bool = False,
    ) -> Tensor:
        """Mix every sequence's rows.

        Args:
            hidden_states: (N, E).
            cu_seqlens: (B + 1) int32, where each sequence begins.
            max_seqlen: length of the longest sequence.
            seed: 0-d int64 tensor for dropout; None: no dropout.
            first_only: whether only each sequence's first row is wanted, which spares the others' work.

        Returns:
            (N, E), or (B, E) of the first rows.
        """
        q, k, v = self._project(hidden_states)
        cu_seqlens_q, max_seqlen_q = cu_seqlens, max_seqlen
        if first_only:
            q, max_seqlen_q = q.index_select(0, cu_seqlens[:-1]), 1
            cu_seqlens_q = torch.arange(cu_seqlens.numel(), dtype=torch.int32, device=cu_seqlens.device)
        context = attention(
            q,
            k,
            v,
            cu_seqlens_q=cu_seqlens_q,
            cu_seqlens_k=cu_seqlens,
            max_seqlen_q=max_seqlen_q,
            max_seqlen_k=max_seqlen,
            dropout_p=self.dropout_p if seed is not None else 0.0,
            seed=seed,
            backend=self.backend,
        )
        return self.output(context.flatten(-2))

    def probabilities(self, hidden_states: Tensor, cu_seqlens: Tensor) -> tuple[Tensor, ...]:
        """Return each sequence's attention probabilities, (H, T, T), before dropout; for looking, not for speed."""
        q, k, _ = self._project(hidden_states)
        lengths = cu_seqlens.diff().tolist()
        scale = q.shape[-1] ** -0.5
        return tuple(
            (one_q.transpose(0, 1) @ one_k.permute(1, 2, 0) * scale).softmax(-1)
            for one_q, one_k in zip(q.split(lengths), k.split(lengths), strict=True)
        )

    def _project(self, hidden_states: Tensor) -> tuple[Tensor, ...]:
        heads = self.qkv(hidden_states).unflatten(-1, (3 * self.num_heads, -1))
        return split_projection(heads, self.num_heads)
