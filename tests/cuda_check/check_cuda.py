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
    for path in sorted([*sources, ROOT / "setup.py", Path(__file__).resolve()]):
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
        **products(binary),
    }


def products(binary: Path) -> dict[str, dict[str, list]]:
    """Return what becomes of products of warpgroups in each kernel that has some.

    `products`: how many there are and how many of them end a group; `overwritten`: see `overwritten_operands`.
    """
    command = [tool("cuobjdump"), "-sass", "-arch", "sm_90a", str(binary)]
    instructions: dict[str, list[tuple[int, str]]] = {}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as listing:
        for line in listing.stdout:
            if function := re.search(r"Function : (\w+)", line):
                name = function[1]
            elif found := re.match(r"\s+/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+ )?(.*?) *;", line):
                instructions.setdefault(name, []).append((int(found[1], 16), found[2]))
    counts, overwritten = {}, {}
    for name, code in instructions.items():
        multiplied = [text for _, text in code if text.startswith("HGMMA.")]
        if multiplied:
            counts[name] = [len(multiplied), sum(", gsb0" in text for text in multiplied)]
            overwritten[name] = overwritten_operands(code)
    return {"products": counts, "overwritten": overwritten}


def overwritten_operands(code: list[tuple[int, str]]) -> list[str]:
    """Return the products in loops whose operand was loaded into registers before the loop, and is written in it.

    Nothing in the loop writes such a register before the product, so it was to hold what was loaded; where something
    writes it behind the product, the next round multiplies with that.

    Args:
        code: of a kernel, (address, instruction) in order, predicates left out.
    """
    written: dict[int, list[tuple[int, str]]] = {}
    ends = {}
    for address, text in code:
        for register in written_registers(text):
            written.setdefault(register, []).append((address, text))
        if (branch := re.match(r"BRA (0x[0-9a-f]+)$", text)) and int(branch[1], 16) < address:
            ends[int(branch[1], 16)] = address
    bad = []
    for begin, end in ends.items():
        for address, text in code:
            product = re.match(r"HGMMA\S* R\d+, R(\d+), gdesc", text)
            if product is None or not begin <= address <= end:
                continue
            for register in range(int(product[1]), int(product[1]) + 4):
                before = [other for place, other in written.get(register, []) if place < begin]
                inside = [place for place, _ in written.get(register, []) if begin <= place <= end]
                if before and before[-1].startswith("LDSM") and inside and min(inside) > address:
                    bad.append(f"{text} at {address:#x}: R{register} is written at {min(inside):#x}")
    return bad


def written_registers(text: str) -> range:
    """Return the registers that an instruction writes; for a product none, whose sums are no operands here."""
    found = re.match(r"([A-Z0-9_]+)(\S*) R(\d+)\b", text)
    if found is None or found[1] in ("HGMMA", "ST", "STG", "STS", "STL", "RED", "BAR", "ATOM", "EXIT", "BRA"):
        return range(0)
    wide = re.search(r"\.(128|64|WIDE|M88\.4)\b", found[2])
    count = {"128": 4, "M88.4": 4, "64": 2, "WIDE": 2}[wide[1]] if wide else 1
    return range(int(found[3]), int(found[3]) + count)


@pytest.fixture(scope="module")
def binary() -> dict[str, list]:
    """What is in the binary: `kernels`, `ptx`, `products` and `overwritten`."""
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


def test_operands_in_registers_are_left_alone_in_loops(binary):
    """The compiler of CUDA 13.0 gave registers of operands that were to stay to others: an H200 computed nonsense."""
    assert binary["overwritten"].keys() == binary["products"].keys()
    assert not {name: found for name, found in binary["overwritten"].items() if found}


def test_an_operand_that_is_overwritten_is_found():
    product = (0x30, "HGMMA.64x64x16.F32.BF16 R56, R120, gdesc[UR12], RZ, !UPT")
    load, other, back = (0x10, "LDSM.16.M88.4 R120, [R43]"), (0x40, "IMAD.U32 R122, RZ, RZ, UR12"), (0x50, "BRA 0x20")
    start = (0x20, "BAR.SYNC.DEFER_BLOCKING R4, 0x100")
    (found,) = overwritten_operands([load, start, product, other, back])
    assert found.endswith("R122 is written at 0x40")
    assert not overwritten_operands([load, start, product, back])
    assert not overwritten_operands([start, (0x28, load[1]), product, other, back])  # it is loaded in each round
    narrowed = (0x10, "F2FP.BF16.F32.PACK_AB R122, R24, R27")
    assert not overwritten_operands([narrowed, start, product, (0x40, narrowed[1]), back])  # each round makes the next
