"""The only place that loads compiled code.

Three binaries exist: ``_ops_cpu`` (operators, built on PyTorch's stable ABI, registered as ``torch.ops.fastssl.*``),
``_ops_cuda`` (the same operators for CUDA tensors, loaded only beside a CUDA PyTorch) and ``_host`` (data preparation,
a pybind11 module over numpy arrays). Each may be missing, for example after ``FASTSSL_BUILD=none``: then the rest of
the package runs on plain PyTorch and numpy, and one warning says what is lost.
Importing this module loads nothing; the first question does.
"""

import functools
import importlib
import importlib.util
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import torch

_OPS_CPU = Path(__file__).with_name("_ops_cpu.so")
_OPS_CUDA = Path(__file__).with_name("_ops_cuda.so")
OLDEST_COMPUTE_CAPABILITY = (8, 0)
"""Of a GPU that the CUDA operators run on."""
_fake_kernels: dict[str, Callable] = {}


def fake_kernel(op: str) -> Callable[[Callable], Callable]:
    """Make the decorated function the fake kernel (shapes and dtypes alone) of a compiled operator.

    It is registered when the operators are loaded, since PyTorch refuses fakes of operators that do not exist yet.

    Args:
        op: the operator's full name, such as "fastssl::layer_norm_forward".
    """

    def register(function: Callable) -> Callable:
        _fake_kernels[op] = function
        if _load_cpu_ops.cache_info().currsize and _load_cpu_ops():
            _register(op, function)
        return function

    return register


@torch.compiler.assume_constant_result
def cpu_ops_loaded() -> bool:
    """Load the compiled CPU operators, once, and tell whether they are there."""
    return _load_cpu_ops()


@functools.cache
def _load_cpu_ops() -> bool:
    if not _OPS_CPU.exists():
        _warn_missing(_OPS_CPU.name, "attention, layer norm and linear cross-entropy run as plain PyTorch, slower")
        return False
    torch.ops.load_library(str(_OPS_CPU))
    for op, function in _fake_kernels.items():
        _register(op, function)
    return True


@torch.compiler.assume_constant_result
def cuda_ops_loaded() -> bool:
    """Load the compiled CUDA operators, once, and tell whether they are there and the GPU is new enough for them."""
    return _load_cuda_ops()


@functools.cache
def _load_cuda_ops() -> bool:
    # The schemas and the fake kernels are those of the CPU operators.
    if not torch.cuda.is_available() or not _OPS_CUDA.exists() or not _load_cpu_ops():
        return False
    if is_too_old():
        return False
    torch.ops.load_library(str(_OPS_CUDA))
    return True


@torch.compiler.assume_constant_result
def is_too_old() -> bool:
    """Tell whether there is a GPU of NVIDIA's below the compute capability that our kernels are made for."""
    return _is_too_old()


@functools.cache
def _is_too_old() -> bool:
    capability = _capability()
    return capability is not None and capability < OLDEST_COMPUTE_CAPABILITY


@torch.compiler.assume_constant_result
def has_capability(capability: tuple[int, int]) -> bool:
    """Tell whether there is a GPU of NVIDIA's of exactly this compute capability."""
    return _capability() == capability


@functools.cache
def _capability() -> tuple[int, int] | None:
    nvidia = torch.version.cuda is not None and torch.cuda.is_available()
    return torch.cuda.get_device_capability() if nvidia else None


def questions() -> tuple[Callable, ...]:
    """Return the functions above and below that fact sheets ask; their answers stay the same while a process runs."""
    return cpu_ops_loaded, cuda_ops_loaded, is_too_old, has_capability, triton_installed, triton_interprets


def _register(op: str, function: Callable) -> None:
    if not hasattr(torch.ops.fastssl, op.removeprefix("fastssl::")):
        raise RuntimeError(
            f"{_OPS_CPU} was built from other sources than this fastssl: it has no operator {op}. Build it again, by "
            "`make setup` or `pip install --no-build-isolation -e .`"
        )
    torch.library.register_fake(op)(function)


def release_kept_outputs() -> None:
    """Give memory that large results of the CPU operators have left behind back to the system; see `csrc/common`."""
    if _load_cpu_ops.cache_info().currsize and _load_cpu_ops():
        torch.ops.fastssl.release_kept_outputs()


@functools.cache
def host() -> ModuleType | None:
    """Return the compiled data module, or None where it was not built."""
    try:
        return importlib.import_module("fastssl._host")
    except ImportError as error:
        _warn_missing("_host", f"batches are drawn by numpy, dozens of times slower ({error})")
        return None


@torch.compiler.assume_constant_result
def triton_installed() -> bool:
    """Tell whether Triton can be imported, without importing it."""
    return _triton_installed()


@torch.compiler.assume_constant_result
def triton_interprets() -> bool:
    """Tell whether Triton's kernels run in its interpreter, on CPU tensors: TRITON_INTERPRET=1 at its first import."""
    return _triton_interprets()


@functools.cache
def _triton_installed() -> bool:
    return importlib.util.find_spec("triton") is not None


@functools.cache
def _triton_interprets() -> bool:
    return _triton_installed() and bool(importlib.import_module("triton").knobs.runtime.interpret)


def cpu_capability() -> str | None:
    """Return the instruction set that the CPU operators use: "avx512", "avx2", "generic"; None where not built."""
    return torch.ops.fastssl.cpu_capability() if cpu_ops_loaded() else None


def _warn_missing(binary: str, consequence: str) -> None:
    warnings.warn(
        f"fastssl was installed without its compiled part {binary}: {consequence}. "
        "Build it with `pip install --no-build-isolation -e .` from a checkout.",
        RuntimeWarning,
        stacklevel=4,
    )
