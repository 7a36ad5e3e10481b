"""Builds the compiled part of fastssl with ninja. Everything else about the package is in pyproject.toml.

Two binaries come out: ``fastssl/_ops_cpu.so`` (operators on PyTorch's stable ABI, no Python inside) and the pybind11
module ``fastssl._host``. ``FASTSSL_BUILD=none`` skips both; ``FASTSSL_BUILD=sanitize`` builds them with the address
and undefined-behaviour sanitizers.
"""

import os
import platform
import subprocess
import sys
import sysconfig
from importlib.util import find_spec
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
BUILD = os.environ.get("FASTSSL_BUILD", "all")
CPU_OPS, HOST = "fastssl._ops_cpu", "fastssl._host"
TORCH_ABI = "-DTORCH_TARGET_VERSION=0x020b000000000000"  # 2.11: one binary serves it and every later release
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


def ninja_file(build_dir: Path, outputs: dict[str, Path]) -> str:
    """Return the text of build.ninja: one edge per object, one per binary."""
    import pybind11

    torch, cxx = torch_folder(), os.environ.get("CXX", "c++")
    checks = BUILD == "sanitize"
    flags = "-g -O1 -fsanitize=address,undefined -fno-sanitize-recover=undefined" if checks else "-O3 -DNDEBUG"
    common = f"-std=c++20 -fPIC -fvisibility=hidden -Wall -Wextra -I{ROOT}/csrc {flags}"
    ops = f"{common} -isystem {torch}/include {TORCH_ABI} {'-DFASTSSL_X86' if X86 else ''}"
    host = f"{common} -isystem {pybind11.get_include()} -isystem {sysconfig.get_paths()['include']}"
    link = ("-undefined dynamic_lookup" if sys.platform == "darwin" else "") + (flags if checks else "")
    lines = [
        f"builddir = {build_dir}",
        f"rule cxx\n  command = {cxx} -MMD -MF $out.d $flags -c $in -o $out\n  depfile = $out.d\n  deps = gcc",
        f"rule link\n  command = {cxx} -shared $in -o $out {link} $libs",
    ]
    objects: dict[str, list[str]] = {CPU_OPS: [], HOST: []}

    def compile_edge(binary: str, source: Path, flags: str, suffix: str = "") -> None:
        target = build_dir / source.relative_to(ROOT).with_suffix(f"{suffix}.o")
        lines.append(f"build {target}: cxx {source}\n  flags = {flags}")
        objects[binary].append(str(target))

    for source in sorted((ROOT / "csrc").rglob("*.cpp")):
        if "host" in source.relative_to(ROOT).parts:
            compile_edge(HOST, source, host)
        elif source.stem.endswith("_cpu"):
            for name, isa_flags in INSTRUCTION_SETS.items():
                compile_edge(CPU_OPS, source, f"{ops} -DFASTSSL_ISA={name} {isa_flags}", f".{name}")
        else:
            compile_edge(CPU_OPS, source, ops)
    libs = {CPU_OPS: f"-L{torch}/lib -ltorch_cpu", HOST: ""}
    lines += [f"build {outputs[b]}: link {' '.join(objects[b])}\n  libs = {libs[b]}" for b in outputs]
    return "\n".join(lines) + "\n"


class NinjaBuild(build_ext):
    """Compiles all extensions in one parallel, incremental ninja run."""

    def get_ext_filename(self, fullname: str) -> str:
        if fullname.split(".")[-1] == CPU_OPS.split(".")[-1]:  # no Python inside, so no Python version in its name
            return f"{Path(*fullname.split('.'))}.so"
        return super().get_ext_filename(fullname)

    def build_extensions(self) -> None:
        build_dir = ROOT / "build" / f"{BUILD}-{sysconfig.get_platform()}-{sys.implementation.cache_tag}"
        build_dir.mkdir(parents=True, exist_ok=True)
        outputs = {
            extension.name: Path(self.get_ext_fullpath(extension.name)).resolve() for extension in self.extensions
        }
        (build_dir / "build.ninja").write_text(ninja_file(build_dir, outputs))
        subprocess.run([sys.executable, "-m", "ninja", "-C", str(build_dir)], check=True)


extensions = [] if BUILD == "none" else [Extension(CPU_OPS, []), Extension(HOST, [])]
setup(ext_modules=extensions, cmdclass={"build_ext": NinjaBuild})
