"""A device that is not the CPU, where there is no GPU: `simulated_device.cpp` says what it is and what it shows.

    python -m pytest -p tests.simulated_device.plugin tests/tasks

runs tests with it as the device that "auto" means. Tests that hold an answer against a model's own output on the CPU
fail there by their own fault.
"""

import ctypes
import fcntl
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import torch

NAME = "simulated"
ROOT = Path(__file__).resolve().parents[2]
SOURCE = Path(__file__).resolve().parent / "simulated_device.cpp"
BUILD = ROOT / "build" / "simulated-device"


class _Module:
    """What PyTorch asks of `torch.simulated`."""

    def is_initialized(self) -> bool:
        return True

    def is_available(self) -> bool:
        return True

    def current_device(self) -> int:
        return 0

    def device_count(self) -> int:
        return 1

    def _is_in_bad_fork(self) -> bool:
        return False

    def manual_seed_all(self, seed: int) -> None:
        torch.default_generator.manual_seed(seed)

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]


@cache
def load() -> ctypes.CDLL:
    """Build what has changed, and make the device known to PyTorch; `host_reads()` counts, and begins anew."""
    library = _built()
    torch.utils.rename_privateuse1_backend(NAME)
    torch._register_device_module(NAME, _Module())
    torch.ops.load_library(str(library))
    return ctypes.CDLL(str(library))


def _built() -> Path:
    BUILD.mkdir(parents=True, exist_ok=True)
    library, stamp = BUILD / f"device-{torch.__version__}.so", SOURCE.stat().st_mtime_ns
    folder = Path(torch.__file__).parent
    with (BUILD / "lock").open("w") as lock:  # one of several processes builds
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not library.exists() or library.stat().st_mtime_ns < stamp:
            command = [os.environ.get("CXX", "c++"), "-std=c++20", "-O0", "-fPIC", "-shared", "-w"]
            command += [f"-I{folder}/include", f"-I{folder}/include/torch/csrc/api/include", str(SOURCE)]
            command += ["-o", f"{library}.new", f"-L{folder}/lib", "-ltorch_cpu", "-lc10"]
            subprocess.run(command, check=True, stdout=sys.stderr)
            Path(f"{library}.new").replace(library)
    return library
