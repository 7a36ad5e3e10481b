"""The GPU's tests as sections: pytest on what runs on the device, and a few of them under compute-sanitizer."""

import os
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from benchmarks.environment import ROOT

SELECTION = ("-m", "triton or cuda", "tests")
SANITIZED = ("-m", "triton or cuda", "-k", "prime or short", "tests/ops")
REHEARSED = ("tests/ops/test_philox.py",)
_SANITIZERS = ("compute-sanitizer", "/usr/local/cuda/bin/compute-sanitizer")
_ERROR_CODE = 17
MAX_PROCESSES = 12
"""That share the GPU: each takes some memory for its context."""


def run_tests(folder: Path, seconds: float, rehearse: bool) -> dict[str, object]:
    """Run the tests that use the device, errors against float64, repeats and poisoned memory among them; count them."""
    # Most of their time is Triton's compiler, which runs on the host.
    processes = ("-n", str(min(os.cpu_count() or 1, MAX_PROCESSES)), "--dist", "worksteal")
    selection = REHEARSED if rehearse else (*processes, *SELECTION)
    return _pytest([], selection, folder / "tests.log", seconds)


def run_sanitized(folder: Path, seconds: float, rehearse: bool) -> dict[str, object]:
    """Run a small set of them under compute-sanitizer's memcheck, where it is installed."""
    tool = next((found for name in _SANITIZERS if (found := shutil.which(name))), None)
    if rehearse or tool is None:
        return {"skipped": "a rehearsal" if rehearse else "compute-sanitizer is not installed"}
    prefix = [tool, "--tool", "memcheck", "--error-exitcode", str(_ERROR_CODE)]
    return _pytest(prefix, SANITIZED, folder / "sanitizer.log", seconds)


def _pytest(prefix: list[str], selection: tuple[str, ...], log: Path, seconds: float) -> dict[str, object]:
    """Return the counts of a run; a run that is cut short has those of none, and says so. The log keeps everything."""
    log.parent.mkdir(parents=True, exist_ok=True)
    report = log.with_suffix(".xml")
    report.unlink(missing_ok=True)
    command = [*prefix, sys.executable, "-m", "pytest", *selection, "-q", "-p", "no:cacheprovider"]
    command += [f"--junitxml={report}"]
    # Each tensor an allocation of its own, so that memcheck sees where one ends.
    environment = os.environ | ({"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"} if prefix else {})
    with log.open("w") as out:
        try:
            done = subprocess.run(
                command, cwd=ROOT, stdout=out, stderr=subprocess.STDOUT, timeout=seconds, env=environment, check=False
            )
        except subprocess.TimeoutExpired:
            return {"cut short": f"after {seconds:.0f} s; see {log.name}"}
    counts = _counts(report) if report.exists() else {}
    return {"exit status": done.returncode, **counts, "log": log.name}


def _counts(report: Path) -> dict[str, object]:
    suite = ElementTree.parse(report).getroot()[0]
    numbers = {name: int(suite.get(name)) for name in ("tests", "failures", "errors", "skipped")}
    bad = [f"{case.get('classname')}::{case.get('name')}" for case in suite if _is_bad(case)]
    return numbers | {"failed": bad}


def _is_bad(case: ElementTree.Element) -> bool:
    return case.find("failure") is not None or case.find("error") is not None
