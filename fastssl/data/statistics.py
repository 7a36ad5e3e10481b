"""Lengths of a corpus under an objective: what padding would have wasted, how well packing fills."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fastssl.data.causal_plan import CausalPlan, document_bounds
from fastssl.data.objectives import ObjectiveConfig
from fastssl.data.plan import EpochPlan, LengthIndex

if TYPE_CHECKING:
    from fastssl.data.shards import TokenShards


@dataclass(frozen=True, kw_only=True, eq=False)
class LengthStatistics:
    """Counts over one epoch."""

    num_documents: int
    """Documents of the corpus."""
    num_sentences: int
    """Sentences of the corpus."""
    num_tokens: int
    """Tokens of the corpus, without special ones."""
    num_examples: int
    """Sequences of the epoch."""
    example_lengths: np.ndarray
    """(X) int64: tokens of each sequence, special ones included."""
    max_seq_length: int
    """Longest sequence allowed, in tokens."""
    num_batches: int
    """Batches of the epoch."""
    batch_fill: float | None
    """Share of the token budgets that the batches use; None for batches of a fixed number of sequences."""

    @property
    def mean_example_length(self) -> float:
        """Tokens of a sequence on average, special ones included."""
        return float(self.example_lengths.mean()) if self.num_examples else 0.0

    @property
    def padding_to_maximum(self) -> float:
        """Share of padding where every sequence were padded to `max_seq_length`."""
        return 1 - self.mean_example_length / self.max_seq_length

    def histogram(self, num_bins: int = 16) -> tuple[np.ndarray, np.ndarray]:
        """Return counts (num_bins) and bin edges (num_bins + 1) of the sequence lengths from 0 to the maximum."""
        return np.histogram(self.example_lengths, bins=num_bins, range=(0, self.max_seq_length))


def length_statistics(
    shards: "TokenShards",
    objective: ObjectiveConfig,
    *,
    seed: int = 0,
    batch_size: int | None = None,
    tokens_per_batch: int | None = None,
) -> LengthStatistics:
    """Plan the first epoch and count.

    Args:
        shards: the encoded corpus.
        objective: which kind of sequences, and how long.
        seed: 64-bit seed of the plan.
        batch_size: sequences per batch.
        tokens_per_batch: instead of `batch_size`: most tokens per batch.
    """
    lengths = LengthIndex.of(shards, objective.text_room)
    plan = EpochPlan.make(
        lengths,
        objective,
        seed=seed % 2**64,
        epoch=0,
        batch_size=batch_size,
        tokens_per_batch=tokens_per_batch,
    )
    budget = plan.num_batches * (tokens_per_batch or 0)
    return LengthStatistics(
        num_documents=lengths.num_documents,
        num_sentences=sum(len(part.sentence_offsets) - 1 for part in shards.parts),
        num_tokens=lengths.num_tokens,
        num_examples=plan.num_examples,
        example_lengths=plan.example_lengths,
        max_seq_length=objective.max_seq_length,
        num_batches=plan.num_batches,
        batch_fill=plan.num_tokens / budget if budget else None,
    )


def causal_length_statistics(
    shards: "TokenShards", max_seq_length: int, *, seed: int = 0, tokens_per_batch: int
) -> LengthStatistics:
    """Plan the first epoch of next-token prediction and count.

    Args:
        shards: the encoded corpus, of exact text.
        max_seq_length: longest piece of a document, in tokens.
        seed: 64-bit seed of the plan.
        tokens_per_batch: most tokens per batch.
    """
    bounds = document_bounds(shards)
    plan = CausalPlan.make(
        np.diff(bounds),
        max_seq_length=max_seq_length,
        moving_cuts=True,
        seed=seed % 2**64,
        epoch=0,
        tokens_per_batch=tokens_per_batch,
    )
    budget = plan.num_batches * tokens_per_batch
    return LengthStatistics(
        num_documents=len(bounds) - 1,
        num_sentences=sum(len(part.sentence_offsets) - 1 for part in shards.parts),
        num_tokens=int(bounds[-1]),
        num_examples=plan.num_examples,
        example_lengths=plan.ends - plan.begins,
        max_seq_length=max_seq_length,
        num_batches=plan.num_batches,
        batch_fill=plan.num_tokens / budget if budget else None,
    )
