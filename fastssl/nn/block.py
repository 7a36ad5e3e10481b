"""One transformer block, as published (norm after the sum) and with the norm in front."""

from typing import NamedTuple

from torch import Tensor, nn

from fastssl.nn.attention import SelfAttention
from fastssl.nn.mlp import MLP
from fastssl.nn.norm import LayerNorm


class BlockSeeds(NamedTuple):
    """The dropout seeds of one block: 0-d int64 tensors, or all None for no dropout."""

    attention: Tensor | None = None
    """For the attention weights."""
    attention_output: Tensor | None = None
    """For what attention adds to the residual stream."""
    mlp_output: Tensor | None = None
    """For what the feed-forward network adds to it."""


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
        attended = self.attention(hidden_states, cu_seqlens, max_seqlen, seeds.attention, first_only)
        if first_only:
            hidden_states = hidden_states.index_select(0, cu_seqlens[:-1])
        hidden_states = self.attention_norm(attended, residual=hidden_states, dropout_p=p, seed=seeds.attention_output)
        return self.mlp_norm(self.mlp(hidden_states), residual=hidden_states, dropout_p=p, seed=seeds.mlp_output)


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
