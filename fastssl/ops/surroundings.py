"""What surrounds a call of an operator: autocast, and tracers whose tensors hold no numbers."""

import contextlib

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """Return the dtype that autocast wants products in on a device; None where it is off, or does not exist."""
    if torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type):
        return torch.get_autocast_dtype(device.type)
    return None


def without_autocast(device: torch.device) -> contextlib.AbstractContextManager:
    """Return a context in which autocast leaves PyTorch's own operators alone: a backend is told its dtypes."""
    if autocast_dtype(device) is None:
        return _NOTHING
    return torch.autocast(device.type, enabled=False) if torch.compiler.is_compiling() else _AutocastOff(device.type)


class _AutocastOff:
    """What `torch.autocast(device_type, enabled=False)` does where it is on, in a tenth of its time."""

    def __init__(self, device_type: str) -> None:
        self._device_type = device_type

    def __enter__(self) -> None:
        torch.set_autocast_enabled(self._device_type, False)

    def __exit__(self, *_: object) -> None:
        torch.set_autocast_enabled(self._device_type, True)


_NOTHING = contextlib.nullcontext()


def has_values(tensor: Tensor) -> bool:
    """Return whether a tensor holds numbers now, and not a shape alone."""
    return not (torch.compiler.is_compiling() or tensor.is_meta or isinstance(tensor, FakeTensor))


def can_be_read(tensor: Tensor) -> bool:
    """Return whether the host can look at what a tensor holds, without waiting for another device."""
    return tensor.is_cpu and has_values(tensor)
