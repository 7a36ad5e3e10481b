"""GPT: a causal transformer, pretrained by predicting each next token (`gpt_causal_lm.py` has that head).

With `GPTConfig`'s defaults it is GPT-2; rotary positions, RMS norms, gated networks, shared key/value heads and sliding
windows make it a Llama or a Mistral.

Sources: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners" (GPT-2); Brown et al. 2020
(arXiv 2005.14165); Touvron et al. 2023 (arXiv 2302.13971) §2.2; Jiang et al. 2023 (arXiv 2310.06825) §2.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fastssl.data.batch import PackedBatch
from fastssl.models import gpt_files
from fastssl.models.door import View, pack
from fastssl.models.gpt_config import GPTConfig
from fastssl.nn.causal_attention import CausalContext, CausalSelfAttention
from fastssl.nn.causal_block import CausalBlock, Entering
from fastssl.nn.decoding import MAX_ROWS, DecodingBlock, rotary_tables
from fastssl.nn.encoder import DropoutSeeds, Trace
from fastssl.nn.init import grow_rows, initialize
from fastssl.nn.kv_cache import KVCache
from fastssl.nn.mlp import MLP, GatedMLP
from fastssl.nn.norm import LayerNorm, RMSNorm
from fastssl.nn.plain import has_hooks, is_plain
from fastssl.nn.rotary import Rotation, rotation
from fastssl.nn.tied_embedding import TiedEmbedding
from fastssl.nn.whole_block import run_whole, runs_whole
from fastssl.ops.philox import resolve_step_seed

NORMS = {"layer_norm": LayerNorm, "rms_norm": RMSNorm}


@dataclass(kw_only=True)
class GPTOutput:
    """What GPT returns. Shapes are given for packed input / for padded input, whose padding rows are 0."""

    loss: Tensor | None = None
    """0-d: the sum of the next tokens' losses divided by its denominator; None without labels."""
    metrics: dict[str, Tensor] = field(default_factory=dict)
    """Detached sums: "causal_lm_loss_sum", "causal_lm_correct", "causal_lm_count"."""
    logits: Tensor | None = None
    """(N, V) / (B, T, V): scores of the token that follows; by default only without labels."""
    last_hidden_state: Tensor
    """(N, E) / (B, T, E), normed."""
    hidden_states: tuple[Tensor, ...] | None = None
    """L + 1 tensors (N, E) / (B, T, E): what enters each block, and the last hidden state."""
    attentions: tuple[tuple[Tensor, ...], ...] | tuple[Tensor, ...] | None = None
    """L tuples of B tensors (H, T_b, T_b) / L tensors (B, H, T, T): probabilities before dropout."""


