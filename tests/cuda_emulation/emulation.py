"""The CUDA kernels and their launchers, compiled by the plain C++ compiler, as `torch.ops.fastssl_emulated`.

`cuda_on_host.h` says how threads become fibers, and what a run here shows and what it cannot. Every `csrc/**/*.cu` is
taken as it is: the operators have the schemas of `csrc/registration.cpp` and run on CPU tensors.
"""

import ctypes
import fcntl
import os
import subprocess
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
BUILD = ROOT / "build" / "cuda-emulation"
SHARED_BYTES_PER_BLOCK = 227 * 1024
NUM_MULTIPROCESSORS = 3
"""Few, so that the blocks that stay for many rows have many rows even in small cases."""


class Emulation:
    """The loaded library: `ops` holds the operators, the methods set what they run on."""

    def __init__(self, library: Path):
        torch.ops.load_library(str(library))
        self._library = ctypes.CDLL(str(library))
        self._library.remembered_error.restype = ctypes.c_char_p
        self._library.self_test.restype = ctypes.c_char_p
        self.ops = torch.ops.fastssl_emulated

    def set_thread_order(self, seed: int) -> None:
        """Run the threads of a block, and the blocks, by their index (0) or in an order drawn from `seed`."""
        self._library.set_thread_order(seed)

    def set_device(
        self,
        *,
        num_multiprocessors: int = NUM_MULTIPROCESSORS,
        shared_bytes_per_block: int = SHARED_BYTES_PER_BLOCK,
    ) -> None:
        """Set the limits of the device that the launchers see."""
        self._library.set_device_limits(num_multiprocessors, shared_bytes_per_block)

    def remembered_error(self) -> str:
        """Return and forget the first write outside a tensor that a launcher had allocated, or an empty string."""
        return self._library.remembered_error().decode()

    def philox_words(self, counter: tuple[int, ...], seed: int) -> list[int]:
        """Return the four words that the kernels draw for a counter of four words."""
        words = (ctypes.c_uint32 * 4)()
        self._library.philox_words((ctypes.c_uint32 * 4)(*counter), ctypes.byref(ctypes.c_int64(seed)), words)
        return list(words)

    def self_test(self, name: str) -> str:
        """Run a small kernel of `self_test.cpp`; return the error that the emulation found, or an empty string."""
        return self._library.self_test(name.encode()).decode()


def load() -> Emulation:
    """Build what has changed, and load it."""
    BUILD.mkdir(parents=True, exist_ok=True)
    with (BUILD / "lock").open("w") as lock:  # one of several test processes builds
        fcntl.flock(lock, fcntl.LOCK_EX)
        ninja_file = BUILD / "build.ninja"
        if not ninja_file.exists() or ninja_file.read_text() != _ninja_file():
            ninja_file.write_text(_ninja_file())
        subprocess.run([sys.executable, "-m", "ninja", "--quiet", "-C", str(BUILD)], check=True, stdout=sys.stderr)
    return Emulation(BUILD / "library.so")


def _ninja_file() -> str:
    torch_folder, cxx = Path(torch.__file__).parent, os.environ.get("CXX", "c++")
    # The launchers register again, under another name of the library and of the namespace.
    flags = (
        f"-std=c++20 -O1 -fPIC -fvisibility=hidden -Wall -Wextra -Wno-unknown-pragmas -fno-strict-aliasing "
        f"-U_FORTIFY_SOURCE -I{ROOT}/csrc -I{HERE} -isystem {torch_folder}/include "
        f"-DTORCH_TARGET_VERSION=0x020b000000000000 -Dfastssl=fastssl_emulated"
    )
    link = "-undefined dynamic_lookup" if sys.platform == "darwin" else ""
    lines = [
        f"builddir = {BUILD}",
        f"rule cxx\n  command = {cxx} -MMD -MF $out.d {flags} -x c++ -c $in -o $out\n  depfile = $out.d\n  deps = gcc",
        f"rule link\n  command = {cxx} -shared $in -o $out {link} -L{torch_folder}/lib -ltorch_cpu",
    ]
    sources = [ROOT / "csrc" / "registration.cpp", *sorted((ROOT / "csrc").rglob("*.cu")), *sorted(HERE.glob("*.cpp"))]
    objects = [f"{BUILD}/{source.stem}{source.suffix.replace('.', '_')}.o" for source in sources]
    lines += [f"build {target}: cxx {source}" for target, source in zip(objects, sources, strict=True)]
    lines.append(f"build {BUILD}/library.so: link {' '.join(objects)}")
    return "\n".join(lines) + "\n"
