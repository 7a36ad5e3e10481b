"""The GPU's tests as sections: pytest on what runs on the device, and a few of them under compute-sanitizer."""

import os
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from benchmarks.environment import ROOT
from benchmarks.gpu.within import run_within

SELECTION = ("-m", "triton or cuda")
SANITIZED = (
    "tests/ops/test_triton_philox.py",
    "tests/ops/test_layer_norm_cuda.py",
    "tests/ops/test_linear_cross_entropy_cuda.py",
    "tests/ops/test_attention_cuda.py",
    *("-m", "triton or cuda", "-k", "(prime or short or philox) and not hopper"),
)
REHEARSED = ("tests/ops/test_philox.py",)
_SANITIZERS = ("compute-sanitizer", "/usr/local/cuda/bin/compute-sanitizer")
_ERROR_CODE = 17
MAX_PROCESSES = 12
"""That share the GPU: each takes some memory for its context."""
GRACE_SECONDS = 10
"""For pytest to write its report when its time is up."""


def run_tests(folder: Path, seconds: float, rehearse: bool) -> dict[str, object]:
    """Run the tests that use the device, errors against float64, repeats and poisoned memory among them; count them."""
    # Most of their time is Triton's compiler, which runs on the host.
    processes = ("-n", str(min(os.cpu_count() or 1, MAX_PROCESSES)), "--dist", "worksteal")
    selection = REHEARSED if rehearse else (*processes, *SELECTION, *files_of_gpu_tests())
    return _pytest([], selection, folder / "tests.log", seconds)


def run_sanitized(folder: Path, seconds: float, rehearse: bool) -> dict[str, object]:
    """Run a small set of them under compute-sanitizer's memcheck, where it is installed."""
    tool = next((found for name in _SANITIZERS if (found := shutil.which(name))), None)
    if rehearse or tool is None:
        return {"skipped": "a rehearsal" if rehearse else "compute-sanitizer is not installed"}
    prefix = [tool, "--tool", "memcheck", "--target-processes", "application-only"]
    prefix += ["--error-exitcode", str(_ERROR_CODE)]
    facts = _pytest(prefix, SANITIZED, folder / "sanitizer.log", seconds)
    if "Device not supported" in (folder / "sanitizer.log").read_text(errors="replace"):
        return {"skipped": "compute-sanitizer does not support this machine's access to its GPU"}
    return facts


def files_of_gpu_tests() -> list[str]:
    """Return the files with tests that are marked as such: each of many processes reads them, and but them."""
    marked = re.compile(r"mark\.(triton|cuda)\b")
    files = sorted((ROOT / "tests").rglob("test_*.py"))
    return [str(file.relative_to(ROOT)) for file in files if marked.search(file.read_text(encoding="utf-8"))]


def _pytest(prefix: list[str], selection: tuple[str, ...], log: Path, seconds: float) -> dict[str, object]:
    """Return the counts of a run; one that is cut short has those of the tests that ended. The log keeps everything."""
    log.parent.mkdir(parents=True, exist_ok=True)
    report = log.with_suffix(".xml")
    report.unlink(missing_ok=True)
    command = [*prefix, sys.executable, "-m", "pytest", *selection, "-v", "-p", "no:cacheprovider"]
    command += [f"--junitxml={report}", "--continue-on-collection-errors"]
    # Each tensor an allocation of its own, so that memcheck sees where one ends.
    environment = os.environ | ({"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"} if prefix else {})
    with log.open("w") as out:
        streams = {"stdout": out, "stderr": subprocess.STDOUT, "env": environment}
        status = run_within(command, seconds, grace_seconds=GRACE_SECONDS, **streams)
    ended = {"cut short": f"after {seconds:.0f} s"} if status is None else {"exit status": status}
    return {**ended, **(_counts(report) if report.exists() else {}), "log": log.name}


def _counts(report: Path) -> dict[str, object]:
    suite = ElementTree.parse(report).getroot()[0]
    numbers = {name: int(suite.get(name)) for name in ("tests", "failures", "errors", "skipped")}
    bad = [f"{case.get('classname')}::{case.get('name')}" for case in suite if _is_bad(case)]
    return numbers | {"failed": bad}


def _is_bad(case: ElementTree.Element) -> bool:
    return case.find("failure") is not None or case.find("error") is not None
