import errno
import json
import os
import random
import shutil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastssl.training.checkpoint import (
    CheckpointError,
    checkpoint_to_resume,
    list_checkpoints,
    newest_good_checkpoint,
    remove_leftovers,
    rotate_checkpoints,
    verify_checkpoint,
    write_checkpoint,
)


def write_two_files(directory):
    (directory / "weights").write_bytes(bytes(range(256)) * 4)
    (directory / "inner").mkdir()
    (directory / "inner" / "notes.txt").write_text(directory.name)


def names(run):
    return sorted(path.name for path in run.iterdir())


def test_written_checkpoint_verifies(tmp_path):
    checkpoint = write_checkpoint(tmp_path, 7, write_two_files)
    assert names(tmp_path) == ["checkpoint-7"]
    verify_checkpoint(checkpoint)
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    assert manifest["step"] == 7 and set(manifest["files"]) == {"weights", "inner/notes.txt"}


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32), damage=st.sampled_from(["flip", "cut", "delete", "grow"]))
def test_any_damage_is_found(tmp_path_factory, seed, damage):
    run, rng = tmp_path_factory.mktemp("run"), random.Random(seed)
    checkpoint = write_checkpoint(run, 1, write_two_files)
    victim = rng.choice([path for path in checkpoint.rglob("*") if path.is_file()])
    content = bytearray(victim.read_bytes())
    if damage == "delete":
        victim.unlink()
    elif damage == "cut":
        victim.write_bytes(content[: rng.randrange(len(content) - 2)])
    elif damage == "grow":
        victim.write_bytes(content + b"}")
    elif victim.name == "manifest.json":
        position = content.index(b'"sha256": "') + len('"sha256": "') + rng.randrange(64)
        content[position] = ord("0") if content[position] != ord("0") else ord("1")
        victim.write_bytes(content)
    else:
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        victim.write_bytes(content)
    with pytest.raises(CheckpointError, match=str(checkpoint)):
        verify_checkpoint(checkpoint)


def test_damaged_ones_are_skipped_aloud(tmp_path):
    first, second, third = (write_checkpoint(tmp_path, step, write_two_files) for step in (5, 10, 15))
    (third / "weights").write_bytes(b"short")
    (second / "manifest.json").unlink()
    said = []
    assert newest_good_checkpoint(list_checkpoints(tmp_path), said.append) == first
    assert len(said) == 2 and "checkpoint-15 is damaged, using the previous one" in said[0] and "5 bytes" in said[0]
    (first / "inner" / "notes.txt").unlink()
    with pytest.raises(CheckpointError, match="all 3 are damaged"):
        newest_good_checkpoint(list_checkpoints(tmp_path), said.append)


def test_what_resume_means(tmp_path):
    run, empty = tmp_path / "run", tmp_path / "empty"
    run.mkdir(), empty.mkdir()
    # 9 < 10 as numbers, not as text.
    nine, ten = (write_checkpoint(run, step, write_two_files) for step in (9, 10))
    said = []
    assert checkpoint_to_resume("last", run, said.append) == ten
    assert checkpoint_to_resume("last", empty, said.append) is None
    assert checkpoint_to_resume(str(nine), empty, said.append) == nine
    assert checkpoint_to_resume(str(run), empty, said.append) == ten
    (ten / "weights").unlink()
    assert checkpoint_to_resume(str(ten), empty, said.append) == nine
    for nothing in (empty, tmp_path / "missing", run / "checkpoint-11"):
        with pytest.raises(CheckpointError, match="is not a checkpoint; expected 'last'"):
            checkpoint_to_resume(str(nothing), run, said.append)


def test_rotation_keeps_the_newest_and_the_last_written(tmp_path):
    for step in (1, 2, 3, 4):
        newest = write_checkpoint(tmp_path, step, write_two_files)
    rotate_checkpoints(tmp_path, None, newest)
    assert len(list_checkpoints(tmp_path)) == 4
    rotate_checkpoints(tmp_path, 2, newest)
    assert names(tmp_path) == ["checkpoint-3", "checkpoint-4"]
    older = write_checkpoint(tmp_path, 2, write_two_files)
    rotate_checkpoints(tmp_path, 1, older)
    assert names(tmp_path) == ["checkpoint-2"]


def test_an_existing_checkpoint_is_replaced(tmp_path):
    checkpoint = write_checkpoint(tmp_path, 3, write_two_files)
    (checkpoint / "weights").write_bytes(b"damaged")
    verify_checkpoint(write_checkpoint(tmp_path, 3, write_two_files))
    assert names(tmp_path) == ["checkpoint-3"]


def test_failed_write_leaves_nothing_behind(tmp_path):
    good = write_checkpoint(tmp_path, 1, write_two_files)

    def full_disk(directory):
        write_two_files(directory)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(CheckpointError, match="No space left on device; checkpoint-1 is intact; free space"):
        write_checkpoint(tmp_path, 2, full_disk)
    assert names(tmp_path) == ["checkpoint-1"]
    verify_checkpoint(good)
    with pytest.raises(CheckpointError, match="checkpoint-1 is intact"):
        write_checkpoint(tmp_path, 1, full_disk)
    verify_checkpoint(good)


def test_leftovers_are_removed_and_nothing_else(tmp_path):
    good = write_checkpoint(tmp_path, 1, write_two_files)
    shutil.copytree(good, tmp_path / ".checkpoint-2.tmp")
    shutil.copytree(good, tmp_path / ".checkpoint-0.old")
    (tmp_path / ".checkpoint-note").write_text("mine")
    assert sorted(remove_leftovers(tmp_path)) == [".checkpoint-0.old", ".checkpoint-2.tmp"]
    assert names(tmp_path) == [".checkpoint-note", "checkpoint-1"]
