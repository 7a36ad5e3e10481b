"""The compiled CUDA operators on a GPU for tests that hold CPU tensors: what the emulation is where there is none."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class Hardware:
    """Has the face of `tests.cuda_emulation.emulation.Emulation`; the device is what it is, and orders its threads."""

    def __init__(self, ops: Any, device: str):
        self.ops = OpsOnDevice(ops, device)

    def set_thread_order(self, seed: int) -> None:
        """Do nothing: another run is another order of the blocks."""

    def set_device(self, **limits: int) -> None:
        """Do nothing."""

    def remembered_error(self) -> str:
        """Return an empty string: writes outside are found by compute-sanitizer."""
        return ""


class OpsOnDevice:
    """A namespace of operators that takes CPU tensors to a device, and what happened to them back.

    Args:
        ops: the namespace, such as `torch.ops.fastssl`.
        device: where its operators run.
    """

    def __init__(self, ops: Any, device: str):
        self._ops, self._device = ops, device

    def __getattr__(self, name: str) -> Callable:
        return lambda *arguments: self._call(getattr(self._ops, name), arguments)

    def _call(self, op: Callable, arguments: tuple) -> Any:
        storages: dict[int, tuple[Tensor, Tensor]] = {}

        def taken(argument: Any) -> Any:
            if isinstance(argument, (list, tuple)):
                return [taken(part) for part in argument]
            if not isinstance(argument, Tensor):
                return argument
            here = _whole(argument)
            _, there = storages.setdefault(here.data_ptr(), (here, here.to(self._device, copy=True)))
            placed = there.view(torch.uint8).view(argument.dtype) if there.numel() else argument.to(self._device)
            return placed.as_strided(argument.shape, argument.stride(), argument.storage_offset())

        found = op(*map(taken, arguments))
        with torch.no_grad():
            for here, there in storages.values():
                here.copy_(there)
        return _fetched(found)


def _whole(tensor: Tensor) -> Tensor:
    """Return all bytes of a tensor's memory: neighbours stay neighbours, and what stands around it comes along."""
    return torch.empty(0, dtype=torch.uint8).set_(tensor.detach().untyped_storage())


def _fetched(found: Any) -> Any:
    if isinstance(found, (list, tuple)):
        return type(found)(map(_fetched, found))
    return found.cpu() if isinstance(found, Tensor) else found
