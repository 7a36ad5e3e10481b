"""One side of `--base`: builds cases and launches fastssl on request, a JSON line in, a JSON line out.

Run as `python -m benchmarks.worker TREE` with TREE first on the module path.
"""

import json
import os
import sys
from pathlib import Path

import pytest

import fastssl
from benchmarks.comparison import OURS, Comparison
from benchmarks.suites import Case, Run, select


def main(tree: Path) -> None:
    """Serve until the input ends."""
    found = Path(fastssl.__file__).resolve().parent.parent
    if found != tree.resolve():
        sys.exit(f"expected fastssl of {tree}, but the import found {found}")
    # Whatever a library prints goes to the error stream; the protocol keeps the real output for itself.
    with os.fdopen(os.dup(1), "w", buffering=1) as replies:
        os.dup2(2, 1)
        comparison: Comparison | None = None
        for line in sys.stdin:
            request = json.loads(line)
            if request["do"] == "build":
                comparison, skipped = None, None
                try:
                    comparison = _find(request).build()
                    comparison.check()
                except pytest.skip.Exception as reason:
                    skipped = str(reason)
                answer = {"skipped": skipped}
            else:
                answer = comparison.contenders[OURS]()
            replies.write(json.dumps(answer) + "\n")


def _find(request: dict) -> Case:
    cases = select([request["suite"]], Run(quick=request["quick"]))
    return next(case for case in cases if case.name == request["case"])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
