"""What training asks of a model and of data, and how a run walks over batches.

Batches have one global number g = 0, 1, 2, ... that runs through epoch after epoch. With several processes, process r
of W takes the batches with g mod W = r; one optimizer step uses W x gradient_accumulation_steps consecutive ones.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor


class Batch(Protocol):
    """What training reads from a batch."""

    num_tokens: int

    def target_counts(self) -> dict[str, int]:
        """Return the number of predictions of each kind, such as {"masked_lm": 76}."""

    def to(self, device: torch.device, *, non_blocking: bool = False) -> "Batch":
        """Return the batch on a device."""

    def pin_memory(self) -> "Batch":
        """Return the batch in memory from which a GPU copies while the host goes on; asked for with a GPU alone."""

    def record_stream(self, stream: torch.Stream) -> None:
        """Tell the allocator of a stream that uses the batch; asked for with a GPU alone."""


class BatchSource(Protocol):
    """Data whose batches are a pure function of (epoch, index)."""

    def num_batches(self, epoch: int) -> int:
        """Return the number of batches in an epoch."""

    def batch(self, epoch: int, index: int) -> Batch:
        """Return one batch."""


class ModelOutput(Protocol):
    """What training reads from a model's answer."""

    loss: Tensor
    metrics: Mapping[str, Tensor]


class TrainableModel(Protocol):
    """What training asks of a model, beside being an nn.Module."""

    config: object

    def __call__(self, batch: Batch, *, loss_denominators: Mapping[str, int] | None = None) -> ModelOutput:
        """Return the loss, and sums named "<kind>_loss_sum", "<kind>_correct", "<kind>_count"."""

    def save_pretrained(self, directory: Path) -> None:
        """Write the weights and the config."""

    @classmethod
    def from_pretrained(cls, directory: Path) -> "TrainableModel":
        """Return a model with the weights of such a directory; asked for when a run is resumed."""


class InterleavedSource:
    """Every `size`-th batch of a source, beginning with number `rank`, in epochs of the same borders.

    Args:
        source: the batches of all processes.
        rank: number of this process.
        size: number of processes.
        epoch_sizes: what is known of the source's numbers of batches, for epochs 0, 1, ...: a resumed run need not
            plan the epochs that are behind it to know where it stands.
    """

    def __init__(self, source: BatchSource, rank: int, size: int, epoch_sizes: Sequence[int] = ()) -> None:
        self._source, self._rank, self._size = source, rank, size
        self.epoch_sizes = list(epoch_sizes)

    def num_batches(self, epoch: int) -> int:
        """Return this process's number of batches in an epoch."""
        first = self._first(epoch)
        return len(range(first, self._size_of(epoch), self._size))

    def batch(self, epoch: int, index: int) -> Batch:
        """Return this process's batch of an epoch."""
        return self._source.batch(epoch, self._first(epoch) + index * self._size)

    def whole_epochs(self, num_batches: int) -> int:
        """Return how many epochs end within the first `num_batches` batches of all processes together."""
        epoch = 0
        while (num_batches := num_batches - self._size_of(epoch)) >= 0:
            epoch += 1
        return epoch

    def _size_of(self, epoch: int) -> int:
        while len(self.epoch_sizes) <= epoch:
            self.epoch_sizes.append(self._source.num_batches(len(self.epoch_sizes)))
        return self.epoch_sizes[epoch]

    def _first(self, epoch: int) -> int:
        """Return the index in the epoch of this process's first batch."""
        if self._size == 1:
            return 0
        return (self._rank - sum(self._size_of(earlier) for earlier in range(epoch))) % self._size


def steps_in_epochs(source: BatchSource, num_epochs: float, batches_per_step: int) -> int:
    """Return the optimizer steps that see every batch of `num_epochs` epochs (a fraction allowed), rounded up."""
    whole = math.floor(num_epochs)
    batches = sum(source.num_batches(epoch) for epoch in range(whole))
    if num_epochs > whole:
        batches += math.ceil((num_epochs - whole) * source.num_batches(whole))
    return math.ceil(batches / batches_per_step)
