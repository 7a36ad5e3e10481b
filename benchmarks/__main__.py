"""Measure fastssl beside its peers on this machine: correct first, then timed, launch by launch in turn."""

import sys
from pathlib import Path

import pytest
import tyro

from benchmarks.environment import ROOT
from benchmarks.session import PARTIAL_RESULTS, BenchmarkSession, Options


def main() -> int:
    """Parse the flags, run the cases as tests, and return pytest's exit status."""
    options = tyro.cli(Options, prog="python -m benchmarks", description=__doc__)
    try:
        session = BenchmarkSession(options)
    except ValueError as error:
        print(f"benchmarks: error: {error}", file=sys.stderr)
        return 2
    history = f"--benchmark-storage=file://{PARTIAL_RESULTS / 'history'}"
    arguments = [
        *(
            "--quiet",
            "--no-header",
            "--capture=no",
            "--disable-warnings",
            "-p",
            "no:cacheprovider",
            f"--rootdir={ROOT}",
        ),
        *("--benchmark-quiet", "--benchmark-autosave", history),
    ]
    return int(pytest.main([str(Path(__file__).resolve().parent), *arguments], plugins=[session]))


if __name__ == "__main__":
    sys.exit(main())
