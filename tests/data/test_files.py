"""What may be replaced by a new file, and the mode that files get."""

import os
import stat
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from fastssl.data.array_file import write_rows
from fastssl.data.files import make_directory, replace_file, replaceable_file, write_with_usual_mode


def test_only_regular_files_are_replaced(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for target in (Path("/dev/null"), tmp_path / "pipe", tmp_path, tmp_path / "loop"):
        with pytest.raises(ValueError, match=f"{target} is not a regular file.*name another file"):
            replaceable_file(target)
    new = tmp_path / "new"
    new.write_text("new")
    with pytest.raises(ValueError, match="is not a regular file"):
        replace_file(new, tmp_path / "pipe")
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode) and new.exists()


def test_a_symbolic_link_stays_and_its_file_is_replaced(tmp_path: Path):
    (tmp_path / "far").mkdir()
    link, file = tmp_path / "link.npy", tmp_path / "far" / "file.npy"
    link.symlink_to(file)
    for value in (1, 2):  # the first time there is nothing behind the link
        write_rows(link, [np.full((1, 3), value, dtype=np.float32)], 3)
        assert link.is_symlink() and np.load(file).tolist() == [[value] * 3]
    assert [path.name for path in (tmp_path / "far").iterdir()] == ["file.npy"]


def test_a_file_in_place_of_a_directory_is_named(tmp_path: Path):
    file = tmp_path / "file.npy"
    file.touch()
    for directory in (file, file / "a" / "b"):
        with pytest.raises(ValueError, match=f"{directory} must be a directory, but {file} is a file; name another"):
            make_directory(directory)
    make_directory(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()


def test_files_follow_the_umask(tmp_path: Path):
    write_with_usual_mode(tmp_path / "a", lambda path: safetensors.torch.save_file({"x": torch.zeros(2)}, path))
    (tmp_path / "b").touch()
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode
    assert safetensors.torch.load_file(tmp_path / "a")["x"].tolist() == [0, 0]
