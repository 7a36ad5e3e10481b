"""The plan of a causal epoch: where documents are cut into pieces, and which pieces make which batch."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fastssl.data.numpy_host import philox
from fastssl.data.packing import check_batch_size, shuffled_batches

if TYPE_CHECKING:
    from fastssl.data.shards import TokenShards


def document_bounds(shards: "TokenShards") -> np.ndarray:
    """Return (D + 1) int64: first token of each document, numbered over all parts; every document has one."""
    bounds, begin = [np.zeros(1, dtype=np.int64)], 0
    for part in shards.parts:
        bounds.append(np.asarray(part.sentence_offsets)[np.asarray(part.document_offsets)] + begin)
        begin += len(part.tokens)
    return np.unique(np.concatenate(bounds))


@dataclass(frozen=True, kw_only=True, eq=False)
class CausalPlan:
    """Pieces and batches of one epoch."""

    documents: np.ndarray
    """(X) int64: the document of each piece."""
    begins: np.ndarray
    """(X) int64: where the piece begins in its document, which begins with the token before its text at 0."""
    ends: np.ndarray
    """(X) int64: where it ends. It predicts what comes one token later, so the next piece begins with its last word."""
    batch_offsets: np.ndarray
    """(G + 1) int64: where each batch begins in `batch_examples`."""
    batch_examples: np.ndarray
    """(X) int64: pieces in the order in which the epoch shows them."""

    @property
    def num_examples(self) -> int:
        """X, the pieces of the epoch."""
        return len(self.documents)

    @property
    def num_batches(self) -> int:
        """G, the batches of the epoch."""
        return len(self.batch_offsets) - 1

    @property
    def num_tokens(self) -> int:
        """Tokens that the epoch reads, and as many that it predicts."""
        return int((self.ends - self.begins).sum())

    def examples_of_batch(self, index: int) -> np.ndarray:
        """Return the piece numbers of a batch."""
        return self.batch_examples[self.batch_offsets[index] : self.batch_offsets[index + 1]]

    @classmethod
    def make(
        cls,
        document_lengths: np.ndarray,
        *,
        max_seq_length: int,
        moving_cuts: bool,
        seed: int,
        epoch: int,
        batch_size: int | None = None,
        tokens_per_batch: int | None = None,
    ) -> "CausalPlan":
        """Plan an epoch.

        A document of n tokens of text is read from the token before them to the n-th, n + 1 in all, each of which
        predicts the one behind it, the last one the end of the document. What does not fit into one piece is cut every
        `max_seq_length` tokens.

        Args:
            document_lengths: (D) int64: tokens of text, n.
            max_seq_length: longest piece, in tokens.
            moving_cuts: draw the first piece of a document that is cut between 1 and `max_seq_length` tokens long, anew
                in each epoch, so that a token is not always predicted from as much.
            seed: 64-bit key.
            epoch: number of the pass over the corpus, below 2^32.
            batch_size: pieces per batch; the last batch of the epoch has what is left.
            tokens_per_batch: instead of `batch_size`: most tokens per batch, filled by best fit.

        Raises:
            ValueError: for no batch size or two, or a budget below the longest piece.
        """
        check_batch_size(batch_size, tokens_per_batch, max_seq_length)
        lengths = document_lengths + 1
        firsts = np.full_like(lengths, max_seq_length)
        if moving_cuts:
            cut = np.flatnonzero(lengths > max_seq_length)
            firsts[cut] = _first_lengths(cut, max_seq_length, seed, epoch)
        firsts = np.minimum(firsts, lengths)
        counts = 1 + -(-(lengths - firsts) // max_seq_length)
        documents = np.repeat(np.arange(len(lengths)), counts)
        numbers = np.arange(len(documents)) - np.repeat(np.cumsum(counts) - counts, counts)
        ends = np.minimum(firsts[documents] + numbers * max_seq_length, lengths[documents])
        begins = np.where(numbers == 0, 0, firsts[documents] + (numbers - 1) * max_seq_length)
        offsets, order = shuffled_batches(
            ends - begins, seed=seed, epoch=epoch, batch_size=batch_size, tokens_per_batch=tokens_per_batch
        )
        return cls(documents=documents, begins=begins, ends=ends, batch_offsets=offsets, batch_examples=order)


def _first_lengths(documents: np.ndarray, max_seq_length: int, seed: int, epoch: int) -> np.ndarray:
    """Draw a length from 1 to `max_seq_length` for each document, uniformly."""
    high_half = philox.draws(seed, philox.DOCUMENT, epoch, documents, 0)[:, 0] >> np.uint64(32)
    return 1 + (high_half * np.uint64(max_seq_length) >> np.uint64(32)).astype(np.int64)
