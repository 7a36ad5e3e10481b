"""Real text for the benchmarks; what needs it is skipped aloud where it is absent."""

import os
from pathlib import Path

import pytest

from benchmarks.environment import ROOT


def file(name: str) -> Path:
    """Return a file of the real data by its path there, or skip the present case.

    Args:
        name: such as "corpus/kjv.txt", below FASTSSL_TEST_DATA (default: ../shared/data beside the project).
    """
    folder = Path(os.environ.get("FASTSSL_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not (folder / name).exists():
        pytest.skip(f"no {name} in {folder} (set FASTSSL_TEST_DATA)")
    return folder / name
