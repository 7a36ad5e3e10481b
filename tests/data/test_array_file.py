"""Rows of unknown number become one .npy file."""

from pathlib import Path

import numpy as np
import pytest

from fastssl.data.array_file import write_rows


def test_rows_come_back(tmp_path: Path):
    rows = np.random.default_rng(0).standard_normal((1234, 3)).astype(np.float32)
    assert write_rows(tmp_path / "a.npy", np.array_split(rows, 7), 3) == 1234
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), rows)
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy", mmap_mode="r"), rows)
    assert write_rows(tmp_path / "a.npy", [], 5) == 0
    assert np.load(tmp_path / "a.npy").shape == (0, 5)
    assert [path.name for path in tmp_path.iterdir()] == ["a.npy"]


def test_a_failure_leaves_the_old_file(tmp_path: Path):
    path = tmp_path / "a.npy"
    write_rows(path, [np.ones((2, 3), dtype=np.float32)], 3)
    with pytest.raises(ValueError, match=r"rows must have shape \(k, 3\), got \(2, 4\)"):
        write_rows(path, [np.ones((2, 3)), np.ones((2, 4))], 3)
    np.testing.assert_array_equal(np.load(path), np.ones((2, 3)))
    assert [found.name for found in tmp_path.iterdir()] == ["a.npy"]
