"""Labelled examples in batches, shuffled anew in each epoch, for every task of fine-tuning."""

from __future__ import annotations

import threading
from functools import lru_cache
from typing import Protocol

import numpy as np
from torch import Tensor

from fastssl.data.batch import PackedBatch

TOKENS_PER_BATCH = 4096
"""About how many tokens go through the model at once where nothing is trained."""


class EncodedExamples(Protocol):
    """Examples as token ids: texts, sentences of words, or windows of documents."""

    def __len__(self) -> int:
        """Return the number of examples."""
        ...

    def batch(self, numbers: np.ndarray, labels: Tensor | None = None) -> PackedBatch:
        """Return some examples as a batch, with what is theirs of `labels`."""
        ...


class ExampleBatches:
    """Labelled examples in batches of a fixed number, shuffled anew in each epoch; safe to use from several threads.

    Args:
        examples: the X encoded examples.
        labels: (X) or (X, C); (W) of the words of all examples, where these are words; (X, 2) of windows, the first and
            the last token of their answers.
        seed: of the order.
        batch_size: sequences per batch; the last batch of an epoch has what is left.
        rows: numbers of the examples that are used; None uses all.
    """

    def __init__(
        self,
        examples: EncodedExamples,
        labels: Tensor,
        *,
        seed: int,
        batch_size: int,
        rows: np.ndarray | None = None,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self.examples, self.labels, self.seed, self.batch_size = examples, labels, seed % 2**64, batch_size
        self.rows = np.arange(len(examples)) if rows is None else rows
        self._lock = threading.Lock()
        self._order = lru_cache(maxsize=2)(self._draw_order)

    def num_batches(self, epoch: int) -> int:
        """Return the number of batches, the same in every epoch."""
        return -(-len(self.rows) // self.batch_size)

    def batch(self, epoch: int, index: int) -> PackedBatch:
        """Return batch `index` of `epoch`, a function of the seed and the two."""
        if not 0 <= index < self.num_batches(epoch):
            raise ValueError(f"epoch {epoch} has batches 0 to {self.num_batches(epoch) - 1}, got index {index}")
        order = self.order(epoch)
        return self.examples.batch(order[index * self.batch_size : (index + 1) * self.batch_size], self.labels)

    def order(self, epoch: int) -> np.ndarray:
        """Return the numbers of the examples in the order of an epoch, int64; the last two orders are kept."""
        with self._lock:
            return self._order(epoch)

    def _draw_order(self, epoch: int) -> np.ndarray:
        return self.rows[np.random.default_rng((self.seed, epoch)).permutation(len(self.rows))]
