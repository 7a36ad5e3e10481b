"""Checkpoint directories: written whole or not at all, with a checksum for every file.

``checkpoint-<step>/`` is a model directory (config.json, model.safetensors, ...) with three files more: the optimizer's
state, the state of the run, and ``manifest.json``, which lists the size and SHA-256 of every other file. It is written
under the hidden name ``.checkpoint-<step>.tmp``, synced, and renamed; a kill at any moment leaves either no new
checkpoint or a whole one. Nothing in it is pickled.
"""

import itertools
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError

from fastssl.training.durable import sha256_of, sync_directory, sync_file

MANIFEST = "manifest.json"
_NAME = re.compile(r"checkpoint-(\d+)")
_LEFTOVER = re.compile(r"\.checkpoint-\d+\.(tmp|old)")


class CheckpointError(ValueError):
    """A checkpoint could not be written, or the one to go on from is missing or damaged."""


def step_of(checkpoint: Path) -> int | None:
    """Return the step in a checkpoint directory's name, or None for another name."""
    match = _NAME.fullmatch(checkpoint.name)
    return int(match[1]) if match else None


def list_checkpoints(run: Path) -> list[Path]:
    """Return the checkpoint directories of a run, oldest first, good or not."""
    found = [path for path in run.iterdir() if step_of(path) is not None and path.is_dir()] if run.is_dir() else []
    return sorted(found, key=step_of)


def remove_leftovers(run: Path) -> list[str]:
    """Delete what a killed save or deletion left behind and return the names."""
    names = [path for path in run.iterdir() if _LEFTOVER.fullmatch(path.name)]
    for path in names:
        shutil.rmtree(path)
    return [path.name for path in names]


def write_checkpoint(run: Path, step: int, write: Callable[[Path], None]) -> Path:
    """Make ``checkpoint-<step>`` in the directory `run` and return its path.

    Args:
        run: an existing directory.
        step: optimizer steps done.
        write: writes the files into the empty directory that it is given.

    Raises:
        CheckpointError: when writing fails, such as on a full disk; nothing is left of the attempt.
    """
    final = run / f"checkpoint-{step}"
    hidden = run / f".{final.name}.tmp"
    try:
        hidden.mkdir()
        write(hidden)
        _seal(hidden, step)
        if final.exists():
            _delete(final, leave_to=hidden)
        else:
            hidden.rename(final)
        sync_directory(run)
    except BaseException as error:
        shutil.rmtree(hidden, ignore_errors=True)
        if isinstance(error, (OSError, RuntimeError, SafetensorError)):
            raise CheckpointError(_failed_save_message(run, final, error)) from error
        raise
    return final


