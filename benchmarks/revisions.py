"""Two revisions of fastssl in two processes, launched in turn: `python -m benchmarks --base REV`."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from benchmarks.comparison import Comparison
from benchmarks.environment import ROOT
from benchmarks.suites import Case


@contextmanager
def checked_out(revision: str) -> Iterator[Path]:
    """Check `revision` out into a temporary folder, build its native code there, and remove it all in the end.

    Its own benchmarks are removed at once: both revisions are measured by the present ones.
    """
    folder = Path(tempfile.mkdtemp(prefix="fastssl-base-")) / "tree"
    try:
        _run(["git", "worktree", "add", "--detach", "--quiet", str(folder), revision], ROOT)
        shutil.rmtree(folder / "benchmarks", ignore_errors=True)
        _run([sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"], folder)
        yield folder
    finally:
        remove = ["git", "worktree", "remove", "--force", str(folder)]
        subprocess.run(remove, cwd=ROOT, capture_output=True, check=False)
        shutil.rmtree(folder.parent, ignore_errors=True)


def check_revision(revision: str) -> None:
    """Raise ValueError unless this checkout knows `revision`."""
    command = ["git", "rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}"]
    if subprocess.run(command, cwd=ROOT, capture_output=True, check=False).returncode != 0:
        raise ValueError(f"--base: this checkout has no revision {revision!r}; expected a commit, branch or tag")


class Worker:
    """A process that imports fastssl from one source tree and runs its side of a comparison on request."""

    def __init__(self, tree: Path, *, quick: bool) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "benchmarks.worker", str(tree)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tree), str(ROOT)])},
        )
        self._quick = quick

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.stdin.close()
        self._process.wait()

    def build(self, case: Case) -> None:
        """Let the process build and check a case; skip it where the process had to."""
        reply = self._ask({"do": "build", "suite": case.suite, "case": case.name, "quick": self._quick})
        if reply["skipped"] is not None:
            pytest.skip(reply["skipped"])

    def launch(self) -> float:
        """Launch fastssl's side of the case once and return its seconds, as the process measured them."""
        return self._ask({"do": "launch"})

    def _ask(self, request: Mapping[str, Any]) -> Any:
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        reply = self._process.stdout.readline()
        if not reply:
            raise RuntimeError(f"the worker process ended while it was asked to {request}; its message is above")
        return json.loads(reply)


def compare_revisions(case: Case, workers: Mapping[str, Worker]) -> Comparison:
    """Return fastssl of each worker as a contender; building a case in a worker also checks it."""
    for worker in workers.values():
        worker.build(case)
    return Comparison(contenders={name: worker.launch for name, worker in workers.items()}, check=lambda: None)


def _run(command: list[str], folder: Path) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"--base: {' '.join(command)} failed:\n{done.stdout}{done.stderr}")