class GPTModel(nn.Module):
    """The transformer, from token ids to hidden states.

    A model with a head calls its `encode`, so hooks belong on its parts.

    Args:
        config: its sizes.
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.gradient_checkpointing = False
        self.word = nn.Embedding(config.vocab_size, config.hidden_size)
        learned = config.position_embedding == "learned"
        self.position = nn.Embedding(config.max_position_embeddings, config.hidden_size) if learned else None
        self.blocks = nn.ModuleList(_block(config) for _ in range(config.num_hidden_layers))
        self.final_norm = _norm(config)
        initialize(self, config.initializer_range)
        self._scale_residual_maps()

    def forward(
        self,
        batch: PackedBatch | None = None,
        *,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        seed: int | Tensor | None = None,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
    ) -> GPTOutput:
        """Run a packed batch, or padded tensors; arguments as in `GPTForCausalLM.forward`."""
        view = View(batch is None, output_hidden_states, output_attentions)
        batch = self.pack(batch, input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids)
        hidden_states = self.encode(batch, seed, view.trace)
        return GPTOutput(last_hidden_state=view.tokens(batch, hidden_states), **view.traced(batch))

    def pack(self, batch: PackedBatch | None, **padded: Tensor | None) -> PackedBatch:
        """Return the packed batch that the model runs on; see `fastssl.models.door.pack`."""
        config = self.config
        return pack(
            batch,
            vocab_size=config.vocab_size,
            max_positions=config.max_position_embeddings,
            num_token_types=1,
            **padded,
        )

    def encode(
        self,
        batch: PackedBatch,
        seed: int | Tensor | None = None,
        trace: Trace | None = None,
        tied: TiedEmbedding | None = None,
        cache: KVCache | None = None,
        rows: Tensor | None = None,
    ) -> Tensor:
        """Return the last hidden states, (N, E), of a packed batch.

        Args:
            batch: packed tokens; with a cache, those that follow what it holds, one run of them for each of its
                sequences.
            seed: of this step's dropout, in training mode; None draws one from torch's generator.
            trace: takes down what it asks for.
            tied: the word embedding, where a head shares it in this pass.
            cache: keys and values of what was read before; it takes those of this batch.
            rows: (B) int64, the last row of each sequence, where only these are wanted, (B, E): the last block then
                does nothing for the others but keep their keys and values, a sixteenth less work in twelve blocks.
        """
        config, trace = self.config, trace or Trace()
        step = None if cache is None else cache.plan(batch.cu_seqlens.diff().tolist())
        position_ids = batch.position_ids if step is None else step.position_ids
        context = CausalContext(batch.cu_seqlens, batch.max_seqlen, self._rotation(position_ids), step)
        seeds = self._dropout_seeds(seed, batch.input_ids.device)
        # Each norm adds what stands in front of it to the residual stream, its dropout included, in one pass.
        p = config.embedding_dropout_prob
        entering = Entering(self._embed(batch, position_ids, tied), None, p, seeds.embeddings)
        by_parts = cache is not None or rows is not None or trace.wanted
        whole = not by_parts and all(runs_whole(block, entering.addend, context) for block in self.blocks)
        for number, (block, block_seeds) in enumerate(zip(self.blocks, seeds.blocks, strict=True)):
            is_own = type(block) is CausalBlock  # and not what somebody has put around it
            joined = block.joined(entering, context, block_seeds) if is_own and not (whole or by_parts) else None
            if whole:
                addend, stream = self._run(run_whole, block, entering, context, block_seeds)
            elif joined is not None:
                addend, stream = self._run(joined, entering.addend, entering.residual)
            else:
                normed, stream = entering.normed(block.attention_norm)
                trace.record(stream, partial(block.attention.probabilities, normed, context))
                layer = None if cache is None else cache.layers[number]
                wanted = rows if number == len(self.blocks) - 1 else None
                addend, stream = self._run(block, normed, stream, context, block_seeds, layer, wanted)
            entering = Entering(addend, stream, config.hidden_dropout_prob, block_seeds.mlp_output)
        if rows is not None and not self.blocks:
            entering = entering._replace(addend=entering.addend.index_select(0, rows))
        hidden_states = self.final_norm(
            entering.addend, residual=entering.residual, dropout_p=entering.dropout_p, seed=entering.seed
        )
        trace.finish(hidden_states)
        if cache is not None:
            cache.advance(step.new_lengths)
        return hidden_states

    def decodes(self, batch: PackedBatch, cache: KVCache | None) -> bool:
        """Return whether `decode` can run a batch: one new token of each of few sequences, and nothing to learn.

        Whoever has replaced a part of a block before a cache was read first, or hung a hook on one at any time, has it
        called: such a model reads token by token as it reads a prompt.
        """
        one_each = cache is not None and batch.num_tokens == cache.num_sequences == batch.num_sequences
        if not one_each or batch.num_tokens > MAX_ROWS or self.training or torch.is_grad_enabled():
            return False
        if cache.decoder is None or cache.decoder[0] is not self:
            known = is_plain(self.final_norm, LayerNorm, RMSNorm) and all(map(DecodingBlock.decodes, self.blocks))
            cache.decoder = (self, [DecodingBlock(block) for block in self.blocks] if known else None)
        blocks = cache.decoder[1]
        return blocks is not None and not has_hooks(self.final_norm) and not any(block.has_hooks for block in blocks)

    def decode(self, input_ids: Tensor, cache: KVCache) -> Tensor:
        """Return the residual stream behind the last block, (B, E) fp32, not yet normed; see `fastssl.nn.decoding`.

        Args:
            input_ids: (B) int64, one new token of each sequence of the cache.
            cache: of a batch that this model `decodes`: keys and values of what was read before. It takes those of
                these tokens.
        """
        one_each = [1] * cache.num_sequences
        cache.check(one_each)
        lengths = torch.tensor(cache.lengths, dtype=torch.int32, device=input_ids.device)
        rotary = rotary_tables(self._rotation(lengths))
        stream = self.word(input_ids) if self.position is None else self.word(input_ids) + self.position(lengths)
        stream = stream.float()
        for block, layer in zip(cache.decoder[1], cache.layers, strict=True):
            stream = block(stream, layer, lengths, rotary)
        cache.advance(one_each)
        return stream

    def new_cache(self, num_sequences: int, capacity: int) -> KVCache:
        """Return an empty cache for `num_sequences` sequences of at most `capacity` tokens.

        A model with a sliding window gets no more rows than its window has, and goes on for ever.

        Raises:
            ValueError: for more tokens than the model has embedded positions.
        """
        config, weight = self.config, self.word.weight
        if self.position is not None and capacity > config.max_position_embeddings:
            raise ValueError(
                f"capacity must be at most the model's {config.max_position_embeddings} positions, got {capacity}"
            )
        window = config.sliding_window
        return KVCache(
            num_layers=config.num_hidden_layers,
            num_sequences=num_sequences,
            capacity=capacity if window is None else min(capacity, window),
            num_heads=config.key_value_heads,
            head_dim=config.head_width,
            sliding=window is not None and window <= capacity,
            dtype=weight.dtype,
            device=weight.device,
        )

    def gradient_checkpointing_enable(self) -> None:
        """Keep only each block's input for the backward, and compute the rest again there."""
        self.gradient_checkpointing = True

    def gradient_checkpointing_disable(self) -> None:
        """Keep everything that the backward needs."""
        self.gradient_checkpointing = False

    def set_dropout(self, p: float) -> None:
        """Use the dropout probability `p` at every site from now on."""
        self.config = replace(
            self.config, embedding_dropout_prob=p, hidden_dropout_prob=p, attention_probs_dropout_prob=p
        )
        for block in self.blocks:
            block.hidden_dropout_p = block.attention.dropout_p = p

    def resize_token_embeddings(self, new_size: int) -> None:
        """Grow the vocabulary to `new_size`, in place; see `fastssl.nn.init.grow_rows`."""
        grown = grow_rows(self.word.weight, new_size, self.config.initializer_range)
        self.word = nn.Embedding.from_pretrained(grown, freeze=False)
        self.config = replace(self.config, vocab_size=new_size)

    @classmethod
    def from_pretrained(cls, directory: str | Path, *, dtype: torch.dtype = torch.float32) -> "GPTModel":
        """Read a Hugging Face directory; see `fastssl.models.gpt_files.load`."""
        return gpt_files.load(cls, directory, dtype)

    def save_pretrained(self, directory: str | Path) -> None:
        """Write a directory that `transformers` loads; see `fastssl.models.gpt_files.save`."""
        gpt_files.save(self, directory)

    def _embed(self, batch: PackedBatch, position_ids: Tensor, tied: TiedEmbedding | None) -> Tensor:
        words = self.word(batch.input_ids) if tied is None else tied.read(batch.input_ids)
        return words if self.position is None else words + self.position(position_ids)

    def _rotation(self, position_ids: Tensor) -> Rotation | None:
        config = self.config
        if self.position is not None:
            return None
        return rotation(position_ids, config.head_width, config.rope_theta, config.rope_scaling)

    def _dropout_seeds(self, seed: int | Tensor | None, device: torch.device) -> DropoutSeeds:
        config = self.config
        p = max(config.embedding_dropout_prob, config.hidden_dropout_prob, config.attention_probs_dropout_prob)
        step_seed = resolve_step_seed(seed, device) if self.training and p > 0 else None
        return DropoutSeeds.derive(step_seed, config.num_hidden_layers)

    def _run(self, block: Callable, *arguments):
        # The generator's state is not saved: dropout repeats itself because its seeds are among the arguments.
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return checkpoint(block, *arguments, use_reentrant=False, preserve_rng_state=False)
        return block(*arguments)

    @torch.no_grad()
    def _scale_residual_maps(self) -> None:
        """Shrink what writes into the residual stream, so that its variance does not grow with depth (GPT-2 §2.3)."""
        for block in self.blocks:
            for written in (block.attention.output, block.mlp.down):
                written.weight.mul_((2 * len(self.blocks)) ** -0.5)


def _norm(config: GPTConfig) -> LayerNorm | RMSNorm:
    return NORMS[config.norm](config.hidden_size, config.norm_eps)


def _block(config: GPTConfig) -> CausalBlock:
    attention = CausalSelfAttention(
        config.hidden_size,
        num_heads=config.num_attention_heads,
        num_key_value_heads=config.key_value_heads,
        head_dim=config.head_width,
        dropout_p=config.attention_probs_dropout_prob,
        window=config.sliding_window,
        qkv_bias=config.has_qkv_bias,
        output_bias=config.bias,
    )
    mlp = GatedMLP if config.mlp == "gated" else MLP
    return CausalBlock(
        attention,
        mlp(config.hidden_size, config.mlp_width, config.hidden_act, bias=config.has_mlp_bias),
        attention_norm=_norm(config),
        mlp_norm=_norm(config),
        hidden_dropout_p=config.hidden_dropout_prob,
    )