def verify_checkpoint(checkpoint: Path) -> None:
    """Compare every file with the manifest.

    Raises:
        CheckpointError: names the first file that is missing, of another size, or altered.
    """
    manifest_path = checkpoint / MANIFEST
    try:
        files = json.loads(manifest_path.read_text(encoding="utf-8"))["files"]
        expected = {name: (entry["bytes"], entry["sha256"]) for name, entry in files.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{manifest_path}: missing or unreadable ({error})") from error
    for name, (size, digest) in expected.items():
        path = checkpoint / name
        if not path.is_file():
            raise CheckpointError(f"{path}: missing")
        if path.stat().st_size != size:
            raise CheckpointError(f"{path}: {path.stat().st_size} bytes, expected {size}")
        if sha256_of(path) != digest:
            raise CheckpointError(f"{path}: its content is altered (SHA-256 differs from the manifest)")


def newest_good_checkpoint(candidates: list[Path], say: Callable[[str], None]) -> Path | None:
    """Return the newest checkpoint that verifies, telling of each damaged one; None for an empty list.

    Args:
        candidates: checkpoint directories, oldest first.
        say: takes a message for the user.

    Raises:
        CheckpointError: when there are candidates and all are damaged.
    """
    for number, checkpoint in enumerate(reversed(candidates), start=1):
        try:
            verify_checkpoint(checkpoint)
        except CheckpointError as error:
            going_on = "using the previous one" if number < len(candidates) else "there is no other"
            say(f"{checkpoint.name} is damaged, {going_on}: {error}")
        else:
            return checkpoint
    if candidates:
        raise CheckpointError(
            f"no good checkpoint in {candidates[0].parent}: all {len(candidates)} are damaged; "
            "remove them, or train into another output_dir"
        )
    return None


def checkpoint_to_resume(request: str, run: Path, say: Callable[[str], None]) -> Path | None:
    """Return the checkpoint that `resume_from_checkpoint` means, a damaged one replaced by the one before it.

    Args:
        request: "last", a checkpoint directory, or the directory of a run (its newest).
        run: the run's own directory, where "last" looks.
        say: takes a message for the user.

    Returns:
        A verified directory, or None where "last" finds no checkpoint at all.

    Raises:
        CheckpointError: for a path without checkpoint, or when all are damaged.
    """
    if request == "last":
        return newest_good_checkpoint(list_checkpoints(run), say)
    path = Path(request)
    step = step_of(path.resolve())
    if path.is_dir() and step is not None:
        earlier = [other for other in list_checkpoints(path.resolve().parent) if step_of(other) <= step]
        return newest_good_checkpoint(earlier, say)
    if found := newest_good_checkpoint(list_checkpoints(path), say):
        return found
    raise CheckpointError(
        f"resume_from_checkpoint={request!r} is not a checkpoint; expected 'last', a directory checkpoint-<step>, "
        "or the directory of a run that holds some"
    )


def set_aside_later(checkpoint: Path, say: Callable[[str], None]) -> None:
    """Rename the checkpoints of a run that are later than one that it goes back to: they belong to another future.

    They would be the newest ones, and what "last" means, until the run has come as far again.
    """
    run = checkpoint.parent
    for later in (other for other in list_checkpoints(run) if step_of(other) > step_of(checkpoint)):
        names = (f"set-aside-{later.name}" + (f"-{number}" if number > 1 else "") for number in itertools.count(1))
        aside = next(run / name for name in names if not (run / name).exists())
        later.rename(aside)
        say(f"{later.name} is kept as {aside.name}: the run goes back to {checkpoint.name}")
    sync_directory(run)


def rotate_checkpoints(run: Path, keep: int | None, newest: Path, best: Path | None = None) -> None:
    """Delete the oldest checkpoints beyond `keep`, never `newest`, which was just written and is therefore good.

    `best`, where there is one, is kept beside them and does not count.
    """
    others = [path for path in list_checkpoints(run) if path not in (newest, best)]
    surplus = 0 if keep is None else max(0, len(others) - (keep - 1))
    for path in others[:surplus]:
        _delete(path)


def _seal(directory: Path, step: int) -> None:
    """Sync every file, and write the manifest last."""
    paths = sorted(path for path in directory.rglob("*") if path.is_file())
    files = {
        path.relative_to(directory).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
        for path in paths
    }
    manifest = directory / MANIFEST
    manifest.write_text(json.dumps({"step": step, "files": files}, indent=1) + "\n", encoding="utf-8")
    for path in (*paths, manifest):
        sync_file(path)
    for folder in {path.parent for path in (*paths, manifest)}:
        sync_directory(folder)


def _delete(checkpoint: Path, leave_to: Path | None = None) -> None:
    """Delete a checkpoint, hidden first, so that a kill in between leaves no half one; `leave_to` takes its name."""
    doomed = checkpoint.with_name(f".{checkpoint.name}.old")
    checkpoint.rename(doomed)
    if leave_to is not None:
        leave_to.rename(checkpoint)
    shutil.rmtree(doomed)


def _failed_save_message(run: Path, final: Path, error: Exception) -> str:
    there = list_checkpoints(run)
    intact = f"{there[-1].name} is intact" if there else "there is no earlier checkpoint"
    return f"could not save {final}: {error}; {intact}; free space, then go on with --resume-from-checkpoint last"
