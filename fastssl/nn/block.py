"""One transformer block, as published (norm after the sum) and with the norm in front."""

import torch
from torch import Tensor, nn

from fastssl.nn.attention import SelfAttention
from fastssl.nn.dropout import BlockSeeds
from fastssl.nn.joined_block import (
    Heads,
    NormCall,
    Plan,
    is_as_made,
    parameters_of,
    plan_of,
    product_dtype,
    run_post_norm,
)
from fastssl.nn.mlp import MLP
from fastssl.nn.norm import LayerNorm
from fastssl.ops.attention.checks import UNLIMITED


class Block(nn.Module):
    """The parts that both kinds of block have in common.

    Args:
        hidden_size: E.
        num_heads: H.
        intermediate_size: F.
        activation: name of the feed-forward network's activation.
        norm_eps: of both norms.
        hidden_dropout_p: probability of dropping an element of what is added to the residual stream.
        attention_dropout_p: probability of dropping an attention weight.
    """

    def __init__(
        self,
        *,
        hidden_size: int,
        num_heads: int,
        intermediate_size: int,
        activation: str,
        norm_eps: float,
        hidden_dropout_p: float,
        attention_dropout_p: float,
    ) -> None:
        super().__init__()
        self.hidden_dropout_p = hidden_dropout_p
        self.attention = SelfAttention(hidden_size, num_heads, attention_dropout_p)
        self.attention_norm = LayerNorm(hidden_size, norm_eps)
        self.mlp = MLP(hidden_size, intermediate_size, activation)
        self.mlp_norm = LayerNorm(hidden_size, norm_eps)


class PostNormBlock(Block):
    """``x = LN(x + attention(x)); x = LN(x + mlp(x))``.

    Source: Vaswani et al. 2017 (arXiv 1706.03762) §3.1; Devlin et al. 2018 (arXiv 1810.04805).
    """

    def forward(
        self, hidden_states: Tensor, cu_seqlens: Tensor, max_seqlen: int, seeds: BlockSeeds, first_only: bool = False
    ) -> Tensor:
        """Return the next hidden states, (N, E) from (N, E), or those of each sequence's first token alone, (B, E).

        The hidden dropout counts the rows that there are, so the mask of the first tokens alone is another one.
        """
        p = self.hidden_dropout_p
        if not first_only:
            plan, parameters = self._plan(hidden_states, max_seqlen, seeds)
            if plan is not None:
                return run_post_norm(plan, hidden_states, cu_seqlens, seeds, parameters)
        attended = self.attention(hidden_states, cu_seqlens, max_seqlen, seeds.attention, first_only)
        if first_only:
            hidden_states = hidden_states.index_select(0, cu_seqlens[:-1])
        hidden_states = self.attention_norm(attended, residual=hidden_states, dropout_p=p, seed=seeds.attention_output)
        return self.mlp_norm(self.mlp(hidden_states), residual=hidden_states, dropout_p=p, seed=seeds.mlp_output)

    def _plan(self, rows: Tensor, max_seqlen: int, seeds: BlockSeeds) -> tuple[Plan | None, tuple[Tensor | None, ...]]:
        """Return how to run the block as one node, None where it is to run by its parts, and its parameters."""
        if not torch.is_grad_enabled() or not is_as_made(self, SelfAttention):
            return None, ()
        attention, dtype = self.attention, product_dtype(rows)
        num_heads = attention.num_heads
        heads = Heads(num_heads, num_heads, attention.qkv.out_features // (3 * num_heads), (UNLIMITED, UNLIMITED))
        norm_calls = (
            NormCall(dtype, rows.dtype, 0.0 if seeds.attention_output is None else self.hidden_dropout_p),
            NormCall(dtype, dtype, 0.0 if seeds.mlp_output is None else self.hidden_dropout_p),
        )
        attention_p = 0.0 if seeds.attention is None else attention.dropout_p
        parameters = parameters_of(self)
        return plan_of(self, parameters, heads, rows, attention_p, norm_calls, max_seqlen), parameters


class PreNormBlock(Block):
    """``x = x + attention(LN(x)); x = x + mlp(LN(x))``, its sums left to the norm that follows each.

    What the block adds last is not added here: the next norm, which stands at the head of the next block or behind
    the last one, adds it in its own pass over memory. So the block takes its input already normed, and returns the
    feed-forward network's output beside the stream that it belongs to.

    Source: Xiong et al. 2020 (arXiv 2002.04745) §3.
    """

    def forward(
        self, normed: Tensor, stream: Tensor, cu_seqlens: Tensor, max_seqlen: int, seeds: BlockSeeds
    ) -> tuple[Tensor, Tensor]:
        """Run one block.

        Args:
            normed: (N, E), `attention_norm` of the stream.
            stream: (N, E), the residual stream.
            cu_seqlens: (B + 1) int32, where each sequence begins.
            max_seqlen: length of the longest sequence.
            seeds: of dropout; the last of them is for whoever adds the first returned tensor to the second.

        Returns:
            The feed-forward network's output, still to be dropped out and added, and the stream.
        """
        attended = self.attention(normed, cu_seqlens, max_seqlen, seeds.attention)
        normed, stream = self.mlp_norm(
            attended, residual=stream, dropout_p=self.hidden_dropout_p, seed=seeds.attention_output, return_sum=True
        )
        return self.mlp(normed), stream
