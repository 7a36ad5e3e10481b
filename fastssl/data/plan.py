"""The plan of an epoch: which pieces make which example, which examples make which batch.

It is computed from (seed, epoch, lengths) alone, in seconds, without reading a token.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from fastssl.data.host import host_code
from fastssl.data.objectives import SENTENCE_OBJECTIVE_CODES, ObjectiveConfig, probability_threshold
from fastssl.data.packing import check_batch_size, shuffled_batches

if TYPE_CHECKING:
    from fastssl.data.shards import ShardPart, TokenShards


@dataclass(frozen=True, kw_only=True, eq=False)
class LengthIndex:
    """Where the corpus may be cut: the only thing that a plan knows of it."""

    piece_offsets: np.ndarray
    """(P + 1) int64: first token of each piece: a sentence, or a part of one that is longer than the room."""
    document_offsets: np.ndarray
    """(D + 1) int64: first piece of each document; documents without a token are left out."""
    room: int
    """Longest piece, in tokens."""

    @property
    def num_documents(self) -> int:
        """Documents that hold at least one token."""
        return len(self.document_offsets) - 1

    @property
    def num_tokens(self) -> int:
        """Tokens of the corpus."""
        return int(self.piece_offsets[-1])

    @classmethod
    def of(cls, shards: "TokenShards", room: int) -> "LengthIndex":
        """Read the sentence lengths of all parts, and cut sentences of more than `room` tokens between two words."""
        pieces, documents, begin = [np.zeros(1, dtype=np.int64)], [np.zeros(1, dtype=np.int64)], 0
        for part in shards.parts:
            sentences = np.asarray(part.sentence_offsets)
            pieces.append(np.union1d(sentences, _cuts(part, room)) + begin)
            documents.append(sentences[np.asarray(part.document_offsets)] + begin)
            begin += len(part.tokens)
        piece_offsets = _distinct(np.concatenate(pieces))
        document_starts = _distinct(np.concatenate(documents))
        return cls(
            piece_offsets=piece_offsets,
            document_offsets=np.searchsorted(piece_offsets, document_starts),
            room=room,
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class EpochPlan:
    """Examples and batches of one epoch."""

    segments: np.ndarray
    """(X, S, 2) int64: begin and end, in tokens of the corpus, of the S segments of each example."""
    labels: np.ndarray | None
    """(X) int8: 1 = random next sentence, or swapped; None without a sentence objective."""
    batch_offsets: np.ndarray
    """(G + 1) int64: where each batch begins in `batch_examples`."""
    batch_examples: np.ndarray
    """(X) int64: examples in the order in which the epoch shows them."""

    @property
    def num_examples(self) -> int:
        """X, the examples of the epoch."""
        return len(self.segments)

    @property
    def num_batches(self) -> int:
        """G, the batches of the epoch."""
        return len(self.batch_offsets) - 1

    @cached_property
    def example_lengths(self) -> np.ndarray:
        """(X) int64: tokens of each example, special ones included."""
        return example_lengths(self.segments)

    @property
    def num_tokens(self) -> int:
        """Tokens of the epoch, special ones included."""
        return int(self.example_lengths.sum())

    def examples_of_batch(self, index: int) -> np.ndarray:
        """Return the example numbers of a batch."""
        return self.batch_examples[self.batch_offsets[index] : self.batch_offsets[index + 1]]

    def batch_tokens(self) -> np.ndarray:
        """Return (G) int64: the tokens of each batch, special ones included."""
        if not self.num_batches:
            return np.zeros(0, dtype=np.int64)
        return np.add.reduceat(self.example_lengths[self.batch_examples], self.batch_offsets[:-1])

    @classmethod
    def make(
        cls,
        lengths: LengthIndex,
        objective: ObjectiveConfig,
        *,
        seed: int,
        epoch: int,
        batch_size: int | None = None,
        tokens_per_batch: int | None = None,
    ) -> "EpochPlan":
        """Plan an epoch.

        Args:
            lengths: of the corpus, with the room of `objective`.
            objective: which kind of examples.
            seed: 64-bit key.
            epoch: number of the pass over the corpus, below 2^32.
            batch_size: sequences per batch; the last batch of the epoch has what is left.
            tokens_per_batch: instead of `batch_size`: most tokens per batch, filled by best fit.

        Raises:
            ValueError: for no batch size or two, or a budget below the longest sequence.
        """
        check_batch_size(batch_size, tokens_per_batch, objective.max_seq_length)
        segments, labels = host_code().plan_examples(
            lengths.piece_offsets,
            lengths.document_offsets,
            seed=seed,
            epoch=epoch,
            sentence_objective=SENTENCE_OBJECTIVE_CODES[objective.sentence_objective],
            room=lengths.room,
            short_threshold=probability_threshold(objective.short_sequence_rate),
        )
        offsets, order = shuffled_batches(
            example_lengths(segments),
            seed=seed,
            epoch=epoch,
            batch_size=batch_size,
            tokens_per_batch=tokens_per_batch,
        )
        return cls(
            segments=segments,
            labels=None if objective.sentence_objective == "none" else labels,
            batch_offsets=offsets,
            batch_examples=order,
        )


def example_lengths(segments: np.ndarray) -> np.ndarray:
    """Return (X) int64: tokens of examples with segments (X, S, 2), [CLS] and one [SEP] per segment included."""
    return (segments[..., 1] - segments[..., 0]).sum(axis=1) + 1 + segments.shape[1]


def _cuts(part: "ShardPart", room: int) -> np.ndarray:
    """Return the tokens at which over-long sentences of a part are cut: at the last word start that fits."""
    offsets, cuts = np.asarray(part.sentence_offsets), []
    for sentence in np.flatnonzero(np.diff(offsets) > room).tolist():
        begin, end = offsets[sentence : sentence + 2].tolist()
        while end - begin > room:
            word_starts = np.flatnonzero(part.word_starts[begin + 1 : begin + room + 1])
            begin += int(word_starts[-1]) + 1 if len(word_starts) else room
            cuts.append(begin)
    return np.array(cuts, dtype=np.int64)


def _distinct(ascending: np.ndarray) -> np.ndarray:
    return ascending[np.concatenate(([True], np.diff(ascending) > 0))]
