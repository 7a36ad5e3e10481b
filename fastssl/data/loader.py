"""Batches ahead of time: a background thread draws the next ones while the model works on this one."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

from fastssl.data.batch import PackedBatch

NumberedBatch = tuple[int, int, PackedBatch]
"""(epoch, index in the epoch, batch)."""


class BatchSource(Protocol):
    """What a loader reads: batches by (epoch, index), as `PretrainingData` has them."""

    def num_batches(self, epoch: int) -> int:
        """Return the number of batches of an epoch."""

    def batch(self, epoch: int, index: int) -> PackedBatch:
        """Return a batch."""


class Loader:
    """Endless iterator of (epoch, index, batch), epoch after epoch; also a context manager.

    The batches are the same for any `prefetch`. What goes wrong in the background is raised by the iteration that
    would have had the batch, and closes the loader. Use from one thread.
    """

    def __init__(self, data: BatchSource, *, start_batch: int = 0, prefetch: int = 4) -> None:
        """Start drawing.

        Args:
            data: where the batches come from.
            start_batch: number of the first batch, counted over all epochs from 0. Going there draws no batch.
            prefetch: number of batches that are drawn ahead.

        Raises:
            ValueError: for a negative `start_batch`, or nothing to draw ahead.
        """
        if start_batch < 0:
            raise ValueError(f"start_batch must be at least 0, got {start_batch}")
        if prefetch < 1:
            raise ValueError(f"prefetch must be at least 1, got {prefetch}")
        self._walk = _walk(data, start_batch)
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="fastssl-loader")
        self._ahead: deque[Future[NumberedBatch]] = deque()
        for _ in range(prefetch):
            self._draw_one_more()

    def __iter__(self) -> Iterator[NumberedBatch]:
        return self

    def __next__(self) -> NumberedBatch:
        if not self._ahead:
            raise ValueError("the loader is closed; make a new one whose start_batch is the next batch wanted")
        failure = self._ahead[0].exception()
        if failure is not None:
            self.close()
            raise failure
        self._draw_one_more()
        return self._ahead.popleft().result()

    def close(self) -> None:
        """Stop drawing and wait for the background thread. Closing twice is harmless; iterating further is an error."""
        self._ahead.clear()
        self._worker.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> "Loader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _draw_one_more(self) -> None:
        self._ahead.append(self._worker.submit(next, self._walk))


def locate_batch(data: BatchSource, number: int) -> tuple[int, int]:
    """Return (epoch, index) of batch `number`, counted over all epochs; counts the epochs before it, draws nothing."""
    epoch = 0
    while number >= data.num_batches(epoch):
        number -= data.num_batches(epoch)
        epoch += 1
    return epoch, number


def _walk(data: BatchSource, start_batch: int) -> Iterator[NumberedBatch]:
    epoch, first = locate_batch(data, start_batch)
    while True:
        for index in range(first, data.num_batches(epoch)):
            yield epoch, index, data.batch(epoch, index)
        epoch, first = epoch + 1, 0
