"""Builds the compiled part of fastssl with ninja. Everything else about the package is in pyproject.toml.

Up to three binaries come out: ``fastssl/_ops_cpu.so`` (operators on PyTorch's stable ABI, no Python inside), the
pybind11 module ``fastssl._host`` and, where PyTorch is a CUDA build and nvcc is there, ``fastssl/_ops_cuda.so``.
``FASTSSL_BUILD=none`` skips all; ``FASTSSL_BUILD=cuda`` builds the last one alone, beside any PyTorch;
``FASTSSL_BUILD=sanitize`` builds the first two with the address and undefined-behaviour sanitizers. ``MAX_JOBS`` bounds
the compilers that run at a time.
"""

import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
from importlib.util import find_spec
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
BUILD = os.environ.get("FASTSSL_BUILD", "all")
CPU_OPS, CUDA_OPS, HOST = "fastssl._ops_cpu", "fastssl._ops_cuda", "fastssl._host"
TORCH_ABI = "-DTORCH_TARGET_VERSION=0x020b000000000000"  # 2.11: one binary serves it and every later release
GPU_CODE = {  # machine code for 8.0 and 9.0, and what later GPUs compile when they load it
    real: f"-gencode arch=compute_{virtual},code={real}"
    for virtual, real in (("80", "sm_80"), ("90a", "sm_90a"), ("80", "compute_80"))
}
X86 = platform.machine() in ("x86_64", "AMD64")
INSTRUCTION_SETS = {"generic": ""}
if X86:
    INSTRUCTION_SETS |= {
        "avx2": "-mavx2 -mfma -mf16c",
        "avx512": "-mavx512f -mavx512bw -mavx512dq -mavx512vl -mfma -mf16c -mprefer-vector-width=512 "
        "-Wno-uninitialized -Wno-maybe-uninitialized",  # gcc 12 warns about its own intrinsics
    }


def torch_folder() -> Path:
    """Return PyTorch's folder; importing torch itself would cost seconds."""
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        sys.exit(
            "fastssl builds against the PyTorch that you use, and none is visible to this build.\n"
            "Install PyTorch first, then: pip install --no-build-isolation .\n"
            "(or FASTSSL_BUILD=none pip install . for a slower, pure-Python installation)"
        )
    return Path(spec.origin).parent


def nvcc() -> str | None:
    """Return the path of CUDA's compiler, or None."""
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    return shutil.which("nvcc", path=os.pathsep.join((f"{home}/bin", os.environ.get("PATH", os.defpath))))


def binaries() -> list[str]:
    """Return the names of the extensions to build."""
    if BUILD in ("none", "cuda"):
        return [CUDA_OPS] if BUILD == "cuda" else []
    if BUILD == "sanitize" or find_spec("torch") is None:  # without PyTorch the build itself says what to do
        return [CPU_OPS, HOST]
    is_cuda = re.search(r"^cuda\b.*= ['\"]", (torch_folder() / "version.py").read_text(), re.MULTILINE)
    if is_cuda and nvcc() is None:
        print("fastssl: no nvcc in CUDA_HOME or PATH: the CUDA operators are left out; Triton and PyTorch serve GPUs")
    return [CPU_OPS, HOST, CUDA_OPS] if is_cuda and nvcc() else [CPU_OPS, HOST]


