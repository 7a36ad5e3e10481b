"""Questions to train on, in batches."""

from __future__ import annotations

import threading
from functools import lru_cache

import numpy as np

from fastssl.data.batch import PackedBatch
from fastssl.tasks.question_windows import QuestionWindows


class QuestionData:
    """Windows with their answers in batches of a fixed number, shuffled anew in each epoch; safe for several threads.

    Args:
        windows: W of them.
        spans: (W, 2), as `window_spans` returns them; windows without an answer are left out.
        seed: of the order.
        batch_size: windows per batch; the last batch of an epoch has what is left.
    """

    def __init__(self, windows: QuestionWindows, spans: np.ndarray, *, seed: int, batch_size: int) -> None:
        self.windows, self.spans, self.seed, self.batch_size = windows, spans, seed % 2**64, batch_size
        self.numbers = np.flatnonzero(spans[:, 0] >= 0)
        self._lock = threading.Lock()
        self._order = lru_cache(maxsize=2)(self._draw_order)

    def __len__(self) -> int:
        return len(self.numbers)

    def num_batches(self, epoch: int) -> int:
        """Return the number of batches, the same in every epoch."""
        return -(-len(self) // self.batch_size)

    def batch(self, epoch: int, index: int) -> PackedBatch:
        """Return batch `index` of `epoch`, a function of the seed and the two."""
        if not 0 <= index < self.num_batches(epoch):
            raise ValueError(f"epoch {epoch} has batches 0 to {self.num_batches(epoch) - 1}, got index {index}")
        chosen = self.order(epoch)[index * self.batch_size : (index + 1) * self.batch_size]
        return self.windows.batch(chosen, self.spans)

    def order(self, epoch: int) -> np.ndarray:
        """Return the numbers of the windows in the order of an epoch, int64; the last two asked for are kept."""
        with self._lock:
            return self._order(epoch)

    def _draw_order(self, epoch: int) -> np.ndarray:
        return self.numbers[np.random.default_rng((self.seed, epoch)).permutation(len(self))]
