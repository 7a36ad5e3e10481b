from contextlib import nullcontext

import pytest
import torch

from fastssl.data.batch import PackedBatch
from fastssl.training import prefetch

DEVICE = torch.device("cuda")


class RecordedGpu:
    """Stands in for streams, events and copies, and keeps their order."""

    def __init__(self) -> None:
        self.log: list[str] = []

    def record_event(self) -> str:
        self.log.append("record")
        return "arrived"

    def wait_event(self, event: str) -> None:
        self.log.append(f"wait {event}")


class RecordedBatch:
    def __init__(self, name: str, log: list[str]) -> None:
        self.name, self.log = name, log

    def pin_memory(self) -> "RecordedBatch":
        self.log.append(f"pin {self.name}")
        return self

    def to(self, device: torch.device, *, non_blocking: bool) -> "RecordedBatch":
        assert device == DEVICE and non_blocking
        self.log.append(f"copy {self.name}")
        return self

    def record_stream(self, stream: RecordedGpu) -> None:
        self.log.append(f"keep {self.name}")


def test_a_cpu_takes_batches_as_they_are():
    batches = iter([(0, 0, "batch")])
    assert prefetch.on_device(batches, torch.device("cpu")) is batches


@pytest.mark.parametrize("count", [0, 1, 3])
def test_every_batch_is_copied_one_ahead_and_in_order(monkeypatch: pytest.MonkeyPatch, count: int):
    gpu = RecordedGpu()
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: gpu)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: gpu)
    batches = [(0, index, RecordedBatch(str(index), gpu.log)) for index in range(count)]
    taken = []
    for epoch, index, batch in prefetch.on_device(batches, DEVICE):
        gpu.log.append(f"step {index}")
        taken.append((epoch, index, batch))
    assert taken == batches
    if count == 3:
        hand_over = ["wait arrived", "keep {0}", "step {0}"]
        copy = ["pin {0}", "copy {0}", "record"]
        order = [(copy, 0), (copy, 1), (hand_over, 0), (copy, 2), (hand_over, 1), (hand_over, 2)]
        assert gpu.log == [line.format(number) for lines, number in order for line in lines]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_batches_arrive_unchanged_on_a_gpu():
    packed = [PackedBatch.from_sequences([[1, 2, number], [4]], labels=[[-100, 2, -100], [4]]) for number in range(5)]
    numbered = [(0, index, batch) for index, batch in enumerate(packed)]
    for _, index, batch in prefetch.on_device(numbered, DEVICE):
        assert batch.input_ids.device.type == "cuda"
        assert torch.equal(batch.input_ids.cpu(), packed[index].input_ids)
        assert torch.equal(batch.masked_positions.cpu(), packed[index].masked_positions)
