"""One block of a causal transformer: norm, attention, norm, feed-forward network."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fastssl.nn.causal_attention import CausalContext, CausalSelfAttention
from fastssl.nn.dropout import BlockSeeds
from fastssl.nn.joined_block import Heads, NormCall, is_as_made, parameters_of, plan_of, product_dtype, run_pre_norm
from fastssl.nn.kv_cache import LayerCache
from fastssl.nn.mlp import MLP, GatedMLP
from fastssl.nn.norm import LayerNorm, RMSNorm
from fastssl.nn.plain import is_plain
from fastssl.ops.attention.checks import UNLIMITED


class Entering(NamedTuple):
    """What enters a block, ``residual + dropout(addend)``, which its first norm adds up."""

    addend: Tensor
    """(N, E), what the block in front adds."""
    residual: Tensor | None
    """(N, E), the residual stream that it is added to; None: nothing."""
    dropout_p: float
    """Of the addend, where there is a seed."""
    seed: Tensor | None
    """0-d int64, or None for no dropout."""

    def normed(self, norm: LayerNorm | RMSNorm) -> tuple[Tensor, Tensor]:
        """Return the norm of the sum, and the sum, (N, E) both."""
        return norm(self.addend, residual=self.residual, dropout_p=self.dropout_p, seed=self.seed, return_sum=True)


class CausalBlock(nn.Module):
    """``x = x + attention(norm(x)); x = x + mlp(norm(x))``, its sums left to the norm that follows each.

    As in `PreNormBlock`, the block takes its input already normed and returns the feed-forward network's output beside
    the stream that it belongs to: the next norm adds it in its own pass over memory.

    Args:
        attention: of the block.
        mlp: of the block.
        attention_norm, mlp_norm: in front of each.
        hidden_dropout_p: probability of dropping an element of what is added to the residual stream.

    Source: Radford et al. 2019 (GPT-2) §2.3.
    """

    def __init__(
        self,
        attention: CausalSelfAttention,
        mlp: MLP | GatedMLP,
        *,
        attention_norm: LayerNorm | RMSNorm,
        mlp_norm: LayerNorm | RMSNorm,
        hidden_dropout_p: float,
    ) -> None:
        super().__init__()
        self.hidden_dropout_p = hidden_dropout_p
        self.attention_norm = attention_norm
        self.attention = attention
        self.mlp_norm = mlp_norm
        self.mlp = mlp

    def forward(
        self,
        normed: Tensor,
        stream: Tensor,
        context: CausalContext,
        seeds: BlockSeeds,
        cache: LayerCache | None,
        rows: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Run one block.

        Args:
            normed: (N, E), `attention_norm` of the stream.
            stream: (N, E), the residual stream.
            context: where the rows stand.
            seeds: of dropout; the last of them is for whoever adds the first returned tensor to the second.
            cache: of this layer, or None.
            rows: (B) int64, the last row of each sequence, where only these are wanted: of the others there are only
                keys and values.

        Returns:
            The feed-forward network's output, still to be dropped out and added, and the stream.
        """
        attended = self.attention(normed, context, seeds.attention, cache, rows)
        stream = stream if rows is None else stream.index_select(0, rows)
        normed, stream = self.mlp_norm(
            attended, residual=stream, dropout_p=self.hidden_dropout_p, seed=seeds.attention_output, return_sum=True
        )
        return self.mlp(normed), stream

    def joined(self, entering: Entering, context: CausalContext, seeds: BlockSeeds) -> Callable | None:
        """Return what computes the block, its first norm included, as one node; None where it is to run by its parts.

        Args:
            entering: what the first norm adds up.
            context: where the rows stand, without a cache.
            seeds: of dropout.

        Returns:
            A function of the addend and the residual, whose results are those of `forward`.
        """
        if not torch.is_grad_enabled() or context.rotation is not None:
            return None
        if not is_plain(self, CausalBlock) or not is_as_made(self, CausalSelfAttention):
            return None
        attention, rows = self.attention, entering.addend
        window = (UNLIMITED if attention.window is None else min(attention.window - 1, UNLIMITED), 0)
        heads = Heads(attention.num_heads, attention.num_key_value_heads, attention.head_dim, window)
        stream_dtype = rows.dtype if entering.residual is None else entering.residual.dtype
        norm_calls = (
            NormCall(rows.dtype, stream_dtype, 0.0 if entering.seed is None else entering.dropout_p),
            NormCall(
                product_dtype(rows), stream_dtype, 0.0 if seeds.attention_output is None else self.hidden_dropout_p
            ),
        )
        attention_p = 0.0 if seeds.attention is None else attention.dropout_p
        parameters = parameters_of(self)
        plan = plan_of(self, parameters, heads, rows, attention_p, norm_calls, context.max_seqlen)
        if plan is None:
            return None
        sites = (entering.seed, seeds.attention, seeds.attention_output)
        return partial(run_pre_norm, plan, cu_seqlens=context.cu_seqlens, seeds=sites, parameters=parameters)
