"""What `import fastssl` adds after `import torch`, each in a fresh process."""

import subprocess
import sys
from collections.abc import Callable, Mapping
from functools import partial

from benchmarks.comparison import OURS, Comparison
from benchmarks.suites import Run
from benchmarks.timing import Effort, Launch

EFFORT = Effort(seconds=15.0, min_rounds=3, max_rounds=5, warmup_rounds=1)
QUICK_EFFORT = Effort(min_rounds=1, max_rounds=1, warmup_rounds=1)


def cases(run: Run) -> Mapping[str, Callable[[], Comparison]]:
    """Return the one case."""
    return {"after import torch": partial(comparison, QUICK_EFFORT if run.quick else EFFORT)}


def comparison(effort: Effort) -> Comparison:
    """Compare the import with that of torch itself."""
    return Comparison(
        contenders={OURS: seconds_to_import("fastssl", after="torch"), "import torch": seconds_to_import("torch")},
        check=lambda: None,
        effort=effort,
    )


def seconds_to_import(module: str, *, after: str = "sys") -> Launch:
    """Return a launch that imports a module in a fresh process, behind another, and reports its seconds."""
    program = f"import time, {after}; start = time.perf_counter(); import {module}; print(time.perf_counter() - start)"

    def launch() -> float:
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        return float(done.stdout)

    return launch
