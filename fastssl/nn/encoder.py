"""A stack of transformer blocks, from normed embeddings to the last hidden states."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fastssl.nn.block import Block, PostNormBlock, PreNormBlock
from fastssl.nn.dropout import BlockSeeds, dropout, site_seeds
from fastssl.nn.norm import LayerNorm


@dataclass(kw_only=True)
class Trace:
    """What an encoder records on its way, where asked to."""

    hidden_states: list[Tensor] | None = None
    """L + 1 tensors (N, E): what enters each block, and what leaves the encoder."""
    attentions: list[tuple[Tensor, ...]] | None = None
    """L tuples of B tensors (H, T, T): the attention probabilities of each sequence, before dropout."""

    @property
    def wanted(self) -> bool:
        """Whether anything is to be recorded."""
        return self.hidden_states is not None or self.attentions is not None

    def record(self, hidden_states: Tensor, attention: Callable[[], tuple[Tensor, ...]]) -> None:
        """Note what enters a block; `attention` gives its probabilities, where they are asked for."""
        if self.hidden_states is not None:
            self.hidden_states.append(hidden_states)
        if self.attentions is not None:
            self.attentions.append(attention())

    def finish(self, hidden_states: Tensor) -> None:
        """Note what leaves the encoder."""
        if self.hidden_states is not None:
            self.hidden_states.append(hidden_states)


@dataclass(frozen=True, kw_only=True)
class DropoutSeeds:
    """The dropout seeds of a whole encoder."""

    embeddings: Tensor | None
    """0-d int64, or None for no dropout."""
    blocks: Sequence[BlockSeeds]
    """One per block."""

    @classmethod
    def derive(cls, step_seed: Tensor | None, num_blocks: int) -> "DropoutSeeds":
        """Derive every site's seed from the step's, a 0-d int64 tensor; None means no dropout."""
        if step_seed is None:
            return cls(embeddings=None, blocks=[BlockSeeds()] * num_blocks)
        sites = site_seeds(step_seed, 1 + 3 * num_blocks)
        return cls(embeddings=sites[0], blocks=[BlockSeeds(*sites[i : i + 3]) for i in range(1, len(sites), 3)])


class Encoder(nn.Module):
    """What both kinds of encoder have in common.

    Args:
        block_class: of its blocks.
        num_blocks: L.
        block: keyword arguments of each block.
    """

    def __init__(self, block_class: type[Block], num_blocks: int, **block) -> None:
        super().__init__()
        self.gradient_checkpointing = False
        self.backend = "auto"
        self.blocks = nn.ModuleList(block_class(**block) for _ in range(num_blocks))
        self.hidden_dropout_p: float = block["hidden_dropout_p"]

    def set_dropout(self, p: float) -> None:
        """Use the dropout probability `p` at every site from now on."""
        self.hidden_dropout_p = p
        for block in self.blocks:
            block.hidden_dropout_p = block.attention.dropout_p = p

    def run(self, block: nn.Module, *arguments):
        """Run a block, keeping only its inputs for the backward where the encoder checkpoints.

        The generator's state is not saved: dropout repeats itself because its seeds are among the arguments.
        """
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return checkpoint(block, *arguments, use_reentrant=False, preserve_rng_state=False)
        return block(*arguments)


class PostNormEncoder(Encoder):
    """Blocks that norm after each sum, as published.

    Args:
        num_blocks: L.
        block: keyword arguments of each `PostNormBlock`.
    """

    def __init__(self, num_blocks: int, **block) -> None:
        super().__init__(PostNormBlock, num_blocks, **block)

    def forward(
        self,
        embedded: Tensor,
        cu_seqlens: Tensor,
        max_seqlen: int,
        seeds: DropoutSeeds,
        trace: Trace,
        *,
        first_only: bool = False,
    ) -> Tensor:
        """Return the last hidden states, (N, E), or those of each sequence's first token alone, (B, E).

        For the first tokens, nothing but the keys and values of the last block is computed for the other tokens there:
        of six blocks, that spares an eighth of all matrix products where sequences are long.

        Args:
            embedded: (N, E), normed embeddings before their dropout.
            cu_seqlens: (B + 1) int32, where each sequence begins.
            max_seqlen: length of the longest sequence.
            seeds: of dropout.
            trace: takes down what it asks for.
            first_only: whether nobody wants the other tokens.
        """
        hidden_states = dropout(embedded, self.hidden_dropout_p, seeds.embeddings, backend=self.backend)
        for number, (block, block_seeds) in enumerate(zip(self.blocks, seeds.blocks, strict=True)):
            trace.record(hidden_states, partial(block.attention.probabilities, hidden_states, cu_seqlens))
            wanted = (True,) if first_only and number == len(self.blocks) - 1 else ()
            hidden_states = self.run(block, hidden_states, cu_seqlens, max_seqlen, block_seeds, *wanted)
        if first_only and not self.blocks:
            hidden_states = hidden_states.index_select(0, cu_seqlens[:-1])
        trace.finish(hidden_states)
        return hidden_states


class PreNormEncoder(Encoder):
    """Blocks that norm their inputs, and a norm behind the last one.

    Args:
        num_blocks: L.
        block: keyword arguments of each `PreNormBlock`.
    """

    def __init__(self, num_blocks: int, **block) -> None:
        super().__init__(PreNormBlock, num_blocks, **block)
        self.final_norm = LayerNorm(block["hidden_size"], block["norm_eps"])

    def forward(
        self,
        embedded: Tensor,
        cu_seqlens: Tensor,
        max_seqlen: int,
        seeds: DropoutSeeds,
        trace: Trace,
        *,
        first_only: bool = False,
    ) -> Tensor:
        """Return the last hidden states, (N, E) or (B, E); arguments as in `PostNormEncoder.forward`."""
        p = self.hidden_dropout_p
        addend, stream, addend_seed = embedded, None, seeds.embeddings
        for block, block_seeds in zip(self.blocks, seeds.blocks, strict=True):
            normed, stream = block.attention_norm(
                addend, residual=stream, dropout_p=p, seed=addend_seed, return_sum=True
            )
            trace.record(stream, partial(block.attention.probabilities, normed, cu_seqlens))
            addend, stream = self.run(block, normed, stream, cu_seqlens, max_seqlen, block_seeds)
            addend_seed = block_seeds.mlp_output
        hidden_states = self.final_norm(addend, residual=stream, dropout_p=p, seed=addend_seed)
        trace.finish(hidden_states)
        return hidden_states.index_select(0, cu_seqlens[:-1]) if first_only else hidden_states
