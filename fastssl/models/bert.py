"""BERT: a bidirectional encoder, pretrained by filling masked tokens and judging pairs of segments.

Source: Devlin, Chang, Lee and Toutanova 2018, "BERT: Pre-training of Deep Bidirectional Transformers" (1810.04805).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastssl.data.batch import IGNORED_LABEL, PackedBatch
from fastssl.models import bert_files
from fastssl.models.bert_config import BertConfig
from fastssl.models.door import View, pack
from fastssl.models.losses import LossSum
from fastssl.nn.embedding import Embeddings
from fastssl.nn.encoder import DropoutSeeds, PostNormEncoder, PreNormEncoder, Trace
from fastssl.nn.heads import MaskedLMHead, Pooler
from fastssl.nn.init import initialize
from fastssl.nn.tied_embedding import TiedEmbedding
from fastssl.ops.philox import resolve_step_seed


@dataclass(kw_only=True)
class BertOutput:
    """What `BertModel` returns. Shapes are given for packed input / for padded input, whose padding rows are 0."""

    last_hidden_state: Tensor
    """(N, E) / (B, T, E)."""
    pooler_output: Tensor | None = None
    """(B, E); None without a pooler."""
    hidden_states: tuple[Tensor, ...] | None = None
    """L + 1 tensors (N, E) / (B, T, E): what enters each block, and the last hidden state."""
    attentions: tuple[tuple[Tensor, ...], ...] | tuple[Tensor, ...] | None = None
    """L tuples of B tensors (H, T_b, T_b) / L tensors (B, H, T, T): probabilities before dropout."""


@dataclass(kw_only=True)
class BertPretrainingOutput:
    """What the models with pretraining heads return. Shapes are given for packed input / for padded input."""

    loss: Tensor | None = None
    """0-d: for each kind of label present, the sum of its losses divided by its denominator; None without labels."""
    metrics: dict[str, Tensor] = field(default_factory=dict)
    """Detached sums: "masked_lm_loss_sum", "masked_lm_correct", "masked_lm_count", and the same of "sentence"."""
    logits: Tensor | None = None
    """(N, V) / (B, T, V), 0 at padding; by default only without labels, since the loss does not need them."""
    seq_relationship_logits: Tensor | None = None
    """(B, 2): class 1 is a random second segment (NSP) or swapped segments (SOP); None without that head."""
    last_hidden_state: Tensor
    """(N, E) / (B, T, E), 0 at padding."""
    hidden_states: tuple[Tensor, ...] | None = None
    """As in `BertOutput`."""
    attentions: tuple[tuple[Tensor, ...], ...] | tuple[Tensor, ...] | None = None
    """As in `BertOutput`."""

    @property
    def prediction_logits(self) -> Tensor | None:
        """`logits`, by the name that Hugging Face gives them beside a sentence head."""
        return self.logits


class BertModel(nn.Module):
    """The encoder, from token ids to hidden states.

    A model with a head calls its `encode`, so hooks belong on its parts.

    Args:
        config: its sizes.
        add_pooling_layer: whether it has the dense layer over the first token.
    """

    def __init__(self, config: BertConfig, add_pooling_layer: bool = True) -> None:
        super().__init__()
        self.config = config
        self.embeddings = Embeddings(
            config.vocab_size,
            config.hidden_size,
            max_positions=config.max_position_embeddings,
            num_token_types=config.type_vocab_size,
            norm_eps=config.layer_norm_eps,
            padding_id=config.pad_token_id,
        )
        encoder = PostNormEncoder if config.norm_position == "post" else PreNormEncoder
        self.encoder = encoder(
            config.num_hidden_layers,
            hidden_size=config.hidden_size,
            num_heads=config.num_attention_heads,
            intermediate_size=config.intermediate_size,
            activation=config.hidden_act,
            norm_eps=config.layer_norm_eps,
            hidden_dropout_p=config.hidden_dropout_prob,
            attention_dropout_p=config.attention_probs_dropout_prob,
        )
        self.pooler = Pooler(config.hidden_size) if add_pooling_layer else None
        initialize(self, config.initializer_range)

    def forward(
        self,
        batch: PackedBatch | None = None,
        *,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        seed: int | Tensor | None = None,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
    ) -> BertOutput:
        """Encode a packed batch, or padded tensors.

        Args:
            batch: packed tokens.
            input_ids, attention_mask, token_type_ids, position_ids: (B, T), instead of `batch`; see
                `PackedBatch.from_padded`.
            seed: of this step's dropout, in training mode; None draws one from torch's generator.
            output_hidden_states: return every layer's hidden states.
            output_attentions: return every layer's attention probabilities (quadratic memory, slow).
        """
        view = View(batch is None, output_hidden_states, output_attentions)
        batch = self.pack(
            batch,
            input_ids=input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
        )
        hidden_states = self.encode(batch, seed, view.trace)
        pooled = None if self.pooler is None else self.pooler(batch.first_rows(hidden_states))
        return BertOutput(
            last_hidden_state=view.tokens(batch, hidden_states), pooler_output=pooled, **view.traced(batch)
        )

    def pack(self, batch: PackedBatch | None, **padded: Tensor | None) -> PackedBatch:
        """Return a packed batch as it is, or padded tensors packed, once they fit this body; see `door.pack`."""
        return pack(
            batch,
            vocab_size=self.config.vocab_size,
            max_positions=self.config.max_position_embeddings,
            num_token_types=self.config.type_vocab_size,
            **padded,
        )

    def encode(
        self,
        batch: PackedBatch,
        seed: int | Tensor | None = None,
        trace: Trace | None = None,
        tied: TiedEmbedding | None = None,
    ) -> Tensor:
        """Return the last hidden states, (N, E), of a packed batch.

        Args:
            batch: packed tokens.
            seed: of this step's dropout, in training mode; None draws one from torch's generator.
            trace: takes down what it asks for.
            tied: the word embedding, where a decoder shares it in this pass.
        """
        embedded, seeds = self._embed(batch, seed, tied)
        return self.encoder(embedded, batch.cu_seqlens, batch.max_seqlen, seeds, trace or Trace())

    def encode_first_tokens(self, batch: PackedBatch, seed: int | Tensor | None = None) -> Tensor:
        """Return the last hidden states of each sequence's first token, (B, E): what a pooler reads, for less work."""
        embedded, seeds = self._embed(batch, seed)
        return self.encoder(embedded, batch.cu_seqlens, batch.max_seqlen, seeds, Trace(), first_only=True)

    def _embed(
        self, batch: PackedBatch, seed: int | Tensor | None, tied: TiedEmbedding | None = None
    ) -> tuple[Tensor, DropoutSeeds]:
        config = self.config
        dropped = self.training and (config.hidden_dropout_prob > 0 or config.attention_probs_dropout_prob > 0)
        step_seed = resolve_step_seed(seed, batch.input_ids.device) if dropped else None
        embedded = self.embeddings(batch.input_ids, batch.position_ids, batch.token_type_ids, tied)
        return embedded, DropoutSeeds.derive(step_seed, config.num_hidden_layers)

    def gradient_checkpointing_enable(self) -> None:
        """Keep only each block's input for the backward, and compute the rest again there."""
        self.encoder.gradient_checkpointing = True

    def gradient_checkpointing_disable(self) -> None:
        """Keep everything that the backward needs."""
        self.encoder.gradient_checkpointing = False

    def set_dropout(self, p: float) -> None:
        """Use the dropout probability `p` at every site from now on."""
        self.config = replace(self.config, hidden_dropout_prob=p, attention_probs_dropout_prob=p)
        self.encoder.set_dropout(p)

    def resize_token_embeddings(self, new_size: int) -> None:
        """Grow the vocabulary to `new_size`, in place; see `Embeddings.grow`."""
        self.embeddings.grow(new_size, self.config.initializer_range)
        self.config = replace(self.config, vocab_size=new_size)

    @classmethod
    def from_pretrained(cls, directory: str | Path, *, dtype: torch.dtype = torch.float32) -> "BertModel":
        """Read a Hugging Face directory; see `fastssl.models.bert_files.load`."""
        return bert_files.load(cls, directory, dtype)

    def save_pretrained(self, directory: str | Path) -> None:
        """Write a directory that `transformers` loads; see `fastssl.models.bert_files.save`."""
        bert_files.save(self, directory)


