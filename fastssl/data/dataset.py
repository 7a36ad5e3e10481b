"""Batches by number: what step k sees is a pure function of (seed, epoch, k)."""

from typing import TYPE_CHECKING

import numpy as np
import torch

from fastssl.data.batch import PackedBatch
from fastssl.data.epoch_plans import EpochPlans
from fastssl.data.host import host_code
from fastssl.data.objectives import ObjectiveConfig, masking_rules
from fastssl.data.packing import check_batch_size
from fastssl.data.plan import EpochPlan, LengthIndex
from fastssl.data.tokenizer import SpecialTokens

if TYPE_CHECKING:
    from fastssl.data.shards import TokenShards


class PretrainingData:
    """The batches of a corpus under an objective, addressed by (epoch, index); safe to use from several threads."""

    def __init__(
        self,
        shards: "TokenShards",
        special: SpecialTokens,
        objective: ObjectiveConfig,
        *,
        seed: int,
        batch_size: int | None = None,
        tokens_per_batch: int | None = None,
    ) -> None:
        """Read the lengths of the corpus.

        Args:
            shards: the encoded corpus.
            special: ids of the special tokens.
            objective: what is to be predicted.
            seed: 64-bit seed of every random decision.
            batch_size: sequences per batch; the last batch of an epoch has what is left.
            tokens_per_batch: instead of `batch_size`: most tokens per batch, special ones included.

        Raises:
            ValueError: for a batch without a size or with two, a corpus without text, next-sentence prediction with
                one document, or special tokens outside the vocabulary.
        """
        check_batch_size(batch_size, tokens_per_batch, objective.max_seq_length)
        self.objective = objective
        self.seed = seed % 2**64
        self.batch_size, self.tokens_per_batch = batch_size, tokens_per_batch
        self.rules = masking_rules(objective, special, shards.vocab_size)
        self.lengths = LengthIndex.of(shards, objective.text_room)
        if self.lengths.num_tokens == 0:
            raise ValueError("the corpus holds no text; encode files with at least one document")
        if objective.sentence_objective == "nsp" and self.lengths.num_documents < 2:
            raise ValueError(
                "sentence_objective='nsp' needs at least 2 documents, as half of its second segments come from another "
                "one; the corpus has 1. Separate documents by blank lines, or choose 'sop' or 'none'"
            )
        self._tokens = [part.tokens for part in shards.parts]
        self._word_starts = [part.word_starts for part in shards.parts]
        self._part_offsets = np.cumsum([0] + [len(tokens) for tokens in self._tokens], dtype=np.int64)
        self._plans = EpochPlans(self._make_plan)

    def plan(self, epoch: int) -> EpochPlan:
        """Return the plan of an epoch; the last ones used are kept."""
        return self._plans[epoch]

    def num_batches(self, epoch: int) -> int:
        """Return the number of batches of an epoch; it varies a little between epochs, as examples do."""
        return self._plans.num_batches(epoch)

    def batch(self, epoch: int, index: int) -> PackedBatch:
        """Draw batch `index` of `epoch`.

        Raises:
            ValueError: if the epoch has no such batch.
        """
        return self.examples(epoch, self._plans.examples_of_batch(epoch, index))

    def examples(self, epoch: int, numbers: np.ndarray) -> PackedBatch:
        """Draw examples of an epoch by their numbers in its plan, (B) int64, as one batch."""
        plan = self.plan(epoch)
        segments = plan.segments[numbers]
        input_ids, cu_seqlens, position_ids, token_type_ids, masked_positions, masked_labels = (
            host_code().draw_examples(
                self._tokens,
                self._word_starts,
                self._part_offsets,
                segments,
                np.asarray(numbers, dtype=np.int64),
                seed=self.seed,
                epoch=epoch,
                rules=self.rules,
            )
        )
        labels = None if plan.labels is None else torch.from_numpy(plan.labels[numbers].astype(np.int64))
        return PackedBatch(
            input_ids=torch.from_numpy(input_ids),
            cu_seqlens=torch.from_numpy(cu_seqlens),
            max_seqlen=int(np.diff(cu_seqlens).max()),
            position_ids=torch.from_numpy(position_ids),
            token_type_ids=torch.from_numpy(token_type_ids),
            masked_positions=torch.from_numpy(masked_positions),
            masked_labels=torch.from_numpy(masked_labels),
            sentence_labels=labels,
        )

    def _make_plan(self, epoch: int) -> EpochPlan:
        plan = EpochPlan.make(
            self.lengths,
            self.objective,
            seed=self.seed,
            epoch=epoch,
            batch_size=self.batch_size,
            tokens_per_batch=self.tokens_per_batch,
        )
        if not plan.num_examples:
            raise ValueError(
                f"sentence_objective={self.objective.sentence_objective!r} finds no example in this corpus of "
                f"{self.lengths.num_tokens} tokens: two segments need two tokens of one document; choose 'none'"
            )
        return plan
