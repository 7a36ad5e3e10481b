"""Batches for causal language models by number: what step k sees is a pure function of (seed, epoch, k)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from fastssl.data.batch import PackedBatch
from fastssl.data.causal_plan import CausalPlan, document_bounds
from fastssl.data.epoch_plans import EpochPlans
from fastssl.data.packing import check_batch_size
from fastssl.data.tokenizer import TextBounds

if TYPE_CHECKING:
    from fastssl.data.shards import TokenShards


@dataclass(frozen=True, kw_only=True)
class CausalObjectiveConfig:
    """What a causal language model is to predict, and from what."""

    objective: Literal["clm"] = "clm"
    """clm: predict each token from those before it."""
    max_seq_length: int = 256
    """Longest sequence in tokens; longer documents are cut, at other places in each epoch."""

    def __post_init__(self) -> None:
        if self.objective != "clm":
            raise ValueError(f"objective must be clm, got {self.objective!r}")
        if self.max_seq_length < 2:
            raise ValueError(f"max_seq_length must be at least 2, got {self.max_seq_length}")


class CausalData:
    """The batches of a corpus for next-token prediction, addressed by (epoch, index); for several threads at once.

    A document is bos, its tokens, eos. It is cut into pieces; each piece begins with the token that the one before it
    predicted last, so that in an epoch every token of text, and every eos, is predicted exactly once. A piece is a
    sequence of its own in the batch: nothing attends to another document, nor to an earlier piece.
    """

    def __init__(
        self,
        shards: "TokenShards",
        bounds: TextBounds,
        objective: CausalObjectiveConfig,
        *,
        seed: int,
        batch_size: int | None = None,
        tokens_per_batch: int | None = None,
        moving_cuts: bool = True,
    ) -> None:
        """Read the lengths of the corpus.

        Args:
            shards: the encoded corpus.
            bounds: ids of the tokens around a document.
            objective: how long sequences are.
            seed: 64-bit seed of every random decision.
            batch_size: sequences per batch; the last batch of an epoch has what is left.
            tokens_per_batch: instead of `batch_size`: most tokens per batch.
            moving_cuts: cut documents at other places in each epoch; False, to measure: every `max_seq_length` tokens.

        Raises:
            ValueError: for a batch without a size or with two, a corpus without text, or bounds outside the vocabulary.
        """
        check_batch_size(batch_size, tokens_per_batch, objective.max_seq_length)
        if not 0 <= min(bounds.bos, bounds.eos) <= max(bounds.bos, bounds.eos) < shards.vocab_size:
            raise ValueError(
                f"the tokens around a document have ids {bounds.bos} and {bounds.eos}, but the shards' vocabulary has "
                f"{shards.vocab_size}; encode the text again with this tokenizer"
            )
        self.objective, self.bounds = objective, bounds
        self.seed = seed % 2**64
        self.batch_size, self.tokens_per_batch = batch_size, tokens_per_batch
        self.moving_cuts = moving_cuts
        self.document_bounds = document_bounds(shards)
        if self.num_documents == 0:
            raise ValueError("the corpus holds no text; encode files with at least one document")
        self._tokens = [part.tokens for part in shards.parts]
        self._part_offsets = np.cumsum([0] + [len(tokens) for tokens in self._tokens], dtype=np.int64)
        self._plans = EpochPlans(self._make_plan)

    @property
    def num_documents(self) -> int:
        """Documents that hold at least one token."""
        return len(self.document_bounds) - 1

    def plan(self, epoch: int) -> CausalPlan:
        """Return the plan of an epoch; the last ones used are kept."""
        return self._plans[epoch]

    def num_batches(self, epoch: int) -> int:
        """Return the number of batches of an epoch; it varies a little between epochs, as cuts do."""
        return self._plans.num_batches(epoch)

    def batch(self, epoch: int, index: int) -> PackedBatch:
        """Draw batch `index` of `epoch`.

        Raises:
            ValueError: if the epoch has no such batch.
        """
        return self.pieces(epoch, self._plans.examples_of_batch(epoch, index))

    def pieces(self, epoch: int, numbers: np.ndarray) -> PackedBatch:
        """Draw pieces of an epoch by their numbers in its plan, (B) int64, as one batch."""
        plan = self.plan(epoch)
        documents, begins, ends = plan.documents[numbers], plan.begins[numbers], plan.ends[numbers]
        lengths = ends - begins
        cu_seqlens = np.concatenate(([0], np.cumsum(lengths)))
        position_ids = np.arange(cu_seqlens[-1]) - np.repeat(cu_seqlens[:-1], lengths)
        places = position_ids + np.repeat(begins, lengths)
        first_tokens, last_places = self.document_bounds[documents], np.diff(self.document_bounds)[documents]
        # Place 0 of a document is bos, place j its j-th token, so place j predicts the token of index j.
        following = np.repeat(first_tokens, lengths) + places
        is_last = places == np.repeat(last_places, lengths)
        next_tokens = np.where(is_last, self.bounds.eos, self._at(np.where(is_last, following - 1, following)))
        input_ids = np.empty_like(next_tokens)
        input_ids[1:] = next_tokens[:-1]
        starts = cu_seqlens[:-1]
        input_ids[starts] = np.where(begins == 0, self.bounds.bos, self._at(np.maximum(following[starts] - 1, 0)))
        return PackedBatch(
            input_ids=torch.from_numpy(input_ids),
            cu_seqlens=torch.from_numpy(cu_seqlens.astype(np.int32)),
            max_seqlen=int(lengths.max()),
            position_ids=torch.from_numpy(position_ids),
            token_type_ids=torch.zeros(len(input_ids), dtype=torch.int64),
            next_tokens=torch.from_numpy(next_tokens),
        )

    def _at(self, indices: np.ndarray) -> np.ndarray:
        """Return the corpus's tokens at indices over all parts, (K) int64 both."""
        if len(self._tokens) == 1:
            return self._tokens[0][indices].astype(np.int64)
        found = np.empty(len(indices), dtype=np.int64)
        parts = np.searchsorted(self._part_offsets, indices, side="right") - 1
        for part in np.unique(parts):
            here = parts == part
            found[here] = self._tokens[part][indices[here] - self._part_offsets[part]]
        return found

    def _make_plan(self, epoch: int) -> CausalPlan:
        return CausalPlan.make(
            np.diff(self.document_bounds),
            max_seq_length=self.objective.max_seq_length,
            moving_cuts=self.moving_cuts,
            seed=self.seed,
            epoch=epoch,
            batch_size=self.batch_size,
            tokens_per_batch=self.tokens_per_batch,
        )