class BertForMaskedLM(nn.Module):
    """BERT with the masked-LM head and without a pooler.

    Args:
        config: its sizes.
    """

    has_pooler: ClassVar[bool] = False

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.bert = BertModel(config, add_pooling_layer=self.has_pooler)
        self.masked_lm_head = MaskedLMHead(
            config.hidden_size,
            config.vocab_size,
            activation=config.hidden_act,
            norm_eps=config.layer_norm_eps,
            tied=config.tie_word_embeddings,
        )
        initialize(self.masked_lm_head, config.initializer_range)

    @property
    def config(self) -> BertConfig:
        """Sizes of the model."""
        return self.bert.config

    def forward(
        self,
        batch: PackedBatch | None = None,
        *,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        labels: Tensor | None = None,
        seed: int | Tensor | None = None,
        loss_denominators: Mapping[str, int] | None = None,
        output_logits: bool | None = None,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
    ) -> BertPretrainingOutput:
        """Predict masked tokens; the head sees only rows that carry a label, unless logits are asked for.

        Args:
            batch: packed tokens, with `masked_positions` and `masked_labels` for a loss.
            input_ids, attention_mask, token_type_ids, position_ids: (B, T), instead of `batch`.
            labels: (B, T) int64, -100 where there is nothing to predict.
            seed: of this step's dropout, in training mode; None draws one from torch's generator.
            loss_denominators: "masked_lm" -> number of targets of the whole optimizer step; None: of this batch.
            output_logits: compute every token's scores; None: only where there are no labels.
            output_hidden_states: return every layer's hidden states.
            output_attentions: return every layer's attention probabilities (quadratic memory, slow).
        """
        view = View(batch is None, output_hidden_states, output_attentions)
        batch = self.bert.pack(
            batch,
            input_ids=input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            labels=labels,
        )
        tied = self.bert.embeddings.tie()
        hidden_states = self.bert.encode(batch, seed, view.trace, tied)
        losses = LossSum(batch.target_counts() if loss_denominators is None else loss_denominators)
        self._add_masked_lm_loss(losses, hidden_states, batch, tied)
        return self._output(view, batch, hidden_states, losses, output_logits)

    def masked_lm_logits(self, hidden_states: Tensor) -> Tensor:
        """Return the scores (M, V) of chosen rows (M, E) of the last hidden states."""
        return self.masked_lm_head(hidden_states, self.bert.embeddings.word.weight)

    def gradient_checkpointing_enable(self) -> None:
        """Keep only each block's input for the backward, and compute the rest again there."""
        self.bert.gradient_checkpointing_enable()

    def gradient_checkpointing_disable(self) -> None:
        """Keep everything that the backward needs."""
        self.bert.gradient_checkpointing_disable()

    def set_dropout(self, p: float) -> None:
        """Use the dropout probability `p` at every site from now on."""
        self.bert.set_dropout(p)

    def resize_token_embeddings(self, new_size: int) -> None:
        """Grow the vocabulary to `new_size`, in place; see `Embeddings.grow` and `MaskedLMHead.grow`."""
        self.masked_lm_head.grow(new_size, self.config.initializer_range)
        self.bert.resize_token_embeddings(new_size)

    @classmethod
    def from_pretrained(cls, directory: str | Path, *, dtype: torch.dtype = torch.float32) -> "BertForMaskedLM":
        """Read a Hugging Face directory; see `fastssl.models.bert_files.load`."""
        return bert_files.load(cls, directory, dtype)

    def save_pretrained(self, directory: str | Path) -> None:
        """Write a directory that `transformers` loads; see `fastssl.models.bert_files.save`."""
        bert_files.save(self, directory)

    def _add_masked_lm_loss(
        self, losses: LossSum, hidden_states: Tensor, batch: PackedBatch, tied: TiedEmbedding
    ) -> None:
        if batch.masked_labels is None:
            return
        labels, count, ignored = batch.masked_labels, batch.masked_labels.numel(), None
        if batch.has_filler:
            count, ignored = (labels != IGNORED_LABEL).sum(), IGNORED_LABEL
        rows = hidden_states.index_select(0, batch.masked_positions)
        loss_sum, stats = self.masked_lm_head.loss(rows, labels, tied.weight, ignore_index=ignored)
        losses.add("masked_lm", loss_sum, stats.num_correct, count)

    def _output(
        self, view: View, batch: PackedBatch, hidden_states: Tensor, losses: LossSum, output_logits: bool | None
    ) -> BertPretrainingOutput:
        wants_logits = losses.loss is None if output_logits is None else output_logits
        return BertPretrainingOutput(
            loss=losses.loss,
            metrics=losses.metrics,
            logits=view.tokens(batch, self.masked_lm_logits(hidden_states)) if wants_logits else None,
            last_hidden_state=view.tokens(batch, hidden_states),
            **view.traced(batch),
        )


