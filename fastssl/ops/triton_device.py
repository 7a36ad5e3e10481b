"""What the tiles of Triton kernels depend on of a device."""

from functools import cache
from typing import NamedTuple

import torch


class Processors(NamedTuple):
    """The multiprocessors of a device."""

    count: int
    """Their number."""
    shared_bytes: int
    """Shared memory of each."""


@cache
def processors(device: torch.device) -> Processors:
    """Return what a device has; the interpreter, which has none, gets little, so that its programs walk too."""
    if device.type != "cuda":
        return Processors(count=2, shared_bytes=100 * 1024)
    properties = torch.cuda.get_device_properties(device)
    return Processors(properties.multi_processor_count, properties.shared_memory_per_multiprocessor)
