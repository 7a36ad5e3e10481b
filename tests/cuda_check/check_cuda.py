"""The CUDA operators compile for every architecture that is promised, and no kernel keeps anything in local memory.

The binary is built as users build it (`FASTSSL_BUILD=cuda`), with PyTorch's headers and CUDA's runtime alone. What the
disassembler says of it is kept by content in `build/cuda-check/cuda`.
"""

import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / "build" / "cuda-check" / "cuda"
ARCHITECTURES = ("sm_80", "sm_90a")
ONE_GPU = "_sm90a"
"""How the names of sources end that are compiled for one architecture alone."""


@dataclass(frozen=True)
class Kernel:
    """One kernel for one architecture."""

    name: str
    architecture: str
    registers: int
    """Per thread."""
    stack_bytes: int
    """Local memory per thread: spilled registers, and arrays indexed by what the compiler does not know."""


def tool(name: str) -> str | None:
    """Return the path of one of CUDA's tools, from a toolkit or from Triton's package."""
    folders = [f"{os.environ.get('CUDA_HOME', '/usr/local/cuda')}/bin", os.environ.get("PATH", os.defpath)]
    triton = find_spec("triton")
    if triton is not None and triton.origin is not None:
        folders.append(str(Path(triton.origin).parent / "backends" / "nvidia" / "bin"))
    return shutil.which(name, path=os.pathsep.join(folders))


def content_key() -> str:
    """Return a hash over all that the binary is made of."""
    state = hashlib.sha256(torch.__version__.encode())
    state.update(subprocess.run([tool("nvcc"), "--version"], capture_output=True, check=True).stdout)
    sources = [path for path in (ROOT / "csrc").rglob("*") if path.suffix in (".cu", ".cuh", ".h")]
    for path in sorted([*sources, ROOT / "setup.py"]):
        state.update(f"{path.relative_to(ROOT)}\n".encode() + path.read_bytes())
    return state.hexdigest()


def compiled() -> dict[str, list]:
    """Build the binary and return its kernels and the names of its PTX files."""
    command = [sys.executable, "setup.py", "--quiet", "build", "--build-lib", str(CACHE / "package")]
    environment = os.environ | {"FASTSSL_BUILD": "cuda", "MAX_JOBS": "1"}  # conftest.py has a process beside this one
    built = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if built.returncode != 0:
        pytest.fail(f"the CUDA operators do not build:\n{built.stdout}", pytrace=False)
    binary = CACHE / "package" / "fastssl" / "_ops_cuda.so"

    def look(option: str) -> str:
        return subprocess.run(
            [tool("cuobjdump"), option, str(binary)], capture_output=True, text=True, check=True
        ).stdout

    kernels, architecture = [], ""
    for line in look("--dump-resource-usage").splitlines():
        if found := re.search(r"^arch = (\w+)", line):
            architecture = found[1]
        elif found := re.search(r"^ Function (\w+):", line):
            name = found[1]
        elif found := re.search(r"REG:(\d+) STACK:(\d+) .*LOCAL:(\d+)", line):
            kernels.append(Kernel(name, architecture, int(found[1]), int(found[2]) + int(found[3])))
    return {
        "kernels": [asdict(kernel) for kernel in kernels],
        "ptx": re.findall(r"\w+\.sm_\w+\.ptx", look("--list-ptx")),
        "products": products(binary),
    }


def products(binary: Path) -> dict[str, list[int]]:
    """Return, for each kernel with products of warpgroups, how many there are and how many of them end a group."""
    command = [tool("cuobjdump"), "-sass", "-arch", "sm_90a", str(binary)]
    found: dict[str, list[int]] = {}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as listing:
        for line in listing.stdout:
            if function := re.search(r"Function : (\w+)", line):
                name = function[1]
            elif " HGMMA." in line:
                counts = found.setdefault(name, [0, 0])
                counts[0] += 1
                counts[1] += ", gsb0" in line
    return found


@pytest.fixture(scope="module")
def binary() -> dict[str, list]:
    """What is in the binary: `kernels`, `ptx` and `products`."""
    for name in ("nvcc", "cuobjdump"):
        if tool(name) is None:
            pytest.skip(f"no {name} here")
    kept = CACHE / f"{content_key()}.json"
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as lock:  # one of two processes builds
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not kept.exists():
            kept.write_text(json.dumps(compiled(), indent=1))
    found = json.loads(kept.read_text())
    return found | {"kernels": [Kernel(**kernel) for kernel in found["kernels"]]}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_no_kernel_uses_local_memory(binary, architecture):
    kernels = [kernel for kernel in binary["kernels"] if kernel.architecture == architecture]
    assert kernels
    assert not [kernel for kernel in kernels if kernel.stack_bytes > 0]


def test_every_kernel_is_there_for_every_architecture(binary):
    """But for those made for one: the files that have them are compiled for no other."""
    names = [{k.name for k in binary["kernels"] if k.architecture == architecture} for architecture in ARCHITECTURES]
    for_one = {name for name in names[1] if "hopper" in name}
    assert for_one and names[0] == names[1] - for_one


def test_later_gpus_find_code_that_they_can_compile(binary):
    launchers = {path.stem for path in (ROOT / "csrc").rglob("*.cu") if not path.stem.endswith(ONE_GPU)}
    assert {f"{name}.sm_80.ptx" for name in launchers} == set(binary["ptx"])


def test_blocks_begin_with_the_registers_that_their_warpgroups_share(binary):
    """Those of 384 and of 512 threads; with fewer, a warpgroup that takes more would wait for ever."""
    kernels = [kernel for kernel in binary["kernels"] if kernel.name in binary["products"]]
    assert {kernel.registers for kernel in kernels} == {65536 // 384 // 8 * 8, 65536 // 512}


def test_products_of_warpgroups_go_on_beside_the_threads(binary):
    """Where the compiler lacks registers it waits for each instruction: then each ends a group of its own."""
    hopper = {kernel.name for kernel in binary["kernels"] if "hopper" in kernel.name}
    assert set(binary["products"]) == {name for name in hopper if "statistics" not in name}  # those multiply nothing
    waiting = {name for name, (instructions, ends) in binary["products"].items() if ends > instructions / 2}
    assert not waiting