class BertForPreTraining(BertForMaskedLM):
    """BERT with both heads of its pretraining: masked LM, and the judgement of segment pairs (NSP or SOP).

    Args:
        config: its sizes.
    """

    has_pooler: ClassVar[bool] = True

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config)
        self.sentence_head = nn.Linear(config.hidden_size, 2)
        initialize(self.sentence_head, config.initializer_range)

    def forward(
        self,
        batch: PackedBatch | None = None,
        *,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        labels: Tensor | None = None,
        next_sentence_label: Tensor | None = None,
        seed: int | Tensor | None = None,
        loss_denominators: Mapping[str, int] | None = None,
        output_logits: bool | None = None,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
    ) -> BertPretrainingOutput:
        """Predict masked tokens and judge segment pairs; arguments as in `BertForMaskedLM.forward`, and:

        Args:
            batch: with `sentence_labels` for the second loss.
            next_sentence_label: (B) int64, the same for padded input.
            loss_denominators: with "sentence" beside "masked_lm".
        """
        view = View(batch is None, output_hidden_states, output_attentions)
        batch = self.bert.pack(
            batch,
            input_ids=input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            labels=labels,
            sentence_labels=next_sentence_label,
        )
        tied = self.bert.embeddings.tie()
        hidden_states = self.bert.encode(batch, seed, view.trace, tied)
        sentence_logits = self.sentence_head(self.bert.pooler(batch.first_rows(hidden_states)))
        losses = LossSum(batch.target_counts() if loss_denominators is None else loss_denominators)
        self._add_masked_lm_loss(losses, hidden_states, batch, tied)
        if batch.sentence_labels is not None:
            loss_sum = F.cross_entropy(sentence_logits.float(), batch.sentence_labels, reduction="sum")
            num_correct = (sentence_logits.argmax(-1) == batch.sentence_labels).sum()
            losses.add("sentence", loss_sum, num_correct, batch.num_sequences)
        output = self._output(view, batch, hidden_states, losses, output_logits)
        output.seq_relationship_logits = sentence_logits
        return output