def ninja_file(build_dir: Path, outputs: dict[str, Path]) -> str:
    """Return the text of build.ninja: one edge per object, one per binary."""
    import pybind11

    torch, cxx = torch_folder(), os.environ.get("CXX", "c++")
    checks = BUILD == "sanitize"
    flags = "-g -O1 -fsanitize=address,undefined -fno-sanitize-recover=undefined" if checks else "-O3 -DNDEBUG"
    common = f"-std=c++20 -fPIC -fvisibility=hidden -Wall -Wextra -I{ROOT}/csrc {flags}"
    ops = f"{common} -isystem {torch}/include {TORCH_ABI} {'-DFASTSSL_X86' if X86 else ''}"
    cuda = (
        f"-std=c++20 -O3 -DNDEBUG -lineinfo -Xcompiler=-fPIC,-fvisibility=hidden,-Wall -I{ROOT}/csrc "
        f"-isystem {torch}/include {TORCH_ABI} -DUSE_CUDA"
    )
    host = f"{common} -isystem {pybind11.get_include()} -isystem {sysconfig.get_paths()['include']}"
    link = ("-undefined dynamic_lookup" if sys.platform == "darwin" else "") + (flags if checks else "")
    lines = [
        f"builddir = {build_dir}",
        f"rule cxx\n  command = {cxx} -MMD -MF $out.d $flags -c $in -o $out\n  depfile = $out.d\n  deps = gcc",
        f"rule link\n  command = {cxx} -shared $in -o $out {link} $libs",
        f"rule nvcc\n  command = {nvcc()} -MMD -MF $out.d $flags -c $in -o $out\n  depfile = $out.d\n  deps = gcc",
        f"rule link_cuda\n  command = {nvcc()} -shared $in -o $out $libs",
    ]
    objects: dict[str, list[str]] = {name: [] for name in outputs}

    def compile_edge(binary: str, source: Path, flags: str, suffix: str = "", rule: str = "cxx") -> None:
        if binary not in outputs:
            return
        target = build_dir / source.relative_to(ROOT).with_suffix(f"{suffix}.o")
        lines.append(f"build {target}: {rule} {source}\n  flags = {flags}")
        objects[binary].append(str(target))

    for source in sorted((ROOT / "csrc").rglob("*.cu")):
        one_gpu = [code for real, code in GPU_CODE.items() if source.stem.endswith(f"_{real.replace('_', '')}")]
        compile_edge(CUDA_OPS, source, f"{cuda} {' '.join(one_gpu or GPU_CODE.values())}", ".cuda", "nvcc")
    for source in sorted((ROOT / "csrc").rglob("*.cpp")):
        if "host" in source.relative_to(ROOT).parts:
            compile_edge(HOST, source, host)
        elif source.stem.endswith("_cpu"):
            for name, isa_flags in INSTRUCTION_SETS.items():
                compile_edge(CPU_OPS, source, f"{ops} -DFASTSSL_ISA={name} {isa_flags}", f".{name}")
        else:
            compile_edge(CPU_OPS, source, ops)
    torch_libs = f"-L{torch}/lib -ltorch_cpu"
    torch_cuda = "-ltorch_cuda" if (torch / "lib" / "libtorch_cuda.so").exists() else ""
    libs = {CPU_OPS: torch_libs, CUDA_OPS: f"{torch_libs} {torch_cuda}", HOST: ""}
    for name, output in outputs.items():
        rule = "link_cuda" if name == CUDA_OPS else "link"
        lines.append(f"build {output}: {rule} {' '.join(objects[name])}\n  libs = {libs[name]}")
    return "\n".join(lines) + "\n"


class NinjaBuild(build_ext):
    """Compiles all extensions in one parallel, incremental ninja run."""

    def get_ext_filename(self, fullname: str) -> str:
        if "_ops_" in fullname:  # no Python inside, so no Python version in its name
            return f"{Path(*fullname.split('.'))}.so"
        return super().get_ext_filename(fullname)

    def build_extensions(self) -> None:
        build_dir = ROOT / "build" / f"{BUILD}-{sysconfig.get_platform()}-{sys.implementation.cache_tag}"
        build_dir.mkdir(parents=True, exist_ok=True)
        outputs = {
            extension.name: Path(self.get_ext_fullpath(extension.name)).resolve() for extension in self.extensions
        }
        if CUDA_OPS in outputs and nvcc() is None:
            sys.exit("fastssl: FASTSSL_BUILD=cuda needs nvcc, and there is none in CUDA_HOME or PATH")
        (build_dir / "build.ninja").write_text(ninja_file(build_dir, outputs))
        jobs = ["-j", os.environ["MAX_JOBS"]] if "MAX_JOBS" in os.environ else []
        subprocess.run([sys.executable, "-m", "ninja", *jobs, "-C", str(build_dir)], check=True)


setup(ext_modules=[Extension(name, []) for name in binaries()], cmdclass={"build_ext": NinjaBuild})
