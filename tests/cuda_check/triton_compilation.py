"""Compiles Triton kernels for GPUs that this machine need not have, and reads what the assembler says of them.

`make cuda-check` runs the `check_*.py` beside this file. Results are kept by content in `build/cuda-check/triton`, so
a kernel that did not change is not compiled again.
"""

import contextlib
import hashlib
import io
import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

CACHE = Path(__file__).resolve().parents[2] / "build" / "cuda-check" / "triton"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""By the names that Triton's signatures use."""
CAPABILITIES = (80, 90)
"""Ampere and Hopper; Triton compiles the latter for sm_90a."""
SHARED_BYTES = {80: 163 * 1024, 90: 227 * 1024}
"""Shared memory that one block of threads may have, per compute capability."""


@dataclass(frozen=True)
class Resources:
    """What one compiled kernel takes."""

    registers: int
    """Per thread."""
    spill_bytes: int
    """Registers stored to and loaded from local memory, per thread, both ways together."""
    stack_bytes: int
    """Local memory per thread, spilled registers included."""
    shared_bytes: int
    """Shared memory per block of threads."""


def compile_and_check(
    kernel: triton.JITFunction,
    signature: Mapping[str, str | tuple[str, ...]],
    constexprs: Mapping[str, object],
    *,
    capability: int,
    num_warps: int,
    num_stages: int,
    hot: bool = True,
    spill_bytes: int = 0,
    **options: object,
) -> Resources:
    """Compile a kernel and return its resources; a hot kernel may not spill registers or use local memory.

    Args:
        kernel: the `@triton.jit` function.
        signature: type of every argument that is no constant, such as "*bf16", "fp32" or "i32". Pointers count as
            divisible by 16 bytes; an integer that a launch finds divisible by 16 is written "i32:16". A (named) tuple
            argument has a tuple of types.
        constexprs: the constants by name; None for a pointer that is not given.
        capability: compute capability times ten.
        num_warps, num_stages, options: as in a launch.
        hot: whether spills and local memory fail the check.
        spill_bytes: what a hot kernel may spill, stores and loads together.
    """
    if not isinstance(kernel, triton.JITFunction):
        raise RuntimeError("Triton's interpreter is on, so nothing can be compiled: run `make cuda-check`")
    given = [*signature, *constexprs]
    assert sorted(given) == sorted(kernel.arg_names), set(given) ^ set(kernel.arg_names)
    options = {"num_warps": num_warps, "num_stages": num_stages, "enable_fp_fusion": True, **options}
    call = [sorted(signature.items()), sorted(constexprs.items()), capability, sorted(options.items())]
    key = hashlib.sha256(f"{triton.__version__} {kernel.cache_key} {call}".encode()).hexdigest()
    kept = CACHE / f"{key}.json"
    if kept.exists():
        resources = Resources(**json.loads(kept.read_text()))
    else:
        resources = _compiled(kernel, signature, constexprs, capability, options)
        CACHE.mkdir(parents=True, exist_ok=True)
        unfinished = kept.with_suffix(f".{os.getpid()}")  # the other process may look in between
        unfinished.write_text(json.dumps(asdict(resources)))
        unfinished.replace(kept)
    what = f"{kernel.__name__} for sm_{capability}, {dict(constexprs)}, {options}: {resources}"
    assert resources.shared_bytes <= SHARED_BYTES[capability], f"more shared memory than there is: {what}"
    spills = resources.spill_bytes > spill_bytes or (resources.stack_bytes > 0 and spill_bytes == 0)
    assert not (hot and spills), f"local memory: {what}"
    return resources


def _compiled(kernel, signature, constexprs, capability, options) -> Resources:
    types = {name: signature.get(name, "constexpr") for name in kernel.arg_names}
    divisible = {
        (place, *inner): [["tt.divisibility", 16]]
        for place, kind in enumerate(types.values())
        for inner, one in _leaves(kind)
        if one.startswith("*") or one.endswith(":16")
    }
    types = {name: _bare(kind) for name, kind in types.items()}
    log = io.StringIO()
    with triton.knobs.compilation.scope(), triton.knobs.nvidia.scope(), triton.knobs.cache.scope():
        triton.knobs.compilation.always_compile = True
        triton.knobs.nvidia.dump_ptxas_log = True
        triton.knobs.cache.dir = str(CACHE / "intermediate")
        with contextlib.redirect_stdout(log):
            source = ASTSource(kernel, types, dict(constexprs), divisible)
            compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    text = log.getvalue()
    frame = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", text)
    used = re.search(r"Used (\d+) registers", text)
    assert frame and used, f"the assembler's report has another form: {text}"
    stack, stores, loads = map(int, frame.groups())
    return Resources(int(used[1]), stores + loads, stack, compiled.metadata.shared)


def _leaves(kind: str | tuple[str, ...]) -> list[tuple[tuple[int, ...], str]]:
    """Return the types of an argument, each with its place inside the argument: () where it is no tuple."""
    return [((), kind)] if isinstance(kind, str) else [((place,), one) for place, one in enumerate(kind)]


def _bare(kind: str | tuple[str, ...]) -> str | tuple[str, ...]:
    """Return the types without the marks of divisibility, a named tuple as one."""
    if isinstance(kind, str):
        return kind.removesuffix(":16")
    bare = [one.removesuffix(":16") for one in kind]
    return type(kind)(*bare) if hasattr(kind, "_fields") else tuple(bare)
