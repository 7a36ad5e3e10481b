"""Peak memory of a piece of work, as the operating system sees it: native scratch counts as well as tensors."""

import ctypes
import gc
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Tensor

from fastssl import extension

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def can_measure() -> bool:
    """Tell whether this system reports, and lets a process reset, its peak resident memory (Linux does)."""
    return sys.platform == "linux" and _CLEAR.exists()


def peak_bytes(work: Callable[[], Mapping[str, Tensor]]) -> int:
    """Run `work` once and return its peak resident memory in bytes, less what was resident before and what it returns.

    Freed memory that the C library, or ours, kept is handed back first, so that its reuse is counted too.
    """
    gc.collect()
    extension.release_kept_outputs()
    ctypes.CDLL(None).malloc_trim(0)
    _CLEAR.write_text("5")
    before = _status_bytes("VmRSS")
    returned = sum(tensor.nbytes for tensor in work().values())
    return max(_status_bytes("VmHWM") - before - returned, 0)


def _status_bytes(name: str) -> int:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024
