"""Batches on a GPU ahead of time: copied from page-locked memory on a stream of their own, while the model works."""

from collections.abc import Iterable, Iterator

import torch

from fastssl.training.source import Batch

NumberedBatches = Iterable[tuple[int, int, Batch]]
"""(epoch, index, batch), in order."""


def on_device(batches: NumberedBatches, device: torch.device) -> NumberedBatches:
    """Return the batches, on a GPU one ahead of the step that takes them; on other devices as they are.

    No recorded run has verified the copies on a GPU yet.
    """
    return _ahead(batches, device) if device.type == "cuda" else batches


def _ahead(batches: NumberedBatches, device: torch.device) -> Iterator[tuple[int, int, Batch]]:
    copying, held = torch.cuda.Stream(device), None
    for epoch, index, batch in batches:
        # The page-locked copy is kept until its successor is on its way: PyTorch would not give its memory to others
        # before the stream is done with it, but it need not be asked to.
        pinned = batch.pin_memory()
        with torch.cuda.stream(copying):
            copied = pinned.to(device, non_blocking=True)
            arrived = copying.record_event()
        if held is not None:
            yield _handed_over(held)
        held = (epoch, index, copied, arrived, pinned)
    if held is not None:
        yield _handed_over(held)


def _handed_over(held: tuple) -> tuple[int, int, Batch]:
    """Let the model's stream, not the host, wait for the copy, and tell the allocator who reads it."""
    epoch, index, batch, arrived, _ = held
    stream = torch.cuda.current_stream()
    stream.wait_event(arrived)
    batch.record_stream(stream)
    return epoch, index, batch
